// stasisd as stasis-launch's child: started as an unprivileged user, and again when it dies. See engine_process.c.
#pragma once

#include "base/error.h"
#include "launch/options.h"

#include <stdbool.h>

#define ENGINE_QUICK_DEATHS 5 // in a row, with no microVM to keep: give up

struct engine_process {
	pid_t pid;                       // 0: not running
	int sock;                        // our end of the pair, non-blocking; -1: not running
	uint64_t started_ms, restart_ms; // monotonic; when it may be started again
	unsigned quick_deaths;
};

int engine_start(struct engine_process *p, const struct options *o, struct error *e);

// To be called when it has ended: closes the pair and says when it may be started again.
void engine_ended(struct engine_process *p);
