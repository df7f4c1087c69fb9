/* Bounded text, names that clients chose, and UTF-8. */
#include "base/text.h"

#include <check.h>
#include <stdio.h>
#include <string.h>

START_TEST(spans_compare_by_their_bytes)
{
	ck_assert(span_equal(span_of("abc"), SPAN_LITERAL("abc")));
	ck_assert(!span_equal(span_of("abc"), span_of("abd")));
	ck_assert(!span_equal(span_of("abc"), span_of("ab")));
	ck_assert(span_equal(span_of(""), span_of(NULL)));
	ck_assert_ptr_null(span_of(NULL).data);
}
END_TEST

START_TEST(text_is_cut_between_characters)
{
	char array[8];
	struct text text = TEXT_INIT(array);

	ck_assert_str_eq(array, "");
	text_add(&text, "%s-%d", "abc", 42);
	ck_assert_str_eq(array, "abc-42");
	text_add_bytes(&text, "x", 1);
	ck_assert(!text.cut);
	text_add(&text, "y");
	ck_assert(text.cut);
	ck_assert_str_eq(array, "abc-42x");

	text = TEXT_INIT(array);
	text_add(&text, "%s", "abcde\xE2\x82\xAC");
	ck_assert_str_eq(array, "abcde");
	ck_assert_uint_eq(text.length, 5);
	ck_assert(text.cut);
	/* Room is left, but behind a hole. */
	text_add(&text, "f");
	text_add_bytes(&text, "f", 1);
	text_add_name(&text, span_of("f"));
	ck_assert_str_eq(array, "abcde");

	text = TEXT_INIT(array);
	text_add_bytes(&text, "abcd\xF0\x9F\x90\x91", 8);
	ck_assert_str_eq(array, "abcd");
	ck_assert(text.cut);

	text = TEXT_INIT(array);
	text_add_bytes(&text, "abc\xF0\x9F\x90\x91", 7);
	ck_assert_str_eq(array, "abc\xF0\x9F\x90\x91");
	ck_assert(!text.cut);
}
END_TEST

START_TEST(text_in_an_array_of_one_stays_empty)
{
	char array[1];
	struct text text = TEXT_INIT(array);

	text_add(&text, "%s", "");
	ck_assert(!text.cut);
	text_add(&text, "a");
	ck_assert(text.cut);
	ck_assert_str_eq(array, "");

	text = TEXT_INIT(array);
	text_add_bytes(&text, "abc", 3);
	ck_assert(text.cut);
	ck_assert_str_eq(array, "");
}
END_TEST

static const char *name_shown(struct span name)
{
	static char array[4 * TEXT_NAME_MAX + 1];
	struct text text = TEXT_INIT(array);

	text_add_name(&text, name);
	ck_assert(!text.cut);
	ck_assert_uint_eq(strlen(array), text.length);
	return array;
}

START_TEST(name_is_shown_without_control_characters)
{
	ck_assert_str_eq(name_shown(span_of("jobs/\xC3\xA9t\xC3\xA9 \"a\"")),
			 "jobs/\xC3\xA9t\xC3\xA9 \"a\"");
	ck_assert_str_eq(name_shown(SPAN_LITERAL("a\0b\n\x1F\x7F\\x")),
			 "a\\x00b\\x0a\\x1f\\x7f\\x5cx");
	/* C1 ends where the no-break space begins. */
	ck_assert_str_eq(name_shown(span_of("\xC2\x80\xC2\x9F\xC2\xA0")),
			 "\\xc2\\x80\\xc2\\x9f\xC2\xA0");
	ck_assert_str_eq(name_shown(span_of("\xFF"
					    "a\xC3")),
			 "\\xffa\\xc3");
	ck_assert_str_eq(name_shown(span_of("\xED\xA0\x80")), "\\xed\\xa0\\x80");
	ck_assert_str_eq(name_shown(span_of("")), "");
}
END_TEST

START_TEST(long_name_is_cut_between_characters)
{
	char name[200], expected[4 * TEXT_NAME_MAX + 1];
	size_t i;

	memset(name, 'a', sizeof(name));
	snprintf(expected, sizeof(expected), "%.128s", name);
	ck_assert_str_eq(name_shown((struct span){(uint8_t *)name, 128}), expected);
	ck_assert_str_eq(name_shown((struct span){(uint8_t *)name, 129}), expected);
	memcpy(name + 126, "\xC3\xA9\xC3\xA9", 4);
	snprintf(expected, sizeof(expected), "%.128s", name);
	ck_assert_str_eq(name_shown((struct span){(uint8_t *)name, 200}), expected);
	memcpy(name + 125, "a\xE2\x82\xAC", 4);
	snprintf(expected, sizeof(expected), "%.126s", name);
	ck_assert_str_eq(name_shown((struct span){(uint8_t *)name, 200}), expected);

	memset(name, '\n', sizeof(name));
	for (i = 0; i < TEXT_NAME_MAX; i++)
		memcpy(expected + 4 * i, "\\x0a", 5);
	ck_assert_str_eq(name_shown((struct span){(uint8_t *)name, 200}), expected);
}
END_TEST

START_TEST(escape_is_not_cut_in_half)
{
	char array[8];
	struct text text = TEXT_INIT(array);

	text_add_name(&text, span_of("a\n\n"));
	ck_assert_str_eq(array, "a\\x0a");
	ck_assert(text.cut);
}
END_TEST

/* CODE in UTF-8's scheme, whether that allows it or not, in LENGTH bytes. */
static void encode(uint32_t code, uint8_t *bytes, size_t length)
{
	static const uint8_t leads[] = {0, 0, 0xC0, 0xE0, 0xF0};
	size_t i;

	for (i = length; i > 1; i--) {
		bytes[i - 1] = (uint8_t)(0x80 | (code & 0x3F));
		code >>= 6;
	}
	bytes[0] = (uint8_t)(leads[length] | code);
}

/* By the definition: some character of RFC 3629, encoded, is BYTES. */
static bool is_character(const uint8_t *bytes, size_t length)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	static const uint8_t lead_bits[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
	uint8_t again[4];
	uint32_t code = bytes[0] & lead_bits[length];
	size_t i;

	for (i = 1; i < length; i++)
		code = code << 6 | (bytes[i] & 0x3F);
	encode(code, again, length);
	return memcmp(bytes, again, length) == 0 && code >= least[length] && code <= 0x10FFFF &&
	       (code < 0xD800 || code > 0xDFFF);
}

static bool is_text(const uint8_t *bytes, size_t length)
{
	size_t first;

	if (length == 0)
		return true;
	for (first = 1; first <= 4 && first <= length; first++)
		if (is_character(bytes, first))
			return is_text(bytes + first, length - first);
	return false;
}

START_TEST(utf8_is_what_the_rfc_says)
{
	/* Each side of each border that a byte behind the first has. */
	static const uint8_t borders[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0,
					  0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xF0, 0xF4, 0xFF};
	uint8_t bytes[4];
	size_t count, length, i, j;

	ck_assert(utf8_valid(NULL, 0));
	for (length = 1; length <= 4; length++) {
		count = 256;
		for (i = 1; i < length; i++)
			count *= ARRAY_LENGTH(borders);
		for (i = 0; i < count; i++) {
			size_t rest = i / 256;

			bytes[0] = (uint8_t)i;
			for (j = 1; j < length; j++) {
				bytes[j] = borders[rest % ARRAY_LENGTH(borders)];
				rest /= ARRAY_LENGTH(borders);
			}
			if (utf8_valid(bytes, length) != is_text(bytes, length))
				ck_abort_msg("%02x %02x %02x %02x, the first %zu", bytes[0],
					     bytes[1], bytes[2], bytes[3], length);
		}
	}
}
END_TEST

START_TEST(utf8_has_every_character)
{
	static const uint32_t ends[] = {0, 0x7F, 0x7FF, 0xFFFF, 0x1FFFFF};
	uint8_t bytes[4];
	uint32_t code;
	size_t length = 1;

	for (code = 0; code <= 0x1FFFFF; code++) {
		bool legal = code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);

		if (code > ends[length])
			length++;
		encode(code, bytes, length);
		if (utf8_valid(bytes, length) != legal)
			ck_abort_msg("U+%04X", (unsigned)code);
		if (legal && length > 1 && utf8_valid(bytes, length - 1))
			ck_abort_msg("U+%04X without its last byte", (unsigned)code);
	}
}
END_TEST

START_TEST(utf8_is_cut_as_late_as_possible)
{
	static const uint8_t bytes[] = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x90\x91z";
	static const size_t cuts[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11, 11};
	size_t limit;

	for (limit = 0; limit < ARRAY_LENGTH(cuts); limit++)
		ck_assert_uint_eq(utf8_cut(bytes, sizeof(bytes) - 1, limit), cuts[limit]);
	ck_assert_uint_eq(utf8_cut(bytes, 0, 0), 0);
	/* What lies behind the text is not looked at. */
	ck_assert_uint_eq(utf8_cut(bytes, 2, 2), 2);
}
END_TEST

static Suite *text_suite(void)
{
	Suite *suite = suite_create("text");
	TCase *tests = tcase_create("text");

	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, spans_compare_by_their_bytes);
	tcase_add_test(tests, text_is_cut_between_characters);
	tcase_add_test(tests, text_in_an_array_of_one_stays_empty);
	tcase_add_test(tests, name_is_shown_without_control_characters);
	tcase_add_test(tests, long_name_is_cut_between_characters);
	tcase_add_test(tests, escape_is_not_cut_in_half);
	tcase_add_test(tests, utf8_is_what_the_rfc_says);
	tcase_add_test(tests, utf8_has_every_character);
	tcase_add_test(tests, utf8_is_cut_as_late_as_possible);
	suite_add_tcase(suite, tests);
	return suite;
}

int main(void)
{
	SRunner *runner = srunner_create(text_suite());
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
