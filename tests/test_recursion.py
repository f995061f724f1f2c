"""Recursions against plain Python loops, in values and in gradients; what is detached is proved by gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient

from trm_jax import recursion
from trm_jax.recursion import Latents

T, B, D = 3, 2, 4


def core_of(params):
    return lambda state, injection: jnp.tanh((state + injection) @ params["w"] + params["b"][None, None])


@pytest.fixture(scope="module")
def given():
    """(params, latents, x, weights): the loss below is a weighted sum, so that no gradient cancels."""
    keys = jax.random.split(jax.random.key(0), 6)
    params = {"w": jax.random.normal(keys[0], (D, D)), "b": jax.random.normal(keys[1], (D,))}
    y, z, x, weights = (jax.random.normal(key, (T, B, D)) for key in keys[2:])
    return params, Latents(y, z), x, weights


def plain_outer_cycle(core, latents, x, L):
    y, z = latents
    for _ in range(L):
        z = core(z, y + x)
    return Latents(core(y, z), z)


def plain_rsm(core, latents, x, H, L, keep):
    """The docstring of recursion.py, with every stop written out."""
    for _ in range(H - 2):
        latents = stop_gradient(plain_outer_cycle(core, latents, x, L))
    y, z = latents
    for _ in range(L):
        z = stop_gradient(core(z, y + x))
    y = core(stop_gradient(y), z)
    latents = Latents(y if keep else stop_gradient(y), z)
    return plain_outer_cycle(core, latents, x, L)


def ours_rsm(core, latents, x, H, L, keep):
    latents = recursion.warm_up(core, latents, x, H - 2, L)
    latents = recursion.transition(core, latents, x, L, keep)
    return recursion.outer_cycle(core, latents, x, L)


def value_and_grads(step, given, *args):
    """Loss and its gradients by params, latents and x."""
    params, latents, x, weights = given

    def loss(params, latents, x):
        y, z = step(core_of(params), latents, x, *args)
        return jnp.sum(weights * y) + jnp.sum(weights * z * z)
    return jax.value_and_grad(loss, argnums=(0, 1, 2))(params, latents, x)


def assert_close(ours, plain):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), ours, plain)


def assert_zero(tree):
    jax.tree.map(lambda a: np.testing.assert_array_equal(a, np.zeros(a.shape)), tree)


def assert_nonzero(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.abs(leaf).min() > 0


@pytest.mark.parametrize("L", [1, 2, 3])
def test_outer_cycle_is_the_plain_loop(given, L):
    ours, plain = (value_and_grads(step, given, L) for step in (recursion.outer_cycle, plain_outer_cycle))
    assert_close(ours, plain)
    assert_nonzero(ours[1])


@pytest.mark.parametrize("L", [1, 2])
def test_training_recursion_is_the_plain_loop_for_any_kind_of_H(given, L):
    @jax.jit
    def traced(H, keep):
        return value_and_grads(ours_rsm, given, H, L, keep)

    for H, keep in ((2, True), (2, False), (3, True), (6, False)):
        plain = value_and_grads(plain_rsm, given, H, L, keep)
        assert_close(traced(np.int32(H), jnp.bool_(keep)), plain)
        if H == 3:
            assert_close(value_and_grads(ours_rsm, given, H, L, jnp.bool_(keep)), plain)


@pytest.mark.parametrize("kind", [int, np.int32])
def test_detached_cycles_contribute_exactly_nothing(given, kind):
    def step(core, latents, x, H):
        return recursion.warm_up(core, latents, x, H, 2)
    value, grads = jax.jit(lambda H: value_and_grads(step, given, H))(np.int32(3)) if kind is np.int32 else (
        value_and_grads(step, given, 3))
    assert value != 0
    assert_zero(grads)


def test_only_the_active_cycle_reaches_parameters_and_puzzle(given):
    """The same recursion with parameters and x of its own for the detached cycles and for the active one."""
    params, latents, x, weights = given

    def loss(early, active):
        warm = recursion.warm_up(core_of(early[0]), latents, early[1], np.int32(4), 2)
        return jnp.sum(weights * recursion.outer_cycle(core_of(active[0]), warm, active[1], 2).y)
    early, active = jax.grad(loss, argnums=(0, 1))((params, x), (params, x))
    assert_zero(early)
    assert_nonzero(active)


def test_warm_up_of_no_cycles_still_detaches(given):
    latents = given[1]

    def warm_up(latents):
        return recursion.warm_up(core_of(given[0]), latents, given[2], np.int32(0), 2)
    jax.tree.map(np.testing.assert_array_equal, warm_up(latents), latents)
    assert_zero(jax.grad(lambda s: jnp.sum(warm_up(s).y))(latents))


@pytest.mark.parametrize("keep", [True, False])
def test_transition_has_the_gradient_of_its_outer_update_or_none(given, keep):
    params, latents, x, weights = given
    z = plain_outer_cycle(core_of(params), latents, x, 2).z

    def ours(params, latents, x):
        return jnp.sum(weights * recursion.transition(core_of(params), latents, x, 2, jnp.bool_(keep)).y)

    def update_alone(params):
        return jnp.sum(weights * core_of(params)(latents.y, z))
    value, (by_params, by_latents, by_x) = jax.value_and_grad(ours, argnums=(0, 1, 2))(params, latents, x)
    expected, grads = jax.value_and_grad(update_alone)(params)
    assert_close(value, expected)
    assert_zero((by_latents, by_x))
    if keep:
        assert_close(by_params, grads)
        assert_nonzero(by_params)
    else:
        assert_zero(by_params)
    assert_zero(jax.grad(lambda p: jnp.sum(recursion.transition(core_of(p), latents, x, 2, jnp.bool_(keep)).z))(params))


def test_growing_H_compiles_nothing(given):
    @jax.jit
    def step(H):
        return value_and_grads(ours_rsm, given, H, 2, jnp.bool_(True))
    values = [float(step(np.int32(H))[0]) for H in range(2, 9)]
    assert step._cache_size() == 1
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("H", [0, 1, 5])
def test_unroll_and_trace_are_the_plain_loop(given, H):
    params, latents, x, _ = given
    core = core_of(params)
    states = [latents]
    for _ in range(H):
        states.append(plain_outer_cycle(core, states[-1], x, 2))
    assert_close(recursion.unroll(core, latents, x, H, 2), states[-1])
    assert_close(jax.jit(lambda H: recursion.unroll(core, latents, x, H, 2))(np.int32(H)), states[-1])
    final, (kept, moved) = recursion.trace(core, latents, x, H, 2, lambda y: y[0])
    assert_close(final, states[-1])
    assert kept.shape == (H, B, D)
    if H:
        assert_close(kept, np.stack([s.y[0] for s in states[1:]]))
        a, b = (np.concatenate(states[i], axis=0) for i in (-1, -2))  # [2T, B, D]
        np.testing.assert_allclose(moved[-1], np.sqrt(((a - b) ** 2).sum((0, 2)) / (a ** 2).sum((0, 2))), rtol=1e-4)
        watched = recursion.unroll_watched(core, recursion.watch(latents, lambda y: y[0]), x, H, 2, lambda y: y[0])
        np.testing.assert_allclose(watched.residual, moved[-1], rtol=1e-5)


def test_unchanged_counts_cycles_since_the_answer_last_changed():
    """A core on whole numbers, so that every comparison is exact: answers stand still, change and settle."""
    n = 6

    def core(state, injection):  # counts cycles in feature 0; feature 1 holds the number of the example
        return state.at[..., 0].add(1.0)

    def decode(y):  # int [B, 1]: example i changes until cycle 2 i, stands still from there
        return jnp.minimum(y[0, :, 0], 2 * y[0, :, 1]).astype(jnp.int32)[:, None]
    y = jnp.zeros((1, n, 2)).at[0, :, 1].set(jnp.arange(n, dtype=jnp.float32))
    latents, x = Latents(y, jnp.zeros_like(y)), jnp.zeros_like(y)

    answer, unchanged, history = np.asarray(decode(y)), np.zeros(n, int), []
    state = latents
    for _ in range(9):
        state = plain_outer_cycle(core, state, x, 1)
        new = np.asarray(decode(state.y))
        unchanged = np.where((new == answer).all(1), unchanged + 1, 0)
        answer = new
        history.append(unchanged)
    assert history[-1].tolist() == [9, 7, 5, 3, 1, 0]

    start = recursion.watch(latents, decode)
    assert start.unchanged.tolist() == [0] * n
    for H in (1, 4, 9):
        watched = recursion.unroll_watched(core, start, x, np.int32(H), 1, decode)
        np.testing.assert_array_equal(watched.unchanged, history[H - 1])
    halfway = recursion.unroll_watched(core, start, x, 4, 1, decode)
    watched = recursion.unroll_watched(core, halfway, x, 5, 1, decode)  # an unroll goes on where another stopped
    np.testing.assert_array_equal(watched.unchanged, history[-1])
    np.testing.assert_array_equal(watched.answer, answer)
    jax.tree.map(np.testing.assert_array_equal, watched.latents, state)


def test_one_changed_cell_is_a_changed_answer():
    def core(state, injection):
        return state + 1.0

    def decode(y):  # [B, 2, 2]: a single cell of example 1 changes at every cycle
        cell = jnp.stack([jnp.zeros_like(y[0, 0, 0]), y[0, 0, 0]]).astype(jnp.int32)
        return jnp.zeros((2, 2, 2), jnp.int32).at[:, 1, 1].set(cell)
    zeros = jnp.zeros((1, 2, 2))
    watched = recursion.unroll_watched(core, recursion.watch(Latents(zeros, zeros), decode), zeros, 3, 1, decode)
    assert watched.unchanged.tolist() == [3, 0]
