#!/bin/bash
# Installs a service into /opt/mor for its image: install.sh REQUIREMENT...
# Adds a bill of materials, and leaves out tests, pip, and what a CPU build never loads.
set -euo pipefail

python3 -m venv /opt/mor
# PIP_ARGS holds several arguments.
# shellcheck disable=SC2086
/opt/mor/bin/pip install ${PIP_ARGS:-} "$@"
if [ "${VARIANT:-cpu}" = cpu ]; then
  /opt/mor/bin/pip uninstall -q -y triton torchaudio torchcodec
fi
find /opt/mor -name tests -type d -not -path '*/numpy/*' -prune -exec rm -rf {} +

python3 -m venv /opt/tools
PIP_CONSTRAINT='' /opt/tools/bin/pip install cyclonedx-bom==7.5.0
/opt/tools/bin/cyclonedx-py environment /opt/mor --output-file /opt/mor/sbom.cdx.json

/opt/mor/bin/pip uninstall -q -y pip
python3 -m compileall -q --invalidation-mode unchecked-hash /opt/mor/lib || true # some libraries ship templates as .py
