/*
 * A chained hash table through a node in each element, and the keyed hash (SipHash-1-3, key drawn
 * at start) that keeps clients from choosing collisions. No locking, and after hash_init only
 * growth allocates: when memory for it cannot be had the table stays as it is, only slower. Tables
 * stand under locks that others wait for, so growing one is spread over the insertions that follow.
 */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include "base/base.h"

struct hash_node {
	struct hash_node *next;
	uint64_t hash;
};

struct hash {
	struct hash_node **buckets;
	size_t bucket_count; /* a power of two, 0 before the first insertion */
	size_t count;

	/* While it grows: what the buckets were, emptied up to `moved`. */
	struct hash_node **old;
	size_t old_count, moved;
};

/* Draws the key; call once, before any thread is started. */
void hash_seed(void);

uint64_t hash_bytes(const void *bytes, size_t length);
uint64_t hash_u64(uint64_t value);

void hash_init(struct hash *table);

/* Frees the buckets; the elements stay the caller's. */
void hash_destroy(struct hash *table);

/* Adds NODE, whose key must not be present. False when memory for the first buckets is missing. */
bool hash_insert(struct hash *table, struct hash_node *node, uint64_t hash);

/* NODE must be in the table. */
void hash_remove(struct hash *table, struct hash_node *node);

/* The first node with this hash, and the next one; the caller compares the keys. NULL: no more. */
struct hash_node *hash_first(const struct hash *table, uint64_t hash);
struct hash_node *hash_next(const struct hash_node *node);

/*
 * A walk over all elements: the first of each of the slots, which are lists by `next`. Elements may
 * be removed meanwhile, but none inserted.
 */
static inline size_t hash_slots(const struct hash *table)
{
	return table->bucket_count + table->old_count;
}

static inline struct hash_node *hash_slot(const struct hash *table, size_t index)
{
	return index < table->bucket_count ? table->buckets[index]
					   : table->old[index - table->bucket_count];
}

#endif
