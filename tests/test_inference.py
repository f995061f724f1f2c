"""The engine: every job stops by its own rule, slots are refilled, tries are chosen and cancelled, budgets hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.scripted import DOMAIN, GRID, NEVER, Scripted, blanked
from trm_jax import config
from trm_jax.data.shape import Shape
from trm_jax.inference import engine, slots
from trm_jax.inference.choice import ORDER, STOPS, Jobs, choose
from trm_jax.inference.settings import InferenceError, Settings
from trm_jax.models.network import Model, Weights
from trm_jax.recursion import Latents
from trm_jax.runtime import distributed

pytestmark = pytest.mark.smoke


def verify(inputs, answers):
    return DOMAIN.verify(inputs, answers).solved


def run(blanks, verify=None, draw_symmetry=None, **settings):
    return engine.solve(Scripted().bind(), np.stack([blanked(b) for b in blanks]), Settings(**settings),
                        verify=verify, draw_symmetry=draw_symmetry)


def names(stops):
    return [STOPS[stop] for stop in stops]


def test_settled_jobs_stop_where_their_own_answer_stands_and_slots_are_refilled():
    blanks = [3, 9, 1, 6, 9, 2, 11, 4, 4, 1, 7, 5] * 3
    r = run(blanks, settle=4, batch_size=4)
    np.testing.assert_array_equal(r.answers.since, blanks)
    np.testing.assert_array_equal(r.answers.cycles, np.array(blanks) + 4)
    np.testing.assert_array_equal(r.answers.tokens, np.tile(GRID, (36, 1)))
    assert set(names(r.answers.stop)) == {"settled"} and r.begun.all() and not r.answers.verified.any()
    assert r.cycles == sum(blanks) + 4 * 36
    assert r.cycles <= r.slot_cycles < 1.35 * r.cycles, "cost follows the mean"
    assert r.core_calls == 3 * r.slot_cycles


def test_what_never_settles_runs_to_its_limit_in_a_batch_of_its_own():
    r = run([2, 3, 1, 2, NEVER, 3, 2, 2], settle=2, max_cycles=3000, batch_size=8)
    assert r.answers.cycles[4] == 3000 and names(r.answers.stop)[4] == "budget"
    assert r.slot_cycles < 3000 + 8 * 70, "the batch shrinks to the one that is left"


def test_the_verifier_stops_what_it_accepts():
    r = run([5, NEVER, 9], verify, settle=0, max_cycles=40)
    assert names(r.answers.stop) == ["verified", "budget", "verified"]
    assert r.answers.verified.tolist() == [True, False, True]
    assert r.answers.since.tolist() == [5, 40, 9]
    assert 5 <= r.answers.cycles[0] <= 12 and r.answers.cycles[1] == 40


def test_a_small_residual_stops():
    r = run([0, 0], settle=0, max_cycles=100, tolerance=0.051)  # the state counts: its residual is 1 / cycles
    assert names(r.answers.stop) == ["converged"] * 2 and r.answers.cycles.tolist() == [20, 20]
    np.testing.assert_allclose(r.answers.residual, 1 / 20, rtol=1e-5)


def test_tries_are_begun_one_after_another_and_cancelled_by_the_verifier():
    blanks = [3, NEVER, 3, NEVER]
    r = run(blanks, verify, DOMAIN.draw_symmetry, tries=5, max_cycles=12, settle=0, batch_size=4)
    at = [r.jobs.attempt[r.jobs.puzzle == p] for p in range(4)]
    assert sorted(at[1]) == sorted(at[3]) == [0, 1, 2, 3, 4], "an unsolved puzzle gets all of them"
    assert max(len(at[0]), len(at[2])) < 5
    assert r.answers.attempt[[0, 2]].tolist() == [0, 0] and r.answers.verified.tolist() == [True, False, True, False]
    assert set(names(r.jobs.stop[(r.jobs.puzzle == 0) & (r.jobs.attempt > 0)])) <= {"cancelled"}


def test_symmetries_are_undone_and_noise_is_not_the_neighbours():
    """A real network, untrained: what matters is where its answers come from."""
    arch = config.Arch(hidden_size=16, mlp_hidden_size=16, mixer_hidden_size=16, puzzle_emb_ndim=16, puzzle_emb_len=1,
                       forward_dtype="float32")
    model = Model(arch, Shape(16, 6))
    w = Weights(*jax.jit(model.init)(jax.random.key(0)))
    inputs = np.stack([blanked(b) for b in (3, 8, 5, 12, 9)])

    def jobs(rows, **settings):
        r = engine.solve(model.bind(w, 2), inputs[rows], Settings(settle=0, max_cycles=3, **settings),
                         draw_symmetry=DOMAIN.draw_symmetry)
        which = np.arange(5)[rows][r.jobs.puzzle]
        return {(int(p), int(k)): tokens for p, k, tokens in zip(which, r.jobs.attempt, r.jobs.tokens)}
    found = jobs(slice(None), tries=3, vary="symmetry", batch_size=4, seed=7)
    assert len(found) == 15
    for (p, k), tokens in found.items():
        asked, back = inputs[p], None
        if k:
            symmetry = DOMAIN.draw_symmetry(np.random.default_rng([7, p, k]), 1)
            asked, back = symmetry.apply(asked[None])[0], symmetry.inverse()
        alone = np.asarray(slots.unrolled(model.bind(w, 2), jnp.asarray(asked[None]), jnp.zeros(1, jnp.int32), 3))
        np.testing.assert_array_equal(tokens, (back.apply(alone) if back else alone)[0])
    for vary in ("start", "cycle"):
        noisy = jobs(slice(None), tries=2, vary=vary, sigma=1.0, batch_size=4)
        again = jobs(slice(2, 5), tries=2, vary=vary, sigma=1.0, batch_size=4)
        assert all((noisy[key] == again[key]).mean() > 0.9 for key in [(2, 0), (3, 0), (4, 0)])
        assert any((noisy[p, 0] != noisy[p, 1]).any() for p in range(5)), "a second try is another one"
        assert all((noisy[p, 0] == found[p, 0]).mean() > 0.9 for p in range(5)), "the first is the plain one"


@pytest.mark.parametrize("arch, L", [
    ({"recursion": "single_z"}, 2), ({"recursion": "multi_z"}, 2), ({"recursion": "direct", "L_cycles": 0}, 0),
    ({"H_layers": 1, "supervision": "deep", "halting_head": True}, 2)])
def test_every_system_of_the_family(arch, L):
    arch = config.Arch(**{"L_cycles": 2, "hidden_size": 8, "mlp_hidden_size": 8, "mixer_hidden_size": 8,
                          "puzzle_emb_ndim": 8, "puzzle_emb_len": 1, "forward_dtype": "float32", **arch})
    model = Model(arch, Shape(16, 6))
    w = Weights(*jax.jit(model.init)(jax.random.key(0)))
    inputs = np.stack([blanked(b) for b in (3, 8, 5)])
    r = engine.solve(model.bind(w, L), inputs, Settings(max_cycles=3, settle=0, batch_size=2))
    fixed = jax.jit(slots.unrolled)(model.bind(w, L), jnp.asarray(inputs), jnp.zeros(3, jnp.int32), np.int32(3))
    np.testing.assert_array_equal(r.answers.tokens, fixed)
    assert r.core_calls == r.slot_cycles * model.test_cycles * (L + 1)
    assert (r.answers.q_halt != 0).all() == arch.halting_head


def test_noise_has_the_deviation_asked_for():
    keys = jax.random.split(jax.random.key(0), 3)
    zeros = jnp.zeros((50, 3, 40))
    disturbed = jax.jit(slots.disturbed)
    moved = disturbed(Latents(zeros, zeros), keys, jnp.array([0.0, 1.0, 0.5], jnp.float32))
    assert float(jnp.std(moved.y[:, 0])) == 0
    np.testing.assert_allclose([jnp.std(moved.y[:, 1]), jnp.std(moved.z[:, 2])], [1, 0.5], rtol=0.05)
    assert float(jnp.max(jnp.abs(moved.y[:, 1] - moved.z[:, 1]))) > 0.1
    turned = disturbed(Latents(zeros, zeros), keys[::-1], jnp.ones(3, jnp.float32))
    np.testing.assert_array_equal(turned.y[:, 1], moved.y[:, 1])  # a draw is its key's, wherever in the batch


def test_budgets():
    r = run([NEVER, 2], settle=0, max_cycles=10, tries=4, vary="start", max_calls=3 * 25, batch_size=8)
    spent = [r.jobs.cycles[r.jobs.puzzle == p].sum() for p in range(2)]
    assert spent == [25, 25], "core calls of a puzzle are shared by its tries"
    r = run([2, 2], verify, settle=4, max_cycles=10, tries=4, vary="start", max_calls=3 * 25)
    assert r.answers.verified.all() and r.cycles <= 2 * 25
    r = run([NEVER] * 9, settle=0, max_cycles=10**8, max_seconds=0.01, batch_size=2)
    assert r.begun.sum() == 2 and names(r.answers.stop) == ["budget"] * 9 and r.seconds < 20
    assert not r.answers.tokens[2:].any()


def test_several_devices_answer_the_same():
    blanks = [3, 9, 1, 6, 9, 2, 11, 4, 4, 1, NEVER, 5]
    mesh = distributed.data_mesh(jax.devices()[:4])
    bound = Scripted().bind()
    inputs = np.stack([blanked(b) for b in blanks])
    one, four = (engine.solve(bound, inputs, Settings(settle=4, max_cycles=1000, batch_size=8), mesh=m)
                 for m in (None, mesh))
    for a, b in zip(one.answers, four.answers):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    at_work = slots.begin(bound, inputs[:8], np.zeros(8, np.int32), jax.random.key(0), np.zeros(8, np.int32),
                             np.zeros(8, np.int32), np.full(8, 9, np.int32), np.zeros(8, np.float32), "", mesh)
    assert at_work.x.sharding.shard_shape(at_work.x.shape)[1] == at_work.running.sharding.shard_shape((8,))[0] == 2


def test_nothing_asked():
    r = engine.solve(Scripted().bind(), np.zeros((0, 16), np.uint8))
    assert len(r.jobs.puzzle) == len(r.begun) == r.core_calls == 0


def test_progress_is_reported():
    seen = []
    engine.solve(Scripted().bind(), np.stack([blanked(b) for b in (1, 9, 2, 30)]),
                 Settings(max_cycles=20, batch_size=2), report=lambda done, n: seen.append((done, n)))
    assert seen == sorted(seen) and seen[-1] == (4, 4)


def test_unrolled_is_the_plain_loop_at_any_depth_with_one_program():
    fixed = jax.jit(slots.unrolled)
    bound, inputs = Scripted().bind(), jnp.asarray(np.stack([blanked(b) for b in (3, NEVER)]))
    programs = set()
    for cycles in (2, 3, 20_000):
        answers = np.asarray(fixed(bound, inputs, jnp.zeros(2, jnp.int32), np.int32(cycles)))
        assert verify(np.asarray(inputs), answers).tolist() == [cycles >= 3, False]
        programs.add(fixed._cache_size())
    assert len(programs) == 1


def table(*rows):
    """Jobs of (puzzle, attempt, answer, verified, stop, residual, q_halt)."""
    puzzle, attempt, answer, verified, stop, residual, q = zip(*rows)
    stop = [STOPS.index(s) for s in stop]
    since = 10 - np.array(attempt)  # later tries settle sooner
    return Jobs(np.array(puzzle), np.array(attempt), np.array(answer, np.uint8)[:, None], np.array(verified),
                np.array(stop), since + 4, since, np.array(residual), np.array(q, float), -np.array(q, float))


@pytest.mark.parametrize("by, chosen", [
    (ORDER, [3, 5, 9, -1]), (("residual",), [0, 5, 9, -1]), (("halting",), [1, 4, 7, -1]),
    (("vote",), [1, 6, 9, -1]), (("residual", "vote"), [0, 6, 9, -1]),
    (("settled",), [3, 8, 10, -1]), (("vote", "settled"), [2, 8, 10, -1])])
def test_choice(by, chosen):
    jobs = table(
        (0, 0, 1, False, "settled", 1e-6, 0), (0, 1, 2, False, "settled", 1e-3, 3),
        (0, 2, 2, False, "settled", 1e-3, 1), (0, 3, 3, True, "verified", 0.5, 2),
        (1, 0, 1, False, "settled", 1e-1, 5), (1, 1, 2, False, "settled", 3e-5, 4),
        (1, 2, 3, False, "settled", 2e-5, 3),
        (2, 1, 9, False, "settled", 1e-2, 9), (1, 3, 3, False, "settled", 4e-5, 2), (2, 0, 8, False, "budget", 1e-3, 0),
        (2, 2, 8, False, "budget", 1e-3, 0), (2, 3, 7, False, "cancelled", 1e-9, 99))
    assert choose(jobs, 4, by).tolist() == chosen


@pytest.mark.parametrize("wrong, message", [
    ({"max_cycles": 0}, "max_cycles = 0: must be at least 1"), ({"settle": -1}, "settle = -1"),
    ({"vary": "luck"}, "vary = 'luck': must be one of"), ({"choose": ("best",)}, "choose = "),
    ({"tries": 2, "vary": "cycle", "sigma": 0.0}, "sigma = 0.0: tries that differ by noise")])
def test_impossible_settings(wrong, message):
    with pytest.raises(InferenceError, match=message):
        Settings(**wrong)


def test_no_symmetries_to_draw():
    with pytest.raises(InferenceError, match="has no symmetries"):
        run([1], tries=2)


def test_nothing_is_copied_to_the_host_within_a_call():
    """A call of the device is one program; what comes back are the small arrays of `Seen`."""
    at_work = slots.begin(Scripted().bind(), np.stack([blanked(3)] * 2), np.zeros(2, np.int32), jax.random.key(0),
                             np.zeros(2, np.int32), np.zeros(2, np.int32), np.full(2, 9, np.int32),
                             np.zeros(2, np.float32), "", None)
    lowered = slots.advanced.lower(Scripted().bind(), at_work, np.ones(2, bool), np.int32(4), np.int32(0), np.int32(4),
                                   np.float32(0), False)
    text = lowered.as_text()
    assert "stablehlo.while" in text and "callback" not in text and "outfeed" not in text


def test_an_open_queue_answers_what_comes_while_others_are_at_work():
    """Puzzles come three at a time, each with its own budget; every one is answered as it would be alone."""
    blanks = [3, 9, NEVER, 6, 1, 11, NEVER, 2, 5]
    budgets = [(1, 40), (1, 40), (1, 7), (1, 40), (1, 40), (1, 4), (1, 10 ** 6), (1, 40), (1, 40)]
    found, sizes, left = {}, [], list(range(len(blanks)))

    def source(room, idle):
        coming = [left.pop(0) for _ in range(min(3, room, len(left)))]
        return [engine.Arrival(blanked(blanks[i]), *budgets[i], finished=lambda jobs, i=i: found.update({i: jobs}),
                               until=lambda i=i: 0.0 if len(found) == 8 and i == 6 else np.inf)
                for i in coming] or (None if len(found) >= 8 else [])
    engine.serve(Scripted().bind(), Settings(settle=0, batch_size=4), source, seq_len=16, places=5, verify=verify,
                 report=lambda *load: sizes.append(load))
    assert sorted(found) == list(range(9))
    for i, jobs in found.items():
        limit = budgets[i][1]
        right = blanks[i] <= limit and blanks[i] != NEVER
        assert jobs.verified[0] == right and jobs.since[0] == (blanks[i] if right else jobs.cycles[0])
        assert names(jobs.stop) == ["verified" if right else "budget"] and jobs.cycles[0] <= limit
    assert max(open_ for open_, _, _ in sizes) <= 5 and {slots for _, _, slots in sizes} >= {1, 4}


def test_frames_of_an_open_queue_are_every_cycle_of_the_puzzle_itself():
    """Under symmetries too: what is watched are answers to the puzzle as it was asked."""
    frames, jobs, given = [], [], []
    guest = engine.Arrival(blanked(NEVER), 3, 4, finished=jobs.append, watch=frames.append)

    def source(room, idle):
        given.append(guest)
        return [guest] if len(given) == 1 else None
    engine.serve(Scripted().bind(), Settings(settle=0, tries=3, batch_size=2), source, seq_len=16, places=1,
                 draw_symmetry=DOMAIN.draw_symmetry)
    for attempt in range(3):
        assert [f.cycle for f in frames if f.attempt == attempt] == [1, 2, 3, 4]
    last = frames[3]
    assert (last.tokens == jobs[0].tokens[0]).all() and jobs[0].attempt[0] == 0 and last.sure.shape == (16,)
