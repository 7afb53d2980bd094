// One blocking piece of work off the loop: a short-lived thread, whose end comes back as an event.
#pragma once

#include "guest/loop.h"

struct job {
	struct loop *loop;
	struct source source;
	int result;                  // what work() returned
	int (*work)(struct job *j);  // on the thread; touches nothing of the agent
	void (*done)(struct job *j); // on the loop
};

// Starts the job; the struct must stay until done(). Returns 0 or a negative errno (then done() is not called).
int job_start(struct job *j, struct loop *l);
