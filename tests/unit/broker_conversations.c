/* Conversations of the broker: opening, messages, closing, their bounds, and `$` addresses. */
#include "broker_helpers.h"

#include <stdlib.h>
#include <string.h>

static struct fake_client a, b, c, w;

#define NOT_OPEN "conversation is not open on this connection"
#define ALREADY_OPEN                                                                               \
	"conversation id is already open on this connection; close it before reopening or use a "  \
	"fresh id"

/* --- opening and closing ----------------------------------------------------------------- */

START_TEST(ids_are_scoped_to_the_connection)
{
	start();
	join(&a);
	join(&b);
	fake_open(&a, 1, 7, "anybody");
	fake_open(&b, 1, 7, "anybody");
	says(&a, "");
	says(&b, "");
	fake_open(&a, 3, 7, "somebody else");
	says(&a, "error 3 c7 " ALREADY_OPEN);
	fake_open(&a, 3, 0, "anybody");
	fake_open(&a, 3, UINT64_MAX, "anybody");
	fake_request(&a, 5, 7, "x");
	fake_request(&a, 5, 0, "y");
	fake_request(&a, 5, UINT64_MAX, "z");
	says(&a, "reply 5 c7 'x', reply 5 c0 'y', reply 5 c18446744073709551615 'z'");
	ck_assert_uint_eq(state_of(&a).conversations, 3);
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

START_TEST(messages_to_what_is_not_open)
{
	start();
	join(&a);
	join(&b);
	fake_open(&b, 1, 8, "anybody");
	fake_request(&a, 3, 8, "x");
	fake_one_way(&a, 5, 8, "x");
	says(&a, "error 3 c8 " NOT_OPEN ", error 5 c8 " NOT_OPEN);
	fake_disconnect(&a);
	fake_disconnect(&b);
	stop();
}
END_TEST

START_TEST(closed_id_may_be_used_again)
{
	start();
	join(&a);
	fake_close(&a, 7); /* silent, of an unknown one too */
	fake_open(&a, 1, 7, "anybody");
	fake_close(&a, 7);
	fake_close(&a, 7);
	fake_request(&a, 3, 7, "x");
	says(&a, "error 3 c7 " NOT_OPEN);
	fake_open(&a, 1, 7, "anybody");
	fake_request(&a, 3, 7, "x");
	says(&a, "reply 3 c7 'x'");
	fake_disconnect(&a);
	stop();
}
END_TEST

START_TEST(too_many_conversations)
{
	limits = fake_limits;
	limits.conversations = 2;
	start();
	join(&a);
	fake_open(&a, 1, 7, "anybody");
	fake_open(&a, 1, 8, "anybody");
	fake_open(&a, 1, 9, "anybody");
	fake_request(&a, 1, 9, "x");
	says(&a, "error 1 c9 over-capacity: max_conversations_per_connection, "
		 "error 1 c9 " NOT_OPEN);
	fake_close(&a, 7);
	fake_open(&a, 1, 9, "anybody");
	fake_request(&a, 1, 9, "x");
	says(&a, "reply 1 c9 'x'");
	fake_disconnect(&a);
	stop();
}
END_TEST

START_TEST(subject_has_at_most_1024_bytes)
{
	char subject[BROKER_SUBJECT_MAX + 2];

	start();
	join(&a);
	memset(subject, 's', sizeof(subject));
	subject[BROKER_SUBJECT_MAX + 1] = '\0';
	fake_open(&a, 1, 7, subject);
	says(&a, "error 1 c7 the subject is longer than 1024 bytes");
	subject[BROKER_SUBJECT_MAX] = '\0';
	fake_open(&a, 1, 7, subject);
	fake_request(&a, 1, 7, "x");
	says(&a, "reply 1 c7 'x'");
	fake_disconnect(&a);
	stop();
}
END_TEST

/* --- what messages are answered ---------------------------------------------------------- */

START_TEST(without_worker_by_configuration)
{
	start();
	join(&a);
	fake_open(&a, 1, 7, "q");
	fake_open(&a, 1, 8, "not/the/form/of/a/queue");
	fake_request(&a, 3, 7, "x");
	fake_request(&a, 5, 8, "");
	fake_one_way(&a, 7, 7, "y");
	says(&a, "reply 3 c7 'x', reply 5 c8 ''");
	settings.no_worker = BROKER_NO_WORKER_ERROR;
	reload();
	fake_request(&a, 3, 7, "x");
	fake_request(&a, 5, 8, "");
	fake_one_way(&a, 7, 7, "y");
	says(&a, "error 3 c7 no-worker, error 5 c8 no-worker, error 7 c7 no-worker");
	settings.no_worker = BROKER_NO_WORKER_WAIT;
	reload();
	fake_request(&a, 3, 7, "x");
	fake_request(&a, 5, 8, "");
	fake_one_way(&a, 7, 7, "y");
	ck_assert_uint_eq(totals().waiting_requests, 3);
	pass_ms(REPLY_TIMEOUT - 1);
	says(&a, "");
	pass_ms(1);
	says(&a, "error 3 c7 reply-timeout, error 5 c8 reply-timeout");
	ck_assert_uint_eq(totals().waiting_requests, 0);
	fake_disconnect(&a);
	stop();
}
END_TEST

START_TEST(one_way_is_silent_when_it_succeeds)
{
	start();
	join(&a);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_one_way(&a, 3, 7, "x");
	fake_one_way(&a, 3, 7, "y");
	fake_one_way(&a, 3, 7, "z");
	says(&w, "registered, push p1 'x', push p2 'y', push p3 'z'");
	/* However it ends: too late for an error. */
	fake_reply(&w, 1, "ignored");
	fake_refuse(&w, 2, REFUSAL_BUSY, "ignored");
	pass_ms(REPLY_TIMEOUT);
	fake_disconnect(&w);
	says(&a, "");
	fake_disconnect(&a);
	stop();
}
END_TEST

START_TEST(answers_keep_the_order_of_the_requests)
{
	start();
	join(&a);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&a, 1, 8, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 5, 7, "2");
	fake_request(&a, 7, 7, "3");
	fake_request(&a, 9, 8, "4");
	fake_one_way(&a, 9, 7, "5");
	says(&w, "registered, push p1 '1', push p2 '2', push p3 '3', push p4 '4', push p5 '5'");
	fake_reply(&w, 3, "three");
	fake_refuse(&w, 2, REFUSAL_INVALID, "two");
	says(&a, "");
	fake_reply(&w, 4, "four"); /* another conversation waits for nothing */
	says(&a, "reply 9 c8 'four'");
	ck_assert_uint_eq(state_of(&a).pending_replies, 3);
	fake_reply(&w, 1, "one");
	says(&a, "reply 3 c7 'one', refused 5 c7 invalid 'two', reply 7 c7 'three'");
	ck_assert_uint_eq(state_of(&a).pending_replies, 0);
	fake_disconnect(&a);
	fake_disconnect(&w);
	stop();
}
END_TEST

START_TEST(close_forgets_requests)
{
	start();
	join(&a);
	join(&w);
	limits.pushes = 2;
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 5, 7, "2");
	fake_request(&a, 7, 7, "3");
	fake_reply(&w, 2, "held");
	fake_close(&a, 7);
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 9, 7, "4");
	fake_reply(&w, 1, "late"); /* and cannot answer a later request */
	fake_reply(&w, 3, "late");
	says(&a, "");
	fake_reply(&w, 4, "four");
	says(&a, "reply 9 c7 'four'");
	pass_ms(2 * REPLY_TIMEOUT);
	says(&a, "");
	fake_disconnect(&a);
	fake_disconnect(&w);
	stop();
}
END_TEST

/* A worker is not given work that nobody waits for any more. */
START_TEST(forgotten_requests_are_not_pushed)
{
	limits = fake_limits;
	limits.pushes = 1;
	start();
	join(&a);
	join(&b);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&a, 1, 8, "q");
	fake_open(&b, 1, 9, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 3, 7, "2");
	fake_request(&a, 3, 7, "3");
	fake_request(&a, 3, 8, "4");
	fake_request(&b, 3, 9, "5");
	says(&w, "registered, push p1 '1'");
	fake_close(&a, 7);
	says(&w, "push p2 '4'");
	fake_request(&a, 3, 8, "6");
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "7");
	fake_disconnect(&a);
	says(&w, "push p3 '5'");
	fake_reply(&w, 3, "five");
	says(&b, "reply 3 c9 'five'");
	fake_disconnect(&b);
	fake_disconnect(&w);
	stop();
}
END_TEST

START_TEST(one_way_messages_outlive_their_conversation)
{
	limits = fake_limits;
	limits.pushes = 1;
	start();
	join(&a);
	join(&b);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_one_way(&a, 3, 7, "1");
	fake_one_way(&a, 3, 7, "2");
	fake_close(&a, 7);
	ck_assert_uint_eq(totals().conversations, 0);
	ck_assert(!broker_conversations_elsewhere(broker, a.client));
	/* The second one still waits for its turn. */
	ck_assert(broker_conversations_elsewhere(broker, b.client));
	ck_assert(state_of(&a).waiting);
	fake_reply(&w, 1, "");
	says(&w, "registered, push p1 '1', push p2 '2'");
	ck_assert(!state_of(&a).waiting);
	ck_assert(!broker_conversations_elsewhere(broker, b.client));
	fake_disconnect(&a); /* what is pushed is the worker's */
	fake_still_working(&w, 2);
	ck_assert_uint_eq(totals().pending_pushes, 1);
	fake_refuse(&w, 2, REFUSAL_BUSY, "");
	ck_assert_uint_eq(totals().pending_pushes, 0);
	fake_disconnect(&b);
	fake_disconnect(&w);
	stop();
}
END_TEST

/* --- bounds ------------------------------------------------------------------------------ */

START_TEST(pending_replies_have_bounds)
{
	limits = fake_limits;
	limits.replies_per_conversation = 2;
	limits.replies = 3;
	start();
	join(&a);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&a, 1, 8, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 3, 7, "2");
	fake_request(&a, 5, 7, "too many"); /* overtakes those in front */
	says(&a, "error 5 c7 over-capacity: max_pending_replies_per_conversation");
	fake_reply(&w, 2, "held"); /* still due */
	fake_request(&a, 5, 7, "too many");
	says(&a, "error 5 c7 over-capacity: max_pending_replies_per_conversation");
	fake_request(&a, 3, 8, "3");
	fake_request(&a, 5, 8, "too many");
	says(&a, "error 5 c8 over-capacity: max_pending_replies_per_connection");
	fake_one_way(&a, 5, 8, "4"); /* needs no place */
	says(&a, "");
	fake_reply(&w, 1, "one");
	says(&a, "reply 3 c7 'one', reply 3 c7 'held'");
	fake_request(&a, 3, 7, "5");
	fake_request(&a, 3, 8, "6");
	says(&w, "registered, push p1 '1', push p2 '2', push p3 '3', push p4 '4', push p5 '5', "
		 "push p6 '6'");
	fake_disconnect(&a);
	fake_disconnect(&w);
	stop();
}
END_TEST

START_TEST(request_needs_room_for_one_more_reply)
{
	start();
	join(&a);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	a.out.max_frames = 3;
	fake_open(&a, 1, 7, ""); /* an error is queued */
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 3, 7, "2");
	fake_request(&a, 3, 7, "3");
	says(&a, "error 1 c7 " ALREADY_OPEN ", error 3 c7 over-capacity: max_outbox_frames");
	fake_written(&a);
	fake_request(&a, 3, 7, "4");
	says(&w, "registered, push p1 '1', push p2 '2', push p3 '4'");
	a.out.max_frames = FAKE_MAX_FRAMES;
	/* An empty place counts 64 bytes. */
	a.out.max_bytes = 4 * 64 - 1;
	fake_request(&a, 3, 7, "5");
	says(&a, "error 3 c7 over-capacity: max_outbox_bytes");
	a.out.max_bytes = 4 * 64;
	fake_written(&a);
	fake_request(&a, 3, 7, "5");
	says(&a, "");
	/* A held answer its bytes, and 64. */
	fake_reply(&w, 2, "12345678901234567890");
	a.out.max_bytes = 5 * 64 + 20 - 1;
	fake_request(&a, 3, 7, "6");
	says(&a, "error 3 c7 over-capacity: max_outbox_bytes");
	a.out.max_bytes = 5 * 64 + 20;
	fake_written(&a);
	fake_request(&a, 3, 7, "6");
	says(&a, "");
	fake_disconnect(&a);
	fake_disconnect(&w);
	stop();
}
END_TEST

START_TEST(reply_that_does_not_fit)
{
	start();
	join(&a);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_open(&a, 1, 8, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 5, 7, "2");
	fake_request(&a, 7, 7, "3");
	fake_request(&a, 9, 8, "4");
	says(&a, "");
	/* Judged when it arrives: it would be held by the first, and overtakes it with its error.
	 */
	a.out.max_bytes = 4 * 64 + 4;
	fake_reply(&w, 3, "1234"); /* an empty outbox, which takes one frame of any size */
	fake_reply(&w, 2, "5");
	says(&a, "error 5 c7 over-capacity: max_outbox_bytes");
	ck_assert_uint_eq(state_of(&a).pending_replies, 3);
	/* Its room is free again; what the first one leaves is sent with it. */
	fake_written(&a);
	fake_reply(&w, 1, "");
	says(&a, "reply 3 c7 '', reply 7 c7 '1234'");
	a.out.max_frames = 2;
	fake_reply(&w, 4, "5");
	says(&a, "error 9 c8 over-capacity: max_outbox_frames");
	fake_written(&a);
	/* Other errors always fit. */
	a.out.max_bytes = 1;
	fake_request(&a, 3, 7, "5");
	says(&a, "error 3 c7 over-capacity: max_outbox_bytes");
	fake_disconnect(&a);
	fake_disconnect(&w);
	stop();
}
END_TEST

START_TEST(reply_that_does_not_fit_lets_the_next_one_pass)
{
	start();
	join(&a);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 5, 7, "2");
	fake_reply(&w, 2, "two");
	a.out.max_bytes = 128 + 3 + 2;
	fake_reply(&w, 1, "one");
	says(&a, "error 3 c7 over-capacity: max_outbox_bytes, reply 5 c7 'two'");
	fake_disconnect(&a);
	fake_disconnect(&w);
	stop();
}
END_TEST

/* What is queued leaves when something else would not fit, where the socket takes it. */
START_TEST(socket_makes_room)
{
	start();
	join(&a);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "q");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 5, 7, "2");
	a.out.bytes = a.out.max_bytes = 1000;
	a.out.frames = 1;
	a.out.takes = true;
	fake_reply(&w, 1, "one");
	says(&a, "reply 3 c7 'one'");
	a.out.bytes = 1000;
	fake_request(&a, 7, 7, "3");
	says(&a, "");
	fake_reply(&w, 2, "two");
	fake_reply(&w, 3, "three");
	says(&a, "reply 5 c7 'two', reply 7 c7 'three'");
	a.out.frames = a.out.max_frames = 16;
	fake_request(&a, 9, 7, "4");
	fake_reply(&w, 4, "four");
	says(&a, "reply 9 c7 'four'");
	fake_disconnect(&a);
	fake_disconnect(&w);
	stop();
}
END_TEST

START_TEST(echo_obeys_the_bounds_too)
{
	start();
	join(&a);
	fake_open(&a, 1, 7, "q");
	a.out.max_bytes = 100;
	fake_request(&a, 3, 7,
		     "larger than an empty outbox of so few bytes as this one has, but it "
		     "is empty");
	says(&a, "reply 3 c7 'larger than an empty outbox of so few bytes as this one has, but it "
		 "is empty'");
	a.out.bytes = 30;
	fake_request(&a, 3, 7, "123456");
	fake_request(&a, 3, 7, "1234567");
	a.out.bytes = 30;
	fake_request(&a, 5, 7, "1234567");
	says(&a, "reply 3 c7 '123456', error 3 c7 over-capacity: max_outbox_bytes, "
		 "error 5 c7 over-capacity: max_outbox_bytes");
	fake_disconnect(&a);
	stop();
}
END_TEST

/* --- addresses --------------------------------------------------------------------------- */

static bool control_known(struct span name)
{
	return span_equal(name, SPAN_LITERAL("upper")) || span_equal(name, SPAN_LITERAL("none"));
}

/* The request in capitals, or no memory. */
static struct buf *control_answer(void *context, struct span name, struct span request)
{
	struct buf *answer =
		span_equal(name, SPAN_LITERAL("none")) ? NULL : buf_new(request.length);

	ck_assert_ptr_eq(context, &a);
	lock_assert_none_held();
	for (size_t i = 0; answer != NULL && i < request.length; i++)
		answer->data[i] = (uint8_t)(request.data[i] - 'a' + 'A');
	return answer;
}

static void start_with_control(void)
{
	start();
	broker_set_control(broker, &(struct broker_control){control_known, control_answer, &a});
}

START_TEST(addresses_are_for_the_control_socket)
{
	static const char *const addresses[] = {
		"$", "$connection/2", "$worker/w", "$control/upper", "$nonsense", "$connection/9"};

	start_with_control();
	join(&a);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "$worker", .identity = "w"});
	for (size_t i = 0; i < ARRAY_LENGTH(addresses); i++) {
		fake_open(&a, 1, 7, addresses[i]);
		says(&a, "error 1 c7 not-permitted");
	}
	fake_disconnect(&a);
	fake_disconnect(&w);
	stop();
}
END_TEST

START_TEST(addresses_that_nobody_has)
{
	static const char *const addresses[] = {
		"$",
		"$connection/",
		"$connection/3",
		"$connection/01",
		"$connection",
		"$connection/2x",
		"$worker/v",
		"$control/",
		"$control",
		"$control/lower",
		"$nonsense",
		"$connection/18446744073709551618",
		"$worker",
		"$queue",
		"$connection/0",
		"$connection/+2",
	};

	start_with_control();
	join_control(&a);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "$queue", .identity = "w"});
	for (size_t i = 0; i < ARRAY_LENGTH(addresses); i++) {
		fake_open(&a, 1, 7, addresses[i]);
		says(&a, "error 1 c7 not-found");
	}
	fake_request(&a, 1, 7, "x");
	says(&a, "error 1 c7 " NOT_OPEN);
	fake_disconnect(&a);
	fake_disconnect(&w);
	stop();
}
END_TEST

START_TEST(control_requests_are_answered_by_the_server)
{
	limits = fake_limits;
	limits.frame_bytes = 5;
	start_with_control();
	join_control(&a);
	join(&w);
	fake_register(&w, (struct fake_worker){.queue = "q"});
	fake_open(&a, 1, 7, "$control/upper");
	fake_open(&a, 1, 8, "$control/none");
	fake_request(&a, 3, 7, "hello");
	fake_request(&a, 5, 7, "longer");
	fake_request(&a, 7, 8, "x");
	fake_one_way(&a, 9, 7, "x");
	fake_one_way(&a, 9, 8, "x");
	says(&a, "reply 3 c7 'HELLO', error 5 c7 over-capacity: max_frame_size, "
		 "error 7 c8 the server is out of memory for this reply");
	a.out.max_bytes = 1;
	a.out.max_frames = a.out.frames + 1;
	fake_request(&a, 3, 7, "x");
	says(&a, "error 3 c7 over-capacity: max_outbox_bytes");
	fake_disconnect(&a);
	fake_disconnect(&w);
	stop();
}
END_TEST

START_TEST(connection_is_reached_by_its_id)
{
	start_with_control();
	join_control(&a);
	join(&w); /* not a worker */
	fake_open(&a, 1, 7, "$connection/2");
	fake_open(&a, 1, 8, "$connection/1");
	fake_request(&a, 3, 7, "x");
	fake_request(&a, 5, 7, "y");
	says(&w, "push p1 'x', push p2 'y'");
	fake_reply(&w, 1, "answer");
	says(&a, "reply 3 c7 'answer'");
	fake_request(&a, 7, 8, "to myself");
	says(&a, "push p3 'to myself'");
	fake_reply(&a, 3, "fine");
	says(&a, "reply 7 c8 'fine'");
	fake_end_receiving(&w);
	says(&a, "error 5 c7 worker-lost");
	fake_request(&a, 3, 7, "x");
	fake_one_way(&a, 5, 7, "x");
	says(&a, "error 3 c7 not-found, error 5 c7 not-found");
	fake_end_conversations(&w);
	fake_gone(&w);
	fake_request(&a, 3, 7, "x");
	says(&a, "error 3 c7 not-found");
	fake_disconnect(&a);
	stop();
}
END_TEST

START_TEST(worker_is_reached_by_its_identity)
{
	start_with_control();
	join_control(&a);
	join(&b);
	join(&c);
	fake_register(&b, (struct fake_worker){.queue = "q", .identity = "twin"});
	fake_register(&c, (struct fake_worker){.queue = "r", .identity = "twin"});
	fake_open(&a, 1, 7, "$worker/twin");
	fake_open(&a, 1, 8, "$worker/twin");
	fake_request(&a, 3, 7, "x");
	fake_request(&a, 3, 8, "y"); /* the one with less to do */
	says(&b, "registered, push p1 'x'");
	says(&c, "registered, push p2 'y'");
	fake_reply(&b, 1, "done");
	says(&a, "reply 3 c7 'done'");
	fake_disconnect(&b);
	/* Bound to it, and nothing was pending: told once; then the other one has it. */
	fake_request(&a, 3, 7, "z");
	says(&a, "error 3 c7 worker-lost");
	fake_request(&a, 3, 7, "z");
	says(&c, "push p3 'z'");
	settings.no_worker = BROKER_NO_WORKER_WAIT;
	reload();
	fake_disconnect(&c);
	says(&a, "error 3 c8 worker-lost, error 3 c7 worker-lost");
	fake_request(&a, 3, 7, "z");
	fake_open(&a, 3, 9, "$worker/twin");
	says(&a, "error 3 c7 not-found, error 3 c9 not-found");
	/* Nothing pending, and nobody else has the address: it is not found. */
	join(&b);
	fake_register(&b, (struct fake_worker){.queue = "q", .identity = "twin"});
	fake_request(&a, 3, 7, "z");
	fake_reply(&b, 4, "done");
	fake_disconnect(&b);
	fake_request(&a, 3, 7, "z");
	says(&a, "reply 3 c7 'done', error 3 c7 not-found");
	fake_disconnect(&a);
	stop();
}
END_TEST

/* What waits for its turn at a connection, by its own address. _i: it ends, or says that it wants
 * no pushes, without ever having been a worker. */
START_TEST(requests_in_turn_at_an_address)
{
	start_with_control();
	limits = fake_limits;
	limits.pushes = 1;
	join_control(&a);
	join(&w);
	fake_open(&a, 1, 7, "$connection/2");
	fake_request(&a, 3, 7, "1");
	fake_request(&a, 5, 7, "2");
	if (_i == 0) {
		fake_disconnect(&w);
		says(&a, "error 3 c7 worker-lost, error 5 c7 not-found");
	} else {
		fake_register(&w, (struct fake_worker){.queue = "q", .leaving = true});
		fake_reply(&w, 1, "");
		says(&a, "reply 3 c7 '', error 5 c7 not-found");
		says(&w, "push p1 '1', registered");
		fake_disconnect(&w);
	}
	fake_disconnect(&a);
	stop();
}
END_TEST

int main(void)
{
	TCase *tests = suite_begin("conversations");

	tcase_add_test(tests, ids_are_scoped_to_the_connection);
	tcase_add_test(tests, messages_to_what_is_not_open);
	tcase_add_test(tests, closed_id_may_be_used_again);
	tcase_add_test(tests, too_many_conversations);
	tcase_add_test(tests, subject_has_at_most_1024_bytes);
	tcase_add_test(tests, without_worker_by_configuration);
	tcase_add_test(tests, one_way_is_silent_when_it_succeeds);
	tcase_add_test(tests, answers_keep_the_order_of_the_requests);
	tcase_add_test(tests, close_forgets_requests);
	tcase_add_test(tests, forgotten_requests_are_not_pushed);
	tcase_add_test(tests, one_way_messages_outlive_their_conversation);
	tcase_add_test(tests, pending_replies_have_bounds);
	tcase_add_test(tests, request_needs_room_for_one_more_reply);
	tcase_add_test(tests, reply_that_does_not_fit);
	tcase_add_test(tests, reply_that_does_not_fit_lets_the_next_one_pass);
	tcase_add_test(tests, socket_makes_room);
	tcase_add_test(tests, echo_obeys_the_bounds_too);
	tcase_add_test(tests, addresses_are_for_the_control_socket);
	tcase_add_test(tests, addresses_that_nobody_has);
	tcase_add_test(tests, control_requests_are_answered_by_the_server);
	tcase_add_test(tests, connection_is_reached_by_its_id);
	tcase_add_test(tests, worker_is_reached_by_its_identity);
	tcase_add_loop_test(tests, requests_in_turn_at_an_address, 0, 2);
	return suite_run();
}
