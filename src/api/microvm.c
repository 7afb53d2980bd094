// MicroVMs: RunMicrovm, GetMicrovm, ListMicrovms, SuspendMicrovm, ResumeMicrovm, TerminateMicrovm (spec sections 1.5 and 2.4).
#include "api/call.h"
#include "base/cleanup.h"
#include "microvms/microvms.h"

#include <stdio.h>
#include <string.h>

// Answers -----------------------------------------------------------------------------------------------------------------------------

// A bare host name, with the port where it is not HTTPS's own.
static json_t *endpoint_name(const struct config *c, const char *uuid) {
	if (c->edge_public_port == 443)
		return json_sprintf("%s.%s", uuid, c->edge_domain);
	return json_sprintf("%s.%s:%d", uuid, c->edge_domain, c->edge_public_port);
}

static json_t *microvm_item(const struct store_microvm *m) {
	json_t *o = json_object();
	json_object_set_new(o, "microvmId", json_string(m->id));
	json_object_set_new(o, "state", json_string(m->state));
	json_object_set_new(o, "imageArn", json_string(m->image_arn));
	json_object_set_new(o, "imageVersion", json_string(m->version));
	json_object_set_new(o, "startedAt", json_time(m->started_ms));
	return o;
}

static json_t *microvm_answer(const struct engine *en, const struct store_microvm *m) {
	cleanup_json json_t *config = json_stored(m->config);
	json_t *o = microvm_item(m), *policy = json_null();
	if (m->has_idle_policy)
		policy = json_pack("{s:I, s:I, s:b}", "maxIdleDurationSeconds", (json_int_t)m->max_idle_s, "suspendedDurationSeconds",
				   (json_int_t)m->suspended_s, "autoResumeEnabled", (int)m->auto_resume);
	json_object_set_new(o, "endpoint", endpoint_name(&en->config, m->endpoint));
	json_object_set_new(o, "maximumDurationInSeconds", json_integer(m->maximum_duration_s));
	json_object_set_new(o, "executionRoleArn", json_member_or_null(config, "executionRoleArn"));
	json_object_set_new(o, "idlePolicy", policy);
	json_object_set_new(o, "terminatedAt", json_time(m->terminated_ms));
	json_object_set_new(o, "stateReason", json_text_or_null(m->state_reason));
	json_object_set_new(o, "ingressNetworkConnectors", json_member_or_null(config, "ingressNetworkConnectors"));
	json_object_set_new(o, "egressNetworkConnectors", json_member_or_null(config, "egressNetworkConnectors"));
	json_object_set_new(o, "terminationReasonCode", json_null());
	return o;
}

static char *run_text(struct engine *en, const struct store_microvm *m) {
	cleanup_json json_t *answer = microvm_answer(en, m);
	return json_as_sent(answer);
}

// Run ---------------------------------------------------------------------------------------------------------------------------------

// The version that the call names, or the newest usable one. Whether it still can be launched is seen when the microVM is recorded.
static bool find_usable(struct call *c, struct store_image *image, struct store_version *version) {
	const char *arn = json_string_value(json_object_get(c->body, "imageIdentifier"));
	const char *wanted = json_string_value(json_object_get(c->body, "imageVersion"));
	struct error e = {0};
	// A missing image is reported in other words here than elsewhere.
	int r = store_get_image_by_arn(c->en->store, arn, image, &e);
	if (r == -ENOENT) {
		call_not_found(c, "No active version found for MicroVM image %s", arn);
		return false;
	}
	if (r >= 0) {
		char chosen[VERSION_TEXT];
		memcpy(chosen, image->latest_active_version, sizeof(chosen));
		if (wanted != NULL)
			normalise_version(wanted, chosen);
		r = store_get_version(c->en->store, image->uuid, chosen, version, &e);
		if (r == 0 && (strcmp(version->state, "SUCCESSFUL") != 0 || strcmp(version->status, "ACTIVE") != 0)) {
			store_version_clear(version);
			r = -ENOENT;
		}
		if (r < 0)
			store_image_clear(image);
	}
	if (r == -ENOENT)
		call_not_found(c, "No active version found for MicroVM image %s%s%.64s", arn, wanted == NULL ? "" : " and version ",
			       wanted == NULL ? "" : wanted);
	else if (r < 0)
		call_fail_with(c, &e);
	return r >= 0;
}

static bool has_run_hook(const struct store_version *v) {
	cleanup_json json_t *config = json_stored(v->config);
	const char *run = json_string_value(json_object_get(json_object_get(json_object_get(config, "hooks"), "microvmHooks"), "run"));
	return run != NULL && strcmp(run, "ENABLED") == 0;
}

// What GetMicrovm echoes. NULL: the call has failed.
static json_t *make_config(struct call *c, const struct store_version *v) {
	const json_t *ingress = json_object_get(c->body, "ingressNetworkConnectors"),
		     *egress = json_object_get(c->body, "egressNetworkConnectors");
	if (!check_connectors(c, ingress, CONNECTOR_INGRESS) || !check_connectors(c, egress, CONNECTOR_EGRESS))
		return NULL;
	json_t *config = json_object();
	cleanup_json json_t *of_image = json_stored(v->config);
	if (json_array_size(ingress) > 0)
		json_object_set_new(config, "ingressNetworkConnectors", json_deep_copy(ingress));
	else
		json_object_set_new(config, "ingressNetworkConnectors", default_connector(c, "HTTP_INGRESS"));
	if (json_array_size(egress) > 0)
		json_object_set_new(config, "egressNetworkConnectors", json_deep_copy(egress));
	else
		json_object_set_new(config, "egressNetworkConnectors", json_member_or_null(of_image, "egressNetworkConnectors"));
	for (size_t i = 0; i < 2; i++) {
		const char *name = i == 0 ? "executionRoleArn" : "logging";
		json_t *member = json_object_get(c->body, name);
		if (member != NULL && !json_is_null(member))
			json_object_set(config, name, member);
	}
	return config;
}

static void run_version(struct call *c, const struct store_image *image, const struct store_version *version, struct store_token *token) {
	const json_t *policy = json_object_get(c->body, "idlePolicy"), *maximum = json_object_get(c->body, "maximumDurationInSeconds");
	const char *payload = json_string_value(json_object_get(c->body, "runHookPayload"));
	if (payload != NULL && !has_run_hook(version)) {
		call_fail(c, 400, "ValidationException", "The run hook must be enabled in the MicroVM image to pass the run hook payload");
		return;
	}
	cleanup_json json_t *config = make_config(c, version);
	if (config == NULL)
		return;
	cleanup_free char *config_text = json_dumps(config, JSON_COMPACT);
	if (config_text == NULL) {
		call_fail(c, 500, "InternalServerException", "out of memory");
		return;
	}
	const struct microvm_run run = {
		.account = c->key.account,
		.image = image,
		.version = version,
		.maximum_duration_s = json_is_integer(maximum) ? json_integer_value(maximum) : 28800,
		.has_idle_policy = json_is_object(policy),
		.max_idle_s = json_integer_value(json_object_get(policy, "maxIdleDurationSeconds")),
		.suspended_s = json_integer_value(json_object_get(policy, "suspendedDurationSeconds")),
		.auto_resume = json_is_true(json_object_get(policy, "autoResumeEnabled")),
		.run_hook_payload = payload,
		.config = config_text,
		.token = token,
		.answer = run_text,
	};
	struct store_microvm m;
	struct error e = {0};
	if (microvm_run(c->en, &run, &m, &e) < 0) {
		call_fail_with(c, &e);
		return;
	}
	call_answer(c, 200, microvm_answer(c->en, &m));
	store_microvm_clear(&m);
}

// Before anything else is said about it: that the image is named as it must be, and whose it is.
static bool is_permitted(struct call *c) {
	const char *arn = json_string_value(json_object_get(c->body, "imageIdentifier"));
	if (strncmp(arn, "arn:", 4) == 0)
		return is_own_image_arn(c, arn);
	call_fail(c, 400, "ValidationException", "Malformed ARN - doesn't start with 'arn:'");
	return false;
}

void run_microvm(struct call *c) {
	cleanup_idempotency once = {.lock = NULL};
	struct store_image image;
	struct store_version version;
	if (!call_check_body(c, &shape_run) || !is_permitted(c) || !idempotency_begin(c, 200, &once) || !find_usable(c, &image, &version))
		return;
	run_version(c, &image, &version, once.token);
	store_image_clear(&image);
	store_version_clear(&version);
}

// Get, list ---------------------------------------------------------------------------------------------------------------------------

void get_microvm(struct call *c) {
	struct store_microvm m;
	if (!find_microvm(c, c->labels[0], &m))
		return;
	call_answer(c, 200, microvm_answer(c->en, &m));
	store_microvm_clear(&m);
}

static int add_microvm(const struct store_microvm *m, void *arg) {
	json_array_append_new(arg, microvm_item(m));
	return 0;
}

void list_microvms(struct call *c) {
	struct call_page page;
	bool failed = false;
	if (!call_page(c, &page))
		return;
	cleanup_free char *arn = call_query(c, "imageIdentifier", &failed);
	if (failed)
		return;
	cleanup_free char *version = call_query(c, "imageVersion", &failed);
	if (failed)
		return;
	char normal[VERSION_TEXT] = "", next[STORE_CURSOR_MAX];
	if (version != NULL)
		normalise_version(version, normal);
	if (arn != NULL) {
		struct store_image i;
		if (!find_image(c, arn, &i))
			return;
		store_image_clear(&i);
	}
	const struct store_microvm_filter filter = {
		.account = c->key.account, .image_arn = arn, .version = version == NULL ? NULL : normal};
	json_t *items = json_array();
	struct error e = {0};
	if (store_list_microvms(c->en->store, &filter, page.after, page.limit, add_microvm, items, next, &e) < 0) {
		json_decref(items);
		call_fail_with(c, &e);
		return;
	}
	call_answer_page(c, items, next);
}

// Suspend, resume, terminate ------------------------------------------------------------------------------------------------------------

static bool is_mine(struct call *c) {
	struct store_microvm m;
	if (!find_microvm(c, c->labels[0], &m))
		return false;
	store_microvm_clear(&m);
	return true;
}

static void answer_change(struct call *c, int r, const struct error *e) {
	if (r < 0)
		call_fail_with(c, e);
	else
		call_answer(c, 200, json_object());
}

void suspend_microvm(struct call *c) {
	struct error e = {0};
	if (is_mine(c))
		answer_change(c, microvm_suspend(c->en, c->labels[0], "", &e), &e);
}

void resume_microvm(struct call *c) {
	struct error e = {0};
	if (is_mine(c))
		answer_change(c, microvm_resume(c->en, c->labels[0], &e), &e);
}

void terminate_microvm(struct call *c) {
	struct error e = {0};
	if (is_mine(c))
		answer_change(c, microvm_terminate(c->en, c->labels[0], "Success.", &e), &e);
}
