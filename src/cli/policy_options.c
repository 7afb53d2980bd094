// A policy from the command line: a document in a file, or made of --allow and --on. The engine checks what it says.
#include "cli/cli.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <stdio.h>
#include <string.h>

#define DOCUMENT_MAX 65536

static void append(json_t **list, const char *text) {
	if (*list == NULL)
		*list = json_array();
	json_array_append_new(*list, json_string(text));
}

bool policy_option(struct policy_options *o, int which, const char *value) {
	switch (which) {
	case O_POLICY:
		o->file = value;
		return true;
	case O_ALLOW:
		append(&o->actions, value);
		return true;
	case O_ON:
		append(&o->resources, value);
		return true;
	default:
		return false;
	}
}

static int read_document(const char *file, json_t **ret, struct error *e) {
	char standard[DOCUMENT_MAX];
	cleanup_free char *text = NULL;
	size_t size = 0;
	json_error_t where;
	if (strcmp(file, "-") == 0) {
		size = fread(standard, 1, sizeof(standard), stdin);
	} else {
		int r = read_file(file, DOCUMENT_MAX, &text, &size, e);
		if (r < 0)
			return r;
	}
	*ret = json_loadb(text == NULL ? standard : text, size, JSON_REJECT_DUPLICATES, &where);
	return *ret == NULL ? error_set(e, -EINVAL, "%s, line %d: %s", file, where.line, where.text) : 0;
}

// Names of images become ARNs.
static json_t *resources(const struct cli *c, const char *account, const json_t *given) {
	json_t *list = json_array(), *item;
	size_t i;
	json_array_foreach(given, i, item) {
		const char *text = json_string_value(item);
		if (text[0] == '*' || strncmp(text, "arn:", 4) == 0)
			json_array_append_new(list, json_string(text));
		else
			json_array_append_new(list,
					      json_sprintf("arn:aws:lambda:%s:%s:microvm-image:%s", c->settings.region, account, text));
	}
	if (json_array_size(list) == 0)
		json_array_append_new(list, json_string("*"));
	return list;
}

int policy_document(const struct cli *c, struct policy_options *o, const char *account, json_t **ret, struct error *e) {
	int r = 0;
	*ret = NULL;
	if (o->file != NULL && (o->actions != NULL || o->resources != NULL))
		r = error_set(e, -EINVAL, "--policy excludes --allow and --on");
	else if (o->actions == NULL && o->resources != NULL)
		r = error_set(e, -EINVAL, "--on belongs to --allow");
	else if (o->file != NULL)
		r = read_document(o->file, ret, e);
	else if (o->actions != NULL)
		*ret = json_pack("{s:s, s:[{s:s, s:O, s:o}]}", "Version", "2012-10-17", "Statement", "Effect", "Allow", "Action",
				 o->actions, "Resource", resources(c, account, o->resources));
	json_decref(o->actions);
	json_decref(o->resources);
	*o = (struct policy_options){.file = NULL};
	return r;
}
