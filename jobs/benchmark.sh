#!/usr/bin/env bash
# Labels, height prior and both solvers on every difficulty of `dto synth` and on recorded images; whether the intervals
# of `joint` hold; the optimiser with parts switched off.
#
#   bash jobs/benchmark.sh             page and JSON in out/benchmark; about five minutes on one core
#   bash jobs/benchmark.sh --images 8  the same in one minute, with wider intervals
#
# Expect `joint` to leave about half of `paper`'s errors (docs/benchmark.md has the tables). Needs the extra anny.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
export OMP_NUM_THREADS=1
exec dto eval benchmark --images 48 --seed 201 --golden tests/golden "$@"
