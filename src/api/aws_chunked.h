// The `aws-chunked` content coding of S3 uploads: chunks, each signed or not, and trailers with checksums. Source: Amazon S3 API Reference,
// "Signature Calculations for the Authorization Header: Transferring Payload in Multiple Chunks", with and without trailing headers.
//
// The decoder hands the content out in place as it goes; a chunk's signature can only be checked when the chunk is over, so what was
// handed out counts only once `done` is set.
#pragma once

#include "api/sigv4.h"
#include "base/error.h"
#include "base/http1.h"

#include <stdbool.h>
#include <stdint.h>

#define CHUNK_LINE_MAX 1024
#define CHUNK_MAX (1ull << 40)
#define CHUNK_TRAILERS_MAX 8

struct chunk_trailer {
	char name[64]; // lower case
	char value[256];
};

struct aws_chunked {
	bool is_signed, has_trailer;
	int state;
	uint64_t left;    // of the chunk
	uint64_t decoded; // bytes of content so far
	bool done;
	char line[CHUNK_LINE_MAX];
	size_t line_size;
	struct chunk_trailer trailers[CHUNK_TRAILERS_MAX];
	size_t trailer_count;
	// For signatures.
	unsigned char key[32];
	char amz_date[17], scope[80], previous[SIGV4_HEX], expected[SIGV4_HEX];
	void *hash; // EVP_MD_CTX of the chunk
};

// `signer` with `secret` for signed chunks (the request's own signature is the seed of the first), NULL for unsigned ones.
int aws_chunked_start(struct aws_chunked *d, const struct sigv4 *signer, const char *secret, bool has_trailer, struct error *e);
// Looks at `size` bytes; returns how many it took (all of them, but what follows the end), or -EBADMSG: malformed, or -EKEYREJECTED: a
// signature is wrong. *ret is the content among them; call again until all is taken or d->done.
ssize_t aws_chunked_feed(struct aws_chunked *d, const char *data, size_t size, struct slice *ret, struct error *e);
const char *aws_chunked_trailer(const struct aws_chunked *d, const char *name); // NULL: none
void aws_chunked_end(struct aws_chunked *d);                                    // releases; fine on a zeroed one
