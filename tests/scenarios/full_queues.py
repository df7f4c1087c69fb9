"""Full queues: what a connection's outbox takes, and what happens when it takes no more."""

import threading

from connections import worker
from frames import *
from harness import Server, eventually, scenario
from slow_consumers import stall


def queued_frames(server, client):
    """The frames in CLIENT's outbox, as the server says."""
    for one in server.ask("connections")["connections"]:
        if one["peer"] == client.name:
            return one["outbox_frames"]
    raise AssertionError("the connection is gone")


@scenario("Full queues", "an empty outbox takes one frame of any legal size")
def one_frame_of_any_size():
    large = bytes(3 << 20)
    with Server(limits={"max_outbox_bytes": "64K", "max_outbox_frames": 16}) as server:
        jobs, client = worker(server), server.client()
        client.subscribe(2, "events")
        client.send(publish(1, "events", large))
        client.expect(publish_ack(1, 1, DELIVERED), deliver(2, 1, large))
        client.send(conversation_open(3, 1, "jobs"), request(3, 1, large))
        jobs.expect(push(1, large))
        jobs.send(push_reply(1, 1, large))
        client.expect(reply(3, 1, large))
        client.send(conversation_open(3, 2, "nobody"), request(3, 2, large))
        client.expect(reply(3, 2, large))


@scenario("Full queues", "while a connection is full the session neither reads nor handles frames "
          "already read, and the overshoot is one answer", "a client that does not read its "
          "answers blocks nobody else, and gets each of them when it reads")
def full_by_answers():
    with Server(limits={"max_outbox_frames": 16}, control=True) as server:
        client, other = server.client(receive_buffer=4096), server.client()
        sent, enough = [0], threading.Event()

        def pump():
            while not enough.is_set():
                client.send(ping() * 1000)
                sent[0] += 1000
            client.half_close()

        thread = threading.Thread(target=pump)
        thread.start()
        try:
            eventually("the outbox is full", lambda: queued_frames(server, client) >= 16)
            for _ in range(10):
                other.expect_nothing()
                assert queued_frames(server, client) <= 17
        finally:
            enough.set()
            got = bytearray(client.buffer)
            while True:
                piece = client.socket.recv(1 << 18)
                if not piece:
                    break
                got += piece
            thread.join()
        assert got == pong() * sent[0], "%d pings, %d bytes of answers" % (sent[0], len(got))


@scenario("Full queues", "places of pending conversation requests count: a new request that they "
          "leave no room for gets \"over-capacity: max_outbox_frames ...\" at once")
def places_count():
    with Server(limits={"max_outbox_frames": 16}) as server:
        jobs, client = worker(server), server.client()
        for conversation in range(1, 18):
            client.send(conversation_open(3, conversation, "jobs"))
        for conversation in range(1, 17):
            client.send(request(3, conversation, b"x"))
            jobs.expect(push(conversation, b"x"))
        client.send(request(3, 17, b"x"))
        client.expect(conversation_error(3, 17, SERVER_ERROR,
                                         starts("over-capacity: max_outbox_frames")))
        # The session goes on although every place is taken, and an answer makes room.
        client.expect_nothing()
        jobs.send(push_reply(1, 5, b"y"))
        client.expect(reply(3, 5, b"y"))
        # Whoever wrote the reply may not have counted it off yet: its writer answers this behind.
        jobs.expect_nothing()
        client.send(request(3, 17, b"x"))
        jobs.expect(push(17, b"x"))


@scenario("Full queues", "a reply that does not fit becomes \"over-capacity: ...\" for the "
          "requester at once; what waits for its turn counts")
def reply_that_does_not_fit():
    large = bytes(40000)
    with Server(limits={"max_outbox_bytes": "64K"}) as server:
        jobs, client = worker(server), server.client()
        client.send(conversation_open(3, 1, "jobs"), conversation_open(4, 2, "jobs"))
        client.send(*[request(3, 1, b"%d" % number) for number in (1, 2, 3)])
        jobs.expect(push(1, b"1"), push(2, b"2"), push(3, b"3"))
        jobs.send(push_reply(1, 2, large), push_reply(1, 3, large))
        # Errors for exceeding a bound overtake; the held reply does not.
        client.expect(conversation_error(3, 1, SERVER_ERROR,
                                         starts("over-capacity: max_outbox_bytes")))
        client.expect_nothing()
        jobs.send(push_reply(1, 1, b"first"))
        client.expect(reply(3, 1, b"first"), reply(3, 1, large))
        client.expect_nothing()


@scenario("Full queues", "replies that arrive together fit all the same when the requester's socket "
          "takes them")
def replies_that_arrive_together():
    part = bytes(8000)
    with Server(limits={"max_outbox_bytes": "64K", "max_pending_replies_per_conversation": 30}) as \
            server:
        jobs, client = worker(server), server.client()
        client.send(conversation_open(3, 1, "jobs"),
                    *[request(3, 1, b"x") for _ in range(30)])
        jobs.expect(*[push(1 + number, b"x") for number in range(30)])
        jobs.send(*[push_reply(1, 1 + number, part) for number in range(30)])
        client.expect(*[reply(3, 1, part) for _ in range(30)])


@scenario("Full queues", "a Push that does not fit into the worker's outbox becomes "
          "\"over-capacity: ...\" for the requester")
def push_that_does_not_fit():
    job = bytes(65536)
    limits = {"max_outbox_bytes": "256K", "max_pending_pushes_per_connection": 10000,
              "max_pending_replies_per_conversation": 10000,
              "max_pending_replies_per_connection": 10000,
              "max_pending_bytes_per_connection": "1G"}
    with Server(limits=limits, conversations={"worker_settle": "0"}) as server:
        jobs, client = server.client(receive_buffer=4096), server.client()
        jobs.send(worker_register("jobs"))
        jobs.expect(worker_register_ack())
        client.send(conversation_open(3, 1, "jobs"))
        pushed = 0
        while True:
            client.send(conversation_message(3, 1, job), ping())
            got = client.receive()
            if got.raw != pong():
                break
            pushed += 1
        assert conversation_error(3, 1, SERVER_ERROR, starts("over-capacity: ")).matches(got), got
        client.expect(pong())
        for correlation in range(1, pushed + 1):
            jobs.expect(push(correlation, job))
        client.send(request(3, 1, b"room again"))
        got = jobs.receive()
        assert got.raw == push(got.u64(), b"room again")


@scenario("Full queues", "requests waiting for a worker hold at most "
          "max_pending_bytes_per_connection of payload; one of any size always fits")
def pending_bytes():
    large = bytes(100000)
    over = starts("over-capacity: max_pending_bytes_per_connection")
    with Server(limits={"max_pending_bytes_per_connection": "4K"},
                conversations={"no_worker": "wait", "reply_timeout": "1m"}) as server:
        one, two = server.client(), server.client()
        one.send(conversation_open(3, 1, "jobs"), request(3, 1, large), request(3, 1, b"more"))
        one.expect(conversation_error(3, 1, SERVER_ERROR, over))
        two.send(conversation_open(3, 1, "jobs"), request(3, 1, bytes(3000)),
                 request(3, 1, bytes(1000)), request(3, 1, bytes(1000)))
        two.expect(conversation_error(3, 1, SERVER_ERROR, over))
        jobs = worker(server)
        got = sorted((jobs.receive() for _ in range(3)), key=len_of_push)
        assert [len_of_push(one) for one in got] == [1000, 3000, 100000]
        jobs.expect_nothing()


@scenario("Full queues", "an outbox whose socket failed is never full: what a full connection had "
          "sent before its reset is handled")
def full_and_reset():
    with Server(channels=("events", "flood"), limits={"max_outbox_frames": 16},
                control=True) as server:
        client, subscriber = server.client(receive_buffer=4096), server.client()
        subscriber.subscribe(1, "events")
        client.subscribe(2, "flood", max_in_flight=1)
        stall(subscriber, "flood", refused=20)
        assert queued_frames(server, client) == 16
        # More than one read, and less than the socket takes.
        for number in range(40):
            client.send(publish(1, "events", b"%d" % number * 500))
        client.arrived()
        # It is full: this was not handled yet.
        subscriber.expect_nothing()
        client.reset()
        for number in range(40):
            subscriber.expect(deliver(1, number + 1, b"%d" % number * 500))


def len_of_push(got):
    assert got.type == 0x15, got
    return len(got.payload) - 12


@scenario("Full queues", "error frames always fit: a full connection still hears what became of "
          "its subscription, behind everything queued")
def errors_always_fit():
    with Server(limits={"max_outbox_bytes": "64K", "max_outbox_frames": 16}) as server:
        client, publisher = server.client(receive_buffer=4096), server.client()
        client.subscribe(5, "events")
        count = 0
        while True:
            publisher.publish(1, "events", bytes(4096))
            if publisher.flags == 0:
                break
            count += 1
        for sequence in range(1, count + 1):
            client.expect(deliver(5, sequence, bytes(4096)))
        client.expect(subscribe_error(5, SERVER_ERROR, starts("subscription shed: ")))
