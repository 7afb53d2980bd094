// TLS over bytes in memory: OpenSSL on one side, bounded buffers on the other; sockets are the connection's matter.
#pragma once

#include "base/error.h"
#include "edge/buffer.h"

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>

#define TLS_RECORD_MAX 16384 // plain bytes of one record (RFC 8446 section 5.1)
#define TLS_OVERHEAD_MAX 512 // of one record, with room for a key update or an alert

struct tls {
	SSL *ssl;
	struct buffer_pool *pool;
	const char *fresh; // ciphertext that was just read, not the buffer's yet
	size_t fresh_size;
	struct buffer kept; // ciphertext that waits until there is room for its plaintext
	struct buffer out;  // ciphertext to be sent
	bool ready;         // the handshake is done
	bool ended;         // the peer's close_notify came
};

// A context for servers: TLS 1.2 and 1.3, ALPN h2 and http/1.1. The caller frees it with SSL_CTX_free().
SSL_CTX *tls_context_new(X509 *certificate, EVP_PKEY *key, struct error *e);

// A context for clients of applications. Their certificates are not checked: the way to them does not leave the microVM, and what they
// show is usually made by themselves. But they are strangers: what a handshake may cost is bounded.
SSL_CTX *tls_client_context_new(struct error *e);

int tls_start(struct tls *t, SSL_CTX *context, struct buffer_pool *pool);
// The same as a client, which offers HTTP/2 or else HTTP/1.1.
int tls_start_client(struct tls *t, SSL_CTX *context, struct buffer_pool *pool, bool h2);
// Goes on with a client's handshake: 1 when it is done, 0 when something is to be sent or read first, or -EPROTO.
int tls_greet(struct tls *t);
void tls_clear(struct tls *t);

// Hands in what came from the socket; it is used during the calls that follow. tls_keep() must be called before the bytes go away.
static inline void tls_offer(struct tls *t, const char *data, size_t size) {
	t->fresh = data;
	t->fresh_size = size;
}
// Copies what was not used yet. At most BUFFER_SMALL bytes may be waiting. Returns 0 or -ENOMEM.
int tls_keep(struct tls *t);

// Decrypts into `to`; goes through the handshake first. Returns the number of bytes, 0 when ciphertext is missing (or the peer has ended: see
// t->ended), or -EPROTO.
ssize_t tls_read(struct tls *t, char *to, size_t room);

// Encrypts up to TLS_RECORD_MAX bytes into t->out. Returns how many were taken (0: t->out must be sent first) or -EPROTO.
ssize_t tls_write(struct tls *t, const char *data, size_t size);

// Whether client and edge have agreed on this protocol (ALPN). Known once t->ready.
bool tls_speaks(const struct tls *t, const char *protocol);

// Appends the close_notify.
void tls_end(struct tls *t);
