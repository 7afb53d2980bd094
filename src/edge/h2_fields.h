// Header fields as nghttp2 takes them. It copies them before the call that gets them returns, so they may be slices of anything.
#pragma once

#include "base/http1.h"
#include "edge/state.h"

#include <nghttp2/nghttp2.h>

static inline nghttp2_nv h2_field(struct slice name, struct slice value) {
	return (nghttp2_nv){.name = (uint8_t *)(uintptr_t)name.data,
			    .namelen = name.size,
			    .value = (uint8_t *)(uintptr_t)value.data,
			    .valuelen = value.size};
}

// Room for names in lower case: the edge's scratch, until the next one asks for it.
struct h2_names {
	char *to;
	size_t room;
};

static inline struct h2_names h2_names_in(struct edge *ed) {
	return (struct h2_names){ed->scratch, sizeof(ed->scratch)};
}

// Replaces the name by one in lower case. False when there is no room.
static inline bool h2_lower(struct h2_names *n, struct slice *name) {
	if (name->size > n->room)
		return false;
	for (size_t i = 0; i < name->size; i++)
		n->to[i] = (char)(name->data[i] >= 'A' && name->data[i] <= 'Z' ? name->data[i] + ('a' - 'A') : name->data[i]);
	name->data = n->to;
	n->to += name->size;
	n->room -= name->size;
	return true;
}
