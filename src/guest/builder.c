// Builds; see builder.h. The program's process tree lives in a cgroup of its own, so that the time-out ends all of it.
#include "guest/builder.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "guest/cgroups.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define BUILD_CGROUP "/build"

static const char *const codes[] = {"ARCHIVE_INVALID", "ARCHIVE_DOCKERFILE_NOT_FOUND", "CONTAINER_BUILD_FAILED", "DISK_STORAGE_FULL",
				    "INTERNAL_PLATFORM_ERROR"};

static int platform_error(struct error *e, const char *what) {
	return error_named(e, -EIO, "INTERNAL_PLATFORM_ERROR", "%s", what);
}

json_t *build_result_parse(const char *data, size_t size, struct error *e) {
	struct error inner = {0};
	const char *code = NULL, *message = "";
	int64_t bytes = 0;
	bool ok = false;

	cleanup_json json_t *o = json_parse_object(data, size, BUILD_RESULT_MAX, "the build's result", &inner);
	if (o == NULL || member_bool(o, "ok", MEMBER_REQUIRED, &ok, &inner) < 0 ||
	    (ok && member_integer(o, "rootfsBytes", MEMBER_REQUIRED, 0, INT64_MAX, &bytes, &inner) < 0) ||
	    (!ok && (member_string(o, "code", MEMBER_REQUIRED, 64, &code, &inner) < 0 ||
		     member_string(o, "message", MEMBER_OPTIONAL, BUILD_MESSAGE_MAX, &message, &inner) < 0))) {
		platform_error(e, inner.message);
		return NULL;
	}
	if (ok)
		return json_incref(o);
	for (size_t i = 0; i < sizeof(codes) / sizeof(*codes); i++)
		if (strcmp(codes[i], code) == 0) {
			error_named(e, -EIO, code, "%s", message);
			return NULL;
		}
	error_named(e, -EIO, "INTERNAL_PLATFORM_ERROR", "the build ended with an unknown code: %s", message);
	return NULL;
}

static void close_outputs(struct builder *b) {
	output_close(&b->output);
	output_close(&b->error_output);
}

static void report(struct builder *b, const json_t *result, const struct error *error) {
	build_done done = b->done;
	void *arg = b->arg;

	b->done = NULL;
	if (done != NULL)
		done(arg, result, error);
}

static void ended(struct child *c, int status) {
	struct builder *b = container_of(c, struct builder, child);
	cleanup_free char *text = NULL;
	cleanup_json json_t *result = NULL;
	struct error e = {0};
	char path[PATH_MAX];
	size_t size = 0;

	loop_disarm(b->loop, &b->timer);
	// Whatever it left behind ends with it.
	kill_cgroup(b->cgroups, BUILD_CGROUP);
	close_outputs(b);
	b->running = false;
	c->pid = 0;
	snprintf(path, sizeof(path), "%s/build-result.json", b->run);
	if (b->timed_out)
		error_named(&e, -ETIMEDOUT, "CONTAINER_BUILD_FAILED", "the build took too long and was ended");
	else if (read_file(path, BUILD_RESULT_MAX, &text, &size, NULL) == 0 && size > 0)
		result = build_result_parse(text, size, &e);
	else if (WIFSIGNALED(status))
		error_named(&e, -EIO, "INTERNAL_PLATFORM_ERROR", "the build program was killed by signal %d (%s)", WTERMSIG(status),
			    WTERMSIG(status) == SIGKILL ? "most likely the builder has too little memory" : strsignal(WTERMSIG(status)));
	else
		error_named(&e, -EIO, "INTERNAL_PLATFORM_ERROR", "the build program ended with status %d and left no result",
			    WEXITSTATUS(status));
	report(b, result, &e);
}

static void kill_all(struct builder *b) {
	kill(-b->child.pid, SIGKILL);
	kill_cgroup(b->cgroups, BUILD_CGROUP);
}

static void time_is_up(struct timer *t) {
	struct builder *b = container_of(t, struct builder, timer);
	b->timed_out = true;
	kill_all(b);
}

void builder_init(struct builder *b, struct loop *l, struct children *c, struct events *v, const char *program, const char *run,
		  const char *cgroups) {
	*b = (struct builder){.loop = l, .children = c, .events = v, .program = program, .run = run, .cgroups = cgroups};
	b->child.ended = ended;
	b->timer.fire = time_is_up;
}

static int write_request(const struct builder *b, const json_t *document, char *path, size_t room, struct error *e) {
	cleanup_free char *text = json_dumps(document, JSON_COMPACT);

	if (text == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	snprintf(path, room, "%s/build-request.json", b->run);
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : write_full(fd, text, strlen(text));
	return r < 0 ? error_set(e, r, "cannot write %s: %s", path, strerror(-r)) : 0;
}

int builder_start(struct builder *b, const struct build_request *q, const json_t *document, build_done done, void *arg, struct error *e) {
	static const char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
					  "LC_ALL=C.UTF-8", NULL};
	char request[PATH_MAX], result[PATH_MAX], cgroup[PATH_MAX], procs[PATH_MAX];
	cleanup_close int out = -1, err = -1;
	int r;

	if (b->running)
		return error_set(e, -EBUSY, "a build is running already");
	if ((r = write_request(b, document, request, sizeof(request), e)) < 0)
		return r;
	snprintf(result, sizeof(result), "%s/build-result.json", b->run);
	unlink(result);
	snprintf(cgroup, sizeof(cgroup), "%s" BUILD_CGROUP, b->cgroups);
	mkdir(cgroup, 0755);
	snprintf(procs, sizeof(procs), "%s" BUILD_CGROUP "/cgroup.procs", b->cgroups);
	if ((r = output_open(&b->output, b->loop, b->events, GUEST_EVENT_STDOUT, true, &out)) < 0 ||
	    (r = output_open(&b->error_output, b->loop, b->events, GUEST_EVENT_STDERR, true, &err)) < 0) {
		close_outputs(b);
		return error_set(e, r, "cannot make pipes for the output: %s", strerror(-r));
	}
	const char *const argv[] = {b->program, request, result, NULL};
	pid_t pid = spawn(
		&(struct spawn){
			.argv = argv, .env = env, .standard_output = out, .standard_error = err, .folder = "/", .cgroup_procs = procs},
		e);
	if (pid < 0) {
		close_outputs(b);
		return (int)pid;
	}
	b->timed_out = false;
	b->running = true;
	b->done = done;
	b->arg = arg;
	b->child.pid = pid;
	loop_arm(b->loop, &b->timer, monotonic_ns() + q->timeout_ms * 1000000);
	children_watch(b->children, &b->child);
	return 0;
}

void builder_cancel(struct builder *b) {
	b->done = NULL;
	if (b->running)
		kill_all(b);
}
