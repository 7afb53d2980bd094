// The shell's WebSocket: the handshake, what becomes of each side's bytes, how it ends, and that it needs no more memory than it has.
#include "shell_double.h"

#include "base/websocket.h"
#include "guest/guest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LEN(a) (sizeof(a) / sizeof((a)[0]))
#define KEY "dGhlIHNhbXBsZSBub25jZQ==" // and its answer, RFC 6455 section 1.3
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

// What the client got, as text: see test_websocket.c.
static char shown[200000];
static size_t shown_size;
static struct ws_reader reader;

static struct shell_double *request(const char *target, const char *more) {
	char text[1024];
	struct shell_double *d = shell_double_new();
	int n = snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n%s\r\n", target,
			 more);
	assert_int_equal(shell_double_client(d, text, (size_t)n), n);
	return d;
}

static void note(const void *data, size_t size) {
	assert_true(shown_size + size < sizeof(shown));
	memcpy(shown + shown_size, data, size);
	shown_size += size;
	shown[shown_size] = '\0';
}

static void show(struct shell_double *d) {
	uint8_t data[4096];
	size_t n;
	while ((n = shell_double_take_client(d, data, sizeof(data))) > 0) {
		for (size_t at = 0; at < n && !reader.closed;) {
			struct ws_piece p;
			char start[16];
			ssize_t used = ws_read(&reader, data + at, n - at, &p);
			assert_true(used > 0);
			at += (size_t)used;
			if (p.kind == WS_NOTHING)
				continue;
			int size = snprintf(start, sizeof(start), p.kind == WS_CLOSE ? "c%u(" : "%c(",
					    p.kind == WS_CLOSE ? p.code : "?tb?????cpo"[p.kind]);
			note(start, (size_t)size);
			note(p.data, p.size);
			note(")", 1);
		}
	}
}

// Opens a channel; leaves nothing but what comes afterwards.
static struct shell_double *open_channel(const char *target) {
	char head[1024];
	struct shell_double *d = request(target, "sec-websocket-version: 13\r\nsec-websocket-key: " KEY "\r\n");
	size_t n = 0;
	while (n < sizeof(head) - 1 && shell_double_take_client(d, head + n, 1) == 1) {
		n++;
		if (n > 4 && memcmp(head + n - 4, "\r\n\r\n", 4) == 0)
			break;
	}
	head[n] = '\0';
	assert_string_equal(head,
			    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: " ACCEPT
			    "\r\n\r\n");
	reader = (struct ws_reader){0};
	shown_size = 0;
	show(d);
	assert_int_equal(strncmp(shown, "t({\"type\":\"session_init\",\"session_id\":\"", 39), 0);
	assert_int_equal(shown_size, 39 + 36 + 3);
	shown_size = 0;
	shown[0] = '\0';
	return d;
}

static void send_client(struct shell_double *d, enum ws_opcode opcode, bool fin, const void *data, size_t size) {
	static const uint8_t mask[4] = {1, 9, 0, 255};
	uint8_t *frame = malloc(size + WS_HEAD_MAX);
	size_t n = ws_write_head(frame, opcode, fin, size, mask);
	memcpy(frame + n, data, size);
	ws_mask(frame + n, size, mask, 0);
	assert_int_equal(shell_double_client(d, frame, n + size), n + size);
	free(frame);
}

static void send_text(struct shell_double *d, const char *text) {
	send_client(d, WS_TEXT, true, text, strlen(text));
}

static void send_guest(struct shell_double *d, int kind, const void *data, size_t size) {
	uint8_t frame[20000];
	uint32_t length = (uint32_t)size + 1;
	memcpy(frame, &length, 4);
	frame[4] = (uint8_t)kind;
	memcpy(frame + 5, data, size);
	assert_int_equal(shell_double_guest(d, frame, size + 5), size + 5);
	show(d);
}

// Frames that the guest got, as `<kind>(bytes)`, those of one kind in a row together.
static const char *guest_got(struct shell_double *d) {
	static char text[100000], data[100000];
	size_t size = 0, used = 0, n;
	int before = 0;
	while ((n = shell_double_take_guest(d, data + size, sizeof(data) - size)) > 0)
		size += n;
	for (size_t at = 0; at < size;) {
		uint32_t length;
		assert_true(size - at >= 5);
		memcpy(&length, data + at, 4);
		int kind = data[at + 4];
		assert_true(length >= 1 && length <= GUEST_SESSION_BYTES_MAX + 1 && size - at >= 4 + length);
		bool same = kind == before && kind != GUEST_SESSION_RESIZE;
		if (same)
			used--;
		used += (size_t)snprintf(text + used, sizeof(text) - used, same ? "" : "%d(", kind);
		if (kind == GUEST_SESSION_RESIZE) {
			uint16_t s[2];
			memcpy(s, data + at + 5, 4);
			used += (size_t)snprintf(text + used, sizeof(text) - used, "%ux%u", s[0], s[1]);
		} else {
			memcpy(text + used, data + at + 5, length - 1);
			used += length - 1;
		}
		text[used++] = ')';
		before = kind;
		at += 4 + length;
	}
	text[used] = '\0';
	return text;
}

// Tests. ----------------------------------------------------------------------------------------------------------------------

static void refuses_bad_handshakes(void **state) {
	static const struct {
		const char *target, *more, *status, *end;
	} cases[] = {
		{"/shell", "sec-websocket-key: " KEY "\r\n", "HTTP/1.1 426 ", "WebSocket version not supported"},
		{"/shell", "sec-websocket-version: 8\r\nsec-websocket-key: " KEY "\r\n", "HTTP/1.1 426 ",
		 "WebSocket version not supported"},
		{"/shell", "sec-websocket-version: 13\r\n", "HTTP/1.1 400 ", "Bad request"},
		{"/shell", "sec-websocket-version: 13\r\nsec-websocket-key: short\r\n", "HTTP/1.1 400 ", "Bad request"},
		{"/shell", "sec-websocket-version: 13\r\nsec-websocket-key: !GhlIHNhbXBsZSBub25jZQ==\r\n", "HTTP/1.1 400 ", "Bad request"},
		{"/other", "sec-websocket-version: 13\r\nsec-websocket-key: " KEY "\r\n", "HTTP/1.1 404 ",
		 "opens /shell and /_stasis/exec"},
	};
	for (size_t i = 0; i < LEN(cases); i++) {
		char got[1024];
		struct shell_double *d = request(cases[i].target, cases[i].more);
		size_t n = shell_double_take_client(d, got, sizeof(got) - 1);
		got[n] = '\0';
		if (strncmp(got, cases[i].status, strlen(cases[i].status)) != 0 ||
		    strcmp(got + n - strlen(cases[i].end), cases[i].end) != 0)
			fail_msg("case %zu gave: %s", i, got);
		assert_true(d->side->eof);
		assert_string_equal(guest_got(d), "");
		shell_double_free(d);
	}
}

static void carries_a_shell(void **state) {
	static const char *const targets[] = {"/", "/shell", "/shell?x=/y"};
	char large[300];
	memset(large, 'L', sizeof(large));
	for (size_t i = 0; i < LEN(targets); i++)
		shell_double_free(open_channel(targets[i]));
	struct shell_double *d = open_channel("/shell");
	assert_string_equal(guest_got(d), "1({\"op\":\"shell\"})2()");
	send_client(d, WS_BINARY, true, "ls\r", 3);
	send_text(d, "{\"type\":\"resize\",\"cols\":120,\"rows\":40}");
	send_client(d, WS_TEXT, false, "{\"rows\":1,\"type\":", 17);
	send_client(d, WS_PING, true, "?", 1);
	send_client(d, 0, true, "\"resize\" , \"cols\":2}", 20);
	assert_string_equal(guest_got(d), "3(ls\r)5(120x40)5(2x1)");
	show(d);
	assert_string_equal(shown, "o(?)");
	// What is no resize is typed.
	static const char *const typed[] = {"text",
					    "{\"type\":\"other\"}",
					    "{\"type\":\"resize\",\"cols\":-1,\"rows\":4}",
					    "{\"type\":\"resize\"}",
					    "{\"type\":\"end\"}",
					    "[]",
					    "\xce\xbb",
					    "{\"type\":\"resize\",\"cols\":70000,\"rows\":4}"};
	for (size_t i = 0; i < LEN(typed); i++) {
		char wanted[128];
		snprintf(wanted, sizeof(wanted), "3(%s)", typed[i]);
		send_text(d, typed[i]);
		assert_string_equal(guest_got(d), wanted);
	}
	send_client(d, WS_TEXT, false, large, 200);
	send_client(d, 0, false, large, 100);
	send_client(d, 0, true, "end", 3);
	send_text(d, "{\"type\":\"resize\",\"cols\":1,\"rows\":2}");
	const char *got = guest_got(d);
	assert_int_equal(strlen(got), 2 + 303 + 1 + 6);
	assert_string_equal(got + 2 + 300, "end)5(1x2)");
	// The other way.
	shown_size = 0;
	send_guest(d, GUEST_SESSION_OUTPUT, "λ $ ", 5);
	send_guest(d, GUEST_SESSION_OUTPUT, "", 0);
	send_guest(d, GUEST_SESSION_ERROR_OUTPUT, "e", 1);
	assert_string_equal(shown, "b(λ $ )b(e)");
	assert_false(d->side->eof || d->ended);
	int32_t code = 7;
	send_guest(d, GUEST_SESSION_EXIT, &code, sizeof(code));
	assert_string_equal(shown, "b(λ $ )b(e)c1000(shell exited)");
	assert_true(d->side->eof && d->ended);
	// The client's answer ends it.
	send_client(d, WS_BINARY, true, "late", 4);
	assert_false(d->side->broken);
	send_client(d, WS_CLOSE, true, "\x03\xe8", 2);
	assert_true(d->side->broken);
	assert_string_equal(guest_got(d), "");
	shell_double_free(d);
}

static void carries_a_program(void **state) {
	struct shell_double *d = open_channel("/_stasis/exec");
	assert_string_equal(guest_got(d), "");
	send_client(d, WS_TEXT, false, "{\"op\":", 6);
	send_client(d, 0, false, "", 0);
	send_client(d, 0, true, "\"exec\"}", 7);
	assert_string_equal(guest_got(d), "1({\"op\":\"exec\"})2()");
	send_client(d, WS_BINARY, true, "\0\xff", 2);
	send_text(d, "{\"type\":\"resize\",\"cols\":80,\"rows\":25}");
	send_text(d, "{\"type\":\"signal\",\"signal\":2}");
	send_text(d, "{\"type\":\"end\"}");
	const char *got = guest_got(d);
	assert_memory_equal(got, "3(\0\xff)5(80x25)6(\2)4()", 20);
	send_guest(d, GUEST_SESSION_OUTPUT, "out", 3);
	send_guest(d, GUEST_SESSION_ERROR_OUTPUT, "err", 3);
	int32_t code = 300;
	send_guest(d, GUEST_SESSION_EXIT, &code, sizeof(code));
	assert_string_equal(shown, "b(\1out)b(\2err)t({\"type\":\"exit\",\"exitCode\":300})c1000(program exited)");
	shell_double_free(d);
	// What is no message of this channel.
	static const char *const bad[] = {"text", "{\"type\":\"other\"}", "{\"type\":\"signal\",\"signal\":0}",
					  "{\"type\":\"signal\",\"signal\":64}", "{}"};
	for (size_t i = 0; i < LEN(bad); i++) {
		d = open_channel("/_stasis/exec");
		send_text(d, "{}");
		guest_got(d);
		send_text(d, bad[i]);
		show(d);
		assert_string_equal(shown, "c1008(unknown message: expected resize, signal or end)");
		assert_true(d->ended);
		assert_string_equal(guest_got(d), "");
		shell_double_free(d);
	}
	d = open_channel("/_stasis/exec");
	send_client(d, WS_BINARY, true, "x", 1);
	show(d);
	assert_string_equal(shown, "c1008(the first message must be the request)");
	shell_double_free(d);
}

static void ends_in_every_way(void **state) {
	static const char failure[] = "{\"code\":\"NO_SHELL\",\"message\":\"the image has no shell\"}";
	struct shell_double *d = open_channel("/shell");
	send_guest(d, GUEST_SESSION_FAILED, failure, sizeof(failure) - 1);
	assert_string_equal(shown, "b(the image has no shell\r\n)c1011(NO_SHELL)");
	shell_double_free(d);
	d = open_channel("/_stasis/exec");
	send_guest(d, GUEST_SESSION_FAILED, failure, sizeof(failure) - 1);
	assert_string_equal(shown, "t({\"type\":\"failed\",\"code\":\"NO_SHELL\",\"message\":\"the image has no shell\"})c1011(NO_SHELL)");
	shell_double_free(d);
	// A guest that says nonsense.
	static const struct {
		const char *data;
		size_t size;
		const char *shown;
	} nonsense[] = {
		{"\1\0\0\0\4", 5, "b(the guest agent gave no reason\r\n)c1011(INTERNAL)"},
		{"\3\0\0\0\4[]", 7, "b(the guest agent gave no reason\r\n)c1011(INTERNAL)"},
		{"\1\0\0\0\3", 5, "c1000(shell exited)"},
		{"\0\0\0\0\1", 5, "c1011(the guest agent sent a malformed frame)"},
		{"\1\0\0\0\0", 5, "c1011(the guest agent sent a malformed frame)"},
		{"\1\0\0\0\5", 5, "c1011(the guest agent sent a malformed frame)"},
		{"\2\x40\0\0\1", 5, "c1011(the guest agent sent a malformed frame)"},
		{"\2\x10\0\0\4", 5, "c1011(the guest agent sent a malformed frame)"},
		{"\xff\xff\xff\xff\1", 5, "c1011(the guest agent sent a malformed frame)"},
	};
	for (size_t i = 0; i < LEN(nonsense); i++) {
		d = open_channel("/shell");
		shell_double_guest(d, nonsense[i].data, nonsense[i].size);
		show(d);
		assert_string_equal(shown, nonsense[i].shown);
		assert_true(d->ended && d->side->eof);
		shell_double_free(d);
	}
	// A guest that goes, between frames and within one.
	d = open_channel("/shell");
	shell_double_guest_gone(d);
	show(d);
	assert_string_equal(shown, "c1011(the session broke off)");
	shell_double_free(d);
	d = open_channel("/shell");
	shell_double_guest(d, "\5\0\0\0\1ab", 7);
	shell_double_guest_gone(d);
	show(d);
	assert_string_equal(shown, "b(ab)c1011(the session broke off)");
	shell_double_free(d);
	// A client that closes, with and without a code, and one that breaks the protocol.
	d = open_channel("/shell");
	send_client(d, WS_CLOSE, true, "\x0f\xa0own reason", 12);
	show(d);
	assert_string_equal(shown, "c4000()");
	assert_true(d->ended && d->side->eof && d->side->broken);
	shell_double_free(d);
	d = open_channel("/shell");
	send_client(d, WS_CLOSE, true, "", 0);
	show(d);
	assert_string_equal(shown, "c1000()");
	shell_double_free(d);
	d = open_channel("/shell");
	shell_double_client(d, "\x82\x01x", 3);
	show(d);
	assert_string_equal(shown, "c1002(malformed frame)");
	assert_true(d->ended && d->side->eof && d->side->broken);
	shell_double_free(d);
	d = open_channel("/shell");
	send_client(d, WS_TEXT, true, "\xff", 1);
	show(d);
	assert_string_equal(shown, "c1007(text that is not UTF-8)");
	shell_double_free(d);
}

static void waits_for_the_slower_side(void **state) {
	static uint8_t big[16384];
	struct shell_double *d = open_channel("/_stasis/exec");
	memset(big, 'B', sizeof(big));
	send_text(d, "{}");
	guest_got(d);
	// A guest that takes nothing: the client's bytes stay where they are.
	d->guest_room = 0;
	send_client(d, WS_BINARY, true, big, 10000);
	assert_true(buffer_used(&d->side->out) > 9900);
	assert_string_equal(guest_got(d), "");
	d->guest_room = 1000;
	const char *got = guest_got(d);
	assert_int_equal(strlen(got), 10003);
	d->guest_room = SIZE_MAX;
	// A client that takes nothing: the guest's stay, but for one buffer; all arrive, and the end behind them.
	uint8_t frame[5 + 16384] = {1, 0x40, 0, 0, 1};
	memset(frame + 5, 'G', 16384);
	size_t in = 0, sent = 0;
	for (int i = 0; i < 200; i++) {
		size_t n = shell_double_guest(d, frame + in, sizeof(frame) - in);
		in = (in + n) % sizeof(frame);
		sent += n;
		if (n == 0)
			break;
	}
	assert_true(sent < 3 * BUFFER_SMALL);
	while (in != 0) {
		show(d);
		size_t n = shell_double_guest(d, frame + in, sizeof(frame) - in);
		in = (in + n) % sizeof(frame);
		sent += n;
	}
	show(d);
	size_t content = 0;
	for (size_t i = 0; i < shown_size; i++)
		content += shown[i] == 'G';
	assert_int_equal(content, sent / sizeof(frame) * 16384);
	shell_double_free(d);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refuses_bad_handshakes), cmocka_unit_test(carries_a_shell),           cmocka_unit_test(carries_a_program),
		cmocka_unit_test(ends_in_every_way),      cmocka_unit_test(waits_for_the_slower_side),
	};
	return cmocka_run_group_tests_name("shell", tests, NULL, NULL);
}
