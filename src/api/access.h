// Who calls, and what he may do: access keys and temporary credentials, and the policies of both (docs/access.md). Shared by the API and the
// artifact store.
#pragma once

#include "api/sigv4.h"
#include "base/error.h"
#include "base/http1.h"
#include "store/store.h"

#include <jansson.h>
#include <stdbool.h>

struct engine;
struct call;

#define PRINCIPAL_MAX 256
#define ACTION_MAX 80

enum access_identity {
	ACCESS_KNOWN,
	ACCESS_UNKNOWN,   // no such key, or a disabled one
	ACCESS_BAD_TOKEN, // a session token that is none of ours, or not this key's
	ACCESS_EXPIRED,   // temporary credentials that are over, or whose microVM is
	ACCESS_FAILED,    // the store cannot say; *e is set
};

// Finds out whose signature this claims to be. *ret (to be cleared) is the key to check it with; that of temporary credentials has the policy of
// their role. `principal` is his ARN, for messages. Only sigv4_check() proves that it is he.
enum access_identity access_identify(struct engine *en, const struct sigv4 *s, const struct http_head *h, struct store_key *ret,
				     char principal[PRINCIPAL_MAX], struct error *e);

// Whether the policy of the key allows it. If not, -EACCES with *e named AccessDeniedException, whose message says who lacks what.
int access_decide(const struct store_key *k, const char *principal, const char *action, const char *resource, struct error *e);

// The same for a call. False: failed and answered.
bool access_may(struct call *c, const char *action, const char *resource);
// Whether the caller may do this call's operation, as far as its labels and its body say on what; once both are read, before the operation.
// False: failed and answered.
bool access_check(struct call *c);
// Whether the caller may hand on what `o` names: connectors (ingressNetworkConnectors, egressNetworkConnectors) and roles (buildRoleArn,
// executionRoleArn), and whether those roles are there when the operator has defined roles. False: failed and answered.
bool access_pass(struct call *c, const json_t *o);
