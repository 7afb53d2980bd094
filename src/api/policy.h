// Policies: which actions on which resources are allowed. A document in the language of IAM, of which the part is known that needs no context:
// statements with Effect, Action and Resource (docs/access.md). What it does not know it refuses, because to pass over a Condition would
// mean to allow more than was written.
//
// Source: "IAM JSON policy elements reference" and "Policy evaluation logic" in the IAM User Guide.
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stddef.h>

#define POLICY_MAX 10240 // bytes of a document
#define POLICY_EVERYTHING "{\"Statement\":[{\"Effect\":\"Allow\",\"Action\":[\"*\",\"stasis:*\"],\"Resource\":\"*\"}]}"
#define POLICY_ACCOUNT                                                                                                                \
	"{\"Statement\":[{\"Effect\":\"Allow\",\"Action\":[\"*\",\"stasis:GetLogs\",\"stasis:OpenSession\",\"stasis:RevokeTokens\"]," \
	"\"Resource\":\"*\"}]}"

// Parses and checks a document. Returns a new reference, or NULL with *e set (-EINVAL, -EFBIG, -EBADMSG), which names the statement and the member.
json_t *policy_read(const char *text, size_t size, struct error *e);
// The same of a document that is JSON already.
int policy_check(const json_t *document, struct error *e);

enum policy_verdict {
	POLICY_SILENT, // no statement says anything: refused
	POLICY_ALLOWS,
	POLICY_DENIES, // a statement says no, whatever others allow
};

// What a checked document says. Actions are compared without regard to case, resources with it; `*` and `?` in the document's texts stand
// for any text and any character. An action of the operator (stasis:…) is allowed only by statements that name it or `stasis:*`: `*` stands for
// what an account may do.
enum policy_verdict policy_decide(const json_t *document, const char *action, const char *resource);
