"""Where the examples of a dataset come from: a CSV file as published, or the domain's generator.

CSV: header `source,question,answer,rating`, plain or .gz, one puzzle a line; the cells are the domain's text. Other
names that people give to these columns do as well, in any order and case and with another separator; only the puzzle
must be there. Without its answer it is solved, if the domain can and the solution is the only one.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import gzip
import hashlib
import io
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from trm_jax import puzzles
from trm_jax.data import dataset
from trm_jax.data.dataset import DatasetError
from trm_jax.puzzles.text import Columns

HEADER = ["source", "question", "answer", "rating"]
PIECE_BYTES = 8 << 20
GENERATE_AT_ONCE = 2000


@dataclasses.dataclass(frozen=True)
class Examples:
    """N examples, one per puzzle, before they are put into groups."""

    inputs: np.ndarray  # [N, S] uint8
    labels: np.ndarray  # [N, S] uint8
    ratings: np.ndarray  # [N] int32
    sources: np.ndarray  # [N] uint16 into source_names
    source_names: tuple[str, ...]
    rows: np.ndarray | None = None  # [N] row of the source file, ascending; None: all of them are here
    log2_paths: np.ndarray | None = None  # [N] float32, of domains whose puzzles have several right answers

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: np.ndarray) -> Examples:
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return Examples(self.inputs[index], self.labels[index], self.ratings[index], self.sources[index],
                        self.source_names, rows[index], None if self.log2_paths is None else self.log2_paths[index])


def choose(examples: Examples, name: str, *, min_rating: int | None = None, subsample: int | None = None,
           seed: int = 0) -> Examples:
    """Those rated at least `min_rating`, then a seeded sample of `subsample`, in the order of the file."""
    if min_rating is not None:
        examples = examples.take(np.flatnonzero(examples.ratings >= min_rating))
        if not len(examples):
            raise DatasetError(f"{name}: no puzzle is rated {min_rating} or more")
    if subsample is not None:
        if subsample > len(examples):
            raise DatasetError(f"{name}: cannot keep {subsample} puzzles of {len(examples)}")
        rng = np.random.default_rng(seed)
        examples = examples.take(np.sort(rng.choice(len(examples), subsample, replace=False)))
    return examples


def reveal(examples: Examples, how: Sequence[str], seed: int = 0) -> Examples:
    """Puzzles of every difficulty, made from hard ones by giving away cells of their answers.

    Args:
      how: "SOURCE:SHARE:MOST:COPIES" each: every puzzle of the source becomes COPIES puzzles, of which a SHARE (0 to 1)
        stays as it is and the others get 1 to MOST of their open cells. SOURCE "*" stands for those that no other entry
        names; puzzles that none names stay as they are. (): nothing is changed.

    Raises:
      DatasetError: an entry that cannot be read, or names no source of the file.
    """
    if not how:
        return examples
    entries = {}
    for text in how:
        source, *numbers = text.rsplit(":", 3)
        try:
            share, most, copies = float(numbers[0]), int(numbers[1]), int(numbers[2])
        except (ValueError, IndexError):
            share, most, copies = -1.0, 0, 0
        if not 0 <= share <= 1 or not 1 <= most <= 10_000 or not 1 <= copies <= 10_000:
            raise DatasetError(f"reveal: {text!r:.80} is not SOURCE:SHARE:MOST:COPIES, a share from 0 to 1 and two "
                               "whole numbers of at least 1, e.g. random_minimal:0.5:25:4")
        if source != "*" and source not in examples.source_names:
            raise DatasetError(f"reveal: no puzzle is of source {source!r:.80}; there are "
                               f"{', '.join(examples.source_names)}")
        entries[source] = share, most, copies
    rng, parts = np.random.default_rng([seed, 2]), []
    for code, name in enumerate(examples.source_names):
        share, most, copies = entries.get(name, entries.get("*", (1.0, 1, 1)))
        part = examples.take(np.repeat(np.flatnonzero(examples.sources == code), copies))
        given = np.where(rng.random(len(part)) < share, 0, rng.integers(1, most + 1, len(part)))
        order = np.where(part.inputs == 1, rng.random(part.inputs.shape, np.float32), np.float32(2))  # open cells first
        rank = np.argsort(np.argsort(order, axis=1), axis=1)
        opened = (rank < given[:, None]) & (part.inputs == 1)
        parts.append(dataclasses.replace(part, inputs=np.where(opened, part.labels, part.inputs)))
    inputs, labels, ratings, sources = (np.concatenate([getattr(part, name) for part in parts])
                                        for name in ("inputs", "labels", "ratings", "sources"))
    return Examples(inputs, labels, ratings, sources, examples.source_names)


def to_split(examples: Examples, domain, *, num_aug: int = 0, seed: int = 0) -> dataset.Split:
    """Each example, followed by `num_aug` random symmetries of it, becomes a group of 1 + num_aug puzzles."""
    copies = 1 + num_aug
    inputs, labels = examples.inputs, examples.labels
    if num_aug:
        rng = np.random.default_rng([seed, 1])
        inputs, labels = (np.repeat(a, copies, axis=0) for a in (inputs, labels))
        for start in tqdm(range(0, len(inputs), copies << 6), desc="shuffling", unit="64 puzzles", disable=None):
            part = slice(start, start + (copies << 6))
            shuffled = domain.augment(inputs[part], labels[part], rng)
            fresh = np.arange(len(inputs[part])) % copies > 0  # the first of each group stays as it was
            inputs[part][fresh], labels[part][fresh] = shuffled[0][fresh], shuffled[1][fresh]
    return dataset.make_split(
        inputs, labels, vocab_size=domain.vocab_size, group_indices=np.arange(len(examples) + 1) * copies,
        sources=np.repeat(examples.sources, copies), source_names=examples.source_names,
        ratings=np.repeat(examples.ratings, copies), subsample=examples.rows,
        log2_paths=None if examples.log2_paths is None else np.repeat(examples.log2_paths, copies))


def grid_keys(labels: np.ndarray) -> np.ndarray:
    """Grids [N, S] uint8 -> [N] uint64, equal for equal grids and (but for 1 pair in 2**64) only for them."""
    weights = np.random.default_rng(20250626).integers(1, 1 << 64, labels.shape[1], np.uint64)
    keys = np.empty(len(labels), np.uint64)
    for start in range(0, len(labels), 1 << 16):
        keys[start:start + (1 << 16)] = labels[start:start + (1 << 16)].astype(np.uint64) @ weights
    return keys


def count_shared_grids(train: Examples, test: Examples) -> int:
    """How many test puzzles have a solution grid that a training puzzle has too."""
    return int(np.isin(grid_keys(test.labels), grid_keys(train.labels)).sum())


# Generated.


def generate(domain, train: int, test: int, *, seed: int = 0, **how) -> tuple[Examples, Examples]:
    """Train and test examples that share no solution grid; `how` is for the domain's generator."""
    seeds = np.random.SeedSequence(seed)
    seen: set[int] = set()  # keys of the puzzles in `parts`
    parts: list[tuple[np.ndarray, ...]] = []  # inputs, labels, ratings, for mazes log2_paths
    spare = 0  # puzzles beyond train + test, to replace those whose grid the other side has
    with tqdm(total=train + test, desc="generating", unit="puzzles", disable=None) as bar:
        fruitless = 0  # draws in a row without a new puzzle; each asks for twice as many as the one before
        while True:
            while (missing := train + test + spare - len(seen)) > 0:
                draw = int(seeds.spawn(1)[0].generate_state(1)[0])
                drawn = domain.generate(min(GENERATE_AT_ONCE, missing << fruitless), draw, **how)
                fresh = [i for i, key in enumerate(grid_keys(drawn[0]).tolist()) if not (key in seen or seen.add(key))]
                fruitless = 0 if fresh else fruitless + 1
                if fruitless > 10:
                    raise DatasetError(f"no more than {len(seen)} different puzzles were found; ask for fewer")
                parts.append(tuple(column[fresh] for column in drawn))
                bar.update(min(len(fresh), bar.total - bar.n))
            inputs, labels, ratings, *log2_paths = map(np.concatenate, zip(*parts, strict=True))
            in_train, in_test = _separate(grid_keys(labels), test)
            if len(in_train) >= train:  # in_test is full: there are enough puzzles
                break
            spare += train - len(in_train)
            if spare > 4 * (train + test):
                raise DatasetError(f"{train} training and {test} test puzzles cannot be kept apart: there are only "
                                   f"{len(np.unique(grid_keys(labels)))} solution grids among {len(seen)} puzzles")

    def part(index):
        return Examples(inputs[index], labels[index], ratings[index].astype(np.int32),
                        np.zeros(len(index), np.uint16), ("generated",), None, *(a[index] for a in log2_paths))

    return part(in_train[:train]), part(in_test[:test])


def _separate(keys: np.ndarray, test: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and test examples: whole grids, in order of appearance, go to test until it is full."""
    _, first, grid, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    by_appearance = np.argsort(first)
    before = np.zeros(len(counts), np.int64)  # examples of the grids that appeared earlier
    before[by_appearance] = np.cumsum(counts[by_appearance]) - counts[by_appearance]
    is_test = (before < test)[grid]
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


# CSV.


class _Rows(NamedTuple):
    questions: np.ndarray  # [N, S] uint8 tokens
    answers: np.ndarray | None  # [N, S]; None: the file has none
    ratings: np.ndarray  # [N] int32
    sources: list[str]
    lines: np.ndarray  # [N] of the file


def read_csv(path, domain, *, one_solution: bool = False) -> tuple[Examples, str]:
    """File -> (examples, SHA-256 of its bytes as they lie on disk).

    Args:
      one_solution: refuse puzzles that have another solution besides their answer, where the domain can tell.
    Raises:
      DatasetError: naming file, line and reason, for the first row that is no puzzle with its solution.
    """
    path = pathlib.Path(path)
    digest = hashlib.sha256()
    tokens = np.zeros(256, np.uint8)  # of each character, 0 (pad) where it is no cell
    for symbol, token in domain.symbols.items():
        tokens[ord(symbol)] = token
    inputs, labels, ratings, sources, names = [], [], [], [], {}
    try:
        for piece, first_line, columns in _pieces(path, digest, domain.seq_len):
            rows = _parse(piece, first_line, path, domain, tokens, columns)
            inputs.append(rows.questions)
            labels.append(_solved(rows, domain, path) if rows.answers is None else rows.answers)
            _check(inputs[-1], labels[-1], domain, path, rows.lines)
            if one_solution and rows.answers is not None and domain.solves and not domain.has_several_answers:
                _solved(rows, domain, path)
            ratings.append(rows.ratings)
            sources.append(np.array([names.setdefault(name, len(names)) for name in rows.sources], np.uint16))
            if len(names) >= 1 << 16:
                raise DatasetError(f"{path}: more than {1 << 16} different sources")
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read ({error})") from error
    if not inputs:
        raise DatasetError(f"{path} holds no puzzles")
    inputs, labels, ratings, sources = map(np.concatenate, (inputs, labels, ratings, sources))
    log2_paths = domain.log2_answers(inputs) if domain.has_several_answers else None
    return Examples(inputs, labels, ratings, sources, tuple(names), None, log2_paths), digest.hexdigest()


class _Hashing(io.RawIOBase):
    """A file that hashes what is read from it."""

    def __init__(self, file, digest):
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._file.readinto(buffer)
        self._digest.update(memoryview(buffer)[:count])
        return count


def _pieces(path: pathlib.Path, digest, cells: int) -> Iterator[tuple[bytes, int, Columns]]:
    """(bytes of whole lines in UTF-8, without the header and every one ended by a newline; number of the first;
    columns). cells: of a puzzle, for files without a header."""
    with open(path, "rb") as raw, io.BufferedReader(_Hashing(raw, digest), 1 << 20) as hashed:
        packed = hashed.peek(2)[:2] == b"\x1f\x8b"
        with gzip.GzipFile(fileobj=hashed) if packed else hashed as stream:
            if hashed.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                stream = codecs.EncodedFile(stream, "utf-8", "utf-16", "replace")
            line, first = 1, stream.readline().removeprefix(codecs.BOM_UTF8)
            while first and (not first.strip() or first.lstrip().startswith((b"#", b"//"))):
                line, first = line + 1, stream.readline()
            header = first.decode("utf-8", "replace").lstrip("\ufeff").strip()
            piece = b""
            if (columns := Columns.of([header, "x" * 16])) is not None:
                line += 1
            elif columns := Columns.unnamed(header, cells):
                piece = header.encode() + b"\n"
            else:
                raise DatasetError(f"{path}, line {line}: the header is {header!r:.80}, which names no column for the "
                                   f"puzzle; write one such as {','.join(HEADER)}")
            piece += stream.read(PIECE_BYTES)
            while piece:
                piece = (piece + stream.readline()).replace(b"\r\n", b"\n").removesuffix(b"\n") + b"\n"
                if piece.strip():
                    yield piece, line, columns
                line, piece = line + piece.count(b"\n"), stream.read(PIECE_BYTES)


def _parse(piece: bytes, first_line: int, path, domain, tokens: np.ndarray, columns: Columns) -> _Rows:
    """The quick way for a piece of the published form and without a fault; otherwise row by row."""
    S = domain.seq_len
    if columns.delimiter != "," or list(columns.names) != HEADER or max(domain.grid) > 9 and domain.vocab_size > 11:
        return _parse_slowly(piece, first_line, path, domain, columns)  # a big grid's digits are of several alphabets
    data = np.frombuffer(piece, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    commas = np.flatnonzero(data == ord(","))
    if b'"' in piece or not piece.isascii() or len(commas) != 3 * len(ends):
        return _parse_slowly(piece, first_line, path, domain, columns)
    commas = commas.reshape(-1, 3)
    starts = np.concatenate([[0], ends[:-1] + 1])
    a, b, c = commas.T
    width = ends - c - 1
    if not (np.all(starts <= a) and np.all(b - a == S + 1) and np.all(c - b == S + 1)
            and np.all((1 <= width) & (width <= 9))):
        return _parse_slowly(piece, first_line, path, domain, columns)
    windows = np.lib.stride_tricks.sliding_window_view(data, S)
    questions, answers = tokens[windows[a + 1]], tokens[windows[b + 1]]
    ratings, digits_only = np.zeros(len(ends), np.int32), True
    for place in range(int(width.max())):
        at = np.flatnonzero(width > place)
        digit = data[c[at] + 1 + place] - np.uint8(ord("0"))  # wraps: below "0" is large too
        digits_only &= bool(np.all(digit <= 9))
        ratings[at] = ratings[at] * 10 + digit
    if not (digits_only and questions.all() and answers.all()):
        return _parse_slowly(piece, first_line, path, domain, columns)
    text = piece.decode("ascii")
    spans = zip(starts.tolist(), a.tolist(), strict=True)
    return _Rows(questions, answers, ratings, [text[start:end] for start, end in spans],
                 first_line + np.arange(len(ends)))


def _parse_slowly(piece: bytes, first_line: int, path, domain, columns: Columns) -> _Rows:
    questions, answers, ratings, sources, numbers = [], [], [], [], []
    lines = piece.decode("utf-8", "replace").split("\n")[:-1]
    for number, row in _csv_rows(lines, first_line, path, columns.delimiter):
        where = f"{path}, line {number}: "
        if not any(cell.strip() for cell in row) and len(row) < 2:
            continue
        if len(row) != len(columns.names):
            raise DatasetError(f"{where}has {len(row)} columns, must have {len(columns.names)}: "
                               f"{','.join(columns.names)}")
        for name, column, rows in (("question", columns.puzzle, questions), ("answer", columns.solution, answers)):
            if column is not None and not (name == "answer" and not row[column].strip()):
                try:
                    rows.append(domain.encode(row[column]))
                except puzzles.PuzzleError as error:
                    raise DatasetError(f"{where}{name}: {error}") from None
        if len(answers) < len(questions) and columns.solution is not None:  # left empty: solved, as without a column
            one = _Rows(questions[-1][None], None, np.zeros(1, np.int32), [""], np.array([number]))
            answers.append(_solved(one, domain, path)[0])
        numbers.append(number)
        rating = "0" if columns.rating is None else row[columns.rating]
        if columns.rating is not None and columns.names[columns.rating] != "rating" and rating.strip().isalpha():
            rating = "0"  # a difficulty in a word
        ratings.append(_rating(rating if columns.delimiter == "," else rating.replace(",", "."), where))
        sources.append("" if columns.source is None else row[columns.source])
    if not questions:
        raise DatasetError(f"{path} holds no puzzles")
    return _Rows(np.stack(questions), np.stack(answers) if answers else None, np.array(ratings, np.int32), sources,
                 np.array(numbers))


def _rating(text: str, where: str) -> int:
    """A rating as a whole number: a fraction is rounded, nothing is 0."""
    try:
        value = float(text.strip() or 0) if text.isascii() else -1.0
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:  # what is not a number is not
        raise DatasetError(f"{where}rating is {text!r:.40}, must be a number of at least 0, or missing")
    return round(value)


def _solved(rows: _Rows, domain, path) -> np.ndarray:
    """The only solution of every puzzle, [N, S]. Raises DatasetError where there is none, or another one."""
    if not domain.solves:
        raise DatasetError(f"{path}: has no column of answers, and {domain.title} cannot be solved here; "
                           "add one called answer")
    found = domain.solutions(rows.questions)
    if (odd := (found.counts < 1) | (found.counts > 1) & (not domain.has_several_answers)).any():
        row = int(np.argmax(odd))
        try:
            domain.check_clues(rows.questions[row])
            why = {0: "the puzzle has no solution", -1: "the search for solutions took too long"}.get(
                int(found.counts[row]), "the puzzle has several solutions")
        except puzzles.PuzzleError as error:
            why = str(error)
        raise DatasetError(f"{path}, line {rows.lines[row]}: {why}")
    return found.answers


def _csv_rows(lines: list[str], first_line: int, path, delimiter: str):
    """(line number, columns) of each line: a quoted field may hold commas, but not go on in the next line."""
    reader, number = csv.reader(lines, delimiter=delimiter, strict=True), first_line - 1
    try:
        for number, row in enumerate(reader, first_line):
            if first_line + reader.line_num - 1 != number:
                raise DatasetError(f"{path}, line {number}: a quoted field goes on in the next line")
            yield number, row
    except csv.Error as error:
        raise DatasetError(f"{path}, line {number + 1}: is not CSV ({error})") from error


def _check(inputs: np.ndarray, labels: np.ndarray, domain, path, lines: np.ndarray) -> None:
    for start in range(0, len(inputs), 8192):
        verdict = domain.verify(inputs[start:start + 8192], labels[start:start + 8192])
        if not np.all(verdict.solved):
            row = int(np.argmin(verdict.solved))
            where = f"{path}, line {lines[start + row]}: "
            question, answer = inputs[start + row], labels[start + row]
            try:
                domain.check_clues(question)
            except puzzles.PuzzleError as error:
                raise DatasetError(f"{where}{error}") from None
            rule = next(name for name in domain.broken if not getattr(verdict, name)[row])
            raise DatasetError(f"{where}the answer {domain.broken[rule]} ({domain.explain(question, answer)})")
