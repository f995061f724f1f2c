"""For tests: a dataset of 4x4 Sudokus and an experiment on it that trains in seconds."""

import contextlib
import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from trm_jax import config, puzzles
from trm_jax.data import arc_build, dataset, sources
from trm_jax.data.loading import Dataset
from trm_jax.data.shape import Shape
from trm_jax.models.network import Model, Weights
from trm_jax.runtime import checkpoints, distributed, metrics
from trm_jax.training import step
from trm_jax.training.system import System
from trm_jax.weights import weights_file

SUDOKU4 = puzzles.get("sudoku", box_rows=2, box_cols=2)

TINY = {
    "arch": {"hidden_size": 8, "mlp_hidden_size": 16, "mixer_hidden_size": 8, "puzzle_emb_ndim": 8, "puzzle_emb_len": 2,
             "forward_dtype": "float32", "prob_detach_prev_H": 0.5},
    "global_batch_size": 16, "total_steps": 8, "lr": 1e-2, "lr_warmup_steps": 2, "weight_decay": 0.01, "ema_rate": 0.9,
    "eval": {"H_test": [1, 3], "batch_size": 8, "settled_cycles": 2},
    "checkpoint": {"interval_steps": 2},
    "log": {"interval_steps": 1},
}


def make_dataset(folder, train: int = 64, test: int = 13, domain=SUDOKU4, seed: int = 0):
    """Writes a dataset folder; returns its path."""
    how = {"clues": 8} if domain is SUDOKU4 else {}
    splits = [sources.to_split(part, domain) for part in sources.generate(domain, train, test, seed=seed, **how)]
    provenance = {"puzzle": {"name": domain.name, **dataclasses.asdict(domain)}}
    dataset.write(folder, dict(zip(("train", "test"), splits)), [dataset.BLANK], provenance)
    return folder


ARC_JSON = pathlib.Path(__file__).parent / "arc"  # six small tasks of ARC-AGI-1 and ConceptARC


def arc_dataset(folder, num_aug: int = 3, test_subset: str = "evaluation"):
    """Writes the published build of `ARC_JSON`; returns its path."""
    tasks, _ = arc_build.read_subsets(ARC_JSON, ["training", "evaluation", "concept"], test_subset)
    arc_build.build(folder, tasks, test_subset, num_aug=num_aug, seed=0, provenance={"puzzle": {"name": "arc"}})
    return folder


def export(seed: int = 0) -> weights_file.Export:
    """A real network, untrained."""
    arch = config.Arch(hidden_size=16, mlp_hidden_size=16, mixer_hidden_size=16, puzzle_emb_ndim=16, puzzle_emb_len=1,
                       forward_dtype="float32")
    e, shape = config.Experiment(arch=arch, data=config.Data(path="nowhere")), Shape(16, 6)
    made = Weights(*jax.jit(Model(arch, shape).init)(jax.random.key(seed)))
    return weights_file.Export(e, shape, puzzles.puzzle_of(SUDOKU4), made, {
        "parameters": "EMA", "step": 1, "total_steps": 2, "L": 3, "evaluation": None, "dtype": "float32"})


def write_evaluation(folder, exact: dict[int, float], name="step_10.json", finished="2026-01-01T00:00:00",
                     **more) -> str:
    """Writes what an evaluation of a run leaves in its folder; returns the folder."""
    figures = [{"H_test": H, "L_test": L, "n": 200, "exact_accuracy": value, "settled": value}
               for L in more.pop("inner", (4,)) for H, value in exact.items()]
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    (folder / "eval" / name).write_text(json.dumps(
        {"figures": figures, "step": 10, "dataset": "data/x", "finished": finished} | more))
    return str(folder)


def merge(old: dict, new: dict) -> dict:
    return old | {k: merge(old[k], v) if isinstance(v, dict) and k in old else v for k, v in new.items()}


def experiment(path, **changes) -> config.Experiment:
    """TINY on the dataset at `path`, with fields and sections (as dicts) changed."""
    return config.parse(merge(merge(TINY, {"data": {"path": str(path)}}), changes))


def system_of(e) -> System:
    return System(e, Dataset.load(e).shape, e.total_steps)


def final_state(e, workdir):
    """State in a run's last checkpoint."""
    with checkpoints.Checkpointer(workdir, read_only=True) as reader:
        return reader.restore(step.place(system_of(e), distributed.data_mesh()))[0]


def config_file(folder, e) -> pathlib.Path:
    """Writes an experiment file that gives `e`, for commands."""
    path = folder / "config_file.py"
    path.write_text("import json\nfrom trm_jax import config\n\n\ndef get_config():\n"
                    f"    return config.to_config_dict(config.parse(json.loads({json.dumps(config.to_json(e))!r})))\n")
    return path


class Interruption(Exception):
    """A run that ends in the middle."""


@contextlib.contextmanager
def interrupted_after(stop: int):
    """Runs in this block end with Interruption when they have written the metrics of step `stop`, and must do so."""
    write = metrics.MetricWriter.write

    def interrupted(self, now, values):
        write(self, now, values)
        if now == stop:
            raise Interruption
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(metrics.MetricWriter, "write", interrupted)
        yield


def raw(leaf) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def assert_identical(a, b):
    """Two pytrees, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        assert raw(x).tobytes() == raw(y).tobytes(), f"{jax.tree_util.keystr(path)} differs"
