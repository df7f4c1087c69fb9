"""A connection and its durable channels: the order of answers that wait for the disk, and how a
connection ends that is owed some; the pace of deliveries; confirmations.
"""

import signal

from frames import *
from harness import Server, scenario

DURABLE = 0x00010000
CHANNELS = {"events": {}, "orders": {"durable": "yes"}}
NEW, ALL = 0, 1


def durable_server(**sections):
    server = dict(sections.pop("server", {}), state_dir="DIR/state")
    return Server(channels=CHANNELS, server=server, **sections)


def connected(server, selected="1.0", **how):
    client = server.raw(**how)
    client.send(connect(selected))
    client.expect(connect_ack(selected, DURABLE))
    return client


def durable_subscribe(stream, channel, consumer="", start=NEW, value=0, **how):
    return subscribe(stream, channel, flags=0x80, tail=s(consumer) + u8(start) + u64(value), **how)


def subscribed(client, stream, *fields, **how):
    client.send(durable_subscribe(stream, "orders", *fields, **how))
    got = client.receive()
    assert got.raw == subscribe_ack(stream, got.u64()), "not a SubscribeAck: %s" % got


def published(client, payload):
    client.send(publish(1, "orders", payload))
    got = client.receive()
    assert got.type == 0x0A, "not a PublishAck: %s" % got


def types(found):
    return [NAMES[one.type] for one in found]


@scenario("Durable channels", "with `state_dir` set ConnectAck has capability bit 16")
def capability():
    with durable_server() as server:
        connected(server, "1.2").expect_nothing()
    with Server() as server:
        client = server.client("1.2")
        client.send(durable_subscribe(2, "events"))
        client.expect(subscribe_error(2, SERVER_ERROR, starts("not durable: ")))


@scenario("Durable channels",
          "from version 1.1 on the position stands in the PublishAck, and a duplicate's is the first one's")
def position():
    with durable_server() as server:
        old, new = connected(server, "1.0"), connected(server, "1.1")
        old.send(publish(1, "orders", b"x", key="k"))
        old.expect(publish_ack(1, 1))
        new.send(publish(1, "orders", b"y"))
        new.expect(frame(0x0A, 0x02, 1, u64(2) + u64(2)))
        new.send(publish(1, "orders", b"x", key="k"))
        new.expect(frame(0x0A, 0x82, 1, u64(1) + u64(1)))
        new.send(publish(1, "events", b"z"))
        new.expect(publish_ack(1, 3))


@scenario("Connections", "answers leave in the order of their requests, also behind a commit",
          client=True)
def order_of_answers():
    with durable_server() as server:
        client = connected(server)
        for _ in range(20):
            client.send(publish(1, "orders", b"1"), ping(), publish(2, "nowhere", b"2"),
                        publish(3, "events", b"3"), subscribe(4, "nowhere"),
                        durable_subscribe(5, "events"), publish(6, "orders", b"6"),
                        worker_register("q"), connect("1.0"), ping())
        for _ in range(20):
            got = [client.receive() for _ in range(10)]
            assert [(NAMES[one.type], one.stream) for one in got] == [
                ("PublishAck", 1), ("Pong", 0), ("PublishError", 2), ("PublishAck", 3),
                ("SubscribeError", 4), ("SubscribeError", 5), ("PublishAck", 6),
                ("WorkerRegisterAck", 0), ("ConnectAck", 0), ("Pong", 0)], types(got)


@scenario("Connections",
          "messages of one connection keep their order, from a durable channel to a plain one and back")
def order_of_messages():
    with durable_server() as server:
        reader, writer = connected(server), connected(server)
        reader.subscribe(1, "orders")
        reader.subscribe(2, "events")
        writer.send(*[publish(1, ("orders", "events")[n % 2], b"%d" % n) for n in range(200)])
        got = [payload_of(reader.receive()) for _ in range(200)]
        assert got == [b"%d" % n for n in range(200)], got


@scenario("Connections", "a half-close waits for commits, and for the message's own delivery",
          client=True)
def half_close():
    with durable_server() as server:
        client = connected(server)
        client.subscribe(2, "orders")
        client.send(publish(1, "orders", b"mine"))
        client.half_close()
        client.expect(publish_ack(1, 1, flags=0x01), deliver(2, 1, b"mine"))
        client.expect_end()
        assert server.closed(client) == "half_close"


@scenario("Connections", "a Disconnect waits for commits; frames behind it are dropped")
def disconnect_waits():
    with durable_server() as server:
        client = connected(server)
        client.send(*[publish(1, "orders", b"x")] * 300, disconnect(), ping())
        client.expect(*[publish_ack(1, n + 1) for n in range(300)])
        client.expect_end()


@scenario("Bad input", "the error frame comes behind commits and confirmations")
def error_frame_last():
    with durable_server() as server:
        client = connected(server)
        subscribed(client, 2, "w")
        client.send(publish(1, "orders", b"x"))
        client.expect(publish_ack(1, 1, flags=0x01), deliver(2, 1, b"x"))
        client.send(publish(1, "orders", b"y"), accept(2, "1", flags=0x80), frame(0x09, 0, 0))
        got = client.receive_all()
        assert got[-1].payload[:2] == u16(INVALID_STREAM), "; ".join(map(str, got))
        assert accept(2, "1", flags=0x80) in [one.raw for one in got], types(got)
        assert "PublishAck" in types(got), types(got)


@scenario("Connections", "what a connection has published is stored although it was reset",
          client=True)
def reset():
    with durable_server() as server:
        reader, writer = connected(server), connected(server)
        subscribed(reader, 1, "", ALL)
        writer.send(*[publish(1, "orders", b"%d" % n) for n in range(50)])
        writer.arrived()
        writer.reset()
        for n in range(50):
            reader.expect(deliver(1, n + 1, b"%d" % n))


@scenario("Durable subscriptions",
          "a reader gets everything at its own pace, in order, and is never shed")
def slow_reader():
    count, size = 3000, 2000
    with durable_server(limits={"max_outbox_bytes": "64K", "max_frame_size": "16K"}) as server:
        writer = connected(server)
        for first in range(0, count, 100):
            writer.send(*[publish(1, "orders", b"%d " % n + bytes(size))
                          for n in range(first, first + 100)])
            writer.expect(*[publish_ack(1, n + 1) for n in range(first, first + 100)])
        reader = connected(server, receive_buffer=4096)
        subscribed(reader, 2, "", ALL)
        reader.send(ping())
        found = reader.receive_until(pong())
        found += [reader.receive() for _ in range(count - len(found))]
        for n, got in enumerate(found):
            assert got.raw == deliver(2, n + 1, b"%d " % n + bytes(size)), str(got)
        reader.expect_nothing()


@scenario("Durable subscriptions", "at version 1.2 a Deliver names boot and message id")
def origin():
    with durable_server() as server:
        client = connected(server, "1.2")
        subscribed(client, 2, "", ALL)
        client.send(publish(1, "orders", b"x"))
        client.receive()
        got = client.receive()
        boot = struct.unpack(">Q", got.payload[-16:-8])[0]
        assert got.raw == deliver(2, 1, b"x", boot, 1), str(got)


@scenario("Durable subscriptions",
          "a stream carries one durable subscription and nothing else",
          "a start above 3, a name of other characters and a plain channel are refused")
def refused_subscribes():
    with durable_server() as server:
        client = connected(server)
        subscribed(client, 2, "w")
        client.subscribe(3, "orders")
        for asked in (durable_subscribe(2, "orders"), subscribe(2, "events"),
                      durable_subscribe(3, "orders"), durable_subscribe(4, "orders", start=4),
                      durable_subscribe(4, "orders", "a b"), durable_subscribe(4, "events"),
                      durable_subscribe(4, "orders", "n" * 256)):
            client.send(asked)
            got = client.receive()
            assert NAMES[got.type] == "SubscribeError", str(got)
        subscribed(client, 4, "n" * 255)


@scenario("Answers of a consumer",
          "a confirmation is the frame itself without its reason; what cannot be done comes back as a Reject")
def confirmations():
    with durable_server() as server:
        client = connected(server)
        subscribed(client, 2, "w")
        for n in range(1, 5):
            client.send(publish(1, "orders", b"x"))
            client.expect(publish_ack(1, n, flags=0x01), deliver(2, n, b"x"))
        client.send(defer(2, "1", "busy", flags=0xc0), accept(2, "..2", flags=0x80),
                    reject(2, "3", "bad", flags=0x80), accept(2, "3", flags=0x80),
                    accept(2, "x" * 3000, flags=0x80), accept(9, "4", flags=0x80),
                    accept(2, "4"), ping())
        got = client.receive_until(pong())
        while len(got) < 6:
            got.append(client.receive())
        mine = [one for one in got if one.stream == 2]
        assert [one.raw for one in mine[:3]] == [
            defer(2, "1", flags=0xc0), accept(2, "..2", flags=0x80), reject(2, "3", flags=0x80)]
        for one, stream, name in ((mine[3], 2, "3"), (mine[4], 2, "x" * 3000),
                                  ([one for one in got if one.stream == 9][0], 9, "4")):
            text = one.payload[4 + len(name) + 5:].decode()
            assert text.startswith("stale: "), text
            assert one.raw == reject(stream, name, text, flags=0x80)


@scenario("Answers of a consumer", "without `state_dir` they are ignored, also when they ask")
def ignored_without_store():
    with Server() as server:
        client = server.client()
        client.send(accept(2, "1", flags=0x80), reject(2, "1", flags=0x80))
        client.expect_nothing()


@scenario("Start, stop, signals", "a connection with an unanswered delivery is not idle")
def drain_waits_for_answers():
    with durable_server(server={"drain_timeout": "1m", "drain_idle": "100ms"}) as server:
        client, other = connected(server), connected(server)
        subscribed(client, 2, "w")
        published(other, b"x")
        client.expect(deliver(2, 1, b"x"))
        server.signal(signal.SIGTERM)
        client.expect(disconnect())
        other.expect(disconnect())  # it is idle
        other.expect_end()
        client.expect_nothing()
        client.send(accept(2, "1"))
        client.expect_end()
        server.wait_exit()
