// Who may pass; see gate.h. The answers are those of the service (spec section 5).
#include "edge/gate.h"

#include "base/clock.h"
#include "edge/upstream.h"
#include "images/connectors.h"
#include "microvms/microvms.h"

#include <string.h>

#define NO_TOKEN "Request missing authentication"
#define WRONG_TOKEN "Token authentication failed"
#define WRONG_PORT "Access to port denied"
#define BAD_PORT "Invalid port"
#define NO_INGRESS "Ingress denied by network connectors"

bool gate_endpoint(struct slice authority, char ret[static UUID_TEXT]) {
	size_t n = 0;
	while (n < authority.size && authority.data[n] != '.' && authority.data[n] != ':')
		n++;
	if (n != UUID_TEXT - 1)
		return false;
	for (size_t i = 0; i < n; i++) {
		char c = authority.data[i];
		ret[i] = (char)(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
	}
	ret[n] = '\0';
	return uuid_is_valid(ret);
}

uint16_t gate_port(struct slice text) {
	uint32_t port = 0;
	if (text.size == 0 || text.size > 5)
		return 0;
	for (size_t i = 0; i < text.size; i++) {
		if (text.data[i] < '0' || text.data[i] > '9')
			return 0;
		port = port * 10 + (uint32_t)(text.data[i] - '0');
	}
	return port <= 65535 ? (uint16_t)port : 0;
}

static void refuse(struct gate_verdict *v, int status, const char *text) {
	v->status = status;
	v->text = text;
}

// Who shows no token may pass to a port that the operator has made public. Who names no port means 8080, or else the lowest of them.
static bool is_public(struct edge *ed, const struct gate_request *r, struct gate_verdict *ret) {
	char id[48], state[STATE_TEXT];
	uint16_t port = r->ports == 0 ? 0 : r->ports == 1 ? gate_port(r->port) : 0;
	if (r->token.size > 0 || (r->ports > 0 && port == 0) || !gate_endpoint(r->authority, ret->endpoint))
		return false;
	ret->port = microvm_public_port(ed->engine, ret->endpoint, port);
	if (ret->port == 0 || !microvm_find_endpoint(ed->engine, ret->endpoint, id, state))
		return false;
	memcpy(ret->microvm, id, sizeof(ret->microvm));
	if ((microvm_ingress(ed->engine, ret->endpoint) & INGRESS_HTTP) == 0)
		refuse(ret, 403, NO_INGRESS);
	return true;
}

void gate_decide(struct edge *ed, const struct gate_request *r, struct gate_verdict *ret) {
	*ret = (struct gate_verdict){.status = 0};
	struct token_claims claims;
	if (is_public(ed, r, ret))
		return;
	*ret = (struct gate_verdict){.port = GATE_DEFAULT_PORT};
	int code = r->token.size == 0 ? -EBADMSG : token_cache_open(ed->tokens, ed->keys, r->token.data, r->token.size, &claims);
	if (code < 0) {
		refuse(ret, 403, code == -EBADMSG ? NO_TOKEN : WRONG_TOKEN);
		return;
	}
	char id[48], state[STATE_TEXT];
	if (!gate_endpoint(r->authority, ret->endpoint) || !microvm_find_endpoint(ed->engine, ret->endpoint, id, state)) {
		refuse(ret, 403, WRONG_TOKEN);
		return;
	}
	if (r->ports > 0)
		ret->port = r->ports == 1 ? gate_port(r->port) : 0;
	enum token_verdict verdict = token_permits(&claims, id, ret->port, (int64_t)realtime_ms());
	if (verdict == TOKEN_OTHER_MICROVM || verdict == TOKEN_EXPIRED ||
	    claims.minted_ms < microvm_tokens_since(ed->engine, ret->endpoint)) {
		refuse(ret, 403, WRONG_TOKEN);
		return;
	}
	memcpy(ret->microvm, claims.microvm, sizeof(ret->microvm));
	ret->shell = claims.kind == TOKEN_SHELL || claims.kind == TOKEN_OPERATOR;
	if (ret->port == 0)
		refuse(ret, 400, BAD_PORT);
	else if (ret->shell && !r->websocket)
		refuse(ret, 502, ""); // a shell's token opens no application (spec section 6)
	else if (claims.kind == TOKEN_SHELL && (microvm_ingress(ed->engine, ret->endpoint) & INGRESS_SHELL) == 0)
		refuse(ret, 403, NO_INGRESS);
	else if (ret->shell)
		ret->port = UPSTREAM_SESSION;
	else if (verdict == TOKEN_PORT_DENIED)
		refuse(ret, 403, WRONG_PORT);
	else if ((microvm_ingress(ed->engine, ret->endpoint) & INGRESS_HTTP) == 0)
		refuse(ret, 403, NO_INGRESS); // by its connectors; a sleeping one is not woken
}
