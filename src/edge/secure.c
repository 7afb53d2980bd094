// TLS to an application; see secure.h.
#include "edge/secure.h"

#include <errno.h>

ssize_t secure_read(struct tls *t, struct wire *w, char *scratch, void *to, size_t room) {
	for (;;) {
		ssize_t n = tls_read(t, to, room);
		if (n != 0 || t->ended) {
			int r = tls_keep(t);
			return r < 0 ? r : n;
		}
		ssize_t got = wire_read(w, scratch, BUFFER_SMALL);
		if (got <= 0)
			return got;
		tls_offer(t, scratch, (size_t)got);
	}
}

// 0, or as wire_write().
static ssize_t send_out(struct tls *t, struct wire *w) {
	while (buffer_used(&t->out) > 0) {
		ssize_t n = wire_write(w, buffer_bytes(&t->out), buffer_used(&t->out));
		if (n < 0)
			return n;
		buffer_consume(t->pool, &t->out, (size_t)n);
	}
	return 0;
}

ssize_t secure_write(struct tls *t, struct wire *w, const void *data, size_t size) {
	int greeted = tls_greet(t);
	// Also what says why it failed.
	ssize_t r = send_out(t, w);
	if (greeted < 0 || r < 0)
		return greeted < 0 ? greeted : r;
	if (greeted == 0)
		return -EINPROGRESS;
	ssize_t n = tls_write(t, data, size);
	if (n <= 0)
		return n;
	r = send_out(t, w);
	// What is taken is taken; the rest of it goes with the next call.
	return r < 0 && r != -EAGAIN ? r : n;
}
