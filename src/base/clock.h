// Clocks, in nanoseconds.
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
static inline uint64_t realtime_ns(void) {
	return clock_ns(CLOCK_REALTIME);
}
static inline uint64_t monotonic_ms(void) {
	return monotonic_ns() / 1000000u;
}
static inline uint64_t realtime_ms(void) {
	return realtime_ns() / 1000000u;
}
