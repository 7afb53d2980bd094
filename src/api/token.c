// CreateMicrovmAuthToken (spec section 1.6).
#include "api/call.h"
#include "base/clock.h"
#include "edge/edge.h"

#include <stdio.h>
#include <string.h>

#define MINUTES_MAX 60

static int add_ports(struct token_claims *claims, const json_t *allowed, struct error *e) {
	int r = 0;
	for (size_t i = 0; i < json_array_size(allowed) && r >= 0; i++) {
		const json_t *s = json_array_get(allowed, i), *port = json_object_get(s, "port"), *range = json_object_get(s, "range");
		if (json_is_integer(port)) {
			uint32_t n = (uint32_t)json_integer_value(port);
			r = token_add_ports(claims, n, n, e);
		} else if (json_is_object(range)) {
			r = token_add_ports(claims, (uint32_t)json_integer_value(json_object_get(range, "startPort")),
					    (uint32_t)json_integer_value(json_object_get(range, "endPort")), e);
		} else {
			r = token_add_all_ports(claims, e);
		}
	}
	return r;
}

static void mint(struct call *c, const struct store_microvm *m) {
	long long minutes = json_integer_value(json_object_get(c->body, "expirationInMinutes"));
	if (minutes > MINUTES_MAX) {
		call_fail(c, 400, "ValidationException", "ExpirationMinutes %lld exceeded max allowed of %d.", minutes, MINUTES_MAX);
		return;
	}
	if (strcmp(m->state, "TERMINATED") == 0 || strcmp(m->state, "TERMINATING") == 0) {
		call_fail(c, 400, "ValidationException", "The MicroVM %s has been terminated and its state cannot be changed.", m->id);
		return;
	}
	struct token_claims claims = {.kind = TOKEN_HTTP, .expires_ms = (int64_t)realtime_ms() + minutes * 60000};
	snprintf(claims.microvm, sizeof(claims.microvm), "%s", m->id);
	struct error e = {0};
	if (add_ports(&claims, json_object_get(c->body, "allowedPorts"), &e) < 0) {
		call_fail(c, 400, "ValidationException", "%s", e.message);
		return;
	}
	char token[TOKEN_ROOM];
	if (edge_mint_token(c->en, &claims, token, &e) < 0) {
		call_fail_with(c, &e);
		return;
	}
	call_answer(c, 200, json_pack("{s:{s:s}}", "authToken", "X-aws-proxy-auth", token));
}

void create_auth_token(struct call *c) {
	struct store_microvm m;
	if (!call_check_body(c, &shape_auth_token) || !find_microvm(c, c->labels[0], &m))
		return;
	mint(c, &m);
	store_microvm_clear(&m);
}
