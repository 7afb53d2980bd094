// The other ends of stasisd's sockets, for tests of the lifecycle without KVM: a launcher, VMMs and guest agents that speak the real wire
// structures over real sockets, and can be told to fail.
//
// A "guest" has a counter that hooks increase and that its snapshots keep, so that a test sees whether memory came back. Its application answers
// HTTP on every port with a value of its own, which a request for /add increases and which lies in memory and on the disk: after a restore from
// files that are not of the same moment it is -1 for ever.
#pragma once

#include "launch/launch.h"
#include "vmm/control.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct peers;

struct peers *peers_start(const char *run_folder, int *ret_launcher_fd); // the descriptor is for launcher_open()
void peers_stop(struct peers *p);
// A new connection to the launcher, as a new stasisd gets it; the slots stay.
int peers_reconnect(struct peers *p);

unsigned peers_slots(struct peers *p); // that live
// The counter of the newest living guest, -1: none lives.
int peers_counter(struct peers *p);

// What is to go wrong. Each counts down with every use; 0: nothing.
enum fault {
	FAULT_TAKE,          // stasis-launch refuses
	FAULT_RESTORE,       // the VMM refuses
	FAULT_SNAPSHOT,      // the VMM refuses: disk full
	FAULT_DIE_IN_PAUSE,  // the VMM's connection breaks in the middle of VMM_PAUSE
	FAULT_DIE_IN_RESUME, // the VMM ends when the agent is told to resume
	FAULT_FREEZE,        // the agent refuses
	FAULT_AGENT_MUTE,    // the agent breaks the connection off instead of answering a resume
	FAULTS,
};
void peers_fail(struct peers *p, enum fault f, int times);
void peers_hook_status(struct peers *p, const char *hook, int status); // "" for all; 200 at first
void peers_hook_delay(struct peers *p, int milliseconds);
int peers_hook_calls(struct peers *p, const char *hook);

// How many times guests were given credentials, and what was given last: a new reference, or NULL.
int peers_credentials(struct peers *p, json_t **ret_last);

// For how long guests say that they have not been busy; -1, as at first: their agents are older and do not know.
void peers_idle(struct peers *p, int milliseconds);

// Things that happen by themselves, to all living guests.
void peers_guests_power_off(struct peers *p);
void peers_applications_exit(struct peers *p, int exit_code);
void peers_ask_for_suspend(struct peers *p);         // the applications do
void peers_write(struct peers *p, const char *text); // the applications write a line
void peers_kill_vmms(struct peers *p);               // all slots vanish, as after a reboot of the host
void peers_kill_newest_vmm(struct peers *p);
