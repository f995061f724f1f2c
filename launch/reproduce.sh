#!/usr/bin/env bash
# One command for a machine with a GPU: what it can do, where a step's time goes, how long published code takes, and what
# rsm_sudoku:steady and rsm_sudoku reach in the minutes given, with schedules as long as that. Each thing that is done
# leaves its file in the folder of the reproduction; cut off at any moment, the same command goes on.
#
#   bash launch/reproduce.sh [--dry-run] [--minutes=M] [--only=PART,PART] [OPTIONS]
#
#   --minutes=M       of training, half for each recipe; compiling and evaluating come on top (60)
#   --only=...        of install, data, peaks, steps, peers, train, weights, evaluate, results (all)
#   --rsm=, --trm=    folders with clones of the published code, to be timed beside ours (none)
#   --data=FOLDER     dataset; data/sudoku-extreme is made from the Hugging Face hub if it is missing
#   --wheels=FOLDER   fetch nothing: packages that are missing are installed from these wheels, beside those of PYTHON
#   --extra=NAME      cuda13 or cuda12: with which packages .venv is made, where there are no --wheels (cuda13)
#   --out=FOLDER      of the reproduction: checkpoints, traces, weights in bfloat16 (runs/reproduce)
#   --results=FOLDER  where gpu-*.json and gpu.md go (experiments/results)
#   --examples=N      test puzzles of the evaluations, a seeded sample; 0: all (10000)
#   --set=FIELD=VALUE in every config; repeatable
#   PYTHON=...        the Python that is used with --wheels, or that makes .venv
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh

dry_run="" minutes=60 only="" data="" wheels="" extra=cuda13 out=runs/reproduce results=experiments/results
examples=10000 clones=() set=() fields=()
for argument in "$@"; do
  value="${argument#*=}"
  case "$argument" in
    --dry-run) dry_run=1 ;;
    -h|--help) usage; exit ;;
    --rsm=?*|--trm=?*) clones+=("$argument") ;;
    --set=?*=*) set+=(--set "$value"); fields+=("--config.$value") ;;
    --minutes=?*|--only=?*|--data=?*|--wheels=?*|--extra=?*|--out=?*|--results=?*|--examples=?*)
      name="${argument%%=*}"
      printf -v "${name#--}" %s "$value" ;;
    *) die "unknown option $argument; see bash launch/reproduce.sh --help" ;;
  esac
done
[[ "$minutes" =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--minutes=$minutes must be a number"
parts=",install,data,peaks,steps,peers,train,weights,evaluate,results,"
for name in ${only//,/ }; do
  [[ "$parts" == *",$name,"* ]] || die "--only=$name: there are ${parts:1:-1}"
done
[ -z "$data" ] || [ -d "$data" ] || die "--data=$data: there is no such folder"
data="${data:-data/sudoku-extreme}"
set+=(--set "data.path=$data") fields+=("--config.data.path=$data")
recipes=(rsm_sudoku:steady rsm_sudoku)

wanted() { [ -z "$only" ] || [[ ",$only," == *",$1,"* ]]; }

# done_once FILE COMMAND...: the command, unless FILE is there; what it prints is there when it has succeeded.
done_once() {
  local file="$out/$1"
  shift
  [ ! -e "$file" ] || return 0
  printf '== %s\n' "$(quoted "$@")"
  [ -z "$dry_run" ] || return 0
  mkdir -p "$(dirname "$file")"
  "$@" > "$file.new"
  mv "$file.new" "$file"
}

path="$(realpath -m "$out")"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$path/compiled}"
python=.venv/bin/python
if [ -n "$wheels" ]; then
  python="${PYTHON:-python3}"
  export PYTHONPATH="$PWD:$path/site${PYTHONPATH:+:$PYTHONPATH}"
fi
if wanted install; then
  if [ -n "$wheels" ]; then
    done_once install.txt "$python" -m pip install --no-index --no-deps --upgrade --target "$out/site" "$wheels"/*.whl
  else
    done_once install.txt setup_environment "[$extra,plot]"
  fi
fi
if wanted data && [ ! -d "$data" ]; then
  done_once data.txt "$python" -m trm_jax data sudoku --hub --out "$data"
fi
if wanted peaks; then
  done_once peaks.txt "$python" -m trm_jax bench peaks --out="$out/json/peaks.json"
fi
if wanted steps; then
  for config in rsm_sudoku trm_mlp_sudoku; do
    done_once "step-$config.txt" "$python" -m trm_jax bench step --config="$config" "${set[@]}" --repeats=20 \
      --out="$out/json/step-$config.json"
    # Without command buffers each operation is seen; the times above are with them.
    done_once "profile-$config.txt" env XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=" \
      "$python" -m trm_jax bench step --config="$config" "${set[@]}" --profile="$out/profile-$config" \
      --out="$out/json/profile-$config.json"
  done
fi
if wanted peers && [ "${#clones[@]}" -gt 0 ]; then
  done_once peers.txt "$python" -m trm_jax bench peers "${clones[@]}" "${set[@]}" --variants=eager,core \
    --out="$out/json/peers.json"
fi
if wanted train; then
  configs="$(IFS=,; echo "${recipes[*]}")"
  done_once train.txt "$python" -m trm_jax compare --configs="$configs" --minutes="$(awk "BEGIN {print $minutes / 2}")" \
    --seeds=0 --evaluations=4 --examples="$examples" --out="$out/train" "${set[@]}"
fi
for config in "${recipes[@]}"; do
  name="${config/:/-}"
  if wanted weights; then
    done_once "weights-$name.txt" "$python" -m trm_jax weights --workdir="$out/train/$name/seed0" \
      --out="$out/weights/$name.safetensors" --dtype=bfloat16
  fi
  if wanted evaluate; then  # of the file in bfloat16; by depth, and as a solver with tries that differ by a symmetry
    done_once "evaluate-$name.txt" "$python" -m trm_jax evaluate --config="$config" --workdir="$out/evaluate/$name" \
      --weights="$out/weights/$name.safetensors" --config.eval.max_examples="$examples" --config.eval.restarts=8 \
      --config.eval.L_test= "${fields[@]}"
  fi
done
if wanted evaluate; then
  done_once evaluate.txt "$python" -m trm_jax report "$out/evaluate/rsm_sudoku-steady" "$out/evaluate/rsm_sudoku"
fi
if wanted results && [ -z "$dry_run" ]; then
  mkdir -p "$results"
  for file in "$out"/json/*.json "$out/train/results.json" "$out"/evaluate/*/eval/*.json; do
    [ ! -e "$file" ] || case "$file" in
      */train/*) cp "$file" "$results/gpu-training.json" ;;
      */evaluate/*) cp "$file" "$results/gpu-evaluation-$(basename "${file%/eval/*}").json" ;;
      *) cp "$file" "$results/gpu-${file##*/}" ;;
    esac
  done
  {
    printf '# Measured by launch/reproduce.sh --minutes=%s\n' "$minutes"
    for name in peaks step-rsm_sudoku step-trm_mlp_sudoku profile-rsm_sudoku profile-trm_mlp_sudoku peers evaluate; do
      [ ! -e "$out/$name.txt" ] || { printf '\n## %s\n\n' "$name"; sed 's/^/    /' "$out/$name.txt"; }
    done
    [ ! -e "$out/train/table.md" ] || printf '\n## train\n\n%s\n' "$(cat "$out/train/table.md")"
  } > "$results/gpu.md"
  echo "written: $results/gpu.md, $results/gpu-*.json; weights: $out/weights"
fi
