/* The base room but for text and log: assertions, lists, hash tables, deadlines, locks, metrics. */
#include "base/base.h"

#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/deadline.h"
#include "base/hash.h"
#include "base/list.h"
#include "base/lock.h"
#include "base/metrics.h"
#include "base/thread.h"

/* Always the same numbers, so that a failure comes back. */
static uint64_t random_state = UINT64_C(0x9E3779B97F4A7C15);

static uint64_t random_below(uint64_t limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % limit;
}

/* Runs FUNCTION in a process that must abort, and returns what that says on standard error. */
static const char *last_words(void (*function)(void))
{
	static char words[4096];
	size_t length = 0;
	int ends[2], status;
	ssize_t count;
	pid_t child;

	ck_assert_int_eq(pipe(ends), 0);
	child = fork();
	ck_assert_int_ge(child, 0);
	if (child == 0) {
		struct rlimit no_core = {0, 0};

		setrlimit(RLIMIT_CORE, &no_core);
		signal(SIGABRT, SIG_DFL);
		dup2(ends[1], STDERR_FILENO);
		close(ends[0]);
		close(ends[1]);
		function();
		_exit(0);
	}
	close(ends[1]);
	while ((count = read(ends[0], words + length, sizeof(words) - 1 - length)) > 0)
		length += (size_t)count;
	words[length] = '\0';
	close(ends[0]);
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT,
		      "it went on; it said \"%s\"", words);
	return words;
}

static void assert_something_false(void)
{
	int sheep = 3;

	ASSERT(sheep == 4);
}

START_TEST(failed_assertion_names_condition_and_place)
{
	const char *words = last_words(assert_something_false);

	ck_assert_ptr_nonnull(strstr(words, "sheep == 4"));
	ck_assert_ptr_nonnull(strstr(words, "base.c:"));
	ck_assert_ptr_nonnull(strstr(words, "assert_something_false"));
}
END_TEST

START_TEST(size_sum_stops_at_the_largest_size)
{
	ck_assert_uint_eq(size_add(1, 2), 3);
	ck_assert_uint_eq(size_add(SIZE_MAX - 1, 1), SIZE_MAX);
	ck_assert_uint_eq(size_add(SIZE_MAX, 1), SIZE_MAX);
	ck_assert_uint_eq(size_add(2, SIZE_MAX - 1), SIZE_MAX);
}
END_TEST

struct animal {
	int legs;
	struct list node;
};

START_TEST(list_keeps_order_and_lets_go_while_walked)
{
	struct animal animals[4] = {{.legs = 0}, {.legs = 1}, {.legs = 2}, {.legs = 3}};
	struct list head, *node, *after;
	int sum = 0;
	size_t i;

	list_init(&head);
	ck_assert(list_empty(&head));
	for (i = 0; i < 4; i++)
		list_append(&head, &animals[i].node);
	LIST_FOR_EACH_NODE(node, after, &head)
	{
		struct animal *animal = LIST_ENTRY(node, struct animal, node);

		sum = sum * 10 + animal->legs;
		if (animal->legs % 2 == 0)
			list_remove(node);
	}
	ck_assert_int_eq(sum, 123);
	ck_assert_ptr_eq(head.next, &animals[1].node);
	ck_assert_ptr_eq(head.previous, &animals[3].node);
	list_remove(&animals[0].node);
	list_remove(&animals[1].node);
	list_remove(&animals[3].node);
	ck_assert(list_empty(&head));
}
END_TEST

START_TEST(time_moves_and_deadlines_do_not_overflow)
{
	int64_t before = clock_mono_ns();

	ck_assert_int_ge(clock_mono_ns(), before);
	ck_assert_int_gt(clock_wall_ms(), INT64_C(1577836800000)); /* 2020 */
	ck_assert_int_eq(clock_after_ms(5, 2), 5 + 2 * NS_PER_MS);
	ck_assert_int_eq(clock_after_ms(before, 0), before);
	ck_assert_int_eq(clock_after_ms(0, INT64_MAX / NS_PER_MS),
			 INT64_MAX / NS_PER_MS * NS_PER_MS);
	ck_assert_int_eq(clock_after_ms(0, INT64_MAX / NS_PER_MS + 1), DEADLINE_NEVER);
	ck_assert_int_eq(clock_after_ms(INT64_MAX - NS_PER_MS + 1, 1), DEADLINE_NEVER);
	ck_assert_int_eq(clock_after_ms(5, INT64_MAX), DEADLINE_NEVER);
	ck_assert_int_eq(clock_after_ms(DEADLINE_NEVER, 1), DEADLINE_NEVER);
}
END_TEST

/* --- buffers --- */

START_TEST(buffer_that_cannot_be_had_is_null)
{
	struct buf *none = NULL;

	ck_assert_ptr_null(buf_new(SIZE_MAX));
	ck_assert_ptr_null(buf_new(SIZE_MAX - sizeof(struct buf)));
	buf_unref(&none);
	ck_assert_ptr_null(none);
}
END_TEST

static void *buffer_user(void *argument)
{
	struct buf *buf = argument;
	int i;

	for (i = 0; i < 1000; i++) {
		struct buf *other = buf_ref(buf);

		ASSERT(other->data[0] == 'x' && other->length == 1000);
		buf_unref(&other);
		ASSERT(other == NULL);
	}
	buf_unref(&buf);
	return NULL;
}

/* That the last reference frees, and no earlier one, is for the sanitizers to see. */
START_TEST(buffer_lives_until_its_last_reference)
{
	struct buf *buf = buf_new(1000);
	struct thread threads[4];
	size_t i;

	ck_assert_ptr_nonnull(buf);
	memset(buf->data, 'x', buf->length);
	for (i = 0; i < ARRAY_LENGTH(threads); i++)
		ck_assert_int_eq(thread_start(&threads[i], buffer_user, buf_ref(buf)), 0);
	buf_unref(&buf);
	ck_assert_ptr_null(buf);
	for (i = 0; i < ARRAY_LENGTH(threads); i++)
		thread_join(&threads[i]);
}
END_TEST

/* --- hash tables --- */

START_TEST(hash_depends_on_bytes_length_and_key_only)
{
	static const char zeros[32];
	char shifted[64], bytes[40];
	uint64_t before, number;
	size_t length, offset, i;

	hash_seed();
	for (i = 0; i < sizeof(bytes); i++)
		bytes[i] = (char)random_below(256);
	for (length = 0; length <= sizeof(bytes); length++) {
		before = hash_bytes(bytes, length);
		for (offset = 0; offset < 9; offset++) {
			memcpy(shifted + offset, bytes, length);
			ck_assert_uint_eq(hash_bytes(shifted + offset, length), before);
		}
		for (i = 0; i < length; i++) {
			bytes[i] ^= 0x40;
			ck_assert_uint_ne(hash_bytes(bytes, length), before);
			bytes[i] ^= 0x40;
		}
	}
	for (i = 0; i < sizeof(zeros); i++)
		ck_assert_uint_ne(hash_bytes(zeros, i), hash_bytes(zeros, i + 1));
	ck_assert_uint_ne(hash_u64(1), hash_u64(2));

	before = hash_bytes(bytes, sizeof(bytes));
	number = hash_u64(1);
	hash_seed();
	ck_assert_uint_ne(hash_bytes(bytes, sizeof(bytes)), before);
	ck_assert_uint_ne(hash_u64(1), number);
}
END_TEST

struct entry {
	struct hash_node node;
	uint64_t key;
	bool present;
};

static struct entry *entry_find(const struct hash *table, uint64_t key, uint64_t hash)
{
	struct hash_node *node;
	struct entry *entry;

	for (node = hash_first(table, hash); node != NULL; node = hash_next(node)) {
		entry = CONTAINER_OF(node, struct entry, node);
		ck_assert_uint_eq(node->hash, hash);
		if (entry->key == key)
			return entry;
	}
	return NULL;
}

/* In the second round few hashes are shared by many keys, some of them in the same bucket. */
START_TEST(hash_table_agrees_with_an_array)
{
	static struct entry entries[1000];
	uint64_t modulus = _i == 0 ? UINT64_MAX : 40;
	struct hash table;
	size_t i, step, count = 0;

	hash_seed();
	hash_init(&table);
	ck_assert_ptr_null(hash_first(&table, 0));
	for (i = 0; i < ARRAY_LENGTH(entries); i++)
		entries[i] = (struct entry){.key = i};
	for (step = 0; step < 20000; step++) {
		struct entry *entry = &entries[random_below(ARRAY_LENGTH(entries))];
		uint64_t hash = hash_u64(entry->key) % modulus;

		ck_assert_ptr_eq(entry_find(&table, entry->key, hash),
				 entry->present ? entry : NULL);
		if (entry->present) {
			hash_remove(&table, &entry->node);
			count--;
		} else {
			ck_assert(hash_insert(&table, &entry->node, hash));
			count++;
		}
		entry->present = !entry->present;
		ck_assert_uint_eq(table.count, count);
	}
	for (i = 0; i < ARRAY_LENGTH(entries); i++)
		ck_assert_ptr_eq(entry_find(&table, i, hash_u64(i) % modulus),
				 entries[i].present ? &entries[i] : NULL);
	ck_assert_uint_ge(table.bucket_count, count / 2);
	hash_destroy(&table);
	ck_assert_uint_eq(table.count, 0);
	ck_assert_ptr_null(hash_first(&table, 0));
}
END_TEST

/* Whether it is growing or not, everything is found, and a walk meets everything once. No insertion
 * moves more than a little. */
START_TEST(hash_table_grows_while_it_is_used)
{
	static struct entry entries[2000];
	struct hash table;
	size_t growing = 0;

	hash_seed();
	hash_init(&table);
	for (size_t count = 0; count < ARRAY_LENGTH(entries); count++) {
		size_t moved = table.moved, met = 0;

		entries[count].key = count;
		ck_assert(hash_insert(&table, &entries[count].node, hash_u64(count)));
		if (table.old != NULL) {
			ck_assert_uint_le(table.moved, moved + 2);
			growing++;
		}
		for (size_t i = 0; i < hash_slots(&table); i++)
			for (const struct hash_node *node = hash_slot(&table, i); node != NULL;
			     node = node->next)
				met++;
		ck_assert_uint_eq(met, count + 1);
		for (size_t i = 0; i <= count; i += 1 + random_below(20))
			ck_assert_ptr_eq(entry_find(&table, i, hash_u64(i)), &entries[i]);
	}
	ck_assert_uint_gt(growing, 500);
	/* A walk may remove what it meets. */
	for (size_t i = 0; i < hash_slots(&table); i++)
		while (hash_slot(&table, i) != NULL)
			hash_remove(&table, hash_slot(&table, i));
	ck_assert_uint_eq(table.count, 0);
	hash_destroy(&table);
}
END_TEST

/* --- deadlines --- */

START_TEST(deadlines_agree_with_a_model)
{
	static struct deadline elements[300];
	struct deadlines deadlines = {.root = NULL};
	size_t i, step;

	for (i = 0; i < ARRAY_LENGTH(elements); i++)
		deadline_init(&elements[i]);
	ck_assert_int_eq(deadlines_next_ns(&deadlines), DEADLINE_NEVER);
	ck_assert_ptr_null(deadlines_take_due(&deadlines, INT64_MAX));
	for (step = 0; step < 60000; step++) {
		struct deadline *element = &elements[random_below(ARRAY_LENGTH(elements))], *taken;
		int64_t earliest = DEADLINE_NEVER, now = (int64_t)random_below(1000);

		for (i = 0; i < ARRAY_LENGTH(elements); i++)
			if (deadline_queued(&elements[i]) && elements[i].when_ns < earliest)
				earliest = elements[i].when_ns;
		ck_assert_int_eq(deadlines_next_ns(&deadlines), earliest);
		switch (random_below(4)) {
		case 0:
		case 1:
			if (!deadline_queued(element)) {
				deadlines_add(&deadlines, element, now);
				ck_assert(deadline_queued(element));
			}
			break;
		case 2:
			deadlines_remove(&deadlines, element);
			ck_assert(!deadline_queued(element));
			deadlines_remove(&deadlines, element);
			break;
		default:
			now /= 4;
			taken = deadlines_take_due(&deadlines, now);
			if (earliest > now) {
				ck_assert_ptr_null(taken);
			} else {
				ck_assert_ptr_nonnull(taken);
				ck_assert_int_eq(taken->when_ns, earliest);
				ck_assert(!deadline_queued(taken));
			}
		}
	}
}
END_TEST

#define MANY 100000

static void *drain_many(void *argument)
{
	struct deadline *elements = argument, *taken;
	struct deadlines deadlines = {.root = NULL};
	int64_t last = -1;
	int shape, i, count;

	for (shape = 0; shape < 3; shape++) {
		for (i = 0; i < MANY; i++) {
			static const int64_t steps[] = {1, -1, 7919};

			deadline_init(&elements[i]);
			deadlines_add(&deadlines, &elements[i],
				      (steps[shape] * i % MANY + MANY) % MANY);
		}
		/* From the middle, wherever that is in the heap. */
		for (i = MANY / 4; i < MANY / 2; i++)
			deadlines_remove(&deadlines, &elements[i]);
		last = -1;
		for (count = 0; (taken = deadlines_take_due(&deadlines, MANY)) != NULL; count++) {
			ASSERT(taken->when_ns > last);
			last = taken->when_ns;
		}
		ASSERT(count == MANY - MANY / 4);
	}
	return NULL;
}

START_TEST(many_deadlines_come_in_order_on_a_small_stack)
{
	struct deadline *elements = calloc(MANY, sizeof(*elements));
	struct thread thread;

	ck_assert_ptr_nonnull(elements);
	ck_assert_int_eq(thread_start(&thread, drain_many, elements), 0);
	thread_join(&thread);
	free(elements);
}
END_TEST

/* --- threads and locks --- */

/* Where threads wait for each other. Static, as a detached thread may leave last. */
static struct {
	struct mutex mutex;
	struct cond cond;
	unsigned arrivals;
} meeting;

static void meeting_init(void)
{
	mutex_init(&meeting.mutex, LOCK_OUTBOX);
	cond_init(&meeting.cond);
}

/* Returns when there were ARRIVALS, this one included. */
static void meet(unsigned arrivals)
{
	mutex_lock(&meeting.mutex);
	meeting.arrivals++;
	cond_broadcast(&meeting.cond);
	while (meeting.arrivals < arrivals)
		cond_wait(&meeting.cond, &meeting.mutex);
	mutex_unlock(&meeting.mutex);
}

struct description {
	bool blocked, stable;
	unsigned shard;
};

static void *describe_thread(void *argument)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGPIPE, SIGALRM, SIGCHLD};
	struct description *description = argument;
	sigset_t set;
	size_t i;

	ASSERT(pthread_sigmask(SIG_BLOCK, NULL, &set) == 0);
	description->blocked = true;
	for (i = 0; i < ARRAY_LENGTH(signals); i++)
		description->blocked = description->blocked && sigismember(&set, signals[i]) == 1;
	description->shard = thread_shard();
	meet(3);
	description->stable = description->shard == thread_shard();
	meet(6);
	return NULL;
}

START_TEST(threads_take_no_signals_and_have_numbers)
{
	static struct description joined, detached;
	struct thread thread;
	sigset_t set;

	meeting_init();
	ck_assert_int_eq(thread_start(&thread, describe_thread, &joined), 0);
	ck_assert_int_eq(thread_start(NULL, describe_thread, &detached), 0);
	ck_assert_int_eq(pthread_sigmask(SIG_BLOCK, NULL, &set), 0);
	ck_assert_int_eq(sigismember(&set, SIGTERM), 0);
	meet(3);
	meet(6);
	thread_join(&thread);
	ck_assert(joined.blocked && joined.stable);
	ck_assert(detached.blocked && detached.stable);
	ck_assert_uint_ne(joined.shard, detached.shard);
	ck_assert_uint_ne(joined.shard, thread_shard());
	ck_assert_uint_lt(joined.shard, 16);
}
END_TEST

static struct mutex shared_mutex;
static unsigned shared_count;

static void *count_shared(void *argument)
{
	int i;

	(void)argument;
	for (i = 0; i < 10000; i++) {
		mutex_lock(&shared_mutex);
		mutex_assert_held(&shared_mutex);
		shared_count++;
		mutex_unlock(&shared_mutex);
	}
	lock_assert_none_held();
	return NULL;
}

START_TEST(mutex_excludes)
{
	struct thread threads[4];
	size_t i;

	mutex_init(&shared_mutex, LOCK_CHANNEL);
	for (i = 0; i < ARRAY_LENGTH(threads); i++)
		ck_assert_int_eq(thread_start(&threads[i], count_shared, NULL), 0);
	for (i = 0; i < ARRAY_LENGTH(threads); i++)
		thread_join(&threads[i]);
	ck_assert_uint_eq(shared_count, 40000);
	mutex_destroy(&shared_mutex);
}
END_TEST

START_TEST(wait_ends_at_its_deadline_and_not_before)
{
	int64_t past[] = {0, -1, clock_mono_ns()};
	int64_t deadline = clock_mono_ns() + 20 * NS_PER_MS;
	struct mutex mutex;
	struct cond cond;
	size_t i;

	mutex_init(&mutex, LOCK_CHANNEL);
	cond_init(&cond);
	mutex_lock(&mutex);
	while (cond_wait_until(&cond, &mutex, deadline))
		ck_assert_int_lt(clock_mono_ns(), deadline + 3600 * NS_PER_S);
	ck_assert_int_ge(clock_mono_ns(), deadline);
	mutex_assert_held(&mutex);
	for (i = 0; i < ARRAY_LENGTH(past); i++)
		ck_assert(!cond_wait_until(&cond, &mutex, past[i]));
	mutex_unlock(&mutex);
	cond_destroy(&cond);
	mutex_destroy(&mutex);
}
END_TEST

static const int64_t far_deadlines[] = {DEADLINE_NEVER, DEADLINE_NEVER - 1,
					INT64_C(365) * 86400 * NS_PER_S};
static bool awaited;

static void *signal_waiter(void *argument)
{
	(void)argument;
	meet(2);
	mutex_lock(&meeting.mutex);
	awaited = true;
	cond_signal(&meeting.cond);
	mutex_unlock(&meeting.mutex);
	return NULL;
}

START_TEST(wait_with_a_far_deadline_ends_by_signal)
{
	struct thread thread;

	meeting_init();
	ck_assert_int_eq(thread_start(&thread, signal_waiter, NULL), 0);
	meet(2);
	mutex_lock(&meeting.mutex);
	while (!awaited)
		ck_assert(cond_wait_until(&meeting.cond, &meeting.mutex, far_deadlines[_i]));
	mutex_unlock(&meeting.mutex);
	thread_join(&thread);
}
END_TEST

#ifdef LOCK_CHECKS

static struct mutex channel_mutex, outbox_mutex, other_outbox_mutex;
static struct cond lock_cond;

static void locks_init(void)
{
	mutex_init(&channel_mutex, LOCK_CHANNEL);
	mutex_init(&outbox_mutex, LOCK_OUTBOX);
	mutex_init(&other_outbox_mutex, LOCK_OUTBOX);
	cond_init(&lock_cond);
}

static void take_lower_rank(void)
{
	mutex_lock(&outbox_mutex);
	mutex_lock(&channel_mutex);
}

static void take_equal_rank(void)
{
	mutex_lock(&outbox_mutex);
	mutex_lock(&other_outbox_mutex);
}

static void take_lower_rank_after_release(void)
{
	mutex_lock(&channel_mutex);
	mutex_lock(&outbox_mutex);
	mutex_unlock(&channel_mutex);
	mutex_lock(&channel_mutex);
}

static void release_what_is_not_held(void)
{
	mutex_lock(&channel_mutex);
	mutex_unlock(&outbox_mutex);
}

static void rely_on_what_is_not_held(void)
{
	mutex_lock(&outbox_mutex);
	mutex_assert_held(&other_outbox_mutex);
}

static void block_with_a_lock(void)
{
	mutex_lock(&channel_mutex);
	lock_assert_none_held();
}

static void wait_with_a_lower_lock(void)
{
	mutex_lock(&channel_mutex);
	mutex_lock(&outbox_mutex);
	cond_wait_until(&lock_cond, &outbox_mutex, 0);
}

static void wait_with_a_higher_lock(void)
{
	mutex_lock(&channel_mutex);
	mutex_lock(&outbox_mutex);
	cond_wait_until(&lock_cond, &channel_mutex, 0);
}

static const struct {
	void (*run)(void);
	const char *name, *other;
} lock_faults[] = {
	{take_lower_rank, "CHANNEL", "OUTBOX"},
	{take_equal_rank, "OUTBOX", "OUTBOX"},
	{take_lower_rank_after_release, "CHANNEL", "OUTBOX"},
	{release_what_is_not_held, "OUTBOX", "CHANNEL"},
	{rely_on_what_is_not_held, "OUTBOX", "OUTBOX"},
	{block_with_a_lock, "may block", "CHANNEL"},
	{wait_with_a_lower_lock, "OUTBOX", "CHANNEL"},
	{wait_with_a_higher_lock, "OUTBOX", "CHANNEL"},
};

START_TEST(lock_fault_aborts_with_both_names)
{
	const char *words, *name;

	locks_init();
	words = last_words(lock_faults[_i].run);
	name = strstr(words, lock_faults[_i].name);
	ck_assert_msg(name != NULL && strstr(words, lock_faults[_i].other) != NULL, "%s", words);
}
END_TEST

START_TEST(locks_in_rising_rank_are_fine_in_any_order_of_release)
{
	int round;

	locks_init();
	for (round = 0; round < 2; round++) {
		mutex_lock(&channel_mutex);
		mutex_lock(&outbox_mutex);
		mutex_assert_held(&channel_mutex);
		mutex_assert_held(&outbox_mutex);
		mutex_unlock(round == 0 ? &channel_mutex : &outbox_mutex);
		mutex_unlock(round == 0 ? &outbox_mutex : &channel_mutex);
		lock_assert_none_held();
	}
}
END_TEST

#endif

/* --- metrics --- */

static void *add_metrics(void *argument)
{
	int i;

	(void)argument;
	for (i = 0; i < 1000; i++) {
		metric_add(METRIC_PUBLISHES, 1);
		metric_add(METRIC_DELIVERIES, 3);
		metric_observe(HISTOGRAM_PUBLISH_SECONDS, 15000, 2);
	}
	return NULL;
}

START_TEST(counters_lose_nothing_between_threads)
{
	struct metric_histogram_value value;
	struct thread threads[20];
	size_t i;

	for (i = 0; i < ARRAY_LENGTH(threads); i++)
		ck_assert_int_eq(thread_start(&threads[i], add_metrics, NULL), 0);
	for (i = 0; i < ARRAY_LENGTH(threads); i++)
		thread_join(&threads[i]);
	ck_assert_uint_eq(metric_read(METRIC_PUBLISHES), 20000);
	ck_assert_uint_eq(metric_read(METRIC_DELIVERIES), 60000);
	metric_read_histogram(HISTOGRAM_PUBLISH_SECONDS, &value);
	ck_assert_uint_eq(value.count, 40000);
	ck_assert_uint_eq(value.buckets[1], 40000);
	ck_assert_uint_eq(value.sum, UINT64_C(600000000));
	metric_read_histogram(HISTOGRAM_REQUEST_SECONDS, &value);
	ck_assert_uint_eq(value.count, 0);
}
END_TEST

static void check_buckets(enum metric_histogram histogram, enum metric_unit unit)
{
	const int64_t *bounds = metric_bounds[unit];
	struct metric_histogram_value value;
	uint64_t sum = 0;
	size_t i;

	metric_observe(histogram, -5, 1);
	for (i = 0; i < METRIC_BUCKETS; i++) {
		metric_observe(histogram, bounds[i], 1);
		metric_observe(histogram, bounds[i] + 1, 1);
		sum += 2 * (uint64_t)bounds[i] + 1;
	}
	metric_read_histogram(histogram, &value);
	for (i = 0; i < METRIC_BUCKETS; i++)
		ck_assert_uint_eq(value.buckets[i], 2);
	ck_assert_uint_eq(value.buckets[METRIC_BUCKETS], 1);
	ck_assert_uint_eq(value.count, 2 * METRIC_BUCKETS + 1);
	ck_assert_uint_eq(value.sum, sum);
}

START_TEST(observation_falls_into_the_first_bucket_that_holds_it)
{
	check_buckets(HISTOGRAM_REQUEST_SECONDS, METRIC_UNIT_SECONDS);
	check_buckets(HISTOGRAM_COMMIT_MESSAGES, METRIC_UNIT_NUMBER);
}
END_TEST

START_TEST(buckets_rise_from_10_us_to_10_s_and_from_1_to_a_million)
{
	ck_assert_int_eq(metric_bounds[METRIC_UNIT_SECONDS][0], 10000);
	ck_assert_int_eq(metric_bounds[METRIC_UNIT_SECONDS][METRIC_BUCKETS - 1], 10 * NS_PER_S);
	ck_assert_int_eq(metric_bounds[METRIC_UNIT_NUMBER][0], 1);
	ck_assert_int_eq(metric_bounds[METRIC_UNIT_NUMBER][METRIC_BUCKETS - 1], 1000000);
	for (size_t unit = 0; unit < METRIC_UNIT_COUNT; unit++)
		for (size_t i = 1; i < METRIC_BUCKETS; i++)
			ck_assert_int_gt(metric_bounds[unit][i], metric_bounds[unit][i - 1]);
}
END_TEST

static void check_family(const struct metric_row *row, const char *end)
{
	size_t length = strlen(row->family);

	ck_assert_msg(strncmp(row->family, "liminal_", 8) == 0, "%s", row->family);
	ck_assert_msg(row->family[strspn(row->family, "abcdefghijklmnopqrstuvwxyz_")] == '\0', "%s",
		      row->family);
	ck_assert_msg(length > strlen(end) && strcmp(row->family + length - strlen(end), end) == 0,
		      "%s does not end with %s", row->family, end);
}

static void check_help(const struct metric_row *row)
{
	ck_assert_msg(row->help != NULL && row->help[0] != '\0', "%s has no help", row->family);
	ck_assert_msg(strpbrk(row->help, "\\\n") == NULL, "%s", row->family);
}

/* What a scraper would refuse: samples of a family apart, twice the same, or of no clear name. */
START_TEST(metric_table_is_fit_for_prometheus)
{
	const struct metric_row *row, *earlier;
	bool first;

	for (row = metric_rows; row < metric_rows + METRIC_COUNT; row++) {
		check_family(row, "_total");
		ck_assert_msg((row->label == NULL) == (row->value == NULL), "%s", row->family);
		first = true;
		for (earlier = metric_rows; earlier < row; earlier++) {
			if (strcmp(row->family, earlier->family) != 0)
				continue;
			ck_assert_msg(strcmp(row->family, row[-1].family) == 0,
				      "the rows of %s are apart", row->family);
			ck_assert_msg(row->label != NULL && earlier->label != NULL &&
					      strcmp(row->label, earlier->label) == 0 &&
					      strcmp(row->value, earlier->value) != 0,
				      "two rows of %s are one sample", row->family);
			if (first)
				ck_assert_msg(row->help == NULL ||
						      strcmp(row->help, earlier->help) == 0,
					      "the rows of %s differ in help", row->family);
			first = false;
		}
		if (first)
			check_help(row);
	}
	for (row = metric_histogram_rows; row < metric_histogram_rows + HISTOGRAM_COUNT; row++) {
		check_family(row, metric_histogram_units[row - metric_histogram_rows] ==
						  METRIC_UNIT_SECONDS
					  ? "_seconds"
					  : "_messages");
		check_help(row);
	}
}
END_TEST

static Suite *base_suite(void)
{
	Suite *suite = suite_create("base");
	TCase *tests = tcase_create("base");

	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, failed_assertion_names_condition_and_place);
	tcase_add_test(tests, size_sum_stops_at_the_largest_size);
	tcase_add_test(tests, list_keeps_order_and_lets_go_while_walked);
	tcase_add_test(tests, time_moves_and_deadlines_do_not_overflow);
	tcase_add_test(tests, buffer_that_cannot_be_had_is_null);
	tcase_add_test(tests, buffer_lives_until_its_last_reference);
	tcase_add_test(tests, hash_depends_on_bytes_length_and_key_only);
	tcase_add_loop_test(tests, hash_table_agrees_with_an_array, 0, 2);
	tcase_add_test(tests, hash_table_grows_while_it_is_used);
	tcase_add_test(tests, deadlines_agree_with_a_model);
	tcase_add_test(tests, many_deadlines_come_in_order_on_a_small_stack);
	tcase_add_test(tests, threads_take_no_signals_and_have_numbers);
	tcase_add_test(tests, mutex_excludes);
	tcase_add_test(tests, wait_ends_at_its_deadline_and_not_before);
	tcase_add_loop_test(tests, wait_with_a_far_deadline_ends_by_signal, 0,
			    ARRAY_LENGTH(far_deadlines));
#ifdef LOCK_CHECKS
	tcase_add_loop_test(tests, lock_fault_aborts_with_both_names, 0, ARRAY_LENGTH(lock_faults));
	tcase_add_test(tests, locks_in_rising_rank_are_fine_in_any_order_of_release);
#endif
	tcase_add_test(tests, counters_lose_nothing_between_threads);
	tcase_add_test(tests, observation_falls_into_the_first_bucket_that_holds_it);
	tcase_add_test(tests, buckets_rise_from_10_us_to_10_s_and_from_1_to_a_million);
	tcase_add_test(tests, metric_table_is_fit_for_prometheus);
	suite_add_tcase(suite, tests);
	return suite;
}

int main(void)
{
	SRunner *runner = srunner_create(base_suite());
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
