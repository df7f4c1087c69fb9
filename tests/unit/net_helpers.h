/*
 * Connections over socket pairs, for tests of what is inside the net: no listener, no port. The
 * test holds the peer's end.
 */
#ifndef TESTS_UNIT_NET_HELPERS_H
#define TESTS_UNIT_NET_HELPERS_H

#include "net/net_priv.h"
#include "net/session.h"

#include <check.h>

/* What net_begin makes a broker and a net of; each test may change it before that. Channels:
 * "news" sheds, "ticks" drops. worker_settle is 0, reply_timeout as long as a test. */
extern struct broker_settings broker_settings;
extern struct net_limits limits;
extern const char *token;
extern struct broker *broker;
extern struct net *net;

#define BOOT_MS UINT64_C(1234567890123)

void net_begin(void);
void net_end(void);

/* A connection without a session: the test does with its outbox what it wants. */
struct pair {
	struct conn *conn;
	int peer; /* -1 once closed */
};

/* TYPE: SOCK_STREAM, or SOCK_DGRAM to see which bytes were written together. */
void pair_open(struct pair *pair, int type);
void pair_close_peer(struct pair *pair);
void pair_close(struct pair *pair);

/*
 * A connection with a session; it ends by itself, after the peer. The peer's end. *WATCH, unless
 * NULL, is another descriptor of the session's end, which tells whether the session has read
 * everything; while it is open the peer sees no end but that of a shutdown.
 */
int session_open(enum net_listener_kind kind, int *watch);
bool session_has_ended(void); /* the only one */

/* Waits until every connection has ended. */
void sessions_wait(void);

/* Bytes that grow. */
struct bytes {
	uint8_t *data;
	size_t length, capacity;
};

void bytes_add(struct bytes *bytes, const void *data, size_t length);
void bytes_add_frame(struct bytes *bytes, const struct wire_frame *frame);
void bytes_free(struct bytes *bytes);
bool bytes_equal(const struct bytes *a, const struct bytes *b);

/* Adds what can be read from FD without waiting; false at the end of the stream. */
bool bytes_receive(struct bytes *bytes, int fd);

/* Reads until there are LENGTH bytes, or the stream ends. */
void bytes_receive_until(struct bytes *bytes, int fd, size_t length);

/* A small generator, the same everywhere; below LIMIT. */
void draw_seed(uint64_t seed);
unsigned draw(unsigned limit);

#endif
