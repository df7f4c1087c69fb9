/*
 * Channels: publishing to their subscriptions, subscribing, idempotency keys.
 *
 * A channel's lock is held while a run is appended to the outboxes of its subscriptions: that is
 * what gives all of them one order. It is taken once per run. Outboxes never block, so the lock is
 * held for as long as copying the run to each subscriber takes.
 */
#include "broker/broker_priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/metrics.h"
#include "broker/journal.h"

/* --- the set of channels ------------------------------------------------------------------- */

static bool channel_is_unanswered(const struct broker_settings *settings, const char *name)
{
	for (size_t i = 0; i < settings->unanswered_channel_count; i++)
		if (strcmp(settings->unanswered_channels[i], name) == 0)
			return true;
	return false;
}

static void channel_free(struct channel **channel)
{
	if (*channel == NULL)
		return;
	ASSERT((*channel)->subscription_count == 0);
	journal_free(&(*channel)->journal);
	dedup_free(&(*channel)->dedup);
	mutex_destroy(&(*channel)->lock);
	free((*channel)->name);
	free(*channel);
	*channel = NULL;
}

static struct channel *channel_new(struct broker *broker,
				   const struct broker_channel_settings *settings)
{
	struct channel *channel = calloc(1, sizeof(*channel));

	if (channel == NULL)
		return NULL;
	channel->name = strdup(settings->name);
	if (channel->name == NULL) {
		free(channel);
		return NULL;
	}
	channel->magic = CHANNEL_MAGIC;
	channel->broker = broker;
	channel->name_length = strlen(channel->name);
	memcpy(channel->schema_id, settings->schema_id, sizeof(channel->schema_id));
	atomic_init(&channel->unanswered, false);
	mutex_init(&channel->lock, LOCK_CHANNEL);
	list_init(&channel->subscriptions);
	dedup_init(&channel->dedup, settings->dedup_window_ms, settings->dedup_max_keys);
	if (settings->durable) {
		channel->journal = journal_new(channel);
		if (channel->journal == NULL)
			channel_free(&channel);
	}
	return channel;
}

static void channel_configure(struct channel *channel,
			      const struct broker_channel_settings *settings, uint64_t cache_bytes)
{
	mutex_lock(&channel->lock);
	channel->drop = settings->drop;
	dedup_configure(&channel->dedup, settings->dedup_window_ms, settings->dedup_max_keys,
			clock_mono_ns());
	if (channel->journal != NULL)
		journal_configure(channel->journal, settings, cache_bytes);
	mutex_unlock(&channel->lock);
}

/* The slot that holds NAME, or the empty one where it belongs. */
static struct channel **channel_set_slot(const struct channel_set *set, struct span name)
{
	size_t slot = hash_bytes(name.data, name.length) & (set->slot_count - 1);

	while (set->slots[slot] != NULL && !span_equal(name, broker_channel_name(set->slots[slot])))
		slot = (slot + 1) & (set->slot_count - 1);
	return &set->slots[slot];
}

static void channel_set_add(struct channel_set *set, struct channel *channel)
{
	set->channels[set->count++] = channel;
	*channel_set_slot(set, broker_channel_name(channel)) = channel;
}

/* The channels of PREVIOUS (which may be NULL), with room for MORE. */
static struct channel_set *channel_set_new(struct channel_set *previous, size_t more)
{
	size_t capacity = more + (previous == NULL ? 0 : previous->count);
	struct channel_set *set = calloc(1, sizeof(*set) + capacity * sizeof(set->channels[0]));

	if (set == NULL)
		return NULL;
	set->previous = previous;
	set->slot_count = 16;
	while (set->slot_count < 2 * capacity)
		set->slot_count *= 2;
	set->slots = calloc(set->slot_count, sizeof(*set->slots));
	if (set->slots == NULL) {
		free(set);
		return NULL;
	}
	for (size_t i = 0; previous != NULL && i < previous->count; i++)
		channel_set_add(set, previous->channels[i]);
	return set;
}

/* Where each durable channel's dead letters go. */
static void channels_link_dead_letters(const struct channel_set *set,
				       const struct broker_settings *settings)
{
	for (size_t i = 0; i < settings->channel_count; i++) {
		const struct broker_channel_settings *wanted = &settings->channels[i];
		struct channel *channel = *channel_set_slot(set, span_of(wanted->name));
		struct channel *dead = NULL;

		if (channel == NULL || channel->journal == NULL)
			continue;
		if (wanted->stored.dead_letter != NULL)
			dead = *channel_set_slot(set, span_of(wanted->stored.dead_letter));
		mutex_lock(&channel->lock);
		channel->journal->dead_letter = dead == NULL ? NULL : dead->journal;
		mutex_unlock(&channel->lock);
	}
}

static bool channels_apply(struct broker *broker, const struct broker_settings *settings)
{
	struct channel_set *old = atomic_load_explicit(&broker->channels, memory_order_acquire);
	struct channel_set *set = channel_set_new(old, settings->channel_count);
	bool complete = true;

	if (set == NULL)
		return false;
	for (size_t i = 0; i < settings->channel_count && complete; i++) {
		const struct broker_channel_settings *wanted = &settings->channels[i];
		struct channel *channel = *channel_set_slot(set, span_of(wanted->name));

		if (channel == NULL) {
			channel = channel_new(broker, wanted);
			if (channel != NULL)
				channel_set_add(set, channel);
		}
		if (channel != NULL)
			channel_configure(channel, wanted, settings->cache_bytes);
		complete = channel != NULL;
	}
	channels_link_dead_letters(set, settings);
	for (size_t i = 0; i < set->count; i++)
		atomic_store_explicit(&set->channels[i]->unanswered,
				      channel_is_unanswered(settings, set->channels[i]->name),
				      memory_order_relaxed);
	if (old != NULL && set->count == old->count) { /* nothing new: nobody has seen this set */
		free(set->slots);
		free(set);
	} else {
		atomic_store_explicit(&broker->channels, set, memory_order_release);
	}
	return complete;
}

bool channels_configure(struct broker *broker, const struct broker_settings *settings)
{
	bool complete;

	mutex_lock(&broker->channels_lock);
	complete = channels_apply(broker, settings);
	mutex_unlock(&broker->channels_lock);
	return complete;
}

bool channels_init(struct broker *broker, const struct broker_settings *settings)
{
	atomic_init(&broker->channels, NULL);
	mutex_init(&broker->channels_lock, LOCK_CHANNELS);
	return channels_configure(broker, settings);
}

void channels_free(struct broker *broker)
{
	struct channel_set *set = atomic_load_explicit(&broker->channels, memory_order_acquire);

	for (size_t i = 0; set != NULL && i < set->count; i++)
		channel_free(&set->channels[i]);
	while (set != NULL) {
		struct channel_set *previous = set->previous;

		free(set->slots);
		free(set);
		set = previous;
	}
	mutex_destroy(&broker->channels_lock);
}

struct channel *broker_channel(struct broker *broker, struct span name)
{
	struct channel_set *set = atomic_load_explicit(&broker->channels, memory_order_acquire);

	return *channel_set_slot(set, name);
}

const uint8_t *broker_channel_schema(const struct channel *channel)
{
	return channel->schema_id;
}

struct span broker_channel_name(const struct channel *channel)
{
	return (struct span){(const uint8_t *)channel->name, channel->name_length};
}

bool broker_client_unanswered(const struct client *client, const struct channel *channel)
{
	return client->ever_registered &&
	       atomic_load_explicit(&channel->unanswered, memory_order_relaxed);
}

/* --- publishing ---------------------------------------------------------------------------- */

/* Claims the keys of a run and gives out ids, in order. How many are to be delivered. */
static size_t channel_claim_locked(struct channel *channel, struct message *run, size_t count)
{
	struct broker *broker = channel->broker;
	size_t accepted = 0;
	bool keyed = false;
	int64_t now_ns;

	for (size_t i = 0; i < count && !keyed; i++)
		keyed = run[i].has_key;
	if (!keyed) { /* ids in one block */
		uint64_t id = atomic_fetch_add(&broker->next_message, count);

		for (size_t i = 0; i < count; i++)
			run[i].id = id + i;
		return count;
	}
	now_ns = clock_mono_ns();
	for (size_t i = 0; i < count; i++) {
		struct message *message = &run[i];
		uint64_t *owner = &message->id;
		enum dedup_result result = DEDUP_NEW;

		if (message->has_key)
			result = dedup_claim(&channel->dedup, message->key, now_ns, &owner);
		if (result == DEDUP_NEW) {
			*owner = atomic_fetch_add(&broker->next_message, 1);
			accepted++;
		}
		message->duplicate = result == DEDUP_KNOWN;
		message->refused = result == DEDUP_NO_MEMORY
					   ? "the server is out of memory for the "
					     "idempotency key"
					   : NULL;
		metric_add(METRIC_PUBLISHES_REFUSED_MEMORY, message->refused != NULL ? 1 : 0);
		message->id = message->refused != NULL ? 0 : *owner;
		channel->dedup_hits += message->duplicate;
	}
	return accepted;
}

static void subscription_end_locked(struct subscription *subscription)
{
	mutex_assert_held(&subscription->channel->lock);
	if (list_empty(&subscription->in_channel))
		return;
	list_remove(&subscription->in_channel);
	subscription->channel->subscription_count--;
	atomic_fetch_sub(&subscription->client->live_subscriptions, 1);
}

/* One run on its way to the subscriptions of a channel. */
struct publication {
	struct message *run;
	size_t count;
	size_t envelope_bytes;
	bool plain;
	bool quiet; /* the publisher gets no answers */
	struct flush_set *set;
	bool marked; /* all of a plain run are marked as delivered */
	struct buf *shared[DELIVERY_FORMS];
};

static void publication_sum_up(struct publication *publication)
{
	publication->envelope_bytes = 0;
	publication->plain = true;
	for (size_t i = 0; i < publication->count; i++) {
		const struct message *message = &publication->run[i];

		publication->envelope_bytes += message->envelope.length;
		if (message->buf != NULL || message->duplicate || message->refused != NULL)
			publication->plain = false;
	}
}

/* What sinks have made of it for each other. */
static void publication_let_go(struct publication *publication)
{
	for (size_t i = 0; i < DELIVERY_FORMS; i++)
		buf_unref(&publication->shared[i]);
}

/* Somebody has accepted all of a plain run. */
static void publication_mark(struct publication *publication)
{
	for (size_t i = 0; i < publication->count && !publication->marked; i++)
		publication->run[i].delivered = true;
	publication->marked = true;
}

/* PLACE: with ANSWER, where the answers have one. */
static void subscription_deliver_locked(struct subscription *subscription,
					struct publication *publication, bool answer,
					struct sink_place *place)
{
	struct channel *channel = subscription->channel;
	struct sink *sink = subscription->client->sink;
	struct delivery delivery = {
		.stream = subscription->stream,
		.sequence = subscription->sequence,
		.drop = channel->drop || subscription->never_shed,
		.answer = answer,
		.quiet = publication->quiet,
		.place = place,
		.boot = channel->broker->boot_ms,
		.channel = channel->name,
		.envelope_bytes = publication->envelope_bytes,
		.plain = publication->plain,
		.shared = publication->shared,
	};

	if (atomic_load_explicit(&subscription->client->takes_nothing, memory_order_relaxed))
		return; /* half-closed, and all is said */
	sink->ops->deliver(sink, &delivery, publication->run, publication->count, publication->set);
	if (publication->plain && delivery.accepted == publication->count)
		publication_mark(publication);
	subscription->sequence = delivery.sequence;
	channel->deliveries += delivery.accepted;
	channel->drops += delivery.dropped;
	metric_add(METRIC_DELIVERIES, delivery.accepted);
	if (delivery.overflow && !delivery.drop) {
		channel->sheds++;
		subscription_end_locked(subscription);
		sink->ops->shed(sink, subscription->stream,
				"subscription shed: its messages do not fit into the outbox of "
				"this connection; read faster, or raise max_outbox_bytes and "
				"max_outbox_frames",
				publication->set);
	}
}

/* To all subscriptions but those of CLIENT. */
static void publication_deliver_locked(struct publication *publication, struct channel *channel,
				       const struct client *client)
{
	struct list *node, *after;

	LIST_FOR_EACH_NODE(node, after, &channel->subscriptions)
	{
		struct subscription *subscription =
			LIST_ENTRY(node, struct subscription, in_channel);

		if (subscription->client != client)
			subscription_deliver_locked(subscription, publication, false, NULL);
	}
}

/* Then to those, with the answers, in PLACE if they have one, in front of the messages. False when
 * there is none. */
static bool publication_deliver_own_locked(struct publication *publication, struct channel *channel,
					   const struct client *client, struct sink_place *place)
{
	struct list *node, *after;
	bool answered = false;

	if (atomic_load_explicit(&client->live_subscriptions, memory_order_relaxed) == 0 ||
	    atomic_load_explicit(&client->takes_nothing, memory_order_relaxed))
		return false;
	LIST_FOR_EACH_NODE(node, after, &channel->subscriptions)
	{
		struct subscription *subscription =
			LIST_ENTRY(node, struct subscription, in_channel);

		if (subscription->client != client)
			continue;
		subscription_deliver_locked(subscription, publication, !answered,
					    answered ? NULL : place);
		answered = true;
	}
	return answered;
}

void channel_deliver_locked(struct channel *channel, const struct client *client,
			    struct message *run, size_t count, struct flush_set *set)
{
	struct publication publication = {.run = run, .count = count, .set = set};

	mutex_assert_held(&channel->lock);
	if (list_empty(&channel->subscriptions))
		return;
	publication_sum_up(&publication);
	publication_deliver_locked(&publication, channel, client);
	publication_let_go(&publication);
}

bool channel_deliver_own_locked(struct channel *channel, const struct client *client,
				struct message *run, size_t count, struct sink_place *place,
				struct flush_set *set)
{
	struct publication publication = {.run = run, .count = count, .set = set};
	bool answered;

	mutex_assert_held(&channel->lock);
	if (list_empty(&channel->subscriptions))
		return false;
	publication_sum_up(&publication);
	answered = publication_deliver_own_locked(&publication, channel, client, place);
	publication_let_go(&publication);
	return answered;
}

bool broker_publish(struct client *client, struct channel *channel, struct message *run,
		    size_t count, struct flush_set *set)
{
	struct publication publication = {
		.run = run,
		.count = count,
		.quiet = broker_client_unanswered(client, channel),
		.set = set,
	};
	bool answered;
	size_t accepted;

	mutex_lock(&channel->lock);
	accepted = channel_claim_locked(channel, run, count);
	channel->publishes += accepted;
	if (!list_empty(&channel->subscriptions))
		publication_sum_up(&publication);
	/* Others first: whether they have taken a message is part of the publisher's answer, which
	 * stands in front of its own deliveries. */
	publication_deliver_locked(&publication, channel, client);
	answered = publication_deliver_own_locked(&publication, channel, client, NULL);
	mutex_unlock(&channel->lock);
	publication_let_go(&publication);
	metric_add(METRIC_PUBLISHES, accepted);
	return answered;
}

/* --- subscribing --------------------------------------------------------------------------- */

static void subscription_free(struct subscription *subscription)
{
	struct client *client = subscription->client;

	hash_remove(&client->subscriptions, &subscription->by_id);
	if (subscription->attachment != NULL)
		hash_remove(&client->durable_streams, &subscription->by_stream);
	attachment_unref(&subscription->attachment);
	free(subscription);
}

static bool subscription_is_ended(struct subscription *subscription)
{
	bool ended;

	mutex_lock(&subscription->channel->lock);
	if (subscription->attachment != NULL)
		ended = subscription->attachment->ended;
	else
		ended = list_empty(&subscription->in_channel);
	mutex_unlock(&subscription->channel->lock);
	return ended;
}

/* Frees what was shed since; the walk is paid for by the subscriptions that were made. */
void client_prune_subscriptions(struct client *client)
{
	if (client->subscriptions.count ==
	    atomic_load_explicit(&client->live_subscriptions, memory_order_relaxed))
		return;
	for (size_t i = 0; i < hash_slots(&client->subscriptions); i++) {
		struct hash_node *node = hash_slot(&client->subscriptions, i);

		while (node != NULL) {
			struct subscription *subscription =
				CONTAINER_OF(node, struct subscription, by_id);

			node = node->next;
			if (subscription_is_ended(subscription))
				subscription_free(subscription);
		}
	}
}

enum broker_subscribe_result broker_subscribe(struct client *client, struct channel *channel,
					      uint32_t stream, uint32_t max_in_flight,
					      struct flush_set *set)
{
	struct subscription *subscription;

	client_prune_subscriptions(client);
	if (atomic_load(&client->live_subscriptions) >= client->limits.subscriptions)
		return BROKER_SUBSCRIBE_OVER_CAPACITY;
	subscription = calloc(1, sizeof(*subscription));
	if (subscription == NULL)
		return BROKER_SUBSCRIBE_NO_MEMORY;
	subscription->id = atomic_fetch_add(&client->broker->next_subscription, 1);
	subscription->stream = stream;
	subscription->never_shed = max_in_flight == 1;
	subscription->client = client;
	subscription->channel = channel;
	subscription->sequence = 1;
	if (!hash_insert(&client->subscriptions, &subscription->by_id,
			 hash_u64(subscription->id))) {
		free(subscription);
		return BROKER_SUBSCRIBE_NO_MEMORY;
	}
	mutex_lock(&channel->lock);
	/* The answer stands in the outbox before the channel can put a message there. */
	client->sink->ops->subscribed(client->sink, stream, subscription->id, channel->schema_id,
				      set);
	list_append(&channel->subscriptions, &subscription->in_channel);
	channel->subscription_count++;
	atomic_fetch_add(&client->live_subscriptions, 1);
	mutex_unlock(&channel->lock);
	return BROKER_SUBSCRIBED;
}

static void subscription_end(struct subscription *subscription)
{
	struct channel *channel = subscription->channel;

	if (subscription->attachment != NULL) {
		subscription_end_durable(subscription);
	} else {
		mutex_lock(&channel->lock);
		subscription_end_locked(subscription);
		mutex_unlock(&channel->lock);
	}
	subscription_free(subscription);
}

void broker_unsubscribe(struct client *client, uint64_t id)
{
	for (struct hash_node *node = hash_first(&client->subscriptions, hash_u64(id));
	     node != NULL; node = hash_next(node)) {
		struct subscription *subscription = CONTAINER_OF(node, struct subscription, by_id);

		if (subscription->id == id) {
			subscription_end(subscription);
			return;
		}
	}
}

void broker_client_end_subscriptions(struct client *client)
{
	for (size_t i = 0; i < hash_slots(&client->subscriptions); i++)
		while (hash_slot(&client->subscriptions, i) != NULL)
			subscription_end(CONTAINER_OF(hash_slot(&client->subscriptions, i),
						      struct subscription, by_id));
}

/* --- what others may know ------------------------------------------------------------------ */

bool broker_channel_states(struct broker *broker, struct broker_channel_state **states,
			   size_t *count)
{
	struct channel_set *set = atomic_load_explicit(&broker->channels, memory_order_acquire);
	int64_t now_ns = clock_mono_ns();

	*count = 0;
	*states = calloc(set->count + 1, sizeof(**states));
	if (*states == NULL)
		return false;
	for (size_t i = 0; i < set->count; i++) {
		struct channel *channel = set->channels[i];
		struct broker_channel_state *state = &(*states)[i];

		state->name = broker_channel_name(channel);
		mutex_lock(&channel->lock);
		state->subscriptions = channel->subscription_count;
		state->publishes = channel->publishes;
		state->deliveries = channel->deliveries;
		state->sheds = channel->sheds;
		state->drops = channel->drops;
		state->dedup_keys = dedup_count(&channel->dedup, now_ns);
		state->dedup_hits = channel->dedup_hits;
		if (channel->journal != NULL)
			journal_state_locked(channel->journal, state);
		mutex_unlock(&channel->lock);
	}
	*count = set->count;
	return true;
}
