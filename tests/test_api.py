"""The library's face in Python: what docstrings and READMEs show is what happens."""

import doctest
import importlib
import pathlib
import re

import jax
import pytest

import trm_jax

ROOT = pathlib.Path(__file__).parent.parent
SNIPPETS = [(str(file.relative_to(ROOT)), code) for file in sorted(ROOT.rglob("*.md")) if ".venv" not in str(file)
            for code in re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), re.S)]


@pytest.fixture
def as_a_user(tmp_path, monkeypatch):
    """In an empty folder, with jax as it comes (optax's Adam promotes 0.9 ** count)."""
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.parametrize("module", ["trm_jax.jobs.train", "trm_jax.inference.solver"])
def test_what_docstrings_show_is_what_happens(module, as_a_user):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed


@pytest.mark.parametrize("where, code", SNIPPETS, ids=[f"{where}-{i}" for i, (where, _) in enumerate(SNIPPETS)])
def test_snippets_of_readmes_run(where, code, as_a_user, capsys):
    """`print(x)  # text` prints that text."""
    exec(compile(code, where, "exec"), {"__name__": "__main__"})
    shown = re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
    assert capsys.readouterr().out.splitlines() == shown


def test_every_public_name_is_documented():
    for name in trm_jax.__all__:
        assert getattr(trm_jax, name).__doc__, name
