#!/usr/bin/env bash
# Writes the bill of materials of an image, system and Python packages: sbom.sh ENGINE IMAGE FOLDER
set -euo pipefail

engine=$1 image=$2 folder=$3
mkdir -p "$folder"
archive=$(mktemp -u --suffix=.tar)
trap 'rm -f "$archive"' EXIT

case $engine in
  buildah) buildah push -q "$image" "docker-archive:$archive" ;;
  *) "$engine" save --output "$archive" "$image" ;;
esac
file=$folder/$(basename "${image%:*}").cdx.json
SYFT_CHECK_FOR_APP_UPDATE=false .mor/tools/checkers/bin/syft scan --quiet "docker-archive:$archive" -o "cyclonedx-json=$file"
echo "$file"
