#!/bin/sh
# Builds the demo image without a daemon and without an image registry, says how large it is, and runs its program.
#
#   docker/build-demo.sh                    # build, measure, `--help`
#   docker/build-demo.sh path/to/a/bundle   # and label the drawn faces with that bundle
#
# The base is Debian bookworm (Python 3.11) made by debootstrap; buildah builds on it with chroot isolation. Needs root and
#   apt-get install buildah debootstrap
# WORK keeps the base and the layers between runs (default: a folder that is removed at the end). The last line is one JSON
# object: {"image": …, "size_mb": …} (1 MB = 10^6 bytes, all files of the image).
set -eu

LIMIT_MB=700
IMAGE=localhost/fer-lab-demo
BASE=localhost/fer-lab-base:bookworm
MIRROR=${MIRROR:-http://deb.debian.org/debian}
BUNDLE=${1:-}

fail() {
    echo "error: $1" >&2
    exit "$2"
}

[ "$(id -u)" = 0 ] || fail "root is needed (debootstrap and chroot); run it with sudo" 2
for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || fail "$tool is not installed; run: apt-get install buildah debootstrap" 2
done
[ -z "$BUNDLE" ] || [ -f "$BUNDLE/MANIFEST.json" ] || fail "$BUNDLE is not a bundle: it has no MANIFEST.json" 2
[ -z "$BUNDLE" ] || BUNDLE=$(cd "$BUNDLE" && pwd)
cd "$(dirname "$0")/.."

if [ -n "${WORK:-}" ]; then
    mkdir -p "$WORK"
    WORK=$(cd "$WORK" && pwd)
else
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
fi

# Its own storage: nothing of this machine's images is read or touched. vfs works everywhere, at the price of copies.
b() {
    verb=$1
    shift
    buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver vfs "$verb" "$@"
}

if ! b inspect --type image "$BASE" >/dev/null 2>&1; then
    echo "making the base with debootstrap …" >&2
    rm -rf "$WORK/base"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$WORK/base" "$MIRROR" >"$WORK/base.log" 2>&1 \
        || fail "debootstrap failed: $(tail -n 1 "$WORK/base.log") (all of it: $WORK/base.log)" 1
    # What no container needs: packages already unpacked, their lists, manuals, translations.
    rm -rf "$WORK"/base/var/cache/apt/* "$WORK"/base/var/lib/apt/lists/* \
        "$WORK"/base/usr/share/doc "$WORK"/base/usr/share/man "$WORK"/base/usr/share/locale
    made=$(b from scratch)
    b add --quiet "$made" "$WORK/base" / >/dev/null
    b commit --quiet --rm "$made" "$BASE" >/dev/null
    rm -rf "$WORK/base"
fi

# A proxy with its own authority: the build sees this machine's certificates, the image does not keep them.
set --
if [ -n "${SSL_CERT_FILE:-}" ]; then
    set -- --volume "$SSL_CERT_FILE:/etc/ssl/certs/ca-certificates.crt:ro"
fi
echo "building $IMAGE …" >&2
b build --isolation chroot --pull-never --format docker --build-arg "BASE=$BASE" "$@" \
    --file docker/Dockerfile.demo --tag "$IMAGE" . >&2

container=$(b from --pull-never "$IMAGE")
mounted=$(b mount "$container")
size_mb=$(($(du --summarize --apparent-size --bytes "$mounted" | cut -f 1) / 1000000))
run() {
    b run --isolation chroot --user 10001:10001 "$@"
}
run "$container" -- python -m fer_lab.demo --help >/dev/null || fail "the program of the image does not start" 1
if [ -n "$BUNDLE" ]; then
    run --volume "$BUNDLE:/bundle:ro" "$container" -- python -m fer_lab.demo /bundle --source sample --view none
fi
b umount "$container" >/dev/null
b rm "$container" >/dev/null
printf '{"image": "%s", "size_mb": %d}\n' "$IMAGE" "$size_mb"
[ "$size_mb" -lt "$LIMIT_MB" ] || fail "the image has $size_mb MB, expected less than $LIMIT_MB" 3
