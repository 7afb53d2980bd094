// Declarative validation of requests: shapes say what a value must be, and one function checks a whole body against them.
//
// As in the service (spec section 1.3) there are two layers. A value of the wrong JSON type makes the request unreadable: one message, and
// nothing else is looked at. Constraints (lengths, ranges, patterns, enumerations, required members) are all checked, and every violation is
// reported in one message with camelCase paths.
#pragma once

#include "api/text.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum shape_kind { SHAPE_STRING, SHAPE_INTEGER, SHAPE_BOOLEAN, SHAPE_LIST, SHAPE_MAP, SHAPE_STRUCTURE, SHAPE_UNION };

struct shape_member;

struct shape {
	enum shape_kind kind;
	int64_t min, max;                   // characters, value, or number of elements; max 0: none
	bool (*matches)(const char *);      // strings: whether the whole text matches …
	const char *pattern;                // … this, as the message quotes it
	const char *const *values;          // strings: an enumeration, NULL-terminated
	bool sensitive;                     // never quoted in a message
	const struct shape *element;        // of a list; the values of a map
	const struct shape *key;            // of a map
	const struct shape_member *members; // of structures and unions, ended by one without a name
};

struct shape_member {
	const char *name;
	const struct shape *shape;
	bool required;
};

// A text of one line of violations, bounded in length and number.
struct violations {
	struct text text;
	int count;
};

// Adds a violation that a table cannot express. `value` NULL: the value is not quoted. Also counts.
void violation_add(struct violations *v, const char *value, const char *path, const char *constraint_format, ...)
	__attribute__((format(printf, 4, 5)));

// Whether all types in `value` are those of the shape. Writes why not to `message`.
bool shape_types_match(const struct shape *shape, const json_t *value, char message[static 128]);

// Checks the constraints of a value whose types match.
void shape_check(const struct shape *shape, const json_t *value, const char *path, struct violations *v);

// The final message, "2 validation errors detected: …; …". The caller frees it; NULL when out of memory.
char *violations_message(const struct violations *v);

size_t count_characters(const char *s); // code points of UTF-8

extern const struct shape shape_create_image, shape_update_image, shape_update_version, shape_build_filters, shape_run, shape_auth_token,
	shape_identifier, shape_without_space, shape_shell_auth_token, shape_tag_resource, shape_untag_resource, shape_create_connector,
	shape_update_connector;

// Patterns that more than the tables need.
bool is_image_name(const char *s);
bool is_without_space(const char *s);
bool is_role_arn(const char *s);
