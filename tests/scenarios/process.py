"""The daemon as a process: its options, how it starts or does not, the files it leaves, its user.

A start that must fail is `fails(...)`. Where the daemon's standard error is not its log (-d, `log =
/PATH`), Quiet knows it by its Unix socket and its pid file.
"""

import contextlib
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import tempfile

from frames import *
from harness import TIMEOUT, Server, Skip, eventually, program, scenario

try:
    import resource
except ImportError:
    resource = None

UNIX = "[server]\nlisten = DIR/bus\nhttp_listen = none\n"


def run(*arguments, config=None, files=None, env=None, preexec=None):
    """Runs the daemon to its end: (status, standard output, standard error). "FILE" among the
    arguments is a file with CONFIG, in a directory DIR with FILES."""
    with tempfile.TemporaryDirectory(prefix="lm-") as directory:
        path = os.path.join(directory, "liminald.conf")
        for name, data in {"liminald.conf": config or "", **(files or {})}.items():
            with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
                # Not for others: it may hold a token.
                os.fchmod(file.fileno(), 0o600)
                file.write(data.replace("DIR", directory))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIMINAL")}
        environment.update({k: v.replace("DIR", directory) for k, v in (env or {}).items()})
        done = subprocess.run(
            [program("LIMINALD", "liminald")] + [path if one == "FILE" else one
                                                 for one in arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            timeout=TIMEOUT, cwd=directory, env=environment, preexec_fn=preexec, check=False)
        return (done.returncode, done.stdout.decode().replace(path, "FILE"),
                done.stderr.decode().replace(path, "FILE"))


def fails(status, *words, **how):
    """The daemon does not start, and what it says has each of WORDS, regular expressions."""
    got, text = Server(**how).run()
    assert got == status, "exit status %d, expected %d: %s" % (got, status, text)
    for word in words:
        assert re.search(word, text), "no /%s/ in: %s" % (word, text)
    return text


class Quiet(Server):
    """A daemon that is found by its pid file and its Unix socket `bus`, not by what it prints."""

    def __init__(self, config=UNIX, args=(), detached=False, **how):
        self.detached = detached
        super().__init__(config=config, args=["-p", "pid", *(["-d"] if detached else []), *args],
                         **how)

    def path(self, name):
        return os.path.join(self.directory, name)

    def read(self, name):
        with open(self.path(name), encoding="utf-8") as file:
            return file.read()

    def start(self):
        self.spawn()
        if self.detached:
            self.wait_exit(0)
        # The pid file is older than the socket, and both than the first connection.
        eventually("it listens", lambda: os.path.exists(self.path("bus")) or
                   self.process.poll() not in (None, 0))
        self.addresses = [self.path("bus")]
        self.pid = int(self.read("pid"))
        return self

    def raw(self, **how):
        # The socket's path is there from bind(2) on, somebody answers from listen(2) on.
        connected = []

        def answers():
            try:
                connected.append(super(Quiet, self).raw(**how))
            except ConnectionRefusedError:
                return False
            return True

        eventually("somebody answers", answers)
        return connected[0]

    def raw(self, **how):
        """The path is there a moment before somebody listens."""
        def connected():
            with contextlib.suppress(ConnectionRefusedError):
                return super(Quiet, self).raw(**how)

        return eventually("somebody listens", connected)

    def signal(self, number):
        os.kill(self.pid, number)

    def stop(self):
        for client in self._clients:
            client.close()
        if not self.detached:
            super().stop()
        elif os.path.exists(self.path("pid")):
            self.signal(signal.SIGTERM)
            eventually("it has gone", lambda: not os.path.exists(self.path("pid")))

    def __exit__(self, kind, value, traceback):
        if self.detached:
            try:
                if kind is None:
                    self.stop()
            finally:
                with contextlib.suppress(OSError, ValueError):
                    os.kill(int(self.read("pid")), signal.SIGKILL)
                self._destroy()
            return
        super().__exit__(kind, value, traceback)


def root():
    """Skips unless this is root and there is a user `nobody`; that user's entry."""
    if os.geteuid() != 0:
        raise Skip("only root can become another user")
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise Skip("there is no user nobody") from None


def as_nobody(before=None):
    """For preexec: what the daemon's process does before it becomes the daemon."""
    entry = root()

    def become():
        if before is not None:
            before()
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)

    return become


def status_of(pid):
    """/proc/PID/status as a dict."""
    path = "/proc/%d/status" % pid
    if not os.path.exists(path):
        raise Skip("no %s here" % path)
    with open(path, encoding="utf-8") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


# Options

@scenario("The daemon", "-h prints the options, -V the version; exit status 0")
def help_and_version():
    status, out, err = run("-h")
    assert (status, err) == (0, "")
    for option in "CcdhpTtuVv":
        assert re.search(r"(?m)^\s+-%s\b" % option, out), "-%s is not in: %s" % (option, out)
    status, out, err = run("-V")
    assert (status, err) == (0, "") and re.match(r"liminald \d", out), out


@scenario("The daemon", "a usage error: a message and exit status 2")
def usage_errors():
    for arguments in (("-x",), ("-c",), ("-p",), ("-u",), ("argument",), ("-t", "more")):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "") and "usage: liminald" in err, (arguments, status, out, err)


@scenario("The daemon", "-t checks the configuration and exits: 0, and prints the worst-case "
          "memory that follows from the limits")
def check_configuration():
    config = ("[server]\nlisten = DIR/bus\ncontrol_socket = DIR/control\npidfile = DIR/pid\n"
              "log = DIR/log\n[channel a]\n")
    with tempfile.TemporaryDirectory(prefix="lm-") as directory:
        status, out, err = run("-t", "-c", "FILE", config=config.replace("DIR", directory))
        assert (status, err) == (0, ""), (status, err)
        assert os.listdir(directory) == [], "it left something behind"
    amounts = []
    for count in (10, 1000):
        status, out, err = run("-t", "-c", "FILE",
                               config="[limits]\nmax_connections = %d\n" % count)
        amounts.append(int(re.search(r"memory: (\d+) MiB", out).group(1)))
    # Each of the 990 may hold two frames of 16 MiB more than its outbox of 32 MiB, or so.
    assert amounts[1] - amounts[0] > 990 * 32, amounts


@scenario("The daemon", "-t warns where a value is legal but unwise")
def check_warns():
    config = "[limits]\nmax_frame_size = 1M\nmax_outbox_bytes = %s\n"
    status, _, err = run("-t", "-c", "FILE", config=config % "2047K")
    assert status == 0 and "max_outbox_bytes" in err and "warning" in err, err
    assert run("-t", "-c", "FILE", config=config % "2M")[::2] == (0, "")


@scenario("Start, stop, signals", "a configuration error: every error found, each with file:line, "
          "exit status 2; -t and -T say the same")
def every_configuration_error():
    config = ("[server]\nlisten = nowhere\n\nhttp_listen = 127.0.0.1:99999\nlog_level = loud\n"
              "[limits]\nmax_connections = 0\nmax_frame = 1M\n[chanel a]\n[channel b]\n"
              "[channel b]\nreply_timeout = 1s\njunk\n")
    texts = set()
    for arguments in ((), ("-t",), ("-T",)):
        status, out, err = run("-c", "FILE", *arguments, config=config)
        assert (status, out) == (2, ""), (status, out)
        for line in (2, 4, 5, 7, 8, 9, 11, 12, 13):
            assert re.search(r"\bFILE:%d: \S" % line, err), "line %d is not in: %s" % (line, err)
        assert "max_frame_size" in err, "no nearest valid name in: %s" % err
        texts.add(err)
    assert len(texts) == 1


@scenario("The daemon", "-c with a file that is not there, or cannot be read: exit status 2")
def no_such_file():
    for path in ("/nonexistent/liminald.conf", "/"):
        status, _, err = run("-c", path)
        assert status == 2 and path in err, (status, err)


@scenario("The daemon", "-T prints the effective configuration, a valid file with every default "
          "and no secrets")
def print_configuration():
    config = ("[server]\nlisten = DIR/a\nlisten = 127.0.0.1:7000\ndrain_timeout = 90s\n"
              "[auth]\ntoken = very-secret\n[conversations]\nworker_queues = one\n"
              "worker_queues = two\n[channel a.b]\nslow_consumer = drop\n[channel c]\n")
    status, out, err = run("-T", "-c", "FILE", config=config,
                           env={"LIMINAL_HEALTH_LISTEN_ADDRESS": "none"})
    assert status == 0, err
    assert "very-secret" not in out + err
    for line in ("listen = 127.0.0.1:7000", "http_listen = none", "worker_queues = two",
                 "[channel a.b]", "slow_consumer = drop", "[channel c]",
                 # Defaults that clients rely on.
                 "reply_timeout = 4900ms", "reply_timeout_max = 10m", "drain_idle = 2s",
                 "no_worker = echo", "worker_settle = 20ms", "max_frame_size = 16M",
                 "max_conversations_per_connection = 1024",
                 "unanswered_channels = aion.observability.v1"):
        assert line in out.splitlines(), "no '%s' in: %s" % (line, out)
    # But for the comment that a token was left out, it is what it prints of itself.
    again = re.sub("(?m)^# A token .*\n", "", out)
    assert again != out
    assert run("-T", "-c", "FILE", config=out) == (0, again, "")
    status, out, err = run("-T", "-c", "FILE", config="[auth]\ntoken_file = DIR/token\n",
                           files={"token": "very-secret\n"})
    assert status == 0 and "very-secret" not in out and re.search("token_file = .*/token", out)


@scenario("The daemon", "no configuration file named and none at the default place: it serves the "
          "built-in defaults with one channel, `events`, and says so")
def built_in_defaults():
    place = re.search(r"-c file .*? (/\S+)", run("-h")[1]).group(1)
    if os.path.exists(place):
        raise Skip("there is a file at the default place, %s" % place)

    class Bare(Server):
        def command(self):
            return [program("LIMINALD", "liminald")]

    with Bare(env={"LIMINAL_LISTEN_ADDRESS": "127.0.0.1:0",
                   "LIMINAL_HEALTH_LISTEN_ADDRESS": "none"}) as server:
        assert any("built-in defaults" in line and "events" in line for line in server.lines)
        client = server.client()
        client.subscribe(1, "events")
        client.send(publish(2, "other", b"x"))
        client.expect(publish_error(2, SERVER_ERROR, "channel 'other' is not configured"))


# The environment

@scenario("Configuration", "environment variables override the file, before validation: the value "
          "overridden is not looked at")
def environment_overrides():
    config = ("[server]\nlisten = nowhere\nhttp_listen = nowhere\ndrain_timeout = never\n"
              "[auth]\ntoken_file = /nonexistent/token\n[channel events]\n")
    env = {"LIMINAL_LISTEN_ADDRESS": "127.0.0.1:0", "LIMINAL_HEALTH_LISTEN_ADDRESS": "127.0.0.1:0",
           "LIMINAL_DRAIN_TIMEOUT_MS": "1500", "LIMINAL_AUTH_TOKEN": "of the environment"}
    with Server(config=config, env=env) as server:
        client = server.client(token=b"of the environment")
        client.expect_nothing()
        wrong = server.raw()
        wrong.send(connect("1.0", token=b"x"))
        wrong.expect(connect_error(AUTHENTICATION, "connection authentication token rejected"))
        assert server.http("/health")[0] == 200
    status, out, err = run("-T", "-c", "FILE", config=config, env=env)
    assert (status, err) == (0, "") and "drain_timeout = 1500ms" in out, (err, out)
    assert "of the environment" not in out
    # The token of the environment replaces the file's, too.
    with Server(auth={"token": "of the file"}, env=env) as server:
        server.client(token=b"of the environment").expect_nothing()


@scenario("Configuration", "a bad override is reported under its own name, exit status 2")
def bad_overrides():
    for name, bad in (("LIMINAL_LISTEN_ADDRESS", "nowhere"),
                      ("LIMINAL_LISTEN_ADDRESS", "1.2.3.4:x"),
                      ("LIMINAL_HEALTH_LISTEN_ADDRESS", "127.0.0.1"),
                      ("LIMINAL_DRAIN_TIMEOUT_MS", "soon"), ("LIMINAL_DRAIN_TIMEOUT_MS", "-1"),
                      ("LIMINAL_DRAIN_TIMEOUT_MS", "30s"), ("LIMINAL_DRAIN_TIMEOUT_MS", "3600001"),
                      ("LIMINAL_AUTH_TOKEN", "x" * 5000)):
        fails(2, name, env={name: bad})
        status, _, err = run("-t", "-c", "FILE", env={name: bad})
        assert status == 2 and name in err, (name, bad, status, err)


@scenario("Configuration", "a file named by the configuration that cannot be read is a "
          "configuration error, also under -t")
def unreadable_files():
    for setting, config in (("token_file", "[auth]\ntoken_file = /nonexistent/token\n"),
                            ("schema", "[channel a]\nschema = /nonexistent/schema.json\n")):
        for arguments in ((), ("-t",)):
            status, _, err = run("-c", "FILE", *arguments, config=config)
            assert status == 2 and "FILE:2: " in err and "/nonexistent/" in err, (status, err)
            assert setting in err, err


@scenario("Configuration", "token_file: the first line is the token; schema: the bytes give the "
          "channel's schema id")
def named_files():
    document = b'{"type":"object"}\n'
    long = "t" * 4096
    for token in ("a token", long):
        with Server(config="[server]\nlisten = 127.0.0.1:0\nhttp_listen = none\n"
                    "[auth]\ntoken_file = DIR/token\n[channel a]\nschema = DIR/schema\n",
                    files={"token": token.encode() + b"\nsecond line\n",
                           "schema": document}) as server:
            client = server.client(token=token.encode())
            client.send(subscribe(1, "a", accepted=[schema_id(document)]), publish(2, "a", b"x"))
            client.expect(subscribe_ack(1, 1, schema_id(document)), publish_ack(2, 1, DELIVERED),
                          deliver(1, 1, b"x", schema=schema_id(document)))


# Starts that fail

@scenario("Start, stop, signals", "a start-up failure: a message that names the setting, exit "
          "status 1: an address in use")
def address_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        fails(1, r"\blisten\b", re.escape(address), server={"listen": address})
        fails(1, "http_listen", re.escape(address), server={"http_listen": address})


@scenario("Start, stop, signals", "... a path where no file can be made: pid file, log, sockets")
def unusable_paths():
    for setting, option in (("pidfile", "-p"), ("log", None), ("control_socket", None),
                            ("listen", None)):
        path = "/nonexistent/x"
        fails(1, {"pidfile": "pid ?file"}.get(setting, r"\b%s\b" % setting), path,
              server={setting: path})
        if option is not None:
            fails(1, path, args=[option, path])


@scenario("Start, stop, signals", "... a user or group that does not exist")
def unknown_user():
    fails(1, "user", "no-such-user", server={"user": "no-such-user"})
    fails(1, "user", "no-such-user", args=["-u", "no-such-user"])
    fails(1, "group", "no-such-group", server={"group": "no-such-group"})


@scenario("Start, stop, signals", "... another user without the right to become it")
def user_without_privileges():
    become = as_nobody() if os.geteuid() == 0 else None
    server = Server(server={"user": "root"}, preexec=become)
    os.chmod(server.directory, 0o755)
    try:
        status, text = server.run()
    except PermissionError:
        raise Skip("nobody cannot run the daemon here") from None
    assert status == 1 and re.search("user.*root", text), (status, text)


@scenario("Start, stop, signals", "where the hard limit does not allow the descriptors that "
          "max_connections needs: exit status 2, naming both numbers")
def too_few_descriptors():
    if resource is None:
        raise Skip("no module resource here")

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

    if os.geteuid() == 0:
        limit = as_nobody(limit)
    server = Server(limits={"max_connections": 1000}, preexec=limit)
    os.chmod(server.directory, 0o755)
    try:
        status, text = server.run()
    except PermissionError:
        raise Skip("nobody cannot run the daemon here") from None
    assert status == 2 and "1256" in text and "200" in text, (status, text)
    assert "max_connections" in text, text


@scenario("Start, stop, signals", "the soft descriptor limit is raised to what max_connections "
          "needs, and 256 more")
def descriptors_raised():
    if not hasattr(resource, "prlimit"):
        raise Skip("no prlimit here")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1000:
        raise Skip("the hard limit is below 1000 here")

    def limit():
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))

    with Server(limits={"max_connections": 500}, preexec=limit) as server:
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0] >= 756


# The pid file

@scenario("Start, stop, signals", "the pid file holds the decimal process id and a newline, and is "
          "removed at exit; -p overrides pidfile")
def pid_file():
    for how in ({"server": {"pidfile": "pid"}}, {"args": ["-p", "pid"]},
                {"args": ["-p", "pid"], "server": {"pidfile": "/nonexistent/pid"}}):
        with Server(**how) as server:
            path = os.path.join(server.directory, "pid")
            with open(path, encoding="ascii") as file:
                assert file.read() == "%d\n" % server.process.pid
            server.signal(signal.SIGTERM)
            server.wait_exit(0)
            assert not os.path.exists(path)


@scenario("Start, stop, signals", "a stale pid file is overwritten")
def pid_file_stale():
    stale = "99999999\nand more than a process id has\n" * 10
    with Server(server={"pidfile": "DIR/pid"}, files={"pid": stale.encode()}) as server:
        with open(os.path.join(server.directory, "pid"), encoding="ascii") as file:
            assert file.read() == "%d\n" % server.process.pid


@scenario("Start, stop, signals", "the pid file is locked: a second server does not start, and "
          "leaves the file alone")
def pid_file_locked():
    with Server(server={"pidfile": "DIR/pid"}) as server:
        path = os.path.join(server.directory, "pid")
        fails(1, "pidfile|pid file", re.escape(path), str(server.process.pid),
              server={"pidfile": path})
        with open(path, encoding="ascii") as file:
            assert file.read() == "%d\n" % server.process.pid
        server.client().expect_nothing()


# Sockets

@scenario("Start, stop, signals", "several addresses, TCP and Unix; a Unix socket in listen has "
          "mode 0660")
def unix_sockets():
    server = Server(server={"listen": ["DIR/a", "127.0.0.1:0", "DIR/b"]})
    umask = os.umask(0o777)
    try:
        with server:
            os.umask(umask)
            assert len(server.addresses) == 3
            clients = [server.raw(address=address) for address in server.addresses]
            for client in clients:
                client.send(connect("1.0"))
                client.expect(connect_ack("1.0"))
            for path in server.addresses:
                if isinstance(path, str):
                    mode = os.stat(path).st_mode
                    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o660, oct(mode)
    finally:
        os.umask(umask)


@scenario("Start, stop, signals", "an IPv6 address")
def ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        raise Skip("no IPv6 here") from None
    with Server(server={"listen": "[::1]:0"}) as server:
        assert server.addresses[0][0] == "::1"
        server.client().expect_nothing()


@scenario("Start, stop, signals", "a socket path that nobody answers on is replaced, one that "
          "answers is an error; what is no socket is left alone")
def socket_paths():
    for setting in ("listen", "control_socket"):
        with tempfile.TemporaryDirectory(prefix="lm-") as directory:
            path = os.path.join(directory, "s")
            with open(path, "w", encoding="ascii") as file:
                file.write("no socket")
            fails(1, setting, re.escape(path), server={setting: path})
            with open(path, encoding="ascii") as file:
                assert file.read() == "no socket"
            os.unlink(path)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
                stale.bind(path)
                stale.listen()
                fails(1, setting, re.escape(path), server={setting: path})
                assert os.path.exists(path), "it has removed what it must not"
            with Server(server={setting: path}) as server:
                client = server.raw(path=path)
                client.send(ping())
                client.expect(pong())


@scenario("Start, stop, signals", "socket paths are removed at exit")
def socket_paths_removed():
    with Server(server={"listen": ["127.0.0.1:0", "DIR/bus"]}, control=True) as server:
        server.signal(signal.SIGTERM)
        server.wait_exit(0)
        assert not os.path.exists(os.path.join(server.directory, "bus"))
        assert not os.path.exists(server.control_path)


# The user

@scenario("Start, stop, signals", "sockets are bound, and log file and control socket created and "
          "given to `user`, before privileges are dropped; supplementary groups are dropped too")
def becomes_user():
    entry = root()
    for how in ({"config": UNIX.replace("\n", "\nuser = nobody\n", 1)},
                {"config": UNIX.replace("\n", "\nuser = root\n", 1), "args": ["-u", "nobody"]}):
        how["config"] += "control_socket = DIR/control\nlog = DIR/log\n[channel events]\n"
        # The directory is root's, and nobody may not even look into it.
        with Quiet(preexec=lambda: os.setgroups([0, 1, 2]), **how) as server:
            # It binds before it drops privileges, and answers after that.
            for path in (server.path("bus"), server.path("control")):
                client = server.raw(path=path)
                client.send(ping())
                client.expect(pong())
            status = status_of(server.pid)
            assert status["Uid"].split() == [str(entry.pw_uid)] * 4, status["Uid"]
            assert status["Gid"].split() == [str(entry.pw_gid)] * 4, status["Gid"]
            assert status["Groups"].split() in ([], [str(entry.pw_gid)]), status["Groups"]
            assert int(status.get("CapEff", "0"), 16) == 0
            for name in ("bus", "control", "log"):
                found = os.stat(server.path(name))
                assert (found.st_uid, found.st_gid) == (entry.pw_uid, entry.pw_gid), name
            # It cannot read its configuration again, and says so.
            server.stop()
            assert re.search(r"level=warning .*path=%s" % re.escape(server.config_path),
                             server.read("log")), server.read("log")


@scenario("Start, stop, signals", "`group` is the group that it becomes")
def becomes_group():
    entry = root()
    with Server(server={"user": "nobody", "group": "root"}) as server:
        status = status_of(server.process.pid)
        assert status["Uid"].split() == [str(entry.pw_uid)] * 4, status["Uid"]
        assert status["Gid"].split() == ["0"] * 4, status["Gid"]


@scenario("Start, stop, signals", "a file that `user` could not read again at reload is warned "
          "about at start: configuration, token_file, schema")
def unreadable_at_reload():
    root()
    config = ("[server]\nlisten = 127.0.0.1:0\nhttp_listen = none\nuser = nobody\n"
              "[auth]\ntoken_file = DIR/token\n[channel a]\nschema = DIR/schema\n")
    for readable in (False, True):
        server = Server(config=config, files={"token": b"x\n", "schema": b"{}"})
        os.chmod(server.directory, 0o755 if readable else 0o700)
        with server:
            server.client(token=b"x").expect_nothing()
            server.stop()
            for path in (server.config_path, server.directory + "/token",
                         server.directory + "/schema"):
                found = any("level=warning" in line and path in line for line in server.lines)
                assert found != readable, (path, readable)


# Detached

@scenario("The daemon", "-d detaches: the command returns 0 when the daemon serves",
          "in a new session, with / as its directory and its standard streams on /dev/null")
def detached():
    with Quiet(detached=True) as server:
        # It serves already, and standard error had its end, or wait_exit would have waited.
        server.client().expect_nothing()
        assert server._log_ended and server.lines == []
        assert server.pid != server.process.pid
        assert os.getsid(server.pid) == server.pid
        if not os.path.exists("/proc/self/cwd"):
            return
        assert os.readlink("/proc/%d/cwd" % server.pid) == "/"
        for number in range(3):
            assert os.readlink("/proc/%d/fd/%d" % (server.pid, number)) == "/dev/null"


@scenario("The daemon", "-d: the command returns when the daemon has failed, with its message and "
          "its exit status")
def detached_failure():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        fails(1, re.escape(address), server={"listen": address}, args=["-d"])
    fails(2, "log_level", server={"log_level": "loud"}, args=["-d"])
    fails(1, "no-such-user", args=["-d", "-u", "no-such-user"])


@scenario("Start, stop, signals", "relative paths count from the start directory, also after -d")
def detached_with_relative_paths():
    class Relative(Quiet):
        def command(self):
            return [program("LIMINALD", "liminald"), "-c", "liminald.conf"] + self.args

    with Relative(config=UNIX + "[channel a]\n", detached=True) as server:
        client = server.client()
        client.send(publish(1, "b", b"x"))
        client.expect(publish_error(1, SERVER_ERROR, "channel 'b' is not configured"))
        server.configure(UNIX + "[channel a]\n[channel b]\n")
        server.signal(signal.SIGHUP)

        def there():
            client.send(publish(1, "b", b"x"))
            return client.receive().raw == publish_ack(1, 1)

        eventually("the channel is there", there)


# Signals

@scenario("Start, stop, signals", "SIGTERM and SIGINT end it with exit status 0; SIGPIPE is "
          "ignored")
def signals():
    for number in (signal.SIGTERM, signal.SIGINT):
        with Server() as server:
            client = server.client()
            server.signal(signal.SIGPIPE)
            client.expect_nothing()
            client.close()
            server.signal(number)
            server.wait_exit(0)
