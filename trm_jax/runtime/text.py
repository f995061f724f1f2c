"""Numbers and tables for people."""

from __future__ import annotations


def human_flops(flops_per_second: float) -> str:
    """Three digits and a unit: 1.23e13 -> '12.3 TFLOP/s'."""
    scale, units = 1e6, ("MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s", "EFLOP/s")
    for unit in units:
        if flops_per_second < 999.5 * scale or unit == units[-1]:
            value = flops_per_second / scale
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
        scale *= 1e3
    raise AssertionError("unreachable")


def clock(seconds: float) -> str:
    """Hours, minutes, seconds: 3723 -> '1:02:03'."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def percent(value: float | None) -> str:
    """Two decimals, cut off rather than rounded up: 99.996 % is not 100 %."""
    return "-" if value is None else f"{int(value * 10_000 + 1e-6) / 100:.2f}"


def human(value: float, unit: str) -> str:
    """1234567 -> '1.23 M'."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} E{unit}"
