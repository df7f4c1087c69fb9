/*
 * A set of sequences above a floor: everything up to `floor` is in it, and so are the ranges, which
 * are sorted and neither touch each other nor the floor. Small in practice: each gap is a message
 * that is outstanding or deferred. No locking.
 */
#ifndef BROKER_RANGES_H
#define BROKER_RANGES_H

#include "base/base.h"

struct range {
	uint64_t from, to; /* both included */
};

struct ranges {
	uint64_t floor;
	struct range *items;
	size_t count, capacity;
};

void ranges_free(struct ranges *ranges);

bool ranges_contain(const struct ranges *ranges, uint64_t sequence);

/* The first sequence from SEQUENCE on that is not in the set. */
uint64_t ranges_next_missing(const struct ranges *ranges, uint64_t sequence);

/* False: no memory, and nothing has changed. Adding what is there already is allowed. */
bool ranges_add(struct ranges *ranges, uint64_t sequence);

/* The same for many that are not in the set, in rising order. */
bool ranges_add_all(struct ranges *ranges, const uint64_t *sequences, size_t count);

/* Everything up to SEQUENCE is in the set from now on. */
void ranges_raise(struct ranges *ranges, uint64_t sequence);

/* TO becomes a copy of FROM; false: no memory, TO is as it was. */
bool ranges_copy(struct ranges *to, const struct ranges *from);

#endif
