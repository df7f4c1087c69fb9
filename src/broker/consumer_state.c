/*
 * A consumer's position as it is stored: what it has acknowledged, and how often what it has not
 * was tried. A version, then numbers in LEB128:
 *
 *     floor, from (messages older than this, in ms, count as acknowledged), count, count x (gap
 *     before the range, length of the range),
 *     count, count x (sequence, attempts that have ended, kind [, length, text])
 *
 * kind: 0 it is delivered again; 1 it was rejected, 2 its attempts are used up, and it could not be
 * moved to where dead letters go.
 */
#include "broker/journal.h"

#include <stdlib.h>
#include <string.h>

#define STATE_VERSION 1

enum state_kind { STATE_TRIED, STATE_REJECTED, STATE_USED_UP };

static size_t put_number(uint8_t *bytes, uint64_t value)
{
	size_t length = 0;

	while (value >= 0x80) {
		bytes[length++] = (uint8_t)(value | 0x80);
		value >>= 7;
	}
	bytes[length++] = (uint8_t)value;
	return length;
}

#define NUMBER_MAX 10

static bool get_number(struct span *left, uint64_t *value)
{
	unsigned shift = 0;

	*value = 0;
	for (size_t i = 0; i < left->length && shift < 64; i++, shift += 7) {
		*value |= (uint64_t)(left->data[i] & 0x7f) << shift;
		if ((left->data[i] & 0x80) == 0) {
			left->data += i + 1;
			left->length -= i + 1;
			return true;
		}
	}
	return false;
}

/* Deliveries of it that have ended without settling it. */
static uint64_t entry_ended(const struct entry *entry)
{
	bool open = entry->state == ENTRY_OUTSTANDING || entry->state == ENTRY_ANSWERED ||
		    entry->state == ENTRY_REJECTED;

	return entry->attempts - (open && entry->attempts > 0 ? 1 : 0);
}

static enum state_kind entry_kind(const struct entry *entry)
{
	if (entry->state != ENTRY_STUCK && entry->state != ENTRY_DYING)
		return STATE_TRIED;
	return entry->rejected ? STATE_REJECTED : STATE_USED_UP;
}

/* Reasons of Rejects that are stored, of one consumer; those beyond are dropped. */
#define TEXTS_MAX (1024 * 1024)

/* How much of the entry's reason is stored when *LEFT bytes may be. */
static size_t entry_text_length(const struct entry *entry, size_t *left)
{
	size_t length = entry->text == NULL ? 0 : entry->text->length;

	if (length > *left)
		return 0;
	*left -= length;
	return length;
}

struct buf *consumer_state_encode_locked(const struct consumer *consumer, const struct ranges *done)
{
	size_t size = 1 + 4 * NUMBER_MAX + done->count * 2 * NUMBER_MAX, count = 0, used = 0;
	size_t size_left = TEXTS_MAX, put_left = TEXTS_MAX;
	uint64_t previous = done->floor;
	struct buf *state;

	for (struct list *node = consumer->tried.next; node != &consumer->tried;
	     node = node->next) {
		const struct entry *entry = LIST_ENTRY(node, struct entry, in_tried);

		if (ranges_contain(done, entry->sequence))
			continue;
		size += 4 * NUMBER_MAX + entry_text_length(entry, &size_left);
		count++;
	}
	state = buf_new(size);
	if (state == NULL)
		return NULL;
	state->data[used++] = STATE_VERSION;
	used += put_number(state->data + used, done->floor);
	used += put_number(state->data + used, (uint64_t)consumer->from_ms);
	used += put_number(state->data + used, done->count);
	for (size_t i = 0; i < done->count; i++) {
		used += put_number(state->data + used, done->items[i].from - previous);
		used += put_number(state->data + used, done->items[i].to - done->items[i].from + 1);
		previous = done->items[i].to;
	}
	used += put_number(state->data + used, count);
	for (struct list *node = consumer->tried.next; node != &consumer->tried;
	     node = node->next) {
		const struct entry *entry = LIST_ENTRY(node, struct entry, in_tried);
		enum state_kind kind = entry_kind(entry);
		size_t length;

		if (ranges_contain(done, entry->sequence))
			continue;
		length = entry_text_length(entry, &put_left);
		used += put_number(state->data + used, entry->sequence);
		used += put_number(state->data + used, entry_ended(entry));
		state->data[used++] = (uint8_t)kind;
		if (kind != STATE_REJECTED)
			continue;
		used += put_number(state->data + used, length);
		if (length > 0)
			memcpy(state->data + used, entry->text->data, length);
		used += length;
	}
	ASSERT(used <= size);
	state->length = used;
	return state;
}

static bool decode_ranges(struct ranges *done, struct span *left)
{
	uint64_t count, position, gap, length;

	if (!get_number(left, &count) || count > left->length / 2)
		return false;
	position = done->floor;
	done->items = count == 0 ? NULL : calloc((size_t)count, sizeof(*done->items));
	if (count > 0 && done->items == NULL)
		return false;
	done->capacity = (size_t)count;
	for (uint64_t i = 0; i < count; i++) {
		if (!get_number(left, &gap) || !get_number(left, &length) || gap < 2 ||
		    length == 0 || gap > UINT64_MAX - position ||
		    length > UINT64_MAX - (position + gap))
			return false;
		done->items[i].from = position + gap;
		done->items[i].to = position + gap + length - 1;
		position = done->items[i].to;
		done->count++;
	}
	return true;
}

static bool decode_entry(struct consumer *consumer, struct span *left)
{
	uint64_t sequence, attempts, length = 0;
	struct entry *entry;
	uint8_t kind;

	if (!get_number(left, &sequence) || !get_number(left, &attempts) || left->length == 0)
		return false;
	kind = left->data[0];
	left->data++;
	left->length--;
	if (kind == STATE_REJECTED && (!get_number(left, &length) || length > left->length))
		return false;
	if (kind > STATE_USED_UP || ranges_contain(&consumer->done, sequence))
		return false;
	entry = entry_new_locked(consumer, sequence);
	if (entry == NULL)
		return false;
	entry->attempts = attempts;
	entry_set_tried_locked(entry);
	if (length > 0) {
		entry->text = buf_new((size_t)length);
		if (entry->text != NULL)
			memcpy(entry->text->data, left->data, (size_t)length);
		left->data += length;
		left->length -= (size_t)length;
	}
	if (kind == STATE_TRIED) {
		entry->state = ENTRY_READY;
		list_append(&consumer->ready, &entry->in_state);
		return true;
	}
	entry->state = ENTRY_DYING;
	entry->rejected = kind == STATE_REJECTED;
	list_append(&consumer->journal->answered, &entry->in_state);
	committer_dirty(consumer->journal->channel->broker->committer, consumer->journal);
	return true;
}

/* Behind the ranges: what was tried. */
static bool tried_sound(struct span left, const struct ranges *done, uint64_t last)
{
	uint64_t count, sequence, attempts, length;

	if (!get_number(&left, &count))
		return false;
	for (uint64_t i = 0; i < count; i++) {
		length = 0;
		if (!get_number(&left, &sequence) || !get_number(&left, &attempts) ||
		    left.length == 0 || sequence > last || ranges_contain(done, sequence))
			return false;
		left.length--;
		if (*left.data++ == STATE_REJECTED &&
		    (!get_number(&left, &length) || length > left.length))
			return false;
		left.data += length;
		left.length -= (size_t)length;
	}
	return left.length == 0;
}

bool broker_position_sound(struct span state, uint64_t last)
{
	struct ranges done = {0};
	uint64_t from_ms;
	bool sound;

	if (state.length == 0 || state.data[0] != STATE_VERSION)
		return false;
	state.data++;
	state.length--;
	/* The floor may be beyond the end: a consumer may wait for a sequence that is to come. */
	sound = get_number(&state, &done.floor) && get_number(&state, &from_ms) &&
		decode_ranges(&done, &state) &&
		(done.count == 0 || done.items[done.count - 1].to <= last) &&
		tried_sound(state, &done, last);
	ranges_free(&done);
	return sound;
}

bool consumer_state_decode_locked(struct consumer *consumer, struct span state)
{
	uint64_t count, from_ms;

	if (state.length == 0 || state.data[0] != STATE_VERSION)
		return false;
	state.data++;
	state.length--;
	if (!get_number(&state, &consumer->done.floor) || !get_number(&state, &from_ms) ||
	    from_ms > INT64_MAX || !decode_ranges(&consumer->done, &state) ||
	    !get_number(&state, &count))
		return false;
	consumer->from_ms = (int64_t)from_ms;
	for (uint64_t i = 0; i < count; i++)
		if (!decode_entry(consumer, &state))
			return false;
	return state.length == 0;
}
