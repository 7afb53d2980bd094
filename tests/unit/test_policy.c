// Policies: what is refused and how, what matches, and which statement wins.
#include "api/policy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALLOW(action, resource) "{\"Effect\":\"Allow\",\"Action\":" action ",\"Resource\":" resource "}"
#define DENY(action, resource) "{\"Effect\":\"Deny\",\"Action\":" action ",\"Resource\":" resource "}"
#define IMAGE "arn:aws:lambda:us-east-1:000000000000:microvm-image:"

static void documents_are_checked(void **state) {
	(void)state;
	static const struct {
		const char *text, *message; // NULL: accepted
	} cases[] = {
		{POLICY_EVERYTHING, NULL},
		{POLICY_ACCOUNT, NULL},
		{"{\"Version\":\"2012-10-17\",\"Id\":\"x\",\"Statement\":[" ALLOW("\"s3:Get*\"", "[\"arn:aws:s3:::b/*\",\"*\"]") "]}",
		 NULL},
		{"{\"Statement\":{\"Sid\":\"a\",\"Effect\":\"Deny\",\"Action\":\"*\",\"Resource\":\"*\"}}", NULL},
		{"{\"Statement\":" ALLOW("\"LAMBDA:runmicrovm\"", "\"*:prod\"") "}", NULL},
		{"", "not valid JSON"},
		{"[]", "JSON object"},
		{"{}", "\"Statement\" must be a list"},
		{"{\"Statement\":[]}", "1 to 64"},
		{"{\"Statement\":[1]}", "statement 1 must be an object"},
		{"{\"Statement\":[{}]}", "statement 1: \"Effect\""},
		{"{\"Version\":\"2020\",\"Statement\":" ALLOW("\"*\"", "\"*\"") "}", "2012-10-17"},
		{"{\"Statement\":" ALLOW("\"*\"", "\"*\"") ",\"Principal\":\"*\"}", "\"Principal\" is not supported"},
		{"{\"Statement\":[" ALLOW("\"*\"",
					  "\"*\"") ",{\"Effect\":\"Allow\",\"Action\":\"*\",\"Resource\":\"*\",\"Condition\":{}}]}",
		 "statement 2: \"Condition\" is not supported"},
		{"{\"Statement\":{\"Effect\":\"Allow\",\"NotAction\":\"*\",\"Resource\":\"*\"}}", "\"NotAction\" is not supported"},
		{"{\"Statement\":{\"Effect\":\"allow\",\"Action\":\"*\",\"Resource\":\"*\"}}", "\"Allow\" or \"Deny\""},
		{"{\"Statement\":{\"Effect\":\"Allow\",\"Action\":\"*\"}}", "\"Resource\" is missing"},
		{"{\"Statement\":{\"Effect\":\"Allow\",\"Sid\":1,\"Action\":\"*\",\"Resource\":\"*\"}}", "\"Sid\""},
		{"{\"Statement\":" ALLOW("\"RunMicrovm\"", "\"*\"") "}", "not \"RunMicrovm\""},
		{"{\"Statement\":" ALLOW("\"lambda:\"", "\"*\"") "}", "\"Action\" must be"},
		{"{\"Statement\":" ALLOW("\"lambda:Run Microvm\"", "\"*\"") "}", "\"Action\" must be"},
		{"{\"Statement\":" ALLOW("[]", "\"*\"") "}", "has 0 texts"},
		{"{\"Statement\":" ALLOW("[\"*\",3]", "\"*\"") "}", "something else"},
		{"{\"Statement\":" ALLOW("\"*\"", "\"app\"") "}", "\"Resource\" must be ARNs"},
		{"{\"Statement\":" ALLOW("\"*\"", "\"arn:aws:s3:::${aws:username}\"") "}", "\"Resource\" must be ARNs"},
		{"{\"Statement\":" ALLOW("\"*\"", "\"arn:\\u0001\"") "}", "\"Resource\" must be ARNs"},
		{"{\"Statement\":[],\"Statement\":[]}", "not valid JSON"},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct error e = {0};
		json_t *p = policy_read(cases[i].text, strlen(cases[i].text), &e);
		if ((p != NULL) != (cases[i].message == NULL) || (p == NULL && strstr(e.message, cases[i].message) == NULL))
			fail_msg("%s: %s", cases[i].text, e.message);
		json_decref(p);
	}
	char *large = malloc(POLICY_MAX + 2);
	memset(large, ' ', POLICY_MAX + 1);
	struct error e = {0};
	assert_null(policy_read(large, POLICY_MAX + 1, &e));
	assert_int_equal(e.code, -EFBIG);
	free(large);
}

static enum policy_verdict decide(const char *text, const char *action, const char *resource) {
	struct error e = {0};
	json_t *p = policy_read(text, strlen(text), &e);
	if (p == NULL)
		fail_msg("%s: %s", text, e.message);
	enum policy_verdict v = policy_decide(p, action, resource);
	json_decref(p);
	return v;
}

static void statements_decide(void **state) {
	(void)state;
	static const char policy[] =
		"{\"Statement\":[" ALLOW("[\"lambda:*Microvm\",\"s3:Get?bject\"]", "[\"" IMAGE "app*\",\"arn:aws:s3:::b/*\"]") "," DENY(
			"\"lambda:Terminate*\"", "\"" IMAGE "app-prod\"") "]}";
	static const struct {
		const char *action, *resource;
		enum policy_verdict verdict;
	} cases[] = {
		{"lambda:RunMicrovm", IMAGE "app", POLICY_ALLOWS},
		{"lambda:RunMicrovm", IMAGE "app-prod", POLICY_ALLOWS},
		{"LAMBDA:runmicrovm", IMAGE "app", POLICY_ALLOWS},
		{"lambda:RunMicrovm", IMAGE "App", POLICY_SILENT},
		{"lambda:RunMicrovm", IMAGE "ap", POLICY_SILENT},
		{"lambda:RunMicrovm", "*", POLICY_SILENT},
		{"lambda:GetMicrovmImage", IMAGE "app", POLICY_SILENT},
		{"lambda:TerminateMicrovm", IMAGE "app", POLICY_ALLOWS},
		{"lambda:TerminateMicrovm", IMAGE "app-prod", POLICY_DENIES},
		{"lambda:TerminateMicrovm", IMAGE "app-prod2", POLICY_ALLOWS},
		{"s3:GetObject", "arn:aws:s3:::b/k/l", POLICY_ALLOWS},
		{"s3:GetObject", "arn:aws:s3:::b", POLICY_SILENT},
		{"s3:GetObjects", "arn:aws:s3:::b/k", POLICY_SILENT},
		{"stasis:Operate", "*", POLICY_SILENT},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		if (decide(policy, cases[i].action, cases[i].resource) != cases[i].verdict)
			fail_msg("%s on %s", cases[i].action, cases[i].resource);
}

// Everything of an account is not everything of the engine.
static void the_operators_actions_are_named(void **state) {
	(void)state;
	static const char all[] = "{\"Statement\":" ALLOW("\"*\"", "\"*\"") "}";
	assert_int_equal(decide(all, "lambda:RunMicrovm", "*"), POLICY_ALLOWS);
	assert_int_equal(decide(all, "stasis:Operate", "*"), POLICY_SILENT);
	assert_int_equal(decide(POLICY_EVERYTHING, "stasis:Operate", "*"), POLICY_ALLOWS);
	assert_int_equal(decide(POLICY_EVERYTHING, "iam:PassRole", "x"), POLICY_ALLOWS);
	assert_int_equal(decide(POLICY_ACCOUNT, "stasis:Operate", "*"), POLICY_SILENT);
	assert_int_equal(decide(POLICY_ACCOUNT, "stasis:GetLogs", IMAGE "app"), POLICY_ALLOWS);
	assert_int_equal(decide("{\"Statement\":[" ALLOW("\"Stasis:*\"", "\"*\"") "," DENY("\"*\"", "\"*\"") "]}", "stasis:Operate", "*"),
			 POLICY_DENIES);
}

// The worst that a pattern can ask for stays within its length times the text's.
static void patterns_cost_little(void **state) {
	(void)state;
	char text[1200], resource[2100] = "arn:";
	snprintf(text, sizeof(text), "{\"Statement\":{\"Effect\":\"Allow\",\"Action\":\"*\",\"Resource\":\"arn:");
	for (int i = 0; i < 250; i++)
		strcat(text, "*a");
	strcat(text, "b\"}}");
	memset(resource + 4, 'a', 2000);
	resource[2004] = '\0';
	for (int i = 0; i < 100; i++)
		assert_int_equal(decide(text, "s3:GetObject", resource), POLICY_SILENT);
	strcat(resource, "b");
	assert_int_equal(decide(text, "s3:GetObject", resource), POLICY_ALLOWS);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(documents_are_checked),
		cmocka_unit_test(statements_decide),
		cmocka_unit_test(the_operators_actions_are_named),
		cmocka_unit_test(patterns_cost_little),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
