/*
 * The broker under many threads, with real time: one order of messages for all, one answer for each
 * request, whoever comes first. What a checker of threads or of locks finds, it finds here.
 */
#include "base/clock.h"
#include "base/lock.h"
#include "base/thread.h"
#include "broker/broker.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define PUBLISHERS 3
#define PUBLISHES 1500
#define MESSAGES ((uint64_t)PUBLISHERS * PUBLISHES)

#define REQUESTERS 3
#define REQUESTS 400
#define PENDING 8
#define WORKERS 3

/* --- connections ------------------------------------------------------------------------- */

struct peer {
	struct sink sink;
	struct client *client;
	struct mutex lock; /* of rank OUTBOX: all that follows */
	struct cond changed;
	uint64_t messages[MESSAGES];
	uint64_t message_count, sequence;
	unsigned answers[REQUESTS]; /* to the request on the stream 1 + index */
	unsigned pending;
	uint64_t pushes[REQUESTS * REQUESTERS];
	size_t push_count, push_next;
	bool told; /* the worker is to end */
	bool quiet;
};

static struct peer publishers[PUBLISHERS], subscriber, requesters[REQUESTERS], workers[WORKERS];
static struct broker *broker;
static atomic_uint_fast64_t next_id = 1;
static atomic_bool done;

static struct peer *peer_of(struct sink *sink)
{
	return CONTAINER_OF(sink, struct peer, sink);
}

static void peer_deliver(struct sink *sink, struct delivery *delivery, struct message *run,
			 size_t count, struct flush_set *set)
{
	struct peer *peer = peer_of(sink);

	mutex_lock(&peer->lock);
	for (size_t i = 0; i < count; i++) {
		ASSERT(delivery->sequence == ++peer->sequence);
		ASSERT(peer->message_count < MESSAGES);
		peer->messages[peer->message_count++] = run[i].id;
		run[i].delivered = true;
		delivery->sequence++;
		delivery->accepted++;
	}
	flush_set_add(set, sink);
	cond_broadcast(&peer->changed);
	mutex_unlock(&peer->lock);
}

static void peer_subscribed(struct sink *sink, uint32_t stream, uint64_t subscription,
			    const uint8_t *schema_id, struct flush_set *set)
{
	struct peer *peer = peer_of(sink);

	(void)stream;
	(void)schema_id;
	ASSERT(subscription > 0);
	mutex_lock(&peer->lock);
	peer->sequence = 0; /* one subscription at a time */
	mutex_unlock(&peer->lock);
	flush_set_add(set, sink);
}

static void peer_shed(struct sink *sink, uint32_t stream, const char *text, struct flush_set *set)
{
	(void)sink;
	(void)stream;
	(void)text;
	(void)set;
	ASSERT(!"nothing is full");
}

static void peer_registered(struct sink *sink, struct flush_set *set)
{
	flush_set_add(set, sink);
}

static void peer_answered(struct sink *sink, uint32_t stream, struct flush_set *set)
{
	struct peer *peer = peer_of(sink);

	mutex_lock(&peer->lock);
	ASSERT(stream >= 1 && stream <= REQUESTS);
	ASSERT(++peer->answers[stream - 1] == 1);
	peer->pending--;
	flush_set_add(set, sink);
	cond_broadcast(&peer->changed);
	mutex_unlock(&peer->lock);
}

static void peer_conversation_error(struct sink *sink, uint32_t stream, uint64_t conversation,
				    enum refusal refusal, struct span text, struct flush_set *set)
{
	(void)conversation;
	(void)refusal;
	(void)text;
	peer_answered(sink, stream, set);
}

static void peer_reply(struct sink *sink, uint32_t stream, uint64_t conversation,
		       struct span payload, struct buf *buf, struct flush_set *set)
{
	(void)conversation;
	(void)buf;
	ASSERT(span_equal(payload, SPAN_LITERAL("reply")));
	peer_answered(sink, stream, set);
}

static enum sink_result peer_push(struct sink *sink, uint64_t correlation, struct span payload,
				  struct buf *buf, struct flush_set *set)
{
	struct peer *peer = peer_of(sink);

	(void)buf;
	ASSERT(span_equal(payload, SPAN_LITERAL("request")));
	mutex_lock(&peer->lock);
	peer->pushes[peer->push_count++] = correlation;
	flush_set_add(set, sink);
	cond_broadcast(&peer->changed);
	mutex_unlock(&peer->lock);
	return SINK_OK;
}

static void peer_load(struct sink *sink, bool offer, struct sink_load *load)
{
	(void)sink;
	(void)offer;
	*load = (struct sink_load){.max_frames = 1000000, .max_bytes = 1000000000, .empty = true};
}

static void peer_nothing(struct sink *sink)
{
	(void)sink;
}

static void peer_flush(struct sink *sink, struct flush_set *set)
{
	(void)sink;
	(void)set;
	lock_assert_none_held();
}

static const struct sink_ops peer_ops = {
	.deliver = peer_deliver,
	.subscribed = peer_subscribed,
	.shed = peer_shed,
	.registered = peer_registered,
	.conversation_error = peer_conversation_error,
	.reply = peer_reply,
	.push = peer_push,
	.load = peer_load,
	.hold = peer_nothing,
	.release = peer_nothing,
	.flush = peer_flush,
	.flush_later = peer_nothing,
};

static void peer_init(struct peer *peer)
{
	memset(peer, 0, sizeof(*peer));
	peer->sink.ops = &peer_ops;
	atomic_init(&peer->sink.dead, false);
	mutex_init(&peer->lock, LOCK_OUTBOX);
	cond_init(&peer->changed);
}

static void peer_connect(struct peer *peer)
{
	static const struct broker_client_limits limits = {
		.subscriptions = 10,
		.conversations = 10,
		.replies_per_conversation = PENDING,
		.replies = PENDING,
		.pushes = 3,
		.pending_bytes = 1000,
		.frame_bytes = 1000,
	};

	peer->client = broker_client_new(broker, &peer->sink, atomic_fetch_add(&next_id, 1), false,
					 &limits);
	ASSERT(peer->client != NULL);
}

static void peer_disconnect(struct peer *peer)
{
	struct flush_set set;

	flush_set_init(&set);
	broker_client_end_subscriptions(peer->client);
	broker_client_end_worker(peer->client, &set);
	flush_set_run(&set);
	broker_client_end_conversations(peer->client, &set);
	flush_set_run(&set);
	broker_client_free(&peer->client);
}

static void broker_start(int64_t reply_timeout_ms)
{
	struct broker_channel_settings channel = {
		.name = "news", .dedup_window_ms = 1000, .dedup_max_keys = 10};
	struct broker_settings settings = {
		.reply_timeout_ms = reply_timeout_ms,
		.reply_timeout_max_ms = 2 * reply_timeout_ms,
		.no_worker = BROKER_NO_WORKER_WAIT,
		.worker_settle_ms = 1,
		.channels = &channel,
		.channel_count = 1,
	};
	const char *error;

	broker = broker_new(&settings, 1, NULL, &error);
	ASSERT(broker != NULL);
}

/* --- one order --------------------------------------------------------------------------- */

static struct channel *news(void)
{
	return broker_channel(broker, SPAN_LITERAL("news"));
}

static void *publish(void *argument)
{
	struct peer *peer = argument;
	uint64_t last = 0;

	for (int i = 0; i < PUBLISHES; i += 3) {
		struct message run[3];
		struct flush_set set;

		flush_set_init(&set);
		for (int j = 0; j < 3; j++)
			run[j] = (struct message){.envelope = SPAN_LITERAL("message")};
		(void)broker_publish(peer->client, news(), run, 3, &set);
		flush_set_run(&set);
		for (int j = 0; j < 3; j++) {
			ASSERT(run[j].delivered && run[j].id > last);
			last = run[j].id;
		}
	}
	return NULL;
}

static void subscribe(struct peer *peer)
{
	struct flush_set set;

	flush_set_init(&set);
	ASSERT(broker_subscribe(peer->client, news(), 1, 10, &set) == BROKER_SUBSCRIBED);
	flush_set_run(&set);
}

/* Comes and goes, and looks at everything. */
static void *disturb(void *argument)
{
	struct peer *peer = argument;

	while (!atomic_load(&done)) {
		struct broker_channel_state *states;
		struct broker_totals totals;
		size_t count;

		peer_connect(peer);
		subscribe(peer);
		ASSERT(broker_channel_states(broker, &states, &count) && count == 1);
		free(states);
		broker_totals(broker, &totals);
		peer_disconnect(peer);
		peer->message_count = 0;
	}
	return NULL;
}

START_TEST(all_see_one_order)
{
	struct thread threads[PUBLISHERS], disturber;

	broker_start(1000);
	atomic_store(&done, false);
	peer_init(&subscriber);
	peer_connect(&subscriber);
	subscribe(&subscriber);
	peer_init(&workers[0]);
	for (int i = 0; i < PUBLISHERS; i++) {
		peer_init(&publishers[i]);
		peer_connect(&publishers[i]);
		if (i > 0)
			subscribe(&publishers[i]);
	}
	ck_assert_int_eq(thread_start(&disturber, disturb, &workers[0]), 0);
	for (int i = 0; i < PUBLISHERS; i++)
		ck_assert_int_eq(thread_start(&threads[i], publish, &publishers[i]), 0);
	for (int i = 0; i < PUBLISHERS; i++)
		thread_join(&threads[i]);
	atomic_store(&done, true);
	thread_join(&disturber);
	ck_assert_uint_eq(subscriber.message_count, MESSAGES);
	for (uint64_t i = 0; i < MESSAGES; i++)
		ck_assert_uint_eq(subscriber.messages[i], i + 1);
	for (int i = 1; i < PUBLISHERS; i++)
		ck_assert(memcmp(publishers[i].messages, subscriber.messages,
				 sizeof(subscriber.messages)) == 0);
	for (int i = 0; i < PUBLISHERS; i++)
		peer_disconnect(&publishers[i]);
	peer_disconnect(&subscriber);
	broker_free(&broker);
}
END_TEST

/* --- one answer -------------------------------------------------------------------------- */

static void *request(void *argument)
{
	struct peer *peer = argument;
	struct flush_set set;

	flush_set_init(&set);
	for (uint64_t id = 0; id < 4; id++)
		broker_conversation_open(peer->client, 1, id, SPAN_LITERAL("q"), &set);
	for (uint32_t i = 0; i < REQUESTS; i++) {
		mutex_lock(&peer->lock);
		while (peer->pending == PENDING)
			cond_wait(&peer->changed, &peer->lock);
		peer->pending++;
		mutex_unlock(&peer->lock);
		broker_conversation_message(peer->client, i + 1, i % 4, true,
					    SPAN_LITERAL("request"), NULL, clock_mono_ns(), &set);
		flush_set_run(&set);
	}
	mutex_lock(&peer->lock);
	while (peer->pending > 0)
		cond_wait(&peer->changed, &peer->lock);
	mutex_unlock(&peer->lock);
	return NULL;
}

static void register_worker(struct peer *peer, bool leaving)
{
	struct broker_registration registration = {.queue = SPAN_LITERAL("q"), .leaving = leaving};
	struct flush_set set;

	flush_set_init(&set);
	ASSERT(broker_worker_register(peer->client, &registration, &set) == NULL);
	flush_set_run(&set);
}

/* Answers most, and now and then refuses, forgets, leaves, comes back, or drops everything. */
static void work_on(struct peer *peer, uint64_t correlation, unsigned turn)
{
	struct flush_set set;

	flush_set_init(&set);
	switch (turn % 16) {
	case 3:
		break;
	case 5:
		broker_push_reply(peer->client, correlation, BROKER_PUSH_REFUSED, REFUSAL_BUSY,
				  SPAN_LITERAL("words"), NULL, clock_mono_ns(), &set);
		break;
	case 7:
		broker_push_reply(peer->client, correlation, BROKER_PUSH_WORKING, REFUSAL_NONE,
				  SPAN_LITERAL(""), NULL, clock_mono_ns(), &set);
		break;
	case 9:
		register_worker(peer, true);
		register_worker(peer, false);
		break;
	case 11:
		peer_disconnect(peer);
		peer_connect(peer);
		register_worker(peer, false);
		break;
	default:
		broker_push_reply(peer->client, correlation, BROKER_PUSH_REPLY, REFUSAL_NONE,
				  SPAN_LITERAL("reply"), NULL, clock_mono_ns(), &set);
		/* Once is enough. */
		broker_push_reply(peer->client, correlation, BROKER_PUSH_REPLY, REFUSAL_NONE,
				  SPAN_LITERAL("again"), NULL, clock_mono_ns(), &set);
		break;
	}
	flush_set_run(&set);
}

static void *work(void *argument)
{
	struct peer *peer = argument;
	unsigned turn = 0;

	peer_connect(peer);
	register_worker(peer, false);
	mutex_lock(&peer->lock);
	for (;;) {
		uint64_t correlation;

		while (peer->push_next == peer->push_count && !peer->told)
			cond_wait(&peer->changed, &peer->lock);
		if (peer->told)
			break;
		correlation = peer->pushes[peer->push_next++];
		mutex_unlock(&peer->lock);
		work_on(peer, correlation, turn++);
		mutex_lock(&peer->lock);
	}
	mutex_unlock(&peer->lock);
	peer_disconnect(peer);
	return NULL;
}

START_TEST(each_request_has_one_answer)
{
	struct thread threads[REQUESTERS], worker_threads[WORKERS];
	struct broker_totals totals;

	broker_start(30);
	for (int i = 0; i < REQUESTERS; i++) {
		peer_init(&requesters[i]);
		peer_connect(&requesters[i]);
		ck_assert_int_eq(thread_start(&threads[i], request, &requesters[i]), 0);
	}
	for (int i = 0; i < WORKERS; i++) {
		peer_init(&workers[i]);
		ck_assert_int_eq(thread_start(&worker_threads[i], work, &workers[i]), 0);
	}
	for (int i = 0; i < REQUESTERS; i++)
		thread_join(&threads[i]);
	for (int i = 0; i < WORKERS; i++) {
		mutex_lock(&workers[i].lock);
		workers[i].told = true;
		cond_broadcast(&workers[i].changed);
		mutex_unlock(&workers[i].lock);
		thread_join(&worker_threads[i]);
	}
	for (int i = 0; i < REQUESTERS; i++) {
		for (int j = 0; j < REQUESTS; j++)
			ck_assert_uint_eq(requesters[i].answers[j], 1);
		peer_disconnect(&requesters[i]);
	}
	broker_totals(broker, &totals);
	ck_assert_uint_eq(totals.pending_replies + totals.pending_pushes + totals.waiting_requests,
			  0);
	broker_free(&broker);
}
END_TEST

/* --- waiting for quiet ------------------------------------------------------------------- */

static void *wait_quiet(void *argument)
{
	struct peer *peer = argument;

	peer->quiet = broker_client_wait_quiet(peer->client);
	return NULL;
}

static void ask_once(struct peer *peer, bool reply_wanted)
{
	struct flush_set set;

	flush_set_init(&set);
	broker_conversation_open(peer->client, 1, 1, SPAN_LITERAL("q"), &set);
	if (reply_wanted)
		peer->pending++;
	broker_conversation_message(peer->client, 1, 1, reply_wanted, SPAN_LITERAL("request"), NULL,
				    clock_mono_ns(), &set);
	flush_set_run(&set);
}

/* _i: with a reply, or one-way; nobody registers, the deadline ends it. */
START_TEST(quiet_when_nothing_is_due)
{
	struct thread thread;

	broker_start(30);
	peer_init(&requesters[0]);
	peer_connect(&requesters[0]);
	ck_assert(broker_client_wait_quiet(requesters[0].client));
	ask_once(&requesters[0], _i == 0);
	ck_assert_int_eq(thread_start(&thread, wait_quiet, &requesters[0]), 0);
	thread_join(&thread);
	ck_assert(requesters[0].quiet);
	ck_assert_uint_eq(requesters[0].pending, 0);
	ck_assert_uint_eq(requesters[0].answers[0], _i == 0);
	peer_disconnect(&requesters[0]);
	broker_free(&broker);
}
END_TEST

START_TEST(wait_for_quiet_is_interrupted)
{
	struct thread thread;

	broker_start(3600 * 1000);
	peer_init(&requesters[0]);
	peer_connect(&requesters[0]);
	ask_once(&requesters[0], _i == 0);
	requesters[0].quiet = true;
	ck_assert_int_eq(thread_start(&thread, wait_quiet, &requesters[0]), 0);
	broker_client_interrupt(requesters[0].client);
	thread_join(&thread);
	ck_assert(!requesters[0].quiet);
	/* For good. */
	ck_assert(!broker_client_wait_quiet(requesters[0].client));
	peer_disconnect(&requesters[0]);
	broker_free(&broker);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("broker threads");
	TCase *tests = tcase_create("broker threads");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tests, 120);
	tcase_add_test(tests, all_see_one_order);
	tcase_add_test(tests, each_request_has_one_answer);
	tcase_add_loop_test(tests, quiet_when_nothing_is_due, 0, 2);
	tcase_add_loop_test(tests, wait_for_quiet_is_interrupted, 0, 2);
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
