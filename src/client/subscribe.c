/*
 * Subscriptions. Each has a stream of its own, by which its messages and its end are found, and a
 * queue that is filled by whoever polls; a handle's queues are chained in the order of arrival.
 */
#include "client/client_priv.h"

#include <stdlib.h>
#include <string.h>

#define SUBSCRIPTION_MAX_IN_FLIGHT 1024
#define SUBSCRIPTION_QUEUE_MESSAGES 65536
#define SUBSCRIPTION_QUEUE_BYTES ((size_t)32 * 1024 * 1024)

struct liminal_subscription *client_subscription_at(struct liminal *client, uint32_t stream)
{
	struct list *bucket = &client->subscriptions[stream % CLIENT_BUCKETS], *node, *after;

	LIST_FOR_EACH_NODE(node, after, bucket)
	{
		struct liminal_subscription *subscription =
			LIST_ENTRY(node, struct liminal_subscription, in_bucket);

		if (subscription->stream == stream)
			return subscription;
	}
	return NULL;
}

static void delivery_free(struct client_delivery **delivery)
{
	free(*delivery);
	*delivery = NULL;
}

void liminal_delivery_free(struct liminal_delivery **delivery)
{
	struct client_delivery *whole;

	if (*delivery == NULL)
		return;
	whole = CONTAINER_OF(*delivery, struct client_delivery, public);
	*delivery = NULL;
	delivery_free(&whole);
}

/* Copies BYTES and a NUL to *AT and moves it on. */
static const char *delivery_copy(char **at, struct span bytes)
{
	char *copy = *at;

	if (bytes.length > 0)
		memcpy(copy, bytes.data, bytes.length);
	copy[bytes.length] = '\0';
	*at += bytes.length + 1;
	return copy;
}

static struct client_delivery *delivery_new(struct liminal_subscription *subscription,
					    const struct wire_frame *frame)
{
	const struct wire_envelope *envelope = &frame->u.deliver.envelope;
	struct span channel = span_of(subscription->channel), parent = {.data = NULL};
	struct client_delivery *delivery;
	char *at;

	if (envelope->parent.present)
		parent = envelope->parent.text;
	/* The lengths are those of parts of one frame, of 1 GiB at most. */
	delivery = malloc(sizeof(*delivery) + channel.length + parent.length +
			  envelope->payload.length + 3);
	if (delivery == NULL)
		return NULL;
	at = delivery->bytes;
	list_init(&delivery->in_subscription);
	list_init(&delivery->in_client);
	delivery->subscription = subscription;
	delivery->public = (struct liminal_delivery){
		.channel = delivery_copy(&at, channel),
		.sequence = frame->u.deliver.sequence,
		.redelivered = subscription->start != LIMINAL_START_LIVE &&
			       (frame->header.flags & WIRE_DELIVER_AGAIN) != 0,
		.has_clock = envelope->has_clock,
		.clock = envelope->clock,
	};
	if (frame->u.deliver.has_origin) {
		delivery->public.boot = frame->u.deliver.boot;
		delivery->public.message = frame->u.deliver.message;
	}
	if (envelope->parent.present) {
		delivery->public.parent = delivery_copy(&at, parent);
		delivery->public.parent_length = parent.length;
	}
	delivery->public.payload = delivery_copy(&at, envelope->payload);
	delivery->public.length = envelope->payload.length;
	memcpy(delivery->public.schema, envelope->schema, WIRE_SCHEMA_SIZE);
	return delivery;
}

static bool subscription_full(const struct liminal_subscription *subscription, size_t length)
{
	return subscription->queued >= subscription->queue_messages ||
	       (subscription->queued > 0 &&
		size_add(subscription->queued_bytes, length) > subscription->queue_bytes);
}

/* A reader is to miss nothing: it is asked for again, from here, when its queue is empty. */
static void subscription_overflow(struct liminal_subscription *subscription)
{
	if (subscription->start == LIMINAL_START_LIVE || subscription->consumer != NULL)
		return;
	client_subscription_cancel(subscription->client, subscription->stream, subscription->id);
	subscription->state = SUBSCRIPTION_PAUSED;
}

void client_subscription_deliver(struct liminal_subscription *subscription,
				 const struct wire_frame *frame)
{
	size_t length = frame->u.deliver.envelope.payload.length;
	uint64_t sequence = frame->u.deliver.sequence;
	struct client_delivery *delivery;

	/* Whoever reads waits for something behind this: it must not stop here. The gap in the
	 * sequence tells, also when there is no memory for the message. What a consumer is sent is
	 * bounded by its credit. */
	if (subscription->consumer == NULL && subscription_full(subscription, length)) {
		subscription_overflow(subscription);
		return;
	}
	delivery = delivery_new(subscription, frame);
	if (delivery == NULL) {
		subscription_overflow(subscription);
		return;
	}
	if (subscription->start == LIMINAL_START_LIVE && sequence > subscription->last_sequence)
		delivery->public.missed = sequence - subscription->last_sequence - 1;
	subscription->last_sequence = sequence;
	subscription->queued++;
	subscription->queued_bytes += length;
	list_append(&subscription->deliveries, &delivery->in_subscription);
	list_append(&subscription->client->deliveries, &delivery->in_client);
}

static struct client_delivery *subscription_take(struct liminal_subscription *subscription)
{
	struct client_delivery *delivery;

	if (list_empty(&subscription->deliveries))
		return NULL;
	delivery =
		LIST_ENTRY(subscription->deliveries.next, struct client_delivery, in_subscription);
	list_remove(&delivery->in_subscription);
	list_remove(&delivery->in_client);
	subscription->queued--;
	subscription->queued_bytes -= delivery->public.length;
	return delivery;
}

void client_subscription_end(struct liminal_subscription *subscription, unsigned code,
			     struct span text)
{
	subscription->state = SUBSCRIPTION_ENDED;
	client_fault_set(&subscription->fault, LIMINAL_ENDED, code, text);
	cond_broadcast(&subscription->client->changed);
}

void client_subscription_free(struct liminal_subscription **subscriptionp)
{
	struct liminal_subscription *subscription = *subscriptionp;
	struct client_delivery *delivery;
	struct list *node, *after;

	*subscriptionp = NULL;
	if (subscription == NULL)
		return;
	LIST_FOR_EACH_NODE(node, after, &subscription->client->answers)
	{
		struct client_answer *answer = LIST_ENTRY(node, struct client_answer, node);

		if (answer->subscription == subscription)
			answer->subscription = NULL;
	}
	while ((delivery = subscription_take(subscription)) != NULL)
		delivery_free(&delivery);
	list_remove(&subscription->in_bucket);
	client_fault_clear(&subscription->fault);
	free(subscription->channel);
	free(subscription->schemas);
	free(subscription->consumer);
	free(subscription);
}

void client_subscription_cancel(struct liminal *client, uint32_t stream, uint64_t id)
{
	const struct wire_frame unsubscribe = {
		.header = {.type = WIRE_UNSUBSCRIBE, .stream = stream},
		.u.unsubscribe = {.subscription = id},
	};

	/* Without memory for it the server goes on sending to a stream that nobody listens to. */
	(void)client_put_now(client, &unsubscribe);
}

static void subscription_detach(struct liminal_subscription *subscription)
{
	struct client_delivery *delivery;

	if (subscription->state != SUBSCRIPTION_LIVE && subscription->state != SUBSCRIPTION_PAUSED)
		return;
	subscription->state = SUBSCRIPTION_DETACHED;
	subscription->asked = false;
	/* The server sends them again, to this one or another. */
	while (subscription->consumer != NULL &&
	       (delivery = subscription_take(subscription)) != NULL)
		delivery_free(&delivery);
}

void client_subscriptions_detach(struct liminal *client)
{
	struct list *node, *after;

	for (size_t i = 0; i < CLIENT_BUCKETS; i++)
		LIST_FOR_EACH_NODE(node, after, &client->subscriptions[i])
	subscription_detach(LIST_ENTRY(node, struct liminal_subscription, in_bucket));
}

/* A server that does not know durable channels could take the frame for a malformed one. */
static int subscription_make_durable(struct liminal_subscription *subscription,
				     struct wire_frame *frame)
{
	static const char missing[] = "not durable: the server keeps no messages (state_dir)";
	bool resume = subscription->consumer == NULL && subscription->last_sequence > 0;

	if (!(subscription->client->capabilities & WIRE_CAPABILITY_DURABLE)) {
		if (subscription->state != SUBSCRIPTION_ASKED)
			client_subscription_end(subscription, WIRE_REASON_SERVER, span_of(missing));
		return client_fail(LIMINAL_REFUSED, "%s", missing);
	}
	frame->header.flags = WIRE_SUBSCRIBE_DURABLE;
	frame->u.subscribe.durable = true;
	if (subscription->consumer != NULL)
		frame->u.subscribe.consumer = span_of(subscription->consumer);
	frame->u.subscribe.start =
		(uint8_t)((resume ? LIMINAL_START_SEQUENCE : subscription->start) -
			  LIMINAL_START_NEW);
	frame->u.subscribe.value = resume ? subscription->last_sequence + 1 : subscription->value;
	return LIMINAL_OK;
}

/* Sends the Subscribe and waits for its answer, which client_receive applies to SUBSCRIPTION. */
static int subscription_ask(struct liminal_subscription *subscription, int64_t deadline_ns)
{
	struct liminal *client = subscription->client;
	struct wire_frame frame = {
		.header = {.type = WIRE_SUBSCRIBE, .stream = subscription->stream},
		.u.subscribe = {.channel = span_of(subscription->channel),
				.schemas = {.count = (uint32_t)subscription->schema_count,
					    .bytes = {subscription->schemas,
						      subscription->schema_count *
							      WIRE_SCHEMA_SIZE}},
				.max_in_flight = subscription->max_in_flight},
	};
	struct client_answer *answer;
	int status;

	if (subscription->start != LIMINAL_START_LIVE) {
		status = subscription_make_durable(subscription, &frame);
		if (status != LIMINAL_OK)
			return status;
	}
	answer = client_answer_new(WIRE_SUBSCRIBE, subscription->stream);
	if (answer == NULL)
		return client_fail_memory();
	answer->subscription = subscription;
	status = client_put(client, &frame, deadline_ns);
	if (status == LIMINAL_OK) {
		list_append(&client->answers, &answer->node);
		subscription->asked = true;
		status = client_answer_wait(client, &answer, deadline_ns);
	}
	client_answer_free(&answer);
	return status;
}

static struct liminal_subscription *subscription_detached(struct liminal *client)
{
	struct list *node, *after;

	for (size_t i = 0; i < CLIENT_BUCKETS; i++)
		LIST_FOR_EACH_NODE(node, after, &client->subscriptions[i])
		{
			struct liminal_subscription *subscription =
				LIST_ENTRY(node, struct liminal_subscription, in_bucket);

			if (subscription->state == SUBSCRIPTION_DETACHED)
				return subscription;
		}
	return NULL;
}

int client_subscriptions_renew(struct liminal *client, int64_t deadline_ns)
{
	struct liminal_subscription *subscription;
	int status;

	/* Found anew each time: while one is asked for, others may be ended by their threads. */
	while ((subscription = subscription_detached(client)) != NULL) {
		status = subscription_ask(subscription, deadline_ns);
		/* A refusal has ended the subscription, which will say so itself. */
		if (status != LIMINAL_OK && status != LIMINAL_REFUSED)
			return status;
	}
	return LIMINAL_OK;
}

static struct liminal_subscription *
subscription_new(struct liminal *client, const char *channel,
		 const struct liminal_subscribe_options *options)
{
	struct liminal_subscription *subscription = calloc(1, sizeof(*subscription));
	size_t schema_bytes = options->schema_count * WIRE_SCHEMA_SIZE;

	if (subscription == NULL)
		return NULL;
	subscription->client = client;
	list_init(&subscription->in_bucket);
	list_init(&subscription->deliveries);
	subscription->max_in_flight =
		options->max_in_flight > 0 ? options->max_in_flight : SUBSCRIPTION_MAX_IN_FLIGHT;
	subscription->queue_messages =
		options->queue_messages > 0 ? options->queue_messages : SUBSCRIPTION_QUEUE_MESSAGES;
	subscription->queue_bytes =
		options->queue_bytes > 0 ? options->queue_bytes : SUBSCRIPTION_QUEUE_BYTES;
	subscription->start = (enum liminal_start)options->start;
	subscription->value = options->value;
	subscription->schema_count = options->schema_count;
	subscription->schemas = malloc(schema_bytes + 1);
	if (!client_copy_text(&subscription->channel, channel) || subscription->schemas == NULL ||
	    !client_copy_text(&subscription->consumer, options->consumer)) {
		client_subscription_free(&subscription);
		return NULL;
	}
	if (schema_bytes > 0)
		memcpy(subscription->schemas, options->schemas, schema_bytes);
	return subscription;
}

int liminal_subscribe(struct liminal *client, const char *channel,
		      const struct liminal_subscribe_options *given,
		      struct liminal_subscription **subscriptionp)
{
	struct liminal_subscribe_options options = LIMINAL_SUBSCRIBE_OPTIONS_INIT;
	struct liminal_subscription *subscription;
	int status;

	*subscriptionp = NULL;
	if (given != NULL)
		memcpy(&options, given, size_min(given->size, sizeof(options)));
	if (!client_text_valid(channel))
		return client_fail(LIMINAL_INVALID, "the channel name is not UTF-8");
	if (options.schema_count > 0 && options.schemas == NULL)
		return client_fail(LIMINAL_INVALID, "the schemas have a count but no bytes");
	if (options.schema_count > UINT32_MAX / WIRE_SCHEMA_SIZE)
		return client_fail(LIMINAL_INVALID, "there are too many schemas");
	if (options.start < LIMINAL_START_LIVE || options.start > LIMINAL_START_TIME)
		return client_fail(LIMINAL_INVALID, "there is no such start");
	if (options.consumer != NULL && options.start == LIMINAL_START_LIVE)
		return client_fail(LIMINAL_INVALID, "a consumer needs a start");
	if (options.consumer != NULL &&
	    (*options.consumer == '\0' || !client_text_valid(options.consumer)))
		return client_fail(LIMINAL_INVALID, "the consumer's name is empty or not UTF-8");
	status = client_enter(client);
	if (status != LIMINAL_OK)
		return status;
	subscription = subscription_new(client, channel, &options);
	if (subscription == NULL) {
		mutex_unlock(&client->lock);
		return client_fail_memory();
	}
	subscription->stream = client->next_subscription_stream++;
	list_append(&client->subscriptions[subscription->stream % CLIENT_BUCKETS],
		    &subscription->in_bucket);
	status =
		subscription_ask(subscription, clock_after_ms(clock_mono_ns(), client->timeout_ms));
	if (status == LIMINAL_OK)
		*subscriptionp = subscription;
	else
		client_subscription_free(&subscription);
	mutex_unlock(&client->lock);
	return status;
}

/*
 * Asks for a paused reader again when its queue is empty. When the caller's time passes before the
 * answer, the question stands.
 */
static int subscription_resume(struct liminal_subscription *subscription, int64_t deadline_ns)
{
	int status = LIMINAL_OK;

	if (subscription->state == SUBSCRIPTION_PAUSED && !subscription->asked &&
	    list_empty(&subscription->deliveries))
		status = subscription_ask(subscription, deadline_ns);
	/* A refusal has ended it. */
	return status == LIMINAL_REFUSED ? LIMINAL_OK : status;
}

static struct liminal_subscription *subscription_to_resume(const struct liminal *client)
{
	const struct list *bucket, *node;

	for (size_t i = 0; i < CLIENT_BUCKETS; i++) {
		bucket = &client->subscriptions[i];
		for (node = bucket->next; node != bucket; node = node->next) {
			struct liminal_subscription *subscription =
				LIST_ENTRY(node, struct liminal_subscription, in_bucket);

			if (subscription->state == SUBSCRIPTION_PAUSED && !subscription->asked &&
			    list_empty(&subscription->deliveries))
				return subscription;
		}
	}
	return NULL;
}

static bool subscription_has_news(const void *subject)
{
	const struct liminal_subscription *subscription = subject;

	return !list_empty(&subscription->deliveries) || subscription->state == SUBSCRIPTION_ENDED;
}

int liminal_next(struct liminal_subscription *subscription, int timeout_ms,
		 struct liminal_delivery **deliveryp)
{
	int64_t deadline_ns = client_deadline(timeout_ms);
	struct client_delivery *delivery;
	struct liminal *client;
	int status;

	*deliveryp = NULL;
	if (subscription == NULL)
		return client_fail(LIMINAL_INVALID, "there is no subscription");
	client = subscription->client;
	mutex_lock(&client->lock);
	client_send(client);
	status = subscription_resume(subscription, deadline_ns);
	if (status == LIMINAL_OK)
		status = client_wait(client, subscription_has_news, subscription, deadline_ns);
	if (status == LIMINAL_OK) {
		delivery = subscription_take(subscription);
		if (delivery != NULL)
			*deliveryp = &delivery->public;
		else
			status = client_fail_with(&subscription->fault);
	}
	mutex_unlock(&client->lock);
	return status;
}

static struct liminal_subscription *subscription_ended(const struct liminal *client)
{
	const struct list *bucket, *node;

	for (size_t i = 0; i < CLIENT_BUCKETS; i++) {
		bucket = &client->subscriptions[i];
		for (node = bucket->next; node != bucket; node = node->next) {
			struct liminal_subscription *subscription =
				LIST_ENTRY(node, struct liminal_subscription, in_bucket);

			if (subscription->state == SUBSCRIPTION_ENDED && !subscription->end_told)
				return subscription;
		}
	}
	return NULL;
}

static bool client_has_news(const void *subject)
{
	const struct liminal *client = subject;

	return !list_empty(&client->deliveries) || subscription_ended(client) != NULL;
}

int liminal_next_any(struct liminal *client, int timeout_ms,
		     struct liminal_subscription **subscriptionp,
		     struct liminal_delivery **deliveryp)
{
	int64_t deadline_ns = client_deadline(timeout_ms);
	struct liminal_subscription *subscription = NULL;
	struct client_delivery *delivery;
	int status = LIMINAL_OK;

	*deliveryp = NULL;
	if (subscriptionp != NULL)
		*subscriptionp = NULL;
	if (client == NULL)
		return client_fail(LIMINAL_INVALID, "there is no handle");
	mutex_lock(&client->lock);
	client_send(client);
	while (status == LIMINAL_OK && list_empty(&client->deliveries) &&
	       (subscription = subscription_to_resume(client)) != NULL)
		status = subscription_resume(subscription, deadline_ns);
	if (status == LIMINAL_OK)
		status = client_wait(client, client_has_news, client, deadline_ns);
	subscription = NULL;
	if (status == LIMINAL_OK && !list_empty(&client->deliveries)) {
		delivery = LIST_ENTRY(client->deliveries.next, struct client_delivery, in_client);
		subscription = delivery->subscription;
		delivery = subscription_take(subscription);
		*deliveryp = &delivery->public;
	} else if (status == LIMINAL_OK) {
		subscription = subscription_ended(client);
		subscription->end_told = true;
		status = client_fail_with(&subscription->fault);
	}
	if (subscriptionp != NULL)
		*subscriptionp = subscription;
	mutex_unlock(&client->lock);
	return status;
}

void liminal_unsubscribe(struct liminal_subscription **subscriptionp)
{
	struct liminal_subscription *subscription = *subscriptionp;
	struct liminal *client;

	if (subscription == NULL)
		return;
	*subscriptionp = NULL;
	client = subscription->client;
	mutex_lock(&client->lock);
	if (subscription->state == SUBSCRIPTION_LIVE) {
		client_subscription_cancel(client, subscription->stream, subscription->id);
		client_send(client);
	}
	client_subscription_free(&subscription);
	mutex_unlock(&client->lock);
}
