// The maker: a process of stasis-launch that makes slots, one after the other, so that its main loop never waits. See maker.c.
#pragma once

#include "base/error.h"
#include "launch/launch.h"
#include "launch/options.h"

struct make_order {
	uint32_t number;
	char vmm[LAUNCH_VMM_MAX];
};

enum make_stage { MAKE_SOCKETS, MAKE_NETWORK, MAKE_VMM, MAKE_STAGES };

struct make_result {
	uint32_t number;
	int32_t result;
	int32_t pid;
	uint32_t outer; // index of the veth's end on the host; 0: not made
	uint64_t ns[MAKE_STAGES];
	char vmm[LAUNCH_VMM_MAX];
	char text[LAUNCH_TEXT_MAX];
};

// Descriptors that come with a good result.
enum make_fd { MAKE_FD_PIDFD, MAKE_FD_ROUTES, MAKE_FD_LOG, MAKE_FDS };

// Starts it. *ret_sock gets this side of a SOCK_SEQPACKET pair: orders in, results out, in the same order. Returns its pid. It ends when
// the pair is closed.
pid_t maker_start(const struct options *o, int *ret_sock, struct error *e);
