"""The store: its folder, who may use it, what is wrong with it, full disks and failed writes."""

import os
import re
import signal
import sqlite3
import stat
import subprocess
import tempfile

from durable import *
from durable_answers import LATE, consumer
from frames import *
from harness import Server, Skip, eventually, scenario
from process import fails, root, run

try:
    import resource
except ImportError:
    resource = None

SECTION = "The store"
CONFIGURATION = "Configuration"
FULL = starts("store-full: ")


def files(folder):
    """The bytes of each file in it."""
    found = {}
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            found[name] = file.read()
    return found


def refuses(server, *words):
    """A server that has been stopped does not start again, and touches nothing."""
    before = files(server.state)
    server.spawn()
    status = server.process.wait(30)
    server._reader.join(30)
    text = "\n".join(server.lines)
    assert status == 1, (status, text)
    for word in words:
        assert word in text, "no '%s' in: %s" % (word, text)
    after = files(server.state)
    # The lock's file is the process's own.
    changed = [name for name in before if before[name] != after.get(name) and
               name.startswith("liminal.db")]
    assert not changed, changed
    return text


# Its folder

@scenario(SECTION, "state_dir is created, mode 0700, when missing; every file in it has mode "
          "0600 whatever the umask")
def modes():
    for umask in (0, 0o777, 0o022):
        def mask(umask=umask):
            os.umask(umask)
        # Under 0777 nothing else that the daemon makes here could be used.
        with Durable(preexec=mask, control=False) as server:
            server.filled("d", [b"1"])
            consumer(server, 1)
            assert stat.S_IMODE(os.stat(server.state).st_mode) == 0o700
            modes = {name: stat.S_IMODE(os.stat(os.path.join(server.state, name)).st_mode)
                     for name in os.listdir(server.state)}
            assert modes and set(modes.values()) == {0o600}, modes
            server.restart()
            assert server.kept("d", 1) == [(1, b"1")]


@scenario(SECTION, "a state_dir with any permission for group or others is refused, status 1")
def permissions():
    with Durable() as server:
        server.filled("d", [b"1"])
        server.stop()
        for mode in (0o750, 0o701, 0o720, 0o777):
            os.chmod(server.state, mode)
            refuses(server, "state_dir", server.state)
            assert stat.S_IMODE(os.stat(server.state).st_mode) == mode
        os.chmod(server.state, 0o700)
        server.start()
        assert server.kept("d", 1) == [(1, b"1")]


@scenario(SECTION, "a state_dir that cannot be: status 1 and a message that names the setting")
def no_folder():
    for path in ("DIR/file", "DIR/file/below", "/dev/null", "DIR/missing/below"):
        head = ("[server]\nlisten = 127.0.0.1:0\nhttp_listen = none\nstate_dir = %s\n"
                "[channel d]\ndurable = yes\n" % path)
        fails(1, "state_dir", re.escape(os.path.basename(path)), config=head,
              files={"file": b"a file\n"})


@scenario(SECTION, "one process per state_dir: the second one names the folder and the holder's "
          "process id, and exits with status 1")
def one_process():
    with Durable() as server:
        server.filled("d", [b"1"])
        second = Durable()
        second.configure(second.config.replace(second.state, server.state))
        status, text = second.run()
        assert status == 1 and server.state in text and str(server.process.pid) in text, \
            (status, text)
        server.filled("d", [b"2"])
        server.restart(kill=True)
        assert server.kept("d", 2) == [(1, b"1"), (2, b"2")]


@scenario(SECTION, "started as root, state_dir and what is in it belong to `user`; a folder of "
          "the user's cannot lead root elsewhere")
def belongs_to_user():
    entry = root()
    server = Durable(server={"user": "nobody"})
    os.chmod(server.directory, 0o755)
    with server:
        server.filled("d", [b"1"])
        for path in [server.state] + [os.path.join(server.state, name)
                                      for name in os.listdir(server.state)]:
            assert os.stat(path).st_uid == entry.pw_uid, path
        server.restart()
        server.filled("d", [b"2"])
        server.stop()
        # The user of the daemon turns bad.
        target = os.path.join(server.directory, "precious")
        with open(target, "wb") as file:
            file.write(b"root's own\n")
        os.chmod(target, 0o600)
        for name in os.listdir(server.state):
            os.unlink(os.path.join(server.state, name))
        for name in ("liminal.db", "liminal.db-wal", "lock", "liminal.lock"):
            os.symlink(target, os.path.join(server.state, name))
        server.spawn()
        status = server.process.wait(30)
        server._reader.join(30)
        assert status == 1, server.lines
        assert os.stat(target).st_uid == 0
        with open(target, "rb") as file:
            assert file.read() == b"root's own\n"


@scenario(CONFIGURATION, "LIMINAL_PERSISTENCE_PATH is state_dir")
def environment():
    with tempfile.TemporaryDirectory(prefix="lm-") as folder:
        path = os.path.join(folder, "state")
        with Durable(env={"LIMINAL_PERSISTENCE_PATH": path}) as server:
            server.filled("d", [b"1"])
            assert os.listdir(path) and not os.path.exists(server.state)
            server.restart(kill=True)
            assert server.kept("d", 1) == [(1, b"1")]


@scenario(CONFIGURATION, "durable = yes without state_dir: an error that names both; durable "
          "keys on a channel that is not durable; a dead_letter that is missing, plain, its own, "
          "or in a circle")
def errors():
    config = ("[channel a]\ndurable = yes\n"
              "[channel b]\nmax_age = 1h\n"
              "[channel c]\ndurable = yes\ndead_letter = missing\n"
              "[channel d]\ndurable = yes\ndead_letter = b\n"
              "[channel e]\ndurable = yes\ndead_letter = e\n"
              "[channel f]\ndurable = yes\ndead_letter = g\n"
              "[channel g]\ndurable = yes\ndead_letter = f\n")
    status, _, text = run("-t", "-c", "FILE", config=config)
    assert status == 2, text
    for line in (2, 4, 7, 10, 13, 19):
        assert re.search(r"FILE:%d: " % line, text), (line, text)
    assert re.search("FILE:2: .*durable = yes.*state_dir", text), text
    assert "FILE:4: max_age" in text and "FILE:7: dead_letter" in text, text
    status, out, text = run("-t", "-c", "FILE",
                            config="[server]\nstate_dir = /x\n[channel a]\ndurable = yes\n")
    assert status == 0 and "sound" in out and not text, (status, out, text)


# What is wrong with it

@scenario(SECTION, "a file that is not a database: a message that names it, status 1, not "
          "modified")
def no_database():
    with Durable() as server:
        server.filled("d", [b"1"])
        server.stop()
        path = os.path.join(server.state, "liminal.db")
        with open(path, "rb") as file:
            sound = file.read()
        for bad in (b"this is no database\n" * 1000, b"x", bytes(8192),
                    sound[:100] + b"\xff" * (len(sound) - 100), sound[:len(sound) // 2]):
            with open(path, "wb") as file:
                file.write(bad)
            refuses(server, "liminal.db")
        with open(path, "wb") as file:
            file.write(sound)
        server.start()
        assert server.kept("d", 1) == [(1, b"1")]


@scenario(SECTION, "a schema that is newer than the program is refused with a clear text, status "
          "1, not modified")
def newer():
    with Durable() as server:
        server.filled("d", [b"1"])
        server.stop()
        path = os.path.join(server.state, "liminal.db")
        database = sqlite3.connect(path)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        assert version > 0
        database.execute("PRAGMA user_version = %d" % (version + 1))
        database.commit()
        database.close()
        for name in os.listdir(server.state):
            os.chmod(os.path.join(server.state, name), 0o600)
        text = refuses(server, "liminal.db")
        assert re.search("newer", text), text


@scenario(SECTION, "the store that a kill -9 leaves is recovered at start, whenever it comes, "
          "and what was acknowledged is there")
def kill_any_time():
    with Durable(("d", "e")) as server:
        acknowledged = {"d": [], "e": []}
        for life in range(8):
            client = server.client("1.1")
            client.send(*[publish(1, "d" if n % 3 else "e", b"%d %d" % (life, n))
                          for n in range(400)])
            for n in range(40 * life):
                got = client.receive()
                assert got.type == 0x0A, got
                acknowledged["d" if n % 3 else "e"].append((got.u64(8), b"%d %d" % (life, n)))
            server.restart(kill=True)
        last = {"d": server.client("1.1"), "e": server.client("1.1")}
        for channel, client in last.items():
            client.publish(1, channel, b"last")
            found = dict(server.kept(channel, client.position))
            for sequence, payload in acknowledged[channel]:
                assert found[sequence] == payload, (channel, sequence)
            assert sorted(found) == list(range(1, client.position + 1))


@scenario(SECTION, "positions, keys and messages are in one transaction: a crash among answers "
          "leaves none of a confirmed one outstanding")
def kill_among_answers():
    with Durable({"d": LATE}) as server:
        server.filled("d", [b"%d" % n for n in range(1, 201)])
        confirmed_ones = set()
        for life in range(4):
            client = server.client()
            client.subscribe(1, "d", max_in_flight=200, **named("w"))
            expected = 200 - len(confirmed_ones)
            seen = set()
            # Those whose acknowledgement was not confirmed may or may not come again.
            while server.consumers()["w"]["outstanding"] > len(seen):
                got = client.receive()
                assert got.type == 0x19 and got.u64() not in confirmed_ones, got
                seen.add(got.u64())
            assert len(seen) <= expected
            mine = sorted(seen)[::2]
            client.send(*[accept(1, "%d" % n, CONFIRM) for n in mine])
            for n in mine[:len(mine) // 2]:
                client.expect(accept(1, "%d" % n, CONFIRM))
                confirmed_ones.add(n)
            server.restart(kill=True)


# Full disks and failed writes

class Small:
    """A file system of a few megabytes, mounted on a folder."""

    def __init__(self, size="3m"):
        if os.geteuid() != 0:
            raise Skip("only root can mount a small file system")
        self.path = tempfile.mkdtemp(prefix="lm-")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%s,mode=0700" % size, "tmpfs",
                               self.path], stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            os.rmdir(self.path)
            raise Skip("a small file system cannot be mounted here: %s" % done.stderr.decode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", self.path], check=False)
        os.rmdir(self.path)


@scenario(SECTION, "disk full: PublishError \"store-full: ...\", nothing half-written, the "
          "server lives on and accepts again when there is room; plain channels are not concerned")
def disk_full():
    with Small() as small, Durable(server={"state_dir": small.path + "/state"}, http=True) as server:
        server.state = small.path + "/state"
        publisher, plain = server.client("1.1"), server.client()
        client = consumer(server, start=NEW, credit=65536)
        plain.subscribe(1, "d")
        accepted = 0

        def publish_until_full(payload):
            nonlocal accepted
            while True:
                publisher.send(publish(1, "d", payload, key="%d" % accepted))
                got = publisher.receive()
                if got.type == 0x0B:
                    assert FULL.match(error_text(got)), got
                    return
                accepted += 1
                assert got.u64(8) == accepted, got

        publish_until_full(bytes(50000))
        assert accepted > 3
        # The whole batch is refused, and neither sequence nor key are used.
        publisher.send(*[publish(1, "d", bytes(50000), key="%d" % accepted)] * 3)
        for _ in range(3):
            publisher.expect(publish_error(1, SERVER_ERROR, FULL))
        publisher.publish(1, "p", b"")
        assert server.http("/ready")[0] == 200
        assert server.metric('liminal_publishes_refused_total{reason="store_full"}') == 4
        delivered(client, *range(1, accepted + 1))
        delivered(plain, *range(1, accepted + 1))
        # There is room again.
        subprocess.run(["mount", "-o", "remount,size=20m", small.path], check=True)

        def accepts_again():
            publisher.send(publish(1, "d", bytes(50000), key="%d" % accepted))
            return publisher.receive().type == 0x0A
        eventually("it accepts again", accepts_again)
        delivered(client, accepted + 1)
        server.restart(kill=True)
        found = server.kept("d", accepted + 1)
        assert [sequence for sequence, _ in found] == list(range(1, accepted + 2))


@scenario(SECTION, "disk full: an answer whose storing fails is refused with \"store-full: ...\" "
          "when a confirmation was asked for, and the delivery stays outstanding")
def disk_full_answers():
    with Small() as small, Durable({"d": {"max_bytes": 0, **LATE}},
                                   server={"state_dir": small.path + "/state"}) as server:
        publisher = server.client()
        client = consumer(server, start=NEW, credit=65536)
        filler = os.path.join(small.path, "filler")
        with open(filler, "wb") as file:
            file.write(bytes(1 << 20))
        count = 0
        while True:
            publisher.send(publish(1, "d", bytes(10000)))
            if publisher.receive().type == 0x0B:
                break
            count += 1
        delivered(client, *range(1, count + 1))
        # To the last byte, so that the log cannot grow for an answer either.
        with open(filler, "ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        stored = []
        for n in range(1, count + 1):
            client.send(accept(1, "%d" % n, CONFIRM))
            got = client.receive()
            if got.type == 0x12:
                assert refused(1, "%d" % n, FULL).matches(got), got
            else:
                assert got.raw == accept(1, "%d" % n, CONFIRM), got
                stored.append(n)
        # A small write may still find a place; each answer is one of the two.
        assert server.consumers()["w"]["outstanding"] == count - len(stored)
        os.unlink(filler)
        for n in range(1, count + 1):
            if n in stored:
                continue

            def stores(n=n):
                client.send(accept(1, "%d" % n, CONFIRM))
                return client.receive().type == 0x10
            eventually("it is stored", stores)
        assert server.consumers()["w"]["lag"] == 0


@scenario(SECTION, "any other write error: the store is down until restart: \"store-down: ...\" "
          "for every publish and durable Subscribe, durable subscriptions end with it, /ready is "
          "503 with store_ready; plain channels, and plain subscriptions of durable ones, live on")
def store_down():
    if not hasattr(resource, "prlimit"):
        raise Skip("no prlimit here")

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def no_signal():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    with Durable({"d": LATE}, http=True, preexec=no_signal) as server:
        publisher = server.client("1.1")
        client, one, plain = consumer(server, start=NEW), server.client(), server.client()
        one.subscribe(1, "d", **reader(NEW))
        plain.subscribe(1, "d")
        plain.subscribe(2, "p")
        publisher.publish(1, "d", b"1", key="k")
        for each in (client, one, plain):
            delivered(each, 1)
        # The next write behind the end of the log is too large a file: no lack of room.
        size = os.stat(os.path.join(server.state, "liminal.db-wal")).st_size
        assert size > 0
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, hard))
        publisher.send(publish(1, "d", b"2"), publish(2, "d", b"3", key="x"), publish(3, "p", b"4"))
        publisher.expect(publish_error(1, SERVER_ERROR, DOWN), publish_error(2, SERVER_ERROR, DOWN))
        got = publisher.receive()
        assert got.type == 0x0A and got.stream == 3, got
        for each in (client, one):
            each.expect(subscribe_error(1, SERVER_ERROR, DOWN))
            each.expect_nothing()
        plain.expect(deliver(2, 1, b"4"))
        plain.expect_nothing()
        status, _, body = server.http("/ready")
        assert status == 503 and "store_ready" in body, body
        server.log("level=error")
        # Nothing is retried, also when it would succeed.
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        for number in range(3):
            publisher.send(publish(1, "d", b"5"), subscribe(2, "d", **named("w")),
                           subscribe(3, "d", **reader()), ping())
            publisher.expect(publish_error(1, SERVER_ERROR, DOWN),
                             subscribe_error(2, SERVER_ERROR, DOWN),
                             subscribe_error(3, SERVER_ERROR, DOWN), pong())
        client.send(accept(1, "1", CONFIRM))
        client.expect(refused(1, "1", STALE))
        plain.subscribe(3, "d")
        server.restart()
        # What was acknowledged is there; what was refused may be.
        publisher = server.client("1.1")
        publisher.publish(1, "d", b"1", key="k")
        assert publisher.position == 1 and publisher.flags & DUPLICATE
        publisher.publish(1, "d", b"last")
        found = server.kept("d", publisher.position)
        assert found[0] == (1, b"1") and found[-1][1] == b"last", found
        assert [payload for _, payload in found[1:-1]] in ([], [b"2"], [b"2", b"3"]), found
        # Its key tells: published again, it is there once.
        publisher.publish(1, "d", b"3", key="x")
        publisher.publish(1, "d", b"the end")
        assert [payload for _, payload in server.kept("d", publisher.position)].count(b"3") == 1
        client = server.client()
        client.subscribe(1, "d", **named("w"))
        delivered(client, 1)


@scenario(SECTION, "while the store is sound /ready is 200; the metrics of the store are there")
def metrics():
    with Durable(http=True) as server:
        status, _, body = server.http("/ready")
        assert (status, body) == (200, '{"ready":true,"unmet_conditions":[]}')
        client = server.client()
        client.send(*[publish(1, "d", b"x", key="%d" % (n // 2)) for n in range(10)])
        for _ in range(10):
            client.receive()
        commits = server.metric("liminal_store_commit_seconds_count")
        assert 1 <= commits <= 10 and \
            server.metric("liminal_store_commit_messages_count") <= commits
        assert server.metric("liminal_store_commit_messages_sum") == 5
        # What waits while a commit runs is one commit.
        client.send(*[publish(1, "d", b"y")] * 1000)
        for _ in range(1000):
            client.receive()
        assert server.metric("liminal_store_commit_messages_sum") == 1005
        assert server.metric("liminal_store_commit_seconds_count") < commits + 500
        assert server.metric("liminal_store_bytes") > 0
        assert server.metric('liminal_channel_last_sequence{channel="d"}') == 1005
        assert server.metric('liminal_channel_first_sequence{channel="d"}') == 1
        assert server.metric('liminal_dedup_hits_total{channel="d"}') == 5
        assert server.metric('liminal_channel_last_sequence{channel="p"}') is None
    with Server(http=True) as server:
        assert server.metric("liminal_store_bytes") == 0
