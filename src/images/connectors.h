// What the connectors in a configuration mean: what they let in and out. See connectors.c.
#pragma once

#include "launch/launch.h"

#include <jansson.h>

// What the egress connectors of a configuration (an image version's, or a Run request's) let through: members "egressNetworkConnectors" and, as the
// API resolved the subnets of the account's own connectors, "egressNetworks". Without connectors: `inherited`.
void read_egress(const json_t *config, const struct egress *inherited, struct egress *ret);

// The egress of a microVM whose Run request had this configuration.
void run_egress(const char *run_config_json, const struct egress *inherited, struct egress *ret);

// What ingress connectors let in.
enum ingress { INGRESS_HTTP = 1, INGRESS_SHELL = 2 };

// Of a list of ARNs; NULL, null or empty: HTTP, as the service has it.
unsigned ingress_of(const json_t *connectors);
unsigned run_ingress(const char *run_config_json);
