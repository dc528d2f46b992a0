#!/usr/bin/env bash
# Runs a training command again until it is done: launch/again.sh WORKDIR COMMAND...
#
#   launch/again.sh runs/mine python -m vaejax.main --config=configs/joint.py --workdir=runs/mine
#
# Done (0), a mistake (2) and Ctrl-C (130) end it. A stop by a signal after saving (75) and a crash go on by the same
# command; but after TRIES crashes in a row without a new checkpoint in WORKDIR it gives up.
set -u
workdir=$1
shift
tries=${TRIES:-3}
crashes=0
stopped=
trap 'stopped=yes' TERM INT # the command gets it too, or is sent it below, and saves first

latest() { find "$workdir/checkpoints" -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' 2>/dev/null | grep -xE '[0-9]+' | sort -n | tail -n 1; }

while true; do
  before=$(latest)
  "$@" &
  command=$!
  wait "$command"
  code=$?
  while [[ $stopped ]] && kill -TERM "$command" 2>/dev/null; do # `wait` was interrupted, the command still saves
    wait "$command"
    code=$?
  done
  case $code in
    0 | 2 | 130) exit "$code" ;;
  esac
  [[ $stopped ]] && exit "$code"
  if [[ $code == 75 || $(latest) != "$before" ]]; then
    crashes=0
  else
    crashes=$((crashes + 1))
  fi
  if ((crashes >= tries)); then
    echo "gave up: $crashes crashes (exit code $code) without a new checkpoint in $workdir" >&2
    exit "$code"
  fi
  echo "exit code $code; the same command again" >&2
  sleep "${PAUSE:-5}"
  [[ $stopped ]] && exit "$code"
done
