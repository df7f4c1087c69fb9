#include "net/answers.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/metrics.h"
#include "net/net_priv.h"

/* A place; or answers that wait behind one, which is what a place filled before its turn becomes.
 */
struct sink_place {
	struct sink_place *next;
	bool pending;
	size_t count;	 /* of answers */
	int64_t read_ns; /* of their requests */
	uint8_t *bytes;	 /* whole frames; NULL: none yet */
	size_t used, size;
};

/* A short answer leaves room for others behind it. */
#define HELD_MIN 64

bool answers_are_pending(const struct conn *conn)
{
	/* What it waits for has been queued by whoever made this false. */
	return atomic_load_explicit(&conn->outbox.answers.pending, memory_order_acquire);
}

/* What a place is charged while nothing is known of its answers. */
static uint64_t place_empty_bytes(size_t count)
{
	return (uint64_t)size_max(count, 1) * ANSWER_EMPTY_BYTES;
}

static void answers_count_locked(struct answers *answers, uint64_t due, uint64_t bytes)
{
	/* One thread at a time writes these. */
	atomic_store_explicit(&answers->due,
			      atomic_load_explicit(&answers->due, memory_order_relaxed) + due,
			      memory_order_relaxed);
	atomic_store_explicit(&answers->bytes,
			      atomic_load_explicit(&answers->bytes, memory_order_relaxed) + bytes,
			      memory_order_relaxed);
}

static void answers_uncount_locked(struct conn *conn, uint64_t due, uint64_t bytes)
{
	struct answers *answers = &conn->outbox.answers;

	atomic_store_explicit(&answers->due,
			      atomic_load_explicit(&answers->due, memory_order_relaxed) - due,
			      memory_order_relaxed);
	atomic_store_explicit(&answers->bytes,
			      atomic_load_explicit(&answers->bytes, memory_order_relaxed) - bytes,
			      memory_order_relaxed);
	if (conn->outbox.waited)
		cond_broadcast(&conn->outbox.changed);
}

static struct sink_place *answers_append_locked(struct answers *answers)
{
	struct sink_place *place = calloc(1, sizeof(*place));

	if (place == NULL)
		return NULL;
	if (answers->head == NULL)
		answers->head = place;
	else
		answers->tail->next = place;
	answers->tail = place;
	return place;
}

struct sink_place *answers_place_locked(struct conn *conn, size_t count)
{
	struct answers *answers = &conn->outbox.answers;
	struct sink_place *place;

	mutex_assert_held(&conn->outbox.lock);
	place = answers_append_locked(answers);
	if (place == NULL)
		return NULL;
	place->pending = true;
	place->count = count;
	place->read_ns = atomic_load_explicit(&conn->last_read_ns, memory_order_relaxed);
	answers_count_locked(answers, count, place_empty_bytes(count));
	atomic_store_explicit(&answers->pending, true, memory_order_release);
	return place;
}

size_t answers_place_count(const struct sink_place *place)
{
	return place->count;
}

void answers_observe(const struct sink_place *place)
{
	metric_observe(HISTOGRAM_PUBLISH_SECONDS, clock_mono_ns() - place->read_ns, place->count);
}

/* Takes out the head, whose answers are not counted any more. */
static void answers_remove_head_locked(struct answers *answers)
{
	struct sink_place *head = answers->head;

	answers->head = head->next;
	if (answers->head == NULL) {
		answers->tail = NULL;
		atomic_store_explicit(&answers->pending, false, memory_order_release);
	}
	free(head->bytes);
	free(head);
}

/* What has waited for nothing but its turn goes into the outbox. */
static void answers_move_locked(struct conn *conn)
{
	struct answers *answers = &conn->outbox.answers;

	while (answers->head != NULL && !answers->head->pending) {
		struct sink_place *head = answers->head;
		uint8_t *bytes = NULL;

		if (head->used > 0)
			bytes = outbox_add_locked(conn, head->used, head->count, 0);
		if (bytes != NULL)
			memcpy(bytes, head->bytes, head->used);
		answers_uncount_locked(conn, head->count, head->used);
		answers_remove_head_locked(answers);
	}
}

/* Memory for SIZE bytes of frames that wait; without it they can never be said. */
static bool place_hold_locked(struct conn *conn, struct sink_place *place, size_t size)
{
	place->bytes = malloc(size);
	if (place->bytes == NULL) {
		outbox_lose_locked(conn);
		return false;
	}
	place->size = size;
	return true;
}

uint8_t *answers_fill_locked(struct conn *conn, struct sink_place **pointer, size_t frames,
			     size_t size)
{
	struct sink_place *place = *pointer;
	struct answers *answers = &conn->outbox.answers;
	uint8_t *bytes = NULL;

	*pointer = NULL;
	mutex_assert_held(&conn->outbox.lock);
	ASSERT(place->pending);
	answers_uncount_locked(conn, place->count, place_empty_bytes(place->count));
	place->pending = false;
	place->count = frames;
	if (place == answers->head) {
		if (size > 0)
			bytes = outbox_add_locked(conn, size, frames, 0);
		answers_remove_head_locked(answers);
		answers_move_locked(conn);
		return bytes;
	}
	if (size > 0 && !outbox_is_dead(conn) && place_hold_locked(conn, place, size)) {
		place->used = size;
		bytes = place->bytes;
	}
	answers_count_locked(answers, frames, place->used);
	return bytes;
}

void answers_pass_locked(struct conn *conn, struct sink_place **pointer)
{
	struct sink_place *place = *pointer;

	*pointer = NULL;
	mutex_assert_held(&conn->outbox.lock);
	ASSERT(place == conn->outbox.answers.head && place->pending);
	answers_uncount_locked(conn, place->count, place_empty_bytes(place->count));
	answers_remove_head_locked(&conn->outbox.answers);
	answers_move_locked(conn);
}

/* Room for a frame of SIZE bytes behind all that waits; NULL: no memory. */
static uint8_t *answers_hold_locked(struct conn *conn, size_t size)
{
	struct answers *answers = &conn->outbox.answers;
	struct sink_place *tail = answers->tail;
	uint8_t *bytes;

	if (tail->pending || size > tail->size - tail->used) {
		tail = answers_append_locked(answers);
		if (tail == NULL) {
			outbox_lose_locked(conn);
			return NULL;
		}
		if (!place_hold_locked(conn, tail, size_max(size, HELD_MIN)))
			return NULL; /* an empty one does no harm */
	}
	bytes = tail->bytes + tail->used;
	tail->used += size;
	tail->count++;
	answers_count_locked(answers, 1, size);
	return bytes;
}

void answers_add_frame(struct conn *conn, const struct wire_frame *frame)
{
	size_t size = wire_encode(frame, NULL, 0);
	uint8_t *bytes;

	ASSERT(size > 0);
	mutex_lock(&conn->outbox.lock);
	if (conn->outbox.answers.head == NULL)
		bytes = outbox_add_locked(conn, size, 1, 0);
	else
		bytes = outbox_is_dead(conn) ? NULL : answers_hold_locked(conn, size);
	if (bytes != NULL)
		(void)wire_encode(frame, bytes, size);
	mutex_unlock(&conn->outbox.lock);
}

void answers_owe_locked(struct conn *conn, size_t held)
{
	mutex_assert_held(&conn->outbox.lock);
	answers_count_locked(&conn->outbox.answers, 1, ANSWER_EMPTY_BYTES + (uint64_t)held);
}

void answers_paid_locked(struct conn *conn, size_t held)
{
	mutex_assert_held(&conn->outbox.lock);
	answers_uncount_locked(conn, 1, ANSWER_EMPTY_BYTES + (uint64_t)held);
}
