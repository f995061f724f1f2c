"""The launch scripts: what each would run, what it refuses, and what shellcheck says of it."""

import gzip
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh") if path.name != "setup.sh")
CONFIG = "experiments/rsm_sudoku.py:quick"


def launch(script: str, *arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(ROOT / "launch" / script), *map(str, arguments)], capture_output=True, text=True,
                          timeout=60, env=os.environ | environment)


def dry(script: str, *arguments) -> str:
    done = launch(script, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(script: str, *arguments, **environment) -> str:
    """The one line on standard error of a command that must be refused."""
    done = launch(script, *arguments, **environment)
    assert done.returncode == 2 and done.stdout == "", done
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def shellcheck(*arguments, text: str | None = None) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck (Debian: shellcheck)")
    done = subprocess.run(["shellcheck", "-x", *arguments], cwd=ROOT, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_stops_at_the_first_error_and_tells_how_it_is_used(script):
    assert "\nset -euo pipefail\n" in (ROOT / "launch" / script).read_text()
    done = launch(script, "--help")
    assert done.returncode == 0 and f"bash launch/{script} " in done.stdout and "--dry-run" in done.stdout
    assert "set -euo" not in done.stdout


def test_shellcheck_finds_nothing():
    shellcheck(*(f"launch/{script}" for script in [*SCRIPTS, "setup.sh", "templates/tpu-worker.sh"]), ".ci/run")


# One machine.


def test_train_installs_and_trains():
    assert dry("train.sh", "--extra", "cuda13", CONFIG, "runs/a", "--config.lr=0.1").splitlines() == [
        "setup_environment [cuda13]",
        f".venv/bin/python -m trm_jax.main --config={CONFIG} --workdir=runs/a --config.lr=0.1"]
    assert refused("train.sh", CONFIG) == "CONFIG and WORKDIR are needed; see bash launch/train.sh --help"


def test_test_installs_and_tests():
    assert dry("test.sh", "-m", "slow").splitlines() == [
        "setup_environment [test]", ".venv/bin/python -m pytest -n 2 --dist loadgroup -m slow"]


def test_reproduce_says_what_it_would_do(tmp_path):
    lines = dry("reproduce.sh", "--minutes=8", f"--trm={tmp_path}", f"--data={tmp_path}", "--set=seed=3",
                f"--out={tmp_path / 'out'}").splitlines()
    commands = [line.split("-m trm_jax ")[-1].split(" --")[0] for line in lines]
    assert commands == ["== setup_environment \\[cuda13\\,plot\\]", "bench peaks", *["bench step"] * 4, "bench peers",
                        "compare", "weights", "evaluate", "weights", "evaluate",
                        f"report {tmp_path}/out/evaluate/rsm_sudoku-steady {tmp_path}/out/evaluate/rsm_sudoku"]
    [training] = [line for line in lines if "compare" in line]
    assert "--configs=rsm_sudoku:steady\\,rsm_sudoku --minutes=4 " in training and "--set seed=3" in training
    assert "bench peaks" in dry("reproduce.sh", "--only=peaks") and not list(tmp_path.iterdir())
    assert refused("reproduce.sh", "--only=peaks,all").startswith("--only=all: there are install,data,peaks,")
    assert refused("reproduce.sh", "--minutes=soon") == "--minutes=soon must be a number"
    assert refused("reproduce.sh", "--data=nowhere") == "--data=nowhere: there is no such folder"


def test_quickstart_trains_solves_and_draws():
    out = dry("quickstart.sh", "runs/a")
    for command in (f"-m trm_jax.main --config={CONFIG} --workdir=runs/a", "-m trm_jax solve --workdir=runs/a",
                    "-m trm_jax watch --workdir=runs/a"):
        assert command in out
    assert refused("quickstart.sh", "--fast").startswith("unknown option --fast")


def test_stability_trains_every_seed_and_compares():
    lines = dry("stability.sh", "runs/a", "3", "4").splitlines()
    assert [line.count("--config.seed=") for line in lines[-3:]] == [1, 1, 0]
    assert "trm_jax report runs/a/seed-3 runs/a/seed-4 --min_exact 97.5" in lines[-1]


# Slurm.


def test_slurm_prints_the_batch_script():
    script = dry("slurm.sh", "--nodes", 2, "--gpus-per-node=8", "--partition=gpu", "--time=12:00:00", "--modules",
                 "cuda python", "--port=1234", "--max-restarts=5", CONFIG, "/shared/runs/a", "--config.lr=0.1")
    head = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert head == ["--nodes=2", "--ntasks-per-node=1", "--signal=TERM@120", "--requeue", "--open-mode=append",
                    "--job-name=rsm_sudoku", '--output="/shared/runs/a/slurm-%j.log"', "--gpus-per-node=8",
                    "--partition=gpu", "--time=12:00:00"]
    assert f"  0) workdir=/shared/runs/a run=(--config={CONFIG} --config.lr=0.1) ;;" in script.splitlines()
    assert "\nmodule load cuda python\n" in script and '| head -n 1):1234"\n' in script
    assert '[ "$restarts" -ge 5 ]' in script and "\nprogram=(.venv/bin/python -m trm_jax.main)\n" in script
    shellcheck("-", text=script)


def test_slurm_makes_an_array_of_configs_and_seeds():
    script = dry("slurm.sh", "--seeds", "3-4", f"--configs={CONFIG},experiments/hrm_sudoku.py", "/shared/a b")
    assert "#SBATCH --array=0-3\n" in script and '--output="/shared/a b/slurm-%A_%a.log"' in script
    runs = [line.strip() for line in script.splitlines() if ") workdir=" in line]
    assert runs == [
        rf"0) workdir=/shared/a\ b/rsm_sudoku-quick/seed-3 run=(--config={CONFIG} --config.seed=3) ;;",
        rf"1) workdir=/shared/a\ b/rsm_sudoku-quick/seed-4 run=(--config={CONFIG} --config.seed=4) ;;",
        r"2) workdir=/shared/a\ b/hrm_sudoku/seed-3 run=(--config=experiments/hrm_sudoku.py --config.seed=3) ;;",
        r"3) workdir=/shared/a\ b/hrm_sudoku/seed-4 run=(--config=experiments/hrm_sudoku.py --config.seed=4) ;;"]
    shellcheck("-", text=script)


@pytest.mark.parametrize("image, launcher", [
    ("trm.sif", f"apptainer exec --nv --bind {ROOT}:{ROOT},/shared/a:/shared/a,/data:/data --pwd {ROOT} trm.sif"),
    ("registry#trm:1", f"--container-image=registry#trm:1 --container-mounts={ROOT}:{ROOT},/shared/a:/shared/a,"
                       f"/data:/data --container-workdir={ROOT}")])
def test_slurm_starts_containers(image, launcher):
    script = dry("slurm.sh", "--container", image, "--mounts=/data:/data", CONFIG, "/shared/a").replace("\\,", ",")
    assert f"\nlauncher=({launcher})\n" in script
    assert "\nprogram=(python3 -m trm_jax.main)\n" in script


@pytest.mark.parametrize("arguments, line", [
    ([CONFIG], "CONFIG and WORKDIR are needed; see bash launch/slurm.sh --help"),
    (["--configs=a"], "WORKDIR is needed; see bash launch/slurm.sh --help"),
    (["--nodes=two", CONFIG, "a"], "--nodes=two must be a number"),
    (["--nodes=0", CONFIG, "a"], "--nodes=0 must be at least 1"),
    (["--nodes"], "--nodes needs a value; see bash launch/slurm.sh --help"),
    (["--partition", "gpu", CONFIG, "a"], "--partition: options of sbatch are written --NAME=VALUE; see bash "
                                          "launch/slurm.sh --help"),
    (["--seeds=4-1", CONFIG, "a"], "--seeds=4-1: the first is greater than the last"),
    (["--seeds=1;2", CONFIG, "a"], "--seeds=1;2 must be a range such as 0-9 or a list such as 0,3,7"),
    (["--seeds=1,1", CONFIG, "/a"], "two of the runs would have the folder /a/seed-1"),
    (["experiments/no.py", "a"], f"there is no experiments/no.py in {ROOT}"),
    (["--venv=/none", CONFIG, "a"], "there is no /none/bin/python: bash launch/train.sh --help tells how to make one, "
                                    "--venv names another")])
def test_what_slurm_sh_refuses(arguments, line):
    assert refused("slurm.sh", *arguments) == line


# Kubernetes.

POD = ["--image=registry/trm-jax:1", "--runs-claim=runs"]
TPUS = ["--tpus=4", "--tpu-type=tpu-v5-lite-podslice", "--tpu-topology=2x4"]
JOBSET_SCHEMA = ROOT.parent / "shared" / "clusters" / "jobset-crd.yaml.gz"  # of kubernetes-sigs/jobset, Apache-2.0


def manifest(*options) -> dict:
    return yaml.safe_load(dry("kubernetes.sh", *POD, *options, "rsm", CONFIG, "--config.eval.H_test=(16,64)", 'a"\\b'))


def validate(job: dict) -> None:
    """With the schema of Kubernetes, which knows Jobs, and refuses what it does not know."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed (extra: lint)")
    validator.validate(job, "1.33", strict=True)


def test_one_node_is_a_job():
    job = manifest("--gpus=8", "--data-claim=data", "--node=pool=a100", "--cpus=16", "--memory=64Gi", "--tolerate=spot")
    validate(job)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert job["kind"] == "Job" and (spec["completions"], spec["backoffLimit"]) == (1, 3)
    assert [(rule["action"], rule["onExitCodes"]["values"]) for rule in spec["podFailurePolicy"]["rules"][:2]] == [
        ("FailJob", [1, 2, 130]), ("Ignore", [75])]
    [container] = pod["containers"]
    assert container["args"] == [f"--config={CONFIG}", "--workdir=/runs/rsm", "--config.eval.H_test=(16,64)", 'a"\\b']
    assert container["resources"] == {"requests": {"cpu": 16, "memory": "64Gi"},
                                      "limits": {"memory": "64Gi", "nvidia.com/gpu": 8}}
    assert {v["name"]: v["mountPath"] for v in container["volumeMounts"] if v["name"] != "runs"} == {
        "shm": "/dev/shm", "data": "/data"}
    assert pod["nodeSelector"] == {"pool": "a100"}
    assert [taint["key"] for taint in pod["tolerations"]] == ["spot", "nvidia.com/gpu"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["terminationGracePeriodSeconds"] == 120


def test_several_nodes_are_a_jobset():
    jobset = manifest("--nodes=2", "--data-bucket=puzzles", *TPUS)
    [replicated] = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    validate({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": spec})
    assert jobset["kind"] == "JobSet" and (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (2, 2, 0)
    environment = {v["name"]: v for v in spec["template"]["spec"]["containers"][0]["env"]}
    fields = {name: v["valueFrom"]["fieldRef"]["fieldPath"] for name, v in environment.items() if "valueFrom" in v}
    assert fields == {"JAX_COORDINATOR_HOST": "metadata.annotations['jobset.sigs.k8s.io/coordinator']",
                      "JAX_PROCESS_ID": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"] == "$(JAX_COORDINATOR_HOST):8476"
    assert environment["JAX_NUM_PROCESSES"]["value"] == "2"
    # What jobs say of why they failed, and what is done then: the first rule that fits.
    rules = jobset["spec"]["failurePolicy"]["rules"]
    for message, action in (
            ("Container trm-jax for pod n/p failed with exit code 2 matching FailJob rule at index 0", "FailJobSet"),
            ("Container trm-jax for pod n/p failed with exit code 75 matching FailJob rule at index 1",
             "RestartJobSetAndIgnoreMaxRestarts"),
            ("Pod n/p has condition DisruptionTarget matching FailJob rule at index 2",
             "RestartJobSetAndIgnoreMaxRestarts")):
        fits = [rule for rule in rules if any(re.search(pattern, message) for pattern in rule.get(
            "onJobFailureMessagePatterns", [""]))]
        assert fits[0]["action"] == action
    assert all(rule["onJobFailureReasons"] == ["PodFailurePolicy"] for rule in rules)


@pytest.mark.skipif(not JOBSET_SCHEMA.exists(), reason="the schema of JobSet is not beside the project, in ../shared")
def test_a_jobset_fits_its_schema():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra: lint)")
    [version] = yaml.safe_load(gzip.decompress(JOBSET_SCHEMA.read_bytes()))["spec"]["versions"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    for options in (TPUS, ["--gpus=8", "--data-claim=data"]):
        jsonschema.validate(manifest("--nodes=2", *options), schema)
    wrong = manifest("--nodes=2")
    wrong["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(wrong, schema)


def closed(schema):
    """A schema of a custom resource that refuses fields that it does not name, as the server does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(item) for name, item in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if isinstance(schema.get("properties"), dict) and schema.get("properties") and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


KUBECTL = """\
#!/usr/bin/env bash
echo "$*" >>"$0.calls"
case "$*" in
  *"get jobsets"*) exit 1 ;;
  *create*) cat >"$0.stdin"; echo "jobset.jobset.x-k8s.io/rsm created" ;;
esac
"""


def stand_in(folder: pathlib.Path, name: str, script: str) -> str:
    """A program of that name on a PATH, which is returned."""
    program = folder / name
    program.write_text(script)
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_kubectl_is_given_the_manifest_and_asked_for_logs(tmp_path):
    path = stand_in(tmp_path, "kubectl", KUBECTL)
    done = launch("kubernetes.sh", *POD, "--nodes=2", "--namespace=ml", "rsm", CONFIG, PATH=path)
    assert done.returncode == 0 and "bash launch/kubernetes.sh --logs rsm" in done.stdout, done
    assert (tmp_path / "kubectl.stdin").read_text() == dry("kubernetes.sh", *POD, "--nodes=2", "rsm", CONFIG)
    assert launch("kubernetes.sh", "--logs", "rsm", PATH=path).returncode == 0
    assert launch("kubernetes.sh", "--delete", "--namespace=ml", "rsm", PATH=path).returncode == 0
    assert (tmp_path / "kubectl.calls").read_text().splitlines() == [
        "--namespace=ml create --filename=-",
        "logs --follow --prefix --tail=-1 --max-log-requests=64 --selector=app.kubernetes.io/instance=rsm",
        "--namespace=ml get jobsets",
        "--namespace=ml delete job --selector=app.kubernetes.io/instance=rsm"]
    assert dry("kubernetes.sh", "--delete", "rsm") == (
        r"kubectl delete job\,jobset --selector=app.kubernetes.io/instance=rsm" + "\n")


@pytest.mark.parametrize("said, line", [
    ('Error from server (AlreadyExists): jobs.batch "rsm" already exists',
     "there is a run rsm; end it with bash launch/kubernetes.sh --delete rsm"),
    ('no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"',
     "this cluster has no JobSet; its administrator can install the JobSet controller"),
    ("The connection was refused\nis the port right?", "The connection was refused; is the port right?")])
def test_what_kubectl_refuses_is_one_line(tmp_path, said, line):
    path = stand_in(tmp_path, "kubectl", f"#!/usr/bin/env bash\ncat >/dev/null\necho '{said}' >&2\nexit 1\n")
    assert refused("kubernetes.sh", *POD, "rsm", CONFIG, PATH=path) == line


@pytest.mark.parametrize("arguments, line", [
    ([], "NAME is needed; see bash launch/kubernetes.sh --help"),
    ([*POD, "rsm"], "CONFIG is needed; see bash launch/kubernetes.sh --help"),
    (["--runs-claim=runs", "rsm", CONFIG], "--image is needed: launch/README.md tells how to build one"),
    (["--image=a", "rsm", CONFIG], "--runs-claim is needed: checkpoints must outlive a pod"),
    (["--runs-claim=a b", "rsm", CONFIG], "--runs-claim=a b: a name was expected"),
    ([*POD, "--gpus=1", "--tpus=4", "rsm", CONFIG], "--gpus and --tpus: one of the two"),
    ([*POD, "--tpus=4", "rsm", CONFIG], "--tpus needs --tpu-type and --tpu-topology"),
    ([*POD, "--memory=lots", "rsm", CONFIG], "--memory=lots: a size such as 64Gi was expected"),
    ([*POD, "--nodes=0", "rsm", CONFIG], "--nodes=0 must be at least 1"),
    ([*POD, "--helm=x", "rsm", CONFIG], "unknown option --helm; see bash launch/kubernetes.sh --help"),
    ([*POD, "Rsm", CONFIG], "NAME=Rsm must be at most 42 of a-z, 0-9 and -, with a letter first and no - last"),
    (["--logs", "rsm", "more"], "--logs takes NAME only, not more")])
def test_what_kubernetes_sh_refuses(arguments, line):
    assert refused("kubernetes.sh", *arguments) == line


# The image.


def test_hadolint_finds_nothing_in_the_dockerfile():
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(pathlib.Path(sys.executable).parent))
    if not hadolint:
        pytest.skip("no hadolint (extra: lint)")
    done = subprocess.run([hadolint, "launch/Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or not (shutil.which("buildah") and shutil.which("mmdebstrap")),
                    reason="needs root, buildah and mmdebstrap")
def test_the_image_for_the_cpu_describes_a_config(tmp_path):
    def buildah(*arguments, **more) -> str:
        storage = ["--storage-driver=vfs", f"--root={tmp_path}/root", f"--runroot={tmp_path}/run"]
        done = subprocess.run(["buildah", *storage, *arguments], cwd=ROOT, capture_output=True, text=True, **more)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout.strip()

    packages = "python3,python3-venv,ca-certificates"
    pip = [line for line in ("/etc/pip.conf", os.path.expanduser("~/.config/pip/pip.conf")) if os.path.exists(line)]
    base = tmp_path / "base"
    made = subprocess.run(["mmdebstrap", "--variant=minbase", f"--include={packages}", "--aptopt=Acquire::Check-Valid-"
                           "Until false", platform.freedesktop_os_release()["VERSION_CODENAME"], str(base)],
                          capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-3000:]
    for file in pip:  # the package registry of this machine, and whom this machine trusts
        shutil.copy(file, base / "etc" / "pip.conf")
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", base / "etc" / "ssl" / "certs")
    container = buildah("from", "scratch")
    buildah("add", container, str(base), "/")
    buildah("commit", container, "base")
    buildah("bud", "--isolation=chroot", "--network=host", "--build-arg=BASE=base", "--file=launch/Dockerfile",
            "--tag=trm-jax:cpu", ".")
    settings = json.loads(buildah("inspect", "--type=image", "trm-jax:cpu"))["OCIv1"]["config"]
    assert settings["User"] == "1000:1000" and settings["Entrypoint"] == ["python", "-m"]
    container = buildah("from", "trm-jax:cpu")
    out = buildah("run", "--isolation=chroot", container, "--", "python", "-m", "trm_jax.main", f"--config={CONFIG}",
                  "--mode=describe")
    assert "parameters" in out
    assert buildah("run", "--isolation=chroot", container, "--", "id", "-u") == "1000"
