"""launch/slurm.sh on a real Slurm of two nodes: runs of two processes that are preempted, killed, or refused."""

import os
import pathlib
import re
import signal
import sys
import time

import pytest

from tests import slurm as slurm_lib
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.skipif(bool(slurm_lib.missing()), reason=slurm_lib.missing()),
              pytest.mark.xdist_group("slurm")]  # one cluster for all of them
STEPS = 300


@pytest.fixture(scope="module")
def slurm():
    with slurm_lib.cluster() as up:
        up.environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
                           "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"}
        yield up


@pytest.fixture(scope="module")
def e(tmp_path_factory):
    data = tiny.make_dataset(tmp_path_factory.mktemp("data") / "sudoku4")
    return tiny.experiment(data, total_steps=STEPS, checkpoint={"interval_steps": 50}, data={"augment": True})


@pytest.fixture(scope="module")
def config(e, tmp_path_factory):
    return tiny.config_file(tmp_path_factory.mktemp("config"), e)


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    """A folder that looks like a virtual environment and runs this Python."""
    folder = tmp_path_factory.mktemp("venv")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def submit(slurm, venv):
    def submit(*arguments, check=True):
        done = slurm.run("bash", ROOT / "launch" / "slurm.sh", "--nodes=2", f"--venv={venv}", *arguments, check=False)
        if not check:
            return done
        assert done.returncode == 0, done.stderr
        [job] = re.findall(r"^submitted job (\d+):", done.stdout)
        return job
    return submit


@pytest.fixture(scope="module")
def uninterrupted(slurm, submit, config, tmp_path_factory):
    """The folder of a job array of two seeds."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    job = submit("--seeds=0-1", config, folder)
    for task in (0, 1):
        assert slurm.wait(f"{job}_{task}", "COMPLETED", "FAILED") == "COMPLETED", logs(folder)
    return folder


def logs(folder) -> str:
    return "\n".join(f"-- {log}\n{log.read_text()}" for log in sorted(folder.rglob("slurm-*.log")))


def until_step(workdir, step: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not (workdir / "metrics.jsonl").exists() or len((workdir / "metrics.jsonl").read_text().splitlines()) < step:
        assert time.monotonic() < end, logs(workdir)
        time.sleep(0.02)


def test_a_job_array_trains_each_seed_on_two_nodes(uninterrupted, e):
    states = [tiny.final_state(e, uninterrupted / f"seed-{seed}") for seed in (0, 1)]
    assert [int(state.step) for state in states] == [STEPS] * 2


def processes(workdir) -> dict[str, int]:
    """JAX_PROCESS_ID -> process id, of the processes that train in `workdir`."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if f"--workdir={workdir}" in words and words[0] == sys.executable:
                [index] = re.findall(r"\0JAX_PROCESS_ID=(\d+)", (folder / "environ").read_text())
                found[index] = int(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_a_killed_process_ends_all_and_the_run_continues_to_the_same_bits(slurm, submit, config, e, uninterrupted,
                                                                        tmp_path):
    job = submit(config, tmp_path)
    until_step(tmp_path, 60)
    os.kill(processes(tmp_path)["1"], signal.SIGKILL)
    assert slurm.wait(job, "COMPLETED", "FAILED") == "COMPLETED", logs(tmp_path)
    assert slurm.job(job)["Restarts"] == "1"
    said = logs(tmp_path)
    assert "exit code 137, step 50" in said and "start 2: from step 50" in said and "continues from step 50" in said
    tiny.assert_identical(tiny.final_state(e, tmp_path), tiny.final_state(e, uninterrupted / "seed-0"))


def test_a_preempted_run_saves_and_continues_to_the_same_bits(slurm, submit, config, e, uninterrupted, tmp_path):
    job = submit(config, tmp_path)
    until_step(tmp_path, 60)
    slurm.run("scancel", "--signal=TERM", job)
    assert slurm.wait(job, "COMPLETED", "FAILED") == "COMPLETED", logs(tmp_path)
    assert slurm.job(job)["Restarts"] == "1"
    [step] = re.findall(r"exit code 75, step (\d+)\n", logs(tmp_path))
    assert int(step) >= 60 and f"continues from step {step};" in logs(tmp_path)
    tiny.assert_identical(tiny.final_state(e, tmp_path), tiny.final_state(e, uninterrupted / "seed-0"))


def test_a_users_fault_is_not_run_again(slurm, submit, config, tmp_path):
    job = submit(config, tmp_path, "--config.data.path=/none", "--make_data=False")
    assert slurm.wait(job, "COMPLETED", "FAILED") == "FAILED"
    assert slurm.job(job)["Restarts"] == "0" and slurm.job(job)["ExitCode"] == "2:0"
    assert "error: there is no dataset folder /none" in logs(tmp_path)


def test_a_cancelled_job_stays_cancelled(slurm, submit, config, tmp_path):
    job = submit(config, tmp_path)
    until_step(tmp_path, 1)
    slurm.run("scancel", job)
    time.sleep(4)
    assert slurm.wait(job, "CANCELLED", "COMPLETED") == "CANCELLED"


def test_what_slurm_refuses(slurm, submit, config, tmp_path):
    for option, why in (("--partition=none", "nvalid partition name specified; partitions: debug"),
                        ("--nodes=4", "ode"), ("--gpus-per-node=8", "eneric resource")):
        done = submit("--test-only", option, config, tmp_path / "run", check=False)
        assert done.returncode == 2 and re.search(f"^error: Slurm refuses the job: .*{why}.*$", done.stderr, re.M), done
        assert not (tmp_path / "run").exists()
    done = submit("--test-only", config, tmp_path / "run", "--config.global_batch_size=15", check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: global_batch_size=15 must be a multiple of the num")
    done = submit("--test-only", config, tmp_path / "run", check=False)
    assert done.returncode == 0 and "to start at" in done.stdout, done
