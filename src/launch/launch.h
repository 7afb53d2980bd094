// What stasisd asks of stasis-launch: the messages of their SOCK_SEQPACKET pair. Fixed size, closed set; each is checked, whoever sends.
//
// stasis-launch keeps, per slot: network namespace, tap, veth, firewall, cgroup, jail, uid, and a VMM process that waits. stasisd finds
// the sockets of a slot at `<run>/vm/<vmm>/control.sock` and `vsock.sock`.
#pragma once

#include <stdint.h>

#define LAUNCH_MAGIC 0x4e4c5453u // "STLN"
#define LAUNCH_VMM_MAX 40        // UUID text and NUL, padded
#define LAUNCH_TEXT_MAX 512
#define LAUNCH_SLOTS_MAX 4096
#define LAUNCH_STASISD_FD 3    // stasisd's end of the pair
#define LAUNCH_NETWORKS_MAX 16 // of one microVM: as many as a connector has subnets (spec section 7.3)
#define LAUNCH_NETWORK_MAX 48  // a network's name and NUL

// The guest's link-layer address; its IP address and its gateway's are in guest/guest.h. The slot lets nothing else pass.
#define LAUNCH_GUEST_MAC \
	{ 0x02, 0x53, 0x54, 0x00, 0x00, 0x02 }
// Its gateway's, the tap's: the same in every slot, so that what a guest knows of it stays true in copies and after a sleep.
#define LAUNCH_GATEWAY_MAC \
	{ 0x02, 0x53, 0x54, 0x00, 0x00, 0x01 }

enum launch_kind {
	LAUNCH_TAKE = 1, // struct launch_take; gives a slot (from the pool, or made now)
	LAUNCH_END = 2,  // struct launch_end; kills the VMM and removes everything of the slot; answered when it is gone. A slot that is
			 // not there (any more) is a success
	LAUNCH_LIST = 3, // struct launch_header; answered by one LAUNCH_LIST reply per taken slot that lives, then one with an empty name
	// struct launch_reply, sequence 0: the VMM process of a taken slot ended by itself; result is its wait status (-1: not known, it
	// was taken over from an earlier stasis-launch). Its slot is removed without being asked.
	LAUNCH_EVENT_ENDED = 0x100,
};

enum launch_egress {
	LAUNCH_EGRESS_NONE = 0,
	LAUNCH_EGRESS_INTERNET = 1, // everything but the host, other microVMs and link-local; DNS to the configured resolvers
};

// What a microVM may reach: nothing or the internet, and besides the named networks. Which addresses these are is in stasis-launch's own
// configuration ("networks"); a name that is not there is refused.
struct egress {
	uint32_t base; // enum launch_egress
	uint32_t network_count;
	char networks[LAUNCH_NETWORKS_MAX][LAUNCH_NETWORK_MAX]; // "subnet-…"
};

struct launch_header {
	uint32_t magic;
	uint32_t kind;
	uint64_t sequence;
};

struct launch_take {
	struct launch_header header;
	uint64_t memory_bytes; // guest memory; the cgroup's limit is this and an allowance
	uint32_t vcpus;        // CPU limit: that many CPUs
	struct egress egress;
};

struct launch_end {
	struct launch_header header;
	char vmm[LAUNCH_VMM_MAX];
};

struct launch_reply {
	struct launch_header header; // of the request
	int32_t result;              // 0 or a negative errno
	uint32_t pid;
	char vmm[LAUNCH_VMM_MAX]; // the slot's name
	char text[LAUNCH_TEXT_MAX];
};
