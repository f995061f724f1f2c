#!/usr/bin/env bash
# What launch/tpu.sh does on each worker of a TPU slice, in the folder of the project there.
#
#   tpu-worker.sh install SHARE     packages of the system, the shared disk, the virtual environment
#   tpu-worker.sh start NAME PORT ADDRESSES WORKDIR [FLAGS OF trm_jax.main]
#   tpu-worker.sh status NAME       prints: none, running, or ended CODE
#   tpu-worker.sh stop NAME         asks it to save and end
set -euo pipefail
cd "$(dirname "$0")/../.."
source launch/setup.sh

task="$1" name="$2"
state="$HOME/.trm_jax.$name"  # .pid, .code and .log (its place) of the run

is_running() { [ -e "$state.pid" ] && kill -0 "$(cat "$state.pid")" 2>/dev/null; }

case "$task" in
  install)
    python=python3
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python=python3.11; fi
    sudo apt-get update -qq
    sudo apt-get install -y -qq "$python" "$python-venv" nfs-common >/dev/null
    sudo mkdir -p /mnt/shared
    if [ "$2" != none ] && ! mountpoint -q /mnt/shared; then sudo mount -t nfs "$2" /mnt/shared; fi
    PYTHON="$python" setup_environment "[tpu]" ;;
  start)
    if is_running; then die "$name is running already"; fi
    number="$(curl -sf -H 'Metadata-Flavor: Google' \
      http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)"
    IFS=';' read -r -a addresses <<<"$4"
    export JAX_COORDINATOR_ADDRESS="${addresses[0]}:$3" JAX_NUM_PROCESSES="${#addresses[@]}" JAX_PROCESS_ID="$number"
    mkdir -p "$5"
    rm -f "$state.code"
    log="$5/worker-$number.log"
    echo "$log" >"$state.log"
    # In a session of its own, as this one ends; the process that is told to stop is Python itself.
    # shellcheck disable=SC2016  # expanded by that shell
    setsid bash -c '
      state="$1" log="$2"
      shift 2
      "$@" >>"$log" 2>&1 </dev/null &
      echo $! >"$state.pid"
      wait $! && code=0 || code=$?
      echo "$code" >"$state.code"
    ' run "$state" "$log" .venv/bin/python -m trm_jax.main "--workdir=$5" "${@:6}" \
      >/dev/null 2>&1 </dev/null & ;;
  status)
    if [ -e "$state.code" ]; then echo "ended $(cat "$state.code")"
    elif is_running; then echo running
    elif [ -e "$state.pid" ]; then echo "ended 137"  # the machine was restarted under it
    else echo none; fi ;;
  stop) if is_running; then kill -TERM "$(cat "$state.pid")"; fi ;;
esac
