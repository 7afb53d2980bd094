// The virtio devices of a VM: which there are, in which order, where in the guest's address space, and their part of a snapshot.
//
// Device n has the n-th page from arch_layout.mmio_base and the n-th interrupt line from arch_layout.device_line. The order is: block devices as
// configured, network device if there is one, vsock, rng, balloon.
#include "base/cleanup.h"
#include "vmm/vm.h"

#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define GUEST_CID 3
#define SAVE_ROOM_FIRST 16384u
#define SAVE_ROOM_MAX (16u << 20)

static struct virtio_host device_host(struct vm *vm) {
	return (struct virtio_host){.memory = &vm->memory,
				    .loop = vm->host->loop,
				    .lock = vm_lock,
				    .unlock = vm_unlock,
				    .interrupt = (void (*)(void *, unsigned))arch_interrupt,
				    .vm = vm};
}

static int size_of(int fd, uint64_t *ret, struct error *e) {
	struct stat st;
	if (fstat(fd, &st) < 0)
		return error_errno(e, "cannot examine a disk");
	*ret = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, ret) < 0)
		return error_errno(e, "cannot find out the size of a disk");
	return 0;
}

static int create_block(struct vm *vm, unsigned line, const struct vmm_block *config, const int *fds, struct error *e) {
	struct virtio_host host = device_host(vm);
	struct vm_device *d = &vm->devices[vm->device_count];
	*d = (struct vm_device){.kind = VM_DEVICE_BLOCK, .flags = config->flags, .size = config->size};
	memcpy(d->serial, config->serial, sizeof(d->serial));
	int layer = (config->flags & VMM_BLOCK_LAYERED) != 0 ? fds[1] : -1;
	int r = config->size == 0 ? size_of(fds[0], &d->size, e) : 0;
	if (r == 0)
		return virtio_block_create(&host, line, config, fds[0], layer, &d->virtio, e);
	close(fds[0]);
	if (layer >= 0)
		close(layer);
	return r;
}

static int create_other(struct vm *vm, unsigned line, uint32_t kind, const struct vmm_devices *config, struct error *e) {
	struct virtio_host host = device_host(vm);
	struct vm_device *d = &vm->devices[vm->device_count];
	*d = (struct vm_device){.kind = kind};
	switch (kind) {
	case VM_DEVICE_NET:
		memcpy(d->serial, config->mac, sizeof(config->mac));
		return virtio_net_create(&host, line, dup(vm->host->tap_fd), config->mac, &d->virtio, e);
	case VM_DEVICE_VSOCK:
		return virtio_vsock_create(&host, line, dup(vm->host->vsock_fd), GUEST_CID, &d->virtio, e);
	case VM_DEVICE_RNG:
		return virtio_rng_create(&host, line, &d->virtio, e);
	default:
		return virtio_balloon_create(&host, line, &d->virtio, e);
	}
}

static int check_config(const struct vmm_devices *config, size_t fd_count, struct error *e) {
	size_t wanted = 0;
	if (config->block_count > VMM_BLOCKS_MAX)
		return error_set(e, -EINVAL, "a microVM cannot have %u disks: at most %u are possible", config->block_count,
				 VMM_BLOCKS_MAX);
	for (unsigned i = 0; i < config->block_count; i++) {
		uint32_t flags = config->blocks[i].flags;
		if ((flags & ~(uint32_t)(VMM_BLOCK_READ_ONLY | VMM_BLOCK_LAYERED)) != 0 ||
		    flags == (VMM_BLOCK_READ_ONLY | VMM_BLOCK_LAYERED))
			return error_set(e, -EINVAL, "disk %u has flags 0x%x, which do not go together", i, flags);
		wanted += (flags & VMM_BLOCK_LAYERED) != 0 ? 2 : 1;
	}
	if (wanted != fd_count)
		return error_set(e, -EINVAL, "the disks need %zu descriptors, %zu came with the request", wanted, fd_count);
	return 0;
}

int devices_create(struct vm *vm, const struct vmm_devices *config, const struct vm_device_fds *fds, struct error *e) {
	int r = check_config(config, fds->count, e);
	size_t at = 0;
	for (unsigned i = 0; r == 0 && i < config->block_count; i++) {
		unsigned n = (config->blocks[i].flags & VMM_BLOCK_LAYERED) != 0 ? 2 : 1;
		r = create_block(vm, arch_layout.device_line + vm->device_count, &config->blocks[i], fds->fds + at, e);
		at += n;
		if (r == 0)
			vm->device_count++;
	}
	for (; at < fds->count && r < 0; at++)
		close(fds->fds[at]);
	static const uint32_t kinds[] = {VM_DEVICE_NET, VM_DEVICE_VSOCK, VM_DEVICE_RNG, VM_DEVICE_BALLOON};
	for (unsigned i = 0; r == 0 && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (kinds[i] == VM_DEVICE_NET && !config->has_net)
			continue;
		r = create_other(vm, arch_layout.device_line + vm->device_count, kinds[i], config, e);
		if (r == 0)
			vm->device_count++;
	}
	return r;
}

void devices_resume(struct vm *vm) {
	for (unsigned i = 0; i < vm->device_count; i++)
		virtio_resume(vm->devices[i].virtio);
	vm->quiesced = false;
}

int devices_quiesce(struct vm *vm, struct error *e) {
	int r = 0;
	if (vm->quiesced)
		return 0;
	vm->quiesced = true;
	for (unsigned i = 0; i < vm->device_count && r == 0; i++)
		r = virtio_quiesce(vm->devices[i].virtio, e);
	return r;
}

int devices_flush(struct vm *vm, struct error *e) {
	int result = 0;
	for (unsigned i = 0; i < vm->device_count; i++) {
		int r = virtio_flush(vm->devices[i].virtio, result == 0 ? e : NULL);
		result = result < 0 ? result : r;
	}
	return result;
}

static int save_list(struct vm *vm, struct state_writer *w) {
	struct writer p = state_open(w, STASIS_SECTION_DEVICES, 0, 4 + VM_DEVICES_MAX * (16 + VMM_SERIAL_MAX));
	write_u32(&p, vm->device_count);
	for (unsigned i = 0; i < vm->device_count; i++) {
		const struct vm_device *d = &vm->devices[i];
		write_u32(&p, d->kind);
		write_u32(&p, d->flags);
		write_u64(&p, d->size);
		write_bytes(&p, d->serial, sizeof(d->serial));
	}
	return state_close(w, &p);
}

int devices_save(struct vm *vm, struct state_writer *w, struct error *e) {
	int r = save_list(vm, w);
	for (unsigned i = 0; i < vm->device_count && r == 0; i++) {
		for (size_t room = SAVE_ROOM_FIRST; room <= SAVE_ROOM_MAX; room *= 4) {
			struct writer p = state_open(w, STASIS_SECTION_VIRTIO, i, room);
			int saved = virtio_save(vm->devices[i].virtio, &p);
			if (saved < 0)
				p.bad = true;
			r = state_close(w, &p);
			if (saved < 0 && saved != -ENOSPC)
				r = saved;
			if (r != -ENOSPC)
				break;
		}
	}
	if (r == 0) {
		struct writer p = state_open(w, STASIS_SECTION_SERIAL, 0, SERIAL_SAVE_BYTES);
		serial_save(&vm->serial, &p);
		r = state_close(w, &p);
	}
	return r < 0 ? error_set(e, r, "cannot save the devices: %s", strerror(-r)) : 0;
}

static const char *kind_name(uint32_t kind) {
	static const char *const names[] = {"no device", "disk", "network device", "vsock device", "entropy device", "balloon"};
	return kind < sizeof(names) / sizeof(names[0]) ? names[kind] : "unknown device";
}

static int check_device(unsigned i, const struct vm_device *has, const struct vm_device *saved, struct error *e) {
	if (has->kind != saved->kind)
		return error_set(e, -EINVAL, "wrong devices: the snapshot's device %u is a %s, the request has a %s", i,
				 kind_name(saved->kind), kind_name(has->kind));
	if (memcmp(has->serial, saved->serial, sizeof(has->serial)) != 0)
		return has->kind == VM_DEVICE_BLOCK
			       ? error_set(e, -EINVAL, "wrong disk: the snapshot's disk %u is '%.20s', the request has '%.20s'", i,
					   saved->serial, has->serial)
			       : error_set(e, -EINVAL, "wrong %s: its address differs from the snapshot's", kind_name(has->kind));
	// A disk that was written in place becomes the base of clones, each with a layer of its own: only read-only must stay what it was.
	if (((has->flags ^ saved->flags) & VMM_BLOCK_READ_ONLY) != 0)
		return error_set(e, -EINVAL, "wrong disk: '%.20s' has flags 0x%x in the snapshot, 0x%x in the request", has->serial,
				 saved->flags, has->flags);
	if (has->size != saved->size && (has->flags & VMM_BLOCK_READ_ONLY) == 0)
		return error_set(e, -EINVAL, "wrong disk: '%.20s' has %llu bytes in the snapshot, %llu in the request", has->serial,
				 (unsigned long long)saved->size, (unsigned long long)has->size);
	return 0;
}

static int check_list(struct vm *vm, const struct state_file *f, struct error *e) {
	struct reader p;
	int r = state_find(f, STASIS_SECTION_DEVICES, 0, &p, e);
	if (r < 0)
		return r;
	uint32_t count = read_u32(&p);
	if (p.bad || count > VM_DEVICES_MAX)
		return state_malformed(STASIS_SECTION_DEVICES, 0, e);
	if (count != vm->device_count)
		return error_set(e, -EINVAL, "wrong devices: the snapshot has %u, the request %u", count, vm->device_count);
	for (unsigned i = 0; i < count; i++) {
		struct vm_device saved = {.kind = read_u32(&p)};
		saved.flags = read_u32(&p);
		saved.size = read_u64(&p);
		read_copy(&p, saved.serial, sizeof(saved.serial));
		if (p.bad)
			return state_malformed(STASIS_SECTION_DEVICES, 0, e);
		r = check_device(i, &vm->devices[i], &saved, e);
		if (r < 0)
			return r;
	}
	return p.left == 0 ? 0 : state_malformed(STASIS_SECTION_DEVICES, 0, e);
}

int devices_load(struct vm *vm, const struct state_file *f, bool clone, struct error *e) {
	struct reader p;
	int r = check_list(vm, f, e);
	if (r == 0)
		r = state_find(f, STASIS_SECTION_SERIAL, 0, &p, e);
	if (r < 0)
		return r;
	if (!serial_load(&vm->serial, &p) || p.left != 0)
		return state_malformed(STASIS_SECTION_SERIAL, 0, e);
	for (unsigned i = 0; i < vm->device_count && r == 0; i++) {
		r = state_find(f, STASIS_SECTION_VIRTIO, i, &p, e);
		if (r == 0)
			r = virtio_load(vm->devices[i].virtio, &p, e);
		if (r < 0)
			return error_wrap(e, r, "device %u (%s)", i, kind_name(vm->devices[i].kind));
		if (p.bad || p.left != 0)
			return state_malformed(STASIS_SECTION_VIRTIO, i, e);
		if (clone && vm->devices[i].kind == VM_DEVICE_VSOCK)
			virtio_vsock_transport_reset(vm->devices[i].virtio);
	}
	vm->quiesced = true;
	return r;
}

static uint64_t read_mmio(struct vm *vm, uint64_t address, unsigned size) {
	uint64_t offset = address - arch_layout.mmio_base, value;
	if (address >= arch_layout.mmio_base && offset / PAGE_BYTES < vm->device_count) {
		vm_lock(vm);
		value = virtio_mmio_read(vm->devices[offset / PAGE_BYTES].virtio, offset % PAGE_BYTES, size);
		vm_unlock(vm);
		return value;
	}
	return arch_mmio_read(vm, address, size, &value) ? value : UINT64_MAX;
}

static void write_mmio(struct vm *vm, uint64_t address, unsigned size, uint64_t value) {
	uint64_t offset = address - arch_layout.mmio_base;
	if (address < arch_layout.mmio_base || offset / PAGE_BYTES >= vm->device_count) {
		arch_mmio_write(vm, address, size, value);
		return;
	}
	vm_lock(vm);
	virtio_mmio_write(vm->devices[offset / PAGE_BYTES].virtio, offset % PAGE_BYTES, size, value);
	vm_unlock(vm);
}

void mmio_access(struct vm *vm, uint64_t address, uint8_t *data, unsigned size, bool write) {
	uint64_t value = 0;
	if (size > sizeof(value))
		return;
	if (write) {
		memcpy(&value, data, size);
		write_mmio(vm, address, size, value);
	} else {
		value = read_mmio(vm, address, size);
		memcpy(data, &value, size);
	}
}
