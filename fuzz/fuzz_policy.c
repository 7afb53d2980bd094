// Policy documents: the input up to its last two lines is the document, those are an action and a resource to decide on.
#include "api/policy.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	char *text = malloc(size + 1);
	memcpy(text, data, size);
	text[size] = '\0';
	char *resource = strrchr(text, '\n');
	if (resource != NULL)
		*resource++ = '\0';
	char *action = resource == NULL ? NULL : strrchr(text, '\n');
	if (action != NULL)
		*action++ = '\0';
	struct error e = {0};
	json_t *p = policy_read(text, strlen(text), &e);
	// Whatever is refused is refused with a reason.
	if (p == NULL && e.message[0] == '\0')
		abort();
	if (p != NULL && action != NULL) {
		enum policy_verdict v = policy_decide(p, action, resource);
		// `*` never stands for what is the operator's.
		if (v == POLICY_ALLOWS && strncasecmp(action, "stasis:", 7) == 0 && strcasestr(text, "stasis:") == NULL &&
		    strchr(text, '\\') == NULL)
			abort();
	}
	json_decref(p);
	free(text);
	return 0;
}
