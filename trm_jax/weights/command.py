"""Packs what a run has learned, and shares it.

    python -m trm_jax weights --workdir=runs/quick --out=quick.safetensors         one file
    python -m trm_jax weights push OWNER/NAME --workdir=runs/quick                 to the Hugging Face hub, with a card
    python -m trm_jax weights pull OWNER/NAME --out=models/quick                    from there; a folder for --weights

Every --weights takes hf://OWNER/NAME as well. Where weights are uploaded, they go with their config and a card that
says what was measured, on what, and by which versions. Log in before: hf auth login, or HF_TOKEN.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from trm_jax import config
from trm_jax.runtime import arguments, files
from trm_jax.runtime.errors import UserError, guarded
from trm_jax.runtime.text import markdown, percent
from trm_jax.weights import hub, weights_file
from trm_jax.weights.weights_file import Export


def card(export: Export, name: str, digest: str) -> str:
    """The README.md of a model: how it is used, what it is, what an evaluation found, where all of it comes from.

    Args:
      digest: SHA-256 of the file of weights.
    """
    e, m = export.experiment, export.metadata
    names = [export.domain.name, "trm_jax", "jax", "recursive-reasoning"]
    lines = ["---", "library_name: trm_jax", "tags:", *(f"- {tag}" for tag in names), "---", "", f"# {name}", "",
             f"{export.model.parameter_count():,} parameters that answer {export.domain.title} by being applied again "
             f"and again ({e.arch.recursion}, {e.arch.mixer}, width {e.arch.hidden_size}, {m['L']} inner cycles). "
             "Trained and written by trm_jax.", "",
             "## Use", "", "```bash", f"python -m trm_jax solve --weights=hf://{name} PUZZLE", "```", "",
             "```python", "from trm_jax import Solver", f'answers = Solver.load("hf://{name}").solve(puzzles)', "```",
             "", "## Figures", ""]
    if found := m.get("evaluation"):
        columns = {"H_test": "H_test", "n": "n", "exact": "exact_accuracy", "verified": "verified",
                   "settled": "settled"}
        columns = {head: key for head, key in columns.items() if key in found["figures"][0]}
        lines += [markdown(list(columns), [[
            f"{figure[key]:,}" if key in ("H_test", "n") else percent(figure[key]) for key in columns.values()]
            for figure in found["figures"]]), "",
            f"In percent; H_test counts {found['H_test_unit']}. Measured by `python -m trm_jax evaluate` on "
            f"{found['sample']} ({found['split']}, `{found['dataset']}`), with the {found['parameters']} parameters of "
            f"step {found['step']:,}, on {found['device']}, finished {found['finished']}, with "
            + ", ".join(f"{library} {version}" for library, version in found.get("versions", {}).items()) + "."]
    else:
        lines += ["No evaluation came with these weights."]
    lines += ["", "## Provenance", "", markdown(["what", ""], [
        ["parameters", f"{m['parameters']}, of step {m['step']:,} of {m['total_steps']:,}, as {m['dtype']}"],
        ["config", f"`{hub.CONFIG}`, in the header of the weights too"], ["seed", str(e.seed)],
        ["training data", f"`{e.data.how_to_make}`"],
        ["written by", ", ".join(f"{library} {version}" for library, version in m.get("versions", {}).items())],
        [f"SHA-256 of {hub.MODEL}", f"`{digest}`"]]), ""]
    return "\n".join(lines)


def push(export: Export, name: str, dtype: str = "bfloat16", private: bool = False) -> str:
    """Uploads weights, config and card to the hub; returns the model's address. Raises HubError or WeightsError."""
    repo, _ = hub.parse(name)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / hub.MODEL
        weights_file.save(model, export, dtype)
        files.write_json(Path(folder) / hub.CONFIG, config.to_json(export.experiment))
        as_written = export._replace(metadata=export.metadata | {"dtype": dtype})
        files.write_file(Path(folder) / hub.CARD, card(as_written, repo, files.digest(model)))
        return hub.upload(Path(folder), name, private)


def pull(name: str, folder: str | os.PathLike[str]) -> Export:
    """Downloads a model into a new folder, once it has been read without a fault. Raises HubError or WeightsError."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give a new folder")
    there = [hub.download(name, file) for file in (hub.MODEL, hub.CONFIG, hub.CARD)]
    export = weights_file.load(there[0])
    folder.mkdir(parents=True, exist_ok=True)
    for file in there[::-1]:  # the weights last
        shutil.copyfile(file, folder / file.name)
    return export


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    job = words.pop(0) if words[:1] in (["push"], ["pull"]) else ""
    parser = arguments.Parser(f"python -m trm_jax weights {job}".strip(), __doc__)
    if job:
        parser.add_argument("name", metavar="OWNER/NAME", type=arguments.text, help="the model on the hub")
    if job != "pull":
        arguments.add_source(parser, weights_file.named())
        parser.add_argument("--dtype", choices=list(weights_file.DTYPES), default="bfloat16",
                            help="of the stored tensors (%(default)s)")
    if job != "push":
        arguments.add_out(parser, "folder to make" if job else "file to write")
    else:
        parser.add_argument("--private", action="store_true", help="a model that is new is for its owner only")
    args = parser.parse_args(words)

    def run() -> None:
        if job == "pull":
            return print(_summary(args.out, pull(args.name, args.out)))
        export = weights_file.read(args.source)
        if job == "push":
            return print(_summary(push(export, args.name, args.dtype, args.private), export))
        weights_file.save(args.out, export, args.dtype)
        print(f"{_summary(args.out, export)} in {args.dtype}, {os.path.getsize(args.out):,} bytes")
    return guarded(run)


def _summary(where: str, export: Export) -> str:
    m = export.metadata
    return (f"{where}: {export.model.parameter_count():,} {m['parameters']} parameters of step {m['step']:,} of "
            f"{m['total_steps']:,}")
