// Requests to the guest agent; see agent_client.h.
#include "microvms/agent_client.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_ROOM 128
#define RETRY_MS 20      // between two attempts to connect
#define ATTEMPT_MS 5000  // a connection request that the guest never saw is repeated after this
#define ENTROPY_BYTES 64 // docs/agent-protocol.md: 32 to 64

// Waits until the descriptor can be read, at most until the monotonic millisecond `until`. 0 or a negative errno.
static int wait_readable(int fd, uint64_t until) {
	for (;;) {
		uint64_t now = monotonic_ms();
		if (now >= until)
			return -ETIMEDOUT;
		struct pollfd p = {.fd = fd, .events = POLLIN};
		uint64_t left = until - now;
		int n = poll(&p, 1, left > INT32_MAX ? INT32_MAX : (int)left);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

int read_line(int fd, char *to, size_t room, int timeout_ms) {
	uint64_t until = monotonic_ms() + (uint64_t)timeout_ms;
	size_t size = 0;
	for (;;) {
		int r = wait_readable(fd, until);
		if (r < 0)
			return r;
		// Peeking first keeps what follows the line for whoever reads on.
		ssize_t got = recv(fd, to + size, room - size, MSG_PEEK | MSG_DONTWAIT);
		if (got < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			return -ECONNRESET;
		const char *newline = memchr(to + size, '\n', (size_t)got);
		size_t take = newline == NULL ? (size_t)got : (size_t)(newline - (to + size)) + 1;
		got = recv(fd, to + size, take, MSG_DONTWAIT);
		if (got < 0)
			return -errno;
		size += (size_t)got;
		if (size > 0 && to[size - 1] == '\n') {
			to[size - 1] = '\0';
			return (int)size - 1;
		}
		if (size == room)
			return -EMSGSIZE;
	}
}

static int errno_of_name(const char *name) {
	static const struct {
		const char *name;
		int code;
	} names[] = {{"ECONNREFUSED", ECONNREFUSED}, {"ECONNRESET", ECONNRESET}, {"ETIMEDOUT", ETIMEDOUT},
		     {"ENOTCONN", ENOTCONN},         {"EAGAIN", EAGAIN},         {"EINVAL", EINVAL}};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(names[i].name, name) == 0)
			return -names[i].code;
	return -ECONNREFUSED;
}

// One answer line: OK… or ERR <errno name>.
static int read_answer(int fd, int timeout_ms) {
	char line[LINE_ROOM];
	int r = read_line(fd, line, sizeof(line), timeout_ms);
	if (r < 0)
		return r;
	if (strcmp(line, "OK") == 0 || strncmp(line, "OK ", 3) == 0)
		return 0;
	return strncmp(line, "ERR ", 4) == 0 ? errno_of_name(line + 4) : -EPROTO;
}

// Connects to the VMM and says which port is meant; the answer comes later.
static int vsock_begin(const char *vsock_path, unsigned port, struct error *e) {
	cleanup_close int fd = unix_connect(vsock_path, SOCK_STREAM, e);
	if (fd < 0)
		return fd;
	char line[LINE_ROOM];
	int n = snprintf(line, sizeof(line), "CONNECT %u\n", port);
	int r = send_with_fds(fd, line, (size_t)n, NULL, 0);
	return r < 0 ? error_set(e, r, "cannot talk to the VMM's vsock socket: %s", strerror(-r)) : take_fd(&fd);
}

static int vsock_accepted(int fd, unsigned port, int timeout_ms, struct error *e) {
	int r = read_answer(fd, timeout_ms);
	return r < 0 ? error_set(e, r, "cannot connect to the guest's vsock port %u: %s", port, strerror(-r)) : 0;
}

int vsock_connect(const char *vsock_path, unsigned port, int timeout_ms, struct error *e) {
	cleanup_close int fd = vsock_begin(vsock_path, port, e);
	if (fd < 0)
		return fd;
	int r = vsock_accepted(fd, port, timeout_ms, e);
	return r < 0 ? r : take_fd(&fd);
}

int agent_begin(const char *vsock_path, struct agent *ret, struct error *e) {
	*ret = (struct agent){.fd = vsock_begin(vsock_path, AGENT_CONTROL_PORT, e)};
	return ret->fd < 0 ? ret->fd : 0;
}

int agent_connect(const char *vsock_path, int timeout_ms, struct agent *ret, struct error *e) {
	*ret = (struct agent){.fd = -1};
	uint64_t until = monotonic_ms() + (uint64_t)timeout_ms;
	struct error last = {0};
	for (;;) {
		uint64_t now = monotonic_ms();
		int left = now >= until ? 0 : (int)(until - now);
		int fd = vsock_connect(vsock_path, AGENT_CONTROL_PORT, left < ATTEMPT_MS ? left : ATTEMPT_MS, &last);
		if (fd >= 0) {
			*ret = (struct agent){.fd = fd, .greeted = true};
			return 0;
		}
		// A socket that is not there will not come; everything else may be a guest that is not so far yet.
		if (fd == -ENOENT || fd == -EACCES || monotonic_ms() + RETRY_MS >= until) {
			if (e != NULL)
				*e = last;
			return error_wrap(e, fd, "the guest agent did not answer within %d ms", timeout_ms);
		}
		usleep(RETRY_MS * 1000);
	}
}

void agent_close(struct agent *a) {
	if (a->fd >= 0)
		close(a->fd);
	a->fd = -1;
}

int agent_send(struct agent *a, json_t *request, struct error *e) {
	if (request == NULL)
		return error_set(e, -ENOMEM, "out of memory making a request to the guest agent");
	json_object_set_new(request, "id", json_integer((json_int_t)++a->sequence));
	cleanup_free char *text = json_dumps(request, JSON_COMPACT);
	json_decref(request);
	if (text == NULL)
		return error_set(e, -ENOMEM, "out of memory making a request to the guest agent");
	size_t size = strlen(text);
	if (size > AGENT_FRAME_MAX)
		return error_set(e, -EMSGSIZE, "a request to the guest agent would take %zu bytes; at most %d fit", size, AGENT_FRAME_MAX);
	cleanup_free char *frame = malloc(size + sizeof(uint32_t));
	if (frame == NULL)
		return error_set(e, -ENOMEM, "out of memory making a request to the guest agent");
	uint32_t length = (uint32_t)size;
	memcpy(frame, &length, sizeof(length));
	memcpy(frame + sizeof(length), text, size);
	size_t sent = 0;
	while (sent < size + sizeof(length)) {
		ssize_t n = send(a->fd, frame + sent, size + sizeof(length) - sent, MSG_NOSIGNAL);
		if (n < 0 && errno != EINTR)
			return error_errno(e, "cannot send to the guest agent");
		sent += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static int receive_bytes(int fd, void *to, size_t n, uint64_t until) {
	for (size_t done = 0; done < n;) {
		int r = wait_readable(fd, until);
		if (r < 0)
			return r;
		ssize_t got = recv(fd, (char *)to + done, n - done, MSG_DONTWAIT);
		if (got == 0)
			return -ECONNRESET;
		if (got < 0 && errno != EINTR && errno != EAGAIN)
			return -errno;
		done += got > 0 ? (size_t)got : 0;
	}
	return 0;
}

static const char *text_of(const json_t *object, const char *key) {
	const char *s = json_string_value(json_object_get(object, key));
	return s == NULL ? "" : s;
}

int agent_receive(struct agent *a, int timeout_ms, json_t **ret, struct error *e) {
	uint64_t until = monotonic_ms() + (uint64_t)timeout_ms;
	uint32_t length = 0;
	int r = a->greeted ? 0 : vsock_accepted(a->fd, AGENT_CONTROL_PORT, timeout_ms, e);
	if (r < 0)
		return r;
	a->greeted = true;
	r = receive_bytes(a->fd, &length, sizeof(length), until);
	if (r < 0)
		return error_set(e, r, "the guest agent did not answer: %s", strerror(-r));
	if (length == 0 || length > AGENT_FRAME_MAX)
		return error_set(e, -EBADMSG, "the guest agent sent a frame of %u bytes", length);
	cleanup_free char *text = malloc(length);
	if (text == NULL)
		return error_set(e, -ENOMEM, "out of memory reading from the guest agent");
	r = receive_bytes(a->fd, text, length, until);
	if (r < 0)
		return error_set(e, r, "the guest agent broke off: %s", strerror(-r));
	json_error_t parse;
	json_t *reply = json_loadb(text, length, 0, &parse);
	if (!json_is_object(reply)) {
		json_decref(reply);
		return error_set(e, -EBADMSG, "the guest agent sent something that is not a JSON object");
	}
	a->answered++;
	if ((uint64_t)json_integer_value(json_object_get(reply, "id")) != a->answered) {
		json_decref(reply);
		return error_set(e, -EBADMSG, "the guest agent answered another request than was asked");
	}
	if (!json_is_true(json_object_get(reply, "ok"))) {
		r = error_named(e, -EREMOTEIO, text_of(reply, "code"), "%s", text_of(reply, "message"));
		json_decref(reply);
		return r;
	}
	if (ret != NULL)
		*ret = reply;
	else
		json_decref(reply);
	return 0;
}

int agent_call(struct agent *a, json_t *request, int timeout_ms, json_t **ret, struct error *e) {
	int r = agent_send(a, request, e);
	return r < 0 ? r : agent_receive(a, timeout_ms, ret, e);
}

json_t *agent_resume_request(bool clone, const char *microvm_id) {
	unsigned char bytes[ENTROPY_BYTES];
	char hex[2 * ENTROPY_BYTES + 1];
	if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
		return NULL;
	for (size_t i = 0; i < sizeof(bytes); i++)
		snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
	json_t *request = json_pack("{s:s, s:s, s:I, s:s}", "op", "resume", "entropy", hex, "realtimeNs", (json_int_t)realtime_ns(),
				    "generation", clone ? "clone" : "self");
	if (request != NULL && microvm_id != NULL)
		json_object_set_new(request, "identity", json_pack("{s:s}", "microvmId", microvm_id));
	return request;
}

json_t *agent_freeze_request(void) {
	return json_pack("{s:s}", "op", "freeze");
}

json_t *agent_hook_request(const char *name, int port, int timeout_ms, const char *body, bool retry503) {
	json_t *request = json_pack("{s:s, s:s, s:i, s:i, s:b}", "op", "hook", "name", name, "port", port, "timeoutMs", timeout_ms,
				    "retry503", (int)retry503);
	if (request != NULL && body != NULL)
		json_object_set_new(request, "body", json_string(body));
	return request;
}

int agent_receive_hook(struct agent *a, int timeout_ms, struct hook_answer *ret, struct error *e) {
	static const char *const names[] = {[HOOK_OK] = "ok",
					    [HOOK_STATUS] = "status",
					    [HOOK_TIMEOUT] = "timeout",
					    [HOOK_EXITED] = "exited",
					    [HOOK_REFUSED] = "refused"};
	json_t *reply = NULL;
	int r = agent_receive(a, timeout_ms, &reply, e);
	if (r < 0)
		return r;
	json_int_t status = json_integer_value(json_object_get(reply, "status"));
	*ret = (struct hook_answer){.result = HOOK_TIMEOUT,
				    .status = status >= 0 && status <= 999 ? (int)status : 0,
				    .elapsed_ms = json_integer_value(json_object_get(reply, "elapsedMs"))};
	const char *result = text_of(reply, "result");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(result, names[i]) == 0)
			ret->result = (enum hook_result)i;
	json_decref(reply);
	return 0;
}

// A time-out as ISO 8601 duration, as the service writes it: PT30S, PT5M, PT0.5S.
static void duration(int timeout_ms, char to[32]) {
	if (timeout_ms % 60000 == 0)
		snprintf(to, 32, "PT%dM", timeout_ms / 60000);
	else if (timeout_ms % 1000 == 0)
		snprintf(to, 32, "PT%dS", timeout_ms / 1000);
	else
		snprintf(to, 32, "PT%.3gS", timeout_ms / 1000.0);
}

void hook_reason(const char *hook, bool build, int port, int timeout_ms, const struct hook_answer *a, char *to, size_t room) {
	char time[32], name[32];
	duration(timeout_ms, time);
	snprintf(name, sizeof(name), "%c%s", hook[0] - 'a' + 'A', hook + 1);
	const char *kind = build ? "" : "lifecycle ";
	switch (a->result) {
	case HOOK_OK:
		snprintf(to, room, "%s %shook succeeded.", name, kind);
		break;
	case HOOK_STATUS:
		if (build && a->status >= 400 && a->status <= 599)
			snprintf(to, room, "%s hook check failed: the application returned a %s (HTTP %dxx) response", name,
				 a->status < 500 ? "client error" : "server error", a->status / 100);
		else
			snprintf(
				to, room,
				"%s %shook returned HTTP status %d. Please check your hook endpoint and application logs for more details.",
				name, kind, a->status);
		break;
	case HOOK_TIMEOUT:
		snprintf(to, room, "%s %shook invocation timed out after %s%s", name, kind, time,
			 build ? "" : ". Answer sooner, or set a longer time-out for the hook in the image.");
		break;
	case HOOK_EXITED:
		snprintf(to, room, "%s %shook failed: the application ended before it answered. Please check your application logs.", name,
			 kind);
		break;
	case HOOK_REFUSED:
		snprintf(to, room, "%s %shook invocation timed out after %s: nothing accepted connections on port %d.", name, kind, time,
			 port);
		break;
	}
}
