/*
 * SQLite alone, as a store would use it, and in this process: a loop of transactions, each with the
 * messages that a load may have under way, as a row each or as one row. There is no socket and no
 * acknowledgement; what has been committed is counted in the end.
 */
#include "bench/bench.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

/* What a Publish of liminald has with its payload. */
#define MESSAGE_OVERHEAD 55

/* As liminald's. */
static const char settings[] = "PRAGMA locking_mode = EXCLUSIVE;"
			       "PRAGMA journal_mode = WAL;"
			       "PRAGMA synchronous = FULL;"
			       "PRAGMA fullfsync = ON;"
			       "PRAGMA checkpoint_fullfsync = ON;"
			       "CREATE TABLE message (sequence INTEGER PRIMARY KEY, data BLOB);";

struct loop {
	sqlite3 *db;
	sqlite3_stmt *begin, *commit, *insert;
	uint8_t *data;
	size_t size; /* of a row */
	uint64_t rows, messages_per_row;
	uint64_t done; /* rows */
	struct latencies latencies;
};

static int64_t own_cpu_ns(void)
{
	struct timespec used = {0};

	(void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return used.tv_sec * NS_PER_S + used.tv_nsec;
}

static bool loop_open(struct loop *loop, const char *directory)
{
	char path[DIRECTORY_SIZE + 16];

	(void)snprintf(path, sizeof(path), "%s/alone.db", directory);
	loop->data = calloc(1, loop->size);
	return loop->data != NULL && sqlite3_open(path, &loop->db) == SQLITE_OK &&
	       sqlite3_exec(loop->db, settings, NULL, NULL, NULL) == SQLITE_OK &&
	       sqlite3_prepare_v2(loop->db, "BEGIN IMMEDIATE", -1, &loop->begin, NULL) ==
		       SQLITE_OK &&
	       sqlite3_prepare_v2(loop->db, "COMMIT", -1, &loop->commit, NULL) == SQLITE_OK &&
	       sqlite3_prepare_v2(loop->db, "INSERT INTO message VALUES (?1, ?2)", -1,
				  &loop->insert, NULL) == SQLITE_OK;
}

static bool step(sqlite3_stmt *statement)
{
	return sqlite3_step(statement) == SQLITE_DONE && sqlite3_reset(statement) == SQLITE_OK;
}

static bool loop_transaction(struct loop *loop)
{
	int64_t began_ns = bench_now_ns();

	if (!step(loop->begin))
		return false;
	for (uint64_t i = 0; i < loop->rows; i++) {
		(void)sqlite3_bind_int64(loop->insert, 1, (sqlite3_int64)++loop->done);
		(void)sqlite3_bind_blob64(loop->insert, 2, loop->data, loop->size, SQLITE_STATIC);
		if (!step(loop->insert))
			return false;
	}
	if (!step(loop->commit))
		return false;
	latencies_add(&loop->latencies, bench_now_ns() - began_ns);
	return true;
}

static bool loop_run_for(struct loop *loop, double seconds)
{
	int64_t until_ns = bench_now_ns() + (int64_t)(seconds * 1e9);

	while (bench_now_ns() < until_ns)
		if (!loop_transaction(loop))
			return false;
	return true;
}

/* All of it is there. */
static bool loop_verify(struct loop *loop)
{
	sqlite3_stmt *count;
	bool all = sqlite3_prepare_v2(loop->db, "SELECT count(*), sum(length(data)) FROM message",
				      -1, &count, NULL) == SQLITE_OK &&
		   sqlite3_step(count) == SQLITE_ROW &&
		   (uint64_t)sqlite3_column_int64(count, 0) == loop->done &&
		   (uint64_t)sqlite3_column_int64(count, 1) == loop->done * loop->size;

	(void)sqlite3_finalize(count);
	return all;
}

static void loop_close(struct loop *loop)
{
	(void)sqlite3_finalize(loop->begin);
	(void)sqlite3_finalize(loop->commit);
	(void)sqlite3_finalize(loop->insert);
	(void)sqlite3_close(loop->db);
	free(loop->data);
}

static struct numbers loop_measure(struct loop *loop, const struct load *load,
				   const struct pace *pace)
{
	struct numbers numbers = {.valid = false};
	char directory[DIRECTORY_SIZE];

	if (!bench_make_directory(directory))
		return numbers;
	if (loop_open(loop, directory) && loop_run_for(loop, pace->warm_up_s)) {
		uint64_t before = loop->done;
		int64_t began_ns = bench_now_ns(), cpu_ns = own_cpu_ns();
		double seconds, messages;

		loop->latencies = (struct latencies){.counts = {0}};
		numbers.valid = loop_run_for(loop, pace->measured_s);
		seconds = (double)(bench_now_ns() - began_ns) / 1e9;
		messages = (double)((loop->done - before) * loop->messages_per_row);
		numbers.rate = messages / seconds;
		numbers.cpu_us = (double)(own_cpu_ns() - cpu_ns) / 1e3 / messages;
		numbers.p50_ms = latencies_ms(&loop->latencies, .5);
		numbers.p99_ms = latencies_ms(&loop->latencies, .99);
		numbers.valid = numbers.valid && messages > 0 && loop_verify(loop);
	}
	if (!numbers.valid)
		(void)fprintf(stderr, "bench: a run of %s with SQLite alone does not count: %s\n",
			      load->name, sqlite3_errmsg(loop->db));
	loop_close(loop);
	bench_remove_directory(directory);
	return numbers;
}

static struct numbers rows_alone(const struct load *load, const struct pace *pace)
{
	struct loop loop = {.size = load->payload + MESSAGE_OVERHEAD,
			    .rows = load->publishers * load->window,
			    .messages_per_row = 1};

	return loop_measure(&loop, load, pace);
}

static struct numbers batch_alone(const struct load *load, const struct pace *pace)
{
	uint64_t messages = load->publishers * load->window;
	struct loop loop = {.size = (load->payload + MESSAGE_OVERHEAD) * (size_t)messages,
			    .rows = 1,
			    .messages_per_row = messages};

	return loop_measure(&loop, load, pace);
}

const struct peer peer_sqlite_rows = {.name = "SQLite rows", .alone = rows_alone};
const struct peer peer_sqlite_batch = {.name = "SQLite one row", .alone = batch_alone};
