"""ARC trains, is voted on and scored, and continues, through the same doors as the other puzzles."""

import dataclasses
import json
import pathlib
import shlex
import shutil

import jax
import numpy as np
import pytest

from tests import tiny
from trm_jax import config
from trm_jax.data import __main__ as command
from trm_jax.data import arc_build as build
from trm_jax.data import dataset
from trm_jax.data.loading import Dataset
from trm_jax.evaluation import tables
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.evaluation.unroll import answers_at
from trm_jax.inference import arc_voting
from trm_jax.jobs import pool, train
from trm_jax.models.network import Weights
from trm_jax.puzzles import arc
from trm_jax.reports import report
from trm_jax.runtime import checkpoints, distributed
from trm_jax.training import step as step_lib
from trm_jax.training.system import System

ARC = {"data": {"puzzle": "arc"}, "arch": {"mixer_hidden_size": 4, "mlp_hidden_size": 8}, "global_batch_size": 8,
       "total_steps": 4, "eval": {"H_test": [1, 2], "batch_size": 8}}
DEEP = {"arch": {"supervision": "deep", "halting_head": True, "prob_detach_prev_H": 1.0, "halt_max_steps": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.arc_dataset(tmp_path_factory.mktemp("data") / "arc")


def test_a_folder_without_test_puzzles_is_refused_before_anything_is_written(folder, tmp_path):
    """As HRM's build makes them."""
    theirs = tmp_path / "theirs"
    shutil.copytree(folder, theirs)
    (theirs / "test_puzzles.json").unlink()
    e = experiment(theirs, data={"make": {"source": "arc_json", "json_dir": "kaggle", "subsets": ["training"],
                                          "test_subset": "training"}})
    with pytest.raises(dataset.DatasetError, match="HRM's build writes none.*python -m trm_jax data arc --json"):
        train.train(e, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def experiment(folder, **changes) -> config.Experiment:
    return tiny.experiment(folder, **tiny.merge(ARC, changes))


def untrained(folder, **changes):
    """(system, data, weights): the halting head speaks, and the tokens it would predict are drawn."""
    e = experiment(folder, **tiny.merge(DEEP, changes))
    data = Dataset.load(e)
    system = System(e, data.shape, 4)
    params, fixed, table = jax.jit(system.model.init)(jax.random.key(1))
    params["q_head"] = 0.3 + 0 * params["q_head"]
    return system, data, Weights(params, fixed, table + 0.1)


def evaluated(system, data, weights, devices=8):
    mesh = distributed.data_mesh(jax.devices()[:devices])
    evaluator = Evaluator(system, data, mesh)
    weights = jax.device_put(weights, distributed.replicated(mesh))
    return evaluator(weights, 4, 2, lambda line: None), evaluator


# The score.


def test_answers_are_voted_at_each_depth_and_cleared_between_evaluations(folder):
    system, data, weights = untrained(folder)
    result, evaluator = evaluated(system, data, weights)
    names, puzzles = dataset.load_identifiers(folder), build.load_test_puzzles(folder)
    for k, figure in enumerate(result["figures"]):
        plain = arc_voting.Votes(names, puzzles)
        answers = answers_at(
            system.model.bind(weights, 2), distributed.data_mesh(jax.devices()[:1]),
            np.asarray(data.test.inputs, np.int32),
            np.repeat(data.test.puzzle_identifiers, np.diff(data.test.puzzle_indices)), np.array([1, 2], np.int32))
        plain.add(np.repeat(data.test.puzzle_identifiers, np.diff(data.test.puzzle_indices)), data.test.inputs,
                  np.asarray(answers.tokens[k]), np.asarray(answers.halting_logit[k]))
        assert plain.score().items() <= figure.items()
        assert figure["predictions"] == data.test.num_examples and figure["pooled_evaluations"] == 1
        assert figure["verified"] is None and figure["verdict"] == {}
    assert plain.submission() == evaluator.votes.submission()
    again = evaluator(weights, 4, 2, lambda line: None)
    assert again["figures"] == result["figures"]  # as many votes as before, not twice as many
    alone, other = evaluated(system, data, weights, devices=1)
    assert alone["figures"] == result["figures"] and other.votes.submission() == plain.submission()
    assert json.loads(json.dumps(result)) == result
    text = tables.table(result)
    assert "verified" not in text and "pass@1000" in text and "16 on 4 test inputs of 3 tasks, 0 inputs without" in text


def test_a_network_that_answers_as_the_labels_do_scores_1(folder, tmp_path):
    system, data, weights = untrained(folder)
    result, evaluator = evaluated(system, data, weights)
    assert result["figures"][-1]["pass@1000"] == 0
    puzzles = build.load_test_puzzles(folder)
    for task, tests in evaluator.votes.submission().items():
        for pair, attempts in zip(puzzles[task]["test"], tests, strict=True):
            pair["output"] = attempts["attempt_1"]
    shutil.copytree(folder, tmp_path / "theirs")
    (tmp_path / "theirs" / "checksums.json").unlink()
    (tmp_path / "theirs" / "test_puzzles.json").write_text(json.dumps(puzzles))
    e = dataclasses.replace(system.experiment, data=dataclasses.replace(system.experiment.data,
                                                                        path=str(tmp_path / "theirs")))
    result, _ = evaluated(dataclasses.replace(system, experiment=e), data, weights)
    assert result["figures"][-1]["pass@1"] == 1


def test_without_a_halting_head_every_vote_has_a_logit_of_0(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(arc_voting.Votes, "add", lambda self, *args: seen.append(args[3]))
    e = experiment(folder)
    data = Dataset.load(e)
    system = System(e, data.shape, 4)
    evaluated(system, data, Weights(*jax.jit(system.model.init)(jax.random.key(1))))
    assert len(np.concatenate(seen)) == 2 * data.test.num_examples and not np.concatenate(seen).any()


# A run.


def test_a_run_goes_on_bit_for_bit_and_writes_a_submission(folder, tmp_path):
    e = experiment(folder, **DEEP, puzzle_emb_lr=0.1)
    whole = train.train(e, tmp_path / "whole")
    with tiny.interrupted_after(3):
        train.train(e, tmp_path / "parts")
    parts = train.train(e, tmp_path / "parts")
    assert parts["figures"] == whole["figures"]
    states = []
    mesh = distributed.data_mesh()
    data = Dataset.load(e)
    abstract = step_lib.place(System(e, data.shape, 4), mesh)
    for name in ("whole", "parts"):
        with checkpoints.Checkpointer(tmp_path / name, best_metric="pass@2", read_only=True) as reader:
            assert reader.best_step() == 4
            states.append(reader.restore(abstract)[0])
    tiny.assert_identical(*states)
    moved = np.flatnonzero(np.abs(np.asarray(states[0].table)).sum(1))
    assert 4 <= len(moved) < data.shape.num_puzzle_identifiers  # rows of drawn puzzles, and no others

    for name in ("whole", "parts"):
        written = json.loads((tmp_path / name / "eval" / "step_4.json").read_text())
        file = tmp_path / name / "eval" / written["submission"]
        assert file == tmp_path / name / "eval" / "step_4" / "submission.json"
        submission = json.loads(file.read_text())
        assert {task: len(tests) for task, tests in submission.items()} == {
            task: len(puzzle["test"]) for task, puzzle in build.load_test_puzzles(folder).items()}
        for attempts in (a for tests in submission.values() for a in tests):
            assert list(attempts) == ["attempt_1", "attempt_2"] and [arc.read_grid(g) for g in attempts.values()]
        assert sorted(p.name for p in file.parent.iterdir()) == ["submission.json"]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval/pass@2/H2_L2" in line for line in lines)
    rows = report.table([*report.newest(tmp_path / "whole"), *report.newest(tmp_path / "parts")]).splitlines()
    assert [row.split()[0] for row in rows[2::2]] == ["pass@2"] * 3 and rows[-2].startswith("mean")

    pooled = pool.pool(e, tmp_path / "whole", lambda line: lines.append(line))
    votes = [figures["figures"][-1]["predictions"] for figures in pooled["evaluations"]]
    assert pooled["steps"] == [2, 4] and votes == [16, 16]
    assert pooled["evaluations"][-1]["figures"] == whole["figures"]
    assert pooled["pooled"]["pooled_evaluations"] == 2 and pooled["pooled"]["predictions"] == 32
    assert any("POOLED over 2 checkpoints, no one model's score" in line for line in lines if isinstance(line, str))
    folder = tmp_path / "whole" / "eval" / "pooled_2_to_step_4"
    assert json.loads((folder / "result.json").read_text()) == pooled
    assert set(json.loads((folder / "submission.json").read_text())) == set(submission)
    assert report.newest(tmp_path / "whole")[0].evaluation["step"] == 4  # it is no evaluation of the run


def test_pooling_is_for_votes(tmp_path):
    with pytest.raises(config.ConfigError, match="data.puzzle = 'sudoku': --mode=pool is for 'arc'"):
        pool.pool(tiny.experiment(tmp_path), tmp_path)


@pytest.mark.parametrize("name", ["trm_att_arc1", "trm_mlp_arc1", "hrm_arc1", "trm_att_arc2"])
def test_the_quick_ones_come_with_their_tasks(name, tmp_path, monkeypatch):
    root = pathlib.Path(__file__).parent.parent
    monkeypatch.chdir(root)
    e = config.parse(config.from_file(f"experiments/{name}.py:quick"))
    e = config.with_fields(e, {"data.path": str(tmp_path / "quick")})
    assert command.main(shlex.split(e.data.how_to_make)[4:]) == 0
    data = Dataset.load(e)
    assert (data.train.num_groups, data.test.num_examples, data.shape.num_puzzle_identifiers) == (6, 24, 25)
    named = (root / "experiments/arc_quick/README.md").read_text()
    assert all(task in named for task in build.load_test_puzzles(tmp_path / "quick"))


# What is refused.


def test_augmentation_on_the_fly_is_refused_by_name(folder):
    with pytest.raises(config.ConfigError, match="data.augment = True: must be False for data.puzzle = 'arc'.*num_aug"):
        experiment(folder, data={"augment": True})


@pytest.mark.parametrize("file, change, message", [
    ("identifiers.json", lambda names: names[:-1], "identifiers.json has 24 names, but num_puzzle_identifiers in "),
    ("identifiers.json", lambda names: [n.replace("|||t", "|||x") for n in names], "identifiers.json: number .*x"),
    ("identifiers.json", lambda names: names[:1] + [n + "0" for n in names[1:]], "test has puzzles of identifier"),
    ("test_puzzles.json", lambda tasks: {}, "test_puzzles.json: there are no test puzzles"),
    ("test_puzzles.json", lambda tasks: {k: {"test": [{"input": [[11]], "output": [[1]]}]} for k in tasks},
     "test_puzzles.json: task .* test 1: has 11 in row 1, column 1; a colour is an integer 0..9"),
])
def test_a_folder_that_cannot_be_voted_on_is_refused_before_training(folder, tmp_path, file, change, message):
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "checksums.json").unlink()
    path = tmp_path / "damaged" / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    e = experiment(tmp_path / "damaged")
    data = Dataset.load(e)
    with pytest.raises(arc_voting.VotingError, match=message):
        Evaluator(System(e, data.shape, 4), data, distributed.data_mesh())
