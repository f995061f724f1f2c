"""The door for configs: every field with its default and meaning, and what is allowed in it.

An experiment file builds an `ml_collections.ConfigDict` from `default()`; `parse` turns it into frozen
dataclasses and refuses, by name, what cannot work. Behind the door nobody reads a ConfigDict.
Field names are those of the published code where there is one, so that a published recipe can be typed in.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib.util
import math
import os
import pathlib
import re
import shlex
import typing
from collections.abc import Sequence
from typing import Any, Literal

from ml_collections import ConfigDict

from trm_jax.errors import UserError

Axis = Literal["feature", "token"]


class ConfigError(UserError):
    """A config that cannot work; the message lists every fault by field, value and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Loss:
    loss_type: Literal["stablemax_cross_entropy", "softmax_cross_entropy"] = "stablemax_cross_entropy"


@dataclasses.dataclass(frozen=True)
class Arch:
    """The network and how often it is applied."""

    loss: Loss = Loss()
    recursion: Literal["y_z", "single_z", "multi_z", "direct"] = "y_z"  # see recursion.py
    H_cycles: int = 2  # outer cycles at the first step; grows by curriculum_milestones
    L_cycles: int = 2  # inner cycles per outer cycle at the first step; grows by curriculum_L_milestones
    H_layers: int = 0  # blocks in a second network f_H that updates the answer (HRM); 0: one network does both
    L_layers: int = 1  # blocks in the core
    hidden_size: int = 512
    num_heads: int = 8  # attention only
    expansion: float = 4.0  # SwiGLU: hidden = 256 * ceil(round(expansion * width * 2/3) / 256)
    mlp_hidden_size: int = 0  # 0: by expansion. Otherwise the channel SwiGLU's hidden size itself
    mixer_hidden_size: int = 0  # 0: by expansion. Otherwise the token-mixing SwiGLU's hidden size itself
    mlp_t: bool = True  # tokens are mixed by a SwiGLU over the sequence; False: by attention
    # auto: of long sequences the scores are never all alive at once, by cuDNN's fused attention where it can be had
    # (NVIDIA GPUs, bfloat16), else block by block. See models/attention.py.
    attention: Literal["auto", "whole", "blocks", "cudnn"] = "auto"
    pos_encodings: Literal["none", "rope", "learned"] = "none"
    rope_theta: float = 10000.0
    rope_columns: int = 0  # 0: rotary positions count along the flattened grid. Otherwise its width: row and column
    rms_norm_eps: float = 1e-5
    mixer_norm_axis: Axis = "feature"  # axis of the norm after token mixing: RSM "feature", TRM's MLP-T "token"
    mlp_norm_axis: Axis = "feature"  # axis of the norm after the channel SwiGLU
    puzzle_emb_ndim: int = 512  # width of a row of the puzzle table; 0: no prefix at all
    puzzle_emb_len: int = 16  # prefix positions; 0: ceil(puzzle_emb_ndim / hidden_size)
    tie_head: bool = True  # logits from the token embedding (RSM); False: a head of its own (HRM, TRM)
    halting_head: bool = False  # q_halt, q_continue from the first position (HRM, TRM)
    forward_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # activations; parameters and losses stay float32
    remat: bool = True  # the backward pass computes a core call anew instead of keeping what is inside of it
    grad_calls: int = 0  # gradient through so many last core calls of the last cycle (HRM: 2); 0: all L_cycles + 1
    supervision: Literal["terminal", "deep"] = "terminal"  # one loss per puzzle (RSM), or several with a carry
    # Terminal supervision.
    prob_detach_prev_H: float = 0.99  # probability that the last but one outer update is detached too
    # Deep supervision.
    halt_max_steps: int = 16  # supervision steps on a puzzle at most; without a halting head, always
    halt_exploration_prob: float = 0.1  # probability of not halting before a step drawn from 2 .. halt_max_steps
    no_ACT_continue: bool = True  # halt if q_halt > 0 (TRM). False: if q_halt > q_continue, which is trained too (HRM)


@dataclasses.dataclass(frozen=True)
class Deepen:
    """What brings states deeper than H into training. Ours, off in the published recipe."""

    carry_share: float = 0.0  # share of the batch's slots that may keep puzzle and latents for the next step
    carry_keep_prob: float = 0.9  # probability that such a slot does keep them
    tail_prob: float = 0.0  # probability of a step whose H is drawn log-uniformly from H to tail_max_H
    tail_max_H: int = 64


@dataclasses.dataclass(frozen=True)
class Data:
    puzzle: Literal["sudoku", "maze", "arc"] = "sudoku"  # the domain: codec, verifier, augmentation
    path: str = "data/sudoku"  # dataset folder, as `python -m trm_jax.data` writes it
    make: str = ""  # the command that makes the folder, shown when it is missing
    augment: bool = False  # a fresh symmetry of every training puzzle each time it is drawn; ARC's are in the folder
    # fixed: the labels of the dataset. random_path: of every training maze a shortest path, drawn uniformly each time
    # it is drawn; exact match then means little, and the best checkpoint is the one with most shortest paths.
    labels: Literal["fixed", "random_path"] = "fixed"

    @property
    def how_to_make(self) -> str:
        """The command that makes the folder at `path`, wherever `make` would put it."""
        return re.sub(r"--out[ =]\S+", lambda _: f"--out {shlex.quote(self.path)}", self.make)


@dataclasses.dataclass(frozen=True)
class Eval:
    # Depths at which answers are scored, all in one unroll: in outer cycles with terminal supervision, in
    # supervision steps (of H_cycles outer cycles each) with deep supervision.
    H_test: tuple[int, ...] = (16,)
    L_test: tuple[int, ...] = ()  # inner cycles; one unroll each. (): the L of the last training step
    interval_steps: int = 0  # 0: only after the last step
    batch_size: int = 512
    max_examples: int = 0  # 0: the whole test set; otherwise a seeded sample of this many
    settled_cycles: int = 4  # settled: the answer has not changed for this many units of H_test
    stop_halted: bool = False  # a puzzle's answer stays as it is once the halting head wants to stop
    # Besides, answer each puzzle as a solver would (see inference.py): to the last of H_test, done when it has settled
    # or the rules accept it, and tried again if they do not, up to so many times in all. 0: do not.
    restarts: int = 0
    vary: Literal["symmetry", "start", "cycle"] = "symmetry"  # what tells restarts apart
    sigma: float = 0.3  # standard deviation of the noise (vary: start, cycle)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    interval_steps: int = 1000  # also saved after the last step
    keep_last: int = 2
    keep_best: int = 1


@dataclasses.dataclass(frozen=True)
class Log:
    interval_steps: int = 50


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run is. Groups with a lower-case name below are sections of the config."""

    arch: Arch = Arch()
    deepen: Deepen = Deepen()
    data: Data = Data()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()

    seed: int = 0
    global_batch_size: int = 512
    epochs: int = 2  # length of the run in passes over the groups of the training set
    total_steps: int = 0  # length of the run in optimiser steps; 0: from epochs

    optimizer: Literal["adam_atan2", "adamw"] = "adam_atan2"
    lr: float = 1e-3
    lr_min_ratio: float = 0.02  # the cosine ends at lr * lr_min_ratio
    lr_warmup_steps: int = 2000
    beta1: float = 0.8
    beta2: float = 0.9
    adam_eps: float = 1e-8  # AdamW only
    weight_decay: float = 0.1
    grad_clip_norm: float = 1.0  # 0: no clipping
    puzzle_emb_lr: float = 1e-4  # sign-SGD of the puzzle table
    puzzle_emb_weight_decay: float = 1.0
    ema: bool = True  # evaluate an exponential moving average of the parameters
    ema_rate: float = 0.999

    curriculum_milestones: tuple[float, ...] = ()  # percent of all steps at which H grows
    curriculum_heads_to_add: tuple[int, ...] = ()  # by how much
    curriculum_L_milestones: tuple[float, ...] = ()  # percent of all steps at which L grows
    curriculum_L_to_add: tuple[int, ...] = ()
    transition_lr_warmup_steps: int = 0  # after each growth the learning rate ramps from 0 over this many steps
    optimizer_reset_scale: float = 1.0  # the optimiser's moments are multiplied by this at each growth


# Fields that may differ between a run and its continuation: they do not change what is learned.
MAY_CHANGE = ("eval", "checkpoint", "log", "data.make")


def default() -> ConfigDict:
    """Every field at its default, locked: an experiment can change fields, not invent them."""
    return to_config_dict(Experiment())


def to_config_dict(experiment: Experiment) -> ConfigDict:
    config = ConfigDict(dataclasses.asdict(experiment), convert_dict=True)
    return config.lock()


def to_json(experiment: Experiment) -> dict[str, Any]:
    """Nested plain dict with lists for tuples, as `config.json` holds it; `parse` reads it back."""
    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return list(value) if isinstance(value, tuple) else value
    return plain(dataclasses.asdict(experiment))


def experiment_file(path: str | os.PathLike):
    """The module of an experiment file, for one that is built on another."""
    path = pathlib.Path(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_file(name: str) -> ConfigDict:
    """The config of "experiments/NAME.py:VARIANT", as --config takes it. Raises ConfigError."""
    file, _, variant = name.partition(":")
    try:
        return experiment_file(file).get_config(variant)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # there is no such variant
        raise ConfigError(f"{file}: {error}") from error


def parse(config: ConfigDict | dict[str, Any]) -> Experiment:
    """ConfigDict (or the dict of a `config.json`) -> Experiment.

    Raises:
      ConfigError: listing every unknown field, wrong type and impossible value at once.
    """
    faults: list[str] = []
    raw = config if isinstance(config, dict) else config.to_dict()  # raises where ml_collections found no file
    experiment = _build(Experiment, raw, "", faults)
    if not faults:
        faults += _impossible(experiment)
    if faults:
        raise ConfigError("the config cannot be run:\n  " + "\n  ".join(faults))
    return experiment


def read_fields(texts: Sequence[str]) -> dict[str, Any]:
    """["arch.remat=False", "data.path=data/mine"] -> {"arch.remat": False, "data.path": "data/mine"}."""
    fields = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not FIELD=VALUE")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a text without quotation marks
            fields[name] = value
    return fields


def with_fields(experiment: Experiment, fields: dict[str, Any]) -> Experiment:
    """With fields, named with dots, at other values. Raises ConfigError as `parse` does."""
    raw = to_json(experiment)
    for name, value in fields.items():
        *sections, last = name.split(".")
        node = raw
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return parse(raw)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old, new) for every field outside `MAY_CHANGE` in which two `to_json` dicts differ.

    A field that `old` does not have yet stands at its default: a new field's default is what was done before.
    """
    found = {}

    def compare(old, new, default, prefix):
        for name in sorted({*old, *new}):
            if (dotted := prefix + name) in MAY_CHANGE:
                continue
            standard = default.get(name, "(absent)")
            a, b = old.get(name, standard), new.get(name, "(absent)")
            if isinstance(a, dict) and isinstance(b, dict):
                compare(a, b, standard if isinstance(standard, dict) else {}, dotted + ".")
            elif a != b:
                found[dotted] = (a, b)
    compare(old, new, to_json(Experiment()), "")
    return found


def _build(cls, raw: Any, prefix: str, faults: list[str]):
    if not isinstance(raw, dict):
        faults.append(f"{prefix.rstrip('.')} = {raw!r}: must be a section with fields")
        return cls()
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in raw.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            faults.append(f"{prefix}{name}: unknown field"
                          + (f"; did you mean {prefix}{near[0]}?" if near else ""))
            continue
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _build(hint, value, f"{prefix}{name}.", faults)
        else:
            values[name], fault = _coerce(hint, value)
            if fault:
                faults.append(f"{prefix}{name} = {value!r}: {fault}")
    return cls(**values)


def _coerce(hint, value):
    """(value as `hint`, "") or (value, why it is not one)."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed = typing.get_args(hint)
        return value, "" if value in allowed else f"must be one of {', '.join(map(repr, allowed))}"
    if origin is tuple:
        kind = typing.get_args(hint)[0]
        if not isinstance(value, (tuple, list)):
            value = (value,)
        items = [_coerce(kind, item) for item in value]
        fault = next((f for _, f in items if f), "")
        return tuple(item for item, _ in items), fault and f"every item {fault}"
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        return value, f"must be of type {hint.__name__}, is {type(value).__name__}"
    if hint is float and not math.isfinite(value):
        return value, "must be finite"
    return value, ""


def _impossible(e: Experiment) -> list[str]:
    """What types cannot tell: ranges, and fields that contradict each other."""
    faults = []

    def get(name: str):
        return functools.reduce(getattr, name.split("."), e)

    def need(ok: bool, name: str, rule: str):
        if not ok:
            faults.append(f"{name} = {get(name)!r}: {rule}")

    for name in ("arch.L_layers", "arch.hidden_size", "arch.num_heads", "arch.halt_max_steps",
                 "global_batch_size", "epochs", "eval.batch_size", "eval.settled_cycles",
                 "checkpoint.interval_steps", "checkpoint.keep_last", "log.interval_steps"):
        need(get(name) >= 1, name, "must be at least 1")
    _impossible_recursion(e, need)
    _impossible_supervision(e, need)
    for name in ("arch.H_layers", "arch.grad_calls", "arch.puzzle_emb_ndim", "arch.puzzle_emb_len",
                 "arch.mlp_hidden_size", "arch.mixer_hidden_size", "seed", "total_steps", "lr_warmup_steps",
                 "eval.interval_steps", "eval.max_examples", "eval.restarts", "eval.sigma", "grad_clip_norm",
                 "transition_lr_warmup_steps", "checkpoint.keep_best", "weight_decay", "puzzle_emb_weight_decay",
                 "optimizer_reset_scale", "puzzle_emb_lr", "lr"):
        need(get(name) >= 0, name, "must not be negative")
    for name in ("arch.prob_detach_prev_H", "arch.halt_exploration_prob", "deepen.carry_share",
                 "deepen.carry_keep_prob", "deepen.tail_prob", "lr_min_ratio"):
        need(0 <= get(name) <= 1, name, "is a share, from 0 to 1 (not percent)")
    need(e.seed < 2**32, "seed", "must be under 2**32: jax would drop the digits above")
    for name in ("beta1", "beta2", "ema_rate"):
        need(0 <= getattr(e, name) < 1, name, "must be at least 0 and under 1")
    need(e.data.labels == "fixed" or e.data.puzzle == "maze", "data.labels", "is for data.puzzle = 'maze'")
    need(not e.data.augment or e.data.puzzle != "arc", "data.augment",
         "must be False for data.puzzle = 'arc': its symmetries are puzzles of the dataset folder, with identifiers of "
         "their own; python -m trm_jax.data arc --num_aug says how many")
    need(e.arch.expansion > 0, "arch.expansion", "must be positive")
    need(e.arch.rms_norm_eps > 0, "arch.rms_norm_eps", "must be positive")
    _impossible_attention(e, need)
    if e.arch.puzzle_emb_ndim == 0:
        need(e.arch.puzzle_emb_len == 0, "arch.puzzle_emb_len",
             "must be 0 when arch.puzzle_emb_ndim = 0 (there is no prefix)")
    elif e.arch.puzzle_emb_len:
        need(e.arch.puzzle_emb_ndim <= e.arch.puzzle_emb_len * e.arch.hidden_size, "arch.puzzle_emb_ndim",
             f"does not fit into puzzle_emb_len * hidden_size = {e.arch.puzzle_emb_len * e.arch.hidden_size}")
    for milestones, amounts in (("curriculum_milestones", "curriculum_heads_to_add"),
                                ("curriculum_L_milestones", "curriculum_L_to_add")):
        m, a = getattr(e, milestones), getattr(e, amounts)
        need(len(m) == len(a), amounts, f"must have one entry for each of {milestones} ({len(m)}), has {len(a)}")
        need(all(0 < x <= 100 for x in m), milestones, "are percent of all steps, over 0 to 100")
        need(list(m) == sorted(set(m)), milestones, "must ascend")
        need(all(x >= 0 for x in a), amounts, "must not be negative")
    deepest = e.arch.H_cycles + sum(e.curriculum_heads_to_add)
    need(e.deepen.tail_prob == 0 or e.deepen.tail_max_H >= deepest, "deepen.tail_max_H",
         f"must be at least the H that the curriculum ends at, {deepest}")
    need(len(e.eval.H_test) > 0 and all(h >= 1 for h in e.eval.H_test), "eval.H_test", "needs entries of at least 1")
    need(list(e.eval.H_test) == sorted(set(e.eval.H_test)), "eval.H_test", "must ascend")
    need(all(l >= 1 for l in e.eval.L_test), "eval.L_test", "needs entries of at least 1")
    need(e.eval.restarts == 0 or e.data.puzzle != "arc", "eval.restarts", "must be 0: ARC has no rules to verify by")
    need(e.eval.restarts < 2 or e.eval.vary == "symmetry" or e.eval.sigma > 0, "eval.sigma",
         "must be positive: restarts that differ by noise need some")
    return faults


def no_cudnn(head: int, forward_dtype: str) -> str:
    """Why cuDNN's attention cannot be had for heads of this size and this dtype; "" if it can."""
    if forward_dtype != "bfloat16":
        return f"cuDNN's needs arch.forward_dtype = 'bfloat16', not {forward_dtype!r}"
    if head % 8 or head > 128:
        return f"cuDNN's needs a head size, hidden_size / num_heads, that 8 divides and of at most 128, not {head}"
    return ""


def _impossible_attention(e: Experiment, need) -> None:
    a = e.arch
    head, rest = divmod(a.hidden_size, max(a.num_heads, 1))
    need(a.rope_columns >= 0, "arch.rope_columns", "must not be negative")
    need(not a.rope_columns or a.pos_encodings == "rope", "arch.rope_columns", "needs arch.pos_encodings = 'rope'")
    if a.mlp_t:
        need(a.pos_encodings != "rope", "arch.pos_encodings", "RoPE needs attention; set arch.mlp_t = False")
        need(a.attention == "auto", "arch.attention", "has no meaning without attention (mlp_t = True)")
        return
    need(rest == 0, "arch.num_heads", f"must divide arch.hidden_size = {a.hidden_size}")
    need(a.mixer_hidden_size == 0, "arch.mixer_hidden_size", "has no meaning with attention (mlp_t = False)")
    if rest == 0 and a.pos_encodings == "rope":
        need(head % 2 == 0, "arch.num_heads", "RoPE needs an even head size, hidden_size / num_heads")
        need(head % 4 == 0 or not a.rope_columns, "arch.num_heads",
             "RoPE by row and column needs a head size, hidden_size / num_heads, that 4 divides")
    if rest == 0 and a.attention == "cudnn":
        need(not no_cudnn(head, a.forward_dtype), "arch.attention", no_cudnn(head, a.forward_dtype))


def _impossible_recursion(e: Experiment, need) -> None:
    a = e.arch
    transition = a.supervision == "terminal" and a.prob_detach_prev_H != 1
    need(a.H_cycles >= 1 + transition, "arch.H_cycles", f"must be at least {1 + transition}"
         + (" in training (the transition and the active cycle)" if transition else ""))
    if a.recursion == "direct":
        need(a.L_cycles == 0, "arch.L_cycles", "must be 0 with arch.recursion = 'direct' (there are no inner cycles)")
    else:
        need(a.L_cycles >= 1, "arch.L_cycles", "must be at least 1")
    if a.recursion in ("single_z", "direct"):
        need(a.H_layers == 0, "arch.H_layers",
             f"must be 0 with arch.recursion = {a.recursion!r}: there is one latent, and one network that updates it")
    if a.recursion in ("multi_z", "direct"):
        why = f"with arch.recursion = {a.recursion!r} the number of inner cycles is fixed by what there is to update"
        need(not e.curriculum_L_milestones, "curriculum_L_milestones", f"must be empty: {why}")
        need(all(L == a.L_cycles for L in e.eval.L_test), "eval.L_test", f"must be empty: {why}")
    need(a.grad_calls <= a.L_cycles + 1, "arch.grad_calls",
         f"must be at most L_cycles + 1 = {a.L_cycles + 1}, the calls of the last outer cycle; 0 stands for all")


def _impossible_supervision(e: Experiment, need) -> None:
    a = e.arch
    if a.halting_head:
        need(a.puzzle_emb_ndim > 0, "arch.halting_head",
             "has no position to read from: it reads the first of the prefix, set arch.puzzle_emb_ndim")
    else:
        need(not e.eval.stop_halted, "eval.stop_halted", "needs arch.halting_head = True")
    if a.supervision == "terminal":
        need(not a.halting_head, "arch.halting_head", "is trained by arch.supervision = 'deep' only")
        need(a.no_ACT_continue, "arch.no_ACT_continue", "needs arch.supervision = 'deep' and a halting head")
        return
    if not a.halting_head:
        need(a.no_ACT_continue, "arch.no_ACT_continue", "ACT needs arch.halting_head = True")
        need(a.halt_exploration_prob == 0, "arch.halt_exploration_prob",
             "must be 0 without a halting head: every puzzle takes halt_max_steps steps")
    need(a.halt_exploration_prob == 0 or a.halt_max_steps >= 2, "arch.halt_max_steps",
         "must be at least 2 with halt_exploration_prob > 0")
    need(a.prob_detach_prev_H == 1, "arch.prob_detach_prev_H",
         "must be 1 with arch.supervision = 'deep': all cycles but the last are detached there")
    for name in ("curriculum_milestones", "curriculum_L_milestones"):
        need(not getattr(e, name), name, "need arch.supervision = 'terminal': a carry is of one depth")
    for name in ("carry_share", "tail_prob"):
        need(getattr(e.deepen, name) == 0, f"deepen.{name}",
             "needs arch.supervision = 'terminal'; deep supervision has a carry of its own")
