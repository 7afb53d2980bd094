// Lifecycle hooks: one POST to the application's loopback (the service's specification, "Hooks contract"), with its retries and its deadline.
#pragma once

#include "guest/loop.h"
#include "guest/request.h"

#define HOOK_RESPONSE_MAX 65536 // bytes of a response that are read; what follows is ignored
#define HOOK_BODY_MAX 65536

enum hook_result {
	HOOK_OK,      // 200
	HOOK_STATUS,  // another status
	HOOK_TIMEOUT, // connected, but no complete response in time (or 503 until then, with retry_503)
	HOOK_REFUSED, // nobody listened until the deadline
	HOOK_EXITED,  // the application ended
	HOOK_BROKEN,  // the application closed the connection without, or with a malformed, response
};

struct hook_answer {
	enum hook_result result;
	int status; // the last HTTP status that came; 0: none
	uint64_t elapsed_ms;
	char message[256]; // for HOOK_BROKEN: what was wrong
};

struct hook;
struct hooks {
	struct loop *loop;
	struct hook *first;
};

typedef void (*hook_done)(void *arg, const struct hook_answer *answer);

// Starts the call; `done` is called exactly once, never before this function has returned, unless hook_cancel() comes first. The request is copied.
int hook_start(struct hooks *all, const struct hook_request *q, hook_done done, void *arg, struct hook **ret, struct error *e);
void hook_cancel(struct hook *h);

// The application has ended: so do all hooks.
void hooks_application_exited(struct hooks *all);

const char *hook_result_name(enum hook_result r);
