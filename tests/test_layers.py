"""Layers: which folders a folder imports, cycles, module counts, and what the root of the package holds."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("recordio_tools", "facelt", "eval_megaface")

# Folders that every other one may import.
GROUND = ("recordio_tools", "errors")
# Folder -> further folders it may import. Imports go down only.
MEASURING = {
    "metrics": "",
    "stats": "utils",
    "store": "utils config",
    "search": "",
    "identification": "search stats metrics",
    "gallery": "store search identification stats",
    "audit": "config report store search identification metrics stats utils",
    "report": "utils",
}
ALLOWED = {
    "recordio_tools": "",
    "errors": "",
    "utils": "",
    "config": "",
    **MEASURING,
    "distributed": "",
    "data": "config distributed metrics",
    "synthetic": "",
    "alignment": "data utils",
    "models": "config",
    "losses": "config distributed",
    "heads": "config distributed",
    "methods": "config models distributed losses heads metrics",
    "openset": "config",
    "inference": "config data distributed models methods openset metrics store alignment",
    "evaluation": "config report data distributed heads methods openset metrics inference store search identification"
    " stats utils",
    "export": "data models methods inference",
    "training": "config data distributed models heads methods metrics inference",
    "benchmarking": "config distributed inference evaluation training report",
    "eval_megaface": "config store search identification stats report utils",
    "cli": "config data synthetic alignment distributed inference evaluation export training benchmarking audit gallery"
    " store identification metrics report utils eval_megaface facelt",
}
ENTRIES = {"facelt": "audit gallery inference utils", "facelt.__main__": "cli", "facelt.train": "cli utils"}

# Packages that a folder never imports at the top of a file; the measuring side imports torch and faiss in its engines.
HEAVY = {"torch", "torchvision", "faiss", "matplotlib", "sklearn", "fairlearn", "tensorboard", "safetensors"}
LIGHT = {*MEASURING, "recordio_tools", "utils", "config", "synthetic", "alignment", "eval_megaface", "cli"}
PLUGINS = {"losses", "methods", "models", "heads", "openset"}
ENGINES = {"facelt.search.faiss_engine", "facelt.search.torch_engine"}


def module_paths() -> Iterator[tuple[str, Path]]:
    """Every module by its dotted name."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(module_paths())


def imported_names(source: str, nested: bool = True) -> set[str]:
    """Dotted names that a file imports; `from package import name` counts as package.name, which may be a module."""
    tree = ast.parse(source)
    names: set[str] = set()
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(source: str) -> set[str]:
    """Modules of the project that a file imports, lazily or for types as well."""
    names = {name for name in imported_names(source) if name.partition(".")[0] in PACKAGES}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names}


def folder_of(module: str) -> str:
    """The folder of a module: the second part of a dotted name in facelt."""
    parts = module.split(".")
    return parts[0] if parts[0] != "facelt" or len(parts) == 1 else parts[1]


IMPORTS = {module: imported_modules(path.read_text()) - {module} for module, path in MODULES.items()}


def forbidden_imports(module: str, imports: set[str]) -> set[str]:
    allowed = ENTRIES.get(module, ALLOWED.get(folder_of(module), "")).split()
    ground = () if folder_of(module) == "recordio_tools" else GROUND
    return {name for name in imports if folder_of(name) not in (*allowed, folder_of(module), *ground)}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    assert folder_of(module) in ALLOWED or module in ("facelt", "facelt.errors", *ENTRIES)
    assert not forbidden_imports(module, IMPORTS[module])


@pytest.mark.parametrize("module", sorted(module for module in MODULES if folder_of(module) in LIGHT))
def test_heavy_packages_load_late(module):
    source = MODULES[module].read_text()
    if module not in ENGINES:
        assert not {name.partition(".")[0] for name in imported_names(source, nested=False)} & HEAVY
    if folder_of(module) == "recordio_tools":
        assert not {name.partition(".")[0] for name in imported_names(source)} & (HEAVY - {"matplotlib"})


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of a directed graph, or an empty list."""
    done: set[str] = set()

    def visit(node: str, path: tuple[str, ...]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if cycle := visit(target, (*path, node)):
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node, ()))), [])


def test_no_cycles():
    assert find_cycle(IMPORTS) == []
    assert find_cycle({folder: set(targets.split()) for folder, targets in ALLOWED.items()}) == []
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_measuring_side_never_reaches_the_training_side():
    reached = set(MEASURING)
    while more := {target for folder in reached for target in ALLOWED[folder].split()} - reached:
        reached |= more
    assert reached <= {*MEASURING, "utils", "config"}
    assert [folder for folder in ALLOWED if "eval_megaface" in ALLOWED[folder].split()] == ["cli"]


def test_every_allowed_import_is_used():
    used: dict[str, set[str]] = {}
    for module, imports in IMPORTS.items():
        used.setdefault(folder_of(module), set()).update(map(folder_of, imports))
    assert {folder: set(targets.split()) - used[folder] for folder, targets in ALLOWED.items()} == {
        folder: set() for folder in ALLOWED
    }


def test_module_counts():
    lines = {
        module: len(path.read_text().splitlines()) for module, path in MODULES.items() if path.name != "__init__.py"
    }
    assert len(lines) <= 250
    assert statistics.median(lines.values()) >= 120
    assert max(lines.values()) <= 500
    # A plug-in that a user picks by name may be smaller.
    assert sum(count < 40 for module, count in lines.items() if folder_of(module) not in PLUGINS) <= 10


def test_the_root_holds_packages_and_entries():
    files = {path.name for path in (ROOT / "facelt").iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "errors.py", "py.typed", "train.py"}


def test_forbidden_imports_are_found():
    def forbidden(module: str, source: str) -> set[str]:
        return forbidden_imports(module, imported_modules(source))

    assert forbidden("facelt.models.new", "from facelt.heads.ncm import NcmHead") == {"facelt.heads.ncm"}
    assert forbidden("facelt.store.new", "def f():\n    import facelt.training.run") == {"facelt.training.run"}
    assert forbidden("recordio_tools.new", "from facelt.data import decode") == {"facelt.data.decode"}
    assert not forbidden("facelt.heads.new", "from facelt.errors import UserError\nimport facelt.distributed.comm")
    assert imported_names("def f():\n    import torch", nested=False) == set()
