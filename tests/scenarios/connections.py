"""Connections: admission, the order of answers, timeouts, and how each kind of end goes.

Where a conversation has to be pending, a worker of the queue "jobs" that answers when the scenario
wants it to stands at the other end.
"""

import os
import socket
import struct
import time

from frames import *
from harness import Server, Skip, eventually, scenario


def worker(server, queue="jobs"):
    client = server.client()
    client.send(worker_register(queue))
    client.expect(worker_register_ack())
    return client


def request_pending(client, jobs, conversation=1, payload=b"job"):
    """Opens a conversation on stream 3 with a request that the worker JOBS holds; the push's id."""
    client.send(conversation_open(3, conversation, "jobs"), request(3, conversation, payload))
    pushed = jobs.receive()
    assert pushed.raw == push(pushed.u64(), payload)
    return pushed.u64()


def data_segments_received(client):
    """How many segments with data have come, from the kernel (Linux)."""
    if not hasattr(socket, "TCP_INFO"):
        raise Skip("no TCP_INFO here")
    info = client.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < 156:
        raise Skip("this TCP_INFO does not count segments")
    return struct.unpack_from("=I", info, 152)[0]


# Admission

@scenario("Connections", "over max_connections: ConnectError 0xFFFF \"the server is at its limit "
          "of N connections\", then the end, also for a client that has sent something already")
def limit_of_connections():
    with Server(limits={"max_connections": 2}) as server:
        one, two = server.client(), server.client()
        refused = connect_error(SERVER_ERROR, "the server is at its limit of 2 connections")
        quiet, eager = server.raw(), server.raw()
        eager.send(connect("1.0"), ping(), publish(1, "events", b"x" * 1000))
        for client in (quiet, eager):
            client.expect(refused)
            client.expect_end()
        for client in (one, two):
            client.expect_nothing()
        one.close()
        server.closed(one)

        def admitted():
            client = server.raw()
            client.send(connect("1.0"))
            return client.receive().raw == connect_ack("1.0")

        eventually("the slot is free again", admitted)


@scenario("Connections", "the acceptor never waits for a slot: refused clients that do not close "
          "stand in nobody's way, however many")
def many_refused():
    with Server(limits={"max_connections": 1}) as server:
        one = server.client()
        refused = connect_error(SERVER_ERROR, "the server is at its limit of 1 connections")
        crowd = [server.raw() for _ in range(150)]
        for client in crowd:
            client.expect(refused)
            client.expect_end(stay=True)
        one.expect_nothing()


@scenario("Connections", "the control socket has 4 slots of its own, which count nowhere else")
def limit_of_control_connections():
    with Server(control=True, limits={"max_connections": 1}) as server:
        controls = [server.control() for _ in range(4)]
        client = server.client()
        over = server.raw(path=server.control_path)
        over.expect(connect_error(SERVER_ERROR,
                                  "the server is at its limit of 4 control connections"))
        over.expect_end()
        over = server.raw()
        over.expect(connect_error(SERVER_ERROR, "the server is at its limit of 1 connections"))
        over.expect_end()
        for one in controls + [client]:
            one.expect_nothing()


# Order and writes

@scenario("Connections", "responses to Connect, Ping, Publish, Subscribe and WorkerRegister leave "
          "in the order of their requests", client=True)
def order_of_answers():
    with Server() as server:
        client = server.raw()
        client.send(ping(), connect("1.0"), publish(1, "events", b"1"), ping(),
                    subscribe(2, "other"), worker_register("q"), publish(5, "other", b"2"),
                    subscribe(3, "events"), connect("1.3"), ping(), connect("1.0", "1.2"),
                    worker_register("r"), ping())
        client.expect(pong(), connect_ack("1.0"), publish_ack(1, 1), pong(),
                      subscribe_error(2, SERVER_ERROR, "channel 'other' is not configured"),
                      worker_register_ack(),
                      publish_error(5, SERVER_ERROR, "channel 'other' is not configured"),
                      subscribe_ack(3, 1),
                      connect_error(VERSION_MISMATCH, "no mutually supported protocol version"),
                      pong(), connect_ack("1.2"), worker_register_ack(), pong())
        client.expect_nothing()


@scenario("Connections", "answers of conversations have an order of their own and wait for none of "
          "these, nor these for them", client=True)
def conversations_do_not_hold_up_answers():
    with Server() as server:
        jobs, client = worker(server), server.client()
        client.send(conversation_open(3, 1, "jobs"), request(3, 1, b"job"), ping(),
                    publish(1, "events", b"x"), subscribe(2, "events"))
        client.expect(pong(), publish_ack(1, 1), subscribe_ack(2, 1))
        jobs.expect(push(1, b"job"))
        jobs.send(push_reply(1, 1, b"done"))
        client.expect(reply(3, 1, b"done"))


@scenario("Connections", "replies to all frames of one read leave in one write where they fit")
def one_write_for_one_read():
    with Server() as server:
        client = server.client()
        before = data_segments_received(client)
        client.send(ping() * 20, publish(1, "events", b"x"))
        client.expect(pong() * 20, publish_ack(1, 1))
        came = data_segments_received(client) - before
        assert came == 1, "the answers came in %d segments" % came


@scenario("Connections", "TCP keepalive is on, 60 s idle")
def keepalive():
    if not os.path.exists("/proc/net/tcp"):
        raise Skip("no /proc/net/tcp here")
    with Server() as server:
        client = server.client()
        client.expect_nothing()
        ports = (server.addresses[0][1], client.socket.getsockname()[1])

        def timer():
            for line in open("/proc/net/tcp", encoding="ascii").readlines()[1:]:
                row = line.split()
                if tuple(int(end.split(":")[1], 16) for end in row[1:3]) == ports:
                    kind, _, ticks = row[5].partition(":")
                    # For a moment it may be the timer of a delayed acknowledgement.
                    if kind == "02" and int(ticks, 16) > 100:
                        return int(ticks, 16) / os.sysconf("SC_CLK_TCK")
            return None

        left = eventually("the timer runs", timer)
        assert 30 < left <= 60, "the keepalive timer has %g s" % left


# Timeouts

@scenario("Connections", "handshake_timeout without a first complete frame: closed, silently",
          "after a first frame of any type there is no idle limit")
def handshake_timeout():
    with Server(limits={"handshake_timeout": "200ms"}) as server:
        lively = server.raw()
        lively.send(frame(0x7F, 0, 9, b"a type that nobody knows"))
        silent, slow = server.raw(), server.raw()
        slow.send(connect("1.0")[:-1])
        for client in (silent, slow):
            client.expect_end()
            assert server.closed(client) == "handshake_timeout"
        # These came later and are over; the first would be too.
        lively.expect_nothing()


@scenario("Connections", "where a token is configured, handshake_timeout ends what has not "
          "connected successfully, whatever else it sent")
def handshake_timeout_with_token():
    with Server(auth={"token": "secret"}, limits={"handshake_timeout": "200ms"}) as server:
        connected = server.client(token=b"secret")
        pinging, old = server.raw(), server.raw()
        pinging.send(ping())
        pinging.expect(pong())
        old.send(connect("0.9", token=b"secret"))
        old.expect(connect_error(VERSION_MISMATCH, "no mutually supported protocol version"))
        for client in (pinging, old):
            client.expect_end()
            assert server.closed(client) == "handshake_timeout"
        connected.expect_nothing()


@scenario("Connections", "idle_timeout ends a connection from which nothing comes, subscribers and "
          "workers too", "closed by the server: conversation requests pending are forgotten, a "
          "Disconnect is the last frame")
def idle_timeout():
    with Server(limits={"idle_timeout": "1s"}, conversations={"no_worker": "wait"}) as server:
        jobs, client, subscriber = worker(server), server.client(), server.client()
        subscriber.subscribe(1, "events")
        client.send(conversation_open(3, 1, "nobody"), request(3, 1, b"in vain"))
        for one in (subscriber, client, jobs):
            one.expect(disconnect())
            one.expect_end()
            assert server.closed(one) == "idle_timeout"


# How it ends

@scenario("Connections", "half-close by the peer: answers due are waited for and flushed, then the "
          "connection is closed at once", client=True)
def half_close():
    with Server() as server:
        client = server.client()
        client.send(ping(), publish(1, "events", b"x"), subscribe(2, "events"))
        client.half_close()
        client.expect(pong(), publish_ack(1, 1), subscribe_ack(2, 1))
        client.expect_end()
        assert server.closed(client) == "half_close"


@scenario("Connections", "half-close by the peer: pending conversation requests are waited for, "
          "until the reply", client=True)
def half_close_waits_for_replies():
    with Server() as server:
        jobs, client = worker(server), server.client()
        correlation = request_pending(client, jobs)
        client.send(ping())
        client.half_close()
        client.expect(pong())
        jobs.send(push_reply(1, correlation, b"done"))
        client.expect(reply(3, 1, b"done"))
        client.expect_end()


@scenario("Connections", "half-close by the peer: pending conversation requests are waited for, "
          "at most until the timeout", client=True)
def half_close_waits_for_timeouts():
    with Server(conversations={"reply_timeout": "100ms"}) as server:
        jobs, client = worker(server), server.client()
        client.send(conversation_open(3, 1, "jobs"), request(3, 1, b"job"))
        client.half_close()
        client.expect(conversation_error(3, 1, SERVER_ERROR, starts("reply-timeout: ")))
        client.expect_end()
        jobs.expect(push(1, b"job"))
        jobs.expect_nothing()


@scenario("Connections", "a half-close ends subscriptions once the last answer is in the outbox, "
          "followed by the Deliver of that same message to itself", client=True)
def half_close_with_own_delivery():
    with Server() as server:
        client = server.client()
        client.subscribe(2, "events")
        client.send(publish(1, "events", b"x"))
        client.half_close()
        client.expect(publish_ack(1, 1, DELIVERED), deliver(2, 1, b"x"))
        client.expect_end()


@scenario("Connections", "from a half-close on, subscriptions of the connection take no new "
          "message, while its conversations are still waited for")
def half_close_ends_subscriptions():
    with Server() as server:
        jobs, client, publisher = worker(server), server.client(), server.client()
        client.subscribe(2, "events")
        correlation = request_pending(client, jobs)
        client.half_close()
        taken = []

        def refused():
            message = publisher.publish(1, "events", b"x")
            if publisher.flags & DELIVERED:
                taken.append(message)
            return publisher.flags == 0

        eventually("the subscription is over", refused)
        jobs.send(push_reply(1, correlation, b"done"))
        for sequence in range(1, len(taken) + 1):
            client.expect(deliver(2, sequence, b"x"))
        client.expect(reply(3, 1, b"done"))
        client.expect_end()


@scenario("Connections", "a half-closed worker can answer nothing more: its pushes are lost at "
          "that moment")
def half_closed_worker():
    with Server() as server:
        jobs, client = worker(server), server.client()
        request_pending(client, jobs)
        jobs.half_close()
        client.expect(conversation_error(3, 1, SERVER_ERROR, starts("worker-lost: ")))
        jobs.expect_end()


@scenario("Connections", "[Ping, Disconnect] in one segment yields Pong, then end of stream",
          client=True)
def ping_disconnect():
    with Server() as server:
        client = server.client()
        client.send(ping(), disconnect())
        client.expect(pong())
        client.expect_end()
        assert server.closed(client) == "disconnect"


@scenario("Connections", "Disconnect: answers due are waited for, pending conversation requests "
          "are forgotten, frames behind it are dropped")
def disconnect_forgets():
    with Server() as server:
        jobs, client, other = worker(server), server.client(), server.client()
        other.subscribe(1, "events")
        correlation = request_pending(client, jobs)
        client.send(publish(1, "events", b"before"), ping(), disconnect(),
                    publish(1, "events", b"behind"), ping())
        client.expect(publish_ack(1, 1, DELIVERED), pong())
        client.expect_end()
        server.closed(client)
        # The late reply is nobody's, and the message behind had no effect, not even an id.
        jobs.send(push_reply(1, correlation, b"late"))
        jobs.expect_nothing()
        other.expect(deliver(1, 1, b"before"))
        other.send(publish(1, "events", b"next"))
        other.expect(publish_ack(1, 2, DELIVERED), deliver(1, 2, b"next"))


@scenario("Connections", "Disconnect: pending requests to oneself are forgotten like all others")
def disconnect_forgets_requests_to_oneself():
    with Server(limits={"max_pending_pushes_per_connection": 1},
                conversations={"worker_settle": "0"}) as server:
        client = server.client()
        client.send(worker_register("jobs"), conversation_open(1, 1, "jobs"))
        client.expect(worker_register_ack())
        client.send(request(1, 1, b"x"), request(3, 1, b"y"))
        client.expect(push(1, b"x"))
        client.send(disconnect())
        client.expect_end()


@scenario("Connections", "error frame, then close: answers due are waited for, pending "
          "conversation requests are forgotten")
def error_forgets():
    with Server() as server:
        jobs, client = worker(server), server.client()
        request_pending(client, jobs)
        client.send(publish(1, "events", b"x"), frame(0x13, 0, 0, b"a Ping has no payload"))
        client.expect(publish_ack(1, 1), connect_error(CODEC_ERROR, re.compile(".")))
        client.expect_end()
        assert server.closed(client) == "malformed"
        jobs.expect_nothing()


@scenario("Connections", "a partial frame at the end is dropped")
def partial_frame_at_the_end():
    with Server() as server:
        for cut in (1, 9, 10, 20):
            client = server.client()
            client.send(ping(), publish(1, "events", b"never whole")[:cut])
            client.half_close()
            client.expect(pong())
            client.expect_end()
            assert server.closed(client) == "half_close"
        assert server.client().publish(1, "events", b"x") == 1


@scenario("Connections", "reset: input received before it is handled all the same", client=True)
def reset_after_publishes():
    with Server() as server:
        subscriber = server.client()
        subscriber.subscribe(1, "events")
        for batch in range(20):
            client = server.client()
            client.send(*[publish(1, "events", b"%d" % number) for number in range(50)])
            client.arrived()
            client.reset()
            subscriber.expect(*[deliver(1, 50 * batch + number + 1, b"%d" % number)
                                for number in range(50)])
        # A connection that has sent all its input before the reset has nothing partial.
        assert server.closed(client) in ("reset", "write_failed")
        subscriber.expect_nothing()


@scenario("Connections", "reset: answers to pushes that were received before it are handled all "
          "the same; what was pushed besides is lost")
def reset_after_push_replies():
    with Server() as server:
        jobs, client = worker(server), server.client()
        request_pending(client, jobs)
        client.send(conversation_open(4, 2, "jobs"), request(4, 2, b"other job"), ping())
        client.expect(pong())
        jobs.send(push_reply(1, 1, b"done"))
        jobs.arrived()
        jobs.reset()
        got = [client.receive(), client.receive()]
        assert sorted(one.stream for one in got) == [3, 4]
        for one in got:
            if one.stream == 3:
                assert one.raw == reply(3, 1, b"done")
            else:
                lost = conversation_error(4, 2, SERVER_ERROR, starts("worker-lost: "))
                assert lost.matches(one), one


@scenario("Connections", "when a connection ends, its subscriptions end, its conversations end, "
          "pushes waiting on it fail at once, its registration is withdrawn")
def what_ends_with_a_connection():
    for end in ("close", "reset"):
        with Server(conversations={"no_worker": "error"}) as server:
            jobs, client = worker(server), server.client()
            jobs.subscribe(2, "events")
            request_pending(client, jobs)
            getattr(jobs, end)()
            client.expect(conversation_error(3, 1, SERVER_ERROR, starts("worker-lost: ")))
            server.closed(jobs)
            assert client.publish(1, "events", b"x") == 1 and client.flags == 0
            client.send(request(3, 1, b"again"))
            client.expect(conversation_error(3, 1, SERVER_ERROR, starts("no-worker: ")))


@scenario("Connections", "a close with unread input is drained, so that nothing that was flushed "
          "is destroyed by a reset")
def drained_before_the_close():
    with Server() as server:
        for last, answer in ((disconnect(), b""),
                             (frame(0x13, 0, 5), connect_error(INVALID_STREAM, re.compile(".")))):
            for behind in (100, 600000):
                client = server.client()
                client.send(ping(), last, bytes(behind))
                client.expect(pong(), *([answer] if answer else []))
                client.expect_end()


@scenario("Connections", "drained: at most 1 s or 1 MiB, then it is closed whatever comes")
def draining_is_bounded():
    with Server() as server:
        client = server.client()
        client.send(disconnect())
        client.expect_end(stay=True)
        try:
            for _ in range(1000):
                client.send(bytes(65536))
        except (BrokenPipeError, ConnectionResetError):
            return
        raise AssertionError("it takes input without end")


@scenario("Connections", "flushing gives up after close_timeout without progress")
def close_timeout():
    with Server(server={"close_timeout": "200ms"}) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(1, "events")
        # More than the sockets take, and less than the outbox.
        for _ in range(28):
            publisher.publish(1, "events", bytes(1 << 20))
            assert publisher.flags == DELIVERED
        client.send(disconnect())
        assert server.closed(client) == "close_timeout"
        publisher.expect_nothing()


@scenario("Connections", "a peer that reads slowly, but steadily, makes progress all the time: it gets "
          "everything")
def slow_progress():
    with Server(server={"close_timeout": "500ms"}) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(1, "events")
        for _ in range(16):
            publisher.publish(1, "events", bytes(1 << 20))
        client.send(disconnect())
        # For some close_timeouts less than would make the server's socket writable again.
        until = time.monotonic() + 1.7
        while time.monotonic() < until:
            client.buffer += client.socket.recv(4096)
            time.sleep(0.02)
        for sequence in range(1, 17):
            client.expect(deliver(1, sequence, bytes(1 << 20)))
        client.expect_end()
        assert server.closed(client) == "disconnect"


@scenario("Connections", "a peer that does not read is alive: what is queued for it is all there "
          "when it reads")
def peer_that_does_not_read():
    with Server(limits={"handshake_timeout": "100ms"}) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(1, "events")
        for _ in range(28):
            publisher.publish(1, "events", bytes(1 << 20))
        client.send(ping())
        for sequence in range(1, 29):
            client.expect(deliver(1, sequence, bytes(1 << 20)))
        client.expect(pong())
