"""Workers: who answers a conversation, registrations, pushes and their answers, how workers end.

Which of several workers got a request shows in who receives the Push: `who` waits for that.
"""

import json
import select

from conversations import (LOST, REFUSAL, TIMEOUT, WORKING, ask, keep_working_until_readable,
                           opened, pushed, worker)
from frames import *
from harness import TIMEOUT as PATIENCE, Server, eventually, scenario

LEAVING = 0x80

NO_WORKER = starts("no-worker: ")
REJECTED = re.compile("worker-lost: .*message rejected")


def leave(jobs, queue="jobs", **how):
    """The worker wants no more pushes."""
    jobs.send(worker_register(queue, flags=LEAVING, **how))
    jobs.expect(worker_register_ack())


def send_request(client, conversation, payload, subject="jobs"):
    """A request in a conversation that is opened for it, on the stream of the same number."""
    client.send(conversation_open(conversation, conversation, subject),
                request(conversation, conversation, payload))


def who(workers, payload):
    """The one of WORKERS to which PAYLOAD is pushed, and the push's correlation id."""
    ready = select.select([one.socket for one in workers], [], [], PATIENCE)[0]
    chosen = [one for one in workers if one.buffer or one.socket in ready]
    assert len(chosen) == 1, "pushed to %d workers" % len(chosen)
    return chosen[0], pushed(chosen[0], payload)


def serve(client, workers, conversation, subject="jobs"):
    """One request, answered at once; the worker that got it."""
    payload = b"%d" % conversation
    send_request(client, conversation, payload, subject)
    chosen, correlation = who(workers, payload)
    chosen.send(push_reply(1, correlation, b"done"))
    client.expect(reply(conversation, conversation, b"done"))
    return chosen


def serves(client, jobs, conversation, subject):
    """SUBJECT is answered by JOBS, the only worker."""
    assert serve(client, [jobs], conversation, subject) is jobs


def has_no_worker(client, conversation, subject):
    send_request(client, conversation, b"x", subject)
    client.expect(conversation_error(conversation, conversation, SERVER_ERROR, NO_WORKER))


def settled(client, jobs, subject="jobs", conversation=1 << 40):
    """Returns when pushes to JOBS go through at once, and it is the least recently used no more."""
    client.send(conversation_open(1, conversation, subject), request(1, conversation, b"settled?"))
    jobs.send(push_reply(1, pushed(jobs, b"settled?"), b"yes"))
    client.expect(reply(1, conversation, b"yes"))
    client.send(conversation_close(1, conversation))


def count_of_strays(server):
    return server.metric("liminal_stray_push_replies_total")


# Who answers: subjects

@scenario("Who answers", "a subject is any string: without a worker each is echoed")
def any_subject():
    subjects = ("", "jobs", "a b", "\u00e4\u20ac", "x\x00y", "\n", "a/b/c/d", "/", "//", "a/", "/a",
                "a//b", "x" * 1024)
    with Server() as server:
        client = server.client()
        for number, subject in enumerate(subjects, 1):
            send_request(client, number, b"%d" % number, subject)
            client.expect(reply(number, number, b"%d" % number))


@scenario("Who answers", "QUEUE: a worker whose task queue equals QUEUE, whatever its namespaces "
          "and activity types")
def by_queue():
    with Server(conversations={"no_worker": "error"}) as server:
        client = server.client()
        for namespaces, activities in (((), ()), (("n",), ("a",))):
            jobs = worker(server, "jobs", namespaces=namespaces, activities=activities)
            serves(client, jobs, 1, "jobs")
            for number, subject in enumerate(("job", "jobs2", "Jobs", "", " jobs", "w"), 2):
                has_no_worker(client, number, subject)
            jobs.close()
            server.closed(jobs)
            client.send(*[conversation_close(1, number) for number in range(1, 9)])


@scenario("Who answers", "NAMESPACE/QUEUE and NAMESPACE/QUEUE/ACTIVITY: the worker's namespaces "
          "and activity types contain the named ones, or are empty lists")
def by_namespace_and_activity():
    with Server(conversations={"no_worker": "error"}) as server:
        client, number = server.client(), 1
        for namespaces, activities, yes, no in (
                (("m", "n"), ("a", "b"),
                 ("jobs", "m/jobs", "n/jobs", "n/jobs/a", "m/jobs/b"),
                 ("x/jobs", "n/other", "n/jobs/x", "x/jobs/a", "a/jobs", "n/jobs/n", "N/jobs")),
                ((), ("a",), ("any/jobs", "any/jobs/a"), ("any/jobs/b",)),
                (("n",), (), ("n/jobs", "n/jobs/any"), ("m/jobs/any",)),
                ((), (), ("any/jobs", "any/jobs/any"), ("any/other/any",))):
            jobs = worker(server, "jobs", namespaces=namespaces, activities=activities)
            for subject in yes:
                serves(client, jobs, number, subject)
                number += 1
            for subject in no:
                has_no_worker(client, number, subject)
                number += 1
            jobs.close()
            server.closed(jobs)


@scenario("Who answers", "no part may be empty, and another form has no worker, also where a "
          "worker has an empty name in that place")
def empty_parts():
    with Server(conversations={"no_worker": "error"}) as server:
        client = server.client()
        worker(server, "", namespaces=("", "n"), activities=("", "a"))
        jobs = worker(server, "jobs", namespaces=("", "n"), activities=("", "a"))
        serves(client, jobs, 1, "n/jobs/a")
        for number, subject in enumerate(("", "/", "//", "/jobs", "jobs/", "n/", "n//a", "/jobs/a",
                                          "n/jobs/", "n/jobs/a/", "/n/jobs/a", "n/jobs/a/b"), 2):
            has_no_worker(client, number, subject)


@scenario("Who answers", "a subject is resolved at the first message, not when it is opened")
def resolved_at_the_first_message():
    with Server(conversations={"no_worker": "error"}) as server:
        client = opened(server, 1)
        client.expect_nothing()
        jobs = worker(server)
        jobs.send(push_reply(1, ask(client, jobs, 1, b"x"), b"y"))
        client.expect(reply(3, 1, b"y"))


@scenario("Who answers", "the conversation stays with its worker, though another would be chosen "
          "now")
def stays_with_its_worker():
    with Server() as server:
        one, client = worker(server), opened(server, 1)
        for number in range(3):
            ask(client, one, 1, b"%d" % number)
        two = worker(server)
        settled(client, two)
        for number in range(3):
            ask(client, one, 1, b"still %d" % number)
        two.expect_nothing()


# Who answers: one of several

@scenario("Who answers", "among several workers: one whose connection holds no subscription, "
          "however busy it is", client=True)
def without_subscription_first():
    with Server() as server:
        subscriber, other, client = worker(server), worker(server), server.client()
        subscription = subscriber.subscribe(2, "events")
        for number in range(1, 5):
            send_request(client, number, b"%d" % number)
            pushed(other, b"%d" % number)
        subscriber.expect_nothing()
        # With the subscription it goes to the back, without it to the front.
        subscriber.send(unsubscribe(2, subscription))
        subscriber.expect_nothing()
        send_request(client, 5, b"5")
        pushed(subscriber, b"5")


@scenario("Who answers", "a worker that holds a subscription is chosen when there is no other",
          client=True)
def with_subscription_at_last():
    with Server() as server:
        subscriber, client = worker(server), server.client()
        subscriber.subscribe(2, "events")
        send_request(client, 1, b"x")
        pushed(subscriber, b"x")


@scenario("Who answers", "then the one with the fewest pushes outstanding, then the least recently "
          "used")
def fewest_then_least_recently_used():
    with Server() as server:
        workers, client = [worker(server) for _ in range(3)], server.client()
        turns = [serve(client, workers, number) for number in range(1, 10)]
        assert len(set(map(id, turns[:3]))) == 3, "not each of three once"
        assert turns == turns[:3] * 3, "not in turn"
        # Two are busy now, the one that is not gets everything.
        busy = []
        for number in (10, 11):
            send_request(client, number, b"busy")
            busy.append(who(workers, b"busy"))
        idle = [one for one in workers if one not in (busy[0][0], busy[1][0])]
        assert len(idle) == 1
        for number in range(12, 17):
            assert serve(client, workers, number) is idle[0]
        # The first becomes idle: it was used before the other.
        jobs, correlation = busy[0]
        jobs.send(push_reply(1, correlation, b"done"))
        client.expect(reply(10, 10, b"done"))
        assert serve(client, workers, 17) is jobs
        assert serve(client, workers, 18) is idle[0]


@scenario("Who answers", "pushes that timed out count as outstanding until the worker answers one")
def timed_out_pushes_count():
    with Server(conversations={"reply_timeout": "400ms"}) as server:
        workers, client = [worker(server) for _ in range(2)], server.client()
        send_request(client, 1, b"never")
        slow, _ = who(workers, b"never")
        client.expect(conversation_error(1, 1, SERVER_ERROR, TIMEOUT))
        good = workers[1 - workers.index(slow)]
        for number in range(2, 8):
            assert serve(client, workers, number) is good
        # Its own conversation still goes to it, and with an answer it is like any other.
        client.send(request(1, 1, b"once more"))
        slow.send(push_reply(1, pushed(slow, b"once more"), b"here"))
        client.expect(reply(1, 1, b"here"))
        assert serve(client, workers, 8) is good
        assert serve(client, workers, 9) is slow


# Who answers: nobody

@scenario("Who answers", "no_worker = echo, the default: the reply is the request's payload",
          client=True)
def no_worker_echo():
    for settings in ({}, {"conversations": {"no_worker": "echo"}}):
        with Server(**settings) as server:
            client = server.client()
            for number, payload in enumerate((b"", b"\x00\xff", bytes(100000)), 1):
                send_request(client, number, payload, "n/jobs")
                client.expect(reply(number, number, payload))


@scenario("Who answers", "no_worker = error: \"no-worker: ...\" at once")
def no_worker_error():
    with Server(conversations={"no_worker": "error"}) as server:
        client = server.client()
        client.send(conversation_open(1, 1, "jobs"), request(4, 1, b"x"), ping())
        client.expect(conversation_error(4, 1, SERVER_ERROR, NO_WORKER), pong())


@scenario("Who answers", "no_worker = wait: until a worker registers that the subject means, in "
          "the order of the requests")
def no_worker_wait():
    with Server(conversations={"no_worker": "wait"}) as server:
        client = server.client()
        client.send(*[conversation_open(3, number, "n/jobs/a") for number in (1, 2)])
        client.send(request(3, 1, b"1"), request(3, 2, b"2"), request(3, 1, b"3"))
        client.expect_nothing()
        others = [worker(server, "other"), worker(server, "jobs", namespaces=("m",)),
                  worker(server, "jobs", activities=("b",))]
        for one in others:
            one.expect_nothing()
        jobs = worker(server, "jobs", namespaces=("n",), activities=("a",))
        ids = [pushed(jobs, payload) for payload in (b"1", b"2", b"3")]
        jobs.send(*[push_reply(1, one, b"done") for one in ids])
        got = sorted(client.receive().raw for _ in range(3))
        assert got == sorted([reply(3, 1, b"done"), reply(3, 1, b"done"), reply(3, 2, b"done")])
        for one in others:
            one.expect_nothing()


@scenario("Who answers", "no_worker = wait: or the reply timeout passes")
def no_worker_wait_times_out():
    with Server(conversations={"no_worker": "wait", "reply_timeout": "50ms"}) as server:
        client = server.client()
        for number, subject in enumerate(("jobs", "a/b/c/d", ""), 1):
            send_request(client, number, b"x", subject)
            client.expect(conversation_error(number, number, SERVER_ERROR, TIMEOUT))
        jobs = worker(server)
        jobs.expect_nothing()


@scenario("Who answers", "without a worker nothing is bound: the next message is resolved anew")
def nothing_bound_without_a_worker():
    with Server() as server:
        client = opened(server, 1)
        for _ in range(2):
            client.send(request(3, 1, b"x"))
            client.expect(reply(3, 1, b"x"))
        jobs = worker(server)
        jobs.send(push_reply(1, ask(client, jobs, 1, b"x"), b"y"))
        client.expect(reply(3, 1, b"y"))


# Who answers: the worker is gone

def ended(server, jobs, how):
    """Ends a worker's connection; returns when the server has done with it as a worker."""
    if how == "disconnect":
        jobs.send(disconnect())
        jobs.expect_end()
    else:
        getattr(jobs, how)()
    server.closed(jobs)


@scenario("Who answers", "if the worker's connection ends, every request pushed to it gets "
          "\"worker-lost: ...\" at once; those still waiting their turn are resolved anew")
def worker_lost():
    for how in ("close", "half_close", "reset", "disconnect"):
        with Server(limits={"max_pending_pushes_per_connection": 2}) as server:
            jobs, client = worker(server), server.client()
            send_request(client, 1, b"1")
            pushed(jobs, b"1")
            send_request(client, 2, b"2")
            pushed(jobs, b"2")
            for number in (3, 4):
                send_request(client, number, b"%d" % number)
            client.send(request(2, 2, b"behind 2"))
            client.expect_nothing()
            jobs.expect_nothing()
            ended(server, jobs, how)
            got = [client.receive() for _ in range(5)]
            for stream in (1, 2):
                lost = conversation_error(stream, stream, SERVER_ERROR, LOST)
                assert sum(lost.matches(one) for one in got) == 1
            for answer in (reply(3, 3, b"3"), reply(4, 4, b"4"), reply(2, 2, b"behind 2")):
                assert answer in [one.raw for one in got], got
            client.expect_nothing()


@scenario("Who answers", "those waiting their turn go to another worker when there is one")
def turn_with_another_worker():
    with Server(limits={"max_pending_pushes_per_connection": 1}) as server:
        one, client = worker(server), opened(server, 1)
        ask(client, one, 1, b"1")
        client.send(request(4, 1, b"2"), request(5, 1, b"3"))
        client.expect_nothing()
        two = worker(server)
        ended(server, one, "close")
        client.expect(conversation_error(3, 1, SERVER_ERROR, LOST))
        two.send(push_reply(1, pushed(two, b"2"), b"b"))
        client.expect(reply(4, 1, b"b"))
        two.send(push_reply(1, pushed(two, b"3"), b"c"))
        client.expect(reply(5, 1, b"c"))
        # And the conversation stays there.
        ask(client, two, 1, b"4")


@scenario("Who answers", "a conversation bound to a lost worker that had neither a pushed nor a "
          "waiting request: its next message gets \"worker-lost: ... message rejected\", once")
def lost_while_idle():
    with Server() as server:
        client = server.client()
        for number, flags in ((1, 0x01), (2, 0x00)):
            jobs = worker(server)
            serves(client, jobs, number, "jobs")
            ended(server, jobs, "close")
            client.send(conversation_message(7, number, b"x", flags=flags), ping())
            client.expect(conversation_error(7, number, SERVER_ERROR, REJECTED), pong())
            client.send(request(8, number, b"again"))
            client.expect(reply(8, number, b"again"))


@scenario("Who answers", "a conversation whose request was lost, or waited its turn, is resolved "
          "anew at its next message without an error", client=True)
def lost_and_told():
    with Server(limits={"max_pending_pushes_per_connection": 1},
                conversations={"no_worker": "wait"}) as server:
        one, client = worker(server), server.client()
        send_request(client, 1, b"pushed")
        pushed(one, b"pushed")
        send_request(client, 2, b"its turn")
        client.expect_nothing()
        ended(server, one, "close")
        client.expect(conversation_error(1, 1, SERVER_ERROR, LOST))
        two = worker(server)
        two.send(push_reply(1, pushed(two, b"its turn"), b"done"))
        client.expect(reply(2, 2, b"done"))
        for number in (1, 2):
            client.send(request(5, number, b"next"))
            two.send(push_reply(1, pushed(two, b"next"), b"fine"))
            client.expect(reply(5, number, b"fine"))


@scenario("Who answers", "a conversation whose worker had announced no more pushes, or replaced "
          "its registration, is resolved anew at its next message without an error", client=True)
def left_and_gone():
    with Server(conversations={"no_worker": "error"}) as server:
        client = server.client()
        for number, farewell in ((1, leave), (2, lambda jobs: worker(server, "other", jobs))):
            jobs = worker(server)
            serves(client, jobs, number, "jobs")
            farewell(jobs)
            ended(server, jobs, "close")
            client.send(request(5, number, b"x"))
            client.expect(conversation_error(5, number, SERVER_ERROR, NO_WORKER))
            two = worker(server)
            client.send(request(5, number, b"y"))
            two.send(push_reply(1, pushed(two, b"y"), b"fine"))
            client.expect(reply(5, number, b"fine"))
            leave(two)


@scenario("Who answers", "error texts start with a stable token and a colon")
def tokens():
    token = re.compile("(no-worker|reply-timeout|worker-lost|worker-failed|over-capacity|"
                       "not-permitted|not-found): .")
    limits = {"max_pending_replies_per_conversation": 1}
    found = set()

    def error_of(client):
        got = client.receive()
        text = error_text(got)
        assert conversation_error(got.stream, got.u64(), SERVER_ERROR, token).matches(got), got
        found.add(text.partition(":")[0])

    with Server(conversations={"no_worker": "error", "reply_timeout": "400ms"}, limits=limits,
                control=True) as server:
        client, control = server.client(), server.control()
        send_request(client, 1, b"x")
        error_of(client)
        jobs = worker(server)
        client.send(request(1, 1, b"times out"), request(1, 1, b"over"))
        error_of(client)
        error_of(client)
        pushed(jobs, b"times out")
        jobs.send(push_reply(1, ask(client, jobs, 1, b"fails"), b"", REFUSAL))
        error_of(client)
        ask(client, jobs, 1, b"lost")
        jobs.close()
        error_of(client)
        client.send(conversation_open(1, 2, "$control/ping"))
        error_of(client)
        control.send(conversation_open(1, 1, "$nobody"))
        error_of(control)
    assert len(found) == 7, found


# Registrations

@scenario("Pushes and workers", "WorkerRegister: WorkerRegisterAck accepted; empty strings and "
          "lists are legal, with the list of contracts and without", client=True)
def registration():
    with Server() as server:
        client = server.client()
        for contracts in (None, (), (("activity", "in", "out"), ("", "", ""))):
            for queue, how in (("", {"identity": ""}),
                               ("jobs", {"namespaces": ("n", ""), "activities": ("a", ""),
                                         "node": "", "identity": "w"}),
                               ("\u00e4", {"node": "host", "identity": "\u20ac" * 100})):
                client.send(worker_register(queue, contracts=contracts, **how), ping())
                client.expect(worker_register_ack(), pong())


@scenario("Pushes and workers", "rejected, with the reason, when worker_queues does not list the "
          "queue; the connection lives on and gets no pushes for it")
def worker_queues():
    with Server(conversations={"worker_queues": ["jobs", "more"], "no_worker": "error"}) as server:
        jobs, client = server.client(), server.client()
        for queue in ("other", "", "job"):
            jobs.send(worker_register(queue))
            jobs.expect(worker_register_rejected(re.compile(".")))
        has_no_worker(client, 1, "other")
        for number, queue in ((2, "jobs"), (3, "more")):
            serves(client, worker(server, queue), number, queue)


@scenario("Pushes and workers", "a registration replaces the earlier one of its connection, which "
          "ends as if the worker left: outstanding pushes can be answered, what waits its turn is "
          "resolved anew, and bound conversations at their next message")
def registration_replaced():
    with Server(limits={"max_pending_pushes_per_connection": 1}) as server:
        jobs, client = worker(server, "old"), server.client()
        serves(client, jobs, 1, "old")
        send_request(client, 2, b"outstanding", "old")
        correlation = pushed(jobs, b"outstanding")
        send_request(client, 3, b"its turn", "old")
        client.expect_nothing()
        worker(server, "new", jobs)
        client.expect(reply(3, 3, b"its turn"))
        client.send(request(1, 1, b"bound"))
        client.expect(reply(1, 1, b"bound"))
        jobs.send(push_reply(1, correlation, b"still answered"))
        client.expect(reply(2, 2, b"still answered"))
        serves(client, jobs, 4, "new")


# Pushes

@scenario("Pushes and workers", "Push: stream 1, flags 0, correlation ids from one server-wide "
          "counter from 1, the payload byte for byte", client=True)
def pushes():
    payloads = (b"", b"\x00", bytes(range(256)), bytes(100000))
    with Server() as server:
        one, two, client = worker(server, "one"), worker(server, "two"), server.client()
        client.send(conversation_open(3, 1, "one"), conversation_open(4, 2, "two"))
        correlation = 1
        for payload in payloads:
            for conversation, jobs in ((1, one), (2, two)):
                client.send(conversation_message(9, conversation, payload, parent="p", clock=3))
                jobs.expect(push(correlation, payload))
                client.send(request(9, conversation, payload))
                jobs.expect(push(correlation + 1, payload))
                jobs.send(push_reply(5, correlation + 1, b"on any stream"))
                client.expect(reply(9, conversation, b"on any stream"))
                correlation += 2


@scenario("Pushes and workers", "at most max_pending_pushes_per_connection are outstanding at a "
          "worker; over it requests wait their turn, in order")
def turns():
    with Server(limits={"max_pending_pushes_per_connection": 2}) as server:
        jobs, client = worker(server), opened(server, *range(1, 7))
        ids = [ask(client, jobs, number, b"%d" % number) for number in (1, 2)]
        for number in range(3, 7):
            client.send(request(3, number, b"%d" % number))
        client.expect_nothing()
        jobs.expect_nothing()
        for number in range(3, 7):
            jobs.send(push_reply(1, ids.pop(0), b"done"))
            client.expect(reply(3, number - 2, b"done"))
            ids.append(pushed(jobs, b"%d" % number))
            jobs.expect_nothing()


@scenario("Pushes and workers", "a request that waits its turn does so within its reply timeout, "
          "and is not pushed after that")
def turn_times_out():
    with Server(limits={"max_pending_pushes_per_connection": 1},
                conversations={"reply_timeout": "300ms"}) as server:
        jobs, client = worker(server), opened(server, 1, 2)
        correlation = ask(client, jobs, 1, b"slow")
        client.send(request(4, 2, b"its turn"))
        keep_working_until_readable(jobs, correlation, client)
        client.expect(conversation_error(4, 2, SERVER_ERROR, TIMEOUT))
        jobs.send(push_reply(1, correlation, b"done"))
        client.expect(reply(3, 1, b"done"))
        jobs.expect_nothing()


@scenario("Pushes and workers", "a request that timed out frees its place")
def timeout_frees_a_place():
    with Server(limits={"max_pending_pushes_per_connection": 1},
                conversations={"reply_timeout": "300ms"}) as server:
        jobs, client = worker(server), opened(server, 1, 2)
        ask(client, jobs, 1, b"never")
        client.expect(conversation_error(3, 1, SERVER_ERROR, TIMEOUT))
        jobs.send(push_reply(1, ask(client, jobs, 2, b"next"), b"done"))
        client.expect(reply(3, 2, b"done"))


@scenario("Pushes and workers", "a request that was forgotten frees its place")
def forgotten_frees_a_place():
    with Server(limits={"max_pending_pushes_per_connection": 1}) as server:
        jobs, client = worker(server), opened(server, 1, 2)
        ask(client, jobs, 1, b"forgotten")
        client.send(request(3, 2, b"its turn"))
        client.expect_nothing()
        client.send(conversation_close(3, 1))
        jobs.send(push_reply(1, pushed(jobs, b"its turn"), b"done"))
        client.expect(reply(3, 2, b"done"))


# Answers of workers

@scenario("Pushes and workers", "a PushReply resolves the push only if it was sent to the same "
          "connection; anything else is ignored and counted")
def stray_push_replies():
    with Server(http=True) as server:
        jobs, other, client = worker(server), worker(server, "other"), opened(server, 1)
        correlation = ask(client, jobs, 1, b"x")
        refusal = b'{"code":"busy","words":"no"}'
        for stray in (other, client):
            stray.send(push_reply(1, correlation, b"not mine"),
                       push_reply(1, correlation, refusal, REFUSAL),
                       push_reply(1, correlation, b"", WORKING))
            stray.expect_nothing()
        for number in (0, correlation + 1, (1 << 64) - 1):
            jobs.send(push_reply(1, number, b"unknown"))
        jobs.send(push_reply(1, correlation, b"mine"), push_reply(1, correlation, b"twice"))
        client.expect(reply(3, 1, b"mine"))
        jobs.expect_nothing()
        client.expect_nothing()
        assert count_of_strays(server) == 10


@scenario("Pushes and workers", "PushReply with flag 0x01, a refusal: ConversationError 0x0401 to "
          "0x0404 with the worker's words as its text", client=True)
def refusals():
    codes = {"busy": 0x0401, "invalid": 0x0402, "unavailable": 0x0403, "internal": 0x0404}
    words = ("try later", "", "x" * 1024, "\u20ac" * 341, "a\nb \"c\" \\")
    with Server() as server:
        jobs, client = worker(server), opened(server, 1)
        for code, number in codes.items():
            for text in words:
                for ascii_only in (True, False):
                    record = json.dumps({"code": code, "words": text}, ensure_ascii=ascii_only)
                    jobs.send(push_reply(1, ask(client, jobs, 1, b"x"), record.encode(), REFUSAL))
                    client.expect(conversation_error(3, 1, number, text))
        record = b' {\n"words" : "other order",\t"code":"busy" } '
        jobs.send(push_reply(1, ask(client, jobs, 1, b"x"), record, REFUSAL))
        client.expect(conversation_error(3, 1, 0x0401, "other order"))


@scenario("Pushes and workers", "any other payload of a refusal: ConversationError 0xFFFF "
          "\"worker-failed: ...\"")
def bad_refusals():
    records = (
        b"", b"busy", b"null", b"[]", b"{}", b'"busy"', b'{"code":"busy"}', b'{"words":"x"}',
        b'{"code":"Busy","words":"x"}', b'{"code":"","words":"x"}', b'{"code":1,"words":"x"}',
        b'{"code":null,"words":"x"}', b'{"code":"busy","words":null}', b'{"code":"busy","words":1}',
        b'{"code":"busy","words":["x"]}', b'{"code":"busy","words":"x","more":1}',
        b'{"code":"busy","words":"x"} {}', b'{"code":"busy","words":"x"', b'\xff',
        b'{"code":"busy","words":"\xff"}', b'{"code":"busy","words":"%s"}' % (b"x" * 1025),
        b'{"code":"busy","words":"%s"}' % ("\u20ac" * 342).encode(),
        b'[' * 100000)
    with Server() as server:
        jobs, client = worker(server), opened(server, 1)
        for record in records:
            jobs.send(push_reply(1, ask(client, jobs, 1, b"x"), record, REFUSAL))
            client.expect(conversation_error(3, 1, SERVER_ERROR, starts("worker-failed: ")))
        jobs.expect_nothing()


@scenario("Pushes and workers", "PushReply with flag 0x80, still working: the payload is dropped "
          "and the request's reply timeout starts afresh")
def still_working():
    with Server(conversations={"reply_timeout": "300ms"}) as server:
        jobs, client = worker(server), opened(server, 1, 2)
        for flags in (WORKING, WORKING | REFUSAL):
            client.send(request(3, 1, b"long"), request(4, 2, b"clock"))
            correlation = pushed(jobs, b"long")
            pushed(jobs, b"clock")
            jobs.send(push_reply(1, correlation, b"dropped", flags))
            keep_working_until_readable(jobs, correlation, client)
            client.expect(conversation_error(4, 2, SERVER_ERROR, TIMEOUT))
            jobs.send(push_reply(1, correlation, b"done"))
            client.expect(reply(3, 1, b"done"))


@scenario("Pushes and workers", "... up to reply_timeout_max after the request")
def still_working_at_most():
    with Server(conversations={"reply_timeout": "300ms", "reply_timeout_max": "500ms"}) as server:
        jobs, client = worker(server), opened(server, 1)
        correlation = ask(client, jobs, 1, b"long")
        keep_working_until_readable(jobs, correlation, client)
        client.expect(conversation_error(3, 1, SERVER_ERROR, TIMEOUT))
        jobs.send(push_reply(1, correlation, b"late"))
        jobs.expect_nothing()
        client.expect_nothing()


# Leaving

@scenario("Pushes and workers", "WorkerRegister with flag 0x80, no more pushes: after its ack the "
          "connection gets none; those outstanding can still be answered")
def leaving():
    with Server(conversations={"no_worker": "error"}) as server:
        jobs, client = worker(server), opened(server, 1)
        correlation = ask(client, jobs, 1, b"outstanding")
        leave(jobs)
        has_no_worker(client, 2, "jobs")
        client.send(conversation_message(5, 1, b"one way, bound"))
        client.expect(conversation_error(5, 1, SERVER_ERROR, NO_WORKER))
        jobs.expect_nothing()
        jobs.send(push_reply(1, correlation, b"done"))
        client.expect(reply(3, 1, b"done"))


@scenario("Pushes and workers", "requests waiting their turn at a worker that leaves are resolved "
          "anew at once, conversations bound to it at their next message: so it leaves without "
          "losing work")
def leaving_loses_nothing():
    with Server(limits={"max_pending_pushes_per_connection": 1}) as server:
        one, client = worker(server), opened(server, 1, 2, 3)
        serves(client, one, 9, "jobs")
        correlation = ask(client, one, 1, b"outstanding")
        client.send(request(4, 2, b"its turn"), request(5, 3, b"and its"))
        client.expect_nothing()
        two = worker(server)
        leave(one)
        two.send(push_reply(1, pushed(two, b"its turn"), b"b"))
        client.expect(reply(4, 2, b"b"))
        two.send(push_reply(1, pushed(two, b"and its"), b"c"))
        client.expect(reply(5, 3, b"c"))
        client.send(request(9, 9, b"bound"))
        two.send(push_reply(1, pushed(two, b"bound"), b"d"))
        client.expect(reply(9, 9, b"d"))
        one.send(push_reply(1, correlation, b"a"))
        client.expect(reply(3, 1, b"a"))
        one.expect_nothing()
        one.close()
        server.closed(one)
        client.expect_nothing()


@scenario("Pushes and workers", "a later WorkerRegister without the flag brings it back; a first "
          "one with the flag gets no pushes")
def coming_back():
    with Server(conversations={"no_worker": "error"}) as server:
        jobs, client = server.client(), server.client()
        leave(jobs)
        has_no_worker(client, 1, "jobs")
        worker(server, "jobs", jobs)
        serves(client, jobs, 2, "jobs")
        leave(jobs)
        has_no_worker(client, 3, "jobs")
        worker(server, "jobs", jobs)
        serves(client, jobs, 4, "jobs")


@scenario("Pushes and workers", "a half-closed worker gets no push more, while its own requests "
          "are waited for")
def half_closed_worker_gets_none():
    with Server(conversations={"no_worker": "error"}) as server:
        other, jobs, client = worker(server, "other"), worker(server), server.client()
        jobs.send(conversation_open(3, 1, "other"))
        correlation = ask(jobs, other, 1, b"its own request")
        jobs.half_close()

        def withdrawn():
            withdrawn.number += 1
            send_request(client, withdrawn.number, b"x")
            return conversation_error(withdrawn.number, withdrawn.number, SERVER_ERROR,
                                      NO_WORKER).matches(client.receive())

        withdrawn.number = 0
        eventually("it is no worker any more", withdrawn)
        other.send(push_reply(1, correlation, b"done"))
        got = jobs.receive_all()
        assert got[-1].raw == reply(3, 1, b"done"), got
        assert all(one.type == 0x15 for one in got[:-1]), got


# Channels on which workers are not answered

@scenario("Pushes and workers", "a Publish to one of unanswered_channels on a connection that has "
          "ever registered as a worker gets neither PublishAck nor PublishError, and is delivered "
          "all the same", client=True)
def unanswered_channels():
    default = "aion.observability.v1"
    for channel, settings in ((default, {}),
                              ("quiet", {"conversations": {"unanswered_channels":
                                                           ["also.quiet", "quiet"]}})):
        with Server(channels=(channel, "events"), **settings) as server:
            subscriber, jobs = server.client(), server.client()
            subscriber.subscribe(1, channel)
            assert jobs.publish(5, channel, b"not yet a worker") == 1
            worker(server, "jobs", jobs)
            jobs.send(publish(5, channel, b"a"), publish(6, "events", b"b"),
                      publish(7, channel, b"c", key="k"), publish(7, channel, b"c", key="k"))
            jobs.expect(publish_ack(6, 3))
            jobs.expect_nothing()
            leave(jobs)
            jobs.send(publish(5, channel, b"d"))
            jobs.expect_nothing()
            subscriber.expect(deliver(1, 1, b"not yet a worker"), deliver(1, 2, b"a"),
                              deliver(1, 3, b"c"), deliver(1, 4, b"d"))
            assert server.client().publish(5, channel, b"no worker") == 6
    # Where the default is replaced, or the channel does not exist.
    with Server(conversations={"unanswered_channels": "quiet"}) as server:
        jobs = worker(server)
        jobs.send(publish(5, "quiet", b"x"), publish(6, default, b"y"))
        jobs.expect(publish_error(6, SERVER_ERROR, "channel '%s' is not configured" % default))
        jobs.expect_nothing()


@scenario("Pushes and workers", "... malformed frames still close", client=True)
def unanswered_channels_and_malformed():
    with Server(channels=("quiet",), conversations={"unanswered_channels": "quiet"}) as server:
        jobs = worker(server)
        jobs.send(publish(5, "quiet", b"x"), frame(0x09, 0, 5, s("quiet") + b(b"no envelope")))
        jobs.expect(publish_error(5, CODEC_ERROR, re.compile(".")))
        jobs.expect_end()
