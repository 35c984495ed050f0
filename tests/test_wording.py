"""Names and English: every public name has one meaning, and docstrings are plain."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("recordio_tools", "facelt", "eval_megaface")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
BENCHMARK_FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
TEST_FILES = sorted((ROOT / "tests").rglob("*.py")) + BENCHMARK_FILES
# Names that several entry modules may define.
SHARED_NAMES = {"main"}
OPENING = re.compile(r"(What|How|Whether|Where|Who|Whose|Whoever|Which|Why)\b")
WORDS = re.compile(
    r"\b(told|tells|beside|anew|nobody|whoever|somebody|everybody|goes on|go on|so many|of its own|of their own)\b",
    re.IGNORECASE,
)
# Names of variables and arguments that do not say what they hold.
LOCALS = {"found", "one", "place", "there", "told"}


def public_names(source: str) -> set[str]:
    """Public names that a module defines at its top level."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def docstrings(source: str) -> Iterator[str]:
    """Docstrings of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def refused_words(source: str) -> list[str]:
    """Question-word openings and refused words of the docstrings."""
    openings = [match[0] for text in docstrings(source) if (match := OPENING.match(text))]
    return openings + [match[0] for text in docstrings(source) for match in WORDS.finditer(text)]


def refused_locals(source: str) -> set[str]:
    """Refused names of variables and arguments."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.arg for node in nodes if isinstance(node, ast.arg)
    }
    return names & LOCALS


def test_a_public_name_is_defined_once():
    places = defaultdict(list)
    for path in FILES + BENCHMARK_FILES:
        for name in public_names(path.read_text()) - SHARED_NAMES:
            places[name].append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_messages_are_plain_english(path):
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source))
    assert refused_words(source) == []
    # Comments and messages as well.
    assert WORDS.findall(source) == []
    assert refused_locals(source) == set()


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_names_of_tests_and_benchmarks_are_plain_english(path):
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source))
    assert refused_words(source) == []
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [node.name for node in nodes if WORDS.search(node.name.replace("_", " "))] == []
    assert refused_locals(source) == set()


def test_refused_words_are_found():
    assert refused_words('"""What is kept."""\n') == ["What"]
    assert refused_words('def f():\n    """Returns a list. It goes on."""\n') == ["goes on"]
    assert refused_locals("def f(place):\n    found = index = place\n") == {"place", "found"}
    assert public_names("A = 1\n_b = 2\nc: int = 3\ndef d(): ...\n") == {"A", "c", "d"}
