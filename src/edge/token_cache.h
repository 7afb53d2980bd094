// Tokens that were opened lately, so that a client's hundredth request costs no more cryptography. What a token permits, whether it has
// expired and what was revoked is judged each time by whoever asks.
#pragma once

#include "edge/token.h"

#define TOKEN_CACHE_ENTRIES 256

struct token_cache; // opaque; for one thread

struct token_cache *token_cache_new(void); // NULL: out of memory
void token_cache_free(struct token_cache *c);
// Forgets all of it: the keys have changed.
void token_cache_clear(struct token_cache *c);

// As token_open().
int token_cache_open(struct token_cache *c, struct token_keys *k, const char *text, size_t size, struct token_claims *ret);
