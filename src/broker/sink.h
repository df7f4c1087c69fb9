/*
 * What the broker asks of a connection: to take messages, answers and pushes into its queue. The
 * broker knows nothing of sockets or frames; net/ implements this and unit tests fake it.
 *
 * Every operation but `flush` may be called with the broker's locks held: it appends to a bounded
 * queue under a lock of its own and never blocks. What has been appended leaves when the flush set
 * that was passed along is run, which its owner does after releasing every lock.
 */
#ifndef BROKER_SINK_H
#define BROKER_SINK_H

#include "base/base.h"

#include <stdatomic.h>

#include "base/buf.h"
#include "base/text.h"

struct sink;
struct flush_set;

/* One publish of a run: consecutive publishes of one connection to one channel. */
struct message {
	struct span envelope; /* as it is delivered: the channel's schema id stands in it already */
	struct buf *buf;      /* holds the envelope, which may then be referenced; NULL: copy it */
	struct span key;
	uint32_t stream; /* of the Publish, for its answer */
	bool has_key;

	/* Set by broker_publish, or by the commit. */
	bool duplicate;	     /* id and sequence are the first one's */
	bool delivered;	     /* a live subscription has accepted it; see `plain` */
	const char *refused; /* why nothing was done, for its PublishError; NULL: it was accepted */
	uint64_t id;
	uint64_t sequence; /* in a durable channel; 0: the channel is not durable */
};

/* One message on its way to a durable subscription. */
struct stored {
	struct span envelope; /* as it is delivered */
	struct buf *buf;      /* holds it, and may be referenced */
	uint64_t id, sequence;
	bool again; /* it was delivered before */
};

/* A consumer's answer to a delivery, as it stands on the wire. */
enum answer_kind { ANSWER_ACCEPT, ANSWER_DEFER, ANSWER_REJECT };

struct confirmation {
	uint32_t stream;
	enum answer_kind kind;
	bool working;	     /* flag 0x40 was set */
	struct span id;	     /* as it was given */
	const char *refused; /* why it was not done: it goes back as a Reject; NULL: it was done */
};

/* An answer that a commit decides: its place among those of the connection. The sink's own. */
struct sink_place;

/*
 * What sinks make of a run once, for all of its subscriptions, in the forms that they need: each
 * NULL until a sink has made it. The broker lets go of them when the run is delivered.
 */
#define DELIVERY_FORMS 2

/* One subscription's share of a run. */
struct delivery {
	uint32_t stream;
	uint64_t sequence; /* of the next message; counted up */
	bool drop;	   /* what does not fit uses up a number; otherwise the first ends it */
	bool answer;	   /* put the publisher's answer in front of each message */
	bool quiet;	   /* with answer: none is due */
	struct sink_place
		*place;	       /* with answer: theirs, the next one, given back by this; or NULL */
	uint64_t boot;	       /* for connections that are told where a message came from */
	const char *channel;   /* for the log line of a stall; outlives the sink */
	size_t envelope_bytes; /* of the whole run */
	bool plain;	       /* every message of the run is to be delivered, and copied; a sink
				* that accepts all of them need not mark each as delivered */
	struct buf **shared;   /* of the run */

	/* Set by the sink. */
	size_t accepted, dropped;
	bool overflow; /* something did not fit; without drop the rest was left out */
};

/* What a sink holds, and its bounds, at one moment. */
struct sink_load {
	uint64_t frames, bytes;
	uint64_t max_frames, max_bytes;
	bool empty; /* nothing at all is queued: it takes one frame of any size */
};

enum sink_result {
	SINK_OK,
	SINK_FULL_FRAMES,
	SINK_FULL_BYTES,
	SINK_DEAD,
};

enum refusal {
	REFUSAL_NONE, /* a text of the server's own */
	REFUSAL_BUSY, /* the rest: a worker's, whose text is passed on */
	REFUSAL_INVALID,
	REFUSAL_UNAVAILABLE,
	REFUSAL_INTERNAL,
};

struct sink_ops {
	/* Queues the messages that were neither refused nor are duplicates, in order. */
	void (*deliver)(struct sink *sink, struct delivery *delivery, struct message *run,
			size_t count, struct flush_set *set);

	/* These always fit. */
	void (*subscribed)(struct sink *sink, uint32_t stream, uint64_t subscription,
			   const uint8_t *schema_id, struct flush_set *set);
	void (*shed)(struct sink *sink, uint32_t stream, const char *text, struct flush_set *set);
	void (*registered)(struct sink *sink, struct flush_set *set);
	void (*conversation_error)(struct sink *sink, uint32_t stream, uint64_t conversation,
				   enum refusal refusal, struct span text, struct flush_set *set);

	/* The caller has judged with `load` that it fits. BUF, if any, holds PAYLOAD. */
	void (*reply)(struct sink *sink, uint32_t stream, uint64_t conversation,
		      struct span payload, struct buf *buf, struct flush_set *set);

	enum sink_result (*push)(struct sink *sink, uint64_t correlation, struct span payload,
				 struct buf *buf, struct flush_set *set);

	/*
	 * A place for COUNT answers behind those that are due already; NULL: no memory. 0: the
	 * publisher is told nothing, but what stands behind waits all the same. Called by the
	 * client's own thread. Whoever fills it gives it back: it is not to be used after that.
	 * What stands behind it waits for it, and no longer.
	 */
	struct sink_place *(*place)(struct sink *sink, size_t count);
	void (*fill_publishes)(struct sink *sink, struct sink_place *place,
			       const struct message *run, size_t count, struct flush_set *set);
	/* REFUSED: the text of a SubscribeError; NULL: subscribed. */
	void (*fill_subscribe)(struct sink *sink, struct sink_place *place, uint32_t stream,
			       uint64_t subscription, const uint8_t *schema_id, const char *refused,
			       struct flush_set *set);

	/*
	 * Queues messages of a durable subscription, in order, as long as there is room for more of
	 * that kind (less than for other frames, so that a replay does not crowd them out; one
	 * always has room in an empty queue). How many that were. If not all: broker_client_room is
	 * called, once, when there is room again. A dead sink takes none; broker_client_room is
	 * called when it dies, too, if it was ever offered one.
	 */
	size_t (*deliver_stored)(struct sink *sink, uint32_t stream, uint64_t boot,
				 const struct stored *messages, size_t count,
				 struct flush_set *set);

	/* The end of a subscription that was not asked for; always fits. */
	void (*unsubscribed)(struct sink *sink, uint32_t stream, const char *text,
			     struct flush_set *set);

	/* A confirmation that has to wait will come: it counts as a place from now on, and so does
	 * its id. */
	void (*owe_confirmation)(struct sink *sink, size_t id_length);
	/* OWED: it was announced so, with an id of that length, and counts no more. Always fits. */
	void (*confirm)(struct sink *sink, const struct confirmation *confirmation, bool owed,
			struct flush_set *set);

	/* OFFER: as it is after the socket has been offered what is queued, without blocking. */
	void (*load)(struct sink *sink, bool offer, struct sink_load *load);

	/* For flush sets. `flush` is called without locks; `flush_later` hands it to a thread. */
	void (*hold)(struct sink *sink);
	void (*release)(struct sink *sink);
	void (*flush)(struct sink *sink, struct flush_set *set);
	void (*flush_later)(struct sink *sink);
	/* Instead of `flush`: has another thread do it. Without locks. */
	void (*flush_elsewhere)(struct sink *sink, struct flush_set *set);
};

struct sink {
	const struct sink_ops *ops;
	atomic_bool dead; /* set once, by the sink: a write has failed, it takes nothing more */
};

/*
 * The sinks that have something new, each held by a reference. It belongs to one thread. Where a
 * set cannot grow, a sink goes to `flush_later` instead, so that adding never fails.
 */
#define FLUSH_SET_INLINE 16

struct flush_set {
	struct sink **sinks;
	size_t count, capacity;
	struct sink *inline_sinks[FLUSH_SET_INLINE];
};

void flush_set_init(struct flush_set *set);
/* False when the sink went to `flush_later`. */
bool flush_set_add(struct flush_set *set, struct sink *sink);

/* Flushes and lets go of each sink; the set is empty, and usable, afterwards. Holds no lock. */
void flush_set_run(struct flush_set *set);

/* The same, but all beyond MAX are handed to another thread. */
void flush_set_run_some(struct flush_set *set, size_t max);

#endif
