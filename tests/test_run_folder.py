"""A run's folder is all that it takes to use the run, and one process at a time continues it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import tiny
from trm_jax import config
from trm_jax.data import dataset
from trm_jax.data.arc_build import load_test_puzzles
from trm_jax.data.dataset import DatasetError
from trm_jax.inference.solver import Solver
from trm_jax.jobs import evaluate, train
from trm_jax.runtime import distributed, files
from trm_jax.runtime.checkpoints import CheckpointError
from trm_jax.training import run_folder
from trm_jax.weights import weights_file

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "d44ac6a"
PUZZLE = "1...3412....4321"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A run's folder and its dataset as the version of commit d44ac6a left them in the current folder: a checkpoint of
    step 4 of 8, and the metrics of 7 steps; and the weights that it had in the end when it was not interrupted."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return config.parse(run_folder.read_config("run"))


def test_an_older_run_resumes_and_ends_where_it_would_have(old):
    result = train.train(old, "run")
    lines = [json.loads(line) for line in pathlib.Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    theirs, ours = weights_file.load("whole.safetensors"), weights_file.from_run("run")
    assert theirs.metadata["step"] == ours.metadata["step"] == result["step"] == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), theirs.weights, ours.weights)
    assert json.loads(pathlib.Path("run/data.json").read_text())["shape"]["seq_len"] == 16


def test_an_older_run_is_evaluated_and_solves_through_its_dataset(old):
    result = evaluate.evaluate(old, "run", lambda line: None)
    before = json.loads(pathlib.Path("run/eval/step_4.json").read_text())
    assert result["step"] == 4
    for now, then in zip(result["figures"], before["figures"], strict=True):
        assert now["exact_accuracy"] == then["exact_accuracy"] and now["n"] == then["n"]
    assert len(Solver.load("run").solve([PUZZLE])[0].text) == 16
    shutil.rmtree("data")
    with pytest.raises(DatasetError, match="there is no dataset folder data"):
        Solver.load("run")


def test_an_older_weights_file_loads(old):
    shutil.rmtree("data")
    export = weights_file.load("whole.safetensors")
    assert export.metadata["step"] == 8 and export.shape.seq_len == 16
    assert len(Solver.of(export).solve([PUZZLE])[0].text) == 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of a run, folder of its dataset)."""
    root = tmp_path_factory.mktemp("run")
    data = tiny.make_dataset(root / "data")
    train.train(tiny.experiment(data, total_steps=2), root / "run")
    return root / "run", data


@pytest.fixture
def moved(run, tmp_path):
    """Copies of both."""
    return shutil.copytree(run[0], tmp_path / "run"), shutil.copytree(run[1], tmp_path / "data")


def test_a_moved_run_solves_and_is_packed_and_watched_without_its_dataset(run, tmp_path, monkeypatch):
    at_home = weights_file.from_run(run[0])
    shutil.copytree(run[0], tmp_path / "elsewhere")
    monkeypatch.setattr(dataset, "load", None)  # nothing reads it
    export = weights_file.from_run(tmp_path / "elsewhere")
    assert (export.shape, export.puzzle) == (at_home.shape, at_home.puzzle)
    assert export.metadata == at_home.metadata and export.metadata["evaluation"]["step"] == 2
    tiny.assert_identical(export.weights, at_home.weights)
    weights_file.save(tmp_path / "packed.safetensors", export)
    solver = Solver.load(tmp_path / "elsewhere")
    assert len(solver.solve([PUZZLE])[0].text) == 16 and len(solver.trace(PUZZLE, 3).tokens) == 3


def test_a_moved_arc_run_answers_without_its_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.arc_dataset("data")
    tasks = load_test_puzzles("data")
    e = tiny.experiment("data", data={"puzzle": "arc"}, global_batch_size=8, total_steps=1,
                        arch={"mixer_hidden_size": 4, "mlp_hidden_size": 8}, eval={"H_test": [1], "batch_size": 8})
    train.train(e, "run")
    names = dataset.load_identifiers("data")
    shutil.move("run", "elsewhere")
    shutil.rmtree("data")
    solver = Solver.load("elsewhere")
    assert weights_file.from_run("elsewhere").identifiers == names and set(tasks) <= set(solver.tasks)
    name = next(iter(tasks))
    answer, = solver.solve([{"id": name, **tasks[name]}])
    assert len(answer.attempts) == len(tasks[name]["test"])


def test_an_exchanged_dataset_is_refused_with_both_unless_told(moved):
    workdir, data = moved
    e = tiny.experiment(data, total_steps=4)
    raw = json.loads((workdir / "data.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config.to_json(e)))
    (workdir / "data.json").write_text(json.dumps(raw | {"total_steps": 4}))
    shutil.rmtree(data)
    tiny.make_dataset(data, seed=1)
    was, now = raw["dataset"], {split: dataset.fingerprint(data, split) for split in ("train", "test")}
    with pytest.raises(CheckpointError) as caught:
        train.train(e, workdir)
    assert f"dataset: the run has {was!r}, now {now!r}" in str(caught.value)
    assert "data.exchanged=True" in str(caught.value) and was["train"] != now["train"]
    told = config.with_fields(e, {"data.exchanged": True})
    assert train.train(told, workdir)["step"] == 4
    assert json.loads((workdir / "data.json").read_text())["dataset"] == now


def test_evaluation_on_other_puzzles_of_the_kind_and_not_of_another(moved, tmp_path):
    workdir, _ = moved
    other = tiny.make_dataset(tmp_path / "other", seed=2)
    e = tiny.experiment(other, total_steps=2)
    assert evaluate.evaluate(e, workdir, lambda line: None)["dataset"] == str(other)
    larger = tiny.make_dataset(tmp_path / "larger", train=20, domain=tiny.puzzles.get("sudoku", box_rows=2, box_cols=3))
    with pytest.raises(DatasetError, match="cannot be evaluated on this dataset: .*seq_len is 36, the run's 16"):
        evaluate.evaluate(tiny.experiment(larger, total_steps=2), workdir, lambda line: None)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[" * 3000,
                                     '{"puzzle": {"name": "chess"}, "shape": {}, "total_steps": 1}',
                                     '{"puzzle": {"name": "sudoku", "seq_len": 16}, "shape": {"seq_len": 16, '
                                     '"vocab_size": 6, "num_puzzle_identifiers": 1}, "total_steps": -1}'])
def test_a_damaged_data_json_is_one_line(moved, content):
    (moved[0] / "data.json").write_text(content)
    with pytest.raises(CheckpointError, match=str(moved[0] / "data.json")) as caught:
        weights_file.from_run(moved[0])
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_evaluation_blocks_nothing(moved, capfd):
    (moved[0] / "eval" / "step_2.json").write_text('{"figures": [')
    assert weights_file.from_run(moved[0]).metadata["evaluation"] is None
    assert f"{moved[0] / 'eval' / 'step_2.json'} cannot be read" in capfd.readouterr().err


def test_a_checkpoint_of_another_run_by_its_step(moved):
    (moved[0] / "checkpoints" / "2").rename(moved[0] / "checkpoints" / "777")
    for use in (lambda: weights_file.from_run(moved[0]),
                lambda: train.train(tiny.experiment(moved[1], total_steps=2, data={"exchanged": True}), moved[0])):
        with pytest.raises(CheckpointError, match="checkpoint of step 777, but the run has 2 steps|belongs to a run"):
            use()


# One at a time.

HOLD = """
    import sys
    from trm_jax.runtime import files
    with files.lock(sys.argv[1], "the run"):
        print("held", flush=True)
        sys.stdin.read()
"""


def holder(path) -> subprocess.Popen:
    code = "\n".join(line[4:] for line in HOLD.splitlines())
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def test_the_second_to_train_a_run_is_told_who_the_first_is(moved):
    workdir, data = moved
    process = holder(workdir / ".lock")
    try:
        e = config.parse(run_folder.read_config(workdir))
        with pytest.raises(files.LockedError, match=rf"{workdir} is in use by process {process.pid} on .*, since "):
            train.train(e, workdir)
        weights_file.from_run(workdir)  # reading is free
    finally:
        end(process)
    with run_folder.training(workdir):  # the lock has died with its process
        with pytest.raises(files.LockedError, match=f"process {os.getpid()} on "), run_folder.training(workdir):
            pass
    assert not (workdir / ".lock").exists()


def test_a_dataset_folder_is_made_by_one_process(tmp_path):
    process = holder(tmp_path / ".d.lock")
    try:
        with pytest.raises(files.LockedError, match=rf"the dataset folder {tmp_path / 'd'} is in use by process "):
            with dataset.being_made(tmp_path / "d"):
                pass
    finally:
        end(process)
    with dataset.being_made(tmp_path / "d"):
        assert distributed.is_primary()
    assert list(tmp_path.iterdir()) == []
