"""What was sent to a daemon and heard from it, over all of its lives, and what must follow.

Nothing here knows how the daemon works: it is told what left and arrived at the sockets of the
clients, and what a reader finds after each restart. A Violation says which promise was broken.

A payload names its publish, which happens once, and its key: NAME|NUMBER|KEY|padding. So what a
reader finds tells alone what was committed.
"""

import collections

GRANULARITY = 0.002  # of the daemon's clock, in seconds


class Violation(AssertionError):
    pass


def demand(true, text, *args):
    if not true:
        raise Violation(text % args)


class Difference:
    """A payload, from shortly before where it differs from another on."""

    def __init__(self, payload, other):
        self.payload = payload
        self.at = 0
        for one, two in zip(payload, other):
            if one != two:
                break
            self.at += 1

    def __str__(self):
        start = max(0, self.at - 20)
        return "%r (%d bytes, from byte %d on)" % (
            self.payload[start:start + 80], len(self.payload), start)


class Publish:
    def __init__(self, payload, key, sent):
        self.payload, self.key, self.sent = payload, key, sent
        self.answer = None   # (flag duplicate, id, position)
        self.over = None     # when it was answered, or the daemon had died
        self.refused = False  # for want of room


def key_of(payload):
    return payload.split(b"|")[2]


class Ids:
    """No message id is given twice, whatever the channel; boot stays the same."""

    def __init__(self):
        self.owners, self.boot = {}, None

    def learn(self, message, owner):
        before = self.owners.setdefault(message, owner)
        demand(before == owner, "id %d was given to %r and to %r", message, before, owner)

    def learn_boot(self, boot):
        self.boot = self.boot or boot
        demand(boot == self.boot, "boot is %d, and was %d", boot, self.boot)


class Channel:
    """A durable channel. WHOLE: nothing is removed from it, so that a reader shows all of it."""

    def __init__(self, name, ids, window=3600.0, whole=True):
        self.name, self.ids, self.window, self.whole = name, ids, window, whole
        self.content = {}     # sequence: (id, payload), as a reader found it after a crash
        self.order = []       # its sequences
        self.heard = {}       # the same from acks and deliveries, not yet found by a reader
        self.lines = []       # of this life: the publishes of one connection, in order
        self.duplicates = []  # of this life
        self.by_payload, self.by_key = {}, collections.defaultdict(list)
        self.publishes = {}   # payload: Publish
        self.answers = {}     # of a channel that is not whole: key: (id, position)
        self.doubtful = []    # publishes with a key, of the last life, that were not answered
        self.last = 0         # the largest position that was acknowledged
        self.acknowledged = self.repeats = 0

    def line(self):
        self.lines.append([])
        return self.lines[-1]

    def sent(self, line, publish):
        line.append(publish)
        self.publishes[publish.payload] = publish

    def learn(self, sequence, message, payload, source):
        known = self.content.get(sequence) or self.heard.setdefault(sequence, (message, payload))
        demand(known[0] == message, "%s: sequence %d is message %d in %s, and was %d", self.name,
               sequence, message, source, known[0])
        demand(known[1] == payload, "%s: sequence %d is %s in %s, and was %s", self.name,
               sequence, Difference(payload, known[1]), source, Difference(known[1], payload))
        self.ids.learn(message, (self.name, sequence))

    def answered(self, publish, duplicate, message, position, now):
        publish.answer, publish.over = (duplicate, message, position), now
        self.acknowledged += 1
        self.last = max(self.last, position)
        if duplicate:
            self.repeats += 1
            demand(publish.key is not None, "%s: %r has no key, and is called a duplicate",
                   self.name, publish.payload[:60])
            if self.whole:
                self.duplicates.append(publish)
        elif self.whole:
            self.learn(position, message, publish.payload, "its ack")
        else:
            self.ids.learn(message, (self.name, position))
        if not self.whole and publish.key is not None:
            before = self.answers.setdefault(publish.key, (message, position))
            demand(before == (message, position), "%s: key %r was message %d at %d, and is now %d "
                   "at %d", self.name, publish.key, *before, message, position)

    def refused(self, publish, now):
        publish.refused, publish.over = True, now

    def found(self, messages, died):
        """What a reader finds behind what it found the last time: (sequence, id, payload)."""
        for line in self.lines:
            for publish in line:
                if publish.over is None:
                    publish.over = died
        last = self.order[-1] if self.order else 0
        for sequence, message, payload in messages:
            demand(sequence > last, "%s: sequence %d comes behind %d", self.name, sequence, last)
            last = sequence
            self.learn(sequence, message, payload, "a reader after the restart")
            demand(payload not in self.by_payload, "%s: %r is there twice, at %s and %d", self.name,
                   payload[:60], self.by_payload.get(payload), sequence)
            demand(payload in self.publishes, "%s: nobody published %r", self.name, payload[:60])
            self.content[sequence] = (message, payload)
            self.order.append(sequence)
            self.by_payload[payload] = sequence
            self.heard.pop(sequence, None)
            publish = self.publishes[payload]
            demand(not publish.refused, "%s: %r was refused, and is there", self.name,
                   payload[:60])
            if publish.key is not None:
                for earlier in self.by_key[publish.key][-1:]:
                    first = self.publishes[self.content[earlier][1]]
                    demand(publish.over - first.sent >= self.window - GRANULARITY,
                           "%s: key %r is known with message %d, and %d was committed as well",
                           self.name, publish.key, earlier, sequence)
                self.by_key[publish.key].append(sequence)
        for sequence, (message, payload) in self.heard.items():
            raise Violation("%s: message %d, sequence %d, %r was acknowledged or delivered, and is "
                            "gone" % (self.name, message, sequence, payload[:60]))
        self.judge_duplicates()
        for line in self.lines:
            self.judge_order(line)
        self.doubtful = [publish for line in self.lines for publish in line
                         if publish.key is not None and publish.answer is None]
        self.lines = []

    def judge_duplicates(self):
        for publish in self.duplicates:
            _, message, position = publish.answer
            demand(position in self.content and self.content[position][0] == message,
                   "%s: a duplicate of key %r was answered with message %d at %d, and there is %s",
                   self.name, publish.key, message, position,
                   self.content.get(position, ("nothing",))[0])
            first = self.publishes[self.content[position][1]]
            demand(first.key == publish.key, "%s: a duplicate of key %r was answered with the "
                   "message of key %r", self.name, publish.key, first.key)
            demand(publish.sent - first.over <= self.window + GRANULARITY,
                   "%s: key %r was known beyond its window", self.name, publish.key)
            demand(publish.payload not in self.by_payload,
                   "%s: %r was answered as a duplicate, and is there", self.name,
                   publish.payload[:60])
        self.duplicates = []

    def judge_order(self, line):
        """Of one connection: positions ascend, and what was not committed is the end."""
        last, missing = 0, None
        for publish in line:
            at = self.by_payload.get(publish.payload)
            if at is not None:
                demand(missing is None, "%s: %r was committed, and %r in front of it was not",
                       self.name, publish.payload[:60], missing and missing.payload[:60])
                demand(at > last, "%s: %r is at %d, in front of what was published before",
                       self.name, publish.payload[:60], at)
                last = at
            elif publish.answer is None and not publish.refused and not (publish.key and self.by_key.get(publish.key)):
                missing = publish

    def ended(self, died):
        """Of a channel that is not whole, after a crash: nothing can be read back for sure."""
        for line in self.lines:
            last = 0
            for publish in line:
                publish.over = publish.over or died
                if publish.answer and not publish.answer[0]:
                    demand(publish.answer[2] > last, "%s: position %d comes behind %d", self.name,
                           publish.answer[2], last)
                    last = publish.answer[2]
        self.doubtful = [publish for line in self.lines for publish in line
                         if publish.key is not None and publish.answer is None]
        self.lines = []

    def expected(self, key):
        """(id, position) that a repeat of KEY gets now, when nothing else is under way."""
        if not self.whole:
            return self.answers.get(key)
        at = self.by_key.get(key)
        return (self.content[at[-1]][0], at[-1]) if at else None


class Consumer:
    """A named consumer. EXPIRES: ack_wait may pass, so that answers may be stale and deliveries
    come again."""

    def __init__(self, channel, name, expires=False):
        self.channel, self.name, self.expires = channel, name, expires
        self.given = set()      # delivered, ever
        self.over = {}          # done with for sure: sequence: why
        self.perhaps = set()    # answered, without having heard that it is stored
        self.rejected = set()   # likewise, for good
        self.life = {}          # sequences of this life: out, deferred, answered
        self.lost = False       # a connection of it ended in this life
        self.began = 0          # the last message when this life began
        self.deliveries = self.again = 0

    def begin(self):
        self.life, self.lost = {}, False
        self.began = self.channel.order[-1] if self.channel.order else 0

    def where(self, sequence):
        return "%s/%d of consumer %s" % (self.channel.name, sequence, self.name)

    def delivered(self, sequence, message, payload, again):
        self.channel.learn(sequence, message, payload, "a delivery to " + self.name)
        demand(sequence not in self.over, "%s was delivered again, and is %s", self.where(sequence),
               self.over.get(sequence))
        state = self.life.get(sequence)
        if state is not None:
            demand(again, "%s was delivered again without the flag", self.where(sequence))
            demand(self.expires or state == "deferred", "%s was delivered again, and is %s",
                   self.where(sequence), state)
        elif again and not self.expires and not self.lost:
            demand(sequence in self.given or sequence <= self.began,
                   "%s has the flag of a redelivery, and comes for the first time",
                   self.where(sequence))
        self.deliveries += 1
        self.again += sequence in self.given
        self.given.add(sequence)
        self.life[sequence] = "out"

    def answered(self, sequences, deferred=False, rejected=False):
        for sequence in sequences:
            self.life[sequence] = "deferred" if deferred else "answered"
            if rejected:
                self.rejected.add(sequence)
            elif not deferred:
                self.perhaps.add(sequence)

    def confirmed(self, sequences, why):
        for sequence in sequences:
            self.over[sequence] = why

    def refused(self, sequences):
        """Their answer could not be stored: they stay outstanding."""
        for sequence in sequences:
            self.life[sequence] = "out"
            self.perhaps.discard(sequence)
            self.rejected.discard(sequence)

    def disconnected(self, outstanding):
        self.lost = True
        for sequence in outstanding:
            if sequence not in self.over:
                self.life[sequence] = "deferred"

    def dead(self, letters):
        """LETTERS: of this consumer, all that a reader of the dead-letter channel has found."""
        for sequence in letters:
            demand(self.over.get(sequence) != "accepted", "%s was accepted for sure, and is a dead "
                   "letter", self.where(sequence))
            self.over[sequence] = "a dead letter"
        for sequence, why in self.over.items():
            demand(why != "rejected", "%s was rejected for sure, and is no dead letter",
                   self.where(sequence))

    def due(self):
        """What must still come."""
        return [sequence for sequence in self.channel.order
                if sequence not in self.over and sequence not in self.perhaps]
