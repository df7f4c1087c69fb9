"""Durable channels: publishing. What is acknowledged is there after whatever end of the daemon."""

import threading

from durable import *
from frames import *
from harness import eventually, scenario

SECTION = "Durable channels: publishing"


@scenario(SECTION, "with state_dir set the server sets capability bit 16 in ConnectAck")
def capability():
    with Durable() as server:
        for version in ("1.0", "1.1", "1.2"):
            client = server.raw()
            client.send(connect(version), connect(version))
            client.expect(connect_ack(version, 0x00010000), connect_ack(version, 0x00010000))


@scenario(SECTION, "every message has a channel sequence, from 1, strictly increasing; at "
          "version 1.1 and later it is the durable position of the PublishAck, on a plain "
          "channel there is none")
def positions():
    with Durable(("d", "e")) as server:
        old, new, newest = server.client("1.0"), server.client("1.1"), server.client("1.2")
        old.send(publish(1, "d", b"a"))
        old.expect(publish_ack(1, 1))
        new.send(publish(1, "d", b"b"), publish(1, "e", b"c"), publish(1, "d", b"d"))
        new.expect(publish_ack(1, 2, position=2), publish_ack(1, 3, position=1),
                   publish_ack(1, 4, position=3))
        newest.send(publish(1, "e", b"e"), publish(1, "p", b"f"), publish(1, "e", b"g"))
        newest.expect(publish_ack(1, 5, position=2), publish_ack(1, 6),
                      publish_ack(1, 7, position=3))


@scenario(SECTION, "a duplicate's PublishAck carries the first one's message id and position, "
          "flag 0x80, and is not stored again", "a repeat that arrives while the first is still "
          "being committed waits for it")
def duplicates():
    with Durable() as server:
        one, two = server.client("1.1"), server.client("1.2")
        one.send(publish(1, "d", b"a", key="k"), publish(2, "d", b"b", key="k"),
                 publish(3, "d", b"c", key=""), publish(4, "d", b"d"))
        one.expect(publish_ack(1, 1, position=1), publish_ack(2, 1, DUPLICATE, position=1),
                   publish_ack(3, 2, position=2), publish_ack(4, 3, position=3))
        two.send(publish(5, "d", b"e", key="k"), publish(6, "d", b"f", key=""))
        two.expect(publish_ack(5, 1, DUPLICATE, position=1),
                   publish_ack(6, 2, DUPLICATE, position=2))
        assert server.kept("d", 3) == [(1, b"a"), (2, b"c"), (3, b"d")]


@scenario(SECTION, "on one connection a PublishAck precedes the Deliver of its message, to a "
          "plain subscription, a reader and a named consumer")
def ack_before_own_delivery():
    with Durable() as server:
        client = server.client()
        client.subscribe(1, "d")
        client.subscribe(2, "d", **reader(NEW))
        client.subscribe(3, "d", **named("w", NEW))
        count = 20
        client.send(*[publish(9, "d", b"%d" % n) for n in range(1, count + 1)])
        got = [client.receive().raw for _ in range(4 * count)]
        for n in range(1, count + 1):
            ack = got.index(publish_ack(9, n, DELIVERED))
            for stream in (1, 2, 3):
                assert ack < got.index(deliver(stream, n, b"%d" % n)), (n, stream)
        for kind in [publish_ack(9, n, DELIVERED) for n in range(1, count + 1)], \
                    [deliver(2, n, b"%d" % n) for n in range(1, count + 1)]:
            assert [one for one in got if one in kind] == kind


@scenario(SECTION, "the delivered flag also counts a named consumer that has a live "
          "subscription; readers do not count")
def delivered_flag():
    with Durable() as server:
        publisher, client = server.client(), server.client()
        publisher.send(publish(1, "d", b""))
        publisher.expect(publish_ack(1, 1))
        client.subscribe(1, "d", **reader(NEW))
        publisher.send(publish(1, "d", b""))
        publisher.expect(publish_ack(1, 2))
        client.expect(deliver(1, 2, b""))
        consumer = client.subscribe(2, "d", **named("w", NEW))
        publisher.send(publish(1, "d", b""))
        publisher.expect(publish_ack(1, 3, DELIVERED))
        client.send(unsubscribe(2, consumer))
        client.receive_until(deliver(2, 3, b""))
        client.close()
        eventually("the consumer has no subscription", lambda: server.consumers()["w"][
            "subscriptions"] == 0)
        publisher.send(publish(1, "d", b""))
        publisher.expect(publish_ack(1, 4))
        server.client().subscribe(1, "d")
        publisher.send(publish(1, "d", b""))
        publisher.expect(publish_ack(1, 5, DELIVERED))


@scenario(SECTION, "what was acknowledged is there after a clean stop, and ids and sequences go "
          "on")
def clean_stop():
    with Durable(("d", "e")) as server:
        server.filled("d", [b"1", b"2"])
        server.filled("e", [b"3"])
        server.restart()
        client = server.client("1.1")
        client.send(publish(1, "d", b"4"), publish(1, "p", b"5"), publish(1, "e", b"6"))
        client.expect(publish_ack(1, 4, position=3), publish_ack(1, 5),
                      publish_ack(1, 6, position=2))
        assert server.kept("d", 3) == [(1, b"1"), (2, b"2"), (3, b"4")]
        assert server.kept("e", 2) == [(1, b"3"), (2, b"6")]


@scenario(SECTION, "what was acknowledged is there after kill -9; no message id is given twice, "
          "on plain channels neither, and no sequence")
def killed():
    with Durable() as server:
        client = server.client("1.1")
        last = 0
        for life in range(3):
            for n in (1, 2):
                for channel in ("d", "p"):
                    message = client.publish(1, channel, b"%d" % life)
                    assert message > last
                    last = message
                    if channel == "d":
                        assert client.position == 2 * life + n
            server.restart(kill=True)
            client = server.client("1.1")
        assert server.kept("d", 6) == [(n + 1, b"%d" % (n // 2)) for n in range(6)]


@scenario(SECTION, "only a crash leaves a gap in the message ids: at start 2^40 are reserved, a "
          "clean stop gives the rest back")
def reserved_ids():
    with Durable() as server:
        assert server.client().publish(1, "p", b"") == 1
        server.restart()
        assert server.client().publish(1, "p", b"") == 2
        server.restart(kill=True)
        after = server.client().publish(1, "p", b"")
        assert after == 2 + (1 << 40), after
        server.restart()
        assert server.client().publish(1, "d", b"") == after + 1


@scenario(SECTION, "boot is the time when the store was created, so that boot and id name a "
          "message for good")
def boot():
    with Durable() as server:
        boots, ids = set(), {}
        for kill in (False, True, False):
            plain, client, publisher = server.client("1.2"), server.client("1.2"), \
                server.client("1.1")
            plain.subscribe(1, "p")
            client.subscribe(1, "d", **reader(ALL))
            message = publisher.publish(1, "d", b"x")
            ids[message] = publisher.position
            for sequence in range(1, publisher.position + 1):
                got = client.receive()
                tail = len(got.payload) - 16
                assert got.flags == 0x01 and got.u64() == sequence, got
                boots.add(got.u64(tail))
                assert ids[got.u64(tail + 8)] == sequence, got
            message = publisher.publish(1, "p", b"y")
            plain.expect(deliver(1, 1, b"y", boot=min(boots), message=message))
            assert len(boots) == 1 and message not in ids, (boots, message)
            server.restart(kill=kill)


@scenario(SECTION, "an idempotency key is recognised when its message was committed, also after "
          "a restart or crash, and when retention has removed the message")
def keys_outlive():
    with Durable({"d": {"max_messages": 1}, "e": {}}) as server:
        client = server.client("1.1")
        client.send(publish(1, "d", b"a", key="k"), publish(1, "d", b"b", key="l"),
                    publish(1, "d", b"c"), publish(1, "p", b"", key="k"))
        client.expect(publish_ack(1, 1, position=1), publish_ack(1, 2, position=2),
                      publish_ack(1, 3, position=3), publish_ack(1, 4))
        for kill in (None, False, True):
            if kill is not None:
                server.restart(kill=kill)
            client = server.client("1.1")
            client.send(publish(1, "d", b"x", key="k"), publish(1, "d", b"x", key="l"))
            client.expect(publish_ack(1, 1, DUPLICATE, position=1),
                          publish_ack(1, 2, DUPLICATE, position=2))
        # Those of plain channels are gone, and a key is scoped to its channel.
        assert client.publish(1, "p", b"", key="k") > 4 and client.flags == 0
        assert client.publish(1, "e", b"", key="k") > 4 and client.position == 1
        eventually("the first is removed", lambda: server.kept("d", 3) == [(3, b"c")])
        assert client.publish(1, "d", b"x", key="k") == 1 and client.position == 1


@scenario(SECTION, "at most dedup_max_keys of a durable channel are remembered, the oldest go "
          "first, restarts included")
def max_keys():
    with Durable({"d": {"dedup_max_keys": 2}}) as server:
        for key, position, flags in (("a", 1, 0), ("b", 2, 0), ("a", 1, DUPLICATE), ("c", 3, 0),
                                     ("b", 2, DUPLICATE), ("c", 3, DUPLICATE), ("a", 4, 0),
                                     ("c", 3, DUPLICATE), ("b", 5, 0)):
            client = server.client("1.1")
            client.publish(1, "d", b"", key=key)
            assert (client.position, client.flags & ~0x02) == (position, flags), key
            if position == 3 and flags == 0:
                server.restart()


@scenario(SECTION, "dedup_window counts from the first publish, by the wall clock, restarts "
          "included, and is not extended by repeats")
def key_window():
    with Durable({"d": {"dedup_window": "1s"}}) as server:
        client = server.client("1.1")
        client.publish(1, "d", b"", key="k")
        server.restart(kill=True)
        client = server.client("1.1")

        def free():
            client.publish(1, "d", b"", key="k")
            return client.position == 2
        eventually("the key is free again", free)


@scenario(SECTION, "answers on one connection keep the order of their requests, whatever waits "
          "for the committer; those of conversations wait for none of these")
def order_of_answers():
    with Durable(("d", "e")) as server:
        client = server.client("1.1")
        client.send(conversation_open(1, 1, "echo"))
        for turn in range(20):
            first = 2 * turn + 1
            client.send(
                publish(1, "d", b"1"), ping(), publish(2, "d", b"2"), publish(3, "nowhere", b""),
                request(4, 1, b"%d" % turn), publish(5, "p", b"3"),
                subscribe(6, "nowhere"), ping(), publish(7, "e", b"4"),
                subscribe(8 + turn, "e", **named("w%d" % turn, NEW)), connect("1.1"),
                worker_register("jobs%d" % turn), ping())
            got = [client.receive() for _ in range(13)]
            replies = [one.raw for one in got if one.type == 0x0D]
            assert replies == [reply(4, 1, b"%d" % turn)]
            shown = [(one.type, one.stream) for one in got if one.type != 0x0D]
            assert shown == [(0x0A, 1), (0x14, 0), (0x0A, 2), (0x0B, 3), (0x0A, 5), (0x07, 6),
                             (0x14, 0), (0x0A, 7), (0x06, 8 + turn), (0x02, 0), (0x18, 0),
                             (0x14, 0)], shown
            acks = [one for one in got if one.type == 0x0A]
            assert [one.u64() for one in acks] == list(range(4 * turn + 1, 4 * turn + 5)), acks
            assert [one.u64(8) for one in acks if one.stream in (1, 2)] == [first, first + 1]
            # Each of these has "e" from here on: its deliveries would stand in the way.
            client.send(unsubscribe(8 + turn, next(
                one for one in got if one.type == 0x06).u64()))


@scenario(SECTION, "publishes of many connections: each is acknowledged, and each sequence is "
          "given once, in the order of each connection")
def many_publishers():
    publishers, each = 8, 250
    with Durable() as server:
        positions = [[] for _ in range(publishers)]

        def pump(mine, name):
            client = server.client("1.1")
            for first in range(0, each, 25):
                client.send(*[publish(1, "d", b"%d %d" % (name, n))
                              for n in range(first, first + 25)])
                for _ in range(25):
                    got = client.receive()
                    assert got.type == 0x0A, got
                    mine.append(got.u64(8))

        threads = [threading.Thread(target=pump, args=(positions[name], name))
                   for name in range(publishers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for mine in positions:
            assert len(mine) == each and mine == sorted(mine)
        total = publishers * each
        assert sorted(sum(positions, [])) == list(range(1, total + 1))
        found = server.kept("d", total)
        for name, mine in enumerate(positions):
            assert [found[position - 1] for position in mine] == \
                [(position, b"%d %d" % (name, n)) for n, position in enumerate(mine)]


@scenario(SECTION, "a connection over its share of max_commit_bytes is slowed down, not refused; "
          "an empty share takes one frame of any size")
def shares():
    with Durable(store={"max_commit_bytes": "1M", "max_commit_bytes_per_connection": "64K"}) \
            as server:
        client, other = server.client("1.1"), server.client("1.1")
        large, small = bytes(3 << 20), bytes(1000)
        frames = [publish(1, "d", large)] + [publish(1, "d", small)] * 2000 + \
            [publish(1, "d", large)] * 2
        sender = threading.Thread(target=client.send, args=frames)
        sender.start()
        assert other.publish(1, "d", b"x") > 0
        for sequence in range(1, len(frames) + 1):
            got = client.receive()
            assert got.type == 0x0A and got.u64(8) >= sequence, got
        sender.join()
        assert len(server.kept("d", len(frames) + 1)) == len(frames) + 1


@scenario(SECTION, "a publish that is not answered (unanswered_channels) is stored all the same")
def unanswered():
    with Durable(conversations={"unanswered_channels": "d"}) as server:
        client = server.client("1.1")
        client.send(worker_register("jobs"))
        client.expect(worker_register_ack())
        client.send(publish(1, "d", b"a"), publish(1, "p", b"b"), publish(1, "d", b"c"), ping())
        client.expect(publish_ack(1, 2), pong())
        assert server.kept("d", 2) == [(1, b"a"), (2, b"c")]


@scenario(SECTION, "commits are waited for when the connection ends: by half-close, Disconnect "
          "or a malformed frame; after a reset they are handled all the same")
def ends():
    with Durable() as server:
        client = server.client("1.1")
        client.send(publish(1, "d", b"1"), publish(1, "d", b"2"))
        client.half_close()
        client.expect(publish_ack(1, 1, position=1), publish_ack(1, 2, position=2))
        client.expect_end()
        client = server.client("1.1")
        client.send(publish(1, "d", b"3"), disconnect(), publish(1, "d", b"dropped"))
        client.expect(publish_ack(1, 3, position=3))
        client.expect_end()
        client = server.client("1.1")
        client.send(publish(1, "d", b"4"), ping(), frame(0x09, 0, 1, b"\0"))
        client.expect(publish_ack(1, 4, position=4), pong(),
                      publish_error(1, CODEC_ERROR, re.compile(".")))
        client.expect_end()
        client = server.client("1.1")
        client.send(*[publish(1, "d", b"5")] * 100)
        client.arrived()
        client.reset()
        assert server.kept("d", 104) == [(n, b"%d" % min(n, 5)) for n in range(1, 105)]


@scenario(SECTION, "at a half-close the last answer is followed by the Deliver of that same message "
          "to the connection itself, and then nothing")
def own_delivery_at_half_close():
    with Durable() as server:
        for turn in range(30):
            # Whatever comes first, the last answer or the end.
            count = (1, 2, 20)[turn % 3]
            payloads = [b"%d %d" % (turn, n) for n in range(count)]
            for name in ("", "w%d" % turn):
                client = server.client("1.1")
                client.subscribe(1, "d", **named(name, NEW))
                client.send(*[publish(2, "d", payload) for payload in payloads])
                client.half_close()
                got = client.receive_all()
                acks = [n for n, one in enumerate(got) if one.type == 0x0A]
                deliveries = [n for n, one in enumerate(got) if one.type == 0x19]
                assert len(got) == 2 * count and len(acks) == len(deliveries), (name, count, got)
                assert all(ack < delivery for ack, delivery in zip(acks, deliveries)), got
                assert [payload_of(got[n]) for n in deliveries] == payloads


@scenario(SECTION, "payload, causal context and the channel's schema id come back as they are "
          "delivered, large messages too, also after a restart")
def bytes_come_back():
    document = b'{"type": "object"}'
    typed = schema_id(document)
    contexts = [{}, {"parent": ""}, {"parent": "m\u00e9ssage\0", "clock": 7},
                {"clock": (1 << 64) - 1}]
    payloads = [b"", bytes(range(256)) * 3000, b"x" * (8 << 20), b"\0"]
    server = Durable({"d": {"schema": "DIR/schema.json"}}, files={"schema.json": document})
    with server:
        client = server.client()
        for context, payload in zip(contexts, payloads):
            client.publish(1, "d", payload, schema=ZERO_SCHEMA, **context)
        for kill in (None, False, True):
            if kill is not None:
                server.restart(kill=kill)
            client = server.client()
            client.send(subscribe(1, "d", **reader(ALL)))
            client.expect(subscribe_ack(1, 1, schema=typed))
            for n, (context, payload) in enumerate(zip(contexts, payloads), 1):
                client.expect(deliver(1, n, payload, schema=typed, **context))


@scenario(SECTION, "plain subscriptions of a durable channel get live messages only, with "
          "delivery sequences of their own")
def plain_subscriptions():
    with Durable() as server:
        publisher = server.filled("d", [b"1", b"2"])
        client = server.client()
        client.subscribe(1, "d")
        publisher.publish(1, "d", b"3")
        publisher.publish(1, "d", b"4")
        client.expect(deliver(1, 1, b"3"), deliver(1, 2, b"4"))
        client.send(accept(1, "1"), reject(1, "2"))
        client.expect_nothing()


@scenario(SECTION, "conversations and plain publishes of others do not wait for the store")
def nobody_else_waits():
    with Durable() as server:
        other = server.client()
        other.send(conversation_open(1, 1, "echo"))
        threads = [threading.Thread(target=server.filled, args=("d", [bytes(100000)] * 50))
                   for _ in range(4)]
        for thread in threads:
            thread.start()
        for n in range(50):
            other.send(publish(1, "p", b""), request(1, 1, b"%d" % n))
            got = [other.receive(), other.receive()]
            assert {one.type for one in got} == {0x0A, 0x0D}, got
        for thread in threads:
            thread.join()
