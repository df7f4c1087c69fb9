/* What an administrator gets from $control and from /metrics, to the byte where that is promised.
 */
#include "admin/admin.h"

#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "admin/admin_priv.h"
#include "admin_fakes.h"
#include "base/clock.h"
#include "base/metrics.h"

#define STARTED_MS INT64_C(1764000000123)

static struct admin *admin;

static void setup(void)
{
	fake = (struct fake_state){.listening = true};
	admin = admin_new(NULL, NULL, STARTED_MS);
	ck_assert_ptr_nonnull(admin);
}

static void teardown(void)
{
	admin_free(&admin);
	ck_assert_ptr_null(admin);
}

/* --- $control ------------------------------------------------------------------------------- */

static struct buf *ask_span(const char *name, struct span request)
{
	return fake.control.answer(fake.control.context, span_of(name), request);
}

static void expect(const char *name, const char *request, const char *reply)
{
	struct buf *buf = ask_span(name, span_of(request));

	ck_assert_ptr_nonnull(buf);
	ck_assert_msg(buf->length == strlen(reply) && memcmp(buf->data, reply, buf->length) == 0,
		      "$control/%s %s\n  expected %s\n  got      %.*s", name, request, reply,
		      (int)buf->length, (const char *)buf->data);
	buf_unref(&buf);
}

static bool known(const char *name)
{
	return fake.control.known(span_of(name));
}

START_TEST(names)
{
	ck_assert(known("ping"));
	ck_assert(known("stats"));
	ck_assert(known("connections"));
	ck_assert(known("channels"));
	ck_assert(known("workers"));
	ck_assert(known("close"));
	ck_assert(known("drain"));
	ck_assert(known("consumers"));
	ck_assert(known("consumer-rm"));
	ck_assert(known("dead"));

	ck_assert(!known(""));
	ck_assert(!known("pin"));
	ck_assert(!known("pings"));
	ck_assert(!known("PING"));
	ck_assert(!known("ping/"));
}
END_TEST

START_TEST(ping)
{
	expect("ping", "", "{\"ok\":true}");
	expect("ping", "{}", "{\"ok\":true}");
	expect("ping", " {\"later\":[1,{\"x\":null}]} ", "{\"ok\":true}");
}
END_TEST

START_TEST(stats)
{
	const struct broker_channel_state channels[] = {
		{.name = SPAN_LITERAL("a"), .sheds = 1, .drops = 10},
		{.name = SPAN_LITERAL("b"), .sheds = 2, .drops = 20},
	};

	expect("stats", "",
	       "{\"version\":\"" PACKAGE_VERSION "\",\"started_ms\":1764000000123,"
	       "\"connections\":{\"current\":0,\"total\":0,\"max\":0},\"publishes\":0,"
	       "\"deliveries\":0,\"sheds\":0,\"drops\":0,\"pending_replies\":0,\"bytes_in\":0,"
	       "\"bytes_out\":0}");

	fake.net = (struct net_totals){.current = 3, .control = 50, .accepted = 9, .max = 1024};
	fake.broker.pending_replies = 4;
	fake.channels = channels;
	fake.channel_count = ARRAY_LENGTH(channels);
	metric_add(METRIC_PUBLISHES, 5);
	metric_add(METRIC_DELIVERIES, 6);
	metric_add(METRIC_BYTES_IN, 7);
	metric_add(METRIC_BYTES_OUT, UINT64_C(5000000000));
	expect("stats", "{}",
	       "{\"version\":\"" PACKAGE_VERSION "\",\"started_ms\":1764000000123,"
	       "\"connections\":{\"current\":3,\"total\":9,\"max\":1024},\"publishes\":5,"
	       "\"deliveries\":6,\"sheds\":3,\"drops\":30,\"pending_replies\":4,\"bytes_in\":7,"
	       "\"bytes_out\":5000000000}");
}
END_TEST

START_TEST(connections)
{
	const struct net_connection_state states[] = {
		{
			.id = 7,
			.peer = "127.0.0.1:5000",
			.version_major = 1,
			.version_minor = 2,
			.since_ms = 1764000000999,
			.outbox_bytes = 11,
			.outbox_frames = 12,
			.client = {.subscriptions = 1,
				   .conversations = 2,
				   .pending_replies = 3,
				   .pending_pushes = 4,
				   .worker = true,
				   .queue = "jobs",
				   .queue_length = 4},
		},
		{.id = 8, .peer = "[::1]:6", .version_major = 1},
		/* A worker may have an empty queue. */
		{.id = 9, .peer = "control", .version_major = 1, .client = {.worker = true}},
	};

	expect("connections", "", "{\"connections\":[]}");
	fake.connections = states;
	fake.connection_count = ARRAY_LENGTH(states);
	expect("connections", "",
	       "{\"connections\":[{\"id\":7,\"peer\":\"127.0.0.1:5000\",\"version\":\"1.2\","
	       "\"since_ms\":1764000000999,\"subscriptions\":1,\"conversations\":2,"
	       "\"worker\":\"jobs\",\"outbox_bytes\":11,\"outbox_frames\":12,"
	       "\"pending_replies\":3,\"pending_pushes\":4},"
	       "{\"id\":8,\"peer\":\"[::1]:6\",\"version\":\"1.0\",\"since_ms\":0,"
	       "\"subscriptions\":0,\"conversations\":0,\"worker\":null,\"outbox_bytes\":0,"
	       "\"outbox_frames\":0,\"pending_replies\":0,\"pending_pushes\":0},"
	       "{\"id\":9,\"peer\":\"control\",\"version\":\"1.0\",\"since_ms\":0,"
	       "\"subscriptions\":0,\"conversations\":0,\"worker\":\"\",\"outbox_bytes\":0,"
	       "\"outbox_frames\":0,\"pending_replies\":0,\"pending_pushes\":0}]}");
}
END_TEST

START_TEST(channels)
{
	const struct broker_channel_state states[] = {
		{SPAN_LITERAL("events"), 1, 2, 3, 4, 5, 6, 7, false, 0, 0, 0},
		{SPAN_LITERAL("jobs"), 0, 0, 0, 0, 0, 0, 0, true, 1, 2, 3},
	};

	expect("channels", "", "{\"channels\":[]}");
	fake.channels = states;
	fake.channel_count = ARRAY_LENGTH(states);
	expect("channels", "",
	       "{\"channels\":[{\"name\":\"events\",\"durable\":false,\"subscriptions\":1,"
	       "\"publishes\":2,\"deliveries\":3,\"sheds\":4,\"drops\":5,\"dedup_keys\":6},"
	       "{\"name\":\"jobs\",\"durable\":true,\"subscriptions\":0,\"publishes\":0,"
	       "\"deliveries\":0,\"sheds\":0,\"drops\":0,\"dedup_keys\":0}]}");
}
END_TEST

START_TEST(workers)
{
	/* Names may hold anything that is UTF-8, U+0000 too. */
	const struct broker_worker_state states[] = {
		{
			.connection = 7,
			.queue = SPAN_LITERAL("jo\0bs"),
			.identity = SPAN_LITERAL("w\"1"),
			.node = SPAN_LITERAL("n"),
			.namespaces = {2, SPAN_LITERAL("\0\0\0\1a\0\0\0\4b\xC3\xA9\n")},
			.activities = {2, SPAN_LITERAL("\0\0\0\0\0\0\0\2x\0")},
			.outstanding = 1,
			.unanswered = 2,
			.leaving = true,
			.namespaces_left_out = 3,
			.activities_left_out = 4,
		},
		{.connection = 8, .queue = SPAN_LITERAL(""), .identity = SPAN_LITERAL("")},
	};

	expect("workers", "", "{\"workers\":[]}");
	fake.workers = states;
	fake.worker_count = ARRAY_LENGTH(states);
	expect("workers", "",
	       "{\"workers\":[{\"connection\":7,\"queue\":\"jo\\u0000bs\",\"namespaces\":[\"a\","
	       "\"b\xC3\xA9\\n\"],\"activities\":[\"\",\"x\\u0000\"],\"node\":\"n\","
	       "\"identity\":\"w\\\"1\",\"outstanding\":1,\"unanswered\":2,\"leaving\":true,"
	       "\"namespaces_left_out\":3,\"activities_left_out\":4},"
	       "{\"connection\":8,\"queue\":\"\",\"namespaces\":[],\"activities\":[],"
	       "\"node\":null,\"identity\":\"\",\"outstanding\":0,\"unanswered\":0,"
	       "\"leaving\":false,\"namespaces_left_out\":0,\"activities_left_out\":0}]}");
}
END_TEST

static const char no_channel[] = "{\"error\":\"invalid: 'channel' must be the name of a channel\"}";
static const char not_configured[] = "{\"error\":\"not-found: channel 'x' is not configured\"}";
static const char not_durable[] = "{\"error\":\"invalid: channel 'plain' is not durable\"}";
static const char store_down[] =
	"{\"error\":\"store-down: writing to state_dir has failed; restart the server\"}";

/* Requests about one durable channel refuse others alike. */
static void expect_channel_refused(const char *name)
{
	expect(name, "{\"channel\":7,\"consumer\":\"w\"}", no_channel);
	expect(name, "{\"channel\":null,\"consumer\":\"w\"}", no_channel);
	expect(name, "{\"channel\":\"x\",\"consumer\":\"w\"}", not_configured);
	expect(name, "{\"channel\":\"\\n\",\"consumer\":\"w\"}",
	       "{\"error\":\"not-found: channel '\\\\x0a' is not configured\"}");
	expect(name, "{\"channel\":\"plain\",\"consumer\":\"w\"}", not_durable);
}

START_TEST(consumers)
{
	const struct broker_consumer_state states[] = {
		{.channel = SPAN_LITERAL("durable"),
		 .name = "w",
		 .subscriptions = 1,
		 .lag = 2,
		 .outstanding = 3,
		 .deferred = 4},
		{.channel = SPAN_LITERAL("other"), .name = "v", .idle_since_ms = 1764000000999},
	};

	expect("consumers", "", "{\"consumers\":[]}");
	fake.consumers = states;
	fake.consumer_count = ARRAY_LENGTH(states);
	expect("consumers", "{}",
	       "{\"consumers\":[{\"channel\":\"durable\",\"consumer\":\"w\",\"subscriptions\":1,"
	       "\"lag\":2,\"outstanding\":3,\"deferred\":4,\"idle_since_ms\":null},"
	       "{\"channel\":\"other\",\"consumer\":\"v\",\"subscriptions\":0,\"lag\":0,"
	       "\"outstanding\":0,\"deferred\":0,\"idle_since_ms\":1764000000999}]}");
	ck_assert(!fake.asked_channel);
	fake.consumer_count = 0;
	expect("consumers", "{\"channel\":\"durable\"}", "{\"consumers\":[]}");
	ck_assert(fake.asked_channel);
	expect_channel_refused("consumers");
}
END_TEST

START_TEST(consumer_rm)
{
	fake.has_store = true;
	expect("consumer-rm", "{\"channel\":\"durable\",\"consumer\":\"w\"}", "{\"ok\":true}");
	ck_assert_str_eq(fake.removed, "w");

	fake.removal = BROKER_REMOVE_NONE;
	expect("consumer-rm", "{\"channel\":\"durable\",\"consumer\":\"v\"}",
	       "{\"error\":\"not-found: the channel has no consumer 'v'\"}");
	fake.removal = BROKER_REMOVE_FAILED;
	expect("consumer-rm", "{\"channel\":\"durable\",\"consumer\":\"w\"}",
	       "{\"error\":\"store-full: there is no room in state_dir\"}");
	fake.store_is_down = true;
	expect("consumer-rm", "{\"channel\":\"durable\",\"consumer\":\"w\"}", store_down);

	fake.removed[0] = '\0';
	expect("consumer-rm", "{\"consumer\":\"w\"}", no_channel);
	expect_channel_refused("consumer-rm");
	expect("consumer-rm", "{\"channel\":\"durable\"}",
	       "{\"error\":\"invalid: 'consumer' must be the name of a consumer\"}");
	expect("consumer-rm", "{\"channel\":\"durable\",\"consumer\":1}",
	       "{\"error\":\"invalid: 'consumer' must be the name of a consumer\"}");
	ck_assert_str_eq(fake.removed, "");
}
END_TEST

START_TEST(dead)
{
	static char origin[] = "jobs/7", consumer[] = "w", text[] = "no \xC3\xA9";
	const struct broker_dead letters[] = {
		{1, origin, consumer, text, sizeof(text) - 1, true, 3},
		{2, origin, consumer, NULL, 0, false, 5},
	};

	fake.has_store = true;
	expect("dead", "{\"channel\":\"durable\"}", "{\"dead\":[]}");
	ck_assert_uint_eq(fake.dead_from, 1);
	ck_assert_uint_eq(fake.dead_limit, 100);
	fake.dead = letters;
	fake.dead_count = ARRAY_LENGTH(letters);
	expect("dead", "{\"channel\":\"durable\",\"from\":7,\"count\":2}",
	       "{\"dead\":[{\"sequence\":1,\"origin\":\"jobs/7\",\"consumer\":\"w\","
	       "\"reason\":\"rejected\",\"attempts\":3,\"text\":\"no \xC3\xA9\"},"
	       "{\"sequence\":2,\"origin\":\"jobs/7\",\"consumer\":\"w\","
	       "\"reason\":\"attempts\",\"attempts\":5,\"text\":\"\"}]}");
	ck_assert_uint_eq(fake.dead_from, 7);
	ck_assert_uint_eq(fake.dead_limit, 2);
	expect("dead", "", no_channel);
	expect_channel_refused("dead");
	expect("dead", "{\"channel\":\"durable\",\"from\":-1}",
	       "{\"error\":\"invalid: 'from' must be the sequence of a message\"}");
	expect("dead", "{\"channel\":\"durable\",\"from\":\"1\"}",
	       "{\"error\":\"invalid: 'from' must be the sequence of a message\"}");
	expect("dead", "{\"channel\":\"durable\",\"count\":0}",
	       "{\"error\":\"invalid: 'count' must be a number from 1 on\"}");
	fake.dead_fails = true;
	ck_assert_ptr_null(ask_span("dead", span_of("{\"channel\":\"durable\"}")));
	fake.store_is_down = true;
	expect("dead", "{\"channel\":\"durable\"}", store_down);
}
END_TEST

START_TEST(close_one)
{
	static const char invalid[] =
		"{\"error\":\"invalid: 'connection' must be the id of a connection\"}";

	fake.closable = 7;
	expect("close", "{\"connection\":7}", "{\"ok\":true}");
	ck_assert_uint_eq(fake.closed, 7);
	expect("close", "{\"connection\":7,\"why\":\"later\"}", "{\"ok\":true}");
	expect("close", "{\"connection\":8}",
	       "{\"error\":\"not-found: no connection has the id 8\"}");
	ck_assert_uint_eq(fake.closed, 8);

	fake.closed = 0;
	expect("close", "", invalid);
	expect("close", "{\"connection\":\"7\"}", invalid);
	expect("close", "{\"connection\":7.0}", invalid);
	expect("close", "{\"connection\":-7}", invalid);
	expect("close", "{\"connection\":null}", invalid);
	expect("close", "{\"connection\":[7]}", invalid);
	ck_assert_uint_eq(fake.closed, 0);
}
END_TEST

START_TEST(drain)
{
	sigset_t term, pending;

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	ck_assert_int_eq(sigprocmask(SIG_BLOCK, &term, NULL), 0);
	expect("ping", "", "{\"ok\":true}");
	sigpending(&pending);
	ck_assert(!sigismember(&pending, SIGTERM));
	expect("drain", "", "{\"ok\":true}");
	sigpending(&pending);
	ck_assert(sigismember(&pending, SIGTERM));
	int taken;
	ck_assert_int_eq(sigwait(&term, &taken), 0);
	ck_assert_int_eq(taken, SIGTERM);
}
END_TEST

/* A refusal whose text starts with "invalid: "; the command is not carried out. */
static void expect_invalid(struct span request)
{
	static const char start[] = "{\"error\":\"invalid: ";
	struct buf *buf = ask_span("close", request);

	ck_assert_ptr_nonnull(buf);
	ck_assert_msg(buf->length > sizeof(start) &&
			      memcmp(buf->data, start, sizeof(start) - 1) == 0,
		      "got %.*s", (int)buf->length, (const char *)buf->data);
	buf_unref(&buf);
	ck_assert_uint_eq(fake.closed, 0);
}

START_TEST(bad_requests)
{
	fake.closable = 7;
	expect_invalid(span_of(" "));
	expect_invalid(span_of("{"));
	expect_invalid(span_of("[]"));
	expect_invalid(span_of("7"));
	expect_invalid(span_of("null"));
	expect_invalid(span_of("{\"connection\":7} x"));
	expect_invalid(span_of("{\"connection\":7,\"connection\":7}"));
	expect_invalid(span_of("{\"connection\":7,\"x\":\"\xFF\"}"));
	expect_invalid(span_of("{\"connection\":7,\"x\":\"\\u0000\"}"));
	expect_invalid(SPAN_LITERAL("{\"connection\":7}\0"));
	expect_invalid(span_of("{\"connection\":99999999999999999999}"));
}
END_TEST

/* What would recurse deep in the parser never reaches it: session threads have small stacks. */
START_TEST(deep_requests)
{
	static char deep[60000];

	fake.closable = 7;
	memset(deep, '[', sizeof(deep));
	expect_invalid((struct span){(const uint8_t *)deep, sizeof(deep)});
	expect_invalid(span_of("{\"connection\":7,\"x\":[[[[[[[[]]]]]]]]}"));
	expect("close", "{\"connection\":7,\"x\":[[[[[[[]]]]]]]}", "{\"ok\":true}");
}
END_TEST

START_TEST(long_requests)
{
	static char large[64 * 1024 + 1];

	fake.closable = 7;
	memset(large, ' ', sizeof(large));
	memcpy(large, "{\"connection\":7}", 16);
	expect_invalid((struct span){(const uint8_t *)large, sizeof(large)});
	large[sizeof(large) - 1] = '\0';
	expect("close", large, "{\"ok\":true}");
}
END_TEST

START_TEST(no_memory_no_reply)
{
	fake.no_memory = true;
	ck_assert_ptr_null(ask_span("stats", span_of("")));
	ck_assert_ptr_null(ask_span("connections", span_of("")));
	ck_assert_ptr_null(ask_span("channels", span_of("")));
	ck_assert_ptr_null(ask_span("workers", span_of("")));
	ck_assert_ptr_null(ask_span("consumers", span_of("")));
	expect("ping", "", "{\"ok\":true}");

	size_t length = 1;
	ck_assert_ptr_null(metrics_render(admin, &length));
	ck_assert_uint_eq(length, 0);
}
END_TEST

/* --- metrics -------------------------------------------------------------------------------- */

static char *render(void)
{
	size_t length;
	char *page = metrics_render(admin, &length);

	ck_assert_ptr_nonnull(page);
	ck_assert_uint_eq(strlen(page), length);
	ck_assert_int_eq(page[length - 1], '\n');
	return page;
}

static size_t occurrences(const char *page, const char *text)
{
	size_t count = 0;

	for (const char *at = page; (at = strstr(at, text)) != NULL; at++)
		count++;
	return count;
}

/* LINE stands on the page, as a whole line, once. */
static void expect_line(const char *page, const char *line)
{
	char whole[512];

	snprintf(whole, sizeof(whole), "\n%s\n", line);
	ck_assert_msg(occurrences(page, whole) == 1, "not there once: %s", line);
}

/* A text that was rendered and freed by this. */
static void expect_metric(const char *line)
{
	char *page = render();

	expect_line(page, line);
	free(page);
}

START_TEST(values)
{
	fake.net = (struct net_totals){
		.current = 3,
		.control = 1,
		.max = 1024,
		.outbox_bytes = UINT64_MAX,
		.outbox_frames = 8,
		.threads = 5,
		.lingering = 2,
	};
	fake.broker = (struct broker_totals){
		.pending_replies = 11,
		.pending_pushes = 12,
		.waiting_requests = 13,
		.workers = 14,
		.conversations = 15,
		.subscriptions = 16,
		.store_bytes = 21,
		.commit_bytes = 22,
		.commit_waiters = 23,
	};
	metric_add(METRIC_PUBLISHES, 17);
	metric_add(METRIC_REFUSED_TOKEN, 18);
	metric_add(METRIC_CLOSED_HALF_CLOSE, 19);
	metric_add(METRIC_RELOADS_REFUSED, 20);

	char *page = render();
	expect_line(page, "liminal_connections_active 3");
	expect_line(page, "liminal_control_connections_active 1");
	expect_line(page, "liminal_connections_limit 1024");
	expect_line(page, "liminal_outbox_bytes 18446744073709551615");
	expect_line(page, "liminal_outbox_frames 8");
	expect_line(page, "liminal_session_threads 5");
	expect_line(page, "liminal_lingering_connections 2");
	expect_line(page, "liminal_pending_replies 11");
	expect_line(page, "liminal_pending_pushes 12");
	expect_line(page, "liminal_waiting_requests 13");
	expect_line(page, "liminal_workers_active 14");
	expect_line(page, "liminal_conversations_active 15");
	expect_line(page, "liminal_subscriptions_active 16");
	expect_line(page, "liminal_store_bytes 21");
	expect_line(page, "liminal_commit_queue_bytes 22");
	expect_line(page, "liminal_commit_waiters 23");
	expect_line(page, "liminal_publishes_total 17");
	expect_line(page, "liminal_deliveries_total 0");
	expect_line(page, "liminal_admission_refusals_total{reason=\"token\"} 18");
	expect_line(page, "liminal_admission_refusals_total{reason=\"limit\"} 0");
	expect_line(page, "liminal_connections_closed_total{reason=\"half_close\"} 19");
	expect_line(page, "liminal_reloads_total{result=\"refused\"} 20");
	expect_line(page, "liminal_build_info{version=\"" PACKAGE_VERSION "\"} 1");
	expect_line(page, "process_start_time_seconds 1764000000");
	free(page);
}
END_TEST

START_TEST(channel_values)
{
	const struct broker_channel_state states[] = {
		{SPAN_LITERAL("events"), 1, 2, 3, 4, 5, 6, 7, false, 8, 9, 10},
		{SPAN_LITERAL("a\"b\\c\nd"), 10, 20, 30, 40, 50, 60, 70, true, 80, 90, 100},
	};

	fake.channels = states;
	fake.channel_count = ARRAY_LENGTH(states);
	char *page = render();
	expect_line(page, "liminal_channel_subscriptions{channel=\"events\"} 1");
	expect_line(page, "liminal_channel_publishes_total{channel=\"events\"} 2");
	expect_line(page, "liminal_channel_deliveries_total{channel=\"events\"} 3");
	expect_line(page, "liminal_subscription_sheds_total{channel=\"events\"} 4");
	expect_line(page, "liminal_drops_total{channel=\"events\"} 5");
	expect_line(page, "liminal_dedup_keys{channel=\"events\"} 6");
	expect_line(page, "liminal_dedup_hits_total{channel=\"events\"} 7");
	expect_line(page, "liminal_drops_total{channel=\"a\\\"b\\\\c\\nd\"} 50");
	expect_line(page, "liminal_channel_first_sequence{channel=\"a\\\"b\\\\c\\nd\"} 80");
	expect_line(page, "liminal_channel_last_sequence{channel=\"a\\\"b\\\\c\\nd\"} 90");
	expect_line(page, "liminal_stale_answers_total{channel=\"a\\\"b\\\\c\\nd\"} 100");
	/* A plain channel has none of these. */
	ck_assert_ptr_null(strstr(page, "liminal_channel_first_sequence{channel=\"events\"}"));
	free(page);
}
END_TEST

START_TEST(consumer_values)
{
	const struct broker_consumer_state states[] = {
		{.channel = SPAN_LITERAL("c"),
		 .name = "w",
		 .lag = 1,
		 .outstanding = 2,
		 .deferred = 3,
		 .redeliveries = 4,
		 .discarded = 5,
		 .dead_rejected = 6,
		 .dead_attempts = 7},
		{.channel = SPAN_LITERAL("d"), .name = "w", .lag = UINT64_MAX},
	};

	fake.consumers = states;
	fake.consumer_count = ARRAY_LENGTH(states);
	char *page = render();
	expect_line(page, "liminal_consumer_lag{channel=\"c\",consumer=\"w\"} 1");
	expect_line(page, "liminal_consumer_lag{channel=\"d\",consumer=\"w\"} "
			  "18446744073709551615");
	expect_line(page, "liminal_consumer_outstanding{channel=\"c\",consumer=\"w\"} 2");
	expect_line(page, "liminal_consumer_deferred{channel=\"c\",consumer=\"w\"} 3");
	expect_line(page, "liminal_redeliveries_total{channel=\"c\",consumer=\"w\"} 4");
	expect_line(page, "liminal_discarded_total{channel=\"c\",consumer=\"w\"} 5");
	expect_line(page, "liminal_dead_letters_total{channel=\"c\",consumer=\"w\","
			  "reason=\"rejected\"} 6");
	expect_line(page, "liminal_dead_letters_total{channel=\"c\",consumer=\"w\","
			  "reason=\"attempts\"} 7");
	expect_line(page, "# TYPE liminal_consumer_lag gauge");
	expect_line(page, "# TYPE liminal_dead_letters_total counter");
	free(page);
}
END_TEST

START_TEST(histograms)
{
	expect_metric("liminal_publish_ack_seconds_bucket{le=\"+Inf\"} 0");
	expect_metric("liminal_publish_ack_seconds_sum 0");

	metric_observe(HISTOGRAM_PUBLISH_SECONDS, 10000, 2);
	metric_observe(HISTOGRAM_PUBLISH_SECONDS, 1500 * NS_PER_MS, 1);
	metric_observe(HISTOGRAM_PUBLISH_SECONDS, 11 * NS_PER_S, 1);

	char *page = render();
	expect_line(page, "# TYPE liminal_publish_ack_seconds histogram");
	expect_line(page, "liminal_publish_ack_seconds_bucket{le=\"0.00001\"} 2");
	expect_line(page, "liminal_publish_ack_seconds_bucket{le=\"0.0005\"} 2");
	expect_line(page, "liminal_publish_ack_seconds_bucket{le=\"1\"} 2");
	expect_line(page, "liminal_publish_ack_seconds_bucket{le=\"2\"} 3");
	expect_line(page, "liminal_publish_ack_seconds_bucket{le=\"10\"} 3");
	expect_line(page, "liminal_publish_ack_seconds_bucket{le=\"+Inf\"} 4");
	expect_line(page, "liminal_publish_ack_seconds_sum 12.50002");
	expect_line(page, "liminal_publish_ack_seconds_count 4");
	expect_line(page, "liminal_request_reply_seconds_count 0");
	free(page);

	/* A number of messages is no time. */
	metric_observe(HISTOGRAM_COMMIT_MESSAGES, 1, 1);
	metric_observe(HISTOGRAM_COMMIT_MESSAGES, 4096, 1);
	page = render();
	expect_line(page, "liminal_store_commit_messages_bucket{le=\"1\"} 1");
	expect_line(page, "liminal_store_commit_messages_bucket{le=\"2000\"} 1");
	expect_line(page, "liminal_store_commit_messages_bucket{le=\"5000\"} 2");
	expect_line(page, "liminal_store_commit_messages_bucket{le=\"1000000\"} 2");
	expect_line(page, "liminal_store_commit_messages_sum 4097");
	expect_line(page, "liminal_store_commit_messages_count 2");
	free(page);
}
END_TEST

/* Each family has one HELP, one TYPE after it, and its samples behind them; no line is doubled. */
START_TEST(format)
{
	const struct broker_channel_state states[] = {
		{.name = SPAN_LITERAL("a")},
		{.name = SPAN_LITERAL("b"), .durable = true},
	};
	const struct broker_consumer_state consumer_states[] = {
		{.channel = SPAN_LITERAL("b"), .name = "v"},
		{.channel = SPAN_LITERAL("b"), .name = "w"},
	};
	char family[128] = "", prefix[192];

	fake.channels = states;
	fake.channel_count = ARRAY_LENGTH(states);
	fake.consumers = consumer_states;
	fake.consumer_count = ARRAY_LENGTH(consumer_states);
	char *page = render(), *copy = strdup(page), *rest = NULL;
	ck_assert_ptr_nonnull(copy);
	for (char *line = strtok_r(copy, "\n", &rest); line != NULL;
	     line = strtok_r(NULL, "\n", &rest)) {
		if (strncmp(line, "# HELP ", 7) == 0) {
			size_t length = strcspn(line + 7, " ");

			ck_assert_uint_lt(length, sizeof(family));
			memcpy(family, line + 7, length);
			family[length] = '\0';
			ck_assert_msg(line[7 + length] == ' ' && line[8 + length] != '\0',
				      "no help: %s", line);
			snprintf(prefix, sizeof(prefix), "# HELP %s ", family);
			ck_assert_msg(occurrences(page, prefix) == 1, "twice: %s", line);
			line = strtok_r(NULL, "\n", &rest);
			snprintf(prefix, sizeof(prefix), "# TYPE %s ", family);
			ck_assert_msg(line != NULL && strncmp(line, prefix, strlen(prefix)) == 0,
				      "no type: %s", family);
			continue;
		}
		ck_assert_msg(strncmp(line, family, strlen(family)) == 0, "strayed: %s", line);
		snprintf(prefix, sizeof(prefix), "\n%.*s ", (int)strcspn(line, " "), line);
		ck_assert_msg(occurrences(page, prefix) == 1, "twice: %s", line);
	}
	for (int i = 0; i < METRIC_COUNT; i++) {
		snprintf(prefix, sizeof(prefix), "\n# TYPE %s counter\n", metric_rows[i].family);
		ck_assert_msg(occurrences(page, prefix) == 1, "missing: %s", metric_rows[i].family);
	}
	free(copy);
	free(page);
}
END_TEST

static Suite *admin_suite(void)
{
	Suite *suite = suite_create("admin");
	TCase *control = tcase_create("control");
	TCase *metrics = tcase_create("metrics");

	tcase_add_checked_fixture(control, setup, teardown);
	tcase_add_test(control, names);
	tcase_add_test(control, ping);
	tcase_add_test(control, stats);
	tcase_add_test(control, connections);
	tcase_add_test(control, channels);
	tcase_add_test(control, workers);
	tcase_add_test(control, consumers);
	tcase_add_test(control, consumer_rm);
	tcase_add_test(control, dead);
	tcase_add_test(control, close_one);
	tcase_add_test(control, drain);
	tcase_add_test(control, bad_requests);
	tcase_add_test(control, deep_requests);
	tcase_add_test(control, long_requests);
	tcase_add_test(control, no_memory_no_reply);
	suite_add_tcase(suite, control);

	tcase_add_checked_fixture(metrics, setup, teardown);
	tcase_add_test(metrics, values);
	tcase_add_test(metrics, channel_values);
	tcase_add_test(metrics, consumer_values);
	tcase_add_test(metrics, histograms);
	tcase_add_test(metrics, format);
	suite_add_tcase(suite, metrics);
	return suite;
}

int main(void)
{
	SRunner *runner = srunner_create(admin_suite());
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
