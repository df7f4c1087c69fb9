/*
 * What came out, for people and for programs.
 */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include "bench/bench.h"

struct report {
	const struct load *loads;
	size_t load_count;
	const struct peer *const *peers; /* the first is what the others are compared with */
	size_t peer_count;
	size_t repetitions;
	struct numbers *numbers; /* by load, peer and repetition */
};

struct numbers *report_at(const struct report *report, size_t load, size_t peer, size_t repetition);

/* The median of what VALUE makes of the runs that count; NAN when there is none. */
typedef double report_value(const struct report *report, size_t load, size_t peer,
			    size_t repetition);
double report_median(const struct report *report, size_t load, size_t peer, report_value *value);

/* The table that people read. */
void report_print(const struct report *report, FILE *file);

/* The same, with every peer's own numbers instead of comparisons. */
void report_print_growth(const struct report *report, FILE *file);

/* A line for each case and peer, with its own numbers and what they are of others'. */
void report_print_durable(const struct report *report, FILE *file);

/* A line for each case and peer, its columns parted by tabs. */
void report_print_values(const struct report *report, FILE *file);

#endif
