#!/usr/bin/env bash
# One states file, shared out among the tasks of a SLURM array; docs/scale.md says more.
#
#   export MODEL=./my-model STATES=/shared/states.safetensors OUT=/shared/recovered
#   invert-fast prepare --model "$MODEL"            # once, so that no task has to (INVERT_FAST_CACHE on a shared disk)
#   array=$(sbatch --parsable --array=1-8 docs/slurm_array.sh)
#   sbatch --dependency=afterok:"$array" --wrap 'invert-fast merge "$OUT" --output "$OUT.jsonl"'
#
#SBATCH --job-name=invert
#SBATCH --cpus-per-task=8
#SBATCH --requeue
# with a GPU a task: #SBATCH --gres=gpu:1
set -euo pipefail

: "${MODEL:?the model: a folder, a Hub id, or bundled}" "${STATES:?the states file}" "${OUT:?the folder of outputs}"
export INVERT_FAST_CACHE=${INVERT_FAST_CACHE:-$OUT/cache} OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
part=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))
mkdir -p "$OUT"

# Whole lines are on disk as they are found: a task that was preempted, or is run again, goes on with --resume. Status 1
# says that some texts are not certified, which is no reason to hold back what waits for this array.
status=0
invert-fast invert --model "$MODEL" "$STATES" --shard "$part/$SLURM_ARRAY_TASK_COUNT" \
  --output "$OUT/part-$part.jsonl" --resume "$@" || status=$?
exit $((status == 1 ? 0 : status))
