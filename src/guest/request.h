// Requests of the control port (docs/agent-protocol.md): from the bytes of one frame to a checked structure. No effects.
#pragma once

#include "base/json.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#define REQUEST_ENTROPY_MAX 64
#define REQUEST_NAMESERVERS_MAX 3 // as many as the C libraries look at (resolv.conf(5))
#define REQUEST_TOKEN_MAX 2048
#define REQUEST_TIMEOUT_MS_MAX 86400000

enum request_op {
	OP_HELLO,
	OP_RESUME,
	OP_START,
	OP_HOOK,
	OP_FREEZE,
	OP_STATE,
	OP_BUILD,
	OP_NETWORK,
	OP_CREDENTIALS,
	OP_BUSY,
	OP_POWEROFF,
};

// All pointers are borrowed from request.document.
struct credentials_request {
	const char *key_id; // NULL: none are given
	const char *secret, *token;
	const char *updated, *expiration; // ISO 8601
};

struct resume_request {
	uint8_t entropy[REQUEST_ENTROPY_MAX];
	size_t entropy_size;
	uint64_t realtime_ns;
	bool clone;
	const json_t *identity; // or NULL
	struct credentials_request credentials;
};

struct start_request {
	const json_t *env; // object of strings, or NULL
	bool all_capabilities;
	const char *hostname;
};

struct hook_request {
	const char *name;
	uint16_t port;
	uint64_t timeout_ms;
	const char *body; // or NULL
	size_t body_size;
	bool retry_503;
};

struct build_request {
	uint64_t timeout_ms;
};

struct network_request {
	bool has_address, has_gateway, has_nameservers;
	struct in_addr address, gateway;
	unsigned prefix;
	char nameservers[REQUEST_NAMESERVERS_MAX][INET6_ADDRSTRLEN];
	size_t nameserver_count;
};

struct request {
	int64_t id;
	enum request_op op;
	json_t *document; // the whole object
	union {
		struct resume_request resume;
		struct start_request start;
		struct hook_request hook;
		struct build_request build;
		struct network_request network;
		struct credentials_request credentials;
	};
};

// Size of the frame at the start of `data`, header included; 0 when its header is not complete yet; -EMSGSIZE when it announces more than
// GUEST_FRAME_MAX bytes.
ssize_t frame_size(const void *data, size_t size);

// Parses the body of one frame. On failure ret->id still holds the request's id if that much could be read, else 0. Call request_free()
// in both cases.
int request_parse(const void *data, size_t size, struct request *ret, struct error *e);
void request_free(struct request *r);
