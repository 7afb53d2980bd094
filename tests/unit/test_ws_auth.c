// WebSocket authentication by subprotocols.
#include "edge/ws_auth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#define LEN(a) (sizeof(a) / sizeof((a)[0]))

static struct slice text(const char *s) {
	return (struct slice){s, strlen(s)};
}

static void reads_subprotocols(void **state) {
	static const struct {
		const char *value, *token, *port, *others;
		unsigned tokens, ports;
		bool offered, malformed;
	} cases[] = {
		{.value = ""},
		{.value = " , ,\t"},
		{.value = "chat", .others = "chat"},
		{.value = "chat , superchat,x.y", .others = "chat, superchat, x.y"},
		{.value = "lambda-microvms", .offered = true},
		{.value = "lambda-microvms, lambda-microvms.authentication.a.b.c", .token = "a.b.c", .tokens = 1, .offered = true},
		{.value = "lambda-microvms.authentication.t,chat,lambda-microvms,lambda-microvms.port.9000",
		 .token = "t",
		 .port = "9000",
		 .others = "chat",
		 .tokens = 1,
		 .ports = 1,
		 .offered = true},
		{.value = "lambda-microvms.authentication.t", .token = "t", .tokens = 1},
		{.value = "lambda-microvms, lambda-microvms.authentication.t, lambda-microvms.authentication.u",
		 .token = "u",
		 .tokens = 2,
		 .offered = true},
		{.value = "lambda-microvms, lambda-microvms.authentication.", .token = "", .tokens = 1, .offered = true},
		{.value = "lambda-microvms, lambda-microvms.port.", .port = "", .ports = 1, .offered = true},
		// Names are case-sensitive; what else lies below the edge's name is the edge's, whatever it may come to mean.
		{.value = "Lambda-Microvms, lambda-microvmsx", .others = "Lambda-Microvms, lambda-microvmsx"},
		{.value = "lambda-microvms.later.x, chat", .others = "chat"},
		{.value = "a b", .others = "a b", .malformed = true},
		{.value = "\"a\"", .others = "\"a\"", .malformed = true},
		{.value = "lambda-microvms.authentication.a/b", .token = "a/b", .tokens = 1, .malformed = true},
	};
	for (size_t i = 0; i < LEN(cases); i++) {
		struct ws_auth a = {0};
		char others[256];
		struct writer w = writer_over(others, sizeof(others));
		ws_auth_read(&a, text(cases[i].value));
		ws_auth_write_others(&w, text(cases[i].value));
		others[sizeof(others) - w.left] = '\0';
		assert_int_equal(a.offered, cases[i].offered);
		assert_int_equal(a.malformed, cases[i].malformed);
		assert_int_equal(a.tokens, cases[i].tokens);
		assert_int_equal(a.ports, cases[i].ports);
		assert_true(slice_equals(a.token, cases[i].token == NULL ? "" : cases[i].token));
		assert_true(slice_equals(a.port, cases[i].port == NULL ? "" : cases[i].port));
		assert_string_equal(others, cases[i].others == NULL ? "" : cases[i].others);
		assert_int_equal(a.others > 0, cases[i].others != NULL);
	}
}

static void headers_win(void **state) {
	struct ws_auth a = {0};
	struct gate_request r = {0};
	ws_auth_read(&a, text("lambda-microvms, lambda-microvms.authentication.t"));
	ws_auth_read(&a, text("lambda-microvms.port.80"));
	ws_auth_apply(&a, &r);
	assert_true(slice_equals(r.token, "t") && slice_equals(r.port, "80") && r.ports == 1);
	r = (struct gate_request){.token = text("u"), .port = text("81"), .ports = 1};
	ws_auth_apply(&a, &r);
	assert_true(slice_equals(r.token, "u") && slice_equals(r.port, "81") && r.ports == 1);
	// Two tokens are none, two ports are none that is valid, and without the plain name nothing counts.
	r = (struct gate_request){0};
	ws_auth_read(&a, text("lambda-microvms.authentication.t, lambda-microvms.port.80"));
	ws_auth_apply(&a, &r);
	assert_true(r.token.size == 0 && r.ports == 2);
	r = (struct gate_request){0};
	a = (struct ws_auth){0};
	ws_auth_read(&a, text("lambda-microvms.authentication.t, lambda-microvms.port.80, chat"));
	ws_auth_apply(&a, &r);
	assert_true(r.token.size == 0 && r.ports == 0);
}

static void answers_when_the_application_does_not(void **state) {
	struct http_head h = {.status = 101};
	assert_true(ws_auth_must_answer(true, &h));
	assert_false(ws_auth_must_answer(false, &h));
	h.headers[h.header_count++] = (struct http_header){text("Sec-WebSocket-Protocol"), text("")};
	assert_true(ws_auth_must_answer(true, &h));
	h.headers[0].value = text("chat");
	assert_false(ws_auth_must_answer(true, &h));
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_subprotocols),
		cmocka_unit_test(headers_win),
		cmocka_unit_test(answers_when_the_application_does_not),
	};
	return cmocka_run_group_tests_name("ws_auth", tests, NULL, NULL);
}
