// The states of network connectors (spec section 7.3): PENDING → ACTIVE | FAILED, ACTIVE ↔ INACTIVE, DELETING → gone.
//
// An operation records what is asked for and answers; what follows from it is found out here, on a worker, and at every start for what a
// crash left. A connector stands for networks that the operator configured ("networks"): FAILED names one that is not there. When a network
// leaves the configuration, its connectors become INACTIVE at the next start, and ACTIVE again when it is back.
#include "api/connector.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t changes = PTHREAD_MUTEX_INITIALIZER;

pthread_mutex_t *connectors_lock(void) {
	pthread_mutex_lock(&changes);
	return &changes;
}

void connectors_unlock(pthread_mutex_t **m) {
	pthread_mutex_unlock(*m);
}

// Whether all subnets are configured; writes which one is not to `reason`.
static bool subnets_exist(const struct engine *en, const json_t *config, char reason[REASON_MAX]) {
	cleanup_json json_t *networks = json_loads(en->config.networks, 0, NULL);
	const json_t *subnets =
		json_object_get(json_object_get(json_object_get(config, "Configuration"), "VpcEgressConfiguration"), "SubnetIds");
	for (size_t i = 0; i < json_array_size(subnets); i++) {
		const char *id = json_string_value(json_array_get(subnets, i));
		if (json_object_get(networks, id) != NULL)
			continue;
		snprintf(reason, REASON_MAX,
			 "The subnet %.200s does not exist: the engine's configuration names none of that name (\"networks\").", id);
		return false;
	}
	return true;
}

#define SET(field, text) snprintf((field), sizeof(field), "%s", (text))

static void finish_update(const struct engine *en, struct store_connector *c) {
	cleanup_json json_t *next = json_loads(c->pending, 0, NULL);
	char reason[REASON_MAX] = "";
	if (subnets_exist(en, next, reason)) {
		free(c->config);
		c->config = c->pending;
		c->version++;
		SET(c->update_status, "Successful");
	} else {
		free(c->pending);
		SET(c->update_status, "Failed");
		SET(c->update_code, "InvalidSubnet");
	}
	SET(c->update_reason, reason);
	c->pending = NULL;
	c->modified_ms = (int64_t)realtime_ms();
}

static void set_state(struct store_connector *c, const char *state, const char *reason, const char *code) {
	SET(c->state, state);
	SET(c->state_reason, reason);
	SET(c->state_code, code);
}

// Makes the next step in memory. Returns whether there was one.
static bool step(const struct engine *en, struct store_connector *c) {
	char reason[REASON_MAX] = "";
	if (c->pending != NULL) {
		finish_update(en, c);
		return true;
	}
	cleanup_json json_t *config = json_loads(c->config, 0, NULL);
	bool exist = subnets_exist(en, config, reason);
	if (strcmp(c->state, "PENDING") == 0) {
		if (exist)
			SET(c->state, "ACTIVE");
		else
			set_state(c, "FAILED", reason, "InvalidSubnet");
		return true;
	}
	if (strcmp(c->state, "ACTIVE") == 0 && !exist) {
		set_state(c, "INACTIVE", reason, "InvalidSubnet");
		return true;
	}
	if (strcmp(c->state, "INACTIVE") == 0 && exist) {
		set_state(c, "ACTIVE", "", "");
		return true;
	}
	return false;
}

static void settle(struct engine *en, const char *account, const char *id) {
	struct store_connector c;
	struct error e;
	LOCK_CONNECTORS;
	int r = store_get_connector(en->store, account, id, &c, &e);
	if (r == 0) {
		bool gone = strcmp(c.state, "DELETING") == 0, changed = gone || step(en, &c);
		if (gone)
			r = store_bury_connector(en->store, &c, (int64_t)realtime_ms(), &e);
		else if (changed)
			r = store_update_connector(en->store, &c, NULL, &e);
		if (r == 0 && changed)
			log_info("connector.state", LOG_S("arn", c.arn), LOG_S("state", gone ? "DELETED" : c.state),
				 LOG_S("reason", c.state_reason));
		store_connector_clear(&c);
	}
	// It is tried again at the next start.
	if (r < 0)
		log_error("connector.state", LOG_S("id", id), LOG_S("message", e.message));
}

struct job {
	struct engine *en;
	char account[13], id[CONNECTOR_ID_MAX];
};

static void run_job(void *arg) {
	cleanup_free struct job *job = arg;
	settle(job->en, job->account, job->id);
}

void connector_settle_later(struct engine *en, const struct store_connector *c) {
	struct job *job = malloc(sizeof(*job));
	if (job != NULL) {
		job->en = en;
		memcpy(job->account, c->account, sizeof(job->account));
		memcpy(job->id, c->id, sizeof(job->id));
	}
	if (job != NULL && worker_submit(run_job, job) == 0)
		return;
	free(job);
	// The caller holds the lock: it waits for the next start.
	log_error("connector.state", LOG_S("id", c->id), LOG_S("message", "no thread or memory is free to go on with it"));
}

static int settle_each(const struct store_connector *c, void *arg) {
	settle(arg, c->account, c->id);
	return 0;
}

static void settle_all(void *arg) {
	struct engine *en = arg;
	char next[STORE_CURSOR_MAX] = "", after[STORE_CURSOR_MAX] = "";
	struct error e;
	do {
		memcpy(after, next, sizeof(after));
		if (store_list_connectors(en->store, NULL, NULL, after, 100, settle_each, en, next, &e) < 0) {
			log_error("connector.start", LOG_S("message", e.message));
			return;
		}
	} while (next[0] != '\0');
}

void connectors_start(struct engine *en) {
	if (worker_submit(settle_all, en) < 0)
		log_error("connector.start", LOG_S("message", "no thread is free to look at the network connectors"));
}
