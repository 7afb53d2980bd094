// Clocks. What lasts is measured by the monotonic clock, or by that of the boot where a sleep of the host counts; the wall clock, which may be set at any
// moment, only says when something happened.
#pragma once

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_ns(clockid_t clock) {
	struct timespec t;
	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static inline uint64_t monotonic_ns(void) {
	return clock_ns(CLOCK_MONOTONIC);
}
static inline uint64_t boottime_ms(void) {
	return clock_ns(CLOCK_BOOTTIME) / 1000000u;
}
// For tests: how far somebody has set the wall clock ahead of the system's.
extern _Atomic int64_t wall_clock_step_ns;
uint64_t realtime_ns(void);
static inline uint64_t monotonic_ms(void) {
	return monotonic_ns() / 1000000u;
}
static inline uint64_t realtime_ms(void) {
	return realtime_ns() / 1000000u;
}
