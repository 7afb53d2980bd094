// Slots in use; see slot.h.
#include "microvms/slot.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "microvms/launcher.h"
#include "stasisd/engine.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define FILE_PATH 640

// The guest's address on its link; the same in all, since each microVM has a network of its own. Locally administered.
static const uint8_t guest_mac[6] = {0x02, 0x53, 0x54, 0x00, 0x00, 0x02};

int slot_attach(struct engine *en, const char *vmm, struct slot *ret, struct error *e) {
	*ret = SLOT_NONE;
	if (strlen(vmm) >= sizeof(ret->vmm))
		return error_set(e, -EINVAL, "the slot's name is too long");
	memcpy(ret->vmm, vmm, strlen(vmm) + 1);
	snprintf(ret->control, sizeof(ret->control), "%.60s/vm/%.40s/control.sock", en->config.run_folder, ret->vmm);
	snprintf(ret->vsock, sizeof(ret->vsock), "%.60s/vm/%.40s/vsock.sock", en->config.run_folder, ret->vmm);
	return vmm_connect(ret->control, &ret->client, e);
}

int slot_take(struct engine *en, const struct egress *egress, uint32_t vcpus, uint32_t memory_mib, struct slot *ret, struct error *e) {
	*ret = SLOT_NONE;
	char vmm[LAUNCH_VMM_MAX];
	int r = launcher_take(en->launcher, egress, vcpus, (uint64_t)memory_mib << 20, vmm, e);
	if (r < 0)
		return r;
	r = slot_attach(en, vmm, ret, e);
	if (r < 0)
		slot_end(en, ret);
	return r;
}

static void end(struct engine *en, const char *vmm) {
	struct error e;
	if (launcher_end(en->launcher, vmm, &e) < 0)
		log_error("slot.end", LOG_S("vmm", vmm), LOG_S("message", e.message));
}

void slot_end(struct engine *en, struct slot *s) {
	vmm_close(&s->client);
	if (s->vmm[0] != '\0')
		end(en, s->vmm);
	*s = SLOT_NONE;
}

struct end_job {
	struct engine *en;
	char vmm[LAUNCH_VMM_MAX];
};

static void run_end_job(void *arg) {
	cleanup_free struct end_job *job = arg;
	end(job->en, job->vmm);
}

void slot_end_later(struct engine *en, struct slot *s) {
	vmm_close(&s->client);
	struct end_job *job = s->vmm[0] == '\0' ? NULL : malloc(sizeof(*job));
	if (job != NULL) {
		job->en = en;
		memcpy(job->vmm, s->vmm, sizeof(job->vmm));
		if (worker_submit(run_end_job, job) == 0)
			s->vmm[0] = '\0';
		else
			free(job);
	}
	slot_end(en, s); // does the work itself when it could not be handed on
}

void slot_image_devices(struct vmm_devices *d, int system, int disk, int layer, int *fds, size_t *nfds) {
	*d = (struct vmm_devices){.has_net = 1, .console_limit = CONSOLE_LIMIT};
	memcpy(d->mac, guest_mac, sizeof(guest_mac));
	vmm_add_block(d, "system", VMM_BLOCK_READ_ONLY, 0, system, -1, fds, nfds);
	vmm_add_block(d, "image", layer >= 0 ? VMM_BLOCK_LAYERED : 0, 0, disk, layer, fds, nfds);
}

static int open_at(const char *folder, const char *name, int flags, int *fds, size_t *nfds, struct error *e) {
	char path[FILE_PATH];
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, flags | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(e, "cannot open %s", path);
	fds[(*nfds)++] = fd;
	return fd;
}

// The image's working set, if it has one: those from before there were working sets have none, and start slower.
static int add_working_set(const struct slot_restore *x, struct vmm_restore *request, int *fds, size_t *nfds, struct error *e) {
	if (x->record) {
		request->flags |= VMM_RESTORE_RECORD;
		return 0;
	}
	int r = open_at(x->image_folder, "working-set", O_RDONLY, fds, nfds, e);
	if (r >= 0)
		request->flags |= VMM_RESTORE_PREFETCH;
	return r == -ENOENT ? 0 : r;
}

int slot_restore_image(struct engine *en, struct slot *s, const struct slot_restore *x, struct error *e) {
	int fds[FDS_MAX], files[FDS_MAX];
	size_t nfds = 0, nfiles = 0;
	struct vmm_restore request = {.flags = x->own_memory ? 0 : VMM_RESTORE_CLONE, .memory_layers = x->own_memory ? 2 : 1};
	// In the order of the request: state, memory layers, console; then the disks.
	int r = x->own_memory ? open_at(x->own_folder, x->own_state, O_RDONLY, fds, &nfds, e)
			      : open_at(x->image_folder, "state", O_RDONLY, fds, &nfds, e);
	if (r >= 0)
		r = open_at(x->image_folder, "memory", O_RDONLY, fds, &nfds, e);
	if (r >= 0 && x->own_memory)
		r = open_at(x->own_folder, "memory", O_RDONLY, fds, &nfds, e);
	if (r >= 0)
		r = add_working_set(x, &request, fds, &nfds, e);
	if (r >= 0)
		r = open_at(x->own_folder, "console.log", O_RDWR | O_CREAT, fds, &nfds, e);
	if (r >= 0)
		r = open_at(x->image_folder, "system.ext4", O_RDONLY, files, &nfiles, e);
	if (r >= 0)
		r = open_at(x->image_folder, "disk.ext4", O_RDONLY, files, &nfiles, e);
	if (r >= 0)
		r = open_at(x->own_folder, "layer", O_RDWR | O_CREAT, files, &nfiles, e);
	if (r >= 0) {
		size_t own = nfds;
		slot_image_devices(&request.devices, files[0], files[1], files[2], fds, &nfds);
		r = vmm_restore(&s->client, &request, fds, nfds, e);
		if (r == 0)
			log_debug("vmm.restored", LOG_S("vmm", s->vmm), LOG_U("us", s->client.nanoseconds / 1000),
				  LOG_S("parts", s->client.text));
		nfds = own; // those of the disks are in `files` as well
	}
	close_all(fds, nfds);
	close_all(files, nfiles);
	return r < 0 ? r : 0;
}
