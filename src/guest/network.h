// Addresses, routes and name servers of the guest.
#pragma once

#include "base/error.h"
#include "guest/request.h"

// Brings the loopback up.
int network_loopback(struct error *e);

// Gives an interface an address and a default route and brings it up. -ENODEV when there is no such interface.
int network_configure(const char *interface, struct in_addr address, unsigned prefix, struct in_addr gateway, struct error *e);

// Adds one address (/32) to an interface, unless it has it.
int network_add_address(const char *interface, struct in_addr address, struct error *e);

// Writes a resolv.conf in place (it may be bound into the container).
int network_write_nameservers(const char *path, const struct network_request *q, struct error *e);
