/*
 * What is queued for one connection, and writing it.
 *
 * Frames stand in chunks: small ones side by side, large payloads by reference. The deliveries of
 * a run that many receive are one buffer for all, and what differs between the receivers is written
 * into a copy just before it is sent: so the copies need not all exist at the same time.
 *
 * Appending never blocks and happens under the OUTBOX lock. Writing has one writer at a time, who
 * holds `writing` and calls send without the lock; others that find the flag set leave their frames
 * to it. What a socket does not take goes, with the flag, to the flusher.
 *
 * Messages of durable subscriptions are paced: they take part of the room only, and what finds none
 * stays with the broker. The writer that sees room again hands the connection to the flusher, which
 * asks the broker for more.
 *
 * Once a write has failed the outbox is dead: what is queued is thrown away, and so is what comes.
 */
#ifndef NET_OUTBOX_H
#define NET_OUTBOX_H

#include "base/buf.h"
#include "base/lock.h"
#include "broker/sink.h"
#include "net/answers.h"
#include "wire/wire.h"

struct conn;
struct chunk;

struct outbox {
	struct mutex lock; /* OUTBOX, and all that follows */
	struct chunk *head, *tail;
	size_t frame_left; /* of the frame at the head, when a part of it is sent */
	bool writing;
	bool closed; /* nobody writes any more */
	bool told;   /* a Disconnect is queued */
	bool waited; /* the session waits for `changed` */
	bool stalled;
	bool paced;	  /* messages of durable subscriptions have come */
	bool room_wanted; /* some have found no room */
	struct cond changed;
	uint64_t sent;	  /* bytes, to see progress */
	uint64_t sending; /* frames that a send has been given and that are not counted off yet */
	struct wire_version version;	/* of the connection */
	const struct flush_set *in_set; /* the last set that it was added to */

	/* A stall that is to be logged without the lock. */
	const char *stall_channel;
	uint64_t stall_bytes, stall_frames;
	bool stall_drops;

	struct answers answers;

	/* Written under the lock, read anywhere. */
	atomic_uint_fast64_t bytes, frames;
	atomic_bool room_due; /* the broker is to be told of room, or that the outbox is dead */
	uint64_t max_bytes, max_frames;
};

void outbox_init(struct outbox *outbox, uint64_t max_bytes, uint64_t max_frames);
void outbox_destroy(struct outbox *outbox);

/*
 * Room for SIZE bytes of whole frames at the end; HINT: how many more are expected to follow. The
 * caller fills it before it releases the lock. NULL when memory is missing or the outbox is dead.
 */
uint8_t *outbox_add_locked(struct conn *conn, size_t size, size_t frames, size_t hint);

/* As outbox_add_locked, but for as many bytes as there are together, MIN at least and MAX at most:
 * *SIZE. outbox_added_locked tells how many of them, and how many whole frames, were filled. */
uint8_t *outbox_stretch_locked(struct conn *conn, size_t min, size_t max, size_t *size);
void outbox_added_locked(struct conn *conn, size_t bytes, size_t frames);

/* The next SIZE bytes of a frame that outbox_add_locked began, by reference. */
bool outbox_add_buf_locked(struct conn *conn, struct buf *buf, struct span bytes);

/* COUNT whole Deliver frames that fill BUF, by reference. Where they do not have STREAM, and the
 * sequence numbers from SEQUENCE on, they get them when they are sent. */
bool outbox_add_run_locked(struct conn *conn, struct buf *buf, size_t count, uint32_t stream,
			   uint64_t sequence);

/* The same of a frame of its own bytes that go on where a reference ended. */
uint8_t *outbox_continue_locked(struct conn *conn, size_t size);

/* Takes nothing more: a write has failed, or it is closed. */
bool outbox_is_dead(const struct conn *conn);

/* What is owed to this client cannot be said, for want of memory: the connection is closed. */
void outbox_lose_locked(struct conn *conn);

/* Whether one more frame of SIZE bytes fits. An empty outbox takes any. */
enum sink_result outbox_fits_locked(struct conn *conn, size_t size);

/* Whether so many frames and bytes fit together, as the fullest that they make it. */
bool outbox_fits_all_locked(struct conn *conn, size_t frames, size_t bytes);

/* Whether a message of a durable subscription, SIZE bytes with its head, may be queued. If not, the
 * broker is told when there is room again. */
bool outbox_has_paced_room_locked(struct conn *conn, size_t size);

/*
 * What is queued, as a reply is judged by it, after an OFFER to the socket. Frames that a send has
 * been given do not count: the peer may have read them already, while their writer waits for this
 * lock. Their bytes do.
 */
void outbox_load(struct conn *conn, bool offer, struct sink_load *load);

/* Adds the connection to SET, once. */
void outbox_touch_locked(struct conn *conn, struct flush_set *set);

/* Encodes FRAME at the end. It always fits; without memory for it the connection is closed. */
void outbox_add_frame_locked(struct conn *conn, const struct wire_frame *frame);
void outbox_add_frame(struct conn *conn, const struct wire_frame *frame);

/* The same, and the write ends with it: what follows goes in another one. */
void outbox_add_last_frame_locked(struct conn *conn, const struct wire_frame *frame);

/* Full, with the answers that are due: the session handles nothing more until there is room. PLACES
 * more are spoken for. */
bool outbox_is_full(const struct conn *conn, size_t places);

/* How many answers more make it half full, which is the time to write some of it. */
size_t outbox_room(const struct conn *conn, size_t places);

/* Waits until it is not full, it is dead, or the connection is to be closed; false when UNTIL_NS,
 * monotonic, came first. */
bool outbox_wait_room(struct conn *conn, int64_t until_ns);

/* Writes what is queued, without blocking. No lock is held. SET, if any, is the one that the
 * connection is taken from by this. */
void outbox_flush(struct conn *conn, const struct flush_set *set);

/* Has the flusher do that. */
void outbox_hand_over(struct conn *conn, const struct flush_set *set);

/* Offers what is queued to the socket, under the lock, when something does not fit. */
void outbox_offer_locked(struct conn *conn);

/* The flusher's turn, a bounded piece, before which the broker is told where room is due. True when
 * it keeps the writer flag for another one. No lock is held. */
bool outbox_flush_turn(struct conn *conn);

/* Waits until everything is written; gives up, and is dead, after TIMEOUT_MS without progress, or
 * altogether once net_hurry was called. */
enum finish_result { FINISH_WRITTEN, FINISH_FAILED, FINISH_LATE };
enum finish_result outbox_finish(struct conn *conn, int64_t timeout_ms);

/* Throws away what is queued and waits until no writer uses the descriptor. */
void outbox_close(struct conn *conn);

#endif
