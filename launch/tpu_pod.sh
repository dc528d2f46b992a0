#!/usr/bin/env bash
# A TPU pod slice by gcloud: makes it, installs vaejax on every worker, starts the run there and leaves it running.
#
#   TPU=mine ZONE=us-east5-b TYPE=v5litepod-256 BUCKET=my-bucket launch/tpu_pod.sh configs/joint.py joint --config.mesh.fsdp=16
#
# The second argument names the run: its workdir is a folder of the bucket, which every worker mounts. Look at it with
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=0 --command='tail -f vaejax.log'
# The same command again starts it again where it stopped. SPOT=1 takes cheaper chips, which can be taken away.
set -euo pipefail
config=$1 run=$2
shift 2
: "${TPU:?name of the slice}" "${ZONE:?}" "${TYPE:?accelerator type, like v5litepod-256}" "${BUCKET:?of Cloud Storage}"
repository=${REPOSITORY:-$(git remote get-url origin)}
version=${VERSION:-v2-alpha-tpuv5-lite} # of the TPU's software

on_all() { gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"; }

if ! gcloud compute tpus tpu-vm describe "$TPU" --zone="$ZONE" >/dev/null 2>&1; then
  gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type="$TYPE" --version="$version" ${SPOT:+--spot}
fi

on_all "set -e
  command -v gcsfuse >/dev/null || { echo 'install gcsfuse first: https://cloud.google.com/storage/docs/cloud-storage-fuse/install'; exit 1; }
  mkdir -p bucket && { mountpoint -q bucket || gcsfuse --implicit-dirs $BUCKET bucket; }
  test -d vaejax || git clone -q $repository vaejax
  cd vaejax && git pull -q && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"

# Detached: the run lives on when this machine's connection does not.
printf -v arguments ' %q' "$@"
on_all "cd vaejax && pgrep -f '^bash launch/again.sh' >/dev/null && { echo 'it runs already'; exit 0; }
  nohup launch/again.sh ~/bucket/$run \$PWD/.venv/bin/python -m vaejax.main --multihost \
    --config=$config --workdir=\$HOME/bucket/$run$arguments >>~/vaejax.log 2>&1 </dev/null &"
