"""Evaluating a run or a weights file, and keeping what was found."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from trm_jax import config
from trm_jax.data import dataset
from trm_jax.data.loading import Dataset
from trm_jax.data.shape import Shape
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.evaluation.tables import table
from trm_jax.inference import arc_voting
from trm_jax.models.layers import swiglu_hidden
from trm_jax.models.network import Weights, prefix_len
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


@distributed.together()
def evaluate(experiment: config.Experiment, workdir: str | os.PathLike[str],
             note: Callable[[str], None] = distributed.say) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run, or its last one if none has been evaluated yet.

        deeper = trm_jax.load_experiment("rsm_sudoku:quick", ["eval.H_test=16,256"])
        result = trm_jax.evaluate(deeper, "runs/rsm_sudoku-quick")
        print([figure["exact_accuracy"] for figure in result["figures"]])

    Args:
      experiment: must be the run's own but for how to evaluate (`config.MAY_CHANGE`) and on which dataset.
      workdir: the run's folder; eval/step_N.json in it will hold the result.
      note: takes lines for people: progress, then a table.

    Returns {"step", "dataset", "figures": [{"H_test", "L_test", "n", "exact_accuracy" (a share), ...}], ...}, a figure
    for every depth. Raises ConfigError, CheckpointError or DatasetError.
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


# Fields of the network that training alone looks at.
NOT_ASKED = ("loss", "remat", "attention", "grad_calls", "grad_cycles", "prob_detach_prev_H", "halt_exploration_prob",
             "halt_max_steps", "step_loss_decay", "update_noise", "solver_decay")


def asked(experiment: config.Experiment, shape: Shape) -> dict[str, Any]:
    """What a config says that changes an answer, by dotted names; sizes and numbers of cycles as they come out."""
    a, e = experiment.arch, experiment
    arch = config.to_json(e)["arch"]
    tokens = shape.seq_len + prefix_len(a)
    arch |= {"mlp_hidden_size": a.mlp_hidden_size or swiglu_hidden(a.hidden_size, a.expansion),
             "mixer_hidden_size": a.mixer_hidden_size or swiglu_hidden(tokens, a.expansion),
             "puzzle_emb_len": prefix_len(a), "H_cycles": a.test_H_cycles or a.H_cycles,
             "L_cycles": a.L_cycles + sum(e.curriculum_L_to_add)}
    grows = a.supervision == "terminal" and a.recursion != "multi_z"  # how far, the weights tell and H_test asks
    meaningless = {
        "expansion": True, "test_H_cycles": True, "H_cycles": a.supervision == "terminal", "L_cycles": grows,
        "num_heads": a.mixer != "attention", "mixer_hidden_size": a.mixer == "attention",
        "rope_theta": a.pos_encodings != "rope", "rope_columns": a.pos_encodings != "rope",
        "start_std": a.start != "random", "update_share": a.update != "damped",
        "solver_patience": a.update != "solver", "solver_decay_test": a.update != "solver",
        "solver_min_size": a.update != "solver",
        "halt_residual": a.update != "solver" and not e.eval.stop_halted,
        "halt_by": not e.eval.stop_halted, "no_ACT_continue": not e.eval.stop_halted}
    return {"data.puzzle": e.data.puzzle, **{f"arch.{name}": value for name, value in arch.items()
                                             if name not in NOT_ASKED and not meaningless.get(name)}}


def rows_by_name(export: weights_file.Export, data: Dataset, experiment: config.Experiment) -> weights_file.Export:
    """With the rows of the puzzle table in the order of the dataset's identifiers; as it is where it names none."""
    table = export.weights.table
    if export.identifiers is None or table is None or experiment.data.puzzle != "arc":
        return export
    row = {name: i for i, name in enumerate(export.identifiers)}
    names = dataset.load_identifiers(experiment.data.path)
    if missing := [name for name in names if name not in row]:
        raise WeightsError(f"the weights have not learned {len(missing):,} of the {len(names):,} puzzle identifiers of "
                           f"{experiment.data.path}: {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}")
    weights = export.weights._replace(table=table[np.array([row[name] for name in names])])
    shape = dataclasses.replace(export.shape, num_puzzle_identifiers=len(names))
    return export._replace(weights=weights, shape=shape, identifiers=names)


@distributed.together()
def evaluate_file(experiment: config.Experiment, workdir: str | os.PathLike[str], path: str | os.PathLike[str],
                  note: Callable[[str], None] = distributed.say) -> dict[str, Any]:
    """As evaluate.evaluate, but of weights (a name, a file, a run's folder, hf://OWNER/NAME): dataset and evaluation
    settings are those of `experiment`.

    ARC's puzzles are known by the names of their identifiers, in whatever order the file and the dataset have them.

    Raises:
      WeightsError: listing every field that changes an answer in which it differs from the file's own config; or
        identifiers of the dataset that the file has not learned.
    """
    place = weights_file.locate(path)
    export, data, mesh = weights_file.read(place), Dataset.load(experiment), distributed.data_mesh()
    trained = dataclasses.replace(export.experiment, eval=experiment.eval)
    theirs, ours = asked(trained, export.shape), asked(experiment, data.shape)
    found = {name: (theirs[name], ours[name]) for name in theirs if name in ours and theirs[name] != ours[name]}
    export = rows_by_name(export, data, experiment)
    for name, a, b in (*((f"dataset {k}", v, getattr(data.shape, k)) for k, v in export.shape.sizes.items()),
                       ("dataset puzzle", puzzle_of(export.domain), puzzle_of(data.domain))):
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
                           "sha256": files.digest(place) if place.is_file() else None}}
    written = save(result, workdir, pathlib.PurePath(path).stem, evaluator.votes)
    note(table(result))
    note(f"weights: {path} ({export.metadata['dtype']}); written to {written}")
    return result
