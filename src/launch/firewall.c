// The rules. The host's table is made once, for the whole range and all interfaces named stasis-*, so that a slot that comes or goes
// changes nothing in it; the table of a slot's namespace is the same for all.
//
// In the namespace: only IPv4 packets of the guest's own addresses, entering by the tap and leaving by the uplink, and answers to them;
// they are masqueraded, since the guest has the same address in every microVM. What the VMM's process itself would send is dropped. On
// the host: from stasis-* nothing for the host itself and nothing for other microVMs, link-local and other closed networks; DNS to the
// resolvers only. Towards stasis-* only answers.
#include "launch/firewall.h"

#include "guest/guest.h"

#include <arpa/inet.h>
#include <nftables/libnftables.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RULES_MAX 16384
#define CONNECTIONS_MOST "4096" // tracked at once for one microVM: the host's table is shared

struct text {
	char *at;
	size_t left;
	int bad;
};

static void put(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct text *t, const char *format, ...) {
	va_list ap;
	va_start(ap, format);
	int n = vsnprintf(t->at, t->left, format, ap);
	va_end(ap);
	if (n < 0 || (size_t)n >= t->left) {
		t->bad = 1;
		return;
	}
	t->at += n;
	t->left -= (size_t)n;
}

static void put_network(struct text *t, struct network c) {
	put(t, "%u.%u.%u.%u", c.address >> 24, c.address >> 16 & 255, c.address >> 8 & 255, c.address & 255);
	if (c.prefix < 32)
		put(t, "/%u", c.prefix);
}

static void put_sets(struct text *t, const struct options *o) {
	put(t,
	    "set closed { type ipv4_addr; flags interval; auto-merge; elements = { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3, ");
	put_network(t, o->range);
	for (size_t i = 0; i < o->closed_count; i++) {
		put(t, ", ");
		put_network(t, o->closed[i]);
	}
	put(t, " }; }\nset resolvers { type ipv4_addr; ");
	for (size_t i = 0; i < o->resolver_count; i++) {
		put(t, i == 0 ? "elements = { " : ", ");
		put_network(t, (struct network){o->resolvers[i], 32});
	}
	put(t, "%s}\n", o->resolver_count > 0 ? " }; " : "");
}

int firewall_host_rules(const struct options *o, char *text, size_t size) {
	struct text t = {.at = text, .left = size};
	// Adding before deleting: it need not exist. All of this is one transaction.
	put(&t, "add table inet " FIREWALL_TABLE "\ndelete table inet " FIREWALL_TABLE "\ntable inet " FIREWALL_TABLE " {\n");
	put_sets(&t, o);
	put(&t, "chain input {\n type filter hook input priority -10; policy accept;\n"
		" iifname \"" FIREWALL_OUTER "*\" jump from_microvm_to_host\n}\n"
		"chain from_microvm_to_host {\n"
		" ip daddr @resolvers udp dport 53 accept\n ip daddr @resolvers tcp dport 53 accept\n drop\n}\n"
		"chain forward {\n type filter hook forward priority -10; policy accept;\n"
		" oifname \"" FIREWALL_OUTER "*\" jump to_microvm\n"
		" iifname \"" FIREWALL_OUTER "*\" jump from_microvm\n}\n"
		"chain to_microvm {\n"
		" iifname \"" FIREWALL_OUTER "*\" drop\n ct state established,related accept\n drop\n}\n"
		"chain from_microvm {\n meta nfproto != ipv4 drop\n ip saddr != ");
	put_network(&t, o->range);
	put(&t, " drop\n ip daddr @resolvers udp dport 53 accept\n ip daddr @resolvers tcp dport 53 accept\n ip daddr @closed drop\n}\n"
		"chain postrouting {\n type nat hook postrouting priority 100; policy accept;\n ip saddr ");
	put_network(&t, o->range);
	put(&t, " oifname != \"" FIREWALL_OUTER "*\" masquerade\n}\n}\n");
	return t.bad ? -E2BIG : (int)(t.at - text);
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

int firewall_host(const struct options *o, struct error *e) {
	char rules[RULES_MAX];
	int size = firewall_host_rules(o, rules, sizeof(rules));
	if (size < 0)
		return error_set(e, size, "too many --closed networks or --resolvers");
	return run(rules, "the host", e);
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
