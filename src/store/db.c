// The connection to SQLite: opening, locking, statements, transactions; and what belongs to no record: secrets, counts.
//
// WAL mode with synchronous=FULL: a commit that returned is on the disk. A second connection reads, without waiting for the first one's flushes. A lock
// file beside the database keeps a second engine away, whatever it would do with it.
#include "store/db.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <fcntl.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

int db_error(struct store *s, int code, struct error *e) {
	const char *text = sqlite3_errmsg(s->db);
	switch (sqlite3_errcode(s->db) & 0xff) {
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return error_set(e, -EUCLEAN,
				 "the store %s is damaged (%s): restore it from a copy, or move it away to start with an empty one",
				 s->path, text);
	case SQLITE_FULL:
		return error_set(e, -ENOSPC, "no space left on the disk of the store %s: free some", s->path);
	case SQLITE_READONLY:
		return error_set(e, -EROFS, "the store %s cannot be written (%s)", s->path, text);
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return error_set(e, -EBUSY, "the store %s is in use by another program", s->path);
	case SQLITE_CONSTRAINT:
		// A trigger of the schema says why, in words for the API's client.
		if (sqlite3_extended_errcode(s->db) == SQLITE_CONSTRAINT_TRIGGER)
			return error_named(e, -ESTALE, "ValidationException", "%s", text);
		return error_set(e, sqlite3_extended_errcode(s->db) == SQLITE_CONSTRAINT_FOREIGNKEY ? -ENOENT : -EEXIST, "%s", text);
	case SQLITE_CANTOPEN:
		return error_set(e, -EACCES, "the store %s cannot be opened (%s)", s->path, text);
	case SQLITE_NOMEM:
		return error_set(e, -ENOMEM, "out of memory in the store");
	default:
		return error_set(e, code, "the store %s failed (%s)", s->path, text);
	}
}

static int bind(struct store *s, sqlite3_stmt *st, const char *types, va_list ap, struct error *e) {
	int code = SQLITE_OK;
	for (int i = 1; types[i - 1] != '\0' && code == SQLITE_OK; i++) {
		switch (types[i - 1]) {
		case 's':
			code = sqlite3_bind_text(st, i, va_arg(ap, const char *), -1, SQLITE_STATIC);
			break;
		case 'i':
			code = sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
			break;
		default: {
			const void *data = va_arg(ap, const void *);
			code = sqlite3_bind_blob64(st, i, data, va_arg(ap, size_t), SQLITE_STATIC);
		}
		}
	}
	return code == SQLITE_OK ? 0 : db_error(s, -EIO, e);
}

static int prepare(struct store *s, sqlite3_stmt **ret, const char *sql, struct error *e) {
	for (size_t i = 0; i < s->cached; i++) {
		if (s->cache[i].sql == sql || strcmp(s->cache[i].sql, sql) == 0) {
			*ret = s->cache[i].statement;
			return 0;
		}
	}
	if (s->cached == DB_STATEMENTS_MAX)
		return error_set(e, -ENOBUFS, "too many kinds of statements; raise DB_STATEMENTS_MAX");
	if (sqlite3_prepare_v3(s->db, sql, -1, SQLITE_PREPARE_PERSISTENT, ret, NULL) != SQLITE_OK)
		return db_error(s, -EIO, e);
	s->cache[s->cached].sql = sql;
	s->cache[s->cached++].statement = *ret;
	return 0;
}

static int query(struct store *s, sqlite3_stmt **ret, struct error *e, const char *sql, const char *types, va_list ap) {
	*ret = NULL;
	int r = prepare(s, ret, sql, e);
	return r < 0 ? r : bind(s, *ret, types, ap, e);
}

int db_query(struct store *s, sqlite3_stmt **ret, struct error *e, const char *sql, const char *types, ...) {
	va_list ap;
	va_start(ap, types);
	int r = query(s, ret, e, sql, types, ap);
	va_end(ap);
	return r;
}

int db_step(struct store *s, sqlite3_stmt *st, struct error *e) {
	switch (sqlite3_step(st)) {
	case SQLITE_ROW:
		return 1;
	case SQLITE_DONE:
		return 0;
	default:
		return db_error(s, -EIO, e);
	}
}

int db_exec(struct store *s, struct error *e, const char *sql, const char *types, ...) {
	va_list ap;
	va_start(ap, types);
	db_statement st = NULL;
	int r = query(s, &st, e, sql, types, ap);
	va_end(ap);
	if (r < 0)
		return r;
	r = db_step(s, st, e);
	return r < 0 ? r : sqlite3_changes(s->db);
}

int db_begin(struct store *s, struct error *e) {
	return db_exec(s, e, "BEGIN IMMEDIATE", "");
}

int db_end(struct store *s, int r, struct error *e) {
	int ended = r < 0 ? -1 : db_exec(s, e, "COMMIT", "");
	if (ended >= 0)
		return r;
	db_exec(s, NULL, "ROLLBACK", "");
	return r < 0 ? r : ended;
}

int db_set_flush(struct store *s, bool flush, struct error *e) {
	if (s->relaxed == !flush)
		return 0;
	if (sqlite3_exec(s->db, flush ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL", NULL, NULL, NULL) != SQLITE_OK)
		return db_error(s, -EIO, e);
	s->relaxed = !flush;
	return 0;
}

void db_text(sqlite3_stmt *st, int column, char *to, size_t room) {
	const unsigned char *text = sqlite3_column_text(st, column);
	size_t n = text == NULL ? 0 : strnlen((const char *)text, room - 1);
	if (n > 0)
		memcpy(to, text, n);
	to[n] = '\0';
}

char *db_text_copy(sqlite3_stmt *st, int column) {
	const unsigned char *text = sqlite3_column_text(st, column);
	return strdup(text == NULL ? "" : (const char *)text);
}

int db_page_start(struct db_page *p, const char *cursor, char next[STORE_CURSOR_MAX], struct error *e) {
	next[0] = '\0';
	p->after = INT64_MAX;
	if (cursor == NULL || cursor[0] == '\0')
		return 0;
	char *end;
	errno = 0;
	p->after = strtoll(cursor, &end, 10);
	if (errno != 0 || *end != '\0' || p->after <= 0)
		return error_set(e, -EINVAL, "not a position in a list");
	return 0;
}

int db_page_read(struct store *s, sqlite3_stmt *st, struct db_page *p, char next[STORE_CURSOR_MAX], struct error *e) {
	size_t room = 0;
	int64_t seq = 0;
	int r;
	while ((r = db_step(s, st, e)) > 0) {
		if (p->count == p->limit) {
			snprintf(next, STORE_CURSOR_MAX, "%lld", (long long)seq);
			return 0;
		}
		if (p->count == room) {
			size_t wanted = room == 0 ? 16 : room * 2;
			void *more = realloc(p->records, wanted * p->record_size);
			if (more == NULL)
				return error_set(e, -ENOMEM, "out of memory listing");
			p->records = more;
			room = wanted;
		}
		if (p->read(st, (char *)p->records + p->count * p->record_size, &seq) < 0)
			return error_set(e, -ENOMEM, "out of memory listing");
		p->count++;
	}
	return r;
}

// Opening -------------------------------------------------------------------------------------------------------------------------

static int lock_store(const char *folder, int *ret, struct error *e) {
	char path[512];
	snprintf(path, sizeof(path), "%s/stasis.lock", folder);
	cleanup_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(e, "cannot open %s", path);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno == EWOULDBLOCK)
			return error_set(e, -EBUSY, "the store in %s is in use by another stasisd: end that one first", folder);
		return error_errno(e, "cannot lock %s", path);
	}
	*ret = take_fd(&fd);
	return 0;
}

static int check(struct store *s, struct error *e) {
	sqlite3_stmt *st = NULL;
	if (sqlite3_prepare_v2(s->db, "PRAGMA quick_check(1)", -1, &st, NULL) != SQLITE_OK)
		return db_error(s, -EIO, e);
	int r = 0;
	if (sqlite3_step(st) != SQLITE_ROW) {
		r = db_error(s, -EIO, e);
	} else {
		const char *text = (const char *)sqlite3_column_text(st, 0);
		if (text == NULL || strcmp(text, "ok") != 0)
			r = error_set(e, -EUCLEAN,
				      "the store %s is damaged (%s): restore it from a copy, or move it away to start with an empty one",
				      s->path, text == NULL ? "?" : text);
	}
	sqlite3_finalize(st);
	return r;
}

// The database holds secret keys: nobody else reads it, nor the files beside it, to which SQLite gives its mode. (The descriptor is closed before
// SQLite opens the file: closing one later would drop SQLite's locks.)
static int make_private(const char *path, struct error *e) {
	cleanup_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 || fchmod(fd, 0600) < 0 ? error_errno(e, "cannot open %s", path) : 0;
}

static int open_reader(struct store *s, struct error *e) {
	struct store *r = s->reader = calloc(1, sizeof(*r));
	if (r == NULL)
		return error_set(e, -ENOMEM, "out of memory opening the store");
	memcpy(r->path, s->path, sizeof(r->path));
	r->lock_fd = -1;
	pthread_mutex_init(&r->lock, NULL);
	if (sqlite3_open_v2(r->path, &r->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL) != SQLITE_OK ||
	    sqlite3_exec(r->db, "PRAGMA query_only = ON;", NULL, NULL, NULL) != SQLITE_OK)
		return r->db == NULL ? error_set(e, -ENOMEM, "out of memory opening %s", r->path) : db_error(r, -EIO, e);
	sqlite3_busy_timeout(r->db, 5000);
	return 0;
}

static int open_database(struct store *s, const char *folder, struct error *e) {
	int r = make_folders(folder, 0700, e);
	if (r < 0)
		return r;
	r = lock_store(folder, &s->lock_fd, e);
	if (r < 0)
		return r;
	snprintf(s->path, sizeof(s->path), "%s/stasis.db", folder);
	r = make_private(s->path, e);
	if (r < 0)
		return r;
	if (sqlite3_open_v2(s->path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
			    NULL) != SQLITE_OK) {
		if (s->db == NULL)
			return error_set(e, -ENOMEM, "out of memory opening %s", s->path);
		return db_error(s, -EIO, e);
	}
	sqlite3_busy_timeout(s->db, 5000);
	if (sqlite3_exec(s->db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;", NULL, NULL, NULL) !=
	    SQLITE_OK)
		return db_error(s, -EIO, e);
	r = check(s, e);
	if (r < 0)
		return r;
	r = schema_upgrade(s, schema_newest(), e);
	if (r < 0)
		return r;
	r = keys_load(s, e);
	if (r == 0)
		r = public_ports_load(s, e);
	if (r == 0)
		r = open_reader(s, e);
	return r < 0 ? r : sync_folder(folder, e);
}

int store_open(const char *folder, struct store **ret, struct error *e) {
	struct store *s = calloc(1, sizeof(*s));
	if (s == NULL)
		return error_set(e, -ENOMEM, "out of memory opening the store");
	s->lock_fd = -1;
	pthread_mutex_init(&s->lock, NULL);
	int r = open_database(s, folder, e);
	if (r < 0) {
		store_close(s);
		return r;
	}
	*ret = s;
	return 0;
}

void store_close(struct store *s) {
	if (s == NULL)
		return;
	store_close(s->reader); // first: the last connection brings the log into the database
	for (size_t i = 0; i < s->cached; i++)
		sqlite3_finalize(s->cache[i].statement);
	sqlite3_close(s->db);
	if (s->lock_fd >= 0)
		close(s->lock_fd);
	pthread_mutex_destroy(&s->lock);
	keys_free(s);
	public_ports_free(s);
	free(s);
}

// Secrets, counts -----------------------------------------------------------------------------------------------------------

// 1: found, 0: there is none.
static int read_secret(struct store *s, const char *name, void *ret, size_t size, struct error *e) {
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT value FROM secrets WHERE name=?", "s", name);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r <= 0)
		return r;
	const void *value = sqlite3_column_blob(st, 0);
	if ((size_t)sqlite3_column_bytes(st, 0) != size || value == NULL)
		return error_set(e, -EUCLEAN, "the secret %s in the store has another size than this program expects", name);
	memcpy(ret, value, size);
	return 1;
}

int store_secret(struct store *s, const char *name, void *ret, size_t size, struct error *e) {
	{
		struct store *reader = db_reader(s);
		DB_LOCKED(reader);
		int r = read_secret(reader, name, ret, size, e);
		if (r != 0)
			return r < 0 ? r : 0;
	}
	DB_LOCKED(s);
	int found = read_secret(s, name, ret, size, e);
	if (found != 0)
		return found < 0 ? found : 0;
	if (RAND_bytes(ret, (int)size) != 1)
		return error_set(e, -EIO, "no random bytes for the secret %s", name);
	int r = db_exec(s, e, "INSERT INTO secrets(name, value) VALUES(?,?)", "sb", name, ret, size);
	return r < 0 ? r : 0;
}

int store_count(struct store *s, struct store_counts *ret, struct error *e) {
	s = db_reader(s);
	DB_LOCKED(s);
	*ret = (struct store_counts){0};
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT (SELECT count(*) FROM images), (SELECT count(*) FROM versions)", "");
	if (r >= 0)
		r = db_step(s, st, e);
	if (r <= 0)
		return r;
	ret->images = sqlite3_column_int64(st, 0);
	ret->versions = sqlite3_column_int64(st, 1);
	db_statement by_state = NULL;
	r = db_query(s, &by_state, e, "SELECT state, count(*) FROM microvms GROUP BY state", "");
	if (r < 0)
		return r;
	while ((r = db_step(s, by_state, e)) > 0) {
		char state[STATE_TEXT];
		db_text(by_state, 0, state, sizeof(state));
		int64_t n = sqlite3_column_int64(by_state, 1);
		if (strcmp(state, "PENDING") == 0)
			ret->microvms_pending = n;
		else if (strcmp(state, "RUNNING") == 0)
			ret->microvms_running = n;
		else if (strcmp(state, "SUSPENDED") == 0)
			ret->microvms_suspended = n;
		else if (strcmp(state, "TERMINATED") == 0)
			ret->microvms_terminated = n;
		else
			ret->microvms_other += n;
	}
	return r;
}

int store_add_stage(struct store *s, const char *subject, const char *name, int64_t started_ms, int64_t duration_us, const char *detail,
		    struct error *e) {
	DB_LOCKED(s);
	int r = db_set_flush(s, false, e);
	if (r < 0)
		return r;
	r = db_begin(s, e);
	if (r >= 0) {
		r = db_exec(s, e, "INSERT INTO stages(subject, name, started_ms, duration_us, detail) VALUES(?,?,?,?,?)", "ssiis", subject,
			    name, started_ms, duration_us, detail == NULL ? "" : detail);
		if (r >= 0)
			r = db_exec(s, e,
				    "DELETE FROM stages WHERE subject=?1 AND seq <= (SELECT seq FROM stages WHERE subject=?1 ORDER BY seq "
				    "DESC LIMIT 1 OFFSET ?2)",
				    "si", subject, (int64_t)STORE_STAGES_MAX);
		r = db_end(s, r, e);
	}
	int flush = db_set_flush(s, true, r < 0 ? NULL : e);
	if (r >= 0 && flush < 0)
		return flush;
	return r < 0 ? r : 0;
}

int store_list_stages(struct store *s, const char *subject, int (*each)(const struct store_stage *, void *), void *arg, struct error *e) {
	cleanup_free struct store_stage *found = calloc(STORE_STAGES_MAX, sizeof(*found));
	if (found == NULL)
		return error_set(e, -ENOMEM, "out of memory listing stages");
	size_t n = 0;
	s = db_reader(s);
	{
		DB_LOCKED(s);
		db_statement st = NULL;
		int r = db_query(s, &st, e, "SELECT name, started_ms, duration_us, detail FROM stages WHERE subject=? ORDER BY seq", "s",
				 subject);
		if (r < 0)
			return r;
		while (n < STORE_STAGES_MAX && (r = db_step(s, st, e)) > 0) {
			struct store_stage *g = &found[n++];
			db_text(st, 0, g->name, sizeof(g->name));
			g->started_ms = sqlite3_column_int64(st, 1);
			g->duration_us = sqlite3_column_int64(st, 2);
			db_text(st, 3, g->detail, sizeof(g->detail));
		}
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < n; i++)
		if (each(&found[i], arg) != 0)
			break;
	return 0;
}
