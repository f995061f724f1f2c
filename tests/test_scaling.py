"""Curves of a tiny model: each point is what the evaluator and the engine say of the same puzzles, and no others."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests import tiny
from trm_jax.data.loading import Dataset
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.inference import engine
from trm_jax.inference.settings import Settings
from trm_jax.models.network import Weights
from trm_jax.puzzles import Domain, puzzle_of
from trm_jax.puzzles.sudoku import Sudoku
from trm_jax.reports import pictures, scaling
from trm_jax.reports.scaling import Sweep
from trm_jax.runtime import distributed
from trm_jax.runtime.text import percent
from trm_jax.training.system import System
from trm_jax.weights import weights_file

SMALL = Sweep(H=(1, 2, 5), L=(1, 2), restarts=(1, 3), examples=9, settle=100, vary="start", sigma=1.0, batch_size=4)


def export(folder, **changes) -> weights_file.Export:
    e = tiny.experiment(folder, **changes)
    data = Dataset.load(e)
    system = System(e, data.shape, 8)
    found = Weights(*jax.jit(system.model.init)(jax.random.key(2)))
    return weights_file.Export(e, data.shape, puzzle_of(data.domain), found, {
        "parameters": "EMA", "step": 8, "total_steps": 8, "L": e.arch.L_cycles, "dtype": "float32", "evaluation": None,
        "versions": {}})


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(subject, settings): an untrained network, some labels being its own answers; puzzles with those are right."""
    folder = tiny.make_dataset(tmp_path_factory.mktemp("data") / "sudoku4", train=16, test=13)
    subject, settings = scaling.subject(export(folder), "", SMALL)
    s = Settings(settle=0)
    own, other = (engine.solve(subject.system.model.bind(subject.weights, 2), subject.data.test.inputs,
                               dataclasses.replace(s, max_cycles=H)).answers.tokens for H in (5, 2))
    labels = np.array(subject.data.test.labels)
    labels[::3], labels[1::3] = own[::3], other[1::3]
    test = dataclasses.replace(subject.data.test, labels=labels)
    return subject._replace(data=dataclasses.replace(subject.data, test=test)), settings


@pytest.fixture(scope="module")
def asked():
    """(inputs, identifiers, answers) of every call of the engine."""
    return []


@pytest.fixture(scope="module")
def result(given, asked):
    solve = engine.solve

    def spy(bound, inputs, settings, **more):
        results = solve(bound, inputs, settings, **more)
        asked.append((np.array(inputs), settings, results))
        return results
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "solve", spy)
        return scaling.measure(*given, lambda line: None)


def points(result, part, **where):
    return [p for p in result[part] if all(p[name] == value for name, value in where.items())]


def test_the_grid_is_the_evaluators(given, result):
    subject, _ = given
    mesh = distributed.data_mesh(jax.devices()[:1])
    for L in (1, 2):
        e = dataclasses.replace(subject.system.experiment.eval, L_test=(L,), batch_size=13)
        system = dataclasses.replace(subject.system, experiment=dataclasses.replace(
            subject.system.experiment, eval=e))
        figures = Evaluator(system, subject.data, mesh)(
            jax.device_put(subject.weights, distributed.replicated(mesh)), 8, L, lambda line: None)["figures"]
        for point, figure in zip(points(result, "grid", L_test=L), figures, strict=True):
            assert (point["H_test"], point["n"], point["right"]) == (figure["H_test"], 9, figure["counts"]["right"])
            assert (point["exact_accuracy"], point["verified"]) == (figure["exact_accuracy"], figure["verified"])
    assert 0 < points(result, "grid", L_test=2, H_test=5)[0]["right"] < 9


def test_what_nothing_stops_is_the_unroll(result):
    """settle is never reached here, so a limit of H cycles is the grid's depth H."""
    for stop in ("settled", "verified"):
        pairs = zip(points(result, "grid", L_test=2), points(result, "cycles", stop=stop), strict=True)
        for unrolled, limited in pairs:
            assert limited["max_cycles"] == unrolled["H_test"] and limited["stopped"] == {"budget": 9}
            assert limited["mean_cycles"] == limited["median_cycles"] == unrolled["H_test"]
            assert limited["exact_accuracy"] == unrolled["exact_accuracy"]
            assert limited["flops_per_puzzle"] >= unrolled["flops_per_puzzle"], "with idle slots"


def test_every_point_is_of_the_same_puzzles(given, result, asked):
    subject, _ = given
    rows = np.sort(np.random.default_rng(0).choice(13, 9, replace=False))
    assert len(asked) == 2 * 3 + 1 + 2
    for inputs, _, _ in asked:
        np.testing.assert_array_equal(inputs, subject.data.test.inputs[rows])
    assert {p["n"] for part in ("grid", "cycles", "restarts") for p in result[part]} == {9}
    assert result["examples"] == 9 and result["sample"] == "a seeded sample of 13"
    moved = scaling.measure(subject, dataclasses.replace(SMALL, examples=9, L=(2,), H=(1,), restarts=(1,)), print)
    assert moved["subset_sha256"] == result["subset_sha256"]


def test_restarts_are_chosen_by_the_engine_and_by_one_who_knows(given, result, asked):
    subject, _ = given
    rows = np.sort(np.random.default_rng(0).choice(13, 9, replace=False))
    labels = subject.data.test.labels[rows]
    jobs = next(r.jobs for _, s, r in asked if s.tries == 3)
    right = (jobs.tokens == labels[jobs.puzzle]).all(1)
    for R in (1, 3):
        [oracle] = points(result, "restarts", restarts=R, chosen_by="pass@R")
        assert oracle["right"] == len(set(jobs.puzzle[right & (jobs.attempt < R)]))
        [blind] = points(result, "restarts", restarts=R, chosen_by="engine, no verifier")
        assert blind["right"] <= oracle["right"] and blind["mean_cycles"] == 5 * R
        [engine] = points(result, "restarts", restarts=R, chosen_by="engine")
        assert engine["right"] <= 9 and engine["mean_cycles"] <= 5 * R
    [plain] = points(result, "restarts", restarts=1, chosen_by="engine, no verifier")
    assert plain["right"] == points(result, "grid", L_test=2, H_test=5)[0]["right"]


class Silent(Sudoku):
    """A domain without rules or symmetries."""

    verified_as = ""
    verify, draw_symmetry = Domain.verify, Domain.draw_symmetry


def test_without_a_verifier_the_rest_is_there(given):
    subject, settings = given
    subject = subject._replace(data=dataclasses.replace(subject.data, domain=Silent(2, 2)))
    result = scaling.measure(subject, dataclasses.replace(settings, H=(1, 2), L=(2,), restarts=(1, 2)), print)
    assert {p["stop"] for p in result["cycles"]} == {"settled"}
    assert {p["chosen_by"] for p in result["restarts"]} == {"engine, no verifier", "pass@R"}
    assert {p["verified"] for part in ("grid", "cycles", "restarts") for p in result[part]} == {None}
    pictures.pyplot().close(scaling.figure(result, "no verifier"))


def test_the_figure_says_what_it_is_of(result):
    made = scaling.figure(result, "tiny", from_percent=20)
    try:
        assert "the same 9 test puzzles (a seeded sample of 13" in made.get_supxlabel()
        assert result["dataset"] in made.get_supxlabel() and "trained at H 2, L 2" in made.get_supxlabel()
        heat, cycles, restarts, flops = made.axes
        shown = [text.get_text() for text in heat.texts]
        assert shown == [percent(p["exact_accuracy"]) for p in result["grid"]]
        assert cycles.get_ylim()[0] < 20 < restarts.get_ylim()[1] and flops.get_xscale() == "log"
        [line] = [line for line in cycles.lines if line.get_label() == "every puzzle H cycles"]
        assert list(line.get_xdata()) == [1, 2, 5]
        assert list(line.get_ydata()) == [100 * p["exact_accuracy"] for p in points(result, "grid", L_test=2)]
    finally:
        pictures.pyplot().close(made)


@pytest.mark.parametrize("right, n, low, high", [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)])
def test_wilson_is_the_published_interval(right, n, low, high):
    assert scaling.wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def test_from_the_command_line(tmp_path, capsys):
    folder = tiny.make_dataset(tmp_path / "sudoku4", train=8, test=5)
    weights_file.save(tmp_path / "tiny.safetensors", export(folder), "float32")
    argv = [f"--weights={tmp_path / 'tiny.safetensors'}", f"--out={tmp_path / 'out'}", "--examples=4", "--H=1,2",
            "--restarts=1,2", "--batch_size=4", "--compilation_cache="]
    assert scaling.main(argv) == 0
    result = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert [(p["H_test"], p["L_test"]) for p in result["grid"]] == [(H, L) for L in (1, 2, 4) for H in (1, 2)]
    assert result["settings"]["vary"] == "symmetry" and result["command"].endswith("--compilation_cache=")
    assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.splitlines()[-1] == f"written to {tmp_path / 'out'}: scaling.json, scaling.png"


@pytest.mark.parametrize("argv, message", [
    (["--weights=w", "--H=8,4"], "argument --max_cycles: '8,4' must ascend"),
    (["--weights=w", "--restarts=0"], "argument --tries: '0' must be a whole number of at least 1"),
    (["--weights=w", "--L=x"], "argument --L: 'x' must be a whole number of at least 1"),
    (["--weights=w", "--settle=0"], "--settle: '0' must be a whole number of at least 1"),
    (["--weights=w", "--from_percent=100"], "--from_percent: '100' must be a number of at least 0 and at most 99"),
    (["--weights=w", "--sigma=-1"], "--sigma: '-1' must be a number of at least 0"),
    ([], "one of the arguments --weights --workdir is required"),
])
def test_bad_arguments_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        scaling.main([*argv, "--out=nowhere"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_measured_is_one_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--compilation_cache="]
    folder, other = tiny.make_dataset(tmp_path / "sudoku4", train=8, test=5), tiny.make_dataset(
        tmp_path / "sudoku6", train=8, test=5, domain=Sudoku(2, 3))
    for name, arch in (("multi_z", {"recursion": "multi_z"}), ("plain", {}), ("direct", {
            "recursion": "direct", "L_cycles": 0, "supervision": "deep", "prob_detach_prev_H": 1.0,
            "halt_exploration_prob": 0.0})):
        weights_file.save(tmp_path / name, export(folder, arch=arch), "float32")
    for argv, message in (
            (["--workdir", str(tmp_path / "none")], "none"),
            (["--weights", str(tmp_path / "none")], f"called {tmp_path / 'none'}"),
            (["--weights", str(tmp_path / "multi_z"), "--L=1,2"], "--L=1,2: with arch.recursion = 'multi_z' there are "
             "always 2 inner cycles; leave it out"),
            (["--weights", str(tmp_path / "direct"), "--L=1"], "always 0 inner cycles; leave it out"),
            (["--weights", str(tmp_path / "plain"), "--data", str(other)], f"{other} does not fit the weights: puzzle"),
            (["--weights", str(tmp_path / "plain"), "--vary=cycle", "--sigma=0"], "sigma")):
        assert scaling.main(argv + out) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "out").exists()
