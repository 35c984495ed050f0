"""docs/python.ipynb as committed: complete, without traces of a machine; tests/cli/test_demo.py executes it."""

import ast
import json
import re

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from tests.notebook import METADATA, NOTEBOOK, execute, output_kinds, read_notebook

TABLE, PICTURE = {"text/html", "text/plain"}, {"image/png", "text/plain"}
# A slash after a blank, quote or bracket opens an absolute path, one after `<` an end tag.
MACHINE = re.compile(r"(?:^|[\s\"'(=])/\w|[A-Z]:\\|\bfile:|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d", re.MULTILINE)


def code_cells() -> list[nbformat.NotebookNode]:
    return [cell for cell in read_notebook().cells if cell.cell_type == "code"]


def expected_kinds(source: str) -> set[str]:
    """Kinds of output that a cell must have, by its calls of print and show and its last expression."""
    tree = ast.parse(source)
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    last = ast.unparse(tree.body[-1]) if isinstance(tree.body[-1], ast.Expr) else ""
    is_table = last and not last.startswith(("print(", "plt.show("))
    kinds = {"stdout"} if "print" in calls else set()
    return kinds | (PICTURE if "plt.show" in calls else set()) | (TABLE if is_table else set())


def test_every_cell_that_prints_or_draws_has_its_outputs():
    kinds = [output_kinds(cell) for cell in code_cells()]
    assert kinds == [expected_kinds(cell.source) for cell in code_cells()]
    assert sum("image/png" in kind for kind in kinds) == 3
    assert [cell.execution_count for cell in code_cells()] == list(range(1, len(kinds) + 1))


def test_no_trace_of_the_machine_is_left():
    notebook = read_notebook()
    assert notebook.metadata == METADATA
    for number, cell in enumerate(notebook.cells, start=1):
        assert (cell.id, cell.metadata) == (f"cell-{number:02d}", {})
        texts = [cell.source]
        for output in cell.get("outputs", []):
            texts.append(output.get("text", ""))
            texts += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
        assert not MACHINE.search("\n".join(texts)), cell.id
    assert all(MACHINE.search(text) for text in ("in /home/me", "'/tmp/x'", "C:\\x", "2026-01-31", "at 12:00:01"))
    assert NOTEBOOK.stat().st_size < 600_000


def test_links_have_targets():
    texts = "".join(cell.source for cell in read_notebook().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", texts)
    assert "python.md" in links
    assert all((NOTEBOOK.parent / link).is_file() for link in links)


def test_execution_removes_what_changes_and_reports_a_mistake(tmp_path):
    cells = [new_code_cell("import os; print(os.listdir())", metadata={"tags": ["x"]}, id="random")]
    (tmp_path / "seen").touch()
    executed = execute(new_notebook(cells=cells, metadata={"authors": []}), tmp_path)
    assert json.loads(json.dumps(executed.cells)) == [
        {
            "cell_type": "code",
            "execution_count": 1,
            "id": "cell-01",
            "metadata": {},
            "outputs": [{"output_type": "stream", "name": "stdout", "text": "['seen']\n"}],
            "source": "import os; print(os.listdir())",
        }
    ]
    assert executed.metadata == METADATA
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(new_notebook(cells=[new_code_cell("1 / 0")]), tmp_path)
