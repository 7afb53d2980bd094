// The rules. The host's table is made once, for the whole range and all interfaces named stasis-*, so that a slot that comes or goes
// changes nothing in it; the table of a slot's namespace is the same for all.
//
// In the namespace: only IPv4 packets of the guest's own addresses, entering by the tap and leaving by the uplink, and answers to them;
// they are masqueraded, since the guest has the same address in every microVM. What the VMM's process itself would send is dropped. On
// the host: from stasis-* nothing for the host itself and nothing for other microVMs, link-local and other closed networks; DNS to the
// resolvers only. Towards stasis-* only answers.
//
// Networks of connectors: each has a chain, which accepts what it leads to, and a set of the slots (their addresses on the veth) that are its
// members. What a member may reach besides is decided by the set "confined": its members reach nothing else. Joining and leaving are changes
// of set elements; slots without networks need none.
#include "launch/firewall.h"

#include "base/cleanup.h"
#include "guest/guest.h"
#include "launch/networks.h"

#include <nftables/libnftables.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECTIONS_MOST "4096" // tracked at once for one microVM: the host's table is shared

static void put_address(FILE *t, uint32_t a) {
	fprintf(t, "%u.%u.%u.%u", a >> 24, a >> 16 & 255, a >> 8 & 255, a & 255);
}

static void put_network(FILE *t, struct network c) {
	put_address(t, c.address);
	if (c.prefix < 32)
		fprintf(t, "/%u", c.prefix);
}

static void put_closed_set(FILE *t, const struct options *o) {
	fputs("set closed { type ipv4_addr; flags interval; auto-merge; elements = { ", t);
	for (const struct network *n = networks_never; n->prefix != 0; n++) {
		put_network(t, *n);
		fputs(", ", t);
	}
	put_network(t, o->range);
	for (size_t i = 0; i < o->closed_count; i++) {
		fputs(", ", t);
		put_network(t, o->closed[i]);
	}
	fputs(" }; }\n", t);
}

// A set of addresses: those of the resolvers, or of the members that belong to it.
static void put_resolvers(FILE *t, const struct options *o) {
	fputs("set resolvers { type ipv4_addr; ", t);
	for (size_t i = 0; i < o->resolver_count; i++) {
		fputs(i == 0 ? "elements = { " : ", ", t);
		put_address(t, o->resolvers[i]);
	}
	fprintf(t, "%s}\n", o->resolver_count > 0 ? " }; " : "");
}

static bool is_in(const struct firewall_member *m, int network) {
	return network < 0 ? m->confined : (m->networks >> network & 1) != 0;
}

// network -1: those that are confined.
static void put_members(FILE *t, const struct firewall_members *all, int network) {
	bool any = false;
	if (network < 0)
		fputs("set confined { type ipv4_addr; ", t);
	else
		fprintf(t, "set members_%d { type ipv4_addr; ", network);
	for (size_t i = 0; i < all->count; i++) {
		if (!is_in(&all->at[i], network))
			continue;
		fputs(any ? ", " : "elements = { ", t);
		put_address(t, all->at[i].address);
		any = true;
	}
	fprintf(t, "%s}\n", any ? " }; " : "");
}

static bool is_closed(const struct options *o, struct network c) {
	for (size_t i = 0; i < o->closed_count; i++)
		if (network_is_within(c, o->closed[i]))
			return true;
	return false;
}

// Its addresses that lie in closed networks were named on purpose and come first; then nothing that is closed; then the others.
static void put_network_chain(FILE *t, const struct options *o, size_t number) {
	const struct host_network *n = &o->networks[number];
	fprintf(t, "chain network_%zu {\n", number);
	if (n->dns)
		fputs(" ip daddr @resolvers udp dport 53 accept\n ip daddr @resolvers tcp dport 53 accept\n", t);
	for (int closed = 1; closed >= 0; closed--) {
		for (size_t i = 0; i < n->cidr_count; i++) {
			if (is_closed(o, n->cidrs[i]) != (closed == 1))
				continue;
			if (n->interface[0] != '\0')
				fprintf(t, " oifname \"%s\"", n->interface);
			if (n->cidrs[i].prefix > 0) {
				fputs(" ip daddr ", t);
				put_network(t, n->cidrs[i]);
			}
			fputs(" accept\n", t);
		}
		if (closed == 1)
			fputs(" ip daddr @closed return\n", t);
	}
	fputs("}\n", t);
}

static void put_networks(FILE *t, const struct options *o, const struct firewall_members *members) {
	put_members(t, members, -1);
	for (size_t i = 0; i < o->network_count; i++) {
		put_members(t, members, (int)i);
		put_network_chain(t, o, i);
	}
	fputs("chain networks {\n", t);
	for (size_t i = 0; i < o->network_count; i++)
		fprintf(t, " ip saddr @members_%zu jump network_%zu\n", i, i);
	fputs("}\n", t);
}

static void put_host_rules(FILE *t, const struct options *o, const struct firewall_members *members) {
	// Adding before deleting: it need not exist. All of this is one transaction.
	fputs("add table inet " FIREWALL_TABLE "\ndelete table inet " FIREWALL_TABLE "\ntable inet " FIREWALL_TABLE " {\n", t);
	put_closed_set(t, o);
	put_resolvers(t, o);
	put_networks(t, o, members);
	fputs("chain input {\n type filter hook input priority -10; policy accept;\n"
	      " iifname \"" FIREWALL_OUTER "*\" jump from_microvm_to_host\n}\n"
	      "chain from_microvm_to_host {\n"
	      " ip daddr @resolvers udp dport 53 accept\n ip daddr @resolvers tcp dport 53 accept\n drop\n}\n"
	      "chain forward {\n type filter hook forward priority -10; policy accept;\n"
	      " oifname \"" FIREWALL_OUTER "*\" jump to_microvm\n"
	      " iifname \"" FIREWALL_OUTER "*\" jump from_microvm\n}\n"
	      "chain to_microvm {\n"
	      " iifname \"" FIREWALL_OUTER "*\" drop\n ct state established,related accept\n drop\n}\n"
	      "chain from_microvm {\n meta nfproto != ipv4 drop\n ip saddr != ",
	      t);
	put_network(t, o->range);
	fputs(" drop\n jump networks\n ip saddr @confined drop\n"
	      " ip daddr @resolvers udp dport 53 accept\n ip daddr @resolvers tcp dport 53 accept\n ip daddr @closed drop\n}\n"
	      "chain postrouting {\n type nat hook postrouting priority 100; policy accept;\n ip saddr ",
	      t);
	put_network(t, o->range);
	fputs(" oifname != \"" FIREWALL_OUTER "*\" masquerade\n}\n}\n", t);
}

char *firewall_host_rules(const struct options *o, const struct firewall_members *members) {
	char *text = NULL;
	size_t size = 0;
	FILE *t = open_memstream(&text, &size);
	if (t == NULL)
		return NULL;
	put_host_rules(t, o, members);
	if (fclose(t) == 0)
		return text;
	free(text);
	return NULL;
}

static int run(const char *rules, const char *what, struct error *e) {
	struct nft_ctx *nft = nft_ctx_new(NFT_CTX_DEFAULT);
	if (nft == NULL)
		return error_set(e, -ENOMEM, "libnftables cannot be initialised");
	nft_ctx_buffer_error(nft);
	nft_ctx_buffer_output(nft);
	int code = 0;
	if (nft_run_cmd_from_buffer(nft, rules) != 0) {
		const char *text = nft_ctx_get_error_buffer(nft);
		code = error_set(
			e, -EIO,
			"the packet filter of %s was refused (modules nf_tables, nft_ct, nft_masq, nft_chain_nat, nft_connlimit?): %.*s",
			what, (int)strcspn(text, "\n"), text);
	}
	nft_ctx_free(nft);
	return code;
}

int firewall_host(const struct options *o, const struct firewall_members *members, struct error *e) {
	cleanup_free char *rules = firewall_host_rules(o, members);
	return rules == NULL ? error_set(e, -ENOMEM, "out of memory writing the packet filter") : run(rules, "the host", e);
}

static void put_element(FILE *t, const char *verb, const char *set, int number, uint32_t address) {
	fprintf(t, "%s element inet " FIREWALL_TABLE " %s", verb, set);
	if (number >= 0)
		fprintf(t, "_%d", number);
	fputs(" { ", t);
	put_address(t, address);
	fputs(" }\n", t);
}

// One transaction: the member is in all of its sets, or in none. An element that is to go is added before, so that it need not be there.
static int change_member(const struct firewall_member *m, bool joins, struct error *e) {
	cleanup_free char *text = NULL;
	size_t size = 0;
	FILE *t = open_memstream(&text, &size);
	if (t == NULL)
		return error_set(e, -ENOMEM, "out of memory writing the packet filter");
	for (int i = -1; i < HOST_NETWORKS_MAX; i++) {
		if (!is_in(m, i))
			continue;
		put_element(t, "add", i < 0 ? "confined" : "members", i, m->address);
		if (!joins)
			put_element(t, "delete", i < 0 ? "confined" : "members", i, m->address);
	}
	return fclose(t) == 0 ? run(text, "a slot's networks", e) : error_set(e, -ENOMEM, "out of memory writing the packet filter");
}

int firewall_join(const struct firewall_member *m, struct error *e) {
	return change_member(m, true, e);
}

int firewall_leave(const struct firewall_member *m, struct error *e) {
	return change_member(m, false, e);
}

void firewall_remove_host(void) {
	run("add table inet " FIREWALL_TABLE "\ndelete table inet " FIREWALL_TABLE "\n", "the host", NULL);
}

int firewall_slot(struct error *e) {
	static const char rules[] =
		"table inet " FIREWALL_TABLE " {\n"
		"chain input { type filter hook input priority 0; policy drop; }\n"
		"chain output { type filter hook output priority 0; policy drop; oifname \"" FIREWALL_TAP "\" meta l4proto icmp accept; }\n"
		"chain forward { type filter hook forward priority 0; policy drop;\n"
		" iifname \"" FIREWALL_INNER "\" oifname \"" FIREWALL_TAP "\" ct state established,related accept\n"
		" iifname \"" FIREWALL_TAP "\" oifname \"" FIREWALL_INNER "\" ether saddr 02:53:54:00:00:02 ip saddr " GUEST_ADDRESS
		" jump connections\n}\n"
		"chain connections {\n ct state established,related accept\n ct state invalid drop\n ct count over " CONNECTIONS_MOST
		" drop\n accept\n}\n"
		"chain postrouting { type nat hook postrouting priority 100; policy accept; oifname \"" FIREWALL_INNER "\" masquerade; }\n"
		"}\n";
	return run(rules, "a slot", e);
}
