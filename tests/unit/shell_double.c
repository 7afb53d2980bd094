// An upstream that is two buffers; see shell_double.h.
#include "shell_double.h"

#include <stdlib.h>

static struct shell_double *double_of(struct upstream *u) {
	return u->arg;
}

bool upstream_reserve(struct upstream *u, uint32_t capacity) {
	return buffer_want(&u->edge->buffers, &u->out, capacity);
}

size_t upstream_room(const struct upstream *u) {
	const struct shell_double *d = u->arg;
	size_t room = u->out.data == NULL ? BUFFER_SMALL : buffer_room(&u->out);
	return room < d->guest_room ? room : d->guest_room;
}

void upstream_append(struct upstream *u, const void *data, size_t size) {
	if (size > buffer_room(&u->out))
		abort();
	buffer_append(&u->out, data, size);
}

void upstream_flush(struct upstream *u) {
}

void upstream_update(struct upstream *u) {
}

void upstream_end(struct upstream *u) {
	double_of(u)->ended = true;
}

void upstream_consume(struct upstream *u, size_t n) {
	if (n > buffer_used(&u->in))
		abort();
	buffer_consume(&u->edge->buffers, &u->in, n);
}

struct shell_double *shell_double_new(void) {
	struct shell_double *d = calloc(1, sizeof(*d));
	if (d == NULL || (d->edge = calloc(1, sizeof(*d->edge))) == NULL)
		abort();
	d->guest_room = SIZE_MAX;
	d->u.edge = d->edge;
	d->u.arg = d;
	if (shell_start(&d->u, &d->side) < 0)
		abort();
	return d;
}

void shell_double_free(struct shell_double *d) {
	d->side->ops->free(d->side);
	buffer_release(&d->edge->buffers, &d->u.in);
	buffer_release(&d->edge->buffers, &d->u.out);
	buffer_pool_clear(&d->edge->buffers);
	free(d->edge);
	free(d);
}

static size_t put(struct shell_double *d, struct buffer *b, const void *data, size_t size) {
	if (!buffer_want(&d->edge->buffers, b, BUFFER_SMALL))
		abort();
	buffer_compact(b);
	size = size < buffer_room(b) ? size : buffer_room(b);
	buffer_append(b, data, size);
	d->side->ops->advance(d->side);
	return size;
}

static size_t take(struct shell_double *d, struct buffer *b, void *to, size_t room) {
	d->side->ops->advance(d->side);
	size_t n = buffer_used(b) < room ? buffer_used(b) : room;
	if (n == 0)
		return 0;
	memcpy(to, buffer_bytes(b), n);
	buffer_consume(&d->edge->buffers, b, n);
	d->side->ops->advance(d->side);
	return n;
}

size_t shell_double_client(struct shell_double *d, const void *data, size_t size) {
	return size == 0 ? 0 : put(d, &d->side->out, data, size);
}

size_t shell_double_guest(struct shell_double *d, const void *data, size_t size) {
	return size == 0 ? 0 : put(d, &d->u.in, data, size);
}

size_t shell_double_take_client(struct shell_double *d, void *to, size_t room) {
	return take(d, &d->side->in, to, room);
}

size_t shell_double_take_guest(struct shell_double *d, void *to, size_t room) {
	return take(d, &d->u.out, to, room);
}

void shell_double_guest_gone(struct shell_double *d) {
	d->u.eof = true;
	d->side->ops->advance(d->side);
}
