/* The two clocks. Deadlines are monotonic, in nanoseconds; what people see is wall time in ms. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include "base/base.h"

#define NS_PER_MS INT64_C(1000000)
#define NS_PER_S INT64_C(1000000000)
#define DEADLINE_NEVER INT64_MAX

/* Monotonic time in nanoseconds, from an arbitrary start. */
int64_t clock_mono_ns(void);

/* Milliseconds since 1970 UTC. */
int64_t clock_wall_ms(void);

/* NOW_NS + MS milliseconds, DEADLINE_NEVER where that does not fit. */
int64_t clock_after_ms(int64_t now_ns, int64_t ms);

#endif
