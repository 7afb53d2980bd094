// TLS to an application, over a socket to its VMM: as the functions of wire.h, with plain bytes on this side.
#pragma once

#include "edge/tls.h"
#include "edge/wire.h"

// As wire_read(). `scratch` has BUFFER_SMALL bytes. 0: the application has ended its side (t->ended), or the socket did.
ssize_t secure_read(struct tls *t, struct wire *w, char *scratch, void *to, size_t room);

// As wire_write(), and goes through the handshake first. -EINPROGRESS: the application must answer in it. Of size 0, sends what is left of what
// was taken before.
ssize_t secure_write(struct tls *t, struct wire *w, const void *data, size_t size);

// secure_write() has something to do even without bytes of the caller's.
static inline bool secure_waits(const struct tls *t) {
	return !t->ready || buffer_used(&t->out) > 0;
}
// Bytes have come that secure_read() can give without the socket.
static inline bool secure_has(const struct tls *t) {
	return buffer_used(&t->kept) > 0 || SSL_pending(t->ssl) > 0;
}
