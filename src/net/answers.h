/*
 * The answer queue of a connection: answers to Connect, Ping, Publish, Subscribe and
 * WorkerRegister leave in the order of their requests, although a commit decides some of them
 * later. Such an answer gets a place; while a place is pending, what is answered behind it waits
 * here, encoded. Whoever fills the place at the head moves all that is ready into the outbox. While
 * nothing is pending the queue is empty, and answers go straight into the outbox.
 *
 * The answers are part of the outbox and guarded by its lock. Places are taken by the connection's
 * own session and filled by any thread, each once; a dead outbox takes nothing, but its places are
 * given back all the same. Confirmations have an order of their own, the broker's: those owed are
 * only counted here.
 */
#ifndef NET_ANSWERS_H
#define NET_ANSWERS_H

#include "base/base.h"

#include <stdatomic.h>

#include "wire/wire.h"

struct conn;
struct sink_place;

/* What an answer that is not known yet is charged. */
#define ANSWER_EMPTY_BYTES 64

struct answers {
	struct sink_place *head, *tail;

	/* Written under the lock, read anywhere. */
	atomic_bool pending;		 /* there is a place */
	atomic_uint_fast64_t due, bytes; /* answers not in the outbox, confirmations owed */
};

/* True while a place is pending; the connection's own session only, which takes them. No lock. */
bool answers_are_pending(const struct conn *conn);

/* A place for COUNT answers, which may be 0, behind those that are due. NULL: no memory. */
struct sink_place *answers_place_locked(struct conn *conn, size_t count);

/*
 * Gives PLACE back, filled with SIZE bytes of FRAMES whole frames, which may both be 0. The caller
 * writes them where the result says before it releases the lock. NULL: there is nothing to write,
 * or nowhere, because the connection is lost.
 */
uint8_t *answers_fill_locked(struct conn *conn, struct sink_place **place, size_t frames,
			     size_t size);

/* Gives PLACE, which must be the next one, back: its answers have been put into the outbox. */
void answers_pass_locked(struct conn *conn, struct sink_place **place);

/* How many answers PLACE was taken for. */
size_t answers_place_count(const struct sink_place *place);

/* PLACE is that of publishes, which are answered now: notes how long they took. */
void answers_observe(const struct sink_place *place);

/* Queues FRAME behind all that is due; the session's own. Without memory the connection is lost. */
void answers_add_frame(struct conn *conn, const struct wire_frame *frame);

/* A confirmation for which HELD bytes are kept will come, or has. */
void answers_owe_locked(struct conn *conn, size_t held);
void answers_paid_locked(struct conn *conn, size_t held);

#endif
