/*
 * What the files of the broker share: its structs, grouped by the lock that guards them.
 */
#ifndef BROKER_BROKER_PRIV_H
#define BROKER_BROKER_PRIV_H

#include "base/base.h"

#include <stdatomic.h>

#include "base/deadline.h"
#include "base/hash.h"
#include "base/list.h"
#include "base/lock.h"
#include "base/thread.h"
#include "broker/broker.h"
#include "broker/dedup.h"

struct attachment;
struct committer;
struct journal;
struct registration;
struct worker_queue;

#define CHANNEL_MAGIC 0x4c43484eu
#define CLIENT_MAGIC 0x4c434c49u
#define REQUEST_MAGIC 0x4c524551u

struct channel {
	unsigned magic;
	struct broker *broker;
	char *name;
	size_t name_length;
	uint8_t schema_id[32];
	atomic_bool unanswered;	 /* listed in unanswered_channels */
	struct journal *journal; /* NULL: not durable */
	struct mutex lock;

	/* CHANNEL */
	bool drop;
	struct list subscriptions;
	size_t subscription_count;
	struct dedup dedup;
	uint64_t publishes, deliveries, sheds, drops, dedup_hits;
};

/*
 * The set of channels is immutable, so that it is read without a lock: a reload makes a new one
 * and keeps the old one until the end, since somebody may be reading it.
 */
struct channel_set {
	struct channel_set *previous;
	size_t count;
	size_t slot_count;	    /* a power of two, at least twice count */
	struct channel **slots;	    /* by hash of the name, open addressing */
	struct channel *channels[]; /* in the order of the configuration */
};

/* Made, found and freed by its client's thread; a shed one is freed when that thread next looks. */
struct subscription {
	struct hash_node by_id; /* in client->subscriptions */
	uint64_t id;
	uint32_t stream;
	bool never_shed; /* max_in_flight 1 */
	struct client *client;
	struct channel *channel;
	struct attachment *attachment; /* a durable one's; NULL: it is plain */
	struct hash_node by_stream;    /* durable: in client->durable_streams */

	/* CHANNEL; not of durable ones */
	struct list in_channel; /* linked to itself once the subscription has ended */
	uint64_t sequence;	/* of the next message */
};

struct client {
	unsigned magic;
	struct broker *broker;
	struct sink *sink;
	uint64_t id;
	bool control;
	struct broker_client_limits limits;
	atomic_size_t live_subscriptions; /* changed under the channel's lock, read anywhere */
	atomic_size_t outstanding;	  /* deliveries of durable subscriptions */
	atomic_bool ends_after_answers;	  /* half-closed */
	atomic_bool takes_nothing;	  /* half-closed, and its last answer is in the outbox */

	/* its own thread only */
	struct hash subscriptions;   /* by id; may hold some that were shed */
	struct hash durable_streams; /* durable subscriptions, by stream */
	bool ever_registered;

	/* EXCHANGE */
	struct hash_node by_id; /* in broker->clients */
	struct hash conversations;
	bool interrupted;	  /* waits no longer for quiet */
	struct cond quiet;	  /* pending_replies or waiting_count fell to 0, or interrupted */
	struct list requests;	  /* its own: pending, waiting or held in order */
	uint64_t pending_replies; /* requests whose answer is not in the outbox yet */
	uint64_t held_replies;	  /* of those, answered and waiting for their turn */
	uint64_t held_bytes;	  /* and what they hold */
	uint64_t waiting_count;	  /* requests not pushed yet, one-way ones included */
	uint64_t waiting_one_way;
	uint64_t waiting_bytes;

	/* COMMIT */
	struct list attachments; /* its live durable subscriptions */
	struct list in_waiters;	 /* it waits for room at the committer */
	struct cond share;	 /* granted, interrupted, or nothing of it is with the committer */
	uint64_t commit_count;	 /* items, and confirmations that are owed */
	uint64_t commit_bytes;	 /* of its items */
	uint64_t commit_wanted;	 /* while it waits */
	bool commit_granted;	 /* its next frame is taken whatever its size */
	bool commit_interrupted; /* it waits for no room any more */

	/* EXCHANGE: as the one that is pushed to */
	bool no_pushes; /* half-closed or closing: cannot answer any more, and gets none */
	struct registration *registration;
	struct list pushes; /* requests pushed and not answered, oldest first */
	uint64_t push_count;
	uint64_t unanswered;	/* timed out since it last answered one */
	struct list turns;	/* requests that wait for their turn */
	int64_t settled_ns;	/* no push before */
	struct deadline settle; /* queued while somebody waits for that */
	uint64_t last_used;
};

/* How a registration ended says what becomes of the conversations that are bound to it. */
enum registration_state {
	REGISTRATION_ACTIVE,
	REGISTRATION_LEAVING, /* takes no more pushes */
	REGISTRATION_LEFT,    /* replaced */
	REGISTRATION_LOST,    /* its connection has ended */
};

/* EXCHANGE. Conversations hold references, so that a bound one sees how its worker ended. */
struct registration {
	unsigned references;
	enum registration_state state;
	struct client *client; /* NULL once LEFT or LOST */
	struct list in_queue;
	struct list in_broker;
	struct worker_queue *queue;
	struct broker_names namespaces, activities; /* as they were given; bytes are in `storage` */
	const uint64_t *namespace_hashes, *activity_hashes; /* sorted */
	struct span identity;
	bool has_node;
	struct span node;
	uint64_t *storage; /* hashes, then bytes; NULL once it has ended: conversations that are
			    * still bound to it keep little */
};

/* EXCHANGE. Registrations and requests that wait hold references, and so does `waking`. */
struct worker_queue {
	struct hash_node by_name;
	unsigned references;
	struct list workers;
	struct list waiting; /* requests that no worker can have, oldest first */
	struct list anew; /* those that are to be resolved anew: their worker left, or one came */
	struct list in_waking; /* while there are such */
	struct span name;
	uint8_t storage[];
};

enum subject_kind {
	SUBJECT_QUEUE,	    /* parts are set */
	SUBJECT_OTHER,	    /* no worker can have it */
	SUBJECT_CONNECTION, /* number is set */
	SUBJECT_WORKER,	    /* rest is set */
	SUBJECT_CONTROL,    /* rest is set */
};

/* EXCHANGE. Lives while it is open or a request refers to it. */
struct conversation {
	struct hash_node by_id; /* in client->conversations, while open */
	uint64_t id;
	struct broker *broker;
	struct client *client; /* NULL once closed */
	size_t request_count;  /* that refer to it */
	struct list places;    /* requests whose answer is due, in order */
	uint64_t place_count;
	uint64_t waiting_count;	    /* of its requests, one-way ones included */
	struct registration *bound; /* NULL: resolve at the next message */
	enum subject_kind kind;
	struct span queue, name_space, activity; /* empty: not named */
	uint64_t name_space_hash, activity_hash;
	struct span rest;
	uint64_t number;
	size_t subject_length;
	uint8_t subject[];
};

enum request_state {
	REQUEST_WAITING_WORKER, /* in queue->waiting, or in no list when no queue can have it */
	REQUEST_WAITING_TURN,	/* in target->turns; both: or in the `anew` of a queue */
	REQUEST_PUSHED,		/* in target->pushes */
	REQUEST_HANDLED,	/* in no list: it is being handled */
	REQUEST_HELD,		/* answered; only the order of its conversation holds the answer */
};

/* EXCHANGE. One conversation message that is not done with. */
struct request {
	unsigned magic;
	enum request_state state;
	bool reply_wanted;
	uint32_t stream;
	uint64_t conversation_id; /* the conversation's id may be in use again */
	struct conversation *conversation;
	struct client *requester; /* NULL: its connection has ended */
	struct list of_requester;
	struct list in_places;	    /* linked to itself when no answer is due */
	struct client *target;	    /* WAITING_TURN, PUSHED */
	struct list in_target;	    /* pushes, turns, queue->waiting or queue->anew */
	struct worker_queue *queue; /* WAITING_WORKER; NULL: none can have it */
	uint64_t correlation;
	struct hash_node by_correlation; /* PUSHED */
	struct deadline deadline;
	int64_t started_ns;
	struct span payload; /* of the request while it waits; of the reply while held */
	struct buf *buf;     /* holds it */
	uint64_t charged;    /* bytes that it counts with its requester */
	bool answer_is_error;
	enum refusal refusal;
};

struct broker {
	_Atomic(struct channel_set *) channels;
	atomic_uint_fast64_t next_message, next_subscription;
	uint64_t boot_ms;
	struct committer *committer;  /* NULL: there is no store */
	atomic_uint_fast64_t ids_low; /* from here on more ids are to be reserved in the store */
	struct broker_control control;
	struct mutex channels_lock; /* CHANNELS: one reload at a time */

	struct mutex lock; /* EXCHANGE, and all that follows */
	int64_t reply_timeout_ms, reply_timeout_max_ms, worker_settle_ms;
	enum broker_no_worker no_worker;
	char **worker_queues, **unanswered_channels;
	size_t worker_queue_count, unanswered_channel_count;
	struct hash clients, queues, correlations;
	struct list registrations;
	uint64_t next_correlation, next_use;
	uint64_t conversation_count, pending_reply_count, pushed_count, waiting_count;
	uint64_t registration_count;
	struct deadlines request_deadlines, settle_deadlines;
	struct deadlines journal_alarms; /* of journals */
	struct list waking; /* queues that have requests to be resolved anew, each in its turn */
	int64_t anew_ns;    /* none of them before */
	struct cond wake;   /* of the deadline thread */
	int64_t armed_ns;   /* it wakes then at the latest */
	bool stopping;
	struct thread deadline_thread;
};

/* channels.c */
bool channels_init(struct broker *broker, const struct broker_settings *settings);
bool channels_configure(struct broker *broker, const struct broker_settings *settings);
void channels_free(struct broker *broker);
/* Delivers a run, whose ids are set, to all subscriptions but those of CLIENT, which may be NULL.
 */
void channel_deliver_locked(struct channel *channel, const struct client *client,
			    struct message *run, size_t count, struct flush_set *set);
/* Then to those of CLIENT, with its answers in front of them. False when it has none on the
 * channel: PLACE is still to be filled. */
bool channel_deliver_own_locked(struct channel *channel, const struct client *client,
				struct message *run, size_t count, struct sink_place *place,
				struct flush_set *set);
/* Frees subscriptions that have ended without the client's doing; its own thread. */
void client_prune_subscriptions(struct client *client);

/* deadlines.c */
/* The nearest deadline may have come nearer. */
void deadline_thread_poke_locked(struct broker *broker);

/* Handles what is due; false when nothing was. No lock is held. */
bool deadlines_run(struct broker *broker);

/* deadline_thread.c */
bool deadline_thread_start(struct broker *broker);
void deadline_thread_stop(struct broker *broker);

/* subject.c: fills kind and parts of a conversation whose subject is set. */
void subject_parse(struct conversation *conversation);

/* workers.c */
struct worker_queue *worker_queue_find_locked(struct broker *broker, struct span name);
struct worker_queue *worker_queue_get_locked(struct broker *broker, struct span name);
struct worker_queue *worker_queue_ref_locked(struct worker_queue *queue);
void worker_queue_put_locked(struct broker *broker, struct worker_queue *queue);
void worker_queues_forget(struct broker *broker); /* at the end, when nothing waits any more */
struct registration *registration_choose_locked(struct broker *broker,
						const struct conversation *conversation);
bool registration_exists_locked(const struct broker *broker, struct span identity);
void registration_unref_locked(struct registration **registration);

/* requests.c */
void request_expire_locked(struct request *request, struct flush_set *set);
void client_settled_locked(struct client *client, struct flush_set *set);
/* What waits for its turn at TARGET is to be resolved anew, in QUEUE. */
void target_withdraw_locked(struct client *target, struct worker_queue *queue);
/* It has no registration any more: ends what was pushed to it, and what still waits. */
void target_lose_locked(struct client *target, struct flush_set *set);
/* The same for what waits for a worker of QUEUE. */
void queue_wake_locked(struct broker *broker, struct worker_queue *queue);

/* Resolves some of what is to be resolved anew; false when there is nothing, or it is too early. */
bool requests_resolve_anew_locked(struct broker *broker, struct flush_set *set);

#endif
