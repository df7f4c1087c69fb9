/*
 * The outbox over socket pairs: every byte in order, frames counted however the socket cuts them,
 * bounds, sockets that fail, and the flusher that finishes what others began.
 */
#include "net_helpers.h"
#include "base/clock.h"
#include "net/socket.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct pair pair;

static uint64_t frames_queued(void)
{
	return atomic_load(&pair.conn->outbox.frames);
}

static uint64_t bytes_queued(void)
{
	return atomic_load(&pair.conn->outbox.bytes);
}

static bool is_dead(void)
{
	return atomic_load(&pair.conn->sink.dead);
}

/* The writer flag: somebody, or the flusher, is at it. */
static bool is_writing(void)
{
	bool writing;

	mutex_lock(&pair.conn->outbox.lock);
	writing = pair.conn->outbox.writing;
	mutex_unlock(&pair.conn->outbox.lock);
	return writing;
}

static void flush(void)
{
	outbox_flush(pair.conn, NULL);
}

/* How small a socket's buffer gets is up to the system. */
static void narrow(void)
{
	int size = 4096;

	ck_assert_int_eq(setsockopt(pair.conn->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)), 0);
	ck_assert_int_eq(setsockopt(pair.peer, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)), 0);
}

/* --- everything in order ----------------------------------------------------------------- */

/* What has been queued, and where in it each frame ends. */
static struct bytes expected;
static size_t ends[100000];
static size_t end_count;

static struct wire_frame pong = {.header = {.type = WIRE_PONG}};

static void queue_frame(void)
{
	char text[600];
	struct wire_frame error = {
		.header = {.type = WIRE_PUBLISH_ERROR, .stream = 1 + draw(1000)},
		.u.error = {.code = 9,
			    .text = {true, {(const uint8_t *)text, draw(sizeof(text))}}}};

	memset(text, 'a' + (int)draw(26), sizeof(text));
	outbox_add_frame(pair.conn, &error);
	bytes_add_frame(&expected, &error);
	ends[end_count++] = expected.length;
}

static void queue_last_frame(void)
{
	mutex_lock(&pair.conn->outbox.lock);
	outbox_add_last_frame_locked(pair.conn, &pong);
	mutex_unlock(&pair.conn->outbox.lock);
	bytes_add_frame(&expected, &pong);
	ends[end_count++] = expected.length;
}

/* Like a Deliver by reference: head, a piece of a buffer, and sometimes a tail. */
static void queue_reference(void)
{
	size_t length = 1 + draw(30000), tail = draw(2) * 16, skipped = draw(10);
	struct buf *buf = buf_new(skipped + length);
	uint8_t *head;

	ck_assert_ptr_nonnull(buf);
	memset(buf->data, 'A' + (int)draw(26), buf->length);
	mutex_lock(&pair.conn->outbox.lock);
	head = outbox_add_locked(pair.conn, WIRE_HEADER_SIZE, 1, 0);
	ck_assert_ptr_nonnull(head);
	wire_put_header(head, WIRE_DELIVER, 0, 1, (uint32_t)(length + tail));
	bytes_add(&expected, head, WIRE_HEADER_SIZE);
	ck_assert(
		outbox_add_buf_locked(pair.conn, buf, (struct span){buf->data + skipped, length}));
	bytes_add(&expected, buf->data + skipped, length);
	if (tail > 0) {
		uint8_t *bytes = outbox_continue_locked(pair.conn, tail);

		ck_assert_ptr_nonnull(bytes);
		memset(bytes, '!', tail);
		bytes_add(&expected, bytes, tail);
	}
	mutex_unlock(&pair.conn->outbox.lock);
	buf_unref(&buf); /* the outbox has its own */
	ends[end_count++] = expected.length;
}

/* Room for several frames at once, of which some are filled in. */
static void queue_stretch(void)
{
	size_t count = 1 + draw(200), filled = 0, size, used = 0;
	uint8_t *bytes;

	mutex_lock(&pair.conn->outbox.lock);
	bytes = outbox_stretch_locked(pair.conn, WIRE_PUBLISH_ACK_SIZE,
				      count * WIRE_PUBLISH_ACK_SIZE, &size);
	ck_assert_ptr_nonnull(bytes);
	ck_assert_uint_ge(size, WIRE_PUBLISH_ACK_SIZE);
	ck_assert_uint_le(size, count * WIRE_PUBLISH_ACK_SIZE);
	while (size - used >= WIRE_PUBLISH_ACK_SIZE) {
		wire_put_publish_ack(bytes + used, 0, 1 + draw(9), draw(1000));
		used += WIRE_PUBLISH_ACK_SIZE;
		filled++;
		ends[end_count++] = expected.length + used;
	}
	outbox_added_locked(pair.conn, used, filled);
	bytes_add(&expected, bytes, used);
	mutex_unlock(&pair.conn->outbox.lock);
}

/* Deliver frames that are shared with others, and get their own stream and numbers when sent. */
static void queue_run(void)
{
	static uint8_t payload[70010];
	size_t count = 1 + draw(40);
	uint32_t stream = 1 + draw(9);
	uint64_t sequence = draw(1000);
	struct bytes shared = {0};
	struct buf *buf;

	for (size_t i = 0; payload[1] == 0 && i < sizeof(payload); i++)
		payload[i] = (uint8_t)(i * 7 + i / 256);
	for (size_t i = 0; i < count; i++) {
		size_t length = draw(draw(20) == 0 ? 70000 : 500), offset = expected.length;
		uint8_t head[WIRE_DELIVER_HEAD];

		wire_put_deliver_head(head, 0, 1, 0, (uint32_t)length, false);
		bytes_add(&shared, head, sizeof(head));
		bytes_add(&expected, head, sizeof(head));
		wire_set_deliver(expected.data + offset, stream, sequence + i);
		bytes_add(&shared, payload + draw(9), length);
		bytes_add(&expected, shared.data + shared.length - length, length);
		ends[end_count++] = expected.length;
	}
	buf = buf_new(shared.length);
	ck_assert_ptr_nonnull(buf);
	memcpy(buf->data, shared.data, shared.length);
	mutex_lock(&pair.conn->outbox.lock);
	ck_assert(outbox_add_run_locked(pair.conn, buf, count, stream, sequence));
	mutex_unlock(&pair.conn->outbox.lock);
	buf_unref(&buf);
	bytes_free(&shared);
}

static void queue_something(void)
{
	switch (draw(9)) {
	case 0:
	case 1:
		queue_reference();
		break;
	case 2:
		queue_stretch();
		break;
	case 3:
		queue_last_frame();
		break;
	case 4:
		queue_run();
		break;
	default:
		queue_frame();
		break;
	}
}

/* Of what was queued, SENT bytes are gone: how many frames are not. */
static uint64_t frames_left(size_t sent)
{
	size_t done = 0;

	while (done < end_count && ends[done] <= sent)
		done++;
	return end_count - done;
}

/* The numbers agree with what has really been sent, whoever sends. */
static void check_numbers(void)
{
	mutex_lock(&pair.conn->outbox.lock);
	ck_assert_uint_eq(bytes_queued(), expected.length - pair.conn->outbox.sent);
	ck_assert_uint_eq(frames_queued(), frames_left((size_t)pair.conn->outbox.sent));
	mutex_unlock(&pair.conn->outbox.lock);
}

/* _i: the seed. The socket takes a little at a time, and the peer as little. */
START_TEST(every_byte_in_order_and_every_frame_counted)
{
	struct bytes received = {0};

	draw_seed((uint64_t)_i + 1);
	net_begin();
	pair_open(&pair, SOCK_STREAM);
	if (_i % 2 == 0)
		narrow();
	for (int i = 0; i < 500; i++) {
		queue_something();
		check_numbers();
		if (draw(4) == 0)
			flush();
		check_numbers();
		if (draw(3) == 0) {
			uint8_t some[5000];
			ssize_t got = recv(pair.peer, some, 1 + draw(sizeof(some)), MSG_DONTWAIT);

			if (got > 0)
				bytes_add(&received, some, (size_t)got);
		}
		check_numbers();
	}
	flush();
	bytes_receive_until(&received, pair.peer, expected.length);
	ck_assert(bytes_equal(&received, &expected));
	ck_assert_int_eq(outbox_finish(pair.conn, 60000), FINISH_WRITTEN);
	ck_assert_uint_eq(bytes_queued(), 0);
	ck_assert_uint_eq(frames_queued(), 0);
	ck_assert(!is_writing());
	pair_close(&pair);
	net_end();
	bytes_free(&received);
	bytes_free(&expected);
}
END_TEST

START_TEST(one_flush_is_one_write_but_where_a_write_ends)
{
	uint8_t together[4096];

	net_begin();
	pair_open(&pair, SOCK_DGRAM);
	outbox_add_frame(pair.conn, &pong);
	outbox_add_frame(pair.conn, &pong);
	flush();
	ck_assert_int_eq(recv(pair.peer, together, sizeof(together), MSG_DONTWAIT),
			 2 * WIRE_HEADER_SIZE);
	/* In front of it everything, behind it nothing. */
	outbox_add_frame(pair.conn, &pong);
	queue_last_frame();
	outbox_add_frame(pair.conn, &pong);
	queue_last_frame();
	queue_last_frame();
	outbox_add_frame(pair.conn, &pong);
	ck_assert_uint_eq(frames_queued(), 6);
	flush();
	ck_assert_uint_eq(frames_queued(), 0);
	ck_assert_int_eq(recv(pair.peer, together, sizeof(together), MSG_DONTWAIT),
			 2 * WIRE_HEADER_SIZE);
	ck_assert_int_eq(recv(pair.peer, together, sizeof(together), MSG_DONTWAIT),
			 2 * WIRE_HEADER_SIZE);
	ck_assert_int_eq(recv(pair.peer, together, sizeof(together), MSG_DONTWAIT),
			 WIRE_HEADER_SIZE);
	ck_assert_int_eq(recv(pair.peer, together, sizeof(together), MSG_DONTWAIT),
			 WIRE_HEADER_SIZE);
	ck_assert_int_eq(recv(pair.peer, together, sizeof(together), MSG_DONTWAIT), -1);
	/* The flusher obeys that, too. */
	outbox_add_frame(pair.conn, &pong);
	queue_last_frame();
	outbox_add_frame(pair.conn, &pong);
	mutex_lock(&pair.conn->outbox.lock);
	pair.conn->sink.ops->flush_later(&pair.conn->sink);
	mutex_unlock(&pair.conn->outbox.lock);
	ck_assert_int_eq(outbox_finish(pair.conn, 60000), FINISH_WRITTEN);
	ck_assert_int_eq(recv(pair.peer, together, sizeof(together), MSG_DONTWAIT),
			 2 * WIRE_HEADER_SIZE);
	ck_assert_int_eq(recv(pair.peer, together, sizeof(together), MSG_DONTWAIT),
			 WIRE_HEADER_SIZE);
	pair_close(&pair);
	net_end();
	bytes_free(&expected);
}
END_TEST

/* --- bounds ------------------------------------------------------------------------------ */

static enum sink_result fits(size_t size)
{
	enum sink_result result;

	mutex_lock(&pair.conn->outbox.lock);
	result = outbox_fits_locked(pair.conn, size);
	mutex_unlock(&pair.conn->outbox.lock);
	return result;
}

static bool fits_all(size_t frames, size_t bytes)
{
	bool result;

	mutex_lock(&pair.conn->outbox.lock);
	result = outbox_fits_all_locked(pair.conn, frames, bytes);
	mutex_unlock(&pair.conn->outbox.lock);
	return result;
}

START_TEST(full_and_half_full)
{
	uint8_t text[83];

	limits.max_outbox_frames = 8;
	limits.max_outbox_bytes = 1000;
	net_begin();
	pair_open(&pair, SOCK_STREAM);
	ck_assert_int_eq(fits(SIZE_MAX), SINK_OK); /* empty: one of any size */
	ck_assert(!fits_all(1, 1001));
	ck_assert(fits_all(8, 1000));
	ck_assert(!fits_all(9, 1000));
	for (int i = 0; i < 4; i++) {
		ck_assert_uint_eq(outbox_room(pair.conn, 0), (size_t)(4 - i));
		ck_assert_uint_eq(outbox_room(pair.conn, (size_t)(3 - i)), 1);
		ck_assert_uint_eq(outbox_room(pair.conn, (size_t)(4 - i)), 0);
		ck_assert(!outbox_is_full(pair.conn, (size_t)(7 - i)));
		ck_assert(outbox_is_full(pair.conn, (size_t)(8 - i)));
		outbox_add_frame(pair.conn, &pong);
	}
	ck_assert_uint_eq(outbox_room(pair.conn, 0), 0);
	ck_assert_int_eq(fits(960), SINK_OK);
	ck_assert_int_eq(fits(961), SINK_FULL_BYTES);
	ck_assert_int_eq(fits(SIZE_MAX), SINK_FULL_BYTES);
	ck_assert(fits_all(4, 960));
	ck_assert(!fits_all(5, 960));
	ck_assert(!fits_all(4, 961));
	for (int i = 0; i < 4; i++) {
		ck_assert(!outbox_is_full(pair.conn, 0));
		outbox_add_frame(pair.conn, &pong);
	}
	ck_assert(outbox_is_full(pair.conn, 0));
	ck_assert_int_eq(fits(1), SINK_FULL_FRAMES);
	/* Answers always fit. */
	outbox_add_frame(pair.conn, &pong);
	ck_assert_uint_eq(frames_queued(), 9);
	flush();
	ck_assert_uint_gt(outbox_room(pair.conn, 0), 0);
	/* By bytes: a place that waits for an answer counts as one. */
	memset(text, 'x', sizeof(text));
	for (int i = 0; i < 5; i++)
		outbox_add_frame(
			pair.conn,
			&(struct wire_frame){.header = {.type = WIRE_PUBLISH_ERROR, .stream = 1},
					     .u.error = {.code = 9, .text = {true, {text, 83}}}});
	ck_assert_uint_eq(bytes_queued(), 500);
	ck_assert_uint_eq(outbox_room(pair.conn, 0), 0);
	ck_assert(!outbox_is_full(pair.conn, 2));
	pair_close(&pair);
	net_end();
}
END_TEST

static void *wait_room(void *argument)
{
	bool *in_time = argument;

	*in_time = outbox_wait_room(pair.conn, DEADLINE_NEVER);
	return NULL;
}

static void fill(void)
{
	narrow();
	while (!outbox_is_full(pair.conn, 0) || !is_writing()) {
		queue_reference();
		flush();
	}
}

START_TEST(room_comes_with_what_the_peer_takes)
{
	struct bytes received = {0};
	struct thread thread;
	bool in_time = false;

	limits.max_outbox_frames = 16;
	net_begin();
	pair_open(&pair, SOCK_STREAM);
	ck_assert(outbox_wait_room(pair.conn, DEADLINE_NEVER));
	fill();
	ck_assert(!outbox_wait_room(pair.conn, 0));
	ck_assert_int_eq(thread_start(&thread, wait_room, &in_time), 0);
	bytes_receive_until(&received, pair.peer, expected.length);
	thread_join(&thread);
	ck_assert(in_time);
	ck_assert(bytes_equal(&received, &expected));
	pair_close(&pair);
	net_end();
	bytes_free(&received);
	bytes_free(&expected);
}
END_TEST

START_TEST(wait_for_room_ends_when_the_connection_is_to_be_closed)
{
	struct thread thread;
	bool in_time;

	limits.max_outbox_frames = 16;
	net_begin();
	pair_open(&pair, SOCK_STREAM);
	fill();
	ck_assert_int_eq(thread_start(&thread, wait_room, &in_time), 0);
	ck_assert(net_close_connection(net, pair.conn->id));
	thread_join(&thread);
	ck_assert(outbox_is_full(pair.conn, 0));
	pair_close(&pair);
	net_end();
	bytes_free(&expected);
}
END_TEST

/* --- sockets that fail ------------------------------------------------------------------- */

START_TEST(failed_write_throws_away_and_reads_on)
{
	struct sink_load load;
	char byte = 0;

	net_begin();
	pair_open(&pair, SOCK_STREAM);
	ck_assert_int_eq(send(pair.peer, "x", 1, 0), 1);
	ck_assert_int_eq(shutdown(pair.peer, SHUT_RD), 0);
	outbox_add_frame(pair.conn, &pong);
	queue_reference();
	ck_assert(!is_dead());
	flush();
	ck_assert(is_dead());
	ck_assert_uint_eq(bytes_queued(), 0);
	ck_assert_uint_eq(frames_queued(), 0);
	/* What comes is thrown away, too, and it is never full. */
	outbox_add_frame(pair.conn, &pong);
	mutex_lock(&pair.conn->outbox.lock);
	ck_assert_ptr_null(outbox_add_locked(pair.conn, 10, 1, 0));
	outbox_add_last_frame_locked(pair.conn, &pong);
	mutex_unlock(&pair.conn->outbox.lock);
	ck_assert_int_eq(fits(1), SINK_DEAD);
	ck_assert(!fits_all(1, 1));
	ck_assert(!outbox_is_full(pair.conn, SIZE_MAX / 100));
	ck_assert(outbox_wait_room(pair.conn, DEADLINE_NEVER));
	pair.conn->sink.ops->load(&pair.conn->sink, true, &load);
	ck_assert_uint_eq(load.bytes + load.frames, 0);
	ck_assert_int_eq(outbox_finish(pair.conn, 60000), FINISH_FAILED);
	/* Input already received is still there. */
	ck_assert_int_eq(recv(pair.conn->fd, &byte, 1, 0), 1);
	ck_assert_int_eq(byte, 'x');
	pair_close(&pair);
	net_end();
	bytes_free(&expected);
}
END_TEST

START_TEST(socket_fails_while_the_flusher_has_it)
{
	limits.max_outbox_frames = 16;
	net_begin();
	pair_open(&pair, SOCK_STREAM);
	fill();
	pair_close_peer(&pair);
	ck_assert_int_eq(outbox_finish(pair.conn, 60000), FINISH_FAILED);
	ck_assert(is_dead());
	pair_close(&pair);
	net_end();
	bytes_free(&expected);
}
END_TEST

START_TEST(finish_gives_up_without_progress)
{
	limits.max_outbox_frames = 16;
	net_begin();
	pair_open(&pair, SOCK_STREAM);
	ck_assert_int_eq(outbox_finish(pair.conn, 1), FINISH_WRITTEN); /* nothing to write */
	fill();
	ck_assert_int_eq(outbox_finish(pair.conn, 20), FINISH_LATE);
	ck_assert(is_dead());
	pair_close(&pair); /* does not wait for the peer either */
	net_end();
	bytes_free(&expected);
}
END_TEST

static void *finish(void *argument)
{
	*(enum finish_result *)argument = outbox_finish(pair.conn, 20);
	return NULL;
}

/* The peer has taken all that it was sent, and the flusher does not get round to sending more. */
START_TEST(busy_flusher_is_not_a_lack_of_progress)
{
	const struct timespec windows = {.tv_nsec = 200 * NS_PER_MS};
	enum finish_result result = FINISH_LATE;
	struct bytes received = {0};
	struct thread thread;

	limits.max_outbox_frames = 16;
	net_begin();
	pair_open(&pair, SOCK_STREAM);
	fill();
	mutex_lock(&net->flusher.lock);
	do
		(void)bytes_receive(&received, pair.peer);
	while (!socket_is_writable(pair.conn->fd));
	ck_assert_int_eq(thread_start(&thread, finish, &result), 0);
	(void)nanosleep(&windows, NULL); /* that long it goes on: less would show less */
	mutex_unlock(&net->flusher.lock);
	bytes_receive_until(&received, pair.peer, expected.length);
	thread_join(&thread);
	ck_assert_int_eq(result, FINISH_WRITTEN);
	ck_assert(bytes_equal(&received, &expected));
	pair_close(&pair);
	net_end();
	bytes_free(&received);
	bytes_free(&expected);
}
END_TEST

START_TEST(close_takes_it_from_the_flusher)
{
	limits.max_outbox_frames = 16;
	net_begin();
	pair_open(&pair, SOCK_STREAM);
	fill();
	ck_assert(is_writing());
	outbox_close(pair.conn);
	ck_assert(!is_writing());
	ck_assert_uint_eq(bytes_queued(), 0);
	outbox_add_frame(pair.conn, &pong);
	flush();
	ck_assert_uint_eq(bytes_queued(), 0);
	pair_close(&pair);
	net_end();
	bytes_free(&expected);
}
END_TEST

/* --- many at once ------------------------------------------------------------------------ */

#define APPENDERS 3
#define APPENDED 3000

/* Numbered frames through a flush set, as other connections' sessions do it. */
static void *append(void *argument)
{
	uint32_t stream = *(uint32_t *)argument;

	for (uint64_t i = 1; i <= APPENDED; i += 3) {
		struct flush_set set;

		flush_set_init(&set);
		mutex_lock(&pair.conn->outbox.lock);
		for (uint64_t j = 0; j < 3; j++) {
			outbox_add_frame_locked(
				pair.conn, &(struct wire_frame){.header = {.type = WIRE_PUBLISH_ACK,
									   .stream = stream},
								.u.publish_ack.message = i + j});
			outbox_touch_locked(pair.conn, &set);
		}
		ASSERT(set.count == 1);
		mutex_unlock(&pair.conn->outbox.lock);
		flush_set_run(&set);
	}
	return NULL;
}

START_TEST(each_appender_keeps_its_order)
{
	static uint32_t streams[APPENDERS];
	size_t total = (size_t)APPENDERS * APPENDED * WIRE_PUBLISH_ACK_SIZE;
	uint64_t last[APPENDERS] = {0};
	struct thread threads[APPENDERS];
	struct bytes received = {0};

	net_begin();
	pair_open(&pair, SOCK_STREAM);
	narrow();
	for (uint32_t i = 0; i < APPENDERS; i++) {
		streams[i] = i + 1;
		ck_assert_int_eq(thread_start(&threads[i], append, &streams[i]), 0);
	}
	bytes_receive_until(&received, pair.peer, total);
	for (uint32_t i = 0; i < APPENDERS; i++)
		thread_join(&threads[i]);
	ck_assert_uint_eq(received.length, total);
	for (size_t offset = 0; offset < total; offset += WIRE_PUBLISH_ACK_SIZE) {
		struct wire_frame frame;
		size_t consumed;
		const char *why;

		ck_assert_int_eq(wire_decode(received.data + offset, total - offset,
					     WIRE_VERSION_1_0, &frame, &consumed, &why),
				 WIRE_OK);
		ck_assert_uint_eq(frame.u.publish_ack.message, ++last[frame.header.stream - 1]);
	}
	ck_assert_int_eq(outbox_finish(pair.conn, 60000), FINISH_WRITTEN);
	ck_assert_uint_eq(frames_queued(), 0);
	pair_close(&pair);
	net_end();
	bytes_free(&received);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("outbox");
	TCase *tests = tcase_create("outbox");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tests, 60);
	tcase_add_loop_test(tests, every_byte_in_order_and_every_frame_counted, 0, 20);
	tcase_add_test(tests, one_flush_is_one_write_but_where_a_write_ends);
	tcase_add_test(tests, full_and_half_full);
	tcase_add_test(tests, room_comes_with_what_the_peer_takes);
	tcase_add_test(tests, wait_for_room_ends_when_the_connection_is_to_be_closed);
	tcase_add_test(tests, failed_write_throws_away_and_reads_on);
	tcase_add_test(tests, socket_fails_while_the_flusher_has_it);
	tcase_add_test(tests, finish_gives_up_without_progress);
	tcase_add_test(tests, busy_flusher_is_not_a_lack_of_progress);
	tcase_add_test(tests, close_takes_it_from_the_flusher);
	tcase_add_test(tests, each_appender_keeps_its_order);
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
