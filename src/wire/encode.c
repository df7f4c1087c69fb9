/*
 * Frames as bytes. A writer counts every byte but stores only what fits, so that measuring and
 * writing are the same code and a frame that does not fit is never written past its array.
 */
#include "wire/wire.h"

#include <string.h>

struct writer {
	uint8_t *bytes;
	size_t size;
	size_t length; /* what the whole would take; SIZE_MAX where that does not fit */
};

static void writer_add(struct writer *writer, const void *bytes, size_t length)
{
	if (length > 0 && writer->length <= writer->size && length <= writer->size - writer->length)
		memcpy(writer->bytes + writer->length, bytes, length);
	writer->length = size_add(writer->length, length);
}

static void writer_u8(struct writer *writer, uint8_t value)
{
	writer_add(writer, &value, 1);
}

static void writer_u16(struct writer *writer, uint16_t value)
{
	uint8_t bytes[2];

	wire_put_u16(bytes, value);
	writer_add(writer, bytes, sizeof(bytes));
}

static void writer_u32(struct writer *writer, uint32_t value)
{
	uint8_t bytes[4];

	wire_put_u32(bytes, value);
	writer_add(writer, bytes, sizeof(bytes));
}

static void writer_u64(struct writer *writer, uint64_t value)
{
	uint8_t bytes[8];

	wire_put_u64(bytes, value);
	writer_add(writer, bytes, sizeof(bytes));
}

static void writer_version(struct writer *writer, struct wire_version version)
{
	writer_u16(writer, version.major);
	writer_u16(writer, version.minor);
}

/* The length of a field. One that it cannot say is too long for the payload's length as well. */
static void writer_length(struct writer *writer, size_t length)
{
	writer_u32(writer, (uint32_t)length);
}

static void writer_bytes(struct writer *writer, struct span bytes)
{
	writer_length(writer, bytes.length);
	writer_add(writer, bytes.data, bytes.length);
}

static void writer_opt_string(struct writer *writer, const struct wire_opt_string *text)
{
	writer_u8(writer, text->present);
	if (text->present)
		writer_bytes(writer, text->text);
}

static void writer_list(struct writer *writer, const struct wire_list *list)
{
	writer_u32(writer, list->count);
	writer_add(writer, list->bytes.data, list->bytes.length);
}

static void writer_envelope(struct writer *writer, const struct wire_envelope *envelope)
{
	writer_length(writer, WIRE_SCHEMA_SIZE + 4 + envelope->context.length + 4 +
				      envelope->payload.length);
	writer_add(writer, envelope->schema, WIRE_SCHEMA_SIZE);
	writer_bytes(writer, envelope->context);
	writer_bytes(writer, envelope->payload);
}

static void encode_connect(struct writer *writer, const struct wire_frame *frame)
{
	writer_version(writer, frame->u.connect.min);
	writer_version(writer, frame->u.connect.max);
	writer_bytes(writer, frame->u.connect.token);
}

static void encode_connect_ack(struct writer *writer, const struct wire_frame *frame)
{
	writer_version(writer, frame->u.connect_ack.version);
	writer_u32(writer, frame->u.connect_ack.capabilities);
}

static void encode_error(struct writer *writer, const struct wire_frame *frame)
{
	writer_u16(writer, frame->u.error.code);
	writer_opt_string(writer, &frame->u.error.text);
}

static void encode_empty(struct writer *writer, const struct wire_frame *frame)
{
	(void)writer;
	(void)frame;
}

static void encode_subscribe(struct writer *writer, const struct wire_frame *frame)
{
	ASSERT(!frame->u.subscribe.durable || frame->header.flags & WIRE_SUBSCRIBE_DURABLE);
	writer_bytes(writer, frame->u.subscribe.channel);
	writer_list(writer, &frame->u.subscribe.schemas);
	writer_u32(writer, frame->u.subscribe.max_in_flight);
	if (frame->u.subscribe.durable) {
		writer_bytes(writer, frame->u.subscribe.consumer);
		writer_u8(writer, frame->u.subscribe.start);
		writer_u64(writer, frame->u.subscribe.value);
	}
}

static void encode_subscribe_ack(struct writer *writer, const struct wire_frame *frame)
{
	writer_u64(writer, frame->u.subscribe_ack.subscription);
	writer_add(writer, frame->u.subscribe_ack.schema, WIRE_SCHEMA_SIZE);
}

static void encode_unsubscribe(struct writer *writer, const struct wire_frame *frame)
{
	writer_u64(writer, frame->u.unsubscribe.subscription);
}

static void encode_publish(struct writer *writer, const struct wire_frame *frame)
{
	ASSERT(frame->u.publish.has_key == ((frame->header.flags & WIRE_PUBLISH_HAS_KEY) != 0));
	writer_bytes(writer, frame->u.publish.channel);
	writer_envelope(writer, &frame->u.publish.envelope);
	if (frame->u.publish.has_key)
		writer_bytes(writer, frame->u.publish.key);
}

/* The flag without the position is what a 1.0 peer's meaningless bit looks like. */
static void encode_publish_ack(struct writer *writer, const struct wire_frame *frame)
{
	ASSERT(!frame->u.publish_ack.has_position ||
	       frame->header.flags & WIRE_PUBLISH_ACK_POSITION);
	writer_u64(writer, frame->u.publish_ack.message);
	if (frame->u.publish_ack.has_position)
		writer_u64(writer, frame->u.publish_ack.position);
}

static void encode_conversation_open(struct writer *writer, const struct wire_frame *frame)
{
	writer_u64(writer, frame->u.conversation_open.conversation);
	writer_bytes(writer, frame->u.conversation_open.subject);
}

static void encode_conversation_message(struct writer *writer, const struct wire_frame *frame)
{
	writer_u64(writer, frame->u.conversation_message.conversation);
	writer_envelope(writer, &frame->u.conversation_message.envelope);
}

static void encode_conversation_close(struct writer *writer, const struct wire_frame *frame)
{
	writer_u64(writer, frame->u.conversation_close.conversation);
	writer_u8(writer, frame->u.conversation_close.has_code);
	if (frame->u.conversation_close.has_code)
		writer_u16(writer, frame->u.conversation_close.code);
	writer_opt_string(writer, &frame->u.conversation_close.text);
}

static void encode_conversation_error(struct writer *writer, const struct wire_frame *frame)
{
	writer_u64(writer, frame->u.conversation_error.conversation);
	writer_u16(writer, frame->u.conversation_error.code);
	writer_opt_string(writer, &frame->u.conversation_error.text);
}

static void encode_accept(struct writer *writer, const struct wire_frame *frame)
{
	writer_bytes(writer, frame->u.answer.message);
}

static void encode_answer(struct writer *writer, const struct wire_frame *frame)
{
	writer_bytes(writer, frame->u.answer.message);
	writer_opt_string(writer, &frame->u.answer.reason);
}

static void encode_push(struct writer *writer, const struct wire_frame *frame)
{
	writer_u64(writer, frame->u.push.correlation);
	writer_bytes(writer, frame->u.push.payload);
}

static void encode_worker_register(struct writer *writer, const struct wire_frame *frame)
{
	writer_list(writer, &frame->u.worker_register.namespaces);
	writer_bytes(writer, frame->u.worker_register.queue);
	writer_opt_string(writer, &frame->u.worker_register.node);
	writer_list(writer, &frame->u.worker_register.activities);
	writer_bytes(writer, frame->u.worker_register.identity);
	if (frame->u.worker_register.has_contracts)
		writer_list(writer, &frame->u.worker_register.contracts);
}

static void encode_worker_register_ack(struct writer *writer, const struct wire_frame *frame)
{
	writer_u8(writer, frame->u.worker_register_ack.rejected);
	if (frame->u.worker_register_ack.rejected)
		writer_bytes(writer, frame->u.worker_register_ack.reason);
}

/* The flag without an origin: as with the position of a PublishAck. */
static void encode_deliver(struct writer *writer, const struct wire_frame *frame)
{
	ASSERT(!frame->u.deliver.has_origin || frame->header.flags & WIRE_DELIVER_ORIGIN);
	writer_u64(writer, frame->u.deliver.sequence);
	writer_envelope(writer, &frame->u.deliver.envelope);
	if (frame->u.deliver.has_origin) {
		writer_u64(writer, frame->u.deliver.boot);
		writer_u64(writer, frame->u.deliver.message);
	}
}

typedef void encode_function(struct writer *writer, const struct wire_frame *frame);

static encode_function *const encode_functions[] = {
#define TYPE(id, name, sender, streams, codec) [WIRE_##id] = encode_##codec,
#include "wire/types.tbl"
#undef TYPE
};

size_t wire_encode(const struct wire_frame *frame, uint8_t *bytes, size_t size)
{
	struct writer writer = {.bytes = bytes, .size = size, .length = WIRE_HEADER_SIZE};
	uint64_t payload;

	ASSERT(wire_type_name(frame->header.type) != NULL);
	encode_functions[frame->header.type](&writer, frame);
	payload = writer.length - WIRE_HEADER_SIZE;
	if (writer.length == SIZE_MAX || payload > UINT32_MAX)
		return 0;
	if (size >= WIRE_HEADER_SIZE)
		wire_put_header(bytes, frame->header.type, frame->header.flags,
				frame->header.stream, (uint32_t)payload);
	return writer.length;
}

void wire_put_reply_envelope_head(uint8_t *bytes, uint32_t payload_length)
{
	memset(bytes, 0, WIRE_SCHEMA_SIZE);
	wire_put_u32(bytes + WIRE_SCHEMA_SIZE, 2);
	bytes[WIRE_SCHEMA_SIZE + 4] = 0;
	bytes[WIRE_SCHEMA_SIZE + 5] = 0;
	wire_put_u32(bytes + WIRE_SCHEMA_SIZE + 6, payload_length);
}
