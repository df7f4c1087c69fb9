/*
 * Reading and framing, the loop of a session, and how connections end.
 *
 * A waiting session reads into READ_SMALL bytes on its stack. When that fills up, it takes a
 * buffer from the heap, which grows with traffic up to READ_MAX; a frame that is larger still is
 * read straight into a buffer of its own. The heap buffer is given back when nothing has come for
 * QUIET_MS and no partial frame is in it, so that a busy connection needs one system call per
 * batch and an idle one no memory.
 */
#include "net/session.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/metrics.h"

#define QUIET_MS 100

/* After everything is flushed, what still comes is read and dropped within these. */
#define DRAIN_MS 1000
#define DRAIN_BYTES (1024 * 1024)

/* Before a successful Connect a frame may have this size, where a token is asked for. */
#define HELLO_FRAME_MAX 65536

/* A WorkerRegister may have this size. */
#define REGISTER_FRAME_MAX 65536

/* --- the read buffer ----------------------------------------------------------------------- */

static bool session_is_small(const struct session *session)
{
	return session->data == session->small;
}

/* Reads wait for ever, or for QUIET_MS. */
static void session_set_timed(struct session *session, bool timed)
{
	struct timeval wait = {.tv_usec = timed ? QUIET_MS * 1000 : 0};

	if (session->timed == timed)
		return;
	if (setsockopt(session->conn->fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) == 0)
		session->timed = timed;
}

/*
 * Memory that traffic needs comes from the system and goes back to it. The allocator would keep it:
 * after a burst on all of ten thousand connections that would be most of what they cost.
 */
static void *pages_take(size_t size)
{
	void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);

	return pages == MAP_FAILED ? NULL : pages;
}

/* Gives the buffer a CAPACITY that holds what is in it. False: no memory. */
static bool session_resize(struct session *session, size_t capacity)
{
	size_t kept = session->filled - session->start;
	uint8_t *data = session->small;

	ASSERT(kept <= capacity);
	if (capacity > READ_SMALL) {
		data = pages_take(capacity);
		if (data == NULL)
			return false;
	}
	if (kept > 0)
		memmove(data, session->data + session->start, kept);
	if (!session_is_small(session))
		(void)munmap(session->data, session->capacity);
	session->data = data;
	session->capacity = capacity;
	session->start = 0;
	session->filled = kept;
	return true;
}

static void session_narrow_run(struct session *session)
{
	if (session->run == session->small_run)
		return;
	(void)munmap(session->run, RUN_MAX * sizeof(*session->run));
	session->run = session->small_run;
	session->run_capacity = RUN_SMALL;
}

static void session_give_back(struct session *session)
{
	if (!session_is_small(session) && session->start == session->filled)
		(void)session_resize(session, READ_SMALL);
	session_narrow_run(session);
	session_set_timed(session, false);
}

/* With traffic, longer runs pay. Without memory for them, short ones do. */
static void session_widen_run(struct session *session)
{
	struct message *run;

	if (session->run != session->small_run)
		return;
	run = pages_take(RUN_MAX * sizeof(*run));
	if (run == NULL)
		return;
	session->run = run;
	session->run_capacity = RUN_MAX;
}

/* Room for the rest of a frame of WANTED bytes, and for more when the last read filled all. */
static bool session_make_room(struct session *session, size_t wanted)
{
	size_t kept = session->filled - session->start;
	size_t capacity = session->capacity;
	bool was_full = session->filled == session->capacity;

	if (kept == 0)
		session->start = session->filled = 0;
	if (was_full && capacity < READ_MAX)
		capacity = capacity == READ_SMALL ? READ_FIRST : capacity * 2;
	while (capacity < wanted)
		capacity = capacity == READ_SMALL ? READ_FIRST : capacity * 2;
	if (capacity > session->capacity) {
		if (session_resize(session, capacity)) {
			session_widen_run(session);
			return true;
		}
		if (wanted > session->capacity)
			return false;
	}
	if (session->start > 0 &&
	    (session->capacity - session->start < wanted || session->filled == session->capacity)) {
		memmove(session->data, session->data + session->start, kept);
		session->start = 0;
		session->filled = kept;
	}
	return true;
}

/* --- reading ------------------------------------------------------------------------------- */

enum read_result { READ_DATA, READ_END, READ_FAILED, READ_LATE };

/* Waits until something can be read, where a time limit applies. READ_DATA: go and read. */
static enum read_result session_wait(struct session *session)
{
	struct conn *conn = session->conn;
	int64_t until_ns;

	if (session->said_hello && conn->limits.idle_timeout_ms == 0)
		return READ_DATA;
	until_ns = !session->said_hello ? session->hello_ns
					: clock_after_ms(atomic_load_explicit(&conn->last_read_ns,
									      memory_order_relaxed),
							 conn->limits.idle_timeout_ms);
	for (;;) {
		struct pollfd wait = {.fd = conn->fd, .events = POLLIN};
		int64_t left_ns = until_ns - clock_mono_ns();
		int64_t left_ms = left_ns <= 0 ? 0 : left_ns / NS_PER_MS + 1;
		int ready;

		/* Whoever has not said hello in time is late, whatever else it sends. */
		if (!session->said_hello && left_ns <= 0)
			return READ_LATE;
		if (session->timed && left_ms > QUIET_MS)
			left_ms = QUIET_MS; /* a busy connection's buffer is given back here */
		ready = poll(&wait, 1, left_ms > INT_MAX ? INT_MAX : (int)left_ms);
		if (ready > 0 ||
		    atomic_load_explicit(&conn->close_reason, memory_order_relaxed) != CLOSE_NONE)
			return READ_DATA;
		if (ready < 0)
			continue; /* a signal, of whoever */
		if (clock_mono_ns() >= until_ns)
			return READ_LATE;
		session_give_back(session);
	}
}

/* One read into SIZE bytes at BYTES; READ_DATA with *GOT 0: try again. */
static enum read_result session_receive(struct session *session, uint8_t *bytes, size_t size,
					size_t *got)
{
	struct conn *conn = session->conn;
	ssize_t result = recv(conn->fd, bytes, size, 0);

	*got = 0;
	if (result == 0)
		return READ_END;
	if (result < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
		session_give_back(session);
		return READ_DATA;
	}
	if (result < 0)
		return errno == EINTR ? READ_DATA : READ_FAILED;
	*got = (size_t)result;
	session->read_ns = clock_mono_ns();
	atomic_store_explicit(&conn->last_read_ns, session->read_ns, memory_order_relaxed);
	metric_add(METRIC_BYTES_IN, *got);
	return READ_DATA;
}

/* Takes what else has come already: the small buffer was full. */
static void session_read_more(struct session *session)
{
	ssize_t got = recv(session->conn->fd, session->data + session->filled,
			   session->capacity - session->filled, MSG_DONTWAIT);

	if (got <= 0)
		return; /* whatever it is, the next read meets it again */
	session->filled += (size_t)got;
	metric_add(METRIC_BYTES_IN, (uint64_t)got);
}

/* The size of the frame at the start of the buffer, as far as it is known. */
static size_t session_wanted(const struct session *session)
{
	size_t available = session->filled - session->start;
	struct wire_header header;

	if (available < WIRE_HEADER_SIZE || session->skip > 0)
		return WIRE_HEADER_SIZE;
	header = wire_get_header(session->data + session->start);
	if (header.length > READ_MAX - WIRE_HEADER_SIZE)
		return size_max(available + 1, WIRE_HEADER_SIZE); /* it does not come here */
	return WIRE_HEADER_SIZE + (size_t)header.length;
}

static enum read_result session_read(struct session *session)
{
	struct conn *conn = session->conn;
	enum read_result result;
	size_t got;

	if (atomic_load_explicit(&conn->close_reason, memory_order_relaxed) != CLOSE_NONE)
		return READ_FAILED;
	result = session_wait(session);
	if (result != READ_DATA)
		return result;
	if (session->large != NULL) {
		result = session_receive(session, session->large->data + session->large_filled,
					 session->large->length - session->large_filled, &got);
		session->large_filled += got;
		return result;
	}
	if (!session_make_room(session, session_wanted(session))) {
		conn_request_close(conn, CLOSE_MEMORY);
		return READ_FAILED;
	}
	if (!session_is_small(session))
		session_set_timed(session, session->start == session->filled);
	result = session_receive(session, session->data + session->filled,
				 session->capacity - session->filled, &got);
	session->filled += got;
	if (got > 0 && session_is_small(session) && session->filled == READ_SMALL &&
	    session_make_room(session, READ_FIRST))
		session_read_more(session);
	return result;
}

/* --- framing ------------------------------------------------------------------------------- */

/* A whole frame is behind: the handshake's time limit asks for no more where no token is. */
static void session_completed(struct session *session)
{
	if (session->conn->token == NULL)
		session->said_hello = true;
}

static void session_skip_frame(struct session *session, struct wire_header header)
{
	metric_add(METRIC_FRAMES_SKIPPED, 1);
	session->skip = WIRE_HEADER_SIZE + (uint64_t)header.length;
}

/* Drops bytes of a frame that is skipped; true when all of it is gone. */
static bool session_skip(struct session *session)
{
	size_t step = session->filled - session->start;

	if (step > session->skip)
		step = (size_t)session->skip;
	session->start += step;
	session->skip -= step;
	if (session->skip > 0)
		return false;
	session_completed(session);
	return true;
}

enum frame_check {
	FRAME_HANDLE,
	FRAME_SKIP, /* its answer, if any, is given */
	FRAME_WAIT, /* for more of it */
	FRAME_END,  /* session->end is set */
};

/* Everything that the header decides, in the order of the checks. */
static enum frame_check session_check(struct session *session, struct wire_header header,
				      const uint8_t *payload, size_t available)
{
	uint64_t size = WIRE_HEADER_SIZE + (uint64_t)header.length;
	uint64_t limit = session->conn->limits.max_frame_size;

	if (!wire_type_known(header.type))
		return FRAME_SKIP;
	if (!wire_stream_legal(header.type, header.stream)) {
		session_malformed(session, header, payload, available, WIRE_REASON_STREAM,
				  header.stream == 0
					  ? "it must be on a stream above 0, and is on stream 0"
					  : "it must be on stream 0, and is on another",
				  CLOSE_STREAM);
		return FRAME_END;
	}
	if (!session->authenticated &&
	    (size > HELLO_FRAME_MAX || !session_may_skip_hello(header.type))) {
		session_unauthenticated(session);
		return FRAME_END;
	}
	if (size > limit) {
		if (header.type == WIRE_PUBLISH || header.type == WIRE_SUBSCRIBE ||
		    header.type == WIRE_CONVERSATION_MESSAGE)
			return session_refuse_large(session, header, payload, available)
				       ? FRAME_SKIP
				       : FRAME_WAIT;
		session_malformed(session, header, payload, available, WIRE_REASON_CODEC,
				  "it is larger than max_frame_size", CLOSE_FRAME_SIZE);
		return FRAME_END;
	}
	if (wire_type_from_server(header.type))
		return FRAME_SKIP;
	if (header.type == WIRE_WORKER_REGISTER && size > REGISTER_FRAME_MAX)
		return session_refuse_large(session, header, payload, available) ? FRAME_SKIP
										 : FRAME_WAIT;
	return FRAME_HANDLE;
}

/* The frame does not fit into the read buffer: what is there of it moves to one of its own. */
static bool session_begin_large(struct session *session, struct wire_header header)
{
	size_t available = session->filled - session->start - WIRE_HEADER_SIZE;

	session->large = buf_new(header.length);
	if (session->large == NULL)
		return false;
	session->large_header = header;
	session->large_filled = available;
	memcpy(session->large->data, session->data + session->start + WIRE_HEADER_SIZE, available);
	session->start = session->filled = 0;
	return true;
}

static void session_handle_frame(struct session *session, struct wire_header header,
				 const uint8_t *payload, struct buf *buf)
{
	session->frames++;
	session_dispatch(session, header, payload, buf);
	session_completed(session);
}

/* Handles the frame at the start of the buffer; false when more has to be read for it. */
static bool session_step(struct session *session)
{
	size_t available = session->filled - session->start;
	const uint8_t *bytes = session->data + session->start;
	struct wire_header header;
	size_t size;

	if (session->skip > 0)
		return session_skip(session);
	if (session->large != NULL) {
		struct buf *large = session->large;

		if (session->large_filled < large->length)
			return false;
		session->large = NULL;
		session_handle_frame(session, session->large_header, large->data, large);
		(void)session_end_run(session); /* it points into the buffer */
		buf_unref(&large);
		return true;
	}
	size = session_publish_again(session, bytes, available);
	if (size > 0) {
		session->start += size;
		return true;
	}
	if (available < WIRE_HEADER_SIZE)
		return false;
	header = wire_get_header(bytes);
	switch (session_check(session, header, bytes + WIRE_HEADER_SIZE,
			      size_min(available - WIRE_HEADER_SIZE, header.length))) {
	case FRAME_HANDLE:
		break;
	case FRAME_SKIP:
		session_skip_frame(session, header);
		return true;
	case FRAME_WAIT:
		return false;
	case FRAME_END:
		return true;
	}
	if (header.length > READ_MAX - WIRE_HEADER_SIZE) {
		if (!session_begin_large(session, header))
			session->end = CLOSE_MEMORY;
		return session->end != CLOSE_NONE;
	}
	if (available - WIRE_HEADER_SIZE < header.length)
		return false;
	session->start += WIRE_HEADER_SIZE + (size_t)header.length;
	session_handle_frame(session, header, bytes + WIRE_HEADER_SIZE, NULL);
	return true;
}

/* While its own answers do not fit, a session handles nothing more. */
static bool session_has_room(struct session *session)
{
	struct conn *conn = session->conn;

	session->room = outbox_room(conn, session->run_count);
	if (session->room > 0)
		return true;
	/* What is queued may have room made for it by the socket, in time for the next frame. */
	if (!session_end_run(session))
		return false;
	session_flush(session);
	if (!outbox_wait_room(conn, session->said_hello ? DEADLINE_NEVER : session->hello_ns)) {
		session->end = CLOSE_HANDSHAKE_TIMEOUT;
		return false;
	}
	session->room = 1;
	return atomic_load_explicit(&conn->close_reason, memory_order_relaxed) == CLOSE_NONE;
}

/* Handles every whole frame that has been read. */
static void session_handle(struct session *session)
{
	while (session->end == CLOSE_NONE && session_has_room(session) && session_step(session))
		;
	(void)session_end_run(session);
	metric_add(METRIC_FRAMES_IN, session->frames);
	session->frames = 0;
	if (session->answered > 0)
		metric_observe(HISTOGRAM_PUBLISH_SECONDS, clock_mono_ns() - session->read_ns,
			       session->answered);
	session->answered = 0;
}

/* --- how it ends --------------------------------------------------------------------------- */

static enum close_reason session_read_ended(const struct session *session, enum read_result result)
{
	if (result == READ_LATE)
		return session->said_hello ? CLOSE_IDLE_TIMEOUT : CLOSE_HANDSHAKE_TIMEOUT;
	if (atomic_load_explicit(&session->conn->sink.dead, memory_order_relaxed))
		return CLOSE_WRITE_FAILED;
	return result == READ_END ? CLOSE_HALF_CLOSE : CLOSE_RESET;
}

/*
 * Nothing is pushed to it any more, no message delivered; what it still waits for stays. What is
 * being committed is waited for however the connection ends, and a peer that has only shut down its
 * side hears of its own last message.
 */
static void session_end_receiving(struct session *session, enum close_reason reason)
{
	struct client *client = session->conn->client;

	if (reason == CLOSE_HALF_CLOSE) {
		broker_client_end_after_answers(client);
	} else {
		broker_client_end_subscriptions(client);
		broker_client_end_conversations(client, &session->set);
	}
	broker_client_end_worker(client, &session->set);
	session_flush(session);
	broker_client_wait_committed(client);
	broker_client_end_subscriptions(client);
}

static void session_say_disconnect(struct conn *conn)
{
	mutex_lock(&conn->outbox.lock);
	if (!conn->outbox.told) {
		conn->outbox.told = true;
		outbox_add_frame_locked(conn,
					&(struct wire_frame){.header = {.type = WIRE_DISCONNECT}});
	}
	mutex_unlock(&conn->outbox.lock);
}

/* A close with unread input would send a reset and destroy what was flushed. */
static void session_drain(struct session *session)
{
	struct conn *conn = session->conn;
	int64_t until_ns = clock_after_ms(clock_mono_ns(), DRAIN_MS);
	size_t left = DRAIN_BYTES;
	ssize_t got = 1;

	(void)shutdown(conn->fd, SHUT_WR);
	while (got != 0 && left > 0) {
		int64_t left_ns = until_ns - clock_mono_ns();
		struct pollfd wait = {.fd = conn->fd, .events = POLLIN};

		if (left_ns <= 0)
			return;
		(void)poll(&wait, 1, (int)(left_ns / NS_PER_MS) + 1);
		got = recv(conn->fd, session->small, sizeof(session->small), MSG_DONTWAIT);
		if (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
			return;
		if (got > 0)
			left -= size_min((size_t)got, left);
	}
}

/* How the end of a connection treats what is queued and due; see the manual's table. */
static bool reason_is_servers(enum close_reason reason)
{
	return reason == CLOSE_CONTROL || reason == CLOSE_DRAIN || reason == CLOSE_SHUTDOWN ||
	       reason == CLOSE_IDLE_TIMEOUT;
}

static enum close_reason session_finish(struct session *session, enum close_reason reason)
{
	struct conn *conn = session->conn;
	bool silent;

	session_end_receiving(session, reason);
	if (reason == CLOSE_HALF_CLOSE)
		(void)broker_client_wait_quiet(conn->client);
	reason = conn_settle_reason(conn, reason);
	broker_client_end_conversations(conn->client, &session->set);
	flush_set_run(&session->set);
	silent = reason == CLOSE_HANDSHAKE_TIMEOUT || reason == CLOSE_RESET ||
		 reason == CLOSE_WRITE_FAILED || reason == CLOSE_MEMORY;
	if (silent)
		return reason;
	if (reason_is_servers(reason))
		session_say_disconnect(conn);
	switch (outbox_finish(conn, conn->limits.close_timeout_ms)) {
	case FINISH_WRITTEN:
		break;
	case FINISH_FAILED:
		return reason == CLOSE_HALF_CLOSE ? CLOSE_WRITE_FAILED : reason;
	case FINISH_LATE:
		return CLOSE_CLOSE_TIMEOUT;
	}
	if (reason != CLOSE_HALF_CLOSE)
		session_drain(session);
	return reason;
}

static void session_begin(struct session *session, struct conn *conn)
{
	session->conn = conn;
	flush_set_init(&session->set);
	session->end = CLOSE_NONE;
	session->read_ns = 0;
	session->frames = session->answered = 0;
	session->authenticated = conn->token == NULL;
	session->interrupted = false;
	session->said_hello = false;
	session->hello_ns = clock_after_ms(clock_mono_ns(), conn->limits.handshake_timeout_ms);
	session->data = session->small;
	session->start = session->filled = 0;
	session->capacity = READ_SMALL;
	session->timed = false;
	session->skip = 0;
	session->large = NULL;
	session->large_filled = 0;
	session->run_channel = NULL;
	session->run = session->small_run;
	session->run_count = 0;
	session->run_capacity = RUN_SMALL;
	session->head.size = 0;
	mutex_lock(&conn->net->lock);
	conn->thread = pthread_self();
	conn->running = true;
	mutex_unlock(&conn->net->lock);
}

static void session_release(struct session *session)
{
	if (!session_is_small(session))
		(void)munmap(session->data, session->capacity);
	session->data = session->small;
	session_narrow_run(session);
	buf_unref(&session->large);
}

void session_run(struct conn *conn)
{
	struct session session;
	enum close_reason reason;

	session_begin(&session, conn);
	while (session.end == CLOSE_NONE) {
		enum read_result result = session_read(&session);

		if (result != READ_DATA) {
			session.end = session_read_ended(&session, result);
			break;
		}
		session_handle(&session);
		session_flush(&session);
	}
	session_release(&session);
	reason = session_finish(&session, session.end);
	outbox_close(conn);
	conn_remove(conn);
	broker_client_wait_committed(
		conn->client); /* the end of a subscription is stored as well */
	broker_client_free(&conn->client);
	(void)close(conn->fd);
	conn_log_closed(conn, reason);
}
