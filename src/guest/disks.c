// Finding disks; see disks.h. Linux shows a virtio disk's serial in /sys/block/<name>/serial.
#include "guest/disks.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <stdio.h>
#include <string.h>

int disk_find(const char *serial, char *to, size_t room, struct error *e) {
	char path[300];

	cleanup_dir DIR *d = opendir("/sys/block");
	if (d == NULL)
		return error_errno(e, "cannot look for disks in /sys/block");
	for (const struct dirent *entry; (entry = readdir(d)) != NULL;) {
		cleanup_free char *text = NULL;
		size_t size = 0;
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/block/%s/serial", entry->d_name);
		if (read_file(path, 4096, &text, &size, NULL) < 0)
			continue;
		text[strcspn(text, "\n")] = '\0';
		if (strcmp(text, serial) != 0)
			continue;
		if ((size_t)snprintf(to, room, "/dev/%s", entry->d_name) >= room)
			return error_set(e, -ENAMETOOLONG, "the disk's name is too long");
		return 0;
	}
	return error_set(e, -ENODEV, "there is no disk with the serial \"%s\"; the VMM must be given one", serial);
}
