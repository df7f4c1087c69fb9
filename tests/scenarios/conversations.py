"""Conversations: opening, messages, the answers and their order, timeouts, closing.

At the other end stands a worker of the queue "jobs" that answers when the scenario wants it to.
What takes time is measured by a request that nobody answers: when it has timed out, so would have
another that was sent before it.
"""

import select

from frames import *
from harness import Server, scenario

ALREADY_OPEN = ("conversation id is already open on this connection; close it before reopening or "
                "use a fresh id")
NOT_OPEN = "conversation is not open on this connection"
TIMEOUT = starts("reply-timeout: ")
LOST = starts("worker-lost: ")

# Still working, in the flags of a PushReply.
WORKING, REFUSAL = 0x80, 0x01


def worker(server, queue="jobs", client=None, **how):
    """A connection that has registered as a worker."""
    client = client or server.client()
    client.send(worker_register(queue, **how))
    client.expect(worker_register_ack())
    return client


def pushed(jobs, payload):
    """The next frame is the Push of PAYLOAD; its correlation id."""
    got = jobs.receive()
    assert got.type == 0x15 and got.raw == push(got.u64(), payload), "not its push: %s" % got
    return got.u64()


def ask(client, jobs, conversation, payload, stream=3):
    """A request in an open conversation, which JOBS holds then; the push's id."""
    client.send(request(stream, conversation, payload))
    return pushed(jobs, payload)


def opened(server, *conversations, subject="jobs"):
    """A client with these conversations open, on stream 3."""
    client = server.client()
    client.send(*[conversation_open(3, conversation, subject) for conversation in conversations])
    return client


def keep_working_until_readable(jobs, correlation, client):
    """Says "still working" again and again until something has come for CLIENT."""
    while not client.buffer and not select.select([client.socket], [], [], 0.02)[0]:
        jobs.send(push_reply(1, correlation, b"", WORKING))


# Opening

@scenario("Conversations", "a conversation is opened under an id of the client's choosing, scoped "
          "to its connection")
def ids_are_the_connections_own():
    with Server() as server:
        one, two = server.client(), server.client()
        ids = (0, 1, 1 << 32, (1 << 64) - 1)
        for client in (one, two):
            for number in ids:
                client.send(conversation_open(1, number, "nobody"))
        one.send(*[conversation_close(1, number) for number in ids])
        one.expect_nothing()
        for number in ids:
            one.send(request(1, number, b"x"))
            one.expect(conversation_error(1, number, SERVER_ERROR, NOT_OPEN))
            two.send(request(1, number, b"x"))
            two.expect(reply(1, number, b"x"))


@scenario("Conversations", "ConversationOpen is silent when it succeeds; an id that is open "
          "already gets ConversationError 0xFFFF with the text that clients know", client=True)
def already_open():
    with Server() as server:
        jobs, client = worker(server), server.client()
        client.send(conversation_open(3, 7, "jobs"))
        client.expect_nothing()
        for stream in (3, 9):
            client.send(conversation_open(stream, 7, "nobody"))
            client.expect(conversation_error(stream, 7, SERVER_ERROR, ALREADY_OPEN))
        # It is still what it was.
        correlation = ask(client, jobs, 7, b"x")
        jobs.send(push_reply(1, correlation, b"y"))
        client.expect(reply(3, 7, b"y"))


@scenario("Conversations", "over max_conversations_per_connection: ConversationError 0xFFFF "
          "\"over-capacity: ...\", and nothing is opened; a close makes room", client=True)
def too_many_conversations():
    with Server(limits={"max_conversations_per_connection": 2}) as server:
        client, other = opened(server, 1, 2), opened(server, 1, 2)
        client.send(conversation_open(9, 3, "jobs"))
        client.expect(conversation_error(9, 3, SERVER_ERROR, starts("over-capacity: ")))
        client.send(request(3, 3, b"x"))
        client.expect(conversation_error(3, 3, SERVER_ERROR, NOT_OPEN))
        client.send(conversation_close(3, 1), conversation_open(3, 3, "jobs"), request(3, 3, b"x"))
        client.expect(reply(3, 3, b"x"))
        other.expect_nothing()


@scenario("Conversations", "a reserved subject that this connection may not address: "
          "\"not-permitted: ...\"", client=True)
def reserved_subject():
    with Server(control=True) as server:
        client = server.client()
        client.send(conversation_open(3, 1, "$control/ping"), request(4, 1, b"{}"))
        client.expect(conversation_error(3, 1, SERVER_ERROR, starts("not-permitted: ")),
                      conversation_error(4, 1, SERVER_ERROR, NOT_OPEN))
        client.send(conversation_open(3, 1, "nobody"), request(3, 1, b"x"))
        client.expect(reply(3, 1, b"x"))


@scenario("Conversations", "a `$` subject that does not exist: \"not-found: ...\"", client=True)
def missing_subject():
    with Server(control=True) as server:
        client = server.control()
        client.send(conversation_open(3, 1, "$nothing"), request(4, 1, b"{}"))
        client.expect(conversation_error(3, 1, SERVER_ERROR, starts("not-found: ")),
                      conversation_error(4, 1, SERVER_ERROR, NOT_OPEN))


# Messages

@scenario("Conversations", "ConversationMessage to an id that is not open: ConversationError "
          "0xFFFF \"conversation is not open on this connection\", with flag 0x01 and without",
          client=True)
def not_open():
    with Server() as server:
        other, client = opened(server, 5), server.client()
        for flags in (0x00, 0x01):
            client.send(conversation_message(8, 5, b"x", flags=flags))
            client.expect(conversation_error(8, 5, SERVER_ERROR, NOT_OPEN))
        client.expect_nothing()
        other.expect_nothing()


@scenario("Conversations", "without flag 0x01: fire and forget, silent when it succeeds, whatever "
          "becomes of it afterwards", client=True)
def fire_and_forget():
    with Server(conversations={"reply_timeout": "100ms"}) as server:
        echo = opened(server, 1, subject="nobody")
        echo.send(conversation_message(3, 1, b"x"))
        echo.expect_nothing()
        jobs, client = worker(server), opened(server, 1)
        answers = (push_reply(1, 1, b"a reply"),
                   push_reply(1, 2, b'{"code":"busy","words":"no"}', REFUSAL),
                   push_reply(1, 3, b"not a refusal", REFUSAL))
        for number, answer in enumerate(answers, 1):
            client.send(conversation_message(3, 1, b"%d" % number))
            assert pushed(jobs, b"%d" % number) == number
            jobs.send(answer)
        jobs.expect_nothing()
        client.expect_nothing()
        # One that is never answered, and a later request to see it time out; then two more that
        # their worker does not live to answer.
        client.send(conversation_message(3, 1, b"no answer"), request(3, 1, b"none either"))
        client.expect(conversation_error(3, 1, SERVER_ERROR, TIMEOUT))
        client.send(conversation_message(3, 1, b"lost"))
        pushed(jobs, b"no answer")
        pushed(jobs, b"none either")
        pushed(jobs, b"lost")
        jobs.close()
        server.closed(jobs)
        client.expect_nothing()


@scenario("Conversations", "an error of a fire-and-forget message is sent while it is handled",
          client=True)
def fire_and_forget_errors():
    with Server(conversations={"no_worker": "error"}) as server:
        client = opened(server, 1)
        client.send(conversation_message(3, 1, b"x"), conversation_message(4, 2, b"y"), ping())
        client.expect(conversation_error(3, 1, SERVER_ERROR, starts("no-worker: ")),
                      conversation_error(4, 2, SERVER_ERROR, NOT_OPEN), pong())
        client.expect_nothing()


@scenario("Conversations", "fire-and-forget messages that wait for a worker are silent when none "
          "comes within the reply timeout, and are pushed when one comes")
def fire_and_forget_waits():
    with Server(conversations={"no_worker": "wait", "reply_timeout": "100ms"}) as server:
        client = opened(server, 1)
        client.send(conversation_message(3, 1, b"early"), request(3, 1, b"too"))
        client.expect(conversation_error(3, 1, SERVER_ERROR, TIMEOUT))
        client.expect_nothing()
        jobs = worker(server)
        jobs.expect_nothing()
    with Server(conversations={"no_worker": "wait"}) as server:
        client = opened(server, 1)
        client.send(conversation_message(3, 1, b"x"))
        client.expect_nothing()
        jobs = worker(server)
        jobs.send(push_reply(1, pushed(jobs, b"x"), b"nobody asked"))
        jobs.expect_nothing()
        client.expect_nothing()


@scenario("Conversations", "with flag 0x01: one answer, a ConversationMessage with the same id on "
          "the request's stream, flag 0x01, schema id zero, independent context and the "
          "responder's payload", client=True)
def replies():
    payloads = (b"", b"\x00", bytes(range(256)), "\u00e4\u20ac".encode(), bytes(70000))
    with Server() as server:
        jobs = worker(server)
        for subject in ("jobs", "nobody"):
            client = opened(server, 1, subject=subject)
            for number, payload in enumerate(payloads):
                stream = 3 + number
                client.send(request(stream, 1, payload, schema=bytes(range(32)), parent="before",
                                    clock=77))
                if subject == "jobs":
                    correlation = pushed(jobs, payload)
                    payload = payload[::-1] + b"!"
                    jobs.send(push_reply(9, correlation, payload),
                              push_reply(9, correlation, b"a second one"))
                client.expect(reply(stream, 1, payload))
            jobs.expect_nothing()
            client.expect_nothing()


# Order

@scenario("Conversations", "answers of one conversation keep the order of their requests, replies "
          "and errors alike")
def order():
    with Server(limits={"max_pending_pushes_per_connection": 6}) as server:
        jobs, client = worker(server), opened(server, 1)
        ids = [ask(client, jobs, 1, b"%d" % number, stream=10 + number) for number in range(6)]
        refusal = b'{"code":"busy","words":"not now"}'
        for number in (5, 3, 1):
            jobs.send(push_reply(1, ids[number], b"answer %d" % number))
        jobs.send(push_reply(1, ids[4], refusal, REFUSAL), push_reply(1, ids[2], b"?", REFUSAL))
        jobs.expect_nothing()
        client.expect_nothing()
        jobs.send(push_reply(1, ids[0], b"answer 0"))
        client.expect(reply(10, 1, b"answer 0"), reply(11, 1, b"answer 1"),
                      conversation_error(12, 1, SERVER_ERROR, starts("worker-failed: ")),
                      reply(13, 1, b"answer 3"), conversation_error(14, 1, 0x0401, "not now"),
                      reply(15, 1, b"answer 5"))


@scenario("Conversations", "an answer that is held by the order comes behind the timeout of the "
          "one in front")
def held_until_a_timeout():
    with Server(conversations={"reply_timeout": "300ms"}) as server:
        jobs, client = worker(server), opened(server, 1)
        client.send(request(3, 1, b"never"), request(4, 1, b"soon"))
        pushed(jobs, b"never")
        jobs.send(push_reply(1, pushed(jobs, b"soon"), b"here"))
        client.expect(conversation_error(3, 1, SERVER_ERROR, TIMEOUT), reply(4, 1, b"here"))


@scenario("Conversations", "an answer that is held only by the order does not time out any more")
def held_answers_do_not_time_out():
    with Server(conversations={"reply_timeout": "300ms"}) as server:
        jobs, client = worker(server), opened(server, 1, 2)
        client.send(request(3, 1, b"slow"), request(4, 1, b"quick"), request(5, 2, b"clock"))
        slow, quick = pushed(jobs, b"slow"), pushed(jobs, b"quick")
        pushed(jobs, b"clock")
        jobs.send(push_reply(1, quick, b"held"))
        keep_working_until_readable(jobs, slow, client)
        client.expect(conversation_error(5, 2, SERVER_ERROR, TIMEOUT))
        jobs.send(push_reply(1, slow, b"at last"))
        client.expect(reply(3, 1, b"at last"), reply(4, 1, b"held"))


@scenario("Conversations", "over max_pending_replies_per_conversation: ConversationError "
          "\"over-capacity: max_pending_replies_per_conversation ...\" at once, in front of the "
          "answers that are due before it")
def pending_replies_of_a_conversation():
    over = starts("over-capacity: max_pending_replies_per_conversation")
    with Server(limits={"max_pending_replies_per_conversation": 2}) as server:
        jobs, client = worker(server), opened(server, 1, 2)
        first, second = ask(client, jobs, 1, b"1"), ask(client, jobs, 1, b"2")
        client.send(request(4, 1, b"3"))
        client.expect(conversation_error(4, 1, SERVER_ERROR, over))
        # Messages that want no reply do not count, nor do other conversations.
        client.send(conversation_message(3, 1, b"one way"))
        pushed(jobs, b"one way")
        jobs.send(push_reply(1, ask(client, jobs, 2, b"other"), b"reply"))
        client.expect(reply(3, 2, b"reply"))
        # One that is answered and held by the order still has its place.
        jobs.send(push_reply(1, second, b"held"))
        jobs.expect_nothing()
        client.send(request(4, 1, b"4"))
        client.expect(conversation_error(4, 1, SERVER_ERROR, over))
        jobs.send(push_reply(1, first, b"free"))
        client.expect(reply(3, 1, b"free"), reply(3, 1, b"held"))
        jobs.send(push_reply(1, ask(client, jobs, 1, b"5"), b"done"))
        client.expect(reply(3, 1, b"done"))


@scenario("Conversations", "over max_pending_replies_per_connection: ConversationError "
          "\"over-capacity: max_pending_replies_per_connection ...\" at once")
def pending_replies_of_a_connection():
    over = starts("over-capacity: max_pending_replies_per_connection")
    with Server(limits={"max_pending_replies_per_connection": 2}) as server:
        jobs, client, other = worker(server), opened(server, 1, 2, 3), opened(server, 1)
        first = ask(client, jobs, 1, b"1")
        ask(client, jobs, 2, b"2")
        for conversation in (1, 3):
            client.send(request(4, conversation, b"3"))
            client.expect(conversation_error(4, conversation, SERVER_ERROR, over))
        ask(other, jobs, 1, b"of another connection")
        jobs.send(push_reply(1, first, b"free"))
        client.expect(reply(3, 1, b"free"))
        ask(client, jobs, 3, b"3")


# Timeouts

@scenario("Conversations", "a reply that does not come within reply_timeout: ConversationError "
          "0xFFFF \"reply-timeout: ...\" on the request's stream")
def reply_timeout():
    with Server(conversations={"reply_timeout": "50ms"}) as server:
        jobs, client = worker(server), opened(server, 1)
        client.send(request(6, 1, b"x"), ping())
        client.expect(pong(), conversation_error(6, 1, SERVER_ERROR, TIMEOUT))
        client.expect_nothing()
        pushed(jobs, b"x")
        jobs.expect_nothing()


@scenario("Conversations", "the late reply is dropped and cannot answer a later request")
def late_reply():
    with Server(conversations={"reply_timeout": "500ms"}) as server:
        jobs, client = worker(server), opened(server, 1)
        late = ask(client, jobs, 1, b"first")
        client.expect(conversation_error(3, 1, SERVER_ERROR, TIMEOUT))
        later = ask(client, jobs, 1, b"second")
        assert later != late
        jobs.send(push_reply(1, late, b"late"))
        jobs.expect_nothing()
        client.expect_nothing()
        jobs.send(push_reply(1, later, b"in time"))
        client.expect(reply(3, 1, b"in time"))
        client.expect_nothing()


# Closing

@scenario("Conversations", "ConversationClose is silent, of an unknown id too")
def close_is_silent():
    with Server() as server:
        other, client = opened(server, 2, subject="nobody"), opened(server, 1)
        client.send(conversation_close(3, 1), conversation_close(3, 1), conversation_close(8, 2),
                    conversation_close(3, 3, 0x0005, "a code and a text"))
        client.expect_nothing()
        other.send(request(3, 2, b"x"))
        other.expect(reply(3, 2, b"x"))


@scenario("Conversations", "ConversationClose: pending requests of it are forgotten, and the id "
          "may be reused")
def close_forgets():
    with Server(limits={"max_pending_replies_per_connection": 3}) as server:
        jobs, client = worker(server), opened(server, 1, 2)
        first, second = ask(client, jobs, 1, b"1"), ask(client, jobs, 1, b"2")
        other = ask(client, jobs, 2, b"other")
        jobs.send(push_reply(1, second, b"held by the order"))
        jobs.expect_nothing()
        client.send(conversation_close(3, 1), conversation_open(5, 1, "jobs"))
        again = ask(client, jobs, 1, b"again", stream=5)
        jobs.send(push_reply(1, first, b"late"), push_reply(1, other, b"to the other"))
        client.expect(reply(3, 2, b"to the other"))
        jobs.send(push_reply(1, again, b"to the new one"))
        client.expect(reply(5, 1, b"to the new one"))
        client.expect_nothing()


@scenario("Conversations", "a conversation that is closed gets no timeout for what it has "
          "forgotten")
def close_forgets_timeouts():
    with Server(conversations={"reply_timeout": "100ms"}) as server:
        jobs, client = worker(server), opened(server, 1, 2)
        ask(client, jobs, 1, b"forgotten")
        client.send(conversation_close(3, 1), request(3, 2, b"clock"))
        client.expect(conversation_error(3, 2, SERVER_ERROR, TIMEOUT))
        client.expect_nothing()


# Nobody waits

@scenario("Conversations", "while replies are awaited the connection is read on: requests in "
          "several conversations at once, answered in any order")
def several_at_once():
    with Server() as server:
        jobs, client = worker(server), opened(server, *range(1, 9))
        ids = {number: ask(client, jobs, number, b"%d" % number) for number in range(1, 9)}
        client.expect_nothing()
        for number in (8, 1, 5, 4, 2, 7, 3, 6):
            jobs.send(push_reply(1, ids[number], b"answer %d" % number))
            client.expect(reply(3, number, b"answer %d" % number))


@scenario("Conversations", "a client that is both requester and worker of the same queue works")
def requester_and_worker():
    with Server() as server:
        client = worker(server)
        client.send(conversation_open(3, 1, "jobs"), request(3, 1, b"to myself"))
        correlation = pushed(client, b"to myself")
        client.send(push_reply(1, correlation, b"from myself"))
        client.expect(reply(3, 1, b"from myself"))


# When the connection ends

@scenario("Conversations", "half-close: requests that wait for a worker are waited for, and "
          "answered when one comes", client=True)
def half_close_waits_for_a_worker():
    with Server(conversations={"no_worker": "wait"}, control=True) as server:
        client = opened(server, 1, 2)
        client.send(request(3, 1, b"1"), request(4, 2, b"2"), ping())
        client.half_close()
        client.expect(pong())
        jobs = worker(server)
        first, second = pushed(jobs, b"1"), pushed(jobs, b"2")
        jobs.send(push_reply(1, second, b"b"))
        client.expect(reply(4, 2, b"b"))
        jobs.send(push_reply(1, first, b"a"))
        client.expect(reply(3, 1, b"a"))
        client.expect_end()
        assert server.closed(client) == "half_close"


@scenario("Conversations", "half-close of a client that is its own worker: its push is lost at "
          "that moment, and it is told so before the end")
def half_close_of_requester_and_worker():
    with Server() as server:
        client = worker(server)
        client.send(conversation_open(3, 1, "jobs"), request(3, 1, b"to myself"))
        pushed(client, b"to myself")
        client.half_close()
        client.expect(conversation_error(3, 1, SERVER_ERROR, LOST))
        client.expect_end()


@scenario("Conversations", "when the requester resets its connection its requests are forgotten, "
          "and the worker's places are free again")
def requester_gone():
    with Server(limits={"max_pending_pushes_per_connection": 2}, control=True) as server:
        jobs, client, other = worker(server), opened(server, 1), opened(server, 1)
        ids = [ask(client, jobs, 1, b"%d" % number) for number in range(2)]
        other.send(request(3, 1, b"waits for its turn"))
        other.expect_nothing()
        client.reset()
        correlation = pushed(jobs, b"waits for its turn")
        jobs.send(*[push_reply(1, one, b"late") for one in ids])
        jobs.send(push_reply(1, correlation, b"done"))
        other.expect(reply(3, 1, b"done"))
        other.expect_nothing()


@scenario("Conversations", "closed by the server: pending requests are forgotten, and a Disconnect "
          "is the last frame")
def closed_by_the_server():
    with Server(control=True) as server:
        jobs, client = worker(server), opened(server, 1)
        late = ask(client, jobs, 1, b"x")
        ids = {one["peer"]: one["id"] for one in server.ask("connections")["connections"]}
        assert server.ask("close", {"connection": ids[client.name]}) == {"ok": True}
        client.expect(disconnect())
        client.expect_end()
        assert server.closed(client) == "control"
        jobs.send(push_reply(1, late, b"late"))
        jobs.expect_nothing()
