// The request of a session: anybody with a shell's token writes it.
#include "guest/session_request.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	struct session_request q;
	struct error e = {0};
	int r = session_request_parse(data, size, &q, &e);
	if (r == 0 && (q.user == NULL || (q.op == SESSION_EXEC && json_array_size(q.args) == 0) ||
		       ((q.op == SESSION_PUT || q.op == SESSION_GET) && (q.path == NULL || q.path[0] != '/')) ||
		       (q.folder != NULL && q.folder[0] != '/') || (q.op == SESSION_SHELL && !q.terminal)))
		abort();
	if (r < 0 && e.message[0] == '\0')
		abort();
	session_request_free(&q);
	return 0;
}
