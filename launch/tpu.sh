#!/usr/bin/env bash
# A TPU slice from Google Cloud and a run on all of its workers, through gcloud; spot slices come and go, the run goes on.
#
#   bash launch/tpu.sh create  [OPTIONS] NAME                       ask for a slice (a queued resource)
#   bash launch/tpu.sh install [OPTIONS] NAME                       this folder and its packages, on all workers
#   bash launch/tpu.sh stage   [OPTIONS] NAME SOURCE FOLDER         a folder or gs://... to FOLDER, below /mnt/shared
#   bash launch/tpu.sh start   [OPTIONS] NAME CONFIG WORKDIR [FLAGS OF trm_jax.main]
#   bash launch/tpu.sh status|logs|stop|delete [OPTIONS] NAME       stop: save and end; delete: the slice
#   bash launch/tpu.sh resume  [OPTIONS] NAME CONFIG WORKDIR [FLAGS OF trm_jax.main]
#                                                                   whatever is missing of create, install and start;
#     exits with 75 until the run has ended, so that a loop keeps a run on spot slices going:
#
#   until bash launch/tpu.sh resume --type v5litepod-16 --spot --share 10.0.0.2:/shared rsm experiments/rsm_sudoku.py \
#     /mnt/shared/runs/rsm; do [ $? -eq 75 ] || break; sleep 60; done
#
#   --type T             e.g. v5litepod-16 (create and resume need it)
#   --share HOST:/PATH   an NFS share (Filestore), /mnt/shared on the workers: WORKDIR and data must be seen by all
#   --runtime V          default tpu-ubuntu2204-base; the software of the machines
#   --spot               may be taken away at any time
#   --port N             of worker 0, for the others to meet at (default 8476)
#   --zone Z, --project P   default: gcloud's own
#   --dry-run            print the commands instead; nothing is asked of gcloud
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh

type="" share=none runtime=tpu-ubuntu2204-base port=8476 dry_run="" place=() create=()
case "${1:-}" in
  -h|--help) usage; exit ;;
  create|install|stage|start|status|logs|stop|delete|resume) task="$1"; shift ;;
  *) die "'${1:-}' is not one of create, install, stage, start, status, logs, stop, delete, resume" ;;
esac
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry_run=1; shift; continue ;;
    --spot) create+=(--spot); shift; continue ;;
    -*) name="${1%%=*}" ;;
    *) break ;;
  esac
  if [ "$name" != "$1" ]; then
    value="${1#*=}"
    shift
  else
    [ $# -ge 2 ] || die "$1 needs a value; see bash launch/tpu.sh --help"
    value="$2"
    shift 2
  fi
  case "$name" in
    --type) type="$value" ;;
    --share) [[ "$value" == ?*:/* ]] || die "--share=$value: HOST:/PATH was expected"; share="$value" ;;
    --runtime) runtime="$value" ;;
    --port) [[ "$value" =~ ^[0-9]+$ ]] || die "--port=$value must be a number"; port="$value" ;;
    --zone|--project) place+=("$name=$value") ;;
    *) die "unknown option $name; see bash launch/tpu.sh --help" ;;
  esac
done
[ $# -ge 1 ] || die "NAME is needed; see bash launch/tpu.sh --help"
NAME="$1"
shift
[[ "$NAME" =~ ^[a-z]([a-z0-9-]{0,60}[a-z0-9])?$ ]] || die "NAME=$NAME must be of a-z, 0-9 and -, with a letter first"
case "$task" in
  create|resume) [ -n "$type" ] || die "--type is needed, such as v5litepod-16" ;;
esac
case "$task" in
  start|resume) [ $# -ge 2 ] || die "CONFIG and WORKDIR are needed; see bash launch/tpu.sh --help" ;;
  stage) [ $# -eq 2 ] || die "SOURCE and FOLDER are needed; see bash launch/tpu.sh --help" ;;
  *) [ $# -eq 0 ] || die "$task takes NAME only, not $*" ;;
esac

gcloud() {
  if [ -n "$dry_run" ]; then
    quoted gcloud "$@"
    echo
  else
    command gcloud "$@"
  fi
}
queued() { gcloud compute tpus queued-resources "$1" "$NAME" ${place[@]+"${place[@]}"} "${@:2}"; }
vm() { gcloud compute tpus tpu-vm "$1" "${@:2}" ${place[@]+"${place[@]}"}; }
# on WORKERS TASK ARGUMENTS...: tpu-worker.sh there.
on() { vm ssh "$NAME" "--worker=$1" "--command=$(quoted bash trm_jax/launch/templates/tpu-worker.sh "${@:2}")"; }

create_slice() {
  queued create "--node-id=$NAME" "--accelerator-type=$type" "--runtime-version=$runtime" ${create[@]+"${create[@]}"} \
    --quiet
}

delete_slice() { queued delete --force --quiet; }

install_all() {
  local folder=.
  if [ -z "$dry_run" ]; then
    folder="$(mktemp -d)"
    # What git knows, as it lies here; without git, all but what was made here.
    { git ls-files -z 2>/dev/null \
        || find . -type f -not -path './.*' -not -path './runs/*' -not -path './data/*' -print0; } \
      | tar --create --gzip --null --files-from=- --file="$folder/trm_jax.tgz" --ignore-failed-read
  fi
  vm scp "$folder/trm_jax.tgz" "$NAME:" --worker=all --quiet
  vm ssh "$NAME" --worker=all --command="mkdir -p trm_jax && tar --extract --gzip --file=trm_jax.tgz --directory=trm_jax"
  if [ -z "$dry_run" ]; then rm -r "$folder"; fi
  on all install "$share"
}

start_all() {  # CONFIG WORKDIR FLAGS...
  local addresses
  if [ -n "$dry_run" ]; then
    vm describe "$NAME" "--format=value(networkEndpoints[].ipAddress)"
    addresses=ADDRESSES
  else
    addresses="$(vm describe "$NAME" "--format=value(networkEndpoints[].ipAddress)")"
  fi
  on all start "$NAME" "$port" "$addresses" "$2" "--config=$1" "${@:3}"
}

say() { echo "$NAME: $1" >&2; }

# One step from what there is towards a run that has ended.
resume() {
  local state found code one
  state="$(queued describe "--format=value(state.state)" 2>/dev/null || true)"
  case "$state" in
    "") say "asking for a slice"; create_slice ;;
    SUSPENDED|FAILED) say "the slice was taken away ($state): asking for another"; delete_slice; create_slice ;;
    ACTIVE)
      found="$(on all status "$NAME" 2>/dev/null | sort -u || true)"
      case "$found" in
        *running*) say "running" ;;
        ""|none|*none*)
          if [ -z "$found" ]; then say "installing"; install_all; fi
          say "starting"
          start_all "$@" ;;
        *)
          code=0
          while read -r _ one; do
            if [ "$one" -eq 75 ] || { [ "$one" -gt 128 ] && [ "$one" -ne 130 ]; }; then code=75
            elif [ "$one" -ne 0 ]; then code="$one"; break; fi
          done <<<"$found"
          if [ "$code" -ne 75 ]; then
            say "ended with $code"
            exit "$code"
          fi
          say "preempted: starting again"
          start_all "$@" ;;
      esac ;;
    *) say "$state" ;;
  esac
  exit 75
}

if [ -z "$dry_run" ]; then type -P gcloud >/dev/null || die "there is no gcloud on PATH"; fi
case "$task" in
  create) create_slice ;;
  delete) delete_slice ;;
  install) install_all ;;
  stage)
    case "$1" in
      gs://*)
        vm ssh "$NAME" --worker=0 \
          "--command=mkdir -p $(quoted "$2") && gcloud storage cp --recursive $(quoted "$1" "$2")" ;;
      *) [ -e "$1" ] || die "there is no $1"
         vm ssh "$NAME" --worker=0 "--command=mkdir -p $(quoted "$2")"
         vm scp --recurse "$1" "$NAME:$2" --worker=0 --quiet ;;
    esac ;;
  start) start_all "$@" ;;
  status) queued describe "--format=value(state.state)"; on all status "$NAME" ;;
  logs) vm ssh "$NAME" --worker=0 "--command=tail -n 100 -F \$(cat .trm_jax.$NAME.log)" ;;
  stop) on all stop "$NAME" ;;
  resume)
    if [ -n "$dry_run" ]; then
      create_slice
      install_all
      start_all "$@"
    else
      resume "$@"
    fi ;;
esac
