"""Kernels compiled by numba."""

from __future__ import annotations

from collections.abc import Callable

import numba


def jit(function: Callable) -> Callable:
    """The function, compiled when it is first called; it releases the GIL.

    Compiled code is kept beside the package or in the user's cache, as numba does; where neither can be written every
    process compiles anew.
    """
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:  # numba's, for a place that it does not find
        return numba.njit(function, nogil=True)
