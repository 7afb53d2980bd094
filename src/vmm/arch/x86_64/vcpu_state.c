// A vCPU's state: out of KVM into a section, and back. What a section holds is described in docs/snapshot-format.md; the structures are those of
// Linux's KVM interface (Documentation/virt/kvm/api.rst), each with its size before it.
#include "base/cleanup.h"
#include "base/log.h"
#include "vmm/arch/x86_64/x86.h"
#include "vmm/vm.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define XSAVE_BYTES_MAX 65536u
#define SECTION_ROOM (XSAVE_BYTES_MAX + 16384u)
#define TSC_TOLERANCE_PPM 250

static void put_blob(struct writer *w, const void *data, uint32_t size) {
	write_u32(w, size);
	write_bytes(w, data, size);
}

static void get_blob(struct reader *r, void *to, uint32_t size) {
	if (read_u32(r) != size)
		r->bad = true;
	read_copy(r, to, size);
}

static int get(struct vcpu *v, unsigned long request, void *to, const char *name, struct error *e) {
	return ioctl(v->fd, request, to) < 0 ? error_errno(e, "%s of vCPU %u", name, v->index) : 0;
}
#define GET(request, to) (r = r < 0 ? r : get(v, request, to, #request, e))

static int save_xsave(struct vcpu *v, struct writer *w, struct error *e) {
	const struct arch_host *host = v->vm->host->arch;
	cleanup_free void *area = calloc(1, host->xsave_bytes);
	if (area == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	int r = 0;
	if (host->has_xsave2)
		GET(KVM_GET_XSAVE2, area);
	else
		GET(KVM_GET_XSAVE, area);
	put_blob(w, area, host->xsave_bytes);
	return r;
}

int vcpu_state_save(struct vcpu *v, struct state_writer *out, struct error *e) {
	const struct arch_host *host = v->vm->host->arch;
	struct vcpu_state s = {.msrs = NULL};
	int r = 0;
	GET(KVM_GET_MP_STATE, &s.mp_state);
	GET(KVM_GET_REGS, &s.regs);
	GET(KVM_GET_SREGS, &s.sregs);
	if (host->has_debugregs)
		GET(KVM_GET_DEBUGREGS, &s.debugregs);
	if (host->has_xcrs)
		GET(KVM_GET_XCRS, &s.xcrs);
	GET(KVM_GET_VCPU_EVENTS, &s.events);
	GET(KVM_GET_LAPIC, &s.lapic);
	if (r < 0)
		return r;
	int khz = host->has_tsc_khz ? ioctl(v->fd, KVM_GET_TSC_KHZ, 0) : 0;
	struct writer w = state_open(out, STASIS_SECTION_VCPU, v->index, SECTION_ROOM);
	put_blob(&w, &s.regs, sizeof(s.regs));
	put_blob(&w, &s.sregs, sizeof(s.sregs));
	put_blob(&w, &s.debugregs, sizeof(s.debugregs));
	put_blob(&w, &s.xcrs, sizeof(s.xcrs));
	put_blob(&w, &s.events, sizeof(s.events));
	put_blob(&w, &s.mp_state, sizeof(s.mp_state));
	put_blob(&w, &s.lapic, sizeof(s.lapic));
	write_u32(&w, khz < 0 ? 0 : (uint32_t)khz);
	r = save_xsave(v, &w, e);
	msrs_save(v->fd, host->msrs, &w);
	int closed = state_close(out, &w);
	if (r == 0 && closed < 0)
		return error_set(e, closed, "the state of vCPU %u does not fit", v->index);
	return r;
}

int vcpu_state_parse(struct reader *r, struct vcpu_state *ret) {
	get_blob(r, &ret->regs, sizeof(ret->regs));
	get_blob(r, &ret->sregs, sizeof(ret->sregs));
	get_blob(r, &ret->debugregs, sizeof(ret->debugregs));
	get_blob(r, &ret->xcrs, sizeof(ret->xcrs));
	get_blob(r, &ret->events, sizeof(ret->events));
	get_blob(r, &ret->mp_state, sizeof(ret->mp_state));
	get_blob(r, &ret->lapic, sizeof(ret->lapic));
	ret->tsc_khz = read_u32(r);
	ret->xsave_bytes = read_u32(r);
	if (r->bad || ret->xsave_bytes < 576 || ret->xsave_bytes > XSAVE_BYTES_MAX || ret->xcrs.nr_xcrs > KVM_MAX_XCRS)
		return -EBADMSG;
	ret->xsave = read_bytes(r, ret->xsave_bytes);
	int parsed = msrs_parse(r, &ret->msrs, &ret->msr_count);
	return parsed < 0 || r->bad || r->left != 0 ? -EBADMSG : 0;
}

// The guest's timers count in TSC ticks, so the frequency should stay. Where the CPU cannot scale it, kvm-clock is right all the same and
// timers fire early or late in proportion.
static void load_tsc_frequency(struct vcpu *v, uint32_t khz) {
	const struct arch_host *host = v->vm->host->arch;
	struct arch_vm *arch = v->vm->arch;
	if (arch->tsc_khz == 0 && host->has_tsc_khz) // the same for all vCPUs of a fresh VM
		arch->tsc_khz = ioctl(v->fd, KVM_GET_TSC_KHZ, 0);
	int now = arch->tsc_khz;
	if (khz == 0 || now <= 0)
		return;
	int64_t differs = (int64_t)khz - now;
	if ((differs < 0 ? -differs : differs) * 1000000 <= (int64_t)now * TSC_TOLERANCE_PPM)
		return;
	if ((!host->has_tsc_scaling || ioctl(v->fd, KVM_SET_TSC_KHZ, (unsigned long)khz) < 0) && v->index == 0)
		log_warn("vmm.tsc", LOG_S("message", "this CPU cannot scale the TSC; the guest's timers run at another speed"),
			 LOG_U("guestKhz", khz), LOG_U("hostKhz", now));
}

static int load_xsave(struct vcpu *v, const struct vcpu_state *s, struct error *e) {
	const struct arch_host *host = v->vm->host->arch;
	uint32_t room = s->xsave_bytes > host->xsave_bytes ? s->xsave_bytes : host->xsave_bytes;
	cleanup_free uint8_t *area = calloc(1, room);
	if (area == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	memcpy(area, s->xsave, s->xsave_bytes);
	for (uint32_t i = host->xsave_bytes; i < s->xsave_bytes; i++)
		if (area[i] != 0)
			return error_set(e, -ENOTSUP, "the snapshot has %u bytes of extended CPU state, this host's KVM takes %u",
					 s->xsave_bytes, host->xsave_bytes);
	return get(v, KVM_SET_XSAVE, area, "KVM_SET_XSAVE", e);
}

static void *unconst(const void *p) {
	return (void *)(uintptr_t)p;
}

// What a fresh vCPU has anyway is not set: each call into KVM costs.
static bool is_fresh_debugregs(const struct kvm_debugregs *d) {
	const struct kvm_debugregs fresh = {.dr6 = 0xffff0ff0, .dr7 = 0x400};
	return memcmp(d, &fresh, sizeof(fresh)) == 0;
}

static bool has_events(const struct kvm_vcpu_events *events) {
	struct kvm_vcpu_events e = *events;
	const struct kvm_vcpu_events none = {.flags = 0};
	e.flags = 0; // says which of the others are meant
	return memcmp(&e, &none, sizeof(none)) != 0;
}

static bool is_fresh_mp_state(const struct vcpu *v, const struct kvm_mp_state *s) {
	return s->mp_state == (v->index == 0 ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED);
}

int vcpu_state_load(struct vcpu *v, const struct vcpu_state *s, struct error *e) {
	const struct arch_host *host = v->vm->host->arch;
	load_tsc_frequency(v, s->tsc_khz);
	int r = 0;
	GET(KVM_SET_SREGS, unconst(&s->sregs)); // first: sets the local APIC's mode
	GET(KVM_SET_REGS, unconst(&s->regs));
	r = r < 0 ? r : load_xsave(v, s, e);
	if (host->has_xcrs && s->xcrs.nr_xcrs > 0)
		GET(KVM_SET_XCRS, unconst(&s->xcrs));
	if (host->has_debugregs && !is_fresh_debugregs(&s->debugregs))
		GET(KVM_SET_DEBUGREGS, unconst(&s->debugregs));
	GET(KVM_SET_LAPIC, unconst(&s->lapic)); // before the TSC deadline among the MSRs
	r = r < 0 ? r : msrs_load(v->fd, s->msrs, s->msr_count, e);
	if (has_events(&s->events))
		GET(KVM_SET_VCPU_EVENTS, unconst(&s->events));
	if (!is_fresh_mp_state(v, &s->mp_state))
		GET(KVM_SET_MP_STATE, unconst(&s->mp_state));
	return r;
}
