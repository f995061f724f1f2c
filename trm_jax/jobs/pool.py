"""The votes of several checkpoints of an ARC run taken together, by name: the published evaluator does it unasked.

    python -m trm_jax.main --config=experiments/trm_att_arc1.py --workdir=runs/arc1 --mode=pool

What comes out is the score of an ensemble, not of a model, and is not put among a run's evaluations: it is in
workdir/eval/pooled_N_to_step_M/result.json, with the evaluations of its checkpoints, and submission.json beside it.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

from trm_jax import config, puzzles
from trm_jax.data.loading import Dataset
from trm_jax.evaluation import tables
from trm_jax.evaluation.evaluator import Evaluator
from trm_jax.inference.arc_voting import Votes
from trm_jax.runtime import distributed, files
from trm_jax.training import run_folder


@distributed.together()
def pool(experiment: config.Experiment, workdir: str | os.PathLike[str],
         note: Callable[[str], None] = distributed.say) -> dict[str, Any]:
    """Evaluates every checkpoint that the run has kept (checkpoint.keep_last, keep_best) and pools their votes at the
    last of H_test and L_test."""
    if not puzzles.domain_class(experiment.data.puzzle).identifies_tasks:
        raise config.ConfigError(f"data.puzzle = {experiment.data.puzzle!r}: --mode=pool is for 'arc', where answers "
                                 "are voted on")
    run, mesh, data = run_folder.open_run(workdir, experiment), distributed.data_mesh(), Dataset.load(experiment)
    run.require_fit(data)
    evaluator, steps = Evaluator(run.system, data, mesh), run.steps()
    votes, evaluations = None, []
    for step in steps:
        weights, _ = run.weights(mesh, step)
        evaluations.append(evaluator(weights, step, run.L(step), note))
        note(tables.table(evaluations[-1]))
        assert evaluator.votes is not None  # the puzzle identifies tasks
        votes = Votes.pool([votes, evaluator.votes]) if votes else evaluator.votes
    assert votes is not None  # there are steps
    last = evaluations[-1]["figures"][-1]
    pooled = {"H_test": last["H_test"], "L_test": last["L_test"], **votes.score()}
    result = {"pooled": pooled, "steps": steps, "submission": "submission.json", "evaluations": evaluations}
    folder = pathlib.Path(workdir) / "eval" / f"pooled_{len(steps)}_to_step_{steps[-1]}"
    if distributed.is_primary():
        votes.write_submission(folder / "submission.json")
        files.write_json(folder / "result.json", result)
    note("\n".join(tables.voted([pooled])))
    note(f"written to {folder}")
    return result
