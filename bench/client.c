/*
 * One connection of the load generator: sends units, receives, and hands what came to its peer's
 * parser. Nothing is allocated, built or copied per message but its number.
 */
#include "bench/bench.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

int64_t bench_now_ns(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

void client_fail(struct client *client, const char *why)
{
	if (client->failure == NULL)
		client->failure = why;
}

/* --- latencies ----------------------------------------------------------------------------- */

/* Sixteen classes for each power of two: the position of the highest bit, and the four behind it.
 */
static size_t latency_class(uint64_t ns)
{
	size_t shift = 0;

	while (ns >> shift >= 32)
		shift++;
	return shift * 16 + (size_t)(ns >> shift);
}

/* The end of a class. */
static uint64_t latency_of(size_t number)
{
	size_t shift = number < 32 ? 0 : number / 16 - 1;

	return ((uint64_t)(number - shift * 16) + 1) << shift;
}

void latencies_add(struct latencies *latencies, int64_t ns)
{
	size_t number = latency_class(ns > 0 ? (uint64_t)ns : 0);

	latencies->counts[number < LATENCY_CLASSES ? number : LATENCY_CLASSES - 1]++;
}

void latencies_merge(struct latencies *into, const struct latencies *from)
{
	for (size_t i = 0; i < LATENCY_CLASSES; i++)
		into->counts[i] += from->counts[i];
}

double latencies_ms(const struct latencies *latencies, double share)
{
	uint64_t all = 0, below = 0;

	for (size_t i = 0; i < LATENCY_CLASSES; i++)
		all += latencies->counts[i];
	for (size_t i = 0; i < LATENCY_CLASSES && all > 0; i++) {
		below += latencies->counts[i];
		if ((double)below >= share * (double)all)
			return (double)latency_of(i) / 1e6;
	}
	return 0;
}

/* --- opening ------------------------------------------------------------------------------- */

static int connect_to(uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons(port),
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct timeval patience = {.tv_sec = PATIENCE_S};
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

	if (fd < 0)
		return -1;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) != 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) != 0) {
		(void)close(fd);
		return -1;
	}
	return fd;
}

static void put_sender(uint8_t *payload, uint32_t sender)
{
	memcpy(payload + 8, &sender, sizeof(sender));
}

/* The units of a whole window, side by side, so that any number of them is sent at once. */
static bool client_prepare(struct client *client)
{
	size_t count;

	client->peer->describe(client, &client->unit);
	count = client->window / client->unit.count;
	client->units = calloc(count, client->unit.size);
	if (client->units == NULL)
		return false;
	for (size_t i = 0; i < count; i++) {
		uint8_t *unit = client->units + i * client->unit.size;
		uint32_t turn = (uint32_t)(client->index * count + i) % client->channels;

		client->peer->write(client, client->channel + turn, unit);
		for (size_t j = 0; j < client->unit.count; j++)
			put_sender(unit + j * client->unit.frame_size + client->unit.payload_at,
				   client->index);
	}
	return true;
}

bool client_open(struct client *client, uint16_t port)
{
	bool sends = client->role == ROLE_PUBLISHER || client->role == ROLE_REQUESTER;

	client->fd = connect_to(port);
	if (client->fd < 0) {
		client_fail(client, "cannot connect");
		return false;
	}
	return client->peer->hello(client) && (!sends || client_prepare(client));
}

void client_close(struct client *client)
{
	if (client->fd >= 0)
		(void)close(client->fd);
	client->fd = -1;
	free(client->units);
	free(client->added);
	free(client->rest);
	free(client->sent_ns);
	free(client->latencies);
}

bool client_write(struct client *client, const void *bytes, size_t size)
{
	if (send(client->fd, bytes, size, MSG_NOSIGNAL) == (ssize_t)size)
		return true;
	client_fail(client, "cannot say hello");
	return false;
}

bool client_print(struct client *client, const char *format, ...)
{
	char text[512];
	va_list arguments;
	int size;

	va_start(arguments, format);
	size = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	return size >= 0 && (size_t)size < sizeof(text) && client_write(client, text, (size_t)size);
}

bool client_read(struct client *client, void *bytes, size_t size)
{
	if (recv(client->fd, bytes, size, MSG_WAITALL) == (ssize_t)size)
		return true;
	client_fail(client, "the answer to hello is missing");
	return false;
}

bool client_read_until_line(struct client *client, const char *line)
{
	char text[4096];
	size_t size = 0;

	for (;;) {
		char byte;

		if (!client_read(client, &byte, 1))
			return false;
		if (byte != '\n' && byte != '\r' && size < sizeof(text) - 1)
			text[size++] = byte;
		if (byte != '\n')
			continue;
		text[size] = '\0';
		size = 0;
		if (strcmp(text, line) == 0)
			return true;
	}
}

/* --- sending ------------------------------------------------------------------------------- */

bool client_flush(struct client *client)
{
	while (client->out_left > 0) {
		ssize_t sent = send(client->fd, client->out, client->out_left,
				    MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0) {
			if (errno != EAGAIN && errno != EWOULDBLOCK)
				client_fail(client, "the connection was lost while sending");
			return false;
		}
		client->out += sent;
		client->out_left -= (size_t)sent;
	}
	return true;
}

static void stamp_id(uint8_t *frame, size_t at, uint64_t number)
{
	uint16_t id = (uint16_t)(number % UINT16_MAX + 1);

	frame[at] = (uint8_t)(id >> 8);
	frame[at + 1] = (uint8_t)id;
}

void client_send(struct client *client, uint64_t count)
{
	const struct unit *unit = &client->unit;
	size_t units = (size_t)(count / unit->count);
	int64_t now_ns = client->sent_ns != NULL ? bench_now_ns() : 0;

	for (size_t i = 0; i < units; i++) {
		uint8_t *frame = client->units + i * unit->size;

		for (size_t j = 0; j < unit->count; j++, frame += unit->frame_size) {
			memcpy(frame + unit->payload_at, &client->sent, sizeof(client->sent));
			if (unit->id_at != 0)
				stamp_id(frame, unit->id_at, client->sent);
			if (client->sent_ns != NULL)
				client->sent_ns[client->sent % LATENCY_SLOTS] = now_ns;
			client->sent++;
		}
	}
	client->out = client->units;
	client->out_left = units * unit->size;
	(void)client_flush(client);
}

uint8_t *client_add(struct client *client, size_t size)
{
	if (client->added_capacity - client->added_size < size) {
		size_t capacity = 2 * client->added_capacity + size;
		uint8_t *added = realloc(client->added, capacity);

		if (added == NULL)
			abort(); /* a load generator has no use for half a run */
		client->added = added;
		client->added_capacity = capacity;
	}
	client->added_size += size;
	return client->added + client->added_size - size;
}

/* --- receiving ----------------------------------------------------------------------------- */

static void client_keep_rest(struct client *client, const uint8_t *bytes, size_t size)
{
	if (size > client->rest_capacity) {
		free(client->rest);
		client->rest = malloc(size);
		if (client->rest == NULL)
			abort();
		client->rest_capacity = size;
	}
	if (size > 0)
		memcpy(client->rest, bytes, size);
	client->rest_size = size;
}

/* A frame is longer than the input: twice as much for everybody. */
static void input_grow(struct input *input)
{
	uint8_t *bytes = realloc(input->bytes, 2 * input->capacity);

	if (bytes == NULL)
		abort();
	input->bytes = bytes;
	input->capacity *= 2;
}

static void client_send_added(struct client *client)
{
	if (client->added_size == 0)
		return;
	client->out = client->added;
	client->out_left = client->added_size;
	client->added_size = 0;
	(void)client_flush(client);
}

void client_receive(struct client *client, struct input *input, bool wait)
{
	size_t handled, size;
	ssize_t got;

	if (client->rest_size == input->capacity)
		input_grow(input);
	got = recv(client->fd, input->bytes + client->rest_size,
		   input->capacity - client->rest_size, wait ? 0 : MSG_DONTWAIT);
	if (got < 0 && (errno == EINTR || (!wait && (errno == EAGAIN || errno == EWOULDBLOCK))))
		return;
	if (got <= 0) {
		client_fail(client,
			    got == 0 ? "the server closed the connection"
				     : "nothing came for too long, or the connection failed");
		return;
	}
	if (client->rest_size > 0)
		memcpy(input->bytes, client->rest, client->rest_size);
	size = client->rest_size + (size_t)got;
	handled = client->peer->parse(client, input->bytes, size);
	client_keep_rest(client, input->bytes + handled, size - handled);
	client_send_added(client);
}
