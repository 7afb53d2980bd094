// A session with a microVM; see session.h.
#include "cli/session.h"

#include "base/cleanup.h"
#include "base/http1.h"
#include "base/json.h"
#include "edge/ws_key.h"

#include <openssl/rand.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_SECONDS 30L
#define HEAD_MAX 8192
#define WAKE_MS 600000 // for the handshake's answer: the microVM may have to wake
#define TOKEN_PART "X-aws-proxy-auth"

// Waits for the socket.
static int wait_for(struct session *s, short events, int timeout_ms) {
	struct pollfd p = {.fd = s->fd, .events = events};
	int n = poll(&p, 1, timeout_ms);
	return n < 0 && errno != EINTR ? -errno : n == 0 ? -ETIMEDOUT : p.revents;
}

// Returns how many bytes came, 0: none now, -ENOTCONN at the end, or -EIO.
static ssize_t receive_bytes(struct session *s, void *to, size_t room) {
	size_t n = 0;
	CURLcode code = curl_easy_recv(s->handle, to, room, &n);
	if (code == CURLE_AGAIN)
		return 0;
	return code != CURLE_OK ? -EIO : n == 0 ? -ENOTCONN : (ssize_t)n;
}

static int meet(struct session *s, struct error *e);

static int send_bytes(struct session *s, const void *data, size_t size, struct error *e) {
	for (size_t at = 0; at < size;) {
		size_t n = 0;
		CURLcode code = curl_easy_send(s->handle, (const char *)data + at, size - at, &n);
		at += n;
		if (code == CURLE_OK)
			continue;
		if (code != CURLE_AGAIN)
			return error_set(e, -EIO, "the connection to the microVM broke off: %s", curl_easy_strerror(code));
		// The other side may be waiting for us to take something before it takes more.
		int r = wait_for(s, POLLOUT | POLLIN, -1);
		if (r > 0 && (r & POLLIN) != 0 && (r = meet(s, e)) < 0)
			return r;
	}
	return 0;
}

static int send_frame(struct session *s, enum ws_opcode opcode, const void *data, size_t size, struct error *e) {
	uint8_t frame[WS_HEAD_MAX + SESSION_CHUNK], mask[4];
	if (size > SESSION_CHUNK || RAND_bytes(mask, sizeof(mask)) != 1)
		return error_set(e, -EINVAL, "a message is too long");
	size_t n = ws_write_head(frame, opcode, true, size, mask);
	if (size > 0)
		memcpy(frame + n, data, size);
	ws_mask(frame + n, size, mask, 0);
	return send_bytes(s, frame, n + size, e);
}

int session_send(struct session *s, const void *data, size_t size, struct error *e) {
	int r = 0;
	for (size_t at = 0, n; r == 0 && at < size; at += n) {
		n = size - at < SESSION_CHUNK ? size - at : SESSION_CHUNK;
		r = send_frame(s, WS_BINARY, (const char *)data + at, n, e);
	}
	return r;
}

// A text message of any length, in fragments.
static int send_text(struct session *s, const char *text, struct error *e) {
	size_t size = strlen(text), at = 0;
	do {
		uint8_t frame[WS_HEAD_MAX + SESSION_CHUNK], mask[4] = {0};
		size_t n = size - at < SESSION_CHUNK ? size - at : SESSION_CHUNK;
		if (RAND_bytes(mask, sizeof(mask)) != 1)
			return error_set(e, -EIO, "no random bytes");
		size_t head = ws_write_head(frame, at == 0 ? WS_TEXT : WS_NOTHING, at + n == size, n, mask);
		memcpy(frame + head, text + at, n);
		ws_mask(frame + head, n, mask, 0);
		int r = send_bytes(s, frame, head + n, e);
		if (r < 0)
			return r;
		at += n;
	} while (at < size);
	return 0;
}

int session_send_json(struct session *s, json_t *message, struct error *e) {
	cleanup_free char *text = message != NULL ? json_dumps(message, JSON_COMPACT) : NULL;
	json_decref(message);
	return text != NULL ? send_text(s, text, e) : error_set(e, -EINVAL, "the arguments are not text in UTF-8");
}

// Receiving. ------------------------------------------------------------------------------------------------------------------

static bool take_text(struct session *s, const struct ws_piece *p, struct session_message *ret) {
	size_t n = p->size < sizeof(s->text) - s->text_used ? p->size : sizeof(s->text) - s->text_used;
	memcpy(s->text + s->text_used, p->data, n);
	s->text_used += n;
	if (!p->last)
		return false;
	json_t *o = json_loadb(s->text, s->text_used, 0, NULL);
	s->text_used = 0;
	const char *type = json_text(o, "type");
	ret->kind = strcmp(type, "exit") == 0 ? SESSION_EXIT : strcmp(type, "failed") == 0 ? SESSION_FAILED : 0;
	ret->number = (int)json_integer_value(json_object_get(o, "exitCode"));
	snprintf(ret->code, sizeof(ret->code), "%s", json_text(o, "code"));
	snprintf(ret->text, sizeof(ret->text), "%s", json_text(o, "message"));
	json_decref(o);
	s->over |= ret->kind != 0;
	return ret->kind != 0;
}

static bool take_binary(struct session *s, const struct ws_piece *p, struct session_message *ret) {
	const uint8_t *data = p->data;
	size_t size = p->size;
	if (s->channel == 0 && size > 0) {
		s->channel = *data++;
		size--;
	}
	ret->kind = s->channel == SESSION_ERROR_OUTPUT ? SESSION_ERROR_OUTPUT : SESSION_OUTPUT;
	ret->data = data;
	ret->size = size;
	if (p->last)
		s->channel = 0;
	return size > 0;
}

// Acts on a piece. Returns 1 with a message, 0, or a negative errno.
static int take_piece(struct session *s, const struct ws_piece *p, struct session_message *ret, struct error *e) {
	*ret = (struct session_message){0};
	switch (p->kind) {
	case WS_TEXT:
		return take_text(s, p, ret);
	case WS_BINARY:
		return take_binary(s, p, ret);
	case WS_PING:
		return send_frame(s, WS_PONG, p->data, p->size, e);
	case WS_CLOSE:
		s->over = true;
		return error_set(e, -ECONNRESET, "the session was closed: %.*s (%u)", (int)p->size, (const char *)p->data, p->code);
	default:
		return 0;
	}
}

int session_receive(struct session *s, bool wait, struct session_message *ret, struct error *e) {
	while (!s->over) {
		if (s->in_at < s->in_used) {
			struct ws_piece p;
			ssize_t n = ws_read(&s->reader, s->in + s->in_at, s->in_used - s->in_at, &p);
			if (n < 0)
				return error_set(e, -EPROTO, "the edge sent a malformed WebSocket frame");
			s->in_at += (size_t)n;
			int r = take_piece(s, &p, ret, e);
			if (r != 0)
				return r;
			continue;
		}
		ssize_t n = receive_bytes(s, s->in, sizeof(s->in));
		if (n > 0) {
			s->in_at = 0;
			s->in_used = (size_t)n;
		} else if (n < 0 || (wait && wait_for(s, POLLIN, -1) < 0)) {
			return error_set(e, -ECONNRESET, "the connection to the microVM broke off");
		} else if (!wait) {
			return 0;
		}
	}
	return -ENOTCONN;
}

// Hands on what comes while we are sending. -EPIPE: the session is over.
static int meet(struct session *s, struct error *e) {
	struct session_message m;
	int r;
	while ((r = session_receive(s, false, &m, e)) > 0)
		s->meanwhile(s->arg, &m);
	return r == -ENOTCONN || s->over ? error_set(e, -EPIPE, "the session has ended") : r;
}

int session_failed(const struct session_message *m, struct error *e) {
	return error_named(e, -EIO, m->code, "%s", m->text);
}

// Opening. --------------------------------------------------------------------------------------------------------------------

// host[:port] of the endpoint as URL and as libcurl's rule for connecting to the edge instead.
static struct curl_slist *address(const struct cli *c, const char *endpoint, char url[512]) {
	char name[300], rule[900];
	snprintf(name, sizeof(name), "%s", endpoint);
	char *colon = strchr(name, ':');
	const char *edge_port = strrchr(c->settings.edge, ':'), *port = colon != NULL       ? colon + 1
									: edge_port != NULL ? edge_port + 1
											    : "443";
	if (colon != NULL)
		*colon = '\0';
	snprintf(url, 512, "https://%s:%s/", name, port);
	snprintf(rule, sizeof(rule), "%s:%s:%s", name, port, c->settings.edge);
	return curl_slist_append(NULL, rule);
}

static int connect_edge(const struct cli *c, const char *endpoint, struct session *s, struct error *e) {
	char url[512], ca[CLI_PATH_MAX], why[CURL_ERROR_SIZE] = "";
	curl_socket_t fd = -1;
	int r = settings_path(&c->settings, "ca.pem", ca, e);
	if (r < 0)
		return r;
	struct curl_slist *connect_to = address(c, endpoint, url);
	curl_easy_setopt(s->handle, CURLOPT_URL, url);
	curl_easy_setopt(s->handle, CURLOPT_CONNECT_TO, connect_to);
	curl_easy_setopt(s->handle, CURLOPT_CONNECT_ONLY, 1L);
	curl_easy_setopt(s->handle, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(s->handle, CURLOPT_CAINFO, ca);
	curl_easy_setopt(s->handle, CURLOPT_PROXY, "");
	curl_easy_setopt(s->handle, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(s->handle, CURLOPT_CONNECTTIMEOUT, CONNECT_SECONDS);
	curl_easy_setopt(s->handle, CURLOPT_ERRORBUFFER, why);
	CURLcode code = curl_easy_perform(s->handle);
	curl_easy_setopt(s->handle, CURLOPT_ERRORBUFFER, NULL);
	curl_slist_free_all(connect_to);
	if (code == CURLE_OK)
		code = curl_easy_getinfo(s->handle, CURLINFO_ACTIVESOCKET, &fd);
	s->fd = (int)fd;
	return code == CURLE_OK ? 0
				: error_set(e, -ECONNREFUSED, "the edge does not answer at %s: %s", c->settings.edge,
					    why[0] != '\0' ? why : curl_easy_strerror(code));
}

// Reads the answer's head; what follows it stays in s->in. Returns its size.
static ssize_t read_head(struct session *s, char head[HEAD_MAX], struct http_head *h, struct error *e) {
	size_t used = 0;
	for (;;) {
		ssize_t n = http_parse_response(head, used, false, h, e);
		if (n != 0)
			return n;
		if (used == HEAD_MAX)
			return error_set(e, -EBADMSG, "the edge's answer is too long");
		n = receive_bytes(s, head + used, HEAD_MAX - used);
		if (n < 0 || (n == 0 && wait_for(s, POLLIN, WAKE_MS) < 0))
			return error_set(e, -ECONNRESET, "the edge ended the connection without an answer");
		used += (size_t)n;
		s->in_used = used;
	}
}

static int shake_hands(struct session *s, const char *endpoint, const char *token, struct error *e) {
	char key[WS_KEY_TEXT], accept[WS_ACCEPT_TEXT], request[2048], head[HEAD_MAX];
	struct http_head h;
	if (!ws_key_new(key) || !ws_key_accept(key, strlen(key), accept))
		return error_set(e, -EIO, "no random bytes are to be had");
	int n = snprintf(
		request, sizeof(request),
		"GET /_stasis/exec HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
		"Sec-WebSocket-Key: %s\r\n" TOKEN_PART ": %s\r\n\r\n",
		endpoint, key, token);
	int r = n < (int)sizeof(request) ? send_bytes(s, request, (size_t)n, e) : error_set(e, -EINVAL, "the token is too long");
	if (r < 0)
		return r;
	ssize_t size = read_head(s, head, &h, e);
	if (size < 0)
		return (int)size;
	size_t rest = s->in_used - (size_t)size;
	if (h.status != 101)
		return error_set(e, h.status == 403 ? -EACCES : -EIO, "the edge refused the session with HTTP status %d%s%.*s%s", h.status,
				 rest > 0 ? " (" : "", (int)(rest < 200 ? rest : 200), head + size, rest > 0 ? ")" : "");
	const struct http_header *given = http_find(&h, "sec-websocket-accept");
	if (given == NULL || !slice_equals(given->value, accept))
		return error_set(e, -EPROTO, "the edge's answer is no WebSocket's");
	memcpy(s->in, head + size, rest);
	s->in_at = 0;
	s->in_used = rest;
	return 0;
}

int session_open(const struct cli *c, const char *id, const json_t *request, struct session *s, struct error *e) {
	cleanup_json json_t *microvm = NULL, *token = NULL;
	char path[200];
	*s = (struct session){.fd = -1};
	snprintf(path, sizeof(path), "/2025-09-09/microvms/%s", id);
	int r = client_call(&c->settings, "GET", path, NULL, &microvm, e);
	snprintf(path, sizeof(path), "/_stasis/microvms/%s/session-token", id);
	if (r == 0)
		r = client_call(&c->settings, "POST", path, NULL, &token, e);
	if (r < 0)
		return r;
	s->handle = curl_easy_init();
	if (s->handle == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	const char *endpoint = json_text(microvm, "endpoint");
	r = connect_edge(c, endpoint, s, e);
	if (r == 0)
		r = shake_hands(s, endpoint, json_text(json_object_get(token, "authToken"), TOKEN_PART), e);
	if (r == 0)
		r = session_send_json(s, json_incref((json_t *)(uintptr_t)request), e);
	if (r < 0)
		session_close(s);
	return r;
}

void session_close(struct session *s) {
	if (s->handle != NULL)
		curl_easy_cleanup(s->handle);
	s->handle = NULL;
}
