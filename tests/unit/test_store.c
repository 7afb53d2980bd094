// The metadata store: every record written and read back, lists and their cursors, refusals, and what a crash or a damaged file does.
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "store/store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[64];
static struct store *store;

static int set_up(void **state) {
	(void)state;
	snprintf(folder, sizeof(folder), "/tmp/test_store.XXXXXX");
	assert_non_null(mkdtemp(folder));
	struct error e = {0};
	int r = store_open(folder, &store, &e);
	if (r < 0)
		print_error("%s\n", e.message);
	return r;
}

static int tear_down(void **state) {
	(void)state;
	store_close(store);
	store = NULL;
	return remove_tree(folder, NULL);
}

static void reopen(void) {
	store_close(store);
	store = NULL;
	struct error e = {0};
	if (store_open(folder, &store, &e) < 0)
		fail_msg("%s", e.message);
}

// An image whose only version is in the given state.
static int add_image_in(struct store *s, const char *account, const char *name, const char *state, const char *version_state,
			const struct store_token *token, char uuid[UUID_TEXT], struct error *e) {
	struct store_image i = {.created_ms = 1000, .updated_ms = 1000, .tags = (char[]){"{\"a\":\"b\"}"}};
	struct store_version v = {.created_ms = 1000, .updated_ms = 1000, .config = (char[]){"{\"x\":1}"}};
	struct store_build b = {.created_ms = 1000, .memory_bytes = -1, .code_bytes = -1, .disk_bytes = -1};
	uuid_new(i.uuid);
	strcpy(uuid, i.uuid);
	strcpy(i.account, account);
	snprintf(i.name, sizeof(i.name), "%s", name);
	snprintf(i.arn, sizeof(i.arn), "arn:aws:lambda:us-east-1:%s:microvm-image:%s", account, name);
	strcpy(i.state, state);
	strcpy(v.image_uuid, i.uuid);
	strcpy(v.version, "1.0");
	strcpy(v.state, version_state);
	strcpy(v.status, strcmp(version_state, "SUCCESSFUL") == 0 ? "ACTIVE" : "INACTIVE");
	uuid_new(b.build_id);
	strcpy(b.image_uuid, i.uuid);
	strcpy(b.version, "1.0");
	strcpy(b.state, version_state);
	strcpy(b.architecture, "X86_64");
	return store_add_image(s, &i, &v, &b, token, e);
}

static int add_image(const char *account, const char *name, char uuid[UUID_TEXT], struct error *e) {
	return add_image_in(store, account, name, "CREATING", "PENDING", NULL, uuid, e);
}

// One that can be launched.
static void add_usable(struct store *s, const char *name, char uuid[UUID_TEXT]) {
	assert_int_equal(add_image_in(s, "000000000000", name, "CREATED", "SUCCESSFUL", NULL, uuid, NULL), 0);
}

static int add_microvm(struct store *s, const char *image_uuid, const char *image_arn, const char *state, const struct store_token *token,
		       char id[48], struct error *e) {
	struct store_microvm m = {.started_ms = 5,
				  .maximum_duration_s = 28800,
				  .has_idle_policy = true,
				  .max_idle_s = 60,
				  .suspended_s = 7,
				  .auto_resume = true,
				  .config = (char[]){"{\"k\":[1]}"}};
	char uuid[UUID_TEXT];
	uuid_new(uuid);
	snprintf(m.id, sizeof(m.id), "microvm-%s", uuid);
	strcpy(id, m.id);
	strcpy(m.account, "000000000000");
	uuid_new(m.endpoint);
	snprintf(m.image_uuid, sizeof(m.image_uuid), "%s", image_uuid);
	snprintf(m.image_arn, sizeof(m.image_arn), "%s", image_arn);
	strcpy(m.version, "1.0");
	snprintf(m.state, sizeof(m.state), "%s", state);
	return store_add_microvm(s, &m, token, e);
}

static void keys_are_kept(void **state) {
	(void)state;
	struct store_key k = {.id = "AKIDEXAMPLE", .secret = "one", .account = "000000000000"}, got;
	assert_int_equal(store_put_key(store, &k, NULL), 0);
	strcpy(k.secret, "two");
	assert_int_equal(store_put_key(store, &k, NULL), 0);
	reopen();
	assert_int_equal(store_get_key(store, "AKIDEXAMPLE", &got, NULL), 0);
	assert_string_equal(got.secret, "two");
	assert_string_equal(got.account, "000000000000");
	assert_int_equal(store_get_key(store, "akidexample", &got, NULL), -ENOENT);
	assert_int_equal(store_get_key(store, "", &got, NULL), -ENOENT);
}

static int take_build(const struct store_build *from, void *arg) {
	memcpy(arg, from, sizeof(*from));
	return 0;
}

static void image_lives(void **state) {
	(void)state;
	char uuid[UUID_TEXT], other[UUID_TEXT];
	struct error e = {0};
	assert_int_equal(add_image("000000000000", "one", uuid, &e), 0);
	assert_int_equal(add_image("000000000000", "one", other, &e), -EEXIST);
	assert_int_equal(add_image("111111111111", "one", other, &e), 0);
	struct store_version v;
	assert_int_equal(store_get_version(store, uuid, "2.0", &v, NULL), -ENOENT);

	reopen();
	struct store_image i;
	assert_int_equal(store_get_image_by_arn(store, "arn:aws:lambda:us-east-1:000000000000:microvm-image:one", &i, NULL), 0);
	assert_string_equal(i.uuid, uuid);
	assert_string_equal(i.name, "one");
	assert_string_equal(i.tags, "{\"a\":\"b\"}");
	assert_string_equal(i.state, "CREATING");
	assert_int_equal(i.created_ms, 1000);
	assert_int_equal(store_get_version(store, uuid, "1.0", &v, NULL), 0);
	assert_string_equal(v.config, "{\"x\":1}");

	char next[STORE_CURSOR_MAX];
	struct store_build b;
	assert_int_equal(store_list_builds(store, uuid, "1.0", NULL, 10, take_build, &b, next, NULL), 0);
	assert_string_equal(next, "");
	strcpy(i.state, "CREATED");
	strcpy(i.latest_active_version, "1.0");
	strcpy(v.state, "SUCCESSFUL");
	strcpy(v.status, "ACTIVE");
	strcpy(b.state, "SUCCESSFUL");
	b.memory_bytes = (int64_t)1 << 40;
	b.ended_ms = 2000;
	assert_int_equal(store_finish_build(store, &i, &v, &b, NULL), 0);
	store_image_clear(&i);
	store_version_clear(&v);
	assert_int_equal(store_get_build(store, uuid, "1.0", b.build_id, &b, NULL), 0);
	assert_int_equal(b.memory_bytes, (int64_t)1 << 40);
	assert_string_equal(b.state, "SUCCESSFUL");
	assert_int_equal(store_get_build(store, uuid, "1.0", "nope", &b, NULL), -ENOENT);

	assert_int_equal(store_delete_image(store, uuid, NULL), 0);
	assert_int_equal(store_delete_image(store, uuid, NULL), -ENOENT);
	assert_int_equal(store_get_image(store, uuid, &i, NULL), -ENOENT);
	assert_int_equal(store_get_version(store, uuid, "1.0", &v, NULL), -ENOENT);
	assert_int_equal(store_get_build(store, uuid, "1.0", b.build_id, &b, NULL), -ENOENT);
	assert_int_equal(store_get_image(store, other, &i, NULL), 0);
	store_image_clear(&i);
}

static void finish_of_a_missing_build_changes_nothing(void **state) {
	(void)state;
	char uuid[UUID_TEXT];
	assert_int_equal(add_image("000000000000", "one", uuid, NULL), 0);
	struct store_image i;
	assert_int_equal(store_get_image(store, uuid, &i, NULL), 0);
	struct store_version v;
	assert_int_equal(store_get_version(store, uuid, "1.0", &v, NULL), 0);
	struct store_build b = {.build_id = "00000000-0000-4000-8000-000000000000"};
	strcpy(i.state, "CREATED");
	assert_int_equal(store_finish_build(store, &i, &v, &b, NULL), -ENOENT);
	store_image_clear(&i);
	store_version_clear(&v);
	assert_int_equal(store_get_image(store, uuid, &i, NULL), 0);
	assert_string_equal(i.state, "CREATING");
	store_image_clear(&i);
}

static char empty_answer[] = "{}";

static struct store_token token_of(const char *account, const char *operation, const char *token) {
	return (struct store_token){.account = account, .operation = operation, .token = token, .digest = "d", .answer = empty_answer};
}

static void client_tokens_are_kept(void **state) {
	(void)state;
	char uuid[UUID_TEXT], id[48], digest[STORE_DIGEST], *answer = NULL;
	struct store_token create = token_of("000000000000", "Create", "tok"), other = token_of("111111111111", "Create", "tok"),
			   run = token_of("000000000000", "Run", "tok");
	create.answer = (char[]){"{\"a\":1}"};
	assert_int_equal(add_image_in(store, "000000000000", "one", "CREATED", "SUCCESSFUL", &create, uuid, NULL), 0);
	char spare[UUID_TEXT];
	assert_int_equal(add_image_in(store, "000000000000", "two", "CREATED", "SUCCESSFUL", &create, spare, NULL), -EEXIST);
	struct store_image i;
	assert_int_equal(store_get_image(store, spare, &i, NULL), -ENOENT); // nothing half-done
	assert_int_equal(add_image_in(store, "111111111111", "two", "CREATED", "SUCCESSFUL", &other, spare, NULL), 0);
	assert_int_equal(add_microvm(store, uuid, "a", "TERMINATED", &run, id, NULL), 0);
	assert_int_equal(add_microvm(store, uuid, "a", "RUNNING", &run, id, NULL), -EEXIST);
	struct store_microvm m;
	assert_int_equal(store_get_microvm(store, id, &m, NULL), -ENOENT);

	assert_int_equal(store_delete_image(store, uuid, NULL), 0);
	reopen();
	assert_int_equal(store_get_token(store, "000000000000", "Create", "tok", digest, &answer, NULL), 0);
	assert_string_equal(digest, "d");
	assert_string_equal(answer, "{\"a\":1}");
	free(answer);
	assert_int_equal(store_get_token(store, "000000000000", "Create", "tok2", digest, &answer, NULL), -ENOENT);
	assert_int_equal(store_get_token(store, "111111111111", "Run", "tok", digest, &answer, NULL), -ENOENT);
}

static void run_sql(const char *sql) {
	char path[128], *why = NULL;
	sqlite3 *db;
	snprintf(path, sizeof(path), "%s/stasis.db", folder);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	if (sqlite3_exec(db, sql, NULL, NULL, &why) != SQLITE_OK)
		fail_msg("%s", why);
	sqlite3_close(db);
}

static void client_tokens_are_bounded(void **state) {
	(void)state;
	char uuid[UUID_TEXT], id[48], digest[STORE_DIGEST], name[16], *answer = NULL;
	struct error e = {0};
	add_usable(store, "one", uuid);
	// Large answers, so that few tokens are too many.
	size_t size = 16 << 20;
	char *large = malloc(size);
	memset(large, ' ', size - 1);
	large[size - 1] = '\0';
	int r = 0, n;
	for (n = 0; n < 40 && r == 0; n++) {
		snprintf(name, sizeof(name), "t%d", n);
		struct store_token t = token_of("000000000000", "Run", name);
		t.answer = large;
		r = add_microvm(store, uuid, "a", "RUNNING", &t, id, &e);
	}
	free(large);
	assert_int_equal(r, -EDQUOT);
	assert_string_equal(e.name, "ThrottlingException");
	assert_int_equal(n, 16); // fifteen of 16 MiB and a little more fit
	struct store_token more = token_of("000000000000", "Run", "more"), other = token_of("111111111111", "Run", "more");
	assert_int_equal(add_microvm(store, uuid, "a", "RUNNING", &other, id, NULL), 0); // only the account's own count
	// A day later the oldest make room.
	run_sql("UPDATE client_tokens SET created_ms = created_ms - 86400001 WHERE token IN ('t0', 't1')");
	reopen();
	assert_int_equal(add_microvm(store, uuid, "a", "RUNNING", &more, id, NULL), 0);
	assert_int_equal(store_get_token(store, "000000000000", "Run", "t1", digest, &answer, NULL), -ENOENT);
	assert_int_equal(store_get_token(store, "000000000000", "Run", "t2", digest, &answer, NULL), 0);
	free(answer);
}

static void new_version(const char *image_uuid, const char *number, struct store_version *v, struct store_build *b) {
	static char config[] = "{\"x\":2}";
	*v = (struct store_version){.created_ms = 2000, .updated_ms = 2000, .config = config};
	*b = (struct store_build){.created_ms = 2000, .memory_bytes = -1, .code_bytes = -1, .disk_bytes = -1};
	strcpy(v->image_uuid, image_uuid);
	strcpy(v->version, number);
	strcpy(v->state, "PENDING");
	strcpy(v->status, "INACTIVE");
	uuid_new(b->build_id);
	strcpy(b->image_uuid, image_uuid);
	strcpy(b->version, number);
	strcpy(b->state, "PENDING");
	strcpy(b->architecture, "X86_64");
}

static void expect_image(const char *uuid, const char *state, const char *active, const char *failed) {
	struct store_image i;
	assert_int_equal(store_get_image(store, uuid, &i, NULL), 0);
	assert_string_equal(i.state, state);
	assert_string_equal(i.latest_active_version, active);
	assert_string_equal(i.latest_failed_version, failed);
	store_image_clear(&i);
}

// Builds a further version to this end.
static void build_version(const char *uuid, const char *number, bool good) {
	struct store_version v;
	struct store_build b;
	struct store_image i = {.updated_ms = 3000};
	char state[STATE_TEXT];
	new_version(uuid, number, &v, &b);
	assert_int_equal(store_add_version(store, &v, &b, NULL, state, NULL), 0);
	strcpy(i.uuid, uuid);
	strcpy(i.state, good ? "UPDATED" : "UPDATE_FAILED");
	strcpy(v.state, good ? "SUCCESSFUL" : "FAILED");
	strcpy(v.status, good ? "ACTIVE" : "INACTIVE");
	strcpy(b.state, v.state);
	assert_int_equal(store_begin_build(store, &v, &b, NULL), 0);
	assert_int_equal(store_finish_build(store, &i, &v, &b, NULL), 0);
}

static void versions_follow_their_rules(void **state) {
	(void)state;
	char uuid[UUID_TEXT], in[STATE_TEXT];
	struct store_version v;
	struct store_build b;
	add_usable(store, "one", uuid);
	new_version(uuid, "3.0", &v, &b);
	assert_int_equal(store_add_version(store, &v, &b, NULL, in, NULL), -ESTALE); // 2.0 is next
	new_version(uuid, "2.0", &v, &b);
	assert_int_equal(store_add_version(store, &v, &b, NULL, in, NULL), 0);
	expect_image(uuid, "UPDATING", "", ""); // as it was put there
	new_version(uuid, "3.0", &v, &b);
	assert_int_equal(store_add_version(store, &v, &b, NULL, in, NULL), -EBUSY);
	assert_string_equal(in, "UPDATING");
	assert_int_equal(store_set_version_status(store, uuid, "1.0", "INACTIVE", 1, in, NULL), -EBUSY);
	assert_int_equal(store_begin_delete_version(store, uuid, "1.0", 1, in, NULL), -EBUSY);
	assert_int_equal(store_begin_delete_image(store, uuid, 1, in, NULL), -EBUSY);
	struct store_image i = {.state = "UPDATE_FAILED"};
	strcpy(i.uuid, uuid);
	new_version(uuid, "2.0", &v, &b);
	struct store_build real;
	char next[STORE_CURSOR_MAX];
	assert_int_equal(store_list_builds(store, uuid, "2.0", NULL, 1, take_build, &real, next, NULL), 0);
	strcpy(v.state, "FAILED");
	strcpy(real.state, "FAILED");
	assert_int_equal(store_finish_build(store, &i, &v, &real, NULL), 0);
	expect_image(uuid, "UPDATE_FAILED", "1.0", "2.0");
	assert_int_equal(store_set_version_status(store, uuid, "2.0", "ACTIVE", 1, in, NULL), -EINVAL);
	build_version(uuid, "3.0", true);
	expect_image(uuid, "UPDATED", "3.0", "2.0");
	assert_int_equal(store_set_version_status(store, uuid, "3.0", "INACTIVE", 1, in, NULL), 0);
	expect_image(uuid, "UPDATED", "1.0", "2.0");
	assert_int_equal(store_set_version_status(store, uuid, "9.0", "INACTIVE", 1, in, NULL), -ENOENT);
	assert_int_equal(store_begin_delete_version(store, uuid, "9.0", 1, in, NULL), -ENOENT);

	// A failed version goes, and its number with it.
	assert_int_equal(store_begin_delete_version(store, uuid, "2.0", 1, in, NULL), 0);
	expect_image(uuid, "UPDATING", "1.0", "");
	assert_int_equal(store_begin_delete_version(store, uuid, "2.0", 1, in, NULL), -EALREADY);
	assert_int_equal(store_begin_delete_version(store, uuid, "1.0", 1, in, NULL), -EBUSY);
	assert_int_equal(store_fail_delete(store, uuid, "2.0", "why", 1, NULL), 0);
	expect_image(uuid, "UPDATE_FAILED", "1.0", "");
	assert_int_equal(store_get_version(store, uuid, "2.0", &v, NULL), 0);
	assert_string_equal(v.state, "DELETE_FAILED");
	assert_string_equal(v.state_reason, "why");
	store_version_clear(&v);
	assert_int_equal(store_set_version_status(store, uuid, "2.0", "ACTIVE", 1, in, NULL), -EINVAL);
	assert_int_equal(store_begin_delete_version(store, uuid, "2.0", 1, in, NULL), 0);
	assert_int_equal(store_delete_version(store, uuid, "2.0", 5, NULL), 0);
	assert_int_equal(store_delete_version(store, uuid, "2.0", 5, NULL), -ENOENT);
	expect_image(uuid, "UPDATED", "1.0", "");
	assert_int_equal(store_begin_delete_version(store, uuid, "3.0", 1, in, NULL), 0);
	assert_int_equal(store_delete_version(store, uuid, "3.0", 5, NULL), 0);
	assert_int_equal(store_begin_delete_version(store, uuid, "1.0", 1, in, NULL), -EPERM);
	build_version(uuid, "4.0", true);
	expect_image(uuid, "UPDATED", "4.0", "");
}

static void nothing_is_launched_from_what_goes(void **state) {
	(void)state;
	char uuid[UUID_TEXT], id[48], in[STATE_TEXT];
	add_usable(store, "one", uuid);
	build_version(uuid, "2.0", true);
	assert_int_equal(add_microvm(store, uuid, "a", "RUNNING", NULL, id, NULL), 0);
	assert_int_equal(store_begin_delete_image(store, uuid, 1, in, NULL), -ETXTBSY);
	assert_int_equal(store_begin_delete_version(store, uuid, "1.0", 1, in, NULL), -ETXTBSY);
	assert_int_equal(store_set_version_status(store, uuid, "1.0", "INACTIVE", 1, in, NULL), 0); // which leaves it running
	char other[48];
	struct store_token t = token_of("000000000000", "Run", "t");
	assert_int_equal(add_microvm(store, uuid, "a", "RUNNING", &t, other, NULL), -ENOENT);
	assert_int_equal(store_set_version_status(store, uuid, "1.0", "ACTIVE", 1, in, NULL), 0);
	assert_int_equal(add_microvm(store, uuid, "a", "TERMINATED", &t, other, NULL), 0); // a call that failed leaves no token
	struct store_microvm m;
	assert_int_equal(store_get_microvm(store, id, &m, NULL), 0);
	strcpy(m.state, "TERMINATED");
	assert_int_equal(store_update_microvm(store, &m, NULL), 0);
	store_microvm_clear(&m);
	assert_int_equal(store_begin_delete_image(store, uuid, 1, in, NULL), 0);
	assert_int_equal(store_begin_delete_image(store, uuid, 1, in, NULL), -EALREADY);
	assert_int_equal(add_microvm(store, uuid, "a", "RUNNING", NULL, other, NULL), -ENOENT);
	assert_int_equal(store_fail_delete(store, uuid, NULL, "", 1, NULL), 0);
	expect_image(uuid, "DELETE_FAILED", "2.0", "");
	assert_int_equal(add_microvm(store, uuid, "a", "RUNNING", NULL, other, NULL), -ENOENT);
	assert_int_equal(store_begin_delete_image(store, uuid, 1, in, NULL), 0);
	assert_int_equal(store_delete_image(store, uuid, NULL), 0);
	assert_int_equal(store_begin_delete_image(store, uuid, 1, in, NULL), -ENOENT);
}

static void expect_tags(const char *uuid, const char *tags) {
	struct store_image i;
	assert_int_equal(store_get_image(store, uuid, &i, NULL), 0);
	assert_string_equal(i.tags, tags);
	store_image_clear(&i);
}

static void tags_are_merged(void **state) {
	(void)state;
	char uuid[UUID_TEXT], many[2048] = "{";
	add_usable(store, "one", uuid);
	assert_int_equal(store_patch_image_tags(store, uuid, "{\"c\":\"\u00e4\",\"a\":\"z\"}", NULL), 0);
	expect_tags(uuid, "{\"a\":\"z\",\"c\":\"\u00e4\"}");
	assert_int_equal(store_patch_image_tags(store, uuid, "{\"a\":null,\"none\":null}", NULL), 0);
	expect_tags(uuid, "{\"c\":\"\u00e4\"}");
	for (int i = 0; i < STORE_TAGS_MAX; i++)
		snprintf(many + strlen(many), sizeof(many) - strlen(many), "%s\"k%d\":\"\"", i == 0 ? "" : ",", i);
	strcat(many, "}");
	assert_int_equal(store_patch_image_tags(store, uuid, many, NULL), -E2BIG);
	expect_tags(uuid, "{\"c\":\"\u00e4\"}");
	assert_int_equal(store_patch_image_tags(store, uuid, "{\"c\":null}", NULL), 0);
	assert_int_equal(store_patch_image_tags(store, uuid, many, NULL), 0);
	assert_int_equal(store_patch_image_tags(store, "none", "{}", NULL), -ENOENT);
}

struct seen {
	size_t n;
	char ids[64][48];
};
static int see(const struct store_microvm *m, void *arg) {
	struct seen *s = arg;
	assert_true(s->n < 64);
	strcpy(s->ids[s->n++], m->id);
	// A callback may use the store.
	struct store_microvm again;
	assert_int_equal(store_get_microvm(store, m->id, &again, NULL), 0);
	store_microvm_clear(&again);
	return 0;
}

static void microvms_are_listed_in_pages(void **state) {
	(void)state;
	char uuid[UUID_TEXT], ids[25][48], next[STORE_CURSOR_MAX] = "", from[STORE_CURSOR_MAX];
	add_usable(store, "one", uuid);
	for (int i = 0; i < 25; i++)
		assert_int_equal(
			add_microvm(store, uuid, i % 2 == 0 ? "even" : "odd", i < 5 ? "TERMINATED" : "RUNNING", NULL, ids[i], NULL), 0);
	struct seen s = {0};
	struct store_microvm_filter all = {0}, even = {.image_arn = "even", .version = "1.0", .account = "000000000000"},
				    living = {.living = true}, none = {.account = "999999999999"},
				    both = {.image_arn = "even", .living = true}, wrong = {.version = "9.0"};
	int pages = 0;
	do {
		strcpy(from, next);
		assert_int_equal(store_list_microvms(store, &all, from, 10, see, &s, next, NULL), 0);
		pages++;
	} while (next[0] != '\0');
	assert_int_equal(pages, 3);
	assert_int_equal(s.n, 25);
	for (int i = 0; i < 25; i++)
		assert_string_equal(s.ids[i], ids[24 - i]);
	s.n = 0;
	assert_int_equal(store_list_microvms(store, &all, NULL, 25, see, &s, next, NULL), 0);
	assert_string_equal(next, "");
	s.n = 0;
	assert_int_equal(store_list_microvms(store, &even, NULL, 50, see, &s, next, NULL), 0);
	assert_int_equal(s.n, 13);
	s.n = 0;
	assert_int_equal(store_list_microvms(store, &living, NULL, 50, see, &s, next, NULL), 0);
	assert_int_equal(s.n, 20);
	s.n = 0;
	assert_int_equal(store_list_microvms(store, &both, NULL, 50, see, &s, next, NULL), 0);
	assert_int_equal(s.n, 10);
	s.n = 0;
	assert_int_equal(store_list_microvms(store, &none, NULL, 50, see, &s, next, NULL), 0);
	assert_int_equal(store_list_microvms(store, &wrong, NULL, 50, see, &s, next, NULL), 0);
	assert_int_equal(s.n, 0);
	assert_int_equal(store_list_microvms(store, &all, "12x", 50, see, &s, next, NULL), -EINVAL);
	assert_int_equal(store_list_microvms(store, &all, "-1", 50, see, &s, next, NULL), -EINVAL);
	assert_int_equal(store_list_microvms(store, &all, "99999999999999999999", 50, see, &s, next, NULL), -EINVAL);

	struct store_counts c;
	assert_int_equal(store_count(store, &c, NULL), 0);
	assert_int_equal(c.microvms_running, 20);
	assert_int_equal(c.microvms_terminated, 5);
}

static void microvm_is_updated(void **state) {
	(void)state;
	char uuid[UUID_TEXT], id[48];
	add_usable(store, "one", uuid);
	assert_int_equal(add_microvm(store, uuid, "a", "PENDING", NULL, id, NULL), 0);
	struct store_microvm m;
	assert_int_equal(store_get_microvm(store, id, &m, NULL), 0);
	strcpy(m.state, "SUSPENDED");
	strcpy(m.state_reason, "because 'quotes'; DROP TABLE microvms");
	m.suspended_at_ms = 77;
	uuid_new(m.vmm);
	assert_int_equal(store_update_microvm(store, &m, NULL), 0);
	reopen();
	struct store_microvm got;
	assert_int_equal(store_get_microvm_by_endpoint(store, m.endpoint, &got, NULL), 0);
	assert_string_equal(got.state, "SUSPENDED");
	assert_string_equal(got.state_reason, m.state_reason);
	assert_string_equal(got.vmm, m.vmm);
	assert_int_equal(got.suspended_at_ms, 77);
	assert_int_equal(got.max_idle_s, 60);
	assert_true(got.auto_resume && got.has_idle_policy);
	assert_string_equal(got.config, "{\"k\":[1]}");
	strcpy(got.id, "microvm-none");
	assert_int_equal(store_update_microvm(store, &got, NULL), -ENOENT);
	store_microvm_clear(&m);
	store_microvm_clear(&got);
}

static int count_stage(const struct store_stage *g, void *arg) {
	int *n = arg;
	if (*n == 0)
		assert_string_equal(g->name, "restore");
	(*n)++;
	return 0;
}

static void stages_are_kept_and_bounded(void **state) {
	(void)state;
	for (int i = 0; i < STORE_STAGES_MAX + 40; i++)
		assert_int_equal(store_add_stage(store, "microvm-x", i == 40 ? "restore" : "hook", i, 5, i == 3 ? NULL : "d", NULL), 0);
	assert_int_equal(store_add_stage(store, "u/1.0", "restore", 1, 2, "", NULL), 0);
	int n = 0;
	assert_int_equal(store_list_stages(store, "microvm-x", count_stage, &n, NULL), 0);
	assert_int_equal(n, STORE_STAGES_MAX);
	char uuid[UUID_TEXT], subject[64];
	assert_int_equal(add_image("000000000000", "one", uuid, NULL), 0);
	snprintf(subject, sizeof(subject), "%s/1.0", uuid);
	assert_int_equal(store_add_stage(store, subject, "restore", 1, 2, "", NULL), 0);
	assert_int_equal(store_delete_image(store, uuid, NULL), 0);
	n = 0;
	assert_int_equal(store_list_stages(store, subject, count_stage, &n, NULL), 0);
	assert_int_equal(n, 0);
	assert_int_equal(store_list_stages(store, "u/1.0", count_stage, &n, NULL), 0);
	assert_int_equal(n, 1);
}

static void secrets_stay(void **state) {
	(void)state;
	unsigned char a[32], b[32], c[32];
	assert_int_equal(store_secret(store, "cursor", a, sizeof(a), NULL), 0);
	assert_int_equal(store_secret(store, "other", c, sizeof(c), NULL), 0);
	assert_memory_not_equal(a, c, 32);
	reopen();
	assert_int_equal(store_secret(store, "cursor", b, sizeof(b), NULL), 0);
	assert_memory_equal(a, b, 32);
	assert_int_equal(store_secret(store, "cursor", b, 16, NULL), -EUCLEAN);
}

static void a_second_engine_is_refused(void **state) {
	(void)state;
	struct store *second = NULL;
	struct error e = {0};
	assert_int_equal(store_open(folder, &second, &e), -EBUSY);
	assert_non_null(strstr(e.message, "another stasisd"));
}

// A child writes records and says after each that it was acknowledged; it is killed at a random moment; all that it acknowledged is there.
static void kill_during_writes_loses_nothing(void **state) {
	(void)state;
	char uuid[UUID_TEXT];
	add_usable(store, "one", uuid);
	store_close(store);
	store = NULL;
	unsigned seed = (unsigned)realtime_ns();
	print_message("seed %u\n", seed);
	size_t total = 0;
	for (int round = 0; round < 8; round++) {
		int p[2];
		assert_int_equal(pipe(p), 0);
		pid_t pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) {
			struct store *s;
			if (store_open(folder, &s, NULL) < 0)
				_exit(1);
			for (;;) {
				char id[48];
				if (add_microvm(s, uuid, "a", "RUNNING", NULL, id, NULL) < 0 || write(p[1], id, sizeof(id)) != sizeof(id))
					_exit(2);
			}
		}
		close(p[1]);
		usleep(20000 + (unsigned)rand_r(&seed) % 60000);
		kill(pid, SIGKILL);
		int status;
		waitpid(pid, &status, 0);
		assert_true(WIFSIGNALED(status));
		reopen();
		char id[48];
		while (read_full(p[0], id, sizeof(id)) == 0) {
			struct store_microvm m;
			assert_int_equal(store_get_microvm(store, id, &m, NULL), 0);
			store_microvm_clear(&m);
			total++;
		}
		close(p[0]);
		store_close(store);
		store = NULL;
	}
	assert_true(total > 0);
	reopen();
}

static void damaged_files_are_named(void **state) {
	(void)state;
	char path[128], uuid[UUID_TEXT];
	for (int i = 0; i < 50; i++) {
		char name[16];
		snprintf(name, sizeof(name), "i%d", i);
		assert_int_equal(add_image("000000000000", name, uuid, NULL), 0);
	}
	store_close(store);
	store = NULL;
	snprintf(path, sizeof(path), "%s/stasis.db", folder);
	int fd = open(path, O_RDWR);
	unsigned char junk[4096];
	memset(junk, 0xa5, sizeof(junk));
	for (off_t at = 8192; at < lseek(fd, 0, SEEK_END); at += 8192)
		assert_int_equal(pwrite(fd, junk, sizeof(junk), at), sizeof(junk));
	struct error e = {0};
	assert_int_equal(store_open(folder, &store, &e), -EUCLEAN);
	assert_non_null(strstr(e.message, "damaged"));
	assert_non_null(strstr(e.message, path));
	assert_int_equal(pwrite(fd, junk, sizeof(junk), 0), sizeof(junk));
	assert_int_equal(store_open(folder, &store, &e), -EUCLEAN);
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(pwrite(fd, "short", 5, 0), 5);
	assert_int_equal(store_open(folder, &store, &e), -EUCLEAN);
	close(fd);
}

static void a_newer_layout_is_refused(void **state) {
	(void)state;
	char path[128];
	store_close(store);
	store = NULL;
	snprintf(path, sizeof(path), "%s/stasis.db", folder);
	sqlite3 *db;
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "PRAGMA user_version = 9999", NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
	struct error e = {0};
	assert_int_equal(store_open(folder, &store, &e), -EPROTO);
	assert_non_null(strstr(e.message, "newer"));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void) {
	const struct CMUnitTest tests[] = {
		TEST(keys_are_kept),
		TEST(image_lives),
		TEST(finish_of_a_missing_build_changes_nothing),
		TEST(client_tokens_are_kept),
		TEST(client_tokens_are_bounded),
		TEST(versions_follow_their_rules),
		TEST(nothing_is_launched_from_what_goes),
		TEST(tags_are_merged),
		TEST(microvms_are_listed_in_pages),
		TEST(microvm_is_updated),
		TEST(stages_are_kept_and_bounded),
		TEST(secrets_stay),
		TEST(a_second_engine_is_refused),
		TEST(kill_during_writes_loses_nothing),
		TEST(damaged_files_are_named),
		TEST(a_newer_layout_is_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
