#include "bench/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct numbers *report_at(const struct report *report, size_t load, size_t peer, size_t repetition)
{
	return &report->numbers[(load * report->peer_count + peer) * report->repetitions +
				repetition];
}

/* --- values of one run --------------------------------------------------------------------- */

static double value_rate(const struct report *report, size_t load, size_t peer, size_t repetition)
{
	return report_at(report, load, peer, repetition)->rate;
}

static double value_cpu(const struct report *report, size_t load, size_t peer, size_t repetition)
{
	return report_at(report, load, peer, repetition)->cpu_us;
}

static double value_share(const struct report *report, size_t load, size_t peer, size_t repetition)
{
	return report_at(report, load, peer, repetition)->cpu_share;
}

static double value_memory(const struct report *report, size_t load, size_t peer, size_t repetition)
{
	return report_at(report, load, peer, repetition)->connection_bytes;
}

static double value_open(const struct report *report, size_t load, size_t peer, size_t repetition)
{
	return report_at(report, load, peer, repetition)->open_s;
}

static double value_slowest(const struct report *report, size_t load, size_t peer,
			    size_t repetition)
{
	return report_at(report, load, peer, repetition)->slowest_ms;
}

static double value_delivered(const struct report *report, size_t load, size_t peer,
			      size_t repetition)
{
	return report_at(report, load, peer, repetition)->delivered;
}

static double value_p50(const struct report *report, size_t load, size_t peer, size_t repetition)
{
	return report_at(report, load, peer, repetition)->p50_ms;
}

static double value_p99(const struct report *report, size_t load, size_t peer, size_t repetition)
{
	return report_at(report, load, peer, repetition)->p99_ms;
}

/* Compared with the first peer in the same round; NAN when that run does not count. */
static double value_rate_ratio(const struct report *report, size_t load, size_t peer,
			       size_t repetition)
{
	const struct numbers *first = report_at(report, load, 0, repetition);

	return first->valid ? value_rate(report, load, peer, repetition) / first->rate : NAN;
}

static double value_cpu_ratio(const struct report *report, size_t load, size_t peer,
			      size_t repetition)
{
	const struct numbers *first = report_at(report, load, 0, repetition);

	return first->valid ? value_cpu(report, load, peer, repetition) / first->cpu_us : NAN;
}

/* The rate of the durable liminald as a multiple of this peer's, in the same round. */
static double value_liminald_is(const struct report *report, size_t load, size_t peer,
				size_t repetition)
{
	for (size_t i = 0; i < report->peer_count; i++) {
		const struct numbers *numbers = report_at(report, load, i, repetition);

		if (report->peers[i] == &peer_durable && numbers->valid)
			return numbers->rate / value_rate(report, load, peer, repetition);
	}
	return NAN;
}

/* --- medians ------------------------------------------------------------------------------- */

static int compare_doubles(const void *a, const void *b)
{
	double difference = *(const double *)a - *(const double *)b;

	return (difference > 0) - (difference < 0);
}

double report_median(const struct report *report, size_t load, size_t peer, report_value *value)
{
	double *values = calloc(report->repetitions, sizeof(*values)), median = NAN;
	size_t count = 0;

	if (values == NULL)
		abort();
	for (size_t i = 0; i < report->repetitions; i++) {
		if (!report_at(report, load, peer, i)->valid)
			continue;
		values[count] = value(report, load, peer, i);
		count += !isnan(values[count]);
	}
	qsort(values, count, sizeof(*values), compare_doubles);
	if (count > 0)
		median = (values[(count - 1) / 2] + values[count / 2]) / 2;
	free(values);
	return median;
}

/* --- the table ----------------------------------------------------------------------------- */

#define NAME 18
#define CELL 23

/* The first peer may stand in the table once more. */
static const char *peer_label(const struct report *report, size_t peer)
{
	return peer > 0 && report->peers[peer] == report->peers[0] ? "the first again"
								   : report->peers[peer]->name;
}

static void print_cell(FILE *file, const char *text)
{
	(void)fprintf(file, " %-*s|", CELL, text);
}

static void print_own(const struct report *report, size_t load, size_t peer, FILE *file)
{
	double rate = report_median(report, load, peer, value_rate);
	char text[64] = "-";

	if (!isnan(rate))
		(void)snprintf(text, sizeof(text), "%.0f/s, %.3f us", rate,
			       report_median(report, load, peer, value_cpu));
	print_cell(file, text);
}

static void print_ratio(const struct report *report, size_t load, size_t peer, FILE *file)
{
	double rate = report_median(report, load, peer, value_rate_ratio);
	char text[64] = "-";

	if (!isnan(rate))
		(void)snprintf(text, sizeof(text), "%.2f (%.2f)", rate,
			       report_median(report, load, peer, value_cpu_ratio));
	print_cell(file, text);
}

static void print_idle(const struct report *report, size_t load, size_t peer, FILE *file)
{
	double share = report_median(report, load, peer, value_share);
	char text[64] = "-";

	if (!isnan(share))
		(void)snprintf(text, sizeof(text), "%.2f %%, %.1f kB", share * 100,
			       report_median(report, load, peer, value_memory) / 1024);
	print_cell(file, text);
}

/* The same, with the time that the connections took to come. */
static void print_arrival(const struct report *report, size_t load, size_t peer, FILE *file)
{
	double share = report_median(report, load, peer, value_share);
	char text[64] = "-";

	if (!isnan(share))
		(void)snprintf(text, sizeof(text), "%.2f s, %.2f %%, %.1f kB",
			       report_median(report, load, peer, value_open), share * 100,
			       report_median(report, load, peer, value_memory) / 1024);
	print_cell(file, text);
}

/* The load that is the same but for the subscriber that stalls. */
static const struct load *unstalled(const struct report *report, const struct load *load,
				    size_t *index)
{
	for (*index = 0; *index < report->load_count; (*index)++) {
		const struct load *other = &report->loads[*index];

		if (other->stalled == 0 && other->publishers == load->publishers &&
		    other->subscribers == load->subscribers + load->stalled)
			return other;
	}
	return NULL;
}

static void print_stall(const struct report *report, size_t load, size_t peer, FILE *file)
{
	double rate = report_median(report, load, peer, value_rate), before = NAN;
	double slowest = report_median(report, load, peer, value_slowest);
	char text[64] = "-";
	size_t other;

	if (unstalled(report, &report->loads[load], &other) != NULL)
		before = report_median(report, other, peer, value_rate);
	if (!isnan(rate) && !isnan(before))
		(void)snprintf(text, sizeof(text), "%.2f, %.1f ms", rate / before, slowest);
	else if (!isnan(rate))
		(void)snprintf(text, sizeof(text), "%.0f/s, %.1f ms", rate, slowest);
	print_cell(file, text);
}

static void print_row(const struct report *report, size_t load, FILE *file)
{
	const struct load *row = &report->loads[load];

	(void)fprintf(file, "| %-*s|", NAME, row->name);
	for (size_t peer = 0; peer < report->peer_count; peer++) {
		if (row->idle)
			print_idle(report, load, peer, file);
		else if (row->stalled > 0)
			print_stall(report, load, peer, file);
		else if (peer == 0)
			print_own(report, load, peer, file);
		else
			print_ratio(report, load, peer, file);
	}
	(void)fprintf(file, "\n");
}

static void print_rule(FILE *file, int width)
{
	while (width-- > 0)
		(void)fputc('-', file);
	(void)fputc('|', file);
}

static void print_head(const struct report *report, FILE *file)
{
	(void)fprintf(file, "| %-*s|", NAME, "case");
	for (size_t peer = 0; peer < report->peer_count; peer++)
		print_cell(file, peer_label(report, peer));
	(void)fprintf(file, "\n|");
	print_rule(file, NAME + 1);
	for (size_t peer = 0; peer < report->peer_count; peer++)
		print_rule(file, CELL + 1);
	(void)fprintf(file, "\n");
}

void report_print(const struct report *report, FILE *file)
{
	print_head(report, file);
	for (size_t load = 0; load < report->load_count; load++)
		print_row(report, load, file);
}

void report_print_growth(const struct report *report, FILE *file)
{
	print_head(report, file);
	for (size_t load = 0; load < report->load_count; load++) {
		(void)fprintf(file, "| %-*s|", NAME, report->loads[load].name);
		for (size_t peer = 0; peer < report->peer_count; peer++) {
			if (report->loads[load].idle)
				print_arrival(report, load, peer, file);
			else
				print_own(report, load, peer, file);
		}
		(void)fprintf(file, "\n");
	}
}

static void print_fraction(FILE *file, double fraction)
{
	if (isnan(fraction))
		(void)fprintf(file, " %11s |", "-");
	else
		(void)fprintf(file, " %11.2f |", fraction);
}

static void print_durable_row(const struct report *report, size_t load, size_t peer, FILE *file)
{
	double delivered = report_median(report, load, peer, value_delivered);

	(void)fprintf(file, "| %-17s | %-15s | %10.0f |", report->loads[load].name,
		      peer_label(report, peer), report_median(report, load, peer, value_rate));
	print_fraction(file, report_median(report, load, peer, value_rate_ratio));
	print_fraction(file, report_median(report, load, peer, value_liminald_is));
	(void)fprintf(file, " %7.2f | %7.2f | %7.2f |",
		      report_median(report, load, peer, value_cpu),
		      report_median(report, load, peer, value_p50),
		      report_median(report, load, peer, value_p99));
	if (report->loads[load].subscribers > 0)
		(void)fprintf(file, " %11.0f |\n", delivered);
	else
		(void)fprintf(file, " %11s |\n", "");
}

void report_print_durable(const struct report *report, FILE *file)
{
	static const int widths[] = {18, 16, 11, 12, 12, 8, 8, 8, 12};

	(void)fprintf(file, "| %-17s | %-15s | %10s | %11s | %11s | %7s | %7s | %7s | %11s |\n|",
		      "case", "", "messages/s", "of floor", "liminald is", "CPU us", "p50 ms",
		      "p99 ms", "delivered/s");
	for (size_t i = 0; i < ARRAY_LENGTH(widths); i++)
		print_rule(file, widths[i] + 1);
	(void)fprintf(file, "\n");
	for (size_t load = 0; load < report->load_count; load++) {
		for (size_t peer = 0; peer < report->peer_count; peer++)
			if (!isnan(report_median(report, load, peer, value_rate)))
				print_durable_row(report, load, peer, file);
	}
	(void)fprintf(file, "* acknowledges before it syncs\n");
}

void report_print_values(const struct report *report, FILE *file)
{
	(void)fprintf(file, "case\tpeer\trate\trate_of_floor\tcpu_us\tcpu_of_floor\tcpu_share\t"
			    "slowest_ms\tconnection_bytes\topen_s\tdelivered\tp50_ms\tp99_ms\t"
			    "runs\n");
	for (size_t load = 0; load < report->load_count; load++) {
		for (size_t peer = 0; peer < report->peer_count; peer++) {
			size_t valid = 0;

			for (size_t i = 0; i < report->repetitions; i++)
				valid += report_at(report, load, peer, i)->valid;
			(void)fprintf(file,
				      "%s\t%s\t%.0f\t%.3f\t%.4f\t%.3f\t%.5f\t%.2f\t%.0f\t%.2f\t%."
				      "0f\t%.3f\t"
				      "%.3f\t%zu\n",
				      report->loads[load].name, peer_label(report, peer),
				      report_median(report, load, peer, value_rate),
				      report_median(report, load, peer, value_rate_ratio),
				      report_median(report, load, peer, value_cpu),
				      report_median(report, load, peer, value_cpu_ratio),
				      report_median(report, load, peer, value_share),
				      report_median(report, load, peer, value_slowest),
				      report_median(report, load, peer, value_memory),
				      report_median(report, load, peer, value_open),
				      report_median(report, load, peer, value_delivered),
				      report_median(report, load, peer, value_p50),
				      report_median(report, load, peer, value_p99), valid);
		}
	}
}
