// The network of one slot. See network.c.
#pragma once

#include "base/error.h"
#include "launch/options.h"

struct slot_network {
	int tap;        // IFF_TAP|IFF_NO_PI|IFF_VNET_HDR
	int routes;     // rtnetlink socket of the namespace: for network_close_egress()
	unsigned outer; // index of the veth's end on the host
};

// Makes a network namespace with everything in it, and leaves the calling process in it (it is where the VMM is to be started). `host` is
// a descriptor of the host's namespace, `host_routes` an rtnetlink socket in it. On failure nothing stays but the namespace that the
// caller is in, which goes when it leaves.
int network_create(const struct options *o, unsigned number, int host, int host_routes, struct slot_network *ret, struct error *e);

// Egress NONE: takes the way out. A slot is made with it, for most use it, and nothing can use it before the slot is taken.
int network_close_egress(int routes);

void network_name(unsigned number, char to[16]);
