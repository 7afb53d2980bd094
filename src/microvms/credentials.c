// Temporary credentials of microVMs with an execution role: made here, handed to the guest agent, which serves them to the guest (IMDSv2), and made
// anew before they expire.
//
// The guest gets them with the `resume` that lets its workload go: on run always, after a sleep or a restart of stasisd unless it has some that are
// good for a while. While it runs, its timer (idle.c) says when the next are due.
#include "microvms/lifecycle.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define LIFE_MS (INT64_C(55) * 60000) // as the service has it (spec section 8)
#define RENEWED_AFTER_MS (INT64_C(45) * 60000)
#define AGAIN_MS 60000 // after the guest did not take them

static bool has_role(const struct microvm *m) {
	cleanup_json json_t *config = json_loads(m->record.config == NULL ? "{}" : m->record.config, 0, NULL);
	return json_is_string(json_object_get(config, "executionRoleArn"));
}

static void format(int64_t ms, char to[32]) {
	time_t at = (time_t)(ms / 1000);
	struct tm tm;
	strftime(to, 32, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&at, &tm));
}

// NULL: *e is set.
static json_t *new_credentials(struct microvm *m, struct error *e) {
	struct store_session s;
	char token[SESSION_TOKEN_ROOM], updated[32], expiration[32];
	int64_t now = (int64_t)realtime_ms();
	if (store_mint_session(m->en->store, m->record.id, now + LIFE_MS, &s, token, e) < 0)
		return NULL;
	format(now, updated);
	format(now + LIFE_MS, expiration);
	json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s}", "accessKeyId", s.key_id, "secretAccessKey", s.secret, "token", token,
			      "lastUpdated", updated, "expiration", expiration);
	explicit_bzero(&s, sizeof(s));
	if (o == NULL)
		error_set(e, -ENOMEM, "out of memory making credentials");
	return o;
}

static void set_due(struct microvm *m, int64_t after_ms) {
	pthread_mutex_lock(&m->lock);
	m->credentials_due_ms = (int64_t)monotonic_ms() + after_ms;
	pthread_mutex_unlock(&m->lock);
}

int microvm_send_resume(struct microvm *m, struct agent *a, bool clone, struct error *e) {
	json_t *request = agent_resume_request(clone, m->record.id);
	pthread_mutex_lock(&m->lock);
	bool fresh = !clone && m->credentials_due_ms > (int64_t)monotonic_ms();
	pthread_mutex_unlock(&m->lock);
	if (request != NULL && !fresh && has_role(m)) {
		json_t *credentials = new_credentials(m, e);
		if (credentials == NULL) {
			json_decref(request);
			return e->code;
		}
		json_object_set_new(request, "credentials", credentials);
		set_due(m, RENEWED_AFTER_MS);
	}
	return agent_send(a, request, e);
}

void microvm_forget_credentials(struct microvm *m) {
	pthread_mutex_lock(&m->lock);
	m->credentials_due_ms = 0;
	pthread_mutex_unlock(&m->lock);
}

static int renew(struct microvm *m, struct error *e) {
	struct agent a = {.fd = -1};
	json_t *credentials = new_credentials(m, e);
	if (credentials == NULL)
		return e->code;
	int r = microvm_agent_open(m, &a, e);
	if (r == 0)
		r = agent_call(&a, json_pack("{s:s, s:o}", "op", "credentials", "credentials", credentials), AGENT_REPLY_MS, NULL, e);
	else
		json_decref(credentials);
	microvm_agent_close(m, &a);
	return r;
}

void microvm_renew_credentials(struct microvm *m) {
	struct error e = {0};
	microvm_begin(m);
	if (microvm_state_now(m) == STATE_RUNNING) {
		int r = renew(m, &e);
		if (r < 0)
			log_warn("microvm.credentials", LOG_S("microvmId", m->record.id), LOG_S("message", e.message));
		set_due(m, r < 0 ? AGAIN_MS : RENEWED_AFTER_MS);
	}
	microvm_end(m);
	microvm_schedule(m);
}
