#!/usr/bin/env bash
# Synthetic crowds in, scene-consistent labels out: the whole pipeline on a small data set with known truth.
#
#   bash jobs/demo.sh            everything below out/demo; about a minute on 2 idle cores after installation
#   bash jobs/demo.sh --help     its options, for example --out DIR
#
# Expect a table of errors before and after, pictures in out/demo/pictures and the numbers in out/demo/summary.json.
# A second run does nothing new and prints the same summary.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
exec dto demo "$@"
