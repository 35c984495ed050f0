"""Light imports: --help and the packages load no heavy library."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from facelt.cli.gallery import gallery_app
from facelt.cli.main import app
from facelt.cli.recipes import recipes_app

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    *("torch", "torchvision", "faiss", "matplotlib", "sklearn", "scipy", "safetensors", "tensorboard", "pandas"),
    *("onnx", "onnxruntime"),
)
PROMISED = {
    *("train", "align", "dataset", "embed", "evaluate", "verify", "megaface", "ijb", "tinyface", "audit"),
    *("bench", "figures", "export", "gallery", "store", "demo", "recipes"),
}

REPORT = """
import sys
heavy = [name for name in {heavy!r} if name in sys.modules]
print("heavy:", *heavy)
"""
HELP = """
import contextlib, io, sys
from {module} import {main} as main
for words in {commands!r}:
    sys.argv = ["program", *words, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as end:
            assert not end.code, (words, end.code)
    assert "--help" in out.getvalue() or "usage" in out.getvalue().lower(), words
"""


def commands() -> list[str]:
    """Returns the names of the commands of `facelt`."""
    groups = [group.name for group in app.registered_groups]
    return [command.name or command.callback.__name__ for command in app.registered_commands] + groups


def loaded_by(program: str) -> str:
    """Runs a program in a fresh interpreter; returns the line that lists the heavy packages it loaded."""
    program += REPORT.format(heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].strip()


def test_the_command_line_loads_no_numpy():
    assert loaded_by("import sys, facelt.cli.main\nassert 'numpy' not in sys.modules") == "heavy:"


def test_importing_the_packages_loads_nothing_heavy():
    assert loaded_by("import facelt, recordio_tools, eval_megaface, facelt.cli.main, facelt.config") == "heavy:"


def test_attributes_of_the_package_load_what_they_need_on_first_use():
    assert loaded_by("import facelt; print(facelt.__version__, dir(facelt))") == "heavy:"
    assert loaded_by("import facelt; facelt.Gallery") == "heavy:"
    loaded = loaded_by("import facelt; facelt.audit.__call__; from facelt import audit; import facelt.audit.arrays")
    assert "torch" not in loaded
    assert "faiss" not in loaded


def test_a_missing_package_of_an_attribute_is_named_with_its_extra():
    program = """
import sys
sys.modules["torch"] = None
import facelt
try:
    facelt.load
except ModuleNotFoundError as error:
    print(error)
try:
    facelt.loud
except AttributeError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.stdout.splitlines() == [
        "facelt.load needs the package torch: pip install 'facelt[train]'",
        "module 'facelt' has no attribute 'loud'",
    ]


def test_a_heavy_package_would_be_reported():
    assert loaded_by("import scipy") == "heavy: scipy"


def test_the_configuration_loads_nothing_heavy_before_it_is_validated():
    program = """
from pathlib import Path
from facelt.config.loading import read_layers
from facelt.config.train import TrainConfig
read_layers(Path("configs/ms1m_lt.yaml"), ["device=cpu"]).values()
"""
    assert loaded_by(program) == "heavy:"


def test_training_sets_the_openmp_policy_before_torch_is_loaded(tmp_path):
    program = f"""
import builtins, os, sys
from pathlib import Path
policies, original = [], builtins.__import__
def watched(name, *arguments, **options):
    if name == "torch" and "torch" not in sys.modules:
        policies.append(os.environ.get("OMP_WAIT_POLICY"))
    return original(name, *arguments, **options)
builtins.__import__ = watched
from facelt.cli.train import train
from facelt.errors import UserError
os.environ.pop("OMP_WAIT_POLICY", None)
try:
    train(Path("configs/demo.yaml"), ["data.train={tmp_path}/absent.rec", "out={tmp_path}/run"])
except Exception as error:
    print(error)
assert policies and policies[0] == "active", policies
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=ROOT)


def test_every_help_of_facelt_loads_nothing_heavy():
    groups = {"gallery": gallery_app, "recipes": recipes_app}
    subcommands = [
        [group, command.name or command.callback.__name__]
        for group, group_app in groups.items()
        for command in group_app.registered_commands
    ]
    words = [[], *([name] for name in commands()), *subcommands]
    assert loaded_by(HELP.format(module="facelt.cli.main", main="main", commands=words)) == "heavy:"


def test_every_help_of_the_record_tools_loads_nothing_heavy():
    words = [[], *([name] for name in ("info", "verify", "sample", "lists", "pack", "unpack"))]
    assert loaded_by(HELP.format(module="recordio_tools.__main__", main="main", commands=words)) == "heavy:"


@pytest.mark.parametrize(
    "entry",
    [
        "-m facelt",
        "-m facelt.train",
        *(f"-m facelt {name}" for name in commands()),
        "eval_megaface/run.py",
    ],
)
def test_help_of_every_entry(entry):
    command = [sys.executable, "-X", "importtime", *entry.split(), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0
    assert "--help" in result.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & set(HEAVY)


def test_facelt_lists_exactly_the_commands_that_exist():
    result = subprocess.run([sys.executable, "-m", "facelt", "--help"], capture_output=True, text=True, cwd=ROOT)
    # Names start a row; continued descriptions are indented further.
    listed = set(re.findall(r"^[^\w\n]{1,3}(\w+)  ", result.stdout.split("Commands")[1], re.MULTILINE))
    files = {path.stem for path in (ROOT / "facelt" / "cli").glob("[a-z]*.py")} - {"main", "gallery_inputs"}
    assert listed == set(commands()) == files | {"megaface"}
    assert listed <= PROMISED
