/*
 * Memory that a client's request cannot have is that client's error: one scene with everything that
 * the broker does is played again and again, and each time another of its allocations fails, alone
 * or with all that follow until the scene's end. Nobody may be left without an answer, or with two,
 * and nothing may be left behind.
 */
#define FAILING_MEMORY_IS_MINE
#include "failing_memory.h"

#include "broker_helpers.h"

#include <stdio.h>

/* --- what was answered ------------------------------------------------------------------- */

/* Every publish, subscription and request has a stream of its own. */
#define STREAMS 200

static struct fake_client a, b, v, w;

/* More subscribers than a flush set holds without memory of its own. */
#define MORE 20

static struct fake_client more[MORE];
static unsigned due[STREAMS], answers[STREAMS];
static uint32_t next_stream;

static uint32_t stream_with_answer(void)
{
	next_stream++;
	ck_assert_uint_lt(next_stream, STREAMS);
	due[next_stream]++;
	return next_stream;
}

static void count_answers(struct fake_client *client)
{
	const char *said = fake_said(client);

	while (*said != '\0') {
		unsigned stream;

		if (sscanf(said, "ack %u", &stream) == 1 ||
		    sscanf(said, "reply %u", &stream) == 1 ||
		    sscanf(said, "error %u", &stream) == 1 ||
		    sscanf(said, "refused %u", &stream) == 1 ||
		    sscanf(said, "subscribed %u", &stream) == 1) {
			ck_assert_uint_lt(stream, STREAMS);
			answers[stream]++;
		}
		said += strcspn(said, ",");
		said += strspn(said, ", ");
	}
}

/* --- the scene --------------------------------------------------------------------------- */

static struct buf *control_answer(void *context, struct span name, struct span request)
{
	(void)context;
	(void)name;
	return failing_now() ? NULL : buf_new(request.length);
}

static bool control_known(struct span name)
{
	return span_equal(name, SPAN_LITERAL("x"));
}

static void subscribe(struct fake_client *client, const char *channel)
{
	uint32_t stream = stream_with_answer();

	if (fake_subscribe(client, stream, channel, 10) == BROKER_SUBSCRIBE_NO_MEMORY)
		answers[stream]++; /* the session's */
}

/* An error about it is as good as an answer to nothing: it has a stream of its own, too. */
static void open_conversation(struct fake_client *client, uint64_t id, const char *subject)
{
	next_stream++;
	fake_open(client, next_stream, id, subject);
}

static void request(struct fake_client *client, uint64_t id)
{
	fake_request(client, stream_with_answer(), id, "request");
}

static void channels(void)
{
	static const char *const keys[] = {"k", "l", "m", "n", "k", "o"};

	subscribe(&b, "news");
	subscribe(&a, "news");
	subscribe(&a, "ticks");
	for (size_t i = 0; i < ARRAY_LENGTH(keys); i++)
		fake_publish_key(&a, stream_with_answer(), "news", "x", keys[i]);
	fake_publish(&b, stream_with_answer(), "ticks", "x");
	for (int i = 0; i < MORE; i++)
		(void)fake_subscribe(&more[i], STREAMS - 1, "ticks", 10);
	fake_publish(&b, stream_with_answer(), "ticks", "x");
}

/* Two workers, of which one leaves and one is lost, with requests that are pushed, wait and are
 * held; then nobody, for each kind of no_worker. */
static void conversations(void)
{
	open_conversation(&a, 1, "q");
	open_conversation(&a, 2, "q");
	open_conversation(&b, 3, "n/q/a");
	open_conversation(&a, 4, "$control/x");
	request(&a, 4);
	(void)fake_register(
		&v, (struct fake_worker){
			    .queue = "q", .namespaces = "n m", .activities = "a", .identity = "v"});
	for (int i = 0; i < 4; i++) {
		request(&a, 1);
		request(&b, 3);
		fake_one_way(&a, ++next_stream, 2, "one-way");
	}
	(void)fake_register(&w, (struct fake_worker){.queue = "q", .identity = "w"});
	request(&a, 2);
	for (uint64_t i = 1; i < 8; i++) {
		fake_reply(&v, i, "answer");
		fake_refuse(&w, i, REFUSAL_BUSY, "words");
	}
	for (uint64_t i = 12; i > 7; i--)
		fake_reply(&v, i, "held");
	request(&a, 1);
	request(&a, 2);
	(void)fake_register(&v, (struct fake_worker){.queue = "q", .leaving = true});
	fake_end_receiving(&w);
	for (int i = 0; i < 3; i++) {
		settings.no_worker = (enum broker_no_worker)i;
		(void)broker_configure(broker, &settings);
		request(&a, 1);
		request(&b, 3);
	}
	(void)fake_register(&v, (struct fake_worker){.queue = "q"});
}

static void look(void)
{
	struct broker_channel_state *channel_states;
	struct broker_worker_state *worker_states;
	size_t count;

	if (broker_channel_states(broker, &channel_states, &count))
		failing_free(channel_states);
	if (broker_worker_states(broker, &worker_states, &count))
		broker_worker_states_free(&worker_states, count);
}

static bool connect_all(void)
{
	struct fake_client *all[4 + MORE] = {&a, &b, &v, &w};

	for (int i = 0; i < MORE; i++)
		all[4 + i] = &more[i];
	for (uint64_t i = 0; i < ARRAY_LENGTH(all); i++) {
		if (fake_try_connect(all[i], broker, i + 1, i == 0, &limits))
			continue;
		while (i > 0)
			fake_disconnect(all[--i]);
		return false;
	}
	return true;
}

static void end_all(void)
{
	pass_ms(2 * REPLY_TIMEOUT_MAX);
	count_answers(&a);
	count_answers(&b);
	for (uint32_t stream = 0; stream < STREAMS; stream++)
		if (due[stream] > 0)
			ck_assert_msg(answers[stream] == due[stream], "stream %u has %u answers",
				      stream, answers[stream]);
	fake_disconnect(&a);
	fake_disconnect(&b);
	fake_disconnect(&v);
	fake_end_conversations(&w);
	fake_gone(&w);
	for (int i = 0; i < MORE; i++)
		fake_disconnect(&more[i]);
}

/* False when it ended before an allocation had failed. */
static bool play(long which, bool all_that_follow)
{
	const char *error;

	memset(due, 0, sizeof(due));
	memset(answers, 0, sizeof(answers));
	next_stream = 0;
	failing_begin(which, all_that_follow);
	settings.no_worker = BROKER_NO_WORKER_ECHO;
	settings.worker_settle_ms = 0;
	broker = broker_new(&settings, BOOT_MS, NULL, &error);
	ck_assert((broker == NULL) == (error != NULL));
	if (broker != NULL) {
		broker_set_control(broker,
				   &(struct broker_control){control_known, control_answer, NULL});
		if (connect_all()) {
			channels();
			conversations();
			look();
			failing_end();
			end_all();
		}
		broker_free(&broker);
	}
	ck_assert_int_eq(failing_allocated(), 0);
	return failing_failed();
}

/* _i: alone, or with all that follow. */
START_TEST(each_allocation_may_fail)
{
	long which = 1;

	limits = fake_limits;
	limits.pushes = 2;
	prepare();
	while (play(which, _i == 1))
		which++;
	/* It was worth it. */
	ck_assert_int_gt(which, 100);
}
END_TEST

int main(void)
{
	TCase *tests = suite_begin("broker memory");

	tcase_add_loop_test(tests, each_allocation_may_fail, 0, 2);
	return suite_run();
}
