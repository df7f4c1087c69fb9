"""Bad input: what cannot be read, what stands on the wrong stream, what is too large."""

import os
import struct

from frames import *
from harness import Server, fields, scenario

SOME_TEXT = re.compile(".")
VECTORS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "vectors", "codec.tsv")
VECTOR_COUNT = 1404

FROM_SERVER = (0x02, 0x03, 0x06, 0x07, 0x0A, 0x0B, 0x0F, 0x14, 0x15, 0x18, 0x19)
CONTROL = (0x01, 0x02, 0x03, 0x04, 0x13, 0x14, 0x17, 0x18)
KNOWN = range(0x01, 0x1A)
DEFAULT_MAX_FRAME = 16 << 20


def refusal(bad, code):
    """The error frame that answers the frame BAD, by its family."""
    kind, _, stream, _ = struct.unpack_from(">BBII", bad)
    stream = max(stream, 1)
    if kind == 0x09:
        return publish_error(stream, code, SOME_TEXT)
    if kind in (0x05, 0x08):
        return subscribe_error(stream, code, SOME_TEXT)
    if kind in (0x0C, 0x0D, 0x0E, 0x0F) and len(bad) >= 18:
        return conversation_error(stream, struct.unpack_from(">Q", bad, 10)[0], code, SOME_TEXT)
    return connect_error(code, SOME_TEXT)


def vectors():
    """(name, verdict, bytes) of each codec vector."""
    with open(VECTORS, encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    assert len(rows) == VECTOR_COUNT, "%d vectors, not %d" % (len(rows), VECTOR_COUNT)
    return [(row[0], row[1], bytes.fromhex(row[2])) for row in rows]


class Bystander:
    """A client that works undisturbed, as each check shows."""

    def __init__(self, server):
        self.client, self.count = server.client(), 0
        self.client.subscribe(1, "events")

    def check(self):
        self.count += 1
        self.client.send(publish(2, "events", b"%d" % self.count), ping())
        self.client.expect(publish_ack(2, self.count, DELIVERED),
                           deliver(1, self.count, b"%d" % self.count), pong())


@scenario("Bad input", "every malformed vector over a live connection: one error frame of its "
          "family with code 0x0004 or 0x0009, then close, while another client works undisturbed")
def bad_vectors():
    with Server() as server:
        bystander = Bystander(server)
        for name, verdict, data in vectors():
            if verdict not in ("malformed", "invalid_stream"):
                continue
            # In some the header was made shorter than what follows it.
            if verdict == "malformed":
                data = data[:10 + struct.unpack_from(">I", data, 6)[0]]
            client = server.raw()
            # Ping shows that earlier frames are answered before, later ones not at all.
            client.send(ping(), data, ping())
            try:
                if verdict == "malformed" and data[0] in FROM_SERVER:
                    client.expect(pong(), pong())
                else:
                    code = CODEC_ERROR if verdict == "malformed" else INVALID_STREAM
                    client.expect(pong(), refusal(data, code))
                    client.expect_end()
            except AssertionError as failure:
                raise AssertionError("%s: %s: %s" % (name, data.hex(), failure)) from None
            client.close()
            bystander.check()


@scenario("Bad input", "every incomplete vector: waited for without a word, and dropped at the end")
def incomplete_vectors():
    with Server() as server:
        bystander = Bystander(server)
        for name, verdict, data in vectors():
            if verdict != "incomplete":
                continue
            if len(data) >= 10 and struct.unpack_from(">I", data, 6)[0] > DEFAULT_MAX_FRAME - 10:
                continue
            client = server.raw()
            client.send(ping(), data)
            client.half_close()
            client.expect(pong())
            try:
                client.expect_end()
            except AssertionError as failure:
                raise AssertionError("%s: %s" % (name, failure)) from None
            client.close()
        bystander.check()


@scenario("Bad input", "every well-formed vector is taken without harm to others")
def good_vectors():
    with Server() as server:
        bystander = Bystander(server)
        for name, verdict, data in vectors():
            if verdict != "ok":
                continue
            client = server.raw()
            client.send(data)
            client.half_close()
            for got in client.receive_all():
                kind = got.type
                assert kind in FROM_SERVER, "%s: %s" % (name, got)
                assert kind not in (0x03, 0x07, 0x0B) or \
                    got.payload[:2] in (u16(VERSION_MISMATCH), u16(SERVER_ERROR)), \
                    "%s: %s" % (name, got)
            client.close()
        bystander.check()


@scenario("Bad input", "unknown types are skipped at any length on any stream",
          "also before a successful Connect where a token is configured")
def unknown_types():
    with Server(auth={"token": "secret"}, limits={"max_frame_size": "4K"}) as server:
        for token in (b"secret", None):
            client = server.raw() if token is None else server.client(token=token)
            for kind in (0x00, 0x1A, 0x20, 0x7F, 0x80, 0xFF):
                for stream in (0, 1, 0xFFFFFFFF):
                    for length in (0, 1, 4086, 4087, 200000):
                        client.send(frame(kind, 0xFF, stream, bytes(length)), ping())
                        client.expect(pong())


@scenario("Bad input", "types that only the server sends are checked for their stream, then "
          "skipped undecoded")
def types_of_the_server():
    with Server() as server:
        client = server.client()
        for kind in FROM_SERVER:
            stream = 0 if kind in CONTROL else 7
            client.send(frame(kind, 0xFF, stream), frame(kind, 0, stream, b"\xff" * 77), ping())
            client.expect(pong())
            bad = frame(kind, 0, 0 if stream else 7, bytes(30))
            wrong = server.client()
            wrong.send(bad)
            wrong.expect(refusal(bad, INVALID_STREAM))
            wrong.expect_end()


@scenario("Bad input", "a frame on a forbidden stream: an error of its family with code 0x0004, on "
          "the offending stream where that is legal, else on the lowest legal one; then close",
          client=True)
def forbidden_streams():
    with Server() as server:
        for bad, answer in (
                (publish(0, "events", b"x"), publish_error(1, INVALID_STREAM, SOME_TEXT)),
                (subscribe(0, "events"), subscribe_error(1, INVALID_STREAM, SOME_TEXT)),
                (unsubscribe(0, 1), subscribe_error(1, INVALID_STREAM, SOME_TEXT)),
                (conversation_open(0, 99, "q"),
                 conversation_error(1, 99, INVALID_STREAM, SOME_TEXT)),
                (request(0, 99, b"x"), conversation_error(1, 99, INVALID_STREAM, SOME_TEXT)),
                (conversation_close(0, 99), conversation_error(1, 99, INVALID_STREAM, SOME_TEXT)),
                (accept(0, "1"), connect_error(INVALID_STREAM, SOME_TEXT)),
                (defer(0, "1"), connect_error(INVALID_STREAM, SOME_TEXT)),
                (reject(0, "1"), connect_error(INVALID_STREAM, SOME_TEXT)),
                (push_reply(0, 1, b""), connect_error(INVALID_STREAM, SOME_TEXT)),
                (frame(0x01, 0, 5, connect("1.0")[10:]), connect_error(INVALID_STREAM, SOME_TEXT)),
                (frame(0x04, 0, 1), connect_error(INVALID_STREAM, SOME_TEXT)),
                (frame(0x13, 0, 0xFFFFFFFF), connect_error(INVALID_STREAM, SOME_TEXT)),
                (frame(0x17, 0, 2, worker_register("q")[10:]),
                 connect_error(INVALID_STREAM, SOME_TEXT))):
            client = server.client()
            client.send(bad, ping())
            client.expect(answer)
            client.expect_end()
            assert server.closed(client) == "stream"


@scenario("Bad input", "the stream is checked as soon as the header is there, before size and "
          "payload")
def stream_before_payload():
    with Server() as server:
        for kind, answer in ((0x09, publish_error(1, INVALID_STREAM, SOME_TEXT)),
                             (0x05, subscribe_error(1, INVALID_STREAM, SOME_TEXT)),
                             (0x10, connect_error(INVALID_STREAM, SOME_TEXT))):
            for length in (1, 1000, 0xFFFFFFFF):
                client = server.client()
                client.send(frame(kind, 0, 0, length=length))
                client.expect(answer)
                client.expect_end()
        # Malformed too, and still a matter of the stream.
        client = server.client()
        client.send(frame(0x09, 0, 0, b"\0"))
        client.expect(publish_error(1, INVALID_STREAM, SOME_TEXT))
        client.expect_end()


@scenario("Bad input", "a malformed frame: an error of its family with code 0x0009 on its stream, "
          "then close; every earlier frame is handled and answered first, none behind it",
          client=True)
def malformed_frames():
    with Server() as server:
        bystander = Bystander(server)
        for bad, answer in (
                (frame(0x09, 0, 5, s("events")), publish_error(5, CODEC_ERROR, SOME_TEXT)),
                (frame(0x09, 0x02, 5, publish(5, "events", b"x")[10:]),
                 publish_error(5, CODEC_ERROR, SOME_TEXT)),
                (frame(0x09, 0, 5, publish(5, "events", b"x", key="k")[10:]),
                 publish_error(5, CODEC_ERROR, SOME_TEXT)),
                (frame(0x09, 0, 5, s(b"\xc0\x80") + b(envelope(b"x"))),
                 publish_error(5, CODEC_ERROR, SOME_TEXT)),
                (frame(0x09, 0, 5, s("events") + b(envelope(b"x") + b"more")),
                 publish_error(5, CODEC_ERROR, SOME_TEXT)),
                (frame(0x09, 0, 5, s("events") + b(ZERO_SCHEMA + b(b"\x02\0") + b(b""))),
                 publish_error(5, CODEC_ERROR, SOME_TEXT)),
                (frame(0x05, 0, 9, s("events")), subscribe_error(9, CODEC_ERROR, SOME_TEXT)),
                (frame(0x05, 0, 9, s("events") + u32(0xFFFFFFFF) + u32(1)),
                 subscribe_error(9, CODEC_ERROR, SOME_TEXT)),
                (frame(0x08, 0, 9, u32(1)), subscribe_error(9, CODEC_ERROR, SOME_TEXT)),
                (frame(0x0C, 0, 3, u64(12) + u32(100)),
                 conversation_error(3, 12, CODEC_ERROR, SOME_TEXT)),
                (frame(0x0D, 1, 3, u64(12)), conversation_error(3, 12, CODEC_ERROR, SOME_TEXT)),
                (frame(0x0E, 0, 3, u64(12) + b"\x02"),
                 conversation_error(3, 12, CODEC_ERROR, SOME_TEXT)),
                # No id can be read.
                (frame(0x0C, 0, 3, u32(12)), connect_error(CODEC_ERROR, SOME_TEXT)),
                (frame(0x0D, 0, 3), connect_error(CODEC_ERROR, SOME_TEXT)),
                (frame(0x01, 0, 0, b"\0"), connect_error(CODEC_ERROR, SOME_TEXT)),
                (frame(0x04, 0, 0, b"\0"), connect_error(CODEC_ERROR, SOME_TEXT)),
                (frame(0x13, 0, 0, b"\0"), connect_error(CODEC_ERROR, SOME_TEXT)),
                (frame(0x10, 0, 4, b"\0"), connect_error(CODEC_ERROR, SOME_TEXT)),
                (frame(0x11, 0, 4, s("1") + b"\x05"), connect_error(CODEC_ERROR, SOME_TEXT)),
                (frame(0x12, 0, 4, s("1")), connect_error(CODEC_ERROR, SOME_TEXT)),
                (frame(0x16, 0, 1, u64(1)), connect_error(CODEC_ERROR, SOME_TEXT)),
                (frame(0x17, 0, 0, u32(1)), connect_error(CODEC_ERROR, SOME_TEXT)),
                # A tail that is none: one of the three strings is missing.
                (frame(0x17, 0, 0, worker_register("q")[10:] + u32(1) + s("a") + s("b")),
                 connect_error(CODEC_ERROR, SOME_TEXT))):
            client = server.client()
            client.send(publish(2, "other", b""), ping(), bad, publish(2, "events", b"behind"),
                        ping())
            client.expect(publish_error(2, SERVER_ERROR, "channel 'other' is not configured"),
                          pong(), answer)
            client.expect_end()
            assert server.closed(client) == "malformed"
            bystander.check()


@scenario("Bad input", "one log line for a malformed frame or a forbidden stream")
def one_log_line():
    with Server() as server:
        client = server.client()
        client.send(frame(0x13, 0, 0, b"x") * 50)
        client.expect(connect_error(CODEC_ERROR, SOME_TEXT))
        client.expect_end()
        server.closed(client)
        about = [fields(line) for line in server.lines if client.name in line]
        about = [line for line in about if line["level"] not in ("info", "debug")]
        assert len(about) == 1 and about[0]["conn"] == "1", about


def padded(build, size):
    """BUILD(n), whose n bytes of padding are chosen so that the frame has SIZE bytes."""
    made = build(size - len(build(0)))
    assert len(made) == size
    return made


@scenario("Bad input", "larger than max_frame_size: Publish, Subscribe and ConversationMessage get "
          "their family's error (0x0009, naming both sizes), and the connection lives on",
          client=True)
def too_large():
    limit = 4 << 10
    both = re.compile(r"(?=.*\b5000\b)(?=.*\b4096\b)")

    def a_publish(n):
        return publish(5, "events", bytes(n))

    def a_message(n):
        return request(7, 9, bytes(n))

    def a_subscribe(n):
        return subscribe(6, "c" * n)

    with Server(limits={"max_frame_size": "4K"}) as server:
        client = server.client()
        client.send(conversation_open(7, 9, "echo"))
        client.send(padded(a_publish, limit), padded(a_publish, 5000), ping(),
                    padded(a_subscribe, 5000), ping(), padded(a_message, 5000),
                    subscribe(8, "events"))
        client.expect(publish_ack(5, 1), publish_error(5, CODEC_ERROR, both), pong(),
                      subscribe_error(6, CODEC_ERROR, both), pong(),
                      conversation_error(7, 9, CODEC_ERROR, both), subscribe_ack(8, 1))
        client.send(padded(a_publish, limit + 1), padded(a_message, limit))
        client.expect(publish_error(5, CODEC_ERROR, re.compile(r"(?=.*\b4097\b)(?=.*\b4096\b)")))
        client.expect(reply(7, 9, payload_of(parse(padded(a_message, limit))[0])))
        # Skipped, not kept, whatever its size and however it arrives.
        large = a_publish(3 << 20)
        for at in range(0, len(large), 100000):
            client.send(large[at:at + 100000])
        client.send(publish(5, "events", b"next"))
        client.expect(publish_error(5, CODEC_ERROR, re.compile(r".*\b%d\b" % len(large))),
                      publish_ack(5, 2, DELIVERED), deliver(8, 1, b"next"))
        assert server.lines == [line for line in server.lines if "connection closed" not in line]


@scenario("Bad input", "any other known type above max_frame_size: as malformed")
def too_large_others():
    with Server(limits={"max_frame_size": "4K"}) as server:
        for bad in (connect("1.0", token=bytes(5000)), conversation_open(3, 12, "q" * 5000),
                    conversation_close(3, 12, text="t" * 5000), accept(3, "1" * 5000),
                    push_reply(1, 1, bytes(5000)), worker_register("q" * 5000)):
            client = server.client()
            client.send(ping(), bad)
            client.expect(pong(), refusal(bad, CODEC_ERROR))
            client.expect_end()


@scenario("Bad input", "frames sent may be up to 64 bytes larger than max_frame_size")
def frames_sent_may_be_larger():
    with Server(limits={"max_frame_size": "4K"}, channels=("c",)) as server:
        subscriber, client = server.client("1.2"), server.client()
        subscriber.subscribe(1, "c")
        largest = padded(lambda n: publish(1, "c", bytes(n)), 4096)
        client.send(largest)
        client.expect(publish_ack(1, 1, DELIVERED))
        got = subscriber.receive()
        assert len(got.raw) == 4096 + 19 and payload_of(got) == payload_of(parse(
            deliver(1, 1, bytes(4096 - len(publish(1, "c", b"")))))[0])


@scenario("Bad input", "a 4 GiB length: of a Publish, an error that names it; of another known "
          "type, an error and close; of an unknown one, skipped; memory stays bounded")
def four_gigabytes():
    with Server() as server:
        bystander = Bystander(server)
        before = server.memory()
        size = re.compile(r".*\b4294967305\b")
        greedy = []
        for bad, answer in (
                (frame(0x09, 0, 5, length=0xFFFFFFFF), publish_error(5, CODEC_ERROR, size)),
                (frame(0x05, 0, 5, length=0xFFFFFFFF), subscribe_error(5, CODEC_ERROR, size)),
                (frame(0x0D, 0, 5, u64(3), length=0xFFFFFFFF),
                 conversation_error(5, 3, CODEC_ERROR, size)),
                (frame(0x7F, 0, 5, length=0xFFFFFFFF), None)):
            client = server.client()
            client.send(bad)
            # The rest of it is thrown away as it comes.
            client.send(bytes(8 << 20))
            if answer:
                client.expect(answer)
            greedy.append(client)
        for kind in (0x01, 0x13, 0x04, 0x10, 0x16, 0x17):
            client = server.client()
            client.send(frame(kind, 0, 0 if kind in CONTROL else 3, length=0xFFFFFFFF))
            client.expect(connect_error(CODEC_ERROR, SOME_TEXT))
            client.expect_end()
        bystander.check()
        grown = server.memory() - before
        assert grown < 24 << 20, "it took %d bytes more" % grown
        for client in greedy:
            client.half_close()
            client.expect_end()


@scenario("Bad input", "a frame may come byte by byte")
def byte_by_byte():
    with Server() as server:
        client = server.raw()
        for answer, data in ((connect_ack("1.0"), connect("1.0", token=b"t")),
                             (subscribe_ack(2, 1), subscribe(2, "events")),
                             (pong(), frame(0x7E, 0, 3, b"unknown") + ping()),
                             (publish_ack(1, 1, DELIVERED), publish(1, "events", b"x", key="k")),
                             (publish_ack(1, 1, DUPLICATE), publish(1, "events", b"x", key="k"))):
            for byte in data[:-1]:
                client.send(bytes([byte]))
            client.send(data[-1:])
            client.expect(answer)
            if answer == publish_ack(1, 1, DELIVERED):
                client.expect(deliver(2, 1, b"x"))
        client.send(subscribe(9, "nowhere")[:-1])
        client.half_close()
        client.expect_end()


@scenario("Bad input", "a subject of 1024 bytes is taken, a longer one gets a ConversationError, "
          "and the connection lives on")
def subject_bound():
    with Server() as server:
        client = server.client()
        client.send(conversation_open(1, 1, "q" * 1024), conversation_open(2, 2, "q" * 1025),
                    request(1, 1, b"x"), ping())
        client.expect(conversation_error(2, 2, SERVER_ERROR, re.compile(".*1024")))
        got = sorted(client.receive().raw for _ in range(2))
        assert got == sorted([reply(1, 1, b"x"), pong()])


@scenario("Bad input", "a WorkerRegister above 64 KiB is rejected, \"too large\", and the "
          "connection lives on")
def registration_bound():
    with Server() as server:
        client = server.client()
        client.send(worker_register("q", identity="i" * 65000), ping(),
                    worker_register("q", activities=["a" * 100] * 700), ping())
        client.expect(worker_register_ack(), pong(),
                      worker_register_rejected(re.compile(".*too large")), pong())


@scenario("Bad input", "names that come back in texts and logs are cut at 128 bytes on a character "
          "boundary, control characters escaped")
def names_are_cut():
    with Server(conversations={"worker_queues": "only"}) as server:
        client = server.client()
        for name, shown, not_shown in (
                ("x" * 5000, "x" * 128, "x" * 129),
                ("\u00e9" * 100, "\u00e9" * 64, "\u00e9" * 65),
                ("a" + "\u00e9" * 100, "a" + "\u00e9" * 63, "\u00e9" * 64),
                ("abc" + "\U0001f600" * 40, "abc" + "\U0001f600" * 31, "\U0001f600" * 32)):
            client.send(publish(1, name, b""), subscribe(2, name), worker_register(name))
            for kind in (0x0B, 0x07, 0x18):
                got = client.receive()
                text = error_text(got)
                assert got.type == kind and not_shown not in text and len(text.encode()) <= 1024
                assert shown in text or kind == 0x18, text
        hostile = "a\nb\r\0\x1b[31m\x7f\u0085'\\\" time=1 level=error"
        client.send(publish(1, hostile, b""), subscribe(2, hostile), worker_register(hostile))
        for _ in range(3):
            text = error_text(client.receive())
            assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text), repr(text)
        client.send(frame(0x13, 0, 1))
        client.expect(connect_error(INVALID_STREAM, SOME_TEXT))
        client.expect_end()
        server.closed(client)
        assert all(line.isprintable() for line in server.lines), server.lines
