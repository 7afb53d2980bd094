// WebSocket frames: what was written is read, however it is cut, and what the RFC forbids is refused with the right code.
#include "base/websocket.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LEN(a) (sizeof(a) / sizeof((a)[0]))

// Everything that a reader hands out, as text: `t(…)`, `b(…)` with what belongs to one message together, `p(…)`, `o(…)`, `c1000(…)`.
struct log {
	char text[400000];
	size_t used;
	bool inside;
};

static void note(struct log *l, const void *data, size_t size) {
	assert_true(l->used + size < sizeof(l->text));
	memcpy(l->text + l->used, data, size);
	l->used += size;
	l->text[l->used] = '\0';
}

static void note_piece(struct log *l, const struct ws_piece *p) {
	static const char names[] = "?tb?????cpo";
	char start[16];
	int n = snprintf(start, sizeof(start), p->kind == WS_CLOSE ? "c%u(" : "%c(", p->kind == WS_CLOSE ? p->code : names[p->kind]);
	if (p->kind >= WS_CLOSE) {
		assert_false(l->inside && p->kind == WS_CLOSE);
		note(l, start, (size_t)n);
	} else if (!l->inside) {
		note(l, start, (size_t)n);
		l->inside = true;
	}
	note(l, p->data, p->size);
	if (p->last)
		note(l, ")", 1);
	if (p->kind < WS_CLOSE && p->last)
		l->inside = false;
}

// Reads all in steps of that size. Returns the failure, or 0.
static uint16_t read_all(bool from_client, const void *data, size_t size, size_t step, struct log *l) {
	struct ws_reader r = {.from_client = from_client};
	l->used = 0;
	l->inside = false;
	l->text[0] = '\0';
	uint8_t *copy = malloc(size + 1);
	memcpy(copy, data, size);
	size_t at = 0;
	while (at < size && !r.closed) {
		struct ws_piece p;
		size_t n = size - at < step ? size - at : step;
		ssize_t used = ws_read(&r, copy + at, n, &p);
		if (used < 0) {
			free(copy);
			assert_int_equal(used, -EBADMSG);
			return r.failure;
		}
		assert_true(used > 0 && (size_t)used <= n);
		if (p.kind != WS_NOTHING)
			note_piece(l, &p);
		at += (size_t)used;
	}
	free(copy);
	return 0;
}

static size_t frame(uint8_t *to, enum ws_opcode opcode, bool fin, const void *data, size_t size, bool masked) {
	static const uint8_t mask[4] = {0x12, 0xfe, 0x00, 0x77};
	size_t n = ws_write_head(to, opcode, fin, size, masked ? mask : NULL);
	memcpy(to + n, data, size);
	if (masked)
		ws_mask(to + n, size, mask, 0);
	return n + size;
}

static void reads_what_was_written(void **state) {
	static struct log l;
	static const size_t sizes[] = {0, 1, 7, 125, 126, 127, 65535, 65536, 100000};
	uint8_t *data = malloc(200000), *bytes = malloc(100000);
	memset(bytes, 'x', 100000);
	for (size_t i = 0; i < LEN(sizes) * 2; i++) {
		bool masked = i % 2 != 0;
		size_t size = sizes[i / 2], n = frame(data, WS_BINARY, true, bytes, size, masked);
		assert_int_equal(n, size + (size < 126 ? 2 : size < 65536 ? 4 : 10) + (masked ? 4 : 0));
		for (size_t step = 1; step < 200000; step = step * 7 + 3) {
			assert_int_equal(read_all(masked, data, n, step, &l), 0);
			assert_int_equal(l.used, size + 3);
			assert_true(memcmp(l.text, "b(", 2) == 0 && l.text[l.used - 1] == ')' && memcmp(l.text + 2, bytes, size) == 0);
		}
		// The other side's frames are refused.
		assert_int_equal(read_all(!masked, data, n, 1000, &l), WS_CODE_PROTOCOL_ERROR);
	}
	free(data);
	free(bytes);
}

static void reads_fragments(void **state) {
	static struct log l;
	uint8_t data[512];
	size_t n = frame(data, WS_TEXT, false, "\xce", 1, true); // λ, cut in two
	n += frame(data + n, WS_PING, true, "ping", 4, true);
	n += frame(data + n, 0, false, "", 0, true);
	n += frame(data + n, WS_PONG, true, "", 0, true);
	n += frame(data + n, 0, true, "\xbb $", 3, true);
	n += frame(data + n, WS_BINARY, true, "\xff\xfe", 2, true);
	n += frame(data + n, WS_TEXT, true, "", 0, true);
	n += frame(data + n, WS_CLOSE, true, "\x03\xe8shell exited", 14, true);
	n += frame(data + n, WS_PING, true, "late", 4, true);
	for (size_t step = 1; step < 80; step++) {
		assert_int_equal(read_all(true, data, n, step, &l), 0);
		assert_string_equal(l.text, "t(\xcep(ping)o()\xbb $)b(\xff\xfe)t()c1000(shell exited)");
	}
	n = frame(data, WS_CLOSE, true, "", 0, true);
	assert_int_equal(read_all(true, data, n, n, &l), 0);
	assert_string_equal(l.text, "c1005()");
}

static void refuses_what_is_forbidden(void **state) {
	static struct log l;
#define CASE(text, code) \
	{ text, sizeof(text) - 1, code }
	static const struct {
		const char *data; // unmasked frames, as a server's
		size_t size;
		uint16_t failure;
	} cases[] = {
		CASE("\xc1\x00", 1002), // reserved bits
		CASE("\xa2\x00", 1002),
		CASE("\x92\x00", 1002),
		CASE("\x83\x00", 1002), // reserved opcodes
		CASE("\x87\x00", 1002),
		CASE("\x8b\x00", 1002),
		CASE("\x8f\x00", 1002),
		CASE("\x82\x80", 1002), // masked
		CASE("\x80\x00", 1002), // continuation of nothing
		CASE("\x02\x01"
		     "a\x82\x01"
		     "b",
		     1002), // interleaved
		CASE("\x02\x01"
		     "a\x01\x01"
		     "b",
		     1002),
		CASE("\x82\x01"
		     "a\x80\x01"
		     "b",
		     1002),
		CASE("\x09\x00", 1002), // fragmented and long control frames
		CASE("\x08\x00", 1002),
		CASE("\x89\x7e\x00\x7e", 1002),
		CASE("\x82\x7e\x00\x7d", 1002), // lengths that are not minimal
		CASE("\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff", 1002),
		CASE("\x82\x7f\x80\x00\x00\x00\x00\x01\x00\x00", 1002),
		CASE("\x88\x01\x03", 1002), // close frames
		CASE("\x88\x02\x03\xe7", 1002),
		CASE("\x88\x02\x03\xec", 1002),
		CASE("\x88\x02\x03\xed", 1002),
		CASE("\x88\x02\x03\xee", 1002),
		CASE("\x88\x02\x03\xf7", 1002),
		CASE("\x88\x02\x07\xd0", 1002),
		CASE("\x88\x02\x13\x88", 1002),
		CASE("\x88\x03\x03\xe8\xff", 1007),
		CASE("\x88\x03\x03\xe8\xc3", 1007),
		CASE("\x81\x01\xff", 1007), // text
		CASE("\x81\x02\xc0\x80", 1007),
		CASE("\x81\x02\xc1\xbf", 1007),
		CASE("\x81\x03\xe0\x9f\xbf", 1007),
		CASE("\x81\x03\xed\xa0\x80", 1007),
		CASE("\x81\x04\xf0\x8f\xbf\xbf", 1007),
		CASE("\x81\x04\xf4\x90\x80\x80", 1007),
		CASE("\x81\x01\xf5", 1007),
		CASE("\x81\x02\xe2\x82", 1007), // ends within a character
		CASE("\x01\x01\xe2\x80\x01"
		     "a",
		     1007),
	};
	for (size_t i = 0; i < LEN(cases); i++)
		for (size_t step = 1; step < 16; step++)
			if (read_all(false, cases[i].data, cases[i].size, step, &l) != cases[i].failure)
				fail_msg("case %zu in steps of %zu", i, step);
}

static void masks_anywhere(void **state) {
	static const uint8_t mask[4] = {1, 2, 3, 4};
	uint8_t whole[64], pieces[64];
	for (size_t i = 0; i < sizeof(whole); i++)
		whole[i] = pieces[i] = (uint8_t)(i * 7);
	ws_mask(whole, sizeof(whole), mask, 0);
	for (size_t at = 0, n = 1; at < sizeof(pieces); at += n, n++)
		ws_mask(pieces + at, sizeof(pieces) - at < n ? sizeof(pieces) - at : n, mask, at);
	assert_memory_equal(whole, pieces, sizeof(whole));
	assert_int_equal(whole[5], (5 * 7) ^ 2);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_what_was_written),
		cmocka_unit_test(reads_fragments),
		cmocka_unit_test(refuses_what_is_forbidden),
		cmocka_unit_test(masks_anywhere),
	};
	return cmocka_run_group_tests_name("websocket", tests, NULL, NULL);
}
