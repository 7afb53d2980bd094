// The making and the end of slots; see slot.h.
#include "launch/slot.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "base/uuid.h"
#include "launch/cgroup.h"
#include "launch/firewall.h"
#include "launch/jail.h"
#include "launch/network.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATH_ROOM 512
#define UID_BASE 200000u         // slot i runs as UID_BASE + i; above what distributions give to users and containers by default
#define ALLOWANCE (128ull << 20) // of memory besides the guest's: the VMM, its kernel memory, cached pages of its disks
#define BACKLOG 256

static void slot_path(const struct slots *s, const char *name, const char *file, char to[PATH_ROOM]) {
	snprintf(to, PATH_ROOM, "%s/vm/%s%s%s", s->options->run, name, file[0] != '\0' ? "/" : "", file);
}

static int open_socket(const struct slots *s, const char *name, const char *file, int type, struct error *e) {
	char path[PATH_ROOM];
	slot_path(s, name, file, path);
	cleanup_close int fd = unix_listen(path, type | SOCK_NONBLOCK, BACKLOG, e);
	if (fd < 0)
		return fd;
	if (chown(path, 0, s->options->gid) < 0 || chmod(path, 0660) < 0)
		return error_errno(e, "cannot set the owner of %s", path);
	return take_fd(&fd);
}

static int make_folder(const struct slots *s, const char *name, struct error *e) {
	char path[PATH_ROOM];
	slot_path(s, name, "", path);
	if (mkdir(path, 0750) < 0 || chown(path, 0, s->options->gid) < 0 || chmod(path, 0750) < 0)
		return error_errno(e, "cannot create %s", path);
	return 0;
}

static void remove_folder(const struct slots *s, const char *name) {
	char path[PATH_ROOM];
	struct error e;
	slot_path(s, name, "", path);
	if (remove_tree(path, &e) < 0)
		log_error("slot.remove", LOG_S("vmm", name), LOG_S("error", e.message));
}

static int write_note(const struct slots *s, const struct slot *slot, struct error *e) {
	char path[PATH_ROOM], text[64];
	slot_path(s, slot->name, "slot", path);
	int n = snprintf(text, sizeof(text), "%u %d\n", slot->index, (int)slot->pid);
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, text, (size_t)n) != n)
		return error_errno(e, "cannot write %s", path);
	return 0;
}

static struct slot *free_slot(struct slots *s) {
	for (unsigned i = 0; i < LAUNCH_SLOTS_MAX; i++) {
		unsigned index = (s->next + i) % LAUNCH_SLOTS_MAX;
		if (s->all[index].state == SLOT_FREE) {
			s->next = (index + 1) % LAUNCH_SLOTS_MAX;
			s->all[index] = (struct slot){.index = index, .pidfd = -1};
			return &s->all[index];
		}
	}
	return NULL;
}

static int start_vmm(struct slots *s, struct slot *slot, struct error *e) {
	cleanup_close int control = -1, vsock = -1, cgroup = -1, tap = -1, netns = -1;
	control = open_socket(s, slot->name, "control.sock", SOCK_SEQPACKET, e);
	if (control < 0)
		return control;
	vsock = open_socket(s, slot->name, "vsock.sock", SOCK_STREAM, e);
	if (vsock < 0)
		return vsock;
	cgroup = cgroup_make(slot->name, e);
	if (cgroup < 0)
		return cgroup;
	int r = network_make(s->options, s->rtnl, s->netns, slot->index, &netns, &tap, e);
	if (r < 0)
		return r;
	struct jail j = {.program = s->program,
			 .control = control,
			 .vsock = vsock,
			 .kvm = s->kvm,
			 .tap = tap,
			 .netns = netns,
			 .cgroup = cgroup,
			 .uid = UID_BASE + slot->index,
			 .root = s->jail_root};
	slot->pid = jail_start(&j, &slot->pidfd, e);
	if (slot->pid < 0)
		return (int)slot->pid;
	slot->mine = true;
	return write_note(s, slot, e);
}

// What is left of a slot of which nothing runs any more. Returns false while the kernel still holds its group.
static bool remove_rest(struct slots *s, struct slot *slot) {
	if (cgroup_remove(slot->name) == -EBUSY)
		return false;
	network_remove(s->rtnl, slot->index);
	remove_folder(s, slot->name);
	if (slot->pidfd >= 0)
		close(slot->pidfd);
	*slot = (struct slot){.pidfd = -1};
	return true;
}

int slot_make(struct slots *s, struct slot **ret, struct error *e) {
	struct slot *slot = free_slot(s);
	if (slot == NULL)
		return error_set(e, -ENOSPC, "all %d slots are in use", LAUNCH_SLOTS_MAX);
	uuid_new(slot->name);
	int r = make_folder(s, slot->name, e);
	if (r == 0)
		r = start_vmm(s, slot, e);
	if (r < 0) {
		if (slot->pid > 0)
			slot_kill(s, slot);
		else
			remove_rest(s, slot);
		return r;
	}
	slot->state = SLOT_READY;
	*ret = slot;
	return 0;
}

int slot_use(struct slots *s, struct slot *slot, const struct launch_take *t, struct error *e) {
	char path[PATH_ROOM];
	int r = cgroup_limit(slot->name, t->memory_bytes + ALLOWANCE, t->vcpus, e);
	if (r == 0 && t->egress == LAUNCH_EGRESS_INTERNET)
		r = network_open(s->rtnl, slot->index, true, e);
	if (r < 0)
		return r;
	slot_path(s, slot->name, "used", path);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(e, "cannot create %s", path);
	close(fd);
	slot->state = SLOT_USED;
	return 0;
}

void slot_kill(struct slots *s, struct slot *slot) {
	slot->state = SLOT_ENDING;
	int r = cgroup_kill(slot->name);
	if (r < 0 && !slot->dead)
		pidfd_send_signal(slot->pidfd, SIGKILL, NULL, 0);
}

void slot_reap(struct slot *slot) {
	int status;
	if (slot->mine && waitpid(slot->pid, &status, WNOHANG) == slot->pid)
		slot->wait_status = status;
	slot->dead = true;
}

bool slot_finish(struct slots *s, struct slot *slot) {
	return remove_rest(s, slot);
}

struct slot *slot_find(struct slots *s, const char *name) {
	for (unsigned i = 0; i < LAUNCH_SLOTS_MAX; i++)
		if (s->all[i].state != SLOT_FREE && strcmp(s->all[i].name, name) == 0)
			return &s->all[i];
	return NULL;
}

unsigned slots_count(const struct slots *s, enum slot_state state) {
	unsigned n = 0;
	for (unsigned i = 0; i < LAUNCH_SLOTS_MAX; i++)
		n += s->all[i].state == state;
	return n;
}

// A folder of an earlier stasis-launch. One that cannot be understood, or whose VMM has ended, is removed.
static void adopt(struct slots *s, const char *name) {
	char path[PATH_ROOM];
	cleanup_free char *note = NULL;
	unsigned index;
	int pid;
	slot_path(s, name, "slot", path);
	bool known = read_file(path, 64, &note, NULL, NULL) == 0 && sscanf(note, "%u %d", &index, &pid) == 2 && index < LAUNCH_SLOTS_MAX &&
		     s->all[index].state == SLOT_FREE && cgroup_is_populated(name);
	int pidfd = known ? pidfd_open(pid, 0) : -1;
	if (pidfd < 0) {
		cgroup_kill(name);
		for (int i = 0; i < 100 && cgroup_remove(name) == -EBUSY; i++)
			usleep(10000);
		remove_folder(s, name);
		return;
	}
	struct slot *slot = &s->all[index];
	*slot = (struct slot){.index = index, .pid = pid, .pidfd = pidfd, .state = SLOT_USED};
	memcpy(slot->name, name, UUID_TEXT);
	slot_path(s, name, "used", path);
	if (access(path, F_OK) < 0)
		slot_kill(s, slot);
	log_info("slot.adopted", LOG_S("vmm", name), LOG_U("pid", pid), LOG_S("state", slot->state == SLOT_USED ? "used" : "ending"));
}

static int make_run_folders(struct slots *s, struct error *e) {
	const struct launch_options *o = s->options;
	char path[PATH_ROOM];
	int r = make_folders(o->run, 0711, e);
	snprintf(path, sizeof(path), "%s/vm", o->run);
	if (r == 0)
		r = make_folders(path, 0711, e);
	snprintf(s->jail_root, sizeof(s->jail_root), "%s/jail", o->run);
	if (r == 0)
		r = make_folders(s->jail_root, 0500, e);
	return r;
}

int slots_start(struct slots *s, const struct launch_options *o, struct error *e) {
	char path[PATH_ROOM];
	*s = (struct slots){.options = o};
	for (unsigned i = 0; i < LAUNCH_SLOTS_MAX; i++)
		s->all[i].pidfd = -1;
	snprintf(path, sizeof(path), "%s/stasis-vmm", o->program);
	if ((s->program = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		return error_errno(e, "cannot open %s", path);
	if ((s->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)) < 0)
		return error_errno(e, "cannot open /dev/kvm ('stasis doctor' says why)");
	if ((s->netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) < 0)
		return error_errno(e, "cannot open the network namespace");
	int r = rtnl_open(&s->rtnl, e);
	if (r == 0)
		r = cgroup_start(e);
	if (r == 0)
		r = firewall_host(o, e);
	if (r == 0)
		r = make_run_folders(s, e);
	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "%s/vm", o->run);
	cleanup_dir DIR *d = opendir(path);
	for (struct dirent *entry; d != NULL && (entry = readdir(d)) != NULL;)
		if (uuid_is_valid(entry->d_name))
			adopt(s, entry->d_name);
	return 0;
}
