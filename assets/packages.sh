# shellcheck shell=bash
# Debian packages: an apt of our own below OUTPUT/.work (its lists and downloads), so that neither the host's sources nor its installed
# packages decide what goes into the assets, and no root is needed.
# shellcheck disable=SC2154

suite=bookworm
mirror=${STASIS_DEBIAN_MIRROR:-http://deb.debian.org/debian}
security=${STASIS_SECURITY_MIRROR:-http://deb.debian.org/debian-security}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
apt=$work/apt

print_sources() {
	local signed=${1:-}
	echo "deb $signed$mirror $suite main"
	echo "deb $signed$mirror $suite-updates main"
	echo "deb $signed$security $suite-security main"
}

update_package_lists() {
	local began
	began=$(milliseconds)
	[ -f "$keyring" ] || fail "$keyring is missing; install it with: apt-get install debian-archive-keyring"
	mkdir -p "$apt/etc/apt.conf.d" "$apt/etc/preferences.d" "$apt/lists/partial" "$apt/archives/partial"
	: >"$apt/status"
	# Of the host's own settings only its proxies matter here.
	apt-config dump | grep -i '^Acquire::[^ ]*Proxy' >"$apt/apt.conf.new" || true
	cat >>"$apt/apt.conf.new" <<-END
		Dir "$apt";
		Dir::Etc "$apt/etc";
		Dir::State "$apt";
		Dir::State::lists "$apt/lists";
		Dir::State::status "$apt/status";
		Dir::Cache "$apt";
		Dir::Cache::archives "$apt/archives";
		APT::Sandbox::User "root";
		APT::Architecture "amd64";
		APT::Architectures { "amd64"; };
		APT::Install-Recommends "false";
		Acquire::Languages "none";
		Acquire::Retries "3";
	END
	mv "$apt/apt.conf.new" "$apt/apt.conf"
	print_sources "[arch=amd64 signed-by=$keyring] " >"$apt/etc/sources.list"
	# For the machine's kernel alone: apt takes nothing from there unless it is told to.
	echo "deb [arch=amd64 signed-by=$keyring] $mirror $suite-backports main" >>"$apt/etc/sources.list"
	# A list of the last hours is fresh enough.
	if [ -z "${STASIS_ASSETS_FRESH:-}" ] && [ -n "$(find "$apt/updated" -mmin -360 -newer "$apt/etc/sources.list.last" 2>/dev/null)" ] &&
		cmp -s "$apt/etc/sources.list" "$apt/etc/sources.list.last"; then
		return
	fi
	APT_CONFIG=$apt/apt.conf apt-get -q update >"$work/apt.log" 2>&1 || {
		tail -n 5 "$work/apt.log" >&2
		fail "cannot read Debian's package lists from $mirror"
	}
	cp "$apt/etc/sources.list" "$apt/etc/sources.list.last"
	touch "$apt/updated"
	say "assets: package lists read in $(seconds_since "$began") s"
}

# download NAME PACKAGE…: fetches exactly these packages, and writes the files' names to .work/NAME.debs and "package version" lines
# to .work/NAME.packages.
download() {
	local name=$1 attempt package version file
	shift
	for attempt in 1 2 3; do
		# What lies there already, whole, apt does not fetch again.
		if (cd "$apt/archives" && APT_CONFIG=$apt/apt.conf apt-get -q download "$@") >"$work/$name.apt.log" 2>&1; then
			break
		fi
		[ "$attempt" != 3 ] || {
			tail -n 5 "$work/$name.apt.log" >&2
			fail "cannot download the packages of $name"
		}
		sleep 2
	done
	APT_CONFIG=$apt/apt.conf apt-cache show --no-all-versions "$@" |
		awk '$1 == "Package:" { package = $2 } $1 == "Version:" { print package, $2 }' | sort -u >"$made/$name.packages"
	: >"$work/$name.debs"
	while read -r package version; do
		for file in "$apt/archives/${package}_${version//:/%3a}"_*.deb; do
			[ -f "$file" ] || fail "apt did not download $package $version"
			echo "$file" >>"$work/$name.debs"
		done
	done <"$made/$name.packages"
}

# unpack NAME TREE: the packages of download, unpacked (not configured) into a new tree with a merged /usr, without documentation.
unpack() {
	local tree=$2 file link
	rm -rf "$tree"
	mkdir -p "$tree"
	for link in bin sbin lib lib64; do
		mkdir -p "$tree/usr/$link"
		ln -s "usr/$link" "$tree/$link"
	done
	while read -r file; do
		dpkg-deb --fsys-tarfile "$file" | tar -x -C "$tree" --keep-directory-symlink --no-same-owner -p \
			--exclude=./usr/share/man --exclude=./usr/share/info --exclude=./usr/share/locale --exclude=./usr/share/doc \
			--exclude=./usr/share/lintian --exclude=./usr/share/bash-completion --exclude=./usr/share/zsh
	done <"$work/$1.debs"
}
