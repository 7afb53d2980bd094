// Access keys and roles. Both lie in the database and, sorted, in memory behind a lock of their own, because every call looks one up.
#include "store/db.h"

#include "base/cleanup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct access_tables {
	pthread_rwlock_t lock;
	struct store_key *keys;   // by id
	struct store_role *roles; // by ARN
	size_t key_count, role_count;
};

static inline void unlock_fn(struct access_tables **t) {
	pthread_rwlock_unlock(&(*t)->lock);
}
static inline struct access_tables *lock_tables(struct store *s, bool write) {
	if (write)
		pthread_rwlock_wrlock(&s->access->lock);
	else
		pthread_rwlock_rdlock(&s->access->lock);
	return s->access;
}
#define TABLES_LOCKED(s, write) __attribute__((cleanup(unlock_fn))) struct access_tables *t = lock_tables(s, write)

void store_key_clear(struct store_key *k) {
	explicit_bzero(k->secret, sizeof(k->secret));
	free(k->policy);
	k->policy = NULL;
}

void store_role_clear(struct store_role *r) {
	free(r->policy);
	r->policy = NULL;
}

static char *copy_policy(const char *text) {
	return strdup(text == NULL ? "" : text);
}

// Both kinds of records begin with the text that they are sorted by.
static int compare(const void *text, const void *record) {
	return strcmp(text, record);
}

static struct store_key *find_key(struct access_tables *t, const char *id) {
	return t->key_count == 0 ? NULL : bsearch(id, t->keys, t->key_count, sizeof(*t->keys), compare);
}

static struct store_role *find_role(struct access_tables *t, const char *arn) {
	return t->role_count == 0 ? NULL : bsearch(arn, t->roles, t->role_count, sizeof(*t->roles), compare);
}

// How many records come before or at the text.
static size_t position(const void *records, size_t count, size_t size, const char *text) {
	size_t low = 0, high = count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (strcmp((const char *)records + middle * size, text) <= 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

// Makes room for one more record at its place. NULL: out of memory.
static void *make_room(void **records, size_t *count, size_t size, const char *text) {
	char *more = realloc(*records, (*count + 1) * size);
	if (more == NULL)
		return NULL;
	*records = more;
	size_t at = position(more, *count, size, text);
	memmove(more + (at + 1) * size, more + at * size, (*count - at) * size);
	(*count)++;
	return more + at * size;
}

static void take_out(void *records, size_t *count, size_t size, const void *record) {
	size_t at = (size_t)((const char *)record - (const char *)records) / size;
	memmove((char *)records + at * size, (char *)records + (at + 1) * size, (*count - at - 1) * size);
	(*count)--;
}

// Loading ---------------------------------------------------------------------------------------------------------------------------

static int load_keys(struct store *s, struct access_tables *t, struct error *e) {
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT id, secret, account, name, policy, configured, disabled, created_ms FROM keys ORDER BY id", "");
	if (r < 0)
		return r;
	while ((r = db_step(s, st, e)) > 0) {
		struct store_key k = {.configured = sqlite3_column_int(st, 5) != 0,
				      .disabled = sqlite3_column_int(st, 6) != 0,
				      .created_ms = sqlite3_column_int64(st, 7)};
		db_text(st, 0, k.id, sizeof(k.id));
		db_text(st, 1, k.secret, sizeof(k.secret));
		db_text(st, 2, k.account, sizeof(k.account));
		db_text(st, 3, k.name, sizeof(k.name));
		k.policy = db_text_copy(st, 4);
		void *at = k.policy == NULL ? NULL : make_room((void **)&t->keys, &t->key_count, sizeof(k), k.id);
		if (at == NULL) {
			free(k.policy);
			return error_set(e, -ENOMEM, "out of memory reading the keys");
		}
		memcpy(at, &k, sizeof(k));
	}
	return r;
}

static int load_roles(struct store *s, struct access_tables *t, struct error *e) {
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT arn, policy, configured, created_ms FROM roles ORDER BY arn", "");
	if (r < 0)
		return r;
	while ((r = db_step(s, st, e)) > 0) {
		struct store_role o = {.configured = sqlite3_column_int(st, 2) != 0, .created_ms = sqlite3_column_int64(st, 3)};
		db_text(st, 0, o.arn, sizeof(o.arn));
		o.policy = db_text_copy(st, 1);
		void *at = o.policy == NULL ? NULL : make_room((void **)&t->roles, &t->role_count, sizeof(o), o.arn);
		if (at == NULL) {
			free(o.policy);
			return error_set(e, -ENOMEM, "out of memory reading the roles");
		}
		memcpy(at, &o, sizeof(o));
	}
	return r;
}

int keys_load(struct store *s, struct error *e) {
	struct access_tables *t = s->access = calloc(1, sizeof(*t));
	if (t == NULL)
		return error_set(e, -ENOMEM, "out of memory reading the keys");
	pthread_rwlock_init(&t->lock, NULL);
	int r = load_keys(s, t, e);
	return r < 0 ? r : load_roles(s, t, e);
}

void keys_free(struct store *s) {
	struct access_tables *t = s->access;
	if (t == NULL)
		return;
	for (size_t i = 0; i < t->key_count; i++)
		store_key_clear(&t->keys[i]);
	for (size_t i = 0; i < t->role_count; i++)
		store_role_clear(&t->roles[i]);
	free(t->keys);
	free(t->roles);
	pthread_rwlock_destroy(&t->lock);
	free(t);
	s->access = NULL;
}

// Keys ------------------------------------------------------------------------------------------------------------------------------

int store_put_key(struct store *s, const struct store_key *k, struct error *e) {
	DB_LOCKED(s); // whoever writes has this one, so that the memory cannot change between the check and the end
	TABLES_LOCKED(s, true);
	struct store_key copy = *k, *at = find_key(t, k->id);
	if (at == NULL && t->key_count >= STORE_KEYS_MAX)
		return error_set(e, -ENOSPC, "there are %d access keys already; remove some first", STORE_KEYS_MAX);
	copy.policy = copy_policy(k->policy);
	bool added = at == NULL;
	if (copy.policy != NULL && added)
		at = make_room((void **)&t->keys, &t->key_count, sizeof(copy), k->id);
	if (copy.policy == NULL || at == NULL) {
		free(copy.policy);
		return error_set(e, -ENOMEM, "out of memory adding a key");
	}
	int r = db_exec(
		s, e,
		"INSERT INTO keys(id, secret, account, name, policy, configured, disabled, created_ms) VALUES(?,?,?,?,?,?,?,?) ON "
		"CONFLICT(id) DO UPDATE SET secret=excluded.secret, account=excluded.account, name=excluded.name, "
		"policy=excluded.policy, configured=excluded.configured, disabled=excluded.disabled, created_ms=excluded.created_ms",
		"sssssiii", k->id, k->secret, k->account, k->name, copy.policy, (int64_t)k->configured, (int64_t)k->disabled,
		k->created_ms);
	if (r < 0) {
		free(copy.policy);
		if (added)
			take_out(t->keys, &t->key_count, sizeof(copy), at);
		return r;
	}
	if (!added)
		store_key_clear(at);
	*at = copy;
	return 0;
}

int store_get_key(struct store *s, const char *id, struct store_key *ret, struct error *e) {
	TABLES_LOCKED(s, false);
	const struct store_key *k = find_key(t, id);
	if (k == NULL)
		return error_set(e, -ENOENT, "there is no access key %.128s", id);
	char *policy = copy_policy(k->policy);
	if (policy == NULL)
		return error_set(e, -ENOMEM, "out of memory reading a key");
	*ret = *k;
	ret->policy = policy;
	return 0;
}

int store_delete_key(struct store *s, const char *id, struct error *e) {
	DB_LOCKED(s);
	TABLES_LOCKED(s, true);
	struct store_key *k = find_key(t, id);
	if (k == NULL)
		return error_set(e, -ENOENT, "there is no access key %.128s", id);
	int r = db_exec(s, e, "DELETE FROM keys WHERE id=?", "s", id);
	if (r < 0)
		return r;
	store_key_clear(k);
	take_out(t->keys, &t->key_count, sizeof(*k), k);
	return 0;
}

int store_keep_configured_key(struct store *s, const char *id, struct error *e) {
	DB_LOCKED(s);
	TABLES_LOCKED(s, true);
	int r = db_exec(s, e, "DELETE FROM keys WHERE configured<>0 AND id<>?", "s", id);
	if (r < 0)
		return r;
	for (size_t i = t->key_count; i-- > 0;) {
		struct store_key *k = &t->keys[i];
		if (!k->configured || strcmp(k->id, id) == 0)
			continue;
		store_key_clear(k);
		take_out(t->keys, &t->key_count, sizeof(*k), k);
	}
	return 0;
}

int store_list_keys(struct store *s, const char *after, size_t limit, int (*each)(const struct store_key *, void *), void *arg,
		    struct error *e) {
	TABLES_LOCKED(s, false);
	size_t first = after == NULL ? 0 : position(t->keys, t->key_count, sizeof(*t->keys), after);
	int r = 0;
	for (size_t i = first; i < t->key_count && i - first < limit && r == 0; i++)
		r = each(&t->keys[i], arg);
	return r < 0 ? error_set(e, r, "the keys cannot be listed") : 0;
}

// Roles -----------------------------------------------------------------------------------------------------------------------------

int store_put_role(struct store *s, const struct store_role *o, struct error *e) {
	DB_LOCKED(s);
	TABLES_LOCKED(s, true);
	struct store_role copy = *o, *at = find_role(t, o->arn);
	if (at == NULL && t->role_count >= STORE_ROLES_MAX)
		return error_set(e, -ENOSPC, "there are %d roles already; remove some first", STORE_ROLES_MAX);
	copy.policy = copy_policy(o->policy);
	bool added = at == NULL;
	if (copy.policy != NULL && added)
		at = make_room((void **)&t->roles, &t->role_count, sizeof(copy), o->arn);
	if (copy.policy == NULL || at == NULL) {
		free(copy.policy);
		return error_set(e, -ENOMEM, "out of memory adding a role");
	}
	int r = db_exec(s, e,
			"INSERT INTO roles(arn, policy, configured, created_ms) VALUES(?,?,?,?) ON CONFLICT(arn) DO UPDATE SET "
			"policy=excluded.policy, configured=excluded.configured, created_ms=excluded.created_ms",
			"ssii", o->arn, copy.policy, (int64_t)o->configured, o->created_ms);
	if (r < 0) {
		free(copy.policy);
		if (added)
			take_out(t->roles, &t->role_count, sizeof(copy), at);
		return r;
	}
	if (!added)
		store_role_clear(at);
	*at = copy;
	return 0;
}

int store_get_role(struct store *s, const char *arn, struct store_role *ret, struct error *e) {
	TABLES_LOCKED(s, false);
	const struct store_role *o = find_role(t, arn);
	if (o == NULL)
		return error_set(e, -ENOENT, "there is no role %.255s", arn);
	char *policy = copy_policy(o->policy);
	if (policy == NULL)
		return error_set(e, -ENOMEM, "out of memory reading a role");
	*ret = *o;
	ret->policy = policy;
	return 0;
}

int store_delete_role(struct store *s, const char *arn, struct error *e) {
	DB_LOCKED(s);
	TABLES_LOCKED(s, true);
	struct store_role *o = find_role(t, arn);
	if (o == NULL)
		return error_set(e, -ENOENT, "there is no role %.255s", arn);
	int r = db_exec(s, e, "DELETE FROM roles WHERE arn=?", "s", arn);
	if (r < 0)
		return r;
	store_role_clear(o);
	take_out(t->roles, &t->role_count, sizeof(*o), o);
	return 0;
}

int store_list_roles(struct store *s, const char *after, size_t limit, int (*each)(const struct store_role *, void *), void *arg,
		     struct error *e) {
	TABLES_LOCKED(s, false);
	size_t first = after == NULL ? 0 : position(t->roles, t->role_count, sizeof(*t->roles), after);
	int r = 0;
	for (size_t i = first; i < t->role_count && i - first < limit && r == 0; i++)
		r = each(&t->roles[i], arg);
	return r < 0 ? error_set(e, r, "the roles cannot be listed") : 0;
}

bool store_has_roles(struct store *s) {
	TABLES_LOCKED(s, false);
	return t->role_count > 0;
}
