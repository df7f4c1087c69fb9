/* Starting threads: their stack, their signals and their number. */
#include "base/thread.h"

#include <signal.h>
#include <stdatomic.h>

#ifndef __has_feature
#define __has_feature(feature) 0
#endif

/* The sanitizers' frames are several times as large, and their interceptors need room too. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
	__has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                     \
	__has_feature(memory_sanitizer)
#define THREAD_STACK_USED (8 * THREAD_STACK)
#else
#define THREAD_STACK_USED THREAD_STACK
#endif

int thread_start(struct thread *thread, thread_function *function, void *argument)
{
	pthread_attr_t attributes;
	sigset_t blocked, before;
	struct thread started;
	int error;

	ASSERT(pthread_attr_init(&attributes) == 0);
	ASSERT(pthread_attr_setstacksize(&attributes, THREAD_STACK_USED) == 0);
	if (thread == NULL)
		ASSERT(pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0);

	/*
	 * A new thread has its creator's mask. A fault's signal stays open: what happens when one
	 * is raised while it is blocked is undefined, and a sanitizer wants to report it.
	 */
	ASSERT(sigfillset(&blocked) == 0);
	ASSERT(sigdelset(&blocked, SIGBUS) == 0 && sigdelset(&blocked, SIGFPE) == 0);
	ASSERT(sigdelset(&blocked, SIGILL) == 0 && sigdelset(&blocked, SIGSEGV) == 0);
	ASSERT(pthread_sigmask(SIG_SETMASK, &blocked, &before) == 0);
	error = pthread_create(&started.native, &attributes, function, argument);
	ASSERT(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);

	ASSERT(pthread_attr_destroy(&attributes) == 0);
	if (error == 0 && thread != NULL)
		*thread = started;
	return error;
}

void thread_join(struct thread *thread)
{
	ASSERT(pthread_join(thread->native, NULL) == 0);
}

unsigned thread_shard(void)
{
	static atomic_uint count;
	static _Thread_local unsigned number; /* 0: not drawn yet */

	if (number == 0)
		number = atomic_fetch_add_explicit(&count, 1, memory_order_relaxed) + 1;
	return number;
}
