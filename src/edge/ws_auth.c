// WebSocket authentication by subprotocols; see ws_auth.h.
#include "edge/ws_auth.h"

#include <string.h>

#define OWN_PREFIX WS_AUTH_NAME "."
#define TOKEN_PREFIX WS_AUTH_NAME ".authentication."
#define PORT_PREFIX WS_AUTH_NAME ".port."

// Takes the next name off a list; false at its end. Empty elements are passed over (RFC 9110 section 5.6.1.2).
static bool next_name(struct slice *list, struct slice *ret) {
	while (list->size > 0) {
		const char *comma = memchr(list->data, ',', list->size);
		size_t n = comma != NULL ? (size_t)(comma - list->data) : list->size, step = comma != NULL ? n + 1 : n;
		*ret = slice_trim((struct slice){list->data, n});
		list->data += step;
		list->size -= step;
		if (ret->size > 0)
			return true;
	}
	return false;
}

static bool begins_with(struct slice name, const char *prefix, struct slice *rest) {
	size_t n = strlen(prefix);
	if (name.size < n || memcmp(name.data, prefix, n) != 0)
		return false;
	*rest = (struct slice){name.data + n, name.size - n};
	return true;
}

static bool is_own(struct slice name) {
	struct slice rest;
	return slice_equals(name, WS_AUTH_NAME) || begins_with(name, OWN_PREFIX, &rest);
}

void ws_auth_read(struct ws_auth *a, struct slice value) {
	struct slice name, rest;
	while (next_name(&value, &name)) {
		a->malformed |= !slice_is_token(name);
		if (slice_equals(name, WS_AUTH_NAME)) {
			a->offered = true;
		} else if (begins_with(name, TOKEN_PREFIX, &rest)) {
			a->token = rest;
			a->tokens++;
		} else if (begins_with(name, PORT_PREFIX, &rest)) {
			a->port = rest;
			a->ports++;
		} else if (!is_own(name)) {
			a->others++;
		}
	}
}

void ws_auth_apply(const struct ws_auth *a, struct gate_request *r) {
	if (!a->offered)
		return;
	if (r->token.size == 0 && a->tokens == 1)
		r->token = a->token;
	if (r->ports == 0) {
		r->port = a->port;
		r->ports = a->ports;
	}
}

void ws_auth_write_others(struct writer *w, struct slice value) {
	struct slice name;
	bool more = false;
	while (next_name(&value, &name)) {
		if (is_own(name))
			continue;
		if (more)
			write_bytes(w, ", ", 2);
		write_bytes(w, name.data, name.size);
		more = true;
	}
}

bool ws_auth_must_answer(bool offered, const struct http_head *response) {
	const struct http_header *selected = offered ? http_find(response, WS_AUTH_HEADER) : NULL;
	return offered && (selected == NULL || selected->value.size == 0);
}
