"""What one device of this machine can do, measured: matrix products, and bytes of memory moved."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trm_jax.runtime.text import human

# Dense products of bfloat16, FLOP/s, and bytes/s of memory, by the vendors' data sheets.
DATA_SHEET = {"NVIDIA H100 80GB HBM3": (989e12, 3.35e12), "NVIDIA H200": (989e12, 4.8e12),
              "NVIDIA A100-SXM4-80GB": (312e12, 2.04e12), "NVIDIA A100-SXM4-40GB": (312e12, 1.56e12)}
TYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


def _best(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest of at least three runs."""
    jax.block_until_ready(run())
    times, begun = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - before)
    return min(times)


def _is_cpu() -> bool:
    return jax.local_devices()[0].platform == "cpu"


def products(kind: str, seconds: float = 0.3) -> float:
    """FLOP/s of products with operands of a type ("f32", "bf16") and float32 sums, at a size that fills the device."""
    n = 1024 if _is_cpu() else 8192
    drawn = np.random.default_rng(0).normal(size=1_000_003)  # products of zeros or ones can be faster
    a, b = (jax.device_put(np.resize(drawn, shape).astype(TYPES[kind])) for shape in ((n, n // 2), (n // 2, n)))
    multiply = jax.jit(lambda a, b: lax.dot_general(a, b, (((1,), (0,)), ((), ())),
                                                    preferred_element_type=jnp.float32))
    return 2 * n * n * (n // 2) / _best(lambda: multiply(a, b), seconds)


def bandwidth(count: int, repeats: int, seconds: float = 0.3) -> float:
    """Bytes/s of y + 0.5 x, in place, on float32 vectors of `count`."""
    held = [jnp.ones(count, jnp.float32), jnp.ones(count, jnp.float32)]
    triad = jax.jit(lambda x, y: lax.fori_loop(0, repeats, lambda _, y: y + 0.5 * x, y), donate_argnums=1)

    def run() -> jax.Array:
        held[1] = triad(*held)
        return held[1]
    return 3 * 4 * count * repeats / _best(run, seconds)


def peaks(seconds: float = 0.3) -> dict[str, Any]:
    """All of it, of the first device of this process; takes about four times `seconds`."""
    kind = jax.local_devices()[0].device_kind
    sizes = {"cache": (2**17, 64), "memory": (2**24, 4)} if _is_cpu() else {"memory": (2**28, 4)}
    sheet = DATA_SHEET.get(kind)
    return {"device": kind, "products": {name: products(name, seconds) for name in TYPES},
            "bandwidth": {name: bandwidth(*size, seconds) for name, size in sizes.items()},
            "data_sheet": None if sheet is None else {"bf16": sheet[0], "memory": sheet[1]}}


def show(machine: dict[str, Any]) -> str:
    """A line."""
    sheet = machine["data_sheet"]
    return (f"peaks measured on {machine['device']}: products "
            + ", ".join(f"{human(value, 'FLOP/s')} ({name})" for name, value in machine["products"].items()) + "; "
            + ", ".join(f"{name} {human(value, 'B/s')}" for name, value in machine["bandwidth"].items())
            + (f"; data sheet {human(sheet['bf16'], 'FLOP/s')} (bf16), {human(sheet['memory'], 'B/s')}" if sheet
               else ""))
