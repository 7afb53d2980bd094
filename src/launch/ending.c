// The end of a slot: everything in its cgroup is killed; the kernel takes down the process (up to 20 ms for a virtual machine), and then
// the network namespace, which nothing holds any more, with the veth's two ends. What is left to do is done as the events come: the
// process reaped when its pidfd says so, cgroup and folder removed, the number free again when the link has gone. Nobody waits for any of
// it but who asked for the end.
#include "launch/launcher.h"

#include "base/clock.h"
#include "base/log.h"
#include "launch/cgroup.h"
#include "launch/netlink.h"
#include "launch/network.h"
#include "launch/record.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define REMOVE_LINK_AFTER_MS 1000 // longer than the kernel ever takes when nothing holds the namespace

static void close_fd(int *fd) {
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

// The next microVM with this number has its address: it must not inherit the networks. While that fails, the number is not free.
static bool leave_networks(struct launcher *l, unsigned number) {
	struct slot *slot = &l->slots.at[number];
	const struct firewall_member member = slot_member(l, number);
	struct error e;
	if ((slot->networks != 0 || slot->confined) && firewall_leave(&member, &e) < 0) {
		log_error("launch.networks", LOG_S("vmm", slot->vmm), LOG_S("message", e.message));
		return false;
	}
	slot->networks = 0;
	slot->confined = false;
	return true;
}

static void finish(struct launcher *l, unsigned number) {
	struct slot *slot = &l->slots.at[number];
	if (slot->pidfd >= 0 || slot->cgroup || slot->folder || slot->outer != 0)
		return;
	if (!leave_networks(l, number))
		return;
	struct launch_header to = {.kind = LAUNCH_END, .sequence = slot->end_sequence};
	char vmm[LAUNCH_VMM_MAX];
	bool answer = slot->answer_end;
	memcpy(vmm, slot->vmm, sizeof(vmm));
	log_info("launch.ended", LOG_S("vmm", vmm), LOG_U("slot", number), LOG_U("ms", monotonic_ms() - slot->ending_since_ms));
	close_fd(&slot->log);
	slot_set_state(&l->slots, number, SLOT_FREE);
	if (answer)
		launcher_reply(l, &to, 0, 0, vmm, "");
}

static void remove_files(struct launcher *l, unsigned number) {
	struct slot *slot = &l->slots.at[number];
	if (slot->pidfd >= 0)
		return;
	if (slot->cgroup)
		slot->cgroup = cgroup_remove(l->options.cgroup, slot->vmm) < 0;
	if (slot->folder) {
		record_remove_folder(l->options.run, slot->vmm);
		slot->folder = false;
	}
}

void slot_end(struct launcher *l, unsigned number) {
	struct slot *slot = &l->slots.at[number];
	if (slot->state == SLOT_ENDING)
		return;
	slot_set_state(&l->slots, number, SLOT_ENDING);
	slot->ending_since_ms = monotonic_ms();
	close_fd(&slot->routes);
	if (cgroup_kill(l->options.cgroup, slot->vmm) < 0 && slot->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, slot->pidfd, SIGKILL, NULL, 0);
	remove_files(l, number);
	finish(l, number);
}

void slot_process_ended(struct launcher *l, unsigned number) {
	struct slot *slot = &l->slots.at[number];
	int status = -1;
	// A process that was taken over is not our child: init reaps it.
	if (waitpid(slot->pid, &status, WNOHANG) == 0)
		return;
	close_fd(&slot->pidfd);
	if (slot->state == SLOT_TAKEN) {
		log_warn("launch.vmm_ended", LOG_S("vmm", slot->vmm), LOG_U("pid", slot->pid), LOG_U("status", status));
		launcher_reply(l, &(struct launch_header){.kind = LAUNCH_EVENT_ENDED}, status, (unsigned)slot->pid, slot->vmm, "");
	} else if (slot->state == SLOT_READY) {
		log_error("launch.vmm_ended", LOG_S("vmm", slot->vmm), LOG_S("message", "it died while it waited in the pool"),
			  LOG_U("status", status));
		l->failures++;
		l->fill_after_ms = monotonic_ms() + 1000;
	}
	slot_end(l, number);
	remove_files(l, number);
	finish(l, number);
}

static void link_gone(void *arg, unsigned index) {
	struct launcher *l = arg;
	for (int n = slots_first(&l->slots, SLOT_ENDING, -1); n >= 0; n = slots_first(&l->slots, SLOT_ENDING, n))
		if (l->slots.at[n].outer == index) {
			l->slots.at[n].outer = 0;
			finish(l, (unsigned)n);
			return;
		}
}

void launcher_links_readable(struct launcher *l) {
	// What a lost notification would have said is found out by launcher_continue_ending().
	netlink_read_gone(l->links, link_gone, l);
}

void launcher_continue_ending(struct launcher *l) {
	uint64_t now = monotonic_ms();
	for (int n = slots_first(&l->slots, SLOT_ENDING, -1); n >= 0; n = slots_first(&l->slots, SLOT_ENDING, n)) {
		struct slot *slot = &l->slots.at[n];
		remove_files(l, (unsigned)n);
		if (slot->pidfd < 0 && slot->outer != 0 && now - slot->ending_since_ms > REMOVE_LINK_AFTER_MS) {
			char name[16];
			network_name((unsigned)n, name);
			int index = netlink_link_index(l->host_routes, name);
			if (index > 0 && (unsigned)index == slot->outer)
				netlink_link_remove(l->host_routes, slot->outer);
			slot->outer = 0;
		}
		finish(l, (unsigned)n);
	}
}
