"""The notebook docs/python.ipynb, executed on the results of `facelt demo`: `python -m tests.notebook`."""

import copy
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs/python.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read_notebook() -> NotebookNode:
    """Returns the committed notebook with its outputs. Raises nbformat's ValidationError for an invalid one."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Returns a copy executed in `folder`, which holds `runs/demo`; raises nbclient's CellExecutionError.

    Times of execution, ids and versions, which change from run to run, are left out.
    """
    result = copy.deepcopy(notebook)
    client = NotebookClient(
        result,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        timeout=600,
        record_timing=False,
        coalesce_streams=True,
    )
    # With one thread sums have one order, as in the demo.
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1"})
    for number, cell in enumerate(result.cells, start=1):
        cell.id, cell.metadata = f"cell-{number:02d}", NotebookNode()
    result.metadata = nbformat.from_dict(METADATA)
    return result


def output_kinds(cell: NotebookNode) -> set[str]:
    """Returns the kinds of output of a cell: stdout, stderr, error, or the MIME types of what it shows."""
    kinds = set()
    for output in cell.get("outputs", []):
        kinds |= {output["name"]} if output["output_type"] == "stream" else set(output.get("data", ["error"]))
    return kinds


if __name__ == "__main__":
    # Nothing is written if a cell fails.
    nbformat.write(execute(read_notebook(), ROOT), NOTEBOOK)
