// The aws-chunked decoder; see aws_chunked.h.
#include "api/aws_chunked.h"

#include "base/hex.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#define EMPTY_SHA256 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

enum { CHUNK_HEAD, CHUNK_DATA, CHUNK_DATA_END, LAST_END, TRAILER };

int aws_chunked_start(struct aws_chunked *d, const struct sigv4 *signer, const char *secret, bool has_trailer, struct error *e) {
	*d = (struct aws_chunked){.is_signed = signer != NULL, .has_trailer = has_trailer, .state = CHUNK_HEAD};
	if (signer == NULL)
		return 0;
	sigv4_key(signer, secret, d->key);
	sigv4_scope(signer, d->scope);
	memcpy(d->amz_date, signer->amz_date, sizeof(d->amz_date));
	memcpy(d->previous, signer->signature, sizeof(d->previous));
	d->hash = EVP_MD_CTX_new();
	return d->hash == NULL ? error_set(e, -ENOMEM, "out of memory decoding a body") : 0;
}

void aws_chunked_end(struct aws_chunked *d) {
	EVP_MD_CTX_free(d->hash);
	d->hash = NULL;
	OPENSSL_cleanse(d->key, sizeof(d->key));
}

const char *aws_chunked_trailer(const struct aws_chunked *d, const char *name) {
	for (size_t i = 0; i < d->trailer_count; i++)
		if (strcmp(d->trailers[i].name, name) == 0)
			return d->trailers[i].value;
	return NULL;
}

static int malformed(struct error *e, const char *what) {
	return error_set(e, -EBADMSG, "The aws-chunked body is malformed: %s", what);
}

static int check_signature(struct aws_chunked *d, const char *kind, const char *middle, const char *digest, const char *given,
			   struct error *e) {
	char string[400], signature[SIGV4_HEX];
	int n = snprintf(string, sizeof(string), "%s\n%s\n%s\n%s\n%s%s", kind, d->amz_date, d->scope, d->previous, middle, digest);
	sigv4_sign(d->key, string, (size_t)n, signature);
	if (!sigv4_same(signature, given))
		return error_set(e, -EKEYREJECTED, "The chunk signature we calculated does not match the signature you provided.");
	memcpy(d->previous, signature, sizeof(signature));
	return 0;
}

static int end_chunk(struct aws_chunked *d, struct error *e) {
	if (!d->is_signed)
		return 0;
	unsigned char value[32];
	unsigned n = sizeof(value);
	char digest[SIGV4_HEX];
	EVP_DigestFinal_ex(d->hash, value, &n);
	hex_encode(value, sizeof(value), digest);
	return check_signature(d, "AWS4-HMAC-SHA256-PAYLOAD", EMPTY_SHA256 "\n", digest, d->expected, e);
}

// <hexadecimal size>[;chunk-signature=<64 digits>]
static int parse_chunk_head(struct aws_chunked *d, struct error *e) {
	static const char mark[] = ";chunk-signature=";
	size_t digits = 0;
	uint64_t size = 0;
	for (; digits < d->line_size; digits++) {
		char c = d->line[digits];
		int v = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
		if (v < 0)
			break;
		size = size << 4 | (unsigned)v;
		if (digits >= 16 || size > CHUNK_MAX)
			return malformed(e, "a chunk is too large");
	}
	if (digits == 0)
		return malformed(e, "a chunk has no size");
	const char *rest = d->line + digits;
	size_t rest_size = d->line_size - digits;
	if (d->is_signed) {
		if (rest_size != sizeof(mark) - 1 + SIGV4_HEX - 1 || memcmp(rest, mark, sizeof(mark) - 1) != 0)
			return malformed(e, "a chunk has no chunk-signature");
		memcpy(d->expected, rest + sizeof(mark) - 1, SIGV4_HEX - 1);
		d->expected[SIGV4_HEX - 1] = '\0';
		EVP_DigestInit_ex(d->hash, EVP_sha256(), NULL);
	} else if (rest_size != 0 && rest[0] != ';') {
		return malformed(e, "a chunk's size is no hexadecimal number");
	}
	d->left = size;
	if (size > 0) {
		d->state = CHUNK_DATA;
		return 0;
	}
	d->state = d->has_trailer ? TRAILER : LAST_END;
	return end_chunk(d, e);
}

static int end_trailers(struct aws_chunked *d, struct error *e) {
	d->done = true;
	if (!d->is_signed)
		return 0;
	char text[CHUNK_TRAILERS_MAX * 330], digest[SIGV4_HEX];
	size_t n = 0;
	const char *given = aws_chunked_trailer(d, "x-amz-trailer-signature");
	for (size_t i = 0; i < d->trailer_count; i++) {
		if (d->trailers[i].value != given)
			n += (size_t)snprintf(text + n, sizeof(text) - n, "%s:%s\n", d->trailers[i].name, d->trailers[i].value);
	}
	sha256_hex(text, n, digest);
	return check_signature(d, "AWS4-HMAC-SHA256-TRAILER", "", digest, given, e);
}

static int parse_trailer(struct aws_chunked *d, struct error *e) {
	// Some clients put empty lines between the trailers and their signature: only one behind it is the end.
	if (d->line_size == 0)
		return d->is_signed && aws_chunked_trailer(d, "x-amz-trailer-signature") == NULL ? 0 : end_trailers(d, e);
	const char *colon = memchr(d->line, ':', d->line_size);
	if (colon == NULL || d->trailer_count == CHUNK_TRAILERS_MAX)
		return malformed(e, "a trailer has no colon, or there are too many");
	struct chunk_trailer *t = &d->trailers[d->trailer_count];
	size_t name = (size_t)(colon - d->line), start = name + 1, end = d->line_size;
	while (start < end && d->line[start] == ' ')
		start++;
	while (end > start && d->line[end - 1] == ' ')
		end--;
	if (name == 0 || name >= sizeof(t->name) || end - start >= sizeof(t->value))
		return malformed(e, "a trailer is too long");
	for (size_t i = 0; i < name; i++)
		t->name[i] = d->line[i] >= 'A' && d->line[i] <= 'Z' ? (char)(d->line[i] + 32) : d->line[i];
	t->name[name] = '\0';
	memcpy(t->value, d->line + start, end - start);
	t->value[end - start] = '\0';
	if (strlen(t->name) != name || strlen(t->value) != end - start || aws_chunked_trailer(d, t->name) != NULL)
		return malformed(e, "a trailer has a NUL in it or comes twice");
	d->trailer_count++;
	return 0;
}

static int take_line(struct aws_chunked *d, struct error *e) {
	int r = 0;
	if (d->state == CHUNK_HEAD) {
		r = parse_chunk_head(d, e);
	} else if (d->state == TRAILER) {
		r = parse_trailer(d, e);
	} else {
		// Behind a chunk's data, and behind the last chunk: an empty line.
		if (d->line_size != 0)
			r = malformed(e, "a chunk is longer than its size");
		d->done = d->state == LAST_END;
		d->state = CHUNK_HEAD;
	}
	d->line_size = 0;
	return r;
}

ssize_t aws_chunked_feed(struct aws_chunked *d, const char *data, size_t size, struct slice *ret, struct error *e) {
	*ret = (struct slice){data, 0};
	size_t used = 0;
	while (used < size && !d->done) {
		if (d->state == CHUNK_DATA) {
			size_t n = size - used < d->left ? size - used : (size_t)d->left;
			if (d->is_signed)
				EVP_DigestUpdate(d->hash, data + used, n);
			*ret = (struct slice){data + used, n};
			d->left -= n;
			d->decoded += n;
			used += n;
			if (d->left == 0) {
				d->state = CHUNK_DATA_END;
				int r = end_chunk(d, e);
				if (r < 0)
					return r;
			}
			return (ssize_t)used;
		}
		const char *feed = memchr(data + used, '\n', size - used);
		size_t n = feed == NULL ? size - used : (size_t)(feed - data - used) + 1;
		if (d->line_size + n > sizeof(d->line))
			return malformed(e, "a line is too long");
		memcpy(d->line + d->line_size, data + used, n);
		d->line_size += n;
		used += n;
		if (feed == NULL)
			break;
		bool cr = d->line_size > 1 && d->line[d->line_size - 2] == '\r';
		if (!cr && d->state != TRAILER) // the published examples end trailers with LF alone
			return malformed(e, "a line does not end with CR LF");
		d->line_size -= cr ? 2 : 1;
		int r = take_line(d, e);
		if (r < 0)
			return r;
	}
	return (ssize_t)used;
}
