// Keys of WebSocket handshakes; see ws_key.h.
#include "edge/ws_key.h"

#include "base/base64.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdint.h>
#include <string.h>

#define GUID "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#define NONCE_BYTES 16
#define DIGEST_BYTES 20

_Static_assert(BASE64_ROOM(NONCE_BYTES) == WS_KEY_TEXT && BASE64_ROOM(DIGEST_BYTES) == WS_ACCEPT_TEXT, "the texts have room");

bool ws_key_new(char to[static WS_KEY_TEXT]) {
	uint8_t nonce[NONCE_BYTES];
	if (RAND_bytes(nonce, sizeof(nonce)) != 1)
		return false;
	base64_encode(to, nonce, sizeof(nonce));
	return true;
}

bool ws_key_accept(const char *key, size_t size, char to[static WS_ACCEPT_TEXT]) {
	char both[WS_KEY_TEXT - 1 + sizeof(GUID)];
	uint8_t nonce[BASE64_BYTES(WS_KEY_TEXT - 1)], digest[EVP_MAX_MD_SIZE];
	unsigned digest_size = 0;
	if (size != WS_KEY_TEXT - 1 || base64_decode(nonce, sizeof(nonce), key, size) != NONCE_BYTES)
		return false;
	memcpy(both, key, size);
	memcpy(both + size, GUID, sizeof(GUID));
	if (EVP_Digest(both, sizeof(both) - 1, digest, &digest_size, EVP_sha1(), NULL) != 1 || digest_size != DIGEST_BYTES)
		return false;
	base64_encode(to, digest, DIGEST_BYTES);
	return true;
}
