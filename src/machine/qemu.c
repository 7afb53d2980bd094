// How QEMU is called. Tried and measured: q35 (its HPET and PM timer make the kernel's calibration reliable), TCG with a thread per CPU,
// an EPYC with SVM and nested paging less what TCG lacks, an uncompressed kernel where there is one (unpacking costs seconds under
// emulation), files by 9p, one sparse raw disk for state whose flushes are honoured, user networking with forwarded ports on loopback.
#include "machine/qemu.h"

#include "base/cleanup.h"
#include "machine/exec.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

// What EPYC-v3 has and TCG does not, named so that QEMU does not warn about each.
static const char cpu[] =
	"EPYC-v3,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-perfctr-core,-clzero,-xsaveerptr,-ibpb,"
	"-nrip-save,-xsavec,-xsaves";

// mitigations=off: speculation is the host's affair, the code of the machine is translated. tsc=reliable: TCG's TSC is the host's clock on every
// CPU. rcu_expedited: grace periods, which KVM and network namespaces wait for, take microseconds instead of ticks.
#define KERNEL_COMMAND                                                                                                                     \
	"console=ttyS0 quiet oops=panic panic=-1 mitigations=off tsc=reliable no_timer_check rcupdate.rcu_expedited=1 audit=0 nowatchdog " \
	"apparmor=0 "                                                                                                                      \
	"random.trust_cpu=on"

static void add(struct qemu_command *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(struct qemu_command *c, const char *format, ...) {
	va_list ap;
	va_start(ap, format);
	char *text = NULL;
	if (c->count + 1 >= QEMU_ARGUMENTS_MAX || vasprintf(&text, format, ap) < 0)
		c->overflow = true;
	else
		c->argv[c->count++] = text;
	va_end(ap);
}

// In QEMU's option lists a comma within a value is written twice.
static void escape(const char *path, char to[2 * QEMU_PATH_MAX]) {
	size_t n = 0;
	for (; *path != '\0' && n < 2 * QEMU_PATH_MAX - 2; path++) {
		if (*path == ',')
			to[n++] = ',';
		to[n++] = *path;
	}
	to[n] = '\0';
}

static void add_export(struct qemu_command *c, const char *tag, const char *path) {
	char escaped[2 * QEMU_PATH_MAX];
	escape(path, escaped);
	add(c, "-fsdev");
	add(c, "local,id=%s,path=%s,security_model=none,readonly=on,multidevs=remap", tag, escaped);
	add(c, "-device");
	add(c, "virtio-9p-pci,fsdev=%s,mount_tag=%s", tag, tag);
}

static void add_disk(struct qemu_command *c, const char *home) {
	char path[QEMU_PATH_MAX], escaped[2 * QEMU_PATH_MAX];
	snprintf(path, sizeof(path), "%s/machine/state.ext4", home);
	escape(path, escaped);
	add(c, "-drive");
	add(c, "if=none,id=state,format=raw,cache=writeback,discard=unmap,detect-zeroes=off,aio=threads,file=%s", escaped);
	add(c, "-device");
	add(c, "virtio-blk-pci,drive=state,serial=state");
}

static void add_network(struct qemu_command *c, const struct machine_options *o) {
	add(c, "-netdev");
	add(c,
	    "user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:%u-10.0.2.15:%u,hostfwd=tcp:127.0.0.1:%u-10.0.2.15:%u,hostfwd=tcp:127.0.0.1:%u-10."
	    "0.2.15:%u",
	    o->api_port, o->guest_api_port, o->artifacts_port, o->guest_artifacts_port, o->edge_port, o->guest_edge_port);
	add(c, "-device");
	add(c, "virtio-net-pci,netdev=net,romfile=");
}

static void add_sockets(struct qemu_command *c, const char *home) {
	char escaped[2 * QEMU_PATH_MAX];
	escape(home, escaped);
	add(c, "-qmp");
	add(c, "unix:%s/machine/qmp.sock,server=on,wait=off", escaped);
	add(c, "-chardev");
	add(c, "socket,id=exec,path=%s/machine/exec.sock,server=on,wait=off", escaped);
	add(c, "-device");
	add(c, "virtio-serial-pci");
	add(c, "-device");
	add(c, "virtserialport,chardev=exec,name=" EXEC_PORT_NAME);
	add(c, "-chardev");
	add(c, "stdio,id=console,signal=off");
	add(c, "-serial");
	add(c, "chardev:console");
}

static void add_kernel(struct qemu_command *c, const struct machine_options *o, const char *kernel, const char *initrd) {
	uid_t uid = getuid();
	char user[48] = "", pool[48] = "";
	if (uid != 0)
		snprintf(user, sizeof(user), " stasis.uid=%u", (unsigned)uid);
	if (o->pool != 0)
		snprintf(pool, sizeof(pool), " stasis.pool=%u", o->pool);
	add(c, "-kernel");
	add(c, "%s", kernel);
	add(c, "-initrd");
	add(c, "%s", initrd);
	add(c, "-append");
	add(c, "%s%s%s", KERNEL_COMMAND, user, pool);
}

int qemu_command_build(const struct machine_options *o, const char *qemu, const char *kernel, const char *initrd, struct qemu_command *ret,
		       struct error *e) {
	static const char *const fixed[] = {
		"-M",
		"q35",
		"-accel",
		"tcg,thread=multi",
		"-cpu",
		cpu,
		"-nodefaults",
		"-no-user-config",
		"-no-reboot",
		"-display",
		"none",
		"-sandbox",
		"on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-device",
		"virtio-rng-pci",
	};
	char config[QEMU_PATH_MAX];
	*ret = (struct qemu_command){.count = 0};
	snprintf(config, sizeof(config), "%s/engine", o->home);
	add(ret, "%s", qemu);
	add(ret, "-name");
	add(ret, "stasis-machine");
	for (size_t i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++)
		add(ret, "%s", fixed[i]);
	add(ret, "-smp");
	add(ret, "%u", o->cpus);
	add(ret, "-m");
	add(ret, "%u", o->memory_mib);
	add_kernel(ret, o, kernel, initrd);
	add_export(ret, "usr", "/usr");
	add_export(ret, "program", o->program);
	add_export(ret, "config", config);
	add_disk(ret, o->home);
	add_network(ret, o);
	add_sockets(ret, o->home);
	if (!ret->overflow)
		return 0;
	qemu_command_free(ret);
	return error_set(e, -ENOMEM, "out of memory");
}

void qemu_command_free(struct qemu_command *c) {
	for (size_t i = 0; i < c->count; i++)
		free(c->argv[i]);
	*c = (struct qemu_command){.count = 0};
}

int find_executable(const char *name, char *to, size_t size) {
	const char *path = getenv("PATH");
	char folders[4096];
	snprintf(folders, sizeof(folders), "%s:/usr/bin:/usr/sbin:/sbin", path != NULL ? path : "");
	char *rest = NULL;
	for (char *folder = strtok_r(folders, ":", &rest); folder != NULL; folder = strtok_r(NULL, ":", &rest)) {
		struct stat st;
		if (folder[0] == '/' && snprintf(to, size, "%s/%s", folder, name) < (int)size && stat(to, &st) == 0 &&
		    S_ISREG(st.st_mode) && access(to, X_OK) == 0)
			return 0;
	}
	return -ENOENT;
}

int qemu_find(char *to, struct error *e) {
	if (find_executable("qemu-system-x86_64", to, QEMU_PATH_MAX) == 0)
		return 0;
	return error_set(e, -ENOENT,
			 "qemu-system-x86_64 is not installed: Stasis needs it on hosts without usable KVM (Debian: `apt-get install "
			 "qemu-system-x86`)");
}

int qemu_major_version(const char *qemu) {
	int out[2];
	if (pipe2(out, O_CLOEXEC) < 0)
		return 0;
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
	char *argv[] = {strdupa(qemu), strdupa("--version"), NULL};
	pid_t pid;
	int r = posix_spawn(&pid, qemu, &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close(out[1]);
	char text[128] = "";
	size_t length = 0;
	ssize_t n;
	while (r == 0 && length < sizeof(text) - 1 && (n = read(out[0], text + length, sizeof(text) - 1 - length)) > 0)
		length += (size_t)n;
	close(out[0]);
	if (r == 0)
		waitpid(pid, NULL, 0);
	const char *number = strstr(text, "version ");
	return number != NULL ? atoi(number + strlen("version ")) : 0;
}

unsigned machine_default_memory(uint64_t available_mib) {
	if (available_mib < MACHINE_MEMORY_LEAST_MIB)
		return 0;
	uint64_t share = available_mib * 6 / 10;
	if (share < MACHINE_MEMORY_LEAST_MIB)
		share = MACHINE_MEMORY_LEAST_MIB;
	return share > MACHINE_MEMORY_MOST_MIB ? MACHINE_MEMORY_MOST_MIB : (unsigned)share;
}
