"""What setup.cfg declares: all that is imported, and as the oldest versions those that the smoke tests run on."""

import ast
import configparser
import importlib.metadata
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def declared():
    """Section ("" for what every installation has) -> {name: requirement}."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    sections = {"": setup["options"]["install_requires"], **setup["options.extras_require"]}
    return {name: {canonical(line): line for line in lines.split("\n") if line} for name, lines in sections.items()}


def canonical(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].replace("_", "-").lower()


def imported(folder: str) -> set[str]:
    """Distributions, other than the standard library and ours, that the files of a folder import anywhere."""
    modules = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module)
    tops = {module.split(".")[0] for module in modules} - {"trm_jax", "tests", *sys.stdlib_module_names}
    owners = importlib.metadata.packages_distributions()
    return {canonical(owners.get(top, [top])[0]) for top in tops}


@pytest.mark.parametrize("folder, also", [("trm_jax", ("plot", "serve", "torch")), ("experiments", ()),
                                          ("tests", ("test", "plot", "torch"))])
def test_what_is_imported_is_declared(declared, folder, also):
    known = {name for section in ("", *also) for name in declared[section]}
    known |= {"pillow"} if "matplotlib" in known else set()  # matplotlib writes its pictures with it
    assert imported(folder) - known == set()


def test_what_is_declared_is_imported(declared):
    assert set(declared[""]) - imported("trm_jax") == set()


def test_the_oldest_versions_are_those_that_the_smoke_tests_run_on(declared):
    pinned = {canonical(line): line for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines()
              if line[0] != "#"}
    for section in ("", "test", "plot"):
        for name, requirement in declared[section].items():
            assert pinned[name] == requirement.replace(">=", "==")
