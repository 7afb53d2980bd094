// JSON requests of the API: parsing with its limits, types, constraints, the message that lists the violations. The first byte, a
// digit, chooses the operation.
#include "api/api_internal.h"
#include "api/validate.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static const struct shape *const shapes[] = {&shape_create_image,     &shape_run,
						     &shape_auth_token,       &shape_create_connector,
						     &shape_update_connector, &shape_update_image,
						     &shape_update_version,   &shape_shell_auth_token,
						     &shape_tag_resource,     &shape_untag_resource,
						     &shape_build_filters};
	if (size == 0)
		return 0;
	const struct shape *shape = shapes[(uint8_t)(data[0] - '0') % (sizeof(shapes) / sizeof(shapes[0]))];
	json_t *body = NULL;
	const char *why = NULL;
	char *copy = malloc(size);
	memcpy(copy, data + 1, size - 1);
	if (api_parse_body((struct slice){copy, size - 1}, &body, &why) && body != NULL) {
		char message[128];
		if (shape_types_match(shape, body, message)) {
			struct violations v = {.count = 0};
			shape_check(shape, body, "", &v);
			char *text = v.count == 0 ? NULL : violations_message(&v);
			// What is answered must be JSON text of a bounded size.
			json_t *answer = text == NULL ? NULL : json_string(text);
			if (v.count > 0 && (answer == NULL || strlen(text) > 65536))
				abort();
			json_decref(answer);
			free(text);
			free(v.text.data);
		}
		json_decref(body);
	}
	free(copy);
	return 0;
}
