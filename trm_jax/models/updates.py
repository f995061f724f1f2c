"""How a latent begins, and how it moves to what the network proposes: g = core(h, injection) -> the new h.

    replace    g                                               TRM, RSM, HRM
    damped     (1 - share) h + share g                         EqR (arXiv:2605.21488; its lambda_ is `share`)
    solver     (1 - s) h + s g, with a step size s             FPRM (arXiv:2606.18206)
               of each example's own that shrinks while its
               residual does not
    gate       h + w (g - h), w by the content of g            InfiLoop (arXiv:2610.11570; see `gate_share`)

Each may add noise, std update_noise in training and update_noise_test when answering, drawn anew for every call (EqR).
A rule is applied to each latent by itself; what it remembers for the next call stands in `LatentsAndMemory`.
None of this has a matrix product, and all of it is computed in float32.

The residual of a call is max over tokens of |h - g|_inf / (|g|_inf + 1e-8), norms over features: how far the network
would still move, before any damping. arch.halt_by = "residual" and the solver look at it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trm_jax import config
from trm_jax.models.initialisers import TRUNCATED_STD
from trm_jax.recursion import Core, LatentsAndMemory, Remembering

Array = jax.Array
Draw = Callable[[Array, tuple[int, ...]], tuple[Array, Array]]
EMPTY_GATE = -1e9  # log of the weight that a latent has before its first call: the first proposal replaces it


class Memory(NamedTuple):
    """Of one latent. () where the rule has no use for it; the batch is on axis 1."""

    residual: Any = ()  # float32 [1, B, 1], of the last call; infinite before the first
    size: Any = ()  # float32 [1, B, 1], the solver's s
    patience: Any = ()  # int32 [1, B, 1], calls that may still pass without a smaller residual
    best: Any = ()  # float32 [1, B, 1], smallest residual so far
    weight: Any = ()  # float32 [T, B, 1], logarithm of the sum of the weights of all proposals so far
    key: Any = ()  # uint32 [words, B, 1], of the noise that is still to come


def is_noisy(arch: config.Arch) -> bool:
    """Does a call add noise, in training or when answering?"""
    return arch.update_noise > 0 or arch.update_noise_test > 0


def remembers(arch: config.Arch) -> bool:
    """Is a call more than a function of the latent and its injection?"""
    return arch.update in ("solver", "gate") or arch.halt_by == "residual" or is_noisy(arch)


def keys_of(tokens: Array) -> Array:
    """A random key [B] for each puzzle [B, S], by its tokens alone: the same wherever it stands and whoever asks."""
    S = tokens.shape[1]
    powers = jnp.cumprod(jnp.full((S,), 0x01000193, jnp.uint32))  # wraps around, as is meant
    hashed = jnp.sum(tokens.astype(jnp.uint32) * powers[None], axis=1, dtype=jnp.uint32)
    return jax.vmap(lambda h: jax.random.fold_in(jax.random.key(0), h))(hashed)


def random_start(arch: config.Arch, key: Array, T: int) -> Array:
    """[T, B, D] for keys [B]: normal, cut at 2 sigma, std start_std after the cut; in the forward dtype."""
    def draw(key):
        return jax.random.truncated_normal(key, -2.0, 2.0, (T, arch.hidden_size), jnp.float32)
    return (jax.vmap(draw, out_axes=1)(key) * jnp.float32(arch.start_std / TRUNCATED_STD)).astype(arch.forward_dtype)


def normal(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Standard normals [T, B, D] for raw keys [words, B, 1], each example's from its own; and the keys that follow."""
    T, _, D = shape
    both = jax.vmap(jax.random.split)(jax.random.wrap_key_data(key[:, :, 0].T))  # [B, 2]
    noise = jax.vmap(lambda k: jax.random.normal(k, (T, D), jnp.float32), out_axes=1)(both[:, 0])
    return noise, jax.random.key_data(both[:, 1]).T[:, :, None]


def residual(state: Array, proposal: Array) -> Array:
    """float32 [1, B, 1], see above; without gradient."""
    h, g = (lax.stop_gradient(a).astype(jnp.float32) for a in (state, proposal))
    def size(a):
        return jnp.max(jnp.abs(a), axis=2, keepdims=True)
    return jnp.max(size(h - g) / (size(g) + jnp.float32(1e-8)), axis=0, keepdims=True)


def gate_share(proposal: Array, weight: Array, q: Array, decay: Array, eps: float) -> tuple[Array, Array]:
    """(share w of a proposal [T, B, 1], the new log weight): a running mean of proposals, weighted by content.

    Source, arXiv:2610.11570 (code not published): e = exp(q . norm(c)), n = beta n + e c, d = beta d + e, h = n / d.
    That is h + w (c - h) with w = e / (beta d + e), computed here by logarithms, which cannot overflow.
    The source does not say how q, beta, n and d begin. Here: q 0, beta 1/2, d 0.

    Args:
      weight: log d. q: [D], trained. decay: [], trained; beta = sigmoid(decay).
    """
    c = proposal.astype(jnp.float32)
    c = c * lax.rsqrt(jnp.mean(c * c, axis=2, keepdims=True) + jnp.float32(eps))
    mine = jnp.sum(c * q[None, None], axis=2, keepdims=True)
    old = jax.nn.log_sigmoid(decay)[None, None, None] + weight
    return jax.nn.sigmoid(mine - old), jnp.logaddexp(mine, old)


def mix(state: Array, proposal: Array, keep: Array | float, share: Array | float) -> Array:
    """keep * state + share * proposal, in float32; returned in the proposal's dtype."""
    return (keep * state.astype(jnp.float32) + share * proposal.astype(jnp.float32)).astype(proposal.dtype)


@dataclasses.dataclass(frozen=True)
class Update:
    """The rule of a config, for training or for answering."""

    arch: config.Arch
    training: bool
    draw: Draw = normal  # (Memory.key, shape) -> (standard normals, the next Memory.key)

    @property
    def noise(self) -> float:
        return self.arch.update_noise if self.training else self.arch.update_noise_test

    def begin(self, T: int, B: int, keys: Any) -> Memory:
        """Before the first call. keys: [B], looked at where there may be noise."""
        a = self.arch
        def per_example(value, dtype=jnp.float32):
            return jnp.full((1, B, 1), value, dtype)
        memory = Memory(residual=per_example(jnp.inf))
        if a.update == "solver":
            memory = memory._replace(size=per_example(1), patience=per_example(a.solver_patience, jnp.int32),
                                     best=per_example(jnp.inf))
        if a.update == "gate":
            memory = memory._replace(weight=jnp.full((T, B, 1), EMPTY_GATE, jnp.float32))
        if is_noisy(a):
            memory = memory._replace(key=jax.random.key_data(keys).T[:, :, None])
        return memory

    def of(self, core: Any, gate: Any) -> Core | Remembering:
        """A core with this rule. gate: its q and decay, where the rule is "gate"."""
        a = self.arch
        if not remembers(a):
            if a.update == "replace":
                return core
            return lambda state, injection: self._damped(state, core(state, injection))

        def call(state, injection, memory: Memory):
            proposal = core(state, injection)
            memory = memory._replace(residual=residual(state, proposal))
            new = proposal
            if a.update == "damped":
                new = self._damped(state, proposal)
            elif a.update == "solver":
                new, memory = mix(state, proposal, 1 - memory.size, memory.size), self._step_size(memory)
            elif a.update == "gate":
                share, weight = gate_share(proposal, memory.weight, gate[0], gate[1], a.rms_norm_eps)
                new, memory = mix(state, proposal, 1 - share, share), memory._replace(weight=weight)
            if self.noise:
                noise, key = self.draw(memory.key, new.shape)
                new = (new.astype(jnp.float32) + jnp.float32(self.noise) * noise).astype(new.dtype)
                memory = memory._replace(key=key)
            return new, memory
        return Remembering(call)

    def _damped(self, state: Array, proposal: Array) -> Array:
        share = self.arch.update_share
        return mix(state, proposal, 1 - share, share)

    def _step_size(self, m: Memory) -> Memory:
        """The solver's bookkeeping: s shrinks when the residual has had no new low for `solver_patience` calls."""
        a = self.arch
        decay = a.solver_decay if self.training else a.solver_decay_test
        patience = jnp.where(m.residual < m.best, a.solver_patience, m.patience - 1)
        shrink = (patience <= 0) & (m.residual >= a.halt_residual)
        return m._replace(size=jnp.where(shrink, m.size * jnp.float32(decay), m.size),
                          patience=jnp.where(shrink, a.solver_patience, patience),
                          best=jnp.minimum(m.best, m.residual))


def has_converged(arch: config.Arch, latents: LatentsAndMemory) -> Array:
    """bool [B]: every latent's residual is under halt_residual, or the solver no longer moves it.

    Per example. (FPRM's evaluation compares the batch's largest residual and largest step size instead, so that one
    example that has converged and one that is stuck keep each other running to the cap.)
    """
    done = []
    for memory in filter(None, latents.memory):
        now = memory.residual < arch.halt_residual
        if arch.update == "solver":
            now = now | (memory.size < arch.solver_min_size)
        done.append(now[0, :, 0])
    return jnp.all(jnp.stack(done), axis=0)
