// Endpoint tokens: compact JWE (RFC 7516) with `dir` and `A256GCM`, as the service issues them (spec section 6).
//
// A token says which microVM, which ports, until when, and whether it opens HTTP or the shell. Its claims are a fixed-size record, so
// every token has the same length, whatever it permits. Clients treat it as opaque. The keys lie in `tokens.key` in the state folder; each
// has a name (`kid`), the last one mints and all open: an older one for as long as tokens of it may be valid.
#pragma once

#include "base/error.h"
#include "base/uuid.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TOKEN_LENGTH 824 // characters of every token
#define TOKEN_ROOM (TOKEN_LENGTH + 1)
#define TOKEN_PORTS_MAX 96   // ranges, after neighbouring and overlapping ones are merged
#define TOKEN_MICROVM_MAX 47 // characters of a microVM's id

enum token_kind {
	TOKEN_HTTP = 1,
	TOKEN_SHELL = 2,
	TOKEN_OPERATOR = 3, // as TOKEN_SHELL, for the operator: whatever the ingress connectors say
};

struct port_range {
	uint16_t first, last; // both included; 1 ≤ first ≤ last
};

struct token_claims {
	enum token_kind kind;
	char microvm[TOKEN_MICROVM_MAX + 1];
	char id[UUID_TEXT]; // the token's own; empty: token_mint() draws one
	int64_t expires_ms; // since the epoch
	int64_t minted_ms;  // the same; 0: before tokens said so
	size_t port_count;
	struct port_range ports[TOKEN_PORTS_MAX];
};

struct token_keys; // opaque; safe to use from several threads at once

// Reads <folder>/tokens.key, and makes it (mode 0600, durably) when there is none. [blocks on the disk]
int token_keys_open(const char *folder, struct token_keys **ret, struct error *e);
void token_keys_close(struct token_keys *k);

// Adds a new key, which mints from now on, and forgets those whose last token expired long ago: nothing that is valid becomes invalid. -EBUSY:
// all the keys that there may be are still in use. [blocks on the disk]
int token_keys_rotate(struct token_keys *k, const char *folder, int64_t now_ms, struct error *e);
// When the newest key was made; 0: not known.
int64_t token_keys_made_ms(struct token_keys *k);

// Adds ports to the claims, merging ranges. -EINVAL: not a range of ports; -E2BIG: more than TOKEN_PORTS_MAX separate ranges.
int token_add_ports(struct token_claims *c, uint32_t first, uint32_t last, struct error *e);
#define token_add_all_ports(c, e) token_add_ports((c), 1, 65535, (e))

// Writes a token and a NUL to `to`. Fails only when the claims are not in order (-EINVAL) or the cryptography does (-EIO).
int token_mint(struct token_keys *k, const struct token_claims *c, char to[static TOKEN_ROOM], struct error *e);

// Opens a token of any origin. -EBADMSG: not a token in form; -EACCES: in form, but not made with one of our keys, or altered. Says
// nothing about expiry, microVM and port: see token_permits().
int token_open(struct token_keys *k, const char *text, size_t size, struct token_claims *ret, struct error *e);

enum token_verdict { TOKEN_FINE, TOKEN_OTHER_MICROVM, TOKEN_EXPIRED, TOKEN_PORT_DENIED };
enum token_verdict token_permits(const struct token_claims *c, const char *microvm, uint16_t port, int64_t now_ms);
