// The member "networks" of the engine's configuration (docs/configuration.md):
//
//     "networks": {"subnet-db": {"cidrs": ["10.20.0.0/16"], "interface": "vlan20", "dns": true}}
//
// It is the operator's file, read once before anything else runs; stasisd has a copy and takes the names from it, but what a name means is
// decided here alone.
#include "launch/networks.h"

#include "base/json.h"
#include "launch/messages.h"

#include <stdio.h>
#include <string.h>

#define CONFIG_MOST (1u << 20)

const struct network networks_never[] = {{0x00000000, 8}, {0x7f000000, 8}, {0xa9fe0000, 16}, {0xe0000000, 3}, {0, 0}};

static uint32_t mask_of(unsigned prefix) {
	return prefix == 0 ? 0 : ~0u << (32 - prefix);
}

bool network_is_within(struct network inner, struct network outer) {
	return inner.prefix >= outer.prefix && (inner.address & mask_of(outer.prefix)) == outer.address;
}

static int check_cidr(const struct options *o, const char *name, const char *text, struct network *ret, struct error *e) {
	if (network_parse(text, ret) < 0)
		return error_set(e, -EINVAL,
				 "\"networks\": %s: \"%.40s\" is no IPv4 network such as 10.20.0.0/16 (bits behind the prefix zero)", name,
				 text);
	bool never = network_is_within(*ret, o->range);
	for (const struct network *n = networks_never; n->prefix != 0; n++)
		never = never || network_is_within(*ret, *n);
	return never ? error_set(e, -EINVAL,
				 "\"networks\": %s: %s is loopback, link-local, multicast or Stasis's own range: microVMs never reach that",
				 name, text)
		     : 0;
}

static int read_cidrs(const struct options *o, const json_t *value, struct host_network *n, struct error *e) {
	const json_t *list = NULL;
	int r = member_strings(value, "cidrs", MEMBER_REQUIRED, HOST_NETWORK_CIDRS_MAX, 40, &list, e);
	if (r < 0)
		return error_wrap(e, r, "\"networks\": %s", n->name);
	if (json_array_size(list) == 0)
		return error_set(e, -EINVAL, "\"networks\": %s: \"cidrs\" must name at least one network", n->name);
	for (size_t i = 0; i < json_array_size(list) && r == 0; i++)
		r = check_cidr(o, n->name, json_string_value(json_array_get(list, i)), &n->cidrs[n->cidr_count++], e);
	return r;
}

static int read_interface(const json_t *value, struct host_network *n, struct error *e) {
	static const char allowed[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-@";
	const char *interface = NULL;
	int r = member_string(value, "interface", MEMBER_OPTIONAL, sizeof(n->interface) - 1, &interface, e);
	if (r < 0)
		return error_wrap(e, r, "\"networks\": %s", n->name);
	if (interface != NULL && (interface[0] == '\0' || strspn(interface, allowed) != strlen(interface)))
		return error_set(e, -EINVAL, "\"networks\": %s: \"interface\" is no name of a network interface", n->name);
	snprintf(n->interface, sizeof(n->interface), "%s", interface == NULL ? "" : interface);
	return 0;
}

static int read_network(const struct options *o, const char *name, const json_t *value, struct host_network *n, struct error *e) {
	static const char *const known[] = {"cidrs", "interface", "dns"};
	*n = (struct host_network){.cidr_count = 0};
	if (!network_name_is_valid(name))
		return error_set(e, -EINVAL,
				 "\"networks\": \"%.60s\" must be \"subnet-\" and small letters and digits, at most %d characters", name,
				 LAUNCH_NETWORK_MAX - 1);
	snprintf(n->name, sizeof(n->name), "%s", name);
	if (!json_is_object(value))
		return error_set(e, -EINVAL, "\"networks\": %s must be an object with \"cidrs\"", name);
	size_t members = 0;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		members += json_object_get(value, known[i]) != NULL;
	if (json_object_size(value) != members)
		return error_set(e, -EINVAL, "\"networks\": %s may have \"cidrs\", \"interface\" and \"dns\" alone", name);
	int r = read_cidrs(o, value, n, e);
	if (r == 0)
		r = read_interface(value, n, e);
	if (r == 0 && (r = member_bool(value, "dns", MEMBER_OPTIONAL, &n->dns, e)) < 0)
		error_wrap(e, r, "\"networks\": %s", name);
	return r;
}

int networks_read(const char *config, size_t size, struct options *o, struct error *e) {
	const json_t *networks = NULL;
	cleanup_json json_t *root = json_parse_object(config, size, CONFIG_MOST, "the configuration", e);
	if (root == NULL)
		return -EINVAL;
	int r = member_object(root, "networks", MEMBER_OPTIONAL, &networks, e);
	if (r < 0)
		return r;
	if (json_object_size(networks) > HOST_NETWORKS_MAX)
		return error_set(e, -EINVAL, "\"networks\" has %zu members; at most %d are accepted", json_object_size(networks),
				 HOST_NETWORKS_MAX);
	o->network_count = 0;
	void *at = networks == NULL ? NULL : json_object_iter((json_t *)(uintptr_t)networks); // jansson's iterators take no const
	for (; at != NULL && r == 0; at = json_object_iter_next((json_t *)(uintptr_t)networks, at))
		r = read_network(o, json_object_iter_key(at), json_object_iter_value(at), &o->networks[o->network_count++], e);
	return r;
}

int networks_find(const struct options *o, const struct egress *g, uint32_t *ret, struct error *e) {
	*ret = 0;
	for (uint32_t i = 0; i < g->network_count; i++) {
		size_t n = 0;
		while (n < o->network_count && strcmp(o->networks[n].name, g->networks[i]) != 0)
			n++;
		if (n == o->network_count)
			return error_set(e, -ENOENT, "there is no network %s in the engine's configuration (\"networks\")", g->networks[i]);
		*ret |= 1u << n;
	}
	return 0;
}
