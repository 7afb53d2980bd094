// Parsing of the OCI image configuration; see image_config.h. It was written inside a builder microVM that ran a stranger's Dockerfile.
#include "guest/image_config.h"

#include <string.h>

#define ARGS_MAX 4096
#define ENV_MAX 4096
#define STRING_MAX_BYTES 131072 // of one argument or variable: MAX_ARG_STRLEN of Linux

static int append_all(json_t *to, const json_t *from, struct error *e) {
	size_t i;
	const json_t *item;

	json_array_foreach(from, i, item) {
		if (json_array_append_new(to, json_string(json_string_value(item))) < 0)
			return error_set(e, -ENOMEM, "out of memory");
	}
	return 0;
}

static int parse(struct image_config *c, struct error *e) {
	const json_t *config = NULL, *entrypoint = NULL, *cmd = NULL, *env = NULL, *item;
	size_t i;
	int r;

	if ((r = member_object(c->document, "config", MEMBER_OPTIONAL, &config, e)) < 0)
		return r;
	if (config != NULL &&
	    ((r = member_strings(config, "Entrypoint", MEMBER_OPTIONAL, ARGS_MAX, STRING_MAX_BYTES, &entrypoint, e)) < 0 ||
	     (r = member_strings(config, "Cmd", MEMBER_OPTIONAL, ARGS_MAX, STRING_MAX_BYTES, &cmd, e)) < 0 ||
	     (r = member_strings(config, "Env", MEMBER_OPTIONAL, ENV_MAX, STRING_MAX_BYTES, &env, e)) < 0 ||
	     (r = member_string(config, "User", MEMBER_OPTIONAL, 256, &c->user, e)) < 0 ||
	     (r = member_string(config, "WorkingDir", MEMBER_OPTIONAL, 4095, &c->working_dir, e)) < 0))
		return r;
	if (*c->working_dir == '\0')
		c->working_dir = "/";
	if (*c->working_dir != '/')
		return error_set(e, -EINVAL, "the working directory \"%.200s\" is not absolute", c->working_dir);
	c->args = json_array();
	c->env = json_array();
	if (c->args == NULL || c->env == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	if ((r = append_all(c->args, entrypoint, e)) < 0 || (r = append_all(c->args, cmd, e)) < 0)
		return r;
	json_array_foreach(env, i, item) {
		const char *text = json_string_value(item);
		// Like Docker: what is no assignment is no variable.
		if (*text == '=' || strchr(text, '=') == NULL)
			continue;
		if (json_array_append_new(c->env, json_string(text)) < 0)
			return error_set(e, -ENOMEM, "out of memory");
	}
	return 0;
}

int image_config_parse(const char *data, size_t size, struct image_config *ret, struct error *e) {
	struct error inner = {0};

	*ret = (struct image_config){.user = "", .working_dir = "/"};
	ret->document = json_parse_object(data, size, IMAGE_CONFIG_MAX, "the file", &inner);
	int r = ret->document == NULL ? -EBADMSG : parse(ret, &inner);
	if (r < 0)
		return error_named(e, r, "IMAGE_CONFIG_INVALID",
				   "the image's configuration (" IMAGE_CONFIG_PATH ") is invalid: %s; build the image again",
				   inner.message);
	const char *program = json_string_value(json_array_get(ret->args, 0));
	if (program == NULL || *program == '\0')
		return error_named(
			e, -ENOEXEC, "NO_COMMAND",
			"the image names no program to run: give its Dockerfile an ENTRYPOINT or CMD, or FROM an image that has one");
	return 0;
}

void image_config_free(struct image_config *c) {
	json_decref(c->args);
	json_decref(c->env);
	json_decref(c->document);
	*c = (struct image_config){.user = "", .working_dir = "/"};
}
