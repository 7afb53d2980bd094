// Start and stop of the lifecycle; see microvms.h.
#include "microvms/lifecycle.h"

#include "base/io.h"
#include "base/log.h"
#include "microvms/launcher.h"

#include <stdio.h>
#include <stdlib.h>

#define STOP_PARALLEL 4 // suspends at once: each writes memory to the disk

int microvms_start(struct engine *en, struct error *e) {
	char folder[FOLDER_PATH];
	snprintf(folder, sizeof(folder), "%.300s/microvms", en->config.state_folder);
	int r = make_folders(folder, 0750, e);
	if (r < 0)
		return r;
	r = registry_new(en);
	if (r < 0)
		return error_set(e, r, "out of memory starting the lifecycle of MicroVMs");
	r = timers_begin(en, e);
	return r < 0 ? r : microvms_adopt(en, e);
}

struct stop {
	pthread_mutex_t lock;
	pthread_cond_t done;
	struct microvm **all;
	size_t count, next, running;
};

static void suspend_next(void *arg) {
	struct stop *s = arg;
	pthread_mutex_lock(&s->lock);
	while (s->next < s->count) {
		struct microvm *m = s->all[s->next++];
		pthread_mutex_unlock(&s->lock);
		struct error e;
		microvm_begin(m);
		if (microvm_state_now(m) == STATE_RUNNING && microvm_suspend_now(m, SUSPEND_ASKED, &e) < 0)
			log_warn("microvm.stop", LOG_S("microvmId", m->record.id), LOG_S("message", e.message));
		microvm_end(m);
		pthread_mutex_lock(&s->lock);
	}
	s->running--;
	pthread_cond_broadcast(&s->done);
	pthread_mutex_unlock(&s->lock);
}

void microvms_suspend_all(struct engine *en) {
	if (en->microvms == NULL)
		return;
	struct stop s = {.lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};
	en->microvms->stopping = true;
	s.count = registry_all(en, &s.all);
	s.running = 1;
	for (int i = 1; i < STOP_PARALLEL && (size_t)i < s.count; i++) {
		pthread_mutex_lock(&s.lock);
		s.running++;
		pthread_mutex_unlock(&s.lock);
		if (worker_submit(suspend_next, &s) < 0) {
			pthread_mutex_lock(&s.lock);
			s.running--;
			pthread_mutex_unlock(&s.lock);
		}
	}
	suspend_next(&s);
	pthread_mutex_lock(&s.lock);
	while (s.running > 0)
		pthread_cond_wait(&s.done, &s.lock);
	pthread_mutex_unlock(&s.lock);
	for (size_t i = 0; i < s.count; i++)
		microvm_unref(s.all[i]);
	free(s.all);
}
