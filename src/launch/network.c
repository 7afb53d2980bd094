// A slot's network: a namespace of its own with `tap0`, which the VMM gets as a descriptor, `up0`, a veth whose other end is
// `stasis-<n>` on the host, routing between the two, and the packet filter of firewall.c.
//
//     guest 169.254.100.2 ── tap0 169.254.100.1 [namespace] up0 range+4n+2 ── stasis-<n> range+4n+1 [host] ── uplink
//
// IPv6 is off in the namespace. The guest's neighbour entry is fixed: no ARP is needed towards it and none is believed from it.
#include "launch/network.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "guest/guest.h"
#include "launch/firewall.h"
#include "launch/launch.h"
#include "launch/netlink.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

void network_name(unsigned number, char to[16]) {
	snprintf(to, 16, FIREWALL_OUTER "%u", number & 0xffff);
}

static int write_setting(const char *path, const char *value) {
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return write(fd, value, strlen(value)) < 0 ? -errno : 0;
}

// In a fresh namespace. Without IPv6 in the kernel there is nothing to turn off.
static int set_up_namespace(struct error *e) {
	static const char *const no_ipv6[] = {"/proc/sys/net/ipv6/conf/all/disable_ipv6", "/proc/sys/net/ipv6/conf/default/disable_ipv6"};
	for (size_t i = 0; i < 2; i++) {
		int code = write_setting(no_ipv6[i], "1");
		if (code < 0 && code != -ENOENT)
			return error_set(e, code, "cannot turn IPv6 off in a slot: %s", strerror(-code));
	}
	int code = write_setting("/proc/sys/net/ipv4/ip_forward", "1");
	return code < 0 ? error_set(e, code, "cannot turn forwarding on in a slot: %s", strerror(-code)) : 0;
}

static int open_tap(struct error *e) {
	cleanup_close int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return error_errno(e, "cannot open /dev/net/tun (kernel module tun?)");
	struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	memcpy(r.ifr_name, FIREWALL_TAP, sizeof(FIREWALL_TAP));
	if (ioctl(fd, TUNSETIFF, &r) < 0)
		return error_errno(e, "cannot make a tap");
	return take_fd(&fd);
}

static uint32_t address(const char *text) {
	struct in_addr in = {.s_addr = 0};
	inet_pton(AF_INET, text, &in);
	return ntohl(in.s_addr);
}

static int set_up_tap(int routes) {
	static const uint8_t guest[6] = LAUNCH_GUEST_MAC, gateway[6] = LAUNCH_GATEWAY_MAC;
	int index = netlink_link_index(routes, FIREWALL_TAP);
	if (index < 0)
		return index;
	unsigned tap = (unsigned)index;
	int code = netlink_link_set_mac(routes, tap, gateway);
	if (code == 0)
		code = netlink_add_address(routes, tap, address(GUEST_GATEWAY), GUEST_PREFIX);
	if (code == 0)
		code = netlink_link_up(routes, tap);
	if (code == 0)
		code = netlink_add_neighbour(routes, tap, address(GUEST_ADDRESS), guest);
	return code;
}

static int set_up_outer(const struct options *o, unsigned number, int host_routes, unsigned *ret_index) {
	char name[16];
	network_name(number, name);
	int index = netlink_link_index(host_routes, name);
	if (index < 0)
		return index;
	*ret_index = (unsigned)index;
	int code = netlink_strict_reverse_path(host_routes, *ret_index);
	if (code == 0)
		code = netlink_add_address(host_routes, *ret_index, slot_host_address(o, number), 30);
	return code == 0 ? netlink_link_up(host_routes, *ret_index) : code;
}

static int set_up_links(const struct options *o, unsigned number, int host, int host_routes, int routes, unsigned *ret_outer) {
	char name[16];
	network_name(number, name);
	int code = netlink_add_veth(routes, FIREWALL_INNER, name, host);
	int inner = code == 0 ? netlink_link_index(routes, FIREWALL_INNER) : code;
	if (inner < 0)
		return inner;
	if ((code = set_up_outer(o, number, host_routes, ret_outer)) < 0 ||
	    (code = netlink_add_address(routes, (unsigned)inner, slot_inner_address(o, number), 30)) < 0 ||
	    (code = netlink_link_up(routes, (unsigned)inner)) < 0 || (code = set_up_tap(routes)) < 0)
		return code;
	return netlink_add_route(routes, 0, 0, slot_host_address(o, number));
}

int network_create(const struct options *o, unsigned number, int host, int host_routes, struct slot_network *ret, struct error *e) {
	if (unshare(CLONE_NEWNET) < 0)
		return error_errno(e, "cannot make a network namespace");
	int code = set_up_namespace(e);
	// The filter first: there is no moment at which something could pass unfiltered.
	if (code < 0 || (code = firewall_slot(e)) < 0)
		return code;
	cleanup_close int tap = open_tap(e);
	if (tap < 0)
		return tap;
	cleanup_close int routes = netlink_open(0);
	code = routes < 0 ? routes : set_up_links(o, number, host, host_routes, routes, &ret->outer);
	if (code < 0)
		return error_set(e, code, "cannot set up the network of slot %u: %s", number, strerror(-code));
	ret->tap = take_fd(&tap);
	ret->routes = take_fd(&routes);
	return 0;
}

static int add_routes(const struct options *o, unsigned number, int routes, const struct host_network *n) {
	uint32_t gateway = slot_host_address(o, number);
	int code = 0;
	for (size_t i = 0; i < n->cidr_count && (code == 0 || code == -EEXIST); i++)
		code = netlink_add_route(routes, n->cidrs[i].address, n->cidrs[i].prefix, gateway);
	for (size_t i = 0; n->dns && i < o->resolver_count && (code == 0 || code == -EEXIST); i++)
		code = netlink_add_route(routes, o->resolvers[i], 32, gateway);
	return code == -EEXIST ? 0 : code; // networks may overlap
}

int network_confine(const struct options *o, unsigned number, int routes, uint32_t networks) {
	int code = netlink_remove_default_route(routes);
	for (size_t i = 0; i < o->network_count && code == 0; i++)
		if ((networks >> i & 1) != 0)
			code = add_routes(o, number, routes, &o->networks[i]);
	return code;
}
