/*
 * The flusher: one thread that finishes what sockets did not take at once, tells the broker where a
 * durable subscription has room again, drains refused sockets, and wakes sessions of connections
 * that are to be closed.
 *
 * A connection is here while its outbox's writer flag is: the flag came with it, and it is let go
 * of when everything is written, a write fails or its session closes the outbox. Each gets a
 * bounded piece per turn. Nothing here allocates: there is room for every connection from the
 * start. With nothing to do the thread sleeps in poll.
 */
#include "net/net_priv.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/metrics.h"
#include "net/socket.h"

#define LINGER_NS NS_PER_S
#define LINGER_BYTES (1024 * 1024)

/*
 * A session that is to be closed is interrupted by a signal, again and again until it has noticed:
 * one signal may come just before it starts to read. (shutdown(2) of the receiving side would need
 * no repetition, but makes Linux answer what the peer still sends with a reset, which destroys
 * what was flushed.)
 */
#define INTERRUPT_MS 5

bool flusher_init(struct flusher *flusher, struct net *net)
{
	/* A connection that has left the table may still be here, until its session has closed its
	 * outbox: twice the seats are always enough. */
	size_t room = 2 * (size_t)(net->max_connections + NET_CONTROL_CONNECTIONS);

	flusher->net = net;
	flusher->wake_read = flusher->wake_write = -1;
	mutex_init(&flusher->lock, LOCK_FLUSHER);
	list_init(&flusher->incoming);
	flusher->conns = calloc(room, sizeof(struct conn *));
	flusher->polls = calloc(room + LINGERING_MAX + 1, sizeof(*flusher->polls));
	return flusher->conns != NULL && flusher->polls != NULL &&
	       pipe_open(&flusher->wake_read, &flusher->wake_write);
}

void flusher_free(struct flusher *flusher)
{
	for (size_t i = 0; i < flusher->lingering_count; i++)
		(void)close(flusher->lingering[i].fd);
	for (size_t i = 0; i < flusher->refused_count; i++)
		(void)close(flusher->refused[i]);
	if (flusher->wake_read >= 0) {
		(void)close(flusher->wake_read);
		(void)close(flusher->wake_write);
	}
	free(flusher->conns);
	free(flusher->polls);
	mutex_destroy(&flusher->lock);
}

static void flusher_wake_locked(struct flusher *flusher)
{
	if (flusher->woken)
		return;
	flusher->woken = true;
	pipe_wake(flusher->wake_write);
}

void flusher_wake(struct flusher *flusher)
{
	mutex_lock(&flusher->lock);
	flusher_wake_locked(flusher);
	mutex_unlock(&flusher->lock);
}

void flusher_take(struct conn *conn)
{
	struct flusher *flusher = &conn->net->flusher;

	conn_ref(conn);
	mutex_lock(&flusher->lock);
	list_append(&flusher->incoming, &conn->in_flusher);
	flusher_wake_locked(flusher);
	mutex_unlock(&flusher->lock);
}

void flusher_linger(struct flusher *flusher, int fd)
{
	bool room;

	mutex_lock(&flusher->lock);
	room = flusher->lingering_total < LINGERING_MAX;
	if (room) {
		flusher->refused[flusher->refused_count++] = fd;
		flusher->lingering_total++;
		flusher_wake_locked(flusher);
	}
	mutex_unlock(&flusher->lock);
	if (!room) {
		metric_add(METRIC_REFUSED_UNHEARD, 1);
		(void)close(fd);
	}
}

/* Reads and drops some of what came; true when the socket is done with. */
static bool linger_drain(struct lingering *lingering)
{
	char dropped[1024];
	ssize_t got = recv(lingering->fd, dropped, sizeof(dropped), MSG_DONTWAIT);

	if (got < 0)
		return errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR;
	lingering->left -= size_min((size_t)got, lingering->left);
	return got == 0 || lingering->left == 0;
}

/* How many are done with. */
static size_t flusher_linger_turn(struct flusher *flusher)
{
	int64_t now_ns = clock_mono_ns();
	size_t kept = 0, had = flusher->lingering_count;

	for (size_t i = 0; i < had; i++) {
		struct lingering *lingering = &flusher->lingering[i];

		if (linger_drain(lingering) || now_ns >= lingering->until_ns)
			(void)close(lingering->fd);
		else
			flusher->lingering[kept++] = *lingering;
	}
	flusher->lingering_count = kept;
	return had - kept;
}

static void flusher_interrupt_sessions(struct net *net)
{
	struct list *node, *after;

	mutex_lock(&net->lock);
	LIST_FOR_EACH_NODE(node, after, &net->conns)
	{
		struct conn *conn = LIST_ENTRY(node, struct conn, in_table);

		if (conn->running && atomic_load(&conn->close_reason) != CLOSE_NONE &&
		    !atomic_load(&conn->close_noticed))
			(void)pthread_kill(conn->thread, NET_SIGNAL);
	}
	mutex_unlock(&net->lock);
}

/* Sets up what to poll; how long at most, in ms, -1 for ever. */
static int flusher_prepare(struct flusher *flusher, nfds_t *count)
{
	int64_t until_ns = DEADLINE_NEVER, now_ns;
	bool interrupting = atomic_load(&flusher->net->closing) > 0;

	*count = 0;
	flusher->polls[(*count)++] = (struct pollfd){.fd = flusher->wake_read, .events = POLLIN};
	for (size_t i = 0; i < flusher->conn_count; i++)
		flusher->polls[(*count)++] =
			(struct pollfd){.fd = flusher->conns[i]->fd, .events = POLLOUT};
	for (size_t i = 0; i < flusher->lingering_count; i++) {
		flusher->polls[(*count)++] =
			(struct pollfd){.fd = flusher->lingering[i].fd, .events = POLLIN};
		if (flusher->lingering[i].until_ns < until_ns)
			until_ns = flusher->lingering[i].until_ns;
	}
	if (interrupting)
		return INTERRUPT_MS;
	if (until_ns == DEADLINE_NEVER)
		return -1;
	now_ns = clock_mono_ns();
	return until_ns <= now_ns ? 0 : (int)((until_ns - now_ns) / NS_PER_MS) + 1;
}

/* Takes over what was handed in; false when it is time to stop. */
static bool flusher_receive(struct flusher *flusher)
{
	size_t done = flusher->lingering_count > 0 ? flusher_linger_turn(flusher) : 0;
	bool stopping;

	mutex_lock(&flusher->lock);
	flusher->lingering_total -= done;
	while (flusher->refused_count > 0)
		flusher->lingering[flusher->lingering_count++] =
			(struct lingering){.fd = flusher->refused[--flusher->refused_count],
					   .until_ns = clock_mono_ns() + LINGER_NS,
					   .left = LINGER_BYTES};
	while (!list_empty(&flusher->incoming)) {
		struct conn *conn = LIST_ENTRY(flusher->incoming.next, struct conn, in_flusher);

		list_remove(&conn->in_flusher);
		flusher->conns[flusher->conn_count++] = conn;
	}
	stopping = flusher->stopping;
	mutex_unlock(&flusher->lock);
	return !stopping;
}

/* A turn for each that can be written to, of whose room the broker is to be told, or whose session
 * waits for it to be let go of. */
static void flusher_turn(struct flusher *flusher, nfds_t polled)
{
	size_t kept = 0;

	for (size_t i = 0; i < flusher->conn_count; i++) {
		struct conn *conn = flusher->conns[i];
		bool ready = i + 1 < polled && flusher->polls[i + 1].fd == conn->fd &&
			     flusher->polls[i + 1].revents != 0;

		ready |= atomic_load_explicit(&conn->outbox.room_due, memory_order_relaxed);
		ready |= atomic_load_explicit(&conn->sink.dead, memory_order_relaxed);
		if (ready && !outbox_flush_turn(conn))
			conn_unref(&conn);
		else
			flusher->conns[kept++] = conn;
	}
	flusher->conn_count = kept;
}

static void *flusher_loop(void *argument)
{
	struct flusher *flusher = argument;

	for (;;) {
		nfds_t count;
		int timeout_ms = flusher_prepare(flusher, &count);
		size_t had = flusher->conn_count;

		(void)poll(flusher->polls, count, timeout_ms);
		if (flusher->polls[0].revents != 0) {
			mutex_lock(&flusher->lock);
			flusher->woken = false;
			pipe_empty(flusher->wake_read);
			mutex_unlock(&flusher->lock);
		}
		if (atomic_load(&flusher->net->closing) > 0)
			flusher_interrupt_sessions(flusher->net);
		/* What came in is looked at in this turn already: a session that closes its outbox
		 * wakes this thread once. */
		if (!flusher_receive(flusher))
			return NULL;
		flusher_turn(flusher, (nfds_t)had + 1);
	}
}

bool flusher_start(struct flusher *flusher)
{
	flusher->started = thread_start(&flusher->thread, flusher_loop, flusher) == 0;
	return flusher->started;
}

void flusher_stop(struct flusher *flusher)
{
	if (!flusher->started)
		return;
	mutex_lock(&flusher->lock);
	flusher->stopping = true;
	flusher_wake_locked(flusher);
	mutex_unlock(&flusher->lock);
	thread_join(&flusher->thread);
	flusher->started = false;
}
