"""The scenario ring: the real daemon, literal frames, barriers instead of sleeps.

A scenario is a function that says which rule of behaviour it pins:

    from frames import *
    from harness import Server, scenario

    @scenario("Publish", "the ack is on the wire before the publisher's own delivery", client=True)
    def ack_before_own_delivery():
        with Server() as server:
            client = server.client()
            client.subscribe(2, "events")
            client.send(publish(1, "events", b"x"))
            client.expect(publish_ack(1, 1, flags=0x01), deliver(2, 1, b"x"))
            client.expect_nothing()

It fails by an exception, and whatever it leaves behind is cleaned up: each runs in a process group
of its own, with a time limit. A file of scenarios is any *.py here that imports `scenario`; `run`
finds it. The arguments of @scenario are rows of the table in tests/README (`run --table`): section,
rule, and client=True for the rules that published clients break without.

Server(...)     a daemon under test, as a context manager:
    Server()                                    one channel, "events", open, no HTTP, no control
    Server(channels={"a": {}, "b": {"slow_consumer": "drop"}})
    Server(limits={"max_connections": 2}, auth={"token": "secret"}, conversations={...},
           server={"drain_timeout": "5s"})      a list as a value repeats the key
    Server(http=True, control=True)             an HTTP port, a control socket (server.control_path)
    Server(config="...", files={"schema.json": b"..."})
                        a literal file; DIR in it is the server's directory, which has these files
    Server(args=["-v"], env={"LIMINAL_AUTH_TOKEN": "x"})
  On leaving the block its clients are closed, SIGTERM sent, and exit status 0 and a clean standard
  error demanded (no assertion, no sanitizer's report). To end otherwise: server.signal(...), then
  server.wait_exit(status). A start that must fail: Server(...).run() gives (status, output).
    server.raw()            a Client that has sent nothing; server.raw(path=...) for a Unix socket
    server.client("1.2")    a Client after Connect and ConnectAck (default 1.0)
    server.control()        a Client on the control socket
    server.ask("stats", {})  the server's own answer over the control socket, as a dict
    server.log(pattern)     waits for a line of standard error that the regular expression finds;
                            the match. Lines are used up: the next call looks behind that line
    server.lines            all lines until now; fields(line) splits one into a dict
    server.closed(client)   waits for the last line about that client's connection; its reason
    server.memory(), server.address_space(), server.descriptors()
                            what the daemon has resident and mapped, in bytes, and how many
                            descriptors are open (Linux, else Skip)
    server.restart()        ends it cleanly, or with kill=True at once, and starts it anew, with the
                            same files; its clients are closed, its log begins anew
    server.http("/ready")   (status, headers, body); server.metric('name{label="x"}') a number

Client          a raw socket:
    send(*frames)           all in one write
    expect(*frames)         exactly these come next, byte for byte (or ErrorLike, see frames.py)
    expect_nothing()        Ping, and Pong is the next frame: all that was queued before is read
    expect_end()            end of stream comes next; a reset or a byte is a failure. Then it
                            closes, unless told to stay
    arrived()               waits until all that was sent is with the server: a reset takes back
                            what is not
    receive()               the next frame, whatever it is
    receive_until(frame)    all frames up to one that equals FRAME, without it
    receive_all()           all frames until the end of the stream
    subscribe(stream, channel, ...)   Subscribe and its ack; the subscription id
    publish(stream, channel, payload, ...)   Publish and its ack; the message id. position is that
                            of a durable channel then, which versions 1.1 and later are told
    half_close(), reset(), close()
  Its receive buffer is as small as SERVER.raw(receive_buffer=4096) says: it is soon slow.

eventually(what, test)   for what cannot be waited for: asks again until test() is true.

Every wait has TIMEOUT, generous because sanitizers and busy machines are slow; it never passes in
a scenario that succeeds.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import threading
import time

import frames

TIMEOUT = 30.0

SCENARIOS = []

# What in standard error means that the daemon is broken, whatever its exit status.
BROKEN = re.compile(r"Sanitizer|runtime error:|[Aa]ssert|lock order|SUMMARY:|stack smashing")


class Skip(Exception):
    """This scenario cannot be played here; the text says why."""


def scenario(section, *rules, client=False):
    """Marks a function as a scenario for RULES of SECTION."""
    def register(function):
        function.section, function.rules, function.client = section, rules, client
        SCENARIOS.append(function)
        return function
    return register


def program(variable, name):
    """Path of a program under test: from the environment, else in the directory of the build."""
    path = os.environ.get(variable) or os.path.join(os.getcwd(), name)
    if not os.access(path, os.X_OK):
        raise RuntimeError("no program '%s': set %s, or start this where it was built" %
                           (path, variable))
    return os.path.abspath(path)


def fields(line):
    """A line of the log as a dict."""
    found = {}
    for key, value in re.findall(r'([A-Za-z_]+)=("(?:[^"\\]|\\.)*"|\S*)', line):
        found[key] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value[:1] == '"' else value
    return found


def deadline_after(seconds=TIMEOUT):
    return time.monotonic() + seconds


def eventually(what, test):
    """For what only asking shows: asks until TEST() gives something true, and gives that."""
    deadline = deadline_after()
    while True:
        result = test()
        if result:
            return result
        assert time.monotonic() < deadline, "never: %s" % what
        time.sleep(0.005)


class Server:
    capabilities = 0  # as its ConnectAcks tell

    def __init__(self, channels=("events",), args=(), env=None, config=None, files=None,
                 http=False, control=False, preexec=None, **sections):
        self.directory = tempfile.mkdtemp(prefix="lm-")
        for name, data in (files or {}).items():
            with open(os.path.join(self.directory, name), "wb") as file:
                file.write(data)
        self.control_path = os.path.join(self.directory, "control")
        self.config_path = os.path.join(self.directory, "liminald.conf")
        self.args, self.preexec = list(args), preexec
        # The overrides of whoever runs the tests must not reach the daemon under test.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("LIMINAL")}
        self.environment.update(env or {})
        if config is None:
            config = self._configuration(channels, http, control, sections)
        self.configure(config)
        self.addresses, self.http_address = [], None
        self.process, self.descriptors_to_pass = None, ()
        self.lines, self._seen, self._log_ended = [], 0, False
        self._changed = threading.Condition()
        self._clients = []

    def _configuration(self, channels, http, control, sections):
        server = {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0" if http else "none"}
        if control:
            server["control_socket"] = self.control_path
        server.update(sections.pop("server", {}))
        text = [_section("server", server)]
        text += [_section(name, values) for name, values in sections.items()]
        if not isinstance(channels, dict):
            channels = {name: {} for name in channels}
        text += [_section("channel " + name, values) for name, values in channels.items()]
        return "".join(text)

    def configure(self, text):
        """Writes the configuration file (anew); SIGHUP makes a running server read it."""
        self.config = text.replace("DIR", self.directory)
        with open(self.config_path, "w", encoding="utf-8") as file:
            file.write(self.config)

    # Starting and stopping

    def command(self):
        return [program("LIMINALD", "liminald"), "-c", self.config_path] + self.args

    def spawn(self):
        self.lines, self._seen, self._log_ended = [], 0, False
        self.process = subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=self.environment, cwd=self.directory, preexec_fn=self.preexec,
            pass_fds=self.descriptors_to_pass)
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def start(self):
        """Starts the daemon and waits until it serves at every address it was told."""
        self.spawn()
        self.addresses = [_address(self.log(r'event="listening" address=(\S+)').group(1))
                          for _ in re.findall(r"(?m)^\s*listen\s*=", self.config)]
        if re.search(r"(?m)^\s*http_listen\s*=(?!\s*none)", self.config):
            line = self.log(r'event="http listening" address=(\S+)', again=True)
            self.http_address = _address(line.group(1))
        return self

    def run(self):
        """For a start that must fail: (exit status, all output)."""
        try:
            self.spawn()
            status = self.process.wait(TIMEOUT)
            self._reader.join(TIMEOUT)
            return status, "\n".join(self.lines)
        finally:
            self._destroy()

    def signal(self, number):
        self.process.send_signal(number)

    def wait_exit(self, status=0):
        got = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        broken = [line for line in self.lines if BROKEN.search(line)]
        assert not broken, "the daemon is broken: %s" % broken[0]
        assert got == status, "exit status %d, expected %d" % (got, status)

    def stop(self):
        """Closes the clients, ends the daemon by SIGTERM and demands that it left cleanly."""
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        self.wait_exit(0)

    def kill(self):
        """The death of the process, without any goodbye."""
        self.process.kill()
        self.process.wait()
        self._reader.join(TIMEOUT)

    def restart(self, kill=False):
        if kill:
            self.kill()
        else:
            self.stop()
        for client in self._clients:
            client.close()
        self._clients = []
        self.start()

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self._fail()
            self._destroy()
            raise

    def __exit__(self, kind, value, traceback):
        if kind is not None:
            if not issubclass(kind, Skip):
                self._fail()
            self._destroy()
            return
        try:
            # A scenario that has seen the exit itself (wait_exit) is done.
            if self.process.returncode is None:
                self.stop()
        except BaseException:
            self._fail()
            raise
        finally:
            self._destroy()

    def _fail(self):
        """Shows what the daemon said, and ends it."""
        status = self.process.poll() if self.process else None
        if self.process and status is None:
            self.process.kill()
            self.process.wait()
            self._reader.join(TIMEOUT)
        print("daemon: %s" % ("still running" if status is None else "exit status %d" % status))
        print("configuration:\n" + "".join("  " + l for l in self.config.splitlines(True)))
        print("its standard error%s:" % (", the last 200 lines" if len(self.lines) > 200 else ""))
        for line in self.lines[-200:]:
            print("  " + line)

    def _destroy(self):
        for client in self._clients:
            client.close()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    # Its log

    def _read_log(self):
        with self.process.stderr as stream:
            for line in stream:
                with self._changed:
                    self.lines.append(line.decode("utf-8", "backslashreplace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._log_ended = True
            self._changed.notify_all()

    def log(self, pattern, again=False, timeout=TIMEOUT):
        """Waits for a line behind the last one found (AGAIN: any line) that PATTERN finds."""
        deadline, at = deadline_after(timeout), 0 if again else self._seen
        with self._changed:
            while True:
                while at < len(self.lines):
                    at += 1
                    found = re.search(pattern, self.lines[at - 1])
                    if found:
                        if not again:
                            self._seen = at
                        return found
                left = deadline - time.monotonic()
                assert left > 0 and not self._log_ended, "no line /%s/ in the log" % pattern
                self._changed.wait(left)

    def closed(self, client):
        """The reason in the last line about CLIENT's connection, as soon as it is there."""
        line = self.log(r'event="connection closed".* peer=%s\b.*' % re.escape(client.name),
                        again=True)
        return fields(line.group(0))["reason"]

    # What the system says about it

    def memory(self):
        return self._statm(1)

    def address_space(self):
        return self._statm(0)

    def _statm(self, field):
        with open(self._proc("statm"), encoding="ascii") as file:
            return int(file.read().split()[field]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self):
        return len(os.listdir(self._proc("fd")))

    def _proc(self, name):
        path = "/proc/%d/%s" % (self.process.pid, name)
        if not os.path.exists(path):
            raise Skip("no %s here" % path)
        return path

    # Clients

    def raw(self, path=None, receive_buffer=None, address=None):
        client = Client(path or address or self.addresses[0], receive_buffer)
        self._clients.append(client)
        return client

    def forget(self, client):
        """For scenarios with thousands of clients: no need to close this one at the end."""
        self._clients.remove(client)

    def client(self, version="1.0", token=b"", **how):
        client = self.raw(**how)
        client.send(frames.connect(version, token=token))
        client.expect(frames.connect_ack(version, self.capabilities))
        return client

    def control(self, version="1.0"):
        return self.client(version, path=self.control_path)

    def ask(self, name, question=None):
        """A request to $control/NAME on a connection of its own; the reply's object."""
        client = self.control()
        client.send(frames.conversation_open(1, 1, "$control/" + name),
                    frames.request(1, 1, json.dumps(question or {}).encode()))
        got = client.receive()
        assert got.type == 0x0D, "not a reply: %s" % got
        # Its slot is one of four: let it be free again when this returns.
        client.half_close()
        client.expect_end()
        return json.loads(frames.payload_of(got))

    # HTTP

    def http(self, path, method="GET"):
        peer = socket.create_connection(self.http_address, TIMEOUT)
        with peer:
            peer.sendall(("%s %s HTTP/1.0\r\n\r\n" % (method, path)).encode())
            answer = b""
            while True:
                piece = peer.recv(65536)
                if not piece:
                    break
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, value in
                   (line.split(":", 1) for line in lines)}
        return int(status.split()[1]), headers, body.decode()

    def metric(self, name):
        """The value of one series; None when there is no such series."""
        for line in self.http("/metrics")[2].splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        return None


class Client:
    def __init__(self, address, receive_buffer=None):
        family = socket.AF_INET
        if isinstance(address, str):
            family = socket.AF_UNIX
        elif ":" in address[0]:
            family = socket.AF_INET6
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(address)
        if family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.name = "%s:%d" % self.socket.getsockname()[:2]
        self.buffer = bytearray()

    def send(self, *data):
        self.socket.sendall(b"".join(data))

    def _more(self):
        """Reads on; false at the end of the stream."""
        try:
            piece = self.socket.recv(1 << 18)
        except socket.timeout:
            raise AssertionError("nothing came; so far: %r" % bytes(self.buffer)) from None
        self.buffer += piece
        return bool(piece)

    def receive(self):
        """The next frame."""
        while True:
            one, end = frames.parse(self.buffer)
            if one is not None:
                del self.buffer[:end]
                return one
            assert self._more(), "end of stream instead of a frame; so far: %r" % bytes(self.buffer)

    def expect(self, *expected):
        """Exactly these frames come next. Gives the last one."""
        got = None
        wanted = []
        for item in expected:
            wanted += [item] if isinstance(item, frames.ErrorLike) else frames.parse_all(item)
        for number, item in enumerate(wanted, 1):
            try:
                got = self.receive()
            except (AssertionError, OSError) as failure:
                raise AssertionError("expected %s (%d of %d): %s" % (
                    item, number, len(wanted), failure)) from None
            same = item.matches(got) if isinstance(item, frames.ErrorLike) else item == got
            assert same, "frame %d of %d\n  expected %s\n  got      %s" % (
                number, len(wanted), item, got)
        return got

    def receive_until(self, last):
        """All frames up to the one that equals LAST (bytes, or ErrorLike), without it."""
        found = []
        while True:
            got = self.receive()
            if last.matches(got) if isinstance(last, frames.ErrorLike) else last == got.raw:
                return found
            found.append(got)

    def expect_nothing(self):
        self.send(frames.ping())
        self.expect(frames.pong())

    def expect_end(self, stay=False):
        try:
            rest = self.receive_all()
        except ConnectionResetError:
            raise AssertionError("a reset where the end of the stream was expected") from None
        assert not rest, "before the end came %s" % "; ".join(map(str, rest))
        if not stay:
            self.close()

    def receive_all(self):
        """All frames until the end of the stream."""
        while self._more():
            pass
        data, self.buffer = self.buffer, bytearray()
        return frames.parse_all(data)

    def subscribe(self, stream, channel, **how):
        self.send(frames.subscribe(stream, channel, **how))
        got = self.receive()
        assert got.raw == frames.subscribe_ack(stream, got.u64()), "not a SubscribeAck: %s" % got
        return got.u64()

    def publish(self, stream, channel, payload, **how):
        """Gives the message id; self.flags are the ack's, self.position that of the message."""
        self.send(frames.publish(stream, channel, payload, **how))
        got = self.receive()
        self.flags = got.flags
        self.position = got.u64(8) if got.type == 0x0A and got.flags & 0x02 else None
        assert got.type == 0x0A and got.stream == stream, "not a PublishAck: %s" % got
        return got.u64()

    def arrived(self):
        eventually("all has arrived", lambda: struct.unpack(
            "i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))) == (0,))

    def half_close(self):
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self):
        self.socket.close()


def _section(name, values):
    lines = ["[%s]\n" % name]
    for key, value in values.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            lines.append("%s = %s\n" % (key, one))
    return "".join(lines)


def _address(text):
    """HOST:PORT, [IPV6]:PORT or a path, as a socket address."""
    if text.startswith("/"):
        return text
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
