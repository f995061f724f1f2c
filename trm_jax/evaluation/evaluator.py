"""Evaluation: accuracy over test-time depth, what settled, what the verifier says; one unroll for all depths."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from trm_jax.data import pipeline
from trm_jax.data.loading import Dataset
from trm_jax.evaluation import calibration
from trm_jax.evaluation.scores import Marks, mark, score, share
from trm_jax.evaluation.unroll import Answers, answers_at, unit
from trm_jax.inference import answering, arc_voting, engine
from trm_jax.inference.settings import Settings
from trm_jax.models.network import Weights
from trm_jax.runtime import distributed
from trm_jax.training.system import System

REPORT_SECONDS = 10.0  # between progress lines


class Evaluator:
    """Evaluates weights on the test set; compiles once per L.

    Of ARC's answers the last evaluation's `votes` are kept, those of its last figure: what a submission is made of.
    """

    votes: arc_voting.Votes | None = None

    def __init__(self, system: System, data: Dataset, mesh: Mesh):
        self._system, self._data, self._mesh = system, data, mesh
        e = system.experiment.eval
        n = data.test.num_examples
        self.rows = np.arange(n)
        if e.max_examples and e.max_examples < n:
            self.rows = np.sort(np.random.default_rng(0).choice(n, e.max_examples, replace=False))
        devices = mesh.devices.size
        self._batch_size = -(-min(e.batch_size, len(self.rows)) // devices) * devices
        distributed.check_batch(self._batch_size, mesh)
        self._ballot = None  # makes empty votes
        if data.domain.identifies_tasks:
            self._ballot = arc_voting.ballot_of(system.experiment.data.path, data.test)

    def __call__(self, weights: Weights, step: int, L: int, note: Callable[[str], None]) -> dict[str, Any]:
        """The result, as `save` writes it.

        Args:
          L: inner cycles of the last training step, used where the config's L_test is empty.
          note: takes lines about the progress.
        """
        system, e = self._system, self._system.experiment.eval
        begun = time.perf_counter()
        self.votes = None
        figures = [figure for L_test in e.L_test or (L,) for figure in self._unroll(weights, L_test, note)]
        n, of = len(self.rows), self._data.test.num_examples
        return {
            "figures": figures,
            **({"solved": self._solve(weights, (e.L_test or (L,))[-1])} if e.restarts else {}),
            "dataset": system.experiment.data.path,
            "split": "test",
            "examples": n,
            "sample": "all of the split" if n == of else f"a seeded sample of {of}",
            "parameters": "EMA" if system.experiment.ema else "last",
            "parameter_count": system.model.parameter_count(),
            "step": int(step),
            "total_steps": system.total_steps,
            "settled_cycles": e.settled_cycles,
            "verified_as": self._data.domain.verified_as,
            "H_test_unit": unit(system.experiment.arch),
            "device": distributed.device_description(),
            "seconds": time.perf_counter() - begun,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": distributed.versions(),
        }

    def _solve(self, weights: Weights, L: int) -> dict[str, Any]:
        """What the engine makes of the same puzzles, with the verifier at its side. Each process takes its share."""
        mesh = distributed.data_mesh(jax.local_devices())
        weights = jax.device_put(jax.tree.map(distributed.gather_to_host, weights), distributed.replicated(mesh))
        e, n = self._system.experiment.eval, len(self.rows)
        settings = Settings(max_cycles=e.H_test[-1], settle=2 * e.settled_cycles, tries=e.restarts, vary=e.vary,
                            sigma=e.sigma)
        bound = self._system.model.bind(weights, L)

        def solved(numbers: np.ndarray) -> tuple[engine.Results, Marks]:
            domain, rows = self._data.domain, self.rows[numbers]
            [batch] = pipeline.test_batches(self._data.test, len(rows), rows=rows)
            r = answering.solve(bound, domain, batch["inputs"], settings, mesh=mesh,
                                identifiers=batch["puzzle_identifiers"], numbers=numbers)
            return r, mark(domain, batch["inputs"], batch["labels"], r.answers.tokens)
        mine = np.asarray(distributed.my_rows(n))
        parts = [(r.answers.verified, r.answers.attempt, marks.right, marks.valid, r.cycles, r.core_calls,
                  engine.flops(bound, r) * len(mine), r.seconds) for r, marks in ([solved(mine)] if len(mine) else [])]
        verified, attempt, right, valid, cycles, core_calls, flops, seconds = (
            np.concatenate([np.atleast_1d(part) for part in column])
            for column in zip(*(part for share in distributed.everyones(parts) for part in share)))
        return {"H_test": settings.max_cycles, "L_test": L, "settle": settings.settle, "restarts": e.restarts,
                "vary": e.vary, "sigma": e.sigma if e.vary in ("start", "cycle") else None, "n": n,
                "exact_accuracy": share(right, valid),
                "verified": float(verified.mean()),
                "by_restart": int((verified & (attempt > 0)).sum()),
                "mean_cycles": int(cycles.sum()) / n, "core_calls_per_example": int(core_calls.sum()) / n,
                "flops_per_example": float(flops.sum()) / n, "seconds": float(seconds.max())}

    def _unroll(self, weights: Weights, L: int, note) -> list[dict[str, Any]]:
        e, data = self._system.experiment.eval, self._data
        depths = np.asarray(e.H_test, np.int32)
        votes = [self._ballot() for _ in depths] if self._ballot else []
        kept: list[list[tuple[Marks, Answers]]] = [[] for _ in depths]
        done, reported = 0, time.perf_counter()
        for batch in pipeline.test_batches(data.test, self._batch_size, process_index=jax.process_index(),
                                           process_count=jax.process_count(), rows=self.rows):
            placed = distributed.put_batch(self._mesh, {k: batch[k] for k in ("inputs", "puzzle_identifiers")})
            found = answers_at(self._system.model.bind(weights, L), self._mesh, placed["inputs"],
                               placed["puzzle_identifiers"],
                               jax.device_put(depths, distributed.replicated(self._mesh)), e.stop_halted)
            answers = jax.tree.map(lambda array: distributed.my_share(array, axis=1), found)
            valid = batch.pop("valid")
            batch = {name: array[valid] for name, array in batch.items()}
            for k in range(len(depths)):
                at = jax.tree.map(lambda array, k=k, valid=valid: array[k, valid], answers)
                marks = mark(data.domain, batch["inputs"], batch["labels"], at.tokens)
                kept[k].append((marks, at._replace(tokens=None)))  # of 400,000 ARC inputs the tokens would be too many
            if votes:  # they count in the order of the puzzles, which all processes hear of
                whole, found = (jax.tree.map(distributed.gather_to_host, tree) for tree in (placed, found))
                for k, vote in enumerate(votes):
                    halts = np.zeros(self._batch_size) if found.halting_logit is None else found.halting_logit[k]
                    vote.add(whole["puzzle_identifiers"], whole["inputs"], found.tokens[k], halts)
            done = min(done + self._batch_size, len(self.rows))
            if time.perf_counter() - reported > REPORT_SECONDS and done < len(self.rows):
                reported = time.perf_counter()
                note(f"evaluating to H {depths[-1]}, L {L}: {done:,} of {len(self.rows):,} puzzles")
        shares = distributed.everyones(kept)
        kept = [[part for parts in zip(*of_depth) for part in parts] for of_depth in zip(*shares)]  # batch by batch
        sources = data.test.sources[self.rows] if data.test.sources is not None else None

        def figure(k: int, H: int) -> dict[str, Any]:
            marks, at = jax.tree.map(lambda *parts: np.concatenate(parts), *kept[k])
            settled = at.unchanged >= e.settled_cycles
            signs = calibration.predictors(H, at.unchanged, settled, at.residual, at.halting_logit)
            return {"H_test": H, "L_test": L, "flops_per_example": self._system.test_flops_per_example(H, L),
                    **score(marks, settled, sources, data.test.source_names, signs),
                    **({"mean_steps": float(at.done.mean())} if e.stop_halted else {}),
                    **(votes[k].score() if votes else {})}
        self.votes = votes[-1] if votes else None
        return [figure(k, int(H)) for k, H in enumerate(depths)]


