// What the host sends to the guest agent, up to where effects begin: frames with their requests, request lines of streams; and what a build program
// leaves as its result. The first byte says which.
#include "guest/builder.h"
#include "guest/guest.h"
#include "guest/request.h"
#include "guest/streams.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

static void frames(const uint8_t *data, size_t size) {
	while (size > 0) {
		ssize_t n = frame_size(data, size);
		if (n <= 0 || (size_t)n > size)
			return;
		struct request q;
		struct error e = {0};
		int r = request_parse(data + 4, (size_t)n - 4, &q, &e);
		if (r < 0 ? e.message[0] == '\0' : q.op > OP_POWEROFF)
			abort();
		if (r == 0 && q.op == OP_HOOK && (q.hook.port == 0 || q.hook.timeout_ms == 0))
			abort();
		if (r == 0 && q.op == OP_NETWORK && q.network.nameserver_count > REQUEST_NAMESERVERS_MAX)
			abort();
		request_free(&q);
		data += n;
		size -= (size_t)n;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	struct stream_request stream;
	struct error e = {0};

	if (size == 0)
		return 0;
	if (data[0] == 'F') {
		frames(data + 1, size - 1);
	} else if (data[0] == 'S') {
		ssize_t n = stream_request_parse((const char *)data + 1, size - 1, &stream);
		if (n > (ssize_t)(size - 1) || (n > 0 && stream.kind == STREAM_TCP && stream.port == 0))
			abort();
	} else {
		json_t *result = build_result_parse((const char *)data + 1, size - 1, &e);
		if (result == NULL && e.name[0] == '\0')
			abort();
		json_decref(result);
	}
	return 0;
}
