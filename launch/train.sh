#!/usr/bin/env bash
# Sets up .venv with the packages of an accelerator and trains a config; the same command continues the run.
#
#   bash launch/train.sh [--dry-run] [--extra cuda13|cuda12|tpu] CONFIG WORKDIR [FLAGS OF trm_jax.main]
#
#   bash launch/train.sh --extra cuda13 experiments/rsm_sudoku.py:steady runs/steady --config.data.path=data/sudoku
#
# Several machines: start it on each with JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES=N and
# JAX_PROCESS_ID=0..N-1, and a WORKDIR that all of them see.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh

run="" extra=""
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) run="echo"; shift ;;
    --extra) extra="[${2:?--extra needs cuda13, cuda12 or tpu}]"; shift 2 ;;
    -h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
    -*) echo "error: unknown option $1; see bash launch/train.sh --help" >&2; exit 2 ;;
    *) break ;;
  esac
done
[ $# -ge 2 ] || { echo "error: CONFIG and WORKDIR are needed; see bash launch/train.sh --help" >&2; exit 2; }
config="$1" workdir="$2"
shift 2
$run setup_environment "$extra"
$run .venv/bin/python -m trm_jax.main --config="$config" --workdir="$workdir" "$@"
