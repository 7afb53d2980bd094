// The API's own tools: percent-encoding and queries, XML, validation of requests, bodies, versions. (Its operations are tested with the AWS
// SDK in tests/api/.)
#include "api/api_internal.h"
#include "api/json_write.h"
#include "api/s3.h"
#include "api/validate.h"
#include "api/xml.h"
#include "base/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct slice slice_of(const char *s) {
	return (struct slice){s, strlen(s)};
}

static void percent(void **state) {
	(void)state;
	static const struct {
		const char *from, *to;
	} good[] = {{"", ""}, {"a%20b", "a b"}, {"%41%6a%6A", "Ajj"}, {"a+b", "a+b"}, {"%e2%82%ac", "\xe2\x82\xac"}};
	static const char *const bad[] = {"%", "%4", "a%", "%zz", "%4g", "%%41"};
	char to[64];
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		ssize_t n = percent_decode(good[i].from, strlen(good[i].from), to);
		assert_int_equal(n, strlen(good[i].to));
		assert_memory_equal(to, good[i].to, (size_t)n);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(percent_decode(bad[i], strlen(bad[i]), to), -EBADMSG);
	cleanup_text t = {0};
	text_encode(&t, "a/b c~\xc3\xbc%", 9, true);
	assert_string_equal(t.data, "a/b%20c~%C3%BC%25");
}

// The same text as jansson's, to the byte.
static void json_is_written(void **state) {
	(void)state;
	static const char *const texts[] = {
		"{}",
		"[]",
		"{\"b\":1,\"a\":[null,true,false,-1,0,9223372036854775807,-9223372036854775808]}",
		"[\"\",\"plain\",\"\\u0001\\u001f\\u007f\\b\\f\\n\\r\\t\\\"\\\\/\",\"\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80\"]",
		"{\"\\n\":{\"x\":[[],{}]}}",
		"[1750000000.0,1750000000.5,1750000000.12,1750000000.123,1750000000.001,1.0,9999999999.999]",
		"[0.0,-1.5,0.25,3.14159265,1e-300,123456789012.5,10000000000.0,1750000000.12345]",
	};
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		cleanup_json json_t *v = json_loads(texts[i], 0, NULL);
		assert_non_null(v);
		cleanup_text t = {0};
		json_write(&t, v);
		char *expected = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(13));
		assert_string_equal(t.data, expected);
		free(expected);
	}
	for (int64_t ms = 1785000000000; ms < 1785000002100; ms += 7) {
		cleanup_json json_t *v = json_pack("[f]", (double)ms / 1000.0);
		cleanup_text t = {0};
		json_write(&t, v);
		char *expected = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(13));
		assert_string_equal(t.data, expected);
		free(expected);
	}
}

static void queries(void **state) {
	(void)state;
	struct slice q = slice_of("a=1&b&c=x%20y=z&a=2&d=&e=%zz&f=%00");
	char *v = NULL;
	assert_int_equal(query_find(q, "a", &v), 1);
	assert_string_equal(v, "1");
	free(v);
	assert_int_equal(query_find(q, "b", &v), 1);
	assert_string_equal(v, "");
	free(v);
	assert_int_equal(query_find(q, "c", &v), 1);
	assert_string_equal(v, "x y=z");
	free(v);
	assert_int_equal(query_find(q, "d", &v), 1);
	assert_string_equal(v, "");
	free(v);
	assert_int_equal(query_find(q, "e", &v), -EBADMSG);
	assert_int_equal(query_find(q, "f", &v), -EBADMSG);
	assert_int_equal(query_find(q, "g", &v), 0);
	assert_int_equal(query_find(slice_of(""), "a", &v), 0);
	struct slice path, query;
	target_split(slice_of("/x?y?z"), &path, &query);
	assert_int_equal(path.size, 2);
	assert_int_equal(query.size, 3);
}

static bool collect(void *arg, const char *path, const char *value) {
	text_format(arg, "%s=%s;", path, value);
	return strcmp(value, "stop") != 0;
}

static void xml(void **state) {
	(void)state;
	static const struct {
		const char *document, *seen;
	} good[] = {
		{"<a/>", "a=;"},
		{"<?xml version=\"1.0\"?>\n<a x='1' y = \"<\"><b>1 &lt;&#65;&#x20ac;&amp;</b><c/></a>\n", "a/b=1 <A\xe2\x82\xac&;a/c=;a=;"},
		{"\xef\xbb\xbf<a><!-- <b> --><b><![CDATA[<&]]></b></a >", "a/b=<&;a=;"},
	};
	static const char *const bad[] = {"",
					  " ",
					  "x",
					  "<a>",
					  "</a>",
					  "<a></b>",
					  "<a/><b/>",
					  "<a>&nbsp;</a>",
					  "<a>&#0;</a>",
					  "<a>&#xd800;</a>",
					  "<a>&#99999999999;</a>",
					  "<a>&#;</a>",
					  "<a>&</a>",
					  "<!DOCTYPE a><a/>",
					  "<a b></a>",
					  "<a b=1/>",
					  "<a/>x",
					  "<?xml",
					  "<a><!--</a>",
					  "< a/>",
					  "<a><![CDATA[</a>",
					  "<a b='/>"};
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		cleanup_text t = {0};
		assert_int_equal(xml_read(good[i].document, strlen(good[i].document), collect, &t), 0);
		assert_string_equal(t.data, good[i].seen);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cleanup_text t = {0};
		if (xml_read(bad[i], strlen(bad[i]), collect, &t) != -EBADMSG)
			fail_msg("accepted: %s", bad[i]);
	}
	cleanup_text t = {0};
	assert_int_equal(xml_read("<a><b>stop</b><c/></a>", 22, collect, &t), -ECANCELED);
	// Every cut of a document is refused.
	for (size_t n = 0; n < strlen(good[1].document) - 1; n++) {
		cleanup_text u = {0};
		char *copy = malloc(n + 1);
		memcpy(copy, good[1].document, n);
		if (n > 0 && copy[n - 1] == '>' && strncmp(copy + n - 4, "</a>", 4) == 0)
			n = strlen(good[1].document);
		else
			assert_int_equal(xml_read(copy, n, collect, &u), -EBADMSG);
		free(copy);
	}
	cleanup_text escaped = {0};
	xml_element(&escaped, "k", "<a&\"b\">\x01\r");
	assert_string_equal(escaped.data, "<k>&lt;a&amp;&quot;b&quot;&gt;?&#13;</k>");
}

static void documents(void **state) {
	(void)state;
	struct s3_delete_request d;
	const char *text = "<Delete "
			   "xmlns=\"x\"><Quiet>true</Quiet><Object><Key>a&amp;b</Key><VersionId>v</VersionId></Object><Object><Key>c</"
			   "Key></Object></Delete>";
	assert_int_equal(s3_parse_delete(text, strlen(text), &d), 0);
	assert_int_equal(d.count, 2);
	assert_true(d.quiet);
	assert_string_equal(d.keys[0], "a&b");
	s3_delete_request_clear(&d);
	struct s3_complete_request c;
	text = "<CompleteMultipartUpload><Part><ETag>\"abc\"</ETag><PartNumber>1</PartNumber></Part><Part><PartNumber>10000</"
	       "PartNumber><ETag>d</ETag></Part>"
	       "</CompleteMultipartUpload>";
	assert_int_equal(s3_parse_complete(text, strlen(text), &c), 0);
	assert_int_equal(c.count, 2);
	assert_string_equal(c.parts[0].etag, "abc");
	assert_int_equal(c.parts[1].number, 10000);
	s3_complete_request_clear(&c);
	static const char *const bad[] = {"0", "10001", "-1", "1x", "", "99999999999"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char document[256];
		snprintf(document, sizeof(document),
			 "<CompleteMultipartUpload><Part><PartNumber>%s</PartNumber><ETag>d</ETag></Part></CompleteMultipartUpload>",
			 bad[i]);
		assert_int_equal(s3_parse_complete(document, strlen(document), &c), -EBADMSG);
	}
}

static void check(const struct shape *shape, const char *body, const char *expected) {
	cleanup_json json_t *o = json_loads(body, 0, NULL);
	char why[128];
	assert_non_null(o);
	assert_true(shape_types_match(shape, o, why));
	struct violations v = {.count = 0};
	shape_check(shape, o, "", &v);
	char *message = v.count == 0 ? NULL : violations_message(&v);
	if (expected == NULL ? message != NULL : message == NULL || strcmp(message, expected) != 0)
		fail_msg("%s: %s", body, message);
	free(message);
	free(v.text.data);
}

#define VIOLATION "1 validation error detected: Value "
static void constraints(void **state) {
	(void)state;
	check(&shape_auth_token,
	      "{\"expirationInMinutes\":1,\"allowedPorts\":[{\"allPorts\":{}},{\"port\":65535},{\"range\":{\"startPort\":1,\"endPort\":2}}]"
	      "}",
	      NULL);
	check(&shape_auth_token, "{\"expirationInMinutes\":1,\"allowedPorts\":[{\"port\":65536}]}",
	      VIOLATION
	      "'65536' at 'allowedPorts.1.member.port' failed to satisfy constraint: Member must have value less than or equal to 65535");
	check(&shape_auth_token, "{\"expirationInMinutes\":1,\"allowedPorts\":[null]}",
	      VIOLATION "null at 'allowedPorts.1.member' failed to satisfy constraint: Member must not be null");
	check(&shape_auth_token, "{\"expirationInMinutes\":1,\"allowedPorts\":[{\"port\":1,\"allPorts\":{}}]}",
	      VIOLATION "at 'allowedPorts.1.member' failed to satisfy constraint: Member must have exactly one of its members set");
	check(&shape_auth_token, "{\"unknown\":[]}",
	      "2 validation errors detected: Value null at 'expirationInMinutes' failed to satisfy constraint: Member must not be null; "
	      "Value null at "
	      "'allowedPorts' failed to satisfy constraint: Member must not be null");
	check(&shape_run, "{\"imageIdentifier\":\"\xc3\xbc\",\"executionRoleArn\":null}", NULL);
	check(&shape_run, "{\"imageIdentifier\":\"x\",\"executionRoleArn\":\"arn:aws:iam::00000000000x:role/x\"}",
	      VIOLATION "'arn:aws:iam::00000000000x:role/x' at 'executionRoleArn' failed to satisfy constraint: Member must satisfy "
			"regular expression "
			"pattern: arn:aws[a-z\\-]*:iam::[0-9]{12}:role/?[a-zA-Z_0-9+=,.@\\-_/]+");
	check(&shape_run, "{\"imageIdentifier\":\"x\",\"executionRoleArn\":\"arn:aws-us-gov:iam::000000000000:role/path/x\"}", NULL);
	// A long value is quoted in part, and not in the middle of a character.
	char body[2200] = "{\"imageIdentifier\":\"";
	for (int i = 0; i < 300; i++)
		strcat(body, "\xe2\x82\xac");
	strcat(body, "\"}");
	cleanup_json json_t *o = json_loads(body, 0, NULL);
	struct violations v = {.count = 0};
	shape_check(&shape_run, o, "", &v);
	char *message = violations_message(&v);
	cleanup_json json_t *utf8 = json_string(message);
	assert_non_null(utf8);
	assert_true(strlen(message) < 400);
	free(message);
	free(v.text.data);
}

static void bodies(void **state) {
	(void)state;
	json_t *o;
	const char *why;
	assert_true(api_parse_body(slice_of(""), &o, &why));
	assert_null(o);
	assert_true(api_parse_body(slice_of("{\"a\":\"]]][[[{{{\\\"[[\"}"), &o, &why));
	json_decref(o);
	char deep[200] = "";
	for (int i = 0; i < 33; i++)
		strcat(deep, "{\"a\":");
	assert_false(api_parse_body(slice_of(deep), &o, &why));
	assert_string_equal(why, "The request body is nested too deeply");
	static const char *const bad[] = {"[]", "1", "{", "{\"a\":1,\"a\":1}", "{}{}", "\"", "{\"\\ud800\":1}"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_false(api_parse_body(slice_of(bad[i]), &o, &why));
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(percent),   cmocka_unit_test(json_is_written), cmocka_unit_test(queries), cmocka_unit_test(xml),
		cmocka_unit_test(documents), cmocka_unit_test(constraints),     cmocka_unit_test(bodies),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
