"""Recursions over a core: pure functions that apply one small network again and again.

A core is any function (state, injection) -> state on arrays of one shape; the parameters are in its closure.
`y` is the answer (z_H in published code), `z` the reasoning (z_L), `x` the embedded puzzle, all [T, B, D].
H counts outer cycles, L the inner cycles of each. H may be traced everywhere; L is a Python int, because its
calls carry gradients in training and reverse mode needs their number.

RSM's training step (arXiv:2603.15641), cycle by cycle:

    latents = warm_up(core, latents, x, H - 2, L)           # cycles 1 .. H-2: no gradient
    latents = transition(core, latents, x, L, keep)         # cycle H-1: gradient of its outer update, if kept
    latents = outer_cycle(core, latents, x, L)              # cycle H: gradient through all L + 1 calls
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Core = Callable[[Array, Array], Array]


class Latents(NamedTuple):
    y: Array  # [T, B, D] answer
    z: Array  # [T, B, D] reasoning


def inner_cycles(core: Core, latents: Latents, x: Array, L: int) -> Array:
    """z after L times z = core(z, y + x).  [T, B, D]."""
    injection = latents.y + x
    z, _ = lax.scan(lambda z, _: (core(z, injection), None), latents.z, length=L)
    return z


def outer_cycle(core: Core, latents: Latents, x: Array, L: int) -> Latents:
    """The published nested loop, once: L times z = core(z, y + x), then y = core(y, z)."""
    z = inner_cycles(core, latents, x, L)
    return Latents(y=core(latents.y, z), z=z)


def warm_up(core: Core, latents: Latents, x: Array, H: int | Array, L: int) -> Latents:
    """H outer cycles that no gradient enters or leaves.

    The stop on the *outputs* is what detaches the parameters in the core's closure as well: without it a
    traced H makes reverse mode fail, and a Python H silently differentiates through every cycle.
    """
    latents, x = lax.stop_gradient((latents, x))
    latents = lax.fori_loop(0, H, lambda _, s: outer_cycle(core, s, x, L), latents)
    return lax.stop_gradient(latents)


def transition(core: Core, latents: Latents, x: Array, L: int, keep: Array) -> Latents:
    """An outer cycle whose inner cycles are detached and whose outer update keeps its gradient where `keep`.

    Args:
      keep: bool [], one coin for the whole batch, as in the published code. The backward pass of the update
        is paid for only when it comes up True.
    """
    latents, x = lax.stop_gradient((latents, x))
    z = lax.stop_gradient(inner_cycles(core, latents, x, L))
    y = lax.cond(keep, core, lambda y, z: lax.stop_gradient(core(y, z)), latents.y, z)
    return Latents(y=y, z=z)


def unroll(core: Core, latents: Latents, x: Array, steps: int | Array, L: int) -> Latents:
    """Test time: `steps` outer cycles in constant memory. Not differentiable."""
    return lax.fori_loop(0, steps, lambda _, s: outer_cycle(core, s, x, L), latents)


class Watched(NamedTuple):
    """An unroll that keeps an eye on its decoded answer."""

    latents: Latents
    answer: Any  # decode(y), e.g. tokens [B, S]
    unchanged: Array  # int32 [B], outer cycles since the answer last changed


def watch(latents: Latents, decode: Callable[[Array], Array]) -> Watched:
    """A `Watched` before its first cycle; nothing counts as unchanged yet."""
    answer = decode(latents.y)
    return Watched(latents, answer, jnp.zeros(answer.shape[0], jnp.int32))


def unroll_watched(core: Core, watched: Watched, x: Array, steps: int | Array, L: int,
                   decode: Callable[[Array], Array]) -> Watched:
    """`unroll` that counts, per example, for how many cycles the answer decode(y) [B, ...] has stood still."""
    def cycle(_, w):
        latents = outer_cycle(core, w.latents, x, L)
        answer = decode(latents.y)
        same = jnp.all((answer == w.answer).reshape(answer.shape[0], -1), axis=1)
        return Watched(latents, answer, jnp.where(same, w.unchanged + 1, 0))
    return lax.fori_loop(0, steps, cycle, watched)


def trace(core: Core, latents: Latents, x: Array, steps: int, L: int,
          decode: Callable[[Array], Any]) -> tuple[Latents, Any]:
    """Test time with every cycle's decode(y) kept: (final latents, decoded values stacked on a first axis)."""
    def cycle(latents, _):
        latents = outer_cycle(core, latents, x, L)
        return latents, decode(latents.y)
    return lax.scan(cycle, latents, length=steps)
