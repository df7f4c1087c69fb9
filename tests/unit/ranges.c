/* Sets of sequences, against an array of flags. */
#include "broker/ranges.h"

#include <check.h>
#include <stdlib.h>

#define LAST 600

static bool model[LAST + 2]; /* 0 and LAST + 1 are never asked for */

/* A small generator, the same everywhere. */
static unsigned draw(unsigned below)
{
	static uint32_t state = 4711;

	state = state * 1664525 + 1013904223;
	return (state >> 8) % below;
}

static bool agrees(const struct ranges *ranges)
{
	uint64_t missing = LAST + 1, previous = ranges->floor;

	for (uint64_t i = LAST; i > 0; i--) {
		if (!model[i])
			missing = i;
		if (ranges_contain(ranges, i) != model[i] ||
		    (missing <= LAST && ranges_next_missing(ranges, i) != missing))
			return false;
	}
	/* They are sorted, and none touches another or the floor. */
	for (size_t i = 0; i < ranges->count; i++) {
		if (ranges->items[i].from <= previous + 1 ||
		    ranges->items[i].to < ranges->items[i].from)
			return false;
		previous = ranges->items[i].to;
	}
	return true;
}

static void add_some(struct ranges *ranges, unsigned odds)
{
	uint64_t sequences[LAST];
	size_t count = 0;

	for (uint64_t i = 1; i <= LAST; i++) {
		if (model[i] || draw(odds) != 0)
			continue;
		model[i] = true;
		sequences[count++] = i;
	}
	ck_assert(ranges_add_all(ranges, sequences, count));
}

START_TEST(agree_with_flags)
{
	struct ranges ranges = {0}, copy = {0};

	for (int round = 0; round < 30; round++) {
		for (uint64_t i = 1; i <= LAST; i++)
			model[i] = false;
		ranges_free(&ranges);
		ranges.floor = 0;
		for (int step = 0; step < 20; step++) {
			uint64_t sequence = 1 + draw(LAST);

			if (draw(8) == 0) {
				ranges_raise(&ranges, sequence / 4);
				for (uint64_t i = 1; i <= sequence / 4; i++)
					model[i] = true;
			} else if (draw(2) == 0) {
				add_some(&ranges, 1 + draw(200));
			} else {
				ck_assert(ranges_add(&ranges, sequence));
				model[sequence] = true;
			}
			ck_assert(agrees(&ranges));
		}
		ck_assert(ranges_copy(&copy, &ranges));
		ck_assert(agrees(&copy));
	}
	ranges_free(&ranges);
	ranges_free(&copy);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ranges");
	TCase *tests = tcase_create("ranges");
	SRunner *runner;
	int failed;

	tcase_add_test(tests, agree_with_flags);
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
