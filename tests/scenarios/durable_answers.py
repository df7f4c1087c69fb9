"""Answers of named consumers: Accept, Defer, Reject, their confirmations, redelivery, dead letters.

What must not come by itself is due in 30 days; what must come is due in 10 ms.
"""

import signal

from drain import BRISK, PATIENT, drain
from durable import *
from frames import *
from harness import eventually, scenario

SECTION = "Durable channels: answers of a consumer"
DEAD = "Durable channels: dead letters"
SOON = {"redelivery_delay": "10ms", "redelivery_delay_max": "10ms"}
LATE = {"redelivery_delay": NEVER, "redelivery_delay_max": NEVER, "ack_wait": NEVER}


def consumer(server, *sequences, name="w", channel="d", credit=32, start=ALL, value=0,
             again=None, version="1.0"):
    """A client with that consumer's subscription on stream 1, which has got these deliveries."""
    client = server.client(version)
    client.subscribe(1, channel, max_in_flight=credit, **named(name, start, value))
    delivered(client, *sequences, again=again)
    return client


# What they mean

@scenario(SECTION, "Accept N: done with N; Accept ..N: done with every outstanding delivery of "
          "this subscription up to and including N")
def accepts():
    with Durable({"d": LATE}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 10)])
        client = consumer(server, *range(1, 10))
        confirmed(client, accept(1, "2", CONFIRM), accept(1, "..4", CONFIRM),
                  accept(1, "7", CONFIRM), accept(1, "..6", CONFIRM))
        server.restart(kill=True)
        consumer(server, 8, 9)


@scenario(SECTION, "Accept ..N is of one subscription: what another one of the consumer has is "
          "still outstanding")
def accepts_of_one_subscription():
    with Durable({"d": LATE}) as server:
        one, two = consumer(server, start=NEW), consumer(server, start=NEW)
        publisher = server.client()
        for n in range(1, 5):
            publisher.publish(1, "d", b"%d" % n)
        got = {client: [client.receive().u64() for _ in range(2)] for client in (one, two)}
        assert sorted(got[one] + got[two]) == [1, 2, 3, 4]
        confirmed(one, accept(1, "..4", CONFIRM))
        assert server.consumers()["w"]["outstanding"] == 2
        confirmed(two, *[accept(1, "%d" % n, CONFIRM) for n in got[two]])
        assert server.consumers()["w"]["lag"] == 0


@scenario(SECTION, "Defer N: it is delivered again, with flag 0x80, after redelivery_delay, at "
          "most redelivery_delay_max")
def defers():
    with Durable({"d": SOON, "e": {"redelivery_delay": NEVER, "redelivery_delay_max": "10ms"}},
                 http=True) as server:
        for channel in ("d", "e"):
            server.filled(channel, [b"1", b"2"])
            client = consumer(server, 1, 2, channel=channel, again=False)
            for _ in range(5):
                client.send(defer(1, "1", "not now"))
                delivered(client, 1, again=True)
            confirmed(client, accept(1, "1", CONFIRM), accept(1, "2", CONFIRM))
            assert server.metric('liminal_redeliveries_total{channel="%s",consumer="w"}' %
                                 channel) == 5


@scenario(SECTION, "the delay is redelivery_delay for the first attempt, and doubles with each")
def delays_double():
    with Durable({"d": {"redelivery_delay": "300ms", "redelivery_delay_max": NEVER}}) as server:
        server.filled("d", [b"1", b"2"])
        client = consumer(server, 1, 2)
        for _ in range(2):
            client.send(defer(1, "1"))
            delivered(client, 1, again=True)
        # Deferred before the other one, and due after it.
        client.send(defer(1, "1"), defer(1, "2"))
        delivered(client, 2, 1, again=True)


@scenario(SECTION, "where a token is configured, answers are ignored before a successful Connect")
def before_connect():
    with Durable(auth={"token": "secret"}, control=False) as server:
        client = server.raw()
        client.send(accept(1, "1", CONFIRM), defer(1, "1", flags=CONFIRM),
                    reject(1, "1", flags=CONFIRM), ping())
        client.expect(pong())
        client.send(connect("1.0", token=b"secret"), accept(1, "1", CONFIRM))
        client.expect(connect_ack("1.0", DURABLE), refused(1, "1", STALE))


@scenario(SECTION, "other messages of the consumer go on while one is deferred")
def others_go_on():
    with Durable({"d": LATE}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 6)])
        client = consumer(server, 1, credit=1)
        for n in range(1, 5):
            client.send(defer(1, "%d" % n))
            delivered(client, n + 1)
        confirmed(client, accept(1, "5", CONFIRM))
        found = server.consumers()["w"]
        assert (found["deferred"], found["outstanding"], found["lag"]) == (4, 0, 4), found


@scenario(SECTION, "while max_deferred messages wait for their redelivery, nothing new is "
          "delivered")
def max_deferred():
    with Durable({"d": {**LATE, "max_deferred": 2}}) as server:
        publisher = server.filled("d", [b"%d" % n for n in range(1, 5)])
        client = consumer(server, 1, credit=1)
        client.send(defer(1, "1"))
        delivered(client, 2)
        confirmed(client, defer(1, "2", flags=CONFIRM))
        publisher.publish(1, "d", b"5")
        client.expect_nothing()
        assert server.consumers()["w"]["deferred"] == 2


@scenario(SECTION, "after a restart deferred messages are due at once, in front of new ones")
def deferred_at_restart():
    with Durable({"d": LATE}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 6)])
        client = consumer(server, 1, 2, 3, credit=3)
        client.send(accept(1, "1"), defer(1, "3"), defer(1, "2"))
        delivered(client, 4, 5)
        client.send(accept(1, "4"))
        server.restart()
        server.filled("d", [b"6"])
        client = consumer(server, credit=4)
        due = [client.receive() for _ in range(3)]
        assert sorted((one.u64(), one.flags) for one in due) == [(2, 0x80), (3, 0x80), (5, 0x80)]
        delivered(client, 6, again=False)


@scenario(SECTION, "Defer N with flag 0x40: still working, ack_wait of N starts afresh")
def still_working():
    with Durable({"d": {"ack_wait": "3s", **SOON}}) as server:
        server.filled("d", [b"1", b"2"])
        client = consumer(server, 1, 2)
        # Until the other one has expired, which was delivered at the same time.
        while True:
            client.send(defer(1, "1", flags=WORKS), ping())
            got = client.receive_until(pong())
            if got:
                break
        assert [(one.u64(), one.flags) for one in got] == [(2, 0x80)], got
        confirmed(client, defer(1, "1", flags=WORKS | CONFIRM), accept(1, "1", CONFIRM))


@scenario(SECTION, "no answer within ack_wait: delivered again at once, to any subscription of "
          "the consumer")
def expires():
    with Durable({"d": {"ack_wait": "100ms"}}) as server:
        server.filled("d", [b"1"])
        one = consumer(server, 1, credit=1, again=False)
        delivered(one, 1, again=True)
        two = consumer(server, credit=1)
        three = consumer(server, credit=1)
        seen = set()
        # Each has it now and then; nobody answers.
        for client in (two, three):
            got = client.receive()
            assert (got.u64(), got.flags) == (1, 0x80), got
            seen.add(client)
        assert len(seen) == 2


@scenario(SECTION, "the connection ends: its outstanding deliveries are available to the "
          "consumer's other subscriptions at once, in front of new ones, with flag 0x80")
def connection_lost():
    with Durable({"d": LATE}) as server:
        for end in ("close", "reset", "half_close", "disconnect"):
            channel, name = "d", end.replace("_", "-")
            one = consumer(server, name=name, start=NEW, credit=3)
            publisher = server.client("1.1")
            publisher.publish(1, channel, b"x")
            first = publisher.position
            delivered(one, first)
            publisher.publish(1, channel, b"x")
            publisher.publish(1, channel, b"x")
            delivered(one, first + 1, first + 2)
            publisher.publish(1, channel, b"new")
            two = consumer(server, first + 3, name=name, credit=1, again=False)
            publisher.publish(1, channel, b"newer")
            if end == "disconnect":
                one.send(accept(1, "%d" % (first + 1)), disconnect())
            else:
                one.send(accept(1, "%d" % (first + 1)))
                one.arrived()
                getattr(one, end)()
            # One after the other: it has credit for one.
            two.send(accept(1, "%d" % (first + 3)))
            if end in ("half_close", "disconnect"):
                one.receive_all()
            eventually("it is alone", lambda: server.consumers()[name]["subscriptions"] == 1)
            expected = [first, first + 2, first + 4]
            got = []
            while len(got) < 3:
                one_more = two.receive()
                got.append(one_more.u64())
                two.send(accept(1, "%d" % got[-1]))
            assert sorted(got) == expected, (end, got)
            two.close()


@scenario(SECTION, "Unsubscribe: the outstanding deliveries are available to the consumer's "
          "other subscriptions at once")
def unsubscribed():
    with Durable({"d": LATE}) as server:
        server.filled("d", [b"1", b"2"])
        one = server.client()
        number = one.subscribe(1, "d", **named("w"))
        delivered(one, 1, 2, again=False)
        two = consumer(server)
        one.send(unsubscribe(1, number))
        delivered(two, 1, 2, again=True)
        confirmed(two, accept(1, "..2", CONFIRM))


@scenario(SECTION, "deliveries that are due again go before new ones")
def due_before_new():
    with Durable({"d": LATE}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 8)])
        one = consumer(server, 1, 2, 3, 4, credit=4)
        one.send(accept(1, "2"))
        delivered(one, 5)
        one.close()
        eventually("it is gone", lambda: server.consumers()["w"]["subscriptions"] == 0)
        two = consumer(server, 1, 3, 4, 5, again=True)
        delivered(two, 6, 7, again=False)


@scenario(SECTION, "with ordered = yes a consumer has at most one delivery outstanding or "
          "deferred, and nothing overtakes it")
def ordered():
    with Durable({"d": {"ordered": "yes", **SOON}, "e": {"ordered": "yes", **LATE}}) as server:
        for channel in ("d", "e"):
            server.filled(channel, [b"1", b"2", b"3"])
            one = consumer(server, 1, channel=channel, again=False)
            two = consumer(server, channel=channel)
            one.expect_nothing()
            two.expect_nothing()
            if channel == "e":
                confirmed(one, defer(1, "1", flags=CONFIRM))
                one.expect_nothing()
                two.expect_nothing()
                continue
            two.close()
            eventually("it is alone", lambda: server.consumers("d")["w"]["subscriptions"] == 1)
            for n in (1, 2):
                one.send(defer(1, "%d" % n))
                delivered(one, n, again=True)
                one.send(accept(1, "%d" % n))
                delivered(one, n + 1, again=False)


# Confirmations

@scenario(SECTION, "an answer with flag 0x80 is confirmed once it is on stable storage: the same "
          "frame comes back, without a reason")
def confirmations():
    with Durable({"d": LATE}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 6)])
        client = consumer(server, 1, 2, 3, 4, 5)
        client.send(defer(1, "1", "still", flags=CONFIRM | WORKS),
                    accept(1, "2", CONFIRM), defer(1, "3", "later", flags=CONFIRM),
                    reject(1, "4", "never", flags=CONFIRM), accept(1, "..5", CONFIRM))
        client.expect(defer(1, "1", flags=CONFIRM | WORKS), accept(1, "2", CONFIRM),
                      defer(1, "3", flags=CONFIRM), reject(1, "4", flags=CONFIRM),
                      accept(1, "..5", CONFIRM))
        server.restart(kill=True)
        client = consumer(server, 3)
        confirmed(client, accept(1, "3", CONFIRM))
        assert server.consumers()["w"]["lag"] == 0


@scenario(SECTION, "confirmations of one subscription keep the order of their requests, refused "
          "ones among them; deliveries may come between")
def confirmation_order():
    with Durable({"d": SOON}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 101)])
        client = consumer(server, *range(1, 51), credit=50)
        answers, expected = [], []
        for n in range(1, 51):
            if n % 5 == 0:
                one = defer(1, "%d" % n, flags=CONFIRM | WORKS)
            elif n % 7 == 0:
                one = reject(1, "%d" % n, flags=CONFIRM)
            else:
                one = accept(1, "%d" % n, CONFIRM)
            answers.append(one)
            expected.append(one)
            if n % 3 == 0:
                answers.append(accept(1, "999", CONFIRM))
                expected.append(refused(1, "999", STALE))
        client.send(*answers)
        for one in expected:
            got = client.receive()
            while got.type == 0x19:
                got = client.receive()
            assert one.matches(got) if hasattr(one, "matches") else got.raw == one, (one, got)


@scenario(SECTION, "without flag 0x80 there is no confirmation")
def unconfirmed():
    with Durable({"d": LATE}) as server:
        server.filled("d", [b"1", b"2", b"3", b"4"])
        client = consumer(server, 1, 2, 3, 4)
        client.send(accept(1, "1"), reject(1, "2", "no"), defer(1, "3", flags=WORKS),
                    defer(1, "3"), accept(1, "7"), accept(1, "x"))
        confirmed(client, accept(1, "4", CONFIRM))
        client.expect_nothing()


@scenario(SECTION, "\"stale: ...\" for what was not outstanding: a second answer, ..N with "
          "nothing outstanding up to N, an id of another form, a Defer or Reject ..N, any answer "
          "on a reader", "without flag 0x80 such answers are ignored and counted")
def stale():
    with Durable({"d": LATE}, http=True) as server:
        server.filled("d", [b"1", b"2", b"3"])
        client = consumer(server, 1, 2, 3)
        confirmed(client, accept(1, "1", CONFIRM))
        ids = ["1", "4", "..1", "0", "..0", "", "..", "02", "..02", "-2", "+2", " 2", "2 ", "2x",
               "0x2", "2.", "...2", "18446744073709551616", "18446744073709551618", "..x",
               "\u0662", "2\0"]
        for message in ids:
            client.send(accept(1, message, CONFIRM))
            client.expect(refused(1, message, STALE))
        for message in ["..3"] + ids:
            for kind in (defer, reject):
                client.send(kind(1, message, "why", flags=CONFIRM))
                client.expect(refused(1, message, STALE))
            client.send(defer(1, message, flags=CONFIRM | WORKS))
            got = client.receive()
            assert got.type == 0x12 and got.flags & 0x80, got
        before = server.metric('liminal_stale_answers_total{channel="d"}')
        client.send(*[accept(1, message) for message in ids])
        # Nothing was touched by any of these; and no answer came to them.
        confirmed(client, accept(1, "2", CONFIRM), accept(1, "3", CONFIRM))
        assert server.metric('liminal_stale_answers_total{channel="d"}') == before + len(ids)
        again = server.client()
        again.subscribe(2, "d", **reader(ALL))
        delivered(again, 1, 2, 3)
        for kind, message in ((accept, "1"), (accept, "..3"), (defer, "1"), (reject, "2")):
            again.send(kind(2, message, flags=CONFIRM))
            again.expect(refused(2, message, STALE))


@scenario(SECTION, "on a stream without a durable subscription the answer to a confirmation that "
          "is asked for is \"stale: ...\"")
def stale_streams():
    with Durable() as server:
        client = server.client()
        client.subscribe(1, "p")
        client.subscribe(2, "d")
        for stream in (1, 2, 3, 4000000000):
            for kind in (accept, defer, reject):
                client.send(kind(stream, "1", flags=CONFIRM))
                client.expect(refused(stream, "1", STALE))
                client.send(kind(stream, "1"))
        client.expect_nothing()


@scenario(SECTION, "an answer on another subscription of the consumer than the one that has the "
          "delivery is stale")
def stale_elsewhere():
    with Durable({"d": LATE}) as server:
        server.filled("d", [b"1"])
        one = consumer(server, 1)
        two = consumer(server)
        two.send(accept(1, "1", CONFIRM))
        two.expect(refused(1, "1", STALE))
        confirmed(one, accept(1, "1", CONFIRM))


@scenario(SECTION, "confirmations asked for before an Unsubscribe, a half-close or a Disconnect "
          "are still answered")
def confirmed_at_the_end():
    with Durable({"d": LATE}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 7)])
        client = server.client()
        number = client.subscribe(1, "d", **named("w"))
        delivered(client, *range(1, 7))
        client.send(accept(1, "1", CONFIRM), reject(1, "2", flags=CONFIRM), unsubscribe(1, number),
                    accept(1, "3", CONFIRM))
        got = [client.receive() for _ in range(3)]
        raw = [one.raw for one in got]
        # The last is of no subscription any more, and need not wait for the others.
        assert raw.index(accept(1, "1", CONFIRM)) < raw.index(reject(1, "2", flags=CONFIRM))
        assert sum(refused(1, "3", STALE).matches(one) for one in got) == 1, got
        for end in (lambda: client.half_close(), lambda: client.send(disconnect())):
            client = server.client()
            client.subscribe(1, "d", max_in_flight=1, **named("w"))
            sequence = client.receive().u64()
            client.send(accept(1, "%d" % sequence, CONFIRM))
            end()
            got = client.receive_all()
            assert accept(1, "%d" % sequence, CONFIRM) in [one.raw for one in got], got
        assert server.consumers()["w"]["lag"] == 2


@scenario(SECTION, "a clean stop stores every answer received; while the server drains, answers "
          "count, and publishes are answered")
def draining():
    with Durable({"d": LATE}, server=PATIENT) as server:
        server.filled("d", [b"%d" % n for n in range(1, 6)])
        client, publisher = consumer(server, 1, 2, 3, 4, 5), server.client("1.1")
        client.send(accept(1, "1"))
        drain(server)
        client.expect(disconnect())
        client.send(accept(1, "2"), accept(1, "3", CONFIRM))
        client.expect(accept(1, "3", CONFIRM))
        publisher.send(publish(1, "d", b"6"), disconnect())
        publisher.expect(publish_ack(1, 6, DELIVERED, position=6))
        client.expect(deliver(1, 6, b"6"))
        client.send(accept(1, "5"))
        client.expect_nothing()
        server.signal(signal.SIGTERM)
        server.wait_exit(0)
        server.start()
        client = server.client()
        client.subscribe(1, "d", **named("w"))
        delivered(client, 4, 6, again=True)


@scenario(SECTION, "while the server drains, a connection with deliveries outstanding is not idle")
def draining_with_outstanding():
    with Durable({"d": LATE}, server=BRISK) as server:
        server.filled("d", [b"1"])
        client, idle = consumer(server, 1), consumer(server, name="v", start=NEW)
        drain(server)
        idle.expect(disconnect())
        idle.expect_end()
        client.expect(disconnect())
        confirmed(client, accept(1, "1", CONFIRM))
        client.expect_end()
        server.wait_exit(0)


# Dead letters

LETTERS = {"dead": {}, "d": {"dead_letter": "dead", "max_attempts": 2, **SOON}}


def dead(server, **request):
    found = server.ask("dead", {"channel": "dead", **request})["dead"]
    return [(one["sequence"], one["origin"], one["consumer"], one["reason"], one["attempts"],
             one["text"]) for one in found]


@scenario(DEAD, "Reject N: to the dead-letter channel at once; consumer, reason, attempts and "
          "the Reject's text, 1024 bytes at most, are stored with it ($control/dead)")
def rejected():
    with Durable({**LETTERS, "d": {**LETTERS["d"], "max_attempts": 0}}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 5)])
        client = consumer(server, 1, 2, 3, 4)
        long = "\u00e9" * 600
        client.send(defer(1, "2"))
        delivered(client, 2, again=True)
        confirmed_with(client, reject(1, "1", "bad input", flags=CONFIRM), reject(1, "1",
                                                                              flags=CONFIRM))
        confirmed_with(client, reject(1, "2", "", flags=CONFIRM), reject(1, "2", flags=CONFIRM))
        confirmed_with(client, reject(1, "4", long, flags=CONFIRM), reject(1, "4", flags=CONFIRM))
        confirmed_with(client, reject(1, "3", None, flags=CONFIRM), reject(1, "3", flags=CONFIRM))
        assert server.consumers("d")["w"]["lag"] == 0
        for kill in (None, True, False):
            if kill is not None:
                server.restart(kill=kill)
            assert server.kept("dead", 4) == [(1, b"1"), (2, b"2"), (3, b"4"), (4, b"3")]
            assert dead(server) == [
                (1, "d/1", "w", "rejected", 1, "bad input"), (2, "d/2", "w", "rejected", 2, ""),
                (3, "d/4", "w", "rejected", 1, long[:512]), (4, "d/3", "w", "rejected", 1, "")]
            assert dead(server, **{"from": 2, "count": 2}) == dead(server)[1:3]
            assert dead(server, **{"from": 5}) == []


def confirmed_with(client, answer, confirmation):
    client.send(answer)
    client.expect(confirmation)


@scenario(DEAD, "a dead letter keeps payload, message id and the schema id of its source "
          "channel, also when delivered; its causal context is the parent CHANNEL/SEQUENCE")
def contents():
    document = b'{"type": "object"}'
    with Durable({"dead": {}, "d": {"dead_letter": "dead", "schema": "DIR/schema.json"}},
                 files={"schema.json": document}) as server:
        client = server.client()
        client.publish(1, "p", b"")
        client.publish(1, "d", b"payload", parent="the parent", clock=9)
        live, plain = server.client("1.2"), server.client("1.2")
        live.send(subscribe(1, "dead", **named("v")))
        live.expect(subscribe_ack(1, 1, schema=NO_SCHEMA))
        plain.subscribe(1, "dead")
        client = server.client()
        client.send(subscribe(1, "d", **named("w")))
        client.expect(subscribe_ack(1, 3, schema=schema_id(document)))
        delivered(client, 1)
        confirmed(client, reject(1, "1", flags=CONFIRM))
        got = plain.receive()
        boot = got.u64(len(got.payload) - 16)
        letter = deliver(1, 1, b"payload", boot=boot, message=2, schema=schema_id(document),
                         parent="d/1")
        assert got.raw == letter, got
        live.expect(letter)
        server.restart(kill=True)
        late = server.client("1.2")
        late.subscribe(1, "dead", **reader(ALL))
        late.expect(letter)
        # The id was not used up by the move.
        assert late.publish(2, "p", b"") > 2


@scenario(DEAD, "max_attempts: when the last delivery is deferred, expires or is lost, the "
          "message goes to dead_letter without delay; attempts are stored with the position")
def attempts():
    channels = {"dead": {}, "d": {"dead_letter": "dead", "max_attempts": 2, **LATE,
                                  "redelivery_delay_max": "10ms"},
                "e": {"dead_letter": "dead", "max_attempts": 1, "ack_wait": "50ms"}}
    with Durable(channels) as server:
        server.filled("d", [b"1", b"2"])
        client = consumer(server, 1, 2, again=False)
        client.send(defer(1, "1"))
        delivered(client, 1, again=True)
        confirmed(client, defer(1, "1", flags=CONFIRM))
        eventually("it is given up", lambda: len(dead(server)) == 1)
        assert dead(server) == [(1, "d/1", "w", "attempts", 2, "")]
        # The first attempt is remembered over a restart, the second is lost with its connection.
        server.restart()
        client = consumer(server, 2, again=True)
        client.close()
        eventually("it is given up", lambda: len(dead(server)) == 2)
        assert dead(server)[1] == (2, "d/2", "w", "attempts", 2, "")
        server.filled("e", [b"3"])
        client = consumer(server, 1, channel="e", again=False)
        eventually("it is given up", lambda: len(dead(server)) == 3)
        assert dead(server)[2] == (3, "e/1", "w", "attempts", 1, "")
        client.send(accept(1, "1", CONFIRM))
        client.expect(refused(1, "1", STALE))
        assert [payload for _, payload in server.kept("dead", 3)] == [b"1", b"2", b"3"]


@scenario(DEAD, "one per consumer that gave up, each logged and counted with the reason")
def one_each():
    with Durable(LETTERS, http=True) as server:
        server.filled("d", [b"1"])
        for number, name in enumerate(("v", "w"), 1):
            client = consumer(server, 1, name=name)
            confirmed(client, reject(1, "1", flags=CONFIRM))
            assert [one[2] for one in dead(server)] == ["v", "w"][:number]
            server.log("channel=d .*consumer=%s .*reason=rejected" % name)
            series = 'liminal_dead_letters_total{channel="d",consumer="%s",reason="%s"}'
            assert server.metric(series % (name, "rejected")) == 1
            assert server.metric(series % (name, "attempts")) == 0


@scenario(DEAD, "without dead_letter the message is discarded, logged and counted, with the "
          "reason")
def without_dead_letter():
    with Durable({"d": {"max_attempts": 1, **SOON}}, http=True) as server:
        server.filled("d", [b"1", b"2", b"3"])
        client = consumer(server, 1, 2, 3)
        confirmed(client, reject(1, "1", flags=CONFIRM), defer(1, "3", flags=CONFIRM))
        server.log("level=(warning|notice).*channel=d")
        eventually("both are gone", lambda: server.consumers()["w"]["lag"] == 1)
        assert server.consumers()["w"]["deferred"] == 0
        for reason in ("rejected", "attempts"):
            assert server.metric('liminal_dead_letters_total{channel="d",consumer="w",reason="%s"}'
                                 % reason) == 1


@scenario(DEAD, "the dead-letter channel is full: the message counts as deferred, is not "
          "delivered again, and the move alone is tried again; a Reject that asked for a "
          "confirmation is refused with \"over-capacity: ...\"")
def dead_letter_full():
    with Durable({"dead": {"max_messages": 1}, "d": {"dead_letter": "dead", **SOON}}) as server:
        holder = consumer(server, name="h", channel="dead", start=NEW)
        server.filled("d", [b"1", b"2", b"3"])
        client = consumer(server, 1, 2, 3)
        confirmed(client, reject(1, "1", flags=CONFIRM))
        delivered(holder, 1)
        client.send(reject(1, "2", "no", flags=CONFIRM))
        client.expect(refused(1, "2", OVER))

        def state():
            found = server.consumers("d")["w"]
            return found["deferred"], found["outstanding"], found["lag"]
        eventually("it counts as deferred", lambda: state() == (1, 1, 2))
        client.expect_nothing()
        holder.send(accept(1, "1"))
        assert delivered(holder, 2) == [b"2"]
        eventually("it has been moved", lambda: server.consumers("d")["w"]["lag"] == 1)
        assert [one[1:] for one in dead(server, **{"from": 2})] == \
            [("d/2", "w", "rejected", 1, "no")]
        confirmed(client, accept(1, "3", CONFIRM))
        client.expect_nothing()


@scenario(DEAD, "a dead letter that can never fit is discarded and logged")
def dead_letter_too_large():
    with Durable({"dead": {"max_bytes": "64K"}, "d": {"dead_letter": "dead", **SOON}}) as server:
        server.filled("d", [bytes(100000), b"2"])
        client = consumer(server, 1, 2)
        client.send(reject(1, "1", flags=CONFIRM), reject(1, "2", flags=CONFIRM))
        got = [client.receive() for _ in range(2)]
        assert got[1].raw == reject(1, "2", flags=CONFIRM), got
        server.log("level=(warning|error|notice).*channel=d")
        assert server.consumers("d")["w"]["lag"] == 0
        assert server.kept("dead", 1) == [(1, b"2")]


@scenario(DEAD, "plain subscriptions see dead letters and what is published among them in the order "
          "of the channel")
def order():
    rounds = 50
    with Durable(LETTERS) as server:
        plain, publisher = server.client("1.2"), server.client()
        plain.subscribe(1, "dead")
        server.filled("d", [b"d"] * rounds)
        client = consumer(server, *range(1, rounds + 1), credit=rounds)
        for n in range(1, rounds + 1):
            client.send(reject(1, "%d" % n))
            publisher.send(publish(1, "dead", b"p"))
        got = [payload_of(plain.receive()) for _ in range(2 * rounds)]
        assert got == [payload for _, payload in server.kept("dead", 2 * rounds)]


@scenario(DEAD, "dead letters may go on to a further dead-letter channel")
def chain():
    with Durable({"last": {}, "dead": {"dead_letter": "last"}, "d": {"dead_letter": "dead"}}) \
            as server:
        server.filled("d", [b"1"])
        confirmed(consumer(server, 1), reject(1, "1", flags=CONFIRM))
        confirmed_with(consumer(server, 1, channel="dead", name="v"),
                       reject(1, "1", "twice", flags=CONFIRM), reject(1, "1", flags=CONFIRM))
        found = server.ask("dead", {"channel": "last"})["dead"]
        assert [(one["origin"], one["consumer"], one["text"]) for one in found] == \
            [("dead/1", "v", "twice")], found
