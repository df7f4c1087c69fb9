/*
 * floor PORT: the least that a server can do. A thread per connection reads, blocking, and writes,
 * blocking, once per read what the case asks for and no more:
 *
 *   publisher   without subscribers: 18 bytes for each frame of the read;
 *               with subscribers: the bytes of the read to each of them
 *   requester   the bytes of the read to the worker
 *   worker      each frame of the read to the requester whose index it carries
 *   others      nothing
 *
 * Frames are found by the lengths in their headers, as every server has to; nothing else of them is
 * looked at, nothing is checked, there are no limits, and it counts on a client that reads. It is a
 * yardstick, not a server: loopback only.
 */
#include "bench/floor.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wire/wire.h"

#define READ_SIZE (256 * 1024)
#define CLIENTS_MAX 16384

/* Filled while clients say hello, one at a time; nobody joins while frames flow. */
static pthread_mutex_t joining = PTHREAD_MUTEX_INITIALIZER;
static int subscribers[CLIENTS_MAX], requesters[CLIENTS_MAX], worker = -1;
static size_t subscriber_count;

static uint8_t answers[READ_SIZE];

static bool write_all(int fd, const uint8_t *bytes, size_t size)
{
	while (size > 0) {
		ssize_t sent = send(fd, bytes, size, 0);

		if (sent < 0)
			return false;
		bytes += sent;
		size -= (size_t)sent;
	}
	return true;
}

static bool join(int fd, struct floor_hello *hello)
{
	bool joined = false;

	if (recv(fd, hello, sizeof(*hello), MSG_WAITALL) != sizeof(*hello) ||
	    hello->index >= CLIENTS_MAX)
		return false;
	(void)pthread_mutex_lock(&joining);
	if (hello->role == FLOOR_SUBSCRIBER && subscriber_count < CLIENTS_MAX)
		subscribers[subscriber_count++] = fd;
	if (hello->role == FLOOR_REQUESTER)
		requesters[hello->index] = fd;
	if (hello->role == FLOOR_WORKER)
		worker = fd;
	joined = write_all(fd, (const uint8_t *)"+", 1);
	(void)pthread_mutex_unlock(&joining);
	return joined;
}

/* The frame at OFFSET of SIZE bytes; 0 when it has not come whole. */
static size_t frame_size(const uint8_t *bytes, size_t offset, size_t size)
{
	size_t length;

	if (size - offset < WIRE_HEADER_SIZE)
		return 0;
	length = wire_get_header(bytes + offset).length;
	return size - offset - WIRE_HEADER_SIZE < length ? 0 : WIRE_HEADER_SIZE + length;
}

static bool answer_requests(int fd, const uint8_t *bytes, size_t size, size_t *offset)
{
	size_t count = 0, step;

	while ((step = frame_size(bytes, *offset, size)) > 0) {
		*offset += step;
		count++;
	}
	return write_all(fd, answers, count * FLOOR_ANSWER_SIZE);
}

static bool relay_replies(const struct floor_hello *hello, const uint8_t *bytes, size_t size,
			  size_t *offset)
{
	size_t step;

	while ((step = frame_size(bytes, *offset, size)) > 0) {
		uint32_t sender;

		memcpy(&sender, bytes + *offset + hello->sender_at, sizeof(sender));
		if (!write_all(requesters[sender % CLIENTS_MAX], bytes + *offset, step))
			return false;
		*offset += step;
	}
	return true;
}

/* What SIZE bytes ask for. *OFFSET, 0 before: where the frame begins that has not come whole. */
static bool answer(int fd, const struct floor_hello *hello, const uint8_t *bytes, size_t size,
		   size_t *offset)
{
	size_t count = subscriber_count;

	if (hello->role == FLOOR_WORKER)
		return relay_replies(hello, bytes, size, offset);
	if (hello->role == FLOOR_PUBLISHER && count == 0)
		return answer_requests(fd, bytes, size, offset);
	*offset = size;
	if (hello->role == FLOOR_REQUESTER)
		return write_all(worker, bytes, size);
	for (size_t i = 0; hello->role == FLOOR_PUBLISHER && i < count; i++)
		if (!write_all(subscribers[i], bytes, size))
			return false;
	return true;
}

static void *serve(void *argument)
{
	int fd = (int)(intptr_t)argument;
	uint8_t *bytes = malloc(READ_SIZE);
	size_t kept = 0;
	struct floor_hello hello;
	ssize_t got = 1;

	if (bytes == NULL || !join(fd, &hello))
		got = 0;
	while (got > 0) {
		size_t size, offset = 0;

		got = recv(fd, bytes + kept, READ_SIZE - kept, 0);
		if (got <= 0)
			break;
		size = kept + (size_t)got;
		if (!answer(fd, &hello, bytes, size, &offset))
			break;
		kept = size - offset;
		if (kept > 0)
			memmove(bytes, bytes + offset, kept);
	}
	free(bytes);
	/* Its number stands in the tables: it is left open until the process ends. */
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	pthread_attr_t attributes;

	if (argc != 2) {
		(void)fprintf(stderr, "usage: floor PORT\n");
		return 2;
	}
	for (size_t i = 0; sizeof(answers) - i >= FLOOR_ANSWER_SIZE; i += FLOOR_ANSWER_SIZE)
		wire_put_header(answers + i, WIRE_PUBLISH_ACK, 0, 1,
				FLOOR_ANSWER_SIZE - WIRE_HEADER_SIZE);
	address.sin_port = htons((uint16_t)atoi(argv[1]));
	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) != 0 ||
	    listen(listener, 1024) != 0) {
		perror("floor");
		return 1;
	}
	(void)pthread_attr_init(&attributes);
	(void)pthread_attr_setstacksize(&attributes, 128 * 1024);
	(void)pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		pthread_t thread;

		if (fd < 0)
			continue;
		(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		if (pthread_create(&thread, &attributes, serve, (void *)(intptr_t)fd) != 0)
			(void)close(fd);
	}
}
