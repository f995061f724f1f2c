"""Published weights <-> our parameters: names and layouts of the PyTorch code of HRM, TRM and RSM.

    python -m trm_jax.models.pretrained show FILE                                what is in it, and what it is taken for
    python -m trm_jax.models.pretrained import FILE --out trm.safetensors        for trm_jax.solve --weights
    python -m trm_jax.models.pretrained import FILE --out trm.safetensors --config experiments/trm_mlp_sudoku.py
    python -m trm_jax.models.pretrained export RUN_OR_WEIGHTS --out step_1000    for the published code

FILE is what those projects save: a state dict, or RSM's dict around one; .safetensors as well. Weights do not tell
everything: the number of heads, H_cycles and L_cycles and some more come from the options here, else from the
config that was saved in the file or lies beside it (all_config.yaml), else from the published Sudoku recipe; `show`
says which. With --config all of it is the experiment's, and trm_jax.main --mode=evaluate --weights takes the result.

PyTorch keeps linear weights as [out, in]; ours are [in, out].
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from trm_jax import config, distributed, puzzles
from trm_jax.errors import UserError, guarded
from trm_jax.models import torch_files
from trm_jax.models.network import Model, Shape
from trm_jax.recursion import RECURSIONS

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
EMBEDDING, HEAD, TABLE = "embed_tokens.embedding_weight", "lm_head.weight", "puzzle_emb.weights"
WRAPPERS = ("_orig_mod.", "module.", "model.", "inner.")  # compiled and distributed modules, loss heads, ACT


class PretrainedError(UserError):
    """Weights that do not fit; the message lists every name on both sides."""


def published_names(arch: config.Arch, core: str = "core") -> dict[tuple[str, ...], tuple[str, bool]]:
    """Path of every trained parameter -> (published name, stored transposed)."""
    names = {("embed_tokens",): (EMBEDDING, False)}
    if arch.pos_encodings == "learned":
        names["embed_pos",] = ("embed_pos.embedding_weight", False)
    if not arch.tie_head:
        names["lm_head",] = (HEAD, True)
    if arch.halting_head:
        names["q_head",] = ("q_head.weight", True)
        names["q_head_bias",] = ("q_head.bias", False)
    kinds = ("gate_up", "down") if arch.mlp_t else ("qkv", "out")
    for ours, theirs, count in (("layers", core, arch.L_layers), ("H_layers", H_CORE_NAME, arch.H_layers)):
        for i in range(count):
            for part, kind in [("mixer", k) for k in kinds] + [("mlp", "gate_up"), ("mlp", "down")]:
                names[f"{ours}_{i}", part, kind] = (f"{theirs}.layers.{i}.{BLOCK_WEIGHTS[part, kind]}", True)
    return names


def core_name(arch: config.Arch) -> str:
    """Under which of CORE_NAMES the published code of this system keeps its core."""
    if arch.recursion == "direct":
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
    starts = jax.tree.leaves(RECURSIONS[arch.recursion].starts(arch.L_cycles))
    wanted: dict[str, tuple[int, ...] | None] = dict.fromkeys((*(name for name, _ in names.values()), *starts))
    if arch.puzzle_emb_ndim:
        wanted[TABLE] = None
    if shape is not None:
        hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),  # without memory
                              jax.eval_shape(Model(arch, shape).init, jax.random.key(0)))
        wanted |= {name: w.shape for name, w in state_dict(*hollow, arch, core).items() if name in wanted}
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

    The starts are in the module's dtype where that loses nothing, as the published code has them.
    """
    out = to_published(params, arch, core or core_name(arch))
    if arch.tie_head:
        out[HEAD] = out[EMBEDDING]
    for name in jax.tree.leaves(RECURSIONS[arch.recursion].starts(arch.L_cycles)):
        out[name] = np.asarray(fixed[name])
        narrow = out[name].astype(arch.forward_dtype)
        if np.array_equal(narrow.astype(np.float32), out[name]):
            out[name] = narrow
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


# The command. It stands above the whole library, so what it needs of the upper floors is imported where it is used.


def load(path: str | os.PathLike, experiment: config.Experiment | None = None, **given: Any):
    """(weights.Export, Inferred) of a published file.

    Args:
      experiment: whose weights they are. None: one that is inferred, fit for answering puzzles.
      given: fields of UNTOLD; seq_len; puzzle.

    Raises PretrainedError, FileError, ConfigError or PuzzleError.
    """
    from trm_jax import weights as ours
    from trm_jax.models import recognise
    contents = torch_files.read(path)
    if ours.KEY in contents.extras:
        raise PretrainedError(f"{path} is a file of trm_jax.weights already")
    puzzle = given.pop("puzzle", None)
    saved = recognise.saved_config(path, contents.extras) or None
    if experiment is None:
        found = recognise.infer(contents.weights, given, saved)
        domain = _domain(found.shape, puzzle)
        experiment = config.parse({"arch": dataclasses.asdict(found.arch), "data": {"puzzle": domain.name}})
        L = found.arch.L_cycles
    else:
        seq_len, raw = given.pop("seq_len", None), config.to_json(experiment)
        raw["arch"] |= {name: value for name, value in given.items() if value is not None}
        experiment = config.parse(raw)
        domain = _configured_domain(experiment, seq_len)
        bare = strip_prefixes(contents.weights)
        rows = bare[TABLE].shape[0] if TABLE in bare else 1
        found = recognise.Inferred("the experiment", experiment.arch, Shape(domain.seq_len, domain.vocab_size, rows),
                                   dict.fromkeys(raw["arch"], "the experiment"))
        L = contents.extras.get("active_L", experiment.arch.L_cycles + sum(experiment.curriculum_L_to_add))
    made = from_published(contents.weights, found.arch, found.shape)
    named = re.search(r"step_(\d+)", Path(path).name)
    step = int(contents.extras.get("step", named[1] if named else 0))
    return ours.Export(experiment, found.shape, ours.puzzle_of(domain), ours.Weights(*made), {
        "parameters": "published", "step": step, "total_steps": max(1, step, experiment.total_steps), "L": int(L),
        "evaluation": None, "dtype": "float32", "versions": distributed.versions(),
        "source": {"file": os.fspath(path), "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}}), found


def _domain(shape: Shape, puzzle: str | None) -> puzzles.Domain:
    """The one domain with grids and a vocabulary like these."""
    fits = {}
    for name in ("sudoku", "maze") if puzzle is None else (puzzle,):
        try:
            domain = puzzles.get(name, seq_len=shape.seq_len)
        except puzzles.PuzzleError:
            if puzzle is not None:
                raise
            continue
        if domain.vocab_size == shape.vocab_size:
            fits[name] = domain
    if len(fits) != 1:
        raise PretrainedError(f"{' and '.join(fits) or 'no puzzle here'} {'have' if fits else 'has'} grids of "
                              f"{shape.seq_len} cells and a vocabulary of {shape.vocab_size}: give puzzle"
                              f"{'' if fits else ', seq_len or puzzle_emb_len'}")
    return next(iter(fits.values()))


def _configured_domain(experiment: config.Experiment, seq_len: int | None) -> puzzles.Domain:
    """Of an experiment's dataset; while that is not there, of a grid of the published size."""
    from trm_jax.data import store
    from trm_jax.describe import PUBLISHED
    from trm_jax.state import Data
    if seq_len is None:
        try:
            return Data.load(experiment).domain
        except store.DatasetError:
            seq_len = PUBLISHED[experiment.data.puzzle][0].seq_len
    return puzzles.get(experiment.data.puzzle, seq_len=seq_len)


def show(path: str | os.PathLike, given: Mapping[str, Any]) -> str:
    from trm_jax.models import recognise
    contents = torch_files.read(path)
    bare = strip_prefixes(contents.weights)
    prefixes = {split_prefix(name)[0] for name in contents.weights}
    lines = [f"{path}: {len(bare)} tensors under {' and '.join(map(repr, sorted(prefixes)))}"]
    lines += [f"  {name:<44} {value.dtype}{list(value.shape)}" for name, value in bare.items()]
    plain = {name: value for name, value in contents.extras.items() if isinstance(value, (int, float, str))}
    if plain:
        lines.append("saved with it: " + ", ".join(f"{name} {value}" for name, value in plain.items()))
    found = recognise.infer(contents.weights, given, recognise.saved_config(path, contents.extras) or None)
    count = Model(found.arch, found.shape).parameter_count()
    lines.append(f"taken for {found.system}, {count:,} parameters; S {found.shape.seq_len}, "
                 f"V {found.shape.vocab_size}, {found.shape.num_puzzle_identifiers:,} puzzle identifiers")
    return "\n".join([*lines, recognise.describe(found)])


def _import(args) -> str:
    from trm_jax import weights as ours
    from trm_jax.models import recognise
    experiment = None
    if args.config:
        experiment = config.parse(config.from_file(args.config))
    given = {name: getattr(args, name) for name in (*OPTIONS, "puzzle")}
    export, found = load(args.file, experiment, **given)
    ours.save(args.out, export, args.dtype)
    lines = [f"{args.out}: {export.model.parameter_count():,} parameters in {args.dtype}, L {export.metadata['L']}"]
    if not args.config:
        lines += [recognise.describe(found),
                  "  for python -m trm_jax.solve --weights; to evaluate it on a dataset, import it with --config"]
    return "\n".join(lines)


def _export(args) -> str:
    from trm_jax import weights as ours
    export = ours.read(args.source)
    arch, m = export.experiment.arch, export.metadata
    prefix = prefix_of(arch) if args.prefix is None else args.prefix
    made = state_dict(*export.weights, arch, prefix=prefix)
    extras = {"step": m["step"], "active_L": m["L"], "config": {"arch": config.to_json(export.experiment)["arch"]}}
    plain = core_name(arch) != "core" and not args.out.endswith(".safetensors")  # HRM and TRM save nothing beside it
    torch_files.write(args.out, made, None if plain else extras)
    lines = [f"{args.out}: {len(made)} tensors under {prefix!r}, as the published code names them"]
    if other := deviations(arch):
        lines.append(f"  but not of a network that it has, it would refuse or misread it: {', '.join(other)}")
    return "\n".join(lines)


OPTIONS = {"num_heads": int, "H_cycles": int, "L_cycles": int, "puzzle_emb_len": int, "seq_len": int,
           "pos_encodings": str, "mixer_norm_axis": str, "forward_dtype": str}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trm_jax.models.pretrained", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    reads = commands.add_parser("import", help="published weights into a file of trm_jax.weights")
    shows = commands.add_parser("show", help="what is in a file, and what it is taken for")
    writes = commands.add_parser("export", help="a run or a weights file under the published names")
    for command in (reads, shows):
        command.add_argument("file", help="as the published code saves it, or .safetensors")
        for name, kind in OPTIONS.items():
            command.add_argument(f"--{name}", type=kind, help="where the file does not tell"
                                 + (" (8 in everything published)" if name == "num_heads" else ""))
    reads.add_argument("--config", help="the experiment whose weights they are, e.g. experiments/trm_mlp_sudoku.py")
    reads.add_argument("--puzzle", help="sudoku or maze, where grid and vocabulary do not tell")
    reads.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the stored tensors")
    writes.add_argument("source", help="folder of a run, or a file of trm_jax.weights")
    writes.add_argument("--prefix", help="in front of every name; by default what the published training writes")
    for command in (reads, writes):
        command.add_argument("--out", required=True, help="file to write; for export, .safetensors or PyTorch's own")
    args = parser.parse_args(argv)
    return guarded(lambda: print(_do(args)))


def _do(args: argparse.Namespace) -> str:
    if args.what == "show":
        return show(args.file, {name: getattr(args, name) for name in OPTIONS})
    return _import(args) if args.what == "import" else _export(args)


if __name__ == "__main__":
    sys.exit(main())
