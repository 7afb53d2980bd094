// Who calls, and what he may do; see access.h.
//
// One table says on what each operation of the API works, so that an operation that nobody thought of needs `*`, the safe answer. Who may do
// everything is let through before anything is looked up.
#include "api/access.h"

#include "api/call.h"
#include "api/policy.h"
#include "base/cleanup.h"
#include "base/clock.h"

#include <stdio.h>
#include <string.h>

#define EXPIRED_MICROVM(state) (strcmp((state), "TERMINATED") == 0 || strcmp((state), "TERMINATING") == 0)

// Identity --------------------------------------------------------------------------------------------------------------------------

// X-Amz-Security-Token of the headers or of the query. 1: *ret is it (to be freed), 0: none, -EBADMSG: several or malformed.
static int find_token(const struct sigv4 *s, const struct http_head *h, char **ret) {
	if (s->presigned) {
		struct slice path, query;
		target_split(h->target, &path, &query);
		return query_find(query, "X-Amz-Security-Token", ret);
	}
	const struct http_header *found = NULL;
	for (size_t i = 0; i < h->header_count; i++) {
		if (!slice_equals_nocase(h->headers[i].name, "x-amz-security-token"))
			continue;
		if (found != NULL)
			return -EBADMSG;
		found = &h->headers[i];
	}
	if (found == NULL)
		return 0;
	*ret = strndup(found->value.data, found->value.size);
	return *ret == NULL ? -ENOMEM : 1;
}

static enum access_identity identify_key(struct engine *en, const char *id, struct store_key *ret, char principal[PRINCIPAL_MAX]) {
	if (store_get_key(en->store, id, ret, NULL) < 0)
		return ACCESS_UNKNOWN;
	if (ret->disabled) {
		store_key_clear(ret);
		return ACCESS_UNKNOWN;
	}
	if (ret->configured)
		snprintf(principal, PRINCIPAL_MAX, "arn:aws:iam::%s:root", ret->account);
	else
		snprintf(principal, PRINCIPAL_MAX, "arn:aws:iam::%s:user/%s", ret->account, ret->name[0] == '\0' ? ret->id : ret->name);
	return ACCESS_KNOWN;
}

// The role that a microVM was started with, as its record has it. A role that the operator has not defined has no policy: nothing is allowed.
static char *policy_of_role(struct engine *en, const char *arn) {
	struct store_role role;
	return store_get_role(en->store, arn, &role, NULL) < 0 ? strdup("") : role.policy;
}

static enum access_identity fill_session_key(struct engine *en, const struct store_session *session, const struct store_microvm *m,
					     struct store_key *ret, char principal[PRINCIPAL_MAX], struct error *e) {
	cleanup_json json_t *config = json_stored(m->config);
	const char *role = json_string_value(json_object_get(config, "executionRoleArn"));
	if (role == NULL)
		return ACCESS_BAD_TOKEN;
	const char *name = strrchr(role, '/');
	*ret = (struct store_key){.policy = policy_of_role(en, role)};
	if (ret->policy == NULL) {
		error_set(e, -ENOMEM, "out of memory");
		return ACCESS_FAILED;
	}
	snprintf(ret->id, sizeof(ret->id), "%s", session->key_id);
	snprintf(ret->secret, sizeof(ret->secret), "%s", session->secret);
	snprintf(ret->account, sizeof(ret->account), "%s", m->account);
	snprintf(principal, PRINCIPAL_MAX, "arn:aws:sts::%s:assumed-role/%.150s/%s", m->account, name == NULL ? role : name + 1, m->id);
	return ACCESS_KNOWN;
}

static enum access_identity identify_session(struct engine *en, const char *id, const char *token, struct store_key *ret,
					     char principal[PRINCIPAL_MAX], struct error *e) {
	struct store_session session;
	struct store_microvm m;
	int r = store_open_session(en->store, id, token, strlen(token), &session, e);
	if (r < 0)
		return r == -EBADMSG ? ACCESS_BAD_TOKEN : ACCESS_FAILED;
	if ((int64_t)realtime_ms() >= session.expires_ms)
		return ACCESS_EXPIRED;
	r = store_get_microvm(en->store, session.microvm, &m, e);
	if (r < 0)
		return r == -ENOENT ? ACCESS_EXPIRED : ACCESS_FAILED;
	enum access_identity identity = EXPIRED_MICROVM(m.state) ? ACCESS_EXPIRED : fill_session_key(en, &session, &m, ret, principal, e);
	store_microvm_clear(&m);
	explicit_bzero(&session, sizeof(session));
	return identity;
}

enum access_identity access_identify(struct engine *en, const struct sigv4 *s, const struct http_head *h, struct store_key *ret,
				     char principal[PRINCIPAL_MAX], struct error *e) {
	cleanup_free char *token = NULL;
	int r = find_token(s, h, &token);
	if (r < 0)
		return ACCESS_BAD_TOKEN;
	return r == 0 ? identify_key(en, s->key_id, ret, principal) : identify_session(en, s->key_id, token, ret, principal, e);
}

// Decisions -------------------------------------------------------------------------------------------------------------------------

static bool may_do_everything(const struct store_key *k) {
	return k->policy != NULL && strcmp(k->policy, POLICY_EVERYTHING) == 0;
}

static enum policy_verdict verdict(const struct store_key *k, const char *action, const char *resource) {
	if (may_do_everything(k))
		return POLICY_ALLOWS;
	// It was checked when it was stored. If it cannot be read all the same, nothing is better than too much.
	const char *text = k->policy == NULL ? "" : k->policy;
	cleanup_json json_t *policy = policy_read(text, strlen(text), NULL);
	return policy == NULL ? POLICY_SILENT : policy_decide(policy, action, resource);
}

static int refusal(enum policy_verdict v, const char *principal, const char *action, const char *resource, struct error *e) {
	if (v == POLICY_DENIES)
		return error_named(
			e, -EACCES, "AccessDeniedException",
			"User: %s is not authorized to perform: %s on resource: %.200s with an explicit deny in an identity-based policy",
			principal, action, resource);
	return error_named(
		e, -EACCES, "AccessDeniedException",
		"User: %s is not authorized to perform: %s on resource: %.200s because no identity-based policy allows the %s action",
		principal, action, resource, action);
}

int access_decide(const struct store_key *k, const char *principal, const char *action, const char *resource, struct error *e) {
	enum policy_verdict v = verdict(k, action, resource);
	return v == POLICY_ALLOWS ? 0 : refusal(v, principal, action, resource, e);
}

bool access_may(struct call *c, const char *action, const char *resource) {
	struct error e;
	if (access_decide(&c->key, c->principal, action, resource, &e) == 0)
		return true;
	call_fail_with(c, &e);
	return false;
}

// Operations ------------------------------------------------------------------------------------------------------------------------

enum access_target {
	TARGET_ALL,       // needs "*"
	TARGET_IMAGE,     // the image that the first label names
	TARGET_VERSION,   // the image of the first label, or the version of it that the second one names
	TARGET_CREATED,   // the image that the body's `name` will be
	TARGET_RUN,       // the image that the body's `imageIdentifier` names
	TARGET_MICROVM,   // the image of the microVM that the first label names
	TARGET_LABEL,     // the ARN in the first label
	TARGET_CONNECTOR, // the network connector that the first label names, by ARN, name or id
};

// Operations are named as in the route table; those that are not listed need "*".
static const struct {
	const char *operation;
	enum access_target target;
	const char *action; // NULL: lambda:<operation>
} targets[] = {
	{"GetMicrovm", TARGET_MICROVM, NULL},
	{"RunMicrovm", TARGET_RUN, NULL},
	{"SuspendMicrovm", TARGET_MICROVM, NULL},
	{"ResumeMicrovm", TARGET_MICROVM, NULL},
	{"TerminateMicrovm", TARGET_MICROVM, NULL},
	{"CreateMicrovmAuthToken", TARGET_MICROVM, NULL},
	{"CreateMicrovmShellAuthToken", TARGET_MICROVM, NULL},
	{"CreateMicrovmImage", TARGET_CREATED, NULL},
	{"GetMicrovmImage", TARGET_IMAGE, NULL},
	{"UpdateMicrovmImage", TARGET_IMAGE, NULL},
	{"DeleteMicrovmImage", TARGET_IMAGE, NULL},
	{"ListMicrovmImageVersions", TARGET_IMAGE, NULL},
	{"GetMicrovmImageVersion", TARGET_VERSION, NULL},
	{"UpdateMicrovmImageVersion", TARGET_VERSION, NULL},
	{"DeleteMicrovmImageVersion", TARGET_VERSION, NULL},
	{"ListMicrovmImageBuilds", TARGET_VERSION, NULL},
	{"GetMicrovmImageBuild", TARGET_VERSION, NULL},
	{"TagResource", TARGET_LABEL, NULL},
	{"UntagResource", TARGET_LABEL, NULL},
	{"ListTags", TARGET_LABEL, NULL},
	{"GetNetworkConnector", TARGET_CONNECTOR, NULL},
	{"UpdateNetworkConnector", TARGET_CONNECTOR, NULL},
	{"DeleteNetworkConnector", TARGET_CONNECTOR, NULL},
	{"build log", TARGET_VERSION, "stasis:GetLogs"},
	{"build stages", TARGET_VERSION, "stasis:GetLogs"},
	{"log", TARGET_MICROVM, "stasis:GetLogs"},
	{"console", TARGET_MICROVM, "stasis:GetLogs"},
	{"session token", TARGET_MICROVM, "stasis:OpenSession"},
	{"revoke tokens", TARGET_MICROVM, "stasis:RevokeTokens"},
	{"public ports", TARGET_IMAGE, "stasis:PublishPort"},
	{"publish port", TARGET_IMAGE, "stasis:PublishPort"},
	{"close port", TARGET_IMAGE, "stasis:PublishPort"},
	{"stages", TARGET_MICROVM, "stasis:GetLogs"},
};

// The image's ARN in the one form that policies are written for, whatever form a client chose to name it by.
static void canonical_image(struct call *c, const char *text, char to[ARN_MAX]) {
	static const char kind[] = ":microvm-image:";
	const char *at = strstr(text, kind);
	const char *name = at == NULL ? text : at + strlen(kind);
	char own[ARN_MAX];
	snprintf(own, sizeof(own), ":%s%s", c->key.account, kind);
	// Somebody else's, and what is no ARN at all, is compared as it stands; the operation refuses it.
	if (strncmp(text, "arn:", 4) != 0 || strstr(text, own) == NULL)
		snprintf(to, ARN_MAX, "%s", text);
	else
		snprintf(to, ARN_MAX, "arn:aws:lambda:%.32s:%s%s%.*s", c->en->config.region, c->key.account, kind, (int)strcspn(name, ":"),
			 name);
}

static bool check_image(struct call *c, const char *action, const char *text) {
	char arn[ARN_MAX];
	canonical_image(c, text, arn);
	return access_may(c, action, arn);
}

// Policies may name an image by its ARN or its versions by `<arn>:<version>` (spec section 8): either is enough, and either may deny.
static bool check_version(struct call *c, const char *action) {
	char arn[ARN_MAX], version[ARN_MAX + 64];
	struct error e;
	canonical_image(c, c->labels[0], arn);
	snprintf(version, sizeof(version), "%s:%.40s", arn, c->label_count > 1 ? c->labels[1] : "");
	enum policy_verdict image = verdict(&c->key, action, arn), one = verdict(&c->key, action, version);
	enum policy_verdict v = image > one ? image : one;
	if (v == POLICY_ALLOWS)
		return true;
	refusal(v, c->principal, action, arn, &e);
	call_fail_with(c, &e);
	return false;
}

static bool check_microvm(struct call *c, const char *action) {
	struct store_microvm m;
	// One that is not there, or not the caller's, is the operation's to report, in words that do not tell which.
	if (store_get_microvm(c->en->store, c->labels[0], &m, NULL) < 0)
		return true;
	bool fine = strcmp(m.account, c->key.account) != 0 || check_image(c, action, m.image_arn);
	store_microvm_clear(&m);
	return fine;
}

// One that is not there is reported at once, in the operation's words.
static bool check_connector(struct call *c, const char *action) {
	struct store_connector k;
	if (!find_connector_ever(c, c->labels[0], &k))
		return false;
	bool fine = access_may(c, action, k.arn);
	store_connector_clear(&k);
	return fine;
}

// A body without the member is refused by the operation's shape.
static bool check_body_image(struct call *c, const char *action, const char *member, bool name) {
	const char *text = json_string_value(json_object_get(c->body, member));
	char arn[ARN_MAX];
	if (text == NULL)
		return true;
	if (!name)
		return check_image(c, action, text);
	snprintf(arn, sizeof(arn), "arn:aws:lambda:%.32s:%s:microvm-image:%.100s", c->en->config.region, c->key.account, text);
	return access_may(c, action, arn);
}

static bool check_target(struct call *c, enum access_target target, const char *action) {
	switch (target) {
	case TARGET_IMAGE:
	case TARGET_LABEL:
		return check_image(c, action, c->labels[0]);
	case TARGET_VERSION:
		return check_version(c, action);
	case TARGET_CREATED:
		return check_body_image(c, action, "name", true);
	case TARGET_RUN:
		return check_body_image(c, action, "imageIdentifier", false);
	case TARGET_MICROVM:
		return check_microvm(c, action);
	case TARGET_CONNECTOR:
		return check_connector(c, action);
	case TARGET_ALL:
		break;
	}
	return access_may(c, action, "*");
}

bool access_check(struct call *c) {
	char action[ACTION_MAX];
	if (may_do_everything(&c->key))
		return true;
	for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++) {
		if (strcmp(targets[i].operation, c->operation) != 0)
			continue;
		snprintf(action, sizeof(action), "%s%.60s", targets[i].action == NULL ? "lambda:" : "",
			 targets[i].action == NULL ? c->operation : targets[i].action);
		return check_target(c, targets[i].target, action);
	}
	snprintf(action, sizeof(action), "%s%.60s", c->by_operator ? "stasis:Operate" : "lambda:", c->by_operator ? "" : c->operation);
	return access_may(c, action, "*");
}

// Passing on ------------------------------------------------------------------------------------------------------------------------

static bool pass_connectors(struct call *c, const json_t *list) {
	for (size_t i = 0; i < json_array_size(list); i++) {
		const char *arn = json_string_value(json_array_get(list, i));
		if (arn != NULL && !access_may(c, "lambda:PassNetworkConnector", arn))
			return false;
	}
	return true;
}

// A build reads its artifact with the rights of its role, if the role has any.
static bool role_reads_artifact(struct call *c, const struct store_role *role, const json_t *o) {
	const char *uri = json_string_value(json_object_get(json_object_get(o, "codeArtifact"), "uri"));
	const struct store_key as_role = {.policy = role->policy};
	char resource[1200];
	struct error e;
	if (uri == NULL || strncmp(uri, "s3://", 5) != 0)
		return true;
	snprintf(resource, sizeof(resource), "arn:aws:s3:::%.1100s", uri + 5);
	if (access_decide(&as_role, role->arn, "s3:GetObject", resource, &e) == 0)
		return true;
	call_fail_with(c, &e);
	return false;
}

static bool pass_role(struct call *c, const json_t *o, const char *member) {
	const char *arn = json_string_value(json_object_get(o, member));
	struct store_role role;
	if (arn == NULL)
		return true;
	if (!access_may(c, "iam:PassRole", arn))
		return false;
	if (!store_has_roles(c->en->store))
		return true;
	if (store_get_role(c->en->store, arn, &role, NULL) < 0) {
		call_fail(c, 403, "AccessDeniedException",
			  "User: %s is not authorized to perform: iam:PassRole on resource: %.300s because there is no such role",
			  c->principal, arn);
		return false;
	}
	bool fine = role_reads_artifact(c, &role, o);
	store_role_clear(&role);
	return fine;
}

bool access_pass(struct call *c, const json_t *o) {
	return pass_connectors(c, json_object_get(o, "ingressNetworkConnectors")) &&
	       pass_connectors(c, json_object_get(o, "egressNetworkConnectors")) && pass_role(c, o, "buildRoleArn") &&
	       pass_role(c, o, "executionRoleArn");
}
