/*
 * A consumer's answers to what it was sent. Each goes out on the subscription's stream; one that is
 * to be confirmed is found again by its message id, since the server keeps the order of those of a
 * subscription.
 */
#include "client/client_priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* "..18446744073709551615" */
#define CONSUME_ID 24

static bool consume_confirmed(const void *subject)
{
	const struct client_confirmation *confirmation = subject;

	return confirmation->done;
}

void client_on_confirmation(struct liminal *client, const struct wire_frame *frame)
{
	struct list *node, *after;

	if (!(frame->header.flags & WIRE_ANSWER_CONFIRM))
		return;
	LIST_FOR_EACH_NODE(node, after, &client->confirmations)
	{
		struct client_confirmation *confirmation =
			LIST_ENTRY(node, struct client_confirmation, node);

		if (confirmation->stream != frame->header.stream ||
		    !span_equal(confirmation->message, frame->u.answer.message))
			continue;
		list_remove(node);
		confirmation->done = true;
		/* A confirmation has no reason; a refusal is a Reject that has one. */
		if (frame->u.answer.reason.present)
			client_fault_set(&confirmation->fault, LIMINAL_REFUSED, WIRE_REASON_SERVER,
					 frame->u.answer.reason.text);
		return;
	}
}

/* Sends FRAME; with CONFIRMATION waits for it, too. The lock is held. */
static int consume_send(struct liminal *client, const struct wire_frame *frame,
			struct client_confirmation *confirmation, int64_t deadline_ns)
{
	int status = client_put(client, frame, deadline_ns);

	if (status != LIMINAL_OK)
		return status;
	if (confirmation != NULL)
		list_append(&client->confirmations, &confirmation->node);
	client_send(client);
	if (confirmation == NULL)
		return LIMINAL_OK;
	status = client_wait(client, consume_confirmed, confirmation, deadline_ns);
	list_remove(&confirmation->node);
	if (status == LIMINAL_OK && confirmation->fault.status != LIMINAL_OK)
		status = client_fail_with(&confirmation->fault);
	return status;
}

static int consume_answer(struct liminal_subscription *subscription, uint8_t type, uint8_t flags,
			  bool up_to, uint64_t sequence, const char *reason, int timeout_ms)
{
	struct client_confirmation confirmation = {.done = false};
	struct wire_frame frame = {.header = {.type = type, .flags = flags}};
	int64_t deadline_ns;
	struct liminal *client;
	char id[CONSUME_ID];
	int status;

	if (subscription == NULL)
		return client_fail(LIMINAL_INVALID, "there is no subscription");
	if (subscription->consumer == NULL)
		return client_fail(LIMINAL_INVALID,
				   "a subscription without a consumer answers nothing");
	if (reason != NULL && !client_text_valid(reason))
		return client_fail(LIMINAL_INVALID, "the reason is not UTF-8");
	client = subscription->client;
	snprintf(id, sizeof(id), "%s%" PRIu64, up_to ? ".." : "", sequence);
	frame.u.answer.message = span_of(id);
	if (reason != NULL)
		frame.u.answer.reason = (struct wire_opt_string){true, span_of(reason)};
	if (timeout_ms != 0)
		frame.header.flags |= WIRE_ANSWER_CONFIRM;
	status = client_enter(client);
	if (status != LIMINAL_OK)
		return status;
	/* Also for an answer that is not confirmed the connection must take it. */
	deadline_ns = client_deadline(timeout_ms != 0 ? timeout_ms : (int)client->timeout_ms);
	frame.header.stream = confirmation.stream = subscription->stream;
	confirmation.message = frame.u.answer.message;
	list_init(&confirmation.node);
	if (subscription->state == SUBSCRIPTION_ENDED)
		status = client_fail_with(&subscription->fault);
	else
		status = consume_send(client, &frame, timeout_ms != 0 ? &confirmation : NULL,
				      deadline_ns);
	mutex_unlock(&client->lock);
	client_fault_clear(&confirmation.fault);
	return status;
}

int liminal_accept(struct liminal_subscription *subscription, uint64_t sequence, int timeout_ms)
{
	return consume_answer(subscription, WIRE_ACCEPT, 0, false, sequence, NULL, timeout_ms);
}

int liminal_accept_up_to(struct liminal_subscription *subscription, uint64_t sequence,
			 int timeout_ms)
{
	return consume_answer(subscription, WIRE_ACCEPT, 0, true, sequence, NULL, timeout_ms);
}

int liminal_defer(struct liminal_subscription *subscription, uint64_t sequence, const char *reason,
		  int timeout_ms)
{
	return consume_answer(subscription, WIRE_DEFER, 0, false, sequence, reason, timeout_ms);
}

int liminal_working(struct liminal_subscription *subscription, uint64_t sequence, int timeout_ms)
{
	return consume_answer(subscription, WIRE_DEFER, WIRE_ANSWER_WORKING, false, sequence, NULL,
			      timeout_ms);
}

int liminal_reject(struct liminal_subscription *subscription, uint64_t sequence, const char *reason,
		   int timeout_ms)
{
	return consume_answer(subscription, WIRE_REJECT, 0, false, sequence, reason, timeout_ms);
}
