# shellcheck shell=bash
# What the launchers share; they source it.

die() { # MESSAGE [EXIT STATUS]
  printf '%s: error: %s\n' "${0##*/}" "$1" >&"${stderr:-2}"
  exit "${2:-2}"
}

usage() { # prints the comment at the head of a script
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1"
  exit 0
}

escaped() { # the words as one line of shell, for a shell far away
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

show() { # prints a command so that it can be pasted into a shell
  local word line=''
  for word; do
    case $word in
      *\'*) printf -v word '%q' "$word" ;;
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'$word'" ;;
    esac
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# shellcheck disable=SC2034  # the caller reads them
flag_value() { # ARGUMENTS...: sets `value` to that of the flag in $1, and `used` to the words it took
  case $1 in
    *=*) value=${1#*=} used=1 ;;
    *) [[ $# -gt 1 && $2 != --* ]] || die "$1 needs a value."
      value=$2 used=2 ;;
  esac
}

split_words() { # TEXT: sets `words` as a shell would split it, without running anything in it
  words=()
  local word
  [[ -n ${1//[[:space:]]/} ]] || return 0
  xargs true <<<"$1" || die "quotes do not match in: $1"
  while IFS= read -r -d '' word; do words+=("$word"); done \
    < <(xargs -n 1 printf '%s\0' <<<"$1")
}

set_venv() { # ROOT: sets `venv`
  venv=${VENV:-.venv}
  [[ $venv == /* ]] || venv=$1/$venv
}

find_dss() { # ROOT: sets `dss`, the command of the installed package; false where there is none
  set_venv "$1"
  if [[ -n ${DSS:-} ]]; then
    dss=$DSS
  elif [[ -x $venv/bin/dss ]]; then
    dss=$venv/bin/dss
  else
    dss=$(command -v dss)
  fi
}

resolve() { # ROOT, FLAGS...: sets `config`; a mistake in the flags ends here, before anything starts
  find_dss "$1" || die "dss is not installed here, and it checks the flags: make install, or set DSS."
  config=$("$dss" config "${@:2}") || exit 2
}

setting() { # NAME: the value of a setting in `config`, without quotes; empty for None and ()
  local text
  text=$(sed -n "s/^$1 = //p" <<<"$config")
  [[ $text != None && $text != '()' ]] || text=
  text=${text#[\'\"]}
  printf '%s' "${text%[\'\"]}"
}

need_bucket() { # every machine writes to the same folder, and finds it again after preemption
  local folder
  folder=$(setting Train.output_dir)
  [[ $folder == gs://* ]] || die "--output_dir must be on gs://, not '${folder:-(none)}': \
local disks go away with the machines."
}

find_python() { # prints a Python of 3.11 to 3.13; images of clouds often have an older one
  local found
  for found in python3.13 python3.12 python3.11; do
    if "$found" -c 'import ensurepip, venv' 2>/dev/null; then
      command -v "$found"
      return
    fi
  done
  python3 -m pip install --quiet --user uv==0.13.9
  python3 -m uv python install --quiet 3.12
  python3 -m uv python find 3.12
}

find_devices() { # prints what local.sh --devices takes
  if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
    echo all
  elif compgen -G '/dev/accel[0-9]*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
    echo tpu
  else
    echo cpu
  fi
}
