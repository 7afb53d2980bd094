// The instance metadata service of a guest whose microVM has an execution role: IMDSv2 at http://169.254.169.254/, with the role's temporary
// credentials and nothing else. Source: "Use the Instance Metadata Service" in the Amazon EC2 User Guide; spec section 8.
//
// Credentials come over the control port. Until the first do, and after they are taken away, nothing listens and nothing is kept: so no snapshot of
// an image has any. Every process of the guest can read them, as on EC2.
#pragma once

#include "base/http1.h"
#include "guest/loop.h"
#include "guest/request.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMDS_ADDRESS "169.254.169.254"
#define IMDS_PORT 80
#define IMDS_ROLE "execution_role"
#define IMDS_TOKENS_MAX 64 // session tokens; the oldest goes
#define IMDS_TOKEN_BYTES 32
#define IMDS_CONNECTIONS_MAX 32
#define IMDS_ANSWER_MAX 8192

struct imds_token {
	uint8_t bytes[IMDS_TOKEN_BYTES];
	uint64_t until_ns; // CLOCK_MONOTONIC; 0: free
};

struct imds {
	struct loop *loop;
	struct in_addr address;
	uint16_t port;
	const char *interface; // gets the address when it is first listened at; NULL: it has it
	struct source listener;
	struct timer accept_again; // after accept(2) failed for want of something
	struct imds_connection *first;
	size_t count;
	struct imds_token tokens[IMDS_TOKENS_MAX];
	size_t next_token;
	char *document; // what is answered for the role; NULL: no credentials
};

void imds_init(struct imds *m, struct loop *l, struct in_addr address, uint16_t port, const char *interface);

// Has these credentials from now on, and listens. On failure everything is as it was.
int imds_give(struct imds *m, const struct credentials_request *q, struct error *e);
// Forgets credentials and session tokens, ends connections and listens no more. Also the end of it.
void imds_take(struct imds *m);

// Writes the whole answer to a request without a body to `to`, which has IMDS_ANSWER_MAX bytes. Returns its size.
size_t imds_answer(struct imds *m, const struct http_head *h, char *to);
