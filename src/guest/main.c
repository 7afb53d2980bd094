// stasis-init: PID 1 of a guest, and its agent.
//
//     /init                               as PID 1: everything, then the protocol on vsock ports 1024 and 1025
//     stasis-init --serve-unix PATH       for tests and debugging, on any Linux: the protocol on the Unix sockets PATH.control and PATH.streams.
//         [--image DIR] [--run DIR] [--crun PROGRAM] [--cgroups DIR] [--build PROGRAM] [--imds-port PORT] [--busy-port PORT]
//         It does not mount the image's disk but takes the folder, and leaves the clock, the random generator, the network and the power alone.
#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "guest/agent.h"
#include "guest/stage.h"

#include <fcntl.h>
#include <getopt.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

static struct agent agent;

static int listen_vsock(unsigned port, struct error *e) {
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};

	cleanup_close int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1024) < 0)
		return error_errno(e, "cannot listen on vsock port %u", port);
	return take_fd(&fd);
}

static int serve(const struct agent_options *o, int control, int streams, struct error *e) {
	int r = agent_init(&agent, o, e);

	if (r < 0)
		return r;
	if ((r = agent_listen(&agent, control, streams)) < 0)
		return error_set(e, r, "cannot wait for connections: %s", strerror(-r));
	while ((r = agent_step(&agent, -1)) == 0)
		;
	agent_end(&agent);
	return r < 0 ? error_set(e, r, "the event loop failed: %s", strerror(-r)) : 0;
}

static void be_init(void) __attribute__((noreturn));
static void be_init(void) {
	struct agent_options o = agent_guest_options();
	struct error e = {0};
	int control = -1, streams = -1;

	// What has no handler does not reach PID 1, except from the kernel: a fault would panic it, and should.
	signal(SIGPIPE, SIG_IGN);
	if (stage_run(&e) < 0 || (control = listen_vsock(GUEST_PORT_CONTROL, &e)) < 0 ||
	    (streams = listen_vsock(GUEST_PORT_STREAMS, &e)) < 0)
		stage_give_up(&e);
	log_info("agent.ready");
	serve(&o, control, streams, &e);
	stage_give_up(&e);
}

static int listen_unix(const char *base, const char *suffix, struct error *e) {
	char path[108];

	if ((size_t)snprintf(path, sizeof(path), "%s.%s", base, suffix) >= sizeof(path))
		return error_set(e, -ENAMETOOLONG, "the path %s is too long for a socket", base);
	int fd = unix_listen(path, SOCK_STREAM, 1024, e);
	if (fd >= 0)
		fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static int serve_unix(const char *path, const struct agent_options *o) {
	struct error e = {0};
	int control = -1, streams = -1;

	signal(SIGPIPE, SIG_IGN);
	// The application becomes our child when crun has ended, as in a guest.
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (make_folders(o->application.run, 0755, &e) == 0 && (control = listen_unix(path, "control", &e)) >= 0 &&
	    (streams = listen_unix(path, "streams", &e)) >= 0 && serve(o, control, streams, &e) == 0)
		return 0;
	fprintf(stderr, "stasis-init: %s\n", e.message);
	return 1;
}

int main(int argc, char **argv) {
	static const struct option options[] = {
		{"serve-unix", required_argument, NULL, 's'},
		{"image", required_argument, NULL, 'i'},
		{"run", required_argument, NULL, 'r'},
		{"crun", required_argument, NULL, 'c'},
		{"cgroups", required_argument, NULL, 'g'},
		{"build", required_argument, NULL, 'b'},
		{"imds-port", required_argument, NULL, 'm'},
		{"busy-port", required_argument, NULL, 'y'},
		{NULL, 0, NULL, 0},
	};
	struct agent_options o = agent_guest_options();
	const char *path = NULL;
	char resolv_conf[300];
	int c;

	// The kernel hands on words of its command line that it does not know: as PID 1 there are no options.
	if (getpid() == 1 && (argc < 2 || strcmp(argv[1], "--serve-unix") != 0))
		be_init();
	o.machine = o.application.mount_image = false;
	o.imds_address.s_addr = o.busy_address.s_addr = htonl(INADDR_LOOPBACK);
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's':
			path = optarg;
			break;
		case 'i':
			o.application.image = optarg;
			break;
		case 'r':
			o.application.run = optarg;
			break;
		case 'c':
			o.application.crun = optarg;
			break;
		case 'g':
			o.application.cgroups = optarg;
			break;
		case 'b':
			o.build_program = optarg;
			break;
		case 'm':
			o.imds_port = (uint16_t)strtoul(optarg, NULL, 10);
			break;
		case 'y':
			o.busy_port = (uint16_t)strtoul(optarg, NULL, 10);
			break;
		default:
			return 2;
		}
	}
	if (path == NULL || optind != argc) {
		fprintf(stderr, "stasis-init runs as PID 1 of a microVM; elsewhere: stasis-init --serve-unix PATH [--image DIR] [--run "
				"DIR] [--crun PROGRAM] "
				"[--cgroups DIR] [--build PROGRAM] [--imds-port PORT] [--busy-port PORT]\n");
		return 2;
	}
	snprintf(resolv_conf, sizeof(resolv_conf), "%s/guest-resolv.conf", o.application.run);
	o.resolv_conf = resolv_conf;
	return serve_unix(path, &o);
}
