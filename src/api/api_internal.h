// Inside src/api/ only: what the parts of the API's server give each other.
#pragma once

#include "api/server.h"

#include <jansson.h>

// Handlers of the two servers; arg is the engine.
void api_handle(struct exchange *x, void *arg);
bool api_is_quick(const struct http_head *h);
const char *api_refusal(int status, const char **type);
void s3_handle(struct exchange *x, void *arg);
const char *s3_refusal(int status, const char **type);

// Parses a request's body: an object, or nothing at all (*ret NULL). False: *why says why not.
bool api_parse_body(struct slice body, json_t **ret, const char **why);
