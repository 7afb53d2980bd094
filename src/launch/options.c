// The command line of stasis-launch; see options.h.
#include "launch/options.h"

#include "launch/launch.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POOL_DEFAULT 4
#define POOL_MAX 256

static const char help[] = "usage: stasis-launch --program FOLDER --config FILE [options]\n"
			   "\n"
			   "The privileged part of Stasis: starts stasisd as an ordinary user, and makes namespaces, firewall, cgroups and "
			   "jails for its VMMs.\n"
			   "\n"
			   "  --program FOLDER      where stasisd and stasis-vmm lie\n"
			   "  --config FILE         stasisd's configuration\n"
			   "  --user NAME           stasisd's user (stasis)\n"
			   "  --run FOLDER          run-time files (/run/stasis)\n"
			   "  --state FOLDER        stasisd's state, made when it is missing (/var/lib/stasis)\n"
			   "  --pool N              slots that are kept ready for launches (4)\n"
			   "  --range CIDR          addresses for the slots' links (100.64.0.0/18)\n"
			   "  --resolvers A,B       DNS servers that microVMs may ask (those of /etc/resolv.conf)\n"
			   "  --closed CIDR,CIDR    networks that microVMs may not reach\n";

int network_parse(const char *text, struct network *ret) {
	char copy[NETWORK_TEXT];
	struct in_addr address;
	if (strlen(text) >= sizeof(copy))
		return -EINVAL;
	strcpy(copy, text);
	char *slash = strchr(copy, '/'), *end;
	unsigned long prefix = 32;
	if (slash != NULL) {
		*slash++ = '\0';
		prefix = strtoul(slash, &end, 10);
		if (slash[0] < '0' || slash[0] > '9' || *end != '\0' || prefix > 32)
			return -EINVAL;
	}
	if (inet_pton(AF_INET, copy, &address) != 1)
		return -EINVAL;
	*ret = (struct network){.address = ntohl(address.s_addr), .prefix = (uint8_t)prefix};
	uint32_t host_bits = prefix == 32 ? 0 : 0xffffffffu >> prefix;
	return (ret->address & host_bits) != 0 ? -EINVAL : 0;
}

static int parse_list(const char *text, struct network *to, unsigned *count) {
	char copy[LIST_MAX * NETWORK_TEXT];
	if (strlen(text) >= sizeof(copy))
		return -EINVAL;
	strcpy(copy, text);
	for (char *save = NULL, *part = strtok_r(copy, ",", &save); part != NULL; part = strtok_r(NULL, ",", &save))
		if (*count == LIST_MAX || network_parse(part, &to[(*count)++]) < 0)
			return -EINVAL;
	return 0;
}

static void add_resolver(struct launch_options *o, uint32_t address) {
	if (o->resolver_count < LIST_MAX)
		o->resolvers[o->resolver_count++] = address;
}

static void host_resolvers(struct launch_options *o) {
	FILE *f = fopen("/etc/resolv.conf", "re");
	char line[256], address[64];
	struct in_addr a;
	while (f != NULL && fgets(line, sizeof(line), f) != NULL)
		if (sscanf(line, "nameserver %63s", address) == 1 && inet_pton(AF_INET, address, &a) == 1)
			add_resolver(o, ntohl(a.s_addr));
	if (f != NULL)
		fclose(f);
}

static int find_user(const char *name, struct launch_options *o) {
	const struct passwd *p = getpwnam(name);
	if (p == NULL || p->pw_uid == 0)
		return -ENOENT;
	o->uid = p->pw_uid;
	o->gid = p->pw_gid;
	return 0;
}

static int wrong(const char *what, const char *value) {
	fprintf(stderr, "stasis-launch: %s '%s' is not usable\n\n%s", what, value, help);
	return 2;
}

int options_read(int argc, char **argv, struct launch_options *o, bool *ret_done) {
	enum { PROGRAM = 1, CONFIG, USER, RUN, STATE, POOL, RANGE, RESOLVERS, CLOSED, HELP };
	static const struct option options[] = {{"program", required_argument, NULL, PROGRAM},
						{"config", required_argument, NULL, CONFIG},
						{"user", required_argument, NULL, USER},
						{"run", required_argument, NULL, RUN},
						{"state", required_argument, NULL, STATE},
						{"pool", required_argument, NULL, POOL},
						{"range", required_argument, NULL, RANGE},
						{"resolvers", required_argument, NULL, RESOLVERS},
						{"closed", required_argument, NULL, CLOSED},
						{"help", no_argument, NULL, HELP},
						{0}};
	const char *user = "stasis";
	struct network list[LIST_MAX];
	unsigned n = 0;
	char *end;
	*o = (struct launch_options){.run = "/run/stasis", .state = "/var/lib/stasis", .pool = POOL_DEFAULT};
	*ret_done = true;
	network_parse("100.64.0.0/18", &o->range);
	for (int which; (which = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		switch (which) {
		case PROGRAM:
			o->program = optarg;
			break;
		case CONFIG:
			o->config = optarg;
			break;
		case USER:
			user = optarg;
			break;
		case RUN:
			o->run = optarg;
			break;
		case STATE:
			o->state = optarg;
			break;
		case POOL:
			o->pool = (unsigned)strtoul(optarg, &end, 10);
			if (optarg[0] < '0' || optarg[0] > '9' || *end != '\0' || o->pool > POOL_MAX)
				return wrong("the pool size", optarg);
			break;
		case RANGE:
			if (network_parse(optarg, &o->range) < 0 || o->range.prefix > 24 || o->range.prefix < 8)
				return wrong("the range", optarg);
			break;
		case RESOLVERS:
			if (parse_list(optarg, list, &n) < 0)
				return wrong("the list of resolvers", optarg);
			for (unsigned i = 0; i < n; i++)
				add_resolver(o, list[i].address);
			break;
		case CLOSED:
			if (parse_list(optarg, o->closed, &o->closed_count) < 0)
				return wrong("the list of closed networks", optarg);
			break;
		case HELP:
			fputs(help, stdout);
			return 0;
		default:
			fputs(help, stderr);
			return 2;
		}
	}
	if (o->program == NULL || o->config == NULL)
		return wrong("without --program and --config the command line", "");
	if (find_user(user, o) < 0) {
		fprintf(stderr,
			"stasis-launch: there is no user '%s' (or it is root): create one with 'useradd --system --no-create-home %s'\n",
			user, user);
		return 2;
	}
	if (o->resolver_count == 0)
		host_resolvers(o);
	*ret_done = false;
	return 0;
}
