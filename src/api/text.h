// A text that grows, with a limit and a sticky failure: add what there is to add, and check `bad` once at the end. And percent-encoding
// (RFC 3986 section 2.1), with the set of characters that AWS leaves as they are.
#pragma once

#include "base/http1.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#define TEXT_LIMIT (8u << 20)

struct text {
	char *data; // NUL-terminated once something was added
	size_t size, room;
	bool bad; // out of memory, or beyond TEXT_LIMIT
};

static inline void cleanup_text_fn(struct text *t) {
	free(t->data);
}
#define cleanup_text __attribute__((cleanup(cleanup_text_fn))) struct text

void text_add(struct text *t, const void *data, size_t size);
void text_puts(struct text *t, const char *s);
void text_format(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Percent-encodes everything but letters, digits, "-._~" and, with keep_slash, '/'.
void text_encode(struct text *t, const char *data, size_t size, bool keep_slash);

// Decodes percent-encoding in place semantics: writes at most `size` bytes to `to` (which may be `from`). Returns how many, or -EBADMSG for
// a '%' without two hexadecimal digits.
ssize_t percent_decode(const char *from, size_t size, char *to);

// A target's path and query ("" when there is none).
void target_split(struct slice target, struct slice *path, struct slice *query);
// Decodes the value of the first query parameter of that name into a fresh string. 1: there is one, 0: none, -EBADMSG: malformed encoding or NUL
// in it, -ENOMEM. The caller frees *ret.
int query_find(struct slice query, const char *name, char **ret);
// The same for parameters that may be repeated: moves *query behind the one that was found.
int query_next(struct slice *query, const char *name, char **ret);
