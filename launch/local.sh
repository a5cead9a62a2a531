#!/usr/bin/env bash
# Trains on this machine: one process, all devices that it is given.
#
#   launch/local.sh [--dry_run] [--devices WHICH] [flags of dss train]
#
#   --devices  cpu; gpu: the first visible GPU; all: every visible GPU; tpu: this TPU VM.
#              Default: what is there.
#   --dry_run  prints the commands and the resolved configuration, and starts nothing.
#
# The same command again goes on with the run. Its exit status is that of dss: 185 and 143 after
# SIGTERM, which are worth another start, 130 after Ctrl-C (docs/train.md).
#
# From the environment: VENV (.venv), PYTHON, EXTRAS, and DSS, an installed dss to use instead of
# .venv. JAX_PLATFORMS, XLA_FLAGS, DSS_COMPILE_CACHE and XLA_PYTHON_CLIENT_MEM_FRACTION win over
# what is set here.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ $root != "$PWD" ]] || root=.
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

dry_run='' devices='' flags=()
while [[ $# -gt 0 ]]; do
  used=1
  case $1 in
    -h | --help) usage "${BASH_SOURCE[0]}" ;;
    --dry_run) dry_run=yes ;;
    --devices | --devices=*) flag_value "$@" && devices=$value ;;
    --) ;;
    *) flags+=("$1") ;;
  esac
  shift "$used"
done

gpus() { nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true; }
[[ -n $devices ]] || devices=$(find_devices)
settings=()
default() { # NAME VALUE
  [[ -n ${!1:-} ]] || settings+=("$1=$2")
}
case $devices in
  cpu) extras=dev platforms=cpu ;;
  gpu | all)
    extras=cuda platforms=cuda,cpu
    [[ $(gpus) -gt 0 || -n $dry_run ]] || die "--devices $devices: nvidia-smi finds no GPU. \
Install the driver, or give --devices cpu."
    ;;
  tpu) extras=tpu platforms=tpu,cpu ;;
  *) die "--devices must be cpu, gpu, all or tpu, not '$devices'." ;;
esac
# Named, so that a broken driver is an error and not a run on the CPU.
default JAX_PLATFORMS "$platforms"
# So a second start compiles nothing: after preemption, too.
[[ -n ${JAX_COMPILATION_CACHE_DIR:-} ]] ||
  default DSS_COMPILE_CACHE "${DSS_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/dss-jax}/compiled"
if [[ $devices == gpu || $devices == all ]]; then
  # 0.90 is what a step may take (dss_jax/core/devices.py), the rest is XLA's own.
  default XLA_PYTHON_CLIENT_MEM_FRACTION 0.92
fi
if [[ $devices == gpu ]]; then
  first=${CUDA_VISIBLE_DEVICES:-0}
  settings+=("CUDA_VISIBLE_DEVICES=${first%%,*}")
elif [[ $devices == all && ($(gpus) -ne 1 || ${SLURM_NTASKS:-1} -gt 1 || -n ${JAX_PROCESS_COUNT:-}) ]]; then
  # JAX's GPU guide, for several devices: communication beside kernels. Yours come last and win.
  settings+=("XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}")
fi

set_venv "$root"
install=()
[[ -n ${DSS:-} ]] || install=(make -C "$root" install "EXTRAS=${EXTRAS:-$extras}")
train=(env "${settings[@]}" "${DSS:-$venv/bin/dss}" train "${flags[@]}")

if [[ -n $dry_run ]]; then
  echo "# dry run: nothing is started"
  [[ ${#install[@]} -eq 0 ]] || show "${install[@]}"
  show "${train[@]}"
  if find_dss "$root"; then
    resolve "$root" "${flags[@]}"
    printf '\n%s\n' "$config"
  else
    echo "# the configuration can be shown after the installation"
  fi
  exit 0
fi
[[ ${#install[@]} -eq 0 ]] || "${install[@]}"
exec "${train[@]}"
