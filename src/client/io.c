/*
 * Waiting, and moving bytes. The poller's protocol, which client_priv.h describes, is here and
 * nowhere else.
 */
#include "client/client_priv.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define CLIENT_READ_SIZE ((size_t)64 * 1024)
/* An empty buffer larger than this is given back. */
#define CLIENT_KEEP_SIZE ((size_t)1024 * 1024)

bool client_bytes_reserve(struct client_bytes *bytes, size_t more)
{
	size_t wanted = size_add(bytes->length, more), capacity = bytes->capacity;
	uint8_t *data;

	if (bytes->start != 0 && bytes->capacity - bytes->start < wanted) {
		memmove(bytes->data, bytes->data + bytes->start, bytes->length);
		bytes->start = 0;
	}
	if (wanted <= capacity - bytes->start)
		return true;
	capacity = size_max(wanted, capacity > SIZE_MAX / 2 ? SIZE_MAX : 2 * capacity);
	data = realloc(bytes->data, capacity);
	if (data == NULL)
		return false;
	bytes->data = data;
	bytes->capacity = capacity;
	return true;
}

void client_bytes_free(struct client_bytes *bytes)
{
	free(bytes->data);
	*bytes = (struct client_bytes){.data = NULL};
}

static void client_bytes_take(struct client_bytes *bytes, size_t length)
{
	bytes->start += length;
	bytes->length -= length;
	if (bytes->length != 0)
		return;
	bytes->start = 0;
	if (bytes->capacity > CLIENT_KEEP_SIZE)
		client_bytes_free(bytes);
}

void client_wake(struct liminal *client)
{
	if (client->polling)
		(void)client_socket_send(client->wake[1], "", 1); /* full: it wakes anyway */
}

void client_send(struct liminal *client)
{
	struct client_bytes *output = &client->output;

	while (output->length > 0 && !client->output_dead && client->fd != -1) {
		ssize_t sent = client_socket_send(client->fd, output->data + output->start,
						  output->length);

		if (sent > 0)
			client_bytes_take(output, (size_t)sent);
		else if (sent == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
			break;
		else if (sent == -1 && errno != EINTR)
			client->output_dead = true;
	}
	if (client->output_dead)
		client_bytes_take(output, output->length);
	if (output->length > 0 && !client->polling_output)
		client_wake(client);
}

/* Room for the rest of the frame that has begun, but never for more than has come once over: a
 * length is believed only as its bytes arrive. */
static size_t client_read_room(const struct client_bytes *input)
{
	size_t frame;

	if (input->length < WIRE_HEADER_SIZE)
		return CLIENT_READ_SIZE;
	frame = (size_t)wire_get_header(input->data + input->start).length + WIRE_HEADER_SIZE;
	if (frame <= input->length)
		return CLIENT_READ_SIZE;
	return size_max(CLIENT_READ_SIZE, size_min(frame - input->length, input->length));
}

static void client_read_end(struct liminal *client, int error)
{
	struct client_fault fault = {.status = LIMINAL_OK};

	if (client->farewell.status != LIMINAL_OK) {
		client_fault_move(&fault, &client->farewell);
	} else {
		char line[256];
		struct text text = TEXT_INIT(line);

		if (error == 0)
			text_add(&text, "the server closed the connection");
		else
			text_add(&text, "the connection is lost: %s", strerror(error));
		client_fault_set(&fault, LIMINAL_LOST, 0, span_of(line));
	}
	fault.status = LIMINAL_LOST;
	client_lose(client, &fault);
}

static void client_read(struct liminal *client)
{
	struct client_bytes *input = &client->input;
	ssize_t got;

	if (!client_bytes_reserve(input, client_read_room(input))) {
		struct client_fault fault = {.status = LIMINAL_OK};

		client_fault_set(&fault, LIMINAL_LOST, 0,
				 span_of("the connection was given up: out of memory"));
		client_lose(client, &fault);
		return;
	}
	got = client_socket_receive(client->fd, input->data + input->start + input->length,
				    input->capacity - input->start - input->length);
	if (got == -1 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (got <= 0) {
		client_read_end(client, got == 0 ? 0 : errno);
		return;
	}
	input->length += (size_t)got;
	client_receive(client);
	if (input->length == 0)
		client_bytes_take(input, 0);
}

/* Be the poller once. */
static void client_poll(struct liminal *client, int64_t deadline_ns)
{
	struct pollfd fds[2] = {{.fd = client->fd, .events = POLLIN},
				{.fd = client->wake[0], .events = POLLIN}};
	uint64_t epoch = client->epoch;
	uint8_t drop[64];

	client_send(client);
	if (client->output.length > 0)
		fds[0].events |= POLLOUT;
	client->polling = true;
	client->polling_output = client->output.length > 0;
	mutex_unlock(&client->lock);
	client_socket_poll(fds, 2, deadline_ns);
	mutex_lock(&client->lock);
	client->polling = client->polling_output = false;
	if (fds[1].revents != 0)
		while (client_socket_receive(client->wake[0], drop, sizeof(drop)) == sizeof(drop))
			continue;
	/* The descriptor is still the one that was polled: it is not closed while `polling`. */
	if (client->epoch == epoch && client->state != CLIENT_LOST) {
		if (fds[0].revents & POLLOUT)
			client_send(client);
		if (fds[0].revents & (POLLIN | POLLHUP | POLLERR | POLLNVAL))
			client_read(client);
	}
	cond_broadcast(&client->changed);
}

int client_wait(struct liminal *client, client_predicate *ready, const void *subject,
		int64_t deadline_ns)
{
	uint64_t epoch = client->epoch;
	bool looked = false; /* a deadline that has passed still allows one look */

	for (;;) {
		if (ready(subject))
			return LIMINAL_OK;
		if (client->state == CLIENT_LOST || client->epoch != epoch)
			return client_fail_with(&client->loss);
		if (looked && deadline_ns != DEADLINE_NEVER && clock_mono_ns() >= deadline_ns)
			return client_fail(LIMINAL_TIMEOUT, "no answer in time");
		looked = true;
		if (!client->polling)
			client_poll(client, deadline_ns);
		else
			cond_wait_until(&client->changed, &client->lock, deadline_ns);
	}
}

struct client_room {
	const struct liminal *client;
	size_t size;
};

static bool client_has_room(const void *subject)
{
	const struct client_room *room = subject;
	size_t waiting = room->client->output.length;

	return waiting == 0 || size_add(waiting, room->size) <= CLIENT_OUTPUT_LIMIT;
}

static bool client_encode(struct liminal *client, const struct wire_frame *frame, size_t size)
{
	struct client_bytes *output = &client->output;

	if (!client_bytes_reserve(output, size))
		return false;
	wire_encode(frame, output->data + output->start + output->length, size);
	output->length += size;
	return true;
}

int client_put(struct liminal *client, const struct wire_frame *frame, int64_t deadline_ns)
{
	struct client_room room = {.client = client, .size = wire_encode(frame, NULL, 0)};
	uint64_t epoch = client->epoch;
	int status;

	if (room.size == 0)
		return client_fail(LIMINAL_INVALID, "the message is larger than a frame can say");
	if (!client_has_room(&room))
		client_send(client);
	status = client_wait(client, client_has_room, &room, deadline_ns);
	if (status != LIMINAL_OK)
		return status;
	if (client->state == CLIENT_LOST || client->epoch != epoch)
		return client_fail_with(&client->loss); /* room, but on no or another connection */
	return client_encode(client, frame, room.size) ? LIMINAL_OK : client_fail_memory();
}

bool client_put_now(struct liminal *client, const struct wire_frame *frame)
{
	size_t size = wire_encode(frame, NULL, 0);

	return size > 0 && client_encode(client, frame, size);
}

/* What was thrown away because writing failed has not left: the end is about to be read. */
static bool client_drained(const void *subject)
{
	const struct liminal *client = subject;

	return client->output.length == 0 && !client->output_dead;
}

int client_drain(struct liminal *client, int64_t deadline_ns)
{
	uint64_t epoch = client->epoch;
	int status;

	client_send(client);
	status = client_wait(client, client_drained, client, deadline_ns);
	if (status == LIMINAL_OK && (client->state == CLIENT_LOST || client->epoch != epoch))
		return client_fail_with(&client->loss); /* empty because it was thrown away */
	return status;
}

void client_lose(struct liminal *client, struct client_fault *fault)
{
	struct list *node, *after;
	struct span why;

	if (client->state == CLIENT_LOST) {
		client_fault_clear(fault);
		return;
	}
	client->state = CLIENT_LOST;
	client_fault_move(&client->loss, fault);
	client_fault_clear(&client->farewell);
	shutdown(client->fd, SHUT_RDWR);
	client_bytes_free(&client->input);
	client_bytes_free(&client->output);
	why = span_of(client->loss.text != NULL ? client->loss.text : "");

	LIST_FOR_EACH_NODE(node, after, &client->answers)
	{
		struct client_answer *answer = LIST_ENTRY(node, struct client_answer, node);

		list_remove(node);
		answer->done = true;
		client_fault_set(&answer->fault, client->loss.status, client->loss.code, why);
		if (answer->counted)
			client_published(client, answer);
		else if (answer->unattended)
			client_answer_free(&answer);
	}
	LIST_FOR_EACH_NODE(node, after, &client->requests)
	{
		struct client_request *request = LIST_ENTRY(node, struct client_request, node);

		list_remove(node);
		request->done = true;
		client_fault_set(&request->fault, client->loss.status, client->loss.code, why);
	}
	LIST_FOR_EACH_NODE(node, after, &client->confirmations)
	{
		struct client_confirmation *confirmation =
			LIST_ENTRY(node, struct client_confirmation, node);

		list_remove(node);
		confirmation->done = true;
		client_fault_set(&confirmation->fault, client->loss.status, client->loss.code, why);
	}
	client_subscriptions_detach(client);
	client_jobs_drop(client);
	client->left = false;
	client_wake(client);
	cond_broadcast(&client->changed);
}
