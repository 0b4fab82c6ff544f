#!/usr/bin/env bash
# Damaged files of every kind for all readers and decoders, with new seeds each time; at most 4 GB of addresses a process.
#
#   bash jobs/fuzz.sh                     ten minutes, one core
#   bash jobs/fuzz.sh 60                  two minutes: at least five seconds a target
#   bash jobs/fuzz.sh 600 SEED [TARGET ...]   the inputs of an earlier call again
#
# Expected: a line for each of some twenty targets and "0 of 22 targets failed", exit code 0. Otherwise the input that a
# reader crashed, hung or choked on lies in fuzz-failures/, and the exit code is 1.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec nice -n 10 python -m tests.fuzz "$@"
