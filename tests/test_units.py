"""Mixing through a domain's units: what a token hears of, and what the network does not know."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trm_jax import config, puzzles, recursion
from trm_jax.config import Arch
from trm_jax.data.shape import Shape
from trm_jax.models.network import Model
from trm_jax.models.units import NO_VALUE, UnitMixer, Units

ARCH = Arch(hidden_size=8, mixer_hidden_size=3, mlp_hidden_size=12, units=True, puzzle_emb_ndim=0, puzzle_emb_len=0,
            forward_dtype="float32", tie_head=False)
FORMS = {"cells": ARCH, "candidates": dataclasses.replace(ARCH, candidates=True)}
GAMES = {"4x4": puzzles.get("sudoku", seq_len=16), "6x6": puzzles.get("sudoku", seq_len=36)}


def shape_of(domain):
    return Shape(domain.seq_len, domain.vocab_size, units=domain.units)


def built(arch, domain):
    model = Model(arch, shape_of(domain))
    return model, *jax.jit(model.init)(jax.random.key(1))[:2]


def logits(model, params, fixed, tokens, H=3):
    x = model.embed(params, jnp.asarray(tokens, jnp.int32), jnp.zeros((len(tokens), 0)))
    latents = recursion.unroll(model.core(params), model.initial_latents(fixed, len(tokens)), x, H, 2)
    return np.asarray(model.logits(params, latents.y))


@pytest.mark.parametrize("domain", GAMES.values(), ids=GAMES)
@pytest.mark.parametrize("values", [False, True])
def test_a_token_hears_of_those_in_its_groups_only(domain, values):
    S, V = domain.seq_len, domain.side if values else 1
    mixer = UnitMixer(3, Units(domain.units, V if values else 0))
    h = jax.random.normal(jax.random.key(0), (S * V, 1, 8))
    params = mixer.init(jax.random.key(1), h)
    moved = jax.jacobian(lambda h: mixer.apply(params, h)[:, 0].sum(-1))(h)[:, :, 0]  # [T, T, D]
    heard = np.abs(np.asarray(moved)).max(-1) > 0
    cell, value = np.divmod(np.arange(S * V), V)
    together = (np.array(domain.units)[:, :, None] == np.array(domain.units)[:, None, :]).any(0)
    expected = together[cell[:, None], cell] & (value[:, None] == value)
    if values:
        expected |= cell[:, None] == cell
    np.testing.assert_array_equal(heard, expected)


def test_the_sums_are_those_of_the_groups():
    """Against plain numpy."""
    domain, V, m = GAMES["4x4"], 4, 3
    h = jax.random.normal(jax.random.key(0), (64, 2, 8))
    mixer = UnitMixer(m, Units(domain.units, V))
    p = mixer.init(jax.random.key(1), h)["params"]
    gate, up = np.split(np.asarray(h, np.float64) @ np.asarray(p["gate_up"], np.float64), 2, axis=-1)
    hidden = (gate / (1 + np.exp(-gate)) * up / 3).reshape(16, V, 2, 4, m)
    expected = np.zeros((16, V, 2, 8))
    for s in range(16):
        for k in range(3):
            same = np.array(domain.units[k]) == domain.units[k][s]
            expected[s] += hidden[same, :, :, k].sum(0) @ np.asarray(p["down"][k], np.float64)
        expected[s] += hidden[s, :, :, 3].sum(0, keepdims=True) @ np.asarray(p["down"][3], np.float64)
    np.testing.assert_allclose(mixer.apply({"params": p}, h), expected.reshape(64, 2, 8), atol=1e-5)


@pytest.mark.parametrize("domain", GAMES.values(), ids=GAMES)
@pytest.mark.parametrize("arch", FORMS.values(), ids=FORMS)
def test_symmetries_turn_the_answer_with_the_puzzle(arch, domain):
    """Rows, columns, bands, and the transpose where the weights of both are the same: not here, so it is left out.
    Of candidates the digits are alike too."""
    model, params, fixed = built(arch, domain)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, domain.vocab_size, (4, domain.seq_len)) * (rng.random((4, domain.seq_len)) < .4)
    tokens = np.maximum(tokens, 1)
    symmetry = domain.draw_symmetry(rng, 4)
    upright = np.stack([np.arange(domain.seq_len)] * 4)
    rows = domain.side // domain.box_rows
    turned = symmetry.cells % domain.side != symmetry.cells[:, :1] % domain.side  # transposed: rows are read down
    straight = ~turned.reshape(4, domain.side, domain.side)[:, :, 0].any(1)
    cells = np.where(straight[:, None], symmetry.cells, upright)
    assert straight.any() and rows > 1
    same = np.broadcast_to(np.arange(domain.vocab_size, dtype=np.uint8), symmetry.relabel.shape)
    relabel = symmetry.relabel if arch.candidates else same
    moved = puzzles.Symmetry(relabel, cells)
    before, after = (logits(model, params, fixed, t) for t in (tokens, moved.apply(tokens)))
    expected = np.take_along_axis(before, cells[:, :, None].astype(int), axis=1)
    expected = np.take_along_axis(expected, np.argsort(relabel, axis=1)[:, None, :], axis=2)
    np.testing.assert_allclose(after, expected, atol=1e-4)


def test_one_network_for_every_size():
    """Weights of candidates know no size: those of 4x4 answer 6x6."""
    arch = FORMS["candidates"]
    model, params, fixed = built(arch, GAMES["4x4"])
    other = Model(arch, shape_of(GAMES["6x6"]))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, jax.eval_shape(other.init, jax.random.key(0))[0])
    out = logits(other, params, fixed, np.ones((1, 36), np.uint8))
    assert out.shape == (1, 36, 8) and (out[..., :2] == NO_VALUE).all() and np.isfinite(out).all()


def test_parameters_are_counted_and_their_gradients_arrive():
    model, params, fixed = built(FORMS["candidates"], GAMES["4x4"])
    assert model.parameter_count() == 3 * 8 + 8 + 8 * 2 * 4 * 3 + 4 * 3 * 8 + 8 * 24 + 12 * 8
    tokens = jnp.ones((1, 16), jnp.int32).at[0, 0].set(3)

    def loss(params):
        x = model.embed(params, tokens, jnp.zeros((1, 0)))
        y, _ = recursion.outer_cycle(model.core(params), model.initial_latents(fixed, 1), x, 2)
        return (model.logits(params, y)[0, 5, 2:] * jnp.arange(4.0)).sum()
    assert all(np.abs(np.asarray(g)).max() > 0 for g in jax.tree.leaves(jax.grad(loss)(params)))


def test_a_domain_without_units_refuses_by_name():
    with pytest.raises(config.ConfigError, match="arch.units = True: the rules of this puzzle have no units"):
        maze = puzzles.get("maze", rows=5, cols=5)
        jax.eval_shape(Model(ARCH, Shape(25, 6, units=maze.units)).init, jax.random.key(0))


@pytest.mark.parametrize("fields, fault", [
    ({"arch.candidates": True}, "arch.candidates = True: needs arch.units = True"),
    ({"arch.units": True, "arch.puzzle_emb_ndim": 0, "arch.puzzle_emb_len": 0}, "arch.mixer_hidden_size = 0: must be"),
    ({"arch.units": True, "arch.mixer_hidden_size": 4}, "arch.puzzle_emb_ndim = 512: must be 0 with arch.units"),
])
def test_impossible_fields_are_named(fields, fault):
    with pytest.raises(config.ConfigError, match=fault):
        config.with_fields(config.Experiment(), fields)
