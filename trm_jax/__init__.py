"""Recursive reasoning models in JAX: RSM, TRM and HRM from one network and one set of recursions."""

import pathlib

__version__ = "0.1.0"
__path__.append(str(pathlib.Path(__file__).parent / "doors"))  # python -m trm_jax.solve and the like


def __getattr__(name: str):
    if name == "Solver":  # loads jax, so only when asked for
        from trm_jax.inference.solver import Solver
        return Solver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
