// TLS over bytes in memory; see tls.h.
//
// OpenSSL reads and writes through a BIO of our own rather than BIO_s_mem(), which grows without limit and never shrinks: reads come straight
// from what the socket gave, writes go into one buffer that is known to have room for a record before a record is made.
#include "edge/tls.h"

#include "base/log.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <pthread.h>

#define APPLICATION_KEY_BITS_MAX 4096
#define APPLICATION_CERTIFICATES_MAX (16 * 1024) // bytes of the chain

static int bio_read(BIO *bio, char *to, size_t room, size_t *n) {
	struct tls *t = BIO_get_data(bio);
	BIO_clear_retry_flags(bio);
	// What was kept is older than what is fresh.
	size_t kept = buffer_used(&t->kept);
	if (kept > 0) {
		*n = kept < room ? kept : room;
		memcpy(to, buffer_bytes(&t->kept), *n);
		buffer_consume(t->pool, &t->kept, *n);
		return 1;
	}
	*n = t->fresh_size < room ? t->fresh_size : room;
	if (*n == 0) {
		BIO_set_retry_read(bio);
		return 0;
	}
	memcpy(to, t->fresh, *n);
	t->fresh += *n;
	t->fresh_size -= *n;
	return 1;
}

static int bio_write(BIO *bio, const char *data, size_t size, size_t *n) {
	struct tls *t = BIO_get_data(bio);
	BIO_clear_retry_flags(bio);
	*n = 0;
	if (!buffer_want(t->pool, &t->out, BUFFER_SMALL))
		return 0;
	size_t room = buffer_room(&t->out);
	*n = size < room ? size : room;
	if (*n == 0) {
		BIO_set_retry_write(bio);
		return 0;
	}
	buffer_append(&t->out, data, *n);
	return 1;
}

static long bio_control(BIO *bio, int command, long number, void *pointer) {
	return command == BIO_CTRL_FLUSH || command == BIO_CTRL_DUP ? 1 : 0;
}

static int bio_create(BIO *bio) {
	BIO_set_init(bio, 1);
	return 1;
}

static BIO_METHOD *bio_method;
static pthread_once_t bio_method_once = PTHREAD_ONCE_INIT;

static void make_bio_method(void) {
	bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "edge");
	if (bio_method == NULL)
		return;
	BIO_meth_set_read_ex(bio_method, bio_read);
	BIO_meth_set_write_ex(bio_method, bio_write);
	BIO_meth_set_ctrl(bio_method, bio_control);
	BIO_meth_set_create(bio_method, bio_create);
}

// Chooses h2, http/1.1, or http/1.0 for those that know nothing newer; a client that names protocols and none of these is refused (RFC 7301
// section 3.2).
static int select_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_size, const unsigned char *in, unsigned int in_size,
			   void *arg) {
	static const unsigned char ours[] = "\x02h2\x08http/1.1\x08http/1.0";
	unsigned char *chosen;
	if (SSL_select_next_proto(&chosen, out_size, ours, sizeof(ours) - 1, in, in_size) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = chosen;
	return SSL_TLSEXT_ERR_OK;
}

SSL_CTX *tls_context_new(X509 *certificate, EVP_PKEY *key, struct error *e) {
	pthread_once(&bio_method_once, make_bio_method);
	SSL_CTX *c = bio_method != NULL ? SSL_CTX_new(TLS_server_method()) : NULL;
	if (c == NULL || SSL_CTX_set_min_proto_version(c, TLS1_2_VERSION) != 1 || SSL_CTX_use_certificate(c, certificate) != 1 ||
	    SSL_CTX_use_PrivateKey(c, key) != 1) {
		SSL_CTX_free(c);
		error_set(e, -EIO, "OpenSSL cannot set up TLS: %s", ERR_reason_error_string(ERR_peek_last_error()));
		ERR_clear_error();
		return NULL;
	}
	SSL_CTX_set_options(c,
			    SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
	// Buffers of OpenSSL's own go away while a connection is idle; a write that finds no room may come again from another address.
	SSL_CTX_set_mode(c, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF); // sessions are resumed by tickets, which need no memory here
	SSL_CTX_set_num_tickets(c, 1);
	SSL_CTX_set_alpn_select_cb(c, select_protocol, NULL);
	return c;
}

// Any certificate will do, but not one whose key keeps this thread busy.
static int accept_certificate(X509_STORE_CTX *store, void *unused) {
	X509 *leaf = X509_STORE_CTX_get0_cert(store);
	const EVP_PKEY *key = leaf != NULL ? X509_get0_pubkey(leaf) : NULL;
	bool fine = key != NULL && EVP_PKEY_get_bits(key) <= APPLICATION_KEY_BITS_MAX;
	X509_STORE_CTX_set_error(store, fine ? X509_V_OK : X509_V_ERR_APPLICATION_VERIFICATION);
	return fine;
}

SSL_CTX *tls_client_context_new(struct error *e) {
	pthread_once(&bio_method_once, make_bio_method);
	int groups[] = {NID_X25519, NID_X9_62_prime256v1, NID_secp384r1};
	SSL_CTX *c = bio_method != NULL ? SSL_CTX_new(TLS_client_method()) : NULL;
	// Elliptic curves only: the numbers of the older exchange are the server's choice, and as large as it likes.
	if (c == NULL || SSL_CTX_set_min_proto_version(c, TLS1_2_VERSION) != 1 ||
	    SSL_CTX_set_cipher_list(c, "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES") != 1 ||
	    SSL_CTX_set1_groups(c, groups, sizeof(groups) / sizeof(groups[0])) != 1) {
		SSL_CTX_free(c);
		error_set(e, -EIO, "OpenSSL cannot set up TLS: %s", ERR_reason_error_string(ERR_peek_last_error()));
		ERR_clear_error();
		return NULL;
	}
	SSL_CTX_set_options(c, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
	SSL_CTX_set_mode(c, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_max_cert_list(c, APPLICATION_CERTIFICATES_MAX);
	SSL_CTX_set_verify(c, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_cert_verify_callback(c, accept_certificate, NULL);
	return c;
}

int tls_start(struct tls *t, SSL_CTX *context, struct buffer_pool *pool) {
	*t = (struct tls){.ssl = SSL_new(context), .pool = pool};
	BIO *bio = t->ssl != NULL ? BIO_new(bio_method) : NULL;
	if (bio == NULL) {
		SSL_free(t->ssl);
		t->ssl = NULL;
		return -ENOMEM;
	}
	BIO_set_data(bio, t);
	SSL_set_bio(t->ssl, bio, bio);
	SSL_set_accept_state(t->ssl);
	return 0;
}

int tls_start_client(struct tls *t, SSL_CTX *context, struct buffer_pool *pool, bool h2) {
	char name[] = "localhost";
	static const unsigned char two[] = "\x02h2", one[] = "\x08http/1.1";
	int r = tls_start(t, context, pool);
	if (r < 0)
		return r;
	SSL_set_connect_state(t->ssl);
	if (SSL_set_alpn_protos(t->ssl, h2 ? two : one, h2 ? sizeof(two) - 1 : sizeof(one) - 1) == 0 &&
	    SSL_set_tlsext_host_name(t->ssl, name) == 1)
		return 0;
	tls_clear(t);
	return -ENOMEM;
}

int tls_greet(struct tls *t) {
	ERR_clear_error();
	int r = t->ready ? 1 : SSL_do_handshake(t->ssl);
	if (r == 1) {
		t->ready = true;
		return 1;
	}
	int why = SSL_get_error(t->ssl, r);
	if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
		return 0;
	log_debug("edge.application_tls", LOG_S("why", ERR_reason_error_string(ERR_peek_last_error())));
	ERR_clear_error();
	return -EPROTO;
}

void tls_clear(struct tls *t) {
	SSL_free(t->ssl);
	t->ssl = NULL;
	buffer_release(t->pool, &t->kept);
	buffer_release(t->pool, &t->out);
}

int tls_keep(struct tls *t) {
	int r = 0;
	if (t->fresh_size > 0) {
		if (!buffer_want(t->pool, &t->kept, BUFFER_SMALL)) {
			r = -ENOMEM;
		} else {
			buffer_compact(&t->kept);
			if (t->fresh_size <= buffer_room(&t->kept))
				buffer_append(&t->kept, t->fresh, t->fresh_size);
			else
				r = -ENOMEM;
		}
	}
	t->fresh = NULL;
	t->fresh_size = 0;
	return r;
}

ssize_t tls_read(struct tls *t, char *to, size_t room) {
	ERR_clear_error();
	size_t n = 0;
	if (SSL_read_ex(t->ssl, to, room, &n) == 1) {
		t->ready = true;
		return (ssize_t)n;
	}
	int why = SSL_get_error(t->ssl, 0);
	if (!t->ready && SSL_is_init_finished(t->ssl))
		t->ready = true;
	if (why == SSL_ERROR_ZERO_RETURN)
		t->ended = true;
	else if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
		const char *reason = ERR_reason_error_string(ERR_peek_last_error());
		log_debug("edge.tls_failed", LOG_S("why", reason));
		ERR_clear_error();
		return -EPROTO;
	}
	return 0;
}

ssize_t tls_write(struct tls *t, const char *data, size_t size) {
	if (!buffer_want(t->pool, &t->out, BUFFER_SMALL))
		return -EPROTO;
	size_t room = buffer_room(&t->out);
	if (size == 0 || room <= TLS_OVERHEAD_MAX)
		return 0;
	room -= TLS_OVERHEAD_MAX;
	size_t n = size < TLS_RECORD_MAX ? size : TLS_RECORD_MAX;
	// A sliver at the end of the buffer is not worth a record of its own.
	if (n > room && room < 1024 && buffer_used(&t->out) > 0)
		return 0;
	n = n < room ? n : room;
	ERR_clear_error();
	size_t written = 0;
	if (SSL_write_ex(t->ssl, data, n, &written) == 1)
		return (ssize_t)written;
	ERR_clear_error();
	return -EPROTO;
}

bool tls_speaks(const struct tls *t, const char *protocol) {
	const unsigned char *name = NULL;
	unsigned size = 0;
	SSL_get0_alpn_selected(t->ssl, &name, &size);
	return size == strlen(protocol) && memcmp(name, protocol, size) == 0;
}

void tls_end(struct tls *t) {
	ERR_clear_error();
	if (t->ready && SSL_shutdown(t->ssl) < 0)
		ERR_clear_error();
}
