"""Handshake and authentication."""

from connections import data_segments_received
from frames import *
from harness import Server, scenario

MISMATCH = connect_error(VERSION_MISMATCH, "no mutually supported protocol version")
REJECTED = connect_error(AUTHENTICATION, "connection authentication token rejected")


@scenario("Handshake and authentication", "Connect: the highest common version, capabilities 0; "
          "ConnectError 0x0007 on none, and the connection stays open and may try again",
          client=True)
def negotiation():
    with Server() as server:
        client = server.raw()
        for lowest, highest, answer in (
                ("1.0", "1.0", "1.0"), ("1.0", "1.1", "1.1"), ("1.1", "1.1", "1.1"),
                ("1.0", "1.2", "1.2"), ("1.2", "1.2", "1.2"), ("1.0", "1.3", "1.2"),
                ("0.0", "65535.65535", "1.2"), ("0.7", "1.0", "1.0"), ("1.1", "2.0", "1.2"),
                ("0.0", "0.65535", None), ("1.3", "1.3", None), ("2.0", "3.0", None),
                ("1.2", "1.0", None), ("1.3", "1.0", None)):
            client.send(connect(lowest, highest))
            client.expect(MISMATCH if answer is None else connect_ack(answer, capabilities=0))
        client.expect_nothing()


@scenario("Handshake and authentication", "without a configured token the token is not looked at, "
          "and frames are honoured before Connect too")
def open_server():
    with Server() as server:
        client = server.raw()
        client.send(publish(1, "events", b"x"), subscribe(2, "events"), worker_register("q"),
                    conversation_open(3, 1, "echo"), request(3, 1, b"hello"))
        client.expect(publish_ack(1, 1), subscribe_ack(2, 1), worker_register_ack(),
                      reply(3, 1, b"hello"))
        for token in (b"", b"anything", bytes(range(256)), b"x" * 100000):
            client.send(connect("1.0", token=token))
            client.expect(connect_ack("1.0"))


@scenario("Handshake and authentication", "a wrong token: ConnectError 0x0006 \"connection "
          "authentication token rejected\", then close", "the token is checked before the version",
          client=True)
def wrong_token():
    with Server(auth={"token": "secret"}) as server:
        for token in (b"", b"secre", b"secrets", b"Secret", b"secret\0", b"\0", b"x" * 60000):
            for version in ("1.0", "9.9"):
                client = server.raw()
                client.send(connect(version, token=token))
                client.expect(REJECTED)
                client.expect_end()
                assert server.closed(client) == "token"
        client = server.raw()
        client.send(connect("9.9", token=b"secret"), connect("1.0", "1.2", token=b"secret"),
                    publish(1, "events", b"x"))
        client.expect(MISMATCH, connect_ack("1.2"), publish_ack(1, 1))


@scenario("Handshake and authentication", "a repeated Connect is answered again, or refused and "
          "closed, like the first")
def repeated_connect():
    with Server(auth={"token": "secret"}) as server:
        client = server.client("1.2", token=b"secret")
        client.send(connect("1.0", token=b"secret"), publish(1, "events", b"x"),
                    connect("3.0", token=b"secret"), publish(1, "events", b"x"),
                    connect("1.0", token=b"wrong"), publish(1, "events", b"x"))
        client.expect(connect_ack("1.0"), publish_ack(1, 1), MISMATCH, publish_ack(1, 2), REJECTED)
        client.expect_end()
        assert server.client(token=b"secret").publish(1, "events", b"") == 3


@scenario("Handshake and authentication", "before a successful Connect, Ping, Disconnect and types "
          "that are ignored anyway are allowed")
def allowed_before_connect():
    with Server(auth={"token": "secret"}) as server:
        client = server.raw()
        client.send(accept(1, "1"), defer(1, "1", "r"), reject(1, "1"),
                    accept(1, "1", flags=0x80),
                    frame(0x0A, 0, 1, b"not even a PublishAck"), frame(0x14, 0, 0, b"Pong"),
                    frame(0x19, 0, 1), frame(0x1A, 0, 0, b"?"), frame(0xFF, 0xFF, 3, bytes(100000)),
                    ping(), connect("1.0", token=b"secret"))
        client.expect(pong(), connect_ack("1.0"))
        client = server.raw()
        client.send(ping(), disconnect())
        client.expect(pong())
        client.expect_end()


@scenario("Handshake and authentication", "anything else before a successful Connect: ConnectError "
          "0x0006, then close, with nothing applied")
def refused_before_connect():
    with Server(auth={"token": "secret"}) as server:
        subscriber = server.client(token=b"secret")
        subscriber.subscribe(1, "events")
        for bad in (publish(1, "events", b"x", key="k"), subscribe(1, "events"), unsubscribe(1, 1),
                    conversation_open(1, 1, "q"), conversation_message(1, 1, b"x"),
                    request(1, 1, b"x"), conversation_close(1, 1), push_reply(1, 1, b"x"),
                    worker_register("q")):
            client = server.raw()
            client.send(ping(), bad, ping(), connect("1.0", token=b"secret"))
            client.expect(pong(), connect_error(AUTHENTICATION, re.compile(".")))
            client.expect_end()
            assert server.closed(client) == "unauthenticated"
        # Also when the Connect failed only for its version.
        client = server.raw()
        client.send(connect("2.0", token=b"secret"), publish(1, "events", b"x", key="k"))
        client.expect(MISMATCH, connect_error(AUTHENTICATION, re.compile(".")))
        client.expect_end()
        subscriber.send(publish(1, "events", b"y", key="k"))
        subscriber.expect(publish_ack(1, 1, DELIVERED), deliver(1, 1, b"y"))
        subscriber.expect_nothing()


@scenario("Handshake and authentication", "before a successful Connect no frame of a known type "
          "above 64 KiB")
def large_before_connect():
    with Server(auth={"token": "secret"}) as server:
        for large in (connect("1.0", token=bytes(65536)), accept(1, "1" * 65536),
                      publish(1, "events", bytes(65536))):
            client = server.raw()
            # The header alone decides, and nothing of the payload is kept.
            client.send(large[:10])
            client.expect(connect_error(AUTHENTICATION, re.compile(".")))
            client.expect_end()


@scenario("Handshake and authentication", "a malformed frame before Connect is still malformed")
def malformed_before_connect():
    with Server(auth={"token": "secret"}) as server:
        for bad, code in ((frame(0x10, 0, 1, b"\0"), CODEC_ERROR),
                          (frame(0x01, 0, 0, b"\0"), CODEC_ERROR),
                          (frame(0x13, 0, 1), INVALID_STREAM)):
            client = server.raw()
            client.send(bad)
            client.expect(connect_error(code, re.compile(".")))
            client.expect_end()


@scenario("Handshake and authentication", "a write ends after a ConnectAck and after a "
          "WorkerRegisterAck", client=True)
def write_ends_after_ack():
    with Server() as server:
        for ask, ack in ((connect("1.0"), connect_ack("1.0")),
                         (worker_register("q"), worker_register_ack())):
            client = server.client()
            before = data_segments_received(client)
            client.send(ping(), ask, ping(), ping(), ask, ask)
            client.expect(pong(), ack, pong() * 2, ack, ack)
            came = data_segments_received(client) - before
            assert came == 3, "three acks came in %d segments" % came


@scenario("Handshake and authentication", "a Push to a worker waits until worker_settle after its "
          "WorkerRegisterAck", client=True)
def push_waits_until_settled():
    with Server(conversations={"no_worker": "wait", "worker_settle": "1s"}) as server:
        client, jobs = server.client(), server.client()
        client.send(conversation_open(1, 1, "jobs"), request(1, 1, b"job"))
        client.expect_nothing()
        jobs.send(worker_register("jobs"), ping())
        jobs.expect(worker_register_ack(), pong(), push(1, b"job"))
        jobs.send(push_reply(1, 1, b"done"))
        client.expect(reply(1, 1, b"done"))
