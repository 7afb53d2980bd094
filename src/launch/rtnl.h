// Links, addresses and routes over rtnetlink (libmnl): what a slot's network namespace is made of. Every call works in the network namespace in
// which its socket was opened.
#pragma once

#include "base/error.h"

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

struct rtnl;

int rtnl_open(struct rtnl **ret, struct error *e);
void rtnl_close(struct rtnl *r);

// A veth pair: `name` here, `peer` in the network namespace `peer_netns`.
int rtnl_add_veth(struct rtnl *r, const char *name, const char *peer, int peer_netns, struct error *e);
int rtnl_set_up(struct rtnl *r, const char *name, bool up, struct error *e);
// `address` in network byte order.
int rtnl_add_address(struct rtnl *r, const char *name, uint32_t address, uint8_t prefix, struct error *e);
int rtnl_add_default_route(struct rtnl *r, uint32_t gateway, struct error *e);
// Permanent neighbour entry: nobody can claim the address by ARP.
int rtnl_add_neighbour(struct rtnl *r, const char *name, uint32_t address, const uint8_t mac[6], struct error *e);
// A missing link is fine.
int rtnl_delete_link(struct rtnl *r, const char *name, struct error *e);
