"""The commands: one table, one page of help, and the names under which they were known before."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trm_jax import __main__ as door

ROOT = Path(__file__).resolve().parents[1]


def test_help_fits_on_a_screen_and_names_every_command(capsys):
    assert door.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= 80
    shown = [found[1] for line in lines if (found := re.match(r"  (\w+)  +", line))]
    assert sorted(shown) == sorted(door.COMMANDS)


@pytest.mark.parametrize("name", door.COMMANDS)
def test_every_command_has_a_help_that_names_it(name, capsys):
    with pytest.raises(SystemExit) if name != "bench" else open(os.devnull):
        door.main([name, "--help"])
    assert re.search(rf"python -m trm_jax[ .]{name}", capsys.readouterr().out)


@pytest.mark.parametrize("argv, says", [
    ([], "train and evaluate"), (["slove"], "did you mean solve?"), (["\x1b[31m"], "'\\x1b[31m'"), ([""], "solve")])
def test_what_is_no_command(argv, says, capsys):
    assert door.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and "\x1b" not in err


@pytest.mark.parametrize("module", ["solve", "watch", "report", "pictures", "compare", "scaling", "bench", "data",
                                    "weights", "bench_inference", "models.pretrained"])
def test_names_of_old_are_found(module):
    found = importlib.util.find_spec(f"trm_jax.{module}")
    assert found is not None and (found.submodule_search_locations is None
                                  or importlib.util.find_spec(f"trm_jax.{module}.__main__"))


def test_a_name_of_old_runs_the_command():
    done = subprocess.run([sys.executable, "-m", "trm_jax.report", "--at=x", "run"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == ("error: argument --at: 'x' must be a whole number of at least 1; see "
                           "python -m trm_jax report --help\n")


def test_the_public_names_are_imported_when_they_are_asked_for():
    code = ("import sys, trm_jax; assert 'jax' not in sys.modules; "
            "print(*[getattr(trm_jax, name).__name__ for name in trm_jax.__all__])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["Answer", "Settings", "Solver", "evaluate", "load", "train"], done.stderr


def test_usage_errors_do_not_wait_for_jax():
    code = ("import sys; from trm_jax.__main__ import main\n"
            "try: main(['train', '--config=rsm_sudoku', '--nonsense'])\n"
            "except SystemExit: print('jax' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
