#!/usr/bin/env bash
# Everything that must hold before a change lands: lint, types, tests (real processes included).
#
#   bash jobs/test.sh            all of it; further arguments go to pytest, e.g. -m 'not slow'
set -euo pipefail
source "$(dirname "$0")/environment.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # small tensors: threads would wait for each other
ruff check .
ruff format --check .
mypy
exec python -m pytest -q "$@"
