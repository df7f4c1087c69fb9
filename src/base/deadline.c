/*
 * The pairing heap. Each node is no later than its children, which hang together by `sibling`;
 * `link` is the pointer that points to the node, wherever that is, so that a node can be cut out
 * without knowing its parent. Nothing recurses: a node may have any number of children.
 */
#include "base/deadline.h"

#include "base/clock.h"

/* Makes *LINK point to DEADLINE, which may be NULL. */
static void deadline_set(struct deadline **link, struct deadline *deadline)
{
	*link = deadline;
	if (deadline != NULL)
		deadline->link = link;
}

/* One heap of two, neither of which has siblings; its `link` is the caller's to set. */
static struct deadline *deadline_meld(struct deadline *a, struct deadline *b)
{
	struct deadline *later;

	if (a == NULL)
		return b;
	if (b == NULL)
		return a;
	if (b->when_ns < a->when_ns) {
		later = a;
		a = b;
	} else {
		later = b;
	}
	deadline_set(&later->sibling, a->child);
	deadline_set(&a->child, later);
	return a;
}

/* One heap of the siblings from FIRST on: melds them in pairs, then the pairs from last to first.
 */
static struct deadline *deadline_meld_siblings(struct deadline *first)
{
	struct deadline *pairs = NULL, *melded = NULL;

	while (first != NULL) {
		struct deadline *a = first, *b = a->sibling, *pair;

		first = b != NULL ? b->sibling : NULL;
		a->sibling = NULL;
		if (b != NULL)
			b->sibling = NULL;
		pair = deadline_meld(a, b);
		pair->sibling = pairs;
		pairs = pair;
	}
	while (pairs != NULL) {
		struct deadline *pair = pairs;

		pairs = pair->sibling;
		pair->sibling = NULL;
		melded = deadline_meld(melded, pair);
	}
	return melded;
}

void deadlines_add(struct deadlines *deadlines, struct deadline *deadline, int64_t when_ns)
{
	ASSERT(!deadline_queued(deadline));
	*deadline = (struct deadline){.when_ns = when_ns};
	deadline_set(&deadlines->root, deadline_meld(deadlines->root, deadline));
}

void deadlines_remove(struct deadlines *deadlines, struct deadline *deadline)
{
	struct deadline *children;

	if (!deadline_queued(deadline))
		return;
	deadline_set(deadline->link, deadline->sibling);
	children = deadline_meld_siblings(deadline->child);
	deadline_set(&deadlines->root, deadline_meld(deadlines->root, children));
	deadline->child = deadline->sibling = NULL;
	deadline->link = NULL;
}

int64_t deadlines_next_ns(const struct deadlines *deadlines)
{
	return deadlines->root != NULL ? deadlines->root->when_ns : DEADLINE_NEVER;
}

struct deadline *deadlines_take_due(struct deadlines *deadlines, int64_t now_ns)
{
	struct deadline *due = deadlines->root;

	if (due == NULL || due->when_ns > now_ns)
		return NULL;
	deadlines_remove(deadlines, due);
	return due;
}
