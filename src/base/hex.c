// Hexadecimal text; theory: none, two digits a byte.
#include "base/hex.h"

#include <errno.h>

void hex_encode(const void *data, size_t size, char *to) {
	static const char digits[] = "0123456789abcdef";
	const uint8_t *from = data;

	for (size_t i = 0; i < size; i++) {
		*to++ = digits[from[i] >> 4];
		*to++ = digits[from[i] & 15];
	}
	*to = '\0';
}

static int digit_value(char c) {
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

ssize_t hex_decode(const char *text, size_t digits, void *to, size_t room) {
	uint8_t *out = to;

	if (digits % 2 != 0)
		return -EINVAL;
	if (digits / 2 > room)
		return -EMSGSIZE;
	for (size_t i = 0; i < digits / 2; i++) {
		int high = digit_value(text[2 * i]), low = digit_value(text[2 * i + 1]);
		if (high < 0 || low < 0)
			return -EINVAL;
		out[i] = (uint8_t)(high << 4 | low);
	}
	return (ssize_t)(digits / 2);
}
