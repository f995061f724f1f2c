"""Adapting weights to ARC tasks that they have not seen: a training run on the tasks' demonstrations alone.

It is a run like any other, with init_from, its dataset made of the new tasks, and their rows of the puzzle table begun
at the mean (weights/initial.py). Nothing but the network's shape and cycles need come from the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from trm_jax import config
from trm_jax.data import arc_build
from trm_jax.puzzles import arc
from trm_jax.runtime.text import percent
from trm_jax.weights import weights_file
from trm_jax.weights.weights_file import WeightsError


def experiment(weights: str | os.PathLike[str], tasks: str | os.PathLike[str], *, recipe: str | None = None,
               fields: Sequence[str] = (), num_aug: int | None = None) -> config.Experiment:
    """The run that adapts weights to tasks.

    Args:
      weights, tasks: what weights_file.read and arc_build.place_of take.
      recipe: name of the experiment whose training is taken; None: the weights' own.
      fields: "lr=0.001", ...: set last.
      num_aug: symmetries of each task; None: as many as the weights have at most.

    Raises:
      WeightsError: the weights are not of ARC, or have no puzzle table. ConfigError, DatasetError.
    """
    export = weights_file.read(weights)
    if not export.identifiers or export.weights.table is None:
        raise WeightsError(f"{weights} cannot be adapted: these are weights for {export.domain.title}, and adapt is "
                           "for those that know ARC's tasks by a puzzle table")
    place = arc_build.place_of(tasks)
    found, _ = arc_build.read_subsets(place["json_dir"], list(place["subsets"]), place["test_subset"], place["prefix"],
                                      not place["no_test_solutions"])
    if num_aug is None:
        names = [arc.parse_name(name)[0] for name in export.identifiers[1:]]
        num_aug = max(map(names.count, set(names))) - 1
    content = json.dumps([num_aug, {task.name: task.as_json() for task in found}])
    digest = hashlib.sha256(content.encode()).hexdigest()
    e = config.load(recipe) if recipe else export.experiment
    pairs, devices = sum(len(task.train) for task in found), jax.device_count()  # a batch holds a task once
    raw = config.to_json(e) | {"arch": config.to_json(export.experiment)["arch"], "init_from": os.fspath(weights)}
    raw["data"] = {"puzzle": "arc", "path": f"data/adapt-{place['test_subset']}-{digest[:8]}",
                   "make": {"source": "arc_json", "num_aug": num_aug} | place}
    raw["eval"] |= {"at_start": True}
    chosen = config.read_fields(fields)
    steps = chosen.get("total_steps", e.total_steps)
    return config.with_fields(raw, {
        "global_batch_size": max(devices, min(e.global_batch_size, pairs) // devices * devices),
        "lr_warmup_steps": min(e.lr_warmup_steps, steps // 10)} | chosen)


def summary(workdir: str | os.PathLike[str]) -> str:
    """A line on what came of it: the score before and after, where it is known, and the submission."""
    folder = Path(workdir) / "eval"
    steps = sorted(int(file.stem.removeprefix("step_")) for file in folder.glob("step_*.json")
                   if file.stem.removeprefix("step_").isdecimal())
    results: list[dict[str, Any]] = [json.loads((folder / f"step_{step}.json").read_text()) for step in steps]
    first, last = results[0]["figures"][-1], results[-1]["figures"][-1]
    before = f"{percent(first['pass@2'])} % before, " if not steps[0] else ""
    score = "no solutions to compare with" if last["pass@2"] is None else (
        f"pass@2 {before}{percent(last['pass@2'])} % after {steps[-1]:,} steps")
    return f"{score} ({last['tasks']} tasks); submission: {folder / results[-1]['submission']}"
