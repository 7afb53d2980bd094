// Base64; see base64.h.
//
// Characters are mapped by arithmetic on ranges, not by tables: the texts include keys and tokens, and a table look-up would leave traces
// of them in the cache.
#include "base/base64.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

// 0xff when lo <= c <= hi, else 0; without a branch.
static unsigned in_range(unsigned c, unsigned lo, unsigned hi) {
	return (((lo - 1 - c) & (c - hi - 1)) >> 8) & 0xff;
}

static char to_char(unsigned v, bool url) {
	unsigned c = (in_range(v, 0, 25) & (v + 'A')) | (in_range(v, 26, 51) & (v - 26 + 'a')) | (in_range(v, 52, 61) & (v - 52 + '0')) |
		     (in_range(v, 62, 62) & (url ? '-' : '+')) | (in_range(v, 63, 63) & (url ? '_' : '/'));
	return (char)c;
}

// The value of a character, or something above 63.
static unsigned to_value(unsigned char ch, bool url) {
	unsigned c = ch, c62 = url ? '-' : '+', c63 = url ? '_' : '/';
	unsigned known =
		in_range(c, 'A', 'Z') | in_range(c, 'a', 'z') | in_range(c, '0', '9') | in_range(c, c62, c62) | in_range(c, c63, c63);
	unsigned v = (in_range(c, 'A', 'Z') & (c - 'A')) | (in_range(c, 'a', 'z') & (c - 'a' + 26)) |
		     (in_range(c, '0', '9') & (c - '0' + 52)) | (in_range(c, c62, c62) & 62) | (in_range(c, c63, c63) & 63);
	return v | (~known & 0x80);
}

static size_t encode(char *to, const void *data, size_t size, bool url) {
	const uint8_t *in = data;
	char *out = to;
	size_t i = 0;
	for (; i + 3 <= size; i += 3) {
		uint32_t v = (uint32_t)in[i] << 16 | (uint32_t)in[i + 1] << 8 | in[i + 2];
		for (int shift = 18; shift >= 0; shift -= 6)
			*out++ = to_char(v >> shift & 63, url);
	}
	if (i < size) {
		bool two = size - i == 2;
		uint32_t v = (uint32_t)in[i] << 16 | (two ? (uint32_t)in[i + 1] << 8 : 0);
		*out++ = to_char(v >> 18 & 63, url);
		*out++ = to_char(v >> 12 & 63, url);
		if (two)
			*out++ = to_char(v >> 6 & 63, url);
		for (int pad = two ? 1 : 2; pad > 0 && !url; pad--)
			*out++ = '=';
	}
	*out = '\0';
	return (size_t)(out - to);
}

static ssize_t decode(void *to, size_t room, const char *text, size_t size, bool url) {
	if (!url) {
		if (size % 4 != 0)
			return -EBADMSG;
		for (int pad = 0; pad < 2 && size > 0 && text[size - 1] == '='; pad++)
			size--;
	}
	size_t tail = size % 4;
	if (tail == 1)
		return -EBADMSG;
	size_t bytes = size / 4 * 3 + (tail > 0 ? tail - 1 : 0);
	if (bytes > room)
		return -ENOSPC;
	uint8_t *out = to;
	unsigned bad = 0;
	uint32_t v = 0;
	for (size_t i = 0; i < size; i++) {
		unsigned c = to_value((unsigned char)text[i], url);
		bad |= c & ~63u;
		v = v << 6 | (c & 63);
		if (i % 4 == 3) {
			*out++ = (uint8_t)(v >> 16);
			*out++ = (uint8_t)(v >> 8);
			*out++ = (uint8_t)v;
			v = 0;
		}
	}
	if (tail == 2) {
		*out++ = (uint8_t)(v >> 4);
		bad |= v & 15;
	} else if (tail == 3) {
		*out++ = (uint8_t)(v >> 10);
		*out++ = (uint8_t)(v >> 2);
		bad |= v & 3;
	}
	return bad != 0 ? -EBADMSG : (ssize_t)bytes;
}

size_t base64_encode(char *to, const void *data, size_t size) {
	return encode(to, data, size, false);
}
size_t base64url_encode(char *to, const void *data, size_t size) {
	return encode(to, data, size, true);
}
ssize_t base64_decode(void *to, size_t room, const char *text, size_t size) {
	return decode(to, room, text, size, false);
}
ssize_t base64url_decode(void *to, size_t room, const char *text, size_t size) {
	return decode(to, room, text, size, true);
}
