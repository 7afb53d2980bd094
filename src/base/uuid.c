// UUIDs; see uuid.h.
#include "base/uuid.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

void uuid_from_random(const unsigned char bytes[static UUID_BYTES], char to[static UUID_TEXT]) {
	static const char digits[] = "0123456789abcdef";
	char *p = to;
	for (size_t i = 0; i < UUID_BYTES; i++) {
		unsigned char b = bytes[i];
		if (i == 6)
			b = (unsigned char)((b & 0x0f) | 0x40);
		if (i == 8)
			b = (unsigned char)((b & 0x3f) | 0x80);
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*p++ = '-';
		*p++ = digits[b >> 4];
		*p++ = digits[b & 15];
	}
	*p = '\0';
}

void uuid_new(char to[static UUID_TEXT]) {
	unsigned char b[UUID_BYTES];
	if (getrandom(b, sizeof(b), 0) != (ssize_t)sizeof(b))
		abort();
	uuid_from_random(b, to);
}

bool uuid_is_valid(const char *s) {
	if (strlen(s) != UUID_TEXT - 1)
		return false;
	for (size_t i = 0; i < UUID_TEXT - 1; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		if (dash ? s[i] != '-' : strchr("0123456789abcdef", s[i]) == NULL)
			return false;
	}
	return true;
}
