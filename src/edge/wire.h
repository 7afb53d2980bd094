// A socket to a VMM's vsock.sock: written and read at once, without a queue of its own, so that it is known at every moment which bytes have
// left the edge. Private to src/edge/.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <uv.h>

struct wire {
	uv_poll_t poll;
	int fd;
	int events; // UV_READABLE, UV_WRITABLE: what is being waited for
	void (*ready)(void *arg);
	void *arg;
};

// Connects. ready(arg) is called from the loop whenever something of what wire_watch() named is the case. -EAGAIN: the VMM is slow to accept.
int wire_connect(uv_loop_t *loop, const char *path, void (*ready)(void *arg), void *arg, struct wire **ret);
void wire_close(struct wire *w); // NULL is fine
void wire_watch(struct wire *w, int events);

// Bytes, 0 at the end (of reading), -EAGAIN, or another negative errno.
ssize_t wire_read(struct wire *w, void *to, size_t room);
ssize_t wire_write(struct wire *w, const void *data, size_t size);
void wire_end(struct wire *w); // of writing

// Adds to a line what is there of it, and not a byte behind it. 1: it is whole, without its newline, NUL-terminated; 0: more is to come;
// -EBADMSG: it is too long; -ECONNRESET: the end came first. *used is 0 before the first call for a line.
int wire_read_line(struct wire *w, char *line, size_t room, size_t *used);

// Whether nothing has come, not even the end.
bool wire_is_quiet(const struct wire *w);
// Whether the VMM has closed its side, both ways.
bool wire_hung_up(const struct wire *w);
