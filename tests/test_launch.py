"""The launch scripts: what each would run, what it refuses, and what shellcheck says of it."""

import os
import pathlib
import shutil
import subprocess

import pytest

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
    shellcheck(*(f"launch/{script}" for script in [*SCRIPTS, "setup.sh"]), ".ci/run")


# One machine.


def test_train_installs_and_trains():
    assert dry("train.sh", "--extra", "cuda13", CONFIG, "runs/a", "--config.lr=0.1").splitlines() == [
        "setup_environment [cuda13]",
        f".venv/bin/python -m trm_jax.main --config={CONFIG} --workdir=runs/a --config.lr=0.1"]
    assert refused("train.sh", CONFIG) == "CONFIG and WORKDIR are needed; see bash launch/train.sh --help"


def test_test_installs_and_tests():
    assert dry("test.sh", "-m", "slow").splitlines() == [
        "setup_environment [test]", ".venv/bin/python -m pytest -n 2 -m slow"]


def test_quickstart_trains_solves_and_draws():
    out = dry("quickstart.sh", "runs/a")
    for command in ("-m trm_jax.data sudoku --generate", f"-m trm_jax.main --config={CONFIG} --workdir=runs/a",
                    "-m trm_jax.solve --workdir=runs/a", "-m trm_jax.watch --workdir=runs/a"):
        assert command in out
    assert refused("quickstart.sh", "--fast").startswith("unknown option --fast")


def test_stability_trains_every_seed_and_compares():
    lines = dry("stability.sh", "runs/a", "3", "4").splitlines()
    assert [line.count("--config.seed=") for line in lines[-3:]] == [1, 1, 0]
    assert "trm_jax.report runs/a/seed-3 runs/a/seed-4 --min_exact 97.5" in lines[-1]


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
