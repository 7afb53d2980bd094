// The tables of the store, and how an older store becomes a current one.
//
// `PRAGMA user_version` says which steps of `migrations` a database has seen. Each step runs in a transaction together with the new
// number, so that a crash leaves one or the other. Steps are never changed once they are released; a change is a new step.
#include "store/db.h"

#include <stdio.h>

#define CONNECTORS_ARE_USABLE(table)                                                                                                \
	"CREATE TRIGGER " table "_connectors BEFORE INSERT ON " table " WHEN instr(new.config, ':network-connector:nc-') > 0 BEGIN" \
	" SELECT RAISE(ABORT, 'A network connector of the request is not ACTIVE any more.')"                                        \
	" FROM json_each(new.config, '$.egressNetworkConnectors') u WHERE instr(u.value, ':network-connector:nc-') > 0"             \
	" AND NOT EXISTS (SELECT 1 FROM connectors c WHERE c.id = substr(u.value, instr(u.value, ':nc-') + 1, 39)"                  \
	" AND c.account = new.account AND c.state = 'ACTIVE'); END;"

static const char *const migrations[] = {
	// 1: the first layout. `seq` orders records by their creation and is what list cursors hold. A client token is unique within its
	// account: for microVMs by an index over the configuration, for versions by the table of their tokens' owners, which is the image's.
	"CREATE TABLE secrets(name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE keys(id TEXT PRIMARY KEY, secret TEXT NOT NULL, account TEXT NOT NULL) WITHOUT ROWID;"

	"CREATE TABLE images(seq INTEGER PRIMARY KEY AUTOINCREMENT, uuid TEXT NOT NULL UNIQUE, account TEXT NOT NULL, name TEXT NOT NULL,"
	" arn TEXT NOT NULL UNIQUE, state TEXT NOT NULL, latest_active TEXT NOT NULL, latest_failed TEXT NOT NULL,"
	" created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, tags TEXT, UNIQUE(account, name));"
	"CREATE INDEX images_by_account ON images(account, seq);"

	"CREATE TABLE versions(seq INTEGER PRIMARY KEY AUTOINCREMENT, image_uuid TEXT NOT NULL REFERENCES images(uuid) ON DELETE CASCADE,"
	" version TEXT NOT NULL, state TEXT NOT NULL, status TEXT NOT NULL, state_reason TEXT NOT NULL, created_ms INTEGER NOT NULL,"
	" updated_ms INTEGER NOT NULL, account TEXT NOT NULL, config TEXT,"
	" client_token TEXT GENERATED ALWAYS AS (json_extract(config, '$.clientToken')) VIRTUAL,"
	" UNIQUE(image_uuid, version));"
	"CREATE INDEX versions_by_image ON versions(image_uuid, seq);"
	"CREATE UNIQUE INDEX versions_by_token ON versions(account, client_token) WHERE client_token IS NOT NULL;"

	"CREATE TABLE builds(seq INTEGER PRIMARY KEY AUTOINCREMENT, build_id TEXT NOT NULL UNIQUE, image_uuid TEXT NOT NULL,"
	" version TEXT NOT NULL, state TEXT NOT NULL, architecture TEXT NOT NULL, state_reason TEXT NOT NULL, created_ms INTEGER NOT NULL,"
	" ended_ms INTEGER NOT NULL, memory_bytes INTEGER NOT NULL, code_bytes INTEGER NOT NULL, disk_bytes INTEGER NOT NULL,"
	" FOREIGN KEY(image_uuid, version) REFERENCES versions(image_uuid, version) ON DELETE CASCADE);"
	"CREATE INDEX builds_by_version ON builds(image_uuid, version, seq);"

	"CREATE TABLE microvms(seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, account TEXT NOT NULL, endpoint TEXT NOT "
	"NULL UNIQUE,"
	" image_uuid TEXT NOT NULL, image_arn TEXT NOT NULL, version TEXT NOT NULL, state TEXT NOT NULL, state_reason TEXT NOT NULL,"
	" started_ms INTEGER NOT NULL, terminated_ms INTEGER NOT NULL, maximum_duration_s INTEGER NOT NULL, has_idle_policy INTEGER NOT "
	"NULL,"
	" max_idle_s INTEGER NOT NULL, suspended_s INTEGER NOT NULL, auto_resume INTEGER NOT NULL, suspended_at_ms INTEGER NOT NULL,"
	" vmm TEXT NOT NULL, config TEXT,"
	" client_token TEXT GENERATED ALWAYS AS (json_extract(config, '$.clientToken')) VIRTUAL);"
	"CREATE INDEX microvms_by_account ON microvms(account, seq);"
	"CREATE INDEX microvms_by_image ON microvms(image_arn, seq);"
	"CREATE INDEX microvms_living ON microvms(seq) WHERE state <> 'TERMINATED';"
	"CREATE INDEX microvms_by_state ON microvms(state);"
	"CREATE UNIQUE INDEX microvms_by_token ON microvms(account, client_token) WHERE client_token IS NOT NULL;"

	"CREATE TABLE stages(seq INTEGER PRIMARY KEY AUTOINCREMENT, subject TEXT NOT NULL, name TEXT NOT NULL, started_ms INTEGER NOT NULL,"
	" duration_us INTEGER NOT NULL, detail TEXT NOT NULL);"
	"CREATE INDEX stages_by_subject ON stages(subject, seq);"

	"CREATE TABLE buckets(name TEXT PRIMARY KEY, account TEXT NOT NULL, created_ms INTEGER NOT NULL) WITHOUT ROWID;"
	"CREATE TABLE objects(bucket TEXT NOT NULL REFERENCES buckets(name), key TEXT NOT NULL, file TEXT NOT NULL UNIQUE, size INTEGER "
	"NOT NULL,"
	" etag TEXT NOT NULL, modified_ms INTEGER NOT NULL, headers TEXT, PRIMARY KEY(bucket, key));"
	"CREATE TABLE uploads(id TEXT PRIMARY KEY, bucket TEXT NOT NULL REFERENCES buckets(name), key TEXT NOT NULL, created_ms INTEGER "
	"NOT NULL,"
	" headers TEXT) WITHOUT ROWID;"
	"CREATE TABLE parts(upload TEXT NOT NULL REFERENCES uploads(id) ON DELETE CASCADE, number INTEGER NOT NULL, file TEXT NOT NULL "
	"UNIQUE,"
	" size INTEGER NOT NULL, etag TEXT NOT NULL, PRIMARY KEY(upload, number));",

	// An image counts its versions, so that no number is given twice. Client tokens have a table of their own, because they outlive what
	// they made; those of before are forgotten. `position` is where a token's bytes begin among all that its account ever kept.
	"ALTER TABLE images ADD COLUMN last_version INTEGER NOT NULL DEFAULT 1;"
	"DROP INDEX versions_by_token;"
	"DROP INDEX microvms_by_token;"
	"ALTER TABLE versions DROP COLUMN client_token;"
	"ALTER TABLE microvms DROP COLUMN client_token;"
	"CREATE TABLE client_tokens(account TEXT NOT NULL, position INTEGER NOT NULL, size INTEGER NOT NULL, operation TEXT NOT NULL,"
	" token TEXT NOT NULL, digest TEXT NOT NULL, answer TEXT NOT NULL, created_ms INTEGER NOT NULL, UNIQUE(account, position),"
	" UNIQUE(account, operation, token));",

	// Network connectors. A deleted one stays for a while, so that it can be deleted again; its name is free. What is added with the ARN of
	// a connector of an account finds that connector usable in the same transaction: deleting one and using it exclude each other.
	"CREATE TABLE connectors(seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, account TEXT NOT NULL, name TEXT NOT NULL,"
	" arn TEXT NOT NULL, state TEXT NOT NULL, state_reason TEXT NOT NULL, state_code TEXT NOT NULL, version INTEGER NOT NULL,"
	" created_ms INTEGER NOT NULL, modified_ms INTEGER NOT NULL, update_status TEXT NOT NULL, update_reason TEXT NOT NULL,"
	" update_code TEXT NOT NULL, config TEXT NOT NULL, pending TEXT, tags TEXT NOT NULL);"
	"CREATE INDEX connectors_by_account ON connectors(account, seq);"
	"CREATE UNIQUE INDEX connectors_by_name ON connectors(account, name) WHERE state <> 'DELETED';" CONNECTORS_ARE_USABLE("microvms")
		CONNECTORS_ARE_USABLE("versions"),

	// Keys have policies, and there are roles. All keys so far came from configurations, which give them their rights anew at every start.
	// What quotas add up is found by indexes: the memory of microVMs lies in their configuration.
	"ALTER TABLE keys ADD COLUMN name TEXT NOT NULL DEFAULT '';"
	"ALTER TABLE keys ADD COLUMN policy TEXT NOT NULL DEFAULT '';"
	"ALTER TABLE keys ADD COLUMN configured INTEGER NOT NULL DEFAULT 1;"
	"ALTER TABLE keys ADD COLUMN disabled INTEGER NOT NULL DEFAULT 0;"
	"ALTER TABLE keys ADD COLUMN created_ms INTEGER NOT NULL DEFAULT 0;"
	"CREATE TABLE roles(arn TEXT PRIMARY KEY, policy TEXT NOT NULL, configured INTEGER NOT NULL, created_ms INTEGER NOT NULL) WITHOUT "
	"ROWID;"
	"ALTER TABLE microvms ADD COLUMN memory_mib INTEGER GENERATED ALWAYS AS (json_extract(config, '$.memoryInMiB')) VIRTUAL;"
	"CREATE INDEX microvms_memory ON microvms(account, memory_mib) WHERE state <> 'TERMINATED';"
	"CREATE INDEX builds_unfinished ON builds(image_uuid) WHERE state IN ('PENDING', 'IN_PROGRESS');",

	// Artifact store: lists of uploads and of their parts, and the end of old uploads.
	"ALTER TABLE parts ADD COLUMN modified_ms INTEGER NOT NULL DEFAULT 0;"
	"CREATE INDEX uploads_by_key ON uploads(bucket, key, id);"
	"CREATE INDEX uploads_by_age ON uploads(created_ms);",

	// The edge: tokens can be revoked, and ports be public.
	"ALTER TABLE microvms ADD COLUMN tokens_since_ms INTEGER NOT NULL DEFAULT 0;"
	"CREATE TABLE public_ports(image_uuid TEXT NOT NULL REFERENCES images(uuid) ON DELETE CASCADE, port INTEGER NOT NULL,"
	" PRIMARY KEY(image_uuid, port)) WITHOUT ROWID;",
};

#define SCHEMA_VERSION ((int)(sizeof(migrations) / sizeof(migrations[0])))

int schema_newest(void) {
	return SCHEMA_VERSION;
}

int schema_upgrade(struct store *s, int to, struct error *e) {
	sqlite3_stmt *st = NULL;
	if (sqlite3_prepare_v2(s->db, "PRAGMA user_version", -1, &st, NULL) != SQLITE_OK)
		return db_error(s, -EIO, e);
	int code = sqlite3_step(st);
	int version = code == SQLITE_ROW ? sqlite3_column_int(st, 0) : -1;
	sqlite3_finalize(st);
	if (version < 0)
		return db_error(s, -EIO, e);
	if (version > SCHEMA_VERSION)
		return error_set(e, -EPROTO,
				 "the store %s was written by a newer Stasis (layout %d, this program knows up to %d): start that version, "
				 "or a newer one",
				 s->path, version, SCHEMA_VERSION);
	for (; version < to; version++) {
		int r = db_begin(s, e);
		if (r < 0)
			return r;
		char set[48];
		snprintf(set, sizeof(set), "PRAGMA user_version = %d", version + 1);
		if (sqlite3_exec(s->db, migrations[version], NULL, NULL, NULL) != SQLITE_OK ||
		    sqlite3_exec(s->db, set, NULL, NULL, NULL) != SQLITE_OK)
			r = db_error(s, -EIO, e);
		r = db_end(s, r, e);
		if (r < 0)
			return error_wrap(e, r, "cannot bring the store to layout %d", version + 1);
	}
	return 0;
}
