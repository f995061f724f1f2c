"""Attention: every way to compute it is plain softmax attention, in values and gradients, and lean where it says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from trm_jax import config
from trm_jax.models import attention


def inputs(T, dtype=jnp.float32, B=2, N=3, head=8):
    keys = jax.random.split(jax.random.key(T), 4)
    return [2 * jax.random.normal(key, (B, T, N, head)).astype(dtype) for key in keys]


def plain(q, k, v):
    """Head by head, in float64."""
    out = np.empty(q.shape)
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    for b in range(q.shape[0]):
        for n in range(q.shape[2]):
            scores = q[b, :, n] @ k[b, :, n].T / np.sqrt(q.shape[3])
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[b, :, n] = weights / weights.sum(1, keepdims=True) @ v[b, :, n]
    return out


def value_and_grads(function, q, k, v, weights):
    def loss(q, k, v):
        out = function(q, k, v)
        return jnp.sum(out.astype(jnp.float32) * weights.astype(jnp.float32)), out
    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, grads


def in_blocks(most):
    return lambda q, k, v: attention.blocks(q, k, v, most=most)


@pytest.mark.parametrize("T, most", [(13, 200), (13, 1), (16, 2 * 3 * 16 * 4), (7, 10**6)])
def test_blocks_are_the_whole_in_values_and_gradients(T, most):
    q, k, v, weights = inputs(T)
    out, grads = value_and_grads(in_blocks(most), q, k, v, weights)
    np.testing.assert_allclose(out, plain(q, k, v), rtol=1e-5, atol=1e-5)
    whole, whole_grads = value_and_grads(attention.whole, q, k, v, weights)
    for ours, theirs in zip((out, *grads), (whole, *whole_grads)):
        assert ours.dtype == theirs.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_the_whole_is_jaxs_own():
    q, k, v, weights = inputs(11)
    for ours, theirs in zip(jax.tree.leaves(value_and_grads(attention.whole, q, k, v, weights)),
                            jax.tree.leaves(value_and_grads(jax.nn.dot_product_attention, q, k, v, weights))):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [attention.whole, in_blocks(200)], ids=["whole", "blocks"])
def test_bfloat16_is_close_and_promotes_nothing(function):
    narrow = inputs(13, jnp.bfloat16)
    wide = [a.astype(jnp.float32) for a in narrow]
    expected = jax.tree.leaves(value_and_grads(attention.whole, *wide))
    for ours, theirs in zip(jax.tree.leaves(value_and_grads(function, *narrow)), expected):
        assert ours.dtype == jnp.bfloat16
        assert jnp.max(jnp.abs(ours.astype(jnp.float32) - theirs)) < 0.03 * jnp.max(jnp.abs(theirs))


def memory(function, T):
    q, k, v, weights = inputs(T, B=1, N=4)
    grads = jax.grad(lambda q, k, v: jnp.sum(weights * function(q, k, v)), argnums=(0, 1, 2))
    return jax.jit(grads).lower(q, k, v).compile().memory_analysis().temp_size_in_bytes


def test_the_scores_of_blocks_are_never_all_alive():
    all_scores = 4 * 300 * 300 * 4  # bytes
    assert memory(attention.whole, 300) > all_scores
    assert memory(in_blocks(4 * 300 * 20), 300) < all_scores / 2


def test_long_sequences_go_in_blocks_and_short_ones_do_not():
    assert attention.chosen("auto", 97, 64, "bfloat16") is attention.whole
    assert attention.chosen("auto", 916, 64, "bfloat16") is attention.blocks  # there is no GPU here
    assert attention.chosen("whole", 916, 64, "float32") is attention.whole
    assert attention.chosen("blocks", 4, 64, "float32") is attention.blocks


def test_a_gpus_fused_attention_is_taken_where_it_can_be_had(monkeypatch):
    monkeypatch.setattr(attention, "missing", lambda: "")
    for T, head, dtype, function in ((916, 64, "bfloat16", attention.cudnn), (916, 64, "float32", attention.blocks),
                                     (916, 12, "bfloat16", attention.blocks), (97, 64, "bfloat16", attention.whole)):
        assert attention.chosen("auto", T, head, dtype) is function
    assert attention.chosen("cudnn", 97, 64, "bfloat16") is attention.cudnn


@pytest.mark.parametrize("T", [6, 7])
def test_an_odd_number_of_tokens_is_made_even_for_cudnn(T, monkeypatch):
    asked = []

    def fused(q, k, v, implementation, query_seq_lengths=None, key_value_seq_lengths=None):
        asked.append((implementation, q.shape[1]))
        return own(q, k, v, query_seq_lengths=query_seq_lengths, key_value_seq_lengths=key_value_seq_lengths)
    own = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    q, k, v, weights = inputs(T)
    for ours, theirs in zip(jax.tree.leaves(value_and_grads(attention.cudnn, q, k, v, weights)),
                            jax.tree.leaves(value_and_grads(attention.whole, q, k, v, weights))):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert asked == [("cudnn", T + T % 2)]


ATT = {"mlp_t": False, "pos_encodings": "rope", "hidden_size": 64, "num_heads": 4}


@pytest.mark.parametrize("arch, message", [
    ({"mlp_t": True, "attention": "blocks"}, "arch.attention = 'blocks': has no meaning without attention"),
    (ATT | {"attention": "cudnn"}, "needs arch.forward_dtype = 'bfloat16'"),
    (ATT | {"attention": "cudnn", "hidden_size": 48, "forward_dtype": "bfloat16"}, "that 8 divides and of at most 128"),
    (ATT | {"attention": "flash"}, "must be one of 'auto', 'whole', 'blocks', 'cudnn'"),
    (ATT | {"rope_columns": -1}, "arch.rope_columns = -1: must not be negative"),
    (ATT | {"rope_columns": 6, "num_heads": 32}, "arch.num_heads = 32: RoPE by row and column needs a head size"),
    (ATT | {"rope_columns": 6, "pos_encodings": "learned"}, "arch.rope_columns = 6: needs arch.pos_encodings = 'rope'"),
])
def test_what_cannot_work_is_refused_by_name(tmp_path, arch, message):
    with pytest.raises(config.ConfigError) as caught:
        tiny.experiment(tmp_path, arch={"mixer_hidden_size": 0} | arch)
    assert message in str(caught.value)


def test_cudnn_without_a_gpu_is_refused():
    with pytest.raises(attention.AttentionError, match="arch.attention = 'cudnn': needs an NVIDIA GPU, here is cpu"):
        attention.chosen("cudnn", 916, 64, "bfloat16")
