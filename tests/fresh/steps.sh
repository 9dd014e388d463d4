#!/usr/bin/env bash
# Steps of a newcomer on a fresh Debian, with the packages that README.md requires: .ci/fresh runs them.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup
# Libraries and programs of the system, and all services in a run of two steps.
.venv/bin/pytest -q tests/test_setup.py tests/core/test_process.py tests/client/test_up.py tests/client/test_token.py \
  tests/rollout/test_engine_errors.py tests/e2e/test_machine.py
