// The vsock device's queues and packets (virtio 1.2, section 5.10); see vsock.h.
//
// Packets to the guest are made when there is a buffer for them: a stream that has something to send stands in a line, and each in turn sends one
// packet. So control packets need no memory of their own, but for RSTs to streams that do not exist: few of these can wait, and when they are too many, the
// guest's packets are not looked at until there is room (section 5.10.6.1.2 asks for such a limit).
#include "vmm/virtio/vsock.h"

#include "base/clock.h"

#include <linux/virtio_vsock.h>
#include <linux/vm_sockets.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADER_BYTES ((uint32_t)sizeof(struct virtio_vsock_hdr))
#define PACKETS_PER_WAKE 256u
#define SHUTDOWN_BOTH (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)

// Streams

struct stream *stream_new(struct vsock *v, uint32_t guest_port) {
	if (v->stream_count == STREAMS_MAX)
		return NULL;
	unsigned slot = v->high_slot;
	// Slots are taken in turn as long as there are fresh ones; then any free one.
	if (slot < STREAMS_MAX)
		v->high_slot++;
	else
		for (slot = 0; v->streams[slot].state != STREAM_FREE;)
			slot++;
	struct stream *s = &v->streams[slot];
	*s = (struct stream){.vsock = v, .fd = -1, .state = STREAM_CONNECTING, .guest_port = guest_port};
	s->host_port = HOST_PORT_FIRST | ((v->sequence++ << STREAM_SLOT_BITS) & (HOST_PORT_FIRST - 1)) | slot;
	v->stream_count++;
	return s;
}

void stream_free(struct stream *s) {
	struct vsock *v = s->vsock;
	stream_close_socket(s);
	if (s->queued)
		TAILQ_REMOVE(&v->ready, s, ready);
	stream_buffer_drop(s);
	free(s->to_guest.data);
	*s = (struct stream){.vsock = v, .fd = -1};
	v->stream_count--;
	while (v->high_slot > 0 && v->streams[v->high_slot - 1].state == STREAM_FREE)
		v->high_slot--;
}

static uint32_t credit(const struct stream *s) {
	uint32_t under_way = s->sent - s->peer_forwarded;
	return under_way < s->peer_room ? s->peer_room - under_way : 0;
}

static bool has_data(const struct stream *s) {
	return s->state == STREAM_OPEN && (s->host_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) == 0 &&
	       (s->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV) == 0 && (s->to_guest.used > 0 || (s->fd >= 0 && s->readable && !s->eof));
}

// The end of sending goes behind all data; the end of receiving need not wait.
static bool shutdown_due(const struct stream *s) {
	return (s->pending & SEND_SHUTDOWN) != 0 && ((s->shutdown_wanted & VIRTIO_VSOCK_SHUTDOWN_SEND) == 0 || !has_data(s));
}

// Whether the stream would send a packet now.
static bool can_send(struct stream *s) {
	if ((s->pending & SEND_REQUEST) != 0 && s->vsock->reset_step != RESET_NONE)
		return false; // the driver would reset the new stream with the old ones
	if ((s->pending & ~SEND_SHUTDOWN) != 0 || shutdown_due(s))
		return true;
	return has_data(s) && credit(s) > 0;
}

void stream_wake(struct stream *s) {
	if (!s->queued && has_data(s) && credit(s) == 0 && !s->credit_asked) {
		// The driver tells of its room by itself; asking costs one packet and heals whatever went wrong.
		s->credit_asked = true;
		s->pending |= SEND_CREDIT_ASK;
	}
	if (s->queued || !can_send(s))
		return;
	TAILQ_INSERT_TAIL(&s->vsock->ready, s, ready);
	s->queued = true;
}

void stream_send(struct stream *s, uint8_t what) {
	s->pending |= what;
	stream_wake(s);
}

void stream_reset(struct stream *s) {
	stream_close_socket(s);
	s->state = STREAM_RESETTING;
	s->detached = false;
	s->to_host.used = s->to_guest.used = 0;
	s->pending = 0;
	s->deadline = 0;
	stream_send(s, SEND_RST);
}

// Packets to the guest

static void put_header(struct stream *s, const struct chain *c, uint16_t op, uint32_t bytes, uint32_t flags) {
	struct virtio_vsock_hdr h = {
		.src_cid = VMADDR_CID_HOST,
		.dst_cid = s->vsock->guest_cid,
		.src_port = s->host_port,
		.dst_port = s->guest_port,
		.len = bytes,
		.type = VIRTIO_VSOCK_TYPE_STREAM,
		.op = op,
		.flags = flags,
		.buf_alloc = STREAM_BUFFER_BYTES,
		.fwd_cnt = s->forwarded,
	};
	iov_write(c->iov + c->readable_count, c->writable_count, 0, &h, sizeof(h));
	// Each packet tells of our room.
	s->forwarded_told = s->forwarded;
	s->pending &= (uint8_t)~SEND_CREDIT;
}

// Puts data into the chain. Returns the number of bytes; 0: there was none.
static uint32_t put_data(struct stream *s, const struct chain *c) {
	uint32_t most = c->writable_bytes - HEADER_BYTES, allowed = credit(s);
	most = most < allowed ? most : allowed;
	most = most < PACKET_PAYLOAD_MAX ? most : PACKET_PAYLOAD_MAX;
	if (most == 0)
		return 0;
	const struct iovec *iov = c->iov + c->readable_count;
	uint32_t n;
	if (s->to_guest.used > 0) {
		n = s->to_guest.used < most ? s->to_guest.used : most;
		iov_write(iov, c->writable_count, HEADER_BYTES, s->to_guest.data + s->to_guest.start, n);
		s->to_guest.start += n;
		s->to_guest.used -= n;
	} else {
		n = stream_read(s, iov, c->writable_count, HEADER_BYTES, most);
	}
	s->sent += n;
	s->vsock->rx_bytes += n;
	return n;
}

static void put_shutdown(struct stream *s, const struct chain *c) {
	s->pending &= (uint8_t)~SEND_SHUTDOWN;
	s->host_shutdown |= s->shutdown_wanted;
	put_header(s, c, VIRTIO_VSOCK_OP_SHUTDOWN, 0, s->host_shutdown);
	if (s->host_shutdown == SHUTDOWN_BOTH && s->state == STREAM_OPEN) {
		stream_close_socket(s);
		s->to_host.used = 0;
		s->detached = false;
		s->state = STREAM_CLOSING;
		s->deadline = monotonic_ms() + CLOSE_TIMEOUT_MS;
		vsock_tick_soon(s->vsock);
	}
}

// Makes one packet. Returns its size; 0: there was nothing to send after all. The stream may be free afterwards.
static uint32_t put_packet(struct stream *s, const struct chain *c) {
	if ((s->pending & SEND_RST) != 0) {
		put_header(s, c, VIRTIO_VSOCK_OP_RST, 0, 0);
		s->pending = 0;
		if (s->state == STREAM_RESETTING)
			stream_free(s);
		else
			stream_flush(s);
		return HEADER_BYTES;
	}
	if ((s->pending & SEND_REQUEST) != 0) {
		s->pending &= (uint8_t)~SEND_REQUEST;
		put_header(s, c, VIRTIO_VSOCK_OP_REQUEST, 0, 0);
		return HEADER_BYTES;
	}
	uint32_t n = has_data(s) ? put_data(s, c) : 0;
	if (n > 0) {
		put_header(s, c, VIRTIO_VSOCK_OP_RW, n, 0);
		return HEADER_BYTES + n;
	}
	if (shutdown_due(s)) {
		put_shutdown(s, c);
		return HEADER_BYTES;
	}
	if ((s->pending & SEND_CREDIT) != 0) {
		put_header(s, c, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, 0);
		return HEADER_BYTES;
	}
	if ((s->pending & SEND_CREDIT_ASK) != 0) {
		s->pending &= (uint8_t)~SEND_CREDIT_ASK;
		put_header(s, c, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 0, 0);
		return HEADER_BYTES;
	}
	return 0;
}

// An RST for a stream that does not exist.
static uint32_t put_stray_reset(struct vsock *v, const struct chain *c) {
	struct virtio_vsock_hdr h = {
		.src_cid = VMADDR_CID_HOST,
		.dst_cid = v->guest_cid,
		.src_port = v->resets[v->reset_first].host_port,
		.dst_port = v->resets[v->reset_first].guest_port,
		.type = v->resets[v->reset_first].type,
		.op = VIRTIO_VSOCK_OP_RST,
	};
	v->reset_first = (v->reset_first + 1) % RESETS_MAX;
	v->reset_count--;
	return (uint32_t)iov_write(c->iov + c->readable_count, c->writable_count, 0, &h, sizeof(h));
}

static uint32_t fill(struct vsock *v, const struct chain *c) {
	if (v->reset_count > 0)
		return put_stray_reset(v, c);
	struct stream *s = TAILQ_FIRST(&v->ready);
	TAILQ_REMOVE(&v->ready, s, ready);
	s->queued = false;
	uint32_t n = put_packet(s, c);
	if (s->state != STREAM_FREE)
		stream_wake(s);
	return n;
}

void vsock_deliver(struct vsock *v) {
	struct virtio_queue *q = &v->device.queues[VSOCK_RECEIVE];
	struct chain c;
	unsigned packets = 0;
	while ((v->reset_count > 0 || !TAILQ_EMPTY(&v->ready)) && packets < PACKETS_PER_WAKE && queue_pop(q, &c) == 1) {
		if (c.writable_bytes <= HEADER_BYTES) {
			device_break(&v->device, "receive buffer without room for data");
			break;
		}
		uint32_t n = fill(v, &c);
		if (n == 0) {
			queue_unpop(q);
			continue; // that stream has left the line
		}
		queue_push(q, c.head, n);
		packets++;
	}
	queue_signal(q);
	if (packets == PACKETS_PER_WAKE)
		queue_kick(q);
	if (v->stalled && v->reset_count < RESETS_MAX / 2) {
		v->stalled = false;
		queue_kick(&v->device.queues[VSOCK_TRANSMIT]);
	}
}

// Packets from the guest

static struct stream *find(struct vsock *v, const struct virtio_vsock_hdr *h) {
	struct stream *s = &v->streams[h->dst_port & (STREAMS_MAX - 1)];
	bool known = s->state != STREAM_FREE && !(s->state == STREAM_CONNECTING && (s->pending & SEND_REQUEST) != 0);
	return known && s->host_port == h->dst_port && s->guest_port == h->src_port ? s : NULL;
}

static void stray_reset(struct vsock *v, const struct virtio_vsock_hdr *h) {
	if (h->op == VIRTIO_VSOCK_OP_RST)
		return;
	unsigned at = (v->reset_first + v->reset_count) % RESETS_MAX;
	v->resets[at].host_port = h->dst_port;
	v->resets[at].guest_port = h->src_port;
	v->resets[at].type = h->type;
	v->reset_count++;
}

static void guest_response(struct stream *s) {
	if (s->state != STREAM_CONNECTING) {
		stream_reset(s);
		return;
	}
	s->state = STREAM_OPEN;
	s->deadline = 0;
	s->readable = true; // the client may have sent something already
	if (!stream_answer(s, NULL))
		stream_reset(s);
}

// The guest has ended the stream: by RST, or by a whole shutdown, which wants to be answered with one (section 5.10.6.6).
static void guest_end(struct stream *s, bool answer) {
	if (s->state == STREAM_DRAINING) {
		if (answer)
			stream_send(s, SEND_RST);
		return;
	}
	if (s->state == STREAM_CONNECTING)
		stream_answer(s, "ECONNREFUSED");
	s->to_guest.used = 0;
	s->pending = 0;
	if (s->state == STREAM_OPEN && (s->to_host.used > 0 || s->detached)) {
		s->state = STREAM_DRAINING;
		if (answer)
			stream_send(s, SEND_RST);
		stream_flush(s);
		return;
	}
	if (answer)
		stream_reset(s);
	else
		stream_free(s);
}

static void guest_shutdown(struct stream *s, uint32_t flags) {
	s->guest_shutdown |= flags & SHUTDOWN_BOTH;
	if (s->state == STREAM_CONNECTING || s->guest_shutdown == SHUTDOWN_BOTH) {
		guest_end(s, true);
		return;
	}
	if (s->state == STREAM_OPEN)
		stream_flush(s);
}

static void guest_data(struct stream *s, const struct chain *c, uint32_t bytes) {
	if (s->state == STREAM_DRAINING)
		return;
	if (s->state != STREAM_OPEN || (s->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0) {
		stream_reset(s);
		return;
	}
	s->vsock->tx_bytes += bytes;
	if (!stream_accept(s, c->iov, c->readable_count, HEADER_BYTES, bytes)) {
		stream_reset(s);
		return;
	}
	// Half of the window is a good time to tell that it is open again.
	if (s->forwarded - s->forwarded_told >= STREAM_BUFFER_BYTES / 2)
		stream_send(s, SEND_CREDIT);
}

static void dispatch(struct vsock *v, const struct virtio_vsock_hdr *h, const struct chain *c) {
	if (h->src_cid != v->guest_cid || h->dst_cid != VMADDR_CID_HOST)
		return; // nobody could receive an answer
	struct stream *s = h->type == VIRTIO_VSOCK_TYPE_STREAM ? find(v, h) : NULL;
	if (s == NULL || s->state == STREAM_RESETTING) {
		// Connections that the guest starts are refused here as well.
		if (s == NULL)
			stray_reset(v, h);
		else if (h->op == VIRTIO_VSOCK_OP_RST)
			stream_free(s);
		return;
	}
	s->peer_room = h->buf_alloc;
	s->peer_forwarded = h->fwd_cnt;
	if (credit(s) > 0)
		s->credit_asked = false; // otherwise the next news come by themselves
	switch (h->op) {
	case VIRTIO_VSOCK_OP_RESPONSE:
		guest_response(s);
		break;
	case VIRTIO_VSOCK_OP_RST:
		guest_end(s, false);
		break;
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		guest_shutdown(s, h->flags);
		break;
	case VIRTIO_VSOCK_OP_RW:
		guest_data(s, c, h->len);
		break;
	case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
		break;
	case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
		if (s->state == STREAM_OPEN)
			stream_send(s, SEND_CREDIT);
		break;
	default:
		stream_reset(s);
		break;
	}
	if (s->state != STREAM_FREE)
		stream_wake(s);
}

static void transmit(struct vsock *v) {
	struct virtio_queue *q = &v->device.queues[VSOCK_TRANSMIT];
	struct virtio_vsock_hdr h;
	struct chain c;
	unsigned packets = 0;
	while (packets < PACKETS_PER_WAKE) {
		// Each packet may need an answer.
		v->stalled = v->reset_count == RESETS_MAX;
		if (v->stalled || queue_pop(q, &c) != 1)
			break;
		packets++;
		if (iov_read(c.iov, c.readable_count, 0, &h, sizeof(h)) < sizeof(h) || h.len > c.readable_bytes - HEADER_BYTES ||
		    h.len > PACKET_PAYLOAD_MAX) {
			device_break(&v->device, "packet shorter than it says");
			break;
		}
		dispatch(v, &h, &c);
		queue_push(q, c.head, 0);
	}
	queue_signal(q);
	if (packets == PACKETS_PER_WAKE)
		queue_kick(q);
}

// Section 5.10.6.7: the event takes a buffer of the event queue, which the driver puts back when it has reset its streams.
void vsock_event(struct vsock *v) {
	struct virtio_queue *q = &v->device.queues[VSOCK_EVENT];
	struct virtio_vsock_event event = {.id = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET};
	struct chain c;
	if (!q->ready || !device_is_live(&v->device))
		return;
	if (v->reset_step == RESET_WANTED && queue_pop(q, &c) == 1) {
		if (c.writable_bytes < sizeof(event)) {
			device_break(&v->device, "event buffer too short");
			return;
		}
		iov_write(c.iov + c.readable_count, c.writable_count, 0, &event, sizeof(event));
		v->reset_available = queue_watch(q);
		queue_push(q, c.head, sizeof(event));
		queue_signal(q);
		v->reset_step = RESET_SENT;
	}
	if (v->reset_step == RESET_SENT && queue_watch(q) != v->reset_available) {
		v->reset_step = RESET_NONE;
		for (unsigned i = 0; i < v->high_slot; i++) {
			if (v->streams[i].state != STREAM_FREE)
				stream_wake(&v->streams[i]);
		}
	}
}

static void vsock_notify(struct virtio_device *d, unsigned queue) {
	struct vsock *v = (struct vsock *)d;
	if (queue == VSOCK_TRANSMIT)
		transmit(v);
	if (v->reset_step != RESET_NONE)
		vsock_event(v);
	vsock_deliver(v);
}

static void vsock_stats(const struct virtio_device *d, struct vmm_stats *s) {
	const struct vsock *v = (const struct vsock *)d;
	s->vsock_rx_bytes += v->rx_bytes;
	s->vsock_tx_bytes += v->tx_bytes;
	for (unsigned i = 0; i < v->high_slot; i++)
		s->vsock_streams += v->streams[i].state == STREAM_OPEN;
}

static void vsock_destroy(struct virtio_device *d) {
	struct vsock *v = (struct vsock *)d;
	for (unsigned i = 0; i < STREAMS_MAX && v->stream_count > 0; i++) {
		if (v->streams[i].state != STREAM_FREE)
			stream_free(&v->streams[i]);
	}
	vsock_host_close(v);
	free(v);
}

static const struct virtio_ops vsock_ops = {
	.name = "vsock",
	.notify = vsock_notify,
	.reset = vsock_driver_reset,
	.quiesce = vsock_quiesce,
	.resume = vsock_resume,
	.save = vsock_save,
	.load = vsock_load,
	.stats = vsock_stats,
	.destroy = vsock_destroy,
};

int virtio_vsock_create(const struct virtio_host *host, unsigned line, int listen_fd, uint64_t guest_cid, struct virtio_device **ret,
			struct error *e) {
	struct vsock *v = calloc(1, sizeof(*v));
	if (v == NULL) {
		close(listen_fd);
		return error_set(e, -ENOMEM, "vsock: no memory");
	}
	v->guest_cid = guest_cid;
	TAILQ_INIT(&v->ready);
	v->listen_fd = v->timer_fd = -1;
	int r = device_init(&v->device, host, line, VIRTIO_ID_VSOCK, &vsock_ops, (const unsigned[]){256, 256, 16}, VSOCK_QUEUES, e);
	if (r < 0) {
		close(listen_fd);
		free(v);
		return r;
	}
	r = vsock_host_open(v, listen_fd, e);
	if (r < 0) {
		virtio_destroy(&v->device);
		return r;
	}
	v->device.config_size = sizeof(guest_cid); // section 5.10.4
	memcpy(v->device.config, &guest_cid, sizeof(guest_cid));
	*ret = &v->device;
	return 0;
}
