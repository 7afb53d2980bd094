// The store in trouble: a full disk, one that cannot be written, damaged pages, and layouts of older programs. What was good stays good, reads go on
// when writes cannot, and the message says what is wrong. Disks are small ones in memory, in a mount namespace of the test's own (needs root).
#include "base/cleanup.h"
#include "base/io.h"
#include "store/db.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define MANY 400

static char folder[64], database[96];
static struct store *store;
static char ids[20000][48];

static int set_up(void **state) {
	snprintf(folder, sizeof(folder), "/tmp/test_trouble.XXXXXX");
	assert_non_null(mkdtemp(folder));
	snprintf(database, sizeof(database), "%s/stasis.db", folder);
	return 0;
}

static int tear_down(void **state) {
	store_close(store);
	store = NULL;
	umount2(folder, MNT_DETACH);
	return remove_tree(folder, NULL);
}

static bool mount_disk(const char *options) {
	static bool own;
	if (!own && (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)) {
		print_message("skipped: mounting needs root\n");
		return false;
	}
	own = true;
	assert_int_equal(mount("none", folder, "tmpfs", 0, options), 0);
	return true;
}

static void open_store(void) {
	struct error e = {0};
	if (store_open(folder, &store, &e) < 0)
		fail_msg("%s", e.message);
}

static void close_store(void) {
	store_close(store);
	store = NULL;
}

static int refused(int code, const char *part) {
	struct error e = {0};
	int r = store_open(folder, &store, &e);
	assert_null(store);
	if (r != code || strstr(e.message, part) == NULL || strstr(e.message, folder) == NULL)
		fail_msg("%d: %s", r, e.message);
	return r;
}

static void add_image(void) {
	struct store_image i = {
		.uuid = "u", .account = "000000000000", .name = "i", .arn = "arn:i", .state = "CREATED", .tags = (char[]){"{}"}};
	struct store_version v = {.image_uuid = "u", .version = "1.0", .state = "SUCCESSFUL", .status = "ACTIVE", .config = (char[]){"{}"}};
	struct store_build b = {.build_id = "b", .image_uuid = "u", .version = "1.0", .state = "SUCCESSFUL"};
	assert_int_equal(store_add_image(store, &i, &v, &b, NULL, NULL), 0);
}

// Adds record number n; the first one brings its image.
static int add(int n, struct error *e) {
	char uuid[UUID_TEXT];
	if (n == 0)
		add_image();
	struct store_microvm m = {.account = "000000000000",
				  .image_uuid = "u",
				  .image_arn = "arn:i",
				  .version = "1.0",
				  .state = "SUSPENDED",
				  .started_ms = 1,
				  .config = (char[]){"{}"}};
	uuid_new(uuid);
	snprintf(m.id, sizeof(m.id), "microvm-%s", uuid);
	uuid_new(m.endpoint);
	memcpy(ids[n], m.id, sizeof(m.id));
	return store_add_microvm(store, &m, NULL, e);
}

// Returns how many of the first n are there; every other answer must be `other`.
static int found(int n, int other) {
	int there = 0;
	for (int i = 0; i < n; i++) {
		struct store_microvm m;
		struct error e = {0};
		int r = store_get_microvm(store, ids[i], &m, &e);
		if (r == 0) {
			assert_string_equal(m.state, "SUSPENDED");
			store_microvm_clear(&m);
			there++;
		} else if (r != other) {
			fail_msg("%s: %d %s", ids[i], r, e.message);
		}
	}
	return there;
}

static void full_disk(void **state) {
	char ballast[96];
	struct error e = {0};
	if (!mount_disk("size=8m"))
		skip();
	snprintf(ballast, sizeof(ballast), "%s/ballast", folder);
	open_store();
	int fd = open(ballast, O_RDWR | O_CREAT, 0600), n = 0;
	assert_int_equal(posix_fallocate(fd, 0, 4 << 20), 0);
	close(fd);
	while (n < 19000 && add(n, &e) == 0)
		n++;
	assert_int_equal(e.code, -ENOSPC);
	assert_non_null(strstr(e.message, "no space left on the disk of the store"));
	assert_non_null(strstr(e.message, folder));
	assert_true(n > 20);
	for (int i = 0; i < 10; i++)
		assert_int_equal(add(19000, NULL), -ENOSPC);
	assert_int_equal(found(n, 0), n);
	// With room again it goes on, without a restart.
	assert_int_equal(unlink(ballast), 0);
	assert_int_equal(add(n, &e), 0);
	n++;
	close_store();
	open_store();
	assert_int_equal(found(n, 0), n);
}

static void full_from_the_beginning(void **state) {
	char ballast[96];
	if (!mount_disk("size=64k"))
		skip();
	snprintf(ballast, sizeof(ballast), "%s/ballast", folder);
	cleanup_close int fd = open(ballast, O_RDWR | O_CREAT, 0600);
	assert_int_equal(posix_fallocate(fd, 0, 60 << 10), 0);
	refused(-ENOSPC, "no space left");
	assert_int_equal(unlink(ballast), 0);
	assert_int_equal(mount("none", folder, "tmpfs", MS_REMOUNT, "size=8m"), 0);
	open_store();
}

static void read_only_disk(void **state) {
	if (!mount_disk("size=8m"))
		skip();
	open_store();
	assert_int_equal(add(0, NULL), 0);
	close_store();
	assert_int_equal(mount("none", folder, NULL, MS_REMOUNT | MS_RDONLY, NULL), 0);
	refused(-EROFS, "Read-only file system");
	assert_int_equal(mount("none", folder, NULL, MS_REMOUNT, NULL), 0);
	open_store();
	assert_int_equal(found(1, 0), 1);
}

// Writes fail from one moment to the next, as when a file system went read-only after an error of its disk.
static void writes_fail(void **state) {
	struct rlimit whole, none = {0};
	struct error e = {0};
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &whole), 0);
	none.rlim_max = whole.rlim_max;
	open_store();
	for (int i = 0; i < MANY; i++)
		assert_int_equal(add(i, NULL), 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
	int r = add(MANY, &e);
	struct store_counts counts;
	int there = found(MANY, 0), counted = store_count(store, &counts, NULL);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &whole), 0);
	assert_true(r < 0);
	assert_non_null(strstr(e.message, database));
	assert_int_equal(there, MANY);
	assert_int_equal(counted, 0);
	assert_int_equal(counts.microvms_suspended, MANY);
	assert_int_equal(add(MANY, &e), 0);
	close_store();
	open_store();
	assert_int_equal(found(MANY + 1, 0), MANY + 1);
}

#define PAGE 4096

static off_t middle_page(int fd) {
	return lseek(fd, 0, SEEK_END) / PAGE / 2 * PAGE;
}

static void one_damaged_page(void **state) {
	char page[PAGE], junk[PAGE], after[PAGE];
	open_store();
	for (int i = 0; i < MANY; i++)
		assert_int_equal(add(i, NULL), 0);
	close_store();
	cleanup_close int fd = open(database, O_RDWR);
	off_t at = middle_page(fd);
	memset(junk, 0x5a, sizeof(junk));
	assert_int_equal(pread_full(fd, page, PAGE, (uint64_t)at), 0);
	assert_int_equal(pwrite_full(fd, junk, PAGE, (uint64_t)at), 0);
	refused(-EUCLEAN, "damaged");
	assert_int_equal(pread_full(fd, after, PAGE, (uint64_t)at), 0);
	assert_memory_equal(junk, after, PAGE); // nothing tried to repair it
	// From the copy that the message asks for, everything comes back.
	assert_int_equal(pwrite_full(fd, page, PAGE, (uint64_t)at), 0);
	open_store();
	assert_int_equal(found(MANY, 0), MANY);
}

// Pages that are damaged while the store is open cost the records on them, and say so; the others are served.
static void damaged_while_open(void **state) {
	char junk[PAGE];
	open_store();
	for (int i = 0; i < MANY; i++)
		assert_int_equal(add(i, NULL), 0);
	close_store();
	open_store();
	cleanup_close int fd = open(database, O_RDWR);
	memset(junk, 0x5a, sizeof(junk));
	for (off_t at = middle_page(fd) * 3 / 2 / PAGE * PAGE; at < lseek(fd, 0, SEEK_END); at += PAGE)
		assert_int_equal(pwrite_full(fd, junk, PAGE, (uint64_t)at), 0);
	int there = found(MANY, -EUCLEAN);
	assert_in_range(there, 1, MANY - 1);
}

// Layouts ---------------------------------------------------------------------------------------------------------------------------

// What a program of layout 1 has written; later layouts have all of it too.
static const char first_records[] =
	"INSERT INTO keys(id, secret, account) VALUES('AKID', 'secret', '000000000000');"
	"INSERT INTO secrets(name, value) VALUES('page tokens', x'00112233445566778899aabbccddeeff');"
	"INSERT INTO images(uuid, account, name, arn, state, latest_active, latest_failed, created_ms, updated_ms, tags)"
	" VALUES('u', '000000000000', 'name', 'arn:name', 'CREATED', '1.0', '', 5, 6, '{\"a\":\"b\"}');"
	"INSERT INTO versions(image_uuid, version, state, status, state_reason, created_ms, updated_ms, account, config)"
	" VALUES('u', '1.0', 'SUCCESSFUL', 'ACTIVE', '', 5, 6, '000000000000', '{\"clientToken\":\"t\",\"x\":1}');"
	"INSERT INTO builds(build_id, image_uuid, version, state, architecture, state_reason, created_ms, ended_ms, memory_bytes, "
	"code_bytes,"
	" disk_bytes) VALUES('b', 'u', '1.0', 'SUCCESSFUL', 'X86_64', '', 5, 6, 7, 8, 9);"
	"INSERT INTO microvms(id, account, endpoint, image_uuid, image_arn, version, state, state_reason, started_ms, terminated_ms,"
	" maximum_duration_s, has_idle_policy, max_idle_s, suspended_s, auto_resume, suspended_at_ms, vmm, config)"
	" VALUES('microvm-1', '000000000000', 'e', 'u', 'arn:name', '1.0', 'SUSPENDED', '', 10, 0, 11, 1, 12, 13, 1, 14, '', '{\"k\":1}');"
	"INSERT INTO stages(subject, name, started_ms, duration_us, detail) VALUES('microvm-1', 'run', 1, 2, '');"
	"INSERT INTO buckets(name, account, created_ms) VALUES('bucket', '000000000000', 1);"
	"INSERT INTO objects(bucket, key, file, size, etag, modified_ms, headers) VALUES('bucket', 'k', 'f', 3, 'e', 4, '{}');";

static void write_layout(int layout) {
	struct store old = {.lock_fd = -1};
	struct error e = {0};
	snprintf(old.path, sizeof(old.path), "%s", database);
	assert_int_equal(sqlite3_open(database, &old.db), SQLITE_OK);
	if (schema_upgrade(&old, layout, &e) < 0)
		fail_msg("%s", e.message);
	char *message = NULL;
	if (sqlite3_exec(old.db, first_records, NULL, NULL, &message) != SQLITE_OK)
		fail_msg("layout %d: %s", layout, message);
	for (size_t i = 0; i < old.cached; i++)
		sqlite3_finalize(old.cache[i].statement);
	sqlite3_close(old.db);
}

static int count_stage(const struct store_stage *g, void *arg) {
	(*(int *)arg)++;
	return 0;
}

static void older_layouts_become_current(void **state) {
	for (int layout = 1; layout < schema_newest(); layout++) {
		struct store_key key;
		struct store_image i;
		struct store_version v;
		struct store_build b;
		struct store_microvm m;
		unsigned char secret[16];
		int stages = 0;
		write_layout(layout);
		for (int again = 0; again < 2; again++) { // a second start finds nothing to do
			open_store();
			assert_int_equal(store_get_key(store, "AKID", &key, NULL), 0);
			assert_int_equal(store_secret(store, "page tokens", secret, sizeof(secret), NULL), 0);
			assert_int_equal(secret[15], 0xff);
			assert_int_equal(store_get_image_by_arn(store, "arn:name", &i, NULL), 0);
			assert_string_equal(i.latest_active_version, "1.0");
			assert_string_equal(i.tags, "{\"a\":\"b\"}");
			assert_int_equal(store_get_version(store, "u", "1.0", &v, NULL), 0);
			assert_non_null(strstr(v.config, "\"x\":1"));
			assert_int_equal(store_get_build(store, "u", "1.0", "b", &b, NULL), 0);
			assert_int_equal(b.disk_bytes, 9);
			assert_int_equal(store_get_microvm(store, "microvm-1", &m, NULL), 0);
			assert_string_equal(m.state, "SUSPENDED");
			assert_int_equal(m.suspended_s, 13);
			assert_int_equal(store_list_stages(store, "microvm-1", count_stage, &stages, NULL), 0);
			store_key_clear(&key);
			store_image_clear(&i);
			store_version_clear(&v);
			store_microvm_clear(&m);
			close_store();
		}
		assert_int_equal(stages, 2);
		assert_int_equal(remove_tree(folder, NULL), 0);
		assert_int_equal(mkdir(folder, 0700), 0);
	}
}

// Something of the operator's own stands in the way of a step: the store keeps the layout that the steps before it made.
static void fails_at(const char *dropped, int kept) {
	sqlite3 *db;
	char sql[64];
	struct error e = {0};
	sqlite3_stmt *st = NULL;
	write_layout(1);
	snprintf(sql, sizeof(sql), "DROP TABLE %s", dropped);
	assert_int_equal(sqlite3_open(database, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
	assert_true(store_open(folder, &store, &e) < 0);
	assert_non_null(strstr(e.message, "cannot bring the store to layout"));
	assert_int_equal(sqlite3_open(database, &db), SQLITE_OK);
	assert_int_equal(sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &st, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(st), SQLITE_ROW);
	assert_int_equal(sqlite3_column_int(st, 0), kept);
	sqlite3_finalize(st);
	sqlite3_close(db);
	assert_int_equal(remove_tree(folder, NULL), 0);
	assert_int_equal(mkdir(folder, 0700), 0);
}

static void a_failed_step_changes_nothing(void **state) {
	fails_at("images", 1);
	fails_at("keys", 3);
	fails_at("uploads", 4);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void) {
	const struct CMUnitTest tests[] = {
		TEST(full_disk),
		TEST(full_from_the_beginning),
		TEST(read_only_disk),
		TEST(writes_fail),
		TEST(one_damaged_page),
		TEST(damaged_while_open),
		TEST(older_layouts_become_current),
		TEST(a_failed_step_changes_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
