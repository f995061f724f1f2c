"""Compares our numbers with those that the published code computed.

The published numbers are float32, and an untrained recursion can be chaotic: after 16 outer cycles the file
rsm_mlp is itself 1e-3 away from the same formulas in float64. So each number is also computed with weights
moved by one unit in the last place, and a difference counts as a fault if it is above both TOLERANCE and
NOISE_FACTOR times what that alone does. Up to five outer cycles the logits agree within TOLERANCE outright.
"""

from __future__ import annotations

import functools
import json
import pathlib
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden import relatives
from trm_jax import recursion
from trm_jax.config import Arch, Experiment, Loss
from trm_jax.data.shape import Shape
from trm_jax.inference.arc_voting import Votes
from trm_jax.models.network import Model
from trm_jax.puzzles import arc
from trm_jax.training import losses, optimizers
from trm_jax.training.supervision import Batch, DeepSupervision, SlotContents, SlotDraw, Terminal
from trm_jax.weights import published_names

TOLERANCE = 2e-5  # relative to the largest value of the tensor
NOISE_FACTOR = 3
NOISE_RUNS = 4
FOLDER = pathlib.Path(__file__).parent


# Part of a number's name -> its kind; the first that is found counts.
KINDS = {"breadth/scores": "restarts' scores", "breadth/chosen": "chosen restarts",
         "breadth/metrics": "chosen restarts", "preds": "answers", "breadth": "logits", "unit": "one call",
         "residual": "residuals", "trace": "solver", "state/y": "carries", "state": "solver",
         "iterations": "halting flags", "labels_in_use": "halting flags", "/y": "carries",
         "q_halt_logits": "halting logits", "q_continue_logits": "halting logits", "logits": "logits",
         "grads": "gradients", "metrics": "metrics", "carry": "carries", "halted": "halting flags",
         "/steps": "halting flags", "loss": "loss", "adam_atan2": "adam_atan2", "sign_sgd": "sign_sgd"}


class GoldenError(ValueError):
    """A file that holds no golden numbers that we know."""


class Difference(NamedTuple):
    """Of one number of a file."""

    name: str
    kind: str  # "logits", "loss", "gradients", ...
    relative: float  # largest absolute difference over the largest absolute published value
    noise: float  # the same between our own runs with weights moved by one unit in the last place

    @property
    def ok(self) -> bool:
        return self.relative <= max(TOLERANCE, NOISE_FACTOR * self.noise)


def difference(ours, theirs) -> float:
    """Largest absolute difference over the largest absolute value of `theirs`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise GoldenError(f"shapes differ: ours {ours.shape}, published {theirs.shape}")
    scale = np.abs(theirs).max(initial=0)
    worst = np.abs(ours - theirs).max(initial=0)
    return float(worst / scale) if scale else float(worst)


class Arrays(dict):
    """Of the file `path`, by name."""

    def __init__(self, path, arrays):
        super().__init__(arrays)
        self._path = path

    def __missing__(self, name):
        raise GoldenError(f"{self._path}: has no array {name!r}")


def compare(path) -> list[Difference]:
    """Every number of a file against ours."""
    if str(path).endswith(".json"):
        return compare_votes(path)
    try:
        with open(path, "rb") as file, np.load(file) as archive:
            data = Arrays(path, {name: archive[name] for name in archive.files})
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise GoldenError(f"{path}: not a readable .npz file: {error}") from None
    if "adam_atan2/hparams" in data:
        numbers, weights = optimizer_numbers, None
    elif "config" not in data:
        raise GoldenError(f"{path}: holds neither a model's numbers (no `config`) nor an optimiser's")
    else:
        reference = json.loads(bytes(data["config"]).decode())["reference"]
        if reference not in MODEL_NUMBERS | RELATIVES:
            raise GoldenError(f"{path}: {reference} is not here yet, only {', '.join(MODEL_NUMBERS | RELATIVES)}")
        if reference in RELATIVES:
            return compare_relative(data, RELATIVES[reference])
        numbers = MODEL_NUMBERS[reference](data)
        weights = {k: v for k, v in data.items() if k.startswith("params/")}
    if weights is None:
        ours, moved = numbers(data), []
    else:
        ours = numbers(weights)
        moved = [numbers(one_ulp(weights, seed)) for seed in range(NOISE_RUNS)]
    return [Difference(name, kind_of(name), difference(value, data[name]),
                       max((difference(m[name], value) for m in moved), default=0.0))
            for name, value in ours.items()]


def compare_relative(data, numbers) -> list[Difference]:
    """Of a file that brings its noise floors along, whole or in part. Pass@k and the like of restarts are left out."""
    floors = json.loads(bytes(data["noise_floor"]).decode())
    ours = numbers(data)
    names = [name for name in data if not name.startswith(GIVEN) and (name in ours or "breadth/metrics" not in name)]
    if missing := sorted(set(names) - set(ours)):
        raise GoldenError(f"numbers that are not computed here: {', '.join(missing)}")
    def found(noise):
        return [Difference(name, kind_of(name), difference(ours[name], data[name]), noise(name)) for name in names]
    differences = found(lambda name: floors.get(name, 0.0))
    if all(d.ok for d in differences):
        return differences
    # Three runs are few to tell how far a chaotic number moves: ours are moved as well before it counts as a fault.
    moved = [numbers(Arrays("", data | one_ulp({k: v for k, v in data.items() if k.startswith("params/")}, seed)))
             for seed in range(NOISE_RUNS)]
    return found(lambda name: max(floors.get(name, 0.0), *(difference(m[name], ours[name]) for m in moved)))


def compare_votes(path) -> list[Difference]:
    """Of a file of ARC predictions: the score and each attempt of the submission; equal (0) or not (1)."""
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        votes = Votes(data["identifiers"], data["test_puzzles"])
        votes.add(data["puzzle_identifiers"], data["inputs"], data["preds"], data["q_halt_logits"])
        expected, submission, turned = data["expected"], data["submission"], data["dihedral_of_2x3_arange"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GoldenError(f"{path}: not a readable file of ARC votes: {type(error).__name__}: {error}") from None
    ours, score = votes.submission(), votes.score()
    found = [(f"{name}", "scores", score.get(name.removeprefix("ARC/")) == value) for name, value in expected.items()]
    found += [(f"submission of {task}", "submission", ours.get(task) == submission.get(task))
              for task in ours | submission]
    found += [(f"transform {k}", "transforms", arc.dihedral(np.arange(6).reshape(2, 3), int(k)).tolist() == grid)
              for k, grid in turned.items()]
    return [Difference(name, kind, float(not equal), 0.0) for name, kind, equal in found]


def one_ulp(weights, seed: int):
    """Every float32 weight moved to a neighbouring float32, up or down by a coin."""
    rng = np.random.default_rng(seed)
    return {k: np.nextafter(v, np.where(rng.random(v.shape) < 0.5, -np.inf, np.inf).astype(np.float32))
            for k, v in weights.items()}


def kind_of(name: str) -> str:
    for part, kind in KINDS.items():
        if part in name:
            return kind
    raise ValueError(name)


def load(weights, published, loss_type="stablemax_cross_entropy", **changes):
    """(model, (params, fixed, table)) of a file's config and weights."""
    fields = ("H_cycles", "L_cycles", "L_layers", "hidden_size", "num_heads", "expansion", "mlp_t", "pos_encodings",
              "puzzle_emb_ndim", "puzzle_emb_len", "forward_dtype", "halt_max_steps", "no_ACT_continue")
    arch = Arch(**{f: published[f] for f in fields if f in published} | {"loss": Loss(loss_type)} | changes)
    model = Model(arch, Shape(published["seq_len"], published["vocab_size"], published["num_puzzle_identifiers"]))
    weights = {k.removeprefix("params/"): v for k, v in weights.items()}
    return model, jax.tree.map(jnp.asarray, published_names.from_published(weights, arch))


def rsm_numbers(data):
    """A function of the file's weights to every number of the file, compiled once."""
    published = json.loads(bytes(data["config"]).decode())
    batch = Batch(*(jnp.asarray(data[f"batch/{f}"]) for f in Batch._fields))
    L, b = published["L_cycles"], batch.inputs.shape[0]
    weights = {k: v for k, v in data.items() if k.startswith("params/")}
    model, _ = load(weights, published)

    @jax.jit
    def answer(params, fixed, table, H):
        x = model.embed(params, batch.inputs, model.rows(table, batch.puzzle_identifiers))
        latents = recursion.unroll(model.core(params), model.initial_latents(fixed, b), x, H, L)
        return model.logits(params, latents.y)

    steps = {}
    for loss_type in losses.TOKEN_LOSSES:
        for span, detach in (("one_step", 1.0), ("two_step", 0.0)):
            trained, _ = load(weights, published, loss_type, prob_detach_prev_H=detach)
            contract = Terminal(trained, Experiment(arch=trained.arch))
            steps[f"train/{loss_type}/{span}"] = jax.jit(
                jax.value_and_grad(contract.loss, argnums=(0, 1), has_aux=True), static_argnums=4)

    def numbers(weights):
        out = {}
        _, (params, fixed, table) = load(weights, published)
        for H in sorted({int(k.split("/")[1][1:]) for k in data if k.startswith("eval/H")}):
            logits = answer(params, fixed, table, np.int32(H))
            out[f"eval/H{H}/logits"] = logits
            out[f"eval/H{H}/loss"] = jnp.sum(losses.per_example("stablemax_cross_entropy", logits, batch.labels))
            scores = losses.scores(jnp.argmax(logits, -1), batch.labels)
            out[f"eval/H{H}/metrics/accuracy"] = jnp.sum(scores.cell)
            out[f"eval/H{H}/metrics/exact_accuracy"] = jnp.sum(scores.exact)
        rows = model.rows(table, batch.puzzle_identifiers)
        start = SlotContents(batch, model.initial_latents(fixed, b))
        for prefix, step in steps.items():
            H = np.int32(published["train_H"])
            (loss, _), (grads, row_grads) = step(params, rows, start, H, L, jax.random.key(0))
            out[f"{prefix}/loss"] = loss
            for name, grad in published_names.to_published(grads, model.arch).items():
                out[f"{prefix}/grads/{name}"] = grad
            out[f"{prefix}/grads/puzzle_emb_rows"] = row_grads
        return jax.device_get(out)

    return numbers


# What the published modules of HRM and TRM have in common, and what each is in our words.
DEEP = {"supervision": "deep", "prob_detach_prev_H": 1.0, "halt_exploration_prob": 0.0, "tie_head": False,
        "halting_head": True}
MODULES = {
    "trm": {},
    "trm_singlez": {"recursion": "single_z"},
    "trm_hier6": {"recursion": "multi_z"},
    "hrm": {"H_layers": 2, "mlp_t": False, "grad_calls": 2, "no_ACT_continue": False, "puzzle_emb_len": 0},
}
SUMS = {"count": "halted", "accuracy": "cell_accuracy", "exact_accuracy": "exact_accuracy",
        "q_halt_accuracy": "halt_accuracy", "steps": "steps", "lm_loss": "token_loss", "q_halt_loss": "halt_loss",
        "q_continue_loss": "continue_loss"}  # published metric -> ours


def deep_numbers(data):
    """As `rsm_numbers`, of systems under deep supervision."""
    published = json.loads(bytes(data["config"]).decode())
    batch = Batch(*(jnp.asarray(data[f"batch/{f}"]) for f in Batch._fields))
    b = batch.inputs.shape[0]
    weights = {k: v for k, v in data.items() if k.startswith("params/")}
    system = DEEP | MODULES[published["module"]]
    if system.get("mlp_t", published.get("mlp_t")):
        system["mixer_norm_axis"] = "token"
    model, _ = load(weights, published, **system)
    H, L = published["H_cycles"], published["L_cycles"]

    def step_of(loss_type, **changes):
        """The jitted supervision step; evaluation is the same step, but for its loss and for who may halt."""
        trained, _ = load(weights, published, loss_type, **(system | changes))
        contract = DeepSupervision(trained, Experiment(arch=trained.arch))

        @functools.partial(jax.jit, static_argnames="training")
        def step(params, fixed, rows, carry, H, training):
            key = jax.random.key(0)
            start = contract.begin(fixed, carry, batch, key, SlotDraw(b, 0))
            if training:
                of = jax.value_and_grad(contract.loss, argnums=(0, 1), has_aux=True)
                (loss, (carry, sums)), grads = of(params, rows, start, H, L, key)
            else:
                start = start._replace(may_halt=jnp.zeros_like(start.may_halt))
                (loss, (carry, sums)), grads = contract.loss(params, rows, start, H, L, key), None
            y = carry.latents.y
            return carry, loss, sums, grads, model.logits(params, y), model.halting(params, y)
        return contract, step

    evaluation = step_of("stablemax_cross_entropy", no_ACT_continue=True)
    training = {loss_type: step_of(loss_type) for loss_type in losses.TOKEN_LOSSES}

    def add_step(out, prefix, outputs, result):
        carry, loss, sums, _, logits, q = result
        out[f"{prefix}/loss"], out[f"{prefix}/halted"] = loss, carry.halted
        for name, value in zip(("logits", "q_halt_logits", "q_continue_logits"), (logits, q[:, 0], q[:, 1])):
            out[f"{prefix}/{outputs}{name}"] = value
        for theirs, ours in SUMS.items():
            if f"{prefix}/metrics/{theirs}" in data:
                out[f"{prefix}/metrics/{theirs}"] = getattr(sums, ours)

    def numbers(weights):
        out = {}
        _, (params, fixed, table) = load(weights, published, **system)
        rows = model.rows(table, batch.puzzle_identifiers)
        contract, step = evaluation
        carry = contract.initial_carry(b)
        for k in range(published["halt_max_steps"]):
            result = step(params, fixed, rows, carry, np.int32(H), False)
            carry = result[0]
            add_step(out, f"eval/step{k}", "", result)
            # H_init and L3_init are the starting points of what the carry calls z_H and z_L3
            for start, latent in zip(jax.tree.leaves(model.starts), jax.tree.leaves(carry.latents)):
                out[f"eval/step{k}/carry/z_{start.removesuffix('_init')}"] = latent.transpose(1, 0, 2)
        for loss_type, (contract, step) in training.items():
            carry = contract.initial_carry(b)
            for k in range(2):
                result = step(params, fixed, rows, carry, np.int32(H), True)
                carry, (grads, row_grads) = result[0], result[3]
                prefix = f"train/{loss_type}/step{k}"
                add_step(out, prefix, "outputs/", result)
                out[f"{prefix}/steps"] = carry.steps
                for name, grad in published_names.to_published(grads, model.arch, "L_level").items():
                    out[f"{prefix}/grads/inner.{name}"] = grad
                out[f"{prefix}/grads/puzzle_emb_rows"] = row_grads
        return jax.device_get(out)

    return numbers


MODEL_NUMBERS = {"navidivan/rsm": rsm_numbers, "SamsungSAILMontreal/TinyRecursiveModels": deep_numbers}


RELATIVES = {"locuslab/EqR": relatives.eqr_numbers, "nilskiKonjIzDunava/fprm": relatives.fprm_numbers}
# What a file of theirs hands to a computation.
GIVEN = ("config", "noise_floor", "params/", "batch", "init/", "reset/", "noise/", "breadth/init", "breadth/noise")


def optimizer_numbers(data):
    out = {}
    lr, wd, b1, b2 = (float(h) for h in data["adam_atan2/hparams"])
    adam = optimizers.scale_by_adam_atan2(b1, b2)
    param = jnp.asarray(data["adam_atan2/param/0"], jnp.float32)
    state = adam.init(param)
    for t in range(1, sum(k.startswith("adam_atan2/grad/") for k in data) + 1):
        update, state = adam.update(jnp.asarray(data[f"adam_atan2/grad/{t}"], jnp.float32), state, param)
        param = param * (1 - lr * wd) - lr * update
        out[f"adam_atan2/param/{t}"] = param

    lr, wd = (float(h) for h in data["sign_sgd/hparams"])
    table = jnp.asarray(data["sign_sgd/weights/0"])
    for t in range(1, sum(k.startswith("sign_sgd/ids/") for k in data) + 1):
        ids, grad = jnp.asarray(data[f"sign_sgd/ids/{t}"]), jnp.asarray(data[f"sign_sgd/grad/{t}"])
        distinct, slots = optimizers.touched_rows(ids, table.shape[0])
        sums = jax.ops.segment_sum(grad, slots, distinct.shape[0])
        table = optimizers.sign_sgd(table, distinct, sums, jnp.float32(lr), wd)
        out[f"sign_sgd/weights/{t}"] = table
    return out
