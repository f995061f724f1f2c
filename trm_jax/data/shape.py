"""What a network has to know of its data."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the data decides: S grid tokens, V vocabulary, rows of the puzzle table."""

    seq_len: int
    vocab_size: int
    num_puzzle_identifiers: int = 1
