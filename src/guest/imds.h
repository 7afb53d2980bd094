// The instance metadata service of a guest whose microVM has an execution role: IMDSv2 at http://169.254.169.254/, with the role's temporary
// credentials and nothing else. Source: "Use the Instance Metadata Service" in the Amazon EC2 User Guide; spec section 8.
//
// Credentials come over the control port. Until the first do, and after they are taken away, nothing listens and nothing is kept: so no snapshot of
// an image has any. Every process of the guest can read them, as on EC2.
#pragma once

#include "guest/local_http.h"
#include "guest/request.h"

#include <stddef.h>
#include <stdint.h>

#define IMDS_ADDRESS "169.254.169.254"
#define IMDS_PORT 80
#define IMDS_ROLE "execution_role"
#define IMDS_TOKENS_MAX 64 // session tokens; the oldest goes
#define IMDS_TOKEN_BYTES 32

struct imds_token {
	uint8_t bytes[IMDS_TOKEN_BYTES];
	uint64_t until_ns; // CLOCK_MONOTONIC; 0: free
};

struct imds {
	struct local_http http;
	struct imds_token tokens[IMDS_TOKENS_MAX];
	size_t next_token;
	char *document; // what is answered for the role; NULL: no credentials
};

// Takes the loop and the place from `at`.
void imds_init(struct imds *m, const struct local_http *at);

// Has these credentials from now on, and listens. On failure everything is as it was.
int imds_give(struct imds *m, const struct credentials_request *q, struct error *e);
// Forgets credentials and session tokens, ends connections and listens no more. Also the end of it.
void imds_take(struct imds *m);

// Writes the whole answer to a request without a body to `to`, which has LOCAL_HTTP_ANSWER_MAX bytes. Returns its size.
size_t imds_answer(struct imds *m, const struct http_head *h, char *to);
