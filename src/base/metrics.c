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
	_Atomic uint64_t sum;
};

struct metric_shard {
	_Alignas(METRIC_CACHE_LINE) _Atomic uint64_t counters[METRIC_COUNT];
	struct metric_histogram_shard histograms[HISTOGRAM_COUNT];
};

static struct metric_shard metric_shards[METRIC_SHARDS];

const struct metric_row metric_rows[METRIC_COUNT] = {
#define COUNTER(id, family, label, value, help) {family, label, value, help},
#define HISTOGRAM(id, family, unit, help)
#include "base/metrics.tbl"
#undef COUNTER
#undef HISTOGRAM
};

const struct metric_row metric_histogram_rows[HISTOGRAM_COUNT] = {
#define COUNTER(id, family, label, value, help)
#define HISTOGRAM(id, family, unit, help) {family, NULL, NULL, help},
#include "base/metrics.tbl"
#undef COUNTER
#undef HISTOGRAM
};

const enum metric_unit metric_histogram_units[HISTOGRAM_COUNT] = {
#define COUNTER(id, family, label, value, help)
#define HISTOGRAM(id, family, unit, help) METRIC_UNIT_##unit,
#include "base/metrics.tbl"
#undef COUNTER
#undef HISTOGRAM
};

/* clang-format off */
#define METRIC_BOUNDS(unit)                                                                        \
	{                                                                                          \
		INT64_C(1) * (unit), INT64_C(2) * (unit), INT64_C(5) * (unit),                     \
		INT64_C(10) * (unit), INT64_C(20) * (unit), INT64_C(50) * (unit),                  \
		INT64_C(100) * (unit), INT64_C(200) * (unit), INT64_C(500) * (unit),               \
		INT64_C(1000) * (unit), INT64_C(2000) * (unit), INT64_C(5000) * (unit),            \
		INT64_C(10000) * (unit), INT64_C(20000) * (unit), INT64_C(50000) * (unit),         \
		INT64_C(100000) * (unit), INT64_C(200000) * (unit), INT64_C(500000) * (unit),      \
		INT64_C(1000000) * (unit),                                                         \
	}
/* clang-format on */

const int64_t metric_bounds[METRIC_UNIT_COUNT][METRIC_BUCKETS] = {
	[METRIC_UNIT_SECONDS] = METRIC_BOUNDS(10 * 1000), /* in 10 us */
	[METRIC_UNIT_NUMBER] = METRIC_BOUNDS(1),
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

void metric_observe(enum metric_histogram histogram, int64_t value, uint64_t count)
{
	struct metric_histogram_shard *shard = &metric_own_shard()->histograms[histogram];
	const int64_t *bounds = metric_bounds[metric_histogram_units[histogram]];
	size_t bucket = 0;

	if (value < 0)
		value = 0;
	while (bucket < METRIC_BUCKETS && value > bounds[bucket])
		bucket++;
	metric_count(&shard->buckets[bucket], count);
	metric_count(&shard->sum, (uint64_t)value * count);
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
		value->sum += metric_load(&shard->sum);
	}
}
