// The edge's start and end, its listener and its clockwork; see edge.h.
#include "edge/edge.h"

#include "base/clock.h"
#include "base/log.h"
#include "edge/connection.h"
#include "edge/share.h"
#include "edge/state.h"
#include "edge/tls.h"
#include "edge/upstream.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>

#define LISTEN_BACKLOG 1024
#define RENEWAL_MS (12ull * 60 * 60 * 1000)       // how often the ages of certificate and token key are looked at
#define TOKEN_KEY_MS (30ll * 24 * 60 * 60 * 1000) // a key that is older makes way for a new one

void edge_let_go(struct edge *ed) {
	if (--ed->references > 0)
		return;
	token_keys_close(ed->keys);
	token_cache_free(ed->tokens);
	certificates_clear(&ed->certificates);
	SSL_CTX_free(ed->tls);
	SSL_CTX_free(ed->application_tls);
	buffer_pool_clear(&ed->buffers);
	shares_free(ed);
	free(ed);
}

static void on_handle_closed(uv_handle_t *handle) {
	edge_let_go(handle->data);
}

static void on_sweep(uv_timer_t *timer) {
	struct edge *ed = timer->data;
	uint64_t now = uv_now(ed->engine->loop);
	connections_sweep(ed, now);
	upstream_sweep(ed, now, false);
	shares_sweep(ed);
	if (ed->client_count == 0 && ed->idle_upstream_count == 0 && TAILQ_EMPTY(&ed->ways))
		uv_timer_stop(timer);
}

static void on_hurry(uv_idle_t *idle) {
}

void edge_watch(struct edge *ed) {
	if (!ed->stopping && !uv_is_active((uv_handle_t *)&ed->sweep))
		uv_timer_start(&ed->sweep, on_sweep, EDGE_SWEEP_MS, EDGE_SWEEP_MS);
}

void edge_pump_later(struct edge *ed, struct connection *c) {
	if (c->later || ed->stopping)
		return;
	c->later = true;
	TAILQ_INSERT_TAIL(&ed->later, c, later_link);
	uv_idle_start(&ed->hurry, on_hurry);
}

void edge_forget_later(struct edge *ed, struct connection *c) {
	if (c->later)
		TAILQ_REMOVE(&ed->later, c, later_link);
	c->later = false;
}

static void on_turn(uv_check_t *check) {
	struct edge *ed = check->data;
	struct connection *c;
	while ((c = TAILQ_FIRST(&ed->later)) != NULL) {
		edge_forget_later(ed, c);
		connection_pump(c);
	}
	uv_idle_stop(&ed->hurry);
}

// Randomness is fetched for many requests at once. The edge's process is never forked or restored from a snapshot, so no two get the same.
void edge_request_id(struct edge *ed, char to[static UUID_TEXT]) {
	if (ed->random_left < UUID_BYTES) {
		if (getrandom(ed->random, sizeof(ed->random), 0) != (ssize_t)sizeof(ed->random))
			abort();
		ed->random_left = sizeof(ed->random);
	}
	ed->random_left -= UUID_BYTES;
	uuid_from_random(ed->random + ed->random_left, to);
}

static void on_connection(uv_stream_t *listener, int status) {
	struct edge *ed = listener->data;
	if (status == 0)
		connection_accept(ed);
	else
		log_warn("edge.accept_failed", LOG_S("why", uv_strerror(status)));
}

// Renewal: a worker looks at the certificate and makes a new one when the old one ends soon; the loop then puts it in place. Connections
// that are open keep the old one.
struct renewal {
	struct edge *edge;
	struct certificates certificates;
	SSL_CTX *tls;
};

static void renewal_done(void *arg) {
	struct renewal *r = arg;
	struct edge *ed = r->edge;
	if (r->tls != NULL && !ed->stopping) {
		SSL_CTX *old = ed->tls;
		ed->tls = r->tls;
		r->tls = old;
		// The authority's text may be in somebody's hands (edge_ca_pem()): it stays, and only the edge's own part changes.
		X509_free(ed->certificates.edge);
		EVP_PKEY_free(ed->certificates.edge_key);
		ed->certificates.edge = r->certificates.edge;
		ed->certificates.edge_key = r->certificates.edge_key;
		r->certificates.edge = NULL;
		r->certificates.edge_key = NULL;
	}
	SSL_CTX_free(r->tls);
	certificates_clear(&r->certificates);
	free(r);
	edge_let_go(ed);
}

static void renewal_work(void *arg) {
	struct renewal *r = arg;
	struct error e = {0};
	const struct config *config = &r->edge->engine->config;
	int code = certificates_open(config->state_folder, config->edge_domain, &r->certificates, &e);
	if (code == 0)
		r->tls = tls_context_new(r->certificates.edge, r->certificates.edge_key, &e);
	if (r->tls == NULL)
		log_error("edge.renewal_failed", LOG_S("message", e.message));
	int64_t now_ms = (int64_t)realtime_ms();
	if (token_keys_made_ms(r->edge->keys) + TOKEN_KEY_MS < now_ms &&
	    token_keys_rotate(r->edge->keys, config->state_folder, now_ms, &e) < 0)
		log_error("edge.renewal_failed", LOG_S("message", e.message));
	loop_submit(r->edge->engine, renewal_done, r);
}

static void on_renewal(uv_timer_t *timer) {
	struct edge *ed = timer->data;
	struct renewal *r = calloc(1, sizeof(*r));
	if (r == NULL)
		return;
	r->edge = ed;
	edge_hold(ed);
	if (worker_submit(renewal_work, r) < 0) {
		free(r);
		edge_let_go(ed);
	}
}

// Each client takes two descriptors, its own and that to the VMM.
static void raise_descriptor_limit(void) {
	struct rlimit l;
	if (getrlimit(RLIMIT_NOFILE, &l) < 0 || l.rlim_cur >= 4 * EDGE_CONNECTIONS_MAX)
		return;
	l.rlim_cur = l.rlim_max < 4 * EDGE_CONNECTIONS_MAX ? l.rlim_max : 4 * EDGE_CONNECTIONS_MAX;
	setrlimit(RLIMIT_NOFILE, &l);
	if (l.rlim_cur < 2 * EDGE_CONNECTIONS_MAX + 256)
		log_warn("edge.few_descriptors", LOG_U("limit", l.rlim_cur), LOG_U("wanted", 4 * EDGE_CONNECTIONS_MAX));
}

// `<address>:<port>`, IPv6 addresses in brackets.
static int parse_address(const char *text, struct sockaddr_storage *ret, struct error *e) {
	char host[64];
	const char *colon = strrchr(text, ':');
	size_t n = colon != NULL ? (size_t)(colon - text) : 0;
	bool brackets = n >= 2 && text[0] == '[' && text[n - 1] == ']';
	if (brackets) {
		text++;
		n -= 2;
	}
	char *end;
	long port = colon != NULL ? strtol(colon + 1, &end, 10) : -1;
	bool fine = n > 0 && n < sizeof(host) && colon[1] != '\0' && *end == '\0' && port >= 0 && port <= 65535;
	if (fine) {
		memcpy(host, text, n);
		host[n] = '\0';
		fine = (brackets ? uv_ip6_addr(host, (int)port, (struct sockaddr_in6 *)ret)
				 : uv_ip4_addr(host, (int)port, (struct sockaddr_in *)ret)) == 0;
	}
	return fine ? 0 : error_set(e, -EINVAL, "edgeListen is not an address and port such as 127.0.0.1:7443");
}

static int start_listening(struct edge *ed, struct error *e) {
	struct sockaddr_storage address = {0};
	const char *text = ed->engine->config.edge_listen;
	int r = parse_address(text, &address, e);
	if (r < 0)
		return r;
	r = uv_tcp_bind(&ed->listener, (struct sockaddr *)&address, 0);
	if (r == 0)
		r = uv_listen((uv_stream_t *)&ed->listener, LISTEN_BACKLOG, on_connection);
	return r == 0 ? 0
		      : error_set(e, r, "the edge cannot listen on %s: %s; stop what uses it or choose another edgeListen", text,
				  uv_strerror(r));
}

static int load(struct edge *ed, struct error *e) {
	const struct config *config = &ed->engine->config;
	ed->tokens = token_cache_new();
	if (ed->tokens == NULL)
		return error_set(e, -ENOMEM, "out of memory starting the edge");
	int r = token_keys_open(config->state_folder, &ed->keys, e);
	if (r == 0)
		r = certificates_open(config->state_folder, config->edge_domain, &ed->certificates, e);
	if (r < 0)
		return r;
	ed->tls = tls_context_new(ed->certificates.edge, ed->certificates.edge_key, e);
	ed->application_tls = ed->tls == NULL ? NULL : tls_client_context_new(e);
	return ed->application_tls != NULL ? 0 : -EIO;
}

static void close_handle(struct edge *ed, uv_handle_t *handle) {
	handle->data = ed;
	uv_close(handle, on_handle_closed);
}

static void stop(struct edge *ed) {
	edge_hold(ed);
	ed->stopping = true;
	connections_abort(ed);
	upstream_sweep(ed, 0, true);
	close_handle(ed, (uv_handle_t *)&ed->listener);
	close_handle(ed, (uv_handle_t *)&ed->sweep);
	close_handle(ed, (uv_handle_t *)&ed->renewal);
	close_handle(ed, (uv_handle_t *)&ed->turn);
	close_handle(ed, (uv_handle_t *)&ed->hurry);
	close_handle(ed, shares_timer(ed));
	edge_let_go(ed);
}

int edge_start(struct engine *en, struct error *e) {
	struct edge *ed = calloc(1, sizeof(*ed));
	if (ed == NULL)
		return error_set(e, -ENOMEM, "out of memory starting the edge");
	ed->engine = en;
	ed->references = 1;
	TAILQ_INIT(&ed->clients);
	TAILQ_INIT(&ed->later);
	TAILQ_INIT(&ed->idle_upstreams);
	TAILQ_INIT(&ed->ways);
	int r = load(ed, e);
	if (r == 0 && shares_start(ed) < 0)
		r = error_set(e, -ENOMEM, "out of memory starting the edge");
	if (r < 0) {
		edge_let_go(ed);
		return r;
	}
	raise_descriptor_limit();
	// These cannot fail for a loop that is in order.
	uv_tcp_init(en->loop, &ed->listener);
	uv_timer_init(en->loop, &ed->sweep);
	uv_timer_init(en->loop, &ed->renewal);
	uv_check_init(en->loop, &ed->turn);
	uv_idle_init(en->loop, &ed->hurry);
	ed->references = 6;
	ed->listener.data = ed->sweep.data = ed->renewal.data = ed->turn.data = ed->hurry.data = ed;
	uv_check_start(&ed->turn, on_turn);
	r = start_listening(ed, e);
	if (r < 0) {
		stop(ed);
		return r;
	}
	uv_timer_start(&ed->renewal, on_renewal, RENEWAL_MS, RENEWAL_MS);
	en->edge = ed;
	log_info("edge.listening", LOG_S("address", en->config.edge_listen), LOG_S("domain", en->config.edge_domain));
	return 0;
}

void edge_stop(struct engine *en) {
	struct edge *ed = en->edge;
	if (ed == NULL)
		return;
	en->edge = NULL;
	stop(ed);
}

const char *edge_ca_pem(const struct engine *en) {
	return en->edge->certificates.ca_pem;
}

int edge_mint_token(const struct engine *en, const struct token_claims *c, char to[static TOKEN_ROOM], struct error *e) {
	return token_mint(en->edge->keys, c, to, e);
}

int edge_rotate_token_keys(const struct engine *en, struct error *e) {
	return token_keys_rotate(en->edge->keys, en->config.state_folder, (int64_t)realtime_ms(), e);
}

int edge_port(const struct engine *en) {
	struct sockaddr_storage address;
	int size = sizeof(address);
	if (uv_tcp_getsockname(&en->edge->listener, (struct sockaddr *)&address, &size) < 0)
		return -1;
	return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
						   : ((struct sockaddr_in *)&address)->sin_port);
}
