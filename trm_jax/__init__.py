"""Recursive reasoning models in JAX: RSM, TRM and HRM from one network and one set of recursions.

    solver = trm_jax.Solver.load("rsm-sudoku-quick")
    [answer] = solver.solve(["6.1..4.2883...2....5.1834..1832..57....917863......2.471.42..3..4.361..73..87..4."])
    trm_jax.train(trm_jax.load_experiment("rsm_sudoku:quick"), "runs/quick")
"""

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trm_jax.config import load as load_experiment
    from trm_jax.inference.settings import Settings
    from trm_jax.inference.solver import Answer, Solver
    from trm_jax.jobs.evaluate import evaluate
    from trm_jax.jobs.train import train

__version__ = "0.1.0"
__all__ = ["Answer", "Settings", "Solver", "evaluate", "load_experiment", "train"]
__path__.append(str(pathlib.Path(__file__).parent / "doors"))  # python -m trm_jax.solve and the like

_WHERE = {"Answer": "inference.solver:Answer", "Settings": "inference.settings:Settings",
          "Solver": "inference.solver:Solver", "evaluate": "jobs.evaluate:evaluate",
          "load_experiment": "config:load", "train": "jobs.train:train"}


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and jax with it, only then."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(importlib.import_module(f"trm_jax.{module}"), attribute)
