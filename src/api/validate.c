// Checking values against shapes; see validate.h.
#include "api/validate.h"

#include "base/cleanup.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define QUOTED_MAX 128    // bytes of a value in a message
#define VIOLATIONS_MAX 50 // reported; the rest is only counted
#define PATH_TEXT_MAX 256

size_t count_characters(const char *s) {
	size_t n = 0;
	for (; *s != '\0'; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

// How many bytes of the text are shown: at most so many, cut at a character's start, so that the message stays UTF-8.
static int cut_at(const char *text, size_t most) {
	size_t n = strnlen(text, most + 1), cut = n > most ? most : n;
	while (cut > 0 && cut < n && ((unsigned char)text[cut] & 0xc0) == 0x80)
		cut--;
	return (int)cut;
}

void violation_add(struct violations *v, const char *value, const char *path, const char *format, ...) {
	v->count++;
	if (v->count > VIOLATIONS_MAX)
		return;
	if (v->text.size > 0)
		text_puts(&v->text, "; ");
	text_puts(&v->text, "Value ");
	if (value != NULL) {
		int cut = cut_at(value, QUOTED_MAX);
		bool bare = strcmp(value, "null") == 0;
		text_format(&v->text, "%s%.*s%s%s ", bare ? "" : "'", cut, value, value[cut] != '\0' ? "..." : "", bare ? "" : "'");
	}
	text_format(&v->text, "at '%s' failed to satisfy constraint: Member must ", path);
	char *constraint = NULL;
	va_list ap;
	va_start(ap, format);
	int n = vasprintf(&constraint, format, ap);
	va_end(ap);
	if (n < 0) {
		v->text.bad = true;
		return;
	}
	text_puts(&v->text, constraint);
	free(constraint);
}

char *violations_message(const struct violations *v) {
	char *message = NULL;
	if (v->text.bad || asprintf(&message, "%d validation error%s detected: %s", v->count, v->count == 1 ? "" : "s", v->text.data) < 0)
		return NULL;
	return message;
}

// Types -----------------------------------------------------------------------------------------------------------------------------

static bool wrong(char message[static 128], const char *text) {
	snprintf(message, 128, "%s", text);
	return false;
}

static const char *token_name(const json_t *v) {
	switch (json_typeof(v)) {
	case JSON_STRING:
		return "STRING_VALUE";
	case JSON_INTEGER:
		return "NUMBER_VALUE";
	case JSON_REAL:
		return "DECIMAL_VALUE";
	case JSON_TRUE:
		return "TRUE_VALUE";
	case JSON_FALSE:
		return "FALSE_VALUE";
	default:
		return "VALUE";
	}
}

static bool scalar_matches(const json_t *v, bool fine, const char *wanted, char message[static 128]) {
	if (fine)
		return true;
	if (json_is_array(v) || json_is_object(v))
		return wrong(message, json_is_array(v) ? "Start of list found where not expected"
						       : "Start of structure or map found where not expected.");
	snprintf(message, 128, "%s can not be converted to %s", token_name(v), wanted);
	return false;
}

static const struct shape *member_shape(const struct shape *s, const char *name) {
	for (const struct shape_member *m = s->members; m->name != NULL; m++)
		if (strcmp(m->name, name) == 0)
			return m->shape;
	return NULL;
}

bool shape_types_match(const struct shape *s, const json_t *v, char message[static 128]) {
	if (v == NULL || json_is_null(v))
		return true;
	switch (s->kind) {
	case SHAPE_STRING:
		return scalar_matches(v, json_is_string(v), "a String", message);
	case SHAPE_INTEGER:
		return scalar_matches(v, json_is_integer(v) && json_integer_value(v) >= INT32_MIN && json_integer_value(v) <= INT32_MAX,
				      "an Integer", message);
	case SHAPE_BOOLEAN:
		return scalar_matches(v, json_is_boolean(v), "a Boolean", message);
	case SHAPE_LIST: {
		if (!json_is_array(v))
			return wrong(message, "Expected list or null");
		for (size_t i = 0; i < json_array_size(v); i++)
			if (!shape_types_match(s->element, json_array_get(v, i), message))
				return false;
		return true;
	}
	default: {
		if (!json_is_object(v))
			return wrong(message, s->kind == SHAPE_MAP ? "Expected map or null" : "Expected null");
		const char *name;
		json_t *value;
		json_t *o = (json_t *)(uintptr_t)v; // jansson's iterators take no const
		json_object_foreach(o, name, value) {
			const struct shape *m = s->kind == SHAPE_MAP ? s->element : member_shape(s, name);
			if (m != NULL && !shape_types_match(m, value, message))
				return false;
		}
		return true;
	}
	}
}

// Constraints -----------------------------------------------------------------------------------------------------------------------

static void check_string(const struct shape *s, const char *text, const char *path, struct violations *v) {
	size_t n = count_characters(text);
	const char *quoted = s->sensitive ? NULL : text;
	if ((int64_t)n < s->min)
		violation_add(v, quoted, path, "have length greater than or equal to %lld", (long long)s->min);
	if (s->max > 0 && (int64_t)n > s->max)
		violation_add(v, quoted, path, "have length less than or equal to %lld", (long long)s->max);
	if (s->matches != NULL && !s->matches(text))
		violation_add(v, quoted, path, "satisfy regular expression pattern: %s", s->pattern);
	if (s->values == NULL)
		return;
	cleanup_text set = {0};
	for (size_t i = 0; s->values[i] != NULL; i++) {
		if (strcmp(s->values[i], text) == 0)
			return;
		text_format(&set, "%s%s", i == 0 ? "" : ", ", s->values[i]);
	}
	violation_add(v, quoted, path, "satisfy enum value set: [%s]", set.data == NULL ? "" : set.data);
}

static void check_integer(const struct shape *s, int64_t value, const char *path, struct violations *v) {
	char text[24];
	snprintf(text, sizeof(text), "%lld", (long long)value);
	if (value < s->min)
		violation_add(v, text, path, "have value greater than or equal to %lld", (long long)s->min);
	if (s->max > 0 && value > s->max)
		violation_add(v, text, path, "have value less than or equal to %lld", (long long)s->max);
}

static void check_size(const struct shape *s, size_t n, const json_t *value, const char *path, struct violations *v) {
	bool low = (int64_t)n<s->min, high = s->max> 0 && (int64_t)n > s->max;
	if (!low && !high)
		return;
	char *text =
		s->sensitive || (s->element != NULL && s->element->sensitive) ? NULL : json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
	violation_add(v, text, path, "have length %s than or equal to %lld", low ? "greater" : "less", (long long)(low ? s->min : s->max));
	free(text);
}

// Paths are in camel case, also where members begin with a capital.
static void join(char to[static PATH_TEXT_MAX], const char *path, const char *name) {
	char first = name[0] >= 'A' && name[0] <= 'Z' ? (char)(name[0] + ('a' - 'A')) : name[0];
	snprintf(to, PATH_TEXT_MAX, "%s%s%c%.63s", path, path[0] == '\0' ? "" : ".", first, name + 1);
}

static void check_members(const struct shape *s, const json_t *value, const char *path, struct violations *v) {
	int given = 0;
	for (const struct shape_member *m = s->members; m->name != NULL; m++) {
		char inner[PATH_TEXT_MAX];
		join(inner, path, m->name);
		const json_t *member = json_object_get(value, m->name);
		if (member == NULL || json_is_null(member)) {
			if (m->required)
				violation_add(v, "null", inner, "not be null");
			continue;
		}
		given++;
		shape_check(m->shape, member, inner, v);
	}
	if (s->kind == SHAPE_UNION && given != 1)
		violation_add(v, NULL, path, "have exactly one of its members set");
}

static void check_map(const struct shape *s, const json_t *value, const char *path, struct violations *v) {
	const char *name;
	json_t *member, *o = (json_t *)(uintptr_t)value;
	json_object_foreach(o, name, member) {
		char inner[PATH_TEXT_MAX];
		snprintf(inner, sizeof(inner), "%s.key", path);
		if (s->key != NULL)
			check_string(s->key, name, inner, v);
		snprintf(inner, sizeof(inner), "%s.%.*s.member", path, cut_at(name, 64), name);
		if (json_is_null(member))
			violation_add(v, "null", inner, "not be null");
		else
			shape_check(s->element, member, inner, v);
	}
}

void shape_check(const struct shape *s, const json_t *value, const char *path, struct violations *v) {
	if (v->count > VIOLATIONS_MAX)
		return;
	switch (s->kind) {
	case SHAPE_STRING:
		check_string(s, json_string_value(value), path, v);
		return;
	case SHAPE_INTEGER:
		check_integer(s, json_integer_value(value), path, v);
		return;
	case SHAPE_BOOLEAN:
		return;
	case SHAPE_LIST:
		check_size(s, json_array_size(value), value, path, v);
		for (size_t i = 0; i < json_array_size(value); i++) {
			char inner[PATH_TEXT_MAX];
			snprintf(inner, sizeof(inner), "%s.%zu.member", path, i + 1);
			if (json_is_null(json_array_get(value, i)))
				violation_add(v, "null", inner, "not be null");
			else
				shape_check(s->element, json_array_get(value, i), inner, v);
		}
		return;
	case SHAPE_MAP:
		check_size(s, json_object_size(value), value, path, v);
		check_map(s, value, path, v);
		return;
	default:
		check_members(s, value, path, v);
	}
}
