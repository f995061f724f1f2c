"""The network of the whole family: embeddings, one core or two, heads; and `Model`, its plain functional face.

Outside of `models/` there is no Flax: a `Model` hands out parameters as a plain pytree and the core as a
function (state, injection) -> state, or as two of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from trm_jax import config, recursion
from trm_jax.data.shape import Shape
from trm_jax.models import updates
from trm_jax.models.initialisers import truncated_normal
from trm_jax.models.layers import Block, Conv, Rope, Scales, rms_norm, swiglu_hidden
from trm_jax.models.units import STATES, Units, logits_of_candidates, standing
from trm_jax.recursion import RECURSIONS, AnyLatents, Core, Cores, Cycle, LatentsAndMemory, Leaf, Watched, several

Array = jax.Array


class Network(nn.Module):
    """Parameters and the four things that are computed with them."""

    arch: config.Arch
    shape: Shape

    def setup(self):
        a, D, T = self.arch, self.arch.hidden_size, token_count(self.arch, self.shape)
        std, (embedded, decoded) = D ** -0.5, vocabularies(self.arch, self.shape)
        self.embed_tokens = self.param("embed_tokens", truncated_normal(std), (embedded, D))
        if a.pos_encodings == "learned":
            self.embed_pos = self.param("embed_pos", truncated_normal(std), (T, D))
        def block():
            return Block(
                mixer=a.mixer,
                mixer_hidden_size=a.mixer_hidden_size or swiglu_hidden(T, a.expansion),
                mlp_hidden_size=a.mlp_hidden_size or swiglu_hidden(D, a.expansion),
                num_heads=a.num_heads,
                rope=Rope(a.rope_theta, a.rope_columns, prefix_len(a)) if a.pos_encodings == "rope" else None,
                attention=a.attention,
                precision=a.matmul_precision,
                mixer_norm_axis=a.mixer_norm_axis,
                mlp_norm_axis=a.mlp_norm_axis,
                eps=a.rms_norm_eps,
                units=Units.read(a, self.shape),
            )
        self.layers = [block() for _ in range(a.L_layers)]  # f_L, or the one network
        self.H_layers = [block() for _ in range(a.H_layers)]  # f_H
        if a.block == "pre_norm":
            self.scales = Scales(D, a.L_layers)
            self.H_scales = Scales(D, a.H_layers) if a.H_layers else None
        if a.conv == "grid3" and math.isqrt(self.shape.seq_len) ** 2 != self.shape.seq_len:
            raise config.ConfigError(f"arch.conv = 'grid3': needs a square grid, not {self.shape.seq_len} cells; set "
                                     " it to 'causal4' or 'none'")
        if a.conv != "none":
            self.conv = Conv(a.conv)
            self.H_conv = Conv(a.conv) if a.H_layers else None
        for name in gates(a):
            setattr(self, name, Gate(D))
        if not a.tie_head:
            self.lm_head = self.param("lm_head", truncated_normal(std), (D, decoded))
        if a.halting_head:
            self.q_head = self.param("q_head", nn.initializers.zeros, (D, 2))
            self.q_head_bias = self.param("q_head_bias", nn.initializers.constant(-5.0), (2,))

    def embed(self, tokens, rows):
        """tokens int [B, S], rows [B, puzzle_emb_ndim] of the puzzle table -> x [T, B, D]."""
        a, D, P, dtype = self.arch, self.arch.hidden_size, prefix_len(self.arch), self.arch.forward_dtype
        if a.candidates:
            units: Any = Units.read(a, self.shape)
            tokens = standing(tokens, units.values)
        x = jnp.take(self.embed_tokens, tokens.T, axis=0).astype(dtype)  # [S, B, D]
        if P:
            prefix = jnp.pad(rows, ((0, 0), (0, P * D - a.puzzle_emb_ndim)))
            prefix = prefix.reshape(-1, P, D).transpose(1, 0, 2).astype(dtype)
            x = jnp.concatenate([prefix, x], axis=0)
        if a.pos_encodings == "learned":
            x = jnp.asarray(0.707106781, dtype) * (x + self.embed_pos.astype(dtype)[:, None])
        return jnp.asarray(math.sqrt(D), dtype) * x

    def core(self, state, injection):
        """blocks(state + injection), [T, B, D] -> [T, B, D]."""
        return self._through(self.layers, state, injection, "")

    def H_core(self, state, injection):
        """The same with the second network's blocks."""
        return self._through(self.H_layers, state, injection, "H_")

    def _through(self, layers, state, injection, prefix):
        a, scales = self.arch, None
        if a.conv != "none":
            P = prefix_len(a)
            state = jnp.concatenate([state[:P], getattr(self, prefix + "conv")(state[P:])], axis=0)
        if a.block == "pre_norm":
            a1, b1, a2, b2 = getattr(self, prefix + "scales")()
            a2, b2 = (scale.astype(state.dtype)[None, None] for scale in (a2, b2))
            state, injection, scales = a2 * state, b2 * injection, (a1, b1)
        h = state + injection
        for layer in layers:
            h = layer(h, scales)
        return rms_norm(h, 2, a.rms_norm_eps) if a.output_norm else h

    def logits(self, y):
        """y [T, B, D] -> float32 [B, S, V]; prefix positions dropped.

        The product is one of float32 arrays, with values in y's dtype.
        """
        kernel = self.embed_tokens.T if self.arch.tie_head else self.lm_head
        y, kernel = (a.astype(y.dtype).astype(jnp.float32) for a in (y[prefix_len(self.arch):], kernel))
        if self.arch.candidates:
            return logits_of_candidates(jnp.einsum("tbd,dv->tb", y, kernel), self.shape.seq_len)
        return jnp.einsum("sbd,dv->bsv", y, kernel)

    def halting(self, y):
        """y [T, B, D] -> float32 [B, 2]: (q_halt, q_continue), read from the first position."""
        return y[0].astype(jnp.float32) @ self.q_head + self.q_head_bias[None]

    def everything(self, tokens, rows):
        x = self.embed(tokens, rows)
        y = self.core(x, x)
        if self.arch.H_layers:
            y = self.H_core(y, x)
        for name in gates(self.arch):
            getattr(self, name)()
        return self.logits(y), self.halting(y) if self.arch.halting_head else None


class Gate(nn.Module):
    """What a content gate is trained in: (q [D], decay []), see updates.gate_share."""

    width: int

    @nn.compact
    def __call__(self):
        return (self.param("q", nn.initializers.zeros, (self.width,)),
                self.param("decay", nn.initializers.zeros, ()))


def gates(arch: config.Arch) -> list[str]:
    """Names of the networks' content gates among the parameters."""
    return (["gate"] + ["H_gate"] * bool(arch.H_layers)) if arch.update == "gate" else []


def fixed_names(arch: config.Arch) -> list[str]:
    """Published names of the vectors that the latents start from; none where they start at random."""
    return jax.tree.leaves(RECURSIONS[arch.recursion].starts(arch.L_cycles)) if arch.start == "fixed" else []


def token_count(arch: config.Arch, shape: Shape) -> int:
    """T."""
    units = Units.read(arch, shape)
    return (units.tokens if units else shape.seq_len) + prefix_len(arch)


def vocabularies(arch: config.Arch, shape: Shape) -> tuple[int, int]:
    """Rows of the token embedding, and logits that a token's state is decoded to."""
    return (STATES, 1) if arch.candidates else (shape.vocab_size, shape.vocab_size)


def prefix_len(arch: config.Arch) -> int:
    """P, prefix positions in front of the grid."""
    return arch.puzzle_emb_len or -(-arch.puzzle_emb_ndim // arch.hidden_size)


class Weights(NamedTuple):
    """What answering takes: the evaluated parameters (EMA if the run keeps one), latents and puzzle table."""

    params: Any
    fixed: Any
    table: Leaf


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as plain functions of plain parameters.

    params: trained by gradient descent. fixed: {"H_init", "L_init", ...} [D], the latents' starting points, drawn
    once; {} where they start at random. The puzzle table [num_puzzle_identifiers, puzzle_emb_ndim] is kept apart from
    both: it has an optimiser of its own, and a batch needs only a few of its rows. Without a prefix it is None.
    """

    arch: config.Arch
    shape: Shape

    @functools.cached_property
    def network(self) -> Network:
        return Network(self.arch, self.shape)

    @property
    def T(self) -> int:
        return token_count(self.arch, self.shape)

    def init(self, key: Array) -> tuple[Any, dict[str, Array], Array | None]:
        """(params, fixed, table), all float32."""
        names = fixed_names(self.arch)
        k_params, *k_starts = jax.random.split(key, 1 + len(names))
        width = self.arch.puzzle_emb_ndim
        table = jnp.zeros((self.shape.num_puzzle_identifiers, width), jnp.float32) if width else None
        tokens, identifiers = jnp.zeros((1, self.shape.seq_len), jnp.int32), jnp.zeros((1,), jnp.int32)
        params = self.network.init(k_params, tokens, self.rows(table, identifiers), method="everything")["params"]
        draw = truncated_normal(1.0)
        fixed = {name: draw(k, (self.arch.hidden_size,)) for name, k in zip(names, k_starts)}
        return params, fixed, table

    @property
    def starts(self) -> AnyLatents:
        """Names in `fixed` of the vectors that the latents start from."""
        return RECURSIONS[self.arch.recursion].starts(self.arch.L_cycles)

    @property
    def cycle(self) -> Cycle:
        """One outer cycle of the recursion."""
        return RECURSIONS[self.arch.recursion].cycle

    @property
    def test_step(self) -> Cycle:
        """What test-time depth counts: an outer cycle; with deep supervision a supervision step of H_cycles of them."""
        return several(self.cycle, self.test_cycles)

    @property
    def test_cycles(self) -> int:
        """Outer cycles of a test step. Where a residual halts, it is asked after every one of them."""
        a = self.arch
        return (a.test_H_cycles or a.H_cycles) if a.supervision == "deep" and a.halt_by == "head" else 1

    def core(self, params, training: bool = False, draw: updates.Draw = updates.normal):
        """The network, or both, with the update rule: what a cycle takes as its core.

        Args:
          training: which values of the rule that training and answering have apart (noise, decay of the step size).
          draw: where the rule's noise comes from.
        """
        rule = updates.Update(self.arch, training, draw)

        def network(method: str, gate: str) -> Core:
            def apply(state: Array, injection: Array) -> Array:
                return self._apply(method, params, state, injection)
            core = jax.checkpoint(apply) if self.arch.remat else apply
            return rule.of(core, (params[gate]["q"], params[gate]["decay"]) if gates(self.arch) else None)
        return (Cores(L=network("core", "gate"), H=network("H_core", "H_gate")) if self.arch.H_layers
                else network("core", "gate"))

    def rows(self, table: Array | None, identifiers: Array) -> Array:
        """The puzzle table's rows of a batch, [B, puzzle_emb_ndim]; of no width without a prefix."""
        if table is None:
            return jnp.zeros((identifiers.shape[0], 0), jnp.float32)
        return jnp.take(table, identifiers, axis=0)

    def _apply(self, method: str, params, *inputs: Array) -> Any:
        return self.network.apply({"params": params}, *inputs, method=method)

    def embed(self, params, tokens: Array, rows: Array) -> Array:
        return self._apply("embed", params, tokens, rows)

    def logits(self, params, y: Array) -> Array:
        return self._apply("logits", params, y)

    def halting(self, params, y: Array) -> Array:
        return self._apply("halting", params, y)

    def q_halt(self, params, y: Array) -> Array:
        """float32 [B], logit of "this is right"; 0 without a halting head."""
        if not self.arch.halting_head:
            return jnp.zeros(y.shape[1], jnp.float32)
        return self.halting(params, y)[:, 0]

    def wants_to_halt(self, params, latents: AnyLatents) -> Array:
        """bool [B]: q_halt > 0 (TRM), or q_halt > q_continue where that is trained too (HRM); or by the residual."""
        if self.arch.halt_by == "residual":
            return updates.has_converged(self.arch, cast(LatentsAndMemory, latents))
        q_halt, q_continue = self.halting(params, latents.y).T
        return q_halt > (0 if self.arch.no_ACT_continue else q_continue)

    def answer(self, params, y: Array) -> Array:
        """Decoded tokens, uint8 [B, S]."""
        return jnp.argmax(self.logits(params, y), axis=-1).astype(jnp.uint8)

    def keys(self, tokens: Array) -> Array | None:
        """What `initial_latents` takes as keys to answer puzzles [B, S]; None where nothing is drawn."""
        return updates.keys_of(tokens) if self.draws else None

    @property
    def draws(self) -> bool:
        """Are latents or noise drawn for each puzzle?"""
        return self.arch.start == "random" or updates.is_noisy(self.arch)

    def initial_latents(self, fixed, batch_size: int, keys: Array | None = None) -> AnyLatents:
        """y0, z0 broadcast to [T, B, D] in the forward dtype, or drawn; and what the update rule begins with.

        keys: [B], where anything is drawn (`draws`); None: by the place in the batch.
        """
        a, names = self.arch, jax.tree.leaves(self.starts)
        if self.draws and keys is None:
            keys = jax.random.split(jax.random.key(0), batch_size)

        def key(i) -> Any:  # of the latent i; 0 is the noise's of y, 1 that of z
            return jax.vmap(lambda k: jax.random.fold_in(k, i))(keys) if self.draws else None

        def spread(name):
            if a.start == "random":
                return updates.random_start(a, key(2 + names.index(name)), self.T)
            start = fixed[name].astype(a.forward_dtype)
            return jnp.broadcast_to(start, (self.T, batch_size, a.hidden_size))
        latents = jax.tree.map(spread, self.starts)
        if not updates.remembers(a):
            return latents
        begin = functools.partial(updates.Update(a, training=False).begin, self.T, batch_size)
        z = latents.z if isinstance(latents.z, tuple) else (latents.z,)
        return LatentsAndMemory(latents.y, latents.z, (begin(key(0)), begin(key(1)) if len(z) == 1 else ()))

    def bind(self, weights: Weights, L: int) -> Bound:
        """This model with the weights and the number of inner cycles that it answers with."""
        return Bound(self, weights, L)

    def parameter_count(self) -> int:
        """Trained parameters, as the papers count them: the puzzle table and H_init, L_init, ... are left out."""
        params, _, _ = jax.eval_shape(self.init, jax.random.key(0))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))

    def core_flops(self) -> int:
        """Floating-point operations of one call of the core (of f_L, where there are two) on one example.

        Matrix products only, 2 per multiply-add.
        """
        return self.arch.L_layers * self._block_flops()

    def calls_flops(self, calls: int) -> int:
        """The same of the last `calls` core calls of an outer cycle: some inner ones, then the outer one."""
        a = self.arch
        return ((calls - 1) * a.L_layers + (a.H_layers or a.L_layers)) * self._block_flops()

    def _block_flops(self) -> int:
        a, D, T = self.arch, self.arch.hidden_size, self.T
        mlp = 6 * T * D * (a.mlp_hidden_size or swiglu_hidden(D, a.expansion))
        if units := Units.read(a, self.shape):
            mixer = units.flops(D, a.mixer_hidden_size)
        elif a.mixer == "mlp":
            mixer = 6 * T * D * (a.mixer_hidden_size or swiglu_hidden(T, a.expansion))
        else:
            mixer = 8 * T * D * D + 4 * T * T * D
        return mixer + mlp

    def head_flops(self) -> int:
        return 2 * (self.T - prefix_len(self.arch)) * self.arch.hidden_size * vocabularies(self.arch, self.shape)[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
    """A model with its weights and L, the inner cycles: all that answering takes, as one thing.

    It goes into jit as a pytree. Its leaves are the weights; model and L belong to the program. One cycle below is
    `Model.test_step`.
    """

    model: Model = dataclasses.field(metadata={"static": True})
    weights: Weights
    L: int = dataclasses.field(metadata={"static": True})

    @property
    def core(self):
        return self.model.core(self.weights.params)

    def embed(self, tokens: Array, identifiers: Array) -> Array:
        """tokens int [B, S], identifiers int [B] (rows of the puzzle table) -> x [T, B, D]."""
        return self.embed_rows(tokens, self.model.rows(self.weights.table, identifiers))

    def embed_rows(self, tokens: Array, rows: Array) -> Array:
        """As `embed`, with rows [B, puzzle_emb_ndim] that were read from the puzzle table before."""
        return self.model.embed(self.weights.params, tokens, rows)

    def initial_latents(self, tokens: Array, keys: Array | None = None) -> AnyLatents:
        """Of puzzles [B, S]. What is drawn is drawn from keys [B], or from the puzzle itself."""
        keys = self.model.keys(tokens) if keys is None else keys
        return self.model.initial_latents(self.weights.fixed, tokens.shape[0], keys)

    def answer(self, y: Array) -> Array:
        """y [T, B, D] -> tokens, uint8 [B, S]."""
        return self.model.answer(self.weights.params, y)

    def logits(self, y: Array) -> Array:
        """y [T, B, D] -> float32 [B, S, V]."""
        return self.model.logits(self.weights.params, y)

    def confidence(self, y: Array) -> Array:
        """float32 [B, S]: the probability of each token of `answer`."""
        return self.probabilities(y).max(-1)

    def probabilities(self, y: Array) -> Array:
        """float32 [B, S, V], what each cell holds."""
        return jax.nn.softmax(self.model.logits(self.weights.params, y), axis=-1)

    def q_halt(self, y: Array) -> Array:
        """float32 [B], logit of "this is right"; 0 without a halting head."""
        return self.model.q_halt(self.weights.params, y)

    def wants_to_halt(self, latents: AnyLatents) -> Array:
        """bool [B]; needs a halting head, or arch.halt_by = "residual"."""
        return self.model.wants_to_halt(self.weights.params, latents)

    def watch(self, latents: AnyLatents) -> Watched:
        return recursion.watch(latents, self.answer)

    def unroll(self, latents: AnyLatents, x: Array, cycles: Array) -> AnyLatents:
        """The latents after `cycles` [] cycles."""
        return recursion.unroll(self.core, latents, x, cycles, self.L, self.model.test_step)

    def unroll_watched(self, watched: Watched, x: Array, cycles: int | Array, stop_halted: bool = False) -> Watched:
        """The same with an eye on when the answers change; with `stop_halted` none changes once it wants to halt."""
        return recursion.unroll_watched(self.core, watched, x, cycles, self.L, self.answer, self.model.test_step,
                                        self.wants_to_halt if stop_halted else None)

    def trace(self, latents: AnyLatents, x: Array, cycles: int) -> tuple[AnyLatents, Any]:
        """(latents, ((answers [n, B, S], confidence [n, B, S]), residuals [n, B])) of every cycle."""
        return recursion.trace(self.core, latents, x, cycles, self.L, lambda y: (self.answer(y), self.confidence(y)),
                               self.model.test_step)

    @property
    def core_calls(self) -> int:
        """Calls of the network in a cycle."""
        return self.model.test_cycles * (self.L + 1)

    @property
    def unit(self) -> str:
        """What a cycle is called."""
        return "outer cycles" if self.model.test_cycles == 1 else "supervision steps"

    def flops(self) -> int:
        """Floating-point operations (matrix products) of a cycle on one puzzle, decoding included."""
        return self.model.test_cycles * self.model.calls_flops(self.L + 1) + self.model.head_flops()
