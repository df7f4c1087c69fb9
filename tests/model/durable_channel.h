/*
 * A model of durable channels: what is promised to publishers, consumers and readers, in arrays
 * that are walked from one end to the other. It knows no store, no cache, no threads. Messages are
 * found by their sequence; what waits for the next commit is a list of items and the state of the
 * entries.
 *
 * Where the promise leaves a choice, the model follows what was seen and judges it: which
 * subscription got a message (it must have had the most free credit), which of several that are due
 * again came first, when what is over the bounds and done with is removed, in which order several
 * that were given up at one moment became dead letters.
 */
#ifndef TESTS_MODEL_DURABLE_CHANNEL_H
#define TESTS_MODEL_DURABLE_CHANNEL_H

#include "broker/broker.h"
#include "store/store.h"

#define D_CHANNELS 3 /* the last one takes dead letters */
#define D_CLIENTS 3
#define D_NAMES 3
#define D_STREAMS 3
#define D_SEQUENCES 600
#define D_SUBSCRIPTIONS 400
#define D_ITEMS 400
#define D_RUN 4
#define D_OWED 80
#define D_SAID 16384
#define D_READER (-1)

enum d_state {
	D_NONE,
	D_DUE, /* may be delivered again */
	D_OUTSTANDING,
	D_ANSWERED, /* accepted, and not committed */
	D_REJECTED, /* likewise */
	D_DEFERRED,
	D_DYING, /* to be moved to the dead letters, or thrown away */
	D_STUCK, /* they had no room */
};

struct d_entry {
	enum d_state state;
	uint64_t attempts;
	int64_t due_ms;
	int subscription;
	bool tried, rejected;
	uint64_t moment; /* when it was handed over: those of one moment are in no order */
	bool awaited;	 /* a confirmation waits for it */
};

struct d_message {
	bool kept;
	uint64_t id, charge, tag;
	int64_t time_ms;
	int publisher; /* -1: a dead letter */
	int origin;    /* channel of a dead letter */
	uint64_t origin_sequence;
};

/* What a restart finds. */
struct d_stored {
	bool exists;
	uint64_t start;
	int64_t from_ms, idle_since_ms;
	bool done[D_SEQUENCES];
	enum d_state states[D_SEQUENCES]; /* NONE, DUE, DYING */
	uint64_t attempts[D_SEQUENCES];
	bool rejected[D_SEQUENCES];
};

struct d_consumer {
	bool exists, dirty, changed;
	uint64_t start; /* it did not begin with what is older */
	int64_t from_ms, idle_since_ms;
	bool done[D_SEQUENCES];
	struct d_entry entries[D_SEQUENCES];
	uint64_t redeliveries, discarded, dead_rejected, dead_attempts;
	struct d_stored stored;
};

struct d_key {
	uint64_t key, id, sequence;
	int64_t time_ms;
};

struct d_channel {
	struct broker_channel_settings settings;
	int dead_letter;	  /* -1: none */
	uint64_t last, first_new; /* first_new: of the batch */
	int64_t time_ms;
	struct d_message messages[D_SEQUENCES];
	struct d_consumer consumers[D_NAMES];
	struct d_key keys[D_SEQUENCES];
	size_t key_count;
	struct d_answered {
		int consumer;
		uint64_t sequence;
		bool settled; /* by the batch */
	} answered[D_SEQUENCES];
	size_t answered_count;
	bool dirty, touched;
	uint64_t stale_answers;
};

struct d_owed {
	char text[64]; /* as it is confirmed when it was done; its refusal begins at `refusal` */
	char refusal[64];
	const char *refused;
	bool ready, waits; /* waits: for the commit */
};

struct d_subscription {
	int client, channel, consumer;
	uint32_t stream;
	uint64_t max_in_flight, answering;
	bool live, ended;
	uint64_t next; /* a reader's */
	int64_t from_ms;
	struct d_owed owed[D_OWED];
	size_t owed_count;
};

enum d_kind { D_PUBLISH, D_SUBSCRIBE, D_REMOVE };

struct d_item {
	enum d_kind kind;
	int client, channel, consumer, subscription;
	size_t count;
	struct {
		uint32_t stream;
		uint64_t tag, key, charge; /* key 0: none */
		uint64_t sequence, id;
		bool duplicate;
		const char *refused;
	} run[D_RUN];
	uint8_t start;
	uint64_t value, next;
	int64_t from_ms, idle_since_ms;
	bool added, removed, expired;
	const char *refused;
};

struct d_said {
	char text[D_SAID];
	size_t length;
};

struct d_client {
	struct d_said answers;	       /* to publishes and subscribes, in order */
	struct d_said ends[D_STREAMS]; /* confirmations and ends, of each stream, in order */
};

/* A Deliver that was seen. */
struct d_delivery {
	int client;
	uint32_t stream;
	uint64_t sequence, id, tag;
	int schema, origin; /* channels; origin: -1: none */
	uint64_t origin_sequence;
	bool again, acked, used; /* acked: its publisher had been told already */
};

/* What was seen of the broker, for the choices that it has. */
struct d_seen {
	struct d_delivery *deliveries;
	size_t count;
	uint64_t (*id_of)(uint32_t publish);
	bool (*kept)(int channel, uint64_t sequence);
	/* The sequence of the dead letter, 0: there is none. */
	uint64_t (*dead)(int channel, int origin, uint64_t sequence, int consumer);
};

struct d_model {
	int64_t now_ms;
	uint64_t last_id, moment;
	struct d_channel channels[D_CHANNELS];
	int dirty_order[D_CHANNELS];
	size_t dirty_count;
	struct d_subscription subscriptions[D_SUBSCRIPTIONS];
	int subscription_count;
	struct d_item items[D_ITEMS];
	size_t item_count;
	struct d_client clients[D_CLIENTS];
	const struct d_seen *seen;
	bool mixed;  /* timers of several consumers go at once: they are handled in any order */
	int ending;  /* the client whose subscriptions end; -1: none */
	bool unsure; /* since a commit has failed: how much of the attempts is stored */
};

/* The run has failed; does not return. */
_Noreturn void disagree(const char *format, ...) PRINTF_LIKE(1, 2);

void d_say(struct d_said *said, const char *format, ...) PRINTF_LIKE(2, 3);

void d_publish(struct d_model *model, const struct d_item *item);
int d_subscribe(struct d_model *model, int client, int channel, uint32_t stream,
		uint64_t max_in_flight, int consumer, uint8_t start, uint64_t value);
void d_unsubscribe(struct d_model *model, int subscription);
/* All of a client's, in that order; what one loses may go to the next, or not. */
void d_end(struct d_model *model, int client, const int *ending, size_t count);
void d_answer(struct d_model *model, int client, uint32_t stream, enum answer_kind kind,
	      const char *id, bool working, bool confirm);
void d_remove(struct d_model *model, int channel, int consumer);
/* Timers that are due at now_ms; when the next one is. */
void d_run_timers(struct d_model *model);
int64_t d_next_timer(const struct d_model *model);
void d_commit(struct d_model *model, enum store_result result, bool sweep);
/* Every connection has gone before. */
void d_restart(struct d_model *model);

/* The subscription on a stream, live or on its way; -1: none. */
int d_subscription_on(const struct d_model *model, int client, uint32_t stream);
bool d_done(const struct d_channel *channel, const struct d_consumer *consumer, uint64_t sequence);
bool d_done_by_all(const struct d_channel *channel, uint64_t sequence);
int d_live_of(const struct d_model *model, int channel, int consumer);

#endif
