/*
 * The configuration file as its author meets it: what a line may look like, which values each
 * option takes, what the messages say, and what the environment changes.
 */
#include "config_helpers.h"

#include <sys/stat.h>

/* --- values ----------------------------------------------------------------------------------- */

START_TEST(defaults_are_the_documented_ones)
{
	struct configuration_problems problems;
	struct configuration *c = configuration_load(NULL, &problems);

	ck_assert_ptr_nonnull(c);
	ck_assert_uint_eq(problems.errors.count, 0);
	ck_assert_uint_eq(problems.warnings.count, 0);
	ck_assert_uint_eq(c->server.listen.count, 1);
	ck_assert_str_eq(c->server.listen.items[0], "127.0.0.1:7480");
#ifdef HAVE_HTTP
	ck_assert_str_eq(c->server.http_listen, "127.0.0.1:7481");
#else
	ck_assert_str_eq(c->server.http_listen, "none");
#endif
	ck_assert_ptr_null(c->server.control_socket);
	ck_assert_ptr_null(c->server.state_dir);
	ck_assert_int_eq(c->server.drain_timeout_ms, 30000);
	ck_assert_int_eq(c->server.drain_idle_ms, 2000);
	ck_assert_int_eq(c->server.close_timeout_ms, 5000);
	ck_assert_ptr_null(c->server.user);
	ck_assert_ptr_null(c->server.group);
	ck_assert_ptr_null(c->server.pidfile);
	ck_assert_str_eq(c->server.log, "stderr");
	ck_assert_int_eq(c->server.log_level, LOG_LEVEL_INFO);
	ck_assert_int_eq(c->server.log_format, LOG_FORMAT_TEXT);
	ck_assert_ptr_null(c->auth.token);
	ck_assert_ptr_null(c->auth.token_file);
	ck_assert_uint_eq(c->limits.max_connections, 1024);
	ck_assert_uint_eq(c->limits.max_frame_size, 16 * 1024 * 1024);
	ck_assert_uint_eq(c->limits.max_outbox_bytes, 32 * 1024 * 1024);
	ck_assert_uint_eq(c->limits.max_outbox_frames, 65536);
	ck_assert_uint_eq(c->limits.max_subscriptions_per_connection, 256);
	ck_assert_uint_eq(c->limits.max_conversations_per_connection, 1024);
	ck_assert_uint_eq(c->limits.max_pending_replies_per_conversation, 8);
	ck_assert_uint_eq(c->limits.max_pending_replies_per_connection, 32);
	ck_assert_uint_eq(c->limits.max_pending_pushes_per_connection, 32);
	ck_assert_uint_eq(c->limits.max_pending_bytes_per_connection, 16 * 1024 * 1024);
	ck_assert_int_eq(c->limits.handshake_timeout_ms, 10000);
	ck_assert_int_eq(c->limits.idle_timeout_ms, 0);
	ck_assert_int_eq(c->conversations.reply_timeout_ms, 4900);
	ck_assert_int_eq(c->conversations.reply_timeout_max_ms, 600000);
	ck_assert_int_eq(c->conversations.no_worker, NO_WORKER_ECHO);
	ck_assert_int_eq(c->conversations.worker_settle_ms, 20);
	ck_assert_uint_eq(c->conversations.worker_queues.count, 0);
	ck_assert_uint_eq(c->conversations.unanswered_channels.count, 1);
	ck_assert_str_eq(c->conversations.unanswered_channels.items[0], "aion.observability.v1");
	ck_assert_uint_eq(c->channel_count, 1);
	ck_assert_str_eq(c->channels[0].name, "events");
	ck_assert(!c->channels[0].durable);
	ck_assert_int_eq(c->channels[0].slow_consumer, SLOW_CONSUMER_SHED);
	ck_assert_int_eq(c->channels[0].dedup_window_ms, 3600000);
	ck_assert_uint_eq(c->channels[0].dedup_max_keys, 1000000);
	ck_assert_ptr_null(c->channels[0].schema);
	configuration_unref(&c);
	ck_assert_ptr_null(c);
	configuration_problems_free(&problems);
}
END_TEST

/* The contract's bounds; what is just outside is refused. */
static const struct bounds {
	const char *section, *key, *low, *high, *below, *above;
} bounds[] = {
	{"server", "drain_timeout", "0", "1h", NULL, "3600001ms"},
	{"server", "drain_idle", "0", "1h", NULL, "3600001ms"},
	{"server", "close_timeout", "100ms", "1m", "99ms", "60001ms"},
	{"limits", "max_connections", "1", "100000", "0", "100001"},
	{"limits", "max_frame_size", "4K", "1G", "3K", "1025M"},
	{"limits", "max_outbox_bytes", "64K", "4G", "63K", "4097M"},
	{"limits", "max_outbox_frames", "16", "16777216", "15", "16777217"},
	{"limits", "max_subscriptions_per_connection", "1", "65536", "0", "65537"},
	{"limits", "max_conversations_per_connection", "1", "65536", "0", "65537"},
	{"limits", "max_pending_replies_per_conversation", "1", "65536", "0", "65537"},
	{"limits", "max_pending_replies_per_connection", "1", "65536", "0", "65537"},
	{"limits", "max_pending_pushes_per_connection", "1", "65536", "0", "65537"},
	{"limits", "max_pending_bytes_per_connection", "4K", "4G", "3K", "4097M"},
	{"limits", "handshake_timeout", "100ms", "10m", "99ms", "600001ms"},
	{"limits", "idle_timeout", "1s", "30d", "999ms", "2592000001ms"},
	{"limits", "idle_timeout", "0", "30d", "1ms", "31d"},
	{"conversations", "reply_timeout", "10ms", "1h", "9ms", "3600001ms"},
	{"conversations", "reply_timeout_max", "10ms", "1d", "9ms", "86400001ms"},
	{"conversations", "worker_settle", "0", "1s", NULL, "1001ms"},
	{"channel c", "dedup_window", "1s", "365d", "999ms", "366d"},
	{"channel c", "dedup_max_keys", "1", "100000000", "0", "100000001"},
};

static void expect_value(const struct bounds *row, const char *value)
{
	char *text = format("[%s]\n%s = %s\n", row->section, row->key, value);
	char *line = format("\n%s = %s\n", row->key, value);
	struct configuration *configuration = load(text);
	char *out = printed(configuration);

	ck_assert_msg(strstr(out, line) != NULL, "%s = %s is not in\n%s", row->key, value, out);
	free(out);
	free(line);
	free(text);
	configuration_unref(&configuration);
}

static void expect_out_of_range(const struct bounds *row, const char *value)
{
	char *text = format("[%s]\n%s = %s\n", row->section, row->key, value);
	char *error = format("x.conf:2: %s \"%s\" is out of range: %s%s to %s\n", row->key, value,
			     strcmp(row->key, "idle_timeout") == 0 ? "0, or " : "",
			     strcmp(row->key, "idle_timeout") == 0 ? "1s" : row->low, row->high);

	expect_errors(text, error);
	free(error);
	free(text);
}

START_TEST(bounds_belong_to_the_range)
{
	const struct bounds *row = &bounds[_i];

	expect_value(row, row->low);
	expect_value(row, row->high);
	if (row->below != NULL)
		expect_out_of_range(row, row->below);
	expect_out_of_range(row, row->above);
	expect_out_of_range(row, strspn(row->high, "0123456789") == strlen(row->high)
					 ? "99999999999999999999999999"
				 : strpbrk(row->high, "KMGT") != NULL
					 ? "99999999999999999999999999T"
					 : "99999999999999999999999999d");
}
END_TEST

START_TEST(units_are_powers_of_1024_and_times)
{
	struct configuration *c = load("[server]\n"
				       "drain_timeout = 7ms\n"
				       "drain_idle = 7s\n"
				       "[limits]\n"
				       "max_frame_size = 5K\n"
				       "max_outbox_bytes = 3M\n"
				       "max_pending_bytes_per_connection = 2G\n"
				       "handshake_timeout = 7m\n"
				       "idle_timeout = 7h\n"
				       "[channel c]\n"
				       "dedup_window = 7d\n");

	ck_assert_int_eq(c->server.drain_timeout_ms, 7);
	ck_assert_int_eq(c->server.drain_idle_ms, 7 * 1000);
	ck_assert_int_eq(c->limits.handshake_timeout_ms, 7 * 60 * 1000);
	ck_assert_int_eq(c->limits.idle_timeout_ms, 7 * 60 * 60 * 1000);
	ck_assert_int_eq(c->channels[0].dedup_window_ms, 7 * 24 * 60 * 60 * 1000);
	ck_assert_uint_eq(c->limits.max_frame_size, 5 * 1024);
	ck_assert_uint_eq(c->limits.max_outbox_bytes, 3 * 1024 * 1024);
	ck_assert_uint_eq(c->limits.max_pending_bytes_per_connection, UINT64_C(2) << 30);
	configuration_unref(&c);
}
END_TEST

START_TEST(numbers_need_their_unit_and_nothing_else)
{
	expect_errors(
		"[limits]\n"
		"max_frame_size = 65536\n"
		"max_outbox_bytes = 64k\n"
		"max_pending_bytes_per_connection = 4 M\n"
		"handshake_timeout = 10\n"
		"idle_timeout = 1.5h\n"
		"max_connections = 1K\n"
		"max_outbox_frames = -16\n"
		"max_subscriptions_per_connection = 0x10\n"
		"[server]\n"
		"drain_idle = s\n"
		"drain_timeout = +1s\n"
		"close_timeout = 1sec\n",
		"x.conf:2: max_frame_size \"65536\" needs a unit: K, M, G or T\n"
		"x.conf:3: max_outbox_bytes \"64k\" has the unit \"k\" instead of K, M, G or T\n"
		"x.conf:4: max_pending_bytes_per_connection \"4 M\" has the unit \" M\" instead of "
		"K, M, G or T\n"
		"x.conf:5: handshake_timeout \"10\" needs a unit: ms, s, m, h or d\n"
		"x.conf:6: idle_timeout \"1.5h\" has the unit \".5h\" instead of ms, s, m, h or d\n"
		"x.conf:7: max_connections \"1K\" is not a whole number\n"
		"x.conf:8: max_outbox_frames \"-16\" is not a whole number\n"
		"x.conf:9: max_subscriptions_per_connection \"0x10\" is not a whole number\n"
		"x.conf:11: drain_idle \"s\" is not a whole number\n"
		"x.conf:12: drain_timeout \"+1s\" is not a whole number\n"
		"x.conf:13: close_timeout \"1sec\" has the unit \"sec\" instead of ms, s, m, h or "
		"d\n");
}
END_TEST

/* Modulo 2^64 each of them would be in range. */
START_TEST(numbers_do_not_wrap)
{
	expect_errors("[limits]\n"
		      "max_outbox_frames = 18446744073709551632\n"
		      "max_frame_size = 18014398509481988K\n"
		      "[server]\n"
		      "drain_idle = 18446744073709552s\n",
		      "x.conf:2: max_outbox_frames \"18446744073709551632\" is out of range: 16 to "
		      "16777216\n"
		      "x.conf:3: max_frame_size \"18014398509481988K\" is out of range: 4K to 1G\n"
		      "x.conf:5: drain_idle \"18446744073709552s\" is out of range: 0 to 1h\n");
}
END_TEST

START_TEST(choices_take_their_words_only)
{
	static const char *const levels[] = {"error", "warning", "notice", "info", "debug"};
	struct configuration *c;

	for (size_t i = 0; i < ARRAY_LENGTH(levels); i++) {
		char *text = format("[server]\nlog_level = %s\n", levels[i]);

		c = load(text);
		ck_assert_uint_eq(c->server.log_level, i);
		configuration_unref(&c);
		free(text);
	}
	c = load("[server]\nlog_format = json\n[conversations]\nno_worker = wait\n"
		 "[channel c]\nslow_consumer = drop\ndurable = no\n");
	ck_assert_int_eq(c->server.log_format, LOG_FORMAT_JSON);
	ck_assert_int_eq(c->conversations.no_worker, NO_WORKER_WAIT);
	ck_assert_int_eq(c->channels[0].slow_consumer, SLOW_CONSUMER_DROP);
	configuration_unref(&c);
	c = load("[conversations]\nno_worker = error\n");
	ck_assert_int_eq(c->conversations.no_worker, NO_WORKER_ERROR);
	configuration_unref(&c);

	expect_errors("[server]\nlog_level = Info\nlog_format = xml\n"
		      "[channel c]\nslow_consumer = shedd\ndurable = true\n",
		      "x.conf:2: log_level \"Info\" is not one of error, warning, notice, info, "
		      "debug; did you mean \"info\"?\n"
		      "x.conf:3: log_format \"xml\" is not one of text, json\n"
		      "x.conf:5: slow_consumer \"shedd\" is not one of shed, drop; did you mean "
		      "\"shed\"?\n"
		      "x.conf:6: durable \"true\" is neither yes nor no\n");
}
END_TEST

START_TEST(addresses_have_a_host_and_a_port)
{
	static const char *const valid[] = {
		"127.0.0.1:0", "localhost:65535",  "bus.example.org:7480", "[::1]:7480",
		"[::]:80",     "[fe80::1%eth0]:1", "[::ffff:10.0.0.1]:1",  "/run/bus",
	};
	static const struct {
		const char *address, *why;
	} refused[] = {
		{"7480", "has no port: HOST:PORT"},
		{":7480", "has no host; every address of this machine is 0.0.0.0 or [::]"},
		{"::1:7480", "is not HOST:PORT; an IPv6 address stands in brackets: [IPV6]:PORT"},
		{"[::1]", "is not [IPV6]:PORT"},
		{"[::1:7480", "is not [IPV6]:PORT"},
		{"[]:7480", "is not [IPV6]:PORT"},
		{"[1.2.3.4]:7480", "is not [IPV6]:PORT"},
		{"[fe80::1%]:7480", "is not [IPV6]:PORT"},
		{"[fe80::1%a b]:7480", "is not [IPV6]:PORT"},
		{"*:7480", "is not HOST:PORT: the host is neither a name nor an address"},
		{"a b:7480", "is not HOST:PORT: the host is neither a name nor an address"},
		{"a:", "has no port from 0 to 65535"},
		{"a:65536", "has no port from 0 to 65535"},
		{"a:-1", "has no port from 0 to 65535"},
		{"a:http", "has no port from 0 to 65535"},
		{"a:000080", "has no port from 0 to 65535"},
	};

	for (size_t i = 0; i < ARRAY_LENGTH(valid); i++) {
		char *text = format("[server]\nlisten = %s\n", valid[i]);
		struct configuration *c = load(text);

		ck_assert_uint_eq(c->server.listen.count, 1);
		ck_assert_str_eq(c->server.listen.items[0], valid[i]);
		configuration_unref(&c);
		free(text);
	}
	for (size_t i = 0; i < ARRAY_LENGTH(refused); i++) {
		char *text = format("[server]\nlisten = %s\n", refused[i].address);
		char *error =
			format("x.conf:2: listen \"%s\" %s\n", refused[i].address, refused[i].why);

		expect_errors(text, error);
		free(error);
		free(text);
	}
}
END_TEST

START_TEST(http_takes_an_address_or_none)
{
	struct configuration *c = load("[server]\nhttp_listen = none\n");

	ck_assert_str_eq(c->server.http_listen, "none");
	configuration_unref(&c);
#ifdef HAVE_HTTP
	c = load("[server]\nhttp_listen = [::1]:0\n");
	ck_assert_str_eq(c->server.http_listen, "[::1]:0");
	configuration_unref(&c);
	expect_errors("[server]\nhttp_listen = /run/http\n",
		      "x.conf:2: http_listen \"/run/http\" has no port: HOST:PORT\n");
#else
	expect_errors("[server]\nhttp_listen = 127.0.0.1:7481\n",
		      "x.conf:2: http_listen \"127.0.0.1:7481\" is not none, and this build has no "
		      "HTTP\n");
#endif
}
END_TEST

START_TEST(log_takes_a_path_or_two_words)
{
	struct configuration *c = load("[server]\nlog = syslog\n");

	ck_assert_str_eq(c->server.log, "syslog");
	configuration_unref(&c);
	c = load("[server]\nlog = /var/log/x\n");
	ck_assert_str_eq(c->server.log, "/var/log/x");
	configuration_unref(&c);
	expect_errors("[server]\nlog = sylog\n", "x.conf:2: log \"sylog\" is neither stderr nor "
						 "syslog nor a path with a \"/\"\n");
}
END_TEST

START_TEST(relative_paths_count_from_the_start)
{
	static const char text[] = "[server]\nlisten = ./bus\ncontrol_socket = control\n"
				   "pidfile = run/pid\nlog = log/x\n";
	struct configuration *first = load(text), *again;
	char *expected = format("%s/./bus", folder);

	ck_assert_str_eq(first->server.listen.items[0], expected);
	free(expected);
	expected = format("%s/control", folder);
	ck_assert_str_eq(first->server.control_socket, expected);
	free(expected);
	expected = format("%s/run/pid", folder);
	ck_assert_str_eq(first->server.pidfile, expected);
	free(expected);
	expected = format("%s/log/x", folder);
	ck_assert_str_eq(first->server.log, expected);
	free(expected);

	/* As a daemon that reads its file again; its path is relative as well. */
	write_file("x.conf", text, strlen(text));
	ck_assert_int_eq(chdir("/"), 0);
	again = configuration_load("x.conf", &(struct configuration_problems){.errors = {NULL, 0}});
	ck_assert_ptr_nonnull(again);
	ck_assert_str_eq(again->server.pidfile, first->server.pidfile);
	configuration_unref(&first);
	configuration_unref(&again);
}
END_TEST

START_TEST(socket_path_is_as_long_as_the_system_allows)
{
	char *path = repeated('x', 150);
	char *text = format("[server]\ncontrol_socket = /%s\n", path);
	struct configuration_problems problems;
	struct configuration *c = load_bytes(text, strlen(text), &problems);

	ck_assert_ptr_null(c);
	ck_assert_uint_eq(problems.errors.count, 1);
	ck_assert_ptr_nonnull(strstr(problems.errors.items[0], "x.conf:2: control_socket \"/xxx"));
	ck_assert_ptr_nonnull(strstr(problems.errors.items[0], " is longer than the 10"));
	configuration_problems_free(&problems);
	free(text);
	free(path);
}
END_TEST

START_TEST(list_replaces_its_default_and_grows)
{
	struct configuration *c = load("[conversations]\n"
				       "unanswered_channels = a\n"
				       "worker_queues = q 1\n"
				       "unanswered_channels = b/c:d\n"
				       "[server]\n"
				       "listen = a:1\n"
				       "[conversations]\n"
				       "unanswered_channels = e\n"
				       "[server]\n"
				       "listen = b:2\n");

	ck_assert_uint_eq(c->conversations.unanswered_channels.count, 3);
	ck_assert_str_eq(c->conversations.unanswered_channels.items[0], "a");
	ck_assert_str_eq(c->conversations.unanswered_channels.items[1], "b/c:d");
	ck_assert_str_eq(c->conversations.unanswered_channels.items[2], "e");
	ck_assert_uint_eq(c->conversations.worker_queues.count, 1);
	ck_assert_str_eq(c->conversations.worker_queues.items[0], "q 1");
	ck_assert_uint_eq(c->server.listen.count, 2);
	ck_assert_str_eq(c->server.listen.items[1], "b:2");
	configuration_unref(&c);
	expect_errors("[conversations]\nunanswered_channels = a b\nworker_queues = \xff\n",
		      "x.conf:2: unanswered_channels \"a b\" is not a channel name, which consists "
		      "of A-Z a-z 0-9 . _ - / :\n"
		      "x.conf:3: worker_queues \"\\xff\" is not UTF-8\n");
}
END_TEST

/* --- lines ------------------------------------------------------------------------------------ */

START_TEST(blanks_comments_and_line_ends_do_not_matter)
{
	static const char *const texts[] = {
		"[server]\nuser = u\n[channel c]\n",
		"[server]\nuser = u\n[channel c]",
		"[server]\r\nuser = u\r\n[channel c]\r\n",
		"\xef\xbb\xbf[server]\nuser = u\n[channel c]\n",
		"\n#c\n ;c\n\t[server]\t;c\n  user=u ; c ;d\n\t[ channel \t c ] ; ]",
		"[server]\nuser\t=\tu\t;c\n \t# c\n[channel c]\n",
		"[server]\nuser =u\n;user = v\n#user = w\n[channel c]\n",
	};

	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
		struct configuration *c = load(texts[i]);

		ck_assert_str_eq(c->server.user, "u");
		ck_assert_uint_eq(c->channel_count, 1);
		ck_assert_str_eq(c->channels[0].name, "c");
		configuration_unref(&c);
	}
	/* A byte order mark elsewhere is a character like others. */
	expect_errors("\n\xef\xbb\xbf[server]\n",
		      "x.conf:2: no \"=\" after \"\xef\xbb\xbf[server]\"\n");
}
END_TEST

START_TEST(indented_line_is_a_key_of_its_own)
{
	struct configuration *c = load("[server]\nuser = u\n    group = g\n\t\tpidfile = /p\n");

	ck_assert_str_eq(c->server.user, "u");
	ck_assert_str_eq(c->server.group, "g");
	ck_assert_str_eq(c->server.pidfile, "/p");
	configuration_unref(&c);
	expect_errors("[server]\nuser = u\n    and more\n", "x.conf:3: no \"=\" after \"and\"\n");
}
END_TEST

START_TEST(value_is_taken_as_it_stands)
{
	static const char *const values[] = {
		"a;b",	   "a=b", "=",	  "==a", "a:b", "\"a b\"",
		"a  b\tc", "#a",  "a #b", "'",	 "[x]", "\xc3\xa9",
	};

	for (size_t i = 0; i < ARRAY_LENGTH(values); i++) {
		char *text = format("[auth]\ntoken = %s\n[server]\nuser =%s ; c\ngroup = g\n",
				    values[i], values[i]);
		struct configuration *c = load(text);

		ck_assert_str_eq(c->auth.token, values[i]);
		ck_assert_str_eq(c->server.user, values[i]);
		ck_assert_str_eq(c->server.group, "g");
		configuration_unref(&c);
		free(text);
	}
}
END_TEST

/* The keys that take any text, the longest of them among them. */
START_TEST(value_has_up_to_180_bytes)
{
	static const char *const keys[][2] = {
		{"auth", "token"},
		{"server", "user"},
		{"server", "group"},
		{"conversations", "worker_queues"},
		{"conversations", "unanswered_channels"},
	};
	char *longest = repeated('v', 180), *longer = repeated('v', 181);
	char *blanks = repeated(' ', 400);

	for (size_t i = 0; i < ARRAY_LENGTH(keys); i++) {
		char *text = format("[%s]\n%s%s=%s%s%s;c\n", keys[i][0], keys[i][1], blanks, blanks,
				    longest, " ");
		char *line = format("\n%s = %s\n", keys[i][1], longest);
		struct configuration *c = load(text);
		char *out = printed(c);

		if (i == 0)
			ck_assert_str_eq(c->auth.token, longest);
		else
			ck_assert_ptr_nonnull(strstr(out, line));
		free(out);
		configuration_unref(&c);
		free(line);
		free(text);

		text = format("[%s]\n%s=%s\n", keys[i][0], keys[i][1], longer);
		line = i == 0 ? format("x.conf:2: token is longer than 180 bytes\n")
			      : format("x.conf:2: %s \"%.128s\" is longer than 180 bytes\n",
				       keys[i][1], longer);
		expect_errors(text, line);
		free(line);
		free(text);
	}
	/* Blanks inside a value do not end it, however far it goes. */
	{
		char *text = format("[server]\nuser = a%sb\n", blanks);
		struct configuration_problems problems;

		ck_assert_ptr_null(load_bytes(text, strlen(text), &problems));
		ck_assert_uint_eq(problems.errors.count, 1);
		ck_assert_ptr_nonnull(
			strstr(problems.errors.items[0], " is longer than 180 bytes"));
		configuration_problems_free(&problems);
		free(text);
	}
	free(blanks);
	free(longest);
	free(longer);
}
END_TEST

START_TEST(line_has_up_to_1024_bytes)
{
	static const char *const ends[] = {"\n", "\r\n", ""};
	char *comment = repeated('c', 1024 - strlen("user = u ;"));

	for (size_t i = 0; i < ARRAY_LENGTH(ends); i++) {
		char *text = format("[server]\ngroup = g\nuser = u ;%s%s", comment, ends[i]);
		struct configuration *c = load(text);

		ck_assert_str_eq(c->server.user, "u");
		configuration_unref(&c);
		free(text);

		text = format("[server]\ngroup = g\nuser = u ;%sc%s", comment, ends[i]);
		expect_errors(text, "x.conf:3: the line is longer than 1024 bytes\n");
		free(text);
	}
	free(comment);
	/* Comments are lines, too, and what follows is read as usual. */
	comment = repeated('#', 5000);
	{
		char *text = format("%s\n[server]\n%s\nusr = x\n", comment, comment);

		expect_errors(text, "x.conf:1: the line is longer than 1024 bytes\n"
				    "x.conf:3: the line is longer than 1024 bytes\n"
				    "x.conf:4: unknown key \"usr\" in [server]; did you mean "
				    "\"user\"?\n");
		free(text);
	}
	free(comment);
}
END_TEST

START_TEST(nul_byte_is_an_error_wherever_it_stands)
{
	static const char *const texts[] = {"[server]\nuser = u0x\n", "[server]\n#0\n",
					    "[server]\n0\n", "[server]\nuser = u\n0"};
	static const unsigned lines[] = {2, 2, 2, 3};

	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
		struct configuration_problems problems;
		char *bytes = strdup(texts[i]);
		size_t length = strlen(bytes);
		char *expected = format("x.conf:%u: the line holds a NUL byte\n", lines[i]);
		char *errors;

		*strchr(bytes, '0') = '\0';
		ck_assert_ptr_null(load_bytes(bytes, length, &problems));
		errors = join(&problems.errors);
		ck_assert_str_eq(errors, expected);
		configuration_problems_free(&problems);
		free(errors);
		free(expected);
		free(bytes);
	}
}
END_TEST

START_TEST(pair_needs_a_key_an_equals_sign_and_a_value)
{
	expect_errors("user = x\n"
		      "[server]\n"
		      "user: x\n"
		      "user : a = b\n"
		      "user\n"
		      "user ; = x\n"
		      "= x\n"
		      "user =\n"
		      "group = ; x\n"
		      "pidfile =;x\n"
		      "log_level x = y\n",
		      "x.conf:1: \"user\" stands before the first [section]\n"
		      "x.conf:3: \":\" after \"user\" instead of \"=\"\n"
		      "x.conf:4: \":\" after \"user\" instead of \"=\"\n"
		      "x.conf:5: no \"=\" after \"user\"\n"
		      "x.conf:6: no \"=\" after \"user\"\n"
		      "x.conf:7: no key before \"=\"\n"
		      "x.conf:8: user is empty\n"
		      "x.conf:9: group is empty\n"
		      "x.conf:10: pidfile \";x\" begins with \";\", which starts a comment\n"
		      "x.conf:11: unknown key \"log_level x\" in [server]; did you mean "
		      "\"log_level\"?\n");
}
END_TEST

START_TEST(key_of_any_length_is_an_unknown_key)
{
	char *key = repeated('k', 1000);
	char *text = format("[server]\n%s = x\n", key);
	char *error = format("x.conf:2: unknown key \"%.128s\" in [server]\n", key);

	expect_errors(text, error);
	free(error);
	free(text);
	free(key);
}
END_TEST

/* --- sections --------------------------------------------------------------------------------- */

START_TEST(section_line_is_checked_whole)
{
	expect_errors("[sever]\nuser = x\n"
		      "[server] junk\nusr = x\n"
		      "[server]]\n"
		      "[server];c\n"
		      "[server\n"
		      "[]\n"
		      "[server x]\n"
		      "[chanel x]\n"
		      "[Server]\n"
		      "[channel]\n"
		      "[channel a b]\n"
		      "[channelx]\n"
		      "[frobnicate]\n",
		      "x.conf:1: unknown section \"sever\"; did you mean \"server\"?\n"
		      "x.conf:3: junk after \"]\": \" junk\"\n"
		      "x.conf:4: unknown key \"usr\" in [server]; did you mean \"user\"?\n"
		      "x.conf:5: junk after \"]\": \"]\"\n"
		      "x.conf:6: junk after \"]\": \";c\"\n"
		      "x.conf:7: no \"]\" at the end of \"[server\"\n"
		      "x.conf:8: unknown section \"\"\n"
		      "x.conf:9: unknown section \"server x\"; did you mean \"server\"?\n"
		      "x.conf:10: unknown section \"chanel x\"; did you mean \"channel\"?\n"
		      "x.conf:11: unknown section \"Server\"; did you mean \"server\"?\n"
		      "x.conf:12: a channel needs a name: [channel NAME]\n"
		      "x.conf:13: \"a b\" is not a channel name, which consists of A-Z a-z "
		      "0-9 . _ - / :\n"
		      "x.conf:14: unknown section \"channelx\"; did you mean \"channel\"?\n"
		      "x.conf:15: unknown section \"frobnicate\"\n");
}
END_TEST

START_TEST(channel_needs_no_keys_and_keeps_its_whole_name)
{
	char *name = repeated('n', 255);
	char *text = format("[channel %s]\n[channel %.254s]\n[channel azAZ09._-/:]\n", name, name);
	struct configuration *c = load(text);

	ck_assert_uint_eq(c->channel_count, 3);
	ck_assert_str_eq(c->channels[0].name, name);
	ck_assert_uint_eq(strlen(c->channels[1].name), 254);
	ck_assert_str_eq(c->channels[2].name, "azAZ09._-/:");
	ck_assert_uint_eq(c->channels[1].dedup_max_keys, 1000000);
	configuration_unref(&c);
	free(text);

	text = format("[channel %sn]\n", name);
	{
		char *error = format("x.conf:1: \"%.128s\" is not a channel name, which has 1 "
				     "to 255 bytes\n",
				     name);

		expect_errors(text, error);
		free(error);
	}
	free(text);
	free(name);

	c = load("[server]\n");
	ck_assert_uint_eq(c->channel_count, 0);
	configuration_unref(&c);
}
END_TEST

START_TEST(duplicates_are_named_with_the_first_line)
{
	expect_errors(
		"[channel a]\n"
		"dedup_window = 1m\n"
		"[channel b]\n"
		"dedup_window = 1m\n"
		"[channel a]\n"
		"dedup_window = 1x\n"
		"[server]\n"
		"user = a\n"
		"[limits]\n"
		"[server]\n"
		"user = b\n",
		"x.conf:5: channel \"a\" is configured already, on line 1\n"
		"x.conf:6: dedup_window \"1x\" has the unit \"x\" instead of ms, s, m, h or d\n"
		"x.conf:11: \"user\" is set already, on line 8\n");
}
END_TEST

START_TEST(unknown_key_is_told_what_was_meant)
{
	expect_errors("[server]\n"
		      "listn = a:1\n"
		      "drain_time = 1s\n"
		      "max_frame_size = 4K\n"
		      "slow_consumer = shed\n"
		      "zzz = 1\n"
		      "Listen = a:1\n"
		      "[limits]\n"
		      "max_frame = 1M\n"
		      "max_pending_replies_per_conection = 4\n"
		      "[channel c]\n"
		      "dedup_keys = 1\n"
		      "max_commit_bytes = 1M\n",
		      "x.conf:2: unknown key \"listn\" in [server]; did you mean \"listen\"?\n"
		      "x.conf:3: unknown key \"drain_time\" in [server]; did you mean "
		      "\"drain_timeout\"?\n"
		      "x.conf:4: unknown key \"max_frame_size\" in [server]; it belongs in "
		      "[limits]\n"
		      "x.conf:5: unknown key \"slow_consumer\" in [server]; it belongs in "
		      "[channel NAME]\n"
		      "x.conf:6: unknown key \"zzz\" in [server]\n"
		      "x.conf:7: unknown key \"Listen\" in [server]; did you mean \"listen\"?\n"
		      "x.conf:9: unknown key \"max_frame\" in [limits]; did you mean "
		      "\"max_frame_size\"?\n"
		      "x.conf:10: unknown key \"max_pending_replies_per_conection\" in [limits]; "
		      "did you mean \"max_pending_replies_per_connection\"?\n"
		      "x.conf:12: unknown key \"dedup_keys\" in [channel]; did you mean "
		      "\"dedup_max_keys\"?\n"
		      "x.conf:13: unknown key \"max_commit_bytes\" in [channel]; it belongs in "
		      "[store]\n");
}
END_TEST

/* --- tokens, schemas -------------------------------------------------------- */

static char *token_of_file(const char *bytes, size_t length)
{
	struct configuration *c;
	char *token;

	write_file("token", bytes, length);
	c = load("[auth]\ntoken_file = token\n");
	token = strdup(c->auth.token);
	configuration_unref(&c);
	return token;
}

START_TEST(token_file_gives_its_first_line)
{
	static const char *const texts[] = {"secret", "secret\n", "secret\r\n", "secret\nmore\n"};
	char *longest = repeated('t', 4096);
	char *token;

	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
		token = token_of_file(texts[i], strlen(texts[i]));
		ck_assert_str_eq(token, "secret");
		free(token);
	}
	token = token_of_file(" a ;b ", 6);
	ck_assert_str_eq(token, " a ;b ");
	free(token);
	for (size_t i = 0; i < 3; i++) {
		char *text = format("%s%s", longest, i == 0 ? "" : i == 1 ? "\n" : "\r\nx\n");

		token = token_of_file(text, strlen(text));
		ck_assert_str_eq(token, longest);
		free(token);
		free(text);
	}
	free(longest);
}
END_TEST

static void expect_token_error(const char *bytes, size_t length, const char *why)
{
	char *error = format("x.conf:2: token_file \"%s/token\" %s\n", folder, why);

	write_file("token", bytes, length);
	expect_errors("[auth]\ntoken_file = token\n", error);
	free(error);
}

START_TEST(token_file_that_gives_no_token_is_an_error)
{
	char *longer = repeated('t', 4097);
	char *error;

	expect_token_error("", 0, "has an empty first line");
	expect_token_error("\nsecret\n", 8, "has an empty first line");
	expect_token_error("\r\n", 2, "has an empty first line");
	expect_token_error("a\0b", 3, "has a NUL byte in its first line");
	expect_token_error(longer, 4097, "has a first line longer than 4096 bytes");
	free(longer);

	error = format("x.conf:2: token_file \"%s/none\" cannot be read: No such file or "
		       "directory\n",
		       folder);
	expect_errors("[auth]\ntoken_file = none\n", error);
	free(error);

	/* It must not wait for somebody to write. */
	ck_assert_int_eq(mkfifo("pipe", 0600), 0);
	error = format("x.conf:2: token_file \"%s/pipe\" is not a regular file\n", folder);
	expect_errors("[auth]\ntoken_file = pipe\n", error);
	free(error);
}
END_TEST

START_TEST(one_token_only)
{
	write_file("token", "a\n", 2);
	expect_errors("[auth]\ntoken = b\ntoken_file = token\n[channel]\n",
		      "x.conf:3: token and token_file exclude each other\n"
		      "x.conf:4: a channel needs a name: [channel NAME]\n");
	expect_errors("[auth]\ntoken_file = none\ntoken = b\n",
		      "x.conf:3: token and token_file exclude each other\n");
}
END_TEST

START_TEST(schema_gives_the_id_of_its_bytes)
{
	/* Of `{}`, and of no byte at all, as the protocol lists them. */
	static const uint8_t braces[] = {0x08, 0xf4, 0x4b, 0x07, 0xb5, 0x90, 0x1a, 0x25,
					 0xd1, 0xe1, 0x73, 0x35, 0x72, 0x52, 0x17, 0xd3,
					 0x11, 0x5b, 0xb3, 0x5d, 0xe7, 0xb2, 0x87, 0xa5,
					 0x4b, 0xb3, 0x18, 0x7d, 0x12, 0x7c, 0xc0, 0xf4};
	static const uint8_t empty[] = {0xcb, 0xf2, 0x9c, 0xe4, 0x84, 0x22, 0x23, 0x25,
					0x46, 0x45, 0xb2, 0x30, 0xce, 0xce, 0x75, 0xb2,
					0xd6, 0x9e, 0xe3, 0x28, 0x69, 0x30, 0xc3, 0x25,
					0x6c, 0x2e, 0xb9, 0x92, 0x06, 0x9d, 0xe0, 0xc3};
	struct configuration *c;
	char *error;

	write_file("schema", "", 0);
	c = load("[channel a]\n[channel b]\nschema = schema\n");
	ck_assert_mem_eq(c->channels[0].schema_id, braces, 32);
	ck_assert_mem_eq(c->channels[1].schema_id, empty, 32);
	configuration_unref(&c);
	write_file("schema", "{}", 2);
	c = load("[channel b]\nschema = schema\n");
	ck_assert_mem_eq(c->channels[0].schema_id, braces, 32);
	configuration_unref(&c);

	ck_assert_int_eq(mkdir("folder", 0700), 0);
	error = format("x.conf:2: schema \"%s/none\" cannot be read: No such file or directory\n"
		       "x.conf:4: schema \"%s/folder\" is not a regular file\n",
		       folder, folder);
	expect_errors("[channel a]\nschema = none\n[channel b]\nschema = folder\n", error);
	free(error);
}
END_TEST

START_TEST(no_message_shows_a_token)
{
	char *longer = repeated('S', 181);
	char *text = format("[auth]\ntoken hunter2\ntoken: hunter2\ntoken = %s\n"
			    "token = hunter2\n",
			    longer);

	expect_errors(text, "x.conf:2: no \"=\" after \"token\"\n"
			    "x.conf:3: \":\" after \"token\" instead of \"=\"\n"
			    "x.conf:4: token is longer than 180 bytes\n"
			    "x.conf:5: \"token\" is set already, on line 4\n");
	expect_errors("[auth]\ntoken =;hunter2\n",
		      "x.conf:2: token begins with \";\", which starts a comment\n");
	free(text);
	free(longer);
	longer = repeated('S', 4097);
	setenv("LIMINAL_AUTH_TOKEN", longer, 1);
	expect_errors("", "LIMINAL_AUTH_TOKEN has not 1 to 4096 bytes\n");
	free(longer);
}
END_TEST

/* --- the environment -------------------------------------------------------------------------- */

START_TEST(environment_overrides_the_file)
{
	struct configuration *c;
	char *token = repeated('t', 4096);

	setenv("LIMINAL_LISTEN_ADDRESS", "[::1]:1", 1);
	setenv("LIMINAL_HEALTH_LISTEN_ADDRESS", "none", 1);
	setenv("LIMINAL_DRAIN_TIMEOUT_MS", "1234", 1);
	setenv("LIMINAL_AUTH_TOKEN", token, 1);
	for (size_t i = 0; i < 2; i++) {
		c = load(i == 0 ? ""
				: "[server]\n"
				  "listen = 127.0.0.1:1\n"
				  "listen = 127.0.0.1:2\n"
				  "http_listen = 127.0.0.1:3\n"
				  "drain_timeout = 2s\n"
				  "[auth]\n"
				  "token = file\n");
		ck_assert_uint_eq(c->server.listen.count, 1);
		ck_assert_str_eq(c->server.listen.items[0], "[::1]:1");
		ck_assert_str_eq(c->server.http_listen, "none");
		ck_assert_int_eq(c->server.drain_timeout_ms, 1234);
		ck_assert_str_eq(c->auth.token, token);
		configuration_unref(&c);
	}
	/* Also without a file. */
	c = configuration_load(NULL, &(struct configuration_problems){.errors = {NULL, 0}});
	ck_assert_str_eq(c->server.listen.items[0], "[::1]:1");
	ck_assert_str_eq(c->channels[0].name, "events");
	configuration_unref(&c);
	free(token);
}
END_TEST

START_TEST(overridden_value_is_not_looked_at)
{
	struct configuration *c;
	char *longer = repeated('x', 181);
	char *text = format("[server]\nlisten = nonsense\nlisten = %s\nhttp_listen =\n"
			    "drain_timeout = 99d\n[auth]\ntoken = %s\ntoken_file = none\n",
			    longer, longer);

	setenv("LIMINAL_LISTEN_ADDRESS", "127.0.0.1:0", 1);
	setenv("LIMINAL_HEALTH_LISTEN_ADDRESS", "none", 1);
	setenv("LIMINAL_DRAIN_TIMEOUT_MS", "0", 1);
	setenv("LIMINAL_AUTH_TOKEN", "a ;b", 1);
	c = load(text);
	ck_assert_str_eq(c->auth.token, "a ;b");
	ck_assert_ptr_null(c->auth.token_file);
	ck_assert_int_eq(c->server.drain_timeout_ms, 0);
	configuration_unref(&c);
	/* The lines are, though. */
	expect_errors("[server]\ndrain_timeout = 1s\ndrain_timeout = 1s\n",
		      "x.conf:3: \"drain_timeout\" is set already, on line 2\n");
	free(text);
	free(longer);
}
END_TEST

START_TEST(bad_override_is_reported_under_its_name)
{
	static const char *const names[] = {"LIMINAL_LISTEN_ADDRESS",
					    "LIMINAL_HEALTH_LISTEN_ADDRESS",
					    "LIMINAL_DRAIN_TIMEOUT_MS", "LIMINAL_PERSISTENCE_PATH"};

	setenv("LIMINAL_LISTEN_ADDRESS", "nonsense", 1);
	setenv("LIMINAL_DRAIN_TIMEOUT_MS", "30s", 1);
	setenv("LIMINAL_PERSISTENCE_PATH", "/a ;b", 1);
	expect_errors("[server]\nusr = x\n",
		      "x.conf:2: unknown key \"usr\" in [server]; did you mean \"user\"?\n"
		      "LIMINAL_LISTEN_ADDRESS \"nonsense\" has no port: HOST:PORT\n"
		      "LIMINAL_DRAIN_TIMEOUT_MS \"30s\" is not a whole number of milliseconds\n"
		      "LIMINAL_PERSISTENCE_PATH \"/a ;b\" holds \" ;\", which starts a comment\n");
	unsetenv("LIMINAL_LISTEN_ADDRESS");
	unsetenv("LIMINAL_PERSISTENCE_PATH");
	setenv("LIMINAL_DRAIN_TIMEOUT_MS", "3600001", 1);
	expect_errors("", "LIMINAL_DRAIN_TIMEOUT_MS \"3600001\" is out of range: 0 to 1h\n");
	unsetenv("LIMINAL_DRAIN_TIMEOUT_MS");
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
		struct configuration_problems problems;

		setenv(names[i], "", 1);
		ck_assert_ptr_null(configuration_load(NULL, &problems));
		ck_assert_uint_eq(problems.errors.count, 1);
		ck_assert_ptr_nonnull(strstr(problems.errors.items[0], names[i]));
		configuration_problems_free(&problems);
		unsetenv(names[i]);
	}
	/* An empty secret must not open the server. */
	setenv("LIMINAL_AUTH_TOKEN", "", 1);
	expect_errors("[auth]\ntoken = x\n", "LIMINAL_AUTH_TOKEN has not 1 to 4096 bytes\n");
}
END_TEST

/* --- files and warnings ----------------------------------------------------------------------- */

START_TEST(file_that_cannot_be_read_is_an_error)
{
	struct configuration_problems problems;
	char *errors;

	setenv("LIMINAL_DRAIN_TIMEOUT_MS", "x", 1);
	ck_assert_ptr_null(configuration_load("none.conf", &problems));
	errors = join(&problems.errors);
	ck_assert_str_eq(errors,
			 "none.conf: cannot be read: No such file or directory\n"
			 "LIMINAL_DRAIN_TIMEOUT_MS \"x\" is not a whole number of milliseconds\n");
	free(errors);
	configuration_problems_free(&problems);
	unsetenv("LIMINAL_DRAIN_TIMEOUT_MS");

	ck_assert_ptr_null(configuration_load(folder, &problems));
	ck_assert_uint_eq(problems.errors.count, 1);
	ck_assert_ptr_nonnull(strstr(problems.errors.items[0], ": cannot be read: "));
	configuration_problems_free(&problems);
}
END_TEST

START_TEST(unwise_values_draw_warnings)
{
	expect_warnings("[limits]\nmax_frame_size = 16M\nmax_outbox_bytes = 32M\n"
			"[conversations]\nreply_timeout = 4999ms\n",
			"");
	expect_warnings("[server]\nlisten = localhost:1\nlisten = [::1]:2\nlisten = /x\n"
			"listen = 127.9.9.9:1\n",
			"");
	expect_warnings("[auth]\ntoken = x\n[server]\nlisten = 0.0.0.0:1\n", "");
	expect_warnings(
		"[conversations]\n"
		"reply_timeout = 5s\n"
		"reply_timeout_max = 4s\n"
		"[limits]\n"
		"max_frame_size = 17M\n"
		"[server]\n"
		"listen = 127.0.0.1:1\n"
		"listen = 0.0.0.0:1\n",
		"x.conf:2: reply_timeout is not below 5s: many clients give up before they hear "
		"why "
		"there is no reply\n"
		"x.conf:3: reply_timeout_max is less than reply_timeout: no worker can ask for "
		"more time\n"
		"x.conf:5: max_outbox_bytes is less than twice max_frame_size: a subscription "
		"whose "
		"connection has not taken one large message misses the next\n"
		"x.conf:8: listen \"0.0.0.0:1\" is open to whoever can reach it: there is no "
		"token\n");
	expect_warnings("[limits]\nmax_outbox_bytes = 32767K\n",
			"x.conf:2: max_outbox_bytes is less than twice max_frame_size: a "
			"subscription whose connection has not taken one large message misses the "
			"next\n");
	/* Where there are errors, the values are not all the author's. */
	{
		static const char text[] = "[limits]\nmax_frame_size = 17M\nmax_outbox_bytes = x\n";
		struct configuration_problems problems;

		ck_assert_ptr_null(load_bytes(text, strlen(text), &problems));
		ck_assert_uint_eq(problems.errors.count, 1);
		ck_assert_uint_eq(problems.warnings.count, 0);
		configuration_problems_free(&problems);
	}
	setenv("LIMINAL_LISTEN_ADDRESS", "[::]:1", 1);
	expect_warnings("[server]\nlisten = 127.0.0.1:1\n",
			"LIMINAL_LISTEN_ADDRESS \"[::]:1\" is open to whoever can reach it: there "
			"is no token\n");
}
END_TEST

START_TEST(token_that_others_can_read_draws_a_warning)
{
	static const char text[] = "[auth]\ntoken = x\n";
	struct configuration_problems problems;
	struct configuration *c;

	write_file("x.conf", text, strlen(text));
	for (int others = 0; others < 2; others++) {
		ck_assert_int_eq(chmod("x.conf", others ? 0644 : 0640), 0);
		c = configuration_load("x.conf", &problems);
		ck_assert_ptr_nonnull(c);
		ck_assert_uint_eq(problems.warnings.count, (size_t)others);
		if (others)
			ck_assert_str_eq(problems.warnings.items[0],
					 "x.conf:2: every user of this machine can read the token "
					 "in this file");
		configuration_unref(&c);
		configuration_problems_free(&problems);
	}
	write_file("token", "x", 1);
	ck_assert_int_eq(chmod("token", 0604), 0);
	expect_warnings("[auth]\ntoken_file = token\n",
			"x.conf:2: every user of this machine can read the token_file\n");
	ck_assert_int_eq(chmod("token", 0640), 0);
	expect_warnings("[auth]\ntoken_file = token\n", "");
}
END_TEST

static Suite *config_suite(void)
{
	Suite *suite = suite_create("config");
	TCase *values = tcase_create("values"), *lines = tcase_create("lines");
	TCase *sections = tcase_create("sections"), *files = tcase_create("files");
	TCase *environment = tcase_create("environment");

	tcase_add_checked_fixture(values, folder_setup, folder_teardown);
	tcase_add_test(values, defaults_are_the_documented_ones);
	tcase_add_loop_test(values, bounds_belong_to_the_range, 0, (int)ARRAY_LENGTH(bounds));
	tcase_add_test(values, units_are_powers_of_1024_and_times);
	tcase_add_test(values, numbers_need_their_unit_and_nothing_else);
	tcase_add_test(values, numbers_do_not_wrap);
	tcase_add_test(values, choices_take_their_words_only);
	tcase_add_test(values, addresses_have_a_host_and_a_port);
	tcase_add_test(values, http_takes_an_address_or_none);
	tcase_add_test(values, log_takes_a_path_or_two_words);
	tcase_add_test(values, relative_paths_count_from_the_start);
	tcase_add_test(values, socket_path_is_as_long_as_the_system_allows);
	tcase_add_test(values, list_replaces_its_default_and_grows);
	suite_add_tcase(suite, values);

	tcase_add_checked_fixture(lines, folder_setup, folder_teardown);
	tcase_add_test(lines, blanks_comments_and_line_ends_do_not_matter);
	tcase_add_test(lines, indented_line_is_a_key_of_its_own);
	tcase_add_test(lines, value_is_taken_as_it_stands);
	tcase_add_test(lines, value_has_up_to_180_bytes);
	tcase_add_test(lines, line_has_up_to_1024_bytes);
	tcase_add_test(lines, nul_byte_is_an_error_wherever_it_stands);
	tcase_add_test(lines, pair_needs_a_key_an_equals_sign_and_a_value);
	tcase_add_test(lines, key_of_any_length_is_an_unknown_key);
	suite_add_tcase(suite, lines);

	tcase_add_checked_fixture(sections, folder_setup, folder_teardown);
	tcase_add_test(sections, section_line_is_checked_whole);
	tcase_add_test(sections, channel_needs_no_keys_and_keeps_its_whole_name);
	tcase_add_test(sections, duplicates_are_named_with_the_first_line);
	tcase_add_test(sections, unknown_key_is_told_what_was_meant);
	suite_add_tcase(suite, sections);

	tcase_add_checked_fixture(files, folder_setup, folder_teardown);
	tcase_add_test(files, token_file_gives_its_first_line);
	tcase_add_test(files, token_file_that_gives_no_token_is_an_error);
	tcase_add_test(files, one_token_only);
	tcase_add_test(files, schema_gives_the_id_of_its_bytes);
	tcase_add_test(files, no_message_shows_a_token);
	tcase_add_test(files, file_that_cannot_be_read_is_an_error);
	tcase_add_test(files, unwise_values_draw_warnings);
	tcase_add_test(files, token_that_others_can_read_draws_a_warning);
	suite_add_tcase(suite, files);

	tcase_add_checked_fixture(environment, folder_setup, folder_teardown);
	tcase_add_test(environment, environment_overrides_the_file);
	tcase_add_test(environment, overridden_value_is_not_looked_at);
	tcase_add_test(environment, bad_override_is_reported_under_its_name);
	suite_add_tcase(suite, environment);
	return suite;
}

int main(void)
{
	SRunner *runner = srunner_create(config_suite());
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed > 0;
}
