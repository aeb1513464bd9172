"""The notebook runs from its first cell to its last, on a small checkpoint."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_the_notebook_runs(clip, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "first_steps.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # none is committed
    monkeypatch.setenv("FIRST_STEPS_CLIP", clip)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setitem(os.environ, "HOME", str(tmp_path))  # of the cache of compiled programs

    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(out.output_type != "error" for cell in cells for out in cell.outputs)
    pictures = [out for cell in cells for out in cell.outputs if "image/png" in out.get("data", {})]
    pages = [out for cell in cells for out in cell.outputs if "text/html" in out.get("data", {})]
    assert len(pictures) == 2
    assert "<article>" in pages[-1].data["text/html"]
    assert (tmp_path / "runs" / "first_steps" / "train" / "export").is_dir()
