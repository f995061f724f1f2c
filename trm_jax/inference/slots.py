"""Test-time compute on the device: a batch of slots, each with a job of its own. Pure functions.

    unrolled   the same number of cycles for all, in constant memory
    advance    cycles for B slots, each of which stops by a rule of its own and stands still from there on

and the programs that engine.py, which decides who works on what, runs on batches of slots: `begin`, `refill`,
`gather`, `advanced`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from trm_jax import recursion
from trm_jax.models.network import Bound
from trm_jax.recursion import AnyLatents, Leaf, Watched
from trm_jax.runtime import distributed

Array = jax.Array
LOGIT_WINDOW = 3  # cycles over which the choice by the change of the logits looks back (EqR)


class Slots(NamedTuple):
    """B jobs at work."""

    watched: Watched
    x: Leaf  # [T, B, D] embedded puzzles
    limit: Leaf  # int32 [B], cycles at most
    key: Leaf  # keys [B]
    sigma: Leaf  # float32 [B], of the noise before each cycle
    running: Leaf  # bool [B]
    changes: Leaf  # float32 [B, LOGIT_WINDOW], of the logits in the last cycles, see recursion.logit_change; or [B, 0]


def unrolled(bound: Bound, inputs: Array, identifiers: Array, cycles: Array) -> Array:
    """The answers [B, S] after `cycles` [] cycles, the same for all."""
    latents = bound.initial_latents(inputs)
    return bound.answer(bound.unroll(latents, bound.embed(inputs, identifiers), cycles).y)


def disturbed(latents: AnyLatents, keys: Array, sigma: Array) -> AnyLatents:
    """latents + sigma * N(0, 1). Each of the keys [B] draws for its own example alone; sigma is float32 [B]."""
    leaves, tree = jax.tree.flatten(latents[:2])

    def draw(key, i, a):
        noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), (a.shape[0], a.shape[2])), out_axes=1)
        return a + (sigma[None, :, None] * noise(key)).astype(a.dtype)
    y, z = jax.tree.unflatten(tree, [draw(keys, i, a) for i, a in enumerate(leaves)])
    return latents._replace(y=y, z=z)


def advance(bound: Bound, slots: Slots, cycles: Array, enough: Array, settle: Array, tolerance: Array,
            noisy: bool = False) -> Slots:
    """Up to `cycles` [] more cycles for all that are running; fewer when no more than `enough` [] are.

    Args:
      settle, tolerance: [], as in `Settings`.
      noisy: whether slots.sigma is looked at.
    """
    def go_on(state):
        done, s = state
        return (done < cycles) & (jnp.sum(s.running, dtype=jnp.int32) > enough)

    def step(state):
        done, s = state
        start = s.watched
        if noisy:
            keys = jax.vmap(jax.random.fold_in)(s.key, start.done + 1)
            start = start._replace(latents=disturbed(start.latents, keys, s.sigma))
        new = bound.unroll_watched(start, s.x, 1)
        new = Watched(recursion.select(s.running, new.latents, s.watched.latents, 1),
                      *(recursion.select(s.running, a, b, 0) for a, b in zip(new[1:], s.watched[1:])))
        if s.changes.shape[1]:
            change = recursion.logit_change(*(bound.logits(w.latents.y) for w in (new, s.watched)))
            changes = jnp.concatenate([s.changes[:, 1:], change[:, None]], axis=1)
            s = s._replace(changes=recursion.select(s.running, changes, s.changes, 0))
        stops = (new.done >= s.limit) | (settle > 0) & (new.unchanged >= settle) | (new.residual <= tolerance)
        return done + 1, s._replace(watched=new, running=s.running & ~stops)
    return lax.while_loop(go_on, step, (jnp.int32(0), slots))[1]


class Seen(NamedTuple):
    """What the host looks at after a call of the device."""

    answer: Any  # uint8 [B, S]
    unchanged: Any  # int32 [B]
    done: Any  # int32 [B]
    residual: Any  # float32 [B]
    q_halt: Any  # float32 [B]; 0 without a halting head
    running: Any  # bool [B]
    logit_change: Any  # float32 [B], mean of the last cycles; infinite where there were too few, 0 where not asked for


AXES = Slots(Watched(1, 0, 0, 0, 0), 1, 0, 0, 0, 0, 0)  # the batch axis of each array; of the latents, of all of them


def _each(function: Callable[..., Any], *slots: Slots) -> Slots:
    """function(batch axis, array of each of the slots), array by array."""
    return jax.tree.map(function, jax.tree.broadcast(AXES, slots[0]), *slots)


def _split(slots: Slots, mesh: Mesh | None) -> Slots:
    """The batch over the mesh."""
    if mesh is None:
        return slots
    return _each(lambda axis, a: lax.with_sharding_constraint(a, distributed.batch_sharding(mesh, axis)), slots)


@functools.partial(jax.jit, static_argnames=("noisy", "window", "mesh"))
def begin(bound: Bound, inputs, identifiers, base, puzzle, attempt, limit, sigma, noisy: str,
          mesh: Mesh | None, window: int = 0) -> Slots:
    """Slots at the start of their jobs. puzzle, attempt: int32 [B]; noisy: "", "start" or "cycle"; window: cycles
    over which the change of the logits is kept, 0: it is not."""
    key = jax.vmap(lambda p, a: jax.random.fold_in(jax.random.fold_in(base, p), a))(puzzle, attempt)
    latents = bound.initial_latents(inputs, key)
    if noisy == "start":
        latents = disturbed(latents, key, sigma)
    changes = jnp.full((inputs.shape[0], window), jnp.inf, jnp.float32)
    return _split(Slots(bound.watch(latents), bound.embed(inputs, identifiers), limit, key, sigma, limit > 0, changes),
                  mesh)


@functools.partial(jax.jit, donate_argnums=0)
def refill(slots: Slots, fresh: Slots, where: Array) -> Slots:
    return _each(lambda axis, new, old: recursion.select(where, new, old, axis), fresh, slots)


@functools.partial(jax.jit, static_argnames="mesh")
def gather(slots: Slots, rows: Array, mesh: Mesh | None) -> Slots:
    """The slots `rows` [b], in a batch of their own."""
    return _split(_each(lambda axis, a: jnp.take(a, rows, axis=axis), slots), mesh)


@functools.partial(jax.jit, static_argnames="noisy", donate_argnames="slots")
def advanced(bound: Bound, slots: Slots, alive, cycles, enough, settle, tolerance, noisy: bool) -> tuple[Slots, Seen]:
    slots = advance(bound, slots._replace(running=slots.running & alive), cycles, enough, settle, tolerance, noisy)
    w = slots.watched
    return slots, Seen(w.answer, w.unchanged, w.done, w.residual, bound.q_halt(w.latents.y), slots.running,
                       jnp.mean(slots.changes, axis=1) if slots.changes.shape[1] else jnp.zeros_like(w.residual))


@jax.jit
def sure(bound: Bound, slots: Slots) -> Array:
    """float32 [B, S]: the probability of each token of the answers."""
    return bound.confidence(slots.watched.latents.y)
