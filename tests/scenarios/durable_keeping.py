"""What durable channels keep, and how consumers that hold messages back are removed."""

from durable import *
from durable_answers import LATE, consumer
from frames import *
from harness import Server, eventually, scenario
from reload import reload

SECTION = "Durable channels: what is kept"
CONSUMERS = "Durable channels: consumers"

# A message counts its payload, its causal context as encoded, and this.
OVERHEAD = 64


def sequences(server, channel, last):
    return [sequence for sequence, _ in server.kept(channel, last)]


@scenario(SECTION, "nothing is removed while no bound is exceeded; without named consumers the "
          "newest are kept")
def newest():
    with Durable({"d": {"max_messages": 3}, "e": {"max_bytes": 0}}) as server:
        server.filled("d", [b"1", b"2", b"3"])
        assert sequences(server, "d", 3) == [1, 2, 3]
        server.filled("d", [b"4", b"5"])
        eventually("two are removed", lambda: sequences(server, "d", 5) == [3, 4, 5])
        server.restart(kill=True)
        eventually("two are removed", lambda: sequences(server, "d", 5) == [3, 4, 5])
        server.filled("e", [b"x"] * 1000)
        assert len(server.kept("e", 1000)) == 1000


@scenario(SECTION, "when_full = refuse, the default: a message that would exceed a bound because "
          "of what a named consumer has not acknowledged gets PublishError \"over-capacity: ...\"")
def refuse():
    with Durable({"d": {"max_messages": 2, **LATE}}) as server:
        client, publisher = consumer(server, start=NEW), server.client("1.1")
        publisher.send(publish(1, "d", b"1"), publish(2, "d", b"2"),
                       publish(3, "d", b"3", key="k"), publish(4, "p", b""))
        publisher.expect(publish_ack(1, 1, DELIVERED, position=1),
                         publish_ack(2, 2, DELIVERED, position=2),
                         publish_error(3, SERVER_ERROR, OVER))
        message = publisher.receive()
        assert message.type == 0x0A and message.stream == 4, message
        delivered(client, 1, 2)
        confirmed(client, accept(1, "1", CONFIRM))
        # The refused one has used up no sequence, and its key is free.
        publisher.publish(3, "d", b"3", key="k")
        assert publisher.position == 3 and not publisher.flags & DUPLICATE
        delivered(client, 3)
        publisher.send(publish(3, "d", b"4"))
        publisher.expect(publish_error(3, SERVER_ERROR, OVER))


@scenario(SECTION, "each message that every named consumer has acknowledged counts as gone, also "
          "behind one that is not; what a consumer did not begin with counts as acknowledged by "
          "it")
def behind():
    with Durable({"d": {"max_messages": 2, **LATE}}) as server:
        publisher = server.filled("d", [b"1"])
        client = consumer(server, start=NEW)
        publisher.publish(1, "d", b"2")
        publisher.publish(1, "d", b"3")
        delivered(client, 2, 3)
        confirmed(client, accept(1, "3", CONFIRM))
        publisher.publish(1, "d", b"4")
        delivered(client, 4)
        publisher.send(publish(1, "d", b"5"))
        publisher.expect(publish_error(1, SERVER_ERROR, OVER))
        # It begins with nothing of what is there: nothing more is held back by it.
        consumer(server, name="v", start=NEW)
        confirmed(client, accept(1, "4", CONFIRM))
        publisher.publish(1, "d", b"5")
        server.restart()
        consumer(server, 2, 5)
        consumer(server, 5, name="v")


@scenario(SECTION, "a consumer that waits for a sequence or a time to come holds nothing back until "
          "then")
def waiting():
    with Durable({"d": {"max_messages": 2}, "e": {"max_messages": 2},
                  "f": {"max_messages": 2}}) as server:
        consumer(server, channel="d", start=SEQUENCE, value=2 ** 64 - 1)
        consumer(server, channel="e", start=TIME, value=2 ** 64 - 1)
        late = consumer(server, channel="f", start=SEQUENCE, value=5)
        for channel in ("d", "e"):
            server.filled(channel, [b"x"] * 10)
            server.filled(channel, [b"y"])
        publisher = server.filled("f", [b"x"] * 6)
        delivered(late, 5, 6)
        publisher.send(publish(1, "f", b"7"))
        publisher.expect(publish_error(1, SERVER_ERROR, OVER))
        server.restart()
        for channel in ("d", "e"):
            server.filled(channel, [b"z"] * 10)


@scenario(SECTION, "however many messages are held in between, those that nobody holds are removed")
def scattered():
    rows, bound = 50, 100
    with Durable({"d": {"max_messages": bound, **LATE}}) as server:
        client, publisher = consumer(server, credit=1000), server.client()
        for n in range(1, 2 * rows, 2):
            # The committer makes a row of each pair.
            publisher.send(publish(1, "d", b"x"), publish(1, "d", b"x"))
            publisher.expect(*[publish_ack(1, i, DELIVERED) for i in (n, n + 1)])
            delivered(client, n, n + 1)
            confirmed(client, accept(1, "%d" % n, CONFIRM))
        last = 2 * rows
        for _ in range(5):
            last += rows
            server.filled("d", [b"y"] * rows)
            delivered(client, *range(last - rows + 1, last + 1))
            confirmed(client, *[accept(1, "%d" % n, CONFIRM)
                                for n in range(last - rows + 1, last + 1)])
        eventually("no more is kept than the bound",
                   lambda: len(server.kept("d", last)) <= bound)
        assert sequences(server, "d", last)[:rows] == list(range(2, 2 * rows + 1, 2))


@scenario(SECTION, "every named consumer must have acknowledged: the slowest holds messages back")
def slowest():
    with Durable({"d": {"max_messages": 1, **LATE}}) as server:
        one, two = consumer(server, name="v", start=NEW), consumer(server, start=NEW)
        publisher = server.client()
        publisher.publish(1, "d", b"1")
        for client in (one, two):
            delivered(client, 1)
        confirmed(one, accept(1, "1", CONFIRM))
        publisher.send(publish(1, "d", b"2"))
        publisher.expect(publish_error(1, SERVER_ERROR, OVER))
        confirmed(two, accept(1, "1", CONFIRM))
        publisher.publish(1, "d", b"2")


@scenario(SECTION, "when_full = discard: the oldest go, consumers skip them, counted per "
          "consumer and logged; an outstanding one is stale from then on, and its credit returns "
          "at once")
def discard():
    with Durable({"d": {"max_messages": 2, "when_full": "discard", **LATE}}, http=True) as server:
        client, publisher = consumer(server, start=NEW, credit=1), server.client()
        publisher.publish(1, "d", b"1")
        delivered(client, 1)
        publisher.publish(1, "d", b"2")
        publisher.publish(1, "d", b"3")
        assert delivered(client, 2, again=False) == [b"2"]
        client.send(accept(1, "1", CONFIRM))
        client.expect(refused(1, "1", STALE))
        server.log("channel=d.*consumer=w|consumer=w.*channel=d")
        eventually("it is counted", lambda: server.metric(
            'liminal_discarded_total{channel="d",consumer="w"}') == 1)
        client.send(accept(1, "2"))
        delivered(client, 3)
        eventually("the rest is there", lambda: sequences(server, "d", 3)[-2:] == [2, 3])


@scenario(SECTION, "max_bytes: a message counts its payload, its causal context as encoded (2 "
          "bytes when independent) and 64 bytes; one larger than max_bytes is over capacity "
          "under both refuse and discard")
def max_bytes():
    bound = 64 * 1024
    channels = {"d": {"max_bytes": "64K"}, "e": {"max_bytes": "64K", "when_full": "discard"}}
    with Durable(channels) as server:
        publisher = server.client("1.1")
        fits = bytes(bound - OVERHEAD - 2)
        for channel in channels:
            publisher.publish(1, channel, fits)
            # A parent of one byte takes 1 + 4 + 1 + 1 bytes.
            publisher.publish(1, channel, fits[5:], parent="x")
            assert publisher.position == 2
            publisher.send(publish(1, channel, fits + b"x"),
                           publish(1, channel, fits[4:], parent="x"))
            publisher.expect(publish_error(1, SERVER_ERROR, OVER),
                             publish_error(1, SERVER_ERROR, OVER))
            eventually("the first is removed", lambda: sequences(server, channel, 2) == [2])
        # Two halves fit, and a byte more does not.
        client = consumer(server, start=NEW)
        half = bytes(bound // 2 - OVERHEAD - 2)
        publisher.publish(1, "d", half)
        publisher.publish(1, "d", half)
        delivered(client, 3, 4)
        publisher.send(publish(1, "d", b""))
        publisher.expect(publish_error(1, SERVER_ERROR, OVER))


@scenario(SECTION, "max_age never refuses: under discard it removes everything, also without "
          "traffic; under refuse only what every consumer has acknowledged")
def max_age():
    with Durable({"d": {"max_age": "100ms", **LATE},
                  "e": {"max_age": "100ms", "when_full": "discard", **LATE}}, http=True) as server:
        clients = {}
        for channel in ("d", "e"):
            clients[channel] = consumer(server, channel=channel, start=NEW)
            server.filled(channel, [b"1", b"2", b"3"])
            delivered(clients[channel], 1, 2, 3)
        confirmed(clients["d"], accept(1, "1", CONFIRM))
        eventually("the first is removed", lambda: server.metric(
            'liminal_channel_first_sequence{channel="d"}') == 2)
        eventually("all are removed", lambda: server.metric(
            'liminal_channel_first_sequence{channel="e"}') == 4)
        assert server.consumers("e")["w"]["lag"] == 0
        assert sequences(server, "d", 3) == [2, 3]
        clients["e"].send(accept(1, "2", CONFIRM))
        clients["e"].expect(refused(1, "2", STALE))
        # The sequences go on, and the position of a channel that is empty outlives a restart.
        server.restart()
        publisher = server.client("1.1")
        publisher.publish(1, "e", b"4")
        assert publisher.position == 4
        assert server.metric('liminal_channel_last_sequence{channel="e"}') == 4


@scenario(SECTION, "a SIGHUP changes the bounds of a durable channel")
def bounds_change():
    with Durable({"d": {"max_messages": 10}}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 9)])
        reload(server, server.config.replace("max_messages = 10", "max_messages = 2"))
        server.filled("d", [b"9"])
        eventually("all but two are removed", lambda: sequences(server, "d", 9) == [8, 9])
        reload(server, server.config.replace("max_messages = 2", "max_messages = 0"))
        server.filled("d", [b"x"] * 10)
        assert len(server.kept("d", 19)) == 12


@scenario("Configuration", "SIGHUP: a new durable channel appears where there is a store; durable, "
          "dead_letter, ordered, state_dir and [store] of what exists need a restart")
def reloaded():
    with Durable() as server:
        text = server.config
        head, _, rest = text.partition("[channel p]")
        lines = reload(server, head + "[store]\ncache_bytes = 1M\n[channel p]\ndurable = yes\n"
                       "[channel new]\ndurable = yes\ndead_letter = d\n"
                       "[channel d]\ndurable = yes\nordered = yes\ndead_letter = p\n"
                       "max_consumers = 1\n[channel waits]\ndurable = yes\ndead_letter = p\n")
        text = "\n".join(line for line in lines if "needs a restart" in line)
        for words in ("cache_bytes", "durable in [channel p]", "ordered in [channel d]",
                      "dead_letter in [channel d]", "[channel waits]"):
            assert words in text, (words, text)
        client = server.client("1.1")
        assert client.publish(1, "new", b"1") == 1 and client.position == 1
        assert client.publish(1, "p", b"2") == 2 and client.position is None
        client.send(publish(1, "waits", b""))
        client.expect(publish_error(1, SERVER_ERROR, "channel 'waits' is not configured"))
        letters = consumer(server, 1, channel="new")
        letters.send(reject(1, "1", flags=CONFIRM))
        letters.expect(reject(1, "1", flags=CONFIRM))
        assert server.kept("d", 1) == [(1, b"1")]
        client.subscribe(1, "d", **named("a", NEW))
        client.send(subscribe(2, "d", **named("b")))
        client.expect(subscribe_error(2, SERVER_ERROR, starts("over-capacity: max_consumers")))
    with Server(channels=("p",)) as server:
        lines = reload(server, server.config.replace("[channel p]", "state_dir = DIR/state\n"
                                                     "[channel d]\ndurable = yes\n[channel p]"))
        text = "\n".join(line for line in lines if "needs a restart" in line)
        assert "state_dir" in text and "[channel d]" in text, text
        client = server.client()
        client.send(publish(1, "d", b""), publish(1, "p", b""))
        client.expect(publish_error(1, SERVER_ERROR, "channel 'd' is not configured"),
                      publish_ack(1, 1))


@scenario(SECTION, "a channel that is no longer configured, or no longer durable, keeps its "
          "data, hidden; it returns with the section")
def hidden():
    with Durable(("d", "e")) as server:
        text = server.config
        server.filled("d", [b"1", b"2"])
        consumer(server, 1, 2).close()
        server.stop()
        server.configure(text.replace("[channel d]\ndurable = yes\n", ""))
        server.start()
        client = server.client()
        client.send(publish(1, "d", b"x"))
        client.expect(publish_error(1, SERVER_ERROR, "channel 'd' is not configured"))
        assert server.consumers() == {}
        server.filled("e", [b"3"])
        server.stop()
        server.configure(text.replace("[channel d]\ndurable = yes\n", "[channel d]\n"))
        server.start()
        client = server.client("1.1")
        client.send(publish(1, "d", b"x"), subscribe(1, "d", **named("w")))
        client.expect(publish_ack(1, 4), subscribe_error(1, SERVER_ERROR, starts("not durable: ")))
        server.stop()
        server.configure(text)
        server.start()
        server.filled("d", [b"4"])
        assert server.kept("d", 3) == [(1, b"1"), (2, b"2"), (3, b"4")]
        consumer(server, 1, 2, 3)


# Consumers

@scenario(CONSUMERS, "$control/consumers: channel, consumer, subscriptions, lag, outstanding, "
          "deferred, idle_since_ms; of all channels or of one", "$control/channels: durable, and "
          "the idempotency keys that are remembered")
def listed():
    with Durable({"d": LATE, "e": {}}, http=True) as server:
        assert server.ask("consumers") == {"consumers": []}
        client = consumer(server, start=NEW)
        consumer(server, channel="e", name="v").close()
        publisher = server.client()
        for key in ("k", "k", "l", None):
            publisher.publish(1, "d", b"x", key=key)
        delivered(client, 1, 2, 3)
        confirmed(client, accept(1, "1", CONFIRM), defer(1, "2", flags=CONFIRM))
        eventually("the other one is idle", lambda: server.consumers("e")["v"][
            "subscriptions"] == 0)
        idle = server.consumers("e")["v"].pop("idle_since_ms")
        assert isinstance(idle, int) and idle > 1600000000000, idle
        assert server.ask("consumers", {"channel": "d"}) == {"consumers": [
            {"channel": "d", "consumer": "w", "subscriptions": 1, "lag": 2, "outstanding": 1,
             "deferred": 1, "idle_since_ms": None}]}
        assert {one["channel"] for one in server.ask("consumers")["consumers"]} == {"d", "e"}
        assert server.metric('liminal_consumer_lag{channel="d",consumer="w"}') == 2
        assert server.metric('liminal_consumer_outstanding{channel="d",consumer="w"}') == 1
        channels = {one["name"]: one for one in server.ask("channels")["channels"]}
        assert channels["d"]["durable"] is True and channels["p"]["durable"] is False
        assert (channels["d"]["dedup_keys"], channels["d"]["publishes"]) == (2, 3)
        server.restart()
        channels = {one["name"]: one for one in server.ask("channels")["channels"]}
        assert channels["d"]["dedup_keys"] == 2, channels
        for question, token in (({"channel": "p"}, "invalid"), ({"channel": "x"}, "not-found"),
                                ({"channel": 1}, "invalid")):
            assert server.ask("consumers", question)["error"].startswith(token + ": ")


@scenario(CONSUMERS, "$control/consumer-rm removes a consumer, on stable storage when it "
          "answers; its live subscriptions end with SubscribeError \"consumer removed: ...\", "
          "and what it held back is free")
def removed():
    with Durable({"d": {"max_messages": 1, **LATE}}) as server:
        one, two = consumer(server, start=NEW, credit=2), consumer(server, start=NEW, credit=1)
        publisher = server.client()
        publisher.publish(1, "d", b"1")
        delivered(one, 1)
        publisher.send(publish(1, "d", b"2"))
        publisher.expect(publish_error(1, SERVER_ERROR, OVER))
        assert server.ask("consumer-rm", {"channel": "d", "consumer": "w"}) == {"ok": True}
        for client in (one, two):
            client.expect(subscribe_error(1, SERVER_ERROR, starts("consumer removed: ")))
            client.expect_nothing()
        publisher.publish(1, "d", b"2")
        one.send(accept(1, "1", CONFIRM))
        one.expect(refused(1, "1", STALE))
        assert server.ask("consumer-rm", {"channel": "d", "consumer": "w"})["error"].startswith(
            "not-found: ")
        # Its name is free, for one that begins anew.
        one.subscribe(1, "d", **named("w", NEW))
        assert server.ask("consumer-rm", {"channel": "d", "consumer": "w"}) == {"ok": True}
        server.restart(kill=True)
        assert server.consumers() == {}
        for question, token in (({"channel": "p", "consumer": "w"}, "invalid"),
                                ({"channel": "x", "consumer": "w"}, "not-found"),
                                ({"channel": "d"}, "invalid"), ({}, "invalid")):
            assert server.ask("consumer-rm", question)["error"].startswith(token + ": ")


@scenario(CONSUMERS, "confirmations asked for before a consumer-rm are still answered, and the "
          "removal does not touch other consumers")
def removed_with_answers():
    with Durable({"d": LATE}) as server:
        client, other = consumer(server, start=NEW), consumer(server, name="v", start=NEW)
        server.filled("d", [b"1", b"2"])
        for one in (client, other):
            delivered(one, 1, 2)
        client.send(accept(1, "1", CONFIRM))
        assert server.ask("consumer-rm", {"channel": "d", "consumer": "w"}) == {"ok": True}
        got = [client.receive().raw for _ in range(2)]
        assert accept(1, "1", CONFIRM) in got, got
        confirmed(other, accept(1, "..2", CONFIRM))
        assert set(server.consumers()) == {"v"}


@scenario(CONSUMERS, "consumer_expiry removes a consumer that had no subscription for so long, "
          "restarts included; not one that has")
def expiry():
    with Durable({"d": {"consumer_expiry": "2s", **LATE}}) as server:
        held, dropped = consumer(server, name="held"), consumer(server, name="dropped")
        dropped.close()
        eventually("the other one is removed", lambda: set(server.consumers()) == {"held"})
        held.expect_nothing()
        held.close()
        eventually("it is idle", lambda: server.consumers().get("held", {"subscriptions": 0})[
            "subscriptions"] == 0)

        def gone():
            """In one of many lives, each of which is shorter than that time."""
            server.restart()
            return any(server.consumers() == {} for _ in range(20))
        eventually("it is removed", gone)
        # After a crash with live ones it counts from the start.
        consumer(server, name="crashed")
        server.restart(kill=True)
        eventually("it is removed", lambda: server.consumers() == {})


@scenario(CONSUMERS, "at most max_consumers per channel: SubscribeError \"over-capacity: "
          "max_consumers ...\"")
def too_many():
    with Durable({"d": {"max_consumers": 2}, "e": {}}) as server:
        client = server.client()
        for stream, name in enumerate(("a", "b"), 1):
            client.subscribe(stream, "d", **named(name))
        client.send(subscribe(3, "d", **named("c")))
        client.expect(subscribe_error(3, SERVER_ERROR, starts("over-capacity: max_consumers")))
        # One that exists, readers and other channels are not concerned.
        client.subscribe(3, "d", **named("a"))
        client.subscribe(4, "d", **reader())
        client.subscribe(5, "e", **named("c"))
        server.restart()
        client = server.client()
        client.send(subscribe(3, "d", **named("c")))
        client.expect(subscribe_error(3, SERVER_ERROR, starts("over-capacity: max_consumers")))
        server.ask("consumer-rm", {"channel": "d", "consumer": "a"})
        client.subscribe(3, "d", **named("c"))
