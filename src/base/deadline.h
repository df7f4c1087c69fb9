/*
 * Deadlines in a pairing heap through a node in each element: no allocation, O(1) insertion,
 * amortised O(log n) removal. No locking: the owner's lock guards it.
 */
#ifndef BASE_DEADLINE_H
#define BASE_DEADLINE_H

#include "base/base.h"

struct deadline {
	int64_t when_ns;
	struct deadline *child, *sibling, **link; /* link: what points here; NULL when not queued */
};

struct deadlines {
	struct deadline *root;
};

static inline void deadline_init(struct deadline *deadline)
{
	*deadline = (struct deadline){.link = NULL};
}

static inline bool deadline_queued(const struct deadline *deadline)
{
	return deadline->link != NULL;
}

/* DEADLINE must not be queued. */
void deadlines_add(struct deadlines *deadlines, struct deadline *deadline, int64_t when_ns);

/* Idempotent. */
void deadlines_remove(struct deadlines *deadlines, struct deadline *deadline);

/* The nearest deadline, or DEADLINE_NEVER. */
int64_t deadlines_next_ns(const struct deadlines *deadlines);

/* Takes out one deadline that is due at NOW_NS; NULL when there is none. */
struct deadline *deadlines_take_due(struct deadlines *deadlines, int64_t now_ns);

#endif
