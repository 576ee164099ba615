"""examples/tour.ipynb runs, is short, and holds no outputs."""

import pytest
from conftest import ROOT

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
TOUR = ROOT / "examples" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs_from_the_image_to_the_audit(tmp_path):
    notebook = nbformat.read(TOUR, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) <= 12 and all(len(cell.source.splitlines()) <= 15 for cell in cells)
    assert not any(cell.outputs or cell.execution_count for cell in cells), "clear the outputs before a commit"
    for cell in cells:
        cell.source = cell.source.replace("runs/tour", str(tmp_path))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 7
    printed = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    assert "loss: AUC 0.72" in printed and "learned: AUC 0.6" in printed and "The model gives away" in printed
    assert "<svg" in outputs[-1]["data"]["text/html"] and (tmp_path / "report.html").is_file()
