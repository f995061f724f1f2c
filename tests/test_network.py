"""The network: published parameter counts, and a plain numpy network with states [B, T, D] that it must equal."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trm_jax import recursion
from trm_jax.config import Arch
from trm_jax.data.shape import Shape
from trm_jax.models import layers
from trm_jax.models.network import Model, prefix_len

SHAPES = {"sudoku": Shape(81, 11), "maze": Shape(900, 6), "arc": Shape(900, 12, 1000)}
MLP = Arch(hidden_size=512, puzzle_emb_ndim=512, puzzle_emb_len=16, forward_dtype="float32")
ATTENTION = dataclasses.replace(MLP, mlp_t=False, pos_encodings="rope", num_heads=8, L_layers=2)
UNTIED = {"tie_head": False, "halting_head": True}
TRM_MLP = dataclasses.replace(MLP, L_layers=2, mixer_norm_axis="token", **UNTIED)
TRM_ATT = dataclasses.replace(ATTENTION, **UNTIED)
DIRECT = dataclasses.replace(ATTENTION, L_layers=8, puzzle_emb_len=1, **UNTIED)


@pytest.mark.parametrize("arch, counts", [
    (MLP, (2_513_920, 9_397_248, 9_400_320)),
    (ATTENTION, (6_821_376, 6_818_816, 6_821_888)),
    (TRM_MLP, (5_028_866, 18_795_522, 18_801_666)),
    (TRM_ATT, (6_828_034, 6_822_914, 6_829_058)),
    (DIRECT, (27_275_266, 27_270_146, 27_276_290)),
], ids=["RSM-MLP", "RSM-Att", "TRM-MLP", "TRM-Att", "direct"])
def test_published_parameter_counts(arch, counts):
    assert tuple(Model(arch, shape).parameter_count() for shape in SHAPES.values()) == counts


# A network in numpy, float64, tokens second: [B, T, D].


def np_norm(h, axis, eps=1e-5):
    return h / np.sqrt((h * h).mean(axis, keepdims=True) + eps)


def np_swiglu(h, p):
    """Along the last axis."""
    gate, up = np.split(h @ p["gate_up"], 2, axis=-1)
    return (gate / (1 + np.exp(-gate)) * up) @ p["down"]


def np_rope(h, arch):
    """h [T, head], position by position, pair by pair: (i, i + head / 2) turns by position / theta^(2 i / head).

    By row and column: the first half of the pairs by the row, the second by the column, each as if it were a head.
    """
    T, head = h.shape
    P, columns, width = prefix_len(arch), arch.rope_columns, head // 2 if arch.rope_columns else head
    out = np.empty_like(h)
    for t in range(T):
        for i in range(head // 2):
            place = t
            if columns:
                place = ((-1, t) if t < P else divmod(t - P, columns))[i // (width // 2)]
            angle = place / arch.rope_theta ** (2 * (i % (width // 2)) / width)
            a, b = h[t, i], h[t, i + head // 2]
            out[t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[t, i + head // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def np_attention(h, p, arch):
    B, T, D = h.shape
    head = D // arch.num_heads
    out = np.empty_like(h)
    for b in range(B):
        q, k, v = np.split(h[b] @ p["qkv"], 3, axis=-1)  # [T, D]
        for n in range(arch.num_heads):
            part = slice(n * head, (n + 1) * head)
            qn, kn = q[:, part], k[:, part]
            if arch.pos_encodings == "rope":
                qn, kn = np_rope(qn, arch), np_rope(kn, arch)
            scores = qn @ kn.T / math.sqrt(head)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[b, :, part] = weights / weights.sum(1, keepdims=True) @ v[:, part]
    return out @ p["out"]


def np_core(params, arch, state, injection):
    axes = {"token": 1, "feature": 2}
    h = state + injection
    for i in range(arch.L_layers):
        p = params[f"layers_{i}"]
        if arch.mlp_t:
            mixed = np_swiglu(h.transpose(0, 2, 1), p["mixer"]).transpose(0, 2, 1)
        else:
            mixed = np_attention(h, p["mixer"], arch)
        h = np_norm(h + mixed, axes[arch.mixer_norm_axis])
        h = np_norm(h + np_swiglu(h, p["mlp"]), axes[arch.mlp_norm_axis])
    return h


def np_answer(params, fixed, rows, arch, tokens, L):
    """Logits [B, S, V] after one outer cycle, from spec §1 and §2."""
    D, P = arch.hidden_size, prefix_len(arch)
    B, S = tokens.shape
    x = params["embed_tokens"][tokens]
    if P:
        prefix = np.zeros((B, P * D))
        prefix[:, :rows.shape[1]] = rows
        x = np.concatenate([prefix.reshape(B, P, D), x], axis=1)
    x = math.sqrt(D) * (0.707106781 * (x + params["embed_pos"]) if arch.pos_encodings == "learned" else x)
    y, z = (np.broadcast_to(fixed[name], (B, P + S, D)) for name in ("H_init", "L_init"))
    for _ in range(L):
        z = np_core(params, arch, z, y + x)
    y = np_core(params, arch, y, z)
    head = params["embed_tokens"].T if arch.tie_head else params["lm_head"]
    return y[:, P:] @ head, y


def build(arch, shape, B=2):
    """(model, params, fixed, rows, tokens), all numpy; rows of the puzzle table are given, not looked up."""
    model = Model(arch, shape)
    params, fixed, _ = jax.device_get(jax.jit(model.init)(jax.random.key(1)))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(B, arch.puzzle_emb_ndim)).astype(np.float32)
    return model, params, fixed, rows, rng.integers(0, shape.vocab_size, (B, shape.seq_len))


def forward(model, params, fixed, rows, tokens, L=2):
    x = model.embed(params, jnp.asarray(tokens), jnp.asarray(rows))
    latents = model.initial_latents(fixed, tokens.shape[0])
    y = recursion.outer_cycle(model.core(params), latents, x, L).y
    return model.logits(params, y), y


def to_float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


TINY = Arch(hidden_size=8, mlp_hidden_size=12, mixer_hidden_size=10, puzzle_emb_ndim=8, puzzle_emb_len=1,
            forward_dtype="float32")
ATT = dataclasses.replace(TINY, mlp_t=False, mixer_hidden_size=0, num_heads=2)
NO_PREFIX = {"puzzle_emb_ndim": 0, "puzzle_emb_len": 0}


@pytest.mark.parametrize("arch, shape", [
    (TINY, Shape(5, 7)),
    (dataclasses.replace(TINY, mixer_norm_axis="token", L_layers=2), Shape(4, 6)),
    (dataclasses.replace(TINY, mlp_norm_axis="token", hidden_size=7, puzzle_emb_len=3, **UNTIED), Shape(3, 5)),
    (dataclasses.replace(TINY, mlp_hidden_size=0, mixer_hidden_size=0, hidden_size=5, puzzle_emb_ndim=11,
                         puzzle_emb_len=0), Shape(1, 3)),
    (dataclasses.replace(TINY, pos_encodings="learned", **NO_PREFIX), Shape(6, 4)),
    (dataclasses.replace(ATT, pos_encodings="rope"), Shape(6, 5)),
    (dataclasses.replace(ATT, pos_encodings="rope", rope_theta=7.0, hidden_size=18, num_heads=3, L_layers=2,
                         mixer_norm_axis="token", **NO_PREFIX), Shape(5, 3)),
    (dataclasses.replace(ATT, pos_encodings="rope", rope_columns=3, rope_theta=9.0, hidden_size=16, num_heads=2,
                         puzzle_emb_len=2), Shape(6, 5)),
    (dataclasses.replace(ATT, hidden_size=9, num_heads=3, puzzle_emb_len=2, tie_head=False), Shape(3, 4)),
    (dataclasses.replace(ATT, num_heads=1, pos_encodings="learned"), Shape(7, 2)),
], ids=["mlp", "mlp-token-norm-2-layers", "mlp-last-norm-token-untied", "mlp-by-expansion-padded-prefix",
        "mlp-learned-no-prefix", "attention-rope", "attention-rope-theta-no-prefix", "attention-rope-by-row-and-column",
        "attention-no-positions", "attention-learned"])
def test_network_is_the_plain_network(arch, shape):
    model, params, fixed, rows, tokens = build(arch, shape)
    logits, y = jax.jit(forward, static_argnums=0)(model, params, fixed, rows, tokens)
    expected, state = np_answer(to_float64(params), to_float64(fixed), to_float64(rows), arch, tokens, L=2)
    assert logits.shape == (2, shape.seq_len, shape.vocab_size) and y.shape == (model.T, 2, arch.hidden_size)
    np.testing.assert_allclose(y.transpose(1, 0, 2), state, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis, dims", [("feature", (2,)), ("token", (0,))])
def test_a_norm_axis_is_the_one_that_comes_out_normalised(axis, dims):
    arch = dataclasses.replace(TINY, mlp_norm_axis=axis)
    model, params, *_ = build(arch, Shape(4, 5))
    h = model.core(params)(jax.random.normal(jax.random.key(0), (5, 3, 8)), jnp.zeros((5, 3, 8)))
    np.testing.assert_allclose(jnp.mean(h * h, axis=dims), 1, rtol=1e-3)
    other = jnp.mean(h * h, axis=2 - dims[0])
    assert np.abs(other - 1).max() > 0.05


def test_learned_positions_tell_equal_tokens_apart_and_none_do_not():
    for positions, apart in (("learned", True), ("none", False)):
        model, params, _, rows, _ = build(dataclasses.replace(ATT, pos_encodings=positions), Shape(4, 5))
        x = model.embed(params, jnp.zeros((2, 4), jnp.int32), jnp.asarray(rows))
        assert bool(jnp.any(x[1] != x[2])) == apart


def test_puzzle_table_rows_reach_the_prefix_by_identifier():
    arch = dataclasses.replace(TINY, puzzle_emb_ndim=11, puzzle_emb_len=2)
    model = Model(arch, Shape(3, 4, num_puzzle_identifiers=5))
    params, _, table = model.init(jax.random.key(0))
    assert table.shape == (5, 11) and not np.any(table)
    table = jnp.arange(55, dtype=jnp.float32).reshape(5, 11)
    x = model.embed(params, jnp.zeros((2, 3), jnp.int32), model.rows(table, jnp.array([4, 2])))
    flat = np.asarray(x[:2]).transpose(1, 0, 2).reshape(2, 16) / math.sqrt(8)
    np.testing.assert_allclose(flat, np.pad(np.asarray(table)[[4, 2]], ((0, 0), (0, 5))), rtol=1e-6)


def test_no_prefix_has_no_table():
    params, _, table = Model(dataclasses.replace(TINY, **NO_PREFIX), Shape(3, 4)).init(jax.random.key(0))
    assert table is None


@pytest.mark.parametrize("std", [1.0, 512 ** -0.5])
def test_truncated_normal_has_the_std_that_was_asked_for(std):
    draws = np.asarray(layers.truncated_normal(std)(jax.random.key(0), (200_000,)), np.float64)
    assert abs(draws.std() / std - 1) < 0.01 and abs(draws.mean() / std) < 0.01
    assert 2.2 < np.abs(draws).max() / std <= 2 / 0.8796


def test_starting_values():
    arch = dataclasses.replace(TINY, hidden_size=512, mlp_hidden_size=300, **UNTIED)
    params, fixed, _ = jax.jit(Model(arch, Shape(40, 100)).init)(jax.random.key(0))
    fan_in = {"embed_tokens": 512, "lm_head": 512, "gate_up": 512, "down": 300}
    for name, leaf in (("embed_tokens", params["embed_tokens"]), ("lm_head", params["lm_head"]),
                       *params["layers_0"]["mlp"].items()):
        assert np.std(leaf) == pytest.approx(fan_in[name] ** -0.5, rel=0.02)
    assert not np.any(params["q_head"]) and params["q_head_bias"].tolist() == [-5, -5]
    for start in fixed.values():
        assert np.std(start) == pytest.approx(1, abs=0.1)
    assert not np.array_equal(fixed["H_init"], fixed["L_init"])


@pytest.mark.parametrize("arch", [TINY, dataclasses.replace(ATT, pos_encodings="rope")], ids=["mlp", "attention"])
def test_bfloat16_activations_give_float32_logits_close_to_float32s(arch):
    arch = dataclasses.replace(arch, hidden_size=32)
    results = {}
    for dtype in ("float32", "bfloat16"):
        model, *rest = build(arch, Shape(6, 5))
        model = Model(dataclasses.replace(arch, forward_dtype=dtype), Shape(6, 5))
        logits, y = jax.jit(forward, static_argnums=0)(model, *rest)
        assert logits.dtype == jnp.float32 and y.dtype == jnp.dtype(dtype)
        results[dtype] = np.asarray(logits)
        assert {leaf.dtype for leaf in jax.tree.leaves(rest[0])} == {np.dtype(np.float32)}
    assert np.abs(results["float32"] - results["bfloat16"]).max() < 0.03 * np.abs(results["float32"]).max()
    assert np.any(results["float32"] != results["bfloat16"])


def test_flops_are_those_of_the_published_size():
    assert Model(MLP, SHAPES["sudoku"]).core_flops() == pytest.approx(0.61e9, rel=0.01)
