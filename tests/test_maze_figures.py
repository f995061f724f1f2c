"""Wherever a maze figure appears, exact match and valid shortest paths do; answers and pictures of mazes."""

import json
import re

import jax
import numpy as np
import pytest

from tests import tiny
from tests.scripted import Scripted
from trm_jax import config, puzzles
from trm_jax.data.loading import Dataset
from trm_jax.evaluation import tables
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.evaluation.scores import BEST, best, mark, score
from trm_jax.inference import text_film
from trm_jax.inference.solver import Solver, Trace
from trm_jax.jobs import evaluate, train
from trm_jax.models.network import Weights
from trm_jax.reports import pictures, report
from trm_jax.runtime import checkpoints, distributed
from trm_jax.training.run_folder import best_metric
from trm_jax.training.system import System

MAZE = puzzles.get("maze", rows=4, cols=5)
QUESTION = MAZE.encode("S    " " ## #" " # # " "    G")
LABEL = MAZE.solve(QUESTION[None]).labels[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "maze", 32, 12, MAZE)


@pytest.fixture(scope="module")
def result(folder):
    e = tiny.experiment(folder, data={"puzzle": "maze"})
    data = Dataset.load(e)
    system, mesh = System(e, data.shape, 8), distributed.data_mesh(jax.devices()[:1])
    weights = jax.device_put(Weights(*jax.jit(system.model.init)(jax.random.key(0))), distributed.replicated(mesh))
    return Evaluator(system, data, mesh)(weights, 8, 2, lambda line: None)


def test_score_tells_exact_from_shortest():
    many = MAZE.generate(40, seed=0)
    other = MAZE.draw_answers(many.inputs, np.random.default_rng(0))
    other[:4] = many.inputs[:4]  # no path at all
    marks = mark(MAZE, many.inputs.astype(np.int32), many.labels.astype(np.int32), other)
    figures = score(marks, np.ones(40, bool))
    exact = (other == many.labels).all(axis=1).mean()
    assert figures["exact_accuracy"] == exact < figures["verified"] == 0.9
    assert figures["verdict"] == {"kept": 1.0, "path": 0.9, "shortest": 0.9}


def test_the_table_names_the_shortest_path(result):
    assert result["verified_as"] == "shortest path" and json.loads(json.dumps(result)) == result
    result["figures"][-1] |= {"exact_accuracy": 0.25, "verified": 0.75}
    lines = tables.table(result).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  H_test"))
    head, row = lines[at], lines[at + len(result["figures"])]
    names = re.split(r"\s{2,}", head.strip())
    assert names[2:5] == ["exact", "cell", "shortest path"]
    assert row.split()[2] == "25.00" and row.split()[4] == "75.00" and len(row) == len(head)
    sources = {"a": {"n": 2, "exact_accuracy": 0.5, "settled": 0.0, "verified": 1.0}}
    result["figures"][-1]["by_source"] = sources | {"b": sources["a"]}
    assert "exact, shortest path by source at H_test 3: a 50.00, 100.00 (n 2)" in tables.table(result)


def write(folder, result):
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "step_8.json").write_text(json.dumps(result))
    return str(folder)


def test_reports_and_charts_have_both(result, tmp_path, capsys):
    values = [(0.25, 0.75), (0.5, 1.0)]
    figures = [f | {"exact_accuracy": a, "verified": b} for f, (a, b) in zip(result["figures"], values)]
    runs = [write(tmp_path / name, result | {"figures": figures}) for name in "ab"]
    assert report.main(runs) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][1:3] == ["25.00", "50.00"] and rows[2][:4] == ["shortest", "path", "75.00", "100.00"]
    assert rows[5] == ["mean", "25.00", "50.00"] and rows[6] == ["shortest", "path", "75.00", "100.00"]
    figure = pictures.accuracy([r for run in runs for r in report.newest(run)], ["a", "b"])
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert len(dotted) == 3, "one each, and one for the legend"
    np.testing.assert_allclose(dotted[0].get_ydata(), [75, 100])
    assert "shortest path" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    pictures.save(figure, tmp_path / "a.png")


def test_with_fresh_labels_the_best_checkpoint_has_most_shortest_paths(folder, tmp_path):
    e = tiny.experiment(folder, data={"puzzle": "maze", "labels": "random_path", "augment": True}, total_steps=2)
    assert best_metric(e) == "verified"
    result = train.train(e, tmp_path / "run")
    assert best(result, "verified") == result["figures"][-1]["verified"]
    with checkpoints.Checkpointer(tmp_path / "run", best_metric="verified", read_only=True) as reader:
        assert reader.best_step() == 2
    again = evaluate.evaluate(e, tmp_path / "run", note=lambda line: None)
    assert again["figures"] == result["figures"]
    plain = config.parse(tiny.merge(config.to_json(e), {"data": {"labels": "fixed"}}))
    assert best_metric(plain) == BEST


def test_a_maze_run_ends_bit_for_bit_where_it_would_have(folder, tmp_path):
    """Fresh paths and symmetries, attention in blocks, a carry: killed between two checkpoints and continued."""
    e = tiny.experiment(folder, data={"puzzle": "maze", "labels": "random_path", "augment": True}, total_steps=4,
                        arch={"mlp_t": False, "mixer_hidden_size": 0, "num_heads": 2, "pos_encodings": "rope",
                              "rope_columns": 5, "attention": "blocks"}, deepen={"carry_share": 0.5})
    whole = train.train(e, tmp_path / "whole")
    with tiny.interrupted_after(3):
        train.train(e, tmp_path / "killed")
    assert train.train(e, tmp_path / "killed")["figures"] == whole["figures"]
    fresh = System(e, Dataset.load(e).shape, 4).init_state()
    states = []
    for name in ("whole", "killed"):
        with checkpoints.Checkpointer(tmp_path / name, best_metric="verified", read_only=True) as reader:
            states.append(reader.restore(fresh)[0])
    tiny.assert_identical(*states)


# Answers.


def test_an_answer_says_what_is_wrong_with_it():
    solver = Solver(Scripted().bind(), MAZE)
    right = solver.judge(QUESTION, LABEL, "settled", 7, 3)
    assert right.verified and right.reason == "" and right.text == MAZE.decode(LABEL)
    open_end = np.where(np.arange(20) == np.flatnonzero(LABEL == 5)[-1], 2, LABEL)
    assert "before it reaches G" in solver.judge(QUESTION, open_end, "budget", 3, 3).status
    for puzzle, message in (("S" * 20, "the maze has 20 start Ss"), ("S", "got 1 cells, expected 20"),
                            ("S    \n ## #\n # # \n     G", "row 4 has 6 cells, expected 5")):
        with pytest.raises(puzzles.PuzzleError, match=message):
            solver.read(puzzle)
    np.testing.assert_array_equal(solver.read(MAZE.decode(QUESTION)), QUESTION)


@pytest.fixture
def trace():
    first = np.where(np.arange(20) == 6, 2, QUESTION)  # opened a wall
    return Trace(QUESTION, np.stack([first, LABEL, LABEL]).astype(np.uint8), np.full((3, 20), .9, np.float32),
                       np.array([.5, .2, .1], np.float32))


def test_frames(trace):
    plain = text_film.frames(MAZE, trace, color=False)
    assert [frame.splitlines()[1] for frame in plain] == [" ", " 1 changed, not solved", " 7 changed, verified"]
    assert plain[1].count("*") == 1 and plain[2].count("*") == 7 and "\x1b" not in "".join(plain)
    assert "\x1b[1;32m" in text_film.frames(MAZE, trace, color=True)[2]
    assert "verified" in text_film.side_by_side(plain, 80)


def test_strip(trace, tmp_path):
    figure = pictures.strip(MAZE, trace, "title", solution=LABEL)
    one, two = figure.axes[:2]
    assert [text.get_text() for text in two.texts] == ["S", "G"]
    colours = [tuple(round(c, 2) for c in patch.get_facecolor()[:3]) for patch in one.patches]
    assert colours.count((0.78, 0.13, 0.18)) == 1 + (LABEL == 5).sum(), "the wall that was opened, the path not there"
    assert (0.07, 0.07, 0.07) in colours and one.get_xlim()[1] > one.get_ylim()[0], "as wide as it is"
    assert "black: given" in figure.get_supxlabel()
    pictures.save(figure, tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
