"""Published weights come in and go out bit for bit; what a file is taken for; what does not fit is refused by name."""

import dataclasses
import json
import pickle

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests import tiny
from tests.golden.check import DEEP, FOLDER, MODULES
from trm_jax import config
from trm_jax.data.shape import Shape
from trm_jax.inference import solver
from trm_jax.jobs import evaluate
from trm_jax.models.network import Model, Weights
from trm_jax.weights import published as pub
from trm_jax.weights import published_names, published_systems, torch_files, weights_file
from trm_jax.weights.published_names import PretrainedError
from trm_jax.weights.torch_files import FileError

SYSTEMS = {"rsm_att": "RSM", "rsm_mlp": "RSM", "trm_att": "TRM", "trm_mlp": "TRM", "trm_single_z": "TRM",
           "trm_multi_z": "TRM", "hrm": "HRM"}
PREFIXES = {"RSM": "model.", "TRM": "_orig_mod.model.inner.", "HRM": "_orig_mod.model.inner."}


def golden(name):
    """(config, weights under their published names with the prefix of the published training program)."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        published = json.loads(bytes(archive["config"]).decode())
        params = {k.removeprefix("params/").removeprefix("inner."): archive[k] for k in archive.files
                  if k.startswith("params/")}
    if SYSTEMS[name] == "RSM":
        params["lm_head.weight"] = params["embed_tokens.embedding_weight"]  # as PyTorch saves a tied head
    return published, {PREFIXES[SYSTEMS[name]] + k: v for k, v in params.items()}


def told(published):
    """What is not in the weights."""
    return {k: published[k] for k in ("H_cycles", "L_cycles", "num_heads", "puzzle_emb_len", "seq_len",
                                      "forward_dtype") if k in published}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].tobytes() == b[name].tobytes(), name


def there_and_back(path, name, extras=None):
    """A golden file's weights -> file -> our parameters -> file -> the same, bit for bit."""
    published, theirs = golden(name)
    torch_files.write(path, theirs, extras)
    contents = torch_files.read(path)
    assert_same(contents.weights, theirs)
    found = published_systems.infer(contents.weights, told(published))
    ours = published_names.from_published(contents.weights, found.arch, found.shape)
    back = published_names.state_dict(*ours, found.arch, prefix=published_names.prefix_of(found.arch))
    torch_files.write(path, back, extras)
    again = torch_files.read(path)
    assert_same(again.weights, theirs)
    tiny.assert_identical(published_names.from_published(again.weights, found.arch, found.shape), ours)
    return again


# Round trips.


@pytest.mark.parametrize("name", SYSTEMS)
def test_round_trip_through_safetensors(name, tmp_path):
    there_and_back(tmp_path / "w.safetensors", name)


@pytest.mark.parametrize("name", SYSTEMS)
def test_round_trip_through_pytorch(name, tmp_path):
    pytest.importorskip("torch")
    there_and_back(tmp_path / "step_7", name)
    assert there_and_back(tmp_path / "ckpt.pth", name, {"step": 7}).extras == {"step": 7}


@pytest.mark.parametrize("name", SYSTEMS)
def test_pytorch_containers(name):
    """What torch.load gives, with arrays for tensors: a plain state dict, or RSM's dict around one."""
    _, theirs = golden(name)

    def unwrap(loaded):
        return torch_files.unwrap("file", loaded, lambda v: isinstance(v, np.ndarray), np.asarray)
    assert_same(unwrap(theirs).weights, theirs)
    wrapped = unwrap({"model_state": theirs, "optimizer_states": [{}], "step": 7})
    assert_same(wrapped.weights, theirs)
    assert wrapped.extras == {"optimizer_states": [{}], "step": 7}
    with pytest.raises(FileError, match="file is not a state dict: no tensors under step"):
        unwrap({**theirs, "step": 7})
    with pytest.raises(FileError, match="holds a list, not a state dict"):
        unwrap([theirs])


def test_starts_in_16_bits_stay_exact(tmp_path):
    """The published code keeps H_init and L_init in bfloat16; ours widen them, and the file has them as they were."""
    published, theirs = golden("trm_mlp")
    for start in ("_orig_mod.model.inner.H_init", "_orig_mod.model.inner.L_init"):
        theirs[start] = theirs[start].astype(ml_dtypes.bfloat16)
    torch_files.write(tmp_path / "w.safetensors", theirs)
    read = torch_files.read(tmp_path / "w.safetensors").weights
    found = published_systems.infer(read, told(published) | {"forward_dtype": "bfloat16"})
    ours = published_names.from_published(read, found.arch, found.shape)
    assert ours[1]["H_init"].dtype == np.float32
    assert_same(published_names.state_dict(*ours, found.arch, prefix="_orig_mod.model.inner."), theirs)


# What a file is taken for.


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_config_is_inferred(name):
    published, theirs = golden(name)
    found = published_systems.infer(theirs, told(published))
    arch = {"expansion": published["expansion"], **{k: published[k] for k in (
        "hidden_size", "L_layers", "puzzle_emb_ndim", "pos_encodings", "mlp_t") if k in published}}
    if SYSTEMS[name] == "RSM":
        arch |= {"supervision": "terminal", "tie_head": True, "halting_head": False, "mixer_norm_axis": "feature"}
    else:
        arch |= {k: v for k, v in (DEEP | MODULES[published["module"]]).items() if k != "halt_exploration_prob"}
        arch["mixer_norm_axis"] = "token" if published.get("mlp_t") else "feature"
    assert found.system == SYSTEMS[name]
    assert {k: getattr(found.arch, k) for k in arch} == arch
    assert found.shape == Shape(published["seq_len"], published["vocab_size"], published["num_puzzle_identifiers"])


def test_the_grid_of_mlp_t_comes_from_its_width():
    published, theirs = golden("trm_mlp")
    found = published_systems.infer(theirs, {"puzzle_emb_len": 3, "num_heads": 2})
    assert found.shape.seq_len == 9 and found.origins["seq_len"] == "the weights"
    found = published_systems.infer(theirs, {"seq_len": 9, "num_heads": 2})
    assert found.arch.puzzle_emb_len == 3 and found.origins["puzzle_emb_len"] == "an option"
    with pytest.raises(PretrainedError, match="vocabulary 11, sequence 12, prefix 16.*give seq_len"):
        published_systems.infer(theirs, {})


@pytest.mark.parametrize("file", ["rsm_sudoku", "trm_mlp_sudoku", "trm_att_sudoku", "hrm_sudoku", "direct_sudoku",
                                  "eqr_sudoku", "fprm_sudoku"])
def test_published_experiments_are_recognised(file):
    """At full size, without a hint: everything that the network is, and the grid."""
    e = config.parse(config.from_file(f"experiments/{file}.py"))
    shape = Shape(81, 11, 1)
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),
                          jax.eval_shape(Model(e.arch, shape).init, jax.random.key(0)))
    theirs = published_names.state_dict(*hollow, e.arch)
    if not e.arch.tie_head:
        theirs["lm_head.weight"] = theirs["lm_head.weight"] + 1  # not the embedding
    found = published_systems.infer(theirs)
    assert found.shape == shape
    names = ["recursion", "H_layers", "L_layers", "hidden_size", "num_heads", "mlp_hidden_size", "mixer_hidden_size",
             "mlp_t", "pos_encodings", "mixer_norm_axis", "puzzle_emb_ndim", "puzzle_emb_len", "tie_head",
             "halting_head", "forward_dtype", "supervision", "no_ACT_continue", "H_cycles", "L_cycles", "grad_calls",
             "start", "start_std", "update", "update_noise", "update_noise_test", "block", "conv", "output_norm",
             "halt_by", "halt_max_steps", "halt_exploration_prob", "grad_cycles"]
    if file == "direct_sudoku":
        names = [name for name in names if not name.startswith("halt_")]  # one step, which weights do not tell
    want = {name: getattr(e.arch, name) for name in names}
    if file == "rsm_sudoku":  # as its curriculum ends
        want |= {"H_cycles": 2 + sum(e.curriculum_heads_to_add), "L_cycles": 2 + sum(e.curriculum_L_to_add)}
    assert {name: getattr(found.arch, name) for name in names} == want


def test_saved_configs_are_believed_but_options_more(tmp_path):
    published, theirs = golden("trm_att")
    arch = {"num_heads": 4, "H_cycles": 5, "L_cycles": 4, "puzzle_emb_len": 3, "name": "x", "loss": {"name": "y"}}
    (tmp_path / "all_config.yaml").write_text(json.dumps({"arch": arch, "lr": 1e-4}))  # JSON is YAML
    saved = published_systems.saved_config(tmp_path / "step_1", {})
    found = published_systems.infer(theirs, {"num_heads": 2}, saved)
    assert (found.arch.num_heads, found.arch.H_cycles, found.arch.L_cycles) == (2, 5, 4)
    assert (found.origins["num_heads"], found.origins["H_cycles"]) == ("an option", "the saved config")
    rsm = published_systems.saved_config("elsewhere/x", {"config": {"arch": arch}, "active_H": 8, "active_L": 12})
    assert (rsm["H_cycles"], rsm["L_cycles"]) == (8, 12)
    (tmp_path / "all_config.yaml").write_text("arch: !!python/object/apply:os.system ['true']")
    with pytest.raises(PretrainedError, match="all_config.yaml cannot be read"):
        published_systems.saved_config(tmp_path / "step_1", {})


# What does not fit.


def test_every_weight_that_does_not_fit_is_named():
    published, theirs = golden("hrm")
    bare = published_names.strip_prefixes(theirs)
    found = published_systems.infer(theirs, told(published))
    bare["extra.weight"] = bare.pop("q_head.bias")
    bare["H_init"] = bare["H_init"][:-1]
    bare["lm_head.weight"] = bare["lm_head.weight"].astype(np.int32)
    del bare["H_level.layers.1.mlp.down_proj.weight"]
    with pytest.raises(PretrainedError) as caught:
        published_names.from_published(bare, found.arch, found.shape)
    for line in ("only in the file: extra.weight float32[2]", "only in the model: q_head.bias [2]",
                 "differs: H_init is float32[15] in the file, [16] in the model",
                 "differs: lm_head.weight is int32[11, 16] in the file, must be floating-point",
                 "only in the model: H_level.layers.1.mlp.down_proj.weight [16, 256]"):
        assert line in str(caught.value).split("\n  ")
    assert len(str(caught.value).splitlines()) == 6


def test_a_tied_head_must_be_the_embedding():
    published, theirs = golden("rsm_mlp")
    found = published_systems.infer(theirs, told(published))
    assert found.arch.tie_head
    theirs["model.lm_head.weight"] = theirs["model.lm_head.weight"] + 1
    assert not published_systems.infer(theirs, told(published)).arch.tie_head
    with pytest.raises(PretrainedError, match="lm_head.weight is not the token embedding"):
        published_names.from_published(theirs, found.arch, found.shape)


def test_foreign_weights_are_refused():
    with pytest.raises(PretrainedError, match="not weights of HRM, TRM or RSM.*there are conv1.weight"):
        published_systems.infer({"conv1.weight": np.zeros((2, 2))})
    with pytest.raises(PretrainedError, match="twice, under several prefixes: , model."):
        published_names.strip_prefixes({"a": np.zeros(1), "model.a": np.zeros(1)})
    _, theirs = golden("trm_att")
    with pytest.raises(config.ConfigError, match="arch.num_heads = 3: must divide"):
        published_systems.infer(theirs, {"num_heads": 3})


class Evil:
    def __reduce__(self):
        return print, ("run by a file",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_files_that_want_to_run_code_are_refused_in_one_line(tmp_path, protocol, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"model_state": Evil()}, tmp_path / "new", pickle_protocol=protocol)
    torch.save(Evil(), tmp_path / "old", pickle_protocol=2, _use_new_zipfile_serialization=False)
    for name in ("new", "old"):
        assert pub.main(["show", str(tmp_path / name)]) == 2
        out, error = capsys.readouterr()
        assert "run by a file" not in out + error
        assert error.count("\n") == 1 and "and is refused: only tensors and plain values are read" in error
        assert "wants to run" in error or protocol == 4 and name == "new", "which torch does not read at all"
    (tmp_path / "cut").write_bytes((tmp_path / "new").read_bytes()[:300])
    (tmp_path / "pickle").write_bytes(pickle.dumps(Evil(), protocol))
    (tmp_path / "text").write_text("no weights")
    for name in ("cut", "pickle", "text"):
        assert pub.main(["show", str(tmp_path / name)]) == 2
        out, error = capsys.readouterr()
        assert "run by a file" not in out + error and error.count("\n") == 1


def test_without_torch_its_files_are_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "step_1").write_bytes(pickle.dumps(Evil()))
    assert pub.main(["show", str(tmp_path / "step_1")]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "pip install 'trm_jax[torch]'" in error


# The command.


@pytest.fixture(scope="module")
def sudoku():
    """A network of TRM's for 4x4 Sudoku, and the same with H_init and L_init as our runs have them."""
    arch = {"hidden_size": 16, "num_heads": 2, "L_layers": 2, "mlp_t": False, "pos_encodings": "rope",
            "tie_head": False, "halting_head": True, "supervision": "deep", "prob_detach_prev_H": 1.0,
            "puzzle_emb_ndim": 16, "puzzle_emb_len": 16, "H_cycles": 3, "L_cycles": 6, "forward_dtype": "float32"}
    e = config.parse({"arch": arch})
    shape = Shape(16, 6, 1)
    made = jax.jit(Model(e.arch, shape).init)(jax.random.key(0))
    return weights_file.Export(e, shape, {"name": "sudoku", "box_rows": 2, "box_cols": 2}, Weights(*made), {
        "parameters": "EMA", "step": 3, "total_steps": 9, "L": 6, "evaluation": None, "dtype": "float32",
        "versions": {}})


def test_what_is_exported_has_the_dtype_that_the_published_code_computes_in(sudoku):
    arch = dataclasses.replace(sudoku.experiment.arch, forward_dtype="bfloat16")
    made = published_names.state_dict(*sudoku.weights, arch)
    assert {name: str(made[name].dtype) for name in ("H_init", "L_init", "lm_head.weight")} == {
        "H_init": "bfloat16", "L_init": "bfloat16", "lm_head.weight": "float32"}


def test_a_config_beside_the_file_must_say_what_the_experiment_says(tmp_path, sudoku, capsys):
    ours, theirs = (str(tmp_path / f"{name}.safetensors") for name in ("ours", "step_3"))
    weights_file.save(ours, sudoku, "float32")
    assert pub.main(["export", ours, "--out", theirs]) == 0
    e = sudoku.experiment
    other = dataclasses.replace(e, arch=dataclasses.replace(e.arch, H_cycles=2))
    with pytest.raises(PretrainedError, match="contradicts --config: H_cycles is 3 there, 2 in the experiment"):
        pub.load(theirs, other, seq_len=16)
    assert pub.load(theirs, other, seq_len=16, H_cycles=2)[0].experiment.arch.H_cycles == 2
    assert pub.load(theirs, e, seq_len=16)[0].experiment == e
    with pytest.raises(PretrainedError, match="puzzle_emb_len is 16 there, 1 in the experiment.*--set arch.puzz"):
        pub.load(theirs, dataclasses.replace(e, arch=dataclasses.replace(e.arch, puzzle_emb_len=1)), seq_len=16)
    made = pub.load(theirs, other, {"arch.H_cycles": 2, "lr": 0.25}, seq_len=16)[0].experiment
    assert (made.arch.H_cycles, made.lr) == (2, 0.25), "fields have the last word"
    capsys.readouterr()


def test_how_weights_were_trained_is_what_their_config_says_else_their_recipe(tmp_path, sudoku, capsys):
    theirs, ours = str(tmp_path / "step_3.safetensors"), str(tmp_path / "ours.safetensors")
    torch_files.write(theirs, published_names.state_dict(*sudoku.weights, sudoku.experiment.arch))
    known = ["--seq_len=16", "--puzzle=sudoku", "--num_heads=2"]
    assert pub.main(["import", theirs, "--out", ours, *known, "--set", "lr=0.125"]) == 0
    e = weights_file.load(ours).experiment
    assert (e.lr, e.beta2, e.global_batch_size, e.epochs, e.ema) == (0.125, 0.95, 768, 50_000, True), "TRM's, not RSM's"
    warning = capsys.readouterr().err
    assert "warning: " in warning and "H_cycles (taken: 3, set by --H_cycles), L_cycles (taken: 6" in warning
    assert "num_heads" not in warning and warning.count("\n") == 1

    arch = {"num_heads": 2, "H_cycles": 3, "L_cycles": 6, "puzzle_emb_len": 16, "forward_dtype": "float32",
            "halt_exploration_prob": 0.25, "loss": {"name": "x", "loss_type": "softmax_cross_entropy"}}
    saved = {"arch": arch, "lr": 0.5, "beta1": 0.75, "global_batch_size": 7, "epochs": 11, "ema": False, "seed": 5,
             "data_paths": ["x"], "project_name": "y"}
    (tmp_path / "all_config.yaml").write_text(json.dumps(saved))  # JSON is YAML
    for experiment in (None, sudoku.experiment):
        e = pub.load(theirs, experiment, seq_len=16, **({} if experiment else {"puzzle": "sudoku"}))[0].experiment
        assert (e.lr, e.beta1, e.global_batch_size, e.epochs, e.ema, e.seed) == (0.5, 0.75, 7, 11, False, 5)
        assert e.arch.loss.loss_type == "softmax_cross_entropy"
    assert pub.main(["import", theirs, "--out", ours, "--seq_len=16", "--puzzle=sudoku"]) == 0
    assert "warning" not in capsys.readouterr().err, "all of it is known"
    (tmp_path / "all_config.yaml").write_text(json.dumps(saved | {"lr": "fast"}))
    assert pub.main(["import", theirs, "--out", ours, "--seq_len=16", "--puzzle=sudoku"]) == 2
    assert "lr = 'fast': must be of type float" in capsys.readouterr().err


def test_from_ours_to_theirs_and_back_on_the_command_line(tmp_path, sudoku, capsys):
    ours, theirs, again = (str(tmp_path / f"{name}.safetensors") for name in ("ours", "step_3", "again"))
    weights_file.save(ours, sudoku, "float32")
    assert pub.main(["export", ours, "--out", theirs]) == 0
    assert "'_orig_mod.model.inner.'" in capsys.readouterr().out
    assert "_orig_mod.model.inner.L_level.layers.1.mlp.down_proj.weight" in safetensors.numpy.load_file(theirs)

    known = ["--seq_len=16"]
    assert pub.main(["show", theirs, *known, "--num_heads=4"]) == 0
    out = capsys.readouterr().out
    assert "taken for TRM" in out and "an option:            num_heads 4, seq_len 16" in out
    assert "the saved config:     H_cycles 3" in out, "an export tells what weights do not"
    assert pub.main(["import", theirs, "--out", again, *known]) == 2
    assert "give puzzle" in capsys.readouterr().err, "mazes of 4x4 have as many cells and tokens"
    assert pub.main(["import", theirs, "--out", again, *known, "--puzzle=sudoku"]) == 0
    loaded = weights_file.load(again)
    tiny.assert_identical(loaded.weights, sudoku.weights)
    assert loaded.experiment.arch == sudoku.experiment.arch and loaded.puzzle == sudoku.puzzle
    assert (loaded.metadata["step"], loaded.metadata["L"]) == (3, 6)
    answers = [solver.Solver.load(path).solve(["1..." + 12 * "."], max_cycles=2)[0].text for path in (ours, again)]
    assert answers[0] == answers[1] != ""

    tied = {"tie_head": True, "mlp_norm_axis": "token"}
    arch = dataclasses.replace(sudoku.experiment.arch, **tied)
    assert published_names.deviations(sudoku.experiment.arch) == []
    assert published_names.deviations(arch) == ["arch.mlp_norm_axis = 'token'", "arch.tie_head = True"]
    by_row_and_column = dataclasses.replace(sudoku.experiment.arch, rope_columns=4)
    assert published_names.deviations(by_row_and_column) == ["arch.rope_columns = 4"]
    assert pub.main(["export", ours, "--out", theirs, "--prefix", ""]) == 0
    assert "L_init" in safetensors.numpy.load_file(theirs)
    assert pub.main(["import", again, "--out", ours]) == 2
    assert "is a file of trm_jax.weights already" in capsys.readouterr().err


def test_with_a_config_all_is_the_experiments(tmp_path, sudoku, capsys):
    data = tiny.make_dataset(tmp_path / "data")
    raw = config.to_json(sudoku.experiment) | {"lr": 0.5, "curriculum_L_milestones": [], "data": {"path": str(data)}}
    (tmp_path / "x.py").write_text(
        "from trm_jax import config\n"
        "def get_config(variant=''):\n"
        "    if variant: raise ValueError('x has no variant')\n"
        f"    return config.to_config_dict(config.parse({raw!r}))\n")
    theirs, ours = str(tmp_path / "w.safetensors"), str(tmp_path / "ours.safetensors")
    torch_files.write(theirs, published_names.state_dict(*sudoku.weights, sudoku.experiment.arch))
    assert pub.main(["import", theirs, "--out", ours, f"--config={tmp_path / 'x.py'}"]) == 0
    loaded = weights_file.load(ours)
    tiny.assert_identical(loaded.weights, sudoku.weights)
    assert loaded.experiment == config.parse(raw) and loaded.metadata["source"]["file"] == theirs
    result = evaluate.evaluate_file(config.parse(raw), tmp_path / "run", ours, lambda _: None)
    assert result["parameters"] == "published"
    assert pub.main(["import", theirs, "--out", ours, f"--config={tmp_path / 'x.py'}", "--L_cycles=2"]) == 0
    assert weights_file.load(ours).metadata["L"] == 2
    capsys.readouterr()
    assert pub.main(["import", theirs, "--out", ours, f"--config={tmp_path / 'x.py'}:fast"]) == 2
    assert "x has no variant" in capsys.readouterr().err
