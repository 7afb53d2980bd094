// The checksums that S3 clients send along with an upload (x-amz-checksum-*): CRC-32, CRC-32C, CRC-64/NVME, SHA-1, SHA-256, computed as the
// bytes go by.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum checksum_kind { CHECKSUM_CRC32, CHECKSUM_CRC32C, CHECKSUM_CRC64NVME, CHECKSUM_SHA1, CHECKSUM_SHA256, CHECKSUM_KINDS };

#define CHECKSUM_TEXT 48 // room for any of them in base64

struct checksum {
	enum checksum_kind kind;
	uint64_t crc;
	void *digest; // EVP_MD_CTX of the SHA kinds
};

// The name as it stands behind "x-amz-checksum-" ("crc32c"), and back; CHECKSUM_KINDS: unknown.
const char *checksum_name(enum checksum_kind kind);
enum checksum_kind checksum_find(const char *name, size_t size);

bool checksum_start(struct checksum *c, enum checksum_kind kind); // false: out of memory
void checksum_add(struct checksum *c, const void *data, size_t size);
// Writes the value in base64, big-endian as S3 wants it, and releases what `c` holds.
void checksum_finish(struct checksum *c, char to[static CHECKSUM_TEXT]);
// Releases without a result; fine on a zeroed or finished one.
void checksum_drop(struct checksum *c);
