"""Channels: Subscribe, Unsubscribe, Deliver."""

import threading
import time

from frames import *
from harness import Server, scenario



@scenario("Subscribe", "a channel that is not configured: SubscribeError 0xFFFF \"channel 'NAME' "
          "is not configured\", and the connection lives on", client=True)
def channel_not_configured():
    with Server() as server:
        client = server.client()
        client.send(subscribe(3, "other"), subscribe(4, ""))
        client.expect(subscribe_error(3, SERVER_ERROR, "channel 'other' is not configured"),
                      subscribe_error(4, SERVER_ERROR, "channel '' is not configured"))
        client.expect_nothing()


@scenario("Subscribe", "accepted schema ids: empty list, or the channel's id in it; otherwise "
          "SubscribeError 0xFFFF \"schema incompatible: ...\"", client=True)
def accepted_schemas():
    with Server() as server:
        client = server.client()
        client.send(subscribe(1, "events"), subscribe(2, "events", [ZERO_SCHEMA, NO_SCHEMA]),
                    subscribe(3, "events", [ZERO_SCHEMA]),
                    subscribe(4, "events", [NO_SCHEMA] * 3))
        client.expect(subscribe_ack(1, 1, schema=NO_SCHEMA), subscribe_ack(2, 2, schema=NO_SCHEMA),
                      subscribe_error(3, SERVER_ERROR, starts("schema incompatible: ")),
                      subscribe_ack(4, 3, schema=NO_SCHEMA))


@scenario("Subscribe", "the subscription id is server-wide, from 1")
def subscription_ids():
    with Server(channels=("a", "b")) as server:
        one, two = server.client(), server.client()
        assert one.subscribe(1, "a") == 1
        assert two.subscribe(1, "b") == 2
        assert one.subscribe(2, "b") == 3


@scenario("Subscribe", "SubscribeAck is on the wire before the subscription's first Deliver",
          client=True)
def ack_before_first_delivery():
    with Server() as server:
        enough = threading.Event()

        def pump():
            client = server.client()
            while not enough.is_set():
                client.send(publish(1, "events", b"x") * 50)
                for _ in range(50):
                    client.receive()

        thread = threading.Thread(target=pump)
        thread.start()
        try:
            for _ in range(100):
                client = server.client()
                client.send(subscribe(1, "events"))
                ack = client.receive()
                assert ack.type == 0x06, "a %s before the SubscribeAck" % ack
                client.expect(deliver(1, 1, b"x"), deliver(1, 2, b"x"))
                client.close()
        finally:
            enough.set()
            thread.join()


@scenario("Subscribe", "several subscriptions of a connection, to one channel too, each get every "
          "message; several may share a stream id", client=True)
def several_subscriptions():
    with Server(channels=("a", "b")) as server:
        client, publisher = server.client(), server.client()
        client.subscribe(1, "a")
        client.subscribe(1, "a")
        client.subscribe(1, "b")
        client.subscribe(9, "a")
        publisher.publish(1, "a", b"1")
        publisher.publish(1, "b", b"2")
        got = sorted(client.receive().raw for _ in range(4))
        assert got == sorted([deliver(1, 1, b"1"), deliver(1, 1, b"1"), deliver(9, 1, b"1"),
                              deliver(1, 1, b"2")])
        client.expect_nothing()


@scenario("Subscribe", "over max_subscriptions_per_connection: SubscribeError 0xFFFF "
          "\"over-capacity: max_subscriptions_per_connection ...\"", client=True)
def too_many_subscriptions():
    with Server(limits={"max_subscriptions_per_connection": 2}) as server:
        client, other = server.client(), server.client()
        client.send(subscribe(1, "events"), subscribe(2, "events"), subscribe(3, "events"))
        client.expect(subscribe_ack(1, 1), subscribe_ack(2, 2),
                      subscribe_error(3, SERVER_ERROR,
                                      starts("over-capacity: max_subscriptions_per_connection")))
        # The bound is each connection's own, and Unsubscribe gives room back.
        other.subscribe(1, "events")
        client.send(unsubscribe(1, 1), subscribe(4, "events"))
        assert client.receive().type == 0x06
        publisher = server.client()
        publisher.publish(1, "events", b"x")
        got = sorted(client.receive().raw for _ in range(2))
        assert got == [deliver(2, 1, b"x"), deliver(4, 1, b"x")]
        client.expect_nothing()


@scenario("Subscribe", "max_in_flight is advisory: clients never acknowledge", client=True)
def max_in_flight_is_advisory():
    with Server() as server:
        client, publisher = server.client(), server.client()
        client.subscribe(1, "events", max_in_flight=1)
        client.subscribe(2, "events", max_in_flight=2)
        for number in range(1, 51):
            publisher.publish(1, "events", b"%d" % number)
            got = sorted(client.receive().raw for _ in range(2))
            assert got == [deliver(1, number, b"%d" % number), deliver(2, number, b"%d" % number)]


@scenario("Subscribe", "max_in_flight 0 is malformed: SubscribeError 0x0009, then close")
def max_in_flight_zero():
    with Server() as server:
        client = server.client()
        client.send(subscribe(6, "events", max_in_flight=0))
        client.expect(subscribe_error(6, CODEC_ERROR, re.compile(".")))
        client.expect_end()


@scenario("Subscribe", "Unsubscribe is silent, of an unknown id or another connection's too, and "
          "ends nothing but the connection's own subscription")
def unsubscribe_is_silent():
    with Server() as server:
        client, other = server.client(), server.client()
        own, others = client.subscribe(1, "events"), other.subscribe(1, "events")
        client.send(unsubscribe(1, others), unsubscribe(1, 0), unsubscribe(1, (1 << 64) - 1))
        client.expect_nothing()
        client.send(publish(1, "events", b"1"))
        client.expect(publish_ack(1, 1, DELIVERED), deliver(1, 1, b"1"))
        other.expect(deliver(1, 1, b"1"))
        # The stream of the Unsubscribe need not be the subscription's; a second one is unknown.
        client.send(unsubscribe(77, own), unsubscribe(1, own))
        client.expect_nothing()
        client.send(publish(1, "events", b"2"))
        client.expect(publish_ack(1, 2, DELIVERED))
        other.expect(deliver(1, 2, b"2"))
        client.expect_nothing()


@scenario("Subscribe", "no Deliver of a subscription is queued after its Unsubscribe")
def nothing_after_unsubscribe():
    with Server() as server:
        client = server.client()
        one = client.subscribe(1, "events")
        client.subscribe(1, "events")
        client.send(publish(1, "events", b"1"), unsubscribe(1, one), publish(1, "events", b"2"),
                    ping())
        got = sorted(frame.raw for frame in client.receive_until(pong()) if frame.type == 0x19)
        assert got == [deliver(1, 1, b"1"), deliver(1, 1, b"1"), deliver(1, 2, b"2")]
        client.expect_nothing()


@scenario("Deliver", "on the stream of the Subscribe, flags 0, delivery sequence 1, 2, 3 ... per "
          "subscription", client=True)
def sequence_of_each_subscription():
    with Server() as server:
        early, late, publisher = server.client("1.0"), server.client("1.1"), server.client()
        early.subscribe(4294967295, "events")
        publisher.publish(1, "events", b"1")
        late.subscribe(8, "events")
        publisher.publish(1, "events", b"2")
        publisher.publish(1, "events", b"3")
        early.expect(deliver(4294967295, 1, b"1"), deliver(4294967295, 2, b"2"),
                     deliver(4294967295, 3, b"3"))
        late.expect(deliver(8, 1, b"2"), deliver(8, 2, b"3"))


@scenario("Deliver", "each subscription has its own stream and sequence, and each connection the form "
          "of its version, also where batches go to many, some of whom read slowly")
def batches_to_many():
    # Small ones, some that have a buffer of their own, and enough of them for several batches.
    messages = [bytes([number % 251]) * ((number * 977) % 4000 if number % 50 else 70000)
                for number in range(600)]
    # Those of one line join at the same message.
    joining = ((("1.2", 1, None), ("1.2", 3, 4096), ("1.0", 4000000000, 4096)),
               (("1.2", 1, 4096),),
               (("1.1", 2, None), ("1.0", 2, 4096), ("1.2", 2, 4096), ("1.2", 2, None)),
               (("1.0", 9, None),))
    with Server() as server:
        publisher, subscribers = server.client(), []
        for early, group in enumerate(joining, 1):
            for version, stream, receive_buffer in group:
                client = server.client(version, receive_buffer=receive_buffer)
                client.subscribe(stream, "events")
                subscribers.append((client, version, stream, early))
            publisher.publish(1, "events", b"early")
        publisher.send(*[publish(1, "events", message) for message in messages])
        publisher.expect(*[publish_ack(1, len(joining) + number, DELIVERED)
                           for number in range(1, len(messages) + 1)])
        for client, version, stream, first in subscribers:
            origin = {}
            for sequence in range(1, len(joining) - first + 2 + len(messages)):
                index = sequence + first - len(joining) - 2
                message = messages[index] if index >= 0 else b"early"
                got = client.receive()
                if version == "1.2":
                    origin = {"boot": got.u64(len(got.payload) - 16),
                              "message": sequence + first - 1}
                assert got.raw == deliver(stream, sequence, message, **origin), \
                    "message %d on stream %d: %s" % (sequence + first - 1, stream, got)
            client.expect_nothing()


@scenario("Deliver", "at version 1.2 flag 0x01 and, at the end, boot (the server's start in ms "
          "since 1970 UTC) and the message id of the publisher's PublishAck")
def boot_and_message_id():
    before = int(time.time() * 1000)
    with Server() as server:
        after = int(time.time() * 1000)
        one, two, publisher = server.client("1.2"), server.client("1.2"), server.client("1.0")
        publisher.publish(1, "events", b"nobody listens")
        one.subscribe(1, "events")
        two.subscribe(2, "events")
        message = publisher.publish(1, "events", b"x", parent="p", clock=7)
        got = one.receive()
        boot = got.u64(len(got.payload) - 16)
        assert before <= boot <= after, "boot %d is not in %d..%d" % (boot, before, after)
        assert message == 2
        assert got.raw == deliver(1, 1, b"x", boot=boot, message=2, parent="p", clock=7)
        two.expect(deliver(2, 1, b"x", boot=boot, message=2, parent="p", clock=7))


@scenario("Deliver", "the version of the latest Connect decides on the form, before any it is 1.0")
def version_of_the_latest_connect():
    with Server() as server:
        client, publisher = server.raw(), server.client()
        client.subscribe(1, "events")
        publisher.publish(1, "events", b"1")
        client.expect(deliver(1, 1, b"1"))
        client.send(connect("1.2"))
        client.expect(connect_ack("1.2"))
        publisher.publish(1, "events", b"2")
        got = client.receive()
        assert got.raw == deliver(1, 2, b"2", boot=got.u64(len(got.payload) - 16), message=2)
        client.send(connect("1.1"))
        client.expect(connect_ack("1.1"))
        publisher.publish(1, "events", b"3")
        client.expect(deliver(1, 3, b"3"))
        # A refused one changes nothing.
        client.send(connect("1.3", "1.9"))
        client.expect(connect_error(VERSION_MISMATCH, "no mutually supported protocol version"))
        publisher.publish(1, "events", b"4")
        client.expect(deliver(1, 4, b"4"))


@scenario("Durable subscriptions", "without a state directory a durable Subscribe is decoded, and "
          "gets SubscribeError 0xFFFF \"not durable: ...\"")
def not_durable():
    with Server() as server:
        client = server.client("1.2")
        client.send(subscribe(1, "events", flags=0x80, tail=s("w") + u8(1) + u64(0)), ping())
        client.expect(subscribe_error(1, SERVER_ERROR, starts("not durable: ")), pong())
        # Decoded: what is left over behind the three fields is malformed.
        client.send(subscribe(1, "events", flags=0x80, tail=s("w") + u8(1) + u64(0) + b"x"))
        client.expect(subscribe_error(1, CODEC_ERROR, re.compile(".")))
        client.expect_end()


@scenario("Durable subscriptions", "flag 0x80 with none of the three fields, and other flag bits: "
          "a plain subscription")
def meaningless_flags():
    with Server() as server:
        client = server.client()
        client.send(subscribe(1, "events", flags=0x80), subscribe(2, "events", flags=0x7F))
        client.expect(subscribe_ack(1, 1), subscribe_ack(2, 2))


@scenario("Durable subscriptions", "the three fields without flag 0x80 are malformed")
def fields_without_flag():
    with Server() as server:
        client = server.client()
        client.send(subscribe(1, "events", tail=s("w") + u8(1) + u64(0)))
        client.expect(subscribe_error(1, CODEC_ERROR, re.compile(".")))
        client.expect_end()


@scenario("Bad input", "Accept, Defer and Reject without a state directory are decoded and "
          "ignored, also when a confirmation is asked for")
def answers_are_ignored():
    with Server() as server:
        client = server.client("1.2")
        client.subscribe(1, "events")
        for flags in (0, 0x40, 0x80, 0xC0):
            client.send(accept(1, "1", flags), defer(1, "1", "later", flags), reject(2, "x", None,
                                                                                      flags))
        client.expect_nothing()
        client.send(frame(0x10, 0, 1, b("\xff\xfe".encode("latin-1"))))
        client.expect(connect_error(CODEC_ERROR, re.compile(".")))
        client.expect_end()
