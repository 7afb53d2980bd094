// XML of S3: writing with escapes, and reading the few small documents that clients send (Delete, CompleteMultipartUpload,
// CreateBucketConfiguration).
//
// The reader is a strict one for element-only documents: no document type (and so no entities but the five), no processing instructions behind the
// declaration, at most XML_DEPTH_MAX levels; attributes are skipped; name-space prefixes are not interpreted.
#pragma once

#include "api/text.h"

#include <stdbool.h>

void xml_escape(struct text *t, const char *s); // also what XML 1.0 cannot hold: it becomes '?'
// <name>escaped</name>
void xml_element(struct text *t, const char *name, const char *value);

#define XML_DEPTH_MAX 8
#define XML_VALUE_MAX 2048 // bytes of one element's text

// Reads a document. Each element is reported when it ends, with its path ("Delete/Object/Key") and its own text; returning false stops. Returns 0,
// -EBADMSG when it is no such document, -ECANCELED when stopped.
int xml_read(const char *data, size_t size, bool (*element)(void *arg, const char *path, const char *value), void *arg);
