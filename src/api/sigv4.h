// AWS Signature Version 4: who signed a request, and whether the signature holds. Source: "AWS Signature Version 4 for API requests" in the
// IAM User Guide, and "Authenticating Requests" in the Amazon S3 API Reference for what S3 does otherwise.
//
// Both forms are known: the Authorization header, and the query parameters of presigned URLs. Any region of the credential scope is
// accepted, the service must be the one that the port speaks for. The path of other services than S3 is encoded twice.
#pragma once

#include "base/error.h"
#include "base/http1.h"

#include <stdbool.h>
#include <stdint.h>

#define SIGV4_SKEW_S 300                // how far the clocks may be apart
#define SIGV4_EXPIRES_MAX_S (7 * 86400) // of presigned requests
#define SIGV4_HEX 65                    // a SHA-256 in hexadecimal, and NUL

enum sigv4_verdict {
	SIGV4_FINE,
	SIGV4_MISSING,   // no signature at all
	SIGV4_MALFORMED, // the error says what
	SIGV4_SCOPE,     // signed for another service
	SIGV4_SKEWED,    // the clocks are too far apart
	SIGV4_EXPIRED,   // a presigned request, too late
	SIGV4_MISMATCH,
	SIGV4_UNSIGNED, // a header that must be signed is not
};

struct sigv4 {
	bool presigned;
	char key_id[129];
	char date[9];      // of the scope: YYYYMMDD
	char region[33];   // of the scope
	char service[17];  // of the scope
	char amz_date[17]; // YYYYMMDDTHHMMSSZ
	char signature[SIGV4_HEX];
	int64_t signed_at;                // seconds since the epoch
	int64_t expires_s;                // presigned only
	struct slice signed_headers;      // in the head's bytes
	char signed_headers_buffer[1024]; // of a presigned request, decoded
};

// Takes the signature apart. FINE, MISSING, MALFORMED or SCOPE; *e is set unless FINE. Looks at nothing secret.
enum sigv4_verdict sigv4_parse(const struct http_head *h, const char *service, struct sigv4 *ret, struct error *e);

// Checks time and signature. `payload` is what stands for the body in the canonical request: its SHA-256 in hexadecimal, or one of S3's words.
enum sigv4_verdict sigv4_check(const struct sigv4 *s, const struct http_head *h, const char *secret, const char *payload, int64_t now_s,
			       struct error *e);

// The signature that a request of this head has when it is signed as *s says: scope, amz_date, signed_headers (key_id and signature are not looked
// at). For those who sign as well as for those who check. False: the head cannot be put into canonical form.
bool sigv4_signature(const struct sigv4 *s, const struct http_head *h, const char *secret, const char *payload, char to[static SIGV4_HEX]);
void sigv4_format_time(int64_t at_s, char to[static 17]); // YYYYMMDDTHHMMSSZ; "" for times without a year of four digits

// The key that signs for this scope, 32 bytes, and one signature with it over a string to sign; for the chunks of streamed bodies.
void sigv4_key(const struct sigv4 *s, const char *secret, unsigned char key[32]);
void sigv4_sign(const unsigned char key[32], const char *string, size_t size, char to[static SIGV4_HEX]);
// "<date>/<region>/<service>/aws4_request"
void sigv4_scope(const struct sigv4 *s, char to[static 80]);

void sha256_hex(const void *data, size_t size, char to[static SIGV4_HEX]);
bool sigv4_same(const char *a, const char *b); // of two signatures; constant time
