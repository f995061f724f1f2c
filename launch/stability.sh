#!/usr/bin/env bash
# Does the quick model stay right beyond its training depth? Trains it for several seeds, evaluates each on all
# 1,000 held-out puzzles up to H_test 256, and checks: at least 97.5 % exact at H_test 64, and nowhere between 16 and
# 256 more than 1 point under its best. About five minutes a seed on two cores.
#
#   bash launch/stability.sh [--dry-run] [RUNS_FOLDER] [SEED ...]      default: runs/stability 0 1 2
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh

run=""
case "${1:-}" in
  --dry-run) run="echo"; shift ;;
  -h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
  -*) echo "error: unknown option $1; see bash launch/stability.sh --help" >&2; exit 2 ;;
esac
runs="${1:-runs/stability}"
shift || true
seeds=("$@")
[ "${#seeds[@]}" -gt 0 ] || seeds=(0 1 2)

$run setup_environment
folders=()
for seed in "${seeds[@]}"; do
  folders+=("$runs/seed-$seed")
  $run .venv/bin/python -m trm_jax train --config=rsm_sudoku:quick --workdir="$runs/seed-$seed" \
    --config.seed="$seed" --config.eval.max_examples=0
done
$run .venv/bin/python -m trm_jax report "${folders[@]}" --min_exact 97.5 --at 64 --max_drop 1 --between=16,256
