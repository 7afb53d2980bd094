// The real stasisd, natively, without KVM and without root: stasis-launch, VMMs and guest agents are stand-ins (tests/unit/peers.h). For what
// must be done a thousand times (kill stasisd, see what the next one makes of it) or is about stasisd alone (benchmarks of the API).
//
// Usage: engine_host STASISD FOLDER PORT [IMAGES MICROVMS]. FOLDER gets state, run, assets and stasisd.log; API, artifact store and edge listen on
// PORT, PORT+1, PORT+2 of 127.0.0.1. The store is filled first: IMAGES ready images `image-<n>`, and MICROVMS records, one in ten SUSPENDED, the
// others TERMINATED. Commands come as lines on standard input, each is answered by one line of JSON:
//
//     kill     SIGKILL of stasisd; the next one is started at once and finds the VMMs living
//     power    SIGKILL of stasisd, and every VMM is gone, as after a power cut of the host
//     vmm      one VMM dies
//     slots    how many VMMs live
//     stop     SIGTERM of stasisd, which suspends what runs; answered when it has ended
//     start    starts it again
//
// When standard input ends, stasisd is killed and the program ends.
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "peers.h"
#include "store/db.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATH_ROOM 512
#define STASISD_FD 3
#define ACCOUNT "000000000000"

static struct {
	const char *stasisd;
	char folder[256], config[PATH_ROOM], log[PATH_ROOM];
	struct peers *peers;
	int launcher;
	pid_t pid;
} host;

static void die(const char *what) {
	fprintf(stderr, "engine_host: %s\n", what);
	exit(1);
}

static void write_text(const char *folder, const char *name, const char *text) {
	char path[PATH_ROOM];
	struct error e;
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	if (make_folders(folder, 0755, &e) < 0)
		die(e.message);
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write_full(fd, text, strlen(text)) < 0)
		die(path);
}

static void write_config(int port) {
	char text[2048], assets[PATH_ROOM];
	snprintf(text, sizeof(text),
		 "{\"stateFolder\":\"%s/state\",\"runFolder\":\"%s/run\",\"assetsFolder\":\"%s/assets\",\"apiListen\":\"127.0.0.1:%d\","
		 "\"artifactsListen\":\"127.0.0.1:%d\",\"edgeListen\":\"127.0.0.1:%d\",\"edgePublicPort\":%d,\"account\":\"" ACCOUNT
		 "\",\"accessKeyId\":\"AKIDSTASISTEST000001\",\"secretAccessKey\":\"secret/one+two=three\",\"logLevel\":\"%s\"}",
		 host.folder, host.folder, host.folder, port, port + 1, port + 2, port + 2,
		 getenv("ENGINE_LOG_LEVEL") == NULL ? "info" : getenv("ENGINE_LOG_LEVEL"));
	write_text(host.folder, "config.json", text);
	snprintf(host.config, sizeof(host.config), "%s/config.json", host.folder);
	snprintf(host.log, sizeof(host.log), "%s/stasisd.log", host.folder);
	snprintf(assets, sizeof(assets), "%s/assets", host.folder);
	write_text(assets, "system.ext4", "the system disk");
	write_text(assets, "assets.json",
		   "{\"assets\":{\"kernel\":{\"sha256\":\"1\"},\"guest.initrd\":{\"sha256\":\"2\"},\"system\":{\"sha256\":\"3\"},"
		   "\"builder\":{\"sha256\":\"4\"},\"bases\":{\"sha256\":\"5\"}},"
		   "\"baseImages\":[{\"name\":\"debian\",\"version\":\"1\",\"createdMs\":1750000000000}]}");
}

static void fill_image(struct store *s, int number, struct store_image *ret) {
	char config[] =
		"{\"resources\":[{\"minimumMemoryInMiB\":512}],\"hooks\":{\"port\":8080,\"microvmHooks\":{\"run\":\"ENABLED\"}},"
		"\"egressNetworkConnectors\":[\"arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS\"]}";
	static const char *const files[] = {"disk.ext4", "system.ext4", "memory", "state"};
	char folder[PATH_ROOM];
	struct error e;
	struct store_image i = {.account = ACCOUNT,
				.state = "CREATED",
				.latest_active_version = "1.0",
				.created_ms = (int64_t)realtime_ms(),
				.tags = (char[]){"{}"}};
	struct store_version v = {
		.version = "1.0", .state = "SUCCESSFUL", .status = "ACTIVE", .created_ms = i.created_ms, .config = config};
	struct store_build b = {.version = "1.0", .state = "SUCCESSFUL", .architecture = "X86_64", .created_ms = i.created_ms};
	uuid_new(i.uuid);
	uuid_new(b.build_id);
	memcpy(v.image_uuid, i.uuid, UUID_TEXT);
	memcpy(b.image_uuid, i.uuid, UUID_TEXT);
	snprintf(i.name, sizeof(i.name), "image-%d", number);
	snprintf(i.arn, sizeof(i.arn), "arn:aws:lambda:us-east-1:" ACCOUNT ":microvm-image:image-%d", number);
	if (store_add_image(s, &i, &v, &b, NULL, &e) < 0)
		die(e.message);
	snprintf(folder, sizeof(folder), "%s/state/images/%s/1.0", host.folder, i.uuid);
	for (size_t f = 0; number == 0 && f < 4; f++)
		write_text(folder, files[f], strcmp(files[f], "memory") == 0 ? "100 0" : "state of the image");
	*ret = i;
}

static void fill_microvm(struct store *s, int number, const struct store_image *i) {
	char config[] =
		"{\"ingressNetworkConnectors\":[\"arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:HTTP_INGRESS\"],"
		"\"egressNetworkConnectors\":[\"arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS\"]}";
	bool asleep = number % 10 == 0;
	int64_t now = (int64_t)realtime_ms();
	struct store_microvm m = {.account = ACCOUNT,
				  .version = "1.0",
				  .started_ms = now,
				  .maximum_duration_s = 28800,
				  .has_idle_policy = true,
				  .max_idle_s = 3600,
				  .suspended_s = 28800,
				  .auto_resume = true,
				  .config = config};
	char uuid[UUID_TEXT], folder[PATH_ROOM];
	struct error e;
	uuid_new(uuid);
	uuid_new(m.endpoint);
	snprintf(m.id, sizeof(m.id), "microvm-%s", uuid);
	snprintf(m.image_uuid, sizeof(m.image_uuid), "%s", i->uuid);
	snprintf(m.image_arn, sizeof(m.image_arn), "%s", i->arn);
	snprintf(m.state, sizeof(m.state), asleep ? "SUSPENDED" : "TERMINATED");
	m.terminated_ms = asleep ? 0 : now;
	m.suspended_at_ms = asleep ? now : 0;
	if (store_add_microvm(s, &m, NULL, &e) < 0)
		die(e.message);
	snprintf(folder, sizeof(folder), "%s/state/microvms/%s", host.folder, uuid);
	if (!asleep)
		return;
	write_text(folder, "memory", "100 0");
	write_text(folder, "state", "state of a microVM");
}

static void fill(int images, int microvms) {
	char folder[PATH_ROOM];
	struct error e;
	struct store *s = NULL;
	snprintf(folder, sizeof(folder), "%s/state", host.folder);
	// Nobody relies on these records yet: no flush for each.
	if (make_folders(folder, 0750, &e) < 0 || store_open(folder, &s, &e) < 0 || db_set_flush(s, false, &e) < 0)
		die(e.message);
	cleanup_free struct store_image *all = calloc((size_t)images + 1, sizeof(*all));
	for (int i = 0; i < images; i++)
		fill_image(s, i, &all[i]);
	for (int i = 0; i < microvms && images > 0; i++)
		fill_microvm(s, i, &all[i % images]);
	store_close(s);
}

static void start_stasisd(int launcher) {
	host.pid = fork();
	if (host.pid == 0) {
		int log = open(host.log, O_WRONLY | O_CREAT | O_APPEND, 0644);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(log, STDERR_FILENO);
		dup2(log, STDOUT_FILENO);
		dup2(launcher, STASISD_FD);
		close_range(STASISD_FD + 1, ~0u, 0);
		execl(host.stasisd, "stasisd", "--config", host.config, (char *)NULL);
		_exit(127);
	}
	close(launcher);
	if (host.pid < 0)
		die("cannot fork");
}

static void end_stasisd(int signal) {
	if (host.pid <= 0)
		return;
	kill(host.pid, signal);
	waitpid(host.pid, NULL, 0);
	host.pid = 0;
}

static void command(const char *line) {
	if (strcmp(line, "kill") == 0 || strcmp(line, "power") == 0) {
		end_stasisd(SIGKILL);
		if (line[0] == 'p')
			peers_kill_vmms(host.peers);
		start_stasisd(peers_reconnect(host.peers));
	} else if (strcmp(line, "vmm") == 0) {
		peers_kill_newest_vmm(host.peers);
	} else if (strcmp(line, "stop") == 0) {
		end_stasisd(SIGTERM);
	} else if (strcmp(line, "start") == 0 && host.pid == 0) {
		start_stasisd(peers_reconnect(host.peers));
	} else if (strcmp(line, "slots") != 0) {
		printf("{\"error\":\"unknown command\"}\n");
		return;
	}
	printf("{\"pid\":%d,\"slots\":%u}\n", (int)host.pid, peers_slots(host.peers));
}

int main(int argc, char **argv) {
	if (argc != 4 && argc != 6)
		die("usage: engine_host STASISD FOLDER PORT [IMAGES MICROVMS]");
	char run[PATH_ROOM], line[64];
	int launcher = -1;
	host.stasisd = argv[1];
	snprintf(host.folder, sizeof(host.folder), "%s", argv[2]);
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	write_config((int)strtol(argv[3], NULL, 10));
	if (argc == 6)
		fill((int)strtol(argv[4], NULL, 10), (int)strtol(argv[5], NULL, 10));
	snprintf(run, sizeof(run), "%s/run", host.folder);
	host.peers = peers_start(run, &launcher);
	if (host.peers == NULL)
		die("cannot start the stand-ins");
	start_stasisd(launcher);
	command("slots");
	while (fgets(line, sizeof(line), stdin) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		command(line);
	}
	end_stasisd(SIGKILL);
	peers_stop(host.peers);
	return 0;
}
