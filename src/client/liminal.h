/*
 * libliminal: a client of liminald, in blocking calls.
 *
 * Every function may be called from any thread at any time, unless its text says otherwise. No
 * function exits, writes to standard error, or changes how signals are handled; only when the
 * library finds a bug in itself does it abort, as assert(3) does. A handle cannot be used in a
 * child after fork(2).
 *
 * Functions that return int return LIMINAL_OK or another value of enum liminal_status; then
 * liminal_last_error() has the details. Out-parameters are zeroed first and set on success only.
 * Timeouts are milliseconds: 0 does not wait, LIMINAL_FOREVER waits without end. A text argument
 * ends in NUL and is UTF-8. See libliminal(3).
 */
#ifndef LIMINAL_H
#define LIMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LIMINAL_FOREVER (-1)

enum liminal_status {
	LIMINAL_OK = 0,
	LIMINAL_REFUSED,     /* the server answered with an error: code and text are its own */
	LIMINAL_TIMEOUT,     /* the time given has passed */
	LIMINAL_UNREACHABLE, /* no connection could be made */
	LIMINAL_LOST,	     /* the connection has ended: liminal_reconnect, or liminal_close */
	LIMINAL_ENDED,	     /* the server has ended this subscription */
	LIMINAL_STOPPED,     /* liminal_stop was called */
	LIMINAL_INVALID,     /* an argument that cannot be used */
	LIMINAL_MEMORY,	     /* memory, or a descriptor, could not be had */
	LIMINAL_PROTOCOL     /* the peer does not speak the protocol; the connection has ended */
};

struct liminal_error {
	int status;    /* of enum liminal_status */
	unsigned code; /* the protocol's reason code, where the server gave one, else 0 */
	char text[512];
};

/* The calling thread's most recent failure; valid until its next call into the library. */
const struct liminal_error *liminal_last_error(void);

/* A few words for a status; never NULL. */
const char *liminal_status_text(int status);

/* The library's version, as in "1.0.0". */
const char *liminal_library_version(void);

/*
 * The connection
 */

struct liminal;

struct liminal_options {
	size_t size;	    /* set by LIMINAL_OPTIONS_INIT */
	const char *server; /* HOST:PORT, [IPV6]:PORT, /PATH; NULL: 127.0.0.1:7480 */
	const void *token;  /* NULL: none */
	size_t token_length;
	int connect_timeout_ms; /* until the server has greeted back; 0: 10 s */
	int timeout_ms;		/* for an answer, where the call has no timeout; 0: 30 s */
	unsigned window;	/* unanswered liminal_publish_async calls; 0: 1024 */
};

#define LIMINAL_OPTIONS_INIT                                                                       \
	{                                                                                          \
		sizeof(struct liminal_options), NULL, NULL, 0, 0, 0, 0                             \
	}

/* Connects. OPTIONS may be NULL. The caller owns *CLIENT and ends it with liminal_close. */
int liminal_open(const struct liminal_options *options, struct liminal **client);

/*
 * Takes leave of the server and frees *CLIENT with its subscriptions and conversations; *CLIENT
 * may be NULL and is NULL afterwards. Waits at most 1 s. Does not wait for answers: liminal_flush
 * does. No other thread may be in a call with this handle: liminal_stop makes them return.
 */
void liminal_close(struct liminal **client);

/*
 * Ends the connection and makes every call on CLIENT, now and later, return LIMINAL_STOPPED,
 * except for what needs no server: deliveries already received can still be taken.
 */
void liminal_stop(struct liminal *client);

/*
 * Connects again after LIMINAL_LOST, with growing pauses between attempts, subscribes again and
 * registers the worker again. OK at once when the connection stands; several threads may call it,
 * one of them does the work. After TIMEOUT_MS the last attempt's failure is returned. A refusal
 * for good (token, version, worker registration) is LIMINAL_REFUSED without further attempts. A
 * subscription that is refused now ends, as its next liminal_next says.
 */
int liminal_reconnect(struct liminal *client, int timeout_ms);

/* The protocol version in use, and the capabilities that the server announced. */
void liminal_protocol(struct liminal *client, unsigned *major, unsigned *minor,
		      uint32_t *capabilities);

/* ROUND_TRIP_NS may be NULL. */
int liminal_ping(struct liminal *client, int timeout_ms, int64_t *round_trip_ns);

/* Frees what a function of this library says is to be freed so; NULL is allowed. */
void liminal_free(void *memory);

/*
 * Publishing
 */

struct liminal_receipt {
	uint64_t message;  /* the server's id of the message */
	bool delivered;	   /* at least one live subscription took it */
	bool duplicate;	   /* the key was seen before; `message` is the first one's id */
	bool has_position; /* of a durable channel */
	uint64_t position;
};

/*
 * Called once for each liminal_publish_async that returned LIMINAL_OK, in order, by a thread that
 * is in liminal_publish_async or liminal_flush with the same handle. RECEIPT is set with
 * LIMINAL_OK; otherwise liminal_last_error() has the details. It must not call either function.
 */
typedef void liminal_published(void *context, int status, const struct liminal_receipt *receipt);

struct liminal_publish_options {
	size_t size;	    /* set by LIMINAL_PUBLISH_OPTIONS_INIT */
	const char *key;    /* idempotency key; NULL: none */
	const char *parent; /* causal context: id of the parent message; NULL: none */
	bool has_clock;	    /* causal context: vector clock entry */
	uint64_t clock;
	const unsigned char *schema;  /* 32 bytes; NULL: zero */
	liminal_published *published; /* liminal_publish_async only; NULL: count only */
	void *context;
};

#define LIMINAL_PUBLISH_OPTIONS_INIT                                                               \
	{                                                                                          \
		sizeof(struct liminal_publish_options), NULL, NULL, false, 0, NULL, NULL, NULL     \
	}

/* Publishes and waits for the answer. OPTIONS and RECEIPT may be NULL. */
int liminal_publish(struct liminal *client, const char *channel, const void *payload, size_t length,
		    const struct liminal_publish_options *options, struct liminal_receipt *receipt);

/*
 * Publishes without waiting for the answer, but for room in the window. What it takes is sent when
 * enough has gathered, with any other call that sends, and by liminal_flush. PAYLOAD is copied.
 */
int liminal_publish_async(struct liminal *client, const char *channel, const void *payload,
			  size_t length, const struct liminal_publish_options *options);

struct liminal_flushed {
	uint64_t accepted, delivered, duplicates; /* the latter two are among the accepted */
	uint64_t refused;
	uint64_t unanswered; /* the connection was lost, or time passed, before their answer */
};

/*
 * Sends what liminal_publish_async holds back and waits until all of it is answered; not for what
 * other threads publish meanwhile. RESULT, which may be NULL, counts from the last liminal_flush
 * that did not return LIMINAL_TIMEOUT, and is set whatever is returned. LIMINAL_OK: every one was
 * accepted. LIMINAL_REFUSED: not all were; the error is the first one's. LIMINAL_LOST: `unanswered`
 * may or may not have been published.
 */
int liminal_flush(struct liminal *client, int timeout_ms, struct liminal_flushed *result);

/* How many liminal_publish_async wait for their answer. */
size_t liminal_unanswered(struct liminal *client);

/*
 * Subscribing
 */

struct liminal_subscription;

struct liminal_subscribe_options {
	size_t size;		      /* set by LIMINAL_SUBSCRIBE_OPTIONS_INIT */
	uint32_t max_in_flight;	      /* told to the server; 0: 1024 */
	size_t queue_messages;	      /* received and not yet taken; 0: 65536 */
	size_t queue_bytes;	      /* their payloads, one of any size fits; 0: 32 MiB */
	const unsigned char *schemas; /* 32 bytes each, the schemas accepted; NULL: any */
	size_t schema_count;
	/* For durable channels. With a start, but no consumer: a reader, which answers nothing. */
	const char *consumer; /* whose work this subscription shares; NULL: none */
	int start; /* of enum liminal_start: where a consumer that is new, or a reader, begins */
	uint64_t value;
};

enum liminal_start {
	LIMINAL_START_LIVE,	/* not durable: what is published from now on, on any channel */
	LIMINAL_START_NEW,	/* with the next message published */
	LIMINAL_START_ALL,	/* with the oldest message kept */
	LIMINAL_START_SEQUENCE, /* with the message of that sequence, or the next one kept */
	LIMINAL_START_TIME	/* with the first one since then, in ms since 1970 UTC */
};

#define LIMINAL_SUBSCRIBE_OPTIONS_INIT                                                             \
	{                                                                                          \
		sizeof(struct liminal_subscribe_options), 0, 0, 0, NULL, 0, NULL,                  \
			LIMINAL_START_LIVE, 0                                                      \
	}

struct liminal_delivery {
	const char *channel;
	const void *payload; /* followed by a NUL that `length` does not count */
	size_t length;
	uint64_t sequence; /* 1, 2, 3 ... per subscription and connection; durable: the channel's */
	uint64_t missed;   /* messages lost between the one before and this one; durable: 0 */
	uint64_t boot;	   /* with `message` the name of the message; 0: not known */
	uint64_t message;
	const char *parent; /* causal context: NULL: none */
	size_t parent_length;
	bool has_clock;
	uint64_t clock;
	unsigned char schema[32];
	bool redelivered; /* durable: to this consumer, before */
};

/*
 * Subscribes and waits for the answer. OPTIONS may be NULL.
 *
 * The library reads from the connection only while a call waits. While none does, messages wait
 * in the connection, and the server's rule for slow consumers applies. While a call waits for
 * something else than this subscription, its messages are queued; those that find its queue full
 * are lost, and counted in `missed`. A durable subscription loses none: a reader goes back to where
 * its queue ended, and a consumer is sent max_in_flight messages before it answers.
 *
 * liminal_reconnect: a reader goes on behind the last message that it received. A consumer goes on
 * with what is not accepted; what it has received and not taken is thrown away, for it comes again.
 */
int liminal_subscribe(struct liminal *client, const char *channel,
		      const struct liminal_subscribe_options *options,
		      struct liminal_subscription **subscription);

/*
 * The next message. *DELIVERY is the caller's until liminal_delivery_free. LIMINAL_ENDED and
 * LIMINAL_LOST come only when everything received before was taken.
 */
int liminal_next(struct liminal_subscription *subscription, int timeout_ms,
		 struct liminal_delivery **delivery);

/*
 * Likewise for all subscriptions of CLIENT, in the order of arrival. *SUBSCRIPTION, which may be
 * NULL, is the one that the message, or LIMINAL_ENDED, is about; each end is told once.
 */
int liminal_next_any(struct liminal *client, int timeout_ms,
		     struct liminal_subscription **subscription,
		     struct liminal_delivery **delivery);

void liminal_delivery_free(struct liminal_delivery **delivery);

/*
 * What became of a message that a consumer was sent: SEQUENCE is its delivery's. With TIMEOUT_MS 0
 * the server is told, and no more; such an answer may be lost with the connection, and then the
 * message comes again. Otherwise LIMINAL_OK says that the answer is on stable storage, or for
 * liminal_working that it was heard; LIMINAL_REFUSED that it does not count: "stale: ..." when the
 * message has gone to somebody else meanwhile, or back. Without an answer within ack_wait of the
 * channel a message is delivered again. May be called by any thread.
 */

/* Done. */
int liminal_accept(struct liminal_subscription *subscription, uint64_t sequence, int timeout_ms);

/* All that this subscription was sent up to SEQUENCE, and has not answered, is done. */
int liminal_accept_up_to(struct liminal_subscription *subscription, uint64_t sequence,
			 int timeout_ms);

/* Not now: the message comes again later. REASON may be NULL. */
int liminal_defer(struct liminal_subscription *subscription, uint64_t sequence, const char *reason,
		  int timeout_ms);

/* Still being worked on: its ack_wait starts afresh. */
int liminal_working(struct liminal_subscription *subscription, uint64_t sequence, int timeout_ms);

/* Never: the message goes to the dead-letter channel, or away. REASON, at most 1024 bytes of it, is
 * kept with it; it may be NULL. */
int liminal_reject(struct liminal_subscription *subscription, uint64_t sequence, const char *reason,
		   int timeout_ms);

/* Ends *SUBSCRIPTION (NULL is allowed), frees it with what it holds, and sets it to NULL. No other
 * thread may be in a call with it. */
void liminal_unsubscribe(struct liminal_subscription **subscription);

/*
 * Requests
 */

struct liminal_conversation;

/*
 * Opens a conversation about SUBJECT: QUEUE, NAMESPACE/QUEUE, NAMESPACE/QUEUE/ACTIVITY, or an
 * address. The server is silent when it agrees; a refusal is returned by the first request. After
 * a reconnect the conversation is opened again by its next request.
 */
int liminal_converse(struct liminal *client, const char *subject,
		     struct liminal_conversation **conversation);

/*
 * Sends a request and waits for its reply. *REPLY, REPLY_LENGTH bytes and a NUL, is to be freed
 * with liminal_free. The server has a limit of its own: LIMINAL_REFUSED, "reply-timeout: ...".
 * A reply that comes after LIMINAL_TIMEOUT is dropped.
 */
int liminal_request(struct liminal_conversation *conversation, const void *payload, size_t length,
		    int timeout_ms, void **reply, size_t *reply_length);

/* Closes *CONVERSATION (NULL is allowed), frees it and sets it to NULL. No other thread may be in
 * a call with it. */
void liminal_conversation_close(struct liminal_conversation **conversation);

/*
 * Serving as a worker
 */

struct liminal_worker_options {
	size_t size; /* set by LIMINAL_WORKER_OPTIONS_INIT */
	const char *queue;
	const char *const *namespaces; /* NULL-terminated; NULL or empty: any */
	const char *const *activities; /* likewise */
	const char *node;	       /* NULL: none */
	const char *identity;	       /* NULL: empty */
};

#define LIMINAL_WORKER_OPTIONS_INIT                                                                \
	{                                                                                          \
		sizeof(struct liminal_worker_options), NULL, NULL, NULL, NULL, NULL                \
	}

/* Registers CLIENT as a worker, in place of an earlier registration, and waits for the answer. */
int liminal_register(struct liminal *client, const struct liminal_worker_options *options);

struct liminal_job;

/*
 * Handles a job: exactly one of liminal_job_reply and liminal_job_refuse before it returns;
 * without either the job is refused as "internal". JOB is gone when it returns.
 */
typedef void liminal_handler(void *context, struct liminal_job *job);

/*
 * Takes jobs and calls HANDLER for one after the other. Several threads may serve one handle; each
 * job goes to one of them. LIMINAL_OK after liminal_leave, when no job waits any more; otherwise
 * an error of the connection: reconnect and serve again.
 */
int liminal_serve(struct liminal *client, liminal_handler *handler, void *context);

/*
 * Tells the server to send no more jobs, and waits until it agrees. The jobs that were on their
 * way are served; then liminal_serve returns LIMINAL_OK in every thread.
 */
int liminal_leave(struct liminal *client, int timeout_ms);

const void *liminal_job_payload(const struct liminal_job *job, size_t *length);

enum liminal_refusal {
	LIMINAL_BUSY,
	LIMINAL_INVALID_REQUEST,
	LIMINAL_UNAVAILABLE,
	LIMINAL_INTERNAL
};

int liminal_job_reply(struct liminal_job *job, const void *payload, size_t length);

/* WORDS reach the requester; they are cut after 1024 bytes. */
int liminal_job_refuse(struct liminal_job *job, enum liminal_refusal refusal, const char *words);

/*
 * Tells the server that the job is still worked on: the requester's time starts afresh. May be
 * called by another thread while the handler runs.
 */
int liminal_job_working(struct liminal_job *job);

#ifdef __cplusplus
}
#endif

#endif
