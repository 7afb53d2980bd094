// A slot's network: a namespace of its own with the guest's tap and a link to the host.
#pragma once

#include "base/error.h"
#include "launch/options.h"

struct rtnl;

// Makes a network namespace. The host's end of its link is `stv<index>`, addressed from o->range and closed until network_open(). `host` is a rtnl
// socket of the host's namespace, where the caller is and stays. *ret_netns: the namespace, for the VMM to enter; *ret_tap: the tap. The
// namespace goes when nobody holds it any more.
int network_make(const struct launch_options *o, struct rtnl *host, int host_netns, unsigned index, int *ret_netns, int *ret_tap,
		 struct error *e);

// Lets packets of the slot through to the host's forwarding, or not.
int network_open(struct rtnl *host, unsigned index, bool open, struct error *e);

// Removes what the end of the namespace has not removed yet.
void network_remove(struct rtnl *host, unsigned index);
