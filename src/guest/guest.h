// What the guest agent and those who talk to it or wire it up agree on: addresses, ports and limits (docs/agent-protocol.md).
// Included by src/launch/ (the tap's address) and src/microvms/ as well.
#pragma once

// vsock
#define GUEST_CID 3
#define GUEST_PORT_CONTROL 1024
#define GUEST_PORT_STREAMS 1025
#define GUEST_PROTOCOL 1

// Control frames
#define GUEST_FRAME_MAX 65536u

// Network: the same in every microVM, so that a clone's addresses are right without being touched. The host's tap has the gateway's address.
#define GUEST_INTERFACE "eth0"
#define GUEST_ADDRESS "169.254.100.2"
#define GUEST_PREFIX 30
#define GUEST_GATEWAY "169.254.100.1"

// Frames of the EVENTS stream
enum guest_event_kind { GUEST_EVENT_STDOUT = 1, GUEST_EVENT_STDERR = 2, GUEST_EVENT_JSON = 3 };
#define GUEST_EVENT_HEADER 13u         // u32 length, u8 kind, u64 time
#define GUEST_EVENT_BYTES_MAX 16384u   // of one frame, behind its header
#define GUEST_EVENTS_KEPT (256u << 10) // headers included

// Frames of a SESSION stream: u32 length (of what follows), u8 kind, bytes
enum guest_session_in {              // host to guest
	GUEST_SESSION_REQUEST = 1,   // a piece of the request's JSON
	GUEST_SESSION_BEGIN = 2,     // the request is complete
	GUEST_SESSION_INPUT = 3,     // standard input
	GUEST_SESSION_INPUT_END = 4, // … and its end
	GUEST_SESSION_RESIZE = 5,    // u16 columns, u16 rows
	GUEST_SESSION_SIGNAL = 6,    // u8 number
};
enum guest_session_out {          // guest to host
	GUEST_SESSION_OUTPUT = 1, // standard output, or all of a terminal
	GUEST_SESSION_ERROR_OUTPUT = 2,
	GUEST_SESSION_EXIT = 3,   // i32 exit code; the last frame
	GUEST_SESSION_FAILED = 4, // JSON {"code", "message"}; the last frame
};
#define GUEST_SESSION_HEADER 5u                // u32 length, u8 kind
#define GUEST_SESSION_BYTES_MAX 16384u         // of one frame, behind its header
#define GUEST_SESSION_REQUEST_MAX (128u << 10) // the whole request

// Limits of the agent
#define GUEST_CONTROL_MAX 64   // control connections
#define GUEST_STREAMS_MAX 1024 // forwarded TCP connections
#define GUEST_SESSIONS_MAX 32

// Serials of the disks
#define GUEST_DISK_SYSTEM "system"
#define GUEST_DISK_IMAGE "image"
#define GUEST_DISK_ARTIFACT "artifact"
#define GUEST_DISK_OUTPUT "output"
