#!/bin/sh
# Runs test_vm_linux: makes the guest's initramfs from linux_init and the virtio modules of a kernel.
#
#   tests/vm/linux.sh <build> <bzImage> <modules> [test name pattern]
#
# <build>: the build folder; <modules>: the kernel's module folder (/lib/modules/<version>). Where /dev/kvm cannot run ordinary kernels, run it
# inside the machine.
set -eu
build=$1 kernel=$2 modules=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/modules" "$work/root/dev" "$work/root/proc" "$work/root/sys"
cp "$build/tests/vm/linux_init" "$work/root/init"
for m in virtio/virtio_ring virtio/virtio virtio/virtio_mmio char/hw_random/virtio-rng virtio/virtio_balloon; do
	cp "$modules/kernel/drivers/$m.ko" "$work/root/modules/"
	basename "$m.ko" >>"$work/root/modules/order"
done
for m in vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
	cp "$modules/kernel/net/vmw_vsock/$m.ko" "$work/root/modules/"
	echo "$m.ko" >>"$work/root/modules/order"
done
(cd "$work/root" && find . | cpio -o -H newc --quiet) >"$work/initrd"
"$build/tests/vm/test_vm_linux" "$build/src/vmm/stasis-vmm" "$kernel" "$work/initrd" ${4:+"$4"}
