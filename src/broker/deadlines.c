/*
 * The deadline thread: ends requests whose time is up and pushes to workers that have settled.
 *
 * It sleeps until the nearest deadline that it has seen, `armed_ns`, and is woken only when one
 * comes nearer than that. A request that is answered in time therefore costs it nothing but one
 * wake-up per reply timeout, and with nothing pending it sleeps for good.
 */
#include "broker/broker_priv.h"

#include "base/clock.h"

/* How many deadlines are handled before the lock is released for others. */
#define DEADLINE_BATCH 64

void deadline_thread_poke_locked(struct broker *broker)
{
	int64_t next_ns = deadlines_next_ns(&broker->request_deadlines);
	int64_t settle_ns = deadlines_next_ns(&broker->settle_deadlines);

	mutex_assert_held(&broker->lock);
	if (settle_ns < next_ns)
		next_ns = settle_ns;
	if (next_ns < broker->armed_ns) {
		broker->armed_ns = next_ns;
		cond_signal(&broker->wake);
	}
}

/* Handles what is due, a batch at most; how many that were. */
static size_t deadlines_run_locked(struct broker *broker, struct flush_set *set)
{
	int64_t now_ns = clock_mono_ns();
	size_t count = 0;
	struct deadline *due;

	while (count < DEADLINE_BATCH &&
	       (due = deadlines_take_due(&broker->settle_deadlines, now_ns)) != NULL) {
		client_settled_locked(CONTAINER_OF(due, struct client, settle), set);
		count++;
	}
	while (count < DEADLINE_BATCH &&
	       (due = deadlines_take_due(&broker->request_deadlines, now_ns)) != NULL) {
		request_expire_locked(CONTAINER_OF(due, struct request, deadline), set);
		count++;
	}
	return count;
}

static void *deadline_thread(void *argument)
{
	struct broker *broker = argument;
	struct flush_set set;

	flush_set_init(&set);
	mutex_lock(&broker->lock);
	while (!broker->stopping) {
		if (deadlines_run_locked(broker, &set) > 0) {
			mutex_unlock(&broker->lock);
			flush_set_run(&set);
			mutex_lock(&broker->lock);
			continue;
		}
		broker->armed_ns = DEADLINE_NEVER;
		deadline_thread_poke_locked(broker);
		if (broker->armed_ns == DEADLINE_NEVER)
			cond_wait(&broker->wake, &broker->lock);
		else
			cond_wait_until(&broker->wake, &broker->lock, broker->armed_ns);
	}
	mutex_unlock(&broker->lock);
	return NULL;
}

bool deadline_thread_start(struct broker *broker)
{
	broker->armed_ns = DEADLINE_NEVER;
	return thread_start(&broker->deadline_thread, deadline_thread, broker) == 0;
}

void deadline_thread_stop(struct broker *broker)
{
	mutex_lock(&broker->lock);
	broker->stopping = true;
	cond_broadcast(&broker->wake);
	mutex_unlock(&broker->lock);
	thread_join(&broker->deadline_thread);
}
