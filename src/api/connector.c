// Network connectors: CreateNetworkConnector, GetNetworkConnector, ListNetworkConnectors, UpdateNetworkConnector, DeleteNetworkConnector of
// lambda-core (spec section 7.3). Members begin with a capital, times are ISO 8601, absent members are omitted.
#include "api/connector.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/uuid.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CONNECTORS_MAX 100 // of an account
#define IDENTIFIER_MAX 140

#define SET(field, text) snprintf((field), sizeof(field), "%s", (text))

// Answers -----------------------------------------------------------------------------------------------------------------------------

static json_t *iso_time(int64_t ms) {
	char text[32];
	time_t seconds = (time_t)(ms / 1000);
	struct tm tm;
	size_t n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", gmtime_r(&seconds, &tm));
	snprintf(text + n, sizeof(text) - n, ".%03dZ", (int)(ms % 1000));
	return json_string(text);
}

static void set_text(json_t *o, const char *name, const char *text) {
	if (text[0] != '\0')
		json_object_set_new(o, name, json_string(text));
}

static json_t *base_answer(const struct store_connector *k, const json_t *config, const char *state) {
	json_t *o = json_object();
	set_text(o, "Arn", k->arn);
	set_text(o, "Name", k->name);
	set_text(o, "Id", k->id);
	json_object_set(o, "Configuration", json_object_get(config, "Configuration"));
	json_object_set(o, "OperatorRole", json_object_get(config, "OperatorRole"));
	set_text(o, "State", state);
	return o;
}

static void add_update(json_t *o, const struct store_connector *k) {
	json_object_set_new(o, "LastModified", iso_time(k->modified_ms));
	set_text(o, "LastUpdateStatus", k->update_status);
	set_text(o, "LastUpdateStatusReason", k->update_reason);
	set_text(o, "LastUpdateStatusReasonCode", k->update_code);
}

// Keeps the answer with the token, so that it can be given again. False: out of memory.
static bool remember_answer(struct store_token *token, const json_t *answer) {
	if (token == NULL)
		return true;
	token->answer = json_as_sent(answer);
	return token->answer != NULL;
}

// Finding -----------------------------------------------------------------------------------------------------------------------------

// From "network-connector:<id or name>[:<version>]" to its parts. The version is 0 when there is none.
static bool split_resource(const char *resource, char name[NAME_MAX_BYTES], long *version) {
	*version = 0;
	if (strncmp(resource, "network-connector:", 18) != 0)
		return false;
	size_t n = strcspn(resource + 18, ":");
	if (n == 0 || n >= NAME_MAX_BYTES)
		return false;
	memcpy(name, resource + 18, n);
	name[n] = '\0';
	const char *rest = resource + 18 + n;
	if (*rest == '\0')
		return is_image_name(name);
	size_t digits = strspn(rest + 1, "0123456789");
	*version = strtol(rest + 1, NULL, 10);
	return is_image_name(name) && digits > 0 && digits < 10 && rest[1 + digits] == '\0' && *version > 0;
}

static bool read_identifier(struct call *c, const char *text, char name[NAME_MAX_BYTES], long *version) {
	struct arn arn = {.region = ""};
	bool is_arn = parse_arn(text, &arn);
	*version = 0;
	if (strlen(text) > IDENTIFIER_MAX ||
	    (is_arn ? !split_resource(arn.resource, name, version) : !is_image_name(text) || strlen(text) >= NAME_MAX_BYTES)) {
		call_fail(c, 400, "ValidationException", "Invalid network connector identifier: %.200s is no id, name or ARN of one", text);
		return false;
	}
	if (is_arn && strcmp(arn.account, c->key.account) != 0) {
		call_fail(c, 403, "AccessDeniedException",
			  "User: arn:aws:iam::%s:root is not authorized to perform: lambda:%s on resource: %s", c->key.account,
			  c->operation, text);
		return false;
	}
	if (!is_arn)
		memcpy(name, text, strlen(text) + 1);
	return true;
}

bool find_connector_ever(struct call *c, const char *text, struct store_connector *ret) {
	char name[NAME_MAX_BYTES];
	long version;
	struct error e = {0};
	if (!read_identifier(c, text, name, &version))
		return false;
	int r = store_get_connector(c->en->store, c->key.account, name, ret, &e);
	if (r == -ENOENT)
		r = store_get_connector_by_name(c->en->store, c->key.account, name, ret, &e);
	if (r == 0 && version != 0 && version != ret->version) {
		store_connector_clear(ret);
		r = -ENOENT;
	}
	if (r == -ENOENT)
		call_not_found(c, "Network connector not found: %.200s", text);
	else if (r < 0)
		call_fail_with(c, &e);
	return r == 0;
}

bool find_connector(struct call *c, const char *text, struct store_connector *ret) {
	if (!find_connector_ever(c, text, ret))
		return false;
	if (strcmp(ret->state, "DELETED") != 0)
		return true;
	store_connector_clear(ret);
	call_not_found(c, "Network connector not found: %.200s", text);
	return false;
}

// Create ------------------------------------------------------------------------------------------------------------------------------

static bool require(struct call *c, const json_t *object, const char *name) {
	const json_t *value = json_object_get(object, name);
	if (value != NULL && !json_is_null(value))
		return true;
	call_fail(c, 400, "ValidationException", "%s is a required field", name);
	return false;
}

// What the service wants although its model does not.
static bool check_configuration(struct call *c) {
	const json_t *vpc = json_object_get(json_object_get(c->body, "Configuration"), "VpcEgressConfiguration");
	return require(c, vpc, "NetworkProtocol") && require(c, vpc, "AssociatedComputeResourceTypes");
}

static void fill(struct call *c, struct store_connector *k) {
	char uuid[UUID_TEXT];
	*k = (struct store_connector){.version = 1, .created_ms = (int64_t)realtime_ms()};
	k->modified_ms = k->created_ms;
	uuid_new(uuid);
	snprintf(k->id, sizeof(k->id), "nc-%s", uuid);
	SET(k->account, c->key.account);
	SET(k->name, json_string_value(json_object_get(c->body, "Name")));
	snprintf(k->arn, sizeof(k->arn), "arn:aws:lambda:%s:%s:network-connector:%s", c->en->config.region, k->account, k->id);
	SET(k->state, "PENDING");
	SET(k->state_reason, "Initial creation");
}

static int record(struct call *c, struct store_connector *k, struct store_token *token, const json_t *answer, struct error *e) {
	const json_t *tags = json_object_get(c->body, "Tags");
	cleanup_json json_t *config = json_pack("{s:O, s:O}", "Configuration", json_object_get(c->body, "Configuration"), "OperatorRole",
						json_object_get(c->body, "OperatorRole"));
	k->config = json_dumps(config, JSON_COMPACT);
	k->tags = json_is_object(tags) ? json_dumps(tags, JSON_COMPACT) : strdup("{}");
	if (k->config == NULL || k->tags == NULL || !remember_answer(token, answer))
		return error_set(e, -ENOMEM, "out of memory");
	return store_add_connector(c->en->store, k, CONNECTORS_MAX, token, e);
}

static void create(struct call *c, struct store_token *token) {
	struct store_connector k;
	struct error e = {0};
	fill(c, &k);
	json_t *answer = base_answer(&k, c->body, "PENDING");
	int r = record(c, &k, token, answer, &e);
	if (r == 0) {
		call_answer(c, 202, json_incref(answer));
		connector_settle_later(c->en, &k);
	} else if (r == -EEXIST) {
		call_fail(c, 409, "ConflictException", "A network connector with the name '%s' already exists in this account", k.name);
	} else if (r == -EDQUOT && e.name[0] == '\0') {
		call_fail(c, 400, "NetworkConnectorLimitExceededException",
			  "The limit of %d network connectors has been reached for this account.", CONNECTORS_MAX);
	} else {
		call_fail_with(c, &e);
	}
	json_decref(answer);
	store_connector_clear(&k);
}

void create_connector(struct call *c) {
	cleanup_idempotency once = {.lock = NULL};
	if (!call_check_body(c, &shape_create_connector) || !require(c, c->body, "ClientToken") || !require(c, c->body, "OperatorRole") ||
	    !check_configuration(c) || !check_tag_keys(c, json_object_get(c->body, "Tags")) || !idempotency_begin(c, 202, &once))
		return;
	LOCK_CONNECTORS;
	create(c, once.token);
}

// Get, list ---------------------------------------------------------------------------------------------------------------------------

void get_connector(struct call *c) {
	struct store_connector k;
	if (!find_connector(c, c->labels[0], &k))
		return;
	cleanup_json json_t *config = json_stored(k.config);
	json_t *o = base_answer(&k, config, k.state);
	json_object_set_new(o, "Version", json_integer(k.version));
	set_text(o, "StateReason", k.state_reason);
	set_text(o, "StateReasonCode", k.state_code);
	add_update(o, &k);
	store_connector_clear(&k);
	call_answer(c, 200, o);
}

static int add_item(const struct store_connector *k, void *arg) {
	json_array_append_new(arg, json_pack("{s:s, s:s, s:s, s:s, s:s, s:o}", "Arn", k->arn, "Name", k->name, "Id", k->id, "Type",
					     "VPC_EGRESS", "State", k->state, "LastModified", iso_time(k->modified_ms)));
	return 0;
}

static bool check_state(struct call *c, const char *state) {
	static const char *const states[] = {"PENDING", "ACTIVE", "INACTIVE", "FAILED", "DELETING", "DELETE_FAILED"};
	for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++)
		if (strcmp(states[i], state) == 0)
			return true;
	violation_add(&c->wrong, state, "state", "satisfy enum value set: [PENDING, ACTIVE, INACTIVE, FAILED, DELETING, DELETE_FAILED]");
	return !call_fail_for_violations(c);
}

void list_connectors(struct call *c) {
	struct call_page page;
	bool failed = false;
	if (!call_core_page(c, &page))
		return;
	cleanup_free char *state = call_query(c, "State", &failed);
	if (failed || (state != NULL && !check_state(c, state)))
		return;
	json_t *items = json_array();
	char next[STORE_CURSOR_MAX];
	struct error e = {0};
	if (store_list_connectors(c->en->store, c->key.account, state, page.after, page.limit, add_item, items, next, &e) < 0) {
		json_decref(items);
		call_fail_with(c, &e);
		return;
	}
	call_answer_core_page(c, "NetworkConnectors", items, next);
}

// Update ------------------------------------------------------------------------------------------------------------------------------

static json_t *update_answer(const struct store_connector *k, const json_t *config) {
	json_t *o = base_answer(k, config, k->state);
	add_update(o, k);
	return o;
}

// The configuration that the call asks for.
static json_t *wanted_config(const struct call *c, json_t *now) {
	static const char *const members[] = {"Configuration", "OperatorRole"};
	json_t *wanted = json_copy(now);
	for (size_t i = 0; i < 2; i++) {
		json_t *given = json_object_get(c->body, members[i]);
		if (given != NULL && !json_is_null(given))
			json_object_set(wanted, members[i], given);
	}
	return wanted;
}

static void update(struct call *c, struct store_connector *k, struct store_token *token) {
	struct error e = {0};
	if (strcmp(k->state, "ACTIVE") != 0 || k->pending != NULL) {
		call_fail(c, 409, "ConflictException", "Network connector %s cannot be updated: %s", k->arn,
			  k->pending != NULL ? "its last update is in progress" : "it is not ACTIVE");
		return;
	}
	cleanup_json json_t *now = json_stored(k->config);
	cleanup_json json_t *wanted = wanted_config(c, now);
	bool changes = json_equal(now, wanted) == 0;
	if (changes) {
		k->pending = json_dumps(wanted, JSON_COMPACT);
		k->modified_ms = (int64_t)realtime_ms();
	}
	SET(k->update_status, changes ? "InProgress" : "Successful");
	SET(k->update_reason, changes ? "" : "No configuration changes detected");
	SET(k->update_code, "");
	cleanup_json json_t *answer = update_answer(k, now);
	if ((changes && k->pending == NULL) || !remember_answer(token, answer)) {
		call_fail(c, 500, "InternalServerException", "out of memory");
		return;
	}
	if (store_update_connector(c->en->store, k, token, &e) < 0) {
		call_fail_with(c, &e);
		return;
	}
	call_answer(c, 202, json_incref(answer));
	if (changes)
		connector_settle_later(c->en, k);
}

void update_connector(struct call *c) {
	cleanup_idempotency once = {.lock = NULL};
	struct store_connector k;
	if (!call_check_body(c, &shape_update_connector))
		return;
	const json_t *given = json_object_get(c->body, "Configuration");
	if ((given != NULL && !json_is_null(given) && !check_configuration(c)) || !idempotency_begin(c, 202, &once))
		return;
	LOCK_CONNECTORS;
	if (!find_connector(c, c->labels[0], &k))
		return;
	update(c, &k, once.token);
	store_connector_clear(&k);
}

// Delete ------------------------------------------------------------------------------------------------------------------------------

static void answer_delete(struct call *c, const struct store_connector *k) {
	cleanup_json json_t *config = json_stored(k->config);
	call_answer(c, 202, base_answer(k, config, "DELETING"));
}

// What is being deleted, or was, is deleted again.
static void start_delete(struct call *c, const struct store_connector *k) {
	struct error e = {0};
	bool before = strcmp(k->state, "DELETING") == 0 || strcmp(k->state, "DELETED") == 0;
	if (!before && (strcmp(k->state, "PENDING") == 0 || k->pending != NULL)) {
		call_fail(c, 409, "ConflictException", "Network connector %s cannot be deleted now: it is being %s", k->arn,
			  k->pending != NULL ? "updated" : "created");
		return;
	}
	int r = before ? 0 : store_delete_connector(c->en->store, k, &e);
	if (r == -EBUSY)
		call_fail(c, 409, "ConflictException", "%s", e.message);
	else if (r < 0)
		call_fail_with(c, &e);
	else
		answer_delete(c, k);
	if (r == 0 && !before)
		connector_settle_later(c->en, k);
}

void delete_connector(struct call *c) {
	struct store_connector k;
	LOCK_CONNECTORS;
	if (!find_connector_ever(c, c->labels[0], &k))
		return;
	start_delete(c, &k);
	store_connector_clear(&k);
}
