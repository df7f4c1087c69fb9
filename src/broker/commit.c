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
	segment_unref(&journal->oldest);
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
	consumer->changing = consumer->joining = false;
	consumer->discarded += consumer->discarding;
	list_remove(&consumer->in_changing);
	if (consumer->from_ms != 0 && consumer->journal->work.channel.time_ms >= consumer->from_ms)
		consumer->from_ms = 0;
	if (consumer->discarding == 0)
		return;
	for (size_t i = 0; i < hash_slots(&consumer->entries); i++) {
		struct hash_node *node = hash_slot(&consumer->entries, i);

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

/* Dead letters are messages of their channel like others, and come before what this batch publishes
 * there. */
static void deliver_dead_locked(struct committer *committer, struct journal *journal)
{
	struct journal_work *work = &journal->work;

	for (size_t i = 0; i < work->record_count; i++) {
		const struct record *record = &work->records[i];
		struct message message = {.envelope = record->envelope, .id = record->id};

		if (record->owned == NULL)
			continue;
		message.sequence = journal->stored.last - work->record_count + 1 + i;
		channel_deliver_locked(journal->channel, NULL, &message, 1, &committer->set);
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
	deliver_dead_locked(committer, journal);
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
	channel_deliver_locked(journal->channel, client, item->run, item->count, &committer->set);
	if (!channel_deliver_own_locked(journal->channel, client, item->run, item->count,
					item->place, &committer->set))
		sink->ops->fill_publishes(sink, item->place, item->run, item->count,
					  &committer->set);
	/* Its last answer is followed by the same message, then by none. */
	if (atomic_load(&client->ends_after_answers))
		journal_pump_locked(journal, &committer->set);
	mutex_unlock(&journal->channel->lock);
	metric_add(METRIC_PUBLISHES, accepted);
	committer_settle(client, item->bytes);
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
	if (consumer != NULL && consumer->attachment_count == 0) {
		/* Its subscriber has gone meanwhile: nobody uses it from now on. */
		consumer->idle_since_ms = clock_wall_ms();
		consumer_dirty_locked(consumer);
	}
	attachment->client->sink->ops->fill_subscribe(
		attachment->client->sink, item->place, attachment->stream, attachment->subscription,
		journal->channel->schema_id, item->refused, &committer->set);
	if (item->refused != NULL && !attachment->ended) {
		attachment->ended = true;
		atomic_fetch_sub(&attachment->client->live_subscriptions, 1);
	}
	mutex_unlock(&journal->channel->lock);
	consumer_free(&item->added);
	committer_settle(item->client, item->bytes);
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

static void apply_end(struct committer *committer, struct journal *journal)
{
	mutex_lock(&journal->channel->lock);
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
		committer_sweep_at(committer, retention_next_ns(committer, journal));
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
		committer_settle(item->client, item->bytes);
		break;
	case ITEM_SUBSCRIBE:
		item->refused = text;
		metric_add(result == STORE_DOWN	  ? METRIC_SUBSCRIBES_REFUSED_DOWN
			   : result == STORE_FULL ? METRIC_SUBSCRIBES_REFUSED_FULL
						  : METRIC_SUBSCRIBES_REFUSED_MEMORY,
			   1);
		mutex_lock(&item->journal->channel->lock);
		if (item->added != NULL)
			list_remove(&item->added->in_dirty);
		sink->ops->fill_subscribe(sink, item->place, item->attachment->stream, 0,
					  item->journal->channel->schema_id, text, &committer->set);
		if (!item->attachment->ended) {
			item->attachment->ended = true;
			atomic_fetch_sub(&item->client->live_subscriptions, 1);
		}
		mutex_unlock(&item->journal->channel->lock);
		consumer_free(&item->added);
		committer_settle(item->client, item->bytes);
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

		consumer->changing = consumer->joining = false;
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
	journal->clear_from = 0;
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
		if (!committer->failing)
			log_event(LOG_LEVEL_ERROR, "commits fail", LOG_STR("text", text),
				  LOG_STR("reason", committer->store->reason));
		committer->failing = true;
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

static void flush_batch(struct committer *committer)
{
	flush_set_run_some(&committer->set, FLUSH_MAX);
}

/* Ids are given out without asking the store; it reserves more in good time. */
static enum store_result reserve_ids(struct committer *committer)
{
	struct store *store = committer->store;
	struct broker *broker = committer->broker;
	uint64_t end = atomic_load(&broker->next_message) + STORE_IDS_RESERVED;
	enum store_result result;

	if (atomic_load(&broker->next_message) < atomic_load(&broker->ids_low))
		return STORE_OK;
	result = store->ops->ids_put(store, end);
	if (result == STORE_OK)
		atomic_store(&broker->ids_low, end - STORE_IDS_RESERVED / 2);
	return result == STORE_DOWN ? STORE_DOWN : STORE_OK;
}

/* What the store does between commits, when nobody waits for an answer. */
static void tend_store(struct committer *committer)
{
	struct store *store = committer->store;
	enum store_result result = store->ops->checkpoint(store);
	bool more = false;

	if (result == STORE_OK)
		result = reserve_ids(committer);
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
		if (committer->failing && messages > 0) {
			log_event(LOG_LEVEL_NOTICE, "commits succeed again");
			committer->failing = false;
		}
		if (messages > 0) {
			metric_observe(HISTOGRAM_COMMIT_SECONDS, clock_mono_ns() - started_ns, 1);
			metric_observe(HISTOGRAM_COMMIT_MESSAGES, (int64_t)messages, 1);
		}
		apply_batch(committer, items);
	} else {
		fail_batch(committer, items, result);
	}
	flush_batch(committer);
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
	if (result == STORE_MEMORY) { /* the next batch pumps it again */
		committer_sweep_at(committer, clock_after_ms(clock_mono_ns(), RETRY_MS));
		return;
	}
	mutex_lock(&journal->channel->lock);
	live = attachment == NULL || attachment->live;
	if (live && result == STORE_OK) {
		segment_unref(&cursor->segment);
		cursor->segment = segment;
		segment = NULL;
	}
	if (live) {
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
