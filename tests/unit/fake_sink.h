/*
 * Connections without sockets, for tests of the broker. What a connection's outbox would be given
 * is written down as text, in order, events separated by ", ":
 *
 *     subscribed STREAM sSUBSCRIPTION
 *     deliver STREAM #SEQUENCE mMESSAGE 'ENVELOPE'
 *     ack STREAM mMESSAGE [delivered] [duplicate]       the answer to a publish
 *     ack STREAM refused                                for want of memory
 *     shed STREAM
 *     registered
 *     push pCORRELATION 'PAYLOAD'
 *     reply STREAM cCONVERSATION 'PAYLOAD'
 *     error STREAM cCONVERSATION TEXT                   TEXT: see below
 *     refused STREAM cCONVERSATION REFUSAL 'WORDS'      a worker's own error
 *
 * An error's text is cut at its colon, when it has one; behind "over-capacity" the word that
 * follows the colon stays. A payload that ends in more than 8 equal bytes is shown with one of
 * them and "*COUNT".
 *
 * A fake outbox is bounded like a real one, and is empty again after fake_written. Each event is
 * one frame. A deliver or push counts with the bytes of its payload, a reply with FAKE_REPLY_BYTES
 * more, everything else with none.
 */
#ifndef TESTS_UNIT_FAKE_SINK_H
#define TESTS_UNIT_FAKE_SINK_H

#include "base/lock.h"
#include "broker/broker.h"

#define FAKE_REPLY_BYTES 64

struct fake_sink {
	struct sink sink;
	struct mutex lock; /* of rank OUTBOX, as the real one's: all that follows */
	char *said;
	size_t length, capacity;
	uint64_t frames, bytes, max_frames, max_bytes;
	uint64_t boot;			/* of the last deliver */
	uint8_t schema[32];		/* of the last subscribed */
	const struct flush_set *in_set; /* it waits to be flushed by this one */
	bool takes;			/* the socket, what it is offered */
	bool dies_at_push;		/* a write fails just before the next push */
	unsigned held;			/* references */
};

/* Bounds that no test reaches by accident. */
#define FAKE_MAX_FRAMES 1000000
#define FAKE_MAX_BYTES 1000000000

/* A payload as it is shown, quotes and all; the caller frees it. */
char *fake_shown(struct span payload);

void fake_sink_init(struct fake_sink *fake);
void fake_sink_free(struct fake_sink *fake);

/* A connection: its fake outbox and the broker's part of it. */
struct fake_client {
	struct fake_sink out;
	struct broker *broker;
	struct client *client; /* NULL once it has gone */
};

/* Limits that no test reaches by accident. */
extern const struct broker_client_limits fake_limits;

void fake_connect(struct fake_client *fake, struct broker *broker, uint64_t id, bool control,
		  const struct broker_client_limits *limits);

/* False when the broker has no memory for it. */
bool fake_try_connect(struct fake_client *fake, struct broker *broker, uint64_t id, bool control,
		      const struct broker_client_limits *limits);

/* The connection ends at once, as after a Disconnect. */
void fake_disconnect(struct fake_client *fake);

/* The three steps of a half-close: nothing is received any more; no request waits any more; gone.
 * Otherwise the first two come in the other order. */
void fake_end_receiving(struct fake_client *fake);
void fake_end_conversations(struct fake_client *fake);
void fake_gone(struct fake_client *fake);

/* What it was told since the last call; valid until the next one. Nothing is left unflushed. */
const char *fake_said(struct fake_client *fake);

/* The socket has taken everything. */
void fake_written(struct fake_client *fake);

/* A write has failed. */
void fake_die(struct fake_client *fake);

/*
 * What a session does for each frame. Payloads are NUL-terminated text that the broker must copy
 * if it needs it longer: they are overwritten afterwards.
 */
void fake_publish(struct fake_client *fake, uint32_t stream, const char *channel,
		  const char *payload);
void fake_publish_key(struct fake_client *fake, uint32_t stream, const char *channel,
		      const char *payload, const char *key);

/* Several of one connection to one channel, handed over together. KEY may be NULL. */
struct fake_message {
	uint32_t stream;
	const char *payload, *key;
};
void fake_publish_run(struct fake_client *fake, const char *channel,
		      const struct fake_message *messages, size_t count);

enum broker_subscribe_result fake_subscribe(struct fake_client *fake, uint32_t stream,
					    const char *channel, uint32_t max_in_flight);
void fake_unsubscribe(struct fake_client *fake, uint64_t subscription);
void fake_open(struct fake_client *fake, uint32_t stream, uint64_t conversation,
	       const char *subject);
void fake_request(struct fake_client *fake, uint32_t stream, uint64_t conversation,
		  const char *payload);
void fake_one_way(struct fake_client *fake, uint32_t stream, uint64_t conversation,
		  const char *payload);
void fake_close(struct fake_client *fake, uint64_t conversation);

/* Names are separated by blanks; NULL as reason: accepted. */
struct fake_worker {
	const char *queue, *namespaces, *activities, *identity, *node;
	bool leaving;
};
const char *fake_register(struct fake_client *fake, struct fake_worker worker);
void fake_reply(struct fake_client *fake, uint64_t correlation, const char *payload);
void fake_refuse(struct fake_client *fake, uint64_t correlation, enum refusal refusal,
		 const char *words);
void fake_still_working(struct fake_client *fake, uint64_t correlation);

#endif
