# shellcheck shell=bash
# The read-only disks of Debian packages: the system disk of every microVM (crun and its libraries) and the builder's (buildah and the
# build program). Packages are unpacked, not installed: nothing in there is ever upgraded, and no maintainer script has work to do but the few things below.
# shellcheck disable=SC2154

# Mount points and the files in /etc that programs expect.
finish_tree() {
	local tree=$1 hostname=$2
	mkdir -p "$tree"/{proc,sys,dev,run,tmp,root,mnt,etc,var/tmp,var/lib}
	chmod 1777 "$tree/tmp" "$tree/var/tmp"
	chmod 700 "$tree/root"
	rm -rf "$tree/var/run" "$tree/var/lock"
	ln -s /run "$tree/var/run"
	cp "$tree/usr/share/base-passwd/passwd.master" "$tree/etc/passwd"
	cp "$tree/usr/share/base-passwd/group.master" "$tree/etc/group"
	echo "$hostname" >"$tree/etc/hostname"
	printf '127.0.0.1 localhost %s\n::1 localhost\n' "$hostname" >"$tree/etc/hosts"
	ln -sf /run/resolv.conf "$tree/etc/resolv.conf"
	ln -sf /proc/mounts "$tree/etc/mtab"
	printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$tree/etc/nsswitch.conf"
}

# The licences of what is in a tree, which unpack leaves out with the documentation.
keep_licences() {
	local file
	while read -r file; do
		dpkg-deb --fsys-tarfile "$file" | tar -x -C "$2" --no-same-owner --wildcards './usr/share/doc/*/copyright' 2>/dev/null || true
	done <"$work/$1.debs"
}

# Every library that the tree's programs are linked with must be in the tree: the package lists below name them one by one.
check_libraries() {
	local tree=$1 program library
	shift
	for program in "$@" $(cd "$tree" && find usr/lib/x86_64-linux-gnu -maxdepth 1 -name '*.so.*' -type f); do
		for library in $(readelf -d "$tree/$program" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
			[ -e "$tree/usr/lib/x86_64-linux-gnu/$library" ] || [ -e "$tree/usr/lib64/$library" ] ||
				fail "$program needs $library, which no package of the list in assets/system.sh has"
		done
	done
}

# Turns a tree into OUTPUT/NAME.ext4. Nothing is ever written on it: no journal, no descriptors reserved for growing.
make_disk_of() {
	local name=$1 tree=$2
	find "$tree" -exec touch -h -d @1700000000 {} +
	ext4_image "$output/$name.ext4.new" "$name" fit "$tree" -O ^has_journal,^resize_inode
	mv "$output/$name.ext4.new" "$output/$name.ext4"
}

system_packages=(base-files base-passwd libc6 libgcc-s1 crun libcap2 libseccomp2 libgcrypt20 libgpg-error0 liblz4-1 liblzma5 libzstd1
	libsystemd0 libyajl2)

make_system() {
	local tree=$work/system.tree
	download system "${system_packages[@]}"
	unpack system "$tree"
	keep_licences system "$tree"
	finish_tree "$tree" microvm
	# Character sets and locales of the C library: nobody there converts texts.
	rm -rf "$tree/usr/lib/x86_64-linux-gnu/gconv" "$tree/usr/share/i18n"
	check_libraries "$tree" usr/bin/crun
	make_disk_of system "$tree"
}

# libc-bin: the locale C.UTF-8, for the names in zips.
builder_packages=("${system_packages[@]}" buildah libgpgme11 libassuan0 libdevmapper1.02.1 libselinux1 libudev1 libpcre2-8-0 e2fsprogs
	libext2fs2 libcom-err2 libss2 libblkid1 libuuid1 ca-certificates libc-bin dash coreutils libacl1 libattr1 libgmp10 tar xz-utils)

make_builder() {
	local tree=$work/builder.tree
	download builder "${builder_packages[@]}"
	unpack builder "$tree"
	keep_licences builder "$tree"
	finish_tree "$tree" builder
	rm -rf "$tree/usr/lib/x86_64-linux-gnu/gconv" "$tree/usr/share/i18n"
	ln -sf dash "$tree/usr/bin/sh"
	mkdir -p "$tree"/etc/{ssl/certs,containers} "$tree"/var/lib/{containers,stasis/bases} "$tree/usr/lib/stasis"
	cat "$tree"/usr/share/ca-certificates/mozilla/*.crt >"$tree/etc/ssl/certs/ca-certificates.crt"
	# Where buildah remembers short names; the build program makes the target.
	mkdir -p "$tree/var/cache"
	ln -s /var/lib/containers/cache "$tree/var/cache/containers"
	install -m 644 "$here"/builder/{storage.conf,registries.conf,policy.json} "$tree/etc/containers"
	install -m 755 "$(program stasis-build images/builder)" "$tree/usr/lib/stasis/build"
	install -m 644 "$(program stasis-reexec.so images/builder)" "$tree/usr/lib/stasis/reexec.so"
	strip "$tree/usr/lib/stasis/build" "$tree/usr/lib/stasis/reexec.so"
	echo /usr/lib/stasis/reexec.so >"$tree/etc/ld.so.preload"
	check_libraries "$tree" usr/bin/buildah usr/bin/crun usr/sbin/mke2fs usr/bin/dash usr/bin/cp usr/bin/tar
	make_disk_of builder "$tree"
}
