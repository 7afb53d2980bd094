// A client of the guest agent's control port (docs/agent-protocol.md): frames of JSON over vsock, several requests on their way at once.
//
// The guest is hostile: every length is checked, every answer may be missing, late or nonsense, and no call waits beyond its time.
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AGENT_CONTROL_PORT 1024
#define AGENT_STREAM_PORT 1025
#define AGENT_FRAME_MAX 65536

struct agent {
	int fd; // -1: not connected
	uint64_t sequence;
	uint64_t answered; // id of the last reply
	bool greeted;      // the VMM has said that the guest accepted
};

// Begins to connect to the agent's control port through the VMM's vsock socket and does not wait: requests may be sent at once, the VMM hands them
// on when the guest has accepted, and the first agent_receive() says when it has not. For guests whose agent listens already.
int agent_begin(const char *vsock_path, struct agent *ret, struct error *e);
// Connects and waits for the guest to accept. Tries again while it does not listen yet, until timeout_ms is over.
int agent_connect(const char *vsock_path, int timeout_ms, struct agent *ret, struct error *e);
void agent_close(struct agent *a);

// Opens a stream to a guest's port: `CONNECT <port>` and its answer. Returns the descriptor. -ECONNREFUSED: nobody listens there.
int vsock_connect(const char *vsock_path, unsigned port, int timeout_ms, struct error *e);
// Reads one line, newline excluded, and not a byte more. Returns its length or a negative errno.
int read_line(int fd, char *to, size_t room, int timeout_ms);

// Sends a request without waiting; `request` is released. Replies come in the order of the requests.
int agent_send(struct agent *a, json_t *request, struct error *e);
// Waits for the next reply. An answer with ok=false is -EREMOTEIO with its code in e->name and its message in e. ret may be NULL.
int agent_receive(struct agent *a, int timeout_ms, json_t **ret, struct error *e);
int agent_call(struct agent *a, json_t *request, int timeout_ms, json_t **ret, struct error *e);

// Requests. ----------------------------------------------------------------------------------------------------------------

// The first request after every start and restore: fresh entropy, the time of now, and the workload goes on. `microvm_id` may be NULL.
json_t *agent_resume_request(bool clone, const char *microvm_id);
json_t *agent_freeze_request(void);

enum hook_result {
	HOOK_OK,      // 200
	HOOK_STATUS,  // another status
	HOOK_TIMEOUT, // no final answer in time
	HOOK_EXITED,  // the application ended
	HOOK_REFUSED, // nothing listened
};

struct hook_answer {
	enum hook_result result;
	int status; // HTTP, 0: none
	int64_t elapsed_ms;
};

// body may be NULL.
json_t *agent_hook_request(const char *name, int port, int timeout_ms, const char *body, bool retry503);
// Reads the reply of a hook request sent before.
int agent_receive_hook(struct agent *a, int timeout_ms, struct hook_answer *ret, struct error *e);
// Writes the service's sentence for a hook that failed: "Run lifecycle hook returned HTTP status 400. …" (spec 2.3, 2.4).
void hook_reason(const char *hook, bool build, int port, int timeout_ms, const struct hook_answer *a, char *to, size_t room);
