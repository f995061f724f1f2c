"""Makes dataset folders: generated puzzles, files of one's own, or the official files of a published dataset."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import trm_jax
from trm_jax import config, puzzles
from trm_jax.config import Data
from trm_jax.data import arc_build, dataset, sources
from trm_jax.data.dataset import DatasetError

HUB = {"sudoku": "sapientinc/sudoku-extreme", "maze": "sapientinc/maze-30x30-hard-1k"}  # the official files


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ensure(data: Data, again: str = "", note: Callable[[str], None] = _tell) -> None:
    """Makes the folder at `data.path` as `data.make` says, if there is nothing at that place.

    Args:
      again: the command that wants the folder, for messages about what else it could do; "": the one that makes it.
    """
    if os.path.lexists(data.path) or not data.make.source:  # what is there, or is not, is looked at when it is loaded
        return
    note(f"there is no dataset folder {data.path} yet; making it, as does: {data.how_to_make}")
    note(make(data, again=again, note=note))


def make(data: Data, *, overwrite: bool = False, again: str = "", note: Callable[[str], None] = _tell) -> str:
    """Writes the folder; returns a summary.

    Raises:
      DatasetError: the place is taken, or the puzzles cannot be had; then with the commands that go on.
      LockedError: another process makes it.
    """
    dataset.refuse_taken(data.path, overwrite)
    started = time.time()
    make_it = _make_arc if data.puzzle == "arc" else _make_grids
    with dataset.being_made(data.path):
        return f"{make_it(data, overwrite, again, note)}\n{time.time() - started:.1f} s"


def domain_of(data: Data) -> puzzles.Domain:
    """The domain of the puzzles that `data.make` makes. Raises PuzzleError."""
    if data.puzzle == "sudoku":
        return puzzles.get("sudoku", box_rows=data.make.box[0], box_cols=data.make.box[1])
    if data.puzzle == "maze":
        return puzzles.get("maze", rows=data.make.size[0], cols=data.make.size[1],
                           smallest=data.make.smallest)
    return puzzles.with_options(data.puzzle, config.read_options(data.make.options))[0]


def _make_grids(data: Data, overwrite: bool, again: str, note: Callable[[str], None]) -> str:
    """Sudokus and mazes: train and test are generated, or read from a file each."""
    m, domain = data.make, domain_of(data)
    counts = {"train": m.train, "test": m.test}
    parts, files = {}, {}
    if m.source == "generate":
        counts = {name: n or usual for (name, n), usual in zip(counts.items(), domain.usual)}
        how = generator_options(data, domain)
        parts = dict(zip(counts, sources.generate(domain, *counts.values(), seed=m.seed, **how)))
    else:
        paths = _download(data, again, note) if m.source == "hub" else {"train": m.csv, "test": m.test_csv}
        for name, path in paths.items():
            note(f"reading {path}")
            examples, digest = sources.read_csv(path, domain, one_solution=m.source == "csv")
            files[name] = {"file": os.path.basename(path), "rows": len(examples), "sha256": digest}
            parts[name] = sources.choose(examples, str(path), min_rating=m.min_rating or None,
                                         subsample=counts[name] or None, seed=m.seed)
    parts["train"] = sources.reveal(parts["train"], m.reveal, m.seed)
    shared = sources.count_shared_grids(parts["train"], parts["test"])
    splits = {"train": sources.to_split(parts["train"], domain, num_aug=m.num_aug, seed=m.seed),
              "test": sources.to_split(parts["test"], domain)}
    dataset.write(data.path, splits, [dataset.BLANK], _provenance(data, domain) | {
        "options": _options(data) | (counts if m.source == "generate" else {}), "files": files,
        "hub": HUB[data.puzzle] if m.source == "hub" else None,
        "counts": {name: {"examples": s.num_examples, "groups": s.num_groups} for name, s in splits.items()},
        "test_grids_in_train": shared}, overwrite=overwrite)
    return f"{summary(data.path, splits)}\ntest puzzles whose solution grid is in train too: {shared}"


def generator_options(data: Data, domain: puzzles.Domain) -> dict[str, Any]:
    """What the domain's generator takes."""
    m = data.make
    if data.puzzle == "sudoku":
        return {"clues": m.clues or None}
    if data.puzzle != "maze":
        return puzzles.with_options(data.puzzle, config.read_options(m.options))[1]
    return {"min_length": None if m.min_length < 0 else m.min_length, "single_path": m.single_path}


def _make_arc(data: Data, overwrite: bool, again: str, note: Callable[[str], None]) -> str:
    """The published build of ARC-AGI."""
    m = data.make
    if again and not config.shipped(m.json_dir).exists():
        raise DatasetError(
            f"there is no dataset folder {data.path}, and no folder {m.json_dir} with the tasks to make it from: "
            f"{m.prefix}_SUBSET_challenges.json and _solutions.json of {', '.join(m.subsets)}, as Kaggle's ARC Prize "
            "has them" + _ways_on(
                (f"with these files in {m.json_dir}, the same again", again),
                ("with tasks of your own in another folder", f"{again} --config.data.make.json_dir=my-tasks"),
                ("with the six easy tasks that come with this package, as a stand-in",
                 "python -m trm_jax train --config=trm_att_arc1:quick")))
    tasks, files = arc_build.read_subsets(config.shipped(m.json_dir), list(m.subsets), m.test_subset, m.prefix,
                                          not m.no_test_solutions)
    seen = arc_build.answers_in_training(tasks, m.test_subset)
    for tested, trained in seen:
        note(f"warning: a test pair of task {tested} is also a pair of task {trained}, which is trained on")
    counts = arc_build.build(data.path, tasks, m.test_subset, num_aug=m.num_aug, seed=m.seed, overwrite=overwrite,
                             provenance=_provenance(data, puzzles.get("arc")) | {
                                 "options": _options(data), "files": files, "hub": None, "test_pairs_in_train": seen})
    return (f"{data.path}\n{counts['tasks']:,} tasks, {counts['training_pairs']:,} training pairs, "
            f"{counts['test_inputs']:,} test inputs; with symmetries {counts['train']['examples']:,} and "
            f"{counts['test']['examples']:,}\n{counts['identifiers']:,} identifiers, the blank one included; "
            f"{counts['tasks_with_fewer_symmetries']} tasks have fewer than {m.num_aug:,} symmetries\n"
            f"test pairs that are training pairs of another task too: {len(seen)}")


def _provenance(data: Data, domain: puzzles.Domain) -> dict[str, Any]:
    return {"format": 1, "puzzle": puzzles.puzzle_of(domain), "command": data.how_to_make, "mode": data.make.source,
            "seed": data.make.seed, "versions": {"python": platform.python_version(), "numpy": np.__version__,
                                                 "trm_jax": trm_jax.__version__}}


def _options(data: Data) -> dict[str, Any]:
    return {name: getattr(data.make, name) for name in config.make_fields(data.make.source, data.puzzle)}


def _download(data: Data, again: str, note: Callable[[str], None]) -> dict[str, str]:
    """The official files of train and test, in the hub's cache."""
    repo = HUB[data.puzzle]
    try:
        from huggingface_hub import hf_hub_download
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of every try
        note(f"downloading train.csv and test.csv of {repo} (without a network this gives up after half a minute)")
        return {name: hf_hub_download(repo, f"{name}.csv", repo_type="dataset") for name in ("train", "test")}
    except Exception as error:  # the hub's own errors, and those of three HTTP libraries under it
        reason = (str(error).splitlines() or [""])[0]
        raise DatasetError(
            f"there is no dataset folder {data.path}, and its files, train.csv and test.csv of the dataset {repo} on "
            f"the Hugging Face hub, could not be downloaded ({type(error).__name__}: {reason:.150})"
            + _ways_on(*_ways(data, again))) from error


def _ways_on(*ways: tuple[str, str]) -> str:
    return ". Ways on:" + "".join(f"\n  {what}:\n    {command}" for what, command in ways)


def _ways(data: Data, again: str) -> list[tuple[str, str]]:
    """What to do without a network, and the command that does it."""
    own, made = f"{data.path}-own", f"{data.path}-generated"
    read = {"source": "csv", "csv": "train.csv", "test_csv": "test.csv"}
    if again:
        commands = [again, *(f"{again} --config.data.path={path} " + " ".join(
            f"--config.data.make.{name}={value}" for name, value in how.items())
            for path, how in ((own, read), (made, {"source": "generate"})))]
    else:
        generated = config.Make(source="generate", train=data.make.train, test=data.make.test, box=data.make.box,
                                size=data.make.size, smallest=data.make.smallest)
        commands = [dataclasses.replace(data, path=path, make=how).how_to_make for path, how in (
            (data.path, data.make), (own, dataclasses.replace(data.make, **read)), (made, generated))]
    return list(zip(("with a network, the same again", "with files of your own (source,question,answer,rating)",
                     "with puzzles that are generated, as a stand-in"), commands))


def summary(path: str | os.PathLike[str], splits: dict[str, dataset.Split]) -> str:
    """A table with a line for every split and source. Last column: mean clues, or log2 of shortest paths of a maze."""
    last = "clues" if splits["train"].log2_paths is None else "log2 paths"
    lines = [f"{path}", f"{'split':6} {'source':32} {'puzzles':>9} {'examples':>10} {'mean rating':>11} {last:>10}"]
    for name, split in splits.items():
        assert split.sources is not None and split.ratings is not None  # of puzzles that are not ARC's
        one_of_group = split.puzzle_indices[split.group_indices[:-1]]
        for code, source in [(None, "all"), *enumerate(split.source_names)]:
            chosen = slice(None) if code is None else split.sources == code
            first = one_of_group if code is None else one_of_group[split.sources[one_of_group] == code]
            if not len(first) or (code is not None and len(split.source_names) == 1):
                continue
            known = (split.inputs[first] > 1).sum(axis=1) if split.log2_paths is None else split.log2_paths[first]
            lines.append(f"{name:6} {source[:32]:32} {len(first):9,} {len(split.ratings[chosen]):10,} "
                         f"{split.ratings[first].mean():11.1f} {np.mean(known):10.1f}")
    return "\n".join(lines)
