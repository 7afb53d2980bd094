// Endpoint tokens; see token.h.
//
// A token is `<header>..<iv>.<ciphertext>.<tag>` in base64url. The header is exactly {"kid":"<uuid>","alg":"dir","enc":"A256GCM"}, so it is
// compared rather than parsed; as a JWE's additional data it is covered by the tag. The encrypted record is a fixed-size binary structure of
// version, kind, expiry, id, microVM and port ranges, padded with zeroes, so all tokens are of one length.
//
// Nonces are random: 96 bits allow 2^32 tokens per key at a collision risk of 2^-32 (NIST SP 800-38D section 8.3).
#include "edge/token.h"

#include "base/base64.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/wire.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define KEY_BYTES 32
#define IV_BYTES 12
#define TAG_BYTES 16
#define RECORD_BYTES 512
#define RECORD_VERSION 2 // 1 had no time of minting
#define KEYS_MAX 16
#define KEY_FILE_MAX 4096
#define KEY_IN_USE_MS (65 * 60000) // after the next one was made: longer than any token is valid, and clocks are apart

#define HEADER_BEFORE "{\"kid\":\""
#define HEADER_AFTER "\",\"alg\":\"dir\",\"enc\":\"A256GCM\"}"
#define HEADER_BYTES (sizeof(HEADER_BEFORE) - 1 + UUID_TEXT - 1 + sizeof(HEADER_AFTER) - 1)

// Where the parts of a token lie; base64url of n bytes has ceil(4n/3) characters.
#define TEXT_OF(n) (((n)*4 + 2) / 3)
#define HEADER_TEXT TEXT_OF(HEADER_BYTES)
#define IV_TEXT TEXT_OF(IV_BYTES)
#define RECORD_TEXT TEXT_OF(RECORD_BYTES)
#define TAG_TEXT TEXT_OF(TAG_BYTES)
#define IV_AT (HEADER_TEXT + 2)
#define RECORD_AT (IV_AT + IV_TEXT + 1)
#define TAG_AT (RECORD_AT + RECORD_TEXT + 1)

_Static_assert(TAG_AT + TAG_TEXT == TOKEN_LENGTH, "TOKEN_LENGTH is the sum of the parts");
_Static_assert(TOKEN_LENGTH >= 756 && TOKEN_LENGTH <= 868, "the service's tokens are that long");
_Static_assert(1 + 1 + 8 + 8 + 36 + 1 + TOKEN_MICROVM_MAX + 1 + TOKEN_PORTS_MAX * 4 <= RECORD_BYTES, "the largest claims fit");

struct key {
	char kid[UUID_TEXT];
	uint8_t secret[KEY_BYTES];
	int64_t made_ms; // 0: by a program that did not say
};

struct token_keys {
	EVP_CIPHER *cipher;
	pthread_rwlock_t lock; // of what follows
	size_t count;
	struct key keys[KEYS_MAX];
};

static void cleanup_context_fn(EVP_CIPHER_CTX **c) {
	EVP_CIPHER_CTX_free(*c);
}
#define cleanup_context __attribute__((cleanup(cleanup_context_fn)))

// One line per key: its name, a space, 32 bytes in base64url, and, but in old files, a space and when it was made in ms since the epoch.
#define LINE_ROOM (UUID_TEXT + BASE64_ROOM(KEY_BYTES) + 24)

static bool parse_key(const char *line, size_t size, struct key *ret) {
	const size_t least = UUID_TEXT + TEXT_OF(KEY_BYTES);
	*ret = (struct key){.made_ms = 0};
	if (size < least || line[UUID_TEXT - 1] != ' ')
		return false;
	memcpy(ret->kid, line, UUID_TEXT - 1);
	if (!uuid_is_valid(ret->kid) || base64url_decode(ret->secret, KEY_BYTES, line + UUID_TEXT, TEXT_OF(KEY_BYTES)) != KEY_BYTES)
		return false;
	if (size == least)
		return true;
	if (size - least < 2 || size - least > 14 || line[least] != ' ')
		return false;
	for (size_t i = least + 1; i < size; i++) {
		if (line[i] < '0' || line[i] > '9')
			return false;
		ret->made_ms = ret->made_ms * 10 + (line[i] - '0');
	}
	return true;
}

// Returns 0 or -EBADMSG.
static int parse_keys(struct token_keys *k, const char *text, size_t size) {
	for (size_t at = 0; at < size;) {
		const char *end = memchr(text + at, '\n', size - at);
		size_t n = end == NULL ? 0 : (size_t)(end - (text + at));
		if (end == NULL || k->count == KEYS_MAX || !parse_key(text + at, n, &k->keys[k->count]))
			return -EBADMSG;
		k->count++;
		at += n + 1;
	}
	return k->count == 0 ? -EBADMSG : 0;
}

static int make_key(struct key *ret, int64_t now_ms, struct error *e) {
	if (RAND_priv_bytes(ret->secret, sizeof(ret->secret)) != 1)
		return error_set(e, -EIO, "cannot draw random bytes for the token key");
	uuid_new(ret->kid);
	ret->made_ms = now_ms;
	return 0;
}

static int write_keys(const char *path, const struct key *keys, size_t count, struct error *e) {
	char text[KEYS_MAX * LINE_ROOM], encoded[BASE64_ROOM(KEY_BYTES)];
	size_t at = 0;
	for (size_t i = 0; i < count; i++) {
		base64url_encode(encoded, keys[i].secret, KEY_BYTES);
		int n = keys[i].made_ms == 0
				? snprintf(text + at, sizeof(text) - at, "%s %s\n", keys[i].kid, encoded)
				: snprintf(text + at, sizeof(text) - at, "%s %s %lld\n", keys[i].kid, encoded, (long long)keys[i].made_ms);
		at += (size_t)n;
	}
	int r = write_file_durably(path, text, at, 0600, e);
	OPENSSL_cleanse(encoded, sizeof(encoded));
	OPENSSL_cleanse(text, sizeof(text));
	if (r == 0)
		log_info("edge.token_key_made", LOG_S("kid", keys[count - 1].kid), LOG_U("keys", count));
	return r;
}

static int make_key_file(const char *path, struct error *e) {
	struct key key;
	int r = make_key(&key, (int64_t)realtime_ms(), e);
	if (r == 0)
		r = write_keys(path, &key, 1, e);
	OPENSSL_cleanse(&key, sizeof(key));
	return r;
}

static int load_keys(struct token_keys *k, const char *path, struct error *e) {
	cleanup_free char *text = NULL;
	size_t size = 0;
	int r = read_file(path, KEY_FILE_MAX, &text, &size, e);
	if (r == -ENOENT) {
		r = make_key_file(path, e);
		if (r == 0)
			r = read_file(path, KEY_FILE_MAX, &text, &size, e);
	}
	if (r < 0)
		return r;
	r = parse_keys(k, text, size);
	OPENSSL_cleanse(text, size);
	if (r < 0)
		return error_set(
			e, r,
			"%s is damaged: each line must be a key's name, 32 bytes in base64url and a time; restore it from a backup, or "
			"remove it to make "
			"new keys (tokens given out before become invalid)",
			path);
	k->cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	return k->cipher != NULL ? 0 : error_set(e, -ENOTSUP, "OpenSSL offers no AES-256-GCM; check its configuration");
}

#define PATH_ROOM 512

static int key_path(const char *folder, char to[PATH_ROOM], struct error *e) {
	if (snprintf(to, PATH_ROOM, "%s/tokens.key", folder) >= PATH_ROOM)
		return error_set(e, -ENAMETOOLONG, "the state folder's path is too long: %s", folder);
	return 0;
}

int token_keys_open(const char *folder, struct token_keys **ret, struct error *e) {
	char path[PATH_ROOM];
	if (key_path(folder, path, e) < 0)
		return -ENAMETOOLONG;
	struct token_keys *k = calloc(1, sizeof(*k));
	if (k == NULL)
		return error_set(e, -ENOMEM, "out of memory reading %s", path);
	pthread_rwlock_init(&k->lock, NULL);
	int r = load_keys(k, path, e);
	if (r < 0)
		token_keys_close(k);
	else
		*ret = k;
	return r;
}

void token_keys_close(struct token_keys *k) {
	if (k == NULL)
		return;
	EVP_CIPHER_free(k->cipher);
	pthread_rwlock_destroy(&k->lock);
	OPENSSL_cleanse(k, sizeof(*k));
	free(k);
}

int token_keys_rotate(struct token_keys *k, const char *folder, int64_t now_ms, struct error *e) {
	char path[PATH_ROOM];
	struct key keys[KEYS_MAX + 1];
	size_t count = 0;
	if (key_path(folder, path, e) < 0)
		return -ENAMETOOLONG;
	pthread_rwlock_wrlock(&k->lock);
	// A key stays while tokens of it may be valid: the newest was in use until now, another one until the one behind it was made.
	for (size_t i = 0; i < k->count; i++)
		if (i + 1 == k->count || k->keys[i + 1].made_ms == 0 || k->keys[i + 1].made_ms + KEY_IN_USE_MS > now_ms)
			keys[count++] = k->keys[i];
	int r = count >= KEYS_MAX
			? error_set(e, -EBUSY, "there are %zu keys already whose tokens may still be valid; try again in an hour", count)
			: make_key(&keys[count], now_ms, e);
	if (r == 0)
		r = write_keys(path, keys, count + 1, e);
	if (r == 0) {
		memcpy(k->keys, keys, (count + 1) * sizeof(keys[0]));
		k->count = count + 1;
	}
	pthread_rwlock_unlock(&k->lock);
	OPENSSL_cleanse(keys, sizeof(keys));
	return r;
}

int64_t token_keys_made_ms(struct token_keys *k) {
	pthread_rwlock_rdlock(&k->lock);
	int64_t made_ms = k->keys[k->count - 1].made_ms;
	pthread_rwlock_unlock(&k->lock);
	return made_ms;
}

int token_add_ports(struct token_claims *c, uint32_t first, uint32_t last, struct error *e) {
	if (first < 1 || last > 65535 || first > last)
		return error_set(e, -EINVAL, "ports %u to %u are not a range within 1 to 65535", first, last);
	// Sorted and apart: find what the new range touches, and put one range in its place.
	size_t from = 0;
	while (from < c->port_count && c->ports[from].last + 1u < first)
		from++;
	size_t to = from;
	for (; to < c->port_count && c->ports[to].first <= last + 1u; to++) {
		first = c->ports[to].first < first ? c->ports[to].first : first;
		last = c->ports[to].last > last ? c->ports[to].last : last;
	}
	if (from == to && c->port_count == TOKEN_PORTS_MAX)
		return error_set(e, -E2BIG, "more than %d separate ranges of ports", TOKEN_PORTS_MAX);
	memmove(&c->ports[from + 1], &c->ports[to], (c->port_count - to) * sizeof(c->ports[0]));
	c->port_count = c->port_count - (to - from) + 1;
	c->ports[from] = (struct port_range){(uint16_t)first, (uint16_t)last};
	return 0;
}

// Refuses what read_record() would refuse.
static bool claims_in_order(const struct token_claims *c) {
	if (c->kind < TOKEN_HTTP || c->kind > TOKEN_OPERATOR || c->microvm[0] == '\0' || c->port_count > TOKEN_PORTS_MAX ||
	    c->expires_ms < 0 || c->minted_ms < 0)
		return false;
	for (size_t i = 0; i < c->port_count; i++)
		if (c->ports[i].first == 0 || c->ports[i].first > c->ports[i].last)
			return false;
	return uuid_is_valid(c->id);
}

static void write_record(const struct token_claims *c, uint8_t record[static RECORD_BYTES]) {
	memset(record, 0, RECORD_BYTES);
	struct writer w = writer_over(record, RECORD_BYTES);
	size_t name = strlen(c->microvm);
	write_u8(&w, RECORD_VERSION);
	write_u8(&w, (uint8_t)c->kind);
	write_u64(&w, (uint64_t)c->expires_ms);
	write_u64(&w, (uint64_t)c->minted_ms);
	write_bytes(&w, c->id, UUID_TEXT - 1);
	write_u8(&w, (uint8_t)name);
	write_bytes(&w, c->microvm, name);
	write_u8(&w, (uint8_t)c->port_count);
	for (size_t i = 0; i < c->port_count; i++) {
		write_u16(&w, c->ports[i].first);
		write_u16(&w, c->ports[i].last);
	}
}

static bool read_record(const uint8_t record[static RECORD_BYTES], struct token_claims *c) {
	*c = (struct token_claims){0};
	struct reader r = reader_over(record, RECORD_BYTES);
	uint8_t version = read_u8(&r);
	c->kind = read_u8(&r);
	c->expires_ms = (int64_t)read_u64(&r);
	c->minted_ms = version < RECORD_VERSION ? 0 : (int64_t)read_u64(&r);
	read_copy(&r, c->id, UUID_TEXT - 1);
	size_t name = read_u8(&r);
	if (version < 1 || version > RECORD_VERSION || r.bad || name > TOKEN_MICROVM_MAX)
		return false;
	read_copy(&r, c->microvm, name);
	c->port_count = read_u8(&r);
	if (strlen(c->microvm) != name || c->port_count > TOKEN_PORTS_MAX)
		return false;
	for (size_t i = 0; i < c->port_count; i++) {
		c->ports[i].first = read_u16(&r);
		c->ports[i].last = read_u16(&r);
	}
	return !r.bad && claims_in_order(c);
}

// The header's text, which is the additional data as well (RFC 7516 section 5.1 step 14).
static void header_text(const char *kid, char to[static HEADER_TEXT + 1]) {
	char json[HEADER_BYTES + 1], encoded[BASE64_ROOM(HEADER_BYTES)];
	snprintf(json, sizeof(json), HEADER_BEFORE "%s" HEADER_AFTER, kid);
	base64url_encode(encoded, json, HEADER_BYTES);
	memcpy(to, encoded, HEADER_TEXT + 1);
}

static bool encrypt(const struct token_keys *k, const struct key *key, const char *aad, const uint8_t *iv, const uint8_t *in, uint8_t *out,
		    uint8_t *tag) {
	cleanup_context EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
	int n = 0, last = 0;
	return c != NULL && EVP_EncryptInit_ex2(c, k->cipher, key->secret, iv, NULL) == 1 &&
	       EVP_EncryptUpdate(c, NULL, &n, (const uint8_t *)aad, HEADER_TEXT) == 1 &&
	       EVP_EncryptUpdate(c, out, &n, in, RECORD_BYTES) == 1 && EVP_EncryptFinal_ex(c, out + n, &last) == 1 &&
	       n + last == RECORD_BYTES && EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, tag) == 1;
}

static bool decrypt(const struct token_keys *k, const struct key *key, const char *aad, const uint8_t *iv, const uint8_t *in, uint8_t *out,
		    uint8_t *tag) {
	cleanup_context EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
	int n = 0, last = 0;
	return c != NULL && EVP_DecryptInit_ex2(c, k->cipher, key->secret, iv, NULL) == 1 &&
	       EVP_DecryptUpdate(c, NULL, &n, (const uint8_t *)aad, HEADER_TEXT) == 1 &&
	       EVP_DecryptUpdate(c, out, &n, in, RECORD_BYTES) == 1 && EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, tag) == 1 &&
	       EVP_DecryptFinal_ex(c, out + n, &last) == 1 && n + last == RECORD_BYTES;
}

int token_mint(struct token_keys *k, const struct token_claims *c, char to[static TOKEN_ROOM], struct error *e) {
	struct token_claims claims = *c;
	if (claims.id[0] == '\0')
		uuid_new(claims.id);
	if (!claims_in_order(&claims))
		return error_set(e, -EINVAL, "the claims of a token are not in order");
	struct key key;
	pthread_rwlock_rdlock(&k->lock);
	key = k->keys[k->count - 1];
	pthread_rwlock_unlock(&k->lock);
	uint8_t iv[IV_BYTES], record[RECORD_BYTES], sealed[RECORD_BYTES], tag[TAG_BYTES];
	char encoded[BASE64_ROOM(RECORD_BYTES)];
	write_record(&claims, record);
	header_text(key.kid, to);
	bool done = RAND_bytes(iv, sizeof(iv)) == 1 && encrypt(k, &key, to, iv, record, sealed, tag);
	OPENSSL_cleanse(&key, sizeof(key));
	if (!done)
		return error_set(e, -EIO, "OpenSSL cannot encrypt a token");
	memcpy(to + HEADER_TEXT, "..", 2);
	base64url_encode(encoded, iv, IV_BYTES);
	memcpy(to + IV_AT, encoded, IV_TEXT);
	to[RECORD_AT - 1] = '.';
	base64url_encode(encoded, sealed, RECORD_BYTES);
	memcpy(to + RECORD_AT, encoded, RECORD_TEXT);
	to[TAG_AT - 1] = '.';
	base64url_encode(encoded, tag, TAG_BYTES);
	memcpy(to + TAG_AT, encoded, TAG_TEXT + 1);
	return 0;
}

int token_open(struct token_keys *k, const char *text, size_t size, struct token_claims *ret, struct error *e) {
	uint8_t header[HEADER_BYTES], iv[IV_BYTES], sealed[RECORD_BYTES], record[RECORD_BYTES], tag[TAG_BYTES];
	if (size != TOKEN_LENGTH || text[HEADER_TEXT] != '.' || text[HEADER_TEXT + 1] != '.' || text[RECORD_AT - 1] != '.' ||
	    text[TAG_AT - 1] != '.' || base64url_decode(header, sizeof(header), text, HEADER_TEXT) != HEADER_BYTES ||
	    base64url_decode(iv, sizeof(iv), text + IV_AT, IV_TEXT) != IV_BYTES ||
	    base64url_decode(sealed, sizeof(sealed), text + RECORD_AT, RECORD_TEXT) != RECORD_BYTES ||
	    base64url_decode(tag, sizeof(tag), text + TAG_AT, TAG_TEXT) != TAG_BYTES ||
	    memcmp(header, HEADER_BEFORE, sizeof(HEADER_BEFORE) - 1) != 0 ||
	    memcmp(header + HEADER_BYTES - (sizeof(HEADER_AFTER) - 1), HEADER_AFTER, sizeof(HEADER_AFTER) - 1) != 0)
		return error_set(e, -EBADMSG, "not a token");
	const char *kid = (const char *)header + sizeof(HEADER_BEFORE) - 1;
	struct key key = {.made_ms = 0};
	bool known = false;
	pthread_rwlock_rdlock(&k->lock);
	for (size_t i = 0; i < k->count && !known; i++) {
		known = memcmp(k->keys[i].kid, kid, UUID_TEXT - 1) == 0;
		if (known)
			key = k->keys[i];
	}
	pthread_rwlock_unlock(&k->lock);
	bool fine = known && decrypt(k, &key, text, iv, sealed, record, tag) && read_record(record, ret);
	OPENSSL_cleanse(&key, sizeof(key));
	if (!fine)
		return error_set(e, -EACCES, "the token was not made with a key of this engine, or was altered");
	return 0;
}

enum token_verdict token_permits(const struct token_claims *c, const char *microvm, uint16_t port, int64_t now_ms) {
	if (strcmp(c->microvm, microvm) != 0)
		return TOKEN_OTHER_MICROVM;
	if (now_ms >= c->expires_ms)
		return TOKEN_EXPIRED;
	for (size_t i = 0; i < c->port_count; i++)
		if (port >= c->ports[i].first && port <= c->ports[i].last)
			return TOKEN_FINE;
	return TOKEN_PORT_DENIED;
}
