#!/usr/bin/env bash
# What the relative metric loss is good for: two small networks, equal but for that loss, trained on the pipeline's own
# labels of synthetic crowds and measured against the truth of other crowds, beside the network before training.
#
#   bash jobs/train.sh                 everything below out/train; ten minutes on 2 free cores
#   bash jobs/train.sh --seeds 0 1 2   more than one training each
#
# Writes a table of distances between people, with the loss, without it and before training (docs/training.md says what
# is measured so far). Run again, it goes on where it stopped; crowds, labels and finished trainings are kept.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
export OMP_NUM_THREADS=1
exec python jobs/compare_training.py "$@"
