"""Figures of answers: exact, cell, verified, settled, by source."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trm_jax.evaluation import calibration
from trm_jax.inference import arc_voting
from trm_jax.training import losses
from trm_jax.training.run_folder import BEST

PASS = tuple(f"pass@{k}" for k in arc_voting.PASS_AT)  # ARC's


class Marks(NamedTuple):
    """What figures are made of: of n answers, [n] each."""

    valid: np.ndarray  # bool, has a label
    right: np.ndarray  # bool, on every labelled cell, and has one
    cell: np.ndarray  # share of the labelled cells
    solved: np.ndarray | None  # bool, says the verifier; None where the domain has no rules
    verdict: dict[str, np.ndarray]  # its reasons, bool each


def mark(domain, inputs, labels, answers) -> Marks:
    """inputs, labels, answers [n, S]. Unlabelled cells do not count."""
    labelled = labels != losses.IGNORE
    valid = labelled.any(1)
    hit, of = ((answers == labels) & labelled).sum(1), labelled.sum(1)
    verdict = domain.verify(inputs, answers) if domain.has_rules else None
    return Marks(valid, valid & (hit == of), hit / np.maximum(of, 1), verdict and verdict.solved,
                 verdict._asdict() if verdict else {})


def score(marks: Marks, settled, sources=None, source_names=(),
          signs: Mapping[str, np.ndarray] = types.MappingProxyType({})) -> dict[str, Any]:
    """Figures of n answers. settled bool [n]; sources [n] into source_names.

    Shares of an empty set are None, and so is the verified share without a verifier. Examples without any label are
    left out.

    Args:
      signs: name -> [n], the higher the likelier right (signals.predictors).
    """
    valid, right = marks.valid, marks.right
    wrong = valid & ~right

    def verified(among):
        return None if marks.solved is None else share(marks.solved, among)
    out = {
        "n": int(valid.sum()),
        "exact_accuracy": share(right, valid),
        "cell_accuracy": float(marks.cell[valid].mean()) if valid.any() else None,
        "settled": share(settled, valid),
        "settled_among_right": share(settled, right),
        "settled_among_wrong": share(settled, wrong),
        "verified": verified(valid),
        "counts": {"right": int(right.sum()), "wrong": int(wrong.sum()),
                   "settled_right": int((settled & right).sum()), "settled_wrong": int((settled & wrong).sum())},
        "verdict": {name: share(ok, valid) for name, ok in marks.verdict.items()},
        "signals": calibration.worth(right[valid], settled[valid],
                                     None if marks.solved is None else marks.solved[valid],
                                 {name: sign[valid] for name, sign in signs.items()}),
    }
    if sources is not None:
        out["by_source"] = {
            name: {"n": int((here := valid & (sources == i)).sum()), "exact_accuracy": share(right, here),
                   "settled": share(settled, here), "verified": verified(here)}
            for i, name in enumerate(source_names)}
    return out


def share(of: np.ndarray, among: np.ndarray) -> float | None:
    """Share of `among` that is also in `of`."""
    return float((of & among).sum() / among.sum()) if among.any() else None


def best(result: dict[str, Any], metric: str = BEST) -> float:
    return result["figures"][-1][metric] or 0.0


def scalars(result: dict[str, Any]) -> dict[str, float]:
    """The main figures, named for a chart: eval/exact_accuracy/H16_L4."""
    return {f"eval/{name}/H{f['H_test']}_L{f['L_test']}": f[name]
            for f in result["figures"] for name in ("exact_accuracy", "cell_accuracy", "settled", "verified", *PASS)
            if f.get(name) is not None}
