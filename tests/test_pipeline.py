"""The input pipeline: epochs, positions, shards."""

import itertools
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from trm_jax import puzzles
from trm_jax.data import __main__ as cli
from trm_jax.data import dataset, pipeline
from trm_jax.data.dataset import DatasetError

SUDOKU4 = puzzles.get("sudoku", box_rows=2, box_cols=2)


def numbered(puzzle_sizes, group_sizes=None, vocab_size=251):
    """Split in which inputs[:, 0..1] tell an example's number and puzzle_identifiers its puzzle's."""
    count, P = sum(puzzle_sizes), len(puzzle_sizes)
    tokens = np.zeros((count, 3), np.uint8)
    tokens[:, 0], tokens[:, 1] = np.arange(count) // 250, np.arange(count) % 250
    group_sizes = [1] * P if group_sizes is None else group_sizes
    return dataset.make_split(tokens, tokens, vocab_size=vocab_size, puzzle_identifiers=np.arange(P),
                            num_puzzle_identifiers=P, puzzle_indices=np.cumsum([0, *puzzle_sizes]),
                            group_indices=np.cumsum([0, *group_sizes]))


def numbers(batch):
    return batch["inputs"][:, 0] * 250 + batch["inputs"][:, 1]


@pytest.fixture(scope="module")
def sudoku():
    inputs, labels, _ = SUDOKU4.generate(150, seed=2)
    labels[:, 3] = 0  # an ignored cell
    return dataset.make_split(inputs, labels, vocab_size=6)


def take(split, n, domain=None, state=None, **how):
    batches = pipeline.train_batches(split, domain, augment=domain is not None, **how)
    if state is not None:
        batches.set_state(state)
    taken = list(itertools.islice(batches, n))
    after = batches.get_state()
    batches.close()
    return taken, after


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], strict=True)


def test_batches_are_int32_and_ignored_labels_are_marked(sudoku):
    (batch,), _ = take(sudoku, 1, global_batch_size=32, seed=0)
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "inputs": ("int32", (32, 16)), "labels": ("int32", (32, 16)), "puzzle_identifiers": ("int32", (32,))}
    assert (batch["labels"][:, 3] == -100).all() and (np.delete(batch["labels"], 3, axis=1) > 1).all()


def test_an_epoch_visits_each_group_once_and_orders_differ():
    split = numbered([1] * 300)
    taken, state = take(split, 30, global_batch_size=30, seed=4)
    epochs = [np.concatenate([numbers(b) for b in taken[i:i + 10]]) for i in (0, 10, 20)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(300))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    assert (state["epoch"], state["batch"]) == (2, 10)
    other, _ = take(split, 10, global_batch_size=30, seed=5)
    assert not np.array_equal(numbers(other[0]), numbers(taken[0]))


def test_incomplete_last_batch_is_dropped():
    taken, state = take(numbered([1] * 100), 6, global_batch_size=30, seed=0)
    for start in (0, 3):
        seen = np.concatenate([numbers(b) for b in taken[start:start + 3]])
        assert len(seen) == len(set(seen)) == 90
    assert state["epoch"] == 1


def test_one_puzzle_of_each_group_uniformly():
    split = numbered([1] * 120, group_sizes=[1, 2, 3, 4] * 12)  # 48 groups
    group = np.repeat(np.arange(48), np.diff(split.group_indices))
    counts = np.zeros(120)
    for batch in take(split, 3000, global_batch_size=48, seed=0, prefetch=0)[0]:
        assert sorted(group[numbers(batch)]) == list(range(48))
        counts[numbers(batch)] += 1
    expected = 3000 / np.diff(split.group_indices)[group]
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected) + 1e-9).all()


def test_several_examples_per_puzzle():
    """Whole puzzles in random inner order, and what does not fit into the batch is left out."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 60).tolist()
    split = numbered(sizes, group_sizes=[1, 2, 3] * 10)
    puzzle_of = np.repeat(np.arange(60), sizes)
    group_of = np.repeat(np.arange(30), [1, 2, 3] * 10)
    batches = pipeline.train_batches(split, global_batch_size=16, seed=1, prefetch=0)
    shuffled = cut = 0
    for _ in range(20):
        plan, groups = None, []
        while plan is None or batches.get_state()["batch"] < plan.num_batches:
            batch = next(batches)
            plan = pipeline.plan_epoch(split, 16, 1, batches.get_state()["epoch"])
            examples = numbers(batch)
            assert len(examples) == len(set(examples)) == 16
            puzzles_here = puzzle_of[examples]
            np.testing.assert_array_equal(batch["puzzle_identifiers"], puzzles_here)
            runs = [(p, list(run)) for p, run in itertools.groupby(examples, key=lambda e: puzzle_of[e])]
            assert len(runs) == len(set(puzzles_here))  # each puzzle's examples lie together
            for p, run in runs[:-1]:
                assert sorted(run) == np.flatnonzero(puzzle_of == p).tolist()
                shuffled += run != sorted(run)
            cut += len(runs[-1][1]) < sizes[runs[-1][0]]
            groups += [group_of[p] for p, _ in runs]
        assert len(groups) == len(set(groups))
        left = sum(sizes[p] for p in plan.puzzles[plan.bounds[-1]:])
        assert left < 16  # no whole batch was dropped
    assert shuffled > 100 and cut > 20


def test_plan_equals_the_plain_loop():
    """The published loop over puzzles, with our draws."""
    split = numbered(np.random.default_rng(1).integers(1, 6, 200).tolist(), group_sizes=[2] * 100)
    for epoch in range(5):
        plan = pipeline.plan_epoch(split, 13, 7, epoch)
        bounds, position = [0], 0
        while True:
            room = 13
            while position < 100 and room > 0:
                p = plan.puzzles[position]
                room -= min(room, int(split.puzzle_indices[p + 1] - split.puzzle_indices[p]))
                position += 1
            if room:
                break
            bounds.append(position)
        assert plan.bounds.tolist() == bounds


CASES = {"sudoku": lambda sudoku: (sudoku, SUDOKU4), "several": lambda _: (numbered([1, 5, 2, 7] * 20, [2] * 40), None)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 11])
def test_position_resumes_bit_for_bit(sudoku, case, stop):
    split, domain = CASES[case](sudoku)
    how = {"global_batch_size": 40, "seed": 3}
    whole, end = take(split, 16, domain, prefetch=3, **how)
    head, state = take(split, stop, domain, prefetch=3, **how)
    state = json.loads(json.dumps(state))
    assert_equal(head, whole[:stop])
    for prefetch in (0, 2):
        tail, tail_end = take(split, 16 - stop, domain, state=state, prefetch=prefetch, **how)
        assert_equal(tail, whole[stop:])
        assert tail_end == end


def test_position_is_that_of_batches_handed_out(sudoku):
    batches = pipeline.train_batches(sudoku, global_batch_size=50, seed=0, prefetch=4)
    for consumed in range(1, 8):
        next(batches)
        time.sleep(.005)  # the thread runs ahead
        state = batches.get_state()
        assert state["epoch"] * 3 + state["batch"] == consumed
    batches.set_state(state | {"epoch": 10**6, "batch": 1})  # far away at no cost, also on a running iterator
    assert next(batches)["inputs"].shape == (50, 16)
    assert batches.get_state()["epoch"] == 10**6
    batches.close()


def test_position_of_another_stream_is_refused(sudoku):
    batches = pipeline.train_batches(sudoku, global_batch_size=50, seed=0, prefetch=0)
    for other in ({"seed": 1}, {"global_batch_size": 51}, {"groups": 1}, {"augment": True}, {"augment": 0},
                  {"epoch": 1.5}, {"epoch": True}, {"epoch": -1}, {"epoch": None}, {"batch": "x"}, {"batch": -1},
                  {"batch": 9}, {"batch": [0]}):
        with pytest.raises(DatasetError, match=f"has {next(iter(other))} = "):
            batches.set_state(batches.get_state() | other)
    for name in batches.get_state():
        renamed = dict(batches.get_state())
        renamed["x" + name] = renamed.pop(name)
        with pytest.raises(DatasetError, match=f"has {name} = None|has x{name}: unknown"):
            batches.set_state(renamed)
    assert batches.get_state()["batch"] == 0  # where it was


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("size", "count"), [(40, 2), (40, 5), (40, 40), (150, 3), (150, 1)])
def test_shards_are_slices_of_the_global_batch(sudoku, case, size, count):
    split, domain = CASES[case](sudoku)
    whole, state = take(split, 5, domain, global_batch_size=size, seed=9)
    parts = [take(split, 5, domain, global_batch_size=size, seed=9, process_index=i, process_count=count)
             for i in range(count)]
    joined = [{k: np.concatenate([shard[k] for shard in shards]) for k in shards[0]}
              for shards in zip(*(p[0] for p in parts), strict=True)]
    assert_equal(joined, whole)
    assert all(p[1] == state for p in parts)  # so a run may go on with another number of processes


def test_augmentation_is_fresh_and_right(sudoku):
    split = dataset.make_split(sudoku.inputs, np.where(sudoku.labels == 0, 2, sudoku.labels), vocab_size=6)
    taken, _ = take(sudoku, 4, SUDOKU4, global_batch_size=150, seed=0)
    for batch in taken:
        filled = np.where(batch["labels"] == -100, 1, batch["labels"])
        verdict = SUDOKU4.verify(batch["inputs"], filled)
        assert verdict.rules.all()
        assert ((batch["labels"] == -100).sum(axis=1) == 1).all()  # wherever the symmetry took it
    assert not np.array_equal(np.sort(taken[0]["inputs"], axis=0), np.sort(taken[1]["inputs"], axis=0))
    assert split.inputs.max() < 6  # and the stored puzzles are as they were
    np.testing.assert_array_equal(split.inputs, sudoku.inputs)


def test_refusals(sudoku):
    how = {"seed": 0}
    with pytest.raises(DatasetError, match="global batch of 50 cannot be shared by 4 processes"):
        pipeline.train_batches(sudoku, global_batch_size=50, process_count=4, **how)
    with pytest.raises(DatasetError, match="process_index=2 must be from 0 to 1"):
        pipeline.train_batches(sudoku, global_batch_size=50, process_index=2, process_count=2, **how)
    with pytest.raises(DatasetError, match="has 150 groups, .* Set global_batch_size to 150 or less"):
        pipeline.train_batches(sudoku, global_batch_size=151, **how)
    with pytest.raises(DatasetError, match="at most 10 rows"):
        pipeline.train_batches(numbered([2, 5, 1, 5], [2, 2]), global_batch_size=11, **how)
    with pytest.raises(DatasetError, match="seq_len 16 and vocab_size 6, the domain sudoku has 81 and 11"):
        pipeline.train_batches(sudoku, puzzles.get("sudoku"), global_batch_size=50, **how)
    with pytest.raises(DatasetError, match="augment=True needs a domain"):
        pipeline.train_batches(sudoku, global_batch_size=50, augment=True, **how)


def test_epochs_that_cannot_fill_a_batch_are_passed_over():
    batches, state = take(numbered([2, 5, 1, 5], [2, 2]), 20, global_batch_size=10, seed=0)
    assert all(sorted(set(b["puzzle_identifiers"])) == [1, 3] for b in batches)
    assert state["epoch"] > 30


def test_an_error_in_the_thread_reaches_the_caller(sudoku):
    class Broken:
        name, seq_len, vocab_size = "broken", 16, 6

        def augment(self, *_):
            raise RuntimeError("broken symmetry")

    batches = pipeline.train_batches(sudoku, Broken(), augment=True, global_batch_size=50)
    with pytest.raises(RuntimeError, match="broken symmetry"):
        next(batches)


def test_close_ends_the_thread(sudoku):
    before = set(threading.enumerate())
    batches = pipeline.train_batches(sudoku, global_batch_size=50, prefetch=2)
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()
    batches.close()
    assert not set(threading.enumerate()) - before
    with pytest.raises(ValueError, match="closed"):
        next(batches)


# Test batches.


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_test_example_once_in_order(count):
    split = numbered([3, 1, 2, 4])
    shards = [list(pipeline.test_batches(split, 4, process_index=i, process_count=count)) for i in range(count)]
    assert {len(s) for s in shards} == {3}
    seen, identifiers = [], []
    for step in range(3):
        for shard in shards:
            batch = shard[step]
            assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
                "inputs": ("int32", (4 // count, 3)), "labels": ("int32", (4 // count, 3)),
                "puzzle_identifiers": ("int32", (4 // count,)), "valid": ("bool", (4 // count,))}
            valid = batch["valid"]
            seen += numbers(batch)[valid].tolist()
            identifiers += batch["puzzle_identifiers"][valid].tolist()
            assert not batch["inputs"][~valid].any() and not batch["puzzle_identifiers"][~valid].any()
            assert (batch["labels"][~valid] == -100).all()
    assert seen == list(range(10)) and identifiers == [0, 0, 0, 1, 2, 2, 3, 3, 3, 3]


def test_chosen_test_rows():
    batches = list(pipeline.test_batches(numbered([3, 1, 2, 4]), 4, rows=np.array([9, 3, 3, 0, 5])))
    assert [numbers(b)[b["valid"]].tolist() for b in batches] == [[9, 3, 3, 0], [5]]
    assert batches[0]["puzzle_identifiers"].tolist() == [3, 1, 1, 0]
    with pytest.raises(DatasetError, match="cannot be shared by 3 processes"):
        pipeline.test_batches(numbered([1]), 4, process_count=3)


# Processes of the operating system.

SHARD = """
import itertools, sys
import numpy as np
from trm_jax import puzzles
from trm_jax.data import dataset, pipeline
path, out, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
domain = puzzles.get(**dataset.load_provenance(path)["puzzle"])
batches = pipeline.train_batches(dataset.load(path, "train"), domain, augment=True, global_batch_size=20, seed=1,
                                 process_index=index, process_count=2)
np.save(out, np.stack([b["inputs"] for b in itertools.islice(batches, 6)]))
"""  # ends without close(): the thread must not hold the process, nor complain


def test_two_processes_read_disjoint_shards(tmp_path):
    folder = tmp_path / "d"
    assert cli.main(["sudoku", "--generate", "--box", "2x2", "--train", "50", "--test", "2", "--out", str(folder)]) == 0
    running = [subprocess.Popen([sys.executable, "-W", "error", "-c", SHARD, str(folder), str(tmp_path / f"{i}.npy"),
                                 str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)]
    for process in running:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0 and err == ""
    parts = [np.load(tmp_path / f"{i}.npy") for i in range(2)]  # [6, 10, S] each
    whole, _ = take(dataset.load(folder, "train"), 6, SUDOKU4, global_batch_size=20, seed=1)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), np.stack([b["inputs"] for b in whole]))


def test_bench_measures(tmp_path, capsys):
    folder = str(tmp_path / "d")
    assert cli.main(["sudoku", "--generate", "--box", "2x2", "--train", "64", "--test", "2", "--out", folder]) == 0
    code = "import sys; from trm_jax.data.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, "bench", "--path", folder, "--batch", "32",
                           "--seconds", "0.1"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("puzzles/s") == 2
