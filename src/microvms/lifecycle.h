// Inside the lifecycle of microVMs: the object that stands for one, and what run.c, suspend.c, resume.c, terminate.c, idle.c, adopt.c and
// open.c share.
//
// Three locks, in this order: `busy` (an operation has the microVM; held for seconds, waited for by worker threads only), `commit` (a state
// change is on its way to the store), `lock` (the members; never held over anything that blocks). The state changes only in microvm_change(),
// which commits it first. An operation that finds another state than it expects (a Terminate came in between) gives up with -ECANCELED and
// leaves the rest to whoever changed the state.
#pragma once

#include "images/settings.h"
#include "microvms/agent_client.h"
#include "microvms/events.h"
#include "microvms/microvms.h"
#include "microvms/slot.h"
#include "microvms/stages.h"
#include "microvms/timers.h"
#include "stasisd/engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

enum microvm_state { STATE_PENDING, STATE_RUNNING, STATE_SUSPENDING, STATE_SUSPENDED, STATE_TERMINATING, STATE_TERMINATED };
#define IN(state) (1u << (state))
#define LIVING (IN(STATE_PENDING) | IN(STATE_RUNNING) | IN(STATE_SUSPENDING) | IN(STATE_SUSPENDED))

#define BUCKETS 4096
#define TOMBSTONES_MAX 1024 // terminated microVMs that the edge still knows
#define WAITERS_MAX 4096    // requests held for one microVM: as many as the edge has connections
#define FOLDER_PATH 512

#define AGENT_REPLY_MS 30000
#define ATTACH_DELAY_MS 300
#define BUSY_REPLY_MS 5000 // how long the guest may take to say whether it is busy
#define DRAIN_MS 5000      // how long a suspend waits for requests that are being answered
#define DRAIN_QUIET_MS 200 // … once they are being answered: for bytes to stop moving
#define EXIT_GRACE_MS 1000 // between the application's end and that of its microVM

struct waiter {
	STAILQ_ENTRY(waiter) link;
	microvm_opened done;
	void *arg;
};

struct microvm {
	struct engine *en;
	_Atomic unsigned references;
	struct microvm *next_by_id, *next_by_endpoint, *next_tombstone; // guarded by the table's lock

	pthread_mutex_t commit;
	pthread_mutex_t lock;
	pthread_cond_t changed;      // busy, recorded, requests, unanswered
	struct store_microvm record; // config is this object's
	unsigned ingress;            // enum ingress (images/connectors.h); never changes
	enum microvm_state state;
	bool busy;
	bool resuming; // a resume is under way or submitted
	int recorded;  // of a new microVM: 0 on its way to the store, 1 there, -1 refused
	bool terminate_hook;
	int agent_fd; // that an operation waits on; -1: none. A Terminate shuts it down
	STAILQ_HEAD(, waiter) waiters;
	size_t waiter_count;
	struct microvm_route *route; // from the first RUNNING to the end
	bool reachable;              // RUNNING, and the route's follower knows
	unsigned requests;           // routes that were given out
	unsigned unanswered;         // requests that the application has not begun to answer
	uint64_t incarnation;        // counts the VMMs that it had
	char end_reason[REASON_MAX]; // why the VMM ended by itself
	int64_t exited_ms;           // monotonic; when the application ended; 0: it runs
	int exit_code;
	_Atomic int64_t last_activity_ms; // monotonic
	int64_t credentials_due_ms;       // monotonic; when the guest is to get new ones; 0: it has none
	int64_t begun_ms, asleep_ms;      // since the boot: when its life, and its present sleep, began; see idle.c
	struct timer timer;

	// Owned by the operation in progress; between operations `slot.client` is watched.
	struct image_settings settings; // with the egress of the Run request
	char folder[FOLDER_PATH], image_folder[FOLDER_PATH];
	struct slot slot;
	int64_t watch; // of slot.client; 0: none
	struct events *events;
	struct output_log app_log;
};

struct microvms {
	struct engine *en;
	pthread_mutex_t lock; // of the table
	struct microvm *by_id[BUCKETS], *by_endpoint[BUCKETS];
	struct microvm *oldest_tombstone, *newest_tombstone;
	size_t tombstones;
	struct timers timers;
	uv_timer_t alarm; // loop thread
	_Atomic bool alarm_open;
	_Atomic bool rearm_queued;
	_Atomic bool stopping;
	_Atomic bool loop_gone; // nothing more is submitted to the loop
};

// registry.c ------------------------------------------------------------------------------------------------------------------
int registry_new(struct engine *en);
void registry_free(struct engine *en); // for tests: everything must be quiet
// Makes the object (one reference, the caller's) from a record, whose config it takes over. Not in the table yet.
struct microvm *microvm_new(struct engine *en, const struct store_microvm *record);
struct microvm *microvm_ref(struct microvm *m);
void microvm_unref(struct microvm *m);
void registry_add(struct microvm *m); // the table has a reference of its own
void registry_remove(struct microvm *m);
void registry_bury(struct microvm *m);                                           // TERMINATED: stays findable for a while
struct microvm *registry_find(struct engine *en, const char *id);                // a reference, or NULL
struct microvm *registry_find_endpoint(struct engine *en, const char *endpoint); // a reference, or NULL
// Fills a fresh array with references to all (tombstones too). Returns how many; the caller releases them and the array.
size_t registry_all(struct engine *en, struct microvm ***ret);

// state.c ---------------------------------------------------------------------------------------------------------------------
extern const char *const state_names[];
int state_of_name(const char *name); // -1: unknown
enum microvm_state microvm_state_now(struct microvm *m);
void microvm_begin(struct microvm *m); // waits for the operation before to end. [worker]
void microvm_end(struct microvm *m);
// Commits and makes the change when the state is one of `from`; -ECANCELED when it is another. reason NULL: none.
int microvm_change(struct microvm *m, unsigned from, enum microvm_state to, const char *reason, struct error *e);
// The same for changes that must happen even when the store cannot take them (logged; the next start puts the record right). Returns
// false when the state is another.
bool microvm_force(struct microvm *m, unsigned from, enum microvm_state to, const char *reason);
// Answers the requests that wait, as the state says. failure: why a resume failed, or NULL.
void microvm_settle(struct microvm *m, const char *failure);
// microvm_open() of a microVM that is known.
void microvm_open_this(struct microvm *m, microvm_opened done, void *arg);
// Connects to the guest agent so that a Terminate can interrupt; close with microvm_agent_close().
int microvm_agent_open(struct microvm *m, struct agent *a, struct error *e);
void microvm_agent_close(struct microvm *m, struct agent *a);
// Calls one of the image's hooks when it is enabled. Returns 0 (also when it is not enabled), or a negative errno with the service's
// sentence in `reason`.
int microvm_call_hook(struct microvm *m, struct agent *a, enum image_hook hook, char reason[REASON_MAX]);
int microvm_hook_result(struct microvm *m, struct agent *a, enum image_hook hook, char reason[REASON_MAX]); // of one sent already
json_t *microvm_hook_request(struct microvm *m, enum image_hook hook, const char *body);

// route.c ---------------------------------------------------------------------------------------------------------------------
// Commits RUNNING and opens the endpoint to the VMM in m->slot; a state that is RUNNING already (a record of the last stasisd) needs no commit.
int microvm_go_running(struct microvm *m, unsigned from, struct error *e);
// The steps of a suspend, as seen from the endpoint: waits, at most timeout_ms, until no request is unanswered and no byte moves; tells the
// follower that the VMM is halted, and returns once it knows; that it sleeps, the same; or that it runs on after all.
void microvm_route_drain(struct microvm *m, int timeout_ms);
void microvm_route_halt(struct microvm *m);
void microvm_route_sleep(struct microvm *m);
void microvm_route_run_on(struct microvm *m);
// The route for one more request. m->lock is held.
struct microvm_route *microvm_route_give(struct microvm *m);
// The microVM ends, and its route.
void microvm_route_end(struct microvm *m);

// attach.c: follows the VMM and the application of a microVM that runs ---------------------------------------------------------
void microvm_attach(struct microvm *m); // with the operation held
// The same a moment later, and then the stages are stored too: neither is urgent, and the first requests need the processors now.
void microvm_attach_later(struct microvm *m, const struct stages *stages);
void microvm_detach(struct microvm *m);
void microvms_on_slot_ended(void *arg, const char *vmm, int wait_status); // from stasis-launch; arg: engine

// credentials.c ---------------------------------------------------------------------------------------------------------------
// Sends the `resume` to a guest, with credentials when it has a role and needs new ones.
int microvm_send_resume(struct microvm *m, struct agent *a, bool clone, struct error *e);
// The guest may not have got what it was sent last, or lost it.
void microvm_forget_credentials(struct microvm *m);
void microvm_renew_credentials(struct microvm *m); // when they are due; waits for the operation before. [worker]

// terminate.c -----------------------------------------------------------------------------------------------------------------
// With the operation held and the state TERMINATING: ends VMM and files, then TERMINATED. Keeps the reason.
void microvm_finish(struct microvm *m);
// Both: TERMINATING with this reason, then microvm_finish().
void microvm_abort(struct microvm *m, const char *reason);
void microvm_terminate_later(struct microvm *m, const char *reason);

// suspend.c -------------------------------------------------------------------------------------------------------------------
enum suspend_cause { SUSPEND_ASKED, SUSPEND_IDLE, SUSPEND_RESUME_FAILED };
// With the operation held.
int microvm_suspend_now(struct microvm *m, enum suspend_cause cause, struct error *e);
int microvm_lookup(struct engine *en, const char *id, struct microvm **ret, struct error *e); // named errors of the API

// While a microVM runs it has no snapshot: removes every file of one, finished, begun, or marked by a resume. (A VMM has the files that it uses open.)
void microvm_remove_snapshot(const struct microvm *m);

// resume.c --------------------------------------------------------------------------------------------------------------------
#define RESUMING_PREFIX "resuming-"
int microvm_resume_now(struct microvm *m, struct error *e); // with the operation held
void microvm_resume_job(void *m);                           // for requests; takes over a reference, m->resuming is set
// Makes the snapshot of a resume that did not come to its end the one that counts again. 0: there is a complete one; -ESTALE: the guest
// has written to its disk since; other negative errno: there is none.
int microvm_unresume(struct microvm *m);

// idle.c ----------------------------------------------------------------------------------------------------------------------
int timers_begin(struct engine *en, struct error *e);
void timers_end(struct engine *en);       // loop thread
void microvm_schedule(struct microvm *m); // computes the next deadline anew
int64_t moment_of(int64_t wall_ms);       // since the boot, of a moment that a record names

// adopt.c ---------------------------------------------------------------------------------------------------------------------
int microvms_adopt(struct engine *en, struct error *e);
// Reads the image version's settings and fills the folders' names.
int microvm_load(struct microvm *m, struct error *e);
