// Message checking; see messages.h.
#include "launch/messages.h"

#include "base/uuid.h"
#include "base/wire.h"

#include <string.h>

// subnet-[0-9a-z]+, as in the API (spec section 7.3).
bool network_name_is_valid(const char *name) {
	size_t n = strlen(name), prefix = strlen("subnet-");
	return n < LAUNCH_NETWORK_MAX && strncmp(name, "subnet-", prefix) == 0 && n > prefix &&
	       strspn(name + prefix, "0123456789abcdefghijklmnopqrstuvwxyz") == n - prefix;
}

static int check_egress(const struct egress *g, struct error *e) {
	if (g->base != LAUNCH_EGRESS_NONE && g->base != LAUNCH_EGRESS_INTERNET)
		return error_set(e, -EBADMSG, "there is no egress policy %u", g->base);
	if (g->network_count > LAUNCH_NETWORKS_MAX)
		return error_set(e, -EBADMSG, "%u networks are more than %d", g->network_count, LAUNCH_NETWORKS_MAX);
	for (uint32_t i = 0; i < g->network_count; i++)
		if (memchr(g->networks[i], '\0', LAUNCH_NETWORK_MAX) == NULL || !network_name_is_valid(g->networks[i]))
			return error_set(e, -EBADMSG, "the name of network %u is malformed", i);
	return 0;
}

static int check_take(const struct launch_take *t, struct error *e) {
	if (t->vcpus < 1 || t->vcpus > LAUNCH_VCPUS_MAX)
		return error_set(e, -EBADMSG, "%u vCPUs are not between 1 and %d", t->vcpus, LAUNCH_VCPUS_MAX);
	if (t->memory_bytes < 1 << 20 || t->memory_bytes > LAUNCH_MEMORY_MAX)
		return error_set(e, -EBADMSG, "%llu bytes of memory are out of range", (unsigned long long)t->memory_bytes);
	return check_egress(&t->egress, e);
}

int launch_request_parse(const void *data, size_t size, union launch_request *ret, struct error *e) {
	struct reader r = reader_over(data, size);
	memset(ret, 0, sizeof(*ret));
	read_copy(&r, &ret->header, sizeof(ret->header));
	if (r.bad || ret->header.magic != LAUNCH_MAGIC)
		return error_set(e, -EBADMSG, "a message of %zu bytes is none of stasis-launch's", size);
	size_t wanted = ret->header.kind == LAUNCH_TAKE   ? sizeof(struct launch_take)
			: ret->header.kind == LAUNCH_END  ? sizeof(struct launch_end)
			: ret->header.kind == LAUNCH_LIST ? sizeof(struct launch_header)
							  : 0;
	if (size != wanted)
		return error_set(e, -EBADMSG, "a message of kind %u has %zu bytes instead of %zu", ret->header.kind, size, wanted);
	memcpy(ret, data, size);
	if (ret->header.kind == LAUNCH_TAKE)
		return check_take(&ret->take, e);
	if (ret->header.kind == LAUNCH_END && (memchr(ret->end.vmm, '\0', sizeof(ret->end.vmm)) == NULL || !uuid_is_valid(ret->end.vmm)))
		return error_set(e, -EBADMSG, "the slot's name is malformed");
	return 0;
}
