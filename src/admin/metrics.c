/*
 * The metrics as text. Everything comes from two tables, base/metrics.tbl and gauges.tbl, and from
 * one snapshot of net and broker that is taken first: no lock is held while the text is written.
 * Numbers are written as integers or by hand, because printf's %g depends on the locale.
 */
#include "admin/admin.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "admin/admin_priv.h"
#include "base/clock.h"
#include "base/metrics.h"

/* Every member that the table names is a uint64_t. */
struct metrics_snapshot {
	uint64_t started_s;
	struct net_totals net;
	struct broker_totals broker;
	struct broker_channel_state *channels;
	size_t channel_count;
	struct broker_consumer_state *consumers;
	size_t consumer_count;
};

struct metrics_gauge {
	const char *family, *help;
	size_t offset;
};

struct metrics_channel_family {
	const char *family, *type, *help;
	size_t offset;
	bool durable; /* of durable channels alone */
};

struct metrics_consumer_row {
	const char *family, *type, *label, *value, *help;
	size_t offset;
};

static const struct metrics_gauge metrics_gauges[] = {
#define GAUGE(family, member, help) {family, help, offsetof(struct metrics_snapshot, member)},
#include "admin/gauges.tbl"
};

static const struct metrics_channel_family metrics_channel_families[] = {
#define CHANNEL(family, type, member, help)                                                        \
	{family, type, help, offsetof(struct broker_channel_state, member), false},
#define DURABLE(family, type, member, help)                                                        \
	{family, type, help, offsetof(struct broker_channel_state, member), true},
#include "admin/gauges.tbl"
};

static const struct metrics_consumer_row metrics_consumer_rows[] = {
#define CONSUMER(family, type, label, value, member, help)                                         \
	{family, type, label, value, help, offsetof(struct broker_consumer_state, member)},
#include "admin/gauges.tbl"
};

static uint64_t metrics_member(const void *object, size_t offset)
{
	uint64_t value;

	memcpy(&value, (const char *)object + offset, sizeof(value));
	return value;
}

static void metrics_head(FILE *out, const char *family, const char *type, const char *help)
{
	fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", family, help, family, type);
}

/* A label's value may hold anything; backslash, quote and line feed are escaped. */
static void metrics_label_value(FILE *out, struct span value)
{
	for (size_t i = 0; i < value.length; i++) {
		if (value.data[i] == '\n') {
			fputs("\\n", out);
			continue;
		}
		if (value.data[i] == '\\' || value.data[i] == '"')
			fputc('\\', out);
		fputc(value.data[i], out);
	}
}

static void metrics_sample(FILE *out, const char *family, const char *label, struct span value,
			   uint64_t number)
{
	fputs(family, out);
	if (label != NULL) {
		fprintf(out, "{%s=\"", label);
		metrics_label_value(out, value);
		fputs("\"}", out);
	}
	fprintf(out, " %" PRIu64 "\n", number);
}

static void metrics_info(FILE *out)
{
#define INFO(family, label, value, help)                                                           \
	metrics_head(out, family, "gauge", help);                                                  \
	metrics_sample(out, family, label, span_of(value), 1);
#include "admin/gauges.tbl"
}

static void metrics_counters(FILE *out)
{
	const char *family = "";

	for (int i = 0; i < METRIC_COUNT; i++) {
		const struct metric_row *row = &metric_rows[i];

		if (strcmp(row->family, family) != 0)
			metrics_head(out, row->family, "counter", row->help);
		family = row->family;
		metrics_sample(out, row->family, row->label, span_of(row->value),
			       metric_read((enum metric)i));
	}
}

/* Nanoseconds as seconds, without trailing zeros. */
static void metrics_seconds(FILE *out, uint64_t ns)
{
	uint64_t fraction = ns % NS_PER_S;
	int digits = 9;

	fprintf(out, "%" PRIu64, ns / NS_PER_S);
	if (fraction == 0)
		return;
	for (; fraction % 10 == 0; fraction /= 10)
		digits--;
	fprintf(out, ".%0*" PRIu64, digits, fraction);
}

/* VALUE of a histogram as it is shown. */
static void metrics_value(FILE *out, enum metric_unit unit, uint64_t value)
{
	if (unit == METRIC_UNIT_SECONDS)
		metrics_seconds(out, value);
	else
		fprintf(out, "%" PRIu64, value);
}

static void metrics_histogram(FILE *out, enum metric_histogram histogram)
{
	const struct metric_row *row = &metric_histogram_rows[histogram];
	enum metric_unit unit = metric_histogram_units[histogram];
	struct metric_histogram_value value;
	uint64_t sum = 0;

	metric_read_histogram(histogram, &value);
	metrics_head(out, row->family, "histogram", row->help);
	for (size_t i = 0; i < METRIC_BUCKETS; i++) {
		sum += value.buckets[i];
		fprintf(out, "%s_bucket{le=\"", row->family);
		metrics_value(out, unit, (uint64_t)metric_bounds[unit][i]);
		fprintf(out, "\"} %" PRIu64 "\n", sum);
	}
	fprintf(out, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n%s_sum ", row->family, value.count,
		row->family);
	metrics_value(out, unit, value.sum);
	fprintf(out, "\n%s_count %" PRIu64 "\n", row->family, value.count);
}

static void metrics_channels(FILE *out, const struct metrics_snapshot *snapshot)
{
	for (size_t i = 0; i < ARRAY_LENGTH(metrics_channel_families); i++) {
		const struct metrics_channel_family *row = &metrics_channel_families[i];

		metrics_head(out, row->family, row->type, row->help);
		for (size_t j = 0; j < snapshot->channel_count; j++) {
			const struct broker_channel_state *channel = &snapshot->channels[j];

			if (channel->durable || !row->durable)
				metrics_sample(out, row->family, "channel", channel->name,
					       metrics_member(channel, row->offset));
		}
	}
}

static void metrics_consumers(FILE *out, const struct metrics_snapshot *snapshot)
{
	const char *family = "";

	for (size_t i = 0; i < ARRAY_LENGTH(metrics_consumer_rows); i++) {
		const struct metrics_consumer_row *row = &metrics_consumer_rows[i];

		if (strcmp(row->family, family) != 0)
			metrics_head(out, row->family, row->type, row->help);
		family = row->family;
		for (size_t j = 0; j < snapshot->consumer_count; j++) {
			const struct broker_consumer_state *consumer = &snapshot->consumers[j];

			fprintf(out, "%s{channel=\"", family);
			metrics_label_value(out, consumer->channel);
			fputs("\",consumer=\"", out);
			metrics_label_value(out, span_of(consumer->name));
			if (row->label != NULL)
				fprintf(out, "\",%s=\"%s", row->label, row->value);
			fprintf(out, "\"} %" PRIu64 "\n", metrics_member(consumer, row->offset));
		}
	}
}

char *metrics_render(struct admin *admin, size_t *length)
{
	struct metrics_snapshot snapshot = {.started_s = (uint64_t)admin->started_ms / 1000};
	char *page = NULL;
	size_t size = 0;

	*length = 0;
	if (!broker_channel_states(admin->broker, &snapshot.channels, &snapshot.channel_count) ||
	    !broker_consumer_states(admin->broker, NULL, &snapshot.consumers,
				    &snapshot.consumer_count))
		goto done;
	broker_totals(admin->broker, &snapshot.broker);
	net_totals(admin->net, &snapshot.net);

	FILE *out = open_memstream(&page, &size);
	if (out == NULL)
		goto done;
	metrics_info(out);
	for (size_t i = 0; i < ARRAY_LENGTH(metrics_gauges); i++) {
		metrics_head(out, metrics_gauges[i].family, "gauge", metrics_gauges[i].help);
		metrics_sample(out, metrics_gauges[i].family, NULL, span_of(NULL),
			       metrics_member(&snapshot, metrics_gauges[i].offset));
	}
	metrics_counters(out);
	metrics_channels(out, &snapshot);
	metrics_consumers(out, &snapshot);
	for (int i = 0; i < HISTOGRAM_COUNT; i++)
		metrics_histogram(out, (enum metric_histogram)i);

	bool failed = ferror(out) != 0;
	if (fclose(out) != 0 || failed) {
		free(page);
		page = NULL;
	} else {
		*length = size;
	}
done:
	free(snapshot.channels);
	free(snapshot.consumers);
	return page;
}
