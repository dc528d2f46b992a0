#!/usr/bin/env bash
# Trains on a TPU pod slice: creates it with gcloud, installs vaejax on every worker, and starts the run detached.
#
#   TPU=mine ZONE=us-east5-b TYPE=v5litepod-256 BUCKET=my-bucket launch/tpu_pod.sh joint:large joint \
#     --config.data.media=../bucket/media
#
# The second argument names the run; its workdir is the folder of that name in the bucket. Every worker mounts the
# bucket as ~/bucket and runs in ~/vaejax. The bucket must have a hierarchical namespace (gcloud storage buckets create
# --uniform-bucket-level-access --enable-hierarchical-namespace): a checkpoint is complete once its folder is renamed,
# and other buckets rename file by file. Watch the run with
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=0 --command='tail -f vaejax.log'
# Run the same command again to continue a run that stopped. SPOT=1 uses cheaper, preemptible chips; after a preemption
# the same command requests new ones.
set -euo pipefail
config=$1 run=$2
shift 2
: "${TPU:?name of the slice}" "${ZONE:?}" "${TYPE:?accelerator type, like v5litepod-256}" "${BUCKET:?name of a Cloud Storage bucket}"
repository=${REPOSITORY:-$(git remote get-url origin)}
case $TYPE in # the TPU software version
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  *) version=tpu-ubuntu2204-base ;;
esac
version=${VERSION:-$version}

tpu() { gcloud compute tpus tpu-vm "$1" "$TPU" --zone="$ZONE" "${@:2}"; }
on_all() { tpu ssh --worker=all --command="$1"; }

state=$(tpu describe --format='value(state)' 2>/dev/null || true)
if [[ $state == PREEMPTED || $state == TERMINATED ]]; then
  tpu delete --quiet
  state=
fi
[[ $state ]] || tpu create --accelerator-type="$TYPE" --version="$version" ${SPOT:+--spot}

# The images lack gcsfuse, and their Python may be too old for vaejax; uv installs a newer one.
on_all "set -e
  command -v gcsfuse >/dev/null || {
    key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
    curl -fsS \$packages/doc/apt-key.gpg | sudo tee \$key >/dev/null
    echo \"deb [signed-by=\$key] \$packages gcsfuse-\$(lsb_release -cs) main\" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    wait=DPkg::Lock::Timeout=300 # a new machine may be installing upgrades
    sudo apt-get -o \$wait update -qq && sudo apt-get -o \$wait install -y -qq gcsfuse
  }
  mkdir -p bucket && { mountpoint -q bucket || gcsfuse --implicit-dirs $BUCKET bucket; }
  test -d vaejax || git clone -q $repository vaejax
  cd vaejax && git pull -q && python3 -m pip install -q --user uv
  python3 -m uv venv -q --allow-existing --python 3.12 .venv
  python3 -m uv pip install -q --python .venv/bin/python -e '.[tpu]'"

# Detached, so the run outlives this machine's connection. PAUSE gives the other workers time to notice a crash before
# the crashed one restarts.
arguments=
(($#)) && printf -v arguments ' %q' "$@"
on_all "cd vaejax && pgrep -f '^bash launch/again.sh' >/dev/null && { echo 'already running'; exit 0; }
  PAUSE=45 nohup launch/again.sh ~/bucket/$run \$PWD/.venv/bin/python -m vaejax.main --multihost \
    --config=$config --workdir=\$HOME/bucket/$run$arguments >>~/vaejax.log 2>&1 </dev/null &"
