// Tokens: what was minted opens, nothing else does, and every token has the same length.
#include "base/base64.h"
#include "base/clock.h"
#include "base/io.h"
#include "edge/token.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MICROVM "microvm-3f2504e0-4f89-41d3-9a0c-0305e82c3301"

static char folder[64];
static struct token_keys *keys;

static struct token_claims claims_for(const char *microvm, int64_t expires_ms) {
	struct token_claims c = {.kind = TOKEN_HTTP, .expires_ms = expires_ms};
	snprintf(c.microvm, sizeof(c.microvm), "%s", microvm);
	return c;
}

static int set_up(void **state) {
	snprintf(folder, sizeof(folder), "/tmp/stasis-tokens-XXXXXX");
	return mkdtemp(folder) != NULL && token_keys_open(folder, &keys, NULL) == 0 ? 0 : -1;
}

static int tear_down(void **state) {
	token_keys_close(keys);
	return remove_tree(folder, NULL);
}

static void encodes_base64(void **state) {
	// RFC 4648 section 10.
	static const char *const cases[][3] = {{"", "", ""},
					       {"f", "Zg==", "Zg"},
					       {"fo", "Zm8=", "Zm8"},
					       {"foo", "Zm9v", "Zm9v"},
					       {"foob", "Zm9vYg==", "Zm9vYg"},
					       {"fooba", "Zm9vYmE=", "Zm9vYmE"},
					       {"foobar", "Zm9vYmFy", "Zm9vYmFy"},
					       {"\xfb\xef\xff", "++//", "--__"}};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char text[32], back[32];
		size_t n = strlen(cases[i][0]);
		assert_int_equal(base64_encode(text, cases[i][0], n), strlen(cases[i][1]));
		assert_string_equal(text, cases[i][1]);
		assert_int_equal(base64_decode(back, sizeof(back), text, strlen(text)), n);
		assert_memory_equal(back, cases[i][0], n);
		assert_int_equal(base64url_encode(text, cases[i][0], n), strlen(cases[i][2]));
		assert_string_equal(text, cases[i][2]);
		assert_int_equal(base64url_decode(back, sizeof(back), text, strlen(text)), n);
		assert_memory_equal(back, cases[i][0], n);
		if (n > 0)
			assert_int_equal(base64url_decode(back, n - 1, text, strlen(text)), -ENOSPC);
	}
	uint8_t all[256], back[256];
	char text[BASE64_ROOM(256)];
	for (int i = 0; i < 256; i++)
		all[i] = (uint8_t)(i * 7);
	for (size_t n = 0; n <= 256; n++) {
		assert_int_equal(base64_decode(back, n, text, base64_encode(text, all, n)), n);
		assert_memory_equal(back, all, n);
		assert_int_equal(base64url_decode(back, n, text, base64url_encode(text, all, n)), n);
		assert_memory_equal(back, all, n);
	}
}

static void refuses_bad_base64(void **state) {
	static const char *const bad[] = {"Z",     "Zg",    "Zg=",    "Zg===", "Z===", "====", "=",       "Zh==",    "Zm9=", "Zg==Zg==",
					  "Zm9v=", "Zm 9v", "Zm9v\n", "Zm9\n", "Zm9-", "Zm9_", "Zm9\x80", "Zm9v===", "Zg=\0"};
	char to[32];
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (base64_decode(to, sizeof(to), bad[i], strlen(bad[i])) != -EBADMSG)
			fail_msg("decoded %s", bad[i]);
	static const char *const bad_url[] = {"Z", "Zg==", "Zh", "Zm9", "Zm9+", "Zm9/", "Zm9v=", "Zm9 ", "Zm9vZ"};
	for (size_t i = 0; i < sizeof(bad_url) / sizeof(bad_url[0]); i++)
		if (base64url_decode(to, sizeof(to), bad_url[i], strlen(bad_url[i])) != -EBADMSG)
			fail_msg("decoded %s", bad_url[i]);
}

static void opens_what_it_minted(void **state) {
	struct token_claims c = claims_for(MICROVM, 1234567890123), back;
	char token[TOKEN_ROOM];
	assert_int_equal(token_add_ports(&c, 8080, 8080, NULL), 0);
	assert_int_equal(token_add_ports(&c, 9000, 9010, NULL), 0);
	assert_int_equal(token_mint(keys, &c, token, NULL), 0);
	assert_int_equal(token_open(keys, token, strlen(token), &back, NULL), 0);
	assert_string_equal(back.microvm, MICROVM);
	assert_int_equal(back.kind, TOKEN_HTTP);
	assert_int_equal(back.expires_ms, 1234567890123);
	assert_true(uuid_is_valid(back.id));
	assert_int_equal(back.port_count, 2);
	assert_int_equal(back.ports[1].first, 9000);
	assert_int_equal(back.ports[1].last, 9010);

	assert_int_equal(token_permits(&back, MICROVM, 8080, 0), TOKEN_FINE);
	assert_int_equal(token_permits(&back, MICROVM, 9010, 1234567890122), TOKEN_FINE);
	assert_int_equal(token_permits(&back, MICROVM, 9010, 1234567890123), TOKEN_EXPIRED);
	assert_int_equal(token_permits(&back, MICROVM, 9011, 0), TOKEN_PORT_DENIED);
	assert_int_equal(token_permits(&back, MICROVM, 0, 0), TOKEN_PORT_DENIED);
	assert_int_equal(token_permits(&back, MICROVM "x", 8080, 0), TOKEN_OTHER_MICROVM);
	assert_int_equal(token_permits(&back, "", 8080, 0), TOKEN_OTHER_MICROVM);
}

static void has_the_service_s_form(void **state) {
	struct token_claims c = claims_for(MICROVM, 1);
	char one[TOKEN_ROOM], two[TOKEN_ROOM], all[TOKEN_ROOM], json[128];
	assert_int_equal(token_mint(keys, &c, one, NULL), 0);
	assert_int_equal(token_mint(keys, &c, two, NULL), 0);
	assert_string_not_equal(one, two);
	c = claims_for("m", INT64_MAX);
	for (uint32_t p = 1; p < 2 * TOKEN_PORTS_MAX; p += 2)
		assert_int_equal(token_add_ports(&c, p * 300, p * 300, NULL), 0);
	assert_int_equal(c.port_count, TOKEN_PORTS_MAX);
	assert_int_equal(token_mint(keys, &c, all, NULL), 0);
	assert_int_equal(strlen(one), TOKEN_LENGTH);
	assert_int_equal(strlen(all), TOKEN_LENGTH);
	assert_in_range(TOKEN_LENGTH, 756, 868);
	assert_int_equal(strspn(one, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."), TOKEN_LENGTH);
	const char *dot = strchr(one, '.');
	assert_int_equal(dot[1], '.'); // empty encrypted key
	ssize_t n = base64url_decode(json, sizeof(json) - 1, one, (size_t)(dot - one));
	assert_true(n > 0);
	json[n] = '\0';
	assert_int_equal(strncmp(json, "{\"kid\":\"", 8), 0);
	assert_string_equal(json + 8 + 36, "\",\"alg\":\"dir\",\"enc\":\"A256GCM\"}");
	struct token_claims back;
	assert_int_equal(token_open(keys, all, TOKEN_LENGTH, &back, NULL), 0);
	assert_int_equal(back.port_count, TOKEN_PORTS_MAX);
}

static void merges_ports(void **state) {
	struct token_claims c = {0};
	assert_int_equal(token_add_ports(&c, 10, 20, NULL), 0);
	assert_int_equal(token_add_ports(&c, 30, 40, NULL), 0);
	assert_int_equal(token_add_ports(&c, 5, 5, NULL), 0);
	assert_int_equal(c.port_count, 3);
	assert_int_equal(token_add_ports(&c, 6, 9, NULL), 0);
	assert_int_equal(c.port_count, 2);
	assert_int_equal(c.ports[0].first, 5);
	assert_int_equal(c.ports[0].last, 20);
	assert_int_equal(token_add_ports(&c, 15, 35, NULL), 0);
	assert_int_equal(c.port_count, 1);
	assert_int_equal(c.ports[0].last, 40);
	assert_int_equal(token_add_ports(&c, 65535, 65535, NULL), 0);
	assert_int_equal(token_add_all_ports(&c, NULL), 0);
	assert_int_equal(c.port_count, 1);
	assert_int_equal(c.ports[0].first, 1);
	assert_int_equal(c.ports[0].last, 65535);
	assert_int_equal(token_add_ports(&c, 0, 5, NULL), -EINVAL);
	assert_int_equal(token_add_ports(&c, 5, 4, NULL), -EINVAL);
	assert_int_equal(token_add_ports(&c, 1, 65536, NULL), -EINVAL);
	c = (struct token_claims){0};
	for (uint32_t i = 0; i < TOKEN_PORTS_MAX; i++)
		assert_int_equal(token_add_ports(&c, 60000 - i * 2, 60000 - i * 2, NULL), 0);
	assert_int_equal(token_add_ports(&c, 1, 1, NULL), -E2BIG);
	assert_int_equal(c.port_count, TOKEN_PORTS_MAX);
	assert_int_equal(token_add_ports(&c, 60001, 60002, NULL), 0);
}

static void refuses_every_changed_character(void **state) {
	struct token_claims c = claims_for(MICROVM, INT64_MAX), back;
	char token[TOKEN_ROOM];
	assert_int_equal(token_add_all_ports(&c, NULL), 0);
	assert_int_equal(token_mint(keys, &c, token, NULL), 0);
	for (size_t i = 0; i < TOKEN_LENGTH; i++) {
		char saved = token[i];
		for (const char *other = "Aa0-_.=+/ \n"; *other != '\0'; other++) {
			if (*other == saved)
				continue;
			token[i] = *other;
			int r = token_open(keys, token, TOKEN_LENGTH, &back, NULL);
			assert_true(r == -EBADMSG || r == -EACCES);
		}
		token[i] = saved;
	}
	for (size_t n = 0; n < TOKEN_LENGTH; n++) {
		char *cut = malloc(n + 1);
		memcpy(cut, token, n);
		assert_int_equal(token_open(keys, cut, n, &back, NULL), -EBADMSG);
		free(cut);
	}
	assert_int_equal(token_open(keys, token, TOKEN_LENGTH, &back, NULL), 0);
}

static void refuses_other_keys(void **state) {
	char other[64] = "/tmp/stasis-tokens-XXXXXX", token[TOKEN_ROOM];
	assert_non_null(mkdtemp(other));
	struct token_keys *others;
	assert_int_equal(token_keys_open(other, &others, NULL), 0);
	struct token_claims c = claims_for(MICROVM, INT64_MAX), back;
	assert_int_equal(token_mint(others, &c, token, NULL), 0);
	assert_int_equal(token_open(keys, token, TOKEN_LENGTH, &back, NULL), -EACCES);
	assert_int_equal(token_open(others, token, TOKEN_LENGTH, &back, NULL), 0);
	token_keys_close(others);
	assert_int_equal(remove_tree(other, NULL), 0);
}

static void refuses_bad_claims(void **state) {
	char token[TOKEN_ROOM];
	struct token_claims c = claims_for("", 1);
	assert_int_equal(token_mint(keys, &c, token, NULL), -EINVAL);
	c = claims_for(MICROVM, -1);
	assert_int_equal(token_mint(keys, &c, token, NULL), -EINVAL);
	c = claims_for(MICROVM, 1);
	c.kind = 4;
	assert_int_equal(token_mint(keys, &c, token, NULL), -EINVAL);
	c = claims_for(MICROVM, 1);
	c.port_count = TOKEN_PORTS_MAX + 1;
	assert_int_equal(token_mint(keys, &c, token, NULL), -EINVAL);
	c = claims_for(MICROVM, 1);
	snprintf(c.id, sizeof(c.id), "not a uuid");
	assert_int_equal(token_mint(keys, &c, token, NULL), -EINVAL);
}

static void keeps_its_keys(void **state) {
	char path[128], token[TOKEN_ROOM], newer[TOKEN_ROOM];
	snprintf(path, sizeof(path), "%s/tokens.key", folder);
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	struct token_claims c = claims_for(MICROVM, INT64_MAX), back;
	assert_int_equal(token_mint(keys, &c, token, NULL), 0);
	// A key put behind the first one mints from then on; tokens of the first one still open.
	char *text;
	size_t size;
	assert_int_equal(read_file(path, 4096, &text, &size, NULL), 0);
	char both[512];
	snprintf(both, sizeof(both), "%s3f2504e0-4f89-41d3-9a0c-0305e82c3301 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n", text);
	free(text);
	assert_int_equal(write_file_durably(path, both, strlen(both), 0600, NULL), 0);
	struct token_keys *again;
	assert_int_equal(token_keys_open(folder, &again, NULL), 0);
	assert_int_equal(token_open(again, token, TOKEN_LENGTH, &back, NULL), 0);
	assert_int_equal(token_mint(again, &c, newer, NULL), 0);
	assert_int_equal(token_open(again, newer, TOKEN_LENGTH, &back, NULL), 0);
	assert_int_equal(token_open(keys, newer, TOKEN_LENGTH, &back, NULL), -EACCES);
	token_keys_close(again);
}

// Whether the token opens with these keys, and with those that the file has.
static bool opens(struct token_keys *k, const char *in, const char *token) {
	struct token_claims back;
	struct token_keys *again;
	bool now = token_open(k, token, TOKEN_LENGTH, &back, NULL) == 0;
	assert_int_equal(token_keys_open(in, &again, NULL), 0);
	assert_int_equal(token_open(again, token, TOKEN_LENGTH, &back, NULL) == 0, now);
	token_keys_close(again);
	return now;
}

static void rotates_its_keys(void **state) {
	char other[64] = "/tmp/stasis-tokens-XXXXXX", path[128], first[TOKEN_ROOM], second[TOKEN_ROOM], third[TOKEN_ROOM];
	static const char old[] = "3f2504e0-4f89-41d3-9a0c-0305e82c3301 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n";
	const int64_t hour = 3600000, start = 1000 * hour;
	struct token_keys *k;
	struct token_claims c = claims_for(MICROVM, INT64_MAX), back;
	struct error e = {0};
	assert_non_null(mkdtemp(other));
	snprintf(path, sizeof(path), "%s/tokens.key", other);
	// A file of a program that wrote no times.
	assert_int_equal(write_file_durably(path, old, strlen(old), 0600, NULL), 0);
	assert_int_equal(token_keys_open(other, &k, NULL), 0);
	assert_int_equal(token_keys_made_ms(k), 0);
	c.minted_ms = 12345;
	assert_int_equal(token_mint(k, &c, first, NULL), 0);
	assert_int_equal(token_open(k, first, TOKEN_LENGTH, &back, NULL), 0);
	assert_int_equal(back.minted_ms, 12345);
	assert_int_equal(token_keys_rotate(k, other, start, NULL), 0);
	assert_int_equal(token_keys_made_ms(k), start);
	assert_int_equal(token_mint(k, &c, second, NULL), 0);
	assert_memory_not_equal(first, second, 60); // another kid
	assert_true(opens(k, other, first) && opens(k, other, second));
	// The first key was in use until `start`: it goes more than an hour later, and not before.
	assert_int_equal(token_keys_rotate(k, other, start + hour, NULL), 0);
	assert_int_equal(token_mint(k, &c, third, NULL), 0);
	assert_true(opens(k, other, first) && opens(k, other, second) && opens(k, other, third));
	assert_int_equal(token_keys_rotate(k, other, start + 2 * hour, NULL), 0);
	assert_false(opens(k, other, first));
	assert_true(opens(k, other, second) && opens(k, other, third));
	// There is an end to it, and then nothing has changed.
	int r = 0, n = 0;
	while (r == 0 && n < 100)
		r = token_keys_rotate(k, other, start + 2 * hour, n++ > 0 ? &e : NULL);
	assert_int_equal(r, -EBUSY);
	assert_non_null(strstr(e.message, "try again in an hour"));
	assert_true(opens(k, other, third));
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	token_keys_close(k);
	assert_int_equal(remove_tree(other, NULL), 0);
}

static void refuses_damaged_key_files(void **state) {
	static const char *const bad[] = {
		"",
		"\n",
		"3f2504e0-4f89-41d3-9a0c-0305e82c3301 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
		"3f2504e0-4f89-41d3-9a0c-0305e82c3301 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh\n",
		"3F2504e0-4f89-41d3-9a0c-0305e82c3301 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n",
		"3f2504e0-4f89-41d3-9a0c-0305e82c3301 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9\n",
		"3f2504e0-4f89-41d3-9a0c-0305e82c3301 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 \n",
		"3f2504e0-4f89-41d3-9a0c-0305e82c3301 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 12a\n",
		"3f2504e0-4f89-41d3-9a0c-0305e82c3301 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8 99999999999999\n",
		"3f2504e0-4f89-41d3-9a0c-0305e82c3301\tAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n",
	};
	char other[64] = "/tmp/stasis-tokens-XXXXXX", path[128];
	assert_non_null(mkdtemp(other));
	snprintf(path, sizeof(path), "%s/tokens.key", other);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct token_keys *k = NULL;
		struct error e = {0};
		assert_int_equal(write_file_durably(path, bad[i], strlen(bad[i]), 0600, NULL), 0);
		assert_int_equal(token_keys_open(other, &k, &e), -EBADMSG);
		assert_non_null(strstr(e.message, path));
	}
	assert_int_equal(remove_tree(other, NULL), 0);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(encodes_base64),
		cmocka_unit_test(refuses_bad_base64),
		cmocka_unit_test(opens_what_it_minted),
		cmocka_unit_test(has_the_service_s_form),
		cmocka_unit_test(merges_ports),
		cmocka_unit_test(refuses_every_changed_character),
		cmocka_unit_test(refuses_other_keys),
		cmocka_unit_test(refuses_bad_claims),
		cmocka_unit_test(keeps_its_keys),
		cmocka_unit_test(rotates_its_keys),
		cmocka_unit_test(refuses_damaged_key_files),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
