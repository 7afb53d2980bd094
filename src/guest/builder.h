// Running the build program of the builder's root file system: /usr/lib/stasis/build <request.json> <result.json>.
#pragma once

#include "guest/children.h"
#include "guest/events.h"
#include "guest/output.h"
#include "guest/request.h"

#define BUILD_RESULT_MAX 65536
#define BUILD_MESSAGE_MAX 4096

// `result`: the build program's checked result object (borrowed), or NULL with *error (which has a name).
typedef void (*build_done)(void *arg, const json_t *result, const struct error *error);

struct builder {
	struct loop *loop;
	struct children *children;
	struct events *events;
	const char *program, *run, *cgroups;

	struct child child;
	struct output output, error_output;
	struct timer timer;
	bool timed_out, running;
	build_done done;
	void *arg;
};

void builder_init(struct builder *b, struct loop *l, struct children *c, struct events *v, const char *program, const char *run,
		  const char *cgroups);

// One at a time. Returns 0 (then `done` is called once, later) or a negative errno.
int builder_start(struct builder *b, const struct build_request *q, const json_t *document, build_done done, void *arg, struct error *e);

// Nobody waits for the result any more: the build is killed.
void builder_cancel(struct builder *b);

// Checks what a build program wrote: {"ok":true,"rootfsBytes":N,…} or {"ok":false,"code":"…","message":"…"}. Returns a new reference to the object of
// a success, or NULL with *e (named by the code) set.
json_t *build_result_parse(const char *data, size_t size, struct error *e);
