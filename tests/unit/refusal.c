/* Which payloads of a PushReply are a worker's refusal, and the look at JSON before it is parsed.
 */
#define FAILING_MEMORY_IS_MINE
#include "failing_memory.h"
#include "net/refusal.h"

#include <check.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_guard.h"

static enum refusal refusal;
static struct span words;
static uint8_t buffer[BROKER_REFUSAL_WORDS_MAX];

static bool parse(struct span payload)
{
	/* The parser must need no terminator: the copy ends where the payload does. */
	uint8_t *exact = malloc(payload.length == 0 ? 1 : payload.length);

	ck_assert_ptr_nonnull(exact);
	if (payload.length > 0)
		memcpy(exact, payload.data, payload.length);
	bool parsed = refusal_parse((struct span){exact, payload.length}, &refusal, &words, buffer);
	free(exact);
	ck_assert_uint_le(words.length, BROKER_REFUSAL_WORDS_MAX);
	ck_assert(words.data == buffer);
	ck_assert_int_eq(parsed, refusal != REFUSAL_NONE);
	if (!parsed)
		ck_assert_uint_eq(words.length, 0);
	return parsed;
}

static void accepts(const char *payload, enum refusal expected, struct span text)
{
	ck_assert_msg(parse(span_of(payload)), "refused: %s", payload);
	ck_assert_int_eq(refusal, expected);
	ck_assert_msg(span_equal(words, text), "wrong words: %s", payload);
}

static void rejects(const char *payload)
{
	ck_assert_msg(!parse(span_of(payload)), "accepted: %s", payload);
}

START_TEST(refusals)
{
	accepts("{\"code\":\"busy\",\"words\":\"later\"}", REFUSAL_BUSY, SPAN_LITERAL("later"));
	accepts("{\"code\":\"invalid\",\"words\":\"\"}", REFUSAL_INVALID, SPAN_LITERAL(""));
	accepts(" {\n\t\"words\" : \"a\\n\\u00e9\" , \"code\" : \"unavailable\" } ",
		REFUSAL_UNAVAILABLE, SPAN_LITERAL("a\n\xC3\xA9"));
	accepts("{\"code\":\"internal\",\"words\":\"{[\\\"\\\\\"}", REFUSAL_INTERNAL,
		SPAN_LITERAL("{[\"\\"));
	accepts("{\"code\":\"\\u0062usy\",\"words\":\"a\\u0000b\"}", REFUSAL_BUSY,
		SPAN_LITERAL("a\0b"));
}
END_TEST

START_TEST(other_payloads)
{
	rejects("");
	rejects(" ");
	rejects("busy");
	rejects("null");
	rejects("\"busy\"");
	rejects("[]");
	rejects("[\"code\",\"busy\"]");
	rejects("{}");
	rejects("{\"code\":\"busy\"}");
	rejects("{\"words\":\"later\"}");
	rejects("{\"code\":\"busy\",\"words\":\"later\",\"more\":1}");
	rejects("{\"code\":\"busy\",\"word\":\"later\"}");
	rejects("{\"Code\":\"busy\",\"words\":\"later\"}");
	rejects("{\"code\":\"other\",\"words\":\"later\"}");
	rejects("{\"code\":\"Busy\",\"words\":\"later\"}");
	rejects("{\"code\":\"busy \",\"words\":\"later\"}");
	rejects("{\"code\":\"\",\"words\":\"later\"}");
	rejects("{\"code\":\"busy\\u0000\",\"words\":\"later\"}");
	rejects("{\"code\":1,\"words\":\"later\"}");
	rejects("{\"code\":null,\"words\":\"later\"}");
	rejects("{\"code\":\"busy\",\"words\":1}");
	rejects("{\"code\":\"busy\",\"words\":null}");
	rejects("{\"code\":\"busy\",\"words\":[]}");
	rejects("{\"code\":\"busy\",\"words\":\"a\",\"words\":\"b\"}");
	rejects("{\"code\":\"busy\",\"code\":\"busy\",\"words\":\"a\"}");
	rejects("{\"code\":\"busy\",\"words\":\"later\"");
	rejects("{\"code\":\"busy\",\"words\":\"later\"}}");
	rejects("{\"code\":\"busy\",\"words\":\"later\"}{}");
	rejects("{\"code\":\"busy\",\"words\":\"later\",}");
	rejects("{'code':'busy','words':'later'}");
	rejects("{\"code\":\"busy\",\"words\":\"\xFF\"}");
	rejects("{\"code\":\"busy\",\"words\":\"\\ud800\"}");
	rejects("\xEF\xBB\xBF{\"code\":\"busy\",\"words\":\"later\"}");
	ck_assert(!parse(SPAN_LITERAL("{\"code\":\"busy\",\"words\":\"later\"}\0")));
	ck_assert(!parse(SPAN_LITERAL("{\"code\":\"busy\",\"words\":\"\0\"}")));
}
END_TEST

/* A refusal whose words are COUNT times TEXT, padded with blanks to LENGTH bytes. */
static bool parse_long(const char *text, size_t count, size_t length)
{
	static char payload[REFUSAL_PAYLOAD_MAX + 2];
	size_t at = 0;

	memset(payload, ' ', sizeof(payload));
	at += (size_t)sprintf(payload, "{\"code\":\"busy\",\"words\":\"");
	for (size_t i = 0; i < count; i++) {
		memcpy(payload + at, text, strlen(text));
		at += strlen(text);
	}
	memcpy(payload + at, "\"}", 2);
	at += 2;
	return parse((struct span){(const uint8_t *)payload, size_max(at, length)});
}

START_TEST(lengths)
{
	ck_assert(parse_long("x", 1024, 0));
	ck_assert_uint_eq(words.length, 1024);
	ck_assert(!parse_long("x", 1025, 0));

	/* Bytes count, not characters or escapes. */
	ck_assert(parse_long("\xC3\xA9", 512, 0));
	ck_assert(!parse_long("\xC3\xA9", 513, 0));
	ck_assert(parse_long("\\u0041", 1024, 0));
	ck_assert(parse_long("\\ud83d\\ude00", 256, 0));
	ck_assert(!parse_long("\\ud83d\\ude00", 257, 0));

	ck_assert(parse_long("x", 1, REFUSAL_PAYLOAD_MAX));
	ck_assert(!parse_long("x", 1, REFUSAL_PAYLOAD_MAX + 1));
}
END_TEST

START_TEST(deep_payload)
{
	static uint8_t deep[REFUSAL_PAYLOAD_MAX];

	memset(deep, '[', sizeof(deep));
	ck_assert(!parse((struct span){deep, sizeof(deep)}));
	for (size_t i = 0; i + 5 <= sizeof(deep); i += 5)
		memcpy(deep + i, "{\"a\":", 5);
	ck_assert(!parse((struct span){deep, sizeof(deep)}));
}
END_TEST

START_TEST(depth)
{
	ck_assert(json_depth_ok(span_of(""), 0));
	ck_assert(json_depth_ok(span_of("1"), 0));
	ck_assert(!json_depth_ok(span_of("{"), 0));
	ck_assert(json_depth_ok(span_of("[{}]"), 2));
	ck_assert(!json_depth_ok(span_of("[{}]"), 1));
	ck_assert(json_depth_ok(span_of("[][][]{}{}"), 1));
	ck_assert(json_depth_ok(span_of("[\"[[[{{{\"]"), 1));
	ck_assert(json_depth_ok(span_of("[\"\\\"[[\"]"), 1));
	ck_assert(!json_depth_ok(span_of("[\"\\\\\"[\"]"), 1));
	ck_assert(json_depth_ok(span_of("[\"\\"), 1));
	ck_assert(json_depth_ok(span_of("]]]}}[["), 2));
	ck_assert(!json_depth_ok(span_of("]]]}}[["), 1));
}
END_TEST

static uint64_t random_state;

static uint64_t random_below(uint64_t limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % limit;
}

/* Depth as a parser counts it; 0 when TEXT is no JSON. */
static size_t depth_of(const json_t *value)
{
	const json_t *item;
	const char *key;
	size_t index, deepest = 0;

	if (!json_is_array(value) && !json_is_object(value))
		return 0;
	json_array_foreach((json_t *)value, index, item) deepest =
		size_max(deepest, depth_of(item));
	json_object_foreach((json_t *)value, key, item) deepest = size_max(deepest, depth_of(item));
	return deepest + 1;
}

/*
 * Random texts out of the pieces that matter. A second reading of the rules, on the parsed value,
 * must agree; and what is nested too deep for the look beforehand is so for the parser.
 */
START_TEST(random_payloads)
{
	static const char *const pieces[] = {
		"{",
		"}",
		"[",
		"]",
		"\"",
		"\\",
		":",
		",",
		" ",
		"1",
		"null",
		"\"code\"",
		"\"words\"",
		"\"busy\"",
		"\"x\"",
		"\\u0000",
		"\xC3\xA9",
		"\xFF",
		"\"code\":",
		"\"words\":",
		"\"busy\",",
		"{\"code\":\"busy\",\"words\":\"",
		"{\"words\":\"x\",\"code\":",
		"\"}",
		"[[]]",
		"[{},",
		"{\"x\":[",
		"]}",
	};
	size_t accepted = 0, deep = 0;

	random_state = UINT64_C(88172645463325252) + (uint64_t)_i;
	for (int round = 0; round < 5000; round++) {
		char text[256] = "";
		size_t count = 1 + random_below(12);
		json_error_t error;

		for (size_t i = 0; i < count; i++)
			strcat(text, pieces[random_below(ARRAY_LENGTH(pieces))]);
		bool parsed = parse(span_of(text));
		json_t *value = json_loads(
			text, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY, &error);
		const json_t *code = json_object_get(value, "code");
		bool expected = json_object_size(value) == 2 && json_is_string(code) &&
				strcmp(json_string_value(code), "busy") == 0 &&
				json_string_length(code) == 4 &&
				json_is_string(json_object_get(value, "words"));

		ck_assert_msg(parsed == expected, "seed %d round %d: %s", _i, round, text);
		if (value != NULL) {
			size_t levels = depth_of(value);

			ck_assert(json_depth_ok(span_of(text), levels));
			ck_assert(levels == 0 || !json_depth_ok(span_of(text), levels - 1));
			deep += levels > 1;
		}
		accepted += parsed;
		json_decref(value);
	}
	/* Otherwise the pieces would test nothing. */
	ck_assert_uint_gt(accepted, 0);
	ck_assert_uint_gt(deep, 0);
}
END_TEST

/* Any words of up to 1024 bytes come through a serialiser and the parser as they were. */
START_TEST(random_words)
{
	static const char *const codes[] = {"busy", "invalid", "unavailable", "internal"};
	static const char *const characters[] = {
		"a", "\"", "\\", "\n", "\x7F", "\xC3\xA9", "{", "\xE2\x82\xAC", "\xF0\x9F\x98\x80",
		"/"};

	rejects("null"); /* values are made after the first parse only */
	random_state = UINT64_C(1181783497276652981) + (uint64_t)_i;
	for (int round = 0; round < 500; round++) {
		char text[BROKER_REFUSAL_WORDS_MAX + 4] = "";
		size_t length = random_below(BROKER_REFUSAL_WORDS_MAX + 1), at = 0;
		size_t code = random_below(ARRAY_LENGTH(codes));

		for (;;) {
			const char *next = characters[random_below(ARRAY_LENGTH(characters))];

			if (at + strlen(next) > length)
				break;
			memcpy(text + at, next, strlen(next) + 1);
			at += strlen(next);
		}
		json_t *object = json_pack("{s:s, s:s}", "code", codes[code], "words", text);
		char payload[16 * BROKER_REFUSAL_WORDS_MAX];
		size_t size = json_dumpb(object, payload, sizeof(payload) - 1,
					 random_below(2) ? JSON_ENSURE_ASCII : 0);

		ck_assert_uint_gt(size, 0);
		ck_assert_uint_lt(size, sizeof(payload));
		payload[size] = '\0';
		accepts(payload, (enum refusal)(REFUSAL_BUSY + code), span_of(text));
		json_decref(object);
	}
}
END_TEST

/* Whichever allocation fails: it is a refusal in disorder, and nothing is left behind. _i: alone,
 * or with all that follow. */
START_TEST(no_memory)
{
	static const char *const escapes[] = {"x", "\\\"", "\\u00e9", "w\\\\", "\xC3\xA9"};
	char payload[8 * BROKER_REFUSAL_WORDS_MAX];

	for (size_t i = 0; i < ARRAY_LENGTH(escapes); i++) {
		bool failed = true, parsed;

		strcpy(payload, "{\"code\":\"busy\",\"words\":\"");
		for (int j = 0; j < 300; j++)
			strcat(payload, escapes[i]);
		strcat(payload, "\"}");
		for (long which = 1; failed; which++) {
			failing_begin(which, _i == 1);
			parsed = parse(span_of(payload));
			failed = failing_failed();
			failing_end();
			ck_assert(parsed == !failed);
			ck_assert_int_eq(failing_allocated(), 0);
			ck_assert(which > 5 || failed);
		}
	}
}
END_TEST

static Suite *refusal_suite(void)
{
	Suite *suite = suite_create("refusal");
	TCase *plain = tcase_create("plain");
	TCase *random = tcase_create("random");

	tcase_add_test(plain, refusals);
	tcase_add_test(plain, other_payloads);
	tcase_add_test(plain, lengths);
	tcase_add_test(plain, deep_payload);
	tcase_add_test(plain, depth);
	tcase_add_loop_test(plain, no_memory, 0, 2);
	suite_add_tcase(suite, plain);
	tcase_add_loop_test(random, random_payloads, 1, 6);
	tcase_add_loop_test(random, random_words, 1, 4);
	suite_add_tcase(suite, random);
	return suite;
}

int main(void)
{
	SRunner *runner = srunner_create(refusal_suite());
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
