/*
 * The client library and durable channels: consumers and their answers, readers that miss nothing.
 */
#include "client_server.h"

#include <stdio.h>

static void greet_durable(void)
{
	server_take();
	put((struct wire_frame){.header = {.type = WIRE_CONNECT_ACK},
				.u.connect_ack = {WIRE_VERSION_1_2, WIRE_CAPABILITY_DURABLE}});
	leave();
}

static uint32_t expect_durable(const char *consumer, uint8_t start, uint64_t value)
{
	expect(WIRE_SUBSCRIBE);
	ck_assert_uint_eq(server.frame.header.flags, WIRE_SUBSCRIBE_DURABLE);
	ck_assert(server.frame.u.subscribe.durable);
	ck_assert(span_equal(server.frame.u.subscribe.consumer, span_of(consumer)));
	ck_assert_uint_eq(server.frame.u.subscribe.start, start);
	ck_assert_uint_eq(server.frame.u.subscribe.value, value);
	put_subscribe_ack(server.frame.header.stream, 7);
	return server.frame.header.stream;
}

static void put_durable(uint32_t stream, uint64_t sequence, uint8_t flags)
{
	char payload[32];

	snprintf(payload, sizeof(payload), "%d", (int)sequence);
	put_deliver_with(stream, sequence, flags, payload);
}

/* The answer that the client sends, with REASON or none. */
static void expect_answer(uint8_t type, uint8_t flags, const char *id, const char *reason)
{
	expect(type);
	ck_assert_uint_eq(server.frame.header.flags, flags);
	ck_assert(span_equal(server.frame.u.answer.message, span_of(id)));
	ck_assert_int_eq(server.frame.u.answer.reason.present, reason != NULL);
	if (reason != NULL)
		ck_assert(span_equal(server.frame.u.answer.reason.text, span_of(reason)));
}

static void put_answer(uint8_t type, uint8_t flags, uint32_t stream, const char *id,
		       const char *reason)
{
	put((struct wire_frame){
		.header = {type, flags, stream, 0},
		.u.answer = {span_of(id),
			     {reason != NULL, span_of(reason != NULL ? reason : "")}}});
}

static struct liminal_subscribe_options from(const char *consumer, int start, uint64_t value)
{
	struct liminal_subscribe_options options = LIMINAL_SUBSCRIBE_OPTIONS_INIT;

	options.consumer = consumer;
	options.start = start;
	options.value = value;
	return options;
}

/* The next delivery is the message of that sequence. */
static void takes_sequence(struct liminal_subscription *subscription, uint64_t sequence, bool again)
{
	struct liminal_delivery *delivery;

	succeeds(liminal_next(subscription, LIMINAL_FOREVER, &delivery));
	ck_assert_uint_eq(delivery->sequence, sequence);
	ck_assert_int_eq(delivery->redelivered, again);
	ck_assert_uint_eq(delivery->missed, 0);
	liminal_delivery_free(&delivery);
}

static void script_answers(void)
{
	uint32_t stream;

	greet_durable();
	stream = expect_durable("mailer", 1, 0);
	put_durable(stream, 3, 0);
	put_durable(stream, 9, WIRE_DELIVER_AGAIN);
	leave();
	expect_answer(WIRE_ACCEPT, 0, "3", NULL);
	expect_answer(WIRE_DEFER, WIRE_ANSWER_WORKING, "9", NULL);
	expect_answer(WIRE_DEFER, WIRE_ANSWER_WORKING | WIRE_ANSWER_CONFIRM, "9", NULL);
	/* What nobody waits for, or is no confirmation, is not taken for one. */
	put_answer(WIRE_REJECT, WIRE_ANSWER_CONFIRM, stream, "77", "stale: of another one");
	put_answer(WIRE_REJECT, 0, stream, "9", "not a confirmation");
	put_answer(WIRE_DEFER, WIRE_ANSWER_WORKING | WIRE_ANSWER_CONFIRM, stream, "9", NULL);
	leave();
	expect_answer(WIRE_DEFER, WIRE_ANSWER_CONFIRM, "9", "later");
	put_durable(stream, 10, 0);
	put_answer(WIRE_DEFER, WIRE_ANSWER_CONFIRM, stream, "9", NULL);
	leave();
	expect_answer(WIRE_ACCEPT, WIRE_ANSWER_CONFIRM, "..10", NULL);
	put_answer(WIRE_ACCEPT, WIRE_ANSWER_CONFIRM, stream, "..10", NULL);
	leave();
	expect_answer(WIRE_REJECT, WIRE_ANSWER_CONFIRM, "10", "broken");
	put_answer(WIRE_REJECT, WIRE_ANSWER_CONFIRM, stream, "10", "stale: not outstanding");
	leave();
	expect_answer(WIRE_REJECT, WIRE_ANSWER_CONFIRM, "11", NULL);
	put_answer(WIRE_REJECT, WIRE_ANSWER_CONFIRM, stream, "11", NULL);
	leave();
	expect_answer(WIRE_ACCEPT, WIRE_ANSWER_CONFIRM, "18446744073709551615", NULL);
	server_drop();
}

START_TEST(answers)
{
	struct liminal *client = open_client(script_answers, 0);
	struct liminal_subscribe_options options = from("mailer", LIMINAL_START_ALL, 0);
	struct liminal_subscription *subscription;

	succeeds(liminal_subscribe(client, "orders", &options, &subscription));
	takes_sequence(subscription, 3, false);
	takes_sequence(subscription, 9, true);
	succeeds(liminal_accept(subscription, 3, 0));
	succeeds(liminal_working(subscription, 9, 0));
	succeeds(liminal_working(subscription, 9, LIMINAL_FOREVER));
	succeeds(liminal_defer(subscription, 9, "later", LIMINAL_FOREVER));
	succeeds(liminal_accept_up_to(subscription, 10, LIMINAL_FOREVER));
	takes_sequence(subscription, 10, false);
	fails_with(liminal_reject(subscription, 10, "broken", LIMINAL_FOREVER), LIMINAL_REFUSED,
		   WIRE_REASON_SERVER, "stale: ");
	succeeds(liminal_reject(subscription, 11, NULL, LIMINAL_FOREVER));
	fails_with(liminal_accept(subscription, UINT64_MAX, LIMINAL_FOREVER), LIMINAL_LOST, 0, "");
	fails_with(liminal_accept(subscription, 1, 0), LIMINAL_LOST, 0, "");
	end(&client);
}
END_TEST

static void script_no_store(void)
{
	server_greet();
	expect_subscribe(1);
	server_expect_end();
}

START_TEST(invalid)
{
	struct liminal *client = open_client(script_no_store, 0);
	struct liminal_subscribe_options options = from(NULL, LIMINAL_START_ALL, 0);
	struct liminal_subscription *subscription = NULL;

	/* The frame is not sent to a server that may not know it. */
	fails_with(liminal_subscribe(client, "orders", &options, &subscription), LIMINAL_REFUSED, 0,
		   "not durable: ");
	options = from("mailer", LIMINAL_START_LIVE, 0);
	fails_with(liminal_subscribe(client, "orders", &options, &subscription), LIMINAL_INVALID, 0,
		   "needs a start");
	options = from("", LIMINAL_START_NEW, 0);
	fails_with(liminal_subscribe(client, "orders", &options, &subscription), LIMINAL_INVALID, 0,
		   "consumer's name");
	options = from(NULL, LIMINAL_START_TIME + 1, 0);
	fails_with(liminal_subscribe(client, "orders", &options, &subscription), LIMINAL_INVALID, 0,
		   "no such start");
	ck_assert_ptr_null(subscription);
	fails_with(liminal_accept(NULL, 1, 0), LIMINAL_INVALID, 0, "no subscription");
	succeeds(liminal_subscribe(client, "orders", NULL, &subscription));
	fails_with(liminal_accept(subscription, 1, 0), LIMINAL_INVALID, 0, "without a consumer");
	end(&client);
}
END_TEST

static void script_again(void)
{
	uint32_t reader, consumer;

	greet_durable();
	reader = expect_durable("", 3, 1700000000000);
	leave();
	consumer = expect_durable("mailer", 0, 0);
	put_durable(reader, 5, 0);
	put_durable(consumer, 1, 0);
	leave();
	expect(WIRE_PING);
	server_drop();
	greet_durable();
	/* In which order they are asked for is nobody's business. */
	for (int i = 0; i < 4; i++) {
		if (i == 2) {
			expect(WIRE_PING);
			server_drop();
			greet_durable();
		}
		expect_any();
		if (server.frame.u.subscribe.consumer.length > 0) {
			ck_assert_uint_eq(server.frame.u.subscribe.start, 0);
			consumer = server.frame.header.stream;
		} else {
			ck_assert_uint_eq(server.frame.u.subscribe.start, 2);
			ck_assert_uint_eq(server.frame.u.subscribe.value, 6);
			reader = server.frame.header.stream;
		}
		put_subscribe_ack(server.frame.header.stream, 7);
		leave();
	}
	put_durable(consumer, 1, WIRE_DELIVER_AGAIN);
	put_durable(reader, 6, 0);
	leave();
	server_expect_end();
}

/* A reader goes on behind what it has received; what a consumer had received comes again. */
START_TEST(reconnect)
{
	struct liminal *client = open_client(script_again, 0);
	struct liminal_subscribe_options options =
		from(NULL, LIMINAL_START_TIME, UINT64_C(1700000000000));
	struct liminal_subscription *reader, *consumer;

	succeeds(liminal_subscribe(client, "orders", &options, &reader));
	options = from("mailer", LIMINAL_START_NEW, 0);
	succeeds(liminal_subscribe(client, "orders", &options, &consumer));
	/* The second connection brings nothing. */
	for (int i = 0; i < 2; i++) {
		fails_with(liminal_ping(client, LIMINAL_FOREVER, NULL), LIMINAL_LOST, 0, "");
		succeeds(liminal_reconnect(client, LIMINAL_FOREVER));
	}
	takes_sequence(reader, 5, false);
	takes_sequence(reader, 6, false);
	takes_sequence(consumer, 1, true);
	end(&client);
}
END_TEST

#define OVERFLOW 5

static void script_overflow(void)
{
	uint32_t stream;

	greet_durable();
	stream = expect_durable("", 1, 0);
	leave();
	expect(WIRE_PING);
	for (uint64_t i = 1; i <= OVERFLOW; i++)
		put_durable(stream, i, 0);
	put_empty(WIRE_PONG);
	leave();
	expect(WIRE_UNSUBSCRIBE);
	ck_assert_uint_eq(server.frame.u.unsubscribe.subscription, 7);
	expect(WIRE_SUBSCRIBE);
	ck_assert_uint_eq(server.frame.u.subscribe.start, 2);
	ck_assert_uint_eq(server.frame.u.subscribe.value, 3);
	/* This one was on its way. */
	put_durable(stream, OVERFLOW + 1, 0);
	put_subscribe_ack(stream, 8);
	for (uint64_t i = 3; i <= OVERFLOW; i++)
		put_durable(stream, i, 0);
	leave();
	expect(WIRE_UNSUBSCRIBE);
	expect(WIRE_SUBSCRIBE);
	ck_assert_uint_eq(server.frame.u.subscribe.value, 5);
	put_error(WIRE_SUBSCRIBE_ERROR, stream, WIRE_REASON_SERVER, "store-down: no more");
	leave();
	server_expect_end();
}

/* A reader whose queue is full misses nothing, whichever way its messages are taken. */
START_TEST(overflow)
{
	struct liminal *client = open_client(script_overflow, 0);
	struct liminal_subscribe_options options = from(NULL, LIMINAL_START_ALL, 0);
	struct liminal_subscription *subscription, *which;
	struct liminal_delivery *delivery;

	options.queue_messages = 2;
	succeeds(liminal_subscribe(client, "orders", &options, &subscription));
	succeeds(liminal_ping(client, LIMINAL_FOREVER, NULL));
	for (uint64_t i = 1; i <= 3; i++)
		takes_sequence(subscription, i, false);
	succeeds(liminal_next_any(client, LIMINAL_FOREVER, &which, &delivery));
	ck_assert_uint_eq(delivery->sequence, 4);
	liminal_delivery_free(&delivery);
	fails_with(liminal_next_any(client, LIMINAL_FOREVER, &which, &delivery), LIMINAL_ENDED,
		   WIRE_REASON_SERVER, "store-down: ");
	ck_assert_ptr_eq(which, subscription);
	end(&client);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("client_consume");
	TCase *played = tcase_create("played");

	tcase_set_timeout(played, 60);
	tcase_add_test(played, answers);
	tcase_add_test(played, invalid);
	tcase_add_test(played, reconnect);
	tcase_add_test(played, overflow);
	suite_add_tcase(suite, played);
	return run(suite);
}
