"""A weights file gives back what the run had, without the run; what does not fit is refused by name."""

import dataclasses
import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests import tiny
from trm_jax import config, puzzles
from trm_jax.data import dataset
from trm_jax.data.loading import Dataset
from trm_jax.data.shape import Shape
from trm_jax.evaluation.scores import BEST
from trm_jax.jobs import evaluate
from trm_jax.models.network import Weights
from trm_jax.runtime import checkpoints
from trm_jax.training import run_folder
from trm_jax.training.system import System
from trm_jax.weights import command, weights_file
from trm_jax.weights.weights_file import WeightsError

GRID = np.array([2, 3, 4, 5, 4, 5, 2, 3, 3, 2, 5, 4, 5, 4, 3, 2], np.uint8)


def experiment(data, **arch) -> config.Experiment:
    """A tiny network for 4x4 Sudoku, with a prefix."""
    arch = dict(hidden_size=16, mlp_hidden_size=16, mixer_hidden_size=16, puzzle_emb_ndim=16, puzzle_emb_len=1) | arch
    return config.Experiment(
        arch=config.Arch(**arch), data=config.Data(path=str(data)), global_batch_size=8, total_steps=10,
        eval=config.Eval(H_test=(1, 2), batch_size=8), curriculum_L_milestones=(30.0,), curriculum_L_to_add=(1,))


def write_dataset(path) -> None:
    domain = puzzles.get("sudoku", seq_len=16)
    labels = domain.draw_symmetry(np.random.default_rng(0), 8).apply(np.tile(GRID, (8, 1)))
    inputs = np.where(np.arange(16) % 3 == 0, 1, labels)
    split = dataset.make_split(inputs, labels, vocab_size=6)
    dataset.write(path, {"train": split, "test": split}, [dataset.BLANK],
                {"puzzle": {"name": "sudoku", "box_rows": 2, "box_cols": 2}})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a checkpoint of step 6 whose EMA is not its parameters, and the evaluation of that step."""
    root = tmp_path_factory.mktemp("weights")
    write_dataset(root / "data")
    e = experiment(root / "data")
    system = System(e, Dataset.load(e).shape, 10)
    state = jax.jit(system.init_state)()
    state = state._replace(ema=jax.tree.map(lambda p: p * 1.5, state.params), table=state.table + 0.25)
    run_folder.claim(root / "run", config.to_json(e))
    with checkpoints.Checkpointer(root / "run", best_metric=BEST) as checkpointer:
        checkpointer.save(6, state, {})
        checkpointer.record(6, {BEST: 0.5})
    evaluate.save({"step": 6, "figures": [{"H_test": 2, "exact_accuracy": 0.5}]}, root / "run")
    return root / "run", system, state


@pytest.fixture(scope="module")
def exported(run):
    return weights_file.from_run(run[0])


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def test_export_is_the_ema_with_its_evaluation(run, exported):
    _, system, state = run
    expected = leaves(system.weights(state))
    assert expected.keys() == leaves(exported.weights).keys()
    for name, leaf in leaves(exported.weights).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    m = exported.metadata
    assert (m["parameters"], m["step"], m["total_steps"], m["L"]) == ("EMA", 6, 10, 3), "L grew at 30 %"
    assert m["evaluation"]["figures"][0]["exact_accuracy"] == 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_without_run_and_data(tmp_path, exported, dtype):
    gone = dataclasses.replace(exported.experiment, data=config.Data(path="gone"))
    weights_file.save(tmp_path / "w", exported._replace(experiment=gone), dtype)
    loaded = weights_file.load(tmp_path / "w")
    assert loaded.experiment == gone and loaded.shape == exported.shape
    assert loaded.domain == puzzles.get("sudoku", box_rows=2, box_cols=2)
    assert loaded.metadata == {**exported.metadata, "dtype": dtype}
    round_trip = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    expected = leaves(exported.weights)
    assert leaves(loaded.weights).keys() == expected.keys()
    for name, leaf in leaves(loaded.weights).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, expected[name].astype(round_trip).astype(np.float32), err_msg=name)


def test_without_prefix_there_is_no_table(tmp_path, exported):
    e = experiment("gone", puzzle_emb_ndim=0, puzzle_emb_len=0)
    made = Weights(*System(e, exported.shape, 10).model.init(jax.random.key(0)))
    weights_file.save(tmp_path / "w", exported._replace(experiment=e, weights=made))
    assert weights_file.load(tmp_path / "w").weights.table is None


def test_a_failed_save_leaves_the_old_file(tmp_path, exported, monkeypatch):
    weights_file.save(tmp_path / "w", exported)
    before = (tmp_path / "w").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match="was not written: No space left"):
        weights_file.save(tmp_path / "w", exported, "float32")
    assert (tmp_path / "w").read_bytes() == before and os.listdir(tmp_path) == ["w"]


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_files_are_refused_in_one_line(tmp_path, exported, keep):
    weights_file.save(tmp_path / "w", exported)
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:keep])
    with pytest.raises(WeightsError, match="is damaged or no safetensors file") as caught:
        weights_file.load(tmp_path / "w")
    assert "\n" not in str(caught.value)


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="there is no file"):
        weights_file.load(tmp_path / "none")
    (tmp_path / "pickle").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(WeightsError, match="no safetensors file"):
        weights_file.load(tmp_path / "pickle")
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, tmp_path / "foreign")
    with pytest.raises(WeightsError, match="not one of trm_jax.weights"):
        weights_file.load(tmp_path / "foreign")


def altered(path, exported, tensors=lambda t: t, header=lambda h: h) -> None:
    """A saved file with its tensors or header changed."""
    weights_file.save(path, exported, "float32")
    with safetensors.safe_open(path, "numpy") as file:
        raw = json.loads(file.metadata()[weights_file.KEY])
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    raw = {name: value for name, value in raw.items() if name != "sha256"} | {"format": 1}  # as files once were
    safetensors.numpy.save_file(tensors(arrays), path, {weights_file.KEY: json.dumps(header(raw))})


def test_files_without_checksums_still_load(tmp_path, exported):
    altered(tmp_path / "w", exported)
    assert weights_file.load(tmp_path / "w").experiment == exported.experiment


@pytest.mark.parametrize("field, value, message", [
    ("L_layers", 1_000_000, "arch.L_layers in its header is 1000000, but its tensors are those of 1"),
    ("hidden_size", 32, "arch.hidden_size in its header is"), ("L_cycles", 10**9, "arch.L_cycles in its header"),
    ("puzzle_emb_len", 10**9, "arch.puzzle_emb_len in its header is 1000000000, must be 0 to 4096")])
def test_a_header_that_asks_for_more_than_is_there_is_refused_at_once(tmp_path, exported, field, value, message):
    def grow(header):
        return header | {"config": header["config"] | {"arch": header["config"]["arch"] | {field: value}}}
    altered(tmp_path / "w", exported, header=grow)
    with pytest.raises(WeightsError, match=message):
        weights_file.load(tmp_path / "w")


def test_what_is_not_finite_is_neither_written_nor_read(tmp_path, exported):
    w = exported.weights
    broken = exported._replace(weights=w._replace(fixed=w.fixed | {"H_init": w.fixed["H_init"] * np.nan}))
    with pytest.raises(WeightsError, match="was not written: fixed/H_init holds what is no finite number"):
        weights_file.save(tmp_path / "w", broken)
    altered(tmp_path / "w", exported, lambda t: t | {"fixed/H_init": t["fixed/H_init"] * np.float32("inf")})
    with pytest.raises(WeightsError, match="fixed/H_init holds what is no finite number"):
        weights_file.load(tmp_path / "w")


def test_no_flipped_bit_and_no_cut_is_loaded(tmp_path, exported):
    """250 flips, most of them in the header, where the meaning is, and 50 cuts."""
    weights_file.save(tmp_path / "w", exported)
    whole, rng = (tmp_path / "w").read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*rng.integers(header, size=150).tolist(), *rng.integers(header, len(whole), size=100).tolist()]
    damaged = [whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1:] for at in places]
    damaged += [whole[:at] for at in rng.integers(len(whole), size=50).tolist()]
    for content in damaged:
        (tmp_path / "w").write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            weights_file.load(tmp_path / "w")
        assert "\n" not in str(caught.value)


def test_every_leaf_that_does_not_fit_is_listed(tmp_path, exported):
    def spoil(tensors):
        tensors["fixed/H_init"] = np.zeros(17, np.float32)
        tensors["fixed/L_init"] = np.zeros(16, np.int8)
        tensors["extra"] = tensors.pop("table")
        return tensors
    altered(tmp_path / "w", exported, spoil)
    with pytest.raises(WeightsError) as caught:
        weights_file.load(tmp_path / "w")
    for part in ("only in the file: extra float32[1, 16]", "only in the model: table [1, 16]",
                 "differs: fixed/H_init is float32[17] in the file, [16] in the model",
                 "differs: fixed/L_init is I8[16]"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change, message", [
    ({"format": 3}, "has format 3; this version reads formats 1 and 2"),
    ({"format": 2}, "is damaged: it has lost its checksums"),
    ({"L": 2_000_000_000}, "L in its header is 2000000000, must be 1 to 1024"),
    ({"step": "6"}, "step in its header is '6', must be of type int"),
    ({"shape": {"seq_len": 16}}, "must give seq_len, vocab_size, num_puzzle_identifiers"),
    ({"puzzle": {"name": "os"}}, "unknown puzzle 'os'"),
    ({"puzzle": {"name": "sudoku", "box_rows": 2, "box_cols": 3}}, "contradict each other"),
    ({"config": {"archh": {}}}, "archh: unknown field"),
])
def test_headers_that_do_not_fit(tmp_path, exported, change, message):
    altered(tmp_path / "w", exported, header=lambda h: h | change)
    with pytest.raises(WeightsError, match=message):
        weights_file.load(tmp_path / "w")


def test_evaluating_a_file_gives_the_runs_figures(tmp_path, run, exported):
    weights_file.save(tmp_path / "mine.safetensors", exported, "float32")
    changed = dataclasses.replace(exported.experiment, eval=config.Eval(H_test=(1, 3), batch_size=8))
    lines = []
    result = evaluate.evaluate_file(changed, tmp_path / "out", tmp_path / "mine.safetensors", lines.append)
    written = json.loads((tmp_path / "out" / "eval" / "step_6.mine.json").read_text())
    assert written["weights"]["file"] == str(tmp_path / "mine.safetensors") and len(written["weights"]["sha256"]) == 64
    assert [(f["H_test"], f["L_test"]) for f in written["figures"]] == [(1, 3), (3, 3)]
    own = evaluate.evaluate(changed, run[0], lines.append)
    assert own["figures"] == result["figures"] and own["step"] == result["step"]


def test_evaluating_a_file_under_another_config_names_the_fields(tmp_path, exported):
    weights_file.save(tmp_path / "w", exported)
    e = exported.experiment
    other = dataclasses.replace(e, arch=dataclasses.replace(e.arch, hidden_size=32), lr=0.5)
    with pytest.raises(WeightsError) as caught:
        evaluate.evaluate_file(other, tmp_path, tmp_path / "w")
    assert "arch.hidden_size: the file has 16, now 32" in str(caught.value)
    assert "lr" not in str(caught.value) and "data.path" not in str(caught.value), "they change no answer"


def test_what_changes_no_answer_is_not_asked():
    def asked(**arch):
        changed = dataclasses.replace(config.Arch(puzzle_emb_len=1), **arch)
        return evaluate.asked(config.Experiment(arch=changed), Shape(16, 6))
    plain = asked()
    for same in ({"H_cycles": 8}, {"L_cycles": 5}, {"num_heads": 4}, {"expansion": 1.0, "mlp_hidden_size": 1536},
                 {"puzzle_emb_len": 0}, {"remat": False}, {"halt_max_steps": 3}, {"start_std": 3.0},
                 {"solver_patience": 9}, {"halt_residual": 0.5}):
        found = asked(**same)
        assert {n: (plain[n], found.get(n)) for n in plain if plain[n] != found.get(n)} == {}, same
    for other in ({"rms_norm_eps": 1e-6}, {"mixer_norm_axis": "token"}, {"update": "damped"}, {"puzzle_emb_len": 2},
                  {"forward_dtype": "float32"}, {"mlp_hidden_size": 512}, {"start": "random"}):
        found = asked(**other)
        [name] = other
        assert plain[f"arch.{name}"] != found[f"arch.{name}"]
    deep = {"supervision": "deep", "prob_detach_prev_H": 1.0}
    assert asked(**deep)["arch.H_cycles"] == 2 and asked(**deep, test_H_cycles=3)["arch.H_cycles"] == 3
    assert asked(**deep, L_cycles=4)["arch.L_cycles"] == 4
    assert asked(mlp_t=False)["arch.num_heads"] == 8


def test_rows_of_the_table_are_evaluated_by_the_names_of_their_puzzles(tmp_path, exported):
    folder = tiny.arc_dataset(tmp_path / "arc", num_aug=1)
    e = tiny.experiment(folder, data={"puzzle": "arc"})
    data, names = Dataset.load(e), dataset.load_identifiers(folder)
    table = np.arange(len(names) * 2, dtype=np.float32).reshape(-1, 2)
    turned = exported._replace(weights=exported.weights._replace(table=table[::-1]), identifiers=names[::-1])
    mine = evaluate.rows_by_name(turned, data, e)
    np.testing.assert_array_equal(mine.weights.table, table)
    assert mine.identifiers == names and mine.shape.num_puzzle_identifiers == len(names)
    with pytest.raises(WeightsError, match=f"have not learned 1 of the {len(names)} puzzle identifiers"):
        evaluate.rows_by_name(turned._replace(identifiers=[*names[:0:-1], "other"]), data, e)


def test_command_line(tmp_path, run, capsys):
    assert command.main([f"--workdir={run[0]}", f"--out={tmp_path / 'w'}"]) == 0
    out = capsys.readouterr().out
    assert "EMA parameters of step 6 of 10 in bfloat16" in out
    assert weights_file.load(tmp_path / "w").metadata["dtype"] == "bfloat16"
    assert command.main([f"--workdir={tmp_path / 'none'}", f"--out={tmp_path / 'v'}"]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "v").exists()
