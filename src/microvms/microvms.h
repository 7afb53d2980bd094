// The life of microVMs: run, suspend, resume, terminate, idle policy, maximum duration, adoption after a restart.
//
// Threads: functions marked [worker] block (VMM, agent, store) and must be called from a worker thread; those marked [any] may be
// called from anywhere and return at once. Work is submitted with worker_submit(). Callbacks of [any] functions run on the libuv loop thread.
//
// States and transitions are those of the service (PENDING, RUNNING, SUSPENDING, SUSPENDED, TERMINATING, TERMINATED); each is committed to
// the store before it is acted on or announced. Operations on one microVM are serialised.
#pragma once

#include "base/error.h"
#include "store/store.h"

#include <stdbool.h>
#include <stdint.h>

struct engine; // src/stasisd/engine.h: store, configuration, loop, launcher connection, everything that there is once

// Starts the module: reads living microVMs from the store, adopts those whose VMM lives, ends the others (reason in the record), removes
// orphans. [worker]
int microvms_start(struct engine *en, struct error *e);

// Suspends every running microVM (graceful shutdown of the engine). [worker]
void microvms_suspend_all(struct engine *en);

struct microvm_run {
	const char *account;
	const struct store_image *image;
	const struct store_version *version;
	int64_t maximum_duration_s;
	bool has_idle_policy;
	int64_t max_idle_s, suspended_s;
	bool auto_resume;
	const char *run_hook_payload;                                     // NULL: none
	const char *config;                                               // JSON: what GetMicrovm echoes (connectors, role, …)
	struct store_token *token;                                        // NULL: none; its answer is made by …
	char *(*answer)(struct engine *en, const struct store_microvm *); // … this from the new record. NULL: out of memory
};

// Records a microVM as PENDING, fills *ret, and starts it on a worker: the call returns once it is recorded. ResourceNotFoundException when the
// version can be launched no more. [worker]
int microvm_run(struct engine *en, const struct microvm_run *r, struct store_microvm *ret, struct error *e);

// Idempotent, as the service's operations; errors are named with the API's exception names (struct error.name):
// ResourceNotFoundException, ValidationException, ConflictException, InternalServerException. [worker]; they return when the new state is reached
// (suspend, resume) or recorded (terminate: TERMINATING).
int microvm_suspend(struct engine *en, const char *id, const char *reason, struct error *e);
int microvm_resume(struct engine *en, const char *id, struct error *e);
int microvm_terminate(struct engine *en, const char *id, const char *reason, struct error *e);

// For the edge. ---------------------------------------------------------------------------------------------------------------

// How to reach a microVM, through all its sleeps; reference-counted. Give it back at the end of the request (or of the upgraded
// connection): a suspend that was asked for gives requests under way some seconds to be answered.
struct microvm_route; // opaque

enum microvm_open_result {
	MICROVM_OPEN_OK,
	MICROVM_OPEN_UNKNOWN, // no such endpoint: 403
	MICROVM_OPEN_ASLEEP,  // suspended and not to be resumed by requests: 502
	MICROVM_OPEN_GONE,    // TERMINATING or TERMINATED: 502
	MICROVM_OPEN_FAILED,  // the resume failed: 502; the text says why
};

typedef void (*microvm_opened)(void *arg, enum microvm_open_result result, struct microvm_route *route, const char *why);

// Finds the microVM behind an endpoint's UUID, wakes it when it sleeps and may be woken, and calls back on the loop thread (never from
// within this call). Requests for a microVM that is PENDING, SUSPENDING or being resumed are held until that is over. [any]
void microvm_open(struct engine *en, const char *endpoint, microvm_opened done, void *arg);

// The route at once, when the microVM is awake and nobody waits for it; NULL: ask microvm_open(). [any]
struct microvm_route *microvm_open_now(struct engine *en, const char *endpoint);

const char *microvm_route_id(const struct microvm_route *r);
void microvm_route_active(struct microvm_route *r); // bytes crossed the endpoint now; cheap. [any]
void microvm_route_release(struct microvm_route *r);

// Streams outlive sleeps: whoever has streams to a microVM's VMM follows the route, and is told what becomes of the VMM. All of this on the
// loop thread.
enum microvm_news {
	// The VMM is about to be paused: once this call has returned, nothing may be written to it.
	MICROVM_HALTS,
	// The snapshot is complete. What had been written to the VMM is in it; what the VMM had written can still be read, and is all that comes.
	MICROVM_SLEEPS,
	// It runs, and microvm_route_vsock() is where. After MICROVM_HALTS alone the VMM is the same as before, and its streams are.
	MICROVM_AWAKE,
	// The resume that microvm_route_wake() had asked for failed, or cannot be; it sleeps on.
	MICROVM_SLEEPS_ON,
	// It is being terminated.
	MICROVM_ENDS,
};
struct microvm_follower {
	// why: of MICROVM_SLEEPS_ON, for the log.
	void (*news)(struct microvm_follower *f, enum microvm_news news, const char *why);
};
// Begins to follow (one at a time), which holds a reference to the route until microvm_route_leave().
void microvm_route_follow(struct microvm_route *r, struct microvm_follower *f);
void microvm_route_leave(struct microvm_route *r);
struct microvm_follower *microvm_route_follower(const struct microvm_route *r); // or NULL
enum microvm_news microvm_route_latest(const struct microvm_route *r);          // never MICROVM_SLEEPS_ON
const char *microvm_route_vsock(const struct microvm_route *r);                 // path of vsock.sock; of use while it is awake

// Bytes wait for a microVM that sleeps: wakes it when its policy says so; without auto-resume they wait on. News come when it is over.
void microvm_route_wake(struct microvm_route *r);

// A request went to the application that has not begun to answer it / it has begun, or will not any more.
void microvm_route_asked(struct microvm_route *r);
void microvm_route_answered(struct microvm_route *r);

// Looks up who an endpoint is without waking it, from memory. Returns false when unknown. [any]
bool microvm_find_endpoint(struct engine *en, const char *endpoint, char id[48], char state[STATE_TEXT]);

// What the ingress connectors of the microVM behind an endpoint let in: bits of enum ingress (images/connectors.h); 0 when it is unknown. From
// memory. [any]
unsigned microvm_ingress(struct engine *en, const char *endpoint);
// Tokens of it that were minted before are revoked; 0: none are. [any]
int64_t microvm_tokens_since(struct engine *en, const char *endpoint);
// Revokes all tokens that were minted until now; durable when it returns. [worker]
int microvm_revoke_tokens(struct engine *en, const char *id, struct error *e);
// The port that requests without a token reach: `port` itself if it is public, and with 0 the one for those who name none. 0: none. [any]
uint16_t microvm_public_port(struct engine *en, const char *endpoint, uint16_t port);
// How many processors it has; 1 when it is unknown. [any]
unsigned microvm_vcpus(struct engine *en, const char *endpoint);
