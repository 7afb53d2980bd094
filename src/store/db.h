// Inside src/store/ only: the database connection, its lock and its statements.
//
// Statements are prepared once and kept, found by their text. A statement in use belongs to whoever holds the lock; nothing calls out
// (no callback of a caller) while holding it.
//
// There are two connections, each a struct store with a lock of its own: the store's, which writes, and db_reader(), which only reads. A reader
// waits for no flush and sees everything that was committed before it asked; reads outside of transactions use it.
#pragma once

#include "base/error.h"
#include "store/store.h"

#include <pthread.h>
#include <sqlite3.h>

#define DB_STATEMENTS_MAX 128

struct store {
	sqlite3 *db;
	struct store *reader; // NULL in the reader itself
	pthread_mutex_t lock;
	char path[512];
	int lock_fd;
	bool relaxed; // synchronous is NORMAL instead of FULL just now
	struct {
		const char *sql;
		sqlite3_stmt *statement;
	} cache[DB_STATEMENTS_MAX];
	size_t cached;
	struct access_tables *access;      // keys.c
	struct public_ports *public_ports; // public_ports.c
};

static inline struct store *db_reader(struct store *s) {
	return s->reader;
}

static inline void db_unlock_fn(struct store **s) {
	pthread_mutex_unlock(&(*s)->lock);
}
static inline struct store *db_lock(struct store *s) {
	pthread_mutex_lock(&s->lock);
	return s;
}
// Holds the store's lock until the end of the scope.
#define DB_LOCKED(s) __attribute__((cleanup(db_unlock_fn), unused)) struct store *locked_ = db_lock(s)

// Gives a statement back; marks a variable for it.
static inline void db_done_fn(sqlite3_stmt **st) {
	if (*st != NULL) {
		sqlite3_reset(*st);
		sqlite3_clear_bindings(*st);
	}
}
#define db_statement __attribute__((cleanup(db_done_fn))) sqlite3_stmt *

// Prepares (or finds) a statement and binds the arguments that `types` names: s text (NULL is SQL NULL), i int64_t, b blob (const void *,
// size_t). Texts and blobs must live until the statement is given back.
int db_query(struct store *s, sqlite3_stmt **ret, struct error *e, const char *sql, const char *types, ...);
// 1: a row, 0: no more, or a negative errno.
int db_step(struct store *s, sqlite3_stmt *st, struct error *e);
// A statement without rows. Returns how many records it changed, or a negative errno: -EEXIST for a uniqueness constraint.
int db_exec(struct store *s, struct error *e, const char *sql, const char *types, ...);

int db_begin(struct store *s, struct error *e);
// Commits when r is not negative, otherwise rolls back; returns r or the commit's error.
int db_end(struct store *s, int r, struct error *e);
// Turns the flush at commit on (the normal case) or off.
int db_set_flush(struct store *s, bool flush, struct error *e);

// Sets *e from the connection's last error.
int db_error(struct store *s, int code, struct error *e);

void db_text(sqlite3_stmt *st, int column, char *to, size_t room);
char *db_text_copy(sqlite3_stmt *st, int column); // NULL when out of memory; the caller frees

// A page of a list, read whole under the lock and given to the caller's callback afterwards, so that the callback may use the store.
struct db_page {
	size_t record_size, limit;
	int (*read)(sqlite3_stmt *, void *record, int64_t *seq); // -ENOMEM
	int64_t after;                                           // records with a smaller seq
	void *records;                                           // the caller's to clear and free, also after an error
	size_t count;
};
int db_page_start(struct db_page *p, const char *cursor, char next[STORE_CURSOR_MAX], struct error *e);
int db_page_read(struct store *s, sqlite3_stmt *st, struct db_page *p, char next[STORE_CURSOR_MAX], struct error *e);

// tokens.c: keeps a client token, in the transaction that makes what it stands for. -EEXIST: it is kept already; -EDQUOT.
int token_add(struct store *s, const struct store_token *t, struct error *e);
// keys.c: reads all keys and roles / forgets them.
int keys_load(struct store *s, struct error *e);
void keys_free(struct store *s);
// public_ports.c: reads all / forgets all / those of an image that is gone.
int public_ports_load(struct store *s, struct error *e);
void public_ports_free(struct store *s);
void public_ports_forget_image(struct store *s, const char *image_uuid);

// schema.c: brings the database to version `to` (the newest one, but in tests), refusing one that a newer program wrote.
int schema_newest(void);
int schema_upgrade(struct store *s, int to, struct error *e);
