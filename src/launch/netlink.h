// Links, addresses, routes and neighbours by rtnetlink. See netlink.c.
//
// Every call is one request, answered before it returns: 0 or a negative errno. `sock` decides about the network namespace: the one in
// which it was made. Addresses are in host byte order.
#pragma once

#include <stdint.h>

int netlink_open(uint32_t groups); // descriptor; RTMGRP_LINK to be told of links that go

// A veth pair: `inner` in the socket's namespace, `outer` in that of the descriptor.
int netlink_add_veth(int sock, const char *inner, const char *outer, int outer_namespace);
int netlink_link_index(int sock, const char *name); // positive, or a negative errno (-ENODEV)
int netlink_link_up(int sock, unsigned index);
int netlink_link_set_mac(int sock, unsigned index, const uint8_t mac[6]);
int netlink_link_remove(int sock, unsigned index);
int netlink_strict_reverse_path(int sock, unsigned index); // rp_filter = 1
int netlink_add_address(int sock, unsigned index, uint32_t address, unsigned prefix);
int netlink_add_route(int sock, uint32_t address, unsigned prefix, uint32_t gateway); // -EEXIST: there is one already
int netlink_remove_default_route(int sock);
int netlink_add_neighbour(int sock, unsigned index, uint32_t address, const uint8_t mac[6]);

// Reads one batch of notifications from a socket with RTMGRP_LINK; calls `gone` with the index of every link that was removed. Returns 0,
// or -ENOBUFS when notifications were lost.
int netlink_read_gone(int sock, void (*gone)(void *arg, unsigned index), void *arg);
