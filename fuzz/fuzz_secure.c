// TLS to an application: a real server of TLS at the other end of a socket, whose bytes the input cuts, holds back and spoils. What arrives is what
// was sent, as long as nothing was spoilt, and ends without a word otherwise.
//
// Bytes of the input: 0-127 so many times 64 bytes of the server's output go on; 128-159 the server looks at what has come; 160-191 it says something; 192-223
// the edge says something; 224-239 the edge reads; 240-255 the next byte is spoilt.
#include "edge/secure.h"

#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static SSL_CTX *server_context, *client_context;

static void require(bool fine) {
	if (!fine)
		abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
	struct error e;
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *certificate = X509_new();
	X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
	X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
	X509_set_pubkey(certificate, key);
	require(X509_sign(certificate, key, EVP_sha256()) > 0);
	server_context = SSL_CTX_new(TLS_server_method());
	require(SSL_CTX_use_certificate(server_context, certificate) == 1 && SSL_CTX_use_PrivateKey(server_context, key) == 1);
	client_context = tls_client_context_new(&e);
	require(client_context != NULL);
	return 0;
}

struct peers {
	SSL *server;
	BIO *in, *out; // of the server
	int far;       // its end of the socket
	struct wire wire;
	struct tls tls;
	size_t said, heard; // by the server, by the edge
	bool spoilt, over;
};

static uint8_t pattern(size_t at) {
	return (uint8_t)((at * 2654435761u) >> 11);
}

static void server_looks(struct peers *p) {
	char bytes[4096];
	ssize_t n;
	while ((n = recv(p->far, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
		require(BIO_write(p->in, bytes, (int)n) == n);
	while (SSL_read(p->server, bytes, sizeof(bytes)) > 0)
		;
}

static void server_says(struct peers *p, size_t size) {
	uint8_t bytes[32 * 512];
	if (!SSL_is_init_finished(p->server))
		return;
	for (size_t i = 0; i < size; i++)
		bytes[i] = pattern(p->said + i);
	if (SSL_write(p->server, bytes, (int)size) == (int)size)
		p->said += size;
}

static void pass_on(struct peers *p, size_t size, uint8_t spoil) {
	uint8_t bytes[128 * 64];
	int n = BIO_read(p->out, bytes, (int)size);
	if (n <= 0)
		return;
	bytes[0] ^= spoil;
	p->spoilt |= spoil != 0;
	// What finds no room is lost, and that is as good as spoilt.
	p->spoilt |= send(p->far, bytes, (size_t)n, MSG_DONTWAIT) != n;
}

static void edge_reads(struct peers *p) {
	char scratch[BUFFER_SMALL];
	uint8_t got[TLS_RECORD_MAX];
	while (!p->over) {
		ssize_t n = secure_read(&p->tls, &p->wire, scratch, got, sizeof(got));
		p->over = n == 0 || (n < 0 && n != -EAGAIN);
		require(!p->over || p->spoilt);
		if (n <= 0)
			return;
		for (ssize_t i = 0; i < n; i++)
			require(got[i] == pattern(p->heard++));
		require(p->heard <= p->said);
	}
}

static void edge_says(struct peers *p, size_t size) {
	static const char text[32 * 64];
	ssize_t n = secure_write(&p->tls, &p->wire, text, size);
	p->over |= n < 0 && n != -EAGAIN && n != -EINPROGRESS;
	require(!p->over || p->spoilt);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static struct buffer_pool pool;
	struct peers p = {.server = SSL_new(server_context), .in = BIO_new(BIO_s_mem()), .out = BIO_new(BIO_s_mem())};
	int ends[2];
	uint8_t spoil = 0;
	require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
	p.far = ends[0];
	p.wire.fd = ends[1];
	SSL_set_bio(p.server, p.in, p.out);
	SSL_set_accept_state(p.server);
	require(tls_start_client(&p.tls, client_context, &pool, false) == 0);
	for (size_t i = 0; i < size && !p.over; i++) {
		if (data[i] < 128) {
			pass_on(&p, (size_t)(data[i] + 1) * 64, spoil);
			spoil = 0;
		} else if (data[i] < 160) {
			server_looks(&p);
		} else if (data[i] < 192) {
			server_says(&p, (size_t)(data[i] - 159) * 512);
		} else if (data[i] < 224) {
			edge_says(&p, (size_t)(data[i] - 191) * 64);
		} else if (data[i] < 240) {
			edge_reads(&p);
		} else {
			spoil = (uint8_t)(1u << (data[i] & 7));
		}
	}
	tls_clear(&p.tls);
	SSL_free(p.server);
	close(ends[0]);
	close(ends[1]);
	return 0;
}
