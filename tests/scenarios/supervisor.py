"""The service manager's two protocols: what the daemon tells it, and the sockets that it passes.

The scenario is the service manager: it receives datagrams, and passes sockets through a shell that
sets LISTEN_PID to the process id that the daemon then has.
"""

import os
import signal
import socket
import sys
import tempfile
import time

from frames import *
from harness import TIMEOUT, Client, Server, Skip, scenario


class Notified(Server):
    """A daemon whose messages to the service manager are received."""

    def __init__(self, abstract=False, **how):
        super().__init__(**how)
        self.receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.receiver.settimeout(TIMEOUT)
        path = os.path.join(self.directory, "notify")
        if abstract:
            path = "@lm-notify-%d" % os.getpid()
        self.receiver.bind(path.replace("@", "\0"))
        self.environment["NOTIFY_SOCKET"] = path

    def told(self):
        """The next message, as a list of lines."""
        try:
            return self.receiver.recv(4096).decode().rstrip("\n").split("\n")
        except socket.timeout:
            raise AssertionError("the service manager was told nothing") from None

    def told_nothing(self):
        self.receiver.setblocking(False)
        try:
            raise AssertionError("the service manager was told %r" % self.receiver.recv(4096))
        except BlockingIOError:
            self.receiver.settimeout(TIMEOUT)


@scenario("The daemon", "the service manager is told READY=1 when it serves, STOPPING=1 when it "
          "begins to stop, with a STATUS each")
def notified():
    with Notified(http=True) as server:
        lines = server.told()
        assert "READY=1" in lines and any(line.startswith("STATUS=") for line in lines), lines
        client = server.client()
        client.subscribe(1, "events")
        assert server.http("/ready")[0] == 200
        server.told_nothing()
        server.signal(signal.SIGTERM)
        # It is told when the stop begins, not when it is over.
        client.expect(disconnect())
        lines = server.told()
        assert "STOPPING=1" in lines and any(line.startswith("STATUS=") for line in lines), lines
        client.close()
        server.wait_exit(0)
        server.told_nothing()


@scenario("The daemon", "the service manager is told how long the stop may take, so that it does not "
          "kill what drains")
def notified_of_long_stops():
    with Notified(server={"drain_timeout": "20m", "close_timeout": "30s"}) as server:
        server.told()
        server.signal(signal.SIGTERM)
        lines = dict(line.split("=", 1) for line in server.told())
        allowed = int(lines["EXTEND_TIMEOUT_USEC"]) / 1e6
        assert 20 * 60 + 30 < allowed < 20 * 60 + 60, allowed
        server.wait_exit(0)


@scenario("The daemon", "READY=1 comes when all is bound: whoever hears it can connect")
def ready_means_ready():
    class NotWaitedFor(Notified):
        def start(self):
            self.spawn()
            return self

    with NotWaitedFor(server={"listen": "DIR/bus"}) as server:
        assert "READY=1" in server.told()
        client = server.raw(path=os.path.join(server.directory, "bus"))
        client.send(connect("1.0"))
        client.expect(connect_ack("1.0"))


@scenario("The daemon", "a name that is in no directory (@...) is a socket to tell, too")
def notified_abstract():
    if not os.path.exists("/proc/net/unix"):
        raise Skip("no such names here")
    with Notified(abstract=True) as server:
        assert "READY=1" in server.told()


@scenario("Start, stop, signals", "a reload is RELOADING=1 with MONOTONIC_USEC, then READY=1, also "
          "when the new file was refused")
def notified_of_reloads():
    with Notified() as server:
        server.told()
        for text in (server.config, "[server]\nlog_level = loud\n"):
            server.configure(text)
            before = time.clock_gettime(time.CLOCK_MONOTONIC)
            server.signal(signal.SIGHUP)
            lines = dict(line.split("=", 1) for line in server.told())
            after = time.clock_gettime(time.CLOCK_MONOTONIC)
            assert lines.get("RELOADING") == "1", lines
            assert before <= int(lines["MONOTONIC_USEC"]) / 1e6 + 1e-6 and \
                int(lines["MONOTONIC_USEC"]) / 1e6 <= after, lines
            assert "READY=1" in server.told()
        server.client().expect_nothing()
        server.told_nothing()


@scenario("The daemon", "a service manager that is not there is no failure")
def nobody_to_tell():
    for path in ("/nonexistent/notify", "relative", "", "@", "/" + "x" * 200):
        with Server(env={"NOTIFY_SOCKET": path}) as server:
            server.client().expect_nothing()


# Sockets that are passed

# Puts the descriptors of its first argument at 3 and up, sets LISTEN_PID to its second or its own
# process id, which the daemon will have, and becomes the rest.
PASS = """
import fcntl, os, sys
high = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 64) for one in sys.argv[1].split()]
for number, one in enumerate(high, 3):
    os.dup2(one, number, inheritable=True)
os.environ["LISTEN_PID"] = sys.argv[2] or str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(high))
os.execv(sys.argv[3], sys.argv[3:])
"""


class Passed(Server):
    """A daemon that is passed SOCKETS with NAMES, for the process PID."""

    def __init__(self, sockets, names=None, pid="", **how):
        super().__init__(**how)
        self.descriptors_to_pass = [one.fileno() for one in sockets]
        self.pid = pid
        if names is not None:
            self.environment["LISTEN_FDNAMES"] = names

    def command(self):
        numbers = " ".join(map(str, self.descriptors_to_pass))
        return [sys.executable, "-c", PASS, numbers, self.pid] + super().command()


def listener():
    return socket.create_server(("127.0.0.1", 0))


def unix_listener(path):
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.bind(path)
    one.listen()
    return one


@scenario("Start, stop, signals", "LISTEN_FDS: passed stream sockets replace `listen`, and stay "
          "what they were at exit")
def passed_sockets():
    with tempfile.TemporaryDirectory(prefix="lm-") as directory:
        path = os.path.join(directory, "passed")
        with listener() as one, unix_listener(path) as two, \
                Passed([one, two], server={"listen": ["DIR/one", "DIR/two"]}) as server:
            assert set(server.addresses) == {one.getsockname(), path}
            for address in server.addresses:
                client = server.raw(address=address)
                client.send(connect("1.0"), ping(), conversation_open(1, 1, "$control/ping"))
                client.expect(connect_ack("1.0"), pong(),
                              conversation_error(1, 1, SERVER_ERROR, starts("not-permitted: ")))
            assert sorted(os.listdir(server.directory)) == ["liminald.conf"]
            server.signal(signal.SIGTERM)
            for client in server._clients:
                client.close()
            server.wait_exit(0)
            # They are not ours to shut down: who passed them can still use them.
            assert os.path.exists(path)
            for address in (one.getsockname(), path):
                Client(address).close()


@scenario("Start, stop, signals", "LISTEN_FDS: a client that has connected before the daemon was "
          "started is served when it is")
def passed_with_clients():
    with listener() as one:
        early = Client(one.getsockname())
        early.send(connect("1.0"), ping())
        with Passed([one], "liminald.socket") as server:
            early.expect(connect_ack("1.0"), pong())
            early.close()
            server.client(address=one.getsockname()).expect_nothing()


@scenario("Start, stop, signals", "those named `http` and `control` in LISTEN_FDNAMES replace "
          "those two")
def passed_by_name():
    with tempfile.TemporaryDirectory(prefix="lm-") as directory:
        path = os.path.join(directory, "passed")
        for names in ("http:bus:control", "control:http:bus", "bus:control:http"):
            with listener() as bus, listener() as http, unix_listener(path) as control:
                sockets = {"bus": bus, "http": http, "control": control}
                with Passed([sockets[name] for name in names.split(":")], names,
                            server={"http_listen": "127.0.0.1:1",
                                    "control_socket": "/nonexistent/control"}) as server:
                    assert server.addresses[0] == bus.getsockname() or \
                        server.addresses[0] == path, server.addresses
                    assert server.http_address == http.getsockname()
                    assert server.http("/ready")[0] == 200
                    client = server.client(address=bus.getsockname())
                    client.expect_nothing()
                    server.control_path = path
                    assert server.ask("ping") == {"ok": True}
            os.unlink(path)


@scenario("Start, stop, signals", "passed for http and control only: `listen` stays what it was")
def passed_for_others_only():
    with listener() as http:
        with Passed([http], "http", http=True) as server:
            assert server.http_address == http.getsockname()
            assert server.addresses[0] != http.getsockname()
            server.client().expect_nothing()
            assert server.http("/health")[0] == 200


@scenario("Start, stop, signals", "a LISTEN_PID that is not ours: ignored")
def passed_to_another():
    for pid in ("1", "0", "-1", "x", "99999999999999999999"):
        with listener() as one, Passed([one], pid=pid) as server:
            assert server.addresses[0] != one.getsockname()
            server.client().expect_nothing()


@scenario("Start, stop, signals", "what is passed and is no listening stream socket: a message, "
          "exit status 1")
def passed_rubbish():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, \
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as silent, \
            open(os.devnull, "rb") as file:
        for one in (datagrams, silent, file):
            status, text = Passed([one]).run()
            assert status == 1 and "LISTEN_FDS" in text, (status, text)
