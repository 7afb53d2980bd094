// The operator's networks in the engine's configuration, and records of slots that name some: whatever is accepted ends up in the packet filter's
// rules, which must not be more than what was meant.
#include "launch/firewall.h"
#include "launch/networks.h"
#include "launch/record.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_rules(const struct options *o) {
	const struct firewall_member m = {.address = 0x64400002, .networks = 1, .confined = true};
	char *rules = firewall_host_rules(o, &(struct firewall_members){&m, 1});
	if (rules == NULL)
		abort();
	// Each network has one chain, and what is between quotes is a name.
	size_t chains = 0;
	for (const char *at = rules; (at = strstr(at, "chain network_")) != NULL; at++)
		chains++;
	for (const char *at = rules; (at = strchr(at, '"')) != NULL;) {
		size_t n = strcspn(at + 1, "\"");
		if (n == 0 || n > 16 || memchr(at + 1, ' ', n) != NULL)
			abort();
		at += n + 2;
	}
	if (chains != o->network_count)
		abort();
	free(rules);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	struct options o = {.range = {0x64400000, 16}, .closed = {{0x0a000200, 24}}, .closed_count = 1};
	struct error e;
	struct record r;
	if (networks_read((const char *)data, size, &o, &e) == 0)
		check_rules(&o);
	char *text = malloc(size + 1);
	memcpy(text, data, size);
	text[size] = '\0';
	if (record_parse(text, &r) == 0 && r.egress.network_count > LAUNCH_NETWORKS_MAX)
		abort();
	free(text);
	return 0;
}
