// An upstream that is two buffers, for driving the translator of src/edge/shell.c without a loop, a VMM or a guest.
#pragma once

#include "edge/shell.h"

struct shell_double {
	struct edge *edge;
	struct upstream u;
	struct application_side *side;
	bool ended;        // upstream_end() was called
	size_t guest_room; // bytes that upstream_room() pretends to have at most
};

// Ready for use; abort()s when out of memory.
struct shell_double *shell_double_new(void);
void shell_double_free(struct shell_double *d);

// The client's bytes; as much as finds room. Returns how many.
size_t shell_double_client(struct shell_double *d, const void *data, size_t size);
// The guest's bytes.
size_t shell_double_guest(struct shell_double *d, const void *data, size_t size);
// Moves on, and takes what has come for the client or for the guest. Returns how many bytes.
size_t shell_double_take_client(struct shell_double *d, void *to, size_t room);
size_t shell_double_take_guest(struct shell_double *d, void *to, size_t room);
void shell_double_guest_gone(struct shell_double *d);
