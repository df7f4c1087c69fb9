/*
 * mosquitto, MQTT 3.1.1: publishes at QoS 1, each of which is acknowledged, to subscribers at
 * QoS 0. That protocol has no requests.
 */
#include "bench/bench.h"

#include <string.h>

#define CONNECT 0x10
#define PUBLISH 0x30
#define PUBLISH_QOS1 0x32
#define PUBACK 0x40
#define SUBSCRIBE 0x82

static void mosquitto_command(const struct server *server, const struct demand *demand,
			      char *command, size_t size)
{
	(void)server;
	(void)demand;
	(void)snprintf(command, size, "mosquitto -c %s", CONFIGURATION_FILE);
}

static void mosquitto_configure(const struct server *server, const struct demand *demand,
				FILE *file)
{
	(void)demand;
	(void)fprintf(file,
		      "listener %u 127.0.0.1\nallow_anonymous true\npersistence false\n"
		      "log_type error\nmax_inflight_messages 0\nmax_queued_messages 0\n"
		      "set_tcp_nodelay true\n",
		      server->port);
}

static bool mosquitto_hello(struct client *client)
{
	/* No client id, a clean session, no keep-alive. */
	static const uint8_t connect[] = {CONNECT, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 0};
	uint8_t subscribe[] = {SUBSCRIBE, 5 + CHANNEL_NAME_SIZE, 0, 1, 0, CHANNEL_NAME_SIZE};
	static const uint8_t quality = 0;
	uint8_t answer[5];
	char name[16];

	if (!client_write(client, connect, sizeof(connect)) || !client_read(client, answer, 4))
		return false;
	if (client->role != ROLE_SUBSCRIBER)
		return true;
	(void)snprintf(name, sizeof(name), CHANNEL_NAME, client->channel);
	return client_write(client, subscribe, sizeof(subscribe)) &&
	       client_write(client, name, CHANNEL_NAME_SIZE) && client_write(client, &quality, 1) &&
	       client_read(client, answer, 5);
}

/* A length takes seven bits a byte. */
static size_t put_length(uint8_t *bytes, size_t length)
{
	size_t count = 0;

	do {
		bytes[count++] = (uint8_t)((length & 0x7f) | (length > 0x7f ? 0x80 : 0));
		length >>= 7;
	} while (length > 0);
	return count;
}

/* Type, length, name; and with an ID its place. */
static size_t put_head(uint8_t head[32], uint8_t type, const char *name, size_t payload, bool id)
{
	size_t size = 1, rest = 2 + CHANNEL_NAME_SIZE + (id ? 2 : 0) + payload;

	head[0] = type;
	size += put_length(head + 1, rest);
	head[size++] = 0;
	head[size++] = CHANNEL_NAME_SIZE;
	memcpy(head + size, name, CHANNEL_NAME_SIZE);
	return size + CHANNEL_NAME_SIZE + (id ? 2 : 0);
}

static void mosquitto_describe(const struct client *client, struct unit *unit)
{
	uint8_t head[32];
	size_t size = put_head(head, PUBLISH_QOS1, "      ", client->payload, true);

	*unit = (struct unit){.count = 1,
			      .frame_size = size + client->payload,
			      .size = size + client->payload,
			      .payload_at = size,
			      .id_at = size - 2};
}

static void mosquitto_write(const struct client *client, unsigned channel, uint8_t *bytes)
{
	char name[16];
	size_t size;

	(void)snprintf(name, sizeof(name), CHANNEL_NAME, channel);
	size = put_head(bytes, PUBLISH_QOS1, name, client->payload, true);
	memset(bytes + size, 0, client->payload);
}

static size_t mosquitto_parse(struct client *client, const uint8_t *bytes, size_t size)
{
	uint8_t head[32];
	size_t message_head = put_head(head, PUBLISH, "      ", client->payload, false);
	size_t offset = 0;

	while (offset < size) {
		size_t length = bytes[offset] == PUBACK ? 4 : message_head + client->payload;

		if (size - offset < length)
			break;
		if (bytes[offset] == PUBACK)
			client_acknowledged(client, 1);
		else if (bytes[offset] == PUBLISH)
			client_received(client, bytes + offset + message_head);
		else
			client_fail(client, "the server sent something else");
		offset += length;
	}
	return offset;
}

const struct peer peer_mosquitto = {
	.name = "mosquitto",
	.program = "mosquitto",
	.command = mosquitto_command,
	.configure = mosquitto_configure,
	.hello = mosquitto_hello,
	.describe = mosquitto_describe,
	.write = mosquitto_write,
	.parse = mosquitto_parse,
	.cannot_request = true,
};
