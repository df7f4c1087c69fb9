"""The wire format as literal bytes, written from the protocol's tables alone.

Nothing here is shared with src/wire, so that a mistake there cannot hide in a test. The lower half
has one function a frame type; its arguments are the fields in the order of the table. Versions are
text ("1.2"), channels and other strings are text, payloads are bytes.

An error frame whose text is not known to the letter is expected with a pattern in place of the
text, `starts("over-capacity: ")` or a compiled regular expression: the function then gives an
ErrorLike, which equals every frame that differs from it in nothing but a matching text.
"""

import re
import struct
from typing import NamedTuple

NAMES = {
    0x01: "Connect", 0x02: "ConnectAck", 0x03: "ConnectError", 0x04: "Disconnect",
    0x05: "Subscribe", 0x06: "SubscribeAck", 0x07: "SubscribeError", 0x08: "Unsubscribe",
    0x09: "Publish", 0x0A: "PublishAck", 0x0B: "PublishError", 0x0C: "ConversationOpen",
    0x0D: "ConversationMessage", 0x0E: "ConversationClose", 0x0F: "ConversationError",
    0x10: "Accept", 0x11: "Defer", 0x12: "Reject", 0x13: "Ping", 0x14: "Pong", 0x15: "Push",
    0x16: "PushReply", 0x17: "WorkerRegister", 0x18: "WorkerRegisterAck", 0x19: "Deliver",
}

INVALID_STREAM = 0x0004
AUTHENTICATION = 0x0006
VERSION_MISMATCH = 0x0007
CODEC_ERROR = 0x0009
SERVER_ERROR = 0xFFFF

# Flags of a PublishAck.
DELIVERED, DUPLICATE = 0x01, 0x80

# ConnectAck: the server keeps durable channels.
DURABLE = 0x00010000

# Where a consumer begins that does not exist yet.
NEW, ALL, SEQUENCE, TIME = 0, 1, 2, 3

# Flags of Accept, Defer and Reject: a confirmation is asked for, or is this; still working.
CONFIRM, WORKS = 0x80, 0x40

ZERO_SCHEMA = bytes(32)
# The id of a channel without a schema, that is of the document `{}`.
NO_SCHEMA = bytes.fromhex("08f44b07b5901a25d1e17335725217d3115bb35de7b287a54bb3187d127cc0f4")

MAX_ERROR_TEXT = 1024


# Fields

def u8(n):
    return struct.pack(">B", n)


def u16(n):
    return struct.pack(">H", n)


def u32(n):
    return struct.pack(">I", n)


def u64(n):
    return struct.pack(">Q", n)


def version(text):
    major, minor = text.split(".")
    return u16(int(major)) + u16(int(minor))


def b(data):
    """bytes: u32 length, then the bytes"""
    return u32(len(data)) + data


def s(text):
    """string: like bytes, in UTF-8; bytes pass as they are"""
    return b(text if isinstance(text, bytes) else text.encode())


def opt(field):
    """opt T: pass None, or T encoded"""
    return u8(0) if field is None else u8(1) + field


def opt_s(text):
    return opt(None if text is None else s(text))


def items(encoded):
    """list of T: pass the items encoded"""
    encoded = list(encoded)
    return u32(len(encoded)) + b"".join(encoded)


def envelope(payload, schema=NO_SCHEMA, parent=None, clock=None):
    context = opt_s(parent) + opt(None if clock is None else u64(clock))
    return schema + b(context) + b(payload)


def frame(kind, flags, stream, payload=b"", length=None):
    """A whole frame; LENGTH only where the header is to lie about the payload."""
    length = len(payload) if length is None else length
    return u8(kind) + u8(flags) + u32(stream) + u32(length) + payload


def schema_id(document):
    """FNV-1a-64 of the document, then three times of the block before."""
    blocks, data = [], document
    for _ in range(4):
        h = 0xCBF29CE484222325
        for byte in data:
            h = (h ^ byte) * 0x00000100000001B3 % (1 << 64)
        data = u64(h)
        blocks.append(data)
    return b"".join(blocks)


# Frames of the client

def connect(lowest="1.0", highest=None, token=b""):
    return frame(0x01, 0, 0, version(lowest) + version(highest or lowest) + b(token))


def disconnect():
    return frame(0x04, 0, 0)


def subscribe(stream, channel, accepted=(), max_in_flight=32, flags=0, tail=b""):
    return frame(0x05, flags, stream, s(channel) + items(accepted) + u32(max_in_flight) + tail)


def named(consumer, start=ALL, value=0):
    """What makes a Subscribe a durable one: subscribe(1, "d", **named("w"))."""
    return {"flags": 0x80, "tail": s(consumer) + u8(start) + u64(value)}


def reader(start=ALL, value=0):
    return named("", start, value)


def unsubscribe(stream, subscription):
    return frame(0x08, 0, stream, u64(subscription))


def publish(stream, channel, payload, key=None, **context):
    return frame(0x09, 0 if key is None else 0x02, stream,
                 s(channel) + b(envelope(payload, **context)) + (b"" if key is None else s(key)))


def conversation_open(stream, conversation, subject):
    return frame(0x0C, 0, stream, u64(conversation) + s(subject))


def conversation_close(stream, conversation, code=None, text=None):
    return frame(0x0E, 0, stream,
                 u64(conversation) + opt(None if code is None else u16(code)) + opt_s(text))


def accept(stream, message, flags=0):
    return frame(0x10, flags, stream, s(message))


def defer(stream, message, reason=None, flags=0):
    return frame(0x11, flags, stream, s(message) + opt_s(reason))


def reject(stream, message, reason=None, flags=0):
    return frame(0x12, flags, stream, s(message) + opt_s(reason))


def ping():
    return frame(0x13, 0, 0)


def push_reply(stream, correlation, payload, flags=0):
    return frame(0x16, flags, stream, u64(correlation) + b(payload))


def worker_register(queue, namespaces=(), activities=(), node=None, identity="w", flags=0,
                    contracts=None):
    """CONTRACTS: None for the form without the tail, else a list of three strings each."""
    payload = (items(map(s, namespaces)) + s(queue) + opt_s(node) + items(map(s, activities)) +
               s(identity))
    if contracts is not None:
        payload += items(b"".join(map(s, contract)) for contract in contracts)
    return frame(0x17, flags, 0, payload)


# Frames of both

def conversation_message(stream, conversation, payload, flags=0, **context):
    return frame(0x0D, flags, stream, u64(conversation) + b(envelope(payload, **context)))


def request(stream, conversation, payload, **context):
    """A ConversationMessage that asks for a correlated reply."""
    return conversation_message(stream, conversation, payload, flags=0x01, **context)


# Frames of the server

def connect_ack(selected="1.0", capabilities=0):
    return frame(0x02, 0, 0, version(selected) + u32(capabilities))


def connect_error(code, text):
    return _error(0x03, 0, u16(code), text)


def subscribe_ack(stream, subscription, schema=NO_SCHEMA):
    return frame(0x06, 0, stream, u64(subscription) + schema)


def subscribe_error(stream, code, text):
    return _error(0x07, stream, u16(code), text)


def publish_ack(stream, message, flags=0, position=None):
    """With POSITION: that of a durable channel, from version 1.1 on."""
    if position is not None:
        return frame(0x0A, flags | 0x02, stream, u64(message) + u64(position))
    return frame(0x0A, flags, stream, u64(message))


def publish_error(stream, code, text):
    return _error(0x0B, stream, u16(code), text)


def conversation_error(stream, conversation, code, text):
    return _error(0x0F, stream, u64(conversation) + u16(code), text)


def reply(stream, conversation, payload):
    """The answer to a request: schema id zero, independent causal context."""
    return conversation_message(stream, conversation, payload, flags=0x01, schema=ZERO_SCHEMA)


def pong():
    return frame(0x14, 0, 0)


def push(correlation, payload):
    return frame(0x15, 0, 1, u64(correlation) + b(payload))


def worker_register_ack():
    return frame(0x18, 0, 0, u8(0))


def worker_register_rejected(reason):
    return _error(0x18, 0, b"", reason)


def deliver(stream, sequence, payload, boot=None, message=None, again=False, **context):
    """With BOOT and MESSAGE: the form of version 1.2. AGAIN: it was delivered before."""
    tail = b"" if boot is None else u64(boot) + u64(message)
    return frame(0x19, (0 if boot is None else 0x01) | (0x80 if again else 0), stream,
                 u64(sequence) + b(envelope(payload, **context)) + tail)


def refused(stream, message, text):
    """An answer of a consumer that was not done: it comes back as a Reject."""
    return ErrorLike(0x12, stream, s(message), text, flags=CONFIRM)


# What came

class Frame(NamedTuple):
    type: int
    flags: int
    stream: int
    payload: bytes

    @property
    def raw(self):
        return frame(self.type, self.flags, self.stream, self.payload)

    def u64(self, offset=0):
        return struct.unpack_from(">Q", self.payload, offset)[0]

    def __str__(self):
        name = NAMES.get(self.type, "type 0x%02x" % self.type)
        shown = self.payload if len(self.payload) <= 160 else self.payload[:160]
        more = "" if shown is self.payload else " ... %d bytes" % len(self.payload)
        return "%s flags=0x%02x stream=%d %r%s" % (name, self.flags, self.stream, shown, more)


def parse(data, at=0):
    """The frame at AT of DATA, and where it ends; (None, AT) when it is not all there."""
    if len(data) - at < 10:
        return None, at
    kind, flags, stream, length = struct.unpack_from(">BBII", data, at)
    if len(data) - at - 10 < length:
        return None, at
    end = at + 10 + length
    return Frame(kind, flags, stream, bytes(data[at + 10:end])), end


def parse_all(data):
    """The frames of DATA, which must end with the end of one."""
    found, at = [], 0
    while at < len(data):
        one, at = parse(data, at)
        assert one is not None, "a partial frame at the end: %r" % bytes(data[at:])
        found.append(one)
    return found


def payload_of(got):
    """The envelope's payload in a Deliver or ConversationMessage."""
    at = 8 + 4 + 32
    at += 4 + struct.unpack_from(">I", got.payload, at)[0]
    length = struct.unpack_from(">I", got.payload, at)[0]
    return got.payload[at + 4:at + 4 + length]


class ErrorLike:
    """An error frame: fixed fields, then opt string text that matches a pattern from its start."""

    def __init__(self, kind, stream, head, pattern, flags=0):
        self.kind, self.stream, self.head, self.pattern = kind, stream, head, pattern
        self.flags = flags

    def matches(self, got):
        if (got.type, got.flags, got.stream) != (self.kind, self.flags, self.stream):
            return False
        if not got.payload.startswith(self.head):
            return False
        rest = got.payload[len(self.head):]
        if len(rest) < 5 or rest[0] != 1 or struct.unpack_from(">I", rest, 1)[0] != len(rest) - 5:
            return False
        return len(rest) - 5 <= MAX_ERROR_TEXT and self.pattern.match(rest[5:].decode()) is not None

    def __str__(self):
        return "%s flags=0x%02x stream=%d %r with a text like /%s/" % (
            NAMES[self.kind], self.flags, self.stream, self.head, self.pattern.pattern)


def starts(text):
    """For error texts: begins with TEXT."""
    return re.compile(re.escape(text))


def error_text(got):
    """The text of an error frame that came."""
    head = {0x03: 2, 0x07: 2, 0x0B: 2, 0x0F: 10, 0x18: 0}[got.type]
    assert got.payload[head] == 1, "no text in %s" % got
    return got.payload[head + 5:].decode()


def _error(kind, stream, head, text):
    if isinstance(text, re.Pattern):
        return ErrorLike(kind, stream, head, text)
    return frame(kind, 0, stream, head + opt_s(text))
