/* Subjects of conversations: which are addresses, and the parts of the others. */
#include "broker/broker_priv.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *subject;
	enum subject_kind kind;
	const char *queue, *name_space, *activity, *rest; /* NULL: empty */
	uint64_t number;
} rows[] = {
	{"q", SUBJECT_QUEUE, "q", NULL, NULL, NULL, 0},
	{"n/q", SUBJECT_QUEUE, "q", "n", NULL, NULL, 0},
	{"n/q/a", SUBJECT_QUEUE, "q", "n", "a", NULL, 0},
	{"long name/of $ a/queue", SUBJECT_QUEUE, "of $ a", "long name", "queue", NULL, 0},
	{"/", SUBJECT_OTHER, NULL, NULL, NULL, NULL, 0},
	{"", SUBJECT_OTHER, NULL, NULL, NULL, NULL, 0},
	{"/q", SUBJECT_OTHER, NULL, NULL, NULL, NULL, 0},
	{"q/", SUBJECT_OTHER, NULL, NULL, NULL, NULL, 0},
	{"n//a", SUBJECT_OTHER, NULL, NULL, NULL, NULL, 0},
	{"n/q/", SUBJECT_OTHER, NULL, NULL, NULL, NULL, 0},
	{"/q/a", SUBJECT_OTHER, NULL, NULL, NULL, NULL, 0},
	{"n/q/a/", SUBJECT_OTHER, NULL, NULL, NULL, NULL, 0},
	{"n/q/a/b", SUBJECT_OTHER, NULL, NULL, NULL, NULL, 0},
	{"$connection/1", SUBJECT_CONNECTION, NULL, NULL, NULL, NULL, 1},
	{"$connection/18446744073709551615", SUBJECT_CONNECTION, NULL, NULL, NULL, NULL,
	 UINT64_MAX},
	{"$worker/", SUBJECT_WORKER, NULL, NULL, NULL, NULL, 0},
	{"$worker/me/and you", SUBJECT_WORKER, NULL, NULL, NULL, "me/and you", 0},
	{"$control/ping", SUBJECT_CONTROL, NULL, NULL, NULL, "ping", 0},
	/* What is no address is left to the server's own responder, which has no such name. */
	{"$connection/18446744073709551616", SUBJECT_CONTROL, NULL, NULL, NULL, NULL, 0},
	{"$connection/99999999999999999999", SUBJECT_CONTROL, NULL, NULL, NULL, NULL, 0},
	{"$connection/0", SUBJECT_CONTROL, NULL, NULL, NULL, NULL, 0},
	{"$connection/01", SUBJECT_CONTROL, NULL, NULL, NULL, NULL, 0},
	{"$connection/-1", SUBJECT_CONTROL, NULL, NULL, NULL, NULL, 0},
	{"$connection/1 ", SUBJECT_CONTROL, NULL, NULL, NULL, NULL, 0},
	{"$connection/", SUBJECT_CONTROL, NULL, NULL, NULL, NULL, 0},
	{"$connection", SUBJECT_CONTROL, NULL, NULL, NULL, NULL, 0},
	{"$Control/ping", SUBJECT_CONTROL, NULL, NULL, NULL, NULL, 0},
	{"$", SUBJECT_CONTROL, NULL, NULL, NULL, NULL, 0},
};

static bool is(struct span span, const char *text)
{
	return span_equal(span, span_of(text == NULL ? "" : text));
}

START_TEST(kind_and_parts)
{
	size_t length = strlen(rows[_i].subject);
	struct conversation *conversation = calloc(1, sizeof(*conversation) + length);

	ck_assert_ptr_nonnull(conversation);
	conversation->subject_length = length;
	memcpy(conversation->subject, rows[_i].subject, length);
	subject_parse(conversation);
	ck_assert_int_eq(conversation->kind, rows[_i].kind);
	if (rows[_i].kind == SUBJECT_QUEUE) {
		ck_assert(is(conversation->queue, rows[_i].queue));
		ck_assert(is(conversation->name_space, rows[_i].name_space));
		ck_assert(is(conversation->activity, rows[_i].activity));
	}
	if (rows[_i].kind == SUBJECT_WORKER || rows[_i].kind == SUBJECT_CONTROL)
		ck_assert(is(conversation->rest, rows[_i].rest));
	if (rows[_i].kind == SUBJECT_CONNECTION)
		ck_assert_uint_eq(conversation->number, rows[_i].number);
	free(conversation);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("subject");
	TCase *tests = tcase_create("subject");
	SRunner *runner;
	int failed;

	tcase_add_loop_test(tests, kind_and_parts, 0, ARRAY_LENGTH(rows));
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
