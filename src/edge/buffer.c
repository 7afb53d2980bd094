// The pool of buffers; see buffer.h.
#include "edge/buffer.h"

#include <stdlib.h>

struct buffer_link {
	struct buffer_link *next;
};

static int class_of(uint32_t capacity) {
	return capacity == BUFFER_LARGE ? 2 : capacity == BUFFER_SMALL ? 1 : 0;
}

static void give_back(struct buffer_pool *p, char *data, uint32_t capacity) {
	int class = class_of(capacity);
	if (p->count[class] >= BUFFERS_CACHED) {
		free(data);
		return;
	}
	struct buffer_link *l = (struct buffer_link *)(void *)data;
	l->next = p->free[class];
	p->free[class] = l;
	p->count[class]++;
}

static char *lend(struct buffer_pool *p, uint32_t capacity) {
	int class = class_of(capacity);
	struct buffer_link *l = p->free[class];
	if (l == NULL)
		return malloc(capacity);
	p->free[class] = l->next;
	p->count[class]--;
	return (char *)l;
}

void buffer_pool_clear(struct buffer_pool *p) {
	for (int class = 0; class < 3; class ++) {
		for (struct buffer_link *l = p->free[class], *next; l != NULL; l = next) {
			next = l->next;
			free(l);
		}
	}
	*p = (struct buffer_pool){0};
}

bool buffer_want(struct buffer_pool *p, struct buffer *b, uint32_t capacity) {
	if (b->data != NULL && b->capacity >= capacity)
		return true;
	char *data = lend(p, capacity);
	if (data == NULL)
		return false;
	size_t used = buffer_used(b);
	if (b->data != NULL) {
		memcpy(data, buffer_bytes(b), used);
		give_back(p, b->data, b->capacity);
	}
	*b = (struct buffer){.data = data, .capacity = capacity, .end = (uint32_t)used};
	return true;
}

void buffer_release(struct buffer_pool *p, struct buffer *b) {
	if (b->data != NULL)
		give_back(p, b->data, b->capacity);
	*b = (struct buffer){0};
}

void buffer_consume(struct buffer_pool *p, struct buffer *b, size_t n) {
	b->start += (uint32_t)n;
	if (b->start == b->end)
		buffer_release(p, b);
}

void buffer_compact(struct buffer *b) {
	if (b->start == 0)
		return;
	size_t used = buffer_used(b);
	memmove(b->data, buffer_bytes(b), used);
	b->start = 0;
	b->end = (uint32_t)used;
}
