#!/usr/bin/env bash
# Build a base image with Python 3.11 from Debian packages alone, for machines that cannot pull one: base.sh ENGINE NAME
# Needs debootstrap and root. DEBIAN replaces debootstrap's own mirror; a snapshot mirror makes the image reproducible.
set -euo pipefail

engine=$1 name=$2
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" ${DEBIAN:+"$DEBIAN/debian"}
mirror=$(awk '$1 == "deb" { sub("/debian/?$", "", $2); print $2; exit }' "$root/etc/apt/sources.list")
cat >"$root/etc/apt/sources.list" <<SOURCES
deb $mirror/debian bookworm main
deb $mirror/debian bookworm-updates main
deb $mirror/debian-security bookworm-security main
SOURCES
chroot "$root" apt-get -q update
chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get -q -y upgrade
chroot "$root" apt-get -q clean

find "$root/usr/share/doc" -type f ! -name copyright -delete
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/{info,locale,man}/*

if [ "$engine" = buildah ]; then
  container=$(buildah from scratch)
  buildah copy -q "$container" "$root" /
  buildah config --cmd python3 --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah commit -q --rm "$container" "$name"
else
  tar -C "$root" -c . | "$engine" import --change 'CMD ["python3"]' - "$name"
fi
