"""The clients of one life of the daemon, all in one thread: what they say is drawn from the seed,
and all that they say and hear goes into the ledger."""

import collections
import selectors
import socket
import struct
import time

import frames
from ledger import Publish, Violation, demand

CONFIRM, WORKS = 0x80, 0x40
ALL, SEQUENCE = 1, 2


def durable(consumer, start=ALL, value=0):
    """What makes a Subscribe a durable one; without a name a reader's."""
    return {"flags": 0x80, "tail": frames.s(consumer) + frames.u8(start) + frames.u64(value)}


class Delivery:
    """A Deliver of version 1.2."""

    def __init__(self, got):
        demand(got.type == 0x19 and got.flags & 0x01, "not a Deliver: %s", got)
        self.sequence, self.again = got.u64(), bool(got.flags & 0x80)
        size, = struct.unpack_from(">I", got.payload, 8)
        envelope, tail = got.payload[12:12 + size], got.payload[12 + size:]
        size, = struct.unpack_from(">I", envelope, 32)
        context, rest = envelope[36:36 + size], envelope[36 + size:]
        demand(len(context) >= 2 and len(rest) >= 4 and len(tail) == 16 and
               struct.unpack_from(">I", rest)[0] == len(rest) - 4, "not as it should be: %s", got)
        self.parent = context[5:5 + struct.unpack_from(">I", context, 1)[0]] if context[0] else None
        self.payload = rest[4:]
        self.boot, self.message = struct.unpack(">QQ", tail)


class Peer:
    """A connection of version 1.2."""

    def __init__(self, crowd, address):
        self.crowd, self.random = crowd, crowd.random
        self.out, self.buffer = bytearray(frames.connect("1.2")), bytearray()
        self.greeted = self.ended = False
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        crowd.selector.register(self.socket, selectors.EVENT_READ, self)

    def send(self, *data):
        for one in data:
            self.out += one

    def flush(self):
        if self.out and not self.ended:
            try:
                del self.out[:self.socket.send(self.out)]
            except BlockingIOError:
                pass
            except OSError:
                self.out.clear()

    def read(self):
        """Takes what has come."""
        try:
            piece = self.socket.recv(1 << 17)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self.close()
            return
        self.buffer += piece
        at = 0
        while True:
            got, end = frames.parse(self.buffer, at)
            if got is None:
                break
            at = end
            if got.type == 0x04 and self.crowd.stopping:
                self.close()
                return
            if self.greeted:
                self.hear(got)
            else:
                demand(got.type == 0x02, "not a ConnectAck: %s", got)
                self.greeted = True
        del self.buffer[:at]

    def subscribed(self, got):
        """Whether it is the answer to a Subscribe."""
        if self.crowd.full and got.type == 0x07 and b"store-full: " in got.payload:
            self.close()
            return True
        return got.type == 0x06

    def close(self):
        if not self.ended:
            self.ended = True
            self.crowd.selector.unregister(self.socket)
            self.socket.close()

    def play(self):
        """Says more, if it likes."""

    def hear(self, got):
        raise Violation("unexpected: %s" % got)


class Publisher(Peer):
    """Publishes to one channel of the ledger, or to a plain one (channel None)."""

    def __init__(self, crowd, address, channel, keys):
        super().__init__(crowd, address)
        self.channel, self.keys = channel, keys
        self.name = b"%d.%d" % (crowd.life, crowd.number())
        self.line = channel.line() if channel else []
        self.waiting = collections.deque()
        self.count = 0
        self.most = self.random.choice((10, 100, 400, 1000))
        self.outstanding = self.random.choice((1, 4, 32, 256))
        self.size = self.random.choice((0, 100, 100, 3000))
        self.same_stream = self.random.random() < .5

    def play(self):
        # A window that has half emptied is filled, so that there are bursts.
        if len(self.waiting) > self.outstanding // 2:
            return
        while self.count < self.most and len(self.waiting) < self.outstanding:
            self.count += 1
            key = self.keys(self) if self.random.random() < .6 else None
            payload = b"|".join((self.name, b"%d" % self.count, key or b"",
                                 b"x" * self.random.randrange(self.size + 1)))
            publish = Publish(payload, key, time.time())
            stream = 1 if self.same_stream else self.count
            self.waiting.append((stream, publish))
            if self.channel:
                self.channel.sent(self.line, publish)
            self.send(frames.publish(stream, self.channel.name if self.channel else "plain",
                                     payload, key=key and key.decode()))

    def hear(self, got):
        stream, publish = self.waiting.popleft()
        demand(got.stream == stream, "an ack on stream %d, due is %d", got.stream, stream)
        if self.crowd.full and got.type == 0x0B and b"store-full: " in got.payload:
            self.crowd.refused += 1
            self.channel.refused(publish, time.time())
            return
        demand(got.type == 0x0A, "%s: a publish was answered with %s", self.name, got)
        duplicate = bool(got.flags & 0x80)
        if self.channel:
            demand(got.flags & 0x02, "no position: %s", got)
            self.channel.answered(publish, duplicate, got.u64(), got.u64(8), time.time())
        elif not duplicate:
            self.crowd.ids.learn(got.u64(), publish.payload)
            self.crowd.plain += 1


class Reader(Peer):
    """Reads a whole channel from somewhere on: ascending, and nothing left out."""

    def __init__(self, crowd, address, channel):
        super().__init__(crowd, address)
        self.channel, self.seen = channel, []
        self.start = self.random.choice((1, max(1, channel.last - self.random.randrange(500))))
        self.send(frames.subscribe(1, channel.name, **durable("", SEQUENCE, self.start)))

    def hear(self, got):
        if self.subscribed(got):
            return
        one = Delivery(got)
        demand(not self.seen or one.sequence > self.seen[-1], "%s: a reader gets %d behind %d",
               self.channel.name, one.sequence, self.seen and self.seen[-1])
        self.crowd.ids.learn_boot(one.boot)
        self.channel.learn(one.sequence, one.message, one.payload, "a delivery to a reader")
        self.seen.append(one.sequence)

    def judge(self):
        """When it is known what there was."""
        if self.seen:
            there = [n for n in self.channel.order if self.start <= n <= self.seen[-1]]
            demand(there == self.seen, "%s: a reader from %d on missed %s", self.channel.name,
                   self.start, sorted(set(there) - set(self.seen))[:5])


class Worker(Peer):
    """One subscription of a named consumer."""

    def __init__(self, crowd, address, consumer, choices, credit=None):
        super().__init__(crowd, address)
        self.consumer, self.choices = consumer, choices
        self.mine = set()                 # outstanding here, as far as it knows
        self.asked = collections.deque()  # confirmations
        self.held = []                    # deliveries that it has not answered yet
        self.order = []                   # of all deliveries
        self.patience = self.random.choice((1, 5, 30))
        self.send(frames.subscribe(1, consumer.channel.name,
                                   max_in_flight=credit or self.random.choice((1, 8, 64, 1000)),
                                   **durable(consumer.name)))

    def hear(self, got):
        if self.subscribed(got):
            return
        if got.type == 0x19:
            one = Delivery(got)
            self.crowd.ids.learn_boot(one.boot)
            self.consumer.delivered(one.sequence, one.message, one.payload, one.again)
            self.mine.add(one.sequence)
            self.held.append(one.sequence)
            self.order.append(one.sequence)
            return
        demand(got.type in (0x10, 0x11, 0x12) and got.flags & CONFIRM, "unexpected: %s", got)
        demand(self.asked, "a confirmation that nobody asked for: %s", got)
        asked, sequences, why = self.asked.popleft()
        expected = frames.parse(asked)[0]
        if got.raw == asked:
            if why:
                self.consumer.confirmed(sequences, why)
                self.crowd.confirmed += len(sequences)
        elif self.crowd.full and got.type == 0x12 and (
                b"store-full: " in got.payload or b"over-capacity: " in got.payload):
            self.crowd.refused += 1
            self.consumer.refused(sequences)
            self.mine.update(sequences)
            if b"store-full: " in got.payload:
                self.held += sequences
        else:
            demand(self.consumer.expires and got.type == 0x12 and
                   got.payload.startswith(expected.payload[:4 + len(str(sequences[-1]))]) and
                   b"stale: " in got.payload, "consumer %s asked %s, and got %s",
                   self.consumer.name, expected, got)
            self.crowd.stale += 1

    def play(self):
        if len(self.held) < self.patience and self.random.random() < .7:
            return
        if "upto" in self.choices:
            self.play_upto()
            return
        self.random.shuffle(self.held)
        keep = self.random.choice((0, 0, 0, 1))
        while len(self.held) > keep:
            self.answer(self.held.pop(), self.random.choice(self.choices),
                        self.random.random() < .5)

    def play_upto(self):
        if self.held:
            last = self.held[self.random.randrange(len(self.held))]
            through = [n for n in self.mine if n <= last]
            self.consumer.answered(through)
            self.mine.difference_update(through)
            self.held = [n for n in self.held if n > last]
            ask = self.random.random() < .5
            self.send(frames.accept(1, "..%d" % last, CONFIRM if ask else 0))
            if ask:
                self.asked.append((frames.accept(1, "..%d" % last, CONFIRM),
                                   through, "accepted"))

    def answer(self, sequence, choice, ask):
        name, flags = "%d" % sequence, CONFIRM if ask else 0
        if choice == "accept":
            sent, why = frames.accept(1, name, flags), "accepted"
            confirmation = sent
            self.consumer.answered([sequence])
        elif choice == "reject":
            sent, why = frames.reject(1, name, "no", flags), "rejected"
            confirmation = frames.reject(1, name, None, flags)
            self.consumer.answered([sequence], rejected=True)
        elif choice == "defer":
            sent, why = frames.defer(1, name, "later", flags), None
            confirmation = frames.defer(1, name, None, flags)
            self.consumer.answered([sequence], deferred=True)
        elif choice == "works":
            sent, why = frames.defer(1, name, None, flags | WORKS), None
            confirmation = sent
            self.held.insert(0, sequence)
        else:
            return
        if choice != "works":
            self.mine.discard(sequence)
        self.send(sent)
        if ask:
            self.asked.append((confirmation, [sequence], why))

    def leave(self):
        """Its connection ends in the midst of it."""
        self.close()
        # What was answered may not have arrived.
        self.consumer.disconnected(list(self.consumer.life))


class Crowd:
    def __init__(self, random, ids, life):
        self.random, self.ids, self.life = random, ids, life
        self.selector, self.peers = selectors.DefaultSelector(), []
        self.plain = self.confirmed = self.stale = self._number = 0
        self.refused = 0
        self.stopping = False  # the daemon was told to
        self.full = False      # there may be no room in its store

    def number(self):
        self._number += 1
        return self._number

    def add(self, peer):
        self.peers.append(peer)
        return peer

    def run(self, seconds=None, until=None):
        """Plays for so long, or until a condition holds; false when the time was up first."""
        deadline = time.monotonic() + seconds
        while until is None or not until():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.speak()
            self.listen(min(left, 0.005))
        return True

    def speak(self):
        for peer in self.peers:
            if not peer.ended:
                peer.play()
                peer.flush()

    def until_told(self):
        """Until the very moment at which the daemon says something, which is not read yet."""
        self.speak()
        self.selector.select(0.05)

    def listen(self, seconds):
        for key, _ in self.selector.select(seconds):
            key.data.read()

    def drain(self):
        """The daemon is dead: takes what it has still said."""
        while any(not peer.ended for peer in self.peers):
            self.listen(1)

    def close(self):
        for peer in self.peers:
            peer.close()
        self.selector.close()
