"""Durable subscriptions: where they begin, readers, named consumers, shared work, credit."""

import threading
import time

from durable import *
from frames import *
from harness import eventually, scenario

SECTION = "Durable channels: subscriptions"
ANY = re.compile(".")


# What is refused

@scenario(SECTION, "refused: a start above 3, the three fields on a channel that is not durable")
def bad_subscribes():
    with Durable() as server:
        client = server.client()
        for start in (4, 255):
            client.send(subscribe(1, "d", **named("w", start)))
            client.expect(subscribe_error(1, SERVER_ERROR, ANY))
            client.send(subscribe(1, "d", **reader(start)))
            client.expect(subscribe_error(1, SERVER_ERROR, ANY))
        client.send(subscribe(1, "p", **named("w")), subscribe(2, "p", **reader()),
                    subscribe(3, "nowhere", **named("w")),
                    subscribe(4, "d", accepted=[ZERO_SCHEMA], **named("w")))
        client.expect(subscribe_error(1, SERVER_ERROR, starts("not durable: ")),
                      subscribe_error(2, SERVER_ERROR, starts("not durable: ")),
                      subscribe_error(3, SERVER_ERROR, "channel 'nowhere' is not configured"),
                      subscribe_error(4, SERVER_ERROR, starts("schema incompatible: ")))
        assert server.consumers() == {}
        # The stream is free, and the connection lives.
        client.subscribe(1, "d", accepted=[NO_SCHEMA], **named("w"))


@scenario(SECTION, "a consumer's name has 1 to 255 bytes of A-Z a-z 0-9 . _ -; others: "
          "SubscribeError")
def names():
    with Durable() as server:
        client = server.client()
        for name in (" ", "a b", "a/b", "a:b", "\u00e9", "a\0", "a\n", "x" * 256, "$", "*"):
            client.send(subscribe(1, "d", **named(name)))
            client.expect(subscribe_error(1, SERVER_ERROR, ANY))
        good = ["a", "A-Z_a.z-09", "x" * 255, ".", "-", "0"]
        for stream, name in enumerate(good, 1):
            client.subscribe(stream, "d", **named(name))
        assert set(server.consumers()) == set(good)


@scenario(SECTION, "flag 0x80 with none of the three fields is a plain subscription")
def flag_without_fields():
    with Durable() as server:
        publisher = server.filled("d", [b"1"])
        client = server.client()
        client.subscribe(1, "d", flags=0x80)
        client.subscribe(1, "d", flags=0x80)
        publisher.publish(1, "d", b"2")
        client.expect(deliver(1, 1, b"2"), deliver(1, 1, b"2"))


@scenario(SECTION, "refused: a durable Subscribe on a stream that carries a live subscription of "
          "the connection, and any Subscribe on a stream that carries a durable one")
def streams():
    with Durable(("d", "e")) as server:
        client, other = server.client(), server.client()
        plain = client.subscribe(1, "p")
        durable = client.subscribe(2, "d", **named("w", NEW))
        client.send(subscribe(1, "d", **named("w")), subscribe(1, "e", **reader()),
                    subscribe(2, "e", **named("v")), subscribe(2, "d", **reader()),
                    subscribe(2, "p"), subscribe(2, "d"))
        client.expect(*[subscribe_error(stream, SERVER_ERROR, ANY)
                        for stream in (1, 1, 2, 2, 2, 2)])
        # In one batch, before the first is answered.
        client.send(subscribe(3, "d", **named("v")), subscribe(3, "p"), subscribe(3, "d",
                                                                                 **named("v")))
        got = client.receive()
        assert got.type == 0x06 and got.stream == 3, got
        client.expect(subscribe_error(3, SERVER_ERROR, ANY), subscribe_error(3, SERVER_ERROR, ANY))
        # Another connection's streams are its own; and one that has been left is free.
        other.subscribe(2, "d", **named("w", NEW))
        client.send(unsubscribe(1, plain), unsubscribe(2, durable))
        client.subscribe(1, "d", **named("w", NEW))
        client.subscribe(2, "p")
        client.subscribe(2, "p")


@scenario(SECTION, "durable subscriptions count for max_subscriptions_per_connection")
def limit():
    with Durable(limits={"max_subscriptions_per_connection": 2}) as server:
        client = server.client()
        client.send(subscribe(1, "p"), subscribe(2, "d", **named("w")), subscribe(3, "d",
                                                                              **reader()))
        client.expect(subscribe_ack(1, 1), subscribe_ack(2, 2), subscribe_error(
            3, SERVER_ERROR, starts("over-capacity: max_subscriptions_per_connection")))
        client.send(unsubscribe(1, 1))
        client.subscribe(3, "d", **reader())


# Where they begin

def begins(server, start, value):
    """The sequence at which a new named consumer and a reader begin, the first of what is there or
    is published now."""
    found = []
    for name in ("", "c%d" % time.monotonic_ns()):
        client = server.client()
        client.subscribe(1, "d", **named(name, start, value))
        found.append(client)
    publisher = server.client("1.1")
    publisher.publish(1, "d", b"now")
    firsts = {client.receive().u64() for client in found}
    assert len(firsts) == 1, firsts
    return firsts.pop(), publisher.position


@scenario(SECTION, "start 0: the next message published; 1: the oldest message kept; 2: channel "
          "sequence N, or the oldest kept after it; value is not looked at with 0 and 1")
def starts_by_sequence():
    with Durable({"d": {"max_messages": 5}}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 9)])
        eventually("three are removed",
                   lambda: [sequence for sequence, _ in server.kept("d", 8)] == [4, 5, 6, 7, 8])
        client = server.client()
        for stream, (start, value, first) in enumerate((
                (ALL, 0, 4), (ALL, 7, 4), (SEQUENCE, 0, 4), (SEQUENCE, 1, 4), (SEQUENCE, 4, 4),
                (SEQUENCE, 6, 6), (SEQUENCE, 8, 8)), 1):
            for name in ("", "w%d" % stream):
                client = server.client()
                client.subscribe(1, "d", **named(name, start, value))
                delivered(client, *range(first, 9), again=False)
                client.close()


@scenario(SECTION, "start 0, and a start 2 beyond the end: nothing until then")
def starts_beyond_the_end():
    with Durable() as server:
        publisher = server.filled("d", [b"1", b"2"])
        new = [server.client(), server.client()]
        later = [server.client(), server.client()]
        never = [server.client(), server.client()]
        for n, name in enumerate(("", "w")):
            new[n].subscribe(1, "d", **named(name + "n" * n, NEW, 1))
            later[n].subscribe(1, "d", **named(name + "l" * n, SEQUENCE, 5))
            never[n].subscribe(1, "d", **named(name + "x" * n, SEQUENCE, (1 << 64) - 1))
        for n in range(3, 7):
            publisher.publish(1, "d", b"%d" % n)
        for client in new:
            assert delivered(client, 3, 4, 5, 6) == [b"3", b"4", b"5", b"6"]
        for client in later:
            assert delivered(client, 5, 6) == [b"5", b"6"]
        for client in new + later + never:
            client.expect_nothing()


@scenario(SECTION, "start 3: the first message committed at or after a time, in ms since 1970 "
          "UTC; a time beyond the end: nothing until then")
def starts_by_time():
    def clock():
        return int(time.time() * 1000)

    def tick():
        """A millisecond that lies between what was before and what comes."""
        before = clock()
        eventually("time goes on", lambda: clock() > before + 1)
        middle = clock()
        eventually("time goes on", lambda: clock() > middle + 1)
        return middle

    with Durable() as server:
        publisher = server.client()
        publisher.publish(1, "d", b"1")
        first = tick()
        publisher.publish(1, "d", b"2")
        publisher.publish(1, "d", b"3")
        second = tick()
        publisher.publish(1, "d", b"4")
        for kill in (None, True):
            if kill:
                server.restart(kill=True)
            for time_ms, sequence in ((0, 1), (first, 2), (second, 4)):
                for name in ("", "w%d%s" % (sequence, kill)):
                    client = server.client()
                    client.subscribe(1, "d", **named(name, TIME, time_ms))
                    delivered(client, *range(sequence, 5))
        far = server.client()
        far.subscribe(1, "d", **reader(TIME, clock() + 3600 * 1000))
        soon = server.client()
        soon.subscribe(1, "d", **reader(TIME, clock()))
        publisher = server.client()
        tick()
        publisher.publish(1, "d", b"5")
        delivered(soon, 5)
        far.expect_nothing()


# Readers

@scenario(SECTION, "a reader reads from its start on, then live, without gaps or repeats at the "
          "change-over, however many are published meanwhile")
def change_over():
    before, meanwhile = 3000, 3000
    with Durable() as server:
        publisher = server.filled("d", [b"%d" % n for n in range(1, before + 1)])
        done = threading.Event()

        def go_on():
            for first in range(before + 1, before + meanwhile + 1, 10):
                publisher.send(*[publish(1, "d", b"%d" % n) for n in range(first, first + 10)])
                for _ in range(10):
                    publisher.receive()
            done.set()
        thread = threading.Thread(target=go_on)
        thread.start()
        readers = []
        while not done.is_set() and len(readers) < 40:
            client = server.client()
            name = "" if len(readers) % 2 else "w%d" % len(readers)
            client.subscribe(1, "d", max_in_flight=65536, **named(name, ALL))
            readers.append(client)
        thread.join()
        assert readers
        for client in readers:
            for n in range(1, before + meanwhile + 1):
                got = client.receive()
                assert got.u64() == n and payload_of(got) == b"%d" % n, (n, got)


@scenario(SECTION, "max_in_flight has no meaning for a reader, and it is never shed: it reads at "
          "the pace at which the client takes it, and others do not feel it")
def paced():
    total = 300
    with Durable(limits={"max_outbox_bytes": "64K", "max_frame_size": "64K",
                         "max_outbox_frames": 100}) as server:
        slow = server.client(receive_buffer=4096)
        slow.subscribe(1, "d", max_in_flight=1, **reader(ALL))
        consumer = server.client(receive_buffer=4096)
        consumer.subscribe(1, "d", max_in_flight=1000, **named("w", ALL))
        other = server.client()
        other.subscribe(1, "d", **reader(ALL))
        payloads = [b"%d " % n + bytes(20000) for n in range(1, total + 1)]
        publisher = server.client()
        for n, payload in enumerate(payloads, 1):
            publisher.publish(1, "d", payload)
            assert delivered(other, n) == [payload]
        for client in (slow, consumer):
            assert delivered(client, *range(1, total + 1)) == payloads
        publisher.publish(1, "d", b"live")
        for client in (slow, consumer, other):
            assert delivered(client, total + 1) == [b"live"]


@scenario(SECTION, "a replay does not hold up the answers of its connection")
def replay_and_answers():
    total = 2000
    with Durable(limits={"max_outbox_bytes": "1M", "max_frame_size": "512K"}) as server:
        server.filled("d", [bytes(10000)] * total)
        client = server.client()
        client.subscribe(1, "d", **reader(ALL))
        # Nothing is read meanwhile, so that far less than all of it can be on its way.
        client.send(*[ping()] * 50, publish(2, "p", b""))
        got = client.receive_until(publish_ack(2, total + 1))
        assert sum(one.type == 0x14 for one in got) == 50
        replayed = sum(one.type == 0x19 for one in got)
        assert replayed < total, "the whole replay came first"
        delivered(client, *range(replayed + 1, total + 1))


@scenario(SECTION, "no Deliver of a durable subscription is queued after its Unsubscribe")
def unsubscribed():
    with Durable() as server:
        server.filled("d", [bytes(1000)] * 500)
        client = server.client()
        for name in ("", "w"):
            number = client.subscribe(1, "d", max_in_flight=1000, **named(name))
            client.receive()
            client.send(unsubscribe(1, number), ping())
            client.receive_until(pong())
            server.filled("d", [b"x"])
            client.expect_nothing()


# Deliveries

@scenario(SECTION, "at version 1.2 the Deliver of a durable subscription carries boot and the "
          "message id that the publisher's PublishAck carried")
def origin():
    with Durable() as server:
        publisher = server.client()
        publisher.publish(1, "p", b"")
        messages = [publisher.publish(1, "d", b"%d" % n) for n in range(3)]
        assert messages == [2, 3, 4]
        client, plain = server.client("1.2"), server.client("1.2")
        plain.subscribe(1, "p")
        publisher.publish(1, "p", b"")
        got = plain.receive()
        boot = got.u64(len(got.payload) - 16)
        client.subscribe(1, "d", **named("w"))
        client.expect(*[deliver(1, n + 1, b"%d" % n, boot=boot, message=n + 2) for n in range(3)])
        client.send(defer(1, "2"))
        server.client("1.2").close()
        client.close()
        client = server.client("1.2")
        client.subscribe(1, "d", **named("w"))
        found = [client.receive().raw for _ in range(3)]
        assert sorted(found) == sorted(deliver(1, n + 1, b"%d" % n, boot=boot, message=n + 2,
                                               again=True) for n in range(3)), found


@scenario(SECTION, "what retention removed leaves gaps in the sequences of deliveries")
def gaps():
    with Durable({"d": {"max_messages": 2, "when_full": "discard"}}) as server:
        client = server.client()
        client.subscribe(1, "d", **named("w", NEW))
        client.close()
        server.filled("d", [b"%d" % n for n in range(1, 7)])
        client = server.client()
        client.subscribe(1, "d", **named("w", NEW))
        assert delivered(client, 5, 6, again=False) == [b"5", b"6"]


# Named consumers

@scenario(SECTION, "a named consumer exists, on stable storage, before its first SubscribeAck, "
          "until it is deleted")
def exists():
    with Durable() as server:
        server.filled("d", [b"1"])
        server.client().subscribe(1, "d", **named("w", NEW))
        server.restart(kill=True)
        found = server.consumers("d")["w"]
        assert found["subscriptions"] == 0 and found["lag"] == 0, found
        server.filled("d", [b"2"])
        assert server.consumers("d")["w"]["lag"] == 1
        client = server.client()
        # Where it exists, start and value are not looked at.
        client.subscribe(1, "d", **named("w", ALL))
        assert delivered(client, 2, again=False) == [b"2"]


@scenario(SECTION, "a named consumer resumes after what it has acknowledged, also after a "
          "restart or crash; what was delivered and not acknowledged comes again with flag 0x80")
def resumes():
    with Durable() as server:
        server.filled("d", [b"%d" % n for n in range(1, 8)])
        client = server.client()
        client.subscribe(1, "d", max_in_flight=4, **named("w"))
        delivered(client, 1, 2, 3, 4, again=False)
        client.send(accept(1, "1", CONFIRM), accept(1, "3", CONFIRM))
        got = [client.receive().raw for _ in range(4)]
        assert sorted(got) == sorted([accept(1, "1", CONFIRM), accept(1, "3", CONFIRM),
                                      deliver(1, 5, b"5"), deliver(1, 6, b"6")]), got
        client.close()

        def resume(*again, new=(), crash=False):
            client = server.client()
            client.subscribe(1, "d", max_in_flight=5, **named("w", SEQUENCE, 7))
            # After a crash the first repeat may have the flag clear.
            delivered(client, *again, again=None if crash else True)
            delivered(client, *new, again=False)
            return client

        eventually("it has lost its subscription",
                   lambda: server.consumers()["w"]["subscriptions"] == 0)
        client = resume(2, 4, 5, 6, new=[7])
        confirmed(client, accept(1, "..4", CONFIRM))
        server.restart()
        client = resume(5, 6, 7)
        confirmed(client, accept(1, "6", CONFIRM))
        server.restart(kill=True)
        client = resume(5, 7, crash=True)
        server.filled("d", [b"8"])
        delivered(client, 8, again=False)
        server.restart()
        resume(5, 7, 8)


@scenario(SECTION, "consumers of other names have positions of their own, and so has the name in "
          "another channel")
def independent():
    with Durable(("d", "e")) as server:
        server.filled("d", [b"1", b"2"])
        server.filled("e", [b"3"])
        client = server.client()
        for stream, (channel, name) in enumerate((("d", "v"), ("d", "w"), ("e", "w")), 1):
            client.subscribe(stream, channel, **named(name))
            delivered(client, *([1, 2] if channel == "d" else [1]))
        confirmed(client, accept(1, "..2", CONFIRM))
        assert {(one["channel"], one["consumer"]): one["lag"]
                for one in server.ask("consumers")["consumers"]} == \
            {("d", "v"): 0, ("d", "w"): 2, ("e", "w"): 1}


# Shared work

@scenario(SECTION, "several subscriptions of one consumer name share its work: each message goes "
          "to one of them, to the one with the most free credit, then in turn")
def shared_work():
    with Durable() as server:
        one, two = server.client(), server.client()
        one.subscribe(1, "d", max_in_flight=1, **named("w", NEW))
        two.subscribe(1, "d", max_in_flight=3, **named("w", NEW))
        publisher = server.client()
        for n in (1, 2):
            publisher.publish(1, "d", b"%d" % n)
            delivered(two, n)
        publisher.publish(1, "d", b"3")
        publisher.publish(1, "d", b"4")
        seen = {1: delivered(one, one_of(one))[0], 2: delivered(two, one_of(two))[0]}
        assert sorted(seen.values()) == [b"3", b"4"], seen
        # All credit is used; what comes goes to where it returns.
        publisher.publish(1, "d", b"5")
        one.send(accept(1, seen[1].decode()))
        delivered(one, 5)
        two.expect_nothing()


def one_of(client):
    """The sequence of the delivery that comes next; it stays to be read."""
    while len(client.buffer) < 18:
        assert client._more()
    return int.from_bytes(client.buffer[10:18], "big")


@scenario(SECTION, "subscriptions of equal credit get messages in turn, those of one connection "
          "too")
def in_turn():
    with Durable() as server:
        clients = [server.client(), server.client()]
        for client in clients:
            client.subscribe(1, "d", max_in_flight=2, **named("w", NEW))
        clients[1].subscribe(2, "d", max_in_flight=2, **named("w", NEW))
        publisher = server.filled("d", [b"%d" % n for n in range(1, 7)])
        got = [clients[0].receive() for _ in range(2)] + [clients[1].receive() for _ in range(4)]
        assert sorted(one.u64() for one in got) == [1, 2, 3, 4, 5, 6]
        assert sorted(one.stream for one in got[2:]) == [1, 1, 2, 2], got
        publisher.publish(1, "d", b"7")
        for client in clients:
            client.expect_nothing()


# Credit

@scenario(SECTION, "max_in_flight is real credit: at most that many unacknowledged deliveries "
          "per subscription; it returns when the answer arrives")
def credit():
    with Durable() as server:
        server.filled("d", [b"%d" % n for n in range(1, 10)])
        client = server.client()
        client.subscribe(1, "d", max_in_flight=2, **named("w"))
        delivered(client, 1, 2)
        client.expect_nothing()
        client.send(accept(1, "2"))
        delivered(client, 3)
        client.expect_nothing()
        client.send(accept(1, "..3"))
        delivered(client, 4, 5)
        client.send(reject(1, "4"), defer(1, "5"))
        delivered(client, 6, 7)
        client.expect_nothing()
        assert server.consumers("d")["w"]["outstanding"] == 2


@scenario(SECTION, "a max_in_flight above 65536 counts as that")
def largest_credit():
    with Durable() as server:
        publisher = server.client()
        batch = b"".join([publish(1, "d", b"")] * 8192)
        for _ in range(9):
            publisher.send(batch)
            for _ in range(8192):
                publisher.receive()
        client = server.client()
        client.subscribe(1, "d", max_in_flight=(1 << 32) - 1, **named("w"))
        delivered(client, *range(1, 65537))
        client.expect_nothing()
        client.send(accept(1, "1"))
        delivered(client, 65537)


@scenario(SECTION, "they are paced, each for itself: one that has found no room gets its messages "
          "when there is some, whatever another one of the connection has found meanwhile")
def room_for_all():
    with Durable(["d", "e"], limits={"max_outbox_bytes": "64K"}) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(1, "d", **reader(NEW))
        client.subscribe(2, "e", **reader(NEW))

        def queued():
            return max(one["outbox_bytes"] for one in server.ask("connections")["connections"])
        while queued() < 9000:
            publisher.publish(1, "e", bytes(900))
        publisher.publish(1, "d", bytes(60000))
        assert queued() < 60000
        publisher.publish(1, "e", bytes(900))
        while client.receive().stream != 1:
            pass
