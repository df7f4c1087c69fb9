/*
 * The broker: channels with their subscriptions, conversations, workers, and the deadlines of what
 * is pending between them.
 *
 * A `struct client` is one connection as the broker sees it. It is created and freed by the
 * connection's session thread, and functions that take a client are called by that thread only,
 * unless they say otherwise. Other threads reach it through the channel or exchange it is part of,
 * under that lock. Nothing here blocks but for locks, and broker_client_wait_quiet.
 *
 * Locks: CHANNEL (one per channel) and EXCHANGE (one: conversations, workers, pushes, deadlines)
 * are never held together.
 */
#ifndef BROKER_BROKER_H
#define BROKER_BROKER_H

#include "broker/sink.h"

struct broker;
struct channel;
struct client;
struct store;

#define BROKER_KEY_MAX 1024
#define BROKER_SUBJECT_MAX 1024
#define BROKER_REFUSAL_WORDS_MAX 1024

/* Of a durable channel. 0 where it says so: no bound. */
struct broker_durable_settings {
	int64_t max_age_ms;		  /* 0 */
	uint64_t max_messages, max_bytes; /* 0 */
	bool discard; /* when_full: the oldest go; otherwise publishes are refused */
	int64_t ack_wait_ms, redelivery_delay_ms, redelivery_delay_max_ms;
	uint64_t max_attempts;	 /* 0 */
	const char *dead_letter; /* another durable channel; NULL: none */
	bool ordered;
	uint64_t max_deferred, max_consumers;
	int64_t consumer_expiry_ms; /* 0 */
};

struct broker_channel_settings {
	const char *name;
	uint8_t schema_id[32];
	bool drop; /* what does not fit is dropped; otherwise the subscription is shed */
	int64_t dedup_window_ms;
	uint64_t dedup_max_keys;
	bool durable; /* needs a store */
	struct broker_durable_settings stored;
};

enum broker_no_worker { BROKER_NO_WORKER_ECHO, BROKER_NO_WORKER_ERROR, BROKER_NO_WORKER_WAIT };

struct broker_settings {
	int64_t reply_timeout_ms, reply_timeout_max_ms;
	enum broker_no_worker no_worker;
	int64_t worker_settle_ms;
	char *const *worker_queues; /* none: any */
	size_t worker_queue_count;
	char *const *unanswered_channels;
	size_t unanswered_channel_count;
	const struct broker_channel_settings *channels;
	size_t channel_count;
	uint64_t max_commit_bytes, max_commit_bytes_per_connection;
	uint64_t cache_bytes; /* of the tail, per durable channel */
};

/* The server's own responder: $control/NAME. Called by session threads without locks. */
struct broker_control {
	bool (*known)(struct span name);
	/* A JSON text in a buffer that the caller owns then; NULL when memory is missing. */
	struct buf *(*answer)(void *context, struct span name, struct span request);
	void *context;
};

/* Copied per client: limits of the configuration that it was accepted under. */
struct broker_client_limits {
	uint64_t subscriptions;
	uint64_t conversations;
	uint64_t replies_per_conversation, replies;
	uint64_t pushes;
	uint64_t pending_bytes;
	uint64_t frame_bytes; /* the largest payload that a reply may have */
};

/*
 * BOOT_MS goes out with each message, or when the store was made. STORE, if any, is the broker's
 * from then on, but on failure. Starts the deadline thread, and with a store the committer. NULL
 * with *ERROR set (static text) when memory or threads are missing or the store cannot be read.
 * SETTINGS are copied.
 */
struct broker *broker_new(const struct broker_settings *settings, uint64_t boot_ms,
			  struct store *store, const char **error);

/* Whether there is a store, and whether it is still up (see durable.c). */
bool broker_has_store(const struct broker *broker);
bool broker_store_is_up(const struct broker *broker);

/* To be called before the first client is created. */
void broker_set_control(struct broker *broker, const struct broker_control *control);

/* Adds new channels and applies what else may change at run time; any thread. False: no memory,
 * and nothing but some new channels was applied. */
bool broker_configure(struct broker *broker, const struct broker_settings *settings);

/* Every client must have been freed. Stores what is left to store, and closes the store. */
void broker_free(struct broker **broker);

/* CONTROL: the client came over the control socket and may address `$` subjects. */
struct client *broker_client_new(struct broker *broker, struct sink *sink, uint64_t id,
				 bool control, const struct broker_client_limits *limits);

/* Ends every subscription: none takes a message after that. */
void broker_client_end_subscriptions(struct client *client);

/* Withdraws its registration: what was pushed to it is lost, what waited is resolved anew. No push
 * goes to the client from then on. */
void broker_client_end_worker(struct client *client, struct flush_set *set);

/* Forgets the requests that it still waits for, its conversations with them; what waited behind
 * them for a worker moves up. No push goes to the client from then on, either: where this comes
 * before the end of the worker, its requests to itself are forgotten like all others. */
void broker_client_end_conversations(struct client *client, struct flush_set *set);

/*
 * Waits until no request of the client waits for its answer or its turn; false when
 * broker_client_interrupt came first.
 */
bool broker_client_wait_quiet(struct client *client);

/* Ends that wait, now or whenever it begins. Any thread that can prove the client to exist. */
void broker_client_interrupt(struct client *client);

/* The three ends above must have been called. */
void broker_client_free(struct client **client);

/* --- channels ------------------------------------------------------------------------------ */

/* NULL when it is not configured. A channel lives as long as the broker. */
struct channel *broker_channel(struct broker *broker, struct span name);
const uint8_t *broker_channel_schema(const struct channel *channel);
struct span broker_channel_name(const struct channel *channel);

/* True when publishes of the client to this channel get no answer; the second for a name that
 * may not be configured. */
bool broker_client_unanswered(const struct client *client, const struct channel *channel);
bool broker_client_unanswered_name(const struct client *client, struct span channel);

/*
 * Publishes a run, in order; keys are at most BROKER_KEY_MAX bytes. Returns true when the answers
 * are in the publisher's queue already, because it is subscribed itself; otherwise the caller
 * queues them.
 */
bool broker_publish(struct client *client, struct channel *channel, struct message *run,
		    size_t count, struct flush_set *set);

enum broker_subscribe_result {
	BROKER_SUBSCRIBED, /* the answer is queued */
	BROKER_SUBSCRIBE_OVER_CAPACITY,
	BROKER_SUBSCRIBE_NO_MEMORY,
};
enum broker_subscribe_result broker_subscribe(struct client *client, struct channel *channel,
					      uint32_t stream, uint32_t max_in_flight,
					      struct flush_set *set);
void broker_unsubscribe(struct client *client, uint64_t subscription);

/* --- durable channels ----------------------------------------------------------------------- */

bool broker_channel_is_durable(const struct channel *channel);

/*
 * Queues a run of publishes to a durable channel for the committer, which fills their answers into
 * their places. Does not block: how many of them were queued; the rest has to wait for room.
 * Envelopes and keys are copied, but for an envelope in a buffer of its own.
 */
size_t broker_publish_durable(struct client *client, struct channel *channel, struct message *run,
			      size_t count);

/* Waits for that room; nothing of the client's may be waiting to be flushed. False when
 * broker_client_interrupt came first: no more is handled. */
bool broker_client_wait_share(struct client *client);

struct broker_durable_subscribe {
	uint32_t stream;
	uint32_t max_in_flight;
	struct span consumer; /* empty: a reader */
	uint8_t start;
	uint64_t value;
};

/* NULL when it has been queued for the committer, which fills its place; otherwise why not, for a
 * SubscribeError (static text). */
const char *broker_subscribe_durable(struct client *client, struct channel *channel,
				     const struct broker_durable_subscribe *subscribe);

/* True when STREAM carries a durable subscription, live or on its way. */
bool broker_client_durable_stream(struct client *client, uint32_t stream);

/*
 * An answer of a consumer. ID as it was given, WORKING: flag 0x40, CONFIRM: flag 0x80. Whatever
 * comes of it goes through the sink. TEXT: the reason of a Reject.
 */
void broker_answer(struct client *client, uint32_t stream, enum answer_kind kind, struct span id,
		   bool working, bool confirm, struct span text, struct flush_set *set);

/* The sink has room again for what it has not taken, or is dead: what is outstanding there is free.
 * Any thread that can prove the client to exist, without locks. */
void broker_client_room(struct client *client, struct flush_set *set);

/* Waits until the committer is done with all that the client has queued: its places are filled
 * then, and their messages delivered. Never interrupted; it waits for the disk only. */
void broker_client_wait_committed(struct client *client);

/* What happens next is the last answer's own delivery: the client has half-closed, and takes no
 * message after the one that its last place is filled for. */
void broker_client_end_after_answers(struct client *client);

struct broker_consumer_state {
	struct span channel;
	char name[256];
	uint64_t subscriptions, lag, outstanding, deferred, redeliveries, discarded;
	uint64_t dead_rejected, dead_attempts;
	int64_t idle_since_ms; /* 0: it has live subscriptions */
};

/* Copies the state of each consumer of CHANNEL (NULL: of all); the caller frees *STATES. */
bool broker_consumer_states(struct broker *broker, struct channel *channel,
			    struct broker_consumer_state **states, size_t *count);

/* For the check of a store: whether STATE is what a consumer of a channel has stored, whose last
 * sequence is LAST. */
bool broker_position_sound(struct span state, uint64_t last);

enum broker_remove_result { BROKER_REMOVED, BROKER_REMOVE_NONE, BROKER_REMOVE_FAILED };

/* Blocks until it is on stable storage. No lock is held. */
enum broker_remove_result broker_consumer_remove(struct broker *broker, struct channel *channel,
						 struct span consumer);

struct broker_dead {
	uint64_t sequence;
	char *origin, *consumer;
	char *text; /* of the Reject, UTF-8 that may hold NUL */
	size_t text_length;
	bool rejected;
	uint64_t attempts;
};

/* Reads the facts of dead letters, COUNT at most (and no more than 1000); blocks on the committer.
 * False: the store is down, or memory is missing. broker_dead_free frees. */
bool broker_dead_read(struct broker *broker, struct channel *channel, uint64_t from, uint64_t count,
		      struct broker_dead **dead, size_t *found);
void broker_dead_free(struct broker_dead **dead, size_t count);

/* --- conversations: whatever goes wrong is queued as a conversation error ------------------- */

void broker_conversation_open(struct client *client, uint32_t stream, uint64_t conversation,
			      struct span subject, struct flush_set *set);

/*
 * BUF, if any, holds PAYLOAD; otherwise it is copied where it must outlive the call. NOW_NS is the
 * time of the read that brought it.
 */
void broker_conversation_message(struct client *client, uint32_t stream, uint64_t conversation,
				 bool reply_wanted, struct span payload, struct buf *buf,
				 int64_t now_ns, struct flush_set *set);
void broker_conversation_close(struct client *client, uint64_t conversation, struct flush_set *set);

/* --- workers ------------------------------------------------------------------------------- */

/* As they stand on the wire: each name with its u32 length in front. */
struct broker_names {
	uint32_t count;
	struct span bytes;
};

struct broker_registration {
	struct span queue, identity;
	bool has_node;
	struct span node;
	struct broker_names namespaces, activities;
	bool leaving; /* no more pushes */
};

/* NULL when the acknowledgement is queued; otherwise why it is rejected (static text). */
const char *broker_worker_register(struct client *client,
				   const struct broker_registration *registration,
				   struct flush_set *set);

enum broker_push_verdict { BROKER_PUSH_REPLY, BROKER_PUSH_REFUSED, BROKER_PUSH_WORKING };

/* REFUSAL with BROKER_PUSH_REFUSED: PAYLOAD are the words then. */
void broker_push_reply(struct client *client, uint64_t correlation,
		       enum broker_push_verdict verdict, enum refusal refusal, struct span payload,
		       struct buf *buf, int64_t now_ns, struct flush_set *set);

/* --- what others may know, any thread ------------------------------------------------------- */

struct broker_client_state {
	uint64_t subscriptions, conversations, pending_replies, pending_pushes;
	uint64_t outstanding_deliveries; /* of durable subscriptions, not answered */
	bool worker;
	bool waiting;		   /* one-way messages wait for their turn */
	char queue[TEXT_NAME_MAX]; /* its task queue, cut on a character boundary */
	size_t queue_length;
};

/* The caller proves that the client exists. */
void broker_client_state(struct client *client, struct broker_client_state *state);

/* True when a client other than EXCEPT has an open conversation or a pending request. */
bool broker_conversations_elsewhere(struct broker *broker, const struct client *except);

struct broker_channel_state {
	struct span name;
	uint64_t subscriptions, publishes, deliveries, sheds, drops, dedup_keys, dedup_hits;
	bool durable; /* and then: */
	uint64_t first_sequence, last_sequence, stale_answers;
};

/* Copies the state of each channel into *STATES, which the caller frees; false: no memory. */
bool broker_channel_states(struct broker *broker, struct broker_channel_state **states,
			   size_t *count);

/*
 * Names are cut as people are shown them, and of many there are only the first, BROKER_SHOWN_BYTES
 * with their lengths: otherwise a few workers could make this as large as they like.
 */
#define BROKER_SHOWN_BYTES 1024

struct broker_worker_state {
	uint64_t connection;
	struct span queue, identity, node; /* node: data is NULL when none was named */
	struct broker_names namespaces, activities;
	uint64_t namespaces_left_out, activities_left_out;
	uint64_t outstanding, unanswered;
	bool leaving;
	uint8_t *storage;
};

/* Copies every registration; broker_worker_states_free frees. False: no memory. */
bool broker_worker_states(struct broker *broker, struct broker_worker_state **states,
			  size_t *count);
void broker_worker_states_free(struct broker_worker_state **states, size_t count);

struct broker_totals {
	uint64_t pending_replies;  /* requests whose answer is due */
	uint64_t pending_pushes;   /* pushed and not answered */
	uint64_t waiting_requests; /* not pushed yet */
	uint64_t workers, conversations, subscriptions;
	uint64_t store_bytes;	 /* on the disk */
	uint64_t commit_bytes;	 /* waiting for the committer */
	uint64_t commit_waiters; /* connections that wait for room there */
};
void broker_totals(struct broker *broker, struct broker_totals *totals);

#endif
