"""Terminal supervision: the carry of slots, the heavy tail of depths, and what the loss is made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from trm_jax import recursion
from trm_jax.config import Deepen
from trm_jax.data.shape import Shape
from trm_jax.models.network import Model
from trm_jax.recursion import Latents
from trm_jax.training import losses
from trm_jax.training.supervision import Batch, CountedContents, SlotContents, SlotDraw, Terminal

B, S, V, L = 8, 4, 5, 2


def contract(**deepen) -> Terminal:
    e = dataclasses.replace(tiny.experiment("unused"), global_batch_size=B, deepen=Deepen(**deepen))
    return Terminal(Model(e.arch, Shape(S, V)), e)


@pytest.fixture(scope="module")
def given():
    """(params, fixed, rows)."""
    params, fixed, table = jax.jit(contract().model.init)(jax.random.key(0))
    return params, fixed, jnp.zeros((B, table.shape[1]))


def batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(*(jnp.asarray(rng.integers(0, V, shape), jnp.int32) for shape in ((B, S), (B, S), (B,))))


def begin(c, fixed, carry, new, key=0, first=0):
    return c.begin(fixed, carry, new, jax.random.key(key), SlotDraw(B, first))


def held(seed=9) -> SlotContents:
    y, z = (jax.random.normal(jax.random.key(i), (S + 2, B, 8)) for i in (seed, seed + 1))
    return SlotContents(batch(seed), Latents(y, z))


def kept(start: SlotContents, carry: SlotContents, new: Batch, fresh: Latents) -> list[bool]:
    """Per slot: does it go on with its old puzzle and latents? Never with a mixture."""
    out = []
    for i in range(B):
        slot = [*(a[i] for a in start.batch), *(a[:, i] for a in start.latents)]
        old = [*(a[i] for a in carry.batch), *(a[:, i] for a in carry.latents)]
        fresh_slot = [*(a[i] for a in new), *(a[:, i] for a in fresh)]
        is_old, is_new = (all(np.array_equal(a, b) for a, b in zip(slot, other)) for other in (old, fresh_slot))
        assert is_old != is_new
        out.append(is_old)
    return out


def test_the_published_recipe_carries_nothing(given):
    params, fixed, rows = given
    c, new = contract(), batch(0)
    assert c.initial_carry(B) == ()
    start = begin(c, fixed, (), new)
    jax.tree.map(np.testing.assert_array_equal, start, SlotContents(new, c.model.initial_latents(fixed, B)))
    _, (carry, _) = c.loss(params, rows, start, np.int32(2), L, jax.random.key(0))
    assert carry == ()


@pytest.mark.parametrize("share, probability, expected", [
    (0.5, 1.0, [True] * 4 + [False] * 4), (0.25, 1.0, [True] * 2 + [False] * 6), (1.0, 1.0, [True] * 8),
    (1.0, 0.0, [False] * 8)])
def test_which_slots_keep_their_puzzle_and_latents(given, share, probability, expected):
    _, fixed, _ = given
    c, carry, new = contract(carry_share=share, carry_keep_prob=probability), held(), batch(0)
    start = begin(c, fixed, carry, new)
    assert kept(start, carry, new, c.model.initial_latents(fixed, B)) == expected


def test_slots_are_kept_with_the_given_probability(given):
    _, fixed, _ = given
    c, carry, new = contract(carry_share=0.5, carry_keep_prob=0.7), held(), batch(0)
    starts = jax.jit(jax.vmap(lambda key: c.begin(fixed, carry, new, key, SlotDraw(B, 0)).latents.y[0, :, 0]))(
        jax.random.split(jax.random.key(1), 500))
    shares = np.mean(np.asarray(starts) == np.asarray(carry.latents.y[0, :, 0]), axis=0)
    np.testing.assert_allclose(shares[:4], 0.7, atol=0.07)
    np.testing.assert_array_equal(shares[4:], 0)


def test_nothing_is_kept_before_the_first_step(given):
    _, fixed, _ = given
    c, new = contract(carry_share=1.0, carry_keep_prob=1.0), batch(0)
    carry = c.initial_carry(B)
    start = begin(c, fixed, carry, new)
    jax.tree.map(np.testing.assert_array_equal, start, SlotContents(new, c.model.initial_latents(fixed, B)))


def test_a_device_draws_for_its_part_what_one_device_would_draw(given):
    _, fixed, _ = given
    c, carry, new = contract(carry_share=0.75, carry_keep_prob=0.5), held(), batch(0)
    whole = begin(c, fixed, carry, new, key=3)
    for first in (0, 4):
        part = slice(first, first + 4)
        carry_part = SlotContents(Batch(*(a[part] for a in carry.batch)), Latents(*(a[:, part] for a in carry.latents)))
        start = begin(c, fixed, carry_part, Batch(*(a[part] for a in new)), key=3, first=first)
        jax.tree.map(np.testing.assert_array_equal, start.batch, Batch(*(a[part] for a in whole.batch)))
        jax.tree.map(np.testing.assert_array_equal, start.latents, Latents(*(a[:, part] for a in whole.latents)))


def test_what_is_kept_are_the_final_latents_detached(given):
    params, fixed, rows = given
    c, H = contract(carry_share=1.0, carry_keep_prob=1.0), 4
    start = begin(c, fixed, c.initial_carry(B), batch(0))
    run = jax.jit(c.loss, static_argnums=4)
    _, (carry, _) = run(params, rows, start, np.int32(H), L, jax.random.key(0))
    x = c.model.embed(params, start.batch.inputs, rows)
    latents = start.latents
    for _ in range(H):
        latents = recursion.outer_cycle(c.model.core(params), latents, x, L)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), carry.latents, latents)
    jax.tree.map(np.testing.assert_array_equal, carry.batch, start.batch)
    again = begin(c, fixed, carry, batch(1))
    jax.tree.map(np.testing.assert_array_equal, again, carry)

    def carried(params):
        return sum(jnp.sum(a) for a in run(params, rows, start, np.int32(H), L, jax.random.key(0))[1][0].latents)
    for grad in jax.tree.leaves(jax.grad(carried)(params)):
        assert not np.any(grad)


@pytest.mark.parametrize("H, deepest", [(2, 64), (8, 12), (5, 5)])
def test_the_heavy_tail_lies_between_H_and_its_maximum(H, deepest):
    c = contract(tail_prob=1.0, tail_max_H=deepest)
    keys = jax.random.split(jax.random.key(0), 2000)
    depths = np.asarray(jax.jit(jax.vmap(lambda key: c.depth(np.int32(H), key)))(keys))
    assert depths.dtype == np.int32
    assert depths.min() == H and depths.max() == deepest
    assert np.median(depths) == pytest.approx(np.sqrt(H * deepest), rel=0.15)  # log-uniform


def test_the_tail_comes_up_as_often_as_asked_for():
    keys = jax.random.split(jax.random.key(0), 2000)
    c = contract(tail_prob=0.3, tail_max_H=1000)
    depths = np.asarray(jax.jit(jax.vmap(lambda key: c.depth(np.int32(2), key)))(keys))
    assert np.mean(depths != 2) == pytest.approx(0.3, abs=0.05)
    H = np.int32(7)
    assert contract().depth(H, keys[0]) is H


def test_loss_is_the_sum_over_examples_and_unlabelled_ones_do_not_count(given):
    params, fixed, rows = given
    c, new = contract(), batch(0)
    labels = new.labels.at[2].set(losses.IGNORE).at[5, 1:].set(losses.IGNORE)
    start = begin(c, fixed, (), new._replace(labels=labels))
    loss, (_, sums) = jax.jit(c.loss, static_argnums=4)(params, rows, start, np.int32(3), L, jax.random.key(0))
    x = c.model.embed(params, new.inputs, rows)
    logits = c.model.logits(params, recursion.unroll(c.model.core(params), start.latents, x, 3, L).y)
    per_example = losses.per_example("stablemax_cross_entropy", logits, labels)
    np.testing.assert_allclose(loss, np.sum(per_example), rtol=1e-4)
    sums = jax.device_get(sums)
    assert sums.loss == loss and sums.count == B - 1
    labels = np.asarray(labels)
    right = np.asarray(logits).argmax(-1) == labels
    assert sums.exact_accuracy == sum(right[i, labels[i] != losses.IGNORE].all() for i in range(B) if i != 2)


def test_a_slot_is_released_when_its_answer_is_right_or_its_time_is_over(given):
    """Wrong for less than K steps: kept for sure. Right: kept with carry_keep_prob. K steps: released."""
    params, fixed, rows = given
    c, new = contract(carry_share=0.75, carry_keep_prob=0.0, carry_steps=3), batch(0)
    jax.tree.map(np.testing.assert_array_equal, begin(c, fixed, c.initial_carry(B), new).batch, new)
    steps, right = jnp.asarray([0, 1, 2, 3, 4, 1, 1, 1], jnp.int32), jnp.asarray([False] * 5 + [True, False, False])
    carry = CountedContents(*held(), steps, right)
    start = begin(c, fixed, carry, new)
    assert kept(start, carry, new, c.model.initial_latents(fixed, B)) == [True] * 3 + [False] * 5, "3, 4: K; 5: right"
    np.testing.assert_array_equal(start.steps, [0, 1, 2] + [0] * 5)
    always = contract(carry_share=1.0, carry_keep_prob=1.0, carry_steps=3)
    assert kept(begin(always, fixed, carry, new), carry, new, c.model.initial_latents(fixed, B)) == [
        True] * 3 + [False] * 2 + [True] * 3, "with probability 1 right ones are kept too"
    _, (after, sums) = jax.jit(c.loss, static_argnums=4)(params, rows, start, np.int32(2), L, jax.random.key(0))
    np.testing.assert_array_equal(after.steps, start.steps + 1)
    assert after.right.dtype == bool and float(sums.exact_accuracy) == np.asarray(after.right).sum()
    x = c.model.embed(params, start.batch.inputs, rows)
    y = recursion.unroll(c.model.core(params), start.latents, x, 2, L).y
    answers = np.asarray(c.model.logits(params, y)).argmax(-1)
    np.testing.assert_array_equal(after.right, np.all(answers == np.asarray(start.batch.labels), axis=1))
