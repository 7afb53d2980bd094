// nftables rules through libnftables; see firewall.h.
#include "launch/firewall.h"

#include "guest/guest.h"

#include <nftables/libnftables.h>
#include <stdio.h>
#include <string.h>

#define RULES_ROOM 8192

static int apply(const char *rules, struct error *e) {
	struct nft_ctx *nft = nft_ctx_new(NFT_CTX_DEFAULT);
	if (nft == NULL)
		return error_set(e, -ENOMEM, "cannot talk to nftables: the kernel needs nf_tables");
	nft_ctx_buffer_error(nft);
	nft_ctx_buffer_output(nft);
	int r = nft_run_cmd_from_buffer(nft, rules);
	if (r != 0)
		r = error_set(e, -EIO, "nftables refused the firewall: %.300s", nft_ctx_get_error_buffer(nft));
	nft_ctx_free(nft);
	return r;
}

struct text {
	char data[RULES_ROOM];
	size_t size;
};

static void put(struct text *t, const char *s) {
	size_t n = strlen(s);
	if (t->size + n < sizeof(t->data)) {
		memcpy(t->data + t->size, s, n + 1);
		t->size += n;
	}
}

static void put_network(struct text *t, struct network n) {
	char s[NETWORK_TEXT];
	snprintf(s, sizeof(s), "%u.%u.%u.%u/%u", n.address >> 24, n.address >> 16 & 255, n.address >> 8 & 255, n.address & 255, n.prefix);
	put(t, s);
}

int firewall_host(const struct launch_options *o, struct error *e) {
	struct text t = {.size = 0};
	put(&t, "table inet stasis {}\ndelete table inet stasis\ntable inet stasis {\n"
		"  chain input {\n    type filter hook input priority filter; policy accept;\n"
		"    iifname \"" LINK_PREFIX "*\" drop\n  }\n"
		"  chain forward {\n    type filter hook forward priority filter; policy accept;\n"
		"    oifname \"" LINK_PREFIX "*\" ct state established,related accept\n"
		"    oifname \"" LINK_PREFIX "*\" drop\n"
		"    iifname != \"" LINK_PREFIX "*\" accept\n");
	for (unsigned i = 0; i < o->resolver_count; i++) {
		for (int tcp = 0; tcp < 2; tcp++) {
			put(&t, "    ip daddr ");
			put_network(&t, (struct network){o->resolvers[i], 32});
			put(&t, tcp ? " tcp dport 53 accept\n" : " udp dport 53 accept\n");
		}
	}
	put(&t, "    ip daddr { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 } drop\n    ip daddr ");
	put_network(&t, o->range);
	put(&t, " drop\n");
	for (unsigned i = 0; i < o->closed_count; i++) {
		put(&t, "    ip daddr ");
		put_network(&t, o->closed[i]);
		put(&t, " drop\n");
	}
	put(&t, "    ip saddr ");
	put_network(&t, o->range);
	put(&t,
	    " accept\n    drop\n  }\n  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n    ip saddr ");
	put_network(&t, o->range);
	put(&t, " oifname != \"" LINK_PREFIX "*\" masquerade\n  }\n}\n");
	return apply(t.data, e);
}

void firewall_remove_host(void) {
	apply("table inet stasis {}\ndelete table inet stasis\n", NULL);
}

int firewall_slot(struct error *e) {
	return apply("table inet stasis {\n"
		     "  chain input { type filter hook input priority filter; policy drop; }\n"
		     "  chain forward {\n    type filter hook forward priority filter; policy drop;\n"
		     "    iifname \"" TAP_NAME "\" oifname \"" UPLINK_NAME "\" ip saddr " GUEST_ADDRESS " accept\n"
		     "    iifname \"" UPLINK_NAME "\" oifname \"" TAP_NAME "\" ct state established,related accept\n  }\n"
		     "  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n"
		     "    oifname \"" UPLINK_NAME "\" masquerade\n  }\n}\n",
		     e);
}
