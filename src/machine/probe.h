// Finds out what /dev/kvm of this host is good for, by running a tiny guest on it.
//
// That /dev/kvm exists proves little: on hosts that are themselves virtual it may run paravirtual guests only (`kvm_pvm` interprets an
// ordinary kernel instruction by instruction, and fails on some). So the probe boots 64-bit code with paging that does what every kernel
// does early: cmpxchg16b, int3 through an IDT and back by iretq, xsave and xrstor, and a loop whose time gives interpreters away.
// It runs in a process of its own, which is killed at the deadline.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define KVM_PROBE_DEADLINE_MS 200
#define KVM_PROBE_SLOW_NS 20000000u // the guest needs well below 1 ms on hardware

enum kvm_probe_state {
	KVM_USABLE,
	KVM_ABSENT,        // no /dev/kvm
	KVM_NO_PERMISSION, // it cannot be opened by this user
	KVM_TOO_OLD,       // API version or a capability is missing
	KVM_PARAVIRTUAL,   // the guest failed: it runs paravirtual guests only, or its emulation is incomplete
	KVM_TOO_SLOW,      // the guest ran, or did not end before the deadline, at an interpreter's speed
	KVM_BROKEN,        // KVM itself refused something
};

struct kvm_probe_result {
	enum kvm_probe_state state;
	uint64_t create_ns; // from opening /dev/kvm until the virtual CPU could run
	uint64_t run_ns;    // the guest, first entry to last exit
	char reason[256];   // one line for people: what was found
	char remedy[256];   // one line for people: what would help; empty when nothing need be done
};

// Fills *ret. Returns 0 whatever the state; a negative errno when the probe itself could not be made (fork, pipe). Takes at most about
// KVM_PROBE_DEADLINE_MS. Forks: to be called before threads are started, or from programs that have none.
int kvm_probe(struct kvm_probe_result *ret);

// The same on another device node (tests).
int kvm_probe_device(const char *path, struct kvm_probe_result *ret);

// "usable", "absent", "no-permission", "too-old", "paravirtual", "too-slow", "broken".
const char *kvm_probe_state_name(enum kvm_probe_state state);

static inline bool kvm_probe_is_usable(const struct kvm_probe_result *r) {
	return r->state == KVM_USABLE;
}
