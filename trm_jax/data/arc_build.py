"""ARC: Kaggle-style JSON, read strictly, and the dataset folder that the published build makes of it.

DIR/PREFIX_SUBSET_challenges.json: task ID -> {"train": [{"input", "output"}, ...], "test": [{"input"}, ...]};
DIR/PREFIX_SUBSET_solutions.json: task ID -> outputs of its test inputs, in their order. (A test subset can do without:
its labels are then ignored everywhere and it has no score, only a submission.) Or, as ARC-AGI-1 and 2, ConceptARC and
Mini-ARC are published, a folder DIR/SUBSET with a file for every task, or DIR/SUBSET.jsonl with a line for each:
{"train": ..., "test": ...} with the outputs inside, and maybe an "id" or "task_id"; without, it is the file's name. Or
DIR/SUBSET.json, which is such a task, or has them by their IDs. {"examples": [[input, output], ...]}, as BARC has
them, is a task whose last example is its test.

A task and its symmetries, each a puzzle with an identifier of its own, are a group. Training examples are the
demonstrations of every task, and the test pairs too but for tasks of the test subset, whose test pairs are the test
split. Training examples are moved on the canvas (see `puzzles.arc.canvases`), test examples are not.

Deviations from the published build: tasks stay in the order of their files (an epoch shuffles groups anyway); what a
task becomes is a function of the seed and its ID alone, and of 1,000 symmetries the first 100 are those of a build of
100; a task ID in two subsets is refused.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from trm_jax.data import dataset
from trm_jax.data.dataset import DatasetError
from trm_jax.puzzles import PuzzleError, arc

PREFIX = "arc-agi"
PIECE_PUZZLES = 4096  # puzzles of a task that are laid out at once


class UnsolvedError(DatasetError):
    """A test input without its output."""


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    subset: str
    train: list[arc.Pair]
    test: list[arc.Pair]  # outputs that nobody knows are their inputs
    solved: bool = True  # the outputs of `test` are known

    def as_json(self) -> dict[str, Any]:
        def pairs(of, solved):
            return [{"input": a.tolist()} | ({"output": b.tolist()} if solved else {}) for a, b in of]
        return {"train": pairs(self.train, True), "test": pairs(self.test, self.solved)}


# Reading.


def files_of(folder, subset: str, prefix: str = PREFIX, solved: bool = True) -> tuple[pathlib.Path, ...]:
    """(challenges, solutions) of a subset, or (challenges,)."""
    folder = pathlib.Path(folder)
    whats = ("challenges", "solutions") if solved else ("challenges",)
    pair = tuple(folder / f"{prefix}_{subset}_{what}.json" for what in whats)
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}")
    for file in pair:
        if not file.is_file():
            end = "_challenges.json"
            there = sorted(p.name.removeprefix(f"{prefix}_").removesuffix(end) for p in folder.glob(f"{prefix}_*{end}"))
            raise DatasetError(f"{file} is missing; {folder} has challenges of: {', '.join(there) or 'no subset'}")
    return pair


def read_tasks(challenges, solutions=None, subset: str = "") -> list[Task]:
    """Every task of the two files, or of the first alone; DatasetError says file, task, pair and reason for the first
    fault."""
    asked = _read_object(challenges)
    solved = {} if solutions is None else _read_object(solutions)
    if surplus := sorted(set(solved) - set(asked)):
        raise DatasetError(f"{solutions}: has solutions of task {surplus[0]}, which {challenges} does not have")
    tasks = []
    for name, task in asked.items():
        outputs = None
        if solutions is not None:
            if name not in solved:
                raise DatasetError(f"{solutions}: task {name}: has no solution")
            outputs = _read_list(solved[name], f"{solutions}: task {name}: solutions")
        tasks.append(_task(name, task, subset, f"{challenges}: task {name}", outputs, f"{solutions}: task {name}"))
    if not tasks:
        raise DatasetError(f"{challenges}: has no tasks")
    return tasks


def task_files(folder, subset: str) -> list[pathlib.Path]:
    """The files of a subset that has one for every task, or one with all; none where there are no such."""
    place = pathlib.Path(folder) / subset
    if place.is_dir():
        return sorted(place.rglob("*.json"))
    return [file for end in (".jsonl", ".json") if (file := place.with_name(subset + end)).is_file()][:1]


def place_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Where the tasks of one path are, by the names that `config.Make` has for that: json_dir, prefix, subsets,
    test_subset, no_test_solutions. The path is one that `read_subsets` reads: a folder, a .jsonl or .json file, or
    Kaggle's challenges, with or without the solutions beside them. Raises DatasetError."""
    place = pathlib.Path(path)
    stem, prefix = place.name if place.is_dir() else place.stem, PREFIX
    files = task_files(place.parent, stem)
    if not files or place not in (files[0], place.parent / stem):
        raise DatasetError(f"{path}: there are no ARC tasks; give a .json or .jsonl file of tasks, a folder with a "
                           "file for each, or PREFIX_SUBSET_challenges.json"
                           + (f" ({files[0]} has the same name: move one of the two)" if files else ""))
    if place.name.endswith("_challenges.json"):
        prefix, _, stem = stem.removesuffix("_challenges").rpartition("_")
        solved = place.with_name(f"{prefix}_{stem}_solutions.json").is_file()
    else:
        try:
            read_task_files(files, stem)
            solved = True
        except UnsolvedError:
            solved = False
    return {"json_dir": str(place.parent), "prefix": prefix, "subsets": (stem,), "test_subset": stem,
            "no_test_solutions": not solved}


def read_task_files(files: Sequence[pathlib.Path], subset: str, solved: bool = True) -> list[Task]:
    """The tasks of `task_files`; DatasetError says file and reason for the first fault.

    Args:
      solved: their outputs are there; if not, they are not looked at.
    """
    tasks = []
    for file in files:
        if file.suffix == ".jsonl":
            found = []
            try:
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, ValueError) as error:
                raise DatasetError(f"{file}: cannot be read ({error})") from None
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        found.append((f"{file}, line {number}", f"line {number}", json.loads(line)))
                    except (ValueError, RecursionError) as error:
                        raise DatasetError(f"{file}, line {number}: cannot be read as JSON ({error})") from None
        else:
            whole = _read_object(file)
            found = [(str(file), file.stem, whole)] if {"train", "test", "examples"} & whole.keys() else [
                (f"{file}: task {name}", name, task) for name, task in whole.items()]
        for where, name, task in found:
            task = arc.of_examples(task)
            given = (task.get("id") or task.get("task_id")) if isinstance(task, dict) else None
            name = given if isinstance(given, str) else name
            outputs = None
            if solved:
                tests = _read_list(task.get("test") if isinstance(task, dict) else None, f"{where}: test")
                outputs = [pair.get("output") if isinstance(pair, dict) else None for pair in tests]
                if None in outputs:
                    raise UnsolvedError(f"{where}: test {outputs.index(None) + 1} has no output; for a test subset "
                                        "without them say --no_test_solutions")
            tasks.append(_task(name, task, subset, where, outputs, where))
    if repeated := [name for name, n in collections.Counter(task.name for task in tasks).items() if n > 1]:
        raise DatasetError(f"{files[0].parent}: has task {repeated[0]!r} twice")
    return tasks


def _task(name: str, task: Any, subset: str, where: str, outputs: list | None, where_outputs: str) -> Task:
    """One task, checked. outputs: of its test inputs, as JSON has them; None: nobody knows them."""
    if not name or not name.isprintable() or arc.SEPARATOR in name:
        raise DatasetError(f"{where.partition(': task ')[0]}: task {name!r}: an ID must have a character and no "
                           f"{arc.SEPARATOR}, and all of it can be printed")
    if not isinstance(task, dict):
        raise DatasetError(f"{where}: must be an object, is {type(task).__name__}")
    train, test = (_read_list(task.get(side), f"{where}: {side}") for side in ("train", "test"))
    demonstrations = [
        (_read_side(pair, "input", f"{where}: train pair {i}"), _read_side(pair, "output", f"{where}: train pair {i}"))
        for i, pair in enumerate(train, 1)]
    inputs = [_read_side(pair, "input", f"{where}: test {i}") for i, pair in enumerate(test, 1)]
    if outputs is None:
        return Task(name, subset, demonstrations, [(grid, grid) for grid in inputs], solved=False)
    if len(outputs) != len(test):
        raise DatasetError(f"{where_outputs}: has {len(outputs)} solutions for {len(test)} test inputs")
    return Task(name, subset, demonstrations, [
        (grid, _read_grid(output, f"{where_outputs}: solution {i}"))
        for i, (grid, output) in enumerate(zip(inputs, outputs), 1)])


def _read_object(file) -> dict[str, Any]:
    def without_repeats(pairs):
        if repeated := [key for key, n in collections.Counter(key for key, _ in pairs).items() if n > 1]:
            raise DatasetError(f"{file}: has {repeated[0]!r} twice")
        return dict(pairs)

    try:
        value = json.loads(pathlib.Path(file).read_text(encoding="utf-8"), object_pairs_hook=without_repeats)
    except DatasetError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{file}: must hold an object of tasks, holds {type(value).__name__}")
    return value


def _read_list(value: Any, where: str) -> list:
    if not isinstance(value, list) or not value:
        raise DatasetError(f"{where}: must be a list of at least one, is {'missing' if value is None else repr(value)}"
                           [:500])
    return value


def _read_side(pair: Any, side: str, where: str) -> np.ndarray:
    if not isinstance(pair, dict) or side not in pair:
        raise DatasetError(f"{where}: has no {side}")
    return _read_grid(pair[side], f"{where}, {side}")


def _read_grid(value: Any, where: str) -> np.ndarray:
    try:
        return arc.read_grid(value)
    except PuzzleError as error:
        raise DatasetError(f"{where}: {error}") from None


# Choosing.


def read_subsets(folder, subsets: list[str], test_subset: str, prefix: str = PREFIX,
                 test_solved: bool = True) -> tuple[list[Task], dict]:
    """(tasks of all subsets, what was read: subset -> files), refused where training would see the test's answers.

    Args:
      test_solved: the test subset has solutions; no others are looked for if not.
    """
    if repeated := [s for s, n in collections.Counter(subsets).items() if n > 1]:
        raise DatasetError(f"--subsets names {repeated[0]} twice")
    if test_subset not in subsets:
        raise DatasetError(f"--test_subset {test_subset} is not among --subsets {','.join(subsets)}: training must see "
                           "its demonstrations, or its identifiers mean nothing (its test pairs stay out of training)")
    tasks, files = {}, {}
    for subset in subsets:
        solved = test_solved or subset != test_subset
        if found := task_files(folder, subset):
            tasks[subset] = read_task_files(found, subset, solved)
        else:
            found = files_of(folder, subset, prefix, solved)
            tasks[subset] = read_tasks(*found, subset=subset)
        files[subset] = [{"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()} for file in found]
    names = {subset: {task.name: None for task in tasks[subset]} for subset in subsets}
    for subset in subsets:
        if subset != test_subset and (both := [n for n in names[test_subset] if n in names[subset]]):
            raise DatasetError(
                f"{len(both)} of the {len(names[test_subset])} tasks of {test_subset} are in {subset} too ({both[0]}"
                f"{', ...' if len(both) > 1 else ''}), and training would see their answers: leave {subset} out of "
                f"--subsets, or test on another subset")
    for i, subset in enumerate(subsets):
        for other in subsets[i + 1:]:
            if both := [n for n in names[other] if n in names[subset]]:
                raise DatasetError(f"{len(both)} tasks of {other} are in {subset} too ({both[0]}"
                                   f"{', ...' if len(both) > 1 else ''}): leave one of the two out of --subsets")
    return [task for subset in subsets for task in tasks[subset]], files


def training_pairs(task: Task, test_subset: str) -> list[arc.Pair]:
    return task.train if task.subset == test_subset else task.train + task.test


def answers_in_training(tasks: list[Task], test_subset: str) -> list[tuple[str, str]]:
    """(test task, task that trains on one of its test pairs as it is), for what IDs do not show."""
    trained = {_pair_key(pair): task.name for task in tasks for pair in training_pairs(task, test_subset)}
    return [(task.name, trained[key]) for task in tasks if task.subset == test_subset and task.solved
            for key in map(_pair_key, task.test) if key in trained]


def _pair_key(pair: arc.Pair) -> bytes:
    return arc.grid_key(pair[0]) + arc.grid_key(pair[1])


# Building.


@dataclasses.dataclass(frozen=True)
class Plan:
    """A task and what becomes of it."""

    task: Task
    pairs: dict[str, list[arc.Pair]]  # split -> its examples of each puzzle
    transforms: np.ndarray  # [K]
    colours: np.ndarray  # [K, 10]

    def names(self) -> list[str]:
        rest = zip(self.transforms[1:].tolist(), self.colours[1:].tolist())
        return [self.task.name] + [arc.Augmentation(k, tuple(c)).name(self.task.name) for k, c in rest]

    def rows(self, split: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(inputs, labels), [., S] each, puzzle by puzzle."""
        rng = _rng(seed, 1, self.task) if split == "train" else None
        for start in range(0, len(self.transforms), PIECE_PUZZLES):
            part = slice(start, start + PIECE_PUZZLES)
            made = arc.canvases(self.pairs[split], self.transforms[part], self.colours[part], rng)
            inputs, labels = (array.reshape(-1, array.shape[-1]) for array in made)
            yield inputs, labels if split == "train" or self.task.solved else np.zeros_like(labels)


def _rng(seed: int, stream: int, task: Task) -> np.random.Generator:
    return np.random.default_rng([seed, stream, *task.name.encode()])


def make_plan(task: Task, test_subset: str, num_aug: int, seed: int) -> Plan:
    tested = task.subset == test_subset
    transforms, colours = arc.distinct_symmetries(task.train + task.test, num_aug, _rng(seed, 0, task))
    return Plan(task, {"train": training_pairs(task, test_subset), "test": task.test if tested else []},
                transforms, colours)


def build(out, tasks: list[Task], test_subset: str, *, num_aug: int, seed: int, provenance: dict[str, Any],
          overwrite: bool = False) -> dict[str, Any]:
    """Writes the folder, task by task: only the names of all puzzles are in memory at once.

    Returns the counts, which `provenance` gets too.
    """
    out = pathlib.Path(out).resolve()
    dataset.refuse_taken(out, overwrite)
    plans = [make_plan(task, test_subset, num_aug, seed)
             for task in tqdm(tasks, desc="drawing symmetries", unit="tasks", disable=None)]
    identifiers = [dataset.BLANK]
    first = {}  # task -> its first identifier
    for plan in plans:
        first[plan.task.name] = len(identifiers)
        identifiers += plan.names()
    per_split = {name: [plan for plan in plans if plan.pairs[name]] for name in ("train", "test")}
    examples = {name: sum(len(p.transforms) * len(p.pairs[name]) for p in of) for name, of in per_split.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    dataset.need_room(out, 2 * sum(examples.values()) * arc.SIDE * arc.SIDE, "; a lower --num_aug needs less")
    counts = {"tasks": len(tasks), "training_pairs": sum(len(p.pairs["train"]) for p in plans),
              "test_inputs": sum(len(p.pairs["test"]) for p in plans), "identifiers": len(identifiers),
              "tasks_with_fewer_symmetries": sum(len(p.transforms) <= num_aug for p in plans),
              **{name: {"examples": examples[name], "groups": len(of)} for name, of in per_split.items()}}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.arrays-", dir=out.parent) as folder:
        ready = {name: {array: pathlib.Path(folder) / f"{name}_{array}.npy" for array in ("inputs", "labels")}
                 for name in per_split}
        splits = {}
        for name, of in per_split.items():
            _write_rows(ready[name], of, name, examples[name], seed)
            puzzles = [len(p.transforms) for p in of]
            sizes = np.repeat([len(p.pairs[name]) for p in of], puzzles)
            subsets = list(dict.fromkeys(p.task.subset for p in of))
            sources = np.array([subsets.index(p.task.subset) for p in of], np.uint16)
            splits[name] = dataset.make_split(
                *(np.load(ready[name][array], mmap_mode="r") for array in ("inputs", "labels")),
                vocab_size=arc.VOCAB, num_puzzle_identifiers=len(identifiers),
                puzzle_identifiers=np.concatenate([first[p.task.name] + np.arange(n) for p, n in zip(of, puzzles)]),
                puzzle_indices=np.concatenate([[0], np.cumsum(sizes)]),
                group_indices=np.concatenate([[0], np.cumsum(puzzles)]),
                sources=np.repeat(sources, [n * len(p.pairs[name]) for p, n in zip(of, puzzles)]),
                source_names=tuple(subsets))
        dataset.write(out, splits, identifiers, provenance | {"counts": counts}, ready=ready, overwrite=overwrite,
                    more_json={"test_puzzles.json": {p.task.name: p.task.as_json() for p in per_split["test"]}})
    return counts


def _write_rows(files: dict[str, pathlib.Path], plans: list[Plan], split: str, examples: int, seed: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (examples, arc.SIDE * arc.SIDE)}
    with open(files["inputs"], "wb") as inputs, open(files["labels"], "wb") as labels:
        for file in (inputs, labels):
            np.lib.format.write_array_header_1_0(file, header)
        for plan in tqdm(plans, desc=f"laying out {split}", unit="tasks", disable=None):
            for rows in plan.rows(split, seed):
                for file, array in zip((inputs, labels), rows):
                    file.write(np.ascontiguousarray(array).data)
        for file in (inputs, labels):
            dataset.sync(file)


def load_test_puzzles(path) -> dict[str, Any]:
    """`test_puzzles.json` of a dataset folder; inference/arc_voting.py takes it and checks the grids."""
    file = pathlib.Path(path) / "test_puzzles.json"
    if not file.is_file():
        raise DatasetError(f"{file} is missing: {path} is no ARC dataset folder")
    dataset.require_unchanged(path, file.name)
    puzzles = _read_object(file)
    for name, task in puzzles.items():
        if not isinstance(task, dict) or not isinstance(task.get("test"), list):
            raise DatasetError(f"{file}: task {name}: has no list of tests")
    return puzzles
