"""launch/reproduce.sh from end to end on a CPU, at tiny sizes, offline, killed in the middle of training."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from tests import tiny
from trm_jax import puzzles

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = {
    "arch.hidden_size": 16, "arch.mlp_hidden_size": 16, "arch.mixer_hidden_size": 16, "arch.puzzle_emb_ndim": 16,
    "arch.puzzle_emb_len": 1, "arch.forward_dtype": "float32", "global_batch_size": 8, "lr_warmup_steps": 2,
    "curriculum_milestones": "", "curriculum_heads_to_add": "", "curriculum_L_milestones": "",
    "curriculum_L_to_add": "", "eval.H_test": "1,2", "eval.batch_size": 8}


def wheel(folder: pathlib.Path) -> None:
    """A package that nothing needs."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "carried-1.0-py3-none-any.whl", "w") as file:
        info = "carried-1.0.dist-info"
        file.writestr("carried.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_the_whole_path_with_a_kill(tmp_path):
    wheel(tmp_path / "wheels")
    tiny.make_dataset(tmp_path / "data", train=32, test=8, domain=puzzles.get("sudoku"))
    out, results = tmp_path / "out", tmp_path / "results"
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": flags,
                                "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "launch" / "reproduce.sh"), "--minutes=0.2", f"--wheels={tmp_path / 'wheels'}",
               f"--data={tmp_path / 'data'}", f"--out={out}", f"--results={results}", "--examples=8",
               *(f"--set={name}={value}" for name, value in TINY.items())]
    first = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    begun = out / "train" / "rsm_sudoku-steady" / "seed0" / "metrics.jsonl"
    while not (begun.exists() and begun.stat().st_size) and first.poll() is None:
        time.sleep(0.1)
    assert first.poll() is None, "ended before it trained"
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    kept = {file: file.stat().st_mtime_ns for file in out.glob("*.txt")}
    assert {file.name for file in kept} >= {"install.txt", "peaks.txt", "step-rsm_sudoku.txt", "profile-rsm_sudoku.txt"}

    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "bench peaks" not in done.stdout and "compare" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "what was done is not done again"
    assert (out / "site" / "carried.py").exists()
    found = {file.name: json.loads(file.read_text()) for file in results.glob("gpu-*.json")}
    assert set(found) == {f"gpu-{name}.json" for name in (
        "peaks", "step-rsm_sudoku", "step-trm_mlp_sudoku", "profile-rsm_sudoku", "profile-trm_mlp_sudoku", "training",
        "evaluation-rsm_sudoku", "evaluation-rsm_sudoku-steady")}
    assert set(found["gpu-training.json"]["systems"]) == {"rsm_sudoku", "rsm_sudoku:steady"}
    for name in ("rsm_sudoku", "rsm_sudoku-steady"):
        evaluation = found[f"gpu-evaluation-{name}.json"]
        assert [f["H_test"] for f in evaluation["figures"]] == [1, 2] and evaluation["solved"]["restarts"] == 8
        assert evaluation["weights"]["dtype"] == "bfloat16" and (out / "weights" / f"{name}.safetensors").exists()
    text = (results / "gpu.md").read_text()
    for words in ("peaks measured on", "one training step, batch 8", "limited by", "| rsm_sudoku:steady ",
                  "exact % at H"):
        assert words in text
