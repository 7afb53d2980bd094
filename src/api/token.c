// CreateMicrovmAuthToken, CreateMicrovmShellAuthToken (spec section 1.6), and the operator's own tokens.
#include "api/call.h"
#include "base/clock.h"
#include "edge/edge.h"

#include <stdio.h>
#include <string.h>

#define MINUTES_MAX 60
#define SESSION_MINUTES 5 // of the operator's tokens, which are used at once

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

// False: the call has failed.
static bool is_mintable(struct call *c, const struct store_microvm *m, long long minutes) {
	if (minutes > MINUTES_MAX) {
		call_fail(c, 400, "ValidationException", "ExpirationMinutes %lld exceeded max allowed of %d.", minutes, MINUTES_MAX);
		return false;
	}
	if (strcmp(m->state, "TERMINATED") == 0 || strcmp(m->state, "TERMINATING") == 0) {
		call_fail(c, 400, "ValidationException", "The MicroVM %s has been terminated and its state cannot be changed.", m->id);
		return false;
	}
	return true;
}

static long long minutes_asked(const struct call *c) {
	return json_integer_value(json_object_get(c->body, "expirationInMinutes"));
}

static void mint(struct call *c, const struct store_microvm *m, struct token_claims *claims, long long minutes) {
	struct error e = {0};
	char token[TOKEN_ROOM];
	int64_t now_ms = (int64_t)realtime_ms();
	claims->expires_ms = now_ms + minutes * 60000;
	// Not before the last revocation, whatever the clock says.
	claims->minted_ms = now_ms < m->tokens_since_ms ? m->tokens_since_ms : now_ms;
	snprintf(claims->microvm, sizeof(claims->microvm), "%s", m->id);
	if (edge_mint_token(c->en, claims, token, &e) < 0)
		call_fail_with(c, &e);
	else
		call_answer(c, 200, json_pack("{s:{s:s}}", "authToken", "X-aws-proxy-auth", token));
}

static void mint_http(struct call *c, const struct store_microvm *m) {
	struct token_claims claims = {.kind = TOKEN_HTTP};
	struct error e = {0};
	if (!is_mintable(c, m, minutes_asked(c)))
		return;
	if (add_ports(&claims, json_object_get(c->body, "allowedPorts"), &e) < 0)
		call_fail(c, 400, "ValidationException", "%s", e.message);
	else
		mint(c, m, &claims, minutes_asked(c));
}

void create_auth_token(struct call *c) {
	struct store_microvm m;
	if (!call_check_body(c, &shape_auth_token) || !find_microvm(c, c->labels[0], &m))
		return;
	mint_http(c, &m);
	store_microvm_clear(&m);
}

static bool has_connector(const json_t *list, const char *name) {
	for (size_t i = 0; i < json_array_size(list); i++) {
		const char *arn = json_string_value(json_array_get(list, i)), *last = arn == NULL ? NULL : strrchr(arn, ':');
		if (last != NULL && strcmp(last + 1, name) == 0)
			return true;
	}
	return false;
}

// ALL_INGRESS alone opens the shell, too; it is the mixture that is refused.
static bool has_shell(struct call *c, const struct store_microvm *m) {
	cleanup_json json_t *config = json_stored(m->config);
	const json_t *ingress = json_object_get(config, "ingressNetworkConnectors");
	bool all = has_connector(ingress, "ALL_INGRESS");
	if (all && json_array_size(ingress) > 1) {
		call_fail(c, 400, "ValidationException",
			  "ALL_INGRESS cannot be combined with other ingress network connectors; use HTTP_INGRESS and/or SHELL_INGRESS "
			  "instead");
		return false;
	}
	if (all || has_connector(ingress, "SHELL_INGRESS"))
		return true;
	call_fail(c, 400, "ValidationException", "Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM.");
	return false;
}

void create_shell_auth_token(struct call *c) {
	struct store_microvm m;
	if (!call_check_body(c, &shape_shell_auth_token) || !find_microvm(c, c->labels[0], &m))
		return;
	struct token_claims claims = {.kind = TOKEN_SHELL};
	if (is_mintable(c, &m, minutes_asked(c)) && has_shell(c, &m))
		mint(c, &m, &claims, minutes_asked(c));
	store_microvm_clear(&m);
}

void operator_session_token(struct call *c) {
	struct token_claims claims = {.kind = TOKEN_OPERATOR};
	struct store_microvm m;
	if (!find_microvm(c, c->labels[0], &m))
		return;
	if (is_mintable(c, &m, SESSION_MINUTES))
		mint(c, &m, &claims, SESSION_MINUTES);
	store_microvm_clear(&m);
}
