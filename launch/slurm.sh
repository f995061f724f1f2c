#!/usr/bin/env bash
# Submits a training run to Slurm: one process on each node, with all of its devices; preempted, out of time or lost a
# node, it goes back into the queue and continues from its last checkpoint.
#
#   bash launch/slurm.sh [OPTIONS] CONFIG WORKDIR [FLAGS OF trm_jax.main]
#   bash launch/slurm.sh --nodes 2 --gpus-per-node 8 --partition=gpu --time=12:00:00 --cpus-per-task=32 \
#     experiments/rsm_sudoku.py runs/rsm
#
#   CONFIG, WORKDIR    as for trm_jax.main; WORKDIR, the data and this folder on a disk that all nodes see
#   --nodes N          default 1
#   --gpus-per-node N  default 0: CPUs
#   --seeds 0-9        a job array, one run for each: WORKDIR/seed-0 ...; also 0,3,7
#   --configs A,B      a job array, one run for each: WORKDIR/NAME-VARIANT ...; CONFIG is left out
#   --venv DIR         the virtual environment (default .venv; launch/train.sh makes it)
#   --modules "A B"    loaded before
#   --container IMAGE  a .sif file: Apptainer; else an image for Pyxis (srun --container-image)
#   --mounts A:B,C:D   for the container, besides this folder and WORKDIR
#   --port N           of process 0, for the others to meet at (default: from the job's number)
#   --max-restarts N   give up after so many restarts without a newer checkpoint (default 3)
#   --NAME=VALUE       any other option goes to sbatch as it is: --partition=P --account=A --time=T --mem=64G
#   --dry-run          print the batch script instead of submitting it
#   --test-only        ask Slurm whether and when it would start, without submitting it
# shellcheck disable=SC2034  # names in capitals are what the template is filled with
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")/.."
source launch/setup.sh

# shellcheck disable=SC2016  # counted when the job starts
NODES=1 MAX_RESTARTS=3 PORT='$((20000 + (SLURM_JOB_ID * 16 + ${SLURM_RESTART_COUNT:-0} % 16) % 10000))'
gpus=0 seeds="" configs="" venv=.venv modules="" container="" mounts="" mode=submit others=()
while [ $# -gt 0 ]; do
  name="${1%%=*}"
  case "$name" in
    -h|--help) usage; exit ;;
    --dry-run|--test-only) mode="$1"; shift; continue ;;
    --nodes|--gpus-per-node|--seeds|--configs|--venv|--modules|--container|--mounts|--port|--max-restarts)
      if [ "$name" != "$1" ]; then
        value="${1#*=}"
        shift
      else
        [ $# -ge 2 ] || die "$1 needs a value; see bash launch/slurm.sh --help"
        value="$2"
        shift 2
      fi ;;
    -*)
      [[ "$1" == --*=* || "$1" == --exclusive ]] \
        || die "$1: options of sbatch are written --NAME=VALUE; see bash launch/slurm.sh --help"
      others+=("$1")
      shift
      continue ;;
    *) break ;;
  esac
  case "$name" in
    --nodes|--gpus-per-node|--port|--max-restarts)
      [[ "$value" =~ ^[0-9]+$ ]] || die "$name=$value must be a number" ;;
  esac
  case "$name" in
    --nodes) [ "$value" -gt 0 ] || die "--nodes=$value must be at least 1"; NODES="$value" ;;
    --gpus-per-node) gpus="$value" ;;
    --seeds) seeds="$value" ;;
    --configs) configs="$value" ;;
    --venv) venv="$value" ;;
    --modules) modules="$value" ;;
    --container) container="$value" ;;
    --mounts) mounts="$value" ;;
    --port) PORT="$value" ;;
    --max-restarts) MAX_RESTARTS="$value" ;;
  esac
done
if [ -z "$configs" ]; then
  [ $# -ge 2 ] || die "CONFIG and WORKDIR are needed; see bash launch/slurm.sh --help"
  configs="$1"
  several=""
  shift
else
  [ $# -ge 1 ] || die "WORKDIR is needed; see bash launch/slurm.sh --help"
  several=1
fi
case "$1" in /*) folder="$1" ;; *) folder="$here/$1" ;; esac
shift
if [[ "$seeds" =~ ^([0-9]+)-([0-9]+)$ ]]; then
  [ "${BASH_REMATCH[1]}" -le "${BASH_REMATCH[2]}" ] || die "--seeds=$seeds: the first is greater than the last"
  seeds="$(seq -s , "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}")"
elif [[ -n "$seeds" && ! "$seeds" =~ ^[0-9]+(,[0-9]+)*$ ]]; then
  die "--seeds=$seeds must be a range such as 0-9 or a list such as 0,3,7"
fi

# The runs: one branch of a case for each task of the job array.
ROOT="$(quoted "$PWD")" RUNS="" count=0 workdirs=()
IFS=, read -r -a config_list <<<"$configs"
IFS=, read -r -a seed_list <<<"${seeds:-none}"
for config in "${config_list[@]}"; do
  [[ -n "$container" || "$config" != */* || -e "${config%%:*}" ]] || die "there is no ${config%%:*} in $PWD"
  for seed in "${seed_list[@]}"; do
    workdir="$folder" flags=("$@") label="${config##*/}"
    label="${label/.py/}"
    if [ -n "$several" ]; then workdir+="/${label/:/-}"; fi
    if [ "$seed" != none ]; then
      workdir+="/seed-$seed"
      flags+=("--config.seed=$seed")
    fi
    # shellcheck disable=SC2076  # the text, not a pattern
    [[ ! " ${workdirs[*]-} " =~ " $workdir " ]] || die "two of the runs would have the folder $workdir"
    workdirs+=("$workdir")
    RUNS+="  $count) workdir=$(quoted "$workdir") run=($(quoted "--config=$config" ${flags[@]+"${flags[@]}"})) ;;"$'\n'
    count=$((count + 1))
  done
done
RUNS="${RUNS%$'\n'}"

batch_log="$folder/slurm-%j.log"
OPTIONS="#SBATCH --job-name=${label%%:*}"$'\n'
if [ "$count" -gt 1 ]; then
  batch_log="$folder/slurm-%A_%a.log"
  OPTIONS+="#SBATCH --array=0-$((count - 1))"$'\n'
fi
OPTIONS+="#SBATCH --output=\"$batch_log\""$'\n'
if [ "$gpus" -gt 0 ]; then OPTIONS+="#SBATCH --gpus-per-node=$gpus"$'\n'; fi
for option in ${others[@]+"${others[@]}"}; do OPTIONS+="#SBATCH $(quoted "$option")"$'\n'; done

SETUP="" python="$venv/bin/python"
if [ -n "$modules" ]; then SETUP+="module load $modules"$'\n'; fi
mounts="$PWD:$PWD,$folder:$folder${mounts:+,$mounts}"
case "$container" in
  "") SETUP+="launcher=()" ;;
  *.sif) python=python3 SETUP+="launcher=($(quoted apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$container"))" ;;
  *) python=python3
     SETUP+="launcher=($(quoted "--container-image=$container" "--container-mounts=$mounts" "--container-workdir=$PWD"))" ;;
esac
[[ -n "$container" || "$mode" = --dry-run || -x "$python" ]] \
  || die "there is no $python: bash launch/train.sh --help tells how to make one, --venv names another"
PROGRAM="$(quoted "$python" -m trm_jax.main)"
script="$(render launch/templates/slurm.sbatch NODES OPTIONS ROOT RUNS PROGRAM SETUP PORT MAX_RESTARTS)"

if [ "$mode" = --dry-run ]; then
  printf '%s\n' "$script"
  exit
fi
if [ -z "$container" ]; then  # what the program would refuse is better known before the job waits in a queue
  for config in "${config_list[@]}"; do
    "$python" launch/check.py "$config" $((NODES * (gpus > 0 ? gpus : 1))) "$@" >&2
  done
fi
case " ${others[*]-} " in
  *" --cpus-per-task="*|*" --exclusive "*) ;;
  *) echo "note: Slurm gives each process one CPU unless --cpus-per-task=N or --exclusive is given" >&2 ;;
esac
command=(sbatch --parsable)
if [ "$mode" = --test-only ]; then command=(sbatch --test-only); else mkdir -p "$folder" "${workdirs[@]}"; fi
if ! said="$("${command[@]}" 2>&1 <<<"$script")"; then
  said="${said//sbatch: error: /}"
  case "$said" in *partition*) said+="; partitions: $(sinfo --noheader --format=%R | sort -u | paste -sd ' ')" ;; esac
  die "Slurm refuses the job: ${said//$'\n'/; }"
fi
if [ "$mode" = --test-only ]; then
  printf '%s\n' "${said#sbatch: }"
  exit
fi
job="${said##*$'\n'}"  # the last line; before it Slurm may have warned
job="${job%%;*}"
log="${batch_log//%[jA]/$job}"
cat <<TEXT
submitted job $job: $count run(s) of $NODES process(es)
  what the scheduler did   squeue --job=$job; tail -F $(quoted "${log//%a/0}")
  what process 0 says      tail -F $(quoted "${workdirs[0]}")/slurm-*.0.log
  save and run again       scancel --signal=TERM $job
  cancel                   scancel $job
  when it is done          $(quoted "$python") -m trm_jax report $(quoted "${workdirs[@]}")
TEXT
