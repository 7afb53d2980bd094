// Signs a request with AWS Signature Version 4 (header form), as the AWS tools do: host, x-amz-content-sha256 and x-amz-date are signed.
#include "cli/sign.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static void to_hex(const unsigned char *from, size_t n, char *to) {
	for (size_t i = 0; i < n; i++)
		snprintf(to + 2 * i, 3, "%02x", from[i]);
}

static void sha256_hex(const void *data, size_t size, char to[65]) {
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned n = 0;
	EVP_Digest(data, size, digest, &n, EVP_sha256(), NULL);
	to_hex(digest, 32, to);
}

static void hmac(const unsigned char *key, size_t key_size, const char *text, unsigned char to[32]) {
	unsigned n = 0;
	HMAC(EVP_sha256(), key, (int)key_size, (const unsigned char *)text, strlen(text), to, &n);
}

// The canonical URI: every service but S3 encodes the path, which is encoded already, once more.
static bool canonical_path(const char *path, size_t size, bool twice, char *to, size_t room) {
	size_t n = 0;
	for (size_t i = 0; i < size; i++) {
		bool plain = path[i] != '%' && path[i] != ':';
		if (n + 4 > room)
			return false;
		if (plain || !twice)
			to[n++] = path[i];
		else
			n += (size_t)snprintf(to + n, 4, "%%%02X", (unsigned char)path[i]);
	}
	to[n] = '\0';
	return true;
}

int sign_request(const struct sign_input *in, struct sign_output *out, struct error *e) {
	time_t now = time(NULL);
	struct tm utc;
	gmtime_r(&now, &utc);
	char day[16];
	strftime(out->date, sizeof(out->date), "%Y%m%dT%H%M%SZ", &utc);
	strftime(day, sizeof(day), "%Y%m%d", &utc);
	sha256_hex(in->body, in->body_size, out->content_sha256);

	const char *query = strchr(in->path, '?');
	char path[4096], canonical[12288], hash[65];
	size_t path_size = query == NULL ? strlen(in->path) : (size_t)(query - in->path);
	if (!canonical_path(in->path, path_size, strcmp(in->service, "s3") != 0, path, sizeof(path)))
		return error_set(e, -ENAMETOOLONG, "the request path is too long");
	int n = snprintf(canonical, sizeof(canonical),
			 "%s\n%s\n%s\nhost:%s\nx-amz-content-sha256:%s\nx-amz-date:%s\n\nhost;x-amz-content-sha256;x-amz-date\n%s",
			 in->method, path, query == NULL ? "" : query + 1, in->host, out->content_sha256, out->date, out->content_sha256);
	if (n < 0 || (size_t)n >= sizeof(canonical))
		return error_set(e, -ENAMETOOLONG, "the request is too long to sign");
	sha256_hex(canonical, (size_t)n, hash);

	char scope[128], to_sign[512], secret[160];
	snprintf(scope, sizeof(scope), "%s/%s/%s/aws4_request", day, in->region, in->service);
	snprintf(to_sign, sizeof(to_sign), "AWS4-HMAC-SHA256\n%s\n%s\n%s", out->date, scope, hash);
	snprintf(secret, sizeof(secret), "AWS4%s", in->key_secret);
	unsigned char key[32], next[32];
	hmac((const unsigned char *)secret, strlen(secret), day, key);
	hmac(key, 32, in->region, next);
	hmac(next, 32, in->service, key);
	hmac(key, 32, "aws4_request", next);
	hmac(next, 32, to_sign, key);
	char signature[65];
	to_hex(key, 32, signature);
	snprintf(out->authorization, sizeof(out->authorization),
		 "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=%s", in->key_id, scope,
		 signature);
	return 0;
}
