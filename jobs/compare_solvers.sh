#!/usr/bin/env bash
# The published solver against the joint one (and two simpler ideas) on fourteen kinds of synthetic crowds with known truth.
#
#   bash jobs/compare_solvers.sh             report in out/solvers; about 12 minutes, one core; needs the extra anny
#   bash jobs/compare_solvers.sh --images 7  the same in half a minute, with more noise
#
# Expect `joint` to halve the errors of z and height and to cut those of pairs by two thirds (docs/solver_comparison.md).
set -euo pipefail
source "$(dirname "$0")/environment.sh"
export OMP_NUM_THREADS=1
exec dto eval solvers --golden "$DTO_ROOT/tests/golden" "$@"
