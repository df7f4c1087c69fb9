"""A client of liminald, written from liminal-protocol(7) and nothing else.

The tables of the page (fields, frame types, flags, reason codes) are read from its source and are
this client's codec; what its text says is code here. So a client can be written from the page as
long as tests/check_protocol passes with this one. Nothing is shared with src/wire or with
tests/scenarios/frames.py.
"""

import collections
import os
import re
import socket
import struct

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "man", "liminal-protocol.7")
TIMEOUT = 30.0


# The page


def displays(section):
    """The literal displays of a section or subsection, each as a list of lines."""
    with open(PAGE, encoding="utf-8") as file:
        text = file.read()
    found = re.search(r"(?ms)^\.S[hs] %s$(.*?)(?=^\.S[hs] |\Z)" % re.escape(section), text)
    assert found, "the page has no section " + section
    return [display.replace("\\e", "\\").replace("\\&", "").splitlines() for display in
            re.findall(r"(?ms)^\.Bd -literal(?: [^\n]*)?\n(.*?)^\.Ed$", found.group(1))]


Field = collections.namedtuple("Field", "type name version flag more")
Type = collections.namedtuple("Type", "number name senders control fields")


def parse_fields(text):
    """`u64 id, [1.1, 0x02: u64 position]`"""
    fields = []
    for conditions, inside, plain in re.findall(r"\[([^:\]]*): ([^\]]*)\]|([^,\[\]]+)", text):
        version, flag, more = (1, 0), 0, False
        for condition in filter(None, conditions.split(", ")):
            if condition == "more":
                more = True
            elif condition.startswith("0x"):
                flag = int(condition, 16)
            else:
                version = tuple(map(int, condition.split(".")))
        for one in filter(None, map(str.strip, (inside or plain).split(","))):
            kind, _, name = one.rpartition(" ")
            fields.append(Field(kind, name, version, flag, more))
    return fields


def read_types():
    types, lines = {}, "\n".join(displays("FRAME TYPES")[0])
    for number, name, senders, stream, fields in re.findall(
            r"(?m)^0x(..)  (\w+) +(C|S|C, S) +(0|1-)((?:\n .*)*)", lines):
        number = int(number, 16)
        types[number] = Type(number, name, set(senders.split(", ")), stream == "0",
                             parse_fields(" ".join(fields.split())))
    return types


def read_composites():
    """Those that the table of fields makes of others, such as `version  u16 major, u16 minor`."""
    found = {}
    for line in displays("Fields")[0][1:]:
        name, _, encoding = line.partition("  ")
        fields = parse_fields(encoding.strip())
        if all(field.type.replace("opt ", "") in SIMPLE for field in fields):
            found[name] = fields
    return found


def read_flags():
    return {(line.split()[0], int(line.split()[1], 16)) for line in displays("Flags")[0]}


def read_codes():
    return {int(line.split()[0], 16) for line in displays("Reason codes")[0]
            if line.startswith("0x")}


SIMPLE = {"u8", "u16", "u32", "u64", "string", "bytes", "schema"}
TYPES = read_types()
BY_NAME = {kind.name: kind for kind in TYPES.values()}
COMPOSITES = read_composites()


# Frames


class Malformed(Exception):
    pass


class InvalidStream(Exception):
    pass


Frame = collections.namedtuple("Frame", "name flags stream fields")
Envelope = collections.namedtuple("Envelope", "schema parent clock payload")


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length):
        if length > len(self.data) - self.at:
            raise Malformed("runs past the end")
        self.at += length
        return bytes(self.data[self.at - length:self.at])

    def left(self):
        return len(self.data) - self.at

    def end(self):
        if self.left():
            raise Malformed("bytes are left over")

    def number(self, size):
        return int.from_bytes(self.take(size), "big")

    def value(self, kind):
        if kind.startswith("opt "):
            tag = self.number(1)
            if tag > 1:
                raise Malformed("a presence tag of %d" % tag)
            return self.value(kind[4:]) if tag else None
        if kind.startswith("list "):
            return [self.value(kind[5:]) for _ in range(self.number(4))]
        if kind in ("u8", "u16", "u32", "u64"):
            return self.number(int(kind[1:]) // 8)
        if kind == "schema":
            return self.take(32)
        if kind == "bytes":
            return self.take(self.number(4))
        if kind == "string":
            try:
                return self.take(self.number(4)).decode("utf-8")
            except UnicodeDecodeError:
                raise Malformed("not UTF-8") from None
        if kind == "envelope":
            inside = Reader(self.value("bytes"))
            schema, context = inside.take(32), Reader(inside.value("bytes"))
            parent, clock = context.value("context")
            context.end()
            payload = inside.value("bytes")
            inside.end()
            return Envelope(schema, parent, clock, payload)
        return tuple(self.value(field.type) for field in COMPOSITES[kind])


def present(field, flags, version):
    return version >= field.version and flags & field.flag == field.flag


def decode(data, version):
    """(frame, bytes used), or None while bytes are missing. An unknown type is one without name."""
    if len(data) < 10:
        return None
    number, flags, stream, length = struct.unpack(">BBII", data[:10])
    kind = TYPES.get(number)
    if kind and kind.control != (stream == 0):
        raise InvalidStream(kind.name)
    if len(data) - 10 < length:
        return None
    payload = Reader(data[10:10 + length])
    if not kind:
        return Frame(None, flags, stream, {"payload": payload.take(length)}), 10 + length
    fields, skipped = {}, False
    for field in kind.fields:
        # Where a payload may have ended, it has ended as a whole.
        skipped = field.more and (skipped or payload.left() == 0)
        there = present(field, flags, version) and not skipped
        fields[field.name] = payload.value(field.type) if there else None
        if field.name == "max_in_flight" and fields[field.name] == 0:
            raise Malformed("max_in_flight is 0")
    payload.end()
    return Frame(kind.name, flags, stream, fields), 10 + length


def put(kind, value):
    if kind.startswith("opt "):
        return b"\x00" if value is None else b"\x01" + put(kind[4:], value)
    if kind.startswith("list "):
        return put("u32", len(value)) + b"".join(put(kind[5:], one) for one in value)
    if kind in ("u8", "u16", "u32", "u64"):
        return value.to_bytes(int(kind[1:]) // 8, "big")
    if kind == "schema":
        return value
    if kind in ("bytes", "string"):
        data = value.encode() if isinstance(value, str) else value
        return put("u32", len(data)) + data
    if kind == "envelope":
        context = put("context", (value.parent, value.clock))
        return put("bytes", value.schema + put("bytes", context) + put("bytes", value.payload))
    return b"".join(put(field.type, one) for field, one in zip(COMPOSITES[kind], value))


def encode(name, stream, flags=0, fields=None):
    kind, payload, fields = BY_NAME[name], b"", dict(fields or {})
    for field in kind.fields:
        value = fields.pop(field.name, None)
        # An optional field of a type is always there, if only to say that it is absent.
        if value is not None or field.type.startswith("opt "):
            payload += put(field.type, value)
    assert not fields, "%s has no %s" % (name, ", ".join(fields))
    return struct.pack(">BBII", kind.number, flags, stream, len(payload)) + payload


def fnv(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 % (1 << 64)
    return value.to_bytes(8, "big")


def schema_id(document):
    blocks = [fnv(document)]
    while len(blocks) < 4:
        blocks.append(fnv(blocks[-1]))
    return b"".join(blocks)


def message(payload, parent=None, clock=None):
    return Envelope(bytes(32), parent, clock, payload)


# The client


class Refused(Exception):
    """An error of the server. A code and a text."""

    def __init__(self, fields):
        super().__init__("0x%04x %s" % (fields["code"], fields["text"]))
        self.code, self.text = fields["code"], fields["text"]


class Ended(Exception):
    """The connection has."""


class Client:
    """Each call waits for its answer, and takes whatever comes in front of it."""

    # What answers what. These come in the order of their requests.
    ANSWERS = {"ConnectAck": "Connect", "ConnectError": "Connect", "Pong": "Ping",
               "PublishAck": "Publish", "PublishError": "Publish", "SubscribeAck": "Subscribe",
               "SubscribeError": "Subscribe", "WorkerRegisterAck": "WorkerRegister"}

    def __init__(self, address, token=b"", lowest=(1, 0), highest=(1, 2)):
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address)
        self.socket.settimeout(TIMEOUT)
        self.buffer, self.version, self.capabilities = bytearray(), (1, 0), 0
        self.unanswered = collections.deque()  # (name of the request, list for its answer)
        self.subscriptions, self.conversations = {}, {}  # by stream, by id
        self.handler, self.told_to_go = None, False
        self.confirmations = collections.deque()
        self.stream = 1
        answer = self.ask("Connect", 0, min=lowest, max=highest, token=token)
        self.version, self.capabilities = answer["version"], answer["capabilities"]

    def send(self, name, stream, flags=0, **fields):
        self.socket.sendall(encode(name, stream, flags, fields))

    def receive(self):
        """The next frame of a known type."""
        while True:
            found = decode(self.buffer, self.version)
            if found is None:
                piece = self.socket.recv(65536)
                if not piece:
                    raise Ended()
                self.buffer += piece
                continue
            del self.buffer[:found[1]]
            if found[0].name:
                return found[0]

    def take(self):
        """Receives a frame and brings it to where it belongs."""
        frame = self.receive()
        subscription = self.subscriptions.get(frame.stream)
        if frame.name == "Deliver":
            subscription.deliveries.append(frame)
        elif frame.name == "Push":
            self.serve(frame.fields["correlation"], frame.fields["payload"])
        elif frame.name in ("Accept", "Defer", "Reject"):
            self.confirmations.append(frame)
        elif frame.name == "Disconnect":
            self.told_to_go = True
        elif frame.name in ("ConversationMessage", "ConversationError"):
            self.conversations[frame.fields["conversation"]].answers.append(frame)
        elif frame.name == "SubscribeError" and subscription and subscription.id:
            subscription.end = Refused(frame.fields)
        elif not self.unanswered:
            raise Refused(frame.fields)
        else:
            request, place = self.unanswered.popleft()
            assert self.ANSWERS[frame.name] == request, "%s for %s" % (frame.name, request)
            place.append(frame)
            if frame.name == "ConnectAck":
                self.version = frame.fields["version"]

    def ask_ahead(self, name, stream, flags=0, **fields):
        """Sends a request; the answer will be in the list that is returned."""
        place = []
        self.unanswered.append((name, place))
        self.send(name, stream, flags, **fields)
        return place

    def wait(self, place):
        while not place:
            self.take()
        frame = place.pop(0)
        if "code" in frame.fields:
            raise Refused(frame.fields)
        return dict(frame.fields, flags=frame.flags)

    def ask(self, name, stream, flags=0, **fields):
        return self.wait(self.ask_ahead(name, stream, flags, **fields))

    def next_stream(self):
        self.stream += 1
        return self.stream

    def ping(self):
        self.ask("Ping", 0)

    def publish_ahead(self, channel, payload, key=None, **context):
        return self.ask_ahead("Publish", 1, 0 if key is None else 0x02, channel=channel,
                              message=message(payload, **context), key=key)

    def publish(self, channel, payload, key=None, **context):
        return self.wait(self.publish_ahead(channel, payload, key, **context))

    def subscribe(self, channel, **options):
        return Subscription(self, channel, **options)

    def converse(self, subject):
        return Conversation(self, subject)

    def register(self, queue, handler, flags=0, namespaces=(), activities=(), identity="",
                 contracts=None):
        self.handler = handler
        answer = self.ask("WorkerRegister", 0, flags, queue=queue, namespaces=namespaces,
                          activities=activities, identity=identity, contracts=contracts)
        return answer["rejection"]

    def serve(self, correlation, payload):
        """The handler gives (flags, payload) one or more times: all but the last with 0x80."""
        for flags, answer in self.handler(payload):
            self.send("PushReply", 1, flags, correlation=correlation, payload=answer)

    def close(self):
        """Takes what is due, as a program that has said all it had to say."""
        self.socket.shutdown(socket.SHUT_WR)
        try:
            while True:
                self.take()
        except Ended:
            self.socket.close()


class Subscription:
    def __init__(self, client, channel, accepted=(), max_in_flight=1024, flags=0, **more):
        self.client, self.stream, self.id = client, client.next_stream(), None
        self.deliveries, self.end = collections.deque(), None
        client.subscriptions[self.stream] = self
        answer = client.ask("Subscribe", self.stream, flags, channel=channel,
                            accepted=list(accepted), max_in_flight=max_in_flight, **more)
        self.id, self.schema = answer["subscription"], answer["schema"]

    def next(self):
        while not self.deliveries:
            if self.end:
                raise self.end
            self.client.take()
        frame = self.deliveries.popleft()
        return dict(frame.fields, flags=frame.flags)

    def unsubscribe(self):
        self.client.send("Unsubscribe", self.stream, subscription=self.id)
        self.client.ping()
        self.deliveries.clear()


class Conversation:
    def __init__(self, client, subject):
        self.client, self.stream = client, client.next_stream()
        self.id, self.answers = self.stream, collections.deque()
        client.conversations[self.id] = self
        client.send("ConversationOpen", self.stream, conversation=self.id, subject=subject)

    def ask_ahead(self, payload):
        self.client.send("ConversationMessage", self.stream, 0x01, conversation=self.id,
                         message=message(payload))

    def answer(self):
        while not self.answers:
            self.client.take()
        frame = self.answers.popleft()
        if frame.name == "ConversationError":
            raise Refused(frame.fields)
        assert frame.flags == 0x01 and frame.stream == self.stream, frame
        return frame.fields["message"].payload

    def ask(self, payload):
        self.ask_ahead(payload)
        return self.answer()

    def tell(self, payload):
        """One way. An error comes in front of the Pong, or not at all."""
        self.client.send("ConversationMessage", self.stream, conversation=self.id,
                         message=message(payload))
        self.client.ping()
        if self.answers:
            raise Refused(self.answers.popleft().fields)

    def close(self):
        self.client.send("ConversationClose", self.stream, conversation=self.id)
