# shellcheck shell=bash
# The disk with the base images. What goes onto it is made by assets/bases/fill.
# shellcheck disable=SC2154

require_root_for_bases() {
	[ "$(id -u)" = 0 ] || fail "the base images are made as root (packages are installed in a chroot and stored with overlay mounts);" \
		"run once: sudo assets/make $output $build bases"
}

make_bases() {
	local tree=$work/bases.tree
	rm -rf --one-file-system "$tree"
	# In a mount namespace of its own, so that its mounts vanish with it, however it ends.
	unshare --mount --propagation private "$here/bases/fill" "$work" "$tree" "$made"
	ext4_image "$output/bases.ext4.new" bases fit "$tree" -O ^has_journal,^resize_inode
	mv "$output/bases.ext4.new" "$output/bases.ext4"
	mv "$made/bases.json.new" "$made/bases.json"
	rm -rf --one-file-system "$tree"
}
