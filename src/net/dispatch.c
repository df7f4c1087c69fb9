/*
 * What each frame does: one table, frame type to handler. Handlers queue their answers and leave
 * the flushing to the end of the batch.
 */
#include "net/session.h"

#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "net/refusal.h"

/* An envelope of this size is worth a buffer of its own when it has several receivers. */
#define SHARE_MIN 16384

/* Of a durable Subscribe. */
#define CONSUMER_NAME_MAX 255
#define START_MAX 3

/* Publishes that are handled before the outbox is looked at again, into which others put, too. */
#define AGAIN_MAX 32

/* --- answers ------------------------------------------------------------------------------- */

/* An error of the types whose errors are a code and a text. */
static void session_answer_error(struct session *session, uint8_t type, uint32_t stream,
				 uint16_t code, const char *text)
{
	if (!session_end_run(session)) /* answers keep the order of their requests */
		return;
	answers_add_frame(
		session->conn,
		&(struct wire_frame){.header = {.type = type, .stream = stream},
				     .u.error = {.code = code, .text = {true, span_of(text)}}});
}

/* The same about a channel, whose name stands between BEFORE and AFTER. */
static void session_answer_channel_error(struct session *session, uint8_t type, uint32_t stream,
					 const char *before, struct span channel, const char *after)
{
	char array[TEXT_NAME_MAX * 4 + 128];
	struct text text = TEXT_INIT(array);

	text_add(&text, "%s", before);
	text_add_name(&text, channel);
	text_add(&text, "%s", after);
	session_answer_error(session, type, stream, WIRE_REASON_SERVER, array);
}

static void session_answer_conversation_error(struct session *session, uint32_t stream,
					      uint64_t conversation, uint16_t code,
					      const char *text)
{
	outbox_add_frame(
		session->conn,
		&(struct wire_frame){.header = {.type = WIRE_CONVERSATION_ERROR, .stream = stream},
				     .u.conversation_error = {.conversation = conversation,
							      .code = code,
							      .text = {true, span_of(text)}}});
}

/* --- publishing: consecutive publishes to one channel are one run ---------------------------- */

/* All that is being committed is answered and confirmed then. It waits for the disk only, and
 * always until that is done. */
static void session_wait_committed(struct session *session)
{
	session_flush(session);
	broker_client_wait_committed(session->conn->client);
}

/* For what must not overtake an answer. */
static void session_wait_answers(struct session *session)
{
	if (answers_are_pending(session->conn))
		session_wait_committed(session);
}

/* Queues COUNT publishes for the committer, which answers them; waits for room there. */
static void session_commit_run(struct session *session, size_t count)
{
	struct conn *conn = session->conn;
	size_t done;

	done = broker_publish_durable(conn->client, session->run_channel, session->run, count);
	while (done < count) {
		session_flush(session);
		if (!broker_client_wait_share(conn->client)) {
			session->interrupted = true;
			session->end = CLOSE_RESET; /* or rather what it is interrupted for */
			return;
		}
		done += broker_publish_durable(conn->client, session->run_channel,
					       session->run + done, count - done);
	}
}

static void session_publish_run(struct session *session, size_t count)
{
	struct conn *conn = session->conn;
	bool quiet;

	session_wait_answers(session); /* the messages of one connection keep their order */
	quiet = broker_client_unanswered(conn->client, session->run_channel);
	if (!broker_publish(conn->client, session->run_channel, session->run, count,
			    &session->set) &&
	    !quiet)
		conn_answer_publishes(conn, session->run, count);
	if (!quiet)
		session->answered += count;
}

bool session_end_run(struct session *session)
{
	size_t count = session->run_count;

	session->run_count = 0;
	if (count > 0 && !session->interrupted) {
		if (broker_channel_is_durable(session->run_channel))
			session_commit_run(session, count);
		else
			session_publish_run(session, count);
	}
	return !session->interrupted;
}

/* The same, for what waits until the answers before it are in the outbox. */
static bool session_settle(struct session *session)
{
	if (!session_end_run(session))
		return false;
	session_wait_answers(session);
	return true;
}

/* True when the client is told nothing about its publishes to CHANNEL, configured or not. */
static bool publish_is_unanswered(struct session *session, struct span channel)
{
	return broker_client_unanswered_name(session->conn->client, channel);
}

static void publish_refuse(struct session *session, uint32_t stream, struct span channel,
			   enum metric metric, uint16_t code, const char *text)
{
	metric_add(metric, 1);
	if (!publish_is_unanswered(session, channel))
		session_answer_error(session, WIRE_PUBLISH_ERROR, stream, code, text);
}

static struct channel *publish_channel(struct session *session, struct span name)
{
	/* The channel of the frame before is the likeliest. */
	if (session->run_channel != NULL &&
	    span_equal(name, broker_channel_name(session->run_channel)))
		return session->run_channel;
	return broker_channel(session->conn->net->broker, name);
}

/* Deliveries carry the channel's schema id: it replaces the publisher's in place. The bytes are the
 * session's own, nobody else has seen them yet. */
static void publish_set_schema(const uint8_t *envelope, const struct channel *channel)
{
	memcpy((uint8_t *)(uintptr_t)envelope, broker_channel_schema(channel), WIRE_SCHEMA_SIZE);
}

/* Adds a Publish that may be carried out to the run. KEY may be NULL. */
static void publish_add(struct session *session, struct channel *channel, uint32_t stream,
			struct span envelope, const struct span *key, struct buf *buf)
{
	struct message *message;

	if (channel != session->run_channel || session->run_count == session->run_capacity)
		session_end_run(session);
	publish_set_schema(envelope.data, channel);
	session->run_channel = channel;
	message = &session->run[session->run_count++];
	*message = (struct message){.envelope = envelope,
				    .buf = buf,
				    .has_key = key != NULL,
				    .key = key != NULL ? *key : (struct span){0},
				    .stream = stream};
	if (buf == NULL && envelope.length >= SHARE_MIN) {
		message->buf = buf_new(envelope.length);
		if (message->buf != NULL) { /* otherwise it is copied to each */
			memcpy(message->buf->data, envelope.data, envelope.length);
			message->envelope.data = message->buf->data;
		}
		session_end_run(session);
		buf_unref(&message->buf);
	}
}

/* The next Publish may be like this one, whose envelope is still as it came. */
static void publish_remember(struct session *session, const struct wire_frame *frame,
			     struct channel *channel)
{
	struct publish_head *head = &session->head;
	const struct wire_envelope *envelope = &frame->u.publish.envelope;
	const uint8_t *payload = frame->u.publish.channel.data - 4; /* of the frame */
	size_t size = (size_t)(envelope->payload.data - payload);

	head->size = 0;
	/* Large ones are handled one by one. */
	if (frame->u.publish.has_key || size > sizeof(head->bytes) - 4 ||
	    envelope->bytes.length >= SHARE_MIN)
		return;
	head->size = 4 + size;
	head->frame_size = WIRE_HEADER_SIZE + (size_t)frame->header.length;
	head->envelope_at = WIRE_HEADER_SIZE + (size_t)(envelope->bytes.data - payload);
	head->channel = channel;
	head->flags = frame->header.flags;
	wire_put_u32(head->bytes, frame->header.length);
	memcpy(head->bytes + 4, payload, size);
}

static bool publish_is_again(const struct publish_head *head, const uint8_t *frame,
			     size_t available)
{
	return available >= head->frame_size && frame[0] == WIRE_PUBLISH &&
	       frame[1] == head->flags &&
	       wire_stream_legal(WIRE_PUBLISH, wire_get_u32(frame + 2)) &&
	       memcmp(frame + 6, head->bytes, head->size) == 0;
}

size_t session_publish_again(struct session *session, const uint8_t *bytes, size_t available)
{
	const struct publish_head *head = &session->head;
	size_t size = 0, count = 0, limit;
	struct message *run;

	if (head->size == 0 || !publish_is_again(head, bytes, available))
		return 0;
	if (head->channel != session->run_channel || session->run_count == session->run_capacity)
		(void)session_end_run(session);
	limit = size_min(session->run_capacity - session->run_count,
			 size_min(session->room, AGAIN_MAX));
	run = session->run + session->run_count;
	do {
		const uint8_t *envelope = bytes + size + head->envelope_at;

		publish_set_schema(envelope, head->channel);
		run[count++] = (struct message){
			.envelope = {envelope, head->frame_size - head->envelope_at},
			.stream = wire_get_u32(bytes + size + 2)};
		size += head->frame_size;
	} while (count < limit && publish_is_again(head, bytes + size, available - size));
	session->run_channel = head->channel;
	session->run_count += count;
	session->frames += count;
	return size;
}

static void handle_publish(struct session *session, const struct wire_frame *frame, struct buf *buf)
{
	struct channel *channel = publish_channel(session, frame->u.publish.channel);

	if (channel == NULL) {
		metric_add(METRIC_PUBLISHES_REFUSED_CHANNEL, 1);
		if (!publish_is_unanswered(session, frame->u.publish.channel))
			session_answer_channel_error(
				session, WIRE_PUBLISH_ERROR, frame->header.stream, "channel '",
				frame->u.publish.channel, "' is not configured");
		return;
	}
	if (frame->u.publish.has_key && frame->u.publish.key.length > BROKER_KEY_MAX) {
		publish_refuse(session, frame->header.stream, frame->u.publish.channel,
			       METRIC_PUBLISHES_REFUSED_KEY, WIRE_REASON_SERVER,
			       "the idempotency key is longer than 1024 bytes");
		return;
	}
	publish_remember(session, frame, channel);
	publish_add(session, channel, frame->header.stream, frame->u.publish.envelope.bytes,
		    frame->u.publish.has_key ? &frame->u.publish.key : NULL, buf);
}

/* --- subscribing --------------------------------------------------------------------------- */

static bool schema_is_accepted(const struct wire_list *schemas, const uint8_t *schema)
{
	const uint8_t *item;
	size_t offset = 0;

	if (schemas->count == 0)
		return true;
	while (wire_list_next_schema(schemas, &offset, &item))
		if (memcmp(item, schema, WIRE_SCHEMA_SIZE) == 0)
			return true;
	return false;
}

static void subscribe_refuse(struct session *session, const struct wire_frame *frame,
			     enum metric metric, const char *text)
{
	metric_add(metric, 1);
	session_answer_error(session, WIRE_SUBSCRIBE_ERROR, frame->header.stream,
			     WIRE_REASON_SERVER, text);
}

static void subscribe_refuse_channel(struct session *session, const struct wire_frame *frame,
				     enum metric metric, const char *before, const char *after)
{
	metric_add(metric, 1);
	session_answer_channel_error(session, WIRE_SUBSCRIBE_ERROR, frame->header.stream, before,
				     frame->u.subscribe.channel, after);
}

static void subscribe_over_capacity(struct session *session, const struct wire_frame *frame)
{
	const struct conn *conn = session->conn;
	char array[128];
	struct text text = TEXT_INIT(array);

	text_add(&text,
		 "over-capacity: max_subscriptions_per_connection is %" PRIu64
		 "; unsubscribe first, or use another connection",
		 conn->limits.client.subscriptions);
	subscribe_refuse(session, frame, METRIC_SUBSCRIBES_REFUSED_LIMIT, array);
	log_client_event(LOG_LEVEL_WARNING, "subscribe refused", LOG_U64("conn", conn->id),
			 LOG_STR("peer", conn->peer),
			 LOG_STR("reason", "max_subscriptions_per_connection"));
}

/* Letters, digits and `._-`, as many as have a place in the store. Empty: a reader. */
static bool consumer_is_valid(struct span name)
{
	for (size_t i = 0; i < name.length; i++) {
		char c = (char)name.data[i];

		if (!(c >= 'A' && c <= 'Z') && !(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') &&
		    c != '.' && c != '_' && c != '-')
			return false;
	}
	return name.length <= CONSUMER_NAME_MAX;
}

/* CHANNEL is a durable one, and fits. The committer answers, unless it is refused here. */
static void subscribe_durable(struct session *session, struct channel *channel,
			      const struct wire_frame *frame)
{
	struct broker_durable_subscribe subscribe = {
		.stream = frame->header.stream,
		.max_in_flight = frame->u.subscribe.max_in_flight,
		.consumer = frame->u.subscribe.consumer,
		.start = frame->u.subscribe.start,
		.value = frame->u.subscribe.value,
	};
	const char *refused;

	if (subscribe.start > START_MAX)
		refused = "the start must be 0 (new), 1 (all), 2 (sequence) or 3 (time)";
	else if (!consumer_is_valid(subscribe.consumer))
		refused = "the consumer's name must be 1 to 255 bytes of A-Z a-z 0-9 . _ -";
	else if (!session_end_run(session))
		return;
	else
		refused = broker_subscribe_durable(session->conn->client, channel, &subscribe);
	if (refused != NULL)
		subscribe_refuse(session, frame, METRIC_SUBSCRIBES_REFUSED_DURABLE, refused);
}

static void handle_subscribe(struct session *session, const struct wire_frame *frame,
			     struct buf *buf)
{
	struct conn *conn = session->conn;
	struct channel *channel = broker_channel(conn->net->broker, frame->u.subscribe.channel);

	(void)buf;
	if (channel == NULL) {
		subscribe_refuse_channel(session, frame, METRIC_SUBSCRIBES_REFUSED_CHANNEL,
					 "channel '", "' is not configured");
		return;
	}
	if (frame->u.subscribe.durable && !broker_has_store(conn->net->broker)) {
		subscribe_refuse(session, frame, METRIC_SUBSCRIBES_REFUSED_DURABLE,
				 "not durable: this server has no state_dir; subscribe without "
				 "flag 0x80");
		return;
	}
	if (frame->u.subscribe.durable && !broker_channel_is_durable(channel)) {
		subscribe_refuse_channel(session, frame, METRIC_SUBSCRIBES_REFUSED_DURABLE,
					 "not durable: channel '",
					 "' keeps no messages; subscribe without flag 0x80");
		return;
	}
	if (!schema_is_accepted(&frame->u.subscribe.schemas, broker_channel_schema(channel))) {
		subscribe_refuse_channel(session, frame, METRIC_SUBSCRIBES_REFUSED_SCHEMA,
					 "schema incompatible: channel '",
					 "' has a schema that is not among the accepted ones");
		return;
	}
	if (frame->u.subscribe.durable) {
		subscribe_durable(session, channel, frame);
		return;
	}
	if (!session_settle(session))
		return;
	if (broker_client_durable_stream(conn->client, frame->header.stream)) {
		subscribe_refuse(session, frame, METRIC_SUBSCRIBES_REFUSED_DURABLE,
				 "the stream carries a durable subscription; use another stream");
		return;
	}
	switch (broker_subscribe(conn->client, channel, frame->header.stream,
				 frame->u.subscribe.max_in_flight, &session->set)) {
	case BROKER_SUBSCRIBED:
		break;
	case BROKER_SUBSCRIBE_OVER_CAPACITY:
		subscribe_over_capacity(session, frame);
		break;
	case BROKER_SUBSCRIBE_NO_MEMORY:
		subscribe_refuse(session, frame, METRIC_SUBSCRIBES_REFUSED_MEMORY,
				 "the server is out of memory for a subscription");
		break;
	}
}

static void handle_unsubscribe(struct session *session, const struct wire_frame *frame,
			       struct buf *buf)
{
	(void)buf;
	if (session_end_run(session))
		broker_unsubscribe(session->conn->client, frame->u.unsubscribe.subscription);
}

/* --- the connection itself ----------------------------------------------------------------- */

/* Takes the same time whatever the token is. */
static bool token_is_right(const char *expected, struct span token)
{
	size_t length = strlen(expected);
	unsigned difference = token.length != length;

	for (size_t i = 0; i < token.length; i++)
		difference |=
			(unsigned)(token.data[i] ^ (uint8_t)expected[length == 0 ? 0 : i % length]);
	return difference == 0;
}

static bool version_choose(struct wire_version min, struct wire_version max,
			   struct wire_version *chosen)
{
	static const struct wire_version supported[] = {{1, 2}, {1, 1}, {1, 0}};

	for (size_t i = 0; i < ARRAY_LENGTH(supported); i++) {
		if (wire_version_compare(min, supported[i]) <= 0 &&
		    wire_version_compare(supported[i], max) <= 0) {
			*chosen = supported[i];
			return true;
		}
	}
	return false;
}

static void handle_connect(struct session *session, const struct wire_frame *frame, struct buf *buf)
{
	struct conn *conn = session->conn;
	struct wire_frame ack = {.header = {.type = WIRE_CONNECT_ACK}};
	struct wire_version version;

	(void)buf;
	if (!session_settle(session))
		return;
	if (conn->token != NULL && !token_is_right(conn->token, frame->u.connect.token)) {
		metric_add(METRIC_REFUSED_TOKEN, 1);
		session_wait_committed(session);
		session_answer_error(session, WIRE_CONNECT_ERROR, 0, WIRE_REASON_AUTHENTICATION,
				     "connection authentication token rejected");
		session->end = CLOSE_TOKEN;
		return;
	}
	if (!version_choose(frame->u.connect.min, frame->u.connect.max, &version)) {
		metric_add(METRIC_REFUSED_VERSION, 1);
		session_answer_error(session, WIRE_CONNECT_ERROR, 0, WIRE_REASON_VERSION,
				     "no mutually supported protocol version");
		return;
	}
	session->authenticated = true;
	session->said_hello = true;
	ack.u.connect_ack.version = version;
	ack.u.connect_ack.capabilities =
		broker_has_store(conn->net->broker) ? WIRE_CAPABILITY_DURABLE : 0;
	mutex_lock(&conn->outbox.lock);
	outbox_add_last_frame_locked(conn, &ack);
	conn->outbox.version = version;
	mutex_unlock(&conn->outbox.lock);
}

static void handle_ping(struct session *session, const struct wire_frame *frame, struct buf *buf)
{
	(void)frame;
	(void)buf;
	if (session_end_run(session))
		answers_add_frame(session->conn,
				  &(struct wire_frame){.header = {.type = WIRE_PONG}});
}

static void handle_disconnect(struct session *session, const struct wire_frame *frame,
			      struct buf *buf)
{
	(void)frame;
	(void)buf;
	session->end = CLOSE_DISCONNECT;
}

/* A consumer's answer to a delivery. What it has published before is queued before. */
static void handle_answer(struct session *session, const struct wire_frame *frame, struct buf *buf)
{
	static const enum answer_kind kinds[] = {
		[WIRE_ACCEPT] = ANSWER_ACCEPT,
		[WIRE_DEFER] = ANSWER_DEFER,
		[WIRE_REJECT] = ANSWER_REJECT,
	};
	struct conn *conn = session->conn;

	(void)buf;
	if (!session->authenticated || !broker_has_store(conn->net->broker)) {
		metric_add(METRIC_FRAMES_SKIPPED, 1);
		return;
	}
	if (session_end_run(session))
		broker_answer(conn->client, frame->header.stream, kinds[frame->header.type],
			      frame->u.answer.message,
			      (frame->header.flags & WIRE_ANSWER_WORKING) != 0,
			      (frame->header.flags & WIRE_ANSWER_CONFIRM) != 0,
			      frame->u.answer.reason.text, &session->set);
}

/* --- conversations and workers ------------------------------------------------------------- */

static void handle_conversation_open(struct session *session, const struct wire_frame *frame,
				     struct buf *buf)
{
	(void)buf;
	broker_conversation_open(session->conn->client, frame->header.stream,
				 frame->u.conversation_open.conversation,
				 frame->u.conversation_open.subject, &session->set);
}

/*
 * BUF, where it may stand for PAYLOAD: what is kept by reference is charged as the payload, so the
 * buffer must not hold much besides (a causal context may have any size).
 */
static struct buf *buf_of_payload(struct buf *buf, struct span payload)
{
	return buf != NULL && buf->length - payload.length <= READ_FIRST ? buf : NULL;
}

static void handle_conversation_message(struct session *session, const struct wire_frame *frame,
					struct buf *buf)
{
	struct span payload = frame->u.conversation_message.envelope.payload;

	broker_conversation_message(session->conn->client, frame->header.stream,
				    frame->u.conversation_message.conversation,
				    (frame->header.flags & WIRE_MESSAGE_REPLY) != 0, payload,
				    buf_of_payload(buf, payload), session->read_ns, &session->set);
}

static void handle_conversation_close(struct session *session, const struct wire_frame *frame,
				      struct buf *buf)
{
	(void)buf;
	broker_conversation_close(session->conn->client, frame->u.conversation_close.conversation,
				  &session->set);
}

static void register_reject(struct session *session, const char *reason)
{
	if (!session_settle(session))
		return;
	mutex_lock(&session->conn->outbox.lock);
	outbox_add_last_frame_locked(
		session->conn,
		&(struct wire_frame){
			.header = {.type = WIRE_WORKER_REGISTER_ACK},
			.u.worker_register_ack = {.rejected = true, .reason = span_of(reason)}});
	mutex_unlock(&session->conn->outbox.lock);
}

static void handle_worker_register(struct session *session, const struct wire_frame *frame,
				   struct buf *buf)
{
	struct broker_registration registration = {
		.queue = frame->u.worker_register.queue,
		.identity = frame->u.worker_register.identity,
		.has_node = frame->u.worker_register.node.present,
		.node = frame->u.worker_register.node.text,
		.namespaces = {frame->u.worker_register.namespaces.count,
			       frame->u.worker_register.namespaces.bytes},
		.activities = {frame->u.worker_register.activities.count,
			       frame->u.worker_register.activities.bytes},
		.leaving = (frame->header.flags & WIRE_REGISTER_LEAVING) != 0,
	};
	const char *rejected;

	(void)buf;
	if (!session_settle(session))
		return;
	rejected = broker_worker_register(session->conn->client, &registration, &session->set);
	if (rejected != NULL)
		register_reject(session, rejected);
}

static void handle_push_reply(struct session *session, const struct wire_frame *frame,
			      struct buf *buf)
{
	enum broker_push_verdict verdict = BROKER_PUSH_REPLY;
	enum refusal refusal = REFUSAL_NONE;
	struct span payload = frame->u.push.payload;
	uint8_t words[BROKER_REFUSAL_WORDS_MAX];

	if (frame->header.flags & WIRE_PUSH_REPLY_WORKING) {
		verdict = BROKER_PUSH_WORKING;
	} else if (frame->header.flags & WIRE_PUSH_REPLY_REFUSED) {
		verdict = BROKER_PUSH_REFUSED;
		if (!refusal_parse(frame->u.push.payload, &refusal, &payload, words)) {
			refusal = REFUSAL_NONE;
			payload = SPAN_LITERAL("worker-failed: the worker refused, but not with a "
					       "JSON object of code and words");
		}
	}
	/* Words of a refusal are not in the buffer. */
	broker_push_reply(session->conn->client, frame->u.push.correlation, verdict, refusal,
			  payload, verdict == BROKER_PUSH_REPLY ? buf : NULL, session->read_ns,
			  &session->set);
}

/* --- the table ----------------------------------------------------------------------------- */

typedef void frame_handler(struct session *session, const struct wire_frame *frame,
			   struct buf *buf);

static const struct {
	frame_handler *handle;	/* NULL: the server sends these */
	uint8_t error_type;	/* of the family */
	uint32_t lowest_stream; /* of errors of the family */
	bool without_hello;	/* allowed before a Connect where a token is asked for */
} frames[WIRE_TYPE_END] = {
	[WIRE_CONNECT] = {handle_connect, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_CONNECT_ACK] = {NULL, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_CONNECT_ERROR] = {NULL, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_DISCONNECT] = {handle_disconnect, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_SUBSCRIBE] = {handle_subscribe, WIRE_SUBSCRIBE_ERROR, 1, false},
	[WIRE_SUBSCRIBE_ACK] = {NULL, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_SUBSCRIBE_ERROR] = {NULL, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_UNSUBSCRIBE] = {handle_unsubscribe, WIRE_SUBSCRIBE_ERROR, 1, false},
	[WIRE_PUBLISH] = {handle_publish, WIRE_PUBLISH_ERROR, 1, false},
	[WIRE_PUBLISH_ACK] = {NULL, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_PUBLISH_ERROR] = {NULL, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_CONVERSATION_OPEN] = {handle_conversation_open, WIRE_CONVERSATION_ERROR, 1, false},
	[WIRE_CONVERSATION_MESSAGE] = {handle_conversation_message, WIRE_CONVERSATION_ERROR, 1,
				       false},
	[WIRE_CONVERSATION_CLOSE] = {handle_conversation_close, WIRE_CONVERSATION_ERROR, 1, false},
	[WIRE_CONVERSATION_ERROR] = {NULL, WIRE_CONVERSATION_ERROR, 1, true},
	[WIRE_ACCEPT] = {handle_answer, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_DEFER] = {handle_answer, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_REJECT] = {handle_answer, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_PING] = {handle_ping, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_PONG] = {NULL, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_PUSH] = {NULL, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_PUSH_REPLY] = {handle_push_reply, WIRE_CONNECT_ERROR, 0, false},
	[WIRE_WORKER_REGISTER] = {handle_worker_register, WIRE_CONNECT_ERROR, 0, false},
	[WIRE_WORKER_REGISTER_ACK] = {NULL, WIRE_CONNECT_ERROR, 0, true},
	[WIRE_DELIVER] = {NULL, WIRE_CONNECT_ERROR, 0, true},
};

bool session_may_skip_hello(uint8_t type)
{
	ASSERT(type < WIRE_TYPE_END);
	return frames[type].without_hello;
}

void session_unauthenticated(struct session *session)
{
	metric_add(METRIC_REFUSED_UNAUTHENTICATED, 1);
	session_answer_error(session, WIRE_CONNECT_ERROR, 0, WIRE_REASON_AUTHENTICATION,
			     "a Connect with the right token must come first");
	session->end = CLOSE_UNAUTHENTICATED;
}

void session_malformed(struct session *session, struct wire_header header, const uint8_t *payload,
		       size_t available, uint16_t code, const char *why, enum close_reason reason)
{
	uint8_t type = frames[header.type].error_type;
	uint32_t stream = frames[header.type].lowest_stream;
	char array[256];
	struct text text = TEXT_INIT(array);

	if (!session_end_run(session))
		return;
	/* All that is due comes before it, confirmations too; and behind it no Deliver. */
	broker_client_end_subscriptions(session->conn->client);
	session_wait_committed(session);
	text_add(&text, "%s frame: %s", wire_type_name(header.type), why);
	if (stream > 0 && header.stream > 0)
		stream = header.stream;
	if (type == WIRE_CONVERSATION_ERROR && available >= 8)
		session_answer_conversation_error(session, stream, wire_get_u64(payload), code,
						  array);
	else if (type == WIRE_CONVERSATION_ERROR)
		session_answer_error(session, WIRE_CONNECT_ERROR, 0, code, array);
	else
		session_answer_error(session, type, stream, code, array);
	session->end = reason;
	log_client_event(LOG_LEVEL_WARNING, "bad frame", LOG_U64("conn", session->conn->id),
			 LOG_STR("peer", session->conn->peer), LOG_U64("stream", header.stream),
			 LOG_U64("bytes", header.length), LOG_STR("reason", array));
}

/* The channel of a Publish that is too large: false while more bytes are needed to know it. */
static bool large_publish_channel(const uint8_t *payload, size_t available, struct span *channel)
{
	uint32_t length;

	*channel = (struct span){0};
	if (available < 4)
		return false;
	length = wire_get_u32(payload);
	if (length > 255) /* no channel has such a name */
		return true;
	if (available - 4 < length)
		return false;
	*channel = (struct span){payload + 4, length};
	return true;
}

bool session_refuse_large(struct session *session, struct wire_header header,
			  const uint8_t *payload, size_t available)
{
	uint64_t limit = session->conn->limits.max_frame_size;
	char array[160];
	struct text text = TEXT_INIT(array);
	struct span channel;

	text_add(&text, "the frame has %" PRIu64 " bytes, and max_frame_size is %" PRIu64,
		 WIRE_HEADER_SIZE + (uint64_t)header.length, limit);
	switch (header.type) {
	case WIRE_PUBLISH:
		if (!large_publish_channel(payload, available, &channel))
			return false;
		publish_refuse(session, header.stream, channel, METRIC_PUBLISHES_REFUSED_SIZE,
			       WIRE_REASON_CODEC, array);
		break;
	case WIRE_SUBSCRIBE:
		metric_add(METRIC_SUBSCRIBES_REFUSED_SIZE, 1);
		session_answer_error(session, WIRE_SUBSCRIBE_ERROR, header.stream,
				     WIRE_REASON_CODEC, array);
		break;
	case WIRE_CONVERSATION_MESSAGE:
		if (available < 8)
			return false;
		metric_add(METRIC_ERROR_FRAME_SIZE, 1);
		session_answer_conversation_error(session, header.stream, wire_get_u64(payload),
						  WIRE_REASON_CODEC, array);
		break;
	default:
		ASSERT(header.type == WIRE_WORKER_REGISTER);
		metric_add(METRIC_REGISTRATIONS_REJECTED, 1);
		register_reject(session, "too large: a WorkerRegister may have 65536 bytes");
		break;
	}
	log_client_event(LOG_LEVEL_WARNING, "frame too large", LOG_U64("conn", session->conn->id),
			 LOG_STR("peer", session->conn->peer),
			 LOG_STR("type", wire_type_name(header.type)),
			 LOG_U64("bytes", WIRE_HEADER_SIZE + (uint64_t)header.length));
	return true;
}

void session_dispatch(struct session *session, struct wire_header header, const uint8_t *payload,
		      struct buf *buf)
{
	struct wire_frame frame;
	const char *why;

	/* What clients send is the same in every version. */
	if (wire_decode_payload(header, payload, WIRE_VERSION_1_2, &frame, &why) != WIRE_OK) {
		session_malformed(session, header, payload, header.length, WIRE_REASON_CODEC, why,
				  CLOSE_MALFORMED);
		return;
	}
	frames[header.type].handle(session, &frame, buf);
}

void session_flush(struct session *session)
{
	outbox_flush(session->conn, NULL);
	flush_set_run(&session->set);
}
