/* Workers of the broker: who is chosen, who waits for whom, and what is told when they go. */
#include "broker_helpers.h"

#include <stdlib.h>
#include <string.h>

static struct fake_client a, b, v, w;

/* A request over a conversation of its own; its id. */
static uint64_t ask(struct fake_client *client, const char *subject, const char *payload)
{
	static uint64_t id = 100;

	id++;
	fake_open(client, 1, id, subject);
	fake_request(client, 3, id, payload);
	return id;
}

static void start_with_two(void)
{
	start();
	join(&a);
	join(&b);
	join(&v);
	join(&w);
}

static void stop_with_two(void)
{
	fake_disconnect(&a);
	fake_disconnect(&b);
	fake_disconnect(&v);
	fake_disconnect(&w);
	stop();
}

/* --- registering ------------------------------------------------------------------------- */

START_TEST(registration_replaces_the_one_before)
{
	start_with_two();
	ck_assert_ptr_null(fake_register(&w, (struct fake_worker){.queue = "q"}));
	ck_assert_ptr_null(fake_register(&w, (struct fake_worker){.queue = "r"}));
	says(&w, "registered, registered");
	ck_assert_uint_eq(totals().workers, 1);
	ask(&a, "q", "x");
	ask(&a, "r", "y");
	says(&a, "reply 3 c101 'x'");
	says(&w, "push p1 'y'");
	stop_with_two();
}
END_TEST

START_TEST(empty_names_are_names)
{
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "", .identity = ""});
	ask(&a, "", "x"); /* no part of a subject may be empty */
	says(&a, "reply 3 c101 'x'");
	says(&w, "registered");
	stop_with_two();
}
END_TEST

START_TEST(queues_that_are_not_configured)
{
	static char *queues[] = {(char *)"q", (char *)"r"};
	const char *rejected;

	settings.worker_queues = queues;
	settings.worker_queue_count = 2;
	start_with_two();
	ck_assert_ptr_null(fake_register(&w, (struct fake_worker){.queue = "q"}));
	rejected = fake_register(&w, (struct fake_worker){.queue = "s"});
	ck_assert_ptr_nonnull(rejected);
	ck_assert_ptr_nonnull(strstr(rejected, "worker_queues"));
	/* The one before stays as it was. */
	ask(&a, "q", "x");
	says(&w, "registered, push p1 'x'");
	settings.worker_queue_count = 0;
	reload();
	ck_assert_ptr_null(fake_register(&w, (struct fake_worker){.queue = "s"}));
	stop_with_two();
}
END_TEST

START_TEST(registrations_can_be_looked_at)
{
	struct broker_worker_state *states;
	size_t count;

	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q",
					       .identity = "me",
					       .node = "n",
					       .namespaces = "one two",
					       .activities = "three"});
	fake_register(&w, (struct fake_worker){.queue = "r", .leaving = true});
	ask(&a, "q", "x");
	ask(&a, "one/q", "x");
	pass_ms(REPLY_TIMEOUT);
	ask(&a, "two/q/three", "x");
	ck_assert(broker_worker_states(broker, &states, &count));
	ck_assert_uint_eq(count, 2);
	ck_assert_uint_eq(states[0].connection, 3);
	ck_assert(span_equal(states[0].queue, span_of("q")));
	ck_assert(span_equal(states[0].identity, span_of("me")));
	ck_assert(span_equal(states[0].node, span_of("n")));
	ck_assert_uint_eq(states[0].namespaces.count, 2);
	ck_assert(span_equal(states[0].namespaces.bytes, SPAN_LITERAL("\0\0\0\3one\0\0\0\3two")));
	ck_assert_uint_eq(states[0].activities.count, 1);
	ck_assert(span_equal(states[0].activities.bytes, SPAN_LITERAL("\0\0\0\5three")));
	ck_assert_uint_eq(states[0].outstanding, 1);
	ck_assert_uint_eq(states[0].unanswered, 2);
	ck_assert(!states[0].leaving);
	ck_assert_uint_eq(states[1].connection, 4);
	ck_assert_uint_eq(states[1].identity.length, 0);
	ck_assert_ptr_null(states[1].node.data);
	ck_assert(states[1].leaving);
	broker_worker_states_free(&states, count);
	ck_assert_ptr_null(states);
	ck_assert(state_of(&v).worker);
	ck_assert_uint_eq(state_of(&v).queue_length, 1);
	ck_assert_uint_eq(state_of(&v).pending_pushes, 1);
	ck_assert(!state_of(&a).worker);
	ck_assert_uint_eq(state_of(&a).pending_replies, 1);
	stop_with_two();
}
END_TEST

/* --- who is chosen ----------------------------------------------------------------------- */

/* Names are cut between characters, and of many only the first are there. */
START_TEST(much_of_a_registration_is_left_out)
{
	struct broker_worker_state *states;
	char name[256], names[10000] = "";
	size_t count;

	name[0] = 'n';
	for (int i = 1; i < 201; i += 2)
		memcpy(name + i, "\xC3\xA9", 3);
	for (int i = 0; i < 9; i++)
		strcat(strcat(names, name), " ");
	strcat(names, "last");
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = name,
					       .identity = name,
					       .node = name,
					       .namespaces = names,
					       .activities = "a b"});
	ck_assert(broker_worker_states(broker, &states, &count));
	name[127] = '\0';
	ck_assert(span_equal(states[0].queue, span_of(name)));
	ck_assert(span_equal(states[0].identity, span_of(name)));
	ck_assert(span_equal(states[0].node, span_of(name)));
	ck_assert_uint_eq(states[0].namespaces.count, 7);
	ck_assert_uint_eq(states[0].namespaces.bytes.length, 7 * 131);
	for (size_t i = 0; i < 7; i++) {
		const uint8_t *item = states[0].namespaces.bytes.data + 131 * i;

		ck_assert(span_equal((struct span){item, 4}, SPAN_LITERAL("\0\0\0\177")));
		ck_assert(span_equal((struct span){item + 4, 127}, span_of(name)));
	}
	ck_assert_uint_eq(states[0].namespaces_left_out, 3);
	ck_assert_uint_eq(states[0].activities.count, 2);
	ck_assert_uint_eq(states[0].activities_left_out, 0);
	broker_worker_states_free(&states, count);
	stop_with_two();
}
END_TEST

static const struct {
	const char *namespaces, *activities, *subject;
	bool chosen;
} matches[] = {
	{"", "", "q", true},
	{"", "", "any/q", true},
	{"", "", "any/q/any", true},
	{"n m", "x y", "q", true},
	{"n m", "x y", "m/q", true},
	{"n m", "x y", "m/q/y", true},
	{"n m", "", "m/q/any", true},
	{"", "x y", "any/q/x", true},
	{"n m", "x y", "o/q", false},
	{"n m", "x y", "n/q/z", false},
	{"n m", "x y", "x/q/n", false},
	{"n m", "x y", "nm/q", false},
	{"n m", "x y", "N/q", false},
	{"", "", "r", false},
	{"", "", "q/any", false},
	{"", "", "", false},
	{"", "", "/q", false},
	{"", "", "q/", false},
	{"", "", "any//q", false},
	{"", "", "any/q/", false},
	{"", "", "/q/any", false},
	{"", "", "any/q/any/any", false},
	{"", "", "Q", false},
};

START_TEST(subject_names_queue_namespace_and_activity)
{
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q",
					       .namespaces = matches[_i].namespaces,
					       .activities = matches[_i].activities});
	ask(&a, matches[_i].subject, "x");
	says(&w, matches[_i].chosen ? "registered, push p1 'x'" : "registered");
	says(&a, matches[_i].chosen ? "" : "reply 3 c101 'x'");
	stop_with_two();
}
END_TEST

START_TEST(the_one_with_less_to_do_then_the_one_used_longer_ago)
{
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "1");
	ask(&a, "q", "2");
	ask(&a, "q", "3");
	ask(&a, "q", "4");
	says(&v, "registered, push p1 '1', push p3 '3'");
	says(&w, "registered, push p2 '2', push p4 '4'");
	fake_reply(&w, 2, "");
	ask(&a, "q", "5");
	says(&w, "push p5 '5'");
	fake_reply(&v, 1, "");
	fake_reply(&v, 3, "");
	fake_reply(&w, 4, "");
	fake_reply(&w, 5, "");
	ask(&a, "q", "6");
	says(&v, "push p6 '6'");
	fake_reply(&v, 6, "");
	ask(&a, "q", "7");
	says(&w, "push p7 '7'");
	stop_with_two();
}
END_TEST

START_TEST(those_that_subscribe_come_last)
{
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_subscribe(&v, 1, "news", 10);
	ask(&a, "q", "1");
	ask(&a, "q", "2");
	says(&v, "registered, subscribed 1 s1");
	says(&w, "registered, push p1 '1', push p2 '2'");
	fake_subscribe(&w, 1, "news", 10);
	ask(&a, "q", "3");
	says(&v, "push p3 '3'");
	fake_unsubscribe(&w, 2);
	ask(&a, "q", "4");
	says(&w, "subscribed 1 s2, push p4 '4'");
	/* A subscription that was shed is none. */
	v.out.max_frames = v.out.frames;
	fake_publish(&a, 1, "news", "x");
	v.out.max_frames = FAKE_MAX_FRAMES;
	ask(&a, "q", "5");
	says(&v, "shed 1, push p5 '5'");
	stop_with_two();
}
END_TEST

START_TEST(timed_out_pushes_count_until_one_is_answered)
{
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "1");
	ask(&a, "q", "2");
	pass_ms(REPLY_TIMEOUT);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "3");
	ask(&a, "q", "4");
	says(&v, "registered, push p1 '1', push p2 '2'");
	says(&w, "registered, push p3 '3', push p4 '4'");
	ask(&a, "q", "5"); /* two each: the one used longer ago */
	says(&v, "push p5 '5'");
	fake_reply(&v, 1, "too late to count");
	ask(&a, "q", "6");
	says(&w, "push p6 '6'");
	fake_still_working(&v, 5);
	ask(&a, "q", "7"); /* three each */
	says(&v, "push p7 '7'");
	fake_reply(&v, 5, "");
	ask(&a, "q", "8"); /* one against three */
	says(&v, "push p8 '8'");
	stop_with_two();
}
END_TEST

/* The same seen from the other side of the comparison: the one that does not answer came last. */
START_TEST(timed_out_pushes_count_whoever_registered_first)
{
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "r"});
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "1");
	pass_ms(REPLY_TIMEOUT);
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "2");
	says(&v, "registered, registered, push p2 '2'");
	says(&w, "registered, push p1 '1', registered");
	fake_reply(&v, 2, "");
	ask(&a, "q", "3"); /* used later, and still less behind */
	says(&v, "push p3 '3'");
	stop_with_two();
}
END_TEST

START_TEST(conversation_stays_with_its_worker)
{
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_request(&a, 3, 7, "2");
	fake_one_way(&a, 3, 7, "3");
	says(&v, "registered, push p1 '1', push p2 '2', push p3 '3'");
	says(&w, "registered");
	stop_with_two();
}
END_TEST

START_TEST(nothing_is_bound_without_a_worker)
{
	start_with_two();
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_request(&a, 3, 7, "2");
	says(&a, "reply 3 c7 '1'");
	says(&w, "registered, push p1 '2'");
	stop_with_two();
}
END_TEST

START_TEST(requester_may_be_its_own_worker)
{
	start_with_two();
	fake_register(&a, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "x");
	fake_reply(&a, 1, "y");
	says(&a, "registered, push p1 'x', reply 3 c101 'y'");
	/* Half-closed it can answer no more. */
	fake_request(&a, 3, 101, "x");
	fake_end_receiving(&a);
	says(&a, "push p2 'x', error 3 c101 worker-lost");
	fake_end_conversations(&a);
	fake_gone(&a);
	join(&a);
	stop_with_two();
}
END_TEST

/* --- answers of workers ------------------------------------------------------------------ */

/* It ends at once: its requests to itself are forgotten, and their places stay empty. */
START_TEST(requests_to_oneself_are_forgotten)
{
	limits = fake_limits;
	limits.pushes = 1;
	start_with_two();
	fake_register(&a, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_one_way(&a, 5, 7, "2");
	fake_request(&a, 7, 7, "3");
	ask(&b, "q", "4");
	says(&a, "registered, push p1 '1'");
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_end_conversations(&a);
	fake_end_receiving(&a);
	says(&a, "");
	says(&b, "");
	says(&v, "registered, push p2 '4'");
	fake_gone(&a);
	join(&a);
	stop_with_two();
}
END_TEST

START_TEST(only_the_connection_that_was_asked_can_answer)
{
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_register(&w, (struct fake_worker){.queue = "r"});
	ask(&a, "q", "x");
	fake_reply(&w, 1, "not mine");
	fake_refuse(&a, 1, REFUSAL_BUSY, "not mine");
	fake_reply(&v, 2, "unknown");
	says(&a, "");
	fake_reply(&v, 1, "mine");
	fake_reply(&v, 1, "again");
	says(&a, "reply 3 c101 'mine'");
	stop_with_two();
}
END_TEST

START_TEST(refusals_are_passed_on)
{
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	for (int i = 0; i < 5; i++)
		fake_request(&a, 3, 7, "x");
	fake_refuse(&w, 1, REFUSAL_BUSY, "come: again");
	fake_refuse(&w, 2, REFUSAL_INVALID, "");
	fake_refuse(&w, 3, REFUSAL_UNAVAILABLE, "c");
	fake_refuse(&w, 4, REFUSAL_INTERNAL, "d");
	fake_refuse(&w, 5, REFUSAL_NONE, "worker-failed: no refusal at all");
	says(&a, "refused 3 c7 busy 'come: again', refused 3 c7 invalid '', "
		 "refused 3 c7 unavailable 'c', refused 3 c7 internal 'd', "
		 "error 3 c7 worker-failed");
	stop_with_two();
}
END_TEST

/* --- waiting ----------------------------------------------------------------------------- */

START_TEST(pushes_wait_until_the_worker_has_settled)
{
	settings.worker_settle_ms = SETTLE;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "1");
	ask(&a, "q", "2");
	pass_ms(SETTLE - 1);
	says(&w, "registered");
	fake_register(&w, (struct fake_worker){.queue = "q"}); /* it begins anew */
	pass_ms(SETTLE - 1);
	says(&w, "registered");
	pass_ms(1);
	says(&w, "push p1 '1', push p2 '2'");
	ask(&a, "q", "3");
	says(&w, "push p3 '3'");
	stop_with_two();
}
END_TEST

START_TEST(pushes_beyond_the_bound_wait_for_their_turn)
{
	limits = fake_limits;
	limits.pushes = 2;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&b, 1, 8, "q");
	fake_request(&a, 3, 7, "1");
	fake_one_way(&b, 3, 8, "2");
	fake_request(&b, 3, 8, "3");
	fake_request(&a, 3, 7, "4");
	fake_one_way(&a, 3, 7, "5");
	says(&w, "registered, push p1 '1', push p2 '2'");
	ck_assert_uint_eq(totals().waiting_requests, 3);
	ck_assert_uint_eq(totals().pending_pushes, 2);
	ck_assert_uint_eq(totals().pending_replies, 3);
	fake_reply(&w, 2, "");
	says(&w, "push p3 '3'");
	fake_still_working(&w, 3); /* frees no place */
	says(&w, "");
	fake_refuse(&w, 1, REFUSAL_BUSY, "");
	says(&w, "push p4 '4'");
	fake_close(&a, 7); /* one that is forgotten does */
	says(&w, "push p5 '5'");
	pass_ms(1);
	fake_request(&b, 3, 8, "6");
	pass_ms(REPLY_TIMEOUT - 1); /* and one that times out */
	says(&b, "error 3 c8 reply-timeout");
	fake_request(&b, 3, 8, "7");
	says(&w, "push p6 '6', push p7 '7'");
	stop_with_two();
}
END_TEST

START_TEST(time_spent_waiting_counts)
{
	limits = fake_limits;
	limits.pushes = 1;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "1");
	pass_ms(REPLY_TIMEOUT / 2);
	ask(&a, "q", "2");
	pass_ms(REPLY_TIMEOUT / 4);
	fake_reply(&w, 1, "");
	says(&w, "registered, push p1 '1', push p2 '2'");
	pass_ms(REPLY_TIMEOUT * 3 / 4 - 1);
	says(&a, "reply 3 c101 ''");
	pass_ms(1);
	says(&a, "error 3 c102 reply-timeout");
	stop_with_two();
}
END_TEST

START_TEST(timeout_makes_room_for_the_next_in_turn)
{
	limits = fake_limits;
	limits.pushes = 1;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "1");
	pass_ms(1);
	ask(&a, "q", "2");
	pass_ms(1);
	ask(&a, "q", "3");
	pass_ms(REPLY_TIMEOUT - 2);
	says(&a, "error 3 c101 reply-timeout");
	says(&w, "registered, push p1 '1', push p2 '2'");
	pass_ms(1);
	says(&a, "error 3 c102 reply-timeout");
	says(&w, "push p3 '3'");
	pass_ms(1);
	says(&a, "error 3 c103 reply-timeout");
	fake_reply(&w, 1, "late");
	fake_reply(&w, 2, "late");
	says(&a, "");
	stop_with_two();
}
END_TEST

/* The place that a hung worker's push leaves is not for those that nobody waits for any more. */
START_TEST(late_requests_are_not_pushed)
{
	struct broker_worker_state *states;
	size_t count;

	limits = fake_limits;
	limits.pushes = 1;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	for (uint32_t stream = 1; stream <= 7; stream += 2)
		fake_request(&a, stream, 7, "x");
	pass_ms(1);
	fake_request(&a, 9, 7, "in time");
	pass_ms(REPLY_TIMEOUT - 1);
	says(&a, "error 1 c7 reply-timeout, error 3 c7 reply-timeout, error 5 c7 reply-timeout, "
		 "error 7 c7 reply-timeout");
	says(&w, "registered, push p1 'x', push p2 'in time'");
	ck_assert(broker_worker_states(broker, &states, &count));
	ck_assert_uint_eq(states[0].unanswered, 1);
	broker_worker_states_free(&states, count);
	stop_with_two();
}
END_TEST

START_TEST(late_requests_find_no_worker)
{
	settings.no_worker = BROKER_NO_WORKER_WAIT;
	start_with_two();
	ask(&a, "q", "1");
	fake_now_ns += REPLY_TIMEOUT * NS_PER_MS; /* the deadline thread comes late */
	ask(&b, "q", "2");
	fake_register(&w, (struct fake_worker){.queue = "q"});
	says(&w, "registered, push p1 '2'");
	says(&a, "error 3 c101 reply-timeout");
	stop_with_two();
}
END_TEST

START_TEST(push_that_does_not_fit)
{
	limits = fake_limits;
	limits.pushes = 2;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	w.out.max_frames = 2;
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 5, 7, "2"); /* overtakes the first */
	fake_one_way(&a, 7, 7, "3");
	says(&a, "error 5 c7 over-capacity: max_outbox_frames, "
		 "error 7 c7 over-capacity: max_outbox_frames");
	fake_written(&w);
	w.out.max_frames = FAKE_MAX_FRAMES;
	w.out.max_bytes = 10;
	fake_request(&a, 3, 7, "1234567890123");
	says(&w, "registered, push p1 '1', push p2 '1234567890123'");
	/* When it is judged in its turn: of one-way messages nothing is said any more. */
	fake_request(&a, 5, 7, "4");
	fake_one_way(&a, 7, 7, "5");
	says(&a, "");
	fake_reply(&w, 1, "one");
	says(&a, "reply 3 c7 'one', error 5 c7 over-capacity: max_outbox_bytes");
	fake_written(&w);
	fake_request(&a, 3, 7, "6");
	says(&w, "push p3 '6'");
	pass_ms(2 * REPLY_TIMEOUT);
	says(&a, "error 3 c7 reply-timeout, error 3 c7 reply-timeout");
	stop_with_two();
}
END_TEST

START_TEST(waiting_payloads_have_a_bound)
{
	limits = fake_limits;
	limits.pushes = 1;
	limits.pending_bytes = 10;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&b, 1, 8, "q");
	fake_request(&a, 3, 7, "pushed, and counts for nothing");
	fake_request(&a, 3, 7, "one of any size always fits");
	fake_request(&a, 5, 7, "");
	says(&a, "error 5 c7 over-capacity: max_pending_bytes_per_connection");
	fake_request(&b, 3, 8, "12345");
	pass_ms(1);
	fake_one_way(&b, 3, 8, "67890");
	fake_one_way(&b, 5, 8, "x");
	fake_request(&b, 3, 8, "");
	says(&b, "error 5 c8 over-capacity: max_pending_bytes_per_connection");
	fake_reply(&w, 1, "");
	fake_request(&a, 7, 7, "1234567890");
	fake_request(&a, 9, 7, "1");
	says(&a, "reply 3 c7 '', error 9 c7 over-capacity: max_pending_bytes_per_connection");
	says(&w, "registered, push p1 'pushed, and counts for nothing', "
		 "push p2 'one of any size always fits'");
	/* What is forgotten, times out or is pushed gives back what it held. */
	fake_close(&a, 7);
	fake_open(&a, 1, 7, "q");
	pass_ms(1);
	fake_request(&a, 3, 7, "1234567890");
	says(&a, "");
	pass_ms(REPLY_TIMEOUT);
	fake_request(&a, 3, 7, "x");
	says(&a, "error 3 c7 reply-timeout");
	says(&w, "push p3 '12345', push p4 '67890', push p5 '1234567890', push p6 'x'");
	stop_with_two();
}
END_TEST

/* Two requests hold all that may be held: a third one has no room. */
static void hold_all(void)
{
	fake_request(&a, 5, 8, "12345");
	fake_request(&a, 7, 8, "67890");
	says(&a, "");
	fake_request(&a, 9, 8, "x");
	says(&a, "error 9 c8 over-capacity: max_pending_bytes_per_connection");
}

START_TEST(waiting_payloads_give_back_what_they_held)
{
	limits = fake_limits;
	limits.pushes = 1;
	limits.pending_bytes = 10;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&a, 1, 8, "q");
	fake_request(&a, 3, 7, "1");
	hold_all();
	for (uint64_t i = 1; i <= 3; i++) /* when they are pushed */
		fake_reply(&w, i, "");
	says(&a, "reply 3 c7 '', reply 5 c8 '', reply 7 c8 ''");
	fake_request(&a, 3, 7, "2");
	hold_all();
	fake_close(&a, 8); /* forgotten */
	fake_open(&a, 1, 8, "q");
	pass_ms(1);
	hold_all();
	pass_ms(REPLY_TIMEOUT); /* or too late */
	says(&a, "error 3 c7 reply-timeout, error 5 c8 reply-timeout, error 7 c8 reply-timeout");
	fake_request(&a, 3, 7, "3");
	hold_all();
	stop_with_two();
}
END_TEST

/* The deadline thread comes late: what arrives meanwhile waits behind what waits already. */
START_TEST(nobody_overtakes_those_in_turn)
{
	settings.worker_settle_ms = SETTLE;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "1");
	fake_now_ns += 2 * SETTLE * NS_PER_MS;
	ask(&a, "q", "2");
	says(&w, "registered");
	pass_ms(0);
	ask(&a, "q", "3");
	says(&w, "push p1 '1', push p2 '2', push p3 '3'");
	stop_with_two();
}
END_TEST

START_TEST(waiting_one_way_messages_have_a_bound)
{
	limits = fake_limits;
	limits.pushes = 1;
	limits.replies = 2;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	for (int i = 0; i < 4; i++)
		fake_one_way(&a, 3, 7, "x");
	says(&a, "error 3 c7 over-capacity: max_pending_replies_per_connection");
	fake_reply(&w, 1, "");
	fake_one_way(&a, 3, 7, "x");
	says(&a, "");
	stop_with_two();
}
END_TEST

START_TEST(requests_wait_until_a_worker_registers)
{
	settings.no_worker = BROKER_NO_WORKER_WAIT;
	limits = fake_limits;
	limits.pushes = 2;
	start_with_two();
	fake_open(&a, 1, 7, "n/q");
	fake_open(&b, 1, 8, "q");
	fake_open(&a, 1, 9, "not/of/this/form");
	fake_request(&a, 3, 7, "1");
	fake_request(&b, 3, 8, "2");
	fake_one_way(&b, 3, 8, "3");
	fake_request(&a, 3, 7, "4");
	fake_request(&a, 3, 9, "5");
	fake_request(&b, 3, 8, "6");
	fake_register(&v, (struct fake_worker){.queue = "r"});
	fake_register(&w, (struct fake_worker){.queue = "q", .leaving = true});
	says(&v, "registered");
	says(&w, "registered");
	fake_register(&v, (struct fake_worker){.queue = "q", .namespaces = "m"});
	says(&v, "registered, push p1 '2', push p2 '3'");
	fake_register(&w, (struct fake_worker){.queue = "q", .namespaces = "n"});
	says(&w, "registered, push p3 '1', push p4 '4'");
	fake_reply(&v, 1, "two");
	says(&b, "reply 3 c8 'two'");
	says(&v, "push p5 '6'");
	says(&a, "");
	pass_ms(REPLY_TIMEOUT);
	says(&a, "error 3 c7 reply-timeout, error 3 c7 reply-timeout, error 3 c9 reply-timeout");
	stop_with_two();
}
END_TEST

START_TEST(still_working_extends_the_time)
{
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "x");
	pass_ms(REPLY_TIMEOUT - 100);
	fake_still_working(&w, 1);
	pass_ms(REPLY_TIMEOUT - 1);
	says(&a, "");
	fake_still_working(&w, 1);
	fake_still_working(&v, 1);			      /* not its own */
	pass_ms(REPLY_TIMEOUT_MAX - 2 * REPLY_TIMEOUT + 100); /* one before the most there is */
	says(&a, "");
	fake_still_working(&w, 1);
	pass_ms(1);
	says(&a, "error 3 c101 reply-timeout");
	fake_still_working(&w, 1);
	fake_reply(&w, 1, "late");
	says(&a, "");
	stop_with_two();
}
END_TEST

START_TEST(still_working_never_shortens_the_time)
{
	settings.reply_timeout_max_ms = REPLY_TIMEOUT / 2;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "x");
	pass_ms(REPLY_TIMEOUT / 4);
	fake_still_working(&w, 1);
	pass_ms(REPLY_TIMEOUT * 3 / 4 - 1);
	says(&a, "");
	pass_ms(1);
	says(&a, "error 3 c101 reply-timeout");
	stop_with_two();
}
END_TEST

/* Only the order holds its answer: it has come in time. */
START_TEST(held_answers_do_not_time_out)
{
	limits = fake_limits;
	limits.pushes = 2;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 5, 7, "2");
	fake_request(&a, 7, 7, "3"); /* waits for its turn, and is refused in the end */
	fake_still_working(&w, 1);
	fake_reply(&w, 2, "two");
	fake_refuse(&w, 3, REFUSAL_BUSY, "three");
	for (int i = 0; i < 2; i++) {
		pass_ms(REPLY_TIMEOUT / 2);
		fake_still_working(&w, 1);
	}
	pass_ms(REPLY_TIMEOUT / 2);
	says(&a, "");
	fake_reply(&w, 1, "one");
	says(&a, "reply 3 c7 'one', reply 5 c7 'two', refused 7 c7 busy 'three'");
	pass_ms(REPLY_TIMEOUT_MAX);
	says(&a, "");
	stop_with_two();
}
END_TEST

/* --- workers that go --------------------------------------------------------------------- */

START_TEST(lost_worker_loses_what_was_pushed)
{
	limits = fake_limits;
	limits.pushes = 2;
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&b, 1, 8, "q");
	fake_open(&b, 1, 9, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&b, 3, 8, "2");
	fake_request(&a, 3, 7, "3");
	fake_request(&b, 3, 9, "4");
	fake_register(&w, (struct fake_worker){.queue = "q"});
	says(&v, "registered, push p1 '1', push p2 '2'");
	says(&w, "registered");
	fake_end_receiving(&v);
	says(&a, "error 3 c7 worker-lost");
	says(&b, "error 3 c8 worker-lost");
	says(&w, "push p3 '3', push p4 '4'"); /* what waited for its turn is resolved anew */
	/* They have been told, or have lost nothing. */
	fake_request(&a, 3, 7, "5");
	fake_request(&b, 3, 8, "6");
	fake_reply(&w, 3, "");
	fake_reply(&w, 4, "");
	says(&w, "push p5 '5', push p6 '6'");
	says(&a, "reply 3 c7 ''");
	says(&b, "reply 3 c9 ''");
	fake_reply(&v, 1, "too late"); /* closing, it may still send */
	says(&a, "");
	stop_with_two();
}
END_TEST

START_TEST(idle_conversation_hears_of_the_loss_once)
{
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&a, 1, 8, "q"); /* bound to nobody */
	fake_open(&b, 1, 9, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&b, 3, 9, "2");
	fake_reply(&w, 1, "one");
	fake_reply(&w, 2, "two");
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_end_receiving(&w);
	fake_said(&a);
	fake_said(&b);
	fake_request(&a, 3, 7, "3");
	fake_request(&a, 3, 8, "4");
	fake_one_way(&b, 5, 9, "5");
	says(&a, "error 3 c7 worker-lost");
	says(&b, "error 5 c9 worker-lost");
	fake_request(&a, 3, 7, "6");
	fake_request(&b, 3, 9, "7");
	says(&v, "registered, push p3 '4', push p4 '6', push p5 '7'");
	stop_with_two();
}
END_TEST

START_TEST(leaving_worker_loses_nothing)
{
	limits = fake_limits;
	limits.pushes = 2;
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 3, 7, "2");
	fake_request(&a, 5, 7, "3");
	fake_one_way(&a, 7, 7, "4");
	fake_request(&a, 9, 7, "5");
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_register(&v, (struct fake_worker){.queue = "q", .leaving = true});
	says(&v, "registered, push p1 '1', push p2 '2', registered");
	says(&w, "registered, push p3 '3', push p4 '4'");
	fake_reply(&v, 1, "one");
	says(&a, "reply 3 c7 'one'");
	says(&v, "");
	fake_end_receiving(&v); /* what it has not answered is lost, and nothing else said */
	says(&a, "error 3 c7 worker-lost");
	fake_reply(&w, 3, "three");
	fake_reply(&w, 4, "");
	says(&a, "reply 5 c7 'three'");
	says(&w, "push p5 '5'");
	stop_with_two();
}
END_TEST

START_TEST(conversations_of_a_leaving_worker_go_elsewhere_silently)
{
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&b, 1, 8, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&b, 3, 8, "2");
	fake_reply(&v, 1, "");
	fake_reply(&v, 2, "");
	fake_register(&v, (struct fake_worker){.queue = "q", .leaving = true});
	fake_request(&a, 3, 7, "3");
	says(&a, "reply 3 c7 '', reply 3 c7 '3'"); /* nobody there: echo */
	fake_end_receiving(&v);
	fake_request(&b, 3, 8, "4");
	says(&b, "reply 3 c8 '', reply 3 c8 '4'");
	stop_with_two();
}
END_TEST

START_TEST(leaving_worker_may_come_back)
{
	settings.no_worker = BROKER_NO_WORKER_WAIT;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q", .leaving = true});
	ask(&a, "q", "1");
	fake_register(&w, (struct fake_worker){.queue = "q"});
	says(&w, "registered, registered, push p1 '1'");
	stop_with_two();
}
END_TEST

START_TEST(waiting_requests_of_a_replaced_registration_are_resolved_anew)
{
	limits = fake_limits;
	limits.pushes = 1;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&a, 1, 8, "x/q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 3, 7, "2");
	fake_request(&a, 3, 8, "3");
	fake_request(&a, 5, 7, "4");
	fake_register(&w, (struct fake_worker){.queue = "q", .namespaces = "y"});
	says(&a, "reply 3 c8 '3'"); /* nobody has it any more: echo */
	fake_reply(&w, 1, "one");
	fake_reply(&w, 2, "two");
	says(&a, "reply 3 c7 'one', reply 3 c7 'two'");
	says(&w, "registered, push p1 '1', registered, push p2 '2', push p3 '4'");
	stop_with_two();
}
END_TEST

#define MANY 200

/* Registering is done with however many requests it concerns; they follow in steps. */
START_TEST(many_waiting_requests_are_resolved_in_steps)
{
	settings.no_worker = BROKER_NO_WORKER_WAIT;
	start_with_two();
	for (int i = 0; i < MANY; i++)
		ask(&a, "q", "x");
	fake_tick_ns = 10000;
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ck_assert_uint_gt(totals().pending_pushes, 0);
	ck_assert_uint_lt(totals().pending_pushes, 10);
	/* Again and again: nothing more for it. */
	for (int i = 0; i < 10; i++)
		fake_register(&w, (struct fake_worker){.queue = "q"});
	ck_assert_uint_lt(totals().pending_pushes, 10);
	pass_ms(REPLY_TIMEOUT / 2);
	ck_assert_uint_eq(totals().pending_pushes, MANY);
	ck_assert_uint_eq(totals().waiting_requests, 0);
	fake_tick_ns = 0;
	stop_with_two();
}
END_TEST

/* What comes meanwhile for the same conversation does not overtake. */
START_TEST(conversations_keep_their_order_while_they_are_resolved_anew)
{
	settings.no_worker = BROKER_NO_WORKER_WAIT;
	start_with_two();
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 1, 7, "1");
	fake_request(&a, 1, 7, "2");
	fake_one_way(&a, 1, 7, "3");
	fake_tick_ns = 100000; /* one at a time */
	fake_register(&w, (struct fake_worker){.queue = "q"});
	says(&w, "registered, push p1 '1'");
	fake_request(&a, 1, 7, "4");
	ask(&b, "q", "x");
	pass_ms(100);
	says(&w, "push p2 'x', push p3 '2', push p4 '3', push p5 '4'");
	fake_tick_ns = 0;
	stop_with_two();
}
END_TEST

/* Nor do they hear of the loss of a worker that has cost them nothing. */
START_TEST(conversations_go_on_while_they_are_resolved_anew)
{
	limits = fake_limits;
	limits.pushes = 1;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&a, 1, 8, "q");
	fake_open(&a, 1, 9, "q");
	fake_request(&a, 1, 7, "1");
	fake_request(&a, 1, 8, "2");
	fake_request(&a, 1, 9, "3");
	fake_one_way(&a, 1, 9, "4");
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_tick_ns = 100000;
	fake_end_receiving(&w);
	says(&v, "registered, push p2 '2'");
	fake_request(&a, 1, 9, "5");
	says(&a, "error 1 c7 worker-lost");
	for (uint64_t i = 2; i <= 4; i++) {
		pass_ms(100);
		fake_reply(&v, i, "");
	}
	says(&a, "reply 1 c8 '', reply 1 c9 ''");
	says(&v, "push p3 '3', push p4 '4', push p5 '5'");
	fake_tick_ns = 0;
	stop_with_two();
}
END_TEST

/* The wait of a request at a lost worker ended before it was resolved anew: its conversation goes
 * on all the same. */
START_TEST(conversations_go_on_after_they_were_to_be_resolved_anew)
{
	limits = fake_limits;
	limits.pushes = 1;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&a, "q", "1");
	ask(&a, "q", "2");
	fake_open(&b, 1, 7, "q");
	fake_request(&b, 1, 7, "3");
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_tick_ns = 100000;
	fake_end_receiving(&w);
	fake_tick_ns = 0;
	fake_now_ns += REPLY_TIMEOUT * NS_PER_MS; /* the deadline thread comes late */
	pass_ms(0);
	says(&b, "error 1 c7 reply-timeout");
	fake_request(&b, 1, 7, "4");
	says(&v, "registered, push p2 '2', push p3 '4'");
	fake_reply(&v, 3, "four");
	says(&b, "reply 1 c7 'four'");
	stop_with_two();
}
END_TEST

/* The order holds the echo of a request that waited for its turn: its deadline is gone. */
START_TEST(resolved_anew_and_answered_at_once)
{
	limits = fake_limits;
	limits.pushes = 1;
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 5, 7, "2");
	fake_register(&w, (struct fake_worker){.queue = "q", .leaving = true});
	fake_still_working(&w, 1);
	pass_ms(REPLY_TIMEOUT / 2);
	fake_still_working(&w, 1);
	pass_ms(REPLY_TIMEOUT / 2);
	says(&a, "");
	fake_reply(&w, 1, "one");
	says(&a, "reply 3 c7 'one', reply 5 c7 '2'");
	pass_ms(REPLY_TIMEOUT_MAX);
	says(&a, "");
	/* Answered there and then. */
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_request(&a, 3, 7, "3");
	fake_open(&b, 1, 8, "q");
	fake_request(&b, 3, 8, "4");
	fake_register(&w, (struct fake_worker){.queue = "q", .leaving = true});
	says(&b, "reply 3 c8 '4'");
	pass_ms(REPLY_TIMEOUT_MAX);
	says(&a, "error 3 c7 reply-timeout");
	says(&b, "");
	stop_with_two();
}
END_TEST

START_TEST(worker_whose_socket_failed_gets_no_new_push)
{
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_die(&v);
	fake_request(&a, 5, 7, "2"); /* bound: waits for what becomes of it */
	ask(&b, "q", "3");	     /* not bound, and nobody else there */
	says(&b, "reply 3 c101 '3'");
	fake_register(&w, (struct fake_worker){.queue = "q"});
	ask(&b, "q", "4");
	says(&w, "registered, push p2 '4'");
	says(&v, "registered, push p1 '1'");
	fake_reply(&v, 1, "still read"); /* what had been sent before is handled */
	says(&a, "reply 3 c7 'still read'");
	fake_end_receiving(&v);
	says(&w, "push p3 '2'");
	stop_with_two();
}
END_TEST

/* The socket fails while the push is on its way to the outbox. */
START_TEST(worker_whose_socket_fails_at_a_push)
{
	limits = fake_limits;
	limits.pushes = 1;
	start_with_two();
	fake_register(&v, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 5, 7, "2");
	fake_request(&a, 7, 7, "3");
	v.out.dies_at_push = true;
	fake_reply(&v, 1, "one");
	says(&a, "reply 3 c7 'one'");
	says(&v, "registered, push p1 '1'");
	ck_assert_uint_eq(totals().waiting_requests, 2);
	/* They wait for what becomes of the connection. */
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_end_receiving(&v);
	fake_reply(&w, 2, "two");
	fake_reply(&w, 3, "three");
	says(&w, "registered, push p2 '2', push p3 '3'");
	says(&a, "reply 5 c7 'two', reply 7 c7 'three'");
	/* The same for one that need not wait. */
	fake_request(&a, 3, 7, "4");
	fake_reply(&w, 4, "four");
	w.out.dies_at_push = true;
	fake_request(&a, 3, 7, "5");
	says(&w, "push p4 '4'");
	says(&a, "reply 3 c7 'four'");
	ck_assert_uint_eq(totals().waiting_requests, 1);
	pass_ms(REPLY_TIMEOUT);
	says(&a, "error 3 c7 reply-timeout");
	stop_with_two();
}
END_TEST

START_TEST(registration_is_withdrawn_once)
{
	start_with_two();
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_end_receiving(&w);
	ck_assert_uint_eq(totals().workers, 0);
	fake_end_receiving(&w);
	ck_assert_uint_eq(totals().workers, 0);
	ask(&a, "q", "x");
	says(&a, "reply 3 c101 'x'");
	stop_with_two();
}
END_TEST

int main(void)
{
	TCase *tests = suite_begin("workers");

	tcase_add_test(tests, registration_replaces_the_one_before);
	tcase_add_test(tests, empty_names_are_names);
	tcase_add_test(tests, queues_that_are_not_configured);
	tcase_add_test(tests, registrations_can_be_looked_at);
	tcase_add_test(tests, much_of_a_registration_is_left_out);
	tcase_add_loop_test(tests, subject_names_queue_namespace_and_activity, 0,
			    ARRAY_LENGTH(matches));
	tcase_add_test(tests, the_one_with_less_to_do_then_the_one_used_longer_ago);
	tcase_add_test(tests, those_that_subscribe_come_last);
	tcase_add_test(tests, timed_out_pushes_count_until_one_is_answered);
	tcase_add_test(tests, timed_out_pushes_count_whoever_registered_first);
	tcase_add_test(tests, conversation_stays_with_its_worker);
	tcase_add_test(tests, nothing_is_bound_without_a_worker);
	tcase_add_test(tests, requester_may_be_its_own_worker);
	tcase_add_test(tests, requests_to_oneself_are_forgotten);
	tcase_add_test(tests, only_the_connection_that_was_asked_can_answer);
	tcase_add_test(tests, refusals_are_passed_on);
	tcase_add_test(tests, pushes_wait_until_the_worker_has_settled);
	tcase_add_test(tests, pushes_beyond_the_bound_wait_for_their_turn);
	tcase_add_test(tests, time_spent_waiting_counts);
	tcase_add_test(tests, timeout_makes_room_for_the_next_in_turn);
	tcase_add_test(tests, late_requests_are_not_pushed);
	tcase_add_test(tests, late_requests_find_no_worker);
	tcase_add_test(tests, push_that_does_not_fit);
	tcase_add_test(tests, waiting_payloads_have_a_bound);
	tcase_add_test(tests, waiting_payloads_give_back_what_they_held);
	tcase_add_test(tests, nobody_overtakes_those_in_turn);
	tcase_add_test(tests, waiting_one_way_messages_have_a_bound);
	tcase_add_test(tests, requests_wait_until_a_worker_registers);
	tcase_add_test(tests, still_working_extends_the_time);
	tcase_add_test(tests, still_working_never_shortens_the_time);
	tcase_add_test(tests, held_answers_do_not_time_out);
	tcase_add_test(tests, lost_worker_loses_what_was_pushed);
	tcase_add_test(tests, idle_conversation_hears_of_the_loss_once);
	tcase_add_test(tests, leaving_worker_loses_nothing);
	tcase_add_test(tests, conversations_of_a_leaving_worker_go_elsewhere_silently);
	tcase_add_test(tests, leaving_worker_may_come_back);
	tcase_add_test(tests, waiting_requests_of_a_replaced_registration_are_resolved_anew);
	tcase_add_test(tests, many_waiting_requests_are_resolved_in_steps);
	tcase_add_test(tests, conversations_keep_their_order_while_they_are_resolved_anew);
	tcase_add_test(tests, conversations_go_on_while_they_are_resolved_anew);
	tcase_add_test(tests, conversations_go_on_after_they_were_to_be_resolved_anew);
	tcase_add_test(tests, resolved_anew_and_answered_at_once);
	tcase_add_test(tests, worker_whose_socket_failed_gets_no_new_push);
	tcase_add_test(tests, worker_whose_socket_fails_at_a_push);
	tcase_add_test(tests, registration_is_withdrawn_once);
	return suite_run();
}
