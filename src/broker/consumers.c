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

/* Bytes of a Reject's reason that are kept. */
#define REASON_MAX 1024

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
	list_init(&consumer->available);
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
	for (size_t i = 0; i < consumer->entries.bucket_count; i++)
		while (consumer->entries.buckets[i] != NULL)
			entry_free_locked(CONTAINER_OF(consumer->entries.buckets[i], struct entry,
						       by_sequence));
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

/* --- entries ------------------------------------------------------------------------------- */

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

static void entry_set_timer_locked(struct entry *entry, int64_t after_ms)
{
	struct deadlines *timers = &entry->consumer->journal->timers;

	deadlines_remove(timers, &entry->timer);
	deadlines_add(timers, &entry->timer, clock_after_ms(clock_mono_ns(), after_ms));
}

/* The committer is to store what has become of it. */
static void entry_hand_over_locked(struct entry *entry, enum entry_state state)
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
static void entry_give_back_locked(struct entry *entry)
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

static void entry_defer_locked(struct entry *entry)
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

static void attachment_update_locked(struct attachment *attachment)
{
	bool available = attachment->live && !attachment->full && attachment_credit(attachment) > 0;

	if (attachment->consumer == NULL)
		return;
	if (!available)
		list_remove(&attachment->in_available);
	else if (list_empty(&attachment->in_available))
		list_append(&attachment->consumer->available, &attachment->in_available);
}

static void entry_put_on_locked(struct entry *entry, struct attachment *attachment)
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
static void entry_take_off_locked(struct entry *entry)
{
	struct attachment *attachment = entry->attachment;

	deadlines_remove(&entry->consumer->journal->timers, &entry->timer);
	deadlines_remove(&attachment->outstanding, &entry->by_attachment);
	attachment->outstanding_count--;
	atomic_fetch_sub_explicit(&attachment->client->outstanding, 1, memory_order_relaxed);
	entry->consumer->outstanding--;
	attachment_update_locked(attachment);
}

static void entry_answer_locked(struct entry *entry, enum entry_state state)
{
	struct attachment *attachment = entry->attachment;

	attachment->answering++;
	entry_take_off_locked(entry);
	entry_hand_over_locked(entry, state);
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

/* The one with the most free credit, of several the one that was not used for longest. */
static struct attachment *consumer_choose_locked(const struct consumer *consumer, bool *alone)
{
	struct attachment *chosen = NULL;
	uint64_t most = 0;
	size_t count = 0;

	for (struct list *node = consumer->available.next; node != &consumer->available;
	     node = node->next) {
		struct attachment *attachment = LIST_ENTRY(node, struct attachment, in_available);
		uint64_t credit = attachment_credit(attachment);

		count++;
		if (credit > most) {
			most = credit;
			chosen = attachment;
		}
	}
	*alone = count == 1;
	return chosen;
}

/* The next entry that is due again, with its message; NULL: none, or it is being read. */
static struct entry *consumer_take_ready_locked(struct consumer *consumer, struct stored *stored)
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
static struct entry *consumer_take_new_locked(struct consumer *consumer, struct stored *stored)
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
	return entry;
}

static size_t consumer_collect_locked(struct consumer *consumer, size_t limit,
				      struct entry **entries, struct stored *messages)
{
	size_t count = 0;

	while (count < limit) {
		struct entry *entry = consumer_take_ready_locked(consumer, &messages[count]);

		/* What is due again goes before what is new, also while it has to be read. */
		if (entry == NULL && list_empty(&consumer->ready))
			entry = consumer_take_new_locked(consumer, &messages[count]);
		if (entry == NULL)
			break;
		entry->charged = envelope_charge(messages[count].envelope.length);
		messages[count].again = entry->attempts > 0;
		entries[count++] = entry;
	}
	return count;
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
		struct entry *entries[BURST];
		struct stored messages[BURST];
		uint64_t credit = attachment_credit(attachment);
		size_t count, taken;

		count = consumer_collect_locked(
			consumer, alone && credit > 1 ? size_min((size_t)credit, BURST) : 1,
			entries, messages);
		if (count == 0)
			break;
		taken = sink->ops->deliver_stored(sink, attachment->stream,
						  journal->channel->broker->boot_ms, messages,
						  count, set);
		for (size_t i = 0; i < taken; i++) {
			consumer->redeliveries += entries[i]->attempts > 0;
			entries[i]->attempts++;
			entry_put_on_locked(entries[i], attachment);
		}
		for (size_t i = count; i > taken; i--) {
			entries[i - 1]->state = ENTRY_READY;
			list_insert_before(consumer->ready.next, &entries[i - 1]->in_state);
		}
		journal->channel->deliveries += taken;
		metric_add(METRIC_DELIVERIES, taken);
		attachment->full = taken < count;
		list_remove(&attachment->in_available); /* to the end of the turns */
		attachment_update_locked(attachment);
	}
	journal_arm_locked(journal);
}

static void reader_pump_locked(struct attachment *attachment, struct flush_set *set)
{
	struct journal *journal = attachment->journal;
	struct cursor *cursor = &attachment->cursor;
	struct sink *sink = attachment->client->sink;

	while (attachment->live && !attachment->full) {
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

/* --- confirmations ------------------------------------------------------------------------- */

void attachment_confirm_locked(struct attachment *attachment, struct flush_set *set)
{
	while (!list_empty(&attachment->owed)) {
		struct owed *owed = LIST_ENTRY(attachment->owed.next, struct owed, in_attachment);
		struct client *client = attachment->client;

		if (!owed->ready)
			return;
		client->sink->ops->confirm(client->sink, &owed->confirmation, true, set);
		list_remove(&owed->in_attachment);
		list_remove(&owed->in_batch);
		attachment_unref(&owed->attachment);
		free(owed);
		committer_settle(client);
	}
}

/* An answer on its way, as the wire has it. */
struct answer {
	struct attachment *attachment;
	enum answer_kind kind;
	struct span id;
	bool working, confirm;
};

/* A confirmation behind those that are owed; NULL: no memory. */
static struct owed *answer_owe_locked(const struct answer *answer, const char *refused, bool ready)
{
	struct attachment *attachment = answer->attachment;
	struct sink *sink = attachment->client->sink;
	struct owed *owed = calloc(1, sizeof(*owed) + answer->id.length);

	if (owed == NULL)
		return NULL;
	list_init(&owed->in_batch);
	owed->attachment = attachment_ref(attachment);
	owed->ready = ready;
	if (answer->id.length > 0)
		memcpy(owed->id, answer->id.data, answer->id.length);
	owed->confirmation.id = (struct span){owed->id, answer->id.length};
	owed->confirmation.stream = attachment->stream;
	owed->confirmation.kind = answer->kind;
	owed->confirmation.working = answer->working;
	owed->confirmation.refused = refused;
	list_append(&attachment->owed, &owed->in_attachment);
	sink->ops->owe_confirmation(sink, answer->id.length);
	committer_owe(attachment->client);
	return owed;
}

/* The answer's fate is known: REFUSED, or NULL. */
static void answer_settle_locked(const struct answer *answer, const char *refused,
				 struct flush_set *set)
{
	struct attachment *attachment = answer->attachment;
	struct sink *sink = attachment->client->sink;

	if (!answer->confirm)
		return;
	if (!list_empty(&attachment->owed) && answer_owe_locked(answer, refused, true) != NULL)
		return;
	sink->ops->confirm(sink,
			   &(struct confirmation){.stream = attachment->stream,
						  .kind = answer->kind,
						  .working = answer->working,
						  .id = answer->id,
						  .refused = refused},
			   false, set);
}

/* --- answers ------------------------------------------------------------------------------- */

/* The number in decimal, without sign or leading zeros. */
static bool parse_sequence(struct span text, uint64_t *sequence)
{
	uint64_t value = 0;

	*sequence = 0;
	if (text.length == 0 || text.data[0] == '0')
		return false;
	for (size_t i = 0; i < text.length; i++) {
		unsigned digit = (unsigned)text.data[i] - '0';

		if (digit > 9 || value > (UINT64_MAX - digit) / 10)
			return false;
		value = value * 10 + digit;
	}
	*sequence = value;
	return true;
}

#define STALE_NOT_OUTSTANDING "stale: no such delivery is outstanding on this subscription"

static void answer_stale_locked(const struct answer *answer, struct flush_set *set)
{
	answer->attachment->journal->stale_answers++;
	answer_settle_locked(answer, STALE_NOT_OUTSTANDING, set);
}

/* Accept ..N: every outstanding delivery up to N; false: there is none. */
static bool answer_accept_up_to_locked(struct attachment *attachment, uint64_t sequence)
{
	int64_t limit = sequence > INT64_MAX ? INT64_MAX : (int64_t)sequence;
	struct deadline *taken;
	bool any = false;

	while ((taken = deadlines_take_due(&attachment->outstanding, limit)) != NULL) {
		entry_answer_locked(CONTAINER_OF(taken, struct entry, by_attachment),
				    ENTRY_ANSWERED);
		any = true;
	}
	return any;
}

/* What a commit decides is owed a confirmation then. */
static bool answer_await_locked(const struct answer *answer, struct owed **owed,
				struct flush_set *set)
{
	*owed = NULL;
	if (!answer->confirm)
		return true;
	*owed = answer_owe_locked(answer, NULL, false);
	if (*owed == NULL) {
		answer_settle_locked(answer, "over-capacity: the server is out of memory", set);
		return false;
	}
	list_append(&answer->attachment->journal->owed, &(*owed)->in_batch);
	return true;
}

static struct entry *answer_entry_locked(const struct answer *answer, uint64_t sequence)
{
	struct entry *entry = consumer_entry_locked(answer->attachment->consumer, sequence);

	return entry != NULL && entry->state == ENTRY_OUTSTANDING &&
			       entry->attachment == answer->attachment
		       ? entry
		       : NULL;
}

static struct buf *copy_reason(struct span text)
{
	size_t length = utf8_cut(text.data, text.length, REASON_MAX);
	struct buf *copy = length == 0 ? NULL : buf_new(length);

	if (copy != NULL)
		memcpy(copy->data, text.data, length);
	return copy;
}

static void answer_apply_locked(const struct answer *answer, struct span text,
				struct flush_set *set)
{
	struct attachment *attachment = answer->attachment;
	bool up_to = answer->kind == ANSWER_ACCEPT && answer->id.length > 2 &&
		     answer->id.data[0] == '.' && answer->id.data[1] == '.';
	struct span digits = {answer->id.data + (up_to ? 2 : 0),
			      answer->id.length - (up_to ? 2 : 0)};
	struct entry *entry = NULL;
	struct deadline *first;
	struct owed *owed;
	uint64_t sequence;

	if (!attachment->live || attachment->consumer == NULL ||
	    !parse_sequence(digits, &sequence)) {
		answer_stale_locked(answer, set);
		return;
	}
	if (up_to) {
		first = attachment->outstanding.root; /* the lowest one */
		if (first == NULL || (uint64_t)first->when_ns > sequence)
			answer_stale_locked(answer, set);
		else if (answer_await_locked(answer, &owed, set))
			(void)answer_accept_up_to_locked(attachment, sequence);
		return;
	}
	entry = answer_entry_locked(answer, sequence);
	if (entry == NULL) {
		answer_stale_locked(answer, set);
		return;
	}
	switch (answer->kind) {
	case ANSWER_ACCEPT:
		if (answer_await_locked(answer, &owed, set))
			entry_answer_locked(entry, ENTRY_ANSWERED);
		break;
	case ANSWER_DEFER:
		if (answer->working) {
			entry_set_timer_locked(entry, attachment->journal->settings.ack_wait_ms);
		} else {
			entry_take_off_locked(entry);
			entry_defer_locked(entry);
		}
		answer_settle_locked(answer, NULL, set);
		break;
	case ANSWER_REJECT:
		if (!answer_await_locked(answer, &owed, set))
			break;
		entry->rejected = true;
		entry->owed = owed;
		entry->text = copy_reason(text);
		entry_answer_locked(entry, ENTRY_REJECTED);
		break;
	}
}

void broker_answer(struct client *client, uint32_t stream, enum answer_kind kind, struct span id,
		   bool working, bool confirm, struct span text, struct flush_set *set)
{
	struct subscription *subscription = client_durable_subscription(client, stream);
	struct answer answer = {
		.kind = kind,
		.id = id,
		.working = working && kind == ANSWER_DEFER,
		.confirm = confirm,
	};
	struct channel *channel;

	if (subscription == NULL) {
		metric_add(METRIC_FRAMES_SKIPPED, 1);
		if (confirm)
			client->sink->ops->confirm(
				client->sink,
				&(struct confirmation){.stream = stream,
						       .kind = kind,
						       .working = answer.working,
						       .id = id,
						       .refused = "stale: no durable subscription "
								  "is on this stream"},
				false, set);
		return;
	}
	answer.attachment = subscription->attachment;
	channel = answer.attachment->journal->channel;
	mutex_lock(&channel->lock);
	answer_apply_locked(&answer, text, set);
	if (answer.attachment->live)
		attachment_pump_locked(answer.attachment, set);
	mutex_unlock(&channel->lock);
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
		entry_set_tried_locked(entry);
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
	for (size_t i = 0; i < consumer->entries.bucket_count; i++)
		while (consumer->entries.buckets[i] != NULL) {
			struct entry *entry = CONTAINER_OF(consumer->entries.buckets[i],
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
