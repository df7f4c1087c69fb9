/*
 * A store with messages, written by liminald's own library: what a server finds when it starts.
 */
#include "bench/bench.h"

#include <stdlib.h>

#include "store/store.h"
#include "wire/wire.h"

#define ENVELOPE_HEAD (WIRE_SCHEMA_SIZE + 10)
#define ROWS_PER_TRANSACTION 64

/* The records of one row, from message NUMBER on. */
static void fill_row(struct store_row *row, uint64_t first_id, size_t payload)
{
	size_t step = STORE_RECORD_HEAD + ENVELOPE_HEAD + payload;

	memset(row->data->data, 0, row->data->length);
	for (uint64_t i = 0; i < row->count; i++) {
		uint8_t *record = row->data->data + i * step;
		uint8_t *envelope = record + STORE_RECORD_HEAD;
		uint64_t number = row->first - 1 + i;

		wire_put_u64(record, first_id + number);
		wire_put_u32(record + 8, (uint32_t)(ENVELOPE_HEAD + payload));
		wire_put_u32(envelope + WIRE_SCHEMA_SIZE, 2); /* an independent causal context */
		wire_put_u32(envelope + WIRE_SCHEMA_SIZE + 6, (uint32_t)payload);
		memcpy(envelope + ENVELOPE_HEAD, &number, sizeof(number));
	}
}

static bool fill_transaction(struct store *store, struct store_channel *channel, struct buf *data,
			     uint64_t count, size_t payload)
{
	size_t step = STORE_RECORD_HEAD + ENVELOPE_HEAD + payload;
	uint64_t per_row = STORE_ROW_BYTES / step, charged = payload + 2 + 64;

	if (store->ops->begin(store) != STORE_OK)
		return false;
	for (size_t i = 0; i < ROWS_PER_TRANSACTION && channel->last < count; i++) {
		uint64_t left = count - channel->last, taken = left < per_row ? left : per_row;
		struct store_row row = {.first = channel->last + 1,
					.last = channel->last + taken,
					.count = taken,
					.charged = taken * charged,
					.before = channel->charged,
					.time_ms = channel->time_ms,
					.data = data};

		data->length = (size_t)taken * step;
		fill_row(&row, store->next_id, payload);
		if (store->ops->row_add(store, channel->number, &row) != STORE_OK)
			return false;
		channel->last = row.last;
		channel->charged += row.charged;
		channel->kept += taken;
		channel->kept_charged += row.charged;
	}
	return store->ops->channel_put(store, channel) == STORE_OK &&
	       store->ops->commit(store) == STORE_OK && store->ops->checkpoint(store) == STORE_OK;
}

static bool fill_channel(struct store *store, uint64_t count, size_t payload)
{
	struct buf *data = buf_new(STORE_ROW_BYTES);
	struct store_channel channel;
	bool filled =
		data != NULL && store->ops->begin(store) == STORE_OK &&
		store->ops->channel_open(store, SPAN_LITERAL("c00000"), &channel) == STORE_OK &&
		store->ops->commit(store) == STORE_OK;

	if (filled) {
		channel.first = 1;
		channel.time_ms = (int64_t)time(NULL) * 1000;
		while (filled && channel.last < count)
			filled = fill_transaction(store, &channel, data, count, payload);
	}
	buf_unref(&data);
	return filled && store->ops->ids_put(store, store->next_id + count) == STORE_OK;
}

bool fill_store(const char *folder, uint64_t count, size_t payload)
{
	char error[1024];
	struct text text = TEXT_INIT(error);
	struct store *store;
	bool filled;

	if (!store_open_sqlite(folder, &store, &text)) {
		(void)fprintf(stderr, "bench: %s\n", error);
		return false;
	}
	filled = fill_channel(store, count, payload);
	if (!filled)
		(void)fprintf(stderr, "bench: the store could not be filled: %s\n", store->reason);
	store_close(&store);
	return filled;
}
