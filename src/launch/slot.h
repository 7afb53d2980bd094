// Slots: made ahead, used once, removed without a trace.
//
// A slot's folder <run>/vm/<name>/ holds its sockets and, in `slot`, its index and its VMM's pid; `used` marks one that stasisd has taken. From
// these a stasis-launch that was started anew knows the slots of the one before it.
#pragma once

#include "base/error.h"
#include "launch/launch.h"
#include "launch/options.h"
#include "launch/rtnl.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum slot_state { SLOT_FREE, SLOT_READY, SLOT_USED, SLOT_ENDING };

struct slot {
	enum slot_state state;
	bool dead; // its VMM has ended
	bool mine; // its VMM is this process's child
	char name[LAUNCH_VMM_MAX];
	unsigned index;
	pid_t pid;
	int pidfd;         // readable once the VMM has ended
	int wait_status;   // when dead and mine
	uint64_t sequence; // of the END request to answer; 0: none
};

struct slots {
	const struct launch_options *options;
	struct rtnl *rtnl;
	int netns;   // the host's network namespace
	int kvm;     // /dev/kvm
	int program; // stasis-vmm
	char jail_root[256];
	unsigned next; // index to try first: an index rests for a while before it is used again
	struct slot all[LAUNCH_SLOTS_MAX];
};

// Opens what all slots need and adopts the slots of an earlier stasis-launch: used ones go on, others are ended.
int slots_start(struct slots *s, const struct launch_options *o, struct error *e);

// Makes a slot; it is READY.
int slot_make(struct slots *s, struct slot **ret, struct error *e);
// Hands out a READY slot, with the limits and the egress that it shall have.
int slot_use(struct slots *s, struct slot *slot, const struct launch_take *t, struct error *e);
// Kills the VMM. The slot is ENDING until slot_finish() succeeds.
void slot_kill(struct slots *s, struct slot *slot);
// Called when pidfd is readable: reaps.
void slot_reap(struct slot *slot);
// Removes what is left of a slot whose VMM has ended; then it is FREE. Returns false when the kernel is not done yet: try again soon.
bool slot_finish(struct slots *s, struct slot *slot);

struct slot *slot_find(struct slots *s, const char *name);
unsigned slots_count(const struct slots *s, enum slot_state state);
