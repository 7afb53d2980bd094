// Network configuration by the classic interface requests (netdevice(7)); see network.h. One interface, one address, one route: netlink would need more
// code and no fewer system calls.
#include "guest/network.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static int open_socket(struct error *e) {
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	return fd < 0 ? error_errno(e, "cannot configure the network") : fd;
}

static struct ifreq request_for(const char *interface) {
	struct ifreq q = {0};
	snprintf(q.ifr_name, sizeof(q.ifr_name), "%s", interface);
	return q;
}

static int bring_up(int fd, const char *interface, struct error *e) {
	struct ifreq q = request_for(interface);

	if (ioctl(fd, SIOCGIFFLAGS, &q) < 0)
		return error_errno(e, "cannot read the flags of %s", interface);
	q.ifr_flags |= IFF_UP | IFF_RUNNING;
	if (ioctl(fd, SIOCSIFFLAGS, &q) < 0)
		return error_errno(e, "cannot bring %s up", interface);
	return 0;
}

static void put_address(struct sockaddr *to, struct in_addr address) {
	struct sockaddr_in sin = {.sin_family = AF_INET, .sin_addr = address};
	memcpy(to, &sin, sizeof(sin));
}

int network_loopback(struct error *e) {
	cleanup_close int fd = open_socket(e);
	return fd < 0 ? fd : bring_up(fd, "lo", e);
}

int network_configure(const char *interface, struct in_addr address, unsigned prefix, struct in_addr gateway, struct error *e) {
	struct in_addr mask = {.s_addr = htonl(prefix == 0 ? 0 : ~0u << (32 - prefix))}, any = {0};
	struct ifreq q = request_for(interface);
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};

	cleanup_close int fd = open_socket(e);
	if (fd < 0)
		return fd;
	put_address(&q.ifr_addr, address);
	if (ioctl(fd, SIOCSIFADDR, &q) < 0)
		return error_errno(e, "cannot give %s its address", interface);
	put_address(&q.ifr_netmask, mask);
	if (ioctl(fd, SIOCSIFNETMASK, &q) < 0)
		return error_errno(e, "cannot set the netmask of %s", interface);
	int r = bring_up(fd, interface, e);
	if (r < 0)
		return r;
	put_address(&route.rt_dst, any);
	put_address(&route.rt_genmask, any);
	// A default route from before gives way; there is none at first.
	(void)ioctl(fd, SIOCDELRT, &route);
	put_address(&route.rt_gateway, gateway);
	if (ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST)
		return error_errno(e, "cannot set the default route over %s", interface);
	return 0;
}

// An address of its own length cannot be added by interface requests without being, for a moment, a whole network: rtnetlink(7) it is.
int network_add_address(const char *interface, struct in_addr address, struct error *e) {
	struct {
		struct nlmsghdr header;
		struct ifaddrmsg message;
		struct rtattr attribute;
		struct in_addr local;
	} q = {.header = {.nlmsg_len = sizeof(q),
			  .nlmsg_type = RTM_NEWADDR,
			  .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL},
	       .message = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_scope = RT_SCOPE_HOST, .ifa_index = if_nametoindex(interface)},
	       .attribute = {.rta_len = RTA_LENGTH(sizeof(address)), .rta_type = IFA_LOCAL},
	       .local = address};
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[256];
	} answer = {.error.error = -EIO};

	cleanup_close int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0 || send(fd, &q, sizeof(q), 0) < 0 || recv(fd, &answer, sizeof(answer), 0) < (ssize_t)sizeof(answer.header))
		return error_errno(e, "cannot add an address to %s", interface);
	int r = answer.header.nlmsg_type == NLMSG_ERROR ? answer.error.error : -EIO;
	return r == 0 || r == -EEXIST ? 0 : error_set(e, r, "cannot add an address to %s: %s", interface, strerror(-r));
}

int network_write_nameservers(const char *path, const struct network_request *q, struct error *e) {
	char text[REQUEST_NAMESERVERS_MAX * (INET6_ADDRSTRLEN + 16)] = "";
	size_t used = 0;

	for (size_t i = 0; i < q->nameserver_count; i++)
		used += (size_t)snprintf(text + used, sizeof(text) - used, "nameserver %s\n", q->nameservers[i]);
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		return error_errno(e, "cannot create %s", path);
	int r = write_full(fd, text, used);
	return r < 0 ? error_set(e, r, "cannot write %s", path) : 0;
}
