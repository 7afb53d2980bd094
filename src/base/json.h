// JSON of strangers, over jansson: parsing with a size limit, and getters that check type and range and name the member that is wrong.
//
// A program that uses these functions links jansson (or jansson_static) itself; base does not pull it in.
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void cleanup_json_fn(json_t **j) {
	json_decref(*j);
}
#define cleanup_json __attribute__((cleanup(cleanup_json_fn)))

enum member_need { MEMBER_OPTIONAL, MEMBER_REQUIRED };

// Parses one JSON value (duplicate member names are refused). `what` names it in messages. Returns a new reference, or NULL with *e set:
// -EFBIG above `limit` bytes, -EBADMSG when it is no JSON.
json_t *json_parse(const void *data, size_t size, size_t limit, const char *what, struct error *e);

// The same, and the value must be an object.
json_t *json_parse_object(const void *data, size_t size, size_t limit, const char *what, struct error *e);

// Members of an object. An absent (or null) optional member leaves *ret as it was and returns 0; an absent required one, one of another type
// or one out of range returns -EINVAL. Strings and containers are borrowed from `object`.
int member_string(const json_t *object, const char *key, enum member_need need, size_t max_bytes, const char **ret, struct error *e);
int member_integer(const json_t *object, const char *key, enum member_need need, int64_t min, int64_t max, int64_t *ret, struct error *e);
int member_bool(const json_t *object, const char *key, enum member_need need, bool *ret, struct error *e);
int member_object(const json_t *object, const char *key, enum member_need need, const json_t **ret, struct error *e);
// An array of at most max_count strings of at most max_bytes bytes each.
int member_strings(const json_t *object, const char *key, enum member_need need, size_t max_count, size_t max_bytes, const json_t **ret,
		   struct error *e);
// An object of at most max_count members, each a string of at most max_bytes bytes.
int member_string_map(const json_t *object, const char *key, enum member_need need, size_t max_count, size_t max_bytes, const json_t **ret,
		      struct error *e);
