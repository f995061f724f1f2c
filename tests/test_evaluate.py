"""Evaluation against a plain loop over cycles and examples; whatever the batch, the depths and the devices."""

import collections
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from tests import tiny
from trm_jax import config, puzzles, recursion
from trm_jax.data.loading import Dataset
from trm_jax.evaluation import tables
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.evaluation.scores import mark, scalars, score
from trm_jax.jobs import evaluate
from trm_jax.models.network import Weights
from trm_jax.puzzles.sudoku import SudokuVerdict
from trm_jax.runtime import checkpoints, distributed
from trm_jax.runtime.text import percent
from trm_jax.training import run_folder
from trm_jax.training.system import System

pytestmark = pytest.mark.smoke
DEPTHS, L, SETTLED = (1, 3, 9), 2, 2


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(system, data, weights): an untrained network, and 13 test puzzles whose labels are partly its own answers."""
    folder = tiny.make_dataset(tmp_path_factory.mktemp("data") / "sudoku4", train=16, test=13)
    e = tiny.experiment(folder, eval={"H_test": DEPTHS, "batch_size": 8, "settled_cycles": SETTLED})
    data = Dataset.load(e)
    system = System(e, data.shape, 8)
    weights = Weights(*jax.jit(system.model.init)(jax.random.key(2)))
    answers, _ = plain_answers(system, data, weights)
    labels = np.array(data.test.labels)
    labels[:6] = answers[3][:6]
    labels[6, 3:] = 0  # ignored cells
    return system, dataclasses.replace(data, test=dataclasses.replace(data.test, labels=labels)), weights


def plain_answers(system, data, weights):
    """(answer [n, S] after each depth from 0, cycles since the answer last changed), all examples in one batch."""
    answers, still, _ = plain(system, data, weights)
    return answers, still


def plain(system, data, weights):
    """The same, and the residual of the cycle that led to each depth."""
    model, inputs = system.model, np.asarray(data.test.inputs, np.int32)
    core, n = model.core(weights.params), len(inputs)
    cycle = jax.jit(lambda s, x: recursion.outer_cycle(core, s, x, L))
    answer = jax.jit(lambda y: model.answer(weights.params, y))
    x = model.embed(weights.params, inputs, model.rows(weights.table, np.zeros(n, np.int32)))
    state = model.initial_latents(weights.fixed, n)
    answers, still, residuals = [np.asarray(answer(state.y))], [np.zeros(n, int)], [np.full(n, np.inf)]
    for _ in range(max(DEPTHS)):
        before, state = state, cycle(state, x)
        residuals.append(relative_change(state, before))
        answers.append(np.asarray(answer(state.y)))
        still.append(np.where((answers[-1] == answers[-2]).all(1), still[-1] + 1, 0))
    return answers, still, residuals


def relative_change(new, old):
    new, old = (np.stack(latents).astype(np.float64) for latents in (new, old))  # [2, T, B, D]
    return np.sqrt(np.square(new - old).sum((0, 1, 3)) / np.square(new).sum((0, 1, 3)))


def run(system, data, weights, devices=8, **changes):
    e = system.experiment
    system = dataclasses.replace(system, experiment=dataclasses.replace(e, eval=dataclasses.replace(e.eval, **changes)))
    mesh = distributed.data_mesh(jax.devices()[:devices])
    weights = jax.device_put(weights, distributed.replicated(mesh))
    return Evaluator(system, data, mesh)(weights, 8, L, lambda line: None)


@pytest.fixture(scope="module")
def result(given):
    return run(*given)


def test_every_example_counts_once_and_figures_are_the_plain_ones(given, result):
    _, data, _ = given
    answers, still = plain_answers(*given)
    labels = data.test.labels
    assert result["examples"] == 13  # in batches of 8
    for figure in result["figures"]:
        right, cell = [], []
        for answer, label in zip(answers[figure["H_test"]], labels):
            hits = [a == b for a, b in zip(answer, label) if b != 0]
            right.append(all(hits))
            cell.append(np.mean(hits))
        settled = still[figure["H_test"]] >= SETTLED
        right = np.array(right)
        assert figure["n"] == 13
        assert figure["exact_accuracy"] == pytest.approx(right.mean())
        assert figure["cell_accuracy"] == pytest.approx(np.mean(cell))
        assert figure["settled"] == pytest.approx(settled.mean())
        assert figure["counts"] == {"right": right.sum(), "wrong": 13 - right.sum(),
                                    "settled_right": (settled & right).sum(), "settled_wrong": (settled & ~right).sum()}
        verified = tiny.SUDOKU4.verify(np.asarray(data.test.inputs), answers[figure["H_test"]]).solved
        assert figure["verified"] == pytest.approx(verified.mean())
    assert result["figures"][1]["exact_accuracy"] >= 6 / 13  # the figures are not all the same
    assert 0 < result["figures"][2]["settled"] < 1
    assert result["figures"][0]["settled"] == 0


def test_the_signs_are_judged_by_the_plain_loop(given, result):
    """Tables and precision by counting, AUROC by comparing every right answer with every wrong one."""
    _, data, _ = given
    answers, still, residuals = plain(*given)
    verify = functools.partial(tiny.SUDOKU4.verify, np.asarray(data.test.inputs))
    for figure in result["figures"]:
        H, worth = figure["H_test"], figure["signals"]
        right = ((answers[H] == data.test.labels) | (data.test.labels == 0)).all(1)
        settled, verified = still[H] >= SETTLED, verify(answers[H]).solved
        counts = collections.Counter(zip(settled, right, verified))
        for (a, b, c), name in zip(itertools.product((True, False), repeat=3), worth["table"]):
            assert name == f"{'' if a else 'un'}settled_{'right' if b else 'wrong'}_{'verified' if c else 'refused'}"
            assert worth["table"][name] == {"n": counts[a, b, c], "share": counts[a, b, c] / 13}
        assert worth["precision"]["n"] == worth["recall"]["n"] == figure["counts"]["settled_right"]
        assert (worth["precision"]["of"], worth["recall"]["of"]) == (settled.sum(), right.sum())
        since = np.where(settled, H - still[H], np.inf)
        for name, badness in (("residual", residuals[H]), ("cycles_to_settle", since)):
            pairs = [(a < b) + (a == b) / 2 for a in badness[right] for b in badness[~right]]
            assert worth["auroc"][name] == (pytest.approx(np.mean(pairs)) if pairs else None)
        assert set(worth["auroc"]) == {"residual", "cycles_to_settle"}
    assert 0 < result["figures"][1]["signals"]["auroc"]["residual"] < 1, "not all of this is undefined"


def test_a_halting_head_is_judged_too(tmp_path):
    e = tiny.experiment(tiny.make_dataset(tmp_path, train=8, test=9), eval={"H_test": [1, 4]}, arch={
        "supervision": "deep", "halting_head": True, "prob_detach_prev_H": 1.0, "H_cycles": 1})
    data = Dataset.load(e)
    system = System(e, data.shape, 8)
    params, *rest = jax.jit(system.model.init)(jax.random.key(2))
    params["q_head"] = jax.random.normal(jax.random.key(3), params["q_head"].shape)
    weights = Weights(params, *rest)
    answers, _, _ = plain(system, data, weights)
    labels = np.array(data.test.labels)
    labels[:4] = answers[4][:4]
    data = dataclasses.replace(data, test=dataclasses.replace(data.test, labels=labels))
    logits = plain_halting(system, data, weights, 4)
    [_, figure] = run(system, data, weights)["figures"]
    pairs = [a > b for a in logits[:4] for b in logits[4:]]
    assert figure["signals"]["right"] == 4
    assert figure["signals"]["auroc"]["halting_logit"] == pytest.approx(np.mean(pairs))


def plain_halting(system, data, weights, H):
    model, n = system.model, data.test.num_examples
    x = model.embed(weights.params, np.asarray(data.test.inputs, np.int32), model.rows(weights.table, np.zeros(n, int)))
    latents = recursion.unroll(model.core(weights.params), model.initial_latents(weights.fixed, n), x, H, L)
    return np.asarray(model.halting(weights.params, latents.y))[:, 0]


def test_one_unroll_gives_what_separate_ones_give(given, result):
    separate = [run(*given, H_test=(H,))["figures"][0] for H in DEPTHS]
    assert result["figures"] == separate


def test_figures_do_not_depend_on_devices_or_batches(given, result):
    assert run(*given, devices=1)["figures"] == result["figures"]
    assert run(*given, devices=1, batch_size=5)["figures"] == result["figures"]
    assert run(*given, batch_size=512)["figures"] == result["figures"]


def test_a_sample_is_seeded_and_named(given):
    once, twice = (run(*given, max_examples=5) for _ in range(2))
    assert once["examples"] == 5 and once["sample"] == "a seeded sample of 13"
    assert once["figures"] == twice["figures"] and once["figures"][0]["n"] == 5


def test_several_test_time_L(given):
    result = run(*given, L_test=(1, 2), H_test=(1, 3))
    assert [(f["L_test"], f["H_test"]) for f in result["figures"]] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert list(scalars(result))[0] == "eval/exact_accuracy/H1_L1"


def test_scores_of_unlabelled_examples_and_empty_sets():
    labels = np.array([[2, 3], [-100, -100], [2, -100]])
    answers, inputs = np.array([[2, 3], [2, 3], [3, 3]]), np.ones((3, 2), int)

    class Agrees(puzzles.Domain):  # without a name: it is not registered
        verified_as = "verified"

        def verify(self, inputs, answers):
            return SudokuVerdict(*np.ones((3, 3), bool))
    figures = score(mark(Agrees(), inputs, labels, answers), np.array([True, True, False]))
    assert (figures["n"], figures["exact_accuracy"], figures["cell_accuracy"]) == (2, 0.5, 0.5)
    assert (figures["settled"], figures["settled_among_right"], figures["settled_among_wrong"]) == (0.5, 1, 0)
    nothing = score(mark(Agrees(), inputs, np.full((3, 2), -100), answers), np.ones(3, bool))
    assert nothing["n"] == 0 and nothing["exact_accuracy"] is nothing["cell_accuracy"] is nothing["settled"] is None


def test_percentages_are_cut_off_and_whole_ones_are_whole():
    assert percent(0.99999) == "99.99" and percent(1.0) == "100.00"
    assert percent(None) == "-"
    assert [percent(k / 100) for k in range(100)] == [f"{k}.00" for k in range(100)]


def test_a_run_is_evaluated_with_its_own_config(tmp_path):
    """But for how, and on which dataset."""
    folder = tiny.make_dataset(tmp_path / "data")
    run_folder.claim(tmp_path / "run", config.to_json(tiny.experiment(folder)))
    with pytest.raises(checkpoints.CheckpointError, match=r"arch.L_cycles: the run has 2, now 3"):
        evaluate.evaluate(tiny.experiment(folder, arch={"L_cycles": 3}), tmp_path / "run")
    other = tiny.make_dataset(tmp_path / "other", test=5)
    with pytest.raises(checkpoints.CheckpointError, match="holds no checkpoint yet"):
        evaluate.evaluate(tiny.experiment(other, eval={"H_test": [2]}), tmp_path / "run")


def test_as_a_solver(given, result):
    system, data, weights = given
    assert "solved" not in result and "as a solver" not in tables.table(result)
    found = run(*given, restarts=3, vary="start", sigma=0.5)
    solved = found["solved"]
    assert found["figures"][0]["counts"] == result["figures"][0]["counts"]
    assert solved["n"] == 13 and (solved["H_test"], solved["restarts"]) == (max(DEPTHS), 3)
    assert solved["exact_accuracy"] >= result["figures"][-1]["verified"], "the last depth is among what it may take"
    assert solved["core_calls_per_example"] >= (L + 1) * solved["mean_cycles"] > 0
    shown = tables.table(found)
    assert "as a solver: done when verified" in shown and "noise of 0.5 at the start" in shown
    by_symmetry = tables.table(found | {"solved": solved | {"vary": "symmetry", "sigma": None}})
    assert "up to 3 tries that differ by a symmetry:" in by_symmetry
    with pytest.raises(config.ConfigError, match="eval.restarts = 2: must be 0: arc has no rules"):
        config.parse({"data": {"puzzle": "arc"}, "eval": {"restarts": 2}})
