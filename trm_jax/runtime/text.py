"""Numbers and tables for people."""

from __future__ import annotations

from collections.abc import Sequence


def human(value: float, unit: str = "") -> str:
    """Three digits and an SI prefix: 1234567, "B" -> '1.23 MB'. Whole numbers under a thousand stay as they are."""
    if value == int(value) and abs(value) < 1000:
        return f"{int(value)} {unit}".rstrip()
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 999.5 or prefix == "E":
            digits = max(0, 2 - (abs(value) >= 9.995) - (abs(value) >= 99.95))
            return f"{value:.{digits}f} {prefix}{unit}".rstrip()
        value /= 1000
    raise AssertionError("unreachable")


def clock(seconds: float) -> str:
    """Hours, minutes, seconds: 3723 -> '1:02:03'."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def percent(value: float | None) -> str:
    """Two decimals, cut off rather than rounded up: 99.996 % is not 100 %."""
    return "-" if value is None else f"{int(value * 10_000 + 1e-6) / 100:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), indent: str = "") -> str:
    """Columns as wide as what is in them, two spaces apart; those of `left` are aligned on the left, others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    left = [i % len(widths) for i in left]
    return "\n".join(indent + "  ".join(
        cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
    ).rstrip() for row in [head, *rows])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
