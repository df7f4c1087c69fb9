/* Messages: rows of a channel's table, by their first sequence. */
#include "store/sqlite_priv.h"

#include <string.h>

/* As SELECT * has them. */
enum row_column {
	ROW_FIRST,
	ROW_LAST,
	ROW_COUNT,
	ROW_CHARGED,
	ROW_BEFORE,
	ROW_TIME_MS,
	ROW_SPARSE,
	ROW_DATA
};

static enum store_result rows_write(struct store *store, enum statement which, uint64_t channel,
				    const struct store_row *row)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	struct span data = {.data = row->data->data, .length = row->data->length};
	sqlite3_stmt *statement;
	enum store_result result;

	ASSERT(data.length <= STORE_ROW_LIMIT);
	ASSERT(row->first > 0 && row->first <= row->last && row->last <= INT64_MAX);
	result = sqlite_change(sqlite, which, channel, &statement);
	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, ROW_FIRST + 1, row->first);
	sqlite_bind_number(statement, ROW_LAST + 1, row->last);
	sqlite_bind_number(statement, ROW_COUNT + 1, row->count);
	sqlite_bind_number(statement, ROW_CHARGED + 1, row->charged);
	sqlite_bind_number(statement, ROW_BEFORE + 1, row->before);
	sqlite_bind_number(statement, ROW_TIME_MS + 1, (uint64_t)row->time_ms);
	sqlite_bind_number(statement, ROW_SPARSE + 1, row->sparse);
	result = sqlite_bind_span(sqlite, statement, ROW_DATA + 1, data);
	return result == STORE_OK ? sqlite_run(sqlite, statement) : result;
}

enum store_result rows_add(struct store *store, uint64_t channel, const struct store_row *row)
{
	return rows_write(store, STATEMENT_ROW_ADD, channel, row);
}

/* What a change of one row is when there was none. */
static enum store_result rows_changed(struct store *store, enum store_result result)
{
	if (result == STORE_OK && sqlite3_changes(sqlite_of(store)->db) == 0)
		return STORE_NONE;
	return result;
}

enum store_result rows_replace(struct store *store, uint64_t channel, const struct store_row *row)
{
	return rows_changed(store, rows_write(store, STATEMENT_ROW_REPLACE, channel, row));
}

/* The row that STATEMENT stands at. */
static enum store_result rows_take(sqlite3_stmt *statement, bool with_data, struct store_row *row)
{
	struct buf *data = NULL;

	if (with_data) {
		struct span stored = sqlite_span(statement, ROW_DATA);

		data = buf_new(stored.length);
		if (data == NULL)
			return STORE_MEMORY;
		if (stored.length > 0)
			memcpy(data->data, stored.data, stored.length);
	}
	*row = (struct store_row){
		.first = sqlite_number(statement, ROW_FIRST),
		.last = sqlite_number(statement, ROW_LAST),
		.count = sqlite_number(statement, ROW_COUNT),
		.charged = sqlite_number(statement, ROW_CHARGED),
		.before = sqlite_number(statement, ROW_BEFORE),
		.time_ms = (int64_t)sqlite_number(statement, ROW_TIME_MS),
		.sparse = sqlite_number(statement, ROW_SPARSE) != 0,
		.data = data,
	};
	return STORE_OK;
}

/* The row that WHICH finds from SEQUENCE, if it reaches up to SEQUENCE. */
static enum store_result rows_find(struct sqlite_store *sqlite, enum statement which,
				   uint64_t channel, uint64_t sequence, bool reaching,
				   bool with_data, struct store_row *row)
{
	sqlite3_stmt *statement;
	enum store_result result = sqlite_statement(sqlite, which, channel, &statement);

	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, sequence);
	result = sqlite_step(sqlite, statement);
	if (result != STORE_OK)
		return result;
	if (reaching && sqlite_number(statement, ROW_LAST) < sequence)
		result = STORE_NONE;
	else
		result = rows_take(statement, with_data, row);
	(void)sqlite3_reset(statement);
	return result;
}

enum store_result rows_read(struct store *store, uint64_t channel, uint64_t sequence,
			    bool with_data, struct store_row *row)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	enum store_result result;

	*row = (struct store_row){0};
	if (sequence > INT64_MAX)
		sequence = INT64_MAX; /* SQLite's numbers end there, and sequences long before */
	/* SQLite reads every column that is named: the data only where it is wanted. */
	result = rows_find(sqlite, with_data ? STATEMENT_ROW_AT : STATEMENT_HEAD_AT, channel,
			   sequence, true, with_data, row);
	if (result == STORE_NONE)
		result = rows_find(sqlite, with_data ? STATEMENT_ROW_AFTER : STATEMENT_HEAD_AFTER,
				   channel, sequence, false, with_data, row);
	return result;
}

/* The facts of the row's messages. */
static enum store_result rows_remove_dead(struct sqlite_store *sqlite, uint64_t channel,
					  uint64_t first)
{
	sqlite3_stmt *statement;
	uint64_t last;
	enum store_result result = sqlite_change(sqlite, STATEMENT_ROW_LAST, channel, &statement);

	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, first);
	result = sqlite_step(sqlite, statement);
	if (result != STORE_OK)
		return result;
	last = sqlite_number(statement, 0);
	(void)sqlite3_reset(statement);
	result = sqlite_change(sqlite, STATEMENT_DEAD_REMOVE, 0, &statement);
	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, channel);
	sqlite_bind_number(statement, 2, first);
	sqlite_bind_number(statement, 3, last);
	return sqlite_run(sqlite, statement);
}

enum store_result rows_remove(struct store *store, uint64_t channel, uint64_t first)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result = rows_remove_dead(sqlite, channel, first);

	if (result == STORE_OK)
		result = sqlite_change(sqlite, STATEMENT_ROW_REMOVE, channel, &statement);
	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, first);
	return sqlite_run(sqlite, statement);
}
