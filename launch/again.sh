#!/usr/bin/env bash
# Reruns a training command until it is done: launch/again.sh WORKDIR COMMAND...
#
#   launch/again.sh runs/mine python -m vaejax.main --config=joint --workdir=runs/mine
#
# It ends when the command is done (0), reports an input error (2) or is interrupted by Ctrl-C (130). After a signal and
# a save (75), or a crash, it runs the command again. It gives up after TRIES crashes in a row without a new checkpoint
# in WORKDIR.
set -u
workdir=$1
shift
tries=${TRIES:-3}
crashes=0
stopped=
trap 'stopped=yes' TERM INT # the command gets the signal too, or is sent it below, and saves before it exits

latest() { find "$workdir/checkpoints" -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' 2>/dev/null | grep -xE '[0-9]+' | sort -n | tail -n 1; }

while true; do
  before=$(latest)
  "$@" &
  command=$!
  wait "$command"
  code=$?
  while [[ $stopped ]] && kill -TERM "$command" 2>/dev/null; do # `wait` was interrupted; the command is still saving
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
