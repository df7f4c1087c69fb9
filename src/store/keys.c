/* Idempotency keys: rows of a channel's table, by the sequence of their message. */
#include "store/sqlite_priv.h"

enum store_result keys_find(struct store *store, uint64_t channel, struct span key,
			    int64_t not_before_ms, uint64_t *id, uint64_t *sequence)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result =
		sqlite_statement(sqlite, STATEMENT_KEY_FIND, channel, &statement);

	*id = *sequence = 0;
	if (result == STORE_OK)
		result = sqlite_bind_span(sqlite, statement, 1, key);
	if (result == STORE_OK)
		result = sqlite_step(sqlite, statement);
	if (result != STORE_OK)
		return result;
	if ((int64_t)sqlite_number(statement, 1) < not_before_ms) {
		result = STORE_NONE;
	} else {
		*sequence = sqlite_number(statement, 0);
		*id = sqlite_number(statement, 2);
	}
	(void)sqlite3_reset(statement);
	return result;
}

enum store_result keys_add(struct store *store, uint64_t channel, struct span key, int64_t time_ms,
			   uint64_t id, uint64_t sequence)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result = sqlite_change(sqlite, STATEMENT_KEY_ADD, channel, &statement);

	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, sequence);
	sqlite_bind_number(statement, 2, (uint64_t)time_ms);
	sqlite_bind_number(statement, 3, id);
	result = sqlite_bind_span(sqlite, statement, 4, key);
	return result == STORE_OK ? sqlite_run(sqlite, statement) : result;
}

/* The sequence of the last key that is to go, and how many go with it. */
static enum store_result keys_to_trim(struct sqlite_store *sqlite, uint64_t channel,
				      int64_t before_ms, uint64_t excess, uint64_t limit,
				      uint64_t *last, uint64_t *count)
{
	sqlite3_stmt *statement;
	enum store_result result =
		sqlite_change(sqlite, STATEMENT_KEYS_OLDEST, channel, &statement);

	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, limit);
	while ((result = sqlite_step(sqlite, statement)) == STORE_OK) {
		if (*count >= excess && (int64_t)sqlite_number(statement, 1) >= before_ms)
			break;
		*last = sqlite_number(statement, 0);
		++*count;
	}
	(void)sqlite3_reset(statement);
	return result == STORE_NONE ? STORE_OK : result;
}

enum store_result keys_trim(struct store *store, uint64_t channel, int64_t before_ms,
			    uint64_t excess, uint64_t limit, uint64_t *removed)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	uint64_t last = 0, count = 0;
	enum store_result result;

	*removed = 0;
	result = keys_to_trim(sqlite, channel, before_ms, excess,
			      limit > INT64_MAX ? INT64_MAX : limit, &last, &count);
	if (result != STORE_OK || count == 0)
		return result;
	result = sqlite_change(sqlite, STATEMENT_KEYS_REMOVE, channel, &statement);
	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, last);
	result = sqlite_run(sqlite, statement);
	if (result == STORE_OK)
		*removed = count;
	return result;
}
