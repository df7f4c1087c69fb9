"""Channels: Publish, the order of messages, idempotency keys."""

import threading

from frames import *
from harness import Server, eventually, scenario



@scenario("Publish", "a channel that is not configured: PublishError 0xFFFF \"channel 'NAME' is "
          "not configured\", and the connection lives on", client=True)
def channel_not_configured():
    with Server() as server:
        client = server.client()
        client.send(publish(7, "other", b"x"))
        client.expect(publish_error(7, SERVER_ERROR, "channel 'other' is not configured"))
        client.expect_nothing()


@scenario("Publish", "a PublishAck is on the wire before the Deliver of the same message to the "
          "same connection", client=True)
def ack_before_own_delivery():
    with Server() as server:
        client = server.client()
        client.subscribe(2, "events")
        client.send(publish(1, "events", b"x"))
        client.expect(publish_ack(1, 1, DELIVERED), deliver(2, 1, b"x"))
        client.send(publish(1, "events", b"y"), publish(3, "events", b"z"), ping())
        got = [frame.raw for frame in client.receive_until(pong())]
        acks = [publish_ack(1, 2, DELIVERED), publish_ack(3, 3, DELIVERED)]
        deliveries = [deliver(2, 2, b"y"), deliver(2, 3, b"z")]
        assert [one for one in got if one in acks] == acks
        assert [one for one in got if one in deliveries] == deliveries
        assert len(got) == 4
        assert all(got.index(a) < got.index(d) for a, d in zip(acks, deliveries))


@scenario("Publish", "one verdict for each Publish, in the order of the requests and on the stream "
          "of each", client=True)
def one_verdict_each():
    with Server() as server:
        client = server.client()
        client.send(publish(1, "events", b"a"), publish(9, "nowhere", b"b"),
                    publish(4000000000, "events", b"c"), publish(1, "events", b"d", key="k"),
                    publish(2, "events", b"e", key="k"))
        client.expect(publish_ack(1, 1),
                      publish_error(9, SERVER_ERROR, "channel 'nowhere' is not configured"),
                      publish_ack(4000000000, 2), publish_ack(1, 3), publish_ack(2, 3, DUPLICATE))
        client.expect_nothing()


@scenario("Publish", "message id: one counter for the server, from 1; refused and duplicate "
          "publishes consume none")
def message_ids():
    with Server(channels=("a", "b")) as server:
        one, two = server.client(), server.client("1.2")
        assert one.publish(1, "a", b"") == 1
        assert two.publish(1, "b", b"") == 2
        one.send(publish(1, "c", b""))
        one.expect(publish_error(1, SERVER_ERROR, "channel 'c' is not configured"))
        assert one.publish(1, "b", b"", key="k") == 3
        assert two.publish(1, "b", b"", key="k") == 3
        two.send(publish(1, "a", b"", key="x" * 1025))
        two.expect(publish_error(1, SERVER_ERROR, re.compile(".*1024")))
        assert two.publish(1, "a", b"") == 4


@scenario("Publish", "PublishAck flag 0x01 is set when at least one live subscription, the "
          "publisher's own included, accepted the message")
def delivered_flag():
    with Server(channels=("a", "b")) as server:
        publisher, subscriber = server.client(), server.client()
        publisher.send(publish(1, "a", b"1"))
        publisher.expect(publish_ack(1, 1))
        subscription = subscriber.subscribe(1, "a")
        publisher.send(publish(1, "a", b"2"), publish(1, "b", b"3"))
        publisher.expect(publish_ack(1, 2, DELIVERED), publish_ack(1, 3))
        subscriber.send(unsubscribe(1, subscription))
        subscriber.expect(deliver(1, 1, b"2"))
        subscriber.expect_nothing()
        publisher.send(publish(1, "a", b"4"))
        publisher.expect(publish_ack(1, 4))
        publisher.subscribe(5, "b")
        publisher.send(publish(1, "b", b"5"))
        publisher.expect(publish_ack(1, 5, DELIVERED), deliver(5, 1, b"5"))


@scenario("Publish", "the payload is delivered byte for byte, with the publisher's causal context",
          "the publisher's schema id is not compared; deliveries carry the channel's", client=True)
def payload_and_context():
    document = b'{"type": "object"}'
    with Server(config="[server]\nlisten = 127.0.0.1:0\nhttp_listen = none\n[channel plain]\n"
                "[channel typed]\nschema = DIR/schema.json\n", files={"schema.json": document}
                ) as server:
        publisher, subscriber = server.client(), server.client("1.1")
        typed = schema_id(document)
        subscriber.subscribe(1, "plain")
        subscriber.send(subscribe(2, "typed"))
        subscriber.expect(subscribe_ack(2, 2, schema=typed))
        every_byte = bytes(range(256)) * 3000
        contexts = [{}, {"parent": ""}, {"parent": "m\u00e9ssage \U0001f600\0"}, {"clock": 0},
                    {"clock": (1 << 64) - 1, "parent": "p" * 300}]
        payloads = [b"", b"\0", every_byte, b"not json", every_byte[:4097]]
        for number, (context, payload) in enumerate(zip(contexts, payloads), 1):
            for schema in (NO_SCHEMA, ZERO_SCHEMA):
                publisher.publish(1, "plain", payload, schema=schema, **context)
                publisher.publish(1, "typed", payload, schema=schema, **context)
            for sequence in (2 * number - 1, 2 * number):
                subscriber.expect(
                    deliver(1, sequence, payload, schema=NO_SCHEMA, **context),
                    deliver(2, sequence, payload, schema=typed, **context))


@scenario("Publish", "a Publish after one that is like it in all but stream and payload is handled "
          "like it; one that differs in anything else is judged by its own bytes")
def like_the_one_before():
    with Server(channels=("a", "b")) as server:
        publisher, subscriber = server.client(), server.client()
        subscriber.subscribe(1, "a")
        subscriber.subscribe(2, "b")
        first = publish(7, "a", b"1234")
        keyed = publish(7, "a", b"", key="")
        assert len(keyed) == len(first)
        publisher.send(first, publish(8, "a", b"5678"), publish(8, "b", b"abcd"),
                       publish(8, "b", b"efgh"), first, publish(9, "x", b"1234"), first,
                       publish(7, "a", b"", parent=""), keyed, first, keyed,
                       publish(7, "a", b"12345"), publish(7, "a", b""), publish(7, "a", b""))
        publisher.expect(
            *[publish_ack(*ack, DELIVERED) for ack in ((7, 1), (8, 2), (8, 3), (8, 4), (7, 5))],
            publish_error(9, SERVER_ERROR, "channel 'x' is not configured"),
            *[publish_ack(7, message, DELIVERED) for message in (6, 7, 8, 9)],
            publish_ack(7, 8, DUPLICATE),
            *[publish_ack(7, message, DELIVERED) for message in (10, 11, 12)])
        subscriber.expect(
            deliver(1, 1, b"1234"), deliver(1, 2, b"5678"), deliver(2, 1, b"abcd"),
            deliver(2, 2, b"efgh"), deliver(1, 3, b"1234"), deliver(1, 4, b"1234"),
            deliver(1, 5, b"", parent=""), deliver(1, 6, b""), deliver(1, 7, b"1234"),
            deliver(1, 8, b"12345"), deliver(1, 9, b""), deliver(1, 10, b""))
        subscriber.expect_nothing()


@scenario("Bad input", "a malformed Publish, or one on stream 0, is refused also behind sound ones "
          "that it looks like")
def bad_after_sound_ones():
    sound = publish(7, "events", b"1234")
    short = bytearray(sound)
    short[-5] -= 1  # of the payload's length: a byte is left over
    longer = bytearray(sound)
    longer[-5] += 1
    keyless = bytearray(sound)
    keyless[1] = 0x02  # a key should follow
    for bad, stream, code in ((publish(0, "events", b"1234"), 1, INVALID_STREAM),
                              (bytes(short), 7, CODEC_ERROR), (bytes(longer), 7, CODEC_ERROR),
                              (bytes(keyless), 7, CODEC_ERROR)):
        with Server() as server:
            client = server.client()
            client.send(sound, sound, bad, sound)
            client.expect(publish_ack(7, 1), publish_ack(7, 2),
                          publish_error(stream, code, re.compile(".*")))
            client.expect_end()


@scenario("Publish", "the PublishAck of a plain channel carries no durable position, at no version")
def no_durable_position():
    with Server() as server:
        for number, version in enumerate(("1.0", "1.1", "1.2"), 1):
            client = server.client(version)
            client.send(publish(1, "events", b"x"))
            client.expect(publish_ack(1, number))
            client.expect_nothing()


@scenario("Publish", "all subscriptions of a channel see its messages in one order; messages of "
          "one connection keep theirs")
def one_order():
    publishers, each = 4, 300
    with Server() as server:
        subscribers = [server.client() for _ in range(3)]
        for subscriber in subscribers:
            subscriber.subscribe(1, "events")

        def pump(name):
            client = server.client()
            for first in range(0, each, 10):
                client.send(*[publish(1, "events", b"%d %d" % (name, number))
                              for number in range(first, first + 10)])
            for _ in range(each):
                client.receive()

        threads = [threading.Thread(target=pump, args=(name,)) for name in range(publishers)]
        for thread in threads:
            thread.start()
        seen = []
        for subscriber in subscribers:
            got = [subscriber.receive() for _ in range(publishers * each)]
            assert [frame.u64() for frame in got] == list(range(1, publishers * each + 1))
            seen.append([payload_of(frame) for frame in got])
        for thread in threads:
            thread.join()
        assert seen[0] == seen[1] == seen[2]
        for name in range(publishers):
            assert [text for text in seen[0] if text.startswith(b"%d " % name)] == [
                b"%d %d" % (name, number) for number in range(each)]


@scenario("Publish", "a repeated idempotency key is not delivered again; its PublishAck carries "
          "the first one's message id, flag 0x01 clear and flag 0x80 set", client=True)
def duplicate():
    with Server() as server:
        publisher, other, subscriber = server.client(), server.client(), server.client()
        subscriber.subscribe(1, "events")
        # In one batch, and from another connection.
        publisher.send(publish(1, "events", b"1", key="k"), publish(3, "events", b"2", key="k"))
        publisher.expect(publish_ack(1, 1, DELIVERED), publish_ack(3, 1, DUPLICATE))
        other.send(publish(5, "events", b"3", key="k"), publish(5, "events", b"4", key="K"))
        other.expect(publish_ack(5, 1, DUPLICATE), publish_ack(5, 2, DELIVERED))
        subscriber.expect(deliver(1, 1, b"1"), deliver(1, 2, b"4"))
        subscriber.expect_nothing()


@scenario("Publish", "an idempotency key is scoped to its channel; the empty string is a key like "
          "any other; without flag 0x02 there is no key")
def key_scope():
    with Server(channels=("a", "b")) as server:
        client = server.client()
        client.send(publish(1, "a", b"", key=""), publish(1, "b", b"", key=""),
                    publish(1, "a", b"", key=""), publish(1, "a", b""), publish(1, "a", b""),
                    publish(1, "a", b"", key="\0"), publish(1, "b", b"", key=""))
        client.expect(publish_ack(1, 1), publish_ack(1, 2), publish_ack(1, 1, DUPLICATE),
                      publish_ack(1, 3), publish_ack(1, 4), publish_ack(1, 5),
                      publish_ack(1, 2, DUPLICATE))


@scenario("Publish", "at most dedup_max_keys are remembered, the oldest go first")
def dedup_max_keys():
    with Server(channels={"few": {"dedup_max_keys": 2}}) as server:
        client = server.client()
        for key, message, flags in (("a", 1, 0), ("b", 2, 0), ("a", 1, DUPLICATE), ("c", 3, 0),
                                    # "a" went, although it was repeated after "b".
                                    ("b", 2, DUPLICATE), ("c", 3, DUPLICATE), ("a", 4, 0),
                                    ("c", 3, DUPLICATE), ("b", 5, 0)):
            client.send(publish(1, "few", b"", key=key))
            client.expect(publish_ack(1, message, flags))


@scenario("Publish", "a key is remembered for dedup_window, counted from the first publish")
def dedup_window():
    with Server(channels={"short": {"dedup_window": "1s"}}) as server:
        client = server.client()
        assert client.publish(1, "short", b"", key="k") == 1
        assert client.publish(1, "short", b"", key="k") == 1 and client.flags == DUPLICATE
        # Repeats until then do not extend it: this would never end.
        eventually("the key is free again", lambda: client.publish(1, "short", b"", key="k") == 2)
        assert client.flags == 0


@scenario("Bad input", "an idempotency key of 1024 bytes is taken, a longer one gets a "
          "PublishError, and the connection lives on")
def key_bound():
    with Server() as server:
        client = server.client()
        client.send(publish(1, "events", b"", key="k" * 1024),
                    publish(2, "events", b"", key="k" * 1025),
                    publish(1, "events", b"", key="k" * 1024))
        client.expect(publish_ack(1, 1), publish_error(2, SERVER_ERROR, re.compile(".*1024")),
                      publish_ack(1, 1, DUPLICATE))
