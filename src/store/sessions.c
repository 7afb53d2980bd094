// Temporary credentials. The token is everything that there is to know about them, sealed (AES-256-GCM) with a secret of the store; the secret
// access key is derived from the same (HMAC-SHA-256 with another secret). So nothing is written when they are made, and a stasisd that starts again
// still knows them.
//
// Sealed: expiry (i64, milliseconds, little-endian), key id (20 characters), microVM's id. Token: base64url of nonce, sealed bytes, tag.
#include "store/db.h"

#include "base/base64.h"
#include "base/wire.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

#define NONCE 12
#define TAG 16
#define KEY_ID 20
#define PLAIN_LEAST (8 + KEY_ID + 1)
#define PLAIN_MAX (8 + KEY_ID + 47)
#define SECRET_BYTES 30 // 40 characters, as long-lived keys have

static int derive_secret(struct store *s, const unsigned char *plain, size_t size, struct store_session *ret, struct error *e) {
	unsigned char key[32], mac[32];
	unsigned n = sizeof(mac);
	int r = store_secret(s, "session secrets", key, sizeof(key), e);
	if (r < 0)
		return r;
	if (HMAC(EVP_sha256(), key, sizeof(key), plain, size, mac, &n) == NULL)
		r = error_set(e, -EIO, "no secret could be derived");
	else
		base64_encode(ret->secret, mac, SECRET_BYTES);
	OPENSSL_cleanse(key, sizeof(key));
	OPENSSL_cleanse(mac, sizeof(mac));
	return r;
}

static int make_key_id(char to[KEY_ID + 1]) {
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
	unsigned char bytes[KEY_ID - 4];
	if (RAND_bytes(bytes, sizeof(bytes)) != 1)
		return -EIO;
	memcpy(to, "ASIA", 4);
	for (size_t i = 0; i < sizeof(bytes); i++)
		to[4 + i] = letters[bytes[i] % 32];
	to[KEY_ID] = '\0';
	return 0;
}

int store_mint_session(struct store *s, const char *microvm, int64_t expires_ms, struct store_session *ret, char token[SESSION_TOKEN_ROOM],
		       struct error *e) {
	unsigned char key[32], plain[PLAIN_MAX + 1], sealed[NONCE + PLAIN_MAX + TAG];
	*ret = (struct store_session){.expires_ms = expires_ms};
	snprintf(ret->microvm, sizeof(ret->microvm), "%s", microvm);
	int r = store_secret(s, "session tokens", key, sizeof(key), e);
	if (r < 0)
		return r;
	if (make_key_id(ret->key_id) < 0 || RAND_bytes(sealed, NONCE) != 1)
		return error_set(e, -EIO, "no random bytes for temporary credentials");
	struct writer to = writer_over(plain, sizeof(plain));
	write_u64(&to, (uint64_t)expires_ms);
	int size = 8 + snprintf((char *)plain + 8, sizeof(plain) - 8, "%s%s", ret->key_id, ret->microvm), n = 0;
	r = derive_secret(s, plain, (size_t)size, ret, e);
	EVP_CIPHER_CTX *gcm = EVP_CIPHER_CTX_new();
	bool fine = r == 0 && gcm != NULL && EVP_EncryptInit_ex(gcm, EVP_aes_256_gcm(), NULL, key, sealed) == 1 &&
		    EVP_EncryptUpdate(gcm, sealed + NONCE, &n, plain, size) == 1 &&
		    EVP_EncryptFinal_ex(gcm, sealed + NONCE + size, &n) == 1 &&
		    EVP_CIPHER_CTX_ctrl(gcm, EVP_CTRL_AEAD_GET_TAG, TAG, sealed + NONCE + size) == 1;
	EVP_CIPHER_CTX_free(gcm);
	OPENSSL_cleanse(key, sizeof(key));
	if (!fine)
		return r < 0 ? r : error_set(e, -EIO, "no session token could be made");
	base64url_encode(token, sealed, (size_t)(NONCE + size + TAG));
	return 0;
}

int store_open_session(struct store *s, const char *key_id, const char *token, size_t token_size, struct store_session *ret,
		       struct error *e) {
	unsigned char key[32], plain[PLAIN_MAX + 1], sealed[NONCE + PLAIN_MAX + TAG];
	ssize_t sealed_size = base64url_decode(sealed, sizeof(sealed), token, token_size);
	int size = (int)sealed_size - NONCE - TAG, n = 0;
	if (sealed_size < 0 || size < PLAIN_LEAST || size > PLAIN_MAX)
		return error_set(e, -EBADMSG, "not a session token");
	int r = store_secret(s, "session tokens", key, sizeof(key), e);
	if (r < 0)
		return r;
	EVP_CIPHER_CTX *gcm = EVP_CIPHER_CTX_new();
	bool fine = gcm != NULL && EVP_DecryptInit_ex(gcm, EVP_aes_256_gcm(), NULL, key, sealed) == 1 &&
		    EVP_DecryptUpdate(gcm, plain, &n, sealed + NONCE, size) == 1 &&
		    EVP_CIPHER_CTX_ctrl(gcm, EVP_CTRL_AEAD_SET_TAG, TAG, sealed + NONCE + size) == 1 &&
		    EVP_DecryptFinal_ex(gcm, plain + size, &n) == 1;
	EVP_CIPHER_CTX_free(gcm);
	OPENSSL_cleanse(key, sizeof(key));
	*ret = (struct store_session){.expires_ms = 0};
	if (fine) {
		struct reader from = reader_over(plain, (size_t)size);
		ret->expires_ms = (int64_t)read_u64(&from);
		snprintf(ret->key_id, sizeof(ret->key_id), "%.*s", KEY_ID, (const char *)plain + 8);
		snprintf(ret->microvm, sizeof(ret->microvm), "%.*s", size - 8 - KEY_ID, (const char *)plain + 8 + KEY_ID);
	}
	if (!fine || strcmp(ret->key_id, key_id) != 0)
		return error_set(e, -EBADMSG, "not a session token of this access key");
	return derive_secret(s, plain, (size_t)size, ret, e);
}
