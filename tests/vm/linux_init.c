// PID 1 of the guest in test_linux: loads the virtio modules, says what it found, and then does what "test=" on the command line says.
// Static; the only program of its initramfs.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CPUS_MAX 64
#define PATTERN_BYTES (8u << 20)

static _Atomic uint64_t progress[CPUS_MAX];

static void load_modules(void) {
	char line[256], path[300];
	FILE *order = fopen("/modules/order", "r");
	while (order != NULL && fgets(line, sizeof(line), order) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		snprintf(path, sizeof(path), "/modules/%s", line);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
			printf("module %s: %s\n", line, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	if (order != NULL)
		fclose(order);
}

static unsigned count_entries(const char *path) {
	unsigned n = 0;
	DIR *d = opendir(path);
	for (struct dirent *x; d != NULL && (x = readdir(d)) != NULL;)
		n += x->d_name[0] != '.';
	if (d != NULL)
		closedir(d);
	return n;
}

static double seconds(clockid_t clock) {
	struct timespec t;
	clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void *worker(void *arg) {
	unsigned cpu = (unsigned)(uintptr_t)arg;
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
	for (;;) {
		progress[cpu]++;
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	}
	return NULL;
}

// Ticks for ever: every CPU has to make progress, time must not jump, memory must stay.
static void loop(unsigned cpus) {
	uint32_t *pattern = mmap(NULL, PATTERN_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t before[CPUS_MAX] = {0};
	double last = seconds(CLOCK_MONOTONIC);
	for (unsigned i = 0; i < cpus; i++) {
		pthread_t t;
		pthread_create(&t, NULL, worker, (void *)(uintptr_t)i);
	}
	for (uint32_t n = 1;; n++) {
		for (uint32_t i = 0; i < PATTERN_BYTES / 4; i += 512)
			pattern[i] = n * 2654435761u + i;
		nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
		unsigned alive = 0, wrong = 0;
		for (uint32_t i = 0; i < PATTERN_BYTES / 4; i += 512)
			wrong += pattern[i] != n * 2654435761u + i;
		for (unsigned i = 0; i < cpus; i++) {
			alive += progress[i] != before[i];
			before[i] = progress[i];
		}
		double now = seconds(CLOCK_MONOTONIC);
		printf("tick=%08x\nalive=%08x\nwrong=%08x\nstep_ms=%08x\n", n, alive, wrong, (unsigned)((now - last) * 1000));
		printf("end of tick\n");
		last = now;
	}
}

int main(void) {
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	int console = open("/dev/console", O_RDWR);
	for (int i = 0; i < 3; i++)
		dup2(console, i);
	setvbuf(stdout, NULL, _IOLBF, 0);
	load_modules();
	char cmdline[2048] = "", clock[64] = "";
	FILE *f = fopen("/proc/cmdline", "r");
	if (f == NULL || fgets(cmdline, sizeof(cmdline), f) == NULL)
		printf("no command line\n");
	FILE *c = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "r");
	if (c == NULL || fgets(clock, sizeof(clock), c) == NULL)
		printf("no clock source\n");
	unsigned cpus = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
	printf("cpus=%08x\nmemory_mib=%08x\nvirtio=%08x\n", cpus, (unsigned)(sysconf(_SC_PHYS_PAGES) / 256),
	       count_entries("/sys/bus/virtio/devices"));
	printf("clock source %s", clock);
	printf("guest is up\n");
	if (strstr(cmdline, "test=loop") != NULL)
		loop(cpus);
	else if (strstr(cmdline, "test=reboot") != NULL)
		reboot(RB_AUTOBOOT);
	else if (strstr(cmdline, "test=panic") != NULL)
		return 1; // the end of PID 1 is a panic
	else
		reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
