/*
 * What the broker hands to a connection, as bytes on the wire: by copy or by reference, message by
 * message or in stretches, they are the same. Each test compares with what the codec encodes.
 */
#include "net_helpers.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/metrics.h"

static struct pair pair;
static struct bytes expected, received;

static const uint8_t schema[WIRE_SCHEMA_SIZE] = "a schema of 32 bytes, more or le";

static void begin(void)
{
	net_begin();
	pair_open(&pair, SOCK_STREAM);
}

static void end(void)
{
	pair_close(&pair);
	net_end();
	bytes_free(&expected);
	bytes_free(&received);
}

/* Everything that is queued is what was expected, and counted so. */
static void compare(void)
{
	ck_assert_uint_eq(atomic_load(&pair.conn->outbox.bytes), expected.length);
	outbox_flush(pair.conn, NULL);
	bytes_receive_until(&received, pair.peer, expected.length);
	ck_assert_int_eq(outbox_finish(pair.conn, 60000), FINISH_WRITTEN);
	ck_assert_uint_eq(atomic_load(&pair.conn->outbox.frames), 0);
	ck_assert(bytes_equal(&received, &expected));
	expected.length = received.length = 0;
}

/* An envelope with a payload of LENGTH bytes; SHARED: in a buffer of its own. */
static struct message message_of(uint64_t id, size_t length, bool shared, struct bytes *own)
{
	struct message message = {.id = id, .stream = 7};
	uint8_t head[WIRE_REPLY_ENVELOPE_HEAD];
	struct bytes envelope = {0};

	wire_put_reply_envelope_head(head, (uint32_t)length);
	memcpy(head, schema, sizeof(schema));
	bytes_add(&envelope, head, sizeof(head));
	for (size_t i = 0; i < length; i++)
		bytes_add(&envelope, &(uint8_t){(uint8_t)(i * 7 + id)}, 1);
	message.envelope = (struct span){envelope.data, envelope.length};
	if (shared) {
		message.buf = buf_new(envelope.length + 9);
		ck_assert_ptr_nonnull(message.buf);
		memcpy(message.buf->data + 9, envelope.data, envelope.length);
		message.envelope.data = message.buf->data + 9;
		bytes_free(&envelope);
	}
	*own = envelope;
	return message;
}

static void expect_deliver(const struct message *message, uint32_t stream, uint64_t sequence,
			   bool origin)
{
	struct wire_frame frame = {
		.header = {.type = WIRE_DELIVER,
			   .flags = origin ? WIRE_DELIVER_ORIGIN : 0,
			   .stream = stream},
		.u.deliver = {
			.sequence = sequence,
			.envelope = {.schema = message->envelope.data,
				     .context = {(const uint8_t *)"\0\0", 2},
				     .payload = {message->envelope.data + WIRE_REPLY_ENVELOPE_HEAD,
						 message->envelope.length -
							 WIRE_REPLY_ENVELOPE_HEAD}},
			.has_origin = origin,
			.boot = BOOT_MS,
			.message = message->id}};

	bytes_add_frame(&expected, &frame);
}

static void expect_ack(const struct message *message, uint8_t flags)
{
	bytes_add_frame(&expected, &(struct wire_frame){.header = {.type = WIRE_PUBLISH_ACK,
								   .flags = flags,
								   .stream = message->stream},
							.u.publish_ack.message = message->id});
}

static void deliver(struct pair *to, struct delivery *delivery, struct message *run, size_t count)
{
	struct conn *conn = to->conn;
	struct buf *forms[DELIVERY_FORMS] = {NULL};
	struct flush_set set;

	flush_set_init(&set);
	if (delivery->shared == NULL) /* nobody else gets it */
		delivery->shared = forms;
	delivery->boot = BOOT_MS;
	delivery->channel = "news";
	delivery->plain = true;
	for (size_t i = 0; i < count; i++) {
		delivery->envelope_bytes += run[i].envelope.length;
		if (run[i].buf != NULL || run[i].duplicate || run[i].refused != NULL)
			delivery->plain = false;
	}
	conn->sink.ops->deliver(&conn->sink, delivery, run, count, &set);
	for (size_t i = 0; i < DELIVERY_FORMS; i++)
		buf_unref(&forms[i]);
	if (delivery->shared == forms)
		delivery->shared = NULL;
	ck_assert_uint_eq(set.count, 1);
	/* Not flushed by the set: the test looks at what is queued first. */
	mutex_lock(&conn->outbox.lock);
	conn->outbox.in_set = NULL;
	mutex_unlock(&conn->outbox.lock);
	conn->sink.ops->release(&conn->sink);
}

static void set_version(uint16_t minor)
{
	mutex_lock(&pair.conn->outbox.lock);
	pair.conn->outbox.version = (struct wire_version){1, minor};
	mutex_unlock(&pair.conn->outbox.lock);
}

#define RUN 300

/* _i: bit 0: version 1.2; bit 1: with buffers of their own; bit 2: only small ones; bit 3: others
 * get the run, too, and one of them has got it already. */
START_TEST(run_of_messages)
{
	static struct message run[RUN];
	static struct bytes own[RUN];
	struct delivery delivery = {.stream = 5, .sequence = 1000}, others = {.stream = 6};
	struct buf *forms[DELIVERY_FORMS] = {NULL};
	bool origin = (_i & 1) != 0;
	struct pair other;

	draw_seed((uint64_t)_i + 1);
	begin();
	set_version(origin ? 2 : 1);
	for (size_t i = 0; i < RUN; i++) {
		size_t length = (_i & 4) != 0 || draw(10) > 0 ? draw(300) : draw(20000);

		run[i] = message_of(i + 1, length, (_i & 2) != 0 && draw(2) == 0, &own[i]);
		expect_deliver(&run[i], 5, 1000 + i, origin);
	}
	if ((_i & 8) != 0) {
		delivery.shared = others.shared = forms;
		pair_open(&other, SOCK_STREAM);
		deliver(&other, &others, run, RUN);
	}
	deliver(&pair, &delivery, run, RUN);
	for (size_t i = 0; i < DELIVERY_FORMS; i++)
		buf_unref(&forms[i]);
	ck_assert_uint_eq(delivery.sequence, 1000 + RUN);
	ck_assert_uint_eq(delivery.accepted, RUN);
	ck_assert_uint_eq(delivery.dropped, 0);
	ck_assert(!delivery.overflow);
	ck_assert_uint_eq(atomic_load(&pair.conn->outbox.frames), RUN);
	for (size_t i = 0; i < RUN; i++) {
		ck_assert(delivery.plain || run[i].delivered);
		/* The session's read buffer is used again, and its references are gone. */
		if (own[i].length > 0)
			memset(own[i].data, '?', own[i].length);
		buf_unref(&run[i].buf);
		bytes_free(&own[i]);
	}
	compare();
	if ((_i & 8) != 0)
		pair_close(&other);
	end();
}
END_TEST

START_TEST(own_messages_with_their_answers)
{
	struct message run[4];
	struct bytes own[4];
	struct delivery delivery = {.stream = 5, .sequence = 1, .answer = true};

	begin();
	for (size_t i = 0; i < 4; i++)
		run[i] = message_of(i + 10, 100, i == 3, &own[i]);
	run[1].duplicate = true;
	run[2].refused = "the server is out of memory for the idempotency key";
	run[3].delivered = true; /* to somebody else */
	expect_ack(&run[0], WIRE_PUBLISH_ACK_DELIVERED);
	expect_deliver(&run[0], 5, 1, false);
	expect_ack(&run[1], WIRE_PUBLISH_ACK_DUPLICATE);
	bytes_add_frame(
		&expected,
		&(struct wire_frame){.header = {.type = WIRE_PUBLISH_ERROR, .stream = 7},
				     .u.error = {.code = WIRE_REASON_SERVER,
						 .text = {true, SPAN_LITERAL("the server is out of "
									     "memory for the "
									     "idempotency key")}}});
	expect_ack(&run[3], WIRE_PUBLISH_ACK_DELIVERED);
	expect_deliver(&run[3], 5, 2, false);
	deliver(&pair, &delivery, run, 4);
	ck_assert_uint_eq(delivery.accepted, 2);
	compare();
	/* The answers alone, for a publisher that does not subscribe. */
	run[0].delivered = false;
	expect_ack(&run[0], 0);
	expect_ack(&run[1], WIRE_PUBLISH_ACK_DUPLICATE);
	bytes_add_frame(
		&expected,
		&(struct wire_frame){.header = {.type = WIRE_PUBLISH_ERROR, .stream = 7},
				     .u.error = {.code = WIRE_REASON_SERVER,
						 .text = {true, SPAN_LITERAL("the server is out of "
									     "memory for the "
									     "idempotency key")}}});
	expect_ack(&run[3], WIRE_PUBLISH_ACK_DELIVERED);
	conn_answer_publishes(pair.conn, run, 4);
	compare();
	/* None where none are due. */
	delivery = (struct delivery){.stream = 5, .sequence = 1, .answer = true, .quiet = true};
	expect_deliver(&run[0], 5, 1, false);
	expect_deliver(&run[3], 5, 2, false);
	deliver(&pair, &delivery, run, 4);
	compare();
	for (size_t i = 0; i < 4; i++) {
		buf_unref(&run[i].buf);
		bytes_free(&own[i]);
	}
	end();
}
END_TEST

START_TEST(many_answers)
{
	static struct message run[RUN];

	begin();
	for (uint64_t i = 0; i < RUN; i++) {
		run[i] = (struct message){.id = i + 1, .stream = 3, .delivered = i % 3 == 0};
		expect_ack(&run[i], i % 3 == 0 ? WIRE_PUBLISH_ACK_DELIVERED : 0);
	}
	conn_answer_publishes(pair.conn, run, RUN);
	compare();
	end();
}
END_TEST

/* The socket takes what is queued before anything is refused. */
START_TEST(bounds_of_the_outbox_are_no_bounds_of_the_socket)
{
	static struct message run[RUN];
	static struct bytes own[RUN];
	struct delivery delivery = {.stream = 5, .sequence = 1};

	limits.max_outbox_frames = 16;
	begin();
	for (size_t i = 0; i < RUN; i++) {
		run[i] = message_of(i + 1, 10, false, &own[i]);
		expect_deliver(&run[i], 5, 1 + i, false);
	}
	deliver(&pair, &delivery, run, RUN);
	ck_assert_uint_eq(delivery.accepted, RUN);
	ck_assert(!delivery.overflow);
	outbox_flush(pair.conn, NULL);
	bytes_receive_until(&received, pair.peer, expected.length);
	ck_assert(bytes_equal(&received, &expected));
	for (size_t i = 0; i < RUN; i++)
		bytes_free(&own[i]);
	end();
}
END_TEST

/* A socket that takes nothing more, and an outbox that is empty. */
static void fill_socket(void)
{
	struct wire_frame pong = {.header = {.type = WIRE_PONG}};

	while (atomic_load(&pair.conn->outbox.bytes) == 0) {
		outbox_add_frame(pair.conn, &pong);
		bytes_add_frame(&expected, &pong);
		/* Not the flusher's: it would take the queue out of the test's hands. */
		mutex_lock(&pair.conn->outbox.lock);
		outbox_offer_locked(pair.conn);
		mutex_unlock(&pair.conn->outbox.lock);
	}
}

/* _i: 0 shed, 1 drop. */
START_TEST(what_does_not_fit)
{
	struct message run[6];
	struct bytes own[6];
	struct delivery delivery = {.stream = 5, .sequence = 1, .drop = _i == 1};

	limits.max_outbox_frames = 1000;
	limits.max_outbox_bytes = 400;
	begin();
	fill_socket(); /* of the last Pong 10 bytes or fewer are queued */
	for (size_t i = 0; i < 6; i++)
		run[i] = message_of(i + 1, i == 2 ? 250 : 50, false, &own[i]);
	expect_deliver(&run[0], 5, 1, false); /* 114 bytes each */
	expect_deliver(&run[1], 5, 2, false);
	if (_i == 1)
		expect_deliver(&run[3], 5, 4, false);
	deliver(&pair, &delivery, run, 6);
	ck_assert(delivery.overflow);
	ck_assert_uint_eq(delivery.accepted, _i == 1 ? 3 : 2);
	ck_assert_uint_eq(delivery.dropped, _i == 1 ? 3 : 0);
	ck_assert_uint_eq(delivery.sequence, _i == 1 ? 7 : 3);
	for (size_t i = 0; i < 6; i++)
		ck_assert(run[i].delivered == (i < 2 || (_i == 1 && i == 3)));
	outbox_flush(pair.conn, NULL);
	bytes_receive_until(&received, pair.peer, expected.length);
	ck_assert(bytes_equal(&received, &expected));
	for (size_t i = 0; i < 6; i++)
		bytes_free(&own[i]);
	end();
}
END_TEST

/* Noted for the log once, and again only after the outbox was half empty. */
START_TEST(stall_is_noted_once)
{
	struct message message;
	struct bytes own;
	uint64_t stalls = metric_read(METRIC_OUTBOX_STALLS);

	limits.max_outbox_bytes = 400;
	begin();
	fill_socket();
	message = message_of(1, 300, false, &own);
	for (uint64_t i = 0; i < 3; i++) {
		struct delivery delivery = {.stream = 5, .sequence = i + 1, .drop = true};

		deliver(&pair, &delivery, &message, 1);
		ck_assert_uint_eq(delivery.accepted, i == 0);
	}
	ck_assert_uint_eq(metric_read(METRIC_OUTBOX_STALLS), stalls + 1);
	expect_deliver(&message, 5, 1, false);
	outbox_flush(pair.conn, NULL);
	bytes_receive_until(&received, pair.peer, expected.length);
	ck_assert_int_eq(outbox_finish(pair.conn, 60000), FINISH_WRITTEN);
	fill_socket();
	for (int i = 0; i < 3; i++) {
		struct delivery delivery = {.stream = 5, .sequence = 4, .drop = true};

		deliver(&pair, &delivery, &message, 1);
	}
	ck_assert_uint_eq(metric_read(METRIC_OUTBOX_STALLS), stalls + 2);
	bytes_free(&own);
	end();
}
END_TEST

START_TEST(push_that_does_not_fit)
{
	static const uint8_t payload[379]; /* 401 bytes with its frame */
	const struct sink_ops *ops;
	struct flush_set set;

	limits.max_outbox_bytes = 400;
	begin();
	ops = pair.conn->sink.ops;
	flush_set_init(&set);
	fill_socket();
	ck_assert_int_eq(
		ops->push(&pair.conn->sink, 1, (struct span){payload, sizeof(payload)}, NULL, &set),
		SINK_FULL_BYTES);
	ck_assert_uint_eq(set.count, 0);
	ck_assert_int_eq(ops->push(&pair.conn->sink, 1, (struct span){payload, 368}, NULL, &set),
			 SINK_OK);
	ck_assert_uint_eq(set.count, 1);
	flush_set_run(&set);
	end();
}
END_TEST

/* _i: the length of the payload, by copy and by reference. */
static const size_t lengths[] = {0, 1, 4095, 4096, 100000};

START_TEST(replies_and_pushes)
{
	const struct sink_ops *ops;
	struct buf *buf = buf_new(lengths[_i] + 5);
	struct span payload = {buf->data + 5, lengths[_i]};
	uint8_t zero[WIRE_SCHEMA_SIZE] = {0};
	struct flush_set set;

	begin();
	ops = pair.conn->sink.ops;
	flush_set_init(&set);
	for (size_t i = 0; i < buf->length; i++)
		buf->data[i] = (uint8_t)(i * 13);
	for (int shared = 0; shared <= 1; shared++) {
		ops->reply(&pair.conn->sink, 9, UINT64_MAX - 1, payload, shared ? buf : NULL, &set);
		ck_assert_int_eq(
			ops->push(&pair.conn->sink, 77, payload, shared ? buf : NULL, &set),
			SINK_OK);
		bytes_add_frame(
			&expected,
			&(struct wire_frame){
				.header = {.type = WIRE_CONVERSATION_MESSAGE,
					   .flags = WIRE_MESSAGE_REPLY,
					   .stream = 9},
				.u.conversation_message = {
					.conversation = UINT64_MAX - 1,
					.envelope = {.schema = zero,
						     .context = {(const uint8_t *)"\0\0", 2},
						     .payload = payload}}});
		bytes_add_frame(
			&expected,
			&(struct wire_frame){.header = {.type = WIRE_PUSH, .stream = 1},
					     .u.push = {.correlation = 77, .payload = payload}});
	}
	buf_unref(&buf);
	ck_assert_uint_eq(set.count, 1);
	ck_assert_uint_eq(atomic_load(&pair.conn->outbox.frames), 4);
	ck_assert_uint_eq(atomic_load(&pair.conn->outbox.bytes), expected.length);
	flush_set_run(&set);
	bytes_receive_until(&received, pair.peer, expected.length);
	ck_assert(bytes_equal(&received, &expected));
	end();
}
END_TEST

/* Everything that always fits, in one go: it leaves as two writes, since one ends behind the
 * acknowledgement of a registration. */
START_TEST(what_always_fits)
{
	static const struct {
		enum refusal refusal;
		uint16_t code;
	} rows[] = {{REFUSAL_NONE, 0xFFFF},
		    {REFUSAL_BUSY, 0x0401},
		    {REFUSAL_INVALID, 0x0402},
		    {REFUSAL_UNAVAILABLE, 0x0403},
		    {REFUSAL_INTERNAL, 0x0404}};
	const struct sink_ops *ops;
	struct sink *sink;
	struct flush_set set;
	uint8_t together[4096];
	size_t first;

	limits.max_outbox_frames = 1;
	limits.max_outbox_bytes = 1;
	net_begin();
	pair_open(&pair, SOCK_DGRAM);
	sink = &pair.conn->sink;
	ops = sink->ops;
	flush_set_init(&set);
	ops->subscribed(sink, 3, 12, schema, &set);
	bytes_add_frame(&expected,
			&(struct wire_frame){.header = {.type = WIRE_SUBSCRIBE_ACK, .stream = 3},
					     .u.subscribe_ack = {12, schema}});
	ops->registered(sink, &set);
	bytes_add_frame(&expected,
			&(struct wire_frame){.header = {.type = WIRE_WORKER_REGISTER_ACK}});
	first = expected.length;
	ops->shed(sink, 4, "subscription shed: why", &set);
	bytes_add_frame(
		&expected,
		&(struct wire_frame){
			.header = {.type = WIRE_SUBSCRIBE_ERROR, .stream = 4},
			.u.error = {.code = 0xFFFF,
				    .text = {true, SPAN_LITERAL("subscription shed: why")}}});
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		ops->conversation_error(sink, 5, 6, rows[i].refusal, SPAN_LITERAL("words"), &set);
		bytes_add_frame(&expected,
				&(struct wire_frame){
					.header = {.type = WIRE_CONVERSATION_ERROR, .stream = 5},
					.u.conversation_error = {
						6, rows[i].code, {true, SPAN_LITERAL("words")}}});
	}
	ck_assert_uint_eq(set.count, 1);
	ck_assert_uint_eq(atomic_load(&pair.conn->outbox.bytes), expected.length);
	flush_set_run(&set);
	ck_assert_int_eq(recv(pair.peer, together, sizeof(together), MSG_DONTWAIT), (int)first);
	bytes_add(&received, together, first);
	ck_assert_int_eq(recv(pair.peer, together, sizeof(together), MSG_DONTWAIT),
			 (int)(expected.length - first));
	bytes_add(&received, together, expected.length - first);
	ck_assert(bytes_equal(&received, &expected));
	end();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("deliver");
	TCase *tests = tcase_create("deliver");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tests, 60);
	tcase_add_loop_test(tests, run_of_messages, 0, 16);
	tcase_add_test(tests, own_messages_with_their_answers);
	tcase_add_test(tests, many_answers);
	tcase_add_test(tests, bounds_of_the_outbox_are_no_bounds_of_the_socket);
	tcase_add_loop_test(tests, what_does_not_fit, 0, 2);
	tcase_add_test(tests, stall_is_noted_once);
	tcase_add_test(tests, push_that_does_not_fit);
	tcase_add_loop_test(tests, replies_and_pushes, 0, (int)ARRAY_LENGTH(lengths));
	tcase_add_test(tests, what_always_fits);
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
