/*
 * Time as the test wants it, for what the broker does on time: the two clocks stand still until
 * fake_advance or, where a test sets fake_tick_ns, a look at them; and instead of the deadline
 * thread that function does what the thread would, at the moments at which the thread would wake.
 * Linked in front of the libraries, whose own clock.o and deadline_thread.o are then left out.
 */
#ifndef TESTS_UNIT_FAKE_TIME_H
#define TESTS_UNIT_FAKE_TIME_H

#include "base/clock.h"
#include "broker/broker.h"

extern int64_t fake_now_ns;
extern int64_t fake_tick_ns; /* passes with each look at the time */

/* Time passes: what falls due on the way is handled at its own time. */
void fake_advance(struct broker *broker, int64_t ns);

#endif
