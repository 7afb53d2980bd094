// Inside src/logs/ only: calls of CloudWatch Logs (protocol "JSON 1.1": POST with X-Amz-Target), signed by libcurl. Source: Amazon CloudWatch Logs API
// Reference.
#pragma once

#include "base/error.h"

#include <curl/curl.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>

struct config;

struct cloudwatch {
	const struct config *config;
	CURL *curl;               // one connection, kept
	const _Atomic bool *stop; // ends a call under way
};

enum cloudwatch_verdict {
	CLOUDWATCH_DONE,
	CLOUDWATCH_MISSING, // the group or the stream is not there
	CLOUDWATCH_INVALID, // these events will never be taken
	CLOUDWATCH_DENIED,  // nor will anything else, until somebody changes something
	CLOUDWATCH_LATER,   // busy, failing, or not to be reached
};

int cloudwatch_open(const struct config *c, const _Atomic bool *stop, struct cloudwatch *ret);
void cloudwatch_close(struct cloudwatch *w);
// Makes the stream, and its group when that is missing; both may be there already. `e` says why not.
enum cloudwatch_verdict cloudwatch_create(struct cloudwatch *w, const char *group, const char *stream, struct error *e);
// Sends events ([{"timestamp": ms, "message": …}] in the order of their times; takes its reference). *ret_rejected: whether the service has left some of
// them out, as too old or too new.
enum cloudwatch_verdict cloudwatch_put(struct cloudwatch *w, const char *group, const char *stream, json_t *events, bool *ret_rejected,
				       struct error *e);
