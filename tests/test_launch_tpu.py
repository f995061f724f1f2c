"""launch/tpu.sh against a stand-in of gcloud, whose workers are folders of this machine."""

import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import time

import pytest

from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = "experiments/rsm_sudoku.py:quick"
SLICE = ["--type=v5litepod-16", "--spot", "--zone=a", "--share=10.0.0.2:/shared"]

# Two workers. The state of the slice is a file; each command is recorded; ssh runs the command once for each worker,
# in a folder of its own, and fails if one fails.
GCLOUD = """\
#!{python}
import os, pathlib, shlex, shutil, subprocess, sys
here = pathlib.Path(__file__).parent
words = [word for word in sys.argv[1:] if not word.startswith("--")]
options = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
with (here / "calls").open("a") as calls:
    print(shlex.join(sys.argv[1:]), file=calls)
state = here / "state"
match words[2:]:
    case ["queued-resources", "create", name]:
        assert not state.exists()
        state.write_text("ACTIVE")
    case ["queued-resources", "delete", name]:
        state.unlink()
        for worker in here.glob("worker-*"):
            shutil.rmtree(worker)
    case ["queued-resources", "describe", name]:
        if not state.exists():
            sys.exit("ERROR: NOT_FOUND")
        print(state.read_text())
    case ["tpu-vm", "describe", name]:
        print("127.0.0.1;127.0.0.2")
    case ["tpu-vm", ("ssh" | "scp") as what, *paths]:
        failed = 0
        for i in range(2) if options["worker"] == "all" else [int(options["worker"])]:
            home = here / f"worker-{{i}}"
            home.mkdir(exist_ok=True)
            if what == "scp":
                shutil.copy(paths[0], home)
            else:
                failed |= subprocess.run(["bash", "-c", options["command"]], cwd=home, env=os.environ | {{
                    "HOME": str(home), "WORKER": str(i), "PATH": f"{{here}}/vm:{{os.environ['PATH']}}"}}).returncode
        sys.exit(failed)
    case _:
        sys.exit(f"unexpected: {{sys.argv}}")
"""
# What a worker has: the number of it from the metadata server, no packages to install, and this Python for its own.
VM = {"curl": "#!/bin/sh\necho $WORKER\n", "sudo": "#!/bin/sh\n", "mountpoint": "#!/bin/sh\n",
      "python3.11": "", "python3": """\
#!/bin/sh
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip "*) ;;
  *) exec {python} "$@" ;;
esac
"""}


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """The folder of the stand-in, which is on PATH: calls, state, worker-0, worker-1."""
    (tmp_path / "vm").mkdir()
    for name, text in {"gcloud": GCLOUD, **{f"vm/{name}": text or VM["python3"] for name, text in VM.items()}}.items():
        (tmp_path / name).write_text(text.replace("{python}", sys.executable) if name != "gcloud"
                                     else text.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0")
    return tmp_path


def tpu(*arguments, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(["bash", str(ROOT / "launch" / "tpu.sh"), *map(str, arguments)], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == code, done
    return done


def calls(cloud) -> list[list[str]]:
    return [shlex.split(line)[2:] for line in (cloud / "calls").read_text().splitlines()]


def test_what_each_command_asks_of_gcloud(cloud):
    (cloud / "puzzles").write_text("")
    tpu("create", *SLICE, "--project=p", "rsm")
    out = tpu("stage", "--dry-run", "--zone=a", "rsm", "gs://bucket/sudoku", "/mnt/shared/data").stdout
    assert shlex.split(out) == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "rsm", "--worker=0", "--command=mkdir -p "
                                "/mnt/shared/data && gcloud storage cp --recursive gs://bucket/sudoku /mnt/shared/data",
                                "--zone=a"]
    tpu("stage", "rsm", cloud / "puzzles", cloud / "data")
    tpu("delete", "--zone=a", "rsm")
    assert calls(cloud) == [
        ["queued-resources", "create", "rsm", "--zone=a", "--project=p", "--node-id=rsm",
         "--accelerator-type=v5litepod-16", "--runtime-version=tpu-ubuntu2204-base", "--spot", "--quiet"],
        ["tpu-vm", "ssh", "rsm", "--worker=0", f"--command=mkdir -p {cloud}/data"],
        ["tpu-vm", "scp", "--recurse", str(cloud / "puzzles"), f"rsm:{cloud}/data", "--worker=0", "--quiet"],
        ["queued-resources", "delete", "rsm", "--zone=a", "--force", "--quiet"]]


def test_a_dry_run_asks_nothing(cloud):
    out = tpu("resume", "--dry-run", *SLICE, "rsm", CONFIG, "/mnt/shared/a", "--config.eval.H_test=(16,64)").stdout
    commands = [shlex.split(line) for line in out.splitlines()]
    assert [command[3:5] for command in commands] == [["queued-resources", "create"], *[["tpu-vm", what] for what in (
        "scp", "ssh", "ssh", "describe", "ssh")]]
    [start] = [word for word in commands[-1] if word.startswith("--command=")]
    assert shlex.split(start.removeprefix("--command=")) == [
        "bash", "trm_jax/launch/templates/tpu-worker.sh", "start", "rsm", "8476", "ADDRESSES", "/mnt/shared/a",
        f"--config={CONFIG}", "--config.eval.H_test=(16,64)"]
    assert not (cloud / "calls").exists()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(ready, what, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


@pytest.mark.slow
def test_a_slice_that_is_taken_away_is_asked_for_again_and_the_run_goes_on(cloud):
    e = tiny.experiment(tiny.make_dataset(cloud / "data"), total_steps=200, checkpoint={"interval_steps": 20})
    work = cloud / "run"
    resume = ["resume", *SLICE, f"--port={free_port()}", "rsm", tiny.config_file(cloud, e), work]

    def said() -> str:
        return "\n".join(log.read_text() for log in sorted(work.glob("*.log")))

    def state() -> list[str]:
        return tpu("status", "rsm").stdout.split("\n")[1:-1]

    try:
        assert tpu(*resume, code=75).stderr == "rsm: asking for a slice\n"
        assert "rsm: starting\n" in tpu(*resume, code=75).stderr
        assert tpu(*resume, code=75).stderr == "rsm: running\n" and state() == ["running"] * 2
        until(lambda: list((work / "checkpoints").glob("[1-9]*[0-9]")), said)
        for process in pids(cloud):  # the machines go, and with them all that is on their disks
            os.kill(process, 9)
        until(lambda: len(list(cloud.glob("worker-*/.trm_jax.rsm.code"))) == 2, said)  # nothing writes there any more
        (cloud / "state").write_text("SUSPENDED")
        assert "taken away (SUSPENDED)" in tpu(*resume, code=75).stderr
        assert "rsm: starting\n" in tpu(*resume, code=75).stderr
        until(lambda: all(line.startswith("ended") for line in state()), said)
        assert state() == ["ended 0"] * 2, said()
        assert tpu(*resume).stderr == "rsm: ended with 0\n"
    finally:
        for process in pids(cloud):
            os.kill(process, 9)
    assert re.search(r"continues from step \d+0;", said())
    assert (work / "eval" / "step_200.json").exists()


def pids(cloud) -> list[int]:
    found = [int(file.read_text()) for file in cloud.glob("worker-*/.trm_jax.rsm.pid")]
    return [pid for pid in found if pathlib.Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("codes, ends, what", [
    ((0, 0), 0, "ended with 0"), ((75, 2), 2, "ended with 2"), ((75, 137), 75, "preempted: starting again"),
    ((0, 75), 75, "preempted: starting again"), ((130, 75), 130, "ended with 130")])
def test_exit_codes_say_whether_it_is_started_again(cloud, codes, ends, what):
    (cloud / "state").write_text("ACTIVE")
    for i, code in enumerate(codes):
        worker = cloud / f"worker-{i}"
        (worker / "trm_jax" / "launch" / "templates").mkdir(parents=True)
        for file in ("setup.sh", "templates/tpu-worker.sh"):
            (worker / "trm_jax" / "launch" / file).write_text((ROOT / "launch" / file).read_text())
        (worker / ".trm_jax.rsm.code").write_text(str(code))
    assert what in tpu("resume", *SLICE, "rsm", CONFIG, cloud / "run", code=ends).stderr
    started = any("start rsm" in word for call in calls(cloud) for word in call)
    assert started == (ends == 75)


@pytest.mark.parametrize("arguments, line", [
    (["run", "rsm"], "'run' is not one of create, install, stage, start, status, logs, stop, delete, resume"),
    (["create", "rsm"], "--type is needed, such as v5litepod-16"),
    (["create", "--type=a"], "NAME is needed; see bash launch/tpu.sh --help"),
    (["start", "rsm", CONFIG], "CONFIG and WORKDIR are needed; see bash launch/tpu.sh --help"),
    (["install", "--share=/mnt", "rsm"], "--share=/mnt: HOST:/PATH was expected"),
    (["delete", "rsm", "more"], "delete takes NAME only, not more"),
    (["delete", "Rsm"], "NAME=Rsm must be of a-z, 0-9 and -, with a letter first"),
    (["stage", "rsm", "/none", "/mnt/shared/a"], "there is no /none"),
    (["delete", "--force=1", "rsm"], "unknown option --force; see bash launch/tpu.sh --help")])
def test_what_tpu_sh_refuses(arguments, line):
    assert tpu(*arguments, code=2).stderr == f"error: {line}\n"
