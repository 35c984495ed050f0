"""Imports go down only: the table of what each layer may import of ours, and every import held against it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("recordio_tools", "facelt", "eval_megaface")
MEASURING = (
    *("facelt.store", "facelt.search", "facelt.identification", "facelt.metrics", "facelt.gallery", "facelt.report"),
)
ENTRIES = (
    "facelt.train",
    "facelt.align",
    "facelt.embed",
    "facelt.evaluate",
    "facelt.verify",
    "facelt.audit",
    "facelt.dataset",
    "facelt.bench",
    "facelt.figures",
    "facelt.export",
    "facelt.gallery_cli",
    "facelt.demo",
)

# What any layer may import of ours, and what each may beside that and itself.
BOTTOM = ("facelt.errors", "facelt.whole_files")
ALLOWED = {
    "recordio_tools": (),
    "facelt": (),
    "facelt.errors": (),
    "facelt.whole_files": (),
    "facelt.config": (),
    # The training side.
    "facelt.data": ("recordio_tools",),
    "facelt.data.synthetic": ("recordio_tools",),
    # From photographs to aligned faces, without torch.
    "facelt.alignment": ("facelt.data", "facelt.report", "recordio_tools"),
    "facelt.models": (),
    "facelt.parallel": (),
    "facelt.memory": ("facelt.parallel",),
    "facelt.losses": ("facelt.parallel",),
    "facelt.heads": ("facelt.parallel", "facelt.memory"),
    "facelt.methods": (
        *("facelt.config", "facelt.models", "facelt.parallel"),
        *("facelt.memory", "facelt.losses", "facelt.heads", "facelt.metrics"),
    ),
    "facelt.openset": (),
    "facelt.engine": (
        *("facelt.config", "facelt.data", "facelt.models", "facelt.parallel", "facelt.methods", "facelt.openset"),
        *("facelt.metrics", "facelt.store", "facelt.alignment", "recordio_tools"),
    ),
    # The measuring side.
    "facelt.store": (),
    "facelt.metrics": (),
    "facelt.search": ("facelt.store",),
    "facelt.identification": ("facelt.store", "facelt.search", "facelt.metrics"),
    "facelt.gallery": ("facelt.store", "facelt.search", "facelt.identification", "facelt.metrics"),
    "facelt.auditing": (
        *("facelt.config", "facelt.store", "facelt.search", "facelt.identification", "facelt.metrics"),
        "recordio_tools",
    ),
    "facelt.report": (),
    "eval_megaface": ("facelt.config", "facelt.entry", "facelt.embed", "facelt.auditing", *MEASURING),
    # Runs of recipes and their table.
    "facelt.benchmarking": ("facelt.config", "facelt.engine", "facelt.report"),
    # The entries.
    "facelt.entry": ("facelt.report", "recordio_tools"),
    "facelt.train": ("facelt.config", "facelt.entry", "facelt.engine"),
    "facelt.align": ("facelt.entry", "facelt.alignment"),
    "facelt.embed": ("facelt.config", "facelt.entry", "facelt.alignment", "facelt.engine"),
    "facelt.evaluate": ("facelt.config", "facelt.entry", "facelt.engine", "facelt.report"),
    "facelt.verify": (
        *("facelt.config", "facelt.entry", "facelt.data", "facelt.engine", "facelt.store", "facelt.identification"),
        "facelt.report",
    ),
    "facelt.audit": ("facelt.config", "facelt.entry", "facelt.auditing", "facelt.report"),
    "facelt.dataset": ("facelt.config", "facelt.entry", "facelt.engine"),
    "facelt.bench": ("facelt.config", "facelt.entry", "facelt.benchmarking", "facelt.engine", "facelt.report"),
    "facelt.figures": ("facelt.config", "facelt.entry", "facelt.engine", "facelt.metrics", "facelt.report"),
    "facelt.export": ("facelt.config", "facelt.entry", "facelt.engine"),
    "facelt.gallery_cli": (
        *("facelt.entry", "facelt.gallery", "facelt.store", "facelt.alignment", "facelt.engine", "facelt.report"),
    ),
    "facelt.demo": ("facelt.entry", "facelt.data.synthetic", "recordio_tools"),
    "facelt.cli": ("facelt.entry", "eval_megaface", *ENTRIES),
}
# What `import` may not bring in there at the top of a file, nor, but for the search engines, anywhere.
HEAVY = ("torch", "torchvision", "faiss", "matplotlib", "sklearn", "fairlearn", "tensorboard", "safetensors")
NEVER = {
    "recordio_tools": (*HEAVY, "scipy", "mxnet"),
    "facelt.config": HEAVY,
    "facelt.data.synthetic": HEAVY,
    "facelt.alignment": HEAVY,
    **dict.fromkeys(
        ("facelt.store", "facelt.metrics", "facelt.identification", "facelt.gallery", "facelt.report"), HEAVY[:3]
    ),
    "facelt.auditing": HEAVY[:3],
    "eval_megaface": HEAVY,
}


def walk() -> Iterator[tuple[str, Path]]:
    """Every module of ours by its dotted name."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(walk())


def layer_of(module: str) -> str:
    """The longest row of the table a module lies under; a module of facelt that no row names is a layer of its own."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    found = next((prefix for prefix in prefixes if prefix in ALLOWED), module)
    return module if found == "facelt" != module else found


def imports(source: str, nested: bool = True) -> set[str]:
    """Dotted names a file imports; `from package import name` counts as package.name, which may be a module."""
    tree = ast.parse(source)
    found: set[str] = set()
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(names: set[str]) -> set[str]:
    """The layers those imports lead to."""
    wanted = {name for name in names if name.partition(".")[0] in PACKAGES}
    # `from facelt.data.batch import Batch` is of facelt.data.batch, `from facelt.engine import run` of the module.
    return {layer_of(name if name in MODULES else name.rpartition(".")[0]) for name in wanted}


def wrong_ways(module: str, source: str) -> set[str]:
    layer = layer_of(module)
    return ours(imports(source)) - {layer, *BOTTOM, *ALLOWED[layer]}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below(module):
    source = MODULES[module].read_text()
    assert layer_of(module) in ALLOWED, "a new layer needs a row in the table of this test and in the design"
    if module.startswith("recordio_tools"):
        assert ours(imports(source)) <= {"recordio_tools"}
    assert not wrong_ways(module, source)


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_stay_where_they_are_needed(module):
    layer, source = layer_of(module), MODULES[module].read_text()
    everywhere = {name.partition(".")[0] for name in imports(source)}
    assert not everywhere & set(NEVER.get(layer, ()))
    if layer in (*MEASURING, *ENTRIES, "facelt.auditing", "facelt", "facelt.cli", "facelt.entry", "facelt.errors"):
        at_the_top = {name.partition(".")[0] for name in imports(source, nested=False)}
        assert not at_the_top & set(HEAVY)


def test_the_table_itself_goes_down_only():
    """No two layers may reach each other, and no measuring layer a training one."""

    def reach(layer: str) -> set[str]:
        seen: set[str] = set()
        waiting = [layer]
        while waiting:
            for below in ALLOWED[waiting.pop()]:
                if below not in seen:
                    seen.add(below)
                    waiting.append(below)
        return seen

    assert not [layer for layer in ALLOWED if layer in reach(layer)]
    training = {"facelt.data", "facelt.models", "facelt.memory", "facelt.heads", "facelt.methods", "facelt.engine"}
    assert not [layer for layer in (*MEASURING, "facelt.auditing") if reach(layer) & training]
    assert [layer for layer in ALLOWED if "eval_megaface" in ALLOWED[layer]] == ["facelt.cli"]


def test_the_walk_finds_wrong_ways():
    assert wrong_ways("facelt.models.new", "from facelt.heads import LinearHead") == {"facelt.heads"}
    assert wrong_ways("facelt.store.new", "def f():\n    import facelt.engine.run") == {"facelt.engine"}
    assert wrong_ways("facelt.metrics.new", "from facelt import search") == {"facelt.search"}
    assert wrong_ways("facelt.engine.new", "from eval_megaface.lists import read") == {"eval_megaface"}
    assert wrong_ways("recordio_tools.new", "from facelt.data import decode") == {"facelt.data"}
    assert not wrong_ways("facelt.heads.new", "from facelt.errors import UserError\nimport facelt.memory")
    assert imports("def f():\n    import torch", nested=False) == set()
