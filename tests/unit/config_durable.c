/* What the configuration says of durable channels: values, bounds, what must fit together. */
#include "config_helpers.h"

#define DURABLE "[server]\nstate_dir = /var/lib/x\n[channel c]\ndurable = yes\n"

START_TEST(defaults)
{
	struct configuration *c = load(DURABLE);
	const struct configuration_channel *channel = &c->channels[0];

	ck_assert_str_eq(c->server.state_dir, "/var/lib/x");
	ck_assert_uint_eq(c->store.max_commit_bytes, 64 << 20);
	ck_assert_uint_eq(c->store.max_commit_bytes_per_connection, 8 << 20);
	ck_assert_uint_eq(c->store.cache_bytes, 16 << 20);
	ck_assert(channel->durable);
	ck_assert_int_eq(channel->max_age_ms, 0);
	ck_assert_uint_eq(channel->max_messages, 0);
	ck_assert_uint_eq(channel->max_bytes, 1 << 30);
	ck_assert_int_eq(channel->when_full, WHEN_FULL_REFUSE);
	ck_assert_int_eq(channel->ack_wait_ms, 30000);
	ck_assert_int_eq(channel->redelivery_delay_ms, 1000);
	ck_assert_int_eq(channel->redelivery_delay_max_ms, 60000);
	ck_assert_uint_eq(channel->max_attempts, 0);
	ck_assert_ptr_null(channel->dead_letter);
	ck_assert(!channel->ordered);
	ck_assert_uint_eq(channel->max_deferred, 10000);
	ck_assert_uint_eq(channel->max_consumers, 256);
	ck_assert_int_eq(channel->consumer_expiry_ms, 0);
	configuration_unref(&c);
}
END_TEST

static const struct {
	const char *key, *in[4], *out[4];
} bounds[] = {
	{"max_age", {"0", "100ms", "10000d"}, {"99ms", "10001d", "1"}},
	{"max_messages", {"0", "1", "9223372036854775808"}, {"9223372036854775809", "-1"}},
	{"max_bytes", {"0", "64K", "1024T"}, {"63K", "1025T", "1"}},
	{"when_full", {"refuse", "discard"}, {"drop"}},
	{"ack_wait", {"10ms", "30d"}, {"9ms", "31d", "0"}},
	{"redelivery_delay", {"10ms", "30d"}, {"9ms", "31d", "0"}},
	{"redelivery_delay_max", {"10ms", "30d"}, {"9ms", "31d", "0"}},
	{"max_attempts", {"0", "9223372036854775808"}, {"9223372036854775809"}},
	{"ordered", {"yes", "no"}, {"1"}},
	{"max_deferred", {"1", "1000000"}, {"0", "1000001"}},
	{"max_consumers", {"1", "10000"}, {"0", "10001"}},
	{"consumer_expiry", {"0", "100ms", "10000d"}, {"99ms", "10001d"}},
	{"[store]\nmax_commit_bytes", {"1M", "4G"}, {"1023K", "5G", "0"}},
	{"[store]\nmax_commit_bytes_per_connection", {"64K", "4G"}, {"63K", "5G", "0"}},
	{"[store]\ncache_bytes", {"64K", "4G"}, {"63K", "5G", "0"}},
};

START_TEST(bounds_of_each_key)
{
	for (size_t i = 0; i < ARRAY_LENGTH(bounds); i++) {
		struct configuration_problems problems;

		for (size_t j = 0; bounds[i].in[j] != NULL; j++) {
			char *text = format("%s%s = %s\n", DURABLE, bounds[i].key, bounds[i].in[j]);
			struct configuration *c = load(text);

			configuration_unref(&c);
			free(text);
		}
		for (size_t j = 0; bounds[i].out[j] != NULL; j++) {
			char *text =
				format("%s%s = %s\n", DURABLE, bounds[i].key, bounds[i].out[j]);

			ck_assert_msg(load_bytes(text, strlen(text), &problems) == NULL,
				      "%s = %s is taken", bounds[i].key, bounds[i].out[j]);
			ck_assert_uint_eq(problems.errors.count, 1);
			configuration_problems_free(&problems);
			free(text);
		}
	}
}
END_TEST

START_TEST(durable_needs_state_dir)
{
	static const char error[] = "x.conf:2: durable = yes needs state_dir in [server], the "
				    "folder in which messages are kept\n";
	struct configuration *c;

	expect_errors("[channel a]\ndurable = yes\n", error);
	expect_errors("[channel a]\ndurable = yes\n[channel b]\n[server]\n", error);
	c = load("[channel a]\ndurable = yes\n[server]\nstate_dir = state\n");
	ck_assert_ptr_nonnull(strstr(c->server.state_dir, "/state"));
	configuration_unref(&c);
	ck_assert_int_eq(setenv("LIMINAL_PERSISTENCE_PATH", "/var/lib/other", 1), 0);
	c = load(DURABLE);
	ck_assert_str_eq(c->server.state_dir, "/var/lib/other");
	configuration_unref(&c);
	c = load("[channel a]\ndurable = yes\n");
	configuration_unref(&c);
	/* One error is enough for a bad value. */
	ck_assert_int_eq(setenv("LIMINAL_PERSISTENCE_PATH", "", 1), 0);
	expect_errors("[channel a]\ndurable = yes\n", "LIMINAL_PERSISTENCE_PATH is empty\n");
}
END_TEST

START_TEST(plain_channels_have_no_durable_keys)
{
	static const char *const keys[] = {
		"max_age = 0",
		"max_messages = 0",
		"max_bytes = 1G",
		"when_full = refuse",
		"ack_wait = 30s",
		"redelivery_delay = 1s",
		"redelivery_delay_max = 1m",
		"max_attempts = 0",
		"dead_letter = b",
		"ordered = no",
		"max_deferred = 1",
		"max_consumers = 1",
		"consumer_expiry = 0",
	};

	for (size_t i = 0; i < ARRAY_LENGTH(keys); i++) {
		char *text = format("[server]\nstate_dir = /x\n[channel b]\ndurable = yes\n"
				    "[channel a]\n%s\n",
				    keys[i]);
		char *error = format("x.conf:6: %.*s is for durable channels; set durable = yes "
				     "here as well, or leave it out\n",
				     (int)strcspn(keys[i], " "), keys[i]);

		expect_errors(text, error);
		free(text);
		free(error);
	}
	expect_errors("[channel a]\nmax_age = 1\ndurable = no\nordered = yes\n",
		      "x.conf:2: max_age \"1\" needs a unit: ms, s, m, h or d\n"
		      "x.conf:2: max_age is for durable channels; set durable = yes here as well, "
		      "or leave it out\n"
		      "x.conf:4: ordered is for durable channels; set durable = yes here as well, "
		      "or leave it out\n");
}
END_TEST

#define CHANNEL(name, dead) "[channel " name "]\ndurable = yes\ndead_letter = " dead "\n"
#define STATE "[server]\nstate_dir = /x\n"

START_TEST(dead_letter_is_another_durable_channel)
{
	struct configuration *c =
		load(STATE CHANNEL("a", "d") CHANNEL("b", "d") CHANNEL("d", "e") "[channel e]\n"
										 "durable = yes\n");

	ck_assert_str_eq(c->channels[0].dead_letter, "d");
	ck_assert_str_eq(c->channels[2].dead_letter, "e");
	ck_assert_ptr_null(c->channels[3].dead_letter);
	configuration_unref(&c);

	expect_errors(STATE CHANNEL("a", "jobs.daed") "[channel jobs.dead]\ndurable = yes\n",
		      "x.conf:5: dead_letter \"jobs.daed\" is not configured; add "
		      "[channel jobs.daed] with durable = yes; did you mean \"jobs.dead\"?\n");
	expect_errors(STATE CHANNEL("a", "p") "[channel p]\n",
		      "x.conf:5: dead_letter \"p\" is not durable; set durable = yes in "
		      "[channel p]\n");
	expect_errors(STATE CHANNEL("a", "a"),
		      "x.conf:5: dead_letter \"a\" is this channel itself; name another durable "
		      "channel\n");
}
END_TEST

/* A circle is said once, and not to those that only lead into it. */
START_TEST(dead_letters_do_not_go_in_circles)
{
	expect_errors(STATE CHANNEL("a", "b") CHANNEL("b", "a"),
		      "x.conf:8: dead_letter \"a\" leads back to this channel; end the circle "
		      "with a channel that has no dead_letter\n");
	expect_errors(STATE CHANNEL("in", "c") CHANNEL("c", "a") CHANNEL("a", "b") CHANNEL("b", "c")
			      CHANNEL("late", "a"),
		      "x.conf:14: dead_letter \"c\" leads back to this channel; end the circle "
		      "with a channel that has no dead_letter\n");
}
END_TEST

START_TEST(unwise_values)
{
	expect_warnings(DURABLE "redelivery_delay_max = 1s\nredelivery_delay = 2s\n",
			"x.conf:6: redelivery_delay_max is less than redelivery_delay: every "
			"delay is redelivery_delay_max\n");
	expect_warnings("[store]\nmax_commit_bytes = 7M\n",
			"x.conf:2: max_commit_bytes_per_connection is more than "
			"max_commit_bytes: one connection can make all others wait\n");
}
END_TEST

START_TEST(printed_configuration_loads_to_the_same)
{
	struct configuration *first =
		load("[server]\nstate_dir = /x\n[store]\nmax_commit_bytes = 2M\n"
		     "max_commit_bytes_per_connection = 1M\ncache_bytes = 64K\n"
		     "[channel plain]\n[channel dead]\ndurable = yes\n"
		     "[channel full]\ndurable = yes\nmax_age = 24h\nmax_messages = 5\n"
		     "max_bytes = 1024T\nwhen_full = discard\nack_wait = 1500ms\n"
		     "redelivery_delay = 10ms\nredelivery_delay_max = 30d\n"
		     "max_attempts = 9223372036854775808\ndead_letter = dead\nordered = yes\n"
		     "max_deferred = 7\nmax_consumers = 8\nconsumer_expiry = 100ms\n");
	struct configuration *second;
	char *once = printed(first), *twice;

	ck_assert_ptr_nonnull(strstr(once, "[store]\n"
					   "max_commit_bytes = 2M\n"
					   "max_commit_bytes_per_connection = 1M\n"
					   "cache_bytes = 64K\n"));
	ck_assert_ptr_nonnull(strstr(once, "[channel plain]\n"
					   "durable = no\n"
					   "slow_consumer = shed\n"
					   "dedup_window = 1h\n"
					   "dedup_max_keys = 1000000\n"
					   "\n"
					   "[channel dead]\n"
					   "durable = yes\n"));
	ck_assert_ptr_nonnull(strstr(once, "max_age = 1d\n"
					   "max_messages = 5\n"
					   "max_bytes = 1024T\n"
					   "when_full = discard\n"
					   "ack_wait = 1500ms\n"
					   "redelivery_delay = 10ms\n"
					   "redelivery_delay_max = 30d\n"
					   "max_attempts = 9223372036854775808\n"
					   "dead_letter = dead\n"
					   "ordered = yes\n"
					   "max_deferred = 7\n"
					   "max_consumers = 8\n"
					   "consumer_expiry = 100ms\n"));
	second = load(once);
	twice = printed(second);
	ck_assert_str_eq(once, twice);
	free(once);
	free(twice);
	configuration_unref(&first);
	configuration_unref(&second);
}
END_TEST

/* --- a reload --------------------------------------------------------------------------------- */

/* Loads both; what was kept, and the printed channels of what comes of it. */
static void expect_reload(const char *old_text, const char *new_text, const char *lines,
			  const char *result_text)
{
	struct configuration *old = load(old_text), *result = load(new_text);
	struct configuration *expected = load(result_text);
	char *got, *wanted;
	struct string_list kept;

	ck_assert(configuration_keep_fixed(result, old, &kept));
	got = join(&kept);
	ck_assert_str_eq(got, lines);
	free(got);
	got = printed(result);
	wanted = printed(expected);
	ck_assert_str_eq(got, wanted);
	free(got);
	free(wanted);
	string_list_free(&kept);
	configuration_unref(&old);
	configuration_unref(&result);
	configuration_unref(&expected);
}

#define DEAD "[channel dead]\ndurable = yes\n"

START_TEST(reload_changes_all_but_dead_letter_and_ordered)
{
	static const char rest[] = "max_age = 1h\nmax_messages = 5\nmax_bytes = 1M\n"
				   "when_full = discard\nack_wait = 1s\nredelivery_delay = 1m\n"
				   "redelivery_delay_max = 2m\nmax_attempts = 3\n"
				   "max_deferred = 7\nmax_consumers = 8\nconsumer_expiry = 1d\n";
	char *new_text = format("%s[store]\ncache_bytes = 1M\n%s[channel a]\ndurable = yes\n"
				"dead_letter = dead\nordered = yes\n%s",
				STATE, DEAD, rest);
	char *result = format("%s%s[channel a]\ndurable = yes\n%s", STATE, DEAD, rest);

	expect_reload(STATE DEAD "[channel a]\ndurable = yes\n", new_text,
		      "cache_bytes in [store] has changed\n"
		      "dead_letter in [channel a] has changed\n"
		      "ordered in [channel a] has changed\n",
		      result);
	free(new_text);
	free(result);
}
END_TEST

/* What a channel may set follows from what it is, which a reload does not change. */
START_TEST(reload_does_not_change_whether_a_channel_is_durable)
{
	expect_reload(STATE "[channel a]\n",
		      STATE DEAD "[channel a]\ndurable = yes\nmax_age = 1h\ndead_letter = dead\n",
		      "durable in [channel a] has changed\n", STATE DEAD "[channel a]\n");
	expect_reload(STATE "[channel a]\ndurable = yes\nmax_age = 1h\nmax_consumers = 3\n",
		      STATE "[channel a]\ndedup_max_keys = 4\n",
		      "durable in [channel a] has changed\n",
		      STATE "[channel a]\ndurable = yes\nmax_age = 1h\nmax_consumers = 3\n"
			    "dedup_max_keys = 4\n");
}
END_TEST

START_TEST(reload_takes_new_durable_channels_that_can_be)
{
	expect_reload(STATE, STATE CHANNEL("a", "dead") DEAD, "", STATE CHANNEL("a", "dead") DEAD);
	/* There is no store before the restart. */
	expect_reload("[channel p]\n", STATE DEAD "[channel p]\n" CHANNEL("a", "dead"),
		      "state_dir in [server] has changed\n"
		      "[channel dead] is durable, and the server has no state_dir yet\n"
		      "[channel a] is durable, and the server has no state_dir yet\n",
		      "[channel p]\n");
	/* The channel for dead letters stays plain until then. */
	expect_reload(STATE "[channel dead]\n",
		      STATE CHANNEL("a", "b") CHANNEL("b", "dead") DEAD "[channel p]\n",
		      "durable in [channel dead] has changed\n"
		      "[channel b] is new, and its dead_letter is not a durable channel yet\n"
		      "[channel a] is new, and its dead_letter is not a durable channel yet\n",
		      STATE "[channel dead]\n[channel p]\n");
}
END_TEST

/* --- memory ----------------------------------------------------------------------------------- */

static uint64_t memory_of(const char *text)
{
	struct configuration *c = load(text);
	uint64_t bytes = configuration_worst_case_memory(c);

	configuration_unref(&c);
	return bytes;
}

START_TEST(worst_case_memory)
{
	const uint64_t mib = 1 << 20;
	uint64_t plain = memory_of(""), one = memory_of(DURABLE);

	/* One frame beyond the bound of what waits for the disk. */
	ck_assert_uint_eq(memory_of(STATE), plain + (64 + 16 + 16) * mib);
	ck_assert_uint_eq(memory_of(STATE "[store]\nmax_commit_bytes = 65M\n"),
			  memory_of(STATE) + mib);
	ck_assert_uint_ge(one, memory_of(STATE) + 16 * mib);
	ck_assert_uint_eq(memory_of(DURABLE "[store]\ncache_bytes = 17M\n"), one + mib);
	ck_assert_uint_eq(memory_of(DURABLE "[store]\ncache_bytes = 17M\n[channel d]\n"
					    "durable = yes\n"),
			  2 * (one + mib) - memory_of(STATE));
	ck_assert_uint_gt(memory_of(DURABLE "max_consumers = 257\n"), one);
	ck_assert_uint_gt(memory_of(DURABLE "max_deferred = 10001\n"), one);
	/* Their keys are on disk. */
	ck_assert_uint_eq(memory_of(DURABLE "dedup_max_keys = 100000000\n"), one);
}
END_TEST

static Suite *config_durable_suite(void)
{
	Suite *suite = suite_create("config_durable");
	TCase *durable = tcase_create("durable");

	tcase_add_checked_fixture(durable, folder_setup, folder_teardown);
	tcase_add_test(durable, defaults);
	tcase_add_test(durable, bounds_of_each_key);
	tcase_add_test(durable, durable_needs_state_dir);
	tcase_add_test(durable, plain_channels_have_no_durable_keys);
	tcase_add_test(durable, dead_letter_is_another_durable_channel);
	tcase_add_test(durable, dead_letters_do_not_go_in_circles);
	tcase_add_test(durable, unwise_values);
	tcase_add_test(durable, printed_configuration_loads_to_the_same);
	tcase_add_test(durable, reload_changes_all_but_dead_letter_and_ordered);
	tcase_add_test(durable, reload_does_not_change_whether_a_channel_is_durable);
	tcase_add_test(durable, reload_takes_new_durable_channels_that_can_be);
	tcase_add_test(durable, worst_case_memory);
	suite_add_tcase(suite, durable);
	return suite;
}

int main(void)
{
	SRunner *runner = srunner_create(config_durable_suite());
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
