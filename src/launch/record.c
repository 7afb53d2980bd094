// A slot's record: one line, `slot <number> pid <pid> started <ticks> taken <0|1>`, in `<run>/vm/<vmm>/slot`, readable by root only. A microVM
// with networks has ` egress <enum launch_egress> networks <name>,…` behind that.
#include "launch/record.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "launch/messages.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_ROOM 256
#define NETWORKS_ROOM (LAUNCH_NETWORKS_MAX * LAUNCH_NETWORK_MAX)
#define TEXT_ROOM (NETWORKS_ROOM + 192)

static void path_of(const char *run, const char *vmm, const char *name, char to[PATH_ROOM]) {
	snprintf(to, PATH_ROOM, "%.100s/vm/%.40s%s%s", run, vmm, name[0] != '\0' ? "/" : "", name);
}

static void join_networks(const struct egress *g, char to[NETWORKS_ROOM]) {
	size_t size = 0;
	to[0] = '\0';
	for (uint32_t i = 0; i < g->network_count; i++)
		size += (size_t)snprintf(to + size, NETWORKS_ROOM - size, "%s%s", i == 0 ? "" : ",", g->networks[i]);
}

int record_write(const char *run, const char *vmm, const struct record *r) {
	char path[PATH_ROOM], fresh[PATH_ROOM], text[TEXT_ROOM], networks[NETWORKS_ROOM];
	path_of(run, vmm, "slot", path);
	path_of(run, vmm, "slot.new", fresh);
	int size = snprintf(text, sizeof(text), "slot %u pid %d started %llu taken %d", r->number, (int)r->pid,
			    (unsigned long long)r->started, r->taken);
	join_networks(&r->egress, networks);
	if (r->egress.network_count > 0)
		size += snprintf(text + size, sizeof(text) - (size_t)size, " egress %u networks %s", r->egress.base, networks);
	text[size++] = '\n';
	cleanup_close int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	int code = write_full(fd, text, (size_t)size);
	if (code < 0)
		return code;
	return rename(fresh, path) < 0 ? -errno : 0;
}

static int parse_egress(const char *text, struct egress *ret) {
	char networks[NETWORKS_ROOM], *rest = NULL;
	int end = 0;
	if (sscanf(text, " egress %1u networks %767[0-9a-z,-]%n", &ret->base, networks, &end) != 2 || strcmp(text + end, "\n") != 0 ||
	    ret->base > LAUNCH_EGRESS_INTERNET)
		return -EBADMSG;
	for (char *name = strtok_r(networks, ",", &rest); name != NULL; name = strtok_r(NULL, ",", &rest)) {
		if (ret->network_count == LAUNCH_NETWORKS_MAX || !network_name_is_valid(name))
			return -EBADMSG;
		memcpy(ret->networks[ret->network_count++], name, strlen(name) + 1);
	}
	return 0;
}

int record_parse(const char *text, struct record *ret) {
	unsigned number, taken;
	int pid, end = 0;
	unsigned long long started;
	if (sscanf(text, "slot %9u pid %9d started %19llu taken %1u%n", &number, &pid, &started, &taken, &end) != 4 || end == 0 ||
	    pid <= 1 || taken > 1)
		return -EBADMSG;
	*ret = (struct record){.number = number, .pid = pid, .started = started, .taken = taken == 1};
	return strcmp(text + end, "\n") == 0 ? 0 : parse_egress(text + end, &ret->egress);
}

int record_read(const char *run, const char *vmm, struct record *ret) {
	char path[PATH_ROOM];
	cleanup_free char *text = NULL;
	path_of(run, vmm, "slot", path);
	int code = read_file(path, TEXT_ROOM, &text, NULL, NULL);
	return code < 0 ? code : record_parse(text, ret);
}

// The second field is the program's name in parentheses, which may contain anything: fields are counted from the last parenthesis.
uint64_t process_started_parse(const char *stat) {
	const char *at = strrchr(stat, ')');
	for (int field = 2; at != NULL && field < 22; field++) {
		at = strchr(at, ' ');
		if (at != NULL)
			at++;
	}
	return at == NULL ? 0 : strtoull(at, NULL, 10);
}

uint64_t process_started(pid_t pid) {
	char path[64];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	return read_file(path, 4096, &text, NULL, NULL) < 0 ? 0 : process_started_parse(text);
}

void record_remove_folder(const char *run, const char *vmm) {
	static const char *const names[] = {"control.sock", "vsock.sock", "slot", "slot.new"};
	char path[PATH_ROOM];
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		path_of(run, vmm, names[i], path);
		unlink(path);
	}
	path_of(run, vmm, "", path);
	rmdir(path);
}
