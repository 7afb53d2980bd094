// The table of microVMs: by id and by endpoint. It knows all living ones, and the newest that were terminated, so that the edge can tell
// "gone" from "never heard of".
#include "microvms/lifecycle.h"

#include "base/clock.h"
#include "base/log.h"
#include "images/connectors.h"

#include <stdlib.h>
#include <string.h>

int registry_new(struct engine *en) {
	struct microvms *t = calloc(1, sizeof(*t));
	if (t == NULL)
		return -ENOMEM;
	t->en = en;
	pthread_mutex_init(&t->lock, NULL);
	timers_init(&t->timers);
	en->microvms = t;
	return 0;
}

static unsigned bucket_of(const char *text) {
	uint32_t h = 2166136261u; // FNV-1a; ids are random, so nobody can aim at one bucket
	for (; *text != '\0'; text++)
		h = (h ^ (unsigned char)*text) * 16777619u;
	return h % BUCKETS;
}

struct microvm *microvm_new(struct engine *en, const struct store_microvm *record) {
	struct microvm *m = calloc(1, sizeof(*m));
	if (m == NULL)
		return NULL;
	m->en = en;
	m->references = 1;
	m->record = *record;
	m->ingress = run_ingress(record->config);
	m->state = STATE_PENDING;
	m->agent_fd = -1;
	m->slot = SLOT_NONE;
	m->app_log.fd = -1;
	STAILQ_INIT(&m->waiters);
	m->last_activity_ms = (int64_t)monotonic_ms();
	m->begun_ms = moment_of(record->started_ms);
	m->asleep_ms = moment_of(record->suspended_at_ms);
	pthread_mutex_init(&m->commit, NULL);
	pthread_mutex_init(&m->lock, NULL);
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&m->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	return m;
}

struct microvm *microvm_ref(struct microvm *m) {
	m->references++;
	return m;
}

void microvm_unref(struct microvm *m) {
	if (m == NULL || --m->references > 0)
		return;
	vmm_close(&m->slot.client);
	output_log_close(&m->app_log);
	store_microvm_clear(&m->record);
	pthread_mutex_destroy(&m->commit);
	pthread_mutex_destroy(&m->lock);
	pthread_cond_destroy(&m->changed);
	free(m);
}

void registry_add(struct microvm *m) {
	struct microvms *t = m->en->microvms;
	unsigned id = bucket_of(m->record.id), endpoint = bucket_of(m->record.endpoint);
	pthread_mutex_lock(&t->lock);
	microvm_ref(m);
	m->next_by_id = t->by_id[id];
	t->by_id[id] = m;
	m->next_by_endpoint = t->by_endpoint[endpoint];
	t->by_endpoint[endpoint] = m;
	pthread_mutex_unlock(&t->lock);
}

// The table's lock is held. Returns whether it was in the table.
static bool unlink_microvm(struct microvms *t, struct microvm *m) {
	bool found = false;
	for (struct microvm **p = &t->by_id[bucket_of(m->record.id)]; *p != NULL; p = &(*p)->next_by_id) {
		if (*p == m) {
			*p = m->next_by_id;
			found = true;
			break;
		}
	}
	for (struct microvm **p = &t->by_endpoint[bucket_of(m->record.endpoint)]; *p != NULL; p = &(*p)->next_by_endpoint) {
		if (*p == m) {
			*p = m->next_by_endpoint;
			break;
		}
	}
	return found;
}

void registry_remove(struct microvm *m) {
	struct microvms *t = m->en->microvms;
	timers_clear(&t->timers, &m->timer);
	pthread_mutex_lock(&t->lock);
	bool found = unlink_microvm(t, m);
	pthread_mutex_unlock(&t->lock);
	if (found)
		microvm_unref(m);
}

void registry_bury(struct microvm *m) {
	struct microvms *t = m->en->microvms;
	struct microvm *old = NULL;
	timers_clear(&t->timers, &m->timer);
	pthread_mutex_lock(&t->lock);
	if (t->newest_tombstone == NULL)
		t->oldest_tombstone = m;
	else
		t->newest_tombstone->next_tombstone = m;
	t->newest_tombstone = m;
	if (++t->tombstones > TOMBSTONES_MAX) {
		old = t->oldest_tombstone;
		t->oldest_tombstone = old->next_tombstone;
		t->tombstones--;
		unlink_microvm(t, old);
	}
	pthread_mutex_unlock(&t->lock);
	microvm_unref(old);
}

struct microvm *registry_find(struct engine *en, const char *id) {
	struct microvms *t = en->microvms;
	pthread_mutex_lock(&t->lock);
	struct microvm *m = t->by_id[bucket_of(id)];
	while (m != NULL && strcmp(m->record.id, id) != 0)
		m = m->next_by_id;
	if (m != NULL)
		microvm_ref(m);
	pthread_mutex_unlock(&t->lock);
	return m;
}

struct microvm *registry_find_endpoint(struct engine *en, const char *endpoint) {
	struct microvms *t = en->microvms;
	pthread_mutex_lock(&t->lock);
	struct microvm *m = t->by_endpoint[bucket_of(endpoint)];
	while (m != NULL && strcmp(m->record.endpoint, endpoint) != 0)
		m = m->next_by_endpoint;
	if (m != NULL)
		microvm_ref(m);
	pthread_mutex_unlock(&t->lock);
	return m;
}

size_t registry_all(struct engine *en, struct microvm ***ret) {
	struct microvms *t = en->microvms;
	pthread_mutex_lock(&t->lock);
	size_t n = 0, k = 0;
	for (size_t i = 0; i < BUCKETS; i++)
		for (const struct microvm *m = t->by_id[i]; m != NULL; m = m->next_by_id)
			n++;
	*ret = n == 0 ? NULL : malloc(n * sizeof(struct microvm *));
	for (size_t i = 0; i < BUCKETS && *ret != NULL; i++)
		for (struct microvm *m = t->by_id[i]; m != NULL; m = m->next_by_id)
			(*ret)[k++] = microvm_ref(m);
	pthread_mutex_unlock(&t->lock);
	return k;
}

void registry_free(struct engine *en) {
	struct microvms *t = en->microvms;
	struct microvm **all = NULL;
	size_t n = registry_all(en, &all);
	for (size_t i = 0; i < n; i++) {
		microvm_detach(all[i]);
		microvm_route_end(all[i]);
		registry_remove(all[i]);
		microvm_unref(all[i]);
	}
	free(all);
	timers_free(&t->timers);
	pthread_mutex_destroy(&t->lock);
	free(t);
	en->microvms = NULL;
}
