/*
 * Transactions, the checkpoint, what SQLite's errors mean, and the statements, which are prepared
 * when they are first used and kept. No statement stays open between two calls: an open one would
 * hold the checkpoint back.
 */
#include "store/sqlite_priv.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The log is brought into the database when it has so many pages (of 4096 bytes) more than the last
 * time. A smaller number makes shorter pauses, and writes pages that change often more often. */
#define CHECKPOINT_PAGES 1000

/* Room is given back to the file system when more than this is free, and more than a quarter of the
 * database: otherwise messages that come would soon have it made anew. */
#define RECLAIM_MIN_PAGES 4096
#define RECLAIM_STEP_PAGES "256"

struct sqlite_store *sqlite_of(struct store *store)
{
	struct sqlite_store *sqlite = CONTAINER_OF(store, struct sqlite_store, store);

	ASSERT_MAGIC(sqlite, SQLITE_STORE_MAGIC);
	return sqlite;
}

/* --- errors -------------------------------------------------------------------------------- */

/* The unix VFS turns a write's ENOSPC and one that was cut short into SQLITE_FULL, and EDQUOT into
 * an I/O error, which leaves errno: sqlite3_system_errno knows nothing of what fails in a COMMIT.
 * An fsync's ENOSPC is no lack of room for the next transaction: what it was to sync may be lost.
 */
static enum store_result sqlite_meaning(int code, int system_error)
{
	switch (code & 0xff) {
	case SQLITE_OK:
	case SQLITE_ROW:
	case SQLITE_DONE:
		return STORE_OK;
	case SQLITE_FULL:
		return STORE_FULL;
	case SQLITE_NOMEM:
		return STORE_MEMORY;
	default:
		break;
	}
	switch (code) {
	case SQLITE_IOERR_NOMEM:
		return STORE_MEMORY;
	case SQLITE_IOERR_WRITE:
	case SQLITE_IOERR_TRUNCATE:
		return system_error == ENOSPC || system_error == EDQUOT ? STORE_FULL : STORE_DOWN;
	default:
		return STORE_DOWN;
	}
}

enum store_result sqlite_result(struct sqlite_store *sqlite, int code)
{
	int system_error = errno;
	enum store_result result = sqlite_meaning(code, system_error);
	struct text reason = TEXT_INIT(sqlite->store.reason);

	if (result == STORE_OK || sqlite->failed == STORE_DOWN)
		return result == STORE_OK ? STORE_OK : STORE_DOWN;
	text_add(&reason, "'%s': %s", sqlite->database, sqlite3_errstr(code));
	if ((code & 0xff) == SQLITE_IOERR && system_error != 0)
		text_add(&reason, ": %s", strerror(system_error));
	if (result == STORE_DOWN || sqlite->in_transaction)
		sqlite->failed = result;
	return result;
}

/* --- statements ---------------------------------------------------------------------------- */

static const char *const statement_texts[STATEMENT_COUNT] = {
#define STATEMENT(name, per_channel, text) text,
	STORE_STATEMENTS(STATEMENT)
#undef STATEMENT
};

/* The text with CHANNEL for each '#'; NULL: no memory. The caller frees it with sqlite3_free. */
static char *statement_text(enum statement which, uint64_t channel)
{
	sqlite3_str *text = sqlite3_str_new(NULL);

	for (const char *from = statement_texts[which]; *from != '\0'; from++) {
		if (*from == '#')
			sqlite3_str_appendf(text, "%llu", (unsigned long long)channel);
		else
			sqlite3_str_appendchar(text, 1, *from);
	}
	return sqlite3_str_finish(text);
}

static bool sqlite_make_room(struct sqlite_store *sqlite, uint64_t channel)
{
	size_t count = (size_t)channel + 1;
	void *more;

	if (channel < sqlite->channel_count)
		return true;
	if (channel >= SIZE_MAX / sizeof(sqlite->of_channels[0]))
		return false;
	more = realloc(sqlite->of_channels, count * sizeof(sqlite->of_channels[0]));
	if (more == NULL)
		return false;
	sqlite->of_channels = more;
	memset(sqlite->of_channels + sqlite->channel_count, 0,
	       (count - sqlite->channel_count) * sizeof(sqlite->of_channels[0]));
	sqlite->channel_count = count;
	return true;
}

static enum store_result sqlite_prepare(struct sqlite_store *sqlite, enum statement which,
					uint64_t channel, sqlite3_stmt **prepared)
{
	char *text = statement_text(which, channel);
	int code;

	if (text == NULL)
		return sqlite_result(sqlite, SQLITE_NOMEM);
	code = sqlite3_prepare_v3(sqlite->db, text, -1, SQLITE_PREPARE_PERSISTENT, prepared, NULL);
	sqlite3_free(text);
	return sqlite_result(sqlite, code);
}

enum store_result sqlite_statement(struct sqlite_store *sqlite, enum statement which,
				   uint64_t channel, sqlite3_stmt **statement)
{
	sqlite3_stmt **kept;

	*statement = NULL;
	if (sqlite->failed != STORE_OK)
		return sqlite->failed;
	if (which < STATEMENT_OF_CHANNELS) {
		kept = &sqlite->statements[which];
	} else {
		if (!sqlite_make_room(sqlite, channel))
			return sqlite_result(sqlite, SQLITE_NOMEM);
		kept = &sqlite->of_channels[channel][which - STATEMENT_OF_CHANNELS];
	}
	if (*kept == NULL) {
		enum store_result result = sqlite_prepare(sqlite, which, channel, kept);

		if (result != STORE_OK)
			return result;
	}
	*statement = *kept;
	return STORE_OK;
}

enum store_result sqlite_change(struct sqlite_store *sqlite, enum statement which, uint64_t channel,
				sqlite3_stmt **statement)
{
	/* Outside of one each change would be committed by itself. */
	ASSERT(sqlite->in_transaction);
	return sqlite_statement(sqlite, which, channel, statement);
}

enum store_result sqlite_step(struct sqlite_store *sqlite, sqlite3_stmt *statement)
{
	enum store_result result;
	int code;

	errno = 0;
	code = sqlite3_step(statement);
	if (code == SQLITE_ROW)
		return STORE_OK;
	result = sqlite_result(sqlite, code);
	(void)sqlite3_reset(statement); /* says again what has been said */
	return result == STORE_OK ? STORE_NONE : result;
}

enum store_result sqlite_run(struct sqlite_store *sqlite, sqlite3_stmt *statement)
{
	enum store_result result = sqlite_step(sqlite, statement);

	ASSERT(result != STORE_OK);
	return result == STORE_NONE ? STORE_OK : result;
}

void sqlite_bind_number(sqlite3_stmt *statement, int place, uint64_t number)
{
	/* Without a value that is being computed this cannot fail. */
	(void)sqlite3_bind_int64(statement, place, (sqlite3_int64)number);
}

enum store_result sqlite_bind_span(struct sqlite_store *sqlite, sqlite3_stmt *statement, int place,
				   struct span span)
{
	/* With a null pointer it would be NULL, not empty. */
	const void *data = span.length == 0 ? (const void *)"" : span.data;

	return sqlite_result(
		sqlite, sqlite3_bind_blob64(statement, place, data, span.length, SQLITE_STATIC));
}

uint64_t sqlite_number(sqlite3_stmt *statement, int column)
{
	return (uint64_t)sqlite3_column_int64(statement, column);
}

struct span sqlite_span(sqlite3_stmt *statement, int column)
{
	const void *data = sqlite3_column_blob(statement, column); /* before the length */

	return (struct span){.data = data,
			     .length = (size_t)sqlite3_column_bytes(statement, column)};
}

/* --- transactions -------------------------------------------------------------------------- */

static enum store_result sqlite_run_plain(struct sqlite_store *sqlite, enum statement which)
{
	sqlite3_stmt *statement;
	enum store_result result = sqlite_statement(sqlite, which, 0, &statement);

	return result == STORE_OK ? sqlite_run(sqlite, statement) : result;
}

static enum store_result sqlite_begin(struct store *store)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	enum store_result result;

	ASSERT(!sqlite->in_transaction);
	result = sqlite_run_plain(sqlite, STATEMENT_BEGIN);
	sqlite->in_transaction = result == STORE_OK;
	return result;
}

static void sqlite_rollback(struct store *store)
{
	struct sqlite_store *sqlite = sqlite_of(store);

	if (!sqlite->in_transaction)
		return;
	if (sqlite->failed != STORE_DOWN)
		sqlite->failed = STORE_OK;
	sqlite->in_transaction = false;
	/* Some errors have rolled back already. Of a store that is down nothing is needed. */
	if (!sqlite3_get_autocommit(sqlite->db) && sqlite->failed != STORE_DOWN)
		(void)sqlite_run_plain(sqlite, STATEMENT_ROLLBACK);
}

static enum store_result sqlite_commit(struct store *store)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	enum store_result result;

	ASSERT(sqlite->in_transaction);
	result = sqlite_run_plain(sqlite, STATEMENT_COMMIT);
	if (result == STORE_OK)
		sqlite->in_transaction = false;
	else
		sqlite_rollback(store);
	return result;
}

/* Called by SQLite after each commit. */
static int sqlite_committed(void *context, sqlite3 *db, const char *name, int log_pages)
{
	struct sqlite_store *sqlite = context;

	(void)db;
	(void)name;
	/* A log that begins anew needs no more than the first threshold. */
	if (log_pages < sqlite->log_pages)
		sqlite->next_checkpoint = CHECKPOINT_PAGES;
	sqlite->log_pages = log_pages;
	return SQLITE_OK;
}

void sqlite_watch_log(struct sqlite_store *sqlite)
{
	sqlite->next_checkpoint = CHECKPOINT_PAGES;
	/* In place of SQLite's own, which checkpoints within the commit and forgets its errors. */
	(void)sqlite3_wal_hook(sqlite->db, sqlite_committed, sqlite);
}

static enum store_result sqlite_checkpoint(struct store *store)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	enum store_result result;

	ASSERT(!sqlite->in_transaction);
	if (sqlite->failed != STORE_OK)
		return sqlite->failed;
	if (sqlite->log_pages < sqlite->next_checkpoint)
		return STORE_OK;
	sqlite->next_checkpoint = sqlite->log_pages + CHECKPOINT_PAGES;
	errno = 0;
	result = sqlite_result(
		sqlite,
		sqlite3_wal_checkpoint_v2(sqlite->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL));
	return result == STORE_DOWN ? STORE_DOWN : STORE_OK;
}

/* --- ids, room, size ----------------------------------------------------------------------- */

static enum store_result sqlite_ids_put(struct store *store, uint64_t next)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	sqlite3_stmt *statement;
	enum store_result result = sqlite_begin(store);

	if (result != STORE_OK)
		return result;
	result = sqlite_change(sqlite, STATEMENT_IDS_PUT, 0, &statement);
	if (result == STORE_OK) {
		sqlite_bind_number(statement, 1, next);
		result = sqlite_run(sqlite, statement);
	}
	if (result == STORE_OK)
		return sqlite_commit(store);
	sqlite_rollback(store);
	return result;
}

static enum store_result sqlite_read_number(struct sqlite_store *sqlite, enum statement which,
					    uint64_t *number)
{
	sqlite3_stmt *statement;
	enum store_result result = sqlite_statement(sqlite, which, 0, &statement);

	*number = 0;
	if (result != STORE_OK)
		return result;
	result = sqlite_step(sqlite, statement);
	if (result == STORE_OK)
		*number = sqlite_number(statement, 0);
	(void)sqlite3_reset(statement);
	return result;
}

static enum store_result sqlite_reclaim(struct store *store, bool *more)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	uint64_t free_pages, all_pages;
	enum store_result result;

	*more = false;
	ASSERT(!sqlite->in_transaction);
	result = sqlite_read_number(sqlite, STATEMENT_FREE_PAGES, &free_pages);
	if (result == STORE_OK)
		result = sqlite_read_number(sqlite, STATEMENT_ALL_PAGES, &all_pages);
	if (result != STORE_OK || free_pages <= RECLAIM_MIN_PAGES || free_pages <= all_pages / 4)
		return result;
	errno = 0;
	result = sqlite_result(sqlite,
			       sqlite3_exec(sqlite->db,
					    "PRAGMA incremental_vacuum(" RECLAIM_STEP_PAGES ")",
					    NULL, NULL, NULL));
	*more = result == STORE_OK;
	return result;
}

static uint64_t sqlite_bytes(struct store *store)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	struct stat database, log;
	uint64_t bytes = 0;

	if (stat(sqlite->database, &database) == 0)
		bytes += (uint64_t)database.st_size;
	if (stat(sqlite->log, &log) == 0)
		bytes += (uint64_t)log.st_size;
	return bytes;
}

/* --- the end ------------------------------------------------------------------------------- */

void sqlite_free(struct sqlite_store **freed)
{
	struct sqlite_store *sqlite = *freed;

	*freed = NULL;
	for (size_t i = 0; i < ARRAY_LENGTH(sqlite->statements); i++)
		(void)sqlite3_finalize(sqlite->statements[i]);
	for (size_t channel = 0; channel < sqlite->channel_count; channel++)
		for (size_t i = 0; i < ARRAY_LENGTH(sqlite->of_channels[channel]); i++)
			(void)sqlite3_finalize(sqlite->of_channels[channel][i]);
	free(sqlite->of_channels);
	if (sqlite->db != NULL)
		(void)sqlite3_close(sqlite->db);
	/* Not before the database is closed. */
	if (sqlite->lock_fd >= 0)
		(void)close(sqlite->lock_fd);
	free(sqlite->database);
	free(sqlite->log);
	sqlite->magic = 0;
	free(sqlite);
}

static void sqlite_close(struct store *store)
{
	struct sqlite_store *sqlite = sqlite_of(store);

	sqlite_rollback(store);
	/* A clean end leaves no log behind. After a failure the next start has to look at it. */
	if (sqlite->failed == STORE_OK)
		(void)sqlite3_db_config(sqlite->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
	sqlite_free(&sqlite);
}

const struct store_ops sqlite_ops = {
	.close = sqlite_close,
	.begin = sqlite_begin,
	.commit = sqlite_commit,
	.rollback = sqlite_rollback,
	.channel_open = channels_open,
	.channel_put = channels_put,
	.row_add = rows_add,
	.row_read = rows_read,
	.row_replace = rows_replace,
	.row_remove = rows_remove,
	.key_find = keys_find,
	.key_add = keys_add,
	.keys_trim = keys_trim,
	.consumers = consumers_walk,
	.consumer_add = consumers_add,
	.consumer_put = consumers_put,
	.consumer_remove = consumers_remove,
	.dead_add = dead_add,
	.dead_read = dead_read,
	.ids_put = sqlite_ids_put,
	.checkpoint = sqlite_checkpoint,
	.reclaim = sqlite_reclaim,
	.bytes = sqlite_bytes,
};
