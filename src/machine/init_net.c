// The machine's network: QEMU's user network, whose addresses are always the same (10.0.2.15/24, gateway 10.0.2.2, DNS 10.0.2.3).
#include "machine/init.h"

#include "base/cleanup.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

int init_write(const char *path, const char *text) {
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

static struct sockaddr address(const char *text) {
	struct sockaddr_in in = {.sin_family = AF_INET};
	inet_pton(AF_INET, text, &in.sin_addr);
	struct sockaddr a;
	memcpy(&a, &in, sizeof(a));
	return a;
}

static int set_up(int sock, const char *name) {
	struct ifreq r = {.ifr_flags = 0};
	strncpy(r.ifr_name, name, sizeof(r.ifr_name) - 1);
	if (ioctl(sock, SIOCGIFFLAGS, &r) < 0)
		return -errno;
	r.ifr_flags = (short)(r.ifr_flags | IFF_UP | IFF_RUNNING);
	return ioctl(sock, SIOCSIFFLAGS, &r) < 0 ? -errno : 0;
}

static int set_address(int sock, const char *name) {
	struct ifreq r = {.ifr_flags = 0};
	strncpy(r.ifr_name, name, sizeof(r.ifr_name) - 1);
	r.ifr_addr = address("10.0.2.15");
	if (ioctl(sock, SIOCSIFADDR, &r) < 0)
		return -errno;
	r.ifr_netmask = address("255.255.255.0");
	return ioctl(sock, SIOCSIFNETMASK, &r) < 0 ? -errno : 0;
}

int init_network(struct error *e) {
	static const char *const settings[][2] = {
		{"/proc/sys/net/ipv4/ip_forward", "1"},
		{"/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"},
		{"/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"},
		{"/proc/sys/net/core/somaxconn", "4096"},
		{"/proc/sys/vm/overcommit_memory", "1"}, // guests' memory is promised, not used
		{"/proc/sys/kernel/printk", "4 4 1 4"},
		{"/proc/sys/kernel/unprivileged_bpf_disabled", "1"},
		{"/proc/sys/kernel/dmesg_restrict", "1"},
		{"/proc/sys/kernel/kptr_restrict", "2"},
	};
	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		init_write(settings[i][0], settings[i][1]);
	cleanup_close int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return error_errno(e, "the machine's kernel has no IPv4");
	set_up(sock, "lo");
	if (set_up(sock, "eth0") < 0 || set_address(sock, "eth0") < 0)
		return error_set(e, -ENODEV, "the machine has no usable eth0 (module virtio_net missing from machine.initrd?)");
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
	route.rt_dst = address("0.0.0.0");
	route.rt_genmask = address("0.0.0.0");
	route.rt_gateway = address("10.0.2.2");
	if (ioctl(sock, SIOCADDRT, &route) < 0 && errno != EEXIST)
		return error_errno(e, "cannot set the machine's default route");
	return 0;
}
