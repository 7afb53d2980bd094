// The packet filter (nftables): one table on the host, one in each slot's network namespace. See firewall.c and docs/isolation.md.
#pragma once

#include "base/error.h"
#include "launch/options.h"

#define FIREWALL_TABLE "stasis"
#define FIREWALL_OUTER "stasis-" // veth ends on the host: this and the slot's number
#define FIREWALL_INNER "up0"
#define FIREWALL_TAP "tap0"

// A slot whose microVM has networks.
struct firewall_member {
	uint32_t address;  // of the slot's inner end
	uint32_t networks; // bits by their place in the options
	bool confined;     // to them: it reaches nothing else
};

struct firewall_members {
	const struct firewall_member *at;
	size_t count;
};

// The host's rules as text, which the caller frees; NULL when out of memory.
char *firewall_host_rules(const struct options *o, const struct firewall_members *members);

// Replaces the host's table, at once.
int firewall_host(const struct options *o, const struct firewall_members *members, struct error *e);

// Both in one transaction; leaving what one is not in is no error.
int firewall_join(const struct firewall_member *m, struct error *e);
int firewall_leave(const struct firewall_member *m, struct error *e);

void firewall_remove_host(void);

// Makes the table in the network namespace that the caller is in.
int firewall_slot(struct error *e);
