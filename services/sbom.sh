#!/usr/bin/env bash
# Copy the bill of materials out of an image: sbom.sh ENGINE IMAGE FILE
set -euo pipefail

engine=$1 image=$2 file=$3
bill=/opt/mor/sbom.cdx.json
mkdir -p "$(dirname "$file")"

if [ "$engine" = buildah ]; then
  container=$(buildah from --pull-never "$image")
  trap 'buildah rm "$container" >/dev/null' EXIT
  cp "$(buildah mount "$container")$bill" "$file"
else
  container=$("$engine" create "$image")
  trap '"$engine" rm "$container" >/dev/null' EXIT
  "$engine" cp "$container:$bill" "$file"
fi
echo "$file"
