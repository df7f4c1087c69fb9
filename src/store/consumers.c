/* Channels, their consumers, and facts about dead letters. */
#include "store/sqlite_priv.h"

/* --- channels ------------------------------------------------------------------------------ */

static enum store_result channels_find(struct sqlite_store *sqlite, struct span name,
				       struct store_channel *channel)
{
	sqlite3_stmt *statement;
	enum store_result result = sqlite_statement(sqlite, STATEMENT_CHANNEL_FIND, 0, &statement);

	if (result == STORE_OK)
		result = sqlite_bind_span(sqlite, statement, 1, name);
	if (result == STORE_OK)
		result = sqlite_step(sqlite, statement);
	if (result != STORE_OK)
		return result;
	*channel = (struct store_channel){
		.number = sqlite_number(statement, 0),
		.last = sqlite_number(statement, 1),
		.charged = sqlite_number(statement, 2),
		.time_ms = (int64_t)sqlite_number(statement, 3),
		.first = sqlite_number(statement, 4),
		.kept = sqlite_number(statement, 5),
		.kept_charged = sqlite_number(statement, 6),
		.keys = sqlite_number(statement, 7),
	};
	(void)sqlite3_reset(statement);
	return STORE_OK;
}

static enum store_result channels_add(struct sqlite_store *sqlite, struct span name)
{
	sqlite3_stmt *statement;
	enum store_result result = sqlite_change(sqlite, STATEMENT_CHANNEL_ADD, 0, &statement);
	sqlite3_int64 number;

	if (result == STORE_OK)
		result = sqlite_bind_span(sqlite, statement, 1, name);
	if (result == STORE_OK)
		result = sqlite_run(sqlite, statement);
	if (result != STORE_OK)
		return result;
	number = sqlite3_last_insert_rowid(sqlite->db);
	return sqlite_result(sqlite, schema_add_channel(sqlite->db, (uint64_t)number));
}

enum store_result channels_open(struct store *store, struct span name,
				struct store_channel *channel)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	enum store_result result;

	*channel = (struct store_channel){0};
	result = channels_find(sqlite, name, channel);
	if (result != STORE_NONE)
		return result;
	result = channels_add(sqlite, name);
	return result == STORE_OK ? channels_find(sqlite, name, channel) : result;
}

enum store_result channels_put(struct store *store, const struct store_channel *channel)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result = sqlite_change(sqlite, STATEMENT_CHANNEL_PUT, 0, &statement);

	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, channel->number);
	sqlite_bind_number(statement, 2, channel->last);
	sqlite_bind_number(statement, 3, channel->charged);
	sqlite_bind_number(statement, 4, (uint64_t)channel->time_ms);
	sqlite_bind_number(statement, 5, channel->first);
	sqlite_bind_number(statement, 6, channel->kept);
	sqlite_bind_number(statement, 7, channel->kept_charged);
	sqlite_bind_number(statement, 8, channel->keys);
	return sqlite_run(sqlite, statement);
}

/* --- consumers ----------------------------------------------------------------------------- */

enum store_result consumers_walk(struct store *store, uint64_t channel,
				 bool (*each)(void *context, const struct store_consumer *consumer),
				 void *context)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result = sqlite_statement(sqlite, STATEMENT_CONSUMERS, 0, &statement);

	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, channel);
	while ((result = sqlite_step(sqlite, statement)) == STORE_OK) {
		struct store_consumer consumer = {
			.number = sqlite_number(statement, 0),
			.name = sqlite_span(statement, 1),
			.idle_since_ms = (int64_t)sqlite_number(statement, 2),
			.state = sqlite_span(statement, 3),
		};

		if (!each(context, &consumer)) {
			(void)sqlite3_reset(statement);
			return STORE_MEMORY;
		}
	}
	return result == STORE_NONE ? STORE_OK : result;
}

enum store_result consumers_add(struct store *store, uint64_t channel,
				const struct store_consumer *consumer, uint64_t *number)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result = sqlite_change(sqlite, STATEMENT_CONSUMER_ADD, 0, &statement);

	*number = 0;
	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, channel);
	result = sqlite_bind_span(sqlite, statement, 2, consumer->name);
	sqlite_bind_number(statement, 3, (uint64_t)consumer->idle_since_ms);
	if (result == STORE_OK)
		result = sqlite_bind_span(sqlite, statement, 4, consumer->state);
	if (result == STORE_OK)
		result = sqlite_run(sqlite, statement);
	if (result == STORE_OK)
		*number = (uint64_t)sqlite3_last_insert_rowid(sqlite->db);
	return result;
}

/* Runs a change of one consumer. */
static enum store_result consumers_run(struct sqlite_store *sqlite, sqlite3_stmt *statement)
{
	enum store_result result = sqlite_run(sqlite, statement);

	return result == STORE_OK && sqlite3_changes(sqlite->db) == 0 ? STORE_NONE : result;
}

enum store_result consumers_put(struct store *store, uint64_t number, int64_t idle_since_ms,
				struct span state)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result = sqlite_change(sqlite, STATEMENT_CONSUMER_PUT, 0, &statement);

	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, number);
	sqlite_bind_number(statement, 2, (uint64_t)idle_since_ms);
	result = sqlite_bind_span(sqlite, statement, 3, state);
	return result == STORE_OK ? consumers_run(sqlite, statement) : result;
}

enum store_result consumers_remove(struct store *store, uint64_t number)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result = sqlite_change(sqlite, STATEMENT_CONSUMER_REMOVE, 0, &statement);

	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, number);
	return consumers_run(sqlite, statement);
}

/* --- dead letters -------------------------------------------------------------------------- */

enum store_result dead_add(struct store *store, uint64_t channel, const struct store_dead *dead)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result = sqlite_change(sqlite, STATEMENT_DEAD_ADD, 0, &statement);

	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, channel);
	sqlite_bind_number(statement, 2, dead->sequence);
	result = sqlite_bind_span(sqlite, statement, 3, dead->origin);
	if (result == STORE_OK)
		result = sqlite_bind_span(sqlite, statement, 4, dead->consumer);
	sqlite_bind_number(statement, 5, dead->rejected);
	sqlite_bind_number(statement, 6, dead->attempts);
	if (result == STORE_OK)
		result = sqlite_bind_span(sqlite, statement, 7, dead->text);
	return result == STORE_OK ? sqlite_run(sqlite, statement) : result;
}

enum store_result dead_read(struct store *store, uint64_t channel, uint64_t from, uint64_t count,
			    bool (*each)(void *context, const struct store_dead *dead),
			    void *context)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result = sqlite_statement(sqlite, STATEMENT_DEAD_READ, 0, &statement);

	if (result != STORE_OK)
		return result;
	sqlite_bind_number(statement, 1, channel);
	sqlite_bind_number(statement, 2, from > INT64_MAX ? INT64_MAX : from);
	sqlite_bind_number(statement, 3, count > INT64_MAX ? INT64_MAX : count);
	while ((result = sqlite_step(sqlite, statement)) == STORE_OK) {
		struct store_dead dead = {
			.sequence = sqlite_number(statement, 0),
			.origin = sqlite_span(statement, 1),
			.consumer = sqlite_span(statement, 2),
			.rejected = sqlite_number(statement, 3) != 0,
			.attempts = sqlite_number(statement, 4),
			.text = sqlite_span(statement, 5),
		};

		if (!each(context, &dead)) {
			(void)sqlite3_reset(statement);
			return STORE_MEMORY;
		}
	}
	return result == STORE_NONE ? STORE_OK : result;
}
