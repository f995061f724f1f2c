"""Training contracts: what a batch is asked for, and what a slot takes along to the next step.

A contract answers three questions, with pure functions of arrays:

    initial_carry(batch_size)                         what the slots hold before the first step
    begin(fixed, carry, batch, key)                   which puzzle and which latents each slot starts from
    loss(params, rows, start, H, L, key)              the loss, and what the slots hold afterwards

It also has `batch_axes`, the batch axis of each array of a carry (for sharding), and `train_flops`, the cost of a step.
The trainer knows no more than that.

- Terminal: one loss, at the end of the recursion (RSM).
- DeepSupervision: several steps on a puzzle, a loss and an update at each, until the network wants to halt (HRM, TRM).

Either takes any recursion of recursion.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trm_jax import recursion
from trm_jax.config import Experiment
from trm_jax.models.network import Model, fixed_names
from trm_jax.recursion import AnyLatents, Leaf
from trm_jax.training import losses

Array = jax.Array
START = 1  # folded into a step's key, for the latents that are drawn in it


class Batch(NamedTuple):
    inputs: Leaf  # int32 [B, S]
    labels: Leaf  # int32 [B, S], losses.IGNORE where unlabelled
    puzzle_identifiers: Leaf  # int32 [B]


class SlotContents(NamedTuple):
    """A puzzle and the latents with which work on it goes on."""

    batch: Batch
    latents: AnyLatents


class CountedContents(NamedTuple):
    """The same for release by correctness (deepen.carry_steps). Of a type of its own: checkpoints know fields."""

    batch: Batch
    latents: AnyLatents
    steps: Any  # int32 [B], training steps that the puzzle has had
    right: Any  # bool [B], was it answered rightly in the last of them?


class Sums(NamedTuple):
    """Over a batch. float32 [], so that they can be added up over devices and steps; then `means`."""

    count: Leaf  # examples with a label
    loss: Leaf
    cell_accuracy: Leaf
    exact_accuracy: Leaf

    def means(self) -> dict[str, Any]:
        return {name: value / max(self.count, 1.0) for name, value in self._asdict().items() if name != "count"}


@dataclasses.dataclass(frozen=True)
class SlotDraw:
    """Draws per slot that do not depend on how the batch is split over devices: every device draws for the
    whole batch and keeps its own part."""

    global_batch_size: int
    first: int | Array  # this device's first slot

    def bernoulli(self, key: Array, probability: float, b: int) -> Array:
        return self._own(jax.random.bernoulli(key, probability, (self.global_batch_size,)), b)

    def integers(self, key: Array, low: int, high: int, b: int) -> Array:
        """int32 [b], from low to high, high included."""
        return self._own(jax.random.randint(key, (self.global_batch_size,), low, high + 1, jnp.int32), b)

    def keys(self, key: Array, b: int) -> Array:
        """A key for each slot, [b]."""
        return self._own(jax.random.split(key, self.global_batch_size), b)

    def _own(self, draws: Array, b: int) -> Array:
        return lax.dynamic_slice(draws, (self.first,), (b,))

    def indices(self, b: int) -> Array:
        return self.first + jnp.arange(b, dtype=jnp.int32)


def empty_slots(model: Model, batch_size: int) -> SlotContents:
    """SlotContents of puzzles without labels."""
    S = model.shape.seq_len
    batch = Batch(jnp.zeros((batch_size, S), jnp.int32), jnp.full((batch_size, S), losses.IGNORE, jnp.int32),
                  jnp.zeros((batch_size,), jnp.int32))
    return SlotContents(batch, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), latents_like(model, batch_size)))


def latents_like(model: Model, batch_size: int) -> AnyLatents:
    """Shapes and dtypes of a batch's latents; the batch is on axis 1 of every array."""
    fixed = {name: jax.ShapeDtypeStruct((model.arch.hidden_size,), jnp.float32) for name in fixed_names(model.arch)}
    return jax.eval_shape(lambda fixed: model.initial_latents(fixed, batch_size), fixed)


def fresh_latents(model: Model, fixed, b: int, key: Array, draw: SlotDraw) -> AnyLatents:
    """Of slots that begin with a puzzle; `key` is the step's, whose other uses this leaves as they are."""
    return model.initial_latents(fixed, b, draw.keys(jax.random.fold_in(key, START), b) if model.draws else None)


def detached_calls(model: Model, L: int) -> int:
    """How many inner calls of the last cycle have no gradient."""
    return L + 1 - model.arch.grad_calls if model.arch.grad_calls else 0


def with_gradient(model: Model, L: int) -> int:
    """Floating-point operations, on one example, of the calls that do have one."""
    return model.arch.grad_cycles * model.calls_flops(L + 1 - detached_calls(model, L))


@dataclasses.dataclass(frozen=True)
class Terminal:
    """RSM: H outer cycles within one step, loss on the last one only, no carry between steps.

    Ours, off by default (`deepen` in the config), because states deeper than H are otherwise never trained on
    and right answers need not stay right there:
    - a share of the slots keeps its puzzle and its detached latents for the next step with some probability, or
      (carry_steps) while its answer is wrong, and with that probability when it is right;
    - a share of the steps draws H log-uniformly from the curriculum's H up to tail_max_H.
    """

    model: Model
    experiment: Experiment

    def initial_carry(self, batch_size: int) -> Any:
        """SlotContents of empty puzzles, or () where nothing is ever kept."""
        deepen = self.experiment.deepen
        if not deepen.carry_share:
            return ()
        return self._counted(empty_slots(self.model, batch_size), jnp.zeros((batch_size,), jnp.int32),
                             jnp.zeros((batch_size,), bool))

    def _counted(self, slots: SlotContents, steps: Any, right: Any) -> SlotContents | CountedContents:
        """With what release by correctness asks for, where that is on."""
        return CountedContents(*slots, steps, right) if self.experiment.deepen.carry_steps else slots

    def batch_axes(self) -> Any:
        """Like a carry, with the axis of each of its arrays that is the batch's."""
        if not self.experiment.deepen.carry_share:
            return ()
        return self._counted(SlotContents(Batch(0, 0, 0), jax.tree.map(lambda _: 1, latents_like(self.model, 1))), 0, 0)

    def begin(self, fixed, carry, batch: Batch, key: Array, draw: SlotDraw) -> SlotContents | CountedContents:
        b = batch.inputs.shape[0]
        fresh = SlotContents(batch, fresh_latents(self.model, fixed, b, key, draw))
        if carry == ():
            return fresh
        deepen = self.experiment.deepen
        may = draw.indices(b) < round(deepen.carry_share * draw.global_batch_size)
        held = jnp.any(carry.batch.labels != losses.IGNORE, axis=1)  # nothing is held before the first step
        keep = draw.bernoulli(key, deepen.carry_keep_prob, b)
        if deepen.carry_steps:
            keep = (carry.steps < deepen.carry_steps) & (keep | ~carry.right)
        keep = may & held & keep
        slots = SlotContents(recursion.select(keep, carry.batch, batch, 0),
                             recursion.select(keep, carry.latents, fresh.latents, 1))
        return CountedContents(*slots, jnp.where(keep, carry.steps, 0), carry.right) if deepen.carry_steps else slots

    def depth(self, H: Array, key: Array) -> Array:
        """H of this step: the curriculum's, or with tail_prob log-uniform from there to tail_max_H."""
        deepen = self.experiment.deepen
        if not deepen.tail_prob:
            return H
        k_coin, k_depth = jax.random.split(key)
        low = jnp.asarray(H, jnp.float32)
        deep = low * (deepen.tail_max_H / low) ** jax.random.uniform(k_depth, dtype=jnp.float32)
        return jnp.where(jax.random.bernoulli(k_coin, deepen.tail_prob), jnp.round(deep).astype(jnp.int32), H)

    def loss(self, params, rows: Array, start: SlotContents, H: Array, L: int,
             key: Array) -> tuple[Array, tuple[Any, Sums]]:
        """Sum over the batch of the per-example losses, and (carry, sums)."""
        k_depth, k_coin = jax.random.split(key)
        core, cycle = self.model.core(params, training=True), self.model.cycle
        x = self.model.embed(params, start.batch.inputs, rows)
        H, last = self.depth(H, k_depth), self.model.arch.grad_cycles

        keep_transition_prob = 1.0 - self.model.arch.prob_detach_prev_H
        if keep_transition_prob > 0:
            latents = recursion.warm_up(core, start.latents, x, H - 1 - last, L, cycle)
            keep = jax.random.bernoulli(k_coin, keep_transition_prob)
            latents = recursion.transition(core, latents, x, L, keep, cycle)
        else:
            latents = recursion.warm_up(core, start.latents, x, H - last, L, cycle)
        latents = recursion.last_cycles(core, latents, x, L, last, detached_calls(self.model, L), cycle)

        logits = self.model.logits(params, latents.y)
        loss = jnp.sum(losses.per_example(self.model.arch.loss.loss_type, logits, start.batch.labels))
        scores = losses.scores(jnp.argmax(logits, axis=-1), start.batch.labels)
        sums = Sums(count=jnp.sum(scores.valid, dtype=jnp.float32), loss=loss,
                    cell_accuracy=jnp.sum(scores.cell), exact_accuracy=jnp.sum(scores.exact, dtype=jnp.float32))
        carry = ()
        if self.experiment.deepen.carry_share:
            steps = start.steps + 1 if isinstance(start, CountedContents) else ()
            carry = self._counted(SlotContents(start.batch, lax.stop_gradient(latents)), steps, scores.exact)
        return loss, (carry, lax.stop_gradient(sums))

    def train_flops(self, H: int, L: int) -> int:
        """Matrix products on one example: H outer cycles, and backward, which costs twice as much, with the heads."""
        return H * self.model.calls_flops(L + 1) + 2 * with_gradient(self.model, L) + 3 * self.model.head_flops()


class Held(NamedTuple):
    """What a slot of deep supervision takes along."""

    batch: Batch
    latents: AnyLatents
    steps: Leaf  # int32 [B], supervision steps that the puzzle has had
    halted: Leaf  # bool [B], done with the puzzle: the slot takes a new one at the next step


class Begun(NamedTuple):
    """What a slot works on in one supervision step."""

    batch: Batch
    latents: AnyLatents
    steps: Array  # int32 [B], this one included
    may_halt: Array  # bool [B], as far as exploration is concerned


class DeepSums(NamedTuple):
    """Over a batch, as `Sums`. Losses are of every step; accuracies of a puzzle's last step, when its slot halts."""

    count: Leaf  # examples with a label
    loss: Leaf
    token_loss: Leaf
    halt_loss: Leaf  # binary cross-entropies, before they are halved
    continue_loss: Leaf
    halted: Leaf  # examples with a label whose slots have halted
    cell_accuracy: Leaf
    exact_accuracy: Leaf
    halt_accuracy: Leaf  # is q_halt on the right side of 0?
    steps: Leaf

    def means(self) -> dict[str, Any]:
        of_halted = ("cell_accuracy", "exact_accuracy", "halt_accuracy", "steps")
        of_all = ("loss", "token_loss", "halt_loss", "continue_loss")
        return {name: getattr(self, name) / max(self.count, 1.0) for name in of_all} | {
            name: getattr(self, name) / max(self.halted, 1.0) for name in of_halted} | {
            "halted": self.halted / max(self.count, 1.0)}


@dataclasses.dataclass(frozen=True)
class DeepSupervision:
    """HRM and TRM: supervision steps that improve an answer, with a loss and an update of the parameters at each.

    The TRM paper's figures 2 and 3 line by line, for a batch of slots that are each at a step of their own:

        for x_input, y_true in train_dataloader:            begin: a slot that has halted takes the next puzzle
            y, z = y_init, z_init                                  and fresh latents
            for step in range(N_supervision):               steps, at most halt_max_steps
                x = input_embedding(x_input)                loss: x
                (y, z), y_hat, q_hat = deep_recursion(..)         latents, logits, q
                loss = softmax_cross_entropy(y_hat, y_true)       token_loss
                loss += ACT_halt(q_hat, y_hat == y_true)          halt_loss, halved
                loss += ACT_continue(q_next, last_step)           continue_loss, halved (HRM: no_ACT_continue = False)
                (y, z).detach()                                   Held
                loss.backward(); opt.step()                 the trainer
                if q_hat > 0: break                               halted

    Every step draws a whole batch, of which the slots that are still busy take nothing, as in the published code.
    Deviation: examples without a label do not count in the halting losses.
    """

    model: Model
    experiment: Experiment

    def initial_carry(self, batch_size: int) -> Held:
        """Every slot has halted, and will begin with a puzzle of the first batch."""
        slots = empty_slots(self.model, batch_size)
        return Held(slots.batch, slots.latents, jnp.zeros((batch_size,), jnp.int32), jnp.ones((batch_size,), bool))

    def batch_axes(self) -> Held:
        """Like a carry, with the axis of each of its arrays that is the batch's."""
        return Held(Batch(0, 0, 0), jax.tree.map(lambda _: 1, latents_like(self.model, 1)), 0, 0)

    def begin(self, fixed, carry: Held, batch: Batch, key: Array, draw: SlotDraw) -> Begun:
        b, new = batch.inputs.shape[0], carry.halted
        steps = jnp.where(new, 0, carry.steps) + 1
        return Begun(batch=recursion.select(new, batch, carry.batch, 0),
                     latents=recursion.select(new, fresh_latents(self.model, fixed, b, key, draw), carry.latents, 1),
                     steps=steps, may_halt=steps >= self._earliest_halt(key, draw, b))

    def _earliest_halt(self, key: Array, draw: SlotDraw, b: int) -> Array:
        """Exploration, int32 [b]: with some probability drawn from 2 .. halt_max_steps, else 1. Anew in every step."""
        a = self.model.arch
        if not a.halt_exploration_prob:
            return jnp.ones((b,), jnp.int32)
        k_coin, k_step = jax.random.split(key)
        explores = draw.bernoulli(k_coin, a.halt_exploration_prob, b)
        return jnp.where(explores, draw.integers(k_step, 2, a.halt_max_steps, b), 1)

    def loss(self, params, rows: Array, start: Begun, H: Array, L: int,
             key: Array) -> tuple[Array, tuple[Held, DeepSums]]:
        """Sum over the batch of the per-example losses, and (carry, sums)."""
        del key
        a, labels = self.model.arch, start.batch.labels
        core, cycle = self.model.core(params, training=True), self.model.cycle
        x = self.model.embed(params, start.batch.inputs, rows)

        # deep_recursion: H - 1 cycles to improve the latents without gradient, then one (grad_cycles) with.
        latents = recursion.warm_up(core, start.latents, x, H - a.grad_cycles, L, cycle)
        latents = recursion.last_cycles(core, latents, x, L, a.grad_cycles, detached_calls(self.model, L), cycle)

        logits = self.model.logits(params, latents.y)
        scores = losses.scores(jnp.argmax(logits, axis=-1), labels)
        token_loss = losses.per_example(a.loss.loss_type, logits, labels)
        if a.step_loss_decay != 1:
            token_loss = token_loss * jnp.float32(a.step_loss_decay) ** (start.steps - 1).astype(jnp.float32)
        last_step = start.steps >= a.halt_max_steps
        halted, halt_right = last_step, jnp.zeros_like(last_step)
        halt_loss = continue_loss = jnp.zeros_like(token_loss)
        if a.halting_head or a.halt_by == "residual":
            halted = last_step | (start.may_halt & self.model.wants_to_halt(params, latents))
        if a.halting_head:
            q_halt, q_continue = self.model.halting(params, latents.y).T
            halt_right = (q_halt >= 0) == scores.exact
            halt_loss = jnp.where(scores.valid, losses.binary_cross_entropy(q_halt, scores.exact), 0)
            if not a.no_ACT_continue:
                target = self._continue_target(core, params, latents, x, H, L, last_step)
                continue_loss = jnp.where(scores.valid, losses.binary_cross_entropy(q_continue, target), 0)
        loss = jnp.sum(token_loss + 0.5 * (halt_loss + continue_loss))

        def count(these: Array, of: Array | float = 1.0) -> Array:
            return jnp.sum(jnp.where(these, of, 0.0), dtype=jnp.float32)
        done = halted & scores.valid
        sums = DeepSums(
            count=count(scores.valid), loss=loss, token_loss=jnp.sum(token_loss), halt_loss=jnp.sum(halt_loss),
            continue_loss=jnp.sum(continue_loss), halted=count(done), cell_accuracy=count(done, scores.cell),
            exact_accuracy=count(done & scores.exact), halt_accuracy=count(done & halt_right),
            steps=count(done, start.steps.astype(jnp.float32)))
        return loss, lax.stop_gradient((Held(start.batch, latents, start.steps, halted), sums))

    def _continue_target(self, core, params, latents: AnyLatents, x: Array, H: Array, L: int,
                         last_step: Array) -> Array:
        """What going on would be worth, float32 [B]: the halting head one supervision step later."""
        later = recursion.warm_up(core, latents, x, H, L, self.model.cycle)
        q_halt, q_continue = self.model.halting(lax.stop_gradient(params), later.y).T
        return jax.nn.sigmoid(jnp.where(last_step, q_halt, jnp.maximum(q_halt, q_continue)))

    def train_flops(self, H: int, L: int) -> int:
        """As Terminal.train_flops; ACT-continue goes through the recursion a second time."""
        passes = 1 if self.model.arch.no_ACT_continue else 2
        return (passes * H * self.model.calls_flops(L + 1) + 2 * with_gradient(self.model, L)
                + 3 * self.model.head_flops())


CONTRACTS = {"terminal": Terminal, "deep": DeepSupervision}
