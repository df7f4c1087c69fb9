/*
 * Mutexes and condition variables over pthreads, and the check of their ranks.
 *
 * With LOCK_CHECKS each thread knows which locks it holds. It took them in rising rank, so the
 * last one has the highest; and as two of them never have the same rank, there are at most as many
 * as there are rows in locks.tbl.
 */
#include "base/lock.h"

#include <errno.h>
#include <time.h>

#include "base/clock.h"
#include "base/text.h"

#ifdef LOCK_CHECKS

static const struct {
	enum lock_rank rank;
	const char *name;
} lock_rows[] = {
#define LOCK(name, rank, text) {rank, #name},
#include "base/locks.tbl"
#undef LOCK
};

static _Thread_local const struct mutex *lock_held[ARRAY_LENGTH(lock_rows)];
static _Thread_local size_t lock_held_count;

static const char *lock_name(const struct mutex *mutex)
{
	size_t i;

	for (i = 0; i < ARRAY_LENGTH(lock_rows); i++)
		if (lock_rows[i].rank == mutex->rank)
			return lock_rows[i].name;
	return "(no lock)";
}

/* Aborts, naming what the thread does, with which lock (NULL: none), and every lock that it holds.
 */
static _Noreturn void lock_violation(const char *what, const struct mutex *mutex)
{
	char array[400];
	struct text text = TEXT_INIT(array);
	size_t i;

	text_add(&text, "%s", what);
	if (mutex != NULL)
		text_add(&text, " %s (rank %d)", lock_name(mutex), (int)mutex->rank);
	text_add(&text, " while holding%s", lock_held_count > 0 ? "" : " no lock");
	for (i = 0; i < lock_held_count; i++)
		text_add(&text, "%s %s (rank %d)", i > 0 ? "," : "", lock_name(lock_held[i]),
			 (int)lock_held[i]->rank);
	assert_failed(array, __FILE__, __LINE__, __func__);
}

static void lock_check_taking(const struct mutex *mutex)
{
	if (lock_held_count > 0 && lock_held[lock_held_count - 1]->rank >= mutex->rank)
		lock_violation("taking", mutex);
}

static void lock_note_taken(const struct mutex *mutex)
{
	lock_held[lock_held_count++] = mutex;
}

static void lock_note_released(const struct mutex *mutex)
{
	size_t i = lock_held_count;

	while (i > 0 && lock_held[i - 1] != mutex)
		i--;
	if (i == 0)
		lock_violation("releasing", mutex);
	for (; i < lock_held_count; i++)
		lock_held[i - 1] = lock_held[i];
	lock_held_count--;
}

/* A waiting thread holds the predicate's mutex and, not to block others, no other lock. */
static void lock_check_waiting(const struct mutex *mutex)
{
	if (lock_held_count != 1 || lock_held[0] != mutex)
		lock_violation("waiting with", mutex);
}

void mutex_assert_held(const struct mutex *mutex)
{
	size_t i;

	for (i = 0; i < lock_held_count; i++)
		if (lock_held[i] == mutex)
			return;
	lock_violation("relying on", mutex);
}

void lock_assert_none_held(void)
{
	if (lock_held_count > 0)
		lock_violation("calling what may block", NULL);
}

#else

static void lock_check_taking(const struct mutex *mutex)
{
	(void)mutex;
}

static void lock_note_taken(const struct mutex *mutex)
{
	(void)mutex;
}

static void lock_note_released(const struct mutex *mutex)
{
	(void)mutex;
}

static void lock_check_waiting(const struct mutex *mutex)
{
	(void)mutex;
}

void mutex_assert_held(const struct mutex *mutex)
{
	(void)mutex;
}

void lock_assert_none_held(void)
{
}

#endif

void mutex_init(struct mutex *mutex, enum lock_rank rank)
{
	ASSERT(pthread_mutex_init(&mutex->native, NULL) == 0);
	mutex->rank = rank;
}

void mutex_destroy(struct mutex *mutex)
{
	ASSERT(pthread_mutex_destroy(&mutex->native) == 0);
}

void mutex_lock(struct mutex *mutex)
{
	/* Before the lock is taken: a thread that would wait for itself is told so. */
	lock_check_taking(mutex);
	ASSERT(pthread_mutex_lock(&mutex->native) == 0);
	lock_note_taken(mutex);
}

void mutex_unlock(struct mutex *mutex)
{
	lock_note_released(mutex);
	ASSERT(pthread_mutex_unlock(&mutex->native) == 0);
}

void cond_init(struct cond *cond)
{
	pthread_condattr_t attributes;

	ASSERT(pthread_condattr_init(&attributes) == 0);
#ifdef HAVE_PTHREAD_CONDATTR_SETCLOCK
	ASSERT(pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0);
#endif
	ASSERT(pthread_cond_init(&cond->native, &attributes) == 0);
	ASSERT(pthread_condattr_destroy(&attributes) == 0);
}

void cond_destroy(struct cond *cond)
{
	ASSERT(pthread_cond_destroy(&cond->native) == 0);
}

void cond_wait(struct cond *cond, struct mutex *mutex)
{
	lock_check_waiting(mutex);
	ASSERT(pthread_cond_wait(&cond->native, &mutex->native) == 0);
}

/* What the clock of a condition variable shows at the monotonic time DEADLINE_NS. */
static struct timespec cond_time(int64_t deadline_ns)
{
	int64_t ns = deadline_ns;

#ifndef HAVE_PTHREAD_CONDATTR_SETCLOCK
	/*
	 * macOS has the wall clock only. When that is set back, waits last longer by as much; when
	 * it is set forward they end early, which callers, who loop, do not notice.
	 */
	struct timespec wall;
	int64_t left = deadline_ns - clock_mono_ns();

	ASSERT(clock_gettime(CLOCK_REALTIME, &wall) == 0);
	ns = (int64_t)wall.tv_sec * NS_PER_S + wall.tv_nsec;
	if (left > 0)
		ns = left > INT64_MAX - ns ? INT64_MAX : ns + left;
#endif
	return (struct timespec){.tv_sec = (time_t)(ns / NS_PER_S),
				 .tv_nsec = (long)(ns % NS_PER_S)};
}

bool cond_wait_until(struct cond *cond, struct mutex *mutex, int64_t deadline_ns)
{
	struct timespec until;
	int error;

	if (deadline_ns == DEADLINE_NEVER) {
		cond_wait(cond, mutex);
		return true;
	}
	lock_check_waiting(mutex);
	until = cond_time(deadline_ns > 0 ? deadline_ns : 0);
	error = pthread_cond_timedwait(&cond->native, &mutex->native, &until);
	ASSERT(error == 0 || error == ETIMEDOUT);
	return error == 0 || clock_mono_ns() < deadline_ns;
}

void cond_signal(struct cond *cond)
{
	ASSERT(pthread_cond_signal(&cond->native) == 0);
}

void cond_broadcast(struct cond *cond)
{
	ASSERT(pthread_cond_broadcast(&cond->native) == 0);
}
