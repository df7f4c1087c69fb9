#include "broker/ranges.h"

#include <stdlib.h>
#include <string.h>

void ranges_free(struct ranges *ranges)
{
	free(ranges->items);
	*ranges = (struct ranges){.floor = ranges->floor};
}

/* The first range that ends at SEQUENCE or later; count when there is none. */
static size_t ranges_position(const struct ranges *ranges, uint64_t sequence)
{
	size_t low = 0, high = ranges->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (ranges->items[middle].to < sequence)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool ranges_contain(const struct ranges *ranges, uint64_t sequence)
{
	size_t position;

	if (sequence <= ranges->floor)
		return true;
	position = ranges_position(ranges, sequence);
	return position < ranges->count && ranges->items[position].from <= sequence;
}

uint64_t ranges_next_missing(const struct ranges *ranges, uint64_t sequence)
{
	size_t position;

	if (sequence <= ranges->floor)
		sequence = ranges->floor + 1;
	position = ranges_position(ranges, sequence);
	if (position < ranges->count && ranges->items[position].from <= sequence)
		return ranges->items[position].to + 1;
	return sequence;
}

static bool ranges_reserve(struct ranges *ranges, size_t count)
{
	size_t capacity = ranges->capacity == 0 ? 8 : ranges->capacity;
	struct range *items;

	if (count <= ranges->capacity)
		return true;
	while (capacity < count)
		capacity *= 2;
	items = realloc(ranges->items, capacity * sizeof(*items));
	if (items == NULL)
		return false;
	ranges->items = items;
	ranges->capacity = capacity;
	return true;
}

static void ranges_remove(struct ranges *ranges, size_t position, size_t count)
{
	if (count == 0)
		return;
	memmove(ranges->items + position, ranges->items + position + count,
		(ranges->count - position - count) * sizeof(*ranges->items));
	ranges->count -= count;
}

/* What touches the floor becomes part of it. */
static void ranges_settle(struct ranges *ranges)
{
	size_t gone = 0;

	while (gone < ranges->count && ranges->items[gone].from <= ranges->floor + 1) {
		if (ranges->items[gone].to > ranges->floor)
			ranges->floor = ranges->items[gone].to;
		gone++;
	}
	ranges_remove(ranges, 0, gone);
}

bool ranges_add(struct ranges *ranges, uint64_t sequence)
{
	size_t position;
	struct range *items;

	if (ranges_contain(ranges, sequence))
		return true;
	if (sequence == ranges->floor + 1) {
		ranges->floor = sequence;
		ranges_settle(ranges);
		return true;
	}
	position = ranges_position(ranges, sequence);
	items = ranges->items;
	if (position > 0 && items[position - 1].to + 1 == sequence) {
		items[position - 1].to = sequence;
		if (position < ranges->count && items[position].from == sequence + 1) {
			items[position - 1].to = items[position].to;
			ranges_remove(ranges, position, 1);
		}
		return true;
	}
	if (position < ranges->count && items[position].from == sequence + 1) {
		items[position].from = sequence;
		return true;
	}
	if (!ranges_reserve(ranges, ranges->count + 1))
		return false;
	items = ranges->items;
	memmove(items + position + 1, items + position,
		(ranges->count - position) * sizeof(*items));
	items[position] = (struct range){sequence, sequence};
	ranges->count++;
	return true;
}

bool ranges_add_all(struct ranges *ranges, const uint64_t *sequences, size_t count)
{
	size_t capacity = ranges->count + count, used = 0;
	struct range *merged;

	if (count < 2)
		return count == 0 || ranges_add(ranges, sequences[0]);
	merged = malloc(capacity * sizeof(*merged));
	if (merged == NULL)
		return false;
	for (size_t i = 0, at = 0; i < count || at < ranges->count;) {
		struct range next;

		if (at == ranges->count || (i < count && sequences[i] < ranges->items[at].from)) {
			next = (struct range){sequences[i], sequences[i]};
			i++;
		} else {
			next = ranges->items[at++];
		}
		if (used > 0 && merged[used - 1].to + 1 == next.from)
			merged[used - 1].to = next.to;
		else
			merged[used++] = next;
	}
	free(ranges->items);
	ranges->items = merged;
	ranges->count = used;
	ranges->capacity = capacity;
	ranges_settle(ranges);
	return true;
}

void ranges_raise(struct ranges *ranges, uint64_t sequence)
{
	if (sequence <= ranges->floor)
		return;
	ranges->floor = sequence;
	ranges_settle(ranges);
}

bool ranges_copy(struct ranges *to, const struct ranges *from)
{
	if (!ranges_reserve(to, from->count))
		return false;
	if (from->count > 0)
		memcpy(to->items, from->items, from->count * sizeof(*from->items));
	to->count = from->count;
	to->floor = from->floor;
	return true;
}
