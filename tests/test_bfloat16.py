"""Products of bfloat16 operands: what they compute, their gradients, and that the config reaches them."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trm_jax.config import Arch
from trm_jax.data.shape import Shape
from trm_jax.models import bfloat16
from trm_jax.models.network import Model


def test_rounding_is_to_the_nearest():
    x = np.float32([0, 1, -1, 1.00390625, 3.14159265, -2e-40, 1e38, np.inf, -np.inf])
    x = np.concatenate([x, np.random.default_rng(0).standard_normal(10_000, np.float32)])
    found = np.asarray(bfloat16.rounded(jnp.asarray(x)).astype(jnp.float32))
    nearest = np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))
    differs = found != nearest  # only where two are as near
    assert differs.sum() <= 1 and found[3] == np.float32(1.0078125)
    assert np.isnan(np.asarray(bfloat16.rounded(jnp.float32([np.nan]))[0], np.float32))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("unit", [True, False])
def test_values_and_gradients_are_those_of_float32_up_to_rounding(axis, unit, monkeypatch):
    monkeypatch.setattr(bfloat16, "has_unit", lambda: unit)
    draw = np.random.default_rng(1)
    W, m, X = 12, 8, 40
    h = jnp.asarray(draw.standard_normal((W, X) if axis == 0 else (X, W)), jnp.float32)
    gate_up = jnp.asarray(0.3 * draw.standard_normal((W, 2 * m)), jnp.float32)
    down = jnp.asarray(0.3 * draw.standard_normal((m, W)), jnp.float32)
    weight = jnp.asarray(draw.standard_normal(h.shape), jnp.float32)

    def plain(h, gate_up, down):
        rows = h.T if axis == 0 else h
        both = rows @ gate_up
        out = (jax.nn.silu(both[:, :m]) * both[:, m:]) @ down
        return jnp.sum(weight * (out.T if axis == 0 else out))

    def ours(h, gate_up, down):
        return jnp.sum(weight * bfloat16.swiglu(h, gate_up, down, axis))
    for got, want in zip(jax.tree.leaves(jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(h, gate_up, down)),
                         jax.tree.leaves(jax.value_and_grad(plain, (0, 1, 2))(h, gate_up, down))):
        chex.assert_equal_shape([got, want])
        assert float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) < 0.015


def test_product():
    draw = np.random.default_rng(2)
    h, kernel = (jnp.asarray(draw.standard_normal(s), jnp.float32) for s in ((20, 6), (6, 10)))

    def total(product):
        return jax.value_and_grad(lambda h, k: jnp.sum(jnp.sin(product(h, k))), (0, 1))(h, kernel)
    for got, want in zip(jax.tree.leaves(total(bfloat16.product)), jax.tree.leaves(total(jnp.matmul))):
        np.testing.assert_allclose(got, want, atol=0.03 * float(jnp.max(jnp.abs(want))))


@pytest.mark.parametrize("mlp_t", [True, False])
def test_the_config_reaches_every_block(mlp_t):
    """The core differs from float32's by rounding, and not by nothing."""
    arch = Arch(hidden_size=32, num_heads=4, mlp_hidden_size=32, mixer_hidden_size=24, puzzle_emb_ndim=0,
                puzzle_emb_len=0, forward_dtype="float32", mlp_t=mlp_t, L_layers=2)
    state = jax.random.normal(jax.random.key(1), (16, 4, 32), jnp.float32)
    found = {}
    for precision in ("float32", "bfloat16"):
        model = Model(dataclasses.replace(arch, matmul_precision=precision), Shape(16, 6, 1))
        params, *_ = model.init(jax.random.key(0))
        found[precision] = model.core(params)(state, state)
    assert found["bfloat16"].dtype == jnp.float32
    error = float(jnp.max(jnp.abs(found["bfloat16"] - found["float32"])))
    assert 1e-5 < error < 0.1
