/*
 * What the server sends, frame by frame: each finds whoever waits for it. Called by the poller
 * with the lock held; nothing here blocks.
 */
#include "client/client_priv.h"

#include <stdlib.h>
#include <string.h>

static struct span client_words(const struct wire_opt_string *text)
{
	return text->present ? text->text : span_of("the server gave no reason");
}

/* The answer at the head when it is for a request of TYPE, else NULL. */
static struct client_answer *client_answer_head(struct liminal *client, uint8_t type)
{
	struct client_answer *answer;

	if (list_empty(&client->answers))
		return NULL;
	answer = LIST_ENTRY(client->answers.next, struct client_answer, node);
	return answer->request == type ? answer : NULL;
}

/* ANSWER, which stands in client->answers, has its verdict. */
static void client_answer_finish(struct liminal *client, struct client_answer *answer)
{
	list_remove(&answer->node);
	answer->done = true;
	if (answer->counted)
		client_published(client, answer);
	else if (answer->unattended)
		client_answer_free(&answer);
}

static bool client_answer_is_publish(const struct client_answer *answer, uint32_t stream)
{
	return answer->request == WIRE_PUBLISH && answer->stream == stream;
}

/*
 * The publish that a verdict on STREAM is for. Those in front of it that have had none will get
 * none: a worker's, to a channel that the server does not answer.
 */
static struct client_answer *client_answer_publish(struct liminal *client, uint32_t stream)
{
	struct client_answer *found = NULL;
	struct list *node, *after;

	LIST_FOR_EACH_NODE(node, after, &client->answers)
	{
		struct client_answer *answer = LIST_ENTRY(node, struct client_answer, node);

		if (client_answer_is_publish(answer, stream)) {
			found = answer;
			break;
		}
		if (answer->request != WIRE_PUBLISH)
			break;
	}
	if (found == NULL)
		return client_answer_head(client, WIRE_PUBLISH);
	while (client->answers.next != &found->node) {
		struct client_answer *skipped =
			LIST_ENTRY(client->answers.next, struct client_answer, node);

		client_fault_set(&skipped->fault, LIMINAL_TIMEOUT, 0,
				 span_of("the server does not answer publishes to this channel"));
		client_answer_finish(client, skipped);
	}
	return found;
}

static void client_on_publish_ack(struct liminal *client, const struct wire_frame *frame)
{
	struct client_answer *answer = client_answer_publish(client, frame->header.stream);

	if (answer == NULL)
		return;
	answer->receipt = (struct liminal_receipt){
		.message = frame->u.publish_ack.message,
		.delivered = (frame->header.flags & WIRE_PUBLISH_ACK_DELIVERED) != 0,
		.duplicate = (frame->header.flags & WIRE_PUBLISH_ACK_DUPLICATE) != 0,
		.has_position = frame->u.publish_ack.has_position,
		.position = frame->u.publish_ack.position,
	};
	client_answer_finish(client, answer);
}

static void client_on_publish_error(struct liminal *client, const struct wire_frame *frame)
{
	struct client_answer *answer = client_answer_publish(client, frame->header.stream);

	if (answer == NULL)
		return;
	client_fault_set(&answer->fault, LIMINAL_REFUSED, frame->u.error.code,
			 client_words(&frame->u.error.text));
	client_answer_finish(client, answer);
}

/* The subscription must be live before this returns: its messages may be next in the buffer. */
static void client_on_subscribe_ack(struct liminal *client, const struct wire_frame *frame)
{
	struct client_answer *answer = client_answer_head(client, WIRE_SUBSCRIBE);
	struct liminal_subscription *subscription;

	if (answer == NULL)
		return;
	subscription = answer->subscription;
	if (subscription != NULL) {
		subscription->id = frame->u.subscribe_ack.subscription;
		subscription->state = SUBSCRIPTION_LIVE;
		subscription->asked = false;
		/* A reader that is asked for again goes on behind it. */
		if (subscription->start == LIMINAL_START_LIVE)
			subscription->last_sequence = 0;
	} else {
		client_subscription_cancel(client, answer->stream,
					   frame->u.subscribe_ack.subscription);
	}
	client_answer_finish(client, answer);
}

static void client_on_subscribe_error(struct liminal *client, const struct wire_frame *frame)
{
	struct client_answer *answer = client_answer_head(client, WIRE_SUBSCRIBE);
	struct span words = client_words(&frame->u.error.text);
	struct liminal_subscription *subscription =
		client_subscription_at(client, frame->header.stream);

	if (subscription != NULL && subscription->state == SUBSCRIPTION_LIVE) {
		client_subscription_end(subscription, frame->u.error.code, words);
		return;
	}
	/* Of a subscription that we have ended meanwhile. */
	if (answer == NULL || answer->stream != frame->header.stream)
		return;
	client_fault_set(&answer->fault, LIMINAL_REFUSED, frame->u.error.code, words);
	if (subscription != NULL)
		subscription->asked = false;
	/* One that is asked for the first time is told so by liminal_subscribe. */
	if (subscription != NULL && (subscription->state == SUBSCRIPTION_DETACHED ||
				     subscription->state == SUBSCRIPTION_PAUSED))
		client_subscription_end(subscription, frame->u.error.code, words);
	client_answer_finish(client, answer);
}

static void client_on_connect_ack(struct liminal *client, const struct wire_frame *frame)
{
	struct client_answer *answer = client_answer_head(client, WIRE_CONNECT);

	if (answer == NULL)
		return;
	client->version = frame->u.connect_ack.version;
	client->capabilities = frame->u.connect_ack.capabilities;
	client_answer_finish(client, answer);
}

/* The answer to a Connect, or the last word before the server closes. */
static void client_on_connect_error(struct liminal *client, const struct wire_frame *frame)
{
	struct client_answer *answer = client_answer_head(client, WIRE_CONNECT);
	struct span words = client_words(&frame->u.error.text);

	if (answer == NULL) {
		client_fault_set(&client->farewell, LIMINAL_LOST, frame->u.error.code, words);
		return;
	}
	client_fault_set(&answer->fault, LIMINAL_REFUSED, frame->u.error.code, words);
	client_answer_finish(client, answer);
}

static void client_on_disconnect(struct liminal *client)
{
	/* The server serves on until it closes; so what it still sends is still read. */
	if (client->farewell.status == LIMINAL_OK)
		client_fault_set(&client->farewell, LIMINAL_LOST, 0,
				 span_of("the server ended the connection"));
}

static void client_on_pong(struct liminal *client)
{
	struct client_answer *answer = client_answer_head(client, WIRE_PING);

	if (answer != NULL)
		client_answer_finish(client, answer);
}

static void client_on_register_ack(struct liminal *client, const struct wire_frame *frame)
{
	struct client_answer *answer = client_answer_head(client, WIRE_WORKER_REGISTER);

	if (answer == NULL)
		return;
	if (frame->u.worker_register_ack.rejected)
		client_fault_set(&answer->fault, LIMINAL_REFUSED, 0,
				 frame->u.worker_register_ack.reason);
	else
		client->left = answer->leaving;
	client_answer_finish(client, answer);
}

static struct client_request *client_request_at(struct liminal *client, uint32_t stream,
						uint64_t conversation)
{
	struct list *node, *after;

	LIST_FOR_EACH_NODE(node, after, &client->requests)
	{
		struct client_request *request = LIST_ENTRY(node, struct client_request, node);

		if (request->stream == stream && request->conversation == conversation)
			return request;
	}
	return NULL; /* whoever asked has given up */
}

static void client_on_message(struct liminal *client, const struct wire_frame *frame)
{
	struct client_request *request = client_request_at(
		client, frame->header.stream, frame->u.conversation_message.conversation);
	struct span payload = frame->u.conversation_message.envelope.payload;
	uint8_t *reply;

	if (request == NULL || !(frame->header.flags & WIRE_MESSAGE_REPLY))
		return;
	list_remove(&request->node);
	request->done = true;
	reply = malloc(size_add(payload.length, 1));
	if (reply == NULL) {
		client_fault_set(&request->fault, LIMINAL_MEMORY, 0,
				 span_of("out of memory for the reply"));
		return;
	}
	memcpy(reply, payload.data, payload.length);
	reply[payload.length] = '\0';
	request->reply = reply;
	request->reply_length = payload.length;
}

static void client_on_conversation_error(struct liminal *client, const struct wire_frame *frame)
{
	uint64_t id = frame->u.conversation_error.conversation;
	struct client_request *request = client_request_at(client, frame->header.stream, id);
	struct span words = client_words(&frame->u.conversation_error.text);
	struct list *node, *after;

	if (request != NULL) {
		list_remove(&request->node);
		request->done = true;
		client_fault_set(&request->fault, LIMINAL_REFUSED, frame->u.conversation_error.code,
				 words);
		return;
	}
	LIST_FOR_EACH_NODE(node, after, &client->conversations)
	{
		struct liminal_conversation *conversation =
			LIST_ENTRY(node, struct liminal_conversation, node);

		if (conversation->id == id && conversation->open_stream == frame->header.stream)
			client_fault_set(&conversation->fault, LIMINAL_REFUSED,
					 frame->u.conversation_error.code, words);
	}
}

static void client_on_deliver(struct liminal *client, const struct wire_frame *frame)
{
	struct liminal_subscription *subscription =
		client_subscription_at(client, frame->header.stream);

	if (subscription != NULL && subscription->state == SUBSCRIPTION_LIVE)
		client_subscription_deliver(subscription, frame);
}

static void client_on_frame(struct liminal *client, const struct wire_frame *frame)
{
	switch (frame->header.type) {
	case WIRE_CONNECT_ACK:
		client_on_connect_ack(client, frame);
		break;
	case WIRE_CONNECT_ERROR:
		client_on_connect_error(client, frame);
		break;
	case WIRE_DISCONNECT:
		client_on_disconnect(client);
		break;
	case WIRE_SUBSCRIBE_ACK:
		client_on_subscribe_ack(client, frame);
		break;
	case WIRE_SUBSCRIBE_ERROR:
		client_on_subscribe_error(client, frame);
		break;
	case WIRE_PUBLISH_ACK:
		client_on_publish_ack(client, frame);
		break;
	case WIRE_PUBLISH_ERROR:
		client_on_publish_error(client, frame);
		break;
	case WIRE_CONVERSATION_MESSAGE:
		client_on_message(client, frame);
		break;
	case WIRE_CONVERSATION_ERROR:
		client_on_conversation_error(client, frame);
		break;
	case WIRE_PONG:
		client_on_pong(client);
		break;
	case WIRE_PUSH:
		client_job_arrived(client, frame->u.push.correlation, frame->u.push.payload);
		break;
	case WIRE_WORKER_REGISTER_ACK:
		client_on_register_ack(client, frame);
		break;
	case WIRE_ACCEPT:
	case WIRE_DEFER:
	case WIRE_REJECT:
		client_on_confirmation(client, frame);
		break;
	case WIRE_DELIVER:
		client_on_deliver(client, frame);
		break;
	default: /* unknown, or of a client: skipped by its length */
		break;
	}
}

static void client_receive_nonsense(struct liminal *client, const char *why)
{
	struct client_fault fault = {.status = LIMINAL_OK};
	char line[256];
	struct text text = TEXT_INIT(line);

	text_add(&text, "the server sent a frame that is not of the protocol: %s", why);
	client_fault_set(&fault, LIMINAL_PROTOCOL, 0, span_of(line));
	client_lose(client, &fault);
}

void client_receive(struct liminal *client)
{
	struct client_bytes *input = &client->input;

	while (input->length >= WIRE_HEADER_SIZE) {
		const uint8_t *bytes = input->data + input->start;
		struct wire_frame frame;
		size_t consumed = 0;
		const char *why = NULL;
		enum wire_verdict verdict;

		if (wire_get_header(bytes).length > CLIENT_FRAME_MAX) {
			client_receive_nonsense(client, "it is larger than 1 GiB");
			return;
		}
		verdict =
			wire_decode(bytes, input->length, client->version, &frame, &consumed, &why);
		if (verdict == WIRE_INCOMPLETE)
			return;
		if (verdict != WIRE_OK) {
			client_receive_nonsense(client, why);
			return;
		}
		client_on_frame(client, &frame);
		input->start += consumed;
		input->length -= consumed;
	}
}
