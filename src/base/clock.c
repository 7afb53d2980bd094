// See clock.h.
#include "base/clock.h"

_Atomic int64_t wall_clock_step_ns;

uint64_t realtime_ns(void) {
	return clock_ns(CLOCK_REALTIME) + (uint64_t)wall_clock_step_ns;
}
