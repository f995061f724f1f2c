#!/usr/bin/env bash
# Starts a training run on Kubernetes: one pod on each node, with all of its devices. One node: an indexed Job; several:
# a JobSet (its controller must be installed). Preempted, it starts again and continues from its last checkpoint.
#
#   bash launch/kubernetes.sh [OPTIONS] NAME CONFIG [FLAGS OF trm_jax.main]
#   bash launch/kubernetes.sh --logs|--delete [--namespace N] [--dry-run] NAME
#   bash launch/kubernetes.sh --image REGISTRY/trm-jax:cuda13 --nodes 2 --gpus 8 --runs-claim runs --data-claim data \
#     rsm experiments/rsm_sudoku.py --config.data.path=/data/sudoku-extreme
#
#   NAME               of the run: its folder is /runs/NAME in the pods
#   --image IMAGE      built from launch/Dockerfile (needed)
#   --runs-claim NAME  the PersistentVolumeClaim for /runs (needed; ReadWriteMany for more than one node)
#   --data-claim NAME  a claim for /data, read only; or
#   --data-bucket NAME a bucket for /data, read only (Cloud Storage FUSE, on GKE)
#   --nodes N          default 1
#   --gpus N           NVIDIA GPUs of each node; or
#   --tpus N           TPU chips of each node (GKE), with
#   --tpu-type T --tpu-topology XxY   e.g. tpu-v5-lite-podslice 4x4
#   --cpus N --memory 64Gi            what each pod asks for
#   --shm 16Gi         of /dev/shm, which counts as memory (default 8Gi)
#   --node KEY=VALUE   only nodes with this label; may be repeated
#   --tolerate KEY     nodes with this taint too; may be repeated
#   --port N           of process 0, for the others to meet at (default 8476)
#   --max-restarts N   after crashes (default 3); preemptions do not count
#   --namespace N      default: kubectl's own
#   --dry-run          print the manifest (or the command) instead
#   --logs, --delete   follow what a run's pods say; end it (its folder stays)
# shellcheck disable=SC2034  # names in capitals are what the templates are filled with
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh

# json WORD...: the words as JSON strings with commas between, which YAML reads too.
json() {
  local word list=""
  for word in "$@"; do
    word="${word//\\/\\\\}"
    list+="\"${word//\"/\\\"}\", "
  done
  printf '%s' "${list%, }"
}

NODES=1 PORT=8476 SHM=8Gi MAX_RESTARTS=3 RUNS_CLAIM="" IMAGE=""
task=create dry_run="" gpus=0 tpus=0 tpu_type="" tpu_topology="" cpus="" memory="" data_claim="" data_bucket=""
selectors=() taints=() kubectl=(kubectl)
while [ $# -gt 0 ]; do
  case "$1" in
    -h|--help) usage; exit ;;
    --dry-run) dry_run=1; shift; continue ;;
    --logs|--delete) task="${1#--}"; shift; continue ;;
    -*) name="${1%%=*}" ;;
    *) break ;;
  esac
  if [ "$name" != "$1" ]; then
    value="${1#*=}"
    shift
  else
    [ $# -ge 2 ] || die "$1 needs a value; see bash launch/kubernetes.sh --help"
    value="$2"
    shift 2
  fi
  case "$name" in
    --nodes|--gpus|--tpus|--cpus|--port|--max-restarts)
      [[ "$value" =~ ^[0-9]+$ ]] || die "$name=$value must be a number" ;;
    --tpu-type|--tpu-topology|--image|--runs-claim|--data-claim|--data-bucket|--namespace|--tolerate)
      [[ "$value" =~ ^[A-Za-z0-9._:/@-]+$ ]] || die "$name=$value: a name was expected" ;;
    --shm|--memory) [[ "$value" =~ ^[0-9]+[KMGT]i?$ ]] || die "$name=$value: a size such as 64Gi was expected" ;;
  esac
  case "$name" in
    --image) IMAGE="$value" ;;
    --runs-claim) RUNS_CLAIM="$value" ;;
    --data-claim) data_claim="$value" ;;
    --data-bucket) data_bucket="$value" ;;
    --nodes) [ "$value" -gt 0 ] || die "--nodes=$value must be at least 1"; NODES="$value" ;;
    --gpus) gpus="$value" ;;
    --tpus) tpus="$value" ;;
    --tpu-type) tpu_type="$value" ;;
    --tpu-topology) tpu_topology="$value" ;;
    --cpus) cpus="$value" ;;
    --memory) memory="$value" ;;
    --shm) SHM="$value" ;;
    --node)
      [[ "$value" == *=* ]] || die "--node=$value: KEY=VALUE was expected"
      selectors+=("$(json "${value%%=*}"): $(json "${value#*=}")") ;;
    --tolerate) taints+=("{key: $(json "$value"), operator: Exists}") ;;
    --port) PORT="$value" ;;
    --max-restarts) MAX_RESTARTS="$value" ;;
    --namespace) kubectl+=("--namespace=$value") ;;
    *) die "unknown option $name; see bash launch/kubernetes.sh --help" ;;
  esac
done
[ $# -ge 1 ] || die "NAME is needed; see bash launch/kubernetes.sh --help"
NAME="$1"
shift
# Pods are called NAME-workers-0-N, and what is longer than 63 characters is no host name.
[[ "$NAME" =~ ^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$ ]] \
  || die "NAME=$NAME must be at most 42 of a-z, 0-9 and -, with a letter first and no - last"
need_kubectl() { command -v kubectl >/dev/null || die "there is no kubectl on PATH"; }

if [ "$task" != create ]; then
  [ $# -eq 0 ] || die "--$task takes NAME only, not $*"
  case "$task" in
    logs) command=(logs --follow --prefix --tail=-1 --max-log-requests=64
                   --selector="app.kubernetes.io/instance=$NAME") ;;
    delete) command=(delete "job,jobset" --selector="app.kubernetes.io/instance=$NAME")
      if [ -z "$dry_run" ] && need_kubectl && ! "${kubectl[@]}" get jobsets >/dev/null 2>&1; then
        command[1]=job  # no JobSet in this cluster
      fi ;;
  esac
  if [ -n "$dry_run" ]; then
    quoted "${kubectl[@]}" "${command[@]}"
    echo
    exit
  fi
  need_kubectl
  exec "${kubectl[@]}" "${command[@]}"
fi

[ $# -ge 1 ] || die "CONFIG is needed; see bash launch/kubernetes.sh --help"
[ -n "$IMAGE" ] || die "--image is needed: launch/README.md tells how to build one"
[ -n "$RUNS_CLAIM" ] || die "--runs-claim is needed: checkpoints must outlive a pod"
[[ "$gpus" = 0 || "$tpus" = 0 ]] || die "--gpus and --tpus: one of the two"
[[ -z "$data_claim" || -z "$data_bucket" ]] || die "--data-claim and --data-bucket: one of the two"
if [ "$tpus" != 0 ]; then
  [[ -n "$tpu_type" && -n "$tpu_topology" ]] || die "--tpus needs --tpu-type and --tpu-topology"
  selectors+=("$(json cloud.google.com/gke-tpu-accelerator): $(json "$tpu_type")"
              "$(json cloud.google.com/gke-tpu-topology): $(json "$tpu_topology")")
  taints+=("{key: google.com/tpu, operator: Exists}")
fi
if [ "$gpus" != 0 ]; then taints+=("{key: nvidia.com/gpu, operator: Exists}"); fi

# joined WORD...: with commas between.
joined() {
  local word list=""
  for word in "$@"; do list+="$word, "; done
  printf '%s' "${list%, }"
}
requests=() limits=() ANNOTATIONS="" SET_ANNOTATIONS="" DATA_MOUNT="" DATA_VOLUME=""
if [ -n "$cpus" ]; then requests+=("cpu: $cpus"); fi
if [ -n "$memory" ]; then requests+=("memory: $memory") limits+=("memory: $memory"); fi
if [ "$gpus" != 0 ]; then limits+=("nvidia.com/gpu: $gpus"); fi
if [ "$tpus" != 0 ]; then
  limits+=("google.com/tpu: $tpus")
  SET_ANNOTATIONS="alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool"  # a slice for itself
fi
if [ -n "$data_claim$data_bucket" ]; then DATA_MOUNT="- {name: data, mountPath: /data, readOnly: true}"; fi
if [ -n "$data_claim" ]; then
  DATA_VOLUME="- {name: data, persistentVolumeClaim: {claimName: $data_claim, readOnly: true}}"
elif [ -n "$data_bucket" ]; then
  ANNOTATIONS='gke-gcsfuse/volumes: "true"'
  DATA_VOLUME="- {name: data, csi: {driver: gcsfuse.csi.storage.gke.io, readOnly: true, volumeAttributes: "
  DATA_VOLUME+="{bucketName: $data_bucket, mountOptions: implicit-dirs}}}"
fi
NODE_SELECTOR="$(joined ${selectors[@]+"${selectors[@]}"})" TOLERATIONS="$(joined ${taints[@]+"${taints[@]}"})"
REQUESTS="$(joined ${requests[@]+"${requests[@]}"})" LIMITS="$(joined ${limits[@]+"${limits[@]}"})"
ARGUMENTS="$(json "--config=$1" "--workdir=/runs/$NAME" "${@:2}")"
if [ "$NODES" = 1 ]; then
  template=job indent="  " BACKOFF_LIMIT="$MAX_RESTARTS" ON_PREEMPTION=Ignore COORDINATOR="value: localhost"
else
  template=jobset indent="        " BACKOFF_LIMIT=0 ON_PREEMPTION=FailJob
  COORDINATOR="valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['jobset.sigs.k8s.io/coordinator']\"}}"
fi
SPEC="$(render launch/templates/job-spec.yaml NODES BACKOFF_LIMIT ON_PREEMPTION NAME ANNOTATIONS NODE_SELECTOR \
  TOLERATIONS IMAGE ARGUMENTS COORDINATOR PORT REQUESTS LIMITS DATA_MOUNT RUNS_CLAIM SHM DATA_VOLUME)"
SPEC="${SPEC//$'\n'/$'\n'$indent}"
manifest="$(render "launch/templates/$template.yaml" NAME SET_ANNOTATIONS MAX_RESTARTS SPEC | sed 's/ *$//')"

if [ -n "$dry_run" ]; then
  printf '%s\n' "$manifest"
  exit
fi
need_kubectl
if ! said="$("${kubectl[@]}" create --filename=- 2>&1 <<<"$manifest")"; then
  case "$said" in
    *AlreadyExists*|*"already exists"*) said="there is a run $NAME; end it with bash launch/kubernetes.sh --delete $NAME" ;;
    *"no matches for kind"*) said="this cluster has no JobSet; its administrator can install the JobSet controller" ;;
  esac
  die "${said//$'\n'/; }"
fi
cat <<TEXT
$said: $NODES process(es), in the folder /runs/$NAME of the claim $RUNS_CLAIM
  what it says             bash launch/kubernetes.sh --logs $NAME
  where it is              ${kubectl[*]} get pods --selector=app.kubernetes.io/instance=$NAME
  save and run again       ${kubectl[*]} delete pod POD
  end it, keep its folder  bash launch/kubernetes.sh --delete $NAME
TEXT
