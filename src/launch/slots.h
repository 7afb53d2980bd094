// The table of slots: which numbers are in use, for what. Bookkeeping alone; nothing in here touches the system. See slots.c.
#pragma once

#include "launch/launch.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum slot_state {
	SLOT_FREE,
	SLOT_MAKING, // ordered from the maker
	SLOT_READY,  // its VMM waits in the pool
	SLOT_TAKEN,
	SLOT_ENDING, // killed, or died; being removed
};

struct slot {
	enum slot_state state;
	char vmm[LAUNCH_VMM_MAX];
	pid_t pid;
	uint64_t started;    // its start time (record.h)
	int pidfd;           // -1: the process has ended (and was reaped, if it was our child)
	int routes;          // of its network namespace; -1: taken over from an earlier stasis-launch
	int log;             // read end of the VMM's standard error
	unsigned lines;      // of its log that were passed on
	unsigned outer;      // link on the host; 0: gone
	uint32_t networks;   // that it is a member of on the host, bits by their place in the options
	bool confined;       // to these
	bool cgroup, folder; // still to be removed
	bool answer_end;     // somebody waits for an answer to LAUNCH_END
	uint64_t end_sequence;
	uint64_t ending_since_ms;
};

struct slots {
	struct slot *at; // `count` of them
	unsigned count;
	unsigned next; // numbers are given out round and round, so that one is not used again at once
	unsigned in_state[SLOT_ENDING + 1];
};

int slots_create(struct slots *s, unsigned count);
void slots_free(struct slots *s);

// A free number, put into SLOT_MAKING with the given name; -1 when there is none.
int slots_reserve(struct slots *s, const char *vmm);

// Claims exactly this number (adoption); -1 when it is out of range or in use.
int slots_claim(struct slots *s, unsigned number, const char *vmm);

void slot_set_state(struct slots *s, unsigned number, enum slot_state state); // SLOT_FREE forgets everything about it

int slots_find(const struct slots *s, const char *vmm); // number in use with that name, or -1
int slots_first(const struct slots *s, enum slot_state state,
		int after); // next number in that state behind `after` (-1: from the start), or -1

// TAKE requests that wait for a slot to be made, in order.
struct takes {
	struct launch_take at[LAUNCH_SLOTS_MAX];
	unsigned first, count;
};

bool takes_push(struct takes *t, const struct launch_take *take);
bool takes_pop(struct takes *t, struct launch_take *ret);

// How many slots should be ordered now: for waiting takes at once, to fill the pool only when it may be.
unsigned slots_wanted(const struct slots *s, unsigned waiting, unsigned pool, bool may_fill);
