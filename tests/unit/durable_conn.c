/*
 * A connection's durable subscriptions: messages at the pace at which the peer takes them, what its
 * answers and Subscribes become, confirmations. The broker is the test.
 */
#include "fake_broker.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define V1_1 WIRE_VERSION_1_1
#define V1_2 WIRE_VERSION_1_2

static int peer;
static struct conn *conn;
static struct input input;

#define EXPECT(count, text) ck_assert_str_eq(received(peer, count, V1_2), text)

/* --- pace ------------------------------------------------------------------------------------ */

static void connect_with(size_t messages, size_t bytes)
{
	conn = fake_connect(&peer);
	fake.stored = messages;
	fake.stored_bytes = bytes;
}

static void disconnect(void)
{
	fake_disconnect(conn);
	(void)close(peer);
}

/* What is queued at once, and not flushed; SIZE: of an envelope, which BUF holds, if any. */
static size_t offer_from(struct buf *buf, size_t size, size_t count)
{
	static uint8_t payload[1 << 20];
	struct stored messages[64];
	struct flush_set set;
	size_t taken;

	ck_assert_uint_le(count, ARRAY_LENGTH(messages));
	for (size_t i = 0; i < count; i++)
		messages[i] = (struct stored){.envelope = {buf != NULL ? buf->data : payload, size},
					      .buf = buf,
					      .sequence = i + 1};
	flush_set_init(&set);
	taken = conn_sink_ops.deliver_stored(&conn->sink, 5, 1, messages, count, &set);
	/* They stay where they are: the set is let go of without being run. */
	for (size_t i = 0; i < set.count; i++)
		set.sinks[i]->ops->release(set.sinks[i]);
	return taken;
}

static size_t offer(size_t size, size_t count)
{
	return offer_from(NULL, size, count);
}

START_TEST(half_of_the_frames_are_for_others)
{
	fake.limits.max_outbox_frames = 16;
	connect_with(0, 0);
	ck_assert_uint_eq(offer(100, 20), 8);
	ck_assert_uint_eq(offer(100, 20), 0);
	ck_assert_uint_eq(conn->outbox.frames, 8);
	disconnect();
}
END_TEST

START_TEST(half_of_the_bytes_are_for_others)
{
	fake.limits.max_outbox_bytes = 65536;
	connect_with(0, 0);
	ck_assert_uint_eq(offer(4096 - WIRE_DELIVER_HEAD, 20), 8);
	disconnect();
}
END_TEST

START_TEST(paced_messages_take_half_a_mebibyte_at_most)
{
	connect_with(0, 0);
	ck_assert_uint_eq(offer(65536 - WIRE_DELIVER_HEAD, 64), 8);
	disconnect();
}
END_TEST

START_TEST(an_empty_queue_takes_any_message_and_another_none_beyond_its_bound)
{
	fake.limits.max_outbox_bytes = 65536;
	connect_with(0, 0);
	ck_assert_uint_eq(offer(1 << 20, 1), 1);
	ck_assert_uint_eq(offer(100, 1), 0);
	disconnect();
	connect_with(0, 0);
	ck_assert_uint_eq(offer(100, 1), 1);
	ck_assert_uint_eq(offer(65500, 1), 0);
	ck_assert_uint_eq(offer(100, 1), 1);
	disconnect();
}
END_TEST

/* The peer reads nothing at first; later everything comes, in order, by the flusher's hand. */
static void expect_all(size_t messages, struct wire_version version)
{
	for (size_t i = 1; i <= messages; i++) {
		char expected[96];
		bool origin = wire_version_compare(version, V1_2) >= 0;
		unsigned flags = (i % 3 == 0 ? 0x80 : 0) | (origin ? 0x01 : 0);
		int length = snprintf(expected, sizeof(expected), "Deliver 5");

		if (flags != 0)
			length += snprintf(expected + length, 10, " %02x", flags);
		length += snprintf(expected + length, 24, " #%zu", i);
		if (origin)
			(void)snprintf(expected + length, 30, " 1234/m%zu", 1000 + i);
		ck_assert_str_eq(received(peer, 1, version), expected);
	}
}

START_TEST(everything_comes_at_the_pace_of_the_peer)
{
	struct wire_version version = _i == 0 ? V1_1 : V1_2;

	if (_i == 2)
		fake.limits.max_outbox_bytes = 65536;
	connect_with(10000, 310);
	conn->outbox.version = version;
	fake_deliver(conn);
	ck_assert_uint_gt(fake_taken(), 0);
	ck_assert_uint_lt(fake_taken(), fake.stored);
	ck_assert_uint_le(conn->outbox.bytes, 512 * 1024 + 400);
	expect_all(10000, version);
	fake_await_rooms(1);
	ck_assert_uint_eq(fake_taken(), fake.stored);
	disconnect();
}
END_TEST

START_TEST(large_messages_come_by_reference)
{
	connect_with(200, 40000);
	fake.stored_buf = buf_new(40000);
	ck_assert_ptr_nonnull(fake.stored_buf);
	fake_deliver(conn);
	ck_assert_uint_gt(fake.stored_buf->references, 1);
	expect_all(200, V1_1);
	disconnect();
	ck_assert_uint_eq(fake.stored_buf->references, 1);
}
END_TEST

/* A reference would keep all of the buffer, and be charged for a part. */
START_TEST(a_part_of_a_large_buffer_is_copied)
{
	struct buf *buf = buf_new(100000);

	ck_assert_ptr_nonnull(buf);
	connect_with(0, 0);
	ck_assert_uint_eq(offer_from(buf, 40000, 2), 2);
	ck_assert_uint_eq(buf->references, 1);
	ck_assert_uint_eq(offer_from(buf, 60000, 2), 2);
	ck_assert_uint_eq(buf->references, 3);
	disconnect();
	ck_assert_uint_eq(buf->references, 1);
	buf_unref(&buf);
}
END_TEST

START_TEST(who_takes_all_is_not_asked_for_room)
{
	connect_with(3, 310);
	fake_deliver(conn);
	expect_all(3, V1_1);
	ck_assert_uint_eq(fake_rooms(), 0);
	disconnect();
}
END_TEST

START_TEST(a_dead_connection_takes_none_and_the_broker_hears_of_it)
{
	connect_with(10000, 310);
	(void)close(peer);
	fake_deliver(conn);
	fake_await_rooms(1);
	ck_assert(conn->sink.dead);
	ck_assert_uint_lt(fake_taken(), fake.stored);
	ck_assert_uint_eq(offer(310, 1), 0);
	fake_disconnect(conn);
	ck_assert_uint_eq(fake_rooms(), 1);
}
END_TEST

/* --- frames ---------------------------------------------------------------------------------- */

static void serve(void)
{
	conn = fake_serve(&peer);
}

static void leave(void)
{
	(void)close(peer);
	fake_await_end();
}

START_TEST(answers_reach_the_broker_behind_what_was_published)
{
	serve();
	input_publish(&input, 1, "plain");
	input_answer(&input, WIRE_ACCEPT, 0, "7");
	input_answer(&input, WIRE_ACCEPT, 0x80, "..9");
	input_answer(&input, WIRE_DEFER, 0x40, "8");
	input_answer(&input, WIRE_REJECT, 0xff, "x");
	input_send(&input, peer);
	EXPECT(3, "PublishAck 1 m1, Reject 5 80 '..9' stale: there is no such delivery, "
		  "Reject 5 80 'x' stale: there is no such delivery");
	ck_assert_str_eq(fake_log(), "publish plain 1, accept 7, accept ..9 confirm, "
				     "defer 8 working, reject x working confirm bad");
	leave();
}
END_TEST

START_TEST(confirmations_repeat_what_was_asked_for)
{
	fake.owe = true;
	serve();
	input_answer(&input, WIRE_ACCEPT, 0x80, "..9");
	input_answer(&input, WIRE_DEFER, 0xc0, "8");
	input_answer(&input, WIRE_REJECT, 0x80, "7");
	input_request(&input, 2);
	input_send(&input, peer);
	EXPECT(1, "ConversationMessage 2 01");
	fake_commit(3);
	EXPECT(3, "Accept 5 80 '..9', Defer 5 c0 '8', Reject 5 80 '7'");
	leave();
}
END_TEST

START_TEST(answers_are_ignored_without_a_store)
{
	fake.no_store = true;
	serve();
	input_connect(&input, V1_2);
	input_answer(&input, WIRE_ACCEPT, 0x80, "7");
	input_ping(&input);
	input_send(&input, peer);
	EXPECT(2, "ConnectAck 00000000, Pong");
	ck_assert_str_eq(fake_log(), "");
	leave();
}
END_TEST

START_TEST(answers_are_ignored_before_the_right_token)
{
	fake.token = "secret";
	serve();
	input_answer(&input, WIRE_ACCEPT, 0x80, "7");
	input_connect(&input, V1_2);
	input_answer(&input, WIRE_ACCEPT, 0x80, "8");
	input_send(&input, peer);
	EXPECT(2, "ConnectAck 00010000, Reject 5 80 '8' stale: there is no such delivery");
	ck_assert_str_eq(fake_log(), "accept 8 confirm");
	leave();
}
END_TEST

static char long_name[257];

static const struct {
	const char *channel, *consumer;
	uint8_t start;
	bool no_store;
	const char *error; /* NULL: it is accepted */
} subscribes[] = {
	{"durable", "", 0, false, NULL},
	{"durable", "a-Z_0.9", 3, false, NULL},
	{"nowhere", "w", 0, false, "channel 'nowhere' is not configured"},
	{"plain", "w", 0, true,
	 "not durable: this server has no state_dir; subscribe without flag 0x80"},
	{"plain", "w", 0, false,
	 "not durable: channel 'plain' keeps no messages; subscribe without flag 0x80"},
	{"durable", "w", 4, false, "the start must be 0 (new), 1 (all), 2 (sequence) or 3 (time)"},
	{"durable", "a b", 0, false,
	 "the consumer's name must be 1 to 255 bytes of A-Z a-z 0-9 . _ -"},
	{"durable", long_name, 0, false,
	 "the consumer's name must be 1 to 255 bytes of A-Z a-z 0-9 . _ -"},
	{"durable", long_name + 1, 0, false, NULL},
};

START_TEST(durable_subscribes_are_checked)
{
	char expected[256] = "SubscribeAck 4";

	memset(long_name, 'n', sizeof(long_name) - 1);
	fake.no_store = subscribes[_i].no_store;
	serve();
	input_frame(&input, &(struct wire_frame){
				    .header = {.type = WIRE_SUBSCRIBE,
					       .flags = WIRE_SUBSCRIBE_DURABLE,
					       .stream = 4},
				    .u.subscribe = {.channel = span_of(subscribes[_i].channel),
						    .max_in_flight = 1,
						    .durable = true,
						    .consumer = span_of(subscribes[_i].consumer),
						    .start = subscribes[_i].start}});
	input_send(&input, peer);
	if (subscribes[_i].error == NULL)
		fake_commit(1);
	else
		(void)snprintf(expected, sizeof(expected), "SubscribeError 4 %s",
			       subscribes[_i].error);
	EXPECT(1, expected);
	leave();
}
END_TEST

START_TEST(a_stream_with_a_durable_subscription_takes_no_plain_one)
{
	serve();
	input_subscribe(&input, 99, "durable"); /* that is such a stream */
	input_subscribe(&input, 98, "durable");
	input_send(&input, peer);
	EXPECT(2, "SubscribeError 99 the stream carries a durable subscription; use another "
		  "stream, SubscribeAck 98");
	leave();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("durable_conn");
	TCase *pace = tcase_create("pace");
	TCase *frames = tcase_create("frames");
	SRunner *runner;
	int failed;

	tcase_add_checked_fixture(pace, fake_begin, fake_end);
	tcase_add_test(pace, half_of_the_frames_are_for_others);
	tcase_add_test(pace, half_of_the_bytes_are_for_others);
	tcase_add_test(pace, paced_messages_take_half_a_mebibyte_at_most);
	tcase_add_test(pace, an_empty_queue_takes_any_message_and_another_none_beyond_its_bound);
	tcase_add_loop_test(pace, everything_comes_at_the_pace_of_the_peer, 0, 3);
	tcase_add_test(pace, large_messages_come_by_reference);
	tcase_add_test(pace, a_part_of_a_large_buffer_is_copied);
	tcase_add_test(pace, who_takes_all_is_not_asked_for_room);
	tcase_add_test(pace, a_dead_connection_takes_none_and_the_broker_hears_of_it);
	suite_add_tcase(suite, pace);

	tcase_add_checked_fixture(frames, fake_begin, fake_end);
	tcase_add_test(frames, answers_reach_the_broker_behind_what_was_published);
	tcase_add_test(frames, confirmations_repeat_what_was_asked_for);
	tcase_add_test(frames, answers_are_ignored_without_a_store);
	tcase_add_test(frames, answers_are_ignored_before_the_right_token);
	tcase_add_loop_test(frames, durable_subscribes_are_checked, 0, ARRAY_LENGTH(subscribes));
	tcase_add_test(frames, a_stream_with_a_durable_subscription_takes_no_plain_one);
	suite_add_tcase(suite, frames);

	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
