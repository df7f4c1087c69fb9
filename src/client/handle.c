/*
 * The handle: opening, greeting, reconnecting, closing; and what each call begins and ends with.
 */
#include "client/client_priv.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CLIENT_DEFAULT_SERVER "127.0.0.1:7480"
#define CLIENT_CONNECT_TIMEOUT_MS 10000
#define CLIENT_TIMEOUT_MS 30000
#define CLIENT_WINDOW 1024
#define CLIENT_CLOSE_MS 1000

/* Pauses between attempts to reconnect: drawn from the upper half of a range that doubles. */
#define CLIENT_PAUSE_FIRST_MS 100
#define CLIENT_PAUSE_LAST_MS 10000

/* Subscriptions have the lower streams for themselves: theirs live long, the others wrap. */
#define CLIENT_STREAM_BASE UINT32_C(0x40000000)

int64_t client_deadline(int timeout_ms)
{
	return timeout_ms < 0 ? DEADLINE_NEVER : clock_after_ms(clock_mono_ns(), timeout_ms);
}

int client_enter(struct liminal *client)
{
	int status;

	if (client == NULL)
		return client_fail(LIMINAL_INVALID, "there is no handle");
	mutex_lock(&client->lock);
	if (client->state == CLIENT_CONNECTED)
		return LIMINAL_OK;
	status = client_fail_with(&client->loss);
	mutex_unlock(&client->lock);
	return status;
}

uint32_t client_new_stream(struct liminal *client)
{
	return CLIENT_STREAM_BASE | (client->next_stream++ & (CLIENT_STREAM_BASE - 1));
}

bool client_copy_text(char **copy, const char *text)
{
	*copy = NULL;
	if (text == NULL)
		return true;
	*copy = strdup(text);
	return *copy != NULL;
}

bool client_text_valid(const char *text)
{
	return text != NULL && utf8_valid((const uint8_t *)text, strlen(text));
}

struct client_answer *client_answer_new(uint8_t request, uint32_t stream)
{
	struct client_answer *answer = calloc(1, sizeof(*answer));

	if (answer == NULL)
		return NULL;
	list_init(&answer->node);
	answer->request = request;
	answer->stream = stream;
	return answer;
}

void client_answer_free(struct client_answer **answer)
{
	if (*answer == NULL)
		return;
	client_fault_clear(&(*answer)->fault);
	free(*answer);
	*answer = NULL;
}

static bool client_answer_done(const void *subject)
{
	const struct client_answer *answer = subject;

	return answer->done;
}

int client_answer_wait(struct liminal *client, struct client_answer **answer, int64_t deadline_ns)
{
	int status;

	client_send(client);
	status = client_wait(client, client_answer_done, *answer, deadline_ns);
	if (status == LIMINAL_OK && (*answer)->fault.status != LIMINAL_OK)
		return client_fail_with(&(*answer)->fault);
	if (status != LIMINAL_OK) {
		(*answer)->unattended = true;
		*answer = NULL;
	}
	return status;
}

/* Sends FRAME and waits for its answer. */
static int client_ask(struct liminal *client, const struct wire_frame *frame, int64_t deadline_ns)
{
	struct client_answer *answer = client_answer_new(frame->header.type, frame->header.stream);
	int status;

	if (answer == NULL)
		return client_fail_memory();
	status = client_put(client, frame, deadline_ns);
	if (status == LIMINAL_OK) {
		list_append(&client->answers, &answer->node);
		status = client_answer_wait(client, &answer, deadline_ns);
	}
	client_answer_free(&answer);
	return status;
}

static int client_greet(struct liminal *client, int64_t deadline_ns)
{
	const struct wire_frame connect = {
		.header = {.type = WIRE_CONNECT},
		.u.connect = {.min = WIRE_VERSION_1_0,
			      .max = WIRE_VERSION_1_2,
			      .token = {client->token, client->token_length}},
	};
	int status = client_ask(client, &connect, deadline_ns);

	if (status == LIMINAL_TIMEOUT)
		return client_fail(LIMINAL_UNREACHABLE,
				   "\"%s\" took the connection but did not "
				   "greet back in time",
				   client->server);
	if (status == LIMINAL_LOST)
		return client_fail(LIMINAL_UNREACHABLE, "\"%s\": %s", client->server,
				   client->loss.text != NULL ? client->loss.text : "");
	return status;
}

/* Makes a connection that stands as the last one did. *FOR_GOOD: another attempt would end alike.
 */
static int client_establish(struct liminal *client, bool *for_good)
{
	int64_t deadline_ns = clock_after_ms(clock_mono_ns(), client->connect_timeout_ms);
	struct client_fault fault = {.status = LIMINAL_OK};
	int status, fd;

	*for_good = false;
	while (client->polling) {
		client_wake(client);
		cond_wait(&client->changed, &client->lock);
	}
	if (client->fd != -1)
		close(client->fd);
	client->fd = -1;
	mutex_unlock(&client->lock);
	status = client_socket_connect(client->server, deadline_ns, &fd);
	mutex_lock(&client->lock);
	if (status != LIMINAL_OK) {
		*for_good = status == LIMINAL_INVALID;
		return status;
	}
	client->fd = fd;
	if (client->stopped)
		return client_fail_with(&client->loss);

	client->epoch++;
	client->state = CLIENT_HANDSHAKE;
	client->output_dead = false;
	client->version = WIRE_VERSION_1_0;
	client->capabilities = 0;
	status = client_greet(client, deadline_ns);
	*for_good = status == LIMINAL_REFUSED &&
		    (liminal_last_error()->code == WIRE_REASON_AUTHENTICATION ||
		     liminal_last_error()->code == WIRE_REASON_VERSION);
	if (status == LIMINAL_OK)
		status = client_subscriptions_renew(client, deadline_ns);
	if (status == LIMINAL_OK && client->registration.present) {
		status = client_registration_send(client, false, deadline_ns);
		*for_good = status == LIMINAL_REFUSED;
	}
	if (status == LIMINAL_OK) {
		client->state = CLIENT_CONNECTED;
		cond_broadcast(&client->changed);
		return LIMINAL_OK;
	}
	client_fault_set(&fault, LIMINAL_LOST, liminal_last_error()->code,
			 span_of(liminal_last_error()->text));
	client_lose(client, &fault);
	return status;
}

/* A handle without a connection. */
static struct liminal *client_new(const struct liminal_options *options)
{
	struct liminal *client = calloc(1, sizeof(*client));

	if (client == NULL)
		return NULL;
	mutex_init(&client->lock, LOCK_CLIENT);
	cond_init(&client->changed);
	client->fd = client->wake[0] = client->wake[1] = -1;
	client->connect_timeout_ms = options->connect_timeout_ms > 0 ? options->connect_timeout_ms
								     : CLIENT_CONNECT_TIMEOUT_MS;
	client->timeout_ms = options->timeout_ms > 0 ? options->timeout_ms : CLIENT_TIMEOUT_MS;
	client->window = options->window > 0 ? options->window : CLIENT_WINDOW;
	client->version = WIRE_VERSION_1_0;
	client->next_subscription_stream = client->next_stream = 1;
	client->next_conversation = 1;
	/* Only to spread clients that lost the same server: not a secret. */
	client->random = (uint64_t)clock_mono_ns() ^ (uint64_t)clock_wall_ms() << 20 ^
			 (uint64_t)getpid() << 40 ^ (uintptr_t)client;
	list_init(&client->answers);
	list_init(&client->finished);
	for (size_t i = 0; i < CLIENT_BUCKETS; i++)
		list_init(&client->subscriptions[i]);
	list_init(&client->deliveries);
	list_init(&client->conversations);
	list_init(&client->requests);
	list_init(&client->confirmations);
	list_init(&client->jobs);
	return client;
}

/* Frees a handle whose connection has ended, so that only what the application held is left. */
static void client_free(struct liminal **clientp)
{
	struct liminal *client = *clientp;
	struct list *node, *after;

	*clientp = NULL;
	for (size_t i = 0; i < CLIENT_BUCKETS; i++)
		LIST_FOR_EACH_NODE(node, after, &client->subscriptions[i])
		{
			struct liminal_subscription *subscription =
				LIST_ENTRY(node, struct liminal_subscription, in_bucket);

			client_subscription_free(&subscription);
		}
	LIST_FOR_EACH_NODE(node, after, &client->conversations)
	{
		struct liminal_conversation *conversation =
			LIST_ENTRY(node, struct liminal_conversation, node);

		client_conversation_free(&conversation);
	}
	LIST_FOR_EACH_NODE(node, after, &client->finished)
	{
		struct client_answer *answer = LIST_ENTRY(node, struct client_answer, node);

		client_answer_free(&answer);
	}
	client_jobs_drop(client);
	client_registration_free(&client->registration);
	client_fault_clear(&client->loss);
	client_fault_clear(&client->farewell);
	client_fault_clear(&client->first_refusal);
	client_fault_clear(&client->first_unanswered);
	client_bytes_free(&client->input);
	client_bytes_free(&client->output);
	if (client->fd != -1)
		close(client->fd);
	if (client->wake[0] != -1)
		close(client->wake[0]);
	if (client->wake[1] != -1)
		close(client->wake[1]);
	cond_destroy(&client->changed);
	mutex_destroy(&client->lock);
	free(client->server);
	free(client->token);
	free(client);
}

int liminal_open(const struct liminal_options *given, struct liminal **clientp)
{
	struct liminal_options options = LIMINAL_OPTIONS_INIT;
	struct liminal *client;
	bool for_good;
	int status;

	*clientp = NULL;
	if (given != NULL)
		memcpy(&options, given, size_min(given->size, sizeof(options)));
	if (options.token == NULL && options.token_length > 0)
		return client_fail(LIMINAL_INVALID, "a token has a length but no bytes");
	client = client_new(&options);
	if (client == NULL)
		return client_fail_memory();
	status = client_socket_pair(client->wake);
	if (status != LIMINAL_OK)
		goto failed;
	client->token = malloc(size_add(options.token_length, 1));
	if (client->token == NULL ||
	    !client_copy_text(&client->server,
			      options.server != NULL ? options.server : CLIENT_DEFAULT_SERVER)) {
		status = client_fail_memory();
		goto failed;
	}
	if (options.token_length > 0)
		memcpy(client->token, options.token, options.token_length);
	client->token_length = options.token_length;

	mutex_lock(&client->lock);
	status = client_establish(client, &for_good);
	mutex_unlock(&client->lock);
	if (status == LIMINAL_OK) {
		*clientp = client;
		return LIMINAL_OK;
	}
failed:
	client_free(&client);
	return status;
}

static bool client_never(const void *subject)
{
	(void)subject;
	return false;
}

void liminal_close(struct liminal **clientp)
{
	static const struct wire_frame disconnect = {.header = {.type = WIRE_DISCONNECT}};
	struct client_fault fault = {.status = LIMINAL_OK};
	struct liminal *client = *clientp;
	int64_t deadline_ns = clock_after_ms(clock_mono_ns(), CLIENT_CLOSE_MS);

	if (client == NULL)
		return;
	mutex_lock(&client->lock);
	/*
	 * The server reads up to the Disconnect and then closes. Closing first, with input unread,
	 * would send a reset, which can destroy on its way what was published last.
	 */
	if (client->state == CLIENT_CONNECTED &&
	    client_put(client, &disconnect, deadline_ns) == LIMINAL_OK &&
	    client_drain(client, deadline_ns) == LIMINAL_OK) {
		shutdown(client->fd, SHUT_WR);
		client_wait(client, client_never, NULL, deadline_ns);
	}
	client_fault_set(&fault, LIMINAL_STOPPED, 0, span_of("closed"));
	client_lose(client, &fault);
	mutex_unlock(&client->lock);
	*clientp = NULL;
	client_free(&client);
}

void liminal_stop(struct liminal *client)
{
	struct client_fault fault = {.status = LIMINAL_OK};

	if (client == NULL)
		return;
	mutex_lock(&client->lock);
	client->stopped = true;
	client_fault_set(&fault, LIMINAL_STOPPED, 0, span_of("stopped"));
	if (client->state == CLIENT_LOST)
		client_fault_move(&client->loss, &fault);
	else
		client_lose(client, &fault);
	client_wake(client);
	cond_broadcast(&client->changed);
	mutex_unlock(&client->lock);
}

static int64_t client_pause_ns(struct liminal *client, int64_t pause_ms)
{
	/* xorshift64: never zero once it is not */
	client->random |= client->random == 0;
	client->random ^= client->random << 13;
	client->random ^= client->random >> 7;
	client->random ^= client->random << 17;
	return (pause_ms / 2 + (int64_t)(client->random % (uint64_t)(pause_ms / 2 + 1))) *
	       NS_PER_MS;
}

/* Attempts until one succeeds, one fails for good, or the next would come after DEADLINE_NS. */
static int client_reconnect_attempts(struct liminal *client, int64_t deadline_ns)
{
	int64_t pause_ms = CLIENT_PAUSE_FIRST_MS;

	for (;;) {
		int64_t until_ns = clock_mono_ns() + client_pause_ns(client, pause_ms);
		bool for_good;
		int status;

		if (until_ns > deadline_ns)
			until_ns = deadline_ns;
		while (!client->stopped && clock_mono_ns() < until_ns)
			cond_wait_until(&client->changed, &client->lock, until_ns);
		if (client->stopped)
			return client_fail_with(&client->loss);
		status = client_establish(client, &for_good);
		if (status == LIMINAL_OK || for_good)
			return status;
		if (client->stopped)
			return client_fail_with(&client->loss);
		if (clock_mono_ns() >= deadline_ns)
			return status;
		pause_ms =
			pause_ms * 2 > CLIENT_PAUSE_LAST_MS ? CLIENT_PAUSE_LAST_MS : pause_ms * 2;
	}
}

int liminal_reconnect(struct liminal *client, int timeout_ms)
{
	int64_t deadline_ns = client_deadline(timeout_ms);
	int status = LIMINAL_OK;

	if (client == NULL)
		return client_fail(LIMINAL_INVALID, "there is no handle");
	mutex_lock(&client->lock);
	while (client->reconnecting && !client->stopped)
		if (!cond_wait_until(&client->changed, &client->lock, deadline_ns))
			break;
	if (client->state == CLIENT_CONNECTED) {
		status = LIMINAL_OK;
	} else if (client->stopped || client->reconnecting) {
		status = client_fail_with(&client->loss);
	} else {
		client->reconnecting = true;
		status = client_reconnect_attempts(client, deadline_ns);
		client->reconnecting = false;
		cond_broadcast(&client->changed);
	}
	mutex_unlock(&client->lock);
	return status;
}

void liminal_protocol(struct liminal *client, unsigned *major, unsigned *minor,
		      uint32_t *capabilities)
{
	mutex_lock(&client->lock);
	*major = client->version.major;
	*minor = client->version.minor;
	*capabilities = client->capabilities;
	mutex_unlock(&client->lock);
}

int liminal_ping(struct liminal *client, int timeout_ms, int64_t *round_trip_ns)
{
	static const struct wire_frame ping = {.header = {.type = WIRE_PING}};
	int64_t deadline_ns = client_deadline(timeout_ms), begin_ns;
	int status;

	if (round_trip_ns != NULL)
		*round_trip_ns = 0;
	status = client_enter(client);
	if (status != LIMINAL_OK)
		return status;
	begin_ns = clock_mono_ns();
	status = client_ask(client, &ping, deadline_ns);
	if (status == LIMINAL_OK && round_trip_ns != NULL)
		*round_trip_ns = clock_mono_ns() - begin_ns;
	mutex_unlock(&client->lock);
	return status;
}
