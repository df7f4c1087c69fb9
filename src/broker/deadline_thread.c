/*
 * The deadline thread: has what is due handled, and sleeps in between.
 *
 * It sleeps until the nearest deadline that it has seen, `armed_ns`, and is woken only when one
 * comes nearer than that. A request that is answered in time therefore costs it nothing but one
 * wake-up per reply timeout, and with nothing pending it sleeps for good.
 */
#include "broker/broker_priv.h"

#include "base/clock.h"

/* Sleeps until something may be due; false when it is time to stop. */
static bool deadline_thread_sleep(struct broker *broker)
{
	bool stopping;

	mutex_lock(&broker->lock);
	broker->armed_ns = DEADLINE_NEVER;
	deadline_thread_poke_locked(broker);
	if (!broker->stopping)
		(void)cond_wait_until(&broker->wake, &broker->lock, broker->armed_ns);
	stopping = broker->stopping;
	mutex_unlock(&broker->lock);
	return !stopping;
}

static void *deadline_thread(void *argument)
{
	struct broker *broker = argument;

	do {
		while (deadlines_run(broker))
			;
	} while (deadline_thread_sleep(broker));
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
