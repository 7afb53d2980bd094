// What the image says of itself to the agent, and what the application says about being busy: the variable's text (STASIS_BUSY, STASIS_TLS) up to the first NUL, then requests one after the other as they lie on a connection.
#include "guest/busy.h"
#include "guest/tls_ports.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static char answer[LOCAL_HTTP_ANSWER_MAX], why[BUSY_WHY_MAX];
	static struct http_head h;
	static struct busy b;
	static struct loop loop;
	static struct events events;
	struct error e = {0};

	if (events.loop == NULL && (loop_init(&loop, &e) < 0 || events_init(&events, &loop, &e) < 0))
		abort();
	busy_init(&b, &(struct local_http){.loop = &loop}, &events);
	char *copy = malloc(size + 1);
	memcpy(copy, data, size);
	copy[size] = '\0';
	size_t text = strlen(copy);
	if (busy_parse(copy, &b.policy, &e) == 0 && b.policy.cpu_percent > 1600)
		abort();
	struct tls_ports ports;
	if (tls_ports_parse(copy, &ports, &e) == 0)
		for (size_t i = 0; i < ports.count; i++)
			if (!tls_ports_have(&ports, ports.at[i]) || ports.at[i] == 0)
				abort();
	const char *at = copy + text;
	size -= text;
	if (size > 0)
		at++, size--;
	for (ssize_t n; (n = http_parse_request(at, size, &h, &e)) > 0; at += n, size -= (size_t)n) {
		size_t got = busy_answer(&b, &h, answer);
		if (got == 0 || got >= sizeof(answer) || memcmp(answer, "HTTP/1.1 ", 9) != 0)
			abort();
		busy_idle_ns(&b, why);
		if (memchr(why, '\0', sizeof(why)) == NULL || (why[0] != '\0' && !b.policy.leases))
			abort();
	}
	events_clear(&events);
	free(copy);
	return 0;
}
