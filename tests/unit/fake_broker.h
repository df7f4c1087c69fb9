/*
 * A broker whose commits happen when the test says so, and connections over socket pairs that it
 * serves, for tests of the net's part of durable channels. The test holds the peer's end.
 *
 * Channels: "plain"; "durable"; "quiet", durable as well, whose publishers are told nothing. What
 * the net asks of the broker is written down as text, in order, events separated by ", ".
 */
#ifndef TESTS_UNIT_FAKE_BROKER_H
#define TESTS_UNIT_FAKE_BROKER_H

#include "net/net_priv.h"

#include <check.h>

struct fake {
	/* Set by the test before anything else. */
	struct net_limits limits;
	const char *token;
	bool no_store;
	size_t batch; /* so many publishes are taken at once */
	bool owe;     /* confirmations wait for a commit; otherwise an answer is stale */

	uint64_t stored;	/* messages of a durable subscription */
	size_t stored_bytes;	/* the envelope of each */
	struct buf *stored_buf; /* what holds it; NULL: it is copied */

	/* Under the broker's lock. */
	size_t share;	      /* so many publishes are taken, then no more */
	uint64_t outstanding; /* what the client's state tells */
	uint64_t taken;	      /* of those stored */
	unsigned rooms;	      /* calls of broker_client_room */
};

extern struct fake fake;
extern struct net *net;

void fake_begin(void);
void fake_end(void);

/* What was asked of the broker so far. */
const char *fake_log(void);

/* The next COUNT of what waits for the committer is on the disk. They must be there, or come. */
void fake_commit(size_t count);

/* The session waits for all of that, for its share, for room in its own outbox. */
void fake_await_commit_wait(void);
void fake_await_share_wait(void);
void fake_await_full(struct conn *conn);

/* How much waits for the committer. */
size_t fake_uncommitted(void);
void fake_set_share(size_t share);
void fake_set_outstanding(uint64_t outstanding);

/* Offers what is left of the durable subscription, as the committer would. */
void fake_deliver(struct conn *conn);
void fake_await_rooms(unsigned rooms);
unsigned fake_rooms(void);
uint64_t fake_taken(void);

/* A connection, without and with a session; the peer's end. Only one at a time. */
struct conn *fake_connect(int *peer);
void fake_disconnect(struct conn *conn);
struct conn *fake_serve(int *peer); /* its conn lives until fake_end */
void fake_await_end(void);	    /* of that session */

/* The peer's side: sends bytes, receives COUNT frames, as text. "end" stands for the end of the
 * stream, and counts as one. */
struct input {
	uint8_t bytes[65536];
	size_t length;
};
void input_frame(struct input *input, const struct wire_frame *frame);
void input_connect(struct input *input, struct wire_version version);
void input_ping(struct input *input);
void input_publish(struct input *input, uint32_t stream, const char *channel);
void input_subscribe(struct input *input, uint32_t stream, const char *channel);
void input_request(struct input *input, uint32_t stream);
void input_answer(struct input *input, uint8_t type, uint8_t flags, const char *id);
void input_send(struct input *input, int peer);

/* Of version VERSION; valid until the next call. */
const char *received(int peer, size_t count, struct wire_version version);

#endif
