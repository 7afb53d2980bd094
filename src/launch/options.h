// What stasis-launch is told on its command line.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define LIST_MAX 16     // resolvers, closed networks
#define NETWORK_TEXT 24 // "255.255.255.255/32"

struct network {
	uint32_t address; // host byte order
	uint8_t prefix;
};

struct launch_options {
	const char *program; // folder with stasisd and stasis-vmm
	const char *config;  // stasisd's configuration file
	const char *run;     // /run/stasis
	const char *state;   // /var/lib/stasis: made, and given to the user, when it is missing
	uid_t uid;           // stasisd's user and group
	gid_t gid;
	unsigned pool;                // slots that are kept ready
	struct network range;         // addresses of the slots' links: four each
	uint32_t resolvers[LIST_MAX]; // where DNS may go; host byte order
	unsigned resolver_count;
	struct network closed[LIST_MAX]; // networks that microVMs may not reach, besides those that they never may
	unsigned closed_count;
};

// Parses the command line; prints help and mistakes on standard error. Returns 0, or the exit code to end with (1: after --help 0).
int options_read(int argc, char **argv, struct launch_options *ret, bool *ret_done);

// "10.0.2.0/24" or "10.0.2.3" (prefix 32). Bits behind the prefix must be zero.
int network_parse(const char *text, struct network *ret);
