/*
 * What is made from a configuration or from the table of options: the printed file, the sample
 * file, the manual's list of options, the worst-case memory, and what a reload leaves as it was.
 *
 * `config_documents sample` prints the sample file, for etc/liminald.conf.sample.
 */
#include "config_helpers.h"

#include "config/config_priv.h"

/* --- the printed configuration ---------------------------------------------------------------- */

/* Every key but the durable ones, none at its default. */
static const char everything[] = "[server]\n"
				 "listen = 127.0.0.1:1\n"
				 "listen = [::1]:2\n"
				 "listen = /run/bus\n"
				 "http_listen = none\n"
				 "control_socket = /run/control\n"
				 "drain_timeout = 3600s\n"
				 "drain_idle = 1500ms\n"
				 "close_timeout = 60s\n"
				 "user = u 1\n"
				 "group = g\n"
				 "pidfile = /run/pid\n"
				 "log = /var/log/x\n"
				 "log_level = debug\n"
				 "log_format = json\n"
				 "[auth]\n"
				 "token_file = token\n"
				 "[limits]\n"
				 "max_connections = 7\n"
				 "max_frame_size = 1025K\n"
				 "max_outbox_bytes = 1024M\n"
				 "max_outbox_frames = 17\n"
				 "max_subscriptions_per_connection = 2\n"
				 "max_conversations_per_connection = 3\n"
				 "max_pending_replies_per_conversation = 4\n"
				 "max_pending_replies_per_connection = 5\n"
				 "max_pending_pushes_per_connection = 6\n"
				 "max_pending_bytes_per_connection = 8192K\n"
				 "handshake_timeout = 100ms\n"
				 "idle_timeout = 24h\n"
				 "[conversations]\n"
				 "reply_timeout = 1001ms\n"
				 "reply_timeout_max = 60m\n"
				 "no_worker = wait\n"
				 "worker_settle = 0\n"
				 "worker_queues = a\n"
				 "worker_queues = b;c\n"
				 "unanswered_channels = x\n"
				 "[channel one]\n"
				 "slow_consumer = drop\n"
				 "dedup_window = 90s\n"
				 "dedup_max_keys = 9\n"
				 "schema = schema\n"
				 "[channel two/2:b]\n";

START_TEST(printed_configuration_loads_to_the_same)
{
	struct configuration *first, *second;
	char *once, *twice, *expected;

	write_file("token", "hunter2\n", 8);
	write_file("schema", "{\"a\":1}", 7);
	expected = format("[server]\n"
			  "listen = 127.0.0.1:1\n"
			  "listen = [::1]:2\n"
			  "listen = /run/bus\n"
			  "http_listen = none\n"
			  "control_socket = /run/control\n"
			  "drain_timeout = 1h\n"
			  "drain_idle = 1500ms\n"
			  "close_timeout = 1m\n"
			  "user = u 1\n"
			  "group = g\n"
			  "pidfile = /run/pid\n"
			  "log = /var/log/x\n"
			  "log_level = debug\n"
			  "log_format = json\n"
			  "\n"
			  "[auth]\n"
			  "token_file = %s/token\n"
			  "\n"
			  "[limits]\n"
			  "max_connections = 7\n"
			  "max_frame_size = 1025K\n"
			  "max_outbox_bytes = 1G\n"
			  "max_outbox_frames = 17\n"
			  "max_subscriptions_per_connection = 2\n"
			  "max_conversations_per_connection = 3\n"
			  "max_pending_replies_per_conversation = 4\n"
			  "max_pending_replies_per_connection = 5\n"
			  "max_pending_pushes_per_connection = 6\n"
			  "max_pending_bytes_per_connection = 8M\n"
			  "handshake_timeout = 100ms\n"
			  "idle_timeout = 1d\n"
			  "\n"
			  "[conversations]\n"
			  "reply_timeout = 1001ms\n"
			  "reply_timeout_max = 1h\n"
			  "no_worker = wait\n"
			  "worker_settle = 0\n"
			  "worker_queues = a\n"
			  "worker_queues = b;c\n"
			  "unanswered_channels = x\n"
			  "\n"
			  "[store]\n"
			  "max_commit_bytes = 64M\n"
			  "max_commit_bytes_per_connection = 8M\n"
			  "cache_bytes = 16M\n"
			  "\n"
			  "[channel one]\n"
			  "durable = no\n"
			  "slow_consumer = drop\n"
			  "dedup_window = 90s\n"
			  "dedup_max_keys = 9\n"
			  "schema = %s/schema\n"
			  "\n"
			  "[channel two/2:b]\n"
			  "durable = no\n"
			  "slow_consumer = shed\n"
			  "dedup_window = 1h\n"
			  "dedup_max_keys = 1000000\n"
			  "\n",
			  folder, folder);
	first = load(everything);
	once = printed(first);
	ck_assert_str_eq(once, expected);
	second = load(once);
	twice = printed(second);
	ck_assert_str_eq(once, twice);
	ck_assert_str_eq(second->auth.token, "hunter2");
	ck_assert_mem_eq(first->channels[0].schema_id, second->channels[0].schema_id, 32);
	free(once);
	free(twice);
	free(expected);
	configuration_unref(&first);
	configuration_unref(&second);
}
END_TEST

START_TEST(printed_configuration_has_no_secret)
{
	struct configuration *c;
	char *out;

	for (int environment = 0; environment < 2; environment++) {
		if (environment)
			setenv("LIMINAL_AUTH_TOKEN", "hunter2", 1);
		c = load(environment ? "" : "[auth]\ntoken = hunter2\n");
		out = printed(c);
		ck_assert_str_eq(c->auth.token, "hunter2");
		ck_assert_ptr_null(strstr(out, "hunter2"));
		ck_assert_ptr_nonnull(strstr(out, "\n# A token is set"));
		configuration_unref(&c);
		c = load(out);
		configuration_unref(&c);
		free(out);
	}
}
END_TEST

/* --- the sample file -------------------------------------------------------------------------- */

/* Read before the fixture changes the folder: srcdir may be relative. */
static char sample[1 << 16], manual[1 << 16];

/* Called outside of tests, where check's assertions must not be used. */
static void read_source(const char *name, char *text, size_t size)
{
	const char *directory = getenv("srcdir");
	char path[4096];
	FILE *in;

	snprintf(path, sizeof(path), "%s/%s", directory != NULL ? directory : ".", name);
	in = fopen(path, "r");
	if (in == NULL) {
		fprintf(stderr, "cannot read %s: is srcdir set?\n", path);
		exit(1);
	}
	text[fread(text, 1, size - 1, in)] = '\0';
	fclose(in);
}

START_TEST(sample_file_is_what_the_table_says)
{
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);

	configuration_print_sample(out);
	ck_assert_int_eq(fclose(out), 0);
	ck_assert_msg(strcmp(text, sample) == 0,
		      "etc/liminald.conf.sample is not what `config_documents sample` prints");
	free(text);
}
END_TEST

START_TEST(sample_file_changes_nothing)
{
	struct configuration *defaults =
		configuration_load(NULL, &(struct configuration_problems){.errors = {NULL, 0}});
	struct configuration *c = load(sample);
	char *expected = printed(defaults), *out = printed(c);

	ck_assert_str_eq(out, expected);
	free(out);
	free(expected);
	configuration_unref(&c);
	configuration_unref(&defaults);
}
END_TEST

/* With every line uncommented, and the channel durable as some of them demand, nothing is wrong but
 * what excludes each other or is not there. */
START_TEST(sample_lines_can_be_used)
{
	static const char *const expected[] = {
#ifndef HAVE_HTTP
		"http_listen \"127.0.0.1:7481\" is not none",
#endif
		"token and token_file exclude",
		"schema \"/etc/liminald/events.schema.json\" cannot be read",
		"dead_letter \"orders.dead\" is not configured",
	};
	char *text = format("%s", sample);
	struct configuration_problems problems;
	size_t keys = 0;

	for (char *line = text; line != NULL; line = strchr(line, '\n')) {
		size_t word = 2;

		line += *line == '\n';
		if (strncmp(line, "# ", 2) != 0)
			continue;
		word += strspn(line + word, "abcdefghijklmnopqrstuvwxyz_");
		if (strncmp(line + word, " = ", 3) == 0) {
			line[0] = ' ';
			keys++;
		}
		if (strncmp(line, "  durable = no\n", 15) == 0)
			memcpy(line, " durable = yes", 14);
	}
	ck_assert_uint_eq(keys, OPTION_COUNT);
	ck_assert_ptr_null(load_bytes(text, strlen(text), &problems));
	ck_assert_uint_eq(problems.errors.count, ARRAY_LENGTH(expected));
	for (size_t i = 0; i < ARRAY_LENGTH(expected); i++)
		ck_assert_ptr_nonnull(strstr(problems.errors.items[i], expected[i]));
	configuration_problems_free(&problems);
	free(text);
}
END_TEST

/* --- the manual ------------------------------------------------------------------------------- */

/* The first line of TEXT, to be freed; *TEXT is moved behind it, to NULL at the end. */
static char *next_line(const char **text)
{
	size_t length = strcspn(*text, "\n");
	char *line = format("%.*s", (int)length, *text);

	*text = (*text)[length] == '\0' || (*text)[length + 1] == '\0' ? NULL : *text + length + 1;
	return line;
}

/* A section of options starts with `.Ss [NAME]`, each of them with `.It Ic KEY = ...`. */
START_TEST(manual_lists_every_option_with_its_facts)
{
	bool documented[OPTION_COUNT] = {false};
	const struct option *option = NULL;
	int section = -1;
	const char *rest = manual;

	while (rest != NULL) {
		char *line = next_line(&rest);
		char facts[256];
		struct text text = TEXT_INIT(facts);

		if (strncmp(line, ".Ss ", 4) == 0 || strncmp(line, ".Sh ", 4) == 0) {
			section = -1;
			for (int i = 0; i < SECTION_COUNT; i++) {
				char *start = format(".Ss [%s%s] ", option_section_names[i],
						     i == SECTION_CHANNEL ? " NAME" : "");

				if (strncmp(line, start, strlen(start)) == 0)
					section = i;
				free(start);
			}
		}
		if (section >= 0 && strncmp(line, ".It Ic ", 7) == 0) {
			size_t length = strcspn(line + 7, " ");
			char *key = format("%.*s", (int)length, line + 7);

			ck_assert_msg(option == NULL, "the manual lacks the facts of %s",
				      option != NULL ? option->key : "");
			option = option_find((enum option_section)section, key);
			ck_assert_msg(option != NULL && strncmp(line + 7 + length, " = ", 3) == 0,
				      "the manual has %s, which [%s] has not", key,
				      option_section_names[section]);
			free(key);
		}
		if (option != NULL) {
			option_facts(option, &text);
			if (strcmp(line, facts) == 0) {
				documented[option - options] = true;
				option = NULL;
			} else {
				ck_assert_msg(strncmp(line, "Default ", 8) != 0,
					      "the manual says of %s `%s` instead of `%s`",
					      option->key, line, facts);
			}
		}
		free(line);
	}
	for (size_t i = 0; i < OPTION_COUNT; i++)
		ck_assert_msg(documented[i], "the manual does not document %s with its facts",
			      options[i].key);
}
END_TEST

START_TEST(examples_of_the_manual_are_valid)
{
	const char *start = strstr(manual, "\n.Sh EXAMPLES\n");
	const char *end = strstr(manual, "\n.Sh DIAGNOSTICS\n");
	size_t examples = 0;

	ck_assert(start != NULL && end != NULL && start < end);
	write_file("token", "x", 1);
	while ((start = strstr(start, "\n.Bd -literal -offset indent\n")) != NULL && start < end) {
		const char *text = strchr(start + 1, '\n') + 1;
		char *example = format("%.*s", (int)(strstr(text, "\n.Ed") + 1 - text), text);
		char *etc = strstr(example, "/etc/liminald.token");
		struct configuration *c;

		/* The file of the example is not here; ours has a name of the same length. */
		if (etc != NULL)
			memcpy(etc, "./././././././token", strlen("/etc/liminald.token"));
		c = load(example);
		if (strstr(example, "max_connections = 60") != NULL)
			ck_assert_uint_le(configuration_worst_case_memory(c), UINT64_C(256) << 20);
		configuration_unref(&c);
		free(example);
		examples++;
		start = text;
	}
	ck_assert_uint_eq(examples, 4);
}
END_TEST

/* --- a reload --------------------------------------------------------------------------------- */

/* Loads both, keeps what is fixed; the lines for what was kept. */
static char *reload(const char *old_text, const char *new_text, struct configuration **result)
{
	struct configuration *old = load(old_text);
	struct string_list kept;
	char *lines;

	*result = load(new_text);
	ck_assert(configuration_keep_fixed(*result, old, &kept));
	lines = join(&kept);
	string_list_free(&kept);
	configuration_unref(&old);
	return lines;
}

START_TEST(reload_changes_what_the_contract_lists)
{
	static const char old_text[] = "[channel one]\n[channel two/2:b]\n";
	struct configuration *c, *expected;
	char *lines, *out, *wanted;
	char *text;

	write_file("token", "hunter2\n", 8);
	write_file("schema", "{}", 2);
	lines = reload(old_text, everything, &c);
	ck_assert_str_eq(lines, "listen in [server] has changed\n"
#ifdef HAVE_HTTP
				"http_listen in [server] has changed\n"
#endif
				"control_socket in [server] has changed\n"
				"user in [server] has changed\n"
				"group in [server] has changed\n"
				"pidfile in [server] has changed\n"
				"max_connections in [limits] has changed\n"
				"schema in [channel one] has changed\n");
	/* The rest is new: `everything` without those lines. */
	text = format("%s", strstr(everything, "drain_timeout"));
	{
		static const char *const fixed[] = {"\nuser = ", "\ngroup = ", "\npidfile = ",
						    "\nmax_connections = ", "\nschema = "};

		for (size_t i = 0; i < ARRAY_LENGTH(fixed); i++)
			strstr(text, fixed[i])[1] = '#';
	}
	wanted = format("[server]\n%s", text);
	expected = load(wanted);
	free(wanted);
	wanted = printed(expected);
	out = printed(c);
	ck_assert_str_eq(out, wanted);
	free(out);
	free(wanted);
	free(text);
	free(lines);
	configuration_unref(&expected);
	configuration_unref(&c);

	/* And back: what is fixed stays although the new file does not have it. */
	lines = reload(everything, old_text, &c);
	ck_assert_str_eq(c->server.control_socket, "/run/control");
	ck_assert_str_eq(c->server.user, "u 1");
	ck_assert_uint_eq(c->server.listen.count, 3);
	ck_assert_uint_eq(c->limits.max_connections, 7);
	ck_assert_uint_eq(c->limits.max_outbox_frames, 65536);
	ck_assert_ptr_null(c->auth.token);
	ck_assert_ptr_nonnull(c->channels[0].schema);
	free(lines);
	configuration_unref(&c);
}
END_TEST

START_TEST(reload_keeps_channels_and_takes_new_ones)
{
	/* How the ids of an empty document and of `{}` begin. */
	static const uint8_t empty[] = {0xcb, 0xf2, 0x9c, 0xe4};
	static const uint8_t braces[] = {0x08, 0xf4, 0x4b, 0x07};
	struct configuration *c;
	char *lines;

	write_file("schema", "", 0);
	lines = reload("[channel gone]\nslow_consumer = drop\nschema = schema\n[channel stays]\n",
		       "[channel new]\n[channel stays]\nslow_consumer = drop\n", &c);
	ck_assert_str_eq(lines, "[channel gone] is gone\n");
	ck_assert_uint_eq(c->channel_count, 3);
	ck_assert_str_eq(c->channels[0].name, "new");
	ck_assert_int_eq(c->channels[1].slow_consumer, SLOW_CONSUMER_DROP);
	ck_assert_str_eq(c->channels[2].name, "gone");
	ck_assert_int_eq(c->channels[2].slow_consumer, SLOW_CONSUMER_DROP);
	ck_assert_ptr_nonnull(c->channels[2].schema);
	ck_assert_mem_eq(c->channels[2].schema_id, empty, sizeof(empty));
	free(lines);
	configuration_unref(&c);

	lines = reload("[channel a]\n", "[channel a]\n", &c);
	ck_assert_str_eq(lines, "");
	free(lines);
	configuration_unref(&c);

	/* The same path with other bytes is another schema. */
	{
		struct configuration *old;
		struct string_list kept;

		write_file("schema", "{}", 2);
		old = load("[channel a]\nschema = schema\n");
		write_file("schema", "[]", 2);
		c = load("[channel a]\nschema = schema\n");
		ck_assert(configuration_keep_fixed(c, old, &kept));
		lines = join(&kept);
		ck_assert_str_eq(lines, "the file of schema in [channel a] has changed\n");
		ck_assert_mem_eq(c->channels[0].schema_id, braces, sizeof(braces));
		string_list_free(&kept);
		free(lines);
		configuration_unref(&old);
		configuration_unref(&c);
	}
}
END_TEST

START_TEST(configuration_lives_until_its_last_reference)
{
	struct configuration *first = load("[channel a]\n"), *second = configuration_ref(first);

	configuration_unref(&first);
	ck_assert_ptr_null(first);
	ck_assert_str_eq(second->channels[0].name, "a");
	configuration_unref(&second);
	configuration_unref(&second);
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

START_TEST(worst_case_memory_follows_the_limits)
{
	const uint64_t mib = 1024 * 1024;
	uint64_t defaults = memory_of("[channel c]\n");
	uint64_t one = memory_of("[limits]\nmax_connections = 1\n");
	struct configuration *c = load("[channel c]\n");

	/* A frame, an outbox and the payload of requests for each connection. */
	ck_assert_uint_ge(defaults, 1024 * 64 * mib);
	ck_assert_uint_le(defaults, 1024 * 70 * mib);
	ck_assert_uint_eq(memory_of("[limits]\nmax_connections = 3\n") - one,
			  2 * (memory_of("[limits]\nmax_connections = 2\n") - one));
	ck_assert_uint_ge(memory_of("[limits]\nmax_connections = 2\n") - one, 64 * mib);
	/* Five connections: one, and those of the control socket. */
	ck_assert_uint_eq(memory_of("[limits]\nmax_connections = 1\nmax_outbox_bytes = 33M\n"),
			  one + 5 * mib);
	ck_assert_uint_eq(
		memory_of(
			"[limits]\nmax_connections = 1\nmax_pending_bytes_per_connection = 18M\n"),
		one + 5 * 2 * mib);
	/* A frame that is received, and one that waits for a worker alone. */
	ck_assert_uint_eq(memory_of("[limits]\nmax_connections = 1\nmax_frame_size = 17M\n"),
			  one + 5 * 2 * mib);
	ck_assert_uint_ge(
		memory_of("[limits]\nmax_conversations_per_connection = 1025\n[channel c]"),
		defaults + 1024 * 1024);
	ck_assert_uint_ge(
		memory_of("[limits]\nmax_subscriptions_per_connection = 257\n[channel c]"),
		defaults + 1024 * 1024);
	/* Keys of 1024 bytes in each channel. */
	ck_assert_uint_ge(memory_of("[channel c]\n[channel d]\n"), defaults + 1024 * 1000000);
	ck_assert_uint_ge(memory_of("[channel c]\ndedup_max_keys = 2000000\n"),
			  defaults + 1024 * 1000000);

	c->limits.max_outbox_bytes = UINT64_MAX;
	ck_assert_uint_eq(configuration_worst_case_memory(c), UINT64_MAX);
	c->limits.max_outbox_bytes = 1;
	c->limits.max_connections = UINT64_MAX / 2;
	ck_assert_uint_eq(configuration_worst_case_memory(c), UINT64_MAX);
	c->limits.max_connections = UINT64_MAX;
	ck_assert_uint_eq(configuration_worst_case_memory(c), UINT64_MAX);
	configuration_unref(&c);
}
END_TEST

static Suite *config_documents_suite(void)
{
	Suite *suite = suite_create("config_documents");
	TCase *print = tcase_create("print"), *documents = tcase_create("documents");
	TCase *reloads = tcase_create("reload"), *memory = tcase_create("memory");

	tcase_add_checked_fixture(print, folder_setup, folder_teardown);
	tcase_add_test(print, printed_configuration_loads_to_the_same);
	tcase_add_test(print, printed_configuration_has_no_secret);
	suite_add_tcase(suite, print);

	tcase_add_checked_fixture(documents, folder_setup, folder_teardown);
	tcase_add_test(documents, sample_file_is_what_the_table_says);
	tcase_add_test(documents, sample_file_changes_nothing);
	tcase_add_test(documents, sample_lines_can_be_used);
	tcase_add_test(documents, manual_lists_every_option_with_its_facts);
	tcase_add_test(documents, examples_of_the_manual_are_valid);
	suite_add_tcase(suite, documents);

	tcase_add_checked_fixture(reloads, folder_setup, folder_teardown);
	tcase_add_test(reloads, reload_changes_what_the_contract_lists);
	tcase_add_test(reloads, reload_keeps_channels_and_takes_new_ones);
	tcase_add_test(reloads, configuration_lives_until_its_last_reference);
	suite_add_tcase(suite, reloads);

	tcase_add_checked_fixture(memory, folder_setup, folder_teardown);
	tcase_add_test(memory, worst_case_memory_follows_the_limits);
	suite_add_tcase(suite, memory);
	return suite;
}

int main(int argc, char **argv)
{
	SRunner *runner;
	int failed;

	if (argc == 2 && strcmp(argv[1], "sample") == 0) {
		configuration_print_sample(stdout);
		return fflush(stdout) != 0;
	}
	read_source("etc/liminald.conf.sample", sample, sizeof(sample));
	read_source("man/liminald.conf.5", manual, sizeof(manual));
	runner = srunner_create(config_documents_suite());
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed > 0;
}
