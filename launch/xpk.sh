#!/usr/bin/env bash
# A run on TPUs of a GKE cluster, through xpk (pip install xpk; made with 1.16).
#
#   launch/xpk.sh COMMAND NAME --cluster CLUSTER [flags] [flags of dss train]
#
#   run      starts the workload NAME; GKE starts it anew after preemption, and it goes on
#   logs     follows the log of all pods
#   status   what xpk knows of it
#   delete   ends it: it saves first (SIGTERM)
#
#   --tpu_type TYPE     for example v5litepod-16  (run)
#   --image IMAGE       of launch/Dockerfile, target tpu  (run)
#   --num_slices N      1
#   --max_restarts N    100
#   --zone, --project   default: those of gcloud config
#   --dry_run           prints the commands and the resolved configuration, and starts nothing
#
# For --spot and the like, xpk's own flags, make the cluster with them. No variable of the environment
# goes to the pods: they reach gs:// as the cluster's service account.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ $root != "$PWD" ]] || root=.
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"
[[ ${1:-} != -h && ${1:-} != --help && $# -gt 0 ]] || usage "${BASH_SOURCE[0]}"
[[ $# -gt 1 && $2 != -* ]] || die "give a command and the name of the workload: run my-run ..."
command=$1 name=$2
shift 2
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "a name has up to 40 lower-case letters, digits and \
-, and begins with a letter, not '$name'."

cluster='' type='' image='' slices=1 restarts=100 dry_run='' where=() flags=()
while [[ $# -gt 0 ]]; do
  used=1
  case $1 in
    --cluster | --cluster=*) flag_value "$@" && cluster=$value ;;
    --tpu_type | --tpu_type=*) flag_value "$@" && type=$value ;;
    --image | --image=*) flag_value "$@" && image=$value ;;
    --num_slices | --num_slices=*) flag_value "$@" && slices=$value ;;
    --max_restarts | --max_restarts=*) flag_value "$@" && restarts=$value ;;
    --zone | --zone=*) flag_value "$@" && where+=("--zone=$value") ;;
    --project | --project=*) flag_value "$@" && where+=("--project=$value") ;;
    --dry_run) dry_run=yes ;;
    --) ;;
    *) flags+=("$1") ;;
  esac
  shift "$used"
done
[[ -n $cluster ]] || die "give --cluster, the name of the GKE cluster."
where+=("--cluster=$cluster")

call() { # prints a command, and runs it
  show "$@"
  [[ -n $dry_run ]] || "$@"
}

[[ -z $dry_run ]] || echo "# dry run: nothing is started"
case $command in
  run)
    [[ -n $type && -n $image ]] || die "give --tpu_type, for example v5litepod-16, and --image."
    resolve "$root" "${flags[@]}"
    need_bucket
    # exec: the signal to end goes to the run and not to a shell around it. 185 and 143, saved at a
    # signal or ended by one, are among the statuses after which xpk starts anew; those of a mistake
    # (1, 2) are not.
    call xpk workload create "--workload=$name" "${where[@]}" "--tpu-type=$type" \
      "--num-slices=$slices" "--docker-image=$image" "--max-restarts=$restarts" \
      --termination-grace-period-seconds=120 \
      "--command=$(escaped exec /opt/dss-jax/launch/local.sh --devices tpu "${flags[@]}")"
    [[ -z $dry_run ]] || printf '\n%s\n' "$config"
    ;;
  logs)
    call kubectl logs --follow --prefix --tail=-1 --max-log-requests=1024 \
      --selector="xpk.google.com/workload=$name"
    ;;
  status) call xpk workload list "${where[@]}" "--filter-by-job=$name" ;;
  delete) call xpk workload delete "--workload=$name" "${where[@]}" ;;
  *) die "unknown command '$command': run, logs, status or delete." ;;
esac
