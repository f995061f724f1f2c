"""The notebook runs from its first cell to its last, and shows what it says."""

import json
import os
import pathlib
import sys

import pytest

from trm_jax import config

NOTEBOOK = pathlib.Path(__file__).parent.parent / "experiments" / "quickstart.ipynb"
SMALL = ["data.path=data/4x4", "data.make.box=2,2", "data.make.clues=6", "data.make.train=64", "data.make.test=8",
         "total_steps=20", "eval.H_test=2", "log.interval_steps=10"]


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_it_is_kept_without_outputs_and_its_code_can_be_compiled():
    notebook = json.loads(NOTEBOOK.read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    for code in cells("code")[1:]:  # the first one installs, by a line that is no Python
        compile(code, NOTEBOOK.name, "exec")
    config.load("rsm_sudoku:quick", SMALL)


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parent.parent), *filter(None, sys.path)]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"FIELDS, RUN = {SMALL!r}, 'run'"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert len(pages) == 3 and all(page.startswith("<svg") for page in pages)
    assert "<animate" in pages[1] and "<p>verified; " in pages[2]
    assert "2 cycles: " in "".join(output.get("text", "") for output in shown)
