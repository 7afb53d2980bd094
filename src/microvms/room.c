// The room that the host has; see room.h. There is one host for a process.
#include "microvms/room.h"

#include "base/cleanup.h"
#include "stasisd/engine.h"
#include "store/store.h"

#include <pthread.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t waking_mib; // of those whose resume is under way

// MemAvailable of /proc/meminfo in MiB; INT64_MAX when it cannot be read.
static int64_t available_mib(void) {
	cleanup_file FILE *f = fopen("/proc/meminfo", "re");
	char line[128];
	long long kib;
	while (f != NULL && fgets(line, sizeof(line), f) != NULL)
		if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1)
			return kib >> 10;
	return INT64_MAX;
}

static int no_room(struct error *e) {
	return error_named(e, -ENOMEM, "InsufficientCapacityException",
			   "The host has not enough memory for another MicroVM. Try again later.");
}

// With the lock held.
static int look(struct engine *en, int64_t minimum_mib, struct error *e) {
	int64_t awake = 0;
	if (en->config.host_reserve_mib > 0 && available_mib() < en->config.host_reserve_mib)
		return no_room(e);
	if (en->config.host_memory_mib == 0)
		return 0;
	int r = store_get_awake(en->store, &awake, e);
	if (r < 0)
		return r;
	return awake + waking_mib + minimum_mib <= en->config.host_memory_mib ? 0 : no_room(e);
}

int room_lock(struct engine *en, int64_t minimum_mib, struct error *e) {
	bool limited = en->config.host_memory_mib > 0;
	if (limited)
		pthread_mutex_lock(&lock);
	int r = look(en, minimum_mib, e);
	if (r < 0 && limited)
		pthread_mutex_unlock(&lock);
	return r < 0 ? r : limited;
}

void room_unlock(void) {
	pthread_mutex_unlock(&lock);
}

int room_take(struct engine *en, int64_t minimum_mib, struct error *e) {
	int r = room_lock(en, minimum_mib, e);
	if (r == 1) {
		waking_mib += minimum_mib;
		pthread_mutex_unlock(&lock);
	}
	return r < 0 ? r : 0;
}

int room_give(struct engine *en, int64_t minimum_mib, int (*record)(void *arg, struct error *e), void *arg, struct error *e) {
	bool limited = en->config.host_memory_mib > 0;
	if (limited)
		pthread_mutex_lock(&lock);
	int r = record == NULL ? 0 : record(arg, e);
	if (limited) {
		waking_mib -= minimum_mib;
		pthread_mutex_unlock(&lock);
	}
	return r;
}
