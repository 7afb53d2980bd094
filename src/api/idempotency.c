// Idempotent calls by clientToken (spec section 1.8).
//
// The store keeps a token with a digest of its request and with what was answered, committed together with what the call made. While a call with a
// token is under way, others with the same token wait here, so that the second sees what the first has made. A call that failed leaves no token.
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

static struct token_lock *lock_token(const struct store_token *t) {
	unsigned hash = 2166136261u;
	const char *const texts[] = {t->account, t->operation, t->token};
	for (size_t i = 0; i < 3; i++)
		for (const char *p = texts[i]; *p != '\0'; p++)
			hash = (hash ^ (unsigned char)*p) * 16777619u;
	struct token_lock *l = &locks[hash % LOCKS];
	pthread_mutex_lock(&l->mutex);
	return l;
}

// Of everything that the call says, but for the token.
static void digest_request(const struct call *c, char to[static STORE_DIGEST]) {
	cleanup_json json_t *copy = json_copy(c->body);
	json_object_del(copy, "clientToken");
	cleanup_free char *body = json_dumps(copy, JSON_COMPACT | JSON_SORT_KEYS);
	cleanup_text all = {0};
	for (size_t i = 0; i < c->label_count; i++)
		text_format(&all, "%s\n", c->labels[i]);
	text_puts(&all, body == NULL ? "" : body);
	sha256_hex(all.data, all.size, to);
}

static void answer_again(struct call *c, int status, const struct idempotency *i, const char *digest, const char *answer) {
	if (strcmp(digest, i->digest) != 0)
		call_fail(c, 409, "ConflictException", "The client token was used before with other parameters");
	else
		call_answer(c, status, json_stored(answer));
}

bool idempotency_begin(struct call *c, int status, struct idempotency *ret) {
	*ret = (struct idempotency){.lock = NULL};
	const char *token = json_string_value(json_object_get(c->body, "clientToken"));
	if (token == NULL)
		return true;
	digest_request(c, ret->digest);
	ret->record = (struct store_token){.account = c->key.account, .operation = c->operation, .token = token, .digest = ret->digest};
	ret->token = &ret->record;
	ret->lock = lock_token(ret->token);
	char digest[STORE_DIGEST];
	cleanup_free char *answer = NULL;
	struct error e = {0};
	int r = store_get_token(c->en->store, c->key.account, c->operation, token, digest, &answer, &e);
	if (r == 0)
		answer_again(c, status, ret, digest, answer);
	else if (r != -ENOENT)
		call_fail_with(c, &e);
	return r == -ENOENT;
}

void idempotency_end(struct idempotency *i) {
	free(i->record.answer);
	if (i->lock != NULL)
		pthread_mutex_unlock(&i->lock->mutex);
}
