"""The end of a daemon: SIGTERM, the drain with its rules, and what is left behind.

A drain that must not be over yet has a drain_timeout of a minute; what is closed meanwhile is
closed for being idle. That something is *not* closed shows in another connection, which is.
"""

import json
import os
import select
import signal
import socket
import time

from conversations import WORKING, ask, keep_working_until_readable, opened, pushed, worker
from frames import *
from harness import Client, Server, eventually, scenario

PATIENT = {"drain_timeout": "1m", "drain_idle": "1h"}
BRISK = {"drain_timeout": "1m", "drain_idle": "100ms"}
# Where one must not fall silent for that long, also on a machine that is slow to let it talk.
TALKING = {"drain_timeout": "1m", "drain_idle": "600ms"}


def drain(server):
    """SIGTERM; returns when the drain has begun."""
    server.signal(signal.SIGTERM)
    server.log('event="draining"')


def accepted(server):
    """A connection that has sent nothing, and is not left behind in the listener's queue."""
    client = server.raw()
    server.log('event="connection accepted".* peer=%s' % re.escape(client.name), again=True)
    return client


def refused(address):
    try:
        Client(address).close()
    except OSError:
        return True
    return False


def ping_until_readable(client, *others):
    """Keeps CLIENT busy until something has come for one of OTHERS."""
    while not select.select([one.socket for one in others], [], [], 0.02)[0]:
        client.expect_nothing()


def others_closed(busy, *idle):
    """IDLE connections are closed, one after the other, while BUSY stays."""
    for one in idle:
        ping_until_readable(busy, one)
        one.expect(disconnect())
        one.expect_end()


# What a drain does at once

@scenario("Start, stop, signals", "SIGTERM: /ready turns 503, HTTP answers until the process exits",
          "listeners and control listener are closed, their paths unlinked")
def listeners_close():
    for number in (signal.SIGTERM, signal.SIGINT):
        with Server(http=True, control=True,
                    server={"listen": ["127.0.0.1:0", "DIR/bus"], **PATIENT}) as server:
            client, control = server.client(), server.control()
            assert server.http("/ready")[0] == 200
            server.signal(number)
            eventually("/ready turns", lambda: server.http("/ready")[0] == 503)
            assert json.loads(server.http("/ready")[2]) == \
                {"ready": False, "unmet_conditions": ["listener_bound"]}
            eventually("nobody listens", lambda: all(
                refused(address) for address in (*server.addresses, server.control_path)))
            assert sorted(os.listdir(server.directory)) == ["liminald.conf"]
            assert server.http("/health")[0] == 200 and server.http("/metrics")[0] == 200
            # Who is there is served, over the control socket too.
            control.send(conversation_open(1, 1, "$control/ping"), request(1, 1, b""))
            control.expect(reply(1, 1, b'{"ok":true}'))
            client.close()
            control.close()
            server.wait_exit(0)


@scenario("Start, stop, signals", "existing connections are served as before, new publishes, "
          "subscriptions, registrations and requests too")
def served_on():
    with Server(server=PATIENT) as server:
        client, jobs, last = server.client(), server.client(), server.client()
        last.subscribe(1, "events")
        drain(server)
        # All others have been told before it, and who subscribes from now on is not.
        last.expect(disconnect())
        last.close()
        client.send(connect("1.1"), conversation_open(3, 1, "jobs"), subscribe(2, "events"),
                    publish(4, "events", b"x"))
        client.expect(connect_ack("1.1"), subscribe_ack(2, 2), publish_ack(4, 1, DELIVERED),
                      deliver(2, 1, b"x"))
        worker(server, "jobs", jobs)
        jobs.send(push_reply(1, ask(client, jobs, 1, b"job"), b"done"))
        client.expect(reply(3, 1, b"done"))
        for one in (client, jobs):
            one.send(disconnect())
            one.expect_end()
        server.wait_exit(0)


@scenario("Start, stop, signals", "Disconnect once to every connection that holds a subscription, "
          "without closing it; none to others", client=True)
def told_once():
    with Server(server=PATIENT) as server:
        several, one, other, former = (server.client() for _ in range(4))
        for channel in range(3):
            several.subscribe(channel + 1, "events")
        one.subscribe(1, "events")
        former.send(unsubscribe(1, former.subscribe(1, "events")))
        former.expect_nothing()
        drain(server)
        for client in (several, one):
            client.expect(disconnect())
            client.expect_nothing()
        for client in (other, former):
            client.expect_nothing()
        other.send(publish(1, "events", b"x"))
        other.expect(publish_ack(1, 1, DELIVERED))
        several.expect(*[deliver(stream, 1, b"x") for stream in (1, 2, 3)])
        one.expect(deliver(1, 1, b"x"))
        # Closed at the end, those who know are not told again.
        server.signal(signal.SIGTERM)
        for client in (several, one):
            client.expect_end()
        for client in (other, former):
            client.expect(disconnect())
            client.expect_end()
        server.wait_exit(0)


# When it is over

@scenario("Start, stop, signals", "it waits until all connections have gone, and is over when the "
          "last one goes")
def all_gone():
    for ways in (("close", "reset"), ("disconnect", "half_close")):
        with Server(server=PATIENT) as server:
            clients = [server.client() for _ in ways]
            drain(server)
            for client, way in zip(clients, ways):
                for one in clients[clients.index(client):]:
                    one.expect_nothing()
                if way == "disconnect":
                    client.send(disconnect())
                    client.expect_end()
                else:
                    getattr(client, way)()
            server.wait_exit(0)
    with Server(server=PATIENT) as server:
        server.signal(signal.SIGTERM)
        server.wait_exit(0)


@scenario("Start, stop, signals", "... at most drain_timeout: then what is there is closed, with a "
          "Disconnect as the last frame; exit status 0")
def drain_timeout():
    for timeout in ("0", "200ms"):
        with Server(server={"drain_timeout": timeout, "drain_idle": "1h"},
                    conversations={"no_worker": "wait"}) as server:
            jobs, client = worker(server, "others"), opened(server, 1)
            client.send(request(3, 1, b"it is forgotten"))
            client.expect_nothing()
            drain(server)
            for one in (client, jobs):
                one.expect(disconnect())
                one.expect_end()
                assert server.closed(one) == "shutdown"
            server.wait_exit(0)


@scenario("Start, stop, signals", "a second signal ends the wait at once")
def second_signal():
    for first, second in ((signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)):
        with Server(server=PATIENT, conversations={"no_worker": "wait"}) as server:
            jobs, client = worker(server, "others"), opened(server, 1)
            client.subscribe(2, "events")
            client.send(request(3, 1, b"it is forgotten"))
            client.expect_nothing()
            server.signal(first)
            client.expect(disconnect())
            client.expect_nothing()
            server.signal(second)
            client.expect_end()
            jobs.expect(disconnect())
            jobs.expect_end()
            server.wait_exit(0)


@scenario("Start, stop, signals", "at the end what is queued is flushed, also to a client that "
          "reads it only then")
def flushed_at_the_end():
    with Server(server=PATIENT) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(1, "events")
        for _ in range(8):
            publisher.publish(1, "events", bytes(1 << 20))
        drain(server)
        server.signal(signal.SIGTERM)
        publisher.expect(disconnect())
        publisher.expect_end()
        for sequence in range(1, 9):
            client.expect(deliver(1, sequence, bytes(1 << 20)))
        client.expect(disconnect())
        client.expect_end()
        server.wait_exit(0)


@scenario("Start, stop, signals", "a client that takes nothing of what is queued for it holds the "
          "end up for close_timeout, not longer")
def close_timeout_at_the_end():
    with Server(server={"close_timeout": "200ms", **PATIENT}) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(1, "events")
        for _ in range(16):
            publisher.publish(1, "events", bytes(1 << 20))
        drain(server)
        server.signal(signal.SIGTERM)
        publisher.expect(disconnect())
        publisher.expect_end()
        assert server.closed(client) == "close_timeout"
        server.wait_exit(0)


@scenario("Start, stop, signals", "at the end an open partial frame or unread input is no "
          "obstacle, and a client that sends on and on is none either")
def busy_at_the_end():
    with Server(server={"drain_timeout": "100ms", "drain_idle": "1h"}) as server:
        partial, busy = server.client(), server.client()
        partial.send(publish(1, "events", b"never whole")[:20])
        drain(server)
        try:
            while True:
                busy.send(ping() * 100)
                if select.select([busy.socket], [], [], 0)[0]:
                    busy._more()
        except (ConnectionResetError, BrokenPipeError):
            pass
        partial.expect(disconnect())
        partial.expect_end()
        server.wait_exit(0)


# What is closed meanwhile

@scenario("Start, stop, signals", "a connection from which nothing has come for drain_idle is "
          "closed, one that goes on talking is not", client=True)
def idle_connections():
    with Server(server=TALKING) as server:
        subscriber, silent, busy = server.client(), server.client(), server.client()
        subscriber.subscribe(1, "events")
        never = accepted(server)
        drain(server)
        subscriber.expect(disconnect())
        ping_until_readable(busy, subscriber)
        subscriber.expect_end()
        others_closed(busy, silent, never)
        for client in (subscriber, silent, never):
            assert server.closed(client) == "drain"
        busy.expect_nothing()
        # Now it is silent, too.
        busy.expect(disconnect())
        busy.expect_end()
        server.wait_exit(0)


@scenario("Start, stop, signals", "drain_idle counts from the start of the drain at the earliest")
def idle_from_the_start_of_the_drain():
    with Server(server={"drain_timeout": "1m", "drain_idle": "500ms"},
                conversations={"reply_timeout": "250ms"}) as server:
        silent, clock = server.client(), opened(server, 1, 2)
        jobs = worker(server)
        # Silent for longer than drain_idle before the drain.
        for number in range(3):
            clock.send(request(3, 1, b"x"))
            clock.expect(conversation_error(3, 1, SERVER_ERROR, starts("reply-timeout: ")))
        drain(server)
        # A quarter of a second later it is there all the same.
        clock.send(request(3, 1, b"x"))
        clock.expect(conversation_error(3, 1, SERVER_ERROR, starts("reply-timeout: ")))
        assert not select.select([silent.socket], [], [], 0)[0], "closed too early"
        silent.expect(disconnect())
        silent.expect_end()
        jobs.close()
        clock.close()
        server.wait_exit(0)


@scenario("Start, stop, signals", "after a second signal nobody holds the end up for longer than "
          "close_timeout, not by reading a little now and then either")
def trickle_at_the_end():
    with Server(server=dict(PATIENT, close_timeout="300ms")) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(1, "events")
        for _ in range(24):
            publisher.publish(1, "events", bytes(1 << 20))
        drain(server)
        server.signal(signal.SIGTERM)
        received = 0
        while server.process.poll() is None:
            client.socket.settimeout(0.05)
            try:
                received += len(client.socket.recv(1024))
            except OSError:
                pass
            assert received < 1 << 20, "it goes on for as long as the client reads"
            time.sleep(0.01)
        server.wait_exit(0)
        server.forget(client)
        server.forget(publisher)


@scenario("Start, stop, signals", "drain_idle = 0: whoever neither owes nor is owed is closed at "
          "once")
def no_idle_time():
    with Server(server={"drain_timeout": "1s", "drain_idle": "0"}) as server:
        clients = [server.client() for _ in range(3)]
        drain(server)
        for client in clients:
            client.expect(disconnect())
            client.expect_end()
            # At the end of the drain it would be "shutdown".
            assert server.closed(client) == "drain"
        server.wait_exit(0)


@scenario("Start, stop, signals", "an idle connection that waits for a reply is not closed, nor "
          "is the worker that owes it")
def pending_requests():
    with Server(server=BRISK) as server:
        jobs, client, idle = worker(server), opened(server, 1), server.client()
        late = ask(client, jobs, 1, b"pending")
        drain(server)
        idle.expect(disconnect())
        idle.expect_end()
        jobs.send(push_reply(1, late, b"done"))
        client.expect(reply(3, 1, b"done"))
        for one in (client, jobs):
            one.expect(disconnect())
            one.expect_end()
            assert server.closed(one) == "drain"
        server.wait_exit(0)


@scenario("Start, stop, signals", "an idle connection that owes the answer to a push is not "
          "closed, worker or not")
def pending_pushes():
    with Server(control=True, http=True, server=BRISK) as server:
        client, idle, control = server.client(), server.client(), server.control()
        control.send(conversation_open(3, 1, "$control/connections"), request(3, 1, b""))
        found = json.loads(payload_of(control.receive()))["connections"]
        number = [one["id"] for one in found if one["peer"] == client.name][0]
        # It wants no reply, and so is owed none.
        control.send(conversation_open(3, 2, "$connection/%d" % number),
                     conversation_message(3, 2, b"one way"), disconnect())
        control.expect_end()
        correlation = pushed(client, b"one way")
        drain(server)
        idle.expect(disconnect())
        idle.expect_end()
        client.send(push_reply(1, correlation, b"done"))
        # And so the push is not lost.
        eventually("the push is answered", lambda: server.metric(
            'liminal_push_outcomes_total{outcome="replied"}') == 1)
        client.expect(disconnect())
        client.expect_end()
        server.wait_exit(0)


@scenario("Start, stop, signals", "an idle connection with queued bytes that it does not read is "
          "not closed, until it has read them")
def queued_bytes():
    with Server(server={"close_timeout": "100ms", **BRISK},
                conversations={"no_worker": "wait", "reply_timeout": "500ms"}) as server:
        slow, publisher = server.client(receive_buffer=4096), opened(server, 1)
        slow.subscribe(1, "events")
        for _ in range(7):
            publisher.publish(1, "events", bytes(1 << 20))
        drain(server)
        # Were it closed like one that is idle, it would have been given up by the end of this.
        publisher.send(request(3, 1, b"clock"))
        publisher.expect(conversation_error(3, 1, SERVER_ERROR, starts("reply-timeout: ")))
        assert not any("connection closed" in line and slow.name in line for line in server.lines)
        for sequence in range(1, 8):
            slow.expect(deliver(1, sequence, bytes(1 << 20)))
        slow.expect(disconnect())
        slow.expect_end()
        assert server.closed(slow) == "drain"
        server.wait_exit(0)


@scenario("Start, stop, signals", "an idle worker is closed only when no other connection has an "
          "open conversation", client=True)
def workers_last():
    with Server(server=TALKING) as server:
        jobs, client, idle = worker(server), opened(server, 1), server.client()
        # A conversation of its own holds nobody up.
        jobs.send(conversation_open(3, 1, "nobody"))
        jobs.expect_nothing()
        drain(server)
        # The idle one came to rest after the worker, and goes before it.
        idle.expect_nothing()
        others_closed(client, idle)
        assert not select.select([jobs.socket], [], [], 0)[0], "the worker is told to go"
        jobs.send(push_reply(1, ask(client, jobs, 1, b"new work"), b"done"))
        client.expect(reply(3, 1, b"done"))
        client.send(conversation_close(3, 1))
        ping_until_readable(client, jobs)
        jobs.expect(disconnect())
        jobs.expect_end()
        client.expect_nothing()
        client.close()
        server.wait_exit(0)


@scenario("Start, stop, signals", "... or a pending request: two workers that ask each other, "
          "half-closed requesters")
def workers_and_pending_requests():
    with Server(server=BRISK) as server:
        jobs, client = worker(server), opened(server, 1)
        # A half-closed requester can say nothing more, and has its conversation until the reply.
        correlation = ask(client, jobs, 1, b"pending")
        client.half_close()
        other, idle = worker(server, "other"), server.client()
        drain(server)
        idle.expect(disconnect())
        idle.expect_end()
        for one in (other, jobs):
            assert not select.select([one.socket], [], [], 0)[0], "a worker is told to go"
        jobs.send(push_reply(1, correlation, b"done"))
        client.expect(reply(3, 1, b"done"))
        # It goes by itself, or is idle a moment before.
        assert [one.raw for one in client.receive_all()] in ([], [disconnect()])
        for one in (other, jobs):
            one.expect(disconnect())
            one.expect_end()
        server.wait_exit(0)


@scenario("Start, stop, signals", "a worker that is still working on a push is waited for")
def working_workers():
    with Server(server=BRISK, conversations={"reply_timeout": "1s"}) as server:
        jobs, client, idle = worker(server), opened(server, 1), server.client()
        correlation = ask(client, jobs, 1, b"long")
        jobs.send(push_reply(1, correlation, b"", WORKING))
        drain(server)
        keep_working_until_readable(jobs, correlation, idle)
        idle.expect(disconnect())
        idle.expect_end()
        jobs.send(push_reply(1, correlation, b"done"))
        client.expect(reply(3, 1, b"done"))
        for one in (client, jobs):
            one.expect(disconnect())
            one.expect_end()
        server.wait_exit(0)


@scenario("Start, stop, signals", "a drain counts nobody as connected who could not connect: "
          "half-open handshakes and silent HTTP clients hold nothing up")
def nobody_holds_it_up():
    with Server(http=True, server={"drain_timeout": "1m", "drain_idle": "100ms"}) as server:
        handshake = accepted(server)
        handshake.send(connect("1.0")[:7])
        with socket.create_connection(server.http_address) as silent:
            silent.sendall(b"GET /he")
            server.signal(signal.SIGTERM)
            handshake.expect(disconnect())
            handshake.expect_end()
            server.wait_exit(0)
