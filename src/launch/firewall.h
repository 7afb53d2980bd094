// The packet filter (nftables): one table on the host, one in each slot's network namespace. See firewall.c and docs/isolation.md.
#pragma once

#include "base/error.h"
#include "launch/options.h"

#define FIREWALL_TABLE "stasis"
#define FIREWALL_OUTER "stasis-" // veth ends on the host: this and the slot's number
#define FIREWALL_INNER "up0"
#define FIREWALL_TAP "tap0"

// Writes the host's rules into text. Returns their length, or -E2BIG.
int firewall_host_rules(const struct options *o, char *text, size_t size);

// Replaces the host's table, at once.
int firewall_host(const struct options *o, struct error *e);

void firewall_remove_host(void);

// Makes the table in the network namespace that the caller is in.
int firewall_slot(struct error *e);
