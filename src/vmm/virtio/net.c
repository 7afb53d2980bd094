// Network device (virtio 1.2, section 5.1) over a tap whose packets carry the same header as the device's (struct virtio_net_hdr_v1).
//
// Sending: a chain goes to the tap as it is, header included; the kernel checks the header and does checksums and segmentation. Receiving: a
// packet is read into one buffer of the device's and copied to as many chains as it takes (VIRTIO_NET_F_MRG_RXBUF, section 5.1.6.4). When
// the driver has no room, the packet stays in that buffer and the tap is not read any more; the tap's own queue then fills and drops.
// A tap that does not take a packet at the moment makes sending wait as well, until it is writable.
//
// A descriptor that is no tap: /dev/null means that there is no link; sockets work like a tap without offloads.
#include "vmm/virtio/device.h"

#include "base/log.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { QUEUE_RECEIVE, QUEUE_TRANSMIT, QUEUE_COUNT };

#define HEADER_BYTES sizeof(struct virtio_net_hdr_v1)
#define PACKET_MAX (HEADER_BYTES + 14 + 65535 + 4) // header, Ethernet with a VLAN tag, the longest IP packet
#define PACKETS_PER_WAKE 128u
#define CHAINS_PER_PACKET 64u
#define MTU 1500u

struct net {
	struct virtio_device device;
	int tap;
	bool link; // the descriptor can be read
	bool is_tap;
	bool no_room; // the driver has no receive buffers: the tap is not polled for input
	bool full;    // the tap took no packet: it is polled for output
	uint32_t polled;
	struct loop_handler handler;
	uint64_t rx_bytes, tx_bytes, dropped;
	uint32_t held; // bytes of a packet that waits for room in the driver's queue
	uint8_t packet[PACKET_MAX];
};

static struct net *net_of(struct virtio_device *d) {
	return (struct net *)d;
}

// Polls the tap for what can be used.
static void poll_tap(struct net *n) {
	struct virtio_device *d = &n->device;
	uint32_t events = 0;
	if (n->link && device_is_live(d)) {
		if (!n->no_room && d->queues[QUEUE_RECEIVE].ready)
			events |= EPOLLIN;
		if (n->full)
			events |= EPOLLOUT;
	}
	if (events == n->polled)
		return;
	// A descriptor without events still reports EPOLLHUP and EPOLLERR, over and over: it has to leave the set.
	int r = 0;
	if (events == 0)
		loop_remove(d->host.loop, n->tap);
	else if (n->polled == 0)
		r = loop_add(d->host.loop, n->tap, events, &n->handler);
	else
		r = loop_change(d->host.loop, n->tap, events, &n->handler);
	if (r == 0)
		n->polled = events;
}

// Hands the packet in the buffer to the driver. Returns false when there is no room for it now; the packet is kept then. A packet that fits
// nowhere is dropped.
static bool deliver(struct net *n) {
	struct virtio_queue *q = &n->device.queues[QUEUE_RECEIVE];
	unsigned chains_max = device_accepted(&n->device, VIRTIO_NET_F_MRG_RXBUF) ? CHAINS_PER_PACKET : 1;
	struct chain first = {.head = 0}, more;
	uint16_t heads[CHAINS_PER_PACKET], before = q->next_available;
	uint32_t filled[CHAINS_PER_PACKET], done = 0;
	unsigned chains = 0;
	for (; done < n->held && chains < chains_max; chains++) {
		struct chain *c = chains == 0 ? &first : &more;
		int r = queue_pop(q, c);
		if (r == 0)
			q->next_available = before; // as if none had been taken
		if (r <= 0)
			return r < 0;
		if (chains == 0 && c->writable_bytes < HEADER_BYTES) {
			device_break(&n->device, "receive buffer shorter than a header");
			return true;
		}
		heads[chains] = c->head;
		filled[chains] = (uint32_t)iov_write(c->iov + c->readable_count, c->writable_count, 0, n->packet + done, n->held - done);
		done += filled[chains];
	}
	if (done < n->held) {
		q->next_available = before;
		n->dropped++;
		return true;
	}
	uint16_t count = (uint16_t)chains;
	iov_write(first.iov + first.readable_count, first.writable_count, offsetof(struct virtio_net_hdr_v1, num_buffers), &count,
		  sizeof(count));
	for (unsigned i = 0; i < chains; i++)
		queue_push(q, heads[i], filled[i]);
	n->rx_bytes += n->held - HEADER_BYTES;
	return true;
}

// Reads the next packet into the buffer. Returns false when there is none.
static bool read_packet(struct net *n) {
	for (;;) {
		ssize_t got = read(n->tap, n->packet, sizeof(n->packet));
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return false;
		if (got <= 0) {
			// The tap is gone. The guest sees no difference to a network on which nobody speaks.
			log_warn("net.tap_lost", LOG_S("error", got < 0 ? strerror(errno) : "end of file"));
			n->link = false;
			return false;
		}
		if ((size_t)got <= HEADER_BYTES)
			continue;
		n->held = (uint32_t)got;
		return true;
	}
}

static void receive(struct net *n) {
	struct virtio_device *d = &n->device;
	unsigned packets = 0;
	while (n->link && !n->no_room && device_is_live(d) && packets < PACKETS_PER_WAKE) {
		if (n->held == 0 && !read_packet(n))
			break;
		packets++;
		if (deliver(n))
			n->held = 0;
		else
			n->no_room = true;
	}
	queue_signal(&d->queues[QUEUE_RECEIVE]);
	poll_tap(n); // level-triggered: what is left comes again, after the others
}

static void transmit(struct net *n) {
	struct virtio_device *d = &n->device;
	struct virtio_queue *q = &d->queues[QUEUE_TRANSMIT];
	struct chain c;
	unsigned packets = 0;
	while (!n->full && packets < PACKETS_PER_WAKE && queue_pop(q, &c) == 1) {
		packets++;
		ssize_t sent = -1;
		errno = EINVAL;
		if (n->link && c.readable_bytes > HEADER_BYTES && c.readable_bytes <= PACKET_MAX)
			sent = writev(n->tap, c.iov, (int)c.readable_count);
		if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			queue_unpop(q);
			n->full = true;
			break;
		}
		if (sent > (ssize_t)HEADER_BYTES)
			n->tx_bytes += (uint64_t)sent - HEADER_BYTES;
		else
			n->dropped++;
		queue_push(q, c.head, 0);
	}
	queue_signal(q);
	poll_tap(n);
	if (packets == PACKETS_PER_WAKE)
		queue_kick(q);
}

static void tap_ready(void *arg, uint32_t events) {
	struct net *n = arg;
	if (!device_is_live(&n->device))
		return;
	if ((events & EPOLLOUT) != 0 && n->full) {
		n->full = false;
		transmit(n);
	}
	if ((events & ~(uint32_t)EPOLLOUT) != 0)
		receive(n);
}

static void net_notify(struct virtio_device *d, unsigned queue) {
	struct net *n = net_of(d);
	if (queue == QUEUE_TRANSMIT) {
		transmit(n);
	} else {
		n->no_room = false;
		receive(n);
	}
}

// What the driver can receive is what the tap may give (section 5.1.6.4); its header has our size.
static void net_start(struct virtio_device *d) {
	struct net *n = net_of(d);
	int header_bytes = HEADER_BYTES;
	unsigned offloads = 0;
	if (device_accepted(d, VIRTIO_NET_F_GUEST_CSUM)) {
		offloads |= TUN_F_CSUM;
		if (device_accepted(d, VIRTIO_NET_F_GUEST_TSO4))
			offloads |= TUN_F_TSO4;
		if (device_accepted(d, VIRTIO_NET_F_GUEST_TSO6))
			offloads |= TUN_F_TSO6;
	}
	if (n->is_tap && (ioctl(n->tap, TUNSETVNETHDRSZ, &header_bytes) < 0 || ioctl(n->tap, TUNSETOFFLOAD, offloads) < 0)) {
		log_warn("net.tap_refused", LOG_S("error", strerror(errno)));
		n->link = false;
	}
	n->no_room = n->full = false;
	poll_tap(n);
}

static void net_stop(struct virtio_device *d) {
	struct net *n = net_of(d);
	if (n->polled != 0)
		loop_remove(d->host.loop, n->tap);
	n->polled = 0;
}

static void net_reset(struct virtio_device *d) {
	struct net *n = net_of(d);
	n->held = 0;
	n->no_room = n->full = false;
}

static void net_save(struct virtio_device *d, struct writer *w) {
	write_bytes(w, d->config, d->config_size);
}

static int net_load(struct virtio_device *d, struct reader *r, struct error *e) {
	struct virtio_net_config now, saved = {0};
	memcpy(&now, d->config, sizeof(now));
	read_copy(r, &saved, d->config_size);
	if (!r->bad && memcmp(saved.mac, now.mac, sizeof(now.mac)) != 0)
		return error_set(e, -EINVAL, "net: the snapshot has another MAC address; give the one that the guest was started with");
	if (saved.status != now.status)
		device_config_changed(d);
	return 0;
}

static void net_stats(const struct virtio_device *d, struct vmm_stats *s) {
	const struct net *n = (const struct net *)d;
	s->net_rx_bytes += n->rx_bytes;
	s->net_tx_bytes += n->tx_bytes;
	s->net_dropped += n->dropped;
}

static void net_destroy(struct virtio_device *d) {
	net_stop(d);
	close(net_of(d)->tap);
	free(net_of(d));
}

static const struct virtio_ops net_ops = {
	.name = "net",
	.notify = net_notify,
	.start = net_start,
	.stop = net_stop,
	.reset = net_reset,
	.save = net_save,
	.load = net_load,
	.stats = net_stats,
	.destroy = net_destroy,
};

static void describe(struct net *n, const uint8_t mac[6]) {
	struct virtio_device *d = &n->device;
	struct virtio_net_config config = {.status = n->link ? VIRTIO_NET_S_LINK_UP : 0, .mtu = MTU};
	memcpy(config.mac, mac, sizeof(config.mac));
	d->config_size = offsetof(struct virtio_net_config, mtu) + sizeof(config.mtu);
	memcpy(d->config, &config, d->config_size);
	// The same whatever the descriptor is, so that a snapshot goes with any.
	d->offered |= 1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_HOST_TSO4 | 1ull << VIRTIO_NET_F_HOST_TSO6 |
		      1ull << VIRTIO_NET_F_GUEST_CSUM | 1ull << VIRTIO_NET_F_GUEST_TSO4 | 1ull << VIRTIO_NET_F_GUEST_TSO6 |
		      1ull << VIRTIO_NET_F_MRG_RXBUF | 1ull << VIRTIO_NET_F_MAC | 1ull << VIRTIO_NET_F_STATUS | 1ull << VIRTIO_NET_F_MTU;
}

// Finds out what the descriptor is.
static int examine(struct net *n, struct error *e) {
	struct stat st;
	struct ifreq request;
	int flags = fcntl(n->tap, F_GETFL);
	if (flags < 0 || fstat(n->tap, &st) < 0 || fcntl(n->tap, F_SETFL, flags | O_NONBLOCK) < 0)
		return error_errno(e, "net: the tap's descriptor is of no use");
	n->is_tap = ioctl(n->tap, TUNGETIFF, &request) == 0;
	n->link = !(S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3)); // /dev/null
	return 0;
}

int virtio_net_create(const struct virtio_host *host, unsigned line, int tap_fd, const uint8_t mac[6], struct virtio_device **ret,
		      struct error *e) {
	struct net *n = calloc(1, sizeof(*n));
	if (n == NULL) {
		close(tap_fd);
		return error_set(e, -ENOMEM, "net: no memory");
	}
	n->tap = tap_fd;
	n->handler = (struct loop_handler){.ready = tap_ready, .arg = n};
	int r = examine(n, e);
	if (r == 0)
		r = device_init(&n->device, host, line, VIRTIO_ID_NET, &net_ops, (const unsigned[]){256, 256}, QUEUE_COUNT, e);
	if (r < 0) {
		close(tap_fd);
		free(n);
		return r;
	}
	describe(n, mac);
	*ret = &n->device;
	return 0;
}
