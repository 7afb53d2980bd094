# shellcheck shell=bash
# Helpers of assets/make: messages, keys, the manifest assets.json, and ext4 images.
# shellcheck disable=SC2154 # here, source, output, build, work and made are set by assets/make

say() {
	printf '%s\n' "$*"
}

fail() {
	printf 'assets: error: %s\n' "$*" >&2
	exit 1
}

milliseconds() {
	local now=${EPOCHREALTIME/[.,]/}
	echo "${now%???}"
}

seconds_since() {
	local ms=$(($(milliseconds) - $1))
	printf '%d.%d' $((ms / 1000)) $((ms % 1000 / 100))
}

# Which file an asset is, whose presence counts.
file_of() {
	case $1 in
	kernel) echo "$output/vmlinuz" ;;
	machine.kernel) echo "$output/machine.vmlinux" ;;
	guest.initrd | machine.initrd) echo "$output/$1" ;;
	system | builder | bases) echo "$output/$1.ext4" ;;
	*) fail "there is no asset '$1'" ;;
	esac
}

# The files whose content decides whether an asset must be made again.
inputs_of() {
	case $1 in
	kernel | machine.kernel) echo "$here/kernel.sh" "$here/packages.sh" ;;
	guest.initrd) echo "$here/kernel.sh" "$source/src/guest/modules.txt" "$(program stasis-init guest)" ;;
	machine.initrd) echo "$here/kernel.sh" "$source/src/machine/modules.txt" "$(program stasis-machine-init machine)" ;;
	system) echo "$here/system.sh" "$here/packages.sh" "$here/lib.sh" ;;
	builder) echo "$here/system.sh" "$here/packages.sh" "$here/lib.sh" "$here"/builder/* "$(program stasis-build images/builder)" \
		"$(program stasis-reexec.so images/builder)" ;;
	bases) echo "$here/bases.sh" "$here/lib.sh" "$here"/bases/* ;;
	*) fail "there is no asset '$1'" ;;
	esac
}

# A compiled program: in the build folder itself, or where meson puts what src/<folder> makes.
program() {
	if [ -f "$build/$1" ]; then
		echo "$build/$1"
	else
		echo "$build/src/$2/$1"
	fi
}

key_of() {
	local inputs name=$1
	inputs=$(inputs_of "$name")
	# shellcheck disable=SC2086 # a list of names
	for file in $inputs; do
		[ -f "$file" ] || fail "$name needs $file, which is not there (compile first: meson compile -C $build)"
	done
	# shellcheck disable=SC2086
	{
		cat -- $inputs
		echo "${STASIS_DEBIAN_MIRROR:-} ${STASIS_SECURITY_MIRROR:-}"
		case $name in
		bases) echo "${STASIS_ALIAS_BASE:-debian}" ;;
		guest.initrd) release_if_known kernel ;;
		machine.initrd) release_if_known machine.kernel ;;
		esac
	} | sha256sum | cut -c 1-64
}

recorded_key() {
	[ ! -f "$output/assets.json" ] || sed -n "s/^    \"$1\": {.*\"key\": \"\([0-9a-f]*\)\".*/\1/p" "$output/assets.json"
}

is_current() {
	[ -z "${STASIS_ASSETS_FRESH:-}" ] || return 1
	local file
	file=$(file_of "$1") || exit 1
	[ -f "$file" ] || return 1
	local key
	key=$(key_of "$1") || exit 1
	[ "$key" = "$(recorded_key "$1")" ] || [ "$key" = "$(cat "$made/$1.key" 2>/dev/null)" ]
}

make_asset() {
	local began
	began=$(milliseconds)
	rm -f "$made/$1.key"
	"make_${1//[.]/_}"
	key_of "$1" >"$made/$1.key.new"
	mv "$made/$1.key.new" "$made/$1.key"
	say "assets: $1 made in $(seconds_since "$began") s ($(du -h "$(file_of "$1")" | cut -f 1))"
}

# Writes assets.json: keys and hashes of the files, what they were made from.
write_manifest() {
	local first name key file
	{
		echo '{'
		echo "  \"kernel\": \"$(release_if_known kernel)\","
		echo "  \"machineKernel\": \"$(release_if_known machine.kernel)\","
		echo '  "assets": {'
		first=
		for name in kernel guest.initrd machine.kernel machine.initrd system builder bases; do
			file=$(file_of "$name")
			[ -f "$file" ] && [ -f "$made/$name.key" ] || continue
			key=$(cat "$made/$name.key")
			[ -z "$first" ] || echo ','
			printf '    "%s": {"file": "%s", "key": "%s", "sha256": "%s"}' "$name" "$(basename "$file")" "$key" "$(hash_of "$file")"
			first=no
		done
		printf '\n  },\n  "baseImages": '
		cat "$made/bases.json" 2>/dev/null || echo '[]'
		echo '  ,"packages": {'
		cat "$made"/*.packages 2>/dev/null | sort -u | sed 's/^\([^ ]*\) \(.*\)$/    "\1": "\2",/' | sed '$ s/,$//'
		echo '  }'
		echo '}'
	} >"$output/assets.json.new"
	mv "$output/assets.json.new" "$output/assets.json"
}

# SHA-256 of a file, remembered by its size and time.
hash_of() {
	local stamp known
	stamp=$(stat -c '%s %Y %i' "$1")
	known=$made/$(basename "$1").sha256
	if [ "$(sed -n 1p "$known" 2>/dev/null)" != "$stamp" ]; then
		printf '%s\n%s\n' "$stamp" "$(sha256sum "$1" | cut -c 1-64)" >"$known"
	fi
	sed -n 2p "$known"
}

require_tools() {
	local tool package
	while read -r tool package; do
		command -v "$tool" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
			fail "'$tool' is needed to make the assets; install it with: apt-get install $package"
	done <<-END
		mke2fs e2fsprogs
		xz xz-utils
		zstd zstd
		dpkg-deb dpkg
		apt-get apt
		cpio cpio
		depmod kmod
		strip binutils
		readelf binutils
		awk mawk
		mmdebstrap mmdebstrap
		buildah buildah
		jq jq
	END
	PATH=$PATH:/usr/sbin:/sbin
}

# ext4_image FILE LABEL SIZE TREE [mke2fs option…]: a sparse file with an ext4 file system that has the content of TREE. SIZE as mke2fs
# takes it, or "fit": what the content needs. Identifiers are fixed, so that equal trees give equal images.
ext4_image() {
	local file=$1 label=$2 size=$3 tree=$4
	shift 4
	if [ "$size" = fit ]; then
		# Blocks that files and folders take, and 512 bytes of inode for each name, rounded up generously: holes cost nothing.
		size=$(du -sB 4096 "$tree" | cut -f 1)
		size=$((size * 4 * 106 / 100 + $(find "$tree" | wc -l) / 2 + 8192))k
	fi
	: >"$file"
	# In the image files belong to root, whoever runs this.
	local mkfs=mke2fs
	[ "$(id -u)" = 0 ] || mkfs="fakeroot mke2fs"
	# shellcheck disable=SC2086
	E2FSPROGS_FAKE_TIME=${SOURCE_DATE_EPOCH:-1700000000} $mkfs -q -F -t ext4 -b 4096 -m 0 -L "$label" -d "$tree" \
		-U 5a515051-5300-4000-8000-0000000000$(printf '%02x' ${#label}) \
		-E hash_seed=5a515051-5300-4000-8000-000000000000,assume_storage_prezeroed=1,nodiscard "$@" "$file" "$size"
}
