/*
 * Preparing what consumers have answered, and moving to the dead letters what they have given up.
 * The move and the acknowledgement are one transaction.
 */
#include "broker/journal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Messages that one batch moves: each may need a row of its own to be read. */
#define MOVES_MAX 256

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
	const struct segment *segment;
	struct stored stored;
	struct buf *envelope = NULL;
	const char *refused;
	enum store_result result;
	size_t index = 0;

	*moved = false;
	result = commit_touch(committer, dead);
	if (result == STORE_OK)
		result = retention_look(committer, journal, entry->sequence);
	segment = journal->oldest;
	if (result == STORE_OK)
		index = segment_find(segment, entry->sequence);
	if (result == STORE_NONE ||
	    (result == STORE_OK &&
	     (index == segment->count || segment_sequence(segment, index) != entry->sequence))) {
		*moved = true; /* it is not kept any more */
		return STORE_OK;
	}
	if (result != STORE_OK)
		return result;
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
	if (result == STORE_OK && entry->state != ENTRY_ANSWERED &&
	    journal->work.dead_letter != NULL)
		result = prepare_move(committer, entry, journal->work.dead_letter, &moved);
	entry->stuck = !moved;
	return result;
}

static int entry_compare(const void *a, const void *b)
{
	const struct entry *left = *(struct entry *const *)a, *right = *(struct entry *const *)b;

	if (left->consumer != right->consumer)
		return left->consumer->number < right->consumer->number ? -1 : 1;
	return left->sequence < right->sequence ? -1 : left->sequence > right->sequence;
}

/*
 * The answers, by consumer and sequence: a client may send thousands in any order, and in this one
 * each row is read once, and a consumer's ranges are changed once.
 */
static enum store_result prepare_entries(struct committer *committer, struct journal *journal)
{
	const struct list *list = &journal->work.entries;
	enum store_result result = STORE_OK;
	struct entry **entries;
	size_t count = 0, end;

	for (struct list *node = list->next; node != list; node = node->next)
		count++;
	if (count == 0)
		return STORE_OK;
	entries = malloc(count * sizeof(struct entry *));
	if (entries == NULL)
		return STORE_MEMORY;
	count = 0;
	for (struct list *node = list->next; node != list; node = node->next)
		entries[count++] = LIST_ENTRY(node, struct entry, in_state);
	qsort(entries, count, sizeof(struct entry *), entry_compare);
	for (size_t i = 0; i < count && result == STORE_OK; i++)
		result = prepare_entry(committer, entries[i]);
	for (size_t i = 0; i < count && result == STORE_OK; i = end) {
		for (end = i + 1; end < count && entries[end]->consumer == entries[i]->consumer;)
			end++;
		result = retention_done(committer, entries[i]->consumer, entries + i, end - i);
	}
	free(entries);
	return result;
}

enum store_result prepare_answers(struct committer *committer, struct journal *journal)
{
	struct journal_work *work = &journal->work;
	enum store_result result = commit_touch(committer, journal);
	struct list *node, *after;
	size_t moves = 0;

	if (result != STORE_OK)
		return result;
	mutex_lock(&journal->channel->lock);
	LIST_FOR_EACH_NODE(node, after, &journal->answered)
	{
		struct entry *entry = LIST_ENTRY(node, struct entry, in_state);

		if (entry->state != ENTRY_ANSWERED && moves++ >= MOVES_MAX) {
			if (entry->owed != NULL)
				entry->owed->held_back = true;
			continue;
		}
		entry->in_batch = true;
		list_remove(&entry->in_state);
		list_append(&work->entries, &entry->in_state);
	}
	LIST_FOR_EACH_NODE(node, after, &journal->owed)
	{
		struct owed *owed = LIST_ENTRY(node, struct owed, in_batch);

		if (owed->held_back) {
			owed->held_back = false;
			continue;
		}
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
	if (moves > MOVES_MAX)
		committer_dirty(committer, journal);
	return result == STORE_OK ? prepare_entries(committer, journal) : result;
}
