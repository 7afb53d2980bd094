// Idempotent creation by clientToken (spec section 1.8).
//
// The token is stored in the record's config together with a digest of the request, and so is committed with what it made. While a call with a
// token is under way, others with the same token wait here, so that the second sees what the first has made.
#include "api/call.h"
#include "api/sigv4.h"
#include "base/cleanup.h"

#include <pthread.h>
#include <string.h>

#define LOCKS 64

struct token_lock {
	pthread_mutex_t mutex;
};

static struct token_lock locks[LOCKS] = {[0 ... LOCKS - 1] = {.mutex = PTHREAD_MUTEX_INITIALIZER}};

struct token_lock *token_lock(const char *account, const char *token) {
	if (token == NULL)
		return NULL;
	unsigned hash = 2166136261u;
	for (const char *p = account; *p != '\0'; p++)
		hash = (hash ^ (unsigned char)*p) * 16777619u;
	for (const char *p = token; *p != '\0'; p++)
		hash = (hash ^ (unsigned char)*p) * 16777619u;
	struct token_lock *l = &locks[hash % LOCKS];
	pthread_mutex_lock(&l->mutex);
	return l;
}

void token_unlock(struct token_lock **l) {
	if (*l != NULL)
		pthread_mutex_unlock(&(*l)->mutex);
}

void request_digest(const struct call *c, char to[static 65]) {
	cleanup_json json_t *copy = json_copy(c->body);
	json_object_del(copy, "clientToken");
	cleanup_free char *text = json_dumps(copy, JSON_COMPACT | JSON_SORT_KEYS);
	sha256_hex(text == NULL ? "" : text, text == NULL ? 0 : strlen(text), to);
}
