"""The numbers of EqR and FPRM files: every one that they hold, computed by this library.

They were computed by locuslab/EqR at 4d45856 and nilskiKonjIzDunava/fprm at 9e0ebf3, in float32 on a CPU. Arrays are
[B, T, D], linear weights [out, in]; losses are sums over the batch.

Such a file comes with the random numbers that the published code was given in place of its own, and with noise floors:
how far each number moves in float64 and when every weight moves by one unit in the last place. `python -m
tests.golden.lighten FROM TO` writes a smaller file, without the largest gradients.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import recursion
from trm_jax.config import Arch, Experiment, Loss
from trm_jax.data.shape import Shape
from trm_jax.models import updates
from trm_jax.models.network import Model
from trm_jax.recursion import LatentsAndMemory
from trm_jax.training import losses
from trm_jax.training.supervision import Batch, Begun, DeepSupervision
from trm_jax.weights import published_names

SUMS = {"count": "halted", "accuracy": "cell_accuracy", "exact_accuracy": "exact_accuracy",
        "sequence_accuracy": "exact_accuracy", "q_halt_accuracy": "halt_accuracy", "steps": "steps",
        "lm_loss": "token_loss", "q_halt_loss": "halt_loss"}  # published metric -> ours
COMMON = ("L_layers", "hidden_size", "num_heads", "expansion", "mlp_t")


def tokens_first(a):
    """[..., B, T, D] as published -> [..., T, B, D], and back."""
    return jnp.swapaxes(jnp.asarray(a, jnp.float32), -3, -2)


def count_from(memory: updates.Memory, call: int, latent: int) -> updates.Memory:
    """A memory whose noise is looked up in a table: which of its latent's calls is next, and which latent it is."""
    B = memory.residual.shape[1]
    key = jnp.broadcast_to(jnp.asarray([call, latent], jnp.uint32)[:, None, None], (2, B, 1))
    return memory._replace(key=key)


@dataclasses.dataclass(frozen=True, eq=False)
class Given(Model):
    """A model whose updates take their noise from a table [calls, T, B, D], in the order of the core calls."""

    table: jax.Array | None = None
    inner: int = 0  # calls of z between two of y

    def core(self, params, training=False):
        return super().core(params, training, self.look_up if self.table is not None else updates.normal)

    def look_up(self, key, shape):
        count, is_z = key[0, 0, 0].astype(jnp.int32), key[1, 0, 0] == 1
        of_z = count // max(self.inner, 1) * (self.inner + 1) + count % max(self.inner, 1)
        call = jnp.where(is_z, of_z, count * (self.inner + 1) + self.inner)
        return self.table[call], key.at[0].add(1)


def read(data):
    """(the file's config, its two batches)."""
    def batch(name):
        ids = data.get(f"{name}/puzzle_identifiers", np.zeros(len(data[f"{name}/inputs"]), np.int32))
        return Batch(*(jnp.asarray(a, jnp.int32) for a in (data[f"{name}/inputs"], data[f"{name}/labels"], ids)))
    return json.loads(bytes(data["config"]).decode()), batch("batch"), batch("batch2")


def loaded(weights, arch):
    weights = {k.removeprefix("params/"): v for k, v in weights.items() if k.startswith("params/")}
    return jax.tree.map(jnp.asarray, published_names.from_published(weights, arch))


def add_grads(out, prefix, arch, grads):
    for name, grad in published_names.to_published(grads, arch, "L_level").items():
        out[f"{prefix}/grads/inner.{name}"] = grad


def add_sums(out, prefix, data, sums):
    for theirs, ours in SUMS.items():
        if f"{prefix}/metrics/{theirs}" in data:
            out[f"{prefix}/metrics/{theirs}"] = getattr(sums, ours)


def answers(out, prefix, model, params, y):
    logits = model.logits(params, y)
    out[f"{prefix}logits"], out[f"{prefix}q_halt_logits"] = logits, model.halting(params, y)[:, 0]
    return logits


def eqr_numbers(data):
    c, batch, batch2 = read(data)
    B, H, L = len(batch.inputs), c["H_cycles"], c["L_cycles"]
    arch = Arch(**{name: c[name] for name in COMMON}, H_cycles=H, L_cycles=L, halt_max_steps=c["halt_max_steps"],
                pos_encodings="none" if c["mlp_t"] else c["pos_encodings"], puzzle_emb_ndim=0, puzzle_emb_len=0,
                mixer_norm_axis="token" if c["mlp_t"] else "feature", supervision="deep", prob_detach_prev_H=1.0,
                halt_exploration_prob=0.0, tie_head=False, halting_head=True, forward_dtype="float32",
                start="random", update="damped", update_share=c["lambda_"], update_noise=c["train_noise"],
                update_noise_test=c["train_noise"])
    shape = Shape(c["seq_len"], c["vocab_size"], 1)
    params, _, _ = loaded(data, arch)
    rows = jnp.zeros((B, 0))

    def given(noise, changes):
        """With a table of standard normals [steps, calls, B, S, D]."""
        table = tokens_first(noise)
        return Given(dataclasses.replace(arch, **changes), shape, table.reshape(-1, *table.shape[2:]), L)

    def latents_at(y, z, step):
        """As published, about to begin a step."""
        empty = updates.Update(arch, False).begin(shape.seq_len, len(y), updates.keys_of(jnp.zeros((len(y), 1))))
        return LatentsAndMemory(tokens_first(y), tokens_first(z),
                                (count_from(empty, step * H, 0), count_from(empty, step * H * L, 1)))

    def step_of(model):
        contract = DeepSupervision(model, Experiment(arch=model.arch))
        of = jax.value_and_grad(contract.loss, argnums=0, has_aux=True)
        return jax.jit(lambda *args: of(*args, np.int32(H), L, jax.random.key(0)))

    out, init = {}, (data["init/z_H"], data["init/z_L"])
    plain = Model(dataclasses.replace(arch, update="replace", update_noise=0.0, update_noise_test=0.0), shape)
    x = plain.embed(params, batch.inputs, rows)
    start = latents_at(*init, 0)
    out["unit/x"], out["unit/core"] = (tokens_first(a) for a in (x, plain.core(params)(start.z, start.y + x)))
    noisy = given(data["noise/eval"], {}).core(params).call(start.z, start.y + x, start.memory[1])[0]
    out["unit/damped_noisy"] = tokens_first(noisy)

    for kind, noise in (("train_noise", c["train_noise"]), ("no_noise", 0.0), ("loud_noise", c["loud_noise"])):
        # The noise stays in the rule's memory, at size 0, so that all three kinds are computed the same way.
        model = given(data["noise/eval"], {"update_noise": noise})
        step, (y, z) = step_of(model), init
        for k in range(len(data["noise/eval"])):
            start = Begun(batch, latents_at(y, z, k), jnp.full(B, k + 1), jnp.zeros(B, bool))
            (loss, (held, sums)), _ = step(params, rows, start)
            prefix, was = f"eval/{kind}/step{k}", (y, z)
            y, z = (tokens_first(a) for a in held.latents[:2])
            out[f"{prefix}/loss"], out[f"{prefix}/carry/z_H"], out[f"{prefix}/carry/z_L"] = loss, y, z
            logits = answers(out, f"{prefix}/", model, params, held.latents.y)
            out[f"{prefix}/preds"] = jnp.argmax(logits, -1)
            add_sums(out, prefix, data, sums)
            squares = sum(jnp.sum((a - b) ** 2, axis=(1, 2)) for a, b in zip((y, z), was))
            out[f"{prefix}/residual"] = jnp.sqrt(squares)

    for loss_type in losses.TOKEN_LOSSES:
        model = given(data["noise/train"], {"loss": Loss(loss_type)})
        step, held = step_of(model), None
        for k in range(len(data["noise/train"])):
            if held is None:
                start = Begun(batch, latents_at(*init, 0), jnp.ones(B, jnp.int32), jnp.ones(B, bool))
            else:
                fresh = latents_at(data["reset/z_H"], data["reset/z_L"], k)
                old = latents_at(*(tokens_first(a) for a in held.latents[:2]), k)
                start = Begun(recursion.select(held.halted, batch2, held.batch, 0),
                              recursion.select(held.halted, fresh, old, 1), jnp.where(held.halted, 0, held.steps) + 1,
                              jnp.ones(B, bool))
            (loss, (held, sums)), grads = step(params, rows, start)
            prefix = f"train/{loss_type}/step{k}"
            out[f"{prefix}/loss"], out[f"{prefix}/halted"], out[f"{prefix}/steps"] = loss, held.halted, held.steps
            out[f"{prefix}/labels_in_use"] = held.batch.labels
            for name, value in zip(("z_H", "z_L"), held.latents):
                out[f"{prefix}/carry/{name}"] = tokens_first(value)
            answers(out, f"{prefix}/outputs/", model, params, held.latents.y)
            add_sums(out, prefix, data, sums)
            add_grads(out, prefix, arch, grads)

    if "breadth/noise" in data:
        loud = given(data["breadth/noise"], {"update_noise_test": c["loud_noise"]})
        out |= breadth_numbers(data, c, loud, params, batch, latents_at)
    return jax.device_get(out)


def breadth_numbers(data, c, model, params, batch, latents_at):
    """Several restarts of every puzzle, and which of them is chosen."""
    n, (B, S) = c["restarts"], batch.inputs.shape
    latents = latents_at(data["breadth/init/z_H"], data["breadth/init/z_L"], 0)
    x = model.embed(params, jnp.repeat(batch.inputs, n, axis=0), jnp.zeros((B * n, 0)))
    run = jax.jit(lambda latents: model.test_step(model.core(params), latents, x, c["L_cycles"]))
    logits = []
    for _ in range(c["restart_depth"]):
        latents = run(latents)
        logits.append(model.logits(params, latents.y))
    window = c["convergence_window"]
    changes = [recursion.logit_change(b, a) for a, b in zip(logits[-window - 1:], logits[-window:])]
    scores = jnp.mean(jnp.stack(changes), axis=0).reshape(B, n)
    chosen, preds = jnp.argmin(scores, axis=1), jnp.argmax(logits[-1], -1).reshape(B, n, S)
    right = losses.scores(preds.reshape(B * n, S), jnp.repeat(batch.labels, n, axis=0)).exact.reshape(B, n)
    return {"breadth/logits_last4": jnp.stack(logits[-4:]).reshape(4, B, n, S, -1), "breadth/scores": scores,
            "breadth/chosen": chosen, "breadth/preds": preds,
            "breadth/metrics/convergence_top_k.cumulative_exact_acc_top1": jnp.mean(right[jnp.arange(B), chosen]),
            "breadth/metrics/different_init.any_correct": jnp.mean(jnp.any(right, axis=1))}


def fprm_numbers(data):
    c, batch, batch2 = read(data)
    B, n = len(batch.inputs), c["n_backwards_L"]
    shape = Shape(c["seq_len"], c["vocab_size"], c["num_puzzle_identifiers"])
    arch = Arch(**{name: c[name] for name in (*COMMON, "pos_encodings", "puzzle_emb_len", "puzzle_emb_ndim")},
                recursion="direct", L_cycles=0, H_cycles=n, grad_cycles=n,
                mixer_norm_axis="token" if c["mlp_t"] else "feature", supervision="deep", prob_detach_prev_H=1.0,
                halt_exploration_prob=0.0, halt_max_steps=c["max_iter"], tie_head=False, halting_head=True,
                forward_dtype="float32", start="random", start_std=c["init_std"], update="solver",
                solver_patience=c["decay_patience"], solver_decay=c["stepsize_decay_train"],
                solver_decay_test=c["stepsize_decay_eval"], halt_by="residual", halt_residual=c["fp_thresh"],
                block="pre_norm", output_norm=c["norm_placement"] == "output",
                conv={"none": "none", "conv2d": "grid3", "conv1d": "causal4"}[c["conv_type"]])
    params, _, table = loaded(data, arch)
    out = {}

    def latents_at(model, y):
        y = tokens_first(y)
        memory = updates.Update(model.arch, False).begin(y.shape[0], B, updates.keys_of(batch.inputs))
        return LatentsAndMemory(y, (), (count_from(memory, 0, 0) if model.table is not None else memory, ()))

    plain = Model(dataclasses.replace(arch, update="replace", halt_by="head"), shape)
    x = plain.embed(params, batch.inputs, plain.rows(table, batch.puzzle_identifiers))
    out["unit/x"] = tokens_first(x)
    out["unit/f"] = tokens_first(plain.core(params)(tokens_first(data["init/y"]), x))

    damped = c["damped"]
    for kind, changes in (("published", {}), ("noisy", {"update_noise_test": c["noise_std"]}), ("damped", {
            "halt_residual": damped["fp_thresh"], "solver_patience": damped["decay_patience"],
            "solver_decay_test": damped["stepsize_decay_eval"]})):
        noise = tokens_first(data["noise/eval"]) if kind == "noisy" else None
        model = Given(dataclasses.replace(arch, **changes), shape, noise)
        out |= fprm_answers(data, f"eval/{kind}", model, params, batch, x, latents_at(model, data["init/y"]))

    for loss_type in losses.TOKEN_LOSSES:
        model = Given(dataclasses.replace(arch, loss=Loss(loss_type), halt_residual=c["train_fp_thresh"]), shape)
        contract = DeepSupervision(model, Experiment(arch=model.arch))
        of = jax.value_and_grad(contract.loss, argnums=(0, 1), has_aux=True)
        step = jax.jit(functools.partial(of, L=0))
        start = Begun(batch, latents_at(model, data["init/y"]), jnp.ones(B, jnp.int32), jnp.ones(B, bool))
        for k in range(3):
            rows = model.rows(table, start.batch.puzzle_identifiers)
            (loss, (held, sums)), (grads, row_grads) = step(params, rows, start, H=np.int32(n), key=jax.random.key(0))
            prefix = f"train/{loss_type}/step{k}"
            out[f"{prefix}/loss"], out[f"{prefix}/halted"], out[f"{prefix}/steps"] = loss, held.halted, held.steps
            out[f"{prefix}/labels_in_use"] = held.batch.labels
            out |= solver_numbers(f"{prefix}/state", held.latents)
            out[f"{prefix}/state/y"] = tokens_first(held.latents.y)
            answers(out, f"{prefix}/outputs/", model, params, held.latents.y)
            add_sums(out, prefix, data, sums)
            add_grads(out, prefix, arch, grads)
            out[f"{prefix}/grads/puzzle_emb_rows"] = row_grads
            start = Begun(recursion.select(held.halted, batch2, held.batch, 0),
                          recursion.select(held.halted, latents_at(model, data["reset/y"]), held.latents, 1),
                          jnp.where(held.halted, 0, held.steps) + 1, jnp.ones(B, bool))
    return jax.device_get(out)


def solver_numbers(prefix, latents):
    memory = latents.memory[0]
    fields = {"residues": memory.residual, "stepsize": memory.size, "patience": memory.patience,
              "best_residues": memory.best}
    return {f"{prefix}/{name}": value[0, :, 0] for name, value in fields.items()}


def fprm_answers(data, prefix, model, params, batch, x, latents):
    """One core call an iteration; the published rule for the whole batch decides when it stops."""
    out, traces = {}, []
    run = jax.jit(lambda latents: model.cycle(model.core(params), latents, x, 0))
    length, iterations = len(data[f"{prefix}/trace/residues"]), int(data[f"{prefix}/iterations"])
    for i in range(1, max(length, iterations) + 1):  # a trace ends where float32 stops deciding it
        latents = run(latents)
        traces.append(solver_numbers("trace", latents))
        if f"{prefix}/iter{i}/logits" in data:
            logits = answers(out, f"{prefix}/iter{i}/", model, params, latents.y)
            right = losses.scores(jnp.argmax(logits, -1), batch.labels)
            halting = losses.binary_cross_entropy(out[f"{prefix}/iter{i}/q_halt_logits"], right.exact)
            out[f"{prefix}/iter{i}/loss"] = jnp.sum(
                losses.per_example("stablemax_cross_entropy", logits, batch.labels) + 0.5 * halting)
            out[f"{prefix}/iter{i}/preds"] = jnp.argmax(logits, -1)
            out[f"{prefix}/iter{i}/y"] = tokens_first(latents.y)
    out |= {f"{prefix}/{name}": np.stack([t[name] for t in traces[:length]]) for name in traces[0]}
    # The published rule: the whole batch stops, by its largest residual or its largest step size; or at the cap.
    stops = np.array([np.max(t["trace/residues"]) < model.arch.halt_residual
                      or np.max(t["trace/stepsize"]) < model.arch.solver_min_size for t in traces])
    out[f"{prefix}/iterations"] = int(np.argmax(stops)) + 1 if stops.any() else len(traces)
    out[f"{prefix}/trace/halted"] = np.repeat(stops[:length, None], len(batch.inputs), axis=1)
    # What float32 cannot tell, whether a residual is a new low by less than this, is taken as published.
    residues, best = (np.asarray(data[f"{prefix}/trace/{name}"]) for name in ("residues", "best_residues"))
    unclear = np.logical_or.accumulate(np.abs(residues[1:] - best[:-1]) < 1e-6, axis=0)
    for name in ("patience", "stepsize"):
        ours = out[f"{prefix}/trace/{name}"].astype(np.float32)
        ours[1:] = np.where(unclear, data[f"{prefix}/trace/{name}"][1:], ours[1:])
        out[f"{prefix}/trace/{name}"] = ours
    return out
