// The artifact: any bytes as a zip. It is checked and, when that succeeds, unpacked into an empty folder; nothing may appear outside of
// that folder, and what was unpacked may not be more than the limits. Names and link targets are tried on their own, too.
#include "base/io.h"
#include "images/builder/archive.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct archive_limits limits = {.bytes = 1 << 20, .entries = 100};
static char outside[64], inside[96];

static void require(bool fine) {
	if (!fine)
		abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
	setlocale(LC_CTYPE, "C.UTF-8");
	snprintf(outside, sizeof(outside), "/tmp/fuzz_artifact.XXXXXX");
	require(mkdtemp(outside) != NULL);
	snprintf(inside, sizeof(inside), "%s/inside", outside);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	char *name = strndup((const char *)data, size);
	size_t length = strlen(name);
	const char *target = length < size ? strndup((const char *)data + length + 1, size - length - 1) : NULL;
	bool safe = archive_name_is_safe(name);
	require(!safe || (name[0] != '/' && strncmp(name, "../", 3) != 0));
	if (target != NULL)
		require(!archive_link_is_safe(name, target) || (safe && target[0] != '/'));
	free((void *)(uintptr_t)target);
	free(name);

	struct archive_source s = {.fd = -1, .data = data, .size = size};
	struct archive_summary checked, unpacked;
	struct error e;
	if (archive_check(&s, &limits, "Dockerfile", &checked, &e) < 0)
		return 0;
	require(mkdir(inside, 0700) == 0 && chdir(inside) == 0);
	if (archive_unpack(&s, &limits, &unpacked, &e) == 0)
		require(unpacked.bytes <= limits.bytes && unpacked.entries <= limits.entries);
	require(chdir("/") == 0 && remove_tree(inside, NULL) == 0);
	struct stat st;
	require(stat(outside, &st) == 0 && st.st_nlink == 2);
	return 0;
}
