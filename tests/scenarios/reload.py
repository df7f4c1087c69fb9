"""SIGHUP and SIGUSR1: what a running daemon takes from its file anew, and what it does not.

`reload` waits for the line with which the daemon ends a reload, so what comes behind it in a
scenario happens under the new configuration, or the old one where that stays.
"""

import os
import re
import signal

from conversations import ALREADY_OPEN, TIMEOUT, opened, pushed, worker
from drain import accepted
from frames import *
from harness import Server, eventually, fields, scenario
from process import UNIX, Quiet
from workers import NO_WORKER

HEAD = "[server]\nlisten = 127.0.0.1:0\nhttp_listen = none\n"


def reload(server, text, refused=False):
    """The daemon reads TEXT; the log's lines about that."""
    server.configure(text)
    with server._changed:
        before = len(server.lines)
    server.signal(signal.SIGHUP)
    server.log('event="reload refused"' if refused else 'event="configuration reloaded"')
    with server._changed:
        lines = server.lines[before:]
    assert refused or not any("level=error" in line for line in lines), lines
    return lines


def needs_restart(lines):
    return [line for line in lines if "needs a restart" in line]


# What appears, changes, stays

@scenario("Start, stop, signals", "SIGHUP: new channels appear, and what lives on the old ones "
          "lives on")
def new_channels():
    with Server(config=HEAD + "[channel a]\n") as server:
        client = server.client()
        client.subscribe(1, "a")
        client.send(publish(2, "b", b"x"))
        client.expect(publish_error(2, SERVER_ERROR, "channel 'b' is not configured"))
        reload(server, HEAD + "[channel b]\n[channel a]\n[channel c]\nslow_consumer = drop\n")
        for one in (client, server.client()):
            one.subscribe(2, "b")
            one.subscribe(3, "c")
        client.send(publish(4, "b", b"x"), publish(4, "a", b"y"))
        client.expect(publish_ack(4, 1, DELIVERED), deliver(2, 1, b"x"),
                      publish_ack(4, 2, DELIVERED), deliver(1, 1, b"y"))


@scenario("Start, stop, signals", "a removed channel needs a restart: the log says so, and it "
          "serves on")
def removed_channels():
    with Server(config=HEAD + "[channel a]\n[channel b]\n") as server:
        client = server.client()
        client.subscribe(1, "a")
        lines = needs_restart(reload(server, HEAD + "[channel b]\n"))
        assert len(lines) == 1 and re.search(r"\ba\b", fields(lines[0])["text"]), lines
        client.send(publish(4, "a", b"x"))
        client.expect(publish_ack(4, 1, DELIVERED), deliver(1, 1, b"x"))
        server.client().subscribe(1, "a")
        # It comes back like any other.
        reload(server, server.config + "[channel a]\n")
        client.send(publish(4, "a", b"y"))
        client.expect(publish_ack(4, 2, DELIVERED), deliver(1, 2, b"y"))


@scenario("Start, stop, signals", "`schema` of an existing channel needs a restart, and is taken "
          "for a new one")
def changed_schema():
    config = HEAD + "[channel a]\nschema = DIR/one\n[channel b]\n"
    with Server(config=config, files={"one": b"1", "two": b"2"}) as server:
        text = config.replace("DIR/one", "DIR/two") + "schema = DIR/two\n"
        lines = needs_restart(reload(server, text + "[channel c]\nschema = DIR/two\n"))
        assert len(lines) == 2 and all("schema" in line for line in lines), lines
        client = server.client()
        for channel, schema in (("a", schema_id(b"1")), ("b", NO_SCHEMA), ("c", schema_id(b"2"))):
            client.send(subscribe(1, channel))
            got = client.receive()
            assert got.raw == subscribe_ack(1, got.u64(), schema)


@scenario("Start, stop, signals", "what needs a restart is said, each by its name, and stays; the "
          "rest of the file is applied")
def other_settings_need_a_restart():
    config = HEAD + "[channel a]\n"
    changed = ("[server]\nlisten = DIR/other\nhttp_listen = 127.0.0.1:1\n"
               "control_socket = DIR/control\nuser = nobody\ngroup = daemon\npidfile = DIR/pid\n"
               "[limits]\nmax_connections = 1\n[channel a]\n[channel b]\n")
    with Server(config=config) as server:
        lines = needs_restart(reload(server, changed))
        for name in ("listen", "http_listen", "control_socket", "user", "group", "pidfile",
                     "max_connections"):
            assert sum(re.search(r"\b%s\b" % name, line) is not None for line in lines) == 1, \
                (name, lines)
        clients = [server.client() for _ in range(3)]
        for client in clients:
            client.subscribe(1, "b")
        assert sorted(os.listdir(server.directory)) == ["liminald.conf"]
        # Said again each time, as long as it is so.
        assert len(needs_restart(reload(server, changed))) == len(lines)
        assert needs_restart(reload(server, config + "[channel b]\n")) == []


@scenario("Start, stop, signals", "a file that is not valid: the old configuration stays, and "
          "every error is logged with file:line")
def broken_file():
    config = HEAD + "[conversations]\nno_worker = error\n[channel a]\n"
    with Server(config=config) as server:
        client = opened(server, 1)
        lines = reload(server, HEAD + "[conversations]\nno_worker = echo\nreply_timeout = 1\n"
                       "[channel b]\nslow_consumer = maybe\n[limits\n", refused=True)
        for line in (6, 8, 9):
            assert sum("level=error" in one and "%s:%d: " % (server.config_path, line) in one
                       for one in lines) == 1, (line, lines)
        client.send(request(3, 1, b"x"), subscribe(1, "b"), subscribe(2, "a"))
        client.expect(conversation_error(3, 1, SERVER_ERROR, NO_WORKER),
                      subscribe_error(1, SERVER_ERROR, "channel 'b' is not configured"),
                      subscribe_ack(2, 1))
        os.unlink(server.config_path)
        server.signal(signal.SIGHUP)
        server.log('event="reload refused"')
        client.expect_nothing()
        # And a sound one is taken again.
        reload(server, config + "[channel b]\n")
        client.subscribe(1, "b")


@scenario("Configuration", "a file named by the configuration that cannot be read any more: the "
          "old configuration stays")
def broken_named_file():
    config = HEAD + "[auth]\ntoken_file = DIR/token\n[channel a]\n"
    with Server(config=config, files={"token": b"one\n"}) as server:
        os.unlink(os.path.join(server.directory, "token"))
        lines = reload(server, config, refused=True)
        assert any("level=error" in line and "/token" in line for line in lines), lines
        server.client(token=b"one").expect_nothing()


@scenario("Configuration", "what the environment overrides stays so at SIGHUP")
def environment_at_reload():
    with Server(config=HEAD + "[channel a]\n",
                env={"LIMINAL_AUTH_TOKEN": "from outside"}) as server:
        reload(server, HEAD + "[auth]\ntoken = of the file\n[channel a]\n")
        server.client(token=b"from outside").expect_nothing()


# Limits, token

@scenario("Configuration", "limits change for new connections")
def limits_for_new_connections():
    def limits(number, size, replies):
        return ("[limits]\nmax_subscriptions_per_connection = %d\nmax_frame_size = %s\n"
                "max_conversations_per_connection = %d\nmax_pending_replies_per_conversation = %d\n"
                "[channel a]\n" % (number, size, number, replies))

    def bounds(client, number, size, replies):
        for _ in range(number):
            client.subscribe(1, "a")
        client.send(subscribe(1, "a"), *[conversation_open(1, one, "jobs")
                                         for one in range(number + 1)])
        client.expect(subscribe_error(1, SERVER_ERROR, starts("over-capacity: ")),
                      conversation_error(1, number, SERVER_ERROR, starts("over-capacity: ")))
        client.send(publish(1, "b", bytes(size - 100)), publish(1, "b", bytes(size)))
        client.expect(publish_error(1, SERVER_ERROR, "channel 'b' is not configured"),
                      publish_error(1, CODEC_ERROR, re.compile(".")))
        client.send(*[request(1, 0, b"x") for _ in range(replies + 1)])
        client.expect(conversation_error(1, 0, SERVER_ERROR, starts("over-capacity: ")))

    with Server(config=HEAD + limits(2, "4K", 1)) as server:
        worker(server)
        old = server.client()
        reload(server, HEAD + limits(3, "8K", 2))
        bounds(old, 2, 4096, 1)
        bounds(server.client(), 3, 8192, 2)
        reload(server, HEAD + limits(1, "5K", 3))
        bounds(server.client(), 1, 5120, 3)


@scenario("Configuration", "handshake_timeout changes for new connections")
def timeouts_for_new_connections():
    text = HEAD + "[limits]\nhandshake_timeout = %s\n[channel a]\n"
    with Server(config=text % "10m") as server:
        old = accepted(server)
        old.send(ping()[:5])
        reload(server, text % "100ms")
        new = server.raw()
        new.expect_end()
        old.send(ping()[5:])
        old.expect(pong())


@scenario("Configuration", "the token changes: a new one, none, one again, the file's first line")
def token_changes():
    rejected = connect_error(AUTHENTICATION, "connection authentication token rejected")

    def accepts(server, token, wrong):
        server.client(token=token).expect_nothing()
        if wrong is not None:
            client = server.raw()
            client.send(connect("1.0", token=wrong))
            client.expect(rejected)
            client.expect_end()

    def text(auth):
        return HEAD + auth + "[channel events]\n"

    with Server(config=text("[auth]\ntoken = one\n")) as server:
        old = server.client(token=b"one")
        reload(server, text("[auth]\ntoken = two\n"))
        accepts(server, b"two", b"one")
        reload(server, text(""))
        accepts(server, b"anything", None)
        path = os.path.join(server.directory, "token")
        for token in (b"three", b"four"):
            with open(path, "wb") as file:
                file.write(token + b"\n")
            os.chmod(path, 0o600)
            reload(server, text("[auth]\ntoken_file = DIR/token\n"))
            accepts(server, token, b"two")
        # Who is connected stays.
        old.send(publish(1, "events", b"x"))
        old.expect(publish_ack(1, 1))


# Conversations, channels

@scenario("Configuration", "[conversations] changes for the connections that are there")
def conversations_change():
    text = HEAD + "[conversations]\n%s\n[channel a]\n[channel quiet]\n"
    with Server(config=text % "no_worker = echo") as server:
        client = opened(server, 1)
        client.send(request(3, 1, b"x"))
        client.expect(reply(3, 1, b"x"))
        reload(server, text % "no_worker = error")
        client.send(request(3, 1, b"x"))
        client.expect(conversation_error(3, 1, SERVER_ERROR, NO_WORKER))
        reload(server, text % "no_worker = wait\nreply_timeout = 50ms")
        client.send(request(3, 1, b"x"))
        client.expect(conversation_error(3, 1, SERVER_ERROR, TIMEOUT))
        reload(server, text % "worker_queues = jobs\nunanswered_channels = quiet")
        jobs = server.client()
        jobs.send(worker_register("other"))
        jobs.expect(worker_register_rejected(re.compile(".")))
        worker(server, "jobs", jobs)
        jobs.send(publish(1, "quiet", b"x"), publish(2, "a", b"y"))
        jobs.expect(publish_ack(2, 2))
        client.send(request(3, 1, b"x"))
        jobs.send(push_reply(1, pushed(jobs, b"x"), b"y"))
        client.expect(reply(3, 1, b"y"))
        # Nothing that was open has been closed.
        client.send(conversation_open(3, 1, "jobs"))
        client.expect(conversation_error(3, 1, SERVER_ERROR, ALREADY_OPEN))


@scenario("Configuration", "slow_consumer and dedup_max_keys of a channel that is there change")
def channel_changes():
    text = HEAD + "[limits]\nmax_outbox_bytes = 64K\n[channel a]\nslow_consumer = %s\n" \
        "dedup_max_keys = %d\n"
    with Server(config=text % ("drop", 100)) as server:
        slow, publisher = server.client(receive_buffer=4096), server.client()
        first = [publisher.publish(1, "a", b"x", key="k%d" % number) for number in range(3)]
        slow.subscribe(1, "a")

        def refused():
            publisher.publish(1, "a", bytes(60000))
            return publisher.flags == 0

        eventually("it misses messages", refused)
        reload(server, text % ("shed", 1))
        # Of the keys that it knew only as many are left as it may have now, the newest.
        publisher.publish(1, "a", b"x", key="new")
        for number in range(3):
            again = publisher.publish(1, "a", b"x", key="k%d" % number)
            assert again not in first and publisher.flags & DUPLICATE == 0
        eventually("it is full again", refused)
        slow.send(ping())
        got = [one for one in slow.receive_until(pong()) if one.type != 0x19]
        assert len(got) == 1 and \
            subscribe_error(1, SERVER_ERROR, starts("subscription shed: ")).matches(got[0]), got


@scenario("Configuration", "drain_timeout changes with SIGHUP")
def drain_timeout_changes():
    with Server(config=HEAD + "drain_timeout = 1h\n[channel events]\n") as server:
        client = server.client()
        client.subscribe(1, "events")
        reload(server, HEAD + "drain_timeout = 0\n[channel events]\n")
        server.signal(signal.SIGTERM)
        client.expect(disconnect())
        client.expect_end()
        server.wait_exit(0)


# The log

def wait_for_line(server, name, pattern):
    eventually("/%s/ in %s" % (pattern, name),
               lambda: os.path.exists(server.path(name)) and
               re.search(pattern, server.read(name)))


@scenario("Start, stop, signals", "log files are reopened at SIGUSR1, and at SIGHUP, also when "
          "the new configuration is refused")
def log_reopened():
    config = UNIX + "log = DIR/log\n[channel a]\n"
    broken = config + "[nonsense]\n"
    with Quiet(config=config) as server:
        for number, (how, text) in enumerate(((signal.SIGUSR1, config), (signal.SIGHUP, config),
                                              (signal.SIGHUP, broken), (signal.SIGUSR1, broken))):
            server.configure(text)
            os.rename(server.path("log"), server.path("log.%d" % number))
            server.signal(how)
            eventually("a new file", lambda: os.path.exists(server.path("log")))
            client = server.client()
            client.send(disconnect())
            client.expect_end()
            wait_for_line(server, "log", "connection closed")
        # Each line stands in one of the files, in order.
        text = "".join(server.read("log.%d" % number) for number in range(4))
        assert text.count("connection closed") == 3
        assert text.count("reload refused") + server.read("log").count("reload refused") == 1


@scenario("Start, stop, signals", "SIGUSR1 reads no configuration")
def usr1_only_reopens():
    with Server(config=HEAD + "[channel a]\n") as server:
        server.configure(HEAD + "[channel a]\n[channel b]\n")
        server.signal(signal.SIGUSR1)
        server.log('event="log reopened"')
        client = server.client()
        client.send(subscribe(1, "b"))
        client.expect(subscribe_error(1, SERVER_ERROR, "channel 'b' is not configured"))


@scenario("Configuration", "log, log_level and log_format change with SIGHUP; each -v stays one "
          "level more")
def log_changes():
    with Quiet(config=UNIX + "log = DIR/one\n[channel a]\n") as server:
        def life():
            client = server.client()
            client.send(disconnect())
            client.expect_end()

        life()
        wait_for_line(server, "one", 'event="connection closed"')
        server.configure(UNIX + "log = DIR/two\nlog_format = json\n[channel a]\n")
        server.signal(signal.SIGHUP)
        wait_for_line(server, "two", '"event":"configuration reloaded"')
        life()
        wait_for_line(server, "two", '"event":"connection closed"')
        assert server.read("one").count("connection closed") == 1
    for verbose, closed in ((0, False), (1, True)):
        text = UNIX + "log = DIR/log\nlog_level = %s\n[channel a]\n"
        with Quiet(config=text % "info", args=["-v"] * verbose) as server:
            server.configure(text % "notice")
            server.signal(signal.SIGHUP)
            wait_for_line(server, "log", "configuration reloaded")
            client = server.client()
            client.send(disconnect())
            client.expect_end()
            server.stop()
            assert ("connection closed" in server.read("log")) == closed, (verbose, closed)


@scenario("Configuration", "a new log that cannot be opened: the log stays where it was, and says "
          "so")
def log_cannot_change():
    with Server(config=HEAD + "[channel a]\n") as server:
        server.configure(HEAD + "log = /nonexistent/log\n[channel a]\n[channel b]\n")
        server.signal(signal.SIGHUP)
        server.log("level=error .*/nonexistent/log")
        eventually("the rest is applied, or refused", lambda: any(
            "configuration reloaded" in line or "reload refused" in line for line in server.lines))
        server.client().subscribe(1, "a")


@scenario("HTTP", "reloads are counted, those that were refused too")
def reloads_counted():
    with Server(http=True) as server:
        sound = server.config
        reload(server, sound)
        reload(server, "[nonsense]\n", refused=True)
        reload(server, sound)
        assert server.metric('liminal_reloads_total{result="applied"}') == 2
        assert server.metric('liminal_reloads_total{result="refused"}') == 1
