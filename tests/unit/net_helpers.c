#include "net_helpers.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"

static struct broker_channel_settings channels[] = {
	{.name = "news",
	 .schema_id = "the schema of news, 32 bytes...",
	 .dedup_window_ms = 3600000,
	 .dedup_max_keys = 1000},
	{.name = "ticks",
	 .schema_id = "the schema of ticks, 32 bytes..",
	 .drop = true,
	 .dedup_window_ms = 3600000,
	 .dedup_max_keys = 1000},
};

struct broker_settings broker_settings = {
	.reply_timeout_ms = 60000,
	.reply_timeout_max_ms = 60000,
	.no_worker = BROKER_NO_WORKER_ECHO,
	.channels = channels,
	.channel_count = ARRAY_LENGTH(channels),
};

struct net_limits limits = {
	.max_frame_size = 1 << 24,
	.max_outbox_bytes = 1 << 28,
	.max_outbox_frames = 1 << 24,
	.handshake_timeout_ms = 60000,
	.close_timeout_ms = 60000,
	.client =
		{
			.subscriptions = 100,
			.conversations = 100,
			.replies_per_conversation = 100,
			.replies = 100,
			.pushes = 100,
			.pending_bytes = 1 << 24,
			.frame_bytes = 1 << 24,
		},
};

const char *token;
struct broker *broker;
struct net *net;

void net_begin(void)
{
	char array[256];
	struct text error = TEXT_INIT(array);
	const char *broker_error;

	log_set_level(LOG_LEVEL_ERROR);
	broker = broker_new(&broker_settings, BOOT_MS, NULL, &broker_error);
	ck_assert_ptr_nonnull(broker);
	net = net_new(broker, 100, &limits, token);
	ck_assert_ptr_nonnull(net);
	ck_assert_msg(net_start(net, &error), "%s", array);
}

void net_end(void)
{
	net_stop(net);
	net_free(&net);
	broker_free(&broker);
}

static struct conn *socket_open(int type, enum net_listener_kind kind, int *peer, int *watch)
{
	enum admission admission;
	struct conn *conn;
	int ends[2];

	ck_assert_int_eq(socketpair(AF_UNIX, type, 0, ends), 0);
	conn = conn_new(net, ends[0], "unix", kind, &admission);
	ck_assert_int_eq(admission, ADMITTED);
	*peer = ends[1];
	if (watch != NULL) {
		*watch = dup(ends[0]);
		ck_assert_int_ge(*watch, 0);
	}
	return conn;
}

void pair_open(struct pair *pair, int type)
{
	pair->conn = socket_open(type, NET_LISTENER_CLIENTS, &pair->peer, NULL);
}

void pair_close_peer(struct pair *pair)
{
	(void)close(pair->peer);
	pair->peer = -1;
}

void pair_close(struct pair *pair)
{
	struct flush_set set;

	flush_set_init(&set);
	broker_client_end_subscriptions(pair->conn->client);
	broker_client_end_worker(pair->conn->client, &set);
	broker_client_end_conversations(pair->conn->client, &set);
	flush_set_run(&set);
	outbox_close(pair->conn);
	(void)conn_settle_reason(pair->conn, CLOSE_DISCONNECT);
	conn_remove(pair->conn);
	broker_client_free(&pair->conn->client);
	(void)close(pair->conn->fd);
	conn_unref(&pair->conn);
	if (pair->peer >= 0)
		pair_close_peer(pair);
}

int session_open(enum net_listener_kind kind, int *watch)
{
	int peer;
	struct conn *conn = socket_open(SOCK_STREAM, kind, &peer, watch);

	ck_assert(pool_run(net, conn));
	return peer;
}

bool session_has_ended(void)
{
	bool ended;

	mutex_lock(&net->lock);
	ended = list_empty(&net->conns);
	mutex_unlock(&net->lock);
	return ended;
}

void sessions_wait(void)
{
	mutex_lock(&net->lock);
	while (!list_empty(&net->conns))
		cond_wait(&net->changed, &net->lock);
	mutex_unlock(&net->lock);
}

/* --- bytes ------------------------------------------------------------------------------- */

static uint8_t *bytes_room(struct bytes *bytes, size_t length)
{
	while (bytes->capacity - bytes->length < length) {
		bytes->capacity = size_max(256, 2 * bytes->capacity);
		bytes->data = realloc(bytes->data, bytes->capacity);
		ck_assert_ptr_nonnull(bytes->data);
	}
	return bytes->data + bytes->length;
}

void bytes_add(struct bytes *bytes, const void *data, size_t length)
{
	uint8_t *room = bytes_room(bytes, length);

	if (length > 0)
		memcpy(room, data, length);
	bytes->length += length;
}

void bytes_add_frame(struct bytes *bytes, const struct wire_frame *frame)
{
	size_t size = wire_encode(frame, NULL, 0);

	ck_assert_uint_gt(size, 0);
	(void)wire_encode(frame, bytes_room(bytes, size), size);
	bytes->length += size;
}

void bytes_free(struct bytes *bytes)
{
	free(bytes->data);
	*bytes = (struct bytes){0};
}

bool bytes_equal(const struct bytes *a, const struct bytes *b)
{
	return a->length == b->length &&
	       (a->length == 0 || memcmp(a->data, b->data, a->length) == 0);
}

bool bytes_receive(struct bytes *bytes, int fd)
{
	ssize_t got;

	do {
		got = recv(fd, bytes_room(bytes, 4096), 4096, MSG_DONTWAIT);
		if (got > 0)
			bytes->length += (size_t)got;
	} while (got > 0 || (got < 0 && errno == EINTR));
	ck_assert(got == 0 || errno == EAGAIN || errno == EWOULDBLOCK || errno == ECONNRESET);
	return got != 0 && errno != ECONNRESET;
}

void bytes_receive_until(struct bytes *bytes, int fd, size_t length)
{
	while (bytes->length < length && bytes_receive(bytes, fd)) {
		struct pollfd wait = {.fd = fd, .events = POLLIN};

		if (bytes->length < length)
			(void)poll(&wait, 1, -1);
	}
}

/* --- chance ------------------------------------------------------------------------------ */

static uint64_t chance;

void draw_seed(uint64_t seed)
{
	chance = seed * UINT64_C(0x9E3779B97F4A7C15);
}

unsigned draw(unsigned limit)
{
	chance = chance * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (unsigned)((chance >> 33) % limit);
}
