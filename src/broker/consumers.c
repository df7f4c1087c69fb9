/*
 * Consumers: who gets which message, what becomes of it, and when it comes again.
 *
 * An entry is a message on its way: READY until a subscription can take it, OUTSTANDING on that
 * one, then ANSWERED or REJECTED until the committer has stored it, or DEFERRED until it is due
 * again. Whatever may let a message move on (a commit, an answer, room in an outbox, a timer, a row
 * read, a subscription come or gone) ends in consumer_pump_locked, which gives out all it can.
 */
#include "broker/journal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/metrics.h"

/* Messages that are handed to a sink at a time. Sessions have little stack. */
#define BURST 16

/* --- a consumer's life --------------------------------------------------------------------- */

struct consumer *consumer_new(struct journal *journal, struct span name)
{
	struct consumer *consumer = calloc(1, sizeof(*consumer));

	if (consumer == NULL)
		return NULL;
	ASSERT(name.length < sizeof(consumer->name));
	consumer->journal = journal;
	consumer->name_length = name.length;
	memcpy(consumer->name, name.data, name.length);
	cursor_init(&consumer->cursor, 1);
	cursor_init(&consumer->again, 1);
	consumer->cursor.consumer = consumer->again.consumer = consumer;
	hash_init(&consumer->entries);
	list_init(&consumer->in_journal);
	list_init(&consumer->ready);
	list_init(&consumer->tried);
	list_init(&consumer->attachments);
	list_init(&consumer->in_dirty);
	list_init(&consumer->in_changing);
	return consumer;
}

void consumer_free(struct consumer **pointer)
{
	struct consumer *consumer = *pointer;

	if (consumer == NULL)
		return;
	*pointer = NULL;
	for (size_t i = 0; i < hash_slots(&consumer->entries); i++)
		while (hash_slot(&consumer->entries, i) != NULL)
			entry_free_locked(CONTAINER_OF(hash_slot(&consumer->entries, i),
						       struct entry, by_sequence));
	segment_unref(&consumer->cursor.segment);
	segment_unref(&consumer->again.segment);
	ranges_free(&consumer->done);
	ranges_free(&consumer->next);
	hash_destroy(&consumer->entries);
	free(consumer);
}

struct consumer *consumer_find_locked(const struct journal *journal, struct span name)
{
	uint64_t hash = hash_bytes(name.data, name.length);

	for (struct hash_node *node = hash_first(&journal->consumers, hash); node != NULL;
	     node = hash_next(node)) {
		struct consumer *consumer = CONTAINER_OF(node, struct consumer, by_name);

		if (span_equal(name, (struct span){(const uint8_t *)consumer->name,
						   consumer->name_length}))
			return consumer;
	}
	return NULL;
}

bool consumer_link_locked(struct consumer *consumer)
{
	struct journal *journal = consumer->journal;

	if (!hash_insert(&journal->consumers, &consumer->by_name,
			 hash_bytes(consumer->name, consumer->name_length)))
		return false;
	list_append(&journal->consumer_list, &consumer->in_journal);
	journal->consumer_count++;
	return true;
}

void consumer_dirty_locked(struct consumer *consumer)
{
	struct journal *journal = consumer->journal;

	if (list_empty(&consumer->in_dirty))
		list_append(&journal->dirty, &consumer->in_dirty);
	committer_dirty(journal->channel->broker->committer, journal);
}

/* --- subscriptions of a consumer ----------------------------------------------------------- */

struct attachment *attachment_ref(struct attachment *attachment)
{
	atomic_fetch_add_explicit(&attachment->references, 1, memory_order_relaxed);
	return attachment;
}

void attachment_unref(struct attachment **pointer)
{
	struct attachment *attachment = *pointer;

	*pointer = NULL;
	if (attachment == NULL ||
	    atomic_fetch_sub_explicit(&attachment->references, 1, memory_order_acq_rel) != 1)
		return;
	segment_unref(&attachment->cursor.segment);
	free(attachment);
}

static uint64_t attachment_credit(const struct attachment *attachment)
{
	uint64_t used = attachment->outstanding_count;

	/* Answers that wait for the committer give their credit back at once, but not without
	 * bound. */
	if (attachment->answering > attachment->max_in_flight)
		used += attachment->answering - attachment->max_in_flight;
	return used >= attachment->max_in_flight ? 0 : attachment->max_in_flight - used;
}

/* The most free credit first, and of several the one that was not used for longest. */
static int64_t attachment_rank(const struct attachment *attachment)
{
	uint64_t lacking = MAX_IN_FLIGHT - attachment_credit(attachment);

	return (int64_t)(lacking << 45 | (attachment->turn & (((uint64_t)1 << 45) - 1)));
}

void attachment_update_locked(struct attachment *attachment)
{
	struct consumer *consumer = attachment->consumer;

	if (consumer == NULL)
		return;
	deadlines_remove(&consumer->available, &attachment->by_credit);
	if (attachment->live && !attachment->full && attachment_credit(attachment) > 0)
		deadlines_add(&consumer->available, &attachment->by_credit,
			      attachment_rank(attachment));
}

/* What is outstanding on it is for others. */
static void attachment_lose_locked(struct attachment *attachment)
{
	struct deadline *taken;

	while ((taken = deadlines_take_due(&attachment->outstanding, INT64_MAX)) != NULL) {
		struct entry *entry = CONTAINER_OF(taken, struct entry, by_attachment);

		entry_take_off_locked(entry);
		entry_give_back_locked(entry);
	}
}

void attachment_begin_locked(struct attachment *attachment, struct consumer *consumer,
			     uint64_t next)
{
	struct journal *journal = attachment->journal;
	struct committer *committer = journal->channel->broker->committer;

	attachment->live = true;
	attachment->consumer = consumer;
	cursor_init(&attachment->cursor, next);
	attachment->cursor.attachment = attachment;
	if (consumer == NULL) {
		list_append(&journal->readers, &attachment->in_owner);
	} else {
		list_append(&consumer->attachments, &attachment->in_owner);
		if (consumer->attachment_count++ == 0) {
			journal->live_consumers++;
			consumer->idle_since_ms = 0;
		}
		attachment_update_locked(attachment);
	}
	mutex_lock(&committer->lock);
	list_append(&attachment->client->attachments, &attachment->in_client);
	mutex_unlock(&committer->lock);
}

void attachment_end_locked(struct attachment *attachment, struct flush_set *set)
{
	struct journal *journal = attachment->journal;
	struct committer *committer = journal->channel->broker->committer;
	struct consumer *consumer = attachment->consumer;

	attachment->ended = true;
	if (!attachment->live)
		return;
	attachment->live = false;
	list_remove(&attachment->in_owner);
	attachment_update_locked(attachment);
	cursor_close_locked(journal, &attachment->cursor);
	mutex_lock(&committer->lock);
	list_remove(&attachment->in_client);
	mutex_unlock(&committer->lock);
	if (consumer == NULL)
		return;
	attachment_lose_locked(attachment);
	if (--consumer->attachment_count == 0) {
		journal->live_consumers--;
		consumer->idle_since_ms = clock_wall_ms();
		consumer_dirty_locked(consumer);
	}
	consumer_pump_locked(consumer, set);
}

/* --- giving out ---------------------------------------------------------------------------- */

/* Whose turn it is; ALONE: there is no other. */
static struct attachment *consumer_choose_locked(const struct consumer *consumer, bool *alone)
{
	struct deadline *first = consumer->available.root;

	*alone = first != NULL && first->child == NULL;
	return first == NULL ? NULL : CONTAINER_OF(first, struct attachment, by_credit);
}

/* The next entry that is due again, with its message; NULL: none, or it is being read. */
static struct entry *consumer_take_ready_locked(struct consumer *consumer, struct segment **from,
						struct stored *stored)
{
	struct journal *journal = consumer->journal;

	while (!list_empty(&consumer->ready)) {
		struct entry *entry = LIST_ENTRY(consumer->ready.next, struct entry, in_state);
		struct segment *segment;
		size_t index;

		consumer->again.next = entry->sequence;
		switch (cursor_find_locked(journal, &consumer->again, &segment, &index)) {
		case CURSOR_READING:
			return NULL;
		case CURSOR_FOUND:
			if (segment_sequence(segment, index) == entry->sequence) {
				list_remove(&entry->in_state);
				segment_get(segment, index, stored);
				*from = segment;
				return entry;
			}
			break;
		case CURSOR_END:
			break;
		}
		/* It is not kept any more: nobody can do anything with it. */
		list_remove(&entry->in_state);
		entry_hand_over_locked(entry, ENTRY_ANSWERED);
	}
	segment_unref(&consumer->again.segment);
	return NULL;
}

/* A message that nobody has had yet. */
static struct entry *consumer_take_new_locked(struct consumer *consumer, struct segment **from,
					      struct stored *stored)
{
	struct journal *journal = consumer->journal;
	struct cursor *cursor = &consumer->cursor;
	struct segment *segment;
	struct entry *entry;
	size_t index;

	if (journal->settings.ordered && consumer->entries.count > 0)
		return NULL;
	if (consumer->deferred >= journal->settings.max_deferred)
		return NULL;
	/* Each is a gap in what is stored as acknowledged, at worst. */
	if (consumer->entries.count - consumer->deferred >= MAX_IN_FLIGHT)
		return NULL;
	for (;;) {
		uint64_t next = ranges_next_missing(&consumer->done, cursor->next);

		while (consumer_entry_locked(consumer, next) != NULL)
			next = ranges_next_missing(&consumer->done, next + 1);
		cursor->next = next;
		if (cursor_find_locked(journal, cursor, &segment, &index) != CURSOR_FOUND)
			return NULL;
		if (segment_sequence(segment, index) == next)
			break;
		cursor->next = segment_sequence(segment, index); /* what is between is not kept */
	}
	entry = entry_new_locked(consumer, cursor->next);
	if (entry == NULL)
		return NULL; /* the next event tries again */
	cursor->next++;
	segment_get(segment, index, stored);
	*from = segment;
	return entry;
}

/* Messages on their way to a sink, and the segments that they are in. */
struct burst {
	size_t count, segment_count;
	struct entry *entries[BURST];
	struct stored messages[BURST];
	struct segment *segments[BURST];
};

static void consumer_collect_locked(struct consumer *consumer, size_t limit, struct burst *burst)
{
	burst->count = burst->segment_count = 0;
	while (burst->count < limit) {
		struct stored *message = &burst->messages[burst->count];
		struct segment *segment = NULL;
		struct entry *entry = consumer_take_ready_locked(consumer, &segment, message);

		/* What is due again goes before what is new, also while it has to be read. */
		if (entry == NULL && list_empty(&consumer->ready))
			entry = consumer_take_new_locked(consumer, &segment, message);
		if (entry == NULL)
			break;
		/* The cursors may go on to another segment before this one is delivered. */
		if (burst->segment_count == 0 ||
		    burst->segments[burst->segment_count - 1] != segment)
			burst->segments[burst->segment_count++] = segment_ref(segment);
		entry->charged = envelope_charge(message->envelope.length);
		message->again = entry->attempts > 0;
		burst->entries[burst->count++] = entry;
	}
}

/* What of it a sink has taken is outstanding now; the rest goes back to where it came from. */
static void consumer_settle_burst_locked(struct consumer *consumer, struct attachment *attachment,
					 struct burst *burst, size_t taken)
{
	struct list *front = consumer->ready.next;

	for (size_t i = 0; i < taken; i++) {
		consumer->redeliveries += burst->entries[i]->attempts > 0;
		burst->entries[i]->attempts++;
		entry_put_on_locked(burst->entries[i], attachment);
	}
	for (size_t i = taken; i < burst->count; i++) {
		burst->entries[i]->state = ENTRY_READY;
		list_insert_before(front, &burst->entries[i]->in_state);
	}
	while (burst->segment_count > 0)
		segment_unref(&burst->segments[--burst->segment_count]);
}

/* It has half-closed, and its last answer is in the outbox. */
static bool client_takes_nothing(const struct client *client)
{
	return atomic_load_explicit(&client->takes_nothing, memory_order_relaxed);
}

void consumer_pump_locked(struct consumer *consumer, struct flush_set *set)
{
	struct journal *journal = consumer->journal;
	struct attachment *attachment;
	bool alone;

	mutex_assert_held(&journal->channel->lock);
	if (atomic_load_explicit(&journal->channel->broker->committer->down, memory_order_relaxed))
		return;
	while ((attachment = consumer_choose_locked(consumer, &alone)) != NULL) {
		struct sink *sink = attachment->client->sink;
		uint64_t credit = attachment_credit(attachment);
		struct burst burst;
		size_t taken;

		if (client_takes_nothing(attachment->client)) {
			attachment->full = true;
			attachment_update_locked(attachment);
			continue;
		}
		consumer_collect_locked(consumer,
					alone && credit > 1 ? size_min((size_t)credit, BURST) : 1,
					&burst);
		if (burst.count == 0)
			break;
		taken = sink->ops->deliver_stored(sink, attachment->stream,
						  journal->channel->broker->boot_ms, burst.messages,
						  burst.count, set);
		attachment->full = taken < burst.count;
		consumer_settle_burst_locked(consumer, attachment, &burst, taken);
		journal->channel->deliveries += taken;
		metric_add(METRIC_DELIVERIES, taken);
		attachment->turn = ++consumer->turns;
		attachment_update_locked(attachment);
	}
	journal_arm_locked(journal);
}

static void reader_pump_locked(struct attachment *attachment, struct flush_set *set)
{
	struct journal *journal = attachment->journal;
	struct cursor *cursor = &attachment->cursor;
	struct sink *sink = attachment->client->sink;

	while (attachment->live && !attachment->full && !client_takes_nothing(attachment->client)) {
		struct stored messages[BURST];
		struct segment *segment;
		size_t index, count = 0, taken;

		if (cursor_find_locked(journal, cursor, &segment, &index) != CURSOR_FOUND)
			return;
		if (segment->time_ms < attachment->from_ms) {
			cursor->next = segment->last + 1;
			continue;
		}
		while (count < BURST && index < segment->count &&
		       segment_sequence(segment, index) <= journal->last)
			segment_get(segment, index++, &messages[count++]);
		taken = sink->ops->deliver_stored(sink, attachment->stream,
						  journal->channel->broker->boot_ms, messages,
						  count, set);
		if (taken > 0)
			cursor->next = messages[taken - 1].sequence + 1;
		attachment->full = taken < count;
		journal->channel->deliveries += taken;
		metric_add(METRIC_DELIVERIES, taken);
	}
}

void attachment_pump_locked(struct attachment *attachment, struct flush_set *set)
{
	if (attachment->consumer != NULL)
		consumer_pump_locked(attachment->consumer, set);
	else
		reader_pump_locked(attachment, set);
}

void journal_pump_locked(struct journal *journal, struct flush_set *set)
{
	struct list *node, *after;

	LIST_FOR_EACH_NODE(node, after, &journal->consumer_list)
	consumer_pump_locked(LIST_ENTRY(node, struct consumer, in_journal), set);
	LIST_FOR_EACH_NODE(node, after, &journal->readers)
	reader_pump_locked(LIST_ENTRY(node, struct attachment, in_owner), set);
}

void broker_client_room(struct client *client, struct flush_set *set)
{
	struct committer *committer = client->broker->committer;
	bool dead = atomic_load_explicit(&client->sink->dead, memory_order_relaxed);
	size_t left = 0;

	if (committer == NULL)
		return;
	mutex_lock(&committer->lock);
	for (struct list *node = client->attachments.next; node != &client->attachments;
	     node = node->next)
		left++;
	mutex_unlock(&committer->lock);
	while (left-- > 0) {
		struct attachment *attachment = NULL;

		mutex_lock(&committer->lock);
		if (!list_empty(&client->attachments)) {
			attachment = attachment_ref(
				LIST_ENTRY(client->attachments.next, struct attachment, in_client));
			list_remove(&attachment->in_client);
			list_append(&client->attachments, &attachment->in_client);
		}
		mutex_unlock(&committer->lock);
		if (attachment == NULL)
			return;
		mutex_lock(&attachment->journal->channel->lock);
		if (attachment->live && dead) {
			attachment->full = true;
			attachment_update_locked(attachment);
			attachment_lose_locked(attachment);
			attachment_pump_locked(attachment, set);
		} else if (attachment->live && attachment->full) {
			attachment->full = false;
			attachment_update_locked(attachment);
			attachment_pump_locked(attachment, set);
		}
		mutex_unlock(&attachment->journal->channel->lock);
		attachment_unref(&attachment);
	}
}

/* --- the end of a consumer ------------------------------------------------------------------- */

/* Answers that came too late for the last commit of the consumer. */
static void consumer_settle_owed_locked(struct consumer *consumer, struct flush_set *set)
{
	struct list *owed_list = &consumer->journal->owed;
	struct list *node = owed_list->next;

	while (node != owed_list) {
		struct owed *owed = LIST_ENTRY(node, struct owed, in_batch);
		struct attachment *attachment;

		node = node->next;
		if (owed->attachment->consumer != consumer)
			continue;
		list_remove(&owed->in_batch);
		owed->confirmation.refused = "stale: the consumer was removed";
		owed->ready = true;
		attachment = attachment_ref(owed->attachment);
		attachment_confirm_locked(attachment, set); /* frees ready ones */
		attachment_unref(&attachment);
		node = owed_list->next;
	}
}

void consumer_end_locked(struct consumer *consumer, const char *text, struct flush_set *set)
{
	struct journal *journal = consumer->journal;
	struct committer *committer = journal->channel->broker->committer;
	struct list *node, *after;

	consumer_settle_owed_locked(consumer, set);
	for (size_t i = 0; i < hash_slots(&consumer->entries); i++)
		while (hash_slot(&consumer->entries, i) != NULL) {
			struct entry *entry = CONTAINER_OF(hash_slot(&consumer->entries, i),
							   struct entry, by_sequence);

			if (entry->state == ENTRY_OUTSTANDING)
				entry_take_off_locked(entry);
			entry_free_locked(entry);
		}
	LIST_FOR_EACH_NODE(node, after, &consumer->attachments)
	{
		struct attachment *attachment = LIST_ENTRY(node, struct attachment, in_owner);
		struct client *client = attachment->client;

		client->sink->ops->unsubscribed(client->sink, attachment->stream, text, set);
		atomic_fetch_sub(&client->live_subscriptions, 1);
		attachment->live = false;
		attachment->ended = true;
		list_remove(&attachment->in_owner);
		attachment_update_locked(attachment);
		mutex_lock(&committer->lock);
		list_remove(&attachment->in_client);
		mutex_unlock(&committer->lock);
		attachment->consumer = NULL;
	}
	if (consumer->attachment_count > 0)
		journal->live_consumers--;
	consumer->attachment_count = 0;
	list_remove(&consumer->in_dirty);
	cursor_close_locked(journal, &consumer->cursor);
	cursor_close_locked(journal, &consumer->again);
	hash_remove(&journal->consumers, &consumer->by_name);
	list_remove(&consumer->in_journal);
	journal->consumer_count--;
}
