// STASIS_TLS; see tls_ports.h.
#include "guest/tls_ports.h"

#include <errno.h>
#include <string.h>

// A port in decimal; 0: it is none.
static uint16_t parse_port(const char *text, size_t size) {
	unsigned n = 0;

	if (size == 0 || size > 5)
		return 0;
	for (size_t i = 0; i < size; i++) {
		if (text[i] < '0' || text[i] > '9')
			return 0;
		n = n * 10 + (unsigned)(text[i] - '0');
	}
	return n > 65535 ? 0 : (uint16_t)n;
}

int tls_ports_parse(const char *text, struct tls_ports *ret, struct error *e) {
	static const char apart[] = " \t,";

	*ret = (struct tls_ports){.count = 0};
	for (const char *at = text == NULL ? "" : text; *(at += strspn(at, apart)) != '\0';) {
		size_t size = strcspn(at, apart);
		uint16_t port = parse_port(at, size);
		if (port == 0)
			return error_named(e, -EINVAL, "IMAGE_CONFIG_INVALID",
					   TLS_VARIABLE " holds \"%.*s\"; it may hold ports, from 1 to 65535, apart by blanks or commas",
					   size > 64 ? 64 : (int)size, at);
		if (ret->count == TLS_PORTS_MAX)
			return error_named(e, -EINVAL, "IMAGE_CONFIG_INVALID", TLS_VARIABLE " may hold at most %d ports", TLS_PORTS_MAX);
		ret->at[ret->count++] = port;
		at += size;
	}
	return 0;
}

bool tls_ports_have(const struct tls_ports *p, uint16_t port) {
	for (size_t i = 0; i < p->count; i++)
		if (p->at[i] == port)
			return true;
	return false;
}
