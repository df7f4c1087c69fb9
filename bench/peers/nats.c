/*
 * nats-server. It does not acknowledge a publish; a PING behind every 64 of them is answered once
 * they are handled. A request names the requester's inbox, which stands in front of what the
 * worker gets.
 */
#include "bench/bench.h"

#include <string.h>

#define PUBLISHES_PER_PING 64
#define PING "PING\r\n"
#define WORK "w00000"
#define INBOX_NAME "r%05u"
#define SUBSCRIPTION "1"

static void nats_command(const struct server *server, const struct demand *demand, char *command,
			 size_t size)
{
	(void)demand;
	(void)snprintf(command, size, "nats-server -a 127.0.0.1 -p %u", server->port);
}

static bool nats_hello(struct client *client)
{
	char name[16] = WORK;

	if (!client_print(client, "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n"))
		return false;
	if (client->role == ROLE_SUBSCRIBER)
		(void)snprintf(name, sizeof(name), CHANNEL_NAME, client->channel);
	if (client->role == ROLE_REQUESTER)
		(void)snprintf(name, sizeof(name), INBOX_NAME, client->index);
	if (client->role != ROLE_PUBLISHER &&
	    !client_print(client, "SUB %s " SUBSCRIPTION "\r\n", name))
		return false;
	return client_print(client, PING) && client_read_until_line(client, "PONG");
}

static size_t put_head(const struct client *client, char head[64], unsigned channel)
{
	if (client->role == ROLE_REQUESTER)
		return (size_t)snprintf(head, 64, "PUB " WORK " " INBOX_NAME " %zu\r\n",
					client->index, client->payload);
	return (size_t)snprintf(head, 64, "PUB " CHANNEL_NAME " %zu\r\n", channel, client->payload);
}

static void nats_describe(const struct client *client, struct unit *unit)
{
	bool publishes = client->role == ROLE_PUBLISHER;
	char head[64];
	size_t size = put_head(client, head, 0);

	unit->payload_at = size;
	unit->id_at = 0;
	unit->frame_size = size + client->payload + 2;
	unit->count = publishes && client->window > PUBLISHES_PER_PING ? PUBLISHES_PER_PING : 1;
	unit->size = unit->count * unit->frame_size + (publishes ? sizeof(PING) - 1 : 0);
}

static void nats_write(const struct client *client, unsigned channel, uint8_t *bytes)
{
	char head[64];
	size_t size = put_head(client, head, channel);

	for (size_t i = 0; i < client->unit.count; i++) {
		memcpy(bytes, head, size);
		memset(bytes + size, 0, client->payload);
		memcpy(bytes + size + client->payload, "\r\n", 2);
		bytes += client->unit.frame_size;
	}
	if (client->role == ROLE_PUBLISHER)
		memcpy(bytes, PING, sizeof(PING) - 1);
}

/* "MSG work 1 INBOX SIZE": the reply goes to the inbox. */
static void reply(struct client *client, const uint8_t *message, const uint8_t *payload)
{
	const uint8_t *inbox = message + sizeof("MSG " WORK " " SUBSCRIPTION " ") - 1;
	char head[64];
	size_t size = (size_t)snprintf(head, sizeof(head), "PUB %.*s %zu\r\n", CHANNEL_NAME_SIZE,
				       (const char *)inbox, client->payload);
	uint8_t *bytes = client_add(client, size + client->payload + 2);

	memcpy(bytes, head, size);
	memcpy(bytes + size, payload, client->payload);
	memcpy(bytes + size + client->payload, "\r\n", 2);
}

static size_t nats_parse(struct client *client, const uint8_t *bytes, size_t size)
{
	size_t offset = 0;

	while (offset < size) {
		const uint8_t *end = memchr(bytes + offset, '\n', size - offset);
		size_t line;

		if (end == NULL)
			break;
		line = (size_t)(end - bytes) + 1 - offset;
		if (bytes[offset] == 'M') {
			if (size - offset - line < client->payload + 2)
				break;
			if (client->role == ROLE_WORKER)
				reply(client, bytes + offset, bytes + offset + line);
			else
				client_received(client, bytes + offset + line);
			line += client->payload + 2;
		} else if (memcmp(bytes + offset, "PONG", 4) == 0) {
			client_acknowledged(client, client->unit.count);
		} else if (memcmp(bytes + offset, "INFO", 4) != 0) {
			client_fail(client, "the server sent an error");
		}
		offset += line;
	}
	return offset;
}

/* --- JetStream: stored in a file, acknowledged before it is synced ------------------------- */

static void jetstream_command(const struct server *server, const struct demand *demand,
			      char *command, size_t size)
{
	(void)demand;
	(void)snprintf(command, size, "nats-server -a 127.0.0.1 -p %u -js -sd state", server->port);
}

/* The answer to what makes the stream; it is the same for everybody. */
static bool jetstream_made(struct client *client)
{
	char text[2048];
	size_t size = 0;

	for (;;) {
		if (!client_read(client, text + size, 1))
			return false;
		if (text[size] != '\n') {
			size += size < sizeof(text) - 1;
			continue;
		}
		text[size] = '\0';
		size = 0;
		if (text[0] != '{')
			continue;
		if (strstr(text, "\"error\"") == NULL)
			return true;
		client_fail(client, "it makes no stream");
		return false;
	}
}

static bool jetstream_hello(struct client *client)
{
	static const char stream[] = "{\"name\":\"S\",\"subjects\":[\"c00000\"],"
				     "\"storage\":\"file\",\"retention\":\"limits\"}";

	return client_print(client,
			    "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n"
			    "SUB " INBOX_NAME " " SUBSCRIPTION "\r\n"
			    "PUB $JS.API.STREAM.CREATE.S " INBOX_NAME " %zu\r\n%s\r\n",
			    client->index, client->index, sizeof(stream) - 1, stream) &&
	       jetstream_made(client);
}

static size_t put_jetstream_head(const struct client *client, char head[64], unsigned channel)
{
	return (size_t)snprintf(head, 64, "PUB " CHANNEL_NAME " " INBOX_NAME " %zu\r\n", channel,
				client->index, client->payload);
}

static void jetstream_describe(const struct client *client, struct unit *unit)
{
	char head[64];
	size_t size = put_jetstream_head(client, head, 0);

	*unit = (struct unit){.count = 1,
			      .frame_size = size + client->payload + 2,
			      .size = size + client->payload + 2,
			      .payload_at = size};
}

static void jetstream_write(const struct client *client, unsigned channel, uint8_t *bytes)
{
	char head[64];
	size_t size = put_jetstream_head(client, head, channel);

	memcpy(bytes, head, size);
	memset(bytes + size, 0, client->payload);
	memcpy(bytes + size + client->payload, "\r\n", 2);
}

/* Lines of MSG, with one behind it: {"stream":"S", "seq":7}. */
static size_t jetstream_parse(struct client *client, const uint8_t *bytes, size_t size)
{
	static const char sequence[] = "{\"stream\":\"S\", \"seq\":";
	size_t offset = 0;

	while (offset < size) {
		const uint8_t *end = memchr(bytes + offset, '\n', size - offset), *text;
		uint64_t number = 0;

		if (end == NULL)
			break;
		text = bytes + offset;
		offset = (size_t)(end - bytes) + 1;
		if (*text != '{') {
			if (*text == '-')
				client_fail(client, "the server sent an error");
			continue;
		}
		if ((size_t)(end - text) < sizeof(sequence) ||
		    memcmp(text, sequence, sizeof(sequence) - 1) != 0) {
			client_fail(client, "a publish was refused");
			continue;
		}
		for (text += sizeof(sequence) - 1; *text >= '0' && *text <= '9'; text++)
			number = number * 10 + (uint64_t)(*text - '0');
		client_acknowledged_as(client, number);
	}
	return offset;
}

const struct peer peer_jetstream = {
	.name = "JetStream*",
	.program = "nats-server",
	.command = jetstream_command,
	.hello = jetstream_hello,
	.describe = jetstream_describe,
	.write = jetstream_write,
	.parse = jetstream_parse,
};

const struct peer peer_nats = {
	.name = "nats",
	.program = "nats-server",
	.command = nats_command,
	.hello = nats_hello,
	.describe = nats_describe,
	.write = nats_write,
	.parse = nats_parse,
	.cannot_park = true,
};
