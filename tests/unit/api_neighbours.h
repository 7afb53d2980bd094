// See api_neighbours.c.
#pragma once

#include "base/error.h"
#include "edge/token.h"

struct engine;

int neighbours_start(struct engine *en, struct error *e);
void neighbours_stop(void);
void neighbours_close_logs(void); // of all microVMs
int neighbours_open_token(const char *text, struct token_claims *ret);
