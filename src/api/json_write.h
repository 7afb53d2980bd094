// JSON as text, for answers: what jansson's json_dumps() writes with JSON_COMPACT | JSON_REAL_PRECISION(13), in a third of the
// time (but for exponents: 1e+300, not 1e300).
#pragma once

#include "api/text.h"

#include <jansson.h>

// Appends the value. Objects keep the order in which their members were set.
void json_write(struct text *t, const json_t *v);
