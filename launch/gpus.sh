#!/usr/bin/env bash
# Trains on one machine with one or several GPUs, all driven by one process.
#
#   launch/gpus.sh joint runs/joint --config.data.media=FOLDER --config.mesh.fsdp=2
#
# CUDA_VISIBLE_DEVICES selects GPUs and PYTHON an interpreter. Requires pip install -e '.[cuda13]'.
set -euo pipefail
config=$1 workdir=$2
shift 2
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92} # leaves room for NCCL
exec "$(dirname "$0")/again.sh" "$workdir" \
  "${PYTHON:-python}" -m vaejax.main --config="$config" --workdir="$workdir" "$@"
