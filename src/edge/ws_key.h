// Keys of WebSocket handshakes (RFC 6455 section 4): a client's nonce, and the answer that shows that the server understood it.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define WS_KEY_TEXT 25    // base64 of 16 bytes, and a NUL
#define WS_ACCEPT_TEXT 29 // base64 of 20 bytes, and a NUL

// False when no random bytes are to be had.
bool ws_key_new(char to[static WS_KEY_TEXT]);
// False when the key is not the base64 of 16 bytes.
bool ws_key_accept(const char *key, size_t size, char to[static WS_ACCEPT_TEXT]);
