"""What a network has to know of its data."""

from __future__ import annotations

import dataclasses

SIZES = ("seq_len", "vocab_size", "num_puzzle_identifiers")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the data decides: S grid tokens, V vocabulary, rows of the puzzle table, and the domain's units."""

    seq_len: int
    vocab_size: int
    num_puzzle_identifiers: int = 1
    units: tuple[tuple[int, ...], ...] = ()  # see Domain.units

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers alone, for files: the domain has the rest."""
        return {name: getattr(self, name) for name in SIZES}
