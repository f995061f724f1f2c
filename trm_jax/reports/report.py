"""A table of what runs reached, and checks on it: exact accuracy over test-time depth, one row per run.

    python -m trm_jax report runs/seed0 runs/seed1 runs/seed2
    python -m trm_jax report runs/seed* --min_exact=97.5 --at=64 --max_drop=1 --between=16,256

With checks, every run is told to pass or fail, and the exit status is 1 if any fails. It is 2 if the runs cannot be
read or were not evaluated at the depths that the checks ask for.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trm_jax.runtime import arguments, files, text
from trm_jax.runtime.errors import UserError, guarded
from trm_jax.runtime.text import percent

EXACT = "exact_accuracy"
_SLACK = 1e-9  # a difference of two shares that is exact on paper is not one in floating point


class ReportError(UserError):
    """A run whose evaluation cannot be found, read or compared; the message says which and why."""


class Result(NamedTuple):
    """One evaluation of one run, at one number of inner cycles."""

    label: str  # the run as it was named; with L where it was evaluated at several
    path: Path
    evaluation: dict[str, Any]  # as evaluate.save wrote it
    figures: dict[int, dict[str, Any]]  # H_test -> figure, ascending

    @property
    def verified_as(self) -> str | None:
        """What the verifier accepts, where that is more than the labels: a shortest path. Else None."""
        name = self.evaluation.get("verified_as", "verified")
        return None if name in ("verified", "") else name

    @property
    def also(self) -> dict[str, str]:
        """Figures that belong beside exact match, with their names: of mazes the valid ones, of ARC its score."""
        if all("pass@2" in figure for figure in self.figures.values()):
            return {"pass@2": "pass@2"}
        return {"verified": self.verified_as} if self.verified_as else {}

    def exact(self, H: int) -> float:
        if H not in self.figures:
            raise ReportError(f"{self.path} has no figure at H_test {H}; it has {', '.join(map(str, self.figures))}")
        return self.figures[H][EXACT] or 0.0


def newest(run: str | os.PathLike[str]) -> list[Result]:
    """The newest evaluation of a run's folder, or the one in a JSON file: a `Result` for every L_test."""
    path = Path(run)
    if path.is_dir():
        found = [(_read(file), file) for file in sorted((path / "eval").glob("*.json"))]
        if not found:
            raise ReportError(f"{path} has not been evaluated: there is no JSON file in {path / 'eval'}")
        evaluation, path = max(found, key=lambda pair: (pair[0].get("finished", ""), pair[1].stat().st_mtime_ns))
    else:
        evaluation = _read(path)
    label = str(Path(run))
    inner = sorted({figure["L_test"] for figure in evaluation["figures"]})
    return [Result(label if len(inner) == 1 else f"{label} L {L}", path, evaluation,
                   {f["H_test"]: f for f in evaluation["figures"] if f["L_test"] == L}) for L in inner]


def table(results: Sequence[Result]) -> str:
    """Runs as rows, depths as columns, exact accuracy in percent, cut off; the mean in a last row.

    A maze has many right answers: the share of valid shortest paths is in a row of its own below, and so is the score
    of ARC, where exact match is that of single answers.
    """
    depths = sorted({H for result in results for H in result.figures})
    head = ["exact % at H =", *map(str, depths), "n", "step", "dataset"]
    rows = []
    for r in results:
        for name, label in [(EXACT, r.label), *((name, f"  {what}") for name, what in r.also.items())]:
            rows.append([label, *(percent(r.figures[H][name]) if H in r.figures else "" for H in depths),
                         f"{next(iter(r.figures.values()))['n']:,}", f"{r.evaluation['step']:,}",
                         r.evaluation["dataset"]])
    if len(results) > 1:
        also = results[0].also if all(r.also == results[0].also for r in results) else {}
        for name, label in [(EXACT, "mean"), *((name, f"  {what}") for name, what in also.items())]:
            shared = [[r.figures[H][name] for r in results if H in r.figures] for H in depths]
            rows.append([label, *(percent(sum(v) / len(v)) if len(v) == len(results) and None not in v else ""
                                  for v in shared), "", "", ""])
    return text.table(head, rows, left=(0, -1))


def faults(result: Result, min_exact: float | None = None, at: int | None = None, max_drop: float | None = None,
           between: tuple[int, int] | None = None) -> list[str]:
    """Which checks the run fails, in words; percent and points throughout.

    min_exact at depth `at`; and nowhere from between[0] to between[1] more than max_drop under the best that the
    same run had reached at a shallower depth from between[0] on (so that gaining with depth is no drop).
    """
    found = []
    if min_exact is not None and at is not None and result.exact(at) * 100 < min_exact - _SLACK:
        found.append(f"{percent(result.exact(at))} at H {at}, under {min_exact:g}")
    if max_drop is not None and between is not None:
        first, last = between
        for H in between:
            result.exact(H)  # raises where it was not measured
        best, worst = (0.0, first), (0.0, first, first)  # (share, depth); (drop, from depth, to depth)
        for H in (H for H in result.figures if first <= H <= last):
            best = max(best, (result.exact(H), H), key=lambda pair: pair[0])
            worst = max(worst, (best[0] - result.exact(H), best[1], H), key=lambda triple: triple[0])
        drop, start, end = worst
        if drop * 100 > max_drop + _SLACK:
            found.append(f"{percent(result.exact(start))} at H {start} fell to {percent(result.exact(end))} at "
                         f"H {end}, {drop * 100:.2f} points, more than {max_drop:g}")
    return found


def _read(path: Path) -> dict[str, Any]:
    evaluation = files.read_json(path)
    figures = evaluation.get("figures") if isinstance(evaluation, dict) else None
    if not (isinstance(figures, list) and figures and all(map(_is_figure, figures))
            and isinstance(evaluation.get("step"), int) and isinstance(evaluation.get("dataset"), str)):
        raise ReportError(f"{path} is not an evaluation of this program")
    return evaluation


def _is_figure(figure: Any) -> bool:
    """Depths, a count, and a share of right answers that is one: not-a-number passes no check."""
    if not isinstance(figure, dict) or not all(type(figure.get(name)) is int for name in ("H_test", "L_test", "n")):
        return False
    exact = figure.get(EXACT, "")
    return exact is None or isinstance(exact, (int, float)) and 0 <= exact <= 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax report", __doc__)
    parser.add_argument("run", nargs="+", type=arguments.text,
                        help="folder of a run (its newest evaluation counts) or an evaluation's JSON")
    parser.add_argument("--min_exact", type=arguments.number(0, 100), help="percent that every run must reach at --at")
    parser.add_argument("--at", type=arguments.integer(1), help="outer cycles (H_test)")
    parser.add_argument("--max_drop", type=arguments.number(0, 100),
                        help="points that a run may lose with depth in --between")
    parser.add_argument("--between", type=arguments.listed(arguments.integer(1), ascending=True), metavar="FROM,TO",
                        help="outer cycles (H_test)")
    arguments.add_format(parser, "text", "json")
    args = parser.parse_args(_with_comma(sys.argv[1:] if argv is None else argv))
    for value, depth in (("min_exact", "at"), ("max_drop", "between")):
        if (getattr(args, value) is None) != (getattr(args, depth) is None):
            parser.error(f"--{value} and --{depth} go together")
    if args.between and len(args.between) != 2:
        parser.error("--between must be two depths: FROM,TO")
    checks = {name: getattr(args, name) for name in ("min_exact", "at", "max_drop", "between")}
    return guarded(lambda: _report(args.run, checks, args.format == "json"))


def _with_comma(argv: Sequence[str]) -> list[str]:
    """--between FROM TO, as it was written before lists had commas, with one."""
    words = list(argv)
    for i, word in enumerate(words[:-2]):
        if word == "--between" and words[i + 1].isdigit() and words[i + 2].isdigit():
            words[i + 1:i + 3] = [f"{words[i + 1]},{words[i + 2]}"]
    return words


def _report(runs: Sequence[str], checks: dict[str, Any], as_json: bool) -> int:
    results = [result for run in runs for result in newest(run)]
    checked = any(value is not None for value in checks.values())
    verdicts = [faults(r, **checks) if checked else [] for r in results]
    failed = sum(map(bool, verdicts))
    if as_json:
        print(json.dumps([{"run": r.label, "evaluation": str(r.path), "step": r.evaluation["step"],
                           "dataset": r.evaluation["dataset"], "figures": list(r.figures.values()),
                           **({"fails": found} if checked else {})} for r, found in zip(results, verdicts)], indent=2))
        return 1 if failed else 0
    print(table(results))
    if checked:
        print()
        for result, found in zip(results, verdicts):
            print(f"{result.label}: " + ("FAIL: " + "; ".join(found) if found else "pass"))
        print(f"{len(results) - failed} of {len(results)} pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
