// Tokens. The input is opened as it is; then it becomes the encrypted record of a token in proper form, and the claims of one that is minted,
// so that the checks behind the form are reached as well.
#include "base/base64.h"
#include "base/io.h"
#include "edge/token.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct token_keys *keys;
static char sample[TOKEN_ROOM];

int LLVMFuzzerInitialize(int *argc, char ***argv) {
	char folder[] = "/tmp/stasis-fuzz-token-XXXXXX";
	struct token_claims c = {.kind = TOKEN_HTTP, .microvm = "microvm-x", .expires_ms = 1};
	if (mkdtemp(folder) == NULL || token_keys_open(folder, &keys, NULL) < 0 || token_mint(keys, &c, sample, NULL) < 0)
		abort();
	remove_tree(folder, NULL);
	return 0;
}

static void open_any(const char *text, size_t size) {
	struct token_claims c;
	if (token_open(keys, text, size, &c, NULL) < 0)
		return;
	// Only what was minted here opens.
	if (size != TOKEN_LENGTH || memcmp(text, sample, TOKEN_LENGTH) != 0)
		abort();
}

static void mint_any(const uint8_t *data, size_t size) {
	struct token_claims c = {0}, back;
	char token[TOKEN_ROOM];
	memcpy(&c, data, size < sizeof(c) ? size : sizeof(c));
	c.kind = size % 5;
	c.microvm[TOKEN_MICROVM_MAX] = c.id[UUID_TEXT - 1] = '\0';
	if (size % 2 == 0)
		c.id[0] = '\0';
	c.port_count %= TOKEN_PORTS_MAX + 2;
	if (token_mint(keys, &c, token, NULL) < 0)
		return;
	if (token_open(keys, token, strlen(token), &back, NULL) < 0 || strcmp(back.microvm, c.microvm) != 0 ||
	    back.expires_ms != c.expires_ms || back.port_count != c.port_count ||
	    memcmp(back.ports, c.ports, c.port_count * sizeof(c.ports[0])) != 0)
		abort();
	for (size_t i = 0; i < back.port_count; i++)
		if (token_permits(&back, c.microvm, back.ports[i].first, -1) != TOKEN_FINE)
			abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	open_any((const char *)data, size);
	char patched[TOKEN_ROOM];
	memcpy(patched, sample, sizeof(patched));
	for (size_t i = 0; i + 2 < size; i += 3)
		patched[(data[i] | (size_t)data[i + 1] << 8) % TOKEN_LENGTH] = (char)data[i + 2];
	open_any(patched, TOKEN_LENGTH);
	mint_any(data, size);
	return 0;
}
