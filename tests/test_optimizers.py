"""Optimisers against plain numpy in float64; the sparse puzzle table against a dense one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trm_jax.config import Experiment
from trm_jax.training import optimizers
from trm_jax.training.curriculum import Curriculum

STEPS = 8
BASE = Experiment(lr=0.1, weight_decay=0.3, lr_warmup_steps=2, grad_clip_norm=0.0, beta1=0.8, beta2=0.9, adam_eps=1e-3,
                  curriculum_milestones=(50.0,), curriculum_heads_to_add=(1,))  # grows at step 4
SHAPES = {"kernel": (3, 4), "bias": (4,), "scale": ()}


def trees():
    """(params, one gradient tree for each step), float32."""
    rng = np.random.default_rng(0)

    def draw():
        return {name: np.float32(rng.normal(size=shape)) for name, shape in SHAPES.items()}
    return draw(), [draw() for _ in range(STEPS)]


def plain_run(e, params, gradients):
    """Every step written out: clip, rescale, moments, update, decay."""
    factor = Curriculum(e, STEPS).learning_rate_factor
    p = {name: np.float64(value) for name, value in params.items()}
    m, v = ({name: np.zeros_like(value) for name, value in p.items()} for _ in range(2))
    for t, grads in enumerate(gradients, 1):
        lr = e.lr * float(factor(np.int32(t)))
        norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in grads.values()))
        shrink = min(1.0, e.grad_clip_norm / norm) if e.grad_clip_norm else 1.0
        for name in p:
            g = np.float64(grads[name]) * shrink
            if t == 4:
                m[name], v[name] = m[name] * e.optimizer_reset_scale, v[name] * e.optimizer_reset_scale
            m[name] = e.beta1 * m[name] + (1 - e.beta1) * g
            v[name] = e.beta2 * v[name] + (1 - e.beta2) * g * g
            c1, c2 = 1 - e.beta1 ** t, 1 - e.beta2 ** t
            if e.optimizer == "adam_atan2":
                update = np.arctan2(m[name], np.sqrt(v[name]) / np.sqrt(c2)) / c1
            else:
                update = m[name] / c1 / (np.sqrt(v[name] / c2) + e.adam_eps)
            p[name] = p[name] * (1 - lr * e.weight_decay) - lr * update
    return p


def our_run(e, params, gradients):
    optimizer = optimizers.make(e, Curriculum(e, STEPS))
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    with jax.numpy_dtype_promotion("standard" if e.optimizer == "adamw" else "strict"):  # optax's Adam: 0.9 ** count
        for grads in gradients:
            updates, state = update(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.parametrize("change", [
    {}, {"optimizer": "adamw"}, {"grad_clip_norm": 0.5}, {"optimizer_reset_scale": 0.25},
    {"optimizer": "adamw", "optimizer_reset_scale": 0.0, "grad_clip_norm": 1.0, "transition_lr_warmup_steps": 2},
], ids=str)
def test_optimisers_are_the_plain_ones(change):
    e = dataclasses.replace(BASE, **change)
    params, gradients = trees()
    ours, plain = our_run(e, params, gradients), plain_run(e, params, gradients)
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], plain[name], rtol=1e-5, atol=1e-6)
    if change:  # it is not without effect
        unchanged = plain_run(BASE, params, gradients)
        assert max(np.abs(unchanged[name] - plain[name]).max() for name in SHAPES) > 1e-3


def test_moments_shrink_at_the_growth_and_only_there():
    e = dataclasses.replace(BASE, optimizer_reset_scale=0.5)
    optimizer = optimizers.make(e, Curriculum(e, STEPS))
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    ratios, before = [], None
    for grads in [{"w": jnp.ones(3)}] + [{"w": jnp.zeros(3)}] * 5:
        state = optimizer.update(grads, state, params)[1]
        mu = float(state[1].mu["w"][0])
        ratios.append(before and mu / before / e.beta1)
        before = mu
    np.testing.assert_allclose(ratios[1:], [1, 1, 0.5, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam_atan2", "adamw"])
def test_decay_applies_to_every_parameter(optimizer):
    e = dataclasses.replace(BASE, optimizer=optimizer)
    params, _ = trees()
    ours = our_run(e, params, [jax.tree.map(np.zeros_like, params)])  # lr of step 1 is half of 0.1
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], params[name] * (1 - 0.05 * 0.3), rtol=1e-6)


def plain_table(table, ids, grads, lr, decay):
    """With a dense gradient, as if every row were there; rows outside of the batch are put back."""
    dense = np.zeros_like(table)
    for i, g in zip(ids, grads):
        dense[i] += g
    new = table * (1 - lr * decay) - lr * np.sign(dense)
    rest = ~np.isin(np.arange(len(table)), ids)
    new[rest] = table[rest]
    return new


@pytest.mark.parametrize("rows, ids", [
    (10, [3, 7, 3, 0]), (10, [9, 9, 9, 9]), (3, [2, 0, 2, 0, 1, 2, 2, 0]), (1, [0, 0, 0]), (5, [4]),
], ids=str)
def test_sign_sgd_is_the_dense_one(rows, ids):
    rng = np.random.default_rng(1)
    table, grads = rng.normal(size=(rows, 6)).astype(np.float32), rng.normal(size=(len(ids), 6)).astype(np.float32)
    grads[:, 0] = 0  # sign(0) = 0: decay alone

    @jax.jit
    def step(table, ids, grads):
        distinct, slots = optimizers.touched_rows(ids, table.shape[0])
        sums = jax.ops.segment_sum(grads, slots, distinct.shape[0])
        return optimizers.sign_sgd(table, distinct, sums, jnp.float32(0.1), 0.5), distinct
    ours, distinct = step(table, np.int32(ids), grads)
    np.testing.assert_allclose(ours, plain_table(table, ids, grads, np.float32(0.1), 0.5), rtol=1e-6, atol=1e-7)
    rest = ~np.isin(np.arange(rows), ids)
    np.testing.assert_array_equal(np.asarray(ours)[rest], table[rest])
    padding = np.asarray(distinct)[len(set(ids)):]
    assert (padding == rows).all() and sorted(set(ids)) == distinct[:len(set(ids))].tolist()


def test_equal_ids_are_summed_before_the_sign():
    """Two small gradients against a large one: signs added up would say otherwise."""
    ids, grads = jnp.array([1, 1, 1]), jnp.array([[0.1], [0.1], [-1.0]])
    distinct, slots = optimizers.touched_rows(ids, 4)
    sums = jax.ops.segment_sum(grads, slots, distinct.shape[0])
    table = optimizers.sign_sgd(jnp.zeros((4, 1)), distinct, sums, jnp.float32(0.1), 0.0)
    np.testing.assert_allclose(table[:, 0], [0, 0.1, 0, 0], rtol=1e-6)


def test_padding_ids_change_nothing_whatever_their_gradient():
    table = jnp.arange(8, dtype=jnp.float32).reshape(4, 2)
    sums = jnp.array([[1.0, 1], [9, 9], [-9, 9]])
    new = optimizers.sign_sgd(table, jnp.array([2, 4, 4]), sums, jnp.float32(0.1), 0.0)
    expected = np.asarray(table).copy()
    expected[2] -= 0.1
    np.testing.assert_allclose(new, expected, rtol=1e-6)
