/*
 * The codec where the vectors say nothing: versions 1.1 and 1.2, durable subscriptions, contracts,
 * exact bounds, and the writers of the hot paths.
 *
 * A sample is made from a layout, which is a row of the protocol's table in one-letter fields, so
 * that what each of its bytes means is known without asking the codec. From that follows what must
 * happen when the byte is changed.
 */
#include "wire/wire.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/schema.h"

#define V10                                                                                        \
	{                                                                                          \
		1, 0                                                                               \
	}
#define V11                                                                                        \
	{                                                                                          \
		1, 1                                                                               \
	}
#define V12                                                                                        \
	{                                                                                          \
		1, 2                                                                               \
	}

/*
 * 1 2 4 8  an integer of so many bytes      S  a string, "sss"
 * I        a schema id                      B  bytes, "bbb"
 * 0 P      a tag: absent, present           L  the count of a list of two items, which follow
 * M        max_in_flight, 1                 ( ) a length, and what it is the length of
 * |        the frame might end here too
 */
#define INDEPENDENT "(I(00)B)"
#define DEPENDENT "(I(PSP8)B)"

struct layout {
	uint8_t type, flags;
	struct wire_version version;
	const char *fields;
};

static const struct layout layouts[] = {
	{WIRE_CONNECT, 0, V10, "2222B"},
	{WIRE_CONNECT_ACK, 0, V10, "224"},
	{WIRE_CONNECT_ERROR, 0, V10, "2PS"},
	{WIRE_CONNECT_ERROR, 0, V10, "20"},
	{WIRE_DISCONNECT, 0, V10, ""},
	{WIRE_SUBSCRIBE, 0, V10, "SLIIM"},
	{WIRE_SUBSCRIBE, 0x7f, V12, "SLIIM"},
	{WIRE_SUBSCRIBE, 0x80, V10, "SLIIM"},
	{WIRE_SUBSCRIBE, 0x80, V10, "SLIIM|S18"},
	{WIRE_SUBSCRIBE, 0xff, V12, "SLIIM|S18"},
	{WIRE_SUBSCRIBE_ACK, 0, V10, "8I"},
	{WIRE_SUBSCRIBE_ERROR, 0, V10, "2PS"},
	{WIRE_SUBSCRIBE_ERROR, 0, V10, "20"},
	{WIRE_UNSUBSCRIBE, 0, V10, "8"},
	{WIRE_PUBLISH, 0, V10, "S" INDEPENDENT},
	{WIRE_PUBLISH, 0xfd, V12, "S" DEPENDENT},
	{WIRE_PUBLISH, 0x02, V10, "S" INDEPENDENT "S"},
	{WIRE_PUBLISH, 0xff, V12, "S" DEPENDENT "S"},
	{WIRE_PUBLISH_ACK, 0, V10, "8"},
	{WIRE_PUBLISH_ACK, 0x02, V10, "8"},
	{WIRE_PUBLISH_ACK, 0xfd, V12, "8"},
	{WIRE_PUBLISH_ACK, 0x02, V11, "88"},
	{WIRE_PUBLISH_ACK, 0xff, V12, "88"},
	{WIRE_PUBLISH_ACK, 0x02, {2, 0}, "88"},
	{WIRE_PUBLISH_ERROR, 0, V10, "2PS"},
	{WIRE_PUBLISH_ERROR, 0, V10, "20"},
	{WIRE_CONVERSATION_OPEN, 0, V10, "8S"},
	{WIRE_CONVERSATION_MESSAGE, 0, V10, "8" INDEPENDENT},
	{WIRE_CONVERSATION_MESSAGE, 0xff, V12, "8" DEPENDENT},
	{WIRE_CONVERSATION_CLOSE, 0, V10, "8P2PS"},
	{WIRE_CONVERSATION_CLOSE, 0, V10, "80PS"},
	{WIRE_CONVERSATION_CLOSE, 0, V10, "8P20"},
	{WIRE_CONVERSATION_CLOSE, 0, V10, "800"},
	{WIRE_CONVERSATION_ERROR, 0, V10, "82PS"},
	{WIRE_CONVERSATION_ERROR, 0, V10, "820"},
	{WIRE_ACCEPT, 0xc0, V10, "S"},
	{WIRE_DEFER, 0xc0, V10, "SPS"},
	{WIRE_DEFER, 0, V10, "S0"},
	{WIRE_REJECT, 0x80, V10, "SPS"},
	{WIRE_REJECT, 0, V10, "S0"},
	{WIRE_PING, 0, V10, ""},
	{WIRE_PONG, 0, V10, ""},
	{WIRE_PUSH, 0, V10, "8B"},
	{WIRE_PUSH_REPLY, 0x81, V10, "8B"},
	{WIRE_WORKER_REGISTER, 0, V10, "LSSSPSLSSS"},
	{WIRE_WORKER_REGISTER, 0x80, V12, "LSSS0LSSS"},
	{WIRE_WORKER_REGISTER, 0, V10, "LSSSPSLSSS|LSSSSSS"},
	{WIRE_WORKER_REGISTER_ACK, 0, V10, "0"},
	{WIRE_WORKER_REGISTER_ACK, 0, V10, "PS"},
	{WIRE_DELIVER, 0, V10, "8" INDEPENDENT},
	{WIRE_DELIVER, 0x01, V11, "8" DEPENDENT},
	{WIRE_DELIVER, 0xfe, V12, "8" DEPENDENT},
	{WIRE_DELIVER, 0x01, V12, "8" INDEPENDENT "88"},
	{WIRE_DELIVER, 0xff, {1, 3}, "8" DEPENDENT "88"},
};

/* A frame, and what each of its bytes is: n(umber), s(tring), b(ytes), t(ag), M, l(ength or count,
 * in the first of its four bytes), h(eader), and a space for the rest of a length. */
struct sample {
	struct wire_version version;
	uint8_t bytes[512];
	char meaning[512];
	size_t length;
	size_t may_end; /* where it might end as well, or 0 */
};

static void sample_add(struct sample *sample, char meaning, uint8_t byte)
{
	ck_assert_uint_lt(sample->length, sizeof(sample->bytes));
	sample->bytes[sample->length] = byte;
	sample->meaning[sample->length++] = meaning;
}

static void sample_length(struct sample *sample, uint32_t length)
{
	sample_add(sample, 'l', 0);
	for (int i = 0; i < 3; i++)
		sample_add(sample, ' ', 0);
	wire_put_u32(sample->bytes + sample->length - 4, length);
}

static void sample_field(struct sample *sample, char field)
{
	size_t count = field == 'I' ? WIRE_SCHEMA_SIZE : 3;

	switch (field) {
	case '1':
	case '2':
	case '4':
	case '8':
		count = (size_t)(field - '0');
		/* fall through */
	case 'I':
		/* No two bytes that follow each other are equal: swapped ones are seen. */
		while (count-- > 0)
			sample_add(sample, 'n', (uint8_t)(0x90 + sample->length));
		break;
	case 'S':
	case 'B':
		sample_length(sample, (uint32_t)count);
		while (count-- > 0)
			sample_add(sample, field == 'S' ? 's' : 'b', field == 'S' ? 's' : 'b');
		break;
	case '0':
	case 'P':
		sample_add(sample, 't', field == 'P');
		break;
	case 'L':
		sample_length(sample, 2);
		break;
	case 'M':
		for (uint8_t i = 0; i < 4; i++)
			sample_add(sample, 'M', i == 3);
		break;
	case '|':
		sample->may_end = sample->length;
		break;
	default:
		ck_abort_msg("'%c' is no field", field);
	}
}

static struct sample sample_make(const struct layout *layout)
{
	struct sample sample = {.version = layout->version};
	size_t open[4], depth = 0;

	for (int i = 0; i < WIRE_HEADER_SIZE; i++)
		sample_add(&sample, 'h', 0);
	for (const char *field = layout->fields; *field != '\0'; field++) {
		if (*field == '(') {
			open[depth++] = sample.length;
			sample_length(&sample, 0);
		} else if (*field == ')') {
			size_t at = open[--depth];

			wire_put_u32(sample.bytes + at, (uint32_t)(sample.length - at - 4));
		} else {
			sample_field(&sample, *field);
		}
	}
	wire_put_header(sample.bytes, layout->type, layout->flags,
			wire_stream_legal(layout->type, 0) ? 0 : 7,
			(uint32_t)(sample.length - WIRE_HEADER_SIZE));
	return sample;
}

/* Decodes LENGTH bytes in memory of just that size: a checker sees what is read beyond. */
static enum wire_verdict decode_exact(const uint8_t *bytes, size_t length,
				      struct wire_version version, const char **why)
{
	uint8_t *copy = malloc(length > 0 ? length : 1);
	struct wire_frame frame;
	size_t consumed;
	enum wire_verdict verdict;

	ck_assert_ptr_nonnull(copy);
	memcpy(copy, bytes, length);
	verdict = wire_decode(copy, length, version, &frame, &consumed, why);
	ck_assert_uint_eq(consumed, verdict == WIRE_OK ? length : 0);
	free(copy);
	return verdict;
}

/* SAMPLE, whose payload has LENGTH bytes now, gives VERDICT; WHAT was done to it at OFFSET. */
static void sample_expect(const struct layout *layout, struct sample *sample, size_t length,
			  enum wire_verdict expected, const char *what, size_t offset)
{
	const char *why;
	enum wire_verdict verdict;

	wire_put_u32(sample->bytes + 6, (uint32_t)(length - WIRE_HEADER_SIZE));
	verdict = decode_exact(sample->bytes, length, sample->version, &why);
	ck_assert_msg(verdict == expected && (why == NULL) == (verdict == WIRE_OK),
		      "%s with flags %02x, \"%s\", %s at %zu of %zu: verdict %d instead of %d (%s)",
		      wire_type_name(layout->type), (unsigned)layout->flags, layout->fields, what,
		      offset, length, (int)verdict, (int)expected, why == NULL ? "-" : why);
}

START_TEST(samples_cover_every_type)
{
	for (uint8_t type = 1; type < WIRE_TYPE_END; type++) {
		size_t i = 0;

		while (i < ARRAY_LENGTH(layouts) && layouts[i].type != type)
			i++;
		ck_assert_uint_lt(i, ARRAY_LENGTH(layouts));
	}
}
END_TEST

START_TEST(sample_is_decoded_and_encoded_back)
{
	struct sample sample = sample_make(&layouts[_i]);
	struct wire_frame frame, same;
	struct wire_header header;
	uint8_t again[sizeof(sample.bytes) + 1];
	size_t consumed, size;
	const char *why;

	ck_assert_int_eq(
		wire_decode(sample.bytes, sample.length, sample.version, &frame, &consumed, &why),
		WIRE_OK);
	ck_assert_uint_eq(consumed, sample.length);
	ck_assert_uint_eq(frame.header.type, layouts[_i].type);
	ck_assert_uint_eq(frame.header.flags, layouts[_i].flags);
	ck_assert_uint_eq(frame.header.length, sample.length - WIRE_HEADER_SIZE);
	/* Measured, written exactly, and never past an array that is too small. */
	ck_assert_uint_eq(wire_encode(&frame, NULL, 0), sample.length);
	for (size = 0; size <= sample.length; size++) {
		memset(again, 0xee, sizeof(again));
		ck_assert_uint_eq(wire_encode(&frame, again, size), sample.length);
		for (size_t i = size; i < sizeof(again); i++)
			ck_assert_uint_eq(again[i], 0xee);
	}
	ck_assert_mem_eq(again, sample.bytes, sample.length);

	header = wire_get_header(sample.bytes);
	ck_assert_int_eq(wire_decode_payload(header, sample.bytes + WIRE_HEADER_SIZE,
					     sample.version, &same, &why),
			 WIRE_OK);
	ck_assert_ptr_null(why);
	ck_assert_uint_eq(wire_encode(&same, again, sizeof(again)), sample.length);
	ck_assert_mem_eq(again, sample.bytes, sample.length);
}
END_TEST

START_TEST(frame_that_is_not_all_there_is_incomplete)
{
	struct sample sample = sample_make(&layouts[_i]);
	const char *why;

	for (size_t length = 0; length < sample.length; length++)
		ck_assert_int_eq(decode_exact(sample.bytes, length, sample.version, &why),
				 WIRE_INCOMPLETE);
	wire_put_u32(sample.bytes + 6, UINT32_MAX);
	ck_assert_int_eq(decode_exact(sample.bytes, sample.length, sample.version, &why),
			 WIRE_INCOMPLETE);
}
END_TEST

START_TEST(payload_of_another_length_is_malformed)
{
	struct sample sample = sample_make(&layouts[_i]);

	for (size_t length = WIRE_HEADER_SIZE; length < sample.length; length++)
		sample_expect(&layouts[_i], &sample, length,
			      length == sample.may_end ? WIRE_OK : WIRE_MALFORMED, "cut", length);
	for (size_t more = 1; more <= 3; more++)
		sample_expect(&layouts[_i], &sample, sample.length + more, WIRE_MALFORMED, "longer",
			      sample.length);
}
END_TEST

START_TEST(bytes_mean_what_the_layout_says)
{
	static const uint32_t lengths[] = {UINT32_MAX,	   UINT32_MAX - 1, UINT32_MAX - 3,
					   UINT32_MAX - 4, UINT32_MAX - 9, 0x80000000,
					   0x7fffffff,	   0x55555555,	   0x08000000};
	const struct layout *layout = &layouts[_i];

	for (size_t at = WIRE_HEADER_SIZE; at < sample_make(layout).length; at++) {
		struct sample sample = sample_make(layout);
		uint32_t length;

		switch (sample.meaning[at]) {
		case 'n':
		case 'b':
			sample.bytes[at] = 0xff;
			sample_expect(layout, &sample, sample.length, WIRE_OK, "0xff", at);
			break;
		case 's':
			sample.bytes[at] = 0xff;
			sample_expect(layout, &sample, sample.length, WIRE_MALFORMED, "0xff", at);
			sample.bytes[at] = 0;
			sample_expect(layout, &sample, sample.length, WIRE_OK, "U+0000", at);
			break;
		case 't':
			sample.bytes[at] = 2;
			sample_expect(layout, &sample, sample.length, WIRE_MALFORMED, "tag 2", at);
			sample.bytes[at] = 0xff;
			sample_expect(layout, &sample, sample.length, WIRE_MALFORMED, "tag", at);
			break;
		case 'M':
			sample.bytes[at] ^= 1;
			sample_expect(layout, &sample, sample.length,
				      sample.bytes[at] == 0 ? WIRE_MALFORMED : WIRE_OK,
				      "max_in_flight", at);
			break;
		case 'l':
			length = wire_get_u32(sample.bytes + at);
			wire_put_u32(sample.bytes + at, length + 1);
			sample_expect(layout, &sample, sample.length, WIRE_MALFORMED, "+1", at);
			wire_put_u32(sample.bytes + at, length - 1);
			sample_expect(layout, &sample, sample.length, WIRE_MALFORMED, "-1", at);
			for (size_t i = 0; i < ARRAY_LENGTH(lengths); i++) {
				wire_put_u32(sample.bytes + at, lengths[i]);
				sample_expect(layout, &sample, sample.length, WIRE_MALFORMED,
					      "a length that is far too large", at);
			}
			break;
		}
	}
}
END_TEST

/* --- types and streams ---------------------------------------------------------------------- */

static const char *const type_names[] = {
	NULL,
	"Connect",
	"ConnectAck",
	"ConnectError",
	"Disconnect",
	"Subscribe",
	"SubscribeAck",
	"SubscribeError",
	"Unsubscribe",
	"Publish",
	"PublishAck",
	"PublishError",
	"ConversationOpen",
	"ConversationMessage",
	"ConversationClose",
	"ConversationError",
	"Accept",
	"Defer",
	"Reject",
	"Ping",
	"Pong",
	"Push",
	"PushReply",
	"WorkerRegister",
	"WorkerRegisterAck",
	"Deliver",
};

START_TEST(types_have_their_numbers)
{
	for (unsigned type = 0; type <= UINT8_MAX; type++) {
		if (type > 0 && type < ARRAY_LENGTH(type_names))
			ck_assert_str_eq(wire_type_name((uint8_t)type), type_names[type]);
		else
			ck_assert_ptr_null(wire_type_name((uint8_t)type));
	}
}
END_TEST

START_TEST(servers_alone_send_these)
{
	static const uint8_t from_server[] = {0x02, 0x03, 0x06, 0x07, 0x0a, 0x0b,
					      0x0f, 0x14, 0x15, 0x18, 0x19};

	for (unsigned type = 0; type <= UINT8_MAX; type++)
		ck_assert_int_eq(wire_type_from_server((uint8_t)type),
				 memchr(from_server, (int)type, sizeof(from_server)) != NULL);
}
END_TEST

START_TEST(stream_is_checked_from_the_header_alone)
{
	static const uint8_t control[] = {0x01, 0x02, 0x03, 0x04, 0x13, 0x14, 0x17, 0x18};
	static const uint32_t streams[] = {0, 1, 0x100, 0x80000000, UINT32_MAX};
	uint8_t bytes[WIRE_HEADER_SIZE];
	const char *why;

	for (unsigned type = 1; type < ARRAY_LENGTH(type_names); type++) {
		bool on_zero = memchr(control, (int)type, sizeof(control)) != NULL;

		for (size_t i = 0; i < ARRAY_LENGTH(streams); i++) {
			bool legal = (streams[i] == 0) == on_zero;

			wire_put_header(bytes, (uint8_t)type, 0xff, streams[i], UINT32_MAX);
			ck_assert_int_eq(wire_stream_legal((uint8_t)type, streams[i]), legal);
			ck_assert_int_eq(decode_exact(bytes, sizeof(bytes), WIRE_VERSION_1_2, &why),
					 legal ? WIRE_INCOMPLETE : WIRE_INVALID_STREAM);
			ck_assert_int_eq(why == NULL, legal);
			ck_assert_int_eq(
				decode_exact(bytes, sizeof(bytes) - 1, WIRE_VERSION_1_2, &why),
				WIRE_INCOMPLETE);
		}
	}
}
END_TEST

START_TEST(unknown_types_are_skipped_on_any_stream)
{
	static const uint32_t streams[] = {0, 1, UINT32_MAX};
	uint8_t bytes[WIRE_HEADER_SIZE + 7];
	struct wire_frame frame;
	size_t consumed;
	const char *why;

	memset(bytes, 0xff, sizeof(bytes));
	for (unsigned type = 0; type <= UINT8_MAX; type++) {
		if (type > 0 && type < ARRAY_LENGTH(type_names))
			continue;
		for (size_t i = 0; i < ARRAY_LENGTH(streams); i++) {
			wire_put_header(bytes, (uint8_t)type, 0xa5, streams[i], 5);
			ck_assert(wire_stream_legal((uint8_t)type, streams[i]));
			ck_assert_int_eq(wire_decode(bytes, sizeof(bytes), WIRE_VERSION_1_0, &frame,
						     &consumed, &why),
					 WIRE_OK);
			ck_assert_uint_eq(consumed, WIRE_HEADER_SIZE + 5);
			ck_assert_uint_eq(frame.header.type, type);
			ck_assert_uint_eq(frame.header.flags, 0xa5);
			ck_assert_uint_eq(frame.header.stream, streams[i]);
			ck_assert_uint_eq(frame.header.length, 5);
			ck_assert_int_eq(
				decode_exact(bytes, WIRE_HEADER_SIZE + 4, WIRE_VERSION_1_0, &why),
				WIRE_INCOMPLETE);
		}
	}
}
END_TEST

START_TEST(versions_compare_by_major_then_minor)
{
	static const struct wire_version rising[] = {
		{0, 0}, {0, 65535}, {1, 0}, {1, 1}, {1, 2}, {1, 256}, {2, 0}, {256, 1}, {65535, 0},
	};

	for (int a = 0; a < (int)ARRAY_LENGTH(rising); a++) {
		for (int b = 0; b < (int)ARRAY_LENGTH(rising); b++)
			ck_assert_int_eq(wire_version_compare(rising[a], rising[b]),
					 (a > b) - (a < b));
	}
}
END_TEST

/* --- fields that no vector has -------------------------------------------------------------- */

static struct sample sample_of(uint8_t type, uint8_t flags, struct wire_version version,
			       const char *fields)
{
	struct layout layout = {type, flags, version, fields};

	return sample_make(&layout);
}

/* Decodes SAMPLE into FRAME, which held something else before. */
static void sample_decode(const struct sample *sample, struct wire_frame *frame)
{
	size_t consumed;
	const char *why = "unset";

	memset(frame, 0xaa, sizeof(*frame));
	ck_assert_int_eq(
		wire_decode(sample->bytes, sample->length, sample->version, frame, &consumed, &why),
		WIRE_OK);
	ck_assert_ptr_null(why);
}

static void expect_span(struct span span, const uint8_t *data, size_t length)
{
	ck_assert_ptr_eq(span.data, data);
	ck_assert_uint_eq(span.length, length);
}

START_TEST(publish_ack_has_a_position_from_1_1)
{
	struct sample sample = sample_of(WIRE_PUBLISH_ACK, 0x03, WIRE_VERSION_1_1, "88");
	struct wire_frame frame;
	const char *why;

	sample_decode(&sample, &frame);
	ck_assert(frame.u.publish_ack.has_position);
	ck_assert_uint_eq(frame.u.publish_ack.message, wire_get_u64(sample.bytes + 10));
	ck_assert_uint_eq(frame.u.publish_ack.position, wire_get_u64(sample.bytes + 18));
	ck_assert_int_eq(decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_0, &why),
			 WIRE_MALFORMED);

	sample = sample_of(WIRE_PUBLISH_ACK, 0x03, WIRE_VERSION_1_0, "8");
	sample_decode(&sample, &frame);
	ck_assert(!frame.u.publish_ack.has_position);
	ck_assert_uint_eq(frame.u.publish_ack.position, 0);
	ck_assert_int_eq(decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_1, &why),
			 WIRE_MALFORMED);
}
END_TEST

START_TEST(deliver_has_an_origin_from_1_2)
{
	struct sample sample = sample_of(WIRE_DELIVER, 0x81, WIRE_VERSION_1_2, "8" DEPENDENT "88");
	struct wire_frame frame;
	const char *why;

	sample_decode(&sample, &frame);
	ck_assert(frame.u.deliver.has_origin);
	ck_assert_uint_eq(frame.u.deliver.sequence, wire_get_u64(sample.bytes + 10));
	ck_assert_uint_eq(frame.u.deliver.boot, wire_get_u64(sample.bytes + sample.length - 16));
	ck_assert_uint_eq(frame.u.deliver.message, wire_get_u64(sample.bytes + sample.length - 8));
	ck_assert_int_eq(decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_1, &why),
			 WIRE_MALFORMED);

	sample = sample_of(WIRE_DELIVER, 0x81, WIRE_VERSION_1_1, "8" DEPENDENT);
	sample_decode(&sample, &frame);
	ck_assert(!frame.u.deliver.has_origin);
	ck_assert_uint_eq(frame.u.deliver.boot, 0);
	ck_assert_uint_eq(frame.u.deliver.message, 0);
	ck_assert_int_eq(decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_2, &why),
			 WIRE_MALFORMED);
}
END_TEST

START_TEST(durable_subscribe_has_three_more_fields)
{
	struct sample sample = sample_of(WIRE_SUBSCRIBE, 0x80, WIRE_VERSION_1_0, "SLIIMS18");
	const uint8_t *tail = sample.bytes + sample.length - 16;
	struct wire_frame frame;
	const char *why;

	sample_decode(&sample, &frame);
	ck_assert(frame.u.subscribe.durable);
	expect_span(frame.u.subscribe.consumer, tail + 4, 3);
	ck_assert_uint_eq(frame.u.subscribe.start, tail[7]);
	ck_assert_uint_eq(frame.u.subscribe.value, wire_get_u64(tail + 8));
	sample.bytes[1] = 0x7f;
	ck_assert_int_eq(decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_0, &why),
			 WIRE_MALFORMED);

	/* The flag alone was always ignored. */
	sample = sample_of(WIRE_SUBSCRIBE, 0x80, WIRE_VERSION_1_0, "SLIIM");
	sample_decode(&sample, &frame);
	ck_assert(!frame.u.subscribe.durable);
	expect_span(frame.u.subscribe.consumer, NULL, 0);
	ck_assert_uint_eq(frame.u.subscribe.start, 0);
	ck_assert_uint_eq(frame.u.subscribe.value, 0);
	ck_assert_uint_eq(frame.u.subscribe.max_in_flight, 1);
}
END_TEST

START_TEST(worker_register_may_end_in_contracts)
{
	struct sample sample =
		sample_of(WIRE_WORKER_REGISTER, 0, WIRE_VERSION_1_0, "LSSS0LSSSLSSSSSS");
	struct wire_frame frame;
	struct span item;
	size_t offset = 0;
	unsigned items = 0;
	const char *why;

	sample.bytes[sample.length - 1] = '!';
	sample_decode(&sample, &frame);
	ck_assert(frame.u.worker_register.has_contracts);
	ck_assert_uint_eq(frame.u.worker_register.contracts.count, 2);
	while (wire_list_next_string(&frame.u.worker_register.contracts, &offset, &item)) {
		items++;
		ck_assert(span_equal(item, items < 6 ? SPAN_LITERAL("sss") : SPAN_LITERAL("ss!")));
	}
	ck_assert_uint_eq(items, 6);
	expect_span(item, NULL, 0);

	sample = sample_of(WIRE_WORKER_REGISTER, 0, WIRE_VERSION_1_0, "LSSS0LSSS");
	sample_decode(&sample, &frame);
	ck_assert(!frame.u.worker_register.has_contracts);
	ck_assert_uint_eq(frame.u.worker_register.contracts.count, 0);
	expect_span(frame.u.worker_register.contracts.bytes, NULL, 0);
	ck_assert(!frame.u.worker_register.node.present);
	expect_span(frame.u.worker_register.node.text, NULL, 0);

	/* A list of no contracts is a list too, and goes back as one. */
	sample_length(&sample, 0);
	wire_put_u32(sample.bytes + 6, (uint32_t)(sample.length - WIRE_HEADER_SIZE));
	sample_decode(&sample, &frame);
	ck_assert(frame.u.worker_register.has_contracts);
	ck_assert_uint_eq(frame.u.worker_register.contracts.count, 0);
	ck_assert_uint_eq(wire_encode(&frame, NULL, 0), sample.length);

	/* Thrice this is 2 in 32 bits, and two strings follow. */
	sample = sample_of(WIRE_WORKER_REGISTER, 0, WIRE_VERSION_1_0, "LSSS0LSSSLSS");
	wire_put_u32(sample.bytes + sample.length - 18, UINT32_C(0x55555556));
	ck_assert_int_eq(decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_0, &why),
			 WIRE_MALFORMED);
}
END_TEST

START_TEST(envelope_points_into_the_frame)
{
	struct sample sample = sample_of(WIRE_PUBLISH, 0, WIRE_VERSION_1_0, "S" DEPENDENT);
	const uint8_t *start = sample.bytes + WIRE_HEADER_SIZE + 7 + 4;
	const size_t context = 1 + 7 + 1 + 8, length = 32 + 4 + context + 4 + 3;
	struct wire_envelope *envelope;
	struct wire_frame frame;

	sample_decode(&sample, &frame);
	envelope = &frame.u.publish.envelope;
	expect_span(envelope->bytes, start, length);
	ck_assert_ptr_eq(envelope->schema, start);
	expect_span(envelope->context, start + 36, context);
	ck_assert(envelope->parent.present);
	expect_span(envelope->parent.text, start + 36 + 5, 3);
	ck_assert(envelope->has_clock);
	ck_assert_uint_eq(envelope->clock, wire_get_u64(start + 36 + 9));
	expect_span(envelope->payload, start + length - 3, 3);
	ck_assert(!frame.u.publish.has_key);
	expect_span(frame.u.publish.key, NULL, 0);

	sample = sample_of(WIRE_PUBLISH, 2, WIRE_VERSION_1_0, "S" INDEPENDENT "S");
	sample_decode(&sample, &frame);
	expect_span(envelope->bytes, start, 32 + 4 + 2 + 4 + 3);
	expect_span(envelope->context, start + 36, 2);
	ck_assert(!envelope->parent.present);
	expect_span(envelope->parent.text, NULL, 0);
	ck_assert(!envelope->has_clock);
	ck_assert_uint_eq(envelope->clock, 0);
	ck_assert(frame.u.publish.has_key);
	expect_span(frame.u.publish.key, sample.bytes + sample.length - 3, 3);
}
END_TEST

START_TEST(lists_are_walked_to_their_end)
{
	struct sample sample = sample_of(WIRE_SUBSCRIBE, 0, WIRE_VERSION_1_0, "SLIIM");
	struct wire_list empty = {.count = 0};
	struct wire_frame frame;
	const uint8_t *schema;
	struct span item;
	size_t offset = 0;

	sample_decode(&sample, &frame);
	ck_assert_uint_eq(frame.u.subscribe.schemas.count, 2);
	ck_assert(wire_list_next_schema(&frame.u.subscribe.schemas, &offset, &schema));
	ck_assert_ptr_eq(schema, sample.bytes + WIRE_HEADER_SIZE + 7 + 4);
	ck_assert(wire_list_next_schema(&frame.u.subscribe.schemas, &offset, &schema));
	ck_assert_ptr_eq(schema, sample.bytes + WIRE_HEADER_SIZE + 7 + 4 + 32);
	ck_assert(!wire_list_next_schema(&frame.u.subscribe.schemas, &offset, &schema));
	ck_assert_ptr_null(schema);

	offset = 0;
	ck_assert(!wire_list_next_schema(&empty, &offset, &schema));
	ck_assert(!wire_list_next_string(&empty, &offset, &item));
}
END_TEST

START_TEST(peer_is_told_what_was_wrong)
{
	static const struct {
		struct layout layout;
		size_t cut;	/* bytes at the end that are missing */
		size_t changed; /* offset in the payload of a byte that becomes 0xff, or 0 */
		const char *why;
	} cases[] = {
		{{WIRE_PUBLISH, 0, V10, "S"}, 1, 0, "the channel runs past the end of the frame"},
		{{WIRE_PUBLISH, 0, V10, "S"}, 0, 4, "the channel is not valid UTF-8"},
		{{WIRE_PUBLISH, 2, V10, "S" INDEPENDENT},
		 0,
		 0,
		 "the idempotency key runs past the end of the frame"},
		{{WIRE_PUBLISH, 0, V10, "S(I(00))"},
		 0,
		 0,
		 "the payload runs past the end of the envelope"},
		{{WIRE_PUBLISH, 0, V10, "S(I(0)B)"},
		 0,
		 0,
		 "the vector clock entry runs past the end of the causal context"},
		{{WIRE_PUBLISH, 0, V10, "S(I(001)B)"},
		 0,
		 0,
		 "bytes are left over after the causal context"},
		{{WIRE_PUBLISH, 0, V10, "S(I(00)B1)"},
		 0,
		 0,
		 "bytes are left over after the envelope's payload"},
		{{WIRE_PUBLISH, 0, V10, "S(I(P)B)"},
		 0,
		 0,
		 "the parent message id runs past the end of the causal context"},
		{{WIRE_PING, 0, V10, "1"},
		 0,
		 0,
		 "bytes are left over after the last field of the frame"},
		{{WIRE_DEFER, 0, V10, "S0"},
		 0,
		 7,
		 "the presence tag of the reason is neither 0 nor 1"},
	};

	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct sample sample = sample_make(&cases[i].layout);
		struct wire_frame frame;
		size_t consumed, length = sample.length - cases[i].cut;
		const char *why;

		wire_put_u32(sample.bytes + 6, (uint32_t)(length - WIRE_HEADER_SIZE));
		if (cases[i].changed > 0)
			sample.bytes[WIRE_HEADER_SIZE + cases[i].changed] = 0xff;
		ck_assert_int_eq(wire_decode(sample.bytes, length, WIRE_VERSION_1_0, &frame,
					     &consumed, &why),
				 WIRE_MALFORMED);
		ck_assert_str_eq(why, cases[i].why);
		/* The answer goes to the offending frame's stream. */
		ck_assert_uint_eq(frame.header.type, cases[i].layout.type);
		ck_assert_uint_eq(frame.header.stream, wire_get_u32(sample.bytes + 2));
	}
}
END_TEST

/* --- encoding ------------------------------------------------------------------------------- */

START_TEST(frame_that_no_length_can_say_is_refused)
{
	struct wire_frame frame = {.header = {.type = WIRE_PUSH, .stream = 1}};
	uint8_t byte = 0;

	/* Nothing of these fields is read: they do not fit into what is written to. */
	frame.u.push.payload = (struct span){.data = &byte, .length = UINT32_MAX - 12};
#if SIZE_MAX > UINT32_MAX
	ck_assert_uint_eq(wire_encode(&frame, NULL, 0), (size_t)UINT32_MAX + WIRE_HEADER_SIZE);
	frame.u.push.payload.length++;
	ck_assert_uint_eq(wire_encode(&frame, NULL, 0), 0);
	frame.u.push.payload.length = (size_t)UINT32_MAX + 1;
	ck_assert_uint_eq(wire_encode(&frame, NULL, 0), 0);
#endif
	frame.u.push.payload.length = SIZE_MAX;
	ck_assert_uint_eq(wire_encode(&frame, NULL, 0), 0);
	frame.u.push.payload.length = SIZE_MAX - 8;
	ck_assert_uint_eq(wire_encode(&frame, NULL, 0), 0);

	frame.header.type = WIRE_CONVERSATION_MESSAGE;
	frame.u.conversation_message.envelope = (struct wire_envelope){
		.schema = &byte,
		.context = {.data = &byte, .length = 2},
		.payload = {.data = &byte, .length = SIZE_MAX - 20},
	};
	ck_assert_uint_eq(wire_encode(&frame, NULL, 0), 0);
}
END_TEST

START_TEST(hot_publish_ack_is_the_codecs)
{
	static const uint8_t flags[] = {0, 0x01, 0x80, 0x81};
	uint8_t hot[WIRE_PUBLISH_ACK_SIZE], bytes[WIRE_PUBLISH_ACK_SIZE];

	for (size_t i = 0; i < ARRAY_LENGTH(flags); i++) {
		struct wire_frame frame = {
			.header = {.type = WIRE_PUBLISH_ACK,
				   .flags = flags[i],
				   .stream = 0x01020304},
			.u.publish_ack = {.message = UINT64_C(0x1112131415161718)},
		};

		wire_put_publish_ack(hot, flags[i], 0x01020304, UINT64_C(0x1112131415161718));
		ck_assert_uint_eq(wire_encode(&frame, bytes, sizeof(bytes)), sizeof(hot));
		ck_assert_mem_eq(hot, bytes, sizeof(hot));
	}
}
END_TEST

START_TEST(hot_deliver_is_the_codecs)
{
	struct sample sample = sample_of(WIRE_PUBLISH, 0, WIRE_VERSION_1_0, "S" DEPENDENT);
	struct wire_frame publish, frame = {.header = {.type = WIRE_DELIVER, .stream = 0xfedcba98}};
	uint8_t hot[256], bytes[256];
	struct span envelope;
	size_t length;

	sample_decode(&sample, &publish);
	envelope = publish.u.publish.envelope.bytes;
	frame.u.deliver.sequence = UINT64_C(0x2122232425262728);
	frame.u.deliver.envelope = publish.u.publish.envelope;
	frame.u.deliver.boot = UINT64_C(0x3132333435363738);
	frame.u.deliver.message = UINT64_C(0x4142434445464748);
	for (int origin = 0; origin <= 1; origin++) {
		uint8_t flags = origin ? 0x80 : 0;

		wire_put_deliver_head(hot, flags, 0xfedcba98, frame.u.deliver.sequence,
				      (uint32_t)envelope.length, origin);
		memcpy(hot + WIRE_DELIVER_HEAD, envelope.data, envelope.length);
		length = WIRE_DELIVER_HEAD + envelope.length;
		if (origin) {
			wire_put_u64(hot + length, frame.u.deliver.boot);
			wire_put_u64(hot + length + 8, frame.u.deliver.message);
			length += WIRE_DELIVER_TAIL;
		}
		frame.header.flags = origin ? flags | WIRE_DELIVER_ORIGIN : flags;
		frame.u.deliver.has_origin = origin;
		ck_assert_uint_eq(wire_encode(&frame, bytes, sizeof(bytes)), length);
		ck_assert_mem_eq(hot, bytes, length);
	}
}
END_TEST

START_TEST(hot_reply_envelope_is_the_codecs)
{
	static const uint8_t payload[] = "an answer", zero[WIRE_SCHEMA_SIZE];
	struct wire_frame frame = {.header = {.type = WIRE_CONVERSATION_MESSAGE, .stream = 3}};
	uint8_t hot[WIRE_REPLY_ENVELOPE_HEAD], bytes[128];

	memset(hot, 0xee, sizeof(hot));
	frame.u.conversation_message.envelope = (struct wire_envelope){
		.schema = zero,
		.context = SPAN_LITERAL("\0\0"),
		.payload = {.data = payload, .length = sizeof(payload)},
	};
	ck_assert_uint_eq(wire_encode(&frame, bytes, sizeof(bytes)),
			  WIRE_HEADER_SIZE + 8 + 4 + sizeof(hot) + sizeof(payload));
	wire_put_reply_envelope_head(hot, sizeof(payload));
	ck_assert_mem_eq(hot, bytes + WIRE_HEADER_SIZE + 8 + 4, sizeof(hot));
}
END_TEST

START_TEST(integers_are_big_endian)
{
	static const uint8_t expected[] = {0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8};
	uint8_t bytes[8];

	wire_put_u64(bytes, UINT64_C(0xf1f2f3f4f5f6f7f8));
	ck_assert_mem_eq(bytes, expected, 8);
	wire_put_u32(bytes, UINT32_C(0xf1f2f3f4));
	ck_assert_mem_eq(bytes, expected, 4);
	wire_put_u16(bytes, 0xf1f2);
	ck_assert_mem_eq(bytes, expected, 2);
	ck_assert_uint_eq(wire_get_u64(expected), UINT64_C(0xf1f2f3f4f5f6f7f8));
	ck_assert_uint_eq(wire_get_u32(expected), UINT32_C(0xf1f2f3f4));
	ck_assert_uint_eq(wire_get_u16(expected), 0xf1f2);
}
END_TEST

START_TEST(schema_ids_are_the_documented_ones)
{
	static const struct {
		const char *document, *id;
	} rows[] = {
		{"{}", "08f44b07b5901a25d1e17335725217d3115bb35de7b287a54bb3187d127cc0f4"},
		{"", "cbf29ce4842223254645b230cece75b2d69ee3286930c3256c2eb992069de0c3"},
	};
	uint8_t id[WIRE_SCHEMA_SIZE];
	char text[2 * WIRE_SCHEMA_SIZE + 1];

	ck_assert_uint_eq(sizeof(id), SCHEMA_ID_SIZE);
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		schema_id((const uint8_t *)rows[i].document, strlen(rows[i].document), id);
		for (size_t byte = 0; byte < sizeof(id); byte++)
			snprintf(text + 2 * byte, 3, "%02x", (unsigned)id[byte]);
		ck_assert_str_eq(text, rows[i].id);
	}
}
END_TEST

static Suite *wire_suite(void)
{
	Suite *suite = suite_create("wire");
	TCase *samples = tcase_create("samples"), *types = tcase_create("types");
	TCase *fields = tcase_create("fields"), *encoding = tcase_create("encoding");
	const int count = (int)ARRAY_LENGTH(layouts);

	tcase_add_test(samples, samples_cover_every_type);
	tcase_add_loop_test(samples, sample_is_decoded_and_encoded_back, 0, count);
	tcase_add_loop_test(samples, frame_that_is_not_all_there_is_incomplete, 0, count);
	tcase_add_loop_test(samples, payload_of_another_length_is_malformed, 0, count);
	tcase_add_loop_test(samples, bytes_mean_what_the_layout_says, 0, count);
	suite_add_tcase(suite, samples);

	tcase_add_test(types, types_have_their_numbers);
	tcase_add_test(types, servers_alone_send_these);
	tcase_add_test(types, stream_is_checked_from_the_header_alone);
	tcase_add_test(types, unknown_types_are_skipped_on_any_stream);
	tcase_add_test(types, versions_compare_by_major_then_minor);
	suite_add_tcase(suite, types);

	tcase_add_test(fields, publish_ack_has_a_position_from_1_1);
	tcase_add_test(fields, deliver_has_an_origin_from_1_2);
	tcase_add_test(fields, durable_subscribe_has_three_more_fields);
	tcase_add_test(fields, worker_register_may_end_in_contracts);
	tcase_add_test(fields, envelope_points_into_the_frame);
	tcase_add_test(fields, lists_are_walked_to_their_end);
	tcase_add_test(fields, peer_is_told_what_was_wrong);
	suite_add_tcase(suite, fields);

	tcase_add_test(encoding, frame_that_no_length_can_say_is_refused);
	tcase_add_test(encoding, hot_publish_ack_is_the_codecs);
	tcase_add_test(encoding, hot_deliver_is_the_codecs);
	tcase_add_test(encoding, hot_reply_envelope_is_the_codecs);
	tcase_add_test(encoding, integers_are_big_endian);
	tcase_add_test(encoding, schema_ids_are_the_documented_ones);
	suite_add_tcase(suite, encoding);
	return suite;
}

int main(void)
{
	SRunner *runner = srunner_create(wire_suite());
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed > 0;
}
