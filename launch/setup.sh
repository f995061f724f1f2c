# shellcheck shell=bash
# Sourced by the other scripts: messages, templates, and a virtual environment in .venv with this project in it.

# die MESSAGE: one line for the user, exit 2.
die() {
  echo "error: $1" >&2
  exit 2
}

# usage: the comment at the head of the script.
usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
}

# quoted WORD...: the words as a shell would have to be given them, on one line.
quoted() {
  local word line=""
  for word in "$@"; do line+="$(printf '%q' "$word") "; done
  printf '%s' "${line% }"
}

# render TEMPLATE NAME...: the file with ${NAME} replaced by the value of the variable, for these names only.
render() {
  local text name pattern
  text="$(cat "$1")"
  shift
  shopt -u patsub_replacement 2>/dev/null || true  # bash 5.2: an & in a value is an &
  for name in "$@"; do
    pattern="\${$name}"
    text="${text//"$pattern"/${!name}}"
  done
  printf '%s\n' "$text"
}

# setup_environment EXTRAS, e.g. setup_environment "[test]". Nothing is compiled.
setup_environment() {
  local extras="${1:-}" python="${PYTHON:-python3}"
  if [ ! -x .venv/bin/python ]; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "error: $("$python" --version 2>&1) is too old: Python 3.11 or newer is needed; name one with PYTHON=..." >&2
      return 1
    fi
    if ! "$python" -m venv .venv; then
      rm -rf .venv
      echo "error: $python could not make a virtual environment (on Debian and Ubuntu: install python3-venv)" >&2
      return 1
    fi
  fi
  echo "installing trm_jax$extras into .venv (the first time, about a minute) ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".$extras"
}
