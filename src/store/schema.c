/*
 * The tables. To change them add a step to the end of the table below, never change one that was
 * released, and add what old databases need to tests/unit/store.c. All steps of an upgrade are one
 * transaction: a database is of the old version, or of the new one.
 */
#include "store/sqlite_priv.h"

#include <stdio.h>

const struct schema_step schema_steps[] = {
	/* 0 -> 1. Times are the wall clock's milliseconds, numbers as in store.h. `server` has one
	 * row. */
	{"CREATE TABLE server (created_ms INTEGER NOT NULL, next_id INTEGER NOT NULL);"
	 "INSERT INTO server VALUES (0, 1);"
	 "CREATE TABLE channel (number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE,"
	 " last INTEGER NOT NULL, charged INTEGER NOT NULL, time_ms INTEGER NOT NULL,"
	 " first INTEGER NOT NULL, kept INTEGER NOT NULL, kept_charged INTEGER NOT NULL,"
	 " keys INTEGER NOT NULL);"
	 "CREATE TABLE consumer (number INTEGER PRIMARY KEY, channel INTEGER NOT NULL,"
	 " name BLOB NOT NULL, idle_since_ms INTEGER NOT NULL, state BLOB NOT NULL,"
	 " UNIQUE (channel, name));"
	 "CREATE TABLE dead (channel INTEGER NOT NULL, sequence INTEGER NOT NULL,"
	 " origin BLOB NOT NULL, consumer BLOB NOT NULL, rejected INTEGER NOT NULL,"
	 " attempts INTEGER NOT NULL, text BLOB NOT NULL,"
	 " PRIMARY KEY (channel, sequence)) WITHOUT ROWID;"},
};

const int schema_version = ARRAY_LENGTH(schema_steps);

int schema_upgrade(sqlite3 *db, const struct schema_step *steps, int from, int version)
{
	char pragma[64];
	int code = sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);

	if (code != SQLITE_OK)
		return code;
	for (int step = from; step < version && code == SQLITE_OK; step++)
		code = sqlite3_exec(db, steps[step].text, NULL, NULL, NULL);
	(void)snprintf(pragma, sizeof(pragma), "PRAGMA user_version = %d", version);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, pragma, NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
	if (code != SQLITE_OK && !sqlite3_get_autocommit(db))
		(void)sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
	return code;
}

/* The data comes last: a head is read without touching the pages of its data. The key's index is
 * not unique: a key that is too old to count stands there until it is trimmed. */
int schema_add_channel(sqlite3 *db, uint64_t channel)
{
	char text[512];

	(void)snprintf(text, sizeof(text),
		       "CREATE TABLE row_%llu (first INTEGER PRIMARY KEY, last INTEGER NOT NULL,"
		       " count INTEGER NOT NULL, charged INTEGER NOT NULL, before INTEGER NOT NULL,"
		       " time_ms INTEGER NOT NULL, sparse INTEGER NOT NULL, data BLOB NOT NULL);"
		       "CREATE TABLE key_%llu (sequence INTEGER PRIMARY KEY,"
		       " time_ms INTEGER NOT NULL, id INTEGER NOT NULL, key BLOB NOT NULL);"
		       "CREATE INDEX key_%llu_key ON key_%llu (key);",
		       (unsigned long long)channel, (unsigned long long)channel,
		       (unsigned long long)channel, (unsigned long long)channel);
	return sqlite3_exec(db, text, NULL, NULL, NULL);
}
