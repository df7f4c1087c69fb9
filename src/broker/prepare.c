/*
 * Preparing a batch, within its transaction: publishes, subscriptions, what is asked about dead
 * letters, and at its end the rows and the consumers' states that come of it. Nothing that others
 * see is changed: a journal's `work` and a consumer's `next` are what they will be.
 */
#include "broker/journal.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/metrics.h"

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
	work->time_ms = committer->now_ms > journal->stored.time_ms ? committer->now_ms
								    : journal->stored.time_ms;
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
enum store_result commit_record(struct journal *journal, struct span envelope, uint64_t id,
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
	if (retention_holds(journal, work->channel.last)) {
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
		if (item->from_ms != 0) /* this batch's messages may be older than that */
			result = commit_change(item->added);
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
		if (consumer != NULL && !consumer->removing) {
			consumer->joining = true;
			return commit_change(consumer);
		}
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
	used = item->idle_since_ms != 0 && (consumer->joining || consumer->attachment_count > 0 ||
					    consumer->idle_since_ms != item->idle_since_ms);
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
	struct journal_work *work = &journal->work;
	struct list *node;

	for (node = journal->consumer_list.next; node != &journal->consumer_list;
	     node = node->next) {
		struct consumer *consumer = LIST_ENTRY(node, struct consumer, in_journal);
		enum store_result result;

		if (consumer->from_ms == 0)
			continue;
		result = commit_change(consumer);
		if (result != STORE_OK)
			return result;
	}
	for (node = work->changing.next; node != &work->changing; node = node->next) {
		struct consumer *consumer = LIST_ENTRY(node, struct consumer, in_changing);

		if (work->channel.time_ms < consumer->from_ms)
			ranges_raise(&consumer->next, work->channel.last);
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
		/* Who subscribes with this batch is there when it has been committed. */
		idle_since_ms = consumer->attachment_count > 0 || consumer->joining
					? 0
					: consumer->idle_since_ms;
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

	if (work->record_count > 0)
		work->channel.time_ms = work->time_ms;
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

enum store_result prepare_batch(struct committer *committer, struct list *items, struct list *dirty)
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
