/*
 * Idempotency keys of one channel: which were used within the window, and by which message. The
 * oldest go first when there are too many. Guarded by the channel's lock.
 */
#ifndef BROKER_DEDUP_H
#define BROKER_DEDUP_H

#include "base/hash.h"
#include "base/list.h"
#include "base/text.h"

struct dedup {
	struct hash keys;
	struct list by_age; /* oldest first */
	int64_t window_ms;
	uint64_t max_keys;
};

enum dedup_result { DEDUP_NEW, DEDUP_KNOWN, DEDUP_NO_MEMORY };

void dedup_init(struct dedup *dedup, int64_t window_ms, uint64_t max_keys);
void dedup_free(struct dedup *dedup);

/* From now on; keys over the bounds are forgotten at once. */
void dedup_configure(struct dedup *dedup, int64_t window_ms, uint64_t max_keys, int64_t now_ns);

/*
 * Claims KEY. *MESSAGE points at the id of the message that has it; of a new one the caller sets
 * it, before the lock is released. NOW_NS is monotonic.
 */
enum dedup_result dedup_claim(struct dedup *dedup, struct span key, int64_t now_ns,
			      uint64_t **message);

/* How many keys are remembered at NOW_NS; for a moment after very many were over at once, those
 * that are still to be forgotten count, too. */
uint64_t dedup_count(struct dedup *dedup, int64_t now_ns);

#endif
