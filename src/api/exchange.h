// Inside src/api/ only: what the server's loop side and an exchange's worker side share; see server.c.
#pragma once

#include "api/server.h"

#include <pthread.h>

#define EXCHANGE_BODY_ROOM (256u << 10)  // bytes of a streamed body on their way to the handler
#define EXCHANGE_ROOM_LEAST (64u << 10)  // the loop takes more only when this many fit
#define EXCHANGE_QUEUE_MAX (256u << 10)  // bytes of an answer on their way to the client
#define EXCHANGE_WRITE_MAX (64u << 10)   // bytes of one write
#define EXCHANGE_HEADERS_MAX (16u << 10) // bytes of an answer's headers

struct connection;

struct exchange {
	struct server *s;
	char id[UUID_TEXT];

	// Loop thread only.
	struct connection *c; // NULL when it is gone
	struct http_body body;
	struct exchange *next_waiting;
	size_t collected; // bytes counted against the server's limit
	bool quick;       // its handler is on a reader thread

	// Written before the handler starts.
	char *head_bytes;
	struct http_head head;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	int references;
	int broken;               // negative errno: the connection is gone
	char *buffer;             // the body: collected, or a ring of EXCHANGE_BODY_ROOM bytes
	size_t start, size, room; // of the ring; for a collected body start is 0
	bool body_done, starved;  // starved: the loop waits for room
	int body_error;           // negative errno
	bool wants_continue;      // "100 Continue" is due at the first read
	size_t queued;            // bytes of the answer that the loop has not written
	bool begun, complete;     // the answer
	bool close_after;         // the connection ends with this answer
	uint64_t left;            // bytes of the answer still to come from the handler
	bool endless;             // there is no such number
	bool chunked, continued;  // of an endless answer: how it is framed, and whether something was written
	void (*on_break)(void *arg);
	void *on_break_arg;
	char *headers;
	size_t headers_size;
};

// Loop side. --------------------------------------------------------------------------------------------------------------------
struct exchange *exchange_new(struct server *s, struct connection *c); // NULL: out of memory; one reference
int exchange_take_head(struct exchange *x, const char *head, size_t size);
void exchange_hold(struct exchange *x);
void exchange_release(struct exchange *x); // NULL is fine
// The connection is gone: every blocking call fails with `why` from now on.
void exchange_break(struct exchange *x, int why);
// The body cannot be read further; the answer still can be sent.
void exchange_break_body(struct exchange *x, int why);
void exchange_end_body(struct exchange *x);
// How many bytes of body fit; 0 when it is fewer than EXCHANGE_ROOM_LEAST, and then exchange_post_room() comes once there is room.
size_t exchange_room(struct exchange *x);
int exchange_add_body(struct exchange *x, const void *data, size_t size);
void exchange_written(struct exchange *x, size_t size);
bool exchange_idle(struct exchange *x);        // nothing is queued
bool exchange_is_complete(struct exchange *x); // the whole answer is queued or out
bool exchange_is_endless(struct exchange *x);

// In server.c, for the worker side: work for the loop. -----------------------------------------------------------------------------
int exchange_post(struct exchange *x, const void *a, size_t a_size, const void *b, size_t b_size, bool last);
void exchange_post_room(struct exchange *x);
void exchange_post_continue(struct exchange *x);
