// Checked access to bytes that somebody else wrote: a reader and a writer of little-endian values over a buffer of known length.
//
// Both are sticky: after the first access beyond the end every read gives zero, every write does nothing, and `bad` stays set, so that
// a parser may read a whole structure and check once.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct reader {
	const uint8_t *at;
	size_t left;
	bool bad;
};

struct writer {
	uint8_t *at;
	size_t left;
	bool bad;
};

static inline struct reader reader_over(const void *data, size_t size) {
	return (struct reader){.at = data, .left = size};
}

static inline struct writer writer_over(void *data, size_t size) {
	return (struct writer){.at = data, .left = size};
}

// Returns a pointer to the next n bytes, or NULL (and sets bad) when fewer are left.
static inline const void *read_bytes(struct reader *r, size_t n) {
	if (r->bad || n > r->left) {
		r->bad = true;
		return NULL;
	}
	const void *p = r->at;
	r->at += n;
	r->left -= n;
	return p;
}

static inline void read_copy(struct reader *r, void *to, size_t n) {
	const void *p = read_bytes(r, n);
	if (p != NULL)
		memcpy(to, p, n);
	else
		memset(to, 0, n);
}

static inline void *write_space(struct writer *w, size_t n) {
	if (w->bad || n > w->left) {
		w->bad = true;
		return NULL;
	}
	void *p = w->at;
	w->at += n;
	w->left -= n;
	return p;
}

static inline void write_bytes(struct writer *w, const void *from, size_t n) {
	void *p = write_space(w, n);
	if (p != NULL && n > 0)
		memcpy(p, from, n);
}

#define WIRE_INTEGER(bits)                                                     \
	static inline uint##bits##_t read_u##bits(struct reader *r) {          \
		uint##bits##_t v;                                              \
		read_copy(r, &v, sizeof(v));                                   \
		return v;                                                      \
	}                                                                      \
	static inline void write_u##bits(struct writer *w, uint##bits##_t v) { \
		write_bytes(w, &v, sizeof(v));                                 \
	}
WIRE_INTEGER(8)
WIRE_INTEGER(16)
WIRE_INTEGER(32)
WIRE_INTEGER(64)
#undef WIRE_INTEGER

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "wire.h copies integers as they lie in memory");
