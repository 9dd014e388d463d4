#!/bin/bash
# Install a service into /opt/mor for its image: install.sh REQUIREMENT...
# Add a bill of materials; remove files that no service loads: tests, headers, symbols, pip, GPU code in a CPU build.
set -euo pipefail

python3 -m venv /opt/mor
# PIP_ARGS holds several arguments.
# shellcheck disable=SC2086
/opt/mor/bin/pip install ${PIP_ARGS:-} "$@"
packages=$(/opt/mor/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
torch=$(/opt/mor/bin/python -c 'from importlib.metadata import version; print(version("torch"))')
if [ "${VARIANT:-cpu}" = cuda ] && [ "${torch%+cpu}" != "$torch" ]; then
  echo "got torch $torch, a CPU build, in an image for GPUs; point pip at torch's CUDA build, see constraints-cuda.txt" >&2
  exit 1
fi
if [ "${VARIANT:-cpu}" = cpu ] && ls -d "$packages"/nvidia* > /dev/null 2>&1; then
  echo "got torch $torch with CUDA's libraries in an image for CPUs; give pip PyTorch's CPU wheel index by PIP_ARGS" >&2
  exit 1
fi
if [ "${VARIANT:-cpu}" = cpu ]; then
  /opt/mor/bin/pip uninstall -q -y triton torchaudio torchcodec
  rm -rf "$packages"/{torch,pyarrow,numpy/_core}/include
fi
find "$packages" -type d \( -name test -o -name tests \) -prune -exec rm -rf {} +
find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete

# Wheels contain their symbols. strip may break the libraries that auditwheel bundled and patched below *.libs; stubs
# belong to other processors too.
command -v strip >/dev/null || { apt-get -q update && apt-get -q install -y --no-install-recommends binutils; }
find "$packages" \( -name '*.so' -o -name '*.so.[0-9]*' \) -type f -not -path '*.libs/*' -not -path '*/stubs/*' \
  -exec strip --strip-unneeded {} +

python3 -m venv /opt/tools
# shellcheck disable=SC2086
PIP_CONSTRAINT='' /opt/tools/bin/pip install ${PIP_ARGS:-} cyclonedx-bom==7.5.0
/opt/tools/bin/cyclonedx-py environment /opt/mor --output-file /opt/mor/sbom.cdx.json

/opt/mor/bin/pip uninstall -q -y pip
# Some libraries ship templates as .py files, which do not compile.
python3 -m compileall -q --invalidation-mode unchecked-hash "$packages" || true
