#!/usr/bin/env bash
# Generation as a job on a Ray cluster that is up: submits this checkout, follows the log, exits as the run does.
#
#   bash jobs/generate.sh http://HEAD:8265 /shared/lists/coco.parquet /shared/runs/coco --workers 8 \
#       --set body.model_path=/shared/bodies --set run.gpus_per_worker=1 --set run.max_attempts=5
#
# Time: about 3 s to submit; then the run (docs/real_run.md).
# Expect: one line a shard, the summary, "Job 'dto-coco-...' succeeded", exit code 0. Code 1: the job failed, or shards
#   were given up; the log says which. Ctrl-C leaves the job running; `ray job stop ID --address ...` ends it. Started
#   again with the same folders it does what is left, under a new job id.
# Change: everything after the run's folder goes to `dto run`. Manifest, run and body must be places that every node sees:
#   absolute paths or URIs. DTO_RUNTIME_ENV names another environment than jobs/generate.yaml. A cluster that wants a
#   token: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: bash jobs/generate.sh http://HEAD:8265 MANIFEST RUN [options of dto run]" >&2
  exit 2
fi
address="$1" manifest="$2" run="$3"
shift 3
for place in "$manifest" "$run"; do
  case "$place" in
    /* | *://*) ;;
    *)
      echo "$place is relative: a job works in a copy of this folder; give an absolute path or a URI" >&2
      exit 2
      ;;
  esac
done
cd "$(dirname "$0")/.."                                 # working_dir of the environment
id="dto-$(basename "${run%%\?*}")-$(date -u +%Y%m%dT%H%M%S)-$$" # an id is never taken twice; a URI may have a query
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-disabled}"       # unsaid, client and cluster may disagree
exec ray job submit --address "$address" --submission-id "$id" --runtime-env "${DTO_RUNTIME_ENV:-jobs/generate.yaml}" -- \
  python -m dto_pipeline.cli run "$manifest" -o "$run" --address auto --quiet --verbose "$@"
