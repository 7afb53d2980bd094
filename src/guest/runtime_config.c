// From an image's configuration to what crun runs; see runtime_config.h.
//
// The defaults are Docker's, since that is what Dockerfiles are written for: its capabilities, masked and read-only paths, mounts and devices.
// Different on purpose: the network namespace is the guest's own (the agent reaches the application's loopback, and a clone has nothing to set
// up), /dev/shm may take half of the memory, and there is no seccomp filter, since the microVM is the wall. With all capabilities
// nothing is masked, cgroups are writable and every device node works, so that nested containers run.
#include "guest/runtime_config.h"

#include <string.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP
#define DEFAULT_CAPABILITIES 0xa80425fbull

// By number (capabilities(7)).
static const char *const capability_names[] = {
	"CAP_CHOWN",
	"CAP_DAC_OVERRIDE",
	"CAP_DAC_READ_SEARCH",
	"CAP_FOWNER",
	"CAP_FSETID",
	"CAP_KILL",
	"CAP_SETGID",
	"CAP_SETUID",
	"CAP_SETPCAP",
	"CAP_LINUX_IMMUTABLE",
	"CAP_NET_BIND_SERVICE",
	"CAP_NET_BROADCAST",
	"CAP_NET_ADMIN",
	"CAP_NET_RAW",
	"CAP_IPC_LOCK",
	"CAP_IPC_OWNER",
	"CAP_SYS_MODULE",
	"CAP_SYS_RAWIO",
	"CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE",
	"CAP_SYS_PACCT",
	"CAP_SYS_ADMIN",
	"CAP_SYS_BOOT",
	"CAP_SYS_NICE",
	"CAP_SYS_RESOURCE",
	"CAP_SYS_TIME",
	"CAP_SYS_TTY_CONFIG",
	"CAP_MKNOD",
	"CAP_LEASE",
	"CAP_AUDIT_WRITE",
	"CAP_AUDIT_CONTROL",
	"CAP_SETFCAP",
	"CAP_MAC_OVERRIDE",
	"CAP_MAC_ADMIN",
	"CAP_SYSLOG",
	"CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ",
	"CAP_PERFMON",
	"CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
};

static json_t *string_array(const char *const *items, size_t n) {
	json_t *a = json_array();
	for (size_t i = 0; a != NULL && i < n; i++)
		json_array_append_new(a, json_string(items[i]));
	return a;
}
#define STRINGS(...) string_array((const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *))

static json_t *capability_set(const struct runtime_options *o) {
	uint64_t set = (o->all_capabilities ? ~0ull : DEFAULT_CAPABILITIES) & o->available_capabilities;
	json_t *a = json_array();

	for (size_t i = 0; i < sizeof(capability_names) / sizeof(*capability_names); i++)
		if (set >> i & 1)
			json_array_append_new(a, json_string(capability_names[i]));
	return a;
}

uint64_t runtime_capability_bits(const json_t *names) {
	uint64_t bits = 0;
	const json_t *name;
	size_t at;

	json_array_foreach(names, at, name) {
		for (size_t i = 0; i < sizeof(capability_names) / sizeof(*capability_names); i++)
			if (json_is_string(name) && strcmp(json_string_value(name), capability_names[i]) == 0)
				bits |= 1ull << i;
	}
	return bits;
}

// A user other than root gets them in the bounding set only: what execve(2) of a set-user-ID program could give back.
static json_t *capabilities(const struct runtime_options *o) {
	json_t *sets = json_object();

	json_object_set_new(sets, "bounding", capability_set(o));
	if (o->user->uid == 0) {
		json_object_set_new(sets, "effective", capability_set(o));
		json_object_set_new(sets, "permitted", capability_set(o));
	}
	return sets;
}

static void assign(json_t *variables, const char *assignment) {
	const char *equals = strchr(assignment, '=');
	json_object_setn_new(variables, assignment, (size_t)(equals - assignment), json_string(equals + 1));
}

static json_t *environment(const struct runtime_options *o) {
	cleanup_json json_t *variables = json_object();
	json_t *list = json_array(), *value;
	const char *name;
	size_t i;

	json_object_set_new(variables, "PATH", json_string(DEFAULT_PATH));
	json_object_set_new(variables, "HOSTNAME", json_string(o->hostname));
	json_object_set_new(variables, "HOME", json_string(o->user->home));
	json_array_foreach(o->image->env, i, value) {
		assign(variables, json_string_value(value));
	}
	for (void *at = json_object_iter((json_t *)(uintptr_t)o->env); at != NULL;
	     at = json_object_iter_next((json_t *)(uintptr_t)o->env, at))
		json_object_set(variables, json_object_iter_key(at), json_object_iter_value(at));
	json_object_foreach(variables, name, value) {
		json_array_append_new(list, json_sprintf("%s=%s", name, json_string_value(value)));
	}
	return list;
}

static json_t *process(const struct runtime_options *o) {
	// The main group is among the supplementary ones as well, so that a file may be closed to it even when a program changes its main group.
	json_t *groups = json_pack("[I]", (json_int_t)o->user->gid);
	for (size_t i = 0; i < o->user->group_count; i++)
		if (o->user->groups[i] != o->user->gid)
			json_array_append_new(groups, json_integer(o->user->groups[i]));
	return json_pack("{s:b, s:{s:I, s:I, s:o}, s:O, s:o, s:s, s:o, s:[{s:s, s:I, s:I}], s:b, s:i}", "terminal", 0, "user", "uid",
			 (json_int_t)o->user->uid, "gid", (json_int_t)o->user->gid, "additionalGids", groups, "args", o->image->args, "env",
			 environment(o), "cwd", o->image->working_dir, "capabilities", capabilities(o), "rlimits", "type", "RLIMIT_NOFILE",
			 "hard", (json_int_t)o->open_files, "soft", (json_int_t)o->open_files, "noNewPrivileges", !o->all_capabilities,
			 "oomScoreAdj", 0);
}

static json_t *mount_entry(const char *to, const char *type, const char *source, json_t *options) {
	return json_pack("{s:s, s:s, s:s, s:o}", "destination", to, "type", type, "source", source, "options", options);
}

static json_t *bound_file(const char *to, const char *files, const char *name) {
	cleanup_json json_t *source = json_sprintf("%s/%s", files, name);
	return mount_entry(to, "bind", json_string_value(source), STRINGS("rbind", "rprivate", "rw"));
}

static json_t *mounts(const struct runtime_options *o) {
	const char *access = o->all_capabilities ? "rw" : "ro";
	cleanup_json json_t *shm_size = json_sprintf("size=%llu", (unsigned long long)o->shm_bytes);
	json_t *list = json_array();

	json_array_append_new(list, mount_entry("/proc", "proc", "proc", STRINGS("nosuid", "noexec", "nodev")));
	json_array_append_new(list, mount_entry("/dev", "tmpfs", "tmpfs", STRINGS("nosuid", "strictatime", "mode=755", "size=65536k")));
	json_array_append_new(list, mount_entry("/dev/pts", "devpts", "devpts",
						STRINGS("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")));
	json_array_append_new(list, mount_entry("/dev/mqueue", "mqueue", "mqueue", STRINGS("nosuid", "noexec", "nodev")));
	json_array_append_new(list, mount_entry("/dev/shm", "tmpfs", "shm",
						STRINGS("nosuid", "noexec", "nodev", "mode=1777", json_string_value(shm_size))));
	json_array_append_new(list, mount_entry("/sys", "sysfs", "sysfs", STRINGS("nosuid", "noexec", "nodev", access)));
	json_array_append_new(list,
			      mount_entry("/sys/fs/cgroup", "cgroup", "cgroup", STRINGS("nosuid", "noexec", "nodev", "relatime", access)));
	json_array_append_new(list, bound_file("/etc/resolv.conf", o->files, "resolv.conf"));
	json_array_append_new(list, bound_file("/etc/hosts", o->files, "hosts"));
	json_array_append_new(list, bound_file("/etc/hostname", o->files, "hostname"));
	// What the build left for the agent is nobody else's business.
	json_array_append_new(list,
			      mount_entry("/.stasis", "tmpfs", "tmpfs", STRINGS("ro", "nosuid", "noexec", "nodev", "mode=555", "size=4k")));
	return list;
}

// Without all capabilities: Docker's list of device nodes that may be opened or made; CAP_MKNOD alone would open the raw disks.
static json_t *device_rules(bool all) {
	if (all)
		return json_pack("[{s:b, s:s}]", "allow", 1, "access", "rwm");
	static const struct {
		int major, minor; // -1: any
	} allowed[] = {{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}, {136, -1}};
	json_t *rules = json_pack("[{s:b, s:s}, {s:b, s:s, s:s}, {s:b, s:s, s:s}]", "allow", 0, "access", "rwm", "allow", 1, "type", "c",
				  "access", "m", "allow", 1, "type", "b", "access", "m");
	for (size_t i = 0; i < sizeof(allowed) / sizeof(*allowed); i++) {
		json_t *rule = json_pack("{s:b, s:s, s:i, s:s}", "allow", 1, "type", "c", "major", allowed[i].major, "access", "rwm");
		if (allowed[i].minor >= 0)
			json_object_set_new(rule, "minor", json_integer(allowed[i].minor));
		json_array_append_new(rules, rule);
	}
	return rules;
}

static json_t *linux_part(const struct runtime_options *o) {
	// Of namespaces there is none for the network: see above.
	json_t *l = json_pack("{s:[{s:s}, {s:s}, {s:s}, {s:s}, {s:s}], s:s, s:{s:o}, s:s}", "namespaces", "type", "pid", "type", "mount",
			      "type", "ipc", "type", "uts", "type", "cgroup", "cgroupsPath", RUNTIME_CGROUP, "resources", "devices",
			      device_rules(o->all_capabilities), "rootfsPropagation", "private");
	if (o->all_capabilities) {
		json_object_set_new(l, "devices",
				    json_pack("[{s:s, s:s, s:i, s:i, s:i}]", "path", "/dev/fuse", "type", "c", "major", 10, "minor", 229,
					      "fileMode", 0666));
		return l;
	}
	json_object_set_new(l, "maskedPaths",
			    STRINGS("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
				    "/sys/devices/virtual/powercap"));
	json_object_set_new(l, "readonlyPaths", STRINGS("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"));
	return l;
}

json_t *runtime_config(const struct runtime_options *o, struct error *e) {
	json_t *c = json_pack("{s:s, s:o, s:{s:s, s:b}, s:s, s:o, s:o}", "ociVersion", "1.0.2", "process", process(o), "root", "path",
			      o->root, "readonly", 0, "hostname", o->hostname, "mounts", mounts(o), "linux", linux_part(o));
	if (c == NULL)
		error_named(e, -EINVAL, "IMAGE_CONFIG_INVALID",
			    "the image's configuration does not make a runtime configuration (out of memory, or text that is not UTF-8)");
	return c;
}

const char *runtime_variable(const json_t *config, const char *name) {
	const json_t *env = json_object_get(json_object_get(config, "process"), "env"), *item;
	size_t i, size = strlen(name);

	json_array_foreach(env, i, item) {
		const char *text = json_string_value(item);
		if (strncmp(text, name, size) == 0 && text[size] == '=')
			return text + size + 1;
	}
	return NULL;
}
