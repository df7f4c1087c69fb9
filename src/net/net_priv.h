/*
 * What the files of the net share: its structs, grouped by what guards them.
 */
#ifndef NET_NET_PRIV_H
#define NET_NET_PRIV_H

#include "base/base.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/hash.h"
#include "base/list.h"
#include "base/lock.h"
#include "base/thread.h"
#include "net/net.h"
#include "net/outbox.h"

#define CONN_MAGIC 0x4c434f4eu

enum close_reason {
	CLOSE_NONE,
#define CLOSE_REASON(id, word, error, text) CLOSE_##id,
#include "base/close_reasons.tbl"
#undef CLOSE_REASON
};

struct conn {
	unsigned magic;
	struct net *net;
	struct sink sink;
	atomic_uint references;
	uint64_t id;
	int fd; /* closed by the session, after the last writer is gone */
	bool control;
	char peer[64];
	int64_t since_ms;
	struct net_limits limits;
	char *token; /* NULL: none is asked for */
	struct client *client;

	_Atomic(int64_t) last_read_ns;
	atomic_int close_reason; /* why others want it closed: set once, CLOSE_NONE before */
	atomic_bool close_noticed;

	/* NET */
	struct hash_node by_id;
	struct list in_table;
	struct list in_ready; /* admitted, and no thread has it yet */
	bool running;	      /* `thread` is its session */
	pthread_t thread;

	struct outbox outbox;

	/* FLUSHER */
	struct list in_flusher;
};

struct listener {
	struct net *net;
	int fd;
	enum net_listener_kind kind;
	char *path;    /* to be unlinked; NULL: none */
	char *address; /* as text, for people */
	struct thread acceptor;
	bool started;
};

/* Refused sockets that are drained before they are closed. */
#define LINGERING_MAX 64

struct lingering {
	int fd;
	int64_t until_ns;
	size_t left; /* bytes that are still read */
};

struct flusher {
	struct net *net;
	struct thread thread;
	int wake_read, wake_write;
	bool started;

	/* FLUSHER */
	struct mutex lock;
	struct list incoming; /* conns handed over, each with a reference */
	bool woken, stopping;
	int refused[LINGERING_MAX]; /* sockets handed over */
	size_t refused_count;
	size_t lingering_total; /* those and the ones below */

	/* its thread only */
	struct lingering lingering[LINGERING_MAX];
	size_t lingering_count;
	struct conn **conns;
	struct pollfd *polls;
	size_t conn_count;
};

struct net {
	struct broker *broker;
	uint64_t max_connections;
	struct listener *listeners;
	size_t listener_count;
	int wake_read, wake_write; /* ends the acceptors */
	struct flusher flusher;
	atomic_size_t closing; /* connections that are to be closed and have not noticed */

	struct mutex lock;   /* NET, and all that follows */
	struct cond changed; /* a connection or a thread has gone, or net_hurry */
	struct net_limits limits;
	char *token;
	struct hash by_id;
	struct list conns;
	uint64_t client_count, control_count, accepted;
	uint64_t next_id;
	struct list ready; /* for warm threads */
	struct cond ready_changed;
	size_t ready_count, idle_threads, threads;
	bool listening, stopping;
	atomic_bool hurried; /* set under the lock, read anywhere: the stop is to be short */
};

/* The signal that interrupts a session's read; its handler does nothing. */
#define NET_SIGNAL SIGUSR2

/* --- conn.c -------------------------------------------------------------------------------- */

/*
 * Admits the socket FD: a conn with one reference, in the table. NULL with the reason in *REFUSAL;
 * FD stays the caller's then.
 */
enum admission { ADMITTED, REFUSED_LIMIT, REFUSED_MEMORY };
struct conn *conn_new(struct net *net, int fd, const char *peer, enum net_listener_kind kind,
		      enum admission *admission);
struct conn *conn_ref(struct conn *conn);
void conn_unref(struct conn **conn);

/* Takes it out of the table; nobody finds it, and its client, any more. */
void conn_remove(struct conn *conn);

/* Wants it closed; its session will, once it looks. Any lock but FLUSHER may be held. */
void conn_request_close(struct conn *conn, enum close_reason reason);

/* The same for a conn in the table, NET held; wakes the session from what it waits for. */
void conn_close_locked(struct conn *conn, enum close_reason reason);

/* The session's: why the connection ends, if nobody else has wanted it closed before OWN. Nobody
 * wakes the session any more after that. */
enum close_reason conn_settle_reason(struct conn *conn, enum close_reason own);

void conn_log_closed(const struct conn *conn, enum close_reason reason);

extern const struct sink_ops conn_sink_ops;

static inline struct conn *conn_of_sink(struct sink *sink)
{
	struct conn *conn = CONTAINER_OF(sink, struct conn, sink);

	ASSERT_MAGIC(conn, CONN_MAGIC);
	return conn;
}

/* --- pool.c: a thread for an admitted connection ------------------------------------------- */

/* Hands CONN's reference to a session thread. False when there is none to be had. */
bool pool_run(struct net *net, struct conn *conn);
void pool_stop(struct net *net);

/* --- deliver.c ----------------------------------------------------------------------------- */

/* Queues the answers to a run of publishes that broker_publish left to the caller. */
void conn_answer_publishes(struct conn *conn, const struct message *run, size_t count);

/* Queues the end of a subscription that was not asked for. */
void conn_end_subscription(struct sink *sink, uint32_t stream, const char *text,
			   struct flush_set *set);

/* From this size on an envelope with a buffer of its own is referenced instead of copied. */
#define REFERENCE_MIN 4096

/* The answer to a publish. POSITION: the message is a durable one, and the connection is told. */
size_t publish_answer_size(const struct message *message, bool position);
void put_publish_answer(uint8_t *bytes, size_t size, const struct message *message, bool position);

/* --- durable.c: the sink's operations for durable channels ---------------------------------- */

struct sink_place *conn_place(struct sink *sink, size_t count);
void conn_fill_publishes(struct sink *sink, struct sink_place *place, const struct message *run,
			 size_t count, struct flush_set *set);
void conn_fill_subscribe(struct sink *sink, struct sink_place *place, uint32_t stream,
			 uint64_t subscription, const uint8_t *schema_id, const char *refused,
			 struct flush_set *set);
size_t conn_deliver_stored(struct sink *sink, uint32_t stream, uint64_t boot,
			   const struct stored *messages, size_t count, struct flush_set *set);
void conn_owe_confirmation(struct sink *sink, size_t id_length);
void conn_confirm(struct sink *sink, const struct confirmation *confirmation, bool owed,
		  struct flush_set *set);

/* --- session.c ----------------------------------------------------------------------------- */

/* Serves the connection until it has ended and its descriptor is closed. */
void session_run(struct conn *conn);

/* --- flusher.c ----------------------------------------------------------------------------- */

bool flusher_init(struct flusher *flusher, struct net *net);
bool flusher_start(struct flusher *flusher);
void flusher_stop(struct flusher *flusher);
void flusher_free(struct flusher *flusher);

/* Its outbox's writer flag is set and goes with it. Never fails; any lock but later ones. */
void flusher_take(struct conn *conn);

/* Drains a refused socket, then closes it; at once when too many are lingering. */
void flusher_linger(struct flusher *flusher, int fd);

/* Has it look at what changed. */
void flusher_wake(struct flusher *flusher);

/* --- listener.c ---------------------------------------------------------------------------- */

void listener_close(struct listener *listener);
void *listener_accept_loop(void *argument);

#endif
