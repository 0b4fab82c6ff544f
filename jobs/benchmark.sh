#!/usr/bin/env bash
# Labels, height prior and both solvers on every difficulty of `dto synth`, then the optimiser with parts switched off.
#
#   bash jobs/benchmark.sh             page in out/benchmark; about 10 minutes on one core
#   bash jobs/benchmark.sh --images 8  the same in 2 minutes, with wider intervals
#
# Expect `joint` to leave about half of `paper`'s errors (docs/benchmark.md has the tables).
set -euo pipefail
source "$(dirname "$0")/environment.sh"
export OMP_NUM_THREADS=1
exec dto eval benchmark --images 48 --seed 201 "$@"
