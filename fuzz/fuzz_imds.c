// Requests to the guest's instance metadata service, one after the other as they lie on a connection. Credentials must never come without a session
// token that was given out.
#include "guest/imds.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static char answer[LOCAL_HTTP_ANSWER_MAX];
	static struct http_head h;
	struct imds m = {.document = (char[]){"{\"SecretAccessKey\":\"hidden\"}"}};
	struct error e = {0};
	char *copy = malloc(size + 1);
	const char *at = copy;
	memcpy(copy, data, size);
	for (ssize_t n; (n = http_parse_request(at, size, &h, &e)) > 0; at += n, size -= (size_t)n) {
		size_t got = imds_answer(&m, &h, answer);
		if (got == 0 || got >= sizeof(answer) || memcmp(answer, "HTTP/1.1 ", 9) != 0)
			abort();
		// A token is 32 random bytes: nobody guesses one.
		if (memmem(answer, got, "hidden", 6) != NULL)
			abort();
	}
	free(copy);
	return 0;
}
