"""Every command in a README is one that its own parser takes, and every file that a README points to is there."""

import argparse
import pathlib
import re
import shlex

import pytest

from trm_jax import __main__ as door
from trm_jax import config

PROGRAM = "python -m trm_jax "
ROOT = pathlib.Path(__file__).parent.parent
READMES = [*ROOT.glob("*.md"), *(file for folder in ("experiments", "launch", "trm_jax", "tests")
                                 for file in (ROOT / folder).glob("*.md"))]


class Parsed(Exception):
    """A command line that the parser took."""


def commands(text: str) -> set[str]:
    """Those of code blocks and of inline code."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", "").split("\n")
    inline = [" ".join(piece.split()) for piece in re.findall(r"`(python -m [^`]+)`", text)]
    return {line[line.index(PROGRAM):] for line in [*blocks, *inline] if PROGRAM in line}


ALL = sorted({command for file in READMES for command in commands(file.read_text(encoding="utf-8"))})


@pytest.mark.parametrize("command", ALL)
def test_a_command_is_taken_by_its_parser(command, monkeypatch):
    name, *words = shlex.split(command, comments=True)[3:]
    if not words:
        assert name in {*door.COMMANDS, "COMMAND", "--help"}
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, argv=None, namespace=None):
        raise Parsed(parse(parser, argv, namespace))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(Parsed) as taken:
        door.main([name, *words])
    args = taken.value.args[0]
    if name in ("train", "evaluate", "describe", "pool") and args.config != "NAME:VARIANT":
        config.load(args.config, [word.removeprefix("--config.") for word in words if word.startswith("--config.")])


@pytest.mark.parametrize("file", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_readme_points_to_is_there(file):
    text = file.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    scripts = re.findall(r"bash ((?:launch|\.ci)/[\w.]+)", text)
    assert [link for link in links if not (file.parent / link).exists()] == []
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
