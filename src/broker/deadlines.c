/* What is due: ends requests whose time is up, pushes to workers that have settled, and resolves
 * anew what is left of that. */
#include "broker/broker_priv.h"

#include "base/clock.h"
#include "broker/journal.h"

/* How many deadlines are handled before the lock is released for others. */
#define DEADLINE_BATCH 64

void deadline_thread_poke_locked(struct broker *broker)
{
	int64_t next_ns = deadlines_next_ns(&broker->request_deadlines);
	int64_t settle_ns = deadlines_next_ns(&broker->settle_deadlines);
	int64_t alarm_ns = deadlines_next_ns(&broker->journal_alarms);

	mutex_assert_held(&broker->lock);
	if (settle_ns < next_ns)
		next_ns = settle_ns;
	if (alarm_ns < next_ns)
		next_ns = alarm_ns;
	if (!list_empty(&broker->waking) && broker->anew_ns < next_ns)
		next_ns = broker->anew_ns;
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
	return count + (requests_resolve_anew_locked(broker, set) ? 1 : 0);
}

/* Durable channels whose timers are due; each has a lock of its own, so one after the other. */
static size_t journals_run(struct broker *broker)
{
	int64_t now_ns = clock_mono_ns();
	size_t count = 0;

	for (;; count++) {
		struct deadline *due;

		mutex_lock(&broker->lock);
		due = deadlines_take_due(&broker->journal_alarms, now_ns);
		mutex_unlock(&broker->lock);
		if (due == NULL)
			return count;
		journal_run_timers(CONTAINER_OF(due, struct journal, alarm));
	}
}

bool deadlines_run(struct broker *broker)
{
	struct flush_set set;
	size_t count;

	flush_set_init(&set);
	mutex_lock(&broker->lock);
	count = deadlines_run_locked(broker, &set);
	mutex_unlock(&broker->lock);
	flush_set_run(&set);
	count += journals_run(broker);
	return count > 0;
}
