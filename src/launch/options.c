// The command line of stasis-launch: the only configuration that it has.
#include "launch/options.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "launch/launch.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UID_BASE_DEFAULT 2000000000u // beyond users, containers and what systemd gives out

const char options_help[] =
	"usage: stasis-launch --program FOLDER --config FILE [options] [-- arguments of stasisd]\n"
	"\n"
	"Starts stasisd as an unprivileged user and, for it, VMMs in jails. Needs root and cgroup v2.\n"
	"\n"
	"  --program FOLDER   where stasisd and stasis-vmm lie\n"
	"  --config FILE      handed on to stasisd\n"
	"  --user NAME|UID    whom stasisd runs as (default: stasis)\n"
	"  --pool N           slots kept ready (default: 4)\n"
	"  --range CIDR       addresses between the slots and the host, a /30 each (default: 100.64.0.0/16)\n"
	"  --resolvers A,B    DNS servers that microVMs may ask (default: those of /etc/resolv.conf)\n"
	"  --closed CIDR,…    networks that microVMs may not reach, besides this host's addresses, link-local, multicast and --range\n"
	"  --run FOLDER       run-time folder (default: /run/stasis)\n"
	"  --state FOLDER     state of stasisd, made when it is missing (default: /var/lib/stasis)\n"
	"  --cgroup FOLDER    cgroup v2 folder for the VMMs (default: /sys/fs/cgroup/stasis)\n"
	"  --uid-base N       first of the user ids of VMMs (default: 2000000000)\n";

int network_parse(const char *text, struct network *ret) {
	char address[INET_ADDRSTRLEN];
	const char *slash = strchr(text, '/');
	size_t size = slash != NULL ? (size_t)(slash - text) : strlen(text);
	struct in_addr in;
	unsigned long prefix = 32;
	if (size >= sizeof(address))
		return -EINVAL;
	memcpy(address, text, size);
	address[size] = '\0';
	if (inet_pton(AF_INET, address, &in) != 1)
		return -EINVAL;
	if (slash != NULL) {
		char *end;
		if (slash[1] < '0' || slash[1] > '9')
			return -EINVAL;
		prefix = strtoul(slash + 1, &end, 10);
		if (*end != '\0' || prefix > 32)
			return -EINVAL;
	}
	uint32_t mask = prefix == 0 ? 0 : ~0u << (32 - prefix);
	*ret = (struct network){.address = ntohl(in.s_addr), .prefix = (unsigned)prefix};
	return (ret->address & ~mask) == 0 ? 0 : -EINVAL;
}

static int parse_number(const char *text, unsigned long least, unsigned long most, unsigned *ret) {
	char *end;
	errno = 0;
	unsigned long v = strtoul(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || v < least || v > most)
		return -EINVAL;
	*ret = (unsigned)v;
	return 0;
}

static int parse_user(const char *text, struct options *o) {
	unsigned uid;
	if (parse_number(text, 1, 0x7fffffff, &uid) == 0) {
		o->uid = uid;
		o->gid = uid;
		return 0;
	}
	struct passwd *p = getpwnam(text);
	if (p == NULL || p->pw_uid == 0)
		return -ENOENT;
	o->uid = p->pw_uid;
	o->gid = p->pw_gid;
	return 0;
}

static int add_closed(struct options *o, char *list) {
	char *rest = NULL;
	for (char *item = strtok_r(list, ",", &rest); item != NULL; item = strtok_r(NULL, ",", &rest))
		if (o->closed_count == OPTIONS_ADDRESSES_MAX || network_parse(item, &o->closed[o->closed_count++]) < 0)
			return -EINVAL;
	return 0;
}

static int add_resolver(struct options *o, const char *text) {
	struct network c;
	if (o->resolver_count == OPTIONS_ADDRESSES_MAX || network_parse(text, &c) < 0 || c.prefix != 32)
		return -EINVAL;
	o->resolvers[o->resolver_count++] = c.address;
	return 0;
}

static int add_resolver_list(struct options *o, char *list) {
	char *rest = NULL;
	for (char *item = strtok_r(list, ",", &rest); item != NULL; item = strtok_r(NULL, ",", &rest))
		if (add_resolver(o, item) < 0)
			return -EINVAL;
	return 0;
}

void options_add_resolvers(struct options *o, const char *resolv_conf) {
	for (const char *line = resolv_conf; line != NULL && *line != '\0';) {
		char address[64];
		if (sscanf(line, "nameserver %63[0-9.]", address) == 1 && strncmp(address, "127.", 4) != 0)
			add_resolver(o, address);
		line = strchr(line, '\n');
		line = line == NULL ? NULL : line + 1;
	}
}

static int copy(char *to, size_t size, const char *from) {
	return snprintf(to, size, "%s", from) < (int)size && from[0] == '/' ? 0 : -EINVAL;
}

enum { PROGRAM = 1, CONFIG, USER, POOL, RANGE, RESOLVERS, CLOSED, RUN, STATE, CGROUP, UID_BASE, HELP };

static int apply(struct options *o, int which, char *value, const char **user) {
	unsigned n = 0;
	int code = 0;
	switch (which) {
	case PROGRAM:
		return copy(o->program, sizeof(o->program), value);
	case CONFIG:
		return copy(o->config, sizeof(o->config), value);
	case USER:
		*user = value;
		return 0;
	case POOL:
		return parse_number(value, 0, 256, &o->pool);
	case RANGE:
		return network_parse(value, &o->range);
	case RESOLVERS:
		return add_resolver_list(o, value);
	case CLOSED:
		return add_closed(o, value);
	case RUN:
		return copy(o->run, sizeof(o->run), value);
	case STATE:
		return copy(o->state, sizeof(o->state), value);
	case CGROUP:
		return copy(o->cgroup, sizeof(o->cgroup), value);
	case UID_BASE:
		code = parse_number(value, 1000, 0x7fffffff - LAUNCH_SLOTS_MAX, &n);
		o->uid_base = n;
		return code;
	default:
		return -EINVAL;
	}
}

int options_parse(int argc, char **argv, struct options *ret, struct error *e) {
	static const struct option known[] = {
		{"program", required_argument, NULL, PROGRAM},
		{"config", required_argument, NULL, CONFIG},
		{"user", required_argument, NULL, USER},
		{"pool", required_argument, NULL, POOL},
		{"range", required_argument, NULL, RANGE},
		{"resolvers", required_argument, NULL, RESOLVERS},
		{"closed", required_argument, NULL, CLOSED},
		{"run", required_argument, NULL, RUN},
		{"state", required_argument, NULL, STATE},
		{"cgroup", required_argument, NULL, CGROUP},
		{"uid-base", required_argument, NULL, UID_BASE},
		{"help", no_argument, NULL, HELP},
		{NULL, 0, NULL, 0},
	};
	const char *user = "stasis";
	*ret = (struct options){.run = "/run/stasis",
				.state = "/var/lib/stasis",
				.cgroup = "/sys/fs/cgroup/stasis",
				.uid_base = UID_BASE_DEFAULT,
				.pool = 4,
				.range = {0x64400000, 16}};
	optind = 0;
	opterr = 0;
	int which;
	while ((which = getopt_long(argc, argv, "+", known, NULL)) != -1) {
		if (which == HELP)
			return 1;
		if (which == '?')
			return error_set(e, -EINVAL, "unknown or incomplete option %s (see --help)", argv[optind - 1]);
		if (apply(ret, which, optarg, &user) < 0)
			return error_set(e, -EINVAL, "--%s %s is not valid (see --help)", known[which - 1].name, optarg);
	}
	for (int i = optind; i < argc; i++) {
		if (ret->argument_count == OPTIONS_ARGUMENTS_MAX)
			return error_set(e, -E2BIG, "too many arguments for stasisd");
		ret->arguments[ret->argument_count++] = argv[i];
	}
	if (ret->program[0] == '\0' || ret->config[0] == '\0')
		return error_set(e, -EINVAL, "--program and --config are needed, as absolute paths (see --help)");
	if (parse_user(user, ret) < 0)
		return error_set(
			e, -ENOENT,
			"there is no user \"%s\" to run stasisd as: create it (`adduser --system --group %s`) or name another with --user",
			user, user);
	if (ret->range.prefix > 28 || ret->range.prefix < 8)
		return error_set(e, -EINVAL, "--range must be between a /8 and a /28");
	uint64_t blocks = 1ull << (30 - ret->range.prefix);
	ret->slots = blocks < LAUNCH_SLOTS_MAX ? (unsigned)blocks : LAUNCH_SLOTS_MAX;
	return 0;
}
