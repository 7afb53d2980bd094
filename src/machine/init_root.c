// The machine's root file system: a tmpfs with the host's /usr and the program's folder mounted read-only over 9p, an /etc of its own, and
// the state disk on /var/lib/stasis. The root is moved (switch_root's way) because pivot_root, which the jails of VMMs need, does not work
// on the initramfs's own root.
#include "machine/init.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NEW_ROOT "/newroot"
#define CONFIG_EXPORT "/newroot/mnt"
#define MODULE_LIST_MAX 65536
#define COPY_MAX (4u << 20)
#define UID_DEFAULT 990
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define STATE_DEVICE "/dev/vda"
// msize: bytes of one 9p message; larger ones make reading programs cheap. cache=loose: the host's /usr does not change under us.
#define NINE_P "trans=virtio,version=9p2000.L,access=any,cache=loose,msize=524288"

void init_options_read(struct init_options *ret) {
	*ret = (struct init_options){.uid = UID_DEFAULT};
	cleanup_free char *line = NULL;
	if (read_file("/proc/cmdline", 4096, &line, NULL, NULL) < 0)
		return;
	char *rest = NULL;
	for (char *word = strtok_r(line, " \n", &rest); word != NULL; word = strtok_r(NULL, " \n", &rest)) {
		if (strncmp(word, "stasis.uid=", 11) == 0) {
			unsigned long uid = strtoul(word + 11, NULL, 10);
			if (uid > 0 && uid < 0x7fffffff)
				ret->uid = (uid_t)uid;
		} else if (strncmp(word, "stasis.pool=", 12) == 0) {
			ret->pool = (unsigned)strtoul(word + 12, NULL, 10);
		}
	}
}

static void load_module(char *line) {
	char path[128];
	char *parameters = line + strcspn(line, " \t");
	if (*parameters != '\0')
		*parameters++ = '\0';
	snprintf(path, sizeof(path), "/modules/%.100s.ko", line);
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return;
	if (fd < 0 || (syscall(SYS_finit_module, fd, parameters, 0) < 0 && errno != EEXIST)) {
		/*T*/ // One of kvm-amd and kvm-intel never fits the CPU.
		if (strncmp(line, "kvm-", 4) != 0 || access("/dev/kvm", F_OK) != 0)
			printf("machine: module %s: %s\n", line, strerror(errno));
	}
}

// KVM's modules take half of the time and nothing before the engine needs them: they are loaded in a process of their own meanwhile.
static bool is_kvm_module(const char *line) {
	static const char *const names[] = {"irqbypass", "kvm", "ccp", "kvm-amd", "kvm-intel"};
	size_t size = strcspn(line, " \t");
	for (size_t i = 0; i < COUNT(names); i++)
		if (strlen(names[i]) == size && memcmp(names[i], line, size) == 0)
			return true;
	return false;
}

static void load_modules(char *list, bool kvm) {
	char *rest = NULL;
	for (char *line = strtok_r(list, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
		if (line[0] != '#' && is_kvm_module(line) == kvm)
			load_module(line);
}

pid_t init_modules(void) {
	cleanup_free char *list = NULL;
	struct error e;
	if (read_file("/modules/modules.txt", MODULE_LIST_MAX, &list, NULL, &e) < 0) {
		printf("machine: %s\n", e.message);
		return -1;
	}
	pid_t child = fork();
	if (child == 0) {
		load_modules(list, true);
		fflush(stdout);
		_exit(0);
	}
	load_modules(list, false);
	return child;
}

struct mount_point {
	const char *source, *target, *type, *options;
	unsigned long flags;
};

static int mount_one(const struct mount_point *m, struct error *e) {
	mkdir(m->target, 0755);
	if (mount(m->source, m->target, m->type, m->flags, m->options) < 0)
		return error_errno(e, "cannot mount %s (%s) in the machine", m->target, m->type);
	return 0;
}

static int mount_table(const struct mount_point *table, size_t n, struct error *e) {
	for (size_t i = 0; i < n; i++) {
		int code = mount_one(&table[i], e);
		if (code < 0)
			return code;
	}
	return 0;
}

int init_early_mounts(struct error *e) {
	static const struct mount_point table[] = {
		{"proc", "/proc", "proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
		{"dev", "/dev", "devtmpfs", "mode=0755", MS_NOSUID},
	};
	int code = mount_table(table, COUNT(table), e);
	if (code < 0)
		return code;
	int fd = open("/dev/console", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 3 && fd >= 0; i++)
		dup2(fd, i);
	return 0;
}

static int write_text(const char *path, mode_t mode, const char *text, size_t size, struct error *e) {
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
	if (fd < 0)
		return error_errno(e, "cannot create %s in the machine", path);
	int code = write_full(fd, text, size);
	return code < 0 ? error_set(e, code, "cannot write %s in the machine: %s", path, strerror(-code)) : 0;
}

// The configuration is copied, so that user stasis can read it whoever owns it on the host, and the export is unmounted again.
static int copy_config(const struct init_options *o, struct error *e) {
	int code = mount_one(&(struct mount_point){"config", CONFIG_EXPORT, "9p", NINE_P, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC}, e);
	if (code < 0)
		return code;
	mkdir(NEW_ROOT INIT_CONFIG, 0750);
	if (chown(NEW_ROOT INIT_CONFIG, 0, o->uid) < 0)
		return error_errno(e, "cannot set the owner of " INIT_CONFIG);
	cleanup_dir DIR *d = opendir(CONFIG_EXPORT);
	if (d == NULL)
		return error_errno(e, "cannot read the configuration's folder");
	struct dirent *entry;
	while ((entry = readdir(d)) != NULL) {
		char from[512], to[512];
		snprintf(from, sizeof(from), CONFIG_EXPORT "/%s", entry->d_name);
		snprintf(to, sizeof(to), NEW_ROOT INIT_CONFIG "/%s", entry->d_name);
		struct stat st;
		cleanup_free char *data = NULL;
		size_t size = 0;
		if (lstat(from, &st) < 0 || !S_ISREG(st.st_mode))
			continue;
		code = read_file(from, COPY_MAX, &data, &size, e);
		if (code < 0 || (code = write_text(to, 0640, data, size, e)) < 0)
			return code;
		if (chown(to, 0, o->uid) < 0)
			return error_errno(e, "cannot set the owner of %s", to);
	}
	closedir(d);
	d = NULL;
	umount(CONFIG_EXPORT);
	return 0;
}

static int write_etc(const struct init_options *o, struct error *e) {
	char passwd[256], group[256];
	unsigned uid = (unsigned)o->uid;
	snprintf(passwd, sizeof(passwd),
		 "root:x:0:0:root:/root:/bin/sh\nstasis:x:%u:%u:Stasis:" INIT_STATE
		 ":/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
		 uid, uid);
	snprintf(group, sizeof(group), "root:x:0:\nstasis:x:%u:\nnogroup:x:65534:\n", uid);
	const struct {
		const char *path, *text;
	} files[] = {
		{NEW_ROOT "/etc/passwd", passwd},
		{NEW_ROOT "/etc/group", group},
		{NEW_ROOT "/etc/hosts", "127.0.0.1 localhost\n10.0.2.15 stasis-machine\n"},
		{NEW_ROOT "/etc/hostname", "stasis-machine\n"},
		{NEW_ROOT "/etc/resolv.conf", "nameserver 10.0.2.3\n"},
		{NEW_ROOT "/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"},
	};
	for (size_t i = 0; i < COUNT(files); i++) {
		int code = write_text(files[i].path, 0644, files[i].text, strlen(files[i].text), e);
		if (code < 0)
			return code;
	}
	// The host's certificates come along with the configuration; see machine_start().
	make_folders(NEW_ROOT "/etc/ssl/certs", 0755, NULL);
	chmod(NEW_ROOT INIT_CONFIG "/ca-certificates.crt", 0644);
	if (rename(NEW_ROOT INIT_CONFIG "/ca-certificates.crt", NEW_ROOT "/etc/ssl/certs/ca-certificates.crt") < 0 && errno != ENOENT)
		return error_errno(e, "cannot place the certificates");
	if (symlink("certs/ca-certificates.crt", NEW_ROOT "/etc/ssl/cert.pem") < 0)
		return error_errno(e, "cannot place the certificates");
	return 0;
}

// The usual links into /usr. A host with separate /bin and /lib (not merged) is one that Stasis does not run on: say so.
static int link_usr(struct error *e) {
	static const char *const names[] = {"bin", "sbin", "lib", "lib64"};
	struct stat st;
	if (lstat(NEW_ROOT "/usr/lib64/ld-linux-x86-64.so.2", &st) < 0)
		return error_errno(e, "the host's /usr has no lib64/ld-linux-x86-64.so.2: Stasis needs a distribution with merged /usr");
	for (size_t i = 0; i < COUNT(names); i++) {
		char target[32], path[64];
		snprintf(target, sizeof(target), "usr/%s", names[i]);
		snprintf(path, sizeof(path), NEW_ROOT "/%s", names[i]);
		if (symlink(target, path) < 0)
			return error_errno(e, "cannot create %s in the machine", path);
	}
	return 0;
}

static int mount_cgroups(struct error *e) {
	int code = mount_one(&(struct mount_point){"cgroup2", "/sys/fs/cgroup", "cgroup2", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC}, e);
	if (code < 0)
		return code;
	code = init_write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +pids +io");
	return code < 0 ? error_set(e, code, "the machine's kernel lacks cgroup controllers: %s", strerror(-code)) : 0;
}

int init_root(const struct init_options *o, struct error *e) {
	static const struct mount_point exports[] = {
		{"tmpfs", NEW_ROOT, "tmpfs", "mode=0755,size=256m", MS_NOSUID | MS_NODEV},
		{"usr", NEW_ROOT "/usr", "9p", NINE_P, MS_RDONLY | MS_NOSUID | MS_NODEV},
		{"program", NEW_ROOT INIT_PROGRAM, "9p", NINE_P, MS_RDONLY | MS_NOSUID | MS_NODEV},
	};
	static const struct mount_point rest[] = {
		{"sysfs", "/sys", "sysfs", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC},
		{"devpts", "/dev/pts", "devpts", "mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC},
		{"tmpfs", "/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV},
		{"tmpfs", "/run", "tmpfs", "mode=0755,size=64m", MS_NOSUID | MS_NODEV},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777,size=1g", MS_NOSUID | MS_NODEV},
	};
	int code = mount_table(exports, COUNT(exports), e);
	if (code < 0)
		return code;
	static const char *const folders[] = {"proc", "dev", "etc", "root", "mnt", "var", "var/lib", "var/tmp"};
	for (size_t i = 0; i < COUNT(folders); i++) {
		char path[64];
		snprintf(path, sizeof(path), NEW_ROOT "/%s", folders[i]);
		mkdir(path, 0755);
	}
	if ((code = link_usr(e)) < 0 || (code = copy_config(o, e)) < 0 || (code = write_etc(o, e)) < 0)
		return code;
	if (mount("/proc", NEW_ROOT "/proc", NULL, MS_MOVE, NULL) < 0 || mount("/dev", NEW_ROOT "/dev", NULL, MS_MOVE, NULL) < 0 ||
	    chdir(NEW_ROOT) < 0)
		return error_errno(e, "cannot move the machine's mounts");
	// What the initramfs holds is memory; give it back before it is out of sight.
	remove_tree("/modules", NULL);
	unlink("/init");
	if (mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return error_errno(e, "cannot change the machine's root");
	if ((code = mount_table(rest, COUNT(rest), e)) < 0 || (code = mount_cgroups(e)) < 0)
		return code;
	if (sethostname("stasis-machine", 14) < 0)
		return error_errno(e, "cannot set the machine's name");
	return 0;
}

// s_state in the superblock (offset 1024 + 58): bit 0 clean, bit 1 errors seen. An unclean stop alone is the journal's business.
static bool needs_check(const char *device) {
	cleanup_close int fd = open(device, O_RDONLY | O_CLOEXEC);
	uint16_t state = 0;
	return fd < 0 || pread_full(fd, &state, sizeof(state), 1024 + 58) < 0 || (state & 1) == 0 || (state & 2) != 0;
}

static int check(const char *device, struct error *e) {
	pid_t pid = fork();
	if (pid == 0) {
		execl("/usr/sbin/e2fsck", "e2fsck", "-p", device, (char *)NULL);
		_exit(127);
	}
	int status = 0;
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return error_errno(e, "cannot check the state disk");
	if (!WIFEXITED(status) || (WEXITSTATUS(status) & ~3) != 0)
		return error_set(e, -EIO,
				 "the state disk is damaged and could not be repaired automatically (e2fsck -p: %d): run `e2fsck -y` on "
				 "the file of the state disk while the machine is down",
				 WEXITSTATUS(status));
	return 0;
}

// After the program's owner changed (another uid for user stasis), the state must follow.
static void own_tree(const char *path, uid_t uid) {
	struct stat st;
	if (lstat(path, &st) < 0)
		return;
	if (lchown(path, uid, uid) < 0 || !S_ISDIR(st.st_mode))
		return;
	cleanup_dir DIR *d = opendir(path);
	struct dirent *entry;
	while (d != NULL && (entry = readdir(d)) != NULL) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		char inner[4096];
		if (snprintf(inner, sizeof(inner), "%s/%s", path, entry->d_name) < (int)sizeof(inner))
			own_tree(inner, uid);
	}
}

int init_state_disk(const struct init_options *o, struct error *e) {
	if (access(STATE_DEVICE, F_OK) < 0)
		return error_set(e, -ENODEV, "the machine has no state disk");
	if (needs_check(STATE_DEVICE)) {
		int code = check(STATE_DEVICE, e);
		if (code < 0)
			return code;
	}
	// noinit_itable: the file on the host stays sparse.
	int code = mount_one(
		&(struct mount_point){STATE_DEVICE, INIT_STATE, "ext4", "noinit_itable,discard", MS_NOSUID | MS_NODEV | MS_NOATIME}, e);
	if (code < 0)
		return code;
	struct stat st;
	if (stat(INIT_STATE, &st) == 0 && st.st_uid != o->uid)
		own_tree(INIT_STATE, o->uid);
	return chmod(INIT_STATE, 0750) < 0 ? error_errno(e, "cannot set the mode of " INIT_STATE) : 0;
}
