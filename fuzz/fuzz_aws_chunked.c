// The aws-chunked coding: the same bytes in one piece and in small pieces must come to the same end. The first byte chooses signed chunks and
// trailers, the second the size of the pieces.
#include "api/aws_chunked.h"
#include "api/text.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int decode(const char *data, size_t size, size_t step, int mode, struct text *to) {
	static const struct sigv4 signer = {.date = "20130524",
					    .region = "us-east-1",
					    .service = "s3",
					    .amz_date = "20130524T000000Z",
					    .signature = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"};
	struct aws_chunked d;
	struct error e = {0};
	int r = aws_chunked_start(&d, (mode & 1) != 0 ? &signer : NULL, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", (mode & 2) != 0, &e);
	for (size_t at = 0; at < size && r >= 0 && !d.done;) {
		size_t n = size - at < step ? size - at : step;
		char *piece = malloc(n);
		memcpy(piece, data + at, n);
		struct slice content;
		ssize_t used = aws_chunked_feed(&d, piece, n, &content, &e);
		if (used > 0) {
			text_add(to, content.data, content.size);
			at += (size_t)used;
		} else {
			r = used < 0 ? (int)used : -EIO;
		}
		free(piece);
	}
	int result = r < 0 ? r : d.done;
	aws_chunked_end(&d);
	return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	if (size < 3)
		return 0;
	const char *body = (const char *)data + 2;
	cleanup_text whole = {0};
	cleanup_text pieces = {0};
	int a = decode(body, size - 2, size, data[0], &whole), b = decode(body, size - 2, data[1] % 16 + 1u, data[0], &pieces);
	// A body that is refused may have given out more or less of itself by then; one that is accepted may not differ.
	if (a != b || (a == 1 && (whole.size != pieces.size || (whole.size > 0 && memcmp(whole.data, pieces.data, whole.size) != 0))))
		abort();
	return 0;
}
