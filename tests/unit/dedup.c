/* Idempotency keys on their own, against an array: window, most keys, reconfiguration. */
#include "broker/dedup.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define KEYS 40
#define WINDOW_MS 1000

/* Everything that was ever claimed, oldest first. */
static struct {
	unsigned key;
	int64_t claimed_ns;
	uint64_t message;
} model[20000];

static size_t model_count;

/* Of the newest MAX_KEYS that are younger than the window: the message of KEY, or 0. */
static uint64_t model_find(unsigned key, int64_t now_ns, int64_t window_ms, uint64_t max_keys)
{
	for (size_t i = model_count; i > 0 && model_count - i < max_keys; i--) {
		if (model[i - 1].claimed_ns + window_ms * NS_PER_MS <= now_ns)
			break;
		if (model[i - 1].key == key)
			return model[i - 1].message;
	}
	return 0;
}

static struct span key_text(unsigned key, char text[16])
{
	/* Keys of several lengths, one of them empty. */
	int length = key == 0 ? 0 : snprintf(text, 16, "%.*u", (int)(key % 7) + 1, key);

	return (struct span){(const uint8_t *)text, (size_t)length};
}

/* A small generator, the same everywhere. */
static unsigned draw(unsigned below)
{
	static uint32_t state = 12345;

	state = state * 1664525 + 1013904223;
	return (state >> 8) % below;
}

START_TEST(agrees_with_an_array)
{
	struct dedup dedup;
	int64_t now_ns = 5 * NS_PER_S, window_ms = WINDOW_MS;
	uint64_t max_keys = 10, next = 1;
	char text[16];

	dedup_init(&dedup, window_ms, max_keys);
	for (int i = 0; i < 20000; i++) {
		unsigned key = draw(KEYS);
		uint64_t *message, expected;
		enum dedup_result result;

		now_ns += draw(200) * NS_PER_MS;
		if (draw(500) == 0) {
			window_ms = 100 + draw(2000);
			max_keys = 1 + draw(20);
			/* The array forgets nothing: both start anew. */
			now_ns += 2 * NS_PER_MS;
			dedup_configure(&dedup, 1, 1, now_ns);
			dedup_configure(&dedup, window_ms, max_keys, now_ns + NS_PER_MS);
			now_ns += NS_PER_MS;
			model_count = 0;
			ck_assert_uint_eq(dedup_count(&dedup, now_ns), 0);
		}
		expected = model_find(key, now_ns, window_ms, max_keys);
		result = dedup_claim(&dedup, key_text(key, text), now_ns, &message);
		if (expected != 0) {
			ck_assert_int_eq(result, DEDUP_KNOWN);
			ck_assert_uint_eq(*message, expected);
			continue;
		}
		ck_assert_int_eq(result, DEDUP_NEW);
		*message = next;
		model[model_count].key = key;
		model[model_count].claimed_ns = now_ns;
		model[model_count++].message = next++;
		ck_assert_uint_le(dedup_count(&dedup, now_ns), max_keys);
	}
	dedup_free(&dedup);
}
END_TEST

START_TEST(narrower_bounds_forget_at_once)
{
	struct dedup dedup;
	uint64_t *message;

	dedup_init(&dedup, 1000, 5);
	for (int i = 0; i < 5; i++) {
		ck_assert_int_eq(dedup_claim(&dedup, (struct span){(const uint8_t *)"abcde" + i, 1},
					     i * NS_PER_MS, &message),
				 DEDUP_NEW);
		*message = (uint64_t)i + 1;
	}
	ck_assert_uint_eq(dedup_count(&dedup, 5 * NS_PER_MS), 5);
	dedup_configure(&dedup, 1000, 3, 5 * NS_PER_MS);
	ck_assert_uint_eq(dedup_count(&dedup, 5 * NS_PER_MS), 3);
	dedup_configure(&dedup, 2, 3, 5 * NS_PER_MS);
	ck_assert_uint_eq(dedup_count(&dedup, 5 * NS_PER_MS), 1);
	/* The youngest is the one that is left, and no window brings the others back. */
	dedup_configure(&dedup, 1000, 5, 5 * NS_PER_MS);
	ck_assert_int_eq(dedup_claim(&dedup, SPAN_LITERAL("e"), 6 * NS_PER_MS, &message),
			 DEDUP_KNOWN);
	ck_assert_uint_eq(*message, 5);
	ck_assert_int_eq(dedup_claim(&dedup, SPAN_LITERAL("d"), 6 * NS_PER_MS, &message),
			 DEDUP_NEW);
	*message = 6;
	dedup_free(&dedup);
}
END_TEST

START_TEST(window_that_never_ends)
{
	struct dedup dedup;
	uint64_t *message;

	dedup_init(&dedup, INT64_MAX, 2);
	ck_assert_int_eq(dedup_claim(&dedup, SPAN_LITERAL("k"), NS_PER_S, &message), DEDUP_NEW);
	*message = 1;
	ck_assert_int_eq(dedup_claim(&dedup, SPAN_LITERAL("k"), INT64_MAX - 1, &message),
			 DEDUP_KNOWN);
	ck_assert_uint_eq(*message, 1);
	dedup_free(&dedup);
}
END_TEST

/* However many are over at once, a claim forgets few of them; and the others are over all the same.
 */
START_TEST(many_are_over_at_once)
{
	struct dedup dedup;
	uint64_t *message, left;
	char text[16];

	dedup_init(&dedup, 1000, 100000);
	for (uint64_t i = 0; i < 10000; i++) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)i);
		ck_assert_int_eq(dedup_claim(&dedup, span_of(text), 0, &message), DEDUP_NEW);
		*message = i + 1;
	}
	ck_assert_int_eq(dedup_claim(&dedup, SPAN_LITERAL("9999"), NS_PER_S - 1, &message),
			 DEDUP_KNOWN);
	ck_assert_int_eq(dedup_claim(&dedup, SPAN_LITERAL("9999"), NS_PER_S, &message), DEDUP_NEW);
	*message = 10001;
	ck_assert_uint_gt(dedup.keys.count, 9900);
	ck_assert_int_eq(dedup_claim(&dedup, SPAN_LITERAL("9999"), NS_PER_S, &message),
			 DEDUP_KNOWN);
	ck_assert_uint_eq(*message, 10001);
	left = dedup_count(&dedup, NS_PER_S);
	ck_assert_uint_gt(left, 1000);
	for (int i = 0; i < 3; i++)
		left = dedup_count(&dedup, NS_PER_S);
	ck_assert_uint_eq(left, 1);
	dedup_free(&dedup);
}
END_TEST

/* Embedded NULs and a shared beginning do not make keys equal. */
START_TEST(keys_are_bytes)
{
	static const struct span keys[] = {
		{(const uint8_t *)"", 0},     {(const uint8_t *)"\0", 1},
		{(const uint8_t *)"\0\0", 2}, {(const uint8_t *)"k", 1},
		{(const uint8_t *)"k\0", 2},  {(const uint8_t *)"k\0a", 3},
		{(const uint8_t *)"k\0b", 3}, {(const uint8_t *)"K", 1},
	};
	struct dedup dedup;
	uint64_t *message;

	dedup_init(&dedup, 1000, 100);
	for (uint64_t i = 0; i < ARRAY_LENGTH(keys); i++) {
		ck_assert_int_eq(dedup_claim(&dedup, keys[i], 0, &message), DEDUP_NEW);
		*message = i + 1;
	}
	for (uint64_t i = 0; i < ARRAY_LENGTH(keys); i++) {
		ck_assert_int_eq(dedup_claim(&dedup, keys[i], 0, &message), DEDUP_KNOWN);
		ck_assert_uint_eq(*message, i + 1);
	}
	dedup_free(&dedup);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("dedup");
	TCase *tests = tcase_create("dedup");
	SRunner *runner;
	int failed;

	tcase_add_test(tests, agrees_with_an_array);
	tcase_add_test(tests, narrower_bounds_forget_at_once);
	tcase_add_test(tests, window_that_never_ends);
	tcase_add_test(tests, many_are_over_at_once);
	tcase_add_test(tests, keys_are_bytes);
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
