/*
 * How cost grows: series of loads that differ in one number. Each is a variation of a case of the
 * table: what does not depend on that number should cost the same along the series.
 */
#include "bench/bench.h"

#define VALUES_MAX 8
#define WINDOW 256

/* The units of sixteen senders name ten thousand channels between them. */
#define CHANNELS_WINDOW 640

/* A fan with large messages stays within everybody's bounds for what is queued. */
#define FAN_BYTES (8 * 1024 * 1024)
#define FAN_WINDOW 512

/* Sixteen that publish, among VALUE connections. */
static struct load with_connections(unsigned value)
{
	return (struct load){.publishers = value < 16 ? value : 16,
			     .silent = value < 16 ? 0 : value - 16,
			     .window = WINDOW,
			     .threads = value < 2 ? 1 : 2};
}

static struct load with_channels(unsigned value)
{
	return (struct load){
		.publishers = 16, .channels = value, .window = CHANNELS_WINDOW, .threads = 2};
}

static struct load with_subscribers(unsigned value)
{
	return (struct load){
		.publishers = 1, .subscribers = value, .window = FAN_WINDOW, .threads = 1};
}

static struct load with_payload(unsigned value)
{
	unsigned window = FAN_BYTES / value;

	return (struct load){.publishers = 1,
			     .subscribers = 1,
			     .payload = value,
			     .window = window < FAN_WINDOW ? window : FAN_WINDOW,
			     .threads = 1};
}

/* One that asks, while VALUE other requests wait for their answers. */
static struct load with_pending(unsigned value)
{
	return (struct load){
		.requesters = 1, .parked = value, .window = 1, .threads = 1, .one_core = true};
}

/* Nothing but VALUE silent connections: how long they take to come, and what they cost then. */
static struct load with_idle(unsigned value)
{
	return (struct load){.silent = value, .idle = true};
}

static const struct series {
	const char *name;
	struct load (*load)(unsigned value);
	unsigned values[VALUES_MAX]; /* 0: the end */
} all_series[] = {
	{"connections", with_connections, {1, 16, 100, 1000, 10000}},
	{"channels", with_channels, {1, 10, 100, 1000, 10000}},
	{"subscribers", with_subscribers, {1, 10, 100, 1000}},
	{"payload", with_payload, {16, 128, 1024, 8192, 65536, 1048576}},
	{"pending", with_pending, {1, 10, 100, 1000, 10000}},
	{"idle", with_idle, {1000, 10000}},
};

#define SCALE_MAX (ARRAY_LENGTH(all_series) * VALUES_MAX)

const struct load *scale_loads(size_t *count)
{
	static struct load loads[SCALE_MAX];
	static char names[SCALE_MAX][32];

	*count = 0;
	for (size_t i = 0; i < ARRAY_LENGTH(all_series); i++) {
		const struct series *series = &all_series[i];

		for (size_t j = 0; j < VALUES_MAX && series->values[j] > 0; j++) {
			loads[*count] = series->load(series->values[j]);
			(void)snprintf(names[*count], sizeof(names[0]), "%s %u", series->name,
				       series->values[j]);
			loads[*count].name = names[*count];
			(*count)++;
		}
	}
	return loads;
}
