/*
 * The codec where the vectors say nothing: the fields of versions 1.1 and 1.2, of durable
 * subscriptions and of contracts, what frames point to, what peers are told, frames too long to be
 * encoded, and the writers of the hot paths.
 */
#include "wire/wire.h"

#include <check.h>
#include <stdio.h>
#include <string.h>

#include "base/schema.h"
#include "wire_samples.h"

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
	ck_assert_int_eq(sample_decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_0, &why),
			 WIRE_MALFORMED);

	sample = sample_of(WIRE_PUBLISH_ACK, 0x03, WIRE_VERSION_1_0, "8");
	sample_decode(&sample, &frame);
	ck_assert(!frame.u.publish_ack.has_position);
	ck_assert_uint_eq(frame.u.publish_ack.position, 0);
	ck_assert_int_eq(sample_decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_1, &why),
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
	ck_assert_int_eq(sample_decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_1, &why),
			 WIRE_MALFORMED);

	sample = sample_of(WIRE_DELIVER, 0x81, WIRE_VERSION_1_1, "8" DEPENDENT);
	sample_decode(&sample, &frame);
	ck_assert(!frame.u.deliver.has_origin);
	ck_assert_uint_eq(frame.u.deliver.boot, 0);
	ck_assert_uint_eq(frame.u.deliver.message, 0);
	ck_assert_int_eq(sample_decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_2, &why),
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
	ck_assert_int_eq(sample_decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_0, &why),
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
	ck_assert_int_eq(sample_decode_exact(sample.bytes, sample.length, WIRE_VERSION_1_0, &why),
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
		{{WIRE_PUBLISH, 0, {1, 0}, "S"},
		 1,
		 0,
		 "the channel runs past the end of the frame"},
		{{WIRE_PUBLISH, 0, {1, 0}, "S"}, 0, 4, "the channel is not valid UTF-8"},
		{{WIRE_PUBLISH, 2, {1, 0}, "S" INDEPENDENT},
		 0,
		 0,
		 "the idempotency key runs past the end of the frame"},
		{{WIRE_PUBLISH, 0, {1, 0}, "S(I(00))"},
		 0,
		 0,
		 "the payload runs past the end of the envelope"},
		{{WIRE_PUBLISH, 0, {1, 0}, "S(I(0)B)"},
		 0,
		 0,
		 "the vector clock entry runs past the end of the causal context"},
		{{WIRE_PUBLISH, 0, {1, 0}, "S(I(001)B)"},
		 0,
		 0,
		 "bytes are left over after the causal context"},
		{{WIRE_PUBLISH, 0, {1, 0}, "S(I(00)B1)"},
		 0,
		 0,
		 "bytes are left over after the envelope's payload"},
		{{WIRE_PUBLISH, 0, {1, 0}, "S(I(P)B)"},
		 0,
		 0,
		 "the parent message id runs past the end of the causal context"},
		{{WIRE_PING, 0, {1, 0}, "1"},
		 0,
		 0,
		 "bytes are left over after the last field of the frame"},
		{{WIRE_DEFER, 0, {1, 0}, "S0"},
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

START_TEST(hot_publish_ack_with_position_is_the_codecs)
{
	static const uint8_t flags[] = {0, 0x01, 0x80};
	uint8_t hot[WIRE_PUBLISH_ACK_POSITION_SIZE], bytes[WIRE_PUBLISH_ACK_POSITION_SIZE];

	for (size_t i = 0; i < ARRAY_LENGTH(flags); i++) {
		struct wire_frame frame = {
			.header = {.type = WIRE_PUBLISH_ACK,
				   .flags = flags[i] | 0x02,
				   .stream = 0x01020304},
			.u.publish_ack = {.message = UINT64_C(0x1112131415161718),
					  .has_position = true,
					  .position = UINT64_C(0x2122232425262728)},
		};

		wire_put_publish_ack_position(hot, flags[i], 0x01020304,
					      UINT64_C(0x1112131415161718),
					      UINT64_C(0x2122232425262728));
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

static Suite *wire_fields_suite(void)
{
	Suite *suite = suite_create("wire fields");
	TCase *fields = tcase_create("fields"), *encoding = tcase_create("encoding");

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
	tcase_add_test(encoding, hot_publish_ack_with_position_is_the_codecs);
	tcase_add_test(encoding, hot_deliver_is_the_codecs);
	tcase_add_test(encoding, hot_reply_envelope_is_the_codecs);
	tcase_add_test(encoding, integers_are_big_endian);
	tcase_add_test(encoding, schema_ids_are_the_documented_ones);
	suite_add_tcase(suite, encoding);
	return suite;
}

int main(void)
{
	SRunner *runner = srunner_create(wire_fields_suite());
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed > 0;
}
