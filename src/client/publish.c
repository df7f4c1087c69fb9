/* Publishing: one at a time, and pipelined behind a window. */
#include "client/client_priv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t publish_schema_zero[WIRE_SCHEMA_SIZE];

/* A publish as its caller asked for it. */
struct publish {
	struct wire_frame frame;
	struct liminal_publish_options options;
	uint8_t *context; /* as encoded */
};

/* opt string parent, opt u64 clock */
static bool publish_encode_context(struct publish *publish)
{
	const char *parent = publish->options.parent;
	size_t parent_length = parent != NULL ? strlen(parent) : 0;
	uint8_t *at = malloc(1 + 4 + parent_length + 1 + 8);

	publish->context = at;
	if (at == NULL)
		return false;
	*at++ = parent != NULL;
	if (parent != NULL) {
		wire_put_u32(at, (uint32_t)parent_length);
		memcpy(at + 4, parent, parent_length);
		at += 4 + parent_length;
	}
	*at++ = publish->options.has_clock;
	if (publish->options.has_clock) {
		wire_put_u64(at, publish->options.clock);
		at += 8;
	}
	publish->frame.u.publish.envelope.context =
		(struct span){publish->context, (size_t)(at - publish->context)};
	return true;
}

static void publish_destroy(struct publish *publish)
{
	free(publish->context);
	publish->context = NULL;
}

static int publish_init(struct publish *publish, const char *channel, const void *payload,
			size_t length, const struct liminal_publish_options *given)
{
	struct liminal_publish_options options = LIMINAL_PUBLISH_OPTIONS_INIT;

	memset(publish, 0, sizeof(*publish));
	if (given != NULL)
		memcpy(&options, given, size_min(given->size, sizeof(options)));
	publish->options = options;
	if (!client_text_valid(channel))
		return client_fail(LIMINAL_INVALID, "the channel name is not UTF-8");
	if (payload == NULL && length > 0)
		return client_fail(LIMINAL_INVALID, "the payload has a length but no bytes");
	if (length > UINT32_MAX)
		return client_fail(LIMINAL_INVALID, "the payload is larger than a frame can say");
	if (options.key != NULL && !client_text_valid(options.key))
		return client_fail(LIMINAL_INVALID, "the key is not UTF-8");
	if (options.parent != NULL && !client_text_valid(options.parent))
		return client_fail(LIMINAL_INVALID, "the parent message id is not UTF-8");
	publish->frame.header.type = WIRE_PUBLISH;
	publish->frame.u.publish.channel = span_of(channel);
	publish->frame.u.publish.envelope.schema =
		options.schema != NULL ? options.schema : publish_schema_zero;
	publish->frame.u.publish.envelope.payload = (struct span){payload, length};
	if (options.key != NULL) {
		publish->frame.header.flags |= WIRE_PUBLISH_HAS_KEY;
		publish->frame.u.publish.has_key = true;
		publish->frame.u.publish.key = span_of(options.key);
	}
	if (!publish_encode_context(publish))
		return client_fail_memory();
	return LIMINAL_OK;
}

/* Puts the publish behind the output, and notes that an answer is due. The lock is held. */
static int publish_put(struct liminal *client, struct publish *publish, int64_t deadline_ns,
		       struct client_answer **answer)
{
	int status;

	publish->frame.header.stream = client_new_stream(client);
	*answer = client_answer_new(WIRE_PUBLISH, publish->frame.header.stream);
	if (*answer == NULL)
		return client_fail_memory();
	status = client_put(client, &publish->frame, deadline_ns);
	if (status != LIMINAL_OK) {
		client_answer_free(answer);
		return status;
	}
	list_append(&client->answers, &(*answer)->node);
	return LIMINAL_OK;
}

int liminal_publish(struct liminal *client, const char *channel, const void *payload, size_t length,
		    const struct liminal_publish_options *options, struct liminal_receipt *receipt)
{
	struct client_answer *answer = NULL;
	struct publish publish;
	int64_t deadline_ns;
	int status;

	if (receipt != NULL)
		*receipt = (struct liminal_receipt){.message = 0};
	status = publish_init(&publish, channel, payload, length, options);
	if (status != LIMINAL_OK)
		goto out;
	status = client_enter(client);
	if (status != LIMINAL_OK)
		goto out;
	deadline_ns = clock_after_ms(clock_mono_ns(), client->timeout_ms);
	status = publish_put(client, &publish, deadline_ns, &answer);
	if (status == LIMINAL_OK)
		status = client_answer_wait(client, &answer, deadline_ns);
	if (status == LIMINAL_OK && receipt != NULL)
		*receipt = answer->receipt;
	mutex_unlock(&client->lock);
	client_answer_free(&answer);
out:
	publish_destroy(&publish);
	return status;
}

static void publish_note_first(struct client_fault *first, const struct client_fault *fault)
{
	if (first->status == LIMINAL_OK)
		client_fault_set(first, fault->status, fault->code,
				 span_of(fault->text != NULL ? fault->text : ""));
}

void client_published(struct liminal *client, struct client_answer *answer)
{
	struct liminal_flushed *flushed = &client->flushed;

	client->unanswered--;
	client->answered++;
	if (answer->fault.status == LIMINAL_OK) {
		flushed->accepted++;
		flushed->delivered += answer->receipt.delivered;
		flushed->duplicates += answer->receipt.duplicate;
	} else if (answer->fault.status == LIMINAL_REFUSED) {
		flushed->refused++;
		publish_note_first(&client->first_refusal, &answer->fault);
	} else {
		flushed->unanswered++;
		publish_note_first(&client->first_unanswered, &answer->fault);
	}
	list_append(&client->finished, &answer->node);
}

static void publish_tell(const struct client_answer *answer)
{
	if (answer->published == NULL)
		return;
	if (answer->fault.status == LIMINAL_OK) {
		answer->published(answer->context, LIMINAL_OK, &answer->receipt);
	} else {
		client_fail_with(&answer->fault);
		answer->published(answer->context, answer->fault.status, NULL);
	}
}

/*
 * Calls what waits to be called, without the lock. One thread at a time does, so that the order
 * is that of the publishes; another one leaves it to that thread. What is answered meanwhile is
 * for the next call: others that publish without a pause must not keep this one here.
 */
static void publish_call_back(struct liminal *client)
{
	uint64_t until = client->answered;

	if (client->calling_back || client->told == until)
		return;
	client->calling_back = true;
	while (client->told < until) {
		struct client_answer *answer =
			LIST_ENTRY(client->finished.next, struct client_answer, node);

		list_remove(&answer->node);
		mutex_unlock(&client->lock);
		publish_tell(answer);
		client_answer_free(&answer);
		mutex_lock(&client->lock);
		client->told++;
	}
	client->calling_back = false;
	cond_broadcast(&client->changed);
}

/* Waits for half of the window, so that what follows leaves in large pieces again. */
static bool publish_window_open(const void *subject)
{
	const struct liminal *client = subject;

	return client->unanswered <= client->window / 2;
}

int liminal_publish_async(struct liminal *client, const char *channel, const void *payload,
			  size_t length, const struct liminal_publish_options *options)
{
	struct client_answer *answer = NULL;
	struct publish publish;
	int64_t deadline_ns;
	int status;

	status = publish_init(&publish, channel, payload, length, options);
	if (status != LIMINAL_OK)
		goto out;
	status = client_enter(client);
	if (status != LIMINAL_OK)
		goto out;
	deadline_ns = clock_after_ms(clock_mono_ns(), client->timeout_ms);
	if (client->unanswered >= client->window) {
		client_send(client);
		status = client_wait(client, publish_window_open, client, deadline_ns);
	}
	if (status == LIMINAL_OK && client->state != CLIENT_CONNECTED)
		status = client_fail_with(&client->loss);
	if (status == LIMINAL_OK)
		status = publish_put(client, &publish, deadline_ns, &answer);
	if (status == LIMINAL_OK) {
		answer->counted = true;
		answer->published = publish.options.published;
		answer->context = publish.options.context;
		client->unanswered++;
		if (client->output.length >= CLIENT_OUTPUT_GATHER)
			client_send(client);
	}
	publish_call_back(client);
	mutex_unlock(&client->lock);
out:
	publish_destroy(&publish);
	return status;
}

/* Everything up to the publish of that number, counted from the first one. */
struct publish_target {
	const struct liminal *client;
	uint64_t number;
};

static bool publish_answered(const void *subject)
{
	const struct publish_target *target = subject;

	return target->client->answered >= target->number;
}

int liminal_flush(struct liminal *client, int timeout_ms, struct liminal_flushed *result)
{
	int64_t deadline_ns = client_deadline(timeout_ms);
	struct publish_target target = {.client = client};
	int status = LIMINAL_OK;
	uint64_t missing;

	if (result != NULL)
		*result = (struct liminal_flushed){.accepted = 0};
	if (client == NULL)
		return client_fail(LIMINAL_INVALID, "there is no handle");
	mutex_lock(&client->lock);
	target.number = client->answered + client->unanswered;
	if (client->state == CLIENT_CONNECTED) {
		client_send(client);
		client_wait(client, publish_answered, &target, deadline_ns);
	}
	missing = publish_answered(&target) ? 0 : target.number - client->answered;
	for (;;) {
		publish_call_back(client);
		if (client->told >= target.number - missing)
			break;
		cond_wait(&client->changed, &client->lock); /* another thread calls */
	}
	if (result != NULL) {
		*result = client->flushed;
		result->unanswered += missing;
	}
	if (missing > 0) {
		status = client_fail(LIMINAL_TIMEOUT, "%" PRIu64 " messages have no answer yet",
				     missing);
	} else {
		if (client->flushed.unanswered > 0)
			status = client_fail_with(&client->first_unanswered);
		else if (client->flushed.refused > 0)
			status = client_fail_with(&client->first_refusal);
		client->flushed = (struct liminal_flushed){.accepted = 0};
		client_fault_clear(&client->first_refusal);
		client_fault_clear(&client->first_unanswered);
	}
	mutex_unlock(&client->lock);
	return status;
}

size_t liminal_unanswered(struct liminal *client)
{
	size_t unanswered;

	mutex_lock(&client->lock);
	unanswered = client->unanswered;
	mutex_unlock(&client->lock);
	return unanswered;
}
