#include "fake_time.h"

#include "broker/broker_priv.h"

int64_t fake_now_ns = 1000 * NS_PER_S;
int64_t fake_tick_ns;

int64_t clock_mono_ns(void)
{
	int64_t now_ns = fake_now_ns;

	fake_now_ns += fake_tick_ns;
	return now_ns;
}

int64_t clock_wall_ms(void)
{
	return fake_now_ns / NS_PER_MS;
}

int64_t clock_after_ms(int64_t now_ns, int64_t ms)
{
	return now_ns + ms * NS_PER_MS;
}

bool deadline_thread_start(struct broker *broker)
{
	broker->armed_ns = DEADLINE_NEVER;
	return true;
}

void deadline_thread_stop(struct broker *broker)
{
	(void)broker;
}

void fake_advance(struct broker *broker, int64_t ns)
{
	int64_t until_ns = fake_now_ns + ns;

	while (broker->armed_ns <= until_ns) {
		if (broker->armed_ns > fake_now_ns)
			fake_now_ns = broker->armed_ns;
		while (deadlines_run(broker))
			;
		mutex_lock(&broker->lock);
		broker->armed_ns = DEADLINE_NEVER;
		deadline_thread_poke_locked(broker);
		mutex_unlock(&broker->lock);
	}
	if (fake_now_ns < until_ns)
		fake_now_ns = until_ns;
}
