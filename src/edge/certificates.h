// The edge's certificates: an authority of its own, made at first start, and a certificate for the endpoints' domain that it signs.
//
// They lie in `tls/` in the state folder: ca.pem and ca.key (10 years), edge.pem and edge.key (a year, made anew in its last month).
#pragma once

#include "base/error.h"

#include <openssl/evp.h>
#include <openssl/x509.h>

struct certificates {
	X509 *ca, *edge;
	EVP_PKEY *edge_key;
	char *ca_pem; // text of ca.pem
};

// Reads the certificates, and makes what is missing, expired or for another domain. Also the way to renew: call it again. [blocks]
int certificates_open(const char *state_folder, const char *domain, struct certificates *ret, struct error *e);
void certificates_clear(struct certificates *c);
