// Limits, token buckets and admission; see quota.h.
#include "api/quota.h"

#include "api/call.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "microvms/room.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define LOCKS 64
#define BUCKETS 256
#define RATE_LEAST 0.01
#define RATE_MOST 1e6
#define NUMBER_MOST 1000000000

struct bucket {
	struct bucket *next;
	char account[13];
	const char *operation; // of the route table
	double tokens;
	uint64_t at_ns;
};

struct quotas {
	json_t *document; // the configuration's object
	bool limits;      // it says anything
	pthread_mutex_t accounts[LOCKS];
	pthread_mutex_t lock; // of the buckets
	// One for each account and operation that has called: both are few, and no stranger makes more.
	struct bucket *buckets[BUCKETS];
};

// Configuration ---------------------------------------------------------------------------------------------------------------------

static const char *const numbers[] = {"memoryMib", "images", "versions", "concurrentBuilds"};

static int check_rates(const json_t *rates, const char *account, struct error *e) {
	const char *operation;
	json_t *value;
	if (!json_is_object(rates))
		return error_set(e, -EINVAL, "\"quotas\", %s: \"callsPerSecond\" must be an object from operations to numbers", account);
	json_object_foreach((json_t *)(uintptr_t)rates, operation, value) {
		if (!json_is_number(value) || json_number_value(value) < RATE_LEAST || json_number_value(value) > RATE_MOST)
			return error_set(e, -EINVAL, "\"quotas\", %s: calls per second of \"%.64s\" must be a number from %g to %g",
					 account, operation, RATE_LEAST, RATE_MOST);
	}
	return 0;
}

static int check_member(const char *account, const char *name, const json_t *value, struct error *e) {
	if (strcmp(name, "callsPerSecond") == 0)
		return check_rates(value, account, e);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		if (strcmp(name, numbers[i]) != 0)
			continue;
		if (json_is_integer(value) && json_integer_value(value) >= 0 && json_integer_value(value) <= NUMBER_MOST)
			return 0;
		return error_set(e, -EINVAL, "\"quotas\", %s: \"%s\" must be a whole number from 0 (no limit) to %d", account, name,
				 NUMBER_MOST);
	}
	return error_set(
		e, -EINVAL,
		"\"quotas\", %s: unknown member \"%.64s\"; there are memoryMib, images, versions, concurrentBuilds, callsPerSecond",
		account, name);
}

static int check_document(const json_t *document, struct error *e) {
	const char *account, *name;
	json_t *limits, *value;
	int r = 0;
	json_object_foreach((json_t *)(uintptr_t)document, account, limits) {
		bool known = strcmp(account, "default") == 0 || (strlen(account) == 12 && strspn(account, "0123456789") == 12);
		if (!known || !json_is_object(limits))
			return error_set(
				e, -EINVAL,
				"\"quotas\" must be an object from accounts (twelve digits, or \"default\") to objects, not \"%.64s\"",
				account);
		json_object_foreach(limits, name, value) {
			if (r == 0)
				r = check_member(account, name, value, e);
		}
	}
	return r;
}

int quotas_start(struct engine *en, struct error *e) {
	struct quotas *q = calloc(1, sizeof(*q));
	if (q == NULL)
		return error_set(e, -ENOMEM, "out of memory reading the quotas");
	q->document = en->config.quotas[0] == '\0' ? json_object() : json_loads(en->config.quotas, 0, NULL);
	int r = q->document == NULL ? error_set(e, -EINVAL, "\"quotas\" cannot be read") : check_document(q->document, e);
	if (r < 0) {
		json_decref(q->document);
		free(q);
		return r;
	}
	q->limits = json_object_size(q->document) > 0;
	for (size_t i = 0; i < LOCKS; i++)
		pthread_mutex_init(&q->accounts[i], NULL);
	pthread_mutex_init(&q->lock, NULL);
	en->quotas = q;
	return 0;
}

// What the account's own entry says, otherwise the default's; NULL: nothing.
static const json_t *setting(const struct quotas *q, const char *account, const char *name) {
	const json_t *own = json_object_get(json_object_get(q->document, account), name);
	return own != NULL ? own : json_object_get(json_object_get(q->document, "default"), name);
}

static int64_t limit_of(const struct quotas *q, const char *account, const char *name) {
	return json_integer_value(setting(q, account, name));
}

// Calls -----------------------------------------------------------------------------------------------------------------------------

static unsigned hash_of(const char *text, unsigned hash) {
	for (; *text != '\0'; text++)
		hash = (hash ^ (unsigned char)*text) * 16777619u;
	return hash;
}

static struct bucket *find_bucket(struct quotas *q, const char *account, const char *operation, double capacity) {
	struct bucket **first = &q->buckets[hash_of(operation, hash_of(account, 2166136261u)) % BUCKETS];
	for (struct bucket *b = *first; b != NULL; b = b->next)
		if (b->operation == operation && strcmp(b->account, account) == 0)
			return b;
	struct bucket *b = malloc(sizeof(*b));
	if (b == NULL)
		return NULL;
	*b = (struct bucket){.next = *first, .operation = operation, .tokens = capacity, .at_ns = monotonic_ns()};
	snprintf(b->account, sizeof(b->account), "%s", account);
	return *first = b;
}

// Seconds until there is a token; 0: one was taken. A bucket holds what flows in within a second, and at least one call.
static double take(struct quotas *q, const char *account, const char *operation, double rate) {
	double capacity = rate < 1 ? 1 : rate, wait = 0;
	pthread_mutex_lock(&q->lock);
	struct bucket *b = find_bucket(q, account, operation, capacity);
	if (b != NULL) {
		uint64_t now = monotonic_ns();
		b->tokens += (double)(now - b->at_ns) / 1e9 * rate;
		b->tokens = b->tokens > capacity ? capacity : b->tokens;
		b->at_ns = now;
		if (b->tokens >= 1)
			b->tokens -= 1;
		else
			wait = (1 - b->tokens) / rate;
	}
	pthread_mutex_unlock(&q->lock);
	return wait;
}

bool quota_rate(struct call *c) {
	struct quotas *q = c->en->quotas;
	if (!q->limits || c->by_operator)
		return true;
	const json_t *rates = setting(q, c->key.account, "callsPerSecond");
	const json_t *rate = json_object_get(rates, c->operation);
	if (rate == NULL)
		rate = json_object_get(rates, "*");
	double wait = rate == NULL ? 0 : take(q, c->key.account, c->operation, json_number_value(rate));
	if (wait <= 0)
		return true;
	exchange_header(c->x, "retry-after", "%d", (int)wait + 1);
	call_fail(c, 429, "ThrottlingException", "Rate exceeded");
	return false;
}

// Admission -------------------------------------------------------------------------------------------------------------------------

void quota_release(struct quota_hold *h) {
	if (h->account != NULL)
		pthread_mutex_unlock(h->account);
	if (h->host)
		room_unlock();
	*h = (struct quota_hold){NULL, false};
}

static void hold_account(struct call *c, struct quota_hold *hold) {
	hold->account = &c->en->quotas->accounts[hash_of(c->key.account, 2166136261u) % LOCKS];
	pthread_mutex_lock(hold->account);
}

static bool exceeded(struct call *c, struct quota_hold *hold, const char *message) {
	quota_release(hold);
	call_fail(c, 402, "ServiceQuotaExceededException", "%s", message);
	return false;
}

static bool usage_of(struct call *c, const char *image_uuid, struct store_usage *ret, struct quota_hold *hold) {
	struct error e = {0};
	if (store_get_usage(c->en->store, c->key.account, image_uuid, ret, &e) == 0)
		return true;
	quota_release(hold);
	call_fail_with(c, &e);
	return false;
}

// image_uuid NULL: a new image.
static bool admit_build(struct call *c, const char *image_uuid, struct quota_hold *hold) {
	const struct quotas *q = c->en->quotas;
	int64_t images = limit_of(q, c->key.account, "images"), versions = limit_of(q, c->key.account, "versions"),
		builds = limit_of(q, c->key.account, "concurrentBuilds");
	struct store_usage used;
	if (images == 0 && versions == 0 && builds == 0)
		return true;
	hold_account(c, hold);
	if (!usage_of(c, image_uuid, &used, hold))
		return false;
	if (image_uuid == NULL && images > 0 && used.images >= images)
		return exceeded(c, hold, "The maximum number of MicroVM images has been reached for this account.");
	if (image_uuid != NULL && versions > 0 && used.versions >= versions)
		return exceeded(c, hold, "The maximum number of versions has been reached for this MicroVM image.");
	if (builds > 0 && used.builds >= builds)
		return exceeded(c, hold, "The maximum number of concurrent MicroVM image builds has been reached for this account.");
	return true;
}

bool quota_admit_image(struct call *c, struct quota_hold *hold) {
	return admit_build(c, NULL, hold);
}

bool quota_admit_version(struct call *c, const char *image_uuid, struct quota_hold *hold) {
	return admit_build(c, image_uuid, hold);
}

static bool admit_by_host(struct call *c, int64_t memory_mib, struct quota_hold *hold) {
	struct error e = {0};
	int r = room_lock(c->en, memory_mib, &e);
	if (r >= 0) {
		hold->host = r == 1;
		return true;
	}
	quota_release(hold);
	call_fail_with(c, &e);
	return false;
}

bool quota_admit_microvm(struct call *c, int64_t memory_mib, struct quota_hold *hold) {
	int64_t limit = limit_of(c->en->quotas, c->key.account, "memoryMib");
	struct store_usage used;
	if (limit > 0) {
		hold_account(c, hold);
		if (!usage_of(c, NULL, &used, hold))
			return false;
		if (used.memory_mib + memory_mib > limit)
			return exceeded(c, hold, "The base maximum allocated memory limit has been reached for this account.");
	}
	return admit_by_host(c, memory_mib, hold);
}
