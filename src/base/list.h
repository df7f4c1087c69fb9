/*
 * A doubly linked list through a node in each element. The list head is a node too; an element
 * that is in no list has a node linked to itself (list_init), so that list_remove is idempotent.
 * No locking: the owner's lock guards the list and the nodes.
 */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include "base/base.h"

struct list {
	struct list *next, *previous;
};

static inline void list_init(struct list *node)
{
	node->next = node->previous = node;
}

static inline bool list_empty(const struct list *head)
{
	return head->next == head;
}

static inline void list_insert_before(struct list *position, struct list *node)
{
	node->next = position;
	node->previous = position->previous;
	position->previous->next = node;
	position->previous = node;
}

static inline void list_append(struct list *head, struct list *node)
{
	list_insert_before(head, node);
}

static inline void list_remove(struct list *node)
{
	node->previous->next = node->next;
	node->next->previous = node->previous;
	list_init(node);
}

/* Everything in FROM goes to the end of TO. */
static inline void list_append_all(struct list *to, struct list *from)
{
	if (list_empty(from))
		return;
	from->next->previous = to->previous;
	to->previous->next = from->next;
	from->previous->next = to;
	to->previous = from->previous;
	list_init(from);
}

#define LIST_ENTRY(node, type, member) CONTAINER_OF(node, type, member)

/* ENTRY may be removed, or freed, in the body; no other element may. */
#define LIST_FOR_EACH_NODE(node, after, head)                                                      \
	for (node = (head)->next, after = node->next; node != (head);                              \
	     node = after, after = node->next)

#endif
