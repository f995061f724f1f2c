"""What a run has learned, in one safetensors file: parameters, config and puzzle domain, for use without the run.

    python -m trm_jax weights --workdir=runs/quick --out=quick.safetensors

The tensors are named params/..., fixed/H_init, fixed/L_init and table; for ARC there are the identifiers too, the names
of the table's rows. The file's header holds, as JSON under "trm_jax", where they come from (`Export.metadata`), and the
SHA-256 of every tensor; its own is under "trm_jax.sha256". What does not match is refused, and so is a header whose
sizes are not those of the tensors, before anything is built. Files of format 1 have no checksums. Reading never
executes anything from the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from trm_jax import config, puzzles
from trm_jax.data.shape import SIZES, Shape
from trm_jax.models.network import Bound, Model, Weights, vocabularies
from trm_jax.runtime import distributed
from trm_jax.runtime.errors import UserError
from trm_jax.runtime.files import write_file
from trm_jax.training import run_folder
from trm_jax.weights import hub

FORMAT = 2  # 1: the same without checksums
MOST_CYCLES, MOST_PREFIX = 1024, 4096  # inner cycles, H_cycles and prefix positions that a header may ask for
TRAINED = Path(__file__).parent / "trained"  # the files that come with this package, by name
DEFAULT = "rsm-sudoku"
KEY = "trm_jax"
KEY_DIGEST = "trm_jax.sha256"
NAMES = "identifiers"  # the tensor that holds them, uint8, a line each
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
_TENSOR_DTYPES = {"BF16": "bfloat16", "F32": "float32"}


class WeightsError(UserError):
    """A weights file that cannot be written, read or used; the message says why."""


class Export(NamedTuple):
    """Weights and all that is needed to answer puzzles with them."""

    experiment: config.Experiment
    shape: Shape
    puzzle: dict[str, Any]  # arguments of puzzles.get: name and options
    weights: Weights  # float32, however they are stored
    metadata: dict[str, Any]  # step, total_steps, L (of that step), parameters, evaluation, dtype, versions
    identifiers: list[str] | None = None  # ARC: the names of the puzzle table's rows

    @property
    def domain(self) -> puzzles.Domain:
        return puzzles.get(**self.puzzle)

    @property
    def model(self) -> Model:
        return Model(self.experiment.arch, self.shape)

    @property
    def bound(self) -> Bound:
        return self.model.bind(self.weights, self.metadata["L"])


def from_run(workdir: str | os.PathLike[str]) -> Export:
    """The best checkpoint of a run (else its last one), with the evaluation of that step if there is one.

    Its dataset need not be there. Raises CheckpointError.
    """
    run = run_folder.open_run(workdir)
    weights, step = run.weights(distributed.data_mesh(jax.local_devices()[:1]))
    return Export(run.experiment, run.shape, run.puzzle, weights, {
        "parameters": "EMA" if run.experiment.ema else "last",
        "step": step, "total_steps": run.total_steps, "L": run.L(step), "evaluation": run.evaluation(step),
        "dtype": "float32", "versions": distributed.versions()}, run.identifiers)


def named() -> list[str]:
    """Names of the weights that come with this package."""
    return sorted(file.stem for file in TRAINED.glob("*.safetensors"))


def read(source: str | os.PathLike[str]) -> Export:
    """From what `locate` finds. Raises WeightsError, HubError or CheckpointError."""
    place = locate(source)
    return from_run(place) if place.is_dir() else load(place)


def locate(source: str | os.PathLike[str]) -> Path:
    """A file of weights, or a run's folder, of all that --weights takes: one of these; a folder that was pulled from
    the hub; a model on the hub, as hf://OWNER/NAME, which is downloaded; one of `named` (where nothing else is called
    so).

    Raises WeightsError or HubError.
    """
    if os.fspath(source).startswith(hub.PREFIX):
        return hub.download(os.fspath(source))
    if (Path(source) / hub.MODEL).is_file():
        return Path(source) / hub.MODEL
    if Path(source).exists():
        return Path(source)
    if os.fspath(source) in named():
        return TRAINED / f"{os.fspath(source)}.safetensors"
    raise WeightsError(f"there is no run, file or trained network called {source}; trained: {', '.join(named())}; "
                       "hf://OWNER/NAME is a model on the Hugging Face hub")


def puzzle_in(name: str) -> dict[str, Any]:
    """The puzzle that weights which come with this package are for: what `puzzles.get` takes."""
    path = TRAINED / f"{name}.safetensors"
    with safe_open(path, framework="numpy") as file:
        return _header(path, file.metadata())["puzzle"]


def save(path: str | os.PathLike[str], export: Export, dtype: str = "bfloat16") -> None:
    """Writes the file beside its place and renames it there: it is there whole or not at all."""
    if dtype not in DTYPES:
        raise WeightsError(f"dtype = {dtype!r}: must be one of {', '.join(DTYPES)}")
    tensors = {name: np.ascontiguousarray(np.asarray(leaf).astype(DTYPES[dtype]))
               for name, leaf in by_name(export.weights).items()}
    if export.identifiers is not None:
        tensors[NAMES] = np.frombuffer("\n".join(export.identifiers).encode(), np.uint8)
    if broken := sorted(name for name, t in tensors.items() if name != NAMES and not _finite(t)):
        raise WeightsError(f"{path} was not written: {', '.join(broken)} holds what is no finite number; the run has "
                           "gone wrong, take an earlier checkpoint")
    header = {"format": FORMAT, "config": config.to_json(export.experiment), "shape": export.shape.sizes,
              "puzzle": export.puzzle, **export.metadata, "dtype": dtype,
              "sha256": {name: _digest(tensor) for name, tensor in tensors.items()}}
    text = json.dumps(header)
    content = safetensors.numpy.save(tensors, {KEY: text, KEY_DIGEST: _digest(text)})
    try:
        write_file(path, content)
    except OSError as error:
        raise WeightsError(f"{path} was not written: {error.strerror or error}") from error


def load(path: str | os.PathLike[str]) -> Export:
    """Reads a file of `save`; neither the run nor its dataset need be there. Raises WeightsError."""
    try:
        if not Path(path).is_file():
            raise WeightsError(f"there is no file {path}")
        with safe_open(path, framework="numpy") as file:
            header = _header(path, file.metadata())
            experiment, shape = _experiment(path, header)
            _check_sizes(path, header["L"], experiment.arch, shape,
                         {name: list(file.get_slice(name).get_shape()) for name in file.keys()})
            wanted = by_name(Weights(*jax.eval_shape(Model(experiment.arch, shape).init, jax.random.key(0))))
            _compare(path, {name: file.get_slice(name) for name in file.keys() if name != NAMES}, wanted)
            identifiers = _identifiers(path, file, header["puzzle"], shape)
            arrays = {}
            for name in (*wanted, *([NAMES] if identifiers is not None else [])):
                tensor = file.get_tensor(name)
                if header["format"] > 1 and _digest(tensor) != header["sha256"].get(name):
                    raise WeightsError(f"{path} is damaged: {name} is not what was written (its SHA-256 differs)")
                if name in wanted:
                    if not _finite(tensor):
                        raise WeightsError(f"{path}: {name} holds what is no finite number")
                    arrays[name] = jnp.asarray(tensor.astype(np.float32))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file: {_line(error)}") from error
    metadata = {k: v for k, v in header.items() if k not in ("format", "config", "shape", "puzzle", "sha256")}
    return Export(experiment, shape, header["puzzle"], _nested(arrays), metadata, identifiers)


def by_name(weights: Weights) -> dict[str, Any]:
    """{'params/layers_0/...': leaf, 'fixed/H_init': leaf, 'table': leaf}."""
    def name(path) -> str:
        return "/".join(str(getattr(key, "name", getattr(key, "key", None))) for key in path)
    return {name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]}


def _nested(arrays: Mapping[str, jax.Array]) -> Weights:
    tree: dict[str, Any] = {}
    for name, leaf in arrays.items():
        *folders, last = name.split("/")
        functools.reduce(lambda node, folder: node.setdefault(folder, {}), folders, tree)[last] = leaf
    return Weights(tree["params"], tree["fixed"], tree.get("table"))


def _header(path, raw: Mapping[str, str] | None) -> dict[str, Any]:
    """The header's JSON, with the fields that are needed in their types."""
    if raw is None or KEY not in raw:
        raise WeightsError(f"{path} is a safetensors file, but not one of trm_jax.weights: no {KEY!r} in its header")
    if KEY_DIGEST in raw and raw[KEY_DIGEST] != _digest(raw[KEY]):
        raise WeightsError(f"{path} is damaged: its header is not what was written (its SHA-256 differs)")
    try:
        header = json.loads(raw[KEY])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its header is not JSON ({_line(error)})") from error
    made = header.get("format") if isinstance(header, dict) else None
    if made not in (1, FORMAT) or type(made) is not int:
        raise WeightsError(f"{path} has format {made!r:.40}; this version reads formats 1 and {FORMAT}")
    if made > 1 and not (KEY_DIGEST in raw and isinstance(header.get("sha256"), dict)):
        raise WeightsError(f"{path} is damaged: it has lost its checksums")
    for name, kind in (("config", dict), ("shape", dict), ("puzzle", dict), ("step", int), ("total_steps", int),
                       ("L", int), ("parameters", str), ("dtype", str)):
        if not isinstance(header.get(name), kind):
            raise WeightsError(f"{path}: {name} in its header is {header.get(name)!r:.40}, must be of type "
                               f"{kind.__name__}")
    if sorted(header["shape"]) != sorted(SIZES) or not all(
            type(n) is int and n > 0 for n in header["shape"].values()):
        raise WeightsError(f"{path}: shape in its header is {header['shape']!r:.80}, must give {', '.join(SIZES)}")
    return header


def _experiment(path, header: dict[str, Any]) -> tuple[config.Experiment, Shape]:
    try:
        experiment = config.parse(header["config"])
        domain = puzzles.get(**header["puzzle"])
    except (config.ConfigError, puzzles.PuzzleError, TypeError) as error:
        raise WeightsError(f"{path}: its header does not fit this version: {_line(error)}") from error
    shape = header["shape"]
    if (domain.seq_len, domain.vocab_size) != (shape["seq_len"], shape["vocab_size"]):
        raise WeightsError(f"{path}: puzzle {header['puzzle']} and shape {shape} in its header contradict each other")
    return experiment, Shape(**shape, units=domain.units)


def _check_sizes(path, L: int, arch: config.Arch, shape: Shape, tensors: Mapping[str, list[int]]) -> None:
    """Refuses a header that asks for more than the tensors are, before a model is built from it."""
    def blocks(kind: str) -> int:
        return len({name.split("/")[1] for name in tensors if name.startswith(f"params/{kind}_")})
    for what, asked, there in (
            ("arch.L_layers", arch.L_layers, blocks("layers")), ("arch.H_layers", arch.H_layers, blocks("H_layers")),
            ("vocabulary and arch.hidden_size", [vocabularies(arch, shape)[0], arch.hidden_size],
             tensors.get("params/embed_tokens", []))):
        if asked != there:
            raise WeightsError(f"{path}: {what} in its header is {asked}, but its tensors are those of {there}")
    low = 0 if arch.recursion == "direct" else 1
    for what, value, least, most in (("L", L, low, MOST_CYCLES), ("arch.L_cycles", arch.L_cycles, low, MOST_CYCLES),
                                     ("arch.H_cycles", arch.H_cycles, 1, MOST_CYCLES),
                                     ("arch.puzzle_emb_len", arch.puzzle_emb_len, 0, MOST_PREFIX)):
        if not least <= value <= most:
            raise WeightsError(f"{path}: {what} in its header is {value}, must be {least} to {most}")


def _digest(of: str | np.ndarray) -> str:
    return hashlib.sha256(of.encode() if isinstance(of, str) else np.ascontiguousarray(of).tobytes()).hexdigest()


def _finite(tensor: np.ndarray) -> bool:
    return bool(np.isfinite(tensor.astype(np.float32)).all())


def _compare(path, tensors: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises with every tensor that is only on one side, or has another shape or a dtype that is not ours."""
    there = {name: (_TENSOR_DTYPES.get(t.get_dtype(), t.get_dtype()), list(t.get_shape()))
             for name, t in tensors.items()}
    here = {name: list(leaf.shape) for name, leaf in wanted.items()}
    faults = [f"only in the file: {name} {dtype}{shape}" for name, (dtype, shape) in there.items() if name not in here]
    faults += [f"only in the model: {name} {shape}" for name, shape in here.items() if name not in there]
    faults += [f"differs: {name} is {dtype}{shape} in the file, {here[name]} in the model"
               for name, (dtype, shape) in there.items()
               if name in here and (shape != here[name] or dtype not in DTYPES)]
    if faults:
        raise WeightsError(f"{path} does not fit the model of its own config: " + "; ".join(faults))


def _identifiers(path, file, puzzle: dict[str, Any], shape: Shape) -> list[str] | None:
    if not puzzles.get(**puzzle).identifies_tasks:
        return None
    names = file.get_tensor(NAMES).tobytes().decode("utf-8", "replace").split("\n") if NAMES in file.keys() else []
    if len(names) != shape.num_puzzle_identifiers:
        raise WeightsError(f"{path} names {len(names)} of its {shape.num_puzzle_identifiers} puzzle identifiers")
    return names


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
