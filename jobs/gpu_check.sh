#!/usr/bin/env bash
# Is this program right on your GPU, and how fast? One GPU, no Ray, at most eight minutes; the order is that of worth:
# correctness first.
#
#   bash jobs/gpu_check.sh                        everything; results in out/gpu_check (report.txt, report.json, logs)
#   bash jobs/gpu_check.sh --out DIR              results there
#   bash jobs/gpu_check.sh --only equal,syncs     some steps (--list names them)
#   bash jobs/gpu_check.sh --small                the same on a CPU, all shrunk: does the check itself work
#   bash jobs/gpu_check.sh --wheels DIR           first install DIR/*.whl for this check alone, in a folder of its own
#
# Uses the Python that PYTHON names, else python3, with the torch and transformers that it has, and installs nothing into
# it. What such a Python commonly lacks can be brought along as wheels: smplx, simplejpeg, argcomplete. Needs no Ray.
# Exit code: 0 all steps done and everything right, 1 something differs or a step failed, 2 it could not begin.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [ "${1:-}" = --wheels ]; then
  [ $# -ge 2 ] || { echo "--wheels wants a folder" >&2; exit 2; }
  wheels="$2"
  shift 2
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || exit 2
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$python" jobs/gpu_check.py "$@"
