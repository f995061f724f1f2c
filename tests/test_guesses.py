"""Search over guesses, with the packaged weights: they know no size, so that games of 4x4 and 6x6 will do."""

import time

import numpy as np
import pytest

from trm_jax import puzzles
from trm_jax.data.shape import Shape
from trm_jax.inference import answering
from trm_jax.inference.guesses import GuessSearch, can_guess
from trm_jax.inference.settings import InferenceError, Settings
from trm_jax.inference.solver import Solver
from trm_jax.models.network import Model
from trm_jax.weights import weights_file

DOMAIN = puzzles.get("sudoku", seq_len=36)
SETTINGS = Settings(vary="guess", tries=64, max_cycles=1, guess_cycles=4, settle=0)


@pytest.fixture(scope="module")
def bound():
    export = weights_file.read("rsm-sudoku")
    shape = Shape(DOMAIN.seq_len, DOMAIN.vocab_size, units=DOMAIN.units)
    return Model(export.experiment.arch, shape).bind(export.weights, export.metadata["L"])


@pytest.fixture(scope="module")
def asked():
    inputs, labels, _ = DOMAIN.generate(6, seed=3)
    return inputs, labels


def test_what_clues_forbid_is_what_the_rules_say():
    [inputs] = DOMAIN.generate(1, seed=5).inputs
    forbidden = DOMAIN.forbidden(inputs)
    for cell in range(DOMAIN.seq_len):
        for token in range(DOMAIN.vocab_size):
            filled = np.where(np.arange(DOMAIN.seq_len) == cell, token, inputs)
            fine = token >= 2 and (inputs[cell] in (1, token)) and not DOMAIN.conflicts(filled.astype(np.uint8))
            assert forbidden[cell, token] != fine


def test_guesses_find_what_the_plain_try_leaves_open(bound, asked):
    """A plain try of one cycle concludes little; with guesses all are found, and only verified answers are given."""
    inputs, labels = asked
    told = []
    plain = answering.solve(bound, DOMAIN, inputs, Settings(max_cycles=1, settle=0))
    found = answering.solve(bound, DOMAIN, inputs, SETTINGS, finished=lambda i, jobs: told.append((i, jobs)))
    assert plain.answers.verified.sum() < found.answers.verified.sum() == len(inputs)
    np.testing.assert_array_equal(found.answers.tokens, labels)
    assert sorted(i for i, _ in told) == list(range(len(inputs)))
    assert all(jobs.verified[0] and (jobs.tokens[0] == labels[i]).all() for i, jobs in told)
    assert found.core_calls == found.slot_cycles * bound.core_calls > plain.core_calls
    later = ~plain.answers.verified
    assert (found.answers.attempt[later] > 0).all() and (found.answers.cycles[later] >= 4).all()


def test_the_same_search_twice_is_the_same(bound, asked):
    search = GuessSearch(bound, DOMAIN)
    a, b = (search(asked[0][0], SETTINGS) for _ in range(2))
    np.testing.assert_array_equal(a.tokens, b.tokens)
    assert a[1:] == b[1:]


def test_a_puzzle_without_solution_ends_the_search_by_itself(bound):
    """A cell is open whose column has all the values that its row has left."""
    [inputs], [labels], _ = DOMAIN.generate(1, seed=7)
    almost = labels.copy()
    almost[[0, 1]] = 1
    almost[[DOMAIN.side, 2 * DOMAIN.side]] = labels[[0, 1]]
    found = GuessSearch(bound, DOMAIN)(almost, SETTINGS)
    assert found.tokens is None and found.nodes == 1


@pytest.mark.parametrize("limit", [{"tries": 9}, {"max_calls": 500}])
def test_budgets_are_kept(bound, limit):
    empty = np.ones(DOMAIN.seq_len, np.uint8)  # has too many solutions for one cycle a node to reach any
    settings = Settings(**{"vary": "guess", "tries": 1000, "guess_cycles": 1, "max_cycles": 1, "settle": 0} | limit)
    found = GuessSearch(bound, DOMAIN)(empty, settings)
    assert found.nodes <= settings.tries
    assert found.slot_cycles * bound.core_calls <= (settings.max_calls or 10**9)


def test_time_is_kept(bound):
    found = GuessSearch(bound, DOMAIN)(np.ones(DOMAIN.seq_len, np.uint8), SETTINGS, until=time.perf_counter())
    assert found.nodes == 0 and found.tokens is None


def test_where_there_are_no_units_guesses_are_refused(bound):
    maze = puzzles.get("maze", rows=6, cols=6)
    assert can_guess(bound, DOMAIN) and not can_guess(bound, maze)
    with pytest.raises(InferenceError, match="vary = 'guess'"):
        answering.solve(bound, maze, np.ones((1, 36), np.uint8), SETTINGS)


def test_the_usual_settings_suit_the_weights():
    usual = {name: Solver.load(name).usual for name in ("rsm-sudoku", "rsm-sudoku-quick", "rsm-maze-quick")}
    assert [u["vary"] for u in usual.values()] == ["guess", "symmetry", "symmetry"]
    assert all(u["tries"] > 1 for u in usual.values())


def test_watched_tries_are_those_that_solve_makes(bound, asked):
    """The plain one, then node by node with its guesses, up to the one that solve finds; each says why it failed."""
    solver, budget = Solver(bound, DOMAIN), {"vary": "guess", "seed": 0}
    [answer] = solver.solve([asked[0][0]], tries=64, max_cycles=1, settle=0, **budget)
    watched = list(solver.traces(asked[0][0], 1, tries=64, **budget))
    assert [told.attempt for _, told in watched] == list(range(1, answer.attempt + 1)) and answer.verified
    assert watched[0][0].asked is None and watched[-1][1].verified and watched[-1][1].text == answer.text
    for trace, told in watched[1:]:
        guessed = trace.asked != trace.inputs
        assert (trace.inputs[guessed] == 1).all() and (guessed.sum() > 0) == (told.attempt > 2)
    assert all(told.reason and not told.verified for _, told in watched[:-1])
    assert len(list(solver.traces(asked[0][0], 1, tries=2, **budget))) == 2
