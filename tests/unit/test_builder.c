// The build program's parts: what it accepts in a zip and how it unpacks it, what it remembers of buildah's output, how layers are merged,
// and how buildah's store is read. The whole program, with buildah, is tested by tests/e2e/test_builder.
#include "base/cleanup.h"
#include "base/io.h"
#include "images/builder/archive.h"
#include "images/builder/image.h"
#include "images/builder/run.h"
#include "images/builder/tree.h"

#include <archive.h>
#include <archive_entry.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <locale.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

static const struct archive_limits generous = {.bytes = 64 << 20, .entries = 1000};
static char folder[64];
static uint8_t zip[4 << 20];
static bool zip_stored; // without compression

static int set_up(void **state) {
	snprintf(folder, sizeof(folder), "/tmp/test_builder.XXXXXX");
	return mkdtemp(folder) != NULL && chdir(folder) == 0 ? 0 : -1;
}

static int tear_down(void **state) {
	return chdir("/") == 0 ? remove_tree(folder, NULL) : -1;
}

// Zips ------------------------------------------------------------------------------------------------------------------------------

struct part {
	const char *name, *content; // of a link: its target
	mode_t mode;                // 0: a file, 0644
};

static struct archive_source make_zip(const struct part *parts, size_t count) {
	size_t used = 0;
	struct archive *a = archive_write_new();
	archive_write_set_format_zip(a);
	if (zip_stored)
		archive_write_zip_set_compression_store(a);
	assert_int_equal(archive_write_open_memory(a, zip, sizeof(zip), &used), ARCHIVE_OK);
	for (size_t i = 0; i < count; i++) {
		struct archive_entry *entry = archive_entry_new();
		mode_t mode = parts[i].mode != 0 ? parts[i].mode : S_IFREG | 0644;
		archive_entry_copy_pathname(entry, parts[i].name);
		archive_entry_set_mode(entry, mode);
		if (S_ISLNK(mode))
			archive_entry_copy_symlink(entry, parts[i].content);
		else
			archive_entry_set_size(entry, (la_int64_t)strlen(parts[i].content));
		assert_true(archive_write_header(a, entry) >= ARCHIVE_WARN);
		if (S_ISREG(mode))
			archive_write_data(a, parts[i].content, strlen(parts[i].content));
		archive_entry_free(entry);
	}
	archive_write_close(a);
	archive_write_free(a);
	return (struct archive_source){.fd = -1, .data = zip, .size = used};
}

#define ZIP(...) make_zip((const struct part[]){__VA_ARGS__}, sizeof((const struct part[]){__VA_ARGS__}) / sizeof(struct part))

static int check(struct archive_source s, struct archive_summary *sum, struct error *e) {
	*e = (struct error){0};
	return archive_check(&s, &generous, "Dockerfile", sum, e);
}

static void assert_refused(struct archive_source s, const char *because) {
	struct archive_summary sum;
	struct error e;
	assert_int_equal(check(s, &sum, &e), -EBADMSG);
	assert_string_equal(e.name, "ARCHIVE_INVALID");
	if (strstr(e.message, because) == NULL)
		fail_msg("'%s' does not say '%s'", e.message, because);
	// What the check refuses the unpacking refuses as well, when it comes to it.
	assert_true(archive_unpack(&s, &generous, &sum, &e) < 0);
}

static void test_names(void **state) {
	static const char *const safe[] = {"a", "a/b", "./a", "a/", "a//b", "a/./b", "..a", "a..", "a/...", "é/ü", "a b", "-"};
	static const char *const bad[] = {"",     "/",    "/a",    "..",       "../a",         "a/../b",          "a/..",
					  "./..", "\xff", "a\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80"};
	for (size_t i = 0; i < sizeof(safe) / sizeof(safe[0]); i++)
		if (!archive_name_is_safe(safe[i]))
			fail_msg("'%s' was refused", safe[i]);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (archive_name_is_safe(bad[i]))
			fail_msg("'%s' was accepted", bad[i]);
	char longest[5000];
	memset(longest, 'a', sizeof(longest));
	longest[255] = 0;
	assert_true(archive_name_is_safe(longest));
	longest[255] = 'a';
	longest[256] = 0;
	assert_false(archive_name_is_safe(longest));
	memset(longest, 'a', sizeof(longest));
	for (size_t i = 0; i < sizeof(longest); i += 2)
		longest[i] = '/';
	longest[0] = 'a';
	longest[4999] = 0;
	assert_false(archive_name_is_safe(longest));
}

static void test_links(void **state) {
	assert_true(archive_link_is_safe("a", "b"));
	assert_true(archive_link_is_safe("a/b", "../c"));
	assert_true(archive_link_is_safe("a/b/c", "../../d"));
	assert_true(archive_link_is_safe("./a/b", "../c"));
	assert_true(archive_link_is_safe("a", "."));
	assert_true(archive_link_is_safe("a", "b/../c"));
	assert_false(archive_link_is_safe("a", ".."));
	assert_false(archive_link_is_safe("a", "../b"));
	assert_false(archive_link_is_safe("a/b", "../../c"));
	assert_false(archive_link_is_safe("a", "b/../../c"));
	assert_false(archive_link_is_safe("a", "/etc"));
	assert_false(archive_link_is_safe("a", ""));
	assert_false(archive_link_is_safe(".", "a"));
	assert_false(archive_link_is_safe("../a", "b"));
}

static void test_dockerfile(void **state) {
	struct archive_summary sum;
	struct error e;
	assert_int_equal(check(ZIP({"Dockerfile", "FROM x", 0}, {"a/b", "12", 0}), &sum, &e), 0);
	assert_true(sum.has_dockerfile);
	assert_int_equal(sum.entries, 2);
	assert_int_equal(check(ZIP({"./Dockerfile", "FROM x", 0}), &sum, &e), 0);
	assert_true(sum.has_dockerfile);
	assert_int_equal(check(ZIP({"app/Dockerfile", "FROM x", 0}, {"b/Dockerfile", "FROM x", 0}), &sum, &e), 0);
	assert_false(sum.has_dockerfile);
	assert_string_equal(sum.elsewhere, "app/Dockerfile");
	assert_int_equal(check(ZIP({"dockerfile", "FROM x", 0}), &sum, &e), 0);
	assert_false(sum.has_dockerfile);
	assert_string_equal(sum.elsewhere, "dockerfile");
	assert_int_equal(check(ZIP({"Dockerfile", "", S_IFDIR | 0755}), &sum, &e), 0);
	assert_false(sum.has_dockerfile);
}

static void test_refused(void **state) {
	assert_refused(ZIP({"../evil", "x", 0}), "'../evil'");
	assert_refused(ZIP({"/etc/evil", "x", 0}), "absolute");
	assert_refused(ZIP({"a/../../b", "x", 0}), "'..'");
	assert_refused(ZIP({"l", "../x", S_IFLNK | 0777}), "leads out");
	assert_refused(ZIP({"l", "/x", S_IFLNK | 0777}), "leads out");
	assert_refused(ZIP({"ok", "x", 0}, {"bad\x01\n/../name", "x", 0}), "bad?"
									   "?/../name");
	assert_refused((struct archive_source){.fd = -1, .data = zip, .size = 0}, "empty");
	memset(zip, 'x', 1000);
	assert_refused((struct archive_source){.fd = -1, .data = zip, .size = 1000}, "not a readable zip");
}

// APPNOTE.TXT 4.4.5: the method stands 8 bytes into a file's local header and 10 bytes into its entry of the central directory.
static void set_method(struct archive_source s, uint8_t method) {
	for (uint64_t i = 0; i + 12 <= s.size; i++) {
		if (memcmp(s.data + i, "PK\3\4", 4) == 0)
			zip[i + 8] = method;
		if (memcmp(s.data + i, "PK\1\2", 4) == 0)
			zip[i + 10] = method;
	}
}

static void test_methods(void **state) {
	struct archive_source s = ZIP({"Dockerfile", "FROM x", 0});
	struct archive_summary sum;
	struct error e;
	assert_int_equal(check(s, &sum, &e), 0);
	set_method(s, 14);
	assert_refused(s, "another method than deflate (lzma)");
	set_method(s, 98);
	assert_refused(s, "make the zip with 'zip -r");
}

static void test_cut_anywhere(void **state) {
	struct archive_source whole = ZIP({"Dockerfile", "FROM x", 0}, {"a/b", "12345", 0}, {"c", "6789", 0});
	for (uint64_t size = 0; size < whole.size; size++) {
		struct archive_source cut = whole;
		struct archive_summary sum;
		struct error e;
		cut.size = size;
		if (check(cut, &sum, &e) != -EBADMSG)
			fail_msg("cut at %ju of %ju: accepted", (uintmax_t)size, (uintmax_t)whole.size);
	}
}

static void test_limits(void **state) {
	struct archive_source s = ZIP({"a", "12345", 0}, {"b", "12345", 0});
	struct archive_summary sum;
	struct error e = {0};
	struct archive_limits exact = {.bytes = 10, .entries = 2}, few = {.bytes = 10, .entries = 1}, small = {.bytes = 9, .entries = 2};
	assert_int_equal(archive_check(&s, &exact, "Dockerfile", &sum, &e), 0);
	assert_int_equal(archive_unpack(&s, &exact, &sum, &e), 0);
	assert_int_equal(sum.bytes, 10);
	assert_int_equal(archive_check(&s, &few, "Dockerfile", &sum, &e), -EBADMSG);
	assert_int_equal(archive_unpack(&s, &few, &sum, &e), -EBADMSG);
	assert_int_equal(archive_unpack(&s, &small, &sum, &e), -EBADMSG);
	assert_string_equal(e.name, "ARCHIVE_INVALID");
}

static mode_t mode_of(const char *path) {
	struct stat st;
	assert_int_equal(lstat(path, &st), 0);
	return st.st_mode;
}

static void test_unpack(void **state) {
	struct archive_source s = ZIP({"run", "#!", S_IFREG | 0755}, {"set", "", S_IFREG | 06755}, {"secret", "", S_IFREG | 0200},
				      {"d/", "", S_IFDIR | 0500}, {"d/é", "ü", 0}, {"d/l", "é", S_IFLNK | 0777}, {"plain", "", S_IFREG});
	struct archive_summary sum;
	struct error e = {0};
	assert_int_equal(archive_unpack(&s, &generous, &sum, &e), 0);
	assert_int_equal(sum.entries, 7);
	assert_int_equal(mode_of("run"), S_IFREG | 0755);
	assert_int_equal(mode_of("set"), S_IFREG | 0755);
	assert_int_equal(mode_of("secret"), S_IFREG | 0600);
	assert_int_equal(mode_of("plain"), S_IFREG | 0644);
	assert_int_equal(mode_of("d"), S_IFDIR | 0700);
	assert_int_equal(mode_of("d/l"), S_IFLNK | 0777);
	cleanup_free char *text = NULL;
	size_t size;
	assert_int_equal(read_file("d/l", 100, &text, &size, &e), 0);
	assert_string_equal(text, "ü");
}

static void test_damaged_content(void **state) {
	zip_stored = true;
	struct archive_source s = ZIP({"Dockerfile", "FROM stasis/debian", 0});
	zip_stored = false;
	uint8_t *text = memmem(zip, s.size, "FROM", 4);
	assert_non_null(text);
	text[0] ^= 0x55;
	struct archive_summary sum;
	struct error e = {0};
	assert_int_equal(archive_unpack(&s, &generous, &sum, &e), -EBADMSG);
	assert_string_equal(e.name, "ARCHIVE_INVALID");
}

// Output ----------------------------------------------------------------------------------------------------------------------------

static void feed(struct run_lines *l, const char *text, size_t step) {
	memset(l, 0, sizeof(*l));
	for (size_t at = 0; at < strlen(text); at += step)
		run_lines_feed(l, text + at, strnlen(text + at, step));
	run_lines_end(l);
}

static void test_output_lines(void **state) {
	static const char failed[] = "STEP 2/3: RUN make\ngcc: fatal error\r\n\n   \nsubprocess exited with status 4\n"
				     "Error: building at STEP \"RUN make\": while running runtime: exit status 4\n";
	struct run_lines l;
	for (size_t step = 1; step < sizeof(failed); step++) {
		feed(&l, failed, step);
		assert_string_equal(l.output, "gcc: fatal error");
		assert_string_equal(l.failure, "building at STEP \"RUN make\": while running runtime: exit status 4");
		assert_false(l.no_space);
	}
	feed(&l, "tar: x: Cannot write: No space left on device\n", 7);
	assert_true(l.no_space);
	feed(&l, "no end\x1b[31m", 100);
	assert_string_equal(l.output, "no end [31m");
	// A command may say "Error: " too; buildah's own line wins.
	feed(&l, "Error: mine\nError: building at STEP \"RUN x\": exit status 1\nError: late\n", 100);
	assert_string_equal(l.failure, "building at STEP \"RUN x\": exit status 1");
	char line[3 * RUN_LINE_MAX];
	memset(line, 'y', sizeof(line) - 1);
	line[sizeof(line) - 1] = 0;
	feed(&l, line, 1000);
	assert_int_equal(strlen(l.output), RUN_LINE_MAX - 1);
}

static void test_programs(void **state) {
	struct run_lines l;
	struct error e = {0};
	const struct run_options quiet = {.quiet = true, .folder = folder};
	assert_int_equal(run_program((const char *const[]){"sh", "-c", "pwd; echo two >&2; exit 7", NULL}, &quiet, &l, &e), 7);
	assert_string_equal(l.output, "two");
	assert_int_equal(run_program((const char *const[]){"sh", "-c", "kill -9 $$", NULL}, &quiet, &l, &e), 128 + 9);
	assert_int_equal(run_program((const char *const[]){"/nonexistent", NULL}, &quiet, &l, &e), 127);
	assert_non_null(strstr(l.output, "cannot run /nonexistent"));
	// A process that keeps the output open does not keep the caller waiting.
	assert_int_equal(run_program((const char *const[]){"sh", "-c", "sleep 20 & echo left", NULL}, &quiet, &l, &e), 0);
	assert_string_equal(l.output, "left");
	assert_int_equal(run_checked((const char *const[]){"sh", "-c", "echo why; exit 3", NULL}, &e), -EIO);
	assert_non_null(strstr(e.message, "status 3: why"));
}

// Layers ----------------------------------------------------------------------------------------------------------------------------

static void write_text(const char *path, const char *text) {
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, text, strlen(text)), 0);
	close(fd);
}

static void assert_text(const char *path, const char *expected) {
	cleanup_free char *text = NULL;
	size_t size;
	struct error e = {0};
	if (read_file(path, 100, &text, &size, &e) < 0)
		fail_msg("%s", e.message);
	assert_string_equal(text, expected);
}

static void make_dir(const char *path) {
	assert_int_equal(mkdir(path, 0755), 0);
}

static void test_merge(void **state) {
	struct error e = {0};
	make_dir("to");
	make_dir("to/d");
	write_text("to/d/old", "old");
	write_text("to/d/kept", "kept");
	make_dir("to/becomes-file");
	make_dir("to/becomes-file/x");
	write_text("to/becomes-dir", "");
	assert_int_equal(symlink("/nonexistent", "to/link"), 0);
	make_dir("from");
	make_dir("from/d");
	write_text("from/d/old", "new");
	assert_int_equal(link("from/d/old", "from/twin"), 0);
	write_text("from/becomes-file", "1");
	make_dir("from/becomes-dir");
	write_text("from/becomes-dir/y", "2");
	make_dir("from/link");
	write_text("from/link/z", "3");
	assert_int_equal(symlink("d", "from/alias"), 0);
	assert_int_equal(mkfifo("from/pipe", 0600), 0);
	assert_int_equal(chmod("from/d", 01770), 0);
	assert_int_equal(chmod("from/d/old", 0640), 0);
	const struct timespec times[2] = {{.tv_sec = 1000}, {.tv_sec = 2000, .tv_nsec = 3}};
	assert_int_equal(utimensat(AT_FDCWD, "from/d/old", times, 0), 0);
	bool attributes = setxattr("from/d/old", "user.colour", "red", 3, 0) == 0;
	int sparse = open("from/sparse", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_int_equal(pwrite_full(sparse, "x", 1, 10 << 20), 0);
	close(sparse);

	if (tree_merge("from", "to", &e) < 0)
		fail_msg("%s", e.message);
	assert_text("to/d/old", "new");
	assert_text("to/d/kept", "kept");
	assert_text("to/becomes-file", "1");
	assert_text("to/becomes-dir/y", "2");
	assert_text("to/link/z", "3");
	assert_int_equal(mode_of("to/d"), S_IFDIR | 01770);
	assert_int_equal(mode_of("to/d/old"), S_IFREG | 0640);
	assert_true(S_ISLNK(mode_of("to/alias")) && S_ISFIFO(mode_of("to/pipe")));
	struct stat a, b;
	assert_int_equal(stat("to/twin", &a), 0);
	assert_int_equal(stat("to/d/old", &b), 0);
	assert_int_equal(a.st_ino, b.st_ino);
	assert_int_equal(b.st_mtim.tv_sec, 2000);
	assert_int_equal(b.st_mtim.tv_nsec, 3);
	char colour[4] = "";
	if (attributes)
		assert_int_equal(getxattr("to/d/old", "user.colour", colour, 3), 3);
	assert_int_equal(stat("to/sparse", &a), 0);
	assert_int_equal(a.st_size, (10 << 20) + 1);
	assert_true(a.st_blocks * 512 < 1 << 20);
	// Twice gives the same.
	assert_int_equal(tree_merge("from", "to", &e), 0);
	assert_text("to/twin", "new");
}

static void test_merge_whiteouts(void **state) {
	struct error e = {0};
	make_dir("to");
	make_dir("to/gone");
	make_dir("to/gone/deep");
	write_text("to/gone/deep/x", "");
	write_text("to/file", "");
	make_dir("to/emptied");
	write_text("to/emptied/old", "");
	make_dir("from");
	make_dir("from/emptied");
	write_text("from/emptied/new", "n");
	if (mknod("from/gone", S_IFCHR, makedev(0, 0)) < 0 || setxattr("from/emptied", "trusted.overlay.opaque", "y", 1, 0) < 0) {
		print_message("needs root and a file system with trusted attributes\n");
		skip();
	}
	assert_int_equal(mknod("from/file", S_IFCHR, makedev(0, 0)), 0);
	assert_int_equal(mknod("from/never-was", S_IFCHR, makedev(0, 0)), 0);
	assert_int_equal(chown("from/emptied/new", 12, 34), 0);
	assert_int_equal(chmod("from/emptied/new", 06755), 0);
	if (tree_merge("from", "to", &e) < 0)
		fail_msg("%s", e.message);
	assert_int_equal(access("to/gone", F_OK), -1);
	assert_int_equal(access("to/file", F_OK), -1);
	assert_int_equal(access("to/never-was", F_OK), -1);
	assert_int_equal(access("to/emptied/old", F_OK), -1);
	assert_int_equal(getxattr("to/emptied", "trusted.overlay.opaque", NULL, 0), -1);
	struct stat st;
	assert_int_equal(stat("to/emptied/new", &st), 0);
	assert_int_equal(st.st_uid, 12);
	assert_int_equal(st.st_gid, 34);
	assert_int_equal(st.st_mode, S_IFREG | 06755);
}

static void test_merge_too_deep(void **state) {
	struct error e = {0};
	make_dir("to");
	make_dir("from");
	int at = open("from", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	for (int i = 0; i < 1100; i++) {
		assert_int_equal(mkdirat(at, "d", 0755), 0);
		int next = openat(at, "d", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		close(at);
		at = next;
	}
	close(at);
	assert_true(tree_merge("from", "to", &e) < 0);
	assert_non_null(strstr(e.message, "/d/d/d"));
	// remove_tree() of the clean-up is another matter; make it shallow with what stands behind every tree.
	assert_int_equal(run_program((const char *const[]){"rm", "-rf", "from", "to", NULL}, NULL, NULL, &e), 0);
}

// buildah's store ---------------------------------------------------------------------------------------------------------------------

#define ID "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static void make_store(const char *images, const char *own, const char *bases) {
	struct error e = {0};
	assert_int_equal(make_folders("store/overlay-images/" ID, 0755, &e), 0);
	assert_int_equal(make_folders("store/overlay-layers", 0755, &e), 0);
	assert_int_equal(make_folders("bases/overlay-layers", 0755, &e), 0);
	write_text("store/overlay-images/images.json", images);
	write_text("store/overlay-layers/layers.json", own);
	write_text("bases/overlay-layers/layers.json", bases);
	// base64 of "sha256:" ID
	write_text("store/overlay-images/" ID
		   "/=c2hhMjU2OjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
		   "{}");
}

static void test_store(void **state) {
	static struct image image;
	struct error e = {0};
	make_store("[{\"id\":\"other\"},{\"id\":\"" ID "\",\"layer\":\"top\"}]", "[{\"id\":\"top\",\"parent\":\"middle\"}]",
		   "[{\"id\":\"low\"},{\"id\":\"middle\",\"parent\":\"low\"}]");
	if (image_read("store", "bases", ID, &image, &e) < 0)
		fail_msg("%s", e.message);
	assert_int_equal(image.layer_count, 3);
	assert_string_equal(image.layers[0].id, "low");
	assert_string_equal(image.layers[0].diff, "bases/overlay/low/diff");
	assert_string_equal(image.layers[2].diff, "store/overlay/top/diff");
	assert_string_equal(image.config, "{}");
	free(image.config);
	assert_int_equal(image_read("store", "bases", "../../etc/passwd", &image, &e), -EBADMSG);
	make_store("[{\"id\":\"" ID "\",\"layer\":\"lost\"}]", "[]", "[]");
	assert_int_equal(image_read("store", "bases", ID, &image, &e), -ENOENT);
	// A parent that is its own ancestor ends at the limit.
	make_store("[{\"id\":\"" ID "\",\"layer\":\"a\"}]", "[{\"id\":\"a\",\"parent\":\"b\"},{\"id\":\"b\",\"parent\":\"a\"}]", "[]");
	assert_int_equal(image_read("store", "bases", ID, &image, &e), -E2BIG);
	make_store("{", "[]", "[]");
	assert_true(image_read("store", "bases", ID, &image, &e) < 0);
}

static int check_config(const char *text) {
	struct error e = {0};
	return image_check_config(text, strlen(text), &e);
}

static void test_config(void **state) {
	assert_int_equal(check_config("{\"config\":{\"Cmd\":[\"a\"]}}"), 0);
	assert_int_equal(check_config("{\"config\":{\"Entrypoint\":[\"a\"],\"Cmd\":null}}"), 0);
	assert_int_equal(check_config("{\"config\":{\"Cmd\":[],\"Entrypoint\":[]}}"), -ENOEXEC);
	assert_int_equal(check_config("{\"config\":{}}"), -ENOEXEC);
	assert_int_equal(check_config("{}"), -ENOEXEC);
	assert_int_equal(check_config("{"), -EBADMSG);
}

int main(void) {
	setlocale(LC_CTYPE, "C.UTF-8");
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_links),
		cmocka_unit_test_setup_teardown(test_dockerfile, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_methods, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_cut_anywhere, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_limits, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_unpack, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_damaged_content, set_up, tear_down),
		cmocka_unit_test(test_output_lines),
		cmocka_unit_test_setup_teardown(test_programs, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_merge, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_merge_whiteouts, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_merge_too_deep, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_store, set_up, tear_down),
		cmocka_unit_test(test_config),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
