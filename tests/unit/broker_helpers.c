#include "broker_helpers.h"

#include <stdlib.h>
#include <string.h>

static struct broker_channel_settings channels[] = {
	{.name = "news", .schema_id = "schema of news"},
	{.name = "ticks", .schema_id = "schema of ticks", .drop = true},
	{.name = "quiet", .schema_id = "schema of quiet"},
};

static char *unanswered[] = {(char *)"quiet", (char *)"not configured"};

struct broker_settings settings = {
	.reply_timeout_ms = REPLY_TIMEOUT,
	.reply_timeout_max_ms = REPLY_TIMEOUT_MAX,
	.no_worker = BROKER_NO_WORKER_ECHO,
	.unanswered_channels = unanswered,
	.unanswered_channel_count = ARRAY_LENGTH(unanswered),
	.channels = channels,
	.channel_count = ARRAY_LENGTH(channels),
};

struct broker *broker;
struct broker_client_limits limits;
static uint64_t next_id = 1;

void prepare(void)
{
	for (size_t i = 0; i < ARRAY_LENGTH(channels); i++) {
		channels[i].dedup_window_ms = DEDUP_WINDOW;
		channels[i].dedup_max_keys = DEDUP_KEYS;
	}
	if (limits.frame_bytes == 0)
		limits = fake_limits;
}

void start(void)
{
	const char *error;

	prepare();
	broker = broker_new(&settings, BOOT_MS, NULL, &error);
	ck_assert_ptr_nonnull(broker);
	ck_assert_ptr_null(error);
}

void reload(void)
{
	ck_assert(broker_configure(broker, &settings));
}

void join(struct fake_client *client)
{
	fake_connect(client, broker, next_id++, false, &limits);
}

void join_control(struct fake_client *client)
{
	fake_connect(client, broker, next_id++, true, &limits);
}

void stop(void)
{
	struct broker_totals left = totals();

	ck_assert_uint_eq(left.pending_replies, 0);
	ck_assert_uint_eq(left.pending_pushes, 0);
	ck_assert_uint_eq(left.waiting_requests, 0);
	ck_assert_uint_eq(left.workers, 0);
	ck_assert_uint_eq(left.conversations, 0);
	ck_assert_uint_eq(left.subscriptions, 0);
	broker_free(&broker);
	ck_assert_ptr_null(broker);
}

void pass_ms(int64_t ms)
{
	fake_advance(broker, ms * NS_PER_MS);
}

struct broker_client_state state_of(struct fake_client *client)
{
	struct broker_client_state state;

	broker_client_state(client->client, &state);
	return state;
}

struct broker_totals totals(void)
{
	struct broker_totals now;

	broker_totals(broker, &now);
	return now;
}

static Suite *suite;

TCase *suite_begin(const char *name)
{
	TCase *tests = tcase_create(name);

	suite = suite_create(name);
	tcase_set_timeout(tests, 60);
	suite_add_tcase(suite, tests);
	return tests;
}

int suite_run(void)
{
	SRunner *runner = srunner_create(suite);
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
