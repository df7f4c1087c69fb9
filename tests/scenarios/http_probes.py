"""HTTP: the probes, the metrics, and that clients of this sort delay nobody."""

import re
import socket

from conversations import ask, opened, worker
from frames import *
from harness import TIMEOUT, Server, eventually, scenario


DURABLE = re.compile("liminal_(channel_.*_sequence|consumer_|redeliveries_|dead_letters_|discarded_|"
                     "stale_answers_)")


def exchange(server, request_text):
    """Sends bytes and reads to the end: (status, headers, body), or None without an answer."""
    with socket.create_connection(server.http_address, TIMEOUT) as peer:
        peer.sendall(request_text)
        answer = b""
        try:
            while True:
                piece = peer.recv(65536)
                if not piece:
                    break
                answer += piece
        except ConnectionResetError:
            pass
    if not answer:
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, value in
               (line.split(":", 1) for line in lines)}
    return int(status.split()[1]), headers, body


@scenario("HTTP", "/health: 200 {\"status\":\"healthy\",\"message\":null}", "/ready: 200 "
          "{\"ready\":true,\"unmet_conditions\":[]}")
def probes():
    with Server(http=True) as server:
        status, headers, body = server.http("/health")
        assert (status, body) == (200, '{"status":"healthy","message":null}'), (status, body)
        assert headers["content-type"].startswith("application/json"), headers
        status, headers, body = server.http("/ready")
        assert (status, body) == (200, '{"ready":true,"unmet_conditions":[]}'), (status, body)
        assert headers["content-type"].startswith("application/json"), headers


@scenario("HTTP", "HEAD: the same without the body")
def head():
    with Server(http=True) as server:
        for path in ("/health", "/ready", "/metrics"):
            got, bare = server.http(path), server.http(path, "HEAD")
            assert bare[0] == 200 and bare[2] == "", bare
            for name in ("content-type", "content-length"):
                if path != "/metrics" or name != "content-length":
                    assert bare[1].get(name) == got[1].get(name), (path, name)


@scenario("HTTP", "another path: 404; another method on a known path: 405 with Allow")
def other_paths_and_methods():
    with Server(http=True) as server:
        for path in ("/", "/healthy", "/health/", "/Health", "/metrics/x", "/../health", "/%00"):
            for method in ("GET", "HEAD", "POST", "DELETE"):
                assert server.http(path, method)[0] == 404, (method, path)
        for path in ("/health", "/ready", "/metrics"):
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
                status, headers, _ = server.http(path, method)
                assert status == 405, (method, path, status)
                allowed = {one.strip() for one in headers["allow"].split(",")}
                assert allowed == {"GET", "HEAD"}, headers


@scenario("HTTP", "several requests over one connection; a request with a body")
def one_connection():
    with Server(http=True) as server:
        with socket.create_connection(server.http_address, TIMEOUT) as peer:
            peer.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
                         b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b""
            while True:
                piece = peer.recv(65536)
                if not piece:
                    break
                answer += piece
        # One answer at least, and the second where the connection is kept.
        assert answer.count(b"HTTP/1.1 200") == answer.count(b'{"status"') + \
            answer.count(b'{"ready"') >= 1, answer
        got = exchange(server, b"POST /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                       b"Content-Length: 100000\r\n\r\n" + bytes(100000))
        assert got is None or got[0] == 405, got
        assert server.http("/health")[0] == 200


@scenario("HTTP", "rubbish harms nobody")
def rubbish():
    with Server(http=True) as server:
        client = server.client()
        for text in (b"\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n", b"GET\r\n\r\n",
                     b"GET /health\r\n\r\n", b"GET /health HTTP/9.9\r\n\r\n",
                     b"GET " + b"/" * 100000 + b" HTTP/1.0\r\n\r\n",
                     b"GET /health HTTP/1.0\r\n" + b"X: " + b"y" * 100000 + b"\r\n\r\n",
                     connect("1.0") + ping() + b"\r\n\r\n"):
            with socket.create_connection(server.http_address, TIMEOUT) as peer:
                try:
                    peer.sendall(text)
                except (ConnectionResetError, BrokenPipeError):
                    pass
            assert server.http("/health")[0] == 200
        client.expect_nothing()


@scenario("HTTP", "at most 64 connections; a slow or silent client delays no other")
def silent_clients():
    with Server(http=True) as server:
        crowd = []
        for number in range(150):
            peer = socket.create_connection(server.http_address, TIMEOUT)
            crowd.append(peer)
            if number % 2:
                peer.sendall(b"GET /health HT")
            if number % 10 == 0:
                assert server.http("/health")[0] == 200
        assert server.http("/metrics")[0] == 200

        def ended():
            count = 0
            for peer in crowd:
                peer.setblocking(False)
                try:
                    count += peer.recv(1) == b""
                except BlockingIOError:
                    pass
                except ConnectionResetError:
                    count += 1
            return count >= len(crowd) - 64

        eventually("only 64 are left", ended)
        assert server.http("/ready")[0] == 200
        server.client().expect_nothing()
        for peer in crowd:
            peer.close()


@scenario("HTTP", "http_listen = none: there is no HTTP")
def none():
    with Server(server={"http_listen": "none"}) as server:
        server.client().expect_nothing()
        server.stop()
        assert not any("http" in line for line in server.lines), server.lines


# Metrics

SAMPLE = re.compile(r'([a-z_:][a-z0-9_:]*)'
                    r'(\{(?:[a-z_][a-z0-9_]*="(?:[^"\\\n]|\\[\\"n])*",?)+\})?'
                    r' ([0-9.e+-]+|\+Inf)\Z')


def series(text):
    """{family: (type, {labels: value})}, after checking the form of the text."""
    families, current = {}, None
    for line in text.splitlines():
        assert line == line.strip() and line, "a line like %r" % line
        if line.startswith("# HELP "):
            _, _, current, words = line.split(" ", 3)
            assert current not in families, "%s comes twice" % current
            assert words.strip(), "no help for %s" % current
            families[current] = [None, {}]
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current and families[name][0] is None, line
            assert kind in ("counter", "gauge", "histogram"), line
            families[name][0] = kind
        else:
            found = SAMPLE.match(line)
            assert found, "not a sample: %s" % line
            name, labels, value = found.groups()
            kind, samples = families[current]
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            assert name in [current + suffix for suffix in suffixes], line
            assert (name, labels) not in samples, "%s comes twice" % line
            samples[name, labels] = float(value)
    return families


@scenario("HTTP", "/metrics: Prometheus text 0.0.4, each family once with its help and type, "
          "counters named _total, histograms whole")
def metrics_form():
    with Server(http=True, channels=("a", "b/c.d:e-f_g")) as server:
        jobs, client = worker(server), opened(server, 1)
        client.send(publish(1, "a", b"x"))
        client.expect(publish_ack(1, 1))
        jobs.send(push_reply(1, ask(client, jobs, 1, b"x"), b"y"))
        client.expect(reply(3, 1, b"y"))
        status, headers, text = server.http("/metrics")
        assert status == 200
        assert re.match(r"text/plain; *version=0\.0\.4(;|\Z)", headers["content-type"]), headers
        families = series(text)
        for name, (kind, samples) in families.items():
            # What stands for each durable channel, or consumer, has no samples without any.
            assert kind and (samples or DURABLE.match(name)), "nothing of %s" % name
            assert name.startswith(("liminal_", "process_")), name
            assert name.endswith("_total") == (kind == "counter"), name
            if kind != "histogram":
                continue
            buckets = [(float(re.search('le="([^"]*)"', labels).group(1)), value)
                       for (sample, labels), value in samples.items() if labels]
            assert buckets == sorted(buckets) and buckets[-1][0] == float("inf"), buckets
            assert [value for _, value in buckets] == sorted(value for _, value in buckets)
            assert buckets[-1][1] == samples[name + "_count", None]
            # From 10 us to 10 s, or from 1 to a million.
            low, high = (1e-5, 10) if name.endswith("_seconds") else (1, 1e6)
            assert buckets[0][0] <= low and buckets[-2][0] >= high, buckets
        for name in ("liminal_publish_ack_seconds", "liminal_request_reply_seconds"):
            kind, samples = families[name]
            assert kind == "histogram" and samples[name + "_count", None] == 1, samples


@scenario("HTTP", "the families that dashboards use: connections_active, publishes_total "
          "(accepted, without duplicates), deliveries_total, subscription_sheds_total, "
          "admission_refusals_total{reason} (wrong tokens too)", "drops_total{channel}")
def metric_families():
    with Server(http=True, auth={"token": "secret"}, limits={"max_connections": 3},
                channels={"a": {}, "b": {"slow_consumer": "drop"}}) as server:
        def value(name):
            return server.metric(name) or 0

        def refusals():
            return sum(value for (name, _), value in
                       series(server.http("/metrics")[2])
                       ["liminal_admission_refusals_total"][1].items())

        assert value("liminal_connections_active") == 0
        client = server.client(token=b"secret")
        subscriber = server.client(token=b"secret")
        assert value("liminal_connections_active") == 2
        for _ in range(2):
            subscriber.subscribe(1, "a")
        client.publish(1, "a", b"x", key="k")
        client.publish(1, "a", b"x", key="k")
        client.publish(1, "b", b"x")
        client.send(publish(1, "nothing", b"x"))
        client.receive()
        assert value("liminal_publishes_total") == 2
        assert value("liminal_deliveries_total") == 2
        for family in ("subscription_sheds", "drops"):
            assert server.metric('liminal_%s_total{channel="b"}' % family) == 0, family
        # Refused: a wrong token, one without, one too many.
        assert refusals() == 0
        for first in (connect("1.0", token=b"wrong"), publish(1, "a", b"x")):
            wrong = server.raw()
            wrong.send(first)
            wrong.receive()
            wrong.expect_end()
            server.closed(wrong)
        assert refusals() == 2 and value('liminal_admission_refusals_total{reason="token"}') == 1
        third = server.client(token=b"secret")
        over = server.raw()
        over.receive()
        over.expect_end()
        assert refusals() == 3 and value('liminal_admission_refusals_total{reason="limit"}') == 1
        assert value("liminal_connections_active") == 3
        third.close()
        eventually("two are left", lambda: value("liminal_connections_active") == 2)


@scenario("HTTP", "sheds and drops are counted by channel")
def losses_by_channel():
    with Server(http=True, limits={"max_outbox_bytes": "64K"},
                channels={"shed": {}, "drop": {"slow_consumer": "drop"}}) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        for channel in ("shed", "drop"):
            client.subscribe(1, channel)
        missed = 0
        while missed < 3:
            publisher.publish(1, "drop", bytes(60000))
            missed += publisher.flags == 0
        publisher.publish(1, "shed", bytes(60000))
        for name, expected in (("subscription_sheds", {"shed": 1, "drop": 0}),
                               ("drops", {"shed": 0, "drop": 3})):
            for channel, count in expected.items():
                found = server.metric('liminal_%s_total{channel="%s"}' % (name, channel))
                assert (found or 0) == count, (name, channel, found)


@scenario("The daemon", "each close reason, push outcome, refusal and timeout is counted")
def every_reason_is_counted():
    with Server(http=True, control=True, conversations={"reply_timeout": "300ms"},
                limits={"handshake_timeout": "100ms"}) as server:
        def closed(reason):
            return server.metric('liminal_connections_closed_total{reason="%s"}' % reason)

        def outcome(word):
            return server.metric('liminal_push_outcomes_total{outcome="%s"}' % word)

        def end(client, reason):
            got = server.closed(client)
            assert got == reason, (got, reason)
            eventually(reason, lambda: closed(reason) == 1)

        silent, half, polite, bad, stream, large = (server.raw() for _ in range(6))
        half.half_close()
        polite.send(disconnect())
        bad.send(frame(0x01, 0, 0, b"?"))
        stream.send(ping()[:5] + b"\x01" + ping()[6:])
        large.send(frame(0x0C, 0, 1, b"", length=1 << 30))
        for client in (half, polite, bad, stream, large, silent):
            client.receive_all()
            client.close()
        for client, reason in ((half, "half_close"), (polite, "disconnect"), (bad, "malformed"),
                               (stream, "stream"), (large, "frame_size"),
                               (silent, "handshake_timeout")):
            end(client, reason)
        jobs, client = worker(server), opened(server, 1, 2)
        jobs.send(push_reply(1, ask(client, jobs, 1, b"1"), b"reply"))
        client.receive()
        jobs.send(push_reply(1, ask(client, jobs, 1, b"2"), b'{"code":"busy","words":""}', 0x01))
        client.receive()
        jobs.send(push_reply(1, ask(client, jobs, 1, b"3"), b"?", 0x01))
        client.receive()
        ask(client, jobs, 1, b"4")
        client.receive()
        ask(client, jobs, 2, b"5")
        client.send(conversation_close(3, 2))
        client.expect_nothing()
        ask(client, jobs, 1, b"6")
        jobs.reset()
        client.receive()
        end(jobs, "reset")
        for word in ("replied", "refused", "failed", "timed_out", "forgotten", "lost"):
            assert outcome(word) == 1, (word, outcome(word))
        for word in ("reply_timeout", "worker_lost", "worker_failed", "worker_refused"):
            assert server.metric('liminal_conversation_errors_total{reason="%s"}' % word) == 1, word


@scenario("The daemon", "no label comes from clients: what they make up leaves no series")
def no_unbounded_labels():
    with Server(http=True) as server:
        client = server.client()
        client.send(ping())
        client.receive()
        before = set(re.findall(r"(?m)^[^# ]+", server.http("/metrics")[2]))
        for name in ("made-up", "\n", '"}', "x" * 1000):
            client.send(publish(1, name, b"x"), subscribe(1, name), conversation_open(1, 1, name),
                        conversation_message(1, 1, b"x"), conversation_close(1, 1),
                        worker_register(name, identity=name))
        client.send(ping())
        client.receive_until(pong())
        after = set(re.findall(r"(?m)^[^# ]+", server.http("/metrics")[2]))
        assert after == before, after - before
