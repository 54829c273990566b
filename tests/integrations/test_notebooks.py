"""The notebooks run from top to bottom in a real kernel, and show what they say."""

from __future__ import annotations

import os

import pytest

from .page import PASSWORD, ROOT

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'invert_fast[notebooks]'")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'invert_fast[notebooks]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'invert_fast[notebooks]'")


def shown(name: str, folder, monkeypatch) -> list[str]:
    """What each code cell shows: HTML where it has some, else text."""
    for variable in ("INVERT_FAST_NOTEBOOK_MODEL", "INVERT_FAST_GEMMA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "notebooks are kept without outputs"
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute(cwd=str(folder))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [[out for out in cell.outputs if out.get("name") != "stderr"] for cell in cells]
    return [
        "".join(o.get("text", "") or o["data"].get("text/html", o["data"].get("text/plain")) for o in outs)
        for outs in outputs
    ]


def test_first_steps(folder, monkeypatch):
    sizes, recovered, table, doubtful, score, diagnosis = shown("first_steps.ipynb", folder, monkeypatch)
    assert "(9, 256)" in sizes
    assert "9 of 9 tokens certified" in recovered
    assert "hunter" not in PASSWORD[:10]
    assert table.count("<tr") == 10
    assert "best match" in doubtful
    assert "certified" in score
    assert "--layer block:3" in diagnosis


def test_leakage_by_layer_says_which_model_it_is_of(folder, monkeypatch):
    said, none, table, texts = shown("leakage_by_layer.ipynb", folder, monkeypatch)
    assert "this is the bundled model" in said
    assert none == ""
    assert "final_norm" in table
    assert "block:0" in table
    assert "text" in texts
