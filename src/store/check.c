/*
 * The check of a store: what SQLite says of its file, and then whether what the tables say of each
 * other is so. It reads only, and goes on behind what it finds damaged.
 */
#include "store/sqlite_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct check {
	FILE *out;
	struct sqlite_store *sqlite;
	store_position *position;
	uint64_t next_id;
	unsigned problems;
	char name[600]; /* of the channel that is looked at, for people */
	uint64_t channel, last;
};

/* Sums over the rows of a channel. */
struct sums {
	uint64_t last, count, charged, before;
	int64_t time_ms;
};

static void check_problem(struct check *check, const char *format, ...) PRINTF_LIKE(2, 3);

static void check_problem(struct check *check, const char *format, ...)
{
	va_list arguments;

	check->problems++;
	(void)fputs("damaged: ", check->out);
	va_start(arguments, format);
	(void)vfprintf(check->out, format, arguments);
	va_end(arguments);
	(void)fputc('\n', check->out);
}

/* The next row of a statement; false at the end, and when that is not reached. */
static bool check_step(struct check *check, sqlite3_stmt *statement)
{
	int code = sqlite3_step(statement);

	if (code != SQLITE_ROW && code != SQLITE_DONE)
		check_problem(check, "%s", sqlite3_errmsg(check->sqlite->db));
	return code == SQLITE_ROW;
}

/* TEXT with CHANNEL, if it has a place for it; NULL when that cannot be asked. */
static sqlite3_stmt *check_ask(struct check *check, const char *text, uint64_t channel)
{
	char *whole = sqlite3_mprintf(text, (sqlite3_uint64)channel);
	sqlite3_stmt *statement = NULL;

	if (whole == NULL)
		check_problem(check, "%s", strerror(ENOMEM));
	else if (sqlite3_prepare_v2(check->sqlite->db, whole, -1, &statement, NULL) != SQLITE_OK)
		check_problem(check, "%s", sqlite3_errmsg(check->sqlite->db));
	sqlite3_free(whole);
	return statement;
}

/* The one number that TEXT asks for; 0 when there is none. */
static uint64_t check_number(struct check *check, const char *text, uint64_t channel)
{
	sqlite3_stmt *statement = check_ask(check, text, channel);
	uint64_t number = 0;

	if (statement != NULL && check_step(check, statement))
		number = sqlite_number(statement, 0);
	(void)sqlite3_finalize(statement);
	return number;
}

/* --- the file ------------------------------------------------------------------------------ */

static void check_file(struct check *check)
{
	sqlite3_stmt *statement = check_ask(check, "PRAGMA integrity_check", 0);

	while (statement != NULL && check_step(check, statement)) {
		const char *said = (const char *)sqlite3_column_text(statement, 0);

		if (said == NULL || strcmp(said, "ok") != 0)
			check_problem(check, "%s", said == NULL ? strerror(ENOMEM) : said);
	}
	(void)sqlite3_finalize(statement);
}

/* --- messages ------------------------------------------------------------------------------ */

static uint64_t big_endian(const uint8_t *bytes, size_t length)
{
	uint64_t number = 0;

	for (size_t i = 0; i < length; i++)
		number = number << 8 | bytes[i];
	return number;
}

/* The records of a row; what they say of themselves. */
static bool check_records(const struct check *check, const struct store_row *row, struct span data)
{
	size_t head = STORE_RECORD_HEAD + (row->sparse ? 8 : 0);
	uint64_t count = 0, previous = 0, sequence;
	size_t offset = 0, length;

	while (offset < data.length) {
		const uint8_t *record = data.data + offset;

		if (head > data.length - offset)
			return false;
		offset += head;
		sequence = row->first + count;
		if (row->sparse) {
			sequence = big_endian(record, 8);
			record += 8;
		}
		length = (size_t)big_endian(record + 8, 4);
		if (length > data.length - offset || sequence <= previous ||
		    sequence < row->first || sequence > row->last ||
		    big_endian(record, 8) >= check->next_id)
			return false;
		offset += length;
		previous = sequence;
		count++;
	}
	return count == row->count;
}

static void check_row(struct check *check, sqlite3_stmt *statement, struct sums *sums)
{
	struct store_row row = {
		.first = sqlite_number(statement, 0),
		.last = sqlite_number(statement, 1),
		.count = sqlite_number(statement, 2),
		.charged = sqlite_number(statement, 3),
		.before = sqlite_number(statement, 4),
		.time_ms = (int64_t)sqlite_number(statement, 5),
		.sparse = sqlite_number(statement, 6) != 0,
	};

	if (row.first <= sums->last || row.last < row.first || row.last > check->last)
		check_problem(check,
			      "channel '%s': sequences %" PRIu64 " to %" PRIu64
			      " are not behind %" PRIu64 " and up to %" PRIu64,
			      check->name, row.first, row.last, sums->last, check->last);
	else if (row.before < sums->before || row.time_ms < sums->time_ms)
		check_problem(check,
			      "channel '%s': the bytes or the time before %" PRIu64 " go back",
			      check->name, row.first);
	else if (!check_records(check, &row, sqlite_span(statement, 7)))
		check_problem(check,
			      "channel '%s': messages %" PRIu64 " to %" PRIu64 " cannot be read",
			      check->name, row.first, row.last);
	sums->last = row.last;
	sums->count += row.count;
	sums->charged += row.charged;
	sums->before = row.before + row.charged;
	sums->time_ms = row.time_ms;
}

static void check_messages(struct check *check, const struct store_channel *channel)
{
	sqlite3_stmt *statement =
		check_ask(check, "SELECT * FROM row_%llu ORDER BY first", channel->number);
	struct sums sums = {0};

	while (statement != NULL && check_step(check, statement))
		check_row(check, statement, &sums);
	(void)sqlite3_finalize(statement);
	if (channel->first < 1 || channel->first > channel->last + 1)
		check_problem(check,
			      "channel '%s': its first message would be %" PRIu64
			      ", its last one %" PRIu64,
			      check->name, channel->first, channel->last);
	/* Of those that are there some may count as gone. */
	if (channel->kept > sums.count || channel->kept_charged > sums.charged ||
	    sums.before > channel->charged)
		check_problem(check,
			      "channel '%s': it should keep %" PRIu64 " messages of %" PRIu64
			      " bytes, and has %" PRIu64 " of %" PRIu64,
			      check->name, channel->kept, channel->kept_charged, sums.count,
			      sums.charged);
}

/* --- keys, consumers, dead letters --------------------------------------------------------- */

static void check_keys(struct check *check, const struct store_channel *channel)
{
	uint64_t count = check_number(check, "SELECT count(*) FROM key_%llu", channel->number);
	uint64_t last = check_number(check, "SELECT max(sequence) FROM key_%llu", channel->number);

	if (count != channel->keys)
		check_problem(check,
			      "channel '%s': it should have %" PRIu64 " keys, and has %" PRIu64,
			      check->name, channel->keys, count);
	if (last > channel->last)
		check_problem(check, "channel '%s': a key is of message %" PRIu64 ", which is not",
			      check->name, last);
}

static void check_consumers(struct check *check, const struct store_channel *channel)
{
	sqlite3_stmt *statement = check_ask(
		check, "SELECT state, name FROM consumer WHERE channel = %llu", channel->number);

	while (statement != NULL && check_step(check, statement)) {
		char array[600];
		struct text name = TEXT_INIT(array);

		if (check->position(sqlite_span(statement, 0), channel->last))
			continue;
		text_add_name(&name, sqlite_span(statement, 1));
		check_problem(check, "channel '%s': the position of consumer '%s' cannot be",
			      check->name, array);
	}
	(void)sqlite3_finalize(statement);
}

static void check_dead(struct check *check, const struct store_channel *channel)
{
	uint64_t last = check_number(check, "SELECT max(sequence) FROM dead WHERE channel = %llu",
				     channel->number);

	if (last > channel->last)
		check_problem(check,
			      "channel '%s': a dead letter is message %" PRIu64 ", which is not",
			      check->name, last);
}

static void check_channel(struct check *check, const struct store_channel *channel)
{
	uint64_t consumers = check_number(
		check, "SELECT count(*) FROM consumer WHERE channel = %llu", channel->number);

	check->last = channel->last;
	(void)fprintf(check->out,
		      "channel '%s': %" PRIu64 " messages of %" PRIu64 " bytes, from %" PRIu64
		      " to %" PRIu64 "; %" PRIu64 " consumers, %" PRIu64 " keys\n",
		      check->name, channel->kept, channel->kept_charged, channel->first,
		      channel->last, consumers, channel->keys);
	check_messages(check, channel);
	check_keys(check, channel);
	check_consumers(check, channel);
	check_dead(check, channel);
}

static void check_channels(struct check *check)
{
	sqlite3_stmt *statement =
		check_ask(check,
			  "SELECT number, last, charged, time_ms, first, kept, kept_charged, keys,"
			  " name FROM channel ORDER BY name",
			  0);

	while (statement != NULL && check_step(check, statement)) {
		struct store_channel channel = {
			.number = sqlite_number(statement, 0),
			.last = sqlite_number(statement, 1),
			.charged = sqlite_number(statement, 2),
			.time_ms = (int64_t)sqlite_number(statement, 3),
			.first = sqlite_number(statement, 4),
			.kept = sqlite_number(statement, 5),
			.kept_charged = sqlite_number(statement, 6),
			.keys = sqlite_number(statement, 7),
		};
		struct text name = TEXT_INIT(check->name);

		text_add_name(&name, sqlite_span(statement, 8));
		check_channel(check, &channel);
	}
	(void)sqlite3_finalize(statement);
}

/* What belongs to no channel. */
static void check_strays(struct check *check)
{
	static const struct {
		const char *what, *text;
	} strays[] = {
		{"consumers",
		 "SELECT count(*) FROM consumer WHERE channel NOT IN (SELECT number FROM channel)"},
		{"dead letters",
		 "SELECT count(*) FROM dead WHERE channel NOT IN (SELECT number FROM channel)"},
	};

	for (size_t i = 0; i < ARRAY_LENGTH(strays); i++) {
		uint64_t count = check_number(check, strays[i].text, 0);

		if (count > 0)
			check_problem(check, "%" PRIu64 " %s are of no channel", count,
				      strays[i].what);
	}
}

/* --- the whole ----------------------------------------------------------------------------- */

static void check_tables(struct check *check, int version)
{
	time_t made = (time_t)(check_number(check, "SELECT created_ms FROM server", 0) / 1000);
	struct tm utc;
	char date[32] = "at an unknown time";

	if (gmtime_r(&made, &utc) != NULL)
		(void)strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", &utc);
	(void)fprintf(check->out, "%s: version %d, made %s, %" PRIu64 " bytes\n",
		      check->sqlite->database, version, date,
		      check->sqlite->store.ops->bytes(&check->sqlite->store));
	check_file(check);
	if (version < schema_version) {
		(void)fprintf(check->out,
			      "its tables were not looked at: liminald brings them to version %d\n",
			      schema_version);
		return;
	}
	if (check_number(check, "SELECT count(*) FROM server", 0) != 1)
		check_problem(check, "the server's own row is missing");
	check->next_id = check_number(check, "SELECT next_id FROM server", 0);
	check_channels(check);
	check_strays(check);
}

static int check_locked(struct sqlite_store *sqlite, store_position *position, FILE *out,
			struct text *error)
{
	struct check check = {.out = out, .sqlite = sqlite, .position = position};
	struct stat status;
	int version;

	if (stat(sqlite->database, &status) < 0) {
		text_add(error, "cannot read '%s': %s", sqlite->database, strerror(errno));
		return 1;
	}
	if (!store_look(sqlite, &version, error))
		return 1;
	check_tables(&check, version);
	store_look_away(sqlite);
	if (check.problems == 0)
		(void)fprintf(out, "%s: sound\n", sqlite->database);
	else
		(void)fprintf(out, "%s: damaged, in %u places\n", sqlite->database, check.problems);
	return check.problems > 0;
}

int store_check(const char *dir, store_position *position, FILE *out)
{
	char message[1024];
	struct text error = TEXT_INIT(message);
	struct sqlite_store *sqlite = store_new(dir);
	int status = 1;

	if (sqlite == NULL) {
		(void)fprintf(out, "%s: %s\n", dir, strerror(ENOMEM));
		return 1;
	}
	sqlite->lock_fd = folder_lock(dir, false, &error);
	/* Without a lock file nobody has it locked; whether there is a store is seen then. */
	if (sqlite->lock_fd >= 0 || error.length == 0)
		status = check_locked(sqlite, position, out, &error);
	if (error.length > 0)
		(void)fprintf(out, "%s\n", message);
	sqlite_free(&sqlite);
	return status;
}
