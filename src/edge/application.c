// A conversation with an application; see application.h.
#include "edge/application.h"

#include "edge/h2c.h"
#include "edge/shell.h"

int application_begin(struct application *a, struct upstream *u, enum application_protocol protocol) {
	*a = (struct application){.u = u};
	if (protocol == APPLICATION_HTTP2)
		return h2c_start(u, &a->side);
	return protocol == APPLICATION_SHELL ? shell_start(u, &a->side) : 0;
}

void application_end(struct application *a) {
	if (a->side != NULL)
		a->side->ops->free(a->side);
	*a = (struct application){0};
}

void application_advance(struct application *a) {
	if (a->side != NULL)
		a->side->ops->advance(a->side);
}

size_t application_room(const struct application *a) {
	const struct buffer *out = application_out(a);
	if (a->side == NULL)
		return upstream_room(a->u);
	return out->data == NULL ? BUFFER_SMALL : buffer_room(out);
}

bool application_reserve(struct application *a, uint32_t capacity) {
	if (a->side == NULL)
		return upstream_reserve(a->u, capacity);
	if (!buffer_want(&a->u->edge->buffers, &a->side->out, capacity))
		return false;
	buffer_compact(&a->side->out);
	return true;
}

void application_flush(struct application *a) {
	if (a->side != NULL)
		a->side->ops->advance(a->side);
	else
		upstream_flush(a->u);
}

void application_consume(struct application *a, size_t n) {
	if (a->side != NULL)
		buffer_consume(&a->u->edge->buffers, application_in(a), n);
	else
		upstream_consume(a->u, n);
}

bool application_grow_input(struct application *a) {
	return a->side == NULL && upstream_grow_input(a->u);
}

void application_update(struct application *a) {
	if (a->side != NULL)
		a->side->ops->advance(a->side);
	else
		upstream_update(a->u);
}

void application_end_output(struct application *a) {
	upstream_end(a->u);
}
