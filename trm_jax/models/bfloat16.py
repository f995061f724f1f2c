"""Matrix products of bfloat16 operands that are summed in float32, and the SwiGLU that is made of them.

A CPU with avx512_bf16 or amx computes such a product about twice as fast as one of float32 operands, GPUs and TPUs
more. The functions here have gradients of their own, because JAX's would multiply a float32 cotangent with a bfloat16
operand: every product, backward too, has two bfloat16 operands. On a CPU without such a unit the operands have the
same values in float32, which is as fast there as it was.

Three things that XLA's CPU backend wants decide how it is written. A product is only computed in bfloat16 if the left
operand is contracted over its last axis and both lie in memory row by row (`transposed`). Rounding by integers is three
times as fast as by `astype` (`rounded`). The gradients of gate and up are concatenated; JAX would pad and add them.
"""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@functools.cache
def has_unit() -> bool:
    """Whether this machine multiplies bfloat16 numbers faster than float32 ones."""
    if jax.default_backend() != "cpu":
        return True
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def rounded(x: Array) -> Array:
    """The nearest bfloat16 numbers, as a product takes them: float32 where the machine has no unit for bfloat16.

    On a CPU a number half-way between two goes away from zero; elsewhere to the even one.
    """
    if jax.default_backend() != "cpu":
        return x.astype(jnp.bfloat16)
    if x.dtype == jnp.bfloat16:
        return x if has_unit() else x.astype(jnp.float32)
    bits = lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(0x8000)
    if has_unit():
        return lax.bitcast_convert_type((bits >> jnp.uint32(16)).astype(jnp.uint16), jnp.bfloat16)
    return lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)


def transposed(x: Array) -> Array:
    """x.T, laid out row by row. The barrier and the reshapes keep XLA from reading x in columns instead."""
    if jax.default_backend() != "cpu":
        return x.T
    return lax.optimization_barrier(x.T.reshape(-1)).reshape(x.shape[::-1])


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Contraction of two matrices of rounded numbers, in float32.

    Whatever comes after it must not be drawn into the product: of a transpose, XLA's CPU backend would make a product
    of other axes, which it cannot run on bfloat16 operands.
    """
    out = lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)
    return lax.optimization_barrier(out) if jax.default_backend() == "cpu" else out


@jax.custom_vjp
def product(h: Array, kernel: Array) -> Array:
    """h [X, K] @ kernel [K, N] in h's dtype."""
    return _product_forward(h, kernel)[0]


def _product_forward(h, kernel):
    a, b = rounded(h), rounded(kernel)
    return _dot(a, b, 1, 0).astype(h.dtype), (a, b, h[:0])


def _product_backward(kept, grad):
    a, b, like = kept
    grad = rounded(grad)
    return _dot(grad, b, 1, 1).astype(like.dtype), _dot(transposed(a), grad, 1, 0)


product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def swiglu(h: Array, gate_up: Array, down: Array, axis: int) -> Array:
    """down(silu(gate) * up) of a matrix h along its axis 0 or 1, in h's dtype.

    Args:
      h: [W, X] with axis 0, [X, W] with axis 1.
      gate_up, down: float32 [W, 2m], [m, W].
    """
    return _swiglu_forward(h, gate_up, down, axis)[0]


def _halves(both: Array, axis: int) -> tuple[Array, Array]:
    m = both.shape[axis] // 2
    return lax.slice_in_dim(both, 0, m, axis=axis), lax.slice_in_dim(both, m, 2 * m, axis=axis)


def _swiglu_forward(h, gate_up, down, axis):
    state, w_both, w_down = rounded(h), rounded(gate_up), rounded(down)
    both = _dot(transposed(w_both), state, 1, 0) if axis == 0 else _dot(state, w_both, 1, 0)
    gate, up = _halves(both, axis)
    hidden = rounded(jax.nn.silu(gate) * up)
    out = _dot(transposed(w_down), hidden, 1, 0) if axis == 0 else _dot(hidden, w_down, 1, 0)
    return out.astype(h.dtype), (state, both, w_both, w_down, h[:0])


def _swiglu_backward(axis, kept, grad):
    state, both, w_both, w_down, like = kept
    grad = rounded(grad)
    gate, up = _halves(both, axis)
    share = jax.nn.sigmoid(gate)
    silu = gate * share
    hidden = rounded(silu * up)
    d_hidden = _dot(w_down, grad, 1, 0) if axis == 0 else _dot(grad, w_down, 1, 1)
    d_both = jnp.concatenate([rounded(d_hidden * up * (share * (1 + gate * (1 - share)))), rounded(d_hidden * silu)],
                             axis=axis)
    if axis == 0:
        d_h, d_gate_up, d_down = _dot(w_both, d_both, 1, 0), _dot(state, d_both, 1, 1), _dot(hidden, grad, 1, 1)
    else:
        d_h, d_gate_up = _dot(d_both, w_both, 1, 1), _dot(transposed(state), d_both, 1, 0)
        d_down = _dot(transposed(grad), hidden, 1, 0).T
    return d_h.astype(like.dtype), d_gate_up, d_down


swiglu.defvjp(_swiglu_forward, _swiglu_backward)
