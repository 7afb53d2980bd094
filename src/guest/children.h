// Processes of the guest: starting them, and reaping all of them, also those that PID 1 inherits.
#pragma once

#include "guest/loop.h"

#include <sys/types.h>

#define CHILDREN_UNCLAIMED 32

// A process that somebody waits for.
struct child {
	pid_t pid;
	void (*ended)(struct child *c, int wait_status);
	struct child *next;
};

struct children {
	struct loop *loop;
	struct source signals; // signalfd of SIGCHLD
	struct child *first;
	// Processes that ended before anybody claimed them (the application, when it ends before crun does).
	struct {
		pid_t pid;
		int status;
	} unclaimed[CHILDREN_UNCLAIMED];
	size_t unclaimed_count;
};

// Blocks SIGCHLD in the calling thread and takes it from then on.
int children_init(struct children *c, struct loop *l, struct error *e);
void children_end(struct children *c);

// Calls child->ended once when that process ends (from the loop; or from here when it has ended already).
void children_watch(struct children *c, struct child *child);
void children_forget(struct children *c, struct child *child);

// In a new process: what it must not inherit from the agent (blocked and ignored signals, its place when memory is short), undone.
// System calls only.
void become_ordinary(void);

struct spawn {
	const char *const *argv;
	const char *const *env;
	int standard_output, standard_error; // descriptors, or -1: /dev/null
	const char *folder;                  // working directory
	const char *cgroup_procs;            // file to enter a cgroup by; NULL: none. A failure to enter is ignored
};

// Starts a program in a process group of its own, with default signals, /dev/null as standard input and no other descriptors. Returns its pid
// or a negative errno (also when it could not be executed).
pid_t spawn(const struct spawn *s, struct error *e);
