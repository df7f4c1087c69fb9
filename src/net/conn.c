/* Connections: admission, references, the table, wanting one closed. */
#include "net/net_priv.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"

struct close_reason_row {
	const char *word, *text;
	bool error;
	enum metric metric;
};

static const struct close_reason_row close_reasons[] = {
	[CLOSE_NONE] = {.word = "none", .text = "not closed"},
#define CLOSE_REASON(id, w, e, t)                                                                  \
	[CLOSE_##id] = {.word = (w), .text = (t), .error = (e), .metric = METRIC_CLOSED_##id},
#include "base/close_reasons.tbl"
#undef CLOSE_REASON
};

void conn_log_closed(const struct conn *conn, enum close_reason reason)
{
	const struct close_reason_row *row = &close_reasons[reason];

	ASSERT(reason != CLOSE_NONE);
	metric_add(row->metric, conn->control ? 0 : 1);
	log_client_event(LOG_LEVEL_INFO, "connection closed", LOG_U64("conn", conn->id),
			 LOG_STR("peer", conn->peer), LOG_STR("reason", row->word),
			 LOG_STR("error", row->error ? "yes" : "no"), LOG_STR("text", row->text));
}

static void conn_set_options(int fd, bool tcp)
{
	int on = 1;

	if (!tcp)
		return;
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
#ifdef TCP_KEEPIDLE
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &(int){60}, sizeof(int));
#elif defined(TCP_KEEPALIVE) /* macOS */
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPALIVE, &(int){60}, sizeof(int));
#endif
#ifdef TCP_KEEPINTVL
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &(int){10}, sizeof(int));
#endif
#ifdef TCP_KEEPCNT
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &(int){6}, sizeof(int));
#endif
}

static void conn_free(struct conn *conn)
{
	conn->magic = 0;
	outbox_destroy(&conn->outbox);
	free(conn->token);
	free(conn);
}

/* Limits, token, id and a seat in the table. */
static enum admission conn_admit_locked(struct conn *conn)
{
	struct net *net = conn->net;
	uint64_t *seats = conn->control ? &net->control_count : &net->client_count;

	if (*seats >= (conn->control ? NET_CONTROL_CONNECTIONS : net->max_connections))
		return REFUSED_LIMIT;
	conn->limits = net->limits;
	if (net->token != NULL && !conn->control) {
		conn->token = strdup(net->token);
		if (conn->token == NULL)
			return REFUSED_MEMORY;
	}
	conn->id = net->next_id;
	conn->client = broker_client_new(net->broker, &conn->sink, conn->id, conn->control,
					 &conn->limits.client);
	if (conn->client == NULL)
		return REFUSED_MEMORY;
	if (!hash_insert(&net->by_id, &conn->by_id, hash_u64(conn->id))) {
		broker_client_free(&conn->client);
		return REFUSED_MEMORY;
	}
	net->next_id++;
	++*seats;
	if (!conn->control)
		net->accepted++;
	list_append(&net->conns, &conn->in_table);
	return ADMITTED;
}

struct conn *conn_new(struct net *net, int fd, const char *peer, enum net_listener_kind kind,
		      enum admission *admission)
{
	struct conn *conn = calloc(1, sizeof(*conn));

	*admission = REFUSED_MEMORY;
	if (conn == NULL)
		return NULL;
	conn->magic = CONN_MAGIC;
	conn->net = net;
	conn->sink.ops = &conn_sink_ops;
	atomic_init(&conn->sink.dead, false);
	atomic_init(&conn->references, 1);
	conn->fd = fd;
	conn->control = kind == NET_LISTENER_CONTROL;
	(void)strncpy(conn->peer, peer, sizeof(conn->peer) - 1);
	conn->since_ms = clock_wall_ms();
	atomic_init(&conn->last_read_ns, clock_mono_ns());
	atomic_init(&conn->close_reason, CLOSE_NONE);
	atomic_init(&conn->close_noticed, false);
	list_init(&conn->in_table);
	list_init(&conn->in_ready);
	list_init(&conn->in_flusher);
	outbox_init(&conn->outbox, 0, 0);
	mutex_lock(&net->lock);
	*admission = conn_admit_locked(conn);
	mutex_unlock(&net->lock);
	if (*admission != ADMITTED) {
		conn_free(conn);
		return NULL;
	}
	conn->outbox.max_bytes = conn->limits.max_outbox_bytes;
	conn->outbox.max_frames = conn->limits.max_outbox_frames;
	conn_set_options(fd, strcmp(peer, "unix") != 0);
	metric_add(METRIC_CONNECTIONS, conn->control ? 0 : 1);
	return conn;
}

struct conn *conn_ref(struct conn *conn)
{
	atomic_fetch_add_explicit(&conn->references, 1, memory_order_relaxed);
	return conn;
}

void conn_unref(struct conn **pointer)
{
	struct conn *conn = *pointer;

	*pointer = NULL;
	if (conn != NULL &&
	    atomic_fetch_sub_explicit(&conn->references, 1, memory_order_acq_rel) == 1)
		conn_free(conn);
}

void conn_remove(struct conn *conn)
{
	struct net *net = conn->net;

	mutex_lock(&net->lock);
	hash_remove(&net->by_id, &conn->by_id);
	list_remove(&conn->in_table);
	if (conn->control)
		net->control_count--;
	else
		net->client_count--;
	cond_broadcast(&net->changed);
	mutex_unlock(&net->lock);
}

void conn_request_close(struct conn *conn, enum close_reason reason)
{
	int none = CLOSE_NONE;

	if (!atomic_compare_exchange_strong(&conn->close_reason, &none, (int)reason))
		return;
	atomic_fetch_add(&conn->net->closing, 1);
	flusher_wake(&conn->net->flusher);
}

void conn_close_locked(struct conn *conn, enum close_reason reason)
{
	mutex_assert_held(&conn->net->lock);
	conn_request_close(conn, reason);
	broker_client_interrupt(conn->client);
	mutex_lock(&conn->outbox.lock);
	cond_broadcast(&conn->outbox.changed);
	mutex_unlock(&conn->outbox.lock);
}

enum close_reason conn_settle_reason(struct conn *conn, enum close_reason own)
{
	int reason = CLOSE_NONE;

	atomic_store(&conn->close_noticed, true);
	if (atomic_compare_exchange_strong(&conn->close_reason, &reason, (int)own))
		return own;
	atomic_fetch_sub(&conn->net->closing, 1);
	return (enum close_reason)reason;
}
