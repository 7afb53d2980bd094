// What keeps a microVM awake besides traffic at its endpoint (docs/sleep.md). The image chooses with the environment variable STASIS_BUSY: leases
// that the application holds, its processors' time, bytes over its network. Nobody is told anything by itself: the host asks before it lets an
// idle policy act, and learns how long ago the guest was last busy.
//
// The application reaches this at http://169.254.169.253/: PUT and DELETE /leases/<name>, GET /leases, POST /suspend.
//
// Times are of CLOCK_MONOTONIC, which stands still while the microVM sleeps.
#pragma once

#include "guest/events.h"
#include "guest/local_http.h"

#include <stdbool.h>
#include <stdint.h>

#define BUSY_VARIABLE "STASIS_BUSY"
#define BUSY_ADDRESS "169.254.169.253"
#define BUSY_PORT 80
#define BUSY_LEASES_MAX 64
#define BUSY_LEASE_NAME_MAX 64
#define BUSY_LEASE_SECONDS_MAX 86400
#define BUSY_CPU_PERCENT 20 // of one processor, when the image says just "cpu"
#define BUSY_WHY_MAX 80

struct busy_policy {
	bool leases;
	unsigned cpu_percent; // of one processor; 0: does not count
	bool network;
};

// Reads the words of STASIS_BUSY, apart by blanks or commas: lease, cpu, cpu=<percent>, network, or none alone. NULL stands for "lease".
int busy_parse(const char *text, struct busy_policy *ret, struct error *e);

struct busy_lease {
	char name[BUSY_LEASE_NAME_MAX + 1]; // empty: free
	uint64_t until_ns;
};

struct busy {
	struct loop *loop;
	struct events *events;
	struct local_http http;
	struct busy_policy policy;
	struct busy_lease leases[BUSY_LEASES_MAX];
	uint64_t last_ns; // when it was last busy, leases that still stand in the list apart; 0: never
	char why[BUSY_WHY_MAX];
	struct timer sampler;
	int cpu_fd, network_fd; // the cgroup's cpu.stat; /proc/net/dev
	uint64_t sampled_ns, cpu_us, network_bytes;
};

// Takes the loop and the place from `at`.
void busy_init(struct busy *b, const struct local_http *at, struct events *v);
void busy_end(struct busy *b);

// The application runs, in this cgroup (a path): its policy holds from now on, and it is listened to.
int busy_begin(struct busy *b, const struct busy_policy *policy, const char *cgroup, struct error *e);

// For how long it has not been busy, in nanoseconds; why: what kept it busy last, "" if nothing did.
uint64_t busy_idle_ns(struct busy *b, char why[BUSY_WHY_MAX]);

// Writes the whole answer to a request without a body to `to`, which has LOCAL_HTTP_ANSWER_MAX bytes. Returns its size.
size_t busy_answer(struct busy *b, const struct http_head *h, char *to);
