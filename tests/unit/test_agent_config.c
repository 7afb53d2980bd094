// USER resolution, the image's configuration, and the runtime configuration that is made from them. What the image says of TLS.
#include "base/hex.h"
#include "base/io.h"
#include "guest/rootfs.h"
#include "guest/runtime_config.h"
#include "guest/tls_ports.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char passwd[] = "root:x:0:0:root:/root:/bin/sh\n"
			     "# a comment: with:colons:0:0:x:/:x\n"
			     "broken\n"
			     "short:x:5:5\n"
			     "bad:x:notanumber:1::/:\n"
			     "huge:x:4294967295:0::/:\n"
			     "app:x:1000:1001:App,,,:/home/app:/bin/sh\n"
			     "123:x:77:78::/home/digits:/bin/sh\n"
			     "nohome:x:50:51:::\n"
			     "relative:x:52:53::here:/bin/sh\n"
			     "last:x:60:61::/last:/bin/sh";
static const char group[] = "root:x:0:\n"
			    "app:x:1001:\n"
			    "video:x:44:foo,app\n"
			    "audio:x:29:app,app\n"
			    "appendix:x:30:application,ap,pp\n"
			    "broken\n"
			    "docker:x:999:root\n"
			    "tail:x:61:last";

static int resolve(const char *spec, struct user *u) {
	return user_resolve(spec, passwd, strlen(passwd), group, strlen(group), u, NULL);
}

static void is(const char *spec, uint32_t uid, uint32_t gid, size_t groups, const char *home) {
	struct user u;
	if (resolve(spec, &u) != 0)
		fail_msg("\"%s\" was refused", spec);
	if (u.uid != uid || u.gid != gid || u.group_count != groups || strcmp(u.home, home) != 0)
		fail_msg("\"%s\": %u:%u, %zu groups, %s", spec, u.uid, u.gid, u.group_count, u.home);
}

static void users(void **state) {
	struct user u;
	struct error e = {0};

	is("", 0, 0, 1, "/root");
	is("root", 0, 0, 1, "/root");
	is("0", 0, 0, 1, "/root");
	is("app", 1000, 1001, 2, "/home/app");
	is("1000", 1000, 1001, 2, "/home/app");
	is("123", 77, 78, 0, "/home/digits"); // a name before a number
	is("77", 77, 78, 0, "/home/digits");
	is("5000", 5000, 0, 0, "/");
	is("app:video", 1000, 44, 0, "/home/app");
	is("app:44", 1000, 44, 0, "/home/app");
	is("app:4444", 1000, 4444, 0, "/home/app");
	is("5000:6000", 5000, 6000, 0, "/");
	is("5000:app", 5000, 1001, 0, "/");
	is(":app", 0, 1001, 0, "/root");
	is("app:", 1000, 1001, 2, "/home/app");
	is("nohome", 50, 51, 0, "/");
	is("relative", 52, 53, 0, "/");
	is("last", 60, 61, 1, "/last");
	is("2147483647", 2147483647, 0, 0, "/");
	assert_int_equal(resolve("app", &u), 0);
	assert_int_equal(u.groups[0], 44);
	assert_int_equal(u.groups[1], 29);

	static const char *const bad[] = {"nobody",     "short", "bad", "huge",  "broken", "app:nogroup",          "2147483648",
					  "4294967296", "-1",    "+1",  " root", "app:-1", "99999999999999999999", "# a comment"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_int_equal(resolve(bad[i], &u), -ENOENT);
	assert_int_equal(user_resolve("app", "", 0, "", 0, &u, &e), -ENOENT);
	assert_string_equal(e.name, "USER_NOT_FOUND");
	assert_non_null(strstr(e.message, "/etc/passwd"));
	assert_int_equal(user_resolve("", "", 0, "", 0, &u, NULL), 0);
	assert_int_equal(u.uid, 0);
	assert_string_equal(u.home, "/");
}

static void many_groups(void **state) {
	char text[8192] = "";
	struct user u;
	size_t used = 0;
	for (int i = 0; i < 200; i++)
		used += (size_t)snprintf(text + used, sizeof(text) - used, "g%d:x:%d:app\n", i, 2000 + i);
	assert_int_equal(user_resolve("app", passwd, strlen(passwd), text, used, &u, NULL), 0);
	assert_int_equal(u.group_count, USER_GROUPS_MAX);
}

static int parse(const char *text, struct image_config *c, struct error *e) {
	return image_config_parse(text, strlen(text), c, e);
}

static void refused(const char *text, int code, const char *name, const char *part) {
	struct image_config c;
	struct error e = {0};
	assert_int_equal(parse(text, &c, &e), code);
	assert_string_equal(e.name, name);
	if (strstr(e.message, part) == NULL)
		fail_msg("\"%s\" lacks \"%s\"", e.message, part);
	image_config_free(&c);
}

static void args_are(const char *text, const char *wanted) {
	struct image_config c;
	struct error e = {0};
	if (parse(text, &c, &e) != 0)
		fail_msg("%s", e.message);
	char *got = json_dumps(c.args, JSON_COMPACT);
	assert_string_equal(got, wanted);
	free(got);
	image_config_free(&c);
}

static void image_configs(void **state) {
	struct image_config c;

	args_are("{\"config\":{\"Cmd\":[\"a\"]}}", "[\"a\"]");
	args_are("{\"config\":{\"Entrypoint\":[\"e\",\"x\"],\"Cmd\":[\"a\",\"\"]}}", "[\"e\",\"x\",\"a\",\"\"]");
	args_are("{\"config\":{\"Entrypoint\":null,\"Cmd\":[\"/bin/sh\",\"-c\",\"a b\"]}}", "[\"/bin/sh\",\"-c\",\"a b\"]");
	args_are("{\"config\":{\"Entrypoint\":[\"e\"],\"Cmd\":null,\"User\":\"\",\"WorkingDir\":\"\"}}", "[\"e\"]");
	refused("{}", -ENOEXEC, "NO_COMMAND", "ENTRYPOINT or CMD");
	refused("{\"config\":{}}", -ENOEXEC, "NO_COMMAND", "ENTRYPOINT or CMD");
	refused("{\"config\":null}", -ENOEXEC, "NO_COMMAND", "ENTRYPOINT or CMD");
	refused("{\"config\":{\"Entrypoint\":[],\"Cmd\":[]}}", -ENOEXEC, "NO_COMMAND", "ENTRYPOINT or CMD");
	refused("{\"config\":{\"Cmd\":[\"\"]}}", -ENOEXEC, "NO_COMMAND", "ENTRYPOINT or CMD");
	refused("", -EBADMSG, "IMAGE_CONFIG_INVALID", "JSON");
	refused("{\"config\":{\"Cmd\":\"sh\"}}", -EINVAL, "IMAGE_CONFIG_INVALID", "\"Cmd\" must be an array");
	refused("{\"config\":{\"Cmd\":[1]}}", -EINVAL, "IMAGE_CONFIG_INVALID", "strings only");
	refused("{\"config\":[]}", -EINVAL, "IMAGE_CONFIG_INVALID", "must be an object");
	refused("{\"config\":{\"Cmd\":[\"a\"],\"WorkingDir\":\"here\"}}", -EINVAL, "IMAGE_CONFIG_INVALID", "not absolute");
	refused("{\"config\":{\"Cmd\":[\"a\"],\"User\":7}}", -EINVAL, "IMAGE_CONFIG_INVALID", "\"User\"");

	assert_int_equal(parse("{\"config\":{\"Cmd\":[\"a\"],\"Env\":[\"A=1\",\"B\",\"=x\",\"C==\",\"\"]}}", &c, NULL), 0);
	assert_int_equal(json_array_size(c.env), 2);
	assert_string_equal(c.working_dir, "/");
	image_config_free(&c);
}

static json_t *make(const char *image_text, const char *spec, const char *env_text, bool all) {
	struct image_config c;
	struct user u;
	struct error e = {0};

	assert_int_equal(parse(image_text, &c, &e), 0);
	assert_int_equal(resolve(spec, &u), 0);
	json_t *env = env_text != NULL ? json_loads(env_text, 0, NULL) : NULL;
	json_t *r = runtime_config(&(struct runtime_options){.image = &c,
							     .user = &u,
							     .env = env,
							     .all_capabilities = all,
							     .available_capabilities = ~0ull,
							     .hostname = "micro",
							     .root = "/run/stasis/image",
							     .files = "/run/stasis",
							     .shm_bytes = 1048576,
							     .open_files = 65536},
				   &e);
	if (r == NULL)
		fail_msg("%s", e.message);
	json_decref(env);
	image_config_free(&c);
	return r;
}

static const json_t *at(const json_t *j, const char *a, const char *b) {
	const json_t *r = json_object_get(j, a);
	return b != NULL ? json_object_get(r, b) : r;
}

// Value of a variable, or NULL; fails when it is there twice.
static const char *variable(const json_t *config, const char *name) {
	const char *found = NULL;
	size_t i;
	const json_t *item;
	json_array_foreach(at(config, "process", "env"), i, item) {
		const char *text = json_string_value(item);
		if (strncmp(text, name, strlen(name)) != 0 || text[strlen(name)] != '=')
			continue;
		assert_null(found);
		found = text + strlen(name) + 1;
	}
	return found;
}

static bool has(const json_t *array, const char *text) {
	size_t i;
	const json_t *item;
	json_array_foreach(array, i, item) {
		if (strcmp(json_string_value(item), text) == 0)
			return true;
	}
	return false;
}

static const json_t *mount_at(const json_t *config, const char *to) {
	size_t i;
	const json_t *item;
	json_array_foreach(at(config, "mounts", NULL), i, item) {
		if (strcmp(json_string_value(json_object_get(item, "destination")), to) == 0)
			return item;
	}
	return NULL;
}

#define IMAGE \
	"{\"config\":{\"Entrypoint\":[\"/srv\"],\"Cmd\":[\"-p\"],\"WorkingDir\":\"/w\",\"Env\":[\"A=1\",\"A=2\",\"B=x=y\",\"PATH=/p\"]}}"

static void root_by_default(void **state) {
	json_t *c = make(IMAGE, "", "{\"B\":\"given\",\"C\":\"\"}", false);
	const json_t *capabilities = at(c, "process", "capabilities");

	assert_string_equal(variable(c, "A"), "2");
	assert_string_equal(variable(c, "B"), "given");
	assert_string_equal(variable(c, "C"), "");
	assert_string_equal(variable(c, "PATH"), "/p");
	assert_string_equal(variable(c, "HOSTNAME"), "micro");
	assert_string_equal(variable(c, "HOME"), "/root");
	assert_string_equal(json_string_value(at(c, "process", "cwd")), "/w");
	assert_string_equal(json_string_value(json_array_get(at(c, "process", "args"), 1)), "-p");
	assert_int_equal(json_array_size(json_object_get(capabilities, "bounding")), 14);
	assert_int_equal(json_array_size(json_object_get(capabilities, "effective")), 14);
	assert_int_equal(json_array_size(json_object_get(capabilities, "permitted")), 14);
	assert_true(json_is_true(at(c, "process", "noNewPrivileges")));
	assert_true(has(at(c, "linux", "maskedPaths"), "/proc/kcore"));
	assert_true(has(at(c, "linux", "readonlyPaths"), "/proc/sys"));
	assert_true(has(json_object_get(mount_at(c, "/sys/fs/cgroup"), "options"), "ro"));
	assert_true(has(json_object_get(mount_at(c, "/sys"), "options"), "ro"));
	assert_true(has(json_object_get(mount_at(c, "/dev/shm"), "options"), "size=1048576"));
	assert_string_equal(json_string_value(json_object_get(mount_at(c, "/etc/hosts"), "source")), "/run/stasis/hosts");
	assert_non_null(mount_at(c, "/.stasis"));
	// Everything is denied before something is allowed.
	assert_true(json_is_false(json_object_get(json_array_get(json_object_get(at(c, "linux", "resources"), "devices"), 0), "allow")));
	assert_int_equal(json_array_size(at(c, "linux", "namespaces")), 5);
	json_decref(c);
}

static void another_user(void **state) {
	json_t *c = make(IMAGE, "app", NULL, false);
	const json_t *capabilities = at(c, "process", "capabilities"), *user = at(c, "process", "user");

	assert_int_equal(json_array_size(json_object_get(capabilities, "bounding")), 14);
	assert_null(json_object_get(capabilities, "effective"));
	assert_null(json_object_get(capabilities, "permitted"));
	assert_int_equal(json_integer_value(json_object_get(user, "uid")), 1000);
	assert_int_equal(json_integer_value(json_object_get(user, "gid")), 1001);
	assert_int_equal(json_array_size(json_object_get(user, "additionalGids")), 3);
	assert_string_equal(variable(c, "HOME"), "/home/app");
	json_decref(c);
}

static void all_capabilities(void **state) {
	json_t *c = make("{\"config\":{\"Cmd\":[\"sh\"]}}", "", NULL, true);

	assert_int_equal(json_array_size(json_object_get(at(c, "process", "capabilities"), "effective")), 41);
	assert_false(json_is_true(at(c, "process", "noNewPrivileges")));
	assert_null(at(c, "linux", "maskedPaths"));
	assert_null(at(c, "linux", "readonlyPaths"));
	assert_true(has(json_object_get(mount_at(c, "/sys/fs/cgroup"), "options"), "rw"));
	assert_string_equal(json_string_value(json_object_get(json_array_get(at(c, "linux", "devices"), 0), "path")), "/dev/fuse");
	assert_true(json_is_true(json_object_get(json_array_get(json_object_get(at(c, "linux", "resources"), "devices"), 0), "allow")));
	assert_string_equal(variable(c, "PATH"), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	assert_string_equal(json_string_value(at(c, "process", "cwd")), "/");
	json_decref(c);
}

// Reading names in a hostile root file system.

static void put(const char *root, const char *name, const char *text) {
	char path[256];
	snprintf(path, sizeof(path), "%s/%s", root, name);
	assert_int_equal(write_file_durably(path, text, strlen(text), 0644, NULL), 0);
}

static void put_link(const char *root, const char *name, const char *to) {
	char path[256];
	snprintf(path, sizeof(path), "%s/%s", root, name);
	assert_int_equal(symlink(to, path), 0);
}

static int read_in(const char *root, const char *name, char **ret) {
	size_t size;
	return rootfs_read(root, name, 64, ret, &size, NULL);
}

static void hostile_root(void **state) {
	char top[] = "/tmp/stasis-rootfs-XXXXXX", root[64], path[96], *text = NULL;

	assert_non_null(mkdtemp(top));
	snprintf(root, sizeof(root), "%s/root", top);
	assert_int_equal(mkdir(root, 0755), 0);
	put(top, "secret", "outside");
	put(root, "inside", "inside");
	put(root, "large", "................................................................+");
	put_link(root, "up", "../secret");
	put_link(root, "absolute", "/inside");
	put_link(root, "escape", "/../../../secret");
	put_link(root, "loop", "loop");
	put_link(root, "magic", "/proc/self/root/etc/passwd");
	snprintf(path, sizeof(path), "%s/fifo", root);
	assert_int_equal(mkfifo(path, 0644), 0);

	assert_int_equal(read_in(root, "/absolute", &text), 0);
	assert_string_equal(text, "inside");
	free(text);
	assert_int_equal(read_in(root, "/up", &text), -ENOENT);
	assert_int_equal(read_in(root, "/escape", &text), -ENOENT);
	assert_int_equal(read_in(root, "/loop", &text), -ELOOP);
	assert_int_equal(read_in(root, "/magic", &text), -ENOENT);
	assert_int_equal(read_in(root, "/fifo", &text), -EINVAL);
	assert_int_equal(read_in(root, "/", &text), -EINVAL);
	assert_int_equal(read_in(root, "/large", &text), -EFBIG);
	assert_int_equal(read_in(root, "/none", &text), -ENOENT);
	remove_tree(top, NULL);
}

static void hexadecimal(void **state) {
	uint8_t bytes[4];
	char text[9];

	hex_encode("\x00\x7f\xff\x1a", 4, text);
	assert_string_equal(text, "007fff1a");
	assert_int_equal(hex_decode(text, 8, bytes, 4), 4);
	assert_memory_equal(bytes, "\x00\x7f\xff\x1a", 4);
	assert_int_equal(hex_decode("", 0, bytes, 4), 0);
	assert_int_equal(hex_decode("0", 1, bytes, 4), -EINVAL);
	assert_int_equal(hex_decode("0G", 2, bytes, 4), -EINVAL);
	assert_int_equal(hex_decode("FF", 2, bytes, 4), -EINVAL);
	assert_int_equal(hex_decode("0011223344", 10, bytes, 4), -EMSGSIZE);
}

static void tls_ports(void **state) {
	static const struct {
		const char *text;
		size_t count;
		uint16_t last;
	} good[] = {
		{NULL, 0, 0},
		{"", 0, 0},
		{" ,\t", 0, 0},
		{"8443", 1, 8443},
		{"1,65535", 2, 65535},
		{" 8443, 9443\t00443 ", 3, 443},
		{"1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16", 16, 16},
	};
	static const char *const bad[] = {
		"0", "65536", "-1", "+1", "0x50", "99999999999999999999", "80;81", "https", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17"};
	struct tls_ports p;
	struct error e = {0};
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		assert_int_equal(tls_ports_parse(good[i].text, &p, &e), 0);
		assert_int_equal(p.count, good[i].count);
		assert_true(p.count == 0 || tls_ports_have(&p, good[i].last));
		assert_false(tls_ports_have(&p, 444));
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		e = (struct error){0};
		if (tls_ports_parse(bad[i], &p, &e) >= 0)
			fail_msg("%s was taken", bad[i]);
		assert_string_equal(e.name, "IMAGE_CONFIG_INVALID");
		assert_non_null(strstr(e.message, TLS_VARIABLE));
	}
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(users),           cmocka_unit_test(many_groups),  cmocka_unit_test(image_configs),
		cmocka_unit_test(root_by_default), cmocka_unit_test(another_user), cmocka_unit_test(all_capabilities),
		cmocka_unit_test(hostile_root),    cmocka_unit_test(hexadecimal),  cmocka_unit_test(tls_ports),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
