"""Names and layouts of weights in the PyTorch code of HRM, TRM, RSM, EqR and FPRM, both ways.

PyTorch keeps linear weights as [out, in]; ours are [in, out]."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import ml_dtypes
import numpy as np

from trm_jax import config
from trm_jax.data.shape import Shape
from trm_jax.models.network import Model, fixed_names
from trm_jax.runtime.errors import UserError

# Names under which the published modules keep their one core or f_L, in the order in which they are looked for. The
# baseline for direct prediction has an H_level only.
CORE_NAMES = ("core", "L_level", "H_level")


H_CORE_NAME = "H_level"
BLOCK_WEIGHTS = {
    ("mixer", "gate_up"): "mlp_t.gate_up_proj.weight",
    ("mixer", "down"): "mlp_t.down_proj.weight",
    ("mixer", "qkv"): "self_attn.qkv_proj.weight",
    ("mixer", "out"): "self_attn.o_proj.weight",
    ("mlp", "gate_up"): "mlp.gate_up_proj.weight",
    ("mlp", "down"): "mlp.down_proj.weight",
}
CORE_WEIGHTS = {("scales", "alpha_1"): "alpha_1_param", ("scales", "alpha_2"): "alpha_2_param",
                ("conv", "kernel"): "conv.weight"}  # FPRM; a gate's names are ours, its code is not published
EMBEDDING, HEAD, TABLE = "embed_tokens.embedding_weight", "lm_head.weight", "puzzle_emb.weights"
WRAPPERS = ("_orig_mod.", "module.", "model.", "inner.")  # compiled and distributed modules, loss heads, ACT


class PretrainedError(UserError):
    """Weights that do not fit; the message lists every name on both sides."""


def published_names(arch: config.Arch, core: str = "core") -> dict[tuple[str, ...], tuple[str, bool]]:
    """Path of every trained parameter -> (published name, stored transposed)."""
    names: dict[tuple[str, ...], tuple[str, bool]] = {("embed_tokens",): (EMBEDDING, False)}
    if arch.pos_encodings == "learned":
        names["embed_pos",] = ("embed_pos.embedding_weight", False)
    if not arch.tie_head:
        names["lm_head",] = (HEAD, True)
    if arch.halting_head:
        names["q_head",] = ("q_head.weight", True)
        names["q_head_bias",] = ("q_head.bias", False)
    kinds = ("gate_up", "down") if arch.mlp_t else ("qkv", "out")
    for ours, theirs, count in (("layers", core, arch.L_layers), ("H_layers", H_CORE_NAME, arch.H_layers)):
        of_core = {"scales": ("alpha_1", "alpha_2"), "conv": ("kernel",), "gate": ("q", "decay")}
        for part in [p for p, used in (("scales", arch.block == "pre_norm"), ("conv", arch.conv != "none"),
                                       ("gate", arch.update == "gate")) if used and count]:
            for kind in of_core[part]:
                path = ("H_" * (ours == "H_layers") + part, kind)
                names[path] = (f"{theirs}.{CORE_WEIGHTS.get((part, kind), f'{part}.{kind}')}", part == "conv")
        for i in range(count):
            for part, kind in [("mixer", k) for k in kinds] + [("mlp", "gate_up"), ("mlp", "down")]:
                names[f"{ours}_{i}", part, kind] = (f"{theirs}.layers.{i}.{BLOCK_WEIGHTS[part, kind]}", True)
    return names


def core_name(arch: config.Arch) -> str:
    """Under which of CORE_NAMES the published code of this system keeps its core."""
    if arch.recursion == "direct" and arch.block == "post_norm":
        return "H_level"
    return "core" if arch.supervision == "terminal" else "L_level"


def prefix_of(arch: config.Arch) -> str:
    """What the wrappers of the published training program put in front of the names; RSM's is not compiled."""
    return "model." if core_name(arch) == "core" else "_orig_mod.model.inner."


def published_norm_axis(rsm: bool) -> str:
    """Over which axis the published MLP-T block takes its first norm."""
    return "feature" if rsm else "token"


def deviations(arch: config.Arch) -> list[str]:
    """Fields in which a network is not one of the published code's: that would refuse it, or compute something else."""
    rsm = core_name(arch) == "core"
    published = {"mlp_hidden_size": 0, "mixer_hidden_size": 0, "mlp_norm_axis": "feature", "tie_head": rsm,
                 "halting_head": not rsm}
    if arch.block == "pre_norm":
        published |= {"start": "random", "update": "solver", "halt_by": "residual", "recursion": "direct"}
    elif arch.start == "random":
        published |= {"update": "damped", "conv": "none", "halt_by": "head"}
    else:
        published |= {"update": "replace", "update_noise_test": 0.0, "conv": "none", "halt_by": "head"}
    if arch.mlp_t:
        published["mixer_norm_axis"] = published_norm_axis(rsm)
    else:
        published["rope_columns"] = 0
    if rsm:
        published |= {"recursion": "y_z", "H_layers": 0}
    return [f"arch.{name} = {getattr(arch, name)!r}" for name, value in published.items()
            if getattr(arch, name) != value]


def split_prefix(name: str) -> tuple[str, str]:
    """(what wrappers put in front, the module's own name)."""
    bare = name
    while wrapper := next((w for w in WRAPPERS if bare.startswith(w)), ""):
        bare = bare.removeprefix(wrapper)
    return name.removesuffix(bare), bare


def strip_prefixes(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops what wrappers put in front of the names."""
    stripped = {split_prefix(name)[1]: value for name, value in weights.items()}
    if len(stripped) < len(weights):
        raise PretrainedError("the file has weights twice, under several prefixes: "
                              + ", ".join(sorted({split_prefix(name)[0] for name in weights})))
    return stripped


def from_published(weights: Mapping[str, np.ndarray], arch: config.Arch,
                   shape: Shape | None = None) -> tuple[dict, dict, np.ndarray | None]:
    """Weights under their published names -> (params, fixed, table), as `Model.init` returns them.

    Raises:
      PretrainedError: naming every weight that only one side has and, where `shape` is given, everyone of another
        shape or type.
    """
    weights = strip_prefixes(weights)
    core = next((c for c in CORE_NAMES if any(n.startswith(f"{c}.layers.") for n in weights)), core_name(arch))
    names = published_names(arch, core)
    starts = fixed_names(arch)
    wanted: dict[str, tuple[int, ...] | None] = dict.fromkeys((*(name for name, _ in names.values()), *starts))
    if arch.puzzle_emb_ndim:
        wanted[TABLE] = None
    if shape is not None:
        hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),  # without memory
                              jax.eval_shape(Model(arch, shape).init, jax.random.key(0)))
        params, fixed, table = hollow
        wanted |= {name: w.shape for name, w in state_dict(params, fixed, table, arch, core).items() if name in wanted}
    _compare(weights, wanted, tied=arch.tie_head)
    params = {}
    for path, (name, transposed) in names.items():
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = np.ascontiguousarray(_wide(weights[name].T if transposed else weights[name]))
    fixed = {name: _wide(weights[name]) for name in starts}
    return params, fixed, _wide(weights[TABLE]) if TABLE in wanted else None


def to_published(params: Mapping, arch: config.Arch, core: str = "core") -> dict[str, np.ndarray]:
    """Trained parameters (or their gradients) under their published names and in PyTorch's layout."""
    out = {}
    for path, (name, transposed) in published_names(arch, core).items():
        value = params
        for part in path:
            value = value[part]
        out[name] = np.asarray(value).T if transposed else np.asarray(value)
    return out


def state_dict(params: Mapping, fixed: Mapping, table, arch: config.Arch, core: str = "",
               prefix: str = "") -> dict[str, np.ndarray]:
    """All that the published module saves: with the latents' starts, the puzzle table and a tied head's second copy.

    The starts are in the module's dtype, as the published code needs them: its states take theirs from them. Ours are
    rounded to it before they are used, so that nothing changes.
    """
    out = to_published(params, arch, core or core_name(arch))
    if arch.tie_head:
        out[HEAD] = out[EMBEDDING]
    for name in fixed_names(arch):
        out[name] = np.asarray(fixed[name]).astype(arch.forward_dtype)
    if table is not None:
        out[TABLE] = np.asarray(table)
    return {prefix + name: value for name, value in out.items()}


def _wide(value: np.ndarray) -> np.ndarray:
    """16-bit weights in float32, which holds each of them exactly."""
    return value.astype(np.float32) if value.dtype.itemsize < 4 else np.asarray(value)


def _compare(weights: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...] | None], tied: bool) -> None:
    faults = []
    for name in sorted(set(weights) | set(wanted)):
        there = f"{weights[name].dtype}{list(weights[name].shape)}" if name in weights else ""
        want = wanted.get(name)
        if name not in wanted:
            if not (name == HEAD and tied):  # PyTorch saves a tied head a second time
                faults.append(f"only in the file: {name} {there}")
            elif EMBEDDING in weights and not np.array_equal(weights[HEAD], weights[EMBEDDING]):
                faults.append(f"differs: {HEAD} is not the token embedding, but arch.tie_head = True")
        elif not there:
            faults.append(f"only in the model: {name} {list(want) if want else ''}".rstrip())
        elif want is not None and want != weights[name].shape:
            faults.append(f"differs: {name} is {there} in the file, {list(want)} in the model")
        elif weights[name].dtype.kind != "f" and weights[name].dtype != ml_dtypes.bfloat16:
            faults.append(f"differs: {name} is {there} in the file, must be floating-point")
    if faults:
        raise PretrainedError("the weights do not fit the config:\n  " + "\n  ".join(faults))
