// Messages from stasisd to stasis-launch.
#include "launch/messages.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	union launch_request q;
	struct error e;
	int r = launch_request_parse(data, size, &q, &e);
	// What passes is within what the rest relies on.
	if (r == 0 && q.header.kind == LAUNCH_TAKE && (q.take.vcpus == 0 || q.take.memory_bytes == 0))
		abort();
	for (uint32_t i = 0; r == 0 && q.header.kind == LAUNCH_TAKE && i < q.take.egress.network_count; i++)
		if (i >= LAUNCH_NETWORKS_MAX || strncmp(q.take.egress.networks[i], "subnet-", 7) != 0)
			abort();
	if (r == 0 && q.header.kind == LAUNCH_END && q.end.vmm[36] != '\0')
		abort();
	return 0;
}
