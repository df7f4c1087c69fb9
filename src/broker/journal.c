/*
 * Journals: opening them, the tail in memory, and where a cursor finds its next message.
 *
 * The tail is a suffix of what is committed. A cursor within it takes its messages from there; one
 * that is behind it has the committer read a row, which it then holds until it has gone through it.
 */
#include "broker/journal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

/* --- segments ------------------------------------------------------------------------------ */

/* The smallest envelope: schema id, two lengths, an independent causal context. */
#define ENVELOPE_MIN 42

/* Finds the records and gives them the channel's schema id; false when the row is damaged. */
static bool segment_index(struct segment *segment, const struct journal *journal)
{
	size_t prefix = segment->sparse ? 8 : 0;
	uint8_t *data = segment->data->data;
	size_t offset = 0;

	for (size_t i = 0; i < segment->count; i++) {
		size_t left = segment->data->length - offset, length;

		if (left < prefix + STORE_RECORD_HEAD)
			return false;
		left -= prefix + STORE_RECORD_HEAD;
		length = get_u32(data + offset + prefix + 8);
		if (length < ENVELOPE_MIN || length > left)
			return false;
		segment->offsets[i] = (uint32_t)offset;
		offset += prefix + STORE_RECORD_HEAD;
		if ((data[offset - 1] & STORE_RECORD_FOREIGN) == 0)
			memcpy(data + offset, journal->channel->schema_id,
			       sizeof(journal->channel->schema_id));
		offset += length;
	}
	return offset == segment->data->length;
}

struct segment *segment_new(const struct journal *journal, struct store_row *row, bool *damaged)
{
	struct segment *segment = NULL;

	*damaged = row->data == NULL || row->data->length > UINT32_MAX ||
		   row->count > row->data->length / STORE_RECORD_HEAD;
	if (!*damaged)
		segment = malloc(sizeof(*segment) + row->count * sizeof(segment->offsets[0]));
	if (segment == NULL) {
		buf_unref(&row->data);
		return NULL;
	}
	atomic_init(&segment->references, 1);
	segment->first = row->first;
	segment->last = row->last;
	segment->time_ms = row->time_ms;
	segment->count = (size_t)row->count;
	segment->sparse = row->sparse;
	segment->data = row->data;
	row->data = NULL;
	*damaged = !segment_index(segment, journal);
	if (*damaged)
		segment_unref(&segment);
	return segment;
}

struct segment *segment_ref(struct segment *segment)
{
	atomic_fetch_add_explicit(&segment->references, 1, memory_order_relaxed);
	return segment;
}

void segment_unref(struct segment **pointer)
{
	struct segment *segment = *pointer;

	*pointer = NULL;
	if (segment == NULL ||
	    atomic_fetch_sub_explicit(&segment->references, 1, memory_order_acq_rel) != 1)
		return;
	buf_unref(&segment->data);
	free(segment);
}

uint64_t segment_sequence(const struct segment *segment, size_t index)
{
	if (!segment->sparse)
		return segment->first + index;
	return get_u64(segment->data->data + segment->offsets[index]);
}

size_t segment_find(const struct segment *segment, uint64_t sequence)
{
	size_t low = 0, high = segment->count;

	if (sequence <= segment->first)
		return 0;
	if (!segment->sparse)
		return sequence - segment->first < high ? (size_t)(sequence - segment->first)
							: high;
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (segment_sequence(segment, middle) < sequence)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

void segment_get(const struct segment *segment, size_t index, struct stored *stored)
{
	const uint8_t *record =
		segment->data->data + segment->offsets[index] + (segment->sparse ? 8 : 0);

	*stored = (struct stored){
		.envelope = {record + STORE_RECORD_HEAD, get_u32(record + 8)},
		.id = get_u64(record),
		.sequence = segment_sequence(segment, index),
	};
	/* By reference only when the row is little more than this message: a queued frame is
	 * charged what it holds on to. */
	if (stored->envelope.length >= segment->data->length / 2)
		stored->buf = segment->data;
}

/* --- the tail ------------------------------------------------------------------------------ */

static uint64_t segment_cost(const struct segment *segment)
{
	return segment->data->length + segment->count * sizeof(segment->offsets[0]) +
	       sizeof(*segment) + sizeof(*segment->data) + sizeof(segment);
}

static void journal_drop_oldest_locked(struct journal *journal)
{
	struct segment **oldest = &journal->tail[journal->tail_start];

	journal->tail_bytes -= segment_cost(*oldest);
	segment_unref(oldest);
	journal->tail_count--;
	journal->tail_start = journal->tail_count == 0 ? 0 : journal->tail_start + 1;
}

bool journal_add_tail_locked(struct journal *journal, struct segment *segment)
{
	if (journal->tail_start + journal->tail_count == journal->tail_capacity) {
		size_t capacity = journal->tail_capacity == 0 ? 16 : journal->tail_capacity;
		struct segment **tail;

		/* Moved at most once for every half of it that has been used up. */
		if (journal->tail_start > 0 && journal->tail_count <= capacity / 2) {
			memmove(journal->tail, journal->tail + journal->tail_start,
				journal->tail_count * sizeof(*tail));
			journal->tail_start = 0;
		} else {
			capacity *= 2;
			tail = realloc(journal->tail, capacity * sizeof(*tail));
			if (tail == NULL) {
				while (journal->tail_count > 0)
					journal_drop_oldest_locked(journal);
				segment_unref(&segment);
				return false;
			}
			journal->tail = tail;
			journal->tail_capacity = capacity;
		}
	}
	journal->tail[journal->tail_start + journal->tail_count++] = segment;
	journal->tail_bytes += segment_cost(segment);
	return true;
}

void journal_trim_tail_locked(struct journal *journal)
{
	while (journal->tail_count > 0 && journal->tail_bytes > journal->cache_bytes)
		journal_drop_oldest_locked(journal);
}

void journal_cut_tail_locked(struct journal *journal, uint64_t sequence)
{
	while (journal->tail_count > 0 && journal->tail[journal->tail_start]->first <= sequence)
		journal_drop_oldest_locked(journal);
}

/* The segment of the tail that SEQUENCE belongs to; NULL when it is older. */
static struct segment *journal_find_tail_locked(const struct journal *journal, uint64_t sequence)
{
	size_t low = journal->tail_start, high = low + journal->tail_count;

	if (journal->tail_count == 0 || sequence < journal->tail[low]->first)
		return NULL;
	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (journal->tail[middle]->first <= sequence)
			low = middle;
		else
			high = middle;
	}
	return journal->tail[low];
}

/* --- cursors ------------------------------------------------------------------------------- */

void cursor_init(struct cursor *cursor, uint64_t next)
{
	*cursor = (struct cursor){.next = next};
	list_init(&cursor->in_reads);
}

void cursor_close_locked(struct journal *journal, struct cursor *cursor)
{
	committer_forget_read(journal->channel->broker->committer, cursor);
	segment_unref(&cursor->segment);
}

enum cursor_result cursor_find_locked(struct journal *journal, struct cursor *cursor,
				      struct segment **found, size_t *index)
{
	*found = NULL;
	*index = 0;
	if (cursor->next < journal->first)
		cursor->next = journal->first;
	while (cursor->next <= journal->last) {
		struct segment *segment = cursor->segment;

		if (cursor->gap_from <= cursor->next && cursor->next <= cursor->gap_to) {
			cursor->next = cursor->gap_to + 1;
			continue;
		}
		if (segment == NULL || cursor->next < segment->first ||
		    cursor->next > segment->last) {
			segment_unref(&cursor->segment);
			segment = journal_find_tail_locked(journal, cursor->next);
			if (segment == NULL) {
				committer_read(journal->channel->broker->committer, cursor);
				return CURSOR_READING;
			}
			if (cursor->next > segment->last) /* it was to be the next one's */
				return CURSOR_END;
			cursor->segment = segment_ref(segment);
		}
		*index = segment_find(segment, cursor->next);
		if (*index < segment->count) {
			if (segment_sequence(segment, *index) > journal->last)
				return CURSOR_END;
			*found = segment;
			return CURSOR_FOUND;
		}
		cursor->next = segment->last + 1;
	}
	segment_unref(&cursor->segment); /* who waits for the next message keeps no old one */
	return CURSOR_END;
}

/* --- a journal's life ---------------------------------------------------------------------- */

struct journal *journal_new(struct channel *channel)
{
	struct journal *journal = calloc(1, sizeof(*journal));

	if (journal == NULL)
		return NULL;
	journal->channel = channel;
	journal->first = 1;
	journal->armed_ns = DEADLINE_NEVER;
	list_init(&journal->in_touched);
	list_init(&journal->in_dirty);
	list_init(&journal->in_batch);
	list_init(&journal->consumer_list);
	list_init(&journal->readers);
	list_init(&journal->answered);
	list_init(&journal->owed);
	list_init(&journal->dirty);
	list_init(&journal->work.changing);
	list_init(&journal->work.entries);
	list_init(&journal->work.owed);
	hash_init(&journal->consumers);
	deadline_init(&journal->alarm);
	return journal;
}

void journal_free(struct journal **pointer)
{
	struct journal *journal = *pointer;

	if (journal == NULL)
		return;
	*pointer = NULL;
	ASSERT(list_empty(&journal->readers));
	while (!list_empty(&journal->consumer_list)) {
		struct consumer *consumer =
			LIST_ENTRY(journal->consumer_list.next, struct consumer, in_journal);

		ASSERT(list_empty(&consumer->attachments));
		list_remove(&consumer->in_journal);
		hash_remove(&journal->consumers, &consumer->by_name);
		consumer_free(&consumer);
	}
	while (journal->tail_count > 0)
		journal_drop_oldest_locked(journal);
	free(journal->tail);
	free(journal->work.records);
	free(journal->work.segments);
	segment_unref(&journal->oldest);
	hash_destroy(&journal->consumers);
	free(journal);
}

void journal_configure(struct journal *journal, const struct broker_channel_settings *settings,
		       uint64_t cache_bytes)
{
	const struct broker_durable_settings *stored = &settings->stored;
	struct text text;

	mutex_assert_held(&journal->channel->lock);
	journal->settings = *stored;
	journal->settings.dead_letter = NULL; /* lives in the configuration; see dead_letter */
	journal->cache_bytes = cache_bytes;
	text = (struct text)TEXT_INIT(journal->full_text[0]);
	text_add(&text, "over-capacity: max_messages of channel '");
	text_add_name(&text, broker_channel_name(journal->channel));
	text_add(&text, "' is %" PRIu64 ", and its consumers have not acknowledged as many",
		 stored->max_messages);
	text = (struct text)TEXT_INIT(journal->full_text[1]);
	text_add(&text, "over-capacity: max_bytes of channel '");
	text_add_name(&text, broker_channel_name(journal->channel));
	text_add(&text, "' is %" PRIu64 ", and its consumers have not acknowledged as much",
		 stored->max_bytes);
	text = (struct text)TEXT_INIT(journal->full_text[2]);
	text_add(&text, "over-capacity: the message is larger than max_bytes of channel '");
	text_add_name(&text, broker_channel_name(journal->channel));
	text_add(&text, "', which is %" PRIu64, stored->max_bytes);
	journal_trim_tail_locked(journal);
}

struct journal_loading {
	struct journal *journal;
	int64_t now_ms;
};

static bool journal_load_consumer(void *context, const struct store_consumer *stored)
{
	struct journal_loading *loading = context;
	struct consumer *consumer = consumer_new(loading->journal, stored->name);

	if (consumer == NULL)
		return false;
	consumer->number = stored->number;
	/* It had live subscriptions when the server crashed: its idle time begins now. */
	consumer->idle_since_ms =
		stored->idle_since_ms == 0 ? loading->now_ms : stored->idle_since_ms;
	mutex_lock(&loading->journal->channel->lock);
	if (!consumer_state_decode_locked(consumer, stored->state) ||
	    !consumer_link_locked(consumer)) {
		mutex_unlock(&loading->journal->channel->lock);
		consumer_free(&consumer);
		return false;
	}
	cursor_init(&consumer->cursor, consumer->done.floor + 1);
	consumer->cursor.consumer = consumer;
	if (stored->idle_since_ms == 0) /* or the next start would count anew */
		consumer_dirty_locked(consumer);
	mutex_unlock(&loading->journal->channel->lock);
	return true;
}

enum store_result journal_load(struct journal *journal, struct committer *committer)
{
	struct store *store = committer->store;
	struct journal_loading loading = {.journal = journal, .now_ms = clock_wall_ms()};
	enum store_result result;

	result = store->ops->channel_open(store, broker_channel_name(journal->channel),
					  &journal->stored);
	if (result != STORE_OK)
		return result;
	mutex_lock(&journal->channel->lock);
	journal->last = journal->stored.last;
	journal->first = journal->stored.first;
	mutex_unlock(&journal->channel->lock);
	if (list_empty(&journal->consumer_list))
		result = store->ops->consumers(store, journal->stored.number, journal_load_consumer,
					       &loading);
	if (result == STORE_OK)
		result = retention_recount(committer, journal);
	if (result != STORE_OK)
		return result;
	mutex_lock(&journal->channel->lock);
	journal->held = journal->work.held;
	journal->held_bytes = journal->work.held_bytes;
	mutex_unlock(&journal->channel->lock);
	journal->loaded = true;
	return STORE_OK;
}

void journal_state_locked(const struct journal *journal, struct broker_channel_state *state)
{
	struct list *node, *after;

	state->durable = true;
	state->first_sequence = journal->first;
	state->last_sequence = journal->last;
	state->stale_answers = journal->stale_answers;
	state->dedup_keys = journal->stored.keys;
	state->dedup_hits = journal->dedup_hits;
	LIST_FOR_EACH_NODE(node, after, &journal->readers)
	state->subscriptions++;
	LIST_FOR_EACH_NODE(node, after, &journal->consumer_list)
	state->subscriptions += LIST_ENTRY(node, struct consumer, in_journal)->attachment_count;
}
