// The agent as a whole: listeners, and what hangs together; see agent.h.
#include "guest/agent.h"

#include "base/clock.h"
#include "guest/control.h"
#include "guest/streams.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPT_PAUSE_NS 50000000ull

struct agent_options agent_guest_options(void) {
	struct in_addr imds = {0}, busy = {0};
	inet_pton(AF_INET, IMDS_ADDRESS, &imds);
	inet_pton(AF_INET, BUSY_ADDRESS, &busy);
	return (struct agent_options){
		.machine = true,
		.imds_address = imds,
		.imds_port = IMDS_PORT,
		.busy_address = busy,
		.busy_port = BUSY_PORT,
		.application = {.crun = "/usr/bin/crun",
				.run = "/run/stasis",
				.cgroups = "/sys/fs/cgroup",
				.image = "/run/stasis/image",
				.mount_image = true},
		.build_program = "/usr/lib/stasis/build",
		.resolv_conf = "/run/resolv.conf",
	};
}

static void application_exited(void *arg) {
	struct agent *a = arg;
	hooks_application_exited(&a->hooks);
}

// Returns the connection, or -1. A failure other than "nothing there" pauses both listeners: level-triggered events would spin otherwise.
static int take_connection(struct agent *a, struct source *listener) {
	int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd >= 0 || errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
		return fd;
	loop_watch(&a->loop, &a->control_listener, 0);
	loop_watch(&a->loop, &a->stream_listener, 0);
	loop_arm(&a->loop, &a->accept_again, monotonic_ns() + ACCEPT_PAUSE_NS);
	return -1;
}

static void control_arrived(struct source *s, uint32_t events) {
	struct agent *a = container_of(s, struct agent, control_listener);
	int fd = take_connection(a, s);
	if (fd >= 0)
		control_take(a, fd);
}

static void stream_arrived(struct source *s, uint32_t events) {
	struct agent *a = container_of(s, struct agent, stream_listener);
	int fd = take_connection(a, s);
	if (fd >= 0)
		stream_take(a, fd);
}

static void accept_again(struct timer *t) {
	struct agent *a = container_of(t, struct agent, accept_again);
	loop_watch(&a->loop, &a->control_listener, EPOLLIN);
	loop_watch(&a->loop, &a->stream_listener, EPOLLIN);
}

int agent_listen(struct agent *a, int control, int streams) {
	a->control_listener.fd = control;
	a->stream_listener.fd = streams;
	int r = loop_watch(&a->loop, &a->control_listener, EPOLLIN);
	return r < 0 ? r : loop_watch(&a->loop, &a->stream_listener, EPOLLIN);
}

void agent_take_control(struct agent *a, int fd) {
	fcntl(fd, F_SETFL, O_NONBLOCK);
	control_take(a, fd);
}

void agent_take_stream(struct agent *a, int fd) {
	fcntl(fd, F_SETFL, O_NONBLOCK);
	stream_take(a, fd);
}

int agent_init(struct agent *a, const struct agent_options *o, struct error *e) {
	int r;

	memset(a, 0, sizeof(*a));
	a->options = *o;
	a->control_listener = (struct source){.fd = -1, .ready = control_arrived};
	a->stream_listener = (struct source){.fd = -1, .ready = stream_arrived};
	a->accept_again.fire = accept_again;
	// The JSON library's hash seed would otherwise be fetched with the first request.
	json_object_seed(0);
	a->random_fd = open("/dev/random", O_RDWR | O_CLOEXEC);
	a->meminfo_fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	if (o->machine && a->random_fd < 0)
		return error_errno(e, "cannot open /dev/random");
	if ((r = loop_init(&a->loop, e)) < 0 || (r = children_init(&a->children, &a->loop, e)) < 0 ||
	    (r = events_init(&a->events, &a->loop, e)) < 0 || (r = forwards_init(&a->forwards, &a->loop, e)) < 0)
		return r;
	a->hooks.loop = &a->loop;
	if (o->machine) {
		const struct in_addr served[] = {o->imds_address, o->busy_address};
		if ((r = network_side_make(&a->side, served, 2, e)) < 0)
			return r;
	}
	struct local_http place = {
		.loop = &a->loop, .address = o->imds_address, .port = o->imds_port, .side = o->machine ? &a->side : NULL};
	imds_init(&a->imds, &place);
	place.address = o->busy_address;
	place.port = o->busy_port;
	busy_init(&a->busy, &place, &a->events);
	application_init(&a->application, &a->loop, &a->children, &a->events, &a->options.application);
	a->application.exited = application_exited;
	a->application.exited_arg = a;
	builder_init(&a->builder, &a->loop, &a->children, &a->events, a->options.build_program, a->options.application.run,
		     a->options.application.cgroups);
	sessions_init(&a->sessions, &a->loop, &a->children, &a->application);
	return 0;
}

void agent_end(struct agent *a) {
	control_close_all(a);
	stream_close_all(a);
	imds_take(&a->imds);
	busy_end(&a->busy);
	sessions_end(&a->sessions);
	application_end(&a->application);
	builder_cancel(&a->builder);
	// Its processes are dead; reap them, so that nothing of ours calls back later.
	while (a->builder.running)
		loop_step(&a->loop, -1);
	forwards_end(&a->forwards);
	events_end(&a->events);
	children_end(&a->children);
	loop_close_source(&a->loop, &a->control_listener);
	loop_close_source(&a->loop, &a->stream_listener);
	loop_end(&a->loop);
	json_decref(a->identity);
	if (a->random_fd >= 0)
		close(a->random_fd);
	if (a->meminfo_fd >= 0)
		close(a->meminfo_fd);
}

int agent_step(struct agent *a, int max_wait_ms) {
	int r = loop_step(&a->loop, max_wait_ms);
	return r < 0 ? r : a->ending;
}
