// rtnetlink (man 7 rtnetlink), messages put together with libmnl.
#include "launch/netlink.h"

#include "base/cleanup.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/if_link.h>
#include <linux/ip.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROOM 8192
#define REPLIES_MOST 64

int netlink_open(uint32_t groups) {
	cleanup_close int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | (groups != 0 ? SOCK_NONBLOCK : 0), NETLINK_ROUTE);
	struct sockaddr_nl a = {.nl_family = AF_NETLINK, .nl_groups = groups};
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		return -errno;
	return take_fd(&fd);
}

// Sends the request and takes its answer: an error code, or for a link asked for its index.
static int talk(int sock, struct nlmsghdr *request) {
	static uint32_t sequence;
	char data[ROOM];
	request->nlmsg_seq = ++sequence;
	request->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	if (sendto(sock, request, request->nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof(kernel)) < 0)
		return -errno;
	int index = 0;
	for (int tries = 0; tries < REPLIES_MOST; tries++) {
		ssize_t n = recv(sock, data, sizeof(data), 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		int left = (int)n;
		for (struct nlmsghdr *h = (struct nlmsghdr *)data; mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left)) {
			if (h->nlmsg_seq != sequence)
				continue;
			if (h->nlmsg_type == RTM_NEWLINK && mnl_nlmsg_get_payload_len(h) >= sizeof(struct ifinfomsg))
				index = ((struct ifinfomsg *)mnl_nlmsg_get_payload(h))->ifi_index;
			if (h->nlmsg_type == NLMSG_ERROR && mnl_nlmsg_get_payload_len(h) >= sizeof(struct nlmsgerr)) {
				int code = ((struct nlmsgerr *)mnl_nlmsg_get_payload(h))->error;
				return code < 0 ? code : index;
			}
		}
	}
	return -EPROTO;
}

static struct nlmsghdr *start(char data[ROOM], uint16_t type, uint16_t flags, size_t extra, void **ret) {
	struct nlmsghdr *h = mnl_nlmsg_put_header(data);
	h->nlmsg_type = type;
	h->nlmsg_flags = flags;
	*ret = mnl_nlmsg_put_extra_header(h, extra);
	return h;
}

static struct nlmsghdr *start_link(char data[ROOM], uint16_t type, uint16_t flags, unsigned index) {
	void *extra;
	struct nlmsghdr *h = start(data, type, flags, sizeof(struct ifinfomsg), &extra);
	((struct ifinfomsg *)extra)->ifi_index = (int)index;
	return h;
}

int netlink_add_veth(int sock, const char *inner, const char *outer, int outer_namespace) {
	char data[ROOM];
	struct nlmsghdr *h = start_link(data, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0);
	mnl_attr_put_strz(h, IFLA_IFNAME, inner);
	struct nlattr *info = mnl_attr_nest_start(h, IFLA_LINKINFO);
	mnl_attr_put_str(h, IFLA_INFO_KIND, "veth");
	struct nlattr *details = mnl_attr_nest_start(h, IFLA_INFO_DATA);
	struct nlattr *peer = mnl_attr_nest_start(h, VETH_INFO_PEER);
	mnl_nlmsg_put_extra_header(h, sizeof(struct ifinfomsg));
	mnl_attr_put_strz(h, IFLA_IFNAME, outer);
	mnl_attr_put_u32(h, IFLA_NET_NS_FD, (uint32_t)outer_namespace);
	mnl_attr_nest_end(h, peer);
	mnl_attr_nest_end(h, details);
	mnl_attr_nest_end(h, info);
	return talk(sock, h);
}

int netlink_link_index(int sock, const char *name) {
	char data[ROOM];
	struct nlmsghdr *h = start_link(data, RTM_GETLINK, 0, 0);
	mnl_attr_put_strz(h, IFLA_IFNAME, name);
	int code = talk(sock, h);
	return code == 0 ? -ENODEV : code;
}

int netlink_link_up(int sock, unsigned index) {
	char data[ROOM];
	struct nlmsghdr *h = start_link(data, RTM_NEWLINK, 0, index);
	struct ifinfomsg *m = mnl_nlmsg_get_payload(h);
	m->ifi_flags = IFF_UP;
	m->ifi_change = IFF_UP;
	return talk(sock, h);
}

int netlink_link_set_mac(int sock, unsigned index, const uint8_t mac[6]) {
	char data[ROOM];
	struct nlmsghdr *h = start_link(data, RTM_NEWLINK, 0, index);
	mnl_attr_put(h, IFLA_ADDRESS, 6, mac);
	return talk(sock, h);
}

int netlink_link_remove(int sock, unsigned index) {
	char data[ROOM];
	return talk(sock, start_link(data, RTM_DELLINK, 0, index));
}

int netlink_strict_reverse_path(int sock, unsigned index) {
	char data[ROOM];
	struct nlmsghdr *h = start_link(data, RTM_NEWLINK, 0, index);
	struct nlattr *families = mnl_attr_nest_start(h, IFLA_AF_SPEC);
	struct nlattr *inet = mnl_attr_nest_start(h, AF_INET);
	struct nlattr *settings = mnl_attr_nest_start(h, IFLA_INET_CONF);
	mnl_attr_put_u32(h, IPV4_DEVCONF_RP_FILTER, 1);
	mnl_attr_nest_end(h, settings);
	mnl_attr_nest_end(h, inet);
	mnl_attr_nest_end(h, families);
	return talk(sock, h);
}

int netlink_add_address(int sock, unsigned index, uint32_t address, unsigned prefix) {
	char data[ROOM];
	void *extra;
	struct nlmsghdr *h = start(data, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, sizeof(struct ifaddrmsg), &extra);
	*(struct ifaddrmsg *)extra = (struct ifaddrmsg){.ifa_family = AF_INET, .ifa_prefixlen = (uint8_t)prefix, .ifa_index = index};
	mnl_attr_put_u32(h, IFA_LOCAL, htonl(address));
	mnl_attr_put_u32(h, IFA_ADDRESS, htonl(address));
	return talk(sock, h);
}

static struct nlmsghdr *start_route(char data[ROOM], uint16_t type, uint16_t flags) {
	void *extra;
	struct nlmsghdr *h = start(data, type, flags, sizeof(struct rtmsg), &extra);
	*(struct rtmsg *)extra = (struct rtmsg){.rtm_family = AF_INET,
						.rtm_table = RT_TABLE_MAIN,
						.rtm_protocol = RTPROT_STATIC,
						.rtm_scope = type == RTM_DELROUTE ? RT_SCOPE_NOWHERE : RT_SCOPE_UNIVERSE,
						.rtm_type = type == RTM_DELROUTE ? RTN_UNSPEC : RTN_UNICAST};
	return h;
}

int netlink_add_route(int sock, uint32_t address, unsigned prefix, uint32_t gateway) {
	char data[ROOM];
	struct nlmsghdr *h = start_route(data, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
	((struct rtmsg *)mnl_nlmsg_get_payload(h))->rtm_dst_len = (unsigned char)prefix;
	if (prefix > 0)
		mnl_attr_put_u32(h, RTA_DST, htonl(address));
	mnl_attr_put_u32(h, RTA_GATEWAY, htonl(gateway));
	return talk(sock, h);
}

int netlink_remove_default_route(int sock) {
	char data[ROOM];
	return talk(sock, start_route(data, RTM_DELROUTE, 0));
}

int netlink_add_neighbour(int sock, unsigned index, uint32_t address, const uint8_t mac[6]) {
	char data[ROOM];
	void *extra;
	struct nlmsghdr *h = start(data, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, sizeof(struct ndmsg), &extra);
	*(struct ndmsg *)extra = (struct ndmsg){.ndm_family = AF_INET, .ndm_ifindex = (int)index, .ndm_state = NUD_PERMANENT};
	mnl_attr_put_u32(h, NDA_DST, htonl(address));
	mnl_attr_put(h, NDA_LLADDR, 6, mac);
	return talk(sock, h);
}

int netlink_read_gone(int sock, void (*gone)(void *arg, unsigned index), void *arg) {
	char data[4 * ROOM];
	for (;;) {
		ssize_t n = recv(sock, data, sizeof(data), MSG_DONTWAIT);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		int left = (int)n;
		for (struct nlmsghdr *h = (struct nlmsghdr *)data; mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left))
			if (h->nlmsg_type == RTM_DELLINK && mnl_nlmsg_get_payload_len(h) >= sizeof(struct ifinfomsg))
				gone(arg, (unsigned)((struct ifinfomsg *)mnl_nlmsg_get_payload(h))->ifi_index);
	}
}
