#include "net/outbox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "net/net_priv.h"
#include "net/socket.h"

/* Either bytes of its own, or a piece of a buffer. */
struct chunk {
	struct chunk *next;
	struct buf *buf;     /* NULL: `own` */
	const uint8_t *data; /* what is queued starts here */
	size_t sent, used, size;
	bool ends_write;

	/* A run that is shared: what is sent are copies of its frames, which get these. */
	bool is_run;
	uint32_t stream;
	uint64_t sequence; /* of the first frame */

	uint8_t own[];
};

/* The smallest is what an idle thread's allocator keeps for it after an answer. */
#define CHUNK_MIN 448
#define CHUNK_MAX 65536

/* How much of shared runs is copied for one send, for as long as it stays in the cache. */
#define PIECE_MAX (128 * 1024)

/* How much one turn of the flusher, or of an offer, may write. */
#define TURN_BYTES (256 * 1024)

/* One send gathers so many pieces at most. */
#define GATHER_MAX 32

/* Messages of durable subscriptions take so much at most, and half of a smaller outbox. */
#define PACED_BYTES_MAX (512 * 1024)

/* How often a writer looks again for what has come since it began. */
#define LOOKS_MAX 3

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* SIGPIPE is ignored anyway */
#endif

void outbox_init(struct outbox *outbox, uint64_t max_bytes, uint64_t max_frames)
{
	mutex_init(&outbox->lock, LOCK_OUTBOX);
	cond_init(&outbox->changed);
	outbox->version = WIRE_VERSION_1_0;
	atomic_init(&outbox->bytes, 0);
	atomic_init(&outbox->frames, 0);
	atomic_init(&outbox->room_due, false);
	outbox->max_bytes = max_bytes;
	outbox->max_frames = max_frames;
}

static void chunk_free(struct chunk *chunk)
{
	buf_unref(&chunk->buf);
	free(chunk);
}

static void outbox_clear_locked(struct outbox *outbox)
{
	while (outbox->head != NULL) {
		struct chunk *chunk = outbox->head;

		outbox->head = chunk->next;
		chunk_free(chunk);
	}
	outbox->tail = NULL;
	outbox->frame_left = 0;
	atomic_store_explicit(&outbox->bytes, 0, memory_order_relaxed);
	atomic_store_explicit(&outbox->frames, 0, memory_order_relaxed);
}

void outbox_destroy(struct outbox *outbox)
{
	ASSERT(outbox->answers.head == NULL);
	outbox_clear_locked(outbox);
	cond_destroy(&outbox->changed);
	mutex_destroy(&outbox->lock);
}

bool outbox_is_dead(const struct conn *conn)
{
	return atomic_load_explicit(&conn->sink.dead, memory_order_relaxed);
}

static void outbox_set_room_due(struct outbox *outbox, bool due)
{
	atomic_store_explicit(&outbox->room_due, due, memory_order_relaxed);
}

static bool outbox_room_is_due(const struct outbox *outbox)
{
	return atomic_load_explicit(&outbox->room_due, memory_order_relaxed);
}

/* Nobody writes: the flusher, as the writer, tells the broker. */
static void outbox_hand_room_locked(struct conn *conn)
{
	struct outbox *outbox = &conn->outbox;

	if (!outbox_room_is_due(outbox) || outbox->writing || outbox->closed)
		return;
	outbox->writing = true;
	flusher_take(conn);
}

/*
 * A writer may be sending from the chunks: then it clears them, when it has the lock again. The
 * broker is told, because other subscriptions may have what is outstanding here.
 */
static void outbox_die_locked(struct conn *conn)
{
	struct outbox *outbox = &conn->outbox;

	atomic_store_explicit(&conn->sink.dead, true, memory_order_relaxed);
	if (!outbox->writing)
		outbox_clear_locked(outbox);
	if (outbox->paced)
		outbox_set_room_due(outbox, true);
	outbox_hand_room_locked(conn);
	cond_broadcast(&outbox->changed);
}

void outbox_lose_locked(struct conn *conn)
{
	conn_request_close(conn, CLOSE_MEMORY);
	outbox_die_locked(conn);
}

/* --- appending ----------------------------------------------------------------------------- */

static void outbox_count_locked(struct outbox *outbox, size_t bytes, size_t frames)
{
	/* One thread at a time writes these: no read-modify-write is needed. */
	atomic_store_explicit(&outbox->bytes,
			      atomic_load_explicit(&outbox->bytes, memory_order_relaxed) + bytes,
			      memory_order_relaxed);
	atomic_store_explicit(&outbox->frames,
			      atomic_load_explicit(&outbox->frames, memory_order_relaxed) + frames,
			      memory_order_relaxed);
}

static struct chunk *outbox_add_chunk_locked(struct conn *conn, size_t size)
{
	struct outbox *outbox = &conn->outbox;
	struct chunk *chunk = malloc(sizeof(*chunk) + size);

	if (chunk == NULL) {
		outbox_lose_locked(conn);
		return NULL;
	}
	*chunk = (struct chunk){.data = chunk->own, .size = size};
	if (outbox->tail == NULL)
		outbox->head = chunk;
	else
		outbox->tail->next = chunk;
	outbox->tail = chunk;
	return chunk;
}

/* Makes sure that SIZE bytes fit into the tail, HINT more where a new chunk is needed for that. */
static struct chunk *outbox_tail_locked(struct conn *conn, size_t size, size_t hint)
{
	struct chunk *tail = conn->outbox.tail;
	size_t wanted;

	mutex_assert_held(&conn->outbox.lock);
	if (outbox_is_dead(conn))
		return NULL;
	if (tail != NULL && tail->buf == NULL && !tail->ends_write &&
	    size <= tail->size - tail->used)
		return tail;
	wanted = size_max(size_min(size_add(size, hint), CHUNK_MAX), CHUNK_MIN);
	return outbox_add_chunk_locked(conn, size_max(size, wanted));
}

uint8_t *outbox_add_locked(struct conn *conn, size_t size, size_t frames, size_t hint)
{
	struct chunk *tail = outbox_tail_locked(conn, size, hint);
	uint8_t *bytes;

	if (tail == NULL)
		return NULL;
	bytes = tail->own + tail->used;
	tail->used += size;
	outbox_count_locked(&conn->outbox, size, frames);
	return bytes;
}

uint8_t *outbox_stretch_locked(struct conn *conn, size_t min, size_t max, size_t *size)
{
	struct chunk *tail = outbox_tail_locked(conn, min, max - min);

	*size = 0;
	if (tail == NULL)
		return NULL;
	*size = size_min(max, tail->size - tail->used);
	return tail->own + tail->used;
}

void outbox_added_locked(struct conn *conn, size_t bytes, size_t frames)
{
	conn->outbox.tail->used += bytes;
	outbox_count_locked(&conn->outbox, bytes, frames);
}

uint8_t *outbox_continue_locked(struct conn *conn, size_t size)
{
	return outbox_add_locked(conn, size, 0, 0);
}

bool outbox_add_buf_locked(struct conn *conn, struct buf *buf, struct span bytes)
{
	struct chunk *chunk;

	mutex_assert_held(&conn->outbox.lock);
	if (outbox_is_dead(conn))
		return false;
	chunk = outbox_add_chunk_locked(conn, 0);
	if (chunk == NULL)
		return false;
	chunk->buf = buf_ref(buf);
	chunk->data = bytes.data;
	chunk->used = bytes.length;
	outbox_count_locked(&conn->outbox, bytes.length, 0);
	return true;
}

bool outbox_add_run_locked(struct conn *conn, struct buf *buf, size_t count, uint32_t stream,
			   uint64_t sequence)
{
	struct outbox *outbox = &conn->outbox;

	if (!outbox_add_buf_locked(conn, buf, (struct span){buf->data, buf->length}))
		return false;
	/* It has them already: that of whoever it was made for, and of all who joined with it. */
	outbox->tail->is_run = !wire_deliver_is(buf->data, stream, sequence);
	outbox->tail->stream = stream;
	outbox->tail->sequence = sequence;
	outbox_count_locked(outbox, 0, count);
	return true;
}

void outbox_add_frame_locked(struct conn *conn, const struct wire_frame *frame)
{
	size_t size = wire_encode(frame, NULL, 0);
	uint8_t *bytes;

	ASSERT(size > 0);
	bytes = outbox_add_locked(conn, size, 1, 0);
	if (bytes != NULL)
		(void)wire_encode(frame, bytes, size);
}

void outbox_add_frame(struct conn *conn, const struct wire_frame *frame)
{
	mutex_lock(&conn->outbox.lock);
	outbox_add_frame_locked(conn, frame);
	mutex_unlock(&conn->outbox.lock);
}

void outbox_add_last_frame_locked(struct conn *conn, const struct wire_frame *frame)
{
	size_t size = wire_encode(frame, NULL, 0);
	struct chunk *chunk;

	if (outbox_is_dead(conn))
		return;
	/* Nothing follows in its chunk, which therefore has no room to spare: what it holds is what
	 * it is charged, but for the chunk itself. */
	chunk = outbox_add_chunk_locked(conn, size);
	if (chunk == NULL)
		return;
	(void)wire_encode(frame, chunk->own, size);
	chunk->used = size;
	chunk->ends_write = true;
	outbox_count_locked(&conn->outbox, size, 1);
}

void outbox_touch_locked(struct conn *conn, struct flush_set *set)
{
	mutex_assert_held(&conn->outbox.lock);
	if (conn->outbox.in_set == set)
		return;
	if (flush_set_add(set, &conn->sink))
		conn->outbox.in_set = set;
}

/* --- bounds -------------------------------------------------------------------------------- */

enum sink_result outbox_fits_locked(struct conn *conn, size_t size)
{
	struct outbox *outbox = &conn->outbox;
	uint64_t frames = atomic_load_explicit(&outbox->frames, memory_order_relaxed);
	uint64_t bytes = atomic_load_explicit(&outbox->bytes, memory_order_relaxed);

	mutex_assert_held(&outbox->lock);
	if (outbox_is_dead(conn))
		return SINK_DEAD;
	if (frames == 0)
		return SINK_OK;
	if (frames >= outbox->max_frames)
		return SINK_FULL_FRAMES;
	if (bytes >= outbox->max_bytes || size > outbox->max_bytes - bytes)
		return SINK_FULL_BYTES;
	return SINK_OK;
}

void outbox_load(struct conn *conn, bool offer, struct sink_load *load)
{
	struct outbox *outbox = &conn->outbox;

	mutex_lock(&outbox->lock);
	if (offer)
		outbox_offer_locked(conn);
	load->frames = atomic_load_explicit(&outbox->frames, memory_order_relaxed);
	load->frames -= load->frames < outbox->sending ? load->frames : outbox->sending;
	load->bytes = atomic_load_explicit(&outbox->bytes, memory_order_relaxed);
	load->empty = load->bytes == 0;
	load->max_frames = outbox->max_frames;
	load->max_bytes = outbox->max_bytes;
	mutex_unlock(&outbox->lock);
}

bool outbox_fits_all_locked(struct conn *conn, size_t frames, size_t bytes)
{
	struct outbox *outbox = &conn->outbox;
	uint64_t queued_frames = atomic_load_explicit(&outbox->frames, memory_order_relaxed);
	uint64_t queued_bytes = atomic_load_explicit(&outbox->bytes, memory_order_relaxed);

	mutex_assert_held(&outbox->lock);
	return !outbox_is_dead(conn) && queued_frames + frames <= outbox->max_frames &&
	       queued_bytes + bytes <= outbox->max_bytes;
}

static uint64_t outbox_paced_bytes(const struct outbox *outbox)
{
	uint64_t half = outbox->max_bytes / 2;

	return half < PACED_BYTES_MAX ? half : PACED_BYTES_MAX;
}

bool outbox_has_paced_room_locked(struct conn *conn, size_t size)
{
	struct outbox *outbox = &conn->outbox;
	uint64_t frames = atomic_load_explicit(&outbox->frames, memory_order_relaxed);
	uint64_t bytes = atomic_load_explicit(&outbox->bytes, memory_order_relaxed);

	mutex_assert_held(&outbox->lock);
	if (outbox_is_dead(conn))
		return false;
	outbox->paced = true;
	if (frames == 0 || (frames < outbox->max_frames / 2 && bytes < outbox_paced_bytes(outbox) &&
			    size <= outbox->max_bytes - bytes))
		return true;
	/* And it stays so when a smaller one, or one after some bytes have left, does find room. */
	outbox->room_wanted = true;
	return false;
}

/* Messages were left with the broker, and half of what they may take is free: worth a turn. */
static void outbox_notice_room_locked(struct outbox *outbox)
{
	if (!outbox->room_wanted ||
	    atomic_load_explicit(&outbox->frames, memory_order_relaxed) > outbox->max_frames / 4 ||
	    atomic_load_explicit(&outbox->bytes, memory_order_relaxed) >
		    outbox_paced_bytes(outbox) / 2)
		return;
	outbox->room_wanted = false;
	outbox_set_room_due(outbox, true);
}

/* How many answers more, besides those that are due and PLACES, fill one PART of what is allowed.
 */
static uint64_t outbox_room_in_part(const struct conn *conn, size_t places, unsigned part)
{
	const struct outbox *outbox = &conn->outbox;
	uint64_t frames = places, bytes = (uint64_t)places * ANSWER_EMPTY_BYTES;
	uint64_t max_frames = outbox->max_frames / part, max_bytes = outbox->max_bytes / part;

	if (outbox_is_dead(conn))
		return UINT64_MAX;
	/* First what is due: an answer that moves meanwhile is counted twice rather than never. */
	frames += atomic_load_explicit(&outbox->answers.due, memory_order_relaxed);
	bytes += atomic_load_explicit(&outbox->answers.bytes, memory_order_relaxed);
	frames += atomic_load_explicit(&outbox->frames, memory_order_relaxed);
	bytes += atomic_load_explicit(&outbox->bytes, memory_order_relaxed);
	if (frames >= max_frames || bytes >= max_bytes)
		return 0;
	frames = max_frames - frames;
	bytes = (max_bytes - bytes - 1) / ANSWER_EMPTY_BYTES + 1;
	return frames < bytes ? frames : bytes;
}

bool outbox_is_full(const struct conn *conn, size_t places)
{
	return outbox_room_in_part(conn, places, 1) == 0;
}

size_t outbox_room(const struct conn *conn, size_t places)
{
	uint64_t room = outbox_room_in_part(conn, places, 2);

	return room < SIZE_MAX ? (size_t)room : SIZE_MAX;
}

bool outbox_wait_room(struct conn *conn, int64_t until_ns)
{
	struct outbox *outbox = &conn->outbox;
	bool in_time = true;

	if (!outbox_is_full(conn, 0))
		return true;
	metric_add(METRIC_OUTBOX_WAITS, 1);
	mutex_lock(&outbox->lock);
	outbox->waited = true;
	while (in_time && outbox_is_full(conn, 0) &&
	       atomic_load_explicit(&conn->close_reason, memory_order_relaxed) == CLOSE_NONE)
		in_time = cond_wait_until(&outbox->changed, &outbox->lock, until_ns);
	outbox->waited = false;
	mutex_unlock(&outbox->lock);
	return in_time;
}

/* --- writing ------------------------------------------------------------------------------- */

static size_t frame_size(const uint8_t *frame)
{
	return WIRE_HEADER_SIZE + (size_t)wire_get_header(frame).length;
}

/* How many bytes of the shared runs at the head are copied together: whole frames, one at least. */
static size_t outbox_piece_size_locked(const struct outbox *outbox)
{
	size_t size = 0;

	for (const struct chunk *run = outbox->head; run != NULL && run->is_run && size < PIECE_MAX;
	     run = run->next)
		size = size_add(size, run->used);
	return size_max(size_min(size, PIECE_MAX), frame_size(outbox->head->data));
}

/* Copies the frames of RUN for which there is room in PIECE. */
static void run_copy(struct chunk *run, struct chunk *piece)
{
	size_t frame;

	while (run->used > 0 && (frame = frame_size(run->data)) <= piece->size - piece->used) {
		uint8_t *copy = piece->own + piece->used;

		memcpy(copy, run->data, frame);
		wire_set_deliver(copy, run->stream, run->sequence++);
		piece->used += frame;
		run->data += frame;
		run->used -= frame;
	}
}

/*
 * Nothing of a shared run is sent but copies: those of its first frames take their place at the
 * head. False: no memory, and the connection is lost.
 */
static bool outbox_copy_runs_locked(struct conn *conn)
{
	struct outbox *outbox = &conn->outbox;
	size_t size = outbox_piece_size_locked(outbox);
	struct chunk *piece = malloc(sizeof(*piece) + size);

	if (piece == NULL) {
		conn_request_close(conn, CLOSE_MEMORY);
		outbox_die_locked(conn);
		return false;
	}
	*piece = (struct chunk){.data = piece->own, .size = size};
	while (outbox->head != NULL && outbox->head->is_run) {
		struct chunk *run = outbox->head;

		run_copy(run, piece);
		if (run->used > 0)
			break;
		outbox->head = run->next;
		chunk_free(run);
	}
	piece->next = outbox->head;
	if (outbox->head == NULL)
		outbox->tail = piece;
	outbox->head = piece;
	return true;
}

/* What one send takes: at most LIMIT bytes from the head, up to where a write ends. */
static size_t outbox_gather_locked(const struct outbox *outbox, struct iovec *pieces, size_t limit,
				   size_t *bytes)
{
	size_t count = 0;

	*bytes = 0;
	for (struct chunk *chunk = outbox->head;
	     chunk != NULL && !chunk->is_run && count < GATHER_MAX && *bytes < limit;
	     chunk = chunk->next) {
		pieces[count].iov_base = (void *)(uintptr_t)(chunk->data + chunk->sent);
		pieces[count].iov_len = chunk->used - chunk->sent;
		*bytes += pieces[count].iov_len;
		count++;
		if (chunk->ends_write)
			break;
	}
	return count;
}

/* BYTES have been sent: how many frames ended in them, found by their headers. */
static size_t outbox_frames_in_locked(struct outbox *outbox, size_t bytes)
{
	const struct chunk *chunk = outbox->head;
	size_t offset = chunk->sent, frames = 0;

	while (bytes > 0) {
		size_t step;

		if (offset == chunk->used) {
			chunk = chunk->next;
			offset = chunk->sent;
			continue;
		}
		if (outbox->frame_left == 0) {
			/* A header is never split between chunks. */
			struct wire_header header = wire_get_header(chunk->data + offset);

			outbox->frame_left = WIRE_HEADER_SIZE + (size_t)header.length;
		}
		step = size_min(size_min(bytes, outbox->frame_left), chunk->used - offset);
		outbox->frame_left -= step;
		offset += step;
		bytes -= step;
		frames += outbox->frame_left == 0;
	}
	return frames;
}

static void outbox_sent_locked(struct outbox *outbox, size_t bytes)
{
	uint64_t queued = atomic_load_explicit(&outbox->bytes, memory_order_relaxed);
	uint64_t frames = atomic_load_explicit(&outbox->frames, memory_order_relaxed);

	outbox->sent += bytes;
	if (bytes == queued) {
		outbox_clear_locked(outbox);
	} else {
		frames -= outbox_frames_in_locked(outbox, bytes);
		atomic_store_explicit(&outbox->frames, frames, memory_order_relaxed);
		atomic_store_explicit(&outbox->bytes, queued - bytes, memory_order_relaxed);
		while (bytes > 0) {
			struct chunk *chunk = outbox->head;
			size_t step = size_min(bytes, chunk->used - chunk->sent);

			chunk->sent += step;
			bytes -= step;
			if (chunk->sent < chunk->used)
				break;
			outbox->head = chunk->next;
			if (outbox->head == NULL)
				outbox->tail = NULL;
			chunk_free(chunk);
		}
	}
	if (outbox->stalled &&
	    atomic_load_explicit(&outbox->bytes, memory_order_relaxed) <= outbox->max_bytes / 2 &&
	    atomic_load_explicit(&outbox->frames, memory_order_relaxed) <= outbox->max_frames / 2)
		outbox->stalled = false;
	outbox_notice_room_locked(outbox);
	if (outbox->waited)
		cond_broadcast(&outbox->changed);
}

enum send_result { SENT, SEND_AGAIN, SEND_FAILED };

/* One send of at most LIMIT bytes; the writer flag is the caller's. The lock is released while it
 * sends, unless KEEP_LOCK: then others wait for the few microseconds that takes. */
static enum send_result outbox_send_locked(struct conn *conn, size_t limit, bool keep_lock)
{
	struct outbox *outbox = &conn->outbox;
	struct iovec pieces[GATHER_MAX];
	struct msghdr message = {.msg_iov = pieces};
	size_t bytes;
	ssize_t sent;

	if (outbox->head->is_run && !outbox_copy_runs_locked(conn))
		return SEND_FAILED;
	message.msg_iovlen = outbox_gather_locked(outbox, pieces, limit, &bytes);
	if (bytes == atomic_load_explicit(&outbox->bytes, memory_order_relaxed))
		outbox->sending = atomic_load_explicit(&outbox->frames, memory_order_relaxed);
	if (!keep_lock)
		mutex_unlock(&outbox->lock);
	if (message.msg_iovlen == 1)
		sent = send(conn->fd, pieces[0].iov_base, pieces[0].iov_len,
			    MSG_DONTWAIT | MSG_NOSIGNAL);
	else
		sent = sendmsg(conn->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent > 0)
		metric_add(METRIC_BYTES_OUT, (uint64_t)sent);
	else if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR &&
		 errno != ENOBUFS)
		sent = -2;
	if (!keep_lock)
		mutex_lock(&outbox->lock);
	outbox->sending = 0;
	if (sent == -2)
		outbox_die_locked(conn);
	if (outbox_is_dead(conn)) { /* or given up meanwhile */
		outbox_clear_locked(outbox);
		return SEND_FAILED;
	}
	if (sent > 0)
		outbox_sent_locked(outbox, (size_t)sent);
	return sent == (ssize_t)bytes ? SENT : SEND_AGAIN;
}

/* Something is left that may be written. */
static bool outbox_is_pending_locked(const struct conn *conn)
{
	return conn->outbox.head != NULL && !conn->outbox.closed && !outbox_is_dead(conn);
}

/* The writer is done, or nothing is left for it. */
static void outbox_clear_writer_locked(struct conn *conn)
{
	struct outbox *outbox = &conn->outbox;

	outbox->writing = false;
	if (outbox_is_dead(conn))
		outbox_clear_locked(outbox);
	if (outbox->waited)
		cond_broadcast(&outbox->changed);
}

/* A stall is logged by whoever flushes next: nothing is logged under a lock. */
static void outbox_log_stall(struct conn *conn)
{
	struct outbox *outbox = &conn->outbox;
	const char *channel;
	uint64_t bytes, frames;
	bool drops;

	mutex_lock(&outbox->lock);
	channel = outbox->stall_channel;
	bytes = outbox->stall_bytes;
	frames = outbox->stall_frames;
	drops = outbox->stall_drops;
	outbox->stall_channel = NULL;
	mutex_unlock(&outbox->lock);
	if (channel != NULL)
		log_client_event(LOG_LEVEL_WARNING, "slow consumer", LOG_U64("conn", conn->id),
				 LOG_STR("peer", conn->peer), LOG_STR("channel", channel),
				 LOG_U64("depth", frames), LOG_U64("bytes", bytes),
				 LOG_STR("action", drops ? "drop" : "shed"));
}

void outbox_flush(struct conn *conn, const struct flush_set *set)
{
	struct outbox *outbox = &conn->outbox;
	bool hand_over = false, log_stall;
	uint64_t budget;
	int looks = 0;

	mutex_lock(&outbox->lock);
	if (outbox->in_set == set)
		outbox->in_set = NULL;
	log_stall = outbox->stall_channel != NULL;
	if (outbox->writing || !outbox_is_pending_locked(conn)) {
		mutex_unlock(&outbox->lock);
		if (log_stall)
			outbox_log_stall(conn);
		return;
	}
	outbox->writing = true;
	budget = outbox->sent + atomic_load_explicit(&outbox->bytes, memory_order_relaxed);
	while (outbox_is_pending_locked(conn) && !hand_over) {
		switch (outbox_send_locked(conn, SIZE_MAX, false)) {
		case SENT:
			hand_over = outbox->head != NULL && outbox->sent >= budget &&
				    ++looks > LOOKS_MAX;
			break;
		case SEND_AGAIN:
			hand_over = outbox->head != NULL;
			break;
		case SEND_FAILED:
			break;
		}
	}
	if ((hand_over && outbox_is_pending_locked(conn)) || outbox_room_is_due(outbox))
		flusher_take(conn);
	else
		outbox_clear_writer_locked(conn);
	mutex_unlock(&outbox->lock);
	if (log_stall)
		outbox_log_stall(conn);
}

void outbox_hand_over(struct conn *conn, const struct flush_set *set)
{
	struct outbox *outbox = &conn->outbox;

	mutex_lock(&outbox->lock);
	if (outbox->in_set == set)
		outbox->in_set = NULL;
	if (!outbox->writing && outbox_is_pending_locked(conn)) {
		outbox->writing = true;
		flusher_take(conn);
	}
	mutex_unlock(&outbox->lock);
}

void outbox_offer_locked(struct conn *conn)
{
	struct outbox *outbox = &conn->outbox;

	mutex_assert_held(&outbox->lock);
	if (outbox->writing || !outbox_is_pending_locked(conn))
		return;
	(void)outbox_send_locked(conn, TURN_BYTES, true);
	outbox_hand_room_locked(conn);
}

/* The writer flag proves that the client still exists. */
static void outbox_tell_room(struct conn *conn)
{
	struct flush_set set;

	flush_set_init(&set);
	broker_client_room(conn->client, &set);
	flush_set_run(&set);
}

bool outbox_flush_turn(struct conn *conn)
{
	struct outbox *outbox = &conn->outbox;
	enum send_result result = SENT;
	uint64_t budget;
	bool keep;

	mutex_lock(&outbox->lock);
	if (outbox_room_is_due(outbox) && !outbox->closed) {
		outbox_set_room_due(outbox, false);
		mutex_unlock(&outbox->lock);
		outbox_tell_room(conn);
		mutex_lock(&outbox->lock);
	}
	budget = outbox->sent + TURN_BYTES;
	while (result == SENT && outbox_is_pending_locked(conn) && outbox->sent < budget)
		result = outbox_send_locked(conn, TURN_BYTES, false);
	keep = outbox_is_pending_locked(conn) || (outbox_room_is_due(outbox) && !outbox->closed);
	if (!keep)
		outbox_clear_writer_locked(conn);
	mutex_unlock(&outbox->lock);
	return keep;
}

/*
 * What the peer's system has taken, which a send alone does not tell: Linux makes a socket writable
 * only when a third of its buffer is free, and that may be a megabyte.
 */
static uint64_t outbox_taken_locked(const struct conn *conn)
{
	return conn->outbox.sent - socket_untaken(conn->fd);
}

enum finish_result outbox_finish(struct conn *conn, int64_t timeout_ms)
{
	struct outbox *outbox = &conn->outbox;
	int64_t give_up_ns = clock_after_ms(clock_mono_ns(), timeout_ms);
	enum finish_result result = FINISH_WRITTEN;
	uint64_t seen, taken;

	outbox_flush(conn, NULL);
	mutex_lock(&outbox->lock);
	outbox->waited = true;
	seen = outbox_taken_locked(conn);
	while (outbox->head != NULL && !outbox_is_dead(conn)) {
		if (cond_wait_until(&outbox->changed, &outbox->lock, give_up_ns))
			continue;
		taken = outbox_taken_locked(conn);
		/* Where the socket would take more it is the flusher that has too much to do. A
		 * stop that is to be short does not wait for who takes a byte now and then. */
		if ((taken == seen && !socket_is_writable(conn->fd)) ||
		    atomic_load(&conn->net->hurried)) {
			outbox_die_locked(conn);
			result = FINISH_LATE;
			break;
		}
		seen = taken;
		give_up_ns = clock_after_ms(clock_mono_ns(), timeout_ms);
	}
	outbox->waited = false;
	if (result == FINISH_WRITTEN && outbox_is_dead(conn))
		result = FINISH_FAILED;
	mutex_unlock(&outbox->lock);
	return result;
}

void outbox_close(struct conn *conn)
{
	struct outbox *outbox = &conn->outbox;

	mutex_lock(&outbox->lock);
	outbox->closed = true;
	outbox->waited = true;
	atomic_store_explicit(&conn->sink.dead, true, memory_order_relaxed);
	if (outbox->writing)
		flusher_wake(&conn->net->flusher);
	while (outbox->writing)
		cond_wait(&outbox->changed, &outbox->lock);
	outbox_clear_locked(outbox);
	mutex_unlock(&outbox->lock);
}
