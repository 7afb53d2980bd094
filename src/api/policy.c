// Reading and evaluating policies; see policy.h.
#include "api/policy.h"

#include "base/json.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

#define STATEMENTS_MAX 64
#define PATTERNS_MAX 64 // of one statement's actions, and of its resources
#define PATTERN_MAX 512 // bytes
#define OPERATOR "stasis:"

// Checking --------------------------------------------------------------------------------------------------------------------------

static bool is_action(const char *s) {
	if (strcmp(s, "*") == 0)
		return true;
	size_t service = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-");
	if (service == 0 || s[service] != ':' || s[service + 1] == '\0')
		return false;
	s += service + 1;
	return s[strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789*?")] == '\0';
}

static bool is_resource(const char *s) {
	if (strncmp(s, "arn:", 4) != 0 && s[0] != '*')
		return false;
	for (const char *p = s; *p != '\0'; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f || (p[0] == '$' && p[1] == '{'))
			return false;
	return true;
}

static int check_pattern(const json_t *v, const char *member, size_t number, struct error *e) {
	const char *text = json_string_value(v);
	bool action = strcmp(member, "Action") == 0;
	if (text == NULL || strlen(text) > PATTERN_MAX || !(action ? is_action(text) : is_resource(text)))
		return error_set(e, -EINVAL,
				 action ? "statement %zu: \"Action\" must be texts such as \"lambda:RunMicrovm\", \"s3:*\" or \"*\", "
					  "or a list of such, not %s%.100s%s"
					: "statement %zu: \"Resource\" must be ARNs (with * and ? for any text and character, without "
					  "variables), \"*\", or a list of such, not %s%.100s%s",
				 number, text == NULL ? "" : "\"", text == NULL ? "something else" : text, text == NULL ? "" : "\"");
	return 0;
}

// A text or a list of them.
static int check_patterns(const json_t *statement, const char *member, size_t number, struct error *e) {
	const json_t *v = json_object_get(statement, member);
	if (v == NULL)
		return error_set(e, -EINVAL, "statement %zu: \"%s\" is missing", number, member);
	if (!json_is_array(v))
		return check_pattern(v, member, number, e);
	size_t n = json_array_size(v);
	if (n == 0 || n > PATTERNS_MAX)
		return error_set(e, -EINVAL, "statement %zu: \"%s\" has %zu texts; 1 to %d are accepted", number, member, n, PATTERNS_MAX);
	int r = 0;
	for (size_t i = 0; i < n && r == 0; i++)
		r = check_pattern(json_array_get(v, i), member, number, e);
	return r;
}

// number 0: of the policy itself.
static int check_members(const json_t *o, const char *const *known, size_t number, struct error *e) {
	for (void *i = json_object_iter((json_t *)(uintptr_t)o); i != NULL; i = json_object_iter_next((json_t *)(uintptr_t)o, i)) {
		const char *const *k = known;
		while (*k != NULL && strcmp(*k, json_object_iter_key(i)) != 0)
			k++;
		if (*k == NULL && number == 0)
			return error_set(e, -EINVAL, "\"%.64s\" is not supported: a policy has Version, Id and Statement",
					 json_object_iter_key(i));
		if (*k == NULL)
			return error_set(e, -EINVAL,
					 "statement %zu: \"%.64s\" is not supported: a statement has Sid, Effect, Action and Resource",
					 number, json_object_iter_key(i));
	}
	return 0;
}

static int check_statement(const json_t *s, size_t number, struct error *e) {
	static const char *const known[] = {"Sid", "Effect", "Action", "Resource", NULL};
	if (!json_is_object(s))
		return error_set(e, -EINVAL, "statement %zu must be an object", number);
	int r = check_members(s, known, number, e);
	if (r < 0)
		return r;
	const char *effect = json_string_value(json_object_get(s, "Effect"));
	if (effect == NULL || (strcmp(effect, "Allow") != 0 && strcmp(effect, "Deny") != 0))
		return error_set(e, -EINVAL, "statement %zu: \"Effect\" must be \"Allow\" or \"Deny\"", number);
	const json_t *sid = json_object_get(s, "Sid");
	if (sid != NULL && !json_is_string(sid))
		return error_set(e, -EINVAL, "statement %zu: \"Sid\" must be a string", number);
	r = check_patterns(s, "Action", number, e);
	return r < 0 ? r : check_patterns(s, "Resource", number, e);
}

int policy_check(const json_t *document, struct error *e) {
	static const char *const known[] = {"Version", "Id", "Statement", NULL};
	if (!json_is_object(document))
		return error_set(e, -EINVAL, "a policy must be a JSON object with a member \"Statement\"");
	int r = check_members(document, known, 0, e);
	if (r < 0)
		return r;
	const json_t *version = json_object_get(document, "Version"), *statements = json_object_get(document, "Statement");
	const char *text = json_string_value(version);
	if (version != NULL && (text == NULL || (strcmp(text, "2012-10-17") != 0 && strcmp(text, "2008-10-17") != 0)))
		return error_set(e, -EINVAL, "\"Version\" must be \"2012-10-17\"");
	if (json_is_object(statements))
		return check_statement(statements, 1, e);
	size_t n = json_array_size(statements);
	if (n == 0 || n > STATEMENTS_MAX)
		return error_set(e, -EINVAL, "\"Statement\" must be a list of 1 to %d statements", STATEMENTS_MAX);
	for (size_t i = 0; i < n && r == 0; i++)
		r = check_statement(json_array_get(statements, i), i + 1, e);
	return r;
}

json_t *policy_read(const char *text, size_t size, struct error *e) {
	json_t *document = json_parse_object(text, size, POLICY_MAX, "the policy", e);
	if (document == NULL || policy_check(document, e) == 0)
		return document;
	json_decref(document);
	return NULL;
}

// Deciding --------------------------------------------------------------------------------------------------------------------------

static bool same(char a, char b, bool nocase) {
	if (nocase && a >= 'A' && a <= 'Z')
		a += 'a' - 'A';
	if (nocase && b >= 'A' && b <= 'Z')
		b += 'a' - 'A';
	return a == b;
}

// Goes back to the last star only, so that the time is bounded by the product of the lengths.
static bool matches(const char *pattern, const char *text, bool nocase) {
	const char *star = NULL, *retry = NULL;
	while (*text != '\0') {
		if (*pattern == '*') {
			star = pattern++;
			retry = text;
		} else if (*pattern != '\0' && (*pattern == '?' || same(*pattern, *text, nocase))) {
			pattern++;
			text++;
		} else if (star != NULL) {
			pattern = star + 1;
			text = ++retry;
		} else {
			return false;
		}
	}
	while (*pattern == '*')
		pattern++;
	return *pattern == '\0';
}

static bool any_matches(const json_t *patterns, const char *text, bool nocase, const char *prefix) {
	size_t n = json_is_array(patterns) ? json_array_size(patterns) : 1;
	for (size_t i = 0; i < n; i++) {
		const char *p = json_string_value(json_is_array(patterns) ? json_array_get(patterns, i) : patterns);
		if (p != NULL && strncasecmp(p, prefix, strlen(prefix)) == 0 && matches(p, text, nocase))
			return true;
	}
	return false;
}

enum policy_verdict policy_decide(const json_t *document, const char *action, const char *resource) {
	const json_t *statements = json_object_get(document, "Statement");
	size_t n = json_is_array(statements) ? json_array_size(statements) : 1;
	enum policy_verdict verdict = POLICY_SILENT;
	for (size_t i = 0; i < n; i++) {
		const json_t *s = json_is_array(statements) ? json_array_get(statements, i) : statements;
		const char *effect = json_string_value(json_object_get(s, "Effect"));
		bool denies = effect == NULL || strcmp(effect, "Allow") != 0;
		bool operators = strncasecmp(action, OPERATOR, strlen(OPERATOR)) == 0;
		if (!any_matches(json_object_get(s, "Action"), action, true, operators && !denies ? OPERATOR : "") ||
		    !any_matches(json_object_get(s, "Resource"), resource, false, ""))
			continue;
		if (denies)
			return POLICY_DENIES;
		verdict = POLICY_ALLOWS;
	}
	return verdict;
}
