// Frames and requests of the agent's control port, and request lines of its streams port: what is accepted, and above all what is not.
#include "guest/guest.h"
#include "guest/request.h"
#include "guest/streams.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define HEX32 "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static int parse(const char *text, struct request *q, struct error *e) {
	return request_parse(text, strlen(text), q, e);
}

static void refused(const char *text, int code, const char *part) {
	struct request q;
	struct error e = {0};
	assert_int_equal(parse(text, &q, &e), code);
	if (strstr(e.message, part) == NULL)
		fail_msg("\"%s\" lacks \"%s\"", e.message, part);
	request_free(&q);
}

static void frames(void **state) {
	uint8_t f[5] = {1, 0, 0, 0, '{'};
	assert_int_equal(frame_size(f, 0), 0);
	assert_int_equal(frame_size(f, 3), 0);
	assert_int_equal(frame_size(f, 4), 5);
	assert_int_equal(frame_size((const uint8_t[]){0, 0, 1, 0}, 4), 65540);
	assert_int_equal(frame_size((const uint8_t[]){1, 0, 1, 0}, 4), -EMSGSIZE);
	assert_int_equal(frame_size((const uint8_t[]){255, 255, 255, 255}, 4), -EMSGSIZE);
}

static void envelopes(void **state) {
	struct request q;
	struct error e = {0};

	assert_int_equal(parse("{\"id\":7,\"op\":\"hello\"}", &q, &e), 0);
	assert_int_equal(q.id, 7);
	assert_int_equal(q.op, OP_HELLO);
	request_free(&q);
	// The id is known even when the rest is wrong, so that the reply finds its request.
	assert_int_equal(parse("{\"id\":9,\"op\":\"dance\"}", &q, &e), -EOPNOTSUPP);
	assert_int_equal(q.id, 9);
	request_free(&q);
	refused("", -EBADMSG, "not valid JSON");
	refused("[]", -EBADMSG, "must be a JSON object");
	refused("{\"id\":1,\"id\":2,\"op\":\"hello\"}", -EBADMSG, "not valid JSON");
	refused("{\"op\":\"hello\"}", -EINVAL, "\"id\" is missing");
	refused("{\"id\":\"1\",\"op\":\"hello\"}", -EINVAL, "must be an integer");
	refused("{\"id\":-1,\"op\":\"hello\"}", -EINVAL, "between");
	refused("{\"id\":1}", -EINVAL, "\"op\" is missing");
	refused("{\"id\":1,\"op\":\"hello\"} x", -EBADMSG, "not valid JSON");
	refused("{\"id\":1,\"op\":\"hel\\u0000lo\"}", -EBADMSG, "not valid JSON");
}

static void resume(void **state) {
	struct request q;
	assert_int_equal(parse("{\"id\":1,\"op\":\"resume\",\"entropy\":\"" HEX32
			       "\",\"realtimeNs\":1700000000000000000,\"generation\":\"clone\","
			       "\"identity\":{\"microvmId\":\"m\"}}",
			       &q, NULL),
			 0);
	assert_int_equal(q.resume.entropy_size, 32);
	assert_int_equal(q.resume.entropy[1], 0x11);
	assert_int_equal(q.resume.realtime_ns, 1700000000000000000);
	assert_true(q.resume.clone);
	assert_non_null(q.resume.identity);
	request_free(&q);
	refused("{\"id\":1,\"op\":\"resume\",\"entropy\":\"0011\",\"realtimeNs\":1,\"generation\":\"clone\"}", -EINVAL, "32 to 64");
	refused("{\"id\":1,\"op\":\"resume\",\"entropy\":\"" HEX32 HEX32 "00\",\"realtimeNs\":1,\"generation\":\"clone\"}", -EINVAL,
		"entropy");
	refused("{\"id\":1,\"op\":\"resume\",\"entropy\":\"" HEX32 "0\",\"realtimeNs\":1,\"generation\":\"clone\"}", -EINVAL, "32 to 64");
	refused("{\"id\":1,\"op\":\"resume\",\"entropy\":\"" HEX32 "AB\",\"realtimeNs\":1,\"generation\":\"clone\"}", -EINVAL,
		"lower-case");
	refused("{\"id\":1,\"op\":\"resume\",\"entropy\":\"" HEX32 "\",\"realtimeNs\":0,\"generation\":\"clone\"}", -EINVAL, "realtimeNs");
	refused("{\"id\":1,\"op\":\"resume\",\"entropy\":\"" HEX32 "\",\"realtimeNs\":1,\"generation\":\"twin\"}", -EINVAL, "generation");
	refused("{\"id\":1,\"op\":\"resume\",\"entropy\":\"" HEX32 "\",\"realtimeNs\":1.5,\"generation\":\"self\"}", -EINVAL,
		"real number");
}

static void start(void **state) {
	struct request q;
	assert_int_equal(parse("{\"id\":1,\"op\":\"start\"}", &q, NULL), 0);
	assert_string_equal(q.start.hostname, "localhost");
	assert_false(q.start.all_capabilities);
	assert_null(q.start.env);
	request_free(&q);
	assert_int_equal(parse("{\"id\":1,\"op\":\"start\",\"disk\":\"image\",\"env\":{\"A\":\"b=c\"},\"capabilities\":\"all\","
			       "\"hostname\":\"h-1\"}",
			       &q, NULL),
			 0);
	assert_true(q.start.all_capabilities);
	assert_string_equal(json_string_value(json_object_get(q.start.env, "A")), "b=c");
	request_free(&q);
	refused("{\"id\":1,\"op\":\"start\",\"disk\":\"system\"}", -EINVAL, "disk");
	refused("{\"id\":1,\"op\":\"start\",\"env\":{\"A\":1}}", -EINVAL, "strings only");
	refused("{\"id\":1,\"op\":\"start\",\"env\":{\"A=B\":\"1\"}}", -EINVAL, "environment variable");
	refused("{\"id\":1,\"op\":\"start\",\"env\":{\"\":\"1\"}}", -EINVAL, "environment variable");
	refused("{\"id\":1,\"op\":\"start\",\"env\":[\"A=1\"]}", -EINVAL, "must be an object");
	refused("{\"id\":1,\"op\":\"start\",\"capabilities\":\"some\"}", -EINVAL, "capabilities");
	refused("{\"id\":1,\"op\":\"start\",\"hostname\":\"a b\"}", -EINVAL, "host name");
	refused("{\"id\":1,\"op\":\"start\",\"hostname\":\"\"}", -EINVAL, "host name");
}

static void hook(void **state) {
	struct request q;
	assert_int_equal(parse("{\"id\":1,\"op\":\"hook\",\"name\":\"run\",\"port\":65535,\"timeoutMs\":1,\"body\":\"\",\"retry503\":true}",
			       &q, NULL),
			 0);
	assert_int_equal(q.hook.port, 65535);
	assert_non_null(q.hook.body);
	assert_int_equal(q.hook.body_size, 0);
	assert_true(q.hook.retry_503);
	request_free(&q);
	refused("{\"id\":1,\"op\":\"hook\",\"name\":\"run\\r\\nX: y\",\"port\":1,\"timeoutMs\":1}", -EINVAL, "no hook");
	refused("{\"id\":1,\"op\":\"hook\",\"name\":\"run\",\"port\":0,\"timeoutMs\":1}", -EINVAL, "port");
	refused("{\"id\":1,\"op\":\"hook\",\"name\":\"run\",\"port\":65536,\"timeoutMs\":1}", -EINVAL, "port");
	refused("{\"id\":1,\"op\":\"hook\",\"name\":\"run\",\"port\":1,\"timeoutMs\":0}", -EINVAL, "timeoutMs");
	refused("{\"id\":1,\"op\":\"hook\",\"name\":\"run\",\"port\":1}", -EINVAL, "timeoutMs");
}

static void build_and_network(void **state) {
	struct request q;
	assert_int_equal(parse("{\"id\":1,\"op\":\"build\",\"artifactBytes\":1}", &q, NULL), 0);
	assert_int_equal(q.build.timeout_ms, 3600000);
	request_free(&q);
	refused("{\"id\":1,\"op\":\"build\"}", -EINVAL, "artifactBytes");
	refused("{\"id\":1,\"op\":\"build\",\"artifactBytes\":1,\"dockerfile\":\"/etc/passwd\"}", -EINVAL, "relative");
	refused("{\"id\":1,\"op\":\"build\",\"artifactBytes\":1,\"outputFormat\":\"tar\"}", -EINVAL, "ext4");
	refused("{\"id\":1,\"op\":\"build\",\"artifactBytes\":1,\"baseAliases\":{\"a\":[]}}", -EINVAL, "strings only");
	assert_int_equal(parse("{\"id\":1,\"op\":\"network\",\"address\":\"10.1.2.3/"
			       "24\",\"gateway\":\"10.1.2.1\",\"nameservers\":[\"1.1.1.1\",\"::1\"]}",
			       &q, NULL),
			 0);
	assert_int_equal(q.network.prefix, 24);
	assert_int_equal(ntohl(q.network.address.s_addr), 0x0a010203);
	assert_int_equal(q.network.nameserver_count, 2);
	assert_string_equal(q.network.nameservers[1], "::1");
	request_free(&q);
	refused("{\"id\":1,\"op\":\"network\",\"address\":\"10.1.2.3\"}", -EINVAL, "address");
	refused("{\"id\":1,\"op\":\"network\",\"address\":\"10.1.2.3/\"}", -EINVAL, "address");
	refused("{\"id\":1,\"op\":\"network\",\"address\":\"10.1.2.3/33\"}", -EINVAL, "address");
	refused("{\"id\":1,\"op\":\"network\",\"address\":\"10.1.2.3/2 4\"}", -EINVAL, "address");
	refused("{\"id\":1,\"op\":\"network\",\"gateway\":\"nowhere\"}", -EINVAL, "gateway");
	refused("{\"id\":1,\"op\":\"network\",\"nameservers\":[\"dns.example\"]}", -EINVAL, "IP addresses");
	refused("{\"id\":1,\"op\":\"network\",\"nameservers\":[\"1.1.1.1\",\"1.1.1.1\",\"1.1.1.1\",\"1.1.1.1\"]}", -EINVAL, "at most 3");
}

static void stream_lines(void **state) {
	static const char *const bad[] = {"TCP \n",    "TCP 0\n",    "TCP 65536\n",
					  "TCP 080\n", "TCP 80 \n",  "TCP -1\n",
					  "TCP 8o\n",  "tcp 80\n",   "EVENTS \n",
					  "\n",        "TCP 80\r\n", "0123456789012345678901234567890123456789012345678901234567890123"};
	struct stream_request q;

	assert_int_equal(stream_request_parse("TCP 8080\nGET", 12, &q), 9);
	assert_int_equal(q.kind, STREAM_TCP);
	assert_int_equal(q.port, 8080);
	assert_int_equal(stream_request_parse("EVENTS\n", 7, &q), 7);
	assert_int_equal(q.kind, STREAM_EVENTS);
	assert_int_equal(stream_request_parse("TCP 80", 6, &q), 0);
	assert_int_equal(stream_request_parse("", 0, &q), 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(stream_request_parse(bad[i], strlen(bad[i]), &q), -EINVAL);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(frames), cmocka_unit_test(envelopes),         cmocka_unit_test(resume),       cmocka_unit_test(start),
		cmocka_unit_test(hook),   cmocka_unit_test(build_and_network), cmocka_unit_test(stream_lines),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
