"""ARC's dataset folder: what is read, what is refused, and that every row maps back to a pair of its task."""

import collections
import copy
import json
import pathlib
import shutil
import types

import numpy as np
import pytest

from trm_jax import puzzles
from trm_jax.data import __main__ as command
from trm_jax.data import arc_build as build
from trm_jax.data import dataset, pipeline
from trm_jax.data.dataset import DatasetError
from trm_jax.inference.arc_voting import Votes
from trm_jax.puzzles import arc

JSON = pathlib.Path(__file__).parent / "arc"  # six small tasks of ARC-AGI-1 and ConceptARC
SUBSETS = ["training", "evaluation", "concept"]
NUM_AUG = 20


def run(out, *arguments, json_dir=JSON, subsets="training,evaluation,concept", test="evaluation", num_aug=NUM_AUG):
    return command.main(["arc", "--json_dir", str(json_dir), "--subsets", subsets, "--test_subset", test, "--num_aug",
                         str(num_aug), "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def tasks():
    return build.read_subsets(JSON, SUBSETS, "evaluation")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("arc") / "built"
    assert run(path) == 0
    return path


def puzzle_rows(split):
    """(number of the puzzle, its group, its identifier, slice of its examples)."""
    group = np.searchsorted(split.group_indices, np.arange(len(split.puzzle_identifiers)), side="right") - 1
    for p, identifier in enumerate(split.puzzle_identifiers.tolist()):
        yield p, int(group[p]), identifier, slice(split.puzzle_indices[p], split.puzzle_indices[p + 1])


# The folder.


def test_every_task_and_pair_is_there(tasks, folder, capsys):
    by_subset = collections.Counter(task.subset for task in tasks)
    assert by_subset == {"training": 2, "evaluation": 3, "concept": 1}
    train, test = (dataset.load(folder, name) for name in ("train", "test"))
    names = dataset.load_identifiers(folder)
    assert names[0] == "<blank>" and len(set(names)) == len(names) == 1 + 6 * (1 + NUM_AUG)
    tested = [task for task in tasks if task.subset == "evaluation"]
    pairs = sum(len(build.training_pairs(task, "evaluation")) for task in tasks)
    inputs = sum(len(task.test) for task in tested)
    assert (train.num_examples, test.num_examples) == (pairs * (1 + NUM_AUG), inputs * (1 + NUM_AUG))
    assert (train.num_groups, test.num_groups, inputs) == (6, 3, 4)
    assert train.metadata.num_puzzle_identifiers == test.metadata.num_puzzle_identifiers == len(names)
    assert (train.metadata.vocab_size, train.metadata.seq_len) == (12, 900)
    assert train.source_names == ("training", "evaluation", "concept") and test.source_names == ("evaluation",)
    provenance = dataset.load_provenance(folder)
    assert provenance["counts"]["training_pairs"] == pairs and provenance["counts"]["test_inputs"] == inputs
    assert provenance["test_pairs_in_train"] == [] and provenance["options"]["num_aug"] == NUM_AUG
    assert dataset.load_domain(folder, "sudoku", 900) == puzzles.get("arc")
    assert build.load_test_puzzles(folder) == {task.name: task.as_json() for task in tested}
    assert sorted(p.name for p in folder.parent.iterdir()) == ["built"]  # nothing is left beside it


@pytest.mark.parametrize("name", ["train", "test"])
def test_every_row_maps_back_to_a_pair_of_its_task(tasks, folder, name):
    split, names = dataset.load(folder, name), dataset.load_identifiers(folder)
    by_name = {task.name: task for task in tasks}
    groups = collections.defaultdict(list)
    moved, places = 0, set()
    for _, group, identifier, rows in puzzle_rows(split):
        task, how = arc.parse_name(names[identifier])
        groups[group].append(task)
        expected = by_name[task].test if name == "test" else build.training_pairs(by_name[task], "evaluation")
        unmoved = 0
        for inputs, labels, pair in zip(split.inputs[rows], split.labels[rows], expected, strict=True):
            corners = [np.argwhere(tokens.reshape(30, 30) >= 2).min(axis=0) for tokens in (inputs, labels)]
            assert np.array_equal(*corners)
            place = tuple(corners[0].tolist())
            for tokens, grid in zip((inputs, labels), pair):
                assert np.array_equal(tokens, arc.to_canvas(how.apply(grid), *place))
            unmoved += place == (0, 0)
            moved += place != (0, 0)
            places.add(place)
        assert unmoved >= 1 and (name == "train" or unmoved == len(expected))
    assert [len(set(of)) for of in groups.values()] == [1] * split.num_groups
    assert (moved > 0.6 * split.num_examples and len(places) > 100) if name == "train" else moved == 0


def test_the_puzzles_of_a_task_differ(folder):
    split = dataset.load(folder, "train")
    names, looks = dataset.load_identifiers(folder), collections.defaultdict(set)
    for _, group, identifier, rows in puzzle_rows(split):
        grids = [(arc.grid_key(shrink(a)), arc.grid_key(shrink(b))) for a, b in zip(split.inputs[rows],
                                                                                   split.labels[rows])]
        looks[group].add(tuple(sorted(grids)))
        assert (arc.parse_name(names[identifier])[1] == arc.IDENTITY) == (names[identifier].count("|") == 0)
    assert [len(of) for of in looks.values()] == [1 + NUM_AUG] * 6


def shrink(tokens):
    canvas = tokens.reshape(30, 30)
    rows, cols = (canvas >= 2).any(axis=1), (canvas >= 2).any(axis=0)
    return canvas[rows][:, cols]


def test_right_answers_score_1_and_blank_ones_0(folder):
    split = dataset.load(folder, "test")
    right, wrong = (Votes(dataset.load_identifiers(folder), build.load_test_puzzles(folder)) for _ in range(2))
    for batch in pipeline.test_batches(split, 32):
        labels = np.where(batch["labels"] == dataset.IGNORE_LABEL_ID, 0, batch["labels"])
        halts = np.zeros(len(labels))
        right.add(batch["puzzle_identifiers"], batch["inputs"], labels, halts)
        wrong.add(batch["puzzle_identifiers"], batch["inputs"], np.zeros_like(labels), halts)
    assert right.score()["pass@1"] == 1 and right.score()["predictions"] == split.num_examples
    assert wrong.score()["pass@1000"] == 0


def test_it_is_trained_from(folder):
    batches = pipeline.train_batches(dataset.load(folder, "train"), None, global_batch_size=4, seed=0)
    batch = next(batches)
    batches.close()
    assert batch["inputs"].shape == (4, 900) and (batch["puzzle_identifiers"] > 0).all()


def files(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*.*")
            if p.name not in ("provenance.json", "checksums.json")}


def test_the_seed_makes_the_folder_and_fewer_symmetries_are_the_first_of_more(folder, tmp_path):
    assert run(tmp_path / "again", num_aug=5) == run(tmp_path / "same", num_aug=5) == 0
    assert run(tmp_path / "other", "--seed", "1", num_aug=5) == 0
    again, same, other = (files(tmp_path / name) for name in ("again", "same", "other"))
    assert again == same and set(again) == set(other)
    assert all(again[f"train/all__{name}.npy"] != other[f"train/all__{name}.npy"] for name in ("inputs", "labels"))
    few, many = dataset.load_identifiers(tmp_path / "again"), dataset.load_identifiers(folder)
    assert [few[1 + 6 * t:7 + 6 * t] for t in range(6)] == [
        many[1 + (1 + NUM_AUG) * t:][:6] for t in range(6)]
    assert few != dataset.load_identifiers(tmp_path / "other")


def test_no_symmetries_at_all(tmp_path, tasks):
    assert run(tmp_path / "bare", num_aug=0) == 0
    assert dataset.load_identifiers(tmp_path / "bare") == ["<blank>", *(task.name for task in tasks)]


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="asks Linux what is in memory")
def test_a_folder_larger_than_memory_is_checked_piece_by_piece(tmp_path):
    def resident():
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("RssFile:")[1].split()[0]) >> 10  # MiB

    path, rows = tmp_path / "rows.npy", 6 * dataset.CHECK_ROWS
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (rows, 900)})
        file.truncate(file.tell() + rows * 900)
    array, before = np.asarray(np.load(path, mmap_mode="r")), resident()
    dataset.need_range(array, 12, "vocab_size", path)
    assert resident() - before < rows * 900 / 3 / 2**20 and array[-1].sum() == 0


# Symmetries.


def all_looks(pairs, symmetries):
    """Distinct multisets of pairs, by transforming every grid."""
    looks = set()
    for k, colours in symmetries:
        how = arc.Augmentation(int(k), tuple(map(int, colours)))
        looks.add(tuple(sorted(tuple(arc.grid_key(how.apply(grid)) for grid in pair) for pair in pairs)))
    return looks


@pytest.mark.parametrize("pairs, expected", [
    ([([[1]], [[1]])], 9),  # one colour, every transform alike
    ([([[0]], [[0]])], 1),
    ([([[1, 0]], [[1, 0]])], 9 * 4),
    ([([[1, 0]], [[1, 0]]), ([[0, 1]], [[0, 1]])], 9 * 2),  # mirrored, the pairs change places
    ([([[1, 2], [2, 1]], [[1]])], 144),  # turned, the colours change places, but not the output's
    ([([[1, 2], [2, 1]], [[1]]), ([[2, 1], [1, 2]], [[2]])], 72),
], ids=str)
def test_symmetries_that_look_alike_count_once(pairs, expected):
    pairs = [tuple(np.array(grid, np.uint8) for grid in pair) for pair in pairs]
    transforms, colours = arc.distinct_symmetries(pairs, 400, np.random.default_rng(0))
    found = all_looks(pairs, zip(transforms, colours))
    drawn = all_looks(pairs, zip(*arc.draw(np.random.default_rng(1), 3000)))
    assert len(transforms) == len(found) and found == drawn and len(found) == expected
    assert transforms[0] == 0 and colours[0].tolist() == list(range(10))


def test_as_many_symmetries_as_asked_for_and_no_more():
    pairs = [(np.arange(9, dtype=np.uint8).reshape(3, 3), np.arange(6, dtype=np.uint8).reshape(2, 3))]
    transforms, colours = arc.distinct_symmetries(pairs, 300, np.random.default_rng(0))
    assert len(transforms) == len(colours) == len(all_looks(pairs, zip(transforms, colours))) == 301


def test_pairs_are_moved_to_every_place_that_has_room_for_both():
    pairs = [(np.ones((28, 1), np.uint8), np.ones((2, 29), np.uint8)), (np.ones((30, 30), np.uint8),) * 2]
    inputs, labels = arc.canvases(pairs, np.zeros(400, int), np.tile(np.arange(10, dtype=np.uint8), (400, 1)),
                                  np.random.default_rng(0))
    assert (inputs[:, 1] == 3).all() and (labels[:, 1] == 3).all()
    places = collections.Counter(tuple(np.argwhere(t.reshape(30, 30) == 3)[0].tolist()) for t in inputs[:, 0])
    assert set(places) == {(r, c) for r in range(3) for c in range(2)}
    assert 200 < places[0, 0] < 270  # half of the time the pair that stays, else one in six
    for tokens, others in zip(inputs[:, 0], labels[:, 0]):
        place = np.argwhere(tokens.reshape(30, 30) == 3)[0].tolist()
        assert np.array_equal(tokens, arc.to_canvas(pairs[0][0], *place))
        assert np.array_equal(others, arc.to_canvas(pairs[0][1], *place))


# What is refused.


@pytest.fixture
def given(tmp_path):
    """A folder to spoil: (subset, what) -> content; `write` writes it."""
    content = {(subset, what): json.loads((JSON / f"arc-agi_{subset}_{what}.json").read_text())
               for subset in SUBSETS for what in ("challenges", "solutions")}

    def write():
        for (subset, what), value in content.items():
            (tmp_path / f"arc-agi_{subset}_{what}.json").write_text(json.dumps(value))
        return tmp_path
    return content, write


def spoilt(value, path, new):
    """A deep copy with one thing replaced, or removed where `new` is absent."""
    value = copy.deepcopy(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    if new is None:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return value


FIRST = "arc-agi_training_{what}.json: task {name}: "


@pytest.mark.parametrize("what, path, new, where, reason", [
    ("challenges", ["train", 0, "input"], [[1, 2], [3]], "train pair 1, input", "is ragged"),
    ("challenges", ["train", 1, "output", 0, 0], 11, "train pair 2, output", "has 11 in row 1, column 1"),
    ("challenges", ["test", 0, "input"], [[0] * 31], "test 1, input", "has 1 rows and 31 columns"),
    ("challenges", ["train", 0, "output"], None, "train pair 1", "has no output"),
    ("challenges", ["test", 0, "input"], None, "test 1", "has no input"),
    ("challenges", ["test"], [], "test", "at least one"),
    ("challenges", ["train"], None, "train", "is missing"),
    ("challenges", ["train", 0], [], "train pair 1", "has no input"),
    ("solutions", [0], [[1], [2, 3]], "solution 1", "is ragged"),
    ("solutions", [0], None, "solutions", "at least one"),
    ("solutions", [], None, "", "has no solution"),
    ("solutions", [], [[[1]], [[2]]], "", "has 2 solutions for 1 test inputs"),
    ("challenges", [], 3, "", "must be an object"),
], ids=str)
def test_a_bad_file_is_refused_with_file_task_and_reason(given, tmp_path, capsys, what, path, new, where, reason):
    content, write = given
    name = next(iter(content["training", "challenges"]))
    content["training", what] = spoilt(content["training", what], [name, *path], new)
    assert run(tmp_path / "out", json_dir=write()) == 2
    err = capsys.readouterr().err
    assert FIRST.format(what=what, name=name) + where in err and reason in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text, reason", [("{", "cannot be read as JSON"), ("[]", "must hold an object"),
                                          ('{"a": 1, "a": 2}', "has 'a' twice"), ("{}", "has solutions of task")])
def test_a_file_that_is_no_object_of_tasks_is_refused(given, capsys, tmp_path, text, reason):
    json_dir = given[1]()
    (json_dir / "arc-agi_concept_challenges.json").write_text(text)
    assert run(tmp_path / "out", json_dir=json_dir) == 2
    err = capsys.readouterr().err
    assert reason in err and "arc-agi_concept_" in err


def test_a_missing_file_is_named_with_what_there_is(given, capsys, tmp_path):
    json_dir = given[1]()
    assert run(tmp_path / "out", json_dir=json_dir, subsets="training,evaluatoin", test="evaluatoin") == 2
    assert "evaluatoin_challenges.json is missing; " in (err := capsys.readouterr().err) and "evaluation," in err
    (json_dir / "arc-agi_evaluation_solutions.json").unlink()
    assert run(tmp_path / "out", json_dir=json_dir) == 2
    assert "arc-agi_evaluation_solutions.json is missing" in capsys.readouterr().err
    assert run(tmp_path / "out", json_dir=tmp_path / "nowhere") == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_test_subset_may_have_no_solutions(given, tasks, folder, tmp_path, capsys):
    json_dir = given[1]()
    (json_dir / "arc-agi_evaluation_solutions.json").unlink()
    assert run(tmp_path / "out", "--no_test_solutions", json_dir=json_dir) == 0
    blind, seen = (dataset.load(path, "test") for path in (tmp_path / "out", folder))
    assert not blind.labels.any() and seen.labels.any()
    assert len(blind.inputs) == len(seen.inputs) and np.array_equal(
        np.unique(blind.inputs[blind.puzzle_indices[:1]], axis=0), np.unique(seen.inputs[:1], axis=0))
    puzzles = build.load_test_puzzles(tmp_path / "out")
    assert {name: [list(pair) for pair in task["test"]] for name, task in puzzles.items()} == {
        task.name: [["input"]] * len(task.test) for task in tasks if task.subset == "evaluation"}
    votes = Votes(dataset.load_identifiers(tmp_path / "out"), puzzles)
    for batch in pipeline.test_batches(blind, 32):
        votes.add(batch["puzzle_identifiers"], batch["inputs"], batch["inputs"], np.zeros(32))
    score = votes.score()
    assert score["pass@1"] is None and score["unanswered"] == 0 and score["predictions"] == blind.num_examples
    assert set(votes.submission()) == set(puzzles)
    assert run(tmp_path / "train", "--no_test_solutions", json_dir=json_dir, test="concept") == 2  # nor of any other
    assert "arc-agi_evaluation_solutions.json is missing" in capsys.readouterr().err


def test_training_on_the_answers_of_the_test_is_refused_by_name(given, capsys, tmp_path):
    content, write = given
    shared = list(content["evaluation", "challenges"])[:2]
    for what in ("challenges", "solutions"):  # as ARC-AGI-2's training subset has tasks of ARC-AGI-1's evaluation
        content["training2", what] = content["training", what] | {n: content["evaluation", what][n] for n in shared}
    json_dir = write()
    for subsets, test, reason in [
        ("training2,evaluation", "evaluation", "2 of the 3 tasks of evaluation are in training2 too"),
        ("evaluation,training2", "training2", "2 of the 4 tasks of training2 are in evaluation too"),
        ("training,training2,concept", "concept", "2 tasks of training2 are in training too"),
        ("training,concept", "evaluation", "evaluation is not among --subsets training,concept"),
        ("evaluation,training,evaluation", "evaluation", "names evaluation twice"),
    ]:
        assert run(tmp_path / "out", json_dir=json_dir, subsets=subsets, test=test) == 2
        err = capsys.readouterr().err
        assert reason in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_answer_hidden_under_another_id_is_told(given, capsys, tmp_path):
    content, write = given
    name = next(iter(content["evaluation", "challenges"]))
    pair = {"input": content["evaluation", "challenges"][name]["test"][0]["input"],
            "output": content["evaluation", "solutions"][name][0]}
    other = next(iter(content["concept", "challenges"]))
    content["concept", "challenges"][other]["train"].append(pair)
    assert run(tmp_path / "out", json_dir=write(), num_aug=0) == 0
    out, err = capsys.readouterr()
    assert f"a test pair of task {name} is also a pair of task {other}" in err and "another task too: 1" in out
    assert dataset.load_provenance(tmp_path / "out")["test_pairs_in_train"] == [[name, other]]


def test_a_full_disk_and_a_taken_place_are_refused_before_the_work(tasks, folder, tmp_path, monkeypatch, capsys):
    assert run(folder) == 2
    assert "--overwrite" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(DatasetError, match="but only 1.00 kB are free"):
        build.build(tmp_path / "out", tasks, "evaluation", num_aug=1, seed=0, provenance={})
    assert not list(tmp_path.iterdir())


def test_test_puzzles_are_asked_for_where_there_are_none(tmp_path):
    with pytest.raises(DatasetError, match="no ARC dataset folder"):
        build.load_test_puzzles(tmp_path)
    (tmp_path / "test_puzzles.json").write_text('{"a": {"test": 1}}')
    with pytest.raises(DatasetError, match="task a: has no list of tests"):
        build.load_test_puzzles(tmp_path)


@pytest.mark.parametrize("form", ["folders", "jsonl"])
def test_tasks_one_a_file_are_the_same_tasks(tmp_path, tasks, form):
    """As ARC-AGI-1 and 2, ConceptARC and Mini-ARC are published."""
    for task in tasks:
        place = tmp_path / task.subset / "group" / f"{task.name}.json"
        if form == "folders":
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(task.as_json()))
        else:
            with (tmp_path / f"{task.subset}.jsonl").open("a") as file:
                file.write(json.dumps({"task_id": task.name} | task.as_json()) + "\n")
    found, files = build.read_subsets(tmp_path, ["training", "evaluation", "concept"], "evaluation")
    order = {task.name: task for task in found}
    assert order.keys() == {task.name for task in tasks} and sum(map(len, files.values())) == (
        len(tasks) if form == "folders" else 3)
    for task in tasks:
        assert order[task.name].as_json() == task.as_json() and order[task.name].subset == task.subset


def test_tasks_without_outputs_are_refused_or_told_so(tmp_path, tasks):
    raw = tasks[0].as_json()
    raw["test"] = [pair | {"output": None} for pair in raw["test"]]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.json").write_text(json.dumps(raw))
    with pytest.raises(DatasetError, match="a.json: test 1 has no output; .* --no_test_solutions"):
        build.read_subsets(tmp_path, ["mine"], "mine")
    [task], _ = build.read_subsets(tmp_path, ["mine"], "mine", test_solved=False)
    assert task.name == "a" and not task.solved
    (tmp_path / "mine" / "b.json").write_text(json.dumps(raw | {"id": "a"}))
    with pytest.raises(DatasetError, match="has task 'a' twice"):
        build.read_subsets(tmp_path, ["mine"], "mine", test_solved=False)


def test_lines_of_barc(tmp_path):
    """Examples alone: the last one is the test."""
    pairs = [[[[i, 1]], [[1, i]]] for i in range(4)]
    (tmp_path / "barc.jsonl").write_text(json.dumps({"examples": pairs, "source": "x"}) + "\n")
    [task] = build.read_task_files([tmp_path / "barc.jsonl"], "barc")
    assert len(task.train) == 3 and task.name == "line 1"
    assert [(a.tolist(), b.tolist()) for a, b in task.test] == [tuple(pairs[-1])]
