/* Channels of the broker: who gets what, in which order, and what publishers are answered. */
#include "broker_helpers.h"

#include "broker/broker_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct fake_client a, b, c;

static struct broker_channel_state channel_state(const char *name)
{
	struct broker_channel_state *states, found = {0};
	size_t count;

	ck_assert(broker_channel_states(broker, &states, &count));
	for (size_t i = 0; i < count; i++)
		if (span_equal(states[i].name, span_of(name)))
			found = states[i];
	free(states);
	ck_assert_ptr_nonnull(found.name.data);
	return found;
}

/* --- who gets a message ------------------------------------------------------------------ */

START_TEST(each_subscription_gets_each_message)
{
	start();
	join(&a);
	join(&b);
	join(&c);
	ck_assert_int_eq(fake_subscribe(&b, 1, "news", 10), BROKER_SUBSCRIBED);
	ck_assert_int_eq(fake_subscribe(&b, 1, "news", 10), BROKER_SUBSCRIBED);
	ck_assert_int_eq(fake_subscribe(&c, 9, "news", 10), BROKER_SUBSCRIBED);
	ck_assert_int_eq(fake_subscribe(&c, 11, "ticks", 10), BROKER_SUBSCRIBED);
	says(&b, "subscribed 1 s1, subscribed 1 s2");
	says(&c, "subscribed 9 s3, subscribed 11 s4");
	ck_assert_str_eq((const char *)c.out.schema, "schema of ticks");
	fake_publish(&a, 5, "news", "x");
	says(&a, "ack 5 m1 delivered");
	says(&b, "deliver 1 #1 m1 'x', deliver 1 #1 m1 'x'");
	says(&c, "deliver 9 #1 m1 'x'");
	ck_assert_uint_eq(c.out.boot, BOOT_MS);
	fake_publish(&a, 6, "ticks", "");
	says(&a, "ack 6 m2 delivered");
	says(&b, "");
	says(&c, "deliver 11 #1 m2 ''");
	fake_publish(&a, 7, "news", "y");
	says(&b, "deliver 1 #2 m3 'y', deliver 1 #2 m3 'y'");
	says(&c, "deliver 9 #2 m3 'y'");
	fake_disconnect(&a);
	fake_disconnect(&b);
	fake_disconnect(&c);
	stop();
}
END_TEST

START_TEST(nobody_there_is_not_delivered)
{
	start();
	join(&a);
	join(&b);
	fake_publish(&a, 5, "news", "x");
	says(&a, "ack 5 m1");
	fake_subscribe(&b, 1, "ticks", 10);
	fake_publish(&a, 5, "news", "x");
	says(&a, "ack 5 m2");
	fake_unsubscribe(&b, 1);
	fake_publish(&a, 5, "ticks", "x");
	says(&a, "ack 5 m3");
	says(&b, "subscribed 1 s1");
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

START_TEST(messages_of_a_run_keep_their_order)
{
	static const struct fake_message run[] = {{5, "x", NULL}, {7, "y", "k"}, {5, "z", NULL}};

	start();
	join(&a);
	join(&b);
	fake_subscribe(&b, 1, "news", 10);
	fake_said(&b);
	fake_publish_run(&a, "news", run, 3);
	says(&a, "ack 5 m1 delivered, ack 7 m2 delivered, ack 5 m3 delivered");
	says(&b, "deliver 1 #1 m1 'x', deliver 1 #2 m2 'y', deliver 1 #3 m3 'z'");
	fake_publish_run(&a, "news", run, 1);
	says(&a, "ack 5 m4 delivered");
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

START_TEST(publisher_is_answered_before_its_own_delivery)
{
	static const struct fake_message run[] = {{5, "x", NULL}, {7, "y", NULL}};

	start();
	join(&a);
	join(&b);
	fake_subscribe(&a, 1, "news", 10);
	fake_subscribe(&b, 2, "news", 10);
	fake_subscribe(&a, 3, "news", 10);
	fake_said(&a);
	fake_publish(&a, 5, "news", "x");
	says(&a, "ack 5 m1 delivered, deliver 1 #1 m1 'x', deliver 3 #1 m1 'x'");
	says(&b, "subscribed 2 s2, deliver 2 #1 m1 'x'");
	fake_publish_run(&a, "news", run, 2);
	says(&a, "ack 5 m2 delivered, deliver 1 #2 m2 'x', ack 7 m3 delivered, "
		 "deliver 1 #3 m3 'y', deliver 3 #2 m2 'x', deliver 3 #3 m3 'y'");
	/* Subscribed elsewhere only. */
	fake_publish(&a, 5, "ticks", "x");
	says(&a, "ack 5 m4");
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

START_TEST(nothing_after_the_end_of_a_subscription)
{
	start();
	join(&a);
	join(&b);
	fake_subscribe(&a, 1, "news", 10);
	fake_subscribe(&b, 2, "news", 10);
	fake_said(&a);
	fake_said(&b);
	/* Unknown, and another connection's. */
	fake_unsubscribe(&b, 77);
	fake_unsubscribe(&b, 1);
	fake_publish(&a, 5, "news", "x");
	says(&a, "ack 5 m1 delivered, deliver 1 #1 m1 'x'");
	says(&b, "deliver 2 #1 m1 'x'");
	fake_unsubscribe(&a, 1);
	fake_unsubscribe(&a, 1);
	fake_publish(&a, 5, "news", "x");
	says(&a, "ack 5 m2 delivered");
	says(&b, "deliver 2 #2 m2 'x'");
	fake_end_receiving(&b);
	fake_publish(&a, 5, "news", "x");
	says(&a, "ack 5 m3");
	says(&b, "");
	fake_end_conversations(&b);
	fake_gone(&b);
	fake_disconnect(&a);
	stop();
}
END_TEST

START_TEST(dead_connection_takes_nothing)
{
	start();
	join(&a);
	join(&b);
	fake_subscribe(&b, 2, "news", 10);
	fake_subscribe(&b, 2, "ticks", 10);
	fake_said(&b);
	fake_die(&b);
	fake_publish(&a, 5, "news", "x");
	fake_publish(&a, 5, "ticks", "x");
	says(&a, "ack 5 m1, ack 5 m2");
	ck_assert_uint_eq(channel_state("news").sheds, 0);
	ck_assert_uint_eq(channel_state("ticks").drops, 0);
	/* What has been read from it is handled all the same, and reaches others. */
	fake_subscribe(&a, 1, "news", 10);
	fake_said(&a);
	fake_publish(&b, 5, "news", "y");
	says(&a, "deliver 1 #1 m3 'y'");
	says(&b, "");
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

#define MANY 100

/* More than a flush set holds without memory of its own: each is flushed. */
START_TEST(many_subscribers)
{
	static struct fake_client many[MANY];
	char text[64];

	start();
	join(&a);
	for (int i = 0; i < MANY; i++) {
		join(&many[i]);
		fake_subscribe(&many[i], 1, "news", 10);
		fake_said(&many[i]);
	}
	for (int i = 1; i <= 3; i++) {
		fake_publish(&a, 5, "news", "x");
		snprintf(text, sizeof(text), "deliver 1 #%d m%d 'x'", i, i);
		for (int j = 0; j < MANY; j++)
			says(&many[j], text);
	}
	says(&a, "ack 5 m1 delivered, ack 5 m2 delivered, ack 5 m3 delivered");
	for (int i = 0; i < MANY; i++)
		fake_disconnect(&many[i]);
	fake_disconnect(&a);
	stop();
}
END_TEST

START_TEST(too_many_subscriptions)
{
	limits = fake_limits;
	limits.subscriptions = 2;
	start();
	join(&a);
	ck_assert_int_eq(fake_subscribe(&a, 1, "news", 10), BROKER_SUBSCRIBED);
	ck_assert_int_eq(fake_subscribe(&a, 1, "news", 10), BROKER_SUBSCRIBED);
	ck_assert_int_eq(fake_subscribe(&a, 1, "ticks", 10), BROKER_SUBSCRIBE_OVER_CAPACITY);
	/* Each that ends, however it ends, leaves its place to another. */
	fake_unsubscribe(&a, 1);
	ck_assert_int_eq(fake_subscribe(&a, 1, "ticks", 10), BROKER_SUBSCRIBED);
	says(&a, "subscribed 1 s1, subscribed 1 s2, subscribed 1 s3");
	a.out.max_frames = a.out.frames;
	fake_publish(&a, 5, "news", "x");
	says(&a, "ack 5 m1, shed 1");
	a.out.max_frames = FAKE_MAX_FRAMES;
	ck_assert_uint_eq(state_of(&a).subscriptions, 1);
	ck_assert_int_eq(fake_subscribe(&a, 1, "ticks", 10), BROKER_SUBSCRIBED);
	ck_assert_int_eq(fake_subscribe(&a, 1, "ticks", 10), BROKER_SUBSCRIBE_OVER_CAPACITY);
	says(&a, "subscribed 1 s4");
	fake_disconnect(&a);
	stop();
}
END_TEST

/* --- slow consumers ---------------------------------------------------------------------- */

START_TEST(shed_ends_the_subscription_that_is_behind)
{
	static const struct fake_message run[] = {{5, "x", NULL}, {5, "y", NULL}, {5, "z", NULL}};

	start();
	join(&a);
	join(&b);
	join(&c);
	fake_subscribe(&b, 1, "news", 10);
	fake_subscribe(&b, 3, "ticks", 10);
	fake_subscribe(&c, 1, "news", 10);
	fake_said(&b);
	fake_said(&c);
	b.out.max_frames = 4; /* two are in it */
	fake_publish_run(&a, "news", run, 3);
	says(&a, "ack 5 m1 delivered, ack 5 m2 delivered, ack 5 m3 delivered");
	says(&b, "deliver 1 #1 m1 'x', deliver 1 #2 m2 'y', shed 1");
	says(&c, "deliver 1 #1 m1 'x', deliver 1 #2 m2 'y', deliver 1 #3 m3 'z'");
	/* It stays ended when there is room again, and its neighbour lives. */
	fake_written(&b);
	fake_publish(&a, 5, "news", "x");
	fake_publish(&a, 5, "ticks", "x");
	says(&b, "deliver 3 #1 m5 'x'");
	ck_assert_uint_eq(channel_state("news").sheds, 1);
	ck_assert_uint_eq(channel_state("news").subscriptions, 1);
	ck_assert_uint_eq(channel_state("news").deliveries, 2 + 3 + 1);
	ck_assert_uint_eq(channel_state("ticks").sheds, 0);
	fake_unsubscribe(&b, 1);
	fake_disconnect(&a);
	fake_disconnect(&b);
	fake_disconnect(&c);
	stop();
}
END_TEST

/* A client that lets itself be shed again and again costs no more than its limit. */
START_TEST(shed_subscriptions_leave_nothing_behind)
{
	limits = fake_limits;
	limits.subscriptions = 2;
	start();
	join(&a);
	join(&b);
	for (int i = 0; i < 100; i++) {
		ck_assert_int_eq(fake_subscribe(&b, 1, "news", 10), BROKER_SUBSCRIBED);
		b.out.max_frames = b.out.frames;
		fake_publish(&a, 5, "news", "x");
		b.out.max_frames = FAKE_MAX_FRAMES;
		ck_assert_uint_le(b.client->subscriptions.count, limits.subscriptions);
	}
	ck_assert_uint_eq(channel_state("news").sheds, 100);
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

START_TEST(drop_leaves_a_gap_in_the_sequence)
{
	static const struct fake_message run[] = {
		{5, "12345", NULL}, {5, "too much", NULL}, {5, "67890", NULL}};

	start();
	join(&a);
	join(&b);
	fake_subscribe(&b, 3, "ticks", 10);
	fake_said(&b);
	b.out.max_bytes = 10;
	fake_publish_run(&a, "ticks", run, 3);
	says(&a, "ack 5 m1 delivered, ack 5 m2, ack 5 m3 delivered");
	says(&b, "deliver 3 #1 m1 '12345', deliver 3 #3 m3 '67890'");
	fake_publish(&a, 5, "ticks", "x");
	says(&b, "");
	fake_written(&b);
	fake_publish(&a, 5, "ticks", "larger than an empty outbox");
	says(&b, "deliver 3 #5 m5 'larger than an empty outbox'");
	ck_assert_uint_eq(channel_state("ticks").drops, 2);
	ck_assert_uint_eq(channel_state("ticks").deliveries, 3);
	ck_assert_uint_eq(channel_state("ticks").publishes, 5);
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

START_TEST(one_in_flight_is_never_shed)
{
	start();
	join(&a);
	join(&b);
	fake_subscribe(&b, 1, "news", 1);
	fake_subscribe(&b, 3, "news", 2);
	b.out.max_frames = 2;
	fake_publish(&a, 5, "news", "x");
	says(&a, "ack 5 m1");
	says(&b, "subscribed 1 s1, subscribed 3 s2, shed 3");
	fake_written(&b);
	fake_publish(&a, 5, "news", "y");
	says(&b, "deliver 1 #2 m2 'y'");
	ck_assert_uint_eq(channel_state("news").drops, 1);
	ck_assert_uint_eq(channel_state("news").sheds, 1);
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

START_TEST(own_subscription_that_is_behind)
{
	static const struct fake_message run[] = {{5, "x", NULL}, {5, "y", "k"}, {5, "z", "k"}};

	start();
	join(&a);
	fake_subscribe(&a, 1, "news", 10);
	fake_said(&a);
	a.out.max_frames = 3; /* an answer and its message fill it */
	fake_publish_run(&a, "news", run, 3);
	says(&a, "ack 5 m1 delivered, deliver 1 #1 m1 'x', ack 5 m2, ack 5 m2 duplicate, shed 1");
	fake_disconnect(&a);
	stop();
}
END_TEST

/* --- publishers that are not answered ---------------------------------------------------- */

START_TEST(workers_are_not_answered_on_the_channels_listed)
{
	struct span listed = SPAN_LITERAL("not configured"), other = SPAN_LITERAL("news");

	start();
	join(&a);
	join(&b);
	fake_subscribe(&b, 1, "quiet", 10);
	fake_publish(&a, 5, "quiet", "x");
	says(&a, "ack 5 m1 delivered");
	ck_assert(!broker_client_unanswered_name(a.client, listed));
	/* Ever: also when the registration has been taken back. */
	ck_assert_ptr_null(fake_register(&a, (struct fake_worker){.queue = "q", .leaving = true}));
	fake_publish(&a, 5, "quiet", "y");
	says(&a, "registered");
	says(&b, "subscribed 1 s1, deliver 1 #1 m1 'x', deliver 1 #2 m2 'y'");
	ck_assert(broker_client_unanswered_name(a.client, listed));
	ck_assert(!broker_client_unanswered_name(a.client, other));
	/* The same for its own subscription, and for a publish that is a repeat. */
	fake_subscribe(&a, 3, "quiet", 10);
	fake_publish_key(&a, 5, "quiet", "z", "k");
	fake_publish_key(&a, 5, "quiet", "z", "k");
	says(&a, "subscribed 3 s2, deliver 3 #1 m3 'z'");
	fake_publish(&a, 5, "news", "x");
	says(&a, "ack 5 m4");
	/* A reload may change which they are. */
	settings.unanswered_channel_count = 0;
	reload();
	fake_publish(&a, 5, "quiet", "y");
	says(&a, "ack 5 m5 delivered, deliver 3 #2 m5 'y'");
	ck_assert(!broker_client_unanswered_name(a.client, listed));
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

/* --- idempotency keys -------------------------------------------------------------------- */

START_TEST(repeated_key_is_answered_like_the_first)
{
	start();
	join(&a);
	join(&b);
	fake_subscribe(&b, 1, "news", 10);
	fake_said(&b);
	fake_publish_key(&a, 5, "news", "x", "k");
	fake_publish(&a, 5, "news", "y");
	fake_publish_key(&b, 6, "news", "other", "k");
	fake_publish_key(&a, 7, "ticks", "x", "k");
	fake_publish_key(&a, 7, "ticks", "x", "");
	fake_publish_key(&a, 7, "ticks", "x", "");
	says(&a, "ack 5 m1 delivered, ack 5 m2 delivered, ack 7 m3, ack 7 m4, ack 7 m4 duplicate");
	says(&b, "deliver 1 #1 m1 'x', deliver 1 #2 m2 'y', ack 6 m1 duplicate");
	/* The numbers of messages and sequences go on as if it had not been there. */
	fake_publish(&b, 8, "news", "z");
	says(&b, "ack 8 m5 delivered, deliver 1 #3 m5 'z'");
	/* A repeat by the subscriber itself: an answer, and no message. */
	fake_publish_key(&b, 6, "news", "other", "k");
	says(&b, "ack 6 m1 duplicate");
	ck_assert_uint_eq(channel_state("news").publishes, 3);
	ck_assert_uint_eq(channel_state("news").dedup_hits, 2);
	ck_assert_uint_eq(channel_state("news").dedup_keys, 1);
	ck_assert_uint_eq(channel_state("ticks").dedup_keys, 2);
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

START_TEST(repeat_within_a_run)
{
	static const struct fake_message run[] = {
		{5, "x", "k"}, {5, "y", NULL}, {5, "z", "k"}, {5, "z", "l"}};

	start();
	join(&a);
	join(&b);
	fake_subscribe(&b, 1, "news", 10);
	fake_said(&b);
	fake_publish_run(&a, "news", run, 4);
	says(&a, "ack 5 m1 delivered, ack 5 m2 delivered, ack 5 m1 duplicate, "
		 "ack 5 m3 delivered");
	says(&b, "deliver 1 #1 m1 'x', deliver 1 #2 m2 'y', deliver 1 #3 m3 'z'");
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

START_TEST(key_is_forgotten_after_the_window)
{
	start();
	join(&a);
	fake_publish_key(&a, 5, "news", "x", "k");
	pass_ms(DEDUP_WINDOW - 1);
	fake_publish_key(&a, 5, "news", "x", "k"); /* does not make it younger */
	pass_ms(1);
	fake_publish_key(&a, 5, "news", "x", "k");
	says(&a, "ack 5 m1, ack 5 m1 duplicate, ack 5 m2");
	pass_ms(DEDUP_WINDOW);
	ck_assert_uint_eq(channel_state("news").dedup_keys, 0);
	fake_disconnect(&a);
	stop();
}
END_TEST

START_TEST(oldest_keys_make_room)
{
	static const char *const keys[] = {"1", "2", "3", "1", "4", "2", "1"};

	start();
	join(&a);
	for (size_t i = 0; i < ARRAY_LENGTH(keys); i++)
		fake_publish_key(&a, 5, "news", "x", keys[i]);
	says(&a, "ack 5 m1, ack 5 m2, ack 5 m3, ack 5 m1 duplicate, ack 5 m4, ack 5 m2 duplicate, "
		 "ack 5 m5");
	ck_assert_uint_eq(channel_state("news").dedup_keys, DEDUP_KEYS);
	fake_disconnect(&a);
	stop();
}
END_TEST

/* --- the set of channels ----------------------------------------------------------------- */

START_TEST(reload_adds_channels_and_keeps_the_others)
{
	struct broker_channel_settings more[20] = {
		{.name = "news", .drop = true, .dedup_window_ms = 5, .dedup_max_keys = 1}};
	struct channel *news;
	char names[20][8];

	start();
	join(&a);
	join(&b);
	fake_subscribe(&b, 1, "news", 10);
	fake_publish_key(&a, 5, "news", "x", "k");
	fake_publish_key(&a, 5, "news", "x", "l");
	news = broker_channel(broker, SPAN_LITERAL("news"));
	for (size_t i = 1; i < 20; i++) {
		memcpy(names[i], "more-a", 7);
		names[i][5] = (char)('a' + i);
		more[i] = (struct broker_channel_settings){
			.name = names[i], .dedup_window_ms = 1, .dedup_max_keys = 1};
	}
	settings.channels = more;
	settings.channel_count = 20;
	reload();
	reload();
	ck_assert_ptr_eq(broker_channel(broker, SPAN_LITERAL("news")), news);
	ck_assert_ptr_nonnull(broker_channel(broker, SPAN_LITERAL("ticks")));
	ck_assert_ptr_nonnull(broker_channel(broker, SPAN_LITERAL("more-t")));
	ck_assert_ptr_null(broker_channel(broker, SPAN_LITERAL("more-")));
	ck_assert_ptr_null(broker_channel(broker, SPAN_LITERAL("")));
	ck_assert(span_equal(broker_channel_name(news), SPAN_LITERAL("news")));
	/* What may change has changed, the schema not. */
	ck_assert_str_eq((const char *)broker_channel_schema(news), "schema of news");
	ck_assert_uint_eq(channel_state("news").dedup_keys, 1);
	b.out.max_frames = b.out.frames;
	fake_publish_key(&a, 5, "news", "y", "l");
	fake_publish(&a, 5, "news", "y");
	fake_written(&b);
	fake_publish(&a, 5, "news", "z");
	says(&a, "ack 5 m1 delivered, ack 5 m2 delivered, ack 5 m2 duplicate, ack 5 m3, "
		 "ack 5 m4 delivered");
	says(&b, "subscribed 1 s1, deliver 1 #1 m1 'x', deliver 1 #2 m2 'x', deliver 1 #4 m4 'z'");
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

int main(void)
{
	TCase *tests = suite_begin("channels");

	tcase_add_test(tests, each_subscription_gets_each_message);
	tcase_add_test(tests, nobody_there_is_not_delivered);
	tcase_add_test(tests, messages_of_a_run_keep_their_order);
	tcase_add_test(tests, publisher_is_answered_before_its_own_delivery);
	tcase_add_test(tests, nothing_after_the_end_of_a_subscription);
	tcase_add_test(tests, dead_connection_takes_nothing);
	tcase_add_test(tests, many_subscribers);
	tcase_add_test(tests, too_many_subscriptions);
	tcase_add_test(tests, shed_ends_the_subscription_that_is_behind);
	tcase_add_test(tests, shed_subscriptions_leave_nothing_behind);
	tcase_add_test(tests, drop_leaves_a_gap_in_the_sequence);
	tcase_add_test(tests, one_in_flight_is_never_shed);
	tcase_add_test(tests, own_subscription_that_is_behind);
	tcase_add_test(tests, workers_are_not_answered_on_the_channels_listed);
	tcase_add_test(tests, repeated_key_is_answered_like_the_first);
	tcase_add_test(tests, repeat_within_a_run);
	tcase_add_test(tests, key_is_forgotten_after_the_window);
	tcase_add_test(tests, oldest_keys_make_room);
	tcase_add_test(tests, reload_adds_channels_and_keeps_the_others);
	return suite_run();
}
