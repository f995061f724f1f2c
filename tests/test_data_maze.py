"""Maze datasets: generated, imported, and how training draws from them. What all domains share is in test_data."""

import gzip
import itertools
import sys
import types

import numpy as np
import pytest

from tests import tiny
from trm_jax import config, puzzles
from trm_jax.data import __main__ as cli
from trm_jax.data import dataset, pipeline, sources
from trm_jax.data.dataset import DatasetError
from trm_jax.data.loading import Dataset

SIZE = 6
MAZE = puzzles.get("maze", rows=SIZE, cols=SIZE)


@pytest.fixture(scope="module")
def pool():
    """60 mazes of 6x6: (inputs, labels, rating, log2_paths)."""
    return MAZE.generate(60, seed=1)


def texts(pool):
    return [(MAZE.decode(q), MAZE.decode(a)) for q, a in zip(pool.inputs, pool.labels)]


def csv_text(rows):
    return "\n".join(["source,question,answer,rating", *(f"s,{q},{a},{i}" for i, (q, a) in enumerate(rows))]) + "\n"


@pytest.fixture
def files(tmp_path, pool):
    rows = texts(pool)
    (tmp_path / "train.csv").write_text(csv_text(rows[:45]))
    (tmp_path / "test.csv").write_text(csv_text(rows[45:]))
    return tmp_path


def run(*argv):
    return cli.main(["maze", "--size", f"{SIZE}x{SIZE}", *map(str, argv)])


def error_of(capsys, *argv):
    """The one line on stderr of a command that must fail with exit code 2."""
    capsys.readouterr()
    try:
        code = run(*argv)
    except SystemExit as stop:  # argparse
        code = stop.code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("reading ")]
    assert code == 2 and out == "" and len(lines) == 1, (code, out, err)
    return lines[0]


def import_args(files, out="out"):
    return ["--csv", files / "train.csv", "--test_csv", files / "test.csv", "--out", files / out]


# Building.


def test_generate(tmp_path, capsys):
    argv = ["--generate", "--train", 80, "--test", 20, "--min_length", 6]
    assert run(*argv, "--out", tmp_path / "a", "--seed", 3) == 0
    assert "log2 paths" in capsys.readouterr().out
    train, test = (dataset.load(tmp_path / "a", name) for name in ("train", "test"))
    assert (train.num_groups, test.num_groups, train.metadata.vocab_size) == (80, 20, 6)
    for split in (train, test):
        assert MAZE.verify(split.inputs, split.labels).solved.all() and (split.ratings > 6).all()
        assert split.log2_paths.dtype == np.float32
        np.testing.assert_array_equal(split.log2_paths, MAZE.log2_answers(split.inputs))
        np.testing.assert_array_equal(split.ratings, MAZE.solve(split.inputs).steps)
    assert len({x.tobytes() for x in (*train.inputs, *test.inputs)}) == 100
    provenance = dataset.load_provenance(tmp_path / "a")
    assert puzzles.get(**provenance["puzzle"]) == MAZE
    assert provenance["options"] == {
        "train": 80, "test": 20, "seed": 3, "size": [SIZE, SIZE], "smallest": 0, "min_length": 6, "single_path": False}

    assert run(*argv, "--out", tmp_path / "b", "--seed", 3) == run(*argv, "--out", tmp_path / "c", "--seed", 4) == 0
    np.testing.assert_array_equal(dataset.load(tmp_path / "b", "train").inputs, train.inputs)
    assert not np.array_equal(dataset.load(tmp_path / "c", "train").inputs, train.inputs)
    assert run("--generate", "--train", 9, "--test", 3, "--single_path", "--out", tmp_path / "d") == 0
    single = dataset.load(tmp_path / "d", "train")
    assert not single.log2_paths.any() and (single.ratings > MAZE.default_min_length()).all()


@pytest.mark.parametrize("form", ["plain", "gz", "crlf", "quoted", "tiny pieces"])
def test_import(files, pool, monkeypatch, form):
    text = csv_text(texts(pool)[:45])
    data = {"crlf": text.replace("\n", "\r\n"), "quoted": text.replace("s,", '"s",')}.get(form, text).encode()
    (files / "train.csv").write_bytes(gzip.compress(data) if form == "gz" else data)
    if form == "tiny pieces":
        monkeypatch.setattr(sources, "PIECE_BYTES", 100)
    assert run(*import_args(files)) == 0
    train, test = (dataset.load(files / "out", name) for name in ("train", "test"))
    np.testing.assert_array_equal(train.inputs, pool.inputs[:45])
    np.testing.assert_array_equal(train.labels, pool.labels[:45])
    np.testing.assert_array_equal(train.log2_paths, pool.log2_paths[:45])
    assert test.num_examples == 15 and train.ratings.tolist() == list(range(45)) and train.source_names == ("s",)


def test_extras_follow_their_mazes(files, pool):
    assert run(*import_args(files), "--subsample", 12, "--min_rating", 5) == 0
    split = dataset.load(files / "out", "train")
    np.testing.assert_array_equal(split.log2_paths, pool.log2_paths[split.subsample])
    np.testing.assert_array_equal(split.inputs, pool.inputs[split.subsample])
    file = files / "out" / "train" / "all__log2_paths.npy"
    (files / "out" / "checksums.json").unlink()  # as folders were before there were any
    for change, message in ((lambda a: a[1:], "one entry for each of 12 examples"),
                            (lambda a: a.astype(int), "holds int64, must hold floats")):
        whole = np.load(file)
        np.save(file, change(whole))
        with pytest.raises(DatasetError, match=f"log2_paths.npy: .*{message}"):
            dataset.load(files / "out", "train")
        np.save(file, whole)


def test_hub_of_maze_hard(tmp_path, capsys, monkeypatch):
    domain = puzzles.get("maze")
    made = domain.generate(3, seed=0, min_length=60)
    rows = [(domain.decode(q), domain.decode(a)) for q, a in zip(made.inputs, made.labels)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(csv_text(rows))

    def hf_hub_download(repo, filename, repo_type):
        assert (repo, repo_type) == ("sapientinc/maze-30x30-hard-1k", "dataset")
        return str(tmp_path / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    assert cli.main(["maze", "--hub", "--out", str(tmp_path / "hub")]) == 0
    assert "in train too: 3" in capsys.readouterr().out, "the same file twice: said"
    split = dataset.load(tmp_path / "hub", "train")
    np.testing.assert_array_equal(split.inputs, made.inputs)
    assert split.metadata.seq_len == 900
    assert dataset.load_provenance(tmp_path / "hub")["hub"] == "sapientinc/maze-30x30-hard-1k"


def bad_row(kind):
    """A line of the file, and what must be said of it. The maze: S to G is 4 steps, down the first column."""
    question = "S ##  " " ## # " " #  # " " # ## " "G     " "######"
    answer = question[:6] + "o" + question[7:12] + "o" + question[13:18] + "o" + question[19:]
    def at(text, *marks):
        cells = list(text)
        for cell, symbol in marks:
            cells[cell] = symbol
        return "".join(cells)
    assert MAZE.verify(MAZE.encode(question), MAZE.encode(answer)).solved
    return {
        "short question": (f"s,{question[1:]},{answer},1", "question: got 35 cells, expected 36"),
        "bad character": (f"s,{question},{answer[:-1]}z,1", "answer: unknown character 'z' at position 36"),
        "no start": (f"s,{question.replace('S', ' ')},{answer.replace('S', ' ')},1", "the maze has no start S"),
        "two starts": (f"s,{at(question, (35, 'S'))},{at(answer, (35, 'S'))},1", "the maze has 2 start Ss"),
        "no goal": (f"s,{question.replace('G', ' ')},{answer.replace('G', ' ')},1", "the maze has no goal G"),
        "no way": (f"s,{at(question, (6, '#'))},{at(question, (6, '#'))},1", "no way leads from S to G"),
        "path in the question": (f"s,{answer},{answer},1", "row 2, column 1 is marked 'o': a question holds no path"),
        "no path": (f"s,{question},{question},1", "the answer marks no path from S to G (no path is marked)"),
        "branch": (f"s,{question},{at(answer, (1, 'o'))},1",
                   "the answer marks no path from S to G (the path branches at row 1, column 1)"),
        "stray": (f"s,{question},{at(answer, (5, 'o'))},1",
                  "the answer marks no path from S to G (row 1, column 6 marked beside the path)"),
        "changed wall": (f"s,{question},{at(answer, (35, ' '))},1", "the answer changes more of the question than free "
                         "cells into path (a wall at row 6, column 6 became a free cell)"),
        "missing column": (f"{question},{answer},1", "has 3 columns, must have 4"),
        "rating": (f"s,{question},{answer},x", "rating is 'x', must be a number"),
    }[kind]


KINDS = ["short question", "bad character", "no start", "two starts", "no goal", "no way", "path in the question",
         "no path", "branch", "stray", "changed wall", "missing column", "rating"]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_row(files, pool, capsys, kind):
    row, message = bad_row(kind)
    lines = csv_text(texts(pool)[:45]).splitlines()
    lines[6] = row
    (files / "train.csv").write_text("\n".join(lines) + "\n")
    assert f"train.csv, line 7: {message}" in error_of(capsys, *import_args(files))
    assert not (files / "out").exists()


def test_an_answer_that_is_no_shortest_path_is_named(files, pool, capsys):
    rows = texts(pool)[:45]
    rows[3] = "S    G" + " " * 30, "S    G" + "oooooo" + " " * 24
    (files / "train.csv").write_text(csv_text(rows))
    assert ("train.csv, line 5: the answer is not a shortest path (the path has 7 steps, a shortest one has 5)"
            in error_of(capsys, *import_args(files)))


def test_user_errors_are_one_line(files, capsys):
    out = files / "new"
    for argv, message in [
        (["--generate", "--out", out, "--size", "6"], "is no box shape or maze size"),
        (["--generate", "--out", out, "--size", "1x6"], "a maze of 1x6 will not do"),
        (["--generate", "--out", out, "--size", "6x31", "--min_length", 186], "min_length=186 will not do"),
        (["--generate", "--out", out, "--min_rating", 1], "--min_rating has no meaning with --generate"),
        (["--generate", "--out", out, "--clues", 1], "unrecognized arguments: --clues 1"),
        ([*import_args(files, "new"), "--single_path"], "--single_path has no meaning with --csv"),
        ([*import_args(files, "new"), "--size", "31x31"], "line 2: question: got 36 cells, expected 961"),
    ]:
        assert message in error_of(capsys, *argv)
    assert not out.exists()


# Training.


def take(split, n, first=None, **how):
    batches = pipeline.train_batches(split, MAZE, **how)
    if first is not None:
        batches.set_state(first)
    taken, after = list(itertools.islice(batches, n)), batches.get_state()
    batches.close()
    return taken, after


def same(a, b):
    return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


@pytest.fixture(scope="module")
def split(pool):
    return dataset.make_split(pool.inputs, pool.labels, vocab_size=6, log2_paths=pool.log2_paths)


@pytest.mark.parametrize("augment", [False, True])
def test_fresh_paths_are_shortest_and_differ(split, pool, augment):
    taken, state_after = take(split, 8, global_batch_size=30, seed=2, labels="random_path", augment=augment)
    seen = {}
    for batch in taken:
        assert MAZE.verify(batch["inputs"], batch["labels"]).solved.all()
        for question, label in zip(batch["inputs"], batch["labels"]):
            seen.setdefault(question.tobytes(), set()).add(label.tobytes())
    if not augment:
        tied = {q.astype(np.int32).tobytes() for q, ways in zip(pool.inputs, pool.log2_paths) if ways > 2}
        single = {q.astype(np.int32).tobytes() for q, ways in zip(pool.inputs, pool.log2_paths) if ways == 0}
        assert np.mean([len(seen[q]) for q in tied]) > 2 and all(len(seen[q]) == 1 for q in single)
    assert state_after["labels"] == "random_path"
    fixed, _ = take(split, 8, global_batch_size=30, seed=2, augment=augment)
    assert all(np.array_equal(a["inputs"], b["inputs"]) for a, b in zip(taken, fixed, strict=True))
    assert not same(taken, fixed)


def test_fresh_paths_continue_and_are_shared_as_any_number_of_processes(split):
    how = {"global_batch_size": 60, "seed": 4, "labels": "random_path", "augment": True}
    whole, _ = take(split, 6, **how)
    first, position = take(split, 3, **how)
    rest, _ = take(split, 3, first=position, **how)
    assert same([*first, *rest], whole)
    parts = [take(split, 6, process_index=i, process_count=3, **how)[0] for i in range(3)]
    joined = [{k: np.concatenate([p[k] for p in ps]) for k in ps[0]} for ps in zip(*parts)]
    assert same(joined, whole)


def test_positions_say_which_labels(split):
    _, position = take(split, 1, global_batch_size=20, labels="random_path")
    with pytest.raises(DatasetError, match="has labels = 'random_path', but here it is 'fixed'"):
        take(split, 1, first=position, global_batch_size=20)
    _, position = take(split, 2, global_batch_size=20)
    del position["labels"]  # as older runs saved it
    taken, _ = take(split, 2, first=position, global_batch_size=20)
    assert same(taken, take(split, 4, global_batch_size=20)[0][2:])


def test_refusals(split, tmp_path):
    sudoku = puzzles.get("sudoku", seq_len=16)
    other = dataset.make_split(*sudoku.generate(8, seed=0)[:2], vocab_size=6)
    for domain in (sudoku, None):
        with pytest.raises(DatasetError, match="labels='random_path' is for mazes"):
            pipeline.train_batches(other, domain, global_batch_size=4, labels="random_path")
    with pytest.raises(DatasetError, match="labels='any' is unknown; there are fixed, random_path"):
        pipeline.train_batches(split, MAZE, global_batch_size=4, labels="any")
    with pytest.raises(config.ConfigError, match="data.labels = 'random_path': must be 'fixed' for data.puzzle"):
        config.parse({"data": {"labels": "random_path"}})
    folder = tiny.make_dataset(tmp_path / "d", 4, 2, MAZE)
    with pytest.raises(DatasetError, match="is a maze dataset, but data.puzzle = 'sudoku'"):
        Dataset.load(config.parse({"data": {"path": str(folder)}}))
    arch = {"mlp_t": False, "pos_encodings": "rope", "rope_columns": MAZE.cols + 1}
    with pytest.raises(DatasetError, match=f"rope_columns = {MAZE.cols + 1}, but .* have {MAZE.cols} columns"):
        Dataset.load(config.parse({"data": {"path": str(folder), "puzzle": "maze"}, "arch": arch}))
    data = Dataset.load(config.parse({"data": {"path": str(folder), "puzzle": "maze"}}))
    assert data.domain == MAZE and data.test.log2_paths.shape == (2,)


def test_bench_of_a_folder_that_does_not_say_what_it_is(tmp_path, capsys):
    folder = tiny.make_dataset(tmp_path / "d", 40, 2, MAZE)
    (folder / "provenance.json").unlink()
    assert cli.main(["bench", "--path", str(folder), "--puzzle", "maze", "--batch", "32", "--seconds", "0.05"]) == 0
    assert "with augmentation" in capsys.readouterr().out
