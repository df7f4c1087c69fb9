/*
 * The bare socket server of floor.c. Its frames have the size that liminald's Publish has, and
 * carry nothing but a header and a payload; it is told who the connection is in the hello.
 */
#include "bench/bench.h"

#include <string.h>

#include "bench/floor.h"
#include "wire/wire.h"

/* What a Publish of liminald has around its payload. */
#define OVERHEAD 66

static void floor_command(const struct server *server, const struct demand *demand, char *command,
			  size_t size)
{
	(void)demand;
	(void)snprintf(command, size, "floor %u", server->port);
}

static size_t frame_size(const struct client *client)
{
	return OVERHEAD + client->payload;
}

static bool floor_hello(struct client *client)
{
	static const uint8_t roles[] = {
		[ROLE_PUBLISHER] = FLOOR_PUBLISHER,
		[ROLE_SUBSCRIBER] = FLOOR_SUBSCRIBER,
		[ROLE_REQUESTER] = FLOOR_REQUESTER,
		[ROLE_WORKER] = FLOOR_WORKER,
	};
	/* It has one channel; who subscribes to another gets nothing. */
	bool elsewhere = client->role == ROLE_SUBSCRIBER && client->channel > 0;
	struct floor_hello hello = {.role = elsewhere ? FLOOR_SILENT : roles[client->role],
				    .index = client->index,
				    .sender_at = OVERHEAD + 8};
	uint8_t welcome;

	return client_write(client, &hello, sizeof(hello)) && client_read(client, &welcome, 1);
}

static void floor_describe(const struct client *client, struct unit *unit)
{
	*unit = (struct unit){.count = 1,
			      .frame_size = frame_size(client),
			      .size = frame_size(client),
			      .payload_at = OVERHEAD};
}

static void floor_write(const struct client *client, unsigned channel, uint8_t *bytes)
{
	(void)channel;
	memset(bytes, 0, frame_size(client));
	wire_put_header(bytes, WIRE_PUBLISH, 0, 1,
			(uint32_t)(frame_size(client) - WIRE_HEADER_SIZE));
}

static size_t floor_parse(struct client *client, const uint8_t *bytes, size_t size)
{
	size_t offset = 0;

	while (size - offset >= WIRE_HEADER_SIZE) {
		const uint8_t *frame = bytes + offset;
		size_t length = WIRE_HEADER_SIZE + (size_t)wire_get_u32(frame + 6);

		if (size - offset < length)
			break;
		if (client->role == ROLE_PUBLISHER)
			client_acknowledged(client, 1);
		else if (client->role == ROLE_WORKER)
			memcpy(client_add(client, length), frame, length);
		else
			client_received(client, frame + OVERHEAD);
		offset += length;
	}
	return offset;
}

/* --- store_floor.c: it stores what it answers ---------------------------------------------- */

static void store_floor_command(const struct server *server, const struct demand *demand,
				char *command, size_t size)
{
	(void)demand;
	(void)snprintf(command, size, "store_floor %u state", server->port);
}

/* There is nothing to say. */
static bool store_floor_hello(struct client *client)
{
	(void)client;
	return true;
}

static size_t store_floor_parse(struct client *client, const uint8_t *bytes, size_t size)
{
	size_t offset = 0;

	for (; size - offset >= FLOOR_ANSWER_SIZE; offset += FLOOR_ANSWER_SIZE)
		client_acknowledged_as(client, wire_get_u64(bytes + offset + WIRE_HEADER_SIZE));
	return offset;
}

const struct peer peer_store_floor = {
	.name = "floor",
	.program = "store_floor",
	.command = store_floor_command,
	.hello = store_floor_hello,
	.describe = floor_describe,
	.write = floor_write,
	.parse = store_floor_parse,
};

const struct peer peer_floor = {
	.name = "floor",
	.program = "floor",
	.command = floor_command,
	.hello = floor_hello,
	.describe = floor_describe,
	.write = floor_write,
	.parse = floor_parse,
	.fan_is_silent = true,
	.cannot_park = true,
	.cannot_stall = true,
};
