/*
 * What the files of libliminal share.
 *
 * Model. There is no thread of ours. A call that needs an answer waits in client_wait, where one
 * thread at a time is the poller: it polls the socket, without the lock, for reading and, while
 * output is left, for writing; then, with the lock, it moves bytes and hands out what came, also
 * what others wait for. The others sleep on the condition variable; when the poller leaves, one of
 * them takes over. This is simpler than a thread for reading: nothing to start, stop, or keep from
 * taking the application's signals; an answer costs no change of threads; and back-pressure needs
 * no rule of its own, because nothing is read while nobody waits. The price: somebody who reads
 * for an answer reads whatever stands before it, so messages for a full queue are dropped then.
 *
 * Locking. One mutex per handle, never held over a call that can block: the socket does not block.
 *
 * Matching. Answers to Connect, Ping, Publish, Subscribe and WorkerRegister come in the order of
 * the requests (client->answers). Besides, each Publish and each conversation request uses a
 * stream of its own, on which its answer comes back; so a Publish that the server never answers
 * (a worker's, to one of its unanswered channels) does not shift the others.
 *
 * An end of the connection fails everything that waits (client_lose). Each connection has a number
 * (`epoch`), by which a waiting call notices that the connection is no longer its own.
 */
#ifndef CLIENT_CLIENT_PRIV_H
#define CLIENT_CLIENT_PRIV_H

#include "base/base.h"
#include "base/clock.h"
#include "base/list.h"
#include "base/lock.h"
#include "base/text.h"
#include "client/liminal.h"
#include "wire/wire.h"

#include <sys/types.h>

struct pollfd;

/* Output that may wait in front of a frame; a frame of any size goes into an empty buffer. */
#define CLIENT_OUTPUT_LIMIT (256 * 1024)
/* How much liminal_publish_async gathers before it is sent. */
#define CLIENT_OUTPUT_GATHER (64 * 1024)
/* The largest frame taken: what the server can be configured to send, and a bit. */
#define CLIENT_FRAME_MAX ((size_t)(1024 * 1024 * 1024) + 64)
/* Jobs received and not yet taken; beyond it they are refused as busy. */
#define CLIENT_JOBS_MAX 65536
#define CLIENT_JOBS_BYTES_MAX ((size_t)64 * 1024 * 1024)

#define CLIENT_BUCKETS 64

/* A failure that is kept until somebody asks for it. */
struct client_fault {
	int status;
	unsigned code;
	char *text; /* NULL: the status's own words */
};

struct client_bytes {
	uint8_t *data;
	size_t start, length, capacity; /* the bytes are data[start .. start + length) */
};

enum client_state {
	CLIENT_LOST,	  /* also before the first connection */
	CLIENT_HANDSHAKE, /* the thread that (re)connects is the only one that may send */
	CLIENT_CONNECTED,
};

/* A request whose answer is found by order. */
struct client_answer {
	struct list node; /* in client->answers; in client->finished */
	uint8_t request;  /* enum wire_type */
	uint32_t stream;
	bool done;
	bool unattended; /* nobody waits for it any more: freed when it is done */
	bool counted;	 /* of liminal_publish_async */
	struct client_fault fault;
	struct liminal_receipt receipt;		   /* Publish */
	struct liminal_subscription *subscription; /* Subscribe */
	bool leaving;				   /* WorkerRegister */
	liminal_published *published;
	void *context;
};

/* A conversation request; it lives on its caller's stack and is found by its stream. */
struct client_request {
	struct list node; /* in client->requests */
	uint32_t stream;
	uint64_t conversation;
	bool done;
	struct client_fault fault;
	void *reply;
	size_t reply_length;
};

/* A consumer's answer that is to be confirmed; like a request, on its caller's stack. */
struct client_confirmation {
	struct list node; /* in client->confirmations */
	uint32_t stream;
	struct span message; /* the id as it was sent */
	bool done;
	struct client_fault fault;
};

enum subscription_state {
	SUBSCRIPTION_ASKED,
	SUBSCRIPTION_LIVE,
	SUBSCRIPTION_DETACHED, /* its connection was lost; a reconnect asks again */
	SUBSCRIPTION_PAUSED,   /* a reader's queue was full: asked again when it is empty */
	SUBSCRIPTION_ENDED,    /* `fault` says why */
};

struct client_delivery {
	struct list in_subscription, in_client;
	struct liminal_subscription *subscription;
	struct liminal_delivery public;
	char bytes[]; /* channel, parent, payload, each with a NUL */
};

struct liminal_subscription {
	struct liminal *client;
	struct list in_bucket;
	uint32_t stream;
	uint64_t id;
	enum subscription_state state;
	bool end_told; /* by liminal_next_any */
	struct client_fault fault;

	char *channel;
	uint32_t max_in_flight;
	uint8_t *schemas;
	size_t schema_count;
	char *consumer; /* NULL: none */
	enum liminal_start start;
	uint64_t value;
	bool asked; /* for, and not answered yet */

	struct list deliveries;
	size_t queued, queued_bytes;
	size_t queue_messages, queue_bytes;
	uint64_t last_sequence; /* of the last message queued */
};

struct liminal_conversation {
	struct liminal *client;
	struct list node;
	uint64_t id;
	char *subject;
	uint64_t epoch;	      /* of the connection that it was opened on */
	uint32_t open_stream; /* where a refusal of the opening comes */
	struct client_fault fault;
};

struct liminal_job {
	struct list node;
	struct liminal *client;
	uint64_t epoch, correlation;
	bool answered;
	size_t length;
	uint8_t payload[];
};

struct client_registration {
	bool present;
	char *queue, *node, *identity;
	char **namespaces, **activities; /* NULL-terminated */
};

struct liminal {
	/* Fixed by liminal_open. */
	char *server;
	uint8_t *token;
	size_t token_length;
	int64_t connect_timeout_ms, timeout_ms;
	size_t window;
	int wake[2]; /* a byte written to [1] makes the poller look again */

	struct mutex lock;
	struct cond changed; /* anything below */

	/* Guarded by lock. */
	enum client_state state;
	bool stopped;
	bool reconnecting;
	uint64_t epoch;
	struct client_fault loss;     /* why the last connection ended */
	struct client_fault farewell; /* what the server said before it ended it */
	int fd;			      /* -1: none; closed only while nobody polls */
	bool polling;
	bool polling_output; /* the poller waits for room in the socket, too */
	bool output_dead;    /* writing failed; what the server sent before is still read */
	struct client_bytes input, output;
	struct wire_version version;
	uint32_t capabilities;
	uint64_t random;
	uint32_t next_subscription_stream, next_stream;

	struct list answers;

	size_t unanswered;	 /* counted answers in `answers` */
	struct list finished;	 /* counted, done, their callback not called yet */
	uint64_t answered, told; /* those that came into `finished`, and left it */
	bool calling_back;	 /* one thread empties `finished` */
	struct liminal_flushed flushed;
	struct client_fault first_refusal, first_unanswered;

	struct list subscriptions[CLIENT_BUCKETS]; /* by stream */
	struct list deliveries;			   /* of all, in the order of arrival */

	struct list conversations, requests, confirmations;
	uint64_t next_conversation;

	struct client_registration registration;
	bool left; /* the server has agreed to send no more jobs */
	struct list jobs;
	size_t job_count, job_bytes;
};

/* error.c: the functions that fail set the thread's last error and return its status. */
int client_fail(int status, const char *format, ...) PRINTF_LIKE(2, 3);
int client_fail_with(const struct client_fault *fault);
int client_fail_memory(void);
/* Replaces what FAULT held. TEXT is copied and may be empty. */
void client_fault_set(struct client_fault *fault, int status, unsigned code, struct span text);
void client_fault_clear(struct client_fault *fault);
void client_fault_move(struct client_fault *to, struct client_fault *from);

/* socket.c: nothing here knows a handle. */
int client_socket_connect(const char *server, int64_t deadline_ns, int *fd);
int client_socket_pair(int fds[2]);
/* As send(2) and recv(2): no blocking, no SIGPIPE. */
ssize_t client_socket_send(int fd, const void *bytes, size_t length);
ssize_t client_socket_receive(int fd, void *bytes, size_t size);
/* poll(2) until DEADLINE_NS; an interrupting signal counts as nothing having happened. */
int client_socket_poll(struct pollfd *fds, unsigned count, int64_t deadline_ns);

/* io.c: the lock is held in all of these. */
bool client_bytes_reserve(struct client_bytes *bytes, size_t more);
void client_bytes_free(struct client_bytes *bytes);

typedef bool client_predicate(const void *subject);

/* Waits until READY(SUBJECT). LIMINAL_TIMEOUT, or why the connection ended, with the error set. */
int client_wait(struct liminal *client, client_predicate *ready, const void *subject,
		int64_t deadline_ns);

/*
 * Waits for room and puts FRAME behind the output, without sending. The lock is not released
 * between the frame being placed and the return, so the caller can note what it expects.
 */
int client_put(struct liminal *client, const struct wire_frame *frame, int64_t deadline_ns);

/* Likewise without waiting, room or not; for the poller, and for what must not be forgotten. False:
 * no memory. */
bool client_put_now(struct liminal *client, const struct wire_frame *frame);

/* Sends what the socket takes now. */
void client_send(struct liminal *client);

/* Waits until all output is with the system. */
int client_drain(struct liminal *client, int64_t deadline_ns);

/* Makes the poller, if there is one, look at everything again. */
void client_wake(struct liminal *client);

/* The connection has ended: fails whatever waits. FAULT is emptied. */
void client_lose(struct liminal *client, struct client_fault *fault);

/* receive.c: takes the frames out of client->input. */
void client_receive(struct liminal *client);

/* handle.c */
int64_t client_deadline(int timeout_ms);
/* Locks; LIMINAL_OK only when connected. Unlocks again otherwise. */
int client_enter(struct liminal *client);
uint32_t client_new_stream(struct liminal *client);
/* A copy of TEXT that is NULL when TEXT is; false: no memory. */
bool client_copy_text(char **copy, const char *text);
bool client_text_valid(const char *text);
struct client_answer *client_answer_new(uint8_t request, uint32_t stream);
void client_answer_free(struct client_answer **answer);
/*
 * Waits for ANSWER, which is in client->answers. On LIMINAL_TIMEOUT it is left to the reader;
 * otherwise it is the caller's. *ANSWER is NULL in the first case.
 */
int client_answer_wait(struct liminal *client, struct client_answer **answer, int64_t deadline_ns);

/* publish.c: a counted answer is done; the lock is held. */
void client_published(struct liminal *client, struct client_answer *answer);

/* subscribe.c: the lock is held. */
struct liminal_subscription *client_subscription_at(struct liminal *client, uint32_t stream);
void client_subscription_deliver(struct liminal_subscription *subscription,
				 const struct wire_frame *frame);
void client_subscription_end(struct liminal_subscription *subscription, unsigned code,
			     struct span text);
void client_subscription_free(struct liminal_subscription **subscription);
/* Tells the server, without waiting. */
void client_subscription_cancel(struct liminal *client, uint32_t stream, uint64_t id);
void client_subscriptions_detach(struct liminal *client);
int client_subscriptions_renew(struct liminal *client, int64_t deadline_ns);

/* consume.c: a Reject, Accept or Defer has come. */
void client_on_confirmation(struct liminal *client, const struct wire_frame *frame);

/* converse.c */
void client_conversation_free(struct liminal_conversation **conversation);

/* work.c: the lock is held. */
void client_job_arrived(struct liminal *client, uint64_t correlation, struct span payload);
void client_jobs_drop(struct liminal *client);
int client_registration_send(struct liminal *client, bool leaving, int64_t deadline_ns);
void client_registration_free(struct client_registration *registration);

#endif
