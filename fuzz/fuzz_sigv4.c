// Signatures of requests from strangers: head, Authorization header, query parameters, canonical request. The first byte chooses the service.
#include "api/sigv4.h"
#include "api/text.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static struct http_head h;
	if (size < 2)
		return 0;
	char *copy = malloc(size - 1);
	memcpy(copy, data + 1, size - 1);
	struct error e = {0};
	if (http_parse_request(copy, size - 1, &h, &e) > 0) {
		struct sigv4 s;
		enum sigv4_verdict v = sigv4_parse(&h, (data[0] & 1) != 0 ? "s3" : "lambda", &s, &e);
		if (v == SIGV4_FINE)
			v = sigv4_check(&s, &h, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "UNSIGNED-PAYLOAD", s.signed_at, &e);
		// Whatever is refused is refused with a reason.
		if (v != SIGV4_FINE && e.message[0] == '\0')
			abort();
		struct slice path, query;
		target_split(h.target, &path, &query);
		char *value = NULL;
		if (query_find(query, "prefix", &value) == 1)
			free(value);
	}
	free(copy);
	return 0;
}
