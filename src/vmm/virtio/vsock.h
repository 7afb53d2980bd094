// Inside src/vmm/virtio/: the parts of the vsock device (virtio 1.2, section 5.10).
//
// vsock.c speaks virtio: queues and packets. vsock_host.c has the Unix side: listener, clients that say what they want, and the streams' sockets.
// vsock_state.c is what happens to streams around snapshots and resets.
//
// A stream is named by the host's port (given out here, never twice in a row) and the guest's. What the guest sends goes straight to the Unix socket; what
// that does not take waits in `to_host`, which the credit that we grant keeps bounded. What the host sends is read from the Unix socket straight
// into the guest's buffers, and only as far as the guest's credit goes; `to_guest` has bytes only when a snapshot took them out of the socket.
#pragma once

#include "vmm/virtio/device.h"

#include <sys/queue.h>

enum { VSOCK_RECEIVE, VSOCK_TRANSMIT, VSOCK_EVENT, VSOCK_QUEUES };

#define STREAM_SLOT_BITS 10u
#define STREAMS_MAX (1u << STREAM_SLOT_BITS)
#define CLIENTS_MAX 64u             // that have not said yet what they want
#define STREAM_BUFFER_BYTES 131072u // credit that the guest gets (buf_alloc)
#define STREAM_KEEP_BYTES 524288u   // taken out of one socket for a snapshot
#define KEEP_BYTES_ALL (12u << 20)  // in all streams' buffers of a snapshot
#define BUFFERS_MAX 256u            // of bytes from the guest, at a time
#define BUFFERS_IDLE 64u            // that are kept though nothing waits in them
#define RESETS_MAX 64u              // RST packets that wait for room, for streams that do not exist
#define HOST_PORT_FIRST (1u << 30)  // host ports are 1<<30 + a running number * STREAMS_MAX + the slot
#define PACKET_PAYLOAD_MAX 65536u

#define CLIENT_TIMEOUT_MS 5000u   // to say what it wants
#define CONNECT_TIMEOUT_MS 30000u // for the guest's answer
#define CLOSE_TIMEOUT_MS 10000u   // for the guest's RST behind our SHUTDOWN
#define ATTACH_TIMEOUT_MS 180000u // for somebody to take a stream over after a restore: longer than a resume hook may take

enum stream_state {
	STREAM_FREE,
	STREAM_CONNECTING, // REQUEST is to be sent or was sent
	STREAM_OPEN,
	STREAM_DRAINING,  // over for the guest; bytes still go to the Unix socket
	STREAM_CLOSING,   // over for the host; waits for the guest's RST
	STREAM_RESETTING, // over for both; the RST is still to be sent
};

// Packets that are to be sent to the guest.
enum {
	SEND_REQUEST = 1,
	SEND_RST = 2,
	SEND_SHUTDOWN = 4,
	SEND_CREDIT = 8,      // how much room we have
	SEND_CREDIT_ASK = 16, // how much has the guest?
	SEND_ALL = 31,
};

struct bytes {
	uint8_t *data; // NULL until needed
	uint32_t start, used, room;
};

struct stream {
	TAILQ_ENTRY(stream) ready; // on vsock.ready when queued
	struct vsock *vsock;
	struct loop_handler handler;
	int fd; // -1: none
	uint32_t polled;
	enum stream_state state;
	uint32_t host_port, guest_port;
	uint8_t pending;         // SEND_…
	uint8_t shutdown_wanted; // VIRTIO_VSOCK_SHUTDOWN_… that the guest is to be told
	uint8_t host_shutdown;   // that it was told
	uint8_t guest_shutdown;  // that it told us
	bool queued;
	bool detached; // kept across a snapshot, without a socket until ATTACH
	bool readable; // the socket may have bytes
	bool eof;      // the Unix client sends no more
	bool gone;     // the Unix client neither sends nor reads
	bool credit_asked;
	bool write_ended;                         // shutdown(SHUT_WR) was done
	uint32_t forwarded, forwarded_told;       // bytes from the guest that left this process; fwd_cnt
	uint32_t sent, peer_forwarded, peer_room; // bytes to the guest; its fwd_cnt and buf_alloc
	struct bytes to_host;                     // a ring
	struct bytes to_guest;                    // linear
	uint64_t deadline;                        // monotonic ms; 0: none
};

struct client {
	struct vsock *vsock;
	struct loop_handler handler;
	int fd; // -1: free
	uint64_t deadline;
};

enum reset_step {
	RESET_NONE,
	RESET_WANTED, // the event is to be sent
	RESET_SENT,   // it was; the driver has not put the buffer back
};

struct vsock {
	struct virtio_device device;
	uint64_t guest_cid;
	int listen_fd, timer_fd;
	struct loop_handler listen_handler, timer_handler;
	bool listening, ticking;
	uint32_t sequence; // of host ports
	unsigned client_count;
	unsigned buffer_count; // to_host buffers that exist
	unsigned stream_count; // slots in use
	unsigned high_slot;    // slots from here on were never used
	TAILQ_HEAD(, stream) ready;
	enum reset_step reset_step;
	uint16_t reset_available; // the event queue's available index as the event was sent
	bool stalled;             // packets of the guest wait until there is room for an answer
	unsigned reset_first, reset_count;
	struct {
		uint32_t host_port, guest_port;
		uint16_t type;
	} resets[RESETS_MAX];
	uint64_t rx_bytes, tx_bytes;
	struct client clients[CLIENTS_MAX];
	struct stream streams[STREAMS_MAX];
};

// vsock.c
struct stream *stream_new(struct vsock *v, uint32_t guest_port); // NULL: no slot is free
void stream_free(struct stream *s);
// Ends a stream for both sides; the guest is told.
void stream_reset(struct stream *s);
// There may be something to send to the guest.
void stream_wake(struct stream *s);
// Asks for packets to be sent to the guest.
void stream_send(struct stream *s, uint8_t what);
// Moves what can be moved to the guest. Every entry into the device ends with this.
void vsock_deliver(struct vsock *v);
// Goes on with the transport reset.
void vsock_event(struct vsock *v);

// vsock_host.c
int vsock_host_open(struct vsock *v, int listen_fd, struct error *e);
void vsock_host_close(struct vsock *v);
void vsock_listen(struct vsock *v, bool on);
void vsock_tick_soon(struct vsock *v); // there is a deadline
void client_try(struct client *c);
void stream_close_socket(struct stream *s);
// The buffer of bytes from the guest. False: there is no memory, or too many streams have one.
bool stream_buffer_get(struct stream *s);
void stream_buffer_drop(struct stream *s);
// The guest answered REQUEST with RESPONSE (`error` NULL), or did not. Returns false when the client is gone.
bool stream_answer(struct stream *s, const char *error);
// Takes bytes from the guest: to the socket, or the buffer. Returns false when the guest sent more than its credit.
bool stream_accept(struct stream *s, const struct iovec *iov, unsigned count, size_t skip, uint32_t bytes);
// Writes what waits, and does what is due when nothing waits any more. The stream may be free afterwards.
void stream_flush(struct stream *s);
// Reads from the socket into the segments. Returns the bytes, or 0 when there are none now (see readable, eof, gone).
uint32_t stream_read(struct stream *s, const struct iovec *iov, unsigned count, size_t skip, uint32_t bytes);

// vsock_state.c
int vsock_quiesce(struct virtio_device *d, struct error *e);
void vsock_resume(struct virtio_device *d);
void vsock_save(struct virtio_device *d, struct writer *w);
int vsock_load(struct virtio_device *d, struct reader *r, struct error *e);
void vsock_driver_reset(struct virtio_device *d);
