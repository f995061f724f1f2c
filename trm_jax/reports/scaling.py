"""How answers improve with what is spent on them: scaling curves of a run or a weights file, as a figure and JSON.

    python -m trm_jax scaling --weights=quick.safetensors --out=scaling --examples=200
    python -m trm_jax scaling --workdir=runs/quick --data=data/sudoku-hard --out=scaling --L=2,4,8 --restarts=1,2,4,8

Writes scaling.json and scaling.png into the folder: the share of puzzles solved over outer and inner cycles, over the
cycles that a puzzle took until it stopped, over restarts, and over floating-point operations per puzzle. Every point is
of the same puzzles; which they are is in both files.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from trm_jax import config
from trm_jax.data import pipeline
from trm_jax.data.loading import Dataset
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.evaluation.scores import BEST, Marks, mark, share
from trm_jax.inference import engine
from trm_jax.inference.choice import STOPS, choose
from trm_jax.inference.settings import Settings
from trm_jax.puzzles import puzzle_of
from trm_jax.reports import pictures
from trm_jax.runtime import arguments, distributed, files
from trm_jax.runtime.errors import UserError, guarded
from trm_jax.runtime.progress import say
from trm_jax.runtime.text import percent
from trm_jax.training.system import System
from trm_jax.weights import weights_file

FIXED_L = ("multi_z", "direct")  # recursions whose inner cycles are as many as there are latents


class ScalingError(UserError):
    """Curves that cannot be measured; the message says what would do."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to measure. Empty: H doubles from 1 to 64; L is the training's, half and twice of it."""

    H: tuple[int, ...] = ()
    L: tuple[int, ...] = ()
    restarts: tuple[int, ...] = (1, 2, 4, 8)
    examples: int = 200  # a seeded sample of the test set; 0: all of it
    settle: int = 8
    vary: str = ""  # as in inference.Settings; "": by symmetries where the domain has them, else by noise at the start
    sigma: float = Settings.sigma
    batch_size: int = Settings.batch_size
    seed: int = 0


class Measured(NamedTuple):
    """What is measured, and on what."""

    system: System  # on the dataset, with `Settings` in its eval section
    data: Dataset
    weights: Any
    L: int  # of the last training step
    step: int
    parameters: str

    @property
    def verify(self) -> Callable | None:
        return engine.rules(self.data.domain)["verify"]


def subject(export: weights_file.Export, dataset: str, settings: Sweep) -> tuple[Measured, Sweep]:
    """And the settings with nothing left empty. Raises ScalingError, DatasetError or ConfigError."""
    arch, L = export.experiment.arch, export.metadata["L"]
    if arch.recursion in FIXED_L and settings.L and settings.L != (L,):
        raise ScalingError(f"--L={','.join(map(str, settings.L))}: with arch.recursion = {arch.recursion!r} there are "
                           f"always {L} inner cycles; leave it out")
    inner = (L,) if arch.recursion in FIXED_L else settings.L or tuple(sorted({max(1, L // 2), L, 2 * L}))
    settings = dataclasses.replace(settings, H=settings.H or tuple(1 << k for k in range(7)), L=inner)
    fields = {"data.path": dataset or export.experiment.data.path, "eval.H_test": settings.H,
              "eval.L_test": () if arch.recursion in FIXED_L else inner, "eval.max_examples": settings.examples,
              "eval.batch_size": settings.batch_size, "eval.settled_cycles": settings.settle, "eval.stop_halted": False,
              "eval.restarts": 0}
    experiment = config.with_fields(export.experiment, fields)
    data = Dataset.load(experiment)
    for name, theirs, here in (("puzzle", puzzle_of(export.domain), puzzle_of(data.domain)),
                               ("shape", export.shape, data.shape)):
        if theirs != here:
            raise ScalingError(f"{experiment.data.path} does not fit the weights: {name} {here}, theirs is {theirs}")
    if not settings.vary:
        symmetric = data.domain.has_symmetries
        settings = dataclasses.replace(settings, vary="symmetry" if symmetric else "start")
    engine_settings(settings)  # refuses what cannot work before anything is computed
    system = System(experiment, data.shape, export.metadata["total_steps"])
    return Measured(system, data, export.weights, L, export.metadata["step"], export.metadata["parameters"]), settings


def engine_settings(s: Sweep, **more) -> Settings:
    known: dict[str, Any] = {"max_cycles": s.H[-1], "tries": max(s.restarts), "vary": s.vary} | more
    return Settings(**known, settle=s.settle, sigma=s.sigma, batch_size=s.batch_size, seed=s.seed)


def measure(subject: Measured, settings: Sweep, note: Callable[[str], None] = say) -> dict[str, Any]:
    """Measures every curve: points with n and the number of right answers. Records dataset, weights and settings."""
    begun = time.perf_counter()
    s, mesh = subject, distributed.data_mesh(jax.local_devices()[:1])
    evaluator = Evaluator(s.system, s.data, mesh)
    placed = jax.device_put(s.weights, distributed.replicated(mesh))
    evaluation = evaluator(placed, s.step, s.L, note)
    L = s.L if s.L in settings.L else settings.L[-1]
    puzzles = PuzzleSet(s, placed, evaluator.rows, L, settings)
    grid = [{"H_test": f["H_test"], "L_test": f["L_test"], "n": f["n"], "right": f["counts"]["right"],
             **{name: f[name] for name in (BEST, "verified", "settled")},
             "flops_per_puzzle": f["flops_per_example"]} for f in evaluation["figures"]]
    note(f"answers to H {settings.H[-1]} at L {_list(settings.L)}: "
         f"{time.perf_counter() - begun:.0f} s")
    stops = ["settled"] + ["verified"] * (s.verify is not None)
    settled = [puzzles.settling(limit, stop, note) for stop in stops for limit in settings.H]
    restarts = puzzles.restarts(note)
    assert {point["n"] for point in (*grid, *settled, *restarts)} == {grid[0]["n"]}, "one subset for all"
    *_, (_, _, trained_H, trained_L) = s.system.curriculum.stages()
    arch = s.system.experiment.arch
    if arch.supervision == "deep":  # H counts supervision steps
        trained_H = arch.halt_max_steps
    kept = ("dataset", "split", "examples", "sample", "parameters", "parameter_count", "step", "verified_as",
            "H_test_unit", "device", "versions")
    return {
        "grid": grid, "cycles": settled, "restarts": restarts,
        # What is drawn. Where many answers are right (mazes) exact match is beside it, at every point.
        "measure": "verified" if s.data.domain.has_several_answers else BEST,
        **{name: evaluation[name] for name in kept},
        "subset_sha256": puzzles.digest, "L": L, "trained": {"H": trained_H, "L": trained_L},
        "settings": dataclasses.asdict(settings),
        "seconds": time.perf_counter() - begun,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


class PuzzleSet:
    """The rows that the evaluator took, answered by the engine."""

    def __init__(self, subject: Measured, placed, rows: np.ndarray, L: int, settings: Sweep):
        self._s, self._settings = subject, settings
        self._bound = subject.system.model.bind(placed, L)
        [batch] = pipeline.test_batches(subject.data.test, len(rows), rows=rows)
        self._inputs, self._labels = batch["inputs"].astype(np.uint8), batch["labels"]
        self._identifiers = batch["puzzle_identifiers"]
        self.digest = hashlib.sha256(self._inputs.tobytes() + self._labels.tobytes()).hexdigest()

    def _solve(self, verify, **more) -> engine.Results:
        rules: dict[str, Any] = engine.rules(self._s.data.domain) | {"verify": verify}
        return engine.solve(self._bound, self._inputs, engine_settings(self._settings, **more),
                            identifiers=self._identifiers, **rules)

    def _marks(self, tokens: np.ndarray, puzzle: Any = slice(None)) -> Marks:
        return mark(self._s.data.domain, self._inputs[puzzle], self._labels[puzzle], tokens)

    def _point(self, marks: Marks, right: np.ndarray | None = None) -> dict[str, Any]:
        right = marks.right if right is None else right
        return {"n": int(marks.valid.sum()), "right": int(right.sum()),
                BEST: share(right, marks.valid),
                "verified": None if marks.solved is None else share(marks.solved, marks.valid)}

    def _cost(self, results: engine.Results) -> dict[str, Any]:
        """As computed, slots that stood idle included."""
        return {"core_calls_per_puzzle": results.core_calls / len(self._inputs),
                "flops_per_puzzle": engine.flops(self._bound, results),
                "seconds": results.seconds}

    def settling(self, limit: int, stop: str, note) -> dict[str, Any]:
        """Every puzzle until its answer has settled, at most `limit` cycles; stop "verified": or is verified."""
        results = self._solve(self._s.verify if stop == "verified" else None, max_cycles=limit, tries=1)
        a = results.answers
        names, counts = np.unique(np.asarray(STOPS)[a.stop], return_counts=True)
        note(f"until {stop}, {limit} cycles at most: {a.cycles.mean():.1f} on average, {results.seconds:.0f} s")
        return {"stop": stop, "max_cycles": limit, **self._point(self._marks(a.tokens)),
                "mean_cycles": float(a.cycles.mean()), "median_cycles": float(np.median(a.cycles)),
                "stopped": dict(zip(names.tolist(), counts.tolist())), **self._cost(results)}

    def restarts(self, note) -> list[dict[str, Any]]:
        """The best of R answers: chosen by the engine with its verifier, without it, and by one who knows (pass@R).

        The last two are of the same jobs for every R; with a verifier each R is a run of its own, because a puzzle that
        is verified has no more restarts, and that decides what it costs.
        """
        s, points = self._settings, []
        all_jobs = self._solve(None)
        note(f"{max(s.restarts)} restarts of each: {all_jobs.seconds:.0f} s")
        jobs, n = all_jobs.jobs, len(self._inputs)
        job_marks = self._marks(jobs.tokens, jobs.puzzle)
        for R in s.restarts:
            among = jobs.take(jobs.attempt < R)
            chosen = self._marks(among.tokens[choose(among, n)])
            spent = {"mean_cycles": float(among.cycles.sum()) / n}
            points.append({"restarts": R, "chosen_by": "engine, no verifier", **self._point(chosen), **spent})
            points.append({"restarts": R, "chosen_by": "pass@R",
                           **self._oracle(chosen, jobs, job_marks, jobs.attempt < R), **spent})
            if self._s.verify:
                results = self._solve(self._s.verify, tries=R)
                note(f"at most {R} restart{'s' * (R > 1)}, until verified: {results.seconds:.0f} s")
                points.append({"restarts": R, "chosen_by": "engine", **self._point(self._marks(results.answers.tokens)),
                               "mean_cycles": results.cycles / n, **self._cost(results)})
        return points

    def _oracle(self, marks, jobs, job_marks, among) -> dict[str, Any]:
        """A puzzle counts if any of its jobs `among` is right."""
        def any_of(right):
            return np.bincount(jobs.puzzle[among & right], minlength=len(self._inputs)) > 0
        solved = None if job_marks.solved is None else any_of(job_marks.solved)
        return self._point(marks._replace(solved=solved), any_of(job_marks.right))


# The figure.

FIXED, ENGINE, PLAIN, ORACLE = pictures.COLOURS[5], pictures.COLOURS[0], pictures.COLOURS[1], pictures.COLOURS[2]


def figure(result: dict[str, Any], title: str, from_percent: float = 0.0):
    """Heat map, cycles, restarts, FLOPs. A matplotlib Figure.

    from_percent: where the vertical axes over cycles and FLOPs, and the heat map's colours, begin; all axes end where
      the intervals do. That over restarts fits what is in it at both ends.
    """
    plt = pictures.pyplot()
    with plt.rc_context(pictures.STYLE):
        made, axes = plt.subplots(2, 2, figsize=(12, 9), dpi=150, layout="constrained")
        (top_left, top_right), (low_left, low_right) = axes
        _heat_map(top_left, plt, result, from_percent)
        _over_cycles(top_right, result, from_percent)
        _over_restarts(low_left, result)
        _over_flops(low_right, plt, result, from_percent)
        made.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
        made.supxlabel(caption(result), fontsize=8.5, color=pictures.FAINT, x=0.01, ha="left")
        return made


def caption(result: dict[str, Any]) -> str:
    """What the points are of."""
    s = result["settings"]
    noise = "" if s["vary"] == "symmetry" else f" (sigma {s['sigma']:g})"
    return (f"Every point: the same {result['examples']:,} test puzzles ({result['sample']}, sha256 "
            f"{result['subset_sha256'][:8]}) of {result['dataset']}. Bars: 95 % Wilson intervals of the share.\n"
            f"{result['parameters']} parameters ({result['parameter_count']:,}), step {result['step']:,}, trained at "
            f"H {result['trained']['H']}, L {result['trained']['L']}; seed {s['seed']}; settled: unchanged for "
            f"{s['settle']} cycles; restarts differ by {s['vary']}{noise}, at most {s['H'][-1]} cycles each.\n"
            f"{result['device']}, {result['seconds']:,.0f} s, {result['finished'][:10]}; FLOP: matrix products, as "
            "computed (idle slots of the last batch included).")


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Ends of the 95 % interval of a share (Wilson 1927), which holds at 0 and at all as well."""
    p, spread = (right + z * z / 2) / (n + z * z), z * np.sqrt(right * (n - right) / n + z * z / 4) / (n + z * z)
    return max(0.0, float(p - spread)), min(1.0, float(p + spread))


def _heat_map(ax, plt, result, from_percent: float) -> None:
    H, L = result["settings"]["H"], sorted({p["L_test"] for p in result["grid"]})
    shares = np.array([[_percent(p, result) for p in result["grid"] if p["L_test"] == inner] for inner in L])
    image = ax.imshow(shares, cmap="Blues", vmin=from_percent, aspect="auto", origin="lower",
                      vmax=from_percent + 1.15 * max(1.0, np.nanmax(shares, initial=0.0) - from_percent))
    for (i, j), value in np.ndenumerate(shares):
        ax.text(j, i, "-" if np.isnan(value) else percent(value / 100), ha="center", va="center", fontsize=10,
                color="white" if image.norm(value) > 0.55 else pictures.INK)
    if (at := (result["trained"]["H"], result["trained"]["L"]))[0] in H and at[1] in L:
        ax.add_patch(plt.Rectangle((H.index(at[0]) - 0.5, L.index(at[1]) - 0.5), 1, 1, fill=False, linewidth=2,
                                   edgecolor=PLAIN, clip_on=False, zorder=3))
    for line in range(1, max(shares.shape)):  # between the cells
        ax.axvline(line - 0.5, color="white", linewidth=2)
        ax.axhline(line - 0.5, color="white", linewidth=2)
    ax.set(xlim=(-0.5, len(H) - 0.5), ylim=(-0.5, len(L) - 0.5))
    ax.set_xticks(range(len(H)), [f"{h:,}" for h in H])
    ax.set_yticks(range(len(L)), [str(inner) for inner in L])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(f"H at test time ({result['H_test_unit']})")
    ax.set_ylabel("L at test time (inner cycles)")
    _title(ax, f"{_what(result)}, % over depth (outlined: as trained)")


def _over_cycles(ax, result, from_percent: float) -> None:
    H = result["settings"]["H"]
    at_L = [p for p in result["grid"] if p["L_test"] == result["L"]]
    _line(ax, result, at_L, "H_test", FIXED, "s", "every puzzle H cycles")
    for stop, colour, marker, label in (("settled", PLAIN, "o", "until settled"),
                                        ("verified", ENGINE, "^", "until verified or settled")):
        points = [p for p in result["cycles"] if p["stop"] == stop]
        if points:
            ax.plot([p["median_cycles"] for p in points], [_percent(p, result) for p in points], ":", color=colour,
                    linewidth=1.4)
            _line(ax, result, points, "mean_cycles", colour, marker, label)
    ax.plot([], [], ":", color=pictures.FAINT, linewidth=1.4, label="(dotted: median instead of mean)")
    _finish(ax, from_percent, f"cycles used per puzzle on average, limits from {H[0]:,} to {H[-1]:,}",
            f"{_what(result)} over cycles used (L {result['L']})")
    _log2(ax)


def _over_restarts(ax, result) -> None:
    for who, colour, marker, size, label in (
            ("pass@R", ORACLE, "D", 11, "any of R is right (pass@R, needs the solution)"),
            ("engine", ENGINE, "^", 8, "the engine's choice, verifier first"),
            ("engine, no verifier", PLAIN, "o", 5, "the engine's choice without a verifier")):
        points = [p for p in result["restarts"] if p["chosen_by"] == who]
        if points:
            _line(ax, result, points, "restarts", colour, marker, label, size)
    _finish(ax, None, "restarts R, the plain one included",
            f"{_what(result)} over restarts (L {result['L']})")
    _log2(ax, result["settings"]["restarts"])


def _over_flops(ax, plt, result, from_percent: float) -> None:
    greys = plt.get_cmap("Greys")
    inner = sorted({p["L_test"] for p in result["grid"]})
    for i, L in enumerate(inner):
        points = [p for p in result["grid"] if p["L_test"] == L]
        ax.plot([p["flops_per_puzzle"] for p in points], [_percent(p, result) for p in points],
                "-" + "sPXdvh"[i % 6], color=greys(0.4 + 0.45 * i / max(1, len(inner) - 1)), linewidth=1.4,
                markersize=5, markerfacecolor="white", label=f"every puzzle H cycles, L {L}")
    stop = "verified" if any(p["stop"] == "verified" for p in result["cycles"]) else "settled"
    _line(ax, result, [p for p in result["cycles"] if p["stop"] == stop], "flops_per_puzzle",
          *((ENGINE, "^", "until verified or settled") if stop == "verified" else (PLAIN, "o", "until settled")))
    points = [p for p in result["restarts"] if p["chosen_by"] == "engine"]
    if points:
        _line(ax, result, points, "flops_per_puzzle", pictures.COLOURS[3], "*",
              f"up to {_list(result['settings']['restarts'])} restarts, until verified")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(plt.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(plt.matplotlib.ticker.EngFormatter())
    ax.minorticks_off()
    _finish(ax, from_percent, "FLOP per puzzle", f"{_what(result)} over computation", "best")


def _list(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)


def _what(result) -> str:
    return "Solved exactly" if result["measure"] == BEST else result["verified_as"].capitalize()


def _percent(point, result) -> float:
    value = point[result["measure"]]
    return np.nan if value is None else 100 * value


def _counts(point, result) -> tuple[int, int]:
    return round((point[result["measure"]] or 0.0) * point["n"]), max(1, point["n"])


def _line(ax, result, points, over: str, colour, marker: str, label: str, size: int = 6) -> None:
    x, y = [p[over] for p in points], [_percent(p, result) for p in points]
    low, high = zip(*([100 * end for end in wilson(*_counts(p, result))] for p in points))
    ax.vlines(x, low, high, color=colour, linewidth=1.0, alpha=0.45)
    ax.plot(x, y, "-" + marker, color=colour, linewidth=1.8, markersize=size, markerfacecolor="white",
            markeredgewidth=1.5, label=label)


def _title(ax, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=12, fontweight="bold")


def _log2(ax, ticks: Sequence[int] = ()) -> None:
    ax.set_xscale("log", base=2)
    if ticks:
        ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    ax.minorticks_off()


def _finish(ax, from_percent: float | None, label: str, title: str, legend: str = "lower right") -> None:
    """from_percent None: the axis begins under the lowest interval."""
    low, high = ax.dataLim.intervaly
    low = from_percent if from_percent is not None else max(0.0, low - (high - low) / 3)  # room for the legend
    margin = max(high - low, 0.1) / 20
    ax.set_ylim(low - margin, high + margin)
    ax.yaxis.set_major_formatter(lambda percent, _: f"{percent:g} %")
    ax.grid(color=pictures.GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_xlabel(label)
    ax.legend(frameon=False, fontsize=9, loc=legend)
    _title(ax, title)


# The command line.


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    defaults = Sweep()
    parser = arguments.Parser("python -m trm_jax scaling", __doc__)
    ascending = arguments.listed(arguments.integer(1), ascending=True)
    arguments.add_source(parser, weights_file.named())
    arguments.add_out(parser, "folder for scaling.json and scaling.png")
    parser.add_argument("--data", type=arguments.text, help="dataset folder; otherwise the run's own")
    parser.add_argument("--examples", type=arguments.integer(0), default=defaults.examples,
                        help="a seeded sample of the test set; 0: all of it (%(default)s)")
    arguments.option(parser, "--max_cycles", "--H", type=ascending, default=(),
                     help="outer cycles, commas between (1,2,4 ... 64)")
    parser.add_argument("--L", type=ascending, default=(), help="inner cycles (those of the training, half, twice)")
    arguments.add_tries(parser, defaults.restarts, ascending, "answers per puzzle")
    parser.add_argument("--settle", type=arguments.integer(1), default=defaults.settle,
                        help="cycles without a change (%(default)s)")
    parser.add_argument("--vary", default=defaults.vary, choices=("start", "cycle", "symmetry"),
                        help="how tries differ (by symmetries where the puzzle has them, else noise at the start)")
    parser.add_argument("--sigma", type=arguments.number(), default=defaults.sigma, help="of the noise (%(default)s)")
    arguments.add_batch_size(parser, defaults.batch_size)
    arguments.add_seed(parser, "of the tries")
    parser.add_argument("--from_percent", type=arguments.number(0, 99), default=0.0,
                        help="where vertical axes begin (%(default)s)")
    arguments.add_cache(parser, distributed.COMPILED)
    args = parser.parse_args(argv)

    def run() -> None:
        pictures.pyplot()  # before the long part
        distributed.enable_compilation_cache(args.compilation_cache)
        of, settings = subject(weights_file.read(args.source), args.data or "", Sweep(
            args.max_cycles, args.L, args.tries, args.examples, args.settle, args.vary, args.sigma, args.batch_size,
            args.seed))
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["python", "-m", "trm_jax", "scaling", *argv])
        result = measure(of, settings) | {"source": args.source, "command": command}
        if Path(args.source).is_file():
            result["weights_sha256"] = hashlib.sha256(Path(args.source).read_bytes()).hexdigest()
        files.write_json(out / "scaling.json", result)
        pictures.save(figure(result, f"What thinking longer buys: {Path(args.source).stem} on {result['dataset']}",
                             args.from_percent), out / "scaling.png")
        print(f"written to {out}: scaling.json, scaling.png")
    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
