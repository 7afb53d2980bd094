// Checksums of uploads; see checksum.h. The CRCs are the reflected kind, by tables for eight bytes at a time.
#include "store/checksum.h"

#include "base/base64.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <string.h>

static const char *const names[CHECKSUM_KINDS] = {"crc32", "crc32c", "crc64nvme", "sha1", "sha256"};

// Reflected polynomials: IEEE 802.3, Castagnoli, and NVM Express (base specification 2.0c, figure 110).
static const uint64_t polynomials[] = {0xedb88320u, 0x82f63b78u, 0x9a6c9329ac4bc9b5u};
static uint64_t tables[3][8][256];

static void make_tables(void) {
	for (int kind = 0; kind < 3; kind++) {
		for (unsigned i = 0; i < 256; i++) {
			uint64_t v = i;
			for (int bit = 0; bit < 8; bit++)
				v = (v & 1) != 0 ? (v >> 1) ^ polynomials[kind] : v >> 1;
			tables[kind][0][i] = v;
		}
		for (int k = 1; k < 8; k++)
			for (unsigned i = 0; i < 256; i++)
				tables[kind][k][i] = (tables[kind][k - 1][i] >> 8) ^ tables[kind][0][tables[kind][k - 1][i] & 0xff];
	}
}

const char *checksum_name(enum checksum_kind kind) {
	return names[kind];
}

enum checksum_kind checksum_find(const char *name, size_t size) {
	for (int i = 0; i < CHECKSUM_KINDS; i++)
		if (strlen(names[i]) == size && memcmp(names[i], name, size) == 0)
			return (enum checksum_kind)i;
	return CHECKSUM_KINDS;
}

bool checksum_start(struct checksum *c, enum checksum_kind kind) {
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, make_tables);
	*c = (struct checksum){.kind = kind, .crc = kind == CHECKSUM_CRC64NVME ? UINT64_MAX : UINT32_MAX};
	if (kind != CHECKSUM_SHA1 && kind != CHECKSUM_SHA256)
		return true;
	c->digest = EVP_MD_CTX_new();
	return c->digest != NULL && EVP_DigestInit_ex(c->digest, kind == CHECKSUM_SHA1 ? EVP_sha1() : EVP_sha256(), NULL) == 1;
}

void checksum_add(struct checksum *c, const void *data, size_t size) {
	if (c->digest != NULL) {
		EVP_DigestUpdate(c->digest, data, size);
		return;
	}
	const uint8_t *p = data;
	uint64_t(*t)[256] = tables[c->kind], v = c->crc;
	for (; size >= 8; size -= 8, p += 8) {
		uint64_t word;
		memcpy(&word, p, 8);
		word ^= v;
		v = t[7][word & 0xff] ^ t[6][word >> 8 & 0xff] ^ t[5][word >> 16 & 0xff] ^ t[4][word >> 24 & 0xff] ^
		    t[3][word >> 32 & 0xff] ^ t[2][word >> 40 & 0xff] ^ t[1][word >> 48 & 0xff] ^ t[0][word >> 56];
	}
	for (; size > 0; size--)
		v = (v >> 8) ^ t[0][(v ^ *p++) & 0xff];
	c->crc = v;
}

void checksum_finish(struct checksum *c, char to[static CHECKSUM_TEXT]) {
	uint8_t value[EVP_MAX_MD_SIZE];
	unsigned n = c->kind == CHECKSUM_CRC64NVME ? 8 : 4;
	if (c->digest != NULL)
		EVP_DigestFinal_ex(c->digest, value, &n);
	else
		for (unsigned i = 0; i < n; i++)
			value[i] = (uint8_t)(~c->crc >> (8 * (n - 1 - i)));
	base64_encode(to, value, n);
	checksum_drop(c);
}

void checksum_drop(struct checksum *c) {
	EVP_MD_CTX_free(c->digest);
	c->digest = NULL;
}
