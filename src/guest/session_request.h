// What a session is asked to be (docs/agent-protocol.md, SESSION): from the bytes of its request to a checked structure. No effects.
#pragma once

#include "base/json.h"

#include <stdbool.h>
#include <stdint.h>

#define SESSION_ARGS_MAX 4096
#define SESSION_PATH_MAX 4095

enum session_op {
	SESSION_SHELL, // the image's shell on a terminal
	SESSION_EXEC,  // a program
	SESSION_PUT,   // takes a tar archive from standard input
	SESSION_GET,   // writes one to standard output
};

// All pointers are borrowed from `document`.
struct session_request {
	enum session_op op;
	json_t *document;
	const json_t *args;        // exec: at least one
	const json_t *env;         // object of strings, or NULL
	const char *user, *folder; // as in a Dockerfile's USER and WORKDIR; folder may be NULL
	const char *path;          // put, get: absolute
	bool terminal;
	uint16_t columns, rows;
};

// Call session_request_free() in any case.
int session_request_parse(const void *data, size_t size, struct session_request *ret, struct error *e);
void session_request_free(struct session_request *r);
