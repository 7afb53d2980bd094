// The HTTP/1.1 parser: what RFC 9112 allows is read, what two parsers could read differently is refused, and cutting the bytes anywhere
// changes nothing.
#include "base/http1.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define LEN(a) (sizeof(a) / sizeof((a)[0]))

enum side { REQUEST, RESPONSE, RESPONSE_TO_HEAD };

static ssize_t parse(enum side side, const char *data, size_t size, struct http_head *h) {
	struct error e = {0};
	ssize_t n =
		side == REQUEST ? http_parse_request(data, size, h, &e) : http_parse_response(data, size, side == RESPONSE_TO_HEAD, h, &e);
	if (n < 0) {
		assert_int_equal(e.code, n);
		assert_true(strlen(e.message) > 10);
	}
	return n;
}

// Parses a copy without anything behind it, so that reading beyond the end is caught by the sanitizer.
static ssize_t parse_exact(enum side side, const char *data, size_t size) {
	char *copy = malloc(size + 1);
	assert_non_null(copy);
	memcpy(copy, data, size);
	char *shrunk = realloc(copy, size == 0 ? 1 : size);
	assert_non_null(shrunk);
	struct http_head h;
	ssize_t n = parse(side, shrunk, size, &h);
	free(shrunk);
	return n;
}

// Every prefix is either incomplete or already wrong in the way that the whole is.
static void check_prefixes(enum side side, const char *data, size_t size) {
	ssize_t whole = parse_exact(side, data, size);
	for (size_t n = 0; n < size; n++) {
		ssize_t r = parse_exact(side, data, n);
		if (whole > 0 && n >= (size_t)whole)
			assert_int_equal(r, whole);
		else if (r != 0)
			assert_int_equal(r, whole);
	}
}

static void accept_request(const char *text, struct http_head *h) {
	ssize_t n = parse(REQUEST, text, strlen(text), h);
	if (n != (ssize_t)strlen(text))
		fail_msg("returned %zd for %s", n, text);
	check_prefixes(REQUEST, text, strlen(text));
}

static void refuse(enum side side, const char *text, int code) {
	struct http_head h;
	ssize_t n = parse(side, text, strlen(text), &h);
	if (n != code)
		fail_msg("returned %zd instead of %d for %s", n, code, text);
	check_prefixes(side, text, strlen(text));
}

static void reads_a_request(void **state) {
	struct http_head h;
	accept_request("POST /run?x=1 HTTP/1.1\r\nHost: a.example:7443\r\nContent-Length: 12\r\nX-Empty:\r\nX-Pad: \t a b \t\r\n\r\n", &h);
	assert_true(slice_equals(h.method, "POST"));
	assert_true(slice_equals(h.target, "/run?x=1"));
	assert_int_equal(h.minor_version, 1);
	assert_int_equal(h.header_count, 4);
	assert_int_equal(h.body, HTTP_BODY_LENGTH);
	assert_int_equal(h.content_length, 12);
	assert_true(h.keep_alive);
	assert_false(h.upgrade);
	assert_false(h.expect_continue);
	assert_true(slice_equals(http_find(&h, "HOST")->value, "a.example:7443"));
	assert_int_equal(http_find(&h, "x-empty")->value.size, 0);
	assert_true(slice_equals(http_find(&h, "x-pad")->value, "a b"));
	assert_null(http_find(&h, "x-pa"));
}

static void reads_only_the_head(void **state) {
	const char *text = "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\n";
	struct http_head h;
	assert_int_equal(parse(REQUEST, text, strlen(text), &h), 27);
	assert_int_equal(h.body, HTTP_BODY_NONE);
	check_prefixes(REQUEST, text, strlen(text));
}

static void ignores_one_empty_line_before_a_request(void **state) {
	struct http_head h;
	accept_request("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &h);
	assert_true(slice_equals(h.method, "GET"));
	refuse(REQUEST, "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", -EBADMSG);
	refuse(RESPONSE, "\r\nHTTP/1.1 200 OK\r\n\r\n", -EBADMSG);
}

static void knows_target_forms(void **state) {
	static const char *const fine[] = {
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET //double HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /%zz?%00=;[]{}|\\^\"<> HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n",
		"GET HTTPS://a.example:1?q HTTP/1.1\r\nHost: a.example\r\n\r\n",
		"GET http://[::1]:80 HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
		"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n",
		"M-SEARCH /x HTTP/1.1\r\nHost: a\r\n\r\n",
	};
	for (size_t i = 0; i < LEN(fine); i++) {
		struct http_head h;
		accept_request(fine[i], &h);
	}
	static const char *const bad[] = {
		"GET x HTTP/1.1\r\nHost: a\r\n\r\n",         "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET * HTTP/1.1\r\nHost: a\r\n\r\n",         "GET a.example:443 HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",     "CONNECT a.example HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",  "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",     "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
	};
	for (size_t i = 0; i < LEN(bad); i++)
		refuse(REQUEST, bad[i], -EBADMSG);
}

static void refuses_malformed_start_lines(void **state) {
	static const char *const bad[] = {
		"GET /\r\n\r\n",
		"GET\r\n\r\n",
		" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
		"GET / http/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
		"GET / HTTP/01.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/x.1\r\nHost: a\r\n\r\n",
		"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n",
		"\n",
		"GET / HTTP/1.1\nHost: a\n\n",
		"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
	};
	for (size_t i = 0; i < LEN(bad); i++)
		refuse(REQUEST, bad[i], -EBADMSG);
	refuse(REQUEST, "GET / HTTP/2.0\r\nHost: a\r\n\r\n", -EPROTONOSUPPORT);
	refuse(REQUEST, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", -EPROTONOSUPPORT);
	refuse(REQUEST, "GET / HTTP/1.2\r\nHost: a\r\n\r\n", -EPROTONOSUPPORT);
	refuse(REQUEST, "GET / HTTP/0.9\r\n\r\n", -EPROTONOSUPPORT);
	refuse(RESPONSE, "HTTP/3.0 200 OK\r\n\r\n", -EPROTONOSUPPORT);
}

static void refuses_malformed_headers(void **state) {
	static const char *const lines[] = {
		"X: a\r\n b",     // obs-fold
		"X: a\r\n\tb",    // obs-fold
		" X: a",          // white space first
		"X : a",          // white space before the colon
		"X\t: a",         //
		": a",            // empty name
		"X",              // no colon
		"X\x0b: a",       // control character in the name
		"X\xff: a",       // not a token
		"X(: a",          // not a token
		"X: a\x01",       // control characters in the value
		"X: a\x7f",       //
		"X: a\x0b",       //
		"X: a\rY: b",     // bare CR
		"X: a\nY: b",     // bare LF
		"X: a\r\r",       // CR CR
		"X: a\n\r",       //
		"Host: b",        // second Host
		"host:",          // second Host, empty
		"Host : b",       //
		"Content-Length", //
	};
	for (size_t i = 0; i < LEN(lines); i++) {
		char text[256];
		snprintf(text, sizeof(text), "GET / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n", lines[i]);
		refuse(REQUEST, text, -EBADMSG);
		snprintf(text, sizeof(text), "GET / HTTP/1.1\r\n%s\r\nHost: a\r\n\r\n", lines[i]);
		refuse(REQUEST, text, -EBADMSG);
		if (strncasecmp(lines[i], "host:", 5) == 0)
			continue;
		snprintf(text, sizeof(text), "HTTP/1.1 200 OK\r\n%s\r\n\r\n", lines[i]);
		refuse(RESPONSE, text, -EBADMSG);
	}
	static const char zero[] = "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n";
	struct http_head h;
	assert_int_equal(parse(REQUEST, zero, sizeof(zero) - 1, &h), -EBADMSG);
	static const char zero_name[] = "GET / HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n";
	assert_int_equal(parse(REQUEST, zero_name, sizeof(zero_name) - 1, &h), -EBADMSG);
	static const char zero_target[] = "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n";
	assert_int_equal(parse(REQUEST, zero_target, sizeof(zero_target) - 1, &h), -EBADMSG);
	accept_request("GET / HTTP/1.1\r\nHost: a\r\nX: caf\xe9 \xc3\xa9\r\n\r\n", &h);
}

static void wants_one_host(void **state) {
	struct http_head h;
	refuse(REQUEST, "GET / HTTP/1.1\r\n\r\n", -EBADMSG);
	refuse(REQUEST, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", -EBADMSG);
	refuse(REQUEST, "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", -EBADMSG);
	static const char *const bad[] = {"a b", "a/b", "a@b", "a\\b", "a?b", "a#b", "http://a", "a\xc3\xa4", "\"a\"", "a, b"};
	for (size_t i = 0; i < LEN(bad); i++) {
		char text[128];
		snprintf(text, sizeof(text), "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", bad[i]);
		refuse(REQUEST, text, -EBADMSG);
	}
	accept_request("GET / HTTP/1.0\r\n\r\n", &h);
	accept_request("GET / HTTP/1.1\r\nHost:\r\n\r\n", &h);
	accept_request("GET / HTTP/1.1\r\nHost: [fe80::1]:80\r\n\r\n", &h);
}

// The published families of request smuggling: each needs two parsers that disagree about where a message ends.
static void refuses_ambiguous_framing(void **state) {
	static const char *const lines[] = {
		// CL.TE and TE.CL
		"Content-Length: 6\r\nTransfer-Encoding: chunked",
		"Transfer-Encoding: chunked\r\nContent-Length: 6",
		"Transfer-Encoding: chunked\r\nContent-Length: 0",
		// TE.TE
		"Transfer-Encoding: xchunked",
		"Transfer-Encoding: chunked, identity",
		"Transfer-Encoding: identity",
		"Transfer-Encoding: gzip",
		"Transfer-Encoding: gzip, chunked",
		"Transfer-Encoding: chunked, chunked",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
		"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
		"Transfer-Encoding:",
		"Transfer-Encoding: ,chunked",
		"Transfer-Encoding: chunked,",
		"Transfer-Encoding: \"chunked\"",
		"Transfer-Encoding: chunked;q=1",
		"Transfer-Encoding: chunked\x0b",
		"Transfer-Encoding: \x0b\x63hunked",
		"Transfer-Encoding : chunked",
		"Transfer-Encoding\x0b: chunked",
		" Transfer-Encoding: chunked",
		"X: y\r\n Transfer-Encoding: chunked",
		"X: y\rTransfer-Encoding: chunked",
		"X: y\nTransfer-Encoding: chunked",
		"Transfer-Encoding:\r\n chunked",
		"Transfer_Encoding: x\r\nTransfer-Encoding: c\x68unked2",
		// CL.CL and odd numbers
		"Content-Length: 5\r\nContent-Length: 6",
		"Content-Length: 5\r\nContent-Length: 5",
		"Content-Length: 5\r\ncontent-length: 5",
		"Content-Length: 5, 5",
		"Content-Length: 5, 6",
		"Content-Length:",
		"Content-Length: +5",
		"Content-Length: -5",
		"Content-Length: 0x5",
		"Content-Length: 5 5",
		"Content-Length: 5;",
		"Content-Length: 5.0",
		"Content-Length: 5e1",
		"Content-Length: \"5\"",
		"Content-Length: 9223372036854775808",
		"Content-Length: 18446744073709551621",
		"Content-Length: 99999999999999999999999999",
		"Content-Length : 5",
		" Content-Length: 5",
		"Content-Length: 5\r\n 6",
	};
	for (size_t i = 0; i < LEN(lines); i++) {
		char text[256];
		snprintf(text, sizeof(text), "POST / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n", lines[i]);
		refuse(REQUEST, text, -EBADMSG);
		snprintf(text, sizeof(text), "HTTP/1.1 200 OK\r\nX: y\r\n%s\r\n\r\n", lines[i]);
		refuse(RESPONSE, text, -EBADMSG);
	}
	refuse(REQUEST, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", -EBADMSG);
	refuse(RESPONSE, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", -EBADMSG);
	struct http_head h;
	accept_request("POST / HTTP/1.1\r\nHost: a\r\ntransfer-ENCODING:\tChunked \r\n\r\n", &h);
	assert_int_equal(h.body, HTTP_BODY_CHUNKED);
	accept_request("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\n", &h);
	assert_int_equal(h.content_length, INT64_MAX);
	accept_request("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0000\r\n\r\n", &h);
	assert_int_equal(h.body, HTTP_BODY_LENGTH);
	assert_int_equal(h.content_length, 0);
}

static void knows_connection_options(void **state) {
	static const struct {
		const char *text;
		bool keep_alive, upgrade, expect;
	} cases[] = {
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", true, false, false},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false, false, false},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE ,y\r\n\r\n", false, false, false},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", false, false, false},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: closed\r\n\r\n", true, false, false},
		{"GET / HTTP/1.0\r\n\r\n", false, false, false},
		{"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true, false, false},
		{"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", false, false, false},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", true, true, false},
		{"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", true, false, false},
		{"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n", true, false, false},
		{"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", false, false, false},
		{"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n", true, false, true},
		{"PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", false, false, false},
		{"PUT / HTTP/1.1\r\nHost: a\r\nExpect: something\r\n\r\n", true, false, false},
	};
	for (size_t i = 0; i < LEN(cases); i++) {
		struct http_head h;
		accept_request(cases[i].text, &h);
		assert_int_equal(h.keep_alive, cases[i].keep_alive);
		assert_int_equal(h.upgrade, cases[i].upgrade);
		assert_int_equal(h.expect_continue, cases[i].expect);
	}
}

static void reads_responses(void **state) {
	static const struct {
		const char *text;
		enum side side;
		int status;
		const char *reason;
		enum http_body_kind body;
		bool keep_alive;
	} cases[] = {
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", RESPONSE, 200, "OK", HTTP_BODY_LENGTH, true},
		{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", RESPONSE_TO_HEAD, 200, "OK", HTTP_BODY_NONE, true},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", RESPONSE_TO_HEAD, 200, "OK", HTTP_BODY_NONE, true},
		{"HTTP/1.1 200 OK\r\n\r\n", RESPONSE_TO_HEAD, 200, "OK", HTTP_BODY_NONE, true},
		{"HTTP/1.1 200 OK\r\n\r\n", RESPONSE, 200, "OK", HTTP_BODY_UNTIL_CLOSE, false},
		{"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n", RESPONSE, 200, "OK", HTTP_BODY_UNTIL_CLOSE, false},
		{"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", RESPONSE, 200, "", HTTP_BODY_CHUNKED, true},
		{"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", RESPONSE, 200, "", HTTP_BODY_LENGTH, true},
		{"HTTP/1.1 404 Not \xc3\xa4 \"Found\"\r\nContent-Length: 0\r\n\r\n", RESPONSE, 404, "Not \xc3\xa4 \"Found\"",
		 HTTP_BODY_LENGTH, true},
		{"HTTP/1.1 100 Continue\r\n\r\n", RESPONSE, 100, "Continue", HTTP_BODY_NONE, true},
		{"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", RESPONSE, 103, "Early Hints", HTTP_BODY_NONE, true},
		{"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", RESPONSE, 101, "Switching", HTTP_BODY_NONE, true},
		{"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", RESPONSE, 204, "No Content", HTTP_BODY_NONE, true},
		{"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", RESPONSE, 204, "No Content", HTTP_BODY_NONE, true},
		{"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", RESPONSE, 304, "Not Modified", HTTP_BODY_NONE, true},
		{"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", RESPONSE, 200, "OK", HTTP_BODY_LENGTH, false},
		{"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n", RESPONSE, 200, "OK", HTTP_BODY_LENGTH, true},
		{"HTTP/1.1 999 x\r\nContent-Length: 5\r\n\r\n", RESPONSE, 999, "x", HTTP_BODY_LENGTH, true},
	};
	for (size_t i = 0; i < LEN(cases); i++) {
		struct http_head h;
		assert_int_equal(parse(cases[i].side, cases[i].text, strlen(cases[i].text), &h), strlen(cases[i].text));
		assert_int_equal(h.status, cases[i].status);
		assert_true(slice_equals(h.reason, cases[i].reason));
		assert_int_equal(h.body, cases[i].body);
		assert_int_equal(h.keep_alive, cases[i].keep_alive);
		check_prefixes(cases[i].side, cases[i].text, strlen(cases[i].text));
	}
	static const char *const bad[] = {
		"HTTP/1.1\r\n\r\n",
		"HTTP/1.1 \r\n\r\n",
		"HTTP/1.1 20\r\n\r\n",
		"HTTP/1.1 2000 OK\r\n\r\n",
		"HTTP/1.1 099 x\r\n\r\n",
		"HTTP/1.1  200 OK\r\n\r\n",
		"HTTP/1.1 -20 OK\r\n\r\n",
		"HTTP/1.1\t200\tOK\r\n\r\n",
		"HTTP/1.1 200 O\rK\r\n\r\n",
		"HTTP/1.1 200 O\x01K\r\n\r\n",
		"ICY 200 OK\r\n\r\n",
		"HTTP/1.1 2x0 OK\r\n\r\n",
		"<html>\r\n\r\n",
		"HTTP/1.1 200 OK\n\n",
	};
	for (size_t i = 0; i < LEN(bad); i++)
		refuse(RESPONSE, bad[i], -EBADMSG);
}

static void keeps_limits(void **state) {
	static char big[HTTP_HEAD_MAX * 2];
	struct http_head h;
	// A head of exactly the limit is fine, one byte more is not; nor is a start without an end.
	for (int extra = 0; extra <= 1; extra++) {
		int n = snprintf(big, sizeof(big), "GET / HTTP/1.1\r\nHost: a\r\nX: ");
		size_t fill = HTTP_HEAD_MAX - (size_t)n - 4 + (size_t)extra;
		memset(big + n, 'x', fill);
		memcpy(big + (size_t)n + fill, "\r\n\r\n", 5);
		size_t size = (size_t)n + fill + 4;
		assert_int_equal(parse(REQUEST, big, size, &h), extra ? -E2BIG : HTTP_HEAD_MAX);
		assert_int_equal(parse(REQUEST, big, HTTP_HEAD_MAX - 1, &h), 0);
	}
	memset(big, 'a', sizeof(big));
	assert_int_equal(parse(REQUEST, big, HTTP_HEAD_MAX - 1, &h), 0);
	assert_int_equal(parse(REQUEST, big, HTTP_HEAD_MAX, &h), -E2BIG);
	assert_int_equal(parse(RESPONSE, big, sizeof(big), &h), -E2BIG);
	for (int extra = 0; extra <= 1; extra++) {
		size_t at = (size_t)snprintf(big, sizeof(big), "GET / HTTP/1.1\r\nHost: a\r\n");
		for (int i = 0; i < HTTP_HEADERS_MAX - 1 + extra; i++)
			at += (size_t)snprintf(big + at, sizeof(big) - at, "X-%d: y\r\n", i);
		at += (size_t)snprintf(big + at, sizeof(big) - at, "\r\n");
		assert_int_equal(parse(REQUEST, big, at, &h), extra ? -E2BIG : (ssize_t)at);
	}
}

static void handles_lists(void **state) {
	struct slice s = {"a, keep-alive ,\tClose", 21};
	assert_true(slice_has_token(s, "close"));
	assert_true(slice_has_token(s, "KEEP-alive"));
	assert_true(slice_has_token(s, "a"));
	assert_false(slice_has_token(s, "keep"));
	assert_false(slice_has_token((struct slice){"", 0}, "a"));
	assert_false(slice_has_token((struct slice){",,, ,", 5}, "a"));
	assert_true(slice_has_token((struct slice){",,a", 3}, "a"));
	assert_true(slice_equals((struct slice){NULL, 0}, ""));
	assert_false(slice_equals((struct slice){"ab", 2}, "a"));
	assert_false(slice_equals((struct slice){"Ab", 2}, "ab"));
	assert_true(slice_equals_nocase((struct slice){"Ab", 2}, "aB"));
}

// Feeds a body in pieces of `step` bytes; returns the total consumed or an error, and the content.
static ssize_t feed_all(struct http_body *b, const char *data, size_t size, size_t step, char *content, size_t *content_size,
			char *trailers, size_t *trailer_size) {
	size_t at = 0;
	*content_size = *trailer_size = 0;
	while (at < size && !b->done) {
		size_t piece = size - at < step ? size - at : step;
		char *copy = malloc(piece);
		assert_non_null(copy);
		memcpy(copy, data + at, piece);
		struct slice s;
		struct error e = {0};
		bool in_trailers = http_body_in_trailers(b);
		ssize_t n = http_body_feed(b, copy, piece, &s, &e);
		if (n > 0) {
			assert_in_range((size_t)n, 1, piece);
			assert_true(s.size == 0 || (s.data >= copy && s.data + s.size <= copy + n));
			memcpy(content + *content_size, s.data, s.size);
			*content_size += s.size;
			if (in_trailers) {
				assert_int_equal(s.size, 0);
				memcpy(trailers + *trailer_size, copy, (size_t)n);
				*trailer_size += (size_t)n;
			}
		}
		free(copy);
		if (n < 0) {
			assert_int_equal(e.code, n);
			return n;
		}
		assert_true(n > 0);
		at += (size_t)n;
	}
	return (ssize_t)at;
}

static void decodes_chunks(void **state) {
	static const struct {
		const char *text, *content, *trailers;
		size_t behind; // bytes behind the message
	} cases[] = {
		{"0\r\n\r\n", "", "\r\n", 0},
		{"5\r\nhello\r\n0\r\n\r\n", "hello", "\r\n", 0},
		{"5\r\nhello\r\n6\r\n world\r\n000\r\n\r\nGET / HTTP/1.1\r\n", "hello world", "\r\n", 16},
		{"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", "\r\n", 0},
		{"00000000000000a\r\n0123456789\r\n0\r\n\r\n", "0123456789", "\r\n", 0},
		{"5;a=b;c=\"d;e\"\r\nhello\r\n0;last\r\n\r\n", "hello", "\r\n", 0},
		{"5 ;a=b\r\nhello\r\n0\t ; x\r\n\r\n", "hello", "\r\n", 0},
		{"2\r\n\r\n\r\n0\r\n\r\n", "\r\n", "\r\n", 0},
		{"1\r\nx\r\n0\r\nA: b\r\nC:d \r\n\r\nZ", "x", "A: b\r\nC:d \r\n\r\n", 1},
		{"1\r\nx\r\n0\r\nEmpty:\r\n\r\n", "x", "Empty:\r\n\r\n", 0},
	};
	for (size_t i = 0; i < LEN(cases); i++) {
		size_t size = strlen(cases[i].text);
		for (size_t step = 1; step <= size; step++) {
			struct http_body b;
			http_body_start(&b, &(struct http_head){.body = HTTP_BODY_CHUNKED});
			char content[256], trailers[256];
			size_t content_size, trailer_size;
			ssize_t n = feed_all(&b, cases[i].text, size, step, content, &content_size, trailers, &trailer_size);
			assert_int_equal(n, size - cases[i].behind);
			assert_true(b.done);
			assert_int_equal(content_size, strlen(cases[i].content));
			assert_memory_equal(content, cases[i].content, content_size);
			assert_int_equal(trailer_size, strlen(cases[i].trailers));
			assert_memory_equal(trailers, cases[i].trailers, trailer_size);
			struct http_header headers[4];
			assert_true(http_parse_trailers(trailers, trailer_size, headers, LEN(headers), NULL) >= 0);
		}
		for (size_t cut = 0; cut < size - cases[i].behind; cut++) {
			struct http_body b;
			http_body_start(&b, &(struct http_head){.body = HTTP_BODY_CHUNKED});
			char content[256], trailers[256];
			size_t content_size, trailer_size;
			assert_int_equal(feed_all(&b, cases[i].text, cut, 7, content, &content_size, trailers, &trailer_size), cut);
			assert_false(b.done);
		}
	}
}

static void refuses_malformed_chunks(void **state) {
	static const char *const bad[] = {
		"\r\n",
		"g\r\n",
		"-1\r\n",
		"+1\r\n",
		"0x1\r\n",
		" 1\r\nx\r\n",
		"1 \r\nx\r\n",
		"1 2\r\nx\r\n",
		"1\nx\r\n",
		"1\rx",
		"1\r\r\nx",
		"1;\nx\r\n",
		"1;a\x01\r\nx\r\n",
		"1;a\r\rx",
		"1;\"a\nb\"\r\nx\r\n",
		"1\r\nxx\r\n",
		"1\r\nx\n",
		"1\r\nx\r1",
		"1\r\nx0\r\n\r\n",
		"fffffffffffffffff\r\n",
		"8000000000000000\r\n",
		"0000000000000001\r\n",
		"0\r\nX\r\n\r\n",
		"0\r\n X: y\r\n\r\n",
		"0\r\nX: y\r\n z\r\n\r\n",
		"0\r\nX : y\r\n\r\n",
		"0\r\n: y\r\n\r\n",
		"0\r\nX: y\n\n",
		"0\r\nX: \x01\r\n\r\n",
		"0\r\n\n",
		"0\r\n\rx",
		"0\n\n",
		"0\r\nX: y\rz\r\n\r\n",
	};
	for (size_t i = 0; i < LEN(bad); i++) {
		for (size_t step = 1; step <= strlen(bad[i]); step++) {
			struct http_body b;
			http_body_start(&b, &(struct http_head){.body = HTTP_BODY_CHUNKED});
			char content[256], trailers[256];
			size_t content_size, trailer_size;
			ssize_t n = feed_all(&b, bad[i], strlen(bad[i]), step, content, &content_size, trailers, &trailer_size);
			if (n != -EBADMSG)
				fail_msg("returned %zd for %s", n, bad[i]);
		}
	}
}

static void limits_chunk_overhead(void **state) {
	static char text[HTTP_TRAILER_MAX * 2], content[sizeof(text)], trailers[sizeof(text)];
	size_t content_size, trailer_size;
	for (size_t extra = 0; extra <= 1; extra++) {
		struct http_body b;
		http_body_start(&b, &(struct http_head){.body = HTTP_BODY_CHUNKED});
		size_t at = (size_t)snprintf(text, sizeof(text), "1;");
		memset(text + at, 'e', HTTP_CHUNK_EXTENSION_MAX - 1 + extra);
		at += HTTP_CHUNK_EXTENSION_MAX - 1 + extra;
		at += (size_t)snprintf(text + at, sizeof(text) - at, "\r\nx\r\n0\r\n\r\n");
		ssize_t n = feed_all(&b, text, at, 100, content, &content_size, trailers, &trailer_size);
		assert_int_equal(n, extra ? -EBADMSG : (ssize_t)at);

		http_body_start(&b, &(struct http_head){.body = HTTP_BODY_CHUNKED});
		at = (size_t)snprintf(text, sizeof(text), "0\r\nX:");
		memset(text + at, 'e', HTTP_TRAILER_MAX - 6 + extra);
		at += HTTP_TRAILER_MAX - 6 + extra;
		at += (size_t)snprintf(text + at, sizeof(text) - at, "\r\n\r\n");
		n = feed_all(&b, text, at, 100, content, &content_size, trailers, &trailer_size);
		assert_int_equal(n, extra ? -E2BIG : (ssize_t)at);
	}
}

static void decodes_other_bodies(void **state) {
	struct http_body b;
	struct slice s;
	http_body_start(&b, &(struct http_head){.body = HTTP_BODY_NONE});
	assert_true(b.done);
	assert_int_equal(http_body_feed(&b, "x", 1, &s, NULL), 0);
	http_body_start(&b, &(struct http_head){.body = HTTP_BODY_LENGTH, .content_length = 0});
	assert_true(b.done);
	http_body_start(&b, &(struct http_head){.body = HTTP_BODY_LENGTH, .content_length = 5});
	assert_int_equal(http_body_feed(&b, "abc", 3, &s, NULL), 3);
	assert_int_equal(s.size, 3);
	assert_false(b.done);
	assert_int_equal(http_body_feed(&b, "", 0, &s, NULL), 0);
	assert_int_equal(http_body_feed(&b, "deGET", 5, &s, NULL), 2);
	assert_int_equal(s.size, 2);
	assert_true(b.done);
	http_body_start(&b, &(struct http_head){.body = HTTP_BODY_UNTIL_CLOSE, .content_length = 5});
	assert_int_equal(http_body_feed(&b, "abcdefgh", 8, &s, NULL), 8);
	assert_int_equal(s.size, 8);
	assert_false(b.done);
}

static void parses_trailers(void **state) {
	struct http_header h[2];
	assert_int_equal(http_parse_trailers("\r\n", 2, h, 2, NULL), 0);
	assert_int_equal(http_parse_trailers("A: b\r\nC:d\r\n\r\n", 13, h, 2, NULL), 2);
	assert_true(slice_equals(h[0].name, "A") && slice_equals(h[0].value, "b"));
	assert_true(slice_equals(h[1].name, "C") && slice_equals(h[1].value, "d"));
	assert_int_equal(http_parse_trailers("A: b\r\nC:d\r\nE:f\r\n\r\n", 18, h, 2, NULL), -E2BIG);
	assert_int_equal(http_parse_trailers("A: b\r\n", 6, h, 2, NULL), -EBADMSG);
	assert_int_equal(http_parse_trailers("\r\nA: b\r\n\r\n", 10, h, 2, NULL), -EBADMSG);
	assert_int_equal(http_parse_trailers("", 0, h, 2, NULL), -EBADMSG);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_a_request),
		cmocka_unit_test(reads_only_the_head),
		cmocka_unit_test(ignores_one_empty_line_before_a_request),
		cmocka_unit_test(knows_target_forms),
		cmocka_unit_test(refuses_malformed_start_lines),
		cmocka_unit_test(refuses_malformed_headers),
		cmocka_unit_test(wants_one_host),
		cmocka_unit_test(refuses_ambiguous_framing),
		cmocka_unit_test(knows_connection_options),
		cmocka_unit_test(reads_responses),
		cmocka_unit_test(keeps_limits),
		cmocka_unit_test(handles_lists),
		cmocka_unit_test(decodes_chunks),
		cmocka_unit_test(refuses_malformed_chunks),
		cmocka_unit_test(limits_chunk_overhead),
		cmocka_unit_test(decodes_other_bodies),
		cmocka_unit_test(parses_trailers),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
