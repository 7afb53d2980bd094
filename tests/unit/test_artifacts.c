// The artifact store on disk, below its S3 front; and fetching from an S3 endpoint, for which the store's own front stands.
#include "api/api.h"
#include "api/policy.h"
#include "api_neighbours.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "stasisd/engine.h"
#include "stasisd/workers.h"
#include "store/artifacts.h"
#include "store/db.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[64];
static struct store *store;
static struct artifacts *artifacts;

static void open_all(void) {
	struct error e = {0};
	if (store_open(folder, &store, &e) < 0 || artifacts_start(store, folder, 1 << 20, &artifacts, &e) < 0)
		fail_msg("%s", e.message);
}

static void close_all_of_it(void) {
	artifacts_stop(artifacts);
	store_close(store);
	artifacts = NULL;
	store = NULL;
}

static int set_up(void **state) {
	(void)state;
	snprintf(folder, sizeof(folder), "/tmp/test_artifacts.XXXXXX");
	assert_non_null(mkdtemp(folder));
	open_all();
	return artifacts_create_bucket(artifacts, "000000000000", "bucket", NULL);
}

static int tear_down(void **state) {
	(void)state;
	close_all_of_it();
	return remove_tree(folder, NULL);
}

static int put(const char *bucket, const char *key, const char *body, struct error *e) {
	struct object_writer *w;
	int r = artifacts_write_start(artifacts, bucket, &w, e);
	if (r < 0)
		return r;
	r = artifacts_write(w, body, strlen(body), e);
	if (r < 0) {
		artifacts_write_abort(w);
		return r;
	}
	return artifacts_write_finish(w, key, "{\"content-type\":\"text/plain\"}", e);
}

static void expect(const char *key, const char *body) {
	struct object o;
	int fd;
	char got[64] = "";
	assert_int_equal(artifacts_open_object(artifacts, "bucket", key, &fd, &o, NULL), 0);
	assert_int_equal(o.size, strlen(body));
	assert_int_equal(read(fd, got, sizeof(got)), strlen(body));
	assert_memory_equal(got, body, strlen(body));
	assert_string_equal(o.headers, "{\"content-type\":\"text/plain\"}");
	object_clear(&o);
	close(fd);
}

static int files_in(const char *bucket) {
	char path[128];
	snprintf(path, sizeof(path), "%s/artifacts/%s", folder, bucket);
	cleanup_dir DIR *d = opendir(path);
	int n = 0;
	if (d == NULL)
		return -1;
	for (const struct dirent *f; (f = readdir(d)) != NULL;)
		n += f->d_name[0] != '.';
	return n;
}

static void names_of_buckets(void **state) {
	(void)state;
	static const char *const good[] = {"abc", "a-b.c", "0123456789", "a2345678901234567890123456789012345678901234567890123456789012"};
	static const char *const bad[] = {
		"",    "ab",  "..",  "...", "a..b", ".ab", "ab.",   "-ab",
		"ab-", "Abc", "a_b", "a/b", "../x", "a b", "abc\n", "a23456789012345678901234567890123456789012345678901234567890123x"};
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_true(artifacts_bucket_name_is_valid(good[i]));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_false(artifacts_bucket_name_is_valid(bad[i]));
		struct error e = {0};
		assert_int_equal(artifacts_create_bucket(artifacts, "000000000000", bad[i], &e), -EINVAL);
		assert_string_equal(e.name, "InvalidBucketName");
	}
}

static void uris(void **state) {
	(void)state;
	char bucket[BUCKET_MAX], uri[1200];
	const char *key;
	assert_true(artifacts_parse_uri("s3://my-bucket/a/b c?.zip", bucket, &key));
	assert_string_equal(bucket, "my-bucket");
	assert_string_equal(key, "a/b c?.zip");
	static const char *const bad[] = {
		"", "s3:/", "s3://", "s3://b", "s3://bucket", "s3://bucket/", "S3://bucket/x", "https://bucket/x", "s3:///x", "s3://../x"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_false(artifacts_parse_uri(bad[i], bucket, &key));
	snprintf(uri, sizeof(uri), "s3://bucket/%01024d", 0);
	assert_true(artifacts_parse_uri(uri, bucket, &key));
	snprintf(uri, sizeof(uri), "s3://bucket/%01025d", 0);
	assert_false(artifacts_parse_uri(uri, bucket, &key));
}

static void objects_are_kept_and_replaced(void **state) {
	(void)state;
	assert_int_equal(put("bucket", "../../etc/passwd", "one", NULL), 0);
	assert_int_equal(put("bucket", "key", "two", NULL), 0);
	assert_int_equal(put("bucket", "key", "three", NULL), 0);
	assert_int_equal(files_in("bucket"), 2);
	close_all_of_it();
	open_all();
	expect("../../etc/passwd", "one");
	expect("key", "three");
	struct error e = {0};
	assert_int_equal(put("nowhere", "key", "x", &e), -ENOENT);
	assert_string_equal(e.name, "NoSuchBucket");
	assert_int_equal(artifacts_delete_bucket(artifacts, "000000000000", "bucket", &e), -ENOENT);
	assert_string_equal(e.name, "BucketNotEmpty");
	assert_int_equal(artifacts_delete_object(artifacts, "bucket", "key", NULL, NULL), 0);
	assert_int_equal(artifacts_delete_object(artifacts, "bucket", "key", NULL, NULL), 0);
	assert_int_equal(artifacts_delete_object(artifacts, "bucket", "../../etc/passwd", NULL, NULL), 0);
	assert_int_equal(files_in("bucket"), 0);
	assert_int_equal(artifacts_delete_bucket(artifacts, "000000000000", "bucket", NULL), 0);
	assert_int_equal(files_in("bucket"), -1);
}

// A reader that has the object open keeps its bytes, whoever replaces or deletes it.
static void an_open_object_stays(void **state) {
	(void)state;
	int fd;
	char got[4] = "";
	assert_int_equal(put("bucket", "key", "old", NULL), 0);
	assert_int_equal(artifacts_open_object(artifacts, "bucket", "key", &fd, NULL, NULL), 0);
	assert_int_equal(put("bucket", "key", "new", NULL), 0);
	assert_int_equal(artifacts_delete_object(artifacts, "bucket", "key", NULL, NULL), 0);
	assert_int_equal(read(fd, got, 3), 3);
	assert_string_equal(got, "old");
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	close(fd);
}

static void limits_are_kept(void **state) {
	(void)state;
	struct object_writer *w;
	struct error e = {0};
	char piece[4096] = "";
	assert_int_equal(artifacts_write_start(artifacts, "bucket", &w, NULL), 0);
	for (int i = 0; i < 256; i++)
		assert_int_equal(artifacts_write(w, piece, sizeof(piece), NULL), 0);
	assert_int_equal(artifacts_write(w, piece, 1, &e), -EFBIG);
	assert_string_equal(e.name, "EntityTooLarge");
	artifacts_write_abort(w);
	assert_int_equal(files_in("bucket"), 0);
}

// Fills the store with objects of `size` bytes until it refuses; returns how many it took.
static int fill(size_t size, const char *refusal) {
	char *body = calloc(1, size + 1);
	struct error e = {0};
	memset(body, 'x', size);
	for (int n = 0;; n++) {
		char key[16];
		snprintf(key, sizeof(key), "full/%03d", n);
		if (put("bucket", key, body, &e) == 0)
			continue;
		free(body);
		assert_string_equal(e.name, refusal);
		assert_int_equal(files_in("bucket"), n); // nothing of the last one
		return n;
	}
}

static void the_store_has_a_size(void **state) {
	(void)state;
	artifacts_limit_total(artifacts, 100000);
	assert_int_equal(fill(30000, "QuotaExceeded"), 3);
	close_all_of_it();
	open_all();
	artifacts_limit_total(artifacts, 100000);
	struct error e = {0};
	char large[30001];
	memset(large, 'x', sizeof(large) - 1);
	large[sizeof(large) - 1] = '\0';
	assert_int_equal(put("bucket", "one more", large, &e), -EDQUOT); // counted anew at the start
	large[10000] = '\0';
	assert_int_equal(put("bucket", "one more", large, &e), 0);
	assert_int_equal(artifacts_delete_object(artifacts, "bucket", "full/000", NULL, NULL), 0);
	assert_int_equal(put("bucket", "full/001", "small", &e), 0); // replaces: 30000 - 5 are free again
	memset(large, 'x', sizeof(large) - 1);
	assert_int_equal(put("bucket", "fits", large, &e), 0);
	assert_int_equal(put("bucket", "does not", large, &e), -EDQUOT);
}

static void a_full_disk_takes_no_more(void **state) {
	(void)state;
	close_all_of_it();
	if (mount("tmpfs", folder, "tmpfs", 0, "size=80m") < 0) {
		print_message("mounting a small disk needs root: not tested\n");
		open_all();
		skip();
	}
	open_all();
	assert_int_equal(artifacts_create_bucket(artifacts, "000000000000", "bucket", NULL), 0);
	int n = fill(1000000, "InsufficientStorage");
	assert_in_range(n, 5, 16); // of the 80 MiB, 64 are kept free for the records
	struct error e = {0};
	assert_int_equal(artifacts_delete_object(artifacts, "bucket", "full/000", NULL, &e), 0);
	assert_int_equal(artifacts_delete_object(artifacts, "bucket", "full/001", NULL, &e), 0);
	assert_int_equal(put("bucket", "again", "content", &e), 0);
	close_all_of_it();
	assert_int_equal(umount(folder), 0);
	open_all();
}

static void old_uploads_are_forgotten(void **state) {
	(void)state;
	char old[UUID_TEXT], fresh[UUID_TEXT];
	struct object_writer *w;
	assert_int_equal(artifacts_upload_start(artifacts, "bucket", "old", "{}", old, NULL), 0);
	assert_int_equal(artifacts_write_start(artifacts, "bucket", &w, NULL), 0);
	assert_int_equal(artifacts_write(w, "part", 4, NULL), 0);
	assert_int_equal(artifacts_upload_part(w, "old", old, 1, NULL), 0);
	{
		DB_LOCKED(store);
		assert_int_equal(
			db_exec(store, NULL, "UPDATE uploads SET created_ms = created_ms - ?", "i", (int64_t)UPLOAD_KEPT_MS + 1000), 1);
	}
	assert_int_equal(artifacts_upload_start(artifacts, "bucket", "fresh", "{}", fresh, NULL), 0);
	assert_int_equal(artifacts_upload_check(artifacts, "bucket", "old", old, NULL), -ENOENT);
	assert_int_equal(artifacts_upload_check(artifacts, "bucket", "fresh", fresh, NULL), 0);
	assert_int_equal(files_in("bucket"), 0);
}

static void leftovers_are_swept(void **state) {
	(void)state;
	struct object_writer *w;
	char path[128], id[UUID_TEXT];
	assert_int_equal(put("bucket", "key", "kept", NULL), 0);
	assert_int_equal(artifacts_upload_start(artifacts, "bucket", "up", "{}", id, NULL), 0);
	assert_int_equal(artifacts_write_start(artifacts, "bucket", &w, NULL), 0);
	assert_int_equal(artifacts_write(w, "part", 4, NULL), 0);
	assert_int_equal(artifacts_upload_part(w, "up", id, 1, NULL), 0);
	// What a crash in mid-write leaves, and what is nobody's.
	snprintf(path, sizeof(path), "%s/artifacts/bucket/12345678-1234-4123-8123-123456789abc", folder);
	assert_int_equal(write_file_durably(path, "half", 4, 0600, NULL), 0);
	snprintf(path, sizeof(path), "%s/artifacts/bucket/notes.txt", folder);
	assert_int_equal(write_file_durably(path, "mine", 4, 0600, NULL), 0);
	assert_int_equal(files_in("bucket"), 4);
	close_all_of_it();
	open_all();
	assert_int_equal(files_in("bucket"), 3);
	expect("key", "kept");
	assert_int_equal(artifacts_upload_check(artifacts, "bucket", "up", id, NULL), 0);
	assert_int_equal(artifacts_upload_abort(artifacts, "bucket", "up", id, NULL), 0);
	assert_int_equal(files_in("bucket"), 2);
}

// A child replaces an object over and over and is killed: the object is whole afterwards, with one file.
static void killed_while_writing(void **state) {
	(void)state;
	assert_int_equal(put("bucket", "key", "0000000000", NULL), 0);
	close_all_of_it();
	for (int round = 0; round < 5; round++) {
		pid_t pid = fork();
		if (pid == 0) {
			open_all();
			for (int i = 0;; i++) {
				char body[16];
				snprintf(body, sizeof(body), "%010d", i);
				if (put("bucket", "key", body, NULL) < 0)
					_exit(1);
			}
		}
		usleep(30000 + (unsigned)round * 7000);
		kill(pid, SIGKILL);
		int status;
		waitpid(pid, &status, 0);
		assert_true(WIFSIGNALED(status));
		open_all();
		int fd;
		char got[11] = "";
		assert_int_equal(artifacts_open_object(artifacts, "bucket", "key", &fd, NULL, NULL), 0);
		assert_int_equal(read(fd, got, 10), 10);
		assert_int_equal(strspn(got, "0123456789"), 10);
		close(fd);
		assert_int_equal(files_in("bucket"), 1);
		close_all_of_it();
	}
	open_all();
}

struct seen {
	char text[512];
};
static int see(const char *key, const struct object *o, void *arg) {
	struct seen *s = arg;
	size_t n = strlen(s->text);
	snprintf(s->text + n, sizeof(s->text) - n, "%s%s ", key, o == NULL ? "*" : "");
	return 0;
}

static void list_is(const char *prefix, const char *delimiter, const char *after, size_t limit, const char *expected, bool more_expected) {
	struct seen s = {""};
	bool more;
	char last[OBJECT_KEY_MAX + 1];
	const struct object_list q = {.bucket = "bucket", .prefix = prefix, .delimiter = delimiter, .after = after, .limit = limit};
	assert_int_equal(artifacts_list(artifacts, &q, see, &s, &more, last, NULL), 0);
	assert_string_equal(s.text, expected);
	assert_int_equal(more, more_expected);
}

static void listing(void **state) {
	(void)state;
	static const char *const keys[] = {"a", "a/1", "a/2", "b//x", "b/y", "c\xc3\xbc", "\xf4\x8f\xbf\xbf"};
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		assert_int_equal(put("bucket", keys[i], "x", NULL), 0);
	list_is("", "", "", 100, "a a/1 a/2 b//x b/y c\xc3\xbc \xf4\x8f\xbf\xbf ", false);
	list_is("", "/", "", 100, "a a/* b/* c\xc3\xbc \xf4\x8f\xbf\xbf ", false);
	list_is("", "/", "a/", 2, "b/* c\xc3\xbc ", true);
	list_is("", "/", "a/1", 1, "a/* ", true);
	list_is("b/", "/", "", 100, "b//* b/y ", false);
	list_is("a/", "", "a/1", 100, "a/2 ", false);
	list_is("a", "", "", 1, "a ", true);
	list_is("zz", "", "", 1, "", false);
	list_is("", "", "\xf4\x8f\xbf\xbf", 1, "", false);
	list_is("", "//", "", 100, "a a/1 a/2 b//* b/y c\xc3\xbc \xf4\x8f\xbf\xbf ", false);
	list_is("", "", "", 0, "", true);
}

// Fetching ----------------------------------------------------------------------------------------------------------------------------

static struct engine server;
static uv_async_t stop_async;

static void stopped(void *arg) {
	(void)arg;
	workers_wait_idle(5000);
	loop_queue_stop(&server);
}
static void on_stop(uv_async_t *a) {
	uv_close((uv_handle_t *)a, NULL);
	api_stop(&server, stopped, NULL);
}
static void *serve(void *arg) {
	(void)arg;
	uv_run(server.loop, UV_RUN_DEFAULT);
	return NULL;
}

static void open_is(struct engine *en, const char *account, const char *uri, int code, const char *name) {
	int fd = -1;
	uint64_t size = 0;
	struct error e = {0};
	int r = artifacts_open_for(en, account, uri, &fd, &size, &e);
	if (r != code)
		fail_msg("%s: %d %s %s", uri, r, e.name, e.message);
	if (code < 0) {
		assert_string_equal(e.name, name);
		assert_true(e.message[0] != '\0');
		return;
	}
	char body[16] = "";
	assert_int_equal(size, 7);
	assert_int_equal(pread(fd, body, sizeof(body), 0), 7);
	assert_string_equal(body, "content");
	close(fd);
}

static void artifacts_of_builds(void **state) {
	(void)state;
	struct config *c = &server.config;
	snprintf(c->state_folder, sizeof(c->state_folder), "%s", folder);
	strcpy(c->api_listen, "127.0.0.1:0");
	strcpy(c->s3_listen, "127.0.0.1:0");
	strcpy(c->region, "us-east-1");
	strcpy(c->artifacts_domain, "localhost");
	c->artifact_limit = 1 << 20;
	server.store = store;
	server.artifacts = artifacts;
	uv_loop_t loop;
	uv_loop_init(&loop);
	server.loop = &loop;
	char policy[] = POLICY_ACCOUNT;
	struct store_key key = {.id = "AKIDFETCH", .secret = "secret", .account = "000000000000", .policy = policy};
	assert_int_equal(store_put_key(store, &key, NULL), 0);
	assert_int_equal(put("bucket", "dir/ü +&.zip", "content", NULL), 0);
	struct error e = {0};
	assert_int_equal(loop_queue_start(&server, &e), 0);
	if (api_start(&server, &e) < 0)
		fail_msg("%s", e.message);
	uv_async_init(&loop, &stop_async, on_stop);
	int port = api_artifacts_port(&server);
	pthread_t thread;
	assert_int_equal(pthread_create(&thread, NULL, serve, NULL), 0);

	// The built-in store.
	open_is(&server, "000000000000", "s3://bucket/dir/ü +&.zip", 0, NULL);
	open_is(&server, NULL, "s3://bucket/dir/ü +&.zip", 0, NULL);
	open_is(&server, "111111111111", "s3://bucket/dir/ü +&.zip", -EACCES, "S3_ACCESS_DENIED");
	open_is(&server, NULL, "s3://bucket/none", -ENOENT, "S3_NO_SUCH_KEY");
	open_is(&server, NULL, "s3://none-such/none", -ENOENT, "S3_NO_SUCH_BUCKET");
	open_is(&server, NULL, "file:///etc/passwd", -EINVAL, "S3_INVALID_OBJECT");

	// The same one, as somebody else's, for an engine with a store of its own.
	char elsewhere[80];
	struct store *own;
	struct artifacts *own_artifacts;
	snprintf(elsewhere, sizeof(elsewhere), "%s/elsewhere", folder);
	assert_int_equal(make_folders(elsewhere, 0700, NULL), 0);
	assert_int_equal(store_open(elsewhere, &own, NULL), 0);
	assert_int_equal(artifacts_start(own, elsewhere, 1 << 20, &own_artifacts, NULL), 0);
	struct engine client = {.config = *c, .artifacts = own_artifacts, .store = own};
	snprintf(client.config.s3_endpoint, sizeof(client.config.s3_endpoint), "http://127.0.0.1:%d", port);
	strcpy(client.config.s3_key_id, "AKIDFETCH");
	strcpy(client.config.s3_key_secret, "secret");
	strcpy(client.config.s3_region, "eu-central-1");
	open_is(&client, NULL, "s3://bucket/dir/ü +&.zip", 0, NULL);
	open_is(&client, NULL, "s3://bucket/none", -ENOENT, "S3_NO_SUCH_KEY");
	open_is(&client, NULL, "s3://none-such/none", -ENOENT, "S3_NO_SUCH_BUCKET");
	strcpy(client.config.s3_key_secret, "wrong");
	open_is(&client, NULL, "s3://bucket/dir/ü +&.zip", -EACCES, "S3_ACCESS_DENIED");
	strcpy(client.config.s3_key_secret, "secret");
	struct artifacts *small;
	assert_int_equal(artifacts_start(own, elsewhere, 6, &small, NULL), 0);
	client.artifacts = small;
	open_is(&client, NULL, "s3://bucket/dir/ü +&.zip", -EFBIG, "S3_INVALID_OBJECT");
	artifacts_stop(small);
	client.artifacts = own_artifacts;
	// The bucket in front of the host's name; below localhost every name leads here.
	snprintf(client.config.s3_endpoint, sizeof(client.config.s3_endpoint), "http://localhost:%d/", port);
	strcpy(client.config.s3_addressing, "virtual");
	open_is(&client, NULL, "s3://bucket/dir/ü +&.zip", 0, NULL);
	strcpy(client.config.s3_endpoint, "http://127.0.0.1:1/");
	open_is(&client, NULL, "s3://bucket/dir/ü +&.zip", -EIO, "INTERNAL_PLATFORM_ERROR");
	// A bucket of the account's own is read where it lies.
	assert_int_equal(artifacts_create_bucket(own_artifacts, "000000000000", "bucket", NULL), 0);
	open_is(&client, "000000000000", "s3://bucket/none", -ENOENT, "S3_NO_SUCH_KEY");
	artifacts_stop(own_artifacts);
	store_close(own);
	assert_int_equal(files_in("bucket"), 1);

	uv_async_send(&stop_async);
	pthread_join(thread, NULL);
	assert_true(workers_wait_idle(5000));
	assert_int_equal(uv_loop_close(&loop), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void) {
	signal(SIGPIPE, SIG_IGN);
	const struct CMUnitTest tests[] = {
		TEST(names_of_buckets),
		TEST(uris),
		TEST(objects_are_kept_and_replaced),
		TEST(an_open_object_stays),
		TEST(limits_are_kept),
		TEST(the_store_has_a_size),
		TEST(a_full_disk_takes_no_more),
		TEST(old_uploads_are_forgotten),
		TEST(leftovers_are_swept),
		TEST(killed_while_writing),
		TEST(listing),
		TEST(artifacts_of_builds),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
