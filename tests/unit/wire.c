/*
 * The codec on one sample of each form of each type, at versions 1.0 to 1.2, and on what follows
 * from the meaning of each of its bytes when that byte, or the length, is changed; types and the
 * streams that they may stand on.
 */
#include "wire/wire.h"

#include <check.h>
#include <string.h>

#include "wire_samples.h"

static const struct layout layouts[] = {
	{WIRE_CONNECT, 0, {1, 0}, "2222B"},
	{WIRE_CONNECT_ACK, 0, {1, 0}, "224"},
	{WIRE_CONNECT_ERROR, 0, {1, 0}, "2PS"},
	{WIRE_CONNECT_ERROR, 0, {1, 0}, "20"},
	{WIRE_DISCONNECT, 0, {1, 0}, ""},
	{WIRE_SUBSCRIBE, 0, {1, 0}, "SLIIM"},
	{WIRE_SUBSCRIBE, 0x7f, {1, 2}, "SLIIM"},
	{WIRE_SUBSCRIBE, 0x80, {1, 0}, "SLIIM"},
	{WIRE_SUBSCRIBE, 0x80, {1, 0}, "SLIIM|S18"},
	{WIRE_SUBSCRIBE, 0xff, {1, 2}, "SLIIM|S18"},
	{WIRE_SUBSCRIBE_ACK, 0, {1, 0}, "8I"},
	{WIRE_SUBSCRIBE_ERROR, 0, {1, 0}, "2PS"},
	{WIRE_SUBSCRIBE_ERROR, 0, {1, 0}, "20"},
	{WIRE_UNSUBSCRIBE, 0, {1, 0}, "8"},
	{WIRE_PUBLISH, 0, {1, 0}, "S" INDEPENDENT},
	{WIRE_PUBLISH, 0xfd, {1, 2}, "S" DEPENDENT},
	{WIRE_PUBLISH, 0x02, {1, 0}, "S" INDEPENDENT "S"},
	{WIRE_PUBLISH, 0xff, {1, 2}, "S" DEPENDENT "S"},
	{WIRE_PUBLISH_ACK, 0, {1, 0}, "8"},
	{WIRE_PUBLISH_ACK, 0x02, {1, 0}, "8"},
	{WIRE_PUBLISH_ACK, 0xfd, {1, 2}, "8"},
	{WIRE_PUBLISH_ACK, 0x02, {1, 1}, "88"},
	{WIRE_PUBLISH_ACK, 0xff, {1, 2}, "88"},
	{WIRE_PUBLISH_ACK, 0x02, {2, 0}, "88"},
	{WIRE_PUBLISH_ERROR, 0, {1, 0}, "2PS"},
	{WIRE_PUBLISH_ERROR, 0, {1, 0}, "20"},
	{WIRE_CONVERSATION_OPEN, 0, {1, 0}, "8S"},
	{WIRE_CONVERSATION_MESSAGE, 0, {1, 0}, "8" INDEPENDENT},
	{WIRE_CONVERSATION_MESSAGE, 0xff, {1, 2}, "8" DEPENDENT},
	{WIRE_CONVERSATION_CLOSE, 0, {1, 0}, "8P2PS"},
	{WIRE_CONVERSATION_CLOSE, 0, {1, 0}, "80PS"},
	{WIRE_CONVERSATION_CLOSE, 0, {1, 0}, "8P20"},
	{WIRE_CONVERSATION_CLOSE, 0, {1, 0}, "800"},
	{WIRE_CONVERSATION_ERROR, 0, {1, 0}, "82PS"},
	{WIRE_CONVERSATION_ERROR, 0, {1, 0}, "820"},
	{WIRE_ACCEPT, 0xc0, {1, 0}, "S"},
	{WIRE_DEFER, 0xc0, {1, 0}, "SPS"},
	{WIRE_DEFER, 0, {1, 0}, "S0"},
	{WIRE_REJECT, 0x80, {1, 0}, "SPS"},
	{WIRE_REJECT, 0, {1, 0}, "S0"},
	{WIRE_PING, 0, {1, 0}, ""},
	{WIRE_PONG, 0, {1, 0}, ""},
	{WIRE_PUSH, 0, {1, 0}, "8B"},
	{WIRE_PUSH_REPLY, 0x81, {1, 0}, "8B"},
	{WIRE_WORKER_REGISTER, 0, {1, 0}, "LSSSPSLSSS"},
	{WIRE_WORKER_REGISTER, 0x80, {1, 2}, "LSSS0LSSS"},
	{WIRE_WORKER_REGISTER, 0, {1, 0}, "LSSSPSLSSS|LSSSSSS"},
	{WIRE_WORKER_REGISTER_ACK, 0, {1, 0}, "0"},
	{WIRE_WORKER_REGISTER_ACK, 0, {1, 0}, "PS"},
	{WIRE_DELIVER, 0, {1, 0}, "8" INDEPENDENT},
	{WIRE_DELIVER, 0x01, {1, 1}, "8" DEPENDENT},
	{WIRE_DELIVER, 0xfe, {1, 2}, "8" DEPENDENT},
	{WIRE_DELIVER, 0x01, {1, 2}, "8" INDEPENDENT "88"},
	{WIRE_DELIVER, 0xff, {1, 3}, "8" DEPENDENT "88"},
};

/* SAMPLE, whose payload has LENGTH bytes now, gives VERDICT; WHAT was done to it at OFFSET. */
static void sample_expect(const struct layout *layout, struct sample *sample, size_t length,
			  enum wire_verdict expected, const char *what, size_t offset)
{
	const char *why;
	enum wire_verdict verdict;

	wire_put_u32(sample->bytes + 6, (uint32_t)(length - WIRE_HEADER_SIZE));
	verdict = sample_decode_exact(sample->bytes, length, sample->version, &why);
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
		ck_assert_int_eq(sample_decode_exact(sample.bytes, length, sample.version, &why),
				 WIRE_INCOMPLETE);
	wire_put_u32(sample.bytes + 6, UINT32_MAX);
	ck_assert_int_eq(sample_decode_exact(sample.bytes, sample.length, sample.version, &why),
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
			ck_assert_int_eq(
				sample_decode_exact(bytes, sizeof(bytes), WIRE_VERSION_1_2, &why),
				legal ? WIRE_INCOMPLETE : WIRE_INVALID_STREAM);
			ck_assert_int_eq(why == NULL, legal);
			ck_assert_int_eq(sample_decode_exact(bytes, sizeof(bytes) - 1,
							     WIRE_VERSION_1_2, &why),
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
			ck_assert_int_eq(sample_decode_exact(bytes, WIRE_HEADER_SIZE + 4,
							     WIRE_VERSION_1_0, &why),
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

static Suite *wire_suite(void)
{
	Suite *suite = suite_create("wire");
	TCase *samples = tcase_create("samples"), *types = tcase_create("types");
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
