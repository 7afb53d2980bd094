// What a microVM reaches, with the real network of slots and the real packet filter: packets are written to a slot's tap as its guest would, and it is
// seen whether they arrive. Needs root and nftables; skipped without. Three kinds of network namespace, all made here:
//
//     tap [slot] ── [host] out0 192.0.2.1 ── 192.0.2.2 and all other addresses [outside]
#include "base/clock.h"
#include "guest/guest.h"
#include "launch/firewall.h"
#include "launch/netlink.h"
#include "launch/network.h"
#include "launch/networks.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
// cmocka needs those above
#include <cmocka.h>

#define PORT 7777
#define ARRIVES_MS 2000
#define LOST_MS 150 // nothing here takes longer than a few
#define VNET_HEADER 10

#define NEAR "192.0.2.1" // the host itself
#define INTERNET "198.51.100.1"
#define RESOLVER "198.51.100.53"
#define DATABASE "10.20.0.1"
#define OTHER "10.30.0.1"
#define CLOSED "10.0.2.2" // in a network that --closed names
#define CLOSED_TOO "10.0.2.9"
#define METADATA "169.254.169.254"

static const char config[] =
	"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"10.20.0.0/16\",\"10.0.2.2\"]},\"subnet-b\":{\"cidrs\":[\"10.30.0.0/16\"],"
	"\"dns\":true},\"subnet-all\":{\"cidrs\":[\"0.0.0.0/0\"],\"interface\":\"out0\"},\"subnet-away\":{\"cidrs\":"
	"[\"10.20.0.0/16\"],\"interface\":\"out1\"}}}";
enum { A = 1, B = 2, ALL = 4, AWAY = 8 };

static struct options o = {.range = {0x64400000, 24}, .slots = 64};
static int host, outside, host_routes;
static int outside_socket, outside_dns, host_socket;

static uint32_t ip(const char *text) {
	struct in_addr in = {.s_addr = 0};
	assert_int_equal(inet_pton(AF_INET, text, &in), 1);
	return ntohl(in.s_addr);
}

static int enter_new(void) {
	assert_int_equal(unshare(CLONE_NEWNET), 0);
	int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static int udp(uint16_t port) {
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	return fd;
}

static void link_up(int routes, const char *name) {
	int index = netlink_link_index(routes, name);
	assert_true(index > 0);
	assert_int_equal(netlink_link_up(routes, (unsigned)index), 0);
}

static void add_address(int routes, const char *name, const char *address, unsigned prefix) {
	assert_int_equal(netlink_add_address(routes, (unsigned)netlink_link_index(routes, name), ip(address), prefix), 0);
}

static void forward(void) {
	int fd = open("/proc/sys/net/ipv4/ip_forward", O_WRONLY | O_CLOEXEC);
	assert_int_equal(write(fd, "1", 1), 1);
	close(fd);
}

static int set_up(void **state) {
	static const char *const away[] = {INTERNET, RESOLVER, DATABASE, OTHER, CLOSED, CLOSED_TOO, METADATA};
	struct error e = {.message = ""};
	outside = enter_new();
	int routes = netlink_open(0);
	outside_socket = udp(PORT);
	outside_dns = udp(53);
	host = enter_new();
	host_routes = netlink_open(0);
	host_socket = udp(PORT);
	assert_int_equal(netlink_add_veth(host_routes, "out0", "in0", outside), 0);
	link_up(host_routes, "lo");
	link_up(host_routes, "out0");
	add_address(host_routes, "out0", NEAR, 24);
	link_up(routes, "in0");
	add_address(routes, "in0", "192.0.2.2", 24);
	for (size_t i = 0; i < sizeof(away) / sizeof(away[0]); i++)
		add_address(routes, "in0", away[i], 32);
	assert_int_equal(netlink_add_route(host_routes, 0, 0, ip("192.0.2.2")), 0);
	close(routes);
	forward();
	assert_int_equal(network_parse("10.0.2.0/24", &o.closed[0]), 0);
	o.closed_count = 1;
	o.resolvers[0] = ip(RESOLVER);
	o.resolver_count = 1;
	assert_int_equal(networks_read(config, strlen(config), &o, &e), 0);
	const struct firewall_members nobody = {NULL, 0};
	if (firewall_host(&o, &nobody, &e) < 0)
		fail_msg("%s", e.message);
	return 0;
}

// Slots. ------------------------------------------------------------------------------------------------------------------------

struct made {
	unsigned number;
	struct slot_network network;
	struct firewall_member member;
};

static struct made slot(unsigned number) {
	struct made s = {.number = number, .member.address = slot_inner_address(&o, number)};
	struct error e = {.message = ""};
	if (network_create(&o, number, host, host_routes, &s.network, &e) < 0)
		fail_msg("%s", e.message);
	assert_int_equal(setns(host, CLONE_NEWNET), 0);
	return s;
}

static void end(struct made *s) {
	struct error e;
	assert_int_equal(firewall_leave(&s->member, &e), 0);
	close(s->network.tap);
	close(s->network.routes);
	assert_int_equal(netlink_link_remove(host_routes, s->network.outer), 0);
}

// As stasis-launch does it for a taken slot.
static void join(struct made *s, uint32_t networks, bool confined) {
	struct error e = {.message = ""};
	if (confined)
		assert_int_equal(network_confine(&o, s->number, s->network.routes, networks), 0);
	s->member.networks = networks;
	s->member.confined = confined;
	if (networks != 0 && firewall_join(&s->member, &e) < 0)
		fail_msg("%s", e.message);
}

// Packets. -----------------------------------------------------------------------------------------------------------------------

static uint16_t checksum(const void *data, size_t size) {
	const uint16_t *at = data;
	uint32_t sum = 0;
	for (size_t i = 0; i < size / 2; i++)
		sum += at[i];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void guest_sends(const struct made *s, const char *to, uint16_t port, uint32_t word) {
	static const uint8_t mac[6] = LAUNCH_GUEST_MAC, gateway[6] = LAUNCH_GATEWAY_MAC;
	struct {
		uint8_t header[VNET_HEADER];
		struct ether_header ethernet;
		struct iphdr ip;
		struct udphdr udp;
		uint32_t word;
	} __attribute__((packed)) p = {.ethernet.ether_type = htons(ETHERTYPE_IP), .word = word};
	memcpy(p.ethernet.ether_dhost, gateway, 6); // as a guest remembers it from another slot
	memcpy(p.ethernet.ether_shost, mac, 6);
	struct iphdr header = {.version = 4,
			       .ihl = 5,
			       .ttl = 64,
			       .protocol = IPPROTO_UDP,
			       .tot_len = htons(sizeof(p.ip) + sizeof(p.udp) + sizeof(p.word)),
			       .saddr = htonl(ip(GUEST_ADDRESS)),
			       .daddr = htonl(ip(to))};
	header.check = checksum(&header, sizeof(header));
	p.ip = header;
	p.udp.source = htons(40000);
	p.udp.dest = htons(port);
	p.udp.len = htons(sizeof(p.udp) + sizeof(p.word));
	assert_int_equal(write(s->network.tap, &p, sizeof(p)), sizeof(p));
}

static bool arrives(int at, uint32_t word, int ms) {
	struct pollfd fd = {.fd = at, .events = POLLIN};
	uint32_t got;
	for (uint64_t until = monotonic_ms() + (uint64_t)ms; monotonic_ms() < until;)
		if (poll(&fd, 1, ms) == 1 && recv(at, &got, sizeof(got), 0) == sizeof(got) && got == word)
			return true;
	return false;
}

static bool reaches_port(const struct made *s, const char *to, uint16_t port, bool expected) {
	static uint32_t word;
	guest_sends(s, to, port, ++word);
	int at = strcmp(to, NEAR) == 0 ? host_socket : port == 53 ? outside_dns : outside_socket;
	return arrives(at, word, expected ? ARRIVES_MS : LOST_MS);
}

#define assert_reaches(s, to) assert_true(reaches_port(s, to, PORT, true))
#define assert_lost(s, to) assert_false(reaches_port(s, to, PORT, false))

// Tests. -------------------------------------------------------------------------------------------------------------------------

static void the_internet(void **state) {
	struct made s = slot(0);
	assert_reaches(&s, INTERNET);
	assert_reaches(&s, DATABASE);
	assert_true(reaches_port(&s, RESOLVER, 53, true));
	assert_lost(&s, CLOSED);
	assert_lost(&s, METADATA);
	assert_lost(&s, NEAR);
	end(&s);
}

static void nothing(void **state) {
	struct made s = slot(1);
	join(&s, 0, true);
	static const char *const all[] = {INTERNET, DATABASE, OTHER, CLOSED, METADATA, NEAR};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		assert_lost(&s, all[i]);
	assert_false(reaches_port(&s, RESOLVER, 53, false));
	end(&s);
}

static void networks_alone(void **state) {
	struct made s = slot(2), neighbour = slot(3);
	join(&s, A, true);
	assert_reaches(&s, DATABASE);
	assert_reaches(&s, CLOSED); // named by the operator
	assert_lost(&s, CLOSED_TOO);
	assert_lost(&s, OTHER);
	assert_lost(&s, INTERNET);
	assert_lost(&s, METADATA);
	assert_lost(&s, NEAR);
	assert_false(reaches_port(&s, RESOLVER, 53, false));
	// Others gained nothing.
	assert_lost(&neighbour, CLOSED);
	assert_reaches(&neighbour, INTERNET);
	end(&s);
	end(&neighbour);
}

static void two_networks_and_dns(void **state) {
	struct made s = slot(4);
	join(&s, A | B, true);
	assert_reaches(&s, DATABASE);
	assert_reaches(&s, OTHER);
	assert_true(reaches_port(&s, RESOLVER, 53, true));
	assert_lost(&s, RESOLVER); // other ports of it
	assert_lost(&s, INTERNET);
	end(&s);
}

static void networks_and_the_internet(void **state) {
	struct made s = slot(5);
	join(&s, A, false);
	assert_reaches(&s, INTERNET);
	assert_reaches(&s, CLOSED);
	assert_lost(&s, CLOSED_TOO);
	assert_lost(&s, METADATA);
	end(&s);
}

static void all_through_one_interface(void **state) {
	struct made s = slot(6), t = slot(7);
	join(&s, ALL, true);
	assert_reaches(&s, INTERNET);
	assert_reaches(&s, DATABASE);
	assert_lost(&s, CLOSED); // inside of what was named, but not named itself
	assert_lost(&s, METADATA);
	assert_lost(&s, NEAR);
	join(&t, AWAY, true);
	assert_lost(&t, DATABASE); // the host routes it elsewhere
	end(&s);
	end(&t);
}

// The host's filter does not rely on the namespace, whose routes a VMM that was taken over has around it.
static void the_host_confines_too(void **state) {
	struct made s = slot(8);
	struct error e;
	s.member = (struct firewall_member){.address = s.member.address, .networks = A, .confined = true};
	assert_int_equal(firewall_join(&s.member, &e), 0);
	assert_reaches(&s, DATABASE);
	assert_lost(&s, INTERNET);
	assert_lost(&s, OTHER);
	// A filter that is made anew knows its members.
	assert_int_equal(firewall_host(&o, &(struct firewall_members){&s.member, 1}, &e), 0);
	assert_reaches(&s, CLOSED);
	assert_lost(&s, INTERNET);
	// The next microVM with this address inherits nothing.
	assert_int_equal(firewall_leave(&s.member, &e), 0);
	assert_int_equal(firewall_leave(&s.member, &e), 0);
	assert_lost(&s, CLOSED);
	assert_reaches(&s, INTERNET);
	end(&s);
}

static void joining_is_quick(void **state) {
	struct error e;
	uint64_t joining = 0, leaving = 0;
	for (uint32_t i = 0; i < 50; i++) {
		const struct firewall_member m = {.address = o.range.address + i, .networks = A | B | ALL, .confined = true};
		uint64_t from = monotonic_ns();
		assert_int_equal(firewall_join(&m, &e), 0);
		uint64_t between = monotonic_ns();
		assert_int_equal(firewall_leave(&m, &e), 0);
		joining += between - from;
		leaving += monotonic_ns() - between;
	}
	print_message("three networks: joining %llu us, leaving %llu us\n", (unsigned long long)joining / 50000,
		      (unsigned long long)leaving / 50000);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_internet),
		cmocka_unit_test(nothing),
		cmocka_unit_test(networks_alone),
		cmocka_unit_test(two_networks_and_dns),
		cmocka_unit_test(networks_and_the_internet),
		cmocka_unit_test(all_through_one_interface),
		cmocka_unit_test(the_host_confines_too),
		cmocka_unit_test(joining_is_quick),
	};
	if (geteuid() != 0 || access("/dev/net/tun", R_OK | W_OK) < 0) {
		fputs("needs root and /dev/net/tun\n", stderr);
		return 77;
	}
	return cmocka_run_group_tests(tests, set_up, NULL);
}
