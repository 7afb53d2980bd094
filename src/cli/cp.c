// `stasis cp`: files and folders between this host and a microVM, as a tar archive over a session. Nothing is needed in the image.
#include "cli/session.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/json.h"
#include "base/tree.h"

#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LIMIT_DEFAULT_GIB 16

struct copy {
	struct session session;
	struct session_message last;  // how it ended; kind 0: not yet
	struct session_message piece; // of the archive, what is left of it
	struct error error;
};

static void take(void *arg, const struct session_message *m) {
	struct copy *k = arg;
	if (m->kind == SESSION_ERROR_OUTPUT)
		(void)write_full(STDERR_FILENO, m->data, m->size);
	else if (m->kind == SESSION_EXIT || m->kind == SESSION_FAILED)
		k->last = *m;
}

static int write_archive(void *arg, const void *data, size_t size) {
	struct copy *k = arg;
	return session_send(&k->session, data, size, &k->error);
}

static void notice(void *arg, const char *text) {
	fprintf(stderr, "stasis: %s\n", text);
}

// The next bytes of the archive; 0 at its end.
static ssize_t read_archive(void *arg, void *to, size_t room) {
	struct copy *k = arg;
	while (k->piece.size == 0) {
		if (k->last.kind != 0)
			return k->last.kind == SESSION_EXIT ? 0 : -EIO;
		int r = session_receive(&k->session, true, &k->piece, &k->error);
		if (r <= 0)
			return r < 0 ? r : -EIO;
		if (k->piece.kind != SESSION_OUTPUT) {
			take(k, &k->piece);
			k->piece.size = 0;
		}
	}
	size_t n = k->piece.size < room ? k->piece.size : room;
	memcpy(to, k->piece.data, n);
	k->piece.data = (const char *)k->piece.data + n;
	k->piece.size -= n;
	return (ssize_t)n;
}

// Waits for the end. What the microVM says went wrong counts more than what that led to here.
static int finish(struct copy *k, int r, struct error *e) {
	struct session_message m;
	int n = 1;
	while (k->last.kind == 0 && !k->session.over && r == 0 && n > 0)
		if ((n = session_receive(&k->session, true, &m, &k->error)) > 0)
			take(k, &m);
	if (k->last.kind == SESSION_FAILED)
		return session_failed(&k->last, e);
	if (r < 0)
		return k->error.message[0] != '\0' && e->message[0] == '\0' ? (*e = k->error, r) : r;
	if (n < 0) {
		*e = k->error;
		return n;
	}
	return k->last.kind == SESSION_EXIT && k->last.number == 0
		       ? 0
		       : error_set(e, -EIO, "the microVM ended the copy with %d", k->last.number);
}

static int begin(struct cli *c, const char *id, json_t *request, struct copy *k, struct error *e) {
	cleanup_json json_t *owned = request;
	int r = request != NULL ? session_open(c, id, request, &k->session, e) : error_set(e, -EINVAL, "the path is not text in UTF-8");
	k->session.meanwhile = take;
	k->session.arg = k;
	return r;
}

static int copy_in(struct cli *c, const char *from, const char *id, const char *path, const char *user, struct error *e) {
	static struct copy k;
	static const struct tree_options archive = {.write = write_archive, .notice = notice, .arg = &k};
	struct stat st;
	if (stat(from, &st) < 0)
		return error_errno(e, "cannot look at %s", from);
	json_t *request = json_pack("{s:s, s:s}", "op", "put", "path", path);
	if (user != NULL)
		json_object_set_new(request, "user", json_string(user));
	int r = begin(c, id, request, &k, e);
	if (r < 0)
		return r;
	r = tree_pack(from, &archive, e);
	if (r == 0)
		r = session_send_json(&k.session, json_pack("{s:s}", "type", "end"), e);
	r = finish(&k, r, e);
	session_close(&k.session);
	return r;
}

// The folder to unpack into, and the name under which (NULL: its own).
static int open_target(const char *to, char name[NAME_MAX + 1], const char **top, struct error *e) {
	char folder[PATH_MAX];
	*top = NULL;
	int fd = open(to, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	size_t end = strlen(to);
	while (end > 1 && to[end - 1] == '/')
		end--;
	const char *slash = memrchr(to, '/', end);
	size_t start = slash != NULL ? (size_t)(slash - to) + 1 : 0;
	snprintf(folder, sizeof(folder), "%.*s", start == 0 ? 1 : (int)start, start == 0 ? "." : to);
	snprintf(name, NAME_MAX + 1, "%.*s", (int)(end - start), to + start);
	*top = name;
	fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd >= 0 ? fd : error_errno(e, "there is no folder %s", folder);
}

static int copy_out(struct cli *c, const char *id, const char *path, const char *to, uint64_t limit, struct error *e) {
	static struct copy k;
	char name[NAME_MAX + 1];
	struct tree_options o = {.read = read_archive, .arg = &k, .mode_mask = 0777, .bytes_max = limit};
	cleanup_close int folder = open_target(to, name, &o.top, e);
	if (folder < 0)
		return folder;
	int r = begin(c, id, json_pack("{s:s, s:s}", "op", "get", "path", path), &k, e);
	if (r < 0)
		return r;
	r = tree_unpack(folder, &o, e);
	if (r == -EFBIG)
		error_wrap(e, r, "stopped (--limit allows more)");
	r = finish(&k, r, e);
	session_close(&k.session);
	return r;
}

// Splits "<id>:<path>"; NULL when the text names something on this host. Changes the text.
static char *split_remote(char *text) {
	char *colon = strchr(text, ':'), *slash = strchr(text, '/');
	if (colon == NULL || colon == text || (slash != NULL && slash < colon))
		return NULL;
	*colon = '\0';
	return colon + 1;
}

int cmd_cp(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis cp [options] <file or folder> <id>:<path>\n"
		"       stasis cp [options] <id>:<path> <file or folder>\n\n"
		"Copies files and folders into a microVM or out of it; wakes it when it sleeps. When the target is a folder that\n"
		"is there, the copy is put into it; otherwise it gets that name. Links are copied as links.\n\n"
		"  --user USER   into a microVM: to whom the copy belongs (default: root)\n"
		"  --limit GIB   out of a microVM: take at most that much (default: 16)\n";
	static const struct option options[] = {{"user", required_argument, NULL, 'u'}, {"limit", required_argument, NULL, 'l'}, {0}};
	const char *user = NULL;
	long limit = LIMIT_DEFAULT_GIB;
	int code = -1, which;
	while ((which = next_option(c, argc, argv, "u:", options, help, &code)) >= 0) {
		if (which == 'u')
			user = optarg;
		else if (!parse_number(optarg, 1, 1 << 20, &limit))
			return usage_error(help, "--limit takes a number of GiB, not '%s'", optarg);
	}
	if (which == -2)
		return code;
	if (argc - optind != 2)
		return usage_error(help, "'cp' takes a source and a target");
	char *from = argv[optind], *to = argv[optind + 1], id[64];
	char *from_path = split_remote(from), *to_path = split_remote(to);
	if ((from_path == NULL) == (to_path == NULL))
		return usage_error(help, "either the source or the target must be in a microVM: <id>:<path>");
	const char *path = from_path != NULL ? from_path : to_path;
	if (path[0] != '/')
		return usage_error(help, "the path in the microVM must begin with /, not '%s'", path);
	struct error e = {0};
	int r = microvm_id(c, from_path != NULL ? from : to, id, &e);
	if (r == 0)
		r = from_path != NULL ? copy_out(c, id, path, to, (uint64_t)limit << 30, &e) : copy_in(c, from, id, path, user, &e);
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}
