"""Dataset folders and where they come from."""

import dataclasses
import errno
import gzip
import json
import os
import re
import shutil
import sys
import threading
import types

import numpy as np
import pytest

from trm_jax import puzzles
from trm_jax.data import __main__ as cli
from trm_jax.data import dataset, sources
from trm_jax.data.dataset import DatasetError

SUDOKU4 = puzzles.get("sudoku", box_rows=2, box_cols=2)


@pytest.fixture(scope="module")
def pool():
    """40 puzzles of 4x4 as text (question, answer)."""
    inputs, labels, _ = SUDOKU4.generate(40, seed=1)
    return [(SUDOKU4.decode(q), SUDOKU4.decode(a)) for q, a in zip(inputs, labels, strict=True)]


def csv_text(pool, ratings=None):
    lines = ["source,question,answer,rating"]
    for i, (question, answer) in enumerate(pool):
        lines.append(f"{'ab'[i % 2]}_src,{question},{answer},{i if ratings is None else ratings[i]}")
    return "\n".join(lines) + "\n"


def split_of(pool, **how):
    tokens = [np.stack([SUDOKU4.encode(text) for text in column]) for column in zip(*pool, strict=True)]
    return dataset.make_split(*tokens, vocab_size=6, **how)


def run(*argv):
    return cli.main(["sudoku", "--box", "2x2", *map(str, argv)])


def error_of(capsys, *argv, command="sudoku"):
    """The one line on stderr of a command that must fail with exit code 2."""
    capsys.readouterr()
    try:
        code = run(*argv) if command == "sudoku" else cli.main(list(map(str, argv)))
    except SystemExit as stop:  # argparse
        code = stop.code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(("reading ", "downloading "))]
    assert code == 2 and out == "" and len(lines) == 1, (code, out, err)
    return lines[0]


@pytest.fixture
def files(tmp_path, pool):
    (tmp_path / "train.csv").write_text(csv_text(pool[:30]))
    (tmp_path / "test.csv").write_text(csv_text(pool[30:]))
    return tmp_path


def import_args(files, out="out", train="train.csv"):
    return ["--csv", files / train, "--test_csv", files / "test.csv", "--out", files / out]


# Folders.


def test_round_trip(tmp_path, pool):
    split = split_of(pool, sources=np.arange(40, dtype=np.uint16) % 2, source_names=("x", "y"),
                     ratings=np.arange(40, dtype=np.int32), subsample=np.arange(0, 80, 2))
    provenance = {"puzzle": {"name": "sudoku"}}
    dataset.write(tmp_path / "deep" / "d", {"train": split, "test": split}, ["<blank>"], provenance,
                more_json={"test_puzzles.json": {"a": [1]}})
    loaded = dataset.load(tmp_path / "deep" / "d", "train")
    for field in dataclasses.fields(dataset.Split):
        if field.name != "metadata":
            np.testing.assert_equal(getattr(loaded, field.name), getattr(split, field.name), strict=True)
    assert loaded.metadata == split.metadata and loaded.num_examples == loaded.num_groups == 40
    assert isinstance(loaded.inputs.base, np.memmap)
    assert dataset.load_provenance(tmp_path / "deep" / "d") == provenance
    assert dataset.load_identifiers(tmp_path / "deep" / "d") == ["<blank>"]
    assert json.loads((tmp_path / "deep" / "d" / "test_puzzles.json").read_text()) == {"a": [1]}
    assert os.listdir(tmp_path / "deep") == ["d"]
    assert (tmp_path / "deep" / "d").stat().st_mode & 0o777 == (tmp_path / "deep").stat().st_mode & 0o777


def test_folder_holds_what_published_loaders_read(tmp_path, pool):
    dataset.write(tmp_path / "d", {"train": split_of(pool), "test": split_of(pool)}, ["<blank>"], {})
    for name in ("train", "test"):
        meta = json.loads((tmp_path / "d" / name / "dataset.json").read_text())
        assert meta == {"pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": 6, "seq_len": 16,
                        "num_puzzle_identifiers": 1, "total_groups": 40, "mean_puzzle_examples": 1.0,
                        "total_puzzles": 40, "sets": ["all"]}
        arrays = {k: np.load(tmp_path / "d" / name / f"all__{k}.npy") for k in dataset.ARRAYS}
        assert {k: (v.dtype.name, v.shape) for k, v in arrays.items()} == {
            "inputs": ("uint8", (40, 16)), "labels": ("uint8", (40, 16)), "puzzle_identifiers": ("int32", (40,)),
            "puzzle_indices": ("int32", (41,)), "group_indices": ("int32", (41,))}
    assert json.loads((tmp_path / "d" / "identifiers.json").read_text()) == ["<blank>"]


@pytest.mark.parametrize("old", [True, False])
def test_published_folder_loads(tmp_path, pool, old):
    """As HRM's (old) and TRM's scripts write it: int64 tokens, no total_puzzles or a wrong one, none of our files."""
    tokens = [np.stack([SUDOKU4.encode(t) for t in column]).astype(np.int64) for column in zip(*pool, strict=True)]
    folder = tmp_path / "train"
    folder.mkdir()
    arrays = {"inputs": tokens[0], "labels": tokens[1], "group_indices": np.arange(0, 41, 2, dtype=np.int32),
              "puzzle_indices": np.arange(41, dtype=np.int32), "puzzle_identifiers": np.zeros(40, np.int32)}
    for name, array in arrays.items():
        np.save(folder / f"all__{name}.npy", array)
    meta = {"seq_len": 16, "vocab_size": 6, "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0,
            "num_puzzle_identifiers": 1, "total_groups": 20, "mean_puzzle_examples": 1, "sets": ["all"]}
    (folder / "dataset.json").write_text(json.dumps(meta if old else meta | {"total_puzzles": 20}))
    split = dataset.load(tmp_path, "train")
    assert split.inputs.dtype == split.labels.dtype == np.uint8
    np.testing.assert_array_equal(split.inputs, tokens[0])
    assert split.num_groups == 20 and split.ratings is None and split.sources is None
    assert split.metadata.total_puzzles == (40 if old else 20)
    assert dataset.load_provenance(tmp_path) is None


@pytest.fixture
def folder(tmp_path, pool):
    split = split_of(pool, sources=np.zeros(40, np.uint16), source_names=("x",))
    dataset.write(tmp_path / "d", {"train": split, "test": split}, ["<blank>"], {})
    (tmp_path / "d" / "checksums.json").unlink()  # the published scripts write none: what they wrote is checked too
    return tmp_path / "d"


def test_missing_folder_tells_the_command(tmp_path):
    with pytest.raises(DatasetError, match="make it with: python -m trm_jax.data sudoku --hub$"):
        dataset.load(tmp_path / "none", "train", make="python -m trm_jax.data sudoku --hub")


@pytest.mark.parametrize("foreign", ["empty", "file", "other"])
def test_foreign_folder(tmp_path, foreign):
    place = tmp_path / foreign
    if foreign == "file":
        place.write_text("x")
    else:
        place.mkdir()
    if foreign == "other":
        (place / "train").mkdir()
    with pytest.raises(DatasetError, match="not a dataset folder: has no train/dataset.json"):
        dataset.load(place, "train")


def test_one_flipped_bit_of_any_file_is_seen(tmp_path, pool):
    split = split_of(pool, sources=np.zeros(40, np.uint16), source_names=("x",))
    path = tmp_path / "d"
    dataset.write(path, {"train": split, "test": split}, ["<blank>"], {})
    sums = json.loads((path / "checksums.json").read_text())
    assert len(sums) == 2 * 8 + 2 and dataset.load(path, "test").num_examples == 40
    for name in (*sums, "checksums.json"):
        content = (path / name).read_bytes()
        at = len(content) * 2 // 3
        (path / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1:])
        with pytest.raises(DatasetError, match=re.escape(str(path))):
            dataset.load(path, "train"), dataset.load(path, "test")
            dataset.load_identifiers(path), dataset.load_provenance(path)
        (path / name).write_bytes(content)
    (path / "train" / "all__labels.npy").unlink()
    with pytest.raises(DatasetError, match="is damaged: train/all__labels.npy is missing; make the dataset again"):
        dataset.load(path, "train")


def test_a_fingerprint_is_of_the_puzzles_alone(tmp_path, pool):
    split, other = split_of(pool), split_of(pool[::-1])
    dataset.write(tmp_path / "a", {"train": split, "test": other}, ["<blank>"], {"seed": 1})
    dataset.write(tmp_path / "b", {"train": split, "test": split}, ["<blank>"], {"seed": 2})
    (tmp_path / "b" / "checksums.json").unlink()
    a, b = ([dataset.fingerprint(tmp_path / name, split) for split in ("train", "test")] for name in "ab")
    assert a[0] == b[0] == b[1] != a[1] and len(a[0]) == 16


@pytest.mark.parametrize("size", [0, 5, 200])
@pytest.mark.parametrize("name", ["inputs", "puzzle_indices"])
def test_truncated_array(folder, name, size):
    file = folder / "train" / f"all__{name}.npy"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DatasetError, match=f"all__{name}.npy is damaged"):
        dataset.load(folder, "train")


def test_missing_array(folder):
    (folder / "train" / "all__labels.npy").unlink()
    with pytest.raises(DatasetError, match="all__labels.npy is missing"):
        dataset.load(folder, "train")


@pytest.mark.parametrize(("name", "change", "message"), [
    ("inputs", lambda a: a[0], r"inputs.npy: has shape \[16\], must have 2 dim"),
    ("inputs", lambda a: a.astype(float), "holds float64, must hold integers"),
    ("inputs", lambda a: a[:0], "holds no examples"),
    ("inputs", lambda a: a[:, :9], "rows of 9, but seq_len in dataset.json is 16"),
    ("inputs", lambda a: a + 1, "inputs.npy: holds 6, must lie under the vocab_size 6"),
    ("labels", lambda a: a.astype(np.int64) - 3, "labels.npy: holds -1, must lie under the vocab_size 6"),
    ("labels", lambda a: a[1:], "labels.npy: has shape"),
    ("puzzle_indices", lambda a: a[::-1], "must start at 0"),
    ("puzzle_indices", lambda a: np.r_[a[:3], a[2], a[4:]], "must ascend strictly"),
    ("puzzle_indices", lambda a: a[:-1], "ends at 39, but there are 40 examples"),
    ("puzzle_indices", lambda a: a[[0, *range(2, 41)]], "has 40 entries, must have 41"),
    ("puzzle_identifiers", lambda a: a[:-1], "group_indices.npy: ends at 40, but there are 39 puzzles"),
    ("puzzle_identifiers", lambda a: a + 1, "must lie under the num_puzzle_identifiers 1"),
    ("group_indices", lambda a: a[[0, *range(2, 41)]], "has 39 groups, but total_groups in dataset.json is 40"),
    ("sources", lambda a: a + 1, "number of names in sources.json 1"),
    ("sources", lambda a: a[1:], "one entry for each of 40 examples"),
])
def test_impossible_arrays(folder, name, change, message):
    file = folder / "train" / f"all__{name}.npy"
    np.save(file, change(np.load(file)))
    with pytest.raises(DatasetError, match=message):
        dataset.load(folder, "train")


@pytest.mark.parametrize(("text", "message"), [
    ("", "cannot be read as JSON"), ("{", "cannot be read as JSON"), ("[1]", "must hold an object, holds list"),
    ("-pad_id", "has no pad_id"), ("vocab_size=x", "vocab_size = 'x', must be an integer"),
    ("mean_puzzle_examples=0", "must be a positive number"), ("sets=all", "only .'all'. can be loaded"),
    ("seq_len=null", "seq_len = None, must be an integer"),
])
def test_malformed_metadata(folder, text, message):
    file = folder / "train" / "dataset.json"
    meta = json.loads(file.read_text())
    if text.startswith("-"):
        del meta[text[1:]]
        text = json.dumps(meta)
    elif "=" in text:
        name, value = text.split("=")
        meta[name] = {"0": 0, "null": None, "all": ["a", "b"]}.get(value, value)
        text = json.dumps(meta)
    file.write_text(text)
    with pytest.raises(DatasetError, match=message):
        dataset.load(folder, "train")


def test_write_never_leaves_or_takes_what_it_should_not(tmp_path, pool, monkeypatch):
    split, place = split_of(pool), tmp_path / "d"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DatasetError, match="is not a dataset folder; it is left alone"):
        dataset.write(tmp_path / "mine", {"train": split}, ["<blank>"], {}, overwrite=True)
    place.mkdir()  # an empty folder is no obstacle
    dataset.write(place, {"train": split}, ["<blank>"], {"n": 1})
    with pytest.raises(DatasetError, match="there already; add --overwrite"):
        dataset.write(place, {"train": split}, ["<blank>"], {"n": 2})
    dataset.write(place, {"train": split}, ["<blank>"], {"n": 3}, overwrite=True)
    with pytest.raises(DatasetError, match="2 identifiers"):
        dataset.write(place, {"train": split}, ["<blank>", "a"], {}, overwrite=True)

    def full(*_args, **_how):
        raise OSError("no space left")

    monkeypatch.setattr(dataset, "_write_json", full)
    with pytest.raises(OSError, match="no space left"):
        dataset.write(place, {"train": split}, ["<blank>"], {"n": 4}, overwrite=True)
    assert dataset.load_provenance(place) == {"n": 3}
    assert sorted(os.listdir(tmp_path)) == ["d", "mine"]


def test_a_folder_is_exchanged_without_a_moment_with_neither(tmp_path):
    small, place = dataset.make_split(np.ones((4, 16)), np.ones((4, 16)), vocab_size=6), tmp_path / "d"
    dataset.write(place, {"train": small}, ["<blank>"], {})
    missing, done = [], threading.Event()

    def look():
        while not done.is_set():
            if not (place / "train" / "dataset.json").exists():
                missing.append(1)
    looking = threading.Thread(target=look)
    looking.start()
    for n in range(20):
        dataset.write(place, {"train": small}, ["<blank>"], {"n": n}, overwrite=True)
    done.set()
    looking.join()
    assert not missing and dataset.load_provenance(place) == {"n": 19} and os.listdir(tmp_path) == ["d"]


def test_what_killed_makers_left_is_removed_by_the_next(tmp_path):
    argv = ["--generate", "--train", 9, "--test", 2, "--clues", 8, "--out", tmp_path / "d"]
    for name in (".d.new-abc", ".d.old-x_1", ".d.arrays-9", ".d.news", ".e.new-abc"):
        (tmp_path / name / "d").mkdir(parents=True)
    assert run(*argv) == 0
    assert sorted(os.listdir(tmp_path)) == [".d.news", ".e.new-abc", "d"]


def test_a_maker_that_was_killed_between_two_renames_has_lost_nothing(tmp_path):
    argv = ["--generate", "--train", 9, "--test", 2, "--clues", 8, "--out", tmp_path / "d"]
    assert run(*argv) == 0
    (tmp_path / ".d.old-1").mkdir()
    (tmp_path / "d").rename(tmp_path / ".d.old-1" / "d")
    with dataset.being_made(tmp_path / "d"):
        assert dataset.load(tmp_path / "d", "train").num_examples == 9
    assert os.listdir(tmp_path) == ["d"]


def test_a_full_disk_is_one_line_with_the_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    error = error_of(capsys, "--generate", "--train", 90, "--test", 2, "--clues", 8, "--out", tmp_path / "new" / "d")
    assert error.endswith("kB, but only 1.00 kB are free there") and str(tmp_path / "new" / "d") in error

    def full(*_args, **_how):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(np, "save", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**9))
    error = error_of(capsys, "--generate", "--train", 90, "--test", 2, "--clues", 8, "--out", tmp_path / "new" / "d")
    assert error == f"error: {tmp_path / 'new' / 'd'}: No space left on device (1,000,000,000 bytes free)"
    assert os.listdir(tmp_path) == []


# Generated.


def test_generate(tmp_path, capsys):
    argv = ["--generate", "--train", "120", "--test", "25", "--clues", "8"]
    assert run(*argv, "--out", tmp_path / "a", "--seed", "3") == 0
    assert "25" in capsys.readouterr().out
    train, test = (dataset.load(tmp_path / "a", name) for name in ("train", "test"))
    assert (train.num_groups, test.num_groups) == (120, 25)
    for split in (train, test):
        assert SUDOKU4.verify(split.inputs, split.labels).solved.all()
        assert ((split.inputs > 1).sum(axis=1) == 8).all()
        assert split.source_names == ("generated",) and split.ratings.shape == (split.num_examples,)
    assert not {x.tobytes() for x in train.labels} & {x.tobytes() for x in test.labels}  # of only 288 grids
    assert len({x.tobytes() for x in train.inputs}) == 120
    provenance = dataset.load_provenance(tmp_path / "a")
    assert puzzles.get(**provenance["puzzle"]) == SUDOKU4
    assert provenance["seed"] == 3 and provenance["options"]["clues"] == 8 and provenance["test_grids_in_train"] == 0

    assert run("--generate", "--train", 120, "--test", 25, "--blanks", 8, "--out", tmp_path / "b", "--seed", 3) == 0
    assert run(*argv, "--out", tmp_path / "c", "--seed", 4) == 0
    np.testing.assert_array_equal(dataset.load(tmp_path / "b", "train").inputs, train.inputs)
    assert not np.array_equal(dataset.load(tmp_path / "c", "train").inputs, train.inputs)


def test_generate_minimal_puzzles_of_unequal_boxes(tmp_path):
    assert cli.main(["sudoku", "--generate", "--box", "2x3", "--minimal", "--train", "10", "--test", "3",
                     "--out", str(tmp_path / "a")]) == 0
    split = dataset.load(tmp_path / "a", "test")
    assert puzzles.get("sudoku", box_rows=2, box_cols=3).verify(split.inputs, split.labels).solved.all()


# CSV.


@pytest.mark.parametrize("form", ["plain", "gz", "crlf", "no newline at the end", "empty lines at the end", "quoted",
                                  "byte order mark", "tiny pieces", "0 for blank"])
def test_import(files, pool, monkeypatch, form):
    text = csv_text(pool[:30], ratings=[7, 123456789, *range(28)])
    data = {"crlf": text.replace("\n", "\r\n"), "no newline at the end": text.rstrip("\n"),
            "empty lines at the end": text + "\n\n", "quoted": text.replace("a_src", '"a_src"'),
            "byte order mark": "\ufeff" + text, "0 for blank": text.replace(".", "0")}.get(form, text).encode()
    name = "train.csv"
    if form == "gz":
        data, name = gzip.compress(data), "train.csv.gz"
    if form == "tiny pieces":
        monkeypatch.setattr(sources, "PIECE_BYTES", 60)
    (files / name).write_bytes(data)
    assert run(*import_args(files, train=name)) == 0
    split = dataset.load(files / "out", "train")
    rows = zip(split.inputs, split.labels, strict=True)
    assert [(SUDOKU4.decode(q), SUDOKU4.decode(a)) for q, a in rows] == pool[:30]
    assert split.ratings.tolist() == [7, 123456789, *range(28)]
    assert [split.source_names[i] for i in split.sources] == ["a_src", "b_src"] * 15
    assert split.subsample is None and split.metadata.total_groups == 30
    assert dataset.load(files / "out", "test").num_examples == 10
    provenance = dataset.load_provenance(files / "out")
    assert provenance["files"]["train"]["rows"] == 30 and len(provenance["files"]["train"]["sha256"]) == 64


def test_hash_is_that_of_the_file(files):
    import hashlib
    examples, digest = sources.read_csv(files / "train.csv", SUDOKU4)
    assert len(examples) == 30
    assert digest == hashlib.sha256((files / "train.csv").read_bytes()).hexdigest()


def test_subsample_is_seeded_and_its_rows_are_stored(files):
    def rows(out, *argv):
        assert run(*import_args(files, out), *argv) == 0
        split = dataset.load(files / out, "train")
        full = sources.read_csv(files / "train.csv", SUDOKU4)[0]
        np.testing.assert_array_equal(split.inputs, full.inputs[split.subsample])
        np.testing.assert_array_equal(split.ratings, full.ratings[split.subsample])
        np.testing.assert_array_equal(split.sources, full.sources[split.subsample])
        return split.subsample.tolist()

    a = rows("a", "--subsample", 9, "--test_subsample", 4, "--seed", 5)
    assert len(a) == 9 and a == sorted(set(a))
    assert dataset.load(files / "a", "test").num_examples == 4
    assert rows("b", "--subsample", 9, "--seed", 5) == a
    assert rows("c", "--subsample", 9, "--seed", 6) != a
    assert rows("d", "--min_rating", 3, "--subsample", 20)[0] >= 3
    assert len(dataset.load(files / "d", "test").inputs) == 7  # the least rating holds for both


def test_shuffles_are_groups(files, pool):
    assert run(*import_args(files), "--num_aug", 4, "--subsample", 12) == 0
    split = dataset.load(files / "out", "train")
    assert (split.num_examples, split.num_groups, len(split.puzzle_identifiers)) == (60, 12, 60)
    assert split.group_indices.tolist() == list(range(0, 61, 5)) and not split.puzzle_identifiers.any()
    originals = sources.read_csv(files / "train.csv", SUDOKU4)[0].take(split.subsample)
    np.testing.assert_array_equal(split.inputs[::5], originals.inputs)
    np.testing.assert_array_equal(split.labels[::5], originals.labels)
    assert SUDOKU4.verify(split.inputs, split.labels).solved.all()
    assert len(np.unique(split.inputs, axis=0)) > 45
    assert split.ratings.tolist() == np.repeat(originals.ratings, 5).tolist()
    assert dataset.load(files / "out", "test").num_examples == 10


def bad_row(pool, kind):
    """Line 7 of the file, and what must be said of it."""
    question, answer = pool[5]
    first_blank = question.index(".")
    clue = next(i for i, c in enumerate(question) if c != ".")
    other = answer[::-1] if answer[::-1] != answer else answer.translate(str.maketrans("1234", "2143"))
    assert other[clue] != answer[clue]
    wrong = answer[:first_blank] + "1234".replace(answer[first_blank], "")[0] + answer[first_blank + 1:]
    return {
        "short question": (f"a,{question[1:]},{answer},1", "question: got 15 cells, expected 16"),
        "long answer": (f"a,{question},{answer}1,1", "answer: got 17 cells, expected 16"),
        "bad character": (f"a,z{question[1:]},{answer},1", "question: unknown character 'z' at position 1"),
        "not ascii": (f"a,é{question[1:]},{answer},1", "question: unknown character 'é' at position 1"),
        "rating": (f"a,{question},{answer},hard", "rating is 'hard', must be a number"),
        "not a number": (f"a,{question},{answer},nan", "rating is 'nan', must be a number"),
        "negative rating": (f"a,{question},{answer},-1", "rating is '-1', must be a number"),
        "huge rating": (f"a,{question},{answer},9999999999", "rating is '9999999999', must be"),
        "missing column": (f"{question},{answer},1", "has 3 columns, must have 4"),
        "more columns": (f"a,{question},{answer},1,2", "has 5 columns, must have 4"),
        "clue not kept": (f"a,{question},{other},1", "answer does not keep the clues"),
        "unfinished": (f"a,{question},{question},1", "answer has cells that are not filled"),
        "rules": (f"a,{question},{wrong},1", "answer breaks the rules"),
    }[kind]


@pytest.mark.parametrize("kind", ["short question", "long answer", "bad character", "not ascii", "rating",
                                  "not a number", "negative rating", "huge rating", "missing column", "more columns",
                                  "clue not kept", "unfinished", "rules"])
@pytest.mark.parametrize("piece", [8 << 20, 100])
def test_bad_row(files, pool, capsys, monkeypatch, kind, piece):
    monkeypatch.setattr(sources, "PIECE_BYTES", piece)
    row, message = bad_row(pool, kind)
    lines = csv_text(pool[:30]).splitlines()
    lines[6] = row
    (files / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    error = error_of(capsys, *import_args(files))
    assert f"train.csv, line 7: {message}" in error or f"train.csv, line 7: the {message}" in error
    assert not (files / "out").exists()


def test_csv_as_people_have_it(files, pool):
    """Other names, orders and separators, blank lines, missing answers and fractional ratings: the same puzzles."""
    plain = sources.read_csv(files / "train.csv", SUDOKU4)[0]
    rows = [line.split(",") for line in csv_text(pool[:30]).splitlines()[1:]]
    for name, lines in {
            "kaggle.csv": ["quizzes,solutions", *(f"{q},{a}" for _, q, a, _ in rows)],
            "swapped.csv": ["Solution;Rating;PUZZLE", *(f"{a};7.4;{q}" for _, q, a, _ in rows)],
            "tabs.tsv": ["answer\tquestion", "", *(f"{a}\t{q.replace('.', '0')}" for _, q, a, _ in rows), "", ""],
            "quoted.csv": ['"question","answer"', *(f'"{q}","{a}"' for _, q, a, _ in rows)],
            "comments.csv": ["", "# made by hand", "puzzle,solution", *(f"{q},{a}" for _, q, a, _ in rows)],
            "unnamed.txt": [f"{q} {a} 7" for _, q, a, _ in rows], "utf16.csv": [f"{q};{a}" for _, q, a, _ in rows],
            "words.csv": ["puzzle,solution,difficulty", *(f"{q},{a},hard" for _, q, a, _ in rows)]}.items():
        (files / name).write_text("\ufeff" + "\r\n".join(lines), "utf-16-le" if name == "utf16.csv" else "utf-8")
        found = sources.read_csv(files / name, SUDOKU4, one_solution=False)[0]
        np.testing.assert_array_equal(found.inputs, plain.inputs)
        np.testing.assert_array_equal(found.labels, plain.labels)
        assert set(found.ratings) == ({7} if name == "swapped.csv" else {0})


def test_csv_without_answers_is_solved_where_there_is_one(tmp_path):
    made = SUDOKU4.generate(20, 0)
    texts = [SUDOKU4.decode(puzzle) for puzzle in made.inputs]
    (tmp_path / "p.csv").write_text("\n".join(["puzzle", *texts]))
    np.testing.assert_array_equal(sources.read_csv(tmp_path / "p.csv", SUDOKU4)[0].labels, made.labels)
    rows = [f"{puzzle},{SUDOKU4.decode(label) if i % 3 else ''}"
            for i, (puzzle, label) in enumerate(zip(texts, made.labels))]
    for lines in (texts, ["puzzle,answer", *rows]):
        (tmp_path / "p.csv").write_text("\n".join(lines))
        np.testing.assert_array_equal(sources.read_csv(tmp_path / "p.csv", SUDOKU4)[0].labels, made.labels)
    for bad, message in (("1" + "." * 15, "line 22: the puzzle has several solutions"),
                         ("12...." + "34" + "." * 8, "line 22: the puzzle has no solution"),
                         ("11" + "." * 14, "line 22: the clues contradict each other: row 1 has two 1s")):
        (tmp_path / "p.csv").write_text("\n".join(["puzzle", *texts, bad]))
        with pytest.raises(DatasetError, match=message):
            sources.read_csv(tmp_path / "p.csv", SUDOKU4)
    several = SUDOKU4.decode(np.where(np.arange(16) < 14, 1, made.labels[0]))
    (tmp_path / "q.csv").write_text(f"puzzle,solution\n{several},{SUDOKU4.decode(made.labels[0])}\n")
    assert len(sources.read_csv(tmp_path / "q.csv", SUDOKU4)[0]) == 1
    with pytest.raises(DatasetError, match="line 2: the puzzle has several solutions"):
        sources.read_csv(tmp_path / "q.csv", SUDOKU4, one_solution=True)


@pytest.mark.parametrize(("data", "message"), [
    (b"", "line 1: the header is ''"),
    (b"a,b\n", "line 1: the header is 'a,b', which names no column for the puzzle; write one such as source,question"),
    (b"source,question,answer,rating\n", "holds no puzzles"),
    (gzip.compress(b"source,question,answer,rating\n" + b"a" * 9999, mtime=0)[:40], "cannot be read"),
])
def test_bad_file(files, capsys, data, message):
    (files / "train.csv").write_bytes(data)
    assert message in error_of(capsys, *import_args(files))


def test_user_errors_are_one_line(files, capsys):
    out = files / "new"
    imported = import_args(files, "new")
    for argv, message in [
        (["--csv", files / "none.csv", "--test_csv", files / "test.csv", "--out", out], "none.csv cannot be read"),
        (["--csv", files / "train.csv", "--out", out], "--csv needs --test_csv too"),
        (["--generate", "--out", out, "--num_aug", 0], "--num_aug has no meaning with --generate"),
        ([*imported, "--clues", 5], "--clues has no meaning with --csv"),
        ([*imported, "--subsample", 31], "cannot keep 31 puzzles of 30"),
        ([*imported, "--min_rating", 99], "no puzzle is rated 99 or more"),
        ([*imported, "--subsample", "many"], "--train: 'many' must be a whole number of at least 1"),
        (["--generate", "--out", out, "--box", "2by2"], "is no box shape"),
        (["--generate", "--out", out, "--clues", 2, "--train", 2], "2 clues are impossible"),
        (["--generate", "--out", files, "--train", 2], "is not a dataset folder; it is left alone"),
        (["--generate"], "required: --out"),
    ]:
        assert message in error_of(capsys, *argv)
    assert "not a dataset folder" in error_of(capsys, "bench", "--path", files, command="bench")
    assert not out.exists()


def test_hub(files, capsys, monkeypatch):
    def hf_hub_download(repo, filename, repo_type):
        assert (repo, repo_type) == ("sapientinc/sudoku-extreme", "dataset")
        return str(files / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    assert run("--hub", "--out", files / "hub", "--subsample", 5) == 0
    assert dataset.load(files / "hub", "train").num_examples == 5
    assert dataset.load_provenance(files / "hub")["hub"] == "sapientinc/sudoku-extreme"

    def offline(*_args, **_how):
        raise ConnectionError("no route\nsecond line")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=offline))
    capsys.readouterr()
    assert run("--hub", "--out", files / "hub2", "--train", 7) == 2
    out, err = capsys.readouterr()
    assert out == "" and "could not be downloaded (ConnectionError: no route)" in err
    ways = [line.split() for line in err.splitlines() if line.startswith("    ")]
    assert len(ways) == 3 and run(*ways[2][5:], "--test", 2) == 0  # of 2x2, as was asked
    assert dataset.load(files / "hub2-generated", "train").num_examples == 7


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0 and "sudoku --generate --out" in capsys.readouterr().out


@pytest.mark.parametrize("line, says", [
    ("a,{q}\r,{a},1", "line 3: is not CSV"),
    ("\"" + "x" * 200_000 + "\",{q},{a},1", "line 3: is not CSV"),
    ("\"a,{q},{a},1", "line 3: is not CSV"),
    ("\"a\nb\",{q},{a},1", "line 3: a quoted field goes on")])
def test_rows_that_are_not_csv(files, capsys, line, says):
    header, row = (files / "train.csv").read_text().splitlines()[:2]
    _, q, a, _ = row.split(",")
    (files / "bad.csv").write_bytes("\n".join([header, row, line.format(q=q, a=a), ""]).encode())
    message = error_of(capsys, "--csv", files / "bad.csv", "--test_csv", files / "test.csv", "--out", files / "out")
    assert f"bad.csv, {says}" in message


@pytest.mark.parametrize("file, content, says", [
    ("provenance.json", "[1]", "must hold an object"), ("provenance.json", '{"puzzle": 3}', "must hold an object"),
    ("provenance.json", '{"puzzle": {"name": "sudoku", "box_rows": "a"}}', "is no sudoku dataset"),
    ("provenance.json", '{"puzzle": {"name": "chess"}}', "unknown puzzle 'chess'"),
    ("train/sources.json", "5", "must hold a list")])
def test_notes_that_are_not_ours(files, capsys, file, content, says):
    run("--csv", files / "train.csv", "--test_csv", files / "test.csv", "--out", files / "out")
    (files / "out" / file).write_text(content)
    (files / "out" / "checksums.json").unlink()
    capsys.readouterr()
    assert says in error_of(capsys, "bench", "--path", files / "out", "--seconds", "0.01", command="")


def test_processes_share_the_reading_of_large_files(pool, tmp_path, monkeypatch):
    """What is damaged is found by the one that has that part of the file to check, and by one that is alone."""
    split = split_of(pool)
    dataset.write(tmp_path / "d", {"train": split, "test": split}, [dataset.BLANK], {})
    file = tmp_path / "d" / "train" / "all__inputs.npy"
    array = np.load(file)
    array[30] = 9  # in the fourth piece of ten
    np.save(file, array)
    monkeypatch.setattr(dataset, "CHECK_ROWS", 10)

    def found() -> list[tuple[int, int]]:
        shares = []
        for share in ((0, 1), *((i, 4) for i in range(4))):
            try:
                assert len(dataset.load(tmp_path / "d", "train", share=share).inputs) == 40
            except DatasetError as error:
                assert "is damaged" in str(error) or "holds 9, must lie under" in str(error)
                shares.append(share)
        return shares
    assert (0, 1) in found() and 2 <= len(found()) <= 3  # one has its checksum to compare, one its range to look at
    (tmp_path / "d" / "checksums.json").unlink()
    assert found() == [(0, 1), (3, 4)]


def test_revealed_copies_are_easier_and_have_the_same_answers():
    domain = puzzles.get("sudoku", seq_len=16)
    examples, _ = sources.generate(domain, 40, 4, clues=5)
    examples = dataclasses.replace(examples, sources=np.arange(40, dtype=np.uint16) % 2, source_names=("a", "b"))
    made = sources.reveal(examples, ("a:0:3:5", "*:1:3:2"), seed=1)
    assert sources.reveal(examples, ()) is examples and len(made) == 20 * 5 + 20 * 2
    assert domain.verify(made.inputs, made.labels).solved.all()
    clues = (made.inputs > 1).sum(axis=1)
    assert set(clues[made.sources == 0]) == {6, 7, 8} and set(clues[made.sources == 1]) == {5}
    again = sources.reveal(examples, ("a:0:3:5", "*:1:3:2"), seed=1)
    np.testing.assert_array_equal(made.inputs, again.inputs)
    for bad in ("a:0:3", "a:2:3:5", "a:0:0:5", "a:0:3:x", "c:0:3:5"):
        with pytest.raises(DatasetError, match="reveal: "):
            sources.reveal(examples, (bad,))
