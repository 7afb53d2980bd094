// The network of one slot. See network.c.
#pragma once

#include "base/error.h"
#include "launch/options.h"

struct slot_network {
	int tap;        // IFF_TAP|IFF_NO_PI|IFF_VNET_HDR
	int routes;     // rtnetlink socket of the namespace: for network_confine()
	unsigned outer; // index of the veth's end on the host
};

// Makes a network namespace with everything in it, and leaves the calling process in it (it is where the VMM is to be started). `host` is
// a descriptor of the host's namespace, `host_routes` an rtnetlink socket in it. On failure nothing stays but the namespace that the
// caller is in, which goes when it leaves.
int network_create(const struct options *o, unsigned number, int host, int host_routes, struct slot_network *ret, struct error *e);

// Takes the way out and leaves ways to these networks (bits by their place in the options; none: nowhere). A slot is made with the way out,
// for most use it, and nothing can use it before the slot is taken.
int network_confine(const struct options *o, unsigned number, int routes, uint32_t networks);

void network_name(unsigned number, char to[16]);
