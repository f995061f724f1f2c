"""What the signs of convergence are worth: how well "settled", the residual and the like tell right answers from wrong.

A sign is judged on the same n answers that the accuracy is of. "Settled" is a yes or no, so it has a table, a precision
and a recall; the others are numbers and have an AUROC: the chance that of a right answer and a wrong one, both drawn at
random, the right one has the better number, ties counting half. 0.5 says nothing, under 0.5 points the wrong way.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np


def predictors(H: int, unchanged: np.ndarray, settled: np.ndarray, residual: np.ndarray,
               halting_logit: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Name -> float64 [n], the higher the likelier right, after H test steps.

    Args:
      unchanged: int [n], steps since the answer last changed.
      settled: bool [n].
      residual: [n], relative change of the latents in the last step. (Its logarithm would rank no differently.)
      halting_logit: [n], where there is a halting head.
    """
    since = np.where(settled, H - unchanged.astype(np.float64), np.inf)  # the step that brought the last change
    found = {"residual": -residual.astype(np.float64), "cycles_to_settle": -since}
    return found if halting_logit is None else found | {"halting_logit": halting_logit.astype(np.float64)}


def worth(right: np.ndarray, settled: np.ndarray, verified: np.ndarray | None,
          scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """All of it for n answers, as JSON takes it; None where a share or an AUROC is not defined.

    Args:
      right, settled, verified: bool [n]; verified None: the domain has no verifier.
      scores: name -> [n], see `predictors`.
    """
    n_right, n_wrong = int(right.sum()), int((~right).sum())
    missing = [name for name, count in (("right", n_right), ("wrong", n_wrong)) if not count]
    judged = {name: auroc(score, right) for name, score in scores.items()}
    return {
        "right": n_right,
        "wrong": n_wrong,
        "table": table(right, settled, verified),
        "precision": part(settled & right, settled),
        "recall": part(settled & right, right),
        "auroc": {name: value for name, (value, _) in judged.items()},
        "auroc_standard_error": {name: error for name, (_, error) in judged.items()},
        "auroc_undefined": f"no {' and no '.join(missing)} answers" if missing else None,
    }


def table(right: np.ndarray, settled: np.ndarray, verified: np.ndarray | None = None) -> dict[str, dict[str, Any]]:
    """{"settled_right_verified": {"n", "share" of all}, ...}: every combination once; four without a verifier."""
    signs = [{"settled": settled, "unsettled": ~settled}, {"right": right, "wrong": ~right}]
    if verified is not None:
        signs.append({"verified": verified, "refused": ~verified})
    counts = {"_".join(names): int(np.all([sign[name] for sign, name in zip(signs, names)], 0).sum())
              for names in itertools.product(*signs)}
    return {name: {"n": n, "share": n / len(right) if len(right) else None} for name, n in counts.items()}


def part(of: np.ndarray, among: np.ndarray) -> dict[str, Any]:
    """{"n": how many of `among` are in `of`, "of": how many there are, "share": None of nothing}. bool [n] both."""
    n, total = int((of & among).sum()), int(among.sum())
    return {"n": n, "of": total, "share": n / total if total else None}


def auroc(score: np.ndarray, right: np.ndarray) -> tuple[float | None, float | None]:
    """(AUROC, its standard error). None without both right and wrong answers; no error with only one of either.

    Exact, from ranks; what is not a number ranks lowest. The standard error is that of DeLong et al. 1988: how far
    another draw of puzzles would move it. It is 0 where the two are fully apart, however few they are.
    """
    score = np.where(np.isnan(score), -np.inf, score)
    positive, negative = np.sort(score[right]), np.sort(score[~right])
    pairs = len(positive) * len(negative)
    if not pairs:
        return None, None
    beaten = _twice_below(negative, positive)  # by each right answer
    value = int(beaten.sum()) / (2 * pairs)
    if min(len(positive), len(negative)) < 2:
        return value, None
    shares = beaten / (2 * len(negative)), _twice_below(positive, negative) / (2 * len(positive))
    return value, float(np.sqrt(sum(s.var(ddof=1) / len(s) for s in shares)))


def _twice_below(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """int64 like `values`: twice the number of `ordered` below each, and once those equal to it."""
    return np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
