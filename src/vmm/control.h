// What stasisd says to a VMM: the messages of control.sock (SOCK_SEQPACKET, little-endian, one message a packet) and the descriptors that a
// VMM starts with. Shared by src/vmm/, src/microvms/ and src/launch/.
//
// Every request is answered by one `struct vmm_reply` with the same sequence number. Descriptors travel with the request in the order
// that its comment gives. Several clients may be connected; each gets the EXITED event.
#pragma once

#include <stdint.h>

// Descriptors of a VMM at its start, given by stasis-launch (or a test).
enum vmm_start_fd {
	VMM_FD_CONTROL = 3, // listening SOCK_SEQPACKET
	VMM_FD_VSOCK = 4,   // listening SOCK_STREAM
	VMM_FD_KVM = 5,     // /dev/kvm
	VMM_FD_TAP = 6,     // tap, IFF_TAP|IFF_NO_PI|IFF_VNET_HDR; /dev/null when the microVM has no network
	VMM_FD_FIRST_FREE = 7,
};

#define VMM_CONTROL_MAGIC 0x4d565453u // "STVM"
#define VMM_BLOCKS_MAX 8
#define VMM_SERIAL_MAX 20 // of a block device, as in virtio 1.2 section 5.2
#define VMM_CMDLINE_MAX 2048
#define VMM_MEMORY_LAYERS_MAX 8
#define VMM_REPLY_TEXT_MAX 512

enum vmm_request_kind {
	VMM_PREPARE = 1,  // struct vmm_prepare; optional: makes the shell of a VM of this size in advance
	VMM_BOOT = 2,     // struct vmm_boot;     fds: kernel, initrd, console log, then per block: base, layer (see struct vmm_block)
	VMM_RESTORE = 3,  // struct vmm_restore;  fds: state, memory layers (base first), with VMM_RESTORE_PREFETCH
			  // the working set, console log, then per block as above
	VMM_PAUSE = 4,    // no body
	VMM_RESUME = 5,   // no body
	VMM_SNAPSHOT = 6, // struct vmm_snapshot; fds: state (empty, writable), memory layer (empty, writable). The VM must be paused.
			  // Flushes the disks too: they are durable when it is answered (state and memory layer are the caller's to sync)
	VMM_STATS = 7,    // no body; reply is followed by struct vmm_stats
	VMM_WORKING_SET = 9, // no body; fds: working set (empty, writable). Writes which pages the guest has used since a restore with
			     // VMM_RESTORE_RECORD
	VMM_QUIT = 8,        // no body; answered, then the VMM flushes its disks and ends
};

struct vmm_header {
	uint32_t magic;
	uint32_t kind; // enum vmm_request_kind, or VMM_EVENT_EXITED
	uint64_t sequence;
};

struct vmm_prepare {
	struct vmm_header header;
	uint32_t memory_mib;
	uint32_t vcpus;
};

enum vmm_block_flags {
	VMM_BLOCK_READ_ONLY = 1, // one descriptor: base
	VMM_BLOCK_LAYERED = 2,   // two descriptors: read-only base, copy-on-write layer file (empty or from an earlier run)
				 // neither: one descriptor, written in place
};

struct vmm_block {
	char serial[VMM_SERIAL_MAX]; // "system", "image", "artifact", …; NUL-padded
	uint32_t flags;
	uint64_t size; // bytes that the guest sees; 0: the base file's size. Beyond the end of a read-only base there are zeros
};

struct vmm_devices {
	uint32_t block_count;
	uint32_t has_net; // 0: no network device
	uint8_t mac[6];
	uint8_t reserved[2];
	uint64_t console_limit; // bytes of console log that are kept at most
	struct vmm_block blocks[VMM_BLOCKS_MAX];
};

struct vmm_boot {
	struct vmm_header header;
	uint32_t memory_mib;
	uint32_t vcpus;
	struct vmm_devices devices;
	char cmdline[VMM_CMDLINE_MAX]; // NUL-terminated
};

enum vmm_restore_flags {
	VMM_RESTORE_CLONE = 1,    // another microVM than the one that was snapshotted: transport reset when vsock streams were open
	VMM_RESTORE_PAUSED = 2,   // do not let the vCPUs go; VMM_RESUME does
	VMM_RESTORE_RECORD = 4,   // so that VMM_WORKING_SET can tell what the guest uses; slower
	VMM_RESTORE_PREFETCH = 8, // bring in the pages of a working set before the vCPUs go
};

struct vmm_restore {
	struct vmm_header header;
	uint32_t flags;
	uint32_t memory_layers; // 1: the image's; 2: image's and this microVM's own
	// Must match the state file, but for the descriptors, sizes of read-only blocks, console_limit, and VMM_BLOCK_LAYERED: a disk that was
	// written in place may come back as the base of a layer.
	struct vmm_devices devices;
};

enum vmm_snapshot_flags {
	VMM_SNAPSHOT_DIFFERENCE = 1, // only pages that differ from the first memory layer that the VM was restored from
};

struct vmm_snapshot {
	struct vmm_header header;
	uint32_t flags;
	uint32_t reserved;
};

enum vmm_state {
	VMM_STATE_EMPTY,    // nothing configured
	VMM_STATE_PREPARED, // VMM_PREPARE done
	VMM_STATE_RUNNING,
	VMM_STATE_PAUSED,
	VMM_STATE_EXITED, // the guest has ended: see exit
};

enum vmm_exit {
	VMM_EXIT_NONE,
	VMM_EXIT_POWEROFF,     // ACPI S5
	VMM_EXIT_RESET,        // reboot: ACPI reset register, keyboard controller
	VMM_EXIT_TRIPLE_FAULT, // KVM_EXIT_SHUTDOWN
	VMM_EXIT_GUEST_ERROR,  // the guest did what the VMM does not allow (named in the text)
	VMM_EXIT_INTERNAL,     // KVM or the VMM failed (named in the text)
};

struct vmm_reply {
	struct vmm_header header; // kind and sequence of the request; VMM_EVENT_EXITED and 0 for the event
	int32_t result;           // 0 or a negative errno
	uint32_t state;           // enum vmm_state
	uint32_t exit;            // enum vmm_exit
	uint32_t reserved;
	uint64_t nanoseconds;          // that the VMM spent on the request
	char text[VMM_REPLY_TEXT_MAX]; // the error's message, or the reason of the exit
};

#define VMM_EVENT_EXITED 0x100u

struct vmm_stats {
	uint64_t memory_bytes;   // of the guest
	uint64_t resident_bytes; // of the guest's memory: pages of its own
	uint64_t vcpu_run_ns;    // CPU time of the vCPU threads
	uint64_t block_read_bytes, block_written_bytes, block_flushes;
	uint64_t net_rx_bytes, net_tx_bytes, net_dropped;
	uint64_t vsock_rx_bytes, vsock_tx_bytes, vsock_streams;
	uint64_t balloon_reported_bytes; // given back by free-page reporting
	uint64_t exits;                  // VM exits that reached the VMM
	uint64_t console_bytes;
};
