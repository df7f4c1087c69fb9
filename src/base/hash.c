/*
 * SipHash-1-3 and the chained table over it. A table doubles when it has as many elements as
 * buckets, and never shrinks. Each insertion then moves MOVE_STEP of the old buckets, so that all
 * are moved long before it doubles again.
 */
#include "base/hash.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef HAVE_SYS_RANDOM_H
#include <sys/random.h>
#endif

#define HASH_FIRST_BUCKETS 16

#define MOVE_STEP 2

static uint64_t hash_key[2];

void hash_seed(void)
{
#if defined(HAVE_ARC4RANDOM_BUF)
	arc4random_buf(hash_key, sizeof(hash_key));
#else
	int descriptor;

#ifdef HAVE_GETENTROPY
	if (getentropy(hash_key, sizeof(hash_key)) == 0)
		return;
#endif
	/* Without it clients could choose collisions, so no fallback is any good. */
	descriptor = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	ASSERT(descriptor >= 0);
	ASSERT(read(descriptor, hash_key, sizeof(hash_key)) == (ssize_t)sizeof(hash_key));
	close(descriptor);
#endif
}

struct hash_state {
	uint64_t v0, v1, v2, v3;
};

static uint64_t hash_rotate(uint64_t word, unsigned bits)
{
	return word << bits | word >> (64 - bits);
}

static void hash_round(struct hash_state *state)
{
	state->v0 += state->v1;
	state->v1 = hash_rotate(state->v1, 13) ^ state->v0;
	state->v0 = hash_rotate(state->v0, 32);
	state->v2 += state->v3;
	state->v3 = hash_rotate(state->v3, 16) ^ state->v2;
	state->v0 += state->v3;
	state->v3 = hash_rotate(state->v3, 21) ^ state->v0;
	state->v2 += state->v1;
	state->v1 = hash_rotate(state->v1, 17) ^ state->v2;
	state->v2 = hash_rotate(state->v2, 32);
}

static void hash_word(struct hash_state *state, uint64_t word)
{
	state->v3 ^= word;
	hash_round(state);
	state->v0 ^= word;
}

static struct hash_state hash_start(void)
{
	return (struct hash_state){
		.v0 = hash_key[0] ^ UINT64_C(0x736f6d6570736575),
		.v1 = hash_key[1] ^ UINT64_C(0x646f72616e646f6d),
		.v2 = hash_key[0] ^ UINT64_C(0x6c7967656e657261),
		.v3 = hash_key[1] ^ UINT64_C(0x7465646279746573),
	};
}

static uint64_t hash_finish(struct hash_state *state)
{
	state->v2 ^= 0xFF;
	hash_round(state);
	hash_round(state);
	hash_round(state);
	return state->v0 ^ state->v1 ^ state->v2 ^ state->v3;
}

/* Words are taken in the machine's byte order: no hash leaves the process. */
uint64_t hash_bytes(const void *bytes, size_t length)
{
	struct hash_state state = hash_start();
	const uint8_t *rest = bytes;
	size_t left;
	uint64_t word, last = (uint64_t)length << 56;

	for (left = length; left >= sizeof(word); left -= sizeof(word)) {
		memcpy(&word, rest, sizeof(word));
		hash_word(&state, word);
		rest += sizeof(word);
	}
	while (left > 0) {
		left--;
		last |= (uint64_t)rest[left] << (8 * left);
	}
	hash_word(&state, last);
	return hash_finish(&state);
}

uint64_t hash_u64(uint64_t value)
{
	struct hash_state state = hash_start();

	hash_word(&state, value);
	hash_word(&state, (uint64_t)sizeof(value) << 56);
	return hash_finish(&state);
}

void hash_init(struct hash *table)
{
	*table = (struct hash){.buckets = NULL};
}

void hash_destroy(struct hash *table)
{
	free(table->buckets);
	free(table->old);
	hash_init(table);
}

static struct hash_node **hash_bucket(const struct hash *table, uint64_t hash)
{
	if (table->old != NULL) {
		size_t index = hash & (table->old_count - 1);

		if (index >= table->moved)
			return &table->old[index];
	}
	return &table->buckets[hash & (table->bucket_count - 1)];
}

/* Begins to move to COUNT buckets; changes nothing when memory for them is missing. */
static void hash_grow(struct hash *table, size_t count)
{
	struct hash_node **buckets = calloc(count, sizeof(struct hash_node *));

	if (buckets == NULL)
		return;
	table->old = table->buckets;
	table->old_count = table->bucket_count;
	table->moved = 0;
	table->buckets = buckets;
	table->bucket_count = count;
}

/* Moves some of the old buckets. */
static void hash_move(struct hash *table)
{
	for (int step = 0; step < MOVE_STEP && table->moved < table->old_count; step++) {
		struct hash_node *node = table->old[table->moved], *next;

		table->old[table->moved++] = NULL;
		for (; node != NULL; node = next) {
			struct hash_node **bucket = hash_bucket(table, node->hash);

			next = node->next;
			node->next = *bucket;
			*bucket = node;
		}
	}
	if (table->moved < table->old_count)
		return;
	free(table->old);
	table->old = NULL;
	table->old_count = 0;
}

bool hash_insert(struct hash *table, struct hash_node *node, uint64_t hash)
{
	struct hash_node **bucket;

	if (table->old != NULL)
		hash_move(table);
	else if (table->bucket_count == 0)
		hash_grow(table, HASH_FIRST_BUCKETS);
	else if (table->count >= table->bucket_count)
		hash_grow(table, table->bucket_count * 2);
	if (table->bucket_count == 0)
		return false;
	bucket = hash_bucket(table, hash);
	node->hash = hash;
	node->next = *bucket;
	*bucket = node;
	table->count++;
	return true;
}

void hash_remove(struct hash *table, struct hash_node *node)
{
	struct hash_node **link;

	ASSERT(table->count > 0);
	link = hash_bucket(table, node->hash);
	while (*link != node) {
		ASSERT(*link != NULL);
		link = &(*link)->next;
	}
	*link = node->next;
	node->next = NULL;
	table->count--;
}

/* NODE, or the first one behind it, with HASH. */
static struct hash_node *hash_match(struct hash_node *node, uint64_t hash)
{
	while (node != NULL && node->hash != hash)
		node = node->next;
	return node;
}

struct hash_node *hash_first(const struct hash *table, uint64_t hash)
{
	if (table->bucket_count == 0)
		return NULL;
	return hash_match(*hash_bucket(table, hash), hash);
}

struct hash_node *hash_next(const struct hash_node *node)
{
	return hash_match(node->next, node->hash);
}
