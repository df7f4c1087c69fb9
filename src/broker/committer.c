/*
 * The committer: a thread that owns the store, and the queue to it.
 *
 * Everything that waits when it becomes free is one batch, one transaction and one fsync; the next
 * batch gathers meanwhile. Between batches it reads rows for those who are behind, for READ_NS at
 * most while somebody waits for a commit.
 *
 * The queue is bounded, per connection and altogether. A connection that is over its share is not
 * read from until a batch has been committed; those that wait are served in turn.
 */
#include "broker/journal.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/metrics.h"

#define READ_NS (1 * NS_PER_MS)

/* What a publish counts besides its bytes. */
#define PUBLISH_OVERHEAD 128

/* --- items --------------------------------------------------------------------------------- */

void item_free(struct item **pointer)
{
	struct item *item = *pointer;

	*pointer = NULL;
	if (item == NULL)
		return;
	free(item->run);
	buf_unref(&item->storage);
	buf_unref(&item->large);
	attachment_unref(&item->attachment);
	free(item);
}

static void committer_wake_locked(struct committer *committer)
{
	if (committer->asleep) {
		committer->asleep = false;
		cond_signal(&committer->wake);
	}
}

void committer_add(struct committer *committer, struct item *item)
{
	mutex_lock(&committer->lock);
	if (item->client != NULL)
		item->client->commit_count++;
	list_append(&committer->items, &item->in_queue);
	committer_wake_locked(committer);
	mutex_unlock(&committer->lock);
}

void committer_dirty(struct committer *committer, struct journal *journal)
{
	mutex_lock(&committer->lock);
	if (list_empty(&journal->in_dirty))
		list_append(&committer->dirty, &journal->in_dirty);
	committer_wake_locked(committer);
	mutex_unlock(&committer->lock);
}

void committer_read(struct committer *committer, struct cursor *cursor)
{
	mutex_lock(&committer->lock);
	if (list_empty(&cursor->in_reads))
		list_append(&committer->reads, &cursor->in_reads);
	committer_wake_locked(committer);
	mutex_unlock(&committer->lock);
}

void committer_forget_read(struct committer *committer, struct cursor *cursor)
{
	mutex_lock(&committer->lock);
	list_remove(&cursor->in_reads);
	mutex_unlock(&committer->lock);
}

/* --- what a client has with it --------------------------------------------------------------- */

void committer_owe(struct client *client)
{
	struct committer *committer = client->broker->committer;

	mutex_lock(&committer->lock);
	client->commit_count++;
	mutex_unlock(&committer->lock);
}

void committer_settle(struct client *client, uint64_t bytes)
{
	struct committer *committer = client->broker->committer;

	mutex_lock(&committer->lock);
	ASSERT(client->commit_count > 0 && client->commit_bytes >= bytes);
	committer->bytes -= bytes;
	client->commit_bytes -= bytes;
	if (--client->commit_count == 0) {
		if (atomic_load(&client->ends_after_answers))
			atomic_store(&client->takes_nothing, true);
		/* From here on the client may be freed, once the lock is. */
		cond_broadcast(&client->share);
	}
	mutex_unlock(&committer->lock);
}

void broker_client_wait_committed(struct client *client)
{
	struct committer *committer = client->broker->committer;

	lock_assert_none_held();
	if (committer == NULL)
		return;
	mutex_lock(&committer->lock);
	while (client->commit_count > 0)
		cond_wait(&client->share, &committer->lock);
	mutex_unlock(&committer->lock);
}

/* --- shares -------------------------------------------------------------------------------- */

/* What one connection may have queued now. */
static uint64_t committer_share_locked(const struct committer *committer)
{
	uint64_t share = committer->max_client_bytes, fair;
	size_t waiters = committer->waiter_count == 0 ? 1 : committer->waiter_count;

	if (committer->bytes < committer->max_bytes / 2)
		return share;
	fair = committer->bytes >= committer->max_bytes
		       ? 0
		       : (committer->max_bytes - committer->bytes) / waiters;
	return fair < share ? fair : share;
}

/* Whether BYTES more of the client's may be queued. */
static bool committer_fits_locked(const struct committer *committer, const struct client *client,
				  uint64_t bytes)
{
	uint64_t room = committer->bytes >= committer->max_bytes
				? 0
				: committer->max_bytes - committer->bytes;

	if (committer->bytes == 0)
		return true; /* alone, any frame */
	if (bytes > room)
		return false;
	return client->commit_bytes == 0 ||
	       client->commit_bytes + bytes <= committer_share_locked(committer);
}

size_t committer_admit(struct client *client, const struct message *run, size_t count,
		       uint64_t *bytes)
{
	struct committer *committer = client->broker->committer;
	size_t taken = 0;

	*bytes = 0;
	mutex_lock(&committer->lock);
	for (; taken < count; taken++) {
		uint64_t more =
			run[taken].envelope.length + run[taken].key.length + PUBLISH_OVERHEAD;

		if (!client->commit_granted && !committer_fits_locked(committer, client, more)) {
			client->commit_wanted = more;
			break;
		}
		client->commit_granted = false;
		committer->bytes += more;
		client->commit_bytes += more;
		*bytes += more;
	}
	mutex_unlock(&committer->lock);
	return taken;
}

/* The first of those that wait that can be served is, and so on, in turn. */
static void committer_grant_locked(struct committer *committer)
{
	struct list *node, *after;
	uint64_t granted = 0;

	LIST_FOR_EACH_NODE(node, after, &committer->waiters)
	{
		struct client *client = LIST_ENTRY(node, struct client, in_waiters);
		uint64_t taken = committer->bytes + granted;
		uint64_t wanted = client->commit_wanted;

		if (taken >= committer->max_bytes)
			return;
		/* One frame beyond the bound at most: then `taken` has reached it. */
		if (client->commit_bytes > 0 &&
		    (client->commit_bytes + wanted > committer_share_locked(committer) ||
		     wanted > committer->max_bytes - taken))
			continue;
		granted += wanted;
		client->commit_granted = true;
		list_remove(&client->in_waiters);
		committer->waiter_count--;
		cond_broadcast(&client->share);
	}
}

void committer_give_back(struct client *client, uint64_t bytes)
{
	struct committer *committer = client->broker->committer;

	mutex_lock(&committer->lock);
	committer->bytes -= bytes;
	client->commit_bytes -= bytes;
	committer_grant_locked(committer);
	mutex_unlock(&committer->lock);
}

bool broker_client_wait_share(struct client *client)
{
	struct committer *committer = client->broker->committer;
	bool granted;

	lock_assert_none_held();
	metric_add(METRIC_COMMIT_WAITS, 1);
	mutex_lock(&committer->lock);
	if (committer_fits_locked(committer, client, client->commit_wanted))
		client->commit_granted = true;
	if (!client->commit_granted && !client->commit_interrupted) {
		list_append(&committer->waiters, &client->in_waiters);
		committer->waiter_count++;
		while (!client->commit_granted && !client->commit_interrupted)
			cond_wait(&client->share, &committer->lock);
		if (!client->commit_granted) {
			list_remove(&client->in_waiters);
			committer->waiter_count--;
		}
	}
	granted = client->commit_granted;
	mutex_unlock(&committer->lock);
	return granted;
}

void committer_interrupt(struct client *client)
{
	struct committer *committer = client->broker->committer;

	if (committer == NULL)
		return;
	mutex_lock(&committer->lock);
	client->commit_interrupted = true;
	cond_broadcast(&client->share);
	mutex_unlock(&committer->lock);
}

/* --- the thread ---------------------------------------------------------------------------- */

void committer_sweep_at(struct committer *committer, int64_t when_ns)
{
	mutex_lock(&committer->lock);
	if (when_ns < committer->timer_ns) {
		committer->timer_ns = when_ns;
		committer_wake_locked(committer);
	}
	mutex_unlock(&committer->lock);
}

static void list_move(struct list *to, struct list *from)
{
	if (list_empty(from))
		return;
	to->next = from->next;
	to->previous = from->previous;
	to->next->previous = to->previous->next = to;
	list_init(from);
}

/* Waits for work; false when there is none and never will be. */
static bool committer_take(struct committer *committer, struct list *items, struct list *dirty,
			   bool *sweep, bool *reads)
{
	bool more;

	mutex_lock(&committer->lock);
	while (!committer->stopping && list_empty(&committer->items) &&
	       list_empty(&committer->dirty) && list_empty(&committer->reads)) {
		committer->asleep = true;
		if (!cond_wait_until(&committer->wake, &committer->lock, committer->timer_ns))
			break;
		if (clock_mono_ns() >= committer->timer_ns)
			break;
	}
	committer->asleep = false;
	list_move(items, &committer->items);
	/* Whoever makes a journal dirty from now on queues it anew. */
	while (!list_empty(&committer->dirty)) {
		struct journal *journal =
			LIST_ENTRY(committer->dirty.next, struct journal, in_dirty);

		list_remove(&journal->in_dirty);
		list_append(dirty, &journal->in_batch);
	}
	*sweep = committer->timer_ns != DEADLINE_NEVER && clock_mono_ns() >= committer->timer_ns;
	if (*sweep)
		committer->timer_ns = DEADLINE_NEVER;
	*reads = !list_empty(&committer->reads);
	more = !committer->stopping || !list_empty(items) || !list_empty(dirty);
	mutex_unlock(&committer->lock);
	return more;
}

/* Reads for those who are behind, in turn; not for long when somebody waits for a commit. */
static void committer_serve_reads(struct committer *committer)
{
	int64_t until_ns = clock_mono_ns() + READ_NS;

	for (;;) {
		struct cursor *cursor = NULL;
		struct attachment *attachment = NULL;
		bool awaited;

		mutex_lock(&committer->lock);
		awaited = !list_empty(&committer->items) || !list_empty(&committer->dirty) ||
			  committer->stopping;
		if (!list_empty(&committer->reads)) {
			cursor = LIST_ENTRY(committer->reads.next, struct cursor, in_reads);
			list_remove(&cursor->in_reads);
			if (cursor->attachment != NULL) /* a consumer is freed by this thread */
				attachment = attachment_ref(cursor->attachment);
		}
		mutex_unlock(&committer->lock);
		if (cursor == NULL)
			return;
		commit_read(committer, cursor);
		attachment_unref(&attachment);
		if (awaited && clock_mono_ns() >= until_ns)
			return;
	}
}

static void *committer_thread(void *argument)
{
	struct committer *committer = argument;
	struct list items, dirty;
	bool sweep, reads;

	list_init(&items);
	list_init(&dirty);
	while (committer_take(committer, &items, &dirty, &sweep, &reads)) {
		if (!list_empty(&items) || !list_empty(&dirty) || sweep)
			commit_batch(committer, &items, &dirty, sweep);
		if (reads)
			committer_serve_reads(committer);
	}
	return NULL;
}

/* A batch is done with: its room is others', in turn. */
void committer_release(struct committer *committer, struct list *items)
{
	struct list *node, *after;

	mutex_lock(&committer->lock);
	LIST_FOR_EACH_NODE(node, after, items)
	{
		struct item *item = LIST_ENTRY(node, struct item, in_queue);

		if (item->ticket != NULL)
			item->ticket->done = true;
	}
	committer_grant_locked(committer);
	cond_broadcast(&committer->done);
	mutex_unlock(&committer->lock);
}

struct committer *committer_new(struct broker *broker, struct store *store)
{
	struct committer *committer = calloc(1, sizeof(*committer));

	if (committer == NULL)
		return NULL;
	committer->broker = broker;
	committer->store = store;
	atomic_init(&committer->down, false);
	mutex_init(&committer->lock, LOCK_COMMIT);
	cond_init(&committer->wake);
	cond_init(&committer->done);
	list_init(&committer->items);
	list_init(&committer->waiters);
	list_init(&committer->dirty);
	list_init(&committer->reads);
	list_init(&committer->touched);
	flush_set_init(&committer->set);
	committer->timer_ns = DEADLINE_NEVER;
	return committer;
}

bool committer_start(struct committer *committer)
{
	committer->started = thread_start(&committer->thread, committer_thread, committer) == 0;
	return committer->started;
}

void committer_stop(struct committer *committer)
{
	if (!committer->started)
		return;
	mutex_lock(&committer->lock);
	committer->stopping = true;
	cond_broadcast(&committer->wake);
	mutex_unlock(&committer->lock);
	thread_join(&committer->thread);
	committer->started = false;
}

void committer_free(struct committer **pointer)
{
	struct committer *committer = *pointer;

	if (committer == NULL)
		return;
	*pointer = NULL;
	ASSERT(list_empty(&committer->items) && list_empty(&committer->waiters));
	cond_destroy(&committer->wake);
	cond_destroy(&committer->done);
	mutex_destroy(&committer->lock);
	free(committer);
}

void committer_configure(struct committer *committer, const struct broker_settings *settings)
{
	mutex_lock(&committer->lock);
	committer->max_bytes = settings->max_commit_bytes;
	committer->max_client_bytes = settings->max_commit_bytes_per_connection;
	committer->timer_ns = 0; /* what is kept may have changed */
	committer_wake_locked(committer);
	mutex_unlock(&committer->lock);
}

void committer_totals(struct committer *committer, struct broker_totals *totals)
{
	totals->store_bytes = committer->store->ops->bytes(committer->store);
	mutex_lock(&committer->lock);
	totals->commit_bytes = committer->bytes;
	totals->commit_waiters = committer->waiter_count;
	mutex_unlock(&committer->lock);
}
