// Early start of a guest; see stage.h.
//
// The initramfs holds this program and, in /modules, the kernel modules in the order in which they are to be loaded. The system disk is shared
// by all microVMs and read-only: a tmpfs lies over it (overlayfs), so that what must be writable is. The switch is the usual one: everything that is mounted
// moves, then the new root moves over "/".
#include "guest/stage.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "guest/disks.h"
#include "guest/guest.h"
#include "guest/network.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define DISK_DEADLINE_NS 30000000000ull
#define DISK_PAUSE_US 2000

struct mount_point {
	const char *to, *type;
	unsigned long flags;
	const char *options;
};

static int mount_all(const struct mount_point *m, size_t n, struct error *e) {
	for (size_t i = 0; i < n; i++) {
		mkdir(m[i].to, 0755);
		// EBUSY: the kernel has mounted devtmpfs itself.
		if (mount(m[i].type, m[i].to, m[i].type, m[i].flags, m[i].options) < 0 && errno != EBUSY)
			return error_errno(e, "cannot mount %s on %s", m[i].type, m[i].to);
	}
	return 0;
}

static void open_console(void) {
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	if (fd < 0)
		fd = open("/dev/null", O_RDWR);
	for (int i = 0; i <= 2; i++)
		if (fd >= 0 && fd != i)
			dup2(fd, i);
	if (fd > 2)
		close(fd);
}

static int mount_kernel_file_systems(struct error *e) {
	static const struct mount_point early[] = {
		{"/dev", "devtmpfs", MS_NOSUID, "mode=755"},
		{"/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
		{"/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
		{"/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"},
		{"/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"},
		{"/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666"},
		{"/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"},
		{"/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
	};
	int r = mount_all(early, sizeof(early) / sizeof(*early), e);

	open_console();
	return r;
}

// Modules.

static int by_name(const struct dirent **a, const struct dirent **b) {
	return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_module(const struct dirent *d) {
	size_t n = strlen(d->d_name);
	return n > 3 && strcmp(d->d_name + n - 3, ".ko") == 0;
}

// A module that cannot be loaded is told and passed over: whether it was needed shows soon, and the line on the console says why.
static void load_module(const char *path) {
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST && errno != ENODEV))
		log_warn("module", LOG_S("path", path), LOG_S("error", strerror(errno)));
	// The initramfs lies in memory.
	unlink(path);
}

static void load_modules(void) {
	struct dirent **entries = NULL;
	char path[300];
	int n = scandir("/modules", &entries, is_module, by_name);

	for (int i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "/modules/%s", entries[i]->d_name);
		load_module(path);
		free(entries[i]);
	}
	free(entries);
	rmdir("/modules");
}

// The system disk.

static int wait_for_disk(char *device, size_t room, struct error *e) {
	uint64_t deadline = monotonic_ns() + DISK_DEADLINE_NS;

	while (disk_find(GUEST_DISK_SYSTEM, device, room, NULL) < 0) {
		if (monotonic_ns() > deadline)
			return error_set(e, -ENODEV,
					 "no disk with the serial \"" GUEST_DISK_SYSTEM "\" came within %llu s; the VMM must be given one",
					 DISK_DEADLINE_NS / 1000000000ull);
		usleep(DISK_PAUSE_US);
	}
	return 0;
}

static int mount_system(struct error *e) {
	char device[64];

	int r = wait_for_disk(device, sizeof(device), e);
	if (r < 0)
		return r;
	mkdir("/system", 0755);
	mkdir("/layer", 0755);
	mkdir("/root", 0755);
	if (mount(device, "/system", "ext4", MS_RDONLY | MS_NOATIME, NULL) < 0)
		return error_errno(e, "cannot mount the system disk (%s)", device);
	if (mount("layer", "/layer", "tmpfs", 0, "mode=755") < 0 || mkdir("/layer/upper", 0755) < 0 || mkdir("/layer/work", 0755) < 0)
		return error_errno(e, "cannot make the writable layer over the system disk");
	if (mount("root", "/root", "overlay", 0, "lowerdir=/system,upperdir=/layer/upper,workdir=/layer/work") < 0)
		return error_errno(e, "cannot lay the writable layer over the system disk");
	return 0;
}

static int switch_root(struct error *e) {
	static const char *const moved[] = {"/dev", "/proc", "/sys", "/run", "/tmp"};
	char to[64];

	for (size_t i = 0; i < sizeof(moved) / sizeof(*moved); i++) {
		snprintf(to, sizeof(to), "/root%s", moved[i]);
		mkdir(to, 0755);
		if (mount(moved[i], to, NULL, MS_MOVE, NULL) < 0)
			return error_errno(e, "cannot move %s to the system disk", moved[i]);
	}
	unlink("/init");
	if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return error_errno(e, "cannot make the system disk the root file system");
	return 0;
}

// The rest.

static void set_up_limits(void) {
	struct rlimit files = {8192, 65536};
	static const struct {
		const char *path, *value;
	} settings[] = {
		// As in Docker's containers: any user may listen on any port and send pings.
		{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
		{"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"},
		// The agent is not to be chosen when memory is short; the application starts at 0.
		{"/proc/self/oom_score_adj", "-1000"},
	};

	setrlimit(RLIMIT_NOFILE, &files);
	for (size_t i = 0; i < sizeof(settings) / sizeof(*settings); i++) {
		cleanup_close int fd = open(settings[i].path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, settings[i].value, strlen(settings[i].value)) < 0)
			log_warn("setting", LOG_S("path", settings[i].path), LOG_S("error", strerror(errno)));
	}
}

// A guest without a network card (no egress) is a guest all the same.
static void set_up_network(void) {
	struct in_addr address, gateway;
	struct error e = {0};

	if (network_loopback(&e) < 0)
		log_warn("network", LOG_S("error", e.message));
	inet_pton(AF_INET, GUEST_ADDRESS, &address);
	inet_pton(AF_INET, GUEST_GATEWAY, &gateway);
	int r = network_configure(GUEST_INTERFACE, address, GUEST_PREFIX, gateway, &e);
	if (r < 0 && r != -ENODEV)
		log_warn("network", LOG_S("error", e.message));
}

int stage_run(struct error *e) {
	int r;

	umask(022);
	if ((r = mount_kernel_file_systems(e)) < 0)
		return r;
	load_modules();
	if ((r = mount_system(e)) < 0 || (r = switch_root(e)) < 0 || (r = make_folders("/run/stasis", 0755, e)) < 0)
		return r;
	set_up_limits();
	set_up_network();
	return 0;
}

void stage_give_up(const struct error *e) {
	log_error("stasis-init", LOG_S("error", e->message));
	sync();
	// Let the console's last line out.
	usleep(100000);
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}
