/*
 * Workers: task queues, registrations, and which of them is chosen. All under EXCHANGE.
 *
 * A registration is listed in its queue while it may be chosen; conversations that are bound to it
 * hold references and see from its state how it ended.
 */
#include "broker/broker_priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/metrics.h"

/* --- task queues --------------------------------------------------------------------------- */

struct worker_queue *worker_queue_find_locked(struct broker *broker, struct span name)
{
	uint64_t hash = hash_bytes(name.data, name.length);

	for (struct hash_node *node = hash_first(&broker->queues, hash); node != NULL;
	     node = hash_next(node)) {
		struct worker_queue *queue = CONTAINER_OF(node, struct worker_queue, by_name);

		if (span_equal(name, queue->name))
			return queue;
	}
	return NULL;
}

struct worker_queue *worker_queue_ref_locked(struct worker_queue *queue)
{
	queue->references++;
	return queue;
}

/* A reference; makes the queue where there is none. NULL when memory is missing. */
struct worker_queue *worker_queue_get_locked(struct broker *broker, struct span name)
{
	struct worker_queue *queue = worker_queue_find_locked(broker, name);

	if (queue != NULL)
		return worker_queue_ref_locked(queue);
	queue = malloc(sizeof(*queue) + name.length);
	if (queue == NULL)
		return NULL;
	queue->references = 1;
	list_init(&queue->workers);
	list_init(&queue->waiting);
	list_init(&queue->anew);
	list_init(&queue->in_waking);
	if (name.length > 0)
		memcpy(queue->storage, name.data, name.length);
	queue->name = (struct span){queue->storage, name.length};
	if (!hash_insert(&broker->queues, &queue->by_name, hash_bytes(name.data, name.length))) {
		free(queue);
		return NULL;
	}
	return queue;
}

void worker_queue_put_locked(struct broker *broker, struct worker_queue *queue)
{
	if (--queue->references > 0)
		return;
	ASSERT(list_empty(&queue->workers) && list_empty(&queue->waiting) &&
	       list_empty(&queue->anew));
	hash_remove(&broker->queues, &queue->by_name);
	free(queue);
}

void worker_queues_forget(struct broker *broker)
{
	mutex_lock(&broker->lock);
	while (!list_empty(&broker->waking)) {
		struct worker_queue *queue =
			LIST_ENTRY(broker->waking.next, struct worker_queue, in_waking);

		list_remove(&queue->in_waking);
		worker_queue_put_locked(broker, queue);
	}
	mutex_unlock(&broker->lock);
}

/* --- registrations ------------------------------------------------------------------------- */

void registration_unref_locked(struct registration **pointer)
{
	struct registration *registration = *pointer;

	*pointer = NULL;
	if (registration == NULL || --registration->references > 0)
		return;
	free(registration->storage);
	free(registration);
}

static struct span storage_copy(uint8_t **storage, struct span bytes)
{
	struct span copy = {*storage, bytes.length};

	if (bytes.length > 0)
		memcpy(*storage, bytes.data, bytes.length);
	*storage += bytes.length;
	return copy;
}

/* The length in front of a name. */
static size_t name_length(const uint8_t *length)
{
	return (size_t)length[0] << 24 | (size_t)length[1] << 16 | (size_t)length[2] << 8 |
	       length[3];
}

static int hash_compare(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

/*
 * The sorted hashes of NAMES, at *STORAGE. Choosing a worker looks names up under the broker's lock
 * for each message, so it must not walk the thousands that a registration may have.
 */
static const uint64_t *names_hash(struct broker_names names, uint64_t **storage)
{
	uint64_t *hashes = *storage;
	size_t offset = 0;

	for (uint32_t i = 0; i < names.count; i++) {
		const uint8_t *item = names.bytes.data + offset;
		size_t length = name_length(item);

		hashes[i] = hash_bytes(item + 4, length);
		offset += 4 + length;
	}
	*storage += names.count;
	if (names.count > 1)
		qsort(hashes, names.count, sizeof(*hashes), hash_compare);
	return hashes;
}

static struct registration *registration_new(const struct broker_registration *wanted)
{
	size_t hashes = (size_t)wanted->namespaces.count + wanted->activities.count;
	size_t bytes = wanted->namespaces.bytes.length + wanted->activities.bytes.length +
		       wanted->identity.length + wanted->node.length;
	struct registration *registration = calloc(1, sizeof(*registration));
	uint64_t *hash_storage;
	uint8_t *storage;

	if (registration == NULL)
		return NULL;
	registration->storage = malloc(hashes * sizeof(uint64_t) + bytes + 1);
	if (registration->storage == NULL) {
		free(registration);
		return NULL;
	}
	hash_storage = registration->storage;
	storage = (uint8_t *)(registration->storage + hashes);
	registration->references = 1;
	registration->state = wanted->leaving ? REGISTRATION_LEAVING : REGISTRATION_ACTIVE;
	list_init(&registration->in_queue);
	list_init(&registration->in_broker);
	registration->namespaces.count = wanted->namespaces.count;
	registration->namespaces.bytes = storage_copy(&storage, wanted->namespaces.bytes);
	registration->namespace_hashes = names_hash(registration->namespaces, &hash_storage);
	registration->activities.count = wanted->activities.count;
	registration->activities.bytes = storage_copy(&storage, wanted->activities.bytes);
	registration->activity_hashes = names_hash(registration->activities, &hash_storage);
	registration->identity = storage_copy(&storage, wanted->identity);
	registration->has_node = wanted->has_node;
	registration->node = storage_copy(&storage, wanted->node);
	return registration;
}

/* Takes the client's registration out of every list, in STATE. */
static void registration_end_locked(struct client *client, enum registration_state state)
{
	struct registration *registration = client->registration;
	struct worker_queue *queue;

	if (registration == NULL)
		return;
	queue = registration->queue;
	client->registration = NULL;
	registration->state = state;
	registration->client = NULL;
	registration->queue = NULL;
	free(registration->storage);
	registration->storage = NULL;
	list_remove(&registration->in_queue);
	list_remove(&registration->in_broker);
	worker_queue_put_locked(client->broker, queue);
	client->broker->registration_count--;
	registration_unref_locked(&registration);
}

static bool queue_is_allowed_locked(const struct broker *broker, struct span queue)
{
	for (size_t i = 0; i < broker->worker_queue_count; i++)
		if (span_equal(queue, span_of(broker->worker_queues[i])))
			return true;
	return broker->worker_queue_count == 0;
}

/*
 * Takes REGISTRATION over; NULL on success. However many requests that concerns, this is a matter
 * of a few pointers: they are only put up to be resolved anew. A client may register in a loop.
 */
static const char *worker_register_locked(struct client *client, struct registration *registration,
					  struct span queue_name, struct flush_set *set)
{
	struct broker *broker = client->broker;
	struct worker_queue *queue;

	if (!queue_is_allowed_locked(broker, queue_name)) {
		registration_unref_locked(&registration);
		return "this task queue is not one of worker_queues in the server's configuration";
	}
	queue = registration == NULL ? NULL : worker_queue_get_locked(broker, queue_name);
	if (queue == NULL) {
		registration_unref_locked(&registration);
		return "the server is out of memory for this registration";
	}
	registration->client = client;
	registration->queue = queue;
	list_append(&queue->workers, &registration->in_queue);
	list_append(&broker->registrations, &registration->in_broker);
	broker->registration_count++;
	target_withdraw_locked(client,
			       client->registration != NULL ? client->registration->queue : queue);
	registration_end_locked(client, REGISTRATION_LEFT);
	client->registration = registration;
	client->ever_registered = true;
	client->sink->ops->registered(client->sink, set);
	client->settled_ns = clock_after_ms(clock_mono_ns(), broker->worker_settle_ms);
	if (registration->state == REGISTRATION_ACTIVE)
		queue_wake_locked(broker, queue);
	(void)requests_resolve_anew_locked(broker, set);
	return NULL;
}

const char *broker_worker_register(struct client *client, const struct broker_registration *wanted,
				   struct flush_set *set)
{
	struct registration *registration = registration_new(wanted);
	const char *rejected;

	mutex_lock(&client->broker->lock);
	rejected = worker_register_locked(client, registration, wanted->queue, set);
	mutex_unlock(&client->broker->lock);
	metric_add(rejected != NULL  ? METRIC_REGISTRATIONS_REJECTED
		   : wanted->leaving ? METRIC_REGISTRATIONS_LEAVING
				     : METRIC_REGISTRATIONS,
		   1);
	return rejected;
}

void broker_client_end_worker(struct client *client, struct flush_set *set)
{
	mutex_lock(&client->broker->lock);
	client->no_pushes = true;
	deadlines_remove(&client->broker->settle_deadlines, &client->settle);
	if (client->registration != NULL)
		target_withdraw_locked(client, client->registration->queue);
	registration_end_locked(client, REGISTRATION_LOST);
	target_lose_locked(client, set);
	(void)requests_resolve_anew_locked(client->broker, set);
	mutex_unlock(&client->broker->lock);
}

/* --- choosing ------------------------------------------------------------------------------ */

/* An empty list contains every name, and every list the name that was not given. Two names with
 * one keyed hash of 64 bits are not to be expected. */
static bool names_contain(const uint64_t *hashes, uint32_t count, struct span name, uint64_t hash)
{
	if (count == 0 || name.length == 0)
		return true;
	return bsearch(&hash, hashes, count, sizeof(*hashes), hash_compare) != NULL;
}

static bool registration_may_serve(const struct registration *registration,
				   const struct conversation *conversation)
{
	const struct client *client = registration->client;

	if (registration->state != REGISTRATION_ACTIVE ||
	    atomic_load_explicit(&client->sink->dead, memory_order_relaxed))
		return false;
	if (conversation->kind == SUBJECT_WORKER)
		return span_equal(registration->identity, conversation->rest);
	return names_contain(registration->namespace_hashes, registration->namespaces.count,
			     conversation->name_space, conversation->name_space_hash) &&
	       names_contain(registration->activity_hashes, registration->activities.count,
			     conversation->activity, conversation->activity_hash);
}

/* Connections that subscribe last, since they may not read pushes; then the idlest, then the one
 * that was used longest ago. */
static bool registration_is_better(const struct registration *a, const struct registration *b)
{
	bool a_subscribes = atomic_load(&a->client->live_subscriptions) > 0;
	bool b_subscribes = atomic_load(&b->client->live_subscriptions) > 0;
	uint64_t a_pushes = a->client->push_count + a->client->unanswered;
	uint64_t b_pushes = b->client->push_count + b->client->unanswered;

	if (a_subscribes != b_subscribes)
		return b_subscribes;
	if (a_pushes != b_pushes)
		return a_pushes < b_pushes;
	return a->client->last_used < b->client->last_used;
}

struct registration *registration_choose_locked(struct broker *broker,
						const struct conversation *conversation)
{
	bool by_identity = conversation->kind == SUBJECT_WORKER;
	struct registration *best = NULL;
	struct list *head = &broker->registrations, *node, *after;

	if (!by_identity) {
		struct worker_queue *queue = worker_queue_find_locked(broker, conversation->queue);

		if (queue == NULL)
			return NULL;
		head = &queue->workers;
	}
	LIST_FOR_EACH_NODE(node, after, head)
	{
		struct registration *registration =
			by_identity ? LIST_ENTRY(node, struct registration, in_broker)
				    : LIST_ENTRY(node, struct registration, in_queue);

		if (registration_may_serve(registration, conversation) &&
		    (best == NULL || registration_is_better(registration, best)))
			best = registration;
	}
	return best;
}

bool registration_exists_locked(const struct broker *broker, struct span identity)
{
	const struct list *head = &broker->registrations;

	for (const struct list *node = head->next; node != head; node = node->next)
		if (span_equal(identity,
			       LIST_ENTRY(node, const struct registration, in_broker)->identity))
			return true;
	return false;
}

/* --- what others may know ------------------------------------------------------------------ */

/* NAME as it is shown. */
static struct span name_cut(struct span name)
{
	return (struct span){name.data, utf8_cut(name.data, name.length, TEXT_NAME_MAX)};
}

/* Those of NAMES that are shown, at *STORAGE, which has room for them. */
static struct broker_names names_show(struct broker_names names, uint8_t **storage,
				      uint64_t *left_out)
{
	struct broker_names shown = {0, {*storage, 0}};
	const uint8_t *item = names.bytes.data;

	for (; shown.count < names.count; shown.count++) {
		size_t length = name_length(item);
		struct span name = name_cut((struct span){item + 4, length});

		if (4 + name.length > BROKER_SHOWN_BYTES - shown.bytes.length)
			break;
		memset(*storage, 0, 3);
		(*storage)[3] = (uint8_t)name.length;
		*storage += 4;
		(void)storage_copy(storage, name);
		shown.bytes.length += 4 + name.length;
		item += 4 + length;
	}
	*left_out = names.count - shown.count;
	return shown;
}

static bool worker_state_copy(struct broker_worker_state *state,
			      const struct registration *registration)
{
	struct span queue = name_cut(registration->queue->name);
	struct span identity = name_cut(registration->identity);
	struct span node = name_cut(registration->node);
	size_t size = queue.length + identity.length + node.length +
		      size_min(registration->namespaces.bytes.length, BROKER_SHOWN_BYTES) +
		      size_min(registration->activities.bytes.length, BROKER_SHOWN_BYTES);
	uint8_t *storage = malloc(size + 1);

	state->storage = storage;
	if (storage == NULL)
		return false;
	state->connection = registration->client->id;
	state->outstanding = registration->client->push_count;
	state->unanswered = registration->client->unanswered;
	state->leaving = registration->state == REGISTRATION_LEAVING;
	state->queue = storage_copy(&storage, queue);
	state->identity = storage_copy(&storage, identity);
	if (registration->has_node)
		state->node = storage_copy(&storage, node);
	state->namespaces =
		names_show(registration->namespaces, &storage, &state->namespaces_left_out);
	state->activities =
		names_show(registration->activities, &storage, &state->activities_left_out);
	return true;
}

void broker_worker_states_free(struct broker_worker_state **states, size_t count)
{
	for (size_t i = 0; *states != NULL && i < count; i++)
		free((*states)[i].storage);
	free(*states);
	*states = NULL;
}

bool broker_worker_states(struct broker *broker, struct broker_worker_state **states, size_t *count)
{
	bool complete = true;
	struct list *node, *after;

	*count = 0;
	mutex_lock(&broker->lock);
	*states = calloc(broker->registration_count + 1, sizeof(**states));
	if (*states == NULL)
		complete = false;
	LIST_FOR_EACH_NODE(node, after, &broker->registrations)
	{
		if (!complete)
			break;
		complete = worker_state_copy(&(*states)[(*count)++],
					     LIST_ENTRY(node, struct registration, in_broker));
	}
	mutex_unlock(&broker->lock);
	if (!complete) {
		broker_worker_states_free(states, *count);
		*count = 0;
	}
	return complete;
}
