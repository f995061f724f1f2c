"""The blocks of the network, as Flax Linen modules. States are [T, B, D]: tokens first.

Tokens first makes both halves of an MLP-T block one plain matrix product each, [2m, T] x [T, B*D] and
[T*B, D] x [D, 2m], without a transpose; and the innermost axis is always D, so that an odd T (97 for
Sudoku with its prefix) never is the axis that vector and matrix units are particular about. The products
are written as such, on matrices: given three axes, XLA's CPU backend spends three times as long on the
gradients of the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from trm_jax.models import attention, bfloat16

TRUNCATED_STD = 0.87962566103423978  # std of a standard normal that is cut at 2 sigma


def truncated_normal(std: float):
    """Initialiser: normal cut at 2 sigma, rescaled so that `std` is the std after the cut."""
    def init(key, shape, dtype=jnp.float32):
        return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) * jnp.asarray(std / TRUNCATED_STD, dtype)
    return init


def swiglu_hidden(width: int, expansion: float) -> int:
    """Hidden size that published configs imply: round(expansion * width * 2/3), rounded up to 256s."""
    return -(-round(expansion * width * 2 / 3) // 256) * 256


def rms_norm(h, axis: int, eps: float):
    """h * rsqrt(mean(h^2, axis) + eps) in float32, no gain; returned in h's dtype."""
    h32 = h.astype(jnp.float32)
    return (h32 * jax.lax.rsqrt(jnp.mean(h32 * h32, axis=axis, keepdims=True) + jnp.float32(eps))).astype(h.dtype)


def rounds(precision: str, dtype) -> bool:
    """Whether products go through `bfloat16`: if the config says so, and for bfloat16 activations on a CPU, where a
    plain product of them is slower than one of float32."""
    return precision == "bfloat16" or dtype == jnp.bfloat16 and jax.default_backend() == "cpu"


class SwiGLU(nn.Module):
    """down(silu(gate) * up) along one axis of a state [T, B, D]: 0 mixes tokens, 2 mixes features."""

    hidden_size: int
    axis: int
    precision: str  # arch.matmul_precision

    @nn.compact
    def __call__(self, h):
        width, m = h.shape[self.axis], self.hidden_size
        gate_up = self.param("gate_up", truncated_normal(width ** -0.5), (width, 2 * m))
        down = self.param("down", truncated_normal(m ** -0.5), (m, width))
        if rounds(self.precision, h.dtype):
            axis = min(self.axis, 1)
            matrix = h.reshape((width, -1) if axis == 0 else (-1, width))
            return bfloat16.swiglu(matrix, gate_up, down, axis).reshape(h.shape)
        gate_up, down = gate_up.astype(h.dtype), down.astype(h.dtype)
        if self.axis == 0:
            both = gate_up.T @ h.reshape(width, -1)  # [2m, B*D]
            out = down.T @ (nn.silu(both[:m]) * both[m:])
        else:
            both = h.reshape(-1, width) @ gate_up  # [T*B, 2m]
            out = (nn.silu(both[:, :m]) * both[:, m:]) @ down
        return out.reshape(h.shape)


class Rope(NamedTuple):
    """Rotary positions. The prefix P comes first; `columns` 0: tokens count on, along the flattened grid (published).

    Otherwise the first half of the frequencies turns with a token's row, the second with its column, in a grid so
    wide; the prefix is the row above it. What is next to what is then the same everywhere, and no row's end is next
    to the beginning of the following one.
    """

    theta: float
    columns: int = 0
    prefix: int = 0

    def tables(self, T: int, head: int):
        """cos, sin [T, head] ("rotate half" layout), float32."""
        tokens = jnp.arange(T, dtype=jnp.int32)
        places = [tokens]
        if self.columns:
            row, column = jnp.divmod(tokens - self.prefix, self.columns)
            places = [jnp.maximum(row, -1), jnp.where(row < 0, tokens, column)]
        width = head // len(places)
        inverse = 1.0 / self.theta ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
        angles = jnp.concatenate([jnp.outer(p.astype(jnp.float32), inverse) for p in places] * 2, axis=-1)
        return jnp.cos(angles), jnp.sin(angles)


def rotate(h, cos, sin):
    """Rotary positions on h [B, T, N, head], computed in float32."""
    h32 = h.astype(jnp.float32)
    a, b = jnp.split(h32, 2, axis=-1)
    turned = jnp.concatenate([-b, a], axis=-1)
    return (h32 * cos[None, :, None, :] + turned * sin[None, :, None, :]).astype(h.dtype)


class Attention(nn.Module):
    """Non-causal self-attention over tokens, fused qkv, optional RoPE, no biases."""

    num_heads: int
    rope: Rope | None
    implementation: str  # see attention.chosen
    precision: str  # arch.matmul_precision

    @nn.compact
    def __call__(self, h):
        T, B, D = h.shape
        N, head = self.num_heads, D // self.num_heads
        qkv_kernel = self.param("qkv", truncated_normal(D ** -0.5), (D, 3 * D))
        out_kernel = self.param("out", truncated_normal(D ** -0.5), (D, D))

        def product(h, kernel):
            return bfloat16.product(h, kernel) if rounds(self.precision, h.dtype) else h @ kernel.astype(h.dtype)
        qkv = product(h.reshape(T * B, D), qkv_kernel).reshape(T, B, 3, N, head)
        qkv = qkv.transpose(2, 1, 0, 3, 4)  # [3, B, T, N, head]
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.rope is not None:
            cos, sin = self.rope.tables(T, head)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = attention.chosen(self.implementation, T, head, h.dtype.name)(q, k, v)  # [B, T, N, head]
        return product(out.transpose(1, 0, 2, 3).reshape(T * B, D), out_kernel).reshape(T, B, D)


class Block(nn.Module):
    """Post-norm block: h = norm(h + mix(h)); h = norm(h + swiglu(h)).

    `mixer` is "mlp" (a SwiGLU over the token axis) or "attention". RSM norms over the feature axis twice;
    TRM's MLP-T block takes its first norm over the token axis, which is what the axes here are for.
    """

    mixer: str
    mixer_hidden_size: int
    mlp_hidden_size: int
    num_heads: int
    rope: Rope | None
    attention: str
    precision: str
    mixer_norm_axis: str
    mlp_norm_axis: str
    eps: float

    @nn.compact
    def __call__(self, h):
        axes = {"token": 0, "feature": 2}
        if self.mixer == "mlp":
            mixed = SwiGLU(self.mixer_hidden_size, 0, self.precision, name="mixer")(h)
        else:
            mixed = Attention(self.num_heads, self.rope, self.attention, self.precision, name="mixer")(h)
        h = rms_norm(h + mixed, axes[self.mixer_norm_axis], self.eps)
        mixed = SwiGLU(self.mlp_hidden_size, 2, self.precision, name="mlp")(h)
        return rms_norm(h + mixed, axes[self.mlp_norm_axis], self.eps)
