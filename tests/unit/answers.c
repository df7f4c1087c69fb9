/*
 * Answers that wait for a commit: their order, what waits for them and what does not, how many
 * there may be, and how a connection ends that is owed some. The committer is the test.
 */
#include "fake_broker.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define V1_0 WIRE_VERSION_1_0
#define V1_1 WIRE_VERSION_1_1
#define V1_2 WIRE_VERSION_1_2

static int peer;
static struct conn *conn;
static struct input input;

static void serve(void)
{
	conn = fake_serve(&peer);
}

static void send_input(void)
{
	input_send(&input, peer);
}

#define EXPECT(count, text) ck_assert_str_eq(received(peer, count, V1_2), text)

/* The peer goes away, and the session with it. */
static void leave(void)
{
	(void)close(peer);
	fake_await_end();
}

/* --- order ----------------------------------------------------------------------------------- */

START_TEST(nothing_waits_while_nothing_is_pending)
{
	serve();
	input_publish(&input, 1, "plain");
	input_ping(&input);
	input_subscribe(&input, 2, "plain");
	send_input();
	EXPECT(3, "PublishAck 1 m1, Pong, SubscribeAck 2");
	leave();
}
END_TEST

/* The reply shows that the session went on; a Pong that did not wait would come before it. */
START_TEST(pong_waits_for_its_turn_and_replies_do_not)
{
	serve();
	input_publish(&input, 1, "durable");
	input_ping(&input);
	input_request(&input, 2);
	send_input();
	EXPECT(1, "ConversationMessage 2 01");
	fake_commit(1);
	EXPECT(2, "PublishAck 1 m1, Pong");
	leave();
}
END_TEST

START_TEST(refusals_wait_for_their_turn)
{
	serve();
	input_publish(&input, 1, "durable");
	input_publish(&input, 1, "nowhere");
	input_subscribe(&input, 1, "nowhere");
	input_request(&input, 2);
	send_input();
	EXPECT(1, "ConversationMessage 2 01");
	fake_commit(1);
	EXPECT(3, "PublishAck 1 m1, PublishError 1 channel 'nowhere' is not configured, "
		  "SubscribeError 1 channel 'nowhere' is not configured");
	leave();
}
END_TEST

START_TEST(answers_alternate_with_commits)
{
	serve();
	for (int i = 0; i < 3; i++) {
		input_publish(&input, 1, "durable");
		for (int j = 0; j < 20; j++)
			input_ping(&input);
	}
	input_request(&input, 2);
	send_input();
	EXPECT(1, "ConversationMessage 2 01");
	for (int i = 0; i < 3; i++) {
		char expected[512] = "PublishAck 1 m0";

		fake_commit(1);
		expected[14] = (char)('1' + i);
		for (int j = 0; j < 20; j++)
			(void)strcat(expected, ", Pong");
		EXPECT(21, expected);
	}
	leave();
}
END_TEST

/* What is carried out only when the answers in front of it are in the outbox. */
static const struct {
	const char *log, *answer;
} blocked[] = {
	{"committed, publish plain 1", "PublishAck 1 m2"},
	{"committed, subscribe plain", "SubscribeAck 1"},
	{"committed, register", "WorkerRegisterAck"},
	{"committed", "ConnectAck 00010000"},
};

START_TEST(what_must_not_overtake_a_commit_waits_for_it)
{
	struct wire_frame worker = {.header = {.type = WIRE_WORKER_REGISTER}};
	char expected[128] = "PublishAck 1 m1, ";

	serve();
	input_publish(&input, 1, "durable");
	if (_i == 0)
		input_publish(&input, 1, "plain");
	else if (_i == 1)
		input_subscribe(&input, 1, "plain");
	else if (_i == 2)
		input_frame(&input, &worker);
	else
		input_connect(&input, V1_2);
	send_input();
	fake_await_commit_wait();
	ck_assert_str_eq(fake_log(), "");
	fake_commit(1);
	EXPECT(2, strcat(expected, blocked[_i].answer));
	ck_assert_str_eq(fake_log(), blocked[_i].log);
	leave();
}
END_TEST

START_TEST(durable_frames_do_not_wait_for_each_other)
{
	struct wire_frame subscribe = {
		.header = {.type = WIRE_SUBSCRIBE, .flags = WIRE_SUBSCRIBE_DURABLE, .stream = 2},
		.u.subscribe = {.channel = SPAN_LITERAL("durable"),
				.max_in_flight = 1,
				.durable = true,
				.consumer = SPAN_LITERAL("w"),
				.start = 2,
				.value = 9}};

	serve();
	input_publish(&input, 1, "durable");
	input_frame(&input, &subscribe);
	input_publish(&input, 1, "durable");
	input_request(&input, 3);
	send_input();
	EXPECT(1, "ConversationMessage 3 01");
	ck_assert_str_eq(fake_log(), "subscribe durable w 2 9");
	fake_commit(3);
	EXPECT(3, "PublishAck 1 m1, SubscribeAck 2, PublishAck 1 m2");
	leave();
}
END_TEST

/* The committer may learn of a failure before it knows of what came first. */
START_TEST(places_are_filled_in_any_order)
{
	const struct sink_ops *ops = &conn_sink_ops;
	struct message run[2] = {{.stream = 1, .id = 8}, {.stream = 2, .id = 9}};
	struct sink_place *places[3];
	struct flush_set set;

	conn = fake_connect(&peer);
	flush_set_init(&set);
	places[0] = ops->place(&conn->sink, 2);
	places[1] = ops->place(&conn->sink, 0);
	places[2] = ops->place(&conn->sink, 1);
	answers_add_frame(conn, &(struct wire_frame){.header = {.type = WIRE_PONG}});
	ops->fill_subscribe(&conn->sink, places[2], 3, 1, NULL, "not-so: because", &set);
	ops->fill_publishes(&conn->sink, places[1], run, 1, &set);
	flush_set_run(&set);
	ck_assert(answers_are_pending(conn));
	ck_assert_uint_eq(conn->outbox.frames, 0);
	ops->fill_publishes(&conn->sink, places[0], run, 2, &set);
	ck_assert(!answers_are_pending(conn));
	flush_set_run(&set);
	EXPECT(4, "PublishAck 1 m8, PublishAck 2 m9, SubscribeError 3 not-so: because, Pong");
	ck_assert_uint_eq(conn->outbox.answers.due, 0);
	ck_assert_uint_eq(conn->outbox.answers.bytes, 0);
	fake_disconnect(conn);
	(void)close(peer);
}
END_TEST

/* Whether the publisher itself takes a message is part of the answer in front of it. */
START_TEST(answers_stand_in_front_of_own_deliveries)
{
	static uint8_t payload[WIRE_REPLY_ENVELOPE_HEAD + 1];
	const struct sink_ops *ops = &conn_sink_ops;
	struct message run[4];
	struct delivery delivery = {.stream = 5, .sequence = 1, .answer = true};
	struct flush_set set;

	wire_put_reply_envelope_head(payload, 1);
	for (size_t i = 0; i < ARRAY_LENGTH(run); i++)
		run[i] = (struct message){.envelope = {payload, sizeof(payload)},
					  .stream = 1,
					  .id = 7 + i,
					  .sequence = 70 + i};
	run[1].duplicate = true;
	run[2].refused = "store-full: no space";
	conn = fake_connect(&peer);
	conn->outbox.version = V1_1;
	flush_set_init(&set);
	delivery.place = ops->place(&conn->sink, _i == 0 ? 4 : 0);
	answers_add_frame(conn, &(struct wire_frame){.header = {.type = WIRE_PONG}});
	ops->deliver(&conn->sink, &delivery, run, 4, &set);
	flush_set_run(&set);
	if (_i == 0)
		ck_assert_str_eq(received(peer, 7, V1_1),
				 "PublishAck 1 03 m7 p70, Deliver 5 #1, PublishAck 1 82 m8 p71, "
				 "PublishError 1 store-full: no space, PublishAck 1 03 m10 p73, "
				 "Deliver 5 #2, Pong");
	else
		ck_assert_str_eq(received(peer, 3, V1_1), "Deliver 5 #1, Deliver 5 #2, Pong");
	ck_assert_uint_eq(conn->outbox.answers.due, 0);
	ck_assert_uint_eq(conn->outbox.answers.bytes, 0);
	fake_disconnect(conn);
	(void)close(peer);
}
END_TEST

START_TEST(positions_are_told_from_1_1_on)
{
	serve();
	input_connect(&input, V1_1);
	input_publish(&input, 1, "durable");
	input_publish(&input, 3, "durable"); /* known */
	input_publish(&input, 4, "durable"); /* refused */
	send_input();
	fake_commit(1);
	ck_assert_str_eq(received(peer, 4, V1_1),
			 "ConnectAck 00010000, PublishAck 1 02 m1 p101, PublishAck 3 82 m2 p102, "
			 "PublishError 4 store-full: no space");
	input_connect(&input, V1_0);
	input_publish(&input, 3, "durable");
	input_publish(&input, 4, "durable");
	send_input();
	fake_commit(1);
	ck_assert_str_eq(received(peer, 3, V1_0), "ConnectAck 00010000, PublishAck 3 80 m4, "
						  "PublishError 4 store-full: no space");
	leave();
}
END_TEST

START_TEST(quiet_publishers_hear_nothing_and_keep_the_order)
{
	serve();
	input_publish(&input, 1, "quiet");
	input_ping(&input);
	input_request(&input, 2);
	send_input();
	EXPECT(1, "ConversationMessage 2 01");
	fake_commit(1);
	EXPECT(1, "Pong");
	leave();
}
END_TEST

/* --- bounds ---------------------------------------------------------------------------------- */

START_TEST(places_count_as_frames)
{
	fake.limits.max_outbox_frames = 16;
	serve();
	for (int i = 0; i < 20; i++)
		input_publish(&input, 1, "durable");
	send_input();
	fake_await_full(conn);
	ck_assert_uint_eq(conn->outbox.answers.due, 16);
	fake_commit(fake_uncommitted());
	ck_assert_str_eq(received(peer, 16, V1_0),
			 "PublishAck 1 m1, PublishAck 1 m2, PublishAck 1 m3, PublishAck 1 m4, "
			 "PublishAck 1 m5, PublishAck 1 m6, PublishAck 1 m7, PublishAck 1 m8, "
			 "PublishAck 1 m9, PublishAck 1 m10, PublishAck 1 m11, PublishAck 1 m12, "
			 "PublishAck 1 m13, PublishAck 1 m14, PublishAck 1 m15, PublishAck 1 m16");
	(void)shutdown(peer, SHUT_WR);
	fake_await_commit_wait();
	fake_commit(fake_uncommitted());
	EXPECT(5, "PublishAck 1 m17, PublishAck 1 m18, PublishAck 1 m19, PublishAck 1 m20, end");
	leave();
}
END_TEST

/* 1,024 empty places are 64 KiB. */
START_TEST(places_count_as_bytes)
{
	fake.limits.max_outbox_bytes = 65536;
	fake.owe = true;
	serve();
	for (int i = 0; i < 1100; i++) {
		input_answer(&input, WIRE_ACCEPT, 0x80, "");
		if (input.length > 4096)
			send_input();
	}
	send_input();
	fake_await_full(conn);
	ck_assert_uint_eq(fake_uncommitted(), 1024);
	ck_assert_uint_eq(conn->outbox.answers.bytes, 65536);
	fake_commit(1024);
	fake_commit(76);
	for (int i = 0; i < 1100; i++)
		EXPECT(1, "Accept 5 80 ''");
	ck_assert_uint_eq(conn->outbox.answers.due, 0);
	ck_assert_uint_eq(conn->outbox.answers.bytes, 0);
	leave();
}
END_TEST

/* Nothing is written for them that would wake the session. */
START_TEST(places_without_answers_count_until_they_are_given_back)
{
	fake.limits.max_outbox_bytes = 65536;
	fake.batch = 1;
	serve();
	for (int i = 0; i < 1100; i++) {
		input_publish(&input, 1, "quiet");
		if (input.length > 4096)
			send_input();
	}
	send_input();
	fake_await_full(conn);
	ck_assert_uint_eq(fake_uncommitted(), 1024);
	fake_commit(1100);
	leave();
}
END_TEST

START_TEST(answers_behind_a_place_count_as_well)
{
	fake.limits.max_outbox_frames = 16;
	serve();
	input_publish(&input, 1, "durable");
	for (int i = 0; i < 100; i++)
		input_ping(&input);
	input_request(&input, 2);
	send_input();
	fake_await_full(conn);
	ck_assert_uint_eq(conn->outbox.answers.due, 16);
	fake_commit(1);
	EXPECT(1, "PublishAck 1 m1");
	for (int i = 0; i < 100; i++)
		EXPECT(1, "Pong");
	EXPECT(1, "ConversationMessage 2 01");
	leave();
}
END_TEST

/* --- room at the committer ------------------------------------------------------------------- */

START_TEST(what_finds_no_share_waits_for_it)
{
	serve();
	fake_set_share(1);
	for (int i = 0; i < 3; i++)
		input_publish(&input, 1, "durable");
	send_input();
	fake_await_share_wait();
	fake_commit(1);
	EXPECT(1, "PublishAck 1 m1");
	fake_set_share(2);
	fake_commit(1);
	EXPECT(2, "PublishAck 1 m2, PublishAck 1 m3");
	leave();
}
END_TEST

/* Its answer would be taken for that of a publish that was left out. */
START_TEST(nothing_is_answered_behind_what_was_left_out)
{
	serve();
	fake_set_share(1);
	for (int i = 0; i < 3; i++)
		input_publish(&input, 1, "durable");
	if (_i == 0)
		input_publish(&input, 1, "plain");
	else if (_i == 1)
		input_publish(&input, 1, "nowhere");
	else
		input_ping(&input);
	send_input();
	fake_await_share_wait();
	ck_assert(net_close_connection(net, conn->id));
	fake_commit(1);
	EXPECT(3, "PublishAck 1 m1, Disconnect, end");
	leave();
	ck_assert_ptr_null(strstr(fake_log(), "plain"));
}
END_TEST

/* --- how it ends ----------------------------------------------------------------------------- */

START_TEST(half_close_waits_for_commits)
{
	serve();
	input_publish(&input, 1, "durable");
	send_input();
	(void)shutdown(peer, SHUT_WR);
	fake_await_commit_wait();
	fake_commit(1);
	EXPECT(2, "PublishAck 1 m1, end");
	fake_await_end();
	ck_assert_str_eq(fake_log(), "end after answers, committed, end subscriptions");
	(void)close(peer);
}
END_TEST

START_TEST(disconnect_waits_for_commits)
{
	serve();
	input_publish(&input, 1, "durable");
	input_frame(&input, &(struct wire_frame){.header = {.type = WIRE_DISCONNECT}});
	input_ping(&input);
	send_input();
	fake_await_commit_wait();
	ck_assert_str_eq(fake_log(), "end subscriptions");
	fake_commit(1);
	EXPECT(2, "PublishAck 1 m1, end");
	leave();
}
END_TEST

START_TEST(error_frame_comes_behind_commits_and_confirmations)
{
	fake.owe = true;
	serve();
	if (_i == 0)
		input_publish(&input, 1, "durable");
	input_answer(&input, WIRE_ACCEPT, 0x80, "1");
	input_publish(&input, 0, "durable");
	send_input();
	fake_await_commit_wait();
	fake_commit(fake_uncommitted());
	if (_i == 0)
		EXPECT(1, "PublishAck 1 m1");
	EXPECT(3, "Accept 5 80 '1', PublishError 1 Publish frame: it must be on a stream above 0, "
		  "and is on stream 0, end");
	leave();
}
END_TEST

START_TEST(close_by_the_server_waits_for_commits)
{
	fake.owe = true;
	serve();
	input_publish(&input, 1, "durable");
	input_answer(&input, WIRE_ACCEPT, 0x80, "1");
	input_request(&input, 2);
	send_input();
	EXPECT(1, "ConversationMessage 2 01");
	ck_assert(net_close_connection(net, conn->id));
	fake_await_commit_wait();
	fake_commit(2);
	EXPECT(4, "PublishAck 1 m1, Accept 5 80 '1', Disconnect, end");
	leave();
}
END_TEST

/* The fake broker refuses to free a client before all of it is committed. */
START_TEST(reset_is_handled_all_the_same)
{
	serve();
	for (int i = 0; i < 3; i++) {
		input_publish(&input, 1, "durable");
		input_ping(&input);
	}
	input_request(&input, 2);
	send_input();
	EXPECT(1, "ConversationMessage 2 01");
	input_publish(&input, 1, "durable");
	input_publish(&input, 1, "plain");
	send_input();
	(void)close(peer);
	fake_commit(4);
	fake_await_end();
	ck_assert_ptr_nonnull(strstr(fake_log(), "publish plain 1"));
}
END_TEST

START_TEST(draining_waits_for_what_is_owed)
{
	serve();
	input_publish(&input, 1, "durable");
	input_request(&input, 2);
	send_input();
	EXPECT(1, "ConversationMessage 2 01");
	fake_set_outstanding(1);
	net_drain(net, 200, 0);
	ck_assert_int_eq(atomic_load(&conn->close_reason), CLOSE_NONE); /* a commit */
	fake_commit(1);
	EXPECT(1, "PublishAck 1 m1");
	net_drain(net, 200, 0);
	ck_assert_int_eq(atomic_load(&conn->close_reason), CLOSE_NONE); /* a delivery */
	fake_set_outstanding(0);
	net_drain(net, 60000, 0);
	EXPECT(2, "Disconnect, end");
	leave();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("answers");
	TCase *order = tcase_create("order");
	TCase *bounds = tcase_create("bounds");
	TCase *ends = tcase_create("ends");
	SRunner *runner;
	int failed;

	tcase_add_checked_fixture(order, fake_begin, fake_end);
	tcase_add_test(order, nothing_waits_while_nothing_is_pending);
	tcase_add_test(order, pong_waits_for_its_turn_and_replies_do_not);
	tcase_add_test(order, refusals_wait_for_their_turn);
	tcase_add_test(order, answers_alternate_with_commits);
	tcase_add_loop_test(order, what_must_not_overtake_a_commit_waits_for_it, 0,
			    ARRAY_LENGTH(blocked));
	tcase_add_test(order, durable_frames_do_not_wait_for_each_other);
	tcase_add_test(order, places_are_filled_in_any_order);
	tcase_add_loop_test(order, answers_stand_in_front_of_own_deliveries, 0, 2);
	tcase_add_test(order, positions_are_told_from_1_1_on);
	tcase_add_test(order, quiet_publishers_hear_nothing_and_keep_the_order);
	suite_add_tcase(suite, order);

	tcase_add_checked_fixture(bounds, fake_begin, fake_end);
	tcase_add_test(bounds, places_count_as_frames);
	tcase_add_test(bounds, places_count_as_bytes);
	tcase_add_test(bounds, places_without_answers_count_until_they_are_given_back);
	tcase_add_test(bounds, answers_behind_a_place_count_as_well);
	tcase_add_test(bounds, what_finds_no_share_waits_for_it);
	tcase_add_loop_test(bounds, nothing_is_answered_behind_what_was_left_out, 0, 3);
	suite_add_tcase(suite, bounds);

	tcase_add_checked_fixture(ends, fake_begin, fake_end);
	tcase_add_test(ends, half_close_waits_for_commits);
	tcase_add_test(ends, disconnect_waits_for_commits);
	tcase_add_loop_test(ends, error_frame_comes_behind_commits_and_confirmations, 0, 2);
	tcase_add_test(ends, close_by_the_server_waits_for_commits);
	tcase_add_test(ends, reset_is_handled_all_the_same);
	tcase_add_test(ends, draining_waits_for_what_is_owed);
	suite_add_tcase(suite, ends);

	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
