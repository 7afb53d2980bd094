// The command line of stasis-launch. See options.c.
#pragma once

#include "base/error.h"
#include "launch/launch.h"

#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define OPTIONS_ADDRESSES_MAX 32
#define OPTIONS_ARGUMENTS_MAX 32

struct network {
	uint32_t address; // host byte order, bits below the prefix are zero
	unsigned prefix;
};

#define HOST_NETWORKS_MAX 32
#define HOST_NETWORK_CIDRS_MAX 16

// A network of the host's that connectors lead to; see networks.c.
struct host_network {
	char name[LAUNCH_NETWORK_MAX]; // "subnet-…"
	struct network cidrs[HOST_NETWORK_CIDRS_MAX];
	size_t cidr_count;
	char interface[IFNAMSIZ]; // the only way out; empty: as the host routes
	bool dns;                 // the resolvers may be asked
};

struct options {
	char program[512]; // folder of the programs
	char config[512];  // handed on to stasisd
	char run[64];      // /run/stasis
	char state[256];   // of stasisd; made when it is missing
	char cgroup[256];  // /sys/fs/cgroup/stasis
	uid_t uid;         // of user stasis
	gid_t gid;
	uid_t uid_base;       // uid and gid of the VMM in slot n: this and n
	unsigned pool;        // slots kept ready
	struct network range; // a /30 for each slot
	unsigned slots;       // how many the range and LAUNCH_SLOTS_MAX allow
	uint32_t resolvers[OPTIONS_ADDRESSES_MAX];
	size_t resolver_count;
	struct network closed[OPTIONS_ADDRESSES_MAX];
	size_t closed_count;
	struct host_network networks[HOST_NETWORKS_MAX]; // from the configuration
	size_t network_count;
	char *arguments[OPTIONS_ARGUMENTS_MAX]; // for stasisd, from behind "--"
	size_t argument_count;
};

extern const char options_help[];

// 0, 1 when help was asked for, or a negative errno. `ret` points into argv.
int options_parse(int argc, char **argv, struct options *ret, struct error *e);

// "10.0.2.0/24" or "10.0.2.3" (a /32). Bits below the prefix must be zero.
int network_parse(const char *text, struct network *ret);

// Adds the IPv4 name servers of a resolv.conf's text that are not on loopback.
void options_add_resolvers(struct options *o, const char *resolv_conf);

// Addresses of slot n's two ends: the host's and the one in its namespace.
static inline uint32_t slot_host_address(const struct options *o, unsigned n) {
	return o->range.address + 4 * n + 1;
}
static inline uint32_t slot_inner_address(const struct options *o, unsigned n) {
	return o->range.address + 4 * n + 2;
}
