/* liminald, at the newest version of its protocol. */
#include "bench/bench.h"

#include <string.h>

#include "wire/wire.h"

/* The envelope: schema id, causal context with its length, payload with its length. */
#define ENVELOPE_HEAD (WIRE_SCHEMA_SIZE + 4 + 2 + 4)
#define PUBLISH_HEAD (WIRE_HEADER_SIZE + 4 + CHANNEL_NAME_SIZE + 4 + ENVELOPE_HEAD)
#define MESSAGE_HEAD (WIRE_HEADER_SIZE + 8 + 4 + ENVELOPE_HEAD)
#define STREAM 1
#define START_NEW 0
#define START_SEQUENCE 2
#define CONVERSATION 1

static void liminal_command(const struct server *server, const struct demand *demand, char *command,
			    size_t size)
{
	(void)server;
	(void)demand;
	(void)snprintf(command, size, "liminald -c %s", CONFIGURATION_FILE);
}

static void liminal_configure(const struct server *server, const struct demand *demand, FILE *file)
{
	(void)fprintf(file,
		      "[server]\nlisten = 127.0.0.1:%u\nhttp_listen = none\nlog_level = error\n"
		      "drain_timeout = 0\n[limits]\nmax_connections = %u\n",
		      server->port, demand->connections);
	if (demand->pending > 0)
		(void)fprintf(file,
			      "max_pending_replies_per_conversation = %u\n"
			      "max_pending_replies_per_connection = %u\n"
			      "max_pending_pushes_per_connection = %u\n"
			      "[conversations]\nreply_timeout = 1h\nreply_timeout_max = 1h\n",
			      demand->pending, demand->pending, demand->pending);
	for (unsigned i = 0; i < demand->channels; i++)
		(void)fprintf(file, "[channel " CHANNEL_NAME "]\n", i);
}

static bool say(struct client *client, const struct wire_frame *frame)
{
	uint8_t bytes[256];
	size_t size = wire_encode(frame, bytes, sizeof(bytes));

	return size > 0 && size <= sizeof(bytes) && client_write(client, bytes, size);
}

/* The next frame is of this type. */
static bool hear(struct client *client, uint8_t type)
{
	uint8_t bytes[256];
	struct wire_header header;

	if (!client_read(client, bytes, WIRE_HEADER_SIZE))
		return false;
	header = wire_get_header(bytes);
	if (header.type != type || header.length > sizeof(bytes)) {
		client_fail(client, "the hello was answered by another frame");
		return false;
	}
	return client_read(client, bytes, header.length);
}

static bool subscribe(struct client *client, bool durable)
{
	const struct position *position = &client->position;
	const char *consumer = position->consumer != NULL ? position->consumer : "";
	struct wire_frame frame = {.header = {.type = WIRE_SUBSCRIBE, .stream = STREAM}};
	char name[16];

	(void)snprintf(name, sizeof(name), CHANNEL_NAME, client->channel);
	frame.u.subscribe.channel = (struct span){(const uint8_t *)name, CHANNEL_NAME_SIZE};
	frame.u.subscribe.max_in_flight = 1024;
	if (durable) {
		frame.header.flags = WIRE_SUBSCRIBE_DURABLE;
		frame.u.subscribe.durable = true;
		frame.u.subscribe.consumer =
			(struct span){(const uint8_t *)consumer, strlen(consumer)};
		frame.u.subscribe.max_in_flight = position->credit;
		frame.u.subscribe.start = position->from == 0 ? START_NEW : START_SEQUENCE;
		frame.u.subscribe.value = position->from;
	}
	return say(client, &frame) && hear(client, WIRE_SUBSCRIBE_ACK);
}

/* Requests of a load go to one queue; those that are parked to another. */
static struct span queue_of(const struct client *client)
{
	return client->channel == 0 ? SPAN_LITERAL("work") : SPAN_LITERAL("park");
}

static bool liminal_hello(struct client *client)
{
	if (!say(client, &(struct wire_frame){.header = {.type = WIRE_CONNECT},
					      .u.connect = {.min = WIRE_VERSION_1_0,
							    .max = WIRE_VERSION_1_2}}) ||
	    !hear(client, WIRE_CONNECT_ACK))
		return false;
	switch (client->role) {
	case ROLE_PUBLISHER:
		return true;
	case ROLE_SUBSCRIBER:
		return subscribe(client, client->peer == &peer_durable);
	case ROLE_REQUESTER:
		return say(client,
			   &(struct wire_frame){
				   .header = {.type = WIRE_CONVERSATION_OPEN, .stream = STREAM},
				   .u.conversation_open = {.conversation = CONVERSATION,
							   .subject = queue_of(client)}});
	case ROLE_WORKER:
		return say(client, &(struct wire_frame){.header = {.type = WIRE_WORKER_REGISTER},
							.u.worker_register = {.queue = queue_of(
										      client)}}) &&
		       hear(client, WIRE_WORKER_REGISTER_ACK);
	}
	return false;
}

static void liminal_describe(const struct client *client, struct unit *unit)
{
	size_t head = client->role == ROLE_REQUESTER ? MESSAGE_HEAD : PUBLISH_HEAD;

	*unit = (struct unit){.count = 1,
			      .frame_size = head + client->payload,
			      .size = head + client->payload,
			      .payload_at = head};
}

static void put_envelope(uint8_t *bytes, size_t payload)
{
	wire_put_u32(bytes, (uint32_t)(ENVELOPE_HEAD + payload));
	bytes += 4;
	memset(bytes, 0, WIRE_SCHEMA_SIZE);
	bytes += WIRE_SCHEMA_SIZE;
	wire_put_u32(bytes, 2);
	wire_put_u16(bytes + 4, 0);
	wire_put_u32(bytes + 6, (uint32_t)payload);
}

static void liminal_write(const struct client *client, unsigned channel, uint8_t *bytes)
{
	char name[16];
	uint32_t length;

	if (client->role == ROLE_REQUESTER) {
		length = (uint32_t)(MESSAGE_HEAD - WIRE_HEADER_SIZE + client->payload);
		wire_put_header(bytes, WIRE_CONVERSATION_MESSAGE, WIRE_MESSAGE_REPLY, STREAM,
				length);
		wire_put_u64(bytes + WIRE_HEADER_SIZE, CONVERSATION);
		put_envelope(bytes + WIRE_HEADER_SIZE + 8, client->payload);
		return;
	}
	(void)snprintf(name, sizeof(name), CHANNEL_NAME, channel);
	length = (uint32_t)(PUBLISH_HEAD - WIRE_HEADER_SIZE + client->payload);
	wire_put_header(bytes, WIRE_PUBLISH, 0, STREAM, length);
	wire_put_u32(bytes + WIRE_HEADER_SIZE, CHANNEL_NAME_SIZE);
	memcpy(bytes + WIRE_HEADER_SIZE + 4, name, CHANNEL_NAME_SIZE);
	put_envelope(bytes + WIRE_HEADER_SIZE + 4 + CHANNEL_NAME_SIZE, client->payload);
}

static void reply(struct client *client, const uint8_t *push, size_t size)
{
	uint8_t *bytes = client_add(client, size);

	memcpy(bytes, push, size);
	bytes[0] = WIRE_PUSH_REPLY;
}

static size_t liminal_parse(struct client *client, const uint8_t *bytes, size_t size)
{
	size_t offset = 0;

	while (size - offset >= WIRE_HEADER_SIZE) {
		const uint8_t *frame = bytes + offset;
		size_t length = WIRE_HEADER_SIZE + (size_t)wire_get_u32(frame + 6);

		if (size - offset < length)
			break;
		switch (frame[0]) {
		case WIRE_PUBLISH_ACK:
			client_acknowledged(client, 1);
			break;
		case WIRE_DELIVER:
			client_received(client, frame + WIRE_DELIVER_HEAD + ENVELOPE_HEAD);
			break;
		case WIRE_CONVERSATION_MESSAGE:
			client_received(client, frame + MESSAGE_HEAD);
			break;
		case WIRE_PUSH:
			reply(client, frame, length);
			break;
		default:
			client_fail(client, "the server sent an error");
			break;
		}
		offset += length;
	}
	return offset;
}

/* --- durable ------------------------------------------------------------------------------- */

static void durable_configure(const struct server *server, const struct demand *demand, FILE *file)
{
	char state[DIRECTORY_SIZE + 16];

	(void)snprintf(state, sizeof(state), "%s/state", server->directory);
	if (demand->kept > 0 && !fill_store(state, demand->kept, DURABLE_PAYLOAD))
		(void)fprintf(stderr, "bench: the store is not as it should be\n");
	(void)fprintf(file,
		      "[server]\nlisten = 127.0.0.1:%u\nhttp_listen = none\nlog_level = error\n"
		      "drain_timeout = 0\nstate_dir = %s\n[limits]\nmax_connections = %u\n",
		      server->port, state, demand->connections);
	for (unsigned i = 0; i < demand->channels; i++)
		(void)fprintf(file,
			      "[channel " CHANNEL_NAME "]\ndurable = yes\nmax_bytes = 0\n"
			      "when_full = discard\nmax_messages = %llu\n",
			      i, (unsigned long long)demand->max_messages);
}

/* Accept of the Deliver at FRAME, to be confirmed. */
static void accept_delivery(struct client *client, const uint8_t *frame)
{
	char id[24];
	size_t size = (size_t)snprintf(id, sizeof(id), "%llu",
				       (unsigned long long)wire_get_u64(frame + WIRE_HEADER_SIZE));
	struct wire_frame answer = {
		.header = {.type = WIRE_ACCEPT, .flags = WIRE_ANSWER_CONFIRM, .stream = STREAM},
		.u.answer.message = {(const uint8_t *)id, size}};
	uint8_t *bytes;

	size = wire_encode(&answer, NULL, 0);
	bytes = client_add(client, size);
	(void)wire_encode(&answer, bytes, size);
	client->sent++;
}

/* The next sequence; a consumer has it for its own, and gets others' out of its sight. */
static void take_delivery(struct client *client, const uint8_t *frame)
{
	uint64_t sequence = wire_get_u64(frame + WIRE_HEADER_SIZE);
	bool shares = client->position.consumer != NULL;

	if (shares ? sequence <= client->last || (frame[1] & WIRE_DELIVER_AGAIN) != 0
		   : client->last != 0 && sequence != client->last + 1)
		client_fail(client, "a message was lost, came twice or out of order");
	if (!shares && client->last == 0 && client->position.from > 0 &&
	    sequence != client->position.from)
		client_fail(client, "the first message is not the one that was asked for");
	client->last = sequence;
	client->received++;
	if (client->taken != NULL && client->taken[sequence])
		client_fail(client, "two consumers got one message");
	if (client->taken != NULL)
		client->taken[sequence] = true;
	if (shares)
		accept_delivery(client, frame);
}

/* Confirmations come in the order in which they were asked for. */
static void take_confirmation(struct client *client, const uint8_t *frame)
{
	const uint8_t *id = frame + WIRE_HEADER_SIZE + 4;
	size_t size = wire_get_u32(frame + WIRE_HEADER_SIZE);
	uint64_t number = 0;

	for (size_t i = 0; i < size; i++)
		number = number * 10 + (uint64_t)(id[i] - '0');
	if (number <= client->confirmed)
		client_fail(client, "a confirmation came twice or out of order");
	client->confirmed = number;
	client->acknowledged++;
}

static size_t durable_parse(struct client *client, const uint8_t *bytes, size_t size)
{
	size_t offset = 0;

	while (size - offset >= WIRE_HEADER_SIZE) {
		const uint8_t *frame = bytes + offset;
		size_t length = WIRE_HEADER_SIZE + (size_t)wire_get_u32(frame + 6);

		if (size - offset < length)
			break;
		switch (frame[0]) {
		case WIRE_PUBLISH_ACK:
			client_acknowledged_as(client, wire_get_u64(frame + WIRE_HEADER_SIZE + 8));
			break;
		case WIRE_DELIVER:
			take_delivery(client, frame);
			break;
		case WIRE_ACCEPT:
			take_confirmation(client, frame);
			break;
		default:
			client_fail(client, "the server sent an error");
			break;
		}
		offset += length;
	}
	return offset;
}

const struct peer peer_durable = {
	.name = "liminald",
	.program = "liminald",
	.command = liminal_command,
	.configure = durable_configure,
	.hello = liminal_hello,
	.describe = liminal_describe,
	.write = liminal_write,
	.parse = durable_parse,
	.has_retention = true,
};

const struct peer peer_liminald = {
	.name = "liminald",
	.program = "liminald",
	.command = liminal_command,
	.configure = liminal_configure,
	.hello = liminal_hello,
	.describe = liminal_describe,
	.write = liminal_write,
	.parse = liminal_parse,
};
