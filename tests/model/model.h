/*
 * What the broker does, as simply as it can be said: arrays, linear searches, one thread, and a
 * clock that is a number. It was written from the text that says what clients can rely on, not from
 * the broker, and is kept so: no index, no list, no reference count. What is told to a connection
 * is written down in the words of fake_sink.h.
 *
 * Where that text leaves something open the model says "our choice".
 */
#ifndef TESTS_MODEL_MODEL_H
#define TESTS_MODEL_MODEL_H

#include "broker/broker.h"

#define MODEL_CLIENTS 6
#define MODEL_CHANNELS 3
#define MODEL_SUBSCRIPTIONS 512
#define MODEL_KEYS 2048
#define MODEL_CONVERSATIONS 512
#define MODEL_REQUESTS 1024
#define MODEL_REGISTRATIONS 512
#define MODEL_SAID 8192

struct model_client {
	bool connected;
	bool receiving; /* false from a half-close on */
	bool control, dead, ever_registered;
	uint64_t id;
	struct broker_client_limits limits;
	uint64_t frames, bytes, max_frames, max_bytes; /* of the outbox */
	int64_t settled_ns;
	uint64_t unanswered, last_used;
	char said[MODEL_SAID];
	size_t said_length;
};

struct model_subscription {
	bool live;
	uint64_t id, sequence;
	int client, channel;
	uint32_t stream;
	bool never_shed;
};

struct model_key {
	int channel;
	char key[8];
	uint64_t message;
	int64_t claimed_ns;
};

struct model_channel {
	const char *name;
	bool drop, unanswered;
	int64_t dedup_window_ms;
	uint64_t dedup_max_keys;
	uint64_t publishes, deliveries, sheds, drops, dedup_hits;
};

enum model_registration_state { MODEL_ACTIVE, MODEL_LEAVING, MODEL_LEFT, MODEL_LOST };

struct model_registration {
	enum model_registration_state state;
	int client;
	char queue[8], namespaces[8], activities[8], identity[8];
};

struct model_conversation {
	bool open;
	int client;
	uint64_t id;
	char subject[32];
	int bound; /* a registration, or -1 */
};

enum model_request_state {
	MODEL_ENDED,
	MODEL_HANDLED,
	MODEL_WAITS_WORKER,
	MODEL_WAITS_TURN,
	MODEL_PUSHED,
	MODEL_HELD
};

struct model_request {
	enum model_request_state state;
	bool wanted; /* a reply */
	int client;  /* -1 when its connection has gone */
	int conversation;
	uint32_t stream;
	char payload[16]; /* how it begins; filled up to `length` with dots */
	size_t length;
	int64_t started_ns, deadline_ns; /* 0: none yet */
	int target;
	uint64_t turn, correlation;
	char answer[128]; /* of a held one, as it will be said */
	size_t answer_length;
	bool answer_is_reply;
};

struct model {
	int64_t now_ns;
	int64_t reply_timeout_ms, reply_timeout_max_ms, settle_ms;
	enum broker_no_worker no_worker;
	uint64_t next_message, next_subscription, next_correlation, next_use, next_turn;
	struct model_client clients[MODEL_CLIENTS];
	struct model_channel channels[MODEL_CHANNELS];
	struct model_subscription subscriptions[MODEL_SUBSCRIPTIONS]; /* oldest first */
	struct model_key keys[MODEL_KEYS];			      /* likewise */
	struct model_conversation conversations[MODEL_CONVERSATIONS];
	struct model_request requests[MODEL_REQUESTS];		      /* likewise */
	struct model_registration registrations[MODEL_REGISTRATIONS]; /* likewise */
	int subscription_count, key_count, conversation_count, request_count, registration_count;
};

/* What the connection was told since the last call. */
const char *model_said(struct model *model, int client);

void model_advance(struct model *model, int64_t ns);

void model_connect(struct model *model, int client, uint64_t id, bool control,
		   const struct broker_client_limits *limits, uint64_t max_frames,
		   uint64_t max_bytes);
void model_end_receiving(struct model *model, int client);
void model_end_conversations(struct model *model, int client);
void model_gone(struct model *model, int client);
void model_written(struct model *model, int client);
void model_die(struct model *model, int client);

struct model_message {
	uint32_t stream;
	const char *payload;
	const char *key; /* NULL: none */
};

void model_publish(struct model *model, int client, int channel,
		   const struct model_message *messages, size_t count);
enum broker_subscribe_result model_subscribe(struct model *model, int client, uint32_t stream,
					     int channel, bool never_shed);
void model_unsubscribe(struct model *model, int client, uint64_t subscription);

void model_open(struct model *model, int client, uint32_t stream, uint64_t id, const char *subject);
/* PAYLOAD: how it begins; it has LENGTH bytes, the rest dots. */
void model_message(struct model *model, int client, uint32_t stream, uint64_t id, bool wanted,
		   const char *payload, size_t length);
void model_close(struct model *model, int client, uint64_t id);
void model_register(struct model *model, int client, const char *queue, const char *namespaces,
		    const char *activities, const char *identity, bool leaving);
void model_push_reply(struct model *model, int client, uint64_t correlation,
		      enum broker_push_verdict verdict, enum refusal refusal, const char *payload,
		      size_t length);

/* What others may know. */
uint64_t model_subscriptions_of(const struct model *model, int client);
uint64_t model_subscriptions_to(const struct model *model, int channel);
uint64_t model_conversations_of(const struct model *model, int client);
uint64_t model_pending_replies_of(const struct model *model, int client);
uint64_t model_waiting_of(const struct model *model, int client, bool one_way_only);
uint64_t model_pushes_of(const struct model *model, int client);
int model_registration_of(const struct model *model, int client);
uint64_t model_keys_of(const struct model *model, int channel);

/* The server's own responder, $control/NAME, has one name, and gives back what it gets. */
#define MODEL_CONTROL_NAME "same"

#endif
