"""What the scenarios of durable channels share; it has none itself.

    with Durable(channels={"d": {"max_messages": 5}}) as server:

is a daemon with a state_dir in its folder, those durable channels, and the plain channel "p". It
answers with its capability, and its control socket is open.
"""

import os

from frames import *
from harness import Server, eventually

DOWN = starts("store-down: ")
STALE = starts("stale: ")
OVER = starts("over-capacity: ")

NEVER = "30d"  # for what must not come by itself


class Durable(Server):
    capabilities = DURABLE

    def __init__(self, channels=("d",), plain=("p",), server=None, control=True, **how):
        if not isinstance(channels, dict):
            channels = {name: {} for name in channels}
        sections = {name: {} for name in plain}
        sections.update({name: {"durable": "yes", **values} for name, values in channels.items()})
        super().__init__(channels=sections, server={"state_dir": "DIR/state", **(server or {})},
                         control=control, **how)
        self.state = os.path.join(self.directory, "state")

    def filled(self, channel, payloads):
        """Publishes them; the client that did."""
        client = self.client()
        client.send(*[publish(1, channel, payload) for payload in payloads])
        for _ in payloads:
            got = client.receive()
            assert got.type == 0x0A, got
        return client

    def kept(self, channel, last):
        """What a reader finds, from the oldest on up to sequence LAST: (sequence, payload) of
        each message."""
        client, found = self.client(), []
        client.subscribe(1, channel, **reader(ALL))
        while not found or found[-1][0] < last:
            got = client.receive()
            assert got.type == 0x19, got
            found.append((got.u64(), payload_of(got)))
        client.close()
        return found

    def consumers(self, channel=None):
        """$control/consumers by name."""
        reply = self.ask("consumers", {"channel": channel} if channel else {})
        return {one["consumer"]: one for one in reply["consumers"]}


def delivered(client, *sequences, again=None):
    """The next frames are deliveries of these sequences; their payloads."""
    payloads = []
    for sequence in sequences:
        got = client.receive()
        assert got.type == 0x19 and got.u64() == sequence, "not delivery %d: %s" % (sequence, got)
        if again is not None:
            assert bool(got.flags & 0x80) == again, "flag 0x80 of %s" % got
        payloads.append(payload_of(got))
    return payloads


def confirmed(client, *answers):
    """Sends answers that ask for a confirmation; each comes back, and nothing else, so that there
    must be nothing that their credit could bring."""
    client.send(*answers)
    client.expect(*answers)
