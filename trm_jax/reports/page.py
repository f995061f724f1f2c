"""Shows how answers come about, cycle by cycle, on one page that needs nothing but a browser.

    python -m trm_jax watch "5...27..9..41......5..3..."                            think.html, packaged weights
    python -m trm_jax watch --workdir=runs/quick --example=3 --example=40 --out=think.html
    python -m trm_jax watch --weights=quick.safetensors --file=puzzles.txt --gif=think.gif --png=think.png

    python -m trm_jax watch --play --out=play.html                                 the network itself, in one file

The page holds the puzzles that could be read, and works offline. GIF and PNG (a strip) hold one puzzle each and need
matplotlib. The exit status is 0 if the verifier accepts every answer, 1 if not, 2 if nothing could be shown.
"""

from __future__ import annotations

import argparse
import base64
import html
import importlib.resources
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trm_jax import puzzles
from trm_jax.data import making
from trm_jax.inference import command
from trm_jax.inference.settings import Settings
from trm_jax.inference.solver import Answer, SolveError, Solver, Trace
from trm_jax.models.units import FIRST_VALUE
from trm_jax.models.updates import is_noisy
from trm_jax.puzzles.drawing import drawing, used
from trm_jax.reports import pictures
from trm_jax.runtime import arguments
from trm_jax.runtime.errors import guarded
from trm_jax.runtime.files import write_file
from trm_jax.weights import weights_file

MOST_FRAMES = 256  # of a puzzle on a page
OUT, PLAY = "think.html", "play.html"


class Film(NamedTuple):
    """How one puzzle was answered."""

    name: str
    trace: Trace
    answer: Answer  # the last one of the trace
    solution: np.ndarray | None = None  # [S], where it is known


def shown_cycles(trace: Trace, most: int = MOST_FRAMES) -> np.ndarray:
    """The cycles to show of 1 .. n: all, up to `most`; of more, the first half of `most`, then ever fewer up to n.

    The one that brought the last change is always among them.
    """
    n, near = len(trace.tokens), most // 2
    if n <= most:
        return np.arange(1, n + 1)
    far = np.geomspace(near, n, most - near).round().astype(int)
    return np.unique([*range(1, near + 1), *far, trace.stands_since])


def page(domain: puzzles.Domain, films: Sequence[Film], title: str, source: str = "") -> str:
    """The HTML page; `source` is a line at its foot. Texts are shown as they are, whatever they hold."""
    drawn = drawing(domain)
    rows, columns = used(drawn, np.concatenate([
        np.concatenate([film.trace.inputs[None], film.trace.tokens]) for film in films]))
    data = {"drawing": drawn._asdict() | {"rows": rows, "columns": columns}, "unit": films[0].answer.unit,
            "fault": _fault(domain, films), "verified_as": domain.verified_as or "the solution",
            "films": [_film(domain, film, rows, columns) for film in films]}
    return _filled(data, title, source)


def live(export: weights_file.Export, title: str, source: str = "") -> str:
    """A page to type puzzles into, as `serve` has it: it asks /solve, and shows the tries as they come."""
    return _filled(_asking(export), title, source, "ask.js", connect="'self'")


def play(export: weights_file.Export, title: str, source: str = "") -> str:
    """The same page with the network in it, which runs in the browser: one file, without a server.

    For puzzles whose rules are units (Sudoku), and networks of the recursion y_z that mix by "mlp" or
    "units", without positions and prefix. Raises SolveError for others.
    """
    a, domain, tensors = export.experiment.arch, export.domain, weights_file.by_name(export.weights)
    must = {"recursion": "y_z", "start": "fixed", "update": "replace", "H_layers": 0, "block": "post_norm",
            "conv": "none", "output_norm": False, "pos_encodings": "none", "puzzle_emb_ndim": 0, "puzzle_emb_len": 0,
            "mixer_norm_axis": "feature", "mlp_norm_axis": "feature", "supervision": "terminal"}
    other = [f"arch.{name} = {getattr(a, name)}" for name, value in must.items() if getattr(a, name) != value]
    if other or a.mixer not in ("mlp", "units") or domain.name != "sudoku" or is_noisy(a):
        these = ", ".join([f"arch.mixer = {a.mixer}", *other])
        raise SolveError("--play has no code for this network in the browser: it takes networks of Sudoku "
                         "with arch.mixer mlp or units and without positions; this one is for "
                         f"{domain.title}, with {these}. Without --play the page shows what was computed here")
    solver, block = Solver.of(export), "params/layers_0"
    network = {
        "S": domain.seq_len, "V": domain.vocab_size, "D": a.hidden_size, "eps": a.rms_norm_eps, "layers": a.L_layers,
        "mixer": a.mixer, "values": domain.vocab_size - FIRST_VALUE if a.candidates else 0,
        "mixer_hidden": int(tensors[f"{block}/mixer/down"].shape[-2]),
        "mlp_hidden": int(tensors[f"{block}/mlp/down"].shape[0])}
    data = _asking(export)
    data["ask"] |= {"arch": network, "L": export.metadata["L"], "units": domain.units,
                    "names": ("row", "column", "box"), "box": domain.boxes, **solver.usual,
                    "guess_cycles": Settings.guess_cycles, "settle": Settings.settle,
                    "weights": {name: _base64(np.asarray(leaf, np.float32)) for name, leaf in tensors.items()}}
    return _filled(data, title, source, "play.js", "ask.js")


def _asking(export: weights_file.Export) -> dict[str, Any]:
    """The data of a page on which nothing has been solved yet."""
    domain = export.domain
    drawing, (rows, columns) = pictures.drawing(domain), domain.grid
    return {"drawing": drawing._asdict() | {"rows": rows, "columns": columns}, "unit": export.bound.unit,
            "fault": "in conflict" if domain.marks_faults else "", "films": [],
            "verified_as": domain.verified_as or "the solution",
            "ask": {"symbols": domain.symbols, "examples": _examples(export)}}


def _examples(export: weights_file.Export, n: int = 5) -> list[str]:
    """Puzzles of the kind that the network was trained on."""
    domain, data = export.domain, export.experiment.data
    if not domain.generates:
        return []
    inputs = domain.generate(n, seed=1, **making.generator_options(data, domain))[0]
    return [domain.decode(tokens) for tokens in inputs]


def source_line(name: str, export: weights_file.Export) -> str:
    """What weights a page is about."""
    return f"{Path(name).name}: {export.model.parameter_count():,} parameters, L = {export.metadata['L']}"


def _filled(data: dict[str, Any], title: str, source: str, *scripts: str, connect: str = "") -> str:
    """The template with what belongs into it."""
    folder = importlib.resources.files("trm_jax.reports")
    # Nothing in the text can end the script element that holds it.
    safe = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    code = "".join(f"\n<script>\n{folder.joinpath(name).read_text(encoding='utf-8')}</script>" for name in scripts)
    parts = {"title": html.escape(title), "source": html.escape(source), "data": safe, "scripts": code,
             "connect": f"; connect-src {connect}" if connect else ""}
    template = folder.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(title|source|data|scripts|connect)\}\}", lambda found: parts[found[1]], template)


def _film(domain: puzzles.Domain, film: Film, rows: int, columns: int) -> dict[str, Any]:
    """JSON of a film of n frames and their first rows and columns, U = rows * columns cells.

    `tokens` and `sure` (0 .. 255) are base64 of bytes [n, U], `faults` of bits [n, U]. `words` are the different
    reasons and `says` tells which of them each frame has: "" verified, None nothing to judge by.
    """
    def cut(cells: np.ndarray) -> np.ndarray:  # [..., S] -> [..., rows, columns]
        return cells.reshape(*cells.shape[:-1], *domain.grid)[..., :rows, :columns]

    trace, cycles = film.trace, shown_cycles(film.trace)
    tokens = trace.tokens[cycles - 1].astype(np.uint8)
    sure = np.nan_to_num(trace.confidence[cycles - 1]).clip(0, 1)
    reasons = [_reason(domain, film, answer) for answer in tokens]
    words = list(dict.fromkeys(reasons))
    return {"name": film.name, "status": film.answer.status, "settled": film.answer.settled,
            "stands": trace.stands_since, "cycles": cycles.tolist(),
            "residual": [float(f"{r:.3g}") if np.isfinite(r) else None for r in trace.residual[cycles - 1].tolist()],
            "words": words, "says": [words.index(reason) for reason in reasons],
            "inputs": _base64(cut(trace.inputs.astype(np.uint8))), "tokens": _base64(cut(tokens)),
            "asked": _base64(cut((trace.inputs if trace.asked is None else trace.asked).astype(np.uint8))),
            "sure": _base64(cut((255 * sure).round().astype(np.uint8))),
            "faults": _base64(np.packbits(cut(_faults(domain, film, tokens))))}


def _fault(domain: puzzles.Domain, films: Sequence[Film]) -> str:
    """What a cell is that is marked as wrong; "" where none can be."""
    if domain.marks_faults:
        return "in conflict"
    return "unlike the solution" if any(film.solution is not None for film in films) else ""


def _faults(domain: puzzles.Domain, film: Film, tokens: np.ndarray) -> np.ndarray:
    """tokens [n, S] -> [n, S] bool: what the domain finds wrong; of one that cannot tell, what is not the solution."""
    if domain.marks_faults:
        return domain.faults(film.trace.inputs, tokens)
    return np.zeros(tokens.shape, bool) if film.solution is None else tokens != film.solution


def _reason(domain: puzzles.Domain, film: Film, answer: np.ndarray) -> str | None:
    if domain.has_rules:
        return domain.explain(film.trace.inputs, answer)
    if film.solution is None:
        return None
    return "" if domain.decode(answer) == domain.decode(film.solution) else "not the solution"


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


# The command line.


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax watch", __doc__)
    command.add_source(parser)
    parser.add_argument("--out", type=arguments.text, help=f"the page ({OUT}, unless there is --gif or --png)")
    parser.add_argument("--gif", type=arguments.text, help="an animation; of several puzzles, one each, numbered")
    parser.add_argument("--png", type=arguments.text,
                        help="some of the cycles side by side; of several puzzles, one each, numbered")
    parser.add_argument("--title", default="Watch it think", help="of the page (%(default)s)")
    parser.add_argument("--play", action="store_true", help="a page with the network in it, which solves in the "
                        f"browser whatever is typed there; no puzzle is needed ({PLAY})")
    arguments.add_tries(parser, what="tries of a puzzle that the rules do not accept, shown one by one; 1: one")
    arguments.add_seed(parser, "of the tries")
    command.add_puzzles(parser)
    args = parser.parse_args(command.dashed(sys.argv[1:] if argv is None else argv))
    if args.play and (args.puzzle or args.file or args.example or args.gif or args.png):
        parser.error("--play takes puzzles in the browser: without puzzles, --gif and --png")
    return guarded(lambda: _play(args) if args.play else _watch(args))


def _play(args: argparse.Namespace) -> None:
    export, path = command.open_source(args), args.out or PLAY
    write_file(path, play(export, args.title, source_line(args.source, export)))
    print(path)


def _watch(args: argparse.Namespace) -> int:
    if args.gif or args.png:
        pictures.pyplot()  # before the long part
    export = command.open_source(args)
    asked, solver, films, answers = command.requests_of(args, export), Solver.of(export), [], []
    for i, request in enumerate(asked):
        try:
            for trace, answer in command.traces_of(solver, request, i, args):
                name = command.titled(request.name, answer, args.tries, trace)
                films.append(Film(name, trace, answer, request.solution))
        except puzzles.PuzzleError as error:
            answer = Answer.refused(error)
        answers.append(answer)
        print(arguments.plain(f"{request.name}: {answer.status}"), file=sys.stderr, flush=True)
    if not films:
        raise SolveError("none of the puzzles could be shown; nothing was written")
    for path in _write(args, export, films):
        print(path)
    return 0 if all(answer.verified for answer in answers) else 1


def _write(args: argparse.Namespace, export: weights_file.Export, films: Sequence[Film]) -> list[str]:
    """The files that were asked for."""
    written = []
    if args.out or not (args.gif or args.png):
        written.append(args.out or OUT)
        write_file(written[0], page(export.domain, films, args.title, source_line(args.source, export)))
    for wanted, draw in ((args.gif, _gif), (args.png, _png)):
        for i, film in enumerate(films, 1):
            if wanted:
                path = Path(wanted) if len(films) == 1 else Path(wanted).with_stem(f"{Path(wanted).stem}-{i}")
                draw(export.domain, film, path)
                written.append(str(path))
    return written


def _gif(domain: puzzles.Domain, film: Film, path: Path) -> None:
    write_file(path, pictures.animation(domain, film.trace, film.name[:1].upper() + film.name[1:]))


def _png(domain: puzzles.Domain, film: Film, path: Path) -> None:
    solution = film.answer.tokens if film.answer.verified else film.solution  # a maze has other right ones
    title = f"{film.name[:1].upper()}{film.name[1:]}: {film.answer.status}"
    pictures.save(pictures.strip(domain, film.trace, title, solution), path)


if __name__ == "__main__":
    sys.exit(main())
