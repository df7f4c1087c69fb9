/*
 * The broker's sink, as an outbox: what it hands over becomes frames here. Called with the
 * broker's locks held; takes the outbox's lock, once per run.
 */
#include "net/net_priv.h"

#include <string.h>

#include "base/metrics.h"

/* From this size on a run is made once for all that receive it. */
#define SHARED_RUN_MIN 4096

static void conn_note_stall_locked(struct conn *conn, const struct delivery *delivery)
{
	struct outbox *outbox = &conn->outbox;

	if (outbox->stalled)
		return;
	outbox->stalled = true;
	outbox->stall_channel = delivery->channel;
	outbox->stall_bytes = atomic_load_explicit(&outbox->bytes, memory_order_relaxed);
	outbox->stall_frames = atomic_load_explicit(&outbox->frames, memory_order_relaxed);
	outbox->stall_drops = delivery->drop;
	metric_add(METRIC_OUTBOX_STALLS, 1);
}

static void put_origin(uint8_t *bytes, const struct delivery *delivery,
		       const struct message *message)
{
	wire_put_u64(bytes, delivery->boot);
	wire_put_u64(bytes + 8, message->id);
}

/* The first COUNT messages of RUN side by side at BYTES. */
static void put_deliveries(uint8_t *bytes, const struct delivery *delivery,
			   const struct message *run, size_t count, bool origin)
{
	uint8_t head[WIRE_DELIVER_HEAD]; /* most are alike but for the sequence */
	size_t last = 0;

	for (size_t i = 0; i < count; i++) {
		size_t envelope = run[i].envelope.length;

		if (i == 0 || envelope != last)
			wire_put_deliver_head(head, 0, delivery->stream, 0, (uint32_t)envelope,
					      origin);
		last = envelope;
		memcpy(bytes, head, WIRE_DELIVER_HEAD);
		wire_set_deliver(bytes, delivery->stream, delivery->sequence + i);
		bytes += WIRE_DELIVER_HEAD;
		memcpy(bytes, run[i].envelope.data, envelope);
		bytes += envelope;
		if (origin) {
			put_origin(bytes, delivery, &run[i]);
			bytes += WIRE_DELIVER_TAIL;
		}
	}
}

/* HINT: the size of what is expected to follow in the same run. */
static void conn_deliver_one_locked(struct conn *conn, const struct delivery *delivery,
				    const struct message *message, bool origin, size_t hint)
{
	size_t envelope = message->envelope.length;
	size_t tail = origin ? WIRE_DELIVER_TAIL : 0;
	bool by_reference = message->buf != NULL && envelope >= REFERENCE_MIN;
	size_t own = WIRE_DELIVER_HEAD + (by_reference ? 0 : envelope + tail);
	uint8_t *bytes = outbox_add_locked(conn, own, 1, hint);

	if (bytes == NULL)
		return;
	if (!by_reference) {
		put_deliveries(bytes, delivery, message, 1, origin);
		return;
	}
	wire_put_deliver_head(bytes, 0, delivery->stream, delivery->sequence, (uint32_t)envelope,
			      origin);
	if (!outbox_add_buf_locked(conn, message->buf, message->envelope) || !origin)
		return;
	bytes = outbox_continue_locked(conn, WIRE_DELIVER_TAIL);
	if (bytes != NULL)
		put_origin(bytes, delivery, message);
}

static uint8_t publish_ack_flags(const struct message *message)
{
	return (uint8_t)((message->duplicate ? WIRE_PUBLISH_ACK_DUPLICATE : 0) |
			 (message->delivered ? WIRE_PUBLISH_ACK_DELIVERED : 0));
}

static struct wire_frame publish_error(const struct message *message)
{
	return (struct wire_frame){
		.header = {.type = WIRE_PUBLISH_ERROR, .stream = message->stream},
		.u.error = {.code = WIRE_REASON_SERVER, .text = {true, span_of(message->refused)}}};
}

size_t publish_answer_size(const struct message *message, bool position)
{
	if (message->refused != NULL) {
		struct wire_frame error = publish_error(message);

		return wire_encode(&error, NULL, 0);
	}
	return position ? WIRE_PUBLISH_ACK_POSITION_SIZE : WIRE_PUBLISH_ACK_SIZE;
}

void put_publish_answer(uint8_t *bytes, size_t size, const struct message *message, bool position)
{
	uint8_t flags = publish_ack_flags(message);

	if (message->refused != NULL) {
		struct wire_frame error = publish_error(message);

		(void)wire_encode(&error, bytes, size);
	} else if (position) {
		wire_put_publish_ack_position(bytes, flags, message->stream, message->id,
					      message->sequence);
	} else {
		wire_put_publish_ack(bytes, flags, message->stream, message->id);
	}
}

static void conn_answer_one_locked(struct conn *conn, const struct message *message, bool position)
{
	size_t size = publish_answer_size(message, position);
	uint8_t *bytes = outbox_add_locked(conn, size, 1, 0);

	if (bytes != NULL)
		put_publish_answer(bytes, size, message, position);
}

/* What is queued may have room made for it by the socket before anything is refused. */
static enum sink_result conn_fits_locked(struct conn *conn, size_t size)
{
	enum sink_result result = outbox_fits_locked(conn, size);

	if (result == SINK_FULL_BYTES || result == SINK_FULL_FRAMES) {
		outbox_offer_locked(conn);
		result = outbox_fits_locked(conn, size);
	}
	return result;
}

static void conn_deliver_run_locked(struct conn *conn, struct delivery *delivery,
				    struct message *run, size_t count)
{
	bool origin = wire_version_compare(conn->outbox.version, WIRE_VERSION_1_2) >= 0;
	size_t overhead = WIRE_DELIVER_HEAD + (origin ? WIRE_DELIVER_TAIL : 0);
	bool answer = delivery->answer && !delivery->quiet;
	bool position = delivery->place != NULL &&
			wire_version_compare(conn->outbox.version, WIRE_VERSION_1_1) >= 0;
	bool ended = false;

	if (delivery->place != NULL && answers_place_count(delivery->place) == 0)
		answer = false;

	for (size_t i = 0; i < count; i++) {
		struct message *message = &run[i];
		size_t size = overhead + message->envelope.length;
		bool due = message->refused == NULL && !message->duplicate && !ended;
		bool fits = false;

		if (due) {
			size_t room = size + (answer ? publish_answer_size(message, position) : 0);
			enum sink_result result = conn_fits_locked(conn, room);

			fits = result == SINK_OK;
			if (result == SINK_FULL_BYTES || result == SINK_FULL_FRAMES) {
				conn_note_stall_locked(conn, delivery);
				delivery->overflow = true;
				ended = !delivery->drop;
			}
			message->delivered |= fits;
		}
		if (answer)
			conn_answer_one_locked(conn, message, position);
		if (fits) {
			conn_deliver_one_locked(conn, delivery, message, origin,
						size * (count - i - 1));
			delivery->sequence++;
			delivery->accepted++;
		} else if (due && delivery->overflow && delivery->drop) {
			delivery->sequence++;
			delivery->dropped++;
		}
	}
}

/* The whole run as it stands in a buffer for all that get it in the same form; NULL: no memory. */
static struct buf *shared_run(const struct delivery *delivery, const struct message *run,
			      size_t count, bool origin, size_t size)
{
	struct buf **shared = &delivery->shared[origin];

	if (*shared != NULL)
		return *shared;
	*shared = buf_new(size);
	if (*shared != NULL)
		put_deliveries((*shared)->data, delivery, run, count, origin);
	return *shared;
}

/*
 * The common case, at once instead of message by message: everything is to be delivered, by copy,
 * and fits. False when that is not so; nothing was done then.
 */
static bool conn_deliver_plain_locked(struct conn *conn, struct delivery *delivery,
				      const struct message *run, size_t count)
{
	bool origin = wire_version_compare(conn->outbox.version, WIRE_VERSION_1_2) >= 0;
	size_t overhead = WIRE_DELIVER_HEAD + (origin ? WIRE_DELIVER_TAIL : 0);
	size_t left = delivery->envelope_bytes + count * overhead;
	struct buf *shared;
	uint8_t *bytes;

	if (!delivery->plain || delivery->answer || !outbox_fits_all_locked(conn, count, left))
		return false;
	shared = left >= SHARED_RUN_MIN ? shared_run(delivery, run, count, origin, left) : NULL;
	if (shared != NULL) {
		if (!outbox_add_run_locked(conn, shared, count, delivery->stream,
					   delivery->sequence))
			return true; /* the connection is lost */
		delivery->sequence += count;
		delivery->accepted = count;
		return true;
	}
	bytes = outbox_add_locked(conn, left, count, 0);
	if (bytes == NULL)
		return true;
	put_deliveries(bytes, delivery, run, count, origin);
	delivery->sequence += count;
	delivery->accepted = count;
	return true;
}

static void conn_deliver(struct sink *sink, struct delivery *delivery, struct message *run,
			 size_t count, struct flush_set *set)
{
	struct conn *conn = conn_of_sink(sink);

	mutex_lock(&conn->outbox.lock);
	if (!conn_deliver_plain_locked(conn, delivery, run, count))
		conn_deliver_run_locked(conn, delivery, run, count);
	if (delivery->place != NULL) {
		answers_observe(delivery->place);
		answers_pass_locked(conn, &delivery->place);
	}
	outbox_touch_locked(conn, set);
	mutex_unlock(&conn->outbox.lock);
}

/* Acknowledgements of the messages from FIRST on, up to one that was refused. Where it ends. */
static size_t conn_acknowledge_locked(struct conn *conn, const struct message *run, size_t first,
				      size_t count)
{
	size_t size, i = first;
	uint8_t *bytes = outbox_stretch_locked(conn, WIRE_PUBLISH_ACK_SIZE,
					       (count - first) * WIRE_PUBLISH_ACK_SIZE, &size);

	if (bytes == NULL)
		return count; /* the connection is lost */
	for (; i < count && run[i].refused == NULL && size >= WIRE_PUBLISH_ACK_SIZE; i++) {
		wire_put_publish_ack(bytes, publish_ack_flags(&run[i]), run[i].stream, run[i].id);
		bytes += WIRE_PUBLISH_ACK_SIZE;
		size -= WIRE_PUBLISH_ACK_SIZE;
	}
	outbox_added_locked(conn, (i - first) * WIRE_PUBLISH_ACK_SIZE, i - first);
	return i;
}

void conn_answer_publishes(struct conn *conn, const struct message *run, size_t count)
{
	size_t i = 0;

	mutex_lock(&conn->outbox.lock);
	while (i < count) {
		if (run[i].refused != NULL)
			conn_answer_one_locked(conn, &run[i++], false);
		else
			i = conn_acknowledge_locked(conn, run, i, count);
	}
	mutex_unlock(&conn->outbox.lock);
}

static void conn_add_frame(struct sink *sink, const struct wire_frame *frame, bool ends_write,
			   struct flush_set *set)
{
	struct conn *conn = conn_of_sink(sink);

	mutex_lock(&conn->outbox.lock);
	if (ends_write)
		outbox_add_last_frame_locked(conn, frame);
	else
		outbox_add_frame_locked(conn, frame);
	outbox_touch_locked(conn, set);
	mutex_unlock(&conn->outbox.lock);
}

static void conn_subscribed(struct sink *sink, uint32_t stream, uint64_t subscription,
			    const uint8_t *schema_id, struct flush_set *set)
{
	conn_add_frame(
		sink,
		&(struct wire_frame){
			.header = {.type = WIRE_SUBSCRIBE_ACK, .stream = stream},
			.u.subscribe_ack = {.subscription = subscription, .schema = schema_id}},
		false, set);
}

void conn_end_subscription(struct sink *sink, uint32_t stream, const char *text,
			   struct flush_set *set)
{
	conn_add_frame(
		sink,
		&(struct wire_frame){
			.header = {.type = WIRE_SUBSCRIBE_ERROR, .stream = stream},
			.u.error = {.code = WIRE_REASON_SERVER, .text = {true, span_of(text)}}},
		false, set);
}

static void conn_registered(struct sink *sink, struct flush_set *set)
{
	conn_add_frame(sink, &(struct wire_frame){.header = {.type = WIRE_WORKER_REGISTER_ACK}},
		       true, set);
}

static void conn_conversation_error(struct sink *sink, uint32_t stream, uint64_t conversation,
				    enum refusal refusal, struct span text, struct flush_set *set)
{
	static const uint16_t codes[] = {
		[REFUSAL_NONE] = WIRE_REASON_SERVER,
		[REFUSAL_BUSY] = WIRE_REASON_WORKER_BUSY,
		[REFUSAL_INVALID] = WIRE_REASON_WORKER_INVALID,
		[REFUSAL_UNAVAILABLE] = WIRE_REASON_WORKER_UNAVAILABLE,
		[REFUSAL_INTERNAL] = WIRE_REASON_WORKER_INTERNAL,
	};

	conn_add_frame(
		sink,
		&(struct wire_frame){.header = {.type = WIRE_CONVERSATION_ERROR, .stream = stream},
				     .u.conversation_error = {.conversation = conversation,
							      .code = codes[refusal],
							      .text = {true, text}}},
		false, set);
}

/* Header, conversation id and the envelope's length stand before the envelope. */
#define REPLY_HEAD (WIRE_HEADER_SIZE + 8 + 4 + WIRE_REPLY_ENVELOPE_HEAD)

static void conn_reply(struct sink *sink, uint32_t stream, uint64_t conversation,
		       struct span payload, struct buf *buf, struct flush_set *set)
{
	struct conn *conn = conn_of_sink(sink);
	size_t envelope = WIRE_REPLY_ENVELOPE_HEAD + payload.length;
	bool by_reference = buf != NULL && payload.length >= REFERENCE_MIN;
	uint8_t *bytes;

	mutex_lock(&conn->outbox.lock);
	bytes = outbox_add_locked(conn, REPLY_HEAD + (by_reference ? 0 : payload.length), 1, 0);
	if (bytes != NULL) {
		wire_put_header(bytes, WIRE_CONVERSATION_MESSAGE, WIRE_MESSAGE_REPLY, stream,
				(uint32_t)(12 + envelope));
		wire_put_u64(bytes + WIRE_HEADER_SIZE, conversation);
		wire_put_u32(bytes + WIRE_HEADER_SIZE + 8, (uint32_t)envelope);
		wire_put_reply_envelope_head(bytes + WIRE_HEADER_SIZE + 12,
					     (uint32_t)payload.length);
		if (by_reference)
			(void)outbox_add_buf_locked(conn, buf, payload);
		else if (payload.length > 0)
			memcpy(bytes + REPLY_HEAD, payload.data, payload.length);
	}
	outbox_touch_locked(conn, set);
	mutex_unlock(&conn->outbox.lock);
}

/* Header, correlation id and the payload's length stand before the payload. */
#define PUSH_HEAD (WIRE_HEADER_SIZE + 8 + 4)

static enum sink_result conn_push(struct sink *sink, uint64_t correlation, struct span payload,
				  struct buf *buf, struct flush_set *set)
{
	struct conn *conn = conn_of_sink(sink);
	bool by_reference = buf != NULL && payload.length >= REFERENCE_MIN;
	enum sink_result result;
	uint8_t *bytes;

	mutex_lock(&conn->outbox.lock);
	result = conn_fits_locked(conn, PUSH_HEAD + payload.length);
	if (result == SINK_OK) {
		bytes = outbox_add_locked(conn, PUSH_HEAD + (by_reference ? 0 : payload.length), 1,
					  0);
		if (bytes == NULL) {
			result = SINK_DEAD;
		} else {
			wire_put_header(bytes, WIRE_PUSH, 0, 1, (uint32_t)(12 + payload.length));
			wire_put_u64(bytes + WIRE_HEADER_SIZE, correlation);
			wire_put_u32(bytes + WIRE_HEADER_SIZE + 8, (uint32_t)payload.length);
			if (by_reference)
				(void)outbox_add_buf_locked(conn, buf, payload);
			else if (payload.length > 0)
				memcpy(bytes + PUSH_HEAD, payload.data, payload.length);
			outbox_touch_locked(conn, set);
		}
	}
	mutex_unlock(&conn->outbox.lock);
	return result;
}

static void conn_load(struct sink *sink, bool offer, struct sink_load *load)
{
	outbox_load(conn_of_sink(sink), offer, load);
}

static void conn_hold(struct sink *sink)
{
	conn_ref(conn_of_sink(sink));
}

static void conn_release(struct sink *sink)
{
	struct conn *conn = conn_of_sink(sink);

	conn_unref(&conn);
}

static void conn_flush(struct sink *sink, struct flush_set *set)
{
	outbox_flush(conn_of_sink(sink), set);
}

static void conn_flush_elsewhere(struct sink *sink, struct flush_set *set)
{
	outbox_hand_over(conn_of_sink(sink), set);
}

/* OUTBOX is held: the sink is being added to a set. */
static void conn_flush_later(struct sink *sink)
{
	struct conn *conn = conn_of_sink(sink);

	if (conn->outbox.writing || conn->outbox.closed)
		return;
	conn->outbox.writing = true;
	flusher_take(conn);
}

const struct sink_ops conn_sink_ops = {
	.deliver = conn_deliver,
	.subscribed = conn_subscribed,
	.shed = conn_end_subscription,
	.registered = conn_registered,
	.conversation_error = conn_conversation_error,
	.reply = conn_reply,
	.push = conn_push,
	.place = conn_place,
	.fill_publishes = conn_fill_publishes,
	.fill_subscribe = conn_fill_subscribe,
	.deliver_stored = conn_deliver_stored,
	.unsubscribed = conn_end_subscription,
	.owe_confirmation = conn_owe_confirmation,
	.confirm = conn_confirm,
	.load = conn_load,
	.hold = conn_hold,
	.release = conn_release,
	.flush = conn_flush,
	.flush_later = conn_flush_later,
	.flush_elsewhere = conn_flush_elsewhere,
};
