/*
 * Clients on a thread, which owns them: it sends, receives, and keeps each sender's window full.
 * The main thread looks at a counter meanwhile.
 */
#include "bench/bench.h"

#include <poll.h>
#include <stdlib.h>

/* A run ends by the clock; this ends it should the clock fail. */
#define MESSAGES_MAX UINT64_C(1000000000)

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

static uint64_t crew_delivered(const struct crew *crew)
{
	uint64_t slowest = crew_slowest(crew);

	return slowest == UINT64_MAX ? 0 : slowest;
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

/* What came was acknowledged now. */
static void crew_time(struct client *client, uint64_t from)
{
	int64_t now_ns = bench_now_ns();

	for (; from < client->acknowledged; from++)
		latencies_add(client->latencies, now_ns - client->sent_ns[from % LATENCY_SLOTS]);
}

/* Reads; the oldest message of what came is the one that took longest. */
static void crew_receive(struct crew *crew, struct client *client, bool wait)
{
	uint64_t first = client->received, acknowledged = client->acknowledged;
	int64_t took_ns;

	client_receive(client, &crew->input, wait);
	crew->failed |= client->failure != NULL;
	if (client->latencies != NULL)
		crew_time(client, acknowledged);
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
		if (!crew->fan)
			atomic_store_explicit(&crew->delivered, crew_delivered(crew),
					      memory_order_relaxed);
		if (stop && crew_is_done(crew))
			break;
		crew_wait(crew);
	} while (!crew->failed);
	return NULL;
}

bool crew_prepare(struct crew *crew, size_t count, atomic_bool *stop)
{
	crew->clients = calloc(count, sizeof(*crew->clients));
	crew->polls = calloc(count, sizeof(*crew->polls));
	crew->input.bytes = malloc(INPUT_SIZE);
	crew->input.capacity = INPUT_SIZE;
	crew->stop = stop;
	return crew->clients != NULL && crew->polls != NULL && crew->input.bytes != NULL;
}

void crew_start(struct crew *crew)
{
	crew->started = pthread_create(&crew->thread, NULL, crew_run, crew) == 0;
}

void crew_end(struct crew *crew)
{
	if (crew->started)
		(void)pthread_join(crew->thread, NULL);
	free(crew->clients);
	free(crew->polls);
	free(crew->input.bytes);
}
