/*
 * One batch of the committer: prepared within a transaction, committed, and then what follows from
 * it, in the order in which it was queued. When the commit fails, everybody in the batch is told
 * so, and memory stays as it was before.
 *
 * Preparing changes nothing that others see: a journal's `work` and a consumer's `next` are what
 * they will be. What consumers have answered is prepared first, so that it makes room.
 */
#include "broker/journal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"

/* How many connections the committer writes to itself; the flusher does the rest. */
#define FLUSH_MAX 16

/* After a failed commit, what is left of it is tried again. */
#define RETRY_MS 1000

/* Between two steps of giving room back. */
#define RECLAIM_MS 20

/* --- preparing: journals and consumers ------------------------------------------------------- */

enum store_result commit_touch(struct committer *committer, struct journal *journal)
{
	struct journal_work *work = &journal->work;
	struct channel *channel = journal->channel;

	if (work->touched)
		return STORE_OK;
	if (!journal->loaded) {
		enum store_result result = journal_load(journal, committer);

		if (result != STORE_OK)
			return result;
	}
	work->touched = true;
	work->channel = journal->stored;
	work->held = journal->held;
	work->held_bytes = journal->held_bytes;
	work->cut = 0;
	work->recount = false;
	work->hits = 0;
	list_append(&committer->touched, &journal->in_touched);
	mutex_lock(&channel->lock);
	work->settings = journal->settings;
	work->dead_letter = journal->dead_letter;
	work->dedup_window_ms = channel->dedup.window_ms;
	work->dedup_max_keys = channel->dedup.max_keys;
	mutex_unlock(&channel->lock);
	return STORE_OK;
}

enum store_result commit_change(struct consumer *consumer)
{
	if (consumer->changing)
		return STORE_OK;
	if (!ranges_copy(&consumer->next, &consumer->done))
		return STORE_MEMORY;
	consumer->changing = true;
	consumer->discarding = 0;
	list_append(&consumer->journal->work.changing, &consumer->in_changing);
	return STORE_OK;
}

enum store_result commit_segment(struct committer *committer, struct journal *journal,
				 uint64_t sequence, struct segment **segment)
{
	struct store *store = committer->store;
	struct store_row row;
	enum store_result result;
	bool damaged;

	*segment = NULL;
	result = store->ops->row_read(store, journal->stored.number, sequence, true, &row);
	if (result != STORE_OK)
		return result;
	*segment = segment_new(journal, &row, &damaged);
	if (*segment != NULL)
		return STORE_OK;
	if (!damaged)
		return STORE_MEMORY;
	log_event(LOG_LEVEL_ERROR, "the store is damaged",
		  LOG_STR("channel", journal->channel->name), LOG_U64("sequence", row.first),
		  LOG_STR("text", "stop the server and check it with liminald -C"));
	return STORE_DOWN;
}

static bool work_reserve_record(struct journal_work *work)
{
	size_t capacity = work->record_capacity == 0 ? 16 : work->record_capacity * 2;
	struct record *records;

	if (work->record_count < work->record_capacity)
		return true;
	records = realloc(work->records, capacity * sizeof(*records));
	if (records == NULL)
		return false;
	work->records = records;
	work->record_capacity = capacity;
	return true;
}

/* Adds a message to the batch; its sequence is work.channel.last then. OWNED is taken over. */
static enum store_result commit_record(struct journal *journal, struct span envelope, uint64_t id,
				       uint8_t flags, struct buf *owned)
{
	struct journal_work *work = &journal->work;
	uint64_t charged = envelope_charge(envelope.length);

	if (!work_reserve_record(work)) {
		buf_unref(&owned);
		return STORE_MEMORY;
	}
	work->records[work->record_count++] = (struct record){envelope, id, flags, owned};
	work->channel.last++;
	work->channel.charged += charged;
	work->channel.kept++;
	work->channel.kept_charged += charged;
	if (journal->consumer_count > 0) {
		work->held++;
		work->held_bytes += charged;
	}
	return STORE_OK;
}

/* --- preparing: publishes -------------------------------------------------------------------- */

static enum store_result prepare_key(struct committer *committer, struct journal *journal,
				     struct message *message)
{
	struct store *store = committer->store;
	struct journal_work *work = &journal->work;
	enum store_result result;
	uint64_t removed;

	result = store->ops->key_add(store, work->channel.number, message->key, committer->now_ms,
				     message->id, message->sequence);
	if (result != STORE_OK)
		return result;
	work->channel.keys++;
	/* A few of the old ones each time keep up with what comes. */
	result = store->ops->keys_trim(store, work->channel.number,
				       committer->now_ms - work->dedup_window_ms,
				       work->channel.keys > work->dedup_max_keys
					       ? work->channel.keys - work->dedup_max_keys
					       : 0,
				       4, &removed);
	if (result == STORE_OK)
		work->channel.keys -= removed;
	return result;
}

static enum store_result prepare_message(struct committer *committer, struct journal *journal,
					 struct message *message)
{
	struct store *store = committer->store;
	enum store_result result;

	message->duplicate = message->delivered = false;
	message->refused = NULL;
	message->id = message->sequence = 0;
	if (message->has_key) {
		result = store->ops->key_find(store, journal->stored.number, message->key,
					      committer->now_ms - journal->work.dedup_window_ms + 1,
					      &message->id, &message->sequence);
		if (result == STORE_OK) {
			message->duplicate = true;
			journal->work.hits++;
			return STORE_OK;
		}
		if (result != STORE_NONE)
			return result;
	}
	result = retention_admit(committer, journal, envelope_charge(message->envelope.length),
				 &message->refused);
	if (result == STORE_OK && message->refused != NULL)
		metric_add(METRIC_PUBLISHES_REFUSED_CAPACITY, 1);
	if (result != STORE_OK || message->refused != NULL)
		return result;
	message->id = atomic_fetch_add(&committer->broker->next_message, 1);
	result = commit_record(journal, message->envelope, message->id, 0, NULL);
	message->sequence = journal->work.channel.last;
	if (result == STORE_OK && message->has_key)
		result = prepare_key(committer, journal, message);
	return result;
}

static enum store_result prepare_publish(struct committer *committer, struct item *item)
{
	enum store_result result = STORE_OK;

	for (size_t i = 0; i < item->count && result == STORE_OK; i++)
		result = prepare_message(committer, item->journal, &item->run[i]);
	return result;
}

/* --- preparing: subscriptions ---------------------------------------------------------------- */

/* The first message that was committed at TIME_MS or later; one past the last: none yet. */
static enum store_result find_time(struct committer *committer, struct journal *journal,
				   int64_t time_ms, uint64_t *sequence)
{
	struct store *store = committer->store;
	uint64_t low = journal->stored.first, high = journal->stored.last + 1;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;
		struct store_row row;
		enum store_result result =
			store->ops->row_read(store, journal->stored.number, middle, false, &row);

		if (result == STORE_NONE)
			high = middle; /* nothing from there on */
		else if (result != STORE_OK)
			return result;
		else if (row.time_ms >= time_ms)
			high = row.first < middle ? row.first : middle;
		else
			low = row.last + 1;
		if (high < low)
			high = low;
	}
	*sequence = low;
	return STORE_OK;
}

static enum store_result prepare_start(struct committer *committer, struct item *item,
				       uint64_t *next, int64_t *from_ms)
{
	struct journal *journal = item->journal;
	enum store_result result;

	*from_ms = 0;
	*next = journal->work.channel.first;
	switch (item->start) {
	case 0:
		*next = journal->work.channel.last + 1;
		return STORE_OK;
	case 1:
		return STORE_OK;
	case 2:
		if (item->value > *next)
			*next = item->value;
		return STORE_OK;
	default:
		if (item->value > INT64_MAX)
			item->value = INT64_MAX;
		result = find_time(committer, journal, (int64_t)item->value, next);
		/* What this batch adds, and what comes, may still be older than that. */
		if (result == STORE_OK && *next > journal->stored.last)
			*from_ms = (int64_t)item->value;
		return result;
	}
}

static enum store_result prepare_new_consumer(struct committer *committer, struct item *item)
{
	struct store *store = committer->store;
	struct journal *journal = item->journal;
	struct span name = {(const uint8_t *)item->name, item->name_length};
	struct store_consumer stored = {.name = name};
	struct buf *state;
	enum store_result result;

	if (journal->consumer_count + journal->work.added >= journal->work.settings.max_consumers) {
		item->refused = "over-capacity: max_consumers of this channel is reached; remove "
				"one that nobody uses";
		metric_add(METRIC_SUBSCRIBES_REFUSED_CONSUMERS, 1);
		return STORE_OK;
	}
	item->added = consumer_new(journal, name);
	if (item->added == NULL)
		return STORE_MEMORY;
	item->added->done.floor = item->next - 1;
	item->added->from_ms = item->from_ms;
	result = retention_skip_holes(committer, journal, &item->added->done);
	if (result != STORE_OK)
		return result;
	mutex_lock(&journal->channel->lock);
	state = consumer_state_encode_locked(item->added, &item->added->done);
	mutex_unlock(&journal->channel->lock);
	if (state == NULL)
		return STORE_MEMORY;
	stored.state = (struct span){state->data, state->length};
	result = store->ops->consumer_add(store, journal->stored.number, &stored,
					  &item->added->number);
	buf_unref(&state);
	if (result == STORE_OK) {
		journal->work.added++;
		journal->work.recount = true;
	}
	return result;
}

/* A consumer that an earlier item of the batch makes. */
static struct consumer *batch_consumer(const struct list *items, const struct item *until)
{
	for (struct list *node = items->next; node != &until->in_queue; node = node->next) {
		const struct item *item = LIST_ENTRY(node, struct item, in_queue);

		if (item->added != NULL && item->journal == until->journal &&
		    item->name_length == until->name_length &&
		    memcmp(item->name, until->name, item->name_length) == 0)
			return item->added;
	}
	return NULL;
}

static enum store_result prepare_subscribe(struct committer *committer, struct list *items,
					   struct item *item)
{
	struct span name = {(const uint8_t *)item->name, item->name_length};
	struct consumer *consumer;
	enum store_result result;

	if (name.length > 0) {
		/* Consumers come and go by this thread only: no lock is needed to look. */
		consumer = consumer_find_locked(item->journal, name);
		if (consumer != NULL && !consumer->removing)
			return commit_change(consumer);
		if (batch_consumer(items, item) != NULL)
			return STORE_OK;
	}
	result = prepare_start(committer, item, &item->next, &item->from_ms);
	if (result != STORE_OK || name.length == 0)
		return result;
	return prepare_new_consumer(committer, item);
}

static enum store_result prepare_remove(struct committer *committer, struct item *item)
{
	struct store *store = committer->store;
	struct span name = {(const uint8_t *)item->name, item->name_length};
	struct consumer *consumer = consumer_find_locked(item->journal, name);
	bool used;

	if (consumer == NULL || consumer->removing) {
		item->result = STORE_NONE;
		return STORE_OK;
	}
	mutex_lock(&item->journal->channel->lock);
	used = item->idle_since_ms != 0 &&
	       (consumer->attachment_count > 0 || consumer->idle_since_ms != item->idle_since_ms);
	mutex_unlock(&item->journal->channel->lock);
	if (used)
		return STORE_OK;
	consumer->removing = true;
	item->removed = consumer;
	item->journal->work.recount = true;
	return store->ops->consumer_remove(store, consumer->number);
}

static bool add_dead(void *context, const struct store_dead *stored)
{
	struct item *item = context;
	struct broker_dead *grown = realloc(*item->dead, (*item->found + 1) * sizeof(**item->dead));
	struct broker_dead *dead;

	if (grown == NULL)
		return false;
	*item->dead = grown;
	dead = &grown[(*item->found)++];
	*dead = (struct broker_dead){.sequence = stored->sequence,
				     .rejected = stored->rejected,
				     .attempts = stored->attempts,
				     .text_length = stored->text.length};
	dead->origin = strndup((const char *)stored->origin.data, stored->origin.length);
	dead->consumer = strndup((const char *)stored->consumer.data, stored->consumer.length);
	dead->text = malloc(stored->text.length + 1);
	if (dead->text == NULL || dead->origin == NULL || dead->consumer == NULL)
		return false;
	if (stored->text.length > 0)
		memcpy(dead->text, stored->text.data, stored->text.length);
	dead->text[stored->text.length] = '\0';
	return true;
}

/* Reading does not depend on the batch, and its failure is nobody else's. */
static enum store_result prepare_dead(struct committer *committer, struct item *item)
{
	struct store *store = committer->store;

	item->result = store->ops->dead_read(store, item->journal->stored.number, item->from,
					     item->wanted, add_dead, item);
	return item->result == STORE_DOWN ? STORE_DOWN : STORE_OK;
}

static enum store_result prepare_item(struct committer *committer, struct list *items,
				      struct item *item)
{
	enum store_result result = commit_touch(committer, item->journal);

	if (result != STORE_OK)
		return result;
	switch (item->kind) {
	case ITEM_PUBLISH:
		return prepare_publish(committer, item);
	case ITEM_SUBSCRIBE:
		return prepare_subscribe(committer, items, item);
	case ITEM_REMOVE:
		return prepare_remove(committer, item);
	case ITEM_DEAD:
		return prepare_dead(committer, item);
	}
	return STORE_OK;
}

/* --- preparing: answers and dead letters -------------------------------------------------------
 */

/* The envelope of a dead letter: its causal context names where it comes from. */
static struct buf *dead_envelope(const struct stored *stored, const char *origin)
{
	const uint8_t *from = stored->envelope.data;
	size_t origin_length = strlen(origin), context = 1 + 4 + origin_length + 1;
	size_t old_context =
		(size_t)from[32] << 24 | (size_t)from[33] << 16 | (size_t)from[34] << 8 | from[35];
	size_t rest = stored->envelope.length - 36 - old_context; /* length and payload */
	struct buf *envelope = buf_new(36 + context + rest);
	uint8_t *to;

	if (envelope == NULL)
		return NULL;
	to = envelope->data;
	memcpy(to, from, 32);
	put_u32(to + 32, (uint32_t)context);
	to[36] = 1;
	put_u32(to + 37, (uint32_t)origin_length);
	memcpy(to + 41, origin, origin_length);
	to[41 + origin_length] = 0;
	memcpy(to + 36 + context, from + 36 + old_context, rest);
	return envelope;
}

/* Moves the message of ENTRY to DEAD. *MOVED: it is there, or can never be; otherwise it waits. */
static enum store_result prepare_move(struct committer *committer, struct entry *entry,
				      struct journal *dead, bool *moved)
{
	struct store *store = committer->store;
	struct journal *journal = entry->consumer->journal;
	char origin[300];
	struct text text = TEXT_INIT(origin);
	struct segment *segment;
	struct stored stored;
	struct buf *envelope = NULL;
	const char *refused;
	enum store_result result;
	size_t index = 0;

	*moved = false;
	result = commit_segment(committer, journal, entry->sequence, &segment);
	if (result == STORE_OK)
		index = segment_find(segment, entry->sequence);
	if (result == STORE_NONE ||
	    (result == STORE_OK &&
	     (index == segment->count || segment_sequence(segment, index) != entry->sequence))) {
		segment_unref(&segment);
		*moved = true; /* it is not kept any more */
		return STORE_OK;
	}
	if (result == STORE_OK)
		result = commit_touch(committer, dead);
	if (result != STORE_OK)
		goto out;
	segment_get(segment, index, &stored);
	text_add(&text, "%s/%" PRIu64, journal->channel->name, entry->sequence);
	envelope = dead_envelope(&stored, origin);
	result = STORE_MEMORY;
	if (envelope == NULL)
		goto out;
	result = retention_admit(committer, dead, envelope_charge(envelope->length), &refused);
	if (result != STORE_OK || refused != NULL) {
		/* One that is larger than the whole channel never fits. */
		*moved = refused == dead->full_text[2];
		if (*moved)
			entry->fate = "message discarded: the dead-letter channel never has room";
		goto out;
	}
	result = commit_record(dead, (struct span){envelope->data, envelope->length}, stored.id,
			       STORE_RECORD_FOREIGN, envelope);
	envelope = NULL;
	if (result == STORE_OK)
		result = store->ops->dead_add(
			store, dead->work.channel.number,
			&(struct store_dead){.sequence = dead->work.channel.last,
					     .origin = span_of(origin),
					     .consumer = {(const uint8_t *)entry->consumer->name,
							  entry->consumer->name_length},
					     .rejected = entry->rejected,
					     .attempts = entry->attempts,
					     .text = entry->text == NULL
							     ? (struct span){(const uint8_t *)"", 0}
							     : (struct span){entry->text->data,
									     entry->text->length}});
	*moved = result == STORE_OK;
out:
	buf_unref(&envelope);
	segment_unref(&segment);
	return result;
}

static enum store_result prepare_entry(struct committer *committer, struct entry *entry)
{
	struct journal *journal = entry->consumer->journal;
	enum store_result result;
	bool moved = true;

	entry->stuck = false;
	entry->fate = journal->work.dead_letter != NULL
			      ? "dead letter"
			      : "message discarded: there is no dead_letter";
	result = commit_change(entry->consumer);
	if (result != STORE_OK)
		return result;
	if (entry->state != ENTRY_ANSWERED && journal->work.dead_letter != NULL) {
		result = prepare_move(committer, entry, journal->work.dead_letter, &moved);
		if (result != STORE_OK)
			return result;
		entry->stuck = !moved;
		if (entry->stuck)
			return STORE_OK;
	}
	return retention_done(committer, entry->consumer, entry->sequence, entry->charged);
}

static enum store_result prepare_answers(struct committer *committer, struct journal *journal)
{
	struct journal_work *work = &journal->work;
	enum store_result result = commit_touch(committer, journal);
	struct list *node, *after;

	if (result != STORE_OK)
		return result;
	mutex_lock(&journal->channel->lock);
	LIST_FOR_EACH_NODE(node, after, &journal->answered)
	{
		struct entry *entry = LIST_ENTRY(node, struct entry, in_state);

		entry->in_batch = true;
		list_remove(&entry->in_state);
		list_append(&work->entries, &entry->in_state);
	}
	LIST_FOR_EACH_NODE(node, after, &journal->owed)
	{
		struct owed *owed = LIST_ENTRY(node, struct owed, in_batch);

		list_remove(&owed->in_batch);
		list_append(&work->owed, &owed->in_batch);
	}
	LIST_FOR_EACH_NODE(node, after, &journal->dirty)
	{
		struct consumer *consumer = LIST_ENTRY(node, struct consumer, in_dirty);

		if (result == STORE_OK)
			result = commit_change(consumer);
		if (result == STORE_OK)
			list_remove(&consumer->in_dirty);
	}
	mutex_unlock(&journal->channel->lock);
	LIST_FOR_EACH_NODE(node, after, &work->entries)
	{
		if (result == STORE_OK)
			result = prepare_entry(committer, LIST_ENTRY(node, struct entry, in_state));
	}
	return result;
}

/* --- preparing: rows and states ----------------------------------------------------------------
 */

static void put_record(uint8_t *bytes, const struct record *record)
{
	put_u32(bytes, (uint32_t)(record->id >> 32));
	put_u32(bytes + 4, (uint32_t)record->id);
	put_u32(bytes + 8, (uint32_t)record->envelope.length);
	bytes[12] = record->flags;
	memcpy(bytes + STORE_RECORD_HEAD, record->envelope.data, record->envelope.length);
}

static bool work_add_segment(struct journal_work *work, struct segment *segment)
{
	if (work->segment_count == work->segment_capacity) {
		size_t capacity = work->segment_capacity == 0 ? 4 : work->segment_capacity * 2;
		struct segment **segments = realloc(work->segments, capacity * sizeof(*segments));

		if (segments == NULL)
			return false;
		work->segments = segments;
		work->segment_capacity = capacity;
	}
	work->segments[work->segment_count++] = segment;
	return true;
}

/* Makes one row of the records from FIRST on; *NEXT: the first one that is left. */
static enum store_result prepare_row(struct committer *committer, struct journal *journal,
				     size_t first, uint64_t *before, size_t *next)
{
	struct store *store = committer->store;
	struct journal_work *work = &journal->work;
	struct store_row row = {.before = *before, .time_ms = work->channel.time_ms};
	struct segment *segment;
	enum store_result result;
	size_t size = 0, used = 0;
	bool damaged;

	for (*next = first; *next < work->record_count; ++*next) {
		size_t more = STORE_RECORD_HEAD + work->records[*next].envelope.length;

		if (*next > first && size + more > STORE_ROW_BYTES)
			break;
		size += more;
		row.charged += envelope_charge(work->records[*next].envelope.length);
	}
	row.first = journal->stored.last + 1 + first;
	row.count = *next - first;
	row.last = row.first + row.count - 1;
	row.data = buf_new(size);
	if (row.data == NULL)
		return STORE_MEMORY;
	for (size_t i = first; i < *next; i++) {
		put_record(row.data->data + used, &work->records[i]);
		used += STORE_RECORD_HEAD + work->records[i].envelope.length;
	}
	*before += row.charged;
	result = store->ops->row_add(store, work->channel.number, &row);
	if (result != STORE_OK) {
		buf_unref(&row.data);
		return result;
	}
	segment = segment_new(journal, &row, &damaged);
	ASSERT(!damaged);
	if (segment == NULL)
		return STORE_MEMORY;
	if (!work_add_segment(work, segment)) {
		segment_unref(&segment);
		return STORE_MEMORY;
	}
	return STORE_OK;
}

/* Those who wait for a time to come skip what is older. */
static enum store_result prepare_waiting(struct journal *journal)
{
	for (struct list *node = journal->consumer_list.next; node != &journal->consumer_list;
	     node = node->next) {
		struct consumer *consumer = LIST_ENTRY(node, struct consumer, in_journal);
		enum store_result result;

		if (consumer->from_ms == 0)
			continue;
		result = commit_change(consumer);
		if (result != STORE_OK)
			return result;
		if (journal->work.channel.time_ms < consumer->from_ms)
			ranges_raise(&consumer->next, journal->work.channel.last);
	}
	return STORE_OK;
}

static enum store_result prepare_states(struct committer *committer, struct journal *journal)
{
	struct store *store = committer->store;
	enum store_result result = STORE_OK;

	for (struct list *node = journal->work.changing.next;
	     node != &journal->work.changing && result == STORE_OK; node = node->next) {
		struct consumer *consumer = LIST_ENTRY(node, struct consumer, in_changing);
		struct buf *state;
		int64_t idle_since_ms;

		if (consumer->removing)
			continue;
		mutex_lock(&journal->channel->lock);
		state = consumer_state_encode_locked(consumer, &consumer->next);
		idle_since_ms = consumer->attachment_count > 0 ? 0 : consumer->idle_since_ms;
		mutex_unlock(&journal->channel->lock);
		if (state == NULL)
			return STORE_MEMORY;
		result = store->ops->consumer_put(store, consumer->number, idle_since_ms,
						  (struct span){state->data, state->length});
		buf_unref(&state);
	}
	return result;
}

static enum store_result prepare_journal(struct committer *committer, struct journal *journal)
{
	struct store *store = committer->store;
	struct journal_work *work = &journal->work;
	uint64_t before = journal->stored.charged;
	enum store_result result = STORE_OK;
	int64_t again_ns;

	if (work->record_count > 0 && committer->now_ms > work->channel.time_ms)
		work->channel.time_ms = committer->now_ms;
	for (size_t next = 0; next < work->record_count && result == STORE_OK;)
		result = prepare_row(committer, journal, next, &before, &next);
	if (result == STORE_OK && work->record_count > 0)
		result = prepare_waiting(journal);
	if (result == STORE_OK)
		result = retention_sweep(committer, journal, &again_ns);
	if (result == STORE_OK)
		committer_sweep_at(committer, again_ns);
	if (result == STORE_OK)
		result = prepare_states(committer, journal);
	if (result == STORE_OK &&
	    memcmp(&work->channel, &journal->stored, sizeof(work->channel)) != 0)
		result = store->ops->channel_put(store, &work->channel);
	return result;
}

static enum store_result prepare_batch(struct committer *committer, struct list *items,
				       struct list *dirty)
{
	enum store_result result = STORE_OK;
	struct list *node, *after;

	LIST_FOR_EACH_NODE(node, after, dirty)
	{
		if (result == STORE_OK)
			result = prepare_answers(committer,
						 LIST_ENTRY(node, struct journal, in_batch));
	}
	for (node = items->next; node != items && result == STORE_OK; node = node->next)
		result = prepare_item(committer, items, LIST_ENTRY(node, struct item, in_queue));
	for (node = committer->touched.next; node != &committer->touched && result == STORE_OK;
	     node = node->next)
		result = prepare_journal(committer, LIST_ENTRY(node, struct journal, in_touched));
	return result;
}

/* --- what follows from a commit ----------------------------------------------------------------
 */

static void work_clear(struct journal *journal)
{
	struct journal_work *work = &journal->work;

	for (size_t i = 0; i < work->record_count; i++)
		buf_unref(&work->records[i].owned);
	work->record_count = 0;
	work->segment_count = 0;
	work->added = 0;
	work->touched = false;
	list_remove(&journal->in_touched);
	/* A burst is not to be paid for ever. */
	if (work->record_capacity > 4096) {
		free(work->records);
		work->records = NULL;
		work->record_capacity = 0;
	}
}

static void settle_owed_locked(struct owed *owed, const char *refused, struct flush_set *set)
{
	struct attachment *attachment = attachment_ref(owed->attachment);

	if (refused != NULL)
		owed->confirmation.refused = refused;
	owed->ready = true;
	list_remove(&owed->in_batch);
	attachment_confirm_locked(attachment, set);
	attachment_unref(&attachment);
}

static void apply_consumer_locked(struct consumer *consumer)
{
	struct ranges done = consumer->done;

	consumer->done = consumer->next;
	consumer->next = done;
	consumer->changing = false;
	consumer->discarded += consumer->discarding;
	list_remove(&consumer->in_changing);
	if (consumer->from_ms != 0 && consumer->journal->work.channel.time_ms >= consumer->from_ms)
		consumer->from_ms = 0;
	if (consumer->discarding == 0)
		return;
	for (size_t i = 0; i < consumer->entries.bucket_count; i++) {
		struct hash_node *node = consumer->entries.buckets[i];

		while (node != NULL) {
			struct entry *entry = CONTAINER_OF(node, struct entry, by_sequence);

			node = node->next;
			if (ranges_contain(&consumer->done, entry->sequence))
				entry_discard_locked(entry);
		}
	}
}

static void apply_entry_locked(struct entry *entry)
{
	struct consumer *consumer = entry->consumer;

	if (entry->stuck) {
		entry_refused_locked(entry,
				     "over-capacity: the dead-letter channel has no room; the "
				     "server tries again by itself",
				     true);
		return;
	}
	if (entry->state != ENTRY_ANSWERED) {
		consumer->dead_rejected += entry->rejected;
		consumer->dead_attempts += !entry->rejected;
	}
	entry_committed_locked(entry);
}

/* Nothing is logged under a lock. */
static void log_what_went(const struct journal *journal)
{
	const struct journal_work *work = &journal->work;

	for (struct list *node = work->entries.next; node != &work->entries; node = node->next) {
		const struct entry *entry = LIST_ENTRY(node, struct entry, in_state);

		if (entry->state == ENTRY_ANSWERED || entry->stuck)
			continue;
		log_client_event(LOG_LEVEL_WARNING, entry->fate,
				 LOG_STR("channel", journal->channel->name),
				 LOG_STR("consumer", entry->consumer->name),
				 LOG_U64("sequence", entry->sequence),
				 LOG_STR("reason", entry->rejected ? "rejected" : "attempts"),
				 LOG_U64("attempts", entry->attempts));
	}
	for (struct list *node = work->changing.next; node != &work->changing; node = node->next) {
		const struct consumer *consumer = LIST_ENTRY(node, struct consumer, in_changing);

		if (consumer->discarding > 0)
			log_client_event(LOG_LEVEL_WARNING, "messages discarded unread",
					 LOG_STR("channel", journal->channel->name),
					 LOG_STR("consumer", consumer->name),
					 LOG_U64("messages", consumer->discarding),
					 LOG_STR("reason", "retention"));
	}
}

/* Everything but the messages, which come in the order of the items. */
static void apply_journal(struct committer *committer, struct journal *journal)
{
	struct journal_work *work = &journal->work;
	struct list *node, *after;

	log_what_went(journal);
	mutex_lock(&journal->channel->lock);
	journal->stored = work->channel;
	journal->held = work->held;
	journal->held_bytes = work->held_bytes;
	journal->first = work->channel.first;
	journal->dedup_hits += work->hits;
	LIST_FOR_EACH_NODE(node, after, &work->entries)
	apply_entry_locked(LIST_ENTRY(node, struct entry, in_state));
	LIST_FOR_EACH_NODE(node, after, &work->changing)
	apply_consumer_locked(LIST_ENTRY(node, struct consumer, in_changing));
	LIST_FOR_EACH_NODE(node, after, &work->owed)
	settle_owed_locked(LIST_ENTRY(node, struct owed, in_batch), NULL, &committer->set);
	if (work->cut > 0)
		journal_cut_tail_locked(journal, work->cut);
	for (size_t i = 0; i < work->segment_count; i++)
		(void)journal_add_tail_locked(journal, work->segments[i]);
	mutex_unlock(&journal->channel->lock);
}

static void apply_publish(struct committer *committer, struct item *item)
{
	struct journal *journal = item->journal;
	struct client *client = item->client;
	struct sink *sink = client->sink;
	uint64_t accepted = 0;

	mutex_lock(&journal->channel->lock);
	for (size_t i = 0; i < item->count; i++) {
		struct message *message = &item->run[i];

		if (message->refused != NULL || message->duplicate)
			continue;
		message->delivered = journal->live_consumers > 0;
		journal->last = message->sequence;
		accepted++;
	}
	journal->channel->publishes += accepted;
	channel_deliver_locked(journal->channel, client, false, item->run, item->count,
			       &committer->set);
	sink->ops->fill_publishes(sink, item->place, item->run, item->count, &committer->set);
	channel_deliver_locked(journal->channel, client, true, item->run, item->count,
			       &committer->set);
	mutex_unlock(&journal->channel->lock);
	metric_add(METRIC_PUBLISHES, accepted);
	committer_settle(client);
}

static void apply_subscribe(struct committer *committer, struct item *item)
{
	struct journal *journal = item->journal;
	struct attachment *attachment = item->attachment;
	struct span name = {(const uint8_t *)item->name, item->name_length};
	struct consumer *consumer = NULL;

	mutex_lock(&journal->channel->lock);
	if (item->added != NULL && item->refused == NULL) {
		struct consumer *added = item->added;

		cursor_init(&added->cursor, added->done.floor + 1);
		added->cursor.consumer = added;
		if (!consumer_link_locked(added)) /* it is stored; a restart will find it */
			item->refused = "over-capacity: the server is out of memory";
		else
			item->added = NULL;
	}
	if (name.length > 0 && item->refused == NULL) {
		consumer = consumer_find_locked(journal, name);
		if (consumer == NULL)
			item->refused = "over-capacity: the server is out of memory";
	}
	attachment->from_ms = item->from_ms;
	if (item->refused == NULL && !attachment->ended)
		attachment_begin_locked(attachment, consumer, item->next);
	attachment->client->sink->ops->fill_subscribe(
		attachment->client->sink, item->place, attachment->stream, attachment->subscription,
		journal->channel->schema_id, item->refused, &committer->set);
	if (item->refused != NULL && !attachment->ended) {
		attachment->ended = true;
		atomic_fetch_sub(&attachment->client->live_subscriptions, 1);
	}
	mutex_unlock(&journal->channel->lock);
	consumer_free(&item->added);
	committer_settle(item->client);
}

static void apply_remove(struct committer *committer, struct item *item)
{
	struct journal *journal = item->journal;

	if (item->removed == NULL)
		return;
	mutex_lock(&journal->channel->lock);
	consumer_end_locked(item->removed, item->reason, &committer->set);
	mutex_unlock(&journal->channel->lock);
	log_event(LOG_LEVEL_NOTICE, "consumer removed", LOG_STR("channel", journal->channel->name),
		  LOG_STR("consumer", item->removed->name),
		  LOG_STR("reason", item->idle_since_ms == 0 ? "administrator" : "expired"));
	consumer_free(&item->removed);
}

static void apply_item(struct committer *committer, struct item *item)
{
	switch (item->kind) {
	case ITEM_PUBLISH:
		apply_publish(committer, item);
		break;
	case ITEM_SUBSCRIBE:
		apply_subscribe(committer, item);
		break;
	case ITEM_REMOVE:
		apply_remove(committer, item);
		break;
	case ITEM_DEAD:
		break;
	}
}

/* Dead letters are messages of their channel like others. */
static void deliver_dead_locked(struct committer *committer, struct journal *journal)
{
	struct journal_work *work = &journal->work;

	for (size_t i = 0; i < work->record_count; i++) {
		const struct record *record = &work->records[i];
		struct message message = {.envelope = record->envelope, .id = record->id};

		if (record->owned == NULL)
			continue;
		message.sequence = journal->stored.last - work->record_count + 1 + i;
		channel_deliver_locked(journal->channel, NULL, false, &message, 1, &committer->set);
	}
}

static void apply_end(struct committer *committer, struct journal *journal)
{
	mutex_lock(&journal->channel->lock);
	deliver_dead_locked(committer, journal);
	journal->last = journal->stored.last;
	journal_pump_locked(journal, &committer->set);
	journal_trim_tail_locked(journal);
	mutex_unlock(&journal->channel->lock);
}

static void apply_recount(struct committer *committer, struct journal *journal)
{
	enum store_result result = retention_recount(committer, journal);

	if (result == STORE_MEMORY)
		return; /* it is judged a little wrong until the next time */
	mutex_lock(&journal->channel->lock);
	journal->held = journal->work.held;
	journal->held_bytes = journal->work.held_bytes;
	mutex_unlock(&journal->channel->lock);
}

static void apply_batch(struct committer *committer, struct list *items)
{
	struct list *node, *after;

	LIST_FOR_EACH_NODE(node, after, &committer->touched)
	apply_journal(committer, LIST_ENTRY(node, struct journal, in_touched));
	LIST_FOR_EACH_NODE(node, after, items)
	apply_item(committer, LIST_ENTRY(node, struct item, in_queue));
	LIST_FOR_EACH_NODE(node, after, &committer->touched)
	{
		struct journal *journal = LIST_ENTRY(node, struct journal, in_touched);

		apply_end(committer, journal);
		if (journal->work.recount)
			apply_recount(committer, journal);
		work_clear(journal);
	}
}

/* --- what follows from a failure ----------------------------------------------------------------
 */

static void fail_item(struct committer *committer, struct item *item, enum store_result result,
		      const char *text)
{
	struct sink *sink = item->client == NULL ? NULL : item->client->sink;

	switch (item->kind) {
	case ITEM_PUBLISH:
		for (size_t i = 0; i < item->count; i++)
			if (item->run[i].refused == NULL)
				item->run[i].refused = text;
		metric_add(result == STORE_DOWN	  ? METRIC_PUBLISHES_REFUSED_DOWN
			   : result == STORE_FULL ? METRIC_PUBLISHES_REFUSED_FULL
						  : METRIC_PUBLISHES_REFUSED_MEMORY,
			   item->count);
		sink->ops->fill_publishes(sink, item->place, item->run, item->count,
					  &committer->set);
		committer_settle(item->client);
		break;
	case ITEM_SUBSCRIBE:
		item->refused = text;
		metric_add(result == STORE_DOWN	  ? METRIC_SUBSCRIBES_REFUSED_DOWN
			   : result == STORE_FULL ? METRIC_SUBSCRIBES_REFUSED_FULL
						  : METRIC_SUBSCRIBES_REFUSED_MEMORY,
			   1);
		mutex_lock(&item->journal->channel->lock);
		sink->ops->fill_subscribe(sink, item->place, item->attachment->stream, 0,
					  item->journal->channel->schema_id, text, &committer->set);
		if (!item->attachment->ended) {
			item->attachment->ended = true;
			atomic_fetch_sub(&item->client->live_subscriptions, 1);
		}
		mutex_unlock(&item->journal->channel->lock);
		consumer_free(&item->added);
		committer_settle(item->client);
		break;
	case ITEM_REMOVE:
		if (item->removed != NULL)
			item->removed->removing = false;
		item->result = result;
		break;
	case ITEM_DEAD:
		if (result == STORE_DOWN)
			item->result = result;
		break;
	}
}

static void fail_journal(struct committer *committer, struct journal *journal, const char *text)
{
	struct journal_work *work = &journal->work;
	struct list *node, *after;

	mutex_lock(&journal->channel->lock);
	LIST_FOR_EACH_NODE(node, after, &work->entries)
	entry_refused_locked(LIST_ENTRY(node, struct entry, in_state), text, false);
	LIST_FOR_EACH_NODE(node, after, &work->changing)
	{
		struct consumer *consumer = LIST_ENTRY(node, struct consumer, in_changing);

		consumer->changing = false;
		list_remove(&consumer->in_changing);
		/* Stored with the next batch that the journal is part of. */
		if (list_empty(&consumer->in_dirty))
			list_append(&journal->dirty, &consumer->in_dirty);
	}
	LIST_FOR_EACH_NODE(node, after, &work->owed)
	settle_owed_locked(LIST_ENTRY(node, struct owed, in_batch), text, &committer->set);
	for (size_t i = 0; i < work->segment_count; i++)
		segment_unref(&work->segments[i]);
	segment_unref(&journal->oldest);
	journal_pump_locked(journal, &committer->set);
	mutex_unlock(&journal->channel->lock);
	work_clear(journal);
}

static void end_attachments_locked(struct committer *committer, struct list *attachments,
				   const char *text)
{
	while (!list_empty(attachments)) {
		struct attachment *attachment =
			LIST_ENTRY(attachments->next, struct attachment, in_owner);
		struct sink *sink = attachment->client->sink;

		atomic_fetch_sub(&attachment->client->live_subscriptions, 1);
		sink->ops->unsubscribed(sink, attachment->stream, text, &committer->set);
		attachment_end_locked(attachment, &committer->set);
	}
}

/* Nothing is promised from now on, and nobody is left waiting. */
static void fail_down(struct committer *committer, const char *text)
{
	struct channel_set *set =
		atomic_load_explicit(&committer->broker->channels, memory_order_acquire);

	atomic_store(&committer->down, true);
	for (size_t i = 0; i < set->count; i++) {
		struct journal *journal = set->channels[i]->journal;
		struct list *node, *after;

		if (journal == NULL)
			continue;
		mutex_lock(&journal->channel->lock);
		while (!list_empty(&journal->owed))
			settle_owed_locked(LIST_ENTRY(journal->owed.next, struct owed, in_batch),
					   text, &committer->set);
		LIST_FOR_EACH_NODE(node, after, &journal->consumer_list)
		end_attachments_locked(committer,
				       &LIST_ENTRY(node, struct consumer, in_journal)->attachments,
				       text);
		end_attachments_locked(committer, &journal->readers, text);
		mutex_unlock(&journal->channel->lock);
	}
	log_event(LOG_LEVEL_ERROR, "the store is down",
		  LOG_STR("text", "a write or an fsync has failed; durable channels refuse "
				  "everything until the server is restarted"),
		  LOG_STR("reason", committer->store->reason));
}

#define TEXT_DOWN                                                                                  \
	"store-down: the disk has failed this server; it accepts nothing durable until it is "     \
	"restarted"

static void fail_batch(struct committer *committer, struct list *items, enum store_result result)
{
	const char *text = TEXT_DOWN;
	struct list *node, *after;

	if (result == STORE_FULL)
		text = "store-full: the disk has no room for it; try again when there is";
	else if (result == STORE_MEMORY)
		text = "over-capacity: the server is out of memory";
	if (result == STORE_FULL || result == STORE_MEMORY) {
		log_client_event(LOG_LEVEL_ERROR, "commit failed", LOG_STR("text", text),
				 LOG_STR("reason", committer->store->reason));
		committer_sweep_at(committer, clock_after_ms(clock_mono_ns(), RETRY_MS));
	}
	LIST_FOR_EACH_NODE(node, after, &committer->touched)
	fail_journal(committer, LIST_ENTRY(node, struct journal, in_touched), text);
	LIST_FOR_EACH_NODE(node, after, items)
	fail_item(committer, LIST_ENTRY(node, struct item, in_queue), result, text);
	if (result == STORE_DOWN && !atomic_load(&committer->down))
		fail_down(committer, text);
}

/* --- a batch -----------------------------------------------------------------------------------
 */

/* Consumers that nobody has used for too long. */
static void add_expired(struct committer *committer, struct journal *journal, struct list *items)
{
	int64_t expiry_ms;

	mutex_lock(&journal->channel->lock);
	expiry_ms = journal->settings.consumer_expiry_ms;
	for (struct list *node = journal->consumer_list.next;
	     node != &journal->consumer_list && expiry_ms > 0; node = node->next) {
		struct consumer *consumer = LIST_ENTRY(node, struct consumer, in_journal);
		struct item *item;

		if (consumer->attachment_count > 0 || consumer->idle_since_ms == 0 ||
		    committer->now_ms - consumer->idle_since_ms < expiry_ms)
			continue;
		item = calloc(1, sizeof(*item));
		if (item == NULL)
			break;
		item->kind = ITEM_REMOVE;
		item->journal = journal;
		item->reason = "consumer removed: nobody has used it for consumer_expiry";
		item->idle_since_ms = consumer->idle_since_ms;
		item->name_length = consumer->name_length;
		memcpy(item->name, consumer->name, consumer->name_length);
		list_append(items, &item->in_queue);
	}
	mutex_unlock(&journal->channel->lock);
}

/* What retention does without traffic, for every journal. */
static void add_sweep(struct committer *committer, struct list *items, struct list *dirty)
{
	struct channel_set *set =
		atomic_load_explicit(&committer->broker->channels, memory_order_acquire);

	for (size_t i = 0; i < set->count; i++) {
		struct journal *journal = set->channels[i]->journal;

		if (journal == NULL)
			continue;
		if (list_empty(&journal->in_batch))
			list_append(dirty, &journal->in_batch);
		add_expired(committer, journal, items);
	}
}

/* Each journal's next deadline. */
static void arm_sweep(struct committer *committer)
{
	struct channel_set *set =
		atomic_load_explicit(&committer->broker->channels, memory_order_acquire);

	for (size_t i = 0; i < set->count; i++)
		if (set->channels[i]->journal != NULL && set->channels[i]->journal->loaded)
			committer_sweep_at(committer,
					   retention_next_ns(committer, set->channels[i]->journal));
}

static void flush_batch(struct committer *committer)
{
	flush_set_run_some(&committer->set, FLUSH_MAX);
}

/* What the store does between commits, when nobody waits for an answer. */
static void tend_store(struct committer *committer)
{
	struct store *store = committer->store;
	enum store_result result = store->ops->checkpoint(store);
	bool more = false;

	if (result == STORE_OK && committer->reclaim) {
		result = store->ops->reclaim(store, &more);
		committer->reclaim = more;
		if (more)
			committer_sweep_at(committer, clock_after_ms(clock_mono_ns(), RECLAIM_MS));
	}
	if (result == STORE_DOWN)
		fail_down(committer, TEXT_DOWN);
}

void commit_batch(struct committer *committer, struct list *items, struct list *dirty, bool sweep)
{
	struct store *store = committer->store;
	int64_t started_ns = clock_mono_ns();
	enum store_result result = STORE_DOWN;
	struct list *node, *after;
	uint64_t messages = 0;

	committer->now_ms = clock_wall_ms();
	if (sweep)
		add_sweep(committer, items, dirty);
	if (!atomic_load(&committer->down)) {
		result = store->ops->begin(store);
		if (result == STORE_OK)
			result = prepare_batch(committer, items, dirty);
		for (node = committer->touched.next; node != &committer->touched; node = node->next)
			messages += LIST_ENTRY(node, struct journal, in_touched)->work.record_count;
		if (result == STORE_OK)
			result = store->ops->commit(store);
		if (result != STORE_OK)
			store->ops->rollback(store);
	}
	LIST_FOR_EACH_NODE(node, after, dirty)
	list_remove(node);
	if (result == STORE_OK) {
		if (messages > 0) {
			metric_observe(HISTOGRAM_COMMIT_SECONDS, clock_mono_ns() - started_ns, 1);
			metric_observe(HISTOGRAM_COMMIT_MESSAGES, (int64_t)messages, 1);
		}
		apply_batch(committer, items);
	} else {
		fail_batch(committer, items, result);
	}
	flush_batch(committer);
	if (result == STORE_OK)
		arm_sweep(committer);
	LIST_FOR_EACH_NODE(node, after, items)
	{
		struct item *item = LIST_ENTRY(node, struct item, in_queue);

		if (item->ticket != NULL)
			item->ticket->result = item->result;
	}
	committer_release(committer, items);
	if (result == STORE_OK)
		tend_store(committer);
	flush_batch(committer);
	LIST_FOR_EACH_NODE(node, after, items)
	{
		struct item *item = LIST_ENTRY(node, struct item, in_queue);

		list_remove(&item->in_queue);
		item_free(&item);
	}
}

void commit_read(struct committer *committer, struct cursor *cursor)
{
	struct attachment *attachment = cursor->attachment;
	struct consumer *consumer = cursor->consumer;
	struct journal *journal = attachment != NULL ? attachment->journal : consumer->journal;
	struct segment *segment;
	enum store_result result;
	uint64_t next;
	bool live;

	mutex_lock(&journal->channel->lock);
	next = cursor->next;
	live = attachment == NULL || attachment->live;
	mutex_unlock(&journal->channel->lock);
	if (!live || atomic_load(&committer->down))
		return;
	result = commit_segment(committer, journal, next, &segment);
	if (result == STORE_DOWN) {
		fail_down(committer, TEXT_DOWN);
		flush_batch(committer);
		return;
	}
	mutex_lock(&journal->channel->lock);
	live = attachment == NULL || attachment->live;
	if (live && result == STORE_OK) {
		segment_unref(&cursor->segment);
		cursor->segment = segment;
		segment = NULL;
	}
	if (live && (result == STORE_OK || result == STORE_NONE)) {
		cursor->gap_from = next;
		cursor->gap_to =
			result == STORE_OK ? cursor->segment->first - 1 : journal->stored.last;
	}
	if (live && attachment != NULL)
		attachment_pump_locked(attachment, &committer->set);
	else if (live)
		consumer_pump_locked(consumer, &committer->set);
	mutex_unlock(&journal->channel->lock);
	segment_unref(&segment);
	flush_batch(committer);
}
