/*
 * Entries: a message on its way to a consumer, and what becomes of it: deliveries that end, timers,
 * commits that succeed or fail, retention. All under the channel's lock.
 */
#include "broker/journal.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

struct entry *consumer_entry_locked(struct consumer *consumer, uint64_t sequence)
{
	for (struct hash_node *node = hash_first(&consumer->entries, hash_u64(sequence));
	     node != NULL; node = hash_next(node)) {
		struct entry *entry = CONTAINER_OF(node, struct entry, by_sequence);

		if (entry->sequence == sequence)
			return entry;
	}
	return NULL;
}

struct entry *entry_new_locked(struct consumer *consumer, uint64_t sequence)
{
	struct entry *entry = calloc(1, sizeof(*entry));

	if (entry == NULL)
		return NULL;
	entry->consumer = consumer;
	entry->sequence = sequence;
	deadline_init(&entry->by_attachment);
	deadline_init(&entry->timer);
	list_init(&entry->in_state);
	list_init(&entry->in_tried);
	if (!hash_insert(&consumer->entries, &entry->by_sequence, hash_u64(sequence))) {
		free(entry);
		return NULL;
	}
	return entry;
}

void entry_free_locked(struct entry *entry)
{
	struct consumer *consumer = entry->consumer;

	hash_remove(&consumer->entries, &entry->by_sequence);
	deadlines_remove(&consumer->journal->timers, &entry->timer);
	if (entry->attachment != NULL)
		deadlines_remove(&entry->attachment->outstanding, &entry->by_attachment);
	list_remove(&entry->in_state);
	list_remove(&entry->in_tried);
	attachment_unref(&entry->attachment);
	buf_unref(&entry->text);
	free(entry);
}

void entry_set_tried_locked(struct entry *entry)
{
	if (list_empty(&entry->in_tried))
		list_append(&entry->consumer->tried, &entry->in_tried);
}

void entry_set_timer_locked(struct entry *entry, int64_t after_ms)
{
	struct deadlines *timers = &entry->consumer->journal->timers;

	deadlines_remove(timers, &entry->timer);
	deadlines_add(timers, &entry->timer, clock_after_ms(clock_mono_ns(), after_ms));
}

/* The committer is to store what has become of it. */
void entry_hand_over_locked(struct entry *entry, enum entry_state state)
{
	struct journal *journal = entry->consumer->journal;

	entry->state = state;
	list_append(&journal->answered, &entry->in_state);
	committer_dirty(journal->channel->broker->committer, journal);
}

static bool entry_is_used_up(const struct entry *entry)
{
	uint64_t max = entry->consumer->journal->settings.max_attempts;

	return max > 0 && entry->attempts >= max;
}

/* A delivery has ended without an answer that settles it. */
void entry_give_back_locked(struct entry *entry)
{
	attachment_unref(&entry->attachment);
	entry_set_tried_locked(entry);
	consumer_dirty_locked(entry->consumer);
	if (entry_is_used_up(entry)) {
		entry_hand_over_locked(entry, ENTRY_DYING);
		return;
	}
	entry->state = ENTRY_READY;
	list_append(&entry->consumer->ready, &entry->in_state);
}

void entry_defer_locked(struct entry *entry)
{
	const struct broker_durable_settings *settings = &entry->consumer->journal->settings;
	int64_t delay_ms = settings->redelivery_delay_ms;

	attachment_unref(&entry->attachment);
	entry_set_tried_locked(entry);
	consumer_dirty_locked(entry->consumer);
	if (entry_is_used_up(entry)) {
		entry_hand_over_locked(entry, ENTRY_DYING);
		return;
	}
	for (uint64_t i = 1; i < entry->attempts && delay_ms < settings->redelivery_delay_max_ms;
	     i++)
		delay_ms *= 2;
	if (delay_ms > settings->redelivery_delay_max_ms)
		delay_ms = settings->redelivery_delay_max_ms;
	entry->state = ENTRY_DEFERRED;
	entry->consumer->deferred++;
	entry_set_timer_locked(entry, delay_ms);
}

/* --- on a subscription --- */

void entry_put_on_locked(struct entry *entry, struct attachment *attachment)
{
	struct consumer *consumer = entry->consumer;

	if (entry->attachment != attachment) {
		attachment_unref(&entry->attachment);
		entry->attachment = attachment_ref(attachment);
	}
	entry->state = ENTRY_OUTSTANDING;
	deadlines_add(&attachment->outstanding, &entry->by_attachment, (int64_t)entry->sequence);
	attachment->outstanding_count++;
	atomic_fetch_add_explicit(&attachment->client->outstanding, 1, memory_order_relaxed);
	consumer->outstanding++;
	entry_set_timer_locked(entry, consumer->journal->settings.ack_wait_ms);
}

/* The delivery is not outstanding any more; the caller says what the entry is now. */
void entry_take_off_locked(struct entry *entry)
{
	struct attachment *attachment = entry->attachment;

	deadlines_remove(&entry->consumer->journal->timers, &entry->timer);
	deadlines_remove(&attachment->outstanding, &entry->by_attachment);
	attachment->outstanding_count--;
	atomic_fetch_sub_explicit(&attachment->client->outstanding, 1, memory_order_relaxed);
	entry->consumer->outstanding--;
	attachment_update_locked(attachment);
}

void entry_answer_locked(struct entry *entry, enum entry_state state)
{
	struct attachment *attachment = entry->attachment;

	attachment->answering++;
	entry_take_off_locked(entry);
	entry_hand_over_locked(entry, state);
}

/* --- what a commit, a timer, retention makes of entries --------------------------------------- */

/* It was answered on an attachment, which waits for that no more. */
static void entry_end_answering_locked(struct entry *entry)
{
	if (entry->attachment == NULL)
		return;
	entry->attachment->answering--;
	attachment_update_locked(entry->attachment);
}

void entry_committed_locked(struct entry *entry)
{
	entry_end_answering_locked(entry);
	entry_free_locked(entry);
}

void entry_refused_locked(struct entry *entry, const char *text, bool stuck)
{
	enum entry_state was = entry->state;

	entry_end_answering_locked(entry);
	entry->in_batch = false;
	list_remove(&entry->in_state);
	if (entry->owed != NULL) {
		entry->owed->confirmation.refused = text;
		entry->owed = NULL;
	}
	if (stuck || was == ENTRY_DYING) {
		attachment_unref(&entry->attachment);
		entry_set_tried_locked(entry);
		consumer_dirty_locked(entry->consumer);
		entry->state = ENTRY_STUCK;
		entry->consumer->deferred++;
		entry_set_timer_locked(entry,
				       entry->consumer->journal->settings.redelivery_delay_max_ms);
		return;
	}
	entry->rejected = false;
	buf_unref(&entry->text);
	if (entry->attachment != NULL && entry->attachment->live) {
		entry_put_on_locked(entry, entry->attachment);
		attachment_update_locked(entry->attachment);
	} else {
		entry_give_back_locked(entry);
	}
}

static void entry_due_locked(struct entry *entry)
{
	struct consumer *consumer = entry->consumer;

	switch (entry->state) {
	case ENTRY_OUTSTANDING:
		entry_take_off_locked(entry);
		entry_give_back_locked(entry);
		break;
	case ENTRY_DEFERRED:
		consumer->deferred--;
		entry->state = ENTRY_READY;
		list_append(&consumer->ready, &entry->in_state);
		break;
	case ENTRY_STUCK:
		consumer->deferred--;
		entry_hand_over_locked(entry, ENTRY_DYING);
		break;
	case ENTRY_READY:
	case ENTRY_ANSWERED:
	case ENTRY_REJECTED:
	case ENTRY_DYING:
		ASSERT(!"an entry in this state has no timer");
	}
}

void entry_discard_locked(struct entry *entry)
{
	struct consumer *consumer = entry->consumer;

	switch (entry->state) {
	case ENTRY_OUTSTANDING:
		entry_take_off_locked(entry);
		break;
	case ENTRY_DEFERRED:
	case ENTRY_STUCK:
		consumer->deferred--;
		break;
	case ENTRY_READY:
	case ENTRY_DYING:
		break;
	case ENTRY_ANSWERED:
	case ENTRY_REJECTED:
		return; /* its own commit ends it */
	}
	if (!entry->in_batch)
		entry_free_locked(entry);
}

/* How many timers go before the lock is released for others. */
#define TIMER_BATCH 64

void journal_run_timers(struct journal *journal)
{
	struct flush_set set;
	bool more = true;

	flush_set_init(&set);
	while (more) {
		int64_t now_ns = clock_mono_ns();
		struct consumer *last = NULL;
		struct deadline *due = NULL;

		mutex_lock(&journal->channel->lock);
		journal->armed_ns = DEADLINE_NEVER;
		for (size_t i = 0; i < TIMER_BATCH; i++) {
			struct entry *entry;

			due = deadlines_take_due(&journal->timers, now_ns);
			if (due == NULL)
				break;
			entry = CONTAINER_OF(due, struct entry, timer);
			if (last != NULL && last != entry->consumer)
				consumer_pump_locked(last, &set);
			last = entry->consumer;
			entry_due_locked(entry);
		}
		if (last != NULL)
			consumer_pump_locked(last, &set);
		more = due != NULL;
		journal_arm_locked(journal);
		mutex_unlock(&journal->channel->lock);
		flush_set_run(&set);
	}
}

void journal_arm_locked(struct journal *journal)
{
	struct broker *broker = journal->channel->broker;
	int64_t next_ns = deadlines_next_ns(&journal->timers);

	if (next_ns >= journal->armed_ns)
		return;
	journal->armed_ns = next_ns;
	mutex_lock(&broker->lock);
	deadlines_remove(&broker->journal_alarms, &journal->alarm);
	deadlines_add(&broker->journal_alarms, &journal->alarm, next_ns);
	deadline_thread_poke_locked(broker);
	mutex_unlock(&broker->lock);
}
