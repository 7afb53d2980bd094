// An HTTP/1.1 server on the engine's libuv loop, for the API's port and for the artifact store's.
//
// The loop thread reads, parses and writes, and never blocks. Each request becomes an exchange, which a handler answers on a worker
// thread, in plain sequential code: the functions marked [worker] below block until the bytes are there, or until the client has taken
// enough of the answer. Requests of one connection are handled one after the other.
//
// A server collects bodies in memory before the handler runs (body_limit), or streams them to the handler through a buffer of 256 KiB.
// Limits: connections, handlers at once, bytes of collected bodies over all connections, size of heads, and time: 10 s for a head, 30 s for a
// collected body, 30 s without progress for a streamed one or for the answer, 75 s between requests.
#pragma once

#include "base/error.h"
#include "base/http1.h"
#include "base/uuid.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct engine;
struct server;
struct exchange;

struct server_options {
	const char *name;   // for the log: "api"
	const char *listen; // "127.0.0.1:7411", "[::1]:7411"
	bool stream;        // bodies are streamed instead of collected
	size_t body_limit;  // largest collected body
	size_t connections_max, handlers_max;
	void (*handle)(struct exchange *x, void *arg); // [worker]; must answer
	// Whether the handler only reads, and answers at once: then it runs on a reader thread (reader_submit()). NULL: none does. [loop thread]
	bool (*is_quick)(const struct http_head *h);
	// Renders the answer to a request that HTTP itself refuses (status 400, 408, 413, 431, 503, 505) before a handler sees it: the body's bytes,
	// which must live for ever. Its type goes to *type. NULL: no body.
	const char *(*refusal)(int status, const char **type);
	void *arg;
};

// Listens and serves. [loop thread]
int server_start(struct engine *en, const struct server_options *o, struct server **ret, struct error *e);
// The port, of interest when `listen` says 0. [loop thread]
int server_port(const struct server *s);
// Takes no more connections, lets the requests under way finish (at most 5 s), closes, releases the server, then calls done. [loop thread]
void server_stop(struct server *s, void (*done)(void *arg), void *arg);
size_t server_connections(const struct server *s); // [any]; a snapshot

// The request. -------------------------------------------------------------------------------------------------------------------
const struct http_head *exchange_head(const struct exchange *x);
const char *exchange_id(const struct exchange *x); // a UUID of its own
// The collected body (of a server that does not stream).
struct slice exchange_body(const struct exchange *x);
// Bytes of a streamed body. Returns how many, 0 at its end, -ECONNRESET when the client went away, -ETIMEDOUT when it was too slow, -EBADMSG when its
// framing is wrong. Sends "100 Continue" at the first call when the client waits for it. [worker]
ssize_t exchange_read(struct exchange *x, void *to, size_t room);

// The answer. --------------------------------------------------------------------------------------------------------------------
// Adds a header to the answer; control characters become spaces. Before the reply. Returns -ENOMEM or 0.
int exchange_header(struct exchange *x, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
// Sends the whole answer. For a HEAD request the body's length is announced and the body left out.
void exchange_reply(struct exchange *x, int status, const void *body, size_t size);
// Sends the head of an answer of `length` bytes, which exchange_write() then sends. Writing fails with -ECONNRESET when the client went away
// or takes nothing for too long. An answer that ends early ends the connection. [worker]
int exchange_begin(struct exchange *x, int status, uint64_t length);
int exchange_write(struct exchange *x, const void *data, size_t size);
// The same for an answer whose length nobody knows, which exchange_end() ends (chunked, or the connection ends with it). Such an answer may be
// quiet for as long as it likes; it is broken as soon as the client closes its side, and when the server stops. [worker]
int exchange_begin_endless(struct exchange *x, int status);
void exchange_end(struct exchange *x);
// Calls fn(arg) once, from any thread, when the connection is gone (at once when it is gone already); fn NULL takes that back, and then it is not
// running and will not run.
void exchange_on_break(struct exchange *x, void (*fn)(void *arg), void *arg);
// Whether an answer was begun.
bool exchange_answered(struct exchange *x);
