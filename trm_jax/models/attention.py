"""Attention, softmax(q k^T / sqrt(head)) v over all tokens, as plain functions of q, k, v [B, T, N, head].

    whole     the scores of all pairs of tokens at once, [B, N, T, T]
    blocks    some queries at a time, forward and backward: never more than SCORES scores are alive
    cudnn     fused on NVIDIA GPUs: none of them are

All are exact: softmax in float32 over all keys, of products that are summed in float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from trm_jax import config
from trm_jax.runtime.errors import UserError

WHOLE = 256  # tokens up to which `auto` takes the whole: there the scores are no more than the rest of a layer
SCORES = 2**24  # of `blocks`, 64 MiB in float32
CUDNN_GPU = (8, 0)  # compute capability of what cuDNN's runs on


class AttentionError(UserError):
    """What was asked for cannot be had here."""


def whole(q, k, v):
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * jnp.float32(q.shape[-1] ** -0.5), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights.astype(v.dtype), v)


def blocks(q, k, v, most: int | None = None):
    """`whole`, some rows of the scores at a time; the backward pass computes each block's anew."""
    B, T, N, head = q.shape
    count = min(T, -(-B * N * T * T // (most or SCORES)))
    if count == 1:
        return whole(q, k, v)
    rows = -(-T // count)
    queries = jnp.pad(q, ((0, 0), (0, count * rows - T), (0, 0), (0, 0)))
    queries = queries.reshape(B, count, rows, N, head).swapaxes(0, 1)
    out = lax.map(jax.checkpoint(lambda q: whole(q, k, v)), queries)  # [count, B, rows, N, head]
    return out.swapaxes(0, 1).reshape(B, count * rows, N, head)[:, :T]


def cudnn(q, k, v):
    """JAX refuses gradients of an odd T, so that gets one more token, which nobody attends to."""
    B, T, *_ = q.shape
    fused = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    if T % 2 == 0:
        return fused(q, k, v)
    lengths = jnp.full((B,), T, jnp.int32)
    even = [jnp.pad(a, ((0, 0), (0, 1), (0, 0), (0, 0))) for a in (q, k, v)]
    return fused(*even, query_seq_lengths=lengths, key_value_seq_lengths=lengths)[:, :T]


@functools.cache
def missing() -> str:
    """Why `cudnn` is nothing for this machine; "" if it is."""
    device = jax.devices()[0]
    if "cuda" not in getattr(device.client, "platform_version", ""):
        return f"needs an NVIDIA GPU, here is {device.device_kind}"
    capability = tuple(int(n) for n in device.compute_capability.split("."))
    if capability < CUDNN_GPU:
        return f"needs compute capability {CUDNN_GPU}, {device.device_kind} has {capability}"
    return ""


def chosen(name: str, T: int, head: int, dtype: str):
    """The function for arch.attention = `name` on this machine. Raises AttentionError."""
    if name == "cudnn" and (reason := missing()):
        raise AttentionError(f"arch.attention = 'cudnn': {reason}; set it to 'auto' or 'blocks'")
    if name == "auto":
        name = "whole" if T <= WHOLE else "blocks" if config.no_cudnn(head, dtype) or missing() else "cudnn"
    return {"whole": whole, "blocks": blocks, "cudnn": cudnn}[name]
