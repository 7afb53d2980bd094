// The edge's certificates: made once, kept, renewed in time and for another domain, and never silently replaced when the authority is damaged.
#include "base/io.h"
#include "edge/certificates.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char folder[64];

static int set_up(void **state) {
	snprintf(folder, sizeof(folder), "/tmp/stasis-certificates-XXXXXX");
	return mkdtemp(folder) != NULL ? 0 : -1;
}

static int tear_down(void **state) {
	return remove_tree(folder, NULL);
}

static struct certificates open_for(const char *domain) {
	struct certificates c;
	struct error e = {0};
	if (certificates_open(folder, domain, &c, &e) < 0)
		fail_msg("%s", e.message);
	assert_int_equal(X509_check_private_key(c.edge, c.edge_key), 1);
	// What a client does: a chain to the authority, for a name below the domain, to serve.
	X509_STORE *store = X509_STORE_new();
	X509_STORE_CTX *context = X509_STORE_CTX_new();
	char name[128];
	snprintf(name, sizeof(name), "3f2504e0-4f89-41d3-9a0c-0305e82c3301.%s", domain);
	assert_int_equal(X509_STORE_add_cert(store, c.ca), 1);
	assert_int_equal(X509_STORE_CTX_init(context, store, c.edge, NULL), 1);
	X509_VERIFY_PARAM *parameters = X509_STORE_CTX_get0_param(context);
	X509_VERIFY_PARAM_set1_host(parameters, name, 0);
	X509_VERIFY_PARAM_set_flags(parameters, X509_V_FLAG_X509_STRICT);
	X509_STORE_CTX_set_purpose(context, X509_PURPOSE_SSL_SERVER);
	if (X509_verify_cert(context) != 1)
		fail_msg("%s", X509_verify_cert_error_string(X509_STORE_CTX_get_error(context)));
	X509_STORE_CTX_free(context);
	X509_STORE_free(store);
	return c;
}

static void write_text(const char *name, const char *text) {
	char path[128];
	snprintf(path, sizeof(path), "%s/tls/%s", folder, name);
	assert_int_equal(write_file_durably(path, text, strlen(text), 0600, NULL), 0);
}

// Gives the edge a certificate that ends in that many days.
static void shorten(const struct certificates *c, int days) {
	char path[128];
	snprintf(path, sizeof(path), "%s/tls/ca.key", folder);
	FILE *f = fopen(path, "r");
	assert_non_null(f);
	EVP_PKEY *ca_key = PEM_read_PrivateKey(f, NULL, NULL, NULL);
	fclose(f);
	X509 *x = X509_dup(c->edge);
	assert_non_null(X509_gmtime_adj(X509_getm_notAfter(x), days * 86400L));
	assert_true(X509_sign(x, ca_key, EVP_sha256()) > 0);
	snprintf(path, sizeof(path), "%s/tls/edge.pem", folder);
	f = fopen(path, "w");
	assert_int_equal(PEM_write_X509(f, x), 1);
	fclose(f);
	X509_free(x);
	EVP_PKEY_free(ca_key);
}

static void keeps_what_is_good(void **state) {
	struct certificates one = open_for("microvm.localhost"), two = open_for("microvm.localhost");
	assert_int_equal(X509_cmp(one.ca, two.ca), 0);
	assert_int_equal(X509_cmp(one.edge, two.edge), 0);
	assert_int_equal(X509_check_host(one.edge, "localhost", 0, 0, NULL), 1);
	assert_int_equal(X509_check_ip_asc(one.edge, "127.0.0.1", 0), 1);
	assert_int_not_equal(X509_check_host(one.edge, "example.com", 0, 0, NULL), 1);
	certificates_clear(&one);
	certificates_clear(&two);
}

static void renews_in_time(void **state) {
	struct certificates one = open_for("microvm.localhost");
	shorten(&one, 31);
	struct certificates kept = open_for("microvm.localhost");
	assert_int_equal(EVP_PKEY_eq(one.edge_key, kept.edge_key), 1);
	shorten(&one, 29);
	struct certificates renewed = open_for("microvm.localhost");
	assert_int_not_equal(EVP_PKEY_eq(one.edge_key, renewed.edge_key), 1);
	assert_int_equal(X509_cmp(one.ca, renewed.ca), 0);
	shorten(&renewed, -1);
	struct certificates again = open_for("microvm.localhost");
	assert_int_not_equal(X509_cmp(renewed.edge, again.edge), 0);
	certificates_clear(&one);
	certificates_clear(&kept);
	certificates_clear(&renewed);
	certificates_clear(&again);
}

static void follows_the_domain(void **state) {
	struct certificates one = open_for("microvm.localhost"), other = open_for("vm.example.org");
	assert_int_equal(X509_cmp(one.ca, other.ca), 0);
	assert_int_not_equal(X509_cmp(one.edge, other.edge), 0);
	certificates_clear(&one);
	certificates_clear(&other);
}

static void makes_a_damaged_certificate_anew(void **state) {
	struct certificates one = open_for("microvm.localhost");
	write_text("edge.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n");
	struct certificates two = open_for("microvm.localhost");
	assert_int_equal(X509_cmp(one.ca, two.ca), 0);
	write_text("edge.key", "");
	struct certificates three = open_for("microvm.localhost");
	assert_int_not_equal(X509_cmp(two.edge, three.edge), 0);
	certificates_clear(&one);
	certificates_clear(&two);
	certificates_clear(&three);
}

static void refuses_a_damaged_authority(void **state) {
	struct certificates c = open_for("microvm.localhost");
	certificates_clear(&c);
	static const char *const files[] = {"ca.pem", "ca.key"};
	for (size_t i = 0; i < 2; i++) {
		char path[128], *text;
		size_t size;
		snprintf(path, sizeof(path), "%s/tls/%s", folder, files[i]);
		assert_int_equal(read_file(path, 65536, &text, &size, NULL), 0);
		write_text(files[i], "damaged");
		struct error e = {0};
		assert_int_equal(certificates_open(folder, "microvm.localhost", &c, &e), -EBADMSG);
		assert_non_null(strstr(e.message, "remove both"));
		write_text(files[i], text);
		free(text);
	}
	c = open_for("microvm.localhost");
	certificates_clear(&c);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(keeps_what_is_good),          cmocka_unit_test(renews_in_time),
		cmocka_unit_test(follows_the_domain),          cmocka_unit_test(makes_a_damaged_certificate_anew),
		cmocka_unit_test(refuses_a_damaged_authority),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
