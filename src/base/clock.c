/* The two clocks, and sums on them that cannot overflow. */
#include "base/clock.h"

#include <time.h>

int64_t clock_mono_ns(void)
{
	struct timespec now;

	ASSERT(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
	return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

int64_t clock_wall_ms(void)
{
	struct timespec now;

	ASSERT(clock_gettime(CLOCK_REALTIME, &now) == 0);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / NS_PER_MS;
}

int64_t clock_after_ms(int64_t now_ns, int64_t ms)
{
	ASSERT(now_ns >= 0 && ms >= 0);
	if (ms > (DEADLINE_NEVER - now_ns) / NS_PER_MS)
		return DEADLINE_NEVER;
	return now_ns + ms * NS_PER_MS;
}
