// Addresses, routes and name servers of the guest.
#pragma once

#include "base/error.h"
#include "guest/request.h"

// Brings the loopback up.
int network_loopback(struct error *e);

// Gives an interface an address and a default route and brings it up. -ENODEV when there is no such interface.
int network_configure(const char *interface, struct in_addr address, unsigned prefix, struct in_addr gateway, struct error *e);

// A network namespace of the agent's own, joined to the guest's by a pair of virtual interfaces. What the agent serves to the guest's programs
// listens there, so that it takes no port from them: one that listens on all addresses at port 80 must still be able to.
struct network_side {
	int home_fd, side_fd; // the two namespaces
};
#define NETWORK_SIDE_INTERFACE "stasis0"             // the guest's end
#define NETWORK_SIDE_GUEST_ADDRESS "169.254.169.249" // and its address, in a network of
#define NETWORK_SIDE_PREFIX 29

// Makes it, with these addresses at the agent's end. Must be called while this is the process's only thread.
int network_side_make(struct network_side *n, const struct in_addr *addresses, size_t count, struct error *e);
// A TCP socket that is there. Returns the descriptor, or -1 with errno set.
int network_side_socket(const struct network_side *n);

// Writes a resolv.conf in place (it may be bound into the container).
int network_write_nameservers(const char *path, const struct network_request *q, struct error *e);
