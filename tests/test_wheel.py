"""The wheel is the whole product: built and installed into an environment of its own, run from an empty folder."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PUZZLE = "6.1..4.2883...2....5.1834..1832..57....917863......2.471.42..3..4.361..73..87..4."
NOBODY = 65534
# Another user, who may read everything (the Python that runs the tests may lie in somebody's home) and write nothing.
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=+dac_read_search",
             "--ambient-caps=+dac_read_search"]
SHORT = ["--config=rsm_sudoku:quick", "--config.total_steps=3", "--config.curriculum_L_milestones=",
         "--config.curriculum_L_to_add=", "--config.curriculum_milestones=", "--config.curriculum_heads_to_add=",
         "--config.eval.H_test=2", "--config.eval.restarts=0", "--config.eval.max_examples=8",
         "--config.eval.batch_size=8", "--config.data.make.train=64", "--config.data.make.test=8"]


@pytest.fixture(scope="module")
def folder():
    """Readable by everybody, which pytest's are not."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="trm-jax-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def wheel(folder):
    source = folder / "source"  # setuptools leaves its own files beside what it builds
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "data", "build", "*.egg-info", "tests",
                                                                "results", "__pycache__"))
    shutil.copytree(ROOT / "trm_jax" / "data", source / "trm_jax" / "data", dirs_exist_ok=True)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(folder, wheel):
    """The bin folder of an environment with the wheel, which borrows what the wheel depends on."""
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    [packages] = (folder / "env" / "lib").glob("python*/site-packages")
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


def pip(*words):
    done = subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)],
                          capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr


def environment() -> dict[str, str]:
    """Without the folder of this clone on Python's path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(installed, cwd, *words, before=(), **variables):
    return subprocess.run([*before, installed / "trm-jax", *words], cwd=cwd, capture_output=True, text=True,
                          env=environment() | variables)


def test_everything_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [p.relative_to(ROOT) for p in (ROOT / "trm_jax").rglob("*")
               if p.is_file() and p.suffix in (".py", ".typed", ".html", ".safetensors")]
    assert {p.as_posix() for p in sources} <= names
    assert {f"trm_jax/experiments/{p.name}" for p in (ROOT / "experiments").glob("*.py")} <= names
    assert {f"trm_jax/experiments/arc_quick/{p.name}" for p in (ROOT / "experiments/arc_quick").glob("*.json")} <= names
    assert not [name for name in names if name.startswith(("tests", "experiments"))]


def test_it_solves_a_puzzle_from_an_empty_folder(installed, tmp_path):
    done = run(installed, tmp_path, "solve", PUZZLE, "--format=json", "--tries=4",
               f"--compilation_cache={os.environ['JAX_COMPILATION_CACHE_DIR']}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"] is True and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to become another user")
def test_it_trains_for_another_user_where_neither_installation_nor_home_can_be_written(installed, folder):
    place = folder / "place"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    before = sorted(p for p in folder.rglob("*") if place not in p.parents)
    # The cache of the tests is left out: the command looks for its own in a home that it cannot write.
    done = run(installed, place, "train", *SHORT, before=AS_NOBODY, HOME=str(folder), JAX_COMPILATION_CACHE_DIR="")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("run folder: runs/rsm_sudoku-quick (--workdir says another)\n")
    assert (place / "runs/rsm_sudoku-quick/checkpoints/3").is_dir() and (place / "data/sudoku-40").is_dir()
    assert sorted(p for p in folder.rglob("*") if place not in p.parents) == before
    seen = run(installed, place, "describe", "--config=trm_att_arc1:quick", before=AS_NOBODY, HOME=str(folder))
    assert seen.returncode == 0 and "parameters" in seen.stdout, seen.stderr
