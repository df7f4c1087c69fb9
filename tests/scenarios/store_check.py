"""liminald -C: the check of a store that no server uses."""

import os
import subprocess

from frames import *
from harness import TIMEOUT, Server, Skip, program, scenario

try:
    import sqlite3
except ImportError:
    sqlite3 = None

CONFIG = ("[server]\nlisten = 127.0.0.1:0\nhttp_listen = none\nstate_dir = DIR/state\n"
          "[channel orders]\ndurable = yes\n")
DURABLE = 0x80


def expect(server, status, *words):
    """What -C says for the configuration of a server."""
    done = subprocess.run([program("LIMINALD", "liminald"), "-C", "-c", server.config_path],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=TIMEOUT, env=server.environment, check=False)
    text = done.stdout.decode()
    assert done.returncode == status, "exit status %d, expected %d: %s" % (done.returncode, status,
                                                                           text)
    for word in words:
        assert word in text, "no '%s' in: %s" % (word, text)


def connected(server):
    client = server.raw()
    client.send(connect("1.0"))
    client.expect(connect_ack("1.0", 0x00010000))
    return client


def work(server):
    """Three messages, and a consumer that is done with the second only."""
    client = connected(server)
    for payload in (b"one", b"two", b"three"):
        client.publish(1, "orders", payload, key=payload.decode())
    consumer = connected(server)
    consumer.subscribe(1, "orders", flags=DURABLE, tail=s("me") + u8(1) + u64(0))
    for _ in range(3):
        assert consumer.receive().type == 0x19
    consumer.send(accept(1, "2", flags=DURABLE))
    consumer.expect(accept(1, "2", flags=DURABLE))


@scenario("The store", "-C checks a store that is not in use, and says what it found: status 0 sound; a "
          "channel that is no longer configured is listed")
def check_sound():
    with Server(config=CONFIG) as server:
        work(server)
        server.stop()
        expect(server, 0, "channel 'orders': 3 messages of ", "from 1 to 3; 1 consumers, 3 keys\n",
               "liminal.db: sound\n")
        server.configure(CONFIG.replace("orders", "other"))
        expect(server, 0, "channel 'orders': 3 messages of ")


@scenario("The store", "-C: status 1 when the store is in use, or there is none; 2 without state_dir")
def check_in_use():
    with Server(config=CONFIG) as server:
        work(server)
        expect(server, 1, "in use by process %d\n" % server.process.pid)
        server.stop()
        os.unlink(os.path.join(server.directory, "state", "liminal.db"))
        expect(server, 1, "cannot read '", "liminal.db'")
        server.configure(CONFIG.replace("state_dir = DIR/state\n", "").replace(
            "durable = yes\n", ""))
        expect(server, 2, "state_dir is not set")


@scenario("The store", "-C: status 1 when the store is damaged: sequences, messages, positions; it "
          "repairs nothing")
def check_damaged():
    if sqlite3 is None:
        raise Skip("this python3 comes without sqlite3")
    with Server(config=CONFIG) as server:
        work(server)
        server.stop()
        for change, found in (
                ("UPDATE consumer SET state = x'01'", "the position of consumer 'me' cannot be"),
                ("UPDATE channel SET last = 2", "sequences "),
                ("UPDATE row_1 SET data = substr(data, 2)", " cannot be read")):
            database = sqlite3.connect(os.path.join(server.directory, "state", "liminal.db"))
            with database:
                database.execute(change)
            database.close()
            for _ in range(2):
                expect(server, 1, "damaged: channel 'orders': ", found, "liminal.db: damaged, in ")
