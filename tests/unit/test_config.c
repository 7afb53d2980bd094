// The configuration's table: defaults, each kind of member, and everything that must be refused by name.
#include "stasisd/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>
#include <unistd.h>

static int parse(const char *text, struct config *c, struct error *e) {
	return config_parse(text, strlen(text), "test.json", c, e);
}

static void test_defaults(void **state) {
	struct config c;
	struct error e;
	assert_int_equal(parse("{}", &c, &e), 0);
	assert_string_equal(c.state_folder, "/var/lib/stasis");
	assert_string_equal(c.api_listen, "127.0.0.1:7411");
	assert_string_equal(c.s3_listen, "127.0.0.1:7412");
	assert_string_equal(c.edge_listen, "127.0.0.1:7443");
	assert_int_equal(c.edge_public_port, 7443);
	assert_string_equal(c.account, "000000000000");
	assert_string_equal(c.base_alias, "{}");
	assert_int_equal(c.artifact_limit, 1 << 30);
	assert_int_equal(c.image_disk_limit, 8LL << 30);
	assert_int_equal(c.concurrent_builds, 1);
	assert_true(c.default_timeout_scale == 1);
}

static void test_values(void **state) {
	struct config c;
	struct error e;
	assert_int_equal(
		parse("{\"stateFolder\":\"/a\",\"edgePublicPort\":443,\"defaultTimeoutScale\":10,\"baseAliases\":{\"a\": \"debian\"},"
		      "\"imageDiskBytes\":268435456,\"account\":\"123456789012\",\"accessKeyId\":\"k\",\"secretAccessKey\":\"s\","
		      "\"apiListen\":\"0.0.0.0:0\",\"logLevel\":\"debug\"}",
		      &c, &e),
		0);
	assert_string_equal(c.state_folder, "/a");
	assert_int_equal(c.edge_public_port, 443);
	assert_true(c.default_timeout_scale == 10);
	assert_string_equal(c.base_alias, "{\"a\":\"debian\"}");
	assert_int_equal(c.image_disk_limit, 268435456);
	assert_string_equal(c.key_secret, "s");
}

static void test_refusals(void **state) {
	static const struct {
		const char *text, *names;
	} cases[] = {
		{"", "test.json"},
		{"[]", "one JSON object"},
		{"{\"a\":1}", "\"a\""},
		{"{\"apiListen\":7411}", "\"apiListen\" must be a string"},
		{"{\"apiListen\":\"7411\"}", "\"apiListen\" must be an address"},
		{"{\"apiListen\":\"a:70000\"}", "\"apiListen\" must be an address"},
		{"{\"apiListen\":\"a:1x\"}", "\"apiListen\" must be an address"},
		{"{\"stateFolder\":\"a\"}", "\"stateFolder\" must be an absolute path"},
		{"{\"runFolder\":\"/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}",
		 "longer than 63 bytes"},
		{"{\"edgePublicPort\":0}", "between 1 and 65535"},
		{"{\"edgePublicPort\":1.5}", "whole number"},
		{"{\"edgePublicPort\":\"443\"}", "whole number"},
		{"{\"defaultTimeoutScale\":0}", "\"defaultTimeoutScale\""},
		{"{\"artifactLimitBytes\":99999999999999}", "\"artifactLimitBytes\""},
		{"{\"baseAliases\":[]}", "\"baseAliases\" must be an object"},
		{"{\"account\":\"12345678901\"}", "twelve digits"},
		{"{\"accessKeyId\":\"a\"}", "belong together"},
		{"{\"s3Addressing\":\"pat\"}", "path|virtual"},
		{"{\"s3Endpoint\":\"s3.example.org\"}", "must be a URL"},
		{"{\"logLevel\":\"loud\"}", "debug|info|warn|error"},
		{"{\"region\":\"a\",\"region\":\"b\"}", "test.json"},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct config c = {.edge_public_port = 77};
		struct error e = {0};
		assert_true(parse(cases[i].text, &c, &e) < 0);
		if (strstr(e.message, cases[i].names) == NULL)
			fail_msg("%s: %s", cases[i].text, e.message);
		assert_int_equal(c.edge_public_port, 77); // untouched
	}
	struct config c;
	struct error e;
	assert_true(config_read("/nonexistent/config.json", &c, &e) < 0);
	assert_non_null(strstr(e.message, "/nonexistent/config.json"));
}

int main(void) {
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_defaults), cmocka_unit_test(test_values), cmocka_unit_test(test_refusals)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
