// Programs that a build runs: their output is passed on as it comes, and what a failure message needs is picked out of it.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

#define RUN_LINE_MAX 400

// What is remembered of a program's output: a state machine over its bytes.
struct run_lines {
	char line[RUN_LINE_MAX]; // the line being read, cut
	size_t length;
	char output[RUN_LINE_MAX];  // the last line that a command wrote (not blank, not a remark of buildah's own)
	char failure[RUN_LINE_MAX]; // the last line with which buildah gave up, without its "Error: "
	bool no_space;              // "No space left on device" was seen
};

// Takes in more output.
void run_lines_feed(struct run_lines *l, const char *data, size_t size);
// Takes in a last line without an end.
void run_lines_end(struct run_lines *l);

struct run_options {
	const char *const *environment; // NULL: the caller's own
	const char *folder;             // working directory, or NULL
	bool no_network;                // in a network namespace of its own, without interfaces
	bool quiet;                     // output is shown only when the program fails
};

// Runs a program (argv[0] is searched in PATH) and waits for it; its two outputs come out on standard output. Returns its exit
// status (128 + signal when one killed it), or a negative errno when it could not be run. A process that it left behind and that still
// holds its output does not keep the caller waiting. `ret` may be NULL.
int run_program(const char *const argv[], const struct run_options *o, struct run_lines *ret, struct error *e);

// The same, for a program that must succeed: a non-zero exit status is -EIO with its last line in the message.
int run_checked(const char *const argv[], struct error *e);
