// Network configuration; see network.h. By the classic interface requests (netdevice(7)), and by rtnetlink(7) what they cannot say: further addresses
// and a pair of interfaces in two namespaces.
#include "guest/network.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <net/route.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
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

// rtnetlink.

struct message {
	struct nlmsghdr header;
	char body[256];
};

static void *append(struct message *m, const void *data, size_t size) {
	char *at = (char *)m + NLMSG_ALIGN(m->header.nlmsg_len);
	memcpy(at, data, size);
	m->header.nlmsg_len = (uint32_t)(at - (char *)m + (ptrdiff_t)size);
	return at;
}

// Begins an attribute; end_attribute() sets its length.
static struct rtattr *begin_attribute(struct message *m, unsigned short type) {
	return append(m, &(struct rtattr){.rta_len = RTA_LENGTH(0), .rta_type = type}, sizeof(struct rtattr));
}

static void end_attribute(struct message *m, struct rtattr *a) {
	a->rta_len = (unsigned short)((char *)m + m->header.nlmsg_len - (char *)a);
}

static void attribute(struct message *m, unsigned short type, const void *data, size_t size) {
	struct rtattr *a = begin_attribute(m, type);
	append(m, data, size);
	end_attribute(m, a);
}

// Sends a request and waits for the kernel's answer. 0 or a negative errno.
static int transact(struct message *m) {
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[256];
	} answer = {.error.error = -EIO};

	cleanup_close int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0 || send(fd, m, m->header.nlmsg_len, 0) < 0)
		return -errno;
	ssize_t n = recv(fd, &answer, sizeof(answer), 0);
	if (n < 0)
		return -errno;
	return n >= (ssize_t)NLMSG_LENGTH(sizeof(answer.error)) && answer.header.nlmsg_type == NLMSG_ERROR ? answer.error.error : -EIO;
}

static int add_address(const char *interface, struct in_addr address, unsigned prefix) {
	struct message m = {.header = {.nlmsg_len = NLMSG_LENGTH(0),
				       .nlmsg_type = RTM_NEWADDR,
				       .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL}};
	const struct ifaddrmsg a = {.ifa_family = AF_INET, .ifa_prefixlen = (uint8_t)prefix, .ifa_index = if_nametoindex(interface)};
	append(&m, &a, sizeof(a));
	attribute(&m, IFA_LOCAL, &address, sizeof(address));
	return transact(&m);
}

// A pair of virtual interfaces (veth(4)): one here, its peer in another namespace.
static int add_pair(const char *here, const char *there, int there_fd) {
	struct message m = {.header = {.nlmsg_len = NLMSG_LENGTH(0),
				       .nlmsg_type = RTM_NEWLINK,
				       .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL}};
	const struct ifinfomsg link = {.ifi_family = AF_UNSPEC};
	append(&m, &link, sizeof(link));
	attribute(&m, IFLA_IFNAME, here, strlen(here) + 1);
	struct rtattr *info = begin_attribute(&m, IFLA_LINKINFO);
	attribute(&m, IFLA_INFO_KIND, "veth", 4);
	struct rtattr *data = begin_attribute(&m, IFLA_INFO_DATA), *peer = begin_attribute(&m, VETH_INFO_PEER);
	append(&m, &link, sizeof(link));
	attribute(&m, IFLA_IFNAME, there, strlen(there) + 1);
	attribute(&m, IFLA_NET_NS_FD, &there_fd, sizeof(there_fd));
	end_attribute(&m, peer);
	end_attribute(&m, data);
	end_attribute(&m, info);
	return transact(&m);
}

// The agent's own namespace.

static int set_up_side(int home_fd, const struct in_addr *addresses, size_t count, struct error *e) {
	static const char here[] = "agent";
	int r = add_pair(here, NETWORK_SIDE_INTERFACE, home_fd);

	for (size_t i = 0; r == 0 && i < count; i++)
		r = add_address(here, addresses[i], NETWORK_SIDE_PREFIX);
	if (r < 0)
		return error_set(e, r, "cannot join the agent's network to the guest's: %s", strerror(-r));
	cleanup_close int fd = open_socket(e);
	return fd < 0 ? fd : bring_up(fd, here, e);
}

int network_side_make(struct network_side *n, const struct in_addr *addresses, size_t count, struct error *e) {
	struct in_addr guest;

	*n = (struct network_side){.home_fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), .side_fd = -1};
	if (n->home_fd < 0 || unshare(CLONE_NEWNET) < 0)
		return error_errno(e, "cannot make a network namespace");
	n->side_fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	int r = n->side_fd < 0 ? error_errno(e, "cannot open a network namespace") : set_up_side(n->home_fd, addresses, count, e);
	if (setns(n->home_fd, CLONE_NEWNET) < 0)
		return error_errno(e, "cannot go back to the guest's network namespace");
	if (r < 0)
		return r;
	inet_pton(AF_INET, NETWORK_SIDE_GUEST_ADDRESS, &guest);
	r = add_address(NETWORK_SIDE_INTERFACE, guest, NETWORK_SIDE_PREFIX);
	if (r < 0)
		return error_set(e, r, "cannot give " NETWORK_SIDE_INTERFACE " its address: %s", strerror(-r));
	cleanup_close int fd = open_socket(e);
	return fd < 0 ? fd : bring_up(fd, NETWORK_SIDE_INTERFACE, e);
}

int network_side_socket(const struct network_side *n) {
	if (setns(n->side_fd, CLONE_NEWNET) < 0)
		return -1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), failure = errno;
	// Without the way back nothing here is right any more; the kernel gives no reason to refuse it.
	if (setns(n->home_fd, CLONE_NEWNET) < 0)
		abort();
	errno = failure;
	return fd;
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
