"""Published weights <-> our parameters: names and layouts of the PyTorch code of HRM, TRM and RSM.

PyTorch keeps linear weights as [out, in]; ours are [in, out].
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from trm_jax import config
from trm_jax.recursion import RECURSIONS

# Names under which the published modules keep their one core or f_L, in the order in which they are looked for.
CORE_NAMES = ("core", "L_level")
H_CORE_NAME = "H_level"
BLOCK_WEIGHTS = {
    ("mixer", "gate_up"): "mlp_t.gate_up_proj.weight",
    ("mixer", "down"): "mlp_t.down_proj.weight",
    ("mixer", "qkv"): "self_attn.qkv_proj.weight",
    ("mixer", "out"): "self_attn.o_proj.weight",
    ("mlp", "gate_up"): "mlp.gate_up_proj.weight",
    ("mlp", "down"): "mlp.down_proj.weight",
}


class PretrainedError(ValueError):
    """Weights that do not fit; the message lists every name on both sides."""


def published_names(arch: config.Arch, core: str = "core") -> dict[tuple[str, ...], tuple[str, bool]]:
    """Path of every trained parameter -> (published name, stored transposed)."""
    names = {("embed_tokens",): ("embed_tokens.embedding_weight", False)}
    if arch.pos_encodings == "learned":
        names["embed_pos",] = ("embed_pos.embedding_weight", False)
    if not arch.tie_head:
        names["lm_head",] = ("lm_head.weight", True)
    if arch.halting_head:
        names["q_head",] = ("q_head.weight", True)
        names["q_head_bias",] = ("q_head.bias", False)
    kinds = ("gate_up", "down") if arch.mlp_t else ("qkv", "out")
    for ours, theirs, count in (("layers", core, arch.L_layers), ("H_layers", H_CORE_NAME, arch.H_layers)):
        for i in range(count):
            for part, kind in [("mixer", k) for k in kinds] + [("mlp", "gate_up"), ("mlp", "down")]:
                names[f"{ours}_{i}", part, kind] = (f"{theirs}.layers.{i}.{BLOCK_WEIGHTS[part, kind]}", True)
    return names


def strip_prefixes(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops what wrappers put in front of the names: compiled modules, loss heads, inner modules."""
    def bare(name):
        for prefix in ("_orig_mod.", "model.", "inner."):
            name = name.removeprefix(prefix)
        return name
    return {bare(name): value for name, value in weights.items()}


def from_published(weights: Mapping[str, np.ndarray], arch: config.Arch) -> tuple[dict, dict, np.ndarray | None]:
    """Weights under their published names -> (params, fixed, table), as `Model.init` returns them.

    Raises:
      PretrainedError: naming every missing and every unexpected weight.
    """
    weights = strip_prefixes(weights)
    core = next((c for c in CORE_NAMES if any(n.startswith(f"{c}.layers.") for n in weights)), CORE_NAMES[0])
    names = published_names(arch, core)
    starts = jax.tree.leaves(RECURSIONS[arch.recursion].starts(arch.L_cycles))
    wanted = {name for name, _ in names.values()} | {*starts}
    if arch.puzzle_emb_ndim:
        wanted.add("puzzle_emb.weights")
    tied_copy = {"lm_head.weight"} if arch.tie_head else set()  # PyTorch saves a tied head a second time
    missing, extra = sorted(wanted - set(weights)), sorted(set(weights) - wanted - tied_copy)
    if missing or extra:
        raise PretrainedError(f"weights do not fit the config: missing {missing or 'none'}; "
                              f"unexpected {extra or 'none'}")
    params: dict = {}
    for path, (name, transposed) in names.items():
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = np.ascontiguousarray(weights[name].T if transposed else weights[name])
    fixed = {name: np.asarray(weights[name]) for name in starts}
    return params, fixed, weights.get("puzzle_emb.weights")


def to_published(params: Mapping, arch: config.Arch, core: str = "core") -> dict[str, np.ndarray]:
    """Trained parameters (or their gradients) under their published names and in PyTorch's layout."""
    out = {}
    for path, (name, transposed) in published_names(arch, core).items():
        value = params
        for part in path:
            value = value[part]
        out[name] = np.asarray(value).T if transposed else np.asarray(value)
    return out
