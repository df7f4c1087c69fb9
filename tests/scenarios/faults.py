"""Faults: what the outside does to a server, and that it lives on."""

import signal
import threading

from frames import *
from harness import Server, Skip, eventually, scenario

try:
    import resource
except ImportError:
    resource = None


def limit(server, what, value):
    """Sets the soft limit WHAT of the running daemon (Linux); the former one."""
    if not hasattr(resource, "prlimit"):
        raise Skip("no prlimit here")
    soft, hard = resource.prlimit(server.process.pid, what)
    resource.prlimit(server.process.pid, what, (value, hard))
    return soft


@scenario("Faults", "10,000 connects and resets, with whole and partial frames in them, leave "
          "nothing behind")
def connects_and_resets():
    with Server() as server:
        steady = server.client()
        steady.subscribe(1, "events")
        before = server.descriptors()
        beginnings = (b"", connect("1.0"), ping() + publish(1, "events", b"x")[:30],
                      connect("1.0")[:7], ping() * 100)
        for number in range(10000):
            client = server.raw()
            client.send(beginnings[number % len(beginnings)])
            client.reset()
            server.forget(client)
        eventually("the descriptors are back", lambda: server.descriptors() <= before)
        steady.send(publish(1, "events", b"x"))
        steady.expect(publish_ack(1, 1, DELIVERED), deliver(1, 1, b"x"))
        server.client().expect_nothing()


@scenario("Faults", "descriptors used up (EMFILE): accepting is paced, counted, and recovers, "
          "while connections that stand are served")
def descriptors_used_up():
    with Server(http=True) as server:
        steady = server.client()
        server.http("/health")
        eventually("only the connection is open", lambda: server.metric(
            "liminal_connections_active") == 1)
        former = limit(server, resource.RLIMIT_NOFILE, server.descriptors() + 1)
        waiting = [server.raw() for _ in range(5)]
        for client in waiting:
            client.send(ping())
        server.log(r"EMFILE|[Tt]oo many open files")
        for _ in range(500):
            steady.expect_nothing()
        limit(server, resource.RLIMIT_NOFILE, former)
        for client in waiting:
            client.expect(pong())
        # An acceptor that is not paced would have tried many times for each of those Pings.
        errors = server.metric('liminal_accept_errors_total{errno="EMFILE"}')
        assert 1 <= errors < 250, "counted %g times" % errors


@scenario("Faults", "SIGTERM under load: nothing acknowledged as delivered is lost to a subscriber "
          "that goes on reading")
def sigterm_under_load():
    with Server(server={"drain_timeout": "300ms"}) as server:
        subscriber = server.client("1.2")
        acked, delivered, told, ended = [], [], [], []
        subscriber.subscribe(1, "events")
        publishers = [server.client() for _ in range(3)]
        begun = threading.Barrier(len(publishers) + 1)

        def pump(client):
            for number in range(1 << 30):
                try:
                    client.send(publish(1, "events", b"x" * 100) * 20)
                    for _ in range(20):
                        got = client.receive()
                        if got.type == 0x0A and got.flags & DELIVERED:
                            acked.append(got.u64())
                except (AssertionError, OSError):
                    return
                if number == 20:
                    begun.wait()

        def read():
            try:
                while True:
                    got = subscriber.receive()
                    if got.type == 0x04:
                        told.append(got)
                    else:
                        delivered.append(got.u64(len(got.payload) - 8))
            except (AssertionError, OSError) as end:
                ended.append(str(end))

        threads = [threading.Thread(target=pump, args=(client,)) for client in publishers]
        threads.append(threading.Thread(target=read))
        for thread in threads:
            thread.start()
        begun.wait()
        server.signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        server.wait_exit(0)
        assert ended[0].startswith("end of stream") and not subscriber.buffer, ended
        assert len(told) == 1, "%d times told Disconnect" % len(told)
        assert len(acked) >= 1000
        lost = set(acked) - set(delivered)
        assert not lost, "%d of %d acknowledged as delivered are lost" % (len(lost), len(acked))
        assert delivered == sorted(set(delivered))


@scenario("Faults", "no thread or memory for one client is that client's error: those that stand "
          "are served, and it recovers")
def no_thread_for_a_client():
    with Server() as server:
        steady = server.client()
        steady.expect_nothing()
        size = server.address_space()
        if size > 1 << 40:
            raise Skip("a sanitizer's address space cannot be limited")
        former = limit(server, resource.RLIMIT_AS, size)
        # What threads and memory stand ready is used first.
        clients, refused = [], None
        while refused is None and len(clients) < 200:
            client = server.raw()
            clients.append(client)
            client.send(ping())
            got = client.receive()
            if got.raw != pong():
                refused = got
                client.expect_end()
        assert refused is not None and refused.type == 0x03, refused
        assert refused.payload[:2] == u16(SERVER_ERROR)
        steady.expect_nothing()
        limit(server, resource.RLIMIT_AS, former)
        for client in clients:
            client.close()
        server.client().expect_nothing()
