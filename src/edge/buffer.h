// Buffers of three sizes, lent from a pool: a connection holds memory only while bytes wait in it, and never more than a fixed number of
// these. Tiny ones hold a usual head, small ones one TLS record or 16 KiB of content with its framing, large ones the longest head.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BUFFER_TINY (4 * 1024)
#define BUFFER_SMALL (17 * 1024)
#define BUFFER_LARGE (34 * 1024)
#define BUFFERS_CACHED 256 // of each size; more than that are given back to the allocator

struct buffer {
	char *data; // NULL: nothing lent
	uint32_t capacity, start, end;
};

struct buffer_pool {
	struct buffer_link *free[3];
	size_t count[3];
};

void buffer_pool_clear(struct buffer_pool *p);

// Makes sure that the buffer has a block of at least `capacity` (one of the three) bytes; content is kept. False when out of memory.
bool buffer_want(struct buffer_pool *p, struct buffer *b, uint32_t capacity);

// Drops the first n bytes; an empty buffer gives its block back.
void buffer_consume(struct buffer_pool *p, struct buffer *b, size_t n);
void buffer_release(struct buffer_pool *p, struct buffer *b);

// Moves the content to the front, so that all room is behind it.
void buffer_compact(struct buffer *b);

static inline size_t buffer_used(const struct buffer *b) {
	return b->end - b->start;
}
static inline char *buffer_bytes(const struct buffer *b) {
	return b->data + b->start;
}
// Room behind the content as it lies now.
static inline size_t buffer_room(const struct buffer *b) {
	return b->capacity - b->end;
}
// Appends what the caller has checked to fit.
static inline void buffer_append(struct buffer *b, const void *data, size_t n) {
	memcpy(b->data + b->end, data, n);
	b->end += (uint32_t)n;
}
