"""The published clients' habits, played as they are."""

import signal

from connections import worker
from frames import *
from harness import Server, scenario


class ByOrder:
    """A client that matches answers to requests by their order only, and has no other key.

    It reads into its buffer whatever comes, and sorts it only when it wants an answer: a Deliver or
    a Push goes aside, any other frame is the answer that it waits for.
    """

    def __init__(self, client):
        self.client, self.aside, self.due = client, [], []

    def ask(self, data, *kinds):
        self.client.send(data)
        self.due.append(kinds)

    def answers(self):
        found = []
        while self.due:
            got = self.client.receive()
            if got.type in (0x19, 0x15):
                self.aside.append(got)
                continue
            assert got.type in self.due.pop(0), "the wrong answer: %s" % got
            found.append(got)
        return found


def connect_and_throw_away(client, data, ack):
    """Sends DATA, reads once, takes the ack, and throws away what came with it."""
    client.send(data)
    got = client.socket.recv(65536)
    assert got.startswith(ack), "not the ack: %r" % got


@scenario("Clients", "answers matched by order only, deliveries and pushes in between",
          client=True)
def answers_by_order():
    with Server() as server:
        client, other = ByOrder(server.client()), server.client()
        other.send(conversation_open(1, 1, "jobs"))
        client.ask(subscribe(1, "events"), 0x06)
        client.ask(worker_register("jobs"), 0x18)
        assert len(client.answers()) == 2
        for number in range(100):
            client.ask(publish(1, "events", b"%d" % number), 0x0A)
            client.ask(publish(1, "nowhere", b""), 0x0B)
            client.ask(ping(), 0x14)
            client.ask(subscribe(2, "nowhere"), 0x07)
            other.send(publish(3, "events", b"other"))
            if number % 20 == 0:
                other.send(request(1, 1, b"job"))
            if number % 10 == 9:
                client.answers()
        acks = sum(other.receive().type == 0x0A for _ in range(100))
        assert acks == 100
        while len(client.aside) < 205:
            client.aside.append(client.client.receive())
        deliveries = [got for got in client.aside if got.type == 0x19]
        assert [got.u64() for got in deliveries] == list(range(1, 201))
        assert len(client.aside) == 205


@scenario("Clients", "bytes behind an ack are thrown away: none of a push or an answer is",
          client=True)
def bytes_behind_an_ack():
    with Server(conversations={"no_worker": "wait"}) as server:
        requester = server.client()
        for number in range(10):
            requester.send(conversation_open(1, number, "jobs"), request(1, number, b"job"),
                           ping())
            requester.expect(pong())
            client = server.raw()
            connect_and_throw_away(client, connect("1.0"), connect_ack("1.0"))
            connect_and_throw_away(client, worker_register("jobs"), worker_register_ack())
            client.expect(push(number + 1, b"job"))
            client.send(push_reply(1, number + 1, b"done"))
            requester.expect(reply(1, number, b"done"))
            client.send(disconnect())
            client.expect_end()
            server.closed(client)


@scenario("Clients", "no reading between requests: everything is there, in order, when it reads",
          client=True)
def no_reading_between_requests():
    count = 2000
    with Server() as server:
        client = server.client()
        client.send(subscribe(1, "events", max_in_flight=1))
        for number in range(count):
            client.send(publish(2, "events", b"%d" % number))
        client.expect(subscribe_ack(1, 1))
        acks = deliveries = 0
        while acks < count or deliveries < count:
            got = client.receive()
            if got.type == 0x0A:
                acks += 1
                assert got.raw == publish_ack(2, acks, DELIVERED)
            else:
                assert got.raw == deliver(1, deliveries + 1, b"%d" % deliveries)
                deliveries += 1
            assert acks >= deliveries
        client.expect_nothing()


@scenario("Clients", "a client that reads only while it waits for an answer, takes any frame but "
          "Deliver for it, and has more deliveries than fit: with max_in_flight 1 the answers are "
          "its answers", client=True)
def answers_with_dropped_deliveries():
    with Server(limits={"max_outbox_bytes": "64K"}) as server:
        client, publisher = ByOrder(server.client(receive_buffer=4096)), server.client()
        client.ask(subscribe(1, "events", max_in_flight=1), 0x06)
        client.answers()
        for _ in range(3):
            dropped = 0
            while dropped < 5:
                publisher.publish(1, "events", bytes(20000))
                dropped += publisher.flags == 0
            client.ask(publish(2, "events", b"own"), 0x0A)
            client.ask(ping(), 0x14)
            client.answers()
        client.client.expect_nothing()
        sequences = [got.u64() for got in client.aside]
        assert sequences == sorted(set(sequences))


@scenario("Clients", "subscriptions that share a stream: each message once for each, by sequence",
          client=True)
def subscriptions_that_share_a_stream():
    with Server(channels=("a", "b")) as server:
        client, publisher = server.client(), server.client()
        client.send(subscribe(1, "a"), subscribe(1, "b"), subscribe(1, "a"))
        client.expect(subscribe_ack(1, 1), subscribe_ack(1, 2), subscribe_ack(1, 3))
        for number in range(1, 21):
            publisher.publish(1, "a", b"a%d" % number)
            publisher.publish(1, "b", b"b%d" % number)
        got = [client.receive().raw for _ in range(60)]
        wanted = [deliver(1, number, b"a%d" % number) for number in range(1, 21)]
        assert [one for one in got if one in wanted] == [one for one in wanted for _ in range(2)]
        wanted = [deliver(1, number, b"b%d" % number) for number in range(1, 21)]
        assert [one for one in got if one in wanted] == wanted


@scenario("Clients", "half-close, then wait for the close: all answers, then the end", client=True)
def half_close_and_wait():
    with Server() as server:
        jobs = worker(server)
        for _ in range(20):
            client = server.client()
            client.send(conversation_open(1, 1, "jobs"), request(1, 1, b"job"),
                        conversation_open(2, 2, "nobody"), request(2, 2, b"echo"),
                        publish(3, "events", b"x") * 100)
            client.half_close()
            pushed = jobs.receive()
            jobs.send(push_reply(1, pushed.u64(), b"done"))
            got = client.receive_all()
            assert sum(one.type == 0x0A for one in got) == 100
            assert [one.raw for one in got if one.type != 0x0A and one.stream == 1] == \
                [reply(1, 1, b"done")]
            assert [one.raw for one in got if one.type != 0x0A and one.stream == 2] == \
                [reply(2, 2, b"echo")]
            assert len(got) == 102


@scenario("Clients", "close with unread acks, which is a reset: every publish is handled all the "
          "same", client=True)
def close_with_unread_acks():
    with Server() as server:
        subscriber = server.client()
        subscriber.subscribe(1, "events")
        for batch in range(20):
            client = server.client()
            for number in range(100):
                client.send(publish(1, "events", b"%d" % number))
            client.arrived()
            client.close()
            subscriber.expect(*[deliver(1, 100 * batch + number + 1, b"%d" % number)
                                for number in range(100)])
        subscriber.expect_nothing()


@scenario("Clients", "no ConversationClose ever: max_conversations_per_connection bounds them, and "
          "they end with the connection", client=True)
def no_conversation_close():
    with Server(limits={"max_conversations_per_connection": 50}, control=True) as server:
        for _ in range(3):
            client = server.client()
            for number in range(50):
                client.send(conversation_open(1, number, "nobody"), request(1, number, b"x"))
                client.expect(reply(1, number, b"x"))
            client.send(conversation_open(1, 50, "nobody"))
            client.expect(conversation_error(1, 50, SERVER_ERROR, starts("over-capacity: ")))
            client.close()
            server.closed(client)
        left = server.ask("connections")["connections"]
        assert sum(one["conversations"] for one in left) <= 1, left


@scenario("Clients", "no close on Disconnect: a client that ignores it is served on, and closed "
          "once it is idle; the server gets away", client=True)
def no_close_on_disconnect():
    with Server(server={"drain_idle": "1s", "drain_timeout": "1m"}) as server:
        client, publisher = server.client(), server.client()
        client.subscribe(1, "events")
        server.signal(signal.SIGTERM)
        client.expect(disconnect())
        publisher.send(publish(1, "events", b"x"))
        publisher.expect(publish_ack(1, 1, DELIVERED))
        client.expect(deliver(1, 1, b"x"))
        client.send(ping(), publish(1, "events", b"y"))
        client.expect(pong(), publish_ack(1, 2, DELIVERED), deliver(1, 2, b"y"))
        # Told once is enough for the one; the other had no subscription and is told at the end.
        client.expect_end()
        publisher.expect(disconnect())
        publisher.expect_end()
        server.wait_exit(0)
