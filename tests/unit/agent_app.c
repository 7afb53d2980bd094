// An application for test_agent_crun.c, linked statically: the only program of its image. Says what it sees, then does what it is told.
//
//     /app exit N | wait | die | serve PORT
#include <arpa/inet.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static void say_status(const char *key) {
	char line[256];
	FILE *f = fopen("/proc/self/status", "re");
	while (f != NULL && fgets(line, sizeof(line), f) != NULL)
		if (strncmp(line, key, strlen(key)) == 0)
			fputs(line, stdout);
	if (f != NULL)
		fclose(f);
}

static void say_all(int argc, char **argv) {
	char folder[256], host[64];
	gid_t groups[64];
	struct rlimit files;
	struct stat st;

	printf("uid=%d gid=%d groups=", (int)getuid(), (int)getgid());
	int n = getgroups(64, groups);
	for (int i = 0; i < n; i++)
		printf("%s%d", i > 0 ? "," : "", (int)groups[i]);
	printf("\npid=%d cwd=%s\n", (int)getpid(), getcwd(folder, sizeof(folder)));
	for (int i = 0; i < argc; i++)
		printf("arg=%s\n", argv[i]);
	for (char **e = environ; *e != NULL; e++)
		printf("env=%s\n", *e);
	gethostname(host, sizeof(host));
	getrlimit(RLIMIT_NOFILE, &files);
	printf("host=%s files=%llu\n", host, (unsigned long long)files.rlim_max);
	printf("config=%s root-writable=%s\n", stat("/.stasis/config.json", &st) == 0 ? "seen" : "hidden",
	       mkdir("/made", 0755) == 0 ? "yes" : "no");
	say_status("NoNewPrivs");
	say_status("CapEff");
}

static void serve(int port) {
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((unsigned short)port)};
	static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
	char buffer[4096];
	int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(listener, 8) < 0)
		exit(9);
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		ssize_t n = recv(fd, buffer, sizeof(buffer) - 1, 0);
		buffer[n > 0 ? n : 0] = '\0';
		// The one that is never answered: the application ends instead.
		if (strstr(buffer, "/terminate ") != NULL)
			exit(7);
		(void)!write(fd, answer, sizeof(answer) - 1);
		close(fd);
	}
}

int main(int argc, char **argv) {
	setvbuf(stdout, NULL, _IOLBF, 0);
	say_all(argc, argv);
	fprintf(stderr, "to standard error\n");
	printf("END\n");
	if (argc == 3 && strcmp(argv[1], "exit") == 0)
		return atoi(argv[2]);
	if (argc == 3 && strcmp(argv[1], "serve") == 0)
		serve(atoi(argv[2]));
	if (argc == 2 && strcmp(argv[1], "die") == 0)
		raise(SIGKILL);
	for (;;)
		pause();
}
