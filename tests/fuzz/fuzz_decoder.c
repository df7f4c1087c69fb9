/*
 * The decoder on any bytes, read as a connection's stream of frames, at each version. What it calls
 * a frame must lie within the bytes, be incomplete without its last one, and be encoded back to the
 * same bytes: no two encodings mean the same, so that every frame accepted is canonical.
 */
#include "wire/wire.h"

#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

/* The frame that is looked at, whole. */
struct bounds {
	const uint8_t *bytes;
	size_t length;
};

static void check_inside(const struct bounds *bounds, const uint8_t *data, size_t length)
{
	ASSERT(data >= bounds->bytes && data <= bounds->bytes + bounds->length);
	ASSERT(length <= (size_t)(bounds->bytes + bounds->length - data));
}

static void check_text(const struct bounds *bounds, struct span text)
{
	check_inside(bounds, text.data, text.length);
	ASSERT(utf8_valid(text.data, text.length));
}

static void check_opt_text(const struct bounds *bounds, const struct wire_opt_string *text)
{
	if (text->present)
		check_text(bounds, text->text);
}

static void check_strings(const struct bounds *bounds, const struct wire_list *list,
			  uint32_t strings)
{
	struct span item;
	size_t offset = 0;
	uint64_t count = 0;

	check_inside(bounds, list->bytes.data, list->bytes.length);
	for (; wire_list_next_string(list, &offset, &item); count++)
		check_text(bounds, item);
	ASSERT(count == (uint64_t)list->count * strings);
	ASSERT(offset == list->bytes.length);
}

static void check_schemas(const struct bounds *bounds, const struct wire_list *list)
{
	const uint8_t *schema;
	size_t offset = 0;
	uint32_t count = 0;

	for (; wire_list_next_schema(list, &offset, &schema); count++)
		check_inside(bounds, schema, WIRE_SCHEMA_SIZE);
	ASSERT(count == list->count);
}

static void check_envelope(const struct bounds *bounds, const struct wire_envelope *envelope)
{
	struct bounds inside = {envelope->bytes.data, envelope->bytes.length};
	size_t length = WIRE_SCHEMA_SIZE + 4 + envelope->context.length + 4;

	check_inside(bounds, envelope->bytes.data, envelope->bytes.length);
	check_inside(&inside, envelope->schema, WIRE_SCHEMA_SIZE);
	check_inside(&inside, envelope->context.data, envelope->context.length);
	check_inside(&inside, envelope->payload.data, envelope->payload.length);
	check_opt_text(&inside, &envelope->parent);
	ASSERT(length + envelope->payload.length == envelope->bytes.length);
}

static void check_fields(const struct bounds *bounds, const struct wire_frame *frame)
{
	switch (frame->header.type) {
	case WIRE_CONNECT:
		check_inside(bounds, frame->u.connect.token.data, frame->u.connect.token.length);
		break;
	case WIRE_CONNECT_ERROR:
	case WIRE_SUBSCRIBE_ERROR:
	case WIRE_PUBLISH_ERROR:
		check_opt_text(bounds, &frame->u.error.text);
		break;
	case WIRE_SUBSCRIBE:
		check_text(bounds, frame->u.subscribe.channel);
		check_schemas(bounds, &frame->u.subscribe.schemas);
		ASSERT(frame->u.subscribe.max_in_flight > 0);
		if (frame->u.subscribe.durable)
			check_text(bounds, frame->u.subscribe.consumer);
		break;
	case WIRE_SUBSCRIBE_ACK:
		check_inside(bounds, frame->u.subscribe_ack.schema, WIRE_SCHEMA_SIZE);
		break;
	case WIRE_PUBLISH:
		check_text(bounds, frame->u.publish.channel);
		check_envelope(bounds, &frame->u.publish.envelope);
		if (frame->u.publish.has_key)
			check_text(bounds, frame->u.publish.key);
		break;
	case WIRE_CONVERSATION_OPEN:
		check_text(bounds, frame->u.conversation_open.subject);
		break;
	case WIRE_CONVERSATION_MESSAGE:
		check_envelope(bounds, &frame->u.conversation_message.envelope);
		break;
	case WIRE_CONVERSATION_CLOSE:
		check_opt_text(bounds, &frame->u.conversation_close.text);
		break;
	case WIRE_CONVERSATION_ERROR:
		check_opt_text(bounds, &frame->u.conversation_error.text);
		break;
	case WIRE_ACCEPT:
	case WIRE_DEFER:
	case WIRE_REJECT:
		check_text(bounds, frame->u.answer.message);
		check_opt_text(bounds, &frame->u.answer.reason);
		break;
	case WIRE_PUSH:
	case WIRE_PUSH_REPLY:
		check_inside(bounds, frame->u.push.payload.data, frame->u.push.payload.length);
		break;
	case WIRE_WORKER_REGISTER:
		check_strings(bounds, &frame->u.worker_register.namespaces, 1);
		check_text(bounds, frame->u.worker_register.queue);
		check_opt_text(bounds, &frame->u.worker_register.node);
		check_strings(bounds, &frame->u.worker_register.activities, 1);
		check_text(bounds, frame->u.worker_register.identity);
		if (frame->u.worker_register.has_contracts)
			check_strings(bounds, &frame->u.worker_register.contracts, 3);
		break;
	case WIRE_WORKER_REGISTER_ACK:
		if (frame->u.worker_register_ack.rejected)
			check_text(bounds, frame->u.worker_register_ack.reason);
		break;
	case WIRE_DELIVER:
		check_envelope(bounds, &frame->u.deliver.envelope);
		break;
	default:
		break;
	}
}

static void check_encoding(const struct bounds *bounds, const struct wire_frame *frame)
{
	uint8_t *again = malloc(bounds->length);

	ASSERT(again != NULL);
	ASSERT(wire_encode(frame, NULL, 0) == bounds->length);
	ASSERT(wire_encode(frame, again, bounds->length) == bounds->length);
	ASSERT(memcmp(again, bounds->bytes, bounds->length) == 0);
	free(again);
}

/* How many bytes the first frame of BYTES takes; 0 when there is none. */
static size_t check_frame(const uint8_t *bytes, size_t length, struct wire_version version)
{
	struct wire_frame frame, shorter;
	size_t consumed, nothing;
	const char *why, *no_reason;
	enum wire_verdict verdict;

	/* What a decoder leaves unset must not look like a valid pointer or an absent field. */
	memset(&frame, 0xa5, sizeof(frame));
	verdict = wire_decode(bytes, length, version, &frame, &consumed, &why);
	ASSERT((why != NULL) == (verdict == WIRE_INVALID_STREAM || verdict == WIRE_MALFORMED));
	if (verdict != WIRE_OK) {
		ASSERT(consumed == 0);
		return 0;
	}
	ASSERT(consumed >= WIRE_HEADER_SIZE && consumed <= length);
	ASSERT(consumed == WIRE_HEADER_SIZE + (size_t)frame.header.length);
	ASSERT(wire_decode(bytes, consumed - 1, version, &shorter, &nothing, &no_reason) ==
	       WIRE_INCOMPLETE);
	if (wire_type_name(frame.header.type) != NULL) {
		struct bounds bounds = {bytes, consumed};

		check_fields(&bounds, &frame);
		check_encoding(&bounds, &frame);
	}
	return consumed;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct wire_version versions[] = {{1, 0}, {1, 1}, {1, 2}};

	for (size_t i = 0; i < ARRAY_LENGTH(versions); i++) {
		size_t offset = 0, consumed;

		while ((consumed = check_frame(data + offset, size - offset, versions[i])) > 0)
			offset += consumed;
	}
	return 0;
}
