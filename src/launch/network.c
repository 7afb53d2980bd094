// Network namespaces of slots; see network.h.
//
//     guest 169.254.100.2 -- tap0 169.254.100.1 | namespace | up0 <range + 4i + 2> ---- stv<i> <range + 4i + 1> | host
//
// The guest's address is the same in every namespace, so the namespace masquerades it to up0's. The namespace lives as long as the VMM in it:
// when that ends, the kernel removes it and with it both ends of the link.
#include "launch/network.h"

#include "base/cleanup.h"
#include "guest/guest.h"
#include "launch/firewall.h"
#include "launch/rtnl.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define LINK_PREFIX_BITS 30
#define VNET_HEADER_BYTES 12 // struct virtio_net_hdr_v1

static void link_name(unsigned index, char to[IFNAMSIZ]) {
	snprintf(to, IFNAMSIZ, LINK_PREFIX "%u", index);
}

static int write_sysctl(const char *path, const char *value, struct error *e) {
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return 0; // a kernel without that protocol
	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		return error_errno(e, "cannot write %s", path);
	return 0;
}

static int make_tap(int *ret, struct error *e) {
	cleanup_close int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_errno(e, "cannot open /dev/net/tun (the kernel needs tun)");
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	memcpy(request.ifr_name, TAP_NAME, sizeof(TAP_NAME));
	if (ioctl(fd, TUNSETIFF, &request) < 0)
		return error_errno(e, "cannot create the tap");
	int header = VNET_HEADER_BYTES;
	if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0)
		return error_errno(e, "cannot set up the tap");
	*ret = take_fd(&fd);
	return 0;
}

static int fill(const struct launch_options *o, int host_netns, unsigned index, int *ret_tap, struct error *e) {
	char name[IFNAMSIZ];
	uint32_t base = o->range.address + index * 4, gateway;
	link_name(index, name);
	inet_pton(AF_INET, GUEST_GATEWAY, &gateway);
	struct rtnl *r;
	int code = rtnl_open(&r, e);
	if (code < 0)
		return code;
	if ((code = rtnl_add_veth(r, UPLINK_NAME, name, host_netns, e)) == 0 && (code = make_tap(ret_tap, e)) == 0 &&
	    (code = write_sysctl("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1", e)) == 0 &&
	    (code = write_sysctl("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1", e)) == 0 &&
	    (code = write_sysctl("/proc/sys/net/ipv4/ip_forward", "1", e)) == 0 && (code = rtnl_set_up(r, "lo", true, e)) == 0 &&
	    (code = rtnl_add_address(r, TAP_NAME, gateway, GUEST_PREFIX, e)) == 0 && (code = rtnl_set_up(r, TAP_NAME, true, e)) == 0 &&
	    (code = rtnl_add_address(r, UPLINK_NAME, htonl(base + 2), LINK_PREFIX_BITS, e)) == 0 &&
	    (code = rtnl_set_up(r, UPLINK_NAME, true, e)) == 0 && (code = rtnl_add_default_route(r, htonl(base + 1), e)) == 0)
		code = firewall_slot(e);
	rtnl_close(r);
	return code;
}

static int make_inside(const struct launch_options *o, int host_netns, unsigned index, int *ret_netns, int *ret_tap, struct error *e) {
	if (unshare(CLONE_NEWNET) < 0)
		return error_errno(e, "cannot create a network namespace");
	int code = fill(o, host_netns, index, ret_tap, e);
	if (code == 0 && (*ret_netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) < 0)
		code = error_errno(e, "cannot open the new network namespace");
	if (setns(host_netns, CLONE_NEWNET) < 0)
		return error_errno(e, "cannot return to the host's network namespace");
	return code;
}

int network_make(const struct launch_options *o, struct rtnl *host, int host_netns, unsigned index, int *ret_netns, int *ret_tap,
		 struct error *e) {
	cleanup_close int tap = -1, netns = -1;
	char name[IFNAMSIZ];
	link_name(index, name);
	network_remove(host, index);
	int code = make_inside(o, host_netns, index, &netns, &tap, e);
	if (code == 0)
		code = rtnl_add_address(host, name, htonl(o->range.address + index * 4 + 1), LINK_PREFIX_BITS, e);
	if (code < 0) {
		network_remove(host, index);
		return code;
	}
	*ret_tap = take_fd(&tap);
	*ret_netns = take_fd(&netns);
	return 0;
}

int network_open(struct rtnl *host, unsigned index, bool open, struct error *e) {
	char name[IFNAMSIZ];
	link_name(index, name);
	return rtnl_set_up(host, name, open, e);
}

void network_remove(struct rtnl *host, unsigned index) {
	char name[IFNAMSIZ];
	link_name(index, name);
	rtnl_delete_link(host, name, NULL);
}
