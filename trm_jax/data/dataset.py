"""Dataset folders in the layout of the published build scripts (sapientinc/HRM, TinyRecursiveModels).

    DIR/identifiers.json                    names of the puzzle identifiers, "<blank>" first
    DIR/{train,test}/dataset.json           `Metadata`
    DIR/{train,test}/all__inputs.npy ...    the arrays of `Split`

Folders written by the published scripts load here and ours load there. Only our folders have, and only we read:

    DIR/provenance.json                     domain, command, options, seed, counts, versions
    DIR/SPLIT/all__ratings.npy              difficulty of every example
    DIR/SPLIT/all__log2_paths.npy           mazes: log2 of the number of shortest paths of every example
    DIR/SPLIT/all__sources.npy, sources.json   index into the list of source names, for every example
    DIR/SPLIT/all__subsample.npy            rows of the source file that were kept, ascending, if not all were
    DIR/checksums.json                      SHA-256 of every file: compared whenever a file is read

E examples, S tokens, P puzzles (an original or one augmentation of it), G groups (an original and its augmentations).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import glob
import hashlib
import json
import mmap
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from trm_jax import puzzles
from trm_jax.runtime import files
from trm_jax.runtime.errors import UserError
from trm_jax.runtime.text import human

IGNORE_LABEL_ID = -100  # what loaders put where the folder has `ignore_label_id`
SET = "all"  # the published scripts write no other set
BLANK = "<blank>"
CHECKSUMS = "checksums.json"
CHECK_ROWS = 1 << 16


class DatasetError(UserError):
    """A dataset folder or source file that cannot be used; the message says which file and why."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """`dataset.json`. Field names are the published ones."""

    pad_id: int
    ignore_label_id: int | None
    blank_identifier_id: int
    vocab_size: int
    seq_len: int
    num_puzzle_identifiers: int
    total_groups: int
    mean_puzzle_examples: float
    total_puzzles: int  # absent in HRM's folders, and in TRM's Sudoku folders the number of groups: never relied on
    sets: tuple[str, ...] = (SET,)


@dataclasses.dataclass(frozen=True)
class Split:
    inputs: np.ndarray  # [E, S] uint8, memory-mapped if loaded
    labels: np.ndarray  # [E, S] uint8, metadata.ignore_label_id (0) = ignored
    puzzle_identifiers: np.ndarray  # [P] int32
    puzzle_indices: np.ndarray  # [P+1] int32: examples of puzzle p are puzzle_indices[p] up to puzzle_indices[p+1]
    group_indices: np.ndarray  # [G+1] int32: the same from groups to puzzles
    metadata: Metadata
    sources: np.ndarray | None = None  # [E] uint16 into source_names
    source_names: tuple[str, ...] = ()
    ratings: np.ndarray | None = None  # [E] int32
    log2_paths: np.ndarray | None = None  # [E] float32, mazes only
    subsample: np.ndarray | None = None  # rows of the source file that were kept; None: all, or unknown

    @property
    def num_examples(self) -> int:
        return len(self.inputs)

    @property
    def num_groups(self) -> int:
        return len(self.group_indices) - 1


ARRAYS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
EXTRAS = ("sources", "ratings", "log2_paths", "subsample")


def make_split(inputs, labels, *, vocab_size: int, puzzle_identifiers=None, puzzle_indices=None, group_indices=None,
               num_puzzle_identifiers: int = 1, **extras) -> Split:
    """Arrays -> Split with its metadata. By default every example is a puzzle and a group of its own."""
    count = len(inputs)
    puzzle_indices = np.arange(count + 1) if puzzle_indices is None else np.asarray(puzzle_indices)
    puzzles = len(puzzle_indices) - 1
    group_indices = np.arange(puzzles + 1) if group_indices is None else np.asarray(group_indices)
    if puzzle_identifiers is None:
        puzzle_identifiers = np.zeros(puzzles)
    return Split(
        inputs=np.asarray(inputs, np.uint8), labels=np.asarray(labels, np.uint8),
        puzzle_identifiers=np.asarray(puzzle_identifiers, np.int32),
        puzzle_indices=puzzle_indices.astype(np.int32), group_indices=group_indices.astype(np.int32),
        metadata=Metadata(
            pad_id=0, ignore_label_id=0, blank_identifier_id=0, vocab_size=vocab_size, seq_len=inputs.shape[1],
            num_puzzle_identifiers=num_puzzle_identifiers, total_groups=len(group_indices) - 1,
            mean_puzzle_examples=count / max(puzzles, 1), total_puzzles=puzzles),
        **extras)


# Reading.


def load(path, split: str, make: str = "", share: tuple[int, int] = (0, 1)) -> Split:
    """DIR, "train" | "test" -> Split, inputs and labels memory-mapped, everything checked.

    Args:
      make: the command that makes the folder; closes the message if the folder is missing.
      share: (i, n) for number i of n processes that load the folder: each reads a part of the large files to check it.
    Raises:
      DatasetError: for the first fault, naming the file.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise DatasetError(f"there is no dataset folder {path}; make it with: {make or 'python -m trm_jax data'}")
    folder = path / split
    if not (folder / "dataset.json").is_file():
        raise DatasetError(f"{path} is not a dataset folder: has no {split}/dataset.json")
    require_unchanged(path, f"{split}/", share=share)
    metadata = _read_metadata(folder / "dataset.json")
    arrays = {name: _read_array(folder, name) for name in ARRAYS}
    extras: dict[str, Any] = {name: _read_array(folder, name) for name in EXTRAS if _npy(folder, name).exists()}
    if "sources" in extras:
        names = _read_json(folder / "sources.json")
        if not isinstance(names, list):
            raise DatasetError(f"{folder / 'sources.json'}: must hold a list of names, holds {type(names).__name__}")
        extras["source_names"] = tuple(map(str, names))
    if metadata.total_puzzles < 0:
        metadata = dataclasses.replace(metadata, total_puzzles=len(arrays["puzzle_identifiers"]))
    loaded = Split(metadata=metadata, **arrays, **extras)
    check(loaded, folder, share)
    # The published Sudoku script writes int64 where it augments.
    return dataclasses.replace(loaded, **{name: arrays[name].astype(np.uint8) for name in ("inputs", "labels")
                                          if arrays[name].dtype != np.uint8})


def load_provenance(path) -> dict[str, Any] | None:
    """How the folder came to be; None for folders of the published scripts."""
    file = pathlib.Path(path) / "provenance.json"
    if not file.exists():
        return None
    require_unchanged(path, file.name)
    provenance = _read_json(file)
    if not isinstance(provenance, dict) or not isinstance(provenance.get("puzzle", {}), dict):
        raise DatasetError(f"{file} is not as trm_jax.data writes it: it must hold an object, and puzzle be one too")
    return provenance


def load_domain(path, name: str, seq_len: int) -> puzzles.Domain:
    """The domain that the folder says it was made for; the one called `name` of so many cells where it does not."""
    puzzle = (load_provenance(path) or {}).get("puzzle") or {"seq_len": seq_len}
    try:
        return puzzles.get(**{"name": name, **puzzle})
    except (puzzles.PuzzleError, TypeError) as error:  # the latter for options of other types
        raise DatasetError(f"{path} is no {puzzle.get('name', name)} dataset: {error}") from None


def load_identifiers(path) -> list[str]:
    require_unchanged(path, "identifiers.json")
    names = _read_json(pathlib.Path(path) / "identifiers.json")
    if not isinstance(names, list):
        raise DatasetError(f"{pathlib.Path(path) / 'identifiers.json'}: must hold a list of names")
    return list(map(str, names))


def fingerprint(path, split: str) -> str:
    """16 hexadecimal digits that tell the puzzles of a split from any others: of the checksums of its arrays."""
    sums, folder = _checksums(path), pathlib.Path(path) / split
    names = [_npy(folder, name) for name in ARRAYS]
    found = [sums.get(f"{split}/{file.name}") or files.digest(file) for file in names]
    return hashlib.sha256("".join(found).encode()).hexdigest()[:16]


def _checksums(path) -> dict[str, str]:
    """File -> SHA-256; {} for folders of the published scripts, and those written before there were any."""
    file = pathlib.Path(path) / CHECKSUMS
    sums = _read_json(file) if file.exists() else {}
    if not isinstance(sums, dict) or not all(isinstance(value, str) for value in sums.values()):
        raise DatasetError(f"{file} is damaged: it must hold an object of texts; make the dataset again")
    return sums


def require_unchanged(path, *names: str, share: tuple[int, int] = (0, 1)) -> None:
    """Raises DatasetError unless these files are as they were written; where nothing says how they were, nothing is
    raised. A name that ends with / stands for all files in that folder. share: as of `load`."""
    sums, folder = _checksums(path), pathlib.Path(path)
    if not sums:
        return
    wanted = {name for name in sums if name in names or name.startswith(tuple(n for n in names if n.endswith("/")))}
    there = {file.relative_to(folder).as_posix() for name in names if name.endswith("/")
             for file in (folder / name).glob("*") if file.suffix in (".npy", ".json")}
    try:
        if unknown := sorted((there | {name for name in names if not name.endswith("/")}) - wanted):
            raise ValueError(f"{unknown[0]} is not in its {CHECKSUMS}")
        files.compare(path, {name: sums[name] for name in sorted(wanted)[share[0]::share[1]]})
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is damaged: {error}; make the dataset again") from error


def check(split: Split, folder, share: tuple[int, int] = (0, 1)) -> None:
    """Raises DatasetError for the first thing in `split` that cannot be; `folder` is for the message. share: as of
    `load`, for inputs and labels."""
    meta = split.metadata

    def need(ok, name: str, why: str):
        if not ok:
            raise DatasetError(f"{_npy(folder, name)}: {why}")

    for name in (*ARRAYS, *EXTRAS):
        array = getattr(split, name)
        if array is not None:
            rank = 2 if name in ("inputs", "labels") else 1
            need(array.ndim == rank, name, f"has shape {list(array.shape)}, must have {rank} dimension(s)")
            kind, kinds = (np.floating, "floats") if name == "log2_paths" else (np.integer, "integers")
            need(np.issubdtype(array.dtype, kind), name, f"holds {array.dtype}, must hold {kinds}")
    examples, seq_len = split.inputs.shape
    puzzles = len(split.puzzle_identifiers)
    need(examples > 0, "inputs", "holds no examples")
    need(seq_len == meta.seq_len, "inputs", f"has rows of {seq_len}, but seq_len in dataset.json is {meta.seq_len}")
    need(split.labels.shape == split.inputs.shape, "labels",
         f"has shape {list(split.labels.shape)}, inputs have {list(split.inputs.shape)}")
    for name, end, what in (("puzzle_indices", examples, "examples"), ("group_indices", puzzles, "puzzles")):
        indices = getattr(split, name)
        need(len(indices) > 1 and indices[0] == 0, name, "must start at 0 and have more than one entry")
        need(np.all(indices[1:] > indices[:-1]), name, "must ascend strictly")
        need(indices[-1] == end, name, f"ends at {indices[-1]}, but there are {end} {what}")
    need(len(split.puzzle_indices) == puzzles + 1, "puzzle_indices",
         f"has {len(split.puzzle_indices)} entries, must have {puzzles + 1} (puzzles + 1)")
    need(split.num_groups == meta.total_groups, "group_indices",
         f"has {split.num_groups} groups, but total_groups in dataset.json is {meta.total_groups}")
    need_range(split.puzzle_identifiers, meta.num_puzzle_identifiers, "num_puzzle_identifiers",
                _npy(folder, "puzzle_identifiers"))
    for name in ("inputs", "labels"):
        need_range(getattr(split, name), meta.vocab_size, "vocab_size", _npy(folder, name), share)
    for name in ("sources", "ratings", "log2_paths"):
        array = getattr(split, name)
        need(array is None or len(array) == examples, name, f"must have one entry for each of {examples} examples")
    if split.sources is not None:
        need_range(split.sources, len(split.source_names), "number of names in sources.json", _npy(folder, "sources"))


def need_range(array: np.ndarray, end: int, end_name: str, file, share: tuple[int, int] = (0, 1)) -> None:
    # In pieces: no second copy of a memory-mapped array.
    for start in range(share[0] * CHECK_ROWS, len(array), share[1] * CHECK_ROWS):
        piece = array[start:start + CHECK_ROWS]
        low, high = int(piece.min()), int(piece.max())
        _release(array)
        if low < 0 or high >= end:
            raise DatasetError(f"{file}: holds {low if low < 0 else high}, must lie under the {end_name} {end}")


def _release(array: np.ndarray) -> None:
    """Pages of a file that is mapped read-only stop counting as memory of this process; they are read again on use."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and not array.flags.writeable and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _npy(folder, name: str) -> pathlib.Path:
    return pathlib.Path(folder) / f"{SET}__{name}.npy"


def _read_array(folder: pathlib.Path, name: str) -> np.ndarray:
    file = _npy(folder, name)
    if not file.is_file():
        raise DatasetError(f"{file} is missing")
    try:
        array = np.load(file, mmap_mode="r" if name in ("inputs", "labels") else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(f"{file} is damaged or no npy file ({error}); make the dataset again") from error
    return array.view(np.ndarray) if isinstance(array, np.memmap) else array  # indexing a memmap is slow


def _read_json(file: pathlib.Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file} cannot be read as JSON ({error})") from error


def _read_metadata(file: pathlib.Path) -> Metadata:
    raw = _read_json(file)
    if not isinstance(raw, dict):
        raise DatasetError(f"{file}: must hold an object, holds {type(raw).__name__}")
    values: dict[str, Any] = {"total_puzzles": -1}
    values |= {f.name: raw[f.name] for f in dataclasses.fields(Metadata) if f.name in raw}
    for field in dataclasses.fields(Metadata):
        name = field.name
        if name not in values or name not in raw and name != "total_puzzles":
            raise DatasetError(f"{file}: has no {name}")
        value = values[name]
        if name == "sets":
            if value != [SET]:
                raise DatasetError(f"{file}: sets = {value!r}, only [{SET!r}] can be loaded")
        elif name == "mean_puzzle_examples":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise DatasetError(f"{file}: mean_puzzle_examples = {value!r}, must be a positive number")
        elif not (name == "ignore_label_id" and value is None):
            if isinstance(value, bool) or not isinstance(value, int) or value < (-1 if name == "total_puzzles" else 0):
                raise DatasetError(f"{file}: {name} = {value!r}, must be an integer of at least 0")
    values["sets"] = tuple(values["sets"])
    return Metadata(**values)


# Writing.


def write(path, splits: dict[str, Split], identifiers: list[str], provenance: dict[str, Any], *,
          more_json: dict[str, Any] | None = None, ready: dict[str, dict[str, pathlib.Path]] | None = None,
          overwrite: bool = False) -> None:
    """Writes the folder beside its place and renames it there: it is there whole or not at all.

    Args:
      more_json: file name -> content of further files of the published layout (ARC: "test_puzzles.json").
      ready: split -> array -> the .npy file, on the same disk, that the array is mapped from and that is moved in: for
        arrays too large to write twice.
    Raises:
      DatasetError: the place is taken (and, even with `overwrite`, if what is there is not a dataset folder).
    """
    path = pathlib.Path(os.path.realpath(path))
    refuse_taken(path, overwrite)
    for name, split in splits.items():
        check(split, path / name)
        if split.metadata.num_puzzle_identifiers != len(identifiers):
            raise DatasetError(f"{len(identifiers)} identifiers, but num_puzzle_identifiers of {name} is "
                               f"{split.metadata.num_puzzle_identifiers}")
    path.parent.mkdir(parents=True, exist_ok=True)
    need_room(path, sum(getattr(split, array).nbytes for name, split in splits.items() for array in ARRAYS
                        if array not in (ready or {}).get(name, {})))
    new = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        umask = os.umask(0)
        os.umask(umask)
        new.chmod(0o777 & ~umask)
        for name, split in splits.items():
            _write_split(new / name, split, (ready or {}).get(name, {}))
        for file, value in ((more_json or {})
                            | {"identifiers.json": identifiers, "provenance.json": provenance}).items():
            _write_json(new / file, value)
        _write_json(new / CHECKSUMS, files.digests(new, [new]))
        refuse_taken(path, overwrite)  # again: writing takes a while
        _replace(new, path)
    except OSError as error:
        if error.errno and error.filename is None:  # of a full disk, say: which file it was is not told
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def need_room(path: pathlib.Path, size: int, hint: str = "") -> None:
    """Raises DatasetError if there is no room for so many bytes beside `path`."""
    if size > (free := shutil.disk_usage(path.parent).free):
        raise DatasetError(f"{path} will have {human(size, 'B')}, but only {human(free, 'B')} are free there{hint}")


@contextlib.contextmanager
def being_made(path) -> Iterator[None]:
    """Nobody else makes the folder meanwhile, and what makers that were killed have left beside it is removed.

    Raises LockedError if somebody makes it.
    """
    path = pathlib.Path(os.path.realpath(path))
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.lock(path.parent / f".{path.name}.lock", f"the dataset folder {path}"):
            for left in path.parent.glob(f".{glob.escape(path.name)}.*-*"):
                kind = left.name.removeprefix(f".{path.name}.").partition("-")[0]
                if kind == "old" and (left / path.name).is_dir() and not path.exists():  # killed between two renames
                    (left / path.name).rename(path)
                if kind in ("new", "old", "arrays"):
                    shutil.rmtree(left, ignore_errors=True)
            yield
    finally:
        for folder in missing:  # those that stayed empty
            with contextlib.suppress(OSError):
                folder.rmdir()


def refuse_taken(path, overwrite: bool) -> None:
    """Raises DatasetError if `write` would refuse this place; commands call it before their long work."""
    path = pathlib.Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not any((path / name / "dataset.json").is_file() for name in ("train", "test")):
        raise DatasetError(f"{path} is there and is not a dataset folder; it is left alone, choose another place")
    if not overwrite:
        raise DatasetError(f"{path} is there already; add --overwrite to replace it")


def _write_split(folder: pathlib.Path, split: Split, ready: dict[str, pathlib.Path]) -> None:
    folder.mkdir()
    for name in (*ARRAYS, *EXTRAS):
        if name in ready:
            os.replace(ready[name], _npy(folder, name))
        elif getattr(split, name) is not None:
            with open(_npy(folder, name), "wb") as file:
                np.save(file, getattr(split, name), allow_pickle=False)
                sync(file)
    if split.sources is not None:
        _write_json(folder / "sources.json", list(split.source_names))
    _write_json(folder / "dataset.json", dataclasses.asdict(split.metadata))


def _write_json(file: pathlib.Path, value: Any) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1)
        stream.write("\n")
        sync(stream)


def sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace(new: pathlib.Path, path: pathlib.Path) -> None:
    """Renames `new` to `path`. What was there is at `new` afterwards, or removed, and is put back if that fails.

    Where the system can exchange two folders there is no moment with neither.
    """
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        old = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent)) / path.name
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
        finally:
            shutil.rmtree(old.parent, ignore_errors=True)
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        handle = os.open(path.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _exchange(a: pathlib.Path, b: pathlib.Path) -> bool:
    """Exchanges two folders in one step, with Linux's renameat2; False where there is none, or not on this disk."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0
