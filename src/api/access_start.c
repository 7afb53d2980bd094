// What the configuration says about access, put into the store at every start: the operator's key, which may do everything, and roles. What an
// earlier configuration said and this one does not, goes.
#include "api/api.h"
#include "api/policy.h"
#include "api/validate.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "stasisd/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int start_key(struct engine *en, struct error *e) {
	const struct config *f = &en->config;
	int r = store_keep_configured_key(en->store, f->key_id, e);
	if (r < 0 || f->key_id[0] == '\0')
		return r;
	struct store_key key = {.configured = true, .created_ms = (int64_t)realtime_ms(), .policy = strdup(POLICY_EVERYTHING)};
	snprintf(key.id, sizeof(key.id), "%s", f->key_id);
	snprintf(key.secret, sizeof(key.secret), "%s", f->key_secret);
	snprintf(key.account, sizeof(key.account), "%s", f->account);
	r = key.policy == NULL ? error_set(e, -ENOMEM, "out of memory") : store_put_key(en->store, &key, e);
	store_key_clear(&key);
	return r;
}

static int start_role(struct engine *en, const char *arn, const json_t *policy, struct error *e) {
	struct store_role role = {.configured = true, .created_ms = (int64_t)realtime_ms()};
	if (!is_role_arn(arn) || strlen(arn) >= sizeof(role.arn))
		return error_set(e, -EINVAL,
				 "\"roles\": \"%.100s\" must be an ARN such as arn:aws:iam::%s:role/worker, of %zu bytes at most", arn,
				 en->config.account, sizeof(role.arn) - 1);
	int r = policy_check(policy, e);
	if (r < 0)
		return error_wrap(e, r, "\"roles\", %.100s", arn);
	snprintf(role.arn, sizeof(role.arn), "%s", arn);
	role.policy = json_dumps(policy, JSON_COMPACT);
	r = role.policy == NULL ? error_set(e, -ENOMEM, "out of memory") : store_put_role(en->store, &role, e);
	store_role_clear(&role);
	return r;
}

// The roles that an earlier configuration, or this one, has brought in.
static int collect_old(const struct store_role *role, void *arg) {
	return role->configured && json_array_append_new(arg, json_string(role->arn)) < 0 ? -ENOMEM : 0;
}

static int start_roles(struct engine *en, struct error *e) {
	cleanup_json json_t *roles = en->config.roles[0] == '\0' ? json_object() : json_loads(en->config.roles, 0, NULL);
	cleanup_json json_t *old = json_array();
	const char *arn;
	json_t *policy;
	size_t i;
	int r = roles == NULL || old == NULL ? error_set(e, -ENOMEM, "out of memory reading the roles") : 0;
	if (r == 0)
		r = store_list_roles(en->store, NULL, STORE_ROLES_MAX, collect_old, old, e);
	json_object_foreach(roles, arn, policy) {
		if (r == 0)
			r = start_role(en, arn, policy, e);
	}
	json_array_foreach(old, i, policy) {
		if (r == 0 && json_object_get(roles, json_string_value(policy)) == NULL)
			r = store_delete_role(en->store, json_string_value(policy), e);
	}
	return r;
}

int access_start(struct engine *en, struct error *e) {
	int r = start_key(en, e);
	return r < 0 ? r : start_roles(en, e);
}
