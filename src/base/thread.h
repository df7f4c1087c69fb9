/*
 * Threads with a stack of THREAD_STACK bytes and every signal blocked but those that report a fault
 * of their own: only the main thread takes signals.
 */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include "base/base.h"

#include <pthread.h>

#define THREAD_STACK (128 * 1024)

struct thread {
	pthread_t native;
};

typedef void *thread_function(void *argument);

/*
 * Starts FUNCTION(ARGUMENT). 0, or an errno value when the system has no thread left. With
 * THREAD NULL it is detached; otherwise thread_join must be called once.
 */
int thread_start(struct thread *thread, thread_function *function, void *argument);
void thread_join(struct thread *thread);

/* A small number, the same for the life of the calling thread; it spreads counters over shards. */
unsigned thread_shard(void);

#endif
