// The operations of the control port (docs/agent-protocol.md); see operations.h.
//
// `resume` is on the path of every launch: five system calls, all on descriptors that are open already, and no new process.
#include "guest/operations.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "guest/guest.h"
#include "guest/network.h"
#include "guest/runtime_config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

static void reply(struct operation *o, json_t *members) {
	json_t *r = json_pack("{s:I, s:b}", "id", (json_int_t)o->id, "ok", 1);

	if (members != NULL) {
		json_object_update(r, members);
		json_decref(members);
	}
	o->active = false;
	o->hook = NULL;
	o->building = false;
	o->reply(o, r);
}

// Messages may quote what an application wrote; what is not UTF-8 in them must not cost the reply.
static json_t *any_text(const char *text) {
	json_t *j = json_string(text);
	if (j != NULL)
		return j;
	char copy[ERROR_MESSAGE_MAX];
	snprintf(copy, sizeof(copy), "%s", text);
	for (char *p = copy; *p != '\0'; p++)
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	return json_string(copy);
}

static void reply_error(struct operation *o, const struct error *e) {
	const char *code = e->name[0] != '\0' ? e->name : strerrorname_np(-e->code);

	o->active = false;
	o->hook = NULL;
	o->building = false;
	o->reply(o, json_pack("{s:I, s:b, s:s, s:o}", "id", (json_int_t)o->id, "ok", 0, "code", code != NULL ? code : "EIO", "message",
			      any_text(e->message)));
}

// hello, state

static void hello(struct operation *o) {
	struct utsname u = {0};

	uname(&u);
	reply(o, json_pack("{s:i, s:s, s:I}", "protocol", GUEST_PROTOCOL, "kernel", u.release, "uptimeMs",
			   (json_int_t)(clock_ns(CLOCK_BOOTTIME) / 1000000)));
}

// MemAvailable of /proc/meminfo (proc(5)), in bytes; 0 when it cannot be read.
static uint64_t available_memory(const struct agent *a) {
	char text[512];
	unsigned long long kib = 0;
	ssize_t n = a->meminfo_fd < 0 ? -1 : pread(a->meminfo_fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return 0;
	text[n] = '\0';
	const char *line = strstr(text, "MemAvailable:");
	if (line == NULL || sscanf(line, "MemAvailable: %llu kB", &kib) != 1)
		return 0;
	return (uint64_t)kib << 10;
}

// Whether a TCP socket listens (proc(5), /proc/net/tcp: the fourth column is the state, 0A is LISTEN). The agent itself listens on vsock
// and in a network namespace of its own.
static bool something_listens(const char *path) {
	cleanup_file FILE *f = fopen(path, "re");
	char line[256], tcp_state[3];

	while (f != NULL && fgets(line, sizeof(line), f) != NULL)
		if (sscanf(line, "%*s %*s %*s %2s", tcp_state) == 1 && strcmp(tcp_state, "0A") == 0)
			return true;
	return false;
}

static void state(struct operation *o) {
	struct agent *a = o->agent;
	struct sysinfo s = {0};

	sysinfo(&s);
	json_t *r = json_pack("{s:s, s:{s:I, s:I, s:I}}", "application", application_state_name(a->application.state), "memory",
			      "totalBytes", (json_int_t)s.totalram * s.mem_unit, "freeBytes", (json_int_t)s.freeram * s.mem_unit,
			      "availableBytes", (json_int_t)available_memory(a));
	json_object_set_new(r, "listening", json_boolean(something_listens("/proc/net/tcp") || something_listens("/proc/net/tcp6")));
	if (a->application.state == APPLICATION_EXITED)
		json_object_set_new(r, "exitCode", json_integer(a->application.exit_code));
	if (a->application.state == APPLICATION_RUNNING || a->application.state == APPLICATION_FROZEN)
		json_object_set_new(r, "pid", json_integer(a->application.main.pid));
	if (a->identity != NULL)
		json_object_set(r, "identity", a->identity);
	reply(o, r);
}

// resume

static int reseed(const struct agent *a, const struct resume_request *q, struct error *e) {
	struct {
		int entropy_count; // bits
		int buf_size;      // bytes
		uint8_t buf[REQUEST_ENTROPY_MAX];
	} info = {.entropy_count = (int)q->entropy_size * 8, .buf_size = (int)q->entropy_size};

	memcpy(info.buf, q->entropy, q->entropy_size);
	int r = 0;
	if (ioctl(a->random_fd, RNDADDENTROPY, &info) < 0 || ioctl(a->random_fd, RNDRESEEDCRNG) < 0)
		r = error_errno(e, "cannot reseed the random generator");
	explicit_bzero(&info, sizeof(info));
	return r;
}

static int set_clock(uint64_t ns, struct error *e) {
	struct timespec t = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
	return clock_settime(CLOCK_REALTIME, &t) < 0 ? error_errno(e, "cannot set the clock") : 0;
}

static void resume(struct operation *o, const struct resume_request *q) {
	struct agent *a = o->agent;
	struct error e = {0};

	// The order matters: the application must not run before both are done, nor when one of them failed.
	if (a->options.machine && (reseed(a, q, &e) < 0 || set_clock(q->realtime_ns, &e) < 0)) {
		reply_error(o, &e);
		return;
	}
	if (q->clone) {
		events_clear(&a->events);
		imds_take(&a->imds); // an image has no credentials
	}
	if (q->credentials.key_id != NULL && imds_give(&a->imds, &q->credentials, &e) < 0) {
		reply_error(o, &e);
		return;
	}
	if (application_thaw(&a->application, &e) < 0) {
		reply_error(o, &e);
		return;
	}
	if (q->identity != NULL) {
		json_decref(a->identity);
		a->identity = json_incref((json_t *)(uintptr_t)q->identity);
	}
	reply(o, NULL);
}

// start, freeze

static void started(void *arg, const struct error *error) {
	struct operation *o = arg;

	struct agent *a = o->agent;
	struct error e = {0};
	char cgroup[256];

	if (error != NULL) {
		reply_error(o, error);
		return;
	}
	a->forwards.tls = a->application.tls;
	snprintf(cgroup, sizeof(cgroup), "%s" RUNTIME_CGROUP, a->options.application.cgroups);
	if (busy_begin(&a->busy, &a->application.busy, cgroup, &e) < 0)
		reply_error(o, &e);
	else
		reply(o, json_pack("{s:i}", "pid", (int)a->application.main.pid));
}

static void start(struct operation *o, const struct start_request *q) {
	struct error e = {0};
	if (application_start(&o->agent->application, q, started, o, &e) < 0)
		reply_error(o, &e);
}

static void frozen(void *arg, const struct error *error) {
	struct operation *o = arg;

	if (error != NULL)
		reply_error(o, error);
	else
		reply(o, NULL);
}

static void freeze(struct operation *o) {
	struct error e = {0};
	if (application_freeze(&o->agent->application, frozen, o, &e) < 0)
		reply_error(o, &e);
}

// hook

static void hook_answered(void *arg, const struct hook_answer *answer) {
	json_t *r = json_pack("{s:s, s:i, s:I}", "result", hook_result_name(answer->result), "status", answer->status, "elapsedMs",
			      (json_int_t)answer->elapsed_ms);
	if (answer->message[0] != '\0')
		json_object_set_new(r, "message", any_text(answer->message));
	reply(arg, r);
}

static void hook(struct operation *o, const struct hook_request *q) {
	struct error e = {0};

	if (o->agent->application.state == APPLICATION_EXITED)
		hook_answered(o, &(struct hook_answer){.result = HOOK_EXITED});
	else if (hook_start(&o->agent->hooks, q, hook_answered, o, &o->hook, &e) < 0)
		reply_error(o, &e);
}

// build

static void built(void *arg, const json_t *result, const struct error *error) {
	struct operation *o = arg;

	if (result == NULL) {
		reply_error(o, error);
		return;
	}
	json_t *members = json_deep_copy(result);
	json_object_del(members, "id");
	reply(o, members);
}

static void build(struct operation *o, const struct request *q) {
	struct error e = {0};
	int r = builder_start(&o->agent->builder, &q->build, q->document, built, o, &e);

	if (r == 0) {
		o->building = true;
		return;
	}
	if (e.name[0] == '\0')
		snprintf(e.name, sizeof(e.name), "INTERNAL_PLATFORM_ERROR");
	reply_error(o, &e);
}

// network

static void network(struct operation *o, const struct network_request *q) {
	struct agent *a = o->agent;
	struct in_addr address, gateway;
	struct error e = {0};
	char path[256];
	int r = 0;

	inet_pton(AF_INET, GUEST_ADDRESS, &address);
	inet_pton(AF_INET, GUEST_GATEWAY, &gateway);
	if (q->has_address)
		address = q->address;
	if (q->has_gateway)
		gateway = q->gateway;
	if (a->options.machine && (q->has_address || q->has_gateway))
		r = network_configure(GUEST_INTERFACE, address, q->has_address ? q->prefix : GUEST_PREFIX, gateway, &e);
	if (r == 0 && q->has_nameservers) {
		snprintf(path, sizeof(path), "%s/resolv.conf", a->options.application.run);
		r = network_write_nameservers(path, q, &e);
		if (r == 0)
			r = network_write_nameservers(a->options.resolv_conf, q, &e);
	}
	if (r < 0)
		reply_error(o, &e);
	else
		reply(o, NULL);
}

// credentials

static void credentials(struct operation *o, const struct credentials_request *q) {
	struct agent *a = o->agent;
	struct error e = {0};

	if (q->key_id == NULL)
		imds_take(&a->imds);
	else if (imds_give(&a->imds, q, &e) < 0) {
		reply_error(o, &e);
		return;
	}
	reply(o, NULL);
}

// busy

static void busy(struct operation *o) {
	char why[BUSY_WHY_MAX];
	uint64_t idle_ns = busy_idle_ns(&o->agent->busy, why);
	reply(o, json_pack("{s:I, s:s}", "idleMs", (json_int_t)(idle_ns / 1000000), "why", why));
}

// poweroff

static int write_everything_back(struct job *j) {
	const struct agent *a = container_of(j, struct agent, power);
	if (!a->options.machine)
		return 0;
	// The reply is still on its way through the virtqueue.
	usleep(20000);
	sync();
	return 0;
}

static void power_off(struct job *j) {
	struct agent *a = container_of(j, struct agent, power);

	a->ending = true;
	if (!a->options.machine)
		return;
	reboot(RB_POWER_OFF);
	// A machine without a power switch: a reset ends a microVM as well.
	reboot(RB_AUTOBOOT);
}

static void poweroff(struct operation *o) {
	struct agent *a = o->agent;

	reply(o, NULL);
	if (a->power.work != NULL)
		return;
	a->power = (struct job){.work = write_everything_back, .done = power_off};
	if (job_start(&a->power, &a->loop) < 0) {
		write_everything_back(&a->power);
		power_off(&a->power);
	}
}

void operation_begin(struct operation *o, struct agent *a, const struct request *q) {
	o->agent = a;
	o->id = q->id;
	o->active = true;
	o->hook = NULL;
	o->building = false;
	switch (q->op) {
	case OP_HELLO:
		hello(o);
		return;
	case OP_RESUME:
		resume(o, &q->resume);
		return;
	case OP_START:
		start(o, &q->start);
		return;
	case OP_HOOK:
		hook(o, &q->hook);
		return;
	case OP_FREEZE:
		freeze(o);
		return;
	case OP_STATE:
		state(o);
		return;
	case OP_BUILD:
		build(o, q);
		return;
	case OP_NETWORK:
		network(o, &q->network);
		return;
	case OP_CREDENTIALS:
		credentials(o, &q->credentials);
		return;
	case OP_BUSY:
		busy(o);
		return;
	case OP_POWEROFF:
		poweroff(o);
		return;
	}
}

void operation_refuse(struct operation *o, int64_t id, const struct error *e) {
	o->id = id;
	reply_error(o, e);
}

void operation_abandon(struct operation *o) {
	if (!o->active)
		return;
	if (o->hook != NULL) {
		hook_cancel(o->hook);
		o->hook = NULL;
		o->active = false;
	}
	if (o->building) {
		builder_cancel(&o->agent->builder);
		o->building = false;
		o->active = false;
	}
}
