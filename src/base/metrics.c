/*
 * Counters and histograms, in shards. Every operation is relaxed: a sum may miss what other threads
 * are adding at that moment, but never goes back and loses nothing.
 */
#include "base/metrics.h"

#include <stdatomic.h>

#include "base/clock.h"
#include "base/thread.h"

#define METRIC_SHARDS 16
#define METRIC_CACHE_LINE 64

struct metric_histogram_shard {
	_Atomic uint64_t buckets[METRIC_BUCKETS + 1];
	_Atomic uint64_t sum_ns;
};

struct metric_shard {
	_Alignas(METRIC_CACHE_LINE) _Atomic uint64_t counters[METRIC_COUNT];
	struct metric_histogram_shard histograms[HISTOGRAM_COUNT];
};

static struct metric_shard metric_shards[METRIC_SHARDS];

const struct metric_row metric_rows[METRIC_COUNT] = {
#define COUNTER(id, family, label, value, help) {family, label, value, help},
#define HISTOGRAM(id, family, help)
#include "base/metrics.tbl"
#undef COUNTER
#undef HISTOGRAM
};

const struct metric_row metric_histogram_rows[HISTOGRAM_COUNT] = {
#define COUNTER(id, family, label, value, help)
#define HISTOGRAM(id, family, help) {family, NULL, NULL, help},
#include "base/metrics.tbl"
#undef COUNTER
#undef HISTOGRAM
};

#define METRIC_US INT64_C(1000)

const int64_t metric_bucket_ns[METRIC_BUCKETS] = {
	10 * METRIC_US,	 20 * METRIC_US, 50 * METRIC_US,  100 * METRIC_US, 200 * METRIC_US,
	500 * METRIC_US, 1 * NS_PER_MS,	 2 * NS_PER_MS,	  5 * NS_PER_MS,   10 * NS_PER_MS,
	20 * NS_PER_MS,	 50 * NS_PER_MS, 100 * NS_PER_MS, 200 * NS_PER_MS, 500 * NS_PER_MS,
	1 * NS_PER_S,	 2 * NS_PER_S,	 5 * NS_PER_S,	  10 * NS_PER_S,
};

static struct metric_shard *metric_own_shard(void)
{
	return &metric_shards[thread_shard() % METRIC_SHARDS];
}

static void metric_count(_Atomic uint64_t *counter, uint64_t amount)
{
	atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

static uint64_t metric_load(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

void metric_add(enum metric metric, uint64_t amount)
{
	if (amount > 0)
		metric_count(&metric_own_shard()->counters[metric], amount);
}

uint64_t metric_read(enum metric metric)
{
	uint64_t sum = 0;
	size_t i;

	for (i = 0; i < METRIC_SHARDS; i++)
		sum += metric_load(&metric_shards[i].counters[metric]);
	return sum;
}

void metric_observe(enum metric_histogram histogram, int64_t duration_ns, uint64_t count)
{
	struct metric_histogram_shard *shard = &metric_own_shard()->histograms[histogram];
	size_t bucket = 0;

	if (duration_ns < 0)
		duration_ns = 0;
	while (bucket < METRIC_BUCKETS && duration_ns > metric_bucket_ns[bucket])
		bucket++;
	metric_count(&shard->buckets[bucket], count);
	metric_count(&shard->sum_ns, (uint64_t)duration_ns * count);
}

void metric_read_histogram(enum metric_histogram histogram, struct metric_histogram_value *value)
{
	size_t i, bucket;

	*value = (struct metric_histogram_value){.count = 0};
	for (i = 0; i < METRIC_SHARDS; i++) {
		const struct metric_histogram_shard *shard =
			&metric_shards[i].histograms[histogram];

		for (bucket = 0; bucket <= METRIC_BUCKETS; bucket++) {
			uint64_t observed = metric_load(&shard->buckets[bucket]);

			value->buckets[bucket] += observed;
			/* From the buckets, so that the count always agrees with them. */
			value->count += observed;
		}
		value->sum_ns += metric_load(&shard->sum_ns);
	}
}
