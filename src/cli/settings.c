// Where things are: $STASIS_HOME, the installation's folders, and the engine that `stasis up` started (engine.json).
#include "cli/cli.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SETTINGS_FILE_MAX 65536

static int fill(char *to, size_t room, const char *what, const char *value, struct error *e) {
	if (strlen(value) >= room)
		return error_set(e, -ENAMETOOLONG, "%s is longer than %zu characters", what, room - 1);
	memcpy(to, value, strlen(value) + 1);
	return 0;
}

static int find_home(struct settings *s, struct error *e) {
	const char *home = secure_getenv("STASIS_HOME");
	if (home != NULL && home[0] != '\0') {
		if (home[0] != '/')
			return error_set(e, -EINVAL, "STASIS_HOME must be an absolute path, not '%s'", home);
		return fill(s->home, sizeof(s->home) - 64, "STASIS_HOME", home, e);
	}
	const char *state = secure_getenv("XDG_STATE_HOME"), *user = secure_getenv("HOME");
	char path[CLI_PATH_MAX];
	if (state != NULL && state[0] == '/')
		snprintf(path, sizeof(path), "%s/stasis", state);
	else if (user != NULL && user[0] == '/')
		snprintf(path, sizeof(path), "%s/.local/state/stasis", user);
	else
		return error_set(e, -ENOENT, "neither STASIS_HOME nor HOME is set: set STASIS_HOME to a folder for Stasis's state");
	return fill(s->home, sizeof(s->home) - 64, "the home folder", path, e);
}

static int find_prefix(struct settings *s, struct error *e) {
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	if (n < 0)
		return error_errno(e, "cannot read /proc/self/exe");
	path[n] = '\0';
	for (int up = 0; up < 2; up++) {
		char *slash = strrchr(path, '/');
		if (slash == NULL || slash == path)
			return error_set(e, -ENOENT, "cannot tell where Stasis is installed");
		*slash = '\0';
	}
	int r = fill(s->prefix, sizeof(s->prefix) - 64, "the installation's folder", path, e);
	if (r == 0)
		snprintf(s->program, sizeof(s->program), "%.440s/lib/stasis", s->prefix);
	return r;
}

int settings_path(const struct settings *s, const char *name, char to[CLI_PATH_MAX], struct error *e) {
	int n = snprintf(to, CLI_PATH_MAX, "%s/%s", s->home, name);
	return n < 0 || n >= CLI_PATH_MAX ? error_set(e, -ENAMETOOLONG, "the path of %s is too long", name) : 0;
}

static void member(const json_t *o, const char *key, char *to, size_t room) {
	const char *v = json_string_value(json_object_get(o, key));
	if (v != NULL && strlen(v) < room)
		memcpy(to, v, strlen(v) + 1);
}

static void environment(const char *key, char *to, size_t room) {
	const char *v = secure_getenv(key);
	if (v != NULL && v[0] != '\0' && strlen(v) < room)
		memcpy(to, v, strlen(v) + 1);
}

int settings_load(struct settings *s, struct error *e) {
	*s = (struct settings){.api = "http://127.0.0.1:7411",
			       .artifacts = "http://127.0.0.1:7412",
			       .edge = "127.0.0.1:7443",
			       .region = "us-east-1",
			       .account = "000000000000"};
	int r = find_home(s, e);
	if (r == 0)
		r = find_prefix(s, e);
	if (r < 0)
		return r;
	char path[CLI_PATH_MAX];
	r = settings_path(s, "engine.json", path, e);
	if (r < 0)
		return r;
	cleanup_free char *text = NULL;
	size_t size;
	if (access(path, F_OK) == 0) {
		r = read_file(path, SETTINGS_FILE_MAX, &text, &size, e);
		if (r < 0)
			return r;
		json_error_t where;
		json_t *o = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
		if (!json_is_object(o)) {
			json_decref(o);
			return error_set(e, -EINVAL, "%s is damaged (%s): run 'stasis up' to write it anew", path, where.text);
		}
		member(o, "api", s->api, sizeof(s->api));
		member(o, "artifacts", s->artifacts, sizeof(s->artifacts));
		member(o, "edge", s->edge, sizeof(s->edge));
		member(o, "region", s->region, sizeof(s->region));
		member(o, "account", s->account, sizeof(s->account));
		member(o, "accessKeyId", s->key_id, sizeof(s->key_id));
		member(o, "secretAccessKey", s->key_secret, sizeof(s->key_secret));
		member(o, "mode", s->mode, sizeof(s->mode));
		json_decref(o);
	}
	environment("STASIS_API", s->api, sizeof(s->api));
	environment("STASIS_ARTIFACTS", s->artifacts, sizeof(s->artifacts));
	environment("STASIS_EDGE", s->edge, sizeof(s->edge));
	environment("STASIS_ACCESS_KEY_ID", s->key_id, sizeof(s->key_id));
	environment("STASIS_SECRET_ACCESS_KEY", s->key_secret, sizeof(s->key_secret));
	environment("STASIS_SESSION_TOKEN", s->key_token, sizeof(s->key_token));
	return 0;
}

int settings_save_engine(const struct settings *s, struct error *e) {
	char path[CLI_PATH_MAX];
	int r = settings_path(s, "engine.json", path, e);
	if (r < 0)
		return r;
	json_t *o =
		json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "mode", s->mode, "api", s->api, "artifacts", s->artifacts, "edge",
			  s->edge, "region", s->region, "account", s->account, "accessKeyId", s->key_id, "secretAccessKey", s->key_secret);
	cleanup_free char *text = json_dumps(o, JSON_INDENT(2));
	json_decref(o);
	if (text == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	return write_file_durably(path, text, strlen(text), 0600, e);
}
