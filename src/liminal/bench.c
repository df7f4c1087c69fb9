/*
 * liminal bench: how fast a server is, and whether it keeps its word meanwhile. The load is that of
 * a program that uses the library; what is received is compared with what was sent.
 *
 * Threads: one for each publisher, subscriber and requester, with a connection of its own; in "fan"
 * one that publishes, in "request" one that serves. The main thread shows how it goes.
 */
#include "liminal/cli.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define BENCH_PEERS_MAX 4096
#define BENCH_WINDOW_MAX 65536
#define BENCH_BYTES_MAX (1024 * 1024 * 1024)
#define BENCH_PROGRESS_NS (NS_PER_S / 4)
/* Somebody who hears nothing for so long has lost something. */
#define BENCH_SILENCE_MS 10000

/* Latencies by their 6 highest bits: within 3 %, in one table of fixed size. */
#define BENCH_STEPS 32
#define BENCH_BUCKETS (60 * BENCH_STEPS)

/* What each payload begins with; the rest is filler. */
struct bench_head {
	uint64_t run, number;
	int64_t sent_ns;
};

struct bench_peer {
	struct bench *bench;
	pthread_t thread;
	struct liminal *client;
	struct liminal_conversation *conversation;
	unsigned char *payload; /* to send, or what is expected */
	int64_t *sent_ns;	/* of those without an answer, a ring of 2 x window */
	uint64_t sent, answered;
	atomic_uint_least64_t done;
	uint64_t latencies[BENCH_BUCKETS];
	int64_t slowest_ns, end_ns;
};

struct bench {
	const struct cli *cli;
	const struct bench_case *what;
	const char *what_name, *name; /* as given: the case, and the channel or queue */
	uint64_t run, count;
	size_t size, window;
	int64_t begin_ns, until_ns;
	struct bench_peer *peers; /* behind those of the case: the partner */
	size_t peer_count;

	atomic_uint_least64_t taken; /* of count */
	atomic_bool over;	     /* nobody begins anything new */
	atomic_uint_least64_t total; /* fan: how many there are; UINT64_MAX: not known yet */
	atomic_uint_least64_t awaited;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* Guarded by lock. */
	size_t running; /* peers of the case */
	int status;	/* the first failure's */
};

struct bench_case {
	const char *peer, *done; /* the words for the result */
	bool (*open)(struct bench_peer *peer);
	bool (*work)(struct bench_peer *peer);
	bool (*partner_open)(struct bench_peer *peer); /* NULL: it needs none */
	bool (*partner)(struct bench_peer *peer);
};

/* Not a sig_atomic_t: other threads than the one that takes the signal look at it. */
static atomic_bool bench_interrupted;

static void bench_on_signal(int number)
{
	(void)number;
	atomic_store(&bench_interrupted, true);
}

/* Says the first failure only: what others fail with is mostly its consequence. */
static bool bench_fail(struct bench *bench, const char *problem)
{
	pthread_mutex_lock(&bench->lock);
	if (bench->status == CLI_DONE && problem != NULL) {
		cli_error("%s", problem);
		bench->status = CLI_FAILED;
	} else if (bench->status == CLI_DONE) {
		bench->status = cli_report();
	}
	atomic_store(&bench->over, true);
	pthread_cond_broadcast(&bench->changed);
	pthread_mutex_unlock(&bench->lock);
	return false;
}

/* Takes one of the count, unless the time is over. */
static bool bench_take(struct bench *bench)
{
	if (atomic_load(&bench->over) || atomic_load(&bench_interrupted) ||
	    clock_mono_ns() >= bench->until_ns)
		return false;
	return atomic_fetch_add(&bench->taken, 1) < bench->count;
}

static void bench_note(struct bench_peer *peer, int64_t sent_ns)
{
	int64_t now_ns = clock_mono_ns(), latency_ns = now_ns - sent_ns;
	uint64_t value = latency_ns > 0 ? (uint64_t)latency_ns : 0;
	size_t shift = 0;

	while (value >> shift >= 2 * BENCH_STEPS)
		shift++;
	peer->latencies[shift * BENCH_STEPS + (value >> shift)]++;
	if (latency_ns > peer->slowest_ns)
		peer->slowest_ns = latency_ns;
	peer->end_ns = now_ns;
}

static int64_t bench_bucket_ns(size_t bucket)
{
	size_t shift = bucket < BENCH_STEPS ? 0 : bucket / BENCH_STEPS - 1;

	return (int64_t)(bucket - shift * BENCH_STEPS) << shift;
}

static void bench_fill(struct bench_peer *peer, uint64_t number, int64_t now_ns)
{
	struct bench_head head = {peer->bench->run, number, now_ns};

	memcpy(peer->payload, &head, sizeof(head));
}

/* --- pub: publishers with a window --------------------------------------------------------------
 */

static void bench_pub_answered(void *context, int status, const struct liminal_receipt *receipt)
{
	struct bench_peer *peer = context;
	size_t slot = peer->answered++ % (2 * peer->bench->window);

	(void)receipt;
	if (status != LIMINAL_OK) {
		bench_fail(peer->bench, NULL);
		return;
	}
	bench_note(peer, peer->sent_ns[slot]);
	atomic_fetch_add_explicit(&peer->done, 1, memory_order_relaxed);
}

static bool bench_publish(struct bench_peer *peer)
{
	struct liminal_publish_options options = LIMINAL_PUBLISH_OPTIONS_INIT;
	struct bench *bench = peer->bench;
	int64_t now_ns = clock_mono_ns();

	options.published = bench_pub_answered;
	options.context = peer;
	peer->sent_ns[peer->sent % (2 * bench->window)] = now_ns;
	bench_fill(peer, ++peer->sent, now_ns);
	return liminal_publish_async(peer->client, bench->name, peer->payload, bench->size,
				     &options) == LIMINAL_OK ||
	       bench_fail(bench, NULL);
}

static bool bench_pub_open(struct bench_peer *peer)
{
	peer->sent_ns = calloc(2 * peer->bench->window, sizeof(*peer->sent_ns));
	return peer->sent_ns != NULL || bench_fail(peer->bench, "out of memory");
}

static bool bench_pub(struct bench_peer *peer)
{
	while (bench_take(peer->bench))
		if (!bench_publish(peer))
			break;
	return liminal_flush(peer->client, LIMINAL_FOREVER, NULL) == LIMINAL_OK ||
	       bench_fail(peer->bench, NULL);
}

/* --- fan: one publisher, at most a window ahead of the slowest of the subscribers ----------------
 */

static bool bench_fan_open(struct bench_peer *peer)
{
	struct liminal_subscription *subscription;

	return liminal_subscribe(peer->client, peer->bench->name, NULL, &subscription) ==
		       LIMINAL_OK ||
	       bench_fail(peer->bench, NULL);
}

static bool bench_fan_take(struct bench_peer *peer, const struct liminal_delivery *delivery)
{
	uint64_t number = atomic_load(&peer->done) + 1;
	struct bench *bench = peer->bench;
	struct bench_head head;

	if (delivery->length < sizeof(head))
		return true; /* somebody else's */
	memcpy(&head, delivery->payload, sizeof(head));
	if (head.run != bench->run)
		return true;
	bench_fill(peer, number, head.sent_ns);
	if (delivery->length != bench->size ||
	    memcmp(delivery->payload, peer->payload, bench->size) != 0)
		return bench_fail(bench, head.number > number ? "a message was not delivered"
					 : head.number < number
						 ? "a message was delivered twice"
						 : "a message was delivered altered");
	bench_note(peer, head.sent_ns);
	atomic_store(&peer->done, number);
	if (number >= atomic_load(&bench->awaited)) {
		pthread_mutex_lock(&bench->lock);
		pthread_cond_broadcast(&bench->changed);
		pthread_mutex_unlock(&bench->lock);
	}
	return true;
}

static bool bench_fan(struct bench_peer *peer)
{
	int64_t heard_ns = clock_mono_ns();
	struct bench *bench = peer->bench;
	struct liminal_delivery *delivery;
	int status;

	while (atomic_load(&peer->done) < atomic_load(&bench->total)) {
		/* Short, so that the end, and the failure of another one, are noticed. */
		status = liminal_next_any(peer->client, 100, NULL, &delivery);
		if (status == LIMINAL_OK) {
			bool good = bench_fan_take(peer, delivery);

			liminal_delivery_free(&delivery);
			if (!good)
				return false;
			heard_ns = clock_mono_ns();
		} else if (status != LIMINAL_TIMEOUT) {
			return bench_fail(bench, NULL);
		} else if (clock_mono_ns() - heard_ns > BENCH_SILENCE_MS * NS_PER_MS) {
			return bench_fail(bench, "messages were not delivered");
		}
	}
	return true;
}

static uint64_t bench_fan_slowest(const struct bench *bench)
{
	uint64_t slowest = UINT64_MAX;

	for (size_t i = 0; i < bench->peer_count; i++) {
		uint64_t done = atomic_load(&bench->peers[i].done);

		slowest = done < slowest ? done : slowest;
	}
	return slowest;
}

/* Waits for half of the window, so that the next ones leave together again. */
static void bench_fan_wait(struct bench *bench, uint64_t sent)
{
	uint64_t awaited = sent - bench->window / 2;

	pthread_mutex_lock(&bench->lock);
	atomic_store(&bench->awaited, awaited);
	while (bench_fan_slowest(bench) < awaited && !atomic_load(&bench->over))
		pthread_cond_wait(&bench->changed, &bench->lock);
	atomic_store(&bench->awaited, UINT64_MAX);
	pthread_mutex_unlock(&bench->lock);
}

static bool bench_fan_partner(struct bench_peer *peer)
{
	struct bench *bench = peer->bench;
	bool good = true;

	while (good && bench_take(bench)) {
		good = bench_publish(peer);
		if (peer->sent - bench_fan_slowest(bench) < bench->window)
			continue;
		/* What the library gathers would not be delivered. */
		if (liminal_flush(peer->client, LIMINAL_FOREVER, NULL) != LIMINAL_OK)
			good = bench_fail(bench, NULL);
		bench_fan_wait(bench, peer->sent);
	}
	if (good && liminal_flush(peer->client, LIMINAL_FOREVER, NULL) != LIMINAL_OK)
		good = bench_fail(bench, NULL);
	atomic_store(&bench->total, good ? peer->sent : 0);
	return good;
}

/* --- request: requesters, and one that serves them ----------------------------------------------
 */

static bool bench_request_open(struct bench_peer *peer)
{
	return liminal_converse(peer->client, peer->bench->name, &peer->conversation) ==
		       LIMINAL_OK ||
	       bench_fail(peer->bench, NULL);
}

static bool bench_request(struct bench_peer *peer)
{
	struct bench *bench = peer->bench;
	bool good = true, same;
	int64_t begin_ns;
	size_t length;
	void *reply;

	while (good && bench_take(bench)) {
		begin_ns = clock_mono_ns();
		bench_fill(peer, ++peer->sent, begin_ns);
		if (liminal_request(peer->conversation, peer->payload, bench->size,
				    BENCH_SILENCE_MS, &reply, &length) != LIMINAL_OK)
			return bench_fail(bench, NULL);
		bench_note(peer, begin_ns);
		same = length == bench->size && memcmp(reply, peer->payload, length) == 0;
		liminal_free(reply);
		if (!same)
			good = bench_fail(bench, "a reply is not the request: somebody else "
						 "serves this queue");
		atomic_fetch_add_explicit(&peer->done, 1, memory_order_relaxed);
	}
	return good;
}

static bool bench_serve_open(struct bench_peer *peer)
{
	struct liminal_worker_options options = LIMINAL_WORKER_OPTIONS_INIT;

	options.queue = peer->bench->name;
	options.identity = "liminal bench";
	return liminal_register(peer->client, &options) == LIMINAL_OK ||
	       bench_fail(peer->bench, NULL);
}

static void bench_echo(void *context, struct liminal_job *job)
{
	struct bench_peer *peer = context;
	const void *payload;
	size_t length;

	peer->answered++;
	payload = liminal_job_payload(job, &length);
	(void)liminal_job_reply(job, payload, length); /* liminal_serve says why not */
}

static bool bench_serve(struct bench_peer *peer)
{
	return liminal_serve(peer->client, bench_echo, peer) == LIMINAL_OK ||
	       bench_fail(peer->bench, NULL);
}

/* In the order of their names in the table of commands. */
static const struct bench_case bench_cases[] = {
	{"publisher", "messages acknowledged", bench_pub_open, bench_pub, NULL, NULL},
	{"subscriber", "deliveries, once and in order", bench_fan_open, bench_fan, bench_pub_open,
	 bench_fan_partner},
	{"requester", "replies", bench_request_open, bench_request, bench_serve_open, bench_serve},
};

/* --- running ------------------------------------------------------------------------------------
 */

static bool bench_open(struct bench *bench, struct bench_peer *peer,
		       bool (*open)(struct bench_peer *peer))
{
	struct liminal_options options = LIMINAL_OPTIONS_INIT;

	peer->bench = bench;
	peer->payload = malloc(bench->size);
	if (peer->payload == NULL)
		return bench_fail(bench, "out of memory");
	memset(peer->payload, '.', bench->size);
	options.server = bench->cli->server;
	options.token = bench->cli->token;
	options.token_length = bench->cli->token_length;
	options.window = (unsigned)bench->window;
	if (liminal_open(&options, &peer->client) != LIMINAL_OK)
		return bench_fail(bench, NULL);
	return open(peer);
}

static void *bench_peer_main(void *argument)
{
	struct bench_peer *peer = argument;
	struct bench *bench = peer->bench;

	bench->what->work(peer);
	pthread_mutex_lock(&bench->lock);
	bench->running--;
	pthread_cond_broadcast(&bench->changed);
	pthread_mutex_unlock(&bench->lock);
	return NULL;
}

static void *bench_partner_main(void *argument)
{
	struct bench_peer *peer = argument;

	peer->bench->what->partner(peer);
	return NULL;
}

static uint64_t bench_done(const struct bench *bench)
{
	uint64_t done = 0;

	for (size_t i = 0; i < bench->peer_count; i++)
		done += atomic_load(&bench->peers[i].done);
	return done;
}

/* Waits until all peers are done, and shows how far they are. */
static void bench_watch(struct bench *bench)
{
	bool show = isatty(STDERR_FILENO) == 1;
	uint64_t before = 0, now;
	struct timespec until;

	pthread_mutex_lock(&bench->lock);
	while (bench->running > 0) {
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += BENCH_PROGRESS_NS;
		until.tv_sec += until.tv_nsec / NS_PER_S;
		until.tv_nsec %= NS_PER_S;
		if (pthread_cond_timedwait(&bench->changed, &bench->lock, &until) == 0 || !show)
			continue;
		now = bench_done(bench);
		fprintf(stderr, "\r%.1f s, %" PRIu64 " %s, %" PRIu64 "/s ",
			(double)(clock_mono_ns() - bench->begin_ns) / (double)NS_PER_S, now,
			bench->what->done, (now - before) * (NS_PER_S / BENCH_PROGRESS_NS));
		before = now;
	}
	if (before > 0)
		fprintf(stderr, "\n");
	pthread_mutex_unlock(&bench->lock);
}

static void bench_run_threads(struct bench *bench, double seconds)
{
	struct bench_peer *partner = &bench->peers[bench->peer_count];
	bool partnered = bench->what->partner == NULL;
	size_t started = 0;

	bench->begin_ns = clock_mono_ns();
	bench->until_ns = bench->begin_ns + (int64_t)(seconds * (double)NS_PER_S);
	if (!partnered)
		partnered =
			pthread_create(&partner->thread, NULL, bench_partner_main, partner) == 0;
	while (partnered && started < bench->peer_count) {
		struct bench_peer *peer = &bench->peers[started];

		pthread_mutex_lock(&bench->lock);
		bench->running++;
		pthread_mutex_unlock(&bench->lock);
		if (pthread_create(&peer->thread, NULL, bench_peer_main, peer) != 0) {
			pthread_mutex_lock(&bench->lock);
			bench->running--;
			pthread_mutex_unlock(&bench->lock);
			break;
		}
		started++;
	}
	if (started < bench->peer_count) {
		bench_fail(bench, "cannot start so many threads");
		atomic_store(&bench->total, 0);
	}
	bench_watch(bench);
	for (size_t i = 0; i < started; i++)
		pthread_join(bench->peers[i].thread, NULL);
	if (bench->what->partner == NULL || !partnered)
		return;
	/* Only a worker is there still; without a connection it has ended, too. */
	(void)liminal_leave(partner->client, BENCH_SILENCE_MS);
	pthread_join(partner->thread, NULL);
	if (bench->what->partner == bench_serve && partner->answered < bench_done(bench))
		bench_fail(bench, "somebody else has answered requests to this queue");
}

/* --- the result ---------------------------------------------------------------------------------
 */

/* The latency that a part of all does not exceed. */
static double bench_latency_ms(const uint64_t latencies[BENCH_BUCKETS], uint64_t count, double part)
{
	uint64_t below = 0, wanted = (uint64_t)(part * (double)count);
	size_t bucket = 0;

	if (count == 0)
		return 0;
	while (bucket < BENCH_BUCKETS - 1 && (below += latencies[bucket]) <= wanted)
		bucket++;
	return (double)bench_bucket_ns(bucket) / (double)NS_PER_MS;
}

static void bench_print(const struct bench *bench)
{
	static const struct {
		const char *name;
		double part;
	} parts[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"p99.9", .999}};
	double seconds, rate;
	json_t *latency = json_object(), *result;
	uint64_t done = bench_done(bench);
	uint64_t latencies[BENCH_BUCKETS] = {0};
	int64_t slowest_ns = 0, end_ns = bench->begin_ns;

	for (size_t i = 0; i < bench->peer_count; i++) {
		const struct bench_peer *peer = &bench->peers[i];

		for (size_t j = 0; j < BENCH_BUCKETS; j++)
			latencies[j] += peer->latencies[j];
		slowest_ns = peer->slowest_ns > slowest_ns ? peer->slowest_ns : slowest_ns;
		end_ns = peer->end_ns > end_ns ? peer->end_ns : end_ns;
	}
	seconds = (double)(end_ns - bench->begin_ns) / (double)NS_PER_S;
	rate = seconds > 0 ? (double)done / seconds : 0;
	for (size_t i = 0; i < ARRAY_LENGTH(parts); i++)
		json_object_set_new(latency, parts[i].name,
				    json_real(bench_latency_ms(latencies, done, parts[i].part)));
	json_object_set_new(latency, "max", json_real((double)slowest_ns / (double)NS_PER_MS));
	result = json_pack("{s:s, s:I, s:I, s:I, s:f, s:f, s:o}", "case", bench->what_name,
			   "number", (json_int_t)bench->peer_count, "bytes",
			   (json_int_t)bench->size, "done", (json_int_t)done, "seconds", seconds,
			   "per_second", rate, "latency_ms", latency);
	if (bench->cli->json) {
		cli_json_print(result);
		return;
	}
	printf("%" PRIu64 " %s in %.2f s; %zu %s%s, %zu bytes each\n", done, bench->what->done,
	       seconds, bench->peer_count, bench->what->peer, bench->peer_count == 1 ? "" : "s",
	       bench->size);
	printf("%.0f/s, %.1f MB/s\n", rate, rate * (double)bench->size / 1e6);
	for (size_t i = 0; i < ARRAY_LENGTH(parts); i++)
		printf("%s %.3f ms, ", parts[i].name,
		       json_real_value(json_object_get(latency, parts[i].name)));
	printf("max %.3f ms\n", json_real_value(json_object_get(latency, "max")));
	json_decref(result);
}

static void bench_close(struct bench *bench)
{
	for (size_t i = 0; i <= bench->peer_count; i++) {
		struct bench_peer *peer = &bench->peers[i];

		liminal_close(&peer->client); /* with its conversation */
		free(peer->payload);
		free(peer->sent_ns);
	}
	free(bench->peers);
}

/* The parser lets only those words pass that stand in the table of commands. */
static const struct bench_case *bench_find(const struct cli_arguments *arguments)
{
	size_t i = 0;

	while (strcmp(arguments->command->first[i], arguments->operands[0]) != 0)
		i++;
	return &bench_cases[i];
}

int bench_run(struct cli *cli, const struct cli_arguments *arguments)
{
	struct sigaction action = {.sa_handler = bench_on_signal, .sa_flags = SA_RESETHAND};
	struct bench bench = {.cli = cli,
			      .what = bench_find(arguments),
			      .what_name = arguments->operands[0],
			      .name = arguments->operands[1],
			      .count = UINT64_MAX,
			      .lock = PTHREAD_MUTEX_INITIALIZER,
			      .changed = PTHREAD_COND_INITIALIZER};
	uint64_t size = 128, window = 256, peers = 1;
	int time_ms = 5000;
	bool opened = true;

	if (!cli_value_count(arguments, 'b', BENCH_BYTES_MAX, &size) ||
	    !cli_value_count(arguments, 'c', UINT64_MAX - 1, &bench.count) ||
	    !cli_value_count(arguments, 'n', BENCH_PEERS_MAX, &peers) ||
	    !cli_value_count(arguments, 'o', BENCH_WINDOW_MAX, &window) ||
	    !cli_value_seconds(arguments, 't', &time_ms))
		return CLI_USAGE;
	if (size < sizeof(struct bench_head))
		return cli_usage(arguments->command, "a payload has %zu bytes at least",
				 sizeof(struct bench_head));
	bench.size = (size_t)size;
	bench.window = (size_t)window;
	bench.peer_count = (size_t)peers;
	bench.run = (uint64_t)clock_wall_ms() << 20 ^ (uint64_t)getpid();
	atomic_init(&bench.taken, 0);
	atomic_init(&bench.over, false);
	atomic_init(&bench.total, UINT64_MAX);
	atomic_init(&bench.awaited, UINT64_MAX);
	bench.peers = calloc(bench.peer_count + 1, sizeof(*bench.peers));
	if (bench.peers == NULL) {
		cli_error("out of memory");
		return CLI_FAILED;
	}
	sigemptyset(&action.sa_mask);
	sigaction(SIGINT, &action, NULL);
	if (bench.what->partner != NULL)
		opened = bench_open(&bench, &bench.peers[bench.peer_count],
				    bench.what->partner_open);
	for (size_t i = 0; opened && i < bench.peer_count; i++)
		opened = bench_open(&bench, &bench.peers[i], bench.what->open);
	if (opened)
		bench_run_threads(&bench, (double)time_ms / 1000);
	if (bench.status == CLI_DONE)
		bench_print(&bench);
	bench_close(&bench);
	return bench.status;
}
