"""Our numbers against those of the published PyTorch code (tests/golden), and the command that compares them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden import __main__ as command
from tests.golden.check import FOLDER, TOLERANCE, compare

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(FOLDER.glob("*.npz"))


def test_the_files_are_there():
    assert {"optim.npz", "rsm_att.npz", "rsm_mlp.npz"} <= {path.name for path in FILES}


@pytest.mark.smoke
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_is_the_published_one(path):
    differences = compare(path)
    assert [d for d in differences if not d.ok] == []
    kinds = {d.kind for d in differences}
    if path.stem != "optim":
        assert {"logits", "loss", "gradients"} <= kinds
        # Up to five outer cycles nothing hides behind the noise.
        assert all(d.relative <= TOLERANCE for d in differences if d.name in ("eval/H1/logits", "eval/H2/logits"))
    else:
        assert kinds == {"adam_atan2", "sign_sgd"}


@pytest.mark.parametrize("name, change", [
    ("optim", ("adam_atan2/param/2", 1e-3)), ("optim", ("sign_sgd/weights/1", 1e-3)),
    ("rsm_att", ("train/stablemax_cross_entropy/one_step/loss", 1e-3)),
], ids=str)
def test_a_wrong_number_is_a_fault(tmp_path, capsys, name, change):
    key, by = change
    with np.load(FOLDER / f"{name}.npz") as archive:
        data = {k: archive[k] for k in archive.files}
    assert key in data
    data[key] = data[key] * np.float32(1 + by)
    path = tmp_path / "altered.npz"
    np.savez(path, **data)
    assert command.main([str(path)]) == 1
    err = capsys.readouterr().err
    assert "FAULT" in err and key in err and len(err.splitlines()) == 2


def write_text(path):
    path.write_text("no archive")


def write_empty(path):
    path.write_bytes(b"")


def write_cut(path):
    whole = (FOLDER / "optim.npz").read_bytes()
    path.write_bytes(whole[:len(whole) // 2])


def write_foreign(path):
    np.savez(path, something=np.zeros(3))


def write_other_model(path):
    np.savez(path, config=np.frombuffer(b'{"reference": "someone/else"}', np.uint8))


def write_nothing(path):
    pass


def write_without_a_number(path):
    with np.load(FOLDER / "optim.npz") as archive:
        np.savez(path, **{k: archive[k] for k in archive.files if k != "sign_sgd/hparams"})


@pytest.mark.parametrize("write", [write_text, write_empty, write_cut, write_foreign, write_other_model, write_nothing,
                                   write_without_a_number])
def test_what_is_no_golden_file_gives_one_line_and_exit_1(tmp_path, capsys, write):
    path = tmp_path / "given.npz"
    write(path)
    assert command.main([str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and str(path) in err


def test_a_bad_file_does_not_hide_the_next_one(tmp_path, capsys):
    write_text(tmp_path / "bad.npz")
    shutil.copy(FOLDER / "optim.npz", tmp_path / "good.npz")
    assert command.main([str(tmp_path / "bad.npz"), str(tmp_path / "good.npz")]) == 1
    assert "good.npz: ok" in capsys.readouterr().out


@pytest.mark.slow
def test_every_file_passes_with_64_bit_types_too():
    strict = {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise",
              "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiles in half the time
    done = subprocess.run([sys.executable, "-W", "error", "-m", "tests.golden", *map(str, FILES)], cwd=ROOT,
                          env=os.environ | strict, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == ["ok"] * len(FILES)
