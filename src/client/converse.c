/* Conversations: requests and their replies. Each request has a stream of its own. */
#include "client/client_priv.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t converse_schema_zero[WIRE_SCHEMA_SIZE];
static const uint8_t converse_independent[2];

void client_conversation_free(struct liminal_conversation **conversationp)
{
	struct liminal_conversation *conversation = *conversationp;

	*conversationp = NULL;
	if (conversation == NULL)
		return;
	list_remove(&conversation->node);
	client_fault_clear(&conversation->fault);
	free(conversation->subject);
	free(conversation);
}

/*
 * Opens it on the present connection, unless that has been done. The lock is held, and is not
 * released meanwhile, so that two threads do not open it twice.
 */
static int conversation_open(struct liminal_conversation *conversation)
{
	struct liminal *client = conversation->client;
	const struct wire_frame open = {
		.header = {.type = WIRE_CONVERSATION_OPEN, .stream = client_new_stream(client)},
		.u.conversation_open = {.conversation = conversation->id,
					.subject = span_of(conversation->subject)},
	};

	if (conversation->epoch == client->epoch)
		return LIMINAL_OK;
	if (!client_put_now(client, &open))
		return client_fail_memory();
	conversation->epoch = client->epoch;
	conversation->open_stream = open.header.stream;
	client_fault_clear(&conversation->fault);
	return LIMINAL_OK;
}

int liminal_converse(struct liminal *client, const char *subject,
		     struct liminal_conversation **conversationp)
{
	struct liminal_conversation *conversation;
	int status;

	*conversationp = NULL;
	if (!client_text_valid(subject))
		return client_fail(LIMINAL_INVALID, "the subject is not UTF-8");
	status = client_enter(client);
	if (status != LIMINAL_OK)
		return status;
	conversation = calloc(1, sizeof(*conversation));
	if (conversation == NULL || !client_copy_text(&conversation->subject, subject)) {
		free(conversation);
		mutex_unlock(&client->lock);
		return client_fail_memory();
	}
	conversation->client = client;
	conversation->id = client->next_conversation++;
	list_append(&client->conversations, &conversation->node);
	status = conversation_open(conversation);
	client_send(client);
	if (status == LIMINAL_OK)
		*conversationp = conversation;
	else
		client_conversation_free(&conversation);
	mutex_unlock(&client->lock);
	return status;
}

static bool request_done(const void *subject)
{
	const struct client_request *request = subject;

	return request->done;
}

/* Sends the request and waits for its reply. The lock is held. */
static int request_ask(struct liminal_conversation *conversation, struct client_request *request,
		       struct span payload, int64_t deadline_ns)
{
	struct liminal *client = conversation->client;
	struct wire_frame frame = {
		.header = {.type = WIRE_CONVERSATION_MESSAGE, .flags = WIRE_MESSAGE_REPLY},
		.u.conversation_message = {.conversation = conversation->id,
					   .envelope = {.schema = converse_schema_zero,
							.context = {converse_independent, 2},
							.payload = payload}},
	};
	int status;

	status = conversation_open(conversation);
	if (status != LIMINAL_OK)
		return status;
	frame.header.stream = client_new_stream(client);
	request->stream = frame.header.stream;
	request->conversation = conversation->id;
	status = client_put(client, &frame, deadline_ns);
	if (status != LIMINAL_OK)
		return status;
	list_append(&client->requests, &request->node);
	client_send(client);
	status = client_wait(client, request_done, request, deadline_ns);
	if (status != LIMINAL_OK || request->fault.status == LIMINAL_OK)
		return status;
	/* Why it could not be opened says more than that it is not open. */
	if (request->fault.status == LIMINAL_REFUSED && conversation->fault.status != LIMINAL_OK)
		return client_fail_with(&conversation->fault);
	return client_fail_with(&request->fault);
}

int liminal_request(struct liminal_conversation *conversation, const void *payload, size_t length,
		    int timeout_ms, void **reply, size_t *reply_length)
{
	int64_t deadline_ns = client_deadline(timeout_ms);
	struct client_request request = {.done = false};
	struct liminal *client;
	int status;

	*reply = NULL;
	*reply_length = 0;
	if (conversation == NULL)
		return client_fail(LIMINAL_INVALID, "there is no conversation");
	if (payload == NULL && length > 0)
		return client_fail(LIMINAL_INVALID, "the payload has a length but no bytes");
	client = conversation->client;
	status = client_enter(client);
	if (status != LIMINAL_OK)
		return status;
	list_init(&request.node);
	status = request_ask(conversation, &request, (struct span){payload, length}, deadline_ns);
	list_remove(&request.node);
	mutex_unlock(&client->lock);
	if (status == LIMINAL_OK) {
		*reply = request.reply;
		*reply_length = request.reply_length;
	}
	client_fault_clear(&request.fault);
	return status;
}

void liminal_conversation_close(struct liminal_conversation **conversationp)
{
	struct liminal_conversation *conversation = *conversationp;
	struct wire_frame close = {.header = {.type = WIRE_CONVERSATION_CLOSE}};
	struct liminal *client;

	if (conversation == NULL)
		return;
	*conversationp = NULL;
	client = conversation->client;
	mutex_lock(&client->lock);
	if (client->state == CLIENT_CONNECTED && conversation->epoch == client->epoch) {
		close.header.stream = client_new_stream(client);
		close.u.conversation_close.conversation = conversation->id;
		/* Without memory for it the server closes it with the connection. */
		(void)client_put_now(client, &close);
		client_send(client);
	}
	client_conversation_free(&conversation);
	mutex_unlock(&client->lock);
}
