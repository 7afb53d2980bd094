// What the two files about network connectors share: connector.c has the operations, connector_state.c what follows from them.
#pragma once

#include "api/call.h"

#include <pthread.h>

// Held from reading a connector to writing it: changes of connectors are rare, and one lock is enough for all.
pthread_mutex_t *connectors_lock(void);
void connectors_unlock(pthread_mutex_t **m);
#define LOCK_CONNECTORS __attribute__((cleanup(connectors_unlock), unused)) pthread_mutex_t *connectors_locked_ = connectors_lock()

// Brings the connector to its next state, on a worker.
void connector_settle_later(struct engine *en, const struct store_connector *c);
