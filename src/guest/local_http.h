// HTTP/1.1 for the guest's own programs at an address that only they reach: requests without a body, each answered at once. Bounded in everything:
// connections (the one quiet for longest makes room), heads of 4 KiB, 10 s of silence.
#pragma once

#include "base/http1.h"
#include "guest/loop.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LOCAL_HTTP_CONNECTIONS_MAX 32
#define LOCAL_HTTP_ANSWER_MAX 8192

struct network_side;

struct local_http {
	struct loop *loop;
	struct in_addr address;
	uint16_t port;
	const struct network_side *side; // where the address is; NULL: in our own network namespace
	// Writes the whole answer to `to`, which has LOCAL_HTTP_ANSWER_MAX bytes, and returns its size.
	size_t (*answer)(void *arg, const struct http_head *h, char *to);
	void *arg;

	struct source listener;
	struct timer accept_again; // after accept(2) failed for want of something
	struct connection *first;
	size_t count;
};

// Takes the members above the gap from `options`. Does not listen yet.
void local_http_init(struct local_http *m, const struct local_http *options);
// Listens, unless it does.
int local_http_listen(struct local_http *m, struct error *e);
// Ends connections and listens no more.
void local_http_close(struct local_http *m);

// Writes an answer; h NULL: to something that was no request. `more`: further header lines, each with its CRLF. Returns its size, 0 when it does not fit.
size_t local_http_write(const struct http_head *h, int status, const char *type, const char *more, const char *body, char *to);
