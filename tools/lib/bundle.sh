# shellcheck shell=bash
# Relocatable bundles out of Debian packages: shared by tools/make-criu-bundle and tools/fetch-model.
#
# A bundle is a folder with a program, its own dynamic loader and every library that it needs, so that it
# runs on any x86-64 Linux whatever libc the host has. The packages are fetched by an apt that works in a
# private folder with an empty package status: it resolves the whole dependency closure, and neither reads
# nor changes what this system has installed, its package lists or its caches. Only the way to the mirror
# (proxies, certificates, the mirror itself) comes from the system's configuration.
#
# Order of use: bundle_begin, bundle_versions, then for each version that is tried bundle_fetch,
# bundle_program, bundle_library..., bundle_close, bundle_check, and at last bundle_publish.
# The work folder is OUT.tmp, beside the result, so that publishing is a rename; it is removed on every
# way out. A lock makes a second caller wait, and then find the work done.

bundle_loader=ld-linux-x86-64.so.2
bundle_keyring=/usr/share/keyrings/debian-archive-keyring.gpg

bundle_say() { echo "${0##*/}: $*" >&2; }
bundle_die() { bundle_say "$*"; exit 1; }

# bundle_begin OUT: the lock, the work folder and its removal.
bundle_begin() {
    [ "$(uname -m)" = x86_64 ] || bundle_die "only x86-64 is supported"
    local tool
    for tool in apt-get dpkg-deb readelf sha256sum flock; do
        command -v "$tool" > /dev/null || bundle_die "$tool is missing: run tools/install-deps"
    done
    bundle_out=$(realpath -m "$1")
    bundle_work=$bundle_out.tmp
    bundle_root=$bundle_work/root # the packages' files
    bundle_new=$bundle_work/bundle
    mkdir -p "${bundle_out%/*}"
    exec {bundle_lock}< "${bundle_out%/*}" # a folder can be locked: no file is left behind
    flock "$bundle_lock"
    trap bundle_end EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    rm -rf "$bundle_work"
    mkdir -p "$bundle_work"
}

# Callers add what they started to bundle_pids, disowned (or the shell tells of its end).
bundle_pids=()
bundle_end_pids() {
    local pid
    for pid in "${bundle_pids[@]}"; do
        kill -KILL "$pid" 2> /dev/null && bundle_wait_gone "$pid"
    done
    bundle_pids=()
}

bundle_end() {
    bundle_end_pids
    # Killed between the two renames of bundle_publish: put the old one back.
    if [ -e "$bundle_work/old" ] && [ ! -e "$bundle_out" ]; then
        mv "$bundle_work/old" "$bundle_out"
    fi
    rm -rf "$bundle_work"
}

bundle_wait_gone() {
    while [ -e "/proc/$1" ]; do
        sleep 0.01
    done
}

# The Debian mirror: $DEBIAN_MIRROR, else the one that this system's apt uses.
bundle_mirror() {
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        echo "$DEBIAN_MIRROR"
        return
    fi
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "main" && $2 !~ /security/ &&
             ($2 ~ /\/debian(\/|$)/ || $2 ~ /^mirror\+file:.*\/debian\.list/) { print $2; exit }'
}

# bundle_apt_begin SUITE...: a private apt that knows these suites.
bundle_apt_begin() {
    local mirror suite apt=$bundle_work/apt
    mirror=$(bundle_mirror)
    [ -n "$mirror" ] || bundle_die "this system's apt has no Debian mirror:" \
        "set DEBIAN_MIRROR to one (the URL whose folder 'dists' has the suites)"
    [ -f "$bundle_keyring" ] ||
        bundle_die "$bundle_keyring is missing: install the package debian-archive-keyring"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    : > "$apt/status"
    for suite in "$@"; do
        echo "deb [arch=amd64 signed-by=$bundle_keyring] $mirror $suite main"
    done > "$apt/sources.list"
    {
        # How the mirror is reached, but no hooks: they would touch this system's caches.
        apt-config dump | grep '^Acquire::' |
            grep -vE '^Acquire::(IndexTargets|Languages|GzipIndexes)' || true
        cat << CONF
Acquire::Languages "none";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Debug::NoLocking "true";
Dir::Cache "$apt/cache";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "$apt/preferences";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
CONF
    } > "$apt/apt.conf"
    APT_CONFIG=$apt/apt.conf apt-get -qq update > "$bundle_work/apt.log" 2>&1 || {
        cat "$bundle_work/apt.log" >&2
        bundle_die "the package lists of $* could not be fetched"
    }
}

# bundle_versions PACKAGE PINNED MINIMUM: versions to try, one a line: the pinned one first, if it is still
# there, then every other that is at least MINIMUM, newest first.
bundle_versions() {
    local package=$1 pinned=$2 minimum=$3 all version
    all=$(APT_CONFIG=$bundle_work/apt/apt.conf apt-cache madison "$package" |
        awk '{ print $3 }' | sort -u)
    grep -Fx -- "$pinned" <<< "$all" || true
    for version in $all; do
        [ "$version" = "$pinned" ] && continue
        dpkg --compare-versions "$version" ge "$minimum" && echo "$version"
    done | bundle_newest_first
}

bundle_newest_first() {
    local -a sorted=()
    local version i
    while read -r version; do
        for ((i = 0; i < ${#sorted[@]}; i++)); do
            dpkg --compare-versions "$version" gt "${sorted[i]}" && break
        done
        sorted=("${sorted[@]:0:i}" "$version" "${sorted[@]:i}")
    done
    [ ${#sorted[@]} = 0 ] || printf '%s\n' "${sorted[@]}"
}

# bundle_fetch PREFERENCES PACKAGE=VERSION...: fetches the closure and unpacks it into $bundle_root.
bundle_fetch() {
    local apt=$bundle_work/apt deb
    printf '%s\n' "$1" > "$apt/preferences"
    shift
    rm -rf "$bundle_root" "$bundle_new" "$apt"/cache/archives/*.deb
    mkdir -p "$bundle_root" "$bundle_new"/{bin,lib}
    APT_CONFIG=$apt/apt.conf apt-get -qq install -y --download-only "$@" \
        > "$bundle_work/apt.log" 2>&1 || return 1
    for deb in "$apt"/cache/archives/*.deb; do
        dpkg-deb -x "$deb" "$bundle_root" || return 1
    done
}

# bundle_find NAME: a library among the unpacked files. $bundle_extra_libdirs are looked at last.
bundle_extra_libdirs=()
bundle_find() {
    local dir
    # A package may put a file in /lib or in /usr/lib (merged or not).
    for dir in usr/lib/x86_64-linux-gnu lib/x86_64-linux-gnu usr/lib64 lib64 usr/lib lib \
        "${bundle_extra_libdirs[@]}"; do
        if [ -e "$bundle_root/$dir/$1" ]; then
            readlink -f "$bundle_root/$dir/$1"
            return
        fi
    done
    return 1
}

bundle_needed() { readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }

# bundle_program PATH: a program (path inside the packages), into bin/, with a wrapper of its name.
bundle_program() {
    local name=${1##*/}
    install -m 755 "$bundle_root/$1" "$bundle_new/bin/$name" || return 1
    # shellcheck disable=SC2016
    printf '%s\n' '#!/bin/sh' 'd=$(dirname "$(readlink -f "$0")")' \
        "exec \"\$d/lib/$bundle_loader\" --library-path \"\$d/lib\" --argv0 $name \"\$d/bin/$name\" \"\$@\"" \
        > "$bundle_new/$name"
    chmod 755 "$bundle_new/$name"
}

# bundle_library PATH: a library that is opened by name at run time, into lib/.
bundle_library() { install -m 644 "$1" "$bundle_new/lib/"; }

# bundle_close: adds the loader and every library that something in the bundle needs.
bundle_close() {
    local file name added=1
    install -m 755 "$(bundle_find $bundle_loader)" "$bundle_new/lib/$bundle_loader" || return 1
    while [ -n "$added" ]; do
        added=
        for file in "$bundle_new"/bin/* "$bundle_new"/lib/*; do
            for name in $(bundle_needed "$file"); do
                [ -e "$bundle_new/lib/$name" ] && continue
                file=$(bundle_find "$name") || {
                    bundle_say "no package holds $name"
                    return 1
                }
                install -m 644 "$file" "$bundle_new/lib/$name" || return 1
                added=1
            done
        done
    done
    bundle_record
}

# What the bundle is made of (MANIFEST: package, version, SHA-256 of the .deb), and the licences.
bundle_record() {
    local deb name file used
    mkdir -p "$bundle_new/copyright"
    for deb in "$bundle_work"/apt/cache/archives/*.deb; do
        used=
        while read -r file; do
            if [ -e "$bundle_new/lib/${file##*/}" ] || [ -e "$bundle_new/bin/${file##*/}" ]; then
                used=1
                break
            fi
        done < <(dpkg-deb -c "$deb" | awk '$1 ~ /^[-l]/ { print $6 }')
        [ -n "$used" ] || continue
        name=$(dpkg-deb -f "$deb" Package)
        echo "$name $(dpkg-deb -f "$deb" Version) $(sha256sum < "$deb" | cut -d' ' -f1)"
        if [ -f "$bundle_root/usr/share/doc/$name/copyright" ]; then
            cp -L "$bundle_root/usr/share/doc/$name/copyright" "$bundle_new/copyright/$name"
        fi
    done | sort > "$bundle_new/MANIFEST"
    [ -s "$bundle_new/MANIFEST" ]
}

# bundle_check PROGRAM: every library is there, and none of this system's is used.
bundle_check() {
    local list outside
    list=$("$bundle_new/lib/$bundle_loader" --library-path "$bundle_new/lib" \
        --list "$bundle_new/bin/$1") || return 1
    if grep 'not found' <<< "$list" >&2; then
        return 1
    fi
    outside=$(awk '/=>/ { print $3 }' <<< "$list" | grep -v "^$bundle_new/" || true)
    [ -z "$outside" ] || {
        bundle_say "libraries of this system are used: $outside"
        return 1
    }
}

# bundle_installed_version PACKAGE: what the finished bundle was made of; nothing without one.
bundle_installed_version() {
    [ -f "$bundle_out/MANIFEST" ] || return 0
    awk -v package="$1" '$1 == package { print $2 }' "$bundle_out/MANIFEST"
}

# bundle_publish: the new bundle takes the place of the old one.
bundle_publish() {
    if [ -e "$bundle_out" ]; then
        mv "$bundle_out" "$bundle_work/old"
    fi
    mv "$bundle_new" "$bundle_out"
}
