// A running guest agent for tests; see agent_fixture.h.
#include "agent_fixture.h"

#include "base/io.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void *run_loop(void *arg) {
	struct fixture *f = arg;
	do
		f->result = agent_step(&f->agent, -1);
	while (f->result == 0);
	return NULL;
}

static int listen_at(const char *path) {
	int fd = unix_listen(path, SOCK_STREAM, 1024, NULL);
	assert_true(fd >= 0);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static void write_script(const char *path, const char *text) {
	FILE *script = fopen(path, "we");
	assert_non_null(script);
	fprintf(script, "#!/bin/sh\n%s\n", text);
	fclose(script);
	chmod(path, 0755);
}

struct fixture *fixture_start(const char *build_script, const char *image) {
	struct fixture *f = calloc(1, sizeof(*f));
	struct error e = {0};

	assert_non_null(f);
	signal(SIGPIPE, SIG_IGN);
	strcpy(f->folder, "/tmp/stasis-agent-XXXXXX");
	assert_non_null(mkdtemp(f->folder));
	snprintf(f->run, sizeof(f->run), "%s/run", f->folder);
	snprintf(f->control_path, sizeof(f->control_path), "%s/control", f->folder);
	snprintf(f->streams_path, sizeof(f->streams_path), "%s/streams", f->folder);
	snprintf(f->build_program, sizeof(f->build_program), "%s/build", f->folder);
	snprintf(f->resolv_conf, sizeof(f->resolv_conf), "%s/guest-resolv.conf", f->folder);
	assert_int_equal(mkdir(f->run, 0755), 0);
	if (build_script != NULL)
		write_script(f->build_program, build_script);
	f->options = (struct agent_options){
		.application = {.crun = "/usr/bin/crun", .run = f->run, .cgroups = "/sys/fs/cgroup", .image = image},
		.build_program = f->build_program,
		.imds_address.s_addr = htonl(INADDR_LOOPBACK),
		.busy_address.s_addr = htonl(INADDR_LOOPBACK),
		.resolv_conf = f->resolv_conf,
	};
	assert_int_equal(agent_init(&f->agent, &f->options, &e), 0);
	assert_int_equal(agent_listen(&f->agent, listen_at(f->control_path), listen_at(f->streams_path)), 0);
	// SIGCHLD is blocked since agent_init(); the thread inherits that.
	assert_int_equal(pthread_create(&f->thread, NULL, run_loop, f), 0);
	return f;
}

void fixture_stop(struct fixture *f) {
	int fd = fixture_control(f);
	json_decref(call(fd, "poweroff", NULL));
	close(fd);
	pthread_join(f->thread, NULL);
	assert_int_equal(f->result, 1);
	agent_end(&f->agent);
	remove_tree(f->folder, NULL);
	free(f);
}

static int connect_to(const char *path) {
	int fd = unix_connect(path, SOCK_STREAM, NULL);
	assert_true(fd >= 0);
	struct timeval limit = {.tv_sec = 10};
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	return fd;
}

int fixture_control(const struct fixture *f) {
	return connect_to(f->control_path);
}

int fixture_stream(const struct fixture *f, const char *request_line) {
	int fd = connect_to(f->streams_path);
	assert_int_equal(write_full(fd, request_line, strlen(request_line)), 0);
	return fd;
}

int fixture_events(const struct fixture *f) {
	char answer[3];
	int fd = fixture_stream(f, "EVENTS\n");
	read_exactly(fd, answer, 3);
	assert_memory_equal(answer, "OK\n", 3);
	return fd;
}

void read_exactly(int fd, void *to, size_t n) {
	assert_int_equal(read_full(fd, to, n), 0);
}

void send_request_text(int fd, const char *json) {
	uint32_t n = (uint32_t)strlen(json);
	assert_int_equal(write_full(fd, &n, sizeof(n)), 0);
	assert_int_equal(write_full(fd, json, n), 0);
}

void send_request(int fd, int id, const char *op, json_t *members) {
	json_t *q = json_pack("{s:i, s:s}", "id", id, "op", op);
	if (members != NULL)
		json_object_update(q, members);
	json_decref(members);
	char *text = json_dumps(q, 0);
	send_request_text(fd, text);
	free(text);
	json_decref(q);
}

json_t *receive_reply(int fd) {
	uint32_t n;
	int r = read_full(fd, &n, sizeof(n));
	if (r == -ENODATA || r == -ECONNRESET)
		return NULL;
	assert_int_equal(r, 0);
	assert_true(n <= GUEST_FRAME_MAX);
	char *text = malloc(n);
	read_exactly(fd, text, n);
	json_t *j = json_loadb(text, n, 0, NULL);
	free(text);
	assert_non_null(j);
	return j;
}

json_t *call(int fd, const char *op, json_t *members) {
	static int next_id = 1000;
	int id = next_id++;
	send_request(fd, id, op, members);
	json_t *r = receive_reply(fd);
	assert_non_null(r);
	assert_int_equal(json_integer_value(json_object_get(r, "id")), id);
	return r;
}

bool receive_event(int fd, struct event_frame *ret) {
	uint32_t n;
	uint8_t kind;

	if (read_full(fd, &n, sizeof(n)) != 0)
		return false;
	assert_in_range(n, GUEST_EVENT_HEADER - 4, GUEST_EVENT_HEADER - 4 + GUEST_EVENT_BYTES_MAX);
	read_exactly(fd, &kind, 1);
	read_exactly(fd, &ret->time_ns, 8);
	ret->kind = kind;
	ret->size = n - 9;
	read_exactly(fd, ret->data, ret->size);
	ret->data[ret->size] = '\0';
	return true;
}
