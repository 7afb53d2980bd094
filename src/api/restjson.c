// restJson1: from an HTTP request to an operation and back. Routing by method and path, labels, signatures, bodies, errors, page tokens.
//
// Labels are percent-decoded segment by segment, so that ARNs may come encoded (as the SDKs send them) or raw, and an encoded slash stays
// part of its label.
#include "api/api_internal.h"

#include "api/call.h"
#include "api/json_write.h"
#include "api/quota.h"
#include "api/sigv4.h"
#include "base/base64.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define DEPTH_MAX 32    // of a request's JSON
#define SEGMENTS_MAX 12 // of a path
#define PAGE_DEFAULT 50
#define PAGE_MAX 50
#define CORE_PAGE_MAX 100

// Answers ---------------------------------------------------------------------------------------------------------------------------

char *json_as_sent(const json_t *answer) {
	struct text text = {0};
	json_write(&text, answer);
	if (text.bad) {
		free(text.data);
		return NULL;
	}
	return text.data;
}

static void send_json(struct call *c, int status, const json_t *answer) {
	exchange_header(c->x, "content-type", "application/json");
	exchange_header(c->x, "x-amzn-requestid", "%s", exchange_id(c->x));
	cleanup_free char *text = json_as_sent(answer);
	if (text == NULL)
		exchange_reply(c->x, 500, "{\"message\":null}", 16);
	else
		exchange_reply(c->x, status, text, strlen(text));
}

void call_answer(struct call *c, int status, json_t *answer) {
	cleanup_json json_t *owned = answer;
	send_json(c, status, owned);
}

void call_answer_nothing(struct call *c) {
	exchange_header(c->x, "x-amzn-requestid", "%s", exchange_id(c->x));
	exchange_reply(c->x, 204, NULL, 0);
}

// The names of errors in the older part of the service's API, which the tag operations and lambda-core belong to (spec section 1.3).
static const char *classic_name(const char *name) {
	static const char *const pairs[][2] = {
		{"ValidationException", "InvalidParameterValueException"}, {"SerializationException", "InvalidParameterValueException"},
		{"ConflictException", "ResourceConflictException"},        {"ThrottlingException", "TooManyRequestsException"},
		{"InternalServerException", "ServiceException"},
	};
	for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
		if (strcmp(pairs[i][0], name) == 0)
			return pairs[i][1];
	return name;
}

static void send_error(struct call *c, int status, const char *name, const char *message) {
	cleanup_json json_t *body = json_object();
	// A message may quote what a stranger sent, cut somewhere: then it is better missing than not JSON.
	json_t *text = json_string(message);
	json_object_set_new(body, c->core ? "Message" : "message", text == NULL ? json_null() : text);
	if (c->classic) {
		name = classic_name(name);
		json_object_set_new(body, "Type", json_string(status < 500 ? "User" : "Service"));
	} else if (status == 404 || status == 409 || status == 402) {
		json_object_set_new(body, "resourceType", json_null());
		json_object_set_new(body, "resourceId", json_null());
	}
	if (!c->classic && (status == 402 || status == 429)) {
		json_object_set_new(body, "serviceCode", json_null());
		json_object_set_new(body, "quotaCode", json_null());
	}
	if (c->core && status == 429)
		json_object_set_new(body, "Reason", json_string("CallerRateLimitExceeded"));
	exchange_header(c->x, "x-amzn-errortype", "%s", name);
	log_info("api.refused", LOG_S("operation", c->operation), LOG_S("error", name), LOG_S("message", message),
		 LOG_S("requestId", exchange_id(c->x)));
	send_json(c, status, body);
}

int call_fail(struct call *c, int status, const char *name, const char *format, ...) {
	cleanup_free char *message = NULL;
	va_list ap;
	va_start(ap, format);
	if (vasprintf(&message, format, ap) < 0)
		message = NULL;
	va_end(ap);
	send_error(c, status, name, message == NULL ? "" : message);
	return -1;
}

int call_not_found(struct call *c, const char *format, ...) {
	cleanup_free char *message = NULL;
	va_list ap;
	va_start(ap, format);
	if (vasprintf(&message, format, ap) < 0)
		message = NULL;
	va_end(ap);
	send_error(c, 404, "ResourceNotFoundException", message == NULL ? "" : message);
	return -1;
}

int call_fail_with(struct call *c, const struct error *e) {
	static const struct {
		const char *name;
		int status;
	} known[] = {
		{"ValidationException", 400},           {"AccessDeniedException", 403},
		{"ResourceNotFoundException", 404},     {"ConflictException", 409},
		{"ServiceQuotaExceededException", 402}, {"ThrottlingException", 429},
		{"InsufficientCapacityException", 500},
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(known[i].name, e->name) == 0)
			return call_fail(c, known[i].status, e->name, "%s", e->message);
	log_error("api.failed", LOG_S("operation", c->operation), LOG_S("message", e->message), LOG_S("requestId", exchange_id(c->x)));
	return call_fail(c, 500, "InternalServerException", "%s", e->message);
}

json_t *json_stored(const char *text) {
	json_t *o = text == NULL ? NULL : json_loads(text, 0, NULL);
	return o == NULL ? json_object() : o;
}

json_t *json_time(int64_t ms) {
	return ms == 0 ? json_null() : json_real((double)ms / 1000.0);
}

json_t *json_text_or_null(const char *s) {
	json_t *text = s[0] == '\0' ? NULL : json_string(s);
	return text == NULL ? json_null() : text;
}

json_t *json_member_or_null(const json_t *o, const char *name) {
	json_t *v = json_object_get(o, name);
	return v == NULL ? json_null() : json_incref(v);
}

// Bodies and queries ------------------------------------------------------------------------------------------------------------------

bool call_fail_for_violations(struct call *c) {
	if (c->wrong.count == 0)
		return false;
	cleanup_free char *all = violations_message(&c->wrong);
	call_fail(c, 400, "ValidationException", "%s", all == NULL ? "" : all);
	return true;
}

bool call_check_body(struct call *c, const struct shape *shape) {
	return call_check_body_and(c, shape, NULL);
}

bool call_check_body_and(struct call *c, const struct shape *shape, void (*more)(const struct call *c, struct violations *v)) {
	char message[128];
	if (c->body == NULL && (c->body = json_object()) == NULL) {
		call_fail(c, 500, "InternalServerException", "out of memory");
		return false;
	}
	if (!shape_types_match(shape, c->body, message)) {
		call_fail(c, 400, "SerializationException", "%s", message);
		return false;
	}
	shape_check(shape, c->body, "", &c->wrong);
	if (more != NULL)
		more(c, &c->wrong);
	return !call_fail_for_violations(c);
}

char *call_query(struct call *c, const char *name, bool *failed) {
	char *value = NULL;
	int r = query_find(c->query, name, &value);
	*failed = r < 0;
	if (r < 0)
		call_fail(c, 400, "ValidationException", "The query parameter '%s' cannot be read: its percent-encoding is wrong", name);
	return r == 1 ? value : NULL;
}

// Page tokens -------------------------------------------------------------------------------------------------------------------------
//
// base64url of nonce, ciphertext and tag (AES-256-GCM) of the store's cursor, bound to account, operation, path and the parameters other
// than maxResults and nextToken, so that a token is of use for the same list only and cannot be made up.

#define NONCE 12
#define TAG 16

static void token_context(const struct call *c, struct text *to) {
	static const char *const parameters[] = {"nameFilter", "imageIdentifier",   "imageVersion", "architecture",
						 "chipset",    "chipsetGeneration", "State"};
	text_format(to, "%s %s", c->key.account, c->operation);
	for (size_t i = 0; i < c->label_count; i++)
		text_format(to, "\n%s", c->labels[i]);
	for (size_t i = 0; i < sizeof(parameters) / sizeof(parameters[0]); i++) {
		char *value = NULL;
		if (query_find(c->query, parameters[i], &value) == 1)
			text_format(to, "\n%s=%s", parameters[i], value);
		free(value);
	}
}

static char *seal_token(const struct call *c, const char *cursor) {
	unsigned char key[32], sealed[NONCE + STORE_CURSOR_MAX + TAG];
	int n = 0, size = (int)strlen(cursor);
	cleanup_text context = {0};
	token_context(c, &context);
	EVP_CIPHER_CTX *gcm = EVP_CIPHER_CTX_new();
	bool fine = gcm != NULL && !context.bad && store_secret(c->en->store, "page tokens", key, sizeof(key), NULL) == 0 &&
		    RAND_bytes(sealed, NONCE) == 1 && EVP_EncryptInit_ex(gcm, EVP_aes_256_gcm(), NULL, key, sealed) == 1 &&
		    EVP_EncryptUpdate(gcm, NULL, &n, (const unsigned char *)context.data, (int)context.size) == 1 &&
		    EVP_EncryptUpdate(gcm, sealed + NONCE, &n, (const unsigned char *)cursor, size) == 1 &&
		    EVP_EncryptFinal_ex(gcm, sealed + NONCE + size, &n) == 1 &&
		    EVP_CIPHER_CTX_ctrl(gcm, EVP_CTRL_AEAD_GET_TAG, TAG, sealed + NONCE + size) == 1;
	EVP_CIPHER_CTX_free(gcm);
	char *text = fine ? malloc(BASE64_ROOM(sizeof(sealed))) : NULL;
	if (text != NULL)
		base64url_encode(text, sealed, (size_t)(NONCE + size + TAG));
	return text;
}

static bool open_token(const struct call *c, const char *token, char cursor[STORE_CURSOR_MAX]) {
	unsigned char key[32], sealed[NONCE + STORE_CURSOR_MAX + TAG];
	ssize_t size = base64url_decode(sealed, sizeof(sealed), token, strlen(token));
	int n = 0, text = (int)size - NONCE - TAG;
	if (size < 0 || text <= 0 || text >= STORE_CURSOR_MAX)
		return false;
	cleanup_text context = {0};
	token_context(c, &context);
	EVP_CIPHER_CTX *gcm = EVP_CIPHER_CTX_new();
	bool fine = gcm != NULL && !context.bad && store_secret(c->en->store, "page tokens", key, sizeof(key), NULL) == 0 &&
		    EVP_DecryptInit_ex(gcm, EVP_aes_256_gcm(), NULL, key, sealed) == 1 &&
		    EVP_DecryptUpdate(gcm, NULL, &n, (const unsigned char *)context.data, (int)context.size) == 1 &&
		    EVP_DecryptUpdate(gcm, (unsigned char *)cursor, &n, sealed + NONCE, text) == 1 &&
		    EVP_CIPHER_CTX_ctrl(gcm, EVP_CTRL_AEAD_SET_TAG, TAG, sealed + NONCE + text) == 1 &&
		    EVP_DecryptFinal_ex(gcm, (unsigned char *)cursor + text, &n) == 1;
	EVP_CIPHER_CTX_free(gcm);
	cursor[fine ? text : 0] = '\0';
	return fine;
}

// The names that a list's query has for its parameters.
struct page_names {
	const char *limit, *limit_path, *token;
	long most;
};
static const struct page_names microvms_page = {"maxResults", "maxResults", "nextToken", PAGE_MAX};
static const struct page_names core_page = {"MaxItems", "maxItems", "Marker", CORE_PAGE_MAX};

static bool page_limit(struct call *c, const struct page_names *names, const char *text, size_t *ret) {
	if (text == NULL) {
		*ret = PAGE_DEFAULT;
		return true;
	}
	char *end;
	errno = 0;
	long value = strtol(text, &end, 10);
	if (text[0] == '\0' || *end != '\0' || errno != 0) {
		call_fail(c, 400, "SerializationException", "STRING_VALUE can not be converted to an Integer");
		return false;
	}
	if (value < 1 || value > names->most) {
		violation_add(&c->wrong, text, names->limit_path, "have value %s than or equal to %ld", value < 1 ? "greater" : "less",
			      value < 1 ? 1 : names->most);
		return !call_fail_for_violations(c);
	}
	*ret = (size_t)value;
	return true;
}

static bool read_page(struct call *c, const struct page_names *names, struct call_page *ret) {
	bool failed = false;
	*ret = (struct call_page){.limit = 0};
	cleanup_free char *limit = call_query(c, names->limit, &failed);
	if (failed || !page_limit(c, names, limit, &ret->limit))
		return false;
	cleanup_free char *token = call_query(c, names->token, &failed);
	if (failed)
		return false;
	if (token != NULL && token[0] != '\0' && !open_token(c, token, ret->after)) {
		call_fail(c, 400, "ValidationException", "Invalid %s: it must come from the same list with the same parameters",
			  names->token);
		return false;
	}
	return true;
}

bool call_page(struct call *c, struct call_page *ret) {
	return read_page(c, &microvms_page, ret);
}

bool call_core_page(struct call *c, struct call_page *ret) {
	return read_page(c, &core_page, ret);
}

static void answer_page(struct call *c, const char *items_name, json_t *items, const char *token_name, const char *next) {
	json_t *answer = json_object();
	json_object_set_new(answer, items_name, items);
	cleanup_free char *token = next[0] == '\0' ? NULL : seal_token(c, next);
	if (next[0] != '\0' && token == NULL) {
		json_decref(answer);
		call_fail(c, 500, "InternalServerException", "no page token could be made");
		return;
	}
	if (token != NULL || !c->core)
		json_object_set_new(answer, token_name, token == NULL ? json_null() : json_string(token));
	call_answer(c, 200, answer);
}

void call_answer_page(struct call *c, json_t *items, const char *next) {
	answer_page(c, "items", items, "nextToken", next);
}

void call_answer_core_page(struct call *c, const char *items_name, json_t *items, const char *next) {
	answer_page(c, items_name, items, "NextMarker", next);
}

// Routing -----------------------------------------------------------------------------------------------------------------------------

struct route {
	const char *method, *path; // {} is a label
	const char *operation;
	void (*run)(struct call *c);
	bool open; // needs no signature
	bool body; // checks its body with call_check_body(), which then also reports what is wrong with the labels
};

#define IMAGES "/2025-09-09/microvm-images"
#define MANAGED "/2025-09-09/managed-microvm-images"
#define MICROVMS "/2025-09-09/microvms"
#define TAGS "/2017-03-31/tags"
#define CORE "/2026-04-04/"
#define CONNECTORS CORE "network-connectors"
#define OPERATORS "/_stasis/"

static const struct route routes[] = {
	{"POST", IMAGES, "CreateMicrovmImage", create_image, false, false},
	{"GET", IMAGES, "ListMicrovmImages", list_images, false, false},
	{"GET", IMAGES "/{}", "GetMicrovmImage", get_image, false, false},
	{"PUT", IMAGES "/{}", "UpdateMicrovmImage", update_image, false, true},
	{"DELETE", IMAGES "/{}", "DeleteMicrovmImage", delete_image, false, false},
	{"GET", IMAGES "/{}/versions", "ListMicrovmImageVersions", list_versions, false, false},
	{"GET", IMAGES "/{}/versions/{}", "GetMicrovmImageVersion", get_version, false, false},
	{"PATCH", IMAGES "/{}/versions/{}", "UpdateMicrovmImageVersion", update_version, false, true},
	{"DELETE", IMAGES "/{}/versions/{}", "DeleteMicrovmImageVersion", delete_version, false, false},
	{"GET", IMAGES "/{}/versions/{}/builds", "ListMicrovmImageBuilds", list_builds, false, false},
	{"GET", IMAGES "/{}/versions/{}/builds/{}", "GetMicrovmImageBuild", get_build, false, false},
	{"GET", MANAGED, "ListManagedMicrovmImages", list_managed_images, false, false},
	{"GET", MANAGED "/{}/versions", "ListManagedMicrovmImageVersions", list_managed_versions, false, false},
	{"POST", MICROVMS, "RunMicrovm", run_microvm, false, false},
	{"GET", MICROVMS, "ListMicrovms", list_microvms, false, false},
	{"GET", MICROVMS "/{}", "GetMicrovm", get_microvm, false, false},
	{"POST", MICROVMS "/{}/suspend", "SuspendMicrovm", suspend_microvm, false, false},
	{"POST", MICROVMS "/{}/resume", "ResumeMicrovm", resume_microvm, false, false},
	{"DELETE", MICROVMS "/{}", "TerminateMicrovm", terminate_microvm, false, false},
	{"POST", MICROVMS "/{}/auth-token", "CreateMicrovmAuthToken", create_auth_token, false, true},
	{"POST", MICROVMS "/{}/shell-auth-token", "CreateMicrovmShellAuthToken", create_shell_auth_token, false, true},
	{"POST", TAGS "/{}", "TagResource", tag_resource, false, true},
	{"DELETE", TAGS "/{}", "UntagResource", untag_resource, false, false},
	{"GET", TAGS "/{}", "ListTags", list_tags, false, false},
	{"POST", CONNECTORS, "CreateNetworkConnector", create_connector, false, false},
	{"GET", CONNECTORS, "ListNetworkConnectors", list_connectors, false, false},
	{"GET", CONNECTORS "/{}", "GetNetworkConnector", get_connector, false, false},
	{"PUT", CONNECTORS "/{}", "UpdateNetworkConnector", update_connector, false, true},
	{"DELETE", CONNECTORS "/{}", "DeleteNetworkConnector", delete_connector, false, false},
	{"GET", "/_stasis/health", "health", operator_health, true, false},
	{"GET", "/_stasis/ca.pem", "ca.pem", operator_certificate, true, false},
	{"GET", "/_stasis/status", "status", operator_status, false, false},
	{"GET", "/_stasis/images/{}/versions/{}/log", "build log", operator_build_log, false, false},
	{"GET", "/_stasis/images/{}/versions/{}/stages", "build stages", operator_build_stages, false, false},
	{"GET", "/_stasis/microvms/{}/log", "log", operator_microvm_log, false, false},
	{"GET", "/_stasis/microvms/{}/console", "console", operator_microvm_console, false, false},
	{"GET", "/_stasis/microvms/{}/stages", "stages", operator_microvm_stages, false, false},
	{"GET", "/_stasis/metrics", "metrics", operator_metrics, false, false},
	{"POST", "/_stasis/microvms/{}/session-token", "session token", operator_session_token, false, false},
	{"POST", "/_stasis/microvms/{}/revoke-tokens", "revoke tokens", operator_revoke_tokens, false, false},
	{"POST", "/_stasis/token-keys", "rotate token keys", operator_rotate_token_keys, false, false},
	{"GET", "/_stasis/images/{}/public-ports", "public ports", operator_public_ports, false, false},
	{"PUT", "/_stasis/images/{}/public-ports/{}", "publish port", operator_publish_port, false, false},
	{"DELETE", "/_stasis/images/{}/public-ports/{}", "close port", operator_close_port, false, false},
	{"POST", "/_stasis/shutdown", "shutdown", operator_shutdown, false, false},
	{"GET", "/_stasis/keys", "keys", operator_list_keys, false, false},
	{"POST", "/_stasis/keys", "create key", operator_create_key, false, false},
	{"GET", "/_stasis/keys/{}", "key", operator_get_key, false, false},
	{"PATCH", "/_stasis/keys/{}", "update key", operator_update_key, false, false},
	{"DELETE", "/_stasis/keys/{}", "delete key", operator_delete_key, false, false},
	{"GET", "/_stasis/roles", "roles", operator_list_roles, false, false},
	{"GET", "/_stasis/roles/{}", "role", operator_get_role, false, false},
	{"PUT", "/_stasis/roles/{}", "put role", operator_put_role, false, false},
	{"DELETE", "/_stasis/roles/{}", "delete role", operator_delete_role, false, false},
};

struct segments {
	struct slice at[SEGMENTS_MAX];
	size_t count;
};

static bool split_path(struct slice path, struct segments *ret) {
	ret->count = 0;
	if (path.size == 0 || path.data[0] != '/')
		return false;
	const char *at = path.data + 1, *end = path.data + path.size;
	for (;;) {
		const char *slash = memchr(at, '/', (size_t)(end - at));
		if (ret->count == SEGMENTS_MAX)
			return false;
		ret->at[ret->count++] = (struct slice){at, (size_t)((slash == NULL ? end : slash) - at)};
		if (slash == NULL)
			return true;
		at = slash + 1;
	}
}

static bool path_matches(const char *pattern, const struct segments *s) {
	size_t i = 0;
	for (const char *p = pattern; *p == '/'; i++) {
		size_t n = strcspn(p + 1, "/");
		if (i == s->count)
			return false;
		bool label = n == 2 && p[1] == '{';
		if (label ? s->at[i].size == 0 : s->at[i].size != n || memcmp(s->at[i].data, p + 1, n) != 0)
			return false;
		p += 1 + n;
	}
	return i == s->count;
}

static const struct route *find_route(struct slice method, const struct segments *s) {
	for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++)
		if (slice_equals(method, routes[i].method) && path_matches(routes[i].path, s))
			return &routes[i];
	return NULL;
}

static bool take_labels(struct call *c, const char *pattern, const struct segments *s) {
	size_t i = 0;
	for (const char *p = pattern; *p == '/'; i++) {
		size_t n = strcspn(p + 1, "/");
		if (n == 2 && p[1] == '{') {
			char *label = malloc(s->at[i].size + 1);
			if (label == NULL)
				return false;
			c->labels[c->label_count++] = label;
			ssize_t size = percent_decode(s->at[i].data, s->at[i].size, label);
			if (size < 0 || memchr(label, '\0', (size_t)size) != NULL)
				return false;
			label[size] = '\0';
		}
		p += 1 + n;
	}
	return true;
}

// The labels' constraints; those of the operator's routes and others have none.
static void check_labels(struct call *c, const struct route *route) {
	bool images = strncmp(route->path, IMAGES, strlen(IMAGES)) == 0 || strncmp(route->path, MANAGED, strlen(MANAGED)) == 0;
	bool microvms = strncmp(route->path, MICROVMS, strlen(MICROVMS)) == 0;
	for (size_t i = 0; i < c->label_count && i < 2 && (images || microvms); i++) {
		cleanup_json json_t *value = json_string(c->labels[i]);
		const struct shape *shape = i == 0 ? &shape_identifier : &shape_without_space;
		const char *name = microvms ? "microvmIdentifier" : i == 0 ? "imageIdentifier" : "imageVersion";
		if (value == NULL)
			violation_add(&c->wrong, NULL, name, "be text in UTF-8");
		else
			shape_check(shape, value, name, &c->wrong);
	}
}

// Bounds the nesting before the parser sees it: the parser recurses.
static bool is_shallow(struct slice body) {
	int depth = 0;
	bool string = false;
	for (size_t i = 0; i < body.size; i++) {
		char ch = body.data[i];
		if (string) {
			if (ch == '\\')
				i++;
			else if (ch == '"')
				string = false;
		} else if (ch == '"') {
			string = true;
		} else if (ch == '{' || ch == '[') {
			if (++depth > DEPTH_MAX)
				return false;
		} else if (ch == '}' || ch == ']') {
			depth--;
		}
	}
	return true;
}

bool api_parse_body(struct slice body, json_t **ret, const char **why) {
	*ret = NULL;
	if (body.size == 0)
		return true;
	*why = "The request body is nested too deeply";
	if (!is_shallow(body))
		return false;
	*why = "The request body could not be parsed as JSON";
	json_error_t error;
	*ret = json_loadb(body.data, body.size, JSON_REJECT_DUPLICATES, &error);
	if (*ret == NULL)
		return false;
	*why = "Expected a JSON object as the request body";
	if (json_is_object(*ret))
		return true;
	json_decref(*ret);
	*ret = NULL;
	return false;
}

// Signatures --------------------------------------------------------------------------------------------------------------------------

static void fail_signature(struct call *c, enum sigv4_verdict v, const struct error *e) {
	switch (v) {
	case SIGV4_MISSING:
		call_fail(c, 403, "MissingAuthenticationTokenException", "Missing Authentication Token");
		return;
	case SIGV4_MALFORMED:
		call_fail(c, 403, "IncompleteSignatureException", "%s", e->message);
		return;
	default:
		call_fail(c, 403, "InvalidSignatureException", "%s", e->message);
	}
}

static bool identify(struct call *c, const struct sigv4 *s, const struct http_head *h) {
	struct error e = {0};
	switch (access_identify(c->en, s, h, &c->key, c->principal, &e)) {
	case ACCESS_KNOWN:
		return true;
	case ACCESS_EXPIRED:
		call_fail(c, 403, "ExpiredTokenException", "The security token included in the request is expired");
		return false;
	case ACCESS_FAILED:
		call_fail_with(c, &e);
		return false;
	default:
		call_fail(c, 403, "UnrecognizedClientException", "The security token included in the request is invalid.");
		return false;
	}
}

static bool authenticate(struct call *c, const struct http_head *h, struct slice body) {
	struct sigv4 s;
	struct error e = {0};
	enum sigv4_verdict v = sigv4_parse(h, "lambda", &s, &e);
	if (v != SIGV4_FINE) {
		fail_signature(c, v, &e);
		return false;
	}
	if (!identify(c, &s, h))
		return false;
	char digest[SIGV4_HEX];
	sha256_hex(body.data, body.size, digest);
	v = sigv4_check(&s, h, c->key.secret, digest, (int64_t)(realtime_ms() / 1000), &e);
	const struct http_header *stated = http_find(h, "x-amz-content-sha256");
	if (v == SIGV4_FINE && stated != NULL && !slice_equals(stated->value, digest)) {
		error_set(&e, -EACCES, "The value of X-Amz-Content-Sha256 does not match the body; this service takes no unsigned bodies");
		v = SIGV4_MISMATCH;
	}
	explicit_bzero(c->key.secret, sizeof(c->key.secret));
	if (v != SIGV4_FINE)
		fail_signature(c, v, &e);
	return v == SIGV4_FINE;
}

static void run_call(struct call *c, const struct http_head *h) {
	struct slice path, body = exchange_body(c->x);
	struct segments segments = {.count = 0};
	target_split(h->target, &path, &c->query);
	const struct route *route = split_path(path, &segments) ? find_route(h->method, &segments) : NULL;
	if (route != NULL)
		c->operation = route->operation;
	c->core = path.size >= strlen(CORE) && memcmp(path.data, CORE, strlen(CORE)) == 0;
	c->classic = c->core || (route != NULL && strncmp(route->path, TAGS, strlen(TAGS)) == 0);
	c->by_operator = route != NULL && strncmp(route->path, OPERATORS, strlen(OPERATORS)) == 0;
	bool open = route != NULL && (route->open || (route->run == operator_metrics && has_metrics_token(c, h)));
	if (!open && (!authenticate(c, h, body) || !quota_rate(c)))
		return;
	if (route == NULL) {
		call_fail(c, 404, "UnknownOperationException", "Stasis knows no operation %.*s %.*s",
			  (int)(h->method.size < 16 ? h->method.size : 16), h->method.data, (int)(path.size < 300 ? path.size : 300),
			  path.data);
		return;
	}
	if (!take_labels(c, route->path, &segments)) {
		call_fail(c, 400, "ValidationException", "The path cannot be read: its percent-encoding is wrong");
		return;
	}
	check_labels(c, route);
	if (!route->body && call_fail_for_violations(c))
		return;
	const char *why = NULL;
	if (!api_parse_body(body, &c->body, &why)) {
		call_fail(c, 400, "SerializationException", "%s", why);
		return;
	}
	if (open || access_check(c))
		route->run(c);
}

void api_handle(struct exchange *x, void *arg) {
	struct call c = {.en = arg, .x = x, .operation = "?"};
	uint64_t started = monotonic_ns();
	run_call(&c, exchange_head(x));
	free(c.wrong.text.data);
	for (size_t i = 0; i < c.label_count; i++)
		free(c.labels[i]);
	json_decref(c.body);
	store_key_clear(&c.key);
	log_debug("api.call", LOG_S("operation", c.operation), LOG_S("account", c.key.account), LOG_S("requestId", exchange_id(x)),
		  LOG_U("us", (monotonic_ns() - started) / 1000));
}

// Every GET of the service reads records. The operator's calls may wait (logs).
bool api_is_quick(const struct http_head *h) {
	return slice_equals(h->method, "GET") && h->target.size > 3 && memcmp(h->target.data, "/20", 3) == 0;
}

const char *api_refusal(int status, const char **type) {
	*type = "application/json";
	switch (status) {
	case 413:
		return "{\"message\":\"The request body is larger than this service takes\"}";
	case 431:
		return "{\"message\":\"The request's head is larger than this service takes\"}";
	case 503:
		return "{\"message\":\"The service is busy: try again\"}";
	case 505:
		return "{\"message\":\"Only HTTP/1.0 and HTTP/1.1 are spoken here\"}";
	default:
		return "{\"message\":\"The request is malformed\"}";
	}
}
