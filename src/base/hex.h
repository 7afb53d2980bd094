// Bytes as lower-case hexadecimal text.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// Writes 2 × size characters and a NUL to `to`.
void hex_encode(const void *data, size_t size, char *to);

// Decodes `digits` characters of lower-case hexadecimal text. Returns the number of bytes, -EINVAL when the text is not that, or -EMSGSIZE
// when it needs more than `room` bytes.
ssize_t hex_decode(const char *text, size_t digits, void *to, size_t room);
