// The operator's calls about access, below /_stasis/: keys and roles (docs/access.md). A key's secret is in the answer to the call that made it, and
// in no other.
#include "api/call.h"
#include "api/policy.h"
#include "base/base64.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

#define NAME_PATTERN "letters, digits and _+=,.@-, 64 at most"

// Reading -----------------------------------------------------------------------------------------------------------------------------

// Whether all members of the body are among the known ones (NULL-terminated). False: failed and answered.
static bool knows_members(struct call *c, const char *const *known) {
	const char *name;
	json_t *value;
	if (c->body == NULL)
		c->body = json_object();
	json_object_foreach(c->body, name, value) {
		const char *const *k = known;
		while (*k != NULL && strcmp(*k, name) != 0)
			k++;
		if (*k == NULL) {
			call_fail(c, 400, "ValidationException", "Unknown member '%.64s'", name);
			return false;
		}
	}
	return true;
}

static bool take(struct call *c, int r, const struct error *e) {
	if (r < 0)
		call_fail(c, 400, "ValidationException", "%s", e->message);
	return r >= 0;
}

static bool is_key_name(const char *s) {
	return strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+=,.@-") == strlen(s);
}

// Fills what the body says about a key; what it does not say stays as it is. False: failed and answered.
static bool take_key(struct call *c, struct store_key *k) {
	const char *account = k->account, *name = k->name;
	const json_t *policy = NULL;
	bool operators = false;
	struct error e = {0};
	if (!take(c, member_string(c->body, "account", MEMBER_OPTIONAL, 12, &account, &e), &e) ||
	    !take(c, member_string(c->body, "name", MEMBER_OPTIONAL, 64, &name, &e), &e) ||
	    !take(c, member_bool(c->body, "operator", MEMBER_OPTIONAL, &operators, &e), &e) ||
	    !take(c, member_object(c->body, "policy", MEMBER_OPTIONAL, &policy, &e), &e) ||
	    (policy != NULL && !take(c, policy_check(policy, &e), &e)))
		return false;
	if (strlen(account) != 12 || strspn(account, "0123456789") != 12 || !is_key_name(name)) {
		call_fail(c, 400, "ValidationException", "account must be twelve digits, and name may have " NAME_PATTERN);
		return false;
	}
	memmove(k->account, account, strlen(account) + 1);
	memmove(k->name, name, strlen(name) + 1);
	if (operators && policy != NULL) {
		call_fail(c, 400, "ValidationException",
			  "operator and policy exclude each other: an operator's key may do everything; or name stasis: actions in the "
			  "policy");
		return false;
	}
	if (!operators && policy == NULL)
		return true;
	char *text = operators ? strdup(POLICY_EVERYTHING) : json_dumps(policy, JSON_COMPACT);
	if (text == NULL || strlen(text) > POLICY_MAX) {
		free(text);
		call_fail(c, 400, "ValidationException", "The policy is longer than %d bytes", POLICY_MAX);
		return false;
	}
	free(k->policy);
	k->policy = text;
	return true;
}

static bool find_key(struct call *c, struct store_key *ret) {
	struct error e = {0};
	int r = store_get_key(c->en->store, c->labels[0], ret, &e);
	if (r == -ENOENT)
		call_not_found(c, "Access key not found: %.128s", c->labels[0]);
	else if (r < 0)
		call_fail_with(c, &e);
	return r == 0;
}

// The same of one that may be changed.
static bool find_own_key(struct call *c, struct store_key *ret) {
	if (!find_key(c, ret))
		return false;
	if (!ret->configured && strcmp(ret->id, c->key.id) != 0)
		return true;
	call_fail(c, 409, "ConflictException",
		  ret->configured ? "The access key %s comes from the configuration: change it there and start the engine anew"
				  : "The access key %s signs this very call: use another one to change it",
		  ret->id);
	store_key_clear(ret);
	return false;
}

static bool fails(struct call *c, int r, const struct error *e) {
	if (r == -ENOSPC)
		call_fail(c, 402, "ServiceQuotaExceededException", "%s", e->message);
	else if (r < 0)
		call_fail_with(c, e);
	return r < 0;
}

// Answers -----------------------------------------------------------------------------------------------------------------------------

static json_t *key_item(const struct store_key *k) {
	json_t *o = json_object();
	json_object_set_new(o, "accessKeyId", json_string(k->id));
	json_object_set_new(o, "account", json_string(k->account));
	json_object_set_new(o, "name", json_string(k->name));
	json_object_set_new(o, "enabled", json_boolean(!k->disabled));
	json_object_set_new(o, "configured", json_boolean(k->configured));
	json_object_set_new(o, "createdAt", json_time(k->created_ms));
	return o;
}

static json_t *with_policy(json_t *o, const char *text) {
	json_t *policy = json_loads(text == NULL ? "" : text, 0, NULL);
	json_object_set_new(o, "policy", policy == NULL ? json_null() : policy);
	return o;
}

static int add_key(const struct store_key *k, void *arg) {
	return json_array_append_new(arg, key_item(k)) < 0 ? -ENOMEM : 0;
}

// Keys --------------------------------------------------------------------------------------------------------------------------------

void operator_list_keys(struct call *c) {
	json_t *items = json_array();
	struct error e = {0};
	if (fails(c, store_list_keys(c->en->store, NULL, STORE_KEYS_MAX, add_key, items, &e), &e))
		json_decref(items);
	else
		call_answer(c, 200, json_pack("{s:o}", "items", items));
}

void operator_get_key(struct call *c) {
	struct store_key k;
	if (!find_key(c, &k))
		return;
	call_answer(c, 200, with_policy(key_item(&k), k.policy));
	store_key_clear(&k);
}

static bool make_key(struct store_key *k) {
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
	unsigned char bytes[16], secret[30];
	if (RAND_bytes(bytes, sizeof(bytes)) != 1 || RAND_bytes(secret, sizeof(secret)) != 1)
		return false;
	memcpy(k->id, "AKIA", 4);
	for (size_t i = 0; i < sizeof(bytes); i++)
		k->id[4 + i] = letters[bytes[i] % 32];
	base64_encode(k->secret, secret, sizeof(secret));
	explicit_bzero(secret, sizeof(secret));
	return true;
}

void operator_create_key(struct call *c) {
	static const char *const known[] = {"account", "name", "operator", "policy", NULL};
	struct store_key k = {.created_ms = (int64_t)realtime_ms(), .policy = strdup(POLICY_ACCOUNT)};
	struct error e = {0};
	snprintf(k.account, sizeof(k.account), "%s", c->en->config.account);
	if (!knows_members(c, known) || !take_key(c, &k)) {
		store_key_clear(&k);
		return;
	}
	int r = k.policy == NULL || !make_key(&k) ? error_set(&e, -ENOMEM, "no key could be made") : store_put_key(c->en->store, &k, &e);
	if (!fails(c, r, &e)) {
		json_t *o = with_policy(key_item(&k), k.policy);
		json_object_set_new(o, "secretAccessKey", json_string(k.secret));
		log_info("access.key.created", LOG_S("key", k.id), LOG_S("account", k.account), LOG_S("by", c->principal));
		call_answer(c, 201, o);
	}
	store_key_clear(&k);
}

void operator_update_key(struct call *c) {
	static const char *const known[] = {"name", "enabled", "operator", "policy", NULL};
	struct store_key k;
	struct error e = {0};
	if (!knows_members(c, known) || !find_own_key(c, &k))
		return;
	bool enabled = !k.disabled;
	if (take(c, member_bool(c->body, "enabled", MEMBER_OPTIONAL, &enabled, &e), &e) && take_key(c, &k)) {
		k.disabled = !enabled;
		if (!fails(c, store_put_key(c->en->store, &k, &e), &e)) {
			log_info("access.key.changed", LOG_S("key", k.id), LOG_S("enabled", enabled ? "true" : "false"),
				 LOG_S("by", c->principal));
			call_answer(c, 200, with_policy(key_item(&k), k.policy));
		}
	}
	store_key_clear(&k);
}

void operator_delete_key(struct call *c) {
	struct store_key k;
	struct error e = {0};
	if (!find_own_key(c, &k))
		return;
	int r = store_delete_key(c->en->store, k.id, &e);
	if (!fails(c, r == -ENOENT ? 0 : r, &e)) {
		log_info("access.key.removed", LOG_S("key", k.id), LOG_S("by", c->principal));
		call_answer(c, 200, json_object());
	}
	store_key_clear(&k);
}

// Roles -------------------------------------------------------------------------------------------------------------------------------

static json_t *role_item(const struct store_role *r) {
	json_t *o = json_object();
	json_object_set_new(o, "roleArn", json_string(r->arn));
	json_object_set_new(o, "configured", json_boolean(r->configured));
	json_object_set_new(o, "createdAt", json_time(r->created_ms));
	return o;
}

static int add_role(const struct store_role *r, void *arg) {
	return json_array_append_new(arg, role_item(r)) < 0 ? -ENOMEM : 0;
}

void operator_list_roles(struct call *c) {
	json_t *items = json_array();
	struct error e = {0};
	if (fails(c, store_list_roles(c->en->store, NULL, STORE_ROLES_MAX, add_role, items, &e), &e))
		json_decref(items);
	else
		call_answer(c, 200, json_pack("{s:o}", "items", items));
}

static bool find_role(struct call *c, struct store_role *ret) {
	struct error e = {0};
	int r = store_get_role(c->en->store, c->labels[0], ret, &e);
	if (r == -ENOENT)
		call_not_found(c, "Role not found: %.255s", c->labels[0]);
	else if (r < 0)
		call_fail_with(c, &e);
	return r == 0;
}

static bool is_not_configured(struct call *c, struct store_role *role) {
	if (!role->configured)
		return true;
	call_fail(c, 409, "ConflictException", "The role %s comes from the configuration: change it there and start the engine anew",
		  role->arn);
	return false;
}

void operator_get_role(struct call *c) {
	struct store_role role;
	if (!find_role(c, &role))
		return;
	call_answer(c, 200, with_policy(role_item(&role), role.policy));
	store_role_clear(&role);
}

// Adds a role or gives it another policy.
void operator_put_role(struct call *c) {
	static const char *const known[] = {"policy", NULL};
	struct store_role role = {.created_ms = 0}, before;
	const json_t *policy = NULL;
	struct error e = {0};
	if (!is_role_arn(c->labels[0]) || strlen(c->labels[0]) >= sizeof(role.arn)) {
		call_fail(c, 400, "ValidationException",
			  "A role is named by an ARN such as arn:aws:iam::%s:role/worker, of %zu bytes at most", c->en->config.account,
			  sizeof(role.arn) - 1);
		return;
	}
	if (!knows_members(c, known) || !take(c, member_object(c->body, "policy", MEMBER_REQUIRED, &policy, &e), &e) ||
	    !take(c, policy_check(policy, &e), &e))
		return;
	bool replaced = store_get_role(c->en->store, c->labels[0], &before, NULL) == 0;
	bool fine = !replaced || is_not_configured(c, &before);
	role.created_ms = replaced ? before.created_ms : (int64_t)realtime_ms();
	if (replaced)
		store_role_clear(&before);
	if (!fine)
		return;
	memcpy(role.arn, c->labels[0], strlen(c->labels[0]) + 1);
	role.policy = json_dumps(policy, JSON_COMPACT);
	if (role.policy == NULL || strlen(role.policy) > POLICY_MAX)
		call_fail(c, 400, "ValidationException", "The policy is longer than %d bytes", POLICY_MAX);
	else if (!fails(c, store_put_role(c->en->store, &role, &e), &e)) {
		log_info("access.role.put", LOG_S("role", role.arn), LOG_S("by", c->principal));
		call_answer(c, replaced ? 200 : 201, with_policy(role_item(&role), role.policy));
	}
	store_role_clear(&role);
}

void operator_delete_role(struct call *c) {
	struct store_role role;
	struct error e = {0};
	if (!find_role(c, &role))
		return;
	if (is_not_configured(c, &role)) {
		int r = store_delete_role(c->en->store, role.arn, &e);
		if (!fails(c, r == -ENOENT ? 0 : r, &e)) {
			log_info("access.role.removed", LOG_S("role", role.arn), LOG_S("by", c->principal));
			call_answer(c, 200, json_object());
		}
	}
	store_role_clear(&role);
}
