// Checked access to JSON; see json.h. Every message names the member, what it must be, and (shortly) what it is.
#include "base/json.h"

static const char *type_name(const json_t *j) {
	switch (json_typeof(j)) {
	case JSON_OBJECT:
		return "an object";
	case JSON_ARRAY:
		return "an array";
	case JSON_STRING:
		return "a string";
	case JSON_INTEGER:
		return "an integer";
	case JSON_REAL:
		return "a real number";
	case JSON_TRUE:
	case JSON_FALSE:
		return "a boolean";
	case JSON_NULL:
		break;
	}
	return "null";
}

json_t *json_parse(const void *data, size_t size, size_t limit, const char *what, struct error *e) {
	json_error_t je;

	if (size > limit) {
		error_set(e, -EFBIG, "%s has %zu bytes; at most %zu are accepted", what, size, limit);
		return NULL;
	}
	json_t *j = json_loadb(data, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);
	if (j == NULL)
		error_set(e, -EBADMSG, "%s is not valid JSON: %s (line %d, column %d)", what, je.text, je.line, je.column);
	return j;
}

json_t *json_parse_object(const void *data, size_t size, size_t limit, const char *what, struct error *e) {
	cleanup_json json_t *j = json_parse(data, size, limit, what, e);

	if (j == NULL)
		return NULL;
	if (!json_is_object(j)) {
		error_set(e, -EBADMSG, "%s must be a JSON object, it is %s", what, type_name(j));
		return NULL;
	}
	return json_incref(j);
}

// Returns 1 with *ret set, 0 when an optional member is absent, or -EINVAL.
static int find_member(const json_t *object, const char *key, enum member_need need, const json_t **ret, struct error *e) {
	const json_t *j = json_object_get(object, key);

	if (j == NULL || json_is_null(j)) {
		if (need == MEMBER_REQUIRED)
			return error_set(e, -EINVAL, "the member \"%s\" is missing", key);
		return 0;
	}
	*ret = j;
	return 1;
}

static int wrong_type(const char *key, const char *wanted, const json_t *j, struct error *e) {
	return error_set(e, -EINVAL, "the member \"%s\" must be %s, it is %s", key, wanted, type_name(j));
}

int member_string(const json_t *object, const char *key, enum member_need need, size_t max_bytes, const char **ret, struct error *e) {
	const json_t *j = NULL;
	int r = find_member(object, key, need, &j, e);

	if (r <= 0)
		return r;
	if (!json_is_string(j))
		return wrong_type(key, "a string", j, e);
	if (json_string_length(j) > max_bytes)
		return error_set(e, -EINVAL, "the member \"%s\" has %zu bytes; at most %zu are accepted", key, json_string_length(j),
				 max_bytes);
	*ret = json_string_value(j);
	return 0;
}

int member_integer(const json_t *object, const char *key, enum member_need need, int64_t min, int64_t max, int64_t *ret, struct error *e) {
	const json_t *j = NULL;
	int r = find_member(object, key, need, &j, e);

	if (r <= 0)
		return r;
	if (!json_is_integer(j))
		return wrong_type(key, "an integer", j, e);
	if (json_integer_value(j) < min || json_integer_value(j) > max)
		return error_set(e, -EINVAL, "the member \"%s\" is %lld; it must be between %lld and %lld", key,
				 (long long)json_integer_value(j), (long long)min, (long long)max);
	*ret = json_integer_value(j);
	return 0;
}

int member_bool(const json_t *object, const char *key, enum member_need need, bool *ret, struct error *e) {
	const json_t *j = NULL;
	int r = find_member(object, key, need, &j, e);

	if (r <= 0)
		return r;
	if (!json_is_boolean(j))
		return wrong_type(key, "a boolean", j, e);
	*ret = json_is_true(j);
	return 0;
}

int member_object(const json_t *object, const char *key, enum member_need need, const json_t **ret, struct error *e) {
	const json_t *j = NULL;
	int r = find_member(object, key, need, &j, e);

	if (r <= 0)
		return r;
	if (!json_is_object(j))
		return wrong_type(key, "an object", j, e);
	*ret = j;
	return 0;
}

static int check_item(const char *key, const json_t *item, size_t max_bytes, struct error *e) {
	if (!json_is_string(item))
		return error_set(e, -EINVAL, "the member \"%s\" must hold strings only, it holds %s", key, type_name(item));
	if (json_string_length(item) > max_bytes)
		return error_set(e, -EINVAL, "the member \"%s\" holds a string of %zu bytes; at most %zu are accepted", key,
				 json_string_length(item), max_bytes);
	return 0;
}

int member_strings(const json_t *object, const char *key, enum member_need need, size_t max_count, size_t max_bytes, const json_t **ret,
		   struct error *e) {
	const json_t *j = NULL, *item;
	size_t i;
	int r = find_member(object, key, need, &j, e);

	if (r <= 0)
		return r;
	if (!json_is_array(j))
		return wrong_type(key, "an array", j, e);
	if (json_array_size(j) > max_count)
		return error_set(e, -EINVAL, "the member \"%s\" has %zu entries; at most %zu are accepted", key, json_array_size(j),
				 max_count);
	json_array_foreach(j, i, item) {
		if ((r = check_item(key, item, max_bytes, e)) < 0)
			return r;
	}
	*ret = j;
	return 0;
}

int member_string_map(const json_t *object, const char *key, enum member_need need, size_t max_count, size_t max_bytes, const json_t **ret,
		      struct error *e) {
	const json_t *j = NULL;
	int r = member_object(object, key, need, &j, e);

	if (r < 0 || j == NULL)
		return r;
	if (json_object_size(j) > max_count)
		return error_set(e, -EINVAL, "the member \"%s\" has %zu entries; at most %zu are accepted", key, json_object_size(j),
				 max_count);
	const char *name;
	json_t *item;
	json_object_foreach(json_object_get(object, key), name, item) {
		if ((r = check_item(key, item, max_bytes, e)) < 0)
			return r;
	}
	*ret = j;
	return 0;
}
