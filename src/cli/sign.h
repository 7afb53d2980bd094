// AWS Signature Version 4 for the requests of the command line; see sign.c.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

struct sign_input {
	const char *service; // "lambda", "s3"
	const char *region, *key_id, *key_secret;
	const char *token; // of temporary credentials; NULL or "": none
	const char *method;
	const char *host; // as in the Host header, port included
	const char *path; // percent-encoded, with "?query"
	const void *body;
	size_t body_size;
};

struct sign_output {
	char date[32];           // X-Amz-Date
	char content_sha256[65]; // X-Amz-Content-Sha256
	char authorization[512]; // Authorization
};

int sign_request(const struct sign_input *in, struct sign_output *out, struct error *e);
