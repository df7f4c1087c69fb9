/*
 * What only liminald is measured for, each with a server and a store of its own: a replay to a
 * reader, alone and while others publish; a work queue whose answers are confirmed; and a start
 * with a large store. The main thread reads, a crew publishes.
 */
#include "bench/bench.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define REPLAYED UINT64_C(1000000)
#define QUEUED UINT64_C(500000)
#define STORED UINT64_C(10000000)

#define REPETITIONS_MAX 64

#define PUBLISHERS 16
#define WINDOW 256
#define CONSUMERS 4
#define CREDIT 1024

/* How often memory is looked at, and how long publishers are watched alone. */
#define LOOK_NS (NS_PER_S / 20)
#define ALONE_NS NS_PER_S

struct bench {
	struct server server;
	struct client clients[PUBLISHERS];
	size_t count;
	struct input input;
	const char *why; /* it does not count; NULL: it does */
};

static bool bench_begin(struct bench *bench, uint64_t kept)
{
	struct demand demand = {.connections = 64, .channels = 1, .kept = kept};

	*bench = (struct bench){.input = {.bytes = malloc(INPUT_SIZE), .capacity = INPUT_SIZE}};
	if (!server_start(&bench->server, &peer_durable, &demand) || bench->input.bytes == NULL)
		bench->why = "it cannot be set up";
	return bench->why == NULL;
}

static bool bench_end(struct bench *bench, const char *what)
{
	for (size_t i = 0; i < bench->count; i++) {
		if (bench->why == NULL)
			bench->why = bench->clients[i].failure;
		client_close(&bench->clients[i]);
	}
	server_stop(&bench->server);
	free(bench->input.bytes);
	if (bench->why != NULL)
		(void)fprintf(stderr, "bench: a run of %s does not count: %s\n", what, bench->why);
	return bench->why == NULL;
}

static struct client make_client(enum role role, unsigned index, uint64_t window)
{
	return (struct client){.peer = &peer_durable,
			       .role = role,
			       .index = index,
			       .channels = 1,
			       .payload = DURABLE_PAYLOAD,
			       .window = window,
			       .position = {.credit = CREDIT},
			       .fd = -1};
}

/* --- replay -------------------------------------------------------------------------------- */

struct replay {
	double rate, before, highest; /* of the reader; the server's memory in MB */
};

/* The first REPLAYED messages to a reader. */
static const char *replay(struct bench *bench, struct replay *replay)
{
	struct client reader = make_client(ROLE_SUBSCRIBER, 0, 0);
	int64_t began_ns, next_ns;
	int64_t before = server_resident_bytes(&bench->server), highest = before;

	reader.position.from = 1;
	began_ns = next_ns = bench_now_ns();
	if (client_open(&reader, bench->server.port)) {
		while (reader.received < REPLAYED && reader.failure == NULL) {
			client_receive(&reader, &bench->input, true);
			if (bench_now_ns() >= next_ns) {
				int64_t now = server_resident_bytes(&bench->server);

				highest = now > highest ? now : highest;
				next_ns = bench_now_ns() + LOOK_NS;
			}
		}
	}
	replay->rate = (double)reader.received * 1e9 / (double)(bench_now_ns() - began_ns);
	replay->before = (double)before / 1e6;
	replay->highest = (double)highest / 1e6;
	client_close(&reader);
	return reader.failure;
}

static uint64_t crew_progress(struct crew *crew)
{
	return atomic_load_explicit(&crew->progress, memory_order_relaxed);
}

static double publish_rate(struct crew *crew, uint64_t from, int64_t from_ns)
{
	return (double)(crew_progress(crew) - from) * 1e9 / (double)(bench_now_ns() - from_ns);
}

/* Publishers alone, and during a replay. */
static const char *replay_beside(struct bench *bench, struct crew *crew, struct replay *beside,
				 double *alone, double *meanwhile)
{
	struct timespec pause = {.tv_sec = ALONE_NS / NS_PER_S};
	const char *why;
	uint64_t from;
	int64_t from_ns;

	(void)nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
	from = crew_progress(crew);
	from_ns = bench_now_ns();
	(void)nanosleep(&pause, NULL);
	*alone = publish_rate(crew, from, from_ns);
	from = crew_progress(crew);
	from_ns = bench_now_ns();
	why = replay(bench, beside);
	*meanwhile = publish_rate(crew, from, from_ns);
	return why;
}

static const char *publish_meanwhile(struct bench *bench, struct replay *beside, double *alone,
				     double *meanwhile)
{
	atomic_bool stop = false;
	struct crew crew = {.count = 0};
	const char *why = NULL;

	if (!crew_prepare(&crew, PUBLISHERS, &stop))
		why = "no memory";
	for (unsigned i = 0; i < PUBLISHERS && why == NULL; i++) {
		struct client *client = &bench->clients[bench->count++];

		*client = make_client(ROLE_PUBLISHER, i, WINDOW);
		if (!client_open(client, bench->server.port))
			why = client->failure;
		crew.clients[crew.count++] = client;
	}
	if (why == NULL) {
		crew_start(&crew);
		why = replay_beside(bench, &crew, beside, alone, meanwhile);
	}
	atomic_store(&stop, true);
	crew_end(&crew);
	for (size_t i = 0; i < bench->count && why == NULL; i++)
		if (bench->clients[i].acknowledged != bench->clients[i].sent)
			why = "a publish was not acknowledged once";
	return why;
}

/* --- a work queue -------------------------------------------------------------------------- */

/* Each message goes to one of the consumers, once: with as many confirmed as there are, all were.
 */
static bool taken[QUEUED + 1];

static uint64_t queue_confirmed(const struct bench *bench)
{
	uint64_t confirmed = 0;

	for (size_t i = 0; i < bench->count; i++)
		confirmed += bench->clients[i].acknowledged;
	return confirmed;
}

static const char *queue_wait(struct bench *bench)
{
	struct pollfd polls[CONSUMERS];
	int ready;

	for (size_t i = 0; i < bench->count; i++)
		polls[i] = (struct pollfd){
			.fd = bench->clients[i].fd,
			.events = (short)(bench->clients[i].out_left > 0 ? POLLOUT : POLLIN)};
	ready = poll(polls, (nfds_t)bench->count, PATIENCE_S * 1000);
	if (ready <= 0)
		return "nothing moved for too long";
	for (size_t i = 0; i < bench->count; i++) {
		if (polls[i].revents == 0)
			continue;
		if (bench->clients[i].out_left > 0)
			(void)client_flush(&bench->clients[i]);
		else
			client_receive(&bench->clients[i], &bench->input, false);
		if (bench->clients[i].failure != NULL)
			return bench->clients[i].failure;
	}
	return NULL;
}

static const char *queue(struct bench *bench, double *rate)
{
	int64_t began_ns = bench_now_ns();
	const char *why = NULL;

	memset(taken, 0, sizeof(taken));
	for (unsigned i = 0; i < CONSUMERS && why == NULL; i++) {
		struct client *client = &bench->clients[bench->count++];

		*client = make_client(ROLE_SUBSCRIBER, i, 0);
		client->position.consumer = "work";
		client->position.from = 1;
		client->taken = taken;
		if (!client_open(client, bench->server.port))
			why = client->failure;
	}
	while (why == NULL && queue_confirmed(bench) < QUEUED)
		why = queue_wait(bench);
	*rate = (double)queue_confirmed(bench) * 1e9 / (double)(bench_now_ns() - began_ns);
	return why;
}

/* --- the start ----------------------------------------------------------------------------- */

/* The next publish goes behind all that is there. */
static const char *start_verify(struct bench *bench, uint64_t kept)
{
	struct client *client = &bench->clients[bench->count++];

	*client = make_client(ROLE_PUBLISHER, 0, 1);
	if (!client_open(client, bench->server.port))
		return client->failure;
	client_send(client, 1);
	client_receive(client, &bench->input, true);
	return client->last == kept + 1 ? NULL : "it has not found all messages";
}

/* --- all of it ----------------------------------------------------------------------------- */

enum row {
	REPLAY_RATE,
	REPLAY_BEFORE,
	REPLAY_HIGHEST,
	PUBLISH_ALONE,
	PUBLISH_MEANWHILE,
	BESIDE_RATE,
	BESIDE_BEFORE,
	BESIDE_HIGHEST,
	QUEUE_RATE,
	START_EMPTY,
	START_FULL,
	ROWS
};

static const struct {
	const char *name, *text;
	int digits;
} rows[ROWS] = {
	[REPLAY_RATE] = {"replay_rate", "replay of 1,000,000 messages to a reader, messages/s", 0},
	[REPLAY_BEFORE] = {"replay_before_mb", "  the server's memory before, MB", 1},
	[REPLAY_HIGHEST] = {"replay_highest_mb", "  at its highest", 1},
	[PUBLISH_ALONE] = {"publish_alone", "16 x 256 beside it: before the replay, messages/s", 0},
	[PUBLISH_MEANWHILE] = {"publish_meanwhile", "  during the replay", 0},
	[BESIDE_RATE] = {"replay_meanwhile", "  the replay, messages/s", 0},
	[BESIDE_BEFORE] = {"meanwhile_before_mb", "  the server's memory before, MB", 1},
	[BESIDE_HIGHEST] = {"meanwhile_highest_mb", "  at its highest", 1},
	[QUEUE_RATE] = {"queue_rate", "work queue, 4 consumers, confirmed messages/s", 0},
	[START_EMPTY] = {"start_empty_s", "start with an empty store, seconds", 3},
	[START_FULL] = {"start_full_s", "start with 10,000,000 messages, seconds", 3},
};

/* Of the runs that counted. */
static struct {
	double values[REPETITIONS_MAX];
	size_t count;
} results[ROWS];

static void keep(enum row row, double value)
{
	if (results[row].count < REPETITIONS_MAX)
		results[row].values[results[row].count++] = value;
}

static void run_replay(void)
{
	struct replay first = {.rate = 0}, beside = {.rate = 0};
	double alone = 0, meanwhile = 0;
	struct bench bench;

	if (bench_begin(&bench, REPLAYED)) {
		bench.why = replay(&bench, &first);
		if (bench.why == NULL)
			bench.why = publish_meanwhile(&bench, &beside, &alone, &meanwhile);
	}
	if (!bench_end(&bench, "the replay"))
		return;
	keep(REPLAY_RATE, first.rate);
	keep(REPLAY_BEFORE, first.before);
	keep(REPLAY_HIGHEST, first.highest);
	keep(PUBLISH_ALONE, alone);
	keep(PUBLISH_MEANWHILE, meanwhile);
	keep(BESIDE_RATE, beside.rate);
	keep(BESIDE_BEFORE, beside.before);
	keep(BESIDE_HIGHEST, beside.highest);
}

static void run_queue(void)
{
	struct bench bench;
	double rate = 0;

	if (bench_begin(&bench, QUEUED))
		bench.why = queue(&bench, &rate);
	if (bench_end(&bench, "the work queue"))
		keep(QUEUE_RATE, rate);
}

static void run_start(uint64_t kept, enum row row)
{
	struct bench bench;
	double seconds = 0;

	if (bench_begin(&bench, kept)) {
		seconds = bench.server.start_s;
		bench.why = start_verify(&bench, kept);
	}
	if (bench_end(&bench, "the start"))
		keep(row, seconds);
}

/* A store of that size takes its time to be made: it is made once. */
static void run_starts(void)
{
	run_start(0, START_EMPTY);
	if (results[START_FULL].count == 0)
		run_start(STORED, START_FULL);
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[DURABLE_CASES] = {
	{"replay", run_replay},
	{"queue", run_queue},
	{"start", run_starts},
};

const char *durable_name(size_t number)
{
	return cases[number].name;
}

void durable_run(size_t number)
{
	cases[number].run();
}

static double median(enum row row)
{
	double *values = results[row].values;
	size_t count = results[row].count;

	for (size_t i = 1; i < count; i++) {
		for (size_t j = i; j > 0 && values[j] < values[j - 1]; j--) {
			double swapped = values[j];

			values[j] = values[j - 1];
			values[j - 1] = swapped;
		}
	}
	return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

void durable_print(FILE *file)
{
	for (size_t i = 0; i < ROWS; i++) {
		if (results[i].count > 0)
			(void)fprintf(file, "%-54s %12.*f\n", rows[i].text, rows[i].digits,
				      median((enum row)i));
	}
}

void durable_print_values(FILE *file)
{
	(void)fprintf(file, "name\tvalue\truns\n");
	for (size_t i = 0; i < ROWS; i++) {
		if (results[i].count > 0)
			(void)fprintf(file, "%s\t%.3f\t%zu\n", rows[i].name, median((enum row)i),
				      results[i].count);
	}
}
