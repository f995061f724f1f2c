"""The command that trains: what it makes by itself, and what it refuses, by name and with 2."""

import shlex
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from tests import tiny
from trm_jax import config, main
from trm_jax.data import making
from trm_jax.data.loading import Dataset
from trm_jax.training import run_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_dataset(tmp_path_factory.mktemp("data") / "d")


def flags(folder, e, workdir, *more) -> list[str]:
    return [f"--config={tiny.config_file(folder, e)}", f"--workdir={workdir}", "--compilation_cache=", *more]


@pytest.fixture
def cli(tmp_path, capsys):
    """Runs main with a config and flags in this process; it must exit with 2. Returns what it said."""
    def run(e, *more, workdir="run"):
        assert main.main(flags(tmp_path, e, tmp_path / workdir, *more)) == 2
        return capsys.readouterr().err.removesuffix("\n")
    return run


def test_batch_that_the_devices_cannot_share(data, tmp_path):
    e = tiny.experiment(data, global_batch_size=12)
    done = subprocess.run([sys.executable, "-m", "trm_jax.main", *flags(tmp_path, e, tmp_path / "run")],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == ("error: global_batch_size=12 must be a multiple of the number of devices, 8; "
                           "the nearest that work: 8 and 16\n")
    assert not (tmp_path / "run").exists()


def test_workdir_of_another_config(data, cli, tmp_path):
    run_folder.claim(tmp_path / "run", config.to_json(tiny.experiment(data)))
    message = cli(tiny.experiment(data, lr=0.5, arch={"hidden_size": 12}))
    assert message.startswith("error: ") and "belongs to a run with another config" in message
    assert "lr: the run has 0.01, now 0.5" in message and "arch.hidden_size: the run has 8, now 12" in message
    assert len(message.splitlines()) == 4


def test_missing_dataset(data, cli):
    e = tiny.experiment("nowhere/data", data={"make": {"source": "hub"}})
    says = ("error: there is no dataset folder nowhere/data; make it with: "
            "python -m trm_jax data sudoku --hub --out nowhere/data")
    assert cli(e, "--make_data=False") == says
    assert cli(tiny.experiment("nowhere/data")) == says.replace("--hub --out nowhere/data", "--help")


@pytest.mark.parametrize("puzzle", ["sudoku", "maze"])
def test_without_a_network_the_error_tells_three_commands_that_go_on(puzzle, cli, tmp_path, monkeypatch):
    def offline(*_args, **_how):
        raise ConnectionError("no route\nsecond line")
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=offline))
    monkeypatch.chdir(tmp_path)
    size = {"sudoku": {"box": [2, 2]}, "maze": {"size": [4, 4]}}[puzzle]
    e = tiny.experiment("data/official", data={"puzzle": puzzle, "make": {"source": "hub", "train": 24, "test": 4,
                                                                          **size}})
    text = cli(e)
    assert f"dataset sapientinc/{puzzle}" in text and "(ConnectionError: no route)" in text and "second" not in text
    again, own, stand_in = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    assert shlex.split(again)[:3] == ["python", "-m", "trm_jax.main"] and own.startswith(again)
    for line in (own, stand_in):  # each goes on until it lacks the files that it names, or the puzzles
        words = shlex.split(line)[3:]
        asked = config.load(words[0].removeprefix("--config="), main.split_fields(words)[1])
        assert asked.data.path != "data/official" and asked.data.make.train == 24
    making.ensure(asked.data)
    assert Dataset.load(asked).train.num_groups == 24


def test_a_missing_dataset_is_made_and_the_folder_of_the_run_has_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    e = tiny.experiment("data/mine", data={"make": {"source": "generate", "box": [2, 2], "clues": 8, "train": 40,
                                                    "test": 8}}, total_steps=2)
    with jax.numpy_dtype_promotion("standard"):
        assert main.main([f"--config={tiny.config_file(tmp_path, e)}", "--compilation_cache="]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "run folder: runs/config_file (--workdir says another)"
    assert said[1].endswith("making it, as does: python -m trm_jax data sudoku --generate --train 40 --test 8 "
                            "--box 2x2 --clues 8 --out data/mine")
    assert Dataset.load(e).train.num_groups == 40 and (tmp_path / "runs/config_file/checkpoints/2").is_dir()


def test_batch_larger_than_the_dataset(data, cli):
    message = cli(tiny.experiment(data, global_batch_size=128))
    assert message.startswith("error: the training set has 64 groups") and len(message.splitlines()) == 1


def test_a_folder_that_cannot_be_made(data, tmp_path, cli):
    (tmp_path / "file").write_text("")
    message = cli(tiny.experiment(data), workdir="file/run")
    assert message.startswith("error: ") and str(tmp_path / "file") in message and len(message.splitlines()) == 1


@pytest.mark.parametrize("given, says", [
    (["--config=nowhere.py"], "'nowhere.py' is not there. Give the path of one, or one of: "),
    (["--config=README.md"], "is no experiment file: its name must end in .py"),
    (["--config=tests/tiny.py"], "tests/tiny.py is no experiment file: it does not define get_config"),
    (["--config=rsm_sudoku:quik"], "has no variant 'quik'; there are 1k, steady"),
    (["--config=rsm_sudoku", "--config.arch.hidden_siz=3"], "arch.hidden_siz: unknown field; did you mean arch.hidden"),
    (["--config=rsm_sudoku", "--config.nonsense", "3"], "nonsense: unknown field"),
    (["--config=rsm_sudoku", "--config.lr.x=3"], "lr.x: lr is a field of the config, not a section"),
    (["--config=rsm_sudoku", "--config.total_steps=99999999999999999999"], "total_steps = 99999999999999999999: must"),
    (["--config=rsm_sudoku", "--config.total_steps=3000000000"], "total_steps = 3000000000: must be under 2**31"),
    (["--config=rsm_sudoku", "--config.lr=nan"], "lr = 'nan': must be of type float"),
    (["--config=rsm_sudoku", "--config.eval.H_test=4,x"], "eval.H_test = ('4', 'x'): every item must be of type int"),
    (["--config=rsm_sudoku", "--weights=x"], "--weights is for evaluating"),
    (["--config=rsm_sudoku", "--steps=3"], "unrecognized arguments: --steps=3"),
    (["--config=rsm_sudoku", "--mode=bake"], "invalid choice: 'bake'"),
    (["--mode=describe"], "the following arguments are required: --config")])
def test_mistyped_commands(given, says, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    mode = [] if any(word.startswith(("--mode", "--weights")) for word in given) else ["--mode=describe"]
    try:
        status = main.main([*given, *mode])
    except SystemExit as stopped:
        status = stopped.code
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.startswith("error: ") and says in err


def test_fields_are_written_in_every_usual_way(tmp_path):
    words = ["--config=rsm_sudoku", "--config.lr", "0.5", "--config.data.augment", "--noconfig.ema", "--workdir=w",
             "--config.eval.H_test=16,64", "--config.eval.L_test=(8,)", "--config.data.path=7",
             "--config.arch.remat=false"]
    left, fields = main.split_fields(words)
    assert left == ["--config=rsm_sudoku", "--workdir=w"]
    e = config.load("rsm_sudoku", fields)
    assert (e.lr, e.data.augment, e.ema, e.arch.remat, e.data.path) == (0.5, True, False, False, "7")
    assert (e.eval.H_test, e.eval.L_test) == ((16, 64), (8,))
    assert config.load("experiments/rsm_sudoku.py", ["eval.H_test=16"]).eval.H_test == (16,)


def test_too_few_epochs_for_a_step(data, cli):
    assert "make no step" in cli(tiny.experiment(data, total_steps=0, epochs=1, global_batch_size=128))


def test_evaluating_an_untrained_workdir(data, cli):
    message = cli(tiny.experiment(data), "--mode=evaluate")
    assert message.startswith("error: ") and len(message.splitlines()) == 1


def test_impossible_config_from_the_command_line(data, cli):
    message = cli(tiny.experiment(data), "--config.arch.H_cycles=0", "--config.arch.prob_detach_prev_H=90.0")
    assert "arch.H_cycles = 0: must be at least 2" in message and "not percent" in message
