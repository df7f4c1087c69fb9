/* The store: what both kinds of it promise, through the same tests, and then what the one on disk
 * does with its folder, with files that it should not take, and with what a killed process left. */
#include "store/sqlite_priv.h"

#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

/* --- fixtures ------------------------------------------------------------------------------ */

enum kind { MEMORY, SQLITE, KINDS };

static char root[64], dir[80];
static char error_array[1024];

static void fresh_folder(void)
{
	(void)snprintf(root, sizeof(root), "/tmp/liminal-store-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(root));
	(void)snprintf(dir, sizeof(dir), "%s/state", root);
}

static void remove_folder(const char *path)
{
	DIR *folder = opendir(path);
	struct dirent *entry;
	char file[400];

	while (folder != NULL && (entry = readdir(folder)) != NULL) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		(void)snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
		if (unlink(file) < 0)
			(void)rmdir(file);
	}
	if (folder != NULL)
		(void)closedir(folder);
	(void)rmdir(path);
}

static void remove_folders(void)
{
	remove_folder(dir);
	remove_folder(root);
}

static struct store *open_store(enum kind kind)
{
	struct text error = TEXT_INIT(error_array);
	struct store *store = NULL;
	bool opened = kind == MEMORY ? store_open_memory(&store, &error)
				     : store_open_sqlite(dir, &store, &error);

	ck_assert_msg(opened, "%s", error_array);
	return store;
}

/* It does not open, and says WHY. */
static void expect_refused(const char *why)
{
	struct text error = TEXT_INIT(error_array);
	struct store *store = NULL;

	ck_assert(!store_open_sqlite(dir, &store, &error));
	ck_assert_ptr_null(store);
	ck_assert_msg(strstr(error_array, why) != NULL, "no '%s' in: %s", why, error_array);
}

#define OK(call) ck_assert_int_eq((call), STORE_OK)
#define NONE(call) ck_assert_int_eq((call), STORE_NONE)

static struct store_channel open_channel(struct store *store, const char *name)
{
	struct store_channel channel;

	OK(store->ops->begin(store));
	OK(store->ops->channel_open(store, span_of(name), &channel));
	OK(store->ops->commit(store));
	return channel;
}

/* A row whose data are LENGTH bytes that tell its first sequence. */
static struct store_row row_of(uint64_t first, uint64_t last, size_t length)
{
	struct store_row row = {
		.first = first,
		.last = last,
		.count = last - first + 1,
		.charged = length + 64,
		.before = first * 100,
		.time_ms = (int64_t)(1700000000000 + first),
		.data = buf_new(length),
	};

	ck_assert_ptr_nonnull(row.data);
	memset(row.data->data, (int)(first % 251), length);
	return row;
}

static void add_row(struct store *store, uint64_t channel, uint64_t first, uint64_t last,
		    size_t length)
{
	struct store_row row = row_of(first, last, length);

	OK(store->ops->row_add(store, channel, &row));
	buf_unref(&row.data);
}

/* What is read from SEQUENCE on is the row FIRST to LAST, of LENGTH bytes. */
static void expect_row(struct store *store, uint64_t channel, uint64_t sequence, uint64_t first,
		       uint64_t last, size_t length)
{
	struct store_row want = row_of(first, last, length), got;

	OK(store->ops->row_read(store, channel, sequence, true, &got));
	ck_assert_uint_eq(got.first, first);
	ck_assert_uint_eq(got.last, last);
	ck_assert_uint_eq(got.count, want.count);
	ck_assert_uint_eq(got.charged, want.charged);
	ck_assert_uint_eq(got.before, want.before);
	ck_assert_int_eq(got.time_ms, want.time_ms);
	ck_assert(!got.sparse);
	ck_assert_uint_eq(got.data->length, length);
	ck_assert(memcmp(got.data->data, want.data->data, length) == 0);
	buf_unref(&got.data);
	buf_unref(&want.data);
	OK(store->ops->row_read(store, channel, sequence, false, &got));
	ck_assert_uint_eq(got.first, first);
	ck_assert_uint_eq(got.before, want.before);
	ck_assert_ptr_null(got.data);
}

static void expect_no_row(struct store *store, uint64_t channel, uint64_t sequence)
{
	struct store_row got;

	NONE(store->ops->row_read(store, channel, sequence, true, &got));
	ck_assert_ptr_null(got.data);
}

/* Each of these runs with both kinds. */
#define BOTH_KINDS(name)                                                                           \
	static void name##_of(struct store *store);                                                \
	START_TEST(name)                                                                           \
	{                                                                                          \
		struct store *store = open_store((enum kind)_i);                                   \
		name##_of(store);                                                                  \
		store_close(&store);                                                               \
		ck_assert_ptr_null(store);                                                         \
	}                                                                                          \
	END_TEST                                                                                   \
	static void name##_of(struct store *store)

/* --- both kinds ---------------------------------------------------------------------------- */

BOTH_KINDS(a_channel_is_made_once)
{
	struct store_channel one = open_channel(store, "one"), two = open_channel(store, "two");
	struct store_channel again;

	ck_assert_uint_ne(one.number, two.number);
	ck_assert_uint_eq(one.last, 0);
	ck_assert_uint_eq(one.first, 1);
	ck_assert_uint_eq(one.kept, 0);
	one.last = 7;
	one.charged = 700;
	one.time_ms = 1700000000000;
	one.first = 3;
	one.kept = 5;
	one.kept_charged = 500;
	one.keys = 2;
	OK(store->ops->begin(store));
	OK(store->ops->channel_put(store, &one));
	OK(store->ops->commit(store));
	again = open_channel(store, "one");
	ck_assert(memcmp(&again, &one, sizeof(one)) == 0);
	again = open_channel(store, "two");
	ck_assert_uint_eq(again.last, 0);
}

BOTH_KINDS(a_row_is_found_by_each_of_its_sequences)
{
	uint64_t channel = open_channel(store, "c").number;
	uint64_t other = open_channel(store, "other").number;

	OK(store->ops->begin(store));
	add_row(store, channel, 1, 1, 310);
	add_row(store, channel, 2, 9, 100000);
	expect_row(store, channel, 9, 2, 9, 100000); /* before it is committed */
	add_row(store, channel, 20, 20, 0);
	add_row(store, other, 1, 30, 40);
	OK(store->ops->commit(store));
	for (uint64_t sequence = 0; sequence <= 20; sequence++) {
		if (sequence <= 1)
			expect_row(store, channel, sequence, 1, 1, 310);
		else if (sequence <= 9)
			expect_row(store, channel, sequence, 2, 9, 100000);
		else
			expect_row(store, channel, sequence, 20, 20, 0);
	}
	expect_no_row(store, channel, 21);
	expect_no_row(store, channel, UINT64_MAX);
	expect_row(store, other, 17, 1, 30, 40);
}

BOTH_KINDS(a_row_is_replaced_and_removed)
{
	uint64_t channel = open_channel(store, "c").number;
	struct store_row row = row_of(5, 8, 50), got;

	OK(store->ops->begin(store));
	add_row(store, channel, 1, 4, 310);
	add_row(store, channel, 5, 8, 310);
	OK(store->ops->commit(store));
	row.sparse = true;
	row.count = 2;
	OK(store->ops->begin(store));
	OK(store->ops->row_replace(store, channel, &row));
	NONE(store->ops->row_remove(store, channel, 2)); /* no row begins there */
	OK(store->ops->row_remove(store, channel, 1));
	NONE(store->ops->row_remove(store, channel, 1));
	row.first = 6;
	NONE(store->ops->row_replace(store, channel, &row));
	OK(store->ops->commit(store));
	OK(store->ops->row_read(store, channel, 1, true, &got));
	ck_assert_uint_eq(got.first, 5);
	ck_assert_uint_eq(got.last, 8);
	ck_assert_uint_eq(got.count, 2);
	ck_assert(got.sparse);
	ck_assert_uint_eq(got.data->length, 50);
	buf_unref(&got.data);
	buf_unref(&row.data);
}

static bool count_consumer(void *context, const struct store_consumer *consumer)
{
	(void)consumer;
	++*(unsigned *)context;
	return true;
}

BOTH_KINDS(a_rollback_leaves_nothing_behind)
{
	uint64_t channel = open_channel(store, "c").number, number, id, sequence;
	struct store_consumer consumer = {.name = SPAN_LITERAL("me")};
	struct store_channel other;
	unsigned count = 0;

	store->ops->rollback(store); /* of nothing */
	OK(store->ops->begin(store));
	OK(store->ops->channel_open(store, SPAN_LITERAL("other"), &other));
	add_row(store, other.number, 1, 1, 10);
	add_row(store, channel, 1, 1, 10);
	OK(store->ops->key_add(store, channel, SPAN_LITERAL("k"), 1, 1, 1));
	OK(store->ops->consumer_add(store, channel, &consumer, &number));
	store->ops->rollback(store);
	expect_no_row(store, channel, 1);
	NONE(store->ops->key_find(store, channel, SPAN_LITERAL("k"), 0, &id, &sequence));
	OK(store->ops->consumers(store, channel, count_consumer, &count));
	ck_assert_uint_eq(count, 0);
	/* Also of what the transaction had made; and the next one goes well. */
	OK(store->ops->begin(store));
	OK(store->ops->channel_open(store, SPAN_LITERAL("other"), &other));
	expect_no_row(store, other.number, 1);
	add_row(store, other.number, 1, 1, 10);
	OK(store->ops->commit(store));
	expect_row(store, other.number, 1, 1, 1, 10);
}

static void add_key(struct store *store, uint64_t channel, const char *key, int64_t time_ms,
		    uint64_t sequence)
{
	OK(store->ops->key_add(store, channel, span_of(key), time_ms, sequence + 1000, sequence));
}

static void expect_key(struct store *store, uint64_t channel, const char *key,
		       int64_t not_before_ms, uint64_t sequence)
{
	uint64_t id, found;

	OK(store->ops->key_find(store, channel, span_of(key), not_before_ms, &id, &found));
	ck_assert_uint_eq(found, sequence);
	ck_assert_uint_eq(id, sequence + 1000);
}

static void expect_no_key(struct store *store, uint64_t channel, const char *key,
			  int64_t not_before_ms)
{
	uint64_t id, found;

	NONE(store->ops->key_find(store, channel, span_of(key), not_before_ms, &id, &found));
}

BOTH_KINDS(a_key_counts_within_its_window)
{
	uint64_t channel = open_channel(store, "c").number;
	uint64_t other = open_channel(store, "other").number;

	OK(store->ops->begin(store));
	add_key(store, channel, "a", 100, 1);
	add_key(store, channel, "", 200, 2);
	expect_key(store, channel, "a", 100, 1);
	expect_no_key(store, channel, "a", 101);
	/* Too old to count, so it is a new one, though it still stands there. */
	add_key(store, channel, "a", 300, 3);
	OK(store->ops->commit(store));
	expect_key(store, channel, "a", 101, 3);
	expect_key(store, channel, "a", 0, 3);
	expect_key(store, channel, "", 200, 2);
	expect_no_key(store, channel, "b", 0);
	expect_no_key(store, other, "a", 0);
}

BOTH_KINDS(keys_are_trimmed_oldest_first)
{
	uint64_t channel = open_channel(store, "c").number, removed;
	char key[8];

	OK(store->ops->begin(store));
	for (uint64_t i = 1; i <= 20; i++) {
		(void)snprintf(key, sizeof(key), "%u", (unsigned)i);
		add_key(store, channel, key, (int64_t)i * 10, i);
	}
	OK(store->ops->keys_trim(store, channel, 0, 0, 100, &removed));
	ck_assert_uint_eq(removed, 0);
	OK(store->ops->keys_trim(store, channel, 0, 3, 100, &removed)); /* too many */
	ck_assert_uint_eq(removed, 3);
	OK(store->ops->keys_trim(store, channel, 60, 0, 100, &removed)); /* too old */
	ck_assert_uint_eq(removed, 2);
	OK(store->ops->keys_trim(store, channel, 1000, 15, 4, &removed)); /* all, but in steps */
	ck_assert_uint_eq(removed, 4);
	OK(store->ops->commit(store));
	expect_no_key(store, channel, "9", 0);
	expect_key(store, channel, "10", 0, 10);
	OK(store->ops->begin(store));
	OK(store->ops->keys_trim(store, channel, INT64_MAX, 0, UINT64_MAX, &removed));
	ck_assert_uint_eq(removed, 11);
	OK(store->ops->commit(store));
	expect_no_key(store, channel, "20", 0);
}

struct seen {
	unsigned count;
	uint64_t number;
	int64_t idle_since_ms;
	char name[16], state[16];
	unsigned stop_at;
};

static bool see_consumer(void *context, const struct store_consumer *consumer)
{
	struct seen *seen = context;

	seen->number = consumer->number;
	seen->idle_since_ms = consumer->idle_since_ms;
	(void)snprintf(seen->name, sizeof(seen->name), "%.*s", (int)consumer->name.length,
		       (const char *)consumer->name.data);
	(void)snprintf(seen->state, sizeof(seen->state), "%.*s", (int)consumer->state.length,
		       (const char *)consumer->state.data);
	return ++seen->count != seen->stop_at;
}

BOTH_KINDS(a_consumer_keeps_its_state)
{
	uint64_t channel = open_channel(store, "c").number, number, second;
	struct store_consumer consumer = {
		.name = SPAN_LITERAL("me"), .idle_since_ms = 5, .state = SPAN_LITERAL("")};
	struct seen seen = {0};

	OK(store->ops->begin(store));
	OK(store->ops->consumer_add(store, channel, &consumer, &number));
	OK(store->ops->commit(store));
	OK(store->ops->consumers(store, channel, see_consumer, &seen));
	ck_assert_uint_eq(seen.count, 1);
	ck_assert_uint_eq(seen.number, number);
	ck_assert_int_eq(seen.idle_since_ms, 5);
	ck_assert_str_eq(seen.name, "me");
	ck_assert_str_eq(seen.state, "");
	OK(store->ops->begin(store));
	OK(store->ops->consumer_put(store, number, 0, SPAN_LITERAL("done")));
	consumer.name = SPAN_LITERAL("you");
	OK(store->ops->consumer_add(store, channel, &consumer, &second));
	OK(store->ops->consumer_remove(store, second));
	NONE(store->ops->consumer_remove(store, second));
	NONE(store->ops->consumer_put(store, second, 0, SPAN_LITERAL("")));
	OK(store->ops->commit(store));
	seen = (struct seen){0};
	OK(store->ops->consumers(store, channel, see_consumer, &seen));
	ck_assert_uint_eq(seen.count, 1);
	ck_assert_int_eq(seen.idle_since_ms, 0);
	ck_assert_str_eq(seen.state, "done");
	seen = (struct seen){.stop_at = 1};
	ck_assert_int_eq(store->ops->consumers(store, channel, see_consumer, &seen), STORE_MEMORY);
}

static bool see_dead(void *context, const struct store_dead *dead)
{
	struct seen *seen = context;

	seen->number = dead->sequence;
	ck_assert(span_equal(dead->origin, SPAN_LITERAL("c/7")));
	ck_assert(span_equal(dead->consumer, SPAN_LITERAL("me")));
	ck_assert_uint_eq(dead->rejected, dead->sequence % 2);
	ck_assert_uint_eq(dead->attempts, dead->sequence * 3);
	ck_assert_uint_eq(dead->text.length, dead->rejected ? 3 : 0);
	return ++seen->count != seen->stop_at;
}

BOTH_KINDS(dead_letters_are_explained_until_they_go)
{
	uint64_t channel = open_channel(store, "dead").number;
	struct store_dead dead = {.origin = SPAN_LITERAL("c/7"), .consumer = SPAN_LITERAL("me")};
	struct seen seen = {0};

	OK(store->ops->begin(store));
	add_row(store, channel, 1, 2, 10);
	add_row(store, channel, 3, 4, 10);
	for (uint64_t sequence = 1; sequence <= 4; sequence++) {
		dead.sequence = sequence;
		dead.rejected = sequence % 2 == 1;
		dead.attempts = sequence * 3;
		dead.text = dead.rejected ? SPAN_LITERAL("why") : SPAN_LITERAL("");
		OK(store->ops->dead_add(store, channel, &dead));
	}
	OK(store->ops->commit(store));
	OK(store->ops->dead_read(store, channel, 0, 100, see_dead, &seen));
	ck_assert_uint_eq(seen.count, 4);
	seen = (struct seen){0};
	OK(store->ops->dead_read(store, channel, 2, 2, see_dead, &seen));
	ck_assert_uint_eq(seen.count, 2);
	ck_assert_uint_eq(seen.number, 3);
	OK(store->ops->begin(store));
	OK(store->ops->row_remove(store, channel, 1));
	OK(store->ops->commit(store));
	seen = (struct seen){.stop_at = 1};
	ck_assert_int_eq(store->ops->dead_read(store, channel, 0, 100, see_dead, &seen),
			 STORE_MEMORY);
	ck_assert_uint_eq(seen.number, 3);
	seen = (struct seen){0};
	OK(store->ops->dead_read(store, channel, UINT64_MAX, UINT64_MAX, see_dead, &seen));
	ck_assert_uint_eq(seen.count, 0);
}

START_TEST(a_store_in_memory_fails_when_told)
{
	struct store *store = open_store(MEMORY);
	uint64_t channel = open_channel(store, "c").number;

	OK(store->ops->begin(store));
	add_row(store, channel, 1, 1, 10);
	store_memory_fail(store, STORE_FULL);
	ck_assert_int_eq(store->ops->commit(store), STORE_FULL);
	expect_no_row(store, channel, 1);
	OK(store->ops->begin(store));
	store_memory_fail(store, STORE_DOWN);
	ck_assert_int_eq(store->ops->commit(store), STORE_DOWN);
	ck_assert_int_eq(store->ops->begin(store), STORE_DOWN);
	store_close(&store);
}
END_TEST

/* --- on disk ------------------------------------------------------------------------------- */

static mode_t mode_of(const char *path)
{
	struct stat status;

	ck_assert_int_eq(stat(path, &status), 0);
	return status.st_mode & 07777;
}

static void path_in(char path[200], const char *file)
{
	(void)snprintf(path, 200, "%s/%s", dir, file);
}

static off_t size_of(const char *file)
{
	struct stat status;
	char path[200];

	path_in(path, file);
	return stat(path, &status) == 0 ? status.st_size : -1;
}

/* Runs WORK in a process that ends without closing anything, as if killed. */
static void in_killed_process(void (*work)(void))
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		work();
		_exit(0);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

START_TEST(what_was_committed_is_there_again)
{
	struct store *store = open_store(SQLITE);
	uint64_t channel = open_channel(store, "c").number;

	OK(store->ops->begin(store));
	add_row(store, channel, 1, 100, 300000);
	add_key(store, channel, "k", 5, 1);
	OK(store->ops->commit(store));
	OK(store->ops->begin(store));
	add_row(store, channel, 101, 101, 10);
	store_close(&store); /* with a transaction that nobody has committed */
	ck_assert_int_eq(size_of("liminal.db-wal"), -1);
	store = open_store(SQLITE);
	ck_assert_uint_eq(open_channel(store, "c").number, channel);
	expect_row(store, channel, 50, 1, 100, 300000);
	expect_key(store, channel, "k", 0, 1);
	expect_no_row(store, channel, 101);
	store_close(&store);
}
END_TEST

START_TEST(ids_are_never_given_twice)
{
	struct store *store = open_store(SQLITE);
	uint64_t created_ms = store->created_ms;

	ck_assert_uint_eq(store->next_id, 1);
	ck_assert_int_le((int64_t)created_ms, clock_wall_ms());
	ck_assert_int_gt((int64_t)created_ms, clock_wall_ms() - 60000);
	store_close(&store); /* without giving anything back, like a crash */
	store = open_store(SQLITE);
	ck_assert_uint_eq(store->next_id, 1 + STORE_IDS_RESERVED);
	ck_assert_uint_eq(store->created_ms, created_ms);
	OK(store->ops->ids_put(store, store->next_id + 5));
	store_close(&store);
	store = open_store(SQLITE);
	ck_assert_uint_eq(store->next_id, 1 + STORE_IDS_RESERVED + 5);
	store_close(&store);
}
END_TEST

START_TEST(nobody_else_may_look_into_it)
{
	static const char *const files[] = {"liminal.db", "liminal.db-wal", "liminal.lock"};
	struct store *store;
	char path[200];

	(void)umask((mode_t)(_i == 0 ? 0 : 0277)); /* 0277: the owner's own, too */
	store = open_store(SQLITE);
	(void)open_channel(store, "c");
	ck_assert_uint_eq(mode_of(dir), 0700);
	for (size_t i = 0; i < ARRAY_LENGTH(files); i++) {
		path_in(path, files[i]);
		ck_assert_uint_eq(mode_of(path), 0600);
	}
	store_close(&store);
	ck_assert_int_eq(chmod(dir, 0710), 0);
	expect_refused("has mode 0710");
	ck_assert_ptr_nonnull(strstr(error_array, dir));
}
END_TEST

START_TEST(a_folder_that_cannot_be_is_named)
{
	(void)snprintf(dir, sizeof(dir), "%s/no/state", root);
	expect_refused("/no/state'");
	(void)snprintf(dir, sizeof(dir), "%s/file", root);
	ck_assert_int_ge(close(open(dir, O_CREAT | O_WRONLY, 0600)), 0);
	expect_refused("is not a folder");
	(void)unlink(dir);
}
END_TEST

START_TEST(one_process_at_a_time)
{
	struct store *store = open_store(SQLITE);
	char holder[32];
	pid_t child;
	int status;

	(void)snprintf(holder, sizeof(holder), "by process %ld", (long)getpid());
	child = fork();
	if (child == 0) {
		expect_refused(holder);
		ck_assert_ptr_nonnull(strstr(error_array, dir));
		_exit(0);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	store_close(&store);
	store = open_store(SQLITE);
	store_close(&store);
}
END_TEST

static void work_and_die(void)
{
	struct store *store = open_store(SQLITE);
	uint64_t channel = open_channel(store, "killed").number;

	for (uint64_t sequence = 1; sequence <= 200; sequence++) {
		OK(store->ops->begin(store));
		add_row(store, channel, sequence, sequence, 5000);
		OK(store->ops->commit(store));
	}
	OK(store->ops->begin(store));
	add_row(store, channel, 201, 201, 5000); /* nobody has committed it */
}

static void expect_its_work(void)
{
	struct store *store = open_store(SQLITE);
	uint64_t channel = open_channel(store, "killed").number;

	for (uint64_t sequence = 1; sequence <= 200; sequence++)
		expect_row(store, channel, sequence, sequence, sequence, 5000);
	expect_no_row(store, channel, 201);
	store_close(&store);
}

START_TEST(a_killed_process_loses_nothing)
{
	in_killed_process(work_and_die);
	ck_assert_int_gt(size_of("liminal.db-wal"), 200 * 5000);
	expect_its_work();
}
END_TEST

START_TEST(what_it_left_is_stable_before_it_is_served)
{
	struct store *store;

	in_killed_process(work_and_die);
	store = open_store(SQLITE);
	/* It stands in the database, and the log has but the new ids. */
	ck_assert_int_gt(size_of("liminal.db"), 200 * 5000);
	ck_assert_int_lt(size_of("liminal.db-wal"), 100000);
	store_close(&store);
}
END_TEST

START_TEST(the_log_does_not_grow_for_ever)
{
	struct store *store = open_store(SQLITE);
	uint64_t channel = open_channel(store, "c").number;

	for (uint64_t sequence = 1; sequence <= 150; sequence++) {
		OK(store->ops->begin(store));
		add_row(store, channel, sequence, sequence, STORE_ROW_BYTES);
		OK(store->ops->commit(store));
		OK(store->ops->checkpoint(store));
		ck_assert_int_lt(size_of("liminal.db-wal"), 10000000);
	}
	ck_assert_uint_gt(store->ops->bytes(store), 150 * STORE_ROW_BYTES);
	store_close(&store);
}
END_TEST

START_TEST(room_goes_back_to_the_file_system)
{
	struct store *store = open_store(SQLITE);
	uint64_t channel = open_channel(store, "c").number;
	unsigned steps = 0;
	bool more = true;

	for (uint64_t sequence = 1; sequence <= 300; sequence++) {
		OK(store->ops->begin(store));
		add_row(store, channel, sequence, sequence, STORE_ROW_BYTES);
		OK(store->ops->commit(store));
		OK(store->ops->checkpoint(store));
	}
	OK(store->ops->reclaim(store, &more));
	ck_assert(!more); /* there is none to give */
	for (uint64_t sequence = 1; sequence <= 290; sequence++) {
		OK(store->ops->begin(store));
		OK(store->ops->row_remove(store, channel, sequence));
		OK(store->ops->commit(store));
		OK(store->ops->checkpoint(store));
	}
	ck_assert_int_gt(size_of("liminal.db"), 70000000);
	more = true;
	while (more) {
		OK(store->ops->reclaim(store, &more));
		OK(store->ops->checkpoint(store));
		steps++;
	}
	ck_assert_uint_gt(steps, 10); /* small ones */
	for (uint64_t sequence = 291; sequence <= 300; sequence++)
		expect_row(store, channel, sequence, sequence, sequence, STORE_ROW_BYTES);
	store_close(&store);
	ck_assert_int_lt(size_of("liminal.db"), 30000000);
}
END_TEST

/* --- files that are not taken -------------------------------------------------------------- */

static struct buf *read_file(const char *file)
{
	off_t size = size_of(file);
	struct buf *bytes;
	char path[200];
	int fd;

	path_in(path, file);
	ck_assert_int_ge(size, 0);
	bytes = buf_new((size_t)size);
	ck_assert_ptr_nonnull(bytes);
	fd = open(path, O_RDONLY);
	ck_assert_int_eq(read(fd, bytes->data, bytes->length), size);
	(void)close(fd);
	return bytes;
}

static void write_file(const char *file, const void *bytes, size_t length)
{
	char path[200];
	int fd;

	path_in(path, file);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, bytes, length), (ssize_t)length);
	(void)close(fd);
}

static void make_store(void)
{
	struct store *store = open_store(SQLITE);
	uint64_t channel = open_channel(store, "c").number;

	OK(store->ops->begin(store));
	add_row(store, channel, 1, 100, 300000);
	OK(store->ops->commit(store));
	store_close(&store);
}

/* Refused, because of WHY; the database and its log are as they were. */
static void expect_refused_untouched(const char *why)
{
	struct buf *database = read_file("liminal.db"), *after;
	struct buf *log = size_of("liminal.db-wal") < 0 ? NULL : read_file("liminal.db-wal");
	char path[200];

	expect_refused(why);
	path_in(path, "liminal.db");
	ck_assert_msg(strstr(error_array, path) != NULL, "it does not name the file: %s",
		      error_array);
	after = read_file("liminal.db");
	ck_assert_uint_eq(after->length, database->length);
	ck_assert(memcmp(after->data, database->data, after->length) == 0);
	buf_unref(&after);
	ck_assert_int_eq(size_of("liminal.db-wal"), log == NULL ? -1 : (off_t)log->length);
	if (log != NULL) {
		after = read_file("liminal.db-wal");
		ck_assert(memcmp(after->data, log->data, after->length) == 0);
		buf_unref(&after);
	}
	buf_unref(&log);
	buf_unref(&database);
}

START_TEST(a_file_that_is_no_database_is_left_alone)
{
	char text[5000];

	make_store();
	memset(text, 'x', sizeof(text));
	write_file("liminal.db", text, sizeof(text));
	expect_refused_untouched("is not a database");
}
END_TEST

START_TEST(a_truncated_database_is_left_alone)
{
	/* Of its last page, of all but its head, of the head, of all. */
	static const off_t left[] = {-4096, 4096, 50, 0};
	struct buf *database;
	off_t size;

	make_store();
	database = read_file("liminal.db");
	size = left[_i] < 0 ? (off_t)database->length + left[_i] : left[_i];
	write_file("liminal.db", database->data, (size_t)size);
	expect_refused_untouched("is truncated");
	buf_unref(&database);
}
END_TEST

START_TEST(a_truncated_database_with_a_log_is_left_alone)
{
	struct buf *database;

	/* The log has what was written last, and not what has been cut. */
	make_store();
	in_killed_process(work_and_die);
	ck_assert_int_gt(size_of("liminal.db-wal"), 200 * 5000);
	database = read_file("liminal.db");
	write_file("liminal.db", database->data, 8192);
	expect_refused_untouched("is truncated");
	write_file("liminal.db", database->data, database->length);
	buf_unref(&database);
	expect_its_work();
}
END_TEST

START_TEST(a_short_database_that_its_log_completes_is_a_crash)
{
	struct buf *after, *log;
	off_t before;

	make_store();
	before = size_of("liminal.db");
	in_killed_process(work_and_die);
	log = read_file("liminal.db-wal");
	expect_its_work();
	/* As if its checkpoint had lost its power: of what that has written the head is there, and
	 * not the new pages. */
	after = read_file("liminal.db");
	ck_assert_int_gt((off_t)after->length, before);
	write_file("liminal.db", after->data, (size_t)before);
	buf_unref(&after);
	write_file("liminal.db-wal", log->data, log->length);
	expect_its_work();
	buf_unref(&log);
}
END_TEST

START_TEST(a_damaged_database_is_left_alone)
{
	struct buf *database;

	make_store();
	database = read_file("liminal.db");
	/* The tree of tables. */
	memset(database->data + 100, 0xa5, 1000);
	write_file("liminal.db", database->data, database->length);
	expect_refused_untouched("is damaged");
	buf_unref(&database);
}
END_TEST

static void execute(const char *text)
{
	char path[200], *failure = NULL;
	sqlite3 *db = NULL;

	path_in(path, "liminal.db");
	ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
	(void)sqlite3_exec(db, text, NULL, NULL, &failure);
	ck_assert_msg(failure == NULL, "%s", failure);
	ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
}

static int number_in(sqlite3 *db, const char *text)
{
	sqlite3_stmt *statement = NULL;
	int number;

	ck_assert_int_eq(sqlite3_prepare_v2(db, text, -1, &statement, NULL), SQLITE_OK);
	ck_assert_int_eq(sqlite3_step(statement), SQLITE_ROW);
	number = sqlite3_column_int(statement, 0);
	(void)sqlite3_finalize(statement);
	return number;
}

START_TEST(a_newer_schema_is_left_alone)
{
	make_store();
	execute("PRAGMA user_version = 999");
	expect_refused_untouched("newer liminald");
}
END_TEST

START_TEST(a_database_of_others_is_left_alone)
{
	struct store *store = open_store(SQLITE);
	char path[200];

	store_close(&store);
	path_in(path, "liminal.db");
	ck_assert_int_eq(unlink(path), 0);
	execute("CREATE TABLE mine (number)");
	expect_refused_untouched("not one of liminald");
}
END_TEST

START_TEST(a_log_without_its_database_is_left_alone)
{
	char path[200];

	in_killed_process(work_and_die);
	path_in(path, "liminal.db");
	ck_assert_int_eq(unlink(path), 0);
	expect_refused("is missing, but its log");
	ck_assert_int_gt(size_of("liminal.db-wal"), 200 * 5000);
	ck_assert_int_eq(size_of("liminal.db"), -1);
}
END_TEST

START_TEST(one_that_others_use_is_left_alone)
{
	char path[200];
	sqlite3 *db = NULL;
	pid_t child;
	int status;

	make_store();
	path_in(path, "liminal.db");
	ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
	ck_assert_int_eq(sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
	child = fork();
	if (child == 0) {
		expect_refused("in use by another program");
		_exit(0);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
}
END_TEST

START_TEST(what_a_crash_left_of_a_new_one_is_no_harm)
{
	struct store *store = open_store(SQLITE);
	char path[200];

	store_close(&store);
	path_in(path, "liminal.db");
	ck_assert_int_eq(unlink(path), 0);
	write_file("liminal.new", "SQLite", 6);
	write_file("liminal.new-journal", "rubbish", 7);
	write_file("liminal.new-wal", "rubbish", 7);
	make_store();
	ck_assert_int_eq(size_of("liminal.new"), -1);
	ck_assert_int_eq(size_of("liminal.new-journal"), -1);
	ck_assert_int_eq(size_of("liminal.new-wal"), -1);
}
END_TEST

/* --- the check ----------------------------------------------------------------------------- */

static char found_array[65536];

/* What a consumer's state is, is the broker's affair. */
static bool position_is_right(struct span state, uint64_t last)
{
	return last == 9 && span_equal(state, SPAN_LITERAL("right"));
}

/* What the check of the store says, and its status. */
static int check_says(void)
{
	FILE *out = tmpfile();
	size_t length;
	int status;

	ck_assert_ptr_nonnull(out);
	status = store_check(dir, position_is_right, out);
	rewind(out);
	length = fread(found_array, 1, sizeof(found_array) - 1, out);
	found_array[length] = '\0';
	(void)fclose(out);
	return status;
}

static void expect_check(int status, const char *what)
{
	ck_assert_msg(check_says() == status, "not %d: %.500s", status, found_array);
	ck_assert_msg(strstr(found_array, what) != NULL, "no '%s' in: %.500s", what, found_array);
}

/* Three messages in two rows, with a key and a consumer. */
static void make_checked(void)
{
	static const uint8_t data[] = {
		0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 'h', 'i', /* message id 1 */
		0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0,		 /* message id 2 */
	};
	struct store_channel channel;
	struct store_consumer consumer = {.name = SPAN_LITERAL("me"),
					  .state = SPAN_LITERAL("right")};
	struct store_row row = {.first = 1, .last = 2, .count = 2, .charged = 130};
	struct store *store = open_store(SQLITE);
	uint64_t number;

	OK(store->ops->begin(store));
	OK(store->ops->channel_open(store, SPAN_LITERAL("a\tb"), &channel));
	row.data = buf_new(sizeof(data));
	memcpy(row.data->data, data, sizeof(data));
	OK(store->ops->row_add(store, channel.number, &row));
	buf_unref(&row.data);
	row = (struct store_row){.first = 3, .last = 9, .count = 1, .charged = 64, .before = 130};
	row.sparse = true;
	row.data = buf_new(21);
	memset(row.data->data, 0, 21);
	row.data->data[7] = 8; /* its sequence */
	OK(store->ops->row_add(store, channel.number, &row));
	buf_unref(&row.data);
	add_key(store, channel.number, "k", 5, 2);
	OK(store->ops->consumer_add(store, channel.number, &consumer, &number));
	channel.last = 9;
	channel.charged = 194;
	channel.kept = 3;
	channel.kept_charged = 194;
	channel.keys = 1;
	OK(store->ops->channel_put(store, &channel));
	OK(store->ops->commit(store));
	store_close(&store);
}

START_TEST(a_sound_store_is_said_to_be)
{
	struct buf *before, *after;

	make_checked();
	before = read_file("liminal.db");
	expect_check(
		0, "channel 'a\\x09b': 3 messages of 194 bytes, from 1 to 9; 1 consumers, 1 keys");
	ck_assert_ptr_nonnull(strstr(found_array, "liminal.db: sound\n"));
	after = read_file("liminal.db");
	ck_assert(before->length == after->length &&
		  memcmp(before->data, after->data, after->length) == 0);
	ck_assert_int_eq(size_of("liminal.db-wal"), -1);
	buf_unref(&before);
	buf_unref(&after);
}
END_TEST

START_TEST(what_a_killed_process_left_is_checked_as_it_is)
{
	off_t size;

	make_store();
	in_killed_process(work_and_die);
	size = size_of("liminal.db-wal");
	/* Nobody counted its rows, which only the log has. */
	expect_check(1, "channel 'killed': sequences 200 to 200 are not behind");
	ck_assert_int_eq(size_of("liminal.db-wal"), size);
	expect_its_work();
}
END_TEST

static const struct {
	const char *change, *found;
} damages[] = {
	{"UPDATE channel SET last = 8", "sequences 3 to 9 are not behind 2 and up to 8"},
	{"UPDATE row_1 SET last = 3 WHERE first = 1", "sequences 3 to 9 are not behind 3"},
	{"UPDATE row_1 SET count = 3 WHERE first = 1", "messages 1 to 2 cannot be read"},
	{"UPDATE row_1 SET data = substr(data, 1, 20)", "messages 1 to 2 cannot be read"},
	{"UPDATE row_1 SET sparse = 0", "messages 3 to 9 cannot be read"},
	{"UPDATE server SET next_id = 2", "messages 1 to 2 cannot be read"},
	{"UPDATE row_1 SET before = 100 WHERE first = 3", "the bytes or the time before 3 go back"},
	{"DELETE FROM row_1 WHERE first = 1", "it should keep 3 messages of 194 bytes, and has 1"},
	{"UPDATE channel SET first = 11", "its first message would be 11, its last one 9"},
	{"UPDATE channel SET keys = 2", "it should have 2 keys, and has 1"},
	{"UPDATE key_1 SET sequence = 10", "a key is of message 10, which is not"},
	{"INSERT INTO dead VALUES (1, 10, '', '', 0, 0, '')", "a dead letter is message 10"},
	{"INSERT INTO dead VALUES (2, 1, '', '', 0, 0, '')", "1 dead letters are of no channel"},
	{"UPDATE consumer SET state = 'wrong'", "the position of consumer 'me' cannot be"},
	{"UPDATE consumer SET channel = 2", "1 consumers are of no channel"},
	{"DELETE FROM server", "the server's own row is missing"},
	{"DROP TABLE row_1", "no such table: row_1"},
	{"PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 3 WHERE name = "
	 "'key_1_key'",
	 "damaged: "},
};

START_TEST(damage_is_found)
{
	make_checked();
	execute(damages[_i].change);
	expect_check(1, damages[_i].found);
	ck_assert_ptr_nonnull(strstr(found_array, ": damaged, in "));
}
END_TEST

START_TEST(a_store_in_use_is_not_checked)
{
	struct store *store = open_store(SQLITE);
	char holder[40];
	pid_t child;
	int status;

	(void)snprintf(holder, sizeof(holder), "in use by process %ld\n", (long)getpid());
	child = fork();
	if (child == 0) {
		expect_check(1, holder);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	store_close(&store);
}
END_TEST

START_TEST(what_cannot_be_checked_is_said)
{
	expect_check(1, "cannot read '");
	ck_assert_ptr_nonnull(strstr(found_array, dir));
	make_store();
	write_file("liminal.db", "nothing", 7);
	expect_check(1, "is truncated");
}
END_TEST

/* --- schema and owner ---------------------------------------------------------------------- */

/* There is one version. What brings old ones up to date is tried with two that never were: one that
 * works, and one whose last step does not. */
START_TEST(an_old_schema_becomes_new_or_stays)
{
	static const struct schema_step sound[] = {
		{"CREATE TABLE one (number)"},
		{"CREATE TABLE two (number); INSERT INTO two VALUES (2)"},
		{"ALTER TABLE two ADD COLUMN three; UPDATE two SET three = 3"},
	};
	static const struct schema_step broken[] = {
		{"CREATE TABLE one (number)"},
		{"CREATE TABLE two (number)"},
		{"INSERT INTO two VALUES (2); INSERT INTO nowhere VALUES (3)"},
	};
	const struct schema_step *steps = _i == 0 ? sound : broken;
	sqlite3 *db = NULL;

	ck_assert_int_eq(sqlite3_open(":memory:", &db), SQLITE_OK);
	ck_assert_int_eq(schema_upgrade(db, steps, 0, 1), SQLITE_OK);
	ck_assert_int_eq(schema_upgrade(db, steps, 1, 3) == SQLITE_OK, _i == 0);
	ck_assert_int_eq(number_in(db, "PRAGMA user_version"), _i == 0 ? 3 : 1);
	ck_assert_int_eq(number_in(db, "SELECT count(*) FROM sqlite_master"), _i == 0 ? 2 : 1);
	if (_i == 0)
		ck_assert_int_eq(number_in(db, "SELECT number + three FROM two"), 5);
	/* And is not in the middle of anything. */
	ck_assert_int_eq(sqlite3_exec(db, "BEGIN; COMMIT", NULL, NULL, NULL), SQLITE_OK);
	ck_assert_int_eq(sqlite3_close(db), SQLITE_OK);
}
END_TEST

/* To the user that has it, who needs no rights for that. */
START_TEST(only_its_own_files_are_given_away)
{
	char path[200], elsewhere[100];

	ck_assert_int_eq(store_give(dir, getuid(), getgid()), 0); /* there is none */
	make_store();
	ck_assert_int_eq(store_give(dir, getuid(), getgid()), 0);
	path_in(path, "liminal.db-wal");
	(void)snprintf(elsewhere, sizeof(elsewhere), "%s/elsewhere", root);
	ck_assert_int_eq(close(open(elsewhere, O_CREAT | O_WRONLY, 0600)), 0);
	ck_assert_int_eq(link(elsewhere, path), 0);
	ck_assert_int_ne(store_give(dir, getuid(), getgid()), 0);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(symlink(elsewhere, path), 0);
	ck_assert_int_ne(store_give(dir, getuid(), getgid()), 0);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(mkfifo(path, 0600), 0);
	ck_assert_int_ne(store_give(dir, getuid(), getgid()), 0);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(chmod(dir, 0750), 0);
	ck_assert_int_ne(store_give(dir, getuid(), getgid()), 0);
}
END_TEST

/* --- failures ------------------------------------------------------------------------------ */

/* A limit that a signal or an errno of its own tells about is none of space: the store is down, and
 * what was committed before is there when it is opened again. */
static void write_beyond_a_limit(void)
{
	struct store *store = open_store(SQLITE);
	struct rlimit limit = {.rlim_cur = 2000000, .rlim_max = RLIM_INFINITY};
	uint64_t channel = open_channel(store, "c").number, last = 0;
	enum store_result result;

	(void)signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	do {
		struct store_row row = row_of(last + 1, last + 1, 100000);

		OK(store->ops->begin(store));
		result = store->ops->row_add(store, channel, &row);
		if (result == STORE_OK)
			result = store->ops->commit(store);
		else
			store->ops->rollback(store);
		buf_unref(&row.data);
		last++;
	} while (result == STORE_OK && last < 100);
	ck_assert_int_eq(result, STORE_DOWN);
	ck_assert_ptr_nonnull(strstr(store->reason, dir));
	ck_assert_int_eq(store->ops->begin(store), STORE_DOWN);
	ck_assert_int_eq(store->ops->checkpoint(store), STORE_DOWN);
	write_file("last", &last, sizeof(last));
	store_close(&store);
}

START_TEST(a_failed_write_is_the_end)
{
	struct store *store;
	struct buf *file;
	uint64_t channel, last;

	in_killed_process(write_beyond_a_limit);
	file = read_file("last");
	memcpy(&last, file->data, sizeof(last));
	buf_unref(&file);
	ck_assert_uint_gt(last, 5);
	store = open_store(SQLITE);
	channel = open_channel(store, "c").number;
	for (uint64_t sequence = 1; sequence < last; sequence++)
		expect_row(store, channel, sequence, sequence, sequence, 100000);
	store_close(&store);
}
END_TEST

/* --- the suite ----------------------------------------------------------------------------- */

int main(void)
{
	Suite *suite = suite_create("store");
	TCase *both = tcase_create("both kinds"), *disk = tcase_create("on disk");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_checked_fixture(both, fresh_folder, remove_folders);
	tcase_add_loop_test(both, a_channel_is_made_once, MEMORY, KINDS);
	tcase_add_loop_test(both, a_row_is_found_by_each_of_its_sequences, MEMORY, KINDS);
	tcase_add_loop_test(both, a_row_is_replaced_and_removed, MEMORY, KINDS);
	tcase_add_loop_test(both, a_rollback_leaves_nothing_behind, MEMORY, KINDS);
	tcase_add_loop_test(both, a_key_counts_within_its_window, MEMORY, KINDS);
	tcase_add_loop_test(both, keys_are_trimmed_oldest_first, MEMORY, KINDS);
	tcase_add_loop_test(both, a_consumer_keeps_its_state, MEMORY, KINDS);
	tcase_add_loop_test(both, dead_letters_are_explained_until_they_go, MEMORY, KINDS);
	tcase_add_test(both, a_store_in_memory_fails_when_told);
	suite_add_tcase(suite, both);

	tcase_add_checked_fixture(disk, fresh_folder, remove_folders);
	tcase_add_test(disk, what_was_committed_is_there_again);
	tcase_add_test(disk, ids_are_never_given_twice);
	tcase_add_loop_test(disk, nobody_else_may_look_into_it, 0, 2);
	tcase_add_test(disk, a_folder_that_cannot_be_is_named);
	tcase_add_test(disk, one_process_at_a_time);
	tcase_add_test(disk, a_killed_process_loses_nothing);
	tcase_add_test(disk, what_it_left_is_stable_before_it_is_served);
	tcase_add_test(disk, the_log_does_not_grow_for_ever);
	tcase_add_test(disk, room_goes_back_to_the_file_system);
	tcase_add_test(disk, a_file_that_is_no_database_is_left_alone);
	tcase_add_loop_test(disk, a_truncated_database_is_left_alone, 0, 4);
	tcase_add_test(disk, a_truncated_database_with_a_log_is_left_alone);
	tcase_add_test(disk, a_short_database_that_its_log_completes_is_a_crash);
	tcase_add_test(disk, a_damaged_database_is_left_alone);
	tcase_add_test(disk, a_newer_schema_is_left_alone);
	tcase_add_test(disk, a_database_of_others_is_left_alone);
	tcase_add_test(disk, a_log_without_its_database_is_left_alone);
	tcase_add_test(disk, one_that_others_use_is_left_alone);
	tcase_add_test(disk, what_a_crash_left_of_a_new_one_is_no_harm);
	tcase_add_test(disk, a_sound_store_is_said_to_be);
	tcase_add_test(disk, what_a_killed_process_left_is_checked_as_it_is);
	tcase_add_loop_test(disk, damage_is_found, 0, ARRAY_LENGTH(damages));
	tcase_add_test(disk, a_store_in_use_is_not_checked);
	tcase_add_test(disk, what_cannot_be_checked_is_said);
	tcase_add_loop_test(disk, an_old_schema_becomes_new_or_stays, 0, 2);
	tcase_add_test(disk, only_its_own_files_are_given_away);
	tcase_add_test(disk, a_failed_write_is_the_end);
	suite_add_tcase(suite, disk);

	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
