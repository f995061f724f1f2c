"""ARC tasks are answered under every identifier they were trained with, mapped back and voted; others are refused."""

import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from trm_jax import config
from trm_jax.data import arc_build as arc_data
from trm_jax.data import dataset
from trm_jax.data.shape import Shape
from trm_jax.inference import arc_solver, command
from trm_jax.inference.solver import SolveError, Solver
from trm_jax.models.network import Model, Weights
from trm_jax.puzzles import arc
from trm_jax.reports import page
from trm_jax.weights import weights_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.arc_dataset(tmp_path_factory.mktemp("arc") / "data")


@pytest.fixture(scope="module")
def export(folder):
    """A real network, untrained, whose answers depend on the puzzle's row."""
    names = dataset.load_identifiers(folder)
    arch = config.Arch(hidden_size=8, mlp_hidden_size=8, mixer_hidden_size=8, puzzle_emb_ndim=8, puzzle_emb_len=1,
                       forward_dtype="float32", tie_head=False)
    shape = Shape(900, arc.VOCAB, len(names))
    params, fixed, table = jax.jit(Model(arch, shape).init)(jax.random.key(1))
    table = jax.random.normal(jax.random.key(2), table.shape)
    e = config.Experiment(arch=arch, data=config.Data(puzzle="arc", path=str(folder)))
    return weights_file.Export(e, shape, {"name": "arc"}, Weights(params, fixed, table), {
        "parameters": "EMA", "step": 1, "total_steps": 2, "L": 1, "evaluation": None, "dtype": "float32"}, names)


@pytest.fixture(scope="module")
def tasks(folder):
    return [{"id": name, **task} for name, task in arc_data.load_test_puzzles(folder).items()]


def test_answers_are_the_votes_of_every_symmetry(export, tasks):
    solver = Solver.of(export)
    assert isinstance(solver, arc_solver.ArcSolver) and set(solver.tasks) >= {task["id"] for task in tasks}
    task = tasks[0]
    [answer] = solver.solve([task], max_cycles=2)
    model, w = export.model, export.weights
    ballots = [{} for _ in task["test"]]
    for row, name in enumerate(export.identifiers):
        if row and arc.parse_name(name)[0] == task["id"]:
            how = arc.parse_name(name)[1]
            for ballot, pair in zip(ballots, task["test"]):
                inputs = arc.to_canvas(how.apply(np.array(pair["input"], np.uint8)))[None]
                x = model.embed(w.params, jnp.asarray(inputs, jnp.int32), model.rows(w.table, jnp.array([row])))
                latents = model.initial_latents(w.fixed, 1)
                for _ in range(2):
                    latents = model.test_step(model.core(w.params), latents, x, 1)
                grid = how.undo(arc.crop(np.asarray(model.answer(w.params, latents.y))[0]))
                ballot[arc.grid_key(grid)] = ballot.get(arc.grid_key(grid), 0) + 1
    assert answer.of == sum(ballots[0].values()) > 1
    for ballot, grids, votes in zip(ballots, answer.attempts, answer.votes):
        assert list(votes) == sorted(ballot.values(), reverse=True)[:len(votes)] and len(grids) == min(2, len(ballot))
        assert [ballot[arc.grid_key(grid)] for grid in grids] == list(votes)
    assert not answer.verified and "differs from the solution" in answer.status
    [short] = solver.solve([task], max_cycles=2, symmetries=1)
    assert short.of == 1 and short.votes[0] == (1,)


def test_what_the_embedding_does_not_allow_is_said(export, tasks):
    solver = Solver.of(export)
    bad = [{"id": "00000000", "test": tasks[0]["test"]}, {"id": tasks[0]["id"]}, "12",
           {"id": tasks[0]["id"], "test": [{"input": [[1, 11]]}]},
           {"id": tasks[0]["id"], "test": [{"input": [[1], [1, 2]]}]}]
    *refused, fine = solver.solve([*bad, {**tasks[0], "test": [{"input": tasks[0]["test"][0]["input"]}]}], max_cycles=2)
    for answer, why in zip(refused, ("was not in this network's training", 'has no "test"', "an ARC task is an object",
                                     "test 1 has 11 in row 1", "test 1 is ragged")):
        assert why in answer.status and not answer.attempts and answer.to_json()["answer"] is None
    assert fine.reason == arc_solver.NO_RULES and fine.attempts
    with pytest.raises(SolveError, match="tries = 4"):
        solver.solve(tasks, tries=4)


def test_an_exported_file_knows_its_tasks(export, tmp_path, tasks):
    weights_file.save(tmp_path / "w", export, "float32")
    read = weights_file.load(tmp_path / "w")
    assert read.identifiers == export.identifiers
    a, b = (Solver.of(e).solve(tasks[:1], max_cycles=1)[0] for e in (export, read))
    assert a.to_json() == b.to_json()
    weights_file.save(tmp_path / "short", export._replace(identifiers=export.identifiers[:-1]))
    with pytest.raises(weights_file.WeightsError, match="names .* of its"):
        weights_file.load(tmp_path / "short")


def test_command_line(export, tmp_path, tasks, monkeypatch, capsys):
    weights_file.save(tmp_path / "w", export)
    challenges = {tasks[0]["id"]: {"test": tasks[0]["test"]}, "0": {"test": []}}
    (tmp_path / "c.json").write_text(json.dumps(challenges))
    args = [f"--weights={tmp_path / 'w'}", "--compilation_cache=", "--max_cycles=1"]
    assert command.main([*args, "--format=json", f"--file={tmp_path / 'c.json'}"]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["id"] == tasks[0]["id"] and 1 <= len(first["attempts"][0]) <= 2 and second["attempts"] == []
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(tasks[0])))
    assert command.main([*args, "--format=picture"]) == 1
    assert "attempt 1" in capsys.readouterr().out
    assert command.main([*args, "--example=0", "--watch"]) == 1
    shown = capsys.readouterr()
    assert "cycle 1" in shown.out and arc_solver.NO_RULES in shown.err


def test_watched_and_drawn(export, tmp_path, capsys):
    weights_file.save(tmp_path / "w", export)
    solver = Solver.of(export)
    task, _ = solver.example(export.experiment.data, 0)
    for tokens in solver.trace(task, 2).tokens:
        grid = arc.crop(tokens)
        assert (tokens >= arc.FIRST_COLOUR).sum() == grid.size, "nothing is shown that is not the answer"
    args = [f"--weights={tmp_path / 'w'}", "--compilation_cache=", "--max_cycles=2", "--example=0"]
    assert page.main([*args, f"--out={tmp_path / 'think.html'}"]) == 1
    assert '"drawing"' in (tmp_path / "think.html").read_text() and arc_solver.NO_RULES in capsys.readouterr().err
