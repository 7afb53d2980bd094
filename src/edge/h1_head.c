// HTTP/1.1 heads as a proxy rewrites them; see h1_head.h.
#include "edge/h1_head.h"

#include "edge/ws_auth.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define OWN_PREFIX "x-aws-proxy-"
#define REQUEST_ID "x-amzn-requestid"

static bool is_own(struct slice name) {
	return name.size >= sizeof(OWN_PREFIX) - 1 && slice_same_nocase(name.data, OWN_PREFIX, sizeof(OWN_PREFIX) - 1);
}

static bool is_one_of(struct slice name, const struct slice *names, size_t count) {
	for (size_t i = 0; i < count; i++)
		if (name.size == names[i].size && slice_same_nocase(name.data, names[i].data, name.size))
			return true;
	return false;
}

static bool is_hop_by_hop(struct slice name) {
	static const struct slice names[] = {
		SLICE_OF("connection"), SLICE_OF("keep-alive"),        SLICE_OF("proxy-connection"),    SLICE_OF("te"),
		SLICE_OF("upgrade"),    SLICE_OF("transfer-encoding"), SLICE_OF("proxy-authorization"), SLICE_OF("proxy-authenticate")};
	return is_one_of(name, names, sizeof(names) / sizeof(names[0]));
}

// Whether a Connection header names it. Host and the framing cannot be made hop-by-hop by naming them.
static bool is_named_in_connection(const struct http_head *h, struct slice name) {
	char text[128];
	if (name.size >= sizeof(text) || slice_equals_nocase(name, "host") || slice_equals_nocase(name, "content-length"))
		return false;
	memcpy(text, name.data, name.size);
	text[name.size] = '\0';
	for (size_t i = 0; i < h->header_count; i++)
		if (slice_equals_nocase(h->headers[i].name, "connection") && slice_has_token(h->headers[i].value, text))
			return true;
	return false;
}

static void put(struct writer *w, const char *text) {
	write_bytes(w, text, strlen(text));
}

static void put_slice(struct writer *w, struct slice s) {
	write_bytes(w, s.data, s.size);
}

static void put_header(struct writer *w, const struct http_header *h) {
	put_slice(w, h->name);
	put(w, ": ");
	put_slice(w, h->value);
	put(w, "\r\n");
}

static void put_length(struct writer *w, uint64_t length) {
	char line[64];
	snprintf(line, sizeof(line), "content-length: %llu\r\n", (unsigned long long)length);
	put(w, line);
}

// The authority of an absolute-form target, and the path behind it.
static bool split_absolute(struct slice target, struct slice *authority, struct slice *path) {
	if (target.size == 0 || target.data[0] == '/' || target.data[0] == '*')
		return false;
	const char *from = memchr(target.data, ':', target.size);
	if (from == NULL || (size_t)(target.data + target.size - from) < 3 || from[1] != '/' || from[2] != '/')
		return false;
	from += 3;
	const char *end = target.data + target.size, *p = from;
	while (p < end && *p != '/' && *p != '?')
		p++;
	*authority = (struct slice){from, (size_t)(p - from)};
	*path = (struct slice){p, (size_t)(end - p)};
	return true;
}

static struct ws_auth subprotocols(const struct http_head *h) {
	struct ws_auth a = {0};
	for (size_t i = 0; i < h->header_count; i++)
		if (slice_equals_nocase(h->headers[i].name, WS_AUTH_HEADER))
			ws_auth_read(&a, h->headers[i].value);
	return a;
}

bool h1_is_websocket(const struct http_head *h) {
	if (!h1_may_upgrade(h) || !slice_equals(h->method, "GET"))
		return false;
	for (size_t i = 0; i < h->header_count; i++)
		if (slice_equals_nocase(h->headers[i].name, "upgrade") && slice_has_token(h->headers[i].value, "websocket"))
			return true;
	return false;
}

bool h1_offers_subprotocol(const struct http_head *h) {
	return h1_is_websocket(h) && subprotocols(h).offered;
}

bool h1_gate_request(const struct http_head *h, struct gate_request *ret) {
	*ret = (struct gate_request){0};
	unsigned tokens = 0;
	for (size_t i = 0; i < h->header_count; i++) {
		const struct http_header *x = &h->headers[i];
		if (slice_equals_nocase(x->name, "host")) {
			ret->authority = x->value;
		} else if (slice_equals_nocase(x->name, "x-aws-proxy-auth")) {
			ret->token = x->value;
			tokens++;
		} else if (slice_equals_nocase(x->name, "x-aws-proxy-port")) {
			ret->port = x->value;
			ret->ports++;
		}
	}
	if (tokens > 1)
		ret->token = (struct slice){0};
	ret->websocket = h1_is_websocket(h);
	if (tokens <= 1 && ret->websocket) {
		struct ws_auth a = subprotocols(h);
		if (a.malformed)
			return false;
		ws_auth_apply(&a, ret);
	}
	struct slice authority, path;
	if (!split_absolute(h->target, &authority, &path))
		return true;
	bool same = ret->authority.size == 0 ||
		    (ret->authority.size == authority.size && strncasecmp(ret->authority.data, authority.data, authority.size) == 0);
	ret->authority = authority;
	return same;
}

bool h1_may_upgrade(const struct http_head *h) {
	if (!h->upgrade || h->body != HTTP_BODY_NONE)
		return false;
	for (size_t i = 0; i < h->header_count; i++) {
		struct slice v = h->headers[i].value;
		if (!slice_equals_nocase(h->headers[i].name, "upgrade"))
			continue;
		for (size_t at = 0; at + 3 <= v.size; at++)
			if (strncasecmp(v.data + at, "h2c", 3) == 0 || (at + 4 <= v.size && strncasecmp(v.data + at, "http", 4) == 0))
				return false;
	}
	return true;
}

bool h1_forces_h2(const struct http_head *h) {
	const struct http_header *x = http_find(h, "x-aws-proxy-force-h2");
	return x != NULL && slice_equals_nocase(x->value, "true") && !h1_may_upgrade(h);
}

bool h1_is_idempotent(struct slice method) {
	static const char *const names[] = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (slice_equals(method, names[i]))
			return true;
	return false;
}

static void put_upgrade(struct writer *w, const struct http_head *h) {
	put(w, "connection: upgrade\r\n");
	for (size_t i = 0; i < h->header_count; i++)
		if (slice_equals_nocase(h->headers[i].name, "upgrade"))
			put_header(w, &h->headers[i]);
}

// Headers that end here or are written anew, in either direction.
static bool is_dropped(const struct http_head *h, struct slice name) {
	return is_hop_by_hop(name) || slice_equals_nocase(name, "content-length") || (h->connection && is_named_in_connection(h, name));
}

// The application's own subprotocols; whatever kind of request this is, a token in it stays here.
static void put_subprotocols(struct writer *w, const struct http_header *h) {
	struct ws_auth a = {0};
	ws_auth_read(&a, h->value);
	if (a.others == 0)
		return;
	put_slice(w, h->name);
	put(w, ": ");
	ws_auth_write_others(w, h->value);
	put(w, "\r\n");
}

void h1_write_request(struct writer *w, const struct http_head *h, const char *request_id) {
	struct slice authority = {0}, path = h->target;
	bool absolute = split_absolute(h->target, &authority, &path);
	put_slice(w, h->method);
	put(w, path.size > 0 && path.data[0] == '?' ? " /" : " ");
	if (path.size == 0)
		put(w, slice_equals(h->method, "OPTIONS") ? "*" : "/"); // RFC 9112 section 3.2.4
	put_slice(w, path);
	put(w, " HTTP/1.1\r\n");
	if (absolute) {
		put(w, "host: ");
		put_slice(w, authority);
		put(w, "\r\n");
	}
	for (size_t i = 0; i < h->header_count; i++) {
		const struct http_header *x = &h->headers[i];
		if (is_dropped(h, x->name) || is_own(x->name) || slice_equals_nocase(x->name, REQUEST_ID) ||
		    (absolute && slice_equals_nocase(x->name, "host")))
			continue;
		if (slice_equals_nocase(x->name, WS_AUTH_HEADER))
			put_subprotocols(w, x);
		else
			put_header(w, x);
	}
	put(w, REQUEST_ID ": ");
	put(w, request_id);
	put(w, "\r\n");
	if (h->body == HTTP_BODY_CHUNKED)
		put(w, "transfer-encoding: chunked\r\n");
	else if (h->body == HTTP_BODY_LENGTH)
		put_length(w, h->content_length);
	if (h1_may_upgrade(h))
		put_upgrade(w, h);
	put(w, "\r\n");
}

static void put_status(struct writer *w, const struct http_head *h) {
	char line[32];
	snprintf(line, sizeof(line), "HTTP/1.1 %03d ", h->status);
	put(w, line);
	put_slice(w, h->reason);
	put(w, "\r\n");
}

size_t h1_response_headers(const struct http_head *h, enum h1_framing framing, bool offered, struct http_header *ret) {
	bool ours = h->status == 101 && ws_auth_must_answer(offered, h);
	size_t count = 0;
	for (size_t i = 0; i < h->header_count; i++) {
		const struct http_header *x = &h->headers[i];
		// What a HEAD or 304 response says about the body that it does not have is for the client.
		bool about_absent = framing == H1_FRAMING_NONE && h->status >= 200 && h->status != 204 &&
				    slice_equals_nocase(x->name, "content-length") && x->value.size > 0;
		if ((about_absent || !is_dropped(h, x->name)) && !(ours && slice_equals_nocase(x->name, WS_AUTH_HEADER)))
			ret[count++] = *x;
	}
	if (ours)
		ret[count++] = (struct http_header){SLICE(WS_AUTH_HEADER), SLICE(WS_AUTH_NAME)};
	return count;
}

static void put_headers(struct writer *w, const struct http_head *h, enum h1_framing framing, bool offered) {
	struct http_header headers[H1_HEADERS_MAX];
	size_t count = h1_response_headers(h, framing, offered, headers);
	for (size_t i = 0; i < count; i++)
		put_header(w, &headers[i]);
}

void h1_write_response(struct writer *w, const struct http_head *h, enum h1_framing framing, bool keep, bool old_client) {
	put_status(w, h);
	put_headers(w, h, framing, false);
	if (framing == H1_FRAMING_CHUNKED)
		put(w, "transfer-encoding: chunked\r\n");
	else if (framing == H1_FRAMING_LENGTH)
		put_length(w, h->content_length);
	if (!keep)
		put(w, "connection: close\r\n");
	else if (old_client)
		put(w, "connection: keep-alive\r\n");
	put(w, "\r\n");
}

void h1_write_interim(struct writer *w, const struct http_head *h, bool offered) {
	put_status(w, h);
	put_headers(w, h, H1_FRAMING_NONE, offered);
	if (h->status == 101)
		put_upgrade(w, h);
	put(w, "\r\n");
}

static const char *reason_of(int status) {
	switch (status) {
	case 400:
		return "Bad Request";
	case 403:
		return "Forbidden";
	case 408:
		return "Request Timeout";
	case 429:
		return "Too Many Requests";
	case 431:
		return "Request Header Fields Too Large";
	case 505:
		return "HTTP Version Not Supported";
	default:
		return "Bad Gateway";
	}
}

void h1_make_answer(struct h1_answer *a, int status, const char *text, int64_t now_s) {
	time_t t = (time_t)now_s;
	struct tm tm;
	gmtime_r(&t, &tm);
	size_t date = strftime(a->date, sizeof(a->date), "%a, %d %b %Y %H:%M:%S GMT", &tm);
	int length = snprintf(a->length, sizeof(a->length), "%zu", strlen(text));
	a->count = 0;
	a->headers[a->count++] = (struct http_header){SLICE("date"), {a->date, date}};
	if (text[0] != '\0')
		a->headers[a->count++] = (struct http_header){SLICE("content-type"), SLICE("text/plain")};
	a->headers[a->count++] = (struct http_header){SLICE("content-length"), {a->length, (size_t)length}};
	// Shares are of a second (RFC 6585, section 4).
	if (status == 429)
		a->headers[a->count++] = (struct http_header){SLICE("retry-after"), SLICE("1")};
}

void h1_write_answer(struct writer *w, int status, const char *text, bool to_head, bool keep, int64_t now_s) {
	char line[64];
	struct h1_answer a;
	h1_make_answer(&a, status, text, now_s);
	snprintf(line, sizeof(line), "HTTP/1.1 %d %s\r\n", status, reason_of(status));
	put(w, line);
	for (size_t i = 0; i < a.count; i++)
		put_header(w, &a.headers[i]);
	put(w, keep ? "\r\n" : "connection: close\r\n\r\n");
	if (!to_head)
		put(w, text);
}

void h1_write_trailers(struct writer *w, const struct http_header *headers, size_t count) {
	static const struct slice never[] = {SLICE_OF("content-length"),   SLICE_OF("host"),         SLICE_OF("trailer"),
					     SLICE_OF("authorization"),    SLICE_OF("cookie"),       SLICE_OF("set-cookie"),
					     SLICE_OF("content-encoding"), SLICE_OF("content-type"), SLICE_OF("content-range"),
					     SLICE_OF(REQUEST_ID)};
	for (size_t i = 0; i < count; i++)
		if (!is_hop_by_hop(headers[i].name) && !is_own(headers[i].name) &&
		    !is_one_of(headers[i].name, never, sizeof(never) / sizeof(never[0])))
			put_header(w, &headers[i]);
	put(w, "\r\n");
}
