// A conversation in HTTP/1.1 with the application behind an upstream, whatever it speaks.
//
// An application that speaks HTTP/1.1 is talked to straight: what is written here is what goes over the stream. One that is to be spoken to
// in HTTP/2 (h2c, with prior knowledge) has a translator in between: it reads the text of HTTP/1.1 from a buffer of its own and leaves text of
// HTTP/1.1 in another. So a session knows one protocol, and content, trailers, interim responses and half-closes pass all the same. So has the
// guest agent, whose shells and programs appear to the session as an application that speaks WebSocket.
#pragma once

#include "edge/upstream.h"

enum application_protocol {
	APPLICATION_HTTP1,
	APPLICATION_HTTP2,
	APPLICATION_SHELL, // the guest agent's sessions; the upstream is one of UPSTREAM_SESSION
};

// What a translator shows of itself in place of the stream. Translators begin with it.
struct application_side {
	const struct translator_ops *ops;
	struct buffer in, out; // text from and for the application
	bool eof, reset, broken;
};

struct translator_ops {
	// Moves on as far as possible, both ways, and asks the upstream to send and to read on.
	void (*advance)(struct application_side *side);
	// Gives back its buffers and memory.
	void (*free)(struct application_side *side);
};

struct application {
	struct upstream *u;
	struct application_side *side; // of the translator; NULL: none
};

// Begins to speak over an upstream that is open. Returns 0 or -ENOMEM; the upstream stays the caller's either way.
int application_begin(struct application *a, struct upstream *u, enum application_protocol protocol);
// Before the upstream goes: lets go of the translator.
void application_end(struct application *a);
// Takes in what has come over the stream. Call when something may have changed, before looking at the rest.
void application_advance(struct application *a);

static inline struct buffer *application_in(const struct application *a) {
	return a->side != NULL ? &a->side->in : &a->u->in;
}
static inline struct buffer *application_out(const struct application *a) {
	return a->side != NULL ? &a->side->out : &a->u->out;
}
// The application has ended its side; … and not in order; writing is of no use any more.
static inline bool application_eof(const struct application *a) {
	return a->side != NULL ? a->side->eof : a->u->eof;
}
static inline bool application_reset(const struct application *a) {
	return a->side != NULL ? a->side->reset : a->u->reset;
}
static inline bool application_broken(const struct application *a) {
	return a->side != NULL ? a->side->broken : a->u->broken;
}

// As the functions of upstream.h of these names.
size_t application_room(const struct application *a);
bool application_reserve(struct application *a, uint32_t capacity);
void application_flush(struct application *a);
void application_consume(struct application *a, size_t n);
bool application_grow_input(struct application *a);
void application_update(struct application *a);
// Ends our side; only of a stream without a translator (tunnels).
void application_end_output(struct application *a);
