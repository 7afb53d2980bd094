// Base64 (RFC 4648): section 4 with padding, section 5 ("base64url") without, as JOSE uses it. Decoding is strict: no white space, no
// stray padding, and unused bits must be zero, so that every value has exactly one text.
#pragma once

#include <stddef.h>
#include <sys/types.h>

// Room that the text of n bytes needs, NUL included; for either alphabet.
#define BASE64_ROOM(n) (((n) + 2) / 3 * 4 + 1)
// Room that the bytes of a text of n characters need.
#define BASE64_BYTES(n) ((n) / 4 * 3 + 2)

// Write the text and a NUL to `to`, which has BASE64_ROOM(size) bytes. Return the text's length.
size_t base64_encode(char *to, const void *data, size_t size);
size_t base64url_encode(char *to, const void *data, size_t size);

// Return the number of bytes written to `to`, -EBADMSG when the text is not strictly base64, or -ENOSPC when `room` is too small.
ssize_t base64_decode(void *to, size_t room, const char *text, size_t size);
ssize_t base64url_decode(void *to, size_t room, const char *text, size_t size);
