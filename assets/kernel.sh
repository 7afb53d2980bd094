# shellcheck shell=bash
# Debian's kernels, unmodified, and the initrds: one init program and the modules that it loads. MicroVMs boot Debian 12's kernel ("kernel"), the
# machine the one of its backports ("machine.kernel"): from Linux 6.11 on KVM can map a guest's pages in advance, which halves the time of a
# launch where KVM runs on an emulated processor.
# shellcheck disable=SC2154

# release_if_known KERNEL
release_if_known() {
	cat "$output/$1.release" 2>/dev/null || true
}

# fetch_kernel KERNEL [APT OPTION…]: unpacks Debian's current kernel to .work/KERNEL, and writes its release to OUTPUT/KERNEL.release.
fetch_kernel() {
	local kernel=$1 package release
	shift
	package=$(APT_CONFIG=$apt/apt.conf apt-cache "$@" depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*-amd64\).*/\1/p' | head -n 1)
	[ -n "$package" ] || fail "Debian's package lists have no linux-image-amd64"
	# The package alone: what it depends on makes initramfs images on an installed system.
	download "$kernel" "$package"
	release=${package#linux-image-}
	rm -rf "$work/$kernel.new"
	mkdir -p "$work/$kernel.new"
	dpkg-deb --fsys-tarfile "$(cat "$work/$kernel.debs")" | tar -x -C "$work/$kernel.new" --no-same-owner ./boot ./lib/modules
	depmod -b "$work/$kernel.new" "$release"
	rm -rf "$work/$kernel"
	mv "$work/$kernel.new" "$work/$kernel"
	echo "$release" >"$output/$kernel.release.new"
	mv "$output/$kernel.release.new" "$output/$kernel.release"
}

make_kernel() {
	fetch_kernel kernel
	cp "$work/kernel/boot/vmlinuz-$(release_if_known kernel)" "$output/vmlinuz.new"
	mv "$output/vmlinuz.new" "$output/vmlinuz"
}

make_machine_kernel() {
	fetch_kernel machine.kernel -o "APT::Default-Release=$suite-backports"
	unpack_kernel "$work/machine.kernel/boot/vmlinuz-$(release_if_known machine.kernel)" >"$output/machine.vmlinux.new"
	mv "$output/machine.vmlinux.new" "$output/machine.vmlinux"
}

# little_endian FILE OFFSET BYTES: an integer in a file.
little_endian() {
	od -An -v -t "u$3" -j "$2" -N "$3" --endian=little "$1" | tr -d ' '
}

# Prints the ELF kernel that lies compressed in a bzImage, which would unpack itself with every boot: seconds on an emulated processor. QEMU starts it by its PVH
# entry. Where it lies says the setup header (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length).
unpack_kernel() {
	local file=$1 start length magic
	start=$((($(little_endian "$file" 497 1) + 1) * 512 + $(little_endian "$file" 584 4)))
	# Its last four bytes are the unpacked size.
	length=$(($(little_endian "$file" 588 4) - 4))
	magic=$(od -An -v -t x1 -j "$start" -N 4 "$file" | tr -d ' ')
	case $magic in
	fd377a58) set -- xz -dc ;;
	1f8b*) set -- gzip -dc ;;
	28b52ffd) set -- zstd -dc ;;
	*) fail "the kernel is compressed in a way that is not known here (it starts with $magic)" ;;
	esac
	dd if="$file" bs=1M iflag=skip_bytes,count_bytes skip="$start" count="$length" status=none | "$@"
}

# resolve MODULES.TXT: the files (below lib/modules/<release>) of the listed modules and of all that they need, in loading order, one "file parameters" a
# line. A name that the kernel has built in is left out; one that it does not know at all is an error.
resolve() {
	local release=$1 list=$2 tree=$3
	awk -v list="$list" '
		function canonical(name) {
			gsub(/-/, "_", name)
			return name
		}
		function name_of(file) {
			sub(/.*\//, "", file)
			sub(/\.ko.*/, "", file)
			return canonical(file)
		}
		function add(file, parameters,    n, needs, i) {
			if (file in done)
				return
			done[file] = 1
			# Soft dependencies: crypto algorithms, which nobody could load by name in there.
			n = split(soft[name_of(file)], needs, " ")
			for (i = 1; i <= n; i++)
				if (needs[i] in path)
					add(path[needs[i]], "")
				else if ((needs[i] "_generic") in path)
					add(path[needs[i] "_generic"], "")
			n = split(depends[file], needs, " ")
			for (i = n; i >= 1; i--)
				add(needs[i], "")
			print file (parameters != "" ? " " parameters : "")
		}
		FILENAME ~ /modules\.dep$/ {
			file = $1
			sub(/:$/, "", file)
			path[name_of(file)] = file
			$1 = ""
			depends[file] = $0
			next
		}
		FILENAME ~ /modules\.builtin$/ {
			builtin[name_of($1)] = 1
			next
		}
		FILENAME ~ /modules\.softdep$/ && $1 == "softdep" {
			kind = ""
			for (i = 3; i <= NF; i++)
				if ($i ~ /:$/)
					kind = $i
				else if (kind == "pre:") {
					sub(/^crypto-/, "", $i)
					soft[canonical($2)] = soft[canonical($2)] " " canonical($i)
				}
			next
		}
		FILENAME == list && $0 !~ /^[ \t]*(#|$)/ {
			name = canonical($1)
			$1 = ""
			sub(/^ /, "")
			if (name in path)
				add(path[name], $0)
			else if (!(name in builtin)) {
				print "assets: error: " list ": the kernel has no module " name > "/dev/stderr"
				exit 1
			}
		}' "$tree/modules.dep" "$tree/modules.builtin" "$tree/modules.softdep" "$list" ||
		fail "cannot resolve the modules of $list for Linux $release"
}

# copy_module FROM TO: without debugging information, which a compressed one does not have.
copy_module() {
	case $1 in
	*.xz) xz -dc "$1" >"$2" ;;
	*.zst) zstd -dcq "$1" >"$2" ;;
	*) strip --strip-debug -o "$2" "$1" ;;
	esac
}

# pack_initrd KERNEL INIT MODULES.TXT numbered|listed FILE: an initial RAM file system with INIT as /init and the modules in /modules, in the order in which they
# are to be loaded: NN-name.ko ("numbered"), or name.ko with their names and parameters in /modules/modules.txt ("listed").
pack_initrd() {
	local kernel=$1 init=$2 list=$3 style=$4 file=$5 release modules tree n=0 from parameters name
	release=$(release_if_known "$kernel")
	modules=$work/$kernel/lib/modules/$release
	if [ -z "$release" ] || [ ! -d "$modules" ]; then
		update_package_lists
		make_asset "$kernel"
		release=$(release_if_known "$kernel")
		modules=$work/$kernel/lib/modules/$release
	fi
	tree=$work/initrd.tree
	rm -rf "$tree"
	mkdir -p "$tree/modules" "$tree/dev" "$tree/proc" "$tree/sys" "$tree/run" "$tree/root"
	install -m 755 "$init" "$tree/init"
	strip "$tree/init"
	resolve "$release" "$list" "$modules" >"$work/initrd.modules"
	while read -r from parameters; do
		name=$(basename "$from")
		name=${name%.ko*}
		if [ "$style" = numbered ]; then
			name=$(printf '%02d-%s' "$n" "$name")
		else
			printf '%s\n' "$name${parameters:+ $parameters}" >>"$tree/modules/modules.txt"
		fi
		copy_module "$modules/$from" "$tree/modules/$name.ko"
		n=$((n + 1))
	done <"$work/initrd.modules"
	find "$tree" -exec touch -h -d @1700000000 {} +
	# The owner is root by what cpio writes, whoever owns the tree.
	(cd "$tree" && find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet) | compress_initrd >"$file.new"
	mv "$file.new" "$file"
	rm -rf "$tree"
}

# Uncompressed: an emulated processor unpacks a compressed one more slowly than it copies.
compress_initrd() {
	cat
}

make_guest_initrd() {
	pack_initrd kernel "$(program stasis-init guest)" "$source/src/guest/modules.txt" numbered "$output/guest.initrd"
}

make_machine_initrd() {
	pack_initrd machine.kernel "$(program stasis-machine-init machine)" "$source/src/machine/modules.txt" listed "$output/machine.initrd"
}
