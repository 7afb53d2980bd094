// Signs a request with AWS Signature Version 4 (header form), as the AWS tools do: host, x-amz-content-sha256, x-amz-date and, with temporary
// credentials, x-amz-security-token are signed. The signature itself is the verifier's (src/api/sigv4.c).
#include "cli/sign.h"

#include "api/sigv4.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static struct slice slice_of(const char *text) {
	return (struct slice){text, strlen(text)};
}

static void add(struct http_head *h, const char *name, const char *value) {
	h->headers[h->header_count++] = (struct http_header){slice_of(name), slice_of(value)};
}

int sign_request(const struct sign_input *in, struct sign_output *out, struct error *e) {
	bool temporary = in->token != NULL && in->token[0] != '\0';
	struct sigv4 s = {.signed_headers = slice_of(temporary ? "host;x-amz-content-sha256;x-amz-date;x-amz-security-token"
							       : "host;x-amz-content-sha256;x-amz-date")};
	struct http_head h = {.method = slice_of(in->method), .target = slice_of(in->path)};
	char signature[SIGV4_HEX], scope[80];
	if (strlen(in->key_id) >= sizeof(s.key_id) || strlen(in->region) >= sizeof(s.region) || strlen(in->service) >= sizeof(s.service))
		return error_set(e, -ENAMETOOLONG, "the access key id or the region is too long");
	sigv4_format_time(time(NULL), s.amz_date);
	snprintf(s.date, sizeof(s.date), "%.8s", s.amz_date);
	snprintf(s.region, sizeof(s.region), "%s", in->region);
	snprintf(s.service, sizeof(s.service), "%s", in->service);
	snprintf(out->date, sizeof(out->date), "%s", s.amz_date);
	sha256_hex(in->body, in->body_size, out->content_sha256);
	add(&h, "host", in->host);
	add(&h, "x-amz-content-sha256", out->content_sha256);
	add(&h, "x-amz-date", out->date);
	if (temporary)
		add(&h, "x-amz-security-token", in->token);
	if (!sigv4_signature(&s, &h, in->key_secret, out->content_sha256, signature))
		return error_set(e, -EINVAL, "the request's path cannot be signed: its percent-encoding is wrong, or it is too long");
	sigv4_scope(&s, scope);
	snprintf(out->authorization, sizeof(out->authorization), "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%.*s, Signature=%s",
		 in->key_id, scope, (int)s.signed_headers.size, s.signed_headers.data, signature);
	return 0;
}
