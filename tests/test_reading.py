"""Puzzles as people have them: every form in which they come is read right, or refused with what would do."""

import json
import pathlib

import numpy as np
import pytest

from trm_jax import puzzles
from trm_jax.inference.kinds import other_kind
from trm_jax.inference.requests import read_path, read_requests
from trm_jax.inference.solver import SolveError
from trm_jax.puzzles import Piece, PuzzleError

INPUTS = pathlib.Path(__file__).parent / "inputs"  # as users brought them
SUDOKU, HEX = puzzles.get("sudoku"), puzzles.get("sudoku", seq_len=256)
EASY = "6.1..4.2883...2....5.1834..1832..57....917863......2.471.42..3..4.361..73..87..4."
ROWS = [EASY[i:i + 9] for i in range(0, 81, 9)]
SS = """*-----------*
|1..|...|7..|
|.2.|...|5..|
|6..|38.|...|
|---+---+---|
|.78|...|...|
|...|6.9|...|
|...|...|14.|
|---+---+---|
|...|.25|..9|
|..3|...|.6.|
|..4|...|..2|
*-----------*
"""
SS_CELLS = "1.....7...2....5..6..38.....78.........6.9.........14.....25..9..3....6...4.....2"
MAZE = puzzles.get("maze", rows=6, cols=6)
MAZE_ROWS = ["#     ", "  ##G#", " #  ##", " ### #", "   S  ", "   # #"]
ANY_MAZE = puzzles.get("maze", rows=12, cols=12, smallest=5)
QUESTION = MAZE.encode("".join(MAZE_ROWS))


def cells(domain, value):
    """Tokens of a puzzle as the solver reads it, as text; the error where it is none."""
    try:
        if isinstance(value, Exception):
            raise value
        return domain.decode(domain.encode_value(value.text if isinstance(value, Piece) else value))
    except PuzzleError as error:
        return f"error: {error}"


def read(domain, content):
    return [cells(domain, request.puzzle) for request in read_requests(content, domain)]


@pytest.mark.parametrize("file, clues", [
    ("blank_star.txt", [41]), ("comment_after.txt", [41] * 3), ("crlf_bom.txt", [17, 17]), ("json2d.json", [41]),
    ("kaggle.csv", [35, 34]), ("matrix.csv", [39]), ("puzzlebank.txt", [28, 26]), ("xwing.sdk", [42])])
def test_sudoku_files_of_users(file, clues):
    found = [cells(SUDOKU, request.puzzle) for request in read_path(str(INPUTS / file), SUDOKU)]
    assert [sum(c in "123456789" for c in text) for text in found] == clues and {len(text) for text in found} == {81}


def test_puzzles_are_what_stands_there():
    assert read(SUDOKU, EASY.translate({ord(str(i)): 0xff10 + i for i in range(10)})) == [EASY], "digits of full width"
    assert read(SUDOKU, (INPUTS / "blank_star.txt").read_bytes()) == [EASY]
    assert read(SUDOKU, (INPUTS / "json2d.json").read_bytes()) == [EASY]
    assert read(SUDOKU, (INPUTS / "comment_after.txt").read_bytes()) == [EASY] * 3


@pytest.mark.parametrize("text", [
    EASY, EASY.replace(".", "0"), EASY.replace(".", "-"), EASY.replace(".", "x"), EASY.replace(".", "?"),
    EASY.replace(".", "_"), EASY.replace(".", " "), " ".join(EASY), ",".join(EASY.replace(".", "0")),
    f'"{EASY}",', f"name {EASY} 7.2 # hard", "\n".join(ROWS), "\n".join(ROWS).replace(".", "*"),
    "\n".join(ROWS).replace(".", " "), "\n".join(" ".join(row) for row in ROWS), "\r\n".join(ROWS) + "\r\n",
    "# a comment\n" + "\n".join(ROWS) + "\n// the end",
    "[Puzzle]\n" + "\n".join(ROWS) + "\n[State]\n" + "\n".join(ROWS),
    "#A someone\n#D a title\n" + "\n".join(ROWS), "Grid 01\n" + "\n".join(ROWS),
    "\n\n".join("\n".join(ROWS[i:i + 3]) for i in (0, 3, 6)), "\n".join(row + "  // row" for row in ROWS),
    "\n".join(", ".join(row) for row in ROWS),
    SUDOKU.render(SUDOKU.encode(EASY)), SUDOKU.render(SUDOKU.encode(EASY), given=SUDOKU.encode(EASY), color=True),
    json.dumps([[int(c) if c != "." else None for c in row] for row in ROWS]), json.dumps(ROWS), json.dumps(EASY),
    json.dumps({"sudoku": [[int(c) if c != "." else 0 for c in row] for row in ROWS]}),
    "\n".join(" | ".join(" ".join(row[i:i + 3]) for i in (0, 3, 6)).replace(".", " ") for row in ROWS),
    "\n".join("| " + " | ".join(row.replace(".", " ")) + " |\n" + "+---" * 9 + "+" for row in ROWS),
    "\n".join(",".join("" if c == "." else c for c in row) for row in ROWS),
    "\n".join("\t".join("nan" if c == "." else f"{c}.0" for c in row) for row in ROWS),
    "\n".join([".----.----.----.", *(f"|{row[:3]} |{row[3:6]} |{row[6:]} |" for row in ROWS), "'----'----'----'"]),
    "[" + "\n ".join(f"[{' '.join(row.replace('.', '0'))}]" for row in ROWS) + "]",
    "int[][] board = {" + ",\n ".join("{" + ", ".join(row.replace(".", "0")) + "}" for row in ROWS) + "};",
    "board = [\n" + "".join(f"  {[int(c) for c in row.replace('.', '0')]},  # row\n" for row in ROWS) + "]",
    "\n".join(f'"{row}",' for row in ROWS), "\\n".join(ROWS), "Solve this:\n\n```text\n" + "\n".join(ROWS) + "\n```",
    "=== 1 ===\n" + "\n".join(ROWS), f"1\n{EASY}", f"name={EASY}:7:easy", EASY.replace(".", "\u00b7"),
    f'{{"puzzle": "{EASY}"}},',
    json.dumps({"columns": ["id", "puzzle"], "data": [[1, EASY]]}), json.dumps({"puzzle": {"0": EASY}}),
    json.dumps({"puzzle": [EASY]}), json.dumps({"rows": [{"row": {"question": EASY}}]}),
    'id,puzzle\n1,"' + "\n".join(ROWS) + '"', "# made by hand\npuzzle,rating\n" + EASY + ",1",
    f"a,b\n{EASY},{'1' * 81}",
    "puzzle\n" + EASY, "ID;Puzzle;Rating\n7;" + EASY + ";1.5", "answer,question\n" + "1" * 81 + "," + EASY])
def test_one_sudoku_however_it_is_written(text):
    for content in (text, text.encode(), text.encode("utf-16"), text.encode("utf-16-le"), "\ufeff" + text):
        assert read(SUDOKU, content) == [EASY]


@pytest.mark.parametrize("text, found", [
    ("\n".join(ROWS) + "\n\n" + "\n".join(ROWS), [EASY] * 2), ("\n".join(ROWS * 3), [EASY] * 3),
    (f"2\n{EASY}\n{EASY}", [EASY] * 2), ("1\n" + "\n".join(ROWS) + "\n2\n" + "\n".join(ROWS), [EASY] * 2),
    (json.dumps({"puzzle": [EASY, EASY], "solution": ["", ""]}), [EASY] * 2),
    (f"{EASY}\n12\n{EASY}", [EASY, "error: got 2 cells", EASY]), (SS + SS.replace(".", "-") + SS.replace(".", " "),
                                                                 [SS_CELLS] * 3),
    ("\n".join(ROWS[:8]) + "\n\n" + "\n".join(ROWS), ["error: got 72 cells in 8 lines", EASY]),
    ("\n".join([*ROWS[:4], "53007000", *ROWS[5:]]),
     ["error: got 36 cells in 4 lines", "error: got 8 cells", "error: got 36 cells in 4 lines"]),
    (f"quizzes,solutions\n\n{EASY},{'1' * 81}\n{EASY}\n1,2\n", [EASY, EASY, "error: got 1 cells"]),
    (f'{{"id": 1, "puzzle": "{EASY}"}}\n{EASY}\n' + "[" * 5000 + "]" * 5000 + f"\n{EASY}",
     [EASY, EASY, "error: is nested too deeply", EASY]),
    (EASY.encode() + b"\n\xff\xfe\x80" + EASY.encode() + b"\n" + EASY.encode(),
     [EASY, "error: line 2 holds bytes that are no text", EASY])])
def test_several_puzzles_and_one_bad_one_does_not_silence_the_others(text, found):
    got = read(SUDOKU, text)
    assert len(got) == len(found) and all(a == b or b.startswith("error") and a.startswith(b)
                                          for a, b in zip(got, found)), got


# 16x16: three alphabets.


def hexadoku() -> tuple[np.ndarray, str]:
    made = HEX.generate(1, seed=3, clues=130).inputs[0]
    return made, HEX.decode(made)


def test_hexadoku_alphabets_are_told_from_what_occurs():
    tokens, plain = hexadoku()
    letters = plain.translate(str.maketrans("123456789ABCDEFG", "ABCDEFGHIJKLMNOP"))
    zero = plain.replace("G", "0")
    numbers = [["." if c == "." else "123456789ABCDEFG".index(c) + 1 for c in plain[i:i + 16]]
               for i in range(0, 256, 16)]
    for text in (plain, plain.lower(), plain.replace(".", "0"), letters, zero, zero.replace(".", "_")):
        np.testing.assert_array_equal(HEX.encode(text), tokens)
        again = HEX.decode(tokens, like=text)
        assert again.replace(".", "*") == text.upper().replace("_", ".").replace(
            "0", "." if "0" not in zero or text == plain.replace(".", "0") else "0").replace(".", "*")
    np.testing.assert_array_equal(HEX.encode_value(numbers), tokens)
    as_lines = "\n".join(" ".join(f"{cell:>2}" for cell in row) for row in numbers)
    np.testing.assert_array_equal(HEX.encode(as_lines), tokens)
    assert len(HEX.split(as_lines)) == 1
    for text in (",".join, "|".join):
        empty = "\n".join(text("" if cell == "." else str(cell) for cell in row) for row in numbers)
        np.testing.assert_array_equal(HEX.encode(empty), tokens)
    np.testing.assert_array_equal(HEX.encode(HEX.render(tokens)), tokens)


def test_a_zero_is_a_digit_where_something_else_is_the_blank():
    [text] = (INPUTS / "hex0f_dots.txt").read_text().split()
    tokens = HEX.encode(text)
    assert (tokens > 1).sum() == sum(c != "." for c in text) == 120 and HEX.decode(tokens, like=text) == text


@pytest.mark.parametrize("text, message", [
    ("0" + "." * 15 + "00" + "." * 238, "'0' was read as a digit, .* row 2 has two 0s"),
    ("ABC" + "." * 253, "only letters up to C occur"), ("AG1" + "." * 252 + "P", "of no alphabet of 16")])
def test_hexadoku_that_is_ambiguous_is_refused(text, message):
    with pytest.raises(PuzzleError, match=message):
        HEX.encode(text)


# Mazes.


@pytest.mark.parametrize("value", [
    "\n".join(MAZE_ROWS), "".join(MAZE_ROWS), MAZE_ROWS, [list(row) for row in MAZE_ROWS],
    "\n".join(MAZE_ROWS).replace("G", "E"), "\n".join(MAZE_ROWS).replace("G", "X").replace(" ", "."),
    "\n".join(MAZE_ROWS).replace("#", "\u2588"), "\n".join("".join(c * 2 for c in row) for row in MAZE_ROWS),
    "\n".join(" ".join(row.replace(" ", ".")) for row in MAZE_ROWS), MAZE.render(QUESTION),
    MAZE.render(QUESTION, color=True), "\n".join(row.replace("#", "1").replace(" ", "0") for row in MAZE_ROWS),
    [[{"#": 1, " ": 0, "S": 2, "G": 3}[c] for c in row] for row in MAZE_ROWS], "/".join(MAZE_ROWS),
    "\\n".join(MAZE_ROWS),
    "\n".join(MAZE_ROWS).replace("S", "A").replace("G", "B"), "\n".join(MAZE_ROWS).replace("G", "F").replace(" ", "_"),
    "+------+\n" + "\n".join(f"|{row}|" for row in MAZE_ROWS) + "\n+------+", "\n".join(map("\t".join, MAZE_ROWS)),
    "\n".join(MAZE_ROWS).replace(" ", "0"),
    {"maze": [[int(c == "#") for c in row] for row in MAZE_ROWS], "start": [4, 3], "goal": [1, 4]},
    {"grid": [[int(c == "#") for c in row] for row in MAZE_ROWS], "start": (4, 3), "end": (1, 4)}])
def test_one_maze_however_it_is_written(value):
    np.testing.assert_array_equal(MAZE.encode_value(value), QUESTION)
    assert cells(ANY_MAZE, value) == "".join(MAZE_ROWS), "where the size is not known too"
    if isinstance(value, str):
        both = read_requests(f"{value}\n\n{value}\n", MAZE)
        assert [cells(MAZE, request.puzzle) for request in both] == ["".join(MAZE_ROWS)] * 2


@pytest.mark.parametrize("text", [
    "Maze 7, easy\n" + "\n".join(MAZE_ROWS), "```\n" + "\n".join(MAZE_ROWS) + "\n```",
    "\n".join(f'"{row}",' for row in MAZE_ROWS), f"maze = {MAZE_ROWS}",
    "maze = [\n" + "".join(f"  {list(row)},\n" for row in MAZE_ROWS) + "]"])
def test_what_is_around_a_maze(text):
    assert read(MAZE, text) == read(ANY_MAZE, text) == ["".join(MAZE_ROWS)]


def test_maze_files():
    [request] = read_path(str(INPUTS / "m_rows.txt"), MAZE)
    assert cells(MAZE, request.puzzle) == "".join(MAZE_ROWS)
    ascii_art = "#######\n#S    #\n#X### #\n#X#   #\n#X# ###\n#XXXXE#\n#######"  # as maze-dataset draws a solved one
    domain = puzzles.get("maze", rows=7, cols=7)
    with pytest.raises(PuzzleError, match="row 3, column 2 is marked 'o': a question holds no path"):
        domain.check_clues(domain.encode(ascii_art))
    domain.check_clues(domain.encode(ascii_art.replace("X", " ")))
    for ends, message in (({"start": [9, 0], "goal": [1, 4]}, "start \\[9, 0\\] is outside"),
                          ({"start": [0, 0], "goal": [1, 4]}, "start \\[0, 0\\] is a wall"),
                          ({"start": "a", "goal": [1, 4]}, "start must be \\[row, column\\]")):
        with pytest.raises(PuzzleError, match=message):
            MAZE.encode_value({"maze": MAZE_ROWS, **ends})


# ARC, and what is of another kind.


def test_arc_files():
    domain = puzzles.get("arc")
    [task] = read_path(str(INPUTS / "arc_task.json"), domain)
    assert task.name == "arc_task" and task.puzzle["id"] == "arc_task" and len(task.puzzle["train"]) == 3
    tasks = read_path(str(INPUTS / "tasks.jsonl"), domain)
    assert [t.name for t in tasks][:2] == ["b1948b0a", "c8f0f002"] and all(t.puzzle["test"] for t in tasks)


@pytest.mark.parametrize("make", [
    lambda pairs: json.dumps({"examples": pairs, "source": "x"}), lambda pairs: json.dumps([
        {"input": a, "output": b} for a, b in pairs]),
    lambda pairs: "\n".join(json.dumps({"examples": pairs}) for _ in range(1)),
    lambda pairs: json.dumps({"examples": [{"input": a, "output": b} for a, b in pairs]})])
def test_examples_alone_are_a_task_whose_last_one_is_asked(make):
    """BARC has lines of {"examples": [[input, output], ...]}, RE-ARC a file of pairs for each task."""
    pairs = [[[[1, 2]], [[2, 1]]], [[[3, 4]], [[4, 3]]], [[[5, 6]], [[6, 5]]]]
    [request] = read_requests(make(pairs), puzzles.get("arc"))
    assert [(p["input"], p["output"]) for p in request.puzzle["train"]] == [tuple(pair) for pair in pairs[:2]]
    assert request.puzzle["test"] == [{"input": [[5, 6]], "output": [[6, 5]]}] and request.puzzle["id"] == request.name


def test_lines_of_barc_are_tasks_of_their_own():
    line = json.dumps({"source": "code", "examples": [[[[1]], [[2]]], [[[3]], [[4]]]]})
    found = read_requests(f"{line}\n{line}\n", puzzles.get("arc"))
    assert [request.name for request in found] == ["puzzle 1", "puzzle 2"]
    assert all(request.puzzle["test"][0]["input"] == [[3]] for request in found)


def test_a_folder_of_files(tmp_path):
    task = json.loads((INPUTS / "arc_task.json").read_text())
    for i, name in enumerate(("b/two", "a", "b/one")):
        file = tmp_path / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(task | {"test": [{"input": [[i]], "output": None}]}))
    found = read_path(str(tmp_path), puzzles.get("arc"))
    assert [request.name for request in found] == ["a", "one", "two"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SolveError, match="the folder has no file that ends in .json"):
        read_path(str(tmp_path / "empty"), SUDOKU)


@pytest.mark.parametrize("file, domain, message", [
    ("arc_task.json", SUDOKU, "an ARC task; these weights are for 9x9 Sudoku"),
    ("m_rows.txt", SUDOKU, "6x6 maze; these weights are for 9x9 Sudoku"),
    ("hex0f_dots.txt", SUDOKU, "16x16 Sudoku; these weights are for 9x9 Sudoku"),
    ("xwing.sdk", MAZE, "9x9 Sudoku; these weights are for 6x6 maze: try --weights=rsm-sudoku"),
    ("kaggle.csv", MAZE, "9x9 Sudoku; these weights are for 6x6 maze: try --weights=rsm-sudoku"),
    ("json2d.json", HEX, "9x9 Sudoku; these weights are for 16x16 Sudoku"),
    ("xwing.sdk", puzzles.get("arc"), "9x9 Sudoku; these weights are for ARC tasks")])
def test_another_kind_is_named(file, domain, message):
    for request in read_path(str(INPUTS / file), domain):
        value = request.puzzle.text if isinstance(request.puzzle, Piece) else request.puzzle
        reason = str(value) if isinstance(value, Exception) else other_kind(value, domain)
        assert message in reason


def test_nonsense_is_of_no_kind():
    for value in ("hello", "12", [], {}, [[1, 2], [3, 4]], {"x": {}}, "\x1b[31m", "\n" * 99):
        assert other_kind(value, SUDOKU) == ""
