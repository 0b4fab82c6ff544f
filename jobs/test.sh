#!/usr/bin/env bash
# What must hold before a change lands. Further arguments go to pytest, e.g. tests/run or -n 8.
#
#   bash jobs/test.sh            lint, types, all tests, real processes and Ray clusters included; eight minutes on two cores
#   bash jobs/test.sh quick      lint and the tests that need no more than this process and some seconds; 90 seconds
#
# Fuzzing has fixed seeds here, so that the verdict is the same every time; jobs/fuzz.sh looks for new ones.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # small tensors: threads would wait for each other
ruff check .
ruff format --check .
chosen=()
if [ "${1:-}" = quick ]; then
  shift
  chosen=(-m 'not slow')
else
  mypy
fi
# Three processes, because half of the slow tests' time is waiting for others; tests/conftest.py says who gets what.
exec python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder "${chosen[@]}" "$@"
