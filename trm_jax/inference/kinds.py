"""Names the kind of a puzzle that was given to weights of another kind."""

from __future__ import annotations

from typing import Any

from trm_jax import puzzles
from trm_jax.weights import weights_file


def other_kind(value: Any, domain: puzzles.Domain) -> str:
    """What a puzzle that `domain` cannot read looks like, and what to try; "" if it looks like nothing else."""
    for name in puzzles.names():
        found = puzzles.domain_class(name).recognised(value)
        if found and found != domain.title:
            fitting = [f"--weights={weights}" for weights in weights_file.named()
                       if _fits(puzzles.get(**weights_file.puzzle_in(weights)), value, found)]
            what = f"try {fitting[0]}" if fitting else "no weights for these come with this package"
            return f"this looks like {found}; these weights are for {domain.title}: {what}"
    return ""


def _fits(domain: puzzles.Domain, value: Any, title: str) -> bool:
    try:
        return domain.title == title or bool(domain.encode_value(value).any())
    except puzzles.PuzzleError:
        return False
