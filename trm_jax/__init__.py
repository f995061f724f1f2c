"""Recursive reasoning models in JAX: RSM, TRM and HRM from one network and one set of recursions."""

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "Solver":  # loads jax, so only when asked for
        from trm_jax.solver import Solver
        return Solver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
