// Segments of logs; see log_files.h.
#include "logs/log_files.h"

#include "base/cleanup.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define READ_ATTEMPTS 8 // a segment may go between listing and opening

struct segments {
	uint64_t at[LOG_SEGMENTS_MAX]; // ascending
	size_t count;
};

static bool parse_name(const char *name, uint64_t *ret) {
	*ret = 0;
	if (strlen(name) != 16)
		return false;
	for (; *name != '\0'; name++) {
		int v = *name >= '0' && *name <= '9' ? *name - '0' : *name >= 'a' && *name <= 'f' ? *name - 'a' + 10 : -1;
		if (v < 0)
			return false;
		*ret = *ret << 4 | (unsigned)v;
	}
	return true;
}

static int list(const char *folder, struct segments *ret) {
	ret->count = 0;
	cleanup_dir DIR *dir = opendir(folder);
	if (dir == NULL)
		return -errno;
	for (const struct dirent *d; (d = readdir(dir)) != NULL;) {
		uint64_t at;
		if (!parse_name(d->d_name, &at) || ret->count == LOG_SEGMENTS_MAX)
			continue;
		size_t i = ret->count++;
		for (; i > 0 && ret->at[i - 1] > at; i--)
			ret->at[i] = ret->at[i - 1];
		ret->at[i] = at;
	}
	return ret->count == 0 ? -ENOENT : 0;
}

void log_files_path(const char *folder, uint64_t position, char to[LOG_FOLDER_MAX + 24]) {
	snprintf(to, LOG_FOLDER_MAX + 24, "%s/%016llx", folder, (unsigned long long)position);
}

int log_files_span(const char *folder, struct log_span *ret) {
	struct segments s;
	struct stat st;
	char path[LOG_FOLDER_MAX + 24];
	int r = list(folder, &s);
	if (r < 0)
		return r;
	log_files_path(folder, s.at[s.count - 1], path);
	if (stat(path, &st) < 0)
		return -errno;
	*ret = (struct log_span){.first = s.at[0], .newest = s.at[s.count - 1], .end = s.at[s.count - 1] + (uint64_t)st.st_size};
	return 0;
}

// Reads from the segment that has the position, or from the oldest when all of them are younger. 0: the end of that segment.
static ssize_t read_segment(const char *folder, const struct segments *s, uint64_t *position, size_t *index, void *to, size_t room) {
	size_t i = s->count - 1;
	while (i > 0 && s->at[i] > *position)
		i--;
	if (*position < s->at[i])
		*position = s->at[i];
	*index = i;
	char path[LOG_FOLDER_MAX + 24];
	log_files_path(folder, s->at[i], path);
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return -errno;
	ssize_t n = pread(fd, to, room, (off_t)(*position - s->at[i]));
	struct stat st;
	if (n == 0 && fstat(fd, &st) == 0 && *position > s->at[i] + (uint64_t)st.st_size)
		*position = s->at[i] + (uint64_t)st.st_size;
	return n < 0 ? -errno : n;
}

ssize_t log_files_read(const char *folder, uint64_t *position, void *to, size_t room) {
	for (int attempt = 0; attempt < READ_ATTEMPTS; attempt++) {
		struct segments s;
		size_t i;
		int r = list(folder, &s);
		if (r < 0)
			return r;
		ssize_t n = read_segment(folder, &s, position, &i, to, room);
		// Between two segments there may be a hole when a crash cut the older one short.
		if (n == 0 && i + 1 < s.count) {
			*position = s.at[i + 1];
			continue;
		}
		if (n != -ENOENT)
			return n;
	}
	return -ENOENT;
}

void log_files_trim(const char *folder, uint64_t limit) {
	struct segments s;
	struct stat st;
	char path[LOG_FOLDER_MAX + 24];
	if (list(folder, &s) < 0)
		return;
	log_files_path(folder, s.at[s.count - 1], path);
	uint64_t end = s.at[s.count - 1] + (stat(path, &st) == 0 ? (uint64_t)st.st_size : 0);
	for (size_t i = 0; i + 1 < s.count && end - s.at[i] > limit; i++) {
		log_files_path(folder, s.at[i], path);
		unlink(path);
	}
}
