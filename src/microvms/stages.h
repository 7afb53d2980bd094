// How long each step of an operation took: collected while it runs, logged and stored when it is over, so that timing costs it nothing.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define STAGES_MAX 24

struct engine;

struct stages {
	char subject[80];      // a microVM's id, or "<image uuid>/<version>"
	const char *operation; // "run", "suspend", "resume", "terminate", "build"
	uint64_t begun_ns, last_ns;
	struct stage {
		const char *name; // static text
		int64_t started_ms;
		int64_t us;
	} list[STAGES_MAX];
	size_t count;
};

void stages_begin(struct stages *s, const char *subject, const char *operation);
// What happened since the mark before was the stage `name` (static text).
void stages_mark(struct stages *s, const char *name);
// Logs and stores the stages and, last, the whole operation under its own name. [worker]
void stages_flush(struct engine *en, struct stages *s);
