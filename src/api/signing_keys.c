// See signing_keys.h. A table of a few entries, found by what they were derived from. A key is never out of date: another secret is another entry.
#include "api/signing_keys.h"

#include <openssl/crypto.h>
#include <pthread.h>
#include <string.h>

#define ENTRIES 64 // more than the keys that call at the same time; the others are derived anew

struct entry {
	char secret[129];
	char date[9], region[33], service[17]; // as in struct sigv4
	unsigned char key[32];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry entries[ENTRIES];

static unsigned place_of(const struct sigv4 *s, const char *secret) {
	unsigned hash = 2166136261u; // FNV-1a
	const char *const parts[] = {s->key_id, s->date, s->region, s->service, secret};
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		for (const char *p = parts[i]; *p != '\0'; p++)
			hash = (hash ^ (unsigned char)*p) * 16777619u;
	return hash % ENTRIES;
}

static bool is_of(const struct entry *e, const struct sigv4 *s, const char *secret) {
	return strcmp(e->date, s->date) == 0 && strcmp(e->region, s->region) == 0 && strcmp(e->service, s->service) == 0 &&
	       sigv4_same(e->secret, secret);
}

void signing_key(const struct sigv4 *s, const char *secret, unsigned char key[32]) {
	struct entry *e = &entries[place_of(s, secret)];
	pthread_mutex_lock(&lock);
	bool found = is_of(e, s, secret);
	if (found)
		memcpy(key, e->key, sizeof(e->key));
	pthread_mutex_unlock(&lock);
	if (found)
		return;
	sigv4_key(s, secret, key);
	if (strlen(secret) >= sizeof(e->secret))
		return;
	pthread_mutex_lock(&lock);
	OPENSSL_cleanse(e, sizeof(*e));
	memcpy(e->secret, secret, strlen(secret) + 1);
	memcpy(e->date, s->date, sizeof(e->date));
	memcpy(e->region, s->region, sizeof(e->region));
	memcpy(e->service, s->service, sizeof(e->service));
	memcpy(e->key, key, sizeof(e->key));
	pthread_mutex_unlock(&lock);
}
