#!/usr/bin/env bash
# What must hold before a change lands. Further arguments go to pytest, e.g. tests/run or -n 8.
#
#   bash jobs/test.sh            lint, types, all tests, real processes and Ray clusters included; six to seven minutes on two cores
#   bash jobs/test.sh quick      lint and the tests that need no more than this process and some seconds; 90 seconds
#
# Fuzzing has fixed seeds here, so that the verdict is the same every time; jobs/fuzz.sh looks for new ones.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # small tensors: threads would wait for each other
unset PYTHONDONTWRITEBYTECODE  # or every process would compile every test again, five seconds each
ruff check .
ruff format --check .
if [ "${1:-}" = quick ]; then
  shift
  exec python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow' "$@"
fi
said="$(mktemp)"
trap 'rm -f "$said"' EXIT
nice -n 10 mypy >"$said" 2>&1 &
types=$!
code=0
# Four processes, because two of them mostly wait for Ray; tests/conftest.py says who gets what.
python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder "$@" || code=$?
wait "$types" || code=1
cat "$said"
exit "$code"
