// Subprotocols of a WebSocket handshake. What is written for the application is read again: nothing of the edge's own may be left in it, and
// nothing of the application's may be lost.
#include "edge/ws_auth.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static char written[3 * 4096];
	struct ws_auth a = {0}, again = {0};
	struct slice value = {(const char *)data, size};
	if (size > 4096)
		return 0;
	ws_auth_read(&a, value);
	struct writer w = writer_over(written, sizeof(written));
	ws_auth_write_others(&w, value);
	ws_auth_read(&again, (struct slice){written, sizeof(written) - w.left});
	if (w.bad || again.offered || again.tokens > 0 || again.ports > 0 || again.others != a.others || (again.malformed && !a.malformed))
		abort();
	struct gate_request r = {0};
	ws_auth_apply(&a, &r);
	if (r.token.size > 0 && (r.token.data < value.data || r.token.data + r.token.size > value.data + value.size))
		abort();
	return 0;
}
