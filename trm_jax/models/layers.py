"""The blocks of the network, as Flax Linen modules. States are [T, B, D]: tokens first.

Tokens first makes both halves of an MLP-T block one plain matrix product each, [2m, T] x [T, B*D] and
[T*B, D] x [D, 2m], without a transpose; and the innermost axis is always D, so that an odd T (97 for
Sudoku with its prefix) never is the axis that vector and matrix units are particular about. The products
are written as such, on matrices: given three axes, XLA's CPU backend spends three times as long on the
gradients of the weights.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from trm_jax.models import attention, bfloat16
from trm_jax.models.initialisers import truncated_normal
from trm_jax.models.units import UnitMixer, Units


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


def joint(h, gate_up, down):
    """down(silu(gate) * up) of rows h [R, width]. One product for gate and up, and so for their gradients."""
    m = down.shape[0]
    both = h @ gate_up
    return (nn.silu(both[:, :m]) * both[:, m:]) @ down


@jax.custom_jvp
def split(h, gate_up, down):
    """The same bits, a tenth sooner on a CPU, which copies the halves of a product; differentiated it is `joint`."""
    m = down.shape[0]
    return (nn.silu(h @ gate_up[:, :m]) * (h @ gate_up[:, m:])) @ down


split.defjvp(lambda primals, tangents: jax.jvp(joint, primals, tangents))


class SwiGLU(nn.Module):
    """down(silu(gate) * up) along one axis of a state [T, B, D]: 0 mixes tokens, 2 mixes features."""

    hidden_size: int
    axis: int
    precision: str  # arch.matmul_precision

    @nn.compact
    def __call__(self, h: Any) -> Any:
        width, m = h.shape[self.axis], self.hidden_size
        gate_up = self.param("gate_up", truncated_normal(width ** -0.5), (width, 2 * m))
        down = self.param("down", truncated_normal(m ** -0.5), (m, width))
        if rounds(self.precision, h.dtype):
            axis = min(self.axis, 1)
            matrix = h.reshape((width, -1) if axis == 0 else (-1, width))
            product: Any = bfloat16.swiglu(matrix, gate_up, down, axis)
            return product.reshape(h.shape)
        gate_up, down = gate_up.astype(h.dtype), down.astype(h.dtype)
        if self.axis == 0:
            both = gate_up.T @ h.reshape(width, -1)  # [2m, B*D]
            out = down.T @ (nn.silu(both[:m]) * both[m:])
        else:
            of_rows: Any = split if jax.default_backend() == "cpu" else joint
            out = of_rows(h.reshape(-1, width), gate_up, down)
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


class Scales(nn.Module):
    """Learned residual scales of pre-norm blocks, float32 [D] each: (a1, b1, a2, b2).

    With a1, a2 = sigmoid of trained numbers, which begin at 3/4 and 1/4, and N blocks, thus 2N residual additions:

        b2 = 1 - a2 a1^(2N);  b1 = b2 (1 - a1) / (1 - a1^(2N) + 1e-5)

    so that equal inputs keep their size through the whole core. Source: the published code of FPRM (arXiv:2606.18206).
    """

    width: int
    blocks: int

    @nn.compact
    def __call__(self):
        def trained(name, start):
            return jax.nn.sigmoid(self.param(name, nn.initializers.constant(math.log(start / (1 - start))),
                                             (self.width,)))
        a1, a2 = trained("alpha_1", 0.75), trained("alpha_2", 0.25)
        left = a1 ** (2 * self.blocks)  # of the first block's input at the end
        b2 = 1 - a2 * left
        return a1, b2 * (1 - a1) / (1 - left + jnp.float32(1e-5)), a2, b2


class Conv(nn.Module):
    """Depthwise convolution over a grid of tokens [S, B, D], without bias; as cross-correlation, as in PyTorch.

    `kind` "grid3": 3 x 3 over the square grid, zeros around it. "causal4": over the flattened grid, each token from
    itself and the three before it. Kernels are stored transposed, [columns, rows, 1, D] and [4, 1, D]; they begin as
    PyTorch's do, uniform within 1/sqrt(taps).
    """

    kind: str

    @nn.compact
    def __call__(self, h):
        S, B, D = h.shape
        taps = (3, 3) if self.kind == "grid3" else (4,)
        bound = math.prod(taps) ** -0.5
        kernel = self.param("kernel", lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound),
                            (*taps, 1, D)).astype(h.dtype)
        if self.kind == "causal4":
            padded = jnp.pad(h, ((3, 0), (0, 0), (0, 0)))
            return sum(kernel[k][None] * padded[k:k + S] for k in range(4))
        side = math.isqrt(S)
        padded = jnp.pad(h.reshape(side, side, B, D), ((1, 1), (1, 1), (0, 0), (0, 0)))
        moved: Any = sum(kernel[j, i][None, None] * padded[i:i + side, j:j + side] for i in range(3) for j in range(3))
        return moved.reshape(S, B, D)


class Block(nn.Module):
    """Post-norm: h = norm(h + mix(h)); h = norm(h + swiglu(h)). With `scales` (a, b), pre-norm:
    h = a h + b mix(norm(h)); h = a h + b swiglu(norm(h)).

    `mixer` is "mlp" (a SwiGLU over the token axis), "attention" or "units" (models/units.py). RSM norms over the
    feature axis twice; TRM's MLP-T block takes its first norm over the token axis, and so does FPRM's: what the
    axes here are for.
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
    units: Units | None = None

    @nn.compact
    def __call__(self, h, scales=None):
        mix, mlp = MIXERS[self.mixer](self), SwiGLU(self.mlp_hidden_size, 2, self.precision, name="mlp")
        for part, axis in ((mix, self.mixer_norm_axis), (mlp, self.mlp_norm_axis)):
            norm = functools.partial(rms_norm, axis={"token": 0, "feature": 2}[axis], eps=self.eps)
            if scales is None:
                h = norm(h + part(h))
            else:
                a, b = (scale.astype(h.dtype)[None, None] for scale in scales)
                h = a * h + b * part(norm(h))
        return h


# arch.mixer -> the module, for a block.
MIXERS = {
    "mlp": lambda block: SwiGLU(block.mixer_hidden_size, 0, block.precision, name="mixer"),
    "attention": lambda block: Attention(block.num_heads, block.rope, block.attention, block.precision, name="mixer"),
    "units": lambda block: UnitMixer(block.mixer_hidden_size, block.units, name="mixer"),
}
