/*
 * redis: PUBLISH and SUBSCRIBE in RESP3, where a subscribed connection may publish too. Each
 * PUBLISH is answered by a number. A request is a message to the worker's channel, and its reply
 * one to the requester's, whose number the payload carries.
 */
#include "bench/bench.h"

#include <string.h>

#define WORK "w00000"
#define REPLY_NAME "r%05u"

static void redis_command(const struct server *server, const struct demand *demand, char *command,
			  size_t size)
{
	(void)server;
	(void)demand;
	(void)snprintf(command, size, "redis-server %s", CONFIGURATION_FILE);
}

static void redis_configure(const struct server *server, const struct demand *demand, FILE *file)
{
	(void)fprintf(file, "port %u\nbind 127.0.0.1\nsave \"\"\nappendonly no\nmaxclients %u\n",
		      server->port, demand->connections);
}

static bool redis_hello(struct client *client)
{
	char name[16];

	switch (client->role) {
	case ROLE_SUBSCRIBER:
		(void)snprintf(name, sizeof(name), CHANNEL_NAME, client->channel);
		break;
	case ROLE_REQUESTER:
		(void)snprintf(name, sizeof(name), REPLY_NAME, client->index);
		break;
	case ROLE_WORKER:
		(void)snprintf(name, sizeof(name), WORK);
		break;
	case ROLE_PUBLISHER:
		return client_print(client, "HELLO 3\r\nPING\r\n") &&
		       client_read_until_line(client, "+PONG");
	}
	return client_print(client, "HELLO 3\r\nSUBSCRIBE %s\r\nPING\r\n", name) &&
	       client_read_until_line(client, "+PONG");
}

/* What stands before the payload of a PUBLISH. */
static size_t put_head(char head[128], const char *channel, size_t payload)
{
	return (size_t)snprintf(head, 128, "*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%zu\r\n",
				CHANNEL_NAME_SIZE, channel, payload);
}

static void redis_describe(const struct client *client, struct unit *unit)
{
	char head[128];
	size_t size = put_head(head, WORK, client->payload);

	*unit = (struct unit){.count = 1,
			      .frame_size = size + client->payload + 2,
			      .size = size + client->payload + 2,
			      .payload_at = size};
}

static void redis_write(const struct client *client, unsigned channel, uint8_t *bytes)
{
	char name[16] = WORK, head[128];
	size_t size;

	if (client->role == ROLE_PUBLISHER)
		(void)snprintf(name, sizeof(name), CHANNEL_NAME, channel);
	size = put_head(head, name, client->payload);
	memcpy(bytes, head, size);
	memset(bytes + size, 0, client->payload);
	memcpy(bytes + size + client->payload, "\r\n", 2);
}

static void reply(struct client *client, const uint8_t *payload)
{
	char name[16], head[128];
	uint8_t *bytes;
	size_t size;

	(void)snprintf(name, sizeof(name), REPLY_NAME, payload_sender(payload));
	size = put_head(head, name, client->payload);
	bytes = client_add(client, size + client->payload + 2);
	memcpy(bytes, head, size);
	memcpy(bytes + size, payload, client->payload);
	memcpy(bytes + size + client->payload, "\r\n", 2);
}

/* A message: everything before its payload has one length, with names of one length. */
static size_t message_head(const struct client *client)
{
	char head[128];

	return (size_t)snprintf(head, sizeof(head),
				">3\r\n$7\r\nmessage\r\n$%d\r\n" CHANNEL_NAME "\r\n$%zu\r\n",
				CHANNEL_NAME_SIZE, 0u, client->payload);
}

static size_t redis_parse(struct client *client, const uint8_t *bytes, size_t size)
{
	size_t head = message_head(client), frame = head + client->payload + 2, offset = 0;

	while (offset < size) {
		const uint8_t *end;

		if (bytes[offset] == '>') {
			if (size - offset < frame)
				break;
			if (client->role == ROLE_WORKER)
				reply(client, bytes + offset + head);
			else
				client_received(client, bytes + offset + head);
			offset += frame;
			continue;
		}
		end = memchr(bytes + offset, '\n', size - offset);
		if (end == NULL)
			break;
		if (bytes[offset] == ':')
			client_acknowledged(client, 1);
		else
			client_fail(client, "the server sent an error");
		offset = (size_t)(end - bytes) + 1;
	}
	return offset;
}

/* --- a stream: each message is added to it, and synced before it is acknowledged ----------- */

static void stream_configure(const struct server *server, const struct demand *demand, FILE *file)
{
	(void)fprintf(file,
		      "port %u\nbind 127.0.0.1\nsave \"\"\nappendonly yes\nappendfsync always\n"
		      "maxclients %u\n",
		      server->port, demand->connections);
}

static size_t put_stream_head(char head[128], unsigned channel, size_t payload)
{
	return (size_t)snprintf(head, 128,
				"*5\r\n$4\r\nXADD\r\n$%d\r\n" CHANNEL_NAME
				"\r\n$1\r\n*\r\n$1\r\nm\r\n$%zu\r\n",
				CHANNEL_NAME_SIZE, channel, payload);
}

static void stream_describe(const struct client *client, struct unit *unit)
{
	char head[128];
	size_t size = put_stream_head(head, 0, client->payload);

	*unit = (struct unit){.count = 1,
			      .frame_size = size + client->payload + 2,
			      .size = size + client->payload + 2,
			      .payload_at = size};
}

static void stream_write(const struct client *client, unsigned channel, uint8_t *bytes)
{
	char head[128];
	size_t size = put_stream_head(head, channel, client->payload);

	memcpy(bytes, head, size);
	memset(bytes + size, 0, client->payload);
	memcpy(bytes + size + client->payload, "\r\n", 2);
}

/* "MILLISECONDS-NUMBER" as one number. */
static uint64_t stream_position(const uint8_t *text, const uint8_t *end)
{
	uint64_t part = 0, position = 0;

	for (; text < end && *text != '\r'; text++) {
		if (*text == '-') {
			position = part << 20;
			part = 0;
		} else {
			part = part * 10 + (uint64_t)(*text - '0');
		}
	}
	return position + part;
}

/* An answer is two lines: "$SIZE", and the id. */
static size_t stream_parse(struct client *client, const uint8_t *bytes, size_t size)
{
	size_t offset = 0;

	while (offset < size) {
		const uint8_t *line = memchr(bytes + offset, '\n', size - offset), *end;

		if (line == NULL)
			break;
		if (bytes[offset] != '$') {
			client_fail(client, "the server sent an error");
			return size;
		}
		line++;
		end = memchr(line, '\n', size - (size_t)(line - bytes));
		if (end == NULL)
			break;
		client_acknowledged_as(client, stream_position(line, end));
		offset = (size_t)(end - bytes) + 1;
	}
	return offset;
}

const struct peer peer_stream = {
	.name = "redis",
	.program = "redis-server",
	.command = redis_command,
	.configure = stream_configure,
	.hello = redis_hello,
	.describe = stream_describe,
	.write = stream_write,
	.parse = stream_parse,
};

const struct peer peer_redis = {
	.name = "redis",
	.program = "redis-server",
	.command = redis_command,
	.configure = redis_configure,
	.hello = redis_hello,
	.describe = redis_describe,
	.write = redis_write,
	.parse = redis_parse,
	.cannot_park = true,
};
