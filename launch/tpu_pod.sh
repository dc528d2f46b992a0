#!/usr/bin/env bash
# A TPU pod slice by gcloud: makes it, installs vaejax on every worker, starts the run there and leaves it running.
#
#   TPU=mine ZONE=us-east5-b TYPE=v5litepod-256 BUCKET=my-bucket launch/tpu_pod.sh configs/joint.py:large joint \
#     --config.data.media=../bucket/media
#
# The second argument names the run: its workdir is a folder of the bucket, which every worker mounts as ~/bucket, beside
# ~/vaejax, where the run starts. The bucket has a hierarchical namespace (gcloud storage buckets create
# --uniform-bucket-level-access --enable-hierarchical-namespace): a checkpoint is whole once its folder is renamed, which
# other buckets do file by file. Look at the run with
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=0 --command='tail -f vaejax.log'
# The same command again starts it again where it stopped. SPOT=1 takes cheaper chips; when they were taken away, the same
# command asks for others.
set -euo pipefail
config=$1 run=$2
shift 2
: "${TPU:?name of the slice}" "${ZONE:?}" "${TYPE:?accelerator type, like v5litepod-256}" "${BUCKET:?of Cloud Storage}"
repository=${REPOSITORY:-$(git remote get-url origin)}
case $TYPE in # of the TPU's software
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

# The images lack gcsfuse; uv brings a Python that vaejax supports, theirs can be older.
on_all "set -e
  command -v gcsfuse >/dev/null || {
    key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
    curl -fsS \$packages/doc/apt-key.gpg | sudo tee \$key >/dev/null
    echo \"deb [signed-by=\$key] \$packages gcsfuse-\$(lsb_release -cs) main\" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    wait=DPkg::Lock::Timeout=300 # a new machine may be upgrading itself
    sudo apt-get -o \$wait update -qq && sudo apt-get -o \$wait install -y -qq gcsfuse
  }
  mkdir -p bucket && { mountpoint -q bucket || gcsfuse --implicit-dirs $BUCKET bucket; }
  test -d vaejax || git clone -q $repository vaejax
  cd vaejax && git pull -q && python3 -m pip install -q --user uv
  python3 -m uv venv -q --allow-existing --python 3.12 .venv
  python3 -m uv pip install -q --python .venv/bin/python -e '.[tpu]'"

# Detached: the run lives on when this machine's connection does not. A worker that crashed comes back when the others
# have noticed.
arguments=
(($#)) && printf -v arguments ' %q' "$@"
on_all "cd vaejax && pgrep -f '^bash launch/again.sh' >/dev/null && { echo 'it runs already'; exit 0; }
  PAUSE=45 nohup launch/again.sh ~/bucket/$run \$PWD/.venv/bin/python -m vaejax.main --multihost \
    --config=$config --workdir=\$HOME/bucket/$run$arguments >>~/vaejax.log 2>&1 </dev/null &"
