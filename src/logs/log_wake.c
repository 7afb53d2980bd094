// Waiting for logs; see log_wake.h.
#include "logs/log_wake.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct log_wait *waiters;
static _Atomic unsigned count;

int log_wait_begin(struct log_wait *w, const char *folder) {
	*w = (struct log_wait){.next = NULL};
	snprintf(w->folder, sizeof(w->folder), "%s", folder);
	pthread_cond_init(&w->changed, NULL);
	pthread_mutex_lock(&lock);
	bool room = count < LOG_WAITERS_MAX;
	if (room) {
		w->next = waiters;
		waiters = w;
		count++;
	}
	pthread_mutex_unlock(&lock);
	if (!room)
		pthread_cond_destroy(&w->changed);
	return room ? 0 : -EAGAIN;
}

bool log_wait_next(struct log_wait *w) {
	pthread_mutex_lock(&lock);
	while (!w->woken && !w->stopped)
		pthread_cond_wait(&w->changed, &lock);
	w->woken = false;
	bool go_on = !w->stopped;
	pthread_mutex_unlock(&lock);
	return go_on;
}

void log_wait_stop(struct log_wait *w) {
	pthread_mutex_lock(&lock);
	w->stopped = true;
	pthread_cond_signal(&w->changed);
	pthread_mutex_unlock(&lock);
}

void log_wait_end(struct log_wait *w) {
	pthread_mutex_lock(&lock);
	struct log_wait **at = &waiters;
	while (*at != w)
		at = &(*at)->next;
	*at = w->next;
	count--;
	pthread_mutex_unlock(&lock);
	pthread_cond_destroy(&w->changed);
}

void log_wake(const char *folder) {
	if (count == 0)
		return;
	pthread_mutex_lock(&lock);
	for (struct log_wait *w = waiters; w != NULL; w = w->next) {
		if (strcmp(w->folder, folder) != 0)
			continue;
		w->woken = true;
		pthread_cond_signal(&w->changed);
	}
	pthread_mutex_unlock(&lock);
}
