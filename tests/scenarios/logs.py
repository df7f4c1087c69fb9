"""The log: its lines, formats and levels, and where it goes."""

import json
import os
import re
import signal
import socket
import subprocess

from frames import *
from harness import Server, Skip, fields, scenario
from process import UNIX, Quiet, root

LEVELS = ("error", "warning", "notice", "info", "debug")

# time, level, event, then pairs; a value with blanks, quotes or "=" is quoted.
LINE = re.compile(r'time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=(\w+) event="[^"]+"'
                  r'( \w+=("(\\.|[^"\\])*"|[^ "=]+))*\Z')


def life(server):
    """Connections that end each in its own way; (client, reason)."""
    polite, half, broken, gone = (server.client() for _ in range(4))
    polite.send(disconnect())
    polite.expect_end()
    half.half_close()
    half.expect_end()
    broken.send(frame(0x13, 0, 7))
    broken.receive()
    broken.expect_end()
    gone.reset()
    return ((polite, "disconnect"), (half, "half_close"), (broken, "stream"), (gone, "reset"))


def levels_in(lines):
    return {fields(line)["level"] for line in lines}


@scenario("The daemon", "log line: key=value, one per event, connection id and peer always")
def text_lines():
    with Server(args=["-v"]) as server:
        ends = life(server)
        for client, _ in ends:
            server.closed(client)
        peers = {client.name: set() for client, _ in ends}
        for line in server.lines:
            assert LINE.match(line), "not key=value: %s" % line
            found = fields(line)
            assert found["level"] in LEVELS
            if "conn" in found or "peer" in found:
                peers[found["peer"]].add(found["conn"])
        # Each connection has one id, and no two the same.
        assert all(len(ids) == 1 for ids in peers.values()), peers
        assert len(set.union(*peers.values())) == len(ends)


@scenario("Start, stop, signals", "a connection's last line, at level info, carries its reason: "
          "every closed connection says why")
def last_lines():
    with Server() as server:
        for client, reason in life(server):
            assert server.closed(client) == reason
            lines = [line for line in server.lines if client.name in line]
            last = fields(lines[-1])
            assert (last["level"], last["reason"]) == ("info", reason), last
            assert sum("reason=%s" % reason in line and "connection closed" in line
                       for line in lines) == 1


class Json(Server):
    """Waits for JSON lines."""

    def start(self):
        self.spawn()
        host, port = json.loads(self.log("listening").string)["address"].rsplit(":", 1)
        self.addresses = [(host, int(port))]
        return self


@scenario("The daemon", "log_format = json: each line is an object with the same keys")
def json_lines():
    with Json(server={"log_format": "json"}) as server:
        ends = life(server)
        for client, _ in ends:
            server.log('"connection closed".*"%s"' % re.escape(client.name), again=True)
        client = server.client()
        client.send(frame(0x09, 0, 1, s('a "b"\\\n\u20ac') + b(b"")))
        client.receive()
        client.expect_end()
        server.log('"connection closed".*"%s"' % re.escape(client.name), again=True)
        lines = [json.loads(line) for line in server.lines]
        for line in lines:
            assert list(line)[:3] == ["time", "level", "event"], line
            assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z", line["time"])
            assert line["level"] in LEVELS
        for client, reason in ends:
            last = [line for line in lines if line.get("peer") == client.name][-1]
            assert (last["level"], last["event"], last["reason"]) == \
                ("info", "connection closed", reason), last
            assert type(last["conn"]) is int


@scenario("The daemon", "log_level, and each -v one level more")
def levels():
    for level, verbose, shown in (("error", 0, ()), ("error", 1, ()), ("error", 2, ("notice",)),
                                  ("warning", 2, ("notice", "info")), ("notice", 0, ("notice",)),
                                  ("info", 0, ("notice", "info")),
                                  ("debug", 0, ("notice", "info")),
                                  ("info", 9, ("notice", "info"))):
        config = UNIX + "log_level = %s\n[channel events]\n" % level
        with Quiet(config=config, args=["-v"] * verbose) as server:
            client = server.client()
            client.send(disconnect())
            client.expect_end()
        found = levels_in(server.lines)
        assert found - {"debug"} == set(shown), (level, verbose, found)
        if level != "debug" and verbose < 9:
            assert "debug" not in found


@scenario("The daemon", "log = /PATH: lines are appended to that file, none to standard error")
def log_file():
    with Quiet(config=UNIX + "log = DIR/log\n[channel events]\n",
               files={"log": b"what was there\n"}) as server:
        server.client().expect_nothing()
        server.signal(signal.SIGTERM)
        for client in server._clients:
            client.close()
        server.wait_exit(0)
        first, *lines = server.read("log").splitlines()
        assert first == "what was there" and server.lines == []
        assert all(LINE.match(line) for line in lines) and len(lines) >= 4, lines


def syslog_of(server, receiver):
    """Lines in the system's log until the daemon says that it has stopped."""
    found = []
    while not any("stopped" in line for line in found):
        found.append(receiver.recv(8192).decode())
    return found


@scenario("The daemon", "log = syslog, and log = stderr after -d: lines go to the system's log, "
          "with facility daemon and the level as severity")
def syslog():
    root()
    if subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL,
                      check=False).returncode != 0:
        raise Skip("no mount namespaces here")

    class Private(Quiet):
        """With a /dev of its own, which is the directory `dev`."""

        def command(self):
            return ["unshare", "-m", "/bin/sh", "-c",
                    'mount --bind "$0" /dev && exec "$@"', self.path("dev")] + super().command()

    for detached in (False, True):
        config = UNIX + "" if detached else UNIX + "log = syslog\n"
        server = Private(config=config + "[channel events]\n", detached=detached)
        os.mkdir(server.path("dev"))
        open(server.path("dev/null"), "w", encoding="ascii").close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(server.path("dev/log"))
            receiver.settimeout(30)
            with server:
                server.client().expect_nothing()
                server.stop()
                found = syslog_of(server, receiver)
        # Facility 3, severity 5 (notice) and 6 (info).
        for line in found:
            priority = int(re.match(r"<(\d+)>", line).group(1))
            level = re.search(r"level=(\w+)", line).group(1)
            assert priority == 3 * 8 + {"notice": 5, "info": 6}[level], line
            assert re.search(r"liminald\[\d+\]: ", line), line
        assert any("connection closed" in line for line in found)
        assert server.lines == []
