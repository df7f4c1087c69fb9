/* The net as a whole: making it, starting, draining, stopping, and what others may know of it. */
#include "net/net_priv.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "net/socket.h"

/* How often a draining server looks for connections that are idle. */
#define DRAIN_LOOK_MS 50

/* --- making and configuring ---------------------------------------------------------------- */

static void net_signal(int number)
{
	(void)number; /* its arrival ends a read: that is all */
}

static void net_install_signal(void)
{
	struct sigaction action = {.sa_handler = net_signal}; /* without SA_RESTART */

	sigemptyset(&action.sa_mask);
	(void)sigaction(NET_SIGNAL, &action, NULL);
}

struct net *net_new(struct broker *broker, uint64_t max_connections,
		    const struct net_limits *limits, const char *token)
{
	struct net *net = calloc(1, sizeof(*net));

	if (net == NULL)
		return NULL;
	net->broker = broker;
	net->max_connections = max_connections;
	net->limits = *limits;
	net->wake_read = net->wake_write = -1;
	net->next_id = 1;
	mutex_init(&net->lock, LOCK_NET);
	cond_init(&net->changed);
	cond_init(&net->ready_changed);
	hash_init(&net->by_id);
	list_init(&net->conns);
	list_init(&net->ready);
	atomic_init(&net->closing, 0);
	net_install_signal();
	if (token != NULL)
		net->token = strdup(token);
	if (!flusher_init(&net->flusher, net) || (token != NULL && net->token == NULL) ||
	    !pipe_open(&net->wake_read, &net->wake_write))
		net_free(&net);
	return net;
}

bool net_configure(struct net *net, const struct net_limits *limits, const char *token)
{
	char *copy = NULL, *old;

	if (token != NULL && (copy = strdup(token)) == NULL)
		return false;
	mutex_lock(&net->lock);
	net->limits = *limits;
	old = net->token;
	net->token = copy;
	mutex_unlock(&net->lock);
	free(old);
	return true;
}

static void net_close_listeners(struct net *net)
{
	if (net->wake_write >= 0)
		pipe_wake(net->wake_write); /* never emptied: every acceptor ends */
	for (size_t i = 0; i < net->listener_count; i++)
		listener_close(&net->listeners[i]);
}

void net_free(struct net **pointer)
{
	struct net *net = *pointer;

	if (net == NULL)
		return;
	*pointer = NULL;
	net_close_listeners(net);
	ASSERT(list_empty(&net->conns));
	flusher_free(&net->flusher);
	for (size_t i = 0; i < net->listener_count; i++)
		free(net->listeners[i].address);
	free(net->listeners);
	if (net->wake_read >= 0) {
		(void)close(net->wake_read);
		(void)close(net->wake_write);
	}
	hash_destroy(&net->by_id);
	free(net->token);
	cond_destroy(&net->ready_changed);
	cond_destroy(&net->changed);
	mutex_destroy(&net->lock);
	free(net);
}

/* --- starting and stopping ----------------------------------------------------------------- */

bool net_start(struct net *net, struct text *error)
{
	if (!flusher_start(&net->flusher)) {
		text_add(error, "cannot start the flusher thread");
		return false;
	}
	for (size_t i = 0; i < net->listener_count; i++) {
		struct listener *listener = &net->listeners[i];

		if (thread_start(&listener->acceptor, listener_accept_loop, listener) != 0) {
			text_add(error, "cannot start the acceptor of '%s'", listener->address);
			return false;
		}
		listener->started = true;
	}
	mutex_lock(&net->lock);
	net->listening = true;
	mutex_unlock(&net->lock);
	return true;
}

bool net_listening(struct net *net)
{
	bool listening;

	mutex_lock(&net->lock);
	listening = net->listening;
	mutex_unlock(&net->lock);
	return listening;
}

/* Neither owes nor is owed, and nothing has come for IDLE_NS. */
static bool conn_is_idle(struct conn *conn, int64_t drain_ns, int64_t idle_ns, int64_t now_ns)
{
	struct broker_client_state state;
	int64_t since_ns = atomic_load_explicit(&conn->last_read_ns, memory_order_relaxed);

	if (since_ns < drain_ns)
		since_ns = drain_ns;
	if (now_ns - since_ns < idle_ns ||
	    atomic_load_explicit(&conn->outbox.answers.due, memory_order_relaxed) > 0 ||
	    atomic_load_explicit(&conn->outbox.bytes, memory_order_relaxed) > 0)
		return false;
	broker_client_state(conn->client, &state);
	if (state.pending_replies > 0 || state.pending_pushes > 0 || state.waiting ||
	    state.outstanding_deliveries > 0)
		return false;
	return !state.worker || !broker_conversations_elsewhere(conn->net->broker, conn->client);
}

static void conn_tell_disconnect(struct conn *conn, struct flush_set *set)
{
	struct broker_client_state state;

	broker_client_state(conn->client, &state);
	if (state.subscriptions == 0)
		return;
	mutex_lock(&conn->outbox.lock);
	if (!conn->outbox.told && !conn->outbox.closed) {
		conn->outbox.told = true;
		outbox_add_frame_locked(conn,
					&(struct wire_frame){.header = {.type = WIRE_DISCONNECT}});
		outbox_touch_locked(conn, set);
	}
	mutex_unlock(&conn->outbox.lock);
}

static void net_tell_subscribers(struct net *net)
{
	struct list *node, *after;
	struct flush_set set;

	flush_set_init(&set);
	mutex_lock(&net->lock);
	LIST_FOR_EACH_NODE(node, after, &net->conns)
	conn_tell_disconnect(LIST_ENTRY(node, struct conn, in_table), &set);
	mutex_unlock(&net->lock);
	flush_set_run(&set);
}

static void net_close_idle_locked(struct net *net, int64_t drain_ns, int64_t idle_ns)
{
	int64_t now_ns = clock_mono_ns();
	struct list *node, *after;

	LIST_FOR_EACH_NODE(node, after, &net->conns)
	{
		struct conn *conn = LIST_ENTRY(node, struct conn, in_table);

		if (conn_is_idle(conn, drain_ns, idle_ns, now_ns))
			conn_close_locked(conn, CLOSE_DRAIN);
	}
}

void net_drain(struct net *net, int64_t timeout_ms, int64_t idle_ms)
{
	int64_t drain_ns, end_ns;

	mutex_lock(&net->lock);
	net->listening = false;
	mutex_unlock(&net->lock);
	net_close_listeners(net);
	drain_ns = clock_mono_ns();
	end_ns = clock_after_ms(drain_ns, timeout_ms);
	net_tell_subscribers(net);
	mutex_lock(&net->lock);
	while (!list_empty(&net->conns) && !atomic_load(&net->hurried) &&
	       clock_mono_ns() < end_ns) {
		int64_t look_ns = clock_after_ms(clock_mono_ns(), DRAIN_LOOK_MS);

		net_close_idle_locked(net, drain_ns, idle_ms * NS_PER_MS);
		(void)cond_wait_until(&net->changed, &net->lock,
				      look_ns < end_ns ? look_ns : end_ns);
	}
	mutex_unlock(&net->lock);
}

void net_hurry(struct net *net)
{
	mutex_lock(&net->lock);
	atomic_store(&net->hurried, true);
	cond_broadcast(&net->changed);
	mutex_unlock(&net->lock);
}

void net_stop(struct net *net)
{
	struct list *node, *after;

	net_close_listeners(net);
	mutex_lock(&net->lock);
	net->listening = false;
	LIST_FOR_EACH_NODE(node, after, &net->conns)
	conn_close_locked(LIST_ENTRY(node, struct conn, in_table), CLOSE_SHUTDOWN);
	while (!list_empty(&net->conns))
		cond_wait(&net->changed, &net->lock);
	mutex_unlock(&net->lock);
	pool_stop(net);
	flusher_stop(&net->flusher);
}

bool net_close_connection(struct net *net, uint64_t id)
{
	bool found = false;

	mutex_lock(&net->lock);
	for (struct hash_node *node = hash_first(&net->by_id, hash_u64(id)); node != NULL;
	     node = hash_next(node)) {
		struct conn *conn = CONTAINER_OF(node, struct conn, by_id);

		if (conn->id == id) {
			conn_close_locked(conn, CLOSE_CONTROL);
			found = true;
		}
	}
	mutex_unlock(&net->lock);
	return found;
}

/* --- what others may know ------------------------------------------------------------------ */

static void conn_state(struct conn *conn, struct net_connection_state *state)
{
	struct wire_version version;

	state->id = conn->id;
	memcpy(state->peer, conn->peer, sizeof(state->peer));
	mutex_lock(&conn->outbox.lock);
	version = conn->outbox.version;
	mutex_unlock(&conn->outbox.lock);
	state->version_major = version.major;
	state->version_minor = version.minor;
	state->since_ms = conn->since_ms;
	state->outbox_bytes = atomic_load_explicit(&conn->outbox.bytes, memory_order_relaxed);
	state->outbox_frames = atomic_load_explicit(&conn->outbox.frames, memory_order_relaxed);
	broker_client_state(conn->client, &state->client);
}

bool net_connection_states(struct net *net, struct net_connection_state **states, size_t *count)
{
	struct list *node, *after;

	*count = 0;
	mutex_lock(&net->lock);
	*states = calloc(net->by_id.count + 1, sizeof(**states));
	if (*states != NULL) {
		LIST_FOR_EACH_NODE(node, after, &net->conns)
		conn_state(LIST_ENTRY(node, struct conn, in_table), &(*states)[(*count)++]);
	}
	mutex_unlock(&net->lock);
	return *states != NULL;
}

void net_totals(struct net *net, struct net_totals *totals)
{
	struct list *node, *after;

	*totals = (struct net_totals){.max = net->max_connections};
	mutex_lock(&net->lock);
	totals->current = net->client_count;
	totals->control = net->control_count;
	totals->accepted = net->accepted;
	totals->threads = net->threads;
	LIST_FOR_EACH_NODE(node, after, &net->conns)
	{
		const struct outbox *outbox = &LIST_ENTRY(node, struct conn, in_table)->outbox;

		totals->outbox_bytes += atomic_load_explicit(&outbox->bytes, memory_order_relaxed);
		totals->outbox_frames +=
			atomic_load_explicit(&outbox->frames, memory_order_relaxed);
	}
	mutex_unlock(&net->lock);
	mutex_lock(&net->flusher.lock);
	totals->lingering = net->flusher.lingering_total;
	mutex_unlock(&net->flusher.lock);
}

const char *net_address(struct net *net, size_t index)
{
	return index < net->listener_count ? net->listeners[index].address : NULL;
}
