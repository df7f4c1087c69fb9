"""Slow consumers: subscribers that do not read as fast as others publish.

A subscriber is made slow by a small receive buffer and by not reading. Publishes of a message that
its outbox does not take any more have no other subscriber, so their acks show it: flag 0x01 is
clear. No clock is needed.
"""

from frames import *
from harness import Server, eventually, fields, scenario

MESSAGE = bytes(16384)
BOUNDS = {"max_outbox_bytes": "256K"}
SHED = starts("subscription shed: ")


def stall(publisher, channel, refused=1):
    """Publishes until REFUSED messages were not accepted; whether each was."""
    accepted = []
    while accepted.count(False) < refused:
        publisher.publish(1, channel, MESSAGE)
        accepted.append(publisher.flags == DELIVERED)
    return accepted


def read_accepted(client, stream, accepted, first=1):
    """The deliveries of what was accepted, in order; the others have used up their numbers."""
    for sequence, taken in enumerate(accepted, first):
        if taken:
            client.expect(deliver(stream, sequence, MESSAGE))


def stall_lines(server, client):
    return [fields(line) for line in server.lines if "depth=" in line and client.name in line]


@scenario("Slow consumers", "shed (the default): the subscription ends, SubscribeError 0xFFFF "
          "\"subscription shed: ...\" stands behind what is queued already, on its stream, once",
          "the connection and its other subscriptions live on", client=True)
def shed():
    with Server(channels=("events", "quiet"), limits=BOUNDS, http=True) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(5, "events")
        client.subscribe(6, "quiet")
        accepted = stall(publisher, "events")
        assert accepted.index(False) == len(accepted) - 1
        # From now on it is not there: no message, no second error.
        for _ in range(20):
            publisher.publish(1, "events", MESSAGE)
            assert publisher.flags == 0
        read_accepted(client, 5, accepted)
        client.expect(subscribe_error(5, SERVER_ERROR, SHED))
        client.expect_nothing()
        publisher.publish(1, "quiet", b"still there")
        assert publisher.flags == DELIVERED
        client.expect(deliver(6, 1, b"still there"))
        client.subscribe(5, "events")
        publisher.publish(1, "events", b"again")
        client.expect(deliver(5, 1, b"again"))
        assert server.metric('liminal_subscription_sheds_total{channel="events"}') == 1
        assert server.metric('liminal_subscription_sheds_total{channel="quiet"}') in (0, None)


@scenario("Slow consumers", "each subscription that is shed gets one SubscribeError, also when "
          "several share a stream")
def shed_several():
    with Server(limits=BOUNDS) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        for _ in range(3):
            client.subscribe(5, "events")
        stall(publisher, "events", refused=5)
        client.send(ping())
        got = client.receive_until(pong())
        errors = [one for one in got if one.type == 0x07]
        assert len(errors) == 3
        assert all(subscribe_error(5, SERVER_ERROR, SHED).matches(one) for one in errors)
        assert all(one.type in (0x07, 0x19) for one in got)


@scenario("Slow consumers", "what waits for a subscriber is counted frame by frame and byte by byte, "
          "also where batches go to many")
def queue_is_counted():
    payload, size = bytes(2000), 22 + 42 + 2000
    with Server(control=True) as server:
        slow, quick, publisher = server.client(receive_buffer=4096), server.client(), server.client()
        slow.subscribe(1, "events")
        quick.subscribe(1, "events")
        sent = frames = 0
        while frames < 200:
            publisher.send(*[publish(1, "events", payload)] * 100)
            sent += 100
            publisher.expect(*[publish_ack(1, message, DELIVERED)
                               for message in range(sent - 99, sent + 1)])
            quick.expect(*[deliver(1, sequence, payload)
                           for sequence in range(sent - 99, sent + 1)])
            entry, = [one for one in server.ask("connections")["connections"]
                      if one["peer"] == slow.name]
            frames = entry["outbox_frames"]
            # A part of the first may be sent.
            assert (frames - 1) * size < entry["outbox_bytes"] <= frames * size or frames == 0
        slow.expect(*[deliver(1, sequence, payload) for sequence in range(1, sent + 1)])
        eventually("nothing is queued", lambda: all(
            one["outbox_frames"] == one["outbox_bytes"] == 0
            for one in server.ask("connections")["connections"] if one["peer"] == slow.name))


@scenario("Slow consumers", "drop: the message is not delivered to that subscription, and its "
          "delivery sequence number is used up")
def drop():
    with Server(channels={"lossy": {"slow_consumer": "drop"}}, limits=BOUNDS, http=True) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(5, "lossy")
        accepted = stall(publisher, "lossy", refused=20)
        read_accepted(client, 5, accepted)
        accepted2 = stall(publisher, "lossy", refused=20)
        assert accepted2[0], "there is room again"
        read_accepted(client, 5, accepted2, first=len(accepted) + 1)
        client.expect_nothing()
        dropped = (accepted + accepted2).count(False)
        assert server.metric('liminal_drops_total{channel="lossy"}') == dropped


@scenario("Slow consumers", "a plain subscription with max_in_flight 1 is never shed: what does "
          "not fit is dropped, and no SubscribeError is sent", client=True)
def max_in_flight_one_is_never_shed():
    with Server(limits=BOUNDS) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(5, "events", max_in_flight=1)
        accepted = stall(publisher, "events", refused=20)
        client.send(ping())
        read_accepted(client, 5, accepted)
        client.expect(pong())
        publisher.publish(1, "events", b"last")
        client.expect(deliver(5, len(accepted) + 1, b"last"))
        client.expect_nothing()


@scenario("Slow consumers", "beside a subscription with max_in_flight 1, another of the same "
          "connection is shed all the same")
def shed_beside_max_in_flight_one():
    with Server(limits=BOUNDS) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(5, "events", max_in_flight=1)
        client.subscribe(6, "events", max_in_flight=2)
        stall(publisher, "events", refused=5)
        client.send(ping())
        got = client.receive_until(pong())
        errors = [one for one in got if one.type == 0x07]
        assert len(errors) == 1 and subscribe_error(6, SERVER_ERROR, SHED).matches(errors[0])


@scenario("Slow consumers", "a log line names connection, peer, channel and depth, once per stall")
def one_log_line_per_stall():
    with Server(channels={"lossy": {"slow_consumer": "drop"}}, limits=BOUNDS) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(5, "lossy")
        first = 1
        for stalls in (1, 2):
            accepted = stall(publisher, "lossy", refused=20)
            read_accepted(client, 5, accepted, first)
            first += len(accepted)
            client.expect_nothing()
            server.log(r"depth=")
            lines = stall_lines(server, client)
            assert len(lines) == stalls, lines
            assert lines[-1]["channel"] == "lossy" and int(lines[-1]["depth"]) > 0
            assert int(lines[-1]["conn"]) > 0 and lines[-1]["peer"] == client.name


@scenario("Slow consumers", "a subscriber that never reads, while 9 others get everything: no "
          "publisher, other subscriber or channel feels it")
def nine_others():
    with Server(channels=("events", "quiet"), limits=BOUNDS) as server:
        stuck, publisher = server.client(receive_buffer=4096), server.client()
        stuck.subscribe(1, "events")
        others = [server.client() for _ in range(9)]
        for client in others:
            client.subscribe(1, "events")
            client.subscribe(2, "quiet")
        # Enough for the sockets of the stuck one and its outbox, and as much again.
        for number in range(1, 501):
            publisher.publish(1, "events", MESSAGE)
            assert publisher.flags == DELIVERED
            for client in others:
                client.expect(deliver(1, number, MESSAGE))
        server.log(r"depth=")
        assert len(stall_lines(server, stuck)) == 1
        publisher.publish(1, "quiet", b"x")
        for client in others:
            client.expect(deliver(2, 1, b"x"))
            client.expect_nothing()
