// QEMU's monitor; see qmp.h.
#include "machine/qmp.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_ROOM 65536
#define TIMEOUT_MS 5000

struct connection {
	int fd;
	uint64_t deadline_ms;
	size_t used;
	char data[LINE_ROOM];
};

// Next line as JSON. NULL on the end of the connection, the deadline, or something that is not JSON.
static json_t *next(struct connection *c) {
	for (;;) {
		char *end = memchr(c->data, '\n', c->used);
		if (end != NULL) {
			size_t size = (size_t)(end - c->data);
			json_t *j = json_loadb(c->data, size, 0, NULL);
			c->used -= size + 1;
			memmove(c->data, end + 1, c->used);
			return j;
		}
		uint64_t now = monotonic_ms();
		struct pollfd p = {.fd = c->fd, .events = POLLIN};
		if (now >= c->deadline_ms || c->used == sizeof(c->data) || poll(&p, 1, (int)(c->deadline_ms - now)) <= 0)
			return NULL;
		ssize_t n = read(c->fd, c->data + c->used, sizeof(c->data) - c->used);
		if (n <= 0)
			return NULL;
		c->used += (size_t)n;
	}
}

// Sends a command and skips events until its answer.
static int execute(struct connection *c, const char *command, json_t **ret, struct error *e) {
	char line[128];
	int size = snprintf(line, sizeof(line), "{\"execute\": \"%s\"}\r\n", command);
	if (send(c->fd, line, (size_t)size, MSG_NOSIGNAL) != size)
		return error_errno(e, "cannot talk to QEMU");
	for (;;) {
		json_t *j = next(c);
		if (j == NULL)
			return error_set(e, -ETIMEDOUT, "QEMU did not answer to %s", command);
		json_t *value = json_object_get(j, "return");
		const char *message = json_string_value(json_object_get(json_object_get(j, "error"), "desc"));
		int code = 1;
		if (value != NULL) {
			if (ret != NULL)
				*ret = json_incref(value);
			code = 0;
		} else if (message != NULL) {
			code = error_set(e, -EIO, "QEMU refused %s: %s", command, message);
		}
		json_decref(j);
		if (code <= 0)
			return code;
	}
}

int qmp_execute(const char *socket_path, const char *command, json_t **ret, struct error *e) {
	cleanup_free struct connection *c = malloc(sizeof(*c));
	if (c == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	c->used = 0;
	c->deadline_ms = monotonic_ms() + TIMEOUT_MS;
	cleanup_close int fd = unix_connect(socket_path, SOCK_STREAM, e);
	if (fd < 0)
		return fd;
	c->fd = fd;
	json_t *greeting = next(c);
	if (greeting == NULL)
		return error_set(e, -ETIMEDOUT, "QEMU does not greet at %s", socket_path);
	json_decref(greeting);
	int code = execute(c, "qmp_capabilities", NULL, e);
	return code < 0 ? code : execute(c, command, ret, e);
}
