// After a crash of stasis-launch its VMMs live on. The next one finds them by their folders below <run>/vm: a slot whose record names a
// process that is the one it says (pid and start time agree, and it is in the slot's cgroup) and was taken is taken over as it is.
// Everything else, slots of the pool included, is ended and removed, so that afterwards there is nothing on the host that the table does
// not know.
#include "launch/launcher.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/uuid.h"
#include "launch/cgroup.h"
#include "launch/netlink.h"
#include "launch/network.h"
#include "launch/networks.h"
#include "launch/record.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REMOVE_TRIES 200
#define REMOVE_PAUSE_US 10000

// Kills what is in the cgroup and waits (up to 2 s: this is before the loop) until it is gone.
static void remove_cgroup(void *arg, const char *vmm) {
	struct launcher *l = arg;
	if (slots_find(&l->slots, vmm) >= 0)
		return;
	log_info("launch.orphan", LOG_S("vmm", vmm), LOG_S("message", "removed"));
	cgroup_kill(l->options.cgroup, vmm);
	for (int i = 0; i < REMOVE_TRIES && cgroup_remove(l->options.cgroup, vmm) < 0; i++)
		usleep(REMOVE_PAUSE_US);
}

// A network that the configuration no longer has is no longer reached.
static void recall_networks(struct launcher *l, struct slot *slot, const struct egress *g) {
	struct error e;
	for (uint32_t i = 0; i < g->network_count; i++) {
		struct egress one = {.network_count = 1};
		uint32_t bit;
		memcpy(one.networks[0], g->networks[i], LAUNCH_NETWORK_MAX);
		if (networks_find(&l->options, &one, &bit, &e) == 0)
			slot->networks |= bit;
		else
			log_warn("launch.networks", LOG_S("vmm", slot->vmm), LOG_S("message", e.message));
	}
	slot->confined = g->network_count > 0 && g->base == LAUNCH_EGRESS_NONE;
}

static bool adopt(struct launcher *l, const char *vmm) {
	struct record r;
	if (record_read(l->options.run, vmm, &r) < 0 || !r.taken)
		return false;
	cleanup_close int pidfd = (int)syscall(SYS_pidfd_open, r.pid, 0);
	// The order matters: what the pidfd holds can no longer be replaced by another process with this pid.
	if (pidfd < 0 || process_started(r.pid) != r.started || !cgroup_has(l->options.cgroup, vmm, r.pid))
		return false;
	int number = slots_claim(&l->slots, r.number, vmm);
	if (number < 0)
		return false;
	char name[16];
	network_name((unsigned)number, name);
	int outer = netlink_link_index(l->host_routes, name);
	struct slot *slot = &l->slots.at[number];
	slot->pid = r.pid;
	slot->started = r.started;
	slot->pidfd = take_fd(&pidfd);
	slot->outer = outer > 0 ? (unsigned)outer : 0;
	slot->cgroup = true;
	slot->folder = true;
	recall_networks(l, slot, &r.egress);
	slot_set_state(&l->slots, (unsigned)number, SLOT_TAKEN);
	launcher_watch(l, slot->pidfd, WATCH_PIDFD, (unsigned)number, EPOLLIN);
	log_info("launch.adopted", LOG_S("vmm", vmm), LOG_U("pid", r.pid), LOG_U("slot", number));
	return true;
}

void launcher_adopt(struct launcher *l) {
	char path[128];
	snprintf(path, sizeof(path), "%.100s/vm", l->options.run);
	cleanup_dir DIR *d = opendir(path);
	struct dirent *entry;
	while (d != NULL && (entry = readdir(d)) != NULL) {
		if (!uuid_is_valid(entry->d_name) || adopt(l, entry->d_name))
			continue;
		remove_cgroup(l, entry->d_name);
		record_remove_folder(l->options.run, entry->d_name);
	}
	cgroup_list(l->options.cgroup, remove_cgroup, l);
	// Links whose namespaces something still holds.
	for (unsigned n = 0; n < l->slots.count; n++) {
		char name[16];
		if (l->slots.at[n].state != SLOT_FREE)
			continue;
		network_name(n, name);
		int index = netlink_link_index(l->host_routes, name);
		if (index > 0)
			netlink_link_remove(l->host_routes, (unsigned)index);
	}
}
