"""What published weights are: the system, its config and its grid, as far as names and shapes tell.

The rest comes from what the user says, from the config that the published program saved, or from the published
recipe, in this order; `Inferred.origins` says which.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from trm_jax import config
from trm_jax.data.shape import Shape
from trm_jax.models.layers import swiglu_hidden
from trm_jax.models.network import prefix_len
from trm_jax.weights import torch_files
from trm_jax.weights.published_names import (
    BLOCK_WEIGHTS,
    CORE_NAMES,
    EMBEDDING,
    H_CORE_NAME,
    HEAD,
    TABLE,
    PretrainedError,
    published_norm_axis,
    strip_prefixes,
)

# What the weights do not tell, of each system's published Sudoku recipe (RSM: at its end).
RECIPES = {
    "RSM": {"supervision": "terminal", "H_cycles": 8, "L_cycles": 12, "puzzle_emb_len": 16},
    "TRM": {"supervision": "deep", "H_cycles": 3, "L_cycles": 6, "puzzle_emb_len": 16},
    "HRM": {"supervision": "deep", "H_cycles": 2, "L_cycles": 2, "puzzle_emb_len": 0, "grad_calls": 2,
            "no_ACT_continue": False},
    "direct": {"supervision": "deep", "H_cycles": 1, "L_cycles": 0, "puzzle_emb_len": 0},
    "EqR": {"supervision": "deep", "H_cycles": 3, "L_cycles": 6, "puzzle_emb_len": 16, "start": "random",
            "update": "damped", "update_noise": 0.01, "update_noise_test": 0.01},
    "FPRM": {"supervision": "deep", "H_cycles": 6, "L_cycles": 0, "puzzle_emb_len": 16, "grad_cycles": 6,
             "start": "random", "start_std": 6.0, "update": "solver", "halt_by": "residual", "halt_max_steps": 12,
             "halt_exploration_prob": 0.0},
}
# How they were trained, of RSM as our defaults are.
TRAINING = {"optimizer": "adam_atan2", "lr": 1e-4, "lr_min_ratio": 1.0, "lr_warmup_steps": 2000, "beta1": 0.9,
            "beta2": 0.95, "weight_decay": 1.0, "grad_clip_norm": 0.0, "puzzle_emb_lr": 1e-4,
            "puzzle_emb_weight_decay": 1.0, "global_batch_size": 768, "epochs": 50_000, "ema": True, "ema_rate": 0.999}
TRAININGS = {"RSM": {}, "TRM": TRAINING, "EqR": TRAINING, "HRM": TRAINING | {"epochs": 20_000, "ema": False},
             "direct": TRAINING | {"epochs": 20_000, "ema": False},
             "FPRM": TRAINING | {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-3, "puzzle_emb_lr": 1e-3,
                                 "puzzle_emb_weight_decay": 1e-3, "epochs": 60_000}}
# Of a network's fields, what a published config may tell, and an option of the command.
UNTOLD = ("num_heads", "H_cycles", "L_cycles", "puzzle_emb_len", "pos_encodings", "mixer_norm_axis", "rope_theta",
          "rms_norm_eps", "forward_dtype", "halt_max_steps", "no_ACT_continue")
GUESSES = {"y_z": ("num_heads", "H_cycles", "L_cycles"), "single_z": ("num_heads", "H_cycles", "L_cycles"),
           "multi_z": ("num_heads", "H_cycles")}  # of these, by recursion, a guess is worth a warning
SEQ_LENS = {11: 81, 6: 900, 12: 900}  # vocabulary -> grid of the published datasets: Sudoku, maze, ARC


class Inferred(NamedTuple):
    system: str  # of RECIPES
    arch: config.Arch
    shape: Shape
    origins: dict[str, str]  # arch field or "seq_len" -> "the weights", "an option", ...: where it comes from


def infer(weights: Mapping[str, np.ndarray], given: Mapping[str, Any] | None = None,
          saved: Mapping[str, Any] | None = None) -> Inferred:
    """Config and shape of published weights.

    Args:
      given: fields of UNTOLD, and seq_len, that are known.
      saved: the `arch` section of the config that the published program saved with the weights.
    """
    weights = strip_prefixes(weights)
    given = {name: value for name, value in (given or {}).items() if value is not None}
    system, seen = _seen(weights)
    if system == "FPRM":  # whose config calls other things by these names
        saved = {name: value for name, value in (saved or {}).items() if name not in ("H_cycles", "L_cycles")}
    T = next((weights[name].shape[i] for name, i in (("embed_pos.embedding_weight", 0),
              (f"{seen.pop('core')}.layers.0.{BLOCK_WEIGHTS['mixer', 'gate_up']}", 1)) if name in weights), None)
    recipe = dict(RECIPES[system])
    if not seen["mlp_t"]:
        recipe.setdefault("pos_encodings", "rope")
    if seen["mlp_t"]:
        recipe["mixer_norm_axis"] = published_norm_axis(system == "RSM")
    if not seen["puzzle_emb_ndim"]:
        recipe["puzzle_emb_len"] = 0
    if seen["halting_head"]:
        recipe["halt_exploration_prob"] = recipe.get("halt_exploration_prob", (saved or {}).get(
            "halt_exploration_prob", config.Arch.halt_exploration_prob))
        recipe["prob_detach_prev_H"] = 1.0
    elif recipe["supervision"] == "deep":
        recipe |= {"prob_detach_prev_H": 1.0, "no_ACT_continue": True, "halt_exploration_prob": 0.0}
    saved = dict(saved or {})
    if seen["mlp_t"] and saved.get("pos_encodings") == "rope":  # which the published MLP-T block does not look at
        saved["pos_encodings"] = "none"
    fields, origins = {}, {}
    for source, values in (("the published recipe", recipe),
                           ("the saved config", {n: v for n, v in saved.items() if n in UNTOLD}),
                           ("an option", {n: v for n, v in given.items() if n in UNTOLD}), ("the weights", seen)):
        fields |= values
        origins |= dict.fromkeys(values, source)
    if "num_heads" not in fields and not fields["mlp_t"]:
        origins["num_heads"] = "the published recipe"
    arch = checked(fields)
    V, N = weights[EMBEDDING].shape[0], weights[TABLE].shape[0] if TABLE in weights else 1
    S, origins["seq_len"] = given.get("seq_len"), "an option"
    if T is not None and S is not None and T - S != prefix_len(arch):  # then the grid is known, and so is the prefix
        arch, origins["puzzle_emb_len"] = checked(fields | {"puzzle_emb_len": T - S}), "an option"
    if S is None:
        S = SEQ_LENS.get(V) if T is None else T - prefix_len(arch)
        origins["seq_len"] = "the published dataset" if T is None else "the weights"
    if S is None or S < 1:
        raise PretrainedError(f"the grid's length is not to be told from these weights (vocabulary {V}, sequence "
                              f"{T or 'unknown'}, prefix {prefix_len(arch)}): give seq_len")
    return Inferred(system, arch, Shape(S, V, N), origins)


def _seen(weights: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    """(system, arch fields that names and shapes show; "core" is the name of its core)."""
    depths = {c: len({n.split(".")[2] for n in weights if n.startswith(f"{c}.layers.")}) for c in CORE_NAMES}
    core = next((c for c, depth in depths.items() if depth), None)
    block = f"{core}.layers.0."
    if core is None or EMBEDDING not in weights or block + BLOCK_WEIGHTS["mlp", "down"] not in weights:
        raise PretrainedError("these are not weights of HRM, TRM or RSM: they need "
                              f"{EMBEDDING} and {' or '.join(f'{c}.layers.0' for c in CORE_NAMES)}.*; there are "
                              f"{', '.join(sorted(weights)[:5]) or 'none'} ...")
    system = {"core": "RSM", "L_level": "HRM" if depths[H_CORE_NAME] else "TRM", "H_level": "direct"}[core]
    if f"{core}.alpha_1_param" in weights:
        system = "FPRM"
    elif system == "TRM" and not {"H_init", "L_init"} & set(weights):  # every start is drawn
        system = "EqR"
    D = weights[EMBEDDING].shape[1]
    mlp_t = block + BLOCK_WEIGHTS["mixer", "gate_up"] in weights
    seen = {
        "core": core, "recursion": "y_z", "hidden_size": D, "mlp_t": mlp_t, "L_layers": depths[core],
        "H_layers": depths[H_CORE_NAME] if system == "HRM" else 0,
        "mlp_hidden_size": _hidden(weights[block + BLOCK_WEIGHTS["mlp", "down"]]),
        "tie_head": HEAD not in weights or np.array_equal(weights[HEAD], weights[EMBEDDING]),
        "halting_head": "q_head.weight" in weights,
        "puzzle_emb_ndim": weights[TABLE].shape[1] if TABLE in weights else 0,
    }
    if mlp_t:
        seen["mixer_hidden_size"] = _hidden(weights[block + BLOCK_WEIGHTS["mixer", "down"]])
    if "embed_pos.embedding_weight" in weights:
        seen["pos_encodings"] = "learned"
    if multi := sum(re.fullmatch(r"L\d+_init", name) is not None for name in weights):
        seen |= {"recursion": "multi_z", "L_cycles": multi}
    elif system == "direct":
        seen |= {"recursion": "direct", "L_cycles": 0}
    elif system == "FPRM":
        kernel = weights.get(f"{core}.conv.weight")
        conv = "none" if kernel is None else "grid3" if kernel.ndim == 4 else "causal4"
        seen |= {"recursion": "direct", "L_cycles": 0, "block": "pre_norm", "conv": conv,
                 "output_norm": conv == "causal4"}  # as in their Maze recipe
    elif system == "EqR":
        pass
    elif "H_init" not in weights:
        seen["recursion"] = "single_z"
    return system, seen


def _hidden(down: np.ndarray) -> int:
    """A SwiGLU's hidden size as a config has it: 0 where it is what the published expansion makes."""
    width, hidden = down.shape
    return 0 if hidden == swiglu_hidden(width, config.Arch().expansion) else hidden


def checked(fields: Mapping[str, Any]) -> config.Arch:
    """Raises ConfigError where the fields are unknown or contradict each other."""
    return config.parse({"arch": dict(fields)}).arch


def _saved(path: str | os.PathLike[str], extras: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the published program saved: in the file (RSM), or as all_config.yaml beside it."""
    beside = Path(path).parent / "all_config.yaml"
    saved = extras.get("config")
    if saved is None and beside.is_file():
        try:
            saved = yaml.safe_load(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise PretrainedError(f"{beside} cannot be read: {torch_files.one_line(error)[:200]}") from error
    return saved if isinstance(saved, Mapping) else {}


def saved_training(path: str | os.PathLike[str], extras: Mapping[str, Any]) -> dict[str, Any]:
    """How these weights were trained, as far as the published program saved it: dotted name -> value."""
    saved = _saved(path, extras)
    arch = saved.get("arch")
    loss = arch.get("loss") if isinstance(arch, Mapping) else None
    told = {name: saved[name] for name in (*TRAINING, "seed") if saved.get(name) is not None}
    if isinstance(loss, Mapping) and "loss_type" in loss:
        told["arch.loss.loss_type"] = loss["loss_type"]
    return told


def saved_config(path: str | os.PathLike[str], extras: Mapping[str, Any]) -> dict[str, Any]:
    """The `arch` section that the published program saved."""
    arch = _saved(path, extras).get("arch")
    arch = {"puzzle_emb_len": 0, **arch} if isinstance(arch, Mapping) else {}  # the published meaning of its absence
    grown = {f"{c}_cycles": extras[f"active_{c}"] for c in "HL" if f"active_{c}" in extras}  # RSM's curriculum
    return {**arch, **grown}


def guessed(found: Inferred) -> list[str]:
    """Fields that change every answer and that nothing tells: they are taken from the published recipe."""
    names = [name for name in GUESSES.get(found.arch.recursion, ("num_heads",))
             if found.origins.get(name) == "the published recipe" and not (name == "num_heads" and found.arch.mlp_t)]
    return names if found.system != "FPRM" else [name for name in names if name == "num_heads"]


def describe(found: Inferred) -> str:
    """What a file was taken for, by where that is known from."""
    lines = []
    for origin in dict.fromkeys(found.origins.values()):
        values = {name: getattr(found.arch, name, None) if name != "seq_len" else found.shape.seq_len
                  for name, source in found.origins.items() if source == origin}
        lines.append(f"  {origin + ':':<22}" + ", ".join(f"{name} {value}" for name, value in values.items()))
    return "\n".join(lines)
