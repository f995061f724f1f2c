# Sourced by the other scripts: a virtual environment in .venv with this project in it. Nothing is compiled.
#   setup_environment EXTRAS     e.g. setup_environment "[test]"

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
