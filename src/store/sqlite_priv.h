/*
 * The store on SQLite: what its files share.
 *
 *   folder.c        the folder, its lock, its owner
 *   open.c          making and opening the database
 *   schema.c        the tables, and how a database of an older version gets them
 *   short_file.c    whether a database that is shorter than it should be is completed by its log
 *   check.c         whether a store is sound
 *   sqlite.c        transactions, the checkpoint, what SQLite's errors mean, statements
 *   rows.c          messages
 *   keys.c          idempotency keys
 *   consumers.c     channels, consumers, facts about dead letters
 *
 * A channel has a table of rows and one of keys of its own, with the sequence as their rowid: rows
 * are then only ever added at the end of a b-tree, which costs a lone commit one page less than an
 * index would, and fills the pages. Numbers of 64 bits without a sign are stored as SQLite's signed
 * ones; sequences stay far below 2^63.
 */
#ifndef STORE_SQLITE_PRIV_H
#define STORE_SQLITE_PRIV_H

#include "store/store.h"

#include <sqlite3.h>

/* A statement: its name, whether it is one of a channel's tables ('#' is the channel's number
 * then), its text. */
#define STORE_STATEMENTS(STATEMENT)                                                                \
	STATEMENT(BEGIN, false, "BEGIN IMMEDIATE")                                                 \
	STATEMENT(COMMIT, false, "COMMIT")                                                         \
	STATEMENT(ROLLBACK, false, "ROLLBACK")                                                     \
	STATEMENT(IDS_PUT, false, "UPDATE server SET next_id = ?1")                                \
	STATEMENT(CHANNEL_FIND, false,                                                             \
		  "SELECT number, last, charged, time_ms, first, kept, kept_charged, keys"         \
		  " FROM channel WHERE name = ?1")                                                 \
	STATEMENT(CHANNEL_ADD, false,                                                              \
		  "INSERT INTO channel (name, last, charged, time_ms, first, kept, kept_charged,"  \
		  " keys) VALUES (?1, 0, 0, 0, 1, 0, 0, 0)")                                       \
	STATEMENT(CHANNEL_PUT, false,                                                              \
		  "UPDATE channel SET last = ?2, charged = ?3, time_ms = ?4, first = ?5,"          \
		  " kept = ?6, kept_charged = ?7, keys = ?8 WHERE number = ?1")                    \
	STATEMENT(CONSUMERS, false,                                                                \
		  "SELECT number, name, idle_since_ms, state FROM consumer WHERE channel = ?1")    \
	STATEMENT(CONSUMER_ADD, false,                                                             \
		  "INSERT INTO consumer (channel, name, idle_since_ms, state)"                     \
		  " VALUES (?1, ?2, ?3, ?4)")                                                      \
	STATEMENT(CONSUMER_PUT, false,                                                             \
		  "UPDATE consumer SET idle_since_ms = ?2, state = ?3 WHERE number = ?1")          \
	STATEMENT(CONSUMER_REMOVE, false, "DELETE FROM consumer WHERE number = ?1")                \
	STATEMENT(DEAD_ADD, false,                                                                 \
		  "INSERT INTO dead (channel, sequence, origin, consumer, rejected, attempts,"     \
		  " text) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")                                    \
	STATEMENT(DEAD_READ, false,                                                                \
		  "SELECT sequence, origin, consumer, rejected, attempts, text FROM dead"          \
		  " WHERE channel = ?1 AND sequence >= ?2 ORDER BY sequence LIMIT ?3")             \
	STATEMENT(DEAD_REMOVE, false,                                                              \
		  "DELETE FROM dead WHERE channel = ?1 AND sequence BETWEEN ?2 AND ?3")            \
	STATEMENT(FREE_PAGES, false, "PRAGMA freelist_count")                                      \
	STATEMENT(ALL_PAGES, false, "PRAGMA page_count")                                           \
	STATEMENT(ROW_ADD, true, "INSERT INTO row_# VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")      \
	STATEMENT(ROW_LAST, true, "SELECT last FROM row_# WHERE first = ?1")                       \
	STATEMENT(ROW_AT, true,                                                                    \
		  "SELECT * FROM row_# WHERE first <= ?1 ORDER BY first DESC LIMIT 1")             \
	STATEMENT(ROW_AFTER, true, "SELECT * FROM row_# WHERE first > ?1 ORDER BY first LIMIT 1")  \
	STATEMENT(HEAD_AT, true,                                                                   \
		  "SELECT first, last, count, charged, before, time_ms, sparse FROM row_#"         \
		  " WHERE first <= ?1 ORDER BY first DESC LIMIT 1")                                \
	STATEMENT(HEAD_AFTER, true,                                                                \
		  "SELECT first, last, count, charged, before, time_ms, sparse FROM row_#"         \
		  " WHERE first > ?1 ORDER BY first LIMIT 1")                                      \
	STATEMENT(ROW_REPLACE, true,                                                               \
		  "UPDATE row_# SET last = ?2, count = ?3, charged = ?4, before = ?5,"             \
		  " time_ms = ?6, sparse = ?7, data = ?8 WHERE first = ?1")                        \
	STATEMENT(ROW_REMOVE, true, "DELETE FROM row_# WHERE first = ?1")                          \
	STATEMENT(KEY_FIND, true,                                                                  \
		  "SELECT sequence, time_ms, id FROM key_# WHERE key = ?1"                         \
		  " ORDER BY sequence DESC LIMIT 1")                                               \
	STATEMENT(KEY_ADD, true, "INSERT INTO key_# VALUES (?1, ?2, ?3, ?4)")                      \
	STATEMENT(KEYS_OLDEST, true,                                                               \
		  "SELECT sequence, time_ms FROM key_# ORDER BY sequence LIMIT ?1")                \
	STATEMENT(KEYS_REMOVE, true, "DELETE FROM key_# WHERE sequence <= ?1")

enum statement {
#define STATEMENT(name, per_channel, text) STATEMENT_##name,
	STORE_STATEMENTS(STATEMENT)
#undef STATEMENT
		STATEMENT_COUNT
};

/* The first one of a channel's tables; all behind it are, too. */
#define STATEMENT_OF_CHANNELS STATEMENT_ROW_ADD

#define SQLITE_STORE_MAGIC 0x5c4e70feU

struct sqlite_store {
	unsigned magic;
	struct store store;
	sqlite3 *db;
	int lock_fd;
	char *database, *log; /* paths */

	bool made_log; /* by looking */
	bool in_transaction;
	enum store_result failed; /* STORE_OK, or what every call returns */
	int log_pages;		  /* that no checkpoint has brought into the database */
	int next_checkpoint;	  /* at so many */

	sqlite3_stmt *statements[STATEMENT_OF_CHANNELS];
	sqlite3_stmt *(*of_channels)[STATEMENT_COUNT - STATEMENT_OF_CHANNELS]; /* by number */
	size_t channel_count;
};

struct sqlite_store *sqlite_of(struct store *store);

/* sqlite.c */
extern const struct store_ops sqlite_ops;

/*
 * What a result code of SQLite means, with the errno that its call has left; STORE_OK for rows and
 * an end without error. A failure within a transaction is noted as the transaction's, and the store
 * is down when it is that grave.
 */
enum store_result sqlite_result(struct sqlite_store *sqlite, int code);

/* *STATEMENT, prepared, for one use; CHANNEL is not looked at when it is not of a channel's. */
enum store_result sqlite_statement(struct sqlite_store *sqlite, enum statement which,
				   uint64_t channel, sqlite3_stmt **statement);
/* Likewise, for a change: only within a transaction. */
enum store_result sqlite_change(struct sqlite_store *sqlite, enum statement which, uint64_t channel,
				sqlite3_stmt **statement);
/* The next row: STORE_OK; STORE_NONE at the end. Whatever it returns but STORE_OK, the statement is
 * done with. */
enum store_result sqlite_step(struct sqlite_store *sqlite, sqlite3_stmt *statement);
/* Runs a statement that returns no rows. */
enum store_result sqlite_run(struct sqlite_store *sqlite, sqlite3_stmt *statement);

void sqlite_bind_number(sqlite3_stmt *statement, int place, uint64_t number);
/* What SPAN refers to lives until the statement has run. */
enum store_result sqlite_bind_span(struct sqlite_store *sqlite, sqlite3_stmt *statement, int place,
				   struct span span);
uint64_t sqlite_number(sqlite3_stmt *statement, int column);
struct span sqlite_span(sqlite3_stmt *statement, int column);

/* From now on the size of the log is watched. */
void sqlite_watch_log(struct sqlite_store *sqlite);

/* Closes what is open of it and frees it; the database as it is. */
void sqlite_free(struct sqlite_store **sqlite);

/* rows.c, keys.c, consumers.c: as in store_ops */
enum store_result rows_add(struct store *store, uint64_t channel, const struct store_row *row);
enum store_result rows_read(struct store *store, uint64_t channel, uint64_t sequence,
			    bool with_data, struct store_row *row);
enum store_result rows_replace(struct store *store, uint64_t channel, const struct store_row *row);
enum store_result rows_remove(struct store *store, uint64_t channel, uint64_t first);
enum store_result keys_find(struct store *store, uint64_t channel, struct span key,
			    int64_t not_before_ms, uint64_t *id, uint64_t *sequence);
enum store_result keys_add(struct store *store, uint64_t channel, struct span key, int64_t time_ms,
			   uint64_t id, uint64_t sequence);
enum store_result keys_trim(struct store *store, uint64_t channel, int64_t before_ms,
			    uint64_t excess, uint64_t limit, uint64_t *removed);
enum store_result channels_open(struct store *store, struct span name,
				struct store_channel *channel);
enum store_result channels_put(struct store *store, const struct store_channel *channel);
enum store_result consumers_walk(struct store *store, uint64_t channel,
				 bool (*each)(void *context, const struct store_consumer *consumer),
				 void *context);
enum store_result consumers_add(struct store *store, uint64_t channel,
				const struct store_consumer *consumer, uint64_t *number);
enum store_result consumers_put(struct store *store, uint64_t number, int64_t idle_since_ms,
				struct span state);
enum store_result consumers_remove(struct store *store, uint64_t number);
enum store_result dead_add(struct store *store, uint64_t channel, const struct store_dead *dead);
enum store_result dead_read(struct store *store, uint64_t channel, uint64_t from, uint64_t count,
			    bool (*each)(void *context, const struct store_dead *dead),
			    void *context);

/* schema.c */
/* "LIMN", in the header of each database of ours. */
#define STORE_APPLICATION_ID 0x4c494d4e

/* How a database gets from one version to the next: step N leads from version N to N + 1. A new one
 * takes all of them. An SQLite result code. */
struct schema_step {
	const char *text;
};

extern const struct schema_step schema_steps[];
extern const int schema_version;

/* Takes the steps from version FROM up to VERSION, in one transaction. An SQLite result code; after
 * a failure nothing has changed. */
int schema_upgrade(sqlite3 *db, const struct schema_step *steps, int from, int version);

/* Makes the tables of a channel. */
int schema_add_channel(sqlite3 *db, uint64_t channel);

/* short_file.c */
enum file_result { FILE_COMPLETE, FILE_TRUNCATED, FILE_NO_DATABASE, FILE_UNREADABLE };

/* Whether the database is as long as it and its log say, or else the log holds every page that it
 * lacks. Reads only. FILE_UNREADABLE leaves errno. */
enum file_result short_file(const char *database, const char *log);

/* open.c */
/*
 * Opens the database, whose paths and lock SQLITE has, looks whether it is one of ours that can be
 * read, and sets *VERSION to its schema's. It is opened for writing, without which it cannot be
 * locked, but nothing is written, neither now nor, unless the caller changes that, when it is
 * closed.
 */
bool store_look(struct sqlite_store *sqlite, int *version, struct text *error);

/* Ends what store_look has begun, without having written anything. */
void store_look_away(struct sqlite_store *sqlite);

/* A store with its paths, and nothing open; NULL: no memory. */
struct sqlite_store *store_new(const char *dir);

/* folder.c */
#define STORE_LOCK "liminal.lock"

/* DIR/FILE; NULL: no memory. */
char *folder_path(const char *dir, const char *file);

/* Makes DIR when it is missing, looks at its mode, and syncs it and its parent. */
bool folder_prepare(const char *dir, struct text *error);

/* Syncs DIR: what was made or renamed in it stays. */
bool folder_sync(const char *dir, struct text *error);

/* The descriptor of the locked file, or -1. With SERVE for the process that serves, which makes it
 * and writes its process id into it; otherwise it is only looked at, and there may be no file: -1
 * without an error. Closing any descriptor of that file would let go of the lock. */
int folder_lock(const char *dir, bool serve, struct text *error);

#endif
