// What happens to vsock streams when the driver resets the device, and around snapshots; see vsock.h.
//
// Before a snapshot, what Unix clients have sent and the guest has not got is taken out of the sockets and kept with the stream. After a
// restore the streams are detached: a client takes each over with ATTACH; the guest notices nothing, and what it sends meanwhile waits. Streams that
// nobody takes over are reset after a while. When another microVM goes on (a clone), all are dropped and the driver is told once.
#include "vmm/virtio/vsock.h"

#include "base/clock.h"

#include <linux/virtio_vsock.h>
#include <stdlib.h>
#include <string.h>

#define SHUTDOWN_BOTH (VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND)
#define KEEP_STEP 65536u

// Whether the guest knows of the stream.
static bool is_known(const struct stream *s) {
	return s->state != STREAM_FREE && !(s->state == STREAM_CONNECTING && (s->pending & SEND_REQUEST) != 0);
}

static void drop_known(struct vsock *v) {
	for (unsigned i = v->high_slot; i-- > 0;) {
		if (is_known(&v->streams[i]))
			stream_free(&v->streams[i]);
	}
	v->reset_count = 0;
	v->stalled = false;
}

void vsock_driver_reset(struct virtio_device *d) {
	struct vsock *v = (struct vsock *)d;
	drop_known(v);
	v->reset_step = RESET_NONE;
}

void virtio_vsock_transport_reset(struct virtio_device *d) {
	struct vsock *v = (struct vsock *)d;
	bool any = v->reset_count > 0;
	for (unsigned i = 0; i < v->high_slot; i++)
		any = any || is_known(&v->streams[i]);
	drop_known(v);
	if (any && (d->status & VIRTIO_CONFIG_S_DRIVER_OK) != 0)
		v->reset_step = RESET_WANTED;
}

// Room for at least KEEP_STEP more bytes behind what is there.
static bool make_room(struct bytes *b) {
	if (b->start > 0 && b->used > 0)
		memmove(b->data, b->data + b->start, b->used);
	b->start = 0;
	if (b->room - b->used >= KEEP_STEP)
		return true;
	uint8_t *data = realloc(b->data, b->used + KEEP_STEP);
	if (data == NULL)
		return false;
	b->data = data;
	b->room = b->used + KEEP_STEP;
	return true;
}

// Takes what waits in the socket. False: it is more than may be kept, and would be lost.
static bool keep(struct stream *s) {
	while (s->state == STREAM_OPEN && s->fd >= 0 && !s->eof && s->to_guest.used < STREAM_KEEP_BYTES && make_room(&s->to_guest)) {
		struct iovec iov = {.iov_base = s->to_guest.data + s->to_guest.used, .iov_len = KEEP_STEP};
		uint32_t n = stream_read(s, &iov, 1, 0, KEEP_STEP);
		if (n == 0)
			break;
		s->to_guest.used += n;
	}
	return s->state != STREAM_OPEN || s->fd < 0 || s->eof || !s->readable;
}

int vsock_quiesce(struct virtio_device *d, struct error *e) {
	struct vsock *v = (struct vsock *)d;
	uint64_t kept = 0;
	for (unsigned i = 0; i < v->high_slot; i++) {
		struct stream *s = &v->streams[i];
		if (s->state == STREAM_FREE)
			continue;
		if (s->state == STREAM_OPEN || s->state == STREAM_DRAINING)
			stream_flush(s);
		bool whole = keep(s);
		uint32_t bytes = s->to_host.used + s->to_guest.used;
		// A state file has its limits; only clients that do not read, or never stop writing, come to them.
		if (!whole || (bytes > 0 && kept + bytes > KEEP_BYTES_ALL))
			stream_reset(s);
		else
			kept += bytes;
	}
	return 0;
}

void vsock_resume(struct virtio_device *d) {
	struct vsock *v = (struct vsock *)d;
	uint64_t now = monotonic_ms();
	for (unsigned i = 0; i < v->high_slot; i++) {
		struct stream *s = &v->streams[i];
		if (s->state == STREAM_FREE)
			continue;
		// The time of the pause does not count.
		if (s->detached)
			s->deadline = now + ATTACH_TIMEOUT_MS;
		else if (s->state == STREAM_CONNECTING)
			s->deadline = now + CONNECT_TIMEOUT_MS;
		else if (s->state == STREAM_CLOSING)
			s->deadline = now + CLOSE_TIMEOUT_MS;
		s->readable = s->fd >= 0 && !s->eof;
		if (s->state == STREAM_OPEN || s->state == STREAM_DRAINING)
			stream_flush(s);
		if (s->state != STREAM_FREE)
			stream_wake(s);
	}
	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		if (v->clients[i].fd >= 0) {
			v->clients[i].deadline = now + CLIENT_TIMEOUT_MS;
			client_try(&v->clients[i]);
		}
	}
	vsock_listen(v, true);
	v->ticking = false;
	vsock_tick_soon(v);
	vsock_event(v);
	vsock_deliver(v);
}

static void save_bytes(struct writer *w, const struct bytes *b) {
	write_u32(w, b->used);
	if (b->used == 0)
		return;
	uint32_t first = b->room - b->start < b->used ? b->room - b->start : b->used;
	write_bytes(w, b->data + b->start, first);
	write_bytes(w, b->data, b->used - first);
}

static void save_stream(struct writer *w, const struct stream *s) {
	// A stream that is not up yet has nobody to be attached to: the guest gets an RST.
	bool half_open = s->state == STREAM_CONNECTING;
	write_u32(w, s->host_port);
	write_u32(w, s->guest_port);
	write_u8(w, half_open ? STREAM_RESETTING : (uint8_t)s->state);
	write_u8(w, half_open ? SEND_RST : s->pending);
	write_u8(w, s->shutdown_wanted);
	write_u8(w, s->host_shutdown);
	write_u8(w, s->guest_shutdown);
	write_u8(w, s->eof);
	write_u32(w, s->forwarded);
	write_u32(w, s->forwarded_told);
	write_u32(w, s->sent);
	write_u32(w, s->peer_forwarded);
	write_u32(w, s->peer_room);
	save_bytes(w, &s->to_host);
	save_bytes(w, &s->to_guest);
}

void vsock_save(struct virtio_device *d, struct writer *w) {
	struct vsock *v = (struct vsock *)d;
	uint32_t known = 0;
	for (unsigned i = 0; i < v->high_slot; i++)
		known += is_known(&v->streams[i]);
	write_u32(w, v->sequence);
	write_u8(w, (uint8_t)v->reset_step);
	write_u16(w, v->reset_available);
	write_u32(w, v->reset_count);
	for (unsigned i = 0; i < v->reset_count; i++) {
		unsigned at = (v->reset_first + i) % RESETS_MAX;
		write_u32(w, v->resets[at].host_port);
		write_u32(w, v->resets[at].guest_port);
		write_u16(w, v->resets[at].type);
	}
	write_u32(w, known);
	for (unsigned i = 0; i < v->high_slot; i++) {
		if (is_known(&v->streams[i]))
			save_stream(w, &v->streams[i]);
	}
}

// Bytes from the guest go back into a ring.
static bool load_ring(struct reader *r, struct stream *s) {
	uint32_t n = read_u32(r);
	const void *from = read_bytes(r, n);
	if (from == NULL || n > STREAM_BUFFER_BYTES || (n > 0 && !stream_buffer_get(s)))
		return false;
	if (n > 0)
		memcpy(s->to_host.data, from, n);
	s->to_host.used = n;
	return true;
}

static bool load_linear(struct reader *r, struct bytes *b) {
	uint32_t n = read_u32(r);
	const void *from = read_bytes(r, n);
	if (from == NULL || n > STREAM_KEEP_BYTES + KEEP_STEP)
		return false;
	b->data = n > 0 ? malloc(n) : NULL;
	if (n > 0 && b->data == NULL)
		return false;
	if (n > 0)
		memcpy(b->data, from, n);
	b->room = b->used = n;
	return true;
}

static bool is_consistent(const struct stream *s, uint8_t state, uint8_t eof) {
	bool flags = ((s->shutdown_wanted | s->host_shutdown | s->guest_shutdown) & ~SHUTDOWN_BOTH) == 0 && eof <= 1;
	switch (state) {
	case STREAM_OPEN:
		return flags && (s->pending & ~(SEND_SHUTDOWN | SEND_CREDIT | SEND_CREDIT_ASK)) == 0;
	case STREAM_DRAINING:
		return flags && (s->pending & ~SEND_RST) == 0;
	case STREAM_CLOSING:
		return flags && (s->pending & ~(SEND_SHUTDOWN | SEND_CREDIT | SEND_CREDIT_ASK)) == 0 && s->to_host.used == 0;
	case STREAM_RESETTING:
		return flags && s->pending == SEND_RST && s->to_host.used == 0;
	default:
		return false;
	}
}

// Reads one stream into its slot. False: it is damaged.
static bool load_stream(struct vsock *v, struct reader *r) {
	uint32_t host_port = read_u32(r), guest_port = read_u32(r);
	struct stream *s = &v->streams[host_port & (STREAMS_MAX - 1)];
	if (r->bad || s->state != STREAM_FREE || host_port >> 30 != 1)
		return false;
	*s = (struct stream){.vsock = v, .fd = -1, .host_port = host_port, .guest_port = guest_port, .state = STREAM_RESETTING};
	v->stream_count++;
	unsigned slot = host_port & (STREAMS_MAX - 1);
	if (slot >= v->high_slot)
		v->high_slot = slot + 1;
	uint8_t state = read_u8(r);
	s->pending = read_u8(r);
	s->shutdown_wanted = read_u8(r);
	s->host_shutdown = read_u8(r);
	s->guest_shutdown = read_u8(r);
	uint8_t eof = read_u8(r);
	s->forwarded = read_u32(r);
	s->forwarded_told = read_u32(r);
	s->sent = read_u32(r);
	s->peer_forwarded = read_u32(r);
	s->peer_room = read_u32(r);
	if (!load_ring(r, s) || !load_linear(r, &s->to_guest) || r->bad || !is_consistent(s, state, eof))
		return false;
	s->state = (enum stream_state)state;
	s->eof = eof == 1;
	s->detached = state == STREAM_OPEN || state == STREAM_DRAINING;
	return true;
}

int vsock_load(struct virtio_device *d, struct reader *r, struct error *e) {
	struct vsock *v = (struct vsock *)d;
	v->sequence = read_u32(r);
	uint8_t step = read_u8(r);
	v->reset_available = read_u16(r);
	uint32_t resets = read_u32(r);
	if (r->bad || step > RESET_SENT || resets > RESETS_MAX)
		return error_set(e, -EBADMSG, "vsock: the device's state is damaged");
	v->reset_step = (enum reset_step)step;
	v->reset_count = resets;
	for (unsigned i = 0; i < resets; i++) {
		v->resets[i].host_port = read_u32(r);
		v->resets[i].guest_port = read_u32(r);
		v->resets[i].type = read_u16(r);
	}
	uint32_t streams = read_u32(r);
	if (r->bad || streams > STREAMS_MAX)
		return error_set(e, -EBADMSG, "vsock: the device's state is damaged");
	for (uint32_t i = 0; i < streams; i++) {
		if (!load_stream(v, r))
			return error_set(e, -EBADMSG, "vsock: the state of stream %u is damaged", i);
	}
	return 0;
}
