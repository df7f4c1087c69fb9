/* The broker as a whole: making it and taking it apart, its settings, its clients, its totals. */
#include "broker/broker_priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "broker/journal.h"

/* --- settings ------------------------------------------------------------------------------ */

static void names_free(char ***names, size_t count)
{
	for (size_t i = 0; *names != NULL && i < count; i++)
		free((*names)[i]);
	free(*names);
	*names = NULL;
}

static bool names_copy(char *const *names, size_t count, char ***copy)
{
	*copy = calloc(count + 1, sizeof(**copy));
	for (size_t i = 0; *copy != NULL && i < count; i++) {
		(*copy)[i] = strdup(names[i]);
		if ((*copy)[i] == NULL)
			names_free(copy, count);
	}
	return *copy != NULL;
}

bool broker_configure(struct broker *broker, const struct broker_settings *settings)
{
	size_t queue_count = settings->worker_queue_count, old_queue_count;
	size_t channel_count = settings->unanswered_channel_count, old_channel_count;
	char **queues = NULL, **channels = NULL, **old_queues, **old_channels;

	if (!names_copy(settings->worker_queues, queue_count, &queues) ||
	    !names_copy(settings->unanswered_channels, channel_count, &channels) ||
	    !channels_configure(broker, settings)) {
		names_free(&queues, queue_count);
		names_free(&channels, channel_count);
		return false;
	}
	mutex_lock(&broker->lock);
	broker->reply_timeout_ms = settings->reply_timeout_ms;
	broker->reply_timeout_max_ms = settings->reply_timeout_max_ms;
	broker->worker_settle_ms = settings->worker_settle_ms;
	broker->no_worker = settings->no_worker;
	old_queues = broker->worker_queues;
	old_queue_count = broker->worker_queue_count;
	broker->worker_queues = queues;
	broker->worker_queue_count = queue_count;
	old_channels = broker->unanswered_channels;
	old_channel_count = broker->unanswered_channel_count;
	broker->unanswered_channels = channels;
	broker->unanswered_channel_count = channel_count;
	mutex_unlock(&broker->lock);
	names_free(&old_queues, old_queue_count);
	names_free(&old_channels, old_channel_count);
	if (broker->committer != NULL)
		committer_configure(broker->committer, settings);
	return true;
}

/* Reads what the store has of each durable channel, and starts the committer. */
static bool broker_open_journals(struct broker *broker, const char **error)
{
	struct channel_set *set = atomic_load_explicit(&broker->channels, memory_order_acquire);
	struct store *store = broker->committer->store;
	enum store_result result = store->ops->begin(store);

	for (size_t i = 0; i < set->count && result == STORE_OK; i++)
		if (set->channels[i]->journal != NULL)
			result = journal_load(set->channels[i]->journal, broker->committer);
	if (result == STORE_OK)
		result = store->ops->commit(store);
	if (result != STORE_OK) {
		store->ops->rollback(store);
		*error = result == STORE_MEMORY ? "out of memory for the durable channels, or the "
						  "store is damaged: "
						  "check it with liminald -C"
						: "the store cannot be read or written";
		return false;
	}
	*error = "cannot start the committer";
	return committer_start(broker->committer);
}

struct broker *broker_new(const struct broker_settings *settings, uint64_t boot_ms,
			  struct store *store, const char **error)
{
	struct broker *broker = calloc(1, sizeof(*broker));

	*error = "out of memory for the broker";
	if (broker == NULL)
		return NULL;
	broker->boot_ms = store == NULL ? boot_ms : store->created_ms;
	atomic_init(&broker->next_message, store == NULL ? 1 : store->next_id);
	atomic_init(&broker->ids_low,
		    store == NULL ? UINT64_MAX : store->next_id + STORE_IDS_RESERVED / 2);
	atomic_init(&broker->next_subscription, 1);
	mutex_init(&broker->lock, LOCK_EXCHANGE);
	cond_init(&broker->wake);
	hash_init(&broker->clients);
	hash_init(&broker->queues);
	hash_init(&broker->correlations);
	list_init(&broker->registrations);
	list_init(&broker->waking);
	broker->anew_ns = INT64_MIN;
	broker->next_correlation = 1;
	broker->next_use = 1;
	if (store != NULL) {
		broker->committer = committer_new(broker, store);
		if (broker->committer == NULL)
			goto failed;
	}
	if (!channels_init(broker, settings) || !broker_configure(broker, settings))
		goto failed;
	if (!deadline_thread_start(broker)) {
		*error = "cannot start the deadline thread";
		goto failed;
	}
	if (store != NULL && !broker_open_journals(broker, error)) {
		deadline_thread_stop(broker);
		goto failed;
	}
	*error = NULL;
	return broker;
failed:
	channels_free(broker);
	committer_free(&broker->committer);
	names_free(&broker->worker_queues, broker->worker_queue_count);
	names_free(&broker->unanswered_channels, broker->unanswered_channel_count);
	cond_destroy(&broker->wake);
	mutex_destroy(&broker->lock);
	free(broker);
	return NULL;
}

void broker_set_control(struct broker *broker, const struct broker_control *control)
{
	broker->control = *control;
}

/* A clean stop gives back the ids that were reserved and not used. */
static void broker_close_store(struct broker *broker)
{
	struct store *store;

	if (broker->committer == NULL)
		return;
	store = broker->committer->store;
	if (!atomic_load(&broker->committer->down) &&
	    store->ops->ids_put(store, atomic_load(&broker->next_message)) != STORE_OK)
		log_event(LOG_LEVEL_WARNING, "message ids cannot be given back",
			  LOG_STR("text", "the next start leaves a gap"));
	store_close(&store);
	committer_free(&broker->committer);
}

void broker_free(struct broker **pointer)
{
	struct broker *broker = *pointer;

	if (broker == NULL)
		return;
	*pointer = NULL;
	if (broker->committer != NULL)
		committer_stop(broker->committer);
	deadline_thread_stop(broker);
	ASSERT(broker->clients.count == 0);
	ASSERT(broker->correlations.count == 0);
	worker_queues_forget(broker);
	ASSERT(broker->queues.count == 0);
	hash_destroy(&broker->clients);
	hash_destroy(&broker->queues);
	hash_destroy(&broker->correlations);
	channels_free(broker);
	broker_close_store(broker);
	names_free(&broker->worker_queues, broker->worker_queue_count);
	names_free(&broker->unanswered_channels, broker->unanswered_channel_count);
	cond_destroy(&broker->wake);
	mutex_destroy(&broker->lock);
	free(broker);
}

/* --- clients ------------------------------------------------------------------------------- */

struct client *broker_client_new(struct broker *broker, struct sink *sink, uint64_t id,
				 bool control, const struct broker_client_limits *limits)
{
	struct client *client = calloc(1, sizeof(*client));
	bool inserted;

	if (client == NULL)
		return NULL;
	client->magic = CLIENT_MAGIC;
	client->broker = broker;
	client->sink = sink;
	client->id = id;
	client->control = control;
	client->limits = *limits;
	atomic_init(&client->live_subscriptions, 0);
	atomic_init(&client->outstanding, 0);
	atomic_init(&client->ends_after_answers, false);
	atomic_init(&client->takes_nothing, false);
	hash_init(&client->subscriptions);
	hash_init(&client->durable_streams);
	list_init(&client->attachments);
	list_init(&client->in_waiters);
	cond_init(&client->share);
	hash_init(&client->conversations);
	cond_init(&client->quiet);
	list_init(&client->requests);
	list_init(&client->pushes);
	list_init(&client->turns);
	deadline_init(&client->settle);
	mutex_lock(&broker->lock);
	inserted = hash_insert(&broker->clients, &client->by_id, hash_u64(id));
	mutex_unlock(&broker->lock);
	if (!inserted) {
		cond_destroy(&client->quiet);
		cond_destroy(&client->share);
		free(client);
		return NULL;
	}
	return client;
}

void broker_client_free(struct client **pointer)
{
	struct client *client = *pointer;

	if (client == NULL)
		return;
	ASSERT_MAGIC(client, CLIENT_MAGIC);
	*pointer = NULL;
	mutex_lock(&client->broker->lock);
	hash_remove(&client->broker->clients, &client->by_id);
	mutex_unlock(&client->broker->lock);
	ASSERT(client->subscriptions.count == 0);
	ASSERT(client->conversations.count == 0);
	ASSERT(list_empty(&client->requests) && list_empty(&client->pushes) &&
	       list_empty(&client->turns));
	ASSERT(!deadline_queued(&client->settle));
	ASSERT(list_empty(&client->attachments) && client->commit_count == 0);
	hash_destroy(&client->subscriptions);
	hash_destroy(&client->durable_streams);
	cond_destroy(&client->share);
	hash_destroy(&client->conversations);
	cond_destroy(&client->quiet);
	client->magic = 0;
	free(client);
}

bool broker_client_unanswered_name(const struct client *client, struct span channel)
{
	struct broker *broker = client->broker;
	bool found = false;

	if (!client->ever_registered)
		return false;
	mutex_lock(&broker->lock);
	for (size_t i = 0; i < broker->unanswered_channel_count && !found; i++)
		found = span_equal(channel, span_of(broker->unanswered_channels[i]));
	mutex_unlock(&broker->lock);
	return found;
}

bool broker_client_wait_quiet(struct client *client)
{
	bool quiet;

	lock_assert_none_held();
	mutex_lock(&client->broker->lock);
	while (!client->interrupted && (client->pending_replies > 0 || client->waiting_count > 0))
		cond_wait(&client->quiet, &client->broker->lock);
	quiet = client->pending_replies == 0 && client->waiting_count == 0;
	mutex_unlock(&client->broker->lock);
	return quiet;
}

void broker_client_interrupt(struct client *client)
{
	mutex_lock(&client->broker->lock);
	client->interrupted = true;
	cond_broadcast(&client->quiet);
	mutex_unlock(&client->broker->lock);
	committer_interrupt(client);
}

/* --- what others may know ------------------------------------------------------------------ */

void broker_client_state(struct client *client, struct broker_client_state *state)
{
	*state = (struct broker_client_state){
		.subscriptions = atomic_load(&client->live_subscriptions),
		.outstanding_deliveries = atomic_load(&client->outstanding),
	};
	mutex_lock(&client->broker->lock);
	state->conversations = client->conversations.count;
	state->pending_replies = client->pending_replies;
	state->pending_pushes = client->push_count;
	state->waiting = client->waiting_one_way > 0;
	if (client->registration != NULL) {
		struct span queue = client->registration->queue->name;

		state->worker = true;
		state->queue_length = utf8_cut(queue.data, queue.length, sizeof(state->queue));
		memcpy(state->queue, queue.data, state->queue_length);
	}
	mutex_unlock(&client->broker->lock);
}

bool broker_conversations_elsewhere(struct broker *broker, const struct client *except)
{
	bool elsewhere;

	mutex_lock(&broker->lock);
	elsewhere = broker->conversation_count > except->conversations.count ||
		    broker->pending_reply_count > except->pending_replies ||
		    broker->waiting_count > except->waiting_count;
	mutex_unlock(&broker->lock);
	return elsewhere;
}

void broker_totals(struct broker *broker, struct broker_totals *totals)
{
	struct channel_set *set = atomic_load_explicit(&broker->channels, memory_order_acquire);

	*totals = (struct broker_totals){0};
	for (size_t i = 0; i < set->count; i++) {
		mutex_lock(&set->channels[i]->lock);
		totals->subscriptions += set->channels[i]->subscription_count;
		mutex_unlock(&set->channels[i]->lock);
	}
	mutex_lock(&broker->lock);
	totals->pending_replies = broker->pending_reply_count;
	totals->pending_pushes = broker->pushed_count;
	totals->waiting_requests = broker->waiting_count;
	totals->workers = broker->registration_count;
	totals->conversations = broker->conversation_count;
	mutex_unlock(&broker->lock);
	if (broker->committer != NULL)
		committer_totals(broker->committer, totals);
}
