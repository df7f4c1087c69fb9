/*
 * The client library: opening, publishing and subscribing, against a server that does what the
 * real one does only under rare timing, or never.
 */
#include "client_server.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- opening ---------------------------------------------------------------------------------- */

static void script_greeting(void)
{
	server.fd = accept(server.listener, NULL, NULL);
	expect(WIRE_CONNECT);
	ck_assert_uint_eq(server.frame.u.connect.min.minor, 0);
	ck_assert_uint_eq(server.frame.u.connect.max.minor, 2);
	ck_assert(span_equal(server.frame.u.connect.token, SPAN_LITERAL("se\0cret")));
	put((struct wire_frame){.header = {.type = WIRE_CONNECT_ACK},
				.u.connect_ack = {WIRE_VERSION_1_1, 5}});
	leave();
	server_expect_end();
}

START_TEST(greeting)
{
	struct liminal_options options;
	struct liminal *client;
	unsigned major, minor;
	uint32_t capabilities;

	server_start(script_greeting);
	options = options_for(0);
	options.token = "se\0cret";
	options.token_length = 7;
	succeeds(liminal_open(&options, &client));
	liminal_protocol(client, &major, &minor, &capabilities);
	ck_assert_uint_eq(major, 1);
	ck_assert_uint_eq(minor, 1);
	ck_assert_uint_eq(capabilities, 5);
	end(&client);
}
END_TEST

static void script_refused(void)
{
	server_take();
	put_error(WIRE_CONNECT_ERROR, 0, WIRE_REASON_AUTHENTICATION, "rejected");
	leave();
	server_drop();
}

START_TEST(refused)
{
	struct liminal_options options;
	struct liminal *client;

	server_start(script_refused);
	options = options_for(0);
	fails_with(liminal_open(&options, &client), LIMINAL_REFUSED, WIRE_REASON_AUTHENTICATION,
		   "rejected");
	ck_assert_ptr_null(client);
	server_end();
}
END_TEST

static void script_silent(void)
{
	server_take();
	wait_for(server.go);
	server_drop();
}

START_TEST(unreachable)
{
	struct liminal_options options;
	struct liminal *client;

	server_start(script_silent);
	options = options_for(0);
	options.connect_timeout_ms = 50;
	fails_with(liminal_open(&options, &client), LIMINAL_UNREACHABLE, 0, "in time");
	tell(server.go);
	server_end();
	fails_with(liminal_open(&options, &client), LIMINAL_UNREACHABLE, 0, server.address);
	options.server = "/nowhere/socket";
	fails_with(liminal_open(&options, &client), LIMINAL_UNREACHABLE, 0, "/nowhere/socket");
	options.server = "[::1";
	fails_with(liminal_open(&options, &client), LIMINAL_INVALID, 0, "HOST:PORT");
	options.server = "127.0.0.1:";
	fails_with(liminal_open(&options, &client), LIMINAL_INVALID, 0, "HOST:PORT");
	ck_assert_ptr_null(client);
}
END_TEST

/* --- publishing ------------------------------------------------------------------------------- */

static void script_publish(void)
{
	const struct wire_frame *frame;

	server_greet();
	frame = expect(WIRE_PUBLISH);
	ck_assert(span_equal(frame->u.publish.channel, SPAN_LITERAL("events")));
	ck_assert(span_equal(frame->u.publish.envelope.payload, SPAN_LITERAL("pay\0load")));
	ck_assert(!frame->u.publish.has_key && !frame->u.publish.envelope.parent.present);
	put_publish_ack(frame->header.stream, 7, WIRE_PUBLISH_ACK_DELIVERED);
	leave();
	frame = expect(WIRE_PUBLISH);
	ck_assert(span_equal(frame->u.publish.key, SPAN_LITERAL("")));
	ck_assert(span_equal(frame->u.publish.envelope.parent.text, SPAN_LITERAL("p1")));
	ck_assert(frame->u.publish.envelope.has_clock && frame->u.publish.envelope.clock == 9);
	put((struct wire_frame){.header = {WIRE_PUBLISH_ACK,
					   WIRE_PUBLISH_ACK_POSITION | WIRE_PUBLISH_ACK_DUPLICATE,
					   frame->header.stream, 0},
				.u.publish_ack = {7, true, 99}});
	leave();
	put_error(WIRE_PUBLISH_ERROR, expect_publish(), WIRE_REASON_SERVER, "no channel");
	leave();
	server_expect_end();
}

START_TEST(publish)
{
	struct liminal *client = open_client(script_publish, 0);
	struct liminal_publish_options options = LIMINAL_PUBLISH_OPTIONS_INIT;
	struct liminal_receipt receipt;

	succeeds(liminal_publish(client, "events", "pay\0load", 8, NULL, &receipt));
	ck_assert_uint_eq(receipt.message, 7);
	ck_assert(receipt.delivered && !receipt.duplicate && !receipt.has_position);
	options.key = "";
	options.parent = "p1";
	options.has_clock = true;
	options.clock = 9;
	succeeds(liminal_publish(client, "events", NULL, 0, &options, &receipt));
	ck_assert(!receipt.delivered && receipt.duplicate && receipt.has_position);
	ck_assert_uint_eq(receipt.position, 99);
	fails_with(liminal_publish(client, "other", "", 0, NULL, &receipt), LIMINAL_REFUSED,
		   WIRE_REASON_SERVER, "no channel");
	ck_assert_uint_eq(receipt.message, 0);
	fails_with(liminal_publish(client, "\xff", "", 0, NULL, NULL), LIMINAL_INVALID, 0, "UTF-8");
	fails_with(liminal_publish(client, "events", NULL, 1, NULL, NULL), LIMINAL_INVALID, 0,
		   "no bytes");
	end(&client);
}
END_TEST

static void script_late_answer(void)
{
	uint32_t first, second;

	server_greet();
	first = expect_publish();
	second = expect_publish();
	put_publish_ack(first, 1, 0);
	put_publish_ack(second, 2, 0);
	leave();
	server_expect_end();
}

START_TEST(late_answer)
{
	struct liminal *client = open_client(script_late_answer, 100);
	struct liminal_receipt receipt;

	fails_with(liminal_publish(client, "events", "", 0, NULL, &receipt), LIMINAL_TIMEOUT, 0,
		   "no answer in time");
	succeeds(liminal_publish(client, "events", "", 0, NULL, &receipt));
	ck_assert_uint_eq(receipt.message, 2);
	end(&client);
}
END_TEST

static void script_never_answered(void)
{
	server_greet();
	expect_publish();
	put_publish_ack(expect_publish(), 2, 0);
	leave();
	server_expect_end();
}

static void note_status(void *context, int status, const struct liminal_receipt *receipt)
{
	char *list = context;

	ck_assert_int_eq(receipt != NULL, status == LIMINAL_OK);
	list[strlen(list)] = (char)('0' + status);
}

START_TEST(never_answered)
{
	struct liminal *client = open_client(script_never_answered, 0);
	struct liminal_publish_options options = LIMINAL_PUBLISH_OPTIONS_INIT;
	struct liminal_receipt receipt;
	struct liminal_flushed flushed;
	char statuses[8] = "";

	options.published = note_status;
	options.context = statuses;
	succeeds(liminal_publish_async(client, "quiet", "", 0, &options));
	succeeds(liminal_publish(client, "events", "", 0, NULL, &receipt));
	ck_assert_uint_eq(receipt.message, 2);
	liminal_flush(client, 0, &flushed);
	ck_assert_uint_eq(flushed.unanswered, 1);
	ck_assert_str_eq(statuses, "2"); /* LIMINAL_TIMEOUT */
	end(&client);
}
END_TEST

static void script_pipeline(void)
{
	uint32_t streams[10];

	server_greet();
	for (int i = 0; i < 4; i++)
		streams[i] = expect_publish();
	/* The window is full: nothing more comes before these are answered. */
	ck_assert_int_eq(recv(server.fd, server.payload, 1, MSG_PEEK | MSG_DONTWAIT), -1);
	put_publish_ack(streams[0], 1, WIRE_PUBLISH_ACK_DELIVERED);
	put_error(WIRE_PUBLISH_ERROR, streams[1], 9, "the first refusal");
	put_error(WIRE_PUBLISH_ERROR, streams[2], 8, "the second");
	put_publish_ack(streams[3], 1, WIRE_PUBLISH_ACK_DUPLICATE);
	leave();
	for (int i = 4; i < 6; i++)
		put_publish_ack(expect_publish(), 2, 0);
	leave();
	expect_publish();
	put_publish_ack(expect_publish() - 1, 3, 0);
	leave();
	server_drop();
}

START_TEST(pipeline)
{
	struct liminal_publish_options options = LIMINAL_PUBLISH_OPTIONS_INIT;
	struct liminal_options open_options;
	struct liminal_flushed flushed;
	struct liminal *client;
	char statuses[16] = "";

	server_start(script_pipeline);
	open_options = options_for(0);
	open_options.window = 4;
	succeeds(liminal_open(&open_options, &client));
	options.published = note_status;
	options.context = statuses;
	for (int i = 0; i < 6; i++)
		succeeds(liminal_publish_async(client, "events", "x", 1, &options));
	fails_with(liminal_flush(client, LIMINAL_FOREVER, &flushed), LIMINAL_REFUSED, 9,
		   "the first refusal");
	ck_assert_uint_eq(flushed.accepted, 4);
	ck_assert_uint_eq(flushed.delivered, 1);
	ck_assert_uint_eq(flushed.duplicates, 1);
	ck_assert_uint_eq(flushed.refused, 2);
	ck_assert_uint_eq(flushed.unanswered, 0);
	ck_assert_str_eq(statuses, "011000");
	succeeds(liminal_flush(client, LIMINAL_FOREVER, &flushed));
	ck_assert_uint_eq(flushed.accepted, 0);

	/* Of these the connection's end takes one. */
	for (int i = 0; i < 2; i++)
		succeeds(liminal_publish_async(client, "events", "x", 1, NULL));
	ck_assert_uint_eq(liminal_unanswered(client), 2);
	fails_with(liminal_flush(client, LIMINAL_FOREVER, &flushed), LIMINAL_LOST, 0, "");
	ck_assert_uint_eq(flushed.accepted, 1);
	ck_assert_uint_eq(flushed.unanswered, 1);
	fails_with(liminal_publish_async(client, "events", "x", 1, NULL), LIMINAL_LOST, 0, "");
	end(&client);
}
END_TEST

#define BIG ((size_t)256 * 1024)
#define BIG_COUNT 64

/* Both sides write more than the sockets hold: the client must read while it writes. */
static void script_no_deadlock(void)
{
	char *payload = calloc(BIG, 1);
	uint32_t stream;

	memset(payload, 'x', BIG - 1);
	server_greet();
	stream = expect_subscribe(1);
	wait_for(server.go);
	for (uint64_t i = 1; i <= BIG_COUNT; i++) {
		put_deliver(stream, i, payload);
		leave();
	}
	for (int i = 0; i < BIG_COUNT; i++)
		put_publish_ack(expect_publish(), 1, 0);
	leave();
	server_expect_end();
	free(payload);
}

START_TEST(no_deadlock)
{
	struct liminal *client = open_client(script_no_deadlock, 0);
	struct liminal_subscription *subscription;
	struct liminal_flushed flushed;
	char *payload = calloc(BIG, 1);

	succeeds(liminal_subscribe(client, "events", NULL, &subscription));
	tell(server.go);
	for (int i = 0; i < BIG_COUNT; i++)
		succeeds(liminal_publish_async(client, "events", payload, BIG, NULL));
	succeeds(liminal_flush(client, LIMINAL_FOREVER, &flushed));
	ck_assert_uint_eq(flushed.accepted, BIG_COUNT);
	end(&client);
	free(payload);
}
END_TEST

/* --- subscribing ------------------------------------------------------------------------------ */

static void script_deliveries(void)
{
	uint32_t first, second;

	server_greet();
	first = expect(WIRE_SUBSCRIBE)->header.stream;
	ck_assert_uint_eq(server.frame.u.subscribe.schemas.count, 1);
	/* In one segment with the answer: nothing behind it may be lost. */
	put_subscribe_ack(first, 11);
	put_deliver(first, 1, "a");
	put_deliver(first, 2, "b");
	leave();
	second = expect_subscribe(12);
	put_deliver(second, 1, "c");
	put_deliver(first, 5, "d");
	put_deliver(999, 1, "of nobody");
	leave();
	ck_assert_uint_eq(expect(WIRE_UNSUBSCRIBE)->u.unsubscribe.subscription, 12);
	put_error(WIRE_SUBSCRIBE_ERROR, first, 0xFFFF, "subscription shed: too slow");
	leave();
	expect(WIRE_PING);
	put_empty(WIRE_PONG);
	leave();
	server_expect_end();
}

START_TEST(deliveries)
{
	struct liminal_subscribe_options options = LIMINAL_SUBSCRIBE_OPTIONS_INIT;
	struct liminal_subscription *first, *second, *which;
	struct liminal *client = open_client(script_deliveries, 0);
	struct liminal_delivery *delivery;

	options.schemas = (const unsigned char *)SCHEMA;
	options.schema_count = 1;
	succeeds(liminal_subscribe(client, "events", &options, &first));
	succeeds(liminal_next(first, 0, &delivery));
	ck_assert_str_eq(delivery->channel, "events");
	ck_assert_str_eq((const char *)delivery->payload, "a");
	ck_assert_uint_eq(delivery->sequence, 1);
	ck_assert_uint_eq(delivery->boot, 77);
	ck_assert_uint_eq(delivery->message, 1001);
	ck_assert_mem_eq(delivery->schema, SCHEMA, 32);
	liminal_delivery_free(&delivery);

	succeeds(liminal_subscribe(client, "other", NULL, &second));
	succeeds(liminal_next_any(client, LIMINAL_FOREVER, &which, &delivery));
	ck_assert_ptr_eq(which, first);
	ck_assert_str_eq((const char *)delivery->payload, "b");
	liminal_delivery_free(&delivery);
	succeeds(liminal_next_any(client, LIMINAL_FOREVER, &which, &delivery));
	ck_assert_ptr_eq(which, second);
	ck_assert_str_eq(delivery->channel, "other");
	liminal_delivery_free(&delivery);
	takes(first, "d", 2);
	fails_with(liminal_next(second, 0, &delivery), LIMINAL_TIMEOUT, 0, "in time");
	ck_assert_ptr_null(delivery);

	liminal_unsubscribe(&second);
	ck_assert_ptr_null(second);
	fails_with(liminal_next_any(client, LIMINAL_FOREVER, &which, &delivery), LIMINAL_ENDED,
		   0xFFFF, "shed");
	ck_assert_ptr_eq(which, first);
	fails_with(liminal_next(first, LIMINAL_FOREVER, &delivery), LIMINAL_ENDED, 0xFFFF, "shed");
	succeeds(liminal_ping(client, LIMINAL_FOREVER, NULL));
	end(&client);
}
END_TEST

static void script_full_queue(void)
{
	uint32_t stream, answered;

	server_greet();
	stream = expect_subscribe(1);
	answered = expect_publish();
	for (uint64_t i = 1; i <= 5; i++)
		put_deliver(stream, i, "x");
	put_publish_ack(answered, 1, 0);
	leave();
	put_deliver(stream, 6, "y");
	put_publish_ack(expect_publish(), 2, 0);
	leave();
	server_expect_end();
}

/* An answer behind more messages than the queue holds still comes; what is lost is counted. */
START_TEST(full_queue)
{
	struct liminal_subscribe_options options = LIMINAL_SUBSCRIBE_OPTIONS_INIT;
	struct liminal *client = open_client(script_full_queue, 0);
	struct liminal_subscription *subscription;

	options.queue_messages = 2;
	succeeds(liminal_subscribe(client, "events", &options, &subscription));
	succeeds(liminal_publish(client, "events", "", 0, NULL, NULL));
	takes(subscription, "x", 0);
	takes(subscription, "x", 0);
	succeeds(liminal_publish(client, "events", "", 0, NULL, NULL));
	takes(subscription, "y", 3);
	end(&client);
}
END_TEST

static void script_late_subscription(void)
{
	uint32_t stream;

	server_greet();
	stream = expect(WIRE_SUBSCRIBE)->header.stream;
	expect(WIRE_PING);
	put_subscribe_ack(stream, 5);
	put_deliver(stream, 1, "nobody wants this");
	put_empty(WIRE_PONG);
	leave();
	ck_assert_uint_eq(expect(WIRE_UNSUBSCRIBE)->u.unsubscribe.subscription, 5);
	server_expect_end();
}

START_TEST(late_subscription)
{
	struct liminal *client = open_client(script_late_subscription, 50);
	struct liminal_subscription *subscription;

	fails_with(liminal_subscribe(client, "events", NULL, &subscription), LIMINAL_TIMEOUT, 0,
		   "");
	ck_assert_ptr_null(subscription);
	succeeds(liminal_ping(client, LIMINAL_FOREVER, NULL));
	end(&client);
}
END_TEST

static void script_refused_subscription(void)
{
	server_greet();
	put_error(WIRE_SUBSCRIBE_ERROR, expect(WIRE_SUBSCRIBE)->header.stream, 0xFFFF,
		  "channel 'x' is not configured");
	leave();
	server_expect_end();
}

START_TEST(refused_subscription)
{
	struct liminal *client = open_client(script_refused_subscription, 0);
	struct liminal_subscription *subscription;

	fails_with(liminal_subscribe(client, "x", NULL, &subscription), LIMINAL_REFUSED, 0xFFFF,
		   "channel 'x' is not configured");
	ck_assert_ptr_null(subscription);
	end(&client);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("client");
	TCase *played = tcase_create("played");

	tcase_set_timeout(played, 60);
	tcase_add_test(played, greeting);
	tcase_add_test(played, refused);
	tcase_add_test(played, unreachable);
	tcase_add_test(played, publish);
	tcase_add_test(played, late_answer);
	tcase_add_test(played, never_answered);
	tcase_add_test(played, pipeline);
	tcase_add_test(played, no_deadlock);
	tcase_add_test(played, deliveries);
	tcase_add_test(played, full_queue);
	tcase_add_test(played, late_subscription);
	tcase_add_test(played, refused_subscription);
	suite_add_tcase(suite, played);
	return run(suite);
}
