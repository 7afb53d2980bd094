// Signatures: AWS's published examples, and everything about a request that must make them fail; the aws-chunked coding.
#include "api/aws_chunked.h"
#include "api/sigv4.h"
#include "api/text.h"
#include "cli/sign.h"
#include "store/checksum.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define SUITE_SECRET "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
#define S3_SECRET "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"

static int64_t at(const char *date) {
	struct tm tm = {0};
	assert_non_null(strptime(date, "%Y%m%dT%H%M%SZ", &tm));
	return timegm(&tm);
}

static enum sigv4_verdict verify(const char *request, const char *service, const char *secret, const char *payload, int64_t now,
				 struct sigv4 *s) {
	static struct http_head h;
	struct error e = {0};
	// A copy of exactly its size, so that the sanitizer sees any access beyond.
	size_t size = strlen(request);
	char *copy = malloc(size);
	memcpy(copy, request, size);
	ssize_t n = http_parse_request(copy, size, &h, &e);
	if (n <= 0)
		fail_msg("head refused (%s): %s", e.message, request);
	enum sigv4_verdict v = sigv4_parse(&h, service, s, &e);
	if (v == SIGV4_FINE)
		v = sigv4_check(s, &h, secret, payload, now, &e);
	if (v != SIGV4_FINE)
		assert_true(e.message[0] != '\0');
	free(copy);
	return v;
}

#define SUITE_AUTH(headers, signature)                                                                                           \
	"Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=" headers \
	", Signature=" signature "\r\n\r\n"
#define SUITE_HEADERS "Host:example.amazonaws.com\r\nX-Amz-Date:20150830T123600Z\r\n"

static void published_suite(void **state) {
	(void)state;
	static const struct {
		const char *name, *request, *payload;
	} cases[] = {
		{"get-vanilla",
		 "GET / HTTP/1.1\r\n" SUITE_HEADERS SUITE_AUTH("host;x-amz-date",
							       "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
		 EMPTY},
		{"get-vanilla-query-order-key-case",
		 "GET /?Param2=value2&Param1=value1 HTTP/1.1\r\n" SUITE_HEADERS SUITE_AUTH(
			 "host;x-amz-date", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
		 EMPTY},
		{"post-vanilla",
		 "POST / HTTP/1.1\r\n" SUITE_HEADERS SUITE_AUTH("host;x-amz-date",
								"5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
		 EMPTY},
		{"get-header-value-trim",
		 "GET / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1: value1\r\nMy-Header2: \"a   b   "
		 "c\"\r\nX-Amz-Date:20150830T123600Z\r\n" SUITE_AUTH("host;my-header1;my-header2;x-amz-date",
								     "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"),
		 EMPTY},
		{"get-relative",
		 "GET /example/.. HTTP/1.1\r\n" SUITE_HEADERS SUITE_AUTH(
			 "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
		 EMPTY},
		{"get-slash",
		 "GET // HTTP/1.1\r\n" SUITE_HEADERS SUITE_AUTH("host;x-amz-date",
								"5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
		 EMPTY},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct sigv4 s;
		print_message("  %s\n", cases[i].name);
		assert_int_equal(verify(cases[i].request, "service", SUITE_SECRET, cases[i].payload, at("20150830T123600Z"), &s),
				 SIGV4_FINE);
		assert_int_equal(verify(cases[i].request, "service", SUITE_SECRET "x", cases[i].payload, at("20150830T123600Z"), &s),
				 SIGV4_MISMATCH);
	}
}

#define S3_GET(signature)                                                                                                    \
	"GET /test.txt HTTP/1.1\r\nHost: examplebucket.s3.amazonaws.com\r\nRange: bytes=0-9\r\nx-amz-content-sha256: " EMPTY \
	"\r\nx-amz-date: 20130524T000000Z\r\nAuthorization: AWS4-HMAC-SHA256 "                                               \
	"Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"                                                \
	"SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature=" signature "\r\n\r\n"
#define S3_GET_SIGNATURE "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
#define S3_PRESIGNED                                                                                                                       \
	"GET /test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&" \
	"X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&"                                                        \
	"X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404 HTTP/1.1\r\nHost: "                              \
	"examplebucket.s3.amazonaws.com\r\n\r\n"

static void published_s3_examples(void **state) {
	(void)state;
	struct sigv4 s;
	int64_t now = at("20130524T000000Z");
	assert_int_equal(verify(S3_GET(S3_GET_SIGNATURE), "s3", S3_SECRET, EMPTY, now, &s), SIGV4_FINE);
	assert_string_equal(s.key_id, "AKIAIOSFODNN7EXAMPLE");
	assert_string_equal(s.region, "us-east-1");
	assert_int_equal(
		verify("PUT /test%24file.text HTTP/1.1\r\nHost: examplebucket.s3.amazonaws.com\r\nContent-Length: 0\r\n"
		       "Date: Fri, 24 May 2013 00:00:00 GMT\r\nx-amz-date: 20130524T000000Z\r\nx-amz-storage-class: REDUCED_REDUNDANCY\r\n"
		       "x-amz-content-sha256: 44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072\r\n"
		       "Authorization: AWS4-HMAC-SHA256 "
		       "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=date;host;"
		       "x-amz-content-sha256;x-amz-date;x-amz-storage-class,Signature="
		       "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd\r\n\r\n",
		       "s3", S3_SECRET, "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072", now, &s),
		SIGV4_FINE);
	assert_int_equal(
		verify("GET /?lifecycle HTTP/1.1\r\nHost: examplebucket.s3.amazonaws.com\r\nx-amz-date: "
		       "20130524T000000Z\r\nx-amz-content-sha256: " EMPTY "\r\nAuthorization: AWS4-HMAC-SHA256 "
		       "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;"
		       "x-amz-content-sha256;x-amz-date,Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543\r\n\r\n",
		       "s3", S3_SECRET, EMPTY, now, &s),
		SIGV4_FINE);
	assert_int_equal(
		verify("GET /?max-keys=2&prefix=J HTTP/1.1\r\nHost: examplebucket.s3.amazonaws.com\r\nx-amz-date: "
		       "20130524T000000Z\r\nx-amz-content-sha256: " EMPTY "\r\nAuthorization: AWS4-HMAC-SHA256 "
		       "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;"
		       "x-amz-content-sha256;x-amz-date,Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7\r\n\r\n",
		       "s3", S3_SECRET, EMPTY, now, &s),
		SIGV4_FINE);
	assert_int_equal(verify(S3_PRESIGNED, "s3", S3_SECRET, "UNSIGNED-PAYLOAD", now, &s), SIGV4_FINE);
	assert_true(s.presigned);
}

static void time_is_checked(void **state) {
	(void)state;
	struct sigv4 s;
	int64_t now = at("20130524T000000Z");
	const char *get = S3_GET(S3_GET_SIGNATURE);
	assert_int_equal(verify(get, "s3", S3_SECRET, EMPTY, now + 300, &s), SIGV4_FINE);
	assert_int_equal(verify(get, "s3", S3_SECRET, EMPTY, now + 301, &s), SIGV4_SKEWED);
	assert_int_equal(verify(get, "s3", S3_SECRET, EMPTY, now - 300, &s), SIGV4_FINE);
	assert_int_equal(verify(get, "s3", S3_SECRET, EMPTY, now - 301, &s), SIGV4_SKEWED);
	assert_int_equal(verify(S3_PRESIGNED, "s3", S3_SECRET, "UNSIGNED-PAYLOAD", now + 86400, &s), SIGV4_FINE);
	assert_int_equal(verify(S3_PRESIGNED, "s3", S3_SECRET, "UNSIGNED-PAYLOAD", now + 86401, &s), SIGV4_EXPIRED);
	assert_int_equal(verify(S3_PRESIGNED, "s3", S3_SECRET, "UNSIGNED-PAYLOAD", now - 301, &s), SIGV4_SKEWED);
}

// One change at a time to a good request; each must be noticed.
static void every_change_is_noticed(void **state) {
	(void)state;
	struct sigv4 s;
	int64_t now = at("20130524T000000Z");
	const char *good = S3_GET(S3_GET_SIGNATURE);
	static const struct {
		const char *from, *to;
		enum sigv4_verdict verdict;
	} changes[] = {
		{"GET", "PUT", SIGV4_MISMATCH},
		{"/test.txt", "/test.txu", SIGV4_MISMATCH},
		{"/test.txt", "/test.txt?a", SIGV4_MISMATCH},
		{"/test.txt", "//test.txt", SIGV4_MISMATCH},
		{"/test.txt", "/%74est.txt", SIGV4_FINE}, // another spelling of the same path
		{"/test.txt", "/test%2", SIGV4_MALFORMED},
		{"/test.txt", "/?%zz=1", SIGV4_MALFORMED},
		{"examplebucket", "exampleducket", SIGV4_MISMATCH},
		{"bytes=0-9", "bytes=0-8", SIGV4_MISMATCH},
		{"Range: bytes=0-9\r\n", "Range: bytes=0-9\r\nRange: bytes=0-9\r\n", SIGV4_MISMATCH},
		{"Range: bytes=0-9\r\n", "Range:    bytes=0-9  \r\n", SIGV4_FINE},
		{"Range: bytes=0-9\r\n", "Range: bytes=0-9\r\nx-amz-extra: 1\r\n", SIGV4_UNSIGNED},
		{"Range: bytes=0-9\r\n", "Range: bytes=0-9\r\nx-other: 1\r\n", SIGV4_FINE},
		{"host;range", "range", SIGV4_UNSIGNED},
		{"x-amz-date: 20130524T000000Z\r\n", "", SIGV4_MALFORMED},
		{"x-amz-date: 20130524T000000Z\r\n", "x-amz-date: 20130524T000000Z\r\nx-amz-date: 20130524T000000Z\r\n", SIGV4_MALFORMED},
		{"x-amz-date: 20130524T000000Z", "x-amz-date: 20130523T235959Z", SIGV4_MALFORMED},
		{"x-amz-date: 20130524T000000Z", "x-amz-date: 20130524T000001Z", SIGV4_MISMATCH},
		{"x-amz-date: 20130524T000000Z", "x-amz-date: 20130524 000000Z", SIGV4_MALFORMED},
		{"x-amz-date: 20130524T000000Z", "x-amz-date: 20130524T250000Z", SIGV4_MALFORMED},
		{"/us-east-1/", "/us-east-2/", SIGV4_MISMATCH},
		{"/s3/", "/lambda/", SIGV4_SCOPE},
		{"aws4_request", "aws5_request", SIGV4_MALFORMED},
		{"/20130524/", "/2013052/", SIGV4_MALFORMED},
		{"AKIAIOSFODNN7EXAMPLE/", "/", SIGV4_MALFORMED},
		{"AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA255 ", SIGV4_MALFORMED},
		{"AWS4-HMAC-SHA256 ", "", SIGV4_MALFORMED},
		{"Signature=f", "Signature=e", SIGV4_MISMATCH},
		{"Signature=f", "Signature=F", SIGV4_MALFORMED},
		{"Signature=f", "Signature=", SIGV4_MALFORMED},
		{"Signature=f", "Signatur=f", SIGV4_MALFORMED},
		{"Signature=f", "Signature=f0,Signature=f", SIGV4_MALFORMED},
		{"SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,", "", SIGV4_MALFORMED},
		{"SignedHeaders=host;", "SignedHeaders=;host;", SIGV4_MALFORMED},
		{"Authorization:", "X-Authorization:", SIGV4_MISSING},
		{"Range:", "Authorization: x\r\nRange:", SIGV4_MALFORMED},
		{"/test.txt", "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256", SIGV4_MALFORMED},
	};
	for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		char request[2048];
		const char *where = strstr(good, changes[i].from);
		assert_non_null(where);
		snprintf(request, sizeof(request), "%.*s%s%s", (int)(where - good), good, changes[i].to, where + strlen(changes[i].from));
		enum sigv4_verdict v = verify(request, "s3", S3_SECRET, EMPTY, now, &s);
		if (v != changes[i].verdict)
			fail_msg("%s -> %s: %d", changes[i].from, changes[i].to, v);
	}
	assert_int_equal(verify(good, "s3", S3_SECRET, "UNSIGNED-PAYLOAD", now, &s), SIGV4_MISMATCH);
}

static void huge_queries_are_refused(void **state) {
	(void)state;
	struct sigv4 s;
	char request[8192] = "GET /?a=1";
	for (int i = 0; i < 300; i++)
		strcat(request, "&b=2");
	strcat(request, strchr(S3_GET(S3_GET_SIGNATURE), ' ') + strlen(" /test.txt"));
	assert_int_equal(verify(request, "s3", S3_SECRET, EMPTY, at("20130524T000000Z"), &s), SIGV4_MALFORMED);
}

// The command line signs with the code that checks; it must name the right things to it.
static void the_command_line_signs(void **state) {
	(void)state;
	static const char *const paths[] = {
		"/",
		"/2025-09-09/microvm-images/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Amicrovm-image%3Aapp/versions/1.0",
		"/2025-09-09/microvm-images?maxResults=50&nextToken=a%2Bb&nameFilter=%C3%BC",
		"/bucket/a%20key//with/./dots",
	};
	static const char *const services[] = {"lambda", "s3"}, *const tokens[] = {NULL, "", "token/+="};
	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
		for (size_t k = 0; k < 6; k++) {
			const char *service = services[k % 2], *token = tokens[k / 2];
			struct sign_input in = {.service = service,
						.region = "eu-north-1",
						.key_id = "AKIDEXAMPLE",
						.key_secret = SUITE_SECRET,
						.token = token,
						.method = "PUT",
						.host = "127.0.0.1:7411",
						.path = paths[i],
						.body = "body",
						.body_size = 4};
			struct sign_output out;
			struct sigv4 s;
			struct error e = {0};
			char request[4096], header[64] = "";
			if (sign_request(&in, &out, &e) < 0)
				fail_msg("%s", e.message);
			if (token != NULL && token[0] != '\0')
				snprintf(header, sizeof(header), "X-Amz-Security-Token: %s\r\n", token);
			snprintf(request, sizeof(request),
				 "PUT %s HTTP/1.1\r\nHost: 127.0.0.1:7411\r\nX-Amz-Date: %s\r\nX-Amz-Content-Sha256: "
				 "%s\r\n%sContent-Length: 4\r\n"
				 "Authorization: %s\r\n\r\n",
				 paths[i], out.date, out.content_sha256, header, out.authorization);
			assert_int_equal(verify(request, service, SUITE_SECRET, out.content_sha256, time(NULL), &s), SIGV4_FINE);
			assert_string_equal(s.region, "eu-north-1");
			assert_int_equal(verify(request, service, "other", out.content_sha256, time(NULL), &s), SIGV4_MISMATCH);
		}
	}
	struct sign_input in = {.service = "lambda",
				.region = "eu-north-1",
				.key_id = "A",
				.key_secret = "B",
				.method = "GET",
				.host = "h",
				.path = "/?a=%zz",
				.body = ""};
	struct sign_output out;
	struct error e = {0};
	assert_int_equal(sign_request(&in, &out, &e), -EINVAL);
}

// aws-chunked -----------------------------------------------------------------------------------------------------------------------

static int decode(struct aws_chunked *d, const char *data, size_t size, size_t step, struct text *to) {
	struct error e = {0};
	for (size_t i = 0; i < size && !d->done;) {
		struct slice content;
		size_t n = size - i < step ? size - i : step;
		ssize_t used = aws_chunked_feed(d, data + i, n, &content, &e);
		if (used < 0)
			return (int)used;
		assert_true(used > 0);
		text_add(to, content.data, content.size);
		i += (size_t)used;
	}
	return d->done ? 0 : -EAGAIN;
}

// The example of the S3 API Reference: 65 KiB of 'a' in chunks of 64 KiB and 1 KiB.
static void published_chunks(void **state) {
	(void)state;
	struct sigv4 seed = {.date = "20130524",
			     .region = "us-east-1",
			     .service = "s3",
			     .amz_date = "20130524T000000Z",
			     .signature = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"};
	struct text body = {0};
	char a[65536];
	memset(a, 'a', sizeof(a));
	text_puts(&body, "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n");
	text_add(&body, a, 65536);
	text_puts(&body, "\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n");
	text_add(&body, a, 1024);
	text_puts(&body, "\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n");
	static const size_t steps[] = {1, 3, 4096, 1 << 20};
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		struct aws_chunked d;
		struct text content = {0};
		assert_int_equal(aws_chunked_start(&d, &seed, S3_SECRET, false, NULL), 0);
		assert_int_equal(decode(&d, body.data, body.size, steps[i], &content), 0);
		assert_int_equal(content.size, 66560);
		aws_chunked_end(&d);
		free(content.data);
	}
	// Any byte changed, any cut: never done.
	for (size_t i = 0; i < body.size; i += i < 200 || i > body.size - 1300 ? 7 : 5001) {
		struct aws_chunked d;
		struct text content = {0};
		body.data[i] ^= 1;
		assert_int_equal(aws_chunked_start(&d, &seed, S3_SECRET, false, NULL), 0);
		assert_int_not_equal(decode(&d, body.data, body.size, 4096, &content), 0);
		aws_chunked_end(&d);
		body.data[i] ^= 1;
		assert_int_equal(aws_chunked_start(&d, &seed, S3_SECRET, false, NULL), 0);
		assert_int_equal(decode(&d, body.data, i, 4096, &content), -EAGAIN);
		aws_chunked_end(&d);
		free(content.data);
	}
	free(body.data);
}

static void trailers_are_read(void **state) {
	(void)state;
	static const char body[] = "5\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n";
	for (size_t step = 1; step < sizeof(body); step++) {
		struct aws_chunked d;
		struct text content = {0};
		assert_int_equal(aws_chunked_start(&d, NULL, NULL, true, NULL), 0);
		assert_int_equal(decode(&d, body, sizeof(body) - 1, step, &content), 0);
		assert_string_equal(content.data, "hello world");
		assert_string_equal(aws_chunked_trailer(&d, "x-amz-checksum-crc32"), "DUoRhQ==");
		assert_null(aws_chunked_trailer(&d, "x-amz-checksum-sha256"));
		aws_chunked_end(&d);
		free(content.data);
	}
	static const char *const bad[] = {
		"x\r\n", "5\nhello\r\n",         "5\r\nhello!\r\n", "fffffffffffffffff\r\n",   "20000000000\r\n",
		"\r\n",  "0\r\nnocolon\r\n\r\n", ";\r\n",           "0\r\na:1\r\na:2\r\n\r\n", "0\r\n:1\r\n\r\n",
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct aws_chunked d;
		struct text content = {0};
		aws_chunked_start(&d, NULL, NULL, true, NULL);
		int r = decode(&d, bad[i], strlen(bad[i]), 100, &content);
		if (r != -EBADMSG)
			fail_msg("%s: %d", bad[i], r);
		aws_chunked_end(&d);
		free(content.data);
	}
}

static void checksums(void **state) {
	(void)state;
	// The check values of the CRC catalogue and of FIPS 180-4, over "123456789" and "abc".
	static const struct {
		const char *name, *text, *value;
	} cases[] = {
		{"crc32", "123456789", "y/Q5Jg=="},
		{"crc32c", "123456789", "4waSgw=="},
		{"crc64nvme", "123456789", "rosUhgp5mIg="},
		{"sha1", "abc", "qZk+NkcGgWq6PiVxeFDCbJzQ2J0="},
		{"sha256", "abc", "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		for (size_t cut = 0; cut <= strlen(cases[i].text); cut++) {
			struct checksum c;
			char value[CHECKSUM_TEXT];
			assert_true(checksum_start(&c, checksum_find(cases[i].name, strlen(cases[i].name))));
			checksum_add(&c, cases[i].text, cut);
			checksum_add(&c, cases[i].text + cut, strlen(cases[i].text) - cut);
			checksum_finish(&c, value);
			assert_string_equal(value, cases[i].value);
		}
	}
	assert_int_equal(checksum_find("md5", 3), CHECKSUM_KINDS);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(published_suite),
		cmocka_unit_test(published_s3_examples),
		cmocka_unit_test(time_is_checked),
		cmocka_unit_test(every_change_is_noticed),
		cmocka_unit_test(huge_queries_are_refused),
		cmocka_unit_test(the_command_line_signs),
		cmocka_unit_test(published_chunks),
		cmocka_unit_test(trailers_are_read),
		cmocka_unit_test(checksums),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
