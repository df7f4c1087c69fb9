/*
 * Mutexes with a rank and condition variables on the monotonic clock.
 *
 * Ranks stand in locks.tbl. With --enable-lock-checks taking a lock of a lower or equal rank than
 * one that the thread holds, unlocking what it does not hold, waiting on a condition while it holds
 * another lock, or a failed mutex_assert_held, aborts with both names. Without, the checks cost
 * nothing.
 */
#ifndef BASE_LOCK_H
#define BASE_LOCK_H

#include "base/base.h"

#include <pthread.h>

enum lock_rank {
#define LOCK(name, rank, text) LOCK_##name = rank,
#include "base/locks.tbl"
#undef LOCK
};

struct mutex {
	pthread_mutex_t native;
	enum lock_rank rank;
};

struct cond {
	pthread_cond_t native;
};

void mutex_init(struct mutex *mutex, enum lock_rank rank);
void mutex_destroy(struct mutex *mutex);
void mutex_lock(struct mutex *mutex);
void mutex_unlock(struct mutex *mutex);

/* The calling thread holds MUTEX; checked with --enable-lock-checks only. */
void mutex_assert_held(const struct mutex *mutex);

/* The calling thread holds no lock at all (before a call that may block); checked likewise. */
void lock_assert_none_held(void);

void cond_init(struct cond *cond);
void cond_destroy(struct cond *cond);

/* Call with the mutex of the predicate held, in a loop that tests the predicate. */
void cond_wait(struct cond *cond, struct mutex *mutex);

/* Likewise, until the monotonic time DEADLINE_NS at most; false when that has passed. */
bool cond_wait_until(struct cond *cond, struct mutex *mutex, int64_t deadline_ns);

/* Call with the mutex of the predicate held. */
void cond_signal(struct cond *cond);
void cond_broadcast(struct cond *cond);

#endif
