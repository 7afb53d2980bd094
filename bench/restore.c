// Restore to the first guest exit, with a tiny guest on this host's /dev/kvm: bench-restore <stasis-vmm> [samples]
//
// The clock is the client's: it starts when the RESTORE request is sent and stops when the EXITED event has arrived. The guest, restored, sees its
// new generation ID and powers itself off, which is its first exit; so the figure holds everything: the request's way, the
// restore, the guest's first instructions, and the event's way back.
//
//   cold      the VMM process waits, nothing is configured
//   process   the same, with the VMM's fork and exec
//   prepared  VMM_PREPARE was done before
//   image     cold, with 512 MiB of which 60 MiB, scattered, are in the memory layer (mapped in many extents)
#include "client.h"

#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#define STAGES 7
#define SAMPLES_MAX 10000

struct image {
	uint32_t memory_mib;
	int state, memory;
};

struct series {
	const char *name;
	bool prepare;
	unsigned count, failures;
	double total[SAMPLES_MAX], process[SAMPLES_MAX], vmm[SAMPLES_MAX];
	double stages[STAGES][SAMPLES_MAX];
};

static const char *const stage_names[STAGES] = {"read", "vm", "memory", "devices", "state", "prefetch", "start"};

static int make_image(const char *program, int guest, uint32_t memory_mib, const char *command, struct image *ret) {
	struct vmm v;
	struct vmm_reply reply = {.text = ""};
	size_t from = 0;
	*ret = (struct image){.memory_mib = memory_mib, .state = memory_file("state"), .memory = memory_file("memory")};
	int r = vmm_spawn(&v, program, -1, -1);
	if (r == 0)
		r = vmm_boot_call(&v, guest, -1, memory_mib, 1, command, &reply);
	if (r == 0 && !console_wait(&v, "ready\n", &from))
		r = -ETIMEDOUT;
	if (r == 0)
		r = vmm_simple(&v, VMM_PAUSE, &reply);
	if (r == 0)
		r = vmm_snapshot_call(&v, 0, ret->state, ret->memory, &reply);
	if (r < 0)
		fprintf(stderr, "bench-restore: cannot make the image: %s %s\n", strerror(-r), reply.text);
	vmm_end(&v);
	return r;
}

static int note_stages(struct series *s, const char *text) {
	unsigned long us[STAGES];
	if (sscanf(text, "read %lu us, vm %lu us, memory %lu us, devices %lu us, state %lu us, prefetch %lu us, start %lu us", &us[0],
		   &us[1], &us[2], &us[3], &us[4], &us[5], &us[6]) != STAGES)
		return -EPROTO;
	for (int i = 0; i < STAGES; i++)
		s->stages[i][s->count] = (double)us[i];
	return 0;
}

static int sample(struct series *s, const char *program, const struct image *image) {
	struct vmm v;
	struct vmm_reply reply = {.text = ""}, event;
	uint64_t process = monotonic_ns();
	int r = vmm_spawn(&v, program, -1, -1);
	// Until it answers it is still starting.
	if (r == 0)
		r = vmm_simple(&v, VMM_STATS, &reply);
	uint64_t ready = monotonic_ns();
	if (r == 0 && s->prepare)
		r = vmm_prepare_call(&v, image->memory_mib, 1, &reply);
	usleep(2000); // what starting left behind has settled
	uint64_t from = monotonic_ns();
	if (r == 0)
		r = vmm_restore_call(&v, image->state, &image->memory, 1, VMM_RESTORE_CLONE, &reply);
	if (r == 0)
		r = vmm_wait_exited(&v, &event, 5000);
	uint64_t done = monotonic_ns();
	if (r == 0 && event.exit != VMM_EXIT_POWEROFF)
		r = -EPROTO;
	vmm_end(&v);
	if (r == 0)
		r = note_stages(s, reply.text);
	if (r < 0) {
		s->failures++;
		return r;
	}
	s->total[s->count] = (double)(done - from) / 1000;
	s->process[s->count] = (double)(done - from + ready - process) / 1000;
	s->vmm[s->count] = (double)reply.nanoseconds / 1000;
	s->count++;
	return 0;
}

static int compare(const void *a, const void *b) {
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

static void print_percentiles(const char *name, double *values, unsigned count) {
	if (count == 0)
		return;
	qsort(values, count, sizeof(*values), compare);
	printf("restore.%s.p50 %.0f us\nrestore.%s.p99 %.0f us\n", name, values[count / 2], name, values[count * 99 / 100]);
}

static void print_series(struct series *s) {
	char name[64];
	print_percentiles(s->name, s->total, s->count);
	snprintf(name, sizeof(name), "%s.vmm", s->name);
	print_percentiles(name, s->vmm, s->count);
	if (!s->prepare) {
		snprintf(name, sizeof(name), "%s.process", s->name);
		print_percentiles(name, s->process, s->count);
	}
	for (int i = 0; i < STAGES && s->count > 0; i++) {
		qsort(s->stages[i], s->count, sizeof(double), compare);
		printf("restore.%s.stage.%s.p50 %.0f us\n", s->name, stage_names[i], s->stages[i][s->count / 2]);
	}
}

static void print_machine(void) {
	struct utsname u;
	char line[256], cpu[200] = "unknown";
	FILE *f = fopen("/proc/cpuinfo", "r");
	while (f != NULL && fgets(line, sizeof(line), f) != NULL)
		if (sscanf(line, "model name : %199[^\n]", cpu) == 1)
			break;
	if (f != NULL)
		fclose(f);
	uname(&u);
	printf("machine %s %s, %s, %ld CPUs\n", u.sysname, u.release, cpu, sysconf(_SC_NPROCESSORS_ONLN));
}

int main(int argc, char **argv) {
	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: bench-restore <stasis-vmm> [samples]\n");
		return 2;
	}
	int samples = argc == 3 ? atoi(argv[2]) : 200, guest = guest_image(GUEST_PATH);
	if (samples < 1 || samples > SAMPLES_MAX || guest < 0) {
		fprintf(stderr, "bench-restore: cannot read the guest, or wrong number of samples\n");
		return 2;
	}
	static struct series series[] = {
		{.name = "cold"}, {.name = "prepared", .prepare = true}, {.name = "image"}, {.name = "image.prepared", .prepare = true}};
	struct image tiny, spread;
	if (make_image(argv[1], guest, 128, "restored", &tiny) < 0 || make_image(argv[1], guest, 512, "spread 180", &spread) < 0)
		return 1;
	print_machine();
	unsigned failures = 0;
	for (int i = 0; i < samples; i++)
		for (size_t s = 0; s < sizeof(series) / sizeof(series[0]); s++)
			sample(&series[s], argv[1], s < 2 ? &tiny : &spread);
	for (size_t s = 0; s < sizeof(series) / sizeof(series[0]); s++) {
		print_series(&series[s]);
		failures += series[s].failures;
	}
	printf("restore.failures %u count\n", failures);
	return failures == 0 ? 0 : 1;
}
