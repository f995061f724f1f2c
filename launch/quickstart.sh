#!/usr/bin/env bash
# From an empty machine to a solved puzzle: installs, generates 9x9 Sudokus, trains a recursive model, evaluates it
# at growing test-time depth and as a solver with a verifier, solves a puzzle that it has not seen, and makes a web
# page of how it did. No GPU; at most 6 minutes on two cores.
#
#   bash launch/quickstart.sh [--dry-run] [RUN_FOLDER]
#
#   RUN_FOLDER   where the run goes (default runs/quick); a run that is there already is continued
#   --dry-run    print the commands instead of running them
#   PYTHON=...   the Python (3.11 or newer) that makes the virtual environment
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh

dry_run="" run=runs/quick
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry_run=1 ;;
    -h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
    -*) echo "error: unknown option $argument; see bash launch/quickstart.sh --help" >&2; exit 2 ;;
    *) run="$argument" ;;
  esac
done

step() {
  printf '\n== %s\n' "$1"
  shift
  printf '   %s\n' "$*"
  if [ -z "$dry_run" ]; then "$@"; fi
}

config=experiments/rsm_sudoku.py:quick
python=.venv/bin/python
step "install" setup_environment
step "make 9x9 Sudokus, train a recursive model of 80,000 parameters, let it think longer and longer about new ones" \
  "$python" -m trm_jax.main --config="$config" --workdir="$run"
step "solve a puzzle that it has never seen" \
  "$python" -m trm_jax solve --workdir="$run" --example 0 --watch || echo "(not every answer is right: the verifier says so)"
step "put that into a web page that needs no network" \
  "$python" -m trm_jax watch --workdir="$run" --example 0 --example 1 --example 2 --out "$run/think.html" || true
cat <<TEXT

The run lies in $run: config, checkpoints, metrics.jsonl, TensorBoard files, eval/*.json. Open $run/think.html in a
browser to watch it think. What to type next:

  $python -m trm_jax solve --workdir=$run --tries=8 "PUZZLE"      81 characters, '.' for a blank
  $python -m trm_jax.main --config=$config --workdir=$run --mode=evaluate --config.eval.H_test=256,1024
  $python -m trm_jax.main --config=experiments/rsm_sudoku.py --mode=describe      the paper's model
TEXT
