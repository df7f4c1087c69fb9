#include "broker/dedup.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

struct dedup_key {
	struct hash_node by_key;
	struct list by_age;
	int64_t claimed_ns;
	uint64_t message;
	size_t length;
	uint8_t bytes[];
};

void dedup_init(struct dedup *dedup, int64_t window_ms, uint64_t max_keys)
{
	hash_init(&dedup->keys);
	list_init(&dedup->by_age);
	dedup->window_ms = window_ms;
	dedup->max_keys = max_keys;
}

static void dedup_forget(struct dedup *dedup, struct dedup_key *key)
{
	hash_remove(&dedup->keys, &key->by_key);
	list_remove(&key->by_age);
	free(key);
}

static struct dedup_key *dedup_oldest(struct dedup *dedup)
{
	return LIST_ENTRY(dedup->by_age.next, struct dedup_key, by_age);
}

void dedup_free(struct dedup *dedup)
{
	while (!list_empty(&dedup->by_age))
		dedup_forget(dedup, dedup_oldest(dedup));
	hash_destroy(&dedup->keys);
}

static bool dedup_is_over(const struct dedup *dedup, const struct dedup_key *key, int64_t now_ns)
{
	return clock_after_ms(key->claimed_ns, dedup->window_ms) <= now_ns;
}

/*
 * Forgets what is too old, LIMIT keys at most: a million that were claimed in one second would be
 * over in one, and everybody who publishes waits for the lock meanwhile.
 */
#define EXPIRE_PER_CLAIM 64
#define EXPIRE_PER_COUNT 4096

static void dedup_expire(struct dedup *dedup, int64_t now_ns, size_t limit)
{
	for (; limit > 0 && !list_empty(&dedup->by_age); limit--) {
		struct dedup_key *key = dedup_oldest(dedup);

		if (!dedup_is_over(dedup, key, now_ns))
			break;
		dedup_forget(dedup, key);
	}
}

void dedup_configure(struct dedup *dedup, int64_t window_ms, uint64_t max_keys, int64_t now_ns)
{
	dedup->window_ms = window_ms;
	dedup->max_keys = max_keys;
	dedup_expire(dedup, now_ns, SIZE_MAX);
	while (dedup->keys.count > max_keys)
		dedup_forget(dedup, dedup_oldest(dedup));
}

enum dedup_result dedup_claim(struct dedup *dedup, struct span key, int64_t now_ns,
			      uint64_t **message)
{
	uint64_t hash = hash_bytes(key.data, key.length);
	struct dedup_key *entry;

	*message = NULL;
	dedup_expire(dedup, now_ns, EXPIRE_PER_CLAIM);
	for (struct hash_node *node = hash_first(&dedup->keys, hash); node != NULL;
	     node = hash_next(node)) {
		entry = CONTAINER_OF(node, struct dedup_key, by_key);
		if (!span_equal(key, (struct span){entry->bytes, entry->length}))
			continue;
		if (dedup_is_over(dedup, entry, now_ns)) {
			dedup_forget(dedup, entry);
			break;
		}
		*message = &entry->message;
		return DEDUP_KNOWN;
	}
	entry = malloc(sizeof(*entry) + key.length);
	if (entry == NULL)
		return DEDUP_NO_MEMORY;
	if (dedup->keys.count >= dedup->max_keys)
		dedup_forget(dedup, dedup_oldest(dedup));
	if (!hash_insert(&dedup->keys, &entry->by_key, hash)) {
		free(entry);
		return DEDUP_NO_MEMORY;
	}
	entry->claimed_ns = now_ns;
	entry->message = 0;
	entry->length = key.length;
	if (key.length > 0)
		memcpy(entry->bytes, key.data, key.length);
	list_append(&dedup->by_age, &entry->by_age);
	*message = &entry->message;
	return DEDUP_NEW;
}

uint64_t dedup_count(struct dedup *dedup, int64_t now_ns)
{
	dedup_expire(dedup, now_ns, EXPIRE_PER_COUNT);
	return dedup->keys.count;
}
