/*
 * Counters and histograms. The rows stand in metrics.tbl; each is one sample of a Prometheus
 * family. A counter is kept in shards, so that threads do not share a cache line at message rate;
 * reading sums them.
 */
#ifndef BASE_METRICS_H
#define BASE_METRICS_H

#include "base/base.h"

enum metric {
#define COUNTER(id, family, label, value, help) METRIC_##id,
#define HISTOGRAM(id, family, unit, help)
#include "base/metrics.tbl"
#undef COUNTER
#undef HISTOGRAM
	METRIC_COUNT
};

enum metric_histogram {
#define COUNTER(id, family, label, value, help)
#define HISTOGRAM(id, family, unit, help) HISTOGRAM_##id,
#include "base/metrics.tbl"
#undef COUNTER
#undef HISTOGRAM
	HISTOGRAM_COUNT
};

/* One row of the table. LABEL and VALUE are NULL where the family has no label. */
struct metric_row {
	const char *family, *label, *value, *help;
};

extern const struct metric_row metric_rows[METRIC_COUNT];
extern const struct metric_row metric_histogram_rows[HISTOGRAM_COUNT];

void metric_add(enum metric metric, uint64_t amount);
uint64_t metric_read(enum metric metric);

/* What a histogram counts: time, in nanoseconds here and in seconds outside, or a number. */
enum metric_unit { METRIC_UNIT_SECONDS, METRIC_UNIT_NUMBER, METRIC_UNIT_COUNT };
extern const enum metric_unit metric_histogram_units[HISTOGRAM_COUNT];

/* Upper bounds of the buckets, rising: 10 us to 10 s, or 1 to a million; one more bucket is +Inf.
 */
#define METRIC_BUCKETS 19
extern const int64_t metric_bounds[METRIC_UNIT_COUNT][METRIC_BUCKETS];

/* COUNT observations of VALUE each, nanoseconds or a number. */
void metric_observe(enum metric_histogram histogram, int64_t value, uint64_t count);

struct metric_histogram_value {
	uint64_t buckets[METRIC_BUCKETS + 1]; /* not cumulative */
	uint64_t count;
	uint64_t sum;
};
void metric_read_histogram(enum metric_histogram histogram, struct metric_histogram_value *value);

#endif
