// An application for the tests of the guest agent, linked statically: the only program of its image. Says what it sees, then does what it is told.
//
//     /app exit N | wait | die | serve PORT
//
// and, for sessions, without saying anything first:
//
//     /app cat         copies its input to its output and ends with 3
//     /app both        writes to both outputs and ends with 5
//     /app flood N     writes N bytes and ends with 0
//     /app leave       ends with 0 while a child of its own holds its output open
//     /app terminal    shows its terminal and each line that it reads; "exit N" ends it
//     sh               the same, behind a prompt
#include <arpa/inet.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
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

static int cat(void) {
	static char data[65536];
	ssize_t n;
	while ((n = read(0, data, sizeof(data))) > 0)
		for (ssize_t at = 0, m; at < n; at += m)
			if ((m = write(1, data + at, (size_t)(n - at))) <= 0)
				return 9;
	return 3;
}

static int flood(long size) {
	static char data[65536];
	memset(data, 'f', sizeof(data));
	for (ssize_t n; size > 0; size -= n)
		if ((n = write(1, data, size < (long)sizeof(data) ? (size_t)size : sizeof(data))) <= 0)
			return 9;
	return 0;
}

static int leave(void) {
	if (fork() == 0) {
		sleep(20);
		_exit(0);
	}
	puts("left");
	return 0;
}

static void say_size(int number) {
	struct winsize size = {0};
	ioctl(0, TIOCGWINSZ, &size);
	printf("size=%dx%d\n", size.ws_col, size.ws_row);
}

static int terminal(void) {
	char line[256];
	struct sigaction action = {.sa_handler = say_size, .sa_flags = SA_RESTART};

	sigaction(SIGWINCH, &action, NULL);
	printf("uid=%d tty=%s term=%s foreground=%s\n", (int)getuid(), ttyname(0), getenv("TERM"),
	       tcgetpgrp(0) == getpgrp() ? "yes" : "no");
	say_size(0);
	while (fgets(line, sizeof(line), stdin) != NULL) {
		if (strncmp(line, "exit ", 5) == 0)
			return atoi(line + 5);
		printf("line=%s", line);
	}
	puts("input ended");
	return 4;
}

static int serve_session(int argc, char **argv) {
	if (strcmp(argv[0], "sh") == 0) {
		fputs(getenv("PS1"), stdout);
		return terminal();
	}
	if (argc == 2 && strcmp(argv[1], "terminal") == 0)
		return terminal();
	if (argc == 2 && strcmp(argv[1], "cat") == 0)
		return cat();
	if (argc == 3 && strcmp(argv[1], "flood") == 0)
		return flood(atol(argv[2]));
	if (argc == 2 && strcmp(argv[1], "leave") == 0)
		return leave();
	if (argc == 2 && strcmp(argv[1], "both") == 0) {
		fputs("to output", stdout);
		fputs("to error", stderr);
		return 5;
	}
	return -1;
}

int main(int argc, char **argv) {
	setvbuf(stdout, NULL, _IOLBF, 0);
	int code = serve_session(argc, argv);
	if (code >= 0)
		return code;
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
