// rtnetlink requests; see rtnl.h. Each is sent with NLM_F_ACK and waited for.
#include "launch/rtnl.h"

#include <libmnl/libmnl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MESSAGE_ROOM 1024

struct rtnl {
	struct mnl_socket *socket;
	uint32_t sequence;
	char buffer[MESSAGE_ROOM];
};

int rtnl_open(struct rtnl **ret, struct error *e) {
	struct rtnl *r = calloc(1, sizeof(*r));
	if (r == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	r->socket = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
	if (r->socket == NULL || mnl_socket_bind(r->socket, 0, MNL_SOCKET_AUTOPID) < 0) {
		int code = error_errno(e, "cannot open a netlink socket");
		rtnl_close(r);
		return code;
	}
	*ret = r;
	return 0;
}

void rtnl_close(struct rtnl *r) {
	if (r == NULL)
		return;
	if (r->socket != NULL)
		mnl_socket_close(r->socket);
	free(r);
}

static struct nlmsghdr *begin(struct rtnl *r, uint16_t type, uint16_t flags) {
	struct nlmsghdr *m = mnl_nlmsg_put_header(r->buffer);
	m->nlmsg_type = type;
	m->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
	m->nlmsg_seq = ++r->sequence;
	return m;
}

// Returns 0 or the kernel's negative errno.
static int talk(struct rtnl *r, const struct nlmsghdr *m) {
	char answer[4096];
	if (mnl_socket_sendto(r->socket, m, m->nlmsg_len) < 0)
		return -errno;
	for (;;) {
		ssize_t n = mnl_socket_recvfrom(r->socket, answer, sizeof(answer));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		const struct nlmsghdr *h = (const struct nlmsghdr *)answer;
		if (!mnl_nlmsg_ok(h, (int)n) || h->nlmsg_seq != m->nlmsg_seq || h->nlmsg_type != NLMSG_ERROR)
			continue;
		return ((const struct nlmsgerr *)mnl_nlmsg_get_payload(h))->error;
	}
}

static int index_of(const char *name, unsigned *ret, struct error *e) {
	*ret = if_nametoindex(name);
	return *ret == 0 ? error_errno(e, "there is no link %s", name) : 0;
}

int rtnl_add_veth(struct rtnl *r, const char *name, const char *peer, int peer_netns, struct error *e) {
	struct nlmsghdr *m = begin(r, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
	mnl_nlmsg_put_extra_header(m, sizeof(struct ifinfomsg));
	mnl_attr_put_strz(m, IFLA_IFNAME, name);
	struct nlattr *info = mnl_attr_nest_start(m, IFLA_LINKINFO);
	mnl_attr_put_strz(m, IFLA_INFO_KIND, "veth");
	struct nlattr *data = mnl_attr_nest_start(m, IFLA_INFO_DATA);
	struct nlattr *other = mnl_attr_nest_start(m, VETH_INFO_PEER);
	mnl_nlmsg_put_extra_header(m, sizeof(struct ifinfomsg));
	mnl_attr_put_strz(m, IFLA_IFNAME, peer);
	mnl_attr_put_u32(m, IFLA_NET_NS_FD, (uint32_t)peer_netns);
	mnl_attr_nest_end(m, other);
	mnl_attr_nest_end(m, data);
	mnl_attr_nest_end(m, info);
	int code = talk(r, m);
	return code < 0 ? error_set(e, code, "cannot create the veth pair %s, %s: %s", name, peer, strerror(-code)) : 0;
}

int rtnl_set_up(struct rtnl *r, const char *name, bool up, struct error *e) {
	unsigned index;
	int code = index_of(name, &index, e);
	if (code < 0)
		return code;
	struct nlmsghdr *m = begin(r, RTM_NEWLINK, 0);
	struct ifinfomsg *link = mnl_nlmsg_put_extra_header(m, sizeof(*link));
	link->ifi_index = (int)index;
	link->ifi_change = IFF_UP;
	link->ifi_flags = up ? IFF_UP : 0;
	code = talk(r, m);
	return code < 0 ? error_set(e, code, "cannot set the link %s %s: %s", name, up ? "up" : "down", strerror(-code)) : 0;
}

int rtnl_add_address(struct rtnl *r, const char *name, uint32_t address, uint8_t prefix, struct error *e) {
	unsigned index;
	int code = index_of(name, &index, e);
	if (code < 0)
		return code;
	struct nlmsghdr *m = begin(r, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
	struct ifaddrmsg *a = mnl_nlmsg_put_extra_header(m, sizeof(*a));
	a->ifa_family = AF_INET;
	a->ifa_prefixlen = prefix;
	a->ifa_index = index;
	mnl_attr_put_u32(m, IFA_LOCAL, address);
	mnl_attr_put_u32(m, IFA_ADDRESS, address);
	code = talk(r, m);
	return code < 0 ? error_set(e, code, "cannot add an address to %s: %s", name, strerror(-code)) : 0;
}

int rtnl_add_default_route(struct rtnl *r, uint32_t gateway, struct error *e) {
	struct nlmsghdr *m = begin(r, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
	struct rtmsg *route = mnl_nlmsg_put_extra_header(m, sizeof(*route));
	route->rtm_family = AF_INET;
	route->rtm_table = RT_TABLE_MAIN;
	route->rtm_protocol = RTPROT_STATIC;
	route->rtm_scope = RT_SCOPE_UNIVERSE;
	route->rtm_type = RTN_UNICAST;
	mnl_attr_put_u32(m, RTA_GATEWAY, gateway);
	int code = talk(r, m);
	return code < 0 ? error_set(e, code, "cannot add a default route: %s", strerror(-code)) : 0;
}

int rtnl_add_neighbour(struct rtnl *r, const char *name, uint32_t address, const uint8_t mac[6], struct error *e) {
	unsigned index;
	int code = index_of(name, &index, e);
	if (code < 0)
		return code;
	struct nlmsghdr *m = begin(r, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE);
	struct ndmsg *n = mnl_nlmsg_put_extra_header(m, sizeof(*n));
	n->ndm_family = AF_INET;
	n->ndm_ifindex = (int)index;
	n->ndm_state = NUD_PERMANENT;
	mnl_attr_put_u32(m, NDA_DST, address);
	mnl_attr_put(m, NDA_LLADDR, 6, mac);
	code = talk(r, m);
	return code < 0 ? error_set(e, code, "cannot add a neighbour of %s: %s", name, strerror(-code)) : 0;
}

int rtnl_delete_link(struct rtnl *r, const char *name, struct error *e) {
	struct nlmsghdr *m = begin(r, RTM_DELLINK, 0);
	mnl_nlmsg_put_extra_header(m, sizeof(struct ifinfomsg));
	mnl_attr_put_strz(m, IFLA_IFNAME, name);
	int code = talk(r, m);
	return code < 0 && code != -ENODEV ? error_set(e, code, "cannot delete the link %s: %s", name, strerror(-code)) : 0;
}
