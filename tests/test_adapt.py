"""Weights are adapted to ARC tasks that they have not seen: what is trained on what, and that it helps."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from trm_jax import config, main, puzzles
from trm_jax.data import arc_build
from trm_jax.data.dataset import DatasetError
from trm_jax.data.shape import Shape
from trm_jax.jobs import adapt
from trm_jax.models.network import Model, Weights
from trm_jax.puzzles import arc
from trm_jax.weights import weights_file
from trm_jax.weights.weights_file import WeightsError

FOLDER = pathlib.Path(__file__).parent / "arc_adapt"  # easy tasks of ARC-AGI-1: six to train on, three held out
UNSEEN = FOLDER / "unseen"
NAMES = ["<blank>", "a", "a|||t1|||0123456789", "b"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of untrained weights that know two tasks."""
    e = tiny.experiment("nowhere", data={"puzzle": "arc"}, global_batch_size=32, total_steps=40, lr_warmup_steps=30,
                        arch={"mixer_hidden_size": 4, "mlp_hidden_size": 8}, eval={"H_test": [1], "batch_size": 8})
    shape = Shape(arc.SIDE ** 2, arc.VOCAB, len(NAMES))
    params, fixed, table = jax.jit(Model(e.arch, shape).init)(jax.random.key(0))
    made = Weights(params, fixed, table + jnp.arange(4, dtype=jnp.float32)[:, None])
    path = tmp_path_factory.mktemp("weights") / "arc.safetensors"
    weights_file.save(path, weights_file.Export(e, shape, puzzles.puzzle_of(puzzles.get("arc")), made, {
        "parameters": "EMA", "step": 1, "total_steps": 2, "L": 2, "evaluation": None, "dtype": "float32"}, NAMES),
        "float32")
    return path


def test_the_run_is_of_the_new_tasks_with_the_networks_own_shape(weights):
    theirs = weights_file.read(weights).experiment
    e = adapt.experiment(weights, UNSEEN)
    assert e.arch == theirs.arch and e.init_from == str(weights) and e.eval.at_start and e.lr == theirs.lr
    assert (e.data.make.num_aug, e.global_batch_size, e.lr_warmup_steps) == (1, 8, 4)  # 9 pairs, on 8 devices
    assert not e.data.make.no_test_solutions and e.data.make.subsets == ("unseen",)
    other = adapt.experiment(weights, UNSEEN, recipe="trm_att_arc2:adapt", fields=["lr=0.5"], num_aug=7)
    assert (other.total_steps, other.puzzle_emb_lr, other.rows_only, other.lr) == (12_500, 0.7e-2, 0.25, 0.5)
    assert other.arch == theirs.arch and other.data.make.num_aug == 7 and other.data.path != e.data.path


def test_tasks_are_found_in_every_form(tmp_path):
    tasks = {file.stem: json.loads(file.read_text()) for file in sorted(UNSEEN.iterdir())}
    first = next(iter(tasks.values()))
    (tmp_path / "all.json").write_text(json.dumps(tasks))
    (tmp_path / "one.json").write_text(json.dumps(first))
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps({"id": name} | task) for name, task in tasks.items()))
    (tmp_path / "asked.json").write_text(json.dumps(first | {"test": [{"input": [[1]]}]}))
    found = {}
    for place in (UNSEEN, tmp_path / "all.json", tmp_path / "one.json", tmp_path / "lines.jsonl",
                  tmp_path / "asked.json", FOLDER / "arc-agi_seen_challenges.json"):
        make = arc_build.place_of(place)
        read, _ = arc_build.read_subsets(make["json_dir"], list(make["subsets"]), make["test_subset"], make["prefix"],
                                         not make["no_test_solutions"])
        found[place.stem] = [task.name for task in read], make["no_test_solutions"]
    assert found["unseen"] == found["all"] == found["lines"] == (list(tasks), False)
    assert found["one"] == (["one"], False) and found["asked"] == (["asked"], True)
    assert len(found["arc-agi_seen_challenges"][0]) == 6
    (tmp_path / "arc-agi_new_challenges.json").write_text(json.dumps(tasks))
    assert arc_build.place_of(tmp_path / "arc-agi_new_challenges.json")["no_test_solutions"]
    (tmp_path / "lines.json").write_text(json.dumps(tasks))
    for place, message in ((tmp_path / "lines.json", "lines.jsonl has the same name"),
                           (tmp_path / "none.json", "there are no ARC tasks; give")):
        with pytest.raises(DatasetError, match=message):
            arc_build.place_of(place)


def test_weights_without_tasks_are_refused():
    with pytest.raises(WeightsError, match="rsm-sudoku-quick cannot be adapted: these are weights for 9x9 Sudoku"):
        adapt.experiment("rsm-sudoku-quick", UNSEEN)
    with pytest.raises(config.ConfigError, match="rows_only = 0.5: needs a puzzle table"):
        config.parse({"rows_only": 0.5, "arch": {"puzzle_emb_ndim": 0, "puzzle_emb_len": 0}})


def test_rows_alone_are_trained_from_the_mean_and_a_submission_is_written(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--weights", str(weights), "--tasks", str(UNSEEN), "--steps=2", "--rows_only",
               "--config.puzzle_emb_lr=0.1", "--config.puzzle_emb_weight_decay=0", "--config.lr_warmup_steps=0",
               "--config.lr_min_ratio=1", "--config.ema=False"]
    assert main.adapt(command) == 0
    said = capsys.readouterr()
    place = pathlib.Path("runs/adapt-unseen/eval/step_2/submission.json")
    assert f"after 2 steps (3 tasks); submission: {place}" in said.out and "pass@2" in said.out
    submission = json.loads(place.read_text())
    assert {name: len(tests) for name, tests in submission.items()} == {file.stem: 1 for file in UNSEEN.iterdir()}
    old, new = weights_file.read(weights), weights_file.read("runs/adapt-unseen")
    tiny.assert_identical(new.weights.params, old.weights.params)
    moved = np.asarray(new.weights.table)
    assert new.identifiers[:2] == ["<blank>", "68b16354"] and len(moved) == 7
    by = (moved[1:] - 2) / 0.1  # rows 1, 2, 3 have the mean 2, and a step of sign-SGD moves each number by 0.1
    np.testing.assert_allclose(by, np.round(by), atol=1e-4)
    assert np.abs(by).max() > 0.5
    assert json.loads(pathlib.Path("runs/adapt-unseen/eval/step_0.json").read_text())["step"] == 0
    assert main.adapt(command) == 0  # it is complete; nothing begins anew
    assert "after 2 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_adapting_beats_answering_without(tmp_path, monkeypatch):
    """Real tasks that the weights have not seen; the figures are in experiments/README.md."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(FOLDER / "seen.safetensors", tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam: 0.9 ** count
        assert main.adapt(["--weights=seen.safetensors", f"--tasks={UNSEEN}", "--steps=150"]) == 0
    before, after = (json.loads(pathlib.Path(f"runs/adapt-unseen/eval/step_{step}.json").read_text())["figures"][-1]
                     for step in (0, 150))
    assert after["pass@2"] > before["pass@2"] and after["exact_accuracy"] > before["exact_accuracy"]
