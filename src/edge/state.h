// What there is once in the edge, and the limits that hold for all of it. Private to src/edge/.
#pragma once

#include "base/http1.h"
#include "edge/buffer.h"
#include "edge/certificates.h"
#include "edge/token_cache.h"
#include "stasisd/engine.h"

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <uv.h>

#define EDGE_CONNECTIONS_MAX 4096    // of clients; beyond it the longest idle one makes room, or the new one is closed
#define EDGE_HEAD_MS 30000           // from the first byte (or the connection) to the end of a head
#define EDGE_KEEP_ALIVE_MS 3600000   // between two requests: longer than microVMs are awake; for want of room, idle ones go earlier
#define EDGE_CONNECT_MS 30000        // to reach the application in a microVM that is awake
#define EDGE_STALL_MS 300000         // a client that takes nothing of what waits for it
#define EDGE_GONE_MS 30000           // a client that has closed its side, while the application sends nothing
#define EDGE_LINGER_MS 5000          // after an answer, for a client that is still sending
#define EDGE_UPSTREAMS_IDLE_MAX 1024 // connections to applications kept for the next request
#define EDGE_UPSTREAM_IDLE_MS 4000   // below the keep-alive time-out of usual servers (5 s)
#define EDGE_UPSTREAM_FRESH_MS 1000  // a request that must not be sent twice uses only those that were idle for less
#define EDGE_INTERIM_MAX 32          // 1xx responses to one request
#define EDGE_READ_SIZE 16384         // bytes of one read from a client
#define EDGE_SWEEP_MS 1000

struct connection; // connection.h
struct client;     // connection.c
struct upstream;
struct way;
struct shares;
TAILQ_HEAD(client_list, client);
TAILQ_HEAD(connection_list, connection);
TAILQ_HEAD(upstream_list, upstream);
TAILQ_HEAD(way_list, way);

struct edge {
	struct engine *engine;
	unsigned references; // handles and pending work that still point here
	bool stopping;

	uv_tcp_t listener;
	uv_timer_t sweep; // runs while there are connections
	uv_timer_t renewal;
	uv_check_t turn; // behind the events of a turn of the loop: pumps what waits in `later`
	uv_idle_t hurry; // keeps the loop from sleeping while something does
	struct connection_list later;

	struct token_keys *keys;
	struct token_cache *tokens;
	struct certificates certificates;
	SSL_CTX *tls, *application_tls;

	struct client_list clients; // most recently idle last
	size_t client_count;
	uint64_t refused;                    // clients turned away for want of room
	struct upstream_list idle_upstreams; // most recently used first
	size_t idle_upstream_count;
	struct way_list ways;  // to microVMs, with the streams to them
	struct shares *shares; // share.h

	struct buffer_pool buffers;
	unsigned char random[4096]; // for the names of requests; used from its end
	size_t random_left;
	struct http_head head;       // of the message that is being looked at; never kept across events
	char scratch[HTTP_HEAD_MAX]; // within one function only
	char read_buffer[EDGE_READ_SIZE];
	char application_buffer[BUFFER_SMALL]; // what is read of an application that speaks TLS
};

static inline void edge_hold(struct edge *ed) {
	ed->references++;
}
void edge_let_go(struct edge *ed);
// Pumps the connection once, when all events of this turn of the loop have been seen: so that what comes for many streams at once leaves
// together.
void edge_pump_later(struct edge *ed, struct connection *c);
void edge_forget_later(struct edge *ed, struct connection *c);
// A UUID for a request.
void edge_request_id(struct edge *ed, char to[static UUID_TEXT]);
// Makes sure that the sweep runs while there is something to sweep.
void edge_watch(struct edge *ed);
