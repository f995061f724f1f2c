"""Published weights <-> our parameters: names and layouts of the PyTorch code of HRM, TRM and RSM.

    python -m trm_jax published show FILE                                what is in it, and what it is taken for
    python -m trm_jax published import FILE --out trm.safetensors        for trm_jax.solve --weights
    python -m trm_jax published import FILE --out trm.safetensors --config experiments/trm_mlp_sudoku.py
    python -m trm_jax published export RUN_OR_WEIGHTS --out step_1000    for the published code

FILE is what those projects save: a state dict, or RSM's dict around one; .safetensors as well. Weights do not tell
everything: the number of heads, H_cycles and L_cycles and some more come from the options here, else from the
config that was saved in the file or lies beside it (all_config.yaml), else from the published Sudoku recipe; `show`
says which, and import warns where heads, H_cycles or L_cycles are a guess. With --config all of it is the
experiment's, and what was saved must not contradict it. How the weights were trained is taken from what was saved, else
from the recipe. Any field can be set: --set FIELD=VALUE.

PyTorch keeps linear weights as [out, in]; ours are [in, out].
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trm_jax import config, puzzles
from trm_jax.data.shape import Shape
from trm_jax.models.network import Model, Weights
from trm_jax.runtime import arguments, distributed
from trm_jax.runtime.errors import guarded
from trm_jax.runtime.progress import say
from trm_jax.weights import torch_files
from trm_jax.weights.published_names import (
    TABLE,
    PretrainedError,
    core_name,
    deviations,
    from_published,
    prefix_of,
    split_prefix,
    state_dict,
    strip_prefixes,
)

# The command. It stands above the whole library, so what it needs of the upper floors is imported where it is used.


def load(path: str | os.PathLike[str], experiment: config.Experiment | None = None,
         fields: Mapping[str, Any] | None = None, **given: Any):
    """(weights.Export, Inferred) of a published file.

    Args:
      experiment: whose weights they are. None: one that is inferred, fit for answering puzzles.
      fields: of the config, by dotted names, that are otherwise than all else says.
      given: fields of UNTOLD; seq_len; puzzle; identifiers, the dataset folder (theirs or ours) that names the rows of
        the puzzle table, which ARC's weights are worth nothing without.

    What the config saved beside the file says of the network must be what the experiment says, unless given; what it
    says of training is taken.

    Raises PretrainedError, FileError, ConfigError or PuzzleError.
    """
    from trm_jax.weights import published_systems
    from trm_jax.weights import weights_file as ours
    contents = torch_files.read(path)
    if ours.KEY in contents.extras:
        raise PretrainedError(f"{path} is a file of trm_jax.weights already")
    puzzle, folder = given.pop("puzzle", None), given.pop("identifiers", None)
    fields = dict(fields or {})
    given |= {name: value for name in published_systems.UNTOLD if (value := fields.get(f"arch.{name}")) is not None}
    saved = published_systems.saved_config(path, contents.extras) or None
    training = published_systems.saved_training(path, contents.extras)
    if experiment is None:
        found = published_systems.infer(contents.weights, given, saved)
        domain = _domain(found.shape, puzzle)
        raw = {"arch": dataclasses.asdict(found.arch), "data": {"puzzle": domain.name},
               **published_systems.TRAININGS[found.system]}
        experiment = config.with_fields(raw, training | fields)
        found = found._replace(arch=experiment.arch, origins={
            **found.origins, **{name[5:]: "an option" for name in fields if name.startswith("arch.")}})
        L = found.arch.L_cycles
    else:
        seq_len, raw = given.pop("seq_len", None), config.to_json(experiment)
        given = {name: value for name, value in given.items() if value is not None}
        raw["arch"] |= given
        _require_saved(path, saved or {}, raw["arch"], given)
        experiment = config.with_fields(raw, training | fields)
        domain = _configured_domain(experiment, seq_len)
        bare = strip_prefixes(contents.weights)
        rows = bare[TABLE].shape[0] if TABLE in bare else 1
        found = published_systems.Inferred("the experiment", experiment.arch,
                                   Shape(domain.seq_len, domain.vocab_size, rows),
                                   dict.fromkeys(raw["arch"], "the experiment"))
        L = contents.extras.get("active_L", experiment.arch.L_cycles + sum(experiment.curriculum_L_to_add))
    names = None
    if domain.name == "arc":
        names = _row_names(path, folder, found.shape.num_puzzle_identifiers)
    made = from_published(contents.weights, found.arch, found.shape)
    named = re.search(r"step_(\d+)", Path(path).name)
    step = int(contents.extras.get("step", named[1] if named else 0))
    return ours.Export(experiment, found.shape, puzzles.puzzle_of(domain), Weights(*made), {
        "parameters": "published", "step": step, "total_steps": max(1, step, experiment.total_steps), "L": int(L),
        "evaluation": None, "dtype": "float32", "versions": distributed.versions(),
        "source": {"file": os.fspath(path), "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}}, names
    ), found


def _require_saved(path, saved: Mapping[str, Any], arch: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises where the config that the published program saved says otherwise of the network than the experiment."""
    from trm_jax.weights.published_systems import UNTOLD
    moot = ("pos_encodings", "num_heads") if arch["mlp_t"] else ()  # the published MLP-T block does not look at them
    if not arch["halting_head"]:
        moot += ("halt_max_steps", "no_ACT_continue")
    if arch["supervision"] == "terminal":
        moot += ("H_cycles", "L_cycles")  # they grow
    if arch["block"] == "pre_norm":
        moot += ("H_cycles", "L_cycles", "no_ACT_continue")  # FPRM calls other things so

    def means(name: str, value: Any) -> Any:
        """0 prefix positions: as many as a row of the table fills."""
        return value or -(-arch["puzzle_emb_ndim"] // arch["hidden_size"]) if name == "puzzle_emb_len" else value
    wrong = [f"{name} is {saved[name]!r} there, {arch[name]!r} in the experiment" for name in UNTOLD
             if name in saved and name not in (*given, *moot) and means(name, saved[name]) != means(name, arch[name])]
    if wrong:
        raise PretrainedError(f"the config saved with {path} contradicts --config: {'; '.join(wrong)}; take another "
                              "experiment, or say which is right, e.g. --set arch." + wrong[0].split()[0] + "=...")


def _row_names(path, folder: str | os.PathLike[str] | None, rows: int) -> list[str]:
    """Names of the puzzle table's rows, from the dataset folder that the weights were trained on."""
    from trm_jax.data import dataset
    if folder is None:
        raise PretrainedError(f"{path} does not name the {rows:,} rows of its puzzle table: give the dataset folder "
                              "that it was trained on with --identifiers=FOLDER")
    names = dataset.load_identifiers(folder)
    if len(names) != rows:
        raise PretrainedError(f"{folder} names {len(names):,} puzzle identifiers, the table of {path} has {rows:,} "
                              "rows: it was trained on another dataset")
    return names


def _domain(shape: Shape, puzzle: str | None) -> puzzles.Domain:
    """The one domain with grids and a vocabulary like these."""
    fits = {}
    for name in ("sudoku", "maze", "arc") if puzzle is None else (puzzle,):
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
    from trm_jax.data import dataset
    from trm_jax.data.loading import Dataset
    from trm_jax.data.published import expected
    if seq_len is None:
        try:
            return Dataset.load(experiment).domain
        except dataset.DatasetError:
            seq_len = expected(experiment.data)[0].seq_len
    return puzzles.get(experiment.data.puzzle, seq_len=seq_len)


def show(path: str | os.PathLike[str], given: Mapping[str, Any]) -> str:
    from trm_jax.weights import published_systems
    contents = torch_files.read(path)
    bare = strip_prefixes(contents.weights)
    prefixes = {split_prefix(name)[0] for name in contents.weights}
    lines = [f"{path}: {len(bare)} tensors under {' and '.join(map(repr, sorted(prefixes)))}"]
    lines += [f"  {name:<44} {value.dtype}{list(value.shape)}" for name, value in bare.items()]
    plain = {name: value for name, value in contents.extras.items() if isinstance(value, (int, float, str))}
    if plain:
        lines.append("saved with it: " + ", ".join(f"{name} {value}" for name, value in plain.items()))
    saved = published_systems.saved_config(path, contents.extras) or None
    found = published_systems.infer(contents.weights, given, saved)
    count = Model(found.arch, found.shape).parameter_count()
    lines.append(f"taken for {found.system}, {count:,} parameters; S {found.shape.seq_len}, "
                 f"V {found.shape.vocab_size}, {found.shape.num_puzzle_identifiers:,} puzzle identifiers")
    return "\n".join([*lines, published_systems.describe(found)])


def _import(file: str, out: str, name: str | None, fields: Mapping[str, Any], given: Mapping[str, Any],
            dtype: str) -> str:
    """name: of the experiment whose weights they are; None: one is inferred."""
    from trm_jax.weights import published_systems
    from trm_jax.weights import weights_file as ours
    export, found = load(file, config.load(name) if name else None, fields, **given)
    ours.save(out, export, dtype)
    lines = [f"{out}: {export.model.parameter_count():,} parameters in {dtype}, L {export.metadata['L']}"]
    if not name:
        lines += [published_systems.describe(found), "  for python -m trm_jax solve --weights, and evaluate"]
    if guesses := published_systems.guessed(found):
        say("warning: neither the file nor a config beside it tells "
                        + ", ".join(f"{n} (taken: {getattr(found.arch, n)}, set by --{n})" for n in guesses)
                        + "; the published Sudoku recipe was taken, and with other values every answer is another")
    return "\n".join(lines)


def _export(source: str, out: str, prefix: str | None) -> str:
    from trm_jax.weights import weights_file as ours
    export = ours.read(source)
    arch, m = export.experiment.arch, export.metadata
    prefix = prefix_of(arch) if prefix is None else prefix
    made = state_dict(*export.weights, arch, prefix=prefix)
    extras = {"step": m["step"], "active_L": m["L"], "config": {"arch": config.to_json(export.experiment)["arch"]}}
    plain = core_name(arch) != "core" and not out.endswith(".safetensors")  # HRM and TRM save nothing beside it
    torch_files.write(out, made, None if plain else extras)
    lines = [f"{out}: {len(made)} tensors under {prefix!r}, as the published code names them"]
    if other := deviations(arch):
        lines.append(f"  but not of a network that it has, it would refuse or misread it: {', '.join(other)}")
    return "\n".join(lines)


COUNT = arguments.integer(1, 1 << 20)
OPTIONS = {"num_heads": COUNT, "H_cycles": COUNT, "L_cycles": COUNT, "puzzle_emb_len": arguments.integer(0, 1 << 20),
           "seq_len": COUNT, "pos_encodings": str, "mixer_norm_axis": str, "forward_dtype": str}


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax published", __doc__)
    commands = parser.add_subparsers(dest="what", required=True, parser_class=arguments.Parser)
    reads = commands.add_parser("import", help="published weights into a file of trm_jax weights")
    shows = commands.add_parser("show", help="what is in a file, and what it is taken for")
    writes = commands.add_parser("export", help="a run or a weights file under the published names")
    for command in (reads, shows):
        command.add_argument("file", type=arguments.text, help="as the published code saves it, or .safetensors")
        for name, kind in OPTIONS.items():
            command.add_argument(f"--{name}", type=kind, help="where the file does not tell"
                                 + (" (8 in everything published)" if name == "num_heads" else ""))
    reads.add_argument("--config", type=arguments.text,
                       help="the experiment whose weights they are, e.g. trm_mlp_sudoku")
    reads.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                       help="a field of the config that is otherwise, e.g. arch.rope_theta=500000; repeatable")
    reads.add_argument("--puzzle", help="sudoku, maze or arc, where grid and vocabulary do not tell")
    reads.add_argument("--identifiers", metavar="FOLDER", type=arguments.text, help="ARC: the dataset folder that the "
                       "weights were trained on, theirs or ours; its identifiers.json names the puzzle table's rows")
    reads.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the stored tensors")
    writes.add_argument("source", type=arguments.text, help="folder of a run, a file of trm_jax weights, or a name")
    writes.add_argument("--prefix", help="in front of every name; by default what the published training writes")
    for command in (reads, writes):
        arguments.add_out(command, "file to write; for export, .safetensors or PyTorch's own")
    args = parser.parse_args(argv)

    def run() -> None:
        given = {name: getattr(args, name) for name in (*OPTIONS, "puzzle", "identifiers") if hasattr(args, name)}
        if args.what == "show":
            print(show(args.file, given))
        elif args.what == "import":
            print(_import(args.file, args.out, args.config, config.read_fields(args.set), given, args.dtype))
        else:
            print(_export(args.source, args.out, args.prefix))
    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
