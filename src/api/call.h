// One call of an operation: what the resources' files (image.c, microvm.c, …) work on. They read the labels, the query and the body, and end
// either with call_answer() or with call_fail().
#pragma once

#include "api/access.h"
#include "api/server.h"
#include "api/validate.h"
#include "base/error.h"
#include "base/json.h"
#include "stasisd/engine.h"
#include "store/store.h"

#define CALL_LABELS_MAX 4

struct call {
	struct engine *en;
	struct exchange *x;
	struct store_key key;          // whose call it is
	char principal[PRINCIPAL_MAX]; // his ARN
	bool by_operator;              // below /_stasis/
	const char *operation;         // "GetMicrovm"
	bool classic;                  // errors have the names and members of the service's older API
	bool core;                     // of lambda-core: classic, with Message instead of message
	char *labels[CALL_LABELS_MAX]; // decoded, without NUL
	size_t label_count;
	struct slice query;      // still encoded
	json_t *body;            // an object; NULL when there is none
	struct violations wrong; // of labels, query and body
};

// Answers with a JSON object, whose reference it takes.
void call_answer(struct call *c, int status, json_t *answer);
void call_answer_nothing(struct call *c); // 204
// Answers with an error of the service: name in x-amzn-errortype, message in the body, modelled members null. Returns -1.
int call_fail(struct call *c, int status, const char *name, const char *format, ...) __attribute__((format(printf, 4, 5)));
// The same for an error that came from elsewhere: e->name is the exception's name, or none for an internal error (which is logged). Returns -1.
int call_fail_with(struct call *c, const struct error *e);
int call_not_found(struct call *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Fails with all that is wrong with the call (c->wrong). False: nothing is.
bool call_fail_for_violations(struct call *c);

// Checks the body against a shape; an absent body counts as {}. False: the call has failed, and is answered.
bool call_check_body(struct call *c, const struct shape *shape);
// The same, with constraints that no shape can express: `more` adds its violations to the others.
bool call_check_body_and(struct call *c, const struct shape *shape, void (*more)(const struct call *c, struct violations *v));

// Lists: maxResults and nextToken of the query.
struct call_page {
	size_t limit;
	char after[STORE_CURSOR_MAX]; // where the store goes on
};
bool call_page(struct call *c, struct call_page *ret); // false: failed and answered
// {"items": items, "nextToken": …}; takes the reference of items. `next` as the store gave it.
void call_answer_page(struct call *c, json_t *items, const char *next);

// The same for lambda-core: other names, at most 100 a page, and no NextMarker on the last.
bool call_core_page(struct call *c, struct call_page *ret);
void call_answer_core_page(struct call *c, const char *items_name, json_t *items, const char *next);

// A parameter of the query, decoded. NULL: absent (or malformed: then *failed is set and the call answered). The caller frees it.
char *call_query(struct call *c, const char *name, bool *failed);

// JSON as the service writes it.
char *json_as_sent(const json_t *answer); // the text of an answer; NULL: out of memory. The caller frees
json_t *json_stored(const char *text);    // an object that lies in the store as text; {} for NULL
json_t *json_time(int64_t ms);            // seconds with milliseconds; null for 0
json_t *json_text_or_null(const char *s); // null for ""
// A copy of the member, or null.
json_t *json_member_or_null(const json_t *o, const char *name);

// The operations.
void create_image(struct call *c);
void get_image(struct call *c);
void list_images(struct call *c);
void update_image(struct call *c);
void delete_image(struct call *c);
void get_version(struct call *c);
void list_versions(struct call *c);
void update_version(struct call *c);
void delete_version(struct call *c);
void list_builds(struct call *c);
void get_build(struct call *c);
void run_microvm(struct call *c);
void get_microvm(struct call *c);
void list_microvms(struct call *c);
void suspend_microvm(struct call *c);
void resume_microvm(struct call *c);
void terminate_microvm(struct call *c);
void create_auth_token(struct call *c);
void create_shell_auth_token(struct call *c);
void list_managed_images(struct call *c);
void list_managed_versions(struct call *c);
void tag_resource(struct call *c);
void untag_resource(struct call *c);
void list_tags(struct call *c);
void create_connector(struct call *c);
void get_connector(struct call *c);
void list_connectors(struct call *c);
void update_connector(struct call *c);
void delete_connector(struct call *c);

// The operator's namespace, operator.c. Paths without an operation name; the health check and the certificate need no signature.
void operator_health(struct call *c);
void operator_certificate(struct call *c);
void operator_status(struct call *c);
void operator_build_log(struct call *c);
void operator_build_stages(struct call *c);
void operator_microvm_log(struct call *c);
void operator_microvm_console(struct call *c);
void operator_microvm_stages(struct call *c);
void operator_revoke_tokens(struct call *c);
void operator_rotate_token_keys(struct call *c);
void operator_public_ports(struct call *c);
void operator_publish_port(struct call *c);
void operator_close_port(struct call *c);
void operator_metrics(struct call *c);
// Whether the request has the bearer token with which the metrics may be read.
bool has_metrics_token(const struct call *c, const struct http_head *h);
void operator_session_token(struct call *c);
void operator_shutdown(struct call *c);
// Access keys and roles, operator_access.c.
void operator_list_keys(struct call *c);
void operator_get_key(struct call *c);
void operator_create_key(struct call *c);
void operator_update_key(struct call *c);
void operator_delete_key(struct call *c);
void operator_list_roles(struct call *c);
void operator_get_role(struct call *c);
void operator_put_role(struct call *c);
void operator_delete_role(struct call *c);

// Shared by the resources.
// Adds the members of an image version's configuration that its answers echo.
void add_image_config(json_t *to, const json_t *config);
json_t *tags_or_null(const char *stored);
// Tag keys that begin with "aws:" are the service's own. False: failed and answered.
bool check_tag_keys(struct call *c, const json_t *tags);
struct arn {
	char region[33], account[13];
	const char *resource; // within the text that was parsed
};
// arn:aws…:lambda:<region>:<account>:<resource>
bool parse_arn(const char *text, struct arn *ret);
// Whether the text is the ARN of an image of the caller's account. False: failed and answered.
bool is_own_image_arn(struct call *c, const char *text);
// Finds the image that an ARN names and checks that it is the caller's. False: failed and answered.
bool find_image(struct call *c, const char *arn, struct store_image *ret);
bool find_version(struct call *c, const struct store_image *image, const char *version, struct store_version *ret);
bool find_microvm(struct call *c, const char *id, struct store_microvm *ret);
// "1" and "1.0" are the same version.
void normalise_version(const char *text, char to[VERSION_TEXT]);
// Whether the ARN names a base image of ours: its name as in base_images(), its version, and the text that is its ARN here.
struct base_image;
const struct base_image *find_base_image(struct engine *en, const char *arn, char canonical[ARN_MAX]);
void managed_image_arn(struct engine *en, const char *name, char to[ARN_MAX]);
// Connectors of a request, connector_list.c. Each checks the list that was given (NULL, null or empty: the default) and puts it into the
// configuration of what is made, egress with the networks that it leads to ("egressNetworks"). False: failed and answered.
bool put_ingress(struct call *c, const json_t *given, json_t *config);
// `inherited`: of the image version; NULL: there is none.
bool put_egress(struct call *c, const json_t *given, const json_t *inherited, json_t *config);
// The account's connector with this id ("nc-…"), name or ARN. False: failed and answered.
bool find_connector(struct call *c, const char *identifier, struct store_connector *ret);
bool find_connector_ever(struct call *c, const char *identifier, struct store_connector *ret); // deleted ones too, by their id or ARN
// Brings connectors whose state is one of passage to the next, and sees which networks there still are: at the start, on a worker.
void connectors_start(struct engine *en);

// Idempotency, idempotency.c. Begin once the body is checked: true when the call is to be carried out; false
// when it was before, and is answered as it was then (with `status`), or refused. `token` goes with the record that the call makes. While held, no
// other call with the same token runs.
struct token_lock;
struct idempotency {
	struct token_lock *lock;
	char digest[STORE_DIGEST];
	struct store_token record;
	struct store_token *token; // NULL: the call has none
};
bool idempotency_begin(struct call *c, int status, struct idempotency *ret);
void idempotency_end(struct idempotency *i);
#define cleanup_idempotency __attribute__((cleanup(idempotency_end))) struct idempotency
