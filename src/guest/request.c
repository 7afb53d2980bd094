// Parsing of control requests; see request.h. The host is trusted, its bytes are checked all the same: a slip there must end in an error
// reply, not in a dead guest.
#include "guest/request.h"

#include "base/hex.h"
#include "base/wire.h"
#include "guest/guest.h"

#include <arpa/inet.h>
#include <string.h>

ssize_t frame_size(const void *data, size_t size) {
	struct reader r = reader_over(data, size);
	uint32_t n = read_u32(&r);

	if (r.bad)
		return 0;
	if (n > GUEST_FRAME_MAX)
		return -EMSGSIZE;
	return (ssize_t)n + 4;
}

static int parse_credentials(const json_t *request, struct credentials_request *q, struct error *e) {
	const json_t *o = NULL;
	int r = member_object(request, "credentials", MEMBER_OPTIONAL, &o, e);

	if (r < 0 || o == NULL)
		return r;
	if ((r = member_string(o, "accessKeyId", MEMBER_REQUIRED, 128, &q->key_id, e)) < 0 ||
	    (r = member_string(o, "secretAccessKey", MEMBER_REQUIRED, 128, &q->secret, e)) < 0 ||
	    (r = member_string(o, "token", MEMBER_REQUIRED, REQUEST_TOKEN_MAX, &q->token, e)) < 0 ||
	    (r = member_string(o, "lastUpdated", MEMBER_REQUIRED, 32, &q->updated, e)) < 0 ||
	    (r = member_string(o, "expiration", MEMBER_REQUIRED, 32, &q->expiration, e)) < 0)
		return r;
	return 0;
}

static int parse_resume(const json_t *o, struct resume_request *q, struct error *e) {
	const char *entropy = NULL, *generation = "self";
	int64_t ns = 0;
	int r;

	if ((r = member_string(o, "entropy", MEMBER_REQUIRED, REQUEST_ENTROPY_MAX * 2, &entropy, e)) < 0 ||
	    (r = member_integer(o, "realtimeNs", MEMBER_REQUIRED, 1, INT64_MAX, &ns, e)) < 0 ||
	    (r = member_string(o, "generation", MEMBER_REQUIRED, 16, &generation, e)) < 0 ||
	    (r = member_object(o, "identity", MEMBER_OPTIONAL, &q->identity, e)) < 0 || (r = parse_credentials(o, &q->credentials, e)) < 0)
		return r;
	ssize_t n = hex_decode(entropy, strlen(entropy), q->entropy, sizeof(q->entropy));
	if (n < 32)
		return error_set(e, -EINVAL, "the member \"entropy\" must be 32 to 64 bytes as lower-case hex");
	q->entropy_size = (size_t)n;
	q->realtime_ns = (uint64_t)ns;
	q->clone = strcmp(generation, "clone") == 0;
	if (!q->clone && strcmp(generation, "self") != 0)
		return error_set(e, -EINVAL, "the member \"generation\" must be \"clone\" or \"self\"");
	return 0;
}

static int check_hostname(const char *name, struct error *e) {
	if (*name == '\0' || *name == '-' || *name == '.')
		return error_set(e, -EINVAL, "the host name \"%s\" is empty or starts with a dash or a dot", name);
	for (const char *p = name; *p != '\0'; p++)
		if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || *p == '-' || *p == '.'))
			return error_set(e, -EINVAL, "the host name may hold letters, digits, dashes and dots only");
	return 0;
}

static int parse_start(const json_t *o, struct start_request *q, struct error *e) {
	const char *capabilities = "default", *disk = GUEST_DISK_IMAGE;
	const char *name;
	json_t *value;
	int r;

	q->hostname = "localhost";
	if ((r = member_string(o, "disk", MEMBER_OPTIONAL, 20, &disk, e)) < 0 ||
	    (r = member_string_map(o, "env", MEMBER_OPTIONAL, 1024, 32768, &q->env, e)) < 0 ||
	    (r = member_string(o, "capabilities", MEMBER_OPTIONAL, 16, &capabilities, e)) < 0 ||
	    (r = member_string(o, "hostname", MEMBER_OPTIONAL, 63, &q->hostname, e)) < 0 || (r = check_hostname(q->hostname, e)) < 0)
		return r;
	if (strcmp(disk, GUEST_DISK_IMAGE) != 0)
		return error_set(e, -EINVAL, "the member \"disk\" must be \"%s\"", GUEST_DISK_IMAGE);
	q->all_capabilities = strcmp(capabilities, "all") == 0;
	if (!q->all_capabilities && strcmp(capabilities, "default") != 0)
		return error_set(e, -EINVAL, "the member \"capabilities\" must be \"default\" or \"all\"");
	if (q->env != NULL) {
		json_object_foreach(json_object_get(o, "env"), name, value) {
			if (*name == '\0' || strchr(name, '=') != NULL)
				return error_set(e, -EINVAL, "\"%.64s\" is no name of an environment variable", name);
		}
	}
	return 0;
}

static int parse_hook(const json_t *o, struct hook_request *q, struct error *e) {
	static const char *const names[] = {"ready", "validate", "run", "resume", "suspend", "terminate"};
	int64_t port = 0, timeout = 0;
	int r;

	if ((r = member_string(o, "name", MEMBER_REQUIRED, 16, &q->name, e)) < 0 ||
	    (r = member_integer(o, "port", MEMBER_REQUIRED, 1, 65535, &port, e)) < 0 ||
	    (r = member_integer(o, "timeoutMs", MEMBER_REQUIRED, 1, REQUEST_TIMEOUT_MS_MAX, &timeout, e)) < 0 ||
	    (r = member_string(o, "body", MEMBER_OPTIONAL, GUEST_FRAME_MAX, &q->body, e)) < 0 ||
	    (r = member_bool(o, "retry503", MEMBER_OPTIONAL, &q->retry_503, e)) < 0)
		return r;
	q->port = (uint16_t)port;
	q->timeout_ms = (uint64_t)timeout;
	q->body_size = q->body != NULL ? json_string_length(json_object_get(o, "body")) : 0;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (strcmp(names[i], q->name) == 0)
			return 0;
	return error_set(e, -EINVAL, "there is no hook \"%s\"", q->name);
}

// The build program reads the request itself; here only what would be dangerous or pointless to hand on is refused.
static int parse_build(const json_t *o, struct build_request *q, struct error *e) {
	const char *dockerfile = "Dockerfile", *format = "ext4";
	const json_t *ignored;
	int64_t bytes = 0, timeout = 3600000;
	bool network = false;
	int r;

	if ((r = member_string(o, "dockerfile", MEMBER_OPTIONAL, 1024, &dockerfile, e)) < 0 ||
	    (r = member_integer(o, "artifactBytes", MEMBER_REQUIRED, 1, INT64_MAX, &bytes, e)) < 0 ||
	    (r = member_string(o, "outputFormat", MEMBER_OPTIONAL, 16, &format, e)) < 0 ||
	    (r = member_string_map(o, "baseAliases", MEMBER_OPTIONAL, 256, 1024, &ignored, e)) < 0 ||
	    (r = member_string_map(o, "imageEnv", MEMBER_OPTIONAL, 1024, 32768, &ignored, e)) < 0 ||
	    (r = member_strings(o, "nameservers", MEMBER_OPTIONAL, REQUEST_NAMESERVERS_MAX, INET6_ADDRSTRLEN, &ignored, e)) < 0 ||
	    (r = member_bool(o, "network", MEMBER_OPTIONAL, &network, e)) < 0 ||
	    (r = member_integer(o, "timeoutMs", MEMBER_OPTIONAL, 1, REQUEST_TIMEOUT_MS_MAX, &timeout, e)) < 0)
		return r;
	if (*dockerfile == '\0' || *dockerfile == '/')
		return error_set(e, -EINVAL, "the member \"dockerfile\" must be a path relative to the archive's root");
	if (strcmp(format, "ext4") != 0)
		return error_set(e, -EINVAL, "the member \"outputFormat\" must be \"ext4\"");
	q->timeout_ms = (uint64_t)timeout;
	return 0;
}

// "a.b.c.d/length"
static int parse_cidr(const char *text, struct in_addr *address, unsigned *prefix, struct error *e) {
	char copy[INET_ADDRSTRLEN + 4] = "";
	const char *slash = strchr(text, '/');
	unsigned n = 0;

	if (slash == NULL || (size_t)(slash - text) >= INET_ADDRSTRLEN)
		return error_set(e, -EINVAL, "the member \"address\" must look like %s/%d", GUEST_ADDRESS, GUEST_PREFIX);
	memcpy(copy, text, (size_t)(slash - text));
	for (const char *p = slash + 1; *p != '\0'; p++) {
		if (*p < '0' || *p > '9' || n > 32)
			n = 99;
		else
			n = n * 10 + (unsigned)(*p - '0');
	}
	if (slash[1] == '\0' || n < 1 || n > 32 || inet_pton(AF_INET, copy, address) != 1)
		return error_set(e, -EINVAL, "the member \"address\" must look like %s/%d", GUEST_ADDRESS, GUEST_PREFIX);
	*prefix = n;
	return 0;
}

static int parse_network(const json_t *o, struct network_request *q, struct error *e) {
	const char *address = NULL, *gateway = NULL;
	const json_t *nameservers = NULL, *item;
	size_t i;
	int r;

	if ((r = member_string(o, "address", MEMBER_OPTIONAL, 32, &address, e)) < 0 ||
	    (r = member_string(o, "gateway", MEMBER_OPTIONAL, 32, &gateway, e)) < 0 ||
	    (r = member_strings(o, "nameservers", MEMBER_OPTIONAL, REQUEST_NAMESERVERS_MAX, INET6_ADDRSTRLEN - 1, &nameservers, e)) < 0)
		return r;
	if (address != NULL && (r = parse_cidr(address, &q->address, &q->prefix, e)) < 0)
		return r;
	if (gateway != NULL && inet_pton(AF_INET, gateway, &q->gateway) != 1)
		return error_set(e, -EINVAL, "the member \"gateway\" must be an IPv4 address");
	q->has_address = address != NULL;
	q->has_gateway = gateway != NULL;
	q->has_nameservers = nameservers != NULL;
	json_array_foreach(nameservers, i, item) {
		struct in6_addr any;
		const char *text = json_string_value(item);
		if (inet_pton(AF_INET, text, &any) != 1 && inet_pton(AF_INET6, text, &any) != 1)
			return error_set(e, -EINVAL, "the member \"nameservers\" must hold IP addresses");
		memcpy(q->nameservers[i], text, strlen(text) + 1);
		q->nameserver_count = i + 1;
	}
	return 0;
}

int request_parse(const void *data, size_t size, struct request *ret, struct error *e) {
	static const char *const names[] = {
		[OP_HELLO] = "hello", [OP_RESUME] = "resume",     [OP_START] = "start",
		[OP_HOOK] = "hook",   [OP_FREEZE] = "freeze",     [OP_STATE] = "state",
		[OP_BUILD] = "build", [OP_NETWORK] = "network",   [OP_CREDENTIALS] = "credentials",
		[OP_BUSY] = "busy",   [OP_POWEROFF] = "poweroff",
	};
	const char *op = NULL;
	int r;

	memset(ret, 0, sizeof(*ret));
	ret->document = json_parse_object(data, size, GUEST_FRAME_MAX, "the request", e);
	if (ret->document == NULL)
		return -EBADMSG;
	const json_t *o = ret->document;
	if ((r = member_integer(o, "id", MEMBER_REQUIRED, 0, INT64_MAX, &ret->id, e)) < 0 ||
	    (r = member_string(o, "op", MEMBER_REQUIRED, 32, &op, e)) < 0)
		return r;
	size_t i = 0;
	while (i < sizeof(names) / sizeof(*names) && strcmp(names[i], op) != 0)
		i++;
	switch (i) {
	case OP_HELLO:
	case OP_FREEZE:
	case OP_STATE:
	case OP_BUSY:
	case OP_POWEROFF:
		break;
	case OP_RESUME:
		r = parse_resume(o, &ret->resume, e);
		break;
	case OP_START:
		r = parse_start(o, &ret->start, e);
		break;
	case OP_HOOK:
		r = parse_hook(o, &ret->hook, e);
		break;
	case OP_BUILD:
		r = parse_build(o, &ret->build, e);
		break;
	case OP_NETWORK:
		r = parse_network(o, &ret->network, e);
		break;
	case OP_CREDENTIALS:
		r = parse_credentials(o, &ret->credentials, e);
		break;
	default:
		return error_set(e, -EOPNOTSUPP, "this guest agent has no operation \"%s\" (protocol %d)", op, GUEST_PROTOCOL);
	}
	ret->op = (enum request_op)i;
	return r;
}

void request_free(struct request *r) {
	json_decref(r->document);
	r->document = NULL;
}
