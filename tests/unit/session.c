/*
 * Sessions over socket pairs: the same bytes give the same answers, however they are cut into
 * segments; frames of every size, with what stands behind them.
 */
#include "net_helpers.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- what a client sends ----------------------------------------------------------------- */

static uint8_t zeros[1 << 20];

static struct wire_envelope envelope_of(size_t length)
{
	return (struct wire_envelope){
		.schema = zeros, .context = {zeros, 2}, .payload = {zeros + draw(10), length}};
}

/* Small mostly, now and then larger than a read buffer of each size. */
static size_t draw_length(void)
{
	switch (draw(40)) {
	case 0:
		return draw(600000);
	case 1:
	case 2:
		return draw(20000);
	case 3:
	case 4:
	case 5:
		return draw(2000);
	default:
		return draw(100);
	}
}

static struct span draw_channel(void)
{
	static const struct span names[] = {{(const uint8_t *)"news", 4},
					    {(const uint8_t *)"news", 4},
					    {(const uint8_t *)"ticks", 5},
					    {(const uint8_t *)"unknown", 7}};

	return names[draw(ARRAY_LENGTH(names))];
}

static void add_publish(struct bytes *bytes)
{
	bool key = draw(4) == 0;

	bytes_add_frame(bytes, &(struct wire_frame){
				       .header = {.type = WIRE_PUBLISH,
						  .flags = key ? WIRE_PUBLISH_HAS_KEY : 0,
						  .stream = 1 + draw(9)},
				       .u.publish = {.channel = draw_channel(),
						     .envelope = envelope_of(draw_length()),
						     .has_key = key,
						     .key = {(const uint8_t *)"abc", draw(3)}}});
}

static void add_subscribe(struct bytes *bytes)
{
	static uint32_t stream = 10;

	/* Each has its own, so that its messages can be told apart. */
	bytes_add_frame(bytes,
			&(struct wire_frame){.header = {.type = WIRE_SUBSCRIBE, .stream = stream++},
					     .u.subscribe = {.channel = draw_channel(),
							     .max_in_flight = 1 + draw(2)}});
}

static void add_conversation(struct bytes *bytes)
{
	static const struct span subjects[] = {{(const uint8_t *)"q", 1},
					       {(const uint8_t *)"nobody", 6},
					       {(const uint8_t *)"$control/x", 10}};
	uint64_t id = 1 + draw(3);
	uint32_t stream = 1 + draw(9);

	switch (draw(6)) {
	case 0:
		bytes_add_frame(
			bytes, &(struct wire_frame){
				       .header = {.type = WIRE_CONVERSATION_OPEN, .stream = stream},
				       .u.conversation_open = {id, subjects[draw(3)]}});
		break;
	case 1:
		bytes_add_frame(bytes,
				&(struct wire_frame){.header = {.type = WIRE_CONVERSATION_CLOSE,
								.stream = stream},
						     .u.conversation_close.conversation = id});
		break;
	default:
		bytes_add_frame(
			bytes, &(struct wire_frame){
				       .header = {.type = WIRE_CONVERSATION_MESSAGE,
						  .flags = draw(4) > 0 ? WIRE_MESSAGE_REPLY : 0,
						  .stream = stream},
				       .u.conversation_message = {id, envelope_of(draw_length())}});
		break;
	}
}

static void add_worker(struct bytes *bytes)
{
	static uint64_t correlation;

	if (draw(3) == 0) {
		bytes_add_frame(
			bytes,
			&(struct wire_frame){
				.header = {.type = WIRE_WORKER_REGISTER,
					   .flags = draw(4) == 0 ? WIRE_REGISTER_LEAVING : 0},
				.u.worker_register = {
					.queue = SPAN_LITERAL("q"),
					.identity = {zeros, draw(3) == 0 ? 80000 : 1}}});
		return;
	}
	correlation = draw(3) == 0 ? 1 : correlation + 1;
	bytes_add_frame(
		bytes,
		&(struct wire_frame){.header = {.type = WIRE_PUSH_REPLY,
						.flags = draw(4) == 0 ? WIRE_PUSH_REPLY_REFUSED : 0,
						.stream = 1},
				     .u.push = {correlation, {zeros, draw_length()}}});
}

/* Of a type that is skipped: unknown, or the server's own. */
static void add_skipped(struct bytes *bytes)
{
	uint8_t header[WIRE_HEADER_SIZE];
	size_t length = draw_length();

	if (draw(2) == 0)
		wire_put_header(header, (uint8_t)(0x40 + draw(100)), 0xff, draw(3),
				(uint32_t)length);
	else
		wire_put_header(header, WIRE_DELIVER, 0, 1 + draw(9), (uint32_t)length);
	bytes_add(bytes, header, sizeof(header));
	bytes_add(bytes, zeros, length);
}

static void add_control(struct bytes *bytes)
{
	uint16_t minor = (uint16_t)draw(5);

	switch (draw(4)) {
	case 0:
		bytes_add_frame(bytes,
				&(struct wire_frame){.header = {.type = WIRE_CONNECT},
						     .u.connect = {.min = {1, (uint16_t)draw(4)},
								   .max = {1, minor},
								   .token = {zeros, draw(10)}}});
		break;
	case 1:
		bytes_add_frame(bytes, &(struct wire_frame){
					       .header = {.type = WIRE_UNSUBSCRIBE, .stream = 1},
					       .u.unsubscribe.subscription = 1 + draw(5)});
		break;
	case 2:
		bytes_add_frame(bytes,
				&(struct wire_frame){.header = {.type = WIRE_ACCEPT, .stream = 1},
						     .u.answer.message = SPAN_LITERAL("1/2")});
		break;
	default:
		bytes_add_frame(bytes, &(struct wire_frame){.header = {.type = WIRE_PING}});
		break;
	}
}

/* The last frame, behind which others may stand. */
static void add_end(struct bytes *bytes)
{
	static const uint8_t malformed[][14] = {
		{WIRE_PING, 0, 0, 0, 0, 1, 0, 0, 0, 0},		       /* on a stream */
		{WIRE_PUBLISH, 0, 0, 0, 0, 0, 0, 0, 0, 4},	       /* on none */
		{WIRE_PUBLISH, 0, 0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0, 9}, /* longer than it is */
		{WIRE_PING, 0, 0, 0, 0, 0, 0, 0, 0, 4},		       /* bytes left over */
		{WIRE_SUBSCRIBE, 0, 0, 0, 0, 3, 0, 0, 0, 2},
	};

	switch (draw(4)) {
	case 0:
		bytes_add_frame(bytes, &(struct wire_frame){.header = {.type = WIRE_DISCONNECT}});
		break;
	case 1:
		bytes_add(bytes, malformed[draw(ARRAY_LENGTH(malformed))], 14);
		break;
	default:
		break;
	}
}

static void add_frames(struct bytes *bytes, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		switch (draw(12)) {
		case 0:
			add_subscribe(bytes);
			break;
		case 1:
			add_skipped(bytes);
			break;
		case 2:
		case 3:
			add_control(bytes);
			break;
		case 4:
		case 5:
			add_worker(bytes);
			break;
		case 6:
		case 7:
		case 8:
			add_conversation(bytes);
			break;
		default:
			add_publish(bytes);
			break;
		}
	}
}

/* --- what it gets ------------------------------------------------------------------------ */

/* Sends all of it, and takes what comes meanwhile. */
static void send_all(int peer, const uint8_t *bytes, size_t length, struct bytes *received)
{
	while (length > 0) {
		struct pollfd wait = {.fd = peer, .events = POLLIN | POLLOUT};
		ssize_t sent;

		(void)poll(&wait, 1, -1);
		(void)bytes_receive(received, peer);
		sent = send(peer, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
			return; /* it has ended, and reads nothing more */
		if (sent > 0) {
			bytes += sent;
			length -= (size_t)sent;
		}
	}
}

/* Returns when the session has read everything that was sent. */
static void wait_read(int peer, int watch, struct bytes *received)
{
	int unread = 1;

	while (!session_has_ended()) {
		ck_assert_int_eq(ioctl(watch, FIONREAD, &unread), 0);
		if (unread == 0)
			return;
		(void)bytes_receive(received, peer);
		sched_yield();
	}
}

/* What a server that is new answers to SENT, in segments of at most SEGMENT bytes; 0: as it comes.
 */
static void play(const struct bytes *sent, unsigned segment, struct bytes *received)
{
	int peer, watch;

	net_begin();
	peer = session_open(NET_LISTENER_CLIENTS, &watch);
	if (segment == 0)
		send_all(peer, sent->data, sent->length, received);
	for (size_t offset = 0; segment > 0 && offset < sent->length;) {
		size_t length = size_min(1 + draw(segment), sent->length - offset);

		send_all(peer, sent->data + offset, length, received);
		wait_read(peer, watch, received);
		offset += length;
	}
	(void)close(watch);
	(void)shutdown(peer, SHUT_WR);
	bytes_receive_until(received, peer, SIZE_MAX);
	sessions_wait();
	(void)close(peer);
	net_end();
}

/* Which of the orders a frame belongs to: that of the answers, that of the conversations, or that
 * of a subscription's messages. What they are to each other depends on the segments. */
static uint32_t order_of(const struct wire_frame *frame)
{
	switch (frame->header.type) {
	case WIRE_DELIVER:
		return frame->header.stream;
	case WIRE_CONVERSATION_MESSAGE:
	case WIRE_CONVERSATION_ERROR:
	case WIRE_PUSH:
		return 1;
	default:
		return 0;
	}
}

#define ORDERS 100 /* more than there are frames */

/* The frames of BYTES, sorted by their order. */
static struct bytes sorted(const struct bytes *bytes)
{
	struct bytes result = {0};

	for (uint32_t order = 0; order < ORDERS; order++) {
		for (size_t offset = 0, consumed; offset < bytes->length; offset += consumed) {
			struct wire_frame frame;
			const char *why;

			ck_assert_int_eq(wire_decode(bytes->data + offset, bytes->length - offset,
						     WIRE_VERSION_1_2, &frame, &consumed, &why),
					 WIRE_OK);
			if (order_of(&frame) == order)
				bytes_add(&result, bytes->data + offset, consumed);
		}
	}
	return result;
}

/* _i: the seed. */
START_TEST(segments_do_not_matter)
{
	static const unsigned segments[] = {0, 7, 100, 3000, 100000};
	struct bytes sent = {0}, first = {0};

	draw_seed((uint64_t)_i + 1);
	if (_i % 3 == 0)
		limits.max_frame_size = 4096;
	add_frames(&sent, 5 + draw(60));
	add_end(&sent);
	add_frames(&sent, draw(3));
	for (size_t i = 0; i < ARRAY_LENGTH(segments); i++) {
		struct bytes received = {0}, answers;

		if (segments[i] > 0 && sent.length / segments[i] > 200)
			continue;
		play(&sent, segments[i], &received);
		answers = sorted(&received);
		if (i == 0)
			first = answers;
		ck_assert_msg(bytes_equal(&answers, &first), "segments of %u bytes", segments[i]);
		if (i > 0)
			bytes_free(&answers);
		bytes_free(&received);
	}
	bytes_free(&first);
	bytes_free(&sent);
}
END_TEST

START_TEST(byte_by_byte)
{
	struct bytes sent = {0}, whole = {0}, bytes = {0}, answers, answers_to_bytes;

	draw_seed(99);
	while (sent.length < 2500) {
		size_t before = sent.length;

		add_frames(&sent, 1);
		if (sent.length - before > 700)
			sent.length = before;
	}
	play(&sent, 0, &whole);
	play(&sent, 1, &bytes);
	ck_assert_uint_gt(whole.length, 0);
	answers = sorted(&whole);
	answers_to_bytes = sorted(&bytes);
	ck_assert(bytes_equal(&answers, &answers_to_bytes));
	bytes_free(&answers);
	bytes_free(&answers_to_bytes);
	bytes_free(&sent);
	bytes_free(&whole);
	bytes_free(&bytes);
}
END_TEST

/* --- large frames ------------------------------------------------------------------------ */

/* Around the sizes of the read buffers, and of what is shared instead of copied. */
static const size_t sizes[] = {0,     1,     400,   511,    512,    513,    4085,   4096,
			       16000, 16384, 16400, 262000, 262144, 262134, 262135, 800000};

START_TEST(payload_arrives_as_it_was_sent)
{
	struct bytes sent = {0}, subscriber = {0}, publisher = {0};
	uint8_t *payload = malloc(sizes[_i] + 1);
	int from, to;
	struct wire_frame frame;
	size_t consumed;
	const char *why;

	for (size_t i = 0; i < sizes[_i]; i++)
		payload[i] = (uint8_t)(i * 31 + i / 256);
	net_begin();
	to = session_open(NET_LISTENER_CLIENTS, NULL);
	bytes_add_frame(&sent, &(struct wire_frame){.header = {.type = WIRE_SUBSCRIBE, .stream = 5},
						    .u.subscribe = {.channel = SPAN_LITERAL("news"),
								    .max_in_flight = 9}});
	send_all(to, sent.data, sent.length, &subscriber);
	bytes_receive_until(&subscriber, to, WIRE_HEADER_SIZE + 40);
	subscriber.length = sent.length = 0;
	from = session_open(NET_LISTENER_CLIENTS, NULL);
	for (int i = 0; i < 3; i++)
		bytes_add_frame(
			&sent,
			&(struct wire_frame){
				.header = {.type = WIRE_PUBLISH, .stream = 3},
				.u.publish = {.channel = SPAN_LITERAL("news"),
					      .envelope = {.schema = zeros,
							   .context = {zeros, 2},
							   .payload = {payload, sizes[_i]}}}});
	send_all(from, sent.data, sent.length, &publisher);
	bytes_receive_until(&publisher, from, 3 * WIRE_PUBLISH_ACK_SIZE);
	bytes_receive_until(&subscriber, to,
			    3 * (WIRE_DELIVER_HEAD + WIRE_REPLY_ENVELOPE_HEAD + sizes[_i]));
	for (size_t i = 0, offset = 0; i < 3; i++, offset += consumed) {
		ck_assert_int_eq(wire_decode(subscriber.data + offset, subscriber.length - offset,
					     WIRE_VERSION_1_0, &frame, &consumed, &why),
				 WIRE_OK);
		ck_assert_uint_eq(frame.header.type, WIRE_DELIVER);
		ck_assert_uint_eq(frame.header.stream, 5);
		ck_assert_uint_eq(frame.u.deliver.sequence, i + 1);
		ck_assert(memcmp(frame.u.deliver.envelope.schema, "the schema of news", 18) == 0);
		ck_assert(span_equal(frame.u.deliver.envelope.payload,
				     (struct span){payload, sizes[_i]}));
	}
	for (size_t i = 0, offset = 0; i < 3; i++, offset += consumed) {
		ck_assert_int_eq(wire_decode(publisher.data + offset, publisher.length - offset,
					     WIRE_VERSION_1_0, &frame, &consumed, &why),
				 WIRE_OK);
		ck_assert_uint_eq(frame.header.type, WIRE_PUBLISH_ACK);
		ck_assert_uint_eq(frame.header.flags, WIRE_PUBLISH_ACK_DELIVERED);
		ck_assert_uint_eq(frame.u.publish_ack.message, i + 1);
	}
	(void)close(from);
	(void)close(to);
	sessions_wait();
	net_end();
	free(payload);
	bytes_free(&sent);
	bytes_free(&subscriber);
	bytes_free(&publisher);
}
END_TEST

/* A frame that never becomes whole is dropped at the end, and what stood before it answered. */
START_TEST(partial_frame_at_the_end)
{
	struct bytes whole = {0}, sent = {0}, received = {0};

	bytes_add_frame(&whole, &(struct wire_frame){.header = {.type = WIRE_PING}});
	bytes_add_frame(&whole,
			&(struct wire_frame){.header = {.type = WIRE_PUBLISH, .stream = 3},
					     .u.publish = {.channel = SPAN_LITERAL("news"),
							   .envelope = envelope_of(sizes[_i])}});
	bytes_add(&sent, whole.data, whole.length - 1);
	play(&sent, 0, &received);
	ck_assert_uint_eq(received.length, WIRE_HEADER_SIZE);
	ck_assert_uint_eq(received.data[0], WIRE_PONG);
	bytes_free(&whole);
	bytes_free(&sent);
	bytes_free(&received);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("session");
	TCase *tests = tcase_create("session");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tests, 120);
	tcase_add_loop_test(tests, segments_do_not_matter, 0, 30);
	tcase_add_test(tests, byte_by_byte);
	tcase_add_loop_test(tests, payload_arrives_as_it_was_sent, 0, (int)ARRAY_LENGTH(sizes));
	tcase_add_loop_test(tests, partial_frame_at_the_end, 0, (int)ARRAY_LENGTH(sizes));
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
