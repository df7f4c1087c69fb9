"""Addresses: subjects that start with $, which are open to the control socket only."""

import json
import os
import re
import socket
import stat
import time

from conversations import LOST, NOT_OPEN, TIMEOUT, opened, pushed, worker
from frames import *
from harness import Server, eventually, scenario
from workers import leave, who

NOT_PERMITTED = starts("not-permitted: ")
NOT_FOUND = starts("not-found: ")


def connections(server):
    """What the server says about each connection, by peer."""
    return {one["peer"]: one for one in server.ask("connections")["connections"]}


def id_of(server, client):
    return connections(server)[client.name]["id"]


def addressed(server, subject, conversation=1):
    """A connection of the control socket with a conversation open, on stream 3."""
    control = server.control()
    control.send(conversation_open(3, conversation, subject))
    control.expect_nothing()
    return control


def tell(server, subject, text):
    """The object in the reply to TEXT."""
    control = addressed(server, subject)
    control.send(request(3, 1, text))
    got = control.receive()
    control.send(disconnect())
    control.expect_end()
    found = payload_of(got)
    assert got.raw == reply(3, 1, found), got
    return json.loads(found)


def has(found, **shape):
    """FOUND has these keys, with values of these types, or one of several in a tuple; bool is no
    number."""
    for key, types in shape.items():
        types = types if isinstance(types, tuple) else (types,)
        assert key in found, "no %s in %s" % (key, found)
        assert type(found[key]) in types, "%s in %s" % (key, found)
    return found


def is_refusal(found, token):
    assert list(found) == ["error"] and re.match(token + ": .", found["error"]), found


# To whom they are open

@scenario("Addresses", "every `$` subject is \"not-permitted: ...\" for connections that do not "
          "come over the control socket, whether it exists or not", client=True)
def not_permitted():
    with Server(control=True) as server:
        client = worker(server)
        number = id_of(server, client)
        for subject in ("$connection/%d" % number, "$worker/w", "$control/ping", "$control/drain",
                        "$", "$nobody", "$control"):
            client.send(conversation_open(3, 1, subject), conversation_message(4, 1, b""))
            client.expect(conversation_error(3, 1, SERVER_ERROR, NOT_PERMITTED),
                          conversation_error(4, 1, SERVER_ERROR, NOT_OPEN))
        client.expect_nothing()


@scenario("Addresses", "they are not open over a Unix socket for clients either")
def not_permitted_on_a_unix_socket():
    with Server(server={"listen": "DIR/bus"}) as server:
        client = server.client()
        client.send(conversation_open(3, 1, "$control/ping"))
        client.expect(conversation_error(3, 1, SERVER_ERROR, NOT_PERMITTED))


@scenario("Addresses", "a subject that has a $ elsewhere is an ordinary one")
def dollar_elsewhere():
    with Server() as server:
        client = opened(server, 1, subject="control/$ping")
        client.send(request(3, 1, b"x"))
        client.expect(reply(3, 1, b"x"))


@scenario("Addresses", "the control socket has mode 0600; over it no token is needed, and all "
          "frames are allowed")
def control_socket():
    with Server(control=True, auth={"token": "secret"}) as server:
        mode = os.stat(server.control_path).st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600, oct(mode)
        control = server.raw(path=server.control_path)
        control.send(ping(), subscribe(2, "events"), publish(4, "events", b"x"),
                     worker_register("jobs"), conversation_open(3, 1, "$control/ping"),
                     request(3, 1, b""))
        control.expect(pong(), subscribe_ack(2, 1), publish_ack(4, 1, DELIVERED),
                       deliver(2, 1, b"x"), worker_register_ack(), reply(3, 1, b'{"ok":true}'))
        control.send(connect("1.2", token=b"wrong"))
        control.expect(connect_ack("1.2"))
        client = server.client(token=b"secret")
        client.send(conversation_open(3, 1, "jobs"), request(3, 1, b"job"))
        control.send(push_reply(1, pushed(control, b"job"), b"done"))
        client.expect(reply(3, 1, b"done"))


@scenario("Addresses", "over the control socket other subjects are what they are everywhere")
def ordinary_subjects_over_control():
    with Server(control=True) as server:
        control = addressed(server, "nobody")
        control.send(request(3, 1, b"x"))
        control.expect(reply(3, 1, b"x"))


# Addresses that nobody has

@scenario("Addresses", "one that nobody has: \"not-found: ...\" at ConversationOpen")
def not_found():
    with Server(control=True, conversations={"no_worker": "wait"}) as server:
        worker(server, identity="w")
        control = server.control()
        for subject in ("$", "$nobody", "$connection", "$connection/", "$connection/999999",
                        "$connection/0", "$connection/-1", "$connection/1x", "$connection/x",
                        "$connection/18446744073709551616", "$worker", "$worker/", "$worker/x",
                        "$worker/jobs", "$Worker/w", "$control", "$control/", "$control/nothing",
                        "$control/ping/", "$control/Ping", "$" * 1024):
            control.send(conversation_open(3, 1, subject))
            control.expect(conversation_error(3, 1, SERVER_ERROR, NOT_FOUND))
            control.send(conversation_message(4, 1, b""))
            control.expect(conversation_error(4, 1, SERVER_ERROR, NOT_OPEN))


@scenario("Addresses", "one that has gone away since: \"not-found: ...\" at the next message, "
          "whatever no_worker says")
def gone_since():
    for no_worker in ("echo", "error", "wait"):
        with Server(control=True, conversations={"no_worker": no_worker}) as server:
            client, jobs, control = server.client(), worker(server, identity="w"), server.control()
            control.send(conversation_open(3, 1, "$connection/%d" % id_of(server, client)),
                         conversation_open(3, 2, "$worker/w"))
            control.expect_nothing()
            for one in (client, jobs):
                one.close()
                server.closed(one)
            for flags in (0x01, 0x00):
                for conversation in (1, 2):
                    control.send(conversation_message(3, conversation, b"x", flags=flags), ping())
                    control.expect(conversation_error(3, conversation, SERVER_ERROR, NOT_FOUND),
                                   pong())


@scenario("Addresses", "a push to an address is lost when its connection ends, and the next "
          "message gets \"not-found: ...\"")
def lost_and_gone():
    with Server(control=True) as server:
        client, jobs, control = server.client(), worker(server, identity="w"), server.control()
        for conversation, subject, target in (
                (1, "$connection/%d" % id_of(server, client), client), (2, "$worker/w", jobs)):
            control.send(conversation_open(3, conversation, subject),
                         request(3, conversation, b"x"))
            pushed(target, b"x")
            target.close()
            control.expect(conversation_error(3, conversation, SERVER_ERROR, LOST))
            server.closed(target)
            control.send(request(3, conversation, b"y"))
            control.expect(conversation_error(3, conversation, SERVER_ERROR, NOT_FOUND))


# $connection and $worker

@scenario("Addresses", "$connection/ID: the connection with that id, worker or not, by Push")
def connection_address():
    with Server(control=True) as server:
        client, other, jobs = server.client(), server.client(), worker(server)
        control = server.control()
        for conversation, target in enumerate((client, other, jobs), 1):
            control.send(conversation_open(3, conversation,
                                           "$connection/%d" % id_of(server, target)),
                         request(3, conversation, b"to %d" % conversation))
            target.send(push_reply(1, pushed(target, b"to %d" % conversation), b"here"))
            control.expect(reply(3, conversation, b"here"))
        # What the other worker rules say holds here too: the reply timeout, the refusal.
        client.send(push_reply(1, 99, b"stray"))
        control.send(request(5, 1, b"again"))
        client.send(push_reply(1, pushed(client, b"again"),
                               b'{"code":"invalid","words":"no worker"}', 0x01))
        control.expect(conversation_error(5, 1, 0x0402, "no worker"))
        for one in (client, other, jobs):
            one.expect_nothing()


@scenario("Addresses", "$connection/ID of the control socket itself, and of oneself")
def connection_address_of_oneself():
    with Server(control=True) as server:
        control = server.control()
        control.send(conversation_open(2, 1, "$control/connections"), request(2, 1, b""))
        found = json.loads(payload_of(control.receive()))["connections"]
        assert len(found) == 1, found
        control.send(conversation_open(3, 2, "$connection/%d" % found[0]["id"]),
                     request(3, 2, b"me"))
        control.send(push_reply(1, pushed(control, b"me"), b"I"))
        control.expect(reply(3, 2, b"I"))


@scenario("Addresses", "$connection/ID: no reply within the reply timeout is \"reply-timeout: "
          "...\"")
def connection_address_times_out():
    with Server(control=True, conversations={"reply_timeout": "50ms"}) as server:
        client = server.client()
        control = addressed(server, "$connection/%d" % id_of(server, client))
        control.send(request(4, 1, b"x"))
        control.expect(conversation_error(4, 1, SERVER_ERROR, TIMEOUT))
        pushed(client, b"x")


@scenario("Addresses", "$worker/IDENTITY: a worker registered under that identity, of whatever "
          "queue, chosen as among several")
def worker_address():
    with Server(control=True) as server:
        one = worker(server, "a", identity="w/1", namespaces=("n",), activities=("x",))
        two = worker(server, "b", identity="w/1")
        other = worker(server, "a", identity="w/2")
        control = server.control()

        def chosen(conversation, answer=True):
            payload = b"%d" % conversation
            control.send(conversation_open(3, conversation, "$worker/w/1"),
                         request(3, conversation, payload))
            target, correlation = who([one, two, other], payload)
            if answer:
                target.send(push_reply(1, correlation, b"done"))
                control.expect(reply(3, conversation, b"done"))
            return target

        turns = [chosen(number) for number in range(1, 5)]
        assert sorted(map(id, turns[:2])) == sorted([id(one), id(two)])
        assert turns[2:] == turns[:2], "not in turn"
        busy = chosen(5, answer=False)
        idle = two if busy is one else one
        assert [chosen(number) for number in (6, 7)] == [idle, idle]
        idle.subscribe(2, "events")
        assert chosen(8) is busy
        other.expect_nothing()


@scenario("Addresses", "$worker/IDENTITY: the conversation stays with that worker, and goes to "
          "another of the same identity when it has left")
def worker_address_stays():
    with Server(control=True) as server:
        one, control = worker(server, identity="w"), server.control()
        control.send(conversation_open(3, 1, "$worker/w"), request(3, 1, b"x"))
        one.send(push_reply(1, pushed(one, b"x"), b"one"))
        control.expect(reply(3, 1, b"one"))
        two = worker(server, identity="w")
        control.send(request(3, 1, b"y"))
        one.send(push_reply(1, pushed(one, b"y"), b"one still"))
        control.expect(reply(3, 1, b"one still"))
        leave(one, identity="w")
        control.send(request(3, 1, b"z"))
        two.send(push_reply(1, pushed(two, b"z"), b"two"))
        control.expect(reply(3, 1, b"two"))


# $control

@scenario("Addresses", "$control: requests are JSON objects, an empty one is {}; what is none is "
          "refused by {\"error\":\"TOKEN: text\"}")
def control_requests():
    with Server(control=True) as server:
        for text in (b"", b"{}", b" { } ", b'{"a field":"of a later version"}'):
            assert tell(server, "$control/ping", text) == {"ok": True}
        for text in (b"null", b"[]", b"1", b'"x"', b"{", b"{} {}", b"\xff", b'{"a":"\xff"}', b" ",
                     b"[" * 100000, b'{"a":' * 5000 + b"1" + b"}" * 5000):
            is_refusal(tell(server, "$control/ping", text), "[a-z-]+")


@scenario("Addresses", "$control: a message that wants no reply is carried out in silence")
def control_without_reply():
    with Server(control=True) as server:
        client = server.client()
        control = addressed(server, "$control/close")
        control.send(conversation_message(3, 1, b'{"connection":%d}' % id_of(server, client)))
        client.expect(disconnect())
        client.expect_end()
        control.send(conversation_message(3, 1, b"not JSON"))
        control.expect_nothing()


@scenario("Addresses", "$control/ping")
def control_ping():
    with Server(control=True) as server:
        control = addressed(server, "$control/ping")
        control.send(request(5, 1, b"{}"))
        control.expect(reply(5, 1, b'{"ok":true}'))


@scenario("Addresses", "$control/stats", "times are ms since 1970 UTC")
def control_stats():
    before = time.time()
    with Server(channels={"events": {}, "dropping": {"slow_consumer": "drop"}}, control=True,
                limits={"max_connections": 9}) as server:
        after = time.time()
        numbers = dict.fromkeys(("started_ms", "publishes", "deliveries", "sheds", "drops",
                                 "pending_replies", "bytes_in", "bytes_out"), int)
        found = has(server.ask("stats"), version=str, connections=dict, **numbers)
        has(found["connections"], current=int, total=int, max=int)
        assert re.match(r"\d", found["version"])
        assert int(before * 1000) - 1 <= found["started_ms"] <= after * 1000 + 1
        assert found["connections"] == {"current": 0, "total": 0, "max": 9}, found
        assert [found[key] for key in ("publishes", "deliveries", "sheds", "drops",
                                       "pending_replies")] == [0] * 5

        jobs, client = worker(server), opened(server, 1, 2)
        client.subscribe(2, "events")
        client.subscribe(2, "events")
        client.send(publish(1, "events", b"x"), publish(1, "dropping", b"y"),
                    publish(1, "nothing", b"z"), request(3, 1, b"x"), request(3, 2, b"x"))
        pushed(jobs, b"x")
        pushed(jobs, b"x")
        gone = server.client()
        gone.close()
        server.closed(gone)
        later = server.ask("stats")
        assert later["connections"] == {"current": 2, "total": 3, "max": 9}, later
        assert (later["publishes"], later["deliveries"]) == (2, 2)
        assert later["pending_replies"] == 2
        assert later["bytes_in"] > found["bytes_in"] and later["bytes_out"] > found["bytes_out"]
        assert later["started_ms"] == found["started_ms"]


@scenario("Addresses", "$control/stats and $control/channels count what is shed and dropped")
def control_losses():
    with Server(channels={"shed": {}, "drop": {"slow_consumer": "drop"}, "quiet": {}}, control=True,
                limits={"max_outbox_bytes": "64K"}) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        for channel in ("shed", "drop"):
            client.subscribe(1, channel)
        missed = 0
        while missed < 3:
            publisher.publish(1, "drop", bytes(60000))
            missed += publisher.flags == 0
        publisher.publish(1, "shed", bytes(60000))
        assert publisher.flags == 0
        found = server.ask("stats")
        assert (found["sheds"], found["drops"]) == (1, 3), found
        channels = {one["name"]: one for one in server.ask("channels")["channels"]}
        assert {name: (one["sheds"], one["drops"], one["subscriptions"])
                for name, one in channels.items()} == \
            {"shed": (1, 0, 0), "drop": (0, 3, 1), "quiet": (0, 0, 0)}


@scenario("Addresses", "$control/connections")
def control_connections():
    before = time.time()
    with Server(control=True) as server:
        jobs, client, raw = worker(server), server.client("1.2"), server.raw()
        raw.expect_nothing()
        client.subscribe(1, "events")
        client.subscribe(1, "events")
        client.send(conversation_open(3, 1, "jobs"), conversation_open(3, 2, "jobs"),
                    conversation_open(3, 3, "jobs"), request(3, 1, b"x"), request(3, 2, b"y"))
        pushed(jobs, b"x")
        pushed(jobs, b"y")
        found = connections(server)
        ids = set()
        for one in found.values():
            has(one, id=int, peer=str, version=str, since_ms=int, subscriptions=int,
                conversations=int, worker=(str, type(None)), outbox_bytes=int, outbox_frames=int,
                pending_replies=int, pending_pushes=int)
            assert before * 1000 - 1 <= one["since_ms"] <= time.time() * 1000 + 1
            ids.add(one["id"])
        assert len(ids) == len(found)

        def of(peer):
            one = found[peer.name]
            assert (one["outbox_bytes"], one["outbox_frames"]) == (0, 0)
            return [one[key] for key in ("version", "worker", "subscriptions", "conversations",
                                         "pending_replies", "pending_pushes")]

        assert of(jobs) == ["1.0", "jobs", 0, 0, 0, 2]
        assert of(client) == ["1.2", None, 2, 3, 2, 0]
        assert of(raw) == ["1.0", None, 0, 0, 0, 0]
        # The one that asks is there, and one that has gone is not.
        assert len(found) == 4
        client.send(disconnect())
        client.expect_end()
        server.closed(client)
        found = connections(server)
        assert client.name not in found and found[jobs.name]["pending_pushes"] == 0


@scenario("Addresses", "$control/connections: what is queued for a connection that does not read")
def control_outbox():
    with Server(control=True) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(1, "events")
        for _ in range(20):
            publisher.publish(1, "events", bytes(1 << 20))
        found = connections(server)[client.name]
        assert 1 <= found["outbox_frames"] <= 20, found
        assert found["outbox_bytes"] > (found["outbox_frames"] - 1) << 20, found


@scenario("Addresses", "$control/channels")
def control_channels():
    with Server(channels=("a", "b/c"), control=True) as server:
        client = server.client()
        client.subscribe(1, "a")
        client.subscribe(1, "a")
        for channel, keys in (("a", (None, "k", "k", "l", "")), ("b/c", (None, "k"))):
            client.send(*[publish(2, channel, b"x", key=key) for key in keys])
        client.send(ping())
        client.receive_until(pong())
        found = server.ask("channels")["channels"]
        for one in found:
            has(one, name=str, durable=bool, subscriptions=int, publishes=int, deliveries=int,
                sheds=int, drops=int, dedup_keys=int)
        assert {one["name"]: [one[key] for key in (
            "durable", "subscriptions", "publishes", "deliveries", "sheds", "drops",
            "dedup_keys")] for one in found} == \
            {"a": [False, 2, 4, 8, 0, 0, 3], "b/c": [False, 0, 2, 0, 0, 0, 1]}


@scenario("Addresses", "$control/workers")
def control_workers():
    with Server(control=True, conversations={"reply_timeout": "200ms"}) as server:
        assert server.ask("workers") == {"workers": []}
        one = worker(server, "jobs", identity="w")
        two = worker(server, "\u00e4", namespaces=("n", "", "m"), activities=("a",), node="host",
                     identity="")
        leaving = worker(server, "gone", node="")
        leave(leaving, "gone", node="")
        client = opened(server, 1)
        client.send(request(3, 1, b"x"), request(3, 1, b"y"))
        for _ in range(2):
            client.expect(conversation_error(3, 1, SERVER_ERROR, TIMEOUT))
        # A push that stays outstanding, as long as its worker says that it works.
        control = addressed(server, "$worker/w")
        control.send(request(3, 1, b"z"))
        pushed(one, b"x")
        pushed(one, b"y")
        correlation = pushed(one, b"z")
        one.send(push_reply(1, correlation, b"", 0x80))
        found = server.ask("workers")["workers"]
        ids = {each.name: number for number, each in enumerate((one, two, leaving))}
        by_id = {each["id"]: ids[each["peer"]] for each in server.ask("connections")["connections"]
                 if each["peer"] in ids}
        rows = [None] * 3
        for each in found:
            has(each, connection=int, queue=str, namespaces=list, activities=list,
                node=(str, type(None)), identity=str, outstanding=int, unanswered=int, leaving=bool)
            rows[by_id[each["connection"]]] = [each[key] for key in (
                "queue", "namespaces", "activities", "node", "identity", "outstanding",
                "unanswered", "leaving")]
        assert rows == [["jobs", [], [], None, "w", 1, 2, False],
                        ["\u00e4", ["n", "", "m"], ["a"], "host", "", 0, 0, False],
                        ["gone", [], [], "", "w", 0, 0, True]], rows


@scenario("Addresses", "$control/connections and $control/workers answer, whatever names clients "
          "have chosen")
def control_names():
    with Server(control=True, server={"listen": ["127.0.0.1:0", "DIR/bus"]},
                limits={"max_frame_size": "80K"}) as server:
        path = os.path.join(server.directory, "bus")
        clients = []
        for own in (b"\xff\xfe", b"x" * 70, b'a" b=c\nlevel=error'):
            client = socket.socket(socket.AF_UNIX)
            client.bind(os.path.join(os.fsencode(server.directory), own)[-107:])
            client.connect(path)
            client.sendall(ping())
            assert client.recv(100) == pong()
            clients.append(client)
        assert set(connections(server)) == {"unix"}
        workers = [worker(server, "q\0r", identity="i\0j", node="n\0o", namespaces=("a\0b",))]
        for _ in range(20):
            workers.append(worker(server, "\u00e9" * 5000, identity="i" * 5000,
                                  node="n" * 5000, namespaces=("x" * 2000,) * 10,
                                  activities=("a",) * 2000))
        found = connections(server)
        assert found[workers[0].name]["worker"] == "q\0r", found
        assert found[workers[1].name]["worker"] == "\u00e9" * 64, found
        first, *others = server.ask("workers")["workers"]
        assert [first[key] for key in ("queue", "identity", "node", "namespaces")] == \
            ["q\0r", "i\0j", "n\0o", ["a\0b"]], first
        for one in others:
            assert (one["queue"], one["identity"], one["node"]) == \
                ("\u00e9" * 64, "i" * 128, "n" * 128), one
            assert (one["namespaces"], one["namespaces_left_out"]) == (["x" * 128] * 7, 3), one
            assert (one["activities"], one["activities_left_out"]) == (["a"] * 204, 1796), one
        for client in clients:
            client.close()


@scenario("Addresses", "$control/close: the connection is closed after a Disconnect")
def control_close():
    with Server(control=True) as server:
        client, other = server.client(), server.client()
        client.subscribe(1, "events")
        number = id_of(server, client)
        assert server.ask("close", {"connection": number}) == {"ok": True}
        client.expect(disconnect())
        client.expect_end()
        assert server.closed(client) == "control"
        is_refusal(server.ask("close", {"connection": number}), "not-found")
        for bad in ({}, {"connection": "1"}, {"connection": None}, {"connection": -1},
                    {"connection": 1.5}, {"connection": [number]}):
            is_refusal(server.ask("close", bad), "[a-z-]+")
        other.expect_nothing()


@scenario("Addresses", "$control/close: what is queued is flushed first; the own connection can be "
          "closed too, and its reply still comes")
def control_close_flushes():
    with Server(control=True) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(1, "events")
        for _ in range(8):
            publisher.publish(1, "events", bytes(1 << 20))
        assert server.ask("close", {"connection": id_of(server, client)}) == {"ok": True}
        for sequence in range(1, 9):
            client.expect(deliver(1, sequence, bytes(1 << 20)))
        client.expect(disconnect())
        client.expect_end()
        server.closed(client)
        control = server.control()
        control.send(conversation_open(2, 1, "$control/connections"), request(2, 1, b""))
        found = json.loads(payload_of(control.receive()))["connections"]
        own = [one["id"] for one in found if one["peer"] != publisher.name]
        assert len(own) == 1, found
        control.send(conversation_open(3, 2, "$control/close"),
                     request(3, 2, b'{"connection":%d}' % own[0]))
        control.expect(reply(3, 2, b'{"ok":true}'), disconnect())
        control.expect_end()


@scenario("Addresses", "$control/drain: its reply, then as SIGTERM")
def control_drain():
    with Server(control=True, server={"drain_timeout": "1m", "drain_idle": "1s"}) as server:
        client = server.client()
        client.subscribe(1, "events")
        control = addressed(server, "$control/drain")
        control.send(request(3, 1, b""))
        control.expect(reply(3, 1, b'{"ok":true}'))
        client.expect(disconnect())
        client.close()
        control.close()
        server.wait_exit(0)
