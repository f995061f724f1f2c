"""Recursions over a core: pure functions that apply one small network (or two) again and again.

A core is any function (state, injection) -> state on arrays of one shape; the parameters are in its closure.
`y` is the answer (z_H in published code), `z` the reasoning (z_L), `x` the embedded puzzle, all [T, B, D].
H counts outer cycles (the papers' T), L the inner cycles of each (their n). H may be traced everywhere; L is a
Python int, because its calls carry gradients in training and reverse mode needs their number.

A recursion is one function (core, latents, x, L, detached) -> latents, one *cycle* of it; `RECURSIONS` names them:

    outer_cycle      answer and reasoning: TRM, RSM, and with two networks HRM (TRM paper, figures 2 and 3)
    single_z_cycle   one latent for both (figure 4)
    multi_z_cycle    a reasoning latent for each inner cycle (figure 5)
    direct_cycle     one pass through the network

A core's answer becomes the new state; or an update rule moves the state towards it and remembers something from call
to call (`Remembering`; the rules are in models/updates.py).

All else is said once, for any of them. TRM's and HRM's deep_recursion, and RSM's training step (arXiv:2603.15641),
line by line:

    latents = warm_up(core, latents, x, H - 1, L, cycle)              # TRM: no gradient in T-1 cycles
    latents = cycle(core, latents, x, L, detached)                    # TRM, HRM: gradient of the last calls

    latents = warm_up(core, latents, x, H - 2, L, cycle)              # RSM: cycles 1 .. H-2, no gradient
    latents = transition(core, latents, x, L, keep, cycle)            # cycle H-1: its outer update's, if kept
    latents = cycle(core, latents, x, L)                              # cycle H: gradient through all L + 1 calls
"""

# pyright: strict
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Leaf = Any  # an Array; in a tree of axes, shardings or names, one of those


class Remembering(NamedTuple):
    """A core with an update rule that keeps something for the next call on the same latent."""

    call: Callable[[Array, Array, Any], tuple[Array, Any]]  # (state, injection, memory) -> (state, memory)


Core = Callable[[Array, Array], Array] | Remembering


class Cores(NamedTuple):
    """Two networks, as HRM has them. Wherever a core is asked for, one function stands for both."""

    L: Core  # f_L, reasons
    H: Core  # f_H, answers


class Latents(NamedTuple):
    y: Leaf  # [T, B, D] answer: what the heads read
    z: Any  # [T, B, D] reasoning; multi-scale z: a tuple of them; a single latent: ()


class LatentsAndMemory(NamedTuple):
    """`Latents` of a core that is `Remembering`."""

    y: Leaf
    z: Any
    memory: tuple[Any, Any]  # what is kept for y, and for z; the batch is on axis 1 of every array


AnyLatents = Latents | LatentsAndMemory


def memory_of(latents: AnyLatents) -> tuple[Any, Any]:
    return latents.memory if isinstance(latents, LatentsAndMemory) else ((), ())


def renewed(latents: AnyLatents, y: Array, z: Any, of_y: Any, of_z: Any) -> AnyLatents:
    """Latents of the same kind, after a cycle."""
    return LatentsAndMemory(y, z, (of_y, of_z)) if isinstance(latents, LatentsAndMemory) else Latents(y, z)


Cycle = Callable[..., AnyLatents]  # (core, latents, x, L, detached=0) -> latents


def networks(core: Core | Cores) -> Cores:
    return core if isinstance(core, Cores) else Cores(core, core)


def apply(core: Core, state: Array, injection: Array, memory: Any) -> tuple[Array, Any]:
    """One call: (the new state, what is remembered)."""
    if isinstance(core, Remembering):
        return core.call(state, injection, memory)
    return core(state, injection), memory


def repeat(core: Core, state: Array, injection: Array, memory: Any, times: int,
           detached: int) -> tuple[Array, Any]:
    """`times` calls of a core on one state, the first `detached` of them without gradient."""
    if detached:
        state, memory = lax.stop_gradient(repeat(core, state, injection, memory, detached, 0))
    if times == detached:
        return state, memory
    return lax.scan(lambda s, _: (apply(core, s[0], injection, s[1]), None), (state, memory),
                    length=times - detached)[0]


# The recursions: one cycle each, the papers' latent_recursion. The outer update always keeps its gradient, and so do
# the inner calls but for the first `detached`: all L + 1 calls (TRM), the last f_L and f_H (HRM: L - 1), the last k.


def outer_cycle(core: Core | Cores, latents: AnyLatents, x: Array, L: int, detached: int = 0) -> AnyLatents:
    """The published nested loop, once: L times z = f_L(z, y + x), then y = f_H(y, z).

    Figure 3 (TRM: one network is both), figure 2 (HRM: two networks).
    """
    f_L, f_H = networks(core)
    (y, z), (of_y, of_z) = latents[:2], memory_of(latents)
    z, of_z = repeat(f_L, z, y + x, of_z, L, detached)  # latent reasoning
    y, of_y = apply(f_H, y, z, of_y)  # refine output answer
    return renewed(latents, y, z, of_y, of_z)


def single_z_cycle(core: Core | Cores, latents: AnyLatents, x: Array, L: int, detached: int = 0) -> AnyLatents:
    """Figure 4: one latent, here `y`: L times y = f_L(y, x), then y = f_H(y, 0).

    Deviation of the published code from the figure, followed here: the last call does without the puzzle x.
    """
    f_L, f_H = networks(core)
    y, of_y = repeat(f_L, latents.y, x, memory_of(latents)[0], L, detached)
    y, of_y = apply(f_H, y, jnp.zeros_like(y), of_y)
    return renewed(latents, y, (), of_y, ())


def multi_z_cycle(core: Core | Cores, latents: AnyLatents, x: Array, L: int, detached: int = 0) -> AnyLatents:
    """Figure 5: L reasoning latents; in turn z[i] = f_L(sum of z, y + x), then y = f_H(y, sum of z).

    A z[i] does not move, it is set anew: there is no update rule but that.
    """
    f_L, f_H = networks(core)
    (y, z), (of_y, of_z) = latents[:2], memory_of(latents)
    injection = y + x
    for i in range(L):
        z = (*z[:i], apply(f_L, sum(z[1:], z[0]), injection, ())[0], *z[i + 1:])
        if i + 1 == detached:
            z = lax.stop_gradient(z)
    y, of_y = apply(f_H, y, sum(z[1:], z[0]), of_y)
    return renewed(latents, y, z, of_y, of_z)


def direct_cycle(core: Core | Cores, latents: AnyLatents, x: Array, L: int = 0, detached: int = 0) -> AnyLatents:
    """One latent and one call: y = f_H(y, x). There are no inner cycles, L is 0.

    One cycle is direct prediction; many are a fixed-point iteration (FPRM, arXiv:2606.18206).
    """
    y, of_y = apply(networks(core).H, latents.y, x, memory_of(latents)[0])
    return renewed(latents, y, (), of_y, ())


class Recursion(NamedTuple):
    cycle: Cycle
    starts: Callable[[int], Latents]  # L -> published names of the vectors [D] that the latents start from


RECURSIONS = {
    "y_z": Recursion(outer_cycle, lambda L: Latents("H_init", "L_init")),
    "single_z": Recursion(single_z_cycle, lambda L: Latents("L_init", ())),
    "multi_z": Recursion(multi_z_cycle, lambda L: Latents("H_init", tuple(f"L{i + 1}_init" for i in range(L)))),
    "direct": Recursion(direct_cycle, lambda L: Latents("H_init", ())),
}


# Training: what has no gradient.


def warm_up(core: Core | Cores, latents: AnyLatents, x: Array, H: int | Array, L: int,
            cycle: Cycle = outer_cycle) -> AnyLatents:
    """H cycles that no gradient enters or leaves.

    The stop on the *outputs* is what detaches the parameters in the core's closure as well: without it a
    traced H makes reverse mode fail, and a Python H silently differentiates through every cycle.
    """
    latents, x = lax.stop_gradient((latents, x))
    return lax.stop_gradient(unroll(core, latents, x, H, L, cycle))


def transition(core: Core | Cores, latents: AnyLatents, x: Array, L: int, keep: Array,
               cycle: Cycle = outer_cycle) -> AnyLatents:
    """A cycle whose inner calls are detached and whose outer update keeps its gradient where `keep`.

    Args:
      keep: bool [], one coin for the whole batch, as in the published code. The backward pass of the update
        is paid for only when it comes up True.
    """
    f_L, f_H = networks(core)

    def update(state: Array, injection: Array, memory: Any) -> tuple[Array, Any]:
        return apply(f_H, state, injection, memory)

    def outer(state: Array, injection: Array, memory: Any) -> tuple[Array, Any]:
        return lax.cond(keep, update, lambda *args: lax.stop_gradient(update(*args)), state, injection, memory)
    latents, x = lax.stop_gradient((latents, x))
    return cycle(Cores(f_L, Remembering(outer)), latents, x, L, detached=L)


def last_cycles(core: Core | Cores, latents: AnyLatents, x: Array, L: int, times: int, detached: int = 0,
                cycle: Cycle = outer_cycle) -> AnyLatents:
    """`times` cycles with gradient; of every one the first `detached` inner calls have none."""
    if times == 1:
        return cycle(core, latents, x, L, detached)
    return lax.scan(lambda s, _: (cycle(core, s, x, L, detached), None), latents, length=times)[0]


# Test time. Not differentiable.


def unroll(core: Core | Cores, latents: AnyLatents, x: Array, steps: int | Array, L: int,
           cycle: Cycle = outer_cycle) -> AnyLatents:
    """`steps` cycles in constant memory."""
    return lax.fori_loop(0, steps, lambda _, s: cycle(core, s, x, L), latents)


def several(cycle: Cycle, H: int) -> Cycle:
    """H cycles as one: what a supervision step does to the latents."""
    if H == 1:
        return cycle

    return lambda core, latents, x, L: unroll(core, latents, x, H, L, cycle)


def residual(new: AnyLatents, old: AnyLatents) -> Array:
    """Relative change of the latents in one cycle, |new - old| / |new| over all of them, float32 [B]."""
    def squares(tree: Any) -> Any:
        return sum(jnp.sum(jnp.square(a.astype(jnp.float32)), axis=(0, 2)) for a in jax.tree.leaves(tree))
    # Not of what is remembered.
    change = squares(jax.tree.map(lambda a, b: a.astype(jnp.float32) - b.astype(jnp.float32), new[:2], old[:2]))
    return jnp.sqrt(change / jnp.maximum(squares(new[:2]), jnp.finfo(jnp.float32).tiny))


def logit_change(new: Array, old: Array) -> Array:
    """float32 [B]: length of the change of a cell's logits [B, S, V] in one cycle, mean over cells.

    Source: the choice among restarts of EqR (arXiv:2605.21488), there the mean over the last three steps.
    """
    return jnp.mean(jnp.linalg.norm(new - old, axis=-1), axis=-1)


class Watched(NamedTuple):
    """The state of an unroll, with what its decoded answer has done so far."""

    latents: Any  # AnyLatents
    answer: Any  # decode(y), e.g. tokens [B, S]
    unchanged: Leaf  # int32 [B], cycles since the answer last changed
    done: Leaf  # int32 [B], cycles done; those after a halt are not
    residual: Leaf  # float32 [B], of the last cycle done; infinite before the first


def watch(latents: AnyLatents, decode: Callable[[Array], Array]) -> Watched:
    """A `Watched` before its first cycle; nothing counts as unchanged yet."""
    answer = decode(latents.y)
    B = answer.shape[0]
    zeros = jnp.zeros(B, jnp.int32)
    return Watched(latents, answer, zeros, zeros, jnp.full(B, jnp.inf, jnp.float32))


def unroll_watched(core: Core | Cores, watched: Watched, x: Array, steps: int | Array, L: int,
                   decode: Callable[[Array], Array], cycle: Cycle = outer_cycle,
                   halts: Callable[[AnyLatents], Array] | None = None) -> Watched:
    """`unroll` that counts, per example, for how many cycles the answer decode(y) [B, ...] has stood still.

    Args:
      halts: latents -> bool [B], asked after each cycle: an example that is True stays as it is from there on (its
        answer counts as unchanged). When all are, nothing is computed any more.
    """
    def advance(w: Watched) -> Watched:
        latents = cycle(core, w.latents, x, L)
        answer = decode(latents.y)
        same = jnp.all((answer == w.answer).reshape(answer.shape[0], -1), axis=1)
        return Watched(latents, answer, jnp.where(same, w.unchanged + 1, 0), w.done + 1, residual(latents, w.latents))

    def advance_unless_halted(w: Watched) -> Watched:
        assert halts is not None
        halted = (w.done > 0) & halts(w.latents)

        def go_on(w: Watched) -> Watched:
            new = advance(w)
            return Watched(select(halted, w.latents, new.latents, 1), select(halted, w.answer, new.answer, 0),
                           jnp.where(halted, w.unchanged + 1, new.unchanged), jnp.where(halted, w.done, new.done),
                           jnp.where(halted, w.residual, new.residual))
        return lax.cond(jnp.all(halted), lambda w: w._replace(unchanged=w.unchanged + 1), go_on, w)
    return lax.fori_loop(0, steps, lambda _, w: (advance if halts is None else advance_unless_halted)(w), watched)


def trace(core: Core | Cores, latents: AnyLatents, x: Array, steps: int, L: int,
          decode: Callable[[Array], Any], cycle: Cycle = outer_cycle) -> tuple[AnyLatents, Any]:
    """Every cycle's decode(y) and residual kept: (final latents, (decoded values, residuals [steps, B]))."""
    def advance(latents: AnyLatents, _: None) -> tuple[AnyLatents, Any]:
        new = cycle(core, latents, x, L)
        return new, (decode(new.y), residual(new, latents))
    return lax.scan(advance, latents, length=steps)


def select(where: Array, a: Any, b: Any, axis: int) -> Any:
    """Per example: a's where `where` bool [B], else b's. Trees of arrays with the batch on `axis`."""
    def choose(a: Array, b: Array) -> Array:
        return jnp.where(jnp.expand_dims(where, [i for i in range(a.ndim) if i != axis]), a, b)
    return jax.tree.map(choose, a, b)
