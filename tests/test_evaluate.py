"""Evaluation against a plain loop over cycles and examples; whatever the batch, the depths and the devices."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import tiny
from trm_jax import checkpoints, config, distributed, evaluate, recursion
from trm_jax.puzzles.sudoku import Verdict
from trm_jax.state import Data, System, Weights

DEPTHS, L, SETTLED = (1, 3, 9), 2, 2


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(system, data, weights): an untrained network, and 13 test puzzles whose labels are partly its own answers."""
    folder = tiny.dataset(tmp_path_factory.mktemp("data") / "sudoku4", train=16, test=13)
    e = tiny.experiment(folder, eval={"H_test": DEPTHS, "batch_size": 8, "settled_cycles": SETTLED})
    data = Data.load(e)
    system = System(e, data.shape, 8)
    weights = Weights(*jax.jit(system.model.init)(jax.random.key(2)))
    answers, _ = plain_answers(system, data, weights)
    labels = np.array(data.test.labels)
    labels[:6] = answers[3][:6]
    labels[6, 3:] = 0  # ignored cells
    return system, dataclasses.replace(data, test=dataclasses.replace(data.test, labels=labels)), weights


def plain_answers(system, data, weights):
    """(answer [n, S] after each depth from 0, cycles since the answer last changed), all examples in one batch."""
    model, inputs = system.model, np.asarray(data.test.inputs, np.int32)
    core, n = model.core(weights.params), len(inputs)
    cycle = jax.jit(lambda s, x: recursion.outer_cycle(core, s, x, L))
    answer = jax.jit(lambda y: model.answer(weights.params, y))
    x = model.embed(weights.params, inputs, model.rows(weights.table, np.zeros(n, np.int32)))
    state = model.initial_latents(weights.fixed, n)
    answers, still = [np.asarray(answer(state.y))], [np.zeros(n, int)]
    for _ in range(max(DEPTHS)):
        state = cycle(state, x)
        answers.append(np.asarray(answer(state.y)))
        still.append(np.where((answers[-1] == answers[-2]).all(1), still[-1] + 1, 0))
    return answers, still


def run(system, data, weights, devices=8, **changes):
    e = system.experiment
    system = dataclasses.replace(system, experiment=dataclasses.replace(e, eval=dataclasses.replace(e.eval, **changes)))
    mesh = distributed.data_mesh(jax.devices()[:devices])
    weights = jax.device_put(weights, distributed.replicated(mesh))
    return evaluate.Evaluator(system, data, mesh)(weights, 8, L, lambda line: None)


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
    assert list(evaluate.scalars(result))[0] == "eval/exact_accuracy/H1_L1"


def test_scores_of_unlabelled_examples_and_empty_sets():
    labels = np.array([[2, 3], [-100, -100], [2, -100]])
    answers, inputs = np.array([[2, 3], [2, 3], [3, 3]]), np.ones((3, 2), int)

    class Domain:
        verified_as = "verified"

        @staticmethod
        def verify(inputs, answers):
            return Verdict(*np.ones((3, 3), bool))
    figures = evaluate.score(evaluate.mark(Domain, inputs, labels, answers), np.array([True, True, False]))
    assert (figures["n"], figures["exact_accuracy"], figures["cell_accuracy"]) == (2, 0.5, 0.5)
    assert (figures["settled"], figures["settled_among_right"], figures["settled_among_wrong"]) == (0.5, 1, 0)
    nothing = evaluate.score(evaluate.mark(Domain, inputs, np.full((3, 2), -100), answers), np.ones(3, bool))
    assert nothing["n"] == 0 and nothing["exact_accuracy"] is nothing["cell_accuracy"] is nothing["settled"] is None


def test_percentages_are_cut_off_and_whole_ones_are_whole():
    assert evaluate.percent(0.99999) == "99.99" and evaluate.percent(1.0) == "100.00"
    assert evaluate.percent(None) == "-"
    assert [evaluate.percent(k / 100) for k in range(100)] == [f"{k}.00" for k in range(100)]


def test_a_run_is_evaluated_with_its_own_config(tmp_path):
    """But for how, and on which dataset."""
    folder = tiny.dataset(tmp_path / "data")
    checkpoints.claim(tmp_path / "run", config.to_json(tiny.experiment(folder)))
    with pytest.raises(checkpoints.CheckpointError, match=r"arch.L_cycles: the run has 2, now 3"):
        evaluate.evaluate(tiny.experiment(folder, arch={"L_cycles": 3}), tmp_path / "run")
    other = tiny.dataset(tmp_path / "other", test=5)
    with pytest.raises(checkpoints.CheckpointError, match="holds no checkpoint yet"):
        evaluate.evaluate(tiny.experiment(other, eval={"H_test": [2]}), tmp_path / "run")
