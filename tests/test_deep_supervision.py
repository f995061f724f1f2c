"""Deep supervision: who takes the next puzzle, who halts, what is learned from, and that runs continue bit for bit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from trm_jax import config, recursion
from trm_jax.data.loading import Dataset
from trm_jax.data.shape import Shape
from trm_jax.evaluation import tables
from trm_jax.inference.solver import Solver
from trm_jax.jobs import train
from trm_jax.models.network import Model
from trm_jax.runtime import checkpoints, distributed, metrics
from trm_jax.training import losses
from trm_jax.training import step as step_lib
from trm_jax.training.supervision import Batch, Begun, DeepSums, DeepSupervision, Held, SlotDraw
from trm_jax.training.system import System
from trm_jax.weights import weights_file

B, S, V, H, L = 8, 4, 5, 2, 2
ARCH = {"supervision": "deep", "halting_head": True, "tie_head": False, "prob_detach_prev_H": 1.0, "halt_max_steps": 3,
        "halt_exploration_prob": 0.0}


def contract(**arch) -> DeepSupervision:
    e = dataclasses.replace(tiny.experiment("unused", arch=ARCH | arch), global_batch_size=B)
    return DeepSupervision(Model(e.arch, Shape(S, V)), e)


@pytest.fixture(scope="module")
def given():
    """(params, fixed, rows); the halting head reads something, and its two logits differ."""
    params, fixed, table = jax.jit(contract().model.init)(jax.random.key(0))
    params["q_head"] = 0.3 * jax.random.normal(jax.random.key(1), params["q_head"].shape)
    params["q_head_bias"] = jnp.asarray([0.1, -0.2])
    return params, fixed, jnp.zeros((B, table.shape[1]))


def batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(*(jnp.asarray(rng.integers(0, V, shape), jnp.int32) for shape in ((B, S), (B, S), (B,))))


def held(halted, steps, seed=9) -> Held:
    y, z = (jax.random.normal(jax.random.key(i), (S + 2, B, 8)) for i in (seed, seed + 1))
    return Held(batch(seed), recursion.Latents(y, z), jnp.asarray(steps, jnp.int32), jnp.asarray(halted))


def begun(steps, may_halt=True, seed=9) -> Begun:
    carry = held([False] * B, [1] * B, seed)
    return Begun(carry.batch, carry.latents, jnp.asarray(steps, jnp.int32), jnp.full((B,), may_halt))


def run(c, params, rows, start):
    step = jax.jit(jax.value_and_grad(c.loss, argnums=(0, 1), has_aux=True), static_argnums=4)
    return step(params, rows, start, np.int32(H), L, jax.random.key(0))


def plain(c, params, rows, start, cycles=H):
    """(latents, x) after outer cycles in a plain loop."""
    x, latents = c.model.embed(params, start.batch.inputs, rows), start.latents
    for _ in range(cycles):
        latents = recursion.outer_cycle(c.model.core(params), latents, x, L)
    return latents, x


def test_halted_slots_take_the_next_puzzle_and_fresh_latents_and_the_others_go_on(given):
    _, fixed, _ = given
    c, halted = contract(), np.array([True, False] * 4)
    carry, new = held(halted, [3, 1, 2, 2, 3, 1, 1, 2]), batch(0)
    start = c.begin(fixed, carry, new, jax.random.key(0), SlotDraw(B, 0))
    fresh = c.model.initial_latents(fixed, B)
    for i in range(B):
        for ours, old, next_one in zip(start.batch, carry.batch, new):
            np.testing.assert_array_equal(ours[i], (next_one if halted[i] else old)[i])
        for ours, old, next_one in zip(start.latents, carry.latents, fresh):
            np.testing.assert_array_equal(ours[:, i], (next_one if halted[i] else old)[:, i])
    assert start.steps.tolist() == [1, 2, 1, 3, 1, 2, 1, 3]
    assert start.may_halt.all()
    first = c.begin(fixed, c.initial_carry(B), new, jax.random.key(0), SlotDraw(B, 0))
    jax.tree.map(np.testing.assert_array_equal, first.batch, new)
    jax.tree.map(np.testing.assert_array_equal, first.latents, fresh)


@pytest.mark.parametrize("act_continue", [False, True])
def test_loss_carry_and_sums_are_those_of_the_papers(given, act_continue):
    params, _, rows = given
    c = contract(no_ACT_continue=not act_continue)
    start = begun([1, 2, 3, 3, 1, 2, 1, 1])
    labels = start.batch.labels.at[2].set(losses.IGNORE).at[5, 1:].set(losses.IGNORE)
    later, _ = plain(c, params, rows, start)
    answer = jnp.argmax(c.model.logits(params, later.y), -1)
    labels = labels.at[1].set(answer[1]).at[3].set(answer[3])  # two that are right
    start = start._replace(batch=start.batch._replace(labels=labels))
    (loss, (carry, sums)), _ = run(c, params, rows, start)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), carry.latents, later)
    jax.tree.map(np.testing.assert_array_equal, carry.batch, start.batch)
    np.testing.assert_array_equal(carry.steps, start.steps)
    q_halt, q_continue = np.asarray(c.model.halting(params, later.y), np.float64).T
    last = np.asarray(start.steps) == 3
    halted = last | (q_halt > (q_continue if act_continue else 0))
    np.testing.assert_array_equal(carry.halted, halted)
    assert 0 < halted.sum() < B, "a test of nothing"

    def bce(q, target):
        p = 1 / (1 + np.exp(-q))
        return -(target * np.log(p) + (1 - target) * np.log(1 - p))
    valid = np.arange(B) != 2
    labelled = np.asarray(labels) != losses.IGNORE
    labels = np.asarray(labels)
    right = ((np.asarray(answer) == labels) | ~labelled).all(1) & valid
    assert right.sum() >= 2
    token = np.asarray(losses.per_example("stablemax_cross_entropy", c.model.logits(params, later.y), labels))
    halt, go_on = bce(q_halt, right) * valid, np.zeros(B)
    if act_continue:
        halt_next, continue_next = np.asarray(c.model.halting(params, plain(c, params, rows, start, 2 * H)[0].y)).T
        target = 1 / (1 + np.exp(-np.where(last, halt_next, np.maximum(halt_next, continue_next))))
        go_on = bce(q_continue, target) * valid
    np.testing.assert_allclose(loss, np.sum(token + 0.5 * halt + 0.5 * go_on), rtol=1e-4)
    done = halted & valid
    cell = ((np.asarray(answer) == labels) & labelled).sum(1) / np.maximum(labelled.sum(1), 1)
    expected = DeepSums(count=B - 1, loss=loss, token_loss=token.sum(), halt_loss=halt.sum(), continue_loss=go_on.sum(),
                        halted=done.sum(), cell_accuracy=cell[done].sum(), exact_accuracy=right[done].sum(),
                        halt_accuracy=((q_halt >= 0) == right)[done].sum(), steps=np.asarray(start.steps)[done].sum())
    for name, ours, theirs in zip(DeepSums._fields, sums, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, err_msg=name)


def test_no_gradient_enters_from_the_step_before_nor_through_the_continue_target(given):
    params, _, rows = given
    c = contract(no_ACT_continue=False)
    start = begun([1] * B)

    def by_latents(latents):
        return c.loss(params, rows, start._replace(latents=latents), np.int32(H), L, jax.random.key(0))[0]
    for leaf in jax.tree.leaves(jax.grad(by_latents)(start.latents)):
        assert not np.any(leaf)

    def target(params):
        latents, x = plain(c, params, rows, start)
        return jnp.sum(c._continue_target(c.model.core(params), params, latents, x, H, L, start.steps > 9))
    for leaf in jax.tree.leaves(jax.grad(target)(params)):
        assert not np.any(leaf)


def test_without_a_halting_head_every_puzzle_takes_all_steps(given):
    params, fixed, rows = given
    c = contract(halting_head=False)
    params = {k: v for k, v in params.items() if not k.startswith("q_head")}
    carry, halts, taken = c.initial_carry(B), [], []
    for k in range(7):
        start = c.begin(fixed, carry, batch(k), jax.random.key(k), SlotDraw(B, 0))
        (_, (carry, sums)), _ = run(c, params, rows, start)
        halts.append(np.asarray(carry.halted))
        taken.append(int(sums.steps))
        assert sums.halt_loss == 0
    assert [h.all() for h in halts] == [False, False, True] * 2 + [False] and not any(h.any() for h in halts[:2])
    assert taken == [0, 0, 3 * B, 0, 0, 3 * B, 0]


def test_exploration_forbids_early_halts_as_often_and_as_long_as_it_says(given):
    params, _, rows = given
    c, n = contract(halt_exploration_prob=0.3, halt_max_steps=6), 4000
    earliest = np.asarray(c._earliest_halt(jax.random.key(0), SlotDraw(n, 0), n))
    values, counts = np.unique(earliest, return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(counts / n, [0.7] + [0.06] * 5, atol=0.02)
    halves = [c._earliest_halt(jax.random.key(0), SlotDraw(n, first), n // 2) for first in (0, n // 2)]
    np.testing.assert_array_equal(np.concatenate(halves), earliest)
    assert (contract()._earliest_halt(jax.random.key(0), SlotDraw(B, 0), B) == 1).all()
    eager = params | {"q_head_bias": jnp.asarray([99.0, 0.0])}
    for may, halted in ((True, B), (False, 2)):  # the last step is the last, whatever exploration says
        (_, (carry, _)), _ = run(contract(), eager, rows, begun([1, 2, 3, 3, 1, 2, 1, 1], may))
        assert carry.halted.sum() == halted


def test_exploration_has_no_effect_where_there_is_one_step(given):
    params, _, rows = given
    c = contract(halt_exploration_prob=0.5, halt_max_steps=1)
    config.parse(config.to_json(c.experiment))
    assert set(np.asarray(c._earliest_halt(jax.random.key(0), SlotDraw(64, 0), 64)).tolist()) == {1, 2}
    (_, (carry, _)), _ = run(c, params, rows, begun([1] * B, False))
    assert carry.halted.all()


def test_means_divide_by_what_they_are_of():
    sums = DeepSums(count=8.0, loss=16.0, token_loss=8.0, halt_loss=4.0, continue_loss=0.0, halted=2.0,
                    cell_accuracy=1.0, exact_accuracy=1.0, halt_accuracy=2.0, steps=6.0)
    assert sums.means() == {"loss": 2, "token_loss": 1, "halt_loss": 0.5, "continue_loss": 0, "cell_accuracy": 0.5,
                            "exact_accuracy": 0.5, "halt_accuracy": 1, "steps": 3, "halted": 0.25}
    assert sums._replace(halted=0.0, exact_accuracy=0.0).means()["exact_accuracy"] == 0


TERMINAL = {"supervision": "terminal", "halting_head": False}


@pytest.mark.parametrize("arch", [
    {"recursion": "single_z"}, {"recursion": "direct", "L_cycles": 0, "halt_max_steps": 1, "H_cycles": 1},
    TERMINAL | {"recursion": "multi_z", "prob_detach_prev_H": 0.5, "H_layers": 1, "grad_calls": 2},
    TERMINAL | {"recursion": "direct", "L_cycles": 0}, TERMINAL | {"recursion": "single_z"},
], ids=lambda arch: f"{arch['recursion']} {arch.get('supervision', 'deep')}")
def test_either_contract_takes_any_recursion(arch):
    e = dataclasses.replace(tiny.experiment("unused", arch=ARCH | arch), global_batch_size=B)
    system = System(e, Shape(S, V), 10)
    state = jax.jit(system.init_state)()
    start = system.contract.begin(state.fixed, state.carry, batch(0), state.key, SlotDraw(B, 0))
    step = jax.jit(jax.value_and_grad(system.contract.loss, has_aux=True), static_argnums=4)
    rows = system.model.rows(state.table, jnp.zeros((B,), jnp.int32))
    (loss, (carry, _)), grads = step(state.params, rows, start, np.int32(e.arch.H_cycles), e.arch.L_cycles, state.key)
    assert np.isfinite(loss) and jax.tree.structure(carry) == jax.tree.structure(state.carry)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    assert jax.tree.structure(system.contract.batch_axes()) == jax.tree.structure(carry)
    for leaf, axis in zip(jax.tree.leaves(carry), jax.tree.leaves(system.contract.batch_axes())):
        assert leaf.shape[axis] == B


# Runs.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "sudoku4")


# Everything that a carry can be made of: many latents, two networks, ACT with continue, exploration.
EVERYTHING = {"arch": ARCH | {"recursion": "multi_z", "H_layers": 1, "grad_calls": 2, "no_ACT_continue": False,
                              "halt_exploration_prob": 0.5}, "eval": {"H_test": [1, 2], "stop_halted": True}}


def final_state(e, workdir):
    system = System(e, Dataset.load(e).shape, e.total_steps)
    with checkpoints.Checkpointer(workdir, read_only=True) as reader:
        return system, reader.restore(step_lib.place(system, distributed.data_mesh()))[0]


class Interruption(Exception):
    pass


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    e = tiny.experiment(data, **EVERYTHING)
    return e, workdir, train.train(e, workdir)


def test_a_continued_run_is_bit_identical(data, uninterrupted, tmp_path, monkeypatch):
    e, workdir, result = uninterrupted
    write = metrics.MetricWriter.write

    def interrupted(self, step, values):
        write(self, step, values)
        if step == 5:
            raise Interruption
    monkeypatch.setattr(metrics.MetricWriter, "write", interrupted)
    with pytest.raises(Interruption):
        train.train(e, tmp_path)
    monkeypatch.undo()
    continued = train.train(e, tmp_path)
    _, state = final_state(e, workdir)
    tiny.assert_identical(final_state(e, tmp_path)[1], state)
    assert continued["figures"] == result["figures"]
    steps = np.asarray(state.carry.steps)
    assert len(set(steps.tolist())) > 1, "slots should be at different steps"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all({"steps", "halted", "halt_loss", "continue_loss"} <= set(line) for line in lines if "loss" in line)


def test_one_device_does_what_eight_do(data):
    e = tiny.experiment(data, arch=ARCH | {"L_cycles": 1, "halt_exploration_prob": 0.5})
    system = System(e, Dataset.load(e).shape, e.total_steps)
    rng = np.random.default_rng(0)
    states = {}
    for devices in (1, 8):
        mesh = distributed.data_mesh(jax.devices()[:devices])
        step, state = step_lib.make_step(system, mesh, 1), step_lib.place(system, mesh)
        rng = np.random.default_rng(0)
        for _ in range(4):
            tokens = rng.integers(1, 6, (2, 16, 16)).astype(np.int32)
            put = distributed.put_batch(mesh, {"inputs": tokens[0], "labels": tokens[1],
                                               "puzzle_identifiers": np.zeros(16, np.int32)})
            state, *_ = step(state, Batch(**put))
        states[devices] = jax.device_get(state._replace(key=()))
    np.testing.assert_array_equal(states[1].carry.halted, states[8].carry.halted)
    np.testing.assert_array_equal(states[1].carry.steps, states[8].carry.steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), states[1], states[8])


def test_a_test_step_is_a_supervision_step(data, uninterrupted):
    e, workdir, result = uninterrupted
    assert result["H_test_unit"] == "supervision steps of 2 outer cycles each"
    assert [f["H_test"] for f in result["figures"]] == [1, 2]
    assert 1 <= result["figures"][1]["mean_steps"] <= 2 and "mean steps" in tables.table(result)
    system = System(e, Dataset.load(e).shape, e.total_steps)
    model = system.model
    assert system.test_flops_per_example(3, 2) == 3 * (2 * model.calls_flops(3) + model.head_flops())
    export = weights_file.from_run(workdir)
    solver = Solver.of(export)
    inputs = Dataset.load(e).test.inputs[:2]
    answers = solver.solve(list(inputs), max_cycles=3, settle=4, tries=1)
    assert all(a.status.endswith("after 3 supervision steps") for a in answers)
    w = export.weights
    x = model.embed(w.params, jnp.asarray(inputs), model.rows(w.table, jnp.zeros(2, jnp.int32)))
    latents = recursion.unroll(model.core(w.params), model.initial_latents(w.fixed, 2), x, 6, 2, model.cycle)
    np.testing.assert_array_equal([a.tokens for a in answers], model.answer(w.params, latents.y))
    weights_file.save(workdir / "w.safetensors", export, "float32")
    tiny.assert_identical(jax.device_get(weights_file.load(workdir / "w.safetensors").weights), jax.device_get(w))
