/*
 * Durable channels as sessions see them: publishing and subscribing through the committer, and
 * what others may know about consumers.
 */
#include "broker/journal.h"

#include <stdlib.h>
#include <string.h>

bool broker_has_store(const struct broker *broker)
{
	return broker->committer != NULL;
}

bool broker_store_is_up(const struct broker *broker)
{
	return broker->committer == NULL || !atomic_load(&broker->committer->down);
}

bool broker_channel_is_durable(const struct channel *channel)
{
	return channel->journal != NULL;
}

/* --- publishing ---------------------------------------------------------------------------- */

/* An item for COUNT messages that are copied; NULL: no memory. */
static struct item *publish_item(struct client *client, struct channel *channel,
				 const struct message *run, size_t count)
{
	struct item *item = calloc(1, sizeof(*item));
	size_t size = 0, used = 0;

	if (item == NULL)
		return NULL;
	list_init(&item->in_queue);
	item->kind = ITEM_PUBLISH;
	item->journal = channel->journal;
	item->client = client;
	item->count = count;
	for (size_t i = 0; i < count; i++) {
		size += (run[i].buf == NULL ? run[i].envelope.length : 0) + run[i].key.length;
	}
	item->run = malloc(count * sizeof(*item->run));
	item->storage = buf_new(size);
	if (item->run == NULL || item->storage == NULL) {
		item_free(&item);
		return NULL;
	}
	memcpy(item->run, run, count * sizeof(*run));
	for (size_t i = 0; i < count; i++) {
		struct message *message = &item->run[i];

		if (message->buf != NULL) {
			/* A run has one such message at most, alone: see handle_publish. */
			ASSERT(item->large == NULL);
			item->large = buf_ref(message->buf);
		} else {
			memcpy(item->storage->data + used, message->envelope.data,
			       message->envelope.length);
			message->envelope.data = item->storage->data + used;
			used += message->envelope.length;
		}
		if (message->has_key && message->key.length > 0) {
			memcpy(item->storage->data + used, message->key.data, message->key.length);
			message->key.data = item->storage->data + used;
			used += message->key.length;
		}
	}
	return item;
}

/* There is no memory to hand it to the committer: it is refused in its place. */
static void publish_refuse(struct sink *sink, struct sink_place *place, struct message *run,
			   size_t count)
{
	struct flush_set set;

	for (size_t i = 0; i < count; i++)
		run[i].refused = "over-capacity: the server is out of memory for the message";
	flush_set_init(&set);
	sink->ops->fill_publishes(sink, place, run, count, &set);
	flush_set_run(&set);
}

size_t broker_publish_durable(struct client *client, struct channel *channel, struct message *run,
			      size_t count)
{
	struct committer *committer = client->broker->committer;
	struct sink *sink = client->sink;
	struct sink_place *place;
	uint64_t bytes;
	size_t taken = committer_admit(client, run, count, &bytes);
	struct item *item;
	bool quiet;

	if (taken == 0)
		return 0;
	quiet = broker_client_unanswered(client, channel);
	place = sink->ops->place(sink, quiet ? 0 : taken);
	if (place == NULL) { /* the connection is lost by that */
		committer_give_back(client, bytes);
		return taken;
	}
	item = publish_item(client, channel, run, taken);
	if (item == NULL) {
		committer_give_back(client, bytes);
		publish_refuse(sink, place, run, taken);
		return taken;
	}
	item->place = place;
	item->bytes = bytes;
	committer_add(committer, item);
	return taken;
}

/* --- subscribing --------------------------------------------------------------------------- */

struct subscription *client_durable_subscription(struct client *client, uint32_t stream)
{
	for (struct hash_node *node = hash_first(&client->durable_streams, hash_u64(stream));
	     node != NULL; node = hash_next(node)) {
		struct subscription *subscription =
			CONTAINER_OF(node, struct subscription, by_stream);

		if (subscription->stream == stream)
			return subscription;
	}
	return NULL;
}

static bool attachment_is_ended(struct attachment *attachment)
{
	bool ended;

	mutex_lock(&attachment->journal->channel->lock);
	ended = attachment->ended;
	mutex_unlock(&attachment->journal->channel->lock);
	return ended;
}

bool broker_client_durable_stream(struct client *client, uint32_t stream)
{
	struct subscription *subscription = client_durable_subscription(client, stream);

	return subscription != NULL && !attachment_is_ended(subscription->attachment);
}

/* Whether a plain subscription of the client's stands on STREAM. */
static bool client_stream_is_used(struct client *client, uint32_t stream)
{
	for (size_t i = 0; i < hash_slots(&client->subscriptions); i++)
		for (struct hash_node *node = hash_slot(&client->subscriptions, i); node != NULL;
		     node = node->next)
			if (CONTAINER_OF(node, struct subscription, by_id)->stream == stream)
				return true;
	return false;
}

static struct attachment *attachment_new(struct client *client, struct channel *channel,
					 const struct broker_durable_subscribe *subscribe)
{
	struct attachment *attachment = calloc(1, sizeof(*attachment));

	if (attachment == NULL)
		return NULL;
	atomic_init(&attachment->references, 1);
	attachment->journal = channel->journal;
	attachment->client = client;
	attachment->stream = subscribe->stream;
	attachment->max_in_flight =
		subscribe->max_in_flight < MAX_IN_FLIGHT ? subscribe->max_in_flight : MAX_IN_FLIGHT;
	list_init(&attachment->in_owner);
	deadline_init(&attachment->by_credit);
	list_init(&attachment->in_client);
	list_init(&attachment->owed);
	cursor_init(&attachment->cursor, 1);
	return attachment;
}

static struct item *subscribe_item(struct attachment *attachment,
				   const struct broker_durable_subscribe *subscribe)
{
	struct item *item = calloc(1, sizeof(*item));

	if (item == NULL)
		return NULL;
	list_init(&item->in_queue);
	item->kind = ITEM_SUBSCRIBE;
	item->journal = attachment->journal;
	item->client = attachment->client;
	item->attachment = attachment_ref(attachment);
	item->start = subscribe->start;
	item->value = subscribe->value;
	item->name_length = subscribe->consumer.length;
	if (subscribe->consumer.length > 0)
		memcpy(item->name, subscribe->consumer.data, subscribe->consumer.length);
	return item;
}

#define SUBSCRIBE_NO_MEMORY "the server is out of memory for a subscription"

const char *broker_subscribe_durable(struct client *client, struct channel *channel,
				     const struct broker_durable_subscribe *subscribe)
{
	struct sink *sink = client->sink;
	struct subscription *subscription;
	struct item *item = NULL;

	ASSERT(channel->journal != NULL && subscribe->consumer.length < 256);
	client_prune_subscriptions(client);
	if (atomic_load(&client->live_subscriptions) >= client->limits.subscriptions)
		return "over-capacity: max_subscriptions_per_connection is reached; unsubscribe "
		       "first, or use another connection";
	if (client_stream_is_used(client, subscribe->stream))
		return "this stream carries a subscription already; use another one for a durable "
		       "subscription";
	subscription = calloc(1, sizeof(*subscription));
	if (subscription == NULL)
		return SUBSCRIBE_NO_MEMORY;
	list_init(&subscription->in_channel);
	subscription->id = atomic_fetch_add(&client->broker->next_subscription, 1);
	subscription->stream = subscribe->stream;
	subscription->client = client;
	subscription->channel = channel;
	subscription->attachment = attachment_new(client, channel, subscribe);
	if (subscription->attachment != NULL) {
		subscription->attachment->subscription = subscription->id;
		item = subscribe_item(subscription->attachment, subscribe);
	}
	if (item == NULL ||
	    !hash_insert(&client->subscriptions, &subscription->by_id, hash_u64(subscription->id)))
		goto failed;
	if (!hash_insert(&client->durable_streams, &subscription->by_stream,
			 hash_u64(subscription->stream)))
		goto unhash;
	item->place = sink->ops->place(sink, 1);
	if (item->place == NULL) {
		hash_remove(&client->durable_streams, &subscription->by_stream);
		goto unhash;
	}
	atomic_fetch_add(&client->live_subscriptions, 1);
	committer_add(client->broker->committer, item);
	return NULL;
unhash:
	hash_remove(&client->subscriptions, &subscription->by_id);
failed:
	item_free(&item);
	attachment_unref(&subscription->attachment);
	free(subscription);
	return SUBSCRIBE_NO_MEMORY;
}

void subscription_end_durable(struct subscription *subscription)
{
	struct attachment *attachment = subscription->attachment;
	struct channel *channel = subscription->channel;
	struct flush_set set;

	flush_set_init(&set);
	mutex_lock(&channel->lock);
	if (!attachment->ended)
		atomic_fetch_sub(&attachment->client->live_subscriptions, 1);
	attachment_end_locked(attachment, &set);
	mutex_unlock(&channel->lock);
	flush_set_run(&set);
}

void broker_client_end_after_answers(struct client *client)
{
	struct committer *committer = client->broker->committer;

	if (committer == NULL)
		return;
	mutex_lock(&committer->lock);
	atomic_store(&client->ends_after_answers, true);
	if (client->commit_count == 0)
		atomic_store(&client->takes_nothing, true);
	mutex_unlock(&committer->lock);
}

/* --- what others may know ------------------------------------------------------------------ */

static bool states_add(struct broker_consumer_state **states, size_t *count, size_t *capacity,
		       const struct consumer *consumer)
{
	const struct journal *journal = consumer->journal;
	struct broker_consumer_state *state;
	uint64_t done = consumer->done.floor;

	if (*count == *capacity) {
		size_t more = *capacity == 0 ? 16 : *capacity * 2;
		struct broker_consumer_state *grown = realloc(*states, more * sizeof(*grown));

		if (grown == NULL)
			return false;
		*states = grown;
		*capacity = more;
	}
	state = &(*states)[(*count)++];
	*state = (struct broker_consumer_state){
		.channel = broker_channel_name(journal->channel),
		.subscriptions = consumer->attachment_count,
		.outstanding = consumer->outstanding,
		.deferred = consumer->deferred,
		.redeliveries = consumer->redeliveries,
		.discarded = consumer->discarded,
		.dead_rejected = consumer->dead_rejected,
		.dead_attempts = consumer->dead_attempts,
		.idle_since_ms = consumer->attachment_count > 0 ? 0 : consumer->idle_since_ms,
	};
	memcpy(state->name, consumer->name, consumer->name_length);
	for (size_t i = 0; i < consumer->done.count; i++)
		done += consumer->done.items[i].to - consumer->done.items[i].from + 1;
	state->lag = journal->last > done ? journal->last - done : 0;
	return true;
}

bool broker_consumer_states(struct broker *broker, struct channel *only,
			    struct broker_consumer_state **states, size_t *count)
{
	struct channel_set *set = atomic_load_explicit(&broker->channels, memory_order_acquire);
	size_t capacity = 0;
	bool complete = true;

	*states = NULL;
	*count = 0;
	for (size_t i = 0; i < set->count && complete; i++) {
		struct channel *channel = set->channels[i];

		if (channel->journal == NULL || (only != NULL && channel != only))
			continue;
		mutex_lock(&channel->lock);
		for (struct list *node = channel->journal->consumer_list.next;
		     node != &channel->journal->consumer_list && complete; node = node->next)
			complete = states_add(states, count, &capacity,
					      LIST_ENTRY(node, struct consumer, in_journal));
		mutex_unlock(&channel->lock);
	}
	if (!complete) {
		free(*states);
		*states = NULL;
		*count = 0;
	}
	return complete;
}

/* Has the committer do it, and waits for that. */
static enum store_result committer_call(struct committer *committer, struct item *item)
{
	struct ticket ticket = {.done = false};

	item->ticket = &ticket;
	lock_assert_none_held();
	committer_add(committer, item);
	mutex_lock(&committer->lock);
	while (!ticket.done)
		cond_wait(&committer->done, &committer->lock);
	mutex_unlock(&committer->lock);
	return ticket.result;
}

enum broker_remove_result broker_consumer_remove(struct broker *broker, struct channel *channel,
						 struct span consumer)
{
	struct item *item;

	if (channel->journal == NULL || consumer.length == 0 || consumer.length > 255)
		return BROKER_REMOVE_NONE;
	item = calloc(1, sizeof(*item));
	if (item == NULL)
		return BROKER_REMOVE_FAILED;
	list_init(&item->in_queue);
	item->kind = ITEM_REMOVE;
	item->journal = channel->journal;
	item->reason = "consumer removed: the administrator has removed this consumer";
	item->name_length = consumer.length;
	memcpy(item->name, consumer.data, consumer.length);
	switch (committer_call(broker->committer, item)) {
	case STORE_OK:
		return BROKER_REMOVED;
	case STORE_NONE:
		return BROKER_REMOVE_NONE;
	default:
		return BROKER_REMOVE_FAILED;
	}
}

#define DEAD_MAX 1000

bool broker_dead_read(struct broker *broker, struct channel *channel, uint64_t from, uint64_t count,
		      struct broker_dead **dead, size_t *found)
{
	struct item *item;
	bool complete;

	*dead = NULL;
	*found = 0;
	if (channel->journal == NULL)
		return true;
	item = calloc(1, sizeof(*item));
	if (item == NULL)
		return false;
	list_init(&item->in_queue);
	item->kind = ITEM_DEAD;
	item->journal = channel->journal;
	item->from = from;
	item->wanted = count < DEAD_MAX ? count : DEAD_MAX;
	item->dead = dead;
	item->found = found;
	complete = committer_call(broker->committer, item) == STORE_OK;
	if (!complete) {
		broker_dead_free(dead, *found);
		*found = 0;
	}
	return complete;
}

void broker_dead_free(struct broker_dead **dead, size_t count)
{
	for (size_t i = 0; *dead != NULL && i < count; i++) {
		free((*dead)[i].origin);
		free((*dead)[i].consumer);
		free((*dead)[i].text);
	}
	free(*dead);
	*dead = NULL;
}
