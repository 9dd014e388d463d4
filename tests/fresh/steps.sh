#!/usr/bin/env bash
# Steps of a newcomer on a fresh Debian, with the packages that README.md requires: .ci/fresh runs them.
set -euo pipefail
cd "$(dirname "$0")/../.."
time make setup
time .venv/bin/pytest -q tests/test_setup.py tests/rollout/test_engine_errors.py
