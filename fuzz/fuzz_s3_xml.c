// What S3 clients send to be read: the documents of DeleteObjects and CompleteMultipartUpload, and the source of a copy. The first byte chooses
// which.
#include "api/s3.h"
#include "api/xml.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	if (size == 0)
		return 0;
	char *copy = malloc(size);
	memcpy(copy, data + 1, size - 1);
	if ((data[0] & 2) != 0) {
		char bucket[BUCKET_MAX], key[OBJECT_KEY_MAX + 1];
		if (s3_parse_source((struct slice){copy, size - 1}, bucket, key) &&
		    (key[0] == '\0' || !artifacts_bucket_name_is_valid(bucket)))
			abort();
	} else if ((data[0] & 1) != 0) {
		static struct s3_delete_request d;
		if (s3_parse_delete(copy, size - 1, &d) == 0) {
			// A key that was read must be written back as well-formed text.
			struct text t = {0};
			for (size_t i = 0; i < d.count; i++)
				xml_element(&t, "Key", d.keys[i]);
			free(t.data);
			s3_delete_request_clear(&d);
		}
	} else {
		struct s3_complete_request c;
		if (s3_parse_complete(copy, size - 1, &c) == 0)
			s3_complete_request_clear(&c);
	}
	free(copy);
	return 0;
}
