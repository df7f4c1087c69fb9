/*
 * A store for tests: it keeps its promises as long as the process lives. A transaction works on a
 * copy of everything, which is thrown away by a rollback; what is long is shared between the
 * copies, because it never changes. There is no memory to spare for tests without memory: that is
 * asserted.
 */
#include "store/store.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

struct memory_row {
	struct store_row row; /* owns its data */
};

struct memory_key {
	struct buf *key;
	int64_t time_ms;
	uint64_t id, sequence;
};

struct memory_dead {
	struct store_dead dead; /* its spans are in the buffers */
	struct buf *origin, *consumer, *text;
};

struct memory_consumer {
	uint64_t channel, number;
	int64_t idle_since_ms;
	struct buf *name, *state;
};

/* An array of any of those. */
struct memory_array {
	void *items;
	size_t count;
};

struct memory_channel {
	struct buf *name;
	struct store_channel channel;
	struct memory_array rows, keys, dead; /* by sequence */
};

struct memory_state {
	struct memory_array channels, consumers;
	uint64_t last_consumer, next_id;
};

#define MEMORY_STORE_MAGIC 0x3e3070feU

struct memory_store {
	unsigned magic;
	struct store store;
	bool in_transaction, down;
	enum store_result commit_fails;
	struct memory_state committed, changed;
};

static struct memory_store *memory_of(struct store *store)
{
	struct memory_store *memory = CONTAINER_OF(store, struct memory_store, store);

	ASSERT_MAGIC(memory, MEMORY_STORE_MAGIC);
	return memory;
}

/* --- arrays -------------------------------------------------------------------------------- */

/* An item of SIZE bytes, in front of the one at PLACE; not set. */
static void *array_insert(struct memory_array *array, size_t place, size_t size)
{
	char *items = realloc(array->items, (array->count + 1) * size);

	ASSERT(items != NULL && place <= array->count);
	memmove(items + (place + 1) * size, items + place * size, (array->count - place) * size);
	array->items = items;
	array->count++;
	return items + place * size;
}

static void array_remove(struct memory_array *array, size_t place, size_t size)
{
	char *items = array->items;

	ASSERT(place < array->count);
	array->count--;
	memmove(items + place * size, items + (place + 1) * size, (array->count - place) * size);
}

static void array_copy(struct memory_array *copy, const struct memory_array *array, size_t size)
{
	*copy = (struct memory_array){.count = array->count};
	if (array->count == 0)
		return;
	copy->items = malloc(array->count * size);
	ASSERT(copy->items != NULL);
	memcpy(copy->items, array->items, array->count * size);
}

static struct buf *buf_of(struct span span)
{
	struct buf *buf = buf_new(span.length);

	ASSERT(buf != NULL);
	if (span.length > 0)
		memcpy(buf->data, span.data, span.length);
	return buf;
}

static struct span span_in(const struct buf *buf)
{
	return (struct span){.data = buf->data, .length = buf->length};
}

/* --- states -------------------------------------------------------------------------------- */

static void channel_copy(struct memory_channel *copy, const struct memory_channel *channel)
{
	*copy = *channel;
	(void)buf_ref(copy->name);
	array_copy(&copy->rows, &channel->rows, sizeof(struct memory_row));
	for (size_t i = 0; i < copy->rows.count; i++)
		(void)buf_ref(((struct memory_row *)copy->rows.items)[i].row.data);
	array_copy(&copy->keys, &channel->keys, sizeof(struct memory_key));
	for (size_t i = 0; i < copy->keys.count; i++)
		(void)buf_ref(((struct memory_key *)copy->keys.items)[i].key);
	array_copy(&copy->dead, &channel->dead, sizeof(struct memory_dead));
	for (size_t i = 0; i < copy->dead.count; i++) {
		struct memory_dead *dead = (struct memory_dead *)copy->dead.items + i;

		(void)buf_ref(dead->origin);
		(void)buf_ref(dead->consumer);
		(void)buf_ref(dead->text);
	}
}

static void dead_drop(struct memory_dead *dead)
{
	buf_unref(&dead->origin);
	buf_unref(&dead->consumer);
	buf_unref(&dead->text);
}

static void channel_drop(struct memory_channel *channel)
{
	for (size_t i = 0; i < channel->rows.count; i++)
		buf_unref(&((struct memory_row *)channel->rows.items)[i].row.data);
	for (size_t i = 0; i < channel->keys.count; i++)
		buf_unref(&((struct memory_key *)channel->keys.items)[i].key);
	for (size_t i = 0; i < channel->dead.count; i++)
		dead_drop((struct memory_dead *)channel->dead.items + i);
	free(channel->rows.items);
	free(channel->keys.items);
	free(channel->dead.items);
	buf_unref(&channel->name);
}

static void state_copy(struct memory_state *copy, const struct memory_state *state)
{
	*copy = *state;
	array_copy(&copy->channels, &state->channels, sizeof(struct memory_channel));
	for (size_t i = 0; i < copy->channels.count; i++)
		channel_copy((struct memory_channel *)copy->channels.items + i,
			     (struct memory_channel *)state->channels.items + i);
	array_copy(&copy->consumers, &state->consumers, sizeof(struct memory_consumer));
	for (size_t i = 0; i < copy->consumers.count; i++) {
		struct memory_consumer *consumer =
			(struct memory_consumer *)copy->consumers.items + i;

		(void)buf_ref(consumer->name);
		(void)buf_ref(consumer->state);
	}
}

static void consumer_drop(struct memory_consumer *consumer)
{
	buf_unref(&consumer->name);
	buf_unref(&consumer->state);
}

static void state_drop(struct memory_state *state)
{
	for (size_t i = 0; i < state->channels.count; i++)
		channel_drop((struct memory_channel *)state->channels.items + i);
	for (size_t i = 0; i < state->consumers.count; i++)
		consumer_drop((struct memory_consumer *)state->consumers.items + i);
	free(state->channels.items);
	free(state->consumers.items);
	*state = (struct memory_state){0};
}

/* --- transactions -------------------------------------------------------------------------- */

static struct memory_state *state_to_read(struct memory_store *memory)
{
	return memory->in_transaction ? &memory->changed : &memory->committed;
}

static struct memory_state *state_to_change(struct memory_store *memory)
{
	ASSERT(memory->in_transaction);
	return &memory->changed;
}

static struct memory_channel *channel_in(struct memory_state *state, uint64_t number)
{
	ASSERT(number > 0 && number <= state->channels.count);
	return (struct memory_channel *)state->channels.items + (number - 1);
}

static enum store_result memory_begin(struct store *store)
{
	struct memory_store *memory = memory_of(store);

	ASSERT(!memory->in_transaction);
	if (memory->down)
		return STORE_DOWN;
	state_copy(&memory->changed, &memory->committed);
	memory->in_transaction = true;
	return STORE_OK;
}

static void memory_rollback(struct store *store)
{
	struct memory_store *memory = memory_of(store);

	if (memory->in_transaction)
		state_drop(&memory->changed);
	memory->in_transaction = false;
}

static enum store_result memory_commit(struct store *store)
{
	struct memory_store *memory = memory_of(store);
	enum store_result result = memory->commit_fails;
	struct text reason = TEXT_INIT(store->reason);

	ASSERT(memory->in_transaction);
	memory->commit_fails = STORE_OK;
	memory->down = result == STORE_DOWN;
	if (result != STORE_OK) {
		text_add(&reason, "the test wants it so");
		memory_rollback(store);
		return result;
	}
	state_drop(&memory->committed);
	memory->committed = memory->changed;
	memory->changed = (struct memory_state){0};
	memory->in_transaction = false;
	return STORE_OK;
}

void store_memory_fail(struct store *store, enum store_result result)
{
	memory_of(store)->commit_fails = result;
}

/* --- channels ------------------------------------------------------------------------------ */

static enum store_result memory_channel_open(struct store *store, struct span name,
					     struct store_channel *found)
{
	struct memory_store *memory = memory_of(store);
	struct memory_state *state = state_to_read(memory);
	struct memory_channel *channel;

	*found = (struct store_channel){0};
	if (memory->down)
		return STORE_DOWN;
	for (uint64_t number = 1; number <= state->channels.count; number++) {
		channel = channel_in(state, number);
		if (span_equal(span_in(channel->name), name)) {
			*found = channel->channel;
			return STORE_OK;
		}
	}
	state = state_to_change(memory);
	channel = array_insert(&state->channels, state->channels.count, sizeof(*channel));
	*channel = (struct memory_channel){
		.name = buf_of(name),
		.channel = {.number = state->channels.count, .first = 1},
	};
	*found = channel->channel;
	return STORE_OK;
}

static enum store_result memory_channel_put(struct store *store,
					    const struct store_channel *channel)
{
	struct memory_store *memory = memory_of(store);

	if (memory->down)
		return STORE_DOWN;
	channel_in(state_to_change(memory), channel->number)->channel = *channel;
	return STORE_OK;
}

/* --- rows ---------------------------------------------------------------------------------- */

/* The place of the first row that ends at SEQUENCE or behind it. */
static size_t row_place(const struct memory_channel *channel, uint64_t sequence)
{
	const struct memory_row *rows = channel->rows.items;
	size_t place = 0;

	while (place < channel->rows.count && rows[place].row.last < sequence)
		place++;
	return place;
}

/* The row that begins at FIRST, or NULL. */
static struct memory_row *row_at(struct memory_channel *channel, uint64_t first)
{
	struct memory_row *rows = channel->rows.items;
	size_t place = row_place(channel, first);

	return place < channel->rows.count && rows[place].row.first == first ? &rows[place] : NULL;
}

static enum store_result memory_row_add(struct store *store, uint64_t number,
					const struct store_row *added)
{
	struct memory_store *memory = memory_of(store);
	struct memory_channel *channel;
	struct memory_row *row;

	if (memory->down)
		return STORE_DOWN;
	channel = channel_in(state_to_change(memory), number);
	ASSERT(added->first > 0 && added->first <= added->last);
	ASSERT(row_at(channel, added->first) == NULL);
	row = array_insert(&channel->rows, row_place(channel, added->first), sizeof(*row));
	row->row = *added;
	(void)buf_ref(row->row.data);
	return STORE_OK;
}

static enum store_result memory_row_read(struct store *store, uint64_t number, uint64_t sequence,
					 bool with_data, struct store_row *found)
{
	struct memory_store *memory = memory_of(store);
	struct memory_channel *channel;
	size_t place;

	*found = (struct store_row){0};
	if (memory->down)
		return STORE_DOWN;
	channel = channel_in(state_to_read(memory), number);
	place = row_place(channel, sequence);
	if (place == channel->rows.count)
		return STORE_NONE;
	*found = ((struct memory_row *)channel->rows.items)[place].row;
	if (with_data)
		(void)buf_ref(found->data);
	else
		found->data = NULL;
	return STORE_OK;
}

static enum store_result memory_row_replace(struct store *store, uint64_t number,
					    const struct store_row *replaced)
{
	struct memory_store *memory = memory_of(store);
	struct memory_row *row;

	if (memory->down)
		return STORE_DOWN;
	row = row_at(channel_in(state_to_change(memory), number), replaced->first);
	if (row == NULL)
		return STORE_NONE;
	buf_unref(&row->row.data);
	row->row = *replaced;
	(void)buf_ref(row->row.data);
	return STORE_OK;
}

static enum store_result memory_row_remove(struct store *store, uint64_t number, uint64_t first)
{
	struct memory_store *memory = memory_of(store);
	struct memory_channel *channel;
	struct memory_row *row;
	struct memory_dead *dead;

	if (memory->down)
		return STORE_DOWN;
	channel = channel_in(state_to_change(memory), number);
	row = row_at(channel, first);
	if (row == NULL)
		return STORE_NONE;
	for (size_t i = channel->dead.count; i > 0; i--) {
		dead = (struct memory_dead *)channel->dead.items + (i - 1);
		if (dead->dead.sequence < first || dead->dead.sequence > row->row.last)
			continue;
		dead_drop(dead);
		array_remove(&channel->dead, i - 1, sizeof(*dead));
	}
	buf_unref(&row->row.data);
	array_remove(&channel->rows, (size_t)(row - (struct memory_row *)channel->rows.items),
		     sizeof(*row));
	return STORE_OK;
}

/* --- keys ---------------------------------------------------------------------------------- */

static enum store_result memory_key_find(struct store *store, uint64_t number, struct span key,
					 int64_t not_before_ms, uint64_t *id, uint64_t *sequence)
{
	struct memory_store *memory = memory_of(store);
	struct memory_channel *channel;
	struct memory_key *keys;

	*id = *sequence = 0;
	if (memory->down)
		return STORE_DOWN;
	channel = channel_in(state_to_read(memory), number);
	keys = channel->keys.items;
	for (size_t i = channel->keys.count; i > 0; i--) {
		if (!span_equal(span_in(keys[i - 1].key), key))
			continue;
		if (keys[i - 1].time_ms < not_before_ms)
			return STORE_NONE;
		*id = keys[i - 1].id;
		*sequence = keys[i - 1].sequence;
		return STORE_OK;
	}
	return STORE_NONE;
}

static enum store_result memory_key_add(struct store *store, uint64_t number, struct span key,
					int64_t time_ms, uint64_t id, uint64_t sequence)
{
	struct memory_store *memory = memory_of(store);
	struct memory_channel *channel;
	struct memory_key *keys;

	if (memory->down)
		return STORE_DOWN;
	channel = channel_in(state_to_change(memory), number);
	keys = channel->keys.items;
	ASSERT(channel->keys.count == 0 || keys[channel->keys.count - 1].sequence < sequence);
	keys = array_insert(&channel->keys, channel->keys.count, sizeof(*keys));
	*keys = (struct memory_key){
		.key = buf_of(key), .time_ms = time_ms, .id = id, .sequence = sequence};
	return STORE_OK;
}

static enum store_result memory_keys_trim(struct store *store, uint64_t number, int64_t before_ms,
					  uint64_t excess, uint64_t limit, uint64_t *removed)
{
	struct memory_store *memory = memory_of(store);
	struct memory_channel *channel;
	struct memory_key *oldest;

	*removed = 0;
	if (memory->down)
		return STORE_DOWN;
	channel = channel_in(state_to_change(memory), number);
	oldest = channel->keys.items;
	while (channel->keys.count > 0 && *removed < limit &&
	       (*removed < excess || oldest->time_ms < before_ms)) {
		buf_unref(&oldest->key);
		array_remove(&channel->keys, 0, sizeof(*oldest));
		++*removed;
	}
	return STORE_OK;
}

/* --- consumers ----------------------------------------------------------------------------- */

static struct memory_consumer *consumer_in(struct memory_state *state, uint64_t number)
{
	struct memory_consumer *consumers = state->consumers.items;

	for (size_t i = 0; i < state->consumers.count; i++)
		if (consumers[i].number == number)
			return &consumers[i];
	return NULL;
}

static enum store_result
memory_consumers(struct store *store, uint64_t channel,
		 bool (*each)(void *context, const struct store_consumer *consumer), void *context)
{
	struct memory_store *memory = memory_of(store);
	struct memory_state *state = state_to_read(memory);
	struct memory_consumer *consumers = state->consumers.items;

	if (memory->down)
		return STORE_DOWN;
	for (size_t i = 0; i < state->consumers.count; i++) {
		struct store_consumer consumer = {
			.number = consumers[i].number,
			.name = span_in(consumers[i].name),
			.idle_since_ms = consumers[i].idle_since_ms,
			.state = span_in(consumers[i].state),
		};

		if (consumers[i].channel == channel && !each(context, &consumer))
			return STORE_MEMORY;
	}
	return STORE_OK;
}

static enum store_result memory_consumer_add(struct store *store, uint64_t channel,
					     const struct store_consumer *added, uint64_t *number)
{
	struct memory_store *memory = memory_of(store);
	struct memory_consumer *consumer;
	struct memory_state *state;

	*number = 0;
	if (memory->down)
		return STORE_DOWN;
	state = state_to_change(memory);
	consumer = array_insert(&state->consumers, state->consumers.count, sizeof(*consumer));
	*consumer = (struct memory_consumer){
		.channel = channel,
		.number = ++state->last_consumer,
		.idle_since_ms = added->idle_since_ms,
		.name = buf_of(added->name),
		.state = buf_of(added->state),
	};
	*number = consumer->number;
	return STORE_OK;
}

static enum store_result memory_consumer_put(struct store *store, uint64_t number,
					     int64_t idle_since_ms, struct span state)
{
	struct memory_store *memory = memory_of(store);
	struct memory_consumer *consumer;

	if (memory->down)
		return STORE_DOWN;
	consumer = consumer_in(state_to_change(memory), number);
	if (consumer == NULL)
		return STORE_NONE;
	buf_unref(&consumer->state);
	consumer->state = buf_of(state);
	consumer->idle_since_ms = idle_since_ms;
	return STORE_OK;
}

static enum store_result memory_consumer_remove(struct store *store, uint64_t number)
{
	struct memory_store *memory = memory_of(store);
	struct memory_consumer *consumer;
	struct memory_state *state;

	if (memory->down)
		return STORE_DOWN;
	state = state_to_change(memory);
	consumer = consumer_in(state, number);
	if (consumer == NULL)
		return STORE_NONE;
	consumer_drop(consumer);
	array_remove(&state->consumers,
		     (size_t)(consumer - (struct memory_consumer *)state->consumers.items),
		     sizeof(*consumer));
	return STORE_OK;
}

/* --- dead letters -------------------------------------------------------------------------- */

static enum store_result memory_dead_add(struct store *store, uint64_t number,
					 const struct store_dead *added)
{
	struct memory_store *memory = memory_of(store);
	struct memory_channel *channel;
	struct memory_dead *dead;
	size_t place = 0;

	if (memory->down)
		return STORE_DOWN;
	channel = channel_in(state_to_change(memory), number);
	dead = channel->dead.items;
	while (place < channel->dead.count && dead[place].dead.sequence < added->sequence)
		place++;
	dead = array_insert(&channel->dead, place, sizeof(*dead));
	*dead = (struct memory_dead){
		.dead = *added,
		.origin = buf_of(added->origin),
		.consumer = buf_of(added->consumer),
		.text = buf_of(added->text),
	};
	dead->dead.origin = span_in(dead->origin);
	dead->dead.consumer = span_in(dead->consumer);
	dead->dead.text = span_in(dead->text);
	return STORE_OK;
}

static enum store_result
memory_dead_read(struct store *store, uint64_t number, uint64_t from, uint64_t count,
		 bool (*each)(void *context, const struct store_dead *dead), void *context)
{
	struct memory_store *memory = memory_of(store);
	struct memory_channel *channel;
	struct memory_dead *dead;

	if (memory->down)
		return STORE_DOWN;
	channel = channel_in(state_to_read(memory), number);
	dead = channel->dead.items;
	for (size_t i = 0; i < channel->dead.count && count > 0; i++) {
		if (dead[i].dead.sequence < from)
			continue;
		if (!each(context, &dead[i].dead))
			return STORE_MEMORY;
		count--;
	}
	return STORE_OK;
}

/* --- the rest ------------------------------------------------------------------------------ */

static enum store_result memory_ids_put(struct store *store, uint64_t next)
{
	struct memory_store *memory = memory_of(store);

	ASSERT(!memory->in_transaction);
	if (memory->down)
		return STORE_DOWN;
	memory->committed.next_id = next;
	return STORE_OK;
}

static enum store_result memory_checkpoint(struct store *store)
{
	ASSERT(!memory_of(store)->in_transaction);
	return memory_of(store)->down ? STORE_DOWN : STORE_OK;
}

static enum store_result memory_reclaim(struct store *store, bool *more)
{
	*more = false;
	return memory_checkpoint(store);
}

static uint64_t memory_bytes(struct store *store)
{
	(void)store;
	return 0;
}

static void memory_close(struct store *store)
{
	struct memory_store *memory = memory_of(store);

	memory_rollback(store);
	state_drop(&memory->committed);
	memory->magic = 0;
	free(memory);
}

static const struct store_ops memory_ops = {
	.close = memory_close,
	.begin = memory_begin,
	.commit = memory_commit,
	.rollback = memory_rollback,
	.channel_open = memory_channel_open,
	.channel_put = memory_channel_put,
	.row_add = memory_row_add,
	.row_read = memory_row_read,
	.row_replace = memory_row_replace,
	.row_remove = memory_row_remove,
	.key_find = memory_key_find,
	.key_add = memory_key_add,
	.keys_trim = memory_keys_trim,
	.consumers = memory_consumers,
	.consumer_add = memory_consumer_add,
	.consumer_put = memory_consumer_put,
	.consumer_remove = memory_consumer_remove,
	.dead_add = memory_dead_add,
	.dead_read = memory_dead_read,
	.ids_put = memory_ids_put,
	.checkpoint = memory_checkpoint,
	.reclaim = memory_reclaim,
	.bytes = memory_bytes,
};

bool store_open_memory(struct store **store, struct text *error)
{
	struct memory_store *memory = calloc(1, sizeof(*memory));

	*store = NULL;
	if (memory == NULL) {
		text_add(error, "cannot open a store in memory");
		return false;
	}
	memory->magic = MEMORY_STORE_MAGIC;
	memory->store.ops = &memory_ops;
	memory->store.created_ms = (uint64_t)clock_wall_ms();
	memory->store.next_id = 1;
	memory->committed.next_id = 1 + STORE_IDS_RESERVED;
	*store = &memory->store;
	return true;
}

bool store_memory_copy(struct store *store, struct store **copy, struct text *error)
{
	struct memory_store *memory;

	if (!store_open_memory(copy, error))
		return false;
	memory = memory_of(*copy);
	state_copy(&memory->committed, &memory_of(store)->committed);
	(*copy)->created_ms = store->created_ms;
	(*copy)->next_id = memory->committed.next_id;
	memory->committed.next_id += STORE_IDS_RESERVED;
	return true;
}
