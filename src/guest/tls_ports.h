// The ports at which the application speaks TLS, as its image says with the environment variable STASIS_TLS: the edge then does so too.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TLS_VARIABLE "STASIS_TLS"
#define TLS_PORTS_MAX 16

struct tls_ports {
	uint16_t at[TLS_PORTS_MAX];
	size_t count;
};

// Reads decimal numbers, apart by blanks or commas; NULL stands for none.
int tls_ports_parse(const char *text, struct tls_ports *ret, struct error *e);
bool tls_ports_have(const struct tls_ports *p, uint16_t port);
