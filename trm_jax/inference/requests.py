"""Puzzles as people bring them: text of any form, JSON, CSV, files and folders.

What one puzzle looks like is its domain's business (`Domain.encode_value`, `Domain.split`). Here is what surrounds
them: encodings, lines, objects with names, columns. One that cannot be read stands in its place as an exception.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trm_jax import puzzles
from trm_jax.inference.kinds import other_kind
from trm_jax.inference.solver import SolveError
from trm_jax.puzzles import PuzzleError, arc
from trm_jax.puzzles.domain import PUZZLE_NAMES
from trm_jax.puzzles.text import Columns, plain_lines

ID_NAMES = ("id", "task_id", "name", "uid", "key")
LIST_NAMES = ("puzzles", "tasks", "items", "data", "rows", "quizzes", "questions")
SUFFIXES = (".json", ".jsonl", ".txt", ".csv", ".tsv", ".sdk", ".sdm", ".ss")


class Request(NamedTuple):
    name: str  # for messages: "puzzle 3", or the id that came with it
    puzzle: Any  # as Solver.read takes it; an exception where there is none
    solution: np.ndarray | None = None  # [S], where it is known


def read_path(path: str, domain: puzzles.Domain) -> list[Request]:
    """The puzzles of a file, or of all files of a folder (as ARC's tasks are published, one each).

    Raises:
      SolveError: there is no such file, or a .json file is no JSON.
    """
    place = Path(path)
    try:
        if place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not files:
                raise SolveError(f"{path}: the folder has no file that ends in {', '.join(SUFFIXES)}")
            return [request for file in files for request in read_requests(
                file.read_bytes(), domain, file.suffix.lower() == ".json", file.stem)]
        return read_requests(place.read_bytes(), domain, place.suffix.lower() == ".json", place.stem)
    except OSError as error:
        raise SolveError(f"{path}: {error.strerror or error}") from None
    except SolveError as error:
        raise SolveError(f"{path}: {error}") from None


def read_requests(content: str | bytes, domain: puzzles.Domain, is_json: bool = False,
                  stem: str = "puzzle") -> list[Request]:
    """The puzzles of a text, numbered in their order where they have no id.

    Args:
      is_json: it must be one JSON value; otherwise it may be.
      stem: names the puzzle of a JSON value that is one and has no id (ARC's tasks have their ID as file name).
    Raises:
      SolveError: with `is_json`, for what is no JSON.
    """
    text = decoded(content) if isinstance(content, bytes) else content
    text = re.sub(r"^\s*[A-Za-z_][\w \[\]]*=\s*(?=[\[{])", "", text.removeprefix("\ufeff"))  # board = [[...
    if is_json or text.lstrip()[:1] in ("[", "{"):
        try:
            value = _json(text)
        except PuzzleError as error:
            if is_json:
                raise SolveError(f"cannot be read as JSON: it {error}") from None
        else:
            return list(_of_json(value, domain, stem))
    lines = plain_lines(text)
    if columns := Columns.of(lines):
        return list(_of_columns(columns, lines, domain))
    return _of_lines(text, lines, domain)


def decoded(data: bytes) -> str:
    """UTF-8 or UTF-16, with or without a mark; bytes that are neither become lone surrogates."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    for odd, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(data) > 3 and data[odd::2].count(0) > len(data) // 3:
            return data.decode(encoding, "replace")
    return data.decode("utf-8-sig", "surrogateescape")


def _json(text: str) -> Any:
    """A JSON value, or one as Python writes it; PuzzleError says that it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise PuzzleError("is nested too deeply") from None
    except ValueError as error:
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError), \
                warnings.catch_warnings(action="ignore"):
            return json.loads(json.dumps(ast.literal_eval(text.strip())))
        raise PuzzleError(f"is no JSON ({error})") from None


def _of_json(value: Any, domain: puzzles.Domain, stem: str) -> Iterator[Request]:
    if isinstance(value, Mapping):
        value = _by_rows(value, domain)
    elif domain.identifies_tasks and value and isinstance(value, list) and all(map(arc.pair_of, value)):
        value = {"examples": value}
    if isinstance(value, Mapping):
        lists = [name for name in LIST_NAMES if isinstance(value.get(name), list)]
        if lists and not domain.is_one(value[lists[0]]):
            value = value[lists[0]]
        elif any(name in value for name in (*PUZZLE_NAMES, "test", "train", "examples")) or not value:
            yield _request(stem, value)
            return
        else:
            for name, item in value.items():
                yield _request(name, item)
            return
    if isinstance(value, list) and not domain.is_one(value):
        for i, item in enumerate(value, 1):
            yield _request(f"puzzle {i}", item)
    else:
        yield _request("puzzle 1", value)


def _by_rows(value: Mapping[str, Any], domain: puzzles.Domain) -> Any:
    """A table as pandas and others write it to JSON, by columns or with the rows apart, as a list of its rows; all else
    as it is."""
    name = next((name for name in PUZZLE_NAMES if name in value), None)
    rows = value.get("data")
    if isinstance(rows, list) and isinstance(value.get("columns"), list):
        return [dict(zip(value["columns"], row)) for row in rows if isinstance(row, list)]
    if isinstance(rows, Mapping) and len(value) == 1:
        return rows
    column = value[name] if name is not None else None
    if isinstance(column, Mapping) and column:
        return list(column.values())
    if isinstance(column, list) and not domain.is_one(column) and column and all(
            domain.is_one(item) if isinstance(item, list) else isinstance(item, str) and _can_read(domain, item)
            for item in column):
        return column
    return value


def _of_columns(columns: Columns, lines: list[str], domain: puzzles.Domain) -> Iterator[Request]:
    number, begun = 0, ""
    for line in lines[columns.line:]:
        begun = f"{begun}\n{line}" if begun else line
        if not line.strip() or begun.count('"') % 2:  # a field may have several lines
            continue
        line, begun = begun, ""
        number += 1
        try:
            cells = columns.cells(line)
            name = cells[columns.id] if columns.id is not None and columns.id < len(cells) else f"puzzle {number}"
            yield _request(name, cells[columns.puzzle])
        except (IndexError, csv.Error):
            yield Request(f"puzzle {number}", PuzzleError(
                f"has no column {columns.puzzle + 1}, which the first line says holds the puzzle"))


def _of_lines(text: str, lines: list[str], domain: puzzles.Domain) -> list[Request]:
    values: dict[int, Any] = {}  # line -> JSON
    for number, line in enumerate(lines, 1):
        line = line.strip().rstrip(",")
        if line[:1] in ("{", '"') or line[:1] == "[" and line[-1:] == "]" and line.count("[") > 1:
            try:
                value = _json(line)
            except PuzzleError as error:
                if line[0] != '"' and ('"' in line or not any(map(str.isalnum, line))):
                    values[number] = error
            else:
                if not isinstance(value, str):
                    values |= {number: value} if line[0] != '"' else {}
                elif _can_read(domain, value) or "\n" in value:
                    values[number] = value
                else:
                    lines[number - 1] = value  # a row of one, it may be
    rest = "\n".join("" if number in values else line for number, line in enumerate(lines, 1))
    pieces = domain.split(rest)
    if len(lines) > 1 and not values and not any(_can_read(domain, piece.text) for piece in pieces) and (
            reason := other_kind(text, domain)):
        return [Request("puzzle 1", PuzzleError(reason))]  # as a whole, rather than line by line
    found = sorted([(number, value) for number, value in values.items()]
                   + [(piece.first, piece) for piece in pieces], key=lambda pair: pair[0])
    return [_request(f"puzzle {i}", value) for i, (_, value) in enumerate(found, 1)]


def _can_read(domain: puzzles.Domain, text: str) -> bool:
    try:
        domain.encode(text)
    except PuzzleError:
        return False
    return True


def _request(name: str, value: Any) -> Request:
    if isinstance(value, puzzles.Piece):
        if any("\udc80" <= c <= "\udcff" for c in value.text):
            return Request(name, PuzzleError(f"{value.where} holds bytes that are no text in UTF-8 or UTF-16"))
        return Request(name, value.text if value.first == value.last else value)
    if isinstance(value, Mapping):
        name = str(next((value[key] for key in ID_NAMES if isinstance(value.get(key), (str, int))), name))
        value = value["row"] if isinstance(value.get("row"), Mapping) else value  # as the Hugging Face viewer has it
        value = arc.of_examples(value)
        if "test" in value or "train" in value:  # an ARC task
            return Request(name, {**value, "id": name})
        if not any(key in value for key in PUZZLE_NAMES):
            value = PuzzleError('has no "puzzle"')
    return Request(name, value)
