/*
 * Making and opening the database. A new one is made under another name, synced, and renamed, so
 * that one with its own name has always been whole. What is there is looked at before anything is
 * written to it, or to its log.
 */
#include "store/sqlite_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"

/* 4096 bytes a page: a commit writes at least two, whatever their size; larger ones gain a batch of
 * 4096 messages nothing that could be measured. */
static const char settings_new[] = "PRAGMA page_size = 4096;"
				   "PRAGMA auto_vacuum = INCREMENTAL;"
				   "PRAGMA synchronous = FULL;"
				   "PRAGMA fullfsync = ON;";

/* Without secure_delete what retention removes is not overwritten, which would write it once more.
 * The log is cut to its limit after a large transaction. */
static const char settings[] = "PRAGMA synchronous = FULL;"
			       "PRAGMA fullfsync = ON;"
			       "PRAGMA checkpoint_fullfsync = ON;"
			       "PRAGMA secure_delete = OFF;"
			       "PRAGMA cache_size = -16384;"
			       "PRAGMA mmap_size = 0;"
			       "PRAGMA temp_store = MEMORY;"
			       "PRAGMA trusted_schema = OFF;"
			       "PRAGMA journal_size_limit = 67108864;";

/* --- errors -------------------------------------------------------------------------------- */

static void open_failed(sqlite3 *db, const char *path, int code, struct text *error)
{
	int system_error = errno;

	switch (code & 0xff) {
	case SQLITE_NOTADB:
		text_add(error, "'%s' is not a database: move it away, or put a copy in its place",
			 path);
		break;
	case SQLITE_CORRUPT:
	case SQLITE_ERROR: /* a table that should be there is not */
		text_add(error,
			 "'%s' is damaged (%s): put a copy in its place, or move it and its log "
			 "away to begin anew",
			 path, db == NULL ? sqlite3_errstr(code) : sqlite3_errmsg(db));
		break;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		text_add(error, "'%s' is in use by another program", path);
		break;
	case SQLITE_FULL:
		text_add(error, "'%s' cannot be written: no room is left on its file system", path);
		break;
	case SQLITE_NOMEM:
		text_add(error, "'%s' cannot be opened: %s", path, strerror(ENOMEM));
		break;
	default:
		text_add(error, "'%s' cannot be used: %s", path, sqlite3_errstr(code));
		/* Nothing else leaves one. */
		if (system_error != 0 &&
		    ((code & 0xff) == SQLITE_IOERR || (code & 0xff) == SQLITE_CANTOPEN))
			text_add(error, ": %s", strerror(system_error));
		break;
	}
}

static bool open_errno(const char *what, const char *path, int failure, struct text *error)
{
	text_add(error, "cannot %s '%s': %s", what, path, strerror(failure));
	return false;
}

/* It is a part of the file, but somebody may have changed it there. An SQLite result code. */
static int set_log_mode(sqlite3 *db)
{
	sqlite3_stmt *statement = NULL;
	int code = sqlite3_prepare_v2(db, "PRAGMA journal_mode = WAL", -1, &statement, NULL);
	const char *mode;

	if (code == SQLITE_OK)
		code = sqlite3_step(statement);
	if (code == SQLITE_ROW) {
		mode = (const char *)sqlite3_column_text(statement, 0);
		code = mode != NULL && strcmp(mode, "wal") == 0 ? SQLITE_OK : SQLITE_CANTOPEN;
	}
	(void)sqlite3_finalize(statement);
	return code;
}

/* --- a new one ----------------------------------------------------------------------------- */

/* An SQLite result code. The file is there, and empty. */
static int make_tables(sqlite3 *db)
{
	char text[160];
	int code = sqlite3_exec(db, settings_new, NULL, NULL, NULL);

	if (code == SQLITE_OK)
		code = schema_upgrade(db, schema_steps, 0, schema_version);
	(void)snprintf(text, sizeof(text),
		       "PRAGMA application_id = %d; UPDATE server SET created_ms = %" PRId64,
		       STORE_APPLICATION_ID, clock_wall_ms());
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, text, NULL, NULL, NULL);
	return code == SQLITE_OK ? set_log_mode(db) : code;
}

/* Closes, which brings the log into the file, and syncs that. */
static bool make_file(const char *path, struct text *error)
{
	sqlite3 *db = NULL;
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
	int code, failure = 0;

	/* The log and the journal get the mode of the file. */
	if (fd < 0 || fchmod(fd, S_IRUSR | S_IWUSR) < 0) {
		failure = errno;
		if (fd >= 0)
			(void)close(fd);
		return open_errno("make", path, failure, error);
	}
	(void)close(fd); /* now: closing it later would let go of SQLite's locks */
	code = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_exec(db, "PRAGMA locking_mode = EXCLUSIVE", NULL, NULL, NULL);
	if (code == SQLITE_OK)
		code = make_tables(db);
	if (code == SQLITE_OK)
		code = sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
	if (code != SQLITE_OK)
		open_failed(db, path, code, error);
	(void)sqlite3_close(db);
	return code == SQLITE_OK;
}

/* Makes the database under another name and renames it. */
static bool make_database(const char *dir, const char *database, struct text *error)
{
	/* A crash may have left those. The last one is the database, so that none can take
	 * another's journal for its own. */
	static const char *const names[] = {"liminal.new-journal", "liminal.new-wal",
					    "liminal.new"};
	char *path = NULL;
	bool made = false;

	for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
		free(path);
		path = folder_path(dir, names[i]);
		if (path == NULL)
			return open_errno("make", database, ENOMEM, error);
		if (unlink(path) < 0 && errno != ENOENT) {
			(void)open_errno("remove", path, errno, error);
			goto done;
		}
	}
	if (!make_file(path, error))
		(void)unlink(path);
	else if (rename(path, database) < 0)
		(void)open_errno("make", database, errno, error);
	else
		made = folder_sync(dir, error);
done:
	free(path);
	return made;
}

/* Whether there is a database, or else nothing that belongs to one. */
static bool find_database(struct sqlite_store *sqlite, bool *found, struct text *error)
{
	struct stat status;

	*found = stat(sqlite->database, &status) == 0;
	if (*found && !S_ISREG(status.st_mode)) {
		text_add(error, "'%s' is not a file", sqlite->database);
		return false;
	}
	if (!*found && errno != ENOENT)
		return open_errno("read", sqlite->database, errno, error);
	if (!*found && stat(sqlite->log, &status) == 0) {
		text_add(error,
			 "'%s' is missing, but its log '%s' is there: put the database back, or "
			 "move the log away to begin anew",
			 sqlite->database, sqlite->log);
		return false;
	}
	return true;
}

/* --- one that is there --------------------------------------------------------------------- */

struct sqlite_store *store_new(const char *dir)
{
	struct sqlite_store *sqlite = calloc(1, sizeof(*sqlite));

	if (sqlite == NULL)
		return NULL;
	sqlite->magic = SQLITE_STORE_MAGIC;
	sqlite->store.ops = &sqlite_ops;
	sqlite->lock_fd = -1;
	sqlite->database = folder_path(dir, "liminal.db");
	sqlite->log = folder_path(dir, "liminal.db-wal");
	if (sqlite->database == NULL || sqlite->log == NULL)
		sqlite_free(&sqlite);
	return sqlite;
}

/* The number that a pragma, or a statement, gives; an SQLite result code. */
static int read_number(sqlite3 *db, const char *text, uint64_t *number)
{
	sqlite3_stmt *statement = NULL;
	int code = sqlite3_prepare_v2(db, text, -1, &statement, NULL);

	*number = 0;
	if (code == SQLITE_OK)
		code = sqlite3_step(statement);
	if (code == SQLITE_ROW)
		*number = sqlite_number(statement, 0);
	(void)sqlite3_finalize(statement);
	if (code == SQLITE_DONE)
		return SQLITE_CORRUPT; /* a row that must be there */
	return code == SQLITE_ROW ? SQLITE_OK : code;
}

static bool look_at_file(struct sqlite_store *sqlite, struct text *error)
{
	switch (short_file(sqlite->database, sqlite->log)) {
	case FILE_UNREADABLE:
		return open_errno("read", sqlite->database, errno, error);
	case FILE_NO_DATABASE:
		open_failed(NULL, sqlite->database, SQLITE_NOTADB, error);
		return false;
	case FILE_TRUNCATED:
		text_add(error,
			 "'%s' is truncated, and its log does not hold what is missing: put a copy "
			 "in its place, or move it and its log away to begin anew",
			 sqlite->database);
		return false;
	case FILE_COMPLETE:
		break;
	}
	return true;
}

static bool look_at_version(struct sqlite_store *sqlite, int *version, struct text *error)
{
	uint64_t id, number, objects;
	int code = read_number(sqlite->db, "PRAGMA application_id", &id);

	if (code == SQLITE_OK)
		code = read_number(sqlite->db, "PRAGMA user_version", &number);
	if (code == SQLITE_OK)
		code = read_number(sqlite->db, "SELECT count(*) FROM sqlite_master", &objects);
	if (code != SQLITE_OK) {
		open_failed(sqlite->db, sqlite->database, code, error);
		return false;
	}
	if (id != STORE_APPLICATION_ID) {
		text_add(error, "'%s' is a database, but not one of liminald", sqlite->database);
		return false;
	}
	*version = (int)number;
	if (*version > schema_version) {
		text_add(error,
			 "'%s' was written by a newer liminald: its schema is version %d, and this "
			 "one knows up to %d",
			 sqlite->database, *version, schema_version);
		return false;
	}
	return true;
}

/* SQLite makes a log, without anything in it, where there is none. */
void store_look_away(struct sqlite_store *sqlite)
{
	struct stat status;

	(void)sqlite3_close(sqlite->db);
	sqlite->db = NULL;
	if (sqlite->made_log && stat(sqlite->log, &status) == 0 && status.st_size == 0)
		(void)unlink(sqlite->log);
}

bool store_look(struct sqlite_store *sqlite, int *version, struct text *error)
{
	struct stat status;
	int code;

	sqlite->made_log = stat(sqlite->log, &status) < 0;
	*version = 0;
	if (!look_at_file(sqlite, error))
		return false;
	code = sqlite3_open_v2(sqlite->database, &sqlite->db,
			       SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
	if (code == SQLITE_OK)
		code = sqlite3_extended_result_codes(sqlite->db, 1);
	if (code == SQLITE_OK)
		code = sqlite3_db_config(sqlite->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	/* Before anything is read: then no file is needed that processes share. */
	if (code == SQLITE_OK)
		code = sqlite3_exec(sqlite->db, "PRAGMA locking_mode = EXCLUSIVE", NULL, NULL,
				    NULL);
	if (code != SQLITE_OK)
		open_failed(sqlite->db, sqlite->database, code, error);
	else if (look_at_version(sqlite, version, error))
		return true;
	store_look_away(sqlite);
	return false;
}

/* --- for serving --------------------------------------------------------------------------- */

static bool set_modes(struct sqlite_store *sqlite, struct text *error)
{
	const char *const paths[] = {sqlite->database, sqlite->log};

	for (size_t i = 0; i < ARRAY_LENGTH(paths); i++)
		if (chmod(paths[i], S_IRUSR | S_IWUSR) < 0 && errno != ENOENT)
			return open_errno("change the mode of", paths[i], errno, error);
	return true;
}

/* What an earlier process has written to the log was perhaps never synced. Now it is in the
 * database, on stable storage, and the log is empty. An SQLite result code. */
static int settle(sqlite3 *db)
{
	return sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
}

/* An SQLite result code. */
static int reserve_ids(struct sqlite_store *sqlite)
{
	char text[80];
	int code =
		read_number(sqlite->db, "SELECT created_ms FROM server", &sqlite->store.created_ms);

	if (code == SQLITE_OK)
		code = read_number(sqlite->db, "SELECT next_id FROM server",
				   &sqlite->store.next_id);
	(void)snprintf(text, sizeof(text), "UPDATE server SET next_id = %" PRId64,
		       (int64_t)(sqlite->store.next_id + STORE_IDS_RESERVED));
	if (code == SQLITE_OK)
		code = sqlite3_exec(sqlite->db, text, NULL, NULL, NULL);
	return code;
}

static bool prepare_to_serve(struct sqlite_store *sqlite, int version, struct text *error)
{
	int code = sqlite3_exec(sqlite->db, settings, NULL, NULL, NULL);

	if (code == SQLITE_OK)
		code = set_log_mode(sqlite->db);
	if (code == SQLITE_OK)
		code = settle(sqlite->db);
	if (code == SQLITE_OK && version < schema_version)
		code = schema_upgrade(sqlite->db, schema_steps, version, schema_version);
	if (code == SQLITE_OK)
		code = reserve_ids(sqlite);
	if (code != SQLITE_OK)
		open_failed(sqlite->db, sqlite->database, code, error);
	else
		sqlite_watch_log(sqlite);
	return code == SQLITE_OK;
}

static bool open_database(struct sqlite_store *sqlite, const char *dir, struct text *error)
{
	bool found;
	int version;

	if (!find_database(sqlite, &found, error))
		return false;
	if (!found && !make_database(dir, sqlite->database, error))
		return false;
	return store_look(sqlite, &version, error) && set_modes(sqlite, error) &&
	       prepare_to_serve(sqlite, version, error);
}

bool store_open_sqlite(const char *dir, struct store **store, struct text *error)
{
	struct sqlite_store *sqlite;

	*store = NULL;
	if (!folder_prepare(dir, error))
		return false;
	sqlite = store_new(dir);
	if (sqlite == NULL) {
		text_add(error, "cannot open the store in '%s': %s", dir, strerror(ENOMEM));
		return false;
	}
	sqlite->lock_fd = folder_lock(dir, true, error);
	if (sqlite->lock_fd < 0 || !open_database(sqlite, dir, error)) {
		sqlite_free(&sqlite);
		return false;
	}
	*store = &sqlite->store;
	return true;
}
