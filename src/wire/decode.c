/*
 * Bytes as frames. A reader walks a payload and never looks past its end; the first field that
 * does not parse leaves a text for the peer in `why` and ends the walk. Nothing is copied: what a
 * frame holds points into the bytes.
 *
 * Every member of a frame's own part of the union is set, those of absent fields to zero, so that
 * nobody needs to clear a frame before it is decoded.
 */
#include "wire/wire.h"

struct reader {
	const uint8_t *at;
	size_t left;
	struct wire_version version; /* of the connection */
	const char *why;
};

/* What a field is called in the texts that say why it did not parse. */
struct field {
	const char *past_end, *not_utf8, *bad_tag;
};

#define FIELD_OF(container, name)                                                                  \
	{                                                                                          \
		.past_end = "the " name " runs past the end of the " container,                    \
		.not_utf8 = "the " name " is not valid UTF-8",                                     \
		.bad_tag = "the presence tag of the " name " is neither 0 nor 1",                  \
	}
#define FIELD(name) FIELD_OF("frame", name)

static const struct field field_minimum = FIELD("minimum version");
static const struct field field_maximum = FIELD("maximum version");
static const struct field field_token = FIELD("authentication token");
static const struct field field_version = FIELD("selected version");
static const struct field field_capabilities = FIELD("capabilities field");
static const struct field field_code = FIELD("reason code");
static const struct field field_text = FIELD("message text");
static const struct field field_channel = FIELD("channel");
static const struct field field_schemas = FIELD("list of accepted schema ids");
static const struct field field_max_in_flight = FIELD("max_in_flight field");
static const struct field field_consumer = FIELD("consumer name");
static const struct field field_start = FIELD("start field");
static const struct field field_start_value = FIELD("start value");
static const struct field field_subscription = FIELD("subscription id");
static const struct field field_selected_schema = FIELD("selected schema id");
static const struct field field_envelope = FIELD("envelope");
static const struct field field_key = FIELD("idempotency key");
static const struct field field_message = FIELD("message id");
static const struct field field_position = FIELD("durable position");
static const struct field field_conversation = FIELD("conversation id");
static const struct field field_subject = FIELD("subject");
static const struct field field_reason = FIELD("reason");
static const struct field field_correlation = FIELD("correlation id");
static const struct field field_payload = FIELD("payload");
static const struct field field_namespaces = FIELD("list of namespaces");
static const struct field field_queue = FIELD("task queue");
static const struct field field_node = FIELD("node");
static const struct field field_activities = FIELD("list of activity types");
static const struct field field_identity = FIELD("identity");
static const struct field field_contracts = FIELD("list of contracts");
static const struct field field_verdict = FIELD("verdict");
static const struct field field_sequence = FIELD("delivery sequence");
static const struct field field_boot = FIELD("boot field");
static const struct field field_schema = FIELD_OF("envelope", "schema id");
static const struct field field_context = FIELD_OF("envelope", "causal context");
static const struct field field_envelope_payload = FIELD_OF("envelope", "payload");
static const struct field field_parent = FIELD_OF("causal context", "parent message id");
static const struct field field_clock = FIELD_OF("causal context", "vector clock entry");

static bool reader_take(struct reader *reader, size_t length, const uint8_t **bytes,
			const struct field *field)
{
	if (length > reader->left) {
		reader->why = field->past_end;
		return false;
	}
	*bytes = reader->at;
	reader->at += length;
	reader->left -= length;
	return true;
}

static bool reader_end(struct reader *reader, const char *why)
{
	if (reader->left == 0)
		return true;
	reader->why = why;
	return false;
}

static bool reader_u8(struct reader *reader, uint8_t *value, const struct field *field)
{
	const uint8_t *bytes;

	if (!reader_take(reader, 1, &bytes, field))
		return false;
	*value = bytes[0];
	return true;
}

static bool reader_u16(struct reader *reader, uint16_t *value, const struct field *field)
{
	const uint8_t *bytes;

	if (!reader_take(reader, 2, &bytes, field))
		return false;
	*value = wire_get_u16(bytes);
	return true;
}

static bool reader_u32(struct reader *reader, uint32_t *value, const struct field *field)
{
	const uint8_t *bytes;

	if (!reader_take(reader, 4, &bytes, field))
		return false;
	*value = wire_get_u32(bytes);
	return true;
}

static bool reader_u64(struct reader *reader, uint64_t *value, const struct field *field)
{
	const uint8_t *bytes;

	if (!reader_take(reader, 8, &bytes, field))
		return false;
	*value = wire_get_u64(bytes);
	return true;
}

static bool reader_version(struct reader *reader, struct wire_version *version,
			   const struct field *field)
{
	return reader_u16(reader, &version->major, field) &&
	       reader_u16(reader, &version->minor, field);
}

static bool reader_bytes(struct reader *reader, struct span *bytes, const struct field *field)
{
	uint32_t length;

	if (!reader_u32(reader, &length, field) ||
	    !reader_take(reader, length, &bytes->data, field))
		return false;
	bytes->length = length;
	return true;
}

static bool reader_string(struct reader *reader, struct span *text, const struct field *field)
{
	if (!reader_bytes(reader, text, field))
		return false;
	if (!utf8_valid(text->data, text->length)) {
		reader->why = field->not_utf8;
		return false;
	}
	return true;
}

static bool reader_tag(struct reader *reader, bool *present, const struct field *field)
{
	uint8_t tag;

	if (!reader_u8(reader, &tag, field))
		return false;
	if (tag > 1) {
		reader->why = field->bad_tag;
		return false;
	}
	*present = tag == 1;
	return true;
}

static bool reader_opt_string(struct reader *reader, struct wire_opt_string *text,
			      const struct field *field)
{
	if (!reader_tag(reader, &text->present, field))
		return false;
	if (!text->present) {
		text->text = (struct span){.data = NULL};
		return true;
	}
	return reader_string(reader, &text->text, field);
}

/*
 * A list whose items are STRINGS strings each. A string takes at least its length, so the walk
 * ends within the payload whatever the count says.
 */
static bool reader_string_list(struct reader *reader, struct wire_list *list, unsigned strings,
			       const struct field *field)
{
	struct span item;

	if (!reader_u32(reader, &list->count, field))
		return false;
	list->bytes.data = reader->at;
	for (uint64_t i = 0; i < (uint64_t)list->count * strings; i++) {
		if (!reader_string(reader, &item, field))
			return false;
	}
	list->bytes.length = (size_t)(reader->at - list->bytes.data);
	return true;
}

static bool reader_schema_list(struct reader *reader, struct wire_list *list,
			       const struct field *field)
{
	if (!reader_u32(reader, &list->count, field))
		return false;
	if (list->count > reader->left / WIRE_SCHEMA_SIZE) {
		reader->why = field->past_end;
		return false;
	}
	list->bytes.length = (size_t)list->count * WIRE_SCHEMA_SIZE;
	return reader_take(reader, list->bytes.length, &list->bytes.data, field);
}

static bool reader_context(struct reader *reader, struct wire_envelope *envelope)
{
	envelope->clock = 0;
	return reader_opt_string(reader, &envelope->parent, &field_parent) &&
	       reader_tag(reader, &envelope->has_clock, &field_clock) &&
	       (!envelope->has_clock || reader_u64(reader, &envelope->clock, &field_clock)) &&
	       reader_end(reader, "bytes are left over after the causal context");
}

/*
 * The envelope that nearly every client sends: nothing but a payload behind an independent causal
 * context. It has one shape, so that a few comparisons tell that all of it is sound. False for any
 * other.
 */
static bool envelope_is_simple(struct wire_envelope *envelope)
{
	const uint8_t *bytes = envelope->bytes.data;
	const uint8_t *context = bytes + WIRE_SCHEMA_SIZE;

	if (envelope->bytes.length < WIRE_REPLY_ENVELOPE_HEAD || wire_get_u32(context) != 2 ||
	    wire_get_u16(context + 4) != 0 ||
	    wire_get_u32(context + 6) != envelope->bytes.length - WIRE_REPLY_ENVELOPE_HEAD)
		return false;
	envelope->schema = bytes;
	envelope->context = (struct span){context + 4, 2};
	envelope->parent = (struct wire_opt_string){.present = false};
	envelope->has_clock = false;
	envelope->clock = 0;
	envelope->payload = (struct span){bytes + WIRE_REPLY_ENVELOPE_HEAD,
					  envelope->bytes.length - WIRE_REPLY_ENVELOPE_HEAD};
	return true;
}

static bool reader_envelope(struct reader *reader, struct wire_envelope *envelope)
{
	struct reader inner, context;

	if (!reader_bytes(reader, &envelope->bytes, &field_envelope))
		return false;
	if (envelope_is_simple(envelope))
		return true;
	inner = (struct reader){.at = envelope->bytes.data, .left = envelope->bytes.length};
	if (!reader_take(&inner, WIRE_SCHEMA_SIZE, &envelope->schema, &field_schema) ||
	    !reader_bytes(&inner, &envelope->context, &field_context) ||
	    !reader_bytes(&inner, &envelope->payload, &field_envelope_payload) ||
	    !reader_end(&inner, "bytes are left over after the envelope's payload")) {
		reader->why = inner.why;
		return false;
	}
	context = (struct reader){.at = envelope->context.data, .left = envelope->context.length};
	if (!reader_context(&context, envelope)) {
		reader->why = context.why;
		return false;
	}
	return true;
}

static bool decode_connect(struct reader *reader, struct wire_frame *frame)
{
	return reader_version(reader, &frame->u.connect.min, &field_minimum) &&
	       reader_version(reader, &frame->u.connect.max, &field_maximum) &&
	       reader_bytes(reader, &frame->u.connect.token, &field_token);
}

static bool decode_connect_ack(struct reader *reader, struct wire_frame *frame)
{
	return reader_version(reader, &frame->u.connect_ack.version, &field_version) &&
	       reader_u32(reader, &frame->u.connect_ack.capabilities, &field_capabilities);
}

static bool decode_error(struct reader *reader, struct wire_frame *frame)
{
	return reader_u16(reader, &frame->u.error.code, &field_code) &&
	       reader_opt_string(reader, &frame->u.error.text, &field_text);
}

static bool decode_empty(struct reader *reader, struct wire_frame *frame)
{
	(void)reader;
	(void)frame;
	return true;
}

static bool decode_subscribe(struct reader *reader, struct wire_frame *frame)
{
	if (!reader_string(reader, &frame->u.subscribe.channel, &field_channel) ||
	    !reader_schema_list(reader, &frame->u.subscribe.schemas, &field_schemas) ||
	    !reader_u32(reader, &frame->u.subscribe.max_in_flight, &field_max_in_flight))
		return false;
	if (frame->u.subscribe.max_in_flight == 0) {
		reader->why = "max_in_flight is 0, and must be at least 1";
		return false;
	}
	/* Clients that know nothing of durable channels may set the flag by chance. */
	frame->u.subscribe.durable =
		(frame->header.flags & WIRE_SUBSCRIBE_DURABLE) != 0 && reader->left > 0;
	if (!frame->u.subscribe.durable) {
		frame->u.subscribe.consumer = (struct span){.data = NULL};
		frame->u.subscribe.start = 0;
		frame->u.subscribe.value = 0;
		return true;
	}
	return reader_string(reader, &frame->u.subscribe.consumer, &field_consumer) &&
	       reader_u8(reader, &frame->u.subscribe.start, &field_start) &&
	       reader_u64(reader, &frame->u.subscribe.value, &field_start_value);
}

static bool decode_subscribe_ack(struct reader *reader, struct wire_frame *frame)
{
	return reader_u64(reader, &frame->u.subscribe_ack.subscription, &field_subscription) &&
	       reader_take(reader, WIRE_SCHEMA_SIZE, &frame->u.subscribe_ack.schema,
			   &field_selected_schema);
}

static bool decode_unsubscribe(struct reader *reader, struct wire_frame *frame)
{
	return reader_u64(reader, &frame->u.unsubscribe.subscription, &field_subscription);
}

static bool decode_publish(struct reader *reader, struct wire_frame *frame)
{
	if (!reader_string(reader, &frame->u.publish.channel, &field_channel) ||
	    !reader_envelope(reader, &frame->u.publish.envelope))
		return false;
	frame->u.publish.has_key = (frame->header.flags & WIRE_PUBLISH_HAS_KEY) != 0;
	if (!frame->u.publish.has_key) {
		frame->u.publish.key = (struct span){.data = NULL};
		return true;
	}
	return reader_string(reader, &frame->u.publish.key, &field_key);
}

static bool decode_publish_ack(struct reader *reader, struct wire_frame *frame)
{
	frame->u.publish_ack.has_position =
		(frame->header.flags & WIRE_PUBLISH_ACK_POSITION) != 0 &&
		wire_version_compare(reader->version, WIRE_VERSION_1_1) >= 0;
	frame->u.publish_ack.position = 0;
	return reader_u64(reader, &frame->u.publish_ack.message, &field_message) &&
	       (!frame->u.publish_ack.has_position ||
		reader_u64(reader, &frame->u.publish_ack.position, &field_position));
}

static bool decode_conversation_open(struct reader *reader, struct wire_frame *frame)
{
	return reader_u64(reader, &frame->u.conversation_open.conversation, &field_conversation) &&
	       reader_string(reader, &frame->u.conversation_open.subject, &field_subject);
}

static bool decode_conversation_message(struct reader *reader, struct wire_frame *frame)
{
	return reader_u64(reader, &frame->u.conversation_message.conversation,
			  &field_conversation) &&
	       reader_envelope(reader, &frame->u.conversation_message.envelope);
}

static bool decode_conversation_close(struct reader *reader, struct wire_frame *frame)
{
	frame->u.conversation_close.code = 0;
	return reader_u64(reader, &frame->u.conversation_close.conversation, &field_conversation) &&
	       reader_tag(reader, &frame->u.conversation_close.has_code, &field_code) &&
	       (!frame->u.conversation_close.has_code ||
		reader_u16(reader, &frame->u.conversation_close.code, &field_code)) &&
	       reader_opt_string(reader, &frame->u.conversation_close.text, &field_text);
}

static bool decode_conversation_error(struct reader *reader, struct wire_frame *frame)
{
	return reader_u64(reader, &frame->u.conversation_error.conversation, &field_conversation) &&
	       reader_u16(reader, &frame->u.conversation_error.code, &field_code) &&
	       reader_opt_string(reader, &frame->u.conversation_error.text, &field_text);
}

static bool decode_accept(struct reader *reader, struct wire_frame *frame)
{
	frame->u.answer.reason = (struct wire_opt_string){.present = false};
	return reader_string(reader, &frame->u.answer.message, &field_message);
}

static bool decode_answer(struct reader *reader, struct wire_frame *frame)
{
	return reader_string(reader, &frame->u.answer.message, &field_message) &&
	       reader_opt_string(reader, &frame->u.answer.reason, &field_reason);
}

static bool decode_push(struct reader *reader, struct wire_frame *frame)
{
	return reader_u64(reader, &frame->u.push.correlation, &field_correlation) &&
	       reader_bytes(reader, &frame->u.push.payload, &field_payload);
}

static bool decode_worker_register(struct reader *reader, struct wire_frame *frame)
{
	if (!reader_string_list(reader, &frame->u.worker_register.namespaces, 1,
				&field_namespaces) ||
	    !reader_string(reader, &frame->u.worker_register.queue, &field_queue) ||
	    !reader_opt_string(reader, &frame->u.worker_register.node, &field_node) ||
	    !reader_string_list(reader, &frame->u.worker_register.activities, 1,
				&field_activities) ||
	    !reader_string(reader, &frame->u.worker_register.identity, &field_identity))
		return false;
	/* No flag announces the contracts: newer clients simply go on. */
	frame->u.worker_register.has_contracts = reader->left > 0;
	if (!frame->u.worker_register.has_contracts) {
		frame->u.worker_register.contracts = (struct wire_list){.count = 0};
		return true;
	}
	return reader_string_list(reader, &frame->u.worker_register.contracts, 3, &field_contracts);
}

static bool decode_worker_register_ack(struct reader *reader, struct wire_frame *frame)
{
	if (!reader_tag(reader, &frame->u.worker_register_ack.rejected, &field_verdict))
		return false;
	if (!frame->u.worker_register_ack.rejected) {
		frame->u.worker_register_ack.reason = (struct span){.data = NULL};
		return true;
	}
	return reader_string(reader, &frame->u.worker_register_ack.reason, &field_reason);
}

static bool decode_deliver(struct reader *reader, struct wire_frame *frame)
{
	frame->u.deliver.has_origin = (frame->header.flags & WIRE_DELIVER_ORIGIN) != 0 &&
				      wire_version_compare(reader->version, WIRE_VERSION_1_2) >= 0;
	frame->u.deliver.boot = 0;
	frame->u.deliver.message = 0;
	return reader_u64(reader, &frame->u.deliver.sequence, &field_sequence) &&
	       reader_envelope(reader, &frame->u.deliver.envelope) &&
	       (!frame->u.deliver.has_origin ||
		(reader_u64(reader, &frame->u.deliver.boot, &field_boot) &&
		 reader_u64(reader, &frame->u.deliver.message, &field_message)));
}

typedef bool decode_function(struct reader *reader, struct wire_frame *frame);

static decode_function *const decode_functions[WIRE_TYPE_END] = {
#define TYPE(id, name, sender, streams, codec) [WIRE_##id] = decode_##codec,
#include "wire/types.tbl"
#undef TYPE
};

enum wire_verdict wire_decode_payload(struct wire_header header, const uint8_t *payload,
				      struct wire_version version, struct wire_frame *frame,
				      const char **why)
{
	struct reader reader = {.at = payload, .left = header.length, .version = version};

	*why = NULL;
	frame->header = header;
	if (header.type >= WIRE_TYPE_END || decode_functions[header.type] == NULL)
		return WIRE_OK;
	if (decode_functions[header.type](&reader, frame) &&
	    reader_end(&reader, "bytes are left over after the last field of the frame"))
		return WIRE_OK;
	*why = reader.why;
	return WIRE_MALFORMED;
}

enum wire_verdict wire_decode(const uint8_t *bytes, size_t length, struct wire_version version,
			      struct wire_frame *frame, size_t *consumed, const char **why)
{
	enum wire_verdict verdict;

	*consumed = 0;
	*why = NULL;
	frame->header = (struct wire_header){.type = 0};
	if (length < WIRE_HEADER_SIZE)
		return WIRE_INCOMPLETE;
	frame->header = wire_get_header(bytes);
	if (!wire_stream_legal(frame->header.type, frame->header.stream)) {
		*why = frame->header.stream == 0 ? "a frame of this type must not be on stream 0"
						 : "a frame of this type must be on stream 0";
		return WIRE_INVALID_STREAM;
	}
	if (frame->header.length > length - WIRE_HEADER_SIZE)
		return WIRE_INCOMPLETE;
	verdict = wire_decode_payload(frame->header, bytes + WIRE_HEADER_SIZE, version, frame, why);
	if (verdict == WIRE_OK)
		*consumed = WIRE_HEADER_SIZE + (size_t)frame->header.length;
	return verdict;
}

bool wire_list_next_string(const struct wire_list *list, size_t *offset, struct span *item)
{
	*item = (struct span){.data = NULL};
	if (*offset >= list->bytes.length)
		return false;
	item->length = wire_get_u32(list->bytes.data + *offset);
	item->data = list->bytes.data + *offset + 4;
	*offset += 4 + item->length;
	return true;
}

bool wire_list_next_schema(const struct wire_list *list, size_t *offset, const uint8_t **item)
{
	*item = NULL;
	if (*offset >= list->bytes.length)
		return false;
	*item = list->bytes.data + *offset;
	*offset += WIRE_SCHEMA_SIZE;
	return true;
}
