/*
 * One run: a server, the clients of a load on their threads, an interval that is measured, and
 * the proof that nothing was lost.
 */
#include "bench/bench.h"

#include <stdlib.h>
#include <string.h>

#define THREADS_MAX 2

/* --- the scene ----------------------------------------------------------------------------- */

struct scene {
	const struct load *load;
	struct server server;
	struct client *clients; /* those that are active come first */
	size_t count;
	struct crew crews[THREADS_MAX];
	atomic_bool stop;
	double connection_bytes, open_s;
};

static size_t load_active(const struct load *load)
{
	return load->publishers + load->subscribers + load->requesters + (load->requesters > 0);
}

static size_t load_clients(const struct load *load)
{
	return load_active(load) + load->stalled + load->silent + (load->parked > 0 ? 2 : 0);
}

static unsigned load_channels(const struct load *load)
{
	return load->channels > 0 ? load->channels : 1;
}

static bool scene_add(struct scene *scene, enum role role, uint32_t index, uint32_t channel,
		      uint64_t window)
{
	const struct load *load = scene->load;
	struct client *client = &scene->clients[scene->count++];

	*client = (struct client){.peer = scene->server.peer,
				  .role = role,
				  .index = index,
				  .position = {.credit = 1024},
				  .channel = channel,
				  .channels = load_channels(load),
				  .payload = load->payload > 0 ? load->payload : PAYLOAD_DEFAULT,
				  .window = window,
				  .fd = -1};
	if ((load->stalled > 0 || load->durable) && role == ROLE_PUBLISHER) {
		client->sent_ns = calloc(LATENCY_SLOTS, sizeof(*client->sent_ns));
		if (client->sent_ns == NULL)
			return false;
	}
	if (load->durable && role == ROLE_PUBLISHER) {
		client->latencies = calloc(1, sizeof(*client->latencies));
		if (client->latencies == NULL)
			return false;
	}
	return client_open(client, scene->server.port);
}

static bool scene_add_several(struct scene *scene, enum role role, unsigned count, uint32_t channel,
			      uint64_t window)
{
	for (unsigned i = 0; i < count; i++)
		if (!scene_add(scene, role, i, channel, window))
			return false;
	return true;
}

/* Requests that stay: their worker never reads. */
static bool scene_park(struct scene *scene)
{
	unsigned count = scene->load->parked;
	struct client *requester;

	if (count == 0)
		return true;
	if (!scene_add(scene, ROLE_WORKER, 0, 1, 0) ||
	    !scene_add(scene, ROLE_REQUESTER, 0, 1, count))
		return false;
	requester = &scene->clients[scene->count - 1];
	client_send(requester, count);
	while (!client_flush(requester) && requester->failure == NULL)
		continue;
	return requester->failure == NULL;
}

/* Subscribers are there before their publisher, workers before their requesters. */
static bool scene_open(struct scene *scene)
{
	const struct load *load = scene->load;
	unsigned quiet = load_channels(load); /* the channel behind those that are used */
	int64_t before = server_resident_bytes(&scene->server), began_ns = bench_now_ns();

	if (!scene_add_several(scene, ROLE_SUBSCRIBER, load->subscribers, 0, 0) ||
	    !scene_add_several(scene, ROLE_WORKER, load->requesters > 0, 0, 0) ||
	    !scene_add_several(scene, ROLE_PUBLISHER, load->publishers, 0, load->window) ||
	    !scene_add_several(scene, ROLE_REQUESTER, load->requesters, 0, load->window) ||
	    !scene_add_several(scene, ROLE_SUBSCRIBER, load->stalled, 0, 0) ||
	    !scene_add_several(scene, ROLE_SUBSCRIBER, load->silent, quiet, 0) ||
	    !scene_park(scene))
		return false;
	scene->open_s = (double)(bench_now_ns() - began_ns) / 1e9;
	if (load->silent > 0)
		scene->connection_bytes =
			(double)(server_resident_bytes(&scene->server) - before) / load->silent;
	return true;
}

/* Deals the active clients out to the crews. */
static bool scene_hire(struct scene *scene)
{
	const struct load *load = scene->load;
	size_t active = load_active(load);

	for (size_t i = 0; i < load->threads; i++) {
		if (!crew_prepare(&scene->crews[i], active, &scene->stop))
			return false;
		scene->crews[i].fan = load->subscribers > 0 && !load->durable;
	}
	for (size_t i = 0; i < active; i++) {
		struct crew *crew = &scene->crews[i % load->threads];

		crew->clients[crew->count++] = &scene->clients[i];
		if (scene->clients[i].sent_ns != NULL && crew->fan)
			crew->timed = &scene->clients[i];
	}
	for (size_t i = 0; i < load->threads; i++)
		crew_start(&scene->crews[i]);
	return true;
}

static uint64_t scene_sent(const struct scene *scene)
{
	uint64_t sent = 0;

	for (size_t i = 0; i < load_active(scene->load); i++)
		if (scene->clients[i].window > 0)
			sent += scene->clients[i].sent;
	return sent;
}

/* Where publishers did not wait for them, subscribers may be behind. */
static void scene_catch_up(struct scene *scene)
{
	struct input input = {.bytes = malloc(INPUT_SIZE), .capacity = INPUT_SIZE};
	uint64_t sent = scene_sent(scene);

	for (size_t i = 0; i < scene->load->subscribers && input.bytes != NULL; i++)
		while (scene->clients[i].received < sent && scene->clients[i].failure == NULL)
			client_receive(&scene->clients[i], &input, true);
	free(input.bytes);
}

static void scene_dismiss(struct scene *scene)
{
	atomic_store(&scene->stop, true);
	for (size_t i = 0; i < scene->load->threads; i++)
		crew_end(&scene->crews[i]);
	if (scene->load->durable)
		scene_catch_up(scene);
}

/* --- measuring ----------------------------------------------------------------------------- */

struct sample {
	int64_t now_ns, cpu_ns;
	uint64_t progress, delivered;
};

static struct sample scene_sample(const struct scene *scene)
{
	struct sample sample = {.progress = 0};

	for (size_t i = 0; i < scene->load->threads; i++) {
		sample.progress +=
			atomic_load_explicit(&scene->crews[i].progress, memory_order_relaxed);
		sample.delivered +=
			atomic_load_explicit(&scene->crews[i].delivered, memory_order_relaxed);
	}
	sample.cpu_ns = server_cpu_ns(&scene->server);
	sample.now_ns = bench_now_ns();
	return sample;
}

static void sleep_s(double seconds)
{
	struct timespec pause = {.tv_sec = (time_t)seconds};

	pause.tv_nsec = (long)((seconds - (double)pause.tv_sec) * 1e9);
	(void)nanosleep(&pause, NULL);
}

static void scene_measure(struct scene *scene, const struct pace *pace, struct numbers *numbers)
{
	struct sample first, last;
	double seconds, cpu_s, messages;

	sleep_s(pace->warm_up_s);
	first = scene_sample(scene);
	sleep_s(pace->measured_s);
	last = scene_sample(scene);
	seconds = (double)(last.now_ns - first.now_ns) / 1e9;
	cpu_s = (double)(last.cpu_ns - first.cpu_ns) / 1e9;
	messages = (double)(last.progress - first.progress);
	numbers->rate = messages / seconds;
	numbers->delivered = (double)(last.delivered - first.delivered) / seconds;
	numbers->cpu_us = messages > 0 ? cpu_s * 1e6 / messages : 0;
	numbers->cpu_share = cpu_s / seconds;
}

/* Each publish acknowledged, each message there once and in order: or the run does not count. */
static const char *scene_verify(const struct scene *scene)
{
	const struct load *load = scene->load;
	bool silent = load->subscribers > 0 && scene->server.peer->fan_is_silent;
	uint64_t sent = scene_sent(scene);

	for (size_t i = 0; i < scene->count; i++)
		if (scene->clients[i].failure != NULL)
			return scene->clients[i].failure;
	for (size_t i = 0; i < load_active(load); i++) {
		const struct client *client = &scene->clients[i];

		if (client->window == 0)
			continue;
		if (client->role == ROLE_REQUESTER && client->received != client->sent)
			return "a request was not answered once";
		if (client->role == ROLE_PUBLISHER && !silent &&
		    client->acknowledged != client->sent)
			return "a publish was not acknowledged once";
	}
	for (size_t i = 0; i < load->subscribers; i++)
		if (scene->clients[i].received != sent)
			return "a subscriber did not get each message once";
	return load->idle || sent > 0 ? NULL : "nothing was sent";
}

static void scene_latencies(const struct scene *scene, struct numbers *numbers)
{
	struct latencies all = {.counts = {0}};

	for (size_t i = 0; i < scene->count; i++)
		if (scene->clients[i].latencies != NULL)
			latencies_merge(&all, scene->clients[i].latencies);
	numbers->p50_ms = latencies_ms(&all, .5);
	numbers->p99_ms = latencies_ms(&all, .99);
}

static double scene_slowest_ms(const struct scene *scene)
{
	int64_t slowest_ns = 0;

	for (size_t i = 0; i < scene->load->subscribers; i++)
		if (scene->clients[i].slowest_ns > slowest_ns)
			slowest_ns = scene->clients[i].slowest_ns;
	return (double)slowest_ns / 1e6;
}

static void scene_close(struct scene *scene)
{
	for (size_t i = 0; i < scene->count; i++)
		client_close(&scene->clients[i]);
	free(scene->clients);
	server_stop(&scene->server);
}

struct numbers run(const struct load *load, const struct peer *peer, const struct pace *pace)
{
	struct demand demand = {.connections = (unsigned)load_clients(load) + 16,
				.channels = load_channels(load) + 1,
				.pending = load->parked,
				.max_messages = load->max_messages};
	struct scene scene = {.load = load};
	struct numbers numbers = {.valid = false};
	const char *why = "its clients cannot be set up";

	if (peer->alone != NULL)
		return peer->alone(load, pace);
	bench_pin(load->one_core);
	scene.clients = calloc(load_clients(load), sizeof(*scene.clients));
	if (scene.clients != NULL && server_start(&scene.server, peer, &demand)) {
		if (scene_open(&scene)) {
			if (scene_hire(&scene))
				scene_measure(&scene, pace, &numbers);
			scene_dismiss(&scene);
		}
		why = scene_verify(&scene);
		if (why == NULL && !load->idle && !(numbers.rate > 0))
			why = "nothing arrived in the measured interval";
	}
	numbers.valid = why == NULL;
	scene_latencies(&scene, &numbers);
	numbers.slowest_ms = scene_slowest_ms(&scene);
	numbers.connection_bytes = scene.connection_bytes;
	numbers.open_s = scene.open_s;
	if (why != NULL)
		(void)fprintf(stderr, "bench: a run of %s against %s does not count: %s\n",
			      load->name, peer->name, why);
	scene_close(&scene);
	bench_pin(false);
	return numbers;
}
