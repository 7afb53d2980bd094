// A conversation with an application; see application.h.
#include "edge/application.h"

#include "edge/h2c.h"

int application_begin(struct application *a, struct upstream *u, bool h2) {
	*a = (struct application){.u = u};
	return h2 ? h2c_start(u, &a->h2c) : 0;
}

void application_end(struct application *a) {
	h2c_free(a->h2c);
	*a = (struct application){0};
}

void application_advance(struct application *a) {
	if (a->h2c != NULL)
		h2c_advance(a->h2c);
}

size_t application_room(const struct application *a) {
	const struct buffer *out = application_out(a);
	if (a->h2c == NULL)
		return upstream_room(a->u);
	return out->data == NULL ? BUFFER_SMALL : buffer_room(out);
}

bool application_reserve(struct application *a, uint32_t capacity) {
	return a->h2c != NULL ? h2c_reserve(a->h2c, capacity) : upstream_reserve(a->u, capacity);
}

void application_flush(struct application *a) {
	if (a->h2c != NULL)
		h2c_advance(a->h2c);
	else
		upstream_flush(a->u);
}

void application_consume(struct application *a, size_t n) {
	if (a->h2c != NULL)
		buffer_consume(&a->u->edge->buffers, application_in(a), n);
	else
		upstream_consume(a->u, n);
}

bool application_grow_input(struct application *a) {
	return a->h2c == NULL && upstream_grow_input(a->u);
}

void application_update(struct application *a) {
	if (a->h2c != NULL)
		h2c_advance(a->h2c);
	else
		upstream_update(a->u);
}

void application_end_output(struct application *a) {
	upstream_end(a->u);
}
