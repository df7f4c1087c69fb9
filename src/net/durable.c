/*
 * The broker's sink for durable channels: places for answers that a commit decides, messages at the
 * pace at which the client takes them, confirmations. Called with the broker's locks held; takes
 * the outbox's lock, once per call.
 */
#include "net/net_priv.h"

#include <string.h>

struct sink_place *conn_place(struct sink *sink, size_t count)
{
	struct conn *conn = conn_of_sink(sink);
	struct sink_place *place;

	mutex_lock(&conn->outbox.lock);
	place = answers_place_locked(conn, count);
	mutex_unlock(&conn->outbox.lock);
	return place;
}

void conn_fill_publishes(struct sink *sink, struct sink_place *place, const struct message *run,
			 size_t count, struct flush_set *set)
{
	struct conn *conn = conn_of_sink(sink);
	size_t answers = answers_place_count(place), size = 0;
	uint8_t *bytes;
	bool position;

	ASSERT(answers == count || answers == 0);
	answers_observe(place);
	mutex_lock(&conn->outbox.lock);
	position = wire_version_compare(conn->outbox.version, WIRE_VERSION_1_1) >= 0;
	for (size_t i = 0; i < answers; i++)
		size += publish_answer_size(&run[i], position);
	bytes = answers_fill_locked(conn, &place, answers, size);
	for (size_t i = 0; i < answers && bytes != NULL; i++) {
		size = publish_answer_size(&run[i], position);
		put_publish_answer(bytes, size, &run[i], position);
		bytes += size;
	}
	outbox_touch_locked(conn, set);
	mutex_unlock(&conn->outbox.lock);
}

void conn_fill_subscribe(struct sink *sink, struct sink_place *place, uint32_t stream,
			 uint64_t subscription, const uint8_t *schema_id, const char *refused,
			 struct flush_set *set)
{
	struct conn *conn = conn_of_sink(sink);
	struct wire_frame frame = {
		.header = {.type = WIRE_SUBSCRIBE_ACK, .stream = stream},
		.u.subscribe_ack = {.subscription = subscription, .schema = schema_id}};
	uint8_t *bytes;
	size_t size;

	if (refused != NULL) {
		frame = (struct wire_frame){
			.header = {.type = WIRE_SUBSCRIBE_ERROR, .stream = stream},
			.u.error = {.code = WIRE_REASON_SERVER, .text = {true, span_of(refused)}}};
	}
	size = wire_encode(&frame, NULL, 0);
	mutex_lock(&conn->outbox.lock);
	bytes = answers_fill_locked(conn, &place, 1, size);
	if (bytes != NULL)
		(void)wire_encode(&frame, bytes, size);
	outbox_touch_locked(conn, set);
	mutex_unlock(&conn->outbox.lock);
}

/* --- messages -------------------------------------------------------------------------------- */

/* A reference holds all of the buffer, which may be one of many messages: worth it, and charged as
 * it should be, only where the envelope is most of it. */
static bool stored_is_referenced(const struct stored *message)
{
	return message->buf != NULL && message->envelope.length >= REFERENCE_MIN &&
	       message->envelope.length >= message->buf->length / 2;
}

static void put_stored_origin(uint8_t *bytes, uint64_t boot, const struct stored *message)
{
	wire_put_u64(bytes, boot);
	wire_put_u64(bytes + 8, message->id);
}

/* HINT: the size of what is likely to follow. False: the connection is lost. */
static bool conn_add_stored_locked(struct conn *conn, uint32_t stream, uint64_t boot,
				   const struct stored *message, bool origin, size_t hint)
{
	size_t envelope = message->envelope.length;
	size_t tail = origin ? WIRE_DELIVER_TAIL : 0;
	bool by_reference = stored_is_referenced(message);
	uint8_t *bytes = outbox_add_locked(
		conn, WIRE_DELIVER_HEAD + (by_reference ? 0 : envelope + tail), 1, hint);

	if (bytes == NULL)
		return false;
	wire_put_deliver_head(bytes, message->again ? WIRE_DELIVER_AGAIN : 0, stream,
			      message->sequence, (uint32_t)envelope, origin);
	bytes += WIRE_DELIVER_HEAD;
	if (by_reference) {
		if (!outbox_add_buf_locked(conn, message->buf, message->envelope))
			return false;
		bytes = origin ? outbox_continue_locked(conn, tail) : NULL;
		if (bytes != NULL)
			put_stored_origin(bytes, boot, message);
		return bytes != NULL || !origin;
	}
	memcpy(bytes, message->envelope.data, envelope);
	if (origin)
		put_stored_origin(bytes + envelope, boot, message);
	return true;
}

size_t conn_deliver_stored(struct sink *sink, uint32_t stream, uint64_t boot,
			   const struct stored *messages, size_t count, struct flush_set *set)
{
	struct conn *conn = conn_of_sink(sink);
	bool origin;
	size_t done = 0;

	mutex_lock(&conn->outbox.lock);
	origin = wire_version_compare(conn->outbox.version, WIRE_VERSION_1_2) >= 0;
	while (done < count) {
		size_t size = WIRE_DELIVER_HEAD + messages[done].envelope.length +
			      (origin ? WIRE_DELIVER_TAIL : 0);

		if (!outbox_has_paced_room_locked(conn, size) ||
		    !conn_add_stored_locked(conn, stream, boot, &messages[done], origin,
					    size * (count - done - 1)))
			break;
		done++;
	}
	outbox_touch_locked(conn, set);
	mutex_unlock(&conn->outbox.lock);
	return done;
}

/* --- confirmations --------------------------------------------------------------------------- */

void conn_owe_confirmation(struct sink *sink, size_t id_length)
{
	struct conn *conn = conn_of_sink(sink);

	mutex_lock(&conn->outbox.lock);
	answers_owe_locked(conn, id_length);
	mutex_unlock(&conn->outbox.lock);
}

void conn_confirm(struct sink *sink, const struct confirmation *confirmation, bool owed,
		  struct flush_set *set)
{
	static const uint8_t types[] = {
		[ANSWER_ACCEPT] = WIRE_ACCEPT,
		[ANSWER_DEFER] = WIRE_DEFER,
		[ANSWER_REJECT] = WIRE_REJECT,
	};
	struct conn *conn = conn_of_sink(sink);
	struct wire_frame frame = {.header = {.type = types[confirmation->kind],
					      .flags = WIRE_ANSWER_CONFIRM,
					      .stream = confirmation->stream},
				   .u.answer = {.message = confirmation->id}};

	if (confirmation->refused != NULL) {
		frame.header.type = WIRE_REJECT;
		frame.u.answer.reason =
			(struct wire_opt_string){true, span_of(confirmation->refused)};
	} else if (confirmation->working) {
		frame.header.flags |= WIRE_ANSWER_WORKING;
	}
	mutex_lock(&conn->outbox.lock);
	if (owed)
		answers_paid_locked(conn, confirmation->id.length);
	outbox_add_frame_locked(conn, &frame);
	outbox_touch_locked(conn, set);
	mutex_unlock(&conn->outbox.lock);
}
