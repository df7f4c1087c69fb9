/*
 * One run: a server, the clients of a load on their threads, an interval that is measured, and
 * the proof that nothing was lost.
 *
 * A client thread owns its clients; the main thread looks at one counter of each, at the start
 * and at the end of the interval, while traffic goes on.
 */
#include "bench/bench.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define THREADS_MAX 2
#define INPUT_SIZE (256 * 1024)

/* A run ends by the clock; this ends it should the clock fail. */
#define MESSAGES_MAX UINT64_C(1000000000)

struct crew {
	struct client **clients;
	size_t count;
	struct pollfd *polls;
	struct input input;
	pthread_t thread;
	bool started;

	/* A fan: its publisher waits for the slowest of its subscribers. */
	bool fan;
	const struct client *timed; /* the publisher, where latency is asked for; or NULL */

	bool failed; /* a client of it has */

	atomic_uint_fast64_t progress; /* messages done, for the main thread */
	atomic_bool *stop;
};

/* --- one thread's work --------------------------------------------------------------------- */

/* How far the slowest subscriber of the crew is. */
static uint64_t crew_slowest(const struct crew *crew)
{
	uint64_t slowest = UINT64_MAX;

	for (size_t i = 0; i < crew->count; i++)
		if (crew->clients[i]->role == ROLE_SUBSCRIBER &&
		    crew->clients[i]->received < slowest)
			slowest = crew->clients[i]->received;
	return slowest;
}

/* What a sender has sent and is done with. */
static uint64_t crew_done(const struct crew *crew, const struct client *client)
{
	if (client->role == ROLE_REQUESTER)
		return client->received;
	return crew->fan ? crew_slowest(crew) : client->acknowledged;
}

/* Fills each sender's window again, once half of it is done. */
static uint64_t crew_send(struct crew *crew, bool stop)
{
	uint64_t progress = 0;

	for (size_t i = 0; i < crew->count; i++) {
		struct client *client = crew->clients[i];
		uint64_t done, ahead;

		if (client->window == 0)
			continue;
		done = crew_done(crew, client);
		progress += done;
		ahead = client->sent - done;
		if (stop || client->out_left > 0 || ahead > client->window / 2 ||
		    client->sent >= MESSAGES_MAX)
			continue;
		client_send(client,
			    (client->window - ahead) / client->unit.count * client->unit.count);
	}
	return progress;
}

/* Everything that was sent has come back, in every form that was due. */
static bool crew_is_done(const struct crew *crew)
{
	for (size_t i = 0; i < crew->count; i++) {
		const struct client *client = crew->clients[i];
		bool silent = crew->fan && client->peer->fan_is_silent;

		if (client->window == 0)
			continue;
		if (client->sent > crew_done(crew, client))
			return false;
		if (client->role == ROLE_PUBLISHER && !silent &&
		    client->acknowledged < client->sent)
			return false;
	}
	return true;
}

/* Reads; the oldest message of what came is the one that took longest. */
static void crew_receive(struct crew *crew, struct client *client, bool wait)
{
	uint64_t first = client->received;
	int64_t took_ns;

	client_receive(client, &crew->input, wait);
	crew->failed |= client->failure != NULL;
	if (crew->timed == NULL || client->received == first)
		return;
	took_ns = bench_now_ns() - crew->timed->sent_ns[first % LATENCY_SLOTS];
	if (took_ns > client->slowest_ns)
		client->slowest_ns = took_ns;
}

static void crew_handle(struct crew *crew, struct client *client, short events)
{
	if (events & POLLOUT)
		(void)client_flush(client);
	/* A worker's replies must have left before there are more of them. */
	if ((events & (POLLIN | POLLERR | POLLHUP)) &&
	    (client->role != ROLE_WORKER || client->out_left == 0))
		crew_receive(crew, client, false);
}

/* One connection with nothing to send needs no poll: the client costs less. */
static void crew_wait(struct crew *crew)
{
	int ready;

	if (crew->count == 1 && crew->clients[0]->out_left == 0) {
		crew_receive(crew, crew->clients[0], true);
		return;
	}
	for (size_t i = 0; i < crew->count; i++)
		crew->polls[i] = (struct pollfd){
			.fd = crew->clients[i]->fd,
			.events = (short)(POLLIN | (crew->clients[i]->out_left > 0 ? POLLOUT : 0))};
	ready = poll(crew->polls, (nfds_t)crew->count, PATIENCE_S * 1000);
	if (ready == 0) {
		client_fail(crew->clients[0], "nothing moved for too long");
		crew->failed = true;
	}
	for (size_t i = 0; i < crew->count && ready > 0; i++) {
		if (crew->polls[i].revents != 0)
			crew_handle(crew, crew->clients[i], crew->polls[i].revents);
	}
}

static void *crew_run(void *argument)
{
	struct crew *crew = argument;
	bool stop;

	do {
		stop = atomic_load_explicit(crew->stop, memory_order_relaxed);
		atomic_store_explicit(&crew->progress, crew_send(crew, stop), memory_order_relaxed);
		if (stop && crew_is_done(crew))
			break;
		crew_wait(crew);
	} while (!crew->failed);
	return NULL;
}

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
				  .channel = channel,
				  .channels = load_channels(load),
				  .payload = load->payload > 0 ? load->payload : PAYLOAD_DEFAULT,
				  .window = window,
				  .fd = -1};
	if (load->stalled > 0 && role == ROLE_PUBLISHER) {
		client->sent_ns = calloc(LATENCY_SLOTS, sizeof(*client->sent_ns));
		if (client->sent_ns == NULL)
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
		struct crew *crew = &scene->crews[i];

		crew->clients = calloc(active, sizeof(*crew->clients));
		crew->polls = calloc(active, sizeof(*crew->polls));
		crew->input.bytes = malloc(INPUT_SIZE);
		crew->input.capacity = INPUT_SIZE;
		crew->fan = load->subscribers > 0;
		crew->stop = &scene->stop;
		if (crew->clients == NULL || crew->polls == NULL || crew->input.bytes == NULL)
			return false;
	}
	for (size_t i = 0; i < active; i++) {
		struct crew *crew = &scene->crews[i % load->threads];

		crew->clients[crew->count++] = &scene->clients[i];
		if (scene->clients[i].sent_ns != NULL)
			crew->timed = &scene->clients[i];
	}
	for (size_t i = 0; i < load->threads; i++)
		scene->crews[i].started = pthread_create(&scene->crews[i].thread, NULL, crew_run,
							 &scene->crews[i]) == 0;
	return true;
}

static void scene_dismiss(struct scene *scene)
{
	atomic_store(&scene->stop, true);
	for (size_t i = 0; i < scene->load->threads; i++) {
		struct crew *crew = &scene->crews[i];

		if (crew->started)
			(void)pthread_join(crew->thread, NULL);
		free(crew->clients);
		free(crew->polls);
		free(crew->input.bytes);
	}
}

/* --- measuring ----------------------------------------------------------------------------- */

struct sample {
	int64_t now_ns, cpu_ns;
	uint64_t progress;
};

static struct sample scene_sample(const struct scene *scene)
{
	struct sample sample = {.progress = 0};

	for (size_t i = 0; i < scene->load->threads; i++)
		sample.progress +=
			atomic_load_explicit(&scene->crews[i].progress, memory_order_relaxed);
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
	numbers->cpu_us = messages > 0 ? cpu_s * 1e6 / messages : 0;
	numbers->cpu_share = cpu_s / seconds;
}

/* Each publish acknowledged, each message there once and in order: or the run does not count. */
static const char *scene_verify(const struct scene *scene)
{
	const struct load *load = scene->load;
	bool silent = load->subscribers > 0 && scene->server.peer->fan_is_silent;
	uint64_t sent = 0;

	for (size_t i = 0; i < scene->count; i++)
		if (scene->clients[i].failure != NULL)
			return scene->clients[i].failure;
	for (size_t i = 0; i < load_active(load); i++) {
		const struct client *client = &scene->clients[i];

		if (client->window == 0)
			continue;
		sent += client->sent;
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
				.pending = load->parked};
	struct scene scene = {.load = load};
	struct numbers numbers = {.valid = false};
	const char *why = "its clients cannot be set up";

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
