#!/usr/bin/env bash
#SBATCH --job-name=dto
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dto-%j.log
#
# A Ray cluster inside one Slurm allocation, and a command on it: generation or training.
#
#   sbatch jobs/slurm.sh dto run /shared/lists/coco.parquet -o /shared/runs/coco --address auto --workers 32 \
#       --quiet -v --set body.model_path=/shared/bodies --set run.gpus_per_worker=1 --set run.max_attempts=5
#   sbatch jobs/slurm.sh dto train /shared/configs/train.yaml -o /shared/train/coco --address auto --workers 32 \
#       --quiet --set body.model_path=/shared/bodies --set loop.gpu=true
#
# Time: half a minute until Ray stands on all nodes, about a minute more for weights; then the command.
# Expect: dto-JOBID.log ends with the command's summary; the job's exit code is the command's. At the time limit (120 s
#   before it) or when it is pre-empted the job goes back into the queue and does what is left; so does `sbatch` again.
# Change: the #SBATCH lines; run.workers = nodes x GPUs. Paths must be on a file system that all nodes share. `dto` and
#   `ray` must be on PATH on every node (activate your environment before sbatch, or in DTO_SETUP, a file sourced here).
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: sbatch jobs/slurm.sh COMMAND ..., for example dto run MANIFEST -o RUN --body BODY --address auto" >&2
  exit 2
fi
# shellcheck disable=SC1090
[ -z "${DTO_SETUP:-}" ] || source "$DTO_SETUP"
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 RAY_DEDUP_LOGS=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000)) # several jobs may share a node
read -r ip _ < <(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address)
export RAY_ADDRESS="$ip:$port" # what `--address auto` and Ray Train look at
each=(--block --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --object-store-memory=268435456)

steps=() # srun processes; each ends its own `ray start`, nothing is ended by name: nodes may be shared
finish() {
  for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
  for step in "${steps[@]}"; do wait "$step" || true; done
}
trap finish EXIT

srun --nodes=1 --ntasks=1 --overlap --nodelist="${nodes[0]}" \
  ray start --head --node-ip-address="$ip" --port="$port" --dashboard-port=$((port + 1)) \
  --ray-client-server-port=$((port + 2)) --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${each[@]}" &
steps+=($!)
for attempt in {1..60}; do
  if ray health-check --address "$RAY_ADDRESS" >/dev/null 2>&1; then break; fi
  if [ "$attempt" = 60 ] || ! kill -0 "${steps[0]}" 2>/dev/null; then
    echo "Ray's head did not come up on ${nodes[0]} ($RAY_ADDRESS); its lines above say why" >&2
    exit 2
  fi
  sleep 1
done
if [ "${#nodes[@]}" -gt 1 ]; then
  others=$((${#nodes[@]} - 1))
  srun --nodes="$others" --ntasks="$others" --overlap --exclude="${nodes[0]}" \
    ray start --address="$RAY_ADDRESS" "${each[@]}" &
  steps+=($!)
fi

stopped=
"$@" &
command=$!
trap 'stopped=1; kill -TERM "$command" 2>/dev/null || true' TERM
code=0
wait "$command" || code=$?
if [ -n "$stopped" ]; then # `wait` came back for the signal, the command may still be closing
  code=0
  wait "$command" || code=$?
  echo "stopped by Slurm; what is finished stays finished, the rest goes back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
