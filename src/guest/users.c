// Resolution of USER; see users.h. The files come from the image, so they are anybody's bytes: slices only, nothing is copied but the home.
//
// Rules (those of Docker's own resolver): a name matches before a number is tried as a number, and an entry matches by name or by the decimal
// text of its id; a number without entry stands for itself, with group 0; supplementary groups are those that list the user's name, and
// only when no group was given.
#include "guest/users.h"

#include <stdbool.h>
#include <string.h>

#define ID_MAX 2147483647u // larger ids are refused by Docker as well; (uid_t)-1 would mean "unchanged"
#define FIELDS_MAX 8

struct text {
	const char *at;
	size_t size;
};

static bool same(struct text a, struct text b) {
	return a.size == b.size && memcmp(a.at, b.at, a.size) == 0;
}

static bool parse_id(struct text t, uint32_t *ret) {
	uint64_t v = 0;

	if (t.size == 0 || t.size > 10)
		return false;
	for (size_t i = 0; i < t.size; i++) {
		if (t.at[i] < '0' || t.at[i] > '9')
			return false;
		v = v * 10 + (uint64_t)(t.at[i] - '0');
	}
	if (v > ID_MAX)
		return false;
	*ret = (uint32_t)v;
	return true;
}

// Takes the piece before the next separator (or the end) off *rest.
static struct text cut(struct text *rest, char separator) {
	const char *end = rest->size == 0 ? NULL : memchr(rest->at, separator, rest->size);
	struct text piece = {rest->at, end != NULL ? (size_t)(end - rest->at) : rest->size};
	size_t taken = piece.size + (end != NULL);

	if (taken > 0)
		rest->at += taken;
	rest->size -= taken;
	return piece;
}

// The next line's fields; false at the end of the file. *count is how many there were (at most FIELDS_MAX, the last holds the rest).
static bool next_entry(struct text *file, struct text fields[FIELDS_MAX], size_t *count) {
	if (file->size == 0)
		return false;
	struct text line = cut(file, '\n');
	size_t n = 0;
	bool more = line.size > 0 && line.at[0] != '#';
	while (more && n < FIELDS_MAX) {
		more = memchr(line.at, ':', line.size) != NULL;
		fields[n++] = cut(&line, ':');
	}
	*count = n;
	return true;
}

// Finds a passwd entry by name or id; by id 0 when `who` is empty.
static bool find_user(struct text file, struct text who, struct text *name, struct user *u) {
	struct text f[FIELDS_MAX];
	uint32_t uid, gid, wanted = 0;
	bool by_id = who.size == 0 || parse_id(who, &wanted);
	size_t n;

	while (next_entry(&file, f, &n)) {
		if (n < 7 || f[0].size == 0 || !parse_id(f[2], &uid) || !parse_id(f[3], &gid))
			continue;
		if (!(who.size > 0 && same(f[0], who)) && !(by_id && uid == wanted))
			continue;
		u->uid = uid;
		u->gid = gid;
		*name = f[0];
		if (f[5].size > 0 && f[5].size < sizeof(u->home) && f[5].at[0] == '/' && memchr(f[5].at, '\0', f[5].size) == NULL) {
			memcpy(u->home, f[5].at, f[5].size);
			u->home[f[5].size] = '\0';
		}
		return true;
	}
	return false;
}

static bool find_group(struct text file, struct text which, uint32_t *ret) {
	struct text f[FIELDS_MAX];
	uint32_t gid, wanted = 0;
	bool by_id = parse_id(which, &wanted);
	size_t n;

	while (next_entry(&file, f, &n)) {
		if (n < 3 || f[0].size == 0 || !parse_id(f[2], &gid))
			continue;
		if (same(f[0], which) || (by_id && gid == wanted)) {
			*ret = gid;
			return true;
		}
	}
	return false;
}

static void add_memberships(struct text file, struct text name, struct user *u) {
	struct text f[FIELDS_MAX];
	uint32_t gid;
	size_t n;

	while (next_entry(&file, f, &n)) {
		if (n < 4 || !parse_id(f[2], &gid))
			continue;
		for (struct text members = f[3]; members.size > 0;) {
			if (same(cut(&members, ','), name) && u->group_count < USER_GROUPS_MAX) {
				u->groups[u->group_count++] = gid;
				break;
			}
		}
	}
}

int user_resolve(const char *spec, const char *passwd, size_t passwd_size, const char *group, size_t group_size, struct user *ret,
		 struct error *e) {
	struct text users = {passwd, passwd_size}, groups = {group, group_size};
	struct text rest = {spec, strlen(spec)}, name = {NULL, 0};
	bool group_given = strchr(spec, ':') != NULL;
	struct text user_part = cut(&rest, ':'), group_part = rest;

	memset(ret, 0, sizeof(*ret));
	strcpy(ret->home, "/");
	bool found = find_user(users, user_part, &name, ret);
	if (!found && user_part.size > 0 && !parse_id(user_part, &ret->uid))
		return error_named(
			e, -ENOENT, "USER_NOT_FOUND",
			"the image's USER is \"%.128s\", but its /etc/passwd has no such user; create it in the Dockerfile or use a number",
			spec);
	if (group_given && group_part.size > 0) {
		if (!find_group(groups, group_part, &ret->gid) && !parse_id(group_part, &ret->gid))
			return error_named(e, -ENOENT, "USER_NOT_FOUND",
					   "the image's USER is \"%.128s\", but its /etc/group has no such group; create it in the "
					   "Dockerfile or use a number",
					   spec);
		return 0;
	}
	if (found)
		add_memberships(groups, name, ret);
	return 0;
}
