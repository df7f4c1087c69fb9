"""What an idle server costs: no system call, and little memory for each connection.

Both are measured from outside, in the build without sanitizers only: those have threads, and keep
memory, of their own.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import tempfile

from conversations import opened, worker
from frames import *
from harness import TIMEOUT, Server, Skip, eventually, scenario

try:
    import resource
except ImportError:
    resource = None

CONNECTIONS = 1000
KIB = 1024


def skip_with_sanitizer(server):
    """A sanitizer shows in the address space that it reserves."""
    if server.address_space() > 1 << 40:
        raise Skip("not under a sanitizer")


class Trace:
    """What strace(1) sees of a process, in all its threads."""

    def __init__(self, server):
        if shutil.which("strace") is None:
            raise Skip("strace is not installed")
        self.output = tempfile.NamedTemporaryFile("r", prefix="lm-", encoding="utf-8")
        self.process = subprocess.Popen(
            ["strace", "-f", "-o", self.output.name, "-p", str(server.process.pid)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        # It says so for each thread, and they all are there before anything else is.
        threads = len(os.listdir("/proc/%d/task" % server.process.pid))
        said = b""
        while said.count(b"attached") < 1 or b"with %d threads" % threads not in said:
            if threads == 1 and b"attached" in said:
                break
            assert select.select([self.process.stderr], [], [], TIMEOUT)[0], said
            piece = os.read(self.process.stderr.fileno(), 4096)
            said += piece
            if not piece:
                raise Skip("strace cannot trace here: %s" % said.decode().strip())

    def calls(self):
        """The calls that were begun or have ended since it was attached. Those in which each thread
        stood then are shown as begun, and are left out."""
        self.output.seek(0)
        lines = [line.split(None, 1) for line in self.output.read().splitlines()]
        seen, calls = set(), []
        for thread, text in lines:
            if thread in seen or not text.endswith("<unfinished ...>"):
                calls.append(text)
            seen.add(thread)
        return calls

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        self.process.stderr.close()
        self.output.close()


@scenario("The daemon", "an idle server makes no system call at all, whatever is connected")
def no_system_calls():
    with Server(http=True, control=True, server={"listen": ["127.0.0.1:0", "DIR/bus"]}) as server:
        skip_with_sanitizer(server)
        subscriber, jobs = server.client(), worker(server)
        subscriber.subscribe(1, "events")
        client, control, silent = opened(server, 1), server.control(), server.client()
        # They have all been busy: what that has set up is to come to rest.
        client.send(request(3, 1, b"x"))
        got = jobs.receive()
        jobs.send(push_reply(1, got.u64(), b"y"))
        client.expect(reply(3, 1, b"y"))
        client.send(*[publish(1, "events", bytes(1000)) for _ in range(1000)])
        client.expect(*[publish_ack(1, number, DELIVERED) for number in range(1, 1001)])
        subscriber.expect(*[deliver(1, number, bytes(1000)) for number in range(1, 1001)])
        assert server.http("/metrics")[0] == 200
        with Trace(server) as trace:
            # As long as it takes: every timer there is has run out, and nothing starts another.
            last = [None]

            def at_rest():
                before, last[0] = last[0], trace.calls()
                if before is not None and last[0] == before:
                    return True
                select.select([], [], [], 0.5)
                return False

            eventually("it comes to rest", at_rest)
            before = trace.calls()
            select.select([], [], [], 1.0)
            calls = trace.calls()[len(before):]
            assert not calls, "an idle server does this: %s" % "; ".join(calls)
            # The trace would have shown it.
            silent.expect_nothing()
            eventually("the trace shows a Ping", lambda: any(
                "recv" in call or "read" in call for call in trace.calls()[len(before):]))
        control.expect_nothing()


def resident(server):
    """Memory that is resident and the daemon's own, in bytes."""
    path = "/proc/%d/smaps_rollup" % server.process.pid
    if not os.path.exists(path):
        raise Skip("no %s here" % path)
    with open(path, encoding="ascii") as file:
        text = file.read()
    sizes = re.findall(r"(?m)^Private_(?:Clean|Dirty): +(\d+)", text)
    return sum(map(int, sizes)) * KIB


@scenario("The daemon", "an idle connection costs at most 12 kB of resident memory")
def memory_of_idle_connections():
    if resource is None:
        raise Skip("no module resource here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CONNECTIONS + 300:
        raise Skip("the hard limit of descriptors is %d" % hard)
    if soft < CONNECTIONS + 300:
        resource.setrlimit(resource.RLIMIT_NOFILE, (CONNECTIONS + 300, hard))
    with Server(limits={"max_connections": CONNECTIONS + 100}) as server:
        skip_with_sanitizer(server)
        for client in [server.client() for _ in range(10)]:
            client.publish(1, "events", b"x")
        before = resident(server)
        clients = [server.client() for _ in range(CONNECTIONS)]
        for client in clients:
            client.expect_nothing()
        each = (resident(server) - before) / CONNECTIONS
        assert each <= 12 * KIB, "%.1f kB for each connection" % (each / KIB)
        # The same when each has been busy for a while.
        for client in clients:
            client.send(publish(1, "events", bytes(3000)) * 20, ping())
            client.receive_until(pong())

        def given_back():
            return resident(server) - before <= CONNECTIONS * 12 * KIB

        eventually("what traffic needed is given back", given_back)
