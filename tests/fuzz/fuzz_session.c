/*
 * A session on any bytes. The first byte chooses the connection: whether a token is asked for, the
 * control socket, a small max_frame_size. The rest is sent to a real session over a socket pair,
 * and what comes back must be what the rules of behaviour say of any input: whole frames of the
 * server's, one answer for each frame that has one, in the order of the frames, then the end; and
 * nothing may be left behind.
 */
#include "net/net_priv.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "fuzz.h"

#define TOKEN "t"

static struct broker *broker;
static struct net *net;

/* --- the server -------------------------------------------------------------------------- */

static bool control_known(struct span name)
{
	return span_equal(name, SPAN_LITERAL("same"));
}

static struct buf *control_answer(void *context, struct span name, struct span request)
{
	struct buf *answer = buf_new(request.length);

	(void)context;
	(void)name;
	ASSERT(answer != NULL);
	if (request.length > 0)
		memcpy(answer->data, request.data, request.length);
	return answer;
}

static struct net_limits limits_of(uint8_t choice)
{
	return (struct net_limits){
		.max_frame_size = (choice & 4) != 0 ? 4096 : 1 << 20,
		.max_outbox_bytes = 1 << 28,
		.max_outbox_frames = 1 << 24,
		.handshake_timeout_ms = 60000,
		.close_timeout_ms = 60000,
		.client = {.subscriptions = 4,
			   .conversations = 4,
			   .replies_per_conversation = 2,
			   .replies = 3,
			   .pushes = 2,
			   .pending_bytes = 100,
			   .frame_bytes = 1 << 20},
	};
}

static void server_start(void)
{
	static char *unanswered[] = {(char *)"u"};
	static const struct broker_channel_settings channels[] = {
		{.name = "c", .dedup_window_ms = 60000, .dedup_max_keys = 3},
		{.name = "d", .drop = true, .dedup_window_ms = 60000, .dedup_max_keys = 3},
		{.name = "u", .dedup_window_ms = 60000, .dedup_max_keys = 3},
	};
	static const struct broker_settings settings = {
		.reply_timeout_ms = 60000,
		.reply_timeout_max_ms = 60000,
		.no_worker = BROKER_NO_WORKER_ECHO,
		.unanswered_channels = unanswered,
		.unanswered_channel_count = 1,
		.channels = channels,
		.channel_count = ARRAY_LENGTH(channels),
	};
	struct net_limits limits = limits_of(0);
	char array[256];
	struct text error = TEXT_INIT(array);
	const char *broker_error;

	log_set_level(LOG_LEVEL_ERROR);
	broker = broker_new(&settings, 1, NULL, &broker_error);
	ASSERT(broker != NULL);
	broker_set_control(broker, &(struct broker_control){control_known, control_answer, NULL});
	net = net_new(broker, 4, &limits, NULL);
	ASSERT(net != NULL);
	ASSERT(net_start(net, &error));
}

static void check_nothing_left(void)
{
	struct broker_totals totals;

	mutex_lock(&net->lock);
	while (!list_empty(&net->conns))
		cond_wait(&net->changed, &net->lock);
	mutex_unlock(&net->lock);
	broker_totals(broker, &totals);
	ASSERT(totals.pending_replies == 0 && totals.pending_pushes == 0);
	ASSERT(totals.waiting_requests == 0 && totals.workers == 0);
	ASSERT(totals.conversations == 0 && totals.subscriptions == 0);
}

/* --- what must be answered --------------------------------------------------------------- */

enum family { CONNECT, PONG, PUBLISH, SUBSCRIBE, REGISTER, CONVERSATION };

struct answer {
	enum family family;
	uint32_t stream;
};

/* The answers that are due, but for those of conversations, whose order is another. */
struct due {
	struct answer *answers;
	size_t count, capacity;
	size_t conversation_frames; /* each may cause an answer */
	bool bad_conversation;	    /* the last frame, answered as one or as a Connect */
};

static void due_add(struct due *due, enum family family, uint32_t stream)
{
	if (due->count == due->capacity) {
		due->capacity = size_max(64, 2 * due->capacity);
		due->answers = realloc(due->answers, due->capacity * sizeof(*due->answers));
		ASSERT(due->answers != NULL);
	}
	due->answers[due->count++] = (struct answer){family, stream};
}

static enum family family_of(uint8_t type)
{
	switch (type) {
	case WIRE_PUBLISH:
		return PUBLISH;
	case WIRE_SUBSCRIBE:
	case WIRE_UNSUBSCRIBE:
		return SUBSCRIBE;
	case WIRE_CONVERSATION_OPEN:
	case WIRE_CONVERSATION_MESSAGE:
	case WIRE_CONVERSATION_CLOSE:
	case WIRE_CONVERSATION_ERROR:
		return CONVERSATION;
	default:
		return CONNECT;
	}
}

/* The error of a frame that ends the connection. */
static void due_add_last(struct due *due, struct wire_header header)
{
	enum family family = family_of(header.type);

	if (family == CONVERSATION)
		due->bad_conversation = true;
	else
		due_add(due, family,
			family == CONNECT    ? 0
			: header.stream == 0 ? 1
					     : header.stream);
}

static bool allowed_before_connect(uint8_t type)
{
	return type == WIRE_CONNECT || type == WIRE_DISCONNECT || type == WIRE_PING ||
	       type == WIRE_ACCEPT || type == WIRE_DEFER || type == WIRE_REJECT ||
	       wire_type_from_server(type);
}

/* The connection, as far as it decides what is answered. */
struct expectation {
	struct due *due;
	bool authenticated, registered;
	uint64_t max_frame_size;
};

/* True when a publish to this channel is not answered. */
static bool is_unanswered(const struct expectation *expectation, struct span channel)
{
	return expectation->registered && span_equal(channel, SPAN_LITERAL("u"));
}

/* A frame above max_frame_size with the beginning of its payload. False: it is the last one. */
static bool expect_large(struct expectation *expectation, struct wire_header header,
			 const uint8_t *payload, size_t available)
{
	size_t name;

	switch (header.type) {
	case WIRE_PUBLISH:
		if (available < 4)
			return false;
		name = wire_get_u32(payload);
		if (name > 255)
			name = 0;
		if (name > available - 4)
			return false;
		if (!is_unanswered(expectation, (struct span){payload + 4, name}))
			due_add(expectation->due, PUBLISH, header.stream);
		return true;
	case WIRE_SUBSCRIBE:
		due_add(expectation->due, SUBSCRIBE, header.stream);
		return true;
	case WIRE_CONVERSATION_MESSAGE:
		expectation->due->conversation_frames++;
		return available >= 8;
	default:
		due_add_last(expectation->due, header);
		return false;
	}
}

/* A whole frame of a legal size. False: it is the last one. */
static bool expect_frame(struct expectation *expectation, struct wire_header header,
			 const uint8_t *payload)
{
	struct due *due = expectation->due;
	struct wire_frame frame;
	const char *why;

	if (wire_decode_payload(header, payload, WIRE_VERSION_1_2, &frame, &why) != WIRE_OK) {
		due_add_last(due, header);
		return false;
	}
	switch (header.type) {
	case WIRE_CONNECT:
		due_add(due, CONNECT, 0);
		if (!expectation->authenticated &&
		    !span_equal(frame.u.connect.token, SPAN_LITERAL(TOKEN)))
			return false;
		/* Of the versions 1.0, 1.1 and 1.2. */
		if (wire_version_compare(frame.u.connect.min, WIRE_VERSION_1_2) <= 0 &&
		    wire_version_compare(frame.u.connect.max, WIRE_VERSION_1_0) >= 0 &&
		    wire_version_compare(frame.u.connect.min, frame.u.connect.max) <= 0)
			expectation->authenticated = true;
		return true;
	case WIRE_PING:
		due_add(due, PONG, 0);
		return true;
	case WIRE_DISCONNECT:
		return false;
	case WIRE_PUBLISH:
		if (!is_unanswered(expectation, frame.u.publish.channel))
			due_add(due, PUBLISH, header.stream);
		return true;
	case WIRE_SUBSCRIBE:
		due_add(due, SUBSCRIBE, header.stream);
		return true;
	case WIRE_WORKER_REGISTER:
		due_add(due, REGISTER, 0);
		expectation->registered = true;
		return true;
	default:
		due->conversation_frames += family_of(header.type) == CONVERSATION;
		return true;
	}
}

static void expect(const uint8_t *bytes, size_t length, struct expectation *expectation)
{
	bool more = true;

	while (more && length >= WIRE_HEADER_SIZE) {
		struct wire_header header = wire_get_header(bytes);
		uint64_t size = WIRE_HEADER_SIZE + (uint64_t)header.length;
		size_t available = size_min(length - WIRE_HEADER_SIZE, header.length);
		const uint8_t *payload = bytes + WIRE_HEADER_SIZE;

		if (wire_type_name(header.type) == NULL) {
			more = true;
		} else if (!wire_stream_legal(header.type, header.stream)) {
			due_add_last(expectation->due, header);
			more = false;
		} else if (!expectation->authenticated &&
			   (size > 65536 || !allowed_before_connect(header.type))) {
			due_add(expectation->due, CONNECT, 0);
			more = false;
		} else if (size > expectation->max_frame_size) {
			more = expect_large(expectation, header, payload, available);
		} else if (wire_type_from_server(header.type)) {
			more = true;
		} else if (header.type == WIRE_WORKER_REGISTER && size > 65536) {
			due_add(expectation->due, REGISTER, 0);
		} else {
			more = available == header.length &&
			       expect_frame(expectation, header, payload);
		}
		if (size > length)
			return;
		bytes += size;
		length -= (size_t)size;
	}
}

/* --- what was answered ------------------------------------------------------------------- */

static bool answer_of(const struct wire_header *header, struct answer *answer)
{
	static const struct {
		uint8_t type;
		enum family family;
	} rows[] = {
		{WIRE_CONNECT_ACK, CONNECT},
		{WIRE_CONNECT_ERROR, CONNECT},
		{WIRE_PONG, PONG},
		{WIRE_PUBLISH_ACK, PUBLISH},
		{WIRE_PUBLISH_ERROR, PUBLISH},
		{WIRE_SUBSCRIBE_ACK, SUBSCRIBE},
		{WIRE_SUBSCRIBE_ERROR, SUBSCRIBE},
		{WIRE_WORKER_REGISTER_ACK, REGISTER},
	};

	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		if (rows[i].type == header->type) {
			*answer = (struct answer){rows[i].family, header->stream};
			return true;
		}
	}
	return false;
}

static void check_flags(const struct wire_header *header)
{
	uint8_t allowed = 0;

	if (header->type == WIRE_PUBLISH_ACK)
		allowed = WIRE_PUBLISH_ACK_DELIVERED | WIRE_PUBLISH_ACK_DUPLICATE;
	else if (header->type == WIRE_DELIVER)
		allowed = WIRE_DELIVER_ORIGIN;
	else if (header->type == WIRE_CONVERSATION_MESSAGE)
		allowed = WIRE_MESSAGE_REPLY;
	ASSERT((header->flags & ~allowed) == 0);
}

static void check(const uint8_t *bytes, size_t length, const struct due *due)
{
	size_t answered = 0, conversation_frames = 0;
	struct answer answer;

	while (length > 0) {
		struct wire_frame frame;
		size_t consumed;
		const char *why;

		ASSERT(wire_decode(bytes, length, WIRE_VERSION_1_2, &frame, &consumed, &why) ==
		       WIRE_OK);
		check_flags(&frame.header);
		bytes += consumed;
		length -= consumed;
		if (!answer_of(&frame.header, &answer)) {
			conversation_frames += family_of(frame.header.type) == CONVERSATION;
			ASSERT(frame.header.type == WIRE_CONVERSATION_MESSAGE ||
			       frame.header.type == WIRE_CONVERSATION_ERROR ||
			       frame.header.type == WIRE_DELIVER || frame.header.type == WIRE_PUSH);
		} else if (answered == due->count) {
			ASSERT(due->bad_conversation && answer.family == CONNECT);
		} else {
			ASSERT(answer.family == due->answers[answered].family);
			ASSERT(answer.stream == due->answers[answered].stream);
			answered++;
		}
	}
	ASSERT(answered == due->count);
	ASSERT(conversation_frames <= due->conversation_frames + due->bad_conversation);
}

/* --- the client -------------------------------------------------------------------------- */

/* Sends everything, then the end, and takes everything; it never stops reading. */
static uint8_t *converse(int fd, const uint8_t *bytes, size_t length, size_t *answer_length)
{
	uint8_t *answer = NULL;
	size_t capacity = 0;
	ssize_t moved = 1;
	bool sending = true;

	*answer_length = 0;
	while (moved != 0) {
		struct pollfd wait = {.fd = fd, .events = sending ? POLLIN | POLLOUT : POLLIN};

		if (sending) {
			moved = length > 0 ? send(fd, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL)
					   : 0;
			bytes += moved > 0 ? moved : 0;
			length -= moved > 0 ? (size_t)moved : 0;
			if (length == 0 || (moved < 0 && errno == EPIPE)) {
				sending = false;
				wait.events = POLLIN;
				(void)shutdown(fd, SHUT_WR);
			}
		}
		(void)poll(&wait, 1, -1);
		if (capacity - *answer_length < 65536) {
			capacity = 2 * capacity + 65536;
			answer = realloc(answer, capacity);
			ASSERT(answer != NULL);
		}
		moved = recv(fd, answer + *answer_length, capacity - *answer_length, MSG_DONTWAIT);
		ASSERT(moved >= 0 || errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
		*answer_length += moved > 0 ? (size_t)moved : 0;
	}
	return answer;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct due due = {0};
	struct expectation expectation = {.due = &due};
	struct net_limits limits;
	enum net_listener_kind kind;
	enum admission admission;
	struct conn *conn;
	uint8_t *answer;
	size_t length;
	int ends[2];

	if (size == 0)
		return 0;
	if (net == NULL)
		server_start();
	limits = limits_of(data[0]);
	kind = (data[0] & 2) != 0 ? NET_LISTENER_CONTROL : NET_LISTENER_CLIENTS;
	expectation.authenticated = (data[0] & 1) == 0 || kind == NET_LISTENER_CONTROL;
	expectation.max_frame_size = limits.max_frame_size;
	expect(data + 1, size - 1, &expectation);

	ASSERT(net_configure(net, &limits, (data[0] & 1) != 0 ? TOKEN : NULL));
	ASSERT(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
	conn = conn_new(net, ends[0], "unix", kind, &admission);
	ASSERT(conn != NULL && pool_run(net, conn));
	answer = converse(ends[1], data + 1, size - 1, &length);
	check(answer, length, &due);
	check_nothing_left();
	close(ends[1]);
	free(answer);
	free(due.answers);
	return 0;
}
