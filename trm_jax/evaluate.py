"""Evaluation: accuracy over test-time depth, what settled, what the verifier says; one unroll for all depths."""

from __future__ import annotations

import datetime
import functools
import os
import pathlib
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from trm_jax import (
    arc_voting,
    checkpoints,
    config,
    distributed,
    inference,
    losses,
    metrics,
    puzzle_table,
    recursion,
    signals,
)
from trm_jax.data import pipeline
from trm_jax.distributed import AXIS
from trm_jax.models.network import Model
from trm_jax.state import Data, System, Weights, total_steps

Array = jax.Array
BEST = "exact_accuracy"  # at the last of H_test and L_test: what "the best checkpoint" means
PASS = tuple(f"pass@{k}" for k in arc_voting.PASS_AT)  # ARC's
REPORT_SECONDS = 10.0  # between progress lines


class Answers(NamedTuple):
    """What a batch answers at each of K depths."""

    tokens: Array  # uint8 [K, B, S]
    unchanged: Array  # int32 [K, B], test steps since the answer last changed
    done: Array  # int32 [K, B], test steps done: all, unless slots stop when they have halted
    residual: Array  # float32 [K, B], of the last test step done
    halting_logit: Array | None  # float32 [K, B], q_halt; None without a halting head


@functools.partial(jax.jit, static_argnames=("model", "mesh", "L", "stop_halted"))
def answers_at(model: Model, mesh: Mesh, weights: Weights, inputs: Array, identifiers: Array, depths: Array,
               L: int, stop_halted: bool = False) -> Answers:
    """Answers after each of `depths` [K] test steps (ascending, see Model.test_step), all from one unroll.

    The batch is split over the mesh, and no device hears of another, but for their columns of a split puzzle table.
    """
    split = puzzle_table.is_split(model, mesh)

    def local(weights, inputs, identifiers, depths):
        halts = functools.partial(model.wants_to_halt, weights.params) if stop_halted else None
        core = model.core(weights.params)
        decode = functools.partial(model.answer, weights.params)
        x = model.embed(weights.params, inputs, puzzle_table.rows_of(model, weights.table, identifiers, split))

        def advance(watched, cycles):
            watched = recursion.unroll_watched(core, watched, x, cycles, L, decode, model.test_step, halts)
            q_halt = model.halting(weights.params, watched.latents.y)[:, 0] if model.arch.halting_head else None
            return watched, Answers(watched.answer, watched.unchanged, watched.done, watched.residual, q_halt)

        start = recursion.watch(model.initial_latents(weights.fixed, inputs.shape[0]), decode)
        steps = jnp.diff(depths, prepend=jnp.zeros(1, depths.dtype))
        return lax.scan(advance, start, steps)[1]

    return jax.shard_map(local, mesh=mesh, in_specs=(puzzle_table.weights_specs(model, mesh), P(AXIS), P(AXIS), P()),
                         out_specs=P(None, AXIS), check_vma=False)(weights, inputs, identifiers, depths)


class Evaluator:
    """Evaluates weights on the test set; compiles once per L.

    Of ARC's answers the last evaluation's `votes` are kept, those of its last figure: what a submission is made of.
    """

    votes: arc_voting.Votes | None = None

    def __init__(self, system: System, data: Data, mesh: Mesh):
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
        if data.domain.name == "arc":
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
        """What the engine makes of the same puzzles, with the verifier at its side. Process 0's devices compute."""
        weights = jax.tree.map(distributed.gather_to_host, weights)
        if not distributed.is_primary():
            return {}
        mesh = distributed.data_mesh(jax.local_devices())
        weights = jax.device_put(weights, distributed.replicated(mesh))
        e, domain, test = self._system.experiment.eval, self._data.domain, self._data.test
        settings = inference.Settings(max_cycles=e.H_test[-1], settle=2 * e.settled_cycles, restarts=e.restarts,
                                      vary=e.vary, sigma=e.sigma)
        n = len(self.rows)
        [batch] = pipeline.test_batches(test, n, rows=self.rows)
        r = inference.solve(self._system.model, weights, batch["inputs"], L, settings, mesh=mesh,
                            identifiers=batch["puzzle_identifiers"], **inference.rules(domain))
        marks = mark(domain, batch["inputs"], batch["labels"], r.answers.tokens)
        return {"H_test": settings.max_cycles, "L_test": L, "settle": settings.settle, "restarts": e.restarts,
                "vary": e.vary, "sigma": None if e.vary == "symmetry" else e.sigma, "n": n,
                "exact_accuracy": share(marks.right, marks.valid),
                "verified": float(r.answers.verified.mean()),
                "by_restart": int((r.answers.verified & (r.answers.restart > 0)).sum()),
                "mean_cycles": r.cycles / n, "core_calls_per_example": r.core_calls / n,
                "flops_per_example": inference.flops(self._system.model, r, L), "seconds": r.seconds}

    def _unroll(self, weights: Weights, L: int, note) -> list[dict[str, Any]]:
        e, data = self._system.experiment.eval, self._data
        depths = np.asarray(e.H_test, np.int32)
        per_process = self._batch_size // jax.process_count()
        local = slice(jax.process_index() * per_process, (jax.process_index() + 1) * per_process)
        votes = [self._ballot() for _ in depths] if self._ballot else []
        kept: list[list[tuple[Marks, Answers]]] = [[] for _ in depths]
        done, reported = 0, time.perf_counter()
        for batch in pipeline.test_batches(data.test, self._batch_size, rows=self.rows):
            placed = distributed.put_batch(
                self._mesh, {k: batch[k][local] for k in ("inputs", "puzzle_identifiers")})
            answers = answers_at(self._system.model, self._mesh, weights, placed["inputs"],
                                 placed["puzzle_identifiers"],
                                 jax.device_put(depths, distributed.replicated(self._mesh)), L, e.stop_halted)
            answers = jax.tree.map(distributed.gather_to_host, answers)
            valid = batch.pop("valid")
            batch = {name: array[valid] for name, array in batch.items()}
            for k in range(len(depths)):
                at = jax.tree.map(lambda array, k=k, valid=valid: array[k, valid], answers)
                marks = mark(data.domain, batch["inputs"], batch["labels"], at.tokens)
                kept[k].append((marks, at._replace(tokens=None)))  # of 400,000 ARC inputs the tokens would be too many
                if votes:
                    halts = np.zeros(len(at.tokens)) if at.halting_logit is None else at.halting_logit
                    votes[k].add(batch["puzzle_identifiers"], batch["inputs"], at.tokens, halts)
            done += int(valid.sum())
            if time.perf_counter() - reported > REPORT_SECONDS and done < len(self.rows):
                reported = time.perf_counter()
                note(f"evaluating to H {depths[-1]}, L {L}: {done:,} of {len(self.rows):,} puzzles")
        sources = data.test.sources[self.rows] if data.test.sources is not None else None

        def figure(k: int, H: int) -> dict[str, Any]:
            marks, at = jax.tree.map(lambda *parts: np.concatenate(parts), *kept[k])
            settled = at.unchanged >= e.settled_cycles
            signs = signals.predictors(H, at.unchanged, settled, at.residual, at.halting_logit)
            return {"H_test": H, "L_test": L, "flops_per_example": self._system.test_flops_per_example(H, L),
                    **score(marks, settled, sources, data.test.source_names, signs),
                    **({"mean_steps": float(at.done.mean())} if e.stop_halted else {}),
                    **(votes[k].score() if votes else {})}
        self.votes = votes[-1] if votes else None
        return [figure(k, int(H)) for k, H in enumerate(depths)]


def unit(arch: config.Arch) -> str:
    """What H_test counts, and settled_cycles with it."""
    if arch.supervision == "terminal":
        return "outer cycles"
    return f"supervision steps of {arch.H_cycles} outer cycle{'s' * (arch.H_cycles > 1)} each"


class Marks(NamedTuple):
    """What figures are made of: of n answers, [n] each."""

    valid: np.ndarray  # bool, has a label
    right: np.ndarray  # bool, on every labelled cell, and has one
    cell: np.ndarray  # share of the labelled cells
    solved: np.ndarray | None  # bool, says the verifier; None where the domain has no rules
    verdict: dict[str, np.ndarray]  # its reasons, bool each


def mark(domain, inputs, labels, answers) -> Marks:
    """inputs, labels, answers [n, S]. Unlabelled cells do not count."""
    labelled = labels != losses.IGNORE
    valid = labelled.any(1)
    hit, of = ((answers == labels) & labelled).sum(1), labelled.sum(1)
    verdict = domain.verify(inputs, answers) if domain.verified_as else None
    return Marks(valid, valid & (hit == of), hit / np.maximum(of, 1), verdict and verdict.solved,
                 verdict._asdict() if verdict else {})


def score(marks: Marks, settled, sources=None, source_names=(),
          signs: Mapping[str, np.ndarray] = types.MappingProxyType({})) -> dict[str, Any]:
    """Figures of n answers. settled bool [n]; sources [n] into source_names.

    Shares of an empty set are None, and so is the verified share without a verifier. Examples without any label are
    left out.

    Args:
      signs: name -> [n], the higher the likelier right (signals.predictors).
    """
    valid, right = marks.valid, marks.right
    wrong = valid & ~right

    def verified(among):
        return None if marks.solved is None else share(marks.solved, among)
    out = {
        "n": int(valid.sum()),
        "exact_accuracy": share(right, valid),
        "cell_accuracy": float(marks.cell[valid].mean()) if valid.any() else None,
        "settled": share(settled, valid),
        "settled_among_right": share(settled, right),
        "settled_among_wrong": share(settled, wrong),
        "verified": verified(valid),
        "counts": {"right": int(right.sum()), "wrong": int(wrong.sum()),
                   "settled_right": int((settled & right).sum()), "settled_wrong": int((settled & wrong).sum())},
        "verdict": {name: share(ok, valid) for name, ok in marks.verdict.items()},
        "signals": signals.worth(right[valid], settled[valid], None if marks.solved is None else marks.solved[valid],
                                 {name: sign[valid] for name, sign in signs.items()}),
    }
    if sources is not None:
        out["by_source"] = {
            name: {"n": int((here := valid & (sources == i)).sum()), "exact_accuracy": share(right, here),
                   "settled": share(settled, here), "verified": verified(here)}
            for i, name in enumerate(source_names)}
    return out


def share(of: np.ndarray, among: np.ndarray) -> float | None:
    """Share of `among` that is also in `of`."""
    return float((of & among).sum() / among.sum()) if among.any() else None


def best_metric(experiment: config.Experiment) -> str:
    """The figure by which checkpoints are ranked: BEST, but for labels that one answer in many can match, and ARC's
    score."""
    if experiment.data.puzzle == "arc":
        return "pass@2"
    return BEST if experiment.data.labels == "fixed" else "verified"


def best(result: dict[str, Any], metric: str = BEST) -> float:
    return result["figures"][-1][metric] or 0.0


def scalars(result: dict[str, Any]) -> dict[str, float]:
    """The main figures, named for a chart: eval/exact_accuracy/H16_L4."""
    return {f"eval/{name}/H{f['H_test']}_L{f['L_test']}": f[name]
            for f in result["figures"] for name in ("exact_accuracy", "cell_accuracy", "settled", "verified", *PASS)
            if f.get(name) is not None}


def save(result: dict[str, Any], workdir: str | os.PathLike, of: str = "",
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
        metrics.write_json(path, result)
    return path


def percent(value: float | None) -> str:
    """Two decimals, cut off rather than rounded up: 99.996 % is not 100 %."""
    return "-" if value is None else f"{int(value * 10_000 + 1e-6) / 100:.2f}"


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    k = result["settled_cycles"]
    verified = result["verified_as"]
    width = len(verified) + 2 if verified else 0  # of its column
    lines = [
        f"{result['examples']:,} test puzzles ({result['sample']}) of {result['dataset']}, {result['parameters']} "
        f"parameters, step {result['step']:,}, {result['seconds']:.0f} s on {result['device']}",
        f"H_test counts {result['H_test_unit']}; settled: the answer has not changed for {k} of them; all figures in %",
        f"  H_test  L_test   exact    cell{verified:>{width}}  settled  settled of right  settled of wrong",
    ]
    for f in result["figures"]:
        cells = [percent(f[name]) if name != "verified" or verified else "" for name in (
            "exact_accuracy", "cell_accuracy", "verified", "settled", "settled_among_right", "settled_among_wrong")]
        lines.append("{:>8}{:>8}{:>8}{:>8}{:>{w}}{:>9}{:>18}{:>18}".format(f["H_test"], f["L_test"], *cells, w=width))
    if "mean_steps" in result["figures"][-1]:
        lines.append("  a puzzle stops when it has halted; mean steps: " + ", ".join(
            f"{f['mean_steps']:.2f} (H_test {f['H_test']})" for f in result["figures"]))
    if PASS[0] in result["figures"][-1]:
        lines += voted(result["figures"])
    sources = result["figures"][-1].get("by_source", {})
    if len(sources) > 1:
        names = ("exact_accuracy", "verified") if verified else ("exact_accuracy",)
        lines.append(f"  exact{verified and ', ' + verified} by source at H_test {result['figures'][-1]['H_test']}: "
                     + ", ".join(f"{name} {', '.join(percent(s[which]) for which in names)} (n {s['n']:,})"
                                 for name, s in sources.items()))
    return "\n".join(lines + _signals(result["figures"][-1], verified) + _solved(result))


def _solved(result: dict[str, Any]) -> list[str]:
    """What the engine made of the same puzzles."""
    if not (s := result.get("solved")):
        return []
    by = {"symmetry": "a symmetry", "start": "noise of {:g} at the start", "cycle": "noise of {:g} in every cycle"}
    by = f", up to {s['restarts']} tries that differ by {by[s['vary']].format(s['sigma'])}" if s["restarts"] > 1 else ""
    return [f"  as a solver: done when {result['verified_as']} or unchanged for {s['settle']}, at most H_test "
            f"{s['H_test']}{by}:",
            f"  exact {percent(s['exact_accuracy'])}, {result['verified_as']} {percent(s['verified'])} (n {s['n']:,}; "
            f"{s['by_restart']:,} by a later try), {s['mean_cycles']:.1f} cycles a puzzle, {s['seconds']:.0f} s"]


def _signals(figure: dict[str, Any], verified_as: str | None) -> list[str]:
    """What the signals of convergence are worth at one depth: n and percent of all, precision, recall, AUROC."""
    s = figure["signals"]
    kinds = [name.partition("_")[2] for name in s["table"] if name.startswith("settled_")]  # right_verified, ...
    heads = [kind.replace("_verified", f", {verified_as}").replace("_refused", f", not {verified_as}")
             for kind in kinds]
    cells = [[f"{cell['n']:,} ({percent(cell['share'])})" for cell in (s["table"][f"{row}_{kind}"] for kind in kinds)]
             for row in ("settled", "unsettled")]
    widths = [max(map(len, column)) + 2 for column in zip(heads, *cells)]
    rows = [f"  {name:<10}" + "".join(map(str.rjust, row, widths))
            for name, row in zip(("", "settled", "unsettled"), (heads, *cells))]
    aurocs = [f"{name.replace('_', ' ')} {int(value * 1000 + 1e-9) / 1000:.3f}"
              + ("" if s["auroc_standard_error"][name] is None else f" +- {s['auroc_standard_error'][name]:.3f}")
              for name, value in s["auroc"].items() if value is not None]
    return [f"  signals at H_test {figure['H_test']}, L_test {figure['L_test']}: puzzles (% of {figure['n']:,})", *rows,
            "  settled as a claim of right: " + ", ".join(
                f"{name} {percent(s[name]['share'])} ({s[name]['n']:,} of {s[name]['of']:,})"
                for name in ("precision", "recall")),
            f"  AUROC of right ({s['right']:,}) over wrong ({s['wrong']:,}): "
            + (", ".join(aurocs) or f"not defined, {s['auroc_undefined']}")]


def voted(figures: list[dict[str, Any]]) -> list[str]:
    """Lines of ARC's score."""
    last = figures[-1]
    pooled = last["pooled_evaluations"]
    lines = [f"votes: {last['predictions']:,} on {last['test_inputs']:,} test inputs of {last['tasks']:,} tasks, "
             f"{last['unanswered']:,} inputs without any"
             + (f"; POOLED over {pooled} checkpoints, no one model's score" if pooled > 1 else "")]
    lines.append("  H_test  L_test" + "".join(f"{name:>11}" for name in PASS))
    lines += [f"{f['H_test']:>8}{f['L_test']:>8}" + "".join(f"{percent(f[name]):>11}" for name in PASS)
              for f in figures]
    return lines


def evaluate(experiment, workdir: str | os.PathLike,
             note: Callable[[str], None] = distributed.say) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run, or its last one if none has been evaluated yet.

    The config must be the run's own but for how to evaluate (`config.MAY_CHANGE`) and on which dataset.
    """
    checkpoints.require_same(workdir, checkpoints.read_config(workdir), config.to_json(experiment),
                             "Give the run's own values to evaluate it", but=("data.path",))
    mesh = distributed.data_mesh()
    data = Data.load(experiment)
    system = System(experiment, data.shape, total_steps(experiment, data.train.metadata))
    weights, step = load_weights(system, workdir, mesh)
    evaluator = Evaluator(system, data, mesh)
    result = evaluator(weights, step, system.curriculum.L(step), note)
    path = save(result, workdir, result["finished"].partition("+")[0].replace(":", ""), evaluator.votes)
    note(table(result))
    note(f"written to {path}")
    return result


def load_weights(system: System, workdir: str | os.PathLike, mesh: Mesh,
                 step: int | None = None) -> tuple[Weights, int]:
    """The evaluated parameters of a run's best checkpoint (else its last one), or of `step`, where they belong; and its
    step."""
    name = "ema" if system.experiment.ema else "params"
    places = puzzle_table.weights_shardings(system.model, mesh)
    wanted = {field: jax.tree.map(lambda a, place=place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree)
              for field, tree, place in zip((name, "fixed", "table"),
                                            jax.eval_shape(system.model.init, jax.random.key(0)), places)}
    with checkpoints.Checkpointer(workdir, best_metric=best_metric(system.experiment), read_only=True) as checkpointer:
        restored = checkpointer.restore_fields(wanted, checkpointer.best_step() if step is None else step)
    if restored is None:
        raise checkpoints.CheckpointError(f"{os.fspath(workdir)} holds no checkpoint yet; train it first")
    fields, _, step = restored
    return Weights(fields[name], fields["fixed"], fields["table"]), step
