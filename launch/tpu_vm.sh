#!/usr/bin/env bash
# A run on a Cloud TPU slice of any size, through queued resources.
#
#   launch/tpu_vm.sh COMMAND NAME [flags] [flags of dss train]
#
#   create   asks for the slice and waits until it is there
#   sync     copies code and token store (--store DIR) to all workers and installs there
#   run      all of it: create, sync, start on all workers, follow the log. After preemption, lost
#            workers or a lost connection it goes on by itself, in the same output folder.
#   logs     follows the log of all workers
#   status   the slice, and the run on each worker
#   stop     ends the run: it saves first (SIGTERM)
#   delete   gives the slice back: it costs until then
#
#   --accelerator_type TYPE   for example v5litepod-16   (create, run)
#   --spot                    cheaper, may be preempted  (create, run)
#   --runtime_version IMAGE   default: the one for the type
#   --zone, --project         default: those of gcloud config
#   --max_attempts N          how often run asks for a slice (100)
#   --delete_after            run: gives the slice back when the run has ended well
#   --dry_run                 prints the commands and the resolved configuration, and starts nothing
#
# From the environment: POLL_SECONDS (30), LOG_DIR (runs/launch). Nothing of the environment goes to
# the workers: they reach gs:// as the slice's service account, so there is no key to pass.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ $root != "$PWD" ]] || root=.
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"
[[ ${1:-} != -h && ${1:-} != --help && $# -gt 0 ]] || usage "${BASH_SOURCE[0]}"
[[ $# -gt 1 && $2 != -* ]] || die "give a command and the name of the slice: run my-slice ..."
command=$1 name=$2
shift 2
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] || die "a name has lower-case letters, digits and -, \
and begins with a letter, not '$name'."

type='' spot='' runtime='' max_attempts=100 delete_after='' dry_run='' where=() flags=()
while [[ $# -gt 0 ]]; do
  used=1
  case $1 in
    --accelerator_type | --accelerator_type=*) flag_value "$@" && type=$value ;;
    --runtime_version | --runtime_version=*) flag_value "$@" && runtime=$value ;;
    --max_attempts | --max_attempts=*) flag_value "$@" && max_attempts=$value ;;
    --zone | --zone=*) flag_value "$@" && where+=("--zone=$value") ;;
    --project | --project=*) flag_value "$@" && where+=("--project=$value") ;;
    --spot) spot=yes ;;
    --delete_after) delete_after=yes ;;
    --dry_run) dry_run=yes ;;
    --) ;;
    *) flags+=("$1") ;;
  esac
  shift "$used"
done
[[ $max_attempts =~ ^[1-9][0-9]*$ ]] || die "--max_attempts must be at least 1, not '$max_attempts'."
if [[ -z $runtime ]]; then
  case $type in # cloud.google.com/tpu/docs/runtimes
    v5lite*) runtime=v2-alpha-tpuv5-lite ;;
    v5p*) runtime=v2-alpha-tpuv5 ;;
    v6e*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
fi
poll=${POLL_SECONDS:-30} attempts=0
tmp=$(mktemp -d "${TMPDIR:-/tmp}/dss-$name.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
log=${LOG_DIR:-$root/runs/launch}/$name.log
# Our own lines and errors; those of gcloud go through a file, because they decide what is done.
exec 3>&2 4>&2
stderr=4
[[ -z $dry_run ]] || exec 3>&1

say() { printf '%s %s\n' "$(date -u +%H:%M:%S)" "$*" >&3; }
cloud() { # prints a gcloud command, and runs it
  show gcloud compute tpus "$@" >&3
  [[ -n $dry_run ]] || gcloud compute tpus "$@"
}
attempt() { # the same; what it says on stderr is kept in $tmp/error, too
  local status=0
  "$@" 2>"$tmp/error" || status=$?
  cat "$tmp/error" >&2
  return "$status"
}
on_workers() { # WORDS...: the command on all workers
  cloud tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$(escaped bash tpu_worker.sh "$@")"
}
hopeless() { # whether the error is one that waiting does not mend
  grep -qiE -e 'quota|billing|permission_denied|permission to|permission .* denied|forbidden' \
    -e 'unauthenticated|gcloud auth login|not present in the ssh agent' \
    -e 'invalid|not (enabled|supported)' "$tmp/error"
}

slice() { # sets `state`; NONE where the slice is not there, UNKNOWN where gcloud does not get through
  if [[ -n $dry_run ]]; then
    cloud queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
    state=ACTIVE
  elif state=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>"$tmp/error"); then
    state=${state:-UNKNOWN}
  elif grep -qE 'NOT_FOUND|not found' "$tmp/error"; then
    state=NONE
  elif hopeless; then
    die "$(cat "$tmp/error")" 1
  else
    state=UNKNOWN
  fi
}

create() {
  [[ -n $type ]] || die "there is no slice $name: give --accelerator_type, for example v5litepod-16."
  attempts=$((attempts + 1))
  [[ $attempts -le $max_attempts ]] || die "no slice that lasted in $max_attempts attempts." 1
  attempt cloud queued-resources create "$name" "${where[@]}" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$runtime" ${spot:+--spot} && return
  # Not found are then a zone, a type or an image.
  if hopeless || grep -qi 'not[_ ]found' "$tmp/error"; then
    die "the slice was refused; the reason is above." 1
  fi
  sleep "$poll"
}

delete() {
  cloud queued-resources delete "$name" "${where[@]}" --force --quiet
}

ensure() { # waits until the slice is there; asks for another in place of one that was preempted
  local before=''
  if [[ -n $dry_run ]]; then
    [[ -z $type ]] || create
    slice
    return
  fi
  while slice && [[ $state != ACTIVE ]]; do
    [[ $state == "$before" ]] || say "$name: $state"
    before=$state
    case $state in
      NONE) create && continue ;;
      FAILED | SUSPENDED)
        gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
          --format='value(state.failedData.error.message)' >"$tmp/error" || true
        [[ $state == SUSPENDED ]] || ! hopeless || die "$name: $(cat "$tmp/error")" 1
        say "$name: $state. $(cat "$tmp/error") Asking for another."
        delete || say "$name could not be deleted yet"
        ;;
    esac
    sleep "$poll"
  done
}

files() { # what git has and would take, or, without git, all but what was made here
  local file
  if [[ -e $root/.git ]]; then
    git -C "$root" ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do
        [[ ! -e $root/$file ]] || printf '%s\0' "$file"
      done
  else
    (cd "$root" && find . \( -name '.venv*' -o -name runs -o -name __pycache__ \) -prune -o -type f -print0)
  fi
}

sync() { # code, and the store under stores/ beside it
  local copies=("$root/launch/tpu_worker.sh" "$tmp/code.tgz")
  if [[ -n $store ]]; then
    copies+=("$tmp/store.tgz")
  fi
  if [[ -z $dry_run ]]; then
    files | tar -C "$root" -czf "$tmp/code.tgz" --null -T - || die "the code could not be packed." 1
    [[ -z $store ]] || tar -C "$store" -czf "$tmp/store.tgz" . || die "$store could not be packed." 1
  fi
  cloud tpu-vm scp "${copies[@]}" "$name:" "${where[@]}" --worker=all &&
    on_workers setup ${store:+"${store##*/}"}
}

check() { # the flags -> `config`, `store` to copy, and the flags that the workers get
  resolve "$root" "${flags[@]}"
  need_bucket
  local place each=(Train.init_from) path
  store=$(setting Data.store)
  store=${store%/}
  if [[ $store == *://* ]]; then
    store=
  elif [[ -n $store ]]; then
    [[ -d $store ]] || die "--store $store is no folder here. dss prepare makes one."
    flags+=("--gin.Data.store=\"stores/${store##*/}\"")
  else
    each+=(Task.data_dir Task.record_files Vocabulary.path)
  fi
  for place in "${each[@]}"; do
    path=$(setting "$place")
    [[ -z $path || $path == *://* ]] || die "$place is '$path', which the workers do not have. \
Put it on gs://$([[ $place == Train.* ]] || echo ', or make the store here (dss prepare) and give --store')."
  done
}

# A file for each worker, so that lines of two do not mix.
poll_call=(tpu-vm ssh "$name" "${where[@]}" --worker=all "--output-directory=$tmp/workers"
  '--command=bash tpu_worker.sh poll')

poll_workers() { # prints new lines of the log; sets `job`: running, partly, lost, stopped, or an exit status
  rm -rf "$tmp/workers" && mkdir "$tmp/workers"
  gcloud compute tpus "${poll_call[@]}" >"$tmp/error" 2>&1 || { job=unreachable && return; }
  cat "$tmp/workers"/* >"$tmp/poll"
  sed -n '/^\[w-/p' "$tmp/poll" | tee -a "$log"
  job=$(sed -n 's/^@[^ ]* //p' "$tmp/poll" | awk '
    { seen[$1]; if ($1 + 0 > worst) worst = $1 }
    END {
      if (!NR || "lost" in seen) print "running" in seen ? "partly" : "lost"
      else if ("running" in seen) print "running"
      else if ("stopped" in seen) print "stopped"
      else print worst + 0
    }')
}

follow() { # until the run has ended (0), or has to be started again (1)
  local failures=0
  while :; do
    poll_workers
    case $job in
      running) failures=0 ;;
      0) return 0 ;;
      stopped | 130) say "stopped, and saved. The same command goes on." && exit 130 ;;
      lost | partly | 185 | 143) return 1 ;;
      unreachable)
        failures=$((failures + 1))
        say "workers not reached ($failures): $(tail -n 1 "$tmp/error")"
        slice
        [[ $state == ACTIVE && $failures -lt 5 ]] || return 1
        ;;
      *) # One worker that goes away makes the others fail a little before the slice shows it.
        sleep "$poll"
        slice
        [[ $state == ACTIVE ]] || return 1
        die "the run failed with status $job; the log is above and in $log" "$job"
        ;;
    esac
    sleep "$poll"
  done
}

go() { # copies, installs and starts, where no run is going on
  poll_workers
  [[ $job != running ]] || return 0
  if [[ -z $synced ]]; then
    say "$name: copying, installing and starting"
    # Those that are left wait for one that will not come back.
    [[ $job != partly ]] || on_workers halt || return
    sync || return
    synced=yes
  fi
  on_workers start "${flags[@]}"
}

run() {
  check
  if [[ -n $dry_run ]]; then
    ensure && sync && on_workers start "${flags[@]}" && cloud "${poll_call[@]}"
    [[ -z $delete_after ]] || delete
    printf '\n%s\n' "$config"
    return
  fi
  mkdir -p "$(dirname "$log")"
  trap 'say "the run goes on without you; the same command follows it, tpu_vm.sh stop $name ends it"
    exit 130' INT
  local tries=0 synced=''
  while :; do
    ensure
    if ! attempt go; then
      tries=$((tries + 1))
      ! hopeless || die "the reason is above." 1
      slice
      [[ $state == ACTIVE ]] || synced=''
      [[ $tries -lt 5 ]] || die "the workers could not be started in 5 tries; see above." 1
      sleep "$poll"
      continue
    fi
    tries=0 synced=''
    if follow; then break; fi
    say "$name: the run was interrupted; it goes on from its last checkpoint"
  done
  if [[ -n $delete_after ]]; then
    delete
  else
    say "done. The slice costs until: launch/tpu_vm.sh delete $name ${where[*]}"
  fi
}

[[ -z $dry_run ]] || echo "# dry run: nothing is started"
case $command in
  create) ensure ;;
  sync) check && sync ;;
  run) run ;;
  logs) on_workers follow ;;
  status)
    slice
    echo "$name: $state"
    [[ $state != ACTIVE ]] || on_workers status
    ;;
  stop) on_workers stop ;;
  delete) delete ;;
  *) die "unknown command '$command': create, sync, run, logs, status, stop or delete." ;;
esac
