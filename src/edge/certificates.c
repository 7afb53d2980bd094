// The edge's certificates; see certificates.h. Keys are EC P-256, made and kept without a passphrase in files of mode 0600.
#include "edge/certificates.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define DAY_SECONDS (24 * 60 * 60)
#define CA_DAYS 3650
#define EDGE_DAYS 365
#define RENEW_DAYS 30 // before its end
#define PEM_MAX 65536

static void cleanup_bio_fn(BIO **b) {
	BIO_free(*b);
}
#define cleanup_bio __attribute__((cleanup(cleanup_bio_fn)))

static int openssl_error(struct error *e, const char *what) {
	const char *reason = ERR_reason_error_string(ERR_peek_last_error());
	ERR_clear_error();
	return error_set(e, -EIO, "OpenSSL cannot %s: %s", what, reason != NULL ? reason : "no reason given");
}

// A pair of certificate and key as it lies on the disk.
struct pair {
	X509 *certificate;
	EVP_PKEY *key;
};

static void pair_clear(struct pair *p) {
	X509_free(p->certificate);
	EVP_PKEY_free(p->key);
	*p = (struct pair){0};
}

static int read_pem(const char *folder, const char *name, char **ret, size_t *size, struct error *e) {
	char path[512];
	if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path))
		return error_set(e, -ENAMETOOLONG, "the state folder's path is too long: %s", folder);
	return read_file(path, PEM_MAX, ret, size, e);
}

// -ENOENT when one of the two files is missing, -EBADMSG when they do not belong together.
static int read_pair(const char *folder, const char *name, struct pair *ret, struct error *e) {
	char file[32];
	cleanup_free char *certificate = NULL, *key = NULL;
	size_t certificate_size = 0, key_size = 0;
	snprintf(file, sizeof(file), "%s.pem", name);
	int r = read_pem(folder, file, &certificate, &certificate_size, e);
	if (r < 0)
		return r;
	snprintf(file, sizeof(file), "%s.key", name);
	r = read_pem(folder, file, &key, &key_size, e);
	if (r < 0)
		return r;
	cleanup_bio BIO *certificate_bio = BIO_new_mem_buf(certificate, (int)certificate_size);
	cleanup_bio BIO *key_bio = BIO_new_mem_buf(key, (int)key_size);
	ret->certificate = PEM_read_bio_X509(certificate_bio, NULL, NULL, NULL);
	ret->key = PEM_read_bio_PrivateKey(key_bio, NULL, NULL, NULL);
	OPENSSL_cleanse(key, key_size);
	ERR_clear_error();
	if (ret->certificate == NULL || ret->key == NULL || X509_check_private_key(ret->certificate, ret->key) != 1) {
		ERR_clear_error();
		pair_clear(ret);
		return error_set(e, -EBADMSG, "%s/%s.pem and %s.key are damaged or do not belong together", folder, name, name);
	}
	return 0;
}

static int write_bio(const char *folder, const char *name, BIO *bio, mode_t mode, struct error *e) {
	char path[512], *data;
	long size = BIO_get_mem_data(bio, &data);
	if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path))
		return error_set(e, -ENAMETOOLONG, "the state folder's path is too long: %s", folder);
	return write_file_durably(path, data, (size_t)size, mode, e);
}

// The key first: a certificate without its key would be of no use.
static int write_pair(const char *folder, const char *name, const struct pair *p, struct error *e) {
	cleanup_bio BIO *certificate = BIO_new(BIO_s_mem());
	cleanup_bio BIO *key = BIO_new(BIO_s_secmem());
	if (certificate == NULL || key == NULL || PEM_write_bio_X509(certificate, p->certificate) != 1 ||
	    PEM_write_bio_PKCS8PrivateKey(key, p->key, NULL, NULL, 0, NULL, NULL) != 1)
		return openssl_error(e, "write a certificate");
	char file[32];
	snprintf(file, sizeof(file), "%s.key", name);
	int r = write_bio(folder, file, key, 0600, e);
	if (r < 0)
		return r;
	snprintf(file, sizeof(file), "%s.pem", name);
	return write_bio(folder, file, certificate, 0644, e);
}

static bool add_extension(X509 *certificate, X509 *issuer, int nid, const char *value) {
	X509V3_CTX context;
	X509V3_set_ctx_nodb(&context);
	X509V3_set_ctx(&context, issuer, certificate, NULL, NULL, 0);
	X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
	bool fine = extension != NULL && X509_add_ext(certificate, extension, -1) == 1;
	X509_EXTENSION_free(extension);
	return fine;
}

// 127 random bits, as browsers and RFC 5280 section 4.1.2.2 want them.
static bool set_serial(X509 *certificate) {
	unsigned char bytes[16];
	if (RAND_bytes(bytes, sizeof(bytes)) != 1)
		return false;
	bytes[0] = (unsigned char)((bytes[0] & 0x7f) | 0x40);
	BIGNUM *number = BN_bin2bn(bytes, sizeof(bytes), NULL);
	bool fine = number != NULL && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) != NULL;
	BN_free(number);
	return fine;
}

static bool set_name(X509_NAME *name, const char *common_name) {
	return X509_NAME_add_entry_by_txt(name, "O", MBSTRING_UTF8, (const unsigned char *)"Stasis", -1, -1, 0) == 1 &&
	       X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const unsigned char *)common_name, -1, -1, 0) == 1;
}

// What authority and edge certificate have in common. A day in the past forgives clocks that are a little behind.
static bool set_basics(struct pair *p, const char *common_name, int days) {
	return X509_set_version(p->certificate, X509_VERSION_3) == 1 && set_serial(p->certificate) &&
	       X509_gmtime_adj(X509_getm_notBefore(p->certificate), -DAY_SECONDS) != NULL &&
	       X509_gmtime_adj(X509_getm_notAfter(p->certificate), (long)days * DAY_SECONDS) != NULL &&
	       set_name(X509_get_subject_name(p->certificate), common_name) && X509_set_pubkey(p->certificate, p->key) == 1;
}

static int make_ca(const char *folder, struct pair *ret, struct error *e) {
	ret->certificate = X509_new();
	ret->key = EVP_EC_gen("P-256");
	// Authorities of several installations must be told apart where somebody trusts more than one.
	unsigned char id[4] = {0};
	char name[64];
	bool fine = RAND_bytes(id, sizeof(id)) == 1;
	snprintf(name, sizeof(name), "Stasis edge authority %02x%02x%02x%02x", id[0], id[1], id[2], id[3]);
	X509 *x = ret->certificate;
	fine = fine && x != NULL && ret->key != NULL && set_basics(ret, name, CA_DAYS) &&
	       X509_set_issuer_name(x, X509_get_subject_name(x)) == 1 &&
	       add_extension(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
	       add_extension(x, x, NID_key_usage, "critical,keyCertSign,cRLSign") &&
	       add_extension(x, x, NID_subject_key_identifier, "hash") && X509_sign(x, ret->key, EVP_sha256()) > 0;
	if (!fine)
		return openssl_error(e, "make the edge's authority");
	log_info("edge.authority_made", LOG_S("name", name));
	return write_pair(folder, "ca", ret, e);
}

static int make_edge(const char *folder, const char *domain, const struct pair *ca, struct pair *ret, struct error *e) {
	ret->certificate = X509_new();
	ret->key = EVP_EC_gen("P-256");
	char names[512];
	snprintf(names, sizeof(names), "DNS:*.%s,DNS:%s,DNS:localhost,IP:127.0.0.1,IP:::1", domain, domain);
	X509 *x = ret->certificate;
	bool fine = x != NULL && ret->key != NULL && set_basics(ret, "Stasis edge", EDGE_DAYS) &&
		    X509_set_issuer_name(x, X509_get_subject_name(ca->certificate)) == 1 &&
		    add_extension(x, ca->certificate, NID_basic_constraints, "critical,CA:FALSE") &&
		    add_extension(x, ca->certificate, NID_key_usage, "critical,digitalSignature") &&
		    add_extension(x, ca->certificate, NID_ext_key_usage, "serverAuth") &&
		    add_extension(x, ca->certificate, NID_subject_key_identifier, "hash") &&
		    add_extension(x, ca->certificate, NID_authority_key_identifier, "keyid") &&
		    add_extension(x, ca->certificate, NID_subject_alt_name, names) && X509_sign(x, ca->key, EVP_sha256()) > 0;
	if (!fine)
		return openssl_error(e, "make the edge's certificate");
	log_info("edge.certificate_made", LOG_S("domain", domain), LOG_U("days", EDGE_DAYS));
	return write_pair(folder, "edge", ret, e);
}

static bool ends_soon(const X509 *certificate, int days) {
	time_t when = time(NULL) + (time_t)days * DAY_SECONDS;
	return X509_cmp_time(X509_get0_notAfter(certificate), &when) <= 0;
}

// Whether the certificate will do for this domain and this authority for another month.
static bool edge_will_do(X509 *certificate, const char *domain, const struct pair *ca) {
	char below[256];
	snprintf(below, sizeof(below), "x.%s", domain);
	bool fine = X509_verify(certificate, ca->key) == 1 && !ends_soon(certificate, RENEW_DAYS) &&
		    X509_check_host(certificate, domain, 0, 0, NULL) == 1 && X509_check_host(certificate, below, 0, 0, NULL) == 1;
	ERR_clear_error();
	return fine;
}

static int open_ca(const char *folder, struct pair *ret, struct error *e) {
	int r = read_pair(folder, "ca", ret, e);
	if (r == -EBADMSG)
		return error_set(e, r,
				 "%s/ca.pem and ca.key are damaged: restore them, or remove both to make a new authority that clients must "
				 "trust anew",
				 folder);
	if (r == 0 && !ends_soon(ret->certificate, EDGE_DAYS / 12))
		return 0;
	if (r < 0 && r != -ENOENT)
		return r;
	pair_clear(ret);
	return make_ca(folder, ret, e);
}

static int open_edge(const char *folder, const char *domain, const struct pair *ca, struct pair *ret, struct error *e) {
	int r = read_pair(folder, "edge", ret, e);
	if (r == 0 && edge_will_do(ret->certificate, domain, ca))
		return 0;
	if (r < 0 && r != -ENOENT && r != -EBADMSG)
		return r;
	pair_clear(ret);
	return make_edge(folder, domain, ca, ret, e);
}

int certificates_open(const char *state_folder, const char *domain, struct certificates *ret, struct error *e) {
	*ret = (struct certificates){0};
	char folder[400];
	if (snprintf(folder, sizeof(folder), "%s/tls", state_folder) >= (int)sizeof(folder))
		return error_set(e, -ENAMETOOLONG, "the state folder's path is too long: %s", state_folder);
	int r = make_folders(folder, 0700, e);
	if (r < 0)
		return r;
	struct pair ca = {0}, edge = {0};
	r = open_ca(folder, &ca, e);
	if (r == 0)
		r = open_edge(folder, domain, &ca, &edge, e);
	size_t size = 0;
	if (r == 0)
		r = read_pem(folder, "ca.pem", &ret->ca_pem, &size, e);
	// The authority's key is needed for signing only, and does not stay in memory.
	EVP_PKEY_free(ca.key);
	ret->ca = ca.certificate;
	ret->edge = edge.certificate;
	ret->edge_key = edge.key;
	if (r < 0)
		certificates_clear(ret);
	return r;
}

void certificates_clear(struct certificates *c) {
	X509_free(c->ca);
	X509_free(c->edge);
	EVP_PKEY_free(c->edge_key);
	free(c->ca_pem);
	*c = (struct certificates){0};
}
