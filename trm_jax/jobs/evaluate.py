"""Evaluating a run or a weights file, and keeping what was found."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from trm_jax import config
from trm_jax.data.loading import Dataset
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.evaluation.tables import table
from trm_jax.inference import arc_voting
from trm_jax.models.network import Weights
from trm_jax.puzzles.domain import puzzle_of
from trm_jax.runtime import distributed, files
from trm_jax.training import puzzle_table, run_folder
from trm_jax.training.system import System
from trm_jax.weights import weights_file
from trm_jax.weights.weights_file import WeightsError


def save(result: dict[str, Any], workdir: str | os.PathLike[str], of: str = "",
         votes: arc_voting.Votes | None = None) -> pathlib.Path:
    """Writes workdir/eval/step_N.json (process 0), and of votes the submission, step_N/submission.json beside it.

    Args:
      of: makes it step_N.OF.json, so that what the run itself found is not replaced.
      votes: of the result's last figure.
    """
    path = pathlib.Path(workdir) / "eval" / f"step_{result['step']}{of and '.' + of}.json"
    if distributed.is_primary():
        path.parent.mkdir(parents=True, exist_ok=True)
        if votes:
            file = votes.write_submission(path.with_suffix("") / "submission.json")
            result = result | {"submission": str(file.relative_to(path.parent))}
        files.write_json(path, result)
    return path


def evaluate(experiment, workdir: str | os.PathLike[str],
             note: Callable[[str], None] = distributed.say) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run, or its last one if none has been evaluated yet.

    The config must be the run's own but for how to evaluate (`config.MAY_CHANGE`) and on which dataset.
    """
    run, mesh, data = run_folder.open_run(workdir, experiment), distributed.data_mesh(), Dataset.load(experiment)
    run.require_fit(data)
    weights, step = run.weights(mesh)
    evaluator = Evaluator(run.system, data, mesh)
    result = evaluator(weights, step, run.L(step), note)
    path = save(result, workdir, result["finished"].partition("+")[0].replace(":", ""), evaluator.votes)
    note(table(result))
    note(f"written to {path}")
    return result


def evaluate_file(experiment: config.Experiment, workdir: str | os.PathLike[str], path: str | os.PathLike[str],
                  note: Callable[[str], None] = distributed.say) -> dict[str, Any]:
    """As evaluate.evaluate, but of a weights file: dataset and evaluation settings are those of `experiment`.

    Raises:
      WeightsError: listing every field outside of these in which it differs from the file's own config.
    """
    export, data, mesh = weights_file.load(path), Dataset.load(experiment), distributed.data_mesh()
    theirs, ours = config.to_json(export.experiment), config.to_json(experiment)
    found = {name: pair for name, pair in config.differences(theirs, ours).items() if name not in ("data.path", "seed")}
    for name, a, b in (*((f"dataset {k}", v, getattr(data.shape, k)) for k, v in vars(export.shape).items()),
                       ("dataset puzzle", export.puzzle, puzzle_of(data.domain))):
        if a != b:
            found[name] = a, b
    if found:
        raise WeightsError(f"{path} does not fit this config:\n  " + "\n  ".join(
            f"{name}: the file has {a!r}, now {b!r}" for name, (a, b) in found.items()))
    system = System(experiment, data.shape, export.metadata["total_steps"])
    places = puzzle_table.weights_shardings(system.model, mesh)
    weights = Weights(*(jax.tree.map(lambda a, place=place: jax.device_put(a, place), tree)
                        for tree, place in zip(export.weights, places)))
    evaluator = Evaluator(system, data, mesh)
    result = evaluator(weights, export.metadata["step"], export.metadata["L"], note)
    result |= {"parameters": export.metadata["parameters"],
               "weights": {"file": os.fspath(path), "dtype": export.metadata["dtype"],
                           "sha256": hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()}}
    written = save(result, workdir, pathlib.Path(path).stem, evaluator.votes)
    note(table(result))
    note(f"weights: {path} ({export.metadata['dtype']}); written to {written}")
    return result
