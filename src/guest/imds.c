// The instance metadata service; see imds.h.
#include "guest/imds.h"

#include "base/clock.h"
#include "base/hex.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define TTL_MAX_S 21600
#define TTL_HEADER "X-aws-ec2-metadata-token-ttl-seconds"
#define TOKEN_HEADER "X-aws-ec2-metadata-token"
#define TOKEN_PATH "/latest/api/token"
#define ROLES_PATH "/latest/meta-data/iam/security-credentials"

// Session tokens.

static uint64_t token_ttl(const struct http_head *h) {
	const struct http_header *ttl = http_find(h, TTL_HEADER);
	uint64_t n = 0;

	if (ttl == NULL || ttl->value.size == 0 || ttl->value.size > 5)
		return 0;
	for (size_t i = 0; i < ttl->value.size; i++) {
		if (ttl->value.data[i] < '0' || ttl->value.data[i] > '9')
			return 0;
		n = n * 10 + (uint64_t)(ttl->value.data[i] - '0');
	}
	return n > TTL_MAX_S ? 0 : n;
}

static bool make_token(struct imds *m, uint64_t ttl_s, char hex[2 * IMDS_TOKEN_BYTES + 1]) {
	struct imds_token *t = &m->tokens[m->next_token];

	if (getrandom(t->bytes, sizeof(t->bytes), 0) != (ssize_t)sizeof(t->bytes)) {
		t->until_ns = 0;
		return false;
	}
	m->next_token = (m->next_token + 1) % IMDS_TOKENS_MAX;
	t->until_ns = monotonic_ns() + ttl_s * 1000000000u;
	hex_encode(t->bytes, sizeof(t->bytes), hex);
	return true;
}

static bool knows_token(const struct imds *m, const struct http_head *h) {
	const struct http_header *given = http_find(h, TOKEN_HEADER);
	uint8_t bytes[IMDS_TOKEN_BYTES];
	uint64_t now = monotonic_ns();

	if (given == NULL || hex_decode(given->value.data, given->value.size, bytes, sizeof(bytes)) != (ssize_t)sizeof(bytes))
		return false;
	for (size_t i = 0; i < IMDS_TOKENS_MAX; i++)
		if (m->tokens[i].until_ns > now && memcmp(m->tokens[i].bytes, bytes, sizeof(bytes)) == 0)
			return true;
	return false;
}

// Answers.

static size_t refuse(const struct http_head *h, int status, char *to) {
	return local_http_write(h, status, "text/plain", "", "", to);
}

static size_t answer_token(struct imds *m, const struct http_head *h, char *to) {
	char token[2 * IMDS_TOKEN_BYTES + 1], more[80];
	uint64_t ttl = token_ttl(h);

	// A proxy that was talked into sending requests here adds this header.
	if (http_find(h, "X-Forwarded-For") != NULL)
		return refuse(h, 403, to);
	if (ttl == 0)
		return refuse(h, 400, to);
	if (!make_token(m, ttl, token))
		return refuse(h, 500, to);
	snprintf(more, sizeof(more), TTL_HEADER ": %llu\r\n", (unsigned long long)ttl);
	return local_http_write(h, 200, "text/plain", more, token, to);
}

size_t imds_answer(struct imds *m, const struct http_head *h, char *to) {
	struct slice path = h->target;
	const char *query = memchr(path.data, '?', path.size);

	if (query != NULL)
		path.size = (size_t)(query - path.data);
	bool token = slice_equals(path, TOKEN_PATH), put = slice_equals(h->method, "PUT");
	if (token && put)
		return answer_token(m, h, to);
	if (put || token || (!slice_equals(h->method, "GET") && !slice_equals(h->method, "HEAD")))
		return refuse(h, 405, to);
	if (!knows_token(m, h))
		return refuse(h, 401, to);
	if (m->document == NULL)
		return refuse(h, 404, to);
	if (slice_equals(path, ROLES_PATH) || slice_equals(path, ROLES_PATH "/"))
		return local_http_write(h, 200, "text/plain", "", IMDS_ROLE, to);
	if (slice_equals(path, ROLES_PATH "/" IMDS_ROLE))
		return local_http_write(h, 200, "application/json", "", m->document, to);
	return refuse(h, 404, to);
}

// Credentials.

static size_t answer(void *arg, const struct http_head *h, char *to) {
	return imds_answer(arg, h, to);
}

void imds_init(struct imds *m, const struct local_http *at) {
	struct local_http options = *at;
	*m = (struct imds){.next_token = 0};
	options.answer = answer;
	options.arg = m;
	local_http_init(&m->http, &options);
}

static void forget_document(struct imds *m) {
	if (m->document != NULL)
		explicit_bzero(m->document, strlen(m->document));
	free(m->document);
	m->document = NULL;
}

int imds_give(struct imds *m, const struct credentials_request *q, struct error *e) {
	json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "Code", "Success", "LastUpdated", q->updated, "Type", "AWS-HMAC",
			      "AccessKeyId", q->key_id, "SecretAccessKey", q->secret, "Token", q->token, "Expiration", q->expiration);
	char *document = o == NULL ? NULL : json_dumps(o, JSON_INDENT(2) | JSON_PRESERVE_ORDER);

	json_decref(o);
	if (document == NULL)
		return error_set(e, -ENOMEM, "out of memory keeping credentials");
	int r = local_http_listen(&m->http, e);
	if (r < 0) {
		free(document);
		return r;
	}
	forget_document(m);
	m->document = document;
	return 0;
}

void imds_take(struct imds *m) {
	local_http_close(&m->http);
	explicit_bzero(m->tokens, sizeof(m->tokens));
	forget_document(m);
}
