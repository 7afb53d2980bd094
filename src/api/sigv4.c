// Signature Version 4; see sigv4.h.
#include "api/sigv4.h"

#include "api/signing_keys.h"
#include "api/text.h"
#include "base/cleanup.h"
#include "base/hex.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define ALGORITHM "AWS4-HMAC-SHA256"
#define PARAMETERS_MAX 200 // of a query

// Parsing ---------------------------------------------------------------------------------------------------------------------------

static bool copy_slice(struct slice s, char *to, size_t room) {
	if (s.size == 0 || s.size >= room || memchr(s.data, '\0', s.size) != NULL)
		return false;
	memcpy(to, s.data, s.size);
	to[s.size] = '\0';
	return true;
}

// Cuts the text before the next `mark` off; *rest is what follows it, or empty.
static struct slice cut(struct slice *rest, char mark) {
	const char *at = rest->size == 0 ? NULL : memchr(rest->data, mark, rest->size);
	struct slice head = {rest->data, at == NULL ? rest->size : (size_t)(at - rest->data)};
	size_t used = head.size + (at == NULL ? 0 : 1);
	rest->data += used;
	rest->size -= used;
	return head;
}

static struct slice trim(struct slice s) {
	while (s.size > 0 && (s.data[0] == ' ' || s.data[0] == '\t'))
		s.data++, s.size--;
	while (s.size > 0 && (s.data[s.size - 1] == ' ' || s.data[s.size - 1] == '\t'))
		s.size--;
	return s;
}

// <key id>/<date>/<region>/<service>/aws4_request; the key id itself may hold slashes in other implementations, here it may not.
static enum sigv4_verdict parse_credential(struct slice text, const char *service, struct sigv4 *s, struct error *e) {
	struct slice rest = text, id = cut(&rest, '/'), date = cut(&rest, '/'), region = cut(&rest, '/'), name = cut(&rest, '/');
	if (!copy_slice(id, s->key_id, sizeof(s->key_id)) || !copy_slice(date, s->date, sizeof(s->date)) || strlen(s->date) != 8 ||
	    !copy_slice(region, s->region, sizeof(s->region)) || !copy_slice(name, s->service, sizeof(s->service)) ||
	    !slice_equals(rest, "aws4_request")) {
		error_set(e, -EINVAL, "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term");
		return SIGV4_MALFORMED;
	}
	if (strcmp(s->service, service) != 0) {
		error_set(e, -EINVAL, "Credential should be scoped to correct service: '%s'.", service);
		return SIGV4_SCOPE;
	}
	return SIGV4_FINE;
}

static bool parse_signature(struct slice text, struct sigv4 *s) {
	if (!copy_slice(text, s->signature, sizeof(s->signature)) || strlen(s->signature) != SIGV4_HEX - 1)
		return false;
	for (const char *p = s->signature; *p != '\0'; p++)
		if ((*p < '0' || *p > '9') && (*p < 'a' || *p > 'f'))
			return false;
	return true;
}

static bool parse_date(struct slice text, struct sigv4 *s) {
	if (!copy_slice(text, s->amz_date, sizeof(s->amz_date)) || strlen(s->amz_date) != 16)
		return false;
	for (int i = 0; i < 16; i++)
		if (i == 8 ? s->amz_date[i] != 'T' : i == 15 ? s->amz_date[i] != 'Z' : s->amz_date[i] < '0' || s->amz_date[i] > '9')
			return false;
	struct tm tm = {0};
	const char *end = strptime(s->amz_date, "%Y%m%dT%H%M%SZ", &tm);
	if (end == NULL || *end != '\0' || strncmp(s->amz_date, s->date, 8) != 0)
		return false;
	s->signed_at = timegm(&tm);
	return true;
}

// The only header of that name. NULL when there is none or *several.
static const struct http_header *find_one(const struct http_head *h, const char *name, bool *several) {
	const struct http_header *found = NULL;
	for (size_t i = 0; i < h->header_count; i++) {
		if (!slice_equals_nocase(h->headers[i].name, name))
			continue;
		if (found != NULL)
			*several = true;
		found = &h->headers[i];
	}
	return found;
}

static enum sigv4_verdict parse_header(const struct http_head *h, struct slice value, const char *service, struct sigv4 *s,
				       struct error *e) {
	struct slice rest = value, algorithm = cut(&rest, ' '), credential = {0}, headers = {0}, signature = {0};
	if (!slice_equals(algorithm, ALGORITHM)) {
		error_set(e, -EINVAL, "Unsupported AWS 'algorithm': '%.*s'; use " ALGORITHM,
			  (int)(algorithm.size < 64 ? algorithm.size : 64), algorithm.data);
		return SIGV4_MALFORMED;
	}
	while (rest.size > 0) {
		struct slice v = trim(cut(&rest, ',')), name = cut(&v, '=');
		struct slice *to = slice_equals(name, "Credential")      ? &credential
				   : slice_equals(name, "SignedHeaders") ? &headers
				   : slice_equals(name, "Signature")     ? &signature
									 : NULL;
		if (to == NULL || to->data != NULL) {
			error_set(e, -EINVAL, "Authorization header has an unknown or repeated parameter");
			return SIGV4_MALFORMED;
		}
		*to = v;
	}
	if (credential.data == NULL || headers.data == NULL || signature.data == NULL) {
		error_set(e, -EINVAL, "Authorization header requires '%s' parameter.",
			  credential.data == NULL ? "Credential"
			  : headers.data == NULL  ? "SignedHeaders"
						  : "Signature");
		return SIGV4_MALFORMED;
	}
	enum sigv4_verdict v = parse_credential(credential, service, s, e);
	if (v != SIGV4_FINE)
		return v;
	bool several = false;
	const struct http_header *date = find_one(h, "x-amz-date", &several);
	if (!parse_signature(signature, s) || date == NULL || several || !parse_date(date->value, s)) {
		error_set(e, -EINVAL,
			  "Authorization needs a Signature of 64 hexadecimal digits and one X-Amz-Date header of the form "
			  "YYYYMMDDTHHMMSSZ, on the day of the Credential");
		return SIGV4_MALFORMED;
	}
	s->signed_headers = headers;
	return SIGV4_FINE;
}

static bool take_parameter(struct slice query, const char *name, char *to, size_t room) {
	char *value = NULL;
	int r = query_find(query, name, &value);
	bool fine = r == 1 && strlen(value) < room && value[0] != '\0';
	if (fine)
		memcpy(to, value, strlen(value) + 1);
	if (r == 1)
		free(value);
	return fine;
}

static struct slice slice_of(const char *text) {
	return (struct slice){text, strlen(text)};
}

static enum sigv4_verdict parse_query(struct slice query, const char *service, struct sigv4 *s, struct error *e) {
	char algorithm[32], credential[256], date[32], signature[SIGV4_HEX], expires[16];
	s->presigned = true;
	if (!take_parameter(query, "X-Amz-Algorithm", algorithm, sizeof(algorithm)) || strcmp(algorithm, ALGORITHM) != 0 ||
	    !take_parameter(query, "X-Amz-Credential", credential, sizeof(credential)) ||
	    !take_parameter(query, "X-Amz-Date", date, sizeof(date)) ||
	    !take_parameter(query, "X-Amz-SignedHeaders", s->signed_headers_buffer, sizeof(s->signed_headers_buffer)) ||
	    !take_parameter(query, "X-Amz-Signature", signature, sizeof(signature)) ||
	    !take_parameter(query, "X-Amz-Expires", expires, sizeof(expires))) {
		error_set(e, -EINVAL,
			  "Query-string authentication requires the X-Amz-Algorithm (" ALGORITHM
			  "), X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.");
		return SIGV4_MALFORMED;
	}
	enum sigv4_verdict v = parse_credential(slice_of(credential), service, s, e);
	if (v != SIGV4_FINE)
		return v;
	char *end;
	s->expires_s = strtol(expires, &end, 10);
	if (*end != '\0' || expires[0] < '0' || expires[0] > '9' || s->expires_s > SIGV4_EXPIRES_MAX_S) {
		error_set(e, -EINVAL, "X-Amz-Expires must be a number of seconds, at most a week (604800)");
		return SIGV4_MALFORMED;
	}
	if (!parse_signature(slice_of(signature), s) || !parse_date(slice_of(date), s)) {
		error_set(e, -EINVAL,
			  "X-Amz-Signature must be 64 hexadecimal digits, and X-Amz-Date of the form YYYYMMDDTHHMMSSZ on the day of "
			  "X-Amz-Credential");
		return SIGV4_MALFORMED;
	}
	s->signed_headers = slice_of(s->signed_headers_buffer);
	return SIGV4_FINE;
}

enum sigv4_verdict sigv4_parse(const struct http_head *h, const char *service, struct sigv4 *ret, struct error *e) {
	*ret = (struct sigv4){.presigned = false};
	bool several = false;
	const struct http_header *authorization = find_one(h, "authorization", &several);
	struct slice path, query;
	target_split(h->target, &path, &query);
	char *value = NULL;
	int presigned = query_find(query, "X-Amz-Algorithm", &value);
	if (presigned == 1)
		free(value);
	if (several || (authorization != NULL && presigned != 0)) {
		error_set(e, -EINVAL,
			  "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter or the Authorization header should be "
			  "specified, once");
		return SIGV4_MALFORMED;
	}
	if (presigned != 0)
		return parse_query(query, service, ret, e);
	if (authorization == NULL) {
		error_set(e, -EACCES, "Missing Authentication Token");
		return SIGV4_MISSING;
	}
	return parse_header(h, authorization->value, service, ret, e);
}

// The canonical request -------------------------------------------------------------------------------------------------------------

// Encodes decoded bytes, so that equivalent spellings of a path or parameter sign alike.
static bool add_canonical(struct text *t, struct slice s, bool keep_slash) {
	cleanup_free char *copy = malloc(s.size + 1);
	ssize_t n = copy == NULL ? -1 : percent_decode(s.data, s.size, copy);
	if (n < 0)
		return false;
	text_encode(t, copy, (size_t)n, keep_slash);
	return true;
}

// The path with empty segments, "." and ".." resolved (RFC 3986 section 5.2.4), as clients of other services than S3 sign it.
static void add_normalised(struct text *t, struct slice path) {
	struct slice segments[HTTP_HEADERS_MAX], rest = path;
	size_t n = 0;
	bool folder = path.size > 0 && path.data[path.size - 1] == '/';
	while (rest.size > 0) {
		struct slice s = cut(&rest, '/');
		if (s.size == 0 || slice_equals(s, "."))
			continue;
		if (slice_equals(s, "..")) {
			if (n > 0)
				n--;
		} else if (n == HTTP_HEADERS_MAX) {
			t->bad = true;
			return;
		} else {
			segments[n++] = s;
		}
	}
	for (size_t i = 0; i < n; i++) {
		text_puts(t, "/");
		text_encode(t, segments[i].data, segments[i].size, false);
	}
	if (n == 0 || folder)
		text_puts(t, "/");
}

struct parameter {
	char *name, *value; // encoded
};

static int compare_parameters(const void *a, const void *b) {
	const struct parameter *p = a, *q = b;
	int c = strcmp(p->name, q->name);
	return c != 0 ? c : strcmp(p->value, q->value);
}

static char *encoded(struct slice s) {
	struct text t = {0};
	if (!add_canonical(&t, s, false) || t.bad) {
		free(t.data);
		return NULL;
	}
	return t.data;
}

static bool add_query(struct text *t, struct slice query, bool presigned) {
	struct parameter *p = calloc(PARAMETERS_MAX, sizeof(*p));
	size_t n = 0;
	bool fine = p != NULL;
	for (struct slice rest = query; fine && rest.size > 0;) {
		struct slice value = cut(&rest, '&'), name = cut(&value, '=');
		if ((name.size == 0 && value.size == 0) || (presigned && slice_equals(name, "X-Amz-Signature")))
			continue;
		if (n == PARAMETERS_MAX) {
			fine = false;
			break;
		}
		p[n].name = encoded(name);
		p[n].value = encoded(value);
		fine = p[n].name != NULL && p[n].value != NULL;
		n++;
	}
	if (fine && n > 0)
		qsort(p, n, sizeof(*p), compare_parameters);
	for (size_t i = 0; i < n; i++) {
		if (fine) {
			text_puts(t, i == 0 ? "" : "&");
			text_puts(t, p[i].name);
			text_puts(t, "=");
			text_puts(t, p[i].value);
		}
		free(p[i].name);
		free(p[i].value);
	}
	free(p);
	return fine;
}

// A value with its inner runs of spaces made one.
static void add_value(struct text *t, struct slice v) {
	v = trim(v);
	for (size_t i = 0; i < v.size;) {
		size_t n = 0;
		while (i + n < v.size && v.data[i + n] != ' ')
			n++;
		text_add(t, v.data + i, n);
		i += n;
		if (i < v.size) {
			text_puts(t, " ");
			while (i < v.size && v.data[i] == ' ')
				i++;
		}
	}
}

static bool add_headers(struct text *t, const struct http_head *h, struct slice names) {
	size_t count = 0;
	while (names.size > 0) {
		struct slice name = cut(&names, ';');
		char text[256];
		if (++count > HTTP_HEADERS_MAX || !copy_slice(name, text, sizeof(text)))
			return false;
		text_add(t, name.data, name.size);
		text_puts(t, ":");
		bool first = true;
		for (size_t i = 0; i < h->header_count; i++) {
			if (!slice_equals_nocase(h->headers[i].name, text))
				continue;
			if (!first)
				text_puts(t, ",");
			add_value(t, h->headers[i].value);
			first = false;
		}
		text_puts(t, "\n");
	}
	return true;
}

static bool is_signed(struct slice names, struct slice wanted) {
	while (names.size > 0) {
		struct slice name = cut(&names, ';');
		if (name.size == wanted.size && strncasecmp(name.data, wanted.data, name.size) == 0)
			return true;
	}
	return false;
}

// Host and everything that AWS gives a meaning must be signed.
static bool all_signed(const struct sigv4 *s, const struct http_head *h) {
	bool host = false;
	for (size_t i = 0; i < h->header_count; i++) {
		struct slice name = h->headers[i].name;
		bool is_host = slice_equals_nocase(name, "host");
		bool amz = name.size > 6 && strncasecmp(name.data, "x-amz-", 6) == 0;
		if ((is_host || amz) && !is_signed(s->signed_headers, name))
			return false;
		host = host || is_host;
	}
	return host;
}

static bool canonical_request(struct text *t, const struct sigv4 *s, const struct http_head *h, const char *payload) {
	struct slice path, query;
	target_split(h->target, &path, &query);
	text_add(t, h->method.data, h->method.size);
	text_puts(t, "\n");
	if (strcmp(s->service, "s3") != 0)
		add_normalised(t, path);
	else if (!add_canonical(t, path, true))
		return false;
	text_puts(t, "\n");
	if (!add_query(t, query, s->presigned))
		return false;
	text_puts(t, "\n");
	if (!add_headers(t, h, s->signed_headers))
		return false;
	text_puts(t, "\n");
	text_add(t, s->signed_headers.data, s->signed_headers.size);
	text_puts(t, "\n");
	text_puts(t, payload);
	return !t->bad;
}

// Signing ---------------------------------------------------------------------------------------------------------------------------

void sha256_hex(const void *data, size_t size, char to[static SIGV4_HEX]) {
	unsigned char digest[32];
	unsigned n = sizeof(digest);
	EVP_Digest(data, size, digest, &n, EVP_sha256(), NULL);
	hex_encode(digest, sizeof(digest), to);
}

static void hmac(const unsigned char *key, size_t key_size, const char *text, unsigned char to[32]) {
	unsigned n = 32;
	HMAC(EVP_sha256(), key, (int)key_size, (const unsigned char *)text, strlen(text), to, &n);
}

void sigv4_key(const struct sigv4 *s, const char *secret, unsigned char key[32]) {
	char first[4 + 129];
	unsigned char k[32];
	snprintf(first, sizeof(first), "AWS4%s", secret);
	hmac((const unsigned char *)first, strlen(first), s->date, k);
	hmac(k, 32, s->region, key);
	hmac(key, 32, s->service, k);
	hmac(k, 32, "aws4_request", key);
	OPENSSL_cleanse(first, sizeof(first));
	OPENSSL_cleanse(k, sizeof(k));
}

void sigv4_sign(const unsigned char key[32], const char *string, size_t size, char to[static SIGV4_HEX]) {
	unsigned char digest[32];
	unsigned n = sizeof(digest);
	HMAC(EVP_sha256(), key, 32, (const unsigned char *)string, size, digest, &n);
	hex_encode(digest, sizeof(digest), to);
}

void sigv4_scope(const struct sigv4 *s, char to[static 80]) {
	snprintf(to, 80, "%s/%s/%s/aws4_request", s->date, s->region, s->service);
}

bool sigv4_same(const char *a, const char *b) {
	return strlen(a) == strlen(b) && CRYPTO_memcmp(a, b, strlen(a)) == 0;
}

bool sigv4_signature(const struct sigv4 *s, const struct http_head *h, const char *secret, const char *payload, char to[static SIGV4_HEX]) {
	cleanup_text canonical = {0};
	char digest[SIGV4_HEX], scope[80], string[sizeof(ALGORITHM) + 17 + 80 + SIGV4_HEX + 4];
	if (!canonical_request(&canonical, s, h, payload))
		return false;
	sha256_hex(canonical.data, canonical.size, digest);
	sigv4_scope(s, scope);
	int n = snprintf(string, sizeof(string), ALGORITHM "\n%s\n%s\n%s", s->amz_date, scope, digest);
	unsigned char key[32];
	signing_key(s, secret, key);
	sigv4_sign(key, string, (size_t)n, to);
	OPENSSL_cleanse(key, sizeof(key));
	return true;
}

void sigv4_format_time(int64_t at, char to[static 17]) {
	time_t t = (time_t)at;
	struct tm tm;
	if (gmtime_r(&t, &tm) == NULL || strftime(to, 17, "%Y%m%dT%H%M%SZ", &tm) == 0)
		to[0] = '\0';
}

static enum sigv4_verdict check_time(const struct sigv4 *s, int64_t now, struct error *e) {
	char is[17], limit[17];
	sigv4_format_time(now, is);
	if (s->signed_at > now + SIGV4_SKEW_S) {
		sigv4_format_time(now + SIGV4_SKEW_S, limit);
		error_set(e, -EKEYEXPIRED, "Signature not yet current: %s is still later than %s (%s + 5 min.)", s->amz_date, limit, is);
		return SIGV4_SKEWED;
	}
	if (s->presigned && now > s->signed_at + s->expires_s) {
		error_set(e, -EKEYEXPIRED, "Request has expired");
		return SIGV4_EXPIRED;
	}
	if (!s->presigned && s->signed_at < now - SIGV4_SKEW_S) {
		sigv4_format_time(now - SIGV4_SKEW_S, limit);
		error_set(e, -EKEYEXPIRED, "Signature expired: %s is now earlier than %s (%s - 5 min.)", s->amz_date, limit, is);
		return SIGV4_SKEWED;
	}
	return SIGV4_FINE;
}

enum sigv4_verdict sigv4_check(const struct sigv4 *s, const struct http_head *h, const char *secret, const char *payload, int64_t now_s,
			       struct error *e) {
	enum sigv4_verdict v = check_time(s, now_s, e);
	if (v != SIGV4_FINE)
		return v;
	if (!all_signed(s, h)) {
		error_set(e, -EACCES,
			  "There were headers present in the request which were not signed: Host and every X-Amz-* header must be");
		return SIGV4_UNSIGNED;
	}
	char signature[SIGV4_HEX];
	if (!sigv4_signature(s, h, secret, payload, signature)) {
		error_set(
			e, -EINVAL,
			"The path, query or list of signed headers cannot be read: percent-encoding is wrong, or there is too much of it");
		return SIGV4_MALFORMED;
	}
	if (!sigv4_same(signature, s->signature)) {
		error_set(e, -EACCES,
			  "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
			  "and signing "
			  "method. Consult the service documentation for details.");
		return SIGV4_MISMATCH;
	}
	return SIGV4_FINE;
}
