// USER of an image, resolved against the image's own /etc/passwd and /etc/group, with the meaning that Docker gives it:
// "name", "uid", "name:group", "uid:gid" and their mixtures; empty is root.
#pragma once

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define USER_GROUPS_MAX 64
#define USER_HOME_MAX 256
#define USER_FILE_MAX (1u << 20) // bytes of passwd or group that are looked at; larger files are refused by the reader

struct user {
	uint32_t uid, gid;
	uint32_t groups[USER_GROUPS_MAX]; // supplementary ones
	size_t group_count;
	char home[USER_HOME_MAX]; // "/" when passwd does not say
};

// `passwd` and `group` are the files' contents (they need no NUL; empty when there is no such file). Lines that are malformed are skipped, as the C
// library does. -ENOENT named USER_NOT_FOUND when a name is in neither.
int user_resolve(const char *spec, const char *passwd, size_t passwd_size, const char *group, size_t group_size, struct user *ret,
		 struct error *e);
