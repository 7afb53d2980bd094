// The application: the image's program as an OCI container (crun), its output, its end, freezing and thawing.
#pragma once

#include "guest/busy.h"
#include "guest/children.h"
#include "guest/events.h"
#include "guest/job.h"
#include "guest/output.h"
#include "guest/request.h"
#include "guest/tls_ports.h"
#include "guest/users.h"

#include <stdbool.h>

enum application_state {
	APPLICATION_NONE,
	APPLICATION_STARTING,
	APPLICATION_RUNNING,
	APPLICATION_FREEZING,
	APPLICATION_FROZEN,
	APPLICATION_EXITED,
};

// Where things are; fixed in a guest, elsewhere in tests.
struct application_paths {
	const char *crun;
	const char *run;     // folder for what belongs to the running guest
	const char *cgroups; // where the cgroup2 file system is mounted
	const char *image;   // the application's root file system; mounted there by `start` when mount_image
	bool mount_image;
};

typedef void (*application_done)(void *arg, const struct error *error); // error NULL: it worked

struct application {
	struct loop *loop;
	struct children *children;
	struct events *events;
	struct application_paths paths;
	void (*exited)(void *arg); // called when the application has ended
	void *exited_arg;

	enum application_state state;
	struct busy_policy busy; // of the image, once it was started; and so
	struct tls_ports tls;
	struct child crun, main;
	int exit_code;
	struct output output, error_output;
	int freeze_fd, frozen_fd; // cgroup.freeze, cgroup.events

	application_done done; // of the start or freeze in progress
	void *done_arg;
	struct timer timer;
	uint64_t deadline_ns, pause_ns;
	struct job sync;
	bool syncing;
};

int application_init(struct application *a, struct loop *l, struct children *c, struct events *v, const struct application_paths *p);
void application_end(struct application *a);

// Mounts the image, writes the runtime configuration, starts crun. Returns 0 (then `done` is called once, later) or a negative errno.
int application_start(struct application *a, const struct start_request *q, application_done done, void *arg, struct error *e);

// Freezes the application (if one runs), takes its output, syncs the file systems. Returns as application_start() does.
int application_freeze(struct application *a, application_done done, void *arg, struct error *e);

// One write(2); nothing when it does not run.
int application_thaw(struct application *a, struct error *e);

// Resolves a USER ("name", "uid:gid", …) by the image's passwd and group.
int application_user(const struct application *a, const char *spec, struct user *ret, struct error *e);
// The runtime configuration that it was started with; a new reference.
int application_config(const struct application *a, json_t **ret, struct error *e);

const char *application_state_name(enum application_state s);
