"""Every command given bad values and bad files: one line that names the thing, exit 2, nothing written.

Seeded and in one process. `python -m pytest tests/test_fuzz.py --junitxml=FILE` writes how many tries there were.
"""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from trm_jax import __main__ as door

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ["", "nan", "inf", "-inf", "-1", "1e999", "²", "٣", "0x10", "1_0", "9" * 30, "9" * 5000, "--", "1;2",
           "\udcff", "\x1b[31m", "one", "None", "1 2", "-9223372036854775809"]
NAMES = ["", "a\0b"]
PUZZLE = "1" * 81
# Command -> arguments that are right but lack something at their end ({out}: a new place; {run}: no run), its options
# that are numbers, and those that are names of files or folders.
COMMANDS = {
    "train": (["--config=rsm_sudoku:quick", "--make_data=False"], ["make_data"], ["config", "workdir"]),
    "evaluate": (["--config=rsm_sudoku:quick", "--make_data=False"], ["make_data"], ["config", "workdir", "weights"]),
    "describe": (["--config=rsm_sudoku:quick"], ["make_data"], ["config"]),
    "pool": (["--config=trm_att_arc1:quick", "--make_data=False"], ["make_data"], ["config", "workdir"]),
    "solve": (["--weights=none", PUZZLE],
              ["max_cycles", "max_steps", "settle", "tries", "restarts", "sigma", "tolerance", "calls", "seconds",
               "seed", "example", "choose", "vary", "format"], ["weights", "workdir", "file"]),
    "serve": (["--weights=none"], ["max_cycles", "settle", "port", "tries", "seconds", "puzzles", "places", "body",
                                   "batch_size", "warm_up", "seed"], ["weights", "workdir"]),
    "watch": (["--weights=none", PUZZLE], ["max_cycles", "settle", "example"], ["weights", "workdir", "file", "out",
                                                                                "gif", "png"]),
    "plot accuracy": (["--out={out}.png", "none"], ["from_percent"], ["out"]),
    "plot solve": (["--out={out}.png", "--weights=none", "--example=1"], ["example", "max_cycles", "settle"],
                   ["out", "weights", "workdir"]),
    "report": (["none"], ["min_exact", "at", "max_drop", "between", "format"], []),
    "compare": (["--configs=rsm_sudoku:quick,rsm_sudoku:quick", "--minutes=1", "--out={out}"],
                ["minutes", "seeds", "evaluations", "calls", "examples", "examples_during"], ["configs", "out"]),
    "scaling": (["--weights=none", "--out={out}"], ["examples", "max_cycles", "H", "L", "tries", "settle", "sigma",
                                                    "batch_size", "seed", "from_percent", "vary"],
                ["weights", "workdir", "out", "data"]),
    "bench step": (["--config=none"], ["rows", "repeats"], ["config"]),
    "bench inference batching": (["--weights=none"], ["examples", "max_cycles", "settle", "batch_size", "fixed_batch"],
                                 ["weights", "data", "out"]),
    "bench inference speed": (["--weights=none"], ["batch_sizes", "seconds"], ["weights"]),
    "bench inference spend": (["--weights=none"], ["max_cycles", "tries", "vary", "sigma", "batch_size"], ["weights"]),
    "data sudoku": (["--csv=none", "--test_csv=none", "--out={out}"],
                    ["seed", "train", "test", "box", "clues", "blanks", "num_aug", "min_rating"],
                    ["csv", "test_csv", "out"]),
    "data maze": (["--csv=none", "--test_csv=none", "--out={out}"],
                  ["seed", "train", "test", "size", "min_length", "min_rating"], ["csv", "test_csv", "out"]),
    "data arc": (["--json_dir=none", "--subsets=a", "--test_subset=a", "--out={out}"], ["seed", "num_aug"],
                 ["json_dir", "subsets", "test_subset", "out", "prefix"]),
    "data bench": (["--data=none"], ["batch_size", "seconds", "puzzle"], ["data"]),
    "adapt": (["--weights=none", "--tasks=none"], ["steps", "seconds", "num_aug"], ["weights", "tasks", "config"]),
    "weights push": (["a/b", "--weights=none"], ["dtype"], ["weights", "workdir"]),
    "weights": (["--workdir=none", "--out={out}"], ["dtype"], ["workdir", "weights", "out"]),
    "published show": (["none"], ["num_heads", "H_cycles", "L_cycles", "puzzle_emb_len", "seq_len"], []),
    "published import": (["none", "--out={out}"], ["num_heads", "H_cycles", "seq_len", "dtype"], ["out", "config"]),
    "published export": (["none", "--out={out}"], [], ["out"]),
}
CONFIG = [  # FIELD=VALUE, refused everywhere
    "lr=nan", "lr=1e999", "lr=", "lr=-1", "seed=-1", f"seed={2**64}", "total_steps=9999999999999999999999", "seed=1.5",
    "a.b.x=1", "lr.x=1", "arch=3", "arch.hidden_size=", "arch.hidden_size=big", "eval.H_test=x", "eval.H_test=8,4",
    "eval.H_test=(", "arch.loss.loss_type=mse", "data.puzzle=\x1b[31m", "data.make.box=3", "data.make.train=-1", "=",
    "..",    "arch.=1", ".lr=1", "epochs=0", "nonsense", "data=1", "eval.sigma=-1", "arch.H_cycles=1e3", "\udcff=1"]


def bad_files(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    contents = {
        "empty": b"", "noise": rng.bytes(300), "zeros": bytes(64), "text.txt": b"hello\n", "page.md": b"# Title\n",
        "cut.json": b'{"figures": [{"H_te', "list.json": b"[1, 2]", "deep.json": b"[" * 100_000, "null.json": b"null",
        "numbers.json": b'{"figures": 3, "step": 1, "dataset": 2}', "latin.json": '"\xe9"'.encode("latin-1"),
        "figures.json": json.dumps({"figures": [{"H_test": "x", "L_test": None, "n": -1, "exact_accuracy": "a"}],
                                    "step": "s", "dataset": 3}).encode(),
        "surrogate.json": b'{"\\ud800": {"train": [{"input": [["\\udfff"]]}]}}',
        "pickle.safetensors": pickle.dumps({"a": np.ones(3)}), "pickle.pt": pickle.dumps([1, 2]),
        "huge.safetensors": struct.pack("<Q", 2**63) + b"{}", "cut.safetensors": struct.pack("<Q", 100) + b'{"a": ',
        "header.safetensors": struct.pack("<Q", 2) + b"{}", "list.safetensors": struct.pack("<Q", 2) + b"[]",
        "a.csv": b"source,question,answer,rating\na,b,c,d\n", "wrong.py": b"raise SystemExit(0)\n",
        "loops.py": b"def get_config():\n    raise KeyError('x')\n", "broken.py": b"def get_config(:\n",
        "none.py": b"def get_config():\n    return None\n"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    for name, content in (("run", b"[1]"), ("run2", b"{}"), ("run3", b'{"arch": {"hidden_size": "x"}}')):
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes(content)
    for name in ("compare.json", "results.json", "pace.json"):
        (folder / "folder" / name).write_bytes(b'{"minutes": ')
    return [*map(folder.joinpath, contents), folder / "folder", folder / "run", folder / "run2", folder / "run3",
            folder / "none", Path("/dev/null"), Path("/"), folder / ("x" * 300)]


class Tries:
    """Runs commands in an empty folder and looks at what they do."""

    def __init__(self, folder: Path, capsys):
        self.folder, self.capsys, self.count = folder, capsys, 0

    def refused(self, *argv: str, names: str = "") -> None:
        self.count += 1
        self.capsys.readouterr()
        before = sorted(self.folder.rglob("*"))
        try:
            status = door.main(list(argv))
        except SystemExit as stopped:
            status = stopped.code
        out, err = self.capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith(("reading ", "run folder: "))]
        assert status == 2, (argv, status, err)
        assert out == "", (argv, out)
        assert lines and lines[0].startswith("error: ") and len(lines[0]) < 2000, (argv, err)
        assert len(lines) == 1 or lines[0].endswith(":"), (argv, err)  # a list of faults has a line for each
        assert "Traceback" not in err and not any(c in err for c in "\x1b\0"), (argv, err)
        assert names in err, (argv, names, err)
        assert sorted(self.folder.rglob("*")) == before, (argv, "something was written")


@pytest.fixture
def tries(tmp_path, monkeypatch, capsys, record_property):
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    made = Tries(empty, capsys)
    yield made
    record_property("tries", made.count)


def filled(words: list[str], without: str = "") -> list[str]:
    return [word.replace("{out}", "new-place") for word in words if not word.startswith(f"--{without}=")]


def test_every_command_is_here():
    assert {name.split()[0] for name in COMMANDS} == set(door.COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_values(command, tries):
    base, numbers, names = COMMANDS[command]
    for option in numbers:
        for value in NUMBERS:
            tries.refused(*command.split(), *filled(base, option), f"--{option}={value}", names="argument --")
    for option in names:
        for value in NAMES:
            tries.refused(*command.split(), *filled(base, option), f"--{option}={value}", names=option)
    for stray in ("--nonsense=1", "--\x1b[31m", "-x"):
        tries.refused(*command.split(), stray, *filled(base))


# What a run's commands look at after the dataset, which is not there, is left out.
LATER = {(command, name) for command in ("train", "evaluate", "pool") for name in ("workdir", "weights")}


@pytest.mark.parametrize("command, option", sorted({
    (command, name) for command, (_, _, names) in COMMANDS.items() for name in [*names, ""]
    if name not in ("out", "gif", "png", "subsets", "test_subset", "prefix", "configs")
    and not (name == "" and "none" not in COMMANDS[command][0])} - LATER))
def test_bad_files(command, option, tries, tmp_path):
    """In place of every file, folder or experiment that a command reads."""
    base = COMMANDS[command][0]
    for file in bad_files(tmp_path):
        words = ([word.replace("none", str(file)) if word == "none" else word for word in filled(base)] if option == ""
                 else [*filled(base, {"workdir": "weights", "weights": "workdir"}.get(option, option)),
                       f"--{option}={file}"])
        words = [word for word in words if not (option in ("weights", "workdir") and word == "--weights=none")]
        tries.refused(*command.split(), *words)


@pytest.mark.parametrize("command, option", [("train", "config."), ("describe", "config."), ("bench step", "set"),
                                             ("compare", "set")])
def test_bad_fields(command, option, tries):
    base = ["--config=rsm_sudoku:quick"] if command == "bench step" else filled(COMMANDS[command][0])
    for field in CONFIG:
        given = f"--config.{field}" if option == "config." else f"--set={field}"
        if "\udcff" in field and command == "describe":
            continue
        tries.refused(*command.split(), *base, given)


def test_bad_puzzles(tries, tmp_path):
    """What is not JSON, text or a grid gives no answers, and no traceback."""
    for file in bad_files(tmp_path):
        if file.suffix in (".json", ".txt", ".csv"):
            tries.capsys.readouterr()
            status = door.main(["solve", f"--file={file}", "--compilation_cache=", "--max_cycles=1"])
            err = tries.capsys.readouterr().err
            assert status in (1, 2) and "Traceback" not in err, (file, err)


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "a\nb", "../a", "|||", "a" * 5000])
def test_bad_names_of_tasks(tries, tmp_path, name):
    grid = [[0, 1], [1, 0]]
    pairs = [{"input": grid, "output": grid}]
    (tmp_path / "arc-agi_a_challenges.json").write_text(json.dumps({name: {"train": pairs, "test": pairs}}))
    (tmp_path / "arc-agi_a_solutions.json").write_text(json.dumps({name: [grid]}))
    words = ["data", "arc", f"--json_dir={tmp_path}", "--subsets=a", "--test_subset=a", "--num_aug=0", "--out=new"]
    if name in ("../a", "a" * 5000):  # strange, and nothing is wrong with it
        assert door.main(words) == 0
    else:
        tries.refused(*words, names="task")


def test_a_folder_of_a_comparison_that_was_cut(tries, tmp_path):
    data = tiny.make_dataset(tmp_path / "data", train=8, test=2)
    (tries.folder / "out").mkdir()
    (tries.folder / "out" / "compare.json").write_text('{"minutes": 1.0, "eva')
    tries.refused("compare", "--configs=rsm_sudoku:quick_att", "--minutes=1", "--out=out", f"--set=data.path={data}",
                  names="compare.json")
