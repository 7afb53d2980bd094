// Parsing of session requests; see session_request.h. The caller of an endpoint wrote them.
#include "guest/session_request.h"

#include "guest/guest.h"

#include <string.h>

static int parse_exec(const json_t *o, struct session_request *q, struct error *e) {
	int r = member_strings(o, "args", MEMBER_REQUIRED, SESSION_ARGS_MAX, GUEST_SESSION_REQUEST_MAX, &q->args, e);
	if (r < 0)
		return r;
	if (json_array_size(q->args) == 0 || json_string_length(json_array_get(q->args, 0)) == 0)
		return error_set(e, -EINVAL, "the member \"args\" must name a program");
	return member_bool(o, "terminal", MEMBER_OPTIONAL, &q->terminal, e);
}

static int parse_path(const json_t *o, struct session_request *q, struct error *e) {
	int r = member_string(o, "path", MEMBER_REQUIRED, SESSION_PATH_MAX, &q->path, e);
	if (r < 0)
		return r;
	return q->path[0] == '/' ? 0 : error_set(e, -EINVAL, "the member \"path\" must begin with /");
}

static int parse_surroundings(const json_t *o, struct session_request *q, struct error *e) {
	int64_t columns = 0, rows = 0;
	const char *name;
	json_t *value;
	int r;

	q->user = "0";
	if ((r = member_string(o, "user", MEMBER_OPTIONAL, 256, &q->user, e)) < 0 ||
	    (r = member_string(o, "folder", MEMBER_OPTIONAL, SESSION_PATH_MAX, &q->folder, e)) < 0 ||
	    (r = member_string_map(o, "env", MEMBER_OPTIONAL, 1024, 32768, &q->env, e)) < 0 ||
	    (r = member_integer(o, "columns", MEMBER_OPTIONAL, 0, UINT16_MAX, &columns, e)) < 0 ||
	    (r = member_integer(o, "rows", MEMBER_OPTIONAL, 0, UINT16_MAX, &rows, e)) < 0)
		return r;
	q->columns = (uint16_t)columns;
	q->rows = (uint16_t)rows;
	if (q->folder != NULL && q->folder[0] != '/')
		return error_set(e, -EINVAL, "the member \"folder\" must begin with /");
	if (q->env != NULL) {
		json_object_foreach(json_object_get(o, "env"), name, value) {
			if (*name == '\0' || strchr(name, '=') != NULL)
				return error_set(e, -EINVAL, "\"%.64s\" is no name of an environment variable", name);
		}
	}
	return 0;
}

int session_request_parse(const void *data, size_t size, struct session_request *ret, struct error *e) {
	static const char *const names[] = {
		[SESSION_SHELL] = "shell", [SESSION_EXEC] = "exec", [SESSION_PUT] = "put", [SESSION_GET] = "get"};
	const char *op = NULL;
	size_t i = 0;
	int r;

	memset(ret, 0, sizeof(*ret));
	ret->document = json_parse_object(data, size, GUEST_SESSION_REQUEST_MAX, "the session's request", e);
	if (ret->document == NULL)
		return -EBADMSG;
	const json_t *o = ret->document;
	if ((r = member_string(o, "op", MEMBER_REQUIRED, 16, &op, e)) < 0 || (r = parse_surroundings(o, ret, e)) < 0)
		return r;
	while (i < sizeof(names) / sizeof(*names) && strcmp(names[i], op) != 0)
		i++;
	ret->op = (enum session_op)i;
	switch (i) {
	case SESSION_SHELL:
		ret->terminal = true;
		return 0;
	case SESSION_EXEC:
		return parse_exec(o, ret, e);
	case SESSION_PUT:
	case SESSION_GET:
		return parse_path(o, ret, e);
	default:
		return error_set(e, -EINVAL, "the member \"op\" must be \"shell\", \"exec\", \"put\" or \"get\"");
	}
}

void session_request_free(struct session_request *r) {
	json_decref(r->document);
	r->document = NULL;
}
