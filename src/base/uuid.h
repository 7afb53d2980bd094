// Random (version 4) UUIDs in text form, RFC 9562 section 5.4.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define UUID_TEXT 37 // 36 characters and NUL
#define UUID_BYTES 16

// Fills `to` with a fresh UUID, lower case. Ends the process when the kernel cannot give random bytes: nothing safe can follow.
void uuid_new(char to[static UUID_TEXT]);

// The same from random bytes that the caller has, and uses for nothing else.
void uuid_from_random(const unsigned char bytes[static UUID_BYTES], char to[static UUID_TEXT]);

// Whether s is exactly one UUID in lower-case text form.
bool uuid_is_valid(const char *s);
