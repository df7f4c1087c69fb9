/*
 * The flusher: it finishes what sockets did not take, for everybody in turn; it drains refused
 * sockets, and wakes sessions that are to be closed.
 */
#include "net_helpers.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/metrics.h"

static size_t handed_over(void)
{
	struct flusher *flusher = &net->flusher;
	size_t count = 0;

	mutex_lock(&flusher->lock);
	for (const struct list *node = flusher->incoming.next; node != &flusher->incoming;
	     node = node->next)
		count++;
	mutex_unlock(&flusher->lock);
	return count;
}

static bool is_writing(struct pair *pair)
{
	bool writing;

	mutex_lock(&pair->conn->outbox.lock);
	writing = pair->conn->outbox.writing;
	mutex_unlock(&pair->conn->outbox.lock);
	return writing;
}

static void queue(struct pair *pair, size_t length)
{
	static uint8_t zeros[60000];

	outbox_add_frame(pair->conn,
			 &(struct wire_frame){.header = {.type = WIRE_PUSH, .stream = 1},
					      .u.push = {1, {zeros, length}}});
}

/* More than its socket takes; the flusher has it then. What was queued. */
static size_t overfill(struct pair *pair)
{
	size_t queued = 0;

	while (!is_writing(pair)) {
		for (int i = 0; i < 10; i++)
			queue(pair, 50000);
		queued += 10 * (WIRE_HEADER_SIZE + 12 + 50000);
		outbox_flush(pair->conn, NULL);
	}
	return queued;
}

/* Reads LENGTH bytes, whatever they are. */
static void take(struct pair *pair, size_t length)
{
	struct bytes received = {0};

	bytes_receive_until(&received, pair->peer, length);
	ck_assert_uint_eq(received.length, length);
	bytes_free(&received);
}

/* --- finishing --------------------------------------------------------------------------- */

#define PAIRS 20

START_TEST(everybody_gets_everything)
{
	static struct pair pairs[PAIRS];
	size_t queued[PAIRS];

	net_begin();
	for (int i = 0; i < PAIRS; i++) {
		pair_open(&pairs[i], SOCK_STREAM);
		queued[i] = overfill(&pairs[i]);
	}
	/* Whoever reads gets on, in spite of those that do not; here the last comes first. */
	for (int i = PAIRS - 1; i >= 0; i--) {
		take(&pairs[i], queued[i]);
		ck_assert_int_eq(outbox_finish(pairs[i].conn, 60000), FINISH_WRITTEN);
		ck_assert(!is_writing(&pairs[i]));
	}
	/* It lets go of them, and takes them again. */
	for (int i = 0; i < PAIRS; i++) {
		queued[i] = overfill(&pairs[i]);
		take(&pairs[i], queued[i]);
		ck_assert_int_eq(outbox_finish(pairs[i].conn, 60000), FINISH_WRITTEN);
		pair_close(&pairs[i]);
	}
	net_end();
}
END_TEST

START_TEST(those_that_go_are_let_go_of)
{
	static struct pair pairs[PAIRS];

	net_begin();
	for (int i = 0; i < PAIRS; i++) {
		pair_open(&pairs[i], SOCK_STREAM);
		(void)overfill(&pairs[i]);
	}
	for (int i = 0; i < PAIRS; i += 2) {
		pair_close_peer(&pairs[i]);
		ck_assert_int_eq(outbox_finish(pairs[i].conn, 60000), FINISH_FAILED);
	}
	/* Their sessions close the others while the flusher waits for their sockets. */
	for (int i = 0; i < PAIRS; i++)
		pair_close(&pairs[i]);
	net_end();
}
END_TEST

/* A session may close its outbox at any moment after it was handed over. */
START_TEST(closing_right_after_handing_over)
{
	net_begin();
	for (int i = 0; i < 300; i++) {
		struct pair pair;

		pair_open(&pair, SOCK_STREAM);
		(void)overfill(&pair);
		pair_close(&pair);
	}
	ck_assert_uint_eq(handed_over(), 0);
	net_end();
}
END_TEST

/* Where a flush set could not grow, nobody else flushes. */
START_TEST(what_is_to_be_flushed_later)
{
	struct pair pair;

	net_begin();
	pair_open(&pair, SOCK_STREAM);
	queue(&pair, 100);
	mutex_lock(&pair.conn->outbox.lock);
	pair.conn->sink.ops->flush_later(&pair.conn->sink);
	pair.conn->sink.ops->flush_later(&pair.conn->sink); /* it has it already */
	mutex_unlock(&pair.conn->outbox.lock);
	take(&pair, WIRE_HEADER_SIZE + 12 + 100);
	ck_assert_int_eq(outbox_finish(pair.conn, 60000), FINISH_WRITTEN);
	outbox_close(pair.conn);
	mutex_lock(&pair.conn->outbox.lock);
	pair.conn->sink.ops->flush_later(&pair.conn->sink); /* there is nothing to write any more */
	mutex_unlock(&pair.conn->outbox.lock);
	ck_assert(!is_writing(&pair));
	pair_close(&pair);
	net_end();
}
END_TEST

/* --- refused sockets --------------------------------------------------------------------- */

/* The peer's end of a refused socket. */
static int refuse(void)
{
	int ends[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	ck_assert_int_eq(send(ends[0], "no", 2, 0), 2);
	ck_assert_int_eq(shutdown(ends[0], SHUT_WR), 0);
	flusher_linger(&net->flusher, ends[0]);
	return ends[1];
}

static void wait_closed(int fd)
{
	struct pollfd wait = {.fd = fd, .events = 0};

	do
		ck_assert_int_ge(poll(&wait, 1, -1), 0);
	while ((wait.revents & POLLHUP) == 0);
}

START_TEST(refused_sockets_are_drained)
{
	char text[8];
	int peer;

	net_begin();
	peer = refuse();
	for (int i = 0; i < 10; i++) /* no reset */
		ck_assert_int_eq(send(peer, "hello", 5, MSG_NOSIGNAL), 5);
	ck_assert_int_eq(recv(peer, text, sizeof(text), 0), 2);
	ck_assert_int_eq(recv(peer, text, sizeof(text), 0), 0);
	ck_assert_int_eq(shutdown(peer, SHUT_WR), 0);
	wait_closed(peer);
	(void)close(peer);
	net_end();
}
END_TEST

/* It reads so much and no more. */
START_TEST(refused_sockets_are_not_drained_for_ever)
{
	static char data[65536];
	size_t sent = 0;
	ssize_t step;
	int peer;

	net_begin();
	peer = refuse();
	while ((step = send(peer, data, sizeof(data), MSG_NOSIGNAL)) > 0)
		sent += (size_t)step;
	ck_assert_uint_le(sent, 8 * 1024 * 1024); /* 1 MiB, and what the socket holds */
	(void)close(peer);
	net_end();
}
END_TEST

/* Silent ones go after a while by themselves. */
START_TEST(refused_sockets_are_closed_in_the_end)
{
	int peers[LINGERING_MAX];

	net_begin();
	for (int i = 0; i < LINGERING_MAX; i++)
		peers[i] = refuse();
	for (int i = 0; i < LINGERING_MAX; i++) {
		wait_closed(peers[i]);
		(void)close(peers[i]);
	}
	net_end();
}
END_TEST

START_TEST(too_many_refused_sockets_are_closed_at_once)
{
	static int peers[4 * LINGERING_MAX];
	uint64_t unheard;

	net_begin();
	for (size_t i = 0; i < ARRAY_LENGTH(peers); i++)
		peers[i] = refuse();
	unheard = metric_read(METRIC_REFUSED_UNHEARD);
	/* More only when the machine was so slow that the first had gone again. */
	ck_assert_uint_le(unheard, ARRAY_LENGTH(peers) - LINGERING_MAX);
	ck_assert_uint_gt(unheard, 0);
	for (size_t i = 0; i < ARRAY_LENGTH(peers); i++)
		(void)close(peers[i]);
	net_end();
}
END_TEST

/* What is left when the server stops is closed, too: descriptors do not leak. */
START_TEST(stop_closes_refused_sockets)
{
	int peer;

	net_begin();
	peer = refuse();
	net_end();
	wait_closed(peer);
	(void)close(peer);
}
END_TEST

/* --- sessions ---------------------------------------------------------------------------- */

#define SESSIONS 30

/* They wait for input; the only connection of its own that is known by its id is the first. */
START_TEST(sessions_are_woken_to_be_closed)
{
	int peers[SESSIONS];

	net_begin();
	for (int i = 0; i < SESSIONS; i++)
		peers[i] = session_open(NET_LISTENER_CLIENTS, NULL);
	for (uint64_t id = 1; id <= SESSIONS; id++)
		ck_assert(net_close_connection(net, id));
	for (int i = 0; i < SESSIONS; i++) {
		uint8_t frame[WIRE_HEADER_SIZE + 1];

		/* A Disconnect, then the end. */
		ck_assert_int_eq(recv(peers[i], frame, sizeof(frame), MSG_WAITALL),
				 WIRE_HEADER_SIZE);
		ck_assert_uint_eq(frame[0], WIRE_DISCONNECT);
		(void)close(peers[i]);
	}
	sessions_wait();
	net_end();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("flusher");
	TCase *tests = tcase_create("flusher");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tests, 120);
	tcase_add_test(tests, everybody_gets_everything);
	tcase_add_test(tests, those_that_go_are_let_go_of);
	tcase_add_test(tests, closing_right_after_handing_over);
	tcase_add_test(tests, what_is_to_be_flushed_later);
	tcase_add_test(tests, refused_sockets_are_drained);
	tcase_add_test(tests, refused_sockets_are_not_drained_for_ever);
	tcase_add_test(tests, refused_sockets_are_closed_in_the_end);
	tcase_add_test(tests, too_many_refused_sockets_are_closed_at_once);
	tcase_add_test(tests, stop_closes_refused_sockets);
	tcase_add_test(tests, sessions_are_woken_to_be_closed);
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
