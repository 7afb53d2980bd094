// The firewall (nftables): one table for the host, one, always the same, for each slot's network namespace.
#pragma once

#include "base/error.h"
#include "launch/options.h"

#define LINK_PREFIX "stv" // host ends of the slots' links: stv<index>
#define UPLINK_NAME "up0" // the other end, in the slot's network namespace
#define TAP_NAME "tap0"

// Replaces the host's table `stasis`: nothing from a slot reaches the host, another slot, a link-local or a closed network; DNS goes to the
// resolvers; everything else is masqueraded on its way out. Nothing that a microVM did not ask for reaches it.
int firewall_host(const struct launch_options *o, struct error *e);
void firewall_remove_host(void);

// The table of the network namespace that the caller is in: only the guest's own address passes, masqueraded to the uplink's.
int firewall_slot(struct error *e);
