// File trees and archives: both ways with GNU tar at the other end, and archives that try to get out of their folder.
#include "base/io.h"
#include "base/tar.h"
#include "base/tree.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define LEN(a) (sizeof(a) / sizeof((a)[0]))

static char folder[] = "/tmp/stasis-tree-XXXXXX";

// An archive in memory, read in pieces of a size.
struct archive {
	uint8_t *data;
	size_t size, at, step;
	char notices[4096];
};

static ssize_t read_piece(void *arg, void *to, size_t room) {
	struct archive *a = arg;
	size_t n = a->size - a->at < a->step ? a->size - a->at : a->step;
	n = n < room ? n : room;
	if (n > 0)
		memcpy(to, a->data + a->at, n);
	a->at += n;
	return (ssize_t)n;
}

static int append(void *arg, const void *data, size_t size) {
	struct archive *a = arg;
	a->data = realloc(a->data, a->size + size);
	memcpy(a->data + a->size, data, size);
	a->size += size;
	return 0;
}

static void take_notice(void *arg, const char *text) {
	struct archive *a = arg;
	size_t n = strlen(a->notices);
	snprintf(a->notices + n, sizeof(a->notices) - n, "%s\n", text);
}

static void add(struct archive *a, enum tar_type type, const char *path, const char *target, const char *content, uint32_t mode) {
	static struct tar_entry t;
	static uint8_t head[TAR_HEAD_MAX], zeros[TAR_BLOCK];
	t = (struct tar_entry){.type = type, .size = strlen(content), .mode = mode, .mtime = 1000000000};
	snprintf(t.path, sizeof(t.path), "%s", path);
	snprintf(t.target, sizeof(t.target), "%s", target);
	append(a, head, tar_write_head(&t, head));
	append(a, content, strlen(content));
	append(a, zeros, tar_padding(strlen(content)));
}

static void end(struct archive *a) {
	static const uint8_t zeros[2 * TAR_BLOCK];
	append(a, zeros, sizeof(zeros));
}

static const char *path_of(const char *name) {
	static char paths[4][256];
	static unsigned next;
	char *path = paths[next++ % 4];
	snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
	return path;
}

static void run(const char *format, ...) {
	char command[4096], whole[4200];
	va_list ap;
	va_start(ap, format);
	vsnprintf(command, sizeof(command), format, ap);
	va_end(ap);
	snprintf(whole, sizeof(whole), "cd %s && { %s; }", folder, command);
	int status = system(whole);
	if (status != 0)
		fail_msg("%s: %d", command, status);
}

static int unpack(struct archive *a, size_t step, const char *into, const char *top, uint32_t mask, uint64_t bytes_max, struct error *e) {
	struct tree_options o = {.read = read_piece, .arg = a, .top = top, .mode_mask = mask, .bytes_max = bytes_max};
	mkdir(path_of(into), 0755);
	int fd = open(path_of(into), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	a->at = 0;
	a->step = step;
	int r = tree_unpack(fd, &o, e);
	close(fd);
	return r;
}

static void load(struct archive *a, const char *name) {
	char *data;
	struct error e = {0};
	*a = (struct archive){0};
	if (read_file(path_of(name), 1u << 30, &data, &a->size, &e) < 0)
		fail_msg("%s", e.message);
	a->data = (uint8_t *)data;
}

// A tree with all that is carried, and names of all lengths.
static void make_tree(void) {
	char names[4][300];
	static const size_t lengths[] = {99, 100, 101, 250};
	run("rm -rf tree && mkdir -p tree/sub/deep tree/empty && printf one > tree/a && chmod 640 tree/a && printf two > tree/sub/b && "
	    "chmod 755 tree/sub/b && ln -s ../a tree/sub/l && ln -s /nowhere/at/all tree/broken && : > tree/empty-file && "
	    "chmod 700 tree/sub && ln tree/a tree/sub/hard && seq 1 100000 > tree/big && printf n > \"tree/$(printf "
	    "'nul\\303\\244\\377x')\" && "
	    "touch -d @1234567890 tree/a");
	for (size_t i = 0; i < LEN(lengths); i++) {
		memset(names[i], 'a' + (int)i, lengths[i]);
		names[i][lengths[i]] = '\0';
		run("mkdir -p tree/%s && echo %s > tree/%s/%s && ln -s %s/%s tree/%s/link%zu", names[0], names[i], names[0], names[i],
		    names[0], names[i], names[0], i);
	}
}

static void packs_what_tar_reads(void **state) {
	struct archive a = {0};
	struct error e = {0};
	struct tree_options o = {.write = append, .notice = take_notice, .arg = &a};
	make_tree();
	run("mkfifo tree/fifo");
	if (tree_pack(path_of("tree//"), &o, &e) < 0)
		fail_msg("%s", e.message);
	assert_string_equal(a.notices, "left out: tree/fifo: no file, folder or link\n");
	assert_int_equal(write_file_durably(path_of("out.tar"), a.data, a.size, 0600, NULL), 0);
	run("rm tree/fifo && rm -rf by-tar && mkdir by-tar && tar -C by-tar -xpf out.tar && diff -r --no-dereference tree by-tar/tree && "
	    "test \"$(stat -c %%a-%%Y by-tar/tree/a)\" = 640-1234567890 && test \"$(stat -c %%a by-tar/tree/sub)\" = 700");
	// And again by ourselves, however it is cut.
	static const size_t steps[] = {65536, 511, 7};
	for (size_t i = 0; i < LEN(steps); i++) {
		if (unpack(&a, steps[i], "by-us", i == 1 ? "renamed" : NULL, 0777, 0, &e) < 0)
			fail_msg("%s", e.message);
		run("diff -r --no-dereference tree by-us/%s && test \"$(stat -c %%a-%%Y by-us/%s/a)\" = 640-1234567890 && test -z \"$(find "
		    "by-us -name "
		    "'.stasis-*')\"",
		    i == 1 ? "renamed" : "tree", i == 1 ? "renamed" : "tree");
	}
	free(a.data);
}

static void unpacks_what_tar_writes(void **state) {
	static const char *const formats[] = {"gnu", "pax", "oldgnu"};
	struct archive a;
	struct error e = {0};
	make_tree();
	for (size_t i = 0; i < LEN(formats); i++) {
		run("rm -rf by-us && tar --format=%s -cf in.tar tree", formats[i]);
		load(&a, "in.tar");
		if (unpack(&a, 1000, "by-us", NULL, 07777, 0, &e) < 0)
			fail_msg("%s: %s", formats[i], e.message);
		// Hard links stay hard links.
		run("diff -r --no-dereference tree by-us/tree && test \"$(stat -c %%h by-us/tree/a)\" = 2");
		free(a.data);
	}
	// ustar cannot hold all of these names; "./" is the folder itself.
	run("rm -rf by-us && tar --format=ustar -C tree -cf in.tar ./sub ./a .//empty ./big");
	load(&a, "in.tar");
	assert_int_equal(unpack(&a, 100000, "by-us", NULL, 07777, 0, &e), 0);
	run("diff -r --no-dereference tree/sub by-us/sub && cmp tree/big by-us/big");
	free(a.data);
	// Devices are refused by name.
	run("rm -rf by-us && mkfifo fifo && tar -cf in.tar fifo && rm fifo");
	load(&a, "in.tar");
	assert_int_equal(unpack(&a, 100000, "by-us", NULL, 07777, 0, &e), -ENOTSUP);
	free(a.data);
}

static void replaces_what_is_there(void **state) {
	struct archive a = {0};
	struct error e = {0};
	run("rm -rf place && mkdir -p place/folder && chmod 711 place/folder && echo old > place/file && ln place/file place/other && ln "
	    "-s "
	    "/etc/hostname place/link && cp /etc/hostname hostname");
	add(&a, TAR_FOLDER, "folder/", "", "", 0777);
	add(&a, TAR_FILE, "file", "", "new", 06755);
	add(&a, TAR_FILE, "link", "", "not through", 0600);
	add(&a, TAR_HARDLINK, "again", "file", "", 0);
	add(&a, TAR_HARDLINK, "again", "file", "", 0);
	end(&a);
	if (unpack(&a, 100, "place", NULL, 0777, 0, &e) < 0)
		fail_msg("%s", e.message);
	// The mask holds, existing folders keep their mode, links are replaced and not written through, other names keep the old content.
	run("test \"$(cat place/file place/other place/link place/again)\" = \"newold\nnot throughnew\" && cmp hostname /etc/hostname && "
	    "test "
	    "\"$(stat -c %%a place/file)\" = 755 && test ! -L place/link && test \"$(stat -c %%a place/folder)\" = 711 && test -z \"$(ls "
	    "-A place | grep "
	    "stasis)\"");
	free(a.data);
	// A folder stays, and so does what is in it.
	a = (struct archive){0};
	add(&a, TAR_FILE, "folder", "", "x", 0600);
	end(&a);
	assert_int_equal(unpack(&a, 100, "place", NULL, 0777, 0, &e), -EISDIR);
	run("test -d place/folder && test -z \"$(ls -A place | grep stasis)\"");
	free(a.data);
}

static void keeps_inside(void **state) {
	static const struct {
		enum tar_type type;
		const char *path, *target, *second, *second_target;
		enum tar_type second_type;
		int code;
	} cases[] = {
		{TAR_FILE, "/evil", "", NULL, NULL, 0, -EINVAL},
		{TAR_FILE, "../evil", "", NULL, NULL, 0, -EINVAL},
		{TAR_FILE, "a/../../evil", "", NULL, NULL, 0, -EINVAL},
		{TAR_FOLDER, "..", "", NULL, NULL, 0, -EINVAL},
		{TAR_SYMLINK, "../evil", "x", NULL, NULL, 0, -EINVAL},
		{TAR_HARDLINK, "evil", "../outside", NULL, NULL, 0, -EINVAL},
		{TAR_HARDLINK, "evil", "/etc/passwd", NULL, NULL, 0, -EINVAL},
		{TAR_SYMLINK, "l", "..", "l/evil", "", TAR_FILE, -EXDEV},
		{TAR_SYMLINK, "l", "../outside", "l/evil", "", TAR_FOLDER, -EXDEV},
		{TAR_SYMLINK, "l", "/tmp", "l/evil", "x", TAR_SYMLINK, -EXDEV},
		{TAR_SYMLINK, "l", "/proc/self/cwd", "l/evil", "", TAR_FILE, -EXDEV},
		{TAR_SYMLINK, "l", "/", "evil", "l/etc/passwd", TAR_HARDLINK, -EXDEV},
		{TAR_SYMLINK, "l", "../outside/secret", "evil", "l", TAR_HARDLINK, -EINVAL},
		{TAR_SYMLINK, "l", "l", "l/evil", "", TAR_FILE, -ELOOP},
		{TAR_FILE, "f", "", "f/evil", "", TAR_FILE, -ENOTDIR},
		{TAR_HARDLINK, "evil", "missing", NULL, NULL, 0, -ENOENT},
		{TAR_HARDLINK, "evil", ".", NULL, NULL, 0, -EINVAL},
		{TAR_FILE, ".", "", NULL, NULL, 0, -EINVAL},
	};
	for (size_t i = 0; i < LEN(cases); i++) {
		struct archive a = {0};
		struct error e = {0};
		run("rm -rf cage outside && mkdir outside && echo s > outside/secret");
		add(&a, cases[i].type, cases[i].path, cases[i].target, cases[i].type == TAR_FILE ? "x" : "", 0755);
		if (cases[i].second != NULL)
			add(&a, cases[i].second_type, cases[i].second, cases[i].second_target, cases[i].second_type == TAR_FILE ? "x" : "",
			    0755);
		end(&a);
		int r = unpack(&a, 65536, "cage", NULL, 0777, 0, &e);
		if (r != cases[i].code)
			fail_msg("case %zu gave %d: %s", i, r, e.message);
		run("test \"$(ls -A outside)\" = secret && test \"$(stat -c %%h outside/secret)\" = 1 && test -z \"$(find cage /tmp "
		    "-maxdepth 1 -name evil -o "
		    "-maxdepth 1 -name '.stasis-*')\"");
		free(a.data);
	}
	// A link that stays inside may be used.
	struct archive a = {0};
	struct error e = {0};
	add(&a, TAR_FOLDER, "x/y", "", "", 0700);
	add(&a, TAR_SYMLINK, "l", "x/y", "", 0777);
	add(&a, TAR_FILE, "l/inside", "", "in", 0600);
	end(&a);
	assert_int_equal(unpack(&a, 65536, "cage", NULL, 0777, 0, &e), 0);
	run("test \"$(cat cage/x/y/inside)\" = in");
	free(a.data);
}

static void limits_and_checks(void **state) {
	struct archive a = {0};
	struct error e = {0};
	add(&a, TAR_FILE, "a", "", "12345", 0600);
	add(&a, TAR_FILE, "b", "", "67890", 0600);
	end(&a);
	run("rm -rf cage");
	assert_int_equal(unpack(&a, 65536, "cage", NULL, 0777, 9, &e), -EFBIG);
	run("test \"$(ls -A cage)\" = a");
	assert_int_equal(unpack(&a, 65536, "cage", NULL, 0777, 10, &e), 0);
	// Two trees have no one name.
	assert_int_equal(unpack(&a, 65536, "cage", "c", 0777, 0, &e), -EINVAL);
	assert_non_null(strstr(e.message, "more than one tree"));
	// Cut off anywhere it is an error, and what was not complete is not there.
	size_t whole = a.size;
	for (a.size = 0; a.size < whole - TAR_BLOCK; a.size += 100) {
		run("rm -rf cage");
		assert_int_equal(unpack(&a, 65536, "cage", NULL, 0777, 0, &e), -EBADMSG);
		if (a.size < 1024 - 507)
			run("test -z \"$(ls -A cage)\"");
	}
	a.size = whole;
	// One wrong byte in a head is noticed.
	for (size_t i = 0; i < TAR_BLOCK; i += 13) {
		a.data[i] ^= 0x41;
		assert_true(unpack(&a, 65536, "cage", NULL, 0777, 0, &e) < 0);
		a.data[i] ^= 0x41;
	}
	free(a.data);
}

static int set_up(void **state) {
	return mkdtemp(folder) != NULL ? 0 : -1;
}

static int tear_down(void **state) {
	return remove_tree(folder, NULL);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(packs_what_tar_reads), cmocka_unit_test(unpacks_what_tar_writes), cmocka_unit_test(replaces_what_is_there),
		cmocka_unit_test(keeps_inside),         cmocka_unit_test(limits_and_checks),
	};
	return cmocka_run_group_tests_name("tree", tests, set_up, tear_down);
}
