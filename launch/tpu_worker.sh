#!/usr/bin/env bash
# What tpu_vm.sh calls on each worker. gcloud gives a command again when the connection breaks, so
# each of these may be given twice.
set -euo pipefail
cd "$HOME"
mkdir -p dss-job
worker=w-${HOSTNAME##*-w-}

boot() { cat /proc/sys/kernel/random/boot_id; }

status() { # running, lost, stopped, or the exit status
  if [[ -f dss-job/exit ]]; then
    if [[ -f dss-job/stopped ]]; then echo stopped; else cat dss-job/exit; fi
  elif [[ $(cat dss-job/boot 2>/dev/null) == "$(boot)" ]] && kill -0 "$(cat dss-job/pid)" 2>/dev/null; then
    echo running
  else
    echo lost # as after maintenance, when the number may be that of another process
  fi
}

setup() { # [STORE]: unpacks what was copied, and installs
  exec 9>dss-job/lock
  flock 9
  [[ $(status) != running ]] || { echo "$worker: a run is going on: stop it first" >&2 && exit 1; }
  rm -rf dss-new && mkdir -p dss-new dss-jax
  tar -C dss-new -xzf code.tgz
  if [[ -d dss-jax/.venv ]]; then mv dss-jax/.venv dss-new/; fi
  if [[ -n ${1:-} ]]; then
    mkdir -p "dss-new/stores/$1"
    tar -C "dss-new/stores/$1" -xzf store.tgz
  fi
  rm -rf dss-jax && mv dss-new dss-jax
  # shellcheck source=launch/common.sh
  source dss-jax/launch/common.sh
  command -v make >/dev/null || sudo apt-get -o DPkg::Lock::Timeout=600 install --quiet --yes make
  make -C dss-jax install EXTRAS=tpu "PYTHON=$(find_python)" 2>&1 | sed -u "s/^/[$worker] /"
}

start() { # FLAGS of dss train
  exec 9>dss-job/lock
  flock 9
  if [[ $(status) == running ]]; then return; fi
  rm -f dss-job/{pid,child,exit,stopped,shown}
  : >dss-job/log
  boot >dss-job/boot
  cd dss-jax
  # The lock is not for the run to hold; the session is its own, so that a closed connection is no end.
  # shellcheck disable=SC2016
  DSS=$PWD/.venv/bin/dss setsid bash -c '
    launch/local.sh --devices tpu "$@" & echo $! >../dss-job/child; echo $$ >../dss-job/pid
    wait %1; echo $? >../dss-job/exit' _ "$@" >../dss-job/log 2>&1 </dev/null 9>&- &
  until [[ -f ../dss-job/pid ]]; do sleep 0.05; done
}

poll() { # the lines since the last time, and the status
  local state seen lines
  state=$(status)
  seen=$(cat dss-job/shown 2>/dev/null || echo 0)
  lines=$(wc -l 2>/dev/null <dss-job/log || echo 0)
  # Whole lines only, until the end is there.
  [[ $state == running ]] || lines=$((lines + 1))
  if [[ -f dss-job/log ]]; then sed -n "$((seen + 1)),${lines}s/^/[$worker] /p" dss-job/log; fi
  echo "@$worker $state"
  echo "$lines" >dss-job/shown
}

case $1 in
  setup | start | poll) "$@" ;;
  follow) tail -n +1 -F dss-job/log | sed -u "s/^/[$worker] /" ;;
  status) echo "[$worker] $(status)" ;;
  stop)
    if [[ $(status) == running ]]; then
      : >dss-job/stopped
      kill -TERM "$(cat dss-job/child)"
    fi
    echo "[$worker] $(status)"
    ;;
  halt) # with or without its consent: it may wait for a worker that is gone
    for _ in {1..300}; do
      [[ $(status) == running ]] || exit 0
      [[ -n ${asked:-} ]] || kill -TERM "$(cat dss-job/child)"
      asked=yes
      sleep 0.1
    done
    kill -KILL "$(cat dss-job/child)"
    ;;
esac
